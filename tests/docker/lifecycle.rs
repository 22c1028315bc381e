//! Signals, pauses, limits, restarts and health of a container that runs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::docker::{Docker, STAY};
use crate::world;

/// A script that says when it is ready, and ends with 3 on SIGTERM and SIGUSR2.
const TRAP: &str =
    "trap 'echo usr1' USR1; trap 'exit 3' TERM USR2; echo ready; while :; do sleep 0.1; done";

/// A script that ignores SIGTERM.
const STUBBORN: &str = "trap '' TERM; echo ready; while :; do sleep 0.1; done";

pub fn stop_with_and_without_grace(d: &Docker) {
    let stop = |options: &str, script: &str, stop: &str| {
        d.start("box", options, script);
        d.until_logged("box", "ready");
        let start = Instant::now();
        d.ok(&format!("stop {stop} box"));
        let time = start.elapsed();
        let code = d.wait("box");
        assert_eq!(d.status("box"), "exited");
        d.remove("box");
        (code, time)
    };
    assert_eq!(stop("", TRAP, "-t 30").0, 3);
    assert_eq!(stop("--stop-signal USR2", TRAP, "-t 30").0, 3);
    let (code, time) = stop("", STUBBORN, "-t 2");
    assert_eq!(code, 137);
    assert!(time >= Duration::from_secs(2), "killed after {time:?}");
    assert_eq!(stop("", STUBBORN, "-t 0").0, 137);
}

pub fn kill(d: &Docker) {
    d.start("box", "", TRAP);
    d.until_logged("box", "ready");
    d.ok("kill -s USR1 box");
    d.until_logged("box", "usr1");
    assert_eq!(d.status("box"), "running");
    d.ok("kill -s TERM box");
    assert_eq!(d.wait("box"), 3);
    let again = d.call("kill box");
    assert!(
        again.code == 1 && again.stderr.contains("is not running"),
        "{again:?}"
    );
    d.ok("start box");
    d.ok("kill box");
    assert_eq!(d.wait("box"), 137);
    d.remove("box");
}

pub fn pause_and_unpause(d: &Docker) {
    d.start("box", "", STAY);
    d.ok("pause box");
    assert_eq!(d.status("box"), "paused");
    assert!(is_frozen(d, "box"));
    d.call("exec box true").expect_error(1, "is paused");
    d.call("pause box").expect_error(1, "already paused");
    d.ok("unpause box");
    assert_eq!(d.status("box"), "running");
    assert!(!is_frozen(d, "box"));
    d.call("exec box echo on").expect(0, "on\n");
    // A commit pauses the container while it copies.
    d.ok("exec box touch /made-here");
    d.ok("commit box copy");
    assert!(!is_frozen(d, "box"));
    d.ok("exec box true");
    d.call("run --rm copy ls /made-here")
        .expect(0, "/made-here\n");
    d.remove("box");
    d.ok("rmi copy");
}

pub fn remove_a_paused_container(d: &Docker) {
    d.start("box", "", "sleep 2000 & exec sleep 1000");
    d.ok("pause box");
    d.remove("box");
    for end in ["kill", "stop -t 1"] {
        d.start("box", "", STAY);
        d.ok("pause box");
        d.ok(&format!("{end} box"));
        assert_eq!(d.wait("box"), 137);
        d.remove("box");
    }
}

pub fn stop_a_container_frozen_by_hand(d: &Docker) {
    for end in ["stop -t 1", "kill", "rm -f"] {
        d.start("box", "", "sleep 2000 & exec sleep 1000");
        freeze(d, "box");
        assert!(is_frozen(d, "box"));
        d.ok(&format!("{end} box"));
        if end != "rm -f" {
            assert_eq!(d.wait("box"), 137);
            d.remove("box");
        }
    }
}

pub fn stats_and_top(d: &Docker) {
    d.start("box", "-m 64m", "sleep 2000 & exec sleep 1000");
    world::until("two processes in docker stats", || {
        d.call_words(&["stats", "--no-stream", "--format", "{{.PIDs}}", "box"])
            .stdout
            == "2\n"
    });
    let stats = d.call_words(&["stats", "--no-stream", "--format", "{{.MemUsage}}", "box"]);
    let (used, limit) = stats.stdout.split_once(" / ").expect("memory usage");
    assert!(!used.starts_with("0B") && limit == "64MiB\n", "{stats:?}");
    let top = d.ok("top box -eo pid,args");
    let pid = d.pid("box").to_string();
    assert!(
        top.lines()
            .any(|line| line.trim().starts_with(&pid) && line.ends_with("sleep 1000")),
        "{top}"
    );
    assert!(
        top.contains("sleep 2000") && top.lines().count() == 3,
        "{top}"
    );
    d.remove("box");
}

