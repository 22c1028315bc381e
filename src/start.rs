//! `start`: starts the server of a container, or finds the one of its pod, and tells
//! containerd where it listens.
//!
//! Promises: each containerd from 1.6 on gets a reply that it can read. Nothing else is
//! written to stdout, and nothing to stderr on success. The socket is listening before the
//! reply is written. The server inherits no descriptor but its socket. Of many starts in a
//! pod, one starts the server. A failure leaves neither socket nor server.
//!
//! Lacks on purpose: waiting for the server, whose socket accepts connections before it runs.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::bundle::{Bundle, Spec};
use crate::cgroup;
use crate::cli::Flags;
use crate::error::{Context, Error, Kind, Result};
use crate::options::Options;
use crate::probe::{self, Version};
use crate::proto::bootstrap::{BootstrapParams, BootstrapResult};
use crate::proto::{Any, Message};
use crate::reaper::{Child, Reaper, Spawned};
use crate::sandbox;
use crate::socket::{self, Claim};
use crate::sys::process;

/// Annotations whose value names the container's pod; the first one present counts.
const GROUP_ANNOTATIONS: [&str; 2] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];

/// `LOG_LEVEL_DEBUG` of `BootstrapParams`; lower levels log more.
const DEBUG_LEVEL: i32 = -4;

/// The form of the reply that this containerd understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// A bare address, which every containerd understands. It means task API version 2.
    Plain,
    /// JSON with version 3: containerd 2.0 to 2.2, on demand.
    Json,
    /// `BootstrapResult`: containerd 2.3 and later.
    Protobuf,
}

/// What containerd asks for, in any dialect.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    dialect: Dialect,
    debug: bool,
    grpc_address: String,
    ttrpc_address: String,
    socket_dir: Option<String>,
    options: Options,
}

/// Does what `start` is to do, in the working directory, the bundle: `input` is
/// what containerd sent on stdin, the reply goes to `output`.
#[inline(never)] // as `serve::run`
pub fn run(flags: &Flags, input: &[u8], output: &mut impl Write) -> Result<()> {
    let mut request = Request::decode(flags, input)?;
    let bundle =
        Bundle::at(std::env::current_dir().context(|| "get the working directory, the bundle")?);
    if request.dialect == Dialect::Plain && sandbox::is_sandbox(&bundle) {
        // A containerd with the Sandbox API understands it, and with version 2 it would call
        // `start` for each container.
        request.dialect = Dialect::Json;
    }
    start(flags, &request, &bundle, output)
}

fn start(flags: &Flags, request: &Request, bundle: &Bundle, output: &mut impl Write) -> Result<()> {
    let spec = match sandbox::is_sandbox(bundle) {
        true => {
            // For the pod's containers: no `start` is called for them.
            bundle.write_options(&request.options)?;
            Spec::default()
        }
        false => bundle.spec()?,
    };
    let dir = request.socket_dir.as_deref().unwrap_or(socket::DEFAULT_DIR);
    let group = group(&spec, &flags.id);
    let path = socket::path(dir, &request.grpc_address, &flags.namespace, group);
    if request.socket_dir.is_some() {
        bundle.link_socket_dir(Path::new(dir))?;
    }
    match socket::claim(&path)? {
        Claim::Served => {
            let version = request.version_of_server(flags, &path)?;
            request.reply(bundle, &path, version, output)
        }
        Claim::Ours(listener) => {
            let started = start_server(flags, request, bundle, &listener)
                .and_then(|server| finish(&server, request, bundle, &path, output));
            if started.is_err() {
                // This process still listens on it, so that nobody has replaced it. If it cannot
                // be removed, the first failure says more.
                let _ = fs::remove_file(&path);
            }
            started
        }
    }
}

/// The pod's name: the value of a group annotation, even if it is empty, else `id`.
fn group<'a>(spec: &'a Spec, id: &'a str) -> &'a str {
    let mut found = GROUP_ANNOTATIONS.iter().map(|a| spec.annotations.get(*a));
    found
        .find_map(|value| value.map(String::as_str))
        .unwrap_or(id)
}

