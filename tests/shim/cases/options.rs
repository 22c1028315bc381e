//! The runtime's options: each reaches what it is for, and bad ones do no harm.

use std::fs;
use std::path::Path;

use containerd_shim_rs_v2::proto::types::Status;
use containerd_shim_rs_v2::proto::{Any, Empty, runc, runtimeoptions, task};

use crate::harness::machine::{CGROUPS, is_unified};
use crate::harness::runtime::FakeRuntime;
use crate::harness::*;

/// Arguments of `create` for a container whose options are changed by `change`; the
/// runtime fails, so that it need not be able to do what it is asked for.
#[track_caller]
fn create_arguments(d: &Daemon, change: impl FnOnce(&mut runc::Options)) -> Vec<String> {
    let runtime = d.fake_runtime();
    runtime.fail("create", "not today");
    let c = d.container("c", &["true"]).options(|o| {
        o.binary_name = runtime.path();
        change(o);
    });
    let c = c.shim();
    c.create().refused(Code::UNKNOWN, "not today");
    c.shut_down();
    runtime.arguments("create")
}

/// Where `words` are in `arguments`, one behind the other.
fn place(arguments: &[String], words: &[&str]) -> Option<usize> {
    arguments
        .windows(words.len())
        .position(|window| window == words)
}

#[track_caller]
fn assert_has(arguments: &[String], words: &[&str]) {
    assert!(
        place(arguments, words).is_some(),
        "no {words:?} in {arguments:?}"
    );
}

/// A container in which `change` is heeded runs as any other does.
#[track_caller]
fn assert_runs(d: &Daemon, runtime: &FakeRuntime, change: impl FnOnce(&mut runc::Options)) {
    let c = d.shell("c", "exit 3").options(|o| {
        o.binary_name = runtime.path();
        change(o);
    });
    let c = c.run();
    assert_eq!(c.exit_status(), 3);
    c.finish();
}

/// Owners and type of what a process has for stdio.
const OWNERS: &str = "for n in 0 1 2; do busybox stat -L -c '%u:%g %F' /proc/self/fd/$n; done; echo again > /dev/stdout";
const OWNED: &str = "1234:5678 fifo\n1234:5678 fifo\n1234:5678 fifo\nagain\n";

