//! What shims cost at rest: many servers with a container each, one server with many, and one that
//! has had many execs. And how long the next container takes when there are many already.
//!
//! All shims are let rest at the same time: that is what takes the time here.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::container::Container;
use crate::harness::{Daemon, process};
use crate::plot::Series;
use crate::progress::Progress;
use crate::results::{Column, Part, Results};
use crate::subject::{PATIENCE, Raw, Runtime, Shim, since};

/// How many servers share a cgroup when kernel memory is counted.
const IN_CGROUP: usize = 50;
/// Above this number of servers there are only those of the first shims: see [`TO_THE_END`].
const FOR_ALL: usize = 200;
/// How many shims get more servers than that: the machine's memory is not for all of them.
const TO_THE_END: usize = 2;

/// How much is measured.
pub struct Extent {
    /// Idle containers, each with a server of its own; ascending.
    pub servers: Vec<usize>,
    /// Containers of one server; ascending.
    pub pod: Vec<usize>,
    pub execs: usize,
    /// How long after its last request a server counts as idle. Our shim gives memory back within
    /// 30 s.
    pub settle: Duration,
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

/// The containers of one shim.
struct Scene<'a> {
    shim: &'a Shim,
    servers: Group<'a>,
    pod: Group<'a>,
    execs: Group<'a>,
    /// How long each of `servers` took to have a container that runs, in milliseconds.
    times: Vec<f64>,
    private: Series,
    pss: Series,
}

/// Containers with a containerd of their own.
struct Group<'a> {
    daemon: &'a Daemon,
    containers: Vec<Container<'a>>,
}

impl<'a> Group<'a> {
    fn of(daemon: &'a Daemon) -> Group<'a> {
        Group {
            daemon,
            containers: Vec::new(),
        }
    }

    /// One container more, in the server of the first one if `group` says so.
    fn grow(&mut self, noop: &Runtime, group: bool) {
        let id = format!("c{}", self.containers.len());
        let container = noop.container(self.daemon, &id, &["sleep", "inf"]);
        let container = match group {
            true => container.group("c0"),
            false => container,
        };
        self.containers.push(container.run());
    }
}

/// Everything but kernel memory.
pub fn measure(results: &mut Results, shims: &[Shim], noop: &Runtime, extent: &Extent) -> Plots {
    let daemons: Vec<[Daemon; 3]> = shims
        .iter()
        .map(|shim| [0; 3].map(|_| shim.daemon()))
        .collect();
    let scenes = shims.iter().zip(&daemons).map(|(shim, daemons)| Scene {
        shim,
        servers: Group::of(&daemons[0]),
        pod: Group::of(&daemons[1]),
        execs: Group::of(&daemons[2]),
        times: Vec::new(),
        private: Series::of(&shim.name),
        pss: Series::of(&shim.name),
    });
    let mut scenes: Vec<Scene> = scenes.collect();
    let progress = Progress::of("memory at rest");
    let phases = extent.servers.len().max(extent.pod.len()).max(2);
    for phase in 0..phases {
        for (at, scene) in scenes.iter_mut().enumerate() {
            progress.say(&format!(
                "{}, step {} of {phases}",
                scene.shim.name,
                phase + 1
            ));
            scene.grow(at, phase, phases, noop, extent);
        }
        progress.say(&format!("rest, step {} of {phases}", phase + 1));
        pause(extent.settle);
        for (at, scene) in scenes.iter_mut().enumerate() {
            scene.report(at, phase, phases, results, extent);
        }
    }
    wakeups(results, &scenes, extent.rest);
    finish(results, scenes)
}

/// Reports how long containers took, draws, and ends all.
fn finish(results: &mut Results, scenes: Vec<Scene>) -> Plots {
    let mut plots = Plots::default();
    for scene in scenes {
        for group in [&scene.servers, &scene.pod, &scene.execs] {
            abandon(group.daemon, &group.containers);
        }
        latency(servers_part(results), &scene.shim.name, &scene.times);
        let latency = of_times(&scene.shim.name, &scene.times);
        plots.latency.push(latency);
        plots.private.push(scene.private);
        plots.pss.push(scene.pss);
    }
    plots
}

fn servers_part(results: &mut Results) -> &mut Part {
    results.part(
        "servers",
        "Idle servers, each with a container (kB are KiB)",
    )
}

/// How many servers the shim at this place has in a phase.
fn servers_of(at: usize, phase: usize, extent: &Extent) -> Option<usize> {
    let count = extent.servers.get(phase).copied();
    count.filter(|&count| count <= FOR_ALL || at < TO_THE_END)
}

impl Scene<'_> {
    fn grow(&mut self, at: usize, phase: usize, phases: usize, noop: &Runtime, extent: &Extent) {
        while self.servers.containers.len() < servers_of(at, phase, extent).unwrap_or(0) {
            let start = Instant::now();
            self.servers.grow(noop, false);
            self.times.push(since(start));
        }
        while self.pod.containers.len() < extent.pod.get(phase).copied().unwrap_or(0) {
            self.pod.grow(noop, true);
        }
        if phase == 0 {
            self.execs.grow(noop, false);
            exec(&self.execs.containers[0], 0);
        }
        if phase == phases - 1 {
            for count in 1..=extent.execs {
                exec(&self.execs.containers[0], count);
            }
        }
    }

