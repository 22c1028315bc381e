//! System calls and child processes of one container's whole life, as strace(1) counts them.
//!
//! It traces all that `start` and `delete` start, and writes a file for each thread.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::harness::container::Container;
use crate::harness::process::write_program;
use crate::harness::{Api, Daemon, hang_timeout, shim_binary};
use crate::limits::check;

/// Containers, of which the one with the fewest counts: on a busy machine the shim looks again
/// for what has not happened yet.
const CONTAINERS: usize = 5;

/// What strace wrote of one thread.
struct Trace {
    tid: i32,
    text: String,
}

impl Trace {
    /// Of the file `path`. What comes before the shim is executed is what a shell does, or a
    /// child on its way there.
    fn read(path: &Path) -> Option<Trace> {
        let tid = path.extension()?.to_str()?.parse().ok()?;
        let text = fs::read(path).expect("read a trace");
        let text = String::from_utf8_lossy(&text);
        let executes = format!("execve(\"{}\"", shim_binary());
        let from = text.find(&executes).unwrap_or(0);
        let text = text[from..].to_owned();
        Some(Trace { tid, text })
    }

    fn calls(&self) -> impl Iterator<Item = &str> {
        let lines = self.text.lines();
        // The others are signals, and the second half of calls that were interrupted.
        let calls = lines.filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
        calls.filter(|call| !is_of_event_loop(call))
    }

    /// The threads, or the processes, that this one has created.
    fn created(&self, threads: bool) -> impl Iterator<Item = i32> {
        let calls = self.calls().filter(move |call| {
            let creates = ["clone(", "clone3(", "fork(", "vfork("];
            creates.iter().any(|name| call.starts_with(name))
                && call.contains("CLONE_THREAD") == threads
        });
        calls.filter_map(|call| call.rsplit_once("= ")?.1.parse().ok())
    }

    /// Whether it has executed the shim for this action, the last argument.
    fn is_action(&self, action: &str) -> bool {
        let mut calls = self.calls();
        let first = calls.next().unwrap_or_default();
        first.contains(shim_binary()) && first.contains(&format!("\"{action}\"]"))
    }
}

/// Whether it is the event loop's wait, or what wakes it: of these there are the more, the
/// busier the machine is.
fn is_of_event_loop(call: &str) -> bool {
    let wakes = call.starts_with("write(") && call.contains(r#", "\1\0\0\0\0\0\0\0", 8)"#);
    wakes || call.starts_with("epoll_pwait(")
}

/// All threads of one container's life.
struct Life(HashMap<i32, Trace>);

impl Life {
    fn read(dir: &Path) -> Life {
        let entries = fs::read_dir(dir).expect("list the traces").flatten();
        let traces = entries.filter_map(|entry| Trace::read(&entry.path()));
        Life(traces.map(|trace| (trace.tid, trace)).collect())
    }

    fn action(&self, action: &str) -> i32 {
        let mut found = self.0.values().filter(|trace| trace.is_action(action));
        found
            .next()
            .unwrap_or_else(|| panic!("no trace of {action}"))
            .tid
    }

    /// The system calls of a process, those of its threads among them.
    fn calls(&self, pid: i32) -> u64 {
        let Some(trace) = self.0.get(&pid) else {
            return 0;
        };
        let threads = trace.created(true).map(|tid| self.calls(tid));
        trace.calls().count() as u64 + threads.sum::<u64>()
    }

    /// The processes that a process has created, by its threads, too.
    fn children(&self, pid: i32) -> u64 {
        let Some(trace) = self.0.get(&pid) else {
            return 0;
        };
        let of_threads = trace.created(true).map(|tid| self.children(tid));
        trace.created(false).count() as u64 + of_threads.sum::<u64>()
    }
}

/// A program that is the shim, traced. strace is a child of its own, so that the shim's parent
/// is who calls this; its output is not kept open by strace.
fn traced_shim(d: &Daemon, dir: &Path) -> String {
    let path = d.path("traced");
    let (dir, shim) = (dir.display(), shim_binary());
    let script = format!(
        "exec strace -D -f -ff -qq -s 4096 -o {dir}/of \
         sh -c 'exec 2>{dir}/stderr; exec \"$0\" \"$@\"' {shim} \"$@\" 2>/dev/null"
    );
    write_program(&path, &script);
    path.to_str().unwrap().into()
}

/// All that containerd does with a container.
fn live(c: &Container) {
    let exit = c.wait_pending();
    c.start().expect("Start");
    c.state().expect("State");
    c.kill(9).expect("Kill");
    exit.wait().expect("Wait");
    c.finish();
    c.daemon.delete("c");
}

struct Counts {
    server: u64,
    start: u64,
    delete: u64,
    children: u64,
}

fn count() -> Counts {
    let d = &Daemon::new(Api::V3, hang_timeout());
    let dir = d.path("traces");
    fs::create_dir(&dir).expect("make the traces' directory");
    d.replace_shim(&traced_shim(d, &dir));
    let c = d.container("c", &["sleep", "inf"]).created();
    let server = c.shim_pid;
    live(&c);
    let life = Life::read(&dir);
    let (start, delete) = (life.action("start"), life.action("delete"));
    let children = [start, server, delete].map(|pid| life.children(pid));
    Counts {
        server: life.calls(server),
        start: life.calls(start),
        delete: life.calls(delete),
        children: children.iter().sum(),
    }
}

#[test]
fn system_calls_and_processes_of_a_container() {
    let counts: Vec<Counts> = (0..CONTAINERS).map(|_| count()).collect();
    let of = |figure: fn(&Counts) -> u64| counts.iter().map(figure).min().expect("a count");
    check("server_system_calls", of(|counts| counts.server));
    check("start_system_calls", of(|counts| counts.start));
    check("delete_system_calls", of(|counts| counts.delete));
    check("processes", of(|counts| counts.children));
}
