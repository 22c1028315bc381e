//! Pods and containers through CRI, each call bounded in time, with one runtime handler.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use prost::Message;

use crate::grpc::{self, Status};
use crate::messages::*;
use crate::world;

const IMAGE: &str = "localhost/busybox:latest";
const PAUSE: &str = "localhost/pause:latest";

/// A client of CRI that runs pods with one runtime handler.
pub struct Cri {
    /// The containerd: 1.6, 1.7 or 2.
    pub version: &'static str,
    /// The runtime handler.
    pub handler: String,
    /// How many containers were made: their names differ.
    containers: AtomicU32,
}

/// A pod that runs.
pub struct Pod<'a> {
    cri: &'a Cri,
    pub id: String,
    config: PodSandboxConfig,
}

/// A container of a pod.
pub struct Container<'a> {
    cri: &'a Cri,
    pub id: String,
    /// Where its log is.
    pub log: String,
}

impl Cri {
    /// A client for pods of this handler, once the images are known to CRI.
    pub fn new(version: &'static str, handler: &str) -> Self {
        let cri = Self {
            version,
            handler: handler.to_owned(),
            containers: AtomicU32::new(0),
        };
        for image in [IMAGE, PAUSE] {
            world::until(&format!("CRI to know {image}"), || cri.has_image(image));
        }
        cri
    }

    /// Whether the handler is one of our shim's.
    pub fn is_ours(&self) -> bool {
        self.handler != "runc"
    }

    fn has_image(&self, image: &str) -> bool {
        let image = Some(ImageSpec {
            image: image.to_owned(),
        });
        let method = "runtime.v1.ImageService/ImageStatus";
        let status: Result<ImageStatusResponse, _> =
            grpc::call(method, &ImageStatusRequest { image }, world::limit());
        status.is_ok_and(|status| status.image.is_some())
    }

    /// Calls a method of the RuntimeService, whatever its end.
    pub fn call<Answer: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<Answer, Status> {
        let method = format!("runtime.v1.RuntimeService/{method}");
        // Thirty calls at once take their time; each shim's own limits are shorter.
        grpc::call(&method, request, world::limit() * 2)
    }

    /// Calls a method of the RuntimeService, which must succeed.
    pub fn ok<Answer: Message + Default>(&self, method: &str, request: &impl Message) -> Answer {
        let answer = self.call(method, request);
        answer.unwrap_or_else(|status| panic!("{method}: {status:?}"))
    }

    /// Runs a pod as Kubernetes does by default: each container has pids of its own.
    pub fn run_pod(&self, name: &str) -> Pod<'_> {
        let pid = NamespaceMode::Container as i32;
        let own = NamespaceOption {
            pid,
            ..NamespaceOption::default()
        };
        self.run_pod_with(name, security(own))
    }

    /// Runs a pod.
    pub fn run_pod_with(&self, name: &str, security: LinuxSandboxSecurityContext) -> Pod<'_> {
        self.try_run_pod(name, security)
            .unwrap_or_else(|status| panic!("RunPodSandbox {name}: {status:?}"))
    }

    /// Runs a pod, whatever its end. Its logs are in /run/containerd/logs/NAME.
    pub fn try_run_pod(
        &self,
        name: &str,
        security: LinuxSandboxSecurityContext,
    ) -> Result<Pod<'_>, Status> {
        self.try_run_pod_with(name, security, &[])
    }

    /// As [`Cri::try_run_pod`], with these kernel parameters.
    pub fn try_run_pod_with(
        &self,
        name: &str,
        security: LinuxSandboxSecurityContext,
        sysctls: &[(&str, &str)],
    ) -> Result<Pod<'_>, Status> {
        // With the node's network a pod has the node's hostname, too.
        let namespaces = security.namespace_options.as_ref();
        let network = namespaces.map_or(NamespaceMode::Pod, NamespaceOption::network);
        let has_hostname = network == NamespaceMode::Pod;
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
            }),
            hostname: if has_hostname { name } else { "" }.to_owned(),
            log_directory: format!("/run/containerd/logs/{name}"),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", world::namespace()),
                security_context: Some(security),
                sysctls: sysctls
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect(),
            }),
        };
        fs::create_dir_all(&config.log_directory).expect("make the directory of the logs");
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: self.handler.clone(),
        };
        let answer: PodSandboxId = self.call("RunPodSandbox", &request)?;
        Ok(Pod {
            cri: self,
            id: answer.pod_sandbox_id,
            config,
        })
    }

    /// All pods that are there, with their state.
    pub fn pods(&self) -> Vec<PodSandbox> {
        let list: ListPodSandboxResponse = self.ok("ListPodSandbox", &Empty {});
        list.items
    }

    /// Stops and removes all pods.
    pub fn remove_pods(&self) {
        at_once(self.pods(), |pod| {
            let id = PodSandboxId {
                pod_sandbox_id: pod.id,
            };
            let _: Empty = self.ok("StopPodSandbox", &id);
            let _: Empty = self.ok("RemovePodSandbox", &id);
        });
    }
}

