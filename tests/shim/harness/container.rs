//! A container of a test: a builder for its bundle and its requests, and the
//! running thing, which is its own init [`Process`].

use std::fs::{self, File};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use containerd_shim_rs_v2::proto::{Any, Message, Mount, runc, task};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::bundle;
use super::daemon::{Daemon, Dialect, Started};
use super::process;
use super::rpc::{Connection, Failure, Pending};
use super::stdio::{Reader, Tap, make_fifo, writer};
use super::task::Process;

/// Stdio as a request names it.
#[derive(Debug, Clone, Default)]
pub struct Stdio {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// What a container is to be.
pub struct Builder<'d> {
    daemon: &'d Daemon,
    id: String,
    spec: Value,
    cgroup: String,
    stdio: Stdio,
    options: Option<Any>,
    mounts: Vec<Mount>,
    checkpoint: String,
}

impl<'d> Builder<'d> {
    pub fn new(daemon: &'d Daemon, id: &str, args: &[&str]) -> Self {
        let cgroup = daemon.new_cgroup(id);
        let rootfs = Mount {
            type_: "bind".into(),
            source: bundle::rootfs().to_str().unwrap().into(),
            options: vec!["rbind".into(), "ro".into()],
            ..Default::default()
        };
        Builder {
            daemon,
            id: id.into(),
            spec: bundle::spec(args, &cgroup),
            cgroup,
            stdio: Stdio::default(),
            options: Some(any("containerd.runc.v1.Options", &daemon.options())),
            mounts: vec![rootfs],
            checkpoint: String::new(),
        }
    }

    /// Changes `config.json` at will.
    pub fn spec(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.spec);
        self
    }

    /// With an annotation.
    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.spec(|spec| spec["annotations"][key] = value.into())
    }

    /// In the pod `group`.
    pub fn group(self, group: &str) -> Self {
        self.annotation("io.containerd.runc.v2.group", group)
    }

    /// Without a pid namespace of its own.
    pub fn host_pids(self) -> Self {
        self.spec(|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "pid");
        })
    }

    /// With the limits `resources`.
    pub fn resources(self, resources: Value) -> Self {
        self.spec(|spec| spec["linux"]["resources"] = resources)
    }

    /// In a user namespace, root being `host_id` outside.
    pub fn user_namespace(self, host_id: u32) -> Self {
        self.spec(|spec| {
            let mapping = json!([{"containerID": 0, "hostID": host_id, "size": 1000}]);
            spec["linux"]["uidMappings"] = mapping.clone();
            spec["linux"]["gidMappings"] = mapping;
            spec["linux"]["namespaces"]
                .as_array_mut()
                .unwrap()
                .push(json!({"type": "user"}));
        })
    }

    pub fn stdio(mut self, stdio: Stdio) -> Self {
        self.spec["process"]["terminal"] = stdio.terminal.into();
        self.stdio = stdio;
        self
    }

    /// With the default options but for `change`.
    pub fn options(self, change: impl FnOnce(&mut runc::Options)) -> Self {
        let mut options = self.daemon.options();
        change(&mut options);
        self.raw_options(Some(any("containerd.runc.v1.Options", &options)))
    }

    pub fn raw_options(mut self, options: Option<Any>) -> Self {
        self.options = options;
        self
    }

    /// With these mounts for a rootfs instead of busybox.
    pub fn mounts(mut self, mounts: Vec<Mount>) -> Self {
        self.mounts = mounts;
        self
    }

    /// To go on from `image`, in the cgroup that it was made in: on v2 CRIU restores into
    /// the one that the image names, whatever the runtime is told.
    pub fn restored_from(mut self, image: &Path, cgroup: &str) -> Self {
        self.checkpoint = image.to_str().unwrap().into();
        self.in_cgroup(cgroup)
    }

    /// In this cgroup, which nobody else has.
    pub fn in_cgroup(mut self, cgroup: &str) -> Self {
        self.cgroup = cgroup.into();
        self.spec(|spec| spec["linux"]["cgroupsPath"] = cgroup.into())
    }

    /// Makes the bundle, as the daemon does before it calls the shim.
    pub fn bundle(&self) -> PathBuf {
        let dir = self.daemon.bundles_dir().join(&self.id);
        fs::create_dir_all(dir.join("rootfs")).expect("make the bundle");
        make_fifo(&dir.join("log"));
        let work = self.daemon.path(&format!("{}-work", self.id));
        fs::create_dir(&work).expect("make the work directory");
        std::os::unix::fs::symlink(&work, dir.join("work")).expect("link the work directory");
        let spec = serde_json::to_vec_pretty(&self.spec).unwrap();
        fs::write(dir.join("config.json"), spec).expect("write config.json");
        self.daemon.keep(&self.id, &self.cgroup);
        dir
    }

    /// Makes the bundle and starts the shim; nothing is created yet.
    #[track_caller]
    pub fn shim(self) -> Container<'d> {
        self.shim_in(Dialect::Legacy)
    }

    /// As [`Builder::shim`], as a daemon that speaks `dialect`.
    #[track_caller]
    pub fn shim_in(self, dialect: Dialect) -> Container<'d> {
        let (daemon, bundle) = (self.daemon, self.bundle());
        let output = daemon.start(dialect, &self.id, &bundle, self.options.clone());
        let started = daemon.answer(dialect, &output);
        let connection =
            Connection::open(&started.address, daemon.hang_timeout).expect("dial the shim");
        let (api, container) = (daemon.api, self.id.clone());
        let init = Process {
            connection,
            api,
            container,
            exec: String::new(),
        };
        let shim_pid = init.connect().expect("Connect").shim_pid as i32;
        Container {
            daemon,
            init,
            bundle,
            started,
            shim_pid,
            request: self,
        }
    }

    /// Makes the bundle of a container in `sandbox`, whose server is there; nothing is created
    /// yet. As containerd, with a connection of its own.
    #[allow(dead_code, reason = "tests/faults has no sandboxes")]
    pub fn in_sandbox(self, sandbox: &super::sandbox::Sandbox<'d>) -> Container<'d> {
        let (daemon, bundle) = (self.daemon, self.bundle());
        let started = sandbox.started.clone();
        let connection = Connection::open(&started.address, daemon.hang_timeout).expect("dial");
        let init = Process {
            connection,
            api: daemon.api,
            container: self.id.clone(),
            exec: String::new(),
        };
        Container {
            daemon,
            init,
            bundle,
            started,
            shim_pid: sandbox.shim_pid,
            request: self,
        }
    }

    /// Starts the shim and creates the container.
    #[track_caller]
    pub fn created(self) -> Container<'d> {
        let container = self.shim();
        container.create().expect("Create");
        container
    }

    /// Starts the shim, creates the container and starts it.
    #[track_caller]
    pub fn run(self) -> Container<'d> {
        let container = self.created();
        container.start().expect("Start");
        container
    }
}

