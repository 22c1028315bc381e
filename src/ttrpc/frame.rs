//! Frames: a 10-byte header (length, stream id, type, flags) and a protobuf message.
//!
//! Promises: bytes may come in any portions; a length that is announced costs
//! nothing until its bytes come; nothing is read beyond the frame that was asked
//! for, so a connection can be handed on between frames.
//!
//! Lacks on purpose: stream data. Flags are not looked at: Go's client marks a
//! unary request as closed.

use std::io;
use std::mem;
use std::task::{Context, Poll, ready};

use tokio::net::UnixStream;
use ttrpc::proto::{
    Code, MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE,
    MessageHeader, Request, Response, Status,
};

use crate::error::{Context as _, Error, Kind, Result};
use crate::proto::{self, Field, Message, MessageField};

/// Bytes by which a payload's buffer grows at first; then it doubles.
const CHUNK: usize = 4 << 10;

/// One frame as it came.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// A whole payload, not yet decoded.
    Message {
        /// The stream it belongs to; odd.
        id: u32,
        /// The payload.
        body: Vec<u8>,
    },
    /// A payload that was too long. It has been read and dropped.
    Oversize {
        /// The stream it belongs to; odd.
        id: u32,
        /// The payload's length in bytes.
        length: usize,
    },
}

/// Puts frames of one type together. An error other than `WouldBlock` is final.
#[derive(Debug)]
pub struct FrameReader {
    /// The message type to expect.
    kind: u8,
    header: [u8; MESSAGE_HEADER_LENGTH],
    /// How much of `header` is there.
    headed: usize,
    /// What is there of the payload, and room for what comes next; scratch while
    /// an oversize payload is dropped.
    body: Vec<u8>,
    /// How much of the payload was read.
    received: usize,
}

impl FrameReader {
    /// Reads what clients send.
    pub fn of_requests() -> Self {
        Self::new(MESSAGE_TYPE_REQUEST)
    }

    /// Reads what servers send.
    pub fn of_responses() -> Self {
        Self::new(MESSAGE_TYPE_RESPONSE)
    }

    fn new(kind: u8) -> Self {
        Self {
            kind,
            header: [0; MESSAGE_HEADER_LENGTH],
            headed: 0,
            body: Vec::new(),
            received: 0,
        }
    }

