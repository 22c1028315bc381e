//! When the server ends: after a Shutdown that finds no container, or when nobody needs it
//! any more.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::local;
use crate::sandbox::Sandbox;
use crate::task::Tasks;
use crate::ttrpc::server::Server;

/// How long a server whose containers are all deleted waits for a client: containerd sends
/// Shutdown right after the last Delete, unless it was killed in between.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a server that had a container, and has none, keeps a client that sends neither
/// Create nor Shutdown: a containerd that was killed within Create, and knows nothing of that
/// now. The end of the server frees the ID.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long such a server stays while containerd takes no event: one that was stopped (SIGSTOP)
/// within Delete goes on later, and is to learn of the container's end.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(300);

/// What decides when the server ends. Its services share it.
#[derive(Default)]
pub struct Lifetime {
    /// Set once nothing is left to serve.
    is_ending: Cell<bool>,
    /// A container was created, or was to be.
    had_container: Cell<bool>,
    /// A container is about to be created, or was deleted.
    container_changes: Notify,
    end: Notify,
    /// Where the services are offered.
    server: OnceCell<Rc<Server>>,
    /// While it exists, only ShutdownSandbox ends the server.
    sandbox: Option<Rc<Sandbox>>,
}

impl Lifetime {
    /// Of a server that has just been started, for `sandbox` or for containers.
    pub fn new(sandbox: Option<Rc<Sandbox>>) -> Lifetime {
        Lifetime {
            sandbox,
            ..Lifetime::default()
        }
    }

    /// Whether nothing is served: no container, and no sandbox.
    fn is_unused(&self, tasks: &Tasks) -> bool {
        let sandbox = self.sandbox.as_ref();
        tasks.is_empty() && !sandbox.is_some_and(|sandbox| sandbox.exists())
    }

    /// Remembers where the services are offered.
    pub fn serve_on(&self, server: Rc<Server>) -> Rc<Server> {
        self.server.get_or_init(|| server).clone()
    }

    /// Where the services are offered.
    pub fn server(&self) -> Option<&Rc<Server>> {
        self.server.get()
    }

    /// Whether the server is about to end: it creates no container any more.
    pub fn is_ending(&self) -> bool {
        self.is_ending.get()
    }

    /// A container is about to be created.
    pub fn has_container(&self) {
        self.had_container.set(true);
        self.container_changes.notify_waiters();
    }

    /// A container or an exec was deleted.
    pub fn has_deleted(&self) {
        self.container_changes.notify_waiters();
    }

    /// Ends the server: no new client is accepted, and no container created any more.
    pub fn end(&self) {
        self.is_ending.set(true);
        // First, so that no new client meets a server that is about to end.
        if let Some(server) = self.server.get() {
            server.close();
        }
        self.end.notify_one();
    }

    /// As [`Lifetime::end`], once the clients have left: one that sees the end of its connection
    /// together with an answer may take it for a failure.
    pub fn end_after_clients(self: &Rc<Self>) {
        self.is_ending.set(true);
        let Some(server) = self.server.get().cloned() else {
            return self.end();
        };
        server.close();
        let lifetime = self.clone();
        local::spawn(async move {
            server.deserted(Duration::ZERO).await;
            lifetime.end();
        });
    }

    /// Waits for [`Lifetime::end`].
    pub async fn ended(&self) {
        self.end.notified().await;
    }

    /// Waits until there is no client and no container, and ends the server: after `time`
    /// if it never had a container, else after [`CLIENT_TIMEOUT`]. The containerd that
    /// started this server no longer uses it.
    pub async fn deserted(&self, tasks: &Tasks, time: Duration) {
        let Some(server) = self.server.get() else {
            return std::future::pending().await;
        };
        loop {
            server.deserted(CLIENT_TIMEOUT).await;
            let client = server.client_changes();
            if !self.is_unused(tasks) {
                // It may be a creation that is being undone, as its client has left.
                tokio::select! {
                    () = client => {}
                    () = tasks.freed() => {}
                }
            } else if self.had_container.get()
                || timeout(time - CLIENT_TIMEOUT, client).await.is_err()
            {
                return self.end();
            }
        }
    }

    /// Waits until there has been no container for [`SHUTDOWN_TIMEOUT`], after there was one or
    /// was to be one, and no event for containerd; then ends the server, whoever is connected.
    pub async fn abandoned(&self, tasks: &Tasks) {
        loop {
            let change = async {
                tokio::select! {
                    () = self.container_changes.notified() => {}
                    () = tasks.freed() => {}
                }
            };
            if !(self.had_container.get() && self.is_unused(tasks)) {
                change.await;
                continue;
            }
            let unused = async {
                sleep(SHUTDOWN_TIMEOUT).await;
                let _ = timeout(EVENTS_TIMEOUT, tasks.events_taken()).await;
            };
            tokio::select! {
                biased;
                () = change => {}
                () = unused => return self.end(),
            }
        }
    }
}
