//! Private memory: what a server adds to the memory of the machine while others run, too.

use std::time::Duration;

use crate::harness::container::{Container, Fifos};
use crate::harness::{Api, Daemon, footprint, hang_timeout, scaled};
use crate::limits::{check, median, of};

/// Servers, of which the median counts.
const SERVERS: usize = 20;
/// Further containers of a pod.
const CONTAINERS: usize = 30;
const EXECS: usize = 1_000;
/// Execs that run at the same time.
const EXECS_AT_A_TIME: usize = 8;
/// Within this time a server that is left alone has given back what it does not need: it does
/// so a tenth of a second after a request, but not twice within half a minute.
const IDLE: Duration = Duration::from_secs(70);

/// What `measure` gives, once it is not above `limit`, or in vain.
fn settled(limit: u64, measure: impl Fn() -> u64) -> u64 {
    footprint::settled(scaled(IDLE), measure, |measured| *measured <= limit)
}

/// A container that rests, with stdin, stdout and stderr.
struct Sleeper<'d> {
    container: Container<'d>,
    _fifos: Fifos,
}

impl<'d> Sleeper<'d> {
    fn run(d: &'d Daemon, id: &str, group: &str) -> Sleeper<'d> {
        let fifos = d.fifos(id);
        let container = d.container(id, &["sleep", "inf"]).group(group);
        Sleeper {
            container: container.stdio(fifos.stdio.clone()).run(),
            _fifos: fifos,
        }
    }

    fn memory(&self) -> u64 {
        // Its code is not counted while another server runs.
        footprint::rollup(self.container.shim_pid, "Private_Dirty:")
    }

    fn end(&self) {
        self.container.end();
        self.container.delete().expect("Delete");
    }
}

#[test]
fn memory_of_idle_servers() {
    let d = &Daemon::new(Api::V3, hang_timeout());
    let run = |number| {
        let id = format!("c{number}");
        Sleeper::run(d, &id, &id)
    };
    let sleepers: Vec<Sleeper> = (0..SERVERS).map(run).collect();
    let middle = || median(sleepers.iter().map(Sleeper::memory).collect());
    let memory = settled(of("server_memory"), middle);
    sleepers.iter().for_each(Sleeper::end);
    check("server_memory", memory);
}

#[test]
fn memory_of_each_container_of_a_pod() {
    let d = &Daemon::new(Api::V3, hang_timeout());
    let run = |number| Sleeper::run(d, &format!("c{number}"), "pod");
    let first = run(0);
    let idle = settled(of("server_memory"), || first.memory());
    let more: Vec<Sleeper> = (1..=CONTAINERS).map(run).collect();
    let each = || first.memory().saturating_sub(idle) / CONTAINERS as u64;
    let memory = settled(of("container_memory"), each);
    more.iter().for_each(Sleeper::end);
    first.end();
    check("container_memory", memory);
}

#[test]
fn memory_after_many_execs() {
    let d = &Daemon::new(Api::V3, hang_timeout());
    let sleeper = Sleeper::run(d, "c", "c");
    let c = &sleeper.container;
    let idle = settled(of("server_memory"), || sleeper.memory());
    for batch in 0..EXECS / EXECS_AT_A_TIME {
        let exec = |number| c.exec(&format!("e{batch}-{number}"), &["true"]);
        let execs = (0..EXECS_AT_A_TIME).map(|number| exec(number).expect("Exec"));
        let execs: Vec<_> = execs.collect();
        let starts: Vec<_> = execs.iter().map(|e| e.start_pending()).collect();
        for (start, e) in starts.into_iter().zip(&execs) {
            start.wait().expect("Start");
            assert_eq!(e.exit_status(), 0);
            e.delete().expect("Delete");
        }
    }
    let more = || sleeper.memory().saturating_sub(idle);
    let memory = settled(of("execs_memory"), more);
    sleeper.end();
    check("execs_memory", memory);
}
