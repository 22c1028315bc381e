//! The life of a container and its execs: codes, pids, times, and the order of events.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_shim_rs_v2::proto::types::Status;
use containerd_shim_rs_v2::proto::{Any, Message, Timestamp, runc};

use crate::harness::container::Container;
use crate::harness::runtime::At;
use crate::harness::*;

/// Go's zero time, which a process that never exited has for its exit.
const NEVER: i64 = -62_135_596_800;

fn time(timestamp: &Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::new(timestamp.seconds as u64, timestamp.nanos as u32)
}

/// Where in `events` `short` is.
#[track_caller]
fn place(events: &[String], short: &str) -> usize {
    let place = events.iter().position(|event| event == short);
    place.unwrap_or_else(|| panic!("no {short} in {events:?}"))
}

/// A started exec that stays until it is killed.
fn sleeping_exec(c: &Container, id: &str) -> task::Process {
    let exec = c.exec(id, &["sleep", "inf"]).unwrap();
    exec.start().unwrap();
    exec
}

cases! {
    fn exit_code_is_reported(d) {
        let c = d.shell("c", "exit 7").run();
        assert_eq!(c.exit_status(), 7);
        c.delete().unwrap();
        assert_eq!(d.events.until("c", "delete"), ["create", "start", "exit", "delete"]);
        c.shut_down();
    }

    fn signal_is_reported_as_128_and_its_number(d) {
        let c = d.running("c");
        c.kill(9).unwrap();
        assert_eq!(c.exit_status(), 137);
        assert_eq!(d.events.get("c", "exit").status, 137);
        c.finish();
    }

    fn pid_is_equal_in_all_answers_and_events(d) {
        let c = d.container("c", &["sleep", "inf"]).shim();
        let pid = c.create().unwrap();
        assert_eq!(fs::read_to_string(c.bundle.join("init.pid")).unwrap(), pid.to_string());
        assert_eq!(c.state().unwrap().pid, pid);
        assert_eq!(c.start().unwrap(), pid);
        assert_eq!(c.connect().unwrap().task_pid, pid);
        c.end();
        assert_eq!(c.state().unwrap().pid, pid);
        assert_eq!(c.delete().unwrap().pid, pid);
        for kind in ["create", "start", "exit", "delete"] {
            assert_eq!(d.events.get("c", kind).pid, pid, "pid of {kind}");
        }
    }

    fn state_returns_what_was_requested(d) {
        let fifos = d.fifos("c");
        let c = d.container("c", &["sleep", "inf"]).stdio(fifos.stdio.clone()).created();
        let state = c.state().unwrap();
        assert_eq!(state.id, "c");
        assert_eq!(state.bundle, c.bundle.to_str().unwrap());
        assert_eq!((state.stdin, state.stdout), (fifos.stdio.stdin, fifos.stdio.stdout));
        assert_eq!((state.stderr, state.terminal), (fifos.stdio.stderr, false));
        assert_eq!(state.exit_status, 0);
    }

    fn exit_time_without_an_exit_is_gos_zero_time(d) {
        let c = d.container("c", &["sleep", "inf"]).created();
        assert_eq!(c.state().unwrap().exited_at.seconds, NEVER);
        c.start().unwrap();
        let e = c.exec("e", &["true"]).unwrap();
        assert_eq!(c.state().unwrap().exited_at.seconds, NEVER);
        assert_eq!(e.state().unwrap().exited_at.seconds, NEVER);
        let deleted = e.delete().unwrap();
        assert_eq!((deleted.pid, deleted.exit_status), (0, 0));
        assert_eq!(deleted.exited_at.seconds, NEVER);
    }

    fn exit_time_is_plausible_and_equal_in_all_answers_and_events(d) {
        let before = SystemTime::now();
        let c = d.container("c", &["true"]).run();
        let waited = c.wait().unwrap().exited_at;
        let after = SystemTime::now();
        assert!(before <= time(&waited) && time(&waited) <= after, "{waited:?}");
        assert_eq!(c.state().unwrap().exited_at, waited);
        assert_eq!(c.delete().unwrap().exited_at, waited);
        assert_eq!(d.events.get("c", "exit").exited_at.as_ref(), waited.as_ref());
        assert_eq!(d.events.get("c", "delete").exited_at.as_ref(), waited.as_ref());
    }

    fn unstarted_container_can_be_deleted(d) {
        let c = d.container("c", &["sleep", "inf"]).created();
        c.delete().unwrap();
        c.state().refused(Code::NOT_FOUND, "container not created");
        d.events.get("c", "delete");
        c.shut_down();
    }

    fn events_have_containerds_types(d) {
        let c = d.container("c", &["true"]).run();
        c.exit_status();
        c.delete().unwrap();
        for (short, name) in [("create", "TaskCreate"), ("start", "TaskStart"), ("exit", "TaskExit"), ("delete", "TaskDelete")] {
            let event = d.events.get("c", short);
            assert_eq!(event.type_url, format!("containerd.events.{name}"));
            assert_eq!(event.namespace, d.namespace);
            assert!(event.published_at.seconds > 1_600_000_000, "{:?}", event.published_at);
        }
    }

    fn create_event_has_what_was_requested(d) {
        let fifos = d.fifos("c");
        let c = d.container("c", &["sleep", "inf"]).stdio(fifos.stdio.clone()).created();
        let event = d.events.get("c", "create");
        let event = containerd_shim_rs_v2::proto::events::TaskCreate::parse_from_bytes(&event.value).unwrap();
        assert_eq!(event.bundle, c.bundle.to_str().unwrap());
        assert_eq!(event.io.stdout, fifos.stdio.stdout);
        assert_eq!(event.rootfs, c.create_request().rootfs);
        assert_eq!(event.checkpoint, "");
    }

    fn exec_events_are_in_order_without_a_delete(d) {
        let c = d.running("c");
        let e = c.exec("e", &["sh", "-c", "exit 3"]).unwrap();
        let pid = e.start().unwrap();
        assert_eq!(e.exit_status(), 3);
        e.delete().unwrap();
        c.end();
        c.delete().unwrap();
        let events = d.events.until("c", "delete");
        assert_eq!(events, ["create", "start", "exec-added e", "exec-started e", "exit e", "exit", "delete"]);
        assert_eq!(d.events.get("c", "exec-started e").pid, pid);
        let exit = d.events.get("c", "exit e");
        assert_eq!((exit.pid, exit.status), (pid, 3));
    }

    fn start_event_precedes_an_immediate_exit(d) {
        let c = d.running("c");
        for round in 0..50 {
            let id = format!("e{round}");
            let e = c.exec(&id, &["true"]).unwrap();
            e.start().unwrap();
            assert_eq!(e.exit_status(), 0);
            e.delete().unwrap();
        }
        let events = d.events.until("c", "exit e49");
        for round in 0..50 {
            let (started, exit) = (format!("exec-started e{round}"), format!("exit e{round}"));
            assert!(place(&events, &started) < place(&events, &exit), "{events:?}");
        }
    }

    fn many_concurrent_execs(d) {
        let c = d.running("c");
        let ids: Vec<String> = (0..40).map(|n| format!("e{n}")).collect();
        let exec = |id: &String| c.exec(id, &["sh", "-c", &format!("exit {}", &id[1..])]).unwrap();
        let execs: Vec<_> = ids.iter().map(exec).collect();
        let waits: Vec<_> = execs.iter().map(|e| e.wait_pending()).collect();
        let starts: Vec<_> = execs.iter().map(|e| e.start_pending()).collect();
        for start in starts {
            start.wait().unwrap();
        }
        for (code, wait) in waits.into_iter().enumerate() {
            assert_eq!(wait.wait().unwrap().exit_status, code as u32);
        }
        for e in &execs {
            e.delete().unwrap();
        }
        c.end();
        c.finish();
        let exits = d.events.of("c").iter().filter(|e| e.kind == "exit").count();
        assert_eq!(exits, 41);
    }

    fn init_that_dies_while_the_runtime_starts_it(d) {
        let runtime = d.fake_runtime();
        let c = d.shell("c", "exit 9").options(|o| o.binary_name = runtime.path()).created();
        let mut held = runtime.hold("start", At::After);
        let (start, wait) = (c.start_pending(), c.wait_pending());
        held.reached();
        held.release();
        // On a machine so slow that this took a second, the runtime was cut short.
        let started = start.wait().is_ok();
        assert_eq!(wait.wait().unwrap().exit_status, 9);
        let events: &[&str] = if started { &["create", "start", "exit"] } else { &["create", "exit"] };
        assert_eq!(d.events.until("c", "exit"), events);
        c.finish();
    }

    fn init_that_dies_while_the_runtime_creates_it(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).shim();
        let mut held = runtime.hold("create", At::After);
        let create = c.create_pending();
        held.reached();
        let pid: i32 = fs::read_to_string(c.bundle.join("init.pid")).unwrap().parse().unwrap();
        process::signal(pid, nix::sys::signal::Signal::SIGKILL);
        held.release();
        assert_eq!(create.wait().unwrap().pid, pid as u32);
        assert_eq!(c.exit_status(), 137);
        assert_eq!(c.status(), Status::STOPPED);
        assert_eq!(d.events.until("c", "exit"), ["create", "exit"]);
        c.finish();
    }

    fn init_exit_is_published_after_exec_exits(d) {
        let c = d.running("c");
        for id in ["e1", "e2", "e3"] {
            sleeping_exec(&c, id);
        }
        c.end();
        let events = d.events.until("c", "exit");
        for id in ["e1", "e2", "e3"] {
            assert!(place(&events, &format!("exit {id}")) < place(&events, "exit"), "{events:?}");
        }
        c.finish();
    }

    fn init_exit_is_last_in_a_shared_pid_namespace(d) {
        let c = d.container("c", &["sleep", "inf"]).host_pids().run();
        let execs: Vec<_> = (0..5).map(|n| sleeping_exec(&c, &format!("e{n}"))).collect();
        c.kill(9).unwrap();
        for e in &execs {
            assert_eq!(e.exit_status(), 137, "of {}", e.exec);
        }
        let events = d.events.until("c", "exit");
        let exits: Vec<&String> = events.iter().filter(|e| e.starts_with("exit")).collect();
        assert_eq!(exits.len(), 6, "{events:?}");
        assert_eq!(*exits[5], "exit");
        c.finish();
    }

    fn init_exit_kills_orphans_in_a_shared_pid_namespace(d) {
        let c = d.shell("c", "setsid sleep inf & echo; exec sleep inf").host_pids().run();
        c.kill(9).unwrap();
        assert_eq!(c.exit_status(), 137);
        c.finish();
    }

    fn connect_returns_the_shims_pid(d) {
        let c = d.container("c", &["sleep", "inf"]).shim();
        assert_eq!(c.connect().unwrap().task_pid, 0);
        let pid = c.create().unwrap();
        let answer = c.connect().unwrap();
        assert_eq!((answer.shim_pid as i32, answer.task_pid), (c.shim_pid, pid));
        let command = fs::read(format!("/proc/{}/cmdline", c.shim_pid)).unwrap();
        assert!(String::from_utf8_lossy(&command).contains(&format!("-namespace\0{}\0-id\0c\0", d.namespace)));
    }

    fn shutdown_with_a_container_left_does_nothing(d) {
        let c = d.running("c");
        c.shutdown().unwrap();
        c.shutdown().unwrap();
        assert_eq!(c.status(), Status::RUNNING);
        c.end();
        c.shutdown().unwrap();
        assert_eq!(c.status(), Status::STOPPED);
        c.finish();
    }

    fn shutdown_without_a_container_ends_the_shim(d) {
        let c = d.container("c", &["true"]).shim();
        c.shut_down();
    }

    fn events_are_delivered_before_the_shim_ends(d) {
        let c = d.container("c", &["true"]).run();
        c.exit_status();
        c.finish();
        d.events.get("c", "delete");
    }

    fn bundle_files_are_as_gos(d) {
        let c = d.container("c", &["sleep", "inf"]).created();
        let options = fs::read_to_string(c.bundle.join("options.json")).unwrap();
        let options: serde_json::Value = serde_json::from_str(&options).unwrap();
        let root = d.runtime_root();
        let expected = serde_json::json!({"binary_name": runtime(), "root": root.to_str().unwrap()});
        assert_eq!(options, expected);
        assert_eq!(fs::read_to_string(c.bundle.join("runtime")).unwrap(), runtime());
    }

    fn options_default(d) {
        // By value and by absence: the default root, the default runtime.
        for (id, options) in [("c1", None), ("c2", Some(any("containerd.runc.v1.Options", &runc::Options::new())))] {
            let c = d.container(id, &["true"]).raw_options(options).run();
            assert!(std::path::Path::new("/run/containerd/runc").join(&d.namespace).join(id).exists());
            assert_eq!(c.exit_status(), 0);
            c.finish();
        }
    }

    fn options_with_a_prefixed_type(d) {
        let options = Some(any("types.containerd.io/containerd.runc.v1.Options", &d.options()));
        let c = d.container("c", &["true"]).raw_options(options).run();
        assert_eq!(c.exit_status(), 0);
        assert!(!std::path::Path::new("/run/containerd/runc").join(&d.namespace).join("c").exists());
        c.finish();
    }

    fn options_as_toml(d) {
        let body = format!("BinaryName = {:?}\nRoot = {:?}\n", runtime(), d.runtime_root());
        let options = containerd_shim_rs_v2::proto::runtimeoptions::Options {
            type_url: "containerd.runc.v1.Options".into(),
            config_body: body.into(),
            ..Default::default()
        };
        let options = Some(any("runtimeoptions.v1.Options", &options));
        let c = d.container("c", &["sleep", "inf"]).raw_options(options).run();
        assert!(d.runtime_root().join(&d.namespace).join("c").exists());
        c.end();
        c.finish();
    }

    fn options_of_an_unknown_type(d) {
        let options = Any { type_url: "example.Options".into(), value: vec![8, 1], ..Default::default() };
        let c = d.container("c", &["true"]).raw_options(Some(options)).shim();
        c.create().refused(Code::INVALID_ARGUMENT, "example.Options");
        c.state().refused(Code::NOT_FOUND, "");
        c.shut_down();
    }

    fn both_versions_of_the_service_know_the_container(d) {
        let c = d.running("c");
        for (id, api) in [("e2", Api::V2), ("e3", Api::V3)] {
            let of_version = |exec: &str| task::Process { api, ..c.process(exec) };
            assert_eq!(of_version("").status(), Status::RUNNING);
            c.exec(id, &["sh", "-c", "exit 3"]).unwrap();
            of_version(id).start().unwrap();
            assert_eq!(of_version(id).exit_status(), 3);
        }
        c.end();
        c.finish();
    }

    fn init_is_killed_while_the_runtime_starts_it(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).created();
        let mut held = runtime.hold("start", At::Before);
        let start = c.start_pending();
        held.reached();
        c.kill(9).unwrap();
        held.release();
        // The runtime may have found that it is gone, or not.
        let started = start.wait().is_ok();
        assert_eq!(c.exit_status(), 137);
        let expected: &[&str] = if started { &["create", "start", "exit"] } else { &["create", "exit"] };
        assert_eq!(d.events.until("c", "exit"), expected);
        c.finish();
    }

    fn only_one_concurrent_start_succeeds(d) {
        let c = d.container("c", &["sleep", "inf"]).created();
        let starts: Vec<_> = (0..10).map(|_| c.start_pending()).collect();
        let answers: Vec<_> = starts.into_iter().map(rpc::Pending::wait).collect();
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
        for refused in answers.into_iter().filter(Result::is_err) {
            refused.refused(Code::UNKNOWN, "cannot start a running process");
        }
        c.end();
        assert_eq!(d.events.until("c", "exit"), ["create", "start", "exit"]);
        c.finish();
    }
}
