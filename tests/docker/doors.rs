//! The ways to name a shim or an OCI runtime, and those that only look like one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::docker::Docker;
use crate::world::{self, SHIMS};

/// An OCI runtime that leaves a trace.
const WRAPPER: &str = "/run/wrapper";

/// What [`WRAPPER`] was called with.
const TRACE: &str = "/run/wrapper.trace";

pub fn name_is_refused(d: &Docker) {
    let done = d.call("run --rm --runtime io.containerd.rs.v2 busybox true");
    done.expect_error(125, "Unknown runtime specified io.containerd.rs.v2");
}

pub fn runtime_type_is_ignored(d: &Docker) {
    fs::remove_file(format!("{SHIMS}/containerd-shim-runc-v2")).expect("remove the link");
    d.configure(r#"{"runtimes": {"rs": {"runtimeType": "io.containerd.rs.v2"}}}"#);
    d.reload("rs");
    d.ok("run -d --name box --network none --runtime rs busybox sleep 1000");
    let program = d.server("box").expect("a shim");
    assert!(
        program.ends_with("/containerd-shim-runc-v2") && !program.starts_with(SHIMS),
        "{program}"
    );
    d.remove("box");
}

pub fn oci_runtime_of_daemon_json(d: &Docker) {
    wrapper();
    d.configure(&format!(
        r#"{{"runtimes": {{"wrapped": {{"path": "{WRAPPER}"}}}}}}"#
    ));
    d.reload("wrapped");
    d.ok("run -d --name box --network none --runtime wrapped busybox sleep 1000");
    assert_eq!(
        d.server("box"),
        Some(format!("{SHIMS}/containerd-shim-rs-v2"))
    );
    assert!(trace().contains(" create "), "{}", trace());
    d.call("exec box echo here").expect(0, "here\n");
    d.remove("box");
}

pub fn options_of_daemon_json(d: &Docker) {
    wrapper();
    let options = |options: &str| {
        let runtime = format!(r#""runtimeType": "io.containerd.rs.v2", "options": {{{options}}}"#);
        d.configure(&format!(r#"{{"runtimes": {{"rs": {{{runtime}}}}}}}"#));
        d.reload("rs");
        fs::write(TRACE, "").expect("empty the trace");
        d.call("run --rm --network none --runtime rs busybox echo hi")
    };
    let toml = |text: &str| fs::write("/etc/containerd-shim-rs.toml", text).expect("write TOML");
    let path = r#""ConfigPath": "/etc/containerd-shim-rs.toml""#;

    toml(&format!("BinaryName = \"{WRAPPER}\"\n"));
    options(path).expect(0, "hi\n");
    assert!(trace().contains(" create "), "{}", trace());

    // Docker drops a key that it does not know for our type, without a word.
    options(&format!(r#""BinaryName": "{WRAPPER}""#)).expect(0, "hi\n");
    assert_eq!(trace(), "");

    toml("BinaryName = 5\n");
    options(path).expect_error(125, "BinaryName is not a string");
    options(r#""ConfigPath": "/etc/no-such.toml""#)
        .expect_error(125, "/etc/no-such.toml: No such file or directory");

    // Docker cannot carry the text itself: it then refuses the whole of daemon.json.
    d.configure(r#"{"runtimes": {"body": {"runtimeType": "io.containerd.rs.v2", "options": {"ConfigBody": "x"}}}}"#);
    systemctl("reload docker");
    world::until("dockerd to refuse it", || {
        let log = fs::read_to_string("/run/docker/daemon.log").expect("dockerd's log");
        log.contains("runtime body: ")
    });
    d.call("run --rm --runtime body busybox true")
        .expect_error(125, "unknown or invalid runtime name: body");
}

pub fn link_removed_and_made_again(d: &Docker) {
    crate::document::install();
    let link = "/usr/local/bin/containerd-shim-runc-v2";
    std::os::unix::fs::symlink("containerd-shim-rs-v2", link).expect("make a link");
    systemctl("restart containerd");
    d.ok("run -d --name box --network none busybox sleep 1000");
    let ours = "/usr/local/bin/containerd-shim-rs-v2";
    assert_eq!(d.server("box").as_deref(), Some(ours));
    fs::remove_file(link).expect("remove the link");
    // What runs is not disturbed. containerd remembers the path that is gone.
    d.call("exec box echo here").expect(0, "here\n");
    let refused = d.call("run --rm --network none busybox true");
    let error = format!("fork/exec {link}: no such file");
    assert!(refused.stderr.contains(&error), "{refused:?}");
    std::os::unix::fs::symlink("containerd-shim-rs-v2", link).expect("make a link");
    systemctl("restart containerd");
    d.call("exec box echo here").expect(0, "here\n");
    d.remove("box");
}

fn systemctl(words: &str) {
    let status = Command::new("systemctl").args(words.split(' ')).status();
    assert!(
        status.expect("run systemctl").success(),
        "systemctl {words}"
    );
}

fn wrapper() {
    let script = format!("#!/bin/sh\necho \" $* \" >>{TRACE}\nexec runc \"$@\"\n");
    fs::write(WRAPPER, script).expect("write a script");
    fs::set_permissions(WRAPPER, fs::Permissions::from_mode(0o755)).expect("chmod");
}

fn trace() -> String {
    fs::read_to_string(TRACE).unwrap_or_default()
}
