//! `docker checkpoint`, an experiment of Docker's, where CRIU works.

use std::process::Command;

use crate::docker::Docker;
use crate::world;

/// Counts in the logs.
const COUNT: &str = "n=0; while :; do n=$((n + 1)); echo $n; sleep 0.1; done";

pub fn checkpoint_and_restore(d: &Docker) {
    let check = Command::new("criu").arg("check").output();
    if !check.as_ref().is_ok_and(|check| check.status.success()) {
        assert!(std::env::var_os("NO_SKIP").is_none(), "{check:?}");
        println!("SKIPPED: criu check: {check:?}");
        return;
    }
    d.configure("{\"experimental\": true}");
    let restarted = Command::new("systemctl")
        .args(["restart", "docker"])
        .status();
    assert!(restarted.expect("run systemctl").success());

    d.start("box", "", COUNT);
    counts_past(d, 3);
    d.ok("checkpoint create box first");
    d.until_state("box", "exited 137");
    let counted = count(d);
    d.ok("start --checkpoint first box");
    assert_eq!(d.status("box"), "running");
    counts_past(d, counted);

    let pid = d.pid("box");
    d.ok("checkpoint create --leave-running box second");
    assert_eq!((d.status("box"), d.pid("box")), ("running".into(), pid));
    let listed = d.ok("checkpoint ls box");
    assert_eq!(listed.split_whitespace().last(), Some("second"), "{listed}");
    counts_past(d, count(d));
    d.remove("box");
}

/// Waits until the container has counted past `number`.
fn counts_past(d: &Docker, number: u32) {
    world::until("the container to count", || count(d) > number);
}

/// What the container has counted up to. It goes on after a restore, and does not begin anew.
fn count(d: &Docker) -> u32 {
    let logs = d.ok("logs box");
    let numbers: Vec<u32> = logs
        .lines()
        .map(|line| line.parse().expect("a number"))
        .collect();
    let expected: Vec<u32> = (1..=numbers.len() as u32).collect();
    assert_eq!(numbers, expected);
    numbers.len() as u32
}
