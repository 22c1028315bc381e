//! Faults: what dies, hangs, is used up, floods or is hostile, at each moment of a container's
//! life; and after each, once containerd has done its part, what is left.
//!
//! The harness is that of the conformance suite (`tests/shim/harness`), which says how to choose
//! the shim. Each row of the tables is a test, and has one verdict: fine, something is left,
//! something hangs, or something fails. `expected` lists the rows that are not fine, and
//! `docs/faults.md` is generated from both. `SURVEY=1` prints the verdicts (`--nocapture`) and
//! compares none.
//!
//! Modules named `long` are for `make chaos`: `hack/test` skips them.

#[path = "../shim/harness/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "a part of it is for the cases of the conformance suite"
)]
mod harness;

#[macro_use]
mod table;
mod death;
mod document;
mod events;
mod exhaustion;
mod expected;
mod floods;
mod hangs;
mod hostile;
mod left;
mod scene;
mod soak;
mod verdict;
