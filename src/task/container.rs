//! A container: its processes, and what is asked of it as a whole. Its parts are in files of
//! their own: [`super::create`], [`super::execs`], [`super::exit`], [`super::signals`],
//! [`super::accounting`].
//!
//! Promises: a state change and its event happen in one turn of the one thread, so that no
//! other request and no exit comes between them. All that outlives a request is in fields;
//! the tasks that watch for an exit or for OOM can be started again from these.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::rc::Rc;
use std::time::Duration;

use super::Shared;
use super::accounting::Accounting;
use super::create::Create;
use super::exits::Exits;
use super::process::{Process, Role, Target};
use super::state::{ContainerOp, Op, Refusal, State, step_container};
use super::turn::{Calls, Kind};
use crate::blocking;
use crate::bundle::{Bundle, Spec};
use crate::cancel::Cancel;
use crate::error::{Context, Error, Result};
use crate::events::Event;
use crate::mount::unmount_all;
use crate::options::Options;
use crate::reaper::Exit;
use crate::report;
use crate::runtime::{Checkpoint, Runtime};
use crate::stdio::Stdio;

/// How long an exit or a Delete waits for killed processes to be reaped, or for the runtime to
/// kill the remaining processes.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the OCI runtime may take to resume a container whose Pause was cut short.
const UNDO_PAUSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What State answers.
pub struct Status {
    /// The process's ID: the container's for an init.
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
    /// How it exited, if it did.
    pub exit: Option<Exit>,
}

/// What Delete answers.
pub struct Deleted {
    /// The pid it had; 0 if it had none.
    pub pid: u32,
    /// How it exited; `None` if it never ran.
    pub exit: Option<Exit>,
}

/// A container that the OCI runtime has created.
pub struct Container {
    pub(super) shared: Rc<Shared>,
    pub(super) bundle: Bundle,
    pub(super) options: Options,
    pub(super) runtime: Runtime,
    /// The shim mounted the rootfs, so it unmounts it.
    pub(super) rootfs_is_mounted: bool,
    /// Its init does not have a pid namespace of its own.
    pub(super) shares_pids: bool,
    /// The cgroup that `config.json` asks for.
    pub(super) cgroups_path: String,
    /// The image of the checkpoint that it is restored from.
    pub(super) checkpoint: Option<String>,
    pub(super) accounting: Accounting,
    pub(super) init: Rc<Process>,
    /// By exec ID.
    pub(super) execs: RefCell<BTreeMap<String, Rc<Process>>>,
    pub(super) exits: RefCell<Exits>,
    pub(super) calls: Calls,
    pub(super) pausing: Cell<bool>,
    /// A client had the init killed: that SIGKILL ended it does not hint at OOM.
    pub(super) sigkill_sent: Cell<bool>,
}

