//! Signals to the processes of a container, and the freezer, which holds signals back.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::container::{Container, KILL_TIMEOUT};
use super::process::{Role, Target};
use super::state::{Op, State};
use crate::cancel::Cancel;
use crate::error::{Context, Result};
use crate::local;
use crate::reaper;

/// The number of `SIGKILL`.
pub const SIGKILL: u32 = nix::sys::signal::Signal::SIGKILL as u32;

/// Between the first two tries to thaw what was killed, while another may be freezing it;
/// each later pause is twice as long.
const THAW_PAUSE: Duration = Duration::from_millis(20);

impl Container {
    /// Signals a process; with `all`, for an init, everything in the container.
    pub async fn kill(
        self: &Rc<Self>,
        target: Target<'_>,
        signal: u32,
        all: bool,
        cancel: &Cancel,
    ) -> Result<()> {
        let process = self.process(target)?;
        process.check(Op::Kill)?;
        if signal != SIGKILL && process.state() == State::Running {
            process.wait_for_its_program().await;
        }
        match process.role {
            Role::Exec { .. } => process.signal(signal),
            Role::Init => self.kill_init(signal, all, cancel).await,
        }
    }

    async fn kill_init(self: &Rc<Self>, signal: u32, all: bool, cancel: &Cancel) -> Result<()> {
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

    /// Kills an init that was not started, for Delete: it has an exit too, and that is
    /// published before the deletion.
    pub(super) async fn kill_created_init(&self) -> Result<()> {
        self.sigkill_sent.set(true);
        let _ = self.init.signal(SIGKILL);
        let exited = timeout(KILL_TIMEOUT, self.init.wait()).await;
        exited.context(|| format!("wait for the exit of container {}", self.id()))?;
        Ok(())
    }

    /// Lets what was killed while frozen die: with cgroup v1 it cannot before. It is the
    /// kernel's freezer that counts: a pause may have failed half way, or others freeze too.
    /// Whether it was frozen.
    pub(super) async fn thaw(&self) -> bool {
        let thawed = match self.cgroup() {
            Ok(cgroup) => cgroup.thaw(KILL_TIMEOUT).await,
            Err(error) => Err(error),
        };
        match thawed {
            Err(error) if self.init.state() == State::Paused => {
                log::warn!(id = self.id(); "thaw the cgroup: {error}");
                let limit = Cancel::after(KILL_TIMEOUT);
                let thawed = self.runtime.resume(self.id(), &limit).await;
                log::debug!(id = self.id(); "resume by the OCI runtime: {thawed:?}");
                true
            }
            thawed => thawed.unwrap_or_default(),
        }
    }

    /// Thaws it until its init, which was killed, has exited: another process may be freezing it.
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

    /// Signals everything in the container.
    pub(super) async fn kill_all(&self, signal: u32, cancel: &Cancel) -> Result<()> {
        let alone = self.cgroup().and_then(|cgroup| {
            cgroup.check_alone()?;
            Ok(cgroup)
        });
        let cgroup = match alone {
            Ok(cgroup) => cgroup,
            Err(error) => {
                // The runtime would signal all processes in the cgroup, those of others too.
                log::debug!(
                    id = self.id();
                    "send signal {signal} to each process of the container, not to its cgroup: {error}"
                );
                return self.signal_trees(signal);
            }
        };
        if signal == SIGKILL {
            match cgroup.kill(KILL_TIMEOUT).await {
                Ok(()) => return Ok(()),
                Err(error) => log::warn!(id = self.id(); "kill all processes: {error}"),
            }
        }
        self.runtime.kill_all(self.id(), signal, cancel).await
    }

    /// Signals the init, the execs, and their descendants. The outcome is the init's.
    fn signal_trees(&self, signal: u32) -> Result<()> {
        let execs = self.execs.borrow();
        let known = execs.values().chain([&self.init]);
        let known = known.filter(|process| process.is_unreaped());
        let pids: Vec<i32> = known.map(|process| process.pid() as i32).collect();
        let descendants = reaper::descendants(&pids);
        // Parents first, so that they do not react to the death of their children.
        let signalled = self.init.signal(signal);
        self.signal_execs(signal);
        for process in descendants {
            process.signal(signal as i32);
        }
        signalled
    }

    /// Signals the execs that run.
    pub(super) fn signal_execs(&self, signal: u32) {
        for exec in self.execs.borrow().values() {
            // It may have exited.
            let _ = exec.signal(signal);
        }
    }
}
