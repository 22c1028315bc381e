//! The state grid: every operation in every state, with its code and its text.

use containerd_shim_rs_v2::proto::task::CreateTaskResponse;
use containerd_shim_rs_v2::proto::types::Status;

use crate::harness::container::Container;
use crate::harness::runtime::{At, FakeRuntime};
use crate::harness::task::Process;
use crate::harness::*;

/// Signal that neither ends nor changes anything.
const SIGWINCH: i32 = 28;

/// Every request of a container that is not there is answered alike.
#[track_caller]
fn assert_unknown(p: &Process) {
    const TEXT: &str = "container not created: not found";
    p.start().refused(Code::NOT_FOUND, TEXT);
    p.state().refused(Code::NOT_FOUND, TEXT);
    p.kill(9).refused(Code::NOT_FOUND, TEXT);
    p.wait().refused(Code::NOT_FOUND, TEXT);
    p.delete().refused(Code::NOT_FOUND, TEXT);
    p.resize(1, 1).refused(Code::NOT_FOUND, TEXT);
    p.close_io().refused(Code::NOT_FOUND, TEXT);
    p.pids().refused(Code::NOT_FOUND, TEXT);
    p.pause().refused(Code::NOT_FOUND, TEXT);
    p.resume().refused(Code::NOT_FOUND, TEXT);
    p.update(Some("{}")).refused(Code::NOT_FOUND, TEXT);
    p.checkpoint("/nowhere").refused(Code::NOT_FOUND, TEXT);
    p.stats().refused(Code::NOT_FOUND, TEXT);
    // Never refused; nothing is known of the task.
    assert_eq!(p.connect().unwrap().task_pid, 0);
}

/// A container that waits to be restored; its runtime is fake.
fn to_be_restored<'d>(d: &'d Daemon, runtime: &FakeRuntime) -> Container<'d> {
    let c = d.container("c", &["sleep", "inf"]);
    let c = c.options(|o| o.binary_name = runtime.path()).shim();
    let mut request = c.create_request();
    request.checkpoint = d.path("image").to_str().unwrap().into();
    let created: CreateTaskResponse = c.call("Create", &request).expect("Create");
    assert_eq!(created.pid, 0);
    c
}

/// Refused as what the state does not allow.
trait No {
    fn no(self, text: &str);
}

impl<T> No for Result<T, rpc::Failure> {
    #[track_caller]
    fn no(self, text: &str) {
        self.refused(Code::UNKNOWN, text);
    }
}

#[track_caller]
fn assert_exec_refused(c: &Container, text: &str) {
    c.exec("refused", &["true"]).no(text);
    c.process("refused").state().refused(Code::NOT_FOUND, "");
}

