//! A container: its init, its execs, and what may be done with them when. State
//! changes and their events happen in one turn of the one thread, so no other
//! request and no exit comes between them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::MutexGuard;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::exits::Exits;
use super::pending::{self, Pending};
use super::process::Process;
use super::state::{ExecOp, Op, Refusal, State, step, step_exec};
use super::{Reserved, Shared, check_name};
use crate::blocking;
use crate::bundle::{Bundle, Spec};
use crate::cancel::{Cancel, Cause};
use crate::cgroup::{Cgroup, Plan, Planned, Stats};
use crate::descriptors;
use crate::error::{Context, Error, Kind, Result};
use crate::events::Event;
use crate::local;
use crate::mount::{Mount, mount_all, unmount_all};
use crate::oom::OomWatch;
use crate::options::Options;
use crate::reaper::{self, Exit, Exited};
use crate::runtime::{Checkpoint, Restore, Runtime};
use crate::stdio::{self, Opened, Stdio};
use crate::sys;

/// How long to wait for what was killed to be reaped, or for the runtime to kill
/// what a dead init left: neither may hold up an exit or a Delete for good.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long Delete waits for a call before it to end by itself.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long Delete waits, after that, for another Delete: longer than the output of a
/// process that has ended is waited for.
const DELETE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long the undoing of a Create holds up its answer, each by the OCI runtime and by
/// unmounting.
const UNDO_TIMEOUT: Duration = Duration::from_secs(10);

/// Between the first two tries to thaw what was killed, while another may be freezing it;
/// each later pause is twice as long.
const THAW_PAUSE: Duration = Duration::from_millis(20);

/// How long the files of statistics stay open for a client that asks more often than that.
const STATS_BURST: Duration = Duration::from_secs(1);

/// Of how many containers at a time: each has about thirty files, and the server no more
/// than 1024 descriptors where containerd has raised no limit.
const STATS_BURSTS: usize = 8;

/// Files of statistics that one container keeps open, at most.
const STATS_FILES: u64 = 40;

/// What Create asks for.
pub struct Create {
    /// The container's id.
    pub id: String,
    /// Its bundle.
    pub bundle: Bundle,
    /// What to mount on the bundle's rootfs; nothing: it is there already.
    pub rootfs: Vec<Mount>,
    /// The init's stdio.
    pub stdio: Stdio,
    /// The runtime's options.
    pub options: Options,
    /// The image of a checkpoint to go on from instead of starting anew.
    pub checkpoint: Option<String>,
}

/// What State answers.
pub struct Status {
    /// The process's id: the container's for an init.
    pub id: String,
    /// The container's bundle.
    pub bundle: String,
    /// Its pid; 0 before it has one.
    pub pid: u32,
    /// Its state.
    pub state: State,
    /// Its container is being frozen now.
    pub pausing: bool,
    /// Its stdio, as it was asked for.
    pub stdio: Stdio,
    /// How it ended, if it did.
    pub exit: Option<Exit>,
}

/// What Delete answers.
pub struct Deleted {
    /// The pid it had; 0 if it had none.
    pub pid: u32,
    /// How it ended; `None` if it never ran.
    pub exit: Option<Exit>,
}

/// A process in a container's cgroup.
pub struct Member {
    /// Its pid.
    pub pid: u32,
    /// The exec that it is, if it is one.
    pub exec_id: Option<String>,
}

/// An exec: a process, and what it is to run.
struct Exec {
    process: Process,
    /// An OCI process as JSON.
    spec: Vec<u8>,
    /// Its start, while that is under way.
    starting: RefCell<Option<Cancel>>,
}

impl Exec {
    /// What happens to it changes its state, by the grid.
    fn step(&self, op: ExecOp) -> std::result::Result<(), Refusal> {
        self.process.set_state(step_exec(self.process.state(), op)?);
        Ok(())
    }
}

/// What was there before the runtime was to make the container: another's.
struct Others {
    /// The runtime's state of the same id.
    state: bool,
    /// Processes in the cgroup that `config.json` asks for, if they were started before this
    /// time since boot.
    started_before: Duration,
}

/// A container that the runtime has made.
pub struct Container {
    shared: Rc<Shared>,
    bundle: Bundle,
    options: Options,
    runtime: Runtime,
    /// The shim mounted the rootfs, so it unmounts it.
    mounted: bool,
    shares_pids: bool,
    /// The cgroup that `config.json` asks for.
    cgroups_path: String,
    checkpoint: Option<String>,
    cgroup: RefCell<Option<Rc<Cgroup>>>,
    stats_asked: Cell<Option<Instant>>,
    oom: RefCell<Option<OomWatch>>,
    init: Process,
    execs: RefCell<BTreeMap<String, Rc<Exec>>>,
    exits: RefCell<Exits<Exit>>,
    pending: Pending,
    pausing: Cell<bool>,
    /// A client had its init killed: its end by SIGKILL tells nothing of memory.
    sigkill_sent: Cell<bool>,
}

impl Container {
    /// Creates a container. When that fails everything is undone, no event is published,
    /// and `reserved`, its id, is held until then.
    pub(super) async fn create(
        shared: Rc<Shared>,
        create: Create,
        cancel: &Cancel,
        reserved: &Rc<Reserved>,
    ) -> Result<Rc<Container>> {
        let mounted = !create.rootfs.is_empty();
        let rootfs = create.bundle.rootfs();
        let spec = prepare_bundle(&create, cancel).await?;
        let cgroups_path = &spec.linux.cgroups_path;
        Planned::check_alone(plan(&create.id, cgroups_path, &create.options))?;
        if mounted {
            mount_rootfs(&shared, &create, cancel, reserved).await?;
        }
        let made = Self::make(shared, create, spec, cancel).await;
        if made.is_err() && mounted {
            undo_mounts(None, rootfs, reserved).await;
        }
        made
    }

