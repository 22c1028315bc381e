//! Containers whose dockerd, containerd or shim is killed or restarted.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::docker::{Docker, STAY};
use crate::lifecycle::signal;
use crate::world::{self, SHIMS};

/// A script that writes all the time, and ends with 9 when `/tmp/go` is there.
const WRITER: &str = "n=0; until [ -e /tmp/go ]; do n=$((n + 1)); echo $n; sleep 0.05; done; echo last words; exit 9";

/// While this file is there, the OCI runtime does not come to delete anything.
const HOLD: &str = "/run/hold-delete";

/// The OCI runtime makes this file when it waits for [`HOLD`] to go.
const HELD: &str = "/run/delete-is-held";

pub fn live_restore(d: &Docker) {
    d.live_restore();
    d.start("box", "", WRITER);
    d.start(
        "terminal",
        "-it",
        "while read word; do echo \"<$word>\"; done",
    );
    let pids = [d.pid("box"), d.pid("terminal")];
    d.until_logged("box", "1");
    world::control("docker", "stop");
    world::control("docker", "start");
    assert_eq!([d.pid("box"), d.pid("terminal")], pids);
    d.script("exec box", "echo here; exit 2")
        .expect(2, "here\n");
    assert!(d.ok("stats --no-stream box").contains("box"));
    // Output goes on arriving, terminals take input, and nothing between is lost.
    let count = || d.ok("logs box").lines().count();
    let counted = count();
    world::until("more output", || count() > counted);
    let mut attached = d.session_on_terminal("attach terminal", None);
    attached.write(b"hello\r");
    attached.until_output("<hello>");
    attached.write(b"\x10\x11");
    attached.wait();
    d.ok("exec box touch /tmp/go");
    assert_eq!(d.wait("box"), 9);
    let logs = d.ok("logs box");
    let lines: Vec<_> = logs.lines().collect();
    let (last, numbers) = lines.split_last().expect("lines");
    assert_eq!(*last, "last words");
    for (line, number) in numbers.iter().zip(1..) {
        assert_eq!(*line, number.to_string(), "{lines:?}");
    }
    d.ok("stop -t 0 terminal");
    assert_eq!(d.wait("terminal"), 137);
    d.remove("box");
    d.remove("terminal");
}

pub fn exits_while_dockerd_is_away(d: &Docker) {
    ends_while_away(d, &["docker"]);
}

pub fn exits_while_containerd_is_away(d: &Docker) {
    ends_while_away(d, &["daemon"]);
}

pub fn exits_while_both_are_away(d: &Docker) {
    ends_while_away(d, &["docker", "daemon"]);
}

