//! Soak: execs, containers and daemons come and go in one server, whose private memory,
//! descriptors, threads and children are in the end what they were in the beginning.

use std::fs;
use std::time::{Duration, Instant};

use crate::harness::container::Container;
use crate::harness::{Daemon, hang_timeout, process, scaled, shim};
use crate::left;
use crate::scene::{assert_events_after_a_restart, delete_task, remove};
use crate::verdict::api;

/// How much more private memory the server may have in the end, in kB: what its allocator and
/// its stack keep after a busy time.
const MARGIN: u64 = 128;
/// An idle server gives memory back, but not twice within half a minute.
const IDLE: Duration = Duration::from_secs(60);
/// Execs for each container.
const EXECS: usize = 10;
/// Containers that run at the same time.
const CONTAINERS: usize = 4;

/// What the server has.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Footprint {
    /// In kB.
    memory: u64,
    descriptors: usize,
    threads: usize,
    /// Other children than the init of the container that stays.
    children: usize,
}

impl Footprint {
    fn of(c: &Container) -> Footprint {
        let (descriptors, threads) = c.footprint();
        Footprint {
            memory: private_memory(c.shim_pid),
            descriptors: descriptors.len(),
            threads,
            children: children(c.shim_pid).saturating_sub(1),
        }
    }

    fn is_within(&self, first: &Footprint) -> bool {
        self.memory <= first.memory + MARGIN
            && self.descriptors <= first.descriptors
            && self.threads <= first.threads
            && self.children == 0
    }
}

/// Memory that no other process shares and that is in no file, in kB: what a server costs. Pages
/// of its code are private, too, while no other server runs.
fn private_memory(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
    let rollup = rollup.expect("read smaps_rollup");
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Private_Dirty:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kilobytes.expect("Private_Dirty in kB")
}

/// How many children it has, zombies among them.
fn children(pid: i32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .expect("list the threads")
        .flatten();
    let texts =
        tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    texts.map(|text| text.split_whitespace().count()).sum()
}

/// The footprint, once the server has been idle for long enough to be within `first`, or in vain.
fn settled(c: &Container, first: Option<&Footprint>) -> Footprint {
    let deadline = Instant::now() + scaled(IDLE);
    let mut footprint = Footprint::of(c);
    loop {
        let now = Footprint::of(c);
        let is_settled = match first {
            Some(first) => now.is_within(first),
            // It goes down as memory is given back, and descriptors are closed.
            None => now.children == 0 && now.threads == 1 && now == footprint,
        };
        if is_settled || Instant::now() > deadline {
            return now;
        }
        footprint = now;
        let _ = nix::poll::poll(&mut [], 500_u16);
    }
}

/// Some containers of the pod run at the same time, with execs, and go.
fn round(d: &Daemon, number: usize) {
    let ids: Vec<String> = (0..CONTAINERS)
        .map(|at| format!("c{number}-{at}"))
        .collect();
    let run = |id: &String| d.container(id, &["sleep", "inf"]).group("pod").run();
    let containers: Vec<Container> = ids.iter().map(run).collect();
    for c in &containers {
        let names: Vec<String> = (0..EXECS).map(|at| format!("e{at}")).collect();
        let execs: Vec<_> = names
            .iter()
            .map(|id| c.exec(id, &["true"]).expect("Exec"))
            .collect();
        let starts: Vec<_> = execs.iter().map(|e| e.start_pending()).collect();
        for (start, e) in starts.into_iter().zip(&execs) {
            start.wait().expect("Start");
            assert_eq!(e.exit_status(), 0);
            e.delete().expect("Delete");
        }
    }
    // containerd is killed, and comes back.
    d.events.stop();
    for c in &containers {
        c.connection.close();
    }
    d.events.restart();
    for (c, id) in containers.iter().zip(&ids) {
        delete_task(&c.over(&c.reconnect()));
        d.events.get(id, "delete");
        assert_events_after_a_restart(d, id);
        fs::remove_dir_all(&c.bundle).expect("remove the bundle");
    }
}

/// As many rounds, and the footprint before and after.
fn soak(rounds: usize) {
    let d = &Daemon::new(api(), 2 * hang_timeout());
    left::arrange(d);
    let keep = d.container("keep", &["sleep", "inf"]).group("pod").run();
    // What a first use allocates for good.
    (0..2).for_each(|number| round(d, number));
    let first = settled(&keep, None);
    let begun = Instant::now();
    (2..rounds + 2).for_each(|number| round(d, number));
    let took = begun.elapsed();
    let last = settled(&keep, Some(&first));
    println!(
        "soak of {}: {} containers, {} execs, {rounds} restarts of containerd in {} s",
        shim().name(),
        rounds * CONTAINERS,
        rounds * CONTAINERS * EXECS,
        took.as_secs()
    );
    println!("soak: first {first:?}\nsoak: last  {last:?}");
    assert!(last.is_within(&first), "first {first:?}, last {last:?}");
    assert!(process::alive(keep.shim_pid));
    assert_eq!(remove(&keep), 0, "the server's end");
    assert_eq!(left::settled(d), Vec::<String>::new());
}

/// 32 containers and 320 execs.
#[test]
fn short_soak() {
    soak(8);
}

mod long {
    /// 1,000 containers and 10,000 execs.
    #[test]
    fn soak() {
        super::soak(250);
    }
}
