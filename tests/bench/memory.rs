//! What shims cost at rest: many servers with a container each, one server with many, and one that
//! has had many execs. And how long the next container takes when there are many already.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::container::Container;
use crate::harness::{Daemon, process};
use crate::plot::Series;
use crate::progress::Progress;
use crate::results::{Column, Part};
use crate::subject::{PATIENCE, Raw, Runtime, Shim, since};

/// After the last request of a server this long passes before it counts as idle.
const SETTLE: Duration = Duration::from_millis(2500);
/// How many servers share a cgroup when kernel memory is counted.
const IN_CGROUP: usize = 50;

/// How much is measured.
pub struct Extent {
    /// Idle containers, each with a server of its own; ascending.
    pub servers: Vec<usize>,
    /// Containers of one server; ascending.
    pub pod: Vec<usize>,
    pub execs: usize,
    /// How long wakeups are counted.
    pub rest: Duration,
}

/// What is drawn: memory and latency against the number of containers.
#[derive(Default)]
pub struct Plots {
    pub private: Vec<Series>,
    pub pss: Vec<Series>,
    pub latency: Vec<Series>,
}

/// Many servers with a container each.
pub fn servers(part: &mut Part, shims: &[Shim], noop: &Runtime, extent: &Extent) -> Plots {
    let mut plots = Plots::default();
    for shim in shims {
        let progress = Progress::of(&format!("memory of idle servers: {}", shim.name));
        let (mut private, mut pss) = (Series::of(&shim.name), Series::of(&shim.name));
        let daemon = shim.daemon();
        let (mut containers, mut times) = (Vec::new(), Vec::new());
        let most = extent.servers.last().copied().unwrap_or(0);
        while containers.len() < most {
            let id = format!("c{}", containers.len());
            let builder = noop.container(&daemon, &id, &["sleep", "inf"]);
            let start = Instant::now();
            containers.push(builder.run());
            times.push(since(start));
            progress.step(containers.len(), most);
            let count = containers.len();
            if extent.servers.contains(&count) {
                let memory = at_rest(&containers);
                memory.report(part, &shim.name, &format!("{count} idle"), count);
                private.push(count as f64, memory.private / count as f64);
                pss.push(count as f64, memory.pss / count as f64);
            }
        }
        let wakeups = wakeups(&containers, extent.rest) / containers.len() as f64;
        let seconds = extent.rest.as_secs();
        let figure = format!("wakeups of an idle server in {seconds} s");
        part.set(&figure, "", &shim.name, wakeups);
        abandon(&daemon, &containers);
        latency(part, &shim.name, &times);
        plots.private.push(private);
        plots.pss.push(pss);
        plots.latency.push(of_times(&shim.name, &times));
    }
    plots
}

/// Whether the last containers take longer than the first ones.
fn latency(part: &mut Part, name: &str, times: &[f64]) {
    let tenth = (times.len() / 10).max(1);
    let mut add = |which: &str, times: &[f64]| {
        let figure = format!("until a container runs: the {which} {tenth}");
        for &time in times {
            part.add(&figure, "ms", name, time);
        }
    };
    add("first", &times[..tenth]);
    add("last", &times[times.len() - tenth..]);
}

/// At most 20 points, each the median of as many containers.
fn of_times(name: &str, times: &[f64]) -> Series {
    let mut series = Series::of(name);
    let size = times.len().div_ceil(20);
    for (at, chunk) in times.chunks(size).enumerate() {
        let column = Column {
            subject: name.into(),
            samples: chunk.to_vec(),
        };
        series.push((at * size + chunk.len()) as f64, column.median());
    }
    series
}

/// One server with many containers, as a pod has.
pub fn pods(part: &mut Part, shims: &[Shim], noop: &Runtime, extent: &Extent) {
    for shim in shims {
        let progress = Progress::of(&format!("memory of one server for many: {}", shim.name));
        let daemon = shim.daemon();
        let (mut containers, mut seen) = (Vec::new(), Vec::new());
        let most = extent.pod.last().copied().unwrap_or(0);
        while containers.len() < most {
            let id = format!("c{}", containers.len());
            let builder = noop.container(&daemon, &id, &["sleep", "inf"]);
            containers.push(builder.group("c0").run());
            let count = containers.len();
            progress.step(count, most);
            if extent.pod.contains(&count) {
                let memory = at_rest(&containers[..1]);
                memory.report(part, &shim.name, &format!("one server for {count}"), 1);
                seen.push((count as f64, memory.private));
            }
        }
        if let [.., (fewer, before), (more, after)] = seen[..] {
            let each = (after - before) / (more - fewer);
            part.set("private, each further container", "kB", &shim.name, each);
        }
        abandon(&daemon, &containers);
    }
}

