//! The client's ends of a process's stdio: FIFOs read and written as containerd's
//! client does, without ever blocking a test for good.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// Makes a FIFO at `path`.
pub fn make_fifo(path: &Path) {
    mkfifo(path, Mode::from_bits_truncate(0o700))
        .unwrap_or_else(|e| panic!("mkfifo {path:?}: {e}"));
}

/// A reader of a FIFO, which collects what comes.
pub struct Reader {
    shared: Arc<Shared>,
    path: PathBuf,
    hang_timeout: Duration,
    /// Dropped: the thread ends.
    _stop: UnixStream,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    news: Condvar,
}

#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    ended: bool,
}

impl Reader {
    /// Reads `path` as a client: to the end of the stream.
    pub fn open(path: &Path, hang_timeout: Duration) -> Reader {
        Self::with(path, OpenOptions::new().read(true), hang_timeout)
    }

    /// Reads `path` as the daemon reads a shim's log: open for writing too, so that it never ends.
    pub fn open_lasting(path: &Path, hang_timeout: Duration) -> Reader {
        Self::with(
            path,
            OpenOptions::new().read(true).write(true),
            hang_timeout,
        )
    }

    fn with(path: &Path, options: &mut OpenOptions, hang_timeout: Duration) -> Reader {
        let file = options.custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
        let file = file.unwrap_or_else(|e| panic!("open {path:?}: {e}"));
        let (stop, stopped) = UnixStream::pair().expect("a socket pair");
        let shared = Arc::new(Shared::default());
        let mailbox = shared.clone();
        std::thread::spawn(move || collect(file, &stopped, &mailbox));
        Reader {
            shared,
            path: path.into(),
            hang_timeout,
            _stop: stop,
        }
    }

    /// What came so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.seen.lock().unwrap().bytes).into_owned()
    }

    /// Waits until what came contains `text`.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        self.wait(&format!("{text:?}"), |seen| {
            String::from_utf8_lossy(&seen.bytes).contains(text)
        });
    }

    /// Waits for the end of the stream: all that came.
    #[track_caller]
    pub fn end(&self) -> String {
        String::from_utf8_lossy(&self.end_bytes()).into_owned()
    }

    /// As [`Reader::end`].
    #[track_caller]
    pub fn end_bytes(&self) -> Vec<u8> {
        self.wait("end of stream", |seen| seen.ended);
        std::mem::take(&mut self.shared.seen.lock().unwrap().bytes)
    }

    #[track_caller]
    fn wait(&self, what: &str, done: impl Fn(&Seen) -> bool) {
        let seen = self.shared.seen.lock().unwrap();
        let wait = self
            .shared
            .news
            .wait_timeout_while(seen, self.hang_timeout, |seen| !done(seen));
        let (seen, timeout) = wait.unwrap();
        let tail = &seen.bytes[seen.bytes.len().saturating_sub(200)..];
        assert!(
            !timeout.timed_out(),
            "no {what} on {:?} within {:?}; {} bytes came, ending in {:?}",
            self.path,
            self.hang_timeout,
            seen.bytes.len(),
            String::from_utf8_lossy(tail)
        );
    }
}

fn collect(mut file: File, stopped: &UnixStream, shared: &Shared) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let mut fds = [
            PollFd::new(file.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut fds, PollTimeout::NONE).is_err() || fds[1].any() == Some(true) {
            return;
        }
        let read = match file.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => 0,
        };
        let mut seen = shared.seen.lock().unwrap();
        seen.bytes.extend(&buffer[..read]);
        seen.ended = read == 0;
        shared.news.notify_all();
        if read == 0 {
            return;
        }
    }
}

/// A reader of a FIFO that reads only what it is asked for.
pub struct Tap {
    file: File,
    path: PathBuf,
    hang_timeout: Duration,
}

impl Tap {
    /// Opens `path` as a client does that is in no hurry.
    pub fn open(path: &Path, hang_timeout: Duration) -> Tap {
        let mut options = OpenOptions::new();
        let options = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let file = options.open(path);
        let file = file.unwrap_or_else(|e| panic!("open {path:?}: {e}"));
        Tap {
            file,
            path: path.into(),
            hang_timeout,
        }
    }

    /// The next `count` bytes.
    #[track_caller]
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let bytes = self.read(count);
        assert_eq!(bytes.len(), count, "{:?} ended", self.path);
        bytes
    }

    /// All that comes until the end.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        self.read(usize::MAX)
    }

    /// The size of the FIFO.
    pub fn size(&self) -> usize {
        let size = fcntl(&self.file, FcntlArg::F_GETPIPE_SZ);
        size.expect("ask for the size of a FIFO") as usize
    }

    /// How many bytes the FIFO holds.
    pub fn unread(&self) -> usize {
        unread(self.file.as_fd())
    }

    /// As many bytes, or what comes until the end.
    #[track_caller]
    pub fn read(&mut self, most: usize) -> Vec<u8> {
        let timeout = PollTimeout::try_from(self.hang_timeout).expect("a short hang_timeout");
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        while bytes.len() < most {
            let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, timeout).expect("poll");
            assert_ne!(ready, 0, "{:?}: nothing after {}", self.path, bytes.len());
            let wanted = buffer.len().min(most - bytes.len());
            match self.file.read(&mut buffer[..wanted]) {
                Ok(0) => break,
                Ok(count) => bytes.extend(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("read {:?}: {error}", self.path),
            }
        }
        bytes
    }
}

/// How many bytes a pipe or FIFO holds.
pub fn unread(pipe: BorrowedFd<'_>) -> usize {
    containerd_shim_rs_v2::sys::fd::unread(pipe).expect("ask how much a pipe holds")
}

/// The write end of a FIFO, once somebody reads it.
#[track_caller]
pub fn writer(path: &Path, hang_timeout: Duration) -> File {
    let (sender, opened) = channel();
    let fifo = path.to_path_buf();
    std::thread::spawn(move || sender.send(OpenOptions::new().write(true).open(fifo)));
    let file = opened.recv_timeout(hang_timeout);
    let file = file.unwrap_or_else(|_| panic!("nobody read {path:?} within {hang_timeout:?}"));
    file.unwrap_or_else(|e| panic!("open {path:?} for writing: {e}"))
}
