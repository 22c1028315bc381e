//! The files of a sandbox that CRI mounts into its containers: `hostname`, `hosts`,
//! `resolv.conf`, and `shm`, a tmpfs for `/dev/shm`.
//!
//! CRI looks for them when it creates a container. A containerd that is restarted removes them
//! as it knows of no pause container; so they are made again when they are missing. The tmpfs
//! is mounted in the sandbox's bundle, too, where it survives that.
//!
//! Everything here may block: it runs on a thread of its own.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};

use super::config::Config;
use crate::bundle::Bundle;
use crate::error::{Context, Error, Result};

/// Where CRI has a sandbox's files, below containerd's root and its state directory.
const CRI_DIR: &str = "io.containerd.grpc.v1.cri/sandboxes";

/// The size of a pod's `/dev/shm` and its mode, as podsandbox has them.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";

/// The directories of a sandbox's files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dirs {
    /// Below containerd's root.
    pub root: PathBuf,
    /// Below its state directory.
    pub state: PathBuf,
    /// The tmpfs that lasts, in the bundle.
    pub shm: PathBuf,
}

impl Dirs {
    /// Those of the sandbox whose bundle is `bundle`: the bundle is in the state directory, its
    /// `work` leads to the root.
    pub fn of(bundle: &Bundle, id: &str) -> Result<Dirs> {
        let work = bundle.work();
        let work = fs::read_link(&work).context(|| format!("read link {}", work.display()))?;
        let above = |path: &Path| {
            let top = path.ancestors().nth(3).filter(|top| top.is_absolute());
            let unknown = || format!("no containerd directory above {}", path.display());
            top.map(|top| top.join(CRI_DIR).join(id))
                .ok_or_else(|| Error::unknown(unknown()))
        };
        Ok(Dirs {
            root: above(&work)?,
            state: above(bundle.path())?,
            shm: bundle.path().join("shm"),
        })
    }

    /// Makes what is missing.
    pub fn make(&self, config: &Config) -> Result<()> {
        make_dir(&self.root)?;
        self.put("hostname", || hostname(config))?;
        self.put("hosts", || copy_of("/etc/hosts"))?;
        self.put("resolv.conf", || resolv_conf(config))?;
        if config.has_node_ipc() {
            return Ok(());
        }
        if !is_mounted(&self.shm)? {
            make_dir(&self.shm)?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            let (shm, kind) = (&self.shm, Some("tmpfs"));
            mount(Some("shm"), shm, kind, flags, Some(SHM_OPTIONS))
                .context(|| format!("mount tmpfs on {}", shm.display()))?;
        }
        let bound = self.bound_shm();
        if !is_mounted(&bound)? {
            make_dir(&bound)?;
            let none: Option<&str> = None;
            mount(Some(&self.shm), &bound, none, MsFlags::MS_BIND, none)
                .context(|| format!("bind {} on {}", self.shm.display(), bound.display()))?;
        }
        Ok(())
    }

    /// Where CRI looks for the tmpfs.
    fn bound_shm(&self) -> PathBuf {
        self.state.join("shm")
    }

    /// Writes the file `name`, unless it is there: containers may have it mounted.
    fn put(&self, name: &str, content: impl FnOnce() -> Result<Vec<u8>>) -> Result<()> {
        let path = self.root.join(name);
        if path.exists() {
            return Ok(());
        }
        let content = content()?;
        let new = self.root.join(format!(".{name}.new"));
        let written = fs::write(&new, content).and_then(|()| fs::rename(&new, &path));
        written.context(|| format!("write {}", path.display()))
    }

    /// Removes all, and goes on when something cannot be removed: the first error.
    pub fn remove(&self) -> Result<()> {
        let bound = self.bound_shm();
        let unmounted = [bound.as_path(), &self.shm].map(unmount);
        let removed = [self.root.as_path(), &self.state, &self.shm].map(|dir| {
            // What is mounted there still is not to be removed.
            if dir.as_os_str().is_empty() || is_mounted(&bound)? || is_mounted(&self.shm)? {
                return Ok(());
            }
            match fs::remove_dir_all(dir) {
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
                outcome => outcome.context(|| format!("remove {}", dir.display())),
            }
        });
        unmounted.into_iter().chain(removed).collect()
    }
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).context(|| format!("make directory {}", path.display()))
}

