//! A process's stdio: from what a request names to open descriptors and copiers.
//!
//! ```text
//! containerd's FIFO ↔ fifo ↔ copy ↔ pipe, or console ↔ process
//! ```
//!
//! Promises: opening, handing over and starting are bounded in time; whatever fails
//! leaves nothing open; no output is lost or reordered while the process lives, and
//! nobody but the process waits for a reader that does not read. `Streams` owns
//! everything, and its drop ends everything.
//!
//! Lacks on purpose: threads that copy, and buffers for what nobody reads.

mod console;
mod copy;
mod fifo;
mod logger;
mod pace;
mod pump;
mod sizes;
pub(crate) mod target;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fmt;
use std::fs::OpenOptions;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Gid, Uid, fchown, pipe2};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, timeout_at};

use self::console::{ConsoleSocket, Terminal};
use self::copy::{Copy, DRAIN, Drain, End, Until};
use self::fifo::Reading;
use self::logger::Logger;
use self::target::Target;
use crate::error::{Context, Error, Kind, Result};
use crate::local;
use crate::reaper::Reaper;

/// How long opening may take: a reader to come to a FIFO, a logger to get ready.
const OPENING: Duration = Duration::from_secs(30);
/// How long after it a logging program that has read everything may take to end.
const LOGGER_END: Duration = Duration::from_secs(2);

/// A process's stdio as the request names it: URIs or paths, empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    /// Whether the process gets a terminal; then there is no stderr.
    pub terminal: bool,
    /// A path or `fifo://`.
    pub stdin: String,
    /// A path, `fifo://`, `file://`, `binary://` or `binary-v2://`.
    pub stdout: String,
    /// As `stdout`.
    pub stderr: String,
}

/// What opening a process's stdio needs to know about the process.
pub struct Owner<'a> {
    /// The container's namespace.
    pub namespace: &'a str,
    /// The container's id.
    pub container_id: &'a str,
    /// The exec's id; empty for the init.
    pub exec_id: &'a str,
    /// The container's bundle.
    pub bundle: &'a Path,
    /// User that owns the container's ends of pipes.
    pub uid: u32,
    /// Group that owns them.
    pub gid: u32,
    /// Starts logging programs.
    pub reaper: &'a Reaper,
}

/// Which process the log's lines are about.
#[derive(Debug)]
struct Subject {
    /// The container's id.
    id: String,
    /// The exec's; empty for the init.
    exec: String,
}

/// What the log calls a stream.
#[derive(Debug, Clone)]
struct Label {
    subject: Arc<Subject>,
    /// `stdin`, `stdout` or `stderr`.
    name: &'static str,
    /// Its other end: a path, a logging program; empty for none.
    path: String,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(self.name),
            path => write!(f, "{} {path}", self.name),
        }
    }
}

/// Stdio that is open on containerd's side and waits for the process to be made.
#[derive(Debug)]
pub struct Opened {
    subject: Arc<Subject>,
    console: Option<ConsoleSocket>,
    /// The process's stdin, stdout and stderr.
    passed: [Option<OwnedFd>; 3],
    stdin: Option<Input>,
    /// Those whose copier has not been started.
    outputs: Vec<Output>,
    early: Vec<Early>,
    logger: Option<Logger>,
    drain: Rc<Drain>,
}

/// An output whose copier was started before the OCI runtime.
#[derive(Debug)]
struct Early {
    flow: Flow,
    task: Task,
    /// Until it is dropped, only a pipe that fills is copied.
    _held: oneshot::Sender<()>,
}

/// A process's stdin: its source, and the pipe it goes to unless that is a terminal.
#[derive(Debug)]
struct Input {
    path: PathBuf,
    from: fifo::Input,
    to: Option<OwnedFd>,
}

/// One output: where it goes, and the pipe it comes from unless that is a terminal.
#[derive(Debug)]
struct Output {
    label: Label,
    from: Option<OwnedFd>,
    to: Rc<End>,
}

/// A started process's stdio.
#[derive(Debug)]
pub struct Streams {
    subject: Arc<Subject>,
    terminal: Option<Rc<Terminal>>,
    stdin: RefCell<Stdin>,
    logger: Option<Logger>,
    drain: Rc<Drain>,
    outputs: Vec<Flow>,
    _tasks: Vec<Task>,
}

/// A process's stdin, before and after [`Streams::open_stdin`].
#[derive(Debug)]
enum Stdin {
    Closed(Option<Input>),
    Open { hold: Option<OwnedFd>, _task: Task },
}

