//! `-info`: the version of this shim, and the features of the OCI runtime.
//!
//! Promises: an answer for every runtime that can be started, in 2 s at most; the runtime's
//! features are passed on unchanged.
//!
//! Lacks on purpose: a model of the features, which would lose newer fields; the annotation
//! that makes containerd pass special mount types through: without it containerd prepares
//! these mounts, as it does for Go's shim.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::value::RawValue;

use crate::cancel::Cancel;
use crate::error::{Context, Error, Kind, Result};
use crate::options::Options;
use crate::proto::introspection::{RuntimeInfo, RuntimeVersion};
use crate::proto::{Any, Message};
use crate::reaper::Reaper;
use crate::runtime::Runtime;

/// The type that containerd registered for a runtime's features, which are JSON.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// How long the runtime may take to print its features; else there are none.
const FEATURES_TIMEOUT: Duration = Duration::from_secs(2);

/// Does what `-info` is to do: `input` is what containerd sent on stdin, the options
/// or nothing; the reply goes to `output`.
#[inline(never)] // as `serve::run`
pub fn run(input: &[u8], output: &mut impl Write) -> Result<()> {
    let options = Any::parse_from_bytes(input)
        .map_err(|e| Error::invalid(format!("decode standard input: {e}")))?;
    let features = features(&Options::decode(Some(&options))?)?;
    let options = (!input.is_empty()).then_some(options);
    let reply = info(options, features)
        .write_to_bytes()
        .context(|| "encode the reply")?;
    output
        .write_all(&reply)
        .and_then(|()| output.flush())
        .context(|| "write the reply")
}

fn info(options: Option<Any>, features: Option<Vec<u8>>) -> RuntimeInfo {
    let features = features.map(|value| Any {
        type_url: FEATURES_TYPE.into(),
        value,
        ..Any::default()
    });
    let version = RuntimeVersion {
        version: crate::VERSION.into(),
        revision: crate::REVISION.into(),
        ..RuntimeVersion::default()
    };
    RuntimeInfo {
        name: "io.containerd.rs.v2".into(),
        version: Some(version).into(),
        options: options.into(),
        features: features.into(),
        ..RuntimeInfo::default()
    }
}

/// The runtime's features; None if it does not print them. An error if there is no such
/// runtime.
fn features(options: &Options) -> Result<Option<Vec<u8>>> {
    match run_features(options)? {
        Ok(printed) => Ok(json_object(printed)),
        Err(error) if error.kind() == Kind::Unimplemented => Ok(None),
        Err(error) => Err(error),
    }
}

/// The outer error is ours, the inner one the runtime's.
fn run_features(options: &Options) -> Result<Result<Vec<u8>>> {
    let reaper = Reaper::new();
    // The verb needs no bundle.
    let runtime = Runtime::new(reaper.clone(), options, "", Path::new("/"));
    let answer = async { runtime.features(&Cancel::after(FEATURES_TIMEOUT)).await };
    reaper.block_on(answer).context(|| "start the event loop")
}

/// What the runtime printed, if that is a JSON object.
fn json_object(printed: Vec<u8>) -> Option<Vec<u8>> {
    type Object<'a> = HashMap<String, &'a RawValue>;
    let is_object = serde_json::from_slice::<Object<'_>>(&printed).is_ok();
    is_object.then_some(printed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(binary: &str) -> Any {
        let options = crate::proto::runc::Options {
            binary_name: binary.into(),
            ..Default::default()
        };
        Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: options.write_to_bytes().unwrap(),
            ..Any::default()
        }
    }

    fn answer(input: &[u8]) -> Result<RuntimeInfo> {
        let mut reply = Vec::new();
        run(input, &mut reply)?;
        Ok(RuntimeInfo::parse_from_bytes(&reply).unwrap())
    }

    #[test]
    fn options_come_back_unchanged() {
        let options = options("true");
        let info = answer(&options.write_to_bytes().unwrap()).unwrap();
        assert_eq!(info.name, "io.containerd.rs.v2");
        assert_eq!(info.version.version, crate::VERSION);
        assert_eq!(info.options.as_ref(), Some(&options));
        assert!(info.annotations.is_empty());
    }

    #[test]
    fn features_are_passed_on_unchanged() {
        let newer = br#"{ "ociVersionMin":"1.0.0","newer":null }"#.to_vec();
        let features = info(None, json_object(newer.clone())).features.unwrap();
        assert_eq!(features.type_url, FEATURES_TYPE);
        assert_eq!(features.value, newer);
    }

    #[test]
    fn output_that_is_not_json_is_ignored() {
        for printed in ["", "no such command\n", "[]", "{", "{} {}"] {
            assert_eq!(json_object(printed.into()), None, "{printed:?}");
        }
    }

    #[test]
    fn runtime_without_features() {
        // Fails; prints nothing; prints something else.
        for binary in ["false", "true", "echo"] {
            let info = answer(&options(binary).write_to_bytes().unwrap()).unwrap();
            assert!(info.features.is_none(), "{binary}");
        }
    }

    #[test]
    fn missing_runtime_has_gos_error() {
        let input = options("no-such-runtime").write_to_bytes().unwrap();
        let error = answer(&input).unwrap_err();
        assert_eq!(
            error.to_string(),
            "exec: \"no-such-runtime\": executable file not found in $PATH"
        );
    }

    #[test]
    fn bad_input_is_refused() {
        let error = answer(b"\xff").unwrap_err();
        assert!(error.to_string().starts_with("decode standard input: "));
        let error = answer(b"\x0a\x01x").unwrap_err();
        assert_eq!(error.to_string(), "decode options: x: unsupported type");
    }
}
