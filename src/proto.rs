//! The wire's message types: re-exports of the crates' generated code, by the
//! name of containerd's package, and what `build.rs` makes of `protos/`.

use std::time::{SystemTime, UNIX_EPOCH};

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
pub use protobuf::{EnumOrUnknown, Message, MessageField, SpecialFields, UnknownValueRef};

/// `runtimeoptions.v1.Options`.
pub use generated::runtimeoptions;

/// `None` is Go's zero time, the year 1: an unset field would be read as 1970.
pub fn timestamp(time: Option<SystemTime>) -> Timestamp {
    const GO_ZERO_SECONDS: i64 = -62_135_596_800;
    let (seconds, nanos) = match time.map(|time| time.duration_since(UNIX_EPOCH)) {
        None => (GO_ZERO_SECONDS, 0),
        Some(Ok(after)) => (after.as_secs() as i64, after.subsec_nanos()),
        // Nanoseconds count forward, whatever the sign of the seconds.
        Some(Err(e)) => match (e.duration().as_secs() as i64, e.duration().subsec_nanos()) {
            (seconds, 0) => (-seconds, 0),
            (seconds, nanos) => (-seconds - 1, 1_000_000_000 - nanos),
        },
    };
    Timestamp {
        seconds,
        nanos: nanos as i32,
        ..Default::default()
    }
}

#[allow(missing_docs, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/protos/mod.rs"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn timestamps_are_go_s() {
        let of = |time| {
            let stamp = timestamp(time);
            (stamp.seconds, stamp.nanos)
        };
        assert_eq!(of(None), (-62_135_596_800, 0));
        assert_eq!(of(Some(UNIX_EPOCH)), (0, 0));
        let half = Duration::from_millis(1500);
        assert_eq!(of(Some(UNIX_EPOCH + half)), (1, 500_000_000));
        assert_eq!(of(Some(UNIX_EPOCH - half)), (-2, 500_000_000));
        let whole = Duration::from_secs(2);
        assert_eq!(of(Some(UNIX_EPOCH - whole)), (-2, 0));
    }
}
