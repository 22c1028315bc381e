//! Mounts: the kernel's list of them, and calls that no crate wraps (detached trees, id
//! mappings, loop devices).
//!
//! Lacks on purpose: which mounts a container gets; that is in `mount`.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::check;

/// One line of a `mountinfo` file; paths are still escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountInfo<'a> {
    root: &'a [u8],
    point: &'a [u8],
    kind: &'a [u8],
    super_options: &'a [u8],
}

impl<'a> MountInfo<'a> {
    /// `None` when `line` is not of this format.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut words = line.trim_ascii_end().split(|b| *b == b' ');
        let (root, point) = (words.nth(3)?, words.next()?);
        // Any number of optional fields, then a hyphen.
        words.find(|word| *word == b"-")?;
        let (kind, _source) = (words.next()?, words.next()?);
        let super_options = words.next().unwrap_or_default();
        Some(Self {
            root,
            point,
            kind,
            super_options,
        })
    }

    /// Which directory of the file system is mounted.
    pub fn root(&self) -> PathBuf {
        unescape(self.root)
    }

    /// Where it is mounted.
    pub fn point(&self) -> PathBuf {
        unescape(self.point)
    }

    /// Whether the file system is of type `kind`.
    pub fn is(&self, kind: &str) -> bool {
        self.kind == kind.as_bytes()
    }

    /// Whether the file system itself has option `name`.
    pub fn has_option(&self, name: &str) -> bool {
        let mut options = self.super_options.split(|b| *b == b',');
        options.any(|option| option == name.as_bytes())
    }
}

/// Calls `each` for every mount that `file`, a `mountinfo`, lists, oldest first.
pub fn each_mount(file: &Path, mut each: impl FnMut(MountInfo<'_>)) -> io::Result<()> {
    let mut lines = BufReader::new(File::open(file)?);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        if let Some(mount) = MountInfo::parse(&line) {
            each(mount);
        }
        line.clear();
    }
    Ok(())
}

/// Undoes the kernel's `\ooo` (space, tab, newline, backslash, `#`).
fn unescape(escaped: &[u8]) -> PathBuf {
    let octal = |digits: &[u8]| {
        digits.iter().try_fold(0u32, |value, digit| match digit {
            b'0'..=b'7' => Some(value * 8 + u32::from(digit - b'0')),
            _ => None,
        })
    };
    let mut plain = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some((&byte, after)) = rest.split_first() {
        let code = match (byte, after.get(..3)) {
            (b'\\', Some(digits)) => octal(digits).and_then(|code| u8::try_from(code).ok()),
            _ => None,
        };
        plain.push(code.unwrap_or(byte));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(OsString::from_vec(plain))
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// A detached copy of the mount at `path`, without those below it
/// (`open_tree(2)`). It goes away with its descriptor unless it is [`attach`]ed.
pub fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC as u32;
    // SAFETY: `path` is a C string that outlives the call, which returns a new
    // descriptor or -1.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })?;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Maps the owners of files in the detached mount `tree` as `user_namespace` does,
/// and makes it read-only if asked (`mount_setattr(2)`, Linux 5.12).
pub fn map_ids(
    tree: BorrowedFd<'_>,
    user_namespace: BorrowedFd<'_>,
    read_only: bool,
) -> io::Result<()> {
    let read_only = if read_only {
        libc::MOUNT_ATTR_RDONLY
    } else {
        0
    };
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | read_only,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.as_raw_fd() as u64,
    };
    // SAFETY: both descriptors are open, the empty path is a C string, and `attr`
    // is of the size that is told; the call only reads it.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &attr as *const libc::mount_attr,
            size_of::<libc::mount_attr>(),
        )
    };
    check(rc).map(drop)
}

/// Mounts the detached `tree` on `target` (`move_mount(2)`).
pub fn attach(tree: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: the descriptor is open and both paths are C strings that outlive
    // the call; it returns 0 or -1.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_SYMLINKS,
        )
    };
    check(rc).map(drop)
}

/// A new user namespace with these maps, in the format of `/proc/PID/uid_map`.
///
/// A namespace begins with a process. The one made here does nothing and ends
/// before this returns. It raises no `SIGCHLD` and no plain `wait` sees it, so
/// `reaper` has nothing to do with it.
pub fn user_namespace(uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    let idle = Idle::in_new_user_namespace()?;
    let file = |name| format!("/proc/{}/{name}", idle.pid);
    std::fs::write(file("uid_map"), uid_map)?;
    std::fs::write(file("gid_map"), gid_map)?;
    Ok(File::open(file("ns/user"))?.into())
}

/// A process of ours that waits to be killed, which dropping it does.
///
/// The kernel kills it when the thread that made it ends: it is made, used and dropped
/// by one thread, and it goes with a server that is killed.
struct Idle {
    pid: i32,
}

impl Idle {
    /// By `clone(2)`: `clone3` needs Linux 5.3, and sandboxes refuse it.
    fn in_new_user_namespace() -> io::Result<Self> {
        // The descriptors are shared, not copied: closing one here closes it. The number
        // of a signal at the end is zero: none.
        let flags = libc::CLONE_NEWUSER | libc::CLONE_FILES;
        // Its signals stay blocked: this process's handlers must not run in it.
        let blocked = BlockedSignals::all()?;
        let parent = std::process::id() as i32;
        // SAFETY: without CLONE_VM and with a null stack this is a fork: the child goes
        // on here with its own copy of memory. It makes async-signal-safe calls only
        // and never returns.
        let pid = unsafe {
            match libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) {
                0 => {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    // It may have died before: then nothing comes any more.
                    while libc::getppid() == parent {
                        libc::pause();
                    }
                    libc::_exit(0)
                }
                rc => check(rc),
            }
        };
        drop(blocked);
        Ok(Self { pid: pid? as i32 })
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // Neither can fail: it is our child, not reaped, and nobody else waits for it.
        let _ = super::process::kill(self.pid, libc::SIGKILL);
        // SAFETY: an all-zero siginfo_t is valid, and the call fills only that.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(
                libc::P_PID,
                self.pid as libc::id_t,
                &mut info,
                libc::WEXITED | libc::__WALL,
            );
        }
    }
}