    /// The part of [`Container::create`] between the mounts and the event.
    async fn make(
        shared: Rc<Shared>,
        create: Create,
        spec: Spec,
        cancel: &Cancel,
    ) -> Result<Rc<Container>> {
        let container = Rc::new(Container {
            runtime: Runtime::new(
                shared.reaper.clone(),
                &create.options,
                &shared.namespace,
                create.bundle.path(),
            ),
            shared,
            mounted: !create.rootfs.is_empty(),
            shares_pids: !spec.has_private_pid_namespace(),
            cgroups_path: spec.linux.cgroups_path,
            bundle: create.bundle,
            options: create.options,
            checkpoint: create.checkpoint,
            cgroup: RefCell::default(),
            stats_asked: Cell::default(),
            oom: RefCell::default(),
            init: Process::new(create.id, create.stdio),
            execs: RefCell::default(),
            exits: RefCell::default(),
            pending: Pending::default(),
            pausing: Cell::default(),
            sigkill_sent: Cell::default(),
        });
        // A checkpoint is restored, and so has a process, at its start.
        let exited = match &container.checkpoint {
            None => Some(container.begin(cancel).await?),
            Some(_) => None,
        };
        container.tell(Event::Create {
            container_id: container.id(),
            bundle: container.bundle.path().display().to_string(),
            rootfs: create.rootfs,
            io: container.init.stdio.clone(),
            checkpoint: container.checkpoint.clone().unwrap_or_default(),
            pid: container.init.pid(),
        });
        if let Some(exited) = exited {
            container.watch(exited);
        }
        Ok(container)
    }

    /// Has the runtime make the init, new or from the checkpoint. When that fails
    /// the runtime is left without the container.
    async fn begin(&self, cancel: &Cancel) -> Result<Exited> {
        let _learning = self.shared.reaper.learning();
        let io = self.open_stdio(&self.init, cancel).await?;
        let others = Others {
            state: self.runtime.state_dir(&self.init.id).exists(),
            started_before: sys::process::since_boot(),
        };
        let begun = self.begin_with(io, cancel).await;
        if begun.is_err() {
            self.undo_begin(others).await;
        }
        begun
    }

    /// Removes what the runtime has made, however far it came: its state, and a cgroup that
    /// it may not know of any more; but not those of `others`.
    async fn undo_begin(&self, others: Others) {
        let id = &self.init.id;
        let is_others = self
            .planned_cgroup()
            .is_ok_and(|cgroup| cgroup.has_process_from_before(others.started_before));
        if self.runtime.state_dir(id).exists() && !others.state {
            let limit = Cancel::after(UNDO_TIMEOUT);
            let undone = self.runtime.kill_and_delete(id, &limit).await;
            // A runtime that was killed may have left a directory that it takes for nothing.
            let left = || Error::unknown("OCI runtime delete left the state directory");
            let undone = match self.runtime.state_dir(id).exists() {
                true => {
                    let error = undone.err().unwrap_or_else(left);
                    self.runtime.forget_unreadable(id, error).await
                }
                false => undone,
            };
            undone.unwrap_or_else(|e| log::error!(id; "undo create of container: {e}"));
        }
        if is_others || others.state {
            return log::warn!(
                id;
                "undo create of container: another container has its ID or its cgroup; left both"
            );
        }
        let undone = self.remove_planned_cgroup().await;
        undone.unwrap_or_else(|e| log::error!(id; "undo create of container: {e}"));
    }

    /// The cgroup that `config.json` asks for.
    fn planned_cgroup(&self) -> Result<Planned> {
        Planned::find(plan(&self.init.id, &self.cgroups_path, &self.options))
    }

    /// Kills what is in the cgroup that `config.json` asks for, and removes it.
    async fn remove_planned_cgroup(&self) -> Result<()> {
        let cgroup = self.planned_cgroup()?;
        let killed = match cgroup.exists() {
            true => cgroup.kill(UNDO_TIMEOUT).await,
            false => return Ok(()),
        };
        killed.and(cgroup.remove(UNDO_TIMEOUT).await)
    }

    /// Opens a process's stdio, and copies its output from now on: the runtime may write more
    /// to it than a pipe holds.
    async fn open_stdio(&self, process: &Process, cancel: &Cancel) -> Result<Opened> {
        let (id, shared) = (&self.init.id, &self.shared);
        let exec_id = match std::ptr::eq(process, &self.init) {
            true => "",
            false => &process.id,
        };
        let owner = shared.owner(id, exec_id, &self.bundle, &self.options);
        let opened = cancel.unless(stdio::open(&process.stdio, &owner)).await;
        let mut opened = opened.unwrap_or_else(|c| Err(Error::from(c).within("open stdio")))?;
        opened.copy_early()?;
        Ok(opened)
    }

    async fn begin_with(&self, mut io: Opened, cancel: &Cancel) -> Result<Exited> {
        let pid_file = self.bundle.init_pid_file();
        let id = &self.init.id;
        let pid = match &self.checkpoint {
            None => self.runtime.create(id, &pid_file, &mut io, cancel).await?,
            Some(image) => self.restore(image, &pid_file, &mut io, cancel).await?,
        };
        let streams = cancel.unless(io.start_outputs()).await??;
        if self.checkpoint.is_some() {
            // It runs already.
            streams.open_stdin()?;
        }
        let (child, exited) = adopt(&self.shared, pid)?;
        self.init.began(child, streams, None);
        self.find_cgroup(pid);
        Ok(exited)
    }

