//! When the bytes of a stream of many small writes are moved: now, or after a delay in
//! which more of them accumulate. Each transfer, however small, costs as much as one of a
//! megabyte.
//!
//! Promises: a stream that does not write again and again is never delayed, and a request
//! and reply exchange hardly. The delay is so short that its pipe does not fill meanwhile:
//! a fast writer is not held up.
//!
//! Lacks on purpose: a timer where nothing moves.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};

use crate::sys;

/// Longest time that the bytes of a stream of small writes accumulate before they are moved:
/// the shortest that the event loop can measure, which makes up to twice as much of it.
pub(super) const LONGEST_DELAY: Duration = Duration::from_millis(1);
/// Shortest such time. A stream that fills its pipe meanwhile needs no delay.
const SHORTEST_DELAY: Duration = Duration::from_micros(125);
/// A delay that took more than so many times as long as it should, on a busy machine, tells
/// nothing about how fast the stream is.
const LATE: u32 = 4;
/// A transfer of fewer bytes moves little.
const SMALL_TRANSFER: usize = 16 << 10;
/// So many of them, of which a `LONGEST_DELAY` sees `WORTH` or more, may be too many.
pub(super) const MIN_DELAY_THRESHOLD: u32 = 16;
/// A delay pays when so many small transfers' bytes accumulate.
const WORTH: u32 = 4;
/// So many delays in a row that do not pay are no end, after as many that did: on a busy
/// machine the writer may not have run.
const MAX_PATIENCE: u32 = 8;
/// At most so many are needed, where each transfer is one side of a request and reply.
const MAX_DELAY_THRESHOLD: u32 = 1024;

/// Detects a stream of many small writes. A request and reply exchange looks the same until
/// the copier pauses: then no bytes accumulate.
#[derive(Debug)]
pub(super) struct Pace {
    /// So many small transfers are needed for a delay.
    many: u32,
    /// Small transfers since `since`, and their bytes.
    small: u32,
    bytes: usize,
    /// The first of them, or the beginning of the delay.
    since: Instant,
    /// How long the next delay is.
    delay: Duration,
    /// So many delays that do not pay are no end.
    patience: u32,
    /// It is delayed, and that pays when so many bytes accumulate.
    enough: Option<usize>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            many: MIN_DELAY_THRESHOLD,
            small: 0,
            bytes: 0,
            since: Instant::now(),
            delay: LONGEST_DELAY,
            patience: 0,
            enough: None,
        }
    }

    /// How long to wait after a transfer of so many bytes, from or to a pipe of this `size`.
    pub(super) fn delay_after(&mut self, moved: usize, size: usize) -> Option<Duration> {
        match self.enough.take() {
            Some(enough) => self.accumulated(moved, enough, size),
            None if moved < SMALL_TRANSFER => self.moved_little(moved),
            None => {}
        }
        self.enough?;
        self.since = Instant::now();
        Some(self.delay)
    }

    /// So many bytes were there after a delay.
    fn accumulated(&mut self, moved: usize, enough: usize, size: usize) {
        if moved >= enough {
            self.patience = MAX_PATIENCE.min(self.patience + 1);
            self.many = MIN_DELAY_THRESHOLD;
        } else if self.patience > 0 {
            self.patience -= 1;
        } else {
            self.many = MAX_DELAY_THRESHOLD.min(self.many * 2);
            return;
        }
        let is_late = self.since.elapsed() > self.delay * LATE;
        if moved >= size && self.delay == SHORTEST_DELAY && !is_late {
            return;
        }
        self.enough = Some(enough);
        if moved < size / 4 {
            self.delay = LONGEST_DELAY.min(self.delay * 2);
        } else if moved >= size / 2 && !is_late {
            self.delay = SHORTEST_DELAY.max(self.delay / 2);
        }
    }

    fn moved_little(&mut self, moved: usize) {
        if self.small == 0 {
            self.since = Instant::now();
            self.bytes = 0;
        }
        self.small += 1;
        self.bytes += moved;
        if self.small >= self.many {
            self.small = 0;
            let often = self.since.elapsed() < LONGEST_DELAY * (self.many / WORTH);
            let average = self.bytes / self.many as usize;
            self.enough = often.then_some(WORTH as usize * average);
        }
    }
}

