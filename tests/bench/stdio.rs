//! What moving a container's stdio through a shim costs: throughput, and the shim's CPU time.
//! Neither the reader here nor the container's program (`program.rs`) touches a byte twice, so that
//! the shim is what takes the time.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};

use crate::harness::container::{Builder, Container};
use crate::harness::{Daemon, Stdio};
use crate::progress::Progress;
use crate::results::Part;
use crate::subject::{Shim, cpu_of};

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

/// One measurement of a shim; `total` is in bytes.
type Scenario = fn(&Daemon, &str, usize) -> Cost;

/// Each with its title, and the part of the whole amount that it moves.
const SCENARIOS: [(&str, usize, Scenario); 5] = [
    (
        "stdout, written 1 MiB at a time",
        1,
        |daemon, program, total| output(daemon, program, 1 << 20, total, drain),
    ),
    (
        "stdout, read 32 KiB at a time, as containerd does",
        1,
        |daemon, program, total| output(daemon, program, 1 << 20, total, read_as_client),
    ),
    (
        "stdout, written 128 bytes at a time",
        16,
        |daemon, program, total| output(daemon, program, 128, total, drain),
    ),
    (
        "stdout of a terminal, written 128 bytes at a time",
        64,
        |daemon, program, total| terminal(daemon, program, 128, total),
    ),
    ("stdin, written 1 MiB at a time", 1, input),
];

/// Measures all shims in turns.
pub fn measure(
    part: &mut Part,
    shims: &[Shim],
    program: &Path,
    megabytes: usize,
    rounds: usize,
    progress: &Progress,
) {
    let program = program.to_str().expect("UTF-8");
    for round in 0..rounds {
        for (title, share, scenario) in SCENARIOS {
            progress.say(&format!("round {} of {rounds}, {title}", round + 1));
            for shim in shims {
                let cost = scenario(&shim.daemon(), program, (megabytes << 20) / share);
                let gigabytes = cost.bytes as f64 / 1e9;
                let rate = gigabytes * 1e3 / cost.elapsed.as_secs_f64();
                part.add_with_tail(title, "MB/s", None, &shim.name, rate);
                let cpu = cost.cpu.as_secs_f64() / gigabytes;
                let figure = format!("… the shim's CPU for a GB: {title}");
                part.add_with_tail(&figure, "s", None, &shim.name, cpu);
            }
        }
    }
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
            cpu: cpu_of(container.shim_pid),
        }
    }

    /// What has been spent since.
    fn cost(&self, container: &Container, bytes: u64) -> Cost {
        Cost {
            bytes,
            elapsed: self.at.elapsed(),
            cpu: cpu_of(container.shim_pid) - self.cpu,
        }
    }
}
