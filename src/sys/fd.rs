//! Descriptors: what `nix` does not offer, or not with owned descriptors.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::check;

/// A `CLOEXEC` copy of `fd` whose number is at least `lowest`.
pub fn duplicate_above(fd: BorrowedFd<'_>, lowest: i32) -> io::Result<OwnedFd> {
    // SAFETY: `fd` is open; the call returns a new descriptor or -1.
    let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) };
    let copy = check(copy)?;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// A counter in the kernel (`eventfd(2)`), `CLOEXEC` and non-blocking.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    let fd = check(fd)?;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A timer (`timerfd(2)`), `CLOEXEC` and non-blocking, that is not set.
pub fn timer() -> io::Result<OwnedFd> {
    let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
    // SAFETY: the call takes two integers and returns a new descriptor or -1.
    let fd = check(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })?;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a timer readable once, when `delay` has passed, and unreadable until then.
pub fn set_timer(timer: BorrowedFd<'_>, delay: Duration) -> io::Result<()> {
    // SAFETY: all zeros are a valid value: the timer is off.
    let mut at: libc::itimerspec = unsafe { std::mem::zeroed() };
    at.it_value.tv_sec = delay.as_secs() as _;
    at.it_value.tv_nsec = delay.subsec_nanos() as _;
    let old = std::ptr::null_mut();
    // SAFETY: `timer` is open, and `at` outlives the call, which only reads it.
    check(unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &at, old) })?;
    Ok(())
}

/// Sets `CLOEXEC` on every descriptor from `first` on: programs run by this process do not
/// inherit what its parent left open by mistake.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: the call takes three integers and changes flags only.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    match rc {
        0 => Ok(()),
        // Linux 5.9 has the call and 5.11 the flag; sandboxes refuse it.
        _ => close_on_exec_each_from(first),
    }
}

/// The same, one descriptor after the other.
fn close_on_exec_each_from(first: u32) -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let number: Option<u32> = name.to_str().and_then(|name| name.parse().ok());
        // The listing's own descriptor is among them, and has the flag already.
        if let Some(number) = number.filter(|number| *number >= first) {
            // SAFETY: the call changes one flag of a descriptor of this process.
            unsafe { libc::fcntl(number as i32, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Closes every descriptor, those of stdio too. The caller vouches that nothing here uses one any
/// more.
pub fn close_all() -> io::Result<()> {
    // SAFETY: the call takes three integers; see above.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
    if rc == 0 {
        return Ok(());
    }
    // Before Linux 5.9. There may be no /proc to list them.
    for number in 0..limit()?.min(MAX_CLOSED_ONE_BY_ONE) {
        // SAFETY: the call takes an integer; see above.
        unsafe { libc::close(number as i32) };
    }
    Ok(())
}

/// Descriptors that are closed one by one where the kernel cannot close a range.
const MAX_CLOSED_ONE_BY_ONE: u64 = 4096;

/// How many descriptors this process may have (`RLIMIT_NOFILE`, the soft limit).
pub fn limit() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// How many descriptors this process has.
pub fn count_open() -> io::Result<u64> {
    const DIR: &str = "/proc/self/fd";
    // Since Linux 6.2 that is the directory's size; before, it is 0.
    match std::fs::metadata(DIR)?.len() {
        // The descriptor of the directory itself is among them.
        0 => Ok((std::fs::read_dir(DIR)?.count() as u64).saturating_sub(1)),
        count => Ok(count),
    }
}

/// Takes ownership of a descriptor that this process was started with, such as
/// the listening socket at 3. `EBADF` when it is not open.
///
/// Call it once per number: the caller vouches that nothing else here owns it.
pub fn take_inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only reads the flags of a descriptor, open or not.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: it is open, and was before this program could have made it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A file in memory, `CLOEXEC`, that cannot be executed. Where the kernel refuses one: an
/// unnamed file in directory `fallback`, or where temporary files go.
pub fn memory_file(name: &CStr, fallback: &Path) -> io::Result<File> {
    // Linux 6.3 has the flag, and `vm.memfd_noexec=2` demands it.
    let plain = MFdFlags::MFD_CLOEXEC;
    let sealed = MFdFlags::from_bits_retain(plain.bits() | libc::MFD_NOEXEC_SEAL);
    let made = match memfd_create(name, sealed) {
        Err(Errno::EINVAL) => memfd_create(name, plain),
        made => made,
    };
    match made {
        Ok(file) => Ok(file.into()),
        Err(_) => {
            let temporary = std::env::temp_dir();
            let shared_memory = Path::new("/dev/shm");
            unnamed_file(fallback)
                .or_else(|error| unnamed_file(&temporary).map_err(|_| error))
                .or_else(|error| unnamed_file(shared_memory).map_err(|_| error))
        }
    }
}

/// A private file in `directory` that has no name there.
fn unnamed_file(directory: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    match options.custom_flags(libc::O_TMPFILE).open(directory) {
        // Overlay before Linux 6.1 and NFS make none.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            static COUNT: AtomicUsize = AtomicUsize::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = directory.join(format!(".shim.{}.{number}", std::process::id()));
            let file = options.custom_flags(0).create_new(true).open(&name)?;
            std::fs::remove_file(&name)?;
            Ok(file)
        }
        made => made,
    }
}

/// How many bytes can be read from a pipe, FIFO or terminal right now.
pub fn unread(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: `fd` is open, and the call stores one int at most.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD as _, &mut count) })?;
    Ok(count as usize)
}