    /// Finds the cgroup of the init, if it is the container's alone.
    fn find_cgroup(&self, pid: i32) {
        let cgroup = match Cgroup::of(pid) {
            // What goes on from a checkpoint is many processes.
            Ok(cgroup) if self.checkpoint.is_some() || !cgroup.has_others(pid) => Some(cgroup),
            Ok(_) => {
                log::warn!(
                    id = self.init.id;
                    "container's cgroup has processes of others: no statistics, no OOM events"
                );
                None
            }
            Err(error) => {
                log::warn!(id = self.init.id; "find the container's cgroup: {error}");
                None
            }
        };
        self.cgroup.replace(cgroup.map(Rc::new));
    }

    async fn restore(
        &self,
        image: &str,
        pid_file: &Path,
        io: &mut Opened,
        cancel: &Cancel,
    ) -> Result<i32> {
        let work = match self.options.criu_work_path.as_str() {
            "" => self.bundle.work(),
            path => PathBuf::from(path),
        };
        let restore = Restore {
            image_path: image,
            work_path: &work,
            pid_file,
        };
        self.runtime
            .restore(&self.init.id, &restore, io, cancel)
            .await
    }

    /// Watches the init, which has begun, for its end and its cgroup for OOM.
    fn watch(self: &Rc<Self>, exited: Exited) {
        self.watch_cgroup();
        let container = self.clone();
        local::spawn(async move {
            let exit = exited.await;
            container.init_exited(exit).await;
        });
    }

    fn watch_cgroup(self: &Rc<Self>) {
        let Ok(cgroup) = self.cgroup() else { return };
        if let Err(error) = cgroup.enable_controllers() {
            log::warn!(id = self.init.id; "enable cgroup controllers: {error}");
        }
        let container = Rc::downgrade(self);
        let on_oom = move || {
            if let Some(container) = container.upgrade() {
                container.keep_stats();
                container.tell(Event::Oom {
                    container_id: container.id(),
                });
            }
        };
        match OomWatch::start(&cgroup, on_oom) {
            Ok(watch) => drop(self.oom.replace(Some(watch))),
            Err(error) => log::warn!(id = self.init.id; "watch for OOM: {error}"),
        }
    }

    /// systemd takes the cgroup away as soon as it is empty: whoever asks then how the
    /// container ended, as the CRI does for OOM kills, is told of now.
    fn keep_stats(&self) {
        if let (true, Ok(cgroup)) = (self.options.systemd_cgroup, self.cgroup()) {
            cgroup.keep_stats();
        }
    }

    fn id(&self) -> String {
        self.init.id.clone()
    }

    fn tell(&self, event: Event) {
        self.log(&event);
        self.shared.events.publish(event);
    }

    /// What an operator is to see of `event`; exits are logged by [`Container::tell_exit`].
    fn log(&self, event: &Event) {
        let id = &self.init.id;
        match event {
            Event::Create { pid, bundle, .. } => {
                let runtime = self.runtime.binary();
                log::info!(pid, runtime, bundle, id; "container created");
            }
            Event::Start { pid, .. } => match &self.checkpoint {
                Some(image) => log::info!(pid, image, id; "container restored from checkpoint"),
                None => log::info!(pid, id; "container started"),
            },
            Event::Exit { .. } => {}
            Event::Delete { .. } => log::info!(id; "container deleted"),
            Event::Oom { .. } => log::info!(id; "container out of memory (OOM)"),
            Event::Paused { .. } => log::info!(id; "container paused"),
            Event::Resumed { .. } => log::info!(id; "container resumed"),
            Event::Checkpointed { checkpoint, .. } => {
                log::info!(image = checkpoint, id; "container checkpointed");
            }
            Event::ExecAdded { exec_id, .. } => log::debug!(id, exec = exec_id; "exec added"),
            Event::ExecStarted { exec_id, pid, .. } => {
                log::debug!(pid, id, exec = exec_id; "exec started");
            }
        }
    }

    /// What happens to the init changes its state, by the grid.
    fn step(&self, op: Op) -> std::result::Result<(), Refusal> {
        self.init.set_state(step(self.init.state(), op)?);
        Ok(())
    }

    /// Starts the init. Answers its pid.
    pub async fn start(self: &Rc<Self>, cancel: &Cancel) -> Result<u32> {
        let _pending = self.pending.register(cancel, pending::Kind::EndsWithInit);
        let _turn = cancel.unless(self.init.turn()).await?;
        step(self.init.state(), Op::Start)?;
        if self.exits.borrow().init_ended() {
            // Its exit is about to be published.
            step(State::Stopped, Op::Start)?;
        }
        // An exit during the start is published after it.
        self.exits.borrow_mut().hold();
        let started = self.start_init(cancel).await;
        // A runtime that was cut short may have started it all the same.
        if started.is_ok() || self.init.runs_its_program() {
            // Still created: an exit is held back, and this is the init's turn.
            let _ = self.step(Op::Start);
            self.init.started();
            self.tell(Event::Start {
                container_id: self.id(),
                pid: self.init.pid(),
            });
        }
        self.release();
        started.map(|()| self.init.pid())
    }

    async fn start_init(self: &Rc<Self>, cancel: &Cancel) -> Result<()> {
        if self.checkpoint.is_none() {
            self.init.open_stdin()?;
            return self.runtime.start(&self.init.id, cancel).await;
        }
        let exited = self.begin(cancel).await?;
        self.watch(exited);
        Ok(())
    }

