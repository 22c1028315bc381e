//! Processes: descriptors for them, and what a child must do before it execs.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::check;

/// The time since boot, suspended time included, as `/proc/PID/stat` counts it.
pub fn since_boot() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is ours to write. Every kernel has this clock, so it cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A descriptor for process `pid` (`pidfd_open(2)`): it never means another process, even if
/// the pid is reused.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and returns a new descriptor or -1.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends `signal` to the process behind `pidfd` (`pidfd_send_signal(2)`).
/// `ESRCH` when it has been reaped.
pub fn pidfd_send_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo means "as kill(2) would"; the descriptor is open.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(rc)?;
    Ok(())
}

/// Sends `signal`, whatever its number, to process `pid`, or to process group `-pid`
/// (`kill(2)`). The caller vouches that no other process can have the pid: the process, or
/// the group's leader, is a child of this one and has not been reaped.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: the call takes two integers.
    check(unsafe { libc::kill(pid, signal) })?;
    Ok(())
}

/// Forks a child that executes `command`, and does not wait for its execve(2): that of a
/// program on a dead file system never returns. Answers the child's pid, and whether its
/// execve(2) succeeds. All three of its stdio must be set.
pub fn fork_exec(mut command: Command) -> io::Result<(i32, ExecResult)> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: the child goes on here with its own copy of memory, and only to its exec.
    // `Command::exec` may allocate, and both C libraries that we are built with keep
    // their allocator usable in a forked child.
    let pid = check(unsafe { libc::fork() })?;
    if pid > 0 {
        return Ok((pid, ExecResult(reader)));
    }
    let errno = command.exec().raw_os_error().unwrap_or(libc::EINVAL);
    // A pipe takes four bytes whole. If it does not, the exit code says enough.
    let _ = nix::unistd::write(&writer, &errno.to_ne_bytes());
    // SAFETY: the call ends this child at once, and takes an integer.
    unsafe { libc::_exit(127) }
}

/// As [`fork_exec`]; the child is process 1 of a new pid namespace. Call it on the main thread.
pub fn fork_exec_in_new_pids(command: Command) -> io::Result<(i32, ExecResult)> {
    use nix::sched::{CloneFlags, setns, unshare};
    let pids = CloneFlags::CLONE_NEWPID;
    let own = std::fs::File::open("/proc/self/ns/pid")?;
    unshare(pids)?;
    let child = fork_exec(command);
    // Our own namespace can always be entered: what we start later is in it again.
    setns(own, pids).expect("enter the own pid namespace");
    child
}

/// Has the command's process join `namespaces`.
pub fn join_namespaces(command: &mut Command, namespaces: Vec<OwnedFd>) {
    // SAFETY: the closure runs between fork and exec, allocates nothing and makes only
    // async-signal-safe system calls on descriptors that it owns.
    unsafe {
        command.pre_exec(move || {
            for namespace in &namespaces {
                check(libc::setns(namespace.as_raw_fd(), 0))?;
            }
            Ok(())
        });
    }
}

/// Gives up, for good, what root may do beside being user 0: all capabilities, and to get any
/// by executing a program. Nobody without `CAP_SYS_PTRACE` may look into this process any more.
pub fn give_up_privileges() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    const LAST_CAPABILITY: libc::c_ulong = 63;
    nix::sys::prctl::set_dumpable(false)?;
    nix::sys::prctl::set_no_new_privs()?;
    for capability in 0..=LAST_CAPABILITY {
        // SAFETY: all arguments are integers.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match check(dropped) {
            // The kernel has no more.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            dropped => dropped?,
        };
    }
    let header = [VERSION_3, 0];
    let nothing = [0u32; 6];
    // SAFETY: the kernel reads two numbers of the header, and six of the sets.
    check(unsafe { libc::syscall(libc::SYS_capset, &header, &nothing) })?;
    Ok(())
}

/// Whether the execve(2) of a child of [`fork_exec`] succeeds: the read end of a pipe whose
/// write end execve(2) closes, and into which a failure is written.
#[derive(Debug)]
pub struct ExecResult(OwnedFd);

impl ExecResult {
    /// The failure, if there was one. Blocks until the child has executed its program or
    /// has failed to.
    pub fn wait_blocking(&self) -> io::Result<()> {
        let mut errno = [0; 4];
        match nix::unistd::read(&self.0, &mut errno)? {
            4 => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
            _ => Ok(()),
        }
    }

