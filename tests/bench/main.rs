//! Measures shims beside each other, in one run: for `hack/bench`, which has the shims built and
//! says what to measure.
//!
//! The harness of `tests/shim` plays containerd. Every figure is a median of samples that the shims
//! gave in turns; no figure is compared with a limit, since machines differ and are busy.
//!
//!     bench --shim NAME=API=BINARY... --programs DIR --out DIR --form FORM [PART...]
//!     bench --readme --out DIR
//!
//! `--readme` prints the README's table from the results of the last run.

#![allow(
    clippy::disallowed_methods,
    clippy::zombie_processes,
    reason = "this plays containerd, as the harness does, which waits for all children"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use harness::Api;
use progress::Progress;
use results::Results;
use subject::{Runtime, Shim};

mod calls;
mod counts;
#[allow(dead_code, reason = "shared with the suite, which uses all of it")]
#[path = "../shim/differences.rs"]
mod differences;
#[allow(dead_code, unused_imports, unused_macros, reason = "as above")]
#[path = "../shim/harness/mod.rs"]
mod harness;
mod load;
mod memory;
mod plot;
mod progress;
mod readme;
mod results;
mod stdio;
mod subject;

/// How much is measured.
struct Form {
    name: &'static str,
    rounds_noop: usize,
    rounds_runtimes: usize,
    runtimes: &'static [&'static str],
    /// Idle servers, the last of [`Form::pod`], and execs: see [`memory::Extent`].
    servers: &'static [usize],
    pod: &'static [usize],
    execs: usize,
    settle: Duration,
    rest: Duration,
    /// Pods with execs under load, turns, and seconds a turn.
    load: (usize, usize, u64),
    load_runtimes: &'static [&'static str],
    /// Of stdio, and in how many rounds.
    megabytes: usize,
    rounds_stdio: usize,
}

const FORMS: [Form; 4] = [
    Form {
        name: "try",
        rounds_noop: 2,
        rounds_runtimes: 1,
        runtimes: &["runc", "crun"],
        servers: &[1, 5],
        pod: &[1, 5],
        execs: 10,
        settle: Duration::from_secs(1),
        rest: Duration::from_secs(1),
        load: (3, 1, 1),
        load_runtimes: &["crun"],
        megabytes: 64,
        rounds_stdio: 1,
    },
    Form {
        name: "quick",
        rounds_noop: 15,
        rounds_runtimes: 7,
        runtimes: &["runc", "crun"],
        servers: &[1, 50],
        pod: &[10, 50],
        execs: 200,
        settle: Duration::from_secs(32),
        rest: Duration::from_secs(3),
        load: (20, 2, 4),
        load_runtimes: &["crun"],
        megabytes: 256,
        rounds_stdio: 1,
    },
    Form {
        name: "full",
        rounds_noop: 60,
        rounds_runtimes: 30,
        runtimes: &["runc", "crun"],
        servers: &[1, 50, 200],
        pod: &[1, 10, 100],
        execs: 1000,
        settle: Duration::from_secs(32),
        rest: Duration::from_secs(10),
        load: (20, 8, 5),
        load_runtimes: &["runc", "crun"],
        megabytes: 1024,
        rounds_stdio: 3,
    },
    Form {
        name: "long",
        rounds_noop: 100,
        rounds_runtimes: 50,
        runtimes: &["runc", "crun"],
        servers: &[1, 50, 200, 1000],
        pod: &[1, 10, 100],
        execs: 10_000,
        settle: Duration::from_secs(32),
        rest: Duration::from_secs(10),
        load: (20, 12, 5),
        load_runtimes: &["runc", "crun"],
        megabytes: 2048,
        rounds_stdio: 3,
    },
];

/// The parts, in their order.
const PARTS: [&str; 5] = ["calls", "counts", "memory", "load", "stdio"];