impl Request {
    /// Tells the dialects apart: the runtime options that containerd before 2.3 sends also
    /// decode as `BootstrapParams`, with a type's name as the ID.
    pub(crate) fn decode(flags: &Flags, input: &[u8]) -> Result<Request> {
        match BootstrapParams::parse_from_bytes(input) {
            Ok(params) if params.instance_id == flags.id && params.namespace == flags.namespace => {
                Self::from_params(flags, params)
            }
            _ => Self::from_flags(flags, input),
        }
    }

    fn from_params(flags: &Flags, params: BootstrapParams) -> Result<Request> {
        let extensions = params.extensions.iter().filter_map(|e| e.value.as_ref());
        let options = extensions.into_iter().find(|any| Options::are_in(any));
        Ok(Request {
            dialect: Dialect::Protobuf,
            debug: flags.debug || params.log_level.value() <= DEBUG_LEVEL,
            options: Options::decode(options)?,
            grpc_address: non_empty(params.containerd_grpc_address, &flags.address),
            ttrpc_address: non_empty(params.containerd_ttrpc_address, &flags.ttrpc_address),
            socket_dir: params.socket_dir.filter(|dir| !dir.is_empty()),
        })
    }

    fn from_flags(flags: &Flags, input: &[u8]) -> Result<Request> {
        let options = Any::parse_from_bytes(input)
            .map_err(|e| Error::invalid(format!("decode standard input: {e}")))?;
        Ok(Request {
            dialect: match flags.json_reply {
                true => Dialect::Json,
                false => Dialect::Plain,
            },
            debug: flags.debug,
            options: Options::decode(Some(&options).filter(|any| Options::are_in(any)))?,
            grpc_address: flags.address.clone(),
            ttrpc_address: flags.ttrpc_address.clone(),
            socket_dir: None,
        })
    }

    /// The version of the Task service for containerd and the live server at `path`. If the
    /// server does not answer: the version for a server of this shim.
    fn version_of_server(&self, flags: &Flags, path: &Path) -> Result<Version> {
        let versions = match self.dialect.version() {
            Version::V2 => [Version::V2, Version::V3],
            Version::V3 => [Version::V3, Version::V2],
        };
        let supported = probe::first_supported(path, &flags.namespace, &flags.id, versions)
            .context(|| format!("query the server at {}", path.display()))?;
        let version = supported.unwrap_or(versions[0]);
        if (self.dialect, version) == (Dialect::Plain, Version::V3) && !flags.knows_json {
            return Err(Error::new(
                Kind::Unimplemented,
                format!(
                    "join the server at {}: it serves only version 3 of the Task API, \
                     which containerd 1.6 does not support",
                    path.display()
                ),
            ));
        }
        Ok(version)
    }

    /// Replies that the server listens at `path` and serves `version`.
    fn reply(
        &self,
        bundle: &Bundle,
        path: &Path,
        version: Version,
        output: &mut impl Write,
    ) -> Result<()> {
        let address = socket::address(path);
        // containerd 1.6 and 1.7 read this file when they restart; later ones write their own.
        if self.dialect != Dialect::Protobuf {
            bundle.write_address(&address)?;
        }
        let reply = self.dialect.encode(address, version)?;
        output
            .write_all(&reply)
            .and_then(|()| output.flush())
            .context(|| "write the reply")
    }
}

fn non_empty(first: String, second: &str) -> String {
    match first.is_empty() {
        true => second.to_owned(),
        false => first,
    }
}

impl Dialect {
    /// The version of the Task service that containerd uses with a server of this shim.
    fn version(self) -> Version {
        match self {
            Dialect::Plain => Version::V2,
            Dialect::Json | Dialect::Protobuf => Version::V3,
        }
    }

    fn encode(self, address: String, version: Version) -> Result<Vec<u8>> {
        let number = match version {
            Version::V2 => 2,
            Version::V3 => 3,
        };
        match (self, version) {
            (Dialect::Plain, Version::V2) => Ok(address.into_bytes()),
            // Only JSON can tell a containerd before 2.3 of version 3.
            (Dialect::Plain, Version::V3) | (Dialect::Json, _) => {
                let reply =
                    serde_json::json!({"version": number, "address": address, "protocol": "ttrpc"});
                Ok(reply.to_string().into_bytes())
            }
            (Dialect::Protobuf, _) => BootstrapResult {
                version: number,
                address,
                protocol: "ttrpc".into(),
                ..BootstrapResult::default()
            }
            .write_to_bytes()
            .context(|| "encode the reply"),
        }
    }
}