    /// Adds an exec, to be started later.
    pub fn exec(&self, exec_id: String, stdio: Stdio, spec: &[u8]) -> Result<()> {
        step(self.init.state(), Op::Exec)?;
        if self.init.pid() == 0 {
            return Err(Refusal::No("cannot exec in a created checkpoint state").into());
        }
        check_name("exec", &exec_id)?;
        let spec = with_terminal(spec, stdio.terminal)?;
        let mut execs = self.execs.borrow_mut();
        let taken = execs.get(&exec_id);
        if taken.is_some_and(|exec| exec.process.state() != State::Deleted) {
            let message = format!("id {exec_id}: already exists");
            return Err(Error::new(Kind::AlreadyExists, message));
        }
        let process = Process::new(exec_id.clone(), stdio);
        let exec = Exec {
            process,
            spec,
            starting: RefCell::default(),
        };
        execs.insert(exec_id.clone(), Rc::new(exec));
        self.tell(Event::ExecAdded {
            container_id: self.id(),
            exec_id,
        });
        Ok(())
    }

    /// Starts an exec. Answers its pid.
    pub async fn start_exec(self: &Rc<Self>, exec_id: &str, cancel: &Cancel) -> Result<u32> {
        let exec = self.find(exec_id)?;
        let _pending = self.pending.register(cancel, pending::Kind::EndsWithInit);
        let _turn = cancel.unless(exec.process.turn()).await?;
        step_exec(exec.process.state(), ExecOp::Start)?;
        if self.exits.borrow().init_ended() {
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!(
                    "container {} init process is not running: failed precondition",
                    self.init.id
                ),
            ));
        }
        // Counts as running while it starts: the init's exit is told after its.
        self.exits.borrow_mut().hold();
        let learning = self.shared.reaper.learning();
        exec.starting.replace(Some(cancel.clone()));
        let launched = self.launch(&exec, cancel).await;
        exec.starting.take();
        match launched {
            Ok(exited) => {
                drop(learning);
                Ok(self.exec_started(exec.clone(), exited))
            }
            Err(error) => {
                exec.process.give_up();
                self.release();
                Err(error)
            }
        }
    }

    async fn launch(&self, exec: &Exec, cancel: &Cancel) -> Result<Exited> {
        let mut io = self.open_stdio(&exec.process, cancel).await?;
        let id = &self.init.id;
        let pid = self.runtime.exec(id, &exec.spec, &mut io, cancel).await?;
        let (child, exited) = adopt(&self.shared, pid)?;
        let started = cancel.unless(io.start()).await;
        match started.map_err(Error::from).flatten() {
            Ok(streams) => {
                // By then it may run its own already, but the runtime's is init's at first.
                let created = self.checkpoint.is_none();
                let made_by = created.then(|| self.init.program_at_first()).flatten();
                exec.process.began(child, streams, made_by);
                Ok(exited)
            }
            Err(error) => {
                // It runs, but nobody can see or hear it.
                let _ = child.signal(SIGKILL as i32);
                Err(error)
            }
        }
    }

    fn exec_started(self: &Rc<Self>, exec: Rc<Exec>, exited: Exited) -> u32 {
        let pid = exec.process.pid();
        // Nothing else could happen to it: this is its turn.
        let _ = exec.step(ExecOp::Start);
        exec.process.started();
        if self.shares_pids && self.exits.borrow().init_ended() {
            // It began too late to be killed with what the init left.
            let _ = exec.process.signal(SIGKILL);
        }
        self.tell(Event::ExecStarted {
            container_id: self.id(),
            exec_id: exec.process.id.clone(),
            pid,
        });
        let container = self.clone();
        local::spawn(async move {
            let exit = exited.await;
            exec.process.output_consumed().await;
            // An exit is allowed in every state.
            let _ = exec.step(ExecOp::Exited);
            exec.process.exited(exit);
            container.tell_exit(&exec.process, exit);
            container.release();
        });
        pid
    }

    /// One less holds back the init's exit.
    fn release(&self) {
        let due = self.exits.borrow_mut().release();
        if let Some(exit) = due {
            self.tell_init_exit(exit);
        }
    }

    async fn init_exited(&self, exit: Exit) {
        // Before anything that takes time: systemd may remove the cgroup at once, and
        // what was killed in it is told before the exit.
        if let Some(watch) = self.oom.take() {
            watch.finish(exit.status == KILLED && !self.sigkill_sent.get());
        }
        self.keep_stats();
        self.exits.borrow_mut().hold();
        let held = self.exits.borrow_mut().init_exited(exit);
        debug_assert!(held.is_none(), "held a line above");
        self.pending.init_exited();
        if self.shares_pids {
            // The kernel ends a pid namespace with its init, but here it has none. An exec
            // may have left the cgroup.
            self.signal_execs(SIGKILL);
            let limit = Cancel::after(KILL_TIMEOUT);
            let killed = self.kill_all(SIGKILL, &limit).await;
            log::debug!(id = self.init.id; "kill the remaining processes: {killed:?}");
        }
        if self.shares_pids || self.init.state() == State::Paused {
            self.thaw().await;
        }
        self.init.output_consumed().await;
        self.release();
    }

    fn tell_init_exit(&self, exit: Exit) {
        // An exit is allowed in every state.
        let _ = self.step(Op::Exited);
        self.init.exited(exit);
        self.tell_exit(&self.init, exit);
    }

    fn tell_exit(&self, process: &Process, exit: Exit) {
        let (level, what, exec) = match std::ptr::eq(process, &self.init) {
            true => (log::Level::Info, "container exited", ""),
            false => (log::Level::Debug, "exec exited", process.id.as_str()),
        };
        log::log!(
            level,
            exit_status = exit.status,
            signal = exit.signal(),
            after:? = process.lifetime(),
            pid = process.pid(),
            id = self.init.id,
            exec;
            "{what}"
        );
        self.tell(Event::Exit {
            container_id: self.id(),
            id: process.id.clone(),
            pid: process.pid(),
            exit_status: exit.status,
            exited_at: exit.at,
        });
    }

    /// The state of the init (empty `exec_id`) or of an exec. Never waits.
    pub fn status(&self, exec_id: &str) -> Result<Status> {
        if exec_id.is_empty() {
            return Ok(self.status_of(&self.init));
        }
        let exec = self.find(exec_id)?;
        let mut status = self.status_of(&exec.process);
        if status.state == State::Running && self.init.state() == State::Paused {
            status.state = State::Paused;
        }
        Ok(status)
    }

    fn status_of(&self, process: &Process) -> Status {
        Status {
            id: process.id.clone(),
            bundle: self.bundle.path().display().to_string(),
            pid: process.pid(),
            state: process.state(),
            pausing: self.pausing.get() && process.state() == State::Running,
            stdio: process.stdio.clone(),
            exit: process.exit(),
        }
    }

    /// Waits for the end of the init or of an exec.
    pub async fn wait(&self, exec_id: &str) -> Result<Option<Exit>> {
        if exec_id.is_empty() {
            return Ok(self.init.wait().await);
        }
        let exec = self.find(exec_id)?;
        Ok(exec.process.wait().await)
    }

    /// Signals the init, with `all` everything in the container.
    pub async fn kill(self: &Rc<Self>, signal: u32, all: bool, cancel: &Cancel) -> Result<()> {
        step(self.init.state(), Op::Kill)?;
        if signal != SIGKILL && self.init.state() == State::Running {
            self.init.wait_for_its_program().await;
        }
        if signal == SIGKILL {
            self.sigkill_sent.set(true);
        }
        let killed = match all {
            true => self.kill_all(signal, cancel).await,
            false => self.init.signal(signal),
        };
        if signal == SIGKILL && (self.thaw().await || self.pausing.get()) {
            self.thaw_until_exit();
        }
        killed
    }

    /// Lets what was killed while frozen die: with cgroup v1 it cannot before. It is the
    /// kernel's freezer that counts: a pause may have failed half way, or others freeze too.
    /// Whether it was frozen.
    async fn thaw(&self) -> bool {
        let thawed = match self.cgroup() {
            Ok(cgroup) => cgroup.thaw(KILL_TIMEOUT).await,
            Err(error) => Err(error),
        };
        match thawed {
            Err(error) if self.init.state() == State::Paused => {
                log::warn!(id = self.init.id; "thaw the cgroup: {error}");
                let limit = Cancel::after(KILL_TIMEOUT);
                let thawed = self.runtime.resume(&self.init.id, &limit).await;
                log::debug!(id = self.init.id; "resume by the OCI runtime: {thawed:?}");
                true
            }
            thawed => thawed.unwrap_or_default(),
        }
    }

    /// Thaws it until its init, which was killed, is dead: who froze it may not be done.
    fn thaw_until_exit(self: &Rc<Self>) {
        let container = self.clone();
        local::spawn(async move {
            let deadline = Instant::now() + KILL_TIMEOUT;
            let mut pause = THAW_PAUSE;
            while timeout(pause, container.init.wait()).await.is_err() {
                if Instant::now() >= deadline {
                    return;
                }
                container.thaw().await;
                pause *= 2;
            }
        });
    }

    /// Signals an exec.
    pub async fn kill_exec(&self, exec_id: &str, signal: u32) -> Result<()> {
        let exec = self.find(exec_id)?;
        step_exec(exec.process.state(), ExecOp::Kill)?;
        if signal != SIGKILL {
            exec.process.wait_for_its_program().await;
        }
        exec.process.signal(signal)
    }

    async fn kill_all(&self, signal: u32, cancel: &Cancel) -> Result<()> {
        let alone = self.cgroup().and_then(|cgroup| {
            cgroup.check_alone()?;
            Ok(cgroup)
        });
        let cgroup = match alone {
            Ok(cgroup) => cgroup,
            Err(error) => {
                // The runtime would signal whoever is in the cgroup that it knows of.
                log::debug!(
                    id = self.init.id;
                    "send signal {signal} to each process of the container, not to its cgroup: {error}"
                );
                return self.signal_trees(signal);
            }
        };
        if signal == SIGKILL {
            match cgroup.kill(KILL_TIMEOUT).await {
                Ok(()) => return Ok(()),
                Err(error) => log::warn!(id = self.init.id; "kill all processes: {error}"),
            }
        }
        self.runtime.kill_all(&self.init.id, signal, cancel).await
    }

    /// Signals the init, the execs, and whom they have forked. The outcome is the init's.
    fn signal_trees(&self, signal: u32) -> Result<()> {
        let execs = self.execs.borrow();
        let known = execs.values().map(|exec| &exec.process);
        let known = known.chain([&self.init]).filter(|p| p.signal(0).is_ok());
        let pids: Vec<i32> = known.map(|process| process.pid() as i32).collect();
        let descendants = reaper::descendants(&pids);
        // Parents first: they are not to see their children die.
        let signalled = self.init.signal(signal);
        self.signal_execs(signal);
        for process in descendants {
            process.signal(signal as i32);
        }
        signalled
    }

    /// Signals the execs that run.
    fn signal_execs(&self, signal: u32) {
        for exec in self.execs.borrow().values() {
            // It may have ended.
            let _ = exec.process.signal(signal);
        }
    }

    /// Freezes the container.
    pub async fn pause(&self, cancel: &Cancel) -> Result<()> {
        let _pending = self.pending.register(cancel, pending::Kind::EndsWithInit);
        let _turn = cancel.unless(self.init.turn()).await?;
        step(self.init.state(), Op::Pause)?;
        self.pausing.set(true);
        let paused = self.runtime.pause(&self.init.id, cancel).await;
        self.pausing.set(false);
        if paused.is_err() && cancel.is_expired() {
            // It may have frozen the container before it was killed, and youki believes its
            // own record of that.
            let limit = Cancel::after(TURN_TIMEOUT);
            let resumed = self.runtime.resume(&self.init.id, &limit).await;
            log::debug!(id = self.init.id; "undo pause: {resumed:?}");
            self.thaw().await;
        }
        paused?;
        if let Err(refusal) = self.step(Op::Pause) {
            // It has ended meanwhile. Frozen it could not be deleted.
            self.thaw().await;
            return Err(refusal.into());
        }
        self.tell(Event::Paused {
            container_id: self.id(),
        });
        Ok(())
    }

    /// Thaws it.
    pub async fn resume(&self, cancel: &Cancel) -> Result<()> {
        let _pending = self.pending.register(cancel, pending::Kind::EndsWithInit);
        let _turn = cancel.unless(self.init.turn()).await?;
        step(self.init.state(), Op::Resume)?;
        self.runtime.resume(&self.init.id, cancel).await?;
        self.step(Op::Resume)?;
        self.tell(Event::Resumed {
            container_id: self.id(),
        });
        Ok(())
    }

    /// Applies OCI resources, as JSON.
    pub async fn update(&self, resources: &[u8], cancel: &Cancel) -> Result<()> {
        let _pending = self.pending.register(cancel, pending::Kind::EndsWithInit);
        let _turn = cancel.unless(self.init.turn()).await?;
        step(self.init.state(), Op::Update)?;
        self.runtime.update(&self.init.id, resources, cancel).await
    }

    /// Writes the container's state to an image. Without a work path CRIU works in
    /// the bundle.
    pub async fn checkpoint(&self, mut checkpoint: Checkpoint, cancel: &Cancel) -> Result<()> {
        // It may be what ends init, and goes on then.
        let _pending = self.pending.register(cancel, pending::Kind::OutlivesInit);
        let _turn = cancel.unless(self.init.turn()).await?;
        step(self.init.state(), Op::Checkpoint)?;
        let own_work = checkpoint.work_path.as_os_str().is_empty();
        if own_work {
            checkpoint.work_path = self.bundle.work().join("criu-work");
        }
        let work = checkpoint.work_path.clone();
        let make = move || fs::create_dir_all(&work).context(|| format!("make {}", work.display()));
        cancel.unless(blocking::run(make)).await???;
        let id = &self.init.id;
        let written = self.runtime.checkpoint(id, &checkpoint, cancel).await;
        if own_work {
            let work = checkpoint.work_path.clone();
            let remove =
                move || fs::remove_dir_all(&work).context(|| format!("remove {}", work.display()));
            let removed = cancel.unless(blocking::run(remove)).await;
            let removed = removed.map_err(Error::from).flatten().flatten();
            removed.unwrap_or_else(|e| log::warn!(id; "checkpoint: {e}"));
        }
        written?;
        self.tell(Event::Checkpointed {
            container_id: self.id(),
            checkpoint: checkpoint.image_path,
        });
        Ok(())
    }

    /// Sets the size of a process's terminal, in characters.
    pub fn resize(&self, exec_id: &str, width: u16, height: u16) -> Result<()> {
        if exec_id.is_empty() {
            step(self.init.state(), Op::Resize)?;
            return resize(&self.init, width, height);
        }
        let exec = self.find(exec_id)?;
        step_exec(exec.process.state(), ExecOp::Resize)?;
        resize(&exec.process, width, height)
    }

    /// Ends a process's stdin: its reader sees the end once all is read.
    pub fn close_stdin(&self, exec_id: &str) -> Result<()> {
        match exec_id {
            "" => self.init.close_stdin(),
            _ => self.find(exec_id)?.process.close_stdin(),
        }
        Ok(())
    }

    /// The init, the execs that run, and who else is in the container's cgroup. containerd
    /// takes an error or an empty list for a container that is lost: an init that has ended
    /// is still named, and what cannot be read is left out.
    pub fn pids(&self) -> Result<Vec<Member>> {
        let init = self.init.pid();
        if init == 0 {
            let message = format!("container {} has no processes", self.init.id);
            return Err(Error::unknown(message));
        }
        let execs = self.execs.borrow();
        let execs = execs.values().map(|exec| &exec.process);
        let mut members: BTreeMap<u32, Option<String>> = execs
            .filter(|exec| exec.is(exec.pid()))
            .map(|exec| (exec.pid(), Some(exec.id.clone())))
            .collect();
        members.entry(init).or_default();
        match self.cgroup().and_then(|cgroup| cgroup.pids()) {
            Ok(pids) => pids.into_iter().for_each(|pid| {
                members.entry(pid as u32).or_default();
            }),
            Err(error) => log::debug!(id = self.init.id; "list processes in the cgroup: {error}"),
        }
        let member = |(pid, exec_id)| Member { pid, exec_id };
        Ok(members.into_iter().map(member).collect())
    }

    /// What its cgroup used. For a client that asks again and again the files stay open a
    /// while; then they are looked for anew, as controllers may have come.
    pub fn stats(&self) -> Result<Stats> {
        let cgroup = self.cgroup()?;
        let before = self.stats_asked.replace(Some(Instant::now()));
        let again = before.is_some_and(|at| at.elapsed() < STATS_BURST);
        let bursts = &self.shared.stats_bursts;
        if again
            && Rc::strong_count(bursts) <= STATS_BURSTS
            && descriptors::suffice_for(STATS_FILES)
            && cgroup.keep_open()
        {
            let (cgroup, burst) = (Rc::downgrade(&cgroup), bursts.clone());
            local::spawn(async move {
                sleep(STATS_BURST).await;
                if let Some(cgroup) = cgroup.upgrade() {
                    cgroup.close();
                }
                drop(burst);
            });
        }
        cgroup.stats()
    }

    /// Its cgroup.
    fn cgroup(&self) -> Result<Rc<Cgroup>> {
        let gone = || Error::not_found("cgroup does not exist");
        self.cgroup.borrow().clone().ok_or_else(gone)
    }

    /// Its processes, their states and pids, for people: `Running pid 7; execs: …`.
    pub fn report(&self) -> String {
        let process = |p: &Process| format!("{:?} pid {}", p.state(), p.pid());
        let execs = self.execs.borrow();
        let exec = |(id, exec): (&String, &Rc<Exec>)| format!("{id} {}", process(&exec.process));
        let execs: Vec<String> = execs.iter().map(exec).collect();
        format!("{}; execs: {}", process(&self.init), execs.join("; "))
    }

    /// The init's pid.
    pub fn pid(&self) -> u32 {
        self.init.pid()
    }

    /// Deletes an init that has exited or was never started, with all that is left of the
    /// container. Once it is deleted, the answer stays the same.
    pub async fn delete(&self, cancel: &Cancel) -> Result<Deleted> {
        let _turn = self.turn_to_delete(cancel).await?;
        let _pending = self.pending.register(cancel, pending::Kind::Delete);
        if self.is_deleted() {
            return Ok(deleted(&self.init));
        }
        step(self.init.state(), Op::Delete)?;
        if self.init.state() == State::Created && self.init.pid() > 0 {
            // It has an exit too, and that is published before the deletion.
            self.sigkill_sent.set(true);
            let _ = self.init.signal(SIGKILL);
            let ended = timeout(KILL_TIMEOUT, self.init.wait()).await;
            ended.context(|| format!("wait for the exit of container {}", self.init.id))?;
        }
        if let Some(streams) = self.init.streams() {
            cancel.unless(streams.drained()).await?;
        }
        // The runtime takes a frozen cgroup for a paused container, though nobody is in it.
        self.thaw().await;
        if !self.runtime.delete(&self.init.id, cancel).await? {
            let removed = self.remove_planned_cgroup().await;
            removed.unwrap_or_else(|e| log::warn!(id = self.init.id; "delete: {e}"));
        }
        self.init.close_streams();
        for exec in std::mem::take(&mut *self.execs.borrow_mut()).into_values() {
            exec.process.give_up();
        }
        if self.mounted {
            let unmounted = cancel.unless(unmount_all(&self.bundle.rootfs())).await;
            let unmounted = unmounted.map_err(Error::from).flatten();
            unmounted.map_err(|e| e.within("failed rootfs umount"))?;
        }
        self.step(Op::Delete)?;
        let deleted = deleted(&self.init);
        self.tell(Event::Delete {
            container_id: self.id(),
            pid: deleted.pid,
            exit_status: deleted.exit.map_or(0, |exit| exit.status),
            exited_at: deleted.exit.map(|exit| exit.at),
        });
        Ok(deleted)
    }

    /// Waits for Delete's turn. A call before it that takes long is cut short.
    async fn turn_to_delete(&self, cancel: &Cancel) -> Result<MutexGuard<'_, ()>> {
        // What runs is not deleted, whatever else is under way.
        if !self.is_deleted() {
            step(self.init.state(), Op::Delete)?;
        }
        let turn = timeout(TURN_TIMEOUT, self.init.turn());
        if let Ok(turn) = cancel.unless(turn).await? {
            return Ok(turn);
        }
        self.pending.deleted();
        let turn = timeout(DELETE_TIMEOUT, self.init.turn());
        if let Ok(turn) = cancel.unless(turn).await? {
            return Ok(turn);
        }
        self.pending.deleted_again();
        Ok(cancel.unless(self.init.turn()).await?)
    }

    /// Whether it is deleted; its client may not know yet.
    pub fn is_deleted(&self) -> bool {
        self.init.state() == State::Deleted
    }

    /// Deletes an exec that has exited or was never started. Until
    /// [`Container::forget_exec`] another call answers the same.
    pub async fn delete_exec(&self, exec_id: &str, cancel: &Cancel) -> Result<Deleted> {
        let exec = self.find(exec_id)?;
        let _turn = self.turn_to_delete_exec(&exec, cancel).await?;
        if exec.process.state() == State::Deleted {
            return Ok(deleted(&exec.process));
        }
        step_exec(exec.process.state(), ExecOp::Delete)?;
        if let Some(streams) = exec.process.streams() {
            cancel.unless(streams.drained()).await?;
        }
        exec.process.close_streams();
        exec.step(ExecOp::Delete)?;
        exec.process.give_up();
        Ok(deleted(&exec.process))
    }

    /// Waits for the turn of an exec's Delete. A start that takes long is cut short.
    async fn turn_to_delete_exec<'a>(
        &self,
        exec: &'a Exec,
        cancel: &Cancel,
    ) -> Result<MutexGuard<'a, ()>> {
        let turn = timeout(TURN_TIMEOUT, exec.process.turn());
        if let Ok(turn) = cancel.unless(turn).await? {
            return Ok(turn);
        }
        if let Some(start) = &*exec.starting.borrow() {
            start.cancel(Cause::Deleted);
        }
        Ok(cancel.unless(exec.process.turn()).await?)
    }

    /// The client that deleted the exec has its answer: nobody will ask again.
    pub fn forget_exec(&self, exec_id: &str) {
        let mut execs = self.execs.borrow_mut();
        if let Some(exec) = execs.get(exec_id)
            && exec.process.state() == State::Deleted
        {
            execs.remove(exec_id);
        }
    }

    fn find(&self, exec_id: &str) -> Result<Rc<Exec>> {
        let execs = self.execs.borrow();
        let exec = execs.get(exec_id).cloned();
        exec.ok_or_else(|| Error::not_found(format!("process does not exist {exec_id}")))
    }
}

