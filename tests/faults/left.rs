//! What is left of a daemon's containers after all that containerd does for their removal:
//! processes, mounts, cgroups, sockets, the runtime's state, files that cannot be removed,
//! temporary files. The bundles and FIFOs are containerd's to remove, and are removed here.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Daemon, process, scaled};

/// How long what is dying may take to be gone.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Has the shim keep its temporary files where they are counted.
pub fn arrange(d: &Daemon) {
    let tmp = d.path("tmp");
    fs::create_dir(&tmp).expect("make the directory for temporary files");
    for name in ["TMPDIR", "XDG_RUNTIME_DIR"] {
        d.set_env(name, tmp.to_str().unwrap());
    }
}

/// What is left, once nothing of it is going away any more; nothing, if all is well.
pub fn settled(d: &Daemon) -> Vec<String> {
    let deadline = Instant::now() + scaled(SETTLE_TIMEOUT).min(2 * d.hang_timeout);
    loop {
        let left = left(d);
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        // Nothing announces it: it is looked at again, not too often on a busy machine.
        let _ = nix::poll::poll(&mut [], 50_u16);
    }
}

fn left(d: &Daemon) -> Vec<String> {
    d.stop_reading_logs();
    let mut found = processes(d.dir());
    let containers = d.containers();
    found.extend(containers.iter().flat_map(|id| d.leftovers(id)));
    found.extend(d.sockets().iter().map(|path| format!("socket {path}")));
    let state = d.runtime_root().join(&d.namespace);
    found.extend(
        names(&state)
            .iter()
            .map(|name| format!("state {name} of the runtime")),
    );
    found.extend(
        names(&d.path("tmp"))
            .iter()
            .map(|name| format!("temporary file {name}")),
    );
    found.extend(
        containers
            .iter()
            .filter_map(|id| remove_bundle(&d.bundles_dir().join(id))),
    );
    found
}

/// As containerd does; what stands in the way, if something does.
fn remove_bundle(bundle: &Path) -> Option<String> {
    match fs::remove_dir_all(bundle) {
        Err(error) if bundle.exists() => Some(format!("bundle {}: {error}", bundle.display())),
        _ => None,
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// The processes that have to do with `dir`: by their command line, environment, working
/// directory, program or descriptors. Ours reads the FIFOs, and is none.
fn processes(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let pids = names(Path::new("/proc"))
        .into_iter()
        .filter_map(|name| name.parse::<u32>().ok());
    let others = pids.filter(|pid| *pid != std::process::id());
    others
        .filter_map(|pid| Some(format!("process {pid} ({}): {}", comm(pid), has(pid, dir)?)))
        .collect()
}

fn comm(pid: u32) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim().into()
}

/// What process `pid` has of `dir`.
fn has(pid: u32, dir: &str) -> Option<String> {
    let proc = format!("/proc/{pid}");
    for file in ["cmdline", "environ"] {
        let bytes = fs::read(format!("{proc}/{file}")).unwrap_or_default();
        if String::from_utf8_lossy(&bytes).contains(dir) {
            return Some(file.into());
        }
    }
    let descriptors = names(Path::new(&format!("{proc}/fd")));
    let links = ["cwd".to_string(), "exe".to_string()].into_iter();
    let links = links.chain(descriptors.iter().map(|fd| format!("fd/{fd}")));
    links
        .filter_map(|link| fs::read_link(format!("{proc}/{link}")).ok())
        .find_map(|target| {
            target
                .starts_with(dir)
                .then(|| target.display().to_string())
        })
}

/// What nobody removed is found: each kind of it.
#[test]
fn everything_that_is_left_is_found() {
    let d = &Daemon::new(crate::verdict::api(), crate::harness::hang_timeout());
    arrange(d);
    let c = d.running("c");
    c.kill_shim();
    fs::write(d.path("tmp").join("forgotten"), "").expect("write a file");
    let mut sleep = std::process::Command::new("sleep");
    let process = process::spawn(sleep.arg("inf").current_dir(d.dir())).id() as i32;
    let left = left(d);
    process::signal(process, Signal::SIGKILL);
    let kinds = [
        &format!("process {process} (sleep)"),
        "cgroup ",
        "mount ",
        "the runtime's state ",
        "socket ",
        "state c ",
        "temporary file forgotten",
        "bundle ",
    ];
    for kind in kinds {
        assert!(
            left.iter().any(|what| what.starts_with(kind)),
            "no {kind}: {left:?}"
        );
    }
}
