//! Turns: of the lifecycle calls of one process, one runs at a time. Those that run or wait
//! are known, so that the init's exit or a Delete can cut them short.
//!
//! This is also where Delete's wait is: it waits [`CALL_TIMEOUT`] for the call before it, then
//! cuts that short; it waits [`DELETE_TIMEOUT`] for an earlier Delete, then cuts that short, too.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::MutexGuard;
use tokio::time::timeout;

use super::process::Process;
use crate::cancel::{Cancel, Cause};
use crate::error::Result;

/// How long Delete waits for a call before it to end by itself.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long Delete waits, after that, for an earlier Delete: longer than a Delete waits
/// for the output of a process that has exited.
const DELETE_TIMEOUT: Duration = Duration::from_secs(15);

/// The lifecycle calls of one container, by a number.
#[derive(Default)]
pub struct Calls {
    last_number: Cell<u64>,
    calls: RefCell<BTreeMap<u64, Call>>,
    init_exited: Cell<bool>,
}

struct Call {
    process: Rc<Process>,
    kind: Kind,
    cancel: Cancel,
}

/// What may cut a call short, besides its own request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It has no purpose once the init has exited.
    EndsWithInit,
    /// It may be what makes the init exit. Only a Delete cuts it short.
    OutlivesInit,
    /// Only a later Delete of the same process cuts it short.
    Delete,
}

/// The turn of a call, until it is dropped.
pub struct Turn<'a> {
    _lock: MutexGuard<'a, ()>,
    _call: Registered<'a>,
}

/// A call that runs or waits, until it is dropped.
struct Registered<'a> {
    calls: &'a Calls,
    number: u64,
}

