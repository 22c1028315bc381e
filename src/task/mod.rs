//! The containers of this shim. See `ARCHITECTURE.md` for the invariants that hold here.

mod container;
mod exits;
mod process;
#[cfg(test)]
mod schedules;
mod state;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

pub use crate::runtime::Checkpoint;
pub use container::{Container, Create, Deleted, Member, Status};
pub use state::State;

use crate::bundle::Bundle;
use crate::error::{Error, Kind, Result};
use crate::events::Events;
use crate::options::Options;
use crate::reaper::Reaper;
use crate::stdio::Owner;

/// What all containers of the shim share.
pub struct Shared {
    /// The ledger of children.
    pub reaper: Reaper,
    /// The queue of events.
    pub events: Events,
    /// containerd's namespace that the shim serves.
    pub namespace: String,
    /// Held by each container whose files of statistics stay open.
    pub stats_bursts: Rc<()>,
}

impl Shared {
    fn owner<'a>(
        &'a self,
        container_id: &'a str,
        bundle: &'a Bundle,
        options: &Options,
    ) -> Owner<'a> {
        Owner {
            namespace: &self.namespace,
            container_id,
            bundle: bundle.path(),
            uid: options.io_uid,
            gid: options.io_gid,
            reaper: &self.reaper,
        }
    }
}

/// Every container of the shim, by id.
pub struct Tasks {
    shared: Rc<Shared>,
    /// `None` while it is being made: nobody sees it yet, and nobody else may
    /// take its id.
    containers: RefCell<BTreeMap<String, Option<Rc<Container>>>>,
}

impl Tasks {
    /// A shim without containers.
    pub fn new(shared: Shared) -> Tasks {
        Tasks {
            shared: Rc::new(shared),
            containers: RefCell::default(),
        }
    }

    /// Makes a container.
    pub async fn create(&self, create: Create) -> Result<Rc<Container>> {
        let id = create.id.clone();
        check_name("container", &id)?;
        if self.containers.borrow().contains_key(&id) {
            let message = format!("container {id}: already exists");
            return Err(Error::new(Kind::AlreadyExists, message));
        }
        self.containers.borrow_mut().insert(id.clone(), None);
        let reserved = Reserved {
            tasks: self,
            id: &id,
        };
        let container = Container::create(self.shared.clone(), create).await?;
        self.containers
            .borrow_mut()
            .insert(id.clone(), Some(container.clone()));
        drop(reserved);
        Ok(container)
    }

    /// The container `id`.
    pub fn find(&self, id: &str) -> Result<Rc<Container>> {
        let containers = self.containers.borrow();
        let container = containers.get(id).cloned().flatten();
        container.ok_or_else(|| Error::not_found("container not created"))
    }

    /// Forgets a container that ended or never started.
    pub async fn delete(&self, id: &str) -> Result<Deleted> {
        let deleted = self.find(id)?.delete().await?;
        self.containers.borrow_mut().remove(id);
        Ok(deleted)
    }

    /// Whether there is no container. One that is being made counts, unless it is `id`:
    /// whoever asks to shut down has given up on that.
    pub fn is_over_for(&self, id: &str) -> bool {
        let containers = self.containers.borrow();
        let given_up =
            |(other, container): (&String, &Option<_>)| container.is_none() && other == id;
        containers.iter().all(given_up)
    }
}

/// An error unless `id` can be a file's name: the runtime makes files by it, and removes them.
fn check_name(what: &str, id: &str) -> Result<()> {
    if matches!(id, "" | "." | "..") || id.contains('/') {
        return Err(Error::invalid(format!("{what} id {id:?} is no identifier")));
    }
    Ok(())
}

/// An id that is taken for a container in the making; free again when that fails.
struct Reserved<'a> {
    tasks: &'a Tasks,
    id: &'a str,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut containers = self.tasks.containers.borrow_mut();
        if let Some(None) = containers.get(self.id) {
            containers.remove(self.id);
        }
    }
}