/// Kills these daemons, has containers end, and starts the daemons again, the last one first.
fn ends_while_away(d: &Docker, daemons: &[&str]) {
    d.live_restore();
    d.start("nine", "", WRITER);
    d.start("killed", "", STAY);
    d.start("restarts", "--restart on-failure", WRITER);
    d.start("stays", "", STAY);
    let [nine, killed, restarts, stays] =
        ["nine", "killed", "restarts", "stays"].map(|name| d.pid(name));
    for daemon in daemons {
        world::control(daemon, "stop");
    }
    for pid in [nine, restarts] {
        fs::write(format!("/proc/{pid}/root/tmp/go"), "").expect("make /tmp/go");
    }
    signal(killed, "KILL");
    world::until("the ends of three containers", || {
        [nine, killed, restarts]
            .iter()
            .all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
    for daemon in daemons.iter().rev() {
        world::control(daemon, "start");
    }
    d.until_state("nine", "exited 9");
    d.until_state("killed", "exited 137");
    // A new dockerd may delete the task before it has opened its FIFOs: rarely, the end is lost.
    if !daemons.contains(&"docker") {
        d.until_logged("nine", "last words");
    }
    // `/tmp/go` is a file of the container's: it ends again and again.
    world::until("restarts", || {
        d.inspect("restarts", "{{.RestartCount}}")
            .parse()
            .is_ok_and(|count: u32| count > 1)
    });
    assert_eq!(
        (d.status("stays"), d.pid("stays")),
        ("running".to_owned(), stays)
    );
    d.call("exec stays echo here").expect(0, "here\n");
    d.ok("kill stays");
    assert_eq!(d.wait("stays"), 137);
    for name in ["nine", "killed", "restarts", "stays"] {
        d.remove(name);
    }
}

pub fn containerd_killed_during_delete(d: &Docker) {
    kill_during_delete(d, "daemon");
    d.until_state("box", "exited 9");
    assert_eq!(d.ok("logs --tail 1 box"), "last words");
    // It can be used again, as soon as Docker has a connection to containerd.
    world::until("the container to start", || d.call("start box").code == 0);
    assert_eq!(d.wait("box"), 9);
    d.remove("box");
}

/// The shim has deleted the container, and its answer has reached containerd, which had nobody to
/// tell it to: the task stays in containerd, and is unknown to the new dockerd.
pub fn dockerd_killed_during_delete(d: &Docker) {
    kill_during_delete(d, "docker");
    assert_eq!(d.ok("logs --tail 1 box"), "last words");
    // 9: dockerd lives so long on a busy machine that its Delete times out, and is done again.
    let status = d.inspect("box", "{{.State.Status}} {{.State.ExitCode}}");
    assert!(
        ["exited 255", "exited 9"].contains(&status.as_str()),
        "{status}"
    );
    // At first "already exists"; but a shim that has no container, and gets no Shutdown, ends.
    world::until("the container to start", || d.call("start box").code == 0);
    assert_eq!(d.wait("box"), 9);
    d.remove("box");
}

/// Has a container end with 9, and kills `daemon` while the OCI runtime deletes it.
fn kill_during_delete(d: &Docker, daemon: &str) {
    d.live_restore();
    hold_deletes();
    d.start("box", "", WRITER);
    fs::write(HOLD, "").expect("make a file");
    d.ok("exec box touch /tmp/go");
    world::until("the OCI runtime's delete", || Path::new(HELD).exists());
    world::control(daemon, "stop");
    fs::remove_file(HOLD).expect("remove a file");
    world::control(daemon, "start");
}

/// Puts a program before the OCI runtime that waits in `delete` while [`HOLD`] is there.
fn hold_deletes() {
    let runtime = format!("{SHIMS}/runc");
    let path = std::env::var("PATH").expect("PATH");
    let mut places = path.split(':').map(|place| format!("{place}/runc"));
    let real = fs::canonicalize(&runtime).unwrap_or_else(|_| {
        let found = places.find(|file| Path::new(file).exists());
        found.expect("runc on PATH").into()
    });
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *' delete '*) while [ -e {HOLD} ]; do : >{HELD}; sleep 0.05; done ;; esac\nexec {} \"$@\"\n",
        real.display()
    );
    let _ = fs::remove_file(&runtime);
    fs::write(&runtime, script).expect("write a script");
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).expect("chmod");
}

pub fn dockerd_stops_its_containers(d: &Docker) {
    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    d.start("box", "", script);
    d.start("always", "--restart always", script);
    d.until_logged("box", "ready");
    d.until_logged("always", "ready");
    world::control("docker", "quit");
    world::control("docker", "start");
    d.until_state("box", "exited 3");
    world::until("the other one to run again", || {
        d.status("always") == "running"
    });
    d.call("exec always echo here").expect(0, "here\n");
    d.remove("box");
    d.remove("always");
}

pub fn shim_killed(d: &Docker) {
    d.start("box", "", "sleep 2000 & exec sleep 1000");
    signal(d.server_pid("box").expect("a shim"), "KILL");
    assert_eq!(d.wait("box"), 137);
    // The container's processes are gone, and its name can be used again.
    d.ok("start box");
    d.call("exec box echo here").expect(0, "here\n");
    d.remove("box");
}
