//! What a whole container makes of programs, processes and system calls, counted by strace: of the
//! shim's actions, its server and the runtime that does nothing. Figures without noise.

use std::fs;
use std::path::Path;

use crate::harness::{Daemon, process, write_program};
use crate::progress::Progress;
use crate::results::Part;
use crate::subject::{PATIENCE, Runtime, Shim};

/// `strace` has to be on `PATH`.
pub fn measure(part: &mut Part, shims: &[Shim], noop: &Runtime) {
    for shim in shims {
        let _progress = Progress::of(&format!("system calls: {}", shim.name));
        let scripts = shim.daemon();
        let traces = scripts.path("traces");
        fs::create_dir(&traces).expect("make a directory");
        let traced = scripts.path("traced");
        let (dir, binary) = (traces.display(), shim.binary.display());
        // Its stderr stays open in the tracer: the shim gets another one.
        let script = format!("exec strace -DDD -f -qq -o {dir}/$$ {binary} \"$@\" 2>/dev/null");
        write_program(&traced, &script);
        let daemon = shim.daemon_with(&traced);
        container(&daemon, noop);
        let tracers = || process::running(traces.to_str().expect("UTF-8"));
        scripts.eventually("the tracers end", || tracers().is_empty());
        let counts = Counts::of(&traces);
        part.set("programs executed", "", &shim.name, counts.programs as f64);
        part.set("processes begun", "", &shim.name, counts.processes as f64);
        part.set("threads begun", "", &shim.name, counts.threads as f64);
        part.set("system calls", "", &shim.name, counts.calls as f64);
    }
}

/// From its `start` to its `delete`.
fn container(daemon: &Daemon, noop: &Runtime) {
    let container = noop.container(daemon, "c", &["true"]).run();
    container.wait().expect("Wait");
    container.delete().expect("Delete");
    let _ = container.shutdown();
    process::wait(container.shim_pid, "the shim", PATIENCE);
    assert_eq!(daemon.delete_output("c").status, 0, "delete");
}

#[derive(Default)]
struct Counts {
    programs: usize,
    processes: usize,
    threads: usize,
    calls: usize,
}

impl Counts {
    fn of(traces: &Path) -> Counts {
        let mut counts = Counts::default();
        for trace in fs::read_dir(traces).expect("read the traces").flatten() {
            let text = fs::read(trace.path()).expect("read a trace");
            String::from_utf8_lossy(&text)
                .lines()
                .for_each(|line| counts.add(line));
        }
        counts
    }

    /// A line: `PID NAME(ARGUMENTS) = RESULT`. A call that others come in between of has two lines:
    /// `PID NAME(ARGUMENTS <unfinished ...>`, and `PID <... NAME resumed>) = RESULT`.
    fn add(&mut self, line: &str) {
        let call = line
            .split_once(' ')
            .map_or("", |(_, call)| call.trim_start());
        let executes = call.starts_with("execve(") || call.starts_with("<... execve resumed>");
        self.programs += usize::from(executes && call.ends_with("= 0"));
        let Some((name, arguments)) = call.split_once('(') else {
            return;
        };
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return;
        }
        self.calls += 1;
        if ["clone", "clone3", "fork", "vfork"].contains(&name) {
            match arguments.contains("CLONE_THREAD") {
                true => self.threads += 1,
                false => self.processes += 1,
            }
        }
    }
}
