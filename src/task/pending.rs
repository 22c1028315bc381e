//! The lifecycle calls of a container that are under way, so that its exit or deletion
//! can cut them short.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use crate::cancel::{Cancel, Cause};

/// Calls under way, by a number.
#[derive(Default)]
pub struct Pending {
    last: Cell<u64>,
    calls: RefCell<BTreeMap<u64, Call>>,
    init_exited: Cell<bool>,
}

struct Call {
    cancel: Cancel,
    kind: Kind,
}

/// What may cut a call short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It has no purpose once init has exited.
    EndsWithInit,
    /// It may be what ends init.
    OutlivesInit,
    /// Only another Delete may cut it short.
    Delete,
}

/// A call under way, until it is dropped.
pub struct Registered<'a> {
    pending: &'a Pending,
    number: u64,
}

impl Pending {
    /// Registers a call.
    pub fn register(&self, cancel: &Cancel, kind: Kind) -> Registered<'_> {
        if kind == Kind::EndsWithInit && self.init_exited.get() {
            cancel.cancel(Cause::InitExited);
        }
        let number = self.last.get() + 1;
        self.last.set(number);
        let call = Call {
            cancel: cancel.clone(),
            kind,
        };
        self.calls.borrow_mut().insert(number, call);
        Registered {
            pending: self,
            number,
        }
    }

    /// Cuts short what has no purpose without init, now and later.
    pub fn init_exited(&self) {
        self.init_exited.set(true);
        self.cut(|kind| kind == Kind::EndsWithInit, Cause::InitExited);
    }

    /// Cuts short everything but Deletes.
    pub fn deleted(&self) {
        self.cut(|kind| kind != Kind::Delete, Cause::Deleted);
    }

    /// Cuts short a Delete that another one waits for.
    pub fn deleted_again(&self) {
        self.cut(|kind| kind == Kind::Delete, Cause::Deleted);
    }

    fn cut(&self, these: impl Fn(Kind) -> bool, cause: Cause) {
        let calls = self.calls.borrow();
        for call in calls.values().filter(|call| these(call.kind)) {
            call.cancel.cancel(cause);
        }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.pending.calls.borrow_mut().remove(&self.number);
    }
}
