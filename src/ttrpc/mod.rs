//! ttrpc between containerd and the shim: unary calls over unix sockets.
//!
//! Promises: whatever a peer sends or fails to read, this end neither panics nor
//! hangs, and its memory stays bounded. Status texts have no prefix; codes are Go's.
//!
//! Lacks on purpose: streams, other transports, and any knowledge of tasks. The
//! `ttrpc` crate lends its message types and codes; its servers do not fit here
//! (no back-pressure, `Send` handlers).

pub mod client;
pub mod frame;
mod parked;
pub mod server;