/// An output that is being copied; its ends are the copier's.
#[derive(Debug)]
struct Flow {
    /// The pipe it comes from; none: a terminal.
    from: Option<Weak<End>>,
    to: Weak<End>,
    /// How many bytes have come from there.
    moved: Arc<AtomicU64>,
}

/// Waits until all logging programs that are to end, as their processes are deleted, have
/// ended. Those that have not when the event loop ends are killed.
pub async fn loggers_ended() {
    logger::ended().await;
}

/// Opens what `stdio` names. Fails within 30 s when a FIFO has no reader, with
/// nothing left open. Needs an event loop with local tasks.
///
/// # Errors
/// `InvalidArgument` for a URI that means nothing, `DeadlineExceeded` when nobody
/// came to read.
pub async fn open(stdio: &Stdio, owner: &Owner<'_>) -> Result<Opened> {
    let deadline = Instant::now() + OPENING;
    let stdin = Target::parse(&stdio.stdin).map_err(|e| e.within("stdin"))?;
    let stdout = Target::parse(&stdio.stdout).map_err(|e| e.within("stdout"))?;
    let stderr = match stdio.terminal {
        true => Target::None,
        false => Target::parse(&stdio.stderr).map_err(|e| e.within("stderr"))?,
    };
    let mut opened = Opened {
        subject: Arc::new(Subject {
            id: owner.container_id.to_owned(),
            exec: owner.exec_id.to_owned(),
        }),
        console: None,
        passed: [None, None, None],
        stdin: None,
        outputs: Vec::new(),
        early: Vec::new(),
        logger: None,
        drain: Rc::default(),
    };
    if stdio.terminal {
        opened.console = Some(ConsoleSocket::new(owner)?);
    }
    opened.open_stdin(&stdin, owner, deadline).await?;
    match (&stdout, &stderr) {
        (Target::Logger(program), _) => opened.log([true, true], program, owner, deadline).await?,
        (Target::None, Target::Logger(program)) => {
            opened.log([false, true], program, owner, deadline).await?
        }
        _ => opened.open_outputs(stdout, stderr, owner, deadline).await?,
    }
    Ok(opened)
}

impl Opened {
    async fn open_stdin(
        &mut self,
        stdin: &Target,
        owner: &Owner<'_>,
        deadline: Instant,
    ) -> Result<()> {
        let path = match stdin {
            Target::None => return Ok(()),
            Target::Path(path) => path,
            Target::File(_) | Target::Logger(_) => {
                return Err(Error::invalid("stdin: not a path or fifo://"));
            }
        };
        let found = fifo::Input::find(path, deadline).await;
        let from = found.map_err(|e| cannot_open("stdin", path, &e))?;
        let to = match self.console {
            Some(_) => None,
            None => {
                let (read, write) = pipe_for(owner, "stdin")?;
                set_nonblocking(&write).context(|| "make pipe for stdin")?;
                self.passed[0] = Some(read);
                Some(write)
            }
        };
        let path = path.clone();
        self.stdin = Some(Input { path, from, to });
        Ok(())
    }

    async fn open_outputs(
        &mut self,
        stdout: Target,
        stderr: Target,
        owner: &Owner<'_>,
        deadline: Instant,
    ) -> Result<()> {
        // One place, one descriptor: appended to by both.
        let same = stdout == stderr;
        for (name, target) in [("stdout", stdout), ("stderr", stderr)] {
            let path = match &target {
                Target::Path(path) | Target::File(path) => path.display().to_string(),
                Target::None | Target::Logger(_) => String::new(),
            };
            let to = match target {
                Target::None if self.console.is_some() && name == "stdout" => {
                    // Somebody has to read the terminal.
                    let null = null().and_then(End::sink);
                    Rc::new(null.context(|| "open /dev/null")?)
                }
                Target::None => continue,
                _ if same && let Some(first) = self.outputs.first() => first.to.clone(),
                target => Rc::new(open_sink(name, &target, deadline).await?),
            };
            self.output(name, path, to, owner)?;
        }
        Ok(())
    }

