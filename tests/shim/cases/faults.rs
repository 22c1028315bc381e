//! Runtimes that fail or hang, mounts that fail, clients that leave: what is asked
//! for elsewhere is answered, and nothing is left behind.

use std::fs;

use containerd_shim_rs_v2::proto::Mount;
use containerd_shim_rs_v2::proto::task::CreateTaskResponse;
use containerd_shim_rs_v2::proto::types::Status;

use crate::harness::container::Container;
use crate::harness::machine::mounts_below;
use crate::harness::runtime::{At, FakeRuntime};
use crate::harness::*;

fn container<'d>(d: &'d Daemon, runtime: &FakeRuntime, id: &str) -> container::Builder<'d> {
    d.container(id, &["sleep", "inf"])
        .group("pod")
        .options(|o| o.binary_name = runtime.path())
}

/// Asks `c` what never waits for a runtime.
#[track_caller]
fn assert_answers(c: &Container, status: Status) {
    assert!(!c.pids().expect("Pids").is_empty());
    assert_ne!(c.connect().unwrap().task_pid, 0);
    let wait = c.wait_pending();
    assert_eq!(c.status(), status);
    assert!(!wait.answered());
}

/// A failed Create leaves no container, no mount and no event.
#[track_caller]
fn assert_not_created(d: &Daemon, c: &Container) {
    c.state().refused(Code::NOT_FOUND, "container not created");
    c.assert_gone();
    c.shut_down();
    assert_eq!(d.events.of("c").len(), 0, "{:?}", d.events.of("c"));
}

