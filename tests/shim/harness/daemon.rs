//! containerd, as a shim sees it: the directories, the events endpoint, the calls of
//! the shim's binary, and the clean-up after it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use containerd_shim_rs_v2::proto::bootstrap::{BootstrapParams, BootstrapResult, Extension};
use containerd_shim_rs_v2::proto::{Any, Message, runc, task};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::container::{Builder, Container};
use super::events::Events;
use super::machine::{
    CGROUPS, cgroup_dirs, cgroup_path, clear_cgroup, mounts_below, new_cgroup_dirs,
};
use super::process::{self, Output};
use super::runtime::FakeRuntime;
use super::seccomp::{self, Denied};
use super::stdio::Reader;
use super::task::Api;
use super::{runtime, shim_binary, systemd};

/// How `start` is called and what it may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// containerd 1.6: flags, `TTRPC_ADDRESS`, options on stdin; answer: an address.
    V1_6,
    /// 1.7 to 2.2: more environment; answer: an address, or JSON.
    Legacy,
    /// From 2.3 on: `BootstrapParams` on stdin, `BootstrapResult` as the answer.
    Bootstrap,
}

/// What a successful `start` answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub address: String,
    /// 2 when the answer is a bare address.
    pub version: i32,
    pub form: Form,
}

/// The form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Plain,
    Json,
    Protobuf,
}

/// One daemon, with a state directory and sockets of its own.
pub struct Daemon {
    dir: TempDir,
    /// The shim's binary.
    shim: Mutex<String>,
    pub api: Api,
    pub events: Events,
    /// The longest that anything may take.
    pub hang_timeout: Duration,
    /// No other daemon has it: what is kept outside of its directory is apart, too.
    pub namespace: String,
    bundles: Mutex<Vec<Kept>>,
    /// Cgroups of the case's own.
    cgroups: Mutex<Vec<String>>,
    /// What the shim's environment has besides.
    environment: Mutex<Vec<(String, String)>>,
    /// System calls that the shim has to do without.
    denied: Mutex<Vec<Denied>>,
    /// Every address that a shim answered with.
    addresses: Mutex<Vec<String>>,
}

/// What is to be torn down in the end.
struct Kept {
    id: String,
    cgroup: String,
    /// The shim's log, which has to be read lest the shim block.
    log: Option<Reader>,
}

