//! One process of a container, init or exec: who it is, its stdio, how it ended,
//! and who waits for that. It decides nothing and tells nobody; its container does.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, sleep};

use super::state::State;
use crate::error::{Error, Result};
use crate::reaper::{Child, Exit};
use crate::stdio::{Stdio, Streams};

/// How long a signal is held back until a process that was started runs its program, and
/// the time between two looks.
const PROGRAM_TIMEOUT: Duration = Duration::from_millis(200);
const PROGRAM_POLL: Duration = Duration::from_millis(1);

/// An init or exec process.
pub struct Process {
    /// The container's id for an init, else the exec's.
    pub id: String,
    /// Its stdio as the request named it.
    pub stdio: Stdio,
    state: Cell<State>,
    child: RefCell<Option<Child>>,
    streams: RefCell<Option<Rc<Streams>>>,
    /// A client may close stdin before there is one.
    stdin_closed: Cell<bool>,
    started_at: Cell<Option<SystemTime>>,
    exit: Cell<Option<Exit>>,
    /// What it ran when it was made.
    program_at_first: RefCell<Option<PathBuf>>,
    /// It runs its program, or never will be seen to.
    runs_for_sure: Cell<bool>,
    /// It ended, or did not start: nobody need wait any more.
    over: Cell<bool>,
    ended: Notify,
    /// Held across a lifecycle call: one at a time for each process.
    turn: Mutex<()>,
}

impl Process {
    /// A process that is still to be made.
    pub fn new(id: String, stdio: Stdio) -> Process {
        Process {
            id,
            stdio,
            state: Cell::new(State::Created),
            child: RefCell::default(),
            streams: RefCell::default(),
            stdin_closed: Cell::default(),
            started_at: Cell::default(),
            exit: Cell::default(),
            program_at_first: RefCell::default(),
            runs_for_sure: Cell::default(),
            over: Cell::default(),
            ended: Notify::new(),
            turn: Mutex::new(()),
        }
    }

    /// Waits for this call's turn: lifecycle calls of one process queue.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Its state.
    pub fn state(&self) -> State {
        self.state.get()
    }

    /// Sets the state that [`super::state`] answered.
    pub fn set_state(&self, state: State) {
        self.state.set(state);
    }

    /// It has a process now. `made_by`: the program of the OCI runtime that the process runs
    /// before its own; `None`: the one that it runs now.
    pub fn began(&self, child: Child, streams: Streams, made_by: Option<PathBuf>) {
        let at_first = made_by.or_else(|| program(child.pid as u32));
        self.program_at_first.replace(at_first);
        self.child.replace(Some(child));
        // An earlier start may have failed.
        self.over.set(false);
        self.streams.replace(Some(Rc::new(streams)));
        self.end_stdin();
    }

    /// Its pid; 0 before it has one.
    pub fn pid(&self) -> u32 {
        self.child
            .borrow()
            .as_ref()
            .map_or(0, |child| child.pid as u32)
    }

    /// Whether it is the process that has this pid now; once it is reaped, another may.
    pub fn is(&self, pid: u32) -> bool {
        self.pid() == pid && self.signal(0).is_ok()
    }

    /// Sends `signal` to it, and to no other.
    pub fn signal(&self, signal: u32) -> Result<()> {
        let child = self.child.borrow();
        let child = child.as_ref().ok_or_else(finished)?;
        child.signal(signal as i32).map_err(|cause| {
            if cause.raw_os_error() == Some(Errno::ESRCH as i32) {
                return finished();
            }
            Error::unknown(format!(
                "unknown error after kill: signal {signal}: {cause}"
            ))
        })
    }

    /// What it ran when it was made, a part of the OCI runtime.
    pub fn program_at_first(&self) -> Option<PathBuf> {
        self.program_at_first.borrow().clone()
    }

    /// Whether it runs the program that it was made for: before, it is a part of the OCI
    /// runtime.
    pub fn runs_its_program(&self) -> bool {
        let now = program(self.pid());
        now.is_some() && now != *self.program_at_first.borrow()
    }

    /// Waits until it runs its program: a signal before that hits a part of the OCI runtime,
    /// and is lost. Not for long, as its program may be the OCI runtime itself.
    pub async fn wait_for_its_program(&self) {
        let deadline = Instant::now() + PROGRAM_TIMEOUT;
        while !self.runs_for_sure.get() {
            let over = Instant::now() >= deadline || program(self.pid()).is_none();
            self.runs_for_sure.set(over || self.runs_its_program());
            if !self.runs_for_sure.get() {
                // Nothing announces an execve(2).
                sleep(PROGRAM_POLL).await;
            }
        }
    }

    /// Its stdio while it has any.
    pub fn streams(&self) -> Option<Rc<Streams>> {
        self.streams.borrow().clone()
    }

    /// Opens its stdin, if it is not open: it is about to run.
    pub fn open_stdin(&self) -> Result<()> {
        if let Some(streams) = self.streams() {
            streams.open_stdin()?;
        }
        self.end_stdin();
        Ok(())
    }

    /// Lets its stdin end with what the client wrote; idempotent, at any time.
    pub fn close_stdin(&self) {
        self.stdin_closed.set(true);
        self.end_stdin();
    }

    fn end_stdin(&self) {
        if let (true, Some(streams)) = (self.stdin_closed.get(), self.streams()) {
            streams.close_stdin();
        }
    }

    /// Gives up its stdio: every descriptor of it is closed.
    pub fn close_streams(&self) {
        self.streams.take();
    }

    /// It runs its program now, by request.
    pub fn started(&self) {
        self.started_at.set(Some(SystemTime::now()));
    }

    /// The time from its start to its exit; 0 if it had no start.
    pub fn lifetime(&self) -> Duration {
        let (started, exit) = (self.started_at.get(), self.exit());
        let lifetime = started
            .zip(exit)
            .map(|(at, exit)| exit.at.duration_since(at));
        // It may have exited before its start was done.
        lifetime
            .and_then(|lifetime| lifetime.ok())
            .unwrap_or_default()
    }

    /// How it ended, if it did.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.get()
    }

    /// It has ended, which is not told yet: waits until its client has read its output,
    /// as long as that reads.
    pub async fn output_consumed(&self) {
        if let Some(streams) = self.streams() {
            streams.process_exited();
            streams.consumed().await;
        }
    }

    /// It ended: its waiters go on.
    pub fn exited(&self, exit: Exit) {
        self.exit.set(Some(exit));
        self.give_up();
    }

    /// It does not run, and will not unless it is started again: its waiters go on.
    pub fn give_up(&self) {
        self.over.set(true);
        self.ended.notify_waiters();
    }

    /// Waits until it ended or will never run. Answers its exit, if it has one.
    pub async fn wait(&self) -> Option<Exit> {
        while !self.over.get() {
            self.ended.notified().await;
        }
        self.exit()
    }
}

/// The program that process `pid` runs, as the kernel shows it: no file system is asked.
fn program(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}

fn finished() -> Error {
    Error::not_found("process already finished")
}