fn hostname(config: &Config) -> Result<Vec<u8>> {
    let name = match config.hostname.as_str() {
        "" => {
            let name = nix::unistd::gethostname().context(|| "get the hostname")?;
            name.to_string_lossy().into_owned()
        }
        name => name.to_owned(),
    };
    Ok(format!("{name}\n").into())
}

fn resolv_conf(config: &Config) -> Result<Vec<u8>> {
    let text = config.dns.as_ref().map(|dns| dns.resolv_conf());
    match text.filter(|text| !text.is_empty()) {
        Some(text) => Ok(text.into()),
        None => copy_of("/etc/resolv.conf"),
    }
}

fn copy_of(path: &str) -> Result<Vec<u8>> {
    fs::read(path).context(|| format!("read {path}"))
}

/// Whether something is mounted on `path`: what is in it is on another file system than what it
/// is in. A missing one is not.
fn is_mounted(path: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| match fs::symlink_metadata(path) {
        Ok(data) => Ok(Some(data.dev())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).context(|| format!("look at {}", path.display())),
    };
    let parent = path.parent().unwrap_or(path);
    Ok(match (device(path)?, device(parent)?) {
        (Some(own), Some(parents)) => own != parents,
        _ => false,
    })
}

/// Unmounts what is mounted on `path`, lazily: containers may have it still.
fn unmount(path: &Path) -> Result<()> {
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // It may be there more than once.
            Ok(()) => {}
            // Nothing is mounted there, or there is nothing.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => {
                let error: io::Error = error.into();
                return Err(error).context(|| format!("unmount {}", path.display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(top: &Path) -> Dirs {
        Dirs {
            root: top.join("root/s"),
            state: top.join("state/s"),
            shm: top.join("shm"),
        }
    }

    #[test]
    fn directories_are_found_from_the_bundle() {
        let top = tempfile::tempdir().unwrap();
        let kind = "io.containerd.sandbox.controller.v1.shim/k8s.io/s";
        let (root, state) = (top.path().join("lib"), top.path().join("run"));
        let bundle = Bundle::at(state.join(kind));
        fs::create_dir_all(bundle.path()).unwrap();
        std::os::unix::fs::symlink(root.join(kind), bundle.work()).unwrap();
        let dirs = Dirs::of(&bundle, "s").unwrap();
        assert_eq!(dirs.root, root.join(CRI_DIR).join("s"));
        assert_eq!(dirs.state, state.join(CRI_DIR).join("s"));
        assert!(Dirs::of(&Bundle::at("/no/such/bundle/s"), "s").is_err());
    }

    #[test]
    fn files_that_are_missing_are_made_again_and_others_stay() {
        let top = tempfile::tempdir().unwrap();
        let dirs = dirs(top.path());
        let config = Config {
            hostname: "pod".into(),
            ipc: super::super::config::Mode::Node,
            ..Config::default()
        };
        dirs.make(&config).unwrap();
        let read = |name: &str| fs::read_to_string(dirs.root.join(name)).unwrap();
        assert_eq!(read("hostname"), "pod\n");
        assert_eq!(read("hosts"), fs::read_to_string("/etc/hosts").unwrap());
        fs::write(dirs.root.join("hosts"), "changed").unwrap();
        fs::remove_file(dirs.root.join("hostname")).unwrap();
        dirs.make(&config).unwrap();
        assert_eq!(
            (read("hostname"), read("hosts")),
            ("pod\n".into(), "changed".into())
        );
        dirs.remove().unwrap();
        dirs.remove().unwrap();
        assert!(!dirs.root.exists());
    }

    #[test]
    fn shared_memory_outlives_its_place_being_wiped() {
        if !crate::sys::process::root_or_skip() {
            return;
        }
        let top = tempfile::tempdir().unwrap();
        let dirs = dirs(top.path());
        let config = Config::default();
        dirs.make(&config).unwrap();
        fs::write(dirs.state.join("shm/x"), "kept").unwrap();
        umount2(&dirs.state.join("shm"), MntFlags::MNT_DETACH).unwrap();
        fs::remove_dir_all(&dirs.state).unwrap();
        fs::remove_dir_all(&dirs.root).unwrap();
        dirs.make(&config).unwrap();
        dirs.make(&config).unwrap();
        assert_eq!(
            fs::read_to_string(dirs.state.join("shm/x")).unwrap(),
            "kept"
        );
        dirs.remove().unwrap();
        assert_eq!(fs::read_dir(top.path().join("root")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(top.path().join("state")).unwrap().count(), 0);
        assert!(!dirs.shm.exists());
    }
}
