//! Conformance: the contract between containerd and a shim, held against any shim's
//! binary by a harness that plays containerd. See `harness` for how to choose the
//! binary, `differences` for where Go's shims fall short of it. Needs root.

#[macro_use]
mod conformance;
mod differences;
mod harness;

mod cases {
    mod bounds;
    mod cgroups;
    mod checkpoint;
    mod cleanup;
    mod command_line;
    mod descriptors;
    mod environment;
    mod errors;
    mod events;
    mod exec;
    mod faults;
    mod grid;
    mod isolation;
    mod kill;
    mod lifecycle;
    mod logs;
    mod memory;
    mod metrics;
    mod mounts;
    mod operator;
    mod options;
    mod pods;
    mod protocol;
    mod remaining_faults;
    mod resources;
    mod sandbox;
    mod server_limits;
    mod shutdown;
    mod start;
    mod stdio;
    mod stdio_faults;
    mod stdio_limits;
    mod times;
    mod unmount;
    mod userns;
    mod wait;
}
