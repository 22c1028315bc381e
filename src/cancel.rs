//! When work that takes long is cut short: its request's deadline has passed, its client has
//! left, the container's init has exited, or the container is being deleted.
//!
//! The work holds a [`Cancel`], and looks at it wherever it waits. Whoever may cut it short
//! holds a clone. The work undoes by itself what it did by half.

use std::cell::Cell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::{self, Error, Kind};

/// How long work may go on after its request has ended or its container's init has exited:
/// most commands of an OCI runtime end by themselves within that time.
pub const GRACE: Duration = Duration::from_secs(1);

/// Why work is cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The request's deadline has passed, or its client has left.
    RequestEnded,
    /// The container's init has exited.
    InitExited,
    /// The container is being deleted, or the shim shut down.
    Deleted,
    /// A time limit has passed that is not the request's.
    TimedOut(Duration),
}

impl Cause {
    fn grace(self) -> Duration {
        match self {
            Cause::RequestEnded | Cause::InitExited => GRACE,
            Cause::Deleted | Cause::TimedOut(_) => Duration::ZERO,
        }
    }
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Error {
        let kind = match cause {
            Cause::RequestEnded | Cause::TimedOut(_) => Kind::DeadlineExceeded,
            Cause::InitExited => Kind::FailedPrecondition,
            Cause::Deleted => Kind::Cancelled,
        };
        Error::new(kind, cause.to_string())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::RequestEnded => f.write_str("the request's deadline passed or its client left"),
            Cause::InitExited => f.write_str("the container's init exited"),
            Cause::Deleted => f.write_str("the container is being deleted"),
            Cause::TimedOut(limit) => write!(f, "not done within {limit:?}"),
        }
    }
}

/// Tells work that it is cut short; clones share it.
#[derive(Clone, Default)]
pub struct Cancel(Rc<Shared>);

#[derive(Default)]
struct Shared {
    /// The first cause, and when the grace is over.
    cause: Cell<Option<(Cause, Instant)>>,
    /// A time limit from the start.
    limit: Option<(Duration, Instant)>,
    cancelled: Notify,
}

impl Cancel {
    /// Nothing is cut short before [`Cancel::cancel`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Work is cut short `limit` from now.
    pub fn after(limit: Duration) -> Self {
        Self(Rc::new(Shared {
            limit: Some((limit, Instant::now() + limit)),
            ..Shared::default()
        }))
    }

    /// Cuts the work short. A later cause counts only if it leaves less time.
    pub fn cancel(&self, cause: Cause) {
        let end = Instant::now() + cause.grace();
        if self.0.cause.get().is_none_or(|(_, earlier)| end < earlier) {
            self.0.cause.set(Some((cause, end)));
            self.0.cancelled.notify_waiters();
        }
    }

    /// Whether the work is cut short, the grace included.
    pub fn is_expired(&self) -> bool {
        self.end().is_some_and(|end| end <= Instant::now())
    }

    /// Waits until the work is cut short, the grace included. Answers the cause.
    pub async fn expired(&self) -> Cause {
        loop {
            // Made before `end` is read, so that it sees every later cancellation.
            let cancelled = self.0.cancelled.notified();
            let ended = async {
                match self.end() {
                    Some(end) => sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            if either(cancelled, ended).await {
                return self.cause_now();
            }
        }
    }

    fn end(&self) -> Option<Instant> {
        let ends = [
            self.0.cause.get().map(|(_, end)| end),
            self.0.limit.map(|(_, end)| end),
        ];
        ends.into_iter().flatten().min()
    }

    fn cause_now(&self) -> Cause {
        let now = Instant::now();
        match (self.0.cause.get(), self.0.limit) {
            (Some((cause, end)), _) if end <= now => cause,
            (_, Some((limit, _))) => Cause::TimedOut(limit),
            (Some((cause, _)), None) => cause,
            (None, None) => Cause::Deleted,
        }
    }

    /// The output of `work`, unless it is cut short before: then `work` is dropped.
    pub async fn unless<T>(&self, work: impl Future<Output = T>) -> Result<T, Cause> {
        let mut work = pin!(work);
        let mut expired = pin!(self.expired());
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            expired.as_mut().poll(cx).map(Err)
        })
        .await
    }
}

/// Waits for either. Answers whether the second, or both, are ready.
async fn either(first: impl Future<Output = ()>, second: impl Future<Output = ()>) -> bool {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|cx| match second.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(true),
        Poll::Pending => first.as_mut().poll(cx).map(|()| false),
    })
    .await
}

/// Drops `work`, with an error, when it is not done within `limit`.
pub async fn within<T>(
    limit: Duration,
    work: impl Future<Output = error::Result<T>>,
) -> error::Result<T> {
    let timed_out = |_| Err(Error::from(Cause::TimedOut(limit)));
    timeout(limit, work).await.unwrap_or_else(timed_out)
}

/// Cancels when it is dropped: the future of a request holds it.
pub struct CancelOnDrop(Cancel);

impl CancelOnDrop {
    /// Cancels `cancel`, which does nothing to work that is done.
    pub fn new(cancel: &Cancel) -> Self {
        Self(cancel.clone())
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel(Cause::RequestEnded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_that_ends_in_time_is_not_cancelled() {
        let cancel = Cancel::new();
        cancel.cancel(Cause::RequestEnded);
        let work = async {
            tokio::time::sleep(GRACE / 2).await;
            7
        };
        assert_eq!(cancel.unless(work).await, Ok(7));
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_cancelled_after_its_grace() {
        let cancel = Cancel::new();
        let start = Instant::now();
        cancel.cancel(Cause::InitExited);
        let outcome = cancel.unless(std::future::pending::<()>()).await;
        assert_eq!(outcome, Err(Cause::InitExited));
        assert!(start.elapsed() >= GRACE && start.elapsed() < 2 * GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn cause_that_leaves_less_time_counts() {
        let (cancel, start) = (Cancel::new(), Instant::now());
        cancel.cancel(Cause::RequestEnded);
        cancel.cancel(Cause::Deleted);
        cancel.cancel(Cause::InitExited);
        assert_eq!(cancel.expired().await, Cause::Deleted);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn cancellation_while_waiting_is_seen() {
        let cancel = Cancel::new();
        let waiting = cancel.clone();
        let (cause, ()) = tokio::join!(waiting.expired(), async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            drop(CancelOnDrop::new(&cancel));
        });
        assert_eq!(cause, Cause::RequestEnded);
    }

    #[tokio::test(start_paused = true)]
    async fn limit_needs_no_cancellation() {
        let limit = Duration::from_secs(3);
        let (cancel, start) = (Cancel::after(limit), Instant::now());
        assert_eq!(cancel.expired().await, Cause::TimedOut(limit));
        assert!(start.elapsed() >= limit);
        let cancel = Cancel::after(limit);
        cancel.cancel(Cause::Deleted);
        assert_eq!(cancel.expired().await, Cause::Deleted);
    }
}
