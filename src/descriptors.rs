//! The process's descriptors: how many are left, and that new processes leave enough for
//! what ends them.
//!
//! Promises: a container is made and an exec started only if [`RESERVE`] descriptors are
//! left besides, however many are being started at once; so Kill, Wait, Delete, Shutdown
//! and new connections go on working.
//!
//! Lacks on purpose: a share for each container; a limit of the whole system (`ENFILE`).

use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;

use crate::error::{Error, Kind, Result};
use crate::sys;

/// Descriptors that new processes leave: a runtime command takes about ten.
const RESERVE: u64 = 64;

/// Descriptors that connections leave.
const RESERVE_OF_CONNECTIONS: u64 = 32;

/// Descriptors that making a container or starting an exec takes, at most: 6 of FIFOs, 6 of
/// pipes, the rest while the runtime runs.
const CLAIM: u64 = 24;

/// Of what is being started.
static CLAIMED: AtomicU64 = AtomicU64::new(0);

/// Descriptors set aside for what is being started, until this is dropped.
#[derive(Debug)]
pub struct Claim(());

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.fetch_sub(CLAIM, Ordering::Relaxed);
    }
}

/// Sets descriptors aside for `what` is about to be done.
///
/// # Errors
/// `ResourceExhausted` when too few are left.
pub fn claim(what: &str) -> Result<Claim> {
    let (limit, open) = limit_and_open();
    let claimed = CLAIMED.load(Ordering::Relaxed);
    if !fits(limit, open.saturating_add(claimed + CLAIM), RESERVE) {
        let text = format!("{what}: {open} of {limit} descriptors (RLIMIT_NOFILE) are in use");
        return Err(Error::new(Kind::ResourceExhausted, text));
    }
    CLAIMED.fetch_add(CLAIM, Ordering::Relaxed);
    Ok(Claim(()))
}

/// Whether `count` files that are of use, but not needed, may be kept open.
pub fn suffice_for(count: u64) -> bool {
    let (limit, open) = limit_and_open();
    let claimed = CLAIMED.load(Ordering::Relaxed);
    fits(limit, open.saturating_add(claimed + count), RESERVE)
}

/// Whether a connection may be taken.
pub fn suffice_for_connection() -> bool {
    let (limit, open) = limit_and_open();
    fits(limit, open.saturating_add(1), RESERVE_OF_CONNECTIONS)
}

/// The limit of descriptors, and how many are open. What cannot be counted, for another
/// reason than the lack of one to count with, is taken for few.
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
    fn what_is_being_started_counts() {
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
        assert!(claims.len() as u64 * CLAIM < limit);
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
