//! A ttrpc endpoint: one listening socket, any number of connections, one handler.
//!
//! ```text
//! accept ─ peer is us? ─ connection: ┌ write answers ◄──── outbox ◄─┐
//!                                    └ read, once all is written ─ handler, at once
//!                                                     └ unless that waits: its own task
//! ```
//!
//! Promises: no request, malformed or not, no panic in a handler and no failure to
//! accept ends the server. A client that does not read is not read from, and nothing is
//! done for it: its memory here is bounded. A busy client gets its turn as the others do.
//! Requests under way keep none of another [`Class`] from being served.
//! A connection that goes takes its handlers' futures with it. An idle connection costs
//! its task, no buffer.
//!
//! Lacks on purpose: names of services and methods; the handler knows them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use log::{debug, error, warn};
use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::{getegid, geteuid};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};

use super::frame::{self, Frame, FrameReader, Received};
use super::parked::{self, Parked};
use crate::descriptors;
use crate::error::{Context as _, Error, Kind, Result};
use crate::local;

/// Requests taken from one connection in a row; then the others have their turn. So they
/// have when those requests took [`TURN`].
const REQUESTS_PER_TURN: usize = 4;
const TURN: Duration = Duration::from_millis(1);

/// Answers to parked requests that are made in a row; then the others have their turn.
const ANSWERS_PER_TURN: usize = 64;

/// Requests of one connection and one lane that are under way, and the bytes of their
/// payloads. Beyond either the next ones of the lane are refused.
const MAX_RUNNING: usize = 1024;
const MAX_RUNNING_BYTES: usize = 8 << 20;

/// How long to leave the listener alone when it cannot accept: descriptors become
/// free anywhere in the system, and no event reports that.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One request. Its metadata has been dropped: the namespace is the shim's own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// As in `containerd.task.v3.Task`.
    pub service: String,
    /// As in `Create`.
    pub method: String,
    /// The request's message, encoded.
    pub payload: Vec<u8>,
}

/// Answers one request. The server drops the future when its deadline passes (and answers
/// DeadlineExceeded) or its client goes away: work that must not be cut short is spawned.
pub type Handler = Rc<dyn Fn(Rc<Call>) -> Pin<Box<dyn Future<Output = Result<Vec<u8>>>>>>;

/// How many lanes there are.
pub const LANES: usize = 6;

/// What a call is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It waits for an event, maybe for ever, and changes nothing: equal ones may share one
    /// answer, and any number of them may wait.
    Parks,
    /// It is in a lane, a number below [`LANES`]. Each lane has a limit of its own.
    Lane(usize),
}

/// The class of a call.
pub type Classify = fn(&Call) -> Class;

/// A call under way.
pub(super) type Work = Pin<Box<dyn Future<Output = Finished>>>;

/// A ttrpc endpoint on one listening socket.
pub struct Server {
    /// Not to be accepted from once `closed`: shut down, it is for ever readable with
    /// nothing to accept, and tokio would try without end.
    listener: tokio::net::UnixListener,
    file: RefCell<Option<SocketFile>>,
    handler: Handler,
    classify: Classify,
    closed: Cell<bool>,
    connections: Cell<usize>,
    /// `connections` became 0, or 1.
    peopled: Notify,
    /// Requests that wait for their handler: those under way, and those that are parked.
    pending: Cell<(usize, usize)>,
    /// Answers that exist and have not been written.
    unwritten: Cell<usize>,
    /// `unwritten` became 0.
    all_written: Notify,
}

