//! The long-lived server: wires the parts together, owns its signals and the order in
//! which it ends.
//!
//! It ends for five reasons only: Shutdown without a container, half a minute without
//! client and container, ten seconds without a container that it had, SIGTERM, SIGINT. Containers outlive the latter two: whoever sends
//! them cleans up. SIGUSR1 has its state written to the log.

use std::future::Future;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use crate::bundle::Bundle;
use crate::cgroup;
use crate::cli::Flags;
use crate::error::{Context, Error, Result};
use crate::events::Events;
use crate::local;
use crate::reaper::Reaper;
use crate::service::Service;
use crate::socket::{self, Claim};
use crate::stdio;
use crate::sys;
use crate::task::{Shared, Tasks};

/// The listening socket that `start` leaves open for the server.
const LISTENER: i32 = 3;
/// How long a server that never had a container waits for a client. containerd dials
/// milliseconds after `start` has answered; a `start` that was killed leaves nobody.
const DESERTED: Duration = Duration::from_secs(30);
/// How long after the last request the server gives back the memory that it needs at work.
const REST: Duration = Duration::from_millis(100);
/// How long it then keeps what it needs again, so that frequent calls, such as the execs of
/// a health check, do not pay for it each time.
const KEEP: Duration = Duration::from_secs(30);
/// How long the end waits for answers and events to be taken.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long it waits for events to be taken while nobody listens for them.
const FAREWELL_TO_NOBODY: Duration = Duration::from_secs(1);

/// Serves until there is nothing left to serve.
// Not in the frame of `main`, which the server has on its stack for ever.
#[inline(never)]
pub fn run(flags: &Flags) -> Result<()> {
    let bundle = Bundle::at(std::env::current_dir().context(|| "get the working directory")?);
    // Without its log a server is still worth having.
    let _ = crate::log::init(&bundle.log(), flags.debug, &flags.id, &flags.namespace);
    let listener = listener(&flags.socket)?;
    if let Err(error) = sys::process::raise_descriptor_limit() {
        log::warn!("raise the soft limit of open files to the hard limit: {error}");
    }
    let reaper = Reaper::new();
    reaper
        .block_on(serve(flags, listener, reaper.clone()))
        .context(|| "start the event loop")?
}

/// The socket to serve on: the one that `start` left open, or one at `path`.
fn listener(path: &str) -> Result<UnixListener> {
    if path.is_empty() {
        let inherited = sys::fd::take_inherited(LISTENER);
        return inherited
            .map(UnixListener::from)
            .context(|| format!("take over the listening socket (descriptor {LISTENER})"));
    }
    match socket::claim(Path::new(path)).context(|| format!("listen on {path}"))? {
        Claim::Ours(listener) => Ok(listener),
        Claim::Served => Err(Error::unknown(format!(
            "listen on {path}: another server is listening"
        ))),
    }
}

async fn serve(flags: &Flags, listener: UnixListener, reaper: Reaper) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context(|| "listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context(|| "listen for SIGINT")?;
    let mut user = signal(SignalKind::user_defined1()).context(|| "listen for SIGUSR1")?;

    let events = Events::new(flags.ttrpc_address.clone(), flags.namespace.clone());
    local::spawn(events.clone().run());

    let tasks = Tasks::new(Shared {
        reaper,
        events: events.clone(),
        namespace: flags.namespace.clone(),
        stats_bursts: Default::default(),
    });
    let service = Service::new(tasks);
    let server = service.endpoint(listener)?;
    local::spawn(server.clone().run());
    local::spawn(release_memory_at_rest(service.clone()));
    log_start();

    let report = async {
        while user.recv().await.is_some() {
            report(&service, &events);
        }
    };
    tokio::select! {
        () = report => log::error!("shim exits: cannot receive SIGUSR1 any more"),
        () = service.shut_down() => log::debug!("shim exits: Shutdown and no container left"),
        () = service.deserted(DESERTED) => {
            log::info!("shim exits: no container and no client");
        }
        () = service.forgotten() => {
            log::warn!("shim exits: no container, and its client did not send Shutdown");
        }
        _ = terminate.recv() => log::info!("shim exits: SIGTERM; containers keep running"),
        _ = interrupt.recv() => log::info!("shim exits: SIGINT; containers keep running"),
    }
    server.close();
    // Events first: their clients see them before they see the shim go.
    deliver_last(&events).await;
    bounded("send the last responses", FAREWELL, server.flushed()).await;
    bounded("stop the loggers", FAREWELL, stdio::loggers_ended()).await;
    Ok(())
}

/// What this server is and where; the OCI runtime is known from Create on.
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

async fn release_memory_at_rest(service: Rc<Service>) {
    loop {
        service.at_rest(REST).await;
        if let Err(error) = sys::memory::release() {
            log::debug!("release memory: {error}");
        }
        sleep(KEEP).await;
    }
}

/// Writes to the log what there is to know of a server that seems stuck.
fn report(service: &Service, events: &Events) {
    for (id, line) in service.report() {
        log::info!(id; "SIGUSR1: {line}");
    }
    log::info!("SIGUSR1: {} events are queued", events.waiting());
}

async fn deliver_last(events: &Events) {
    if timeout(FAREWELL_TO_NOBODY, events.drained()).await.is_ok() {
        return;
    }
    if events.nobody_listens() {
        let count = events.waiting();
        log::error!("shim exits: {count} events dropped: containerd is not listening");
    } else {
        let rest = FAREWELL - FAREWELL_TO_NOBODY;
        bounded("forward the last events", rest, events.drained()).await;
    }
}

async fn bounded(what: &str, time: Duration, work: impl Future<Output = ()>) {
    if timeout(time, work).await.is_err() {
        log::error!("{what}: not done within {time:?}");
    }
}