/// While it lives, the calling thread gets no signals, and no process that it makes.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn all() -> io::Result<Self> {
        // SAFETY: all-zero sets are valid, and the calls write to these alone.
        unsafe {
            let (mut all, mut before) = std::mem::zeroed();
            libc::sigfillset(&mut all);
            match libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before) {
                0 => Ok(Self(before)),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set is the one that the thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

/// How a loop device shows its file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoopOptions {
    /// Nobody can write to the device.
    pub read_only: bool,
    /// The device bypasses the page cache of the file.
    pub direct_io: bool,
}

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// A free loop device that shows `file`, and its path. The device is freed when
/// nothing uses it any more: keep the descriptor until it is mounted.
pub fn attach_loop(file: &Path, options: LoopOptions) -> io::Result<(OwnedFd, PathBuf)> {
    /// Others take free devices, too. More lost races than this are no chance.
    const ATTEMPTS: usize = 100;
    let open = |path: &Path| {
        let mut open = File::options();
        open.read(true).write(!options.read_only).open(path)
    };
    let backing = open(file)?;
    let control = File::options()
        .read(true)
        .write(true)
        .open("/dev/loop-control")?;
    let config = loop_config(&backing, file.as_os_str(), options);
    for _ in 0..ATTEMPTS {
        const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
        // SAFETY: the request takes no argument and returns a number or -1.
        let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open(&path)?;
        match configure_loop(&device, &config) {
            Ok(()) => return Ok((device.into(), path)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

fn configure_loop(device: &File, config: &LoopConfig) -> io::Result<()> {
    const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
    // SAFETY: the request reads one `struct loop_config`.
    let rc = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const *config) };
    match check(rc) {
        // Linux before 5.8.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY)) => {
            configure_loop_by_steps(device, config)
        }
        done => done.map(drop),
    }
}

/// With calls that every kernel has. On failure the device is freed.
fn configure_loop_by_steps(device: &File, config: &LoopConfig) -> io::Result<()> {
    const LOOP_SET_FD: libc::Ioctl = 0x4C00;
    const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
    const LOOP_SET_STATUS64: libc::Ioctl = 0x4C04;
    const LOOP_SET_DIRECT_IO: libc::Ioctl = 0x4C08;
    let device = device.as_raw_fd();
    // SAFETY: the requests take an open descriptor, one `struct loop_info64` that they
    // read, a number, and nothing.
    unsafe {
        check(libc::ioctl(device, LOOP_SET_FD, config.fd as libc::c_ulong))?;
        let mut rc = libc::ioctl(device, LOOP_SET_STATUS64, &raw const config.info);
        if rc == 0 && config.info.flags & LO_FLAGS_DIRECT_IO != 0 {
            rc = libc::ioctl(device, LOOP_SET_DIRECT_IO, 1 as libc::c_ulong);
        }
        check(rc).map(drop).inspect_err(|_| {
            libc::ioctl(device, LOOP_CLR_FD);
        })
    }
}

fn loop_config(backing: &File, name: &OsStr, options: LoopOptions) -> LoopConfig {
    // SAFETY: both structs are integers and arrays of them: all zero is a value.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = backing.as_raw_fd() as u32;
    config.info.flags = LO_FLAGS_AUTOCLEAR;
    if options.read_only {
        config.info.flags |= LO_FLAGS_READ_ONLY;
    }
    if options.direct_io {
        config.info.flags |= LO_FLAGS_DIRECT_IO;
    }
    // For `losetup` to show; the last byte stays zero.
    let shown = config.info.file_name.len() - 1;
    for (to, from) in config.info.file_name[..shown]
        .iter_mut()
        .zip(name.as_bytes())
    {
        *to = *from;
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_with_any_number_of_optional_fields() {
        let line = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n";
        let mount = MountInfo::parse(line).unwrap();
        assert_eq!(mount.root(), Path::new("/mnt1"));
        assert_eq!(mount.point(), Path::new("/mnt2"));
        assert!(mount.is("ext3") && !mount.is("ext"));
        assert!(mount.has_option("errors=continue") && !mount.has_option("noatime"));

        let bare = MountInfo::parse(b"1 0 0:1 / /x rw - tmpfs  rw").unwrap();
        assert!(bare.is("tmpfs") && bare.has_option("rw"));
        assert_eq!(MountInfo::parse(b"1 0 0:1 / /x rw tmpfs none rw"), None);
        assert_eq!(MountInfo::parse(b""), None);
    }

    #[test]
    fn mountinfo_escapes_are_decoded() {
        assert_eq!(unescape(br"/a\040b\011c\134d"), Path::new("/a b\tc\\d"));
        assert_eq!(unescape(br"/a\8\04"), Path::new(r"/a\8\04"));
        assert_eq!(unescape(br"/a\777"), Path::new(r"/a\777"));
    }

    #[test]
    fn user_namespace_has_the_maps_and_leaves_no_process() {
        if !crate::sys::process::root_or_skip() {
            return;
        }
        let namespace = user_namespace("0 1000 10", "0 2000 10").unwrap();
        let mine = std::fs::read_link("/proc/self/ns/user").unwrap();
        let made = std::fs::read_link(format!("/proc/self/fd/{}", namespace.as_raw_fd())).unwrap();
        assert_ne!(mine, made);
        let error = user_namespace("nonsense", "0 0 1").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
