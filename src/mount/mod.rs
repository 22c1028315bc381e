//! A container's mounts on the bundle's `rootfs`, as containerd asks for them, and their
//! unmounting.
//!
//! Promises: mounts are made in the order asked; when one fails, all are undone and
//! the error names type, source, target and cause. A hung file system holds up one
//! short-lived thread and its caller, never the server.
//!
//! Lacks on purpose: creating missing targets; detaching a busy mount while a client waits for
//! the answer (`delete` does that at last); `fusermount`, which root does not need.

mod fuse;
mod kernel;
pub(crate) mod options;
mod unmount;

use std::fmt::Display;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::blocking;
use crate::cancel::Cancel;
use crate::error::{Context, Error, Result};
use crate::reaper::Reaper;

/// How long busy mounts are tried again.
const BUSY_TIMEOUT: Duration = Duration::from_millis(2500);

/// How long an unmount may take past its limit before what is mounted is detached.
const BLOCKED_TIMEOUT: Duration = Duration::from_millis(200);

/// One rootfs mount as containerd asks for it (`containerd.types.Mount`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// The file system's type; `fuse.X` and `fuse3.X` go to a helper.
    pub kind: String,
    /// A directory, a device, or what else the type wants.
    pub source: String,
    /// Sub-path inside the rootfs, resolved safely against symlinks; empty: the rootfs.
    pub target: String,
    /// Options as in fstab(5).
    pub options: Vec<String>,
}

impl Mount {
    /// What is being done, for errors.
    fn described(&self, rootfs: &Path) -> impl Display {
        let Self { kind, source, .. } = self;
        let path = &self.target;
        let target = kernel::Target { rootfs, path }.display_path();
        format!("mount {kind} {source} on {}", target.display())
    }
}

/// Mounts all, in order, on `rootfs` (off the main thread). When one fails, everything at and
/// below `rootfs` is unmounted.
///
/// `cancel` ends a FUSE helper. Nothing can end a mount(2) that hangs. Do not drop this future:
/// it would undo nothing.
pub async fn mount_all(
    mounts: Vec<Mount>,
    rootfs: &Path,
    reaper: &Reaper,
    cancel: &Cancel,
) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    let Err(error) = mount_each(mounts, rootfs, reaper, cancel).await else {
        return Ok(());
    };
    match unmount_all(rootfs).await {
        Ok(()) => Err(error),
        Err(undo) => Err(Error::new(
            error.kind(),
            format!("{error} (undo failed: {undo})"),
        )),
    }
}

async fn mount_each(
    mounts: Vec<Mount>,
    rootfs: &Path,
    reaper: &Reaper,
    cancel: &Cancel,
) -> Result<()> {
    let mut mounts = mounts.into_iter().peekable();
    while let Some(mount) = mounts.next() {
        if let Some(helper) = fuse::Helper::of(&mount.kind) {
            helper.mount(&mount, rootfs, reaper, cancel).await?;
            continue;
        }
        let mut batch = vec![mount];
        while let Some(next) = mounts.next_if(|m| fuse::Helper::of(&m.kind).is_none()) {
            batch.push(next);
        }
        let rootfs = rootfs.to_owned();
        blocking::run(move || {
            kernel::own_directory().context(|| "unshare the working directory")?;
            batch.iter().try_for_each(|m| kernel::mount_one(m, &rootfs))
        })
        .await??;
    }
    Ok(())
}

/// Unmounts everything at and below `rootfs`, the latest first, with retries (off the
/// main thread). No `rootfs`, or nothing mounted there, is no error.
pub async fn unmount_all(rootfs: &Path) -> Result<()> {
    unmount_all_within(rootfs, BUSY_TIMEOUT).await
}

async fn unmount_all_within(rootfs: &Path, limit: Duration) -> Result<()> {
    let (rootfs, deadline) = (rootfs.to_owned(), Instant::now() + limit);
    blocking::run_always(move || unmount::unmount_below(&rootfs, deadline)).await?
}

