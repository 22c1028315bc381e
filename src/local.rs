//! Tasks on the one thread.
//!
//! Promises: as `tokio::task::spawn_local`, whose tasks are some 2 kB of code for each type
//! of future. Here they are of one type for each type of result, at the cost of one allocation.

use std::future::Future;
use std::pin::Pin;

use tokio::task::JoinHandle;

/// Runs `work` as a task. Call it in an event loop with local tasks.
pub fn spawn<T: 'static>(work: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    let work: Pin<Box<dyn Future<Output = T>>> = Box::pin(work);
    tokio::task::spawn_local(work)
}
