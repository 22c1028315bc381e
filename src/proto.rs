//! The types of protobuf messages: generated code of the crates, under the names of
//! containerd's packages, and what `build.rs` generates from `protos/`.

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

use protobuf::CodedInputStream;
pub use protobuf::well_known_types::any::Any;
pub use protobuf::well_known_types::empty::Empty;
pub use protobuf::well_known_types::timestamp::Timestamp;
pub use protobuf::{EnumOrUnknown, Message, MessageField, SpecialFields, UnknownValueRef};

/// `runtimeoptions.v1.Options`.
pub use generated::runtimeoptions;

/// `containerd.runtime.sandbox.v1`: the messages of the Sandbox service.
pub use generated::sandbox;

/// `runtime.v1`: `PodSandboxConfig`.
pub use generated::podsandbox;

/// How many fields one message may have, with those of the messages in it: decoding can turn
/// an encoded field of two bytes into a hundred bytes and more. containerd sends a few dozen.
pub const MAX_FIELDS: usize = 8192;

/// Levels of messages in messages that [`count_fields`] looks at: a request, a mount or a
/// packed message in it, the packed message's own fields.
const MAX_DEPTH: u32 = 3;

/// One field of an encoded message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field<'a> {
    /// A number, encoded with a variable length.
    Varint(u64),
    /// Text, bytes or a message.
    Bytes(&'a [u8]),
    /// A number of fixed length.
    Fixed,
}

/// Calls `visit` with the number and the value of each field of an encoded message, in order.
/// Its first error ends the visit; a malformed message is an error. Groups, an old feature of
/// protobuf that containerd does not use, are malformed.
pub fn visit_fields<'a>(
    message: &'a [u8],
    mut visit: impl FnMut(u32, Field<'a>) -> Result<(), String>,
) -> Result<(), String> {
    let mut input = CodedInputStream::from_bytes(message);
    let malformed = |e: protobuf::Error| e.to_string();
    while let Some(tag) = input.read_raw_tag_or_eof().map_err(malformed)? {
        let field = match tag & 7 {
            0 => Field::Varint(input.read_raw_varint64().map_err(malformed)?),
            1 => {
                input.skip_raw_bytes(8).map_err(malformed)?;
                Field::Fixed
            }
            2 => {
                let length = input.read_raw_varint32().map_err(malformed)?;
                let start = input.pos() as usize;
                input.skip_raw_bytes(length).map_err(malformed)?;
                Field::Bytes(&message[start..start + length as usize])
            }
            5 => {
                input.skip_raw_bytes(4).map_err(malformed)?;
                Field::Fixed
            }
            kind => return Err(format!("field {} of wire type {kind}", tag >> 3)),
        };
        visit(tag >> 3, field)?;
    }
    Ok(())
}

/// An error when an encoded message has more than [`MAX_FIELDS`], with those of the
/// messages in it. Text and bytes may look like a message: they count as what they look like.
pub fn limit_fields(message: &[u8]) -> Result<(), String> {
    if count_fields(message, 1, 0) > MAX_FIELDS {
        return Err(format!("more than {MAX_FIELDS} fields"));
    }
    Ok(())
}

/// `count`, and the fields of `message`; more than [`MAX_FIELDS`] are not counted.
fn count_fields(message: &[u8], depth: u32, mut count: usize) -> usize {
    // The decoder refuses a malformed message, and stops there, too.
    let _ = visit_fields(message, |_, field| {
        count += 1;
        if let (Field::Bytes(inner), true) = (field, depth < MAX_DEPTH) {
            count = count_fields(inner, depth + 1, count);
        }
        match count > MAX_FIELDS {
            true => Err(String::new()),
            false => Ok(()),
        }
    });
    count
}

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
    fn fields_of_nested_messages_are_counted() {
        let mounts = |count: usize, options: usize| {
            let mount = Mount {
                options: vec![String::new(); options],
                ..Default::default()
            };
            let request = task::CreateTaskRequest {
                rootfs: vec![mount; count],
                ..Default::default()
            };
            request.write_to_bytes().unwrap()
        };
        let fits = |bytes: &[u8]| limit_fields(bytes).is_ok();
        assert!(fits(&[]));
        assert!(fits(&mounts(MAX_FIELDS, 0)));
        assert!(!fits(&mounts(MAX_FIELDS + 1, 0)));
        assert!(fits(&mounts(1, MAX_FIELDS - 1)));
        assert!(!fits(&mounts(1, MAX_FIELDS)));
        let packed = Any {
            type_url: "t".into(),
            value: [0x08, 1].repeat(MAX_FIELDS),
            ..Default::default()
        };
        let request = task::UpdateTaskRequest {
            resources: Some(packed).into(),
            ..Default::default()
        };
        assert!(!fits(&request.write_to_bytes().unwrap()));
    }

    #[test]
    fn large_json_text_does_not_count_as_many_fields() {
        let json = format!("{{\"args\":[{}\"\"]}}", "\"\\n\\t\",".repeat(100_000));
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: json.into(),
            ..Default::default()
        };
        let request = task::ExecProcessRequest {
            spec: Some(spec).into(),
            ..Default::default()
        };
        assert_eq!(limit_fields(&request.write_to_bytes().unwrap()), Ok(()));
    }

    #[test]
    fn timestamps_are_as_gos() {
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
