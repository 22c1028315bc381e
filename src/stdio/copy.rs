//! The copier: moves one stream from where it is made to where it is read.
//!
//! Promises: bytes move inside the kernel (`splice(2)`) where the kernel can, through
//! a buffer that exists only while it is in use where it cannot (terminals, append
//! files). Nothing is lost or reordered, and a reader that stops or goes away delays
//! only the writer.
//!
//! A stream that comes little by little (lines of a log) is moved after a short delay; see
//! `pace`.
//!
//! Ends that may block in the kernel (files on a disk) are left to a thread; see `pump`.
//!
//! Lacks on purpose: timers where nothing moves, and any knowledge of what the
//! two ends are.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::fifo::{Kind, Looks, Reading};
use super::pace::{LONGEST_DELAY, MIN_DELAY_THRESHOLD, Pace, Timer};
use super::pump::{Pump, Pumped, Stream};
use super::sizes::{self, QUIET, SHRINK_PAUSE, Sizes};
use super::{Label, Subject};
use crate::sys;

/// Most bytes that one transfer moves: what the largest pipe of a client holds.
const TRANSFER: usize = 1 << 20;
/// Size of the buffer where splice cannot be used.
const BUFFER: usize = 16 << 10;
/// More than a terminal can hold, which cannot tell how much that is (64 KiB on the
/// way, and what fits into a line).
const TERMINAL: usize = 128 << 10;
/// How long after a process's end its output may still come, when somebody else keeps
/// the other end of the pipe open.
pub(super) const DRAIN: Duration = Duration::from_secs(10);
/// How often a pipe that is held back is looked at, once something is in it.
const FILLING: Duration = Duration::from_millis(20);
/// Longest pause before a thread to copy with is asked for again.
const THREAD_PAUSE: Duration = Duration::from_secs(1);
/// Stack of a thread that closes a file, in bytes.
const CLOSER_STACK: usize = 32 << 10;
/// After so many transfers in a row other tasks get their turn.
const MAX_TRANSFERS_PER_TURN: u32 = 8;

/// One end of a stream.
#[derive(Debug)]
pub(super) struct End {
    fd: Arc<OwnedFd>,
    /// What it can be waited for; `None` for a regular file or a device like
    /// `/dev/null`, which always is ready. Else it is non-blocking.
    interest: Option<Interest>,
    /// Whether the kernel may block who uses it, as regular files' disks do.
    may_block: bool,
    /// Its registration, made when it is waited for.
    watch: RefCell<Option<Rc<Watch>>>,
}

type Watch = AsyncFd<Arc<OwnedFd>>;

