//! Execs under load, as probes make them: so many a second in each of some pods, until both
//! processors are busy. The shims take turns of some seconds.
//!
//! A pod never has two execs at a time: on a machine that cannot keep up the next one begins at once.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::harness::container::Container;
use crate::harness::{Daemon, Stdio, process};
use crate::progress::Progress;
use crate::results::Part;
use crate::subject::{PATIENCE, Runtime, Shim, cpu_of, since};

/// How much is measured.
pub struct Extent {
    pub pods: usize,
    /// Execs in each pod, a second.
    pub rate: u32,
    /// Of each shim.
    pub turns: usize,
    pub turn: Duration,
}

/// The pods of one shim.
struct Pods<'a> {
    name: &'a str,
    daemon: &'a Daemon,
    containers: Vec<Container<'a>>,
}

/// What an exec took, in milliseconds: name of the step, and time since the step before.
type Steps = Vec<(&'static str, f64)>;

pub fn measure(
    part: &mut Part,
    shims: &[&Shim],
    runtime: &Runtime,
    extent: &Extent,
    progress: &Progress,
) {
    let daemons: Vec<Daemon> = shims.iter().map(|shim| shim.daemon()).collect();
    let pods = shims.iter().zip(&daemons).map(|(shim, daemon)| {
        let pod = |n| {
            runtime
                .container(daemon, &format!("pod{n}"), &["sleep", "inf"])
                .run()
        };
        Pods {
            name: &shim.name,
            daemon,
            containers: (0..extent.pods).map(pod).collect(),
        }
    });
    let mut pods: Vec<Pods> = pods.collect();
    for turn in 0..extent.turns {
        progress.step(turn + 1, extent.turns);
        pods.rotate_left(1);
        for pods in &pods {
            pods.turn(part, turn, extent);
        }
    }
    for container in pods.iter().flat_map(|pods| &pods.containers) {
        container.end();
        container.delete().expect("Delete");
        let _ = container.shutdown();
        process::wait(container.shim_pid, "the shim", PATIENCE);
    }
}

impl Pods<'_> {
    fn turn(&self, part: &mut Part, turn: usize, extent: &Extent) {
        let done = Mutex::new(Vec::new());
        let cpu = || -> f64 {
            self.containers
                .iter()
                .map(|c| cpu_of(c.shim_pid).as_secs_f64())
                .sum()
        };
        let (begin, before) = (Instant::now(), cpu());
        std::thread::scope(|scope| {
            for at in 0..self.containers.len() {
                let done = &done;
                scope.spawn(move || self.probe(at, turn, begin, extent, done));
            }
        });
        let (elapsed, spent) = (begin.elapsed().as_secs_f64(), cpu() - before);
        let done = done.into_inner().expect("no thread panicked");
        for steps in &done {
            let whole: f64 = steps.iter().map(|step| step.1).sum();
            for (figure, time) in [("exec", whole)].iter().chain(steps) {
                part.add_with_tail(figure, "ms", Some(99), self.name, *time);
            }
        }
        part.add("execs a second", "", self.name, done.len() as f64 / elapsed);
        part.add(
            "CPU of the servers, an exec",
            "ms",
            self.name,
            spent * 1e3 / done.len() as f64,
        );
    }

    /// Execs in one pod until the turn ends.
    fn probe(
        &self,
        at: usize,
        turn: usize,
        begin: Instant,
        extent: &Extent,
        done: &Mutex<Vec<Steps>>,
    ) {
        let period = Duration::from_secs(1) / extent.rate;
        // The pods' probes do not begin all at once.
        let mut next = begin + period * at as u32 / extent.pods as u32;
        for count in 0.. {
            wait_until(next);
            if begin.elapsed() >= extent.turn {
                return;
            }
            let steps = self.exec(at, &format!("p{at}-t{turn}-{count}"));
            done.lock().expect("no thread panicked").push(steps);
            next = (next + period).max(Instant::now());
        }
    }

    /// One exec with its output, in the order of containerd's CRI.
    fn exec(&self, at: usize, id: &str) -> Steps {
        let [stdout, stderr] = ["out", "err"].map(|name| self.daemon.fifo(&format!("{id}-{name}")));
        let readers = [&stdout, &stderr].map(|fifo| self.daemon.read(fifo));
        let stdio = Stdio {
            stdout: stdout.clone(),
            stderr: stderr.clone(),
            ..Default::default()
        };
        let mut steps = Steps::new();
        let mut last = Instant::now();
        let mut step = |name| {
            steps.push((name, since(last)));
            last = Instant::now();
        };
        let exec = self.containers[at].exec_with(id, &["echo", "fine"], &stdio);
        let exec = exec.expect("Exec");
        step("… Exec");
        let exit = exec.wait_pending();
        exec.start().expect("Start");
        step("… Start");
        let status = exit.wait().expect("Wait").exit_status;
        step("… Wait");
        let [out, err] = readers.map(|reader| reader.end());
        step("… end of its output");
        exec.delete().expect("Delete");
        step("… Delete");
        assert_eq!((status, out.as_str(), err.as_str()), (0, "fine\n", ""));
        for fifo in [stdout, stderr] {
            fs::remove_file(Path::new(&fifo)).expect("remove a FIFO");
        }
        steps
    }
}

fn wait_until(time: Instant) {
    while let Some(left) = time.checked_duration_since(Instant::now()) {
        let _ = nix::poll::poll(&mut [], left.as_millis().clamp(1, 1000) as u16);
    }
}
