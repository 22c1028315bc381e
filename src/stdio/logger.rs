//! Logging programs, named by `binary://` and `binary-v2://` URIs, which read a
//! container's output themselves.
//!
//! Promises: the program gets containerd's protocol (descriptors 3 and 4 to read
//! stdout and stderr, 5 to say that it is ready) and, as the container gets the other
//! ends, no byte passes through us. Its death stops nothing: then the output is
//! dropped. At the end it gets the chance to end by itself; it does not outlive a server
//! that ends in order. One whose server is killed reads on until its input ends.
//!
//! Lacks on purpose: a restart. A new program could not know what the old one wrote.

use std::cell::Cell;
use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::read;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::copy::{Copy, Drain, End, Undrained, Until, first};
use super::fifo::Looks;
use super::{Label, Owner, Subject, Task, null, pipe, set_nonblocking};
use crate::error::{Context, Error, Kind, Result};
use crate::local;
use crate::reaper::{Child, Exited};
use crate::sys;

/// How long it may take to end after `SIGTERM`, before `SIGKILL`.
const GRACE: Duration = Duration::from_secs(12);
/// Longest pause between checks whether all have ended.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// What a URI says about a logging program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    pub(super) path: PathBuf,
    /// Keys and values of the query, in its order.
    pub(super) arguments: Vec<OsString>,
    /// `binary-v2`: it must say that it is ready, not merely close descriptor 5.
    pub(super) must_say_ready: bool,
}

/// A running logging program. Dropping it ends the program: `SIGTERM`, twelve
/// seconds, `SIGKILL`.
#[derive(Debug)]
pub(super) struct Logger {
    /// Our read ends of its pipes.
    held: Rc<Vec<OwnedFd>>,
    /// Its drop tells the task that watches over the program.
    _end: oneshot::Sender<()>,
}

impl Program {
    /// Starts the program with `ends` to read from and waits, until `deadline`, for it
    /// to be ready. With `hold` our copies of these ends keep the container's writes
    /// from failing should the program die.
    pub(super) async fn start(
        &self,
        ends: [OwnedFd; 2],
        hold: bool,
        owner: &Owner<'_>,
        subject: &Arc<Subject>,
        drain: &Rc<Drain>,
        deadline: Instant,
    ) -> Result<Logger> {
        let operation = || format!("start logger {}", self.path.display());
        let held = match hold {
            true => ends.iter().map(OwnedFd::try_clone).collect(),
            false => Ok(Vec::new()),
        };
        let held = Rc::new(held.context(operation)?);
        let (ready, signal) = pipe().context(operation)?;
        let mut command = self.command(owner);
        let [stdout, stderr] = ends;
        sys::process::pass_fds(&mut command, vec![stdout, stderr, signal]).context(operation)?;
        let spawned = owner.reaper.spawn_lasting(command).context(operation)?;
        let started = timeout_at(deadline, spawned.started()).await;
        let started = started.map_err(|_| not_ready().within(operation()))?;
        let (child, exited) = started.context(operation)?;
        let (end, ended) = oneshot::channel();
        let watch = Watch {
            label: Label {
                subject: subject.clone(),
                name: "logger",
                path: self.path.display().to_string(),
            },
            child,
            held: held.clone(),
        };
        local::spawn(watch.run(exited, ended, drain.output()));
        // From here on an error drops it, which ends the program.
        let logger = Logger { held, _end: end };
        self.wait_until_ready(ready, deadline)
            .await
            .map_err(|e| e.within(operation()))?;
        Ok(logger)
    }

