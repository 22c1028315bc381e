//! One mount by system calls. Everything here may block.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{SysconfVar, fchdir, sysconf};

use super::Mount;
use super::options::MountOptions;
use crate::error::{Context, Error, Result};
use crate::sys::mount as sys;

const NOTHING: Option<&str> = None;

/// Where a mount goes: a path below a root that may hold symlinks of the container.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The root file system.
    pub rootfs: &'a Path,
    /// The path in it; empty for the root itself.
    pub path: &'a str,
}

impl Target<'_> {
    /// The path as it was asked for, for messages.
    pub fn display_path(&self) -> PathBuf {
        match self.path.trim_start_matches('/') {
            "" => self.rootfs.to_owned(),
            path => self.rootfs.join(path),
        }
    }

    /// Opens what is there now; symlinks do not lead out of the root.
    pub fn open(&self) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let rootfs = open(self.rootfs, flags, Mode::empty())?;
        if self.path.is_empty() {
            return Ok(rootfs);
        }
        let how = OpenHow::new()
            .flags(flags)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        match openat2(&rootfs, self.path, how) {
            // Linux 5.6 has the call; sandboxes refuse it. EAGAIN: somebody mounted or renamed
            // something, anywhere, while a `..` was followed.
            Err(Errno::ENOSYS | Errno::EPERM | Errno::EAGAIN) => open_in_root(rootfs, self.path),
            opened => opened,
        }
    }

    /// Calls `act` with a path that means the target as it is now.
    fn at<T, E: From<Errno>>(
        &self,
        act: impl FnOnce(&Path) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let target = self.open()?;
        act(&fd_path(&target))
    }
}

/// Opens `path` in `root`, step by step. Each directory on the way is held, so that
/// `..` leads back to where it was entered, and never out of the root.
fn open_in_root(root: OwnedFd, path: &str) -> nix::Result<OwnedFd> {
    /// As many as the kernel follows in one path.
    const MAX_SYMLINKS: usize = 40;
    let steps = |path: &OsStr| -> Vec<OsString> {
        let parts = Path::new(path).components().rev();
        parts.map(|part| part.as_os_str().to_owned()).collect()
    };
    let (mut held, mut left, mut symlinks) = (vec![root], steps(path.as_ref()), 0);
    while let Some(step) = left.pop() {
        match step.as_bytes() {
            b"/" => held.truncate(1),
            b"." => {}
            b".." if held.len() == 1 => {}
            b".." => _ = held.pop(),
            name => {
                let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
                let next = openat(&held[held.len() - 1], name, flags, Mode::empty())?;
                if !is_symlink(&next)? {
                    held.push(next);
                    continue;
                }
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err(Errno::ELOOP);
                }
                left.extend(steps(&readlinkat(&next, "")?));
            }
        }
    }
    held.pop().ok_or(Errno::ENOENT)
}

fn is_symlink(fd: &OwnedFd) -> nix::Result<bool> {
    let kind = SFlag::from_bits_truncate(fstat(fd)?.st_mode) & SFlag::S_IFMT;
    Ok(kind == SFlag::S_IFLNK)
}

/// A path to what `fd` is open on.
pub fn fd_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/thread-self/fd/{}", fd.as_raw_fd()))
}

/// Mounts `wanted` below `rootfs`. The working directory may change while it runs,
/// so the calling thread must not share it with others ([`own_directory`]).
pub fn mount_one(wanted: &Mount, rootfs: &Path) -> Result<()> {
    let target = Target {
        rootfs,
        path: &wanted.target,
    };
    MountOptions::parse(&wanted.options)
        .and_then(|options| mount_with(wanted, options, target))
        .map_err(|error| error.within(wanted.described(rootfs)))
}

/// Gives the calling thread a working directory of its own.
pub fn own_directory() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_FS)
}

fn mount_with(wanted: &Mount, mut options: MountOptions, target: Target<'_>) -> Result<()> {
    let users = match &options.id_maps {
        Some((uids, gids)) => Some(
            sys::user_namespace(uids, gids)
                .context(|| format!("create a user namespace with {uids:?} and {gids:?}"))?,
        ),
        None => None,
    };
    let is_overlay = wanted.kind == "overlay";
    match &users {
        // Overlay's layers are mapped, not overlay itself.
        Some(users) if is_overlay => mount_mapped_overlay(wanted, options.clone(), target, users)?,
        _ => mount_plainly(wanted, &mut options, target)?,
    }
    if !options.propagation.is_empty() {
        target
            .at(|path| mount(NOTHING, path, NOTHING, options.propagation, NOTHING))
            .context(|| "set propagation")?;
    }
    if options
        .flags
        .contains(MsFlags::MS_BIND | MsFlags::MS_RDONLY)
    {
        make_read_only(target, options.flags).context(|| "make read-only")?;
    }
    match users {
        Some(users) if !is_overlay => {
            map_in_place(target, &users).context(|| "apply the ID mapping")
        }
        _ => Ok(()),
    }
}

