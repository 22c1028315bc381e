//! The budget: counted figures of what a container costs, each with the most that it may be
//! (`budget.toml`). None of them is a time, so that a busy machine gives the same ones.
//!
//! The harness is that of the conformance suite (`tests/shim/harness`), which says how to choose
//! the shim. Prints each figure; root.

#[path = "../shim/harness/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "a part of it is for the cases of the conformance suite"
)]
mod harness;

mod calls;
mod limits;
mod memory;

/// The size of the binary, as it is installed.
#[test]
fn binary_size() {
    let size = std::fs::metadata(harness::shim_binary()).expect("look at the binary");
    limits::check("binary_size", size.len());
}