cases! {
    fn created_init(d) {
        let c = d.container("c", &["sleep", "inf"]).created();
        assert_eq!(c.status(), Status::CREATED);
        let wait = c.wait_pending();
        c.exec("e", &["true"]).unwrap();
        c.kill(SIGWINCH).unwrap();
        c.resize(80, 25).unwrap();
        c.close_io().unwrap();
        assert_eq!(c.pids().unwrap().len(), 1);
        c.pause().no("cannot pause task in created state");
        c.resume().no("cannot resume task in created state");
        c.update(Some("{}")).unwrap();
        c.checkpoint("/nowhere").no("cannot checkpoint a task in created state");
        assert_eq!(c.status(), Status::CREATED);
        assert!(!wait.answered());
        c.start().unwrap();
        assert_eq!(c.status(), Status::RUNNING);
        assert!(!wait.answered());
    }

    fn init_to_be_restored(d) {
        let runtime = d.fake_runtime();
        let c = to_be_restored(d, &runtime);
        let state = c.state().unwrap();
        assert_eq!((c.status(), state.pid), (Status::CREATED, 0));
        let wait = c.wait_pending();
        assert_exec_refused(&c, "cannot exec in a created");
        c.kill(9).refused(Code::NOT_FOUND, "");
        c.resize(80, 25).unwrap();
        c.close_io().unwrap();
        c.pause().no("cannot pause task in created state");
        c.resume().no("cannot resume task in created state");
        c.checkpoint("/nowhere").no("cannot checkpoint a task in created state");
        c.stats().refused(Code::NOT_FOUND, "cgroup does not exist: not found");
        assert!(c.pids().is_err());
        assert_eq!(c.status(), Status::CREATED);
        assert!(!wait.answered());
        let deleted = c.delete().unwrap();
        assert_eq!((deleted.pid, deleted.exit_status), (0, 0));
        assert_unknown(&c);
        c.shut_down();
    }

    fn running_init(d) {
        let c = d.running("c");
        c.start().no("cannot start a running process");
        c.exec("e", &["true"]).unwrap();
        c.kill(SIGWINCH).unwrap();
        c.resize(80, 25).unwrap();
        c.close_io().unwrap();
        assert_eq!(c.pids().unwrap().len(), 1);
        c.resume().no("cannot resume a running process");
        c.update(Some("{}")).unwrap();
        c.delete().no("cannot delete a running process");
        assert_eq!(c.status(), Status::RUNNING);
        c.end();
        c.finish();
    }

    fn paused_init(d) {
        let c = d.running("c");
        c.pause().unwrap();
        assert_eq!(c.status(), Status::PAUSED);
        let wait = c.wait_pending();
        c.start().no("cannot start a paused process");
        assert_exec_refused(&c, "cannot exec in a paused state");
        c.kill(SIGWINCH).unwrap();
        c.resize(80, 25).unwrap();
        c.close_io().unwrap();
        assert_eq!(c.pids().unwrap().len(), 1);
        c.pause().no("cannot pause a paused container");
        c.update(Some("{}")).unwrap();
        c.delete().no("cannot delete a paused process");
        assert_eq!(c.status(), Status::PAUSED);
        assert!(!wait.answered());
        c.resume().unwrap();
        assert_eq!(c.status(), Status::RUNNING);
        assert_eq!(d.events.until("c", "resumed"), ["create", "start", "paused", "resumed"]);
        c.end();
        c.finish();
    }

    fn running_and_paused_inits_are_checkpointed(d) {
        let runtime = d.fake_runtime();
        runtime.fail("checkpoint", "not today");
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        let checkpoints = || runtime.calls().iter().filter(|call| *call == "checkpoint").count();
        c.checkpoint("/nowhere").no("");
        assert_eq!((c.status(), checkpoints()), (Status::RUNNING, 1));
        c.pause().unwrap();
        c.checkpoint("/nowhere").no("");
        assert_eq!(checkpoints(), 2);
        assert_eq!(c.status(), Status::PAUSED);
        c.resume().unwrap();
        c.end();
        c.finish();
    }

    fn init_is_pausing_while_the_runtime_pauses_it(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        let mut held = runtime.hold("pause", At::Before);
        let pause = c.pause_pending();
        held.reached();
        assert_eq!(c.status(), Status::PAUSING);
        held.release();
        pause.wait().unwrap();
        assert_eq!(c.status(), Status::PAUSED);
        c.resume().unwrap();
        assert_eq!(c.status(), Status::RUNNING);
    }

    fn exec_is_pausing_with_its_container(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        e.start().unwrap();
        let mut held = runtime.hold("pause", At::Before);
        let pause = c.pause_pending();
        held.reached();
        assert_eq!(e.status(), Status::PAUSING);
        held.release();
        pause.wait().unwrap();
        assert_eq!(e.status(), Status::PAUSED);
        c.resume().unwrap();
        assert_eq!(e.status(), Status::RUNNING);
    }

    fn stopped_init(d) {
        let c = d.container("c", &["true"]).run();
        c.exit_status();
        assert_eq!(c.status(), Status::STOPPED);
        c.start().no("cannot start a stopped process");
        assert_exec_refused(&c, "cannot exec in a stopped state");
        c.kill(9).refused(Code::NOT_FOUND, "process already finished: not found");
        c.resize(80, 25).unwrap();
        c.close_io().unwrap();
        c.pause().no("cannot pause a stopped container");
        c.resume().no("cannot resume a stopped container");
        c.update(Some("{}")).no("cannot update a stopped container");
        c.checkpoint("/nowhere").no("cannot checkpoint a stopped container");
        assert_eq!(c.exit_status(), 0);
        assert_eq!(c.status(), Status::STOPPED);
        c.finish();
    }

    fn stopped_init_with_a_terminal(d) {
        let fifos = d.terminal("c");
        let c = d.container("c", &["true"]).stdio(fifos.stdio).run();
        c.exit_status();
        c.resize(80, 25).unwrap();
        c.finish();
    }

    fn pids_of_a_stopped_container_are_not_empty(d) {
        let c = d.container("c", &["true"]).run();
        c.exit_status();
        // Nor an error: to containerd up to 2.2 both mean that the container is lost.
        let pids: Vec<u32> = c.pids().unwrap().iter().map(|info| info.pid).collect();
        assert_eq!(pids, [c.state().unwrap().pid]);
        c.finish();
    }

    fn deleted_init(d) {
        let c = d.container("c", &["true"]).run();
        c.exit_status();
        c.delete().unwrap();
        assert_unknown(&c);
        c.shut_down();
    }

    fn unknown_container(d) {
        let c = d.running("c");
        assert_unknown(&c.other("unknown"));
        c.other("unknown").process("e").state().refused(Code::NOT_FOUND, "container not created");
        assert_eq!(c.status(), Status::RUNNING);
    }

    fn created_exec(d) {
        let c = d.running("c");
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let state = e.state().unwrap();
        assert_eq!((state.id.as_str(), state.pid), ("e", 0));
        assert_eq!(e.status(), Status::CREATED);
        let wait = e.wait_pending();
        e.kill(9).refused(Code::FAILED_PRECONDITION, "process not created: failed precondition");
        e.resize(80, 25).unwrap();
        e.close_io().unwrap();
        assert_eq!(e.status(), Status::CREATED);
        assert!(!wait.answered());
        e.delete().unwrap();
        e.state().refused(Code::NOT_FOUND, "process does not exist e: not found");
    }

    fn running_exec(d) {
        let c = d.running("c");
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let pid = e.start().unwrap();
        assert_eq!(e.state().unwrap().pid, pid);
        assert_eq!(e.status(), Status::RUNNING);
        e.start().no("cannot start a running process");
        e.resize(80, 25).unwrap();
        e.close_io().unwrap();
        e.delete().no("cannot delete a running process");
        e.kill(9).unwrap();
        assert_eq!(e.exit_status(), 137);
        assert_eq!(e.delete().unwrap().pid, pid);
    }

    fn stopped_exec(d) {
        let c = d.running("c");
        let e = c.exec("e", &["sh", "-c", "exit 5"]).unwrap();
        e.start().unwrap();
        assert_eq!(e.exit_status(), 5);
        assert_eq!(e.status(), Status::STOPPED);
        assert_eq!(e.state().unwrap().exit_status, 5);
        e.start().no("cannot start a stopped process");
        e.kill(9).refused(Code::NOT_FOUND, "process already finished: not found");
        e.resize(80, 25).no("cannot resize a stopped container");
        e.close_io().unwrap();
        assert_eq!(e.delete().unwrap().exit_status, 5);
    }

    fn unknown_exec(d) {
        const TEXT: &str = "process does not exist e: not found";
        let c = d.running("c");
        let e = c.process("e");
        e.start().refused(Code::NOT_FOUND, TEXT);
        e.state().refused(Code::NOT_FOUND, TEXT);
        e.kill(9).refused(Code::NOT_FOUND, TEXT);
        e.wait().refused(Code::NOT_FOUND, TEXT);
        e.delete().refused(Code::NOT_FOUND, TEXT);
        e.resize(1, 1).refused(Code::NOT_FOUND, TEXT);
        assert!(e.close_io().is_err());
    }

    fn running_exec_of_a_paused_container(d) {
        let c = d.running("c");
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        e.start().unwrap();
        c.pause().unwrap();
        assert_eq!(e.status(), Status::PAUSED);
        let wait = e.wait_pending();
        e.start().no("cannot start a running process");
        e.resize(80, 25).unwrap();
        e.delete().no("cannot delete a running process");
        e.kill(9).unwrap();
        c.resume().unwrap();
        assert_eq!(wait.wait().unwrap().exit_status, 137);
        assert_eq!(e.status(), Status::STOPPED);
    }

    fn other_execs_of_a_paused_container(d) {
        let c = d.running("c");
        let (created, stopped) = (c.exec("created", &["true"]).unwrap(), c.exec("stopped", &["true"]).unwrap());
        stopped.start().unwrap();
        stopped.exit_status();
        c.pause().unwrap();
        assert_eq!((created.status(), stopped.status()), (Status::CREATED, Status::STOPPED));
        created.start().no("OCI runtime exec failed: ");
        assert_eq!(created.status(), Status::CREATED);
        created.delete().unwrap();
        stopped.delete().unwrap();
        c.resume().unwrap();
        c.end();
        c.finish();
    }

    fn paused_container_can_be_killed(d) {
        let c = d.running("c");
        c.pause().unwrap();
        c.kill(9).unwrap();
        assert_eq!(c.exit_status(), 137);
        assert_eq!(c.status(), Status::STOPPED);
        c.finish();
    }

    fn paused_container_can_be_killed_with_all(d) {
        let c = d.container("c", &["sleep", "inf"]).host_pids().run();
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        e.start().unwrap();
        c.pause().unwrap();
        c.kill_all(9).unwrap();
        assert_eq!((c.exit_status(), e.exit_status()), (137, 137));
        c.finish();
    }
}
