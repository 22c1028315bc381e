//! An overlay snapshotter, served to containerd on a unix socket.
//!
//! `proxy-snapshotter SOCKET DIRECTORY` keeps its snapshots in DIRECTORY. It may be killed and
//! started again at any time: what containerd has been told is in DIRECTORY by then.
//!
//! Lacks on purpose: filters of List (containerd's metadata store, the only client, sends
//! none), quotas, id-mapped layers, and anything asynchronous about files.
#![allow(
    clippy::result_large_err,
    reason = "it is the type of the trait's errors"
)]

mod store;

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard};

use containerd_snapshots::tonic::{self, Status, transport::Server};
use containerd_snapshots::{Info, Kind, Snapshotter, Usage, api::types::Mount};
use store::Store;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

/// The service: the store behind a lock that is never held across an `.await`.
struct Overlay(Mutex<Store>);

impl Overlay {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(|error| error.into_inner())
    }
}

type Labels = HashMap<String, String>;

#[tonic::async_trait]
impl Snapshotter for Overlay {
    type Error = Status;

    async fn stat(&self, key: String) -> Result<Info, Status> {
        self.store().info(&key)
    }

    async fn update(&self, info: Info, fields: Option<Vec<String>>) -> Result<Info, Status> {
        self.store().update(info, fields)
    }

    async fn usage(&self, key: String) -> Result<Usage, Status> {
        self.store().usage(&key)
    }

    async fn mounts(&self, key: String) -> Result<Vec<Mount>, Status> {
        self.store().mounts(&key)
    }

    async fn prepare(
        &self,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<Vec<Mount>, Status> {
        self.store().add(key, parent, labels, Kind::Active)
    }

    async fn view(
        &self,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<Vec<Mount>, Status> {
        self.store().add(key, parent, labels, Kind::View)
    }

    async fn commit(&self, name: String, key: String, labels: Labels) -> Result<(), Status> {
        self.store().commit(name, &key, labels)
    }

    async fn remove(&self, key: String) -> Result<(), Status> {
        self.store().remove(&key)
    }

    type InfoStream = tokio_stream::Iter<std::vec::IntoIter<Result<Info, Status>>>;

    async fn list(&self, _: String, filters: Vec<String>) -> Result<Self::InfoStream, Status> {
        if !filters.is_empty() {
            return Err(Status::unimplemented("list snapshots: filters"));
        }
        Ok(tokio_stream::iter(self.store().all()))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(socket), Some(directory), None) = (args.next(), args.next(), args.next()) else {
        eprintln!("usage: proxy-snapshotter SOCKET DIRECTORY");
        return ExitCode::from(2);
    };
    match serve(&socket, &directory).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxy-snapshotter: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(socket: &str, directory: &str) -> Result<(), Box<dyn std::error::Error>> {
    let store = Store::open(directory).map_err(|error| format!("open {directory}: {error}"))?;
    // The socket of one that was killed is in the way.
    let _ = std::fs::remove_file(socket);
    let listener =
        UnixListener::bind(socket).map_err(|error| format!("listen on {socket}: {error}"))?;
    Server::builder()
        .add_service(containerd_snapshots::server(Arc::new(Overlay(Mutex::new(
            store,
        )))))
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await?;
    Ok(())
}