/// A part of a name that no other test has.
fn unique() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!(
        "{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

impl Daemon {
    pub fn new(api: Api, hang_timeout: Duration) -> Daemon {
        Daemon::with_shim(shim_binary(), api, hang_timeout)
    }

    /// With another shim than the one under test.
    pub fn with_shim(shim: &str, api: Api, hang_timeout: Duration) -> Daemon {
        process::adopt_orphans();
        let dir = tempfile::Builder::new()
            .prefix("shim-")
            .tempdir()
            .expect("a state directory");
        let events = Events::listen(&dir.path().join("containerd.sock.ttrpc"), hang_timeout);
        let (bundles, cgroups, environment, denied, addresses) = Default::default();
        let daemon = Daemon {
            dir,
            shim: Mutex::new(shim.into()),
            api,
            events,
            hang_timeout,
            namespace: format!("tests-{}", unique()),
            bundles,
            cgroups,
            environment,
            denied,
            addresses,
        };
        fs::create_dir_all(daemon.bundles_dir()).expect("make the bundles' directory");
        fs::create_dir(daemon.path("io")).expect("make the FIFOs' directory");
        daemon
    }

    /// `name` in the daemon's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn bundles_dir(&self) -> PathBuf {
        self.path("io.containerd.runtime.v2.task")
            .join(&self.namespace)
    }

    /// The daemon's gRPC address, an input of the sockets' names.
    pub fn grpc_address(&self) -> String {
        self.path("containerd.sock").to_str().unwrap().into()
    }

    /// The runtime's `--root` that the options ask for.
    pub fn runtime_root(&self) -> PathBuf {
        self.path("runtime-root")
    }

    /// The options every container gets unless its case says otherwise.
    pub fn options(&self) -> runc::Options {
        runc::Options {
            binary_name: runtime().into(),
            root: self.runtime_root().to_str().unwrap().into(),
            systemd_cgroup: systemd(),
            ..Default::default()
        }
    }

    /// A container to be, running `args`.
    pub fn container(&self, id: &str, args: &[&str]) -> Builder<'_> {
        Builder::new(self, id, args)
    }

    /// A container that runs a shell script.
    pub fn shell(&self, id: &str, script: &str) -> Builder<'_> {
        self.container(id, &["sh", "-c", script])
    }

    /// A running container that stays until it is killed.
    pub fn running(&self, id: &str) -> Container<'_> {
        self.container(id, &["sleep", "inf"]).run()
    }

    /// A runtime that misbehaves on demand.
    pub fn fake_runtime(&self) -> FakeRuntime {
        FakeRuntime::new(&self.path("fake-runtime"), runtime(), self.hang_timeout)
    }

    /// A cgroup that no other test has.
    pub fn new_cgroup(&self, id: &str) -> String {
        match systemd() {
            true => format!("system.slice:shim-test:{}-{id}", unique()),
            false => format!("/shim-test-{}-{id}", unique()),
        }
    }

    /// Makes a cgroup for something else than a container, in every hierarchy.
    pub fn make_cgroup(&self, id: &str) -> String {
        let cgroup = format!("/shim-test-{}-{id}", unique());
        new_cgroup_dirs(&cgroup);
        self.cgroups.lock().unwrap().push(cgroup.clone());
        cgroup
    }

    /// From now on the shim is called with this in its environment.
    pub fn set_env(&self, key: &str, value: &str) {
        let mut environment = self.environment.lock().unwrap();
        environment.push((key.into(), value.into()));
    }

    /// From now on the shim has to do without these system calls, and all that it starts.
    pub fn deny(&self, denied: &[Denied]) {
        self.denied.lock().unwrap().extend(denied);
    }

    /// Has `command` do without what the shim does without.
    pub fn restrict(&self, command: &mut Command) {
        seccomp::deny(command, &self.denied.lock().unwrap());
    }

    /// Reads the log of the bundle of `id`, and remembers to tear it down.
    pub fn keep(&self, id: &str, cgroup: &str) {
        self.keep_in(&self.bundles_dir().join(id), id, cgroup);
    }

    /// As [`Daemon::keep`], for any bundle; without a cgroup if that is empty.
    pub fn keep_in(&self, bundle: &Path, id: &str, cgroup: &str) {
        let log = bundle.join("log");
        let log = Reader::open_lasting(&log, self.hang_timeout);
        let kept = Kept {
            id: id.into(),
            cgroup: cgroup.into(),
            log: Some(log),
        };
        self.bundles.lock().unwrap().push(kept);
    }

    /// From now on this is the shim, as when another release is installed.
    pub fn replace_shim(&self, shim: &str) {
        *self.shim.lock().unwrap() = shim.into();
    }

    /// The shim's command line, in `bundle`, as every call of it begins.
    pub fn command(&self, id: &str, bundle: &Path) -> Command {
        let mut command = Command::new(&*self.shim.lock().unwrap());
        command
            .args([
                "-namespace",
                &self.namespace,
                "-address",
                &self.grpc_address(),
            ])
            .args(["-publish-binary", "/usr/bin/containerd", "-id", id])
            .env("TTRPC_ADDRESS", self.events.path())
            .env("GOMAXPROCS", "2")
            .envs(self.environment.lock().unwrap().iter().cloned())
            .process_group(0)
            .current_dir(bundle);
        self.restrict(&mut command);
        command
    }

    /// Runs `start`, as a daemon that speaks `dialect` does, with `options` for stdin.
    #[track_caller]
    pub fn start(&self, dialect: Dialect, id: &str, bundle: &Path, options: Option<Any>) -> Output {
        let mut command = self.command(id, bundle);
        if dialect != Dialect::V1_6 {
            command
                .env("MAX_SHIM_VERSION", "2")
                .env("NAMESPACE", &self.namespace);
            command.env("GRPC_ADDRESS", self.grpc_address());
        }
        command.arg("start");
        let stdin = match dialect {
            Dialect::Bootstrap => self.bootstrap_params(id, options).write_to_bytes(),
            _ => options.unwrap_or_default().write_to_bytes(),
        };
        process::run(&mut command, &stdin.unwrap(), self.hang_timeout)
    }

    fn bootstrap_params(&self, id: &str, options: Option<Any>) -> BootstrapParams {
        let extension = |any| Extension {
            value: Some(any).into(),
            ..Default::default()
        };
        BootstrapParams {
            instance_id: id.into(),
            namespace: self.namespace.clone(),
            containerd_version: "2.3.0".into(),
            containerd_ttrpc_address: self.events.path().to_str().unwrap().into(),
            containerd_grpc_address: self.grpc_address(),
            containerd_binary: "/usr/bin/containerd".into(),
            extensions: options.into_iter().map(extension).collect(),
            socket_dir: Some(self.path("s").to_str().unwrap().into()),
            ..Default::default()
        }
    }

    /// Reads the answer of a successful `start` as a daemon that speaks `dialect` does.
    #[track_caller]
    pub fn answer(&self, dialect: Dialect, output: &Output) -> Started {
        let stderr = output.stderr_text();
        assert_eq!(output.status, 0, "start failed: {stderr}");
        // The daemon reads both as one.
        assert_eq!(stderr, "", "start wrote to stderr");
        let started = Self::decode(dialect, output);
        assert!(
            started.address.starts_with("unix://"),
            "an address in {started:?}"
        );
        self.addresses.lock().unwrap().push(started.address.clone());
        started
    }

    #[track_caller]
    fn decode(dialect: Dialect, output: &Output) -> Started {
        if dialect == Dialect::Bootstrap {
            let result = BootstrapResult::parse_from_bytes(&output.stdout);
            let result = result.expect("decode a BootstrapResult");
            assert_eq!(result.protocol, "ttrpc");
            let (address, version) = (result.address, result.version);
            return Started {
                address,
                version,
                form: Form::Protobuf,
            };
        }
        let text = output.stdout_text().trim().to_string();
        if !text.starts_with('{') {
            return Started {
                address: text,
                version: 2,
                form: Form::Plain,
            };
        }
        let json: serde_json::Value = serde_json::from_str(&text).expect("decode JSON");
        assert_eq!(json["protocol"], "ttrpc");
        let address = json["address"].as_str().unwrap().into();
        let version = json["version"].as_i64().unwrap() as i32;
        Started {
            address,
            version,
            form: Form::Json,
        }
    }

    /// Runs `delete` for `id`: the output as it is.
    #[track_caller]
    pub fn delete_output(&self, id: &str) -> Output {
        let bundle = self.bundles_dir().join(id);
        let mut command = self.command(id, &bundle);
        command.arg("-bundle").arg(&bundle).arg("delete");
        process::run(&mut command, &[], self.hang_timeout)
    }

    /// Runs `delete` for `id`, which has to succeed.
    #[track_caller]
    pub fn delete(&self, id: &str) -> task::DeleteResponse {
        let output = self.delete_output(id);
        // Shown if the case fails.
        eprint!("{}", output.stderr_text());
        assert_eq!(output.status, 0, "delete failed: {}", output.stderr_text());
        task::DeleteResponse::parse_from_bytes(&output.stdout).expect("decode a DeleteResponse")
    }

    /// What is there of container `id` though nothing should be.
    pub fn leftovers(&self, id: &str) -> Vec<String> {
        let mut found = Vec::new();
        let bundles = self.bundles.lock().unwrap();
        let cgroups = bundles.iter().filter(|kept| kept.id == id);
        for dir in cgroups.flat_map(|kept| cgroup_dirs(&kept.cgroup)) {
            let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            let pids: Vec<&str> = pids.split_whitespace().collect();
            found.push(format!("cgroup {} with processes {pids:?}", dir.display()));
        }
        let bundle = self.bundles_dir().join(id);
        found.extend(
            mounts_below(&bundle)
                .iter()
                .map(|m| format!("mount {}", m.display())),
        );
        let state = self.runtime_root().join(&self.namespace).join(id);
        if state.exists() {
            found.push(format!("the runtime's state {}", state.display()));
        }
        found
    }

    /// What the shim's server, started for `id`, has logged so far.
    pub fn log_of(&self, id: &str) -> String {
        let bundles = self.bundles.lock().unwrap();
        let kept = bundles.iter().find(|kept| kept.id == id);
        let log = kept.and_then(|kept| kept.log.as_ref());
        log.map(Reader::text).unwrap_or_default()
    }

    /// As when containerd is away: nobody reads the shims' logs any more.
    pub fn stop_reading_logs(&self) {
        for kept in self.bundles.lock().unwrap().iter_mut() {
            kept.log = None;
        }
    }

    /// Waits until `holds`, which nothing announces: it is looked at again and again.
    #[track_caller]
    pub fn eventually(&self, what: &str, holds: impl FnMut() -> bool) {
        self.eventually_within(self.hang_timeout, what, holds);
    }

    /// The same for what may take longer than an answer.
    #[track_caller]
    pub fn eventually_within(&self, limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + limit;
        while !holds() {
            assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
            // Nothing to wait for; only not to take the processor from who is to make it true.
            let _ = nix::poll::poll(&mut [], 5_u16);
        }
    }

    /// The processes of the shim's binary that are still there.
    pub fn shims_alive(&self) -> Vec<i32> {
        process::running(&self.grpc_address())
    }
}

