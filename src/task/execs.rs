//! The execs of a container: added, started, deleted, forgotten.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::value::RawValue;

use super::check_name;
use super::container::Container;
use super::process::{Process, Role};
use super::signals::SIGKILL;
use super::state::{ContainerOp, Op, Refusal, State};
use super::turn::Kind as CallKind;
use crate::cancel::Cancel;
use crate::descriptors;
use crate::error::{Error, Kind, Result};
use crate::events::Event;
use crate::stdio::Stdio;

impl Container {
    /// Adds an exec, to be started later.
    pub fn exec(&self, exec_id: String, stdio: Stdio, spec: &[u8]) -> Result<()> {
        self.check(ContainerOp::Exec)?;
        if self.init.pid() == 0 {
            return Err(Refusal::NotAllowed("cannot exec in a created checkpoint state").into());
        }
        check_name("exec", &exec_id)?;
        let spec = with_terminal(spec, stdio.terminal)?;
        let mut execs = self.execs.borrow_mut();
        let taken = execs.get(&exec_id);
        if taken.is_some_and(|exec| exec.state() != State::Deleted) {
            let message = format!("id {exec_id}: already exists");
            return Err(Error::new(Kind::AlreadyExists, message));
        }
        let exec = Process::new(exec_id.clone(), Role::Exec { spec }, stdio);
        execs.insert(exec_id.clone(), exec);
        self.publish(Event::ExecAdded {
            container_id: self.id().to_owned(),
            exec_id,
        });
        Ok(())
    }

    /// Starts an exec. Answers its pid.
    pub(super) async fn start_exec(
        self: &Rc<Self>,
        exec: Rc<Process>,
        cancel: &Cancel,
    ) -> Result<u32> {
        let _claim = descriptors::claim(&format!("start exec {}", exec.id))?;
        let turn = self.calls.turn(&exec, CallKind::EndsWithInit, cancel);
        let _turn = turn.await?;
        exec.check(Op::Start)?;
        if self.exits.borrow().init_has_exited() {
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!(
                    "container {} init process is not running: failed precondition",
                    self.id()
                ),
            ));
        }
        // Counts as running while it starts: the init's exit is published after its exit.
        self.exits.borrow_mut().hold();
        let unclaimed_exits = self.shared.reaper.keep_unclaimed_exits();
        match self.launch(&exec, cancel).await {
            Ok(()) => {
                drop(unclaimed_exits);
                self.exec_started(&exec);
                Ok(exec.pid())
            }
            Err(error) => {
                exec.release_waiters();
                self.release_init_exit();
                Err(error)
            }
        }
    }

    async fn launch(&self, exec: &Process, cancel: &Cancel) -> Result<()> {
        let mut io = self.open_stdio(exec, cancel).await?;
        let created = self.runtime.exec(self.id(), exec.spec(), &mut io, cancel);
        let pid = created.await?;
        let (child, exited) = self.adopt(pid)?;
        let started = cancel.unless(io.start()).await;
        match started.map_err(Error::from).flatten() {
            Ok(streams) => {
                // By now it may run its own program, but before that it ran the same as the
                // init, unless that was restored.
                let is_restored = self.checkpoint.is_some();
                let first = (!is_restored).then(|| self.init.first_program());
                exec.created((child, exited), streams, first.flatten());
                Ok(())
            }
            Err(error) => {
                // It runs, but without its stdio nobody can use it.
                let _ = child.signal(SIGKILL as i32);
                Err(error)
            }
        }
    }

    fn exec_started(self: &Rc<Self>, exec: &Rc<Process>) {
        // Nothing else could happen to it: this is its turn.
        let _ = exec.step(Op::Start);
        exec.started();
        if self.shares_pids && self.exits.borrow().init_has_exited() {
            // It started too late to be killed with what the init left.
            let _ = exec.signal(SIGKILL);
        }
        self.publish(Event::ExecStarted {
            container_id: self.id().to_owned(),
            exec_id: exec.id.clone(),
            pid: exec.pid(),
        });
        self.watch_exec(exec.clone());
    }

    pub(super) async fn delete_exec(&self, exec: &Process, cancel: &Cancel) -> Result<()> {
        if let Some(streams) = exec.streams() {
            cancel.unless(streams.drained()).await?;
        }
        exec.close_streams();
        exec.step(Op::Delete)?;
        exec.release_waiters();
        Ok(())
    }

    /// The client that deleted the exec has its answer: nobody will ask again.
    pub fn forget_exec(&self, exec_id: &str) {
        let mut execs = self.execs.borrow_mut();
        if let Some(exec) = execs.get(exec_id)
            && exec.state() == State::Deleted
        {
            execs.remove(exec_id);
        }
    }
}

/// The OCI process `spec` with its `terminal` set as the request says, and all else
/// as it came.
fn with_terminal(spec: &[u8], terminal: bool) -> Result<Vec<u8>> {
    let broken =
        |cause: serde_json::Error| Error::invalid(format!("read the exec's process spec: {cause}"));
    let mut process: BTreeMap<&str, &RawValue> = serde_json::from_slice(spec).map_err(broken)?;
    let terminal = serde_json::value::to_raw_value(&terminal).map_err(broken)?;
    process.insert("terminal", &terminal);
    serde_json::to_vec(&process).map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_of_the_request_overrides_the_spec() {
        let spec = br#"{"terminal":true,"args":["a"],"new":{"x":1.50}}"#;
        let json = with_terminal(spec, false).unwrap();
        let expected = r#"{"args":["a"],"new":{"x":1.50},"terminal":false}"#;
        assert_eq!(String::from_utf8(json).unwrap(), expected);
    }

    #[test]
    fn spec_that_is_not_json_is_an_invalid_argument() {
        for spec in [&b""[..], b"{", b"[1]", b"\xff", b"null"] {
            let error = with_terminal(spec, false).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        }
    }
}
