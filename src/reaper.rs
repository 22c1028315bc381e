//! The only waiter for children, and the only one to signal them.
//!
//! Promises: every child of this process is reaped (it is a subreaper, so orphans
//! of containers are children too); an exit is timed when it is reaped; an exit
//! that comes before anybody knows whose pid it is, is kept while someone is about
//! to learn a pid ([`Reaper::learning`]).
//!
//! Lacks on purpose: channels that could fill and subscribers that could lag. The
//! ledger is a map that one thread owns.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::process::Command;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::sys::process;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + the number of the signal that killed it.
    pub status: u32,
    /// When it was reaped.
    pub at: SystemTime,
}

/// The ledger of children; clones share it.
#[derive(Clone, Default)]
pub struct Reaper(Rc<Ledger>);

#[derive(Default)]
struct Ledger {
    /// Who waits, by pid.
    waiting: RefCell<HashMap<i32, oneshot::Sender<Exit>>>,
    /// Exits of pids that nobody waited for, kept while `learners > 0`.
    unclaimed: RefCell<HashMap<i32, Exit>>,
    learners: Cell<usize>,
}

/// A child of this process: its identity, and the means to signal it.
#[derive(Debug)]
pub struct Child {
    /// Its pid; after its exit only a number to report.
    pub pid: i32,
    /// `None` when it had been reaped before it was adopted.
    pidfd: Option<OwnedFd>,
}

/// A future of a child's exit.
#[derive(Debug)]
pub struct Exited(oneshot::Receiver<Exit>);

/// While it lives, exits of unknown pids are kept.
pub struct Learning(Rc<Ledger>);

impl Reaper {
    /// An empty ledger. Nothing is reaped before [`Reaper::run`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts listening for `SIGCHLD`: call it before the first spawn and hand the
    /// result to [`Reaper::run`]. Needs a tokio runtime.
    pub fn listen() -> io::Result<Signal> {
        signal(SignalKind::child())
    }

    /// Does `work` while reaping, for a process that has nothing else to do. Orphans
    /// of what it spawns become children of this process.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> io::Result<T> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let children = Self::listen()?;
            tokio::task::spawn_local(self.clone().run(children));
            Ok(work.await)
        })
    }

    /// Reaps, for ever.
    pub async fn run(self, mut sigchld: Signal) {
        loop {
            while let Ok(Some((pid, status))) = process::reap_any() {
                let at = SystemTime::now();
                self.record(pid, Exit { status, at });
            }
            if sigchld.recv().await.is_none() {
                return;
            }
        }
    }

    fn record(&self, pid: i32, exit: Exit) {
        if let Some(waiter) = self.0.waiting.borrow_mut().remove(&pid) {
            // A waiter that went away wants the exit no more.
            let _ = waiter.send(exit);
        } else if self.0.learners.get() > 0 {
            self.0.unclaimed.borrow_mut().insert(pid, exit);
        }
    }

    /// Spawns `command`, which dies (`SIGKILL`) with this thread, and says how it
    /// will end. All three of its stdio must be set.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Child, Exited)> {
        process::die_with_parent(command);
        self.spawn_lasting(command)
    }

    /// As [`Reaper::spawn`], for a child that is to outlive this process.
    pub fn spawn_lasting(&self, command: &mut Command) -> io::Result<(Child, Exited)> {
        let pid = command.spawn()?.id() as i32;
        self.adopt(pid)
    }

    /// Keeps exits of unknown pids from now until the result is dropped: take it
    /// before a spawn whose descendants' pids will be asked for.
    pub fn learning(&self) -> Learning {
        self.0.learners.set(self.0.learners.get() + 1);
        Learning(self.0.clone())
    }

    /// Makes `pid` known: a child, for example one that a runtime left to us, alive
    /// or reaped while somebody was [`learning`](Reaper::learning).
    /// `ECHILD` when it is neither.
    pub fn adopt(&self, pid: i32) -> io::Result<(Child, Exited)> {
        let (sender, exited) = oneshot::channel();
        // A kept exit of the same number is of an older process if a child has it now.
        let pidfd = if process::is_child(pid) {
            self.0.waiting.borrow_mut().insert(pid, sender);
            Some(process::pidfd_open(pid)?)
        } else {
            let kept = self.0.unclaimed.borrow_mut().remove(&pid);
            let exit = kept.ok_or(io::Error::from_raw_os_error(libc::ECHILD))?;
            let _ = sender.send(exit);
            None
        };
        Ok((Child { pid, pidfd }, Exited(exited)))
    }
}

impl Child {
    /// Sends `signal`, whatever its number; never to another process.
    /// `ESRCH` when the child has been reaped.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match &self.pidfd {
            Some(pidfd) => process::pidfd_send_signal(pidfd, signal),
            None => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }
}

impl Future for Exited {
    type Output = Exit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Exit> {
        // The ledger keeps every sender until it has sent, so there is no other end.
        match Pin::new(&mut self.0).poll(cx) {
            Poll::Ready(Ok(exit)) => Poll::Ready(exit),
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Learning {
    fn drop(&mut self) {
        let left = self.0.learners.get() - 1;
        self.0.learners.set(left);
        if left == 0 {
            self.0.unclaimed.take();
        }
    }
}
