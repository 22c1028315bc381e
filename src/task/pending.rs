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
    ends_with_init: bool,
}

/// A call under way, until it is dropped.
pub struct Registered<'a> {
    pending: &'a Pending,
    number: u64,
}

impl Pending {
    /// Registers a call. One that `ends_with_init` has no purpose once init has exited.
    pub fn register(&self, cancel: &Cancel, ends_with_init: bool) -> Registered<'_> {
        if ends_with_init && self.init_exited.get() {
            cancel.cancel(Cause::InitExited);
        }
        let number = self.last.get() + 1;
        self.last.set(number);
        let call = Call {
            cancel: cancel.clone(),
            ends_with_init,
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
        let calls = self.calls.borrow();
        let ending = calls.values().filter(|call| call.ends_with_init);
        ending.for_each(|call| call.cancel.cancel(Cause::InitExited));
    }

    /// Cuts short everything.
    pub fn deleted(&self) {
        let calls = self.calls.borrow();
        calls
            .values()
            .for_each(|call| call.cancel.cancel(Cause::Deleted));
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.pending.calls.borrow_mut().remove(&self.number);
    }
}
