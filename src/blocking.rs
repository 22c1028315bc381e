//! Calls that may block in the kernel (a dead file system, a slow disk), each on a
//! thread of its own that ends with the call.
//!
//! Promises: a call that never returns holds up its caller, and one thread, never the
//! server. Dropping the future gives the call up: its thread goes on until the kernel
//! returns, and its result is dropped.
//!
//! Lacks on purpose: a pool. Such calls are rare, and an idle server has one thread.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::oneshot;

use crate::error::{Context, Error, Kind, Result};

/// Threads at a time. A call that blocks for ever keeps its thread: more are refused.
const MAX_THREADS: usize = 32;

/// Stack of such a thread, in bytes: enough for system calls with a few paths.
const STACK_SIZE: usize = 128 << 10;

static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Runs `work` on a thread.
///
/// Do not spawn a process there: the OCI runtime dies with the thread that spawned it.
///
/// # Errors
/// `ResourceExhausted` when 32 such calls are under way; when no thread can be started,
/// or it panicked.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    if RUNNING.load(Ordering::Relaxed) >= MAX_THREADS {
        let message =
            format!("start a thread: {MAX_THREADS} threads are blocked in the kernel already");
        return Err(Error::new(Kind::ResourceExhausted, message));
    }
    run_always(work).await
}

/// As [`run`], without the limit: for what gives resources back, such as an unmount.
pub async fn run_always<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let running = Running::count();
    run_uncounted(move || {
        let result = work();
        drop(running);
        result
    })
    .await
}

/// As [`run`], neither limited nor counted: for work that goes on while data flows, of which
/// each caller has one at a time.
pub async fn run_uncounted<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let (sender, done) = oneshot::channel();
    std::thread::Builder::new()
        .stack_size(STACK_SIZE)
        .spawn(move || {
            // The receiver may be gone: the call was given up.
            drop(sender.send(work()));
        })
        .context(|| "start a thread")?;
    done.await
        .map_err(|_| Error::unknown("thread of a blocking call panicked"))
}

/// One thread, counted while this lives.
struct Running;

impl Running {
    fn count() -> Self {
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_is_an_error() {
        let work = || panic!("on purpose");
        let work: fn() = work;
        assert!(run(work).await.is_err());
        assert_eq!(run(|| 7).await, Ok(7));
    }
}
