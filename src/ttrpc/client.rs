//! A client for unary calls, one at a time, over one connection.
//!
//! Promises: a call ends when its time is up, whatever the server does; the time of a server that
//! reads nothing, as it is stopped, may be another than that of one that does not answer; a failed
//! transport is told apart from an error response, and ends the client.
//!
//! Lacks on purpose: reconnecting, which is the caller's policy, and concurrent calls.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};
use ttrpc::proto::{KeyValue, Request, Response};

use super::frame::{self, Frame, FrameReader};
use crate::error::{Error, Kind, Result};
use crate::proto::Message;
use crate::sys;

/// How often it is looked whether the server has read a request: nothing tells.
const LOOK: Duration = Duration::from_secs(1);

/// One connection to a ttrpc server.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    reader: FrameReader,
    /// Of the next request; odd.
    next_id: u32,
    /// A call was not completed: the next answer would be to that one.
    broken: bool,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The server responded with this error, or the request is too long to be sent
    /// ([`Kind::InvalidArgument`]). The client goes on.
    Refused(Error),
    /// The server may or may not have seen the request. The client is of no more use.
    Transport(Error),
}

impl Client {
    /// Connects to `unix:///PATH` or `/PATH`. [`Kind::NotFound`] when nobody listens
    /// there now, [`Kind::Unavailable`] when too many wait already.
    pub async fn connect(address: &str) -> Result<Self> {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        if !path.starts_with('/') {
            let text = format!("connect to {address}: neither /PATH nor unix:///PATH");
            return Err(Error::invalid(text));
        }
        let stream = UnixStream::connect(path).await.map_err(|e| {
            let kind = match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Kind::NotFound,
                _ => Kind::Unavailable,
            };
            Error::new(kind, format!("connect to {address}: {e}"))
        })?;
        Ok(Self {
            stream,
            reader: FrameReader::of_responses(),
            next_id: 1,
            broken: false,
        })
    }

    /// Calls `service`/`method` and waits for the answer, at most for `time`, which
    /// the server gets to know too. Dropping the future breaks the client.
    pub async fn call(
        &mut self,
        service: &str,
        method: &str,
        metadata: &[(&str, &str)],
        payload: Vec<u8>,
        time: Duration,
    ) -> std::result::Result<Vec<u8>, Failure> {
        self.call_while_unread(service, method, metadata, payload, (time, time))
            .await
    }

    /// As [`Client::call`]: `times` are how long the server may take to answer what it has read, and
    /// how long the call may take in all. While a request is not read it cannot be lost, and sent
    /// once more it would come twice.
    pub async fn call_while_unread(
        &mut self,
        service: &str,
        method: &str,
        metadata: &[(&str, &str)],
        payload: Vec<u8>,
        times: (Duration, Duration),
    ) -> std::result::Result<Vec<u8>, Failure> {
        let transport = |cause: &dyn fmt::Display| {
            let text = format!("call {service}/{method}: {cause}");
            Failure::Transport(Error::new(Kind::Unavailable, text))
        };
        if self.broken {
            return Err(transport(&"the connection is broken"));
        }
        let id = self.next_id;
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: i64::try_from(times.0.as_nanos()).unwrap_or(i64::MAX),
            metadata: metadata.iter().map(key_value).collect(),
            ..Default::default()
        };
        // A request that is too long always will be, and breaks nothing: it is not sent.
        let request = frame::request(id, &request)
            .map_err(|e| Failure::Refused(Error::invalid(e.to_string())))?;
        self.broken = true;
        let exchange = exchange(&self.stream, &mut self.reader, id, &request);
        let response = answer(&self.stream, exchange, times)
            .await
            .map_err(|e| transport(&e))?;
        if let Some(next) = id.checked_add(2) {
            (self.next_id, self.broken) = (next, false);
        }
        frame::outcome(response).map_err(Failure::Refused)
    }
}