/// Whether the other end of a unix `socket`, accepted or not, has yet to read some of what was
/// written. Not known: no.
pub fn is_unread_by_peer(socket: BorrowedFd<'_>) -> bool {
    let mut count: libc::c_int = 0;
    // SAFETY: `socket` is open, and the call stores one int at most. It is SIOCOUTQ.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ as _, &mut count) };
    rc == 0 && count > 0
}

/// Receives a message from `socket` and the first descriptor that came with it, if
/// any, `CLOEXEC` from the start; others are closed.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    // How many descriptors the kernel lets a message carry: none is truncated and leaked.
    const SCM_MAX_FD: usize = 253;
    let mut text = [0; 4096];
    let mut text = [IoSliceMut::new(&mut text)];
    let mut space = nix::cmsg_space!([i32; SCM_MAX_FD]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut text, Some(&mut space), flags)?;
    let mut received = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel just made these descriptors for us; nobody else
            // owns them.
            received.extend(
                numbers
                    .into_iter()
                    .map(|n| unsafe { OwnedFd::from_raw_fd(n) }),
            );
        }
    }
    Ok(received.into_iter().next())
}

/// Registers `fd` with the runtime's epoll; on failure gives it back.
///
/// # Errors
/// `EPERM` for what is always ready: regular files, some devices.
pub fn watch(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, (OwnedFd, io::Error)> {
    // SAFETY: an `OwnedFd` means one descriptor, and nobody else can close it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(|e| e.into_parts())
}

/// As [`watch`], until the result is dropped; `fd` stays open as long as others have it.
pub fn watch_shared(fd: Arc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: an `OwnedFd` means one descriptor, and it is open while the result has it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// A handle (`O_PATH`) of what `path` leads to, its file type and its device number, if
/// the kernel can tell without asking a disk or another machine; else an error. Needs
/// Linux 5.12.
pub fn find_cached(path: &Path) -> io::Result<(File, u32, u64)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all-zero values of these two structures are valid.
    let (mut how, mut stat): (libc::open_how, libc::statx) = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_CACHED;
    // SAFETY: `path` ends with NUL, `how` has the size that is given, and both outlive the
    // call, which returns a new descriptor or -1.
    let fd = unsafe {
        let size = size_of::<libc::open_how>();
        libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, path.as_ptr(), &how, size)
    };
    let fd = check(fd)?;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    let handle = unsafe { File::from_raw_fd(fd as i32) };
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    let fd = handle.as_raw_fd();
    // SAFETY: the path is empty, and the call fills `stat` only.
    check(unsafe { libc::statx(fd, c"".as_ptr(), flags, libc::STATX_TYPE, &mut stat) })?;
    let device = libc::makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
    Ok((handle, stat.stx_mode as u32, device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn inherited_descriptors_are_marked_one_by_one() {
        let file = File::open("/dev/null").unwrap();
        let inherited = duplicate_above(file.as_fd(), 1000).unwrap();
        let number = inherited.as_raw_fd();
        // SAFETY: both calls change or read one flag of a descriptor of this test.
        let flags = unsafe {
            libc::fcntl(number, libc::F_SETFD, 0);
            close_on_exec_each_from(number as u32).unwrap();
            libc::fcntl(number, libc::F_GETFD)
        };
        assert_eq!(flags, libc::FD_CLOEXEC);
    }

    #[test]
    fn file_without_memfd_leaves_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = unnamed_file(dir.path()).unwrap();
        std::io::Write::write_all(&mut { &file }, b"text").unwrap();
        assert_eq!(file.metadata().unwrap().len(), 4);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(unnamed_file(Path::new("/no/such/directory")).is_err());
    }
}
