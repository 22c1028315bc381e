//! The containers of this shim, by ID. See `ARCHITECTURE.md` for the invariants that hold here.

mod accounting;
mod container;
mod create;
mod execs;
mod exit;
mod exits;
mod process;
#[cfg(test)]
mod schedules;
mod signals;
mod state;
mod turn;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{Duration, timeout};

pub use crate::runtime::Checkpoint;
pub use accounting::{Member, StatsBudget};
pub use container::{Container, Deleted, Status};
pub use create::Create;
pub use process::Target;
pub use signals::SIGKILL;
pub use state::State;

use crate::cancel::{Cancel, Cause};
use crate::error::{Error, Kind, Result};
use crate::events::Events;
use crate::reaper::Reaper;
use crate::report;

/// How long Shutdown waits for a creation that it cuts short to be undone: longer than each
/// step of that may take.
const UNDO_CREATION_TIMEOUT: Duration = Duration::from_secs(25);

/// What all containers of the shim share.
pub struct Shared {
    /// The ledger of children.
    pub reaper: Reaper,
    /// The queue of events.
    pub events: Events,
    /// containerd's namespace that the shim serves.
    pub namespace: String,
    /// How many containers keep their files of statistics open.
    pub stats_budget: StatsBudget,
}

/// Every container of the shim, by ID.
pub struct Tasks {
    shared: Rc<Shared>,
    slots: Rc<Slots>,
}

#[derive(Default)]
struct Slots {
    by_id: RefCell<BTreeMap<String, Slot>>,
    /// Notified when a creation that has failed is undone.
    freed: Notify,
}

/// What an ID stands for.
enum Slot {
    /// It is being created, or that is being undone: it is not visible, and its ID is taken.
    Creating(Cancel),
    /// It exists, or is deleted and its client may not know yet.
    Created(Rc<Container>),
}

impl Tasks {
    /// A shim without containers.
    pub fn new(shared: Shared) -> Tasks {
        Tasks {
            shared: Rc::new(shared),
            slots: Rc::default(),
        }
    }

    /// Creates a container.
    pub async fn create(&self, create: Create, cancel: &Cancel) -> Result<Rc<Container>> {
        check_name("container", &create.id)?;
        let reserved = self.reserve(&create.id, cancel)?;
        let container = Container::create(self.shared.clone(), create, cancel, &reserved).await?;
        reserved.fill(container.clone());
        Ok(container)
    }

    fn reserve(&self, id: &str, cancel: &Cancel) -> Result<Rc<Reserved>> {
        let mut slots = self.slots.by_id.borrow_mut();
        let taken = match slots.get(id) {
            None => None,
            Some(Slot::Creating(_)) => Some("is being created, or its creation is being undone"),
            Some(Slot::Created(container)) if container.is_deleted() => None,
            Some(Slot::Created(_)) => Some("already exists"),
        };
        if let Some(taken) = taken {
            let message = format!("container {id}: {taken}");
            return Err(Error::new(Kind::AlreadyExists, message));
        }
        slots.insert(id.to_owned(), Slot::Creating(cancel.clone()));
        Ok(Rc::new(Reserved {
            slots: self.slots.clone(),
            id: id.to_owned(),
        }))
    }

    /// The container `id`.
    pub fn find(&self, id: &str) -> Result<Rc<Container>> {
        match self.slots.by_id.borrow().get(id) {
            Some(Slot::Created(container)) => Ok(container.clone()),
            _ => Err(Error::not_found("container not created")),
        }
    }

    /// Whether a container has this ID, or is to have it, or is not wholly undone.
    pub fn is_taken(&self, id: &str) -> bool {
        self.slots.by_id.borrow().contains_key(id)
    }

    /// Deletes a process of container `id` that has exited or was never started. Until
    /// [`Tasks::forget`] another call answers the same. The creation of a container, if it is
    /// under way, is undone; NotFound then.
    pub async fn delete(&self, id: &str, target: Target<'_>, cancel: &Cancel) -> Result<Deleted> {
        if target == Target::Init {
            cancel.unless(self.undo_creation(id)).await?;
        }
        self.find(id)?.delete(target, cancel).await
    }