#[allow(
    dead_code,
    reason = "for `tests/faults`, which counts what is left of all containers"
)]
impl Daemon {
    /// The containers whose bundles were made, in order.
    pub fn containers(&self) -> Vec<String> {
        let bundles = self.bundles.lock().unwrap();
        bundles.iter().map(|kept| kept.id.clone()).collect()
    }

    /// The servers' sockets that are still there.
    pub fn sockets(&self) -> Vec<String> {
        let addresses = self.addresses.lock().unwrap();
        let paths = addresses.iter().map(|a| a.trim_start_matches("unix://"));
        paths
            .filter(|p| Path::new(p).exists())
            .map(String::from)
            .collect()
    }

    /// The directory that all is in.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        for pid in self.shims_alive() {
            process::signal(pid, Signal::SIGKILL);
        }
        for kept in self.bundles.lock().unwrap().drain(..) {
            if failed {
                let runtime = self.bundles_dir().join(&kept.id).join("log.json");
                let runtime = fs::read_to_string(runtime).unwrap_or_default();
                eprintln!(
                    "log of {}:\n{}{runtime}",
                    kept.id,
                    kept.log.as_ref().map(Reader::text).unwrap_or_default()
                );
            }
            tear_down(self, &kept.id, &kept.cgroup);
        }
        for cgroup in self.cgroups.lock().unwrap().iter() {
            clear_cgroup(cgroup, self.hang_timeout);
        }
        for address in self.addresses.lock().unwrap().iter() {
            let _ = fs::remove_file(address.trim_start_matches("unix://"));
        }
    }
}

/// Removes what a failed test left, by the means of this harness and not of the shim's.
fn tear_down(daemon: &Daemon, id: &str, cgroup: &str) {
    if cgroup.is_empty() {
        // A sandbox has nothing of a container.
        return;
    }
    clear_cgroup(cgroup, daemon.hang_timeout);
    let root = daemon.runtime_root().join(&daemon.namespace);
    if root.join(id).exists() {
        let mut command = Command::new(runtime());
        command
            .arg("--root")
            .arg(root)
            .args(["delete", "--force", id]);
        let _ = process::run(&mut command, &[], daemon.hang_timeout);
    }
    for mount in mounts_below(&daemon.bundles_dir().join(id)).iter().rev() {
        let _ = umount2(mount, MntFlags::MNT_DETACH);
    }
    // crun makes plain directories where a hierarchy could be mounted and is not.
    for place in fs::read_dir(CGROUPS).into_iter().flatten().flatten() {
        let _ = fs::remove_dir_all(place.path().join(cgroup_path(cgroup)));
    }
}
