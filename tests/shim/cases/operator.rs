//! `check`, `ps` and `inspect`: what an operator sees of this machine and of its servers.

use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::process::{self, Output};
use crate::harness::*;

fn typed(d: &Daemon, args: &[&str]) -> Output {
    let mut command = Command::new(shim_binary());
    process::run(command.args(args), &[], d.hang_timeout)
}

/// The servers of this test among those that `args` print as JSON.
#[track_caller]
fn servers(d: &Daemon, args: &[&str]) -> Vec<Value> {
    servers_of(d, &typed(d, args))
}

#[track_caller]
fn servers_of(d: &Daemon, output: &Output) -> Vec<Value> {
    assert_eq!(output.status, 0, "{output:?}");
    let servers: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let is_ours = |server: &Value| server["namespace"] == d.namespace.as_str();
    servers.into_iter().filter(is_ours).collect()
}

/// What `check` prints when its `PATH` is these directories. No containerd runs in the mount
/// namespace of these tests.
fn checked(d: &Daemon, args: &[&str], path: &[&Path]) -> Output {
    let mut command = Command::new(shim_binary());
    command.arg("check").args(args);
    command.env("PATH", std::env::join_paths(path).unwrap());
    process::run(&mut command, &[], d.hang_timeout)
}

/// A directory `name` with links to `programs`: their names there, and where they are.
fn directory(d: &Daemon, name: &str, programs: &[(&str, &str)]) -> std::path::PathBuf {
    let dir = d.path(name);
    std::fs::create_dir(&dir).unwrap();
    for (name, program) in programs {
        std::os::unix::fs::symlink(program, dir.join(name)).unwrap();
    }
    dir
}

/// Where a program of this machine is.
fn where_is(name: &str) -> String {
    let path = std::env::var_os("PATH").unwrap();
    let mut files = std::env::split_paths(&path).map(|dir| dir.join(name));
    let file = files.find(|file| file.is_file());
    file.unwrap_or_else(|| panic!("no {name} on PATH"))
        .to_str()
        .unwrap()
        .into()
}

/// What a machine has that is as it should be, as far as `PATH` tells: this shim, containerd,
/// runc.
fn good_directory(d: &Daemon) -> std::path::PathBuf {
    let (containerd, runc) = (where_is("containerd"), where_is("runc"));
    directory(
        d,
        "good",
        &[
            ("containerd-shim-rs-v2", shim_binary()),
            ("containerd", &containerd),
            ("runc", &runc),
        ],
    )
}

/// What `check --json` says of `what`: `FOUND` and `VERDICT: TEXT`. Containerds of other mount
/// namespaces, which may run on this machine, come before.
#[track_caller]
fn said(output: &Output, what: &str) -> (String, String) {
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let finding = findings.iter().rfind(|finding| finding["what"] == what);
    let finding = finding.unwrap_or_else(|| panic!("nothing of {what}: {findings:?}"));
    let text = |key: &str| finding[key].as_str().expect("a string").to_owned();
    (
        text("found"),
        format!("{}: {}", text("verdict"), text("text")),
    )
}

