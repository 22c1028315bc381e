//! CRI's sandbox controller, as a shim sees it: the bundle of a pod without a pause container,
//! and the calls of the Sandbox service.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use containerd_shim_rs_v2::proto::podsandbox::{
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption, PodSandboxConfig,
};
use containerd_shim_rs_v2::proto::sandbox::{
    CreateSandboxRequest, PlatformResponse, SandboxMetricsResponse, SandboxRequest,
    SandboxStatusRequest, SandboxStatusResponse, StartSandboxResponse, WaitSandboxResponse,
};
use containerd_shim_rs_v2::proto::{Empty, Message};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::container::{Builder, any};
use super::daemon::{Daemon, Dialect, Started};
use super::machine::mounts_below;
use super::process;
use super::rpc::{Connection, Failure, Pending};
use super::stdio::make_fifo;

const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";
const CONTROLLER: &str = "io.containerd.sandbox.controller.v1.shim";
const CRI: &str = "io.containerd.grpc.v1.cri/sandboxes";

/// CRI's `NamespaceMode`.
pub const POD: i32 = 0;
pub const CONTAINER: i32 = 1;
pub const NODE: i32 = 2;

/// The server of a sandbox. Dropped, it takes along what it left.
pub struct Sandbox<'d> {
    pub daemon: &'d Daemon,
    pub id: String,
    pub bundle: PathBuf,
    pub started: Started,
    pub connection: Arc<Connection>,
    pub shim_pid: i32,
    network: Network,
}

/// A network namespace of the test's own, and the process in it.
struct Network(i32);

impl Network {
    #[expect(clippy::zombie_processes, reason = "the ledger of `process` reaps it")]
    fn new() -> Network {
        let mut command = Command::new("unshare");
        command
            .args(["--net", "sh", "-c", "echo; exec sleep inf"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = process::spawn(&mut command);
        let mut line = [0];
        let stdout = child.stdout.as_mut().expect("a pipe");
        stdout
            .read_exact(&mut line)
            .expect("make a network namespace");
        Network(child.id() as i32)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        process::signal(self.0, Signal::SIGKILL);
    }
}

/// A pod whose containers have pids of their own, as Kubernetes' are.
pub fn config() -> PodSandboxConfig {
    config_of(POD, CONTAINER, POD)
}

/// A pod with these modes of its namespaces of network, pids and IPC.
pub fn config_of(network: i32, pid: i32, ipc: i32) -> PodSandboxConfig {
    let namespaces = NamespaceOption {
        network,
        pid,
        ipc,
        ..Default::default()
    };
    let security = LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces).into(),
        ..Default::default()
    };
    let linux = LinuxPodSandboxConfig {
        security_context: Some(security).into(),
        ..Default::default()
    };
    PodSandboxConfig {
        hostname: if network == NODE { "" } else { "pod-name" }.into(),
        linux: Some(linux).into(),
        ..Default::default()
    }
}

/// The inode of a namespace of a process or thread.
pub fn namespace(pid: u32, kind: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()
}

impl Daemon {
    /// The bundle of a sandbox, as containerd makes it.
    pub fn sandbox_bundle(&self, id: &str) -> PathBuf {
        let place = Path::new(CONTROLLER).join(&self.namespace).join(id);
        let bundle = self.path("").join(&place);
        let work = self.path("root").join(&place);
        fs::create_dir_all(bundle.join("rootfs")).expect("make the bundle");
        fs::create_dir_all(&work).expect("make the work directory");
        std::os::unix::fs::symlink(&work, bundle.join("work")).expect("link the work directory");
        make_fifo(&bundle.join("log"));
        self.keep_in(&bundle, id, "");
        bundle
    }