    fn command(&self, owner: &Owner<'_>) -> Command {
        let mut command = Command::new(&self.path);
        command
            .args(&self.arguments)
            .env_clear()
            .env("CONTAINER_ID", owner.container_id)
            .env("CONTAINER_NAMESPACE", owner.namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    async fn wait_until_ready(&self, ready: OwnedFd, deadline: Instant) -> Result<()> {
        let said = timeout_at(deadline, first_byte(ready)).await;
        let Ok(said) = said else {
            return Err(not_ready());
        };
        if !said.context(|| "wait until it is ready")? && self.must_say_ready {
            return Err(Error::unknown(
                "logging binary did not call ready (it may have crashed or exited prematurely)",
            ));
        }
        Ok(())
    }
}

fn not_ready() -> Error {
    Error::new(Kind::DeadlineExceeded, "logger not ready within 30 s")
}

/// Whether a byte came before the end.
async fn first_byte(pipe: OwnedFd) -> io::Result<bool> {
    set_nonblocking(&pipe)?;
    let pipe = End::source(pipe)?;
    loop {
        pipe.readable().await?;
        match read(&pipe, &mut [0]) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

impl Logger {
    /// Whether output lies in the pipes that the program has not read.
    pub(super) fn has_unread(&self) -> bool {
        let unread = |fd: &OwnedFd| sys::fd::unread(fd.as_fd()).is_ok_and(|count| count > 0);
        self.held.iter().any(unread)
    }
}

/// What watches over a logging program, from its start to its end.
struct Watch {
    label: Label,
    child: Child,
    held: Rc<Vec<OwnedFd>>,
}

impl Watch {
    async fn run(self, mut exited: Exited, mut ended: oneshot::Receiver<()>, output: Undrained) {
        let end = async {
            let _ = (&mut ended).await;
        };
        match first(&mut exited, pin!(end)).await {
            Some(exit) => {
                drop(output);
                let level = match exit.status {
                    0 => log::Level::Debug,
                    _ => log::Level::Warn,
                };
                let Subject { id, exec } = &*self.label.subject;
                log::log!(
                    level,
                    exit_status = exit.status,
                    signal = exit.signal(),
                    id,
                    exec;
                    "{} exited",
                    self.label
                );
                self.replace(ended).await;
            }
            None => self.terminate(exited).await,
        }
    }

    /// Reads what the program would have: the container must not be stopped by pipes
    /// that nobody empties.
    async fn replace(self, ended: oneshot::Receiver<()>) {
        let copy = |fd| discard(fd, self.label.clone());
        let discard = |fd: &OwnedFd| match fd.try_clone().and_then(copy) {
            Ok(copy) => Some(Task::spawn(self.tell(copy))),
            Err(e) => {
                let Subject { id, exec } = &*self.label.subject;
                log::warn!(id, exec; "read output instead of {}: {e}", self.label);
                None
            }
        };
        let tasks: Vec<_> = self.held.iter().filter_map(discard).collect();
        // Only the end of the streams is an end.
        let _ = ended.await;
        drop(tasks);
    }

    /// Runs `copy` and logs how much that dropped.
    fn tell(&self, copy: Box<Copy>) -> impl Future<Output = ()> + use<> {
        let label = self.label.clone();
        async move {
            let dropped = copy.run().await;
            if dropped > 0 {
                let Subject { id, exec } = &*label.subject;
                log::warn!(id, exec; "{label} has exited: {dropped} bytes of output were dropped");
            }
        }
    }

    /// Ends the program.
    async fn terminate(self, exited: Exited) {
        // No read end of ours must keep the container's other processes writing.
        drop(self.held);
        let mut ending = Ending::new(self.child);
        // ESRCH: it has just ended.
        let _ = ending.child.signal(Signal::SIGTERM as i32);
        ending.over = timeout(GRACE, exited).await.is_ok();
        if !ending.over {
            let Subject { id, exec } = &*self.label.subject;
            log::warn!(
                id, exec;
                "{} did not exit within {GRACE:?} after SIGTERM: sending SIGKILL",
                self.label
            );
        }
    }
}

/// A program that is to end. When this goes before the program, as at the end of the
/// server, that is killed.
struct Ending {
    child: Child,
    over: bool,
}

thread_local! {
    /// How many programs are to end, for the thread that is the server.
    static ENDING: Cell<usize> = const { Cell::new(0) };
}

impl Ending {
    fn new(child: Child) -> Self {
        ENDING.set(ENDING.get() + 1);
        Self { child, over: false }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        ENDING.set(ENDING.get() - 1);
        if !self.over {
            let _ = self.child.signal(Signal::SIGKILL as i32);
        }
    }
}

/// Waits until all programs that are to end have ended.
pub(super) async fn ended() {
    let mut looks = Looks::new(LOOK_PAUSE);
    while ENDING.get() > 0 {
        looks.pause().await;
    }
}

/// The copy of `pipe` to nowhere.
fn discard(pipe: OwnedFd, label: Label) -> io::Result<Box<Copy>> {
    // The program shared this flag. It is gone.
    set_nonblocking(&pipe)?;
    let from = Rc::new(End::source(pipe)?);
    let to = Rc::new(End::sink(null()?)?);
    Ok(Copy::new(from, to, Until::SinkGone, label))
}
