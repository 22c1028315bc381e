//! A container's bundle directory: every file in it that the shim reads or writes.
//!
//! Promises: Go's shim can read what this one writes, and the other way round; a file exists
//! complete or not at all; unknown or null fields of `config.json` are no error.
//!
//! Lacks on purpose: a full model of `config.json`. That belongs to the OCI runtime,
//! and would cost ten times the memory.

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use crate::error::{Context, Error, Result};
use crate::options::Options;

/// A container's bundle directory: each file in it that the shim reads or writes.
#[derive(Debug, Clone)]
pub struct Bundle(PathBuf);

/// What the shim reads of `config.json`. Everything else is ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// The container's annotations; they group pods.
    #[serde(deserialize_with = "null_is_default")]
    pub annotations: HashMap<String, String>,
    /// What only Linux has.
    #[serde(deserialize_with = "null_is_default")]
    pub linux: Linux,
}

/// The `linux` part of a [`Spec`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Linux {
    /// The namespaces that the container does not share with the runtime.
    #[serde(deserialize_with = "null_is_default")]
    pub namespaces: Vec<Namespace>,
    /// The container's cgroup: a path, or `SLICE:PREFIX:NAME` with systemd.
    #[serde(rename = "cgroupsPath", deserialize_with = "null_is_default")]
    pub cgroups_path: String,
}

/// A namespace that the container is to be in.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// `pid`, `network`, …
    #[serde(rename = "type", deserialize_with = "null_is_default")]
    pub kind: String,
    /// An existing one to join; empty: a new one.
    #[serde(deserialize_with = "null_is_default")]
    pub path: String,
}

/// Go writes `null` for an absent list or map.
fn null_is_default<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Spec {
    /// Whether the container has a pid namespace of its own (an entry without a path).
    pub fn has_private_pid_namespace(&self) -> bool {
        let mut namespaces = self.linux.namespaces.iter();
        namespaces.any(|n| n.kind == "pid" && n.path.is_empty())
    }
}

/// What is read of `bootstrap.json`, or of `address` if that holds JSON.
#[derive(Deserialize)]
struct Bootstrap {
    address: String,
}

impl Bundle {
    /// The bundle at `path`, which is not read yet.
    pub fn at(path: impl Into<PathBuf>) -> Bundle {
        Bundle(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the container's root is mounted.
    pub fn rootfs(&self) -> PathBuf {
        self.0.join("rootfs")
    }

    /// Makes `rootfs` (0711); it may be there.
    pub fn make_rootfs(&self) -> Result<()> {
        let rootfs = self.rootfs();
        match DirBuilder::new().mode(0o711).create(&rootfs) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result.context(|| format!("make {}", rootfs.display())),
        }
    }

    /// Where CRIU works by default.
    pub fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    /// The runtime's `--pid-file` for init.
    pub fn init_pid_file(&self) -> PathBuf {
        self.0.join("init.pid")
    }

    /// The shim's log FIFO.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// `config.json`; an error says whether it is missing, unreadable or invalid.
    pub fn spec(&self) -> Result<Spec> {
        let path = self.0.join("config.json");
        let text = fs::read(&path).context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).context(|| format!("parse {}", path.display()))
    }

    /// Writes `options.json` (0600) and `runtime` (0600, `binary_name` or empty).
    pub fn write_options(&self, options: &Options) -> Result<()> {
        let json = serde_json::to_vec(options).context(|| "encode options.json")?;
        self.write("options.json", &json, 0o600)?;
        self.write("runtime", options.binary_name.as_bytes(), 0o600)
    }

    /// Reads them back, also as Go wrote them; missing: the defaults. `runtime` fills binary_name.
    pub fn options(&self) -> Result<Options> {
        let mut options = match self.read("options.json")? {
            Some(json) => serde_json::from_str(&json)
                .context(|| format!("parse {}", self.0.join("options.json").display()))?,
            None => Options::default(),
        };
        if options.binary_name.is_empty() {
            options.binary_name = self.read("runtime")?.unwrap_or_default();
        }
        Ok(options)
    }

    /// The init's pid from `init.pid`; None when missing.
    pub fn init_pid(&self) -> Result<Option<i32>> {
        let Some(text) = self.read("init.pid")? else {
            return Ok(None);
        };
        match text.trim().parse() {
            Ok(pid) if pid > 0 => Ok(Some(pid)),
            _ => Err(Error::unknown(format!(
                "parse {}: {:?} is not a PID",
                self.init_pid_file().display(),
                text.trim()
            ))),
        }
    }

