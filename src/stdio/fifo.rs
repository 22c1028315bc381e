//! The ends of containerd's FIFOs, and of the files and devices that may stand where
//! a FIFO is expected.
//!
//! Promises: one descriptor an output, which is both its write end and its read end:
//! a reader may leave and come back, and neither it nor the container notices. Stdin
//! has a write end of ours, so that only CloseIO ends it.
//!
//! Lacks on purpose: any wait without an end.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, major};
use tokio::io::Interest;
use tokio::time::{Instant, sleep, timeout_at};

use super::copy::End;
use crate::{blocking, sys};

/// How long a client may pause and still count as one that reads.
const PATIENCE: Duration = Duration::from_millis(200);

/// Pause before the second look at what the kernel does not announce.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
/// Longest pause between looks at a FIFO that a client reads.
const READING_PAUSE: Duration = Duration::from_millis(10);
/// How long a FIFO has to have a reader for that to be a client: a child that we have forked
/// has copies of our ends, which can read, until it executes its program.
const READER_PROOF: Duration = Duration::from_secs(1);
/// Longest pause between looks at a FIFO that waits for its first reader.
const FIRST_READER_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between looks at a FIFO that waits for a reader to come back.
const ABSENCE_PAUSE: Duration = Duration::from_secs(1);

/// What stands at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Fifo,
    /// `/dev/null` and the like, which never block.
    Memory,
    /// Another character device.
    Device,
    /// A regular file, or what else may block.
    File,
}

impl Kind {
    /// By a file's mode and, for a device, its number.
    fn of(mode: u32, device: u64) -> Self {
        /// Major number of `/dev/null` and the like.
        const MEMORY: u64 = 1;
        match SFlag::from_bits_truncate(mode) & SFlag::S_IFMT {
            SFlag::S_IFIFO => Self::Fifo,
            SFlag::S_IFCHR if major(device) == MEMORY => Self::Memory,
            SFlag::S_IFCHR => Self::Device,
            _ => Self::File,
        }
    }
}

/// The stdin that a client is to write to.
#[derive(Debug)]
pub(super) struct Input {
    place: Place,
    /// Open from the beginning, if it is no FIFO.
    file: Option<OwnedFd>,
}

impl Input {
    /// What is at `path` now.
    pub(super) async fn find(path: &Path, deadline: Instant) -> io::Result<Self> {
        let place = Place::find(path, deadline).await?;
        let file = match place.kind {
            Kind::Fifo => None,
            _ => Some(place.open(OFlag::O_RDONLY, deadline).await?),
        };
        Ok(Self { place, file })
    }

    /// Where to read from, non-blocking, and what keeps a FIFO from ending while there is
    /// no client: CloseIO drops it.
    pub(super) fn open(self) -> io::Result<(End, Option<OwnedFd>)> {
        let (read, hold) = match self.file {
            Some(file) => (file, None),
            None => {
                let read = self.place.open_now(OFlag::O_RDONLY)?;
                (read, Some(self.place.open_now(OFlag::O_WRONLY)?))
            }
        };
        let end = End::opened(read, self.place.kind, Interest::READABLE)?;
        Ok((end, hold))
    }
}

/// Opens `path` to write output to; non-blocking. A FIFO must get a reader until
/// `deadline`, else `TimedOut`. Anything else is appended to and must exist.
pub(super) async fn open_output(path: &Path, deadline: Instant) -> io::Result<End> {
    let place = Place::find(path, deadline).await?;
    if place.kind != Kind::Fifo {
        let file = place
            .open(OFlag::O_WRONLY | OFlag::O_APPEND, deadline)
            .await?;
        return End::opened(file, place.kind, Interest::WRITABLE);
    }
    let first = wait_for_reader(&place, deadline).await?;
    // With the first end open, the reader never sees this one as a gap.
    let both = place.open(OFlag::O_RDWR, deadline).await?;
    drop(first);
    End::sink(both)
}

/// Opens a file to append to; makes it, and the directories above it.
pub(super) async fn append_to(path: &Path, deadline: Instant) -> io::Result<End> {
    let path = path.to_owned();
    let (file, kind) = blocking(deadline, move || {
        if let Some(parent) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)?;
        }
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o644);
        options.custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits());
        let file = options.open(path)?;
        let found = file.metadata()?;
        Ok((file.into(), Kind::of(found.mode(), found.rdev())))
    })
    .await?;
    End::opened(file, kind, Interest::WRITABLE)
}

/// Runs `work`, which may block in the kernel, on a thread; `TimedOut` when it has not
/// returned at `deadline`.
async fn blocking<T: Send + 'static>(
    deadline: Instant,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match timeout_at(deadline, blocking::run(work)).await {
        Ok(done) => done.map_err(io::Error::other)?,
        Err(_) => {
            let text = "the file system did not answer within 30 s";
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
    }
}

