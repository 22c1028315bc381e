//! What is measured: shims, and OCI runtimes without a shim.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_rs_v2::proto::runc;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::harness::container::Builder;
use crate::harness::{Api, Daemon, bundle, process};

/// Passing it means "hangs".
pub const PATIENCE: Duration = Duration::from_secs(300);

/// A shim.
pub struct Shim {
    pub name: String,
    pub binary: PathBuf,
    pub api: Api,
}

impl Shim {
    /// A containerd for this shim alone, and the peer's leanest setting.
    pub fn daemon(&self) -> Daemon {
        self.daemon_with(&self.binary)
    }

    /// The same with another program that runs the shim.
    pub fn daemon_with(&self, program: &Path) -> Daemon {
        let daemon = Daemon::with_shim(program.to_str().expect("UTF-8"), self.api, PATIENCE);
        daemon.set_env("TOKIO_WORKER_THREADS", "1");
        daemon
    }
}

/// An OCI runtime.
pub struct Runtime {
    pub name: String,
    pub program: String,
}

impl Runtime {
    /// For a container's options.
    pub fn options(&self) -> impl Fn(&mut runc::Options) {
        |options| options.binary_name = self.program.clone()
    }

    /// Whether it is the one that does nothing.
    pub fn is_noop(&self) -> bool {
        self.program.ends_with("/noop")
    }

    /// A container that this runtime is to run.
    pub fn container<'d>(&self, daemon: &'d Daemon, id: &str, args: &[&str]) -> Builder<'d> {
        daemon.container(id, args).options(self.options())
    }
}

/// The command line of a runtime, without a shim: the limit of what a shim can reach.
pub struct Raw<'a> {
    runtime: &'a Runtime,
    daemon: &'a Daemon,
    dir: PathBuf,
}

impl<'a> Raw<'a> {
    pub fn new(runtime: &'a Runtime, daemon: &'a Daemon) -> Raw<'a> {
        let dir = daemon.path("raw");
        fs::create_dir_all(&dir).expect("make a directory");
        Raw {
            runtime,
            daemon,
            dir,
        }
    }

    /// Makes a bundle whose container runs `args`: its directory.
    pub fn bundle(&self, id: &str, args: &[&str]) -> PathBuf {
        let bundle = self.dir.join(id);
        fs::create_dir_all(&bundle).expect("make the bundle");
        let cgroup = self.daemon.new_cgroup(id);
        let mut spec = bundle::spec(args, &cgroup);
        spec["root"]["path"] = bundle::rootfs().to_str().expect("UTF-8").into();
        let spec = serde_json::to_vec_pretty(&spec).expect("a config.json");
        fs::write(bundle.join("config.json"), spec).expect("write config.json");
        bundle
    }

    /// Creates the container: the pid of its init.
    pub fn create(&self, id: &str, bundle: &Path) -> i32 {
        let pid_file = bundle.join("pid");
        let args = ["create", "--bundle"].map(OsString::from);
        let more = [bundle.into(), "--pid-file".into(), pid_file.clone().into()];
        self.run(args.into_iter().chain(more).chain([id.into()]));
        read_pid(&pid_file)
    }

    pub fn call(&self, args: &[&str]) {
        self.run(args.iter().map(OsString::from));
    }

    /// Starts an exec: its pid.
    pub fn exec(&self, id: &str, bundle: &Path) -> i32 {
        let [spec, pid_file] = ["process.json", "exec.pid"].map(|name| bundle.join(name));
        let process = serde_json::to_vec(&bundle::process(&["true"])).expect("a process");
        fs::write(&spec, process).expect("write a process");
        let args: [OsString; 7] = [
            "exec".into(),
            "--detach".into(),
            "--process".into(),
            spec.into(),
            "--pid-file".into(),
            pid_file.clone().into(),
            id.into(),
        ];
        self.run(args.into_iter());
        read_pid(&pid_file)
    }

    /// Waits for the end of an init or exec.
    pub fn wait(&self, pid: i32) {
        process::wait(pid, "a process of a container", PATIENCE);
    }

    fn run(&self, args: impl Iterator<Item = OsString>) {
        let mut command = Command::new(&self.runtime.program);
        // A container inherits these: none may be a pipe that somebody reads to its end.
        let log = File::create(self.dir.join("stderr")).expect("make a file");
        let null = Stdio::null;
        command.stdin(null()).stdout(null()).stderr(log);
        command.arg("--root").arg(self.dir.join("root")).args(args);
        let child = process::spawn(&mut command);
        let status = process::wait(child.id() as i32, "the runtime", PATIENCE);
        let log = || fs::read_to_string(self.dir.join("stderr")).unwrap_or_default();
        assert_eq!(status, 0, "{command:?}: {}", log());
    }
}

fn read_pid(path: &Path) -> i32 {
    let pid = fs::read_to_string(path).expect("read a pid file");
    pid.trim().parse().expect("a pid")
}

/// Milliseconds since then.
pub fn since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// How long it took, in milliseconds, and what it gave.
pub fn timed<T>(action: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = action();
    (since(start), result)
}

/// The CPU time of all processes that have ended and been waited for, in milliseconds.
pub fn cpu_of_children() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("ask for the CPU time");
    let total = usage.user_time() + usage.system_time();
    total.num_microseconds() as f64 / 1e3
}

/// The CPU time of all threads of a process, as the scheduler counts it.
pub fn cpu_of(pid: i32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("look at the shim");
    let of = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks.flatten().filter_map(of).sum())
}