cases! {
    fn runtime_binary_does_not_exist(d) {
        let c = d.container("c", &["true"]).options(|o| o.binary_name = "no-runc".into()).shim();
        const TEXT: &str = r#"exec: "no-runc": executable file not found in $PATH"#;
        c.create().refused(Code::UNKNOWN, TEXT);
        assert_not_created(d, &c);
    }

    fn runtime_fails_to_create(d) {
        let c = d.container("c", &["no-such-program"]).shim();
        c.create().refused(Code::UNKNOWN, "OCI runtime create failed: ");
        assert_not_created(d, &c);
    }

    fn runtime_error_is_passed_on(d) {
        let runtime = d.fake_runtime();
        runtime.fail("create", "the moon is full");
        let c = d.container("c", &["true"]).options(|o| o.binary_name = runtime.path()).shim();
        c.create().refused(Code::UNKNOWN, "OCI runtime create failed: the moon is full");
        assert_not_created(d, &c);
    }

    fn runtime_error_is_found_among_other_log_lines(d) {
        let runtime = d.fake_runtime();
        let log = concat!(
            "{\"level\":\"warning\",\"msg\":\"a warning\"}\n",
            "{\"level\":\"error\",\"msg\":\"the moon is full\"}\n",
            "{\"level\":\"info\",\"msg\":\"a remark\"}\n",
        );
        runtime.fail_with_log("create", log);
        let c = d.container("c", &["true"]).options(|o| o.binary_name = runtime.path()).shim();
        c.create().refused(Code::UNKNOWN, "OCI runtime create failed: the moon is full");
    }

    fn runtime_error_is_found_among_malformed_log_lines(d) {
        let runtime = d.fake_runtime();
        let log = "ge of an older, longer line\"}\n{\"level\":\"error\",\"msg\":\"the moon is full\"}\nrest";
        runtime.fail_with_log("create", log);
        let c = d.container("c", &["true"]).options(|o| o.binary_name = runtime.path()).shim();
        c.create().refused(Code::UNKNOWN, "the moon is full");
    }

    fn youki_error_is_found(d) {
        let runtime = d.fake_runtime();
        let log = r#"{"timestamp":"2024-01-01T00:00:00Z","level":"ERROR","message":"the moon is full"}"#;
        runtime.fail_with_log("create", log);
        let c = d.container("c", &["true"]).options(|o| o.binary_name = runtime.path()).shim();
        c.create().refused(Code::UNKNOWN, "the moon is full");
    }

    fn queries_and_signals_run_no_runtime(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").host_pids().run();
        let before = runtime.calls();
        assert_answers(&c, Status::RUNNING);
        c.kill(18).unwrap();
        assert_eq!(runtime.calls(), before);
        c.end();
        c.finish();
    }

    fn update_runs_the_runtime(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").run();
        c.update(Some(r#"{"pids": {"limit": 77}}"#)).unwrap();
        assert!(runtime.calls().contains(&"update".to_string()), "{:?}", runtime.calls());
    }

    fn runtime_fails_to_checkpoint(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        runtime.fail("checkpoint", "not today");
        c.checkpoint(d.path("image").to_str().unwrap()).refused(Code::UNKNOWN, "");
        assert_eq!(c.status(), Status::RUNNING);
        c.end();
        c.finish();
    }

    fn container_is_restored_when_it_is_started(d) {
        let runtime = d.fake_runtime();
        runtime.fail("restore", "not today");
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).shim();
        let mut request = c.create_request();
        request.checkpoint = d.path("image").to_str().unwrap().into();
        let created: CreateTaskResponse = c.call("Create", &request).unwrap();
        assert_eq!(created.pid, 0);
        assert_eq!(c.status(), Status::CREATED);
        assert_eq!(d.events.get("c", "create").pid, 0);
        assert!(!runtime.calls().contains(&"create".to_string()));
        assert!(c.exec("e", &["true"]).is_err());
        c.start().refused(Code::UNKNOWN, "");
        assert!(runtime.calls().contains(&"restore".to_string()), "{:?}", runtime.calls());
        assert_eq!(c.status(), Status::CREATED);
        c.finish();
    }

    fn container_with_an_unknown_capability(d) {
        let c = d.container("c", &["true"]).spec(|spec| {
            spec["process"]["capabilities"]["bounding"] = serde_json::json!(["CAP_KILL", "CAP_OF_THE_FUTURE"]);
        });
        let c = c.run();
        assert_eq!(c.exit_status(), 0);
        c.finish();
    }

    fn earlier_runtime_error_is_not_reported_again(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        runtime.fail("exec", "the moon is full");
        c.exec("e1", &["true"]).unwrap().start().refused(Code::UNKNOWN, "the moon is full");
        runtime.fail("exec", "");
        let failure = c.exec("e2", &["true"]).unwrap().start().unwrap_err();
        assert!(!failure.message.contains("moon"), "{failure:?}");
    }

    fn runtime_fails_to_start(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).created();
        runtime.fail("start", "not today");
        c.start().refused(Code::UNKNOWN, "OCI runtime start failed: not today");
        assert_eq!(c.status(), Status::CREATED);
        assert_eq!(d.events.until("c", "create"), ["create"]);
        c.finish();
    }

    fn runtime_fails_to_pause(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        runtime.fail("pause", "not today");
        c.pause().refused(Code::UNKNOWN, "OCI runtime pause failed: not today");
        assert_eq!(c.status(), Status::RUNNING);
    }

    fn runtime_fails_to_delete(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["true"]).options(|o| o.binary_name = runtime.path()).run();
        c.exit_status();
        runtime.fail("delete", "not today");
        c.delete().refused(Code::UNKNOWN, "not today");
        fs::remove_file(d.path("fake-runtime").join("delete.fail")).unwrap();
        c.finish();
    }

    fn runtime_hangs_in_create(d) {
        let runtime = d.fake_runtime();
        let other = container(d, &runtime, "other").run();
        let c = container(d, &runtime, "c").shim();
        let mut held = runtime.hold("create", At::Before);
        let create = c.create_pending();
        held.reached();
        assert_answers(&other, Status::RUNNING);
        other.exec("e", &["true"]).unwrap().start().unwrap();
        assert_eq!(other.process("e").exit_status(), 0);
        c.state().refused(Code::NOT_FOUND, "");
        held.release();
        create.wait().unwrap();
        assert_eq!(c.status(), Status::CREATED);
    }

    fn runtime_hangs_in_start(d) {
        let runtime = d.fake_runtime();
        let other = container(d, &runtime, "other").run();
        let c = container(d, &runtime, "c").created();
        let mut held = runtime.hold("start", At::Before);
        let start = c.start_pending();
        held.reached();
        assert_answers(&other, Status::RUNNING);
        assert_answers(&c, Status::CREATED);
        held.release();
        start.wait().unwrap();
        assert_eq!(c.status(), Status::RUNNING);
    }

    fn runtime_hangs_in_exec(d) {
        let runtime = d.fake_runtime();
        let other = container(d, &runtime, "other").run();
        let c = container(d, &runtime, "c").run();
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let mut held = runtime.hold("exec", At::Before);
        let start = e.start_pending();
        held.reached();
        assert_answers(&other, Status::RUNNING);
        assert_answers(&c, Status::RUNNING);
        assert_eq!(e.status(), Status::CREATED);
        held.release();
        start.wait().unwrap();
        assert_eq!(e.status(), Status::RUNNING);
    }

    fn runtime_hangs_in_delete(d) {
        let runtime = d.fake_runtime();
        let other = container(d, &runtime, "other").run();
        let c = container(d, &runtime, "c").run();
        c.end();
        let mut held = runtime.hold("delete", At::Before);
        let delete = c.delete_pending();
        held.reached();
        assert_answers(&other, Status::RUNNING);
        assert_eq!(c.exit_status(), 137);
        held.release();
        delete.wait().unwrap();
    }

    fn concurrent_deletes(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").run();
        c.end();
        let mut held = runtime.hold("delete", At::Before);
        let other = c.over(&c.reconnect());
        let (first, second) = (c.delete_pending(), other.delete_pending());
        held.reached();
        held.release();
        // One joined the other, or came too late.
        let answers = [first.wait(), second.wait()];
        assert!(answers.iter().any(Result::is_ok), "{answers:?}");
        for failure in answers.into_iter().filter_map(Result::err) {
            assert_eq!(failure.code, Code::NOT_FOUND, "{failure:?}");
        }
        d.events.get("c", "delete");
        c.shut_down();
        assert_eq!(d.events.of("c").iter().filter(|e| e.kind == "delete").count(), 1);
    }

    fn client_leaves_while_an_exec_is_started(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").run();
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let mut held = runtime.hold("exec", At::Before);
        let other = c.reconnect();
        let _start = e.over(&other).start_pending();
        held.reached();
        other.close();
        assert_eq!(c.status(), Status::RUNNING);
        held.release();
        c.end();
        c.finish();
    }

    fn client_leaves_while_a_container_is_created(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").shim();
        let mut held = runtime.hold("create", At::Before);
        let other = c.reconnect();
        let _create: rpc::Pending<CreateTaskResponse> =
            c.over(&other).send("Create", &c.create_request());
        held.reached();
        other.close();
        held.release();
        // Done or undone: it is one of both, and can be cleaned up.
        c.kill_shim();
        d.delete("c");
        c.assert_gone();
    }

    fn mount_that_fails_half_way(d) {
        let good = d.container("x", &["true"]).shim().create_request().rootfs[0].clone();
        let bad = Mount { type_: "bind".into(), source: "/no/such/place".into(), options: vec!["bind".into()], ..Default::default() };
        let c = d.container("c", &["true"]).mounts(vec![good.clone(), good, bad]).shim();
        let failure = c.create().unwrap_err();
        assert!(failure.message.to_lowercase().contains("no such file or directory"), "{failure:?}");
        assert_not_created(d, &c);
    }

    fn mount_of_an_unknown_type(d) {
        let bad = Mount { type_: "no-such-fs".into(), source: "none".into(), ..Default::default() };
        let c = d.container("c", &["true"]).mounts(vec![bad]).shim();
        assert!(c.create().is_err());
        assert_not_created(d, &c);
    }

    fn stacked_mounts_are_unmounted(d) {
        let good = d.container("x", &["true"]).shim().create_request().rootfs[0].clone();
        let c = d.container("c", &["true"]).mounts(vec![good.clone(), good]).run();
        assert_eq!(c.exit_status(), 0);
        assert_eq!(mounts_below(&c.bundle).len(), 2);
        c.finish();
    }

    fn nothing_is_unmounted_without_mounts(d) {
        let c = d.container("c", &["true"]).mounts(Vec::new());
        let c = c.spec(|spec| spec["root"]["path"] = bundle::rootfs().to_str().unwrap().into()).run();
        assert_eq!(c.exit_status(), 0);
        c.finish();
    }

    fn create_can_be_repeated_after_it_failed(d) {
        let runtime = d.fake_runtime();
        runtime.fail("create", "not today");
        let c = d.container("c", &["true"]).options(|o| o.binary_name = runtime.path()).shim();
        c.create().refused(Code::UNKNOWN, "not today");
        fs::remove_file(d.path("fake-runtime").join("create.fail")).unwrap();
        c.create().unwrap();
        c.start().unwrap();
        assert_eq!(c.exit_status(), 0);
        c.finish();
    }

    fn container_id_that_exists(d) {
        let c = d.running("c");
        c.create().refused(Code::ALREADY_EXISTS, "c");
        assert_eq!(c.status(), Status::RUNNING);
        c.end();
        c.finish();
    }

    fn runtime_inherits_no_descriptor(d) {
        let (fifos, terminal) = (d.fifos("c"), d.terminal("e"));
        let c = d.container("c", &["sleep", "inf"]).stdio(fifos.stdio).run();
        c.exec_with("e", &["sleep", "inf"], &terminal.stdio).unwrap().start().unwrap();
        let other = c.reconnect();
        c.over(&other).state().unwrap();
        // The terminal's master among them.
        assert!(c.footprint().0.iter().any(|name| name.contains("ptmx")), "{:?}", c.footprint().0);
        assert_eq!(c.inheritable(), Vec::<String>::new());
    }

    fn server_inherits_no_descriptor(d) {
        // A containerd that has left one open.
        let (file, leaky) = (d.path("left-open"), d.path("leaky-shim"));
        fs::write(&file, "").unwrap();
        write_program(&leaky, &format!("exec 9<{}\nexec {} \"$@\"", file.display(), shim_binary()));
        d.replace_shim(leaky.to_str().unwrap());
        let c = d.running("c");
        let (descriptors, _) = c.footprint();
        assert!(!descriptors.contains(&file.display().to_string()), "{descriptors:?}");
        c.end();
        c.finish();
    }

    fn container_id_that_is_being_created(d) {
        let runtime = d.fake_runtime();
        let c = container(d, &runtime, "c").shim();
        let mut held = runtime.hold("create", At::Before);
        let create = c.create_pending();
        held.reached();
        c.create().refused(Code::ALREADY_EXISTS, "c");
        held.release();
        create.wait().unwrap();
        assert_eq!(c.status(), Status::CREATED);
        c.finish();
    }

    fn bundle_that_does_not_exist(d) {
        let c = d.container("c", &["true"]).shim();
        let mut request = c.create_request();
        request.bundle = "/no/such/bundle".into();
        let failure = c.call::<CreateTaskResponse>("Create", &request).unwrap_err();
        assert!(failure.message.contains("/no/such/bundle"), "{failure:?}");
        assert_not_created(d, &c);
    }

    fn ids_that_are_paths(d) {
        let c = d.running("c");
        for id in ["", ".", "..", "../c", "c/../../c"] {
            let mut request = c.create_request();
            (request.id, request.rootfs) = (id.into(), Vec::new());
            c.call::<CreateTaskResponse>("Create", &request).refused(Code::INVALID_ARGUMENT, id);
            assert_eq!(c.status(), Status::RUNNING);
        }
        for id in ["", "..", "a/b", "../e"] {
            c.exec(id, &["true"]).refused(Code::INVALID_ARGUMENT, id);
        }
        c.end();
        c.finish();
    }

    fn verb_that_the_runtime_lacks(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        // As runtimes do that were built without it: usage, and nothing in the log.
        runtime.fail_on_stderr("checkpoint", "no such command: checkpoint");
        c.checkpoint(d.path("image").to_str().unwrap()).refused(Code::UNKNOWN, "no such command: checkpoint");
        assert_eq!(c.status(), Status::RUNNING);
        c.end();
        c.finish();
    }
}
