//! State of a container that its OCI runtime cannot read any more: a full disk or a crash
//! left it empty or truncated. The runtime then never deletes the container.
//!
//! Lacks on purpose: a check whether processes of the container are left. The caller knows
//! that none are.

use std::fs;
use std::io;
use std::path::{Component, Path};

use serde::de::IgnoredAny;

/// The files that hold a container's state, in its directory: runc's and youki's; crun's.
const STATE_FILES: [&str; 2] = ["state.json", "status"];

/// Removes directory `id` below `root`, a container's state, if that cannot be read.
/// Whether it did.
pub fn remove_unreadable(root: &Path, id: &str) -> io::Result<bool> {
    // It must be a plain name: this directory is removed with all that is in it.
    let mut parts = Path::new(id).components();
    if !matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    ) {
        return Ok(false);
    }
    let dir = root.join(id);
    let is_unreadable = dir.is_dir() && is_unreadable(&dir)?;
    if is_unreadable {
        fs::remove_dir_all(dir)?;
    }
    Ok(is_unreadable)
}

/// Whether none of the files in `dir` is a container's state, which is JSON.
fn is_unreadable(dir: &Path) -> io::Result<bool> {
    for name in STATE_FILES {
        match fs::read(dir.join(name)) {
            Ok(text) if serde_json::from_slice::<IgnoredAny>(&text).is_ok() => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state directory with one file.
    fn state(name: &str, content: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("c1")).unwrap();
        fs::write(root.path().join("c1").join(name), content).unwrap();
        root
    }

    #[test]
    fn state_that_is_empty_cut_off_or_missing_is_removed() {
        for (name, content) in [
            ("state.json", ""),
            ("state.json", "{\"id\":\"c1\",\"init_pro"),
            ("status", "\0\0\0\0"),
            ("exec.fifo", ""),
        ] {
            let root = state(name, content);
            assert!(
                remove_unreadable(root.path(), "c1").unwrap(),
                "{name} {content}"
            );
            assert!(!root.path().join("c1").exists());
            assert!(!remove_unreadable(root.path(), "c1").unwrap(), "once");
        }
    }

    #[test]
    fn state_that_can_be_read_stays() {
        for name in STATE_FILES {
            let root = state(name, "{\"id\":\"c1\"}");
            assert!(!remove_unreadable(root.path(), "c1").unwrap());
            assert!(root.path().join("c1").join(name).exists());
        }
    }

    #[test]
    fn only_a_name_below_the_root_is_removed() {
        let root = state("state.json", "");
        for id in ["", ".", "..", "/", "c1/..", "../c1", "/etc"] {
            assert!(!remove_unreadable(root.path(), id).unwrap(), "{id}");
        }
        assert!(root.path().join("c1").exists());
    }
}