    /// Starts the server of a sandbox; there is no sandbox yet.
    #[track_caller]
    pub fn sandbox(&self, id: &str) -> Sandbox<'_> {
        self.sandbox_in(id, Dialect::Legacy)
    }

    /// As [`Daemon::sandbox`], as a daemon that speaks `dialect`.
    #[track_caller]
    pub fn sandbox_in(&self, id: &str, dialect: Dialect) -> Sandbox<'_> {
        let bundle = self.sandbox_bundle(id);
        let options = any("containerd.runc.v1.Options", &self.options());
        let output = self.start(dialect, id, &bundle, Some(options));
        let started = self.answer(dialect, &output);
        let connection = Connection::open(&started.address, self.hang_timeout).expect("dial");
        let mut sandbox = Sandbox {
            daemon: self,
            id: id.into(),
            bundle,
            started,
            connection,
            shim_pid: 0,
            network: Network::new(),
        };
        let task = sandbox.task();
        sandbox.shim_pid = task.connect().expect("Connect").shim_pid as i32;
        sandbox
    }

    /// A sandbox that is ready.
    #[track_caller]
    pub fn pod(&self, id: &str, config: &PodSandboxConfig) -> Sandbox<'_> {
        let sandbox = self.sandbox(id);
        sandbox.create(config).expect("CreateSandbox");
        sandbox.start().expect("StartSandbox");
        sandbox
    }
}

impl<'d> Sandbox<'d> {
    /// The task of the sandbox's own ID, which does not exist.
    pub fn task(&self) -> super::task::Process {
        super::task::Process {
            connection: self.connection.clone(),
            api: self.daemon.api,
            container: self.id.clone(),
            exec: String::new(),
        }
    }

    pub fn send<A: Message>(&self, method: &str, request: &impl Message) -> Pending<A> {
        let timeout = 2 * self.connection.hang_timeout;
        self.connection.send(SERVICE, method, request, timeout)
    }

    fn call<A: Message>(&self, method: &str) -> Result<A, Failure> {
        self.pending(method).wait()
    }

    pub fn pending<A: Message>(&self, method: &str) -> Pending<A> {
        let request = SandboxRequest {
            sandbox_id: self.id.clone(),
            ..Default::default()
        };
        self.send(method, &request)
    }

    /// The file of the network namespace that was made for the pod.
    pub fn netns(&self) -> String {
        format!("/proc/{}/ns/net", self.network.0)
    }

    pub fn create(&self, config: &PodSandboxConfig) -> Result<Empty, Failure> {
        let linux = config
            .linux
            .as_ref()
            .and_then(|l| l.security_context.as_ref());
        let namespaces = linux.and_then(|security| security.namespace_options.as_ref());
        let is_nodes = namespaces.is_some_and(|namespaces| namespaces.network == NODE);
        let request = CreateSandboxRequest {
            sandbox_id: self.id.clone(),
            bundle_path: self.bundle.to_str().unwrap().into(),
            options: Some(any("runtime.v1.PodSandboxConfig", config)).into(),
            netns_path: if is_nodes {
                String::new()
            } else {
                self.netns()
            },
            ..Default::default()
        };
        self.send("CreateSandbox", &request).wait()
    }

    pub fn start(&self) -> Result<StartSandboxResponse, Failure> {
        self.call("StartSandbox")
    }

    pub fn stop(&self) -> Result<Empty, Failure> {
        self.call("StopSandbox")
    }

    pub fn shut_down(&self) -> Result<Empty, Failure> {
        self.call("ShutdownSandbox")
    }

    pub fn ping(&self) -> Result<Empty, Failure> {
        self.call("PingSandbox")
    }

    pub fn platform(&self) -> Result<PlatformResponse, Failure> {
        self.call("Platform")
    }

    pub fn metrics(&self) -> Result<SandboxMetricsResponse, Failure> {
        self.call("SandboxMetrics")
    }

    pub fn wait_pending(&self) -> Pending<WaitSandboxResponse> {
        self.pending("WaitSandbox")
    }

    pub fn status(&self) -> Result<SandboxStatusResponse, Failure> {
        let request = SandboxStatusRequest {
            sandbox_id: self.id.clone(),
            verbose: true,
            ..Default::default()
        };
        self.send("SandboxStatus", &request).wait()
    }

    /// The state's name alone.
    #[track_caller]
    pub fn state(&self) -> String {
        self.status().expect("SandboxStatus").state
    }

