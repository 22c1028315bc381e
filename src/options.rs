//! The runtime's options, in each form in which a client sends them.
//!
//! Promises: both message types, with any prefix before their names; TOML as containerd's CRI
//! plugin passes it; `options.json` as Go's shim reads and writes it. Invalid options are
//! `InvalidArgument`, and the error says what is wrong.
//!
//! Lacks on purpose: a check of the values. The OCI runtime reports these better.
//!
//! To add an option: a field of [`Options`], its key in `set` and in `KEYS`, and its field in
//! `From`; a row in `docs/options.md`.

use std::fmt::Display;
use std::fs;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::error::{Error, Result};
use crate::proto::{Any, Message, runc, runtimeoptions};

/// The options of the runtime, as the bundle's `options.json` keeps them: Go's form,
/// snake_case, what has its default left out; unknown fields tolerated on reading.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Use `MS_MOVE` in place of `pivot_root(2)`, for roots on a ramfs.
    #[serde(skip_serializing_if = "is_default")]
    pub no_pivot_root: bool,
    /// Give the container no session keyring of its own.
    #[serde(skip_serializing_if = "is_default")]
    pub no_new_keyring: bool,
    /// An existing cgroup for the server; empty: where containerd is.
    #[serde(skip_serializing_if = "is_default")]
    pub shim_cgroup: String,
    /// Owner of the container's ends of its stdio.
    #[serde(skip_serializing_if = "is_default")]
    pub io_uid: u32,
    /// Group of the container's ends of its stdio.
    #[serde(skip_serializing_if = "is_default")]
    pub io_gid: u32,
    /// The OCI runtime: a name or a path; empty: runc.
    #[serde(skip_serializing_if = "is_default")]
    pub binary_name: String,
    /// The directory for the runtime's state; empty: containerd's default.
    #[serde(skip_serializing_if = "is_default")]
    pub root: String,
    /// Make cgroups through systemd.
    #[serde(skip_serializing_if = "is_default")]
    pub systemd_cgroup: bool,
    /// `systemd_cgroup` is false because somebody wrote so. Only TOML can tell that: in a
    /// protobuf message false and nothing are the same.
    #[serde(skip)]
    pub is_systemd_refused: bool,
    /// Where a checkpoint's images are.
    #[serde(skip_serializing_if = "is_default")]
    pub criu_image_path: String,
    /// Where criu works and logs.
    #[serde(skip_serializing_if = "is_default")]
    pub criu_work_path: String,
    /// Stored, not used: this shim serves on its own socket only.
    #[serde(skip_serializing_if = "is_default")]
    pub task_api_address: String,
    /// Stored, not used.
    #[serde(skip_serializing_if = "is_default")]
    pub task_api_version: u32,
}

/// Go's `omitempty`.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The name of a message's type: its URL's last segment.
fn type_name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

fn invalid(object: impl Display, cause: impl Display) -> Error {
    Error::invalid(format!("decode options: {object}: {cause}"))
}

impl Options {
    /// Whether `any` holds options, by its type.
    pub fn are_in(any: &Any) -> bool {
        matches!(
            type_name(any),
            "containerd.runc.v1.Options" | "runtimeoptions.v1.Options"
        )
    }

    /// From `containerd.runc.v1.Options` or `runtimeoptions.v1.Options` (TOML, by body or path),
    /// with any prefix before the type's name. None or an empty one: the defaults.
    /// Another type is InvalidArgument, naming it.
    pub fn decode(any: Option<&Any>) -> Result<Options> {
        let Some(any) = any else {
            return Ok(Options::default());
        };
        match type_name(any) {
            "containerd.runc.v1.Options" => {
                let message = runc::Options::parse_from_bytes(&any.value)
                    .map_err(|e| invalid(&any.type_url, e))?;
                Ok(message.into())
            }
            "runtimeoptions.v1.Options" => {
                let message = runtimeoptions::Options::parse_from_bytes(&any.value)
                    .map_err(|e| invalid(&any.type_url, e))?;
                Self::from_toml(&message)
            }
            "" if any.value.is_empty() => Ok(Options::default()),
            _ => Err(invalid(&any.type_url, "unsupported type")),
        }
    }

