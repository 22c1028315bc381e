//! The server: connects the parts, handles its signals, and ends in order.
//!
//! It ends for five reasons only: Shutdown without a container, half a minute without client
//! and container, ten seconds without a container after it had one, SIGTERM, SIGINT. After
//! SIGTERM and SIGINT the containers keep running. On SIGUSR1 it logs its state. The server of
//! a sandbox ends only after ShutdownSandbox, once there was a sandbox, and by these signals.

use std::future::Future;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{sleep, timeout};

use crate::bundle::Bundle;
use crate::cgroup;
use crate::cli::Flags;
use crate::error::{Context, Error, Result};
use crate::events::Events;
use crate::local;
use crate::reaper::Reaper;
use crate::sandbox::{self, Sandbox};
use crate::service::Services;
use crate::socket::{self, Claim};
use crate::stdio;
use crate::sys;
use crate::sys::signals::Signals;
use crate::task::{Shared, Tasks};

/// The descriptor of the listening socket that `start` leaves open for the server.
const LISTENER_FD: i32 = 3;
/// How long a server that never had a container waits for a client. containerd connects
/// milliseconds after `start` has replied; after a `start` that was killed nobody does.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long after the last request the server gives back the memory that only requests need.
const IDLE_DELAY: Duration = Duration::from_millis(100);
/// How long it then keeps what it needs again, so that frequent calls, such as the execs of
/// a health check, do not pay for it each time.
const MEMORY_RELEASE_INTERVAL: Duration = Duration::from_secs(30);
/// How long the end of the server waits for each: the last events, the last responses, the
/// loggers.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it waits for the last events while containerd does not listen.
const SHUTDOWN_TIMEOUT_WITHOUT_CONTAINERD: Duration = Duration::from_secs(1);

/// Serves until there is nothing left to serve.
// Not inlined: the frame of `main` stays on the server's stack.
#[inline(never)]
pub fn run(flags: &Flags) -> Result<()> {
    let bundle = Bundle::at(std::env::current_dir().context(|| "get the working directory")?);
    // A server without its log still works.
    let _ = crate::log::init(&bundle.log(), flags.debug, &flags.id, &flags.namespace);
    let listener = listener(&flags.socket)?;
    if let Err(error) = sys::process::raise_descriptor_limit() {
        log::warn!("raise the soft limit of open files to the hard limit: {error}");
    }
    let reaper = Reaper::new();
    let sandbox = sandbox::is_sandbox(&bundle)
        .then(|| Rc::new(Sandbox::new(&flags.id, bundle, reaper.clone())));
    reaper
        .block_on(serve(flags, listener, reaper.clone(), sandbox))
        .context(|| "start the event loop")?
}

/// The socket to serve on: the one that `start` left open, or one at `path`.
fn listener(path: &str) -> Result<UnixListener> {
    if path.is_empty() {
        let inherited = sys::fd::take_inherited(LISTENER_FD);
        return inherited
            .map(UnixListener::from)
            .context(|| format!("take over the listening socket (descriptor {LISTENER_FD})"));
    }
    match socket::claim(Path::new(path))? {
        Claim::Ours(listener) => Ok(listener),
        Claim::Served => Err(Error::unknown(format!(
            "listen on {path}: another server is listening"
        ))),
    }
}

async fn serve(
    flags: &Flags,
    listener: UnixListener,
    reaper: Reaper,
    sandbox: Option<Rc<Sandbox>>,
) -> Result<()> {
    let signals = Signals::listen(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1])
        .context(|| "listen for signals")?;

    let events = Events::new(flags.ttrpc_address.clone(), flags.namespace.clone());
    local::spawn(events.clone().run());

    let tasks = Tasks::new(Shared {
        reaper,
        events: events.clone(),
        namespace: flags.namespace.clone(),
        stats_budget: Default::default(),
    });
    let services = Services::new(tasks, sandbox);
    let server = services.endpoint(listener)?;
    local::spawn(server.clone().run());
    local::spawn(release_memory_when_idle(services.clone()));
    log_start();

    tokio::select! {
        () = services.shut_down() => log::debug!("shim exits: Shutdown and no container left"),
        () = services.deserted(CLIENT_TIMEOUT) => {
            log::info!("shim exits: no container and no client");
        }
        () = services.abandoned() => {
            log::warn!("shim exits: no container, and its client did not send Shutdown");
        }
        signal = terminated(signals, &services) => match signal {
            Ok(signal) => log::info!("shim exits: {signal}; containers keep running"),
            Err(error) => log::error!("shim exits: receive signals: {error}"),
        },
    }
    server.close();
    // Events first: containerd gets them before it sees the connection close.
    forward_last_events(&events).await;
    bounded(
        "send the last responses",
        SHUTDOWN_TIMEOUT,
        server.flushed(),
    )
    .await;
    bounded("stop the loggers", SHUTDOWN_TIMEOUT, stdio::loggers_ended()).await;
    Ok(())
}

/// Logs what this server is. The OCI runtime is known from Create on.
fn log_start() {
    if !log::log_enabled!(log::Level::Debug) {
        return;
    }
    let bundle = std::env::current_dir().unwrap_or_default();
    log::debug!(
        version = crate::VERSION,
        revision = crate::REVISION,
        pid = std::process::id(),
        cgroups = cgroup::mode(),
        bundle:% = bundle.display();
        "shim started"
    );
}

async fn release_memory_when_idle(services: Rc<Services>) {
    loop {
        services.idle(IDLE_DELAY).await;
        if let Err(error) = sys::memory::release() {
            log::debug!("release memory: {error}");
        }
        sleep(MEMORY_RELEASE_INTERVAL).await;
    }
}

/// Waits for a signal to end, SIGTERM or SIGINT.
async fn terminated(mut signals: Signals, services: &Services) -> io::Result<Signal> {
    loop {
        match signals.recv().await? {
            Signal::SIGUSR1 => log_report(services),
            signal => return Ok(signal),
        }
    }
}

/// Logs the state of the server, for people to whom it seems stuck.
fn log_report(services: &Services) {
    for (id, line) in services.report().lines() {
        log::info!(id; "SIGUSR1: {line}");
    }
}

async fn forward_last_events(events: &Events) {
    if timeout(SHUTDOWN_TIMEOUT_WITHOUT_CONTAINERD, events.drained())
        .await
        .is_ok()
    {
        return;
    }
    if events.nobody_listens() {
        let count = events.waiting();
        log::error!("shim exits: {count} events dropped: containerd is not listening");
    } else {
        let rest = SHUTDOWN_TIMEOUT - SHUTDOWN_TIMEOUT_WITHOUT_CONTAINERD;
        bounded("forward the last events", rest, events.drained()).await;
    }
}

async fn bounded(what: &str, time: Duration, work: impl Future<Output = ()>) {
    if timeout(time, work).await.is_err() {
        log::error!("{what}: not done within {time:?}");
    }
}