const SIGKILL: u32 = nix::sys::signal::Signal::SIGKILL as u32;
/// The status of what SIGKILL ended.
const KILLED: u32 = 128 + SIGKILL;

/// What asks for the cgroup of container `id`.
fn plan<'a>(id: &'a str, cgroups_path: &'a str, options: &'a Options) -> Plan<'a> {
    Plan {
        cgroups_path,
        id,
        systemd: options.systemd_cgroup,
        shim_cgroup: &options.shim_cgroup,
    }
}

/// Writes what the bundle is to hold, and reads `config.json`.
async fn prepare_bundle(create: &Create, cancel: &Cancel) -> Result<Spec> {
    let (bundle, options) = (create.bundle.clone(), create.options.clone());
    let makes_rootfs = !create.rootfs.is_empty();
    let prepare = move || {
        bundle.write_options(&options)?;
        if makes_rootfs {
            bundle.make_rootfs()?;
        }
        bundle.spec()
    };
    let prepared = cancel.unless(blocking::run(prepare)).await;
    let prepared = prepared.map_err(Error::from).flatten();
    prepared.unwrap_or_else(|error| {
        let bundle = create.bundle.path().display();
        Err(error.within(format_args!("prepare bundle {bundle}")))
    })
}

/// Mounts the rootfs, in a task of its own, as a mount that hangs cannot be cut short.
async fn mount_rootfs(
    shared: &Rc<Shared>,
    create: &Create,
    cancel: &Cancel,
    reserved: &Rc<Reserved>,
) -> Result<()> {
    let (rootfs, mounts) = (create.bundle.rootfs(), create.rootfs.clone());
    let (shared, target, limit) = (shared.clone(), rootfs.clone(), cancel.clone());
    let mount = async move { mount_all(mounts, &target, &shared.reaper, &limit).await };
    let mut mounting = local::spawn(mount);
    match cancel.unless(&mut mounting).await {
        Ok(mounted) => mounted.context(|| "mount the rootfs")?,
        Err(cause) => {
            let error = Error::from(cause).within(format_args!("mount {}", rootfs.display()));
            undo_mounts(Some(mounting), rootfs, reserved).await;
            Err(error)
        }
    }
}

