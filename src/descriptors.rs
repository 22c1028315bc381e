//! The process's descriptors: how many are left, and a reserve for what ends processes.
//!
//! Promises: a container is created and an exec started only if [`RESERVE`] descriptors are
//! left besides, however many are being started at once. So Kill, Wait, Delete, Shutdown and
//! new connections always work.
//!
//! Lacks on purpose: a share for each container; a limit of the whole system (`ENFILE`).

use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;

use crate::error::{Error, Kind, Result};
use crate::sys;

/// Descriptors that new processes must leave free: a runtime command takes about ten.
const RESERVE: u64 = 64;

/// Descriptors that new connections must leave free.
const CONNECTION_RESERVE: u64 = 32;

/// Descriptors that creating a container or starting an exec takes, at most: 6 of FIFOs, 6 of
/// pipes, the rest while the runtime runs.
const CLAIM_SIZE: u64 = 24;

/// Descriptors set aside for what is being started.
static CLAIMED: AtomicU64 = AtomicU64::new(0);

/// Descriptors set aside for what is being started, until this is dropped.
#[derive(Debug)]
pub struct Claim(());

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.fetch_sub(CLAIM_SIZE, Ordering::Relaxed);
    }
}

/// Sets descriptors aside for operation `what`.
///
/// # Errors
/// `ResourceExhausted` when too few are left.
pub fn claim(what: &str) -> Result<Claim> {
    let (limit, open) = limit_and_open();
    let claimed = CLAIMED.load(Ordering::Relaxed);
    if !fits(limit, open.saturating_add(claimed + CLAIM_SIZE), RESERVE) {
        let text = format!("{what}: {open} of {limit} descriptors (RLIMIT_NOFILE) are in use");
        return Err(Error::new(Kind::ResourceExhausted, text));
    }
    CLAIMED.fetch_add(CLAIM_SIZE, Ordering::Relaxed);
    Ok(Claim(()))
}

/// Whether `count` files may be kept open that are useful, but not needed.
pub fn suffice_for(count: u64) -> bool {
    let (limit, open) = limit_and_open();
    let claimed = CLAIMED.load(Ordering::Relaxed);
    fits(limit, open.saturating_add(claimed + count), RESERVE)
}

/// Whether a connection may be accepted.
pub fn suffice_for_connection() -> bool {
    let (limit, open) = limit_and_open();
    fits(limit, open.saturating_add(1), CONNECTION_RESERVE)
}

/// The limit of descriptors, and how many are open: all if none is left to count them with, 0
/// if they cannot be counted for another reason.
fn limit_and_open() -> (u64, u64) {
    let limit = sys::fd::limit().unwrap_or(u64::MAX);
    let open = sys::fd::count_open().unwrap_or_else(|e| match e.raw_os_error() {
        Some(EMFILE | ENFILE) => limit,
        _ => 0,
    });
    (limit, open)
}

const EMFILE: i32 = Errno::EMFILE as i32;
const ENFILE: i32 = Errno::ENFILE as i32;

/// Whether `wanted` descriptors leave `reserve`, or, where the limit is very low, half of it.
fn fits(limit: u64, wanted: u64, reserve: u64) -> bool {
    wanted.saturating_add(reserve.min(limit / 2)) <= limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_of_pending_starts_count() {
        let limit = sys::fd::limit().unwrap();
        let mut claims = Vec::new();
        let refused = loop {
            match claim("start exec e") {
                Ok(claim) => claims.push(claim),
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind(), Kind::ResourceExhausted);
        assert!(refused.to_string().starts_with("start exec e: "));
        assert!(claims.len() as u64 * CLAIM_SIZE < limit);
        drop(claims);
        claim("start exec e").unwrap();
    }

    #[test]
    fn open_descriptors_are_counted() {
        let files: Vec<_> = (0..100)
            .map(|_| std::fs::File::open("/dev/null").unwrap())
            .collect();
        assert!(sys::fd::count_open().unwrap() >= 103);
        drop(files);
    }

    #[test]
    fn reserves_shrink_with_the_limit() {
        assert!(fits(1024, 960, 64));
        assert!(!fits(1024, 961, 64));
        assert!(fits(64, 32, 64));
        assert!(!fits(64, 33, 64));
    }
}