    /// The next frame, or `None` when the peer closed the connection after the
    /// last one. `UnexpectedEof` when it did so within a frame, `InvalidData`
    /// when what it sent is no frame of our type.
    pub fn poll_frame(
        &mut self,
        stream: &UnixStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Frame>>> {
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match self.pull(|room| stream.try_read(room)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    /// Calls `read` until a frame is complete. When `read` fails, nothing is lost.
    pub(crate) fn pull(
        &mut self,
        mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<Option<Frame>> {
        while self.headed < MESSAGE_HEADER_LENGTH {
            match read(&mut self.header[self.headed..])? {
                0 if self.headed == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.headed += n,
            }
            if self.headed == MESSAGE_HEADER_LENGTH {
                self.check()?;
            }
        }
        let header = MessageHeader::from(self.header);
        let length = header.length as usize;
        while self.received < length {
            match read(self.room(length))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.received += n,
            }
        }
        self.headed = 0;
        self.received = 0;
        let (id, body) = (header.stream_id, mem::take(&mut self.body));
        Ok(Some(if length > MESSAGE_LENGTH_MAX {
            Frame::Oversize { id, length }
        } else {
            Frame::Message { id, body }
        }))
    }

    /// Refuses a header as soon as it is known, not after up to 4 GiB of payload.
    fn check(&self) -> io::Result<()> {
        let MessageHeader {
            type_, stream_id, ..
        } = self.header.into();
        let wrong = if type_ != self.kind {
            format!("message type {type_}, not {}", self.kind)
        } else if stream_id % 2 == 0 {
            format!("even stream ID {stream_id}")
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::InvalidData, wrong))
    }

    /// Where the next bytes of a payload of `length` go; never empty.
    fn room(&mut self, length: usize) -> &mut [u8] {
        let left = length - self.received;
        if length > MESSAGE_LENGTH_MAX {
            self.body.resize(4 * CHUNK, 0);
            return &mut self.body[..left.min(4 * CHUNK)];
        }
        if self.received == self.body.len() {
            let more = left.min(self.received.max(CHUNK));
            self.body.reserve_exact(more);
            self.body.resize(self.received + more, 0);
        }
        &mut self.body[self.received..]
    }
}

/// A request as it came: what is looked at of `ttrpc.Request`. Its metadata is skipped: the
/// namespace is the shim's own.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// As in `containerd.task.v3.Task`.
    pub service: String,
    /// As in `Create`.
    pub method: String,
    /// The request's message, encoded.
    pub payload: Vec<u8>,
    /// How long the client waits, in nanoseconds; 0: for ever; negative: not any more.
    pub timeout_nano: i64,
}

impl Received {
    /// Decodes a frame's payload. Its time and memory are bounded by the payload's length,
    /// and by [`proto::MAX_FIELDS`] for what is made of many small fields.
    pub fn decode(mut body: Vec<u8>) -> Result<Self> {
        let mut received = Self::default();
        let mut payload = 0..0;
        let mut fields = 0;
        let text = |bytes: &[u8]| String::from_utf8(bytes.into()).map_err(|e| e.to_string());
        let decoded = proto::visit_fields(&body, |number, field| {
            fields += 1;
            if fields > proto::MAX_FIELDS {
                return Err(format!("more than {} fields", proto::MAX_FIELDS));
            }
            match (number, field) {
                (1, Field::Bytes(service)) => received.service = text(service)?,
                (2, Field::Bytes(method)) => received.method = text(method)?,
                (3, Field::Bytes(bytes)) => {
                    let start = bytes.as_ptr() as usize - body.as_ptr() as usize;
                    payload = start..start + bytes.len();
                }
                (4, Field::Varint(nanoseconds)) => received.timeout_nano = nanoseconds as i64,
                _ => {}
            }
            Ok(())
        });
        decoded.map_err(|e| Error::invalid(format!("unmarshal request: {e}")))?;
        body.truncate(payload.end);
        body.drain(..payload.start);
        if body.capacity() > 2 * body.len() {
            // A request may wait for long: release the memory of its metadata.
            body.shrink_to_fit();
        }
        received.payload = body;
        Ok(received)
    }
}

/// The frame of a request.
pub fn request(id: u32, request: &Request) -> Result<Vec<u8>> {
    encode(MESSAGE_TYPE_REQUEST, id, request)
}

/// The frame that answers request `id`. What cannot be sent (over 4 MiB) becomes
/// an error that can.
pub fn response(id: u32, answer: Result<Vec<u8>>) -> Vec<u8> {
    let response = match answer {
        Ok(payload) => Response {
            payload,
            ..Default::default()
        },
        Err(e) => refusal(&e),
    };
    encode(MESSAGE_TYPE_RESPONSE, id, &response)
        .or_else(|e| encode(MESSAGE_TYPE_RESPONSE, id, &refusal(&e)))
        .expect("the text of an encoding error is short")
}

fn refusal(error: &Error) -> Response {
    Response {
        status: MessageField::some(status(error)),
        ..Default::default()
    }
}

fn encode(kind: u8, id: u32, message: &impl Message) -> Result<Vec<u8>> {
    let length = message.compute_size() as usize;
    if length > MESSAGE_LENGTH_MAX {
        return Err(oversize(length));
    }
    let mut frame = Vec::with_capacity(MESSAGE_HEADER_LENGTH + length);
    frame.extend_from_slice(&(length as u32).to_be_bytes());
    frame.extend_from_slice(&id.to_be_bytes());
    frame.extend_from_slice(&[kind, 0]);
    message
        .write_to_vec(&mut frame)
        .context(|| "encode message")?;
    Ok(frame)
}

/// What a message of `length` bytes is refused with.
pub fn oversize(length: usize) -> Error {
    Error::new(
        Kind::ResourceExhausted,
        format!("message length {length} exceed maximum message size of {MESSAGE_LENGTH_MAX}"),
    )
}

/// The payload of an answer, or the error that it is.
pub fn outcome(response: Response) -> Result<Vec<u8>> {
    match response.status.into_option() {
        Some(status) if status.code.value() != Code::OK as i32 => {
            Err(Error::new(kind(&status), status.message))
        }
        _ => Ok(response.payload),
    }
}

/// What a client gets to see of an error: its code and its text, nothing added.
pub fn status(error: &Error) -> Status {
    Status {
        code: code(error.kind()).into(),
        message: error.to_string(),
        ..Default::default()
    }
}

/// The code of a kind.
pub fn code(kind: Kind) -> Code {
    match kind {
        Kind::Unknown => Code::UNKNOWN,
        Kind::Cancelled => Code::CANCELLED,
        Kind::InvalidArgument => Code::INVALID_ARGUMENT,
        Kind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
        Kind::NotFound => Code::NOT_FOUND,
        Kind::AlreadyExists => Code::ALREADY_EXISTS,
        Kind::FailedPrecondition => Code::FAILED_PRECONDITION,
        Kind::ResourceExhausted => Code::RESOURCE_EXHAUSTED,
        Kind::Unimplemented => Code::UNIMPLEMENTED,
        Kind::Unavailable => Code::UNAVAILABLE,
    }
}

/// The kind of a status; [`Kind::Unknown`] for the codes that have none here.
pub fn kind(status: &Status) -> Kind {
    match status.code.enum_value() {
        Ok(Code::CANCELLED) => Kind::Cancelled,
        Ok(Code::INVALID_ARGUMENT) => Kind::InvalidArgument,
        Ok(Code::DEADLINE_EXCEEDED) => Kind::DeadlineExceeded,
        Ok(Code::NOT_FOUND) => Kind::NotFound,
        Ok(Code::ALREADY_EXISTS) => Kind::AlreadyExists,
        Ok(Code::FAILED_PRECONDITION) => Kind::FailedPrecondition,
        Ok(Code::RESOURCE_EXHAUSTED) => Kind::ResourceExhausted,
        Ok(Code::UNIMPLEMENTED) => Kind::Unimplemented,
        Ok(Code::UNAVAILABLE) => Kind::Unavailable,
        _ => Kind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `bytes` to `reader` in `portions` (the last one repeats), as a socket would
    /// that is closed after them.
    fn feed<'a>(
        mut bytes: &'a [u8],
        portions: &'a [usize],
    ) -> impl FnMut(&mut [u8]) -> io::Result<usize> + 'a {
        let mut portions = portions.iter().copied();
        let mut portion = usize::MAX;
        move |room| {
            portion = portions.next().unwrap_or(portion).max(1);
            let n = portion.min(room.len()).min(bytes.len());
            room[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            Ok(n)
        }
    }

    fn header(length: u32, id: u32, kind: u8, flags: u8) -> Vec<u8> {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(id.to_be_bytes());
        bytes.extend([kind, flags]);
        bytes
    }

    fn sample() -> Request {
        Request {
            service: "a".into(),
            method: "b".into(),
            payload: vec![7, 8],
            timeout_nano: 1,
            ..Default::default()
        }
    }

    const SAMPLE: &[u8] = &[
        0, 0, 0, 12, 0, 0, 0, 5, 1, 0, // 12 bytes, stream 5, request, no flags
        0x0a, 1, b'a', 0x12, 1, b'b', 0x1a, 2, 7, 8, 0x20, 1,
    ];

    #[test]
    fn request_is_decoded_without_its_metadata() {
        let metadata = ttrpc::proto::KeyValue::default();
        let request = Request {
            timeout_nano: -1,
            metadata: vec![metadata; 10],
            ..sample()
        };
        let received = Received {
            service: "a".into(),
            method: "b".into(),
            payload: vec![7, 8],
            timeout_nano: -1,
        };
        let body = request.write_to_bytes().unwrap();
        assert_eq!(Received::decode(body), Ok(received));
        assert_eq!(Received::decode(vec![]), Ok(Received::default()));
    }

    #[test]
    fn payload_does_not_keep_the_memory_of_metadata() {
        let long = ttrpc::proto::KeyValue {
            value: "v".repeat(1 << 20),
            ..Default::default()
        };
        let request = Request {
            metadata: vec![long],
            ..sample()
        };
        let received = Received::decode(request.write_to_bytes().unwrap()).unwrap();
        assert_eq!(received.payload, [7, 8]);
        assert!(received.payload.capacity() < 100);
    }

    #[test]
    fn malformed_request_is_refused() {
        for body in [
            vec![0x0a, 1, 0xff],
            vec![0x0a, 9, b'a'],
            vec![0x0b],
            [0x2a, 0].repeat(proto::MAX_FIELDS + 1),
        ] {
            let error = Received::decode(body).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().starts_with("unmarshal request: "));
        }
    }