/// Unmounts a rootfs, once `mounting` has ended. That goes on in a task of its own if it
/// takes longer than [`UNDO_TIMEOUT`], and the container's id stays taken until then.
async fn undo_mounts(
    mounting: Option<JoinHandle<Result<()>>>,
    rootfs: PathBuf,
    reserved: &Rc<Reserved>,
) {
    let (reserved, id) = (reserved.clone(), reserved.id.clone());
    let name = rootfs.display().to_string();
    let undoing = local::spawn(async move {
        if let Some(mounting) = mounting {
            // What it says nobody waits for any more.
            let _ = mounting.await;
        }
        if let Err(error) = unmount_all(&rootfs).await {
            log::error!(id = reserved.id; "undo create of container: {error}");
        }
        drop(reserved);
    });
    if timeout(UNDO_TIMEOUT, undoing).await.is_err() {
        log::error!(
            id;
            "undo create of container: unmount {name}: not done within {UNDO_TIMEOUT:?}, \
             continues in the background"
        );
    }
}

fn adopt(shared: &Shared, pid: i32) -> Result<(crate::reaper::Child, Exited)> {
    let adopted = shared.reaper.adopt(pid);
    adopted.context(|| format!("adopt process {pid} that the OCI runtime started"))
}

fn resize(process: &Process, width: u16, height: u16) -> Result<()> {
    match process.streams() {
        Some(streams) => streams.resize(width, height),
        None => Ok(()),
    }
}

