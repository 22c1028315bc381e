//! The Task service as a client calls it, in either version.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_rs_v2::proto::types::{ProcessInfo, Status};
use containerd_shim_rs_v2::proto::{Any, Empty, Message, runc, task};

use super::container::any;
use super::rpc::{Connection, Failure, Pending};

/// The version of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    V2,
    V3,
}

impl Api {
    /// The service's name on the wire.
    pub fn service(self) -> &'static str {
        match self {
            Api::V2 => "containerd.task.v2.Task",
            Api::V3 => "containerd.task.v3.Task",
        }
    }
}

/// One process of a container: its init, or an exec. Every request fails as the shim says.
#[derive(Clone)]
pub struct Process {
    pub connection: Arc<Connection>,
    pub api: Api,
    pub container: String,
    /// Empty for init.
    pub exec: String,
}

/// Builds a request of the process: `id` and `exec_id`, and more.
macro_rules! of_process {
    ($type:ident, $self:ident $(, $field:ident: $value:expr)*) => {
        task::$type {
            id: $self.container.clone(),
            exec_id: $self.exec.clone(),
            $($field: $value,)*
            ..Default::default()
        }
    };
}

/// Builds a request of the container: `id`, and more.
macro_rules! of_container {
    ($type:ident, $self:ident $(, $field:ident: $value:expr)*) => {
        task::$type { id: $self.container.clone(), $($field: $value,)* ..Default::default() }
    };
}

#[allow(unused_imports, reason = "tests/faults builds requests of its own")]
pub(crate) use of_container;

impl Process {
    pub fn call<M: Message>(&self, method: &str, request: &impl Message) -> Result<M, Failure> {
        self.connection.call(self.api.service(), method, request)
    }

    /// Sends a request that is awaited later. Its deadline is later than that of every
    /// `call` meanwhile: a shim that lets calls wait for this one is seen to do so.
    pub fn send<M: Message>(&self, method: &str, request: &impl Message) -> Pending<M> {
        let timeout = 2 * self.connection.hang_timeout;
        self.connection
            .send(self.api.service(), method, request, timeout)
    }

    /// The same process, asked for over another connection.
    pub fn over(&self, connection: &Arc<Connection>) -> Process {
        Process {
            connection: connection.clone(),
            ..self.clone()
        }
    }

    /// Another process of the same container, whether it exists or not.
    pub fn process(&self, exec: &str) -> Process {
        Process {
            exec: exec.into(),
            ..self.clone()
        }
    }

    /// The init of another container on the same server, whether it exists or not.
    pub fn other(&self, container: &str) -> Process {
        Process {
            container: container.into(),
            exec: String::new(),
            ..self.clone()
        }
    }

    /// Its pid.
    pub fn start(&self) -> Result<u32, Failure> {
        self.start_pending().wait().map(|answer| answer.pid)
    }

    pub fn start_pending(&self) -> Pending<task::StartResponse> {
        self.send("Start", &of_process!(StartRequest, self))
    }

    pub fn state(&self) -> Result<task::StateResponse, Failure> {
        self.call("State", &of_process!(StateRequest, self))
    }

    /// The state's name alone.
    #[track_caller]
    pub fn status(&self) -> Status {
        self.state()
            .expect("State")
            .status
            .enum_value()
            .expect("a known status")
    }

    pub fn kill(&self, signal: i32) -> Result<Empty, Failure> {
        self.call(
            "Kill",
            &of_process!(KillRequest, self, signal: signal as u32),
        )
    }

    pub fn kill_all(&self, signal: i32) -> Result<Empty, Failure> {
        self.call(
            "Kill",
            &of_process!(KillRequest, self, signal: signal as u32, all: true),
        )
    }

    pub fn wait(&self) -> Result<task::WaitResponse, Failure> {
        self.wait_pending().wait()
    }

    /// The exit status, once it has exited.
    #[track_caller]
    pub fn exit_status(&self) -> u32 {
        self.wait().expect("Wait").exit_status
    }

    pub fn wait_pending(&self) -> Pending<task::WaitResponse> {
        self.send("Wait", &of_process!(WaitRequest, self))
    }

    /// Wait with a deadline of its own.
    pub fn wait_within(&self, timeout: Duration) -> Pending<task::WaitResponse> {
        let request = of_process!(WaitRequest, self);
        self.connection
            .send(self.api.service(), "Wait", &request, timeout)
    }

    pub fn delete(&self) -> Result<task::DeleteResponse, Failure> {
        self.delete_pending().wait()
    }

    pub fn delete_pending(&self) -> Pending<task::DeleteResponse> {
        self.send("Delete", &of_process!(DeleteRequest, self))
    }

    pub fn resize(&self, width: u32, height: u32) -> Result<Empty, Failure> {
        self.call(
            "ResizePty",
            &of_process!(ResizePtyRequest, self, width: width, height: height),
        )
    }

    pub fn close_io(&self) -> Result<Empty, Failure> {
        self.call("CloseIO", &of_process!(CloseIORequest, self, stdin: true))
    }

    pub fn exec_request(&self, request: &task::ExecProcessRequest) -> Result<Empty, Failure> {
        self.call("Exec", request)
    }

    pub fn pids(&self) -> Result<Vec<ProcessInfo>, Failure> {
        let answer: Result<task::PidsResponse, _> =
            self.call("Pids", &of_container!(PidsRequest, self));
        answer.map(|pids| pids.processes)
    }

    pub fn pause(&self) -> Result<Empty, Failure> {
        self.pause_pending().wait()
    }

    pub fn pause_pending(&self) -> Pending<Empty> {
        self.send("Pause", &of_container!(PauseRequest, self))
    }

    pub fn resume(&self) -> Result<Empty, Failure> {
        self.call("Resume", &of_container!(ResumeRequest, self))
    }

    /// Update to `resources`, a JSON text; without a text: without resources.
    pub fn update(&self, resources: Option<&str>) -> Result<Empty, Failure> {
        self.call("Update", &self.update_request(resources))
    }

    pub fn update_request(&self, resources: Option<&str>) -> task::UpdateTaskRequest {
        let resources = resources.map(|json| Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
            value: json.into(),
            ..Default::default()
        });
        of_container!(UpdateTaskRequest, self, resources: resources.into())
    }

    pub fn checkpoint(&self, path: &str) -> Result<Empty, Failure> {
        self.call(
            "Checkpoint",
            &of_container!(CheckpointTaskRequest, self, path: path.into()),
        )
    }

    /// Checkpoint to `path`, or to where `options` say if it is empty.
    pub fn checkpoint_with(
        &self,
        path: &str,
        options: &runc::CheckpointOptions,
    ) -> Result<Empty, Failure> {
        let options = any("containerd.runc.v1.CheckpointOptions", options);
        let path = path.into();
        self.call(
            "Checkpoint",
            &of_container!(CheckpointTaskRequest, self, path: path, options: Some(options).into()),
        )
    }

    pub fn stats(&self) -> Result<task::StatsResponse, Failure> {
        self.call("Stats", &of_container!(StatsRequest, self))
    }

    pub fn connect(&self) -> Result<task::ConnectResponse, Failure> {
        self.call("Connect", &of_container!(ConnectRequest, self))
    }

    pub fn shutdown(&self) -> Result<Empty, Failure> {
        self.call("Shutdown", &of_container!(ShutdownRequest, self))
    }
}
