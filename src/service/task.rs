//! The Task service: decode, call, encode. Serves `containerd.task.v2.Task` and
//! `containerd.task.v3.Task`, whose messages are the same.

use std::fmt::Display;
use std::future::Future;
use std::rc::Rc;

use super::convert;
use super::lifetime::Lifetime;
use super::{Answer, Work};
use crate::cancel::Cancel;
use crate::descriptors;
use crate::error::{Error, Kind, Result};
use crate::proto::{self, Empty, Message, task};
use crate::sandbox::Sandbox;
use crate::task::{Container, Create, SIGKILL, Target, Tasks};
use crate::ttrpc::server::Call;

/// The Task service of this shim.
pub struct TaskService {
    tasks: Rc<Tasks>,
    lifetime: Rc<Lifetime>,
    /// What the containers are in, if there is a sandbox.
    sandbox: Option<Rc<Sandbox>>,
}

impl TaskService {
    /// A service for `tasks`, in `sandbox` if there is one.
    pub fn new(
        tasks: Rc<Tasks>,
        lifetime: Rc<Lifetime>,
        sandbox: Option<Rc<Sandbox>>,
    ) -> TaskService {
        TaskService {
            tasks,
            lifetime,
            sandbox,
        }
    }

    /// Begins one call.
    pub fn call(self: &Rc<Self>, call: &Call) -> Result<Work> {
        let payload = &call.payload;
        match call.method.as_str() {
            "State" => now(payload, |r| self.state(r)),
            "Pids" => now(payload, |r| self.pids(r)),
            "Exec" => now(payload, |r| self.exec(r)),
            "ResizePty" => now(payload, |r| self.resize_pty(r)),
            "CloseIO" => now(payload, |r| self.close_io(r)),
            "Stats" => now(payload, |r| self.stats(r)),
            "Connect" => now(payload, |r| self.connect(r)),
            "Wait" => later(payload, |r| self.clone().wait(r)).map(Work::Waits),
            _ => Work::changes(|cancel| self.clone().change(call, cancel)),
        }
    }

    /// A call that changes something, until `cancel` cuts it short.
    fn change(self: Rc<Self>, call: &Call, cancel: Cancel) -> Result<Answer> {
        let payload = &call.payload;
        match call.method.as_str() {
            "Create" => later(payload, |r| self.create(r, cancel)),
            "Start" => later(payload, |r| self.start(r, cancel)),
            "Delete" => later(payload, |r| self.delete(r, cancel)),
            "Pause" => later(payload, |r| self.pause(r, cancel)),
            "Resume" => later(payload, |r| self.resume(r, cancel)),
            "Checkpoint" => later(payload, |r| self.checkpoint(r, cancel)),
            "Kill" => later(payload, |r| self.kill(r, cancel)),
            "Update" => later(payload, |r| self.update(r, cancel)),
            "Shutdown" => later(payload, |r| self.shutdown(r)),
            method => Err(Error::new(Kind::Unimplemented, format!("method {method}"))),
        }
    }

    /// A call that changed something has succeeded, and its client is there to take the answer.
    pub fn answered(&self, call: &Call) {
        if call.method == "Delete"
            && let Ok(request) = decode::<task::DeleteRequest>(&call.payload)
        {
            let target = Target::from_exec_id(&request.exec_id);
            self.tasks.forget(&request.id, target);
            self.lifetime.has_deleted();
        }
    }

    fn state(&self, request: task::StateRequest) -> Result<task::StateResponse> {
        let container = self.tasks.find(&request.id)?;
        let target = Target::from_exec_id(&request.exec_id);
        container.status(target).map(convert::status)
    }

    async fn create(
        self: Rc<Self>,
        request: task::CreateTaskRequest,
        cancel: Cancel,
    ) -> Result<task::CreateTaskResponse> {
        if self.lifetime.is_ending() {
            return Err(Error::new(
                Kind::Unavailable,
                "create: the shim is shutting down",
            ));
        }
        self.lifetime.has_container();
        let _claim = descriptors::claim(&format!("create {}", request.id))?;
        let create = convert::create(request)?;
        let container = match &self.sandbox {
            None => self.tasks.create(create, &cancel).await?,
            Some(sandbox) => self.create_in(sandbox, create, &cancel).await?,
        };
        Ok(task::CreateTaskResponse {
            pid: container.pid(),
            ..Default::default()
        })
    }

    /// Creates a container in the sandbox, which has it on record from before to the end.
    async fn create_in(
        &self,
        sandbox: &Sandbox,
        mut create: Create,
        cancel: &Cancel,
    ) -> Result<Rc<Container>> {
        let id = create.id.clone();
        create.options = sandbox.options_of_member(create.options);
        let admitted = sandbox.admit(&id, &create.bundle, &create.options).await;
        admitted.map_err(|e| e.within(format_args!("create container {id} in its sandbox")))?;
        let created = self.tasks.create(create, cancel).await;
        if created.is_err() && !self.tasks.is_taken(&id) {
            sandbox.dismiss(&id).await;
        }
        created
    }

