//! stub
use crate::error::Result;
use std::future::Future;
use std::os::unix::net::UnixListener;
use std::pin::Pin;
use std::rc::Rc;

/// One request.
pub struct Call {
    pub service: String,
    pub method: String,
    pub payload: Vec<u8>,
}

/// Answers one request. The server drops the future when its deadline passes (and answers
/// DeadlineExceeded) or its client goes away: work that must not be cut short is spawned.
pub type Handler = Rc<dyn Fn(Call) -> Pin<Box<dyn Future<Output = Result<Vec<u8>>>>>>;

/// A ttrpc endpoint on one listening socket.
pub struct Server(());

impl Server {
    pub fn new(_listener: UnixListener) -> Result<Rc<Self>> {
        todo!()
    }
    /// Serves until [`Server::close`].
    pub async fn run(self: Rc<Self>, _handler: Handler) -> Result<()> {
        todo!()
    }
    /// From now on nobody can connect: refuses connections and removes the socket's file
    /// (only if that is still ours). Open connections go on.
    pub fn close(&self) {
        todo!()
    }
    /// How many clients are connected.
    pub fn connections(&self) -> usize {
        todo!()
    }
    /// Waits until all answers that are queued now have been written.
    pub async fn flushed(&self) {
        todo!()
    }
}
