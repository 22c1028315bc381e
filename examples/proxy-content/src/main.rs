//! A content store, served to containerd on a unix socket.
//!
//! `proxy-content SOCKET DIRECTORY` keeps blobs in DIRECTORY. It may be killed and started again
//! at any time: a blob is there as a whole or not at all, and a write that was cut off goes on
//! where it ended.
//!
//! Lacks on purpose: labels and filters, since containerd's metadata store, the only client,
//! keeps and filters labels by itself; and anything asynchronous about files.
#![allow(
    clippy::result_large_err,
    reason = "it is the type of the trait's errors"
)]

mod store;
mod write;

/// `google.protobuf.Empty`.
pub type Empty = ();

/// The service as `build.rs` makes it.
mod service {
    tonic::include_proto!("containerd.services.content.v1.Content");
}

use std::fs::File;
use std::io::Read;
use std::process::ExitCode;
use std::sync::Arc;

use containerd_client::services::v1::{
    AbortRequest, DeleteContentRequest, InfoRequest, InfoResponse, ListContentRequest,
    ListContentResponse, ListStatusesRequest, ListStatusesResponse, ReadContentRequest,
    ReadContentResponse, StatusRequest, StatusResponse, UpdateRequest, UpdateResponse,
    WriteContentRequest, WriteContentResponse,
};
use store::Store;
use tokio::net::UnixListener;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// Of a blob that is read, the most bytes in one message.
const CHUNK: usize = 256 << 10;

/// The largest message that is taken, in bytes: containerd's own limit.
const MESSAGE_LIMIT: usize = 16 << 20;

struct Content(Arc<Store>);

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl service::content_server::Content for Content {
    async fn info(&self, request: Request<InfoRequest>) -> Reply<InfoResponse> {
        let info = Some(self.0.info(&request.into_inner().digest)?);
        Ok(Response::new(InfoResponse { info }))
    }

    async fn update(&self, _: Request<UpdateRequest>) -> Reply<UpdateResponse> {
        Err(Status::failed_precondition(
            "update content: this store has no labels",
        ))
    }

    async fn delete(&self, request: Request<DeleteContentRequest>) -> Reply<()> {
        self.0
            .delete(&request.into_inner().digest)
            .map(Response::new)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Reply<StatusResponse> {
        let status = Some(self.0.status(&request.into_inner().r#ref)?);
        Ok(Response::new(StatusResponse { status }))
    }

    async fn list_statuses(
        &self,
        request: Request<ListStatusesRequest>,
    ) -> Reply<ListStatusesResponse> {
        no_filters(&request.into_inner().filters)?;
        let statuses = self.0.statuses()?;
        Ok(Response::new(ListStatusesResponse { statuses }))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Reply<()> {
        self.0.abort(&request.into_inner().r#ref).map(Response::new)
    }

    type ListStream = tokio_stream::Once<Result<ListContentResponse, Status>>;

    async fn list(&self, request: Request<ListContentRequest>) -> Reply<Self::ListStream> {
        no_filters(&request.into_inner().filters)?;
        let info = self.0.infos()?;
        Ok(Response::new(tokio_stream::once(Ok(ListContentResponse {
            info,
        }))))
    }

    type ReadStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<ReadContentResponse, Status>> + Send>>;

    async fn read(&self, request: Request<ReadContentRequest>) -> Reply<Self::ReadStream> {
        let request = request.into_inner();
        let (file, size) = self.0.open_blob(&request.digest, request.offset)?;
        let left = match u64::try_from(request.size) {
            Ok(wanted @ 1..) => wanted.min(size),
            _ => size,
        };
        let chunks = Chunks {
            file,
            offset: request.offset.max(0),
            left,
        };
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    type WriteStream = ReceiverStream<Result<WriteContentResponse, Status>>;

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Reply<Self::WriteStream> {
        let (send, replies) = tokio::sync::mpsc::channel(1);
        let (store, requests) = (self.0.clone(), request.into_inner());
        tokio::spawn(async move {
            if let Err(error) = write::serve(&store, requests, &send).await {
                let _ = send.send(Err(error)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(replies)))
    }
}

fn no_filters(filters: &[String]) -> Result<(), Status> {
    if filters.is_empty() {
        return Ok(());
    }
    Err(Status::unimplemented("list content: filters"))
}

/// The messages of one Read.
struct Chunks {
    file: File,
    offset: i64,
    left: u64,
}

impl Iterator for Chunks {
    type Item = Result<ReadContentResponse, Status>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let mut data = vec![0; CHUNK.min(usize::try_from(self.left).unwrap_or(CHUNK))];
        if let Err(error) = self.file.read_exact(&mut data) {
            self.left = 0;
            return Some(Err(Status::internal(format!("read a blob: {error}"))));
        }
        let offset = self.offset;
        self.offset += data.len() as i64;
        self.left -= data.len() as u64;
        Some(Ok(ReadContentResponse { offset, data }))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(socket), Some(directory), None) = (args.next(), args.next(), args.next()) else {
        eprintln!("usage: proxy-content SOCKET DIRECTORY");
        return ExitCode::from(2);
    };
    match serve(&socket, &directory).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxy-content: {error}");
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
    let content = service::content_server::ContentServer::new(Content(Arc::new(store)))
        .max_decoding_message_size(MESSAGE_LIMIT);
    Server::builder()
        .add_service(content)
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await?;
    Ok(())
}