pub fn update(d: &Docker) {
    d.start("box", "-m 32m --memory-swap 32m", STAY);
    let files = |v1: &str, v2: &str| {
        let script = format!("cat /sys/fs/cgroup/{v1} 2>/dev/null || cat /sys/fs/cgroup/{v2}");
        d.script("exec box", &script).stdout
    };
    let memory = || files("memory/memory.limit_in_bytes", "memory.max");
    assert_eq!(memory(), "33554432\n");
    d.ok("update --memory 64m --memory-swap 64m --cpus 0.5 --pids-limit 50 box");
    assert_eq!(memory(), "67108864\n");
    let cpu = files("cpu/cpu.cfs_quota_us", "cpu.max");
    assert!(cpu.starts_with("50000"), "{cpu:?}");
    assert_eq!(files("pids/pids.max", "pids.max"), "50\n");
    d.call("update --memory 1k box").expect_error(1, "");
    assert_eq!(memory(), "67108864\n");
    d.remove("box");
}

pub fn restart_policies(d: &Docker) {
    d.start("fails", "--restart on-failure:2", "exit 3");
    let ended = || {
        d.inspect(
            "fails",
            "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}",
        )
    };
    world::until("the last restart", || ended() == "2 exited 3");
    d.remove("fails");

    d.start("always", "--restart always", STAY);
    let first = d.pid("always");
    signal(first, "KILL");
    world::until("the restart", || {
        d.status("always") == "running" && ![0, first].contains(&d.pid("always"))
    });
    assert_eq!(d.inspect("always", "{{.RestartCount}}"), "1");
    let second = d.pid("always");
    d.ok("restart -t 0 always");
    assert_ne!(d.pid("always"), second);
    d.call("exec always echo here").expect(0, "here\n");
    // What a user stops stays stopped.
    d.ok("stop -t 0 always");
    assert_eq!(d.wait("always"), 137);
    assert_eq!(d.status("always"), "exited");
    d.remove("always");
}

pub fn health_checks(d: &Docker) {
    let health = |name: &str, wanted: &str| {
        world::until(&format!("{name} to be {wanted}"), || {
            d.inspect(name, "{{.State.Health.Status}}") == wanted
        });
    };
    let interval = "--health-interval 1s --health-retries 1";
    // A word without a blank, for the container's shell.
    let check = "--health-cmd ls${IFS}/tmp/ok";
    d.start("box", &format!("{interval} {check}"), STAY);
    health("box", "unhealthy");
    let log = d.inspect(
        "box",
        "{{(index .State.Health.Log 0).ExitCode}} {{(index .State.Health.Log 0).Output}}",
    );
    assert!(log.starts_with("1 ls: /tmp/ok: No such file"), "{log}");
    d.ok("exec box touch /tmp/ok");
    health("box", "healthy");
    d.remove("box");

    // A check that takes too long is killed.
    d.start(
        "slow",
        &format!("{interval} --health-timeout 1s --health-cmd yes"),
        STAY,
    );
    health("slow", "unhealthy");
    d.remove("slow");
}

/// Sends a signal, as a user of the machine does.
pub fn signal(pid: i32, name: &str) {
    let status = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .status();
    assert!(status.expect("run kill").success(), "kill -s {name} {pid}");
}

/// The freezer's directory of the container, and whether that is of cgroup v1.
fn freezer(d: &Docker, name: &str) -> (String, bool) {
    let id = d.inspect(name, "{{.Id}}");
    for root in world::cgroups() {
        for (file, is_v1) in [("freezer.state", true), ("cgroup.freeze", false)] {
            let directory = format!("{root}/{id}");
            if Path::new(&directory).join(file).exists() && !root.contains("/unified/") {
                return (directory, is_v1);
            }
        }
    }
    panic!("no freezer for {name}");
}

fn freeze(d: &Docker, name: &str) {
    match freezer(d, name) {
        (directory, true) => fs::write(directory + "/freezer.state", "FROZEN"),
        (directory, false) => fs::write(directory + "/cgroup.freeze", "1"),
    }
    .expect("freeze a cgroup");
    world::until("the cgroup to be frozen", || is_frozen(d, name));
}

fn is_frozen(d: &Docker, name: &str) -> bool {
    let (directory, is_v1) = freezer(d, name);
    if is_v1 {
        fs::read_to_string(directory + "/freezer.state").expect("read the state") == "FROZEN\n"
    } else {
        let events = fs::read_to_string(directory + "/cgroup.events").expect("read the state");
        events.contains("frozen 1")
    }
}
