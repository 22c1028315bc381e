//! `start`, `-info`, `-v`: the dialects, the socket, the pod, the server it leaves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use containerd_shim_rs_v2::proto::types::Status;
use containerd_shim_rs_v2::proto::{Message, introspection};
use sha2::{Digest, Sha256};

use crate::harness::daemon::Form;
use crate::harness::process::Output;
use crate::harness::*;

/// The socket's name for a group, by the daemon's rule.
fn socket_name(d: &Daemon, group: &str) -> String {
    let input = format!("{}/{}/{group}", d.grpc_address(), d.namespace);
    Sha256::digest(input)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A bundle whose `config.json` is `config`, or is missing; what `start` makes of it.
#[track_caller]
fn start_with_config(d: &Daemon, config: Option<&str>) -> Output {
    let bundle = d.container("c", &["true"]).bundle();
    match config {
        Some(text) => fs::write(bundle.join("config.json"), text).unwrap(),
        None => fs::remove_file(bundle.join("config.json")).unwrap(),
    }
    d.start(Dialect::Legacy, "c", &bundle, None)
}

#[track_caller]
fn assert_refused(d: &Daemon, output: &Output, text: &str) {
    assert_eq!(output.status, 1, "{output:?}");
    assert!(
        output.stderr_text().contains(text),
        "{}",
        output.stderr_text()
    );
    assert_eq!(output.stdout_text(), "");
    assert_eq!(d.shims_alive(), Vec::<i32>::new(), "a server was left");
}

#[track_caller]
fn run_whole_lifecycle(d: &Daemon, dialect: Dialect) -> daemon::Started {
    let c = d.shell("c", "exit 3").shim_in(dialect);
    c.create().unwrap();
    c.start().unwrap();
    assert_eq!(c.exit_status(), 3);
    c.finish();
    c.started.clone()
}

cases! {
    fn start_as_containerd_1_6(d) {
        assert_eq!(run_whole_lifecycle(d, Dialect::V1_6).form, Form::Plain);
    }

    fn start_as_containerd_1_7_to_2_2(d) {
        run_whole_lifecycle(d, Dialect::Legacy);
    }

    fn start_as_containerd_2_3(d) {
        let started = run_whole_lifecycle(d, Dialect::Bootstrap);
        assert_eq!(started.version, 3);
        assert!(started.address.starts_with(&format!("unix://{}", d.path("s").display())));
    }

    fn address_is_written_to_the_bundle(d) {
        let c = d.container("c", &["true"]).shim_in(Dialect::V1_6);
        assert_eq!(fs::read_to_string(c.bundle.join("address")).unwrap(), c.started.address);
    }

    fn socket_has_the_name_that_containerd_expects(d) {
        let c = d.container("c", &["true"]).shim();
        let expected = format!("unix:///run/containerd/s/{}", socket_name(d, "c"));
        assert_eq!(c.started.address, expected);
        let mode = fs::metadata(c.socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    fn options_on_stdin_are_accepted(d) {
        let bundle = d.container("c", &["true"]).bundle();
        let options = any("containerd.runc.v1.Options", &d.options());
        let output = d.start(Dialect::V1_6, "c", &bundle, Some(options));
        d.answer(Dialect::V1_6, &output);
    }

    fn garbage_on_stdin_does_not_hang(d) {
        let bundle = d.container("c", &["true"]).bundle();
        let mut command = d.command("c", &bundle);
        process::run(command.arg("start"), &[0xff; 4096], d.hang_timeout);
    }

    fn debug_flag_is_accepted(d) {
        let bundle = d.container("c", &["true"]).bundle();
        let mut command = d.command("c", &bundle);
        let output = process::run(command.args(["-debug", "start"]), &[], d.hang_timeout);
        d.answer(Dialect::V1_6, &output);
    }

    fn flags_are_as_gos(d) {
        let bundle = d.container("c", &["true"]).bundle();
        let mut command = std::process::Command::new(shim_binary());
        command.arg(format!("--namespace={}", d.namespace)).args(["--address", &d.grpc_address()]);
        command.args(["-id=c", "start"]).env("TTRPC_ADDRESS", d.events.path()).current_dir(bundle);
        let started = d.answer(Dialect::V1_6, &process::run(&mut command, &[], d.hang_timeout));
        assert!(started.address.ends_with(&socket_name(d, "c")), "{started:?}");
    }

    fn namespace_is_required(d) {
        let bundle = d.container("c", &["true"]).bundle();
        let mut command = std::process::Command::new(shim_binary());
        command.args(["-id", "c", "start"]).env("TTRPC_ADDRESS", d.events.path()).current_dir(bundle);
        assert_refused(d, &process::run(&mut command, &[], d.hang_timeout), "namespace cannot be empty");
    }

    fn config_is_missing(d) {
        let output = start_with_config(d, None);
        assert_refused(d, &output, "config.json");
    }

    fn config_is_broken(d) {
        let output = start_with_config(d, Some("{\"annotations\": "));
        assert_refused(d, &output, "");
    }

    fn unknown_config_fields_are_accepted(d) {
        let config = r#"{"ociVersion": "9.9", "annotations": null, "process": {"capabilities":
            {"bounding": ["CAP_OF_THE_FUTURE"]}, "rlimits": [{"type": "RLIMIT_OF_THE_FUTURE"}]},
            "linux": {"namespaces": [{"type": "future"}]}, "future": [1]}"#;
        let output = start_with_config(d, Some(config));
        d.answer(Dialect::Legacy, &output);
    }

    fn second_start_finds_the_first(d) {
        let c = d.running("c");
        let again = d.answer(Dialect::Legacy, &d.start(Dialect::Legacy, "c", &c.bundle, None));
        assert_eq!(again.address, c.started.address);
        assert_eq!(d.shims_alive(), [c.shim_pid]);
        assert_eq!(c.status(), Status::RUNNING);
    }

    fn socket_of_a_dead_server_is_replaced(d) {
        let c = d.container("c", &["true"]).shim();
        c.kill_shim();
        assert!(c.socket().exists());
        let again = d.answer(Dialect::Legacy, &d.start(Dialect::Legacy, "c", &c.bundle, None));
        assert_eq!(again.address, c.started.address);
        let pid = c.over(&c.reconnect()).connect().unwrap().shim_pid as i32;
        assert_eq!(d.shims_alive(), [pid]);
        assert_ne!(pid, c.shim_pid);
    }

    fn pod_has_one_server(d) {
        for annotation in ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"] {
            let group = format!("pod-{}", annotation.len());
            let id = |n: u32| format!("{group}-{n}");
            let a = d.container(&id(1), &["sleep", "inf"]).annotation(annotation, &group).run();
            let b = d.container(&id(2), &["sleep", "inf"]).annotation(annotation, &group).run();
            assert_eq!(a.started.address, b.started.address);
            assert!(a.started.address.ends_with(&socket_name(d, &group)));
            assert_eq!(d.shims_alive(), [a.shim_pid]);
            a.end();
            a.delete().unwrap();
            a.shutdown().unwrap();
            assert_eq!(b.status(), Status::RUNNING);
            a.assert_gone();
            b.end();
            b.finish();
        }
    }

    fn group_annotation_precedes_sandbox_annotation(d) {
        let c = d.container("c", &["true"]).group("first");
        let c = c.annotation("io.kubernetes.cri.sandbox-id", "second").shim();
        assert!(c.started.address.ends_with(&socket_name(d, "first")));
        c.shut_down();
    }

    fn server_is_detached(d) {
        let c = d.container("c", &["true"]).shim();
        let proc = format!("/proc/{}", c.shim_pid);
        let stat = fs::read_to_string(format!("{proc}/stat")).unwrap();
        let group = stat.rsplit(')').next().unwrap().split_whitespace().nth(2).unwrap();
        assert_eq!(group, c.shim_pid.to_string(), "its own process group");
        assert_eq!(fs::read_link(format!("{proc}/cwd")).unwrap(), c.bundle);
        for fd in [0, 1] {
            assert_eq!(fs::read_link(format!("{proc}/fd/{fd}")).unwrap(), Path::new("/dev/null"));
        }
    }

    fn oom_killer_prefers_the_server_to_containerd(d) {
        let score = |pid: &str| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        let number = |text: String| text.trim().parse::<i32>().unwrap();
        let c = d.container("c", &["true"]).shim();
        let expected = 1000.min(number(score("self")) + 1);
        assert_eq!(number(score(&c.shim_pid.to_string())), expected);
    }

    fn version_is_printed(d) {
        let mut command = std::process::Command::new(shim_binary());
        let output = process::run(command.arg("-v"), &[], d.hang_timeout);
        assert_eq!((output.status, output.stderr_text().as_str()), (0, ""));
        assert!(output.stdout_text().contains("Version:"), "{}", output.stdout_text());
    }

    fn info_is_printed(d) {
        for options in [Vec::new(), any("containerd.runc.v1.Options", &d.options()).write_to_bytes().unwrap()] {
            let mut command = std::process::Command::new(shim_binary());
            let output = process::run(command.arg("-info"), &options, d.hang_timeout);
            assert_eq!((output.status, output.stderr_text().as_str()), (0, ""));
            let info = introspection::RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
            assert!(!info.name.is_empty());
            assert!(!info.version.version.is_empty());
        }
    }

    fn core_scheduling_is_on_or_start_fails_with_the_reason(d) {
        d.set_env("SCHED_CORE", "1");
        let bundle = d.container("c", &["true"]).bundle();
        let output = d.start(Dialect::Legacy, "c", &bundle, None);
        // Without a kernel or a processor that can, a container must not run as if they could.
        match output.status {
            0 => drop(d.answer(Dialect::Legacy, &output)),
            _ => {
                let known: &[&str] = &["nvalid argument", "o such device"];
                let text = output.stderr_text();
                assert!(text.contains("core") && known.iter().any(|cause| text.contains(cause)), "{text}");
                assert_refused(d, &output, "enable");
            }
        }
    }

    fn core_scheduling_is_off_by_default(d) {
        d.set_env("SCHED_CORE", "");
        run_whole_lifecycle(d, Dialect::Legacy);
    }
}