/// One server before and after many execs.
pub fn execs(part: &mut Part, shims: &[Shim], noop: &Runtime, extent: &Extent) {
    for shim in shims {
        let progress = Progress::of(&format!("memory after execs: {}", shim.name));
        let daemon = shim.daemon();
        let container = noop.container(&daemon, "c", &["sleep", "inf"]).run();
        // The first one fills what every later one uses again.
        exec(&container, 0);
        let report = |part: &mut Part, when: &str| {
            at_rest(std::slice::from_ref(&container)).report(part, &shim.name, when, 1);
        };
        report(part, "after an exec");
        for count in 1..=extent.execs {
            exec(&container, count);
            progress.step(count, extent.execs);
        }
        report(part, &format!("after {} execs", extent.execs));
        abandon(&daemon, &[container]);
    }
}

fn exec(container: &Container, count: usize) {
    let exec = container.exec(&format!("e{count}"), &["true"]);
    let exec = exec.expect("Exec");
    exec.start().expect("Start");
    exec.wait().expect("Wait");
    exec.delete().expect("Delete");
}

/// What the kernel has for a server besides its pages: by the account of a cgroup that servers and
/// inits are in, less the inits'.
pub fn kernel(part: &mut Part, shims: &[Shim], noop: &Runtime) {
    let Some(bare) = kernel_of_bare_inits(shims, noop) else {
        eprintln!("bench: kernel memory is not counted: no cgroup has an account of it");
        return;
    };
    for shim in shims {
        let progress = Progress::of(&format!("kernel memory: {}", shim.name));
        let account = Account::new(&shim.name).expect("a cgroup for the shims");
        let first = shim.daemon();
        let entering = account.entering(&first, noop, &shim.binary);
        let daemon = shim.daemon_with(&entering);
        let mut containers = Vec::new();
        for count in 0..IN_CGROUP {
            let id = format!("c{count}");
            containers.push(noop.container(&daemon, &id, &["sleep", "inf"]).run());
            progress.step(count + 1, IN_CGROUP);
        }
        at_rest(&containers);
        let each = account.kernel_kb() / IN_CGROUP as f64 - bare;
        let figure = format!("kernel memory, {IN_CGROUP} idle");
        part.set(&figure, "kB", &shim.name, each);
        abandon(&daemon, &containers);
        drop(daemon);
        account.remove();
    }
}

/// What an init alone costs.
fn kernel_of_bare_inits(shims: &[Shim], noop: &Runtime) -> Option<f64> {
    let account = Account::new("bare")?;
    let daemon = shims[0].daemon();
    let entering = account.entering(&daemon, noop, Path::new(&noop.program));
    let runtime = Runtime {
        name: "bare".into(),
        program: entering.to_str().expect("UTF-8").into(),
    };
    let raw = Raw::new(&runtime, &daemon);
    let mut inits = Vec::new();
    for count in 0..IN_CGROUP {
        let id = format!("c{count}");
        let bundle = raw.bundle(&id, &["sleep", "inf"]);
        inits.push(raw.create(&id, &bundle));
    }
    pause(SETTLE);
    let each = account.kernel_kb() / IN_CGROUP as f64;
    for init in inits {
        process::signal(init, Signal::SIGKILL);
        raw.wait(init);
    }
    account.remove();
    Some(each)
}

/// A cgroup with an account of kernel memory.
struct Account {
    dir: PathBuf,
}

impl Account {
    fn new(name: &str) -> Option<Account> {
        let root = Path::new("/sys/fs/cgroup");
        let root = match root.join("memory").is_dir() {
            true => root.join("memory"),
            false => root.into(),
        };
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        let dir = root.join(format!("shim-bench-{}-{name}", std::process::id()));
        fs::create_dir(&dir).ok()?;
        let account = Account { dir };
        match account.kernel_bytes() {
            Some(_) => Some(account),
            None => {
                account.remove();
                None
            }
        }
    }