impl Server {
    /// An endpoint on `listener`, which serves once [`Server::run`] is polled. Needs
    /// a tokio runtime.
    pub fn new(listener: UnixListener, handler: Handler, classify: Classify) -> Result<Rc<Self>> {
        let file = SocketFile::of(&listener);
        let listener = listener
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixListener::from_std(listener))
            .context(|| "listen on ttrpc socket")?;
        Ok(Rc::new(Self {
            listener,
            file: RefCell::new(file),
            handler,
            classify,
            closed: Cell::new(false),
            connections: Cell::new(0),
            peopled: Notify::new(),
            pending: Cell::default(),
            unwritten: Cell::new(0),
            all_written: Notify::new(),
        }))
    }

    /// Serves until [`Server::close`]; connections that are open then go on by
    /// themselves. Must run in a `LocalSet`. Failures to accept do not end it.
    pub async fn run(self: Rc<Self>) -> Result<()> {
        let mut failing = false;
        while let Some(accepted) = poll_fn(|cx| self.poll_accept(cx)).await {
            match accepted {
                Ok(stream) => {
                    failing = false;
                    self.admit(stream);
                }
                Err(e) => {
                    if !mem::replace(&mut failing, true) {
                        warn!("accept ttrpc connection failed, will retry: {e}");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        self.admit_backlog().context(|| "accept ttrpc connection")
    }

    /// `None` when closed, of which the shutdown of the socket wakes us.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<UnixStream>>> {
        if self.closed.get() {
            return Poll::Ready(None);
        }
        if !descriptors::suffice_for_connection() {
            return Poll::Ready(Some(Err(Errno::EMFILE.into())));
        }
        let accepted = ready!(self.listener.poll_accept(cx));
        Poll::Ready(Some(accepted.map(|(stream, _)| stream)))
    }

    /// Serves those who connected before the socket was shut down.
    fn admit_backlog(self: &Rc<Self>) -> io::Result<()> {
        let listener = UnixListener::from(self.listener.as_fd().try_clone_to_owned()?);
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true)?;
            self.admit(UnixStream::from_std(stream)?);
        }
        Ok(())
    }

    /// Serves `stream` if its peer has our uid and gid, else closes it.
    fn admit(self: &Rc<Self>, stream: UnixStream) {
        match check_peer(&stream) {
            Ok(()) => {
                local::spawn(Connection::new(self.clone(), stream).serve());
            }
            Err(e) => warn!("refuse ttrpc connection: {e}"),
        }
    }

    /// From now on nobody can connect: removes the socket's file (only if that is
    /// still ours) and refuses connections. Whoever connected before is served.
    pub fn close(&self) {
        if self.closed.replace(true) {
            return;
        }
        // The file first: while we listen, nobody has a reason to put another in
        // its place between the look and the removal.
        if let Some(file) = self.file.take() {
            file.remove();
        }
        // Wakes `run` too.
        if let Err(e) = shutdown(self.listener.as_raw_fd(), Shutdown::Both) {
            warn!("shut down ttrpc listener: {e}");
        }
    }

    /// How many clients are connected.
    pub fn connections(&self) -> usize {
        self.connections.get()
    }

    /// How many requests are under way, and how many are parked.
    pub fn pending(&self) -> (usize, usize) {
        self.pending.get()
    }

    /// Waits until there has been no client for `time`.
    pub async fn deserted(&self, time: Duration) {
        loop {
            let changed = self.peopled.notified();
            if self.connections() > 0 {
                changed.await;
            } else if timeout(time, changed).await.is_err() {
                return;
            }
        }
    }

    /// Waits until the first client comes or the last one leaves, from this call on.
    pub fn client_changes(&self) -> Notified<'_> {
        self.peopled.notified()
    }

    fn set_connections(&self, count: usize) {
        self.connections.set(count);
        if count <= 1 {
            self.peopled.notify_waiters();
        }
    }

    /// Waits until all answers that exist now (a handler has returned them) have been
    /// written, or their clients are gone. A client that does not read holds this up.
    pub async fn flushed(&self) {
        if self.unwritten.get() > 0 {
            self.all_written.notified().await;
        }
    }
}

/// An error unless `stream`'s peer has our uid and our gid.
fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let (peer_uid, peer_gid) = (peer.uid(), peer.gid());
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    if (peer_uid, peer_gid) == (uid, gid) {
        return Ok(());
    }
    let text = format!("peer has uid {peer_uid} and gid {peer_gid}, not {uid} and {gid}");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

/// The file a listening socket is bound to.
struct SocketFile {
    path: PathBuf,
    /// Device and inode. Not used again for another file while the socket is open.
    identity: (u64, u64),
}

impl SocketFile {
    /// `None` for an abstract or unnamed socket, or when the file is gone already.
    fn of(listener: &UnixListener) -> Option<Self> {
        let address = listener.local_addr().ok()?;
        let path = address.as_pathname()?;
        Some(Self {
            path: path.to_owned(),
            identity: identity(path).ok()?,
        })
    }