    async fn start(
        self: Rc<Self>,
        request: task::StartRequest,
        cancel: Cancel,
    ) -> Result<task::StartResponse> {
        let container = self.tasks.find(&request.id)?;
        let target = Target::from_exec_id(&request.exec_id);
        let pid = container.start(target, &cancel).await?;
        Ok(task::StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn delete(
        self: Rc<Self>,
        request: task::DeleteRequest,
        cancel: Cancel,
    ) -> Result<task::DeleteResponse> {
        let target = Target::from_exec_id(&request.exec_id);
        let deleted = self.tasks.delete(&request.id, target, &cancel).await?;
        if let (Some(sandbox), Target::Init) = (&self.sandbox, target) {
            sandbox.dismiss(&request.id).await;
        }
        Ok(convert::deleted(deleted))
    }

    fn pids(&self, request: task::PidsRequest) -> Result<task::PidsResponse> {
        convert::pids(self.tasks.find(&request.id)?.pids()?)
    }

    async fn pause(self: Rc<Self>, request: task::PauseRequest, cancel: Cancel) -> Result<Empty> {
        self.tasks
            .find(&request.id)?
            .pause(&cancel)
            .await
            .map(|()| Empty::new())
    }

    async fn resume(self: Rc<Self>, request: task::ResumeRequest, cancel: Cancel) -> Result<Empty> {
        self.tasks
            .find(&request.id)?
            .resume(&cancel)
            .await
            .map(|()| Empty::new())
    }

    async fn checkpoint(
        self: Rc<Self>,
        request: task::CheckpointTaskRequest,
        cancel: Cancel,
    ) -> Result<Empty> {
        let container = self.tasks.find(&request.id)?;
        container
            .checkpoint(convert::checkpoint(request)?, &cancel)
            .await?;
        Ok(Empty::new())
    }

    async fn kill(self: Rc<Self>, request: task::KillRequest, cancel: Cancel) -> Result<Empty> {
        let container = self.tasks.find(&request.id)?;
        let target = Target::from_exec_id(&request.exec_id);
        let killed = container.kill(target, request.signal, request.all, &cancel);
        killed.await?;
        Ok(Empty::new())
    }

    fn exec(&self, mut request: task::ExecProcessRequest) -> Result<Empty> {
        let container = self.tasks.find(&request.id)?;
        let (stdio, spec) = convert::exec(&mut request)?;
        container.exec(request.exec_id, stdio, &spec)?;
        Ok(Empty::new())
    }

    fn resize_pty(&self, request: task::ResizePtyRequest) -> Result<Empty> {
        let container = self.tasks.find(&request.id)?;
        let target = Target::from_exec_id(&request.exec_id);
        container.resize(target, request.width as u16, request.height as u16)?;
        Ok(Empty::new())
    }

    fn close_io(&self, request: task::CloseIORequest) -> Result<Empty> {
        let container = self.tasks.find(&request.id)?;
        container.close_stdin(Target::from_exec_id(&request.exec_id))?;
        Ok(Empty::new())
    }

    async fn update(
        self: Rc<Self>,
        request: task::UpdateTaskRequest,
        cancel: Cancel,
    ) -> Result<Empty> {
        let container = self.tasks.find(&request.id)?;
        let missing = || Error::invalid(format!("update {}: no resources", request.id));
        let resources = request.resources.as_ref().ok_or_else(missing)?;
        container.update(&resources.value, &cancel).await?;
        Ok(Empty::new())
    }

    async fn wait(self: Rc<Self>, request: task::WaitRequest) -> Result<task::WaitResponse> {
        let container = self.tasks.find(&request.id)?;
        let target = Target::from_exec_id(&request.exec_id);
        container.wait(target).await.map(convert::waited)
    }

    fn stats(&self, request: task::StatsRequest) -> Result<task::StatsResponse> {
        let stats = self.tasks.find(&request.id)?.stats()?;
        Ok(task::StatsResponse {
            stats: Some(stats).into(),
            ..Default::default()
        })
    }

    fn connect(&self, request: task::ConnectRequest) -> Result<task::ConnectResponse> {
        Ok(task::ConnectResponse {
            shim_pid: std::process::id(),
            // Not an error: containerd asks before there is a container.
            task_pid: self
                .tasks
                .find(&request.id)
                .map_or(0, |container| container.pid()),
            ..Default::default()
        })
    }

    async fn shutdown(self: Rc<Self>, request: task::ShutdownRequest) -> Result<Empty> {
        // The client does not want this container any more.
        self.tasks.cancel_creation(&request.id).await;
        // containerd sends it after each container's Delete; its sandbox stays.
        let is_sandboxed = self
            .sandbox
            .as_ref()
            .is_some_and(|sandbox| sandbox.exists());
        if !is_sandboxed && self.tasks.may_shut_down(&request.id) {
            self.lifetime.end();
        }
        Ok(Empty::new())
    }
}

/// Whether a Kill sends SIGKILL.
pub fn is_sigkill(call: &Call) -> bool {
    decode::<task::KillRequest>(&call.payload).is_ok_and(|kill| kill.signal == SIGKILL)
}

fn decode<Q: Message>(payload: &[u8]) -> Result<Q> {
    proto::limit_fields(payload).map_err(|cause| cannot_decode(Q::NAME, &cause))?;
    Q::parse_from_bytes(payload).map_err(|cause| cannot_decode(Q::NAME, &cause))
}

#[cold]
fn cannot_decode(message: &str, cause: &dyn Display) -> Error {
    Error::invalid(format!("decode {message}: {cause}"))
}

/// Answers from memory or the kernel, without waiting.
pub(super) fn now<Q: Message, A: Message>(
    payload: &[u8],
    call: impl FnOnce(Q) -> Result<A>,
) -> Result<Work> {
    convert::encode(&call(decode(payload)?)?).map(Work::Done)
}

/// A call that waits. All have one type, so that the code that polls them exists once.
pub(super) fn later<Q, A, F>(payload: &[u8], call: impl FnOnce(Q) -> F) -> Result<Answer>
where
    Q: Message,
    A: Message,
    F: Future<Output = Result<A>> + 'static,
{
    let work = call(decode(payload)?);
    Ok(Box::pin(async move { convert::encode(&work.await?) }))
}
