//! The Task service: decode, call, encode. Serves `containerd.task.v2.Task` and
//! `containerd.task.v3.Task`, whose messages are the same.
//!
//! A call that changes something is cut short, and undone, a moment after its client has
//! left or its deadline has passed.

mod request_log;
mod wire;

use std::cell::{Cell, OnceCell};
use std::fmt::Display;
use std::future::Future;
use std::os::unix::net::UnixListener;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::cancel::{Cancel, CancelOnDrop};
use crate::descriptors;
use crate::error::{Error, Kind, Result};
use crate::proto::{self, Empty, Message, task};
use crate::task::Tasks;
use crate::ttrpc::server::{Call, Class, Server};
use request_log::RequestLog;

/// Both names of the service.
const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

const SIGKILL: u32 = 9;

type Answer = Pin<Box<dyn Future<Output = Result<Vec<u8>>>>>;

/// How long a server whose containers are all deleted waits for a client: containerd sends
/// Shutdown right after the last Delete, unless it was killed in between.
const LEFT: Duration = Duration::from_secs(1);

/// How long a server whose containers are all deleted, or were never made, keeps a client that
/// neither creates another nor sends Shutdown: a containerd that was killed within Create, and
/// knows nothing of that now. When the server ends it frees the ID.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// The Task service of this shim.
pub struct Service {
    tasks: Tasks,
    /// Set once nothing is left to serve.
    over: Cell<bool>,
    /// A container was to be created.
    used: Cell<bool>,
    shutdown: Notify,
    /// A call was answered.
    worked: Notify,
    /// A container is to be created, or was deleted.
    changed: Notify,
    /// Where it is served.
    server: OnceCell<Rc<Server>>,
}

impl Service {
    /// A service for `tasks`.
    pub fn new(tasks: Tasks) -> Rc<Service> {
        Rc::new(Service {
            tasks,
            over: Cell::default(),
            used: Cell::default(),
            shutdown: Notify::new(),
            worked: Notify::new(),
            changed: Notify::new(),
            server: OnceCell::new(),
        })
    }

    /// An endpoint on `listener` that serves this.
    pub fn endpoint(self: &Rc<Self>, listener: UnixListener) -> Result<Rc<Server>> {
        let service = self.clone();
        let handler = Rc::new(move |call: Rc<Call>| -> Answer {
            let service = service.clone();
            Box::pin(async move {
                let log = RequestLog::new(call.clone());
                let answer = service.clone().answer(call.clone()).await;
                log.answered(&answer);
                // Stats are asked for every few seconds: that is no end of a rest.
                if call.method != "Stats" {
                    service.worked.notify_one();
                }
                answer
            })
        });
        let server = Server::new(listener, handler, class)?;
        Ok(self.server.get_or_init(|| server).clone())
    }

    /// Waits for a Shutdown that found no container.
    pub async fn shut_down(&self) {
        self.shutdown.notified().await;
    }

    /// Waits until there is no client and no container, and ends the service: after `time`
    /// if there never was a container, else after [`LEFT`]. Whoever had this server started
    /// has given it up.
    pub async fn deserted(&self, time: Duration) {
        let Some(server) = self.server.get() else {
            return std::future::pending().await;
        };
        loop {
            server.deserted(LEFT).await;
            let client = server.client_changes();
            if !self.tasks.is_empty() {
                // It may be a creation that is being undone, as its client has left.
                tokio::select! {
                    () = client => {}
                    () = self.tasks.vacated() => {}
                }
            } else if self.used.get() || timeout(time - LEFT, client).await.is_err() {
                return self.end();
            }
        }
    }

