//! Creation of a container, and its undoing: the rootfs mounts, the OCI runtime's state, the
//! cgroup.
//!
//! Promises: when Create fails, all that it did is undone, or a task of its own goes on with
//! that while the ID stays taken; nothing of another container is touched.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::container::Container;
use super::process::Process;
use super::{Reserved, Shared};
use crate::blocking;
use crate::bundle::{Bundle, Spec};
use crate::cancel::Cancel;
use crate::cgroup::{self, Plan, Planned};
use crate::error::{Context, Error, Result};
use crate::events::Event;
use crate::local;
use crate::mount::{Mount, mount_all, unmount_all};
use crate::options::Options;
use crate::reaper::{Child, Exited};
use crate::runtime::Restore;
use crate::stdio::{self, Opened, Owner, Stdio};
use crate::sys;

/// How long the undoing of a Create holds up its answer, each by the OCI runtime and by
/// unmounting.
const UNDO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long Delete removes cgroups that the container has made in its own.
const BELOW_TIMEOUT: Duration = Duration::from_secs(2);

/// What Create asks for.
pub struct Create {
    /// The container's ID.
    pub id: String,
    /// Its bundle.
    pub bundle: Bundle,
    /// What to mount on the bundle's rootfs; empty: the rootfs needs no mount.
    pub rootfs: Vec<Mount>,
    /// The init's stdio.
    pub stdio: Stdio,
    /// The runtime's options.
    pub options: Options,
    /// The image of a checkpoint to restore instead of starting anew.
    pub checkpoint: Option<String>,
}

/// What another container of the same ID or cgroup had before the runtime was called.
struct Others {
    /// State of this ID in the runtime's root.
    state: bool,
    /// Processes in the cgroup that `config.json` asks for, if they were started before this
    /// time since boot.
    started_before: Duration,
}

impl Container {
    /// Creates a container. When that fails everything is undone, no event is published,
    /// and `reserved`, its ID, is held until then.
    pub(super) async fn create(
        shared: Rc<Shared>,
        mut create: Create,
        cancel: &Cancel,
        reserved: &Rc<Reserved>,
    ) -> Result<Rc<Container>> {
        let spec = prepare_bundle(&mut create, cancel).await?;
        let cgroups_path = &spec.linux.cgroups_path;
        Planned::check_alone(Plan::new(&create.id, cgroups_path, &create.options))?;
        let rootfs_is_mounted = !create.rootfs.is_empty();
        if rootfs_is_mounted {
            mount_rootfs(&shared, &create, cancel, reserved).await?;
        }
        let container = Rc::new(Container::new(shared, &create, spec));
        // A checkpoint is restored at Start: until then there is no process.
        let is_restored_later = container.checkpoint.is_some();
        if !is_restored_later && let Err(error) = container.create_init(cancel).await {
            if rootfs_is_mounted {
                undo_mounts(None, create.bundle.rootfs(), reserved).await;
            }
            return Err(error);
        }
        container.publish(Event::Create {
            container_id: create.id,
            bundle: create.bundle.path().display().to_string(),
            rootfs: create.rootfs,
            io: create.stdio,
            checkpoint: create.checkpoint.unwrap_or_default(),
            pid: container.init.pid(),
        });
        if !is_restored_later {
            container.watch_init();
        }
        Ok(container)
    }

    /// Has the runtime create the init, new or from the checkpoint. When that fails, what the
    /// runtime has created is removed.
    pub(super) async fn create_init(&self, cancel: &Cancel) -> Result<()> {
        let _unclaimed_exits = self.shared.reaper.keep_unclaimed_exits();
        let io = self.open_stdio(&self.init, cancel).await?;
        let others = Others {
            state: self.runtime.state_dir(self.id()).exists(),
            started_before: sys::process::since_boot(),
        };
        let made = self.run_create(io, cancel).await;
        if made.is_err() {
            self.undo_create_init(others).await;
        }
        made
    }

    async fn run_create(&self, mut io: Opened, cancel: &Cancel) -> Result<()> {
        let pid_file = self.bundle.init_pid_file();
        let pid = match &self.checkpoint {
            None => {
                let created = self.runtime.create(self.id(), &pid_file, &mut io, cancel);
                created.await?
            }
            Some(image) => self.restore(image, &pid_file, &mut io, cancel).await?,
        };
        let streams = cancel.unless(io.start_outputs()).await??;
        if self.checkpoint.is_some() {
            // It runs already.
            streams.open_stdin()?;
        }
        self.init.created(self.adopt(pid)?, streams, None);
        self.find_cgroup(pid);
        Ok(())
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
        self.runtime.restore(self.id(), &restore, io, cancel).await
    }

