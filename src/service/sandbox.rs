//! The Sandbox service, `containerd.runtime.sandbox.v1.Sandbox`: decode, call, encode.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::convert;
use super::lifetime::Lifetime;
use super::task::{later, now};
use super::{Answer, Work};
use crate::cancel::Cancel;
use crate::cgroup;
use crate::error::{Error, Kind, Result};
use crate::local;
use crate::proto::sandbox::{
    CreateSandboxRequest, Metric, Platform, PlatformResponse, SandboxMetricsResponse,
    SandboxRequest, SandboxStatusRequest, SandboxStatusResponse, StartSandboxResponse,
    WaitSandboxResponse,
};
use crate::proto::{Any, Empty, timestamp};
use crate::sandbox::{Config, Mode, Sandbox, State, Status};
use crate::ttrpc::server::Call;

/// The type of the specification that StartSandbox answers.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// The Sandbox service of this shim.
pub struct SandboxService {
    sandbox: Rc<Sandbox>,
    lifetime: Rc<Lifetime>,
}

impl SandboxService {
    /// A service for `sandbox`.
    pub fn new(sandbox: Rc<Sandbox>, lifetime: Rc<Lifetime>) -> SandboxService {
        SandboxService { sandbox, lifetime }
    }

    /// Begins one call.
    pub fn call(self: &Rc<Self>, call: &Call) -> Result<Work> {
        let payload = &call.payload;
        match call.method.as_str() {
            "Platform" => now(payload, |r| self.platform(r)),
            "PingSandbox" => now(payload, |r| self.ping(r)),
            "SandboxMetrics" => now(payload, |r| self.metrics(r)),
            "SandboxStatus" => later(payload, |r| self.clone().status(r)).map(Work::Waits),
            "WaitSandbox" => later(payload, |r| self.clone().wait(r)).map(Work::Waits),
            _ => Work::changes(|cancel| self.clone().change(call, cancel)),
        }
    }

    /// A call that changes something, until `cancel` cuts it short.
    fn change(self: Rc<Self>, call: &Call, cancel: Cancel) -> Result<Answer> {
        let payload = &call.payload;
        match call.method.as_str() {
            "CreateSandbox" => later(payload, |r| self.create(r)),
            "StartSandbox" => later(payload, |r| self.start(r, cancel)),
            "StopSandbox" => later(payload, |r| self.stop(r)),
            "ShutdownSandbox" => later(payload, |r| self.shut_down(r, cancel)),
            method => Err(Error::new(Kind::Unimplemented, format!("method {method}"))),
        }
    }

    async fn create(self: Rc<Self>, request: CreateSandboxRequest) -> Result<Empty> {
        if self.lifetime.is_ending() {
            let message = "create sandbox: the shim is shutting down";
            return Err(Error::new(Kind::Unavailable, message));
        }
        let config = convert::sandbox_config(&request)?;
        self.sandbox.create(&request.sandbox_id, config).await?;
        Ok(Empty::new())
    }

    async fn start(
        self: Rc<Self>,
        request: SandboxRequest,
        cancel: Cancel,
    ) -> Result<StartSandboxResponse> {
        self.sandbox.check_id(&request.sandbox_id)?;
        self.sandbox.start(&cancel).await?;
        let status = self.sandbox.status();
        let spec = Any {
            type_url: SPEC_TYPE.to_owned(),
            value: self.spec(&status).to_string().into(),
            ..Default::default()
        };
        Ok(StartSandboxResponse {
            pid: status.pid,
            created_at: Some(timestamp(status.created_at)).into(),
            spec: Some(spec).into(),
            ..Default::default()
        })
    }