    /// The pid whose namespaces are the pod's.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.status().expect("SandboxStatus").pid
    }

    /// A container of the pod, with namespaces as CRI gives them. Its options have no more than
    /// what containerd 2.1 sends.
    pub fn container(&self, id: &str, script: &str) -> Builder<'d> {
        let pid = self.pid();
        let path = |kind: &str| format!("/proc/{pid}/ns/{kind}");
        let mut namespaces = vec![
            json!({"type": "mount"}),
            json!({"type": "network", "path": path("net")}),
            json!({"type": "ipc", "path": path("ipc")}),
            json!({"type": "uts", "path": path("uts")}),
        ];
        let shares_pids = self.init().is_some();
        namespaces.push(match shares_pids {
            true => json!({"type": "pid", "path": path("pid")}),
            false => json!({"type": "pid"}),
        });
        let shm = self.cri_state().join("shm");
        let builder = self.daemon.shell(id, script).spec(|spec| {
            spec["linux"]["namespaces"] = namespaces.into();
            if shm.exists() {
                let mount = json!({"destination": "/dev/shm", "type": "bind", "source": shm,
                    "options": ["rbind", "rw"]});
                spec["mounts"].as_array_mut().unwrap().push(mount);
            }
        });
        let options = containerd_shim_rs_v2::proto::runc::Options {
            task_api_address: self.started.address.clone(),
            task_api_version: 3,
            ..Default::default()
        };
        builder.raw_options(Some(any("containerd.runc.v1.Options", &options)))
    }

    /// The pod's init, by the record for `delete`.
    pub fn init(&self) -> Option<i32> {
        let text = fs::read(self.bundle.join("sandbox.json")).ok()?;
        let record: Value = serde_json::from_slice(&text).expect("a record in JSON");
        record["init"]["pid"].as_i64().map(|pid| pid as i32)
    }

    /// Where CRI has the files of the sandbox.
    pub fn cri_root(&self) -> PathBuf {
        self.daemon.path("root").join(CRI).join(&self.id)
    }

    /// Where it has the mount for `/dev/shm`.
    pub fn cri_state(&self) -> PathBuf {
        self.daemon.path(CRI).join(&self.id)
    }

    /// Waits for the end of the shim's server: its exit code, or 128 + signal.
    #[track_caller]
    pub fn shim_exit(&self) -> i32 {
        process::wait(self.shim_pid, "the shim", self.daemon.hang_timeout)
    }

    /// Runs `delete` for the sandbox, which has to succeed and to have nothing to say.
    #[track_caller]
    pub fn delete(&self) {
        let mut command = self.daemon.command(&self.id, &self.bundle);
        command.arg("-bundle").arg(&self.bundle).arg("delete");
        let output = process::run(&mut command, &[], self.daemon.hang_timeout);
        assert_eq!((output.status, output.stderr_text().as_str()), (0, ""));
    }

    /// Stops and removes the sandbox, as CRI does; nothing may be left.
    #[track_caller]
    pub fn finish(&self) {
        self.stop().expect("StopSandbox");
        self.shut_down().expect("ShutdownSandbox");
        assert_eq!(self.shim_exit(), 0, "the shim's exit code");
        let socket = self.started.address.trim_start_matches("unix://");
        assert!(!Path::new(socket).exists(), "the socket {socket} was left");
        self.delete();
        self.assert_gone();
    }

    /// Asserts that nothing is left of the sandbox.
    #[track_caller]
    pub fn assert_gone(&self) {
        let mut left: Vec<PathBuf> = mounts_below(self.daemon.path("").as_path());
        left.extend(
            [self.cri_root(), self.cri_state()]
                .into_iter()
                .filter(|path| path.exists()),
        );
        assert_eq!(left, Vec::<PathBuf>::new());
        if let Some(init) = self.init() {
            self.daemon
                .eventually("the pod's init is gone", || !process::alive(init));
        }
    }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        if let Some(init) = self.init() {
            process::signal(init, Signal::SIGKILL);
        }
        for mount in mounts_below(&self.daemon.path("")).iter().rev() {
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
    }
}
