//! Recursive unmount.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::error::{Context, Result};
use crate::sys::mount::each_mount;

/// How often, per call, a busy mount is tried again, and after which pause.
const RETRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(50);

/// Unmounts everything at and below `rootfs`, deepest first, whatever is stacked.
/// Nothing there, or no `rootfs` at all, is no error. Blocks, but not for ever:
/// busy mounts are given up after 2.5 s in all.
pub fn unmount_below(rootfs: &Path) -> Result<()> {
    let Some(rootfs) = canonical(rootfs).context(|| format!("resolve {}", rootfs.display()))?
    else {
        return Ok(());
    };
    let points = points_below(&rootfs).context(|| "read mountinfo")?;
    let mut retries = RETRIES;
    let mut outcome = Ok(());
    // In reverse order of names, whatever is below a directory comes before it.
    for point in points.iter().rev() {
        let unmounted =
            unmount(point, &mut retries).context(|| format!("unmount {}", point.display()));
        // The first failure is the cause of those of the mounts above it.
        outcome = outcome.and(unmounted);
    }
    outcome
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

fn points_below(rootfs: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut points = BTreeSet::new();
    each_mount(Path::new("/proc/thread-self/mountinfo"), |mount| {
        let point = mount.point();
        if point.starts_with(rootfs) {
            points.insert(point);
        }
    })?;
    Ok(points)
}

/// Unmounts `point` until nothing is mounted on it.
fn unmount(point: &Path, retries: &mut usize) -> nix::Result<()> {
    loop {
        match umount2(point, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // It is no mount point (any more), or went away with its directory.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) if *retries > 0 => {
                *retries -= 1;
                // The kernel tells nobody when a mount is busy no more.
                #[allow(clippy::disallowed_methods)]
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}
