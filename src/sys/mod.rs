//! The only `unsafe` code: system calls that neither `std` nor `nix` wraps as we
//! need them. Functions return `io::Result` and owned descriptors.
#![allow(unsafe_code)]

pub mod fd;
pub mod memory;
pub mod mount;
pub mod process;
pub mod tty;