    fn platform(&self, request: SandboxRequest) -> Result<PlatformResponse> {
        self.sandbox.check_id(&request.sandbox_id)?;
        // Go's names.
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform = Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            ..Default::default()
        };
        Ok(PlatformResponse {
            platform: Some(platform).into(),
            ..Default::default()
        })
    }

    fn ping(&self, request: SandboxRequest) -> Result<Empty> {
        self.sandbox.check_id(&request.sandbox_id)?;
        Ok(Empty::new())
    }

    /// Never an error for lack of figures: one would be containerd's for the statistics of all
    /// pods.
    fn metrics(&self, request: SandboxRequest) -> Result<SandboxMetricsResponse> {
        self.sandbox.check_id(&request.sandbox_id)?;
        let parent = self.sandbox.status().config.cgroup_parent.clone();
        let metric = Metric {
            timestamp: Some(timestamp(Some(SystemTime::now()))).into(),
            id: request.sandbox_id,
            data: Some(cgroup::stats_of_parent(&parent)?).into(),
            ..Default::default()
        };
        Ok(SandboxMetricsResponse {
            metrics: Some(metric).into(),
            ..Default::default()
        })
    }

    async fn status(
        self: Rc<Self>,
        request: SandboxStatusRequest,
    ) -> Result<SandboxStatusResponse> {
        self.sandbox.check_id(&request.sandbox_id)?;
        // containerd asks before it creates a container, and then looks for the files.
        if let Err(error) = self.sandbox.heal().await {
            log::error!(id = request.sandbox_id; "make the files of the sandbox again: {error}");
        }
        let status = self.sandbox.status();
        let mut info = HashMap::new();
        if request.verbose {
            info.insert("info".to_owned(), self.info(&status).to_string());
        }
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: status.pid,
            state: state_name(status.state).to_owned(),
            info,
            created_at: Some(timestamp(status.created_at)).into(),
            exited_at: status.exit.map(|exit| timestamp(Some(exit.at))).into(),
            ..Default::default()
        })
    }

    async fn wait(self: Rc<Self>, request: SandboxRequest) -> Result<WaitSandboxResponse> {
        self.sandbox.check_id(&request.sandbox_id)?;
        let exit = self.sandbox.clone().wait().await;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(Some(exit.at))).into(),
            ..Default::default()
        })
    }

    async fn stop(self: Rc<Self>, request: SandboxRequest) -> Result<Empty> {
        self.sandbox.check_id(&request.sandbox_id)?;
        self.sandbox.stop().await?;
        Ok(Empty::new())
    }

    async fn shut_down(self: Rc<Self>, request: SandboxRequest, cancel: Cancel) -> Result<Empty> {
        // After a Create that has failed there is none, but the server has to end.
        if request.sandbox_id != self.sandbox.id() {
            return Err(Error::not_found(format!("sandbox {}", request.sandbox_id)));
        }
        let removed = self.sandbox.shut_down().await;
        // At the latest: clients may stay; and `answered` is not called if the client has left, or
        // this is an error.
        let lifetime = self.lifetime.clone();
        local::spawn(async move {
            cancel.expired().await;
            lifetime.end();
        });
        removed.map(|()| Empty::new())
    }

    /// A call that changed something has succeeded, and its answer is about to be written.
    pub fn answered(&self, call: &Call) {
        if call.method == "ShutdownSandbox" {
            self.lifetime.end_after_clients();
        }
    }

    /// As much of a specification as NRI's plugins see of a pause container's: annotations,
    /// cgroup, namespaces, kernel parameters.
    fn spec(&self, status: &Status) -> Value {
        let config = &status.config;
        let metadata = &config.metadata;
        let mut namespaces = Vec::new();
        let mut add = |kind: &str, file: &str, is_own: bool| {
            if is_own {
                let path = format!("/proc/{}/ns/{file}", status.pid);
                namespaces.push(json!({"type": kind, "path": path}));
            }
        };
        add("network", "net", !config.has_node_network());
        add("ipc", "ipc", !config.has_node_ipc());
        add("uts", "uts", !config.has_node_network());
        add("pid", "pid", config.shares_pids());
        let annotations = json!({
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": self.sandbox.id(),
            "io.kubernetes.cri.sandbox-name": metadata.name,
            "io.kubernetes.cri.sandbox-namespace": metadata.namespace,
            "io.kubernetes.cri.sandbox-uid": metadata.uid,
            "io.kubernetes.cri.sandbox-log-directory": config.log_directory,
        });
        json!({
            "ociVersion": "1.0.2",
            "hostname": config.hostname,
            "annotations": annotations,
            "linux": {
                "namespaces": namespaces,
                "cgroupsPath": cgroups_path(&config.cgroup_parent, self.sandbox.id()),
                "sysctl": config.all_sysctls(),
            },
        })
    }

    /// What CRI reports of a pod when it is asked for more (`crictl inspectp`), in the form of
    /// its own sandboxer.
    fn info(&self, status: &Status) -> Value {
        json!({
            "pid": status.pid,
            "processStatus": if status.state == State::Ready { "running" } else { "stopped" },
            "netNamespaceClosed": false,
            "image": "",
            "snapshotKey": "",
            "snapshotter": "",
            "config": config_json(&status.config),
            "runtimeSpec": self.spec(status),
        })
    }
}

/// `CRI`'s name of a state.
fn state_name(state: State) -> &'static str {
    match state {
        State::Ready => "SANDBOX_READY",
        State::Absent | State::Created | State::Stopped | State::Ended => "SANDBOX_NOTREADY",
    }
}

/// The cgroup that a pause container would have.
fn cgroups_path(parent: &str, id: &str) -> String {
    match parent.rsplit('/').next() {
        Some(slice) if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}"),
        _ => format!("{}/{id}", parent.trim_end_matches('/')),
    }
}

/// A pod's configuration as CRI's JSON has it.
fn config_json(config: &Config) -> Value {
    let number = |mode: Mode| match mode {
        Mode::Pod => 0,
        Mode::Container => 1,
        Mode::Node => 2,
        Mode::Target => 3,
    };
    let metadata = &config.metadata;
    json!({
        "metadata": {
            "name": metadata.name,
            "uid": metadata.uid,
            "namespace": metadata.namespace,
            "attempt": metadata.attempt,
        },
        "hostname": config.hostname,
        "log_directory": config.log_directory,
        "dns_config": config.dns.as_ref().map(|dns| json!({
            "servers": dns.servers,
            "searches": dns.searches,
            "options": dns.options,
        })),
        "labels": config.labels,
        "annotations": config.annotations,
        "linux": {
            "cgroup_parent": config.cgroup_parent,
            "sysctls": config.sysctls,
            "security_context": {
                "namespace_options": {
                    "network": number(config.network),
                    "pid": number(config.pid),
                    "ipc": number(config.ipc),
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_of_a_pause_container() {
        for (parent, expected) in [
            ("/kubepods/pod1", "/kubepods/pod1/s"),
            ("", "/s"),
            (
                "kubepods-pod1.slice",
                "kubepods-pod1.slice:cri-containerd:s",
            ),
            (
                "/kubepods.slice/kubepods-pod1.slice",
                "kubepods-pod1.slice:cri-containerd:s",
            ),
        ] {
            assert_eq!(cgroups_path(parent, "s"), expected);
        }
    }
}
