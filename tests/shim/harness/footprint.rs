//! What a server has: memory, descriptors, threads and children; whether it has more than it had.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How much more memory the server may have in the end, in kB: what its allocator and
/// its stack keep after a busy time.
const MARGIN: u64 = 128;

/// How long a server may take to come to rest: it gives memory back, but not twice within half a
/// minute.
pub const IDLE: Duration = Duration::from_secs(60);

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
    fn of(pid: i32) -> Footprint {
        Footprint {
            // What a server costs. Its code may be in a tmpfs, whose pages count as dirty ones.
            memory: rollup(pid, "Anonymous:"),
            descriptors: entries(pid, "fd").len(),
            threads: entries(pid, "task").len(),
            children: children(pid),
        }
    }

    /// Whether it has not grown since `first`.
    fn is_within(&self, first: &Footprint) -> bool {
        self.memory <= first.memory + MARGIN
            && self.descriptors <= first.descriptors
            && self.threads <= first.threads
            && self.children <= first.children
    }

    /// That of process `pid` once it has one thread, one child, and nothing of it changes any more;
    /// after `limit` whatever it has.
    fn first(pid: i32, limit: Duration) -> Footprint {
        let mut before = Footprint::of(pid);
        let measure = || Footprint::of(pid);
        settled(limit, measure, |now| {
            let is_settled = now.children == 1 && now.threads == 1 && *now == before;
            before = now.clone();
            is_settled
        })
    }

    /// That of process `pid` once it is within `first`; after `limit` whatever it has.
    fn last(pid: i32, first: &Footprint, limit: Duration) -> Footprint {
        settled(limit, || Footprint::of(pid), |now| now.is_within(first))
    }
}

/// Fails if server `pid`, whose one child is the init of a container that stays, has more after
/// `work` than before. It may take `limit` to come to rest. Answers how long the work took.
#[track_caller]
pub fn assert_kept(pid: i32, limit: Duration, work: impl FnOnce()) -> Duration {
    let first = Footprint::first(pid, limit);
    let begun = Instant::now();
    work();
    let took = begun.elapsed();
    let last = Footprint::last(pid, &first, limit);
    println!("soak: first {first:?}\nsoak: last  {last:?}");
    assert_eq!(first.children, 1, "children when idle");
    assert!(last.is_within(&first), "first {first:?}, last {last:?}");
    took
}

/// What `measure` gives when `is_settled`, or when `limit` has passed.
pub fn settled<T>(
    limit: Duration,
    measure: impl Fn() -> T,
    mut is_settled: impl FnMut(&T) -> bool,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        let now = measure();
        if is_settled(&now) || Instant::now() > deadline {
            return now;
        }
        // It goes down as memory is given back, and descriptors are closed: nothing tells. It is
        // not looked at too often on a busy machine.
        let _ = nix::poll::poll(&mut [], 500_u16);
    }
}

/// The entries of a directory that the process has in `/proc`.
pub fn entries(pid: i32, dir: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/{dir}")).expect("look at a process");
    entries.flatten().map(|entry| entry.path()).collect()
}

/// A field of `smaps_rollup`, in kB.
pub fn rollup(pid: i32, field: &str) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
    let rollup = rollup.expect("read smaps_rollup");
    let line = rollup.lines().find_map(|line| line.strip_prefix(field));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kilobytes.unwrap_or_else(|| panic!("no {field} in kB: {rollup}"))
}

/// How many children it has, zombies among them.
fn children(pid: i32) -> usize {
    let threads = entries(pid, "task");
    let texts = threads.iter().map(|thread| thread.join("children"));
    let texts = texts.map(|path| fs::read_to_string(path).unwrap_or_default());
    texts.map(|text| text.split_whitespace().count()).sum()
}