    fn remove(self) {
        match identity(&self.path) {
            Ok(found) if found == self.identity => {
                if let Err(e) = std::fs::remove_file(&self.path) {
                    warn!("remove {}: {e}", self.path.display());
                }
            }
            Ok(_) => debug!(
                "keep {}: it is the socket of another server",
                self.path.display()
            ),
            Err(e) => debug!("remove {}: {e}", self.path.display()),
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// A request under way.
struct Running {
    id: u32,
    lane: usize,
    /// Bytes of its payload.
    size: usize,
}

/// The requests of one lane that are under way.
#[derive(Debug, Default)]
struct Lane {
    count: usize,
    /// Of their payloads.
    bytes: usize,
}

impl Lane {
    fn is_full(&self) -> bool {
        self.count >= MAX_RUNNING || self.bytes > MAX_RUNNING_BYTES
    }

    fn add(&mut self, size: usize) {
        self.count += 1;
        self.bytes += size;
    }

    fn remove(&mut self, size: usize) {
        self.count -= 1;
        self.bytes -= size;
    }
}

/// One client.
struct Connection {
    server: Rc<Server>,
    stream: UnixStream,
    reader: FrameReader,
    /// Ids only grow.
    last_id: u32,
    /// Dropping it aborts them.
    running: JoinSet<(Running, Finished)>,
    lanes: [Lane; LANES],
    parked: Parked,
    outbox: Outbox,
    /// What of [`Server::pending`] is ours.
    pending: (usize, usize),
}

impl Connection {
    fn new(server: Rc<Server>, stream: UnixStream) -> Self {
        server.set_connections(server.connections() + 1);
        Self {
            server,
            stream,
            reader: FrameReader::of_requests(),
            last_id: 0,
            running: JoinSet::new(),
            lanes: Default::default(),
            parked: Parked::default(),
            outbox: Outbox::default(),
            pending: (0, 0),
        }
    }

    async fn serve(mut self) {
        let served = poll_fn(|cx| {
            let polled = self.poll_serve(cx);
            self.count_pending(self.running.len(), self.parked.len());
            polled
        });
        if let Err(e) = served.await {
            warn!("close ttrpc connection: {e}");
        }
    }

    /// Ready when the client is gone, or must go.
    fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let begun = Instant::now();
        for taken in 0..REQUESTS_PER_TURN {
            self.collect(cx);
            if let Poll::Ready(Err(e)) = self.outbox.poll_write(&self.stream, cx) {
                return Poll::Ready(gone(e));
            }
            // A client that does not read: what is done for it waits here, so it is little.
            if !self.outbox.is_empty() {
                return Poll::Pending;
            }
            if self.parked.has_answers() || (taken > 0 && begun.elapsed() > TURN) {
                break;
            }
            match ready!(self.reader.poll_frame(&self.stream, cx)) {
                Ok(Some(frame)) => self.take(frame, cx)?,
                Ok(None) => return Poll::Ready(Ok(())),
                Err(e) => return Poll::Ready(gone(e)),
            }
        }
        // Goes on once the sockets have been looked at: others may have become readable.
        let _ = pin!(yield_now()).poll(cx);
        Poll::Pending
    }

    /// Queues the answers of the handlers that are done.
    fn collect(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(done)) = self.running.poll_join_next(cx) {
            match done {
                Ok((done, mut finished)) => {
                    self.lanes[done.lane].remove(done.size);
                    self.answer(done.id, finished.take());
                }
                // Not in the handler, that is caught: when its future was dropped.
                Err(e) => error!("ttrpc request: {e}"),
            }
        }
        self.parked.collect(cx);
        while self.outbox.queue.len() < ANSWERS_PER_TURN
            && let Some((id, outcome)) = self.parked.next_answer()
        {
            self.answer(id, outcome);
        }
    }

    fn answer(&mut self, id: u32, outcome: Result<Vec<u8>>) {
        let unwritten = Unwritten::count(&self.server);
        let frame = frame::response(id, outcome);
        self.outbox.push(Answer { unwritten, frame });
    }

    fn take(&mut self, frame: Frame, cx: &mut Context<'_>) -> io::Result<()> {
        let id = match frame {
            Frame::Message { id, .. } | Frame::Oversize { id, .. } => id,
        };
        if id <= self.last_id {
            let wrong = format!("stream ID {id} after {}", self.last_id);
            return Err(io::Error::new(io::ErrorKind::InvalidData, wrong));
        }
        self.last_id = id;
        let received = match frame {
            Frame::Oversize { length, .. } => Err(frame::oversize(length)),
            Frame::Message { body, .. } => Received::decode(body),
        };
        match received {
            Ok(received) if received.timeout_nano < 0 => self.answer(id, Err(expired())),
            Ok(received) => self.call(id, received, cx),
            // The frames are intact: the other requests need not suffer.
            Err(refusal) => self.answer(id, Err(refusal)),
        }
        Ok(())
    }

    /// Calls the handler. What it answers at once needs no task.
    fn call(&mut self, id: u32, received: Received, cx: &mut Context<'_>) {
        let deadline = received.timeout_nano as u64;
        let call = Call {
            service: received.service,
            method: received.method,
            payload: received.payload,
        };
        match (self.server.classify)(&call) {
            Class::Parks => self.park(id, call, deadline, cx),
            Class::Lane(lane) => self.work(id, call, lane, deadline, cx),
        }
    }

    fn park(&mut self, id: u32, call: Call, deadline: u64, cx: &mut Context<'_>) {
        let size = call.payload.len();
        if size > parked::MAX_PAYLOAD {
            let text = format!(
                "{}: {size} bytes, and {} at most",
                call.method,
                parked::MAX_PAYLOAD
            );
            return self.answer(id, Err(Error::invalid(text)));
        }
        let call = Rc::new(call);
        if deadline == 0 && self.parked.join(&call, id) {
            return;
        }
        let mut work: Work = Box::pin(work(self.server.clone(), deadline, call.clone()));
        match work.as_mut().poll(cx) {
            Poll::Ready(mut finished) => self.answer(id, finished.take()),
            Poll::Pending => self.parked.park(call, id, work, deadline == 0),
        }
    }

    fn work(&mut self, id: u32, call: Call, lane: usize, deadline: u64, cx: &mut Context<'_>) {
        let size = call.payload.len();
        let Lane { count, bytes } = self.lanes[lane];
        if self.lanes[lane].is_full() {
            let text = format!(
                "{}: {count} requests of its kind, {bytes} bytes, are under way on this connection",
                call.method
            );
            return self.answer(id, Err(Error::new(Kind::ResourceExhausted, text)));
        }
        let mut work: Work = Box::pin(work(self.server.clone(), deadline, Rc::new(call)));
        match work.as_mut().poll(cx) {
            Poll::Ready(mut finished) => self.answer(id, finished.take()),
            Poll::Pending => {
                self.lanes[lane].add(size);
                let running = Running { id, lane, size };
                self.running
                    .spawn_local(async move { (running, work.await) });
            }
        }
    }

    fn count_pending(&mut self, running: usize, parked: usize) {
        let (all_running, all_parked) = self.server.pending();
        let (our_running, our_parked) = std::mem::replace(&mut self.pending, (running, parked));
        self.server.pending.set((
            all_running - our_running + running,
            all_parked - our_parked + parked,
        ));
    }
}

/// A client may go at any time: no error, unless it went within a frame.
fn gone(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Ok(()),
        _ => Err(error),
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.count_pending(0, 0);
        self.server.set_connections(self.server.connections() - 1);
    }
}