cases! {
    fn default_options(d) {
        let arguments = create_arguments(d, |_| ());
        for flag in ["--no-pivot", "--no-new-keyring", "--systemd-cgroup", "--console-socket"] {
            assert_eq!(place(&arguments, &[flag]), None, "{flag} in {arguments:?}");
        }
        let bundle = d.bundles_dir().join("c");
        let (bundle, pid_file) = (bundle.to_str().unwrap(), bundle.join("init.pid"));
        assert_has(&arguments, &["--log-format", "json"]);
        assert_has(&arguments, &["--bundle", bundle]);
        assert_has(&arguments, &["--pid-file", pid_file.to_str().unwrap()]);
        assert_eq!(arguments.last().unwrap(), "c");
    }

    fn no_pivot_root(d) {
        let runtime = d.fake_runtime();
        assert_runs(d, &runtime, |o| o.no_pivot_root = true);
        assert_has(&runtime.arguments("create"), &["--no-pivot"]);
    }

    fn no_new_keyring(d) {
        let runtime = d.fake_runtime();
        assert_runs(d, &runtime, |o| o.no_new_keyring = true);
        assert_has(&runtime.arguments("create"), &["--no-new-keyring"]);
    }

    fn root(d) {
        let runtime = d.fake_runtime();
        let root = d.path("another-root");
        assert_runs(d, &runtime, |o| o.root = root.to_str().unwrap().into());
        let expected = root.join(&d.namespace);
        for verb in ["create", "start", "delete"] {
            assert_has(&runtime.arguments(verb), &["--root", expected.to_str().unwrap()]);
        }
        assert!(expected.exists());
    }

    fn systemd_cgroup(d) {
        let arguments = create_arguments(d, |o| o.systemd_cgroup = true);
        let flag = place(&arguments, &["--systemd-cgroup"]);
        assert!(flag.is_some_and(|flag| flag < place(&arguments, &["create"]).unwrap()), "{arguments:?}");
    }

    fn shim_cgroup(d) {
        let cgroup = d.make_cgroup("shim");
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.shim_cgroup = cgroup.clone()).run();
        // Version 2 names no controllers.
        for controller in if is_unified() { &[""][..] } else { &["memory", "pids"] } {
            let is_in = |pid: u32, cgroup: &str| {
                let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
                table.lines().any(|line| line.ends_with(&format!(":{controller}:{cgroup}")))
            };
            assert!(is_in(c.shim_pid as u32, &cgroup), "{controller}");
            let procs = Path::new(CGROUPS).join(controller).join(&cgroup[1..]).join("cgroup.procs");
            assert_eq!(fs::read_to_string(procs).unwrap(), format!("{}\n", c.shim_pid), "{controller}");
            // Its containers are where they want to be.
            assert!(is_in(c.state().unwrap().pid, c.cgroup()), "{controller}");
        }
        c.end();
        c.finish();
    }

    fn shim_cgroup_that_does_not_exist(d) {
        let cgroup = "/no/such/cgroup".to_string();
        let options = runc::Options { shim_cgroup: cgroup.clone(), ..d.options() };
        let bundle = d.container("c", &["true"]).bundle();
        let output = d.start(Dialect::Legacy, "c", &bundle, Some(any("containerd.runc.v1.Options", &options)));
        assert_eq!((output.status, output.stdout_text().as_str()), (1, ""));
        assert!(output.stderr_text().contains(&cgroup), "{}", output.stderr_text());
        d.eventually("no server", || d.shims_alive().is_empty());
    }

    fn owner_of_the_pipes(d) {
        let fifos = d.fifos("c");
        let c = d.shell("c", OWNERS).options(|o| (o.io_uid, o.io_gid) = (1234, 5678));
        let c = c.spec(|spec| spec["process"]["user"] = serde_json::json!({"uid": 1234, "gid": 5678}));
        let c = c.stdio(fifos.stdio).run();
        assert_eq!(c.exit_status(), 0);
        assert_eq!(fifos.stdout.end(), OWNED);
        c.finish();
    }

    fn owner_of_an_execs_pipes(d) {
        let fifos = d.fifos("e");
        let c = d.container("c", &["sleep", "inf"]).options(|o| (o.io_uid, o.io_gid) = (1234, 5678)).run();
        let mut process = bundle::process(&["sh", "-c", OWNERS]);
        process["user"] = serde_json::json!({"uid": 1234, "gid": 5678});
        let message = c.exec_message("e", serde_json::to_vec(&process).unwrap(), &fifos.stdio);
        c.exec_request(&message).unwrap();
        c.process("e").start().unwrap();
        assert_eq!(c.process("e").exit_status(), 0);
        assert_eq!(fifos.stdout.end(), OWNED);
    }

    fn criu_work_path(d) {
        let runtime = d.fake_runtime();
        runtime.fail("restore", "not today");
        let [image, work] = ["image", "work"].map(|name| d.path(name).to_str().unwrap().to_string());
        fs::create_dir(&work).unwrap();
        let c = d.container("c", &["true"]).options(|o| {
            o.binary_name = runtime.path();
            (o.criu_image_path, o.criu_work_path) = ("/elsewhere".into(), work.clone());
        });
        let c = c.shim();
        let request = task::CreateTaskRequest { checkpoint: image.clone(), ..c.create_request() };
        c.call::<task::CreateTaskResponse>("Create", &request).unwrap();
        c.start().refused(Code::UNKNOWN, "OCI runtime restore failed");
        let arguments = runtime.arguments("restore");
        assert_has(&arguments, &["--image-path", &image]);
        assert_has(&arguments, &["--work-path", &work]);
        assert_has(&arguments, &["--detach"]);
        assert_eq!(arguments.last().unwrap(), "c");
        c.finish();
    }

    fn task_api_options_change_nothing(d) {
        let runtime = d.fake_runtime();
        assert_runs(d, &runtime, |o| {
            (o.task_api_address, o.task_api_version) = ("unix:///nowhere".into(), 9);
        });
    }

    fn options_json_is_as_gos(d) {
        let root = d.runtime_root();
        let c = d.container("c", &["true"]).options(|o| {
            (o.no_pivot_root, o.no_new_keyring, o.io_uid, o.io_gid) = (true, true, 1, 2);
            (o.criu_image_path, o.criu_work_path) = ("/image".into(), "/work".into());
        });
        let c = c.created();
        let text = fs::read_to_string(c.bundle.join("options.json")).unwrap();
        let expected = serde_json::json!({
            "no_pivot_root": true, "no_new_keyring": true, "io_uid": 1, "io_gid": 2, "binary_name": runtime(),
            "root": root.to_str().unwrap(), "criu_image_path": "/image", "criu_work_path": "/work",
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), expected);
    }

    fn unknown_option_fields_are_accepted(d) {
        let mut options = any("containerd.runc.v1.Options", &d.options());
        // Field 200, the number 1.
        options.value.extend([0xc0, 0x0c, 0x01]);
        let c = d.shell("c", "exit 3").raw_options(Some(options)).run();
        assert!(d.runtime_root().join(&d.namespace).join("c").exists());
        assert_eq!(c.exit_status(), 3);
        c.finish();
    }

    fn malformed_options(d) {
        let options = Any { type_url: "containerd.runc.v1.Options".into(), value: vec![0xff; 20], ..Default::default() };
        let c = d.container("c", &["true"]).shim();
        let request = task::CreateTaskRequest { options: Some(options).into(), ..c.create_request() };
        c.call::<task::CreateTaskResponse>("Create", &request).refused(Code::INVALID_ARGUMENT, "containerd.runc.v1.Options");
        c.state().refused(Code::NOT_FOUND, "");
        c.create().unwrap();
        assert_eq!(c.status(), Status::CREATED);
    }

    fn options_in_a_toml_file(d) {
        let file = d.path("options.toml");
        let body = format!("BinaryName = {:?}\nRoot = {:?}\nSystemdCgroups = true\n", runtime(), d.runtime_root());
        fs::write(&file, body).unwrap();
        let options = runtimeoptions::Options { config_path: file.to_str().unwrap().into(), ..Default::default() };
        let c = d.container("c", &["sleep", "inf"]).raw_options(Some(any("runtimeoptions.v1.Options", &options))).run();
        assert!(d.runtime_root().join(&d.namespace).join("c").exists());
        d.eventually("a warning", || d.log_of("c").contains("unknown key SystemdCgroups is ignored; did you mean SystemdCgroup?"));
        c.end();
        c.finish();
    }

    fn checkpoint_options_of_an_unknown_type(d) {
        let c = d.running("c");
        let options = Any { type_url: "example.Options".into(), value: vec![8, 1], ..Default::default() };
        let request = task::CheckpointTaskRequest { id: "c".into(), path: "/nowhere".into(), options: Some(options).into(), ..Default::default() };
        c.call::<Empty>("Checkpoint", &request).refused(Code::INVALID_ARGUMENT, "example.Options");
        assert_eq!(c.status(), Status::RUNNING);
    }

    fn runtime_does_not_inherit_notify_socket(d) {
        d.set_env("NOTIFY_SOCKET", "/run/systemd/notify");
        let runtime = d.fake_runtime();
        assert_runs(d, &runtime, |_| ());
        let environment = runtime.environment("create");
        assert!(environment.iter().any(|line| line.contains("TTRPC_ADDRESS=")), "{environment:?}");
        assert!(!environment.iter().any(|line| line.contains("NOTIFY_SOCKET")), "{environment:?}");
    }
}
