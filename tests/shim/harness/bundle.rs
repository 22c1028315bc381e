//! Bundles as the daemon makes them: `config.json`, `rootfs/`, the log FIFO.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};

/// A small `config.json`: private pid, ipc, uts and mount namespaces, a read-only rootfs.
pub fn spec(args: &[&str], cgroup: &str) -> Value {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let capabilities = json!(["CAP_KILL", "CAP_CHOWN"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
        },
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/tmp", "tmpfs", &["nosuid", "mode=1777"]),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
            ],
        },
    })
}

/// An exec's `process` object.
pub fn process(args: &[&str]) -> Value {
    spec(args, "")["process"].take()
}

/// A rootfs with busybox, made once and shared: containers bind it read-only.
pub fn rootfs() -> &'static Path {
    static ROOTFS: OnceLock<PathBuf> = OnceLock::new();
    ROOTFS.get_or_init(|| {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rootfs");
        if !place.exists() {
            let built = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
            populate(built.path());
            // Another run may have been faster; both are the same.
            let _ = fs::rename(built.keep(), &place);
        }
        place
    })
}

fn populate(root: &Path) {
    const APPLETS: &str = "sh cat echo sleep true false kill dd head id stty mkdir ps seq sha256sum \
                           setsid tail test touch tty printf wc yes hostname env nc ls";
    for dir in ["bin", "proc", "dev", "sys", "tmp", "run", "etc"] {
        fs::create_dir(root.join(dir)).expect("make a directory");
    }
    let busybox = std::env::var("BUSYBOX").unwrap_or("/bin/busybox".into());
    fs::copy(&busybox, root.join("bin/busybox")).unwrap_or_else(|e| {
        panic!("copy {busybox} (a static busybox is needed; BUSYBOX says where it is): {e}")
    });
    for applet in APPLETS.split_whitespace() {
        symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
    }
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(root, mode).expect("open the rootfs to all");
}
