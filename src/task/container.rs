//! A container: its init, its execs, and what may be done with them when. State
//! changes and their events happen in one turn of the one thread, so no other
//! request and no exit comes between them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use super::exits::Exits;
use super::process::Process;
use super::state::{ExecOp, Op, Refusal, State, step, step_exec};
use super::{Shared, check_name};
use crate::bundle::Bundle;
use crate::cgroup::{Cgroup, Stats};
use crate::error::{Context, Error, Kind, Result};
use crate::events::Event;
use crate::mount::{Mount, mount_all, unmount_all};
use crate::oom::OomWatch;
use crate::options::Options;
use crate::reaper::{Exit, Exited};
use crate::runtime::{Checkpoint, Restore, Runtime};
use crate::stdio::{self, Opened, Stdio};

/// How long to wait for what was killed to be reaped, or for the runtime to kill
/// what a dead init left: neither may hold up an exit or a Delete for good.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the files of statistics stay open for a client that asks more often than that.
const STATS_BURST: Duration = Duration::from_secs(1);

/// Of how many containers at a time: each has about thirty files, and the server no more
/// than 1024 descriptors where containerd has raised no limit.
const STATS_BURSTS: usize = 8;

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
}

impl Exec {
    /// What happens to it changes its state, by the grid.
    fn step(&self, op: ExecOp) -> std::result::Result<(), Refusal> {
        self.process.set_state(step_exec(self.process.state(), op)?);
        Ok(())
    }
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
    checkpoint: Option<String>,
    cgroup: RefCell<Option<Rc<Cgroup>>>,
    stats_asked: Cell<Option<Instant>>,
    oom: RefCell<Option<OomWatch>>,
    init: Process,
    execs: RefCell<BTreeMap<String, Rc<Exec>>>,
    exits: RefCell<Exits<Exit>>,
    pausing: Cell<bool>,
    /// A client had its init killed: its end by SIGKILL tells nothing of memory.
    sigkill_sent: Cell<bool>,
}

impl Container {
    /// Makes a container. When that fails everything is undone and nothing told.
    pub async fn create(shared: Rc<Shared>, create: Create) -> Result<Rc<Container>> {
        let mounted = !create.rootfs.is_empty();
        let rootfs = create.bundle.rootfs();
        create.bundle.write_options(&create.options)?;
        if mounted {
            create.bundle.make_rootfs()?;
            mount_all(create.rootfs.clone(), &rootfs, &shared.reaper).await?;
        }
        let bundle = create.bundle.clone();
        let made = Self::make(shared, create, mounted).await;
        if made.is_err() && mounted {
            let undone = unmount_all(&rootfs).await;
            undone
                .unwrap_or_else(|e| log::error!("undo create in {}: {e}", bundle.path().display()));
        }
        made
    }