    /// The same for a child that has exited: does not block.
    pub fn of_ended(&self) -> io::Result<()> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::ZERO)? {
            0 => Ok(()),
            _ => self.wait_blocking(),
        }
    }

    /// Waits, without blocking the thread, until the child has executed its program or
    /// has failed to, which is an error.
    pub async fn wait(self) -> io::Result<()> {
        let watched = super::fd::watch(self.0, tokio::io::Interest::READABLE);
        let watched = watched.map_err(|(_, error)| error)?;
        // The guard is of no use: the first event is the only one.
        let _ = watched.readable().await?;
        Self(watched.into_inner()).wait_blocking()
    }
}

/// Creates a core-scheduling cookie for the caller's process group
/// (`prctl(PR_SCHED_CORE)`); children inherit it.
pub fn create_sched_core() -> io::Result<()> {
    const PIDTYPE_PGID: libc::c_ulong = 2;
    // SAFETY: all arguments are integers; the last, an address to store a cookie
    // to, must be null for CREATE.
    let rc = unsafe {
        libc::prctl(
            libc::PR_SCHED_CORE,
            libc::PR_SCHED_CORE_CREATE as libc::c_ulong,
            0 as libc::c_ulong,
            PIDTYPE_PGID,
            0 as libc::c_ulong,
        )
    };
    check(rc)?;
    Ok(())
}

/// Signals whose default action [`outlive_signals`] leaves alone: it does no harm (CHLD,
/// CONT, URG, WINCH), it is how the process is asked to end (TERM, INT), it reports a
/// fault of the program itself (ILL, ABRT, BUS, FPE, SEGV, SYS), it cannot be changed, or
/// Rust's runtime ignores it already, and `Command` does not pass that on (PIPE).
const UNTOUCHED_SIGNALS: [i32; 15] = [
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGURG,
    libc::SIGWINCH,
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGILL,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGPIPE,
];

/// The highest signal number of Linux.
const LAST_SIGNAL: i32 = 64;

extern "C" fn do_nothing(_: libc::c_int) {}

/// What the kernel takes for a `sigaction`: without the C library's reservations, but the
/// handler needs the library's code to return.
#[repr(C)]
#[derive(Default)]
struct KernelSigaction {
    handler: usize,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

impl KernelSigaction {
    /// The action of `signal`; the default one if there is no such signal.
    fn of(signal: i32) -> Self {
        let mut action = Self::default();
        let size = size_of_val(&action.mask);
        // SAFETY: the kernel stores one action of this layout, or fails.
        unsafe {
            let none = std::ptr::null::<Self>();
            libc::syscall(libc::SYS_rt_sigaction, signal, none, &mut action, size);
        }
        action
    }

    /// Makes it the action of `signal`.
    ///
    /// # Safety
    /// It is the default action, or one that the C library has made.
    unsafe fn install(&self, signal: i32) -> io::Result<()> {
        let size = size_of_val(&self.mask);
        // SAFETY: the kernel reads one action of this layout; the caller vouches for it.
        let rc = unsafe {
            let none = std::ptr::null_mut::<Self>();
            libc::syscall(libc::SYS_rt_sigaction, signal, self, none, size)
        };
        check(rc)?;
        Ok(())
    }
}

/// From now on only TERM, INT, KILL, STOP and the signals that report a fault of the program
/// end or stop this process. They are caught, not ignored, so that
/// programs run by this process have the default action; they have it, too, for what this
/// process's parent ignored. Call it before a signal is listened for.
pub fn outlive_signals() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is valid; its handler does nothing, and so may
    // interrupt anything.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = do_nothing as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        check(libc::sigaction(
            libc::SIGUSR1,
            &action,
            std::ptr::null_mut(),
        ))?;
    }
    // The C library would refuse it for the few signals that it keeps for itself, and
    // needs for nothing that is done here.
    let caught = KernelSigaction::of(libc::SIGUSR1);
    for signal in 1..=LAST_SIGNAL {
        if !UNTOUCHED_SIGNALS.contains(&signal) {
            // SAFETY: the C library has made it.
            unsafe { caught.install(signal)? };
        } else if KernelSigaction::of(signal).handler == libc::SIG_IGN && signal != libc::SIGPIPE {
            // SAFETY: it is the default action.
            unsafe { KernelSigaction::default().install(signal)? };
        }
    }
    Ok(())
}