fn mount_plainly(wanted: &Mount, options: &mut MountOptions, target: Target<'_>) -> Result<()> {
    let mut directory = None;
    if wanted.kind == "overlay" && is_long(options) {
        directory = options.compact_lower_dirs();
    }
    let mut device = None;
    if options.is_loop {
        let asked = sys::LoopOptions {
            read_only: options.flags.contains(MsFlags::MS_RDONLY),
            direct_io: options.take("direct-io"),
        };
        let attached = sys::attach_loop(Path::new(&wanted.source), asked)
            .context(|| format!("attach {} to a loop device", wanted.source))?;
        device = Some(attached);
    }
    let data = joined(options)?;
    let source = match &device {
        Some((_kept, path)) => path.as_path(),
        None => Path::new(&wanted.source),
    };
    let flags = options.flags;
    target
        .at(|path| {
            in_directory(directory.as_deref(), || {
                mount(Some(source), path, kind_of(wanted), flags, data.as_deref())
            })
        })
        .context(|| "mount(2)")
}

fn kind_of(wanted: &Mount) -> Option<&str> {
    Some(wanted.kind.as_str()).filter(|kind| !kind.is_empty())
}

fn page_size() -> usize {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| usize::try_from(size).ok())
        .unwrap_or(4096)
}

/// Whether the data comes near what `mount(2)` takes.
fn is_long(options: &MountOptions) -> bool {
    let size: usize = options.data.iter().map(|option| option.len() + 1).sum();
    size >= page_size() - 512
}

/// The data as one string; the kernel would silently cut what exceeds a page.
fn joined(options: &MountOptions) -> Result<Option<String>> {
    let data = options.data.join(",");
    if data.len() >= page_size() {
        return Err(Error::invalid(format!(
            "mount options are too long ({} bytes)",
            data.len()
        )));
    }
    Ok(Some(data).filter(|data| !data.is_empty()))
}

/// Runs `act` with the working directory `directory`, if one is given.
fn in_directory<T>(
    directory: Option<&Path>,
    act: impl FnOnce() -> nix::Result<T>,
) -> nix::Result<T> {
    let Some(directory) = directory else {
        return act();
    };
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let home = open(".", flags, Mode::empty())?;
    nix::unistd::chdir(directory)?;
    let done = act();
    fchdir(&home)?;
    done
}

/// Remounts the bind mount at `target` read-only, which the first call cannot.
fn make_read_only(target: Target<'_>, flags: MsFlags) -> nix::Result<()> {
    let remount = flags | MsFlags::MS_REMOUNT;
    target.at(
        |path| match mount(NOTHING, path, NOTHING, remount, NOTHING) {
            // In a user namespace, flags that came with the source cannot be dropped.
            Err(Errno::EPERM) => {
                let locked = present_flags(path)?;
                mount(NOTHING, path, NOTHING, remount | locked, NOTHING)
            }
            done => done,
        },
    )
}

/// The flags of the mount at `path` that a user namespace may have locked. Those
/// about access times are not among them: a remount that names none keeps them.
fn present_flags(path: &Path) -> nix::Result<MsFlags> {
    let present = statvfs(path)?.flags();
    let pairs = [
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
    ];
    let held = pairs.iter().filter(|(fs, _)| present.contains(*fs));
    Ok(held.fold(MsFlags::empty(), |all, (_, flag)| all | *flag))
}

/// Covers the mount at `target` with a copy whose owners are mapped: a mount that
/// is attached cannot be changed so.
fn map_in_place(target: Target<'_>, users: &OwnedFd) -> io::Result<()> {
    target.at(|path| {
        let tree = sys::clone_tree(path)?;
        sys::map_ids(tree.as_fd(), users.as_fd(), false)?;
        sys::attach(tree.as_fd(), path)
    })
}

