//! A pod without a pause container: what containerd's CRI plugin leaves to the shim with
//! `sandboxer = "shim"`. A server has one sandbox at most.
//!
//! Promises: a start that fails or is cut short leaves nothing. After a stop no namespace is
//! held. All that a server that dies may leave is in the [`Record`], before it is made.
//!
//! Lacks on purpose: what CRI keeps for itself, the network above all.

mod config;
mod files;
mod holder;
mod record;
mod state;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, Notify};
use tokio::time::timeout;

pub use config::{Config, Dns, Metadata, Mode};
pub use record::{Member, Record};
pub use state::State;

use crate::blocking;
use crate::bundle::Bundle;
use crate::cancel::{self, Cancel, Cause};
use crate::error::{Error, Result};
use crate::local;
use crate::options::Options;
use crate::reaper::{Exit, Exited, Reaper};
use holder::Holder;
use record::Init;
use state::{Op, Refusal, step};

/// The name of containerd's directory for bundles of sandboxes.
const BUNDLES: &str = "io.containerd.sandbox.controller.v1.shim";

/// How long making or removing the files, or writing the record, may take: a file system may hang.
const FILES_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a pod's init that was killed may take to exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether `bundle` is a sandbox's: containerd made it for a sandbox, without a `config.json`.
pub fn is_sandbox(bundle: &Bundle) -> bool {
    let kind = bundle
        .path()
        .ancestors()
        .nth(2)
        .and_then(|dir| dir.file_name());
    kind.is_some_and(|kind| kind == BUNDLES) && !bundle.path().join("config.json").exists()
}

/// A sandbox, or the place of one that is to be created.
pub struct Sandbox {
    id: String,
    bundle: Bundle,
    reaper: Reaper,
    /// The options of its runtime handler.
    options: Options,
    state: Cell<State>,
    config: RefCell<Rc<Config>>,
    holder: RefCell<Option<Holder>>,
    created_at: Cell<Option<SystemTime>>,
    exit: Cell<Option<Exit>>,
    /// Of the pod's init.
    init_exit: Cell<Option<Exit>>,
    /// Notified of each change of the state, and of the init's exit.
    changed: Notify,
    /// The start that is under way; Stop and Shutdown cut it short.
    starting: RefCell<Option<Cancel>>,
    /// One lifecycle call at a time.
    turn: Mutex<()>,
    record: RefCell<Record>,
    /// One writer of the record at a time.
    writing: Mutex<()>,
}

/// What is known of a sandbox.
pub struct Status {
    /// Where it is in its life.
    pub state: State,
    /// A number whose `/proc/NUMBER/ns` has its namespaces; 0 when it has none.
    pub pid: u32,
    /// When it was started.
    pub created_at: Option<SystemTime>,
    /// How it ended, if it did.
    pub exit: Option<Exit>,
    /// Its configuration.
    pub config: Rc<Config>,
}

impl Sandbox {
    /// The place of sandbox `id`, whose bundle is `bundle`.
    pub fn new(id: &str, bundle: Bundle, reaper: Reaper) -> Sandbox {
        let options = bundle.options().unwrap_or_else(|error| {
            log::error!(id; "options of the sandbox: {error}");
            Options::default()
        });
        Sandbox {
            id: id.to_owned(),
            bundle,
            reaper,
            options,
            state: Cell::new(State::Absent),
            config: RefCell::default(),
            holder: RefCell::default(),
            created_at: Cell::default(),
            exit: Cell::default(),
            init_exit: Cell::default(),
            changed: Notify::new(),
            starting: RefCell::default(),
            turn: Mutex::new(()),
            record: RefCell::default(),
            writing: Mutex::new(()),
        }
    }

    /// Its ID.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// An error unless `id` is this sandbox's, and it was created.
    pub fn check_id(&self, id: &str) -> Result<()> {
        match id == self.id && self.state.get() != State::Absent {
            true => Ok(()),
            false => Err(Error::not_found(format!("sandbox {id}"))),
        }
    }