    /// The body, else the file at the path, else the defaults.
    fn from_toml(message: &runtimeoptions::Options) -> Result<Options> {
        if !message.config_body.is_empty() {
            let body =
                str::from_utf8(&message.config_body).map_err(|e| invalid("config_body", e))?;
            return Self::parse_toml("config_body", body);
        }
        if message.config_path.is_empty() {
            return Ok(Options::default());
        }
        let path = message.config_path.as_str();
        // Reading another kind of file could block for ever.
        let is_file = fs::metadata(path).map_err(|e| invalid(path, e))?.is_file();
        if !is_file {
            return Err(invalid(path, "not a regular file"));
        }
        let body = fs::read_to_string(path).map_err(|e| invalid(path, e))?;
        Self::parse_toml(path, &body)
    }

    /// The keys are the message's fields as Go spells them; any case and
    /// underscores will do. Others are ignored, with a warning in the log.
    fn parse_toml(source: &str, text: &str) -> Result<Options> {
        let table: Table = text
            .parse()
            .map_err(|e: toml::de::Error| invalid(source, e.message()))?;
        let mut options = Options::default();
        for (key, value) in &table {
            let known = options
                .set(key, value)
                .map_err(|expected| invalid(source, format!("{key} is not {expected}")))?;
            if !known {
                log::warn!("{}", unknown(source, key));
            }
        }
        Ok(options)
    }