impl<'a> Pod<'a> {
    /// Creates and starts a container that runs `script`.
    pub fn run(&self, script: &str) -> Container<'a> {
        self.run_with(script, |_| {})
    }

    /// Creates and starts a container; `change` changes its configuration.
    pub fn run_with(
        &self,
        script: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Container<'a> {
        let container = self.create(script, change);
        let _: Empty = self.cri.ok("StartContainer", &container.by_id());
        container
    }

    /// Creates a container.
    pub fn create(&self, script: &str, change: impl FnOnce(&mut ContainerConfig)) -> Container<'a> {
        let container = self.try_create(script, change);
        container.unwrap_or_else(|status| panic!("CreateContainer {script}: {status:?}"))
    }

    /// Creates a container, whatever its end.
    pub fn try_create(
        &self,
        script: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Result<Container<'a>, Status> {
        let number = self.cri.containers.fetch_add(1, Ordering::Relaxed);
        let name = format!("container-{number}");
        let mut config = ContainerConfig {
            image: Some(ImageSpec {
                image: IMAGE.to_owned(),
            }),
            command: ["sh", "-c", script].map(str::to_owned).into(),
            log_path: format!("{name}.log"),
            metadata: Some(ContainerMetadata { name, attempt: 0 }),
            linux: Some(LinuxContainerConfig {
                resources: None,
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(self.namespaces()),
                    privileged: false,
                }),
            }),
            ..ContainerConfig::default()
        };
        change(&mut config);
        let log = format!("{}/{}", self.config.log_directory, config.log_path);
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let answer: ContainerId = self.cri.call("CreateContainer", &request)?;
        Ok(Container {
            cri: self.cri,
            id: answer.container_id,
            log,
        })
    }

    /// The namespaces that the pod was made with.
    fn namespaces(&self) -> NamespaceOption {
        let linux = self.config.linux.as_ref();
        linux
            .and_then(|linux| linux.security_context.clone()?.namespace_options)
            .expect("each pod has namespace options")
    }

    /// The request with the pod's id.
    pub fn by_id(&self) -> PodSandboxId {
        PodSandboxId {
            pod_sandbox_id: self.id.clone(),
        }
    }

    /// What PodSandboxStatus answers.
    pub fn status(&self) -> PodSandboxStatus {
        let answer: PodSandboxStatusResponse = self.cri.ok("PodSandboxStatus", &self.by_id());
        answer.status.expect("a status")
    }

    /// Stops the pod.
    pub fn stop(&self) {
        let _: Empty = self.cri.ok("StopPodSandbox", &self.by_id());
    }

    /// Removes the stopped pod.
    pub fn remove(&self) {
        let _: Empty = self.cri.ok("RemovePodSandbox", &self.by_id());
    }
}

