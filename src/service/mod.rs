//! The services that the server offers on its socket: which call goes to which of them, and
//! what is common to all: the log of requests, deadlines and clients that leave, the end of
//! the server.
//!
//! A call that changes something runs in a task of its own. It is cut short, and undone, a
//! moment after its client has left or its deadline has passed.
//!
//! To add a service: a file beside `task.rs`, an arm in [`Services::call`], and its methods'
//! lanes in `class`.

mod convert;
mod lifetime;
mod request_log;
mod sandbox;
mod task;

use std::future::Future;
use std::os::unix::net::UnixListener;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::cancel::{Cancel, CancelOnDrop};
use crate::error::{Error, Kind, Result};
use crate::report::{self, Report};
use crate::sandbox::Sandbox;
use crate::task::Tasks;
use crate::ttrpc::server::{Call, Class, Server};
use lifetime::Lifetime;
use request_log::RequestLog;
use sandbox::SandboxService;
use task::TaskService;

/// Both names of the Task service: its messages are the same in both versions.
const TASK_SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// The name of the Sandbox service.
const SANDBOX_SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";

/// The answer to come of a call, encoded.
type Answer = Pin<Box<dyn Future<Output = Result<Vec<u8>>>>>;

/// How a service answers a call.
enum Work {
    /// At once: this is the answer.
    Done(Vec<u8>),
    /// When something has happened; it changes nothing, and is dropped with its request.
    Waits(Answer),
    /// After it has changed something; `cancel` cuts it short.
    Changes { answer: Answer, cancel: Cancel },
}

impl Work {
    /// What `begin` begins, which changes something until it is cancelled.
    fn changes(begin: impl FnOnce(Cancel) -> Result<Answer>) -> Result<Work> {
        let cancel = Cancel::new();
        let answer = begin(cancel.clone())?;
        Ok(Work::Changes { answer, cancel })
    }
}

/// The services of this shim, on one socket.
pub struct Services {
    tasks: Rc<Tasks>,
    task_service: Rc<TaskService>,
    /// Only in the server of a sandbox.
    sandbox_service: Option<Rc<SandboxService>>,
    lifetime: Rc<Lifetime>,
    /// Notified of each answer, except those to Stats.
    answered: Notify,
}

impl Services {
    /// The services for `tasks`, and for the sandbox that they are in, if they are in one.
    pub fn new(tasks: Tasks, sandbox: Option<Rc<Sandbox>>) -> Rc<Services> {
        let (tasks, lifetime) = (Rc::new(tasks), Rc::new(Lifetime::new(sandbox.clone())));
        let of_sandbox = |sandbox| SandboxService::new(sandbox, lifetime.clone());
        Rc::new(Services {
            sandbox_service: sandbox.clone().map(of_sandbox).map(Rc::new),
            task_service: Rc::new(TaskService::new(tasks.clone(), lifetime.clone(), sandbox)),
            tasks,
            lifetime,
            answered: Notify::new(),
        })
    }

    /// An endpoint on `listener` that serves these.
    pub fn endpoint(self: &Rc<Self>, listener: UnixListener) -> Result<Rc<Server>> {
        // These hold the server, which holds the handler.
        let services = Rc::downgrade(self);
        let handler = Rc::new(move |call: Rc<Call>| -> Answer {
            let services = services.upgrade();
            Box::pin(async move {
                let services = services
                    .ok_or_else(|| Error::new(Kind::Unavailable, "the server is shutting down"))?;
                let log = RequestLog::new(call.clone());
                let answer = services.answer(&call).await;
                log.answered(&answer);
                // Stats are asked for every few seconds: the server is idle all the same.
                if call.method != "Stats" {
                    services.answered.notify_one();
                }
                answer
            })
        });
        let server = Server::new(listener, handler, class)?;
        Ok(self.lifetime.serve_on(server))
    }

    /// Waits for a Shutdown that found no container.
    pub async fn shut_down(&self) {
        self.lifetime.ended().await;
    }

