//! Pseudo-terminals: size, slave, hang-up.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;

/// Sets the size of the terminal, in characters; its foreground processes get
/// `SIGWINCH` if it changed.
pub fn set_size(tty: BorrowedFd<'_>, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: `tty` is open, and the call only reads the winsize it is given.
    check(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ as _, &size) })?;
    Ok(())
}

/// Whether `fd` is the master of a pty.
pub fn is_master(fd: BorrowedFd<'_>) -> bool {
    let mut number: libc::c_uint = 0;
    // SAFETY: `fd` is open, and the call stores one unsigned int at most.
    unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGPTN as _, &mut number) == 0 }
}

/// Opens the slave of `master`, wherever (and in whichever mount namespace) its
/// devpts is mounted. It does not become anybody's controlling terminal.
pub fn open_slave(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: `master` is open; the call takes an int and returns a new descriptor.
    let fd = check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, flags) })?;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Hangs up the terminal behind `slave`: its session gets `SIGHUP`, its readers an
/// end of file. The kernel may discard what was written and not yet read.
pub fn hang_up(slave: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `slave` is open, and the call takes no argument.
    check(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCVHANGUP as _) })?;
    Ok(())
}

/// The size of the terminal in characters: width, height.
#[cfg(test)]
pub(crate) fn size(tty: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    // SAFETY: an all-zero winsize is valid.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: `tty` is open, and the call stores one winsize.
    check(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCGWINSZ as _, &mut size) })?;
    Ok((size.ws_col, size.ws_row))
}
