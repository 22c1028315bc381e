//! The world a case runs in, and what must be left in it afterwards: nothing.
//!
//! A test starts `hack/daemon VERSION`, which starts this same program for this
//! same test inside the world; there the case runs, and sees only its own
//! processes, mounts and `/run/containerd`. However a case ends, the kernel takes
//! its world away.

use std::fmt::Write;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Set inside a world; its value is the name of the test.
const INSIDE: &str = "DAEMON_TEST";

/// The longest that anything a daemon or shim does may take here.
pub fn limit() -> Duration {
    scaled(30)
}

/// A case that hangs gives up after this; most of its steps have their own, shorter limit.
fn case_limit() -> Duration {
    scaled(if is_heavy() { 900 } else { 100 })
}

/// If even that does not end its world, it is killed after this.
fn world_limit() -> Duration {
    case_limit() + Duration::from_secs(50)
}

/// Whether the cases are to move as much as possible (`HEAVY=1`).
pub fn is_heavy() -> bool {
    std::env::var("HEAVY").is_ok_and(|value| value == "1")
}

/// This many seconds, `PATIENCE` times: an emulated machine needs more than a real one.
fn scaled(seconds: u64) -> Duration {
    let factor = std::env::var("PATIENCE").map_or(1, |factor| {
        factor.parse().expect("PATIENCE is a whole number")
    });
    Duration::from_secs(seconds * factor)
}

/// Runs `case` in a world of its own beside containerd `version`; `test` is the
/// full name of the calling test.
pub fn enter(version: &str, test: &str, case: impl FnOnce()) {
    enter_with(version, &[], test, case);
}

/// As [`enter`], with these variables for `hack/daemon`.
pub fn enter_with(version: &str, variables: &[(&str, &str)], test: &str, case: impl FnOnce()) {
    let name = test.split_once("::").expect("a path with its crate").1;
    if std::env::var(INSIDE).as_deref() == Ok(name) {
        let _log = LogOnPanic;
        std::thread::spawn(|| {
            std::thread::sleep(case_limit());
            println!("the case has not ended after {:?}", case_limit());
            std::process::exit(1);
        });
        case();
        assert_nothing_left();
        return;
    }
    let output = Command::new("timeout")
        .args(["--signal=KILL", &world_limit().as_secs().to_string()])
        .args([&daemon_script(), version])
        .arg(std::env::current_exe().expect("this program's path"))
        .args(["--exact", name, "--nocapture", "--quiet"])
        .env(INSIDE, name)
        .envs(variables.iter().copied())
        .env("RUST_BACKTRACE", "0")
        .process_group(0)
        .output()
        .expect("run timeout(1)");
    let both = [output.stdout, output.stderr].concat();
    for line in String::from_utf8_lossy(&both).lines() {
        println!("  | {line}");
    }
    let status = output.status;
    assert!(status.success(), "the test inside the world: {status}");
}

/// Waits until `done` holds; fails naming `what` after [`limit`].
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = limit();
    let deadline = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether CRIU works on this machine. Where it does not, that is said; with `NO_SKIP`
/// set it is a failure.
pub fn criu_works() -> bool {
    let check = Command::new("criu").arg("check").output();
    let works = check.as_ref().is_ok_and(|check| check.status.success());
    if !works {
        assert!(std::env::var_os("NO_SKIP").is_none(), "{check:?}");
        println!("SKIPPED: criu check: {check:?}");
    }
    works
}

/// Kills this world's containerd, as a crash would.
pub fn stop_containerd() {
    control("stop");
}

/// Starts the containerd again, and waits until it answers.
pub fn start_containerd() {
    control("start");
}

fn control(verb: &str) {
    let status = Command::new(daemon_script()).arg(verb).status();
    assert!(
        status.expect("run hack/daemon").success(),
        "hack/daemon {verb} failed"
    );
}

fn daemon_script() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/hack/daemon").to_owned()
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

/// This process, and those that it was started by, up to the world's first.
fn ancestors() -> Vec<i32> {
    let mut pids = vec![std::process::id() as i32];
    while let Some(pid) = pids.last().filter(|pid| **pid > 1) {
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
            break;
        };
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        pids.push(parent.and_then(|pid| pid.trim().parse().ok()).unwrap_or(1));
    }
    pids
}

/// The pids of this world's shim servers. (`start` and `delete` end by themselves.)
pub fn shims() -> Vec<i32> {
    let shim = |line: &str| line.contains(" -namespace ") && line.contains(" -address ");
    processes()
        .into_iter()
        .filter(|(_, line)| shim(line))
        .map(|(pid, _)| pid)
        .collect()
}

/// Fails unless no process, mount, cgroup, socket or state of any container is left.
fn assert_nothing_left() {
    let limit = limit();
    let deadline = Instant::now() + limit;
    loop {
        let left = left_overs();
        if left.is_empty() {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "left behind after {limit:?}:\n{left}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let log = fs::read_to_string("/run/containerd/daemon.log").unwrap_or_default();
    assert!(
        !log.contains("panicked at"),
        "a shim panicked, see the daemon's log"
    );
}

fn left_overs() -> String {
    let mut left = String::new();
    let daemon = fs::read_to_string("/run/containerd/daemon.pid").unwrap_or_default();
    let mut ours = ancestors();
    ours.push(daemon.trim().parse().unwrap_or(0));
    for (pid, line) in processes() {
        if !ours.contains(&pid) {
            let _ = writeln!(left, "process {pid} {line}");
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    for line in mounts
        .lines()
        .filter(|line| line.contains("/run/containerd/"))
    {
        let _ = writeln!(left, "mount {line}");
    }
    let namespace = namespace();
    let mut places = vec!["/run/containerd/s".to_owned()];
    // CRI's containers are always in k8s.io.
    for namespace in [&namespace, "k8s.io"] {
        for root in ["/run/containerd", "/var/lib/containerd"] {
            places.push(format!("{root}/io.containerd.runtime.v2.task/{namespace}"));
        }
        places.push(format!("/run/containerd/runc/{namespace}"));
    }
    for controller in names("/sys/fs/cgroup") {
        places.push(format!("/sys/fs/cgroup/{controller}/{namespace}"));
    }
    places.push(format!("/sys/fs/cgroup/{namespace}"));
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

/// containerd's namespace, which `hack/daemon` chooses.
pub fn namespace() -> String {
    std::env::var("CONTAINERD_NAMESPACE").expect("hack/daemon sets the namespace")
}

/// Shows what was going on when a case failed.
struct LogOnPanic;

impl Drop for LogOnPanic {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let log = fs::read_to_string("/run/containerd/daemon.log").unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        println!("--- the end of containerd's log");
        for line in &lines[lines.len().saturating_sub(25)..] {
            println!("{line}");
        }
        println!("--- processes");
        for (pid, line) in processes() {
            println!("{pid} {line}");
        }
    }
}