    fn kernel_bytes(&self) -> Option<f64> {
        let v1 = fs::read_to_string(self.dir.join("memory.kmem.usage_in_bytes"));
        if let Ok(bytes) = v1 {
            return bytes.trim().parse().ok();
        }
        let stat = fs::read_to_string(self.dir.join("memory.stat")).ok()?;
        let line = stat.lines().find_map(|line| line.strip_prefix("kernel "));
        line?.parse().ok()
    }

    fn kernel_kb(&self) -> f64 {
        self.kernel_bytes().expect("an account of kernel memory") / 1024.0
    }

    /// A script that runs `program` in this cgroup.
    fn entering(&self, daemon: &Daemon, noop: &Runtime, program: &Path) -> PathBuf {
        let script = daemon.path("entering");
        let procs = self.dir.join("cgroup.procs");
        let (procs, program) = (procs.display(), program.display());
        let text = format!("#!{} enter\n{procs}\n{program}\n", noop.program);
        fs::write(&script, text).expect("write a script");
        let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        fs::set_permissions(&script, mode).expect("make a script a program");
        script
    }

    fn remove(self) {
        let deadline = Instant::now() + PATIENCE;
        while fs::remove_dir(&self.dir).is_err() && self.dir.exists() {
            assert!(Instant::now() < deadline, "{:?} is not empty", self.dir);
            // Its processes are dying; nothing announces the last one.
            pause(Duration::from_millis(10));
        }
    }
}

/// The sums over some servers; kB are KiB.
#[derive(Default)]
struct Memory {
    rss: f64,
    pss: f64,
    private: f64,
    page_tables: f64,
    descriptors: f64,
    threads: f64,
}

impl Memory {
    fn add(&mut self, pid: i32) {
        let of =
            |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).expect("read /proc");
        let count = |dir: &str| {
            fs::read_dir(format!("/proc/{pid}/{dir}"))
                .expect("read /proc")
                .count()
        };
        let rollup = of("smaps_rollup");
        self.rss += field(&rollup, "Rss:");
        self.pss += field(&rollup, "Pss:");
        self.private += field(&rollup, "Private_Clean:") + field(&rollup, "Private_Dirty:");
        self.page_tables += field(&of("status"), "VmPTE:");
        self.descriptors += count("fd") as f64;
        self.threads += count("task") as f64;
    }

    /// Adds rows, of a server each.
    fn report(&self, part: &mut Part, shim: &str, when: &str, servers: usize) {
        for (what, unit, sum) in [
            ("PSS", "kB", self.pss),
            ("private", "kB", self.private),
            ("RSS", "kB", self.rss),
            ("page tables", "kB", self.page_tables),
            ("descriptors", "", self.descriptors),
            ("threads", "", self.threads),
        ] {
            part.set(&format!("{what}, {when}"), unit, shim, sum / servers as f64);
        }
    }
}

/// A field of a file in `/proc`.
fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.expect("a field").parse().expect("a number")
}

/// The memory of the containers' servers, once they rest.
fn at_rest(containers: &[Container]) -> Memory {
    pause(SETTLE);
    let mut memory = Memory::default();
    for container in containers {
        memory.add(container.shim_pid);
    }
    memory
}

/// How often threads of the servers slept and were woken meanwhile.
fn wakeups(containers: &[Container], meanwhile: Duration) -> f64 {
    let count = || -> f64 {
        let tasks = containers.iter().flat_map(|container| {
            fs::read_dir(format!("/proc/{}/task", container.shim_pid)).expect("read /proc")
        });
        let status = tasks
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        status
            .map(|status| field(&status, "voluntary_ctxt_switches:"))
            .sum()
    };
    let before = count();
    pause(meanwhile);
    count() - before
}

/// Lets time pass, which is what is measured.
fn pause(time: Duration) {
    let deadline = Instant::now() + time;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        let millis = left.as_millis().clamp(1, 60_000) as u16;
        let _ = nix::poll::poll(&mut [], millis);
    }
}

/// Ends servers and inits at once: not what is measured.
fn abandon(daemon: &Daemon, containers: &[Container]) {
    let init = |container: &Container| container.state().expect("State").pid as i32;
    let inits: Vec<i32> = containers.iter().map(init).collect();
    for (container, init) in containers.iter().zip(inits) {
        process::signal(container.shim_pid, Signal::SIGKILL);
        process::wait(container.shim_pid, "the shim", PATIENCE);
        process::signal(init, Signal::SIGKILL);
    }
    let _ = fs::remove_dir_all(daemon.runtime_root());
}