/// Spawns the server, with `listener` as its descriptor 3.
fn start_server(
    flags: &Flags,
    request: &Request,
    bundle: &Bundle,
    listener: &UnixListener,
) -> Result<Child> {
    let passed = listener
        .try_clone()
        .context(|| "copy the listening socket for the server")?;
    if flags.sched_core {
        process::create_sched_core().context(|| "enable core scheduling")?;
    }
    let mut command = this_program()?;
    command
        .args(["-namespace", &flags.namespace, "-id", &flags.id])
        .args(["-address", &request.grpc_address])
        .args(request.debug.then_some("-debug"))
        .current_dir(bundle.path())
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if !request.ttrpc_address.is_empty() {
        command.env("TTRPC_ADDRESS", &request.ttrpc_address);
    }
    process::pass_fds(&mut command, vec![passed.into()])
        .context(|| "pass the listening socket to the server")?;
    // A missing bundle and a missing program are the same error.
    let server = format!(
        "execute {} in {} to serve",
        command.get_program().display(),
        bundle.path().display()
    );
    Reaper::new()
        .spawn_lasting(command)
        .and_then(Spawned::started_blocking)
        .map(|(server, _)| server)
        .context(|| server)
}

/// This executable: by its path, so that `ps` shows its name; if an upgrade has removed that
/// file, by the link to it in `/proc`.
fn this_program() -> Result<Command> {
    const EXECUTABLE: &str = "/proc/self/exe";
    let path = fs::read_link(EXECUTABLE).context(|| format!("read {EXECUTABLE}"))?;
    if path.exists() {
        return Ok(Command::new(path));
    }
    let path = path.to_string_lossy();
    let mut command = Command::new(EXECUTABLE);
    command.arg0(path.trim_end_matches(" (deleted)"));
    Ok(command)
}

/// Moves the server to its cgroup, adjusts its OOM score, and replies. On failure the server
/// is killed.
fn finish(
    server: &Child,
    request: &Request,
    bundle: &Bundle,
    path: &Path,
    output: &mut impl Write,
) -> Result<()> {
    let finished = join_cgroup(&request.options, server.pid)
        .and_then(|()| adjust_oom_score(server.pid))
        .and_then(|()| request.reply(bundle, path, request.dialect.version(), output));
    if finished.is_err() {
        // This fails only if the server has exited.
        let _ = server.signal(Signal::SIGKILL as i32);
    }
    finished
}

fn join_cgroup(options: &Options, pid: i32) -> Result<()> {
    if options.shim_cgroup.is_empty() {
        return Ok(());
    }
    cgroup::join(Path::new(&options.shim_cgroup), pid)
        .map_err(|e| e.within(format!("join cgroup {}", options.shim_cgroup)))
}

/// Makes the OOM killer choose the server before containerd, which is this process's parent.
fn adjust_oom_score(pid: i32) -> Result<()> {
    let of_parent = oom_score_file(parent_id());
    let score =
        fs::read_to_string(&of_parent).context(|| format!("read {}", of_parent.display()))?;
    let score = oom_score_above(&score).context(|| format!("parse {}", of_parent.display()))?;
    let of_server = oom_score_file(pid as u32);
    match fs::write(&of_server, score.to_string()) {
        // Without privilege a score can only be raised: the server's may be higher already.
        Err(e) if e.kind() == ErrorKind::PermissionDenied => Ok(()),
        result => result.context(|| format!("write {}", of_server.display())),
    }
}

fn oom_score_file(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/oom_score_adj"))
}