/// A container, or at least its shim.
pub struct Container<'d> {
    pub daemon: &'d Daemon,
    init: Process,
    pub bundle: PathBuf,
    pub started: Started,
    pub shim_pid: i32,
    request: Builder<'d>,
}

impl Deref for Container<'_> {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.init
    }
}

impl Container<'_> {
    /// The request that [`Container::create`] sends.
    pub fn create_request(&self) -> task::CreateTaskRequest {
        let Builder {
            stdio,
            options,
            mounts,
            checkpoint,
            ..
        } = &self.request;
        task::CreateTaskRequest {
            id: self.container.clone(),
            bundle: self.bundle.to_str().unwrap().into(),
            rootfs: mounts.clone(),
            terminal: stdio.terminal,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            options: options.clone().into(),
            checkpoint: checkpoint.clone(),
            ..Default::default()
        }
    }

    /// Creates the container: its pid.
    pub fn create(&self) -> Result<u32, Failure> {
        let answer: Result<task::CreateTaskResponse, _> =
            self.call("Create", &self.create_request());
        answer.map(|answer| answer.pid)
    }

    /// As [`Container::create`], awaited later.
    pub fn create_pending(&self) -> Pending<task::CreateTaskResponse> {
        self.send("Create", &self.create_request())
    }

    /// Adds an exec of `args`, without stdio.
    pub fn exec(&self, id: &str, args: &[&str]) -> Result<Process, Failure> {
        self.exec_with(id, args, &Stdio::default())
    }

    /// Adds an exec of `args`.
    pub fn exec_with(&self, id: &str, args: &[&str], stdio: &Stdio) -> Result<Process, Failure> {
        let spec = serde_json::to_vec(&bundle::process(args)).unwrap();
        self.exec_request(&self.exec_message(id, spec, stdio))?;
        Ok(self.process(id))
    }

    /// The request for an exec with `spec` for its process.
    pub fn exec_message(&self, id: &str, spec: Vec<u8>, stdio: &Stdio) -> task::ExecProcessRequest {
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: spec,
            ..Default::default()
        };
        task::ExecProcessRequest {
            id: self.container.clone(),
            exec_id: id.into(),
            terminal: stdio.terminal,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            spec: Some(spec).into(),
            ..Default::default()
        }
    }

    /// Another connection to the same server.
    pub fn reconnect(&self) -> std::sync::Arc<Connection> {
        Connection::open(&self.started.address, self.daemon.hang_timeout).expect("dial the shim")
    }

    /// The cgroup that `config.json` names.
    pub fn cgroup(&self) -> &str {
        &self.request.cgroup
    }

    /// The socket's file.
    pub fn socket(&self) -> &Path {
        Path::new(self.started.address.strip_prefix("unix://").unwrap())
    }

    /// Waits for the end of the shim's server: its exit code, or 128 + signal.
    #[track_caller]
    pub fn shim_exit(&self) -> i32 {
        process::wait(self.shim_pid, "the shim", self.daemon.hang_timeout)
    }

    /// As when the shim crashes.
    #[track_caller]
    pub fn kill_shim(&self) {
        process::signal(self.shim_pid, Signal::SIGKILL);
        assert_eq!(self.shim_exit(), 128 + 9);
    }

    /// Kills init and waits for its exit.
    #[track_caller]
    pub fn end(&self) {
        self.kill(9).expect("Kill");
        assert_eq!(self.exit_status(), 128 + 9);
    }

    /// Deletes a container that has exited or not been started, shuts the shim down,
    /// and asserts that both are gone without a trace.
    #[track_caller]
    pub fn finish(&self) {
        self.delete().expect("Delete");
        self.shut_down();
    }

    /// Shuts the shim down, which has no container any more: nothing may be left.
    #[track_caller]
    pub fn shut_down(&self) {
        // It may end before its answer is read; how it ended is looked at below.
        let _ = self.shutdown();
        assert_eq!(self.shim_exit(), 0, "the shim's exit code");
        assert!(
            !self.socket().exists(),
            "the socket {} was left",
            self.started.address
        );
        self.assert_gone();
    }

    /// Asserts that nothing is left of the container.
    #[track_caller]
    pub fn assert_gone(&self) {
        assert_eq!(self.daemon.leftovers(&self.container), Vec::<String>::new());
    }
}