    /// Waits until there has been no container for [`FORGOTTEN`], after there was one or was to
    /// be one, and ends the service, whoever is connected.
    pub async fn forgotten(&self) {
        loop {
            let change = async {
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = self.tasks.vacated() => {}
                }
            };
            let is_empty = self.used.get() && self.tasks.is_empty();
            match is_empty {
                false => change.await,
                true if timeout(FORGOTTEN, change).await.is_ok() => {}
                true => return self.end(),
            }
        }
    }

    /// Waits until there was a call, and then none for `time`. Stats do not count, nor do
    /// calls that are parked.
    pub async fn at_rest(&self, time: Duration) {
        self.worked.notified().await;
        while timeout(time, self.worked.notified()).await.is_ok() || self.is_working() {}
    }

    fn is_working(&self) -> bool {
        self.server
            .get()
            .is_some_and(|server| server.pending().0 > 0)
    }

    /// What is there and what is under way, in a few lines for people, each with the id of
    /// its container; empty: the server.
    pub fn report(&self) -> Vec<(String, String)> {
        let mut lines = self.tasks.report();
        if let Some(server) = self.server.get() {
            let (running, parked) = server.pending();
            let line = format!(
                "{} connections, {running} requests under way, {parked} waiting for an exit",
                server.connections()
            );
            lines.push((String::new(), line));
        }
        lines
    }

    /// Nobody new is taken, and no container made any more.
    fn end(&self) {
        self.over.set(true);
        // First, so that no new client meets a server that is about to end.
        if let Some(server) = self.server.get() {
            server.close();
        }
        self.shutdown.notify_one();
    }

    /// Answers one call.
    pub async fn answer(self: Rc<Self>, call: Rc<Call>) -> Result<Vec<u8>> {
        if !SERVICES.contains(&call.service.as_str()) {
            let message = format!("service {}", call.service);
            return Err(Error::new(Kind::Unimplemented, message));
        }
        let payload = &call.payload;
        match call.method.as_str() {
            "State" => return now(payload, |r| self.state(r)),
            "Pids" => return now(payload, |r| self.pids(r)),
            "Exec" => return now(payload, |r| self.exec(r)),
            "ResizePty" => return now(payload, |r| self.resize_pty(r)),
            "CloseIO" => return now(payload, |r| self.close_io(r)),
            "Wait" => return wire::encode(&self.wait(decode(payload)?).await?),
            "Stats" => return now(payload, |r| self.stats(r)),
            "Connect" => return now(payload, |r| self.connect(r)),
            _ => {}
        }
        let cancel = Cancel::new();
        let _cancelled_with_this_future = CancelOnDrop::new(&cancel);
        let answer = apart(self.clone().change(&call, cancel)?, &call.method).await?;
        if call.method == "Delete" {
            // The client is there to take it.
            self.deleted(decode(payload)?);
        }
        Ok(answer)
    }

    /// The work of a call that changes something, until `cancel` cuts it short.
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

    fn state(&self, request: task::StateRequest) -> Result<task::StateResponse> {
        let container = self.tasks.find(&request.id)?;
        container.status(&request.exec_id).map(wire::status)
    }

    async fn create(
        self: Rc<Self>,
        request: task::CreateTaskRequest,
        cancel: Cancel,
    ) -> Result<task::CreateTaskResponse> {
        if self.over.get() {
            return Err(Error::new(
                Kind::Unavailable,
                "create: the shim is shutting down",
            ));
        }
        self.used.set(true);
        self.changed.notify_waiters();
        let _claim = descriptors::claim(&format!("create {}", request.id))?;
        let container = self.tasks.create(wire::create(request)?, &cancel).await?;
        Ok(task::CreateTaskResponse {
            pid: container.pid(),
            ..Default::default()
        })
    }

    async fn start(
        self: Rc<Self>,
        request: task::StartRequest,
        cancel: Cancel,
    ) -> Result<task::StartResponse> {
        let container = self.tasks.find(&request.id)?;
        let pid = match request.exec_id.as_str() {
            "" => container.start(&cancel).await?,
            exec_id => {
                let _claim = descriptors::claim(&format!("start exec {exec_id}"))?;
                container.start_exec(exec_id, &cancel).await?
            }
        };
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
        let deleted = match request.exec_id.as_str() {
            "" => self.tasks.delete(&request.id, &cancel).await?,
            exec_id => {
                let container = self.tasks.find(&request.id)?;
                container.delete_exec(exec_id, &cancel).await?
            }
        };
        Ok(wire::deleted(deleted))
    }

    /// The answer to a Delete is on its way to its client.
    fn deleted(&self, request: task::DeleteRequest) {
        self.changed.notify_waiters();
        match request.exec_id.as_str() {
            "" => self.tasks.forget(&request.id),
            exec_id => {
                if let Ok(container) = self.tasks.find(&request.id) {
                    container.forget_exec(exec_id);
                }
            }
        }
    }

    fn pids(&self, request: task::PidsRequest) -> Result<task::PidsResponse> {
        wire::pids(self.tasks.find(&request.id)?.pids()?)
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
            .checkpoint(wire::checkpoint(request)?, &cancel)
            .await?;
        Ok(Empty::new())
    }

    async fn kill(self: Rc<Self>, request: task::KillRequest, cancel: Cancel) -> Result<Empty> {
        let container = self.tasks.find(&request.id)?;
        match request.exec_id.as_str() {
            "" => container.kill(request.signal, request.all, &cancel).await?,
            exec_id => container.kill_exec(exec_id, request.signal).await?,
        }
        Ok(Empty::new())
    }

    fn exec(&self, mut request: task::ExecProcessRequest) -> Result<Empty> {
        let container = self.tasks.find(&request.id)?;
        let (stdio, spec) = wire::exec(&mut request)?;
        container.exec(request.exec_id, stdio, &spec)?;
        Ok(Empty::new())
    }

    fn resize_pty(&self, request: task::ResizePtyRequest) -> Result<Empty> {
        let container = self.tasks.find(&request.id)?;
        container.resize(
            &request.exec_id,
            request.width as u16,
            request.height as u16,
        )?;
        Ok(Empty::new())
    }

    fn close_io(&self, request: task::CloseIORequest) -> Result<Empty> {
        let container = self.tasks.find(&request.id)?;
        container.close_stdin(&request.exec_id)?;
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

    async fn wait(&self, request: task::WaitRequest) -> Result<task::WaitResponse> {
        let container = self.tasks.find(&request.id)?;
        container.wait(&request.exec_id).await.map(wire::waited)
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
            // Never an error: containerd asks before there is a container.
            task_pid: self
                .tasks
                .find(&request.id)
                .map_or(0, |container| container.pid()),
            ..Default::default()
        })
    }

    async fn shutdown(self: Rc<Self>, request: task::ShutdownRequest) -> Result<Empty> {
        // Whoever asks to shut down has given up on it.
        self.tasks.give_up_creation(&request.id).await;
        if self.tasks.may_shut_down(&request.id) {
            self.end();
        }
        Ok(Empty::new())
    }
}