    fn report(
        &mut self,
        at: usize,
        phase: usize,
        phases: usize,
        results: &mut Results,
        extent: &Extent,
    ) {
        let name = &self.shim.name;
        if let Some(count) = servers_of(at, phase, extent) {
            let memory = Memory::of(&self.servers.containers);
            memory.report(servers_part(results), name, &format!("{count} idle"), count);
            self.private
                .push(count as f64, memory.private / count as f64);
            self.pss.push(count as f64, memory.pss / count as f64);
        }
        if let Some(&count) = extent.pod.get(phase) {
            let memory = Memory::of(&self.pod.containers[..1]);
            let part = results.part("pods", "One server with many containers, idle (kB are KiB)");
            memory.report(part, name, &format!("one server for {count}"), 1);
            if let Some(&fewer) = phase.checked_sub(1).and_then(|phase| extent.pod.get(phase)) {
                let before = part.figure(&format!("private, one server for {fewer}"));
                let before = before.and_then(|figure| figure.of(name)).expect("a figure");
                let each = (memory.private - before.median()) / (count - fewer) as f64;
                let figure = format!("private, each container from {fewer} to {count}");
                part.set(&figure, "kB", name, each);
            }
        }
        let when = match phase {
            0 => "after an exec".into(),
            _ if phase == phases - 1 => format!("after {} execs", extent.execs),
            _ => return,
        };
        let part = results.part(
            "execs",
            "A server before and after execs, idle (kB are KiB)",
        );
        Memory::of(&self.execs.containers).report(part, name, &when, 1);
    }
}

fn exec(container: &Container, count: usize) {
    let exec = container.exec(&format!("e{count}"), &["true"]);
    let exec = exec.expect("Exec");
    exec.start().expect("Start");
    exec.wait().expect("Wait");
    exec.delete().expect("Delete");
}

/// How often threads of the servers slept and were woken, a server.
fn wakeups(results: &mut Results, scenes: &[Scene], rest: Duration) {
    let before: Vec<f64> = scenes
        .iter()
        .map(|s| switches(&s.servers.containers))
        .collect();
    pause(rest);
    for (scene, before) in scenes.iter().zip(before) {
        let containers = &scene.servers.containers;
        let count = (switches(containers) - before) / containers.len() as f64;
        let figure = format!("wakeups of an idle server in {} s", rest.as_secs());
        servers_part(results).set(&figure, "", &scene.shim.name, count);
    }
}

/// How often threads of these servers have slept so far.
fn switches(containers: &[Container]) -> f64 {
    let tasks = containers.iter().flat_map(|container| {
        fs::read_dir(format!("/proc/{}/task", container.shim_pid)).expect("read /proc")
    });
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    let status = tasks.flatten().filter_map(status);
    status
        .map(|status| field(&status, "voluntary_ctxt_switches:"))
        .sum()
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

/// What the kernel has for a server besides its pages: by the account of a cgroup that servers and
/// inits are in, less the inits'.
pub fn kernel(results: &mut Results, shims: &[Shim], noop: &Runtime, extent: &Extent) {
    let accounts = shims.iter().map(|shim| Account::new(&shim.name));
    let accounts = accounts.collect::<Option<Vec<Account>>>();
    let (Some(accounts), Some(bare)) = (accounts, Account::new("bare")) else {
        eprintln!("bench: kernel memory is not counted: no cgroup has an account of it");
        return;
    };
    let progress = Progress::of("kernel memory");
    let scripts = shims[0].daemon();
    let runtime = Runtime {
        name: "bare".into(),
        program: bare
            .entering(&scripts, noop, Path::new(&noop.program))
            .to_str()
            .expect("UTF-8")
            .into(),
    };
    let raw = Raw::new(&runtime, &scripts);
    let inits: Vec<i32> = (0..IN_CGROUP)
        .map(|count| {
            let id = format!("c{count}");
            raw.create(&id, &raw.bundle(&id, &["sleep", "inf"]))
        })
        .collect();
    let daemons = shims
        .iter()
        .zip(&accounts)
        .map(|(shim, account)| shim.daemon_with(&account.entering(&scripts, noop, &shim.binary)));
    let daemons: Vec<Daemon> = daemons.collect();
    let mut groups: Vec<Group> = daemons.iter().map(Group::of).collect();
    for (shim, group) in shims.iter().zip(&mut groups) {
        progress.say(&shim.name);
        (0..IN_CGROUP).for_each(|_| group.grow(noop, false));
    }
    progress.say("rest");
    pause(extent.settle);
    let of_init = bare.kernel_kb();
    for (shim, account) in shims.iter().zip(&accounts) {
        let each = (account.kernel_kb() - of_init) / IN_CGROUP as f64;
        let figure = format!("kernel memory, {IN_CGROUP} idle");
        servers_part(results).set(&figure, "kB", &shim.name, each);
    }
    for group in &groups {
        abandon(group.daemon, &group.containers);
    }
    for init in inits {
        process::signal(init, Signal::SIGKILL);
        raw.wait(init);
    }
    accounts.into_iter().chain([bare]).for_each(Account::remove);
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
        let name = self
            .dir
            .file_name()
            .expect("a name")
            .to_str()
            .expect("UTF-8");
        let script = daemon.path(name);
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
    /// Of the containers' servers, one each.
    fn of(containers: &[Container]) -> Memory {
        let mut memory = Memory::default();
        for container in containers {
            memory.add(container.shim_pid);
        }
        memory
    }

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
