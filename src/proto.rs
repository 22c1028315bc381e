//! The wire's message types: re-exports of the crates' generated code, by the
//! name of containerd's package, and what `build.rs` makes of `protos/`.

/// `containerd.task.v2` and `containerd.task.v3`: the messages of both are the same.
pub use containerd_shim::protos::shim::shim as task;

/// `containerd.runc.v1`: `Options`, `CheckpointOptions`, `ProcessDetails`.
pub use containerd_shim::protos::shim::oci as runc;

/// `containerd.v1.types`: `Status`, `ProcessInfo`.
pub use containerd_shim::protos::types::task as types;

/// `containerd.types.Mount`.
pub use containerd_shim::protos::types::mount::Mount;

/// `containerd.types`: `RuntimeInfo`, `RuntimeVersion`.
pub use containerd_shim::protos::types::introspection;

/// `containerd.events`: the payload of each event.
pub use containerd_shim::protos::events::task as events;

/// `containerd.services.events.ttrpc.v1`: `ForwardRequest`.
pub use containerd_shim::protos::shim::events as forward;

/// `containerd.types.Envelope`.
pub use containerd_shim::protos::shim::event::Envelope;

/// `io.containerd.cgroups.v1.Metrics`.
pub use containerd_shim::protos::cgroups::metrics as cgroups_v1;

/// `io.containerd.cgroups.v2.Metrics`.
pub use containerd_shim::protos::cgroups_v2::metrics as cgroups_v2;

/// `containerd.runtime.bootstrap.v1`: `BootstrapParams`, `BootstrapResult`.
pub use containerd_shim::bootstrap;

pub use protobuf::well_known_types::any::Any;
pub use protobuf::well_known_types::empty::Empty;
pub use protobuf::well_known_types::timestamp::Timestamp;
pub use protobuf::{EnumOrUnknown, Message, MessageField};

/// `runtimeoptions.v1.Options`.
pub use generated::runtimeoptions;

#[allow(missing_docs, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/protos/mod.rs"));
}

/// A time as the wire has it. `None` is Go's zero time, which containerd tells from
/// an unset field: that would be 1970.
pub fn timestamp(at: Option<std::time::SystemTime>) -> Timestamp {
    todo!()
}
