//! An OCI runtime that does nothing, so that only the shim is measured; `hack/bench` compiles it,
//! static. A container's init is a process that waits for signals, in no namespace or mount of its
//! own. It joins the cgroup of `config.json` where somebody has made that before.
//!
//! A container whose arguments are `true` ends when it is started; an exec ends at once.
//!
//! It is also the interpreter of scripts whose second line is the `cgroup.procs` of a cgroup, and
//! whose third is the program to run in there.
//!
//! Lacks on purpose: consoles, logs, and every check.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

// SAFETY: as in POSIX; this program has one thread.
unsafe extern "C" {
    safe fn fork() -> i32;
    safe fn kill(pid: i32, signal: i32) -> i32;
    safe fn pause() -> i32;
}

const SIGKILL: i32 = 9;

/// Options that take a value, as the next argument.
const WITH_VALUE: &[&str] = &[
    "--root",
    "--log",
    "--log-format",
    "--bundle",
    "--pid-file",
    "--console-socket",
    "--process",
    "--format",
];

/// A command line.
#[derive(Default)]
struct Call {
    options: Vec<(String, String)>,
    /// The verb, the container's ID, and what else is no option.
    words: Vec<String>,
    force: bool,
}

impl Call {
    fn parse(mut args: impl Iterator<Item = String>) -> Call {
        let mut call = Call::default();
        while let Some(arg) = args.next() {
            if WITH_VALUE.contains(&arg.as_str()) {
                call.options.push((arg, args.next().unwrap_or_default()));
            } else if let Some((key, value)) = arg.split_once('=') {
                call.options.push((key.into(), value.into()));
            } else if arg.starts_with('-') {
                call.force |= arg == "--force";
            } else {
                call.words.push(arg);
            }
        }
        call
    }

    fn option(&self, key: &str) -> Result<&str, String> {
        let found = self.options.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str()).ok_or(format!("no {key}"))
    }

    fn word(&self, at: usize) -> Result<&str, String> {
        let word = self.words.get(at).map(String::as_str);
        word.ok_or("an argument is missing".into())
    }

    /// The directory of the container's state.
    fn state(&self) -> Result<PathBuf, String> {
        Ok(Path::new(self.option("--root")?).join(self.word(1)?))
    }

    fn pid(&self) -> Result<i32, String> {
        let pid = read(&self.state()?.join("pid"))?;
        pid.parse().map_err(|_| format!("{pid:?} is no pid"))
    }
}

fn main() -> ExitCode {
    let done = match env::args().nth(1).as_deref() {
        Some("enter") => enter(env::args().skip(2)),
        _ => run(&Call::parse(env::args().skip(1))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(call: &Call) -> Result<(), String> {
    match call.word(0)? {
        "create" => create(call),
        "start" => match call.state()?.join("ends").exists() {
            true => signal(call.pid()?, SIGKILL),
            false => Ok(()),
        },
        "exec" => {
            let lasts = read(Path::new(call.option("--process")?))?.contains("\"sleep\"");
            let pid = child(|| lasts)?;
            write(Path::new(call.option("--pid-file")?), &pid.to_string())
        }
        "kill" => signal(call.pid()?, call.word(2)?.parse().unwrap_or(SIGKILL)),
        "delete" => delete(call),
        "ps" => {
            println!("[{}]", call.pid()?);
            Ok(())
        }
        "state" => {
            let (id, pid) = (call.word(1)?, call.pid()?);
            let bundle = read(&call.state()?.join("bundle"))?;
            println!("{{\"ociVersion\":\"1.0.2\",\"id\":\"{id}\",\"pid\":{pid},\"status\":\"running\",\"bundle\":\"{bundle}\"}}");
            Ok(())
        }
        verb => Err(format!("no verb {verb}")),
    }
}

fn create(call: &Call) -> Result<(), String> {
    let (state, bundle) = (call.state()?, call.option("--bundle")?);
    let config = read(&Path::new(bundle).join("config.json"))?;
    fs::create_dir_all(&state).map_err(|e| format!("make {state:?}: {e}"))?;
    join(&config);
    let pid = child(|| true)?;
    if config.contains("\"true\"") {
        write(&state.join("ends"), "")?;
    }
    write(&state.join("bundle"), bundle)?;
    write(&state.join("pid"), &pid.to_string())?;
    write(Path::new(call.option("--pid-file")?), &pid.to_string())
}

fn delete(call: &Call) -> Result<(), String> {
    let state = call.state()?;
    if call.force {
        match call.pid() {
            Ok(pid) => {
                let _ = signal(pid, SIGKILL);
            }
            Err(_) => return Ok(()),
        }
    }
    fs::remove_dir_all(&state).map_err(|e| format!("container does not exist: {state:?}: {e}"))
}

/// Joins the cgroup that `config.json` names, in each hierarchy that has it.
fn join(config: &str) {
    let mut rest = config.split("\"cgroupsPath\": \"").skip(1);
    let cgroup = rest.next().and_then(|rest| rest.split('"').next());
    let Some(cgroup) = cgroup.map(|c| c.trim_start_matches('/')) else {
        return;
    };
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let procs = hierarchy.path().join(cgroup).join("cgroup.procs");
        if let Ok(mut procs) = OpenOptions::new().write(true).open(procs) {
            let _ = procs.write_all(b"0");
        }
    }
}

/// `SCRIPT ARGUMENT...`: runs the script's program in the script's cgroup.
fn enter(mut args: impl Iterator<Item = String>) -> Result<(), String> {
    let script = read(Path::new(&args.next().ok_or("no script")?))?;
    let mut lines = script.lines().skip(1);
    let (Some(procs), Some(program)) = (lines.next(), lines.next()) else {
        return Err("a script of three lines is wanted".into());
    };
    write(Path::new(procs), "0")?;
    let error = Command::new(program).args(args).exec();
    Err(format!("execute {program}: {error}"))
}

/// A child that waits for signals, or ends: its pid.
fn child(lasts: impl Fn() -> bool) -> Result<i32, String> {
    match fork() {
        -1 => Err("fork failed".into()),
        0 => {
            while lasts() {
                pause();
            }
            std::process::exit(0)
        }
        pid => Ok(pid),
    }
}

fn signal(pid: i32, signal: i32) -> Result<(), String> {
    match kill(pid, signal) {
        0 => Ok(()),
        _ => Err(format!("kill {pid}: process already finished")),
    }
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("read {path:?}: {e}"))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("write {path:?}: {e}"))
}
