//! Nothing pending holds back an exit event, a Kill or a Delete past a bound: OCI
//! runtimes that hang, clients that leave, files that block. Whatever is cut short is
//! undone, and leaves no process.

use std::time::Duration;

use containerd_shim_rs_v2::proto::Empty;
use containerd_shim_rs_v2::proto::task::{self, CreateTaskResponse, StartResponse};
use containerd_shim_rs_v2::proto::types::Status;

use super::stdio::{both, logger};
use crate::harness::container::Builder;
use crate::harness::machine::Silent;
use crate::harness::rpc::{Connection, Pending};
use crate::harness::runtime::{At, FakeRuntime};
use crate::harness::task::Process;
use crate::harness::*;

/// A client's deadline that passes.
const DEADLINE: Duration = Duration::from_millis(500);

fn container<'d>(d: &'d Daemon, runtime: &FakeRuntime, id: &str) -> Builder<'d> {
    d.container(id, &["sleep", "inf"])
        .options(|o| o.binary_name = runtime.path())
}

/// Sends a request whose deadline passes, and waits until it has failed.
#[track_caller]
fn container_with_short_deadline<M: containerd_shim_rs_v2::proto::Message>(
    process: &Process,
    method: &str,
    request: &impl containerd_shim_rs_v2::proto::Message,
) {
    let service = process.api.service();
    let pending: Pending<M> = process.connection.send(service, method, request, DEADLINE);
    assert!(pending.wait().is_err(), "{method} was done");
}

fn start_request(process: &Process) -> task::StartRequest {
    task::StartRequest {
        id: process.container.clone(),
        exec_id: process.exec.clone(),
        ..Default::default()
    }
}

#[track_caller]
fn start_with_short_deadline(process: &Process) {
    container_with_short_deadline::<StartResponse>(process, "Start", &start_request(process));
}

/// Waits until no call of the runtime is under way.
#[track_caller]
fn assert_no_call(d: &Daemon, runtime: &FakeRuntime) {
    d.eventually("no process of the runtime", || {
        process::running(&runtime.path()).is_empty()
    });
}

/// The runtime has created the container, and after `change` it is killed: nothing is left,
/// and the container can be created.
#[track_caller]
fn killed_in_create(d: &Daemon, change: impl FnOnce()) {
    let runtime = d.fake_runtime();
    let c = container(d, &runtime, "c").shim();
    let mut held = runtime.hold("create", At::After);
    let create = c.create_pending();
    held.reached();
    change();
    runtime.kill();
    assert!(create.wait().is_err());
    c.assert_gone();
    held.release();
    c.create().unwrap();
    c.finish();
}