    /// Whether there is a sandbox that was not shut down.
    pub fn exists(&self) -> bool {
        !matches!(self.state.get(), State::Absent | State::Ended)
    }

    /// What is known of it.
    pub fn status(&self) -> Status {
        let holder = self.holder.borrow();
        Status {
            state: self.state.get(),
            pid: holder.as_ref().map_or(0, Holder::pid),
            created_at: self.created_at.get(),
            exit: self.exit.get(),
            config: self.config.borrow().clone(),
        }
    }

    /// Takes its configuration. Nothing is made yet.
    pub async fn create(&self, id: &str, config: Config) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.may(Op::Create)?;
        if id != self.id {
            let message = format!("create sandbox {id}: this is the server of {}", self.id);
            return Err(Error::invalid(message));
        }
        config.check()?;
        self.config.replace(Rc::new(config));
        self.change(Op::Create)
    }

    /// Makes its namespaces and files. Answers when it is done.
    pub async fn start(self: &Rc<Self>, cancel: &Cancel) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.may(Op::Start)?;
        self.starting.replace(Some(cancel.clone()));
        let made = self.make(cancel).await;
        self.starting.replace(None);
        let (holder, exited) = match made {
            Ok(made) => made,
            Err(error) => {
                let undone = self.remove_files().await;
                undone.unwrap_or_else(|e| log::error!(id = self.id; "undo start of sandbox: {e}"));
                return Err(error.within(format_args!("start sandbox {}", self.id)));
            }
        };
        self.holder.replace(Some(holder));
        self.created_at.set(Some(SystemTime::now()));
        self.change(Op::Start)?;
        if let Some(exited) = exited {
            local::spawn(self.clone().watch(exited));
        }
        log::info!(pid = self.status().pid, id = self.id; "sandbox started");
        Ok(())
    }

    /// Only the namespaces can be cut short: what makes files goes on, and undoing would race
    /// with it.
    async fn make(&self, cancel: &Cancel) -> Result<(Holder, Option<Exited>)> {
        let (bundle, id) = (self.bundle.clone(), self.id.clone());
        let config = self.config.borrow().clone();
        let dirs = bounded(blocking::run(move || files::Dirs::of(&bundle, &id))).await?;
        self.record.borrow_mut().dirs = dirs;
        self.write_record().await?;
        self.make_files(&config).await?;
        let rootfs = self.bundle.rootfs();
        let made = cancel.unless(Holder::new(&config, &rootfs, &self.reaper));
        let (holder, exited) = made.await??;
        self.record.borrow_mut().init = holder.init_pid().and_then(Init::of);
        if let Err(error) = self.write_record().await {
            holder.end().await;
            return Err(error);
        }
        Ok((holder, exited))
    }

    async fn make_files(&self, config: &Rc<Config>) -> Result<()> {
        let (dirs, config) = (self.record.borrow().dirs.clone(), (**config).clone());
        let made = bounded(blocking::run(move || dirs.make(&config))).await;
        made.map_err(|e| e.within("make its files"))
    }

    async fn remove_files(&self) -> Result<()> {
        let dirs = self.record.borrow().dirs.clone();
        let removed = bounded(blocking::run_always(move || dirs.remove())).await;
        removed.map_err(|e| e.within("remove the files of the sandbox"))
    }

    /// Makes those of its files again that a containerd has removed that was restarted. Not
    /// while another call makes or removes them.
    pub async fn heal(&self) -> Result<()> {
        let Ok(_turn) = self.turn.try_lock() else {
            return Ok(());
        };
        if self.state.get() != State::Ready {
            return Ok(());
        }
        let config = self.config.borrow().clone();
        self.make_files(&config).await
    }

    /// Waits for the exit of its init, which ends the sandbox.
    async fn watch(self: Rc<Self>, exited: Exited) {
        let exit = exited.await;
        self.init_exit.set(Some(exit));
        self.changed.notify_waiters();
        let _turn = self.turn.lock().await;
        if self.state.get() == State::Ready {
            log::warn!(status = exit.status, id = self.id; "sandbox: the pod's init has exited");
            self.exit.set(Some(exit));
            self.holder.replace(None);
        }
        // `Exited` is allowed in each state.
        let _ = self.change(Op::Exited);
    }

    /// Ends its namespaces. A start that is under way is cut short.
    pub async fn stop(&self) -> Result<()> {
        self.cancel_start();
        let _turn = self.turn.lock().await;
        self.may(Op::Stop)?;
        self.end(Op::Stop).await
    }

    /// Removes it. Its containers are left to `delete`.
    pub async fn shut_down(&self) -> Result<()> {
        self.cancel_start();
        let _turn = self.turn.lock().await;
        self.end(Op::Shutdown).await?;
        self.remove_files().await
    }

    fn cancel_start(&self) {
        if let Some(start) = &*self.starting.borrow() {
            start.cancel(Cause::Deleted);
        }
    }

    async fn end(&self, op: Op) -> Result<()> {
        let holder = self.holder.replace(None);
        if let Some(holder) = holder {
            let init = holder.init_pid();
            holder.end().await;
            let exited = self.known(&self.init_exit);
            if let Some(pid) = init
                && timeout(EXIT_TIMEOUT, exited).await.is_err()
            {
                log::error!(pid, id = self.id; "end the pod's init: not done within {EXIT_TIMEOUT:?}");
            }
        }
        if self.exit.get().is_none() {
            let at = SystemTime::now();
            self.exit.set(Some(Exit { status: 0, at }));
            log::info!(id = self.id; "sandbox stopped");
        }
        self.change(op)
    }

    /// Waits for its end.
    pub async fn wait(self: Rc<Self>) -> Exit {
        self.known(&self.exit).await
    }

    /// Waits until `exit`, one of this sandbox's, is known.
    async fn known(&self, exit: &Cell<Option<Exit>>) -> Exit {
        loop {
            let changed = self.changed.notified();
            if let Some(exit) = exit.get() {
                return exit;
            }
            changed.await;
        }
    }

    fn may(&self, op: Op) -> std::result::Result<State, Refusal> {
        step(self.state.get(), op)
    }

    fn change(&self, op: Op) -> Result<()> {
        self.state.set(self.may(op)?);
        self.changed.notify_waiters();
        Ok(())
    }

    /// The options for a container: containerd up to 2.2 sends only the server's address, and
    /// leaves out those of the runtime handler.
    pub fn options_of_member(&self, sent: Options) -> Options {
        let rest = Options {
            task_api_address: String::new(),
            task_api_version: 0,
            ..sent.clone()
        };
        match rest == Options::default() {
            true => self.options.clone(),
            false => sent,
        }
    }

    /// A container is about to be created: puts it on record.
    pub async fn admit(&self, id: &str, bundle: &Bundle, options: &Options) -> Result<()> {
        self.may(Op::AddContainer)?;
        let read = bundle.clone();
        let spec = bounded(blocking::run(move || read.spec())).await?;
        let member = Member {
            bundle: bundle.path().to_owned(),
            cgroups_path: spec.linux.cgroups_path,
            options: options.clone(),
        };
        // One of this ID that exists already stays on record.
        let id = id.to_owned();
        self.record.borrow_mut().members.entry(id).or_insert(member);
        self.write_record().await
    }

    /// A container is gone: takes it off the record.
    pub async fn dismiss(&self, id: &str) {
        self.record.borrow_mut().members.remove(id);
        if let Err(error) = self.write_record().await {
            log::error!(id; "take container off the record of its sandbox: {error}");
        }
    }

    async fn write_record(&self) -> Result<()> {
        let _writing = self.writing.lock().await;
        let (record, bundle) = (self.record.borrow().clone(), self.bundle.clone());
        bounded(blocking::run_always(move || record.write(&bundle))).await
    }
}

/// Work on files, for as long as it may take.
async fn bounded<T>(work: impl Future<Output = Result<Result<T>>>) -> Result<T> {
    cancel::within(FILES_TIMEOUT, work).await?
}