impl End {
    /// Watches `fd` for `interest`.
    pub(super) fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        let mut end = Self::unwatched(fd);
        end.interest = Some(interest);
        match end.watch() {
            // epoll(7) refuses what is always ready.
            Err(cause) if cause.raw_os_error() == Some(Errno::EPERM as i32) => {
                end.interest = None;
            }
            watched => drop(watched?),
        }
        if interest == Interest::WRITABLE {
            end.unwatch();
        }
        Ok(end)
    }

    /// Takes `fd` for always ready.
    pub(super) fn unwatched(fd: OwnedFd) -> Self {
        Self {
            fd: Arc::new(fd),
            interest: None,
            may_block: false,
            watch: RefCell::default(),
        }
    }

    /// Of what was opened at a path.
    pub(super) fn opened(fd: OwnedFd, kind: Kind, interest: Interest) -> io::Result<Self> {
        let mut end = match kind {
            // To ask whether it is ready may block as well.
            Kind::File | Kind::Memory => Self::unwatched(fd),
            Kind::Fifo | Kind::Device => Self::new(fd, interest)?,
        };
        end.may_block = end.interest.is_none() && kind != Kind::Memory;
        Ok(end)
    }

    /// Watches `fd` for something to read.
    pub(super) fn source(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, Interest::READABLE)
    }

    /// Watches `fd` for room to write.
    pub(super) fn sink(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, Interest::WRITABLE)
    }

    /// Whether it is a pipe or FIFO.
    pub(super) fn is_pipe(&self) -> bool {
        sizes::size(self).is_some()
    }

    /// How many bytes a pipe or FIFO holds; anything else holds none.
    pub(super) fn unread(&self) -> usize {
        match self.is_pipe() {
            true => sys::fd::unread(self.as_fd()).unwrap_or(0),
            false => 0,
        }
    }

    /// Whether somebody could read what is written to this write end of a pipe.
    pub(super) fn has_reader(&self) -> bool {
        !self.now(PollFlags::empty()).contains(PollFlags::POLLERR)
    }

    /// Which of `events` hold at this moment; a hang-up and an error always count.
    fn now(&self, events: PollFlags) -> PollFlags {
        let mut fds = [PollFd::new(self.as_fd(), events)];
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(_) => fds[0].revents().unwrap_or(events),
            // Not a fault of the descriptor: let the operation itself find out.
            Err(_) => events,
        }
    }

    fn watch(&self) -> io::Result<Option<Rc<Watch>>> {
        let Some(interest) = self.interest else {
            return Ok(None);
        };
        let mut watch = self.watch.borrow_mut();
        if watch.is_none() {
            *watch = Some(Rc::new(sys::fd::watch_shared(self.fd.clone(), interest)?));
        }
        Ok(watch.clone())
    }

    /// Until it is waited for again, what happens to it wakes nobody.
    fn unwatch(&self) {
        let mut watch = self.watch.borrow_mut();
        // Somebody else who waits keeps it: it cannot be registered twice.
        watch.take_if(|watch| Rc::strong_count(watch) == 1);
    }

    /// Waits until one of `events` (or a hang-up, or an error) holds.
    async fn ready(&self, interest: Interest, events: PollFlags) -> io::Result<PollFlags> {
        let Some(watch) = self.watch()? else {
            return Ok(events);
        };
        let mut alarms = FalseAlarms::default();
        loop {
            // Take the guard before the check: readiness that arrives in between is not
            // cleared.
            let mut guard = watch.ready(interest).await?;
            let now = self.now(events);
            if !now.is_empty() {
                return Ok(now);
            }
            guard.clear_ready();
            alarms.one_more().await;
        }
    }

    /// Waits for something to read, an end or an error.
    pub(super) async fn readable(&self) -> io::Result<PollFlags> {
        self.ready(Interest::READABLE, PollFlags::POLLIN).await
    }

    /// Waits for room, an end or an error. Else it is not watched: a reader would wake this
    /// process each time that it reads.
    async fn writable(&self) -> io::Result<PollFlags> {
        let now = match self.interest {
            Some(_) => self.now(PollFlags::POLLOUT),
            None => PollFlags::POLLOUT,
        };
        if !now.is_empty() {
            return Ok(now);
        }
        let ready = self.ready(Interest::WRITABLE, PollFlags::POLLOUT).await;
        self.unwatch();
        ready
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if self.may_block && Arc::strong_count(&self.fd) == 1 {
            // To close it may block, too: what is left to write is written then. Without a
            // thread it closes here.
            let fd = self.fd.clone();
            let _ = thread::Builder::new()
                .stack_size(CLOSER_STACK)
                .spawn(move || drop(fd));
        }
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Wake-ups in a row after which there was nothing to do. A process that reads back its
/// own output can cause any number of them.
#[derive(Debug, Default)]
struct FalseAlarms(u32);

impl FalseAlarms {
    /// Pauses if there were many.
    async fn one_more(&mut self) {
        self.0 += 1;
        if self.0 > MIN_DELAY_THRESHOLD {
            sleep(LONGEST_DELAY).await;
        }
    }
}

/// What the copiers of one process's output share: when it ended, and how many of
/// them are still at work.
#[derive(Debug, Default)]
pub(super) struct Drain {
    exited: Cell<Option<Instant>>,
    open: Cell<usize>,
    /// One of them changed, or a terminal was read empty.
    changed: Notify,
}

/// An output that is not at its end; dropping it says that it is.
#[derive(Debug)]
pub(super) struct Undrained(Rc<Drain>);

impl Drain {
    /// The process, or its terminal, ended; only the first call counts. Returns when
    /// that was.
    pub(super) fn exit(&self) -> Instant {
        let at = self.exited.get().unwrap_or_else(Instant::now);
        self.exited.set(Some(at));
        self.changed.notify_waiters();
        at
    }

    /// Counts one more output, until the result is dropped.
    pub(super) fn output(self: &Rc<Self>) -> Undrained {
        self.open.set(self.open.get() + 1);
        Undrained(self.clone())
    }

    /// Waits until all that `terminal` holds now was read.
    pub(super) async fn idle(&self, terminal: &End) {
        self.until(|| terminal.now(PollFlags::POLLIN).is_empty())
            .await;
    }

    /// Waits until every output is at its end.
    pub(super) async fn done(&self) {
        self.until(|| self.open.get() == 0).await;
    }

    /// Whether `grace` has passed since the process's end.
    fn is_over(&self, grace: Duration) -> bool {
        self.exited.get().is_some_and(|at| at.elapsed() >= grace)
    }

    /// Waits until `grace` after the process's end.
    async fn over(&self, grace: Duration) {
        self.until(|| self.exited.get().is_some()).await;
        if let Some(at) = self.exited.get() {
            sleep_until(at + grace).await;
        }
    }

    async fn until(&self, holds: impl Fn() -> bool) {
        loop {
            // Made before the look, so that it sees every later change.
            let changed = self.changed.notified();
            if holds() {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Undrained {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.changed.notify_waiters();
    }
}

/// When a stream ends other than by the end of its source.
#[derive(Debug)]
pub(super) enum Until {
    /// The sink takes no more: a process's stdin.
    SinkGone,
    /// The drain is over and the source empty: a process's output from a pipe. A sink
    /// that fails is no end: what it refuses is dropped and counted, so that the
    /// process goes on.
    Drained(Rc<Drain>),
    /// The process ended and the source is empty: its output from a terminal. The sink
    /// as before.
    Exited(Rc<Drain>),
}

/// One stream being copied.
pub(super) struct Copy {
    from: Rc<End>,
    to: Rc<End>,
    until: Until,
    /// What the log calls the stream.
    label: Label,
    splices: bool,
    sizes: Sizes,
    /// Its pipes are to shrink, and hold too much for that.
    lags: bool,
    pace: Pace,
    timer: Timer,
    /// Empty while nothing comes.
    buffer: Vec<u8>,
    /// What of `buffer` is still to be written.
    pending: Range<usize>,
    /// What is left to move, once the drain is over.
    left: Option<usize>,
    dropped: u64,
    /// How much was taken from the source.
    moved: Arc<AtomicU64>,
}

impl Copy {
    /// From a pipe, FIFO or file to another. Boxed, as a task would hold a moved one twice.
    pub(super) fn new(from: Rc<End>, to: Rc<End>, until: Until, label: Label) -> Box<Self> {
        let sizes = Sizes::of(&from, &to);
        Box::new(Self {
            from,
            to,
            until,
            label,
            splices: true,
            sizes,
            lags: false,
            pace: Pace::new(),
            timer: Timer::default(),
            buffer: Vec::new(),
            pending: 0..0,
            left: None,
            dropped: 0,
            moved: Arc::default(),
        })
    }

    /// From or to a terminal, which splice does not serve.
    pub(super) fn terminal(from: Rc<End>, to: Rc<End>, until: Until, label: Label) -> Box<Self> {
        let mut copy = Self::new(from, to, until, label);
        copy.splices = false;
        copy
    }

    /// How many bytes were taken from the source so far, now and later.
    pub(super) fn moved(&self) -> Arc<AtomicU64> {
        self.moved.clone()
    }

    /// Waits until the other end of `held` is dropped, or until the source, a pipe, is
    /// half full: whoever writes to it must not be blocked.
    pub(super) async fn hold(&self, held: oneshot::Receiver<()>) {
        let enough = sizes::size(&self.from).unwrap_or(0) / 2;
        let fills = async {
            while self.from.unread() < enough {
                match self.from.readable().await {
                    Ok(now) if now.contains(PollFlags::POLLIN) => sleep(FILLING).await,
                    // Nobody writes to it any more.
                    _ => return,
                }
            }
        };
        let released = async { drop(held.await) };
        first(pin!(fills), pin!(released)).await.unwrap_or(());
    }

    /// Copies until the end. Returns how many bytes were taken from the source.
    pub(super) async fn run(mut self: Box<Self>) -> u64 {
        if self.from.may_block || self.to.may_block {
            match self.pump() {
                // In its own future: most streams never need its memory.
                Ok(pump) => return Box::pin(self.run_on_thread(pump)).await,
                Err(e) => {
                    let Subject { id, exec } = &*self.label.subject;
                    log::error!(id, exec; "copy {} on a thread: {e}", self.label);
                }
            }
        }
        let mut turns = 0;
        let mut alarms = FalseAlarms::default();
        loop {
            if self.left.is_none() && self.is_over() {
                self.left = Some(self.unread());
            }
            let step = self.step();
            if step.is_ok() {
                alarms = FalseAlarms::default();
            }
            match step {
                Ok(0) => break,
                Ok(_) if self.left == Some(0) && self.is_flushed() => break,
                Ok(moved) => match self.delay_after(moved) {
                    Some(delay) => {
                        turns = 0;
                        self.rest(delay).await;
                    }
                    None => turns += 1,
                },
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    if !self.wait().await {
                        break;
                    }
                    alarms.one_more().await;
                    turns += 1;
                }
                Err(_) => break,
            }
            if turns == MAX_TRANSFERS_PER_TURN {
                turns = 0;
                yield_now().await;
            }
        }
        self.report();
        self.moved.load(Ordering::Relaxed)
    }

    fn pump(&self) -> io::Result<Pump> {
        Pump::new(Stream {
            from: self.from.fd.clone(),
            to: self.to.fd.clone(),
            ends_with_sink: matches!(self.until, Until::SinkGone),
            label: self.label.clone(),
            moved: self.moved.clone(),
        })
    }

    /// As [`Copy::run`], on a thread while something comes.
    async fn run_on_thread(mut self: Box<Self>, pump: Pump) -> u64 {
        let mut looks = Looks::new(THREAD_PAUSE);
        while self.left.is_some() || self.source_ready().await {
            if let Some(left) = self.left {
                pump.finish(left);
            }
            let mut work = pin!(pump.work());
            let in_time = first(&mut work, pin!(self.over())).await;
            let outcome = match in_time {
                Some(outcome) => outcome,
                None => {
                    let left = self.unread();
                    self.left = Some(left);
                    pump.finish(left);
                    work.await
                }
            };
            match outcome {
                Ok(Pumped::Ended) => break,
                Ok(Pumped::Rests) => looks = Looks::new(THREAD_PAUSE),
                Err(e) => {
                    let Subject { id, exec } = &*self.label.subject;
                    log::warn!(id, exec; "copy {}: {e}", self.label);
                    looks.pause().await;
                }
            }
        }
        self.moved.load(Ordering::Relaxed)
    }

    /// Waits until the source has had its time.
    async fn over(&self) {
        match &self.until {
            _ if self.left.is_some() => pending().await,
            Until::SinkGone => pending().await,
            Until::Drained(drain) => drain.over(DRAIN).await,
            Until::Exited(drain) => drain.over(Duration::ZERO).await,
        }
    }

    /// How long to rest after a transfer; pipes that are too small or too large for such a
    /// stream grow or shrink.
    fn delay_after(&mut self, moved: usize) -> Option<Duration> {
        if !self.splices {
            return None;
        }
        let delay = self.pace.delay_after(moved, self.sizes.smaller());
        let fills = delay.is_some_and(|delay| delay < LONGEST_DELAY);
        self.sizes.transferred(moved, fills);
        // A stream that rests after each transfer is not waited for.
        if self.lags || (delay.is_some() && self.sizes.are_too_large()) {
            self.shrink();
        }
        delay
    }

    fn is_flushed(&self) -> bool {
        self.pending.is_empty()
    }

    /// One transfer: how many bytes moved, 0 at the end.
    fn step(&mut self) -> nix::Result<usize> {
        if !self.splices {
            return match self.is_flushed() {
                true => self.fill(),
                false => self.flush(),
            };
        }
        let most = self.left.unwrap_or(TRANSFER).min(TRANSFER);
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        match splice(&*self.from, None, &*self.to, None, most, flags) {
            Ok(moved) => {
                self.count(moved);
                Ok(moved)
            }
            Err(e @ (Errno::EAGAIN | Errno::EINTR)) => Err(e),
            // Not between these two; or an error that read or write will tell apart.
            Err(_) => {
                self.splices = false;
                Err(Errno::EINTR)
            }
        }
    }

    fn count(&mut self, moved: usize) {
        self.moved.fetch_add(moved as u64, Ordering::Relaxed);
        if let Some(left) = &mut self.left {
            *left -= moved;
        }
    }

    /// Reads into the buffer, all of which is written; gives the buffer back when there
    /// is nothing.
    fn fill(&mut self) -> nix::Result<usize> {
        let most = self.left.unwrap_or(BUFFER).min(BUFFER);
        self.buffer.resize(BUFFER, 0);
        let result = match read(&*self.from, &mut self.buffer[..most]) {
            // A terminal whose other side is closed.
            Err(Errno::EIO) => Ok(0),
            other => other,
        };
        let count = *result.as_ref().unwrap_or(&0);
        self.pending = 0..count;
        self.count(count);
        if count == 0 {
            self.buffer = Vec::new();
        }
        result
    }

    /// Writes what is in the buffer, or a part of it.
    fn flush(&mut self) -> nix::Result<usize> {
        match write(&*self.to, &self.buffer[self.pending.clone()]) {
            // A stopped terminal.
            Ok(0) => Err(Errno::EAGAIN),
            Ok(moved) => {
                self.pending.start += moved;
                self.report();
                Ok(moved)
            }
            Err(e @ (Errno::EAGAIN | Errno::EINTR)) => Err(e),
            Err(e) if matches!(self.until, Until::SinkGone) => Err(e),
            Err(e) => Ok(self.refuse(e)),
        }
    }

    /// Drops the buffer, which the sink does not take: the process goes on.
    fn refuse(&mut self, cause: Errno) -> usize {
        let refused = self.pending.len();
        if self.dropped == 0 {
            let Subject { id, exec } = &*self.label.subject;
            log::warn!(id, exec; "write {}: {cause}: output is dropped", self.label);
        }
        self.dropped += refused as u64;
        self.pending = 0..0;
        refused
    }

    /// Tells how much was dropped, once that is over.
    fn report(&mut self) {
        if self.dropped > 0 {
            let Subject { id, exec } = &*self.label.subject;
            log::warn!(id, exec; "write {}: {} bytes were dropped", self.label, self.dropped);
        }
        self.dropped = 0;
    }

    /// Waits while bytes accumulate in the pipe; a process that ended writes no more.
    async fn rest(&mut self, delay: Duration) {
        self.from.unwatch();
        let rest = self.timer.wait(delay);
        match &self.until {
            Until::SinkGone => rest.await,
            Until::Drained(drain) | Until::Exited(drain) => {
                first(pin!(rest), pin!(drain.over(Duration::ZERO)))
                    .await
                    .unwrap_or(());
            }
        }
    }

    /// Waits until a transfer is possible. False: there will be none.
    async fn wait(&mut self) -> bool {
        if self.timer.has_descriptor() && self.from.now(PollFlags::POLLIN).is_empty() {
            self.timer = Timer::default();
        }
        match self.sizes.are_grown() {
            // In its own future: most streams never need its memory.
            true => Box::pin(self.wait_grown()).await,
            false => self.possible().await,
        }
    }

    /// As [`Copy::wait`], with pipes that grew: they shrink when nothing comes, or nobody
    /// reads.
    async fn wait_grown(&mut self) -> bool {
        if self.sizes.are_too_large() {
            self.shrink();
        }
        let mut pause = QUIET;
        while self.sizes.are_grown() {
            match timeout(pause, self.possible()).await {
                Ok(true) if self.lags => return self.wait_to_shrink().await,
                Ok(possible) => return possible,
                Err(_) if self.shrink() => break,
                Err(_) => pause = SHRINK_PAUSE.min(pause * 2),
            }
        }
        self.possible().await
    }

    /// The reader has become slow, or had stopped: waits, as long as it goes on, until the next
    /// transfer makes the pipes shrink.
    async fn wait_to_shrink(&mut self) -> bool {
        let mut reading = Reading::default();
        while !self.sizes.can_shrink() {
            if !reading.goes_on(self.to.unread()).await {
                break;
            }
        }
        self.shrink();
        true
    }

    fn shrink(&mut self) -> bool {
        self.lags = !self.sizes.shrink();
        !self.lags
    }

    async fn possible(&mut self) -> bool {
        if self.is_flushed() && !self.source_ready().await {
            return false;
        }
        self.to.writable().await.is_ok()
    }

    /// Waits for the source. False: it is at its end, or the drain is over.
    async fn source_ready(&mut self) -> bool {
        let now = match &self.until {
            _ if self.left.is_some() => Some(Ok(self.from.now(PollFlags::POLLIN))),
            Until::SinkGone => Some(self.from.readable().await),
            Until::Drained(drain) => {
                first(pin!(self.from.readable()), pin!(drain.over(DRAIN))).await
            }
            Until::Exited(drain) => {
                drain.changed.notify_waiters();
                first(pin!(self.from.readable()), pin!(drain.over(Duration::ZERO))).await
            }
        };
        match now {
            // A hang-up with nothing to read is the end, whether or not the sink has
            // room. Asking the kernel to move nothing would wait for that.
            Some(now) => now.is_ok_and(|now| now.contains(PollFlags::POLLIN)),
            None => {
                self.left = Some(self.unread());
                true
            }
        }
    }

    /// Whether the source has had its time. Somebody who never stops writing may have
    /// given it no chance to be waited for.
    fn is_over(&self) -> bool {
        match &self.until {
            Until::SinkGone => false,
            Until::Drained(drain) => drain.is_over(DRAIN),
            Until::Exited(drain) => drain.is_over(Duration::ZERO),
        }
    }

    /// What still moves when the drain is over: what the source holds at that moment.
    fn unread(&self) -> usize {
        match self.until {
            Until::Drained(_) => self.from.unread(),
            Until::Exited(_) | Until::SinkGone => TERMINAL,
        }
    }
}

/// What `work` yields, or `None` if `end` comes first. The caller pins both, as this would hold
/// them twice.
pub(super) async fn first<T>(
    mut work: impl Future<Output = T> + Unpin,
    mut end: impl Future<Output = ()> + Unpin,
) -> Option<T> {
    poll_fn(|cx| {
        if let Poll::Ready(result) = Pin::new(&mut work).poll(cx) {
            return Poll::Ready(Some(result));
        }
        Pin::new(&mut end).poll(cx).map(|()| None)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use nix::unistd::pipe2;

    use super::*;

    /// The write end of a full pipe, and a file to read what is in it.
    fn full_pipe() -> (End, File, usize) {
        let (reader, writer) = pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        let sink = End::sink(writer).unwrap();
        let size = sizes::size(&sink).unwrap();
        let mut file = File::from(sink.as_fd().try_clone_to_owned().unwrap());
        file.write_all(&vec![0; size]).unwrap();
        (sink, File::from(reader), size)
    }

    fn is_watched(end: &End) -> bool {
        end.watch.borrow().is_some()
    }

    #[tokio::test]
    async fn sink_is_watched_only_while_it_is_full() {
        let (sink, mut reader, size) = full_pipe();
        assert!(!is_watched(&sink));
        let read = async {
            while !is_watched(&sink) {
                yield_now().await;
            }
            reader.read_exact(&mut vec![0; size]).unwrap();
        };
        let (ready, ()) = tokio::join!(sink.writable(), read);
        assert!(ready.unwrap().contains(PollFlags::POLLOUT));
        assert!(!is_watched(&sink));
        sink.writable().await.unwrap();
        assert!(!is_watched(&sink));
    }

    #[tokio::test]
    async fn two_who_wait_for_one_sink_both_get_room() {
        let (sink, mut reader, size) = full_pipe();
        let read = async {
            while !is_watched(&sink) {
                yield_now().await;
            }
            reader.read_exact(&mut vec![0; size]).unwrap();
        };
        let (one, other, ()) = tokio::join!(sink.writable(), sink.writable(), read);
        one.unwrap();
        other.unwrap();
        assert!(!is_watched(&sink));
    }
}
