//! What happens when a process of a container exits. The order of exits is decided in
//! [`super::exits`].

use std::rc::Rc;

use super::container::{Container, KILL_TIMEOUT};
use super::process::Process;
use super::signals::SIGKILL;
use super::state::{Op, State};
use crate::cancel::Cancel;
use crate::events::Event;
use crate::local;
use crate::reaper::Exit;

impl Container {
    /// Watches the init, which the runtime has created, for its exit, and its cgroup for OOM.
    pub(super) fn watch_init(self: &Rc<Self>) {
        self.watch_for_oom();
        let Some(exited) = self.init.take_exited() else {
            return;
        };
        let container = self.clone();
        local::spawn(async move {
            let exit = exited.await;
            // Boxed: keeps the future of an idle container small.
            Box::pin(container.init_exited(exit)).await;
        });
    }

    async fn init_exited(&self, exit: Exit) {
        // Before anything that takes time: systemd may remove the cgroup at once, and
        // what was killed in it is published before the exit.
        self.stop_watching_for_oom(exit);
        self.keep_stats();
        self.init.reaped(exit);
        self.exits.borrow_mut().hold();
        let is_due = self.exits.borrow_mut().init_exited();
        debug_assert!(!is_due, "held a line above");
        self.calls.init_exited();
        if self.shares_pids {
            // The kernel ends a pid namespace with its init, but here it has none. An exec
            // may have left the cgroup.
            self.signal_execs(SIGKILL);
            let limit = Cancel::after(KILL_TIMEOUT);
            let killed = self.kill_all(SIGKILL, &limit).await;
            log::debug!(id = self.id(); "kill the remaining processes: {killed:?}");
        }
        if self.shares_pids || self.init.state() == State::Paused {
            self.thaw().await;
        }
        self.init.output_consumed().await;
        self.release_init_exit();
    }

    /// Watches an exec, which has started, for its exit.
    pub(super) fn watch_exec(self: &Rc<Self>, exec: Rc<Process>) {
        let Some(exited) = exec.take_exited() else {
            return;
        };
        let container = self.clone();
        local::spawn(async move {
            exec.reaped(exited.await);
            exec.output_consumed().await;
            container.publish_exit(&exec);
            container.release_init_exit();
        });
    }

    /// One less holds back the init's exit.
    pub(super) fn release_init_exit(&self) {
        let is_due = self.exits.borrow_mut().release();
        if is_due {
            self.publish_exit(&self.init);
        }
    }

    /// Publishes the exit of a process that was reaped.
    fn publish_exit(&self, process: &Process) {
        // An exit is allowed in every state.
        let _ = process.step(Op::Exited);
        process.exit_published();
        let Some(exit) = process.exit() else { return };
        let (level, what) = match process.is_exec() {
            false => (log::Level::Info, "container exited"),
            true => (log::Level::Debug, "exec exited"),
        };
        log::log!(
            level,
            exit_status = exit.status,
            signal = exit.signal(),
            after:? = process.lifetime(),
            pid = process.pid(),
            id = self.id(),
            exec = process.exec_id();
            "{what}"
        );
        self.publish(Event::Exit {
            container_id: self.id().to_owned(),
            id: process.id.clone(),
            pid: process.pid(),
            exit_status: exit.status,
            exited_at: exit.at,
        });
    }
}
