//! One process of a container, init or exec: who it is, its stdio, how it exited,
//! and who waits for that. It decides nothing and publishes nothing; its container does.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use tokio::sync::{Mutex, MutexGuard, Notify};
use tokio::time::{Instant, sleep};

use super::state::{Op, Refusal, State, step_exec, step_init};
use crate::error::{Error, Result};
use crate::reaper::{Child, Exit, Exited};
use crate::stdio::{Stdio, Streams};

/// How long a signal waits for a process that was started to run its own program.
const PROGRAM_TIMEOUT: Duration = Duration::from_millis(200);

/// The time between two looks at the program that a process runs.
const PROGRAM_POLL: Duration = Duration::from_millis(1);

/// Which of a container's processes a request means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// The init.
    Init,
    /// The exec of this ID.
    Exec(&'a str),
}

impl<'a> Target<'a> {
    /// What a request means by its exec ID.
    pub fn from_exec_id(exec_id: &'a str) -> Self {
        match exec_id {
            "" => Target::Init,
            exec_id => Target::Exec(exec_id),
        }
    }
}

/// What a process is in its container.
pub enum Role {
    /// The first process.
    Init,
    /// Another one, added by request.
    Exec {
        /// What it is to run: an OCI process as JSON.
        spec: Vec<u8>,
    },
}

/// An init or exec process.
pub struct Process {
    /// The container's ID for an init, else the exec's.
    pub id: String,
    /// Init or exec.
    pub role: Role,
    /// Its stdio as the request named it.
    pub stdio: Stdio,
    state: Cell<State>,
    child: RefCell<Option<Child>>,
    /// The future of its exit, until a task watches it.
    exited: RefCell<Option<Exited>>,
    streams: RefCell<Option<Rc<Streams>>>,
    /// A client may close stdin before there is one.
    stdin_closed: Cell<bool>,
    started_at: Cell<Option<SystemTime>>,
    /// How it exited, from the moment when it was reaped.
    exit: Cell<Option<Exit>>,
    /// Its exit is published: clients may know it.
    exit_published: Cell<bool>,
    /// The program that it ran when it was created, a part of the OCI runtime.
    first_program: RefCell<Option<PathBuf>>,
    /// It runs its own program, or was waited for long enough.
    program_awaited: Cell<bool>,
    /// It has exited, or did not start: Wait returns.
    wait_is_over: Cell<bool>,
    waiters: Notify,
    /// Held by the lifecycle call whose turn it is.
    turn: Mutex<()>,
}

impl Process {
    /// A process that is still to be created.
    pub fn new(id: String, role: Role, stdio: Stdio) -> Rc<Process> {
        Rc::new(Process {
            id,
            role,
            stdio,
            state: Cell::new(State::Created),
            child: RefCell::default(),
            exited: RefCell::default(),
            streams: RefCell::default(),
            stdin_closed: Cell::default(),
            started_at: Cell::default(),
            exit: Cell::default(),
            exit_published: Cell::default(),
            first_program: RefCell::default(),
            program_awaited: Cell::default(),
            wait_is_over: Cell::default(),
            waiters: Notify::new(),
            turn: Mutex::new(()),
        })
    }

    /// Whether it is an exec.
    pub fn is_exec(&self) -> bool {
        matches!(self.role, Role::Exec { .. })
    }

    /// Its exec ID; empty for an init.
    pub fn exec_id(&self) -> &str {
        match self.role {
            Role::Init => "",
            Role::Exec { .. } => &self.id,
        }
    }

    /// What an exec is to run; nothing for an init.
    pub fn spec(&self) -> &[u8] {
        match &self.role {
            Role::Init => &[],
            Role::Exec { spec } => spec,
        }
    }

    /// Waits until no other lifecycle call has the process. For [`super::turn`] only.
    pub async fn lock(&self) -> MutexGuard<'_, ()> {
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

    fn state_after(&self, op: Op) -> std::result::Result<State, Refusal> {
        match self.role {
            Role::Init => step_init(self.state(), op),
            Role::Exec { .. } => step_exec(self.state(), op),
        }
    }

