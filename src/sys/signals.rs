//! Signals that this process listens for.
//!
//! Promises: a signal that is sent after [`Signals::listen`] is received, once for any number of
//! them before it is looked at. A handler only notes it, and wakes the event loop.
//!
//! Lacks on purpose: tokio's signals, which hold 26 kB for the 64 signals that there may be.

use std::io;
use std::os::fd::{BorrowedFd, IntoRawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::check;

/// Listeners that a process may have at a time. A server has two, the unit tests one for each
/// reaper.
const MAX_LISTENERS: usize = 64;

static LISTENERS: [Listener; MAX_LISTENERS] = [const { Listener::new() }; MAX_LISTENERS];

/// What the handler needs to know of one [`Signals`]. It outlives them, as its descriptor
/// does: a handler may run on another thread meanwhile.
struct Listener {
    /// A bit for each signal that is listened for. 0: nobody has this listener.
    wanted: AtomicU64,
    /// A bit for each signal that came.
    pending: AtomicU64,
    /// An eventfd, or 0 if there is none yet.
    wakeup: AtomicI32,
}

impl Listener {
    const fn new() -> Self {
        Self {
            wanted: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            wakeup: AtomicI32::new(0),
        }
    }

    /// Takes one that nobody has.
    fn take(wanted: u64) -> io::Result<&'static Self> {
        let is_taken = |listener: &&Self| {
            let (free, success) = (0, Ordering::SeqCst);
            let taken = listener
                .wanted
                .compare_exchange(free, wanted, success, success);
            taken.is_ok()
        };
        let taken = LISTENERS.iter().find(is_taken);
        taken.ok_or_else(|| io::Error::other(format!("more than {MAX_LISTENERS} listeners")))
    }

    /// Its descriptor, made on first use and never closed.
    fn descriptor(&self) -> io::Result<BorrowedFd<'static>> {
        if self.wakeup.load(Ordering::SeqCst) == 0 {
            let fd = super::fd::eventfd()?.into_raw_fd();
            self.wakeup.store(fd, Ordering::SeqCst);
        }
        // SAFETY: it is open, and nobody closes it.
        Ok(unsafe { BorrowedFd::borrow_raw(self.wakeup.load(Ordering::SeqCst)) })
    }
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// The handler: async-signal-safe.
extern "C" fn note(signal: libc::c_int) {
    const ONE: [u8; 8] = 1u64.to_ne_bytes();
    let wants = |listener: &&Listener| listener.wanted.load(Ordering::SeqCst) & bit(signal) != 0;
    for listener in LISTENERS.iter().filter(wants) {
        listener.pending.fetch_or(bit(signal), Ordering::SeqCst);
        let fd = listener.wakeup.load(Ordering::SeqCst);
        // SAFETY: both are async-signal-safe; what is interrupted finds its own `errno`.
        // Failure means that the counter is full: then it is readable.
        unsafe {
            let errno = *libc::__errno_location();
            libc::write(fd, ONE.as_ptr().cast(), ONE.len());
            *libc::__errno_location() = errno;
        }
    }
}

/// Some signals, from now on. Their default action does not come back when this is dropped.
pub struct Signals {
    listener: &'static Listener,
    wakeup: AsyncFd<BorrowedFd<'static>>,
}

impl Signals {
    /// Listens for `signals`. Needs a tokio runtime.
    pub fn listen(signals: &[Signal]) -> io::Result<Self> {
        let wanted = signals
            .iter()
            .fold(0, |all, signal| all | bit(*signal as i32));
        let listener = Listener::take(wanted)?;
        // If something fails, the listener is given back.
        let given_back = |error: io::Error| {
            listener.wanted.store(0, Ordering::SeqCst);
            error
        };
        listener.pending.store(0, Ordering::SeqCst);
        let fd = listener.descriptor().map_err(given_back)?;
        // SAFETY: the descriptor is never closed.
        let wakeup = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        let wakeup = wakeup.map_err(|e| given_back(e.into()))?;
        let listening = Self { listener, wakeup };
        signals.iter().try_for_each(|signal| catch(*signal))?;
        Ok(listening)
    }

    /// The next of them. An error when the event loop ends.
    pub async fn recv(&mut self) -> io::Result<Signal> {
        loop {
            let pending = self.listener.pending.load(Ordering::SeqCst);
            if pending != 0 {
                let signal = pending.trailing_zeros() as i32 + 1;
                self.listener
                    .pending
                    .fetch_and(!bit(signal), Ordering::SeqCst);
                return Ok(Signal::try_from(signal)?);
            }
            let mut guard = self.wakeup.readable().await?;
            let mut count = [0; 8];
            // Nothing to read: another signal of the same time has been received.
            let _ = nix::unistd::read(self.wakeup.get_ref(), &mut count);
            guard.clear_ready();
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.listener.wanted.store(0, Ordering::SeqCst);
    }
}

/// Has [`note`] handle `signal`. Programs that this process executes have the default action.
fn catch(signal: Signal) -> io::Result<()> {
    // SAFETY: an all-zero sigaction is valid, and its handler is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = note as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_NOCLDSTOP;
        let none = std::ptr::null_mut();
        check(libc::sigaction(signal as i32, &action, none))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two listeners for the same signal, each with another one.
    #[tokio::test]
    async fn each_listener_receives_its_signals() {
        let mut first = Signals::listen(&[Signal::SIGWINCH, Signal::SIGURG]).unwrap();
        let mut second = Signals::listen(&[Signal::SIGWINCH, Signal::SIGIO]).unwrap();
        for signal in [Signal::SIGURG, Signal::SIGWINCH, Signal::SIGWINCH] {
            nix::sys::signal::raise(signal).unwrap();
        }
        // In the order of their numbers.
        assert_eq!(first.recv().await.unwrap(), Signal::SIGURG);
        assert_eq!(first.recv().await.unwrap(), Signal::SIGWINCH);
        assert_eq!(second.recv().await.unwrap(), Signal::SIGWINCH);
        nix::sys::signal::raise(Signal::SIGIO).unwrap();
        assert_eq!(second.recv().await.unwrap(), Signal::SIGIO);
        assert_eq!(first.listener.pending.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn dropped_listener_is_used_again() {
        for _ in 0..2 * MAX_LISTENERS {
            let mut signals = Signals::listen(&[Signal::SIGPROF]).unwrap();
            nix::sys::signal::raise(Signal::SIGPROF).unwrap();
            assert_eq!(signals.recv().await.unwrap(), Signal::SIGPROF);
        }
    }
}
