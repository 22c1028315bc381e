//! ttrpc as containerd's client speaks it: frames, and a connection with several
//! requests in flight. Raw frames are open to the tests, to send broken ones.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use containerd_shim_rs_v2::proto::Message;
pub use ttrpc::proto::Code;
use ttrpc::proto::{KeyValue, Request, Response};

pub const REQUEST: u8 = 1;
pub const RESPONSE: u8 = 2;
/// The largest payload a peer has to accept.
pub const MESSAGE_MAX: usize = 4 << 20;

/// One message on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub stream: u32,
    pub kind: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The bytes: length, stream, kind, flags, payload.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = header(self.payload.len() as u32, self.stream, self.kind);
        bytes.extend(&self.payload);
        bytes
    }

    /// The next frame; `None` at the end of the stream.
    pub fn read(stream: &mut impl Read) -> io::Result<Option<Frame>> {
        let mut header = [0; 10];
        match stream.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; number(0) as usize];
        stream.read_exact(&mut payload)?;
        Ok(Some(Frame {
            stream: number(4),
            kind: header[8],
            payload,
        }))
    }
}

/// A frame's header alone, which may promise what does not come.
pub fn header(length: u32, stream: u32, kind: u8) -> Vec<u8> {
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(stream.to_be_bytes());
    bytes.extend([kind, 0]);
    bytes
}

/// A request's frame.
pub fn request(
    stream: u32,
    service: &str,
    method: &str,
    payload: Vec<u8>,
    timeout: Duration,
) -> Frame {
    let request = Request {
        service: service.into(),
        method: method.into(),
        payload,
        timeout_nano: timeout.as_nanos() as i64,
        metadata: vec![KeyValue {
            key: "containerd-namespace-ttrpc".into(),
            value: "default".into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    Frame {
        stream,
        kind: REQUEST,
        payload: request.write_to_bytes().unwrap(),
    }
}

/// Why a request failed.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    pub message: String,
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

/// What tests ask of a refusal.
pub trait Refused {
    /// It was refused with this code and with a message that contains `text`.
    fn refused(self, code: Code, text: &str);
}

impl<T> Refused for Result<T, Failure> {
    #[track_caller]
    fn refused(self, code: Code, text: &str) {
        let Err(failure) = self else {
            panic!("expected {code:?}: …{text}…, but it was done")
        };
        assert!(
            failure.code == code && failure.message.contains(text),
            "expected {code:?}: …{text}…, got {failure:?}"
        );
    }
}

/// A client's connection.
pub struct Connection {
    stream: Mutex<UnixStream>,
    inbox: Arc<Inbox>,
    next: Mutex<u32>,
    /// How long an answer may take; also sent along as the request's deadline.
    pub hang_timeout: Duration,
}

#[derive(Default)]
struct Inbox {
    mail: Mutex<Mail>,
    news: Condvar,
}

#[derive(Default)]
struct Mail {
    answers: HashMap<u32, Response>,
    closed: bool,
}

impl Connection {
    pub fn open(address: &str, hang_timeout: Duration) -> io::Result<Arc<Connection>> {
        let stream = dial(address)?;
        let inbox = Arc::new(Inbox::default());
        let (mut reader, mailbox) = (stream.try_clone()?, inbox.clone());
        std::thread::spawn(move || {
            while let Ok(Some(frame)) = Frame::read(&mut reader) {
                let answer = Response::parse_from_bytes(&frame.payload).expect("a Response");
                mailbox
                    .mail
                    .lock()
                    .unwrap()
                    .answers
                    .insert(frame.stream, answer);
                mailbox.news.notify_all();
            }
            mailbox.mail.lock().unwrap().closed = true;
            mailbox.news.notify_all();
        });
        let (stream, next) = (Mutex::new(stream), Mutex::new(1));
        Ok(Arc::new(Connection {
            stream,
            inbox,
            next,
            hang_timeout,
        }))
    }

    /// Sends a request and does not wait. `timeout` zero: none is sent along.
    pub fn send<M: Message>(
        self: &Arc<Self>,
        service: &str,
        method: &str,
        message: &impl Message,
        timeout: Duration,
    ) -> Pending<M> {
        let mut next = self.next.lock().unwrap();
        let (id, payload) = (*next, message.write_to_bytes().unwrap());
        *next += 2;
        // Enough to recognise it by: the ids in it are text.
        let what = format!("{method} {:?}", String::from_utf8_lossy(&payload));
        let frame = request(id, service, method, payload, timeout);
        // A closed connection is what the answer will say.
        let _ = self.stream.lock().unwrap().write_all(&frame.bytes());
        Pending {
            connection: self.clone(),
            id,
            what,
            kind: PhantomData,
        }
    }

    pub fn call<M: Message>(
        self: &Arc<Self>,
        service: &str,
        method: &str,
        message: &impl Message,
    ) -> Result<M, Failure> {
        self.send(service, method, message, self.hang_timeout)
            .wait()
    }

    /// Closes, whatever is in flight.
    pub fn close(&self) {
        let _ = self.stream.lock().unwrap().shutdown(Shutdown::Both);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

/// A request in flight.
pub struct Pending<M> {
    connection: Arc<Connection>,
    id: u32,
    what: String,
    kind: PhantomData<M>,
}

impl<M: Message> Pending<M> {
    /// Whether the answer has come.
    pub fn answered(&self) -> bool {
        self.connection
            .inbox
            .mail
            .lock()
            .unwrap()
            .answers
            .contains_key(&self.id)
    }

    /// Waits for the answer.
    #[track_caller]
    pub fn wait(self) -> Result<M, Failure> {
        // The server's own deadline is to strike first.
        let hang_timeout = self.connection.hang_timeout + Duration::from_secs(1);
        let deadline = Instant::now() + hang_timeout;
        let inbox = &self.connection.inbox;
        let mut mail = inbox.mail.lock().unwrap();
        loop {
            if let Some(answer) = mail.answers.remove(&self.id) {
                return decode(answer);
            }
            if mail.closed {
                let message = "connection closed".into();
                return Err(Failure {
                    code: Code::UNAVAILABLE,
                    message,
                });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(mail);
                panic!("no answer to {} within {hang_timeout:?}", self.what);
            }
            mail = inbox.news.wait_timeout(mail, left).unwrap().0;
        }
    }
}

fn decode<M: Message>(answer: Response) -> Result<M, Failure> {
    match answer.status.as_ref() {
        Some(status) if status.code() != Code::OK => Err(Failure {
            code: status.code(),
            message: status.message.clone(),
        }),
        _ => Ok(M::parse_from_bytes(&answer.payload).expect("decode the answer")),
    }
}

/// Connects to `unix://PATH`.
pub fn dial(address: &str) -> io::Result<UnixStream> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    UnixStream::connect(path)
        .map_err(|cause| io::Error::new(cause.kind(), format!("connect to {address}: {cause}")))
}