    /// An error if its state does not allow `op`.
    pub fn check(&self, op: Op) -> std::result::Result<(), Refusal> {
        self.state_after(op).map(drop)
    }

    /// `op` changes its state, or is refused.
    pub fn step(&self, op: Op) -> std::result::Result<(), Refusal> {
        self.set_state(self.state_after(op)?);
        Ok(())
    }

    /// The OCI runtime has created it. `first_program`: the part of the OCI runtime that the
    /// process runs before its own program; `None`: what it runs now.
    pub fn created(
        &self,
        (child, exited): (Child, Exited),
        streams: Streams,
        first_program: Option<PathBuf>,
    ) {
        let first_program = first_program.or_else(|| program(child.pid as u32));
        self.first_program.replace(first_program);
        self.child.replace(Some(child));
        self.exited.replace(Some(exited));
        // An earlier start may have failed.
        self.wait_is_over.set(false);
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

    /// Whether it has a pid that is its own: it is not reaped yet.
    pub fn is_unreaped(&self) -> bool {
        self.signal(0).is_ok()
    }

    /// The future of its exit, for the task that watches it.
    pub fn take_exited(&self) -> Option<Exited> {
        self.exited.take()
    }

    /// Sends `signal` to it, and to no other.
    pub fn signal(&self, signal: u32) -> Result<()> {
        let child = self.child.borrow();
        let child = child.as_ref().ok_or_else(already_finished)?;
        child.signal(signal as i32).map_err(|cause| {
            if cause.raw_os_error() == Some(Errno::ESRCH as i32) {
                return already_finished();
            }
            Error::unknown(format!(
                "unknown error after kill: signal {signal}: {cause}"
            ))
        })
    }

    /// The program that it ran when it was created, a part of the OCI runtime.
    pub fn first_program(&self) -> Option<PathBuf> {
        self.first_program.borrow().clone()
    }

    /// Whether it runs its own program: before that it is a part of the OCI runtime.
    pub fn runs_its_program(&self) -> bool {
        let now = program(self.pid());
        now.is_some() && now != *self.first_program.borrow()
    }

    /// Waits until it runs its own program: a signal before that goes to a part of the OCI
    /// runtime, and is lost. Waits [`PROGRAM_TIMEOUT`] at most, as its own program may be the
    /// OCI runtime.
    pub async fn wait_for_its_program(&self) {
        let deadline = Instant::now() + PROGRAM_TIMEOUT;
        while !self.program_awaited.get() {
            let is_over = Instant::now() >= deadline || program(self.pid()).is_none();
            self.program_awaited.set(is_over || self.runs_its_program());
            if !self.program_awaited.get() {
                // The kernel has no event for an execve(2).
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

    /// Closes every descriptor of its stdio.
    pub fn close_streams(&self) {
        self.streams.take();
    }

    /// A Start has succeeded.
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

    /// How it exited, once that is published.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.get().filter(|_| self.exit_published.get())
    }

    /// It was reaped; that is to be published.
    pub fn reaped(&self, exit: Exit) {
        self.exit.set(Some(exit));
    }

    /// Its exit is being published: its waiters go on.
    pub fn exit_published(&self) {
        self.exit_published.set(true);
        self.release_waiters();
    }

    /// It has exited, and that is not published yet: waits until its client has read its
    /// output, as long as the client reads.
    pub async fn output_consumed(&self) {
        if let Some(streams) = self.streams() {
            streams.process_exited();
            streams.consumed().await;
        }
    }

    /// It does not run, and will not unless it is started again: its waiters go on.
    pub fn release_waiters(&self) {
        self.wait_is_over.set(true);
        self.waiters.notify_waiters();
    }

    /// Waits until it exited or will never run. Answers its exit, if it has one.
    pub async fn wait(&self) -> Option<Exit> {
        while !self.wait_is_over.get() {
            self.waiters.notified().await;
        }
        self.exit()
    }
}

/// The program that process `pid` runs, as `/proc` names it: its file system is not asked.
fn program(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}

fn already_finished() -> Error {
    Error::not_found("process already finished")
}
