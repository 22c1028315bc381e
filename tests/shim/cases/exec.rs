//! Execs, and what is asked of processes: Exec, Kill, Pids.

use std::io::Write;

use containerd_shim_rs_v2::proto::types::Status;
use containerd_shim_rs_v2::proto::{Empty, Message, runc};
use serde_json::json;

use crate::harness::runtime::At;
use crate::harness::task::Process;
use crate::harness::*;

/// A real-time signal, which has no name.
const REAL_TIME: i32 = 37;

/// Says when it runs: before that the process is still the runtime, which swallows such signals.
const UP: &str = "echo up; exec sleep inf";

#[track_caller]
fn pids_of(p: &Process) -> Vec<(u32, String)> {
    let exec = |info: &containerd_shim_rs_v2::proto::types::ProcessInfo| {
        let Some(any) = info.info.as_ref() else {
            return String::new();
        };
        assert_eq!(any.type_url, "containerd.runc.v1.ProcessDetails");
        runc::ProcessDetails::parse_from_bytes(&any.value)
            .unwrap()
            .exec_id
    };
    p.pids()
        .expect("Pids")
        .iter()
        .map(|info| (info.pid, exec(info)))
        .collect()
}

cases! {
    fn exec_id_is_unique_while_it_exists(d) {
        let c = d.running("c");
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        c.exec("e", &["true"]).refused(Code::ALREADY_EXISTS, "id e: already exists");
        let pid = e.start().unwrap();
        c.exec("e", &["true"]).refused(Code::ALREADY_EXISTS, "id e: already exists");
        assert_eq!(e.state().unwrap().pid, pid);
        e.kill(9).unwrap();
        assert_eq!(e.exit_status(), 137);
        c.exec("e", &["true"]).refused(Code::ALREADY_EXISTS, "id e: already exists");
        e.delete().unwrap();
        c.exec("e", &["sh", "-c", "exit 3"]).unwrap().start().unwrap();
        assert_eq!(e.exit_status(), 3);
    }

    fn exec_that_cannot_start_stays_created(d) {
        let c = d.running("c");
        let e = c.exec("e", &["no-such-program"]).unwrap();
        let wait = e.wait_pending();
        e.start().refused(Code::UNKNOWN, "OCI runtime exec failed: ");
        // Whoever waited is told; nothing has run, so there is no exit.
        wait.wait().unwrap();
        let state = e.state().unwrap();
        assert_eq!((state.pid, e.status()), (0, Status::CREATED));
        e.delete().unwrap();
        e.state().refused(Code::NOT_FOUND, "");
        c.end();
        assert_eq!(d.events.until("c", "exit"), ["create", "start", "exec-added e", "exit"]);
        c.finish();
    }

    fn exec_spec_must_be_json(d) {
        let c = d.running("c");
        let message = c.exec_message("e", b"{\"args\": [".to_vec(), &Stdio::default());
        assert!(c.exec_request(&message).is_err());
        c.process("e").state().refused(Code::NOT_FOUND, "");
        c.exec("e", &["true"]).unwrap();
    }

    fn exec_without_a_spec(d) {
        let c = d.running("c");
        let mut message = c.exec_message("e", Vec::new(), &Stdio::default());
        message.spec = None.into();
        c.exec_request(&message).refused(Code::INVALID_ARGUMENT, "");
        assert_eq!(c.status(), Status::RUNNING);
    }

    fn exec_spec_is_passed_on_unchanged(d) {
        let fifos = d.fifos("e");
        let c = d.running("c");
        let mut process = bundle::process(&["sh", "-c", "id -u; echo $NAME"]);
        process["user"]["uid"] = 1234.into();
        process["env"] = json!(["PATH=/bin", "NAME=value"]);
        process["fieldOfTheFuture"] = json!({"a": 1});
        let message = c.exec_message("e", serde_json::to_vec(&process).unwrap(), &fifos.stdio);
        c.exec_request(&message).unwrap();
        c.process("e").start().unwrap();
        assert_eq!(c.process("e").exit_status(), 0);
        assert_eq!(fifos.stdout.end(), "1234\nvalue\n");
    }

    fn exec_with_an_unknown_capability(d) {
        let c = d.running("c");
        let mut process = bundle::process(&["true"]);
        process["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_OF_THE_FUTURE"]);
        let message = c.exec_message("e", serde_json::to_vec(&process).unwrap(), &Stdio::default());
        c.exec_request(&message).unwrap();
        c.process("e").start().unwrap();
        assert_eq!(c.process("e").exit_status(), 0);
    }

    fn exec_in_a_created_container(d) {
        let c = d.container("c", &["sleep", "inf"]).created();
        let e = c.exec("e", &["sh", "-c", "exit 2"]).unwrap();
        e.start().unwrap();
        assert_eq!(e.exit_status(), 2);
        assert_eq!(c.status(), Status::CREATED);
        c.start().unwrap();
        c.end();
        c.finish();
    }

    fn unstarted_exec_does_not_delay_inits_exit(d) {
        let c = d.running("c");
        c.exec("e", &["true"]).unwrap();
        c.end();
        d.events.get("c", "exit");
        c.finish();
    }

    fn exec_is_not_started_after_inits_exit(d) {
        let c = d.running("c");
        let e = c.exec("e", &["true"]).unwrap();
        c.end();
        e.start().refused(Code::FAILED_PRECONDITION, "container c init process is not running: failed precondition");
        c.finish();
    }

    fn init_that_dies_while_an_exec_is_started(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let mut held = runtime.hold("exec", At::Before);
        let start = e.start_pending();
        held.reached();
        let wait = c.wait_pending();
        c.kill(9).unwrap();
        held.release();
        // By the runtime itself, or cut short since it took too long.
        let failure = start.wait().unwrap_err();
        assert!(failure.message.contains("OCI runtime exec failed"), "{failure:?}");
        assert_eq!(wait.wait().unwrap().exit_status, 137);
        assert_eq!(d.events.until("c", "exit"), ["create", "start", "exec-added e", "exit"]);
        c.finish();
    }

    fn exec_that_dies_while_the_runtime_starts_it(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        let e = c.exec("e", &["sh", "-c", "exit 6"]).unwrap();
        let mut held = runtime.hold("exec", At::After);
        let start = e.start_pending();
        held.reached();
        held.release();
        start.wait().unwrap();
        assert_eq!(e.exit_status(), 6);
        let events = d.events.until("c", "exit e");
        assert_eq!(events, ["create", "start", "exec-added e", "exec-started e", "exit e"]);
    }

    fn real_time_signal_to_an_exec(d) {
        let fifos = d.fifos("e");
        let c = d.running("c");
        let e = c.exec_with("e", &["sh", "-c", UP], &fifos.stdio).unwrap();
        e.start().unwrap();
        fifos.stdout.wait_for("up");
        e.kill(REAL_TIME).unwrap();
        assert_eq!(e.exit_status(), 128 + REAL_TIME as u32);
    }

    fn real_time_signal_to_init(d) {
        let fifos = d.fifos("c");
        let c = d.shell("c", UP).host_pids().stdio(fifos.stdio.clone()).run();
        fifos.stdout.wait_for("up");
        c.kill(REAL_TIME).unwrap();
        assert_eq!(c.exit_status(), 128 + REAL_TIME as u32);
        c.finish();
    }

    fn signal_that_does_not_exist(d) {
        let c = d.running("c");
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        e.start().unwrap();
        assert!(c.kill(200).is_err());
        assert!(e.kill(200).is_err());
        assert_eq!(e.status(), Status::RUNNING);
    }

    fn kill_of_an_exec_leaves_init_alone(d) {
        let c = d.running("c");
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        e.start().unwrap();
        e.kill_all(9).unwrap();
        assert_eq!(e.exit_status(), 137);
        assert_eq!(c.status(), Status::RUNNING);
    }

    fn kill_all_reaches_every_process(d) {
        let fifos = d.fifos("c");
        // Init stays: its end would kill the others, perhaps before the signal comes to them.
        let c = d.shell("c", "setsid sleep inf & trap '' TERM; echo up; exec sleep inf").host_pids();
        let c = c.stdio(fifos.stdio.clone()).run();
        fifos.stdout.wait_for("up");
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        e.start().unwrap();
        c.kill_all(15).unwrap();
        assert_eq!(e.exit_status(), 128 + 15);
        d.eventually("nobody but init", || pids_of(&c) == [(c.state().unwrap().pid, String::new())]);
        c.kill_all(9).unwrap();
        assert_eq!(c.exit_status(), 128 + 9);
        c.finish();
    }

    fn kill_does_not_reach_another_container_of_the_pod(d) {
        let a = d.container("a", &["sleep", "inf"]).group("pod").run();
        let b = d.container("b", &["sleep", "inf"]).group("pod").run();
        a.kill_all(9).unwrap();
        assert_eq!(a.exit_status(), 137);
        assert_eq!(b.status(), Status::RUNNING);
    }

    fn pids_include_exec_ids(d) {
        let fifos = d.fifos("c");
        let c = d.shell("c", "sleep inf & echo up; wait").stdio(fifos.stdio.clone()).run();
        fifos.stdout.wait_for("up");
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let pid = e.start().unwrap();
        let pids = pids_of(&c);
        assert_eq!(pids.len(), 3, "{pids:?}");
        assert!(pids.contains(&(c.state().unwrap().pid, String::new())), "{pids:?}");
        assert!(pids.contains(&(pid, "e".into())), "{pids:?}");
    }

    fn pids_of_a_created_container(d) {
        let c = d.container("c", &["sleep", "inf"]).created();
        assert_eq!(pids_of(&c), [(c.state().unwrap().pid, String::new())]);
    }

    fn update_without_resources(d) {
        let c = d.running("c");
        c.update(None).refused(Code::INVALID_ARGUMENT, "");
        assert_eq!(c.status(), Status::RUNNING);
    }

    fn update_with_broken_resources(d) {
        let c = d.running("c");
        let answer: Result<Empty, _> = c.update(Some("{\"memory\": "));
        assert!(answer.is_err());
        assert_eq!(c.status(), Status::RUNNING);
    }

    fn only_one_concurrent_exec_of_an_id_is_added(d) {
        let c = d.running("c");
        let message = c.exec_message("e", serde_json::to_vec(&bundle::process(&["true"])).unwrap(), &Stdio::default());
        let asked: Vec<rpc::Pending<Empty>> = (0..20).map(|_| c.send("Exec", &message)).collect();
        let answers: Vec<_> = asked.into_iter().map(rpc::Pending::wait).collect();
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
        for refused in answers.into_iter().filter(Result::is_err) {
            refused.refused(Code::ALREADY_EXISTS, "id e: already exists");
        }
        c.end();
        assert_eq!(d.events.until("c", "exit"), ["create", "start", "exec-added e", "exit"]);
    }

    fn only_one_concurrent_start_of_an_exec_succeeds(d) {
        let c = d.running("c");
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let starts: Vec<_> = (0..10).map(|_| e.start_pending()).collect();
        let answers: Vec<_> = starts.into_iter().map(rpc::Pending::wait).collect();
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
        for refused in answers.into_iter().filter(Result::is_err) {
            refused.refused(Code::UNKNOWN, "cannot start a running process");
        }
        e.kill(9).unwrap();
        assert_eq!(e.exit_status(), 137);
        let events = d.events.until("c", "exit e");
        assert_eq!(events, ["create", "start", "exec-added e", "exec-started e", "exit e"]);
    }

    fn exec_state_returns_what_was_requested(d) {
        let fifos = d.terminal("e");
        let c = d.running("c");
        let e = c.exec_with("e", &["sleep", "inf"], &fifos.stdio).unwrap();
        let state = e.state().unwrap();
        assert_eq!((state.id.as_str(), state.bundle.as_str()), ("e", c.bundle.to_str().unwrap()));
        assert_eq!((state.stdin, state.stdout, state.stderr), (fifos.stdio.stdin, fifos.stdio.stdout, String::new()));
        assert!(state.terminal);
        assert!(!c.state().unwrap().terminal);
    }

    fn runtime_gets_the_complete_exec_spec(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        let mut process = bundle::process(&["true"]);
        process["capabilities"]["bounding"] = json!(["CAP_OF_THE_FUTURE"]);
        process["rlimits"] = json!([{"type": "RLIMIT_OF_THE_FUTURE", "hard": 1, "soft": 1}]);
        process["fieldOfTheFuture"] = json!({"number": 1.5});
        let message = c.exec_message("e", serde_json::to_vec(&process).unwrap(), &Stdio::default());
        c.exec_request(&message).unwrap();
        let mut held = runtime.hold("exec", At::Before);
        let start = c.process("e").start_pending();
        held.reached();
        let arguments = runtime.arguments("exec");
        let file = arguments.iter().position(|word| word == "--process").unwrap() + 1;
        let mut given: serde_json::Value = serde_json::from_slice(&std::fs::read(&arguments[file]).unwrap()).unwrap();
        // It is the request that says whether there is a terminal; Go leaves out what is false.
        assert_ne!(given["terminal"].take(), json!(true));
        process["terminal"] = json!(null);
        assert_eq!(given, process);
        held.release();
        let _ = start.wait();
        d.eventually("the spec's file is gone", || !std::path::Path::new(&arguments[file]).exists());
    }

    fn undeleted_execs_are_removed_with_the_container(d) {
        let c = d.running("c");
        let (_, fifos, terminal) = (c.exec("created", &["true"]).unwrap(), d.fifos("f"), d.terminal("t"));
        for (id, stdio) in [("stopped", &fifos.stdio), ("terminal", &terminal.stdio)] {
            let e = c.exec_with(id, &["true"], stdio).unwrap();
            e.start().unwrap();
            e.exit_status();
        }
        c.end();
        c.delete().unwrap();
        let descriptors = || c.footprint().0;
        let of_execs = |name: &String| name.contains("ptmx") || name.contains("/io/") || name.starts_with("pipe");
        d.eventually("no descriptor of an exec", || !descriptors().iter().any(of_execs));
        c.shut_down();
    }

    fn signal_after_exec_pid_reuse_is_refused(d) {
        let fifos = d.fifos("c");
        let c = d.shell("c", "while read x; do sleep inf & done").stdio(fifos.stdio.clone()).run();
        let stdin = d.write(&fifos.stdio.stdin);
        let pids = || pids_of(&c);
        // Asks for a process with this pid; others, anywhere, may come first.
        let child = |pid: u32| {
            let before = pids().len();
            std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
            (&stdin).write_all(b"\n").unwrap();
            d.eventually("a child", || pids().len() > before);
            pids().into_iter().find(|(child, _)| *child == pid)
        };
        let reused = (0..20).find_map(|n| {
            let e = c.exec(&format!("e{n}"), &["true"]).unwrap();
            let pid = e.start().unwrap();
            e.exit_status();
            (0..10).find_map(|_| child(pid))
        });
        let (_, exec) = reused.expect("a pid that is used again");
        assert_eq!(exec, "", "a process that is no exec");
        c.kill_all(9).unwrap();
        c.exit_status();
        c.finish();
    }
}
