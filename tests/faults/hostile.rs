//! Hostile containers: what they do to their limits, outputs and cgroups does not keep them
//! from being killed and removed.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde_json::json;

use crate::harness::container::Container;
use crate::harness::machine::cgroup_dirs;
use crate::harness::{Daemon, Stdio};
use crate::scene::{assert_events, remove};

#[track_caller]
fn finish(d: &Daemon, c: &Container) {
    assert_eq!(remove(c), 0, "the server's end");
    assert_events(d, "c");
}

/// A tree of cgroups in that of a container, until it is dropped.
struct Deep {
    deepest: OwnedFd,
    depth: usize,
}

/// The name of each of them: the path of all has more than the 4096 bytes that a path may have.
const NAME: &str =
    "deep-deep-deep-deep-deep-deep-deep-deep-deep-deep-deep-deep-deep-deep-deep-deep-deep";
const DEPTH: usize = 60;

impl Deep {
    fn in_cgroup_of(c: &Container) -> Option<Deep> {
        let dirs = cgroup_dirs(c.cgroup());
        let dir = dirs
            .iter()
            .find(|dir| dir.starts_with("/sys/fs/cgroup/devices"))
            .or(dirs.first())?;
        let mut deepest = open(AT_FDCWD, dir.to_str()?);
        for _ in 0..DEPTH {
            mkdirat(&deepest, NAME, Mode::from_bits_truncate(0o755)).expect("make a cgroup");
            deepest = open(&deepest, NAME);
        }
        Some(Deep {
            deepest,
            depth: DEPTH,
        })
    }
}

impl Drop for Deep {
    /// What is still there of it: no path of this harness' is long enough.
    fn drop(&mut self) {
        for _ in 0..self.depth {
            // None is above one that was removed.
            let Ok(above) = openat(&self.deepest, "..", DIRECTORY, Mode::empty()) else {
                return;
            };
            self.deepest = above;
            let _ = unlinkat(&self.deepest, NAME, UnlinkatFlags::RemoveDir);
        }
    }
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC);

fn open(at: impl AsFd, name: &str) -> OwnedFd {
    openat(at, name, DIRECTORY, Mode::empty()).expect("open a cgroup")
}

/// A busybox shell that has it fork for ever.
const FORK_BOMB: &str =
    "export S='sh -c \"$S\" & sh -c \"$S\" &'; echo up; sh -c \"$S\"; exec sleep inf";

faults! { "hostile";
    fn fork_bomb_under_a_limit(d) {
        let fifos = d.fifos("c");
        let c = d.shell("c", FORK_BOMB).resources(json!({"pids": {"limit": 64}}));
        let c = c.stdio(fifos.stdio.clone()).run();
        fifos.stdout.wait_for("up");
        finish(d, &c);
        fifos.stdout.end();
    }

    fn fork_bomb_among_the_hosts_pids(d) {
        let fifos = d.fifos("c");
        let c = d.shell("c", FORK_BOMB).resources(json!({"pids": {"limit": 64}}));
        let c = c.host_pids().stdio(fifos.stdio.clone()).run();
        fifos.stdout.wait_for("up");
        finish(d, &c);
        fifos.stdout.end();
    }

    fn fork_bomb_whose_server_was_killed(d) {
        let fifos = d.fifos("c");
        let c = d.shell("c", FORK_BOMB).resources(json!({"pids": {"limit": 64}}));
        let c = c.host_pids().stdio(fifos.stdio.clone()).run();
        fifos.stdout.wait_for("up");
        c.kill_shim();
        assert_eq!(remove(&c), 137);
    }

    fn output_flood_with_a_stopped_reader(d) {
        let fifo = d.fifo("out");
        let mut tap = d.tap(&fifo);
        let stdio = Stdio { stdout: fifo.clone(), stderr: fifo, ..Default::default() };
        let c = d.shell("c", "while :; do yes; done").stdio(stdio).run();
        tap.take(1 << 16);
        // It reads no more.
        c.end();
        finish(d, &c);
    }

    fn output_flood_whose_server_was_killed(d) {
        let fifo = d.fifo("out");
        let mut tap = d.tap(&fifo);
        let stdio = Stdio { stdout: fifo.clone(), stderr: fifo, ..Default::default() };
        let c = d.shell("c", "trap '' PIPE; while :; do yes; done").stdio(stdio).run();
        tap.take(1 << 16);
        c.kill_shim();
        assert_eq!(remove(&c), 137);
    }

    fn stdout_is_read_back(d) {
        let fifos = d.fifos("c");
        let script = "echo up; cat /proc/self/fd/1 >/dev/null & cat <>/proc/self/fd/2 >/dev/null & while :; do echo x; done";
        let c = d.shell("c", script).stdio(fifos.stdio.clone()).run();
        fifos.stdout.wait_for("x");
        finish(d, &c);
        fifos.stdout.end();
    }

    fn stdio_is_closed_and_kept_by_a_daemon(d) {
        let fifos = d.fifos("c");
        let script = "setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 1; done' & echo up; exec <&- >&- 2>&- sleep inf";
        let c = d.shell("c", script).host_pids().stdio(fifos.stdio.clone()).run();
        fifos.stdout.wait_for("up");
        finish(d, &c);
        fifos.stdout.end();
    }

    fn deep_tree_of_cgroups(d) {
        let c = d.running("c");
        for dir in cgroup_dirs(c.cgroup()) {
            let deep = (0..50).fold(dir, |dir, number| dir.join(format!("d{number}")));
            fs::create_dir_all(deep).expect("make a tree of cgroups");
        }
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
        let c = d.running("c");
        let Some(deep) = Deep::in_cgroup_of(&c) else { return };
        finish(d, &c);
        drop(deep);
    }

    fn tree_of_cgroups_that_is_too_deep_for_a_path_and_whose_server_was_killed(d) {
        let c = d.running("c");
        let Some(deep) = Deep::in_cgroup_of(&c) else { return };
        c.kill_shim();
        assert_eq!(remove(&c), 137);
        drop(deep);
    }

    fn deep_tree_of_cgroups_whose_server_was_killed(d) {
        let c = d.running("c");
        for dir in cgroup_dirs(c.cgroup()) {
            let deep = (0..50).fold(dir, |dir, number| dir.join(format!("d{number}")));
            fs::create_dir_all(deep).expect("make a tree of cgroups");
        }
        c.kill_shim();
        assert_eq!(remove(&c), 137);
    }
}
