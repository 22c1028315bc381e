//! `start`, `-info`, `-v`: the dialects, the socket, the pod, the server it leaves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use containerd_shim_rs_v2::proto::types::Status;
use containerd_shim_rs_v2::proto::{Any, Message, introspection, runc, runtimeoptions};
use containerd_shim_rs_v2::socket;
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

/// What is wrong when `start` is called, and how.
struct Fault {
    dialect: Dialect,
    /// Prepares it, in a bundle with a `config.json`; answers the options.
    prepare: fn(&Daemon, &Path) -> Option<Any>,
    /// What the error says; `{bundle}` is the bundle, `{dir}` the daemon's directory.
    text: &'static str,
}

const fn fault(
    dialect: Dialect,
    prepare: fn(&Daemon, &Path) -> Option<Any>,
    text: &'static str,
) -> Fault {
    Fault {
        dialect,
        prepare,
        text,
    }
}

/// Options in TOML that a file has.
fn toml_file(path: &str) -> Option<Any> {
    let options = runtimeoptions::Options {
        config_path: path.into(),
        ..Default::default()
    };
    Some(any("runtimeoptions.v1.Options", &options))
}

/// Ways in which `start` fails.
const FAULTS: [Fault; 11] = [
    fault(
        Dialect::V1_6,
        |_, bundle| {
            fs::remove_file(bundle.join("config.json")).unwrap();
            None
        },
        "read {bundle}/config.json: No such file or directory (os error 2)",
    ),
    fault(
        Dialect::V1_6,
        |_, bundle| {
            fs::write(bundle.join("config.json"), "{").unwrap();
            None
        },
        "parse {bundle}/config.json: EOF while parsing an object at line 1 column 1",
    ),
    fault(
        Dialect::V1_6,
        |_, bundle| {
            fs::write(bundle.join("config.json"), r#"{"annotations": 7}"#).unwrap();
            None
        },
        "parse {bundle}/config.json: invalid type: integer `7`, expected a map",
    ),
    fault(
        Dialect::V1_6,
        |_, _| toml_file("/no/such/file"),
        "decode options: /no/such/file: No such file or directory (os error 2)",
    ),
    fault(
        Dialect::V1_6,
        |_, _| {
            let mut options = any("containerd.runc.v1.Options", &runc::Options::default());
            options.value = vec![0xff];
            Some(options)
        },
        "decode options: ",
    ),
    fault(
        Dialect::V1_6,
        |_, _| {
            let options = runc::Options {
                shim_cgroup: "/no-such-cgroup-of-tests".into(),
                ..Default::default()
            };
            Some(any("containerd.runc.v1.Options", &options))
        },
        "join cgroup /no-such-cgroup-of-tests: cgroup /no-such-cgroup-of-tests: not found",
    ),
    fault(
        Dialect::V1_6,
        |_, bundle| {
            fs::create_dir(bundle.join("address")).unwrap();
            None
        },
        "write {bundle}/address: Is a directory (os error 21)",
    ),
    fault(
        Dialect::Bootstrap,
        |d, _| {
            fs::write(d.path("s"), "").unwrap();
            None
        },
        "create directory {dir}/s: it exists and is not a directory",
    ),
    fault(
        Dialect::Bootstrap,
        |d, bundle| {
            let id = bundle.file_name().unwrap().to_str().unwrap();
            fs::create_dir(d.path("s")).unwrap();
            fs::create_dir(d.path("s").join(socket_name(d, id))).unwrap();
            None
        },
        "remove dead socket {dir}/s/",
    ),
    fault(
        Dialect::Bootstrap,
        |d, _| {
            std::os::unix::fs::symlink(d.path("no/such"), d.path("s")).unwrap();
            fs::write(d.path("no"), "").unwrap();
            None
        },
        "create directory {dir}/s: ",
    ),
    fault(
        Dialect::Bootstrap,
        |_, bundle| {
            // Its own directory is all that is left of it.
            fs::remove_dir_all(bundle).unwrap();
            fs::create_dir(bundle).unwrap();
            None
        },
        "read {bundle}/config.json: No such file or directory (os error 2)",
    ),
];

/// The error is one that containerd can put into a line of its own.
#[track_caller]
fn assert_quotable(output: &Output, expected: &str) {
    let text = output.stderr_text();
    let error = text.strip_prefix("containerd-shim-rs-v2: ");
    let error = error.unwrap_or_else(|| panic!("{output:?}"));
    assert!(
        error.starts_with(expected),
        "{error:?}, wanted {expected:?}"
    );
    assert!(!text.contains('\n'), "{text:?}");
    assert_eq!(output.stdout_text(), "");
    assert_eq!(output.status, 1);
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

    fn errors_of_start_name_operation_object_and_cause(d) {
        for (number, fault) in FAULTS.iter().enumerate() {
            let id = format!("c{number}");
            let bundle = d.container(&id, &["true"]).bundle();
            let options = (fault.prepare)(d, &bundle);
            let output = d.start(fault.dialect, &id, &bundle, options);
            let text = fault.text.replace("{bundle}", bundle.to_str().unwrap());
            let dir = d.path("");
            let text = text.replace("{dir}", dir.to_str().unwrap().trim_end_matches('/'));
            assert_quotable(&output, &text);
            d.eventually("the end of a server", || d.shims_alive().is_empty());
            let path = socket::path(socket::DEFAULT_DIR, &d.grpc_address(), &d.namespace, &id);
            assert!(!path.exists(), "{text}: a socket is left");
            // The next one begins anew.
            for name in ["s", "no"].map(|name| d.path(name)) {
                let _ = fs::remove_file(&name).or_else(|_| fs::remove_dir_all(&name));
            }
        }
    }

    fn errors_of_start_before_the_bundle_is_read(d) {
        let bundle = d.container("c", &["true"]).bundle();
        let mut garbage = d.command("c", &bundle);
        let output = process::run(garbage.arg("start"), &[0xff; 16], d.hang_timeout);
        assert_quotable(&output, "decode standard input: ");
        let mut variable = d.command("c", &bundle);
        variable.arg("start").env("CONTAINERD_SHIM_RS_REPLY", "xml");
        let output = process::run(&mut variable, &[], d.hang_timeout);
        assert_quotable(&output, "CONTAINERD_SHIM_RS_REPLY=xml: must be plain or json");
        // Removed while the shim is started in it.
        let mut gone = std::process::Command::new("sh");
        gone.args(["-c", "rm -r \"$PWD\"; exec \"$@\"", "sh", shim_binary()]);
        gone.args(["-namespace", &d.namespace, "-id", "c", "-address", &d.grpc_address(), "start"]);
        let output = process::run(gone.current_dir(&bundle), &[], d.hang_timeout);
        let text = "get the working directory, the bundle: No such file or directory (os error 2)";
        assert_quotable(&output, text);
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