    #[test]
    fn encoded_request() {
        assert_eq!(request(5, &sample()).unwrap(), SAMPLE);
    }

    #[test]
    fn encoded_response() {
        let bytes = [0, 0, 0, 3, 0, 0, 0, 9, 2, 0, 0x12, 1, 42];
        assert_eq!(response(9, Ok(vec![42])), bytes);
        let bytes = [
            0, 0, 0, 7, 0, 0, 0, 9, 2, 0, 0x0a, 5, 0x08, 5, 0x12, 1, b'x',
        ];
        let error = Error::new(Kind::NotFound, "x");
        assert_eq!(response(9, Err(error)), bytes);
    }

    #[test]
    fn too_long_response_becomes_an_error() {
        for answer in [
            Ok(vec![0; MESSAGE_LENGTH_MAX]),
            Err(Error::unknown("x".repeat(MESSAGE_LENGTH_MAX))),
        ] {
            let frame = response(1, answer);
            let sent = Response::parse_from_bytes(&frame[MESSAGE_HEADER_LENGTH..]).unwrap();
            let error = outcome(sent).unwrap_err();
            assert_eq!(error.kind(), Kind::ResourceExhausted);
            assert!(error.to_string().ends_with("size of 4194304"), "{error}");
        }
    }

    #[test]
    fn every_error_kind_is_encoded_and_decoded() {
        for kind in [
            Kind::Unknown,
            Kind::Cancelled,
            Kind::InvalidArgument,
            Kind::DeadlineExceeded,
            Kind::NotFound,
            Kind::AlreadyExists,
            Kind::FailedPrecondition,
            Kind::ResourceExhausted,
            Kind::Unimplemented,
            Kind::Unavailable,
        ] {
            let error = Error::new(kind, "the text");
            let frame = response(1, Err(error.clone()));
            let sent = Response::parse_from_bytes(&frame[MESSAGE_HEADER_LENGTH..]).unwrap();
            assert_eq!(outcome(sent), Err(error));
        }
        let alien = Status {
            code: protobuf::EnumOrUnknown::from_i32(77),
            ..Default::default()
        };
        assert_eq!(super::kind(&alien), Kind::Unknown);
    }