    /// The client of Delete has its answer: nobody will ask again.
    pub fn forget(&self, id: &str, target: Target<'_>) {
        if let Target::Exec(exec_id) = target {
            if let Ok(container) = self.find(id) {
                container.forget_exec(exec_id);
            }
            return;
        }
        let mut slots = self.slots.by_id.borrow_mut();
        if let Some(Slot::Created(container)) = slots.get(id)
            && container.is_deleted()
        {
            slots.remove(id);
        }
    }

    /// As [`Tasks::delete`] for a container that is being created. Returns within
    /// [`UNDO_CREATION_TIMEOUT`].
    pub async fn cancel_creation(&self, id: &str) {
        if timeout(UNDO_CREATION_TIMEOUT, self.undo_creation(id))
            .await
            .is_err()
        {
            log::error!(
                id;
                "undo create of container: not done within {UNDO_CREATION_TIMEOUT:?}"
            );
        }
    }

    /// Cuts short the creation of container `id`, if there is one, and waits until it is
    /// undone.
    async fn undo_creation(&self, id: &str) {
        loop {
            let freed = self.slots.freed.notified();
            match self.slots.by_id.borrow().get(id) {
                Some(Slot::Creating(cancel)) => cancel.cancel(Cause::Deleted),
                _ => return,
            }
            freed.await;
        }
    }

    /// Whether all containers are deleted, and none is being created but `id`, the container of
    /// the Shutdown request.
    pub fn may_shut_down(&self, id: &str) -> bool {
        let slots = self.slots.by_id.borrow();
        let over = |(other, slot): (&String, &Slot)| match slot {
            Slot::Creating(_) => other == id,
            Slot::Created(container) => container.is_deleted(),
        };
        slots.iter().all(over)
    }

    /// Whether there is no container: none that is being created, none that is deleted and
    /// whose client has not got the answer.
    pub fn is_empty(&self) -> bool {
        self.slots.by_id.borrow().is_empty()
    }

    /// Waits until a creation that has failed is undone, from this call on.
    pub fn freed(&self) -> Notified<'_> {
        self.slots.freed.notified()
    }

    /// Each container's ID and, for people, its processes, their states and pids.
    pub fn report(&self) -> Vec<report::Container> {
        let slots = self.slots.by_id.borrow();
        let report = |(id, slot): (&String, &Slot)| match slot {
            Slot::Created(container) => container.report(),
            Slot::Creating(_) => report::Container {
                init: report::Process {
                    id: id.clone(),
                    state: "creating".into(),
                    pid: 0,
                },
                ..Default::default()
            },
        };
        slots.iter().map(report).collect()
    }

    /// Waits until containerd has got all events.
    pub async fn events_taken(&self) {
        self.shared.events.taken().await;
    }

    /// How many events containerd has not got yet.
    pub fn unsent_events(&self) -> usize {
        self.shared.events.waiting()
    }
}

/// An error unless `id` can be a file name: the runtime creates and removes files of that name.
fn check_name(what: &str, id: &str) -> Result<()> {
    if matches!(id, "" | "." | "..") || id.contains('/') {
        return Err(Error::invalid(format!("invalid {what} ID {id:?}")));
    }
    Ok(())
}

/// An ID that is taken for a container that is being created. It is free again when the
/// creation has failed and is undone.
struct Reserved {
    slots: Rc<Slots>,
    id: String,
}

impl Reserved {
    /// It is created.
    fn fill(&self, container: Rc<Container>) {
        let mut slots = self.slots.by_id.borrow_mut();
        slots.insert(self.id.clone(), Slot::Created(container));
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut slots = self.slots.by_id.borrow_mut();
        if let Some(Slot::Creating(_)) = slots.get(&self.id) {
            slots.remove(&self.id);
            self.slots.freed.notify_waiters();
        }
    }
}
