//! A world as the machine that the documents' commands are written for: this shim is installed in
//! `/usr/local/bin` and nowhere else, containerd's own shim is in `/usr/bin`, and there are `sudo` and
//! a `systemctl` that knows one thing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// Where the stand-ins are.
const STAND_INS: &str = "/run/containerd/stand-ins";

/// This shim, as `make install` puts it there.
pub const OURS: &str = "/usr/local/bin/containerd-shim-rs-v2";

/// containerd's own, as a package puts it there.
pub const CONTAINERDS: &str = "/usr/bin/containerd-shim-runc-v2";

/// Makes the world of a test such a machine. containerd, which runs already, does not find a shim
/// in /usr/local/bin before the next `systemctl restart containerd`.
pub fn prepare() {
    let daemon = concat!(env!("CARGO_MANIFEST_DIR"), "/hack/daemon");
    fs::create_dir_all(STAND_INS).expect("make a directory");
    write_program("sudo", "exec \"$@\"");
    let restart = format!("{daemon} stop && PATH=/usr/local/bin:$PATH exec {daemon} start");
    let unknown = "echo \"systemctl $*: not in this world\" >&2; exit 1";
    let script = format!("case \"$*\" in 'restart containerd') {restart} ;; *) {unknown} ;; esac");
    write_program("systemctl", &script);

    must(&["mount", "-t", "tmpfs", "world", "/usr/local/bin"]);
    must(&["cp", "/run/containerd/shims/containerd-shim-rs-v2", OURS]);
    for name in ["containerd-shim-rs-v2", "containerd-shim-runc-v2"] {
        let _ = fs::remove_file(format!("/run/containerd/shims/{name}"));
    }
    let theirs =
        run("readlink -f \"$(dirname \"$(command -v containerd)\")/containerd-shim-runc-v2\"");
    let theirs = theirs.trim();
    if theirs != CONTAINERDS {
        must(&["mount", "--bind", theirs, CONTAINERDS]);
    }
    run("systemctl restart containerd");
}

fn write_program(name: &str, script: &str) {
    let path = Path::new(STAND_INS).join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write a program");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
}

fn must(words: &[&str]) {
    let status = Command::new(words[0]).args(&words[1..]).status();
    assert!(status.is_ok_and(|status| status.success()), "{words:?}");
}

/// Runs the commands, as a person would type them in the repository.
pub fn try_run(script: &str) -> Output {
    let path = std::env::var("PATH").expect("a PATH");
    let mut command = Command::new("timeout");
    command.args([
        "--signal=KILL",
        "300",
        "bash",
        "-euo",
        "pipefail",
        "-c",
        script,
    ]);
    command.env("PATH", format!("{STAND_INS}:/usr/local/bin:{path}"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.output().expect("run timeout(1)")
}

/// Runs the commands, which must succeed; returns what they print.
pub fn run(script: &str) -> String {
    let done = try_run(script);
    assert!(done.status.success(), "{script}\n{done:?}");
    String::from_utf8(done.stdout).expect("UTF-8")
}
