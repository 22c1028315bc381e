//! A container whose runtime can be held, just before one of the calls of its life; and its
//! removal, as containerd does it.

use std::sync::Arc;

use containerd_shim_rs_v2::proto::types::Status;
use containerd_shim_rs_v2::proto::{Empty, task};

use crate::harness::container::{Container, Fifos};
use crate::harness::rpc::{Connection, Pending};
use crate::harness::runtime::FakeRuntime;
use crate::harness::task::{Process, of_container};
use crate::harness::{Code, Daemon};

/// What Update asks for.
const RESOURCES: &str = r#"{"pids": {"limit": 77}}"#;

/// A container `c`, ready for one call.
pub struct Scene<'d> {
    pub d: &'d Daemon,
    pub runtime: FakeRuntime,
    pub c: Container<'d>,
    pub verb: &'static str,
    /// What reads the outputs.
    _fifos: [Fifos; 2],
}

impl<'d> Scene<'d> {
    /// In the state in which `verb` is allowed.
    pub fn new(d: &'d Daemon, verb: &'static str) -> Scene<'d> {
        let runtime = d.fake_runtime();
        let fifos = [d.fifos("c"), d.fifos("e")];
        let builder = d
            .container("c", &["sleep", "inf"])
            .stdio(fifos[0].stdio.clone());
        let c = builder.options(|o| o.binary_name = runtime.path()).shim();
        if verb != "create" {
            c.create().expect("Create");
        }
        if !["create", "start"].contains(&verb) {
            c.start().expect("Start");
        }
        match verb {
            "exec" => drop(
                c.exec_with("e", &["sleep", "inf"], &fifos[1].stdio)
                    .expect("Exec"),
            ),
            "resume" => drop(c.pause().expect("Pause")),
            "delete" | "shutdown" => c.end(),
            _ => {}
        }
        if verb == "shutdown" {
            c.delete().expect("Delete");
            d.events.get("c", "delete");
        }
        Scene {
            d,
            runtime,
            c,
            verb,
            _fifos: fifos,
        }
    }

    /// Sends the call.
    pub fn send(&self) -> Pending<Empty> {
        self.send_over(&self.c.connection)
    }

    /// Sends the call over another connection.
    pub fn send_over(&self, connection: &Arc<Connection>) -> Pending<Empty> {
        let c = self.c.over(connection);
        match self.verb {
            "create" => c.send("Create", &self.c.create_request()),
            "start" => c.send("Start", &of_container!(StartRequest, c)),
            "exec" => c.send(
                "Start",
                &of_container!(StartRequest, c, exec_id: "e".into()),
            ),
            "pause" => c.send("Pause", &of_container!(PauseRequest, c)),
            "resume" => c.send("Resume", &of_container!(ResumeRequest, c)),
            "update" => c.send("Update", &c.update_request(Some(RESOURCES))),
            "kill" => c.send("Kill", &of_container!(KillRequest, c, signal: 9)),
            "delete" => c.send("Delete", &of_container!(DeleteRequest, c)),
            "shutdown" => c.send("Shutdown", &of_container!(ShutdownRequest, c)),
            other => panic!("no call {other}"),
        }
    }

    /// Init's pid, which containerd need not know yet.
    pub fn init(&self) -> i32 {
        let pid = std::fs::read_to_string(self.c.bundle.join("init.pid"));
        pid.expect("read init.pid").trim().parse().expect("a pid")
    }
}

/// Removes a container and shuts its server down, as containerd does for a user: over a new
/// connection, and with the action `delete` if there is no server to connect to. The server's
/// exit code, or 128 + signal.
#[track_caller]
pub fn remove(c: &Container) -> i32 {
    let d = c.daemon;
    if let Ok(connection) = Connection::open(&c.started.address, d.hang_timeout) {
        let p = c.over(&connection);
        // Go's server may end before it has sent its last event. After a restart of containerd
        // the events come later, but at the latest before the server ends.
        if delete_task(&p) && !d.events.was_stopped() {
            d.events.get(&c.container, "delete");
        }
        // It may end before its answer is read.
        let _ = p.shutdown();
    }
    let status = c.shim_exit();
    // containerd calls it whenever a connection has closed and it still has the shim.
    if status != 0 {
        d.delete(&c.container);
    }
    status
}

/// Kills a task and deletes it; whether there was one.
#[track_caller]
pub fn delete_task(p: &Process) -> bool {
    // It may have exited, or may just be created: then it is there for the second Kill.
    let killed = p.kill(9);
    if let Ok(state) = p.state() {
        if killed.is_err() && state.status != Status::STOPPED.into() {
            let _ = p.kill(9);
        }
        p.wait().expect("Wait");
    }
    match p.delete() {
        Ok(_) => true,
        Err(failure) if matches!(failure.code, Code::NOT_FOUND | Code::UNAVAILABLE) => false,
        Err(failure) => panic!("Delete: {failure:?}"),
    }
}

/// Every container that was created has exited and was deleted, once each and in order.
#[track_caller]
pub fn assert_events(d: &Daemon, id: &str) {
    assert_order(id, &kinds(d, id));
}

/// The same after a restart of containerd: an event comes again whose answer was lost.
#[track_caller]
pub fn assert_events_after_a_restart(d: &Daemon, id: &str) {
    let mut kinds = kinds(d, id);
    kinds.dedup();
    assert_order(id, &kinds);
}

/// The events of init so far.
fn kinds(d: &Daemon, id: &str) -> Vec<String> {
    let events = d.events.of(id).into_iter().map(|event| event.short());
    let of_init = ["create", "start", "exit", "delete"];
    events
        .filter(|event| of_init.contains(&event.as_str()))
        .collect()
}

#[track_caller]
fn assert_order(id: &str, kinds: &[String]) {
    let whole = ["", "create exit delete", "create start exit delete"];
    assert!(
        whole.contains(&kinds.join(" ").as_str()),
        "events of {id}: {kinds:?}"
    );
}
