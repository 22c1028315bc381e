//! Recursive unmount.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::error::{Context, Result};
use crate::sys::mount::each_mount;

/// The pause before busy mounts are tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Unmounts everything at and below `rootfs`, the latest mount first, since it may
/// cover all others. Nothing there, or no `rootfs` at all, is no error. Busy mounts are
/// given up at `deadline`; the kernel may block longer where a file system is dead.
pub fn unmount_below(rootfs: &Path, deadline: Instant) -> Result<()> {
    let Some(rootfs) = canonical(rootfs).context(|| format!("resolve {}", rootfs.display()))?
    else {
        return Ok(());
    };
    loop {
        let points = points_below(&rootfs).context(|| "read mountinfo")?;
        let pass = unmount_each(&points);
        match pass.failure {
            Some((Errno::EBUSY, _)) if Instant::now() + BUSY_PAUSE < deadline => {
                // The kernel has no event for the end of a mount's use.
                #[allow(clippy::disallowed_methods)]
                std::thread::sleep(BUSY_PAUSE);
            }
            Some((cause, point)) => {
                return Err(cause).context(|| format!("unmount {}", point.display()));
            }
            None if pass.unmounted == points.len() => return Ok(()),
            // An unmount may uncover other mounts.
            None if pass.unmounted > 0 => {}
            None => return Ok(()),
        }
    }
}

/// Detaches everything at and below `rootfs`: it is not found there any more, and is unmounted
/// when its last user is gone. Calls no file system, and so does not block.
pub fn detach_below(rootfs: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (rootfs.parent(), rootfs.file_name()) else {
        return Ok(());
    };
    let parent = parent.canonicalize();
    let rootfs = parent
        .context(|| format!("resolve {}", rootfs.display()))?
        .join(name);
    let points = points_below(&rootfs).context(|| "read mountinfo")?;
    for point in points.iter().rev() {
        let flags = MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH;
        match umount2(point.as_path(), flags) {
            // It was detached with another one.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            failed => failed.context(|| format!("detach {}", point.display()))?,
        }
    }
    Ok(())
}

/// The outcome of one attempt at some mounts.
struct Pass<'a> {
    unmounted: usize,
    /// The first failure, which is the cause of those of the mounts beneath.
    failure: Option<(Errno, &'a Path)>,
}

/// Tries each of `points`, which are in mounting order, once.
fn unmount_each(points: &[PathBuf]) -> Pass<'_> {
    let mut pass = Pass {
        unmounted: 0,
        failure: None,
    };
    for point in points.iter().rev() {
        match umount2(point.as_path(), MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => pass.unmounted += 1,
            // It is not a mount point any more, or was removed with its directory.
            Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(cause) => {
                pass.failure.get_or_insert((cause, point));
            }
        }
    }
    pass
}

/// The path as the kernel lists it. `None` when it does not exist.
fn canonical(rootfs: &Path) -> io::Result<Option<PathBuf>> {
    let resolved = match (rootfs.canonicalize(), rootfs.parent(), rootfs.file_name()) {
        (Ok(path), ..) => Ok(path),
        (Err(error), ..) if error.kind() == io::ErrorKind::NotFound => Err(error),
        // The file system mounted there may be dead; its mount point is not.
        (Err(_), Some(parent), Some(name)) => parent.canonicalize().map(|p| p.join(name)),
        (Err(error), ..) => Err(error),
    };
    match resolved {
        Ok(path) => Ok(Some(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// In mounting order; a point is listed once for each mount on it.
fn points_below(rootfs: &Path) -> io::Result<Vec<PathBuf>> {
    let mut points = Vec::new();
    each_mount(Path::new("/proc/thread-self/mountinfo"), |mount| {
        let point = mount.point();
        if point.starts_with(rootfs) {
            points.push(point);
        }
    })?;
    Ok(points)
}