/// Waits for delays. The event loop measures none that is shorter than a millisecond: these
/// take a descriptor, which stays until the timer is dropped.
#[derive(Debug, Default)]
pub(super) struct Timer(Option<Box<AsyncFd<OwnedFd>>>);

impl Timer {
    pub(super) async fn wait(&mut self, delay: Duration) {
        // Without a descriptor it takes a little longer.
        if delay >= LONGEST_DELAY || self.wait_shortly(delay).await.is_err() {
            sleep(delay).await;
        }
    }

    async fn wait_shortly(&mut self, delay: Duration) -> io::Result<()> {
        let watch = match &mut self.0 {
            Some(watch) => watch,
            none => none.insert(Box::new(watched_timer()?)),
        };
        sys::fd::set_timer(watch.get_ref().as_fd(), delay)?;
        watch.readable().await?.clear_ready();
        Ok(())
    }

    pub(super) fn has_descriptor(&self) -> bool {
        self.0.is_some()
    }
}

fn watched_timer() -> io::Result<AsyncFd<OwnedFd>> {
    sys::fd::watch(sys::fd::timer()?, Interest::READABLE).map_err(|(_, cause)| cause)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// The size of a pipe.
    const PIPE: usize = 64 << 10;

    /// A stream that moves `moved` bytes each `pause`: after how many transfers it is delayed.
    async fn delayed_after(pace: &mut Pace, moved: usize, pause: Duration) -> Option<u32> {
        for count in 1..=10 * MAX_DELAY_THRESHOLD {
            if pace.delay_after(moved, PIPE).is_some() {
                return Some(count);
            }
            advance(pause).await;
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn only_small_transfers_are_delayed() {
        let micros = Duration::from_micros;
        for (moved, pause, delayed) in [
            (1, micros(1), true),
            (SMALL_TRANSFER - 1, micros(250), true),
            (SMALL_TRANSFER, micros(1), false),
            (PIPE, micros(1), false),
            (1, micros(270), false),
            (1, Duration::from_secs(1), false),
        ] {
            let after = delayed_after(&mut Pace::new(), moved, pause).await;
            assert_eq!(
                after,
                delayed.then_some(MIN_DELAY_THRESHOLD),
                "{moved} bytes each {pause:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn delays_continue_while_they_pay() {
        for (accumulated, pays) in [(400, true), (399, false), (PIPE / 2, true)] {
            let mut pace = Pace::new();
            delayed_after(&mut pace, 100, Duration::ZERO).await.unwrap();
            for _ in 0..3 {
                let delay = pace.delay_after(accumulated, PIPE);
                assert_eq!(delay.is_some(), pays, "{accumulated} bytes");
            }
        }
    }

    /// A writer of lines, which stops when the pipe is full: how many bytes it wrote in a
    /// second, and how many transfers that took.
    async fn second_of_lines(bytes_per_second: usize, size: usize) -> (usize, u32) {
        let mut pace = Pace::new();
        delayed_after(&mut pace, 128, Duration::ZERO).await.unwrap();
        let (start, mut bytes, mut transfers) = (Instant::now(), 0, 0);
        let mut delay = Some(LONGEST_DELAY);
        while start.elapsed() < Duration::from_secs(1) {
            // What a transfer takes by itself.
            let pause = delay.unwrap_or_default() + Duration::from_micros(10);
            advance(pause).await;
            let written = (bytes_per_second as f64 * pause.as_secs_f64()) as usize;
            let moved = written.min(size);
            bytes += moved;
            transfers += 1;
            delay = pace.delay_after(moved, size);
        }
        (bytes, transfers)
    }

    #[tokio::test(start_paused = true)]
    async fn delays_do_not_hold_up_a_fast_writer() {
        for (megabytes, size) in [
            (1, PIPE),
            (20, PIPE),
            (60, PIPE),
            (150, PIPE),
            (400, PIPE),
            (150, 4 * PIPE),
            (1000, 4 * PIPE),
        ] {
            let wanted = megabytes << 20;
            let (bytes, transfers) = second_of_lines(wanted, size).await;
            assert!(
                bytes * 100 >= wanted * 98,
                "{megabytes} MiB/s, pipe of {size}: {bytes} bytes"
            );
            // No more transfers than an eighth of the pipe each, or one a millisecond, takes.
            let most = (wanted / (size / 8)).max(1100);
            assert!(
                transfers as usize <= most,
                "{megabytes} MiB/s, pipe of {size}: {transfers} transfers"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn late_wake_up_does_not_shorten_the_delay() {
        let mut pace = Pace::new();
        delayed_after(&mut pace, 100, Duration::ZERO).await.unwrap();
        for _ in 0..10 {
            advance(LONGEST_DELAY * (LATE + 1)).await;
            assert_eq!(pace.delay_after(PIPE, PIPE), Some(LONGEST_DELAY));
        }
        advance(LONGEST_DELAY).await;
        assert_eq!(pace.delay_after(PIPE, PIPE), Some(LONGEST_DELAY / 2));
    }

    #[tokio::test(start_paused = true)]
    async fn writer_that_did_not_run_for_a_while_is_still_delayed() {
        let mut pace = Pace::new();
        delayed_after(&mut pace, 100, Duration::ZERO).await.unwrap();
        for _ in 0..2 * MAX_PATIENCE {
            assert!(pace.delay_after(400, PIPE).is_some());
        }
        for _ in 0..MAX_PATIENCE {
            assert!(pace.delay_after(100, PIPE).is_some());
        }
        assert_eq!(pace.delay_after(100, PIPE), None);
    }

    #[tokio::test(start_paused = true)]
    async fn bulk_is_not_delayed_for_long() {
        let mut pace = Pace::new();
        delayed_after(&mut pace, 100, Duration::ZERO).await.unwrap();
        let mut delays = LONGEST_DELAY;
        while let Some(delay) = pace.delay_after(PIPE, PIPE) {
            delays += delay;
        }
        assert!(delays <= 3 * LONGEST_DELAY, "{delays:?}");
        // Each time that it looks like lines, less.
        delayed_after(&mut pace, 100, Duration::ZERO).await.unwrap();
        assert_eq!(pace.delay_after(PIPE, PIPE), None);
    }

    #[tokio::test(start_paused = true)]
    async fn dialogue_is_delayed_less_and_less() {
        let mut pace = Pace::new();
        let mut words = 0;
        for delays in 1.. {
            words += delayed_after(&mut pace, 100, Duration::from_micros(30))
                .await
                .unwrap();
            // What was said meanwhile: one word.
            assert_eq!(pace.delay_after(100, PIPE), None);
            if delays > 10 {
                assert!(
                    words >= delays * MAX_DELAY_THRESHOLD / 3,
                    "{words} words, {delays} delays"
                );
                break;
            }
        }
    }

    #[tokio::test]
    async fn short_delays_are_shorter_than_a_tick_of_the_event_loop() {
        let mut timer = Timer::default();
        let mut shortest = Duration::MAX;
        // On a busy machine some take longer.
        for _ in 0..200 {
            let start = std::time::Instant::now();
            timer.wait(SHORTEST_DELAY).await;
            let elapsed = start.elapsed();
            assert!(elapsed >= SHORTEST_DELAY, "{elapsed:?}");
            shortest = shortest.min(elapsed);
        }
        assert!(timer.has_descriptor());
        assert!(shortest < LONGEST_DELAY, "{shortest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn longest_delay_takes_no_descriptor() {
        let mut timer = Timer::default();
        timer.wait(LONGEST_DELAY).await;
        assert!(!timer.has_descriptor());
    }
}