/// Closes the output `end` once that loses nothing: a FIFO with bytes nobody has read,
/// and no reader (while containerd restarts, for example), stays until there is one again.
pub(super) async fn close(end: End) -> io::Result<()> {
    if end.unread() == 0 {
        return Ok(());
    }
    let path = fd_path(end.as_fd());
    // A write end alone keeps the bytes, and can tell whether somebody reads.
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let writer = End::unwatched(open(path.as_str(), flags, Mode::empty())?);
    drop(end);
    let mut looks = Looks::new(ABSENCE_PAUSE);
    let mut reader_since = None;
    while writer.unread() > 0 {
        if !writer.has_reader() {
            reader_since = None;
            looks.pause().await;
            continue;
        }
        let since = *reader_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= READER_PROOF {
            break;
        }
        sleep(READING_PAUSE).await;
    }
    Ok(())
}

/// Waits until a client has read all that `fifo` holds, as long as it goes on reading.
pub(super) async fn consumed(fifo: &End) {
    let mut reading = Reading::default();
    loop {
        let unread = fifo.unread();
        if unread == 0 || !reading.goes_on(unread).await {
            return;
        }
    }
}

/// Looks at what the kernel does not announce, first often and then less. inotify(7)
/// would announce it, but its instances are few, and all of a user's processes share them.
pub(super) struct Looks {
    pause: Duration,
    longest: Duration,
}

impl Looks {
    pub(super) fn new(longest: Duration) -> Self {
        Self {
            pause: SHORTEST_PAUSE,
            longest,
        }
    }

    pub(super) async fn pause(&mut self) {
        sleep(self.pause).await;
        self.pause = self.longest.min(self.pause * 2);
    }
}

/// Whether a client goes on reading.
pub(super) struct Reading {
    looks: Looks,
    seen: Option<usize>,
    since: Instant,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            looks: Looks::new(READING_PAUSE),
            seen: None,
            since: Instant::now(),
        }
    }
}

impl Reading {
    /// Pauses. `progress` is a number that changes whenever the client reads. False: it has
    /// not changed for long.
    pub(super) async fn goes_on(&mut self, progress: usize) -> bool {
        if self.seen != Some(progress) {
            self.seen = Some(progress);
            self.since = Instant::now();
            self.looks = Looks::new(READING_PAUSE);
        } else if self.since.elapsed() >= PATIENCE {
            return false;
        }
        self.looks.pause().await;
        true
    }
}

/// A path that leads to what `fd` does, whatever became of its name.
fn fd_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// What a path led to once: opening it again cannot lead elsewhere.
#[derive(Debug, Clone)]
struct Place {
    handle: Arc<File>,
    kind: Kind,
    /// Whether the kernel knew it without asking a disk or another machine.
    cached: bool,
}

impl Place {
    async fn find(path: &Path, deadline: Instant) -> io::Result<Self> {
        // Without a thread for what is usual: a FIFO in memory.
        if let Ok((handle, mode, device)) = sys::fd::find_cached(path) {
            return Ok(Self {
                handle: Arc::new(handle),
                kind: Kind::of(mode, device),
                cached: true,
            });
        }
        let path = path.to_owned();
        blocking(deadline, move || {
            let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
            let handle = File::from(open(&path, flags, Mode::empty())?);
            let found = handle.metadata()?;
            Ok(Self {
                handle: Arc::new(handle),
                kind: Kind::of(found.mode(), found.rdev()),
                cached: false,
            })
        })
        .await
    }

    async fn open(&self, flags: OFlag, deadline: Instant) -> io::Result<OwnedFd> {
        if self.cached && matches!(self.kind, Kind::Fifo | Kind::Memory) {
            return self.open_now(flags);
        }
        let place = self.clone();
        blocking(deadline, move || place.open_now(flags)).await
    }

    fn open_now(&self, flags: OFlag) -> io::Result<OwnedFd> {
        let path = fd_path(self.handle.as_fd());
        let flags = flags | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        Ok(open(path.as_str(), flags, Mode::empty())?)
    }
}

/// Opens the FIFO's write end once there is a reader. The kernel offers no event for that,
/// only an open(2) that blocks: a thread in it could be left there for ever.
async fn wait_for_reader(place: &Place, deadline: Instant) -> io::Result<OwnedFd> {
    let mut looks = Looks::new(FIRST_READER_PAUSE);
    loop {
        match place.open(OFlag::O_WRONLY, deadline).await {
            Err(e) if e.raw_os_error() == Some(Errno::ENXIO as i32) => {}
            opened => return opened,
        }
        if timeout_at(deadline, looks.pause()).await.is_err() {
            let text = "no reader within 30 s";
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
    }
}
