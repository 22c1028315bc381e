//! One Write: a stream of requests, of which each is answered, for one ref.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};

use containerd_client::services::v1::{WriteAction, WriteContentRequest, WriteContentResponse};
use tokio::sync::mpsc::Sender;
use tonic::{Status, Streaming};

use crate::store::{Lock, Store, digest, failed};

/// An open write.
struct Open<'a> {
    store: &'a Store,
    of: String,
    data: File,
    total: i64,
    expected: String,
    _lock: Lock,
}

/// Answers requests until the client has no more, or has committed.
pub async fn serve(
    store: &Store,
    mut requests: Streaming<WriteContentRequest>,
    replies: &Sender<Result<WriteContentResponse, Status>>,
) -> Result<(), Status> {
    let mut open = None;
    while let Some(request) = requests.message().await? {
        let write = match &mut open {
            Some(write) => write,
            none => none.insert(Open::new(store, &request)?),
        };
        let reply = write.answer(&request)?;
        let last = request.action == WriteAction::Commit as i32;
        if replies.send(Ok(reply)).await.is_err() || last {
            break;
        }
    }
    Ok(())
}

impl<'a> Open<'a> {
    /// Begins a write, or goes on with one that was begun.
    fn new(store: &'a Store, request: &WriteContentRequest) -> Result<Self, Status> {
        let of = request.r#ref.clone();
        if of.is_empty() {
            return Err(Status::invalid_argument("write content: no ref"));
        }
        let lock = store.lock(&of)?;
        refuse_existing(store, &request.expected)?;
        let place = store.place(&of);
        let path = place.join("data");
        let create = || {
            fs::create_dir_all(&place)?;
            fs::write(place.join("ref"), &of)?;
            fs::write(place.join("expected"), &request.expected)?;
            fs::write(place.join("total"), request.total.to_string())?;
            OpenOptions::new().append(true).create(true).open(&path)
        };
        let data = create().map_err(|error| failed("create", &place, &error))?;
        let (total, expected) = (request.total, request.expected.clone());
        Ok(Self {
            store,
            of,
            data,
            total,
            expected,
            _lock: lock,
        })
    }

    fn offset(&self) -> Result<i64, Status> {
        let path = self.store.place(&self.of);
        let metadata = self
            .data
            .metadata()
            .map_err(|error| failed("stat", &path, &error))?;
        Ok(metadata.len() as i64)
    }

    fn answer(&mut self, request: &WriteContentRequest) -> Result<WriteContentResponse, Status> {
        if request.total > 0 {
            self.total = request.total;
        }
        if !request.expected.is_empty() {
            self.expected = request.expected.clone();
        }
        if request.action != WriteAction::Stat as i32 {
            self.append(request.offset, &request.data)?;
        }
        let status = self.store.status(&self.of)?;
        let digest = if request.action == WriteAction::Commit as i32 {
            self.commit()?
        } else {
            String::new()
        };
        Ok(WriteContentResponse {
            action: request.action,
            started_at: status.started_at,
            updated_at: status.updated_at,
            offset: status.offset,
            total: self.total,
            digest,
        })
    }

    /// Data follows what is there; offset 0 begins anew.
    fn append(&mut self, offset: i64, data: &[u8]) -> Result<(), Status> {
        if data.is_empty() {
            return Ok(());
        }
        let (place, there) = (self.store.place(&self.of), self.offset()?);
        if offset != there && offset != 0 {
            let message = format!(
                "ref {}: write at {offset}, and {there} bytes are there",
                self.of
            );
            return Err(Status::out_of_range(message));
        }
        let write = |file: &mut File| {
            if offset != there {
                file.set_len(0)?;
                file.seek(SeekFrom::Start(0))?;
            }
            file.write_all(data)
        };
        write(&mut self.data).map_err(|error| failed("write", &place, &error))
    }

    /// Makes a blob of it, if it is what the client expects.
    fn commit(&mut self) -> Result<String, Status> {
        let (place, size) = (self.store.place(&self.of), self.offset()?);
        if self.total > 0 && size != self.total {
            let message = format!("ref {}: has {size} bytes, not {}", self.of, self.total);
            return Err(Status::failed_precondition(message));
        }
        let data = place.join("data");
        let digest = digest(&data)?;
        if !self.expected.is_empty() && digest != self.expected {
            let message = format!("ref {}: is {digest}, not {}", self.of, self.expected);
            return Err(Status::failed_precondition(message));
        }
        refuse_existing(self.store, &digest)?;
        let blob = self.store.blob(&digest)?;
        self.data
            .sync_all()
            .and_then(|()| fs::rename(&data, &blob))
            .and_then(|()| fs::remove_dir_all(&place))
            .map_err(|error| failed("commit", &place, &error))?;
        Ok(digest)
    }
}

/// A blob that is there is not written again.
fn refuse_existing(store: &Store, digest: &str) -> Result<(), Status> {
    if !digest.is_empty() && store.blob(digest)?.exists() {
        return Err(Status::already_exists(format!(
            "content {digest}: already exists"
        )));
    }
    Ok(())
}