fn deleted(process: &Process) -> Deleted {
    Deleted {
        pid: process.pid(),
        exit: process.exit(),
    }
}

/// The OCI process `spec` with its `terminal` set as the request says, and all else
/// as it came.
fn with_terminal(spec: &[u8], terminal: bool) -> Result<Vec<u8>> {
    let broken =
        |cause: serde_json::Error| Error::invalid(format!("read the exec's process spec: {cause}"));
    let mut process: BTreeMap<&str, &RawValue> = serde_json::from_slice(spec).map_err(broken)?;
    let terminal = serde_json::value::to_raw_value(&terminal).map_err(broken)?;
    process.insert("terminal", &terminal);
    serde_json::to_vec(&process).map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_terminal_wins_and_the_rest_is_kept() {
        let spec = br#"{"terminal":true,"args":["a"],"new":{"x":1.50}}"#;
        let json = with_terminal(spec, false).unwrap();
        let expected = r#"{"args":["a"],"new":{"x":1.50},"terminal":false}"#;
        assert_eq!(String::from_utf8(json).unwrap(), expected);
    }

    #[test]
    fn a_spec_that_is_no_json_is_an_invalid_argument() {
        for spec in [&b""[..], b"{", b"[1]", b"\xff", b"null"] {
            let error = with_terminal(spec, false).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        }
    }
}
