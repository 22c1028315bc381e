//! What a server has: memory, descriptors, threads and children; whether it has more than it had.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How much more memory the server may have in the end, in kB: what its allocator and
/// its stack keep after a busy time.
const MARGIN: u64 = 128;

/// What the server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// In no file, in kB.
    pub memory: u64,
    pub descriptors: usize,
    pub threads: usize,
    /// Zombies among them.
    pub children: usize,
}

impl Footprint {
    /// That of process `pid`.
    pub fn of(pid: i32) -> Footprint {
        Footprint {
            memory: anonymous_memory(pid),
            descriptors: entries(pid, "fd").len(),
            threads: entries(pid, "task").len(),
            children: children(pid),
        }
    }

    /// Whether it has not grown since `first`.
    pub fn is_within(&self, first: &Footprint) -> bool {
        self.memory <= first.memory + MARGIN
            && self.descriptors <= first.descriptors
            && self.threads <= first.threads
            && self.children <= first.children
    }

    /// That of process `pid` once it has one thread, `children`, and nothing of it changes any more;
    /// after `limit` whatever it has.
    pub fn first(pid: i32, children: usize, limit: Duration) -> Footprint {
        let mut before = Footprint::of(pid);
        settled(pid, limit, |now| {
            let is_settled = now.children == children && now.threads == 1 && *now == before;
            before = now.clone();
            is_settled
        })
    }

    /// That of process `pid` once it is within `first`; after `limit` whatever it has.
    pub fn last(pid: i32, first: &Footprint, limit: Duration) -> Footprint {
        settled(pid, limit, |now| now.is_within(first))
    }
}

/// The footprint when `is_settled`, or when `limit` has passed.
fn settled(pid: i32, limit: Duration, mut is_settled: impl FnMut(&Footprint) -> bool) -> Footprint {
    let deadline = Instant::now() + limit;
    loop {
        let now = Footprint::of(pid);
        if is_settled(&now) || Instant::now() > deadline {
            return now;
        }
        // It goes down as memory is given back, and descriptors are closed: nothing tells.
        let _ = nix::poll::poll(&mut [], 500_u16);
    }
}

/// The entries of a directory that the process has in `/proc`.
pub fn entries(pid: i32, dir: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/{dir}")).expect("look at a process");
    entries.flatten().map(|entry| entry.path()).collect()
}

/// Memory that is in no file, in kB: what a server costs. Its code may be in a tmpfs, whose pages
/// count as dirty ones.
fn anonymous_memory(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
    let rollup = rollup.expect("read smaps_rollup");
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kilobytes.expect("Anonymous in kB")
}

/// How many children it has, zombies among them.
fn children(pid: i32) -> usize {
    let threads = entries(pid, "task");
    let texts = threads.iter().map(|thread| thread.join("children"));
    let texts = texts.map(|path| fs::read_to_string(path).unwrap_or_default());
    texts.map(|text| text.split_whitespace().count()).sum()
}