/// The class of a call. What ends a process has lanes of its own: however many other calls
/// hang, it is served. So is SIGKILL, however many other signals hang in the OCI runtime.
fn class(call: &Call) -> Class {
    Class::Lane(match call.method.as_str() {
        "Wait" => return Class::Parks,
        "Create" | "Start" | "Pause" | "Resume" | "Checkpoint" | "Update" => 1,
        "Delete" => 2,
        "Shutdown" => 3,
        "Kill" if is_sigkill(&call.payload) => 4,
        "Kill" => 5,
        // They never wait.
        _ => 0,
    })
}

fn is_sigkill(payload: &[u8]) -> bool {
    decode::<task::KillRequest>(payload).is_ok_and(|kill| kill.signal == SIGKILL)
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
fn now<Q: Message, A: Message>(
    payload: &[u8],
    call: impl FnOnce(Q) -> Result<A>,
) -> Result<Vec<u8>> {
    wire::encode(&call(decode(payload)?)?)
}

/// A call to be waited for. Of one type, so that what waits exists once, not for each call.
fn later<Q, A, F>(payload: &[u8], call: impl FnOnce(Q) -> F) -> Result<Answer>
where
    Q: Message,
    A: Message,
    F: Future<Output = Result<A>> + 'static,
{
    let work = call(decode(payload)?);
    Ok(Box::pin(async move { wire::encode(&work.await?) }))
}

/// Does `work` in a task of its own: when its deadline passes or its client leaves, it has
/// [`crate::cancel::GRACE`] to end by itself; then it is cut short, and undone.
async fn apart(work: Answer, method: &str) -> Result<Vec<u8>> {
    spawn_local(work)
        .await
        .map_err(|panic| Error::unknown(format!("{method}: {panic}")))?
}