    /// Adds an output to `to`, from a new pipe or from the terminal.
    fn output(
        &mut self,
        name: &'static str,
        path: String,
        to: Rc<End>,
        owner: &Owner<'_>,
    ) -> Result<()> {
        let from = match self.console {
            Some(_) => None,
            None => {
                let (read, write) = pipe_for(owner, name)?;
                set_nonblocking(&read).context(|| format!("make pipe for {name}"))?;
                self.passed[if name == "stdout" { 1 } else { 2 }] = Some(write);
                Some(read)
            }
        };
        let label = self.label(name, path);
        self.outputs.push(Output { label, from, to });
        Ok(())
    }

    fn label(&self, name: &'static str, path: String) -> Label {
        let subject = self.subject.clone();
        Label {
            subject,
            name,
            path,
        }
    }

    /// The exec's id; empty for the init.
    pub fn exec_id(&self) -> &str {
        &self.subject.exec
    }

    /// Starts a logging program for stdout and stderr, as far as `wanted`.
    async fn log(
        &mut self,
        wanted: [bool; 2],
        program: &logger::Program,
        owner: &Owner<'_>,
        deadline: Instant,
    ) -> Result<()> {
        let (stdout, stdout_write) = pipe_for(owner, "stdout")?;
        let (stderr, stderr_write) = pipe_for(owner, "stderr")?;
        let terminal = self.console.is_some();
        let ends = [stdout, stderr];
        let logger = program
            .start(ends, !terminal, owner, &self.subject, &self.drain, deadline)
            .await?;
        self.logger = Some(logger);
        if terminal {
            let to = set_nonblocking(&stdout_write).and_then(|()| End::sink(stdout_write));
            let to = to.context(|| "watch pipe for stdout")?;
            let path = program.path.display().to_string();
            return self.output("stdout", path, Rc::new(to), owner);
        }
        self.passed[1] = wanted[0].then_some(stdout_write);
        self.passed[2] = wanted[1].then_some(stderr_write);
        Ok(())
    }

    /// Sets stdin, stdout and stderr of the runtime's command: the container's ends of
    /// the pipes, or /dev/null (for a terminal: /dev/null in, and the caller captures
    /// the rest). Returns whether stdout and stderr are the container's, so must not
    /// be captured.
    ///
    /// The command owns the ends from now on: while it exists the output has no end.
    pub fn give_to(&mut self, command: &mut Command) -> Result<bool> {
        let [stdin, stdout, stderr] = &mut self.passed;
        command.stdin(end_or_null(stdin));
        if self.console.is_some() {
            return Ok(false);
        }
        command
            .stdout(end_or_null(stdout))
            .stderr(end_or_null(stderr));
        Ok(true)
    }

    /// The path for the runtime's `--console-socket`, for a terminal.
    pub fn console_socket(&self) -> Option<&Path> {
        self.console.as_ref().map(ConsoleSocket::path)
    }

    /// To be called before the runtime's command runs: starts the copiers of pipes, so
    /// that a runtime that writes more than a pipe holds is not blocked. What it writes
    /// stays in the pipe, as without this call, until that is half full.
    pub fn copy_early(&mut self) -> Result<()> {
        if self.console.is_some() {
            return Ok(());
        }
        for output in std::mem::take(&mut self.outputs) {
            let (_held, held) = oneshot::channel();
            let (flow, task) = copy_output(output, None, &self.drain, Some(held))?;
            self.early.push(Early { flow, task, _held });
        }
        Ok(())
    }

    /// After the runtime's command ended well: receives the pty master where there is
    /// one (within 10 s), drops the container's ends and starts the copiers.
    pub async fn start(self) -> Result<Streams> {
        let streams = self.start_outputs().await?;
        streams.open_stdin()?;
        Ok(streams)
    }

    /// As [`Opened::start`], but stdin waits for [`Streams::open_stdin`].
    pub async fn start_outputs(self) -> Result<Streams> {
        let terminal = match self.console {
            Some(socket) => {
                let master = socket.receive().await?;
                Some(Rc::new(Terminal::new(master, self.subject.clone())?))
            }
            None => None,
        };
        drop(self.passed);
        let master = terminal.as_ref().and_then(|terminal| terminal.master());
        let early = self.early.into_iter().map(|early| (early.flow, early.task));
        let (mut outputs, mut tasks): (Vec<_>, Vec<_>) = early.unzip();
        for output in self.outputs {
            let (flow, task) = copy_output(output, master.clone(), &self.drain, None)?;
            outputs.push(flow);
            tasks.push(task);
        }
        Ok(Streams {
            subject: self.subject,
            terminal,
            stdin: RefCell::new(Stdin::Closed(self.stdin)),
            logger: self.logger,
            drain: self.drain,
            outputs,
            _tasks: tasks,
        })
    }
}