    #[test]
    fn frames_are_read_in_any_portions() {
        let mut bytes = SAMPLE.to_vec();
        bytes.extend(header(0, 7, MESSAGE_TYPE_REQUEST, 0xff));
        for portion in [1, 3, usize::MAX] {
            let mut reader = FrameReader::of_requests();
            let portions = [portion];
            let mut read = feed(&bytes, &portions);
            let Some(Frame::Message { id: 5, body }) = reader.pull(&mut read).unwrap() else {
                panic!("no message");
            };
            assert_eq!(Request::parse_from_bytes(&body).unwrap(), sample());
            let empty = Frame::Message {
                id: 7,
                body: vec![],
            };
            assert_eq!(reader.pull(&mut read).unwrap(), Some(empty));
            assert_eq!(reader.pull(&mut read).unwrap(), None);
        }
    }

    #[test]
    fn read_that_would_block_loses_nothing() {
        let mut reader = FrameReader::of_requests();
        for byte in &SAMPLE[..SAMPLE.len() - 1] {
            let mut once = Some(*byte);
            let blocked = reader.pull(|room| match once.take() {
                Some(byte) => {
                    room[0] = byte;
                    Ok(1)
                }
                None => Err(io::ErrorKind::WouldBlock.into()),
            });
            assert_eq!(blocked.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        let last = reader.pull(feed(&SAMPLE[SAMPLE.len() - 1..], &[])).unwrap();
        assert!(matches!(last, Some(Frame::Message { id: 5, .. })));
    }

    #[test]
    fn end_of_file_within_a_frame_is_an_error() {
        for end in 1..SAMPLE.len() {
            let error = FrameReader::of_requests()
                .pull(feed(&SAMPLE[..end], &[]))
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "after {end}");
        }
    }

    #[test]
    fn invalid_header_is_refused_before_its_payload() {
        for (id, kind) in [(1, 2), (1, 3), (1, 0), (2, 1), (0, 1)] {
            let bytes = header(u32::MAX, id, kind, 0);
            let error = FrameReader::of_requests()
                .pull(feed(&bytes, &[]))
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let error = FrameReader::of_responses()
            .pull(feed(SAMPLE, &[]))
            .unwrap_err();
        assert_eq!(error.to_string(), "message type 1, not 2");
    }

    #[test]
    fn oversize_payload_is_skipped() {
        let length = MESSAGE_LENGTH_MAX + 1;
        let mut bytes = header(length as u32, 3, MESSAGE_TYPE_REQUEST, 0);
        bytes.resize(bytes.len() + length, 0xaa);
        bytes.extend(SAMPLE);
        let mut reader = FrameReader::of_requests();
        let mut read = feed(&bytes, &[]);
        let oversize = Frame::Oversize { id: 3, length };
        assert_eq!(reader.pull(&mut read).unwrap(), Some(oversize));
        assert_eq!(reader.body.capacity(), 0);
        let next = reader.pull(&mut read).unwrap();
        assert!(matches!(next, Some(Frame::Message { id: 5, .. })));
    }

    #[test]
    fn end_of_file_within_an_oversize_payload() {
        let bytes = header(u32::MAX, 3, MESSAGE_TYPE_REQUEST, 0);
        let mut reads = 0;
        let mut read = feed(&bytes, &[]);
        let error = FrameReader::of_requests()
            .pull(|room| {
                reads += 1;
                read(room)
            })
            .unwrap_err();
        assert_eq!((error.kind(), reads), (io::ErrorKind::UnexpectedEof, 2));
    }

    #[test]
    fn longest_message_is_accepted() {
        let mut bytes = header(MESSAGE_LENGTH_MAX as u32, 3, MESSAGE_TYPE_REQUEST, 0);
        bytes.resize(bytes.len() + MESSAGE_LENGTH_MAX, 1);
        let Some(Frame::Message { body, .. }) =
            FrameReader::of_requests().pull(feed(&bytes, &[])).unwrap()
        else {
            panic!("no message");
        };
        assert_eq!(body.len(), MESSAGE_LENGTH_MAX);
        assert_eq!(body.capacity(), MESSAGE_LENGTH_MAX);
    }

    /// Reads `bytes` to their end, checking at each read what the buffer costs.
    fn read_all(bytes: &[u8], portions: &[usize]) -> io::Result<usize> {
        let mut reader = FrameReader::of_requests();
        let mut source = feed(bytes, portions);
        let mut frames = 0;
        loop {
            let blocked = loop {
                // Pull byte portions one at a time so that the reader can be looked at between.
                let mut first = true;
                let pulled = reader.pull(|room| {
                    if !mem::take(&mut first) {
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    source(room)
                });
                let bound = (2 * reader.received).max(4 * CHUNK);
                assert!(reader.body.capacity() <= bound, "{reader:?}");
                match pulled {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    done => break done?,
                }
            };
            match blocked {
                Some(Frame::Message { body, .. }) => {
                    let _ = Request::parse_from_bytes(&body);
                    frames += 1;
                }
                Some(Frame::Oversize { .. }) => frames += 1,
                None => return Ok(frames),
            }
        }
    }

    proptest! {
        #[test]
        fn random_bytes_cause_no_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            portions in proptest::collection::vec(1usize..50, 0..20),
        ) {
            let _ = read_all(&bytes, &portions);
        }

        #[test]
        fn random_payloads_of_any_length_cause_no_panic(
            length in prop_oneof![0u32..100, 0u32..20_000, any::<u32>()],
            id in any::<u32>(),
            payload in (any::<u8>(), 0usize..20_000).prop_map(|(byte, n)| vec![byte; n]),
            portions in proptest::collection::vec(1usize..9000, 0..20),
        ) {
            let mut bytes = header(length, id | 1, MESSAGE_TYPE_REQUEST, 0);
            bytes.extend(payload);
            let _ = read_all(&bytes, &portions);
        }

        #[test]
        fn mutated_and_truncated_requests_cause_no_panic(
            at in 0usize..SAMPLE.len(), to in any::<u8>(), end in 0usize..=2 * SAMPLE.len(),
        ) {
            let mut bytes = [SAMPLE, SAMPLE].concat();
            bytes[at] = to;
            bytes.truncate(end);
            let _ = read_all(&bytes, &[]);
        }

        #[test]
        fn any_request_is_encoded_and_decoded(
            service in ".{0,20}", method in ".{0,20}", timeout_nano in any::<i64>(),
            payload in (any::<u8>(), 0usize..20_000).prop_map(|(byte, n)| vec![byte; n]),
            portions in proptest::collection::vec(1usize..9000, 1..20),
        ) {
            let sent = Request { service, method, timeout_nano, payload, ..Default::default() };
            let bytes = request(3, &sent).unwrap();
            let got = FrameReader::of_requests().pull(feed(&bytes, &portions)).unwrap();
            let Some(Frame::Message { id: 3, body }) = got else { panic!("no message") };
            prop_assert_eq!(Request::parse_from_bytes(&body).unwrap(), sent);
        }
    }
}
