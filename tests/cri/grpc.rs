//! A gRPC client, as small as CRI needs it: calls on containerd's Unix socket, one connection
//! each. No compression, no TLS, no request that is a stream.

use std::future::Future;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::RecvStream;
use prost::Message;
use tokio::net::UnixStream;

const SOCKET: &str = "/run/containerd/containerd.sock";

/// The codes of gRPC that the cases know.
pub const DEADLINE_EXCEEDED: i32 = 4;

/// Why a call failed, as the server says it.
#[derive(Debug)]
pub struct Status {
    pub code: i32,
    pub message: String,
}

/// Calls `method`, such as `runtime.v1.RuntimeService/Version`. A call that has no answer
/// after `limit` fails the test.
pub fn call<Answer: Message + Default>(
    method: &str,
    request: &impl Message,
    limit: Duration,
) -> Result<Answer, Status> {
    let done = runtime().block_on(async {
        let answer = async {
            let mut stream = open(method, request).await?;
            let mut received = BytesMut::new();
            match next(&mut stream, &mut received).await? {
                Some(message) => Ok(Answer::decode(message).expect("an answer of CRI")),
                None => Err(Status {
                    code: -1,
                    message: "no answer and no error".to_owned(),
                }),
            }
        };
        tokio::time::timeout(limit, answer).await
    });
    done.unwrap_or_else(|_| panic!("waited {limit:?} for the answer to {method}"))
}

/// Calls a method whose answer is a stream. The messages arrive until the receiver is dropped
/// or the server ends the stream. Returns once the server has accepted the call.
pub fn subscribe<Answer: Message + Default + 'static>(
    method: &'static str,
    request: impl Message + 'static,
) -> Receiver<Answer> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let mut stream = open(method, &request)
                .await
                .unwrap_or_else(|status| panic!("{method}: {status:?}"));
            let mut received = BytesMut::new();
            while let Ok(Some(message)) = next(&mut stream, &mut received).await {
                let message = Answer::decode(message).expect("an answer of CRI");
                if send.send(message).is_err() {
                    return;
                }
            }
        });
    });
    receive
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a tokio runtime")
}

/// Connects, sends the request, and waits for the head of the answer.
async fn open(method: &str, request: &impl Message) -> Result<RecvStream, Status> {
    let socket = UnixStream::connect(SOCKET)
        .await
        .map_err(|error| broken(&format!("connect to {SOCKET}: {error}")))?;
    let (client, connection) = h2::client::handshake(socket).await.map_err(transport)?;
    spawn(connection);
    let mut client = client.ready().await.map_err(transport)?;
    let head = http::Request::post(format!("http://localhost/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a valid head");
    let (answer, mut body) = client.send_request(head, false).map_err(transport)?;
    body.send_data(frame(request), true).map_err(transport)?;
    let answer = answer.await.map_err(transport)?;
    status(answer.headers())?;
    Ok(answer.into_body())
}

/// Drives a connection for as long as its call lasts.
fn spawn(connection: impl Future<Output = Result<(), h2::Error>> + Send + 'static) {
    tokio::spawn(async move {
        let _ = connection.await;
    });
}

/// A message behind its flag (not compressed) and its length.
fn frame(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.encoded_len() as u32);
    message.encode(&mut frame).expect("a buffer that grows");
    frame.freeze()
}

/// The next message of an answer; none at its end. `received` keeps what came beyond it.
async fn next(
    stream: &mut RecvStream,
    received: &mut BytesMut,
) -> Result<Option<BytesMut>, Status> {
    loop {
        if received.len() >= 5 {
            let length = (&received[1..5]).get_u32() as usize;
            if received.len() >= 5 + length {
                received.advance(5);
                return Ok(Some(received.split_to(length)));
            }
        }
        match stream.data().await {
            Some(data) => {
                let data = data.map_err(transport)?;
                let _ = stream.flow_control().release_capacity(data.len());
                received.extend_from_slice(&data);
            }
            None => {
                if let Some(trailers) = stream.trailers().await.map_err(transport)? {
                    status(&trailers)?;
                }
                return Ok(None);
            }
        }
    }
}

/// The status that the headers or trailers have, if they have one.
fn status(headers: &http::HeaderMap) -> Result<(), Status> {
    let value = |name| {
        headers
            .get(name)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    match value("grpc-status") {
        Some(code) if code != "0" => Err(Status {
            code: code.parse().expect("a code"),
            message: value("grpc-message").unwrap_or_default(),
        }),
        _ => Ok(()),
    }
}

fn transport(error: h2::Error) -> Status {
    broken(&error.to_string())
}

/// What is not an answer of the server.
fn broken(message: &str) -> Status {
    Status {
        code: -1,
        message: message.to_owned(),
    }
}