    /// Writes `address`, atomically.
    pub fn write_address(&self, address: &str) -> Result<()> {
        self.write("address", address.as_bytes(), 0o644)
    }

    /// The server's address, from `bootstrap.json` or `address` (plain or JSON); None when both
    /// are missing.
    pub fn address(&self) -> Result<Option<String>> {
        for name in ["bootstrap.json", "address"] {
            let Some(text) = self.read(name)? else {
                continue;
            };
            let text = text.trim();
            if !text.starts_with('{') {
                return Ok(Some(text.to_owned()));
            }
            let bootstrap: Bootstrap = serde_json::from_str(text)
                .context(|| format!("parse {}", self.0.join(name).display()))?;
            return Ok(Some(bootstrap.address));
        }
        Ok(None)
    }

    /// Creates the symlink `s` to the directory of the server's socket: containerd looks for it
    /// when it removes the bundle. An existing one stays.
    pub fn link_socket_dir(&self, dir: &Path) -> Result<()> {
        let link = self.0.join("s");
        match std::os::unix::fs::symlink(dir, &link) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => {
                result.context(|| format!("create symlink {} to {}", link.display(), dir.display()))
            }
        }
    }

    /// The text of file `name`; None when it is missing.
    pub fn read(&self, name: &str) -> Result<Option<String>> {
        let path = self.0.join(name);
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            result => result
                .map(Some)
                .context(|| format!("read {}", path.display())),
        }
    }

    /// Puts a whole file `name` in place of any older one.
    pub fn write(&self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        let path = self.0.join(name);
        let new = self.0.join(format!(".{name}.{}", std::process::id()));
        let write = || {
            let mut options = fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(mode);
            options.open(&new)?.write_all(content)?;
            fs::rename(&new, &path)
        };
        write().context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn bundle() -> (tempfile::TempDir, Bundle) {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(dir.path());
        (dir, bundle)
    }

    fn put(bundle: &Bundle, name: &str, content: &str) {
        fs::write(bundle.path().join(name), content).unwrap();
    }

    fn get(bundle: &Bundle, name: &str) -> String {
        fs::read_to_string(bundle.path().join(name)).unwrap()
    }

    fn spec(json: &str) -> Result<Spec> {
        let (_dir, bundle) = bundle();
        put(&bundle, "config.json", json);
        bundle.spec()
    }

    /// What we read of a spec is where the specification has it.
    #[test]
    fn spec_with_all_fields() {
        let spec = oci_spec::runtime::Spec::default();
        let spec: Spec = serde_json::from_value(serde_json::to_value(spec).unwrap()).unwrap();
        assert!(spec.has_private_pid_namespace());
    }

    #[test]
    fn spec_tolerates_null_and_unknown_fields() {
        let json = r#"{"ociVersion":"9","annotations":{"a":"b"},"vm":{"x":[1]},
            "linux":{"namespaces":[{"type":"pid"},{"type":"time","path":null,"new":1}],
            "cgroupsPath":"/k/c1","y":null}}"#;
        let got = spec(json).unwrap();
        assert_eq!(got.annotations["a"], "b");
        assert_eq!(got.linux.cgroups_path, "/k/c1");
        assert!(got.has_private_pid_namespace());
        for json in [
            "{}",
            r#"{"annotations":null,"linux":null}"#,
            r#"{"linux":{"namespaces":null,"cgroupsPath":null}}"#,
        ] {
            let got = spec(json).unwrap();
            assert!(got.annotations.is_empty() && !got.has_private_pid_namespace());
        }
    }

    #[test]
    fn joined_pid_namespace_is_not_private() {
        let json = r#"{"linux":{"namespaces":[{"type":"network"},{"type":"pid","path":"/proc/1/ns/pid"}]}}"#;
        assert!(!spec(json).unwrap().has_private_pid_namespace());
    }

    #[test]
    fn error_names_a_missing_or_malformed_spec() {
        let (_dir, bundle) = bundle();
        let text = bundle.spec().unwrap_err().to_string();
        assert!(
            text.starts_with("read /") && text.contains("/config.json: No such file"),
            "{text}"
        );
        let text = spec("{").unwrap_err().to_string();
        assert!(
            text.starts_with("parse /") && text.contains("/config.json: "),
            "{text}"
        );
    }

    #[test]
    fn options_are_read_back_and_private() {
        let (_dir, bundle) = bundle();
        let options = Options {
            binary_name: "crun".into(),
            io_uid: 5,
            ..Options::default()
        };
        bundle.write_options(&options).unwrap();
        bundle.write_options(&options).unwrap();
        assert_eq!(
            get(&bundle, "options.json"),
            r#"{"io_uid":5,"binary_name":"crun"}"#
        );
        assert_eq!(get(&bundle, "runtime"), "crun");
        for name in ["options.json", "runtime"] {
            let mode = fs::metadata(bundle.path().join(name))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(bundle.options().unwrap(), options);
        assert_eq!(
            fs::read_dir(bundle.path()).unwrap().count(),
            2,
            "no other file is left"
        );
    }

    #[test]
    fn options_written_by_go_or_missing() {
        let (_dir, bundle) = bundle();
        assert_eq!(bundle.options().unwrap(), Options::default());
        put(&bundle, "runtime", "youki");
        assert_eq!(bundle.options().unwrap().binary_name, "youki");
        put(
            &bundle,
            "options.json",
            r#"{"criu_path":"x","root":"/r","systemd_cgroup":true}"#,
        );
        let got = bundle.options().unwrap();
        assert_eq!(
            (
                got.binary_name.as_str(),
                got.root.as_str(),
                got.systemd_cgroup
            ),
            ("youki", "/r", true)
        );
        put(&bundle, "options.json", "{}");
        put(&bundle, "runtime", "");
        assert_eq!(bundle.options().unwrap(), Options::default());
        put(&bundle, "options.json", "{");
        let text = bundle.options().unwrap_err().to_string();
        assert!(text.contains("/options.json: "), "{text}");
    }

    #[test]
    fn rootfs_is_created_once() {
        let (_dir, bundle) = bundle();
        for _ in 0..2 {
            bundle.make_rootfs().unwrap();
        }
        assert!(bundle.rootfs().is_dir());
        let error = Bundle::at("/no/such").make_rootfs().unwrap_err();
        assert!(error.to_string().starts_with("make /no/such/rootfs: "));
    }

    #[test]
    fn init_pid() {
        let (_dir, bundle) = bundle();
        assert_eq!(bundle.init_pid(), Ok(None));
        put(&bundle, "init.pid", "4711");
        assert_eq!(bundle.init_pid(), Ok(Some(4711)));
        put(&bundle, "init.pid", "4711\n");
        assert_eq!(bundle.init_pid(), Ok(Some(4711)));
        for bad in ["", "-1", "0", "x"] {
            put(&bundle, "init.pid", bad);
            let text = bundle.init_pid().unwrap_err().to_string();
            assert!(
                text.ends_with(&format!("/init.pid: {bad:?} is not a PID")),
                "{text}"
            );
        }
    }

    #[test]
    fn address_of_each_containerd() {
        let (_dir, bundle) = bundle();
        assert_eq!(bundle.address(), Ok(None));
        bundle.write_address("unix:///s/1").unwrap();
        assert_eq!(get(&bundle, "address"), "unix:///s/1");
        assert_eq!(bundle.address(), Ok(Some("unix:///s/1".into())));
        let json = |address| format!(r#"{{"version":3,"address":"{address}","protocol":"ttrpc"}}"#);
        put(&bundle, "address", &json("unix:///s/2"));
        assert_eq!(bundle.address(), Ok(Some("unix:///s/2".into())));
        put(&bundle, "bootstrap.json", &json("unix:///s/3"));
        assert_eq!(bundle.address(), Ok(Some("unix:///s/3".into())));
        put(&bundle, "bootstrap.json", "{");
        let text = bundle.address().unwrap_err().to_string();
        assert!(text.contains("/bootstrap.json: "), "{text}");
    }

    #[test]
    fn socket_dir_link() {
        let (_dir, bundle) = bundle();
        for _ in 0..2 {
            bundle.link_socket_dir(Path::new("/run/x")).unwrap();
        }
        let target = fs::read_link(bundle.path().join("s")).unwrap();
        assert_eq!(target, Path::new("/run/x"));
    }
}
