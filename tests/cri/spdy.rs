//! A client of containerd's streaming server by SPDY/3.1, which kubectl used up to 1.30: exec, and
//! the forwarding of a port. Each standard stream is a stream of SPDY's, and can be closed.
//!
//! It compresses nothing: the blocks of its headers are stored ones. It does not read the server's
//! headers. It acknowledges nothing: the server has no flow control.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use crate::upgraded::{self, Upgraded};
use crate::world;

/// The flag of a stream's last frame.
const FIN: u8 = 1;

/// A connection with its streams.
pub struct Connection {
    socket: Upgraded,
    /// What was received, by stream.
    received: HashMap<u32, Vec<u8>>,
    /// The streams that the server has ended.
    ended: HashSet<u32>,
    /// The next stream's number; a client's are odd.
    next: u32,
}

impl Connection {
    /// Opens a URL of the streaming server. `protocol` is what the streams are for.
    pub fn open(url: &str, protocol: &str) -> Self {
        let head = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: ";
        Self {
            socket: Upgraded::open("POST", url, head, protocol),
            received: HashMap::new(),
            ended: HashSet::new(),
            next: 1,
        }
    }

    /// Opens a stream with these headers.
    pub fn stream(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        let is_first = stream == 1;
        self.next += 2;
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend((text.len() as u32).to_be_bytes());
            block.extend(text.as_bytes());
        }
        // The number, no stream that it belongs to, no priority.
        let mut body = stream.to_be_bytes().to_vec();
        body.extend([0; 6]);
        body.extend(stored(&block, is_first));
        let mut frame = vec![0x80, 3, 0, 1];
        frame.extend((body.len() as u32).to_be_bytes()); // no flags: the length has 24 bits
        frame.extend(body);
        self.socket.send(&frame);
        self.received.insert(stream, Vec::new());
        stream
    }

    /// Sends data on a stream.
    pub fn write(&mut self, stream: u32, data: &str) {
        self.send(stream, 0, data);
    }

    /// Ends what is sent on a stream.
    pub fn close(&mut self, stream: u32) {
        self.send(stream, FIN, "");
    }

    fn send(&mut self, stream: u32, flags: u8, data: &str) {
        let mut frame = stream.to_be_bytes().to_vec();
        frame.extend((data.len() as u32).to_be_bytes());
        frame[4] = flags;
        frame.extend(data.as_bytes());
        self.socket.send(&frame);
    }

    /// What was received on a stream so far.
    pub fn received(&self, stream: u32) -> String {
        String::from_utf8_lossy(&self.received[&stream]).into_owned()
    }

    /// Receives until the server ends `stream` or the connection.
    pub fn until_end(&mut self, stream: u32) {
        let deadline = Instant::now() + world::limit();
        let mut head = [0; 8];
        while !self.ended.contains(&stream) && self.socket.read(&mut head, deadline) {
            let (flags, length) = (head[4], [0, head[5], head[6], head[7]]);
            let mut data = vec![0; u32::from_be_bytes(length) as usize];
            assert!(self.socket.read(&mut data, deadline), "a whole frame");
            if head[0] & 0x80 != 0 {
                continue;
            }
            let of = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let received = self.received.get_mut(&of).expect("a stream of ours");
            received.extend(data);
            if flags & FIN != 0 {
                self.ended.insert(of);
            }
        }
    }
}

/// The block of headers as zlib has it, uncompressed. All blocks of a connection are one stream.
fn stored(block: &[u8], is_first: bool) -> Vec<u8> {
    let mut out = Vec::new();
    if is_first {
        out.extend([0x78, 1]);
    }
    // An empty one behind it: that is where a reader stops.
    for part in [block, &[]] {
        let length = part.len() as u16;
        out.push(0);
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(part);
    }
    out
}

/// A command whose standard streams are forwarded.
pub struct Command {
    connection: Connection,
    error: u32,
    /// The number of its standard input.
    stdin: u32,
    stdout: u32,
    stderr: u32,
}

impl Command {
    /// Opens what Exec or Attach answered, without a terminal.
    pub fn open(url: &str) -> Self {
        let mut connection = Connection::open(url, "v4.channel.k8s.io");
        let mut stream = |name| connection.stream(&[("streamtype", name)]);
        let [error, stdin, stdout, stderr] =
            ["error", "stdin", "stdout", "stderr"].map(&mut stream);
        Self {
            connection,
            error,
            stdin,
            stdout,
            stderr,
        }
    }

    /// Writes to the standard input, all there is.
    pub fn write_all(&mut self, data: &str) {
        self.connection.write(self.stdin, data);
        self.connection.close(self.stdin);
    }

    /// Waits for the end: exit code, output, error output.
    pub fn wait(mut self) -> (i32, String, String) {
        for stream in [self.stdout, self.stderr, self.error] {
            self.connection.until_end(stream);
        }
        let status = self.connection.received(self.error);
        let status = serde_json::from_str(&status).expect("a status");
        let output = [self.stdout, self.stderr].map(|stream| self.connection.received(stream));
        let [stdout, stderr] = output;
        (upgraded::exit_code(&status), stdout, stderr)
    }
}
