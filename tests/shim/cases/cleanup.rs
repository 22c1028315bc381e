//! Shims that die or are told to end, and `delete`, which cleans up after them.

use std::fs;

use containerd_shim_rs_v2::proto::task::DeleteResponse;
use nix::sys::signal::Signal;

use crate::harness::container::Container;
use crate::harness::*;

#[track_caller]
fn assert_killed(answer: &DeleteResponse, pid: u32) {
    assert_eq!((answer.pid, answer.exit_status), (pid, 137));
    assert!(
        answer.exited_at.seconds > 1_600_000_000,
        "{:?}",
        answer.exited_at
    );
}

/// The shim crashes; `delete` leaves nothing of its container.
#[track_caller]
fn crash_and_delete(c: &Container) {
    let pid = c.state().unwrap().pid;
    c.kill_shim();
    assert_killed(&c.daemon.delete(&c.container), pid);
    c.assert_gone();
    // Once more, as after a daemon's crash: to the same end.
    assert_eq!(c.daemon.delete(&c.container).exit_status, 137);
}

cases! {
    fn shim_crashes_with_a_running_container(d) {
        crash_and_delete(&d.running("c"));
    }

    fn shim_crashes_with_a_created_container(d) {
        crash_and_delete(&d.container("c", &["sleep", "inf"]).created());
    }

    fn shim_crashes_with_a_paused_container(d) {
        let c = d.running("c");
        c.pause().unwrap();
        crash_and_delete(&c);
    }

    fn shim_crashes_with_a_stopped_container(d) {
        let c = d.container("c", &["true"]).run();
        c.exit_status();
        crash_and_delete(&c);
    }

    fn shim_crashes_with_execs(d) {
        let c = d.container("c", &["sleep", "inf"]).host_pids().run();
        c.exec("e", &["sleep", "inf"]).unwrap().start().unwrap();
        crash_and_delete(&c);
    }

    fn warnings_of_delete_name_operation_object_and_cause(d) {
        let bundle = d.container("c", &["true"]).bundle();
        let at = |name: &str| bundle.join(name).display().to_string();
        for name in ["init.pid", "options.json"] {
            fs::write(at(name), "{").unwrap();
        }
        let socket = at("config.json") + "/s";
        fs::write(at("address"), format!("unix://{socket}")).unwrap();
        let output = d.delete_output("c");
        assert_eq!(output.status, 0, "{output:?}");
        let expected = [
            format!("parse {}: \"{{\" is not a PID", at("init.pid")),
            format!("parse {}: EOF while parsing", at("options.json")),
            format!("look for socket {socket}: Not a directory"),
        ];
        let text = output.stderr_text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), expected.len(), "{text}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.contains(&expected), "{line}, wanted {expected}");
        }
    }

    fn shim_of_a_pod_crashes(d) {
        let a = d.container("a", &["sleep", "inf"]).group("pod").run();
        let b = d.container("b", &["sleep", "inf"]).group("pod").run();
        let pid = b.state().unwrap().pid;
        a.kill_shim();
        d.delete("a");
        a.assert_gone();
        assert_killed(&d.delete("b"), pid);
        b.assert_gone();
    }

    fn delete_of_an_empty_bundle(d) {
        d.container("c", &["true"]).bundle();
        let output = d.delete_output("c");
        assert_eq!((output.status, output.stderr_text().as_str()), (0, ""));
        assert_killed(&d.delete("c"), 0);
    }

    fn delete_without_config_or_options(d) {
        let c = d.container("c", &["sleep", "inf"]).raw_options(None).run();
        let pid = c.state().unwrap().pid;
        c.kill_shim();
        for file in ["config.json", "options.json"] {
            fs::remove_file(c.bundle.join(file)).unwrap();
        }
        assert_killed(&d.delete("c"), pid);
        assert!(!std::path::Path::new("/run/containerd/runc").join(&d.namespace).join("c").exists());
        c.assert_gone();
    }

    fn delete_of_a_bundle_that_another_shim_wrote(d) {
        let c = d.running("c");
        let pid = c.state().unwrap().pid;
        c.kill_shim();
        // As containerd 1.6's shim writes it, with a field that is gone since.
        let root = d.runtime_root();
        let options = serde_json::json!({"binary_name": runtime(), "root": root.to_str().unwrap(), "criu_path": "criu"});
        fs::write(c.bundle.join("options.json"), options.to_string()).unwrap();
        fs::write(c.bundle.join("runtime"), runtime()).unwrap();
        assert_killed(&d.delete("c"), pid);
        c.assert_gone();
    }

    fn second_delete_runs_no_runtime(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["true"]).options(|o| o.binary_name = runtime.path()).run();
        c.exit_status();
        c.finish();
        let before = runtime.calls();
        d.delete("c");
        assert_eq!(runtime.calls(), before);
    }

    fn container_keeps_running_after_sigterm_to_the_shim(d) {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let id = format!("c{}", signal as i32);
            let c = d.running(&id);
            let pid = c.state().unwrap().pid;
            process::signal(c.shim_pid, signal);
            assert_eq!(c.shim_exit(), 0);
            assert!(process::alive(pid as i32), "the container died with its shim");
            assert_killed(&d.delete(&id), pid);
            c.assert_gone();
        }
    }

    fn other_signals_do_not_end_the_shim(d) {
        let c = d.running("c");
        // Not those that ask it to end, those that report a fault of its own, and those that
        // nobody can catch.
        let others = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL, Signal::SIGSTOP,
            Signal::SIGILL, Signal::SIGABRT, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGSEGV, Signal::SIGSYS];
        for signal in (1..=64).filter(|signal| others.iter().all(|other| *other as i32 != *signal)) {
            process::signal_number(c.shim_pid, signal);
            c.state().unwrap_or_else(|e| panic!("signal {signal}: {e:?}"));
        }
        c.end();
        c.finish();
    }

    fn removed_log_fifo_does_not_end_the_shim(d) {
        let c = d.running("c");
        d.stop_reading_logs();
        let e = c.exec("e", &["no-such-program"]).unwrap();
        assert!(e.start().is_err());
        c.end();
        c.finish();
    }
}
