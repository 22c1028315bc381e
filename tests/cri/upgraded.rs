//! A connection to containerd's streaming server that was upgraded from HTTP to another protocol,
//! and the status that a command ends with.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::world;

/// The connection.
pub struct Upgraded(BufReader<TcpStream>);

impl Upgraded {
    /// Asks for an upgrade of `url`, with these lines of the request's head, and with `protocol`.
    pub fn open(method: &str, url: &str, head: &str, protocol: &str) -> Self {
        let rest = url.strip_prefix("http://").expect("an http URL");
        let (host, path) = rest.split_once('/').expect("a URL with a path");
        let mut socket = TcpStream::connect(host).expect("connect to the streaming server");
        // Short, because `read` looks at its own limit between two reads.
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("set a time-out");
        let request =
            format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\n{head}{protocol}\r\n\r\n");
        let sent = socket.write_all(request.as_bytes());
        sent.expect("send the request");
        let mut upgraded = Self(BufReader::new(socket));
        upgraded.expect_upgrade(protocol);
        upgraded
    }

    fn expect_upgrade(&mut self, protocol: &str) {
        let mut head = String::new();
        let deadline = Instant::now() + world::limit();
        while !head.ends_with("\r\n\r\n") {
            // A read that timed out has kept what it got.
            let read = self.0.read_line(&mut head);
            assert_ne!(read.ok(), Some(0), "end of the stream after {head:?}");
            assert!(Instant::now() < deadline, "waited for the answer: {head:?}");
        }
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains(protocol), "{head}");
    }

    /// Sends `frame`.
    pub fn send(&mut self, frame: &[u8]) {
        let sent = self.0.get_mut().write_all(frame);
        sent.expect("send to the streaming server");
    }

    /// Fills `buffer`; false if the stream ended before.
    pub fn read(&mut self, buffer: &mut [u8], deadline: Instant) -> bool {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read(&mut buffer[filled..]) {
                Ok(0) => return false,
                Ok(count) => filled += count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => {
                    let is_late = Instant::now() >= deadline;
                    assert!(!is_late, "waited for the streaming server");
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return false,
                Err(error) => panic!("read from the streaming server: {error}"),
            }
        }
        true
    }
}

/// The exit code in a `v1.Status`.
pub fn exit_code(status: &Value) -> i32 {
    if status["status"] == "Success" {
        return 0;
    }
    let code = &status["details"]["causes"][0];
    assert_eq!(code["reason"], "ExitCode", "{status}");
    let code = code["message"].as_str().expect("an exit code");
    code.parse().expect("a number")
}