fn expired() -> Error {
    Error::new(Kind::DeadlineExceeded, "context deadline exceeded")
}

/// Runs the handler until the client's timeout, in nanoseconds; 0: no timeout.
async fn work(server: Rc<Server>, deadline: u64, call: Rc<Call>) -> Finished {
    let work = unless_it_panics(&server.handler, &call);
    let outcome = if deadline == 0 {
        work.await
    } else {
        timeout(Duration::from_nanos(deadline), work)
            .await
            .unwrap_or_else(|_| Err(expired()))
    };
    Finished {
        outcome: Some(outcome),
        _unwritten: Unwritten::count(&server),
    }
}

/// The handler's answer; a panic in it becomes an error.
async fn unless_it_panics(handler: &Handler, call: &Rc<Call>) -> Result<Vec<u8>> {
    // What a handler leaves behind is the business of those who own the state: a
    // `RefCell` that was borrowed is released as the panic unwinds.
    let caught = match catch_unwind(AssertUnwindSafe(|| handler(call.clone()))) {
        Ok(mut work) => {
            poll_fn(
                move |cx| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
                    Ok(poll) => poll.map(Some),
                    Err(_) => Poll::Ready(None),
                },
            )
            .await
        }
        Err(_) => None,
    };
    caught.unwrap_or_else(|| {
        let name = format!("{}/{}", call.service, call.method);
        error!("panic in {name}");
        Err(Error::unknown(format!("panic in {name}")))
    })
}

/// Counted in [`Server::unwritten`] while it lives.
struct Unwritten(Rc<Server>);

impl Unwritten {
    fn count(server: &Rc<Server>) -> Self {
        server.unwritten.set(server.unwritten.get() + 1);
        Self(server.clone())
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        let left = self.0.unwritten.get() - 1;
        self.0.unwritten.set(left);
        if left == 0 {
            self.0.all_written.notify_waiters();
        }
    }
}

/// What a handler returned; an answer that has not been written.
pub(super) struct Finished {
    outcome: Option<Result<Vec<u8>>>,
    _unwritten: Unwritten,
}

impl Finished {
    /// The outcome; it is there once.
    pub fn take(&mut self) -> Result<Vec<u8>> {
        let taken = || Err(Error::unknown("the answer was taken twice"));
        self.outcome.take().unwrap_or_else(taken)
    }
}

/// An answer on its way.
struct Answer {
    frame: Vec<u8>,
    #[expect(dead_code, reason = "counts while it lives")]
    unwritten: Unwritten,
}

/// Answers in the order in which they became ready.
#[derive(Default)]
struct Outbox {
    queue: VecDeque<Answer>,
    /// How much of the first one was written.
    written: usize,
}

