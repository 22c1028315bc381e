//! Floods: many execs, containers and clients at once.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Barrier;
use std::thread;

use containerd_shim_rs_v2::proto::types::Status;

use crate::harness::Daemon;
use crate::harness::container::Container;
use crate::harness::task::Process;
use crate::scene::{assert_events, delete_task, remove};

/// How many execs are being started at the same time: a client's worth.
const AT_ONCE: usize = 16;

/// Execs of `args`, all running.
fn execs(c: &Container, count: usize, args: &[&str]) -> Vec<Process> {
    let ids: Vec<String> = (0..count).map(|number| format!("e{number}")).collect();
    let execs: Vec<Process> = ids
        .iter()
        .map(|id| c.exec(id, args).expect("Exec"))
        .collect();
    for some in execs.chunks(AT_ONCE) {
        let starts: Vec<_> = some.iter().map(|e| e.start_pending()).collect();
        for start in starts {
            start.wait().expect("Start");
        }
    }
    execs
}

/// Execs that all end at once, by Kill with `all` or with their init.
fn execs_end_at_once(d: &Daemon, count: usize, all: bool) {
    let c = d.container("c", &["sleep", "inf"]);
    let c = if all { c.host_pids() } else { c }.run();
    let execs = execs(&c, count, &["sleep", "inf"]);
    let waits: Vec<_> = execs.iter().map(|e| e.wait_pending()).collect();
    if all { c.kill_all(9) } else { c.kill(9) }.expect("Kill");
    for wait in waits {
        assert_eq!(wait.wait().expect("Wait").exit_status, 137);
    }
    assert_eq!(c.exit_status(), 137);
    for e in &execs {
        e.delete().expect("Delete");
    }
    let exits = d
        .events
        .until("c", "exit")
        .iter()
        .filter(|e| e.starts_with("exit"))
        .count();
    assert_eq!(exits, count + 1, "exits");
    assert_eq!(remove(&c), 0, "the server's end");
    assert_events(d, "c");
}

/// Each client has containers come and go, one after the other.
fn containers_by_clients(d: &Daemon, clients: usize, containers: usize) {
    let come_and_go = |client: usize| {
        for number in 0..containers {
            let id = format!("c{client}-{number}");
            let c = d.container(&id, &["sleep", "inf"]).run();
            assert_eq!(remove(&c), 0, "the server's end");
            assert_events(d, &id);
        }
    };
    by_clients(clients, come_and_go);
}

/// A pod of so many containers, with one server.
fn pod(d: &Daemon, containers: usize) {
    let ids: Vec<String> = (0..containers).map(|number| format!("c{number}")).collect();
    let run = |id: &String| d.container(id, &["sleep", "inf"]).group("pod").run();
    let containers: Vec<Container> = ids.iter().map(run).collect();
    let (first, others) = containers.split_first().expect("a container");
    for c in others {
        assert_eq!(c.shim_pid, first.shim_pid, "the server");
        delete_task(c);
    }
    assert_eq!(remove(first), 0, "the server's end");
    for id in &ids {
        assert_events(d, id);
    }
}

/// Idle containers, each with a server of its own, made and removed by as many clients: each
/// answers State while all are there.
fn idle_containers(d: &Daemon, count: usize, clients: usize) {
    let all_are_there = Barrier::new(clients);
    let come_and_go = |client: usize| {
        let ids: Vec<String> = (client..count)
            .step_by(clients)
            .map(|number| format!("c{number}"))
            .collect();
        let run = |id: &String| d.container(id, &["sleep", "inf"]).run();
        // The others are not to wait for ever.
        let made = catch_unwind(AssertUnwindSafe(|| ids.iter().map(run).collect()));
        all_are_there.wait();
        let containers: Vec<Container> = made.unwrap_or_else(|panic| resume_unwind(panic));
        let stated = catch_unwind(AssertUnwindSafe(|| containers.iter().map(stated).sum()));
        all_are_there.wait();
        let memory: u64 = stated.unwrap_or_else(|panic| resume_unwind(panic));
        for c in &containers {
            assert_eq!(remove(c), 0, "the server's end");
        }
        memory
    };
    let memory: u64 = by_clients(clients, come_and_go).into_iter().sum();
    println!(
        "{count} idle containers: {} kB resident a server",
        memory / count as u64
    );
}

/// The container runs, and its server says so; the server's resident memory, in kB.
fn stated(c: &Container) -> u64 {
    assert_eq!(c.state().expect("State").status, Status::RUNNING.into());
    c.memory("VmRSS")
}

/// What each client has done, one thread for each.
fn by_clients<T: Send>(clients: usize, run: impl Fn(usize) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let run = &run;
        let clients: Vec<_> = (0..clients)
            .map(|client| scope.spawn(move || run(client)))
            .collect();
        let ends = clients.into_iter().map(|client| client.join());
        ends.map(|end| end.unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

faults! { "floods";
    fn execs_that_end_at_once(d) {
        execs_end_at_once(d, 48, false);
    }

    fn children_dying_under_kill_all(d) {
        execs_end_at_once(d, 64, true);
    }

    fn containers_by_8_clients(d) {
        containers_by_clients(d, 8, 3);
    }

    fn pod_of_20(d) {
        pod(d, 20);
    }
}

pub mod long {
    //! The same, larger.

    use super::{containers_by_clients, execs_end_at_once, idle_containers, pod};

    faults! { "floods::long";
        fn execs_500_that_end_at_once(d) {
            execs_end_at_once(d, 500, false);
        }

        fn containers_200_by_16_clients(d) {
            containers_by_clients(d, 16, 13);
        }

        fn pod_of_100(d) {
            pod(d, 100);
        }

        fn idle_containers_1000(d) {
            idle_containers(d, 1000, 4);
        }
    }
}