impl Calls {
    /// Waits for the turn of a call of `kind` for `process`.
    pub async fn turn<'a>(
        &'a self,
        process: &'a Rc<Process>,
        kind: Kind,
        cancel: &Cancel,
    ) -> Result<Turn<'a>> {
        // A Delete that waits is not to be cut short by a later one.
        let waiting = (kind != Kind::Delete).then(|| self.register(process, kind, cancel));
        let lock = match &waiting {
            Some(_) => cancel.unless(process.lock()).await?,
            None => self.lock_for_delete(process, cancel).await?,
        };
        Ok(Turn {
            _lock: lock,
            _call: waiting.unwrap_or_else(|| self.register(process, kind, cancel)),
        })
    }

    /// A Delete of the init cuts short the calls for all processes, one of an exec only those
    /// for that exec.
    async fn lock_for_delete<'a>(
        &self,
        process: &'a Rc<Process>,
        cancel: &Cancel,
    ) -> Result<MutexGuard<'a, ()>> {
        for (limit, cuts_deletes) in [(CALL_TIMEOUT, false), (DELETE_TIMEOUT, true)] {
            let lock = timeout(limit, process.lock());
            if let Ok(lock) = cancel.unless(lock).await? {
                return Ok(lock);
            }
            self.cut_short(Cause::Deleted, &|call| {
                let is_same = Rc::ptr_eq(&call.process, process);
                match call.kind {
                    Kind::Delete => cuts_deletes && is_same,
                    Kind::EndsWithInit | Kind::OutlivesInit => is_same || !process.is_exec(),
                }
            });
        }
        Ok(cancel.unless(process.lock()).await?)
    }

    /// The init has exited: cuts short what has no purpose without it, now and later.
    pub fn init_exited(&self) {
        self.init_exited.set(true);
        self.cut_short(Cause::InitExited, &|call| call.kind == Kind::EndsWithInit);
    }

    fn register(&self, process: &Rc<Process>, kind: Kind, cancel: &Cancel) -> Registered<'_> {
        if kind == Kind::EndsWithInit && self.init_exited.get() {
            cancel.cancel(Cause::InitExited);
        }
        let number = self.last_number.get() + 1;
        self.last_number.set(number);
        let call = Call {
            process: process.clone(),
            kind,
            cancel: cancel.clone(),
        };
        self.calls.borrow_mut().insert(number, call);
        Registered {
            calls: self,
            number,
        }
    }

    fn cut_short(&self, cause: Cause, selects: &dyn Fn(&Call) -> bool) {
        let calls = self.calls.borrow();
        for call in calls.values().filter(|call| selects(call)) {
            call.cancel.cancel(cause);
        }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.calls.calls.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::super::process::Role;
    use super::*;
    use crate::error::Kind as ErrorKind;
    use crate::stdio::Stdio;

    fn init() -> Rc<Process> {
        Process::new("c".into(), Role::Init, Stdio::default())
    }

    fn exec() -> Rc<Process> {
        let role = Role::Exec { spec: Vec::new() };
        Process::new("e".into(), role, Stdio::default())
    }

    /// Has the turn for `process` until it is cut short.
    async fn hang(calls: &Calls, process: &Rc<Process>, kind: Kind) -> Cause {
        let cancel = Cancel::new();
        let _turn = calls.turn(process, kind, &cancel).await.unwrap();
        cancel.expired().await
    }

    #[tokio::test(start_paused = true)]
    async fn delete_cuts_a_call_short_after_a_while() {
        for process in [init(), exec()] {
            let (calls, start) = (Calls::default(), Instant::now());
            let delete = async {
                let turn = calls.turn(&process, Kind::Delete, &Cancel::new()).await;
                turn.map(drop)
            };
            let hanging = hang(&calls, &process, Kind::EndsWithInit);
            let (cause, deleted) = tokio::join!(hanging, delete);
            assert_eq!((cause, deleted), (Cause::Deleted, Ok(())));
            assert!(start.elapsed() >= CALL_TIMEOUT && start.elapsed() < DELETE_TIMEOUT);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn second_delete_cuts_the_first_one_short() {
        let (calls, init, start) = (Calls::default(), init(), Instant::now());
        let second = async {
            let turn = calls.turn(&init, Kind::Delete, &Cancel::new()).await;
            turn.map(drop)
        };
        let (cause, second) = tokio::join!(hang(&calls, &init, Kind::Delete), second);
        assert_eq!((cause, second), (Cause::Deleted, Ok(())));
        assert!(start.elapsed() >= CALL_TIMEOUT + DELETE_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn delete_of_an_exec_leaves_other_processes_alone() {
        let (calls, first, second) = (Calls::default(), exec(), exec());
        let delete = async {
            let limit = Cancel::after(CALL_TIMEOUT * 2);
            let turn = calls.turn(&second, Kind::Delete, &limit).await;
            turn.map(drop)
        };
        tokio::select! {
            biased;
            cause = hang(&calls, &first, Kind::EndsWithInit) => panic!("{cause:?}"),
            cause = hang(&calls, &second, Kind::EndsWithInit) => assert_eq!(cause, Cause::Deleted),
            deleted = delete => panic!("{deleted:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn exit_of_the_init_cuts_short_only_what_has_no_purpose_without_it() {
        let (calls, init, exec) = (Calls::default(), init(), exec());
        let exit = async { calls.init_exited() };
        let (cause, ()) = tokio::join!(hang(&calls, &exec, Kind::EndsWithInit), exit);
        assert_eq!(cause, Cause::InitExited);
        // A later one, too.
        let cause = hang(&calls, &exec, Kind::EndsWithInit).await;
        assert_eq!(cause, Cause::InitExited);
        for kind in [Kind::OutlivesInit, Kind::Delete] {
            let hanging = timeout(CALL_TIMEOUT, hang(&calls, &init, kind));
            assert!(hanging.await.is_err(), "{kind:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn call_that_waits_for_its_turn_can_be_cut_short() {
        let (calls, init) = (Calls::default(), init());
        let _turn = calls.turn(&init, Kind::OutlivesInit, &Cancel::new()).await;
        let limit = Cancel::after(CALL_TIMEOUT);
        let waiting = calls.turn(&init, Kind::EndsWithInit, &limit).await;
        let error = waiting.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    }
}
