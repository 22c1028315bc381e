//! The cgroup of a container: its processes, statistics, OOM.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::container::Container;
use super::signals::SIGKILL;
use crate::cgroup::{Cgroup, Stats};
use crate::descriptors;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::local;
use crate::oom::OomWatch;
use crate::reaper::Exit;

/// How long the files of statistics stay open for a client that asks more often than that.
const STATS_OPEN_TIME: Duration = Duration::from_secs(1);

/// How many containers keep their files of statistics open at a time, at most: each has about
/// thirty, and the server no more than 1024 descriptors where containerd has raised no limit.
const STATS_OPEN_CONTAINERS: usize = 8;

/// Files of statistics that one container keeps open, at most.
const STATS_FILES: u64 = 40;

/// The exit status of what SIGKILL ended.
const KILLED: u32 = 128 + SIGKILL;

/// A process in a container's cgroup.
pub struct Member {
    /// Its pid.
    pub pid: u32,
    /// The exec that it is, if it is one.
    pub exec_id: Option<String>,
}

/// The cgroup of a container, once its init is created.
#[derive(Default)]
pub struct Accounting {
    cgroup: RefCell<Option<Rc<Cgroup>>>,
    stats_asked_at: Cell<Option<Instant>>,
    oom: RefCell<Option<OomWatch>>,
}

/// How many containers of the server keep their files of statistics open.
#[derive(Clone, Default)]
pub struct StatsBudget(Rc<Cell<usize>>);

/// The share of one container, until it is dropped.
struct StatsShare(StatsBudget);

impl StatsBudget {
    fn take(&self) -> Option<StatsShare> {
        let taken = self.0.get();
        if taken >= STATS_OPEN_CONTAINERS {
            return None;
        }
        self.0.set(taken + 1);
        Some(StatsShare(self.clone()))
    }
}

impl Drop for StatsShare {
    fn drop(&mut self) {
        let budget = &self.0.0;
        budget.set(budget.get() - 1);
    }
}

impl Container {
    /// Its cgroup.
    pub(super) fn cgroup(&self) -> Result<Rc<Cgroup>> {
        let gone = || Error::not_found("cgroup does not exist");
        self.accounting.cgroup.borrow().clone().ok_or_else(gone)
    }

    /// Finds the cgroup of the init, process `pid`, if it is the container's alone.
    pub(super) fn find_cgroup(&self, pid: i32) {
        let cgroup = match Cgroup::of(pid) {
            // What is restored from a checkpoint is many processes.
            Ok(cgroup) if self.checkpoint.is_some() || !cgroup.has_others(pid) => Some(cgroup),
            Ok(_) => {
                log::warn!(
                    id = self.id();
                    "container's cgroup has processes of others: no statistics, no OOM events"
                );
                None
            }
            Err(error) => {
                log::warn!(id = self.id(); "find the container's cgroup: {error}");
                None
            }
        };
        self.accounting.cgroup.replace(cgroup.map(Rc::new));
    }

    pub(super) fn watch_for_oom(self: &Rc<Self>) {
        let Ok(cgroup) = self.cgroup() else { return };
        if let Err(error) = cgroup.enable_controllers() {
            log::warn!(id = self.id(); "enable cgroup controllers: {error}");
        }
        let container = Rc::downgrade(self);
        let on_oom = move || {
            if let Some(container) = container.upgrade() {
                container.keep_stats();
                container.publish(Event::Oom {
                    container_id: container.id().to_owned(),
                });
            }
        };
        match OomWatch::start(&cgroup, on_oom) {
            Ok(watch) => drop(self.accounting.oom.replace(Some(watch))),
            Err(error) => log::warn!(id = self.id(); "watch for OOM: {error}"),
        }
    }

    /// The init has exited: looks for OOM once more.
    pub(super) fn stop_watching_for_oom(&self, exit: Exit) {
        if let Some(watch) = self.accounting.oom.take() {
            watch.finish(exit.status == KILLED && !self.sigkill_sent.get());
        }
    }

    /// systemd removes the cgroup as soon as it is empty: who asks after that how the container
    /// ended, as the CRI does for OOM kills, gets the statistics of now.
    pub(super) fn keep_stats(&self) {
        if let (true, Ok(cgroup)) = (self.options.systemd_cgroup, self.cgroup()) {
            cgroup.keep_stats();
        }
    }

    /// What its cgroup used. For a client that asks again and again the files stay open a
    /// while; then they are opened anew, as controllers may have been added.
    pub fn stats(&self) -> Result<Stats> {
        let cgroup = self.cgroup()?;
        let before = self.accounting.stats_asked_at.replace(Some(Instant::now()));
        let is_asked_again = before.is_some_and(|at| at.elapsed() < STATS_OPEN_TIME);
        if is_asked_again
            && descriptors::suffice_for(STATS_FILES)
            && let Some(share) = self.shared.stats_budget.take()
            && cgroup.keep_open()
        {
            let cgroup = Rc::downgrade(&cgroup);
            local::spawn(async move {
                sleep(STATS_OPEN_TIME).await;
                if let Some(cgroup) = cgroup.upgrade() {
                    cgroup.close();
                }
                drop(share);
            });
        }
        cgroup.stats()
    }

    /// The init, the execs that run, and the other processes in the container's cgroup. containerd
    /// takes an error or an empty list for a container that is lost: an init that has exited
    /// is still listed, and what cannot be read is left out.
    pub fn pids(&self) -> Result<Vec<Member>> {
        let init = self.init.pid();
        if init == 0 {
            let message = format!("container {} has no processes", self.id());
            return Err(Error::unknown(message));
        }
        let execs = self.execs.borrow();
        let mut members: BTreeMap<u32, Option<String>> = execs
            .values()
            .filter(|exec| exec.is_unreaped())
            .map(|exec| (exec.pid(), Some(exec.id.clone())))
            .collect();
        members.entry(init).or_default();
        match self.cgroup().and_then(|cgroup| cgroup.pids()) {
            Ok(pids) => pids.into_iter().for_each(|pid| {
                members.entry(pid as u32).or_default();
            }),
            Err(error) => log::debug!(id = self.id(); "list processes in the cgroup: {error}"),
        }
        let member = |(pid, exec_id)| Member { pid, exec_id };
        Ok(members.into_iter().map(member).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_budget_is_given_back() {
        let budget = StatsBudget::default();
        let mut shares: Vec<_> = (0..STATS_OPEN_CONTAINERS).map(|_| budget.take()).collect();
        assert!(shares.iter().all(Option::is_some));
        assert!(budget.take().is_none());
        shares.pop();
        assert!(budget.take().is_some());
    }
}
