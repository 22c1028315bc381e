//! What an operator sees: `check` beside a running containerd, and errors of `start` in
//! containerd's own.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::ctr::Ctr;
use crate::world;

/// What `check` says of `what` here, found on containerd's `PATH`: its own is empty.
fn said(what: &str) -> (String, String) {
    let mut command = Command::new("/run/containerd/shims/containerd-shim-rs-v2");
    command.args(["check", "--json"]).env("PATH", "");
    let output = command.output().expect("run check");
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let finding = findings.iter().find(|finding| finding["what"] == what);
    let finding = finding.unwrap_or_else(|| panic!("nothing of {what}: {findings:?}"));
    let text = |key: &str| finding[key].as_str().expect("a string").to_owned();
    (text("found"), text("verdict"))
}

pub fn check_tells_of_the_running_containerd(_: &Ctr) {
    let pid = fs::read_to_string("/run/containerd/daemon.pid").expect("containerd's pid");
    let running = format!("process {}, /run/containerd/containerd.sock", pid.trim());
    let (found, verdict) = said("containerd");
    assert!(found.ends_with(&running), "{found}");
    assert_eq!(verdict, "ok");
    for runtime in ["rs", "runc"] {
        let (found, verdict) = said(&format!("runtime io.containerd.{runtime}.v2"));
        let shim = format!("/run/containerd/shims/containerd-shim-{runtime}-v2, this shim ");
        assert!(found.starts_with(&shim), "{found}");
        assert_eq!(verdict, "ok");
    }
    let (found, verdict) = said("OCI runtime runc");
    assert!(found.contains("/runc, "), "{found}");
    assert_eq!(verdict, "ok");
    world::stop_containerd();
    let (found, verdict) = said("containerd");
    assert_eq!((&*found, &*verdict), ("not found", "mend"));
    world::start_containerd();
}

pub fn start_error_is_quoted_in_one_line(ctr: &Ctr) {
    const SOCKETS: &str = "/run/containerd/s";
    fs::write(SOCKETS, "").expect("put a file in the place of a directory");
    ctr.run(&["--rm"], "box", &["true"]).expect_error(
        "containerd-shim-rs-v2: create directory /run/containerd/s: \
         it exists and is not a directory: exit status 1",
    );
    fs::remove_file(SOCKETS).expect("remove the file");
    let output = ctr.run(&["--rm"], "box", &["echo", "on"]);
    assert_eq!(output.stdout, "on\n");
}