/// A packed message.
pub fn any(type_url: &str, message: &impl Message) -> Any {
    let value = message.write_to_bytes().unwrap();
    Any {
        type_url: type_url.into(),
        value,
        ..Default::default()
    }
}

/// FIFOs for a process's stdio, and what reads them.
pub struct Fifos {
    pub stdio: Stdio,
    pub stdout: Reader,
    /// `None` with a terminal.
    pub stderr: Option<Reader>,
}

impl Daemon {
    /// FIFOs for all three, named after `name`, read from now on.
    pub fn fifos(&self, name: &str) -> Fifos {
        self.some_fifos(name, false)
    }

    /// FIFOs for stdin and stdout of a terminal.
    pub fn terminal(&self, name: &str) -> Fifos {
        self.some_fifos(name, true)
    }

    /// A new FIFO's path.
    pub fn fifo(&self, name: &str) -> String {
        let path = self.path("io").join(name);
        make_fifo(&path);
        path.to_str().unwrap().into()
    }

    /// Reads a FIFO.
    pub fn read(&self, fifo: &str) -> Reader {
        Reader::open(Path::new(fifo), self.hang_timeout)
    }

    /// Reads a FIFO, when asked to.
    pub fn tap(&self, fifo: &str) -> Tap {
        Tap::open(Path::new(fifo), self.hang_timeout)
    }

    /// Writes to a FIFO.
    pub fn write(&self, fifo: &str) -> File {
        writer(Path::new(fifo), self.hang_timeout)
    }

    fn some_fifos(&self, name: &str, terminal: bool) -> Fifos {
        let fifo = |stream: &str| self.fifo(&format!("{name}-{stream}"));
        let stderr = if terminal {
            String::new()
        } else {
            fifo("stderr")
        };
        let stdio = Stdio {
            stdin: fifo("stdin"),
            stdout: fifo("stdout"),
            stderr,
            terminal,
        };
        let stdout = self.read(&stdio.stdout);
        let stderr = (!terminal).then(|| self.read(&stdio.stderr));
        Fifos {
            stdio,
            stdout,
            stderr,
        }
    }
}
