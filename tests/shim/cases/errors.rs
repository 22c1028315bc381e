//! What a client is told when the OCI runtime fails: by which operation, in whose
//! words, and what it may do then.

use containerd_shim_rs_v2::proto::types::Status;

use crate::harness::container::Container;
use crate::harness::runtime::FakeRuntime;
use crate::harness::*;

/// A running container under a runtime that can be made to fail.
fn running<'d>(d: &'d Daemon, runtime: &FakeRuntime) -> Container<'d> {
    d.container("c", &["sleep", "inf"])
        .options(|o| o.binary_name = runtime.path())
        .run()
}

cases! {
    fn runtime_fails_to_resume(d) {
        let runtime = d.fake_runtime();
        let c = running(d, &runtime);
        c.pause().unwrap();
        runtime.fail("resume", "not today");
        c.resume().refused(Code::UNKNOWN, "OCI runtime resume failed: not today");
        assert_eq!(c.status(), Status::PAUSED);
        runtime.stop_failing("resume");
        c.resume().unwrap();
        assert_eq!(c.status(), Status::RUNNING);
        assert_eq!(d.events.until("c", "resumed"), ["create", "start", "paused", "resumed"]);
        c.end();
        c.finish();
    }

    fn runtime_fails_to_update(d) {
        let runtime = d.fake_runtime();
        let c = running(d, &runtime);
        runtime.fail("update", "not today");
        c.update(Some("{}")).refused(Code::UNKNOWN, "not today");
        assert_eq!(c.status(), Status::RUNNING);
        c.end();
        c.finish();
    }

    fn start_can_be_repeated_after_it_failed(d) {
        let runtime = d.fake_runtime();
        let c = d.shell("c", "exit 3").options(|o| o.binary_name = runtime.path()).created();
        let wait = c.wait_pending();
        runtime.fail("start", "not today");
        c.start().refused(Code::UNKNOWN, "OCI runtime start failed: not today");
        assert!(!wait.answered());
        runtime.stop_failing("start");
        c.start().unwrap();
        assert_eq!(wait.wait().unwrap().exit_status, 3);
        assert_eq!(d.events.until("c", "exit"), ["create", "start", "exit"]);
        c.finish();
    }

    fn exec_start_can_be_repeated_after_it_failed(d) {
        let runtime = d.fake_runtime();
        let c = running(d, &runtime);
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        runtime.fail("exec", "not today");
        e.start().refused(Code::UNKNOWN, "OCI runtime exec failed: not today");
        runtime.stop_failing("exec");
        let pid = e.start().unwrap();
        assert_eq!((e.status(), e.state().unwrap().pid), (Status::RUNNING, pid));
        let wait = e.wait_pending();
        assert_eq!(e.status(), Status::RUNNING);
        assert!(!wait.answered());
        e.kill(9).unwrap();
        assert_eq!(wait.wait().unwrap().exit_status, 137);
        let events = d.events.until("c", "exit e");
        assert_eq!(events, ["create", "start", "exec-added e", "exec-started e", "exit e"]);
        e.delete().unwrap();
        c.end();
        c.finish();
    }

    fn exec_id_is_reusable_after_a_failed_start(d) {
        let c = d.running("c");
        let e = c.exec("e", &["no-such-program"]).unwrap();
        assert!(e.start().is_err());
        c.exec("e", &["true"]).refused(Code::ALREADY_EXISTS, "id e: already exists");
        e.delete().unwrap();
        c.exec("e", &["sh", "-c", "exit 4"]).unwrap().start().unwrap();
        assert_eq!(e.exit_status(), 4);
    }

    fn runtime_fails_without_a_message(d) {
        let runtime = d.fake_runtime();
        let c = running(d, &runtime);
        runtime.fail("exec", "");
        // No signal, as which a status of 1 could be taken.
        let failure = c.exec("e", &["true"]).unwrap().start().unwrap_err();
        assert!(failure.message.starts_with("OCI runtime exec failed: "), "{failure:?}");
        assert!(failure.message.contains("status 1") && !failure.message.contains("signal"), "{failure:?}");
    }

    fn runtime_binary_is_removed(d) {
        let runtime = d.fake_runtime();
        let c = running(d, &runtime);
        let path = runtime.path();
        std::fs::rename(&path, d.path("elsewhere")).unwrap();
        let e = c.exec("e", &["true"]).unwrap();
        e.start().refused(Code::UNKNOWN, &format!("fork/exec {path}: no such file or directory"));
        assert_eq!((c.status(), e.status()), (Status::RUNNING, Status::CREATED));
        std::fs::rename(d.path("elsewhere"), &path).unwrap();
        e.start().unwrap();
        assert_eq!(e.exit_status(), 0);
        c.end();
        c.finish();
    }

    fn runtime_cannot_be_run(d) {
        let path = d.path("runtime");
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        let path = path.to_str().unwrap();
        let c = d.container("c", &["true"]).options(|o| o.binary_name = path.into()).shim();
        c.create().refused(Code::UNKNOWN, &format!("fork/exec {path}: permission denied"));
        c.assert_gone();
        c.shut_down();
    }
}
