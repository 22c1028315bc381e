//! A containerd runtime v2 shim: it stands between containerd and an OCI runtime
//! (runc, crun, youki) for as long as a container or pod lives.
//!
//! The server is one thread: a current-thread tokio runtime with a `LocalSet`,
//! `Rc`/`RefCell` state, no lock. `ARCHITECTURE.md` holds the invariants, and which module
//! may import which. Modules, in the order in which a request passes them:

pub mod cli;

pub mod check;
pub mod delete;
pub mod info;
pub mod pod_init;
pub mod probe;
pub mod ps;
pub mod servers;
pub mod socket;
pub mod start;

pub mod serve;
pub mod ttrpc;

pub mod sandbox;
pub mod service;
pub mod task;

pub mod runtime;
pub mod stdio;

pub mod reaper;

pub mod events;

pub mod cgroup;
pub mod mount;
pub mod oom;

pub mod blocking;
pub mod bundle;
pub mod cancel;
pub mod descriptors;
pub mod local;
pub mod options;
pub mod report;

pub mod error;
pub mod log;
pub mod proto;
pub mod sys;

#[cfg(any(test, fuzzing))]
pub mod fuzz;

/// This program's name, in messages to people.
pub const NAME: &str = "containerd-shim-rs-v2";

/// Its version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The revision of the source that it was built from: `SHIM_REVISION` in the environment of
/// the build.
pub const REVISION: &str = match option_env!("SHIM_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// The target it was built for, such as `x86_64-unknown-linux-musl`.
pub const TARGET: &str = env!("SHIM_TARGET");

/// The version of the compiler that it was built with; "unknown" if it did not print that.
pub const COMPILER: &str = env!("SHIM_COMPILER");
