//! `-info`: what this shim and the OCI runtime under it are, and what they can do.
//!
//! Promises: an answer for every runtime that can be started, in 2 s at most; the
//! runtime's features are what it prints, to the letter.
//!
//! Lacks on purpose: a model of the features. A field that is too new for it would
//! be lost to containerd. Also the annotation that has mount types passed through:
//! without it containerd prepares what is no plain mount, as it does for Go's shim.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::error::{Context, Error, Kind, Result};
use crate::options::Options;
use crate::proto::introspection::{RuntimeInfo, RuntimeVersion};
use crate::proto::{Any, Message};
use crate::reaper::Reaper;
use crate::runtime::Runtime;

/// The type that containerd registered for a runtime's features, which are JSON.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// A runtime that takes longer than this to say what it can do does not say it.
const LIMIT: Duration = Duration::from_secs(2);

/// Does what `-info` is to do: `input` is what containerd sent on stdin, the options
/// or nothing; the reply goes to `output`.
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

/// The runtime's features; None when it does not tell. An error when there is no
/// such runtime.
fn features(options: &Options) -> Result<Option<Vec<u8>>> {
    // The runtime's log goes where nobody else can have prepared a file for it.
    let template = std::env::temp_dir().join("containerd-shim-XXXXXX");
    let dir = nix::unistd::mkdtemp(&template).context(|| format!("make {}", template.display()))?;
    let asked = ask(options, &dir);
    // It was made for this call alone; what stays behind is empty or nearly so.
    let _ = std::fs::remove_dir_all(&dir);
    match asked? {
        Ok(json) => Ok(Some(json).filter(|json| is_object(json))),
        Err(error) if error.kind() == Kind::Unimplemented => Ok(None),
        Err(error) => Err(error),
    }
}

/// The outer error is ours, the inner one the runtime's.
fn ask(options: &Options, dir: &Path) -> Result<Result<Vec<u8>>> {
    let reaper = Reaper::new();
    let runtime = Runtime::new(reaper.clone(), options, "", dir);
    let answer = async {
        let late = || Err(Error::new(Kind::Unimplemented, "features: no answer"));
        let answer = tokio::time::timeout(LIMIT, runtime.features()).await;
        answer.unwrap_or_else(|_| late())
    };
    reaper.block_on(answer).context(|| "start the event loop")
}

fn is_object(json: &[u8]) -> bool {
    type Object<'a> = std::collections::HashMap<String, &'a serde_json::value::RawValue>;
    serde_json::from_slice::<Object<'_>>(json).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    const FEATURES: &str = r#"{"ociVersionMin":"1.0.0","ociVersionMax":"1.9.0","hooks":["x"],
        "mountOptions":["ro"],"linux":{"intelRdt":{"enabled":true}},"newer":null}"#;

    /// What is answered for a runtime that does `script`.
    fn answer(script: &str) -> Result<(Any, RuntimeInfo)> {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("runtime.sh");
        fs::write(&binary, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
        answer_of(binary.to_str().unwrap())
    }

    fn answer_of(binary: &str) -> Result<(Any, RuntimeInfo)> {
        let options = crate::proto::runc::Options {
            binary_name: binary.into(),
            ..Default::default()
        };
        let options = Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: options.write_to_bytes().unwrap(),
            ..Any::default()
        };
        let mut reply = Vec::new();
        run(&options.write_to_bytes().unwrap(), &mut reply)?;
        Ok((options, RuntimeInfo::parse_from_bytes(&reply).unwrap()))
    }

    #[test]
    fn options_and_features_come_back_unchanged() {
        let (options, info) = answer(&format!("cat <<'E'\n{FEATURES}\nE")).unwrap();
        assert_eq!(info.name, "io.containerd.rs.v2");
        assert_eq!(info.version.version, crate::VERSION);
        assert_eq!(info.options.as_ref(), Some(&options));
        assert_eq!(info.features.type_url, FEATURES_TYPE);
        let text = str::from_utf8(&info.features.value).unwrap();
        assert_eq!(text.trim(), FEATURES);
        assert!(info.annotations.is_empty());
    }

    #[test]
    fn a_runtime_that_does_not_tell_has_no_features() {
        for script in ["exit 1", "echo unknown command", "echo '[]'", "exit 0"] {
            let (_, info) = answer(script).unwrap();
            assert!(info.features.is_none(), "{script}");
            assert!(info.options.is_some());
        }
    }

    #[test]
    fn a_missing_runtime_is_gos_error() {
        let error = answer_of("no-such-runtime").unwrap_err();
        assert_eq!(
            error.to_string(),
            "exec: \"no-such-runtime\": executable file not found in $PATH"
        );
    }

    #[test]
    fn bad_input_is_refused() {
        let error = run(b"\xff", &mut Vec::new()).unwrap_err();
        assert!(error.to_string().starts_with("decode standard input: "));
        let error = run(b"\x0a\x01x", &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "decode options: x: unsupported type");
    }
}
