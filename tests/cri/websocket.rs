//! A client of containerd's streaming server: exec and attach over a WebSocket, by the
//! protocol `v4.channel.k8s.io`. Each message is a byte, which names a channel, and data.
//!
//! It cannot close the standard input of a command: the protocol has no way to say that.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::world;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// An open stream.
pub struct Session {
    socket: BufReader<TcpStream>,
    /// All of the output so far.
    pub stdout: String,
    /// All of the error output so far.
    pub stderr: String,
    /// How the command ended.
    end: Option<Value>,
}

impl Session {
    /// Opens what Exec or Attach answered.
    pub fn open(url: &str) -> Self {
        let rest = url.strip_prefix("http://").expect("an http URL");
        let (host, path) = rest.split_once('/').expect("a URL with a path");
        let mut socket = TcpStream::connect(host).expect("connect to the streaming server");
        // Short, because `receive` looks at its own limit between two reads.
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("set a time-out");
        write!(
            socket,
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        )
        .expect("send the request");
        let mut session = Self {
            socket: BufReader::new(socket),
            stdout: String::new(),
            stderr: String::new(),
            end: None,
        };
        session.expect_upgrade();
        session
    }

    fn expect_upgrade(&mut self) {
        let mut head = String::new();
        let deadline = Instant::now() + world::limit();
        while !head.ends_with("\r\n\r\n") {
            // A read that timed out has kept what it got.
            let read = self.socket.read_line(&mut head);
            assert_ne!(read.ok(), Some(0), "end of the stream after {head:?}");
            assert!(Instant::now() < deadline, "waited for the answer: {head:?}");
        }
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("v4.channel.k8s.io"), "{head}");
    }

    /// Writes to the command's standard input.
    pub fn write(&mut self, data: &str) {
        self.send(STDIN, data.as_bytes());
    }

    /// Sets the size of the terminal.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}");
        self.send(RESIZE, size.as_bytes());
    }

    /// Waits until `wanted` is part of the standard output.
    pub fn until_output(&mut self, wanted: &str) {
        let deadline = Instant::now() + world::limit();
        while !self.stdout.contains(wanted) {
            let more = self.receive(deadline);
            assert!(more, "the stream ended: {:?}", self.stdout);
        }
    }

    /// Reads until the server closes the stream; returns the exit code.
    pub fn wait(&mut self) -> i32 {
        let deadline = Instant::now() + world::limit();
        while self.receive(deadline) {}
        let end = self.end.as_ref().expect("how the command ended");
        if end["status"] == "Success" {
            return 0;
        }
        let code = &end["details"]["causes"][0];
        assert_eq!(code["reason"], "ExitCode", "{end}");
        let code = code["message"].as_str().expect("an exit code");
        code.parse().expect("a number")
    }

    /// Sends one message; a client's messages are masked, here with zeros.
    fn send(&mut self, channel: u8, data: &[u8]) {
        let length = u8::try_from(data.len() + 1).expect("a short message");
        assert!(length < 126, "a short message");
        let mut frame = vec![0x82, 0x80 | length, 0, 0, 0, 0, channel];
        frame.extend_from_slice(data);
        let sent = self.socket.get_mut().write_all(&frame);
        sent.expect("send to the streaming server");
    }

    /// Takes one frame; false at the end of the stream.
    fn receive(&mut self, deadline: Instant) -> bool {
        let mut head = [0; 2];
        if !self.read(&mut head, deadline) {
            return false;
        }
        let mut length = u64::from(head[1] & 0x7f);
        let extra = match length {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if extra > 0 {
            let mut bytes = [0; 8];
            assert!(self.read(&mut bytes[8 - extra..], deadline), "a length");
            length = u64::from_be_bytes(bytes);
        }
        let mut data = vec![0; length as usize];
        assert!(self.read(&mut data, deadline), "a whole frame");
        match (head[0] & 0x0f, data.split_first()) {
            // Text or binary.
            (1 | 2, Some((channel, data))) => self.take(*channel, data),
            // The end of the stream.
            (8, _) => return false,
            _ => {}
        }
        true
    }

    fn take(&mut self, channel: u8, data: &[u8]) {
        let text = String::from_utf8_lossy(data);
        match channel {
            STDOUT => self.stdout += &text,
            STDERR => self.stderr += &text,
            ERROR if !data.is_empty() => {
                self.end = Some(serde_json::from_str(&text).expect("a status"));
            }
            _ => {}
        }
    }

    /// Fills `buffer`; false if the stream ended before.
    fn read(&mut self, buffer: &mut [u8], deadline: Instant) -> bool {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.socket.read(&mut buffer[filled..]) {
                Ok(0) => return false,
                Ok(count) => filled += count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => {
                    assert!(
                        Instant::now() < deadline,
                        "waited for the streaming server; so far {:?}",
                        self.stdout
                    );
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return false,
                Err(error) => panic!("read from the streaming server: {error}"),
            }
        }
        true
    }
}
