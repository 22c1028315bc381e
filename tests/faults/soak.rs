//! Soak: execs, containers and daemons come and go in one server, whose private memory,
//! descriptors, threads and children are in the end what they were in the beginning.

use std::fs;

use crate::harness::container::Container;
use crate::harness::footprint::{IDLE, assert_kept};
use crate::harness::{Daemon, hang_timeout, process, scaled, shim};
use crate::left;
use crate::scene::{assert_events_after_a_restart, delete_task, remove};
use crate::verdict::api;

/// Execs for each container.
const EXECS: usize = 10;
/// Containers that run at the same time.
const CONTAINERS: usize = 4;

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
    let took = assert_kept(keep.shim_pid, scaled(IDLE), || {
        (2..rounds + 2).for_each(|number| round(d, number));
    });
    println!(
        "soak of {}: {} containers, {} execs, {rounds} restarts of containerd in {} s",
        shim().name(),
        rounds * CONTAINERS,
        rounds * CONTAINERS * EXECS,
        took.as_secs()
    );
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