fn oom_score_above(parents: &str) -> std::result::Result<i32, std::num::ParseIntError> {
    let score: i32 = parents.trim().parse()?;
    Ok(score.saturating_add(1).min(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKET: &str = "unix:///run/containerd/s/abc";

    fn flags() -> Flags {
        Flags {
            id: "c1".into(),
            namespace: "k8s.io".into(),
            address: "/run/c.sock".into(),
            ttrpc_address: "/run/c.sock.ttrpc".into(),
            ..Flags::default()
        }
    }

    /// What `flags` alone ask for.
    fn plain() -> Request {
        Request {
            dialect: Dialect::Plain,
            debug: false,
            grpc_address: "/run/c.sock".into(),
            ttrpc_address: "/run/c.sock.ttrpc".into(),
            socket_dir: None,
            options: Options::default(),
        }
    }

    fn crun_in_shims() -> Options {
        Options {
            shim_cgroup: "/shims".into(),
            binary_name: "crun".into(),
            ..Options::default()
        }
    }

    /// `Any` of the options above, as Go encodes it.
    const OPTIONS: &[u8] = b"\x0a\x2etypes.containerd.io/containerd.runc.v1.Options\
        \x12\x0e\x1a\x06/shims\x32\x04crun";

    /// `BootstrapParams` as Go encodes them: id, namespace, debug, version, ttrpc and
    /// gRPC address, binary, options, socket_dir; an extension that is not for us first.
    fn params() -> Vec<u8> {
        let mut bytes = b"\x0a\x02c1\x12\x06k8s.io\
            \x18\xfc\xff\xff\xff\xff\xff\xff\xff\xff\x01\x22\x06v2.3.0\
            \x2a\x07/t.sock\x32\x07/g.sock\x3a\x0f/bin/containerd\
            \x42\x0b\x0a\x09\x0a\x01x\x12\x04\x00\x01\x02\x03"
            .to_vec();
        bytes.extend_from_slice(&[0x42, OPTIONS.len() as u8 + 2, 0x0a, OPTIONS.len() as u8]);
        bytes.extend_from_slice(OPTIONS);
        bytes.extend_from_slice(b"\x4a\x06/run/s");
        bytes
    }

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn empty_input_is_containerd_before_2_3() {
        assert_eq!(Request::decode(&flags(), b""), Ok(plain()));
        let debug = Flags {
            debug: true,
            json_reply: true,
            ..flags()
        };
        let expected = Request {
            debug: true,
            dialect: Dialect::Json,
            ..plain()
        };
        assert_eq!(Request::decode(&debug, b""), Ok(expected));
    }

    #[test]
    fn options_are_containerd_before_2_3() {
        let expected = Request {
            options: crun_in_shims(),
            ..plain()
        };
        assert_eq!(Request::decode(&flags(), OPTIONS), Ok(expected));
        // Defaults are no bytes at all: this is also BootstrapParams with an id.
        let empty = b"\x0a\x1acontainerd.runc.v1.Options";
        assert_eq!(Request::decode(&flags(), empty), Ok(plain()));
    }

    /// Create refuses them: there the client learns it.
    #[test]
    fn options_of_another_type_are_ignored_by_start() {
        let got = Request::decode(&flags(), b"\x0a\x09some.Type");
        assert_eq!(got, Ok(plain()));
    }

    #[test]
    fn bootstrap_params_are_containerd_2_3() {
        let expected = Request {
            dialect: Dialect::Protobuf,
            debug: true,
            grpc_address: "/g.sock".into(),
            ttrpc_address: "/t.sock".into(),
            socket_dir: Some("/run/s".into()),
            options: crun_in_shims(),
        };
        assert_eq!(Request::decode(&flags(), &params()), Ok(expected));
    }

    #[test]
    fn flags_replace_missing_params() {
        let got = Request::decode(&flags(), b"\x0a\x02c1\x12\x06k8s.io\x4a\x00");
        let expected = Request {
            dialect: Dialect::Protobuf,
            ..plain()
        };
        assert_eq!(got, Ok(expected));
    }

    #[test]
    fn log_levels_above_debug_are_not_debug() {
        for (level, debug) in [
            (&b"\x18\xfd\xff\xff\xff\xff\xff\xff\xff\xff\x01"[..], false),
            (b"\x18\x04", false),
            (b"\x18\xf8\xff\xff\xff\xff\xff\xff\xff\xff\x01", true),
        ] {
            let input = [b"\x0a\x02c1\x12\x06k8s.io", level].concat();
            assert_eq!(
                Request::decode(&flags(), &input).unwrap().debug,
                debug,
                "{level:?}"
            );
        }
    }

    #[test]
    fn bad_input_is_refused() {
        let error = Request::decode(&flags(), b"\xff\xfe\x01").unwrap_err();
        assert!(
            error.to_string().starts_with("decode standard input: "),
            "{error}"
        );
        let broken = b"\x0a\x02c1\x12\x06k8s.io\x42\x21\x0a\x1f\x0a\x1acontainerd.runc.v1.Options\x12\x01\x08";
        let error = Request::decode(&flags(), broken).unwrap_err().to_string();
        assert!(
            error.starts_with("decode options: containerd.runc.v1.Options: "),
            "{error}"
        );
    }

    #[test]
    fn encoded_replies() {
        let encode = |dialect: Dialect| {
            let reply = dialect.encode(SOCKET.into(), dialect.version());
            reply.unwrap()
        };
        assert_eq!(encode(Dialect::Plain), SOCKET.as_bytes());
        assert_eq!(
            encode(Dialect::Protobuf),
            b"\x08\x03\x12\x1cunix:///run/containerd/s/abc\x1a\x05ttrpc"
        );
        let json: serde_json::Value = serde_json::from_slice(&encode(Dialect::Json)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"version": 3, "address": SOCKET, "protocol": "ttrpc"})
        );
        let json = Dialect::Plain.encode(SOCKET.into(), Version::V3).unwrap();
        assert_eq!(json, encode(Dialect::Json));
        let json = Dialect::Json.encode(SOCKET.into(), Version::V2).unwrap();
        assert!(String::from_utf8(json).unwrap().contains("\"version\":2"));
    }

    #[test]
    fn pods_by_annotation() {
        let sandbox = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#;
        assert_eq!(group(&spec(sandbox), "c1"), "pod");
        let both = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}"#;
        assert_eq!(group(&spec(both), "c1"), "g");
        let empty = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":""}}"#;
        assert_eq!(group(&spec(empty), "c1"), "");
        assert_eq!(group(&spec(r#"{"annotations":{"other":"x"}}"#), "c1"), "c1");
        assert_eq!(group(&spec("{}"), "c1"), "c1");
    }

    #[test]
    fn oom_scores() {
        for (parent, expected) in [
            ("-999\n", -998),
            ("0\n", 1),
            ("999\n", 1000),
            ("1000\n", 1000),
        ] {
            assert_eq!(oom_score_above(parent), Ok(expected));
        }
        assert!(oom_score_above("").is_err());
    }

    /// A bundle and a request whose socket is in it.
    fn bundle(dialect: Dialect) -> (tempfile::TempDir, Bundle, Request) {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(dir.path().join("b"));
        fs::create_dir(bundle.path()).unwrap();
        let sandbox = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#;
        fs::write(bundle.path().join("config.json"), sandbox).unwrap();
        let request = Request {
            dialect,
            socket_dir: Some(dir.path().join("s").display().to_string()),
            ..plain()
        };
        (dir, bundle, request)
    }

    #[test]
    fn start_replies_with_the_live_server_of_the_pod() {
        for dialect in [Dialect::Plain, Dialect::Json, Dialect::Protobuf] {
            let (dir, bundle, request) = bundle(dialect);
            let socket_dir = request.socket_dir.as_deref().unwrap();
            let path = socket::path(socket_dir, "/run/c.sock", "k8s.io", "pod");
            let claim = socket::claim(&path).unwrap();
            let mut reply = Vec::new();
            start(&flags(), &request, &bundle, &mut reply).unwrap();
            let address = socket::address(&path);
            assert_eq!(
                reply,
                dialect.encode(address.clone(), dialect.version()).unwrap()
            );
            let written = (dialect != Dialect::Protobuf).then_some(address);
            assert_eq!(bundle.address(), Ok(written));
            assert_eq!(
                fs::read_link(bundle.path().join("s")).unwrap(),
                dir.path().join("s")
            );
            drop(claim);
        }
    }

    #[test]
    fn start_without_a_spec_creates_nothing() {
        let (dir, bundle, request) = bundle(Dialect::Plain);
        fs::remove_file(bundle.path().join("config.json")).unwrap();
        let error = start(&flags(), &request, &bundle, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("config.json"), "{error}");
        assert!(!dir.path().join("s").exists());
    }
}