cases! {
    fn start_that_hangs_ends_after_its_deadline(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").created();
        let mut held = runtime.hold("start", At::Before);
        let start = start_request(&c);
        let pending: Pending<StartResponse> =
            c.connection.send(c.api.service(), "Start", &start, DEADLINE);
        held.reached();
        assert!(pending.wait().is_err());
        assert_no_call(d, &runtime);
        assert_eq!(c.status(), Status::CREATED);
        held.release();
        c.start().unwrap();
        assert_eq!(c.status(), Status::RUNNING);
        c.end();
        c.finish();
    }

    fn start_that_hangs_after_it_started_init_counts_as_a_start(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").created();
        let _held = runtime.hold("start", At::After);
        start_with_short_deadline(&c);
        d.eventually("running", || c.status() == Status::RUNNING);
        assert_no_call(d, &runtime);
        assert_eq!(d.events.until("c", "start"), ["create", "start"]);
        c.end();
        c.finish();
    }

    fn hanging_execs_leave_no_process_or_file(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").run();
        let mut held = runtime.hold("exec", At::Before);
        for n in 0..15 {
            let e = c.exec(&format!("probe{n}"), &["true"]).unwrap();
            start_with_short_deadline(&e);
        }
        held.reached();
        assert_no_call(d, &runtime);
        assert_eq!(c.status(), Status::RUNNING);
        for n in 0..15 {
            assert_eq!(c.process(&format!("probe{n}")).delete().unwrap().pid, 0);
        }
        c.end();
        assert_eq!(d.events.until("c", "exit").last().unwrap(), "exit");
        held.release();
        c.finish();
    }

    fn process_of_a_cancelled_exec_is_killed(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").run();
        let held = runtime.hold("exec", At::After);
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        start_with_short_deadline(&e);
        assert_no_call(d, &runtime);
        d.eventually("init alone", || c.pids().unwrap().len() == 1);
        held.release();
        e.delete().unwrap();
        c.end();
        c.finish();
    }

    fn exit_is_published_while_an_exec_hangs(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").run();
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let mut held = runtime.hold("exec", At::Before);
        let start = e.start_pending();
        held.reached();
        c.end();
        assert_eq!(d.events.until("c", "exit").last().unwrap(), "exit");
        assert_eq!(c.status(), Status::STOPPED);
        assert!(start.wait().is_err());
        assert_no_call(d, &runtime);
        c.finish();
    }

    fn exit_is_published_while_init_is_paused_resumed_or_updated(d) {
        let runtime = d.fake_runtime();
        for verb in ["pause", "resume", "update"] {
            let c = container(d, &runtime, verb).group("pod").run();
            if verb == "resume" {
                c.pause().unwrap();
            }
            let mut held = runtime.hold(verb, At::Before);
            let update = task::UpdateTaskRequest {
                id: verb.into(),
                resources: Some(containerd_shim_rs_v2::proto::Any { value: b"{}".into(), ..Default::default() }).into(),
                ..Default::default()
            };
            let pending: Pending<Empty> = match verb {
                "pause" => c.pause_pending(),
                "resume" => c.send("Resume", &task::ResumeRequest { id: verb.into(), ..Default::default() }),
                _ => c.send("Update", &update),
            };
            held.reached();
            c.end();
            d.events.get(verb, "exit");
            assert_eq!(c.status(), Status::STOPPED);
            c.delete().unwrap();
            assert!(pending.wait().is_err());
            assert_no_call(d, &runtime);
            held.release();
            c.assert_gone();
        }
    }

    fn cancelled_pause_is_undone(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").run();
        let _held = runtime.hold("pause", At::After);
        container_with_short_deadline::<Empty>(&c, "Pause", &task::PauseRequest { id: "c".into(), ..Default::default() });
        assert_no_call(d, &runtime);
        d.eventually("no call under way", || c.status() == Status::RUNNING);
        // It is not frozen, or will not be soon: it runs an exec to its end.
        let tries = std::cell::Cell::new(0);
        d.eventually("an exec", || {
            tries.set(tries.get() + 1);
            let e = c.exec(&format!("e{}", tries.get()), &["true"]).unwrap();
            e.start().is_ok_and(|_| e.exit_status() == 0)
        });
        c.end();
        c.finish();
    }

    fn runtime_is_killed_when_a_client_without_deadline_disconnects(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").run();
        c.exec("e", &["true"]).unwrap();
        for verb in ["exec", "pause", "update"] {
            let client = c.reconnect();
            let mut held = runtime.hold(verb, At::Before);
            let service = c.api.service();
            match verb {
                "exec" => drop(client.send::<StartResponse>(service, "Start", &start_request(&c.process("e")), Duration::ZERO)),
                "pause" => drop(client.send::<Empty>(service, "Pause", &task::PauseRequest { id: "c".into(), ..Default::default() }, Duration::ZERO)),
                _ => {
                    let resources = containerd_shim_rs_v2::proto::Any { value: b"{}".into(), ..Default::default() };
                    let update = task::UpdateTaskRequest { id: "c".into(), resources: Some(resources).into(), ..Default::default() };
                    drop(client.send::<Empty>(service, "Update", &update, Duration::ZERO));
                }
            }
            held.reached();
            client.close();
            assert_no_call(d, &runtime);
            held.release();
            d.eventually("no call under way", || c.status() == Status::RUNNING);
        }
        c.end();
        c.finish();
    }

    fn exec_without_a_fifo_reader_does_not_delay_the_exit(d) {
        let c = d.running("c");
        let e = c.exec_with("e", &["true"], &both(&d.fifo("unread"))).unwrap();
        let start = e.start_pending();
        assert_eq!(e.status(), Status::CREATED);
        c.end();
        d.events.get("c", "exit");
        assert!(start.wait().is_err());
        c.finish();
    }

    fn exec_with_an_unready_logger_does_not_delay_the_exit(d) {
        let c = d.running("c");
        let program = logger(d, "silent", "/bin/sleep 1000");
        let e = c.exec_with("e", &["true"], &both(&format!("binary://{program}"))).unwrap();
        let start = e.start_pending();
        d.eventually("the logger", || !process::running(&program).is_empty());
        c.end();
        d.events.get("c", "exit");
        assert!(start.wait().is_err());
        c.finish();
    }

    fn create_can_be_repeated_after_it_hung(d) {
        let runtime = d.fake_runtime();
        let other = container(d, &runtime, "other").group("pod").run();
        for at in [At::Before, At::After] {
            let c = match at {
                At::Before => container(d, &runtime, "before").group("pod").shim(),
                At::After => container(d, &runtime, "after").group("pod").shim(),
            };
            let held = runtime.hold("create", at);
            container_with_short_deadline::<CreateTaskResponse>(&c, "Create", &c.create_request());
            assert!(c.delete().is_err());
            assert_no_call(d, &runtime);
            c.assert_gone();
            held.release();
            c.create().unwrap();
            c.start().unwrap();
            c.end();
            c.delete().unwrap();
            c.assert_gone();
        }
        other.end();
        other.finish();
    }

    fn delete_cancels_a_creation(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").shim();
        let mut held = runtime.hold("create", At::Before);
        let create = c.create_pending();
        held.reached();
        c.delete().refused(Code::NOT_FOUND, "container not created");
        assert!(create.wait().is_err());
        assert_no_call(d, &runtime);
        held.release();
        c.assert_gone();
        c.create().unwrap();
        c.finish();
    }

    fn shutdown_cancels_a_creation(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").shim();
        let mut held = runtime.hold("create", At::Before);
        let create = c.create_pending();
        held.reached();
        c.shut_down();
        assert!(create.wait().is_err());
        assert_no_call(d, &runtime);
        assert_eq!(d.events.of("c").len(), 0, "{:?}", d.events.of("c"));
    }

    fn delete_cancels_a_hanging_start(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").created();
        let mut held = runtime.hold("start", At::Before);
        let start = c.start_pending();
        held.reached();
        c.delete().unwrap();
        assert!(start.wait().is_err());
        assert_no_call(d, &runtime);
        assert_eq!(d.events.until("c", "delete"), ["create", "exit", "delete"]);
        c.shut_down();
    }

    fn delete_can_be_repeated_after_it_hung(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").run();
        c.end();
        let held = runtime.hold("delete", At::Before);
        container_with_short_deadline::<task::DeleteResponse>(&c, "Delete", &task::DeleteRequest { id: "c".into(), ..Default::default() });
        assert_eq!((c.status(), c.exit_status()), (Status::STOPPED, 137));
        assert_no_call(d, &runtime);
        held.release();
        assert_eq!(c.delete().unwrap().exit_status, 137);
        c.shut_down();
    }

    fn repeated_delete_gets_the_same_answer_until_it_is_delivered(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").run();
        let pid = c.state().unwrap().pid;
        c.end();
        let mut held = runtime.hold("delete", At::After);
        let client = c.reconnect();
        drop(c.over(&client).delete_pending());
        held.reached();
        client.close();
        held.release();
        d.events.get("c", "delete");
        // containerd has not heard of it, and asks once more.
        assert_eq!((c.status(), c.exit_status()), (Status::STOPPED, 137));
        c.exec("e", &["true"]).refused(Code::UNKNOWN, "");
        let answer = c.delete().unwrap();
        assert_eq!((answer.pid, answer.exit_status), (pid, 137));
        c.delete().refused(Code::NOT_FOUND, "container not created");
        assert_eq!(d.events.of("c").iter().filter(|e| e.kind == "delete").count(), 1);
        c.shut_down();
    }

    fn signal_right_after_start_is_not_lost(d) {
        for n in 0..20 {
            let id = format!("c{n}");
            let c = d.container(&id, &["sleep", "inf"]).host_pids().group("pod").created();
            c.start().unwrap();
            c.kill(10).unwrap();
            assert_eq!(c.exit_status(), 128 + 10, "try {n}");
            c.delete().unwrap();
        }
    }

    fn signal_right_after_the_start_of_an_exec_is_not_lost(d) {
        let c = d.container("c", &["sleep", "inf"]).host_pids().run();
        for n in 0..20 {
            let e = c.exec(&format!("e{n}"), &["sleep", "inf"]).unwrap();
            e.start().unwrap();
            e.kill(10).unwrap();
            assert_eq!(e.exit_status(), 128 + 10, "try {n}");
            e.delete().unwrap();
        }
        c.end();
        c.finish();
    }

    fn runtime_that_writes_more_than_a_pipe_holds(d) {
        let runtime = d.fake_runtime();
        let fifos = d.fifos("c");
        let c = container(d, &runtime, "c").stdio(fifos.stdio.clone()).shim();
        runtime.fail_on_stderr("create", &"no\n".repeat(100_000));
        c.create().unwrap_err();
        c.assert_gone();
        c.shut_down();
    }

    fn blocking_config_json_does_not_delay_other_requests(d) {
        let other = d.container("other", &["sleep", "inf"]).group("pod").run();
        let c = d.container("c", &["true"]).group("pod").shim();
        let config = c.bundle.join("config.json");
        std::fs::remove_file(&config).unwrap();
        stdio::make_fifo(&config);
        let create: Pending<CreateTaskResponse> =
            c.connection.send(c.api.service(), "Create", &c.create_request(), DEADLINE);
        assert_eq!(other.status(), Status::RUNNING);
        let e = other.exec("e", &["true"]).unwrap();
        e.start().unwrap();
        assert_eq!(e.exit_status(), 0);
        assert!(create.wait().is_err());
        // Lets the thread go that reads it.
        drop(std::fs::File::options().read(true).write(true).open(&config).unwrap());
        c.delete().refused(Code::NOT_FOUND, "");
        other.end();
        other.finish();
    }

    fn runtime_on_a_dead_file_system_does_not_delay_other_requests(d) {
        let other = d.container("other", &["sleep", "inf"]).group("pod").run();
        let point = d.path("silent");
        std::fs::create_dir(&point).unwrap();
        let silent = Silent::mounted(&point);
        let binary = point.join("runc").to_str().unwrap().to_string();
        let c = d.container("c", &["true"]).group("pod").options(|o| o.binary_name = binary).shim();
        let create: Pending<CreateTaskResponse> =
            c.connection.send(c.api.service(), "Create", &c.create_request(), DEADLINE);
        assert_eq!(other.status(), Status::RUNNING);
        let e = other.exec("e", &["true"]).unwrap();
        e.start().unwrap();
        assert_eq!(e.exit_status(), 0);
        assert!(create.wait().is_err());
        drop(silent);
        c.delete().refused(Code::NOT_FOUND, "");
        c.assert_gone();
        other.end();
        other.finish();
    }

    fn killed_runtime_create_leaves_nothing(d) {
        killed_in_create(d, || {});
    }

    fn killed_runtime_create_without_state_leaves_no_cgroup(d) {
        let state = d.runtime_root().join(&d.namespace).join("c");
        killed_in_create(d, || std::fs::remove_dir_all(&state).unwrap());
    }

    fn second_delete_cancels_a_hanging_delete(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").run();
        c.end();
        let mut held = runtime.hold("delete", At::Before);
        // Its client sends no deadline, and does not leave.
        let request = task::DeleteRequest { id: "c".into(), ..Default::default() };
        let other = c.reconnect();
        let first: Pending<task::DeleteResponse> =
            other.send(c.api.service(), "Delete", &request, Duration::ZERO);
        held.reached();
        let patient = Connection::open(&c.started.address, 3 * d.hang_timeout).unwrap();
        let second = c.over(&patient).delete_pending();
        assert!(first.wait().is_err());
        held.release();
        // The runtime may hang in the second one, too, if that was faster than the release.
        if second.wait().is_err() {
            c.delete().unwrap();
        }
        assert_no_call(d, &runtime);
        c.shut_down();
    }

    fn hanging_exec_can_be_deleted(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").run();
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let mut held = runtime.hold("exec", At::Before);
        let other = c.reconnect();
        let start: Pending<StartResponse> =
            other.send(c.api.service(), "Start", &start_request(&e), Duration::ZERO);
        held.reached();
        assert_eq!(e.delete().unwrap().pid, 0);
        assert!(start.wait().is_err());
        assert_no_call(d, &runtime);
        assert_eq!(c.status(), Status::RUNNING);
        c.end();
        c.finish();
    }

    fn killed_runtime_exec_leaves_no_process(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").run();
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let mut held = runtime.hold("exec", At::After);
        let start = e.start_pending();
        held.reached();
        runtime.kill();
        assert!(start.wait().is_err());
        d.eventually("init alone", || c.pids().unwrap().len() == 1);
        held.release();
        c.end();
        c.finish();
    }
}