/// The command line.
struct Options {
    shims: Vec<Shim>,
    programs: PathBuf,
    out: PathBuf,
    form: &'static Form,
    parts: Vec<String>,
    readme: bool,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Options {
        let mut options = Options {
            shims: Vec::new(),
            programs: PathBuf::new(),
            out: PathBuf::new(),
            form: &FORMS[2],
            parts: Vec::new(),
            readme: false,
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| panic!("{arg} wants a value"));
            match arg.as_str() {
                "--shim" => options.shims.push(shim(&value())),
                "--programs" => options.programs = value().into(),
                "--out" => options.out = value().into(),
                "--form" => {
                    let name = value();
                    let form = FORMS.iter().find(|form| form.name == name);
                    options.form = form.unwrap_or_else(|| panic!("no form {name}"));
                }
                "--readme" => options.readme = true,
                part if PARTS.contains(&part) => options.parts.push(arg),
                _ => panic!("{arg} is none of {PARTS:?}"),
            }
        }
        options
    }

    fn has(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

/// `NAME=API=BINARY`.
fn shim(text: &str) -> Shim {
    let [name, api, binary] = text.split('=').collect::<Vec<_>>()[..] else {
        panic!("{text} is not NAME=API=BINARY");
    };
    Shim {
        name: name.into(),
        binary: fs::canonicalize(binary).unwrap_or_else(|e| panic!("{binary}: {e}")),
        api: match api {
            "v2" => Api::V2,
            "v3" => Api::V3,
            _ => panic!("{api} is no version of the Task service"),
        },
    }
}

fn main() {
    let options = Options::parse(std::env::args().skip(1));
    let file = options.out.join("results.json");
    if options.readme {
        let (machine, results) =
            read(&file).unwrap_or_else(|| panic!("no results in {file:?}: run make bench first"));
        print!("{}", readme::table(&machine, &results));
        return;
    }
    let begin = Instant::now();
    let mut results = Results::default();
    measure(&options, &mut results);
    let machine = machine(&options, begin.elapsed());
    println!("{}", describe(&machine));
    print!("{}", results.tables());
    if let Some((_, earlier)) = read(&file) {
        results.keep(earlier);
    }
    let text = serde_json::to_string(&results.json(machine)).expect("JSON");
    fs::write(&file, text).unwrap_or_else(|e| panic!("write {file:?}: {e}"));
    eprintln!(
        "bench: {} s; results in {}",
        begin.elapsed().as_secs(),
        options.out.display()
    );
}

fn measure(options: &Options, results: &mut Results) {
    let form = options.form;
    let noop = Runtime {
        name: "noop".into(),
        program: options
            .programs
            .join("noop")
            .to_str()
            .expect("UTF-8")
            .into(),
    };
    if options.has("calls") {
        measure_calls(options, &noop, results);
    }
    if options.has("counts") {
        let title = "Counted, for a whole container with a runtime that does nothing";
        match on_path("strace") {
            Some(_) => counts::measure(results.part("counts", title), &options.shims, &noop),
            None => eprintln!("bench: system calls are not counted: there is no strace"),
        }
    }
    if options.has("memory") {
        measure_memory(options, &noop, results);
    }
    if options.has("load") {
        for name in form.load_runtimes {
            measure_load(options, &runtime(name), results);
        }
    }
    if options.has("stdio") {
        let program = options.programs.join("program");
        let part = results.part(
            "stdio",
            "Standard output and input (of MB/s, more is better)",
        );
        let progress = Progress::of("stdio");
        stdio::measure(
            part,
            &options.shims,
            &program,
            form.megabytes,
            form.rounds_stdio,
            &progress,
        );
    }
}

fn measure_calls(options: &Options, noop: &Runtime, results: &mut Results) {
    let form = options.form;
    let runtimes = form
        .runtimes
        .iter()
        .map(|name| (runtime(name), form.rounds_runtimes));
    let noop = Runtime {
        name: noop.name.clone(),
        program: noop.program.clone(),
    };
    for (runtime, rounds) in [(noop, form.rounds_noop)].into_iter().chain(runtimes) {
        let title = match runtime.is_noop() {
            true => "Calls, with a runtime that does nothing".into(),
            false => format!("Calls, with {}", runtime.name),
        };
        let progress = Progress::of(&title.to_lowercase());
        let part = results.part(&format!("calls-{}", runtime.name), &title);
        calls::measure(part, &options.shims, &runtime, rounds, &progress);
    }
}

fn measure_memory(options: &Options, noop: &Runtime, results: &mut Results) {
    let (form, shims) = (options.form, &options.shims);
    let extent = memory::Extent {
        servers: form.servers.into(),
        pod: form.pod.into(),
        execs: form.execs,
        settle: form.settle,
        rest: form.rest,
    };
    let plots = memory::measure(results, shims, noop, &extent);
    memory::kernel(results, shims, noop, &extent);
    for (name, title, series) in [
        (
            "private",
            "Private memory of an idle server, kB",
            &plots.private,
        ),
        ("pss", "PSS of an idle server, kB", &plots.pss),
        (
            "latency",
            "Until one more container runs, ms (no-op runtime)",
            &plots.latency,
        ),
    ] {
        let file = options.out.join(format!("{name}.svg"));
        let svg = plot::svg(title, "containers", series);
        fs::write(&file, svg).unwrap_or_else(|e| panic!("write {file:?}: {e}"));
    }
}

/// Ours, and the newest of containerd's.
fn measure_load(options: &Options, runtime: &Runtime, results: &mut Results) {
    let (pods, turns, seconds) = options.form.load;
    let extent = load::Extent {
        pods,
        rate: 8,
        turns,
        turn: Duration::from_secs(seconds),
    };
    let title = format!(
        "8 execs a second in each of {pods} pods, with {}",
        runtime.name
    );
    let progress = Progress::of(&title);
    let part = results.part(&format!("load-{}", runtime.name), &title);
    let shims: Vec<&Shim> = options.shims.iter().take(2).collect();
    load::measure(part, &shims, runtime, &extent, &progress);
}

fn runtime(name: &str) -> Runtime {
    let program = on_path(name).unwrap_or_else(|| panic!("{name} is not on PATH"));
    Runtime {
        name: name.into(),
        program: program.to_str().expect("UTF-8").into(),
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// The machine and the run, for the results.
fn machine(options: &Options, took: Duration) -> Value {
    let line = |path: &str| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let processor = line("/proc/cpuinfo");
    let processor = processor
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let load = line("/proc/loadavg");
    json!({
        "form": options.form.name,
        "seconds": took.as_secs(),
        "unix_time": std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs()),
        "kernel": line("/proc/sys/kernel/osrelease"),
        "processor": processor.map(|text| text.trim_start_matches([' ', '\t', ':'])),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "load_average": load.split(' ').take(3).collect::<Vec<_>>().join(" "),
        "cgroup": if harness::machine::is_unified() { "v2" } else { "v1" },
    })
}

/// A line about the run.
fn describe(machine: &Value) -> String {
    format!(
        "{} processors, Linux {}, cgroup {}, load average {} at the end; the {} form, {} s.",
        machine["processors"],
        machine["kernel"].as_str().unwrap_or_default(),
        machine["cgroup"].as_str().unwrap_or_default(),
        machine["load_average"].as_str().unwrap_or_default(),
        machine["form"].as_str().unwrap_or_default(),
        machine["seconds"],
    )
}

/// The machine and the results of the last run.
fn read(file: &Path) -> Option<(Value, Results)> {
    let value: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let results = Results::parse(&value)?;
    Some((value["machine"].clone(), results))
}