    /// Sets one field; false: there is no such field. The error says what the value must be.
    fn set(&mut self, key: &str, value: &Value) -> std::result::Result<bool, &'static str> {
        let boolean = || value.as_bool().ok_or("a boolean");
        let text = || value.as_str().map(str::to_owned).ok_or("a string");
        let number = || {
            let number = value.as_integer().and_then(|n| u32::try_from(n).ok());
            number.ok_or("a number from 0 to 4294967295")
        };
        match plain(key).as_str() {
            "nopivotroot" => self.no_pivot_root = boolean()?,
            "nonewkeyring" => self.no_new_keyring = boolean()?,
            "shimcgroup" => self.shim_cgroup = text()?,
            "iouid" => self.io_uid = number()?,
            "iogid" => self.io_gid = number()?,
            "binaryname" => self.binary_name = text()?,
            "root" => self.root = text()?,
            "systemdcgroup" => {
                self.systemd_cgroup = boolean()?;
                self.is_systemd_refused = !self.systemd_cgroup;
            }
            "criuimagepath" => self.criu_image_path = text()?,
            "criuworkpath" => self.criu_work_path = text()?,
            "taskapiaddress" => self.task_api_address = text()?,
            "taskapiversion" => self.task_api_version = number()?,
            // containerd 1.x has it, and no shim uses it.
            "criupath" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// The keys of the TOML form, as Go spells them.
const KEYS: [&str; 12] = [
    "NoPivotRoot",
    "NoNewKeyring",
    "ShimCgroup",
    "IoUid",
    "IoGid",
    "BinaryName",
    "Root",
    "SystemdCgroup",
    "CriuImagePath",
    "CriuWorkPath",
    "TaskApiAddress",
    "TaskApiVersion",
];

/// How many edits turn a mistyped key into the one that was meant, at most.
const MAX_EDITS: usize = 3;

/// A key without what does not count.
fn plain(key: &str) -> String {
    key.replace('_', "").to_ascii_lowercase()
}

/// The warning of a key that is ignored.
fn unknown(source: &str, key: &str) -> String {
    let key_edits = |known: &&str| edits(&plain(key), &plain(known));
    match KEYS.iter().min_by_key(|known| key_edits(known)) {
        Some(known) if key_edits(known) <= MAX_EDITS.min(key.len() / 2) => {
            format!("options: {source}: unknown key {key} is ignored; did you mean {known}?")
        }
        _ => format!("options: {source}: unknown key {key} is ignored"),
    }
}

/// How many letters must be inserted, removed or replaced to make `to` of `from`.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

impl From<runc::Options> for Options {
    fn from(message: runc::Options) -> Self {
        Options {
            no_pivot_root: message.no_pivot_root,
            no_new_keyring: message.no_new_keyring,
            shim_cgroup: message.shim_cgroup,
            io_uid: message.io_uid,
            io_gid: message.io_gid,
            binary_name: message.binary_name,
            root: message.root,
            systemd_cgroup: message.systemd_cgroup,
            is_systemd_refused: false,
            criu_image_path: message.criu_image_path,
            criu_work_path: message.criu_work_path,
            task_api_address: message.task_api_address,
            task_api_version: message.task_api_version,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any {
            type_url: type_url.into(),
            value,
            ..Any::default()
        }
    }

    fn toml(body: &str) -> Result<Options> {
        let message = runtimeoptions::Options {
            config_body: body.as_bytes().to_vec(),
            ..Default::default()
        };
        let value = message.write_to_bytes().unwrap();
        Options::decode(Some(&any("runtimeoptions.v1.Options", value)))
    }

    fn full() -> Options {
        Options {
            no_pivot_root: true,
            no_new_keyring: true,
            shim_cgroup: "/shims".into(),
            io_uid: 1000,
            io_gid: 4294967295,
            binary_name: "crun".into(),
            root: "/run/r".into(),
            systemd_cgroup: true,
            is_systemd_refused: false,
            criu_image_path: "/i".into(),
            criu_work_path: "/w".into(),
            task_api_address: "ttrpc+unix:///t".into(),
            task_api_version: 3,
        }
    }

    #[test]
    fn runc_options_from_bytes() {
        // Every field, as Go's encoder writes it.
        let mut value = b"\x08\x01\x10\x01\x1a\x06/shims\x20\xe8\x07\x28\xff\xff\xff\xff\x0f\x32\x04crun\x3a\x06/run/r\x48\x01\x52\x02/i\x5a\x02/w\x62\x0fttrpc+unix:///t\x68\x03".to_vec();
        for url in [
            "containerd.runc.v1.Options",
            "types.containerd.io/containerd.runc.v1.Options",
            "type.googleapis.com/containerd.runc.v1.Options",
        ] {
            assert_eq!(Options::decode(Some(&any(url, value.clone()))), Ok(full()));
        }
        // Field 8, criu_path, which containerd 2.0 removed.
        value.extend_from_slice(b"\x42\x04criu");
        let got = Options::decode(Some(&any("containerd.runc.v1.Options", value)));
        assert_eq!(got, Ok(full()));
    }

    #[test]
    fn empty_options_are_the_defaults() {
        let defaults = Ok(Options::default());
        assert_eq!(Options::decode(None), defaults);
        assert_eq!(Options::decode(Some(&Any::default())), defaults);
        for url in ["x/containerd.runc.v1.Options", "runtimeoptions.v1.Options"] {
            assert_eq!(Options::decode(Some(&any(url, vec![]))), defaults);
        }
    }

    #[test]
    fn toml_from_the_cri_plugin() {
        let got = toml(
            "BinaryName = 'crun'\nCriuImagePath = '/i'\nCriuWorkPath = '/w'\nCriuPath = ''\n\
             IoGid = 4294967295\nIoUid = 1000\nNoNewKeyring = true\nNoPivotRoot = true\n\
             Root = '/run/r'\nShimCgroup = '/shims'\nSystemdCgroup = true\n\
             TaskApiAddress = 'ttrpc+unix:///t'\nTaskApiVersion = 3\n\
             [some.other]\nroot = 5\n",
        );
        assert_eq!(got, Ok(full()));
    }

    #[test]
    fn unknown_key_is_a_warning_with_the_nearest_known_one() {
        for (key, meant) in [
            ("SystemdCgroups", "SystemdCgroup"),
            ("Binary_Nam", "BinaryName"),
            ("rooot", "Root"),
        ] {
            let expected =
                format!("options: f: unknown key {key} is ignored; did you mean {meant}?");
            assert_eq!(unknown("f", key), expected);
        }
        for key in ["x", "some", "NetworkNamespace"] {
            assert_eq!(
                unknown("f", key),
                format!("options: f: unknown key {key} is ignored")
            );
        }
        assert_eq!(toml("Binary = 'crun'"), Ok(Options::default()));
    }

    #[test]
    fn every_known_key_is_documented() {
        let page = include_str!("../docs/options.md");
        for key in KEYS {
            assert!(page.contains(&format!("`{key}`")), "{key}");
        }
    }

    #[test]
    fn every_known_key_is_a_field() {
        for key in KEYS {
            let value = Value::Array(Vec::new());
            assert!(Options::default().set(key, &value).is_err(), "{key}");
        }
    }

    #[test]
    fn toml_keys_in_other_spellings() {
        let got = toml("binary_name = \"crun\"\nsystemdcgroup = true").unwrap();
        assert_eq!(
            (got.binary_name.as_str(), got.systemd_cgroup),
            ("crun", true)
        );
    }

    #[test]
    fn toml_tells_false_from_nothing() {
        for (body, is_refused) in [
            ("SystemdCgroup = false", true),
            ("SystemdCgroup = true", false),
            ("Root = '/r'", false),
        ] {
            assert_eq!(toml(body).unwrap().is_systemd_refused, is_refused, "{body}");
        }
    }

    #[test]
    fn toml_from_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        fs::write(&path, "Root = '/r'").unwrap();
        let decode = |path: &str, body: &[u8]| {
            let message = runtimeoptions::Options {
                config_path: path.into(),
                config_body: body.to_vec(),
                ..Default::default()
            };
            let value = message.write_to_bytes().unwrap();
            Options::decode(Some(&any("a/runtimeoptions.v1.Options", value)))
        };
        let path = path.to_str().unwrap();
        assert_eq!(decode(path, b"").unwrap().root, "/r");
        assert_eq!(decode(path, b"Root = '/body'").unwrap().root, "/body");

        let missing = dir.path().join("missing").display().to_string();
        for bad in [&missing, dir.path().to_str().unwrap(), "/dev/null"] {
            let error = decode(bad, b"").unwrap_err();
            assert_eq!(error.kind(), crate::error::Kind::InvalidArgument);
            assert!(error.to_string().contains(bad), "{error}");
        }
    }

    #[test]
    fn errors_name_the_invalid_option() {
        let type_error = |url: &str| Options::decode(Some(&any(url, vec![8]))).unwrap_err();
        let wrong = |key: &str| toml(key).unwrap_err();
        for (error, expected) in [
            (
                type_error("a/some.Other"),
                "a/some.Other: unsupported type".to_string(),
            ),
            (type_error(""), "unsupported type".into()),
            (
                type_error("containerd.runc.v1.Options"),
                "containerd.runc.v1.Options: ".into(),
            ),
            (
                type_error("runtimeoptions.v1.Options"),
                "runtimeoptions.v1.Options: ".into(),
            ),
            (wrong("BinaryName = "), "config_body: ".into()),
            (wrong("BinaryName = 7"), "BinaryName is not a string".into()),
            (
                wrong("SystemdCgroup = 'yes'"),
                "SystemdCgroup is not a boolean".into(),
            ),
            (wrong("IoUid = -1"), "IoUid is not a number from 0".into()),
            (
                wrong("IoGid = 4294967296"),
                "IoGid is not a number from 0".into(),
            ),
        ] {
            assert_eq!(error.kind(), crate::error::Kind::InvalidArgument);
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }

    #[test]
    fn json_is_as_gos() {
        assert_eq!(serde_json::to_string(&Options::default()).unwrap(), "{}");
        let some = Options {
            binary_name: "crun".into(),
            systemd_cgroup: true,
            root: "/r".into(),
            ..Options::default()
        };
        let json = r#"{"binary_name":"crun","root":"/r","systemd_cgroup":true}"#;
        assert_eq!(serde_json::to_string(&some).unwrap(), json);
        assert_eq!(serde_json::from_str::<Options>(json).unwrap(), some);
        let full_json = serde_json::to_string(&full()).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&full_json).unwrap(), full());
        let old: Options = serde_json::from_str(r#"{"criu_path":"/c","root":"/r"}"#).unwrap();
        assert_eq!(old.root, "/r");
    }
}
