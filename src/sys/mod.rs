//! The only `unsafe` code: system calls that neither `std` nor `nix` wraps as we
//! need them. Functions return `io::Result` and owned descriptors.
#![allow(unsafe_code)]

pub mod calls;
pub mod fd;
pub mod memory;
pub mod mount;
pub mod process;
pub mod signals;
pub mod tty;

/// What a system call answered, or, for -1, the error that it left in `errno`.
fn check<T: nix::errno::ErrnoSentinel + PartialEq>(answer: T) -> std::io::Result<T> {
    Ok(nix::errno::Errno::result(answer)?)
}
