//! Which newer system calls the kernel has, and no sandbox refuses.
//!
//! Promises: nothing changes. Each call is made with arguments that it refuses, or on no object.

use nix::errno::Errno;

/// A system call that Linux 4.18, the oldest supported, may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `close_range(2)` with `CLOSE_RANGE_CLOEXEC`.
    CloseRange,
    /// `memfd_create(2)`.
    MemfdCreate,
    /// `openat2(2)`.
    Openat2,
    /// `pidfd_open(2)`.
    PidfdOpen,
    /// `pidfd_send_signal(2)`.
    PidfdSendSignal,
}

/// Whether `call` can be made.
pub fn is_supported(call: Call) -> bool {
    let nothing = std::ptr::null::<u8>();
    // SAFETY: only numbers and null pointers are passed: a range of descriptors that holds
    // none, descriptors that are not open, and no process. No call reads or changes memory.
    let answer = unsafe {
        match call {
            Call::CloseRange => libc::syscall(
                libc::SYS_close_range,
                u32::MAX,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            ),
            Call::MemfdCreate => libc::syscall(libc::SYS_memfd_create, nothing, 0),
            Call::Openat2 => libc::syscall(libc::SYS_openat2, -1, nothing, nothing, 0),
            Call::PidfdOpen => libc::syscall(libc::SYS_pidfd_open, 0, 0),
            Call::PidfdSendSignal => libc::syscall(libc::SYS_pidfd_send_signal, -1, 0, nothing, 0),
        }
    };
    match Errno::result(answer) {
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EACCES) => false,
        // Linux 5.9 and 5.10 have the call without the flag.
        Err(Errno::EINVAL) => call != Call::CloseRange,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_that_works_is_supported() {
        let own = std::process::id() as i32;
        let works = super::super::process::pidfd_open(own).is_ok();
        assert_eq!(is_supported(Call::PidfdOpen), works);
        let name = c"test";
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let works = nix::sys::memfd::memfd_create(name, flags).is_ok();
        assert_eq!(is_supported(Call::MemfdCreate), works);
    }
}