/// Unmounts all, as [`unmount_all`] does, or detaches what cannot be unmounted within
/// `limit`, and says why.
pub async fn unmount_or_detach(rootfs: &Path, limit: Duration) -> Result<()> {
    let unmounted = unmount_all_within(rootfs, limit);
    // The kernel may not return from a dead file system.
    let unmounted = tokio::time::timeout(limit + BLOCKED_TIMEOUT, unmounted).await;
    let late = || {
        Error::unknown(format!(
            "unmount {}: not done within {limit:?}",
            rootfs.display()
        ))
    };
    let Err(error) = unmounted.unwrap_or_else(|_| Err(late())) else {
        return Ok(());
    };
    match unmount::detach_below(rootfs) {
        Ok(()) => Err(Error::new(error.kind(), format!("{error}: detached"))),
        Err(detach) => Err(Error::new(
            error.kind(),
            format!("{error} (detach failed: {detach})"),
        )),
    }
}

/// Unit tests mount in a mount namespace of their own.
#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use std::fs;
    use std::os::unix::fs::{MetadataExt, chown, symlink};
    use std::path::PathBuf;

    /// Runs `test` in a mount namespace of its own, in a fresh file system with an
    /// empty directory `rootfs`.
    fn privately<F: Future<Output = ()>>(test: impl FnOnce(PathBuf) -> F + Send) {
        if !crate::sys::process::root_or_skip() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let none: Option<&str> = None;
        let run = || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).unwrap();
            let tmpfs = Some("tmpfs");
            mount(tmpfs, dir.path(), tmpfs, MsFlags::empty(), none).unwrap();
            fs::create_dir(dir.path().join("rootfs")).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(test(dir.path().to_owned()));
        };
        std::thread::scope(|scope| scope.spawn(run).join().unwrap());
    }

    fn a_mount(kind: &str, source: impl AsRef<Path>, target: &str, options: &[&str]) -> Mount {
        Mount {
            kind: kind.to_owned(),
            source: source.as_ref().to_str().unwrap().to_owned(),
            target: target.to_owned(),
            options: options.iter().map(|o| o.to_string()).collect(),
        }
    }

    fn dir_with_file(dir: PathBuf, file: &str) -> PathBuf {
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(file), file).unwrap();
        dir
    }

    fn mounts_below(dir: &Path) -> Vec<PathBuf> {
        let mut points = Vec::new();
        let mountinfo = Path::new("/proc/thread-self/mountinfo");
        crate::sys::mount::each_mount(mountinfo, |mount| points.push(mount.point())).unwrap();
        points.retain(|point| point.starts_with(dir) && point != dir);
        points
    }

    async fn mount_there(mounts: Vec<Mount>, rootfs: &Path) -> Result<()> {
        mount_all(mounts, rootfs, &Reaper::new(), &Cancel::new()).await
    }

    #[test]
    fn read_only_bind_mount_is_read_only() {
        privately(async |dir| {
            let (source, rootfs) = (dir_with_file(dir.join("a"), "file"), dir.join("rootfs"));
            let bind = a_mount("bind", &source, "", &["rbind", "ro", "rprivate"]);
            mount_there(vec![bind], &rootfs).await.unwrap();
            assert_eq!(fs::read(rootfs.join("file")).unwrap(), b"file");
            let error = fs::write(rootfs.join("file"), "x").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
            unmount_all(&rootfs).await.unwrap();
            assert!(mounts_below(&dir).is_empty());
        });
    }

    #[test]
    fn mount_can_be_remounted() {
        privately(async |dir| {
            let rootfs = dir.join("rootfs");
            let tmpfs = |options: &[&str]| a_mount("tmpfs", "tmpfs", "", options);
            let mounts = vec![tmpfs(&["size=1m"]), tmpfs(&["remount", "ro"])];
            mount_there(mounts, &rootfs).await.unwrap();
            assert_eq!(mounts_below(&dir), [rootfs.as_path()]);
            let error = fs::write(rootfs.join("file"), "x").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        });
    }

    #[test]
    fn failed_mount_undoes_earlier_ones() {
        privately(async |dir| {
            let (source, rootfs) = (dir_with_file(dir.join("a"), "file"), dir.join("rootfs"));
            let good = a_mount("bind", &source, "", &["bind"]);
            let bad = a_mount("bind", dir.join("missing"), "", &["bind"]);
            let error = mount_there(vec![good, bad], &rootfs).await.unwrap_err();
            let dir = dir.display();
            assert_eq!(
                error.to_string(),
                format!(
                    "mount bind {dir}/missing on {dir}/rootfs: mount(2): \
                     ENOENT: No such file or directory"
                )
            );
            assert!(mounts_below(&rootfs).is_empty() && !rootfs.join("file").exists());
        });
    }

    #[test]
    fn overlay_options_may_be_longer_than_a_page() {
        privately(async |dir| {
            let rootfs = dir.join("rootfs");
            let layer = |n| dir_with_file(dir.join(format!("snap/{n}/fs")), &format!("file{n}"));
            let layers: Vec<_> = (0..200).map(|n| layer(n).display().to_string()).collect();
            let lower = format!("lowerdir={}", layers.join(":"));
            assert!(lower.len() > 4096);
            let [upper, work] = ["upper", "work"].map(|name| {
                fs::create_dir(dir.join(name)).unwrap();
                format!("{name}dir={}/{name}", dir.display())
            });
            let overlay = a_mount("overlay", "overlay", "", &[&lower, &upper, &work]);
            let before = std::env::current_dir().unwrap();
            mount_there(vec![overlay], &rootfs).await.unwrap();
            assert_eq!(std::env::current_dir().unwrap(), before);
            for n in [0, 199] {
                assert!(rootfs.join(format!("file{n}")).exists());
            }
            fs::write(rootfs.join("new"), "").unwrap();
            assert!(dir.join("upper/new").exists());
        });
    }

    #[test]
    fn target_does_not_leave_the_rootfs() {
        privately(async |dir| {
            let (source, rootfs) = (dir_with_file(dir.join("a"), "file"), dir.join("rootfs"));
            fs::create_dir(rootfs.join("inside")).unwrap();
            symlink("/inside", rootfs.join("absolute")).unwrap();
            symlink("../../inside", rootfs.join("relative")).unwrap();
            for target in ["absolute", "/relative", "inside/../../inside"] {
                let bind = a_mount("bind", &source, target, &["bind", "ro"]);
                mount_there(vec![bind], &rootfs).await.unwrap();
                assert_eq!(mounts_below(&dir), [rootfs.join("inside")], "{target}");
                unmount_all(&rootfs).await.unwrap();
            }
            let missing = a_mount("bind", &source, "none", &["bind"]);
            let error = mount_there(vec![missing], &rootfs).await.unwrap_err();
            assert!(error.to_string().contains("/rootfs/none: "), "{error}");
        });
    }

    #[test]
    fn bind_mount_maps_owners() {
        privately(async |dir| {
            let (source, rootfs) = (dir_with_file(dir.join("a"), "file"), dir.join("rootfs"));
            chown(source.join("file"), Some(3), Some(4)).unwrap();
            let maps = ["bind", "ro", "uidmap=0:1000:10", "gidmap=0:2000:10"];
            let bind = a_mount("bind", &source, "", &maps);
            mount_there(vec![bind], &rootfs).await.unwrap();
            let file = fs::metadata(rootfs.join("file")).unwrap();
            assert_eq!((file.uid(), file.gid()), (1003, 2004));
            assert!(fs::write(rootfs.join("file"), "x").is_err());
            unmount_all(&rootfs).await.unwrap();
            assert!(mounts_below(&dir).is_empty());
        });
    }

    #[test]
    fn overlay_maps_owners_and_leaves_no_other_mount() {
        privately(async |dir| {
            let rootfs = dir.join("rootfs");
            let (low, high) = (
                dir_with_file(dir.join("1"), "f1"),
                dir_with_file(dir.join("2"), "f2"),
            );
            let lower = format!("lowerdir={}:{}", high.display(), low.display());
            let [upper, work] = ["upper", "work"].map(|name| {
                fs::create_dir(dir.join(name)).unwrap();
                format!("{name}dir={}/{name}", dir.display())
            });
            let maps = ["uidmap=0:1000:10", "gidmap=0:2000:10"];
            let options = [&lower, &upper, &work, maps[0], maps[1]];
            let overlay = a_mount("overlay", "overlay", "", &options);
            mount_there(vec![overlay], &rootfs).await.unwrap();
            for name in ["f1", "f2"] {
                let file = fs::metadata(rootfs.join(name)).unwrap();
                assert_eq!((file.uid(), file.gid()), (1000, 2000));
            }
            fs::write(rootfs.join("new"), "").unwrap();
            assert_eq!(mounts_below(&dir), [rootfs.as_path()]);
            assert_eq!(fs::read_dir(&dir).unwrap().count(), 5, "no scratch files");
        });
    }

    #[test]
    fn loop_device_is_freed_with_its_mount() {
        privately(async |dir| {
            let (image, rootfs) = (dir.join("image"), dir.join("rootfs"));
            fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
            let mkfs = std::process::Command::new("mkfs.ext4")
                .arg("-q")
                .arg(&image)
                .stdout(std::process::Stdio::piped())
                .spawn();
            let Ok(mut mkfs) = mkfs else {
                eprintln!("SKIPPED: no mkfs.ext4");
                return;
            };
            // Its end is that of its output: the status may be another test's to reap.
            std::io::copy(&mut mkfs.stdout.take().unwrap(), &mut std::io::sink()).unwrap();
            #[allow(clippy::disallowed_methods)]
            let _ = mkfs.wait();

            let ext4 = a_mount("ext4", &image, "", &["loop", "ro"]);
            mount_there(vec![ext4], &rootfs).await.unwrap();
            assert!(rootfs.join("lost+found").is_dir());
            let attached = || {
                let devices = fs::read_dir("/sys/block").unwrap().flatten();
                let files = devices.map(|d| fs::read_to_string(d.path().join("loop/backing_file")));
                let image = image.display().to_string();
                files.flatten().any(|file| file.trim_end() == image)
            };
            assert!(attached());
            unmount_all(&rootfs).await.unwrap();
            assert!(!attached());
        });
    }

    #[test]
    fn unmount_includes_covered_mounts() {
        privately(async |dir| {
            let rootfs = dir.join("rootfs");
            let tmpfs = |target| a_mount("tmpfs", "tmpfs", target, &[]);
            mount_there(vec![tmpfs("")], &rootfs).await.unwrap();
            fs::create_dir(rootfs.join("below")).unwrap();
            let covering = vec![tmpfs("below"), tmpfs("")];
            mount_there(covering, &rootfs).await.unwrap();
            assert!(mounts_below(&dir).len() == 3 && !rootfs.join("below").exists());
            unmount_all(&rootfs).await.unwrap();
            assert!(mounts_below(&dir).is_empty());
        });
    }

    #[test]
    fn unmount_includes_nested_and_stacked_mounts_with_special_names() {
        privately(async |dir| {
            let rootfs = dir.join("rootfs");
            let tmpfs = |target| a_mount("tmpfs", "tmpfs", target, &[]);
            mount_there(vec![tmpfs("")], &rootfs).await.unwrap();
            fs::create_dir(rootfs.join(r"a b\040")).unwrap();
            mount_there(vec![tmpfs(r"a b\040"), tmpfs(r"a b\040")], &rootfs)
                .await
                .unwrap();
            assert_eq!(mounts_below(&dir).len(), 3);
            fs::create_dir(dir.join("rootfs2")).unwrap();
            mount_there(vec![tmpfs("")], &dir.join("rootfs2"))
                .await
                .unwrap();
            unmount_all(&rootfs).await.unwrap();
            assert_eq!(mounts_below(&dir), [dir.join("rootfs2")]);

            unmount_all(&rootfs).await.unwrap();
            unmount_all(&dir.join("missing/rootfs")).await.unwrap();
        });
    }

    #[test]
    fn busy_mount_is_an_error_that_names_it() {
        privately(async |dir| {
            let rootfs = dir.join("rootfs");
            mount_there(vec![a_mount("tmpfs", "tmpfs", "", &[])], &rootfs)
                .await
                .unwrap();
            let user = fs::File::create(rootfs.join("open")).unwrap();
            let error = unmount_all(&rootfs).await.unwrap_err().to_string();
            assert!(
                error.starts_with("unmount /") && error.contains("/rootfs: EBUSY"),
                "{error}"
            );
            drop(user);
            unmount_all(&rootfs).await.unwrap();
        });
    }

    #[test]
    fn unmount_without_mounts_or_rootfs_succeeds() {
        privately(async |dir| {
            mount_there(vec![], &dir.join("missing")).await.unwrap();
        });
    }
}