impl Container {
    /// A container that the OCI runtime is still to create.
    pub(super) fn new(shared: Rc<Shared>, create: &Create, spec: Spec) -> Container {
        let reaper = shared.reaper.clone();
        let (options, bundle) = (&create.options, &create.bundle);
        Container {
            runtime: Runtime::new(reaper, options, &shared.namespace, bundle.path()),
            shared,
            rootfs_is_mounted: !create.rootfs.is_empty(),
            shares_pids: !spec.has_private_pid_namespace(),
            cgroups_path: spec.linux.cgroups_path,
            bundle: bundle.clone(),
            options: options.clone(),
            checkpoint: create.checkpoint.clone(),
            accounting: Accounting::default(),
            init: Process::new(create.id.clone(), Role::Init, create.stdio.clone()),
            execs: RefCell::default(),
            exits: RefCell::default(),
            calls: Calls::default(),
            pausing: Cell::default(),
            sigkill_sent: Cell::default(),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.init.id
    }

    /// The process that `target` means.
    pub(super) fn process(&self, target: Target<'_>) -> Result<Rc<Process>> {
        let Target::Exec(exec_id) = target else {
            return Ok(self.init.clone());
        };
        let exec = self.execs.borrow().get(exec_id).cloned();
        exec.ok_or_else(|| Error::not_found(format!("process does not exist {exec_id}")))
    }

    pub(super) fn publish(&self, event: Event) {
        self.log(&event);
        self.shared.events.publish(event);
    }

    /// The log's line about `event`; exits are logged by [`Container::publish_exit`].
    fn log(&self, event: &Event) {
        let id = self.id();
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

    /// An error if the init's state does not allow `op`.
    pub(super) fn check(&self, op: ContainerOp) -> std::result::Result<(), Refusal> {
        step_container(self.init.state(), op).map(drop)
    }

    /// `op` changes the init's state, or is refused.
    fn step(&self, op: ContainerOp) -> std::result::Result<(), Refusal> {
        self.init.set_state(step_container(self.init.state(), op)?);
        Ok(())
    }

    /// Starts a process. Answers its pid.
    pub async fn start(self: &Rc<Self>, target: Target<'_>, cancel: &Cancel) -> Result<u32> {
        let process = self.process(target)?;
        match process.role {
            Role::Init => self.start_init(cancel).await,
            Role::Exec { .. } => self.start_exec(process, cancel).await,
        }
    }

    async fn start_init(self: &Rc<Self>, cancel: &Cancel) -> Result<u32> {
        let init = &self.init;
        let _turn = self.calls.turn(init, Kind::EndsWithInit, cancel).await?;
        init.check(Op::Start)?;
        if self.exits.borrow().init_has_exited() {
            // Its exit is about to be published.
            super::state::step_init(State::Stopped, Op::Start)?;
        }
        // An exit during the start is published after it.
        self.exits.borrow_mut().hold();
        let started = match self.checkpoint {
            None => self.run_created_init(cancel).await,
            Some(_) => self.restore_init(cancel).await,
        };
        // A runtime that was killed may have started it before.
        if started.is_ok() || init.runs_its_program() {
            // Still created: an exit is held back, and this is the init's turn.
            let _ = init.step(Op::Start);
            init.started();
            self.publish(Event::Start {
                container_id: self.id().to_owned(),
                pid: init.pid(),
            });
        }
        self.release_init_exit();
        started.map(|()| init.pid())
    }

    async fn run_created_init(&self, cancel: &Cancel) -> Result<()> {
        self.init.open_stdin()?;
        self.runtime.start(self.id(), cancel).await
    }

    async fn restore_init(self: &Rc<Self>, cancel: &Cancel) -> Result<()> {
        // Boxed: restores are rare, and each Start's future would include this.
        Box::pin(self.create_init(cancel)).await?;
        self.watch_init();
        Ok(())
    }

    /// The state of a process. Never waits.
    pub fn status(&self, target: Target<'_>) -> Result<Status> {
        let process = self.process(target)?;
        let is_paused = self.init.state() == State::Paused;
        let state = match process.state() {
            State::Running if is_paused => State::Paused,
            state => state,
        };
        Ok(Status {
            id: process.id.clone(),
            bundle: self.bundle.path().display().to_string(),
            pid: process.pid(),
            state,
            pausing: self.pausing.get() && state == State::Running,
            stdio: process.stdio.clone(),
            exit: process.exit(),
        })
    }

    /// Waits for the exit of a process.
    pub async fn wait(&self, target: Target<'_>) -> Result<Option<Exit>> {
        Ok(self.process(target)?.wait().await)
    }

    /// Sets the size of a process's terminal, in characters.
    pub fn resize(&self, target: Target<'_>, width: u16, height: u16) -> Result<()> {
        let process = self.process(target)?;
        process.check(Op::Resize)?;
        match process.streams() {
            Some(streams) => streams.resize(width, height),
            None => Ok(()),
        }
    }

    /// Ends a process's stdin: its reader sees the end once all is read.
    pub fn close_stdin(&self, target: Target<'_>) -> Result<()> {
        self.process(target)?.close_stdin();
        Ok(())
    }

    /// Freezes the container.
    pub async fn pause(&self, cancel: &Cancel) -> Result<()> {
        let turn = self.calls.turn(&self.init, Kind::EndsWithInit, cancel);
        let _turn = turn.await?;
        self.check(ContainerOp::Pause)?;
        self.pausing.set(true);
        let paused = self.runtime.pause(self.id(), cancel).await;
        self.pausing.set(false);
        if paused.is_err() && cancel.is_expired() {
            // It may have frozen the container before it was killed, and youki believes its
            // own record of that.
            let limit = Cancel::after(UNDO_PAUSE_TIMEOUT);
            let resumed = self.runtime.resume(self.id(), &limit).await;
            log::debug!(id = self.id(); "undo pause: {resumed:?}");
            self.thaw().await;
        }
        paused?;
        if let Err(refusal) = self.step(ContainerOp::Pause) {
            // It has exited meanwhile. A frozen one could not be deleted.
            self.thaw().await;
            return Err(refusal.into());
        }
        self.publish(Event::Paused {
            container_id: self.id().to_owned(),
        });
        Ok(())
    }

    /// Thaws it.
    pub async fn resume(&self, cancel: &Cancel) -> Result<()> {
        let turn = self.calls.turn(&self.init, Kind::EndsWithInit, cancel);
        let _turn = turn.await?;
        self.check(ContainerOp::Resume)?;
        self.runtime.resume(self.id(), cancel).await?;
        self.step(ContainerOp::Resume)?;
        self.publish(Event::Resumed {
            container_id: self.id().to_owned(),
        });
        Ok(())
    }

    /// Applies OCI resources, as JSON.
    pub async fn update(&self, resources: &[u8], cancel: &Cancel) -> Result<()> {
        let turn = self.calls.turn(&self.init, Kind::EndsWithInit, cancel);
        let _turn = turn.await?;
        self.check(ContainerOp::Update)?;
        self.runtime.update(self.id(), resources, cancel).await
    }

    /// Writes the container's state to an image. Without a work path CRIU works in
    /// the bundle.
    pub async fn checkpoint(&self, mut checkpoint: Checkpoint, cancel: &Cancel) -> Result<()> {
        let turn = self.calls.turn(&self.init, Kind::OutlivesInit, cancel);
        let _turn = turn.await?;
        self.check(ContainerOp::Checkpoint)?;
        let own_work = checkpoint.work_path.as_os_str().is_empty();
        if own_work {
            checkpoint.work_path = self.bundle.work().join("criu-work");
        }
        let work = checkpoint.work_path.clone();
        let make = move || fs::create_dir_all(&work).context(|| format!("make {}", work.display()));
        cancel.unless(blocking::run(make)).await???;
        let id = self.id();
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
        self.publish(Event::Checkpointed {
            container_id: id.to_owned(),
            checkpoint: checkpoint.image_path,
        });
        Ok(())
    }

    /// Deletes a process that has exited or was never started; with an init all that is left
    /// of the container. Until [`Container::forget_exec`] or [`super::Tasks::forget`] another
    /// call answers the same.
    pub async fn delete(&self, target: Target<'_>, cancel: &Cancel) -> Result<Deleted> {
        let process = self.process(target)?;
        if process.state() != State::Deleted {
            // What runs is not deleted, whatever else is under way.
            process.check(Op::Delete)?;
        }
        let _turn = self.calls.turn(&process, Kind::Delete, cancel).await?;
        if process.state() != State::Deleted {
            process.check(Op::Delete)?;
            match process.role {
                Role::Init => self.delete_init(cancel).await?,
                Role::Exec { .. } => self.delete_exec(&process, cancel).await?,
            }
        }
        Ok(Deleted {
            pid: process.pid(),
            exit: process.exit(),
        })
    }

    async fn delete_init(&self, cancel: &Cancel) -> Result<()> {
        let init = &self.init;
        if init.state() == State::Created && init.pid() > 0 {
            self.kill_created_init().await?;
        }
        if let Some(streams) = init.streams() {
            cancel.unless(streams.drained()).await?;
        }
        // The runtime takes a frozen cgroup for a paused container, even if it is empty.
        self.thaw().await;
        self.remove_cgroups_below().await;
        if !self.runtime.delete(self.id(), cancel).await? {
            let removed = self.remove_planned_cgroup().await;
            removed.unwrap_or_else(|e| log::warn!(id = self.id(); "delete: {e}"));
        }
        init.close_streams();
        for exec in std::mem::take(&mut *self.execs.borrow_mut()).into_values() {
            exec.release_waiters();
        }
        if self.rootfs_is_mounted {
            let unmounted = cancel.unless(unmount_all(&self.bundle.rootfs())).await;
            let unmounted = unmounted.map_err(Error::from).flatten();
            unmounted.map_err(|e| e.within("failed rootfs umount"))?;
        }
        init.step(Op::Delete)?;
        let exit = init.exit();
        self.publish(Event::Delete {
            container_id: self.id().to_owned(),
            pid: init.pid(),
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| exit.at),
        });
        Ok(())
    }

    /// Whether it is deleted; its client may not know yet.
    pub fn is_deleted(&self) -> bool {
        self.init.state() == State::Deleted
    }

    /// The init's pid.
    pub fn pid(&self) -> u32 {
        self.init.pid()
    }

    /// Its processes, their states and pids, for people: `Running pid 7; execs: …`.
    pub fn report(&self) -> report::Container {
        let process = |process: &Process| report::Process {
            id: process.id.clone(),
            state: format!("{:?}", process.state()).to_lowercase(),
            pid: process.pid(),
        };
        report::Container {
            init: process(&self.init),
            bundle: self.bundle.path().display().to_string(),
            runtime: self.runtime.binary().to_owned(),
            execs: self
                .execs
                .borrow()
                .values()
                .map(|exec| process(exec))
                .collect(),
        }
    }
}
