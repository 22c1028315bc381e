//! The sizes of the pipes at both ends of a stream: they grow while that pays.
//!
//! Promises: what an idle stream takes of quotas that all of the machine shares
//! (`/proc/sys/fs/pipe-user-pages-soft`) is what it took at first, and all streams of
//! this server together take at most [`BUDGET`] more. Pipes grow only while their reader
//! keeps up: pages in them are charged to the container, which wrote them.
//!
//! Lacks on purpose: pipes larger than [`LARGEST`]. They move bytes hardly faster, and
//! a reader that stops leaves them full.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use tokio::time::Instant;

use super::copy::End;

/// Most bytes that a pipe grows to.
pub(super) const LARGEST: usize = 256 << 10;
/// Most bytes by which all pipes of this server together may have grown.
const BUDGET: usize = 2 << 20;
/// After so many transfers in a row that emptied a pipe which was full, or about to be, it
/// grows.
const FULL_TRANSFERS: u32 = 8;
/// When a stream has moved fewer than `PAYS` bytes for so long, its pipes shrink again.
pub(super) const QUIET: Duration = Duration::from_millis(500);
/// Large pipes are worth their memory from this many bytes per `QUIET` on.
const PAYS: usize = 8 << 20;
/// Longest pause between attempts to shrink a pipe, which its reader has to empty first.
pub(super) const SHRINK_PAUSE: Duration = Duration::from_secs(10);

thread_local! {
    /// By how many bytes the pipes of this thread, which is the server, have grown.
    static GROWN: Cell<usize> = const { Cell::new(0) };
}

/// The sizes of a stream's pipes; dropping it shrinks them, if that loses nothing.
#[derive(Debug)]
pub(super) struct Sizes {
    ends: [Pipe; 2],
    /// The size of the smaller pipe.
    smaller: usize,
    /// Not once the kernel refused, or they are as large as they get.
    may_grow: bool,
    /// Full transfers in a row.
    full: u32,
    /// Bytes moved since then.
    moved: usize,
    since: Instant,
}

/// One end, and what was done to it.
#[derive(Debug)]
struct Pipe {
    end: Rc<End>,
    /// Its size before and since.
    grown: Option<(usize, usize)>,
}

impl Sizes {
    /// Of the pipes among these ends.
    pub(super) fn of(from: &Rc<End>, to: &Rc<End>) -> Self {
        let mut sizes = Self {
            ends: [from, to].map(|end| Pipe {
                end: end.clone(),
                grown: None,
            }),
            smaller: 0,
            may_grow: true,
            full: 0,
            moved: 0,
            since: Instant::now(),
        };
        sizes.measure();
        sizes
    }

    /// The size of the smaller pipe; without one, no transfer is as large.
    pub(super) fn smaller(&self) -> usize {
        self.smaller
    }

    /// Whether a pipe is larger than it was at first.
    pub(super) fn are_grown(&self) -> bool {
        self.ends.iter().any(|pipe| pipe.grown.is_some())
    }

    /// A transfer moved so many bytes. If each of several moved all that the smaller pipe
    /// holds, or what fills it within the longest delay, the stream's writer is fast, and
    /// its reader keeps up: they grow.
    pub(super) fn transferred(&mut self, moved: usize, fills: bool) {
        self.moved += moved;
        if moved < self.smaller && !fills {
            self.full = 0;
            return;
        }
        self.full += 1;
        if self.may_grow && self.full >= FULL_TRANSFERS {
            self.full = 0;
            self.grow();
        }
    }

    /// Whether it has not paid lately that the pipes are large.
    pub(super) fn are_too_large(&mut self) -> bool {
        if !self.are_grown() || self.since.elapsed() < QUIET {
            return false;
        }
        self.since = Instant::now();
        std::mem::take(&mut self.moved) < PAYS
    }

    fn grow(&mut self) {
        self.moved = 0;
        self.since = Instant::now();
        let before = self.smaller;
        let wanted = before.saturating_mul(4).min(LARGEST);
        let more: usize = self.ends.iter().map(|pipe| pipe.lacks(wanted)).sum();
        if GROWN.get() + more > BUDGET {
            // Other streams may give some back.
            return;
        }
        // A large source is of no use, and cannot shrink, without a sink as large.
        let [from, to] = &mut self.ends;
        let _ = to.grow(wanted) && from.grow(wanted);
        self.measure();
        self.may_grow = self.smaller > before;
    }

    /// Makes the pipes as small as they were. False: one holds too much for that now.
    pub(super) fn shrink(&mut self) -> bool {
        let [from, to] = &mut self.ends;
        // The source first: only a large sink can take all that it holds.
        let _ = from.shrink() && to.shrink();
        self.full = 0;
        self.may_grow = true;
        self.measure();
        !self.are_grown()
    }

    /// Whether [`Sizes::shrink`] would do something, once a transfer has moved all that the
    /// source holds. A writer that is faster than the reader fills whatever room it gets,
    /// so that only this makes the source empty enough.
    pub(super) fn can_shrink(&self) -> bool {
        let [from, to] = &self.ends;
        let unread = to.end.unread();
        match (from.grown, to.grown) {
            (Some(_), _) => size(&to.end).is_none_or(|size| unread + from.end.unread() <= size),
            (None, Some((before, _))) => unread <= before,
            (None, None) => true,
        }
    }

    fn measure(&mut self) {
        let sizes = self.ends.iter().filter_map(|pipe| size(&pipe.end));
        self.smaller = sizes.min().unwrap_or(usize::MAX);
    }
}

