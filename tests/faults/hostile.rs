//! Hostile containers: what they do to their limits, outputs and cgroups does not keep them
//! from being killed and removed.

use std::fs;

use serde_json::json;

use crate::harness::container::{Container, Fifos};
use crate::harness::machine::{DeepCgroups, cgroup_dirs, listed_cgroup_dir};
use crate::harness::stdio::Tap;
use crate::harness::{Daemon, Stdio};
use crate::scene::{assert_events, remove};

#[track_caller]
fn finish(d: &Daemon, c: &Container) {
    assert_eq!(remove(c), 0, "the server's end");
    assert_events(d, "c");
}

/// The same for one that may have processes that hold its output.
#[track_caller]
fn finish_with_output(d: &Daemon, c: &Container, fifos: &Fifos) {
    finish(d, c);
    fifos.stdout.end();
}

/// The server is killed, and the container is removed by the action `delete`.
#[track_caller]
fn finish_without_server(c: &Container) {
    c.kill_shim();
    assert_eq!(remove(c), 137, "the server's end");
}

/// A container that forks for ever, under a limit of processes; it has begun.
fn fork_bomb(d: &Daemon, host_pids: bool) -> (Container<'_>, Fifos) {
    /// A busybox shell that has itself forked for ever.
    const SCRIPT: &str =
        "export S='sh -c \"$S\" & sh -c \"$S\" &'; echo up; sh -c \"$S\"; exec sleep inf";
    let fifos = d.fifos("c");
    let c = d
        .shell("c", SCRIPT)
        .resources(json!({"pids": {"limit": 64}}));
    let c = if host_pids { c.host_pids() } else { c };
    let c = c.stdio(fifos.stdio.clone()).run();
    fifos.stdout.wait_for("up");
    (c, fifos)
}

/// A container whose output, by `script`, has begun and is read no more.
fn output_flood<'d>(d: &'d Daemon, script: &str) -> (Container<'d>, Tap) {
    let fifo = d.fifo("out");
    let mut tap = d.tap(&fifo);
    let stdio = Stdio {
        stdout: fifo.clone(),
        stderr: fifo,
        ..Default::default()
    };
    let c = d.shell("c", script).stdio(stdio).run();
    tap.take(1 << 16);
    (c, tap)
}

/// A container with 50 cgroups in its own, each in the one before.
fn tree_of_cgroups(d: &Daemon) -> Container<'_> {
    let c = d.running("c");
    for dir in cgroup_dirs(c.cgroup()) {
        let deep = (0..50).fold(dir, |dir, number| dir.join(format!("d{number}")));
        fs::create_dir_all(deep).expect("make a tree of cgroups");
    }
    c
}

/// The same with a tree that is too deep for a path.
fn too_deep_tree_of_cgroups(d: &Daemon) -> (Container<'_>, DeepCgroups) {
    let c = d.running("c");
    let dir = listed_cgroup_dir(c.cgroup()).expect("a cgroup");
    (c, DeepCgroups::below(&dir))
}

faults! { "hostile";
    fn fork_bomb_under_a_limit(d) {
        let (c, fifos) = fork_bomb(d, false);
        finish_with_output(d, &c, &fifos);
    }

    fn fork_bomb_among_the_hosts_pids(d) {
        let (c, fifos) = fork_bomb(d, true);
        finish_with_output(d, &c, &fifos);
    }

    fn fork_bomb_whose_server_was_killed(d) {
        let (c, _fifos) = fork_bomb(d, true);
        finish_without_server(&c);
    }

    fn output_flood_with_a_stopped_reader(d) {
        let (c, _tap) = output_flood(d, "while :; do yes; done");
        c.end();
        finish(d, &c);
    }

    fn output_flood_whose_server_was_killed(d) {
        let (c, _tap) = output_flood(d, "trap '' PIPE; while :; do yes; done");
        finish_without_server(&c);
    }

    fn stdout_is_read_back(d) {
        let fifos = d.fifos("c");
        let script = "echo up; cat /proc/self/fd/1 >/dev/null & cat <>/proc/self/fd/2 >/dev/null & while :; do echo x; done";
        let c = d.shell("c", script).stdio(fifos.stdio.clone()).run();
        fifos.stdout.wait_for("x");
        finish_with_output(d, &c, &fifos);
    }

    fn stdio_is_closed_and_kept_by_a_daemon(d) {
        let fifos = d.fifos("c");
        let script = "setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 1; done' & echo up; exec <&- >&- 2>&- sleep inf";
        let c = d.shell("c", script).host_pids().stdio(fifos.stdio.clone()).run();
        fifos.stdout.wait_for("up");
        finish_with_output(d, &c, &fifos);
    }

    fn deep_tree_of_cgroups(d) {
        let c = tree_of_cgroups(d);
        finish(d, &c);
    }

    fn wide_tree_of_cgroups(d) {
        let c = d.running("c");
        for dir in cgroup_dirs(c.cgroup()).into_iter().take(2) {
            for number in 0..200 {
                fs::create_dir(dir.join(format!("w{number}"))).expect("make a cgroup");
            }
        }
        finish(d, &c);
    }

    fn tree_of_cgroups_that_is_too_deep_for_a_path(d) {
        let (c, _deep) = too_deep_tree_of_cgroups(d);
        finish(d, &c);
    }

    fn tree_of_cgroups_that_is_too_deep_for_a_path_and_whose_server_was_killed(d) {
        let (c, _deep) = too_deep_tree_of_cgroups(d);
        finish_without_server(&c);
    }

    fn deep_tree_of_cgroups_whose_server_was_killed(d) {
        let c = tree_of_cgroups(d);
        finish_without_server(&c);
    }
}