/// Mounts an overlay whose lower directories have their owners mapped.
///
/// Overlay takes paths, so the mapped copies must be mounted somewhere. They are
/// in a mount namespace that only this thread is in, and only until it leaves:
/// they are not visible to others, and do not remain.
fn mount_mapped_overlay(
    wanted: &Mount,
    options: MountOptions,
    target: Target<'_>,
    users: &OwnedFd,
) -> Result<()> {
    let home = File::open("/proc/thread-self/ns/mnt").context(|| "open the mount namespace")?;
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let directory = open(".", flags, Mode::empty()).context(|| "open the working directory")?;
    unshare(CloneFlags::CLONE_NEWNS).context(|| "create a mount namespace")?;
    let overlay = detached_overlay(wanted, options, target.rootfs, users);
    setns(&home, CloneFlags::CLONE_NEWNS).context(|| "leave the mount namespace")?;
    fchdir(&directory).context(|| "return to the working directory")?;
    let overlay = overlay?;
    target
        .at(|path| sys::attach(overlay.as_fd(), path))
        .context(|| "attach")
}

/// Makes that overlay, attached nowhere, in a mount namespace of the caller's own.
fn detached_overlay(
    wanted: &Mount,
    mut options: MountOptions,
    scratch: &Path,
    users: &OwnedFd,
) -> Result<OwnedFd> {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(NOTHING, "/", NOTHING, private, NOTHING).context(|| "make mounts private")?;
    let Some((at, lower_dirs)) = options.lower_dirs() else {
        return Err(Error::invalid("id maps without lowerdir="));
    };
    // Opened before the scratch file system covers anything.
    let mut layers = Vec::with_capacity(lower_dirs.len());
    for dir in lower_dirs {
        let mapped = sys::clone_tree(Path::new(dir)).and_then(|layer| {
            sys::map_ids(layer.as_fd(), users.as_fd(), true)?;
            Ok(layer)
        });
        layers.push(mapped.context(|| format!("apply the ID mapping to {dir}"))?);
    }
    let none = MsFlags::empty();
    mount(Some("tmpfs"), scratch, Some("tmpfs"), none, NOTHING)
        .context(|| "mount a scratch file system")?;
    for (number, layer) in layers.iter().enumerate() {
        let dir = scratch.join(number.to_string());
        std::fs::create_dir(&dir)
            .and_then(|()| sys::attach(layer.as_fd(), &dir))
            .context(|| format!("attach layer {number}"))?;
    }
    let numbers: Vec<String> = (0..layers.len()).map(|n| n.to_string()).collect();
    options.data[at] = format!("lowerdir={}", numbers.join(":"));
    let data = joined(&options)?;
    let merged = scratch.join("merged");
    std::fs::create_dir(&merged).context(|| "make a mount point")?;
    in_directory(Some(scratch), || {
        let source = Some(wanted.source.as_str());
        mount(
            source,
            &merged,
            kind_of(wanted),
            options.flags,
            data.as_deref(),
        )
    })
    .context(|| "mount(2)")?;
    sys::clone_tree(&merged).context(|| "detach")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// Where `path` leads, in a root with links to everywhere.
    fn resolved(path: &str) -> nix::Result<PathBuf> {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().canonicalize().unwrap();
        let root = outside.join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(outside.join("etc")).unwrap();
        fs::create_dir_all(root.join("etc")).unwrap();
        for (link, to) in [
            ("absolute", "/a"),
            ("upwards", "../../etc"),
            ("a/b/relative", "../../a/b"),
            ("loop", "loop"),
        ] {
            symlink(to, root.join(link)).unwrap();
        }
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let opened = open_in_root(open(&root, flags, Mode::empty())?, path)?;
        let found = fs::read_link(fd_path(&opened)).unwrap();
        Ok(Path::new("/").join(found.strip_prefix(&root).expect("in the root")))
    }

    #[test]
    fn open_without_openat2_stays_in_the_root() {
        for (path, expected) in [
            ("a", "/a"),
            ("/a/./b/", "/a/b"),
            ("../../..", "/"),
            ("absolute/b", "/a/b"),
            ("upwards", "/etc"),
            ("a/b/relative/relative/../../etc", "/etc"),
        ] {
            assert_eq!(resolved(path), Ok(expected.into()), "{path}");
        }
        assert_eq!(resolved("loop"), Err(Errno::ELOOP));
        assert_eq!(resolved("a/missing"), Err(Errno::ENOENT));
    }
}
