//! A harness that plays containerd against any shim's binary.
//!
//! Promises: everything waits for an event with a deadline that stands for "does not
//! hang", and names what it waited for; whatever a test leaves is torn down, by means
//! that do not need the shim; tests share nothing but the machine.
//!
//! - `SHIM_UNDER_TEST`: the binary (default: this crate's static release build);
//! - `OCI_RUNTIME`: `runc` (default), `crun`, `youki`, given to the shim in the options;
//! - `CGROUP_DRIVER`: `systemd`, where that is the init (default: none, the runtime);
//! - `TASK_API`: `v2` or `v3` (default: each that the shim serves);
//! - `PATIENCE`: how many times longer than usual everything may take, as on an
//!   emulated machine (default: 1).

pub mod bundle;
pub mod container;
pub mod daemon;
pub mod events;
#[allow(
    dead_code,
    reason = "for `tests/faults`, `tests/daemon` and `tests/budget`"
)]
pub mod footprint;
pub mod machine;
pub mod process;
pub mod rpc;
pub mod runtime;
#[allow(dead_code, reason = "tests/faults has no sandboxes")]
pub mod sandbox;
pub mod seccomp;
mod server;
pub mod stdio;
pub mod task;
mod which;

use std::sync::OnceLock;
use std::time::Duration;

use containerd_shim_rs_v2::proto::task::{ConnectRequest, ConnectResponse};

pub use self::container::{Stdio, any};
pub use self::daemon::{Daemon, Dialect};
pub use self::process::write_program;
pub use self::rpc::{Code, Refused};
pub use self::task::Api;
pub use self::which::Shim;

/// Long enough for a busy machine: passing it means "hangs".
pub fn hang_timeout() -> Duration {
    scaled(Duration::from_secs(20))
}

/// For what is expected to fail, which may mean to hang.
pub fn short_hang_timeout() -> Duration {
    scaled(Duration::from_secs(4))
}

/// `PATIENCE` times as long.
pub fn scaled(usual: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| match std::env::var("PATIENCE") {
        Ok(factor) => factor.parse().expect("PATIENCE is a whole number"),
        Err(_) => 1,
    });
    usual * *factor
}

/// The binary under test.
pub fn shim_binary() -> &'static str {
    static BINARY: OnceLock<String> = OnceLock::new();
    BINARY.get_or_init(|| {
        const OURS: &str = "x86_64-unknown-linux-musl/release/containerd-shim-rs-v2";
        let target = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
            .parent()
            .unwrap();
        let ours = || target.join(OURS).to_str().unwrap().into();
        let binary = std::env::var("SHIM_UNDER_TEST").unwrap_or_else(|_| ours());
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        absolute(&binary)
            .unwrap_or_else(|e| panic!("shim {binary}: {e}: build it, or set SHIM_UNDER_TEST"))
    })
}

/// containerd's own shim that serves this version of the Task service, and no other.
pub fn go_shim(api: Api) -> &'static str {
    match api {
        Api::V2 => "/usr/bin/containerd-shim-runc-v2",
        Api::V3 => concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/build/containerd-2/usr/bin/containerd-shim-runc-v2"
        ),
    }
}

/// The OCI runtime's name or path.
pub fn runtime() -> &'static str {
    static RUNTIME: OnceLock<String> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = std::env::var("OCI_RUNTIME").unwrap_or("runc".into());
        match runtime.contains('/') {
            true => absolute(&runtime).unwrap_or_else(|e| panic!("OCI runtime {runtime}: {e}")),
            false => runtime,
        }
    })
}

/// A path that means the same in a bundle's directory, where shims run.
fn absolute(path: &str) -> std::io::Result<String> {
    Ok(std::fs::canonicalize(path)?.to_str().unwrap().into())
}

/// Whether systemd is to make the cgroups.
pub fn systemd() -> bool {
    std::env::var("CGROUP_DRIVER").is_ok_and(|driver| driver == "systemd")
}

/// Which shim is under test, by what `-v` says.
pub fn shim() -> Shim {
    static SHIM: OnceLock<Shim> = OnceLock::new();
    *SHIM.get_or_init(|| {
        let output = process::run(
            std::process::Command::new(shim_binary()).arg("-v"),
            &[],
            hang_timeout(),
        );
        Shim::of_version(&output.stdout_text())
    })
}

/// The versions of the Task service to test.
pub fn apis() -> &'static [Api] {
    static APIS: OnceLock<Vec<Api>> = OnceLock::new();
    APIS.get_or_init(|| {
        let wanted: &[Api] = match std::env::var("TASK_API").as_deref() {
            Ok("v2") => &[Api::V2],
            Ok("v3") => &[Api::V3],
            _ => &[Api::V2, Api::V3],
        };
        wanted.iter().copied().filter(|&api| serves(api)).collect()
    })
}

/// Whether the shim serves this version.
fn serves(api: Api) -> bool {
    let daemon = Daemon::new(api, hang_timeout());
    let builder = daemon.container("probe", &["true"]);
    let output = daemon.start(Dialect::Legacy, "probe", &builder.bundle(), None);
    let started = daemon.answer(Dialect::Legacy, &output);
    let connection =
        rpc::Connection::open(&started.address, hang_timeout()).expect("dial the shim");
    let connect = |api: Api| {
        let request = ConnectRequest {
            id: "probe".into(),
            ..Default::default()
        };
        connection.call::<ConnectResponse>(api.service(), "Connect", &request)
    };
    connect(api).is_ok()
}