impl Drop for Sizes {
    fn drop(&mut self) {
        for pipe in &mut self.ends {
            pipe.shrink();
            // What still is large goes with its last end.
            pipe.forget();
        }
    }
}

impl Pipe {
    /// How many bytes larger it would have to be.
    fn lacks(&self, wanted: usize) -> usize {
        size(&self.end).map_or(0, |size| wanted.saturating_sub(size))
    }

    /// False: it stays as it is.
    fn grow(&mut self, wanted: usize) -> bool {
        let Some(current) = size(&self.end).filter(|size| *size < wanted) else {
            return true;
        };
        // Refused (EPERM) means as fast as before.
        if self.grown.is_some() || resize(&self.end, wanted).is_err() {
            return false;
        }
        self.grown = Some((current, wanted));
        GROWN.set(GROWN.get() + (wanted - current));
        true
    }

    /// False: it stays as it is for now.
    fn shrink(&mut self) -> bool {
        let Some((before, since)) = self.grown else {
            return true;
        };
        // Another size is not ours: the client chose it.
        if size(&self.end) == Some(since) && resize(&self.end, before) == Err(Errno::EBUSY) {
            return false;
        }
        self.forget();
        true
    }

    fn forget(&mut self) {
        if let Some((before, since)) = self.grown.take() {
            GROWN.set(GROWN.get() - (since - before));
        }
    }
}

/// The size of a pipe or FIFO, `None` for anything else.
pub(super) fn size(end: &End) -> Option<usize> {
    let size = fcntl(end, FcntlArg::F_GETPIPE_SZ).ok()?;
    usize::try_from(size).ok()
}

fn resize(end: &End, size: usize) -> nix::Result<()> {
    fcntl(end, FcntlArg::F_SETPIPE_SZ(size as i32)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use nix::unistd::pipe;

    use super::*;

    /// A pipe: both ends, taken for always ready, and a file to write to it.
    fn stream() -> (Rc<End>, Rc<End>) {
        let (read, write) = pipe().unwrap();
        (
            Rc::new(End::unwatched(read)),
            Rc::new(End::unwatched(write)),
        )
    }

    fn loud(sizes: &mut Sizes) {
        for _ in 0..FULL_TRANSFERS {
            sizes.transferred(sizes.smaller(), false);
        }
    }

    #[test]
    fn pipes_grow_after_consecutive_full_transfers() {
        let ((from, _a), (_b, to)) = (stream(), stream());
        let mut sizes = Sizes::of(&from, &to);
        let small = sizes.smaller();
        for _ in 0..3 {
            for _ in 1..FULL_TRANSFERS {
                sizes.transferred(small, false);
            }
            sizes.transferred(small - 1, false);
        }
        assert!(!sizes.are_grown());
        loud(&mut sizes);
        assert_eq!([size(&from), size(&to)], [Some(LARGEST); 2]);
        loud(&mut sizes);
        assert_eq!([size(&from), size(&to)], [Some(LARGEST); 2]);
        assert!(sizes.shrink());
        assert_eq!([size(&from), size(&to)], [Some(small); 2]);
        // And they may grow again.
        loud(&mut sizes);
        assert!(sizes.are_grown());
        drop(sizes);
        assert_eq!([size(&from), size(&to)], [Some(small); 2]);
    }

    #[test]
    fn pipes_grow_for_a_stream_that_would_fill_them() {
        let ((from, _a), (_b, to)) = (stream(), stream());
        let mut sizes = Sizes::of(&from, &to);
        let part = sizes.smaller() / 3;
        for _ in 1..FULL_TRANSFERS {
            sizes.transferred(part, true);
        }
        assert!(!sizes.are_grown());
        sizes.transferred(part, true);
        assert_eq!([size(&from), size(&to)], [Some(LARGEST); 2]);
    }

    #[test]
    fn full_pipe_shrinks_after_it_was_read() {
        let ((from, _a), (reader, to)) = (stream(), stream());
        let mut sizes = Sizes::of(&from, &to);
        let small = sizes.smaller();
        loud(&mut sizes);
        let mut file = File::from(to.as_fd().try_clone_to_owned().unwrap());
        file.write_all(&vec![0; LARGEST]).unwrap();
        assert!(!sizes.shrink());
        assert_eq!([size(&from), size(&to)], [Some(small), Some(LARGEST)]);
        let mut reader = File::from(reader.as_fd().try_clone_to_owned().unwrap());
        reader.read_exact(&mut vec![0; LARGEST - small]).unwrap();
        assert!(sizes.shrink());
        assert_eq!(size(&to), Some(small));
    }

    #[test]
    fn all_streams_share_a_budget() {
        let streams: Vec<_> = (0..40).map(|_| (stream(), stream())).collect();
        let mut all: Vec<_> = streams
            .iter()
            .map(|((from, _), (_, to))| Sizes::of(from, to))
            .collect();
        let total = || -> usize {
            let ends = streams.iter().flat_map(|((from, _), (_, to))| [from, to]);
            ends.map(|end| size(end).unwrap()).sum()
        };
        let before = total();
        all.iter_mut().for_each(loud);
        assert!(total() > before && total() <= before + BUDGET);
        drop(all);
        assert_eq!((total(), GROWN.get()), (before, 0));
    }

    #[test]
    fn size_that_a_client_set_stays() {
        let ((from, _a), (_b, to)) = (stream(), stream());
        let mut sizes = Sizes::of(&from, &to);
        loud(&mut sizes);
        resize(&to, 1 << 20).unwrap();
        assert!(sizes.shrink());
        assert_eq!(size(&to), Some(1 << 20));
        assert_eq!(GROWN.get(), 0);
    }
}