cases! {
    fn check_tells_what_this_machine_offers(d) {
        let good = good_directory(d);
        let output = checked(d, &["--json"], &[&good]);
        let (found, verdict) = said(&output, "runtime io.containerd.rs.v2");
        assert!(found.contains("this shim") && verdict == "ok: ", "{found} {verdict}");
        let (found, verdict) = said(&output, "OCI runtime runc");
        assert!(found.contains("/good/runc") && verdict == "ok: ", "{found} {verdict}");
        let (found, verdict) = said(&output, "containerd");
        assert!(found.contains("not running") && verdict.starts_with("note: "), "{found} {verdict}");
        for what in ["runtime io.containerd.runc.v2", "CRIU", "descriptors", "processes", "privileges",
            "kernel", "system calls", "cgroups", "systemd", "pipe quota", "inotify instances", "/run/containerd/s"] {
            let (found, verdict) = said(&output, what);
            assert!(!found.is_empty() && !verdict.starts_with("mend: "), "{what}: {found} {verdict}");
        }
        // These tests run where nothing needs to be mended.
        assert_eq!((output.status, output.stderr_text().as_str()), (0, ""), "{}", output.stdout_text());
        let table = checked(d, &[], &[&good]).stdout_text();
        let has_line = |what: &str| table.lines().any(|line| line.starts_with(what) && line.contains("  ok"));
        assert!(has_line("OCI runtime runc") && has_line("cgroups"), "{table}");
    }

    fn check_without_an_oci_runtime_fails(d) {
        let programs = [("containerd-shim-rs-v2", shim_binary())];
        let dir = directory(d, "bin", &programs);
        let output = checked(d, &[], &[&dir]);
        assert_eq!(output.status, 1, "{output:?}");
        let text = output.stdout_text();
        assert!(text.contains("mend: no OCI runtime is on PATH, "), "{text}");
        assert!(text.contains("mend: none runs, and none is on PATH: install containerd"), "{text}");
        assert!(output.stderr_text().contains("check: 2 of "), "{output:?}");
    }

    fn check_gives_up_an_oci_runtime_that_hangs(d) {
        let good = good_directory(d);
        let (dir, pids) = (directory(d, "first", &[]), d.path("pids"));
        let script = format!("echo $$ >>{}; exec /bin/sleep inf", pids.display());
        write_program(&dir.join("runc"), &script);
        let output = checked(d, &["--json"], &[&dir, &good]);
        assert_eq!(output.status, 1, "{output:?}");
        let (found, verdict) = said(&output, "OCI runtime runc");
        assert!(found.ends_with("/first/runc"), "{found}");
        assert_eq!(verdict, "mend: --version: does not end within 10 s");
        let pids = std::fs::read_to_string(pids).unwrap();
        for pid in pids.lines().map(|pid| pid.parse().unwrap()) {
            d.eventually("the runtime's end", || !process::alive(pid));
        }
    }

    fn check_tells_which_shim_comes_first(d) {
        let good = good_directory(d);
        let (name, own) = ("containerd-shim-runc-v2", go_shim(Api::V2));
        let go = directory(d, "go", &[(name, own)]);
        let ours = directory(d, "ours", &[(name, shim_binary())]);
        let runtime = "runtime io.containerd.runc.v2";
        let (found, verdict) = said(&checked(d, &["--json"], &[&go, &ours, &good]), runtime);
        assert!(found.contains("/go/") && found.contains("containerd's own shim 1."), "{found}");
        assert_eq!(verdict, "ok: ");
        let (found, verdict) = said(&checked(d, &["--json"], &[&ours, &go, &good]), runtime);
        assert!(found.contains("/ours/") && found.contains("this shim "), "{found}");
        assert_eq!(verdict, "ok: ");
        let (_, verdict) = said(&checked(d, &["--json"], &[&good]), runtime);
        assert!(verdict.starts_with("note: clients that ask for io.containerd.runc.v2 fail"), "{verdict}");
        // Another program under this shim's name.
        let wrong = directory(d, "wrong", &[("containerd-shim-rs-v2", own)]);
        let output = checked(d, &["--json"], &[&wrong, &good]);
        assert_eq!(output.status, 1, "{output:?}");
        let (found, verdict) = said(&output, "runtime io.containerd.rs.v2");
        assert!(found.ends_with("not this shim") && verdict.starts_with("mend: "), "{found} {verdict}");
    }

    fn ps_lists_servers_and_what_they_have(d) {
        let c = d.running("c");
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let exec_pid = e.start().unwrap();
        let waiting = c.wait_pending();
        c.state().unwrap();
        let found = servers(d, &["ps", "--json"]);
        let [server] = &found[..] else { panic!("{found:?}") };
        assert_eq!(server["pid"], c.shim_pid);
        assert_eq!(server["id"], "c");
        assert_eq!(server["containerd"], d.grpc_address());
        assert_eq!(server["error"], Value::Null);
        let report = &server["report"];
        assert_eq!((&report["requests"], &report["waiting"]), (&0.into(), &1.into()), "{server}");
        let container = &report["containers"][0];
        assert_eq!(container["id"], "c");
        assert_eq!(container["state"], "running");
        assert_eq!(container["pid"], c.state().unwrap().pid);
        assert_eq!(container["execs"][0]["pid"], exec_pid);

        let table = typed(d, &["ps"]).stdout_text();
        let line = table.lines().find(|line| line.contains(&d.namespace)).expect("a line");
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[..3], [&c.shim_pid.to_string(), &d.namespace, "c"], "{table}");
        assert_eq!(words[4], "1", "{table}");
        c.end();
        assert_eq!(waiting.wait().unwrap().exit_status, 137);
        c.finish();
    }

    fn ps_asks_a_server_whose_socket_is_in_another_mount_namespace(d) {
        let c = d.running("c");
        // As a rootless containerd's: it has a /run of its own.
        let script = "mount -t tmpfs tmpfs \"$1\" && exec \"$2\" ps --json";
        let dir = c.socket().parent().expect("a directory");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(dir).arg(shim_binary());
        let output = process::run(&mut command, &[], d.hang_timeout);
        let found = servers_of(d, &output);
        assert_eq!(found[0]["pid"], c.shim_pid);
        assert_eq!(found[0]["error"], Value::Null);
        assert_eq!(found[0]["report"]["containers"][0]["id"], "c");
        c.end();
        c.finish();
    }

    fn ps_does_not_wait_for_a_server_that_hangs(d) {
        let c = d.running("c");
        process::signal(c.shim_pid, Signal::SIGSTOP);
        let found = servers(d, &["ps", "--json"]);
        process::signal(c.shim_pid, Signal::SIGCONT);
        assert_eq!(found[0]["pid"], c.shim_pid);
        assert_eq!(found[0]["report"], Value::Null);
        assert_eq!(found[0]["error"], "no answer within 2 s");
        c.end();
        c.finish();
    }

    fn inspect_finds_the_server_of_a_pods_container(d) {
        let a = d.container("a", &["sleep", "inf"]).group("a").run();
        let b = d.container("b-of-inspect", &["sleep", "inf"]).group("a").run();
        let found = servers(d, &["inspect", "b-of-inspect"]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0]["id"], "a");
        assert_eq!(found[0]["report"]["containers"][1]["id"], "b-of-inspect");
        for c in [b, a] {
            c.end();
            c.delete().unwrap();
        }
    }

    fn inspect_of_an_unknown_container_is_an_error(d) {
        let output = typed(d, &["inspect", "no-such-container"]);
        assert_eq!(output.status, 1, "{output:?}");
        assert_eq!(output.stdout_text(), "");
        assert!(output.stderr_text().contains("inspect no-such-container: no running shim has this container"), "{output:?}");
    }
}