    /// Waits until there is no client and no container, and ends the server; see
    /// [`Lifetime::deserted`].
    pub async fn deserted(&self, time: Duration) {
        self.lifetime.deserted(&self.tasks, time).await;
    }

    /// Waits until the client has given up on a server without containers, and ends the
    /// server; see [`Lifetime::abandoned`].
    pub async fn abandoned(&self) {
        self.lifetime.abandoned(&self.tasks).await;
    }

    /// Waits until there was a call, and then none for `time`. Stats do not count, nor do
    /// calls that are parked.
    pub async fn idle(&self, time: Duration) {
        self.answered.notified().await;
        while timeout(time, self.answered.notified()).await.is_ok() || self.is_busy() {}
    }

    fn is_busy(&self) -> bool {
        let server = self.lifetime.server();
        server.is_some_and(|server| server.pending().0 > 0)
    }

    /// The state of the server.
    pub fn report(&self) -> Report {
        let server = self.lifetime.server();
        let (requests, waiting) = server.map_or((0, 0), |server| server.pending());
        Report {
            version: crate::VERSION.into(),
            revision: crate::REVISION.into(),
            connections: server.map_or(0, |server| server.connections()),
            requests,
            waiting,
            unsent_events: self.tasks.unsent_events(),
            containers: self.tasks.report(),
        }
    }

    /// A call to this program's own service.
    fn call_own(&self, call: &Call) -> Result<Work> {
        if call.method != report::METHOD {
            let message = format!("method {}", call.method);
            return Err(Error::new(Kind::Unimplemented, message));
        }
        serde_json::to_vec(&self.report())
            .map(Work::Done)
            .map_err(|e| Error::unknown(format!("encode the report: {e}")))
    }

    async fn answer(&self, call: &Call) -> Result<Vec<u8>> {
        let (answer, cancel) = match self.call(call)? {
            Work::Done(answer) => return Ok(answer),
            Work::Waits(answer) => return answer.await,
            Work::Changes { answer, cancel } => (answer, cancel),
        };
        let _cancelled_with_this_future = CancelOnDrop::new(&cancel);
        let answer = in_own_task(answer, &call.method).await?;
        // The client is there to take it.
        match &self.sandbox_service {
            Some(service) if call.service == SANDBOX_SERVICE => service.answered(call),
            _ => self.task_service.answered(call),
        }
        Ok(answer)
    }

    /// Gives a call to its service.
    fn call(&self, call: &Call) -> Result<Work> {
        match call.service.as_str() {
            name if TASK_SERVICES.contains(&name) => self.task_service.call(call),
            report::SERVICE => self.call_own(call),
            name => match &self.sandbox_service {
                Some(service) if name == SANDBOX_SERVICE => service.call(call),
                _ => Err(Error::new(Kind::Unimplemented, format!("service {name}"))),
            },
        }
    }
}

/// The class of a call. What ends a process has lanes of its own: however many other calls
/// hang, it is served. So is SIGKILL, however many other signals hang in the OCI runtime.
fn class(call: &Call) -> Class {
    Class::Lane(match call.method.as_str() {
        "Wait" | "WaitSandbox" => return Class::Parks,
        "Create" | "Start" | "Pause" | "Resume" | "Checkpoint" | "Update" => 1,
        "CreateSandbox" | "StartSandbox" | "SandboxStatus" => 1,
        "Delete" | "StopSandbox" => 2,
        "Shutdown" | "ShutdownSandbox" => 3,
        "Kill" if task::is_sigkill(call) => 4,
        "Kill" => 5,
        // They never wait.
        _ => 0,
    })
}

/// Runs `answer` in a task of its own: when its deadline passes or its client leaves, it has
/// [`crate::cancel::GRACE`] to end by itself; then it is cut short, and undone.
async fn in_own_task(answer: Answer, method: &str) -> Result<Vec<u8>> {
    spawn_local(answer)
        .await
        .map_err(|panic| Error::unknown(format!("{method}: {panic}")))?
}
