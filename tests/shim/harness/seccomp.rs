//! Kernels and sandboxes that lack system calls: a seccomp filter around the shim, which
//! its server and the OCI runtime inherit.

// `libc` is the only way to a seccomp filter, and `pre_exec` to have it in a child alone.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// System calls that fail.
#[derive(Debug, Clone, Copy)]
pub struct Denied {
    calls: Calls,
    /// How they fail.
    errno: i32,
}

#[derive(Debug, Clone, Copy)]
enum Calls {
    /// This one.
    One(i64),
    /// An `ioctl` with this request.
    Ioctl(u32),
    /// This one, and those that Linux got later.
    From(i64),
}

impl Denied {
    /// System call `libc::SYS_…`.
    pub fn call(call: i64, errno: i32) -> Denied {
        let calls = Calls::One(call);
        Denied { calls, errno }
    }

    /// An `ioctl`, by its request.
    pub fn ioctl(request: u32, errno: i32) -> Denied {
        let calls = Calls::Ioctl(request);
        Denied { calls, errno }
    }

    /// All that came after Linux 4.18: since 5.1 a new call has a higher number than all
    /// before.
    pub fn newer_than_4_18(errno: i32) -> Denied {
        let calls = Calls::From(libc::SYS_pidfd_send_signal);
        Denied { calls, errno }
    }
}

/// Offsets in `struct seccomp_data`; of the second argument, its lower half.
const NUMBER: u32 = 0;
const SECOND_ARGUMENT: u32 = 16 + 8;

/// Has the command's process, and all that it starts, do without these.
pub fn deny(command: &mut Command, denied: &[Denied]) {
    // CRIU does without seccomp filters, even if they allow everything.
    if denied.is_empty() {
        return;
    }
    let program = filter(denied);
    // SAFETY: the closure runs between fork and exec, allocates nothing, and makes
    // async-signal-safe calls; the program that it points to is its own.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog {
                len: program.len() as u16,
                filter: program.as_ptr().cast_mut(),
            };
            match libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            ) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
}

fn filter(denied: &[Denied]) -> Vec<libc::sock_filter> {
    let step = |code: u32, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let load = |at| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, at);
    // Each goes on if it holds, else leaves out the next `skip` steps.
    let is = |value, skip| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, skip, value);
    let at_least = |value, skip| step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, skip, value);
    let end = |verdict| step(libc::BPF_RET | libc::BPF_K, 0, verdict);
    let mut program = Vec::new();
    for denied in denied {
        program.push(load(NUMBER));
        match denied.calls {
            Calls::One(call) => program.push(is(call as u32, 1)),
            Calls::From(call) => program.push(at_least(call as u32, 1)),
            Calls::Ioctl(request) => program.extend([
                is(libc::SYS_ioctl as u32, 3),
                load(SECOND_ARGUMENT),
                is(request, 1),
            ]),
        }
        program.push(end(libc::SECCOMP_RET_ERRNO | denied.errno as u32));
    }
    program.push(end(libc::SECCOMP_RET_ALLOW));
    program
}
