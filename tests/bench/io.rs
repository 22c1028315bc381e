//! One measurement of what moving a container's stdio through a shim costs, for
//! `hack/bench-io`: `PROGRAM SCENARIO MEGABYTES` prints MB/s and the shim's CPU seconds
//! a GB. The harness of `tests/shim` plays containerd; see there for how to choose the
//! shim. Neither this reader nor the container's program touches a byte twice.

#![allow(
    clippy::disallowed_methods,
    reason = "this plays containerd, as the harness does"
)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};

use harness::container::{Builder, Container};
use harness::{Daemon, Stdio};

#[allow(dead_code, reason = "shared with the suite, which uses all of it")]
#[path = "../shim/differences.rs"]
mod differences;
#[allow(dead_code, unused_imports, unused_macros, reason = "as above")]
#[path = "../shim/harness/mod.rs"]
mod harness;

/// Passing it means "hangs".
const PATIENCE: Duration = Duration::from_secs(300);
/// What a reader that wants to be fast makes of its FIFO.
const PIPE: i32 = 1 << 20;
/// Where the program is in its container.
const PROGRAM: &str = "/tmp/program";

/// A scenario's bytes and what moving them took.
struct Cost {
    bytes: u64,
    elapsed: Duration,
    cpu: Duration,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [program, scenario, megabytes] = &args[..] else {
        panic!("PROGRAM SCENARIO MEGABYTES wanted");
    };
    let total = megabytes.parse::<usize>().expect("a number") << 20;
    let api = *harness::apis().last().expect("a version of the Task API");
    let daemon = Daemon::new(api, PATIENCE);
    let cost = match scenario.as_str() {
        "stdout" => output(&daemon, program, 1 << 20, total, drain),
        "lines" => output(&daemon, program, 128, total, drain),
        "client" => output(&daemon, program, 1 << 20, total, read_as_client),
        "terminal" => terminal(&daemon, program, 128, total),
        "stdin" => input(&daemon, program, total),
        _ => panic!("no scenario {scenario}"),
    };
    let gigabytes = cost.bytes as f64 / 1e9;
    let rate = gigabytes * 1e3 / cost.elapsed.as_secs_f64();
    println!("{rate:.0} {:.4}", cost.cpu.as_secs_f64() / gigabytes);
}

/// A container that writes, in blocks of that size, and what reads it to its end.
fn output(
    daemon: &Daemon,
    program: &str,
    block: usize,
    total: usize,
    read: fn(File) -> u64,
) -> Cost {
    let args = [PROGRAM, "write", &block.to_string(), &total.to_string()];
    let (container, stdout) = create(daemon, program, &args);
    let start = Start::of(&container);
    let bytes = read(stdout);
    assert_eq!(bytes, total as u64, "output is missing");
    start.cost(&container, bytes)
}

/// As `output`, on a terminal, which makes more of the bytes.
fn terminal(daemon: &Daemon, program: &str, block: usize, total: usize) -> Cost {
    let [stdin, stdout] = ["stdin", "stdout"].map(|name| daemon.fifo(name));
    let out = reader(&stdout);
    let stdio = Stdio {
        stdin,
        stdout,
        terminal: true,
        ..Default::default()
    };
    let args = [PROGRAM, "write", &block.to_string(), &total.to_string()];
    let container = with_program(daemon.container("bench", &args), program);
    let container = container.stdio(stdio).created();
    let start = Start::of(&container);
    let bytes = drain(out);
    assert!(bytes >= total as u64, "output is missing");
    start.cost(&container, bytes)
}

/// A container that reads what the client writes, in large blocks.
fn input(daemon: &Daemon, program: &str, total: usize) -> Cost {
    let (container, stdout) = create(daemon, program, &[PROGRAM, "read", &total.to_string()]);
    let block = vec![b'x'; 1 << 20];
    let start = Start::of(&container);
    let stdin = daemon.path("io").join("stdin");
    let mut stdin = daemon.write(stdin.to_str().unwrap());
    grow(&stdin);
    for _ in 0..total / block.len() {
        stdin.write_all(&block).expect("write stdin");
    }
    drain(stdout);
    start.cost(&container, total as u64)
}

/// A created container, and the reader's end of its stdout.
fn create<'d>(daemon: &'d Daemon, program: &str, args: &[&str]) -> (Container<'d>, File) {
    let [stdin, stdout, stderr] = ["stdin", "stdout", "stderr"].map(|name| daemon.fifo(name));
    let [out, _err] = [&stdout, &stderr].map(|path| reader(path));
    let stdio = Stdio {
        stdin,
        stdout,
        stderr,
        terminal: false,
    };
    let container = with_program(daemon.container("bench", args), program);
    (container.stdio(stdio).created(), out)
}

fn with_program<'d>(builder: Builder<'d>, program: &str) -> Builder<'d> {
    let mount = serde_json::json!({"destination": PROGRAM, "type": "bind", "source": program, "options": ["bind", "ro"]});
    builder.spec(|spec| spec["mounts"].as_array_mut().unwrap().push(mount))
}

/// The read end of a FIFO, open for writing too until the shim has it.
fn reader(path: &str) -> File {
    let fifo = OpenOptions::new().read(true).write(true).open(path);
    let fifo = fifo.expect("open a FIFO");
    let reader = File::open(path).expect("open a FIFO");
    drop(fifo);
    reader
}

fn grow(fifo: &File) {
    fcntl(fifo, FcntlArg::F_SETPIPE_SZ(PIPE)).expect("grow a FIFO");
}

/// Reads to the end, which takes no copy of the bytes: how many there were.
fn drain(mut from: File) -> u64 {
    grow(&from);
    let mut null = OpenOptions::new().write(true).open("/dev/null");
    // Between files, this is splice(2).
    io::copy(&mut from, null.as_mut().expect("open /dev/null")).expect("read")
}

/// Reads to the end as containerd's clients do: how many bytes there were.
fn read_as_client(mut from: File) -> u64 {
    let (mut buffer, mut bytes) = (vec![0; 32 << 10], 0);
    loop {
        match from.read(&mut buffer).expect("read") {
            0 => return bytes,
            count => bytes += count as u64,
        }
    }
}

/// The moment at which the container was started.
struct Start {
    at: Instant,
    cpu: Duration,
}

impl Start {
    fn of(container: &Container) -> Start {
        container.start().expect("Start");
        Start {
            at: Instant::now(),
            cpu: cpu(container.shim_pid),
        }
    }

    /// What has been spent since.
    fn cost(&self, container: &Container, bytes: u64) -> Cost {
        Cost {
            bytes,
            elapsed: self.at.elapsed(),
            cpu: cpu(container.shim_pid) - self.cpu,
        }
    }
}

/// The CPU time of all threads of a process, as the scheduler counts it.
fn cpu(pid: i32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("look at the shim");
    let of = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks.flatten().filter_map(of).sum())
}
