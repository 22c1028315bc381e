//! A client of containerd's streaming server: exec and attach over a WebSocket, by the
//! protocol `v4.channel.k8s.io`. Each message is a byte, which names a channel, and data.
//!
//! It cannot close the standard input of a command: the protocol has no way to say that.

use std::time::Instant;

use serde_json::Value;

use crate::upgraded::{self, Upgraded};
use crate::world;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// An open stream.
pub struct Session {
    socket: Upgraded,
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
        let head = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                    Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: ";
        Self {
            socket: Upgraded::open("GET", url, head, "v4.channel.k8s.io"),
            stdout: String::new(),
            stderr: String::new(),
            end: None,
        }
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
        upgraded::exit_code(end)
    }

    /// Sends one message; a client's messages are masked, here with zeros.
    fn send(&mut self, channel: u8, data: &[u8]) {
        let length = u8::try_from(data.len() + 1).expect("a short message");
        assert!(length < 126, "a short message");
        let mut frame = vec![0x82, 0x80 | length, 0, 0, 0, 0, channel];
        frame.extend_from_slice(data);
        self.socket.send(&frame);
    }

    /// Takes one frame; false at the end of the stream.
    fn receive(&mut self, deadline: Instant) -> bool {
        let mut head = [0; 2];
        if !self.socket.read(&mut head, deadline) {
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
            assert!(
                self.socket.read(&mut bytes[8 - extra..], deadline),
                "a length"
            );
            length = u64::from_be_bytes(bytes);
        }
        let mut data = vec![0; length as usize];
        assert!(self.socket.read(&mut data, deadline), "a whole frame");
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
}
