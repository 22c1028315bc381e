//! The world a case runs in, and what must be left in it afterwards: nothing.
//!
//! A test starts `hack/docker VERSION`, which starts this same program for this same test inside
//! the world; there the case runs. However it ends, the kernel takes its world away.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Set inside a world; its value is the name of the test.
const INSIDE: &str = "DOCKER_TEST";

/// Where `hack/daemon` puts the shim under test.
pub const SHIMS: &str = "/run/containerd/shims";

/// Seconds that one command or one thing waited for may take.
pub fn limit() -> u64 {
    60 * patience()
}

/// Seconds that a case may take; then its world is killed.
fn world_limit() -> u64 {
    300 * patience()
}

/// How many times slower than a real machine this may be: an emulated one sets `PATIENCE`.
fn patience() -> u64 {
    std::env::var("PATIENCE").map_or(1, |factor| {
        factor.parse().expect("PATIENCE is a whole number")
    })
}

/// containerd's namespace for Docker's containers.
pub const NAMESPACE: &str = "moby";

/// Runs `case` in a world of its own beside Docker `version`; `test` is the full name of the
/// calling test.
pub fn enter(version: &str, test: &str, case: impl FnOnce()) {
    let name = test.split_once("::").expect("a path with its crate").1;
    if std::env::var(INSIDE).as_deref() == Ok(name) {
        let _log = LogOnPanic;
        case();
        assert_nothing_left();
        return;
    }
    let output = Command::new("timeout")
        .args(["--signal=KILL", &world_limit().to_string()])
        .args([&script("docker"), version])
        .arg(std::env::current_exe().expect("this program's path"))
        .args(["--exact", name, "--nocapture", "--quiet"])
        .env(INSIDE, name)
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("run timeout(1)");
    if !output.status.success() {
        let both = [output.stdout, output.stderr].concat();
        for line in String::from_utf8_lossy(&both).lines() {
            println!("  | {line}");
        }
        panic!("the test inside the world: {}", output.status);
    }
}

/// Waits until `done` holds; fails naming `what` after [`limit`].
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    assert!(try_until(&mut done), "waited {} s for {what}", limit());
}

/// Waits until `done` holds, for [`limit`]; returns whether it does.
pub fn try_until(done: &mut dyn FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(limit());
    while !done() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Starts, stops (SIGKILL) or quits (SIGTERM) this world's dockerd or containerd.
pub fn control(daemon: &str, verb: &str) {
    let program = script(daemon);
    let status = Command::new(&program).arg(verb).status();
    assert!(
        status.expect("run a script").success(),
        "{program} {verb} failed"
    );
}

fn script(name: &str) -> String {
    format!("{}/hack/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The command lines of this world's processes, with their pids.
pub fn processes() -> Vec<(i32, String)> {
    names("/proc")
        .iter()
        .filter_map(|name| {
            let pid = name.parse().ok()?;
            let line = fs::read(format!("/proc/{name}/cmdline")).ok()?;
            Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
        })
        .collect()
}

/// The names in a directory; none if it is not there.
pub fn names(directory: impl AsRef<Path>) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// The cgroup that the containers of this world are below, in each hierarchy.
pub fn cgroups() -> Vec<String> {
    let world = std::env::var("CONTAINERD_NAMESPACE").expect("hack/daemon sets it");
    let mut roots = vec![format!("/sys/fs/cgroup/{world}")];
    for controller in names("/sys/fs/cgroup") {
        roots.push(format!("/sys/fs/cgroup/{controller}/{world}"));
    }
    roots.retain(|root| Path::new(root).is_dir());
    roots
}

/// Fails unless no process, mount, cgroup, socket or state of any container is left.
fn assert_nothing_left() {
    let deadline = Instant::now() + Duration::from_secs(limit());
    loop {
        let left = left_overs();
        if left.is_empty() {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "left behind after {} s:\n{left}",
            limit()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let log = fs::read_to_string("/run/containerd/daemon.log").unwrap_or_default();
    assert!(
        !log.contains("panicked at"),
        "a shim panicked, see containerd's log"
    );
}

fn left_overs() -> String {
    let mut left = String::new();
    let pid = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let ours = [
        1,
        std::process::id() as i32,
        pid("/run/containerd/daemon.pid"),
        pid("/run/docker/dockerd.pid"),
    ];
    for (pid, line) in processes() {
        // `hack/docker` waits for this program.
        if !ours.contains(&pid) && !line.contains("hack/docker inside ") {
            let _ = writeln!(left, "process {pid} {line}");
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    for line in mounts.lines() {
        let target = line.split(' ').nth(4).unwrap_or_default();
        if target.starts_with("/run/containerd/") || target.starts_with("/var/lib/docker/") {
            let _ = writeln!(left, "mount {line}");
        }
    }
    let mut places: Vec<String> = [
        "/run/containerd/s",
        "/run/containerd/io.containerd.runtime.v2.task/moby",
        "/var/lib/containerd/io.containerd.runtime.v2.task/moby",
        "/run/containerd/runc/moby",
        "/run/docker/runtime-runc/moby",
        "/run/docker/containerd",
        "/var/lib/docker/containers",
    ]
    .map(str::to_owned)
    .into();
    places.extend(cgroups());
    for place in places {
        let is_cgroup = place.starts_with("/sys/");
        for name in names(&place) {
            let path = Path::new(&place).join(name);
            // A cgroup's own files are not of interest, cgroups below it are.
            if !is_cgroup || path.is_dir() {
                let _ = writeln!(left, "file {}", path.display());
            }
        }
    }
    left
}

/// Shows what was going on when a case failed.
struct LogOnPanic;

impl Drop for LogOnPanic {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for file in ["/run/containerd/daemon.log", "/run/docker/daemon.log"] {
            let log = fs::read_to_string(file).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            println!("--- the end of {file}");
            for line in &lines[lines.len().saturating_sub(25)..] {
                println!("{line}");
            }
        }
        println!("--- processes");
        for (pid, line) in processes() {
            println!("{pid} {line}");
        }
    }
}
