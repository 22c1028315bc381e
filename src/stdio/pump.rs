//! A stream with an end that may block in the kernel: a file on a disk that is slow, full,
//! frozen or gone, or an odd device. It is copied on a thread, which is there while
//! something comes.
//!
//! Promises: nobody but the stream waits for such an end. At most [`BUFFER`] bytes of a
//! stream are in memory. A stream that is given up leaves at most one thread, until the
//! kernel lets it go, and what could not be written is counted in the log.
//!
//! Lacks on purpose: a pool. A thread lives as long as data flows, and a little longer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

use super::{Label, Subject};
use crate::blocking;
use crate::error::Result;
use crate::sys;

/// Bytes that are read at once and held until they are written.
const BUFFER: usize = 64 << 10;
/// How long a thread waits for more, in ms.
const IDLE_MS: u16 = 1000;
/// How often a sink is tried that takes nothing and does not say when it will, in ms.
const RETRY_MS: u16 = 10;
/// No limit to what is still to be copied.
const NO_LIMIT: usize = usize::MAX;

/// What is to be copied.
pub(super) struct Stream {
    pub(super) from: Arc<OwnedFd>,
    pub(super) to: Arc<OwnedFd>,
    /// Whether a sink that fails is the end; else what it refuses is dropped.
    pub(super) ends_with_sink: bool,
    /// What the log calls it.
    pub(super) label: Label,
    /// How many bytes were written or dropped.
    pub(super) moved: Arc<AtomicU64>,
}

/// A stream and the thread that copies it; dropping it gives the stream up.
pub(super) struct Pump(Arc<State>);

struct State {
    stream: Stream,
    /// Bytes that were read and are neither written nor dropped.
    pending: AtomicUsize,
    /// What is still to be read.
    left: AtomicUsize,
    given_up: AtomicBool,
    /// Counts up when one of the two above is set.
    news: OwnedFd,
}

/// Why the thread has ended.
pub(super) enum Pumped {
    /// Nothing came for a while.
    Rests,
    /// Nothing will come.
    Ended,
}

impl Pump {
    pub(super) fn new(stream: Stream) -> io::Result<Self> {
        Ok(Self(Arc::new(State {
            stream,
            pending: AtomicUsize::new(0),
            left: AtomicUsize::new(NO_LIMIT),
            given_up: AtomicBool::new(false),
            news: sys::fd::eventfd()?,
        })))
    }

    /// Copies on a thread, until that ends.
    pub(super) async fn work(&self) -> Result<Pumped> {
        let state = self.0.clone();
        blocking::run_uncounted(move || state.copy()).await
    }

    /// Only so many more bytes are to be copied, and none is to be waited for.
    pub(super) fn finish(&self, left: usize) {
        self.0.left.store(left, Ordering::Relaxed);
        self.0.announce();
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.given_up.store(true, Ordering::Relaxed);
        self.0.announce();
        let pending = self.0.pending.load(Ordering::Relaxed);
        if pending > 0 {
            let unread = sys::fd::unread(self.0.stream.from.as_fd()).unwrap_or(0);
            let lost = pending + unread;
            let label = &self.0.stream.label;
            let Subject { id, exec } = &*label.subject;
            log::warn!(id, exec; "write {label}: {lost} bytes were not written in time");
        }
    }
}

impl State {
    fn announce(&self) {
        // A counter that cannot count any further is readable, which is all that matters.
        let _ = write(&self.news, &1u64.to_ne_bytes());
    }

    fn copy(&self) -> Pumped {
        let mut buffer = vec![0; BUFFER];
        let mut dropped = Dropped {
            label: &self.stream.label,
            bytes: 0,
        };
        loop {
            let left = self.left.load(Ordering::Relaxed);
            if left == 0 || self.is_given_up() {
                return Pumped::Ended;
            }
            match read(&*self.stream.from, &mut buffer[..left.min(BUFFER)]) {
                Ok(0) => return Pumped::Ended,
                Ok(count) => {
                    self.took(count);
                    if !self.put(&buffer[..count], &mut dropped) {
                        return Pumped::Ended;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if left != NO_LIMIT => return Pumped::Ended,
                Err(Errno::EAGAIN) => {
                    let source = self.stream.from.as_fd();
                    if !is_ready(&[source, self.news.as_fd()], PollFlags::POLLIN, IDLE_MS) {
                        return Pumped::Rests;
                    }
                }
                // A terminal whose other side is closed (EIO), for example.
                Err(_) => return Pumped::Ended,
            }
        }
    }

    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    fn took(&self, count: usize) {
        self.pending.store(count, Ordering::Relaxed);
        let less = |left: usize| (left != NO_LIMIT).then(|| left.saturating_sub(count));
        // Without a limit there is nothing to do.
        let _ = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    fn moved(&self, count: usize) {
        self.pending.fetch_sub(count, Ordering::Relaxed);
        self.stream.moved.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Writes `bytes`. False: the stream is at its end.
    fn put(&self, mut bytes: &[u8], dropped: &mut Dropped<'_>) -> bool {
        while !bytes.is_empty() {
            if self.is_given_up() {
                return false;
            }
            match write(&*self.stream.to, bytes) {
                // A stopped terminal.
                Ok(0) => drop(is_ready(&[], PollFlags::empty(), RETRY_MS)),
                Ok(count) => {
                    self.moved(count);
                    bytes = &bytes[count..];
                    dropped.report();
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    is_ready(&[self.stream.to.as_fd()], PollFlags::POLLOUT, IDLE_MS);
                }
                Err(_) if self.stream.ends_with_sink => return false,
                Err(e) => {
                    dropped.add(bytes.len(), e);
                    self.moved(bytes.len());
                    return true;
                }
            }
        }
        true
    }
}

/// What a sink refused since it last took something; tells how much when it goes.
struct Dropped<'a> {
    label: &'a Label,
    bytes: usize,
}

impl Dropped<'_> {
    fn add(&mut self, bytes: usize, cause: Errno) {
        if self.bytes == 0 {
            let Subject { id, exec } = &*self.label.subject;
            log::warn!(id, exec; "write {}: {cause}: output is dropped", self.label);
        }
        self.bytes += bytes;
    }

    fn report(&mut self) {
        if self.bytes > 0 {
            let Subject { id, exec } = &*self.label.subject;
            log::warn!(id, exec; "write {}: {} bytes were dropped", self.label, self.bytes);
        }
        self.bytes = 0;
    }
}

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        self.report();
    }
}

/// Waits for one of `fds`, for some time.
fn is_ready(fds: &[BorrowedFd<'_>], events: PollFlags, ms: u16) -> bool {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, events)).collect();
    // A failure (EINTR) is no reason to wait no longer.
    !matches!(poll(&mut fds, PollTimeout::from(ms)), Ok(0))
}
