//! The state grid: every operation in every state, with its code and its text.

use containerd_shim_rs_v2::proto::types::Status;

use crate::harness::container::Container;
use crate::harness::task::Process;
use crate::harness::*;

/// Signal that neither ends nor changes anything.
const SIGCONT: i32 = 18;

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

#[track_caller]
fn assert_exec_refused(c: &Container, text: &str) {
    c.exec("refused", &["true"]).refused(Code::UNKNOWN, text);
    c.process("refused").state().refused(Code::NOT_FOUND, "");
}

cases! {
    fn created_init(d) {
        let c = d.container("c", &["sleep", "inf"]).created();
        assert_eq!(c.status(), Status::CREATED);
        c.exec("e", &["true"]).unwrap();
        c.kill(SIGCONT).unwrap();
        c.pause().refused(Code::UNKNOWN, "cannot pause");
        c.resume().refused(Code::UNKNOWN, "cannot resume");
        c.update(Some("{}")).unwrap();
        c.checkpoint("/nowhere").refused(Code::UNKNOWN, "cannot checkpoint");
        assert_eq!(c.status(), Status::CREATED);
        c.start().unwrap();
        assert_eq!(c.status(), Status::RUNNING);
    }

    fn running_init(d) {
        let c = d.running("c");
        c.start().refused(Code::UNKNOWN, "cannot start a running process");
        c.exec("e", &["true"]).unwrap();
        c.kill(SIGCONT).unwrap();
        c.resume().refused(Code::UNKNOWN, "cannot resume");
        c.update(Some("{}")).unwrap();
        c.delete().refused(Code::UNKNOWN, "cannot delete a running process");
        assert_eq!(c.status(), Status::RUNNING);
        c.end();
        c.finish();
    }

    fn paused_init(d) {
        let c = d.running("c");
        c.pause().unwrap();
        assert_eq!(c.status(), Status::PAUSED);
        c.start().refused(Code::UNKNOWN, "cannot start a paused process");
        assert_exec_refused(&c, "cannot exec in a paused state");
        c.pause().refused(Code::UNKNOWN, "cannot pause");
        c.update(Some("{}")).unwrap();
        c.delete().refused(Code::UNKNOWN, "cannot delete a paused process");
        assert_eq!(c.status(), Status::PAUSED);
        c.resume().unwrap();
        assert_eq!(c.status(), Status::RUNNING);
        assert_eq!(d.events.until("c", "resumed"), ["create", "start", "paused", "resumed"]);
        c.end();
        c.finish();
    }

    fn stopped_init(d) {
        let c = d.container("c", &["true"]).run();
        c.exit_status();
        assert_eq!(c.status(), Status::STOPPED);
        c.start().refused(Code::UNKNOWN, "cannot start a stopped process");
        assert_exec_refused(&c, "cannot exec in a stopped state");
        c.kill(9).refused(Code::NOT_FOUND, "process already finished: not found");
        c.pause().refused(Code::UNKNOWN, "cannot pause");
        c.resume().refused(Code::UNKNOWN, "cannot resume");
        c.update(Some("{}")).refused(Code::UNKNOWN, "cannot update");
        c.checkpoint("/nowhere").refused(Code::UNKNOWN, "cannot checkpoint");
        assert_eq!(c.status(), Status::STOPPED);
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
        e.kill(9).refused(Code::FAILED_PRECONDITION, "process not created: failed precondition");
        e.resize(80, 25).unwrap();
        e.close_io().unwrap();
        e.delete().unwrap();
        e.state().refused(Code::NOT_FOUND, "process does not exist e: not found");
    }

    fn running_exec(d) {
        let c = d.running("c");
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let pid = e.start().unwrap();
        assert_eq!(e.state().unwrap().pid, pid);
        assert_eq!(e.status(), Status::RUNNING);
        e.start().refused(Code::UNKNOWN, "cannot start a running process");
        e.delete().refused(Code::UNKNOWN, "cannot delete a running process");
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
        e.start().refused(Code::UNKNOWN, "cannot start a stopped process");
        e.kill(9).refused(Code::NOT_FOUND, "process already finished: not found");
        e.resize(80, 25).refused(Code::UNKNOWN, "cannot resize a stopped container");
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

    fn exec_of_a_paused_container_is_paused(d) {
        let c = d.running("c");
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        e.start().unwrap();
        c.pause().unwrap();
        assert_eq!(e.status(), Status::PAUSED);
        c.resume().unwrap();
        assert_eq!(e.status(), Status::RUNNING);
    }

    fn paused_container_can_be_killed(d) {
        let c = d.running("c");
        c.pause().unwrap();
        c.kill(9).unwrap();
        assert_eq!(c.exit_status(), 137);
        assert_eq!(c.status(), Status::STOPPED);
        c.finish();
    }
}