    /// The part of [`Container::create`] between the mounts and the telling.
    async fn make(shared: Rc<Shared>, create: Create, mounted: bool) -> Result<Rc<Container>> {
        let shares_pids = !create.bundle.spec()?.has_private_pid_namespace();
        let container = Rc::new(Container {
            runtime: Runtime::new(
                shared.reaper.clone(),
                &create.options,
                &shared.namespace,
                create.bundle.path(),
            ),
            shared,
            mounted,
            shares_pids,
            bundle: create.bundle,
            options: create.options,
            checkpoint: create.checkpoint,
            cgroup: RefCell::default(),
            stats_asked: Cell::default(),
            oom: RefCell::default(),
            init: Process::new(create.id, create.stdio),
            execs: RefCell::default(),
            exits: RefCell::default(),
            pausing: Cell::default(),
            sigkill_sent: Cell::default(),
        });
        // A checkpoint is restored, and so has a process, at its start.
        let exited = match &container.checkpoint {
            None => Some(container.begin().await?),
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
    async fn begin(&self) -> Result<Exited> {
        let _learning = self.shared.reaper.learning();
        let owner = self
            .shared
            .owner(&self.init.id, &self.bundle, &self.options);
        let io = stdio::open(&self.init.stdio, &owner).await?;
        let begun = self.begin_with(io).await;
        if begun.is_err() && self.runtime.state_dir(&self.init.id).exists() {
            let undone = self.runtime.kill_and_delete(&self.init.id).await;
            undone.unwrap_or_else(|e| log::error!("undo create of {}: {e}", self.init.id));
        }
        begun
    }

    async fn begin_with(&self, mut io: Opened) -> Result<Exited> {
        let pid_file = self.bundle.init_pid_file();
        let id = &self.init.id;
        let pid = match &self.checkpoint {
            None => self.runtime.create(id, &pid_file, &mut io).await?,
            Some(image) => self.restore(image, &pid_file, &mut io).await?,
        };
        let streams = io.start_outputs().await?;
        if self.checkpoint.is_some() {
            // It runs already.
            streams.open_stdin()?;
        }
        let (child, exited) = adopt(&self.shared, pid)?;
        self.init.began(child, streams);
        self.cgroup.replace(
            Cgroup::of(pid)
                .inspect_err(|e| log::warn!("find the cgroup of {}: {e}", self.init.id))
                .ok()
                .map(Rc::new),
        );
        Ok(exited)
    }

    async fn restore(&self, image: &str, pid_file: &Path, io: &mut Opened) -> Result<i32> {
        let work = match self.options.criu_work_path.as_str() {
            "" => self.bundle.work(),
            path => PathBuf::from(path),
        };
        let restore = Restore {
            image_path: image,
            work_path: &work,
            pid_file,
        };
        self.runtime.restore(&self.init.id, &restore, io).await
    }

    /// Watches the init, which has begun, for its end and its cgroup for OOM.
    fn watch(self: &Rc<Self>, exited: Exited) {
        self.watch_cgroup();
        let container = self.clone();
        spawn_local(async move {
            let exit = exited.await;
            container.init_exited(exit).await;
        });
    }

    fn watch_cgroup(self: &Rc<Self>) {
        let Ok(cgroup) = self.cgroup() else { return };
        if let Err(error) = cgroup.enable_controllers() {
            log::warn!("enable the controllers for {}: {error}", self.init.id);
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
            Err(error) => log::warn!("watch {} for OOM: {error}", self.init.id),
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
        self.shared.events.publish(event);
    }

    /// What happens to the init changes its state, by the grid.
    fn step(&self, op: Op) -> std::result::Result<(), Refusal> {
        self.init.set_state(step(self.init.state(), op)?);
        Ok(())
    }

    /// Starts the init. Answers its pid.
    pub async fn start(self: &Rc<Self>) -> Result<u32> {
        let _turn = self.init.turn().await;
        step(self.init.state(), Op::Start)?;
        // An exit during the start is told after it.
        self.exits.borrow_mut().hold();
        let started = self.start_init().await;
        if started.is_ok() {
            // Still created: an exit is held back, and this is the init's turn.
            let _ = self.step(Op::Start);
            self.tell(Event::Start {
                container_id: self.id(),
                pid: self.init.pid(),
            });
        }
        self.release();
        started.map(|()| self.init.pid())
    }

    async fn start_init(self: &Rc<Self>) -> Result<()> {
        if self.checkpoint.is_none() {
            self.init.open_stdin()?;
            return self.runtime.start(&self.init.id).await;
        }
        let exited = self.begin().await?;
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
        if execs.contains_key(&exec_id) {
            let message = format!("id {exec_id}: already exists");
            return Err(Error::new(Kind::AlreadyExists, message));
        }
        let process = Process::new(exec_id.clone(), stdio);
        execs.insert(exec_id.clone(), Rc::new(Exec { process, spec }));
        self.tell(Event::ExecAdded {
            container_id: self.id(),
            exec_id,
        });
        Ok(())
    }

    /// Starts an exec. Answers its pid.
    pub async fn start_exec(self: &Rc<Self>, exec_id: &str) -> Result<u32> {
        let exec = self.find(exec_id)?;
        let _turn = exec.process.turn().await;
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
        match self.launch(&exec).await {
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

    async fn launch(&self, exec: &Exec) -> Result<Exited> {
        let owner = self
            .shared
            .owner(&self.init.id, &self.bundle, &self.options);
        let mut io = stdio::open(&exec.process.stdio, &owner).await?;
        let pid = self
            .runtime
            .exec(&self.init.id, &exec.spec, &mut io)
            .await?;
        let (child, exited) = adopt(&self.shared, pid)?;
        match io.start().await {
            Ok(streams) => {
                exec.process.began(child, streams);
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
        self.tell(Event::ExecStarted {
            container_id: self.id(),
            exec_id: exec.process.id.clone(),
            pid,
        });
        let container = self.clone();
        spawn_local(async move {
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
        if self.init.state() == State::Paused {
            self.thaw().await;
        }
        if self.shares_pids {
            // The kernel ends a pid namespace with its init, but here it has none.
            let killed = timeout(KILL_TIMEOUT, self.kill_all(SIGKILL)).await;
            log::debug!("kill what is left of {}: {killed:?}", self.init.id);
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
    pub async fn kill(&self, signal: u32, all: bool) -> Result<()> {
        step(self.init.state(), Op::Kill)?;
        if signal == SIGKILL {
            self.sigkill_sent.set(true);
        }
        if all {
            self.kill_all(signal).await?;
        } else {
            self.init.signal(signal)?;
        }
        if signal == SIGKILL && self.init.state() == State::Paused {
            self.thaw().await;
        }
        Ok(())
    }

    /// Lets what was killed while frozen die: with cgroup v1 it cannot before.
    async fn thaw(&self) {
        let thawed = timeout(KILL_TIMEOUT, self.runtime.resume(&self.init.id)).await;
        log::debug!("thaw {} after a kill: {thawed:?}", self.init.id);
    }

    /// Signals an exec.
    pub fn kill_exec(&self, exec_id: &str, signal: u32) -> Result<()> {
        let exec = self.find(exec_id)?;
        step_exec(exec.process.state(), ExecOp::Kill)?;
        exec.process.signal(signal)
    }

    async fn kill_all(&self, signal: u32) -> Result<()> {
        if let (SIGKILL, Ok(cgroup)) = (signal, self.cgroup())
            && cgroup.kill()?
        {
            return Ok(());
        }
        self.runtime.kill_all(&self.init.id, signal).await
    }

    /// Freezes the container.
    pub async fn pause(&self) -> Result<()> {
        let _turn = self.init.turn().await;
        step(self.init.state(), Op::Pause)?;
        self.pausing.set(true);
        let paused = self.runtime.pause(&self.init.id).await;
        self.pausing.set(false);
        paused?;
        // It may have ended meanwhile: then it is stopped, not paused.
        self.step(Op::Pause)?;
        self.tell(Event::Paused {
            container_id: self.id(),
        });
        Ok(())
    }

    /// Thaws it.
    pub async fn resume(&self) -> Result<()> {
        let _turn = self.init.turn().await;
        step(self.init.state(), Op::Resume)?;
        self.runtime.resume(&self.init.id).await?;
        self.step(Op::Resume)?;
        self.tell(Event::Resumed {
            container_id: self.id(),
        });
        Ok(())
    }

    /// Applies OCI resources, as JSON.
    pub async fn update(&self, resources: &[u8]) -> Result<()> {
        let _turn = self.init.turn().await;
        step(self.init.state(), Op::Update)?;
        self.runtime.update(&self.init.id, resources).await
    }

    /// Writes the container's state to an image. Without a work path CRIU works in
    /// the bundle.
    pub async fn checkpoint(&self, mut checkpoint: Checkpoint) -> Result<()> {
        let _turn = self.init.turn().await;
        step(self.init.state(), Op::Checkpoint)?;
        let own_work = checkpoint.work_path.as_os_str().is_empty();
        if own_work {
            checkpoint.work_path = self.bundle.work().join("criu-work");
        }
        let work = &checkpoint.work_path;
        std::fs::create_dir_all(work).context(|| format!("make {}", work.display()))?;
        let written = self.runtime.checkpoint(&self.init.id, &checkpoint).await;
        if own_work {
            let removed = std::fs::remove_dir_all(work);
            removed.unwrap_or_else(|e| log::warn!("remove {}: {e}", work.display()));
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

    /// Every process in the container.
    pub fn pids(&self) -> Result<Vec<Member>> {
        let nothing = || {
            // An empty list means to containerd that the container is lost.
            Error::unknown(format!("container {} has no processes", self.init.id))
        };
        let pids = self.cgroup().map_err(|_| nothing())?.pids();
        let pids = pids.map_err(|e| e.within(format!("list the processes of {}", self.init.id)))?;
        if pids.is_empty() {
            return Err(nothing());
        }
        let execs = self.execs.borrow();
        let exec_of = |pid: u32| {
            let exec = execs.values().find(|exec| exec.process.is(pid))?;
            Some(exec.process.id.clone())
        };
        let member = |pid: i32| Member {
            pid: pid as u32,
            exec_id: exec_of(pid as u32),
        };
        Ok(pids.into_iter().map(member).collect())
    }

    /// What its cgroup used. For a client that asks again and again the files stay open a
    /// while; then they are looked for anew, as controllers may have come.
    pub fn stats(&self) -> Result<Stats> {
        let cgroup = self.cgroup()?;
        let before = self.stats_asked.replace(Some(Instant::now()));
        let again = before.is_some_and(|at| at.elapsed() < STATS_BURST);
        let bursts = &self.shared.stats_bursts;
        if again && Rc::strong_count(bursts) <= STATS_BURSTS && cgroup.keep_open() {
            let (cgroup, burst) = (Rc::downgrade(&cgroup), bursts.clone());
            spawn_local(async move {
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

    /// The init's pid.
    pub fn pid(&self) -> u32 {
        self.init.pid()
    }

    /// Forgets an init that ended or never started, with all that is left of the
    /// container.
    pub async fn delete(&self) -> Result<Deleted> {
        let _turn = self.init.turn().await;
        step(self.init.state(), Op::Delete)?;
        if self.init.state() == State::Created && self.init.pid() > 0 {
            // It has an exit too, and that is told before the deletion.
            self.sigkill_sent.set(true);
            let _ = self.init.signal(SIGKILL);
            let ended = timeout(KILL_TIMEOUT, self.init.wait()).await;
            ended.context(|| format!("wait for the end of {}", self.init.id))?;
        }
        if let Some(streams) = self.init.streams() {
            streams.drained().await;
        }
        self.runtime.delete(&self.init.id).await?;
        self.init.close_streams();
        for exec in std::mem::take(&mut *self.execs.borrow_mut()).into_values() {
            exec.process.give_up();
        }
        if self.mounted {
            let unmounted = unmount_all(&self.bundle.rootfs()).await;
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

    /// Forgets an exec that ended or never started.
    pub async fn delete_exec(&self, exec_id: &str) -> Result<Deleted> {
        let exec = self.find(exec_id)?;
        let _turn = exec.process.turn().await;
        step_exec(exec.process.state(), ExecOp::Delete)?;
        if let Some(streams) = exec.process.streams() {
            streams.drained().await;
        }
        exec.process.close_streams();
        exec.step(ExecOp::Delete)?;
        exec.process.give_up();
        self.execs.borrow_mut().remove(exec_id);
        Ok(deleted(&exec.process))
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

fn adopt(shared: &Shared, pid: i32) -> Result<(crate::reaper::Child, Exited)> {
    let adopted = shared.reaper.adopt(pid);
    adopted.context(|| format!("take charge of process {pid} that the OCI runtime made"))
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
