//! What each call takes, by the shim protocol directly: in rounds, in which each shim and the bare
//! runtime has its turn. The order is another one in each round.

use std::path::Path;

use nix::sys::signal::Signal;

use crate::harness::container::Container;
use crate::harness::{Daemon, process};
use crate::progress::Progress;
use crate::results::Part;
use crate::subject::{PATIENCE, Raw, Runtime, Shim, cpu_of, cpu_of_children, timed};

/// A signal that no process notices: the window of a terminal changed.
const SIGWINCH: i32 = 28;
/// How often a call that runs no process is measured in a round.
const QUERIES: usize = 5;
/// How often an exec is measured in a round.
const EXECS: usize = 2;

/// One of those that take turns.
struct Turn<'a> {
    name: &'a str,
    shim: Option<Server<'a>>,
}

/// A shim, and a container of it that stays.
struct Server<'a> {
    daemon: &'a Daemon,
    lasting: Container<'a>,
    execs: usize,
}

/// Measures all shims with one runtime.
pub fn measure(
    part: &mut Part,
    shims: &[Shim],
    runtime: &Runtime,
    rounds: usize,
    progress: &Progress,
) {
    let daemons: Vec<Daemon> = shims.iter().map(Shim::daemon).collect();
    let raw = Raw::new(runtime, &daemons[0]);
    let bundle = raw.bundle("lasting", &["sleep", "inf"]);
    let init = raw.create("lasting", &bundle);
    raw.call(&["start", "lasting"]);
    let mut turns = Vec::new();
    for (shim, daemon) in shims.iter().zip(&daemons) {
        turns.push(Turn {
            name: &shim.name,
            shim: Some(Server::new(daemon, runtime)),
        });
    }
    turns.push(Turn {
        name: "raw",
        shim: None,
    });
    for round in 0..rounds {
        progress.step(round + 1, rounds);
        let first = round % turns.len();
        turns.rotate_left(first);
        for turn in &mut turns {
            let id = format!("c{round}");
            match &mut turn.shim {
                Some(server) => server.round(part, turn.name, runtime, &id),
                None => raw_round(part, &raw, &id, &bundle),
            }
        }
        turns.rotate_right(first);
    }
    less_raw(part);
    for server in turns.into_iter().filter_map(|turn| turn.shim) {
        server.end();
    }
    process::signal(init, Signal::SIGKILL);
    raw.wait(init);
    raw.call(&["delete", "lasting"]);
}

impl<'a> Server<'a> {
    /// Starts the container that stays. With the runtime that does nothing it has a cgroup, too.
    fn new(daemon: &'a Daemon, runtime: &Runtime) -> Server<'a> {
        let mut container = runtime.container(daemon, "lasting", &["sleep", "inf"]);
        if runtime.is_noop() {
            container = container.in_cgroup(&daemon.make_cgroup("lasting"));
        }
        Server {
            daemon,
            lasting: container.run(),
            execs: 0,
        }
    }

    fn round(&mut self, part: &mut Part, name: &str, runtime: &Runtime, id: &str) {
        self.whole(part, name, runtime, id);
        for _ in 0..EXECS {
            self.exec(part, name);
        }
        let container = &self.lasting;
        let mut query = |figure: &str, call: &dyn Fn()| {
            for _ in 0..QUERIES {
                part.add(figure, "ms", name, timed(call).0);
            }
        };
        query("State", &|| drop(container.state().expect("State")));
        query("Pids", &|| drop(container.pids().expect("Pids")));
        query("Kill", &|| drop(container.kill(SIGWINCH).expect("Kill")));
        query("Stats", &|| drop(container.stats().expect("Stats")));
    }

    /// A container that does nothing, from its `start` to its `delete`.
    fn whole(&self, part: &mut Part, name: &str, runtime: &Runtime, id: &str) {
        let daemon = self.daemon;
        let builder = runtime.container(daemon, id, &["true"]);
        let cpu = cpu_of_children();
        let (start, container) = timed(|| builder.shim());
        let (create, _) = timed(|| container.create().expect("Create"));
        let (start_call, _) = timed(|| container.start().expect("Start"));
        let (wait, _) = timed(|| container.wait().expect("Wait"));
        let (delete, _) = timed(|| container.delete().expect("Delete"));
        let server = cpu_of(container.shim_pid).as_secs_f64() * 1e3;
        let (shutdown, _) = timed(|| {
            let _ = container.shutdown();
            process::wait(container.shim_pid, "the shim", PATIENCE);
        });
        let (action, output) = timed(|| daemon.delete_output(id));
        assert_eq!(output.status, 0, "delete: {}", output.stderr_text());
        let cpu = cpu_of_children() - cpu;
        let whole = start + create + start_call + wait + delete + shutdown + action;
        for (figure, value) in [
            ("`start` (action)", start),
            ("Create", create),
            ("Start", start_call),
            ("Delete", delete),
            ("Shutdown, to the end of the server", shutdown),
            ("`delete` (action)", action),
            ("whole container", whole),
            ("… CPU of all processes", cpu),
            ("… CPU of the server", server),
        ] {
            part.add(figure, "ms", name, value);
        }
    }

    /// Exec, Start, Wait, Delete.
    fn exec(&mut self, part: &mut Part, name: &str) {
        self.execs += 1;
        let id = format!("e{}", self.execs);
        let (elapsed, _) = timed(|| {
            let exec = self.lasting.exec(&id, &["true"]).expect("Exec");
            exec.start().expect("Start");
            exec.wait().expect("Wait");
            exec.delete().expect("Delete");
        });
        part.add("exec (4 calls)", "ms", name, elapsed);
    }

    fn end(self) {
        self.lasting.end();
        self.lasting.delete().expect("Delete");
        let _ = self.lasting.shutdown();
        process::wait(self.lasting.shim_pid, "the shim", PATIENCE);
    }
}

/// Adds what the shims take more than the bare runtime, by the medians.
fn less_raw(part: &mut Part) {
    let whole = part.figure("whole container").expect("a figure");
    let raw = whole.of("raw").expect("a column").median();
    let others = whole.columns.iter().filter(|c| c.subject != "raw");
    let more: Vec<(String, f64)> = others
        .map(|c| (c.subject.clone(), c.median() - raw))
        .collect();
    for (subject, more) in more {
        part.set("whole container, less raw", "ms", &subject, more);
    }
}

/// The same without a shim.
fn raw_round(part: &mut Part, raw: &Raw, id: &str, lasting: &Path) {
    let bundle = raw.bundle(id, &["true"]);
    let cpu = cpu_of_children();
    let (create, init) = timed(|| raw.create(id, &bundle));
    let (start, ()) = timed(|| raw.call(&["start", id]));
    let (wait, ()) = timed(|| raw.wait(init));
    let (delete, ()) = timed(|| raw.call(&["delete", id]));
    let cpu = cpu_of_children() - cpu;
    for (figure, value) in [
        ("Create", create),
        ("Start", start),
        ("Delete", delete),
        ("whole container", create + start + wait + delete),
        ("… CPU of all processes", cpu),
    ] {
        part.add(figure, "ms", "raw", value);
    }
    for _ in 0..EXECS {
        let (elapsed, ()) = timed(|| {
            let pid = raw.exec("lasting", lasting);
            raw.wait(pid);
        });
        part.add("exec (4 calls)", "ms", "raw", elapsed);
    }
}
