//! Conformance: the contract between containerd and a shim, held against any shim's
//! binary by a harness that plays containerd. See `harness` for how to choose the
//! binary, `differences` for where Go's shims fall short of it. Needs root.

mod differences;
mod harness;

mod cases {
    mod cleanup;
    mod events;
    mod exec;
    mod faults;
    mod grid;
    mod lifecycle;
    mod options;
    mod resources;
    mod start;
    mod stdio;
    mod wire;
}