impl Container<'_> {
    /// The request with the container's id.
    pub fn by_id(&self) -> ContainerId {
        ContainerId {
            container_id: self.id.clone(),
        }
    }

    /// What ContainerStatus answers.
    pub fn status(&self) -> ContainerStatus {
        self.answer(false).status.expect("a status")
    }

    fn answer(&self, verbose: bool) -> ContainerStatusResponse {
        let request = ContainerStatusRequest {
            container_id: self.id.clone(),
            verbose,
        };
        self.cri.ok("ContainerStatus", &request)
    }

    /// The pid of its first process.
    pub fn pid(&self) -> i32 {
        let info = &self.answer(true).info["info"];
        let info: serde_json::Value = serde_json::from_str(info).expect("JSON");
        let pid = info["pid"].as_i64().expect("a pid");
        i32::try_from(pid).expect("a pid")
    }

    /// Waits until it has exited; returns the exit code and the reason.
    pub fn wait(&self) -> (i32, String) {
        let mut last = ContainerStatus::default();
        world::until("the container to exit", || {
            last = self.status();
            last.state() == ContainerState::Exited
        });
        assert_ne!(last.finished_at, 0, "{last:?}");
        (last.exit_code, last.reason)
    }

    /// Starts it, whatever its end.
    pub fn start(&self) -> Result<Empty, Status> {
        self.cri.call("StartContainer", &self.by_id())
    }

    /// Stops it: SIGKILL follows SIGTERM after `seconds`.
    pub fn stop(&self, seconds: i64) {
        let request = StopContainerRequest {
            container_id: self.id.clone(),
            timeout: seconds,
        };
        let _: Empty = self.cri.ok("StopContainer", &request);
    }

    /// Removes it.
    pub fn remove(&self) {
        let _: Empty = self.cri.ok("RemoveContainer", &self.by_id());
    }

    /// Executes `script`, whatever its end; a `timeout` of no seconds is none.
    pub fn try_exec(&self, script: &str, timeout: i64) -> Result<ExecSyncResponse, Status> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: ["sh", "-c", script].map(str::to_owned).into(),
            timeout,
        };
        self.cri.call("ExecSync", &request)
    }

    /// Executes `script`, which must succeed; returns its output.
    pub fn exec(&self, script: &str) -> String {
        let done = self.try_exec(script, 0);
        let done = done.unwrap_or_else(|status| panic!("ExecSync {script}: {status:?}"));
        assert_eq!(done.exit_code, 0, "{script}: {done:?}");
        String::from_utf8(done.stdout).expect("UTF-8")
    }

    /// The texts of the log's lines; each must have the form that Kubernetes reads.
    pub fn log_lines(&self) -> Vec<String> {
        log_lines(&self.log)
    }

    /// Waits until the log has this line.
    pub fn until_log(&self, line: &str) {
        let what = format!("{line:?} in {}", self.log);
        world::until(&what, || self.log_lines().iter().any(|found| found == line));
    }
}

/// The security context of a pod with these namespaces.
pub fn security(namespaces: NamespaceOption) -> LinuxSandboxSecurityContext {
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces),
        privileged: false,
    }
}

/// The texts of the lines of a log, as `STREAM TEXT`. A line that is not complete yet is left out.
pub fn log_lines(path: &str) -> Vec<String> {
    let log = fs::read_to_string(path).unwrap_or_default();
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    whole
        .lines()
        .map(|line| {
            let words: Vec<_> = line.splitn(4, ' ').collect();
            let [time, stream, "F", text] = words[..] else {
                panic!("a line of a log: {line:?}");
            };
            assert!(time.contains('T') && time.contains(':'), "{line:?}");
            format!("{stream} {text}")
        })
        .collect()
}

/// Does `work` for all `items` at once; fails if any fails.
pub fn at_once<Item: Send, Done: Send>(
    items: impl IntoIterator<Item = Item>,
    work: impl Fn(Item) -> Done + Sync,
) -> Vec<Done> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = items
            .into_iter()
            .map(|item| scope.spawn(move || work(item)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("each thread's work"))
            .collect()
    })
}