/// What `exchange` over `stream` results in; an error when its `times` are up, see
/// [`Client::call_while_unread`].
async fn answer(
    stream: &UnixStream,
    exchange: impl Future<Output = io::Result<Response>>,
    (to_answer, in_all): (Duration, Duration),
) -> io::Result<Response> {
    let mut exchange = pin!(exchange);
    let begun = Instant::now();
    let mut last_unread = begun;
    loop {
        let left = to_answer.saturating_sub(last_unread.elapsed());
        let left_in_all = in_all.saturating_sub(begun.elapsed());
        let text = match (left.is_zero(), left_in_all.is_zero()) {
            (true, _) => Some(format!("no response within {to_answer:?}")),
            (_, true) => Some(format!("not read within {in_all:?}")),
            _ => None,
        };
        if let Some(text) = text {
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        let left = left.min(left_in_all);
        if let Ok(answer) = timeout(left.min(LOOK), exchange.as_mut()).await {
            return answer;
        }
        if in_all > to_answer && sys::fd::is_unread_by_peer(stream.as_fd()) {
            last_unread = Instant::now();
        }
    }
}

/// Sends a request and reads what comes then.
async fn exchange(
    stream: &UnixStream,
    reader: &mut FrameReader,
    id: u32,
    request: &[u8],
) -> io::Result<Response> {
    send(stream, request).await?;
    match poll_fn(|cx| reader.poll_frame(stream, cx)).await? {
        Some(Frame::Message { id: of, body }) if of == id => {
            Response::parse_from_bytes(&body).map_err(|e| invalid(format!("decode response: {e}")))
        }
        Some(Frame::Message { id: of, .. }) => {
            Err(invalid(format!("response has stream ID {of}, not {id}")))
        }
        Some(Frame::Oversize { length, .. }) => Err(invalid(frame::oversize(length).to_string())),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

async fn send(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn key_value((key, value): &(&str, &str)) -> KeyValue {
    KeyValue {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
        ..Default::default()
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(error) | Failure::Transport(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    const LONG: Duration = Duration::from_secs(20);

    fn listen() -> (TempDir, String, UnixListener) {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        (dir, path.to_str().unwrap().to_owned(), listener)
    }

    /// One call to a server that sends `bytes`, and one after it.
    async fn call_twice(bytes: &[u8]) -> [std::result::Result<Vec<u8>, Failure>; 2] {
        let (_dir, path, listener) = listen();
        let mut client = Client::connect(&path).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(bytes).await.unwrap();
        server.shutdown().await.unwrap();
        let first = client.call("s", "m", &[], vec![], LONG).await;
        [first, client.call("s", "m", &[], vec![], LONG).await]
    }

    #[tokio::test]
    async fn request_has_all_fields() {
        let (_dir, path, listener) = listen();
        let mut client = Client::connect(&format!("unix://{path}")).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server
            .write_all(&frame::response(1, Ok(vec![2])))
            .await
            .unwrap();
        let answer = client.call("s", "m", &[("k", "v")], vec![1], LONG).await;
        assert_eq!(answer, Ok(vec![2]));
        let expected = Request {
            service: "s".into(),
            method: "m".into(),
            payload: vec![1],
            timeout_nano: 20_000_000_000,
            metadata: vec![key_value(&("k", "v"))],
            ..Default::default()
        };
        let expected = frame::request(1, &expected).unwrap();
        let mut sent = vec![0; expected.len()];
        server.read_exact(&mut sent).await.unwrap();
        assert_eq!(sent, expected);
    }

    #[tokio::test]
    async fn client_is_usable_after_a_refusal() {
        let error = Error::not_found("x");
        let mut bytes = frame::response(1, Err(error.clone()));
        bytes.extend(frame::response(3, Ok(vec![1])));
        let answers = call_twice(&bytes).await;
        assert_eq!(answers, [Err(Failure::Refused(error)), Ok(vec![1])]);
    }

    #[tokio::test]
    async fn client_is_usable_after_a_too_long_request() {
        let (_dir, path, listener) = listen();
        let mut client = Client::connect(&path).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let long = client.call("s", "m", &[], vec![0; 4 << 20], LONG).await;
        let Err(Failure::Refused(error)) = long else {
            panic!("{long:?}");
        };
        assert_eq!(error.kind(), Kind::InvalidArgument);
        server
            .write_all(&frame::response(1, Ok(vec![])))
            .await
            .unwrap();
        assert_eq!(client.call("s", "m", &[], vec![], LONG).await, Ok(vec![]));
    }

    #[tokio::test]
    async fn client_is_unusable_after_a_transport_error() {
        let good = frame::response(1, Ok(vec![1]));
        for (bytes, cause) in [
            (&b""[..], "unexpected end of file"),
            (&good[..5], "unexpected end of file"),
            (
                &frame::response(3, Ok(vec![])),
                "response has stream id 3, not 1",
            ),
            (&[0, 0, 0, 1, 0, 0, 0, 1, 2, 0, 0xff], "decode response: "),
            (&[0, 0, 0, 0, 0, 0, 0, 1, 3, 0], "message type 3, not 2"),
        ] {
            let [first, second] = call_twice(bytes).await;
            let Err(Failure::Transport(first)) = first else {
                panic!("{first:?}");
            };
            assert_eq!(first.kind(), Kind::Unavailable);
            let first = first.to_string();
            assert!(first.starts_with("call s/m: "), "{first}");
            assert!(first.to_lowercase().contains(cause), "{first}");
            let broken = "call s/m: the connection is broken";
            let broken = Failure::Transport(Error::new(Kind::Unavailable, broken));
            assert_eq!(second, Err(broken));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn call_to_a_hanging_server_times_out() {
        let (_dir, path, _listener) = listen();
        let mut client = Client::connect(&path).await.unwrap();
        let time = Duration::from_secs(5);
        let failure = client.call("s", "m", &[], vec![], time).await.unwrap_err();
        let text = "call s/m: no response within 5s";
        assert_eq!(
            failure,
            Failure::Transport(Error::new(Kind::Unavailable, text))
        );
    }

    /// How long a call takes to fail, which has 5 s from when the server has read the request, and
    /// 60 s in all; the server reads it after `read_after`.
    async fn time_until_a_server_is_given_up(read_after: Option<Duration>) -> Duration {
        let (_dir, path, listener) = listen();
        let mut client = Client::connect(&path).await.unwrap();
        let begun = Instant::now();
        let reads = async {
            if let Some(time) = read_after {
                tokio::time::sleep(time).await;
                let (mut server, _) = listener.accept().await.unwrap();
                server.read_exact(&mut [0; 10]).await.unwrap();
                let _ = server.read(&mut [0; 4096]).await.unwrap();
                std::future::pending::<()>().await;
            }
            std::future::pending().await
        };
        let times = (Duration::from_secs(5), Duration::from_secs(60));
        let call = client.call_while_unread("s", "m", &[], vec![], times);
        let failure = tokio::select! {
            failure = call => failure.unwrap_err(),
            () = reads => unreachable!(),
        };
        assert!(matches!(failure, Failure::Transport(_)), "{failure:?}");
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn request_that_is_not_read_is_not_given_up_early() {
        for (read_after, from, to) in [(None, 60, 60), (Some(0), 5, 6), (Some(33), 37, 39)] {
            let read_after = read_after.map(Duration::from_secs);
            let took = time_until_a_server_is_given_up(read_after).await.as_secs();
            assert!((from..=to).contains(&took), "{read_after:?}: {took} s");
        }
    }

    #[tokio::test]
    async fn errors_name_the_address() {
        let error = Client::connect("vsock://1:2").await.unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        let (_dir, path, _listener) = listen();
        std::fs::remove_file(&path).unwrap();
        let error = Client::connect(&path).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(
            error
                .to_string()
                .starts_with(&format!("connect to {path}: "))
        );
    }
}