/// Starts copying stdin, to `pipe` or to the terminal.
fn copy_input(
    label: Label,
    from: End,
    pipe: Option<OwnedFd>,
    terminal: Option<Rc<Terminal>>,
    drain: &Rc<Drain>,
) -> Result<Task> {
    let watched = || "watch stdin";
    let from = Rc::new(from);
    let master = terminal.as_ref().and_then(|terminal| terminal.master());
    let copy = match (pipe, master) {
        (Some(pipe), _) => {
            let to = Rc::new(End::sink(pipe).context(watched)?);
            Copy::new(from, to, Until::SinkGone, label)
        }
        (None, Some(master)) => Copy::terminal(from, master, Until::SinkGone, label),
        (None, None) => return Err(Error::unknown("copy stdin: no pipe and no terminal")),
    };
    let drain = drain.clone();
    Ok(Task::spawn(async move {
        copy.run().await;
        if let Some(terminal) = terminal {
            terminal.hang_up(&drain).await;
        }
    }))
}

/// Starts copying one output. While it is `held`, only a pipe that fills is copied.
fn copy_output(
    output: Output,
    master: Option<Rc<End>>,
    drain: &Rc<Drain>,
    held: Option<oneshot::Receiver<()>>,
) -> Result<(Flow, Task)> {
    let Output { label, from, to } = output;
    let name = label.name;
    let (copy, source) = match (from, master) {
        (Some(pipe), _) => {
            let from = Rc::new(End::source(pipe).context(|| format!("watch {name}"))?);
            let source = Rc::downgrade(&from);
            let until = Until::Drained(drain.clone());
            (
                Copy::new(from, to.clone(), until, label.clone()),
                Some(source),
            )
        }
        (None, Some(master)) => {
            let until = Until::Exited(drain.clone());
            (
                Copy::terminal(master, to.clone(), until, label.clone()),
                None,
            )
        }
        (None, None) => {
            return Err(Error::unknown(format!(
                "copy {name}: no pipe and no terminal"
            )));
        }
    };
    let flow = Flow {
        from: source,
        to: Rc::downgrade(&to),
        moved: copy.moved(),
    };
    let undrained = drain.output();
    let task = Task::spawn(async move {
        if let Some(held) = held {
            copy.hold(held).await;
        }
        copy.run().await;
        drop(undrained);
        // Open as long as it is being read, so that `Flow::consumed` sees it.
        fifo::consumed(&to).await;
        // Of two that share a sink, the last closes it.
        if let Some(sink) = Rc::into_inner(to)
            && let Err(e) = fifo::close(sink).await
        {
            let Subject { id, exec } = &*label.subject;
            log::warn!(id, exec; "close {label}: {e}");
        }
    });
    Ok((flow, task))
}

impl Flow {
    /// Waits until the client has read all there is now, or has stopped reading. The
    /// copier's ends stay its own: none is held here while it could close them.
    async fn consumed(&self) {
        let source = || self.from.as_ref()?.upgrade().map(|from| from.unread());
        let goal = match &self.from {
            Some(_) => self.moved.load(Ordering::Relaxed) + source().unwrap_or(0) as u64,
            // A terminal ends with its process, and so does its copier.
            None => u64::MAX,
        };
        // The copier may not have heard yet.
        yield_now().await;
        let mut reading = Reading::default();
        while let Some(to) = self.to.upgrade() {
            let unread = to.unread();
            drop(to);
            let read = self
                .moved
                .load(Ordering::Relaxed)
                .saturating_sub(unread as u64);
            // Somebody else may have emptied the source.
            let empty = unread == 0 && source() == Some(0);
            if read >= goal || empty || !reading.goes_on(read as usize).await {
                return;
            }
        }
    }
}

impl Streams {
    /// Opens stdin and starts its copier; once it is, there is nothing to do. To be called
    /// when the client knows of the process: as soon as the FIFO is open it may have
    /// nothing more to write, and it sends no CloseIO to what it does not know.
    pub fn open_stdin(&self) -> Result<()> {
        let mut stdin = self.stdin.borrow_mut();
        let Stdin::Closed(input) = &mut *stdin else {
            return Ok(());
        };
        let Some(Input { path, from, to }) = input.take() else {
            return Ok(());
        };
        let opened = from.open();
        let (read, hold) = opened.context(|| format!("open stdin {}", path.display()))?;
        let label = Label {
            subject: self.subject.clone(),
            name: "stdin",
            path: path.display().to_string(),
        };
        let _task = copy_input(label, read, to, self.terminal.clone(), &self.drain)?;
        *stdin = Stdin::Open { hold, _task };
        Ok(())
    }