    /// Opens a process's stdio, and copies its output from now on: the runtime may write more
    /// to it than a pipe holds.
    pub(super) async fn open_stdio(&self, process: &Process, cancel: &Cancel) -> Result<Opened> {
        let owner = Owner {
            namespace: &self.shared.namespace,
            container_id: self.id(),
            exec_id: process.exec_id(),
            bundle: self.bundle.path(),
            uid: self.options.io_uid,
            gid: self.options.io_gid,
            reaper: &self.shared.reaper,
        };
        // Boxed: it is by far the largest part of a request's future.
        let opening = Box::pin(stdio::open(&process.stdio, &owner));
        let opened = cancel.unless(opening).await;
        let mut opened = opened.unwrap_or_else(|c| Err(Error::from(c).within("open stdio")))?;
        opened.copy_early()?;
        Ok(opened)
    }

    /// Registers a process that the runtime has started with the reaper.
    pub(super) fn adopt(&self, pid: i32) -> Result<(Child, Exited)> {
        let adopted = self.shared.reaper.adopt(pid);
        adopted.context(|| format!("adopt process {pid} that the OCI runtime started"))
    }

    /// Removes what the runtime has created: its state, and a cgroup that it may have no state
    /// of. State and cgroup of `others` stay.
    async fn undo_create_init(&self, others: Others) {
        let id = self.id();
        let is_others = self
            .planned_cgroup()
            .is_ok_and(|cgroup| cgroup.has_process_from_before(others.started_before));
        if self.runtime.state_dir(id).exists() && !others.state {
            let undone = self.undo_runtime_state().await;
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

    async fn undo_runtime_state(&self) -> Result<()> {
        let id = self.id();
        let limit = Cancel::after(UNDO_TIMEOUT);
        let undone = self.runtime.kill_and_delete(id, &limit).await;
        if !self.runtime.state_dir(id).exists() {
            return undone;
        }
        // A runtime that was killed may have left a directory that it takes for no container.
        let left = || Error::unknown("OCI runtime delete left the state directory");
        let error = undone.err().unwrap_or_else(left);
        self.runtime.forget_unreadable(id, error).await
    }

    /// The cgroup that `config.json` asks for.
    fn planned_cgroup(&self) -> Result<Planned> {
        Planned::find(Plan::new(self.id(), &self.cgroups_path, &self.options))
    }

    /// Kills what is in the cgroup that `config.json` asks for, and removes it.
    pub(super) async fn remove_planned_cgroup(&self) -> Result<()> {
        let cgroup = self.planned_cgroup()?;
        if !cgroup.exists() {
            return Ok(());
        }
        let killed = cgroup.kill(UNDO_TIMEOUT).await;
        killed.and(cgroup.remove(UNDO_TIMEOUT).await)
    }

    /// Removes the cgroups that the container has made in its own, which runtimes cannot always.
    pub(super) async fn remove_cgroups_below(&self) {
        if !self.cgroup().is_ok_and(|cgroup| cgroup.has_below()) {
            return;
        }
        match self.planned_cgroup() {
            Ok(cgroup) => cgroup.remove_below(BELOW_TIMEOUT).await,
            Err(error) => log::warn!(id = self.id(); "find the container's cgroup: {error}"),
        }
    }
}

/// Writes the options into the bundle, makes its rootfs directory, and reads `config.json`.
async fn prepare_bundle(create: &mut Create, cancel: &Cancel) -> Result<Spec> {
    let (bundle, mut options) = (create.bundle.clone(), create.options.clone());
    let makes_rootfs = !create.rootfs.is_empty();
    let prepare = move || {
        let spec = bundle.spec()?;
        // For every call of the runtime, and, by the file, for `delete`.
        options.systemd_cgroup = cgroup::is_systemds(&options, &spec.linux.cgroups_path);
        bundle.write_options(&options)?;
        if makes_rootfs {
            bundle.make_rootfs()?;
        }
        Ok((spec, options))
    };
    let prepared = cancel.unless(blocking::run(prepare)).await;
    let prepared = prepared.map_err(Error::from).flatten().flatten();
    let (spec, options) = prepared.map_err(|error| {
        let bundle = create.bundle.path().display();
        error.within(format_args!("prepare bundle {bundle}"))
    })?;
    create.options = options;
    Ok(spec)
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
            // Its outcome does not matter any more.
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