/// The soft limit of descriptors before [`raise_descriptor_limit`]; 0: it was not raised.
static OLD_DESCRIPTOR_LIMIT: AtomicU64 = AtomicU64::new(0);

/// Raises the soft limit of descriptors (`RLIMIT_NOFILE`) to the hard one.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        OLD_DESCRIPTOR_LIMIT.store(soft, Ordering::Relaxed);
    }
    Ok(())
}

/// Gives the command's process the soft limit that this one had before
/// [`raise_descriptor_limit`]. Call it after [`pass_fds`], which may need more.
pub fn restore_descriptor_limit(command: &mut Command) {
    let soft = OLD_DESCRIPTOR_LIMIT.load(Ordering::Relaxed);
    if soft == 0 {
        return;
    }
    // SAFETY: the closure runs between fork and exec, allocates nothing and makes two
    // async-signal-safe system calls.
    unsafe {
        command.pre_exec(move || {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            Ok(setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)?)
        });
    }
}

/// Makes the kernel kill the command's process (`SIGKILL`) when the thread that spawned it ends.
pub fn die_with_parent(command: &mut Command) {
    let parent = std::process::id() as i32;
    // SAFETY: the closure runs between fork and exec and makes only
    // async-signal-safe system calls; it touches no memory of the parent.
    unsafe {
        command.pre_exec(move || {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            // It may have ended before: then there is no signal.
            if libc::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// Most descriptors that [`pass_fds`] hands to one child.
pub const MAX_PASSED_FDS: usize = 4;

/// Gives the command's process `fds` as descriptors 3, 4, …, in this order.
/// Everything else of ours is `CLOEXEC` and stays here.
///
/// # Panics
/// When there are more than [`MAX_PASSED_FDS`].
pub fn pass_fds(command: &mut Command, fds: Vec<OwnedFd>) -> io::Result<()> {
    assert!(
        fds.len() <= MAX_PASSED_FDS,
        "{} descriptors to pass",
        fds.len()
    );
    // `spawn` reports a failed exec through a descriptor that it takes at the
    // lowest free number. These copies occupy the targets until then.
    let held = fds
        .iter()
        .map(|fd| super::fd::duplicate_above(fd.as_fd(), 3))
        .collect::<io::Result<Vec<_>>>()?;
    // SAFETY: the closure runs between fork and exec, allocates nothing and makes
    // only async-signal-safe system calls on descriptors that it owns.
    unsafe {
        command.pre_exec(move || {
            let count = held.len();
            let mut moved = [-1; MAX_PASSED_FDS];
            for (slot, fd) in moved.iter_mut().zip(&fds) {
                // A source may have the number of a target: out of the way first.
                let lowest = 3 + count as i32;
                *slot = check(libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest))?;
            }
            for (i, fd) in moved[..count].iter().enumerate() {
                check(libc::dup2(*fd, 3 + i as i32))?;
            }
            Ok(())
        });
    }
    Ok(())
}

/// Reaps one child that has exited, `pid` or, for -1, any. Answers its pid and its exit code, or
/// 128 + the number of the signal that killed it, real-time signals included. `None` when none
/// has exited; `ECHILD` when there is no such child.
pub fn reap(pid: i32) -> io::Result<Option<(i32, u32)>> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for one int; the call stores nothing else.
    let pid = check(unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) })?;
    if pid == 0 {
        return Ok(None);
    }
    let status = match libc::WIFSIGNALED(status) {
        true => 128 + libc::WTERMSIG(status),
        false => libc::WEXITSTATUS(status),
    };
    Ok(Some((pid, status as u32)))
}

/// Whether `pid` is a child of ours that has not been reaped, alive or not.
pub fn is_child(pid: i32) -> bool {
    // SAFETY: an all-zero siginfo_t is valid, and the call fills only that.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, flags) == 0
    }
}

/// The root lane of the unit tests: whether this is root. If not, the test that asks says
/// that it is skipped, and returns; with `NO_SKIP` set, as `make test` does, it fails.
#[cfg(test)]
pub fn root_or_skip() -> bool {
    use std::io::Write;

    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let thread = std::thread::current();
    let line = format!("{}: skipped: needs root\n", thread.name().unwrap_or("test"));
    assert!(std::env::var_os("NO_SKIP").is_none(), "{line}");
    // Not eprint!, whose text libtest keeps to itself unless the test fails.
    io::stderr().write_all(line.as_bytes()).unwrap();
    false
}
