//! FUSE file systems, which `mount.fuse` and `mount.fuse3` start.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Mount;
use super::kernel::{Target, fd_path};
use crate::blocking;
use crate::cancel::Cancel;
use crate::error::{Context, Error, Result};
use crate::reaper::Reaper;
use crate::sys;

/// How a file system of a FUSE type is mounted.
#[derive(Debug, PartialEq, Eq)]
pub struct Helper<'a> {
    program: &'static str,
    kind: &'a str,
}

impl<'a> Helper<'a> {
    /// The helper for type `kind`, when it needs one.
    pub fn of(kind: &'a str) -> Option<Self> {
        let with = |program, kind| Helper { program, kind };
        let fuse = kind.strip_prefix("fuse.").map(|k| with("mount.fuse", k));
        fuse.or_else(|| kind.strip_prefix("fuse3.").map(|k| with("mount.fuse3", k)))
    }

    /// Mounts `wanted` below `rootfs` and waits for the helper to say it is done.
    pub async fn mount(
        &self,
        wanted: &Mount,
        rootfs: &Path,
        reaper: &Reaper,
        cancel: &Cancel,
    ) -> Result<()> {
        let done = async {
            let target = resolve(rootfs, &wanted.target).await?;
            self.run(wanted, &target, reaper, cancel).await
        };
        done.await
            .map_err(|error: Error| error.within(wanted.described(rootfs)))
    }

    async fn run(
        &self,
        wanted: &Mount,
        target: &Path,
        reaper: &Reaper,
        cancel: &Cancel,
    ) -> Result<()> {
        // Not a pipe: a file system's process may keep it open for ever.
        let said = sys::fd::memory_file(c"mount.fuse", &std::env::temp_dir())
            .context(|| "create a file for the helper's output")?;
        let output = || said.try_clone().context(|| "duplicate a descriptor");
        let mut command = Command::new(self.program);
        command.arg(&wanted.source).arg(target);
        for option in &wanted.options {
            command.arg("-o").arg(option);
        }
        command
            .args(["-t", self.kind])
            .stdin(Stdio::null())
            .stdout(output()?)
            .stderr(output()?);
        let operation = || format!("run {}", self.program);
        let mut helper = reaper.spawn(command).context(operation)?;
        // Dropping it kills the helper.
        let ended = cancel.unless(helper.ended()).await;
        match ended.context(operation)?.context(operation)?.status {
            0 => Ok(()),
            status => Err(Error::unknown(format!(
                "{} exited with {status}: {}",
                self.program,
                first_kilobyte(&said)
            ))),
        }
    }
}

/// The target as a plain path, for the helper.
async fn resolve(rootfs: &Path, path: &str) -> Result<PathBuf> {
    let (rootfs, path) = (rootfs.to_owned(), path.to_owned());
    blocking::run(move || {
        let target = Target {
            rootfs: &rootfs,
            path: &path,
        };
        let target = target.open().context(|| "open the target")?;
        std::fs::read_link(fd_path(&target)).context(|| "resolve the target")
    })
    .await?
}

/// The first kilobyte of the helper's output.
fn first_kilobyte(output: &File) -> String {
    let mut text = [0; 1024];
    let length = output.read_at(&mut text, 0).unwrap_or(0);
    String::from_utf8_lossy(&text[..length]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_types_with_the_prefix_have_a_helper() {
        let helper = Helper::of("fuse3.fuse-overlayfs").unwrap();
        assert_eq!(
            (helper.program, helper.kind),
            ("mount.fuse3", "fuse-overlayfs")
        );
        assert_eq!(Helper::of("fuse.sshfs").unwrap().program, "mount.fuse");
        for kind in ["fuse", "fuseblk", "overlay", ""] {
            assert_eq!(Helper::of(kind), None, "{kind}");
        }
    }

    /// Has `program` mount. Answers the outcome and the target.
    fn mounted_by(program: &'static str) -> (Result<()>, PathBuf) {
        let helper = Helper { program, kind: "x" };
        let dir = tempfile::tempdir().unwrap();
        let wanted = Mount {
            kind: "fuse3.x".into(),
            source: "/missing".into(),
            options: vec!["allow_other".into()],
            ..Mount::default()
        };
        let reaper = Reaper::new();
        let done = reaper.block_on(helper.mount(&wanted, dir.path(), &reaper, &Cancel::new()));
        (done.unwrap(), dir.path().to_owned())
    }

    #[test]
    fn error_names_a_missing_helper() {
        let (outcome, dir) = mounted_by("/missing/mount.fuse3");
        let dir = dir.display();
        let expected = format!("mount fuse3.x /missing on {dir}: run /missing/mount.fuse3: ");
        let error = outcome.unwrap_err().to_string();
        assert!(error.starts_with(&expected), "{error}");
    }

    #[test]
    fn helper_is_awaited_and_its_output_is_the_error() {
        assert_eq!(mounted_by("true").0, Ok(()));
        let error = mounted_by("ls").0.unwrap_err().to_string();
        assert!(error.contains(": ls exited with 2: "), "{error}");
        assert!(error.contains("cannot access '/missing'"), "{error}");
    }
}