    /// Closes the shim's write end of stdin, if it is open (CloseIO). The process sees
    /// the end once the client has closed its own.
    pub fn close_stdin(&self) {
        if let Stdin::Open { hold, .. } = &mut *self.stdin.borrow_mut() {
            *hold = None;
        }
    }

    /// Sets the terminal's size; no terminal: nothing to do.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        let Some(terminal) = &self.terminal else {
            return Ok(());
        };
        let resized = terminal.resize(width, height);
        resized.context(|| format!("resize terminal to {width}x{height}"))
    }

    /// The process ended: starts the clock (10 s) of the drain; does not wait. To be
    /// called too if that was before there were streams.
    ///
    /// When the clock runs out, what its pipes hold is the last that moves, and its
    /// readers get their end even if other processes keep the pipes open.
    pub fn process_exited(&self) {
        if let Some(terminal) = &self.terminal {
            terminal.release();
        }
        self.drain.exit();
    }

    /// Waits until the client has read what the process, which has ended, has written,
    /// as long as it goes on reading, 10 s at most. Clients close their ends as soon as
    /// they hear of the exit.
    pub async fn consumed(&self) {
        let ended = self.drain.exit();
        for output in &self.outputs {
            match timeout_at(ended + DRAIN, output.consumed()).await {
                Ok(()) => {}
                Err(_) => {
                    let Subject { id, exec } = &*self.subject;
                    return log::debug!(
                        id, exec;
                        "exit event published before the client has read all output: waited {DRAIN:?}"
                    );
                }
            }
        }
    }

    /// Waits until all output was moved, or the drain's clock ran out. The clock of a
    /// process that did not end starts here.
    pub async fn drained(&self) {
        let ended = self.drain.exit();
        if let Some(logger) = &self.logger {
            // A program that does not end when its input does keeps nobody waiting.
            let early = timeout_at(ended + LOGGER_END, self.drain.done()).await;
            if early.is_ok() || !logger.has_unread() {
                return;
            }
        }
        if timeout_at(ended + DRAIN, self.drain.done()).await.is_err() {
            let Subject { id, exec } = &*self.subject;
            log::debug!(id, exec; "drain output: not done within {DRAIN:?}");
        }
    }
}

/// A task that ends when this is dropped: at the next turn of the loop its
/// descriptors are closed.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Task {
    fn spawn(work: impl Future<Output = ()> + 'static) -> Self {
        Self(local::spawn(work))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens an output that is not a logging program.
async fn open_sink(name: &str, target: &Target, deadline: Instant) -> Result<End> {
    let (path, opened) = match target {
        Target::Path(path) => (path, fifo::open_output(path, deadline).await),
        Target::File(path) => (path, fifo::append_to(path, deadline).await),
        Target::None | Target::Logger(_) => {
            return Err(Error::invalid(format!(
                "{name}: a logger is for both outputs"
            )));
        }
    };
    opened.map_err(|e| cannot_open(name, path, &e))
}

fn cannot_open(name: &str, path: &Path, cause: &io::Error) -> Error {
    let kind = match cause.kind() {
        io::ErrorKind::TimedOut => Kind::DeadlineExceeded,
        _ => Kind::Unknown,
    };
    Error::new(kind, format!("open {name} {}: {cause}", path.display()))
}

/// A pipe whose ends block: the read end, the write end.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

/// A pipe that the container's user may reopen (`/dev/stdout`).
fn pipe_for(owner: &Owner<'_>, name: &str) -> Result<(OwnedFd, OwnedFd)> {
    let operation = || format!("make pipe for {name}");
    let (read, write) = pipe().context(operation)?;
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    fchown(&read, Some(uid), Some(gid)).context(operation)?;
    Ok((read, write))
}

fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    // Our descriptors have no other status flag that could get lost, but append.
    let fd: BorrowedFd<'_> = fd.as_fd();
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn null() -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().write(true).open("/dev/null")?.into())
}

fn end_or_null(end: &mut Option<OwnedFd>) -> process::Stdio {
    end.take()
        .map_or_else(process::Stdio::null, process::Stdio::from)
}