impl Outbox {
    fn push(&mut self, answer: Answer) {
        self.queue.push_back(answer);
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Writes until all is written (ready) or the socket takes no more (pending).
    fn poll_write(&mut self, stream: &UnixStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(answer) = self.queue.front() {
            ready!(stream.poll_write_ready(cx))?;
            match stream.try_write(&answer.frame[self.written..]) {
                Ok(n) => self.written += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => return Poll::Ready(Err(e)),
            }
            if self.written == answer.frame.len() {
                self.written = 0;
                self.queue.pop_front();
            }
        }
        // After a burst, nothing is held while idle.
        self.queue = VecDeque::new();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Message;
    use crate::ttrpc::client::{Client, Failure};
    use std::future::pending;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::{LocalSet, spawn_local};
    use ttrpc::proto::{MESSAGE_LENGTH_MAX, Request, Response};

    /// Only there so that a test that would hang fails.
    const LONG: Duration = Duration::from_secs(20);

    /// A server in a directory of its own, and what its handler has seen.
    struct Fixture {
        server: Rc<Server>,
        path: PathBuf,
        seen: Rc<Seen>,
        _dir: TempDir,
    }

    #[derive(Default)]
    struct Seen {
        calls: Cell<usize>,
        /// Futures of `Hang` that live.
        hanging: Cell<usize>,
        answered: Notify,
        /// Ends what is parked.
        go: Notify,
    }

    struct Hanging(Rc<Seen>);

    impl Drop for Hanging {
        fn drop(&mut self) {
            self.0.hanging.set(self.0.hanging.get() - 1);
        }
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            let seen = Rc::new(Seen::default());
            let handler = {
                let seen = seen.clone();
                Rc::new(move |call: Rc<Call>| {
                    if call.method == "PanicAtOnce" {
                        panic!("at once");
                    }
                    Box::pin(handle(call, seen.clone())) as Pin<Box<dyn Future<Output = _>>>
                })
            };
            Self {
                server: Server::new(UnixListener::bind(&path).unwrap(), handler, classify).unwrap(),
                path,
                seen,
                _dir: dir,
            }
        }

        async fn client(&self) -> Client {
            Client::connect(self.path.to_str().unwrap()).await.unwrap()
        }

        async fn raw(&self) -> UnixStream {
            UnixStream::connect(&self.path).await.unwrap()
        }
    }

    fn classify(call: &Call) -> Class {
        match call.method.as_str() {
            "Park" => Class::Parks,
            "Hang" => Class::Lane(1),
            _ => Class::Lane(0),
        }
    }

    async fn handle(call: Rc<Call>, seen: Rc<Seen>) -> Result<Vec<u8>> {
        seen.calls.set(seen.calls.get() + 1);
        match call.method.as_str() {
            "Echo" => {
                seen.answered.notify_one();
                Ok(call.payload.clone())
            }
            "Big" => Ok(vec![1; 16 << 10]),
            "Fail" => Err(Error::not_found(&call.service)),
            "Panic" => {
                yield_now().await;
                panic!("later")
            }
            "Park" => {
                seen.hanging.set(seen.hanging.get() + 1);
                let _hanging = Hanging(seen.clone());
                seen.go.notified().await;
                Ok(call.payload.clone())
            }
            "Hang" => {
                seen.hanging.set(seen.hanging.get() + 1);
                let _hanging = Hanging(seen);
                pending().await
            }
            other => panic!("no {other}"),
        }
    }

    /// Runs `test` against a server.
    fn with_server<F: Future<Output = ()>>(test: impl FnOnce(Rc<Fixture>) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let fixture = Rc::new(Fixture::new());
            spawn_local(fixture.server.clone().run());
            timeout(LONG, test(fixture)).await.expect("hangs");
        });
    }

    async fn until(condition: impl Fn() -> bool) {
        while !condition() {
            yield_now().await;
        }
    }

    /// Lets everybody run as far as they come.
    async fn settle() {
        for _ in 0..100 {
            yield_now().await;
        }
    }

    async fn call(client: &mut Client, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
        let called = client.call("svc", method, &[("k", "v")], payload.to_vec(), LONG);
        called.await.map_err(|failure| match failure {
            Failure::Refused(error) => error,
            Failure::Transport(error) => panic!("{error}"),
        })
    }

    fn request(id: u32, method: &str, payload: &[u8]) -> Vec<u8> {
        let request = Request {
            service: "svc".into(),
            method: method.into(),
            payload: payload.into(),
            ..Default::default()
        };
        frame::request(id, &request).unwrap()
    }

    /// The next answer: its stream id and what it says.
    async fn answer(stream: &mut UnixStream) -> (u32, Result<Vec<u8>>) {
        let length = stream.read_u32().await.unwrap();
        let id = stream.read_u32().await.unwrap();
        assert_eq!(stream.read_u16().await.unwrap(), 0x0200);
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).await.unwrap();
        let response = Response::parse_from_bytes(&body).unwrap();
        (id, frame::outcome(response))
    }

    /// Asserts that the server closes the connection, without an answer.
    async fn closed(mut stream: UnixStream) {
        let mut rest = Vec::new();
        match stream.read_to_end(&mut rest).await {
            Ok(n) => assert_eq!(n, 0),
            // We sent more than it cared to read.
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::ConnectionReset),
        }
    }

    #[test]
    fn responses_have_code_and_text() {
        with_server(|f| async move {
            let mut client = f.client().await;
            assert_eq!(call(&mut client, "Echo", b"hi").await, Ok(b"hi".to_vec()));
            let error = call(&mut client, "Fail", b"").await.unwrap_err();
            assert_eq!(error, Error::not_found("svc"));
            let big = vec![7; 3 << 20];
            assert_eq!(call(&mut client, "Echo", &big).await, Ok(big));
        });
    }

    #[test]
    fn waiting_request_does_not_block_others() {
        with_server(|f| async move {
            let mut stream = f.raw().await;
            stream.write_all(&request(1, "Hang", b"")).await.unwrap();
            stream.write_all(&request(3, "Echo", b"x")).await.unwrap();
            assert_eq!(answer(&mut stream).await, (3, Ok(b"x".to_vec())));
        });
    }

    #[test]
    fn handler_is_dropped_at_its_deadline() {
        with_server(|f| async move {
            let mut stream = f.raw().await;
            let hang = Request {
                method: "Hang".into(),
                timeout_nano: 1,
                ..Default::default()
            };
            let hang = frame::request(1, &hang).unwrap();
            stream.write_all(&hang).await.unwrap();
            let (id, outcome) = answer(&mut stream).await;
            let error = Error::new(Kind::DeadlineExceeded, "context deadline exceeded");
            assert_eq!((id, outcome), (1, Err(error)));
            assert_eq!(f.seen.hanging.get(), 0);
        });
    }

    #[test]
    fn handlers_are_dropped_with_their_client() {
        with_server(|f| async move {
            let mut stream = f.raw().await;
            let other = f.raw().await;
            for id in [1, 3, 5] {
                stream.write_all(&request(id, "Hang", b"")).await.unwrap();
            }
            until(|| f.seen.hanging.get() == 3).await;
            assert_eq!(f.server.connections(), 2);
            drop(stream);
            until(|| f.seen.hanging.get() == 0).await;
            assert_eq!(f.server.connections(), 1);
            drop(other);
            until(|| f.server.connections() == 0).await;
        });
    }

    #[test]
    fn panic_in_a_handler_is_an_error_response() {
        with_server(|f| async move {
            let mut client = f.client().await;
            for method in ["Panic", "PanicAtOnce"] {
                let error = call(&mut client, method, b"").await.unwrap_err();
                assert_eq!(error, Error::unknown(format!("panic in svc/{method}")));
            }
            assert_eq!(call(&mut client, "Echo", b"x").await, Ok(b"x".to_vec()));
        });
    }

    #[test]
    fn malformed_frames_close_only_their_connection() {
        with_server(|f| async move {
            let mut good = f.client().await;
            let echo = request(3, "Echo", b"");
            let with = |at: usize, byte| {
                let mut bytes = echo.clone();
                bytes[at] = byte;
                bytes
            };
            for bytes in [
                b"GET / HTTP/1.1\r\n\r\n".to_vec(),
                with(8, 2),
                with(8, 3),
                with(7, 4),
                vec![0xff; 4096],
            ] {
                let mut stream = f.raw().await;
                stream.write_all(&bytes).await.unwrap();
                closed(stream).await;
            }
            assert_eq!(f.seen.calls.get(), 0);
            assert_eq!(call(&mut good, "Echo", b"x").await, Ok(b"x".to_vec()));
        });
    }

    #[test]
    fn stream_ids_must_grow() {
        with_server(|f| async move {
            for id in [3, 1] {
                let mut stream = f.raw().await;
                stream.write_all(&request(3, "Echo", b"")).await.unwrap();
                answer(&mut stream).await.1.unwrap();
                stream.write_all(&request(id, "Echo", b"")).await.unwrap();
                closed(stream).await;
            }
        });
    }

    #[test]
    fn client_that_disconnects_within_a_frame() {
        with_server(|f| async move {
            let echo = request(1, "Echo", b"payload");
            for end in 1..echo.len() {
                let mut stream = f.raw().await;
                stream.write_all(&echo[..end]).await.unwrap();
            }
            until(|| f.server.connections() == 0).await;
            assert_eq!(f.seen.calls.get(), 0);
        });
    }

    #[test]
    fn request_after_an_undecodable_one_is_served() {
        with_server(|f| async move {
            let mut stream = f.raw().await;
            let oversize = MESSAGE_LENGTH_MAX as u32 + 1;
            let mut bytes = vec![0, 0, 0, 2, 0, 0, 0, 1, 1, 0, 0xff, 0xff];
            bytes.extend(oversize.to_be_bytes());
            bytes.extend([0, 0, 0, 3, 1, 0]);
            bytes.resize(bytes.len() + oversize as usize, 0);
            bytes.extend(request(5, "Echo", b"x"));
            stream.write_all(&bytes).await.unwrap();
            let (id, refused) = answer(&mut stream).await;
            assert_eq!(
                (id, refused.unwrap_err().kind()),
                (1, Kind::InvalidArgument)
            );
            let (id, refused) = answer(&mut stream).await;
            assert_eq!((id, refused), (3, Err(frame::oversize(oversize as usize))));
            assert_eq!(answer(&mut stream).await, (5, Ok(b"x".to_vec())));
        });
    }

    #[test]
    fn client_that_does_not_read_is_not_read_from() {
        with_server(|f| async move {
            let stream = f.raw().await;
            let (mut read, mut write) = stream.into_split();
            const ALL: usize = 4000;
            let flood = spawn_local(async move {
                for i in 0..ALL {
                    let big = request(2 * i as u32 + 1, "Big", &[0; 1000]);
                    write.write_all(&big).await.unwrap();
                }
                write
            });
            // It stalls: nothing happens any more, however often everybody is asked.
            let mut calls = usize::MAX;
            while calls != f.seen.calls.get() {
                calls = f.seen.calls.get();
                for _ in 0..2000 {
                    yield_now().await;
                }
            }
            assert!(!flood.is_finished());
            // What its socket takes, and one turn.
            assert!(calls < 100, "{calls} calls");
            let unwritten = f.server.unwritten.get();
            assert!(unwritten <= REQUESTS_PER_TURN, "{unwritten} answers");
            // Once it reads, it gets every answer.
            let mut rest = vec![0; 16 << 10];
            let mut got = 0;
            // The frames have headers, too: the last requests come when all that is read.
            while got < ALL * (16 << 10) || f.seen.calls.get() < ALL {
                got += read.read(&mut rest).await.unwrap();
            }
            assert_eq!(f.seen.calls.get(), ALL);
            drop(flood.await);
        });
    }

    #[test]
    fn requests_beyond_those_in_flight_are_refused_and_others_served() {
        with_server(|f| async move {
            let mut stream = f.raw().await;
            let numbered = |i: usize, method| request(2 * i as u32 + 1, method, b"");
            let brief = Request {
                method: "Hang".into(),
                // Later than the others are there.
                timeout_nano: 3_000_000_000,
                ..Default::default()
            };
            let brief = frame::request(1, &brief).unwrap();
            stream.write_all(&brief).await.unwrap();
            for i in 1..=MAX_RUNNING {
                stream.write_all(&numbered(i, "Hang")).await.unwrap();
            }
            let refused = answer(&mut stream).await;
            assert_eq!(refused.0, 2 * MAX_RUNNING as u32 + 1);
            assert_eq!(refused.1.unwrap_err().kind(), Kind::ResourceExhausted);
            assert_eq!(f.server.pending(), (MAX_RUNNING, 0));
            let echo = numbered(MAX_RUNNING + 1, "Echo");
            stream.write_all(&echo).await.unwrap();
            let last = 2 * MAX_RUNNING as u32 + 3;
            assert_eq!(answer(&mut stream).await, (last, Ok(vec![])));
            // Another is taken once one has ended.
            assert_eq!(answer(&mut stream).await, (1, Err(expired())));
            let next = numbered(MAX_RUNNING + 2, "Hang");
            stream.write_all(&next).await.unwrap();
            until(|| f.server.pending() == (MAX_RUNNING, 0)).await;
        });
    }

    #[test]
    fn requests_beyond_the_bytes_in_flight_are_refused_and_others_served() {
        with_server(|f| async move {
            let mut stream = f.raw().await;
            let long = vec![0; 3 << 20];
            for id in [1, 3, 5, 7] {
                stream.write_all(&request(id, "Hang", &long)).await.unwrap();
            }
            let (id, refused) = answer(&mut stream).await;
            assert_eq!(
                (id, refused.unwrap_err().kind()),
                (7, Kind::ResourceExhausted)
            );
            stream.write_all(&request(9, "Echo", b"")).await.unwrap();
            assert_eq!(answer(&mut stream).await, (9, Ok(vec![])));
        });
    }

    #[test]
    fn waiting_request_needs_little_memory() {
        with_server(|f| async move {
            let mut stream = f.raw().await;
            let long = vec![0; parked::MAX_PAYLOAD + 1];
            stream.write_all(&request(1, "Park", &long)).await.unwrap();
            let (id, refused) = answer(&mut stream).await;
            let kind = refused.unwrap_err().kind();
            assert_eq!((id, kind), (1, Kind::InvalidArgument));
            assert_eq!(f.seen.calls.get(), 0);
        });
    }

    #[test]
    fn equal_waiting_requests_share_one_response() {
        with_server(|f| async move {
            let mut stream = f.raw().await;
            const ALL: u32 = 10_000;
            for i in 0..ALL {
                let park = request(2 * i + 1, "Park", &[(i % 2) as u8]);
                stream.write_all(&park).await.unwrap();
            }
            until(|| f.server.pending() == (0, ALL as usize)).await;
            assert_eq!(f.seen.hanging.get(), 2);
            let echo = request(2 * ALL + 1, "Echo", b"x");
            stream.write_all(&echo).await.unwrap();
            assert_eq!(answer(&mut stream).await, (2 * ALL + 1, Ok(b"x".to_vec())));
            f.seen.go.notify_waiters();
            let server = f.server.clone();
            let flushed = spawn_local(async move { server.flushed().await });
            let mut answered = Vec::new();
            for _ in 0..ALL {
                let (id, outcome) = answer(&mut stream).await;
                assert_eq!(outcome, Ok(vec![(id / 2 % 2) as u8]));
                answered.push(id);
            }
            answered.sort_unstable();
            assert!(answered.into_iter().eq((0..ALL).map(|i| 2 * i + 1)));
            flushed.await.unwrap();
            assert_eq!(f.server.pending(), (0, 0));
        });
    }

    #[test]
    fn second_of_too_many_waiting_requests_is_dropped() {
        with_server(|f| async move {
            let mut stream = f.raw().await;
            let park = |i: usize| request(2 * i as u32 + 1, "Park", b"");
            for i in 0..parked::MAX_REQUESTS + 1 {
                stream.write_all(&park(i)).await.unwrap();
            }
            let (id, refused) = answer(&mut stream).await;
            let kind = refused.unwrap_err().kind();
            assert_eq!((id, kind), (3, Kind::ResourceExhausted));
            assert_eq!(f.server.pending(), (0, parked::MAX_REQUESTS));
        });
    }

    #[test]
    fn calls_with_a_deadline_are_dropped_first_then_the_oldest() {
        with_server(|f| async move {
            let mut stream = f.raw().await;
            let park = |i: usize| request(2 * i as u32 + 1, "Park", &i.to_be_bytes());
            for i in 0..parked::MAX_CALLS {
                let bytes = if i == 7 {
                    let timed = Request {
                        timeout_nano: i64::MAX,
                        method: "Park".into(),
                        ..Default::default()
                    };
                    frame::request(2 * 7 + 1, &timed).unwrap()
                } else {
                    park(i)
                };
                stream.write_all(&bytes).await.unwrap();
            }
            for (i, given_up) in [(parked::MAX_CALLS, 15), (parked::MAX_CALLS + 1, 1)] {
                stream.write_all(&park(i)).await.unwrap();
                let (id, refused) = answer(&mut stream).await;
                let kind = refused.unwrap_err().kind();
                assert_eq!((id, kind), (given_up, Kind::ResourceExhausted));
            }
            until(|| f.seen.hanging.get() == parked::MAX_CALLS).await;
        });
    }

    #[test]
    fn negative_deadline_is_exceeded_at_once() {
        with_server(|f| async move {
            let mut stream = f.raw().await;
            let echo = Request {
                method: "Echo".into(),
                timeout_nano: -1,
                ..Default::default()
            };
            let echo = frame::request(1, &echo).unwrap();
            stream.write_all(&echo).await.unwrap();
            assert_eq!(answer(&mut stream).await, (1, Err(expired())));
            assert_eq!(f.seen.calls.get(), 0);
        });
    }

    #[test]
    fn deserted_is_a_time_without_any_client() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            const TIME: Duration = Duration::from_secs(30);
            const JUST: Duration = Duration::from_millis(1);
            let f = Fixture::new();
            spawn_local(f.server.clone().run());
            // Sockets are no reason to move the stopped clock: `until` asks again and again.
            let deserted = |f: &Fixture| {
                let server = f.server.clone();
                spawn_local(async move { server.deserted(TIME).await })
            };
            let first = deserted(&f);
            settle().await;
            tokio::time::advance(TIME - JUST).await;
            settle().await;
            let client = f.raw().await;
            until(|| f.server.connections() == 1).await;
            tokio::time::advance(2 * TIME).await;
            settle().await;
            assert!(!first.is_finished());
            drop(client);
            until(|| f.server.connections() == 0).await;
            settle().await;
            tokio::time::advance(TIME - JUST).await;
            settle().await;
            assert!(!first.is_finished());
            tokio::time::advance(2 * JUST).await;
            settle().await;
            assert!(first.is_finished());
        });
    }

    #[test]
    fn flushed_waits_for_responses_of_finished_handlers() {
        with_server(|f| async move {
            f.server.flushed().await;
            let mut stream = f.raw().await;
            stream.write_all(&request(1, "Echo", b"x")).await.unwrap();
            f.seen.answered.notified().await;
            f.server.flushed().await;
            // It is there, without another turn for the server.
            let mut bytes = [0; 100];
            let n = nix::unistd::read(&stream, &mut bytes).unwrap();
            assert_eq!(bytes[..n], frame::response(1, Ok(b"x".to_vec())));
        });
    }

    #[test]
    fn close_refuses_removes_its_file_and_ends_run() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let f = Fixture::new();
            let run = spawn_local(f.server.clone().run());
            let mut open = f.client().await;
            call(&mut open, "Echo", b"").await.unwrap();
            let mut in_backlog = f.client().await;
            // Another name, to reach the socket by when its file is gone.
            let alias = f.path.with_file_name("alias");
            std::fs::hard_link(&f.path, &alias).unwrap();
            f.server.close();
            assert!(!f.path.exists());
            let refused = UnixStream::connect(&alias).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            call(&mut open, "Echo", b"").await.unwrap();
            call(&mut in_backlog, "Echo", b"").await.unwrap();
            run.await.unwrap().unwrap();
            f.server.close();
        });
    }

    #[test]
    fn close_leaves_the_socket_of_another_server() {
        with_server(|f| async move {
            std::fs::rename(&f.path, f.path.with_file_name("moved")).unwrap();
            let successor = UnixListener::bind(&f.path).unwrap();
            f.server.close();
            UnixStream::connect(&f.path).await.unwrap();
            drop(successor);
        });
    }

    #[test]
    fn socket_without_a_file_is_served_and_closed() {
        with_server(|_| async {
            use std::os::linux::net::SocketAddrExt;
            use std::os::unix::net::{SocketAddr, UnixStream as StdUnixStream};
            let name = format!("wire-test-{}", std::process::id());
            let address = SocketAddr::from_abstract_name(name).unwrap();
            let listener = UnixListener::bind_addr(&address).unwrap();
            let seen = Rc::new(Seen::default());
            let handler: Handler = Rc::new(move |call| Box::pin(handle(call, seen.clone())));
            let server = Server::new(listener, handler, classify).unwrap();
            let run = spawn_local(server.clone().run());
            let client = StdUnixStream::connect_addr(&address).unwrap();
            client.set_nonblocking(true).unwrap();
            let mut client = UnixStream::from_std(client).unwrap();
            client.write_all(&request(1, "Echo", b"")).await.unwrap();
            answer(&mut client).await.1.unwrap();
            server.close();
            run.await.unwrap().unwrap();
            assert!(StdUnixStream::connect_addr(&address).is_err());
        });
    }
}
