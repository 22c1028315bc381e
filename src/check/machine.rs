//! The kernel, cgroups and limits, as `/proc` and `/sys` tell.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, geteuid};

use super::Finding;
use super::programs::numbers;
use crate::cgroup;
use crate::socket;
use crate::sys::calls::{Call, is_supported};
use crate::sys::mount::each_mount;

/// The oldest Linux that the shim runs on.
const OLDEST_LINUX: (u32, u32) = (4, 18);

/// Descriptors below which a server refuses a container or an exec soon; at the lower number,
/// at once.
const FEW_DESCRIPTORS: u64 = 1024;
const TOO_FEW_DESCRIPTORS: u64 = 128;

/// Processes that must be left below `pids.max`: a pod takes some ten, with its servers' threads
/// and the OCI runtime's.
const FEW_PROCESSES: u64 = 200;

/// The kernel's default of `pipe-user-pages-soft`, in pages.
const USUAL_PIPE_PAGES: u64 = 16384;

/// Bits of `CapEff`.
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// Calls that may be missing, and what happens without them.
const CALLS: [(Call, &str, &str); 5] = [
    (
        Call::CloseRange,
        "close_range",
        "descriptors are closed one by one",
    ),
    (
        Call::MemfdCreate,
        "memfd_create",
        "the OCI runtime's logs are files without a name",
    ),
    (
        Call::Openat2,
        "openat2",
        "mount targets are followed step by step",
    ),
    (
        Call::PidfdOpen,
        "pidfd_open",
        "processes that are no children are killed by their number",
    ),
    (
        Call::PidfdSendSignal,
        "pidfd_send_signal",
        "processes that are no children are killed by their number",
    ),
];

/// Features by the Linux that brought them, and what happens without them.
const FEATURES: [(u32, u32, &str, &str); 7] = [
    (
        4,
        20,
        "pressure metrics",
        "with cgroup v2, not among the metrics",
    ),
    (5, 2, "freezer of cgroup v2", "with cgroup v2, Pause fails"),
    (5, 8, "LOOP_CONFIGURE", "loop devices take two calls"),
    (
        5,
        12,
        "id-mapped mounts",
        "containers that ask for them fail",
    ),
    (
        5,
        14,
        "cgroup.kill, core scheduling",
        "cgroups are killed one process at a time; SCHED_CORE fails",
    ),
    (
        5,
        19,
        "memory.peak, id-mapped overlay",
        "with cgroup v2, not among the metrics; overlay cannot be id-mapped",
    ),
    (
        6,
        5,
        "memory.swap.peak",
        "with cgroup v2, not among the metrics",
    ),
];

/// Controllers, and what is not available without them. With v2, `devices` and `freezer` are
/// no controllers.
const CONTROLLERS: [(&str, &str); 7] = [
    ("memory", "no memory limits, OOM events and memory metrics"),
    ("pids", "no limit and no number of processes"),
    ("cpu", "no limits and shares of CPU time"),
    ("cpuset", "no binding to CPUs"),
    (IO, "no limits and metrics of I/O"),
    ("freezer", "Pause fails"),
    (
        "hugetlb",
        "no limits and metrics of huge pages; crun makes plain directories in its place",
    ),
];

/// Called `blkio` in v1.
const IO: &str = "io";

/// The system whose root is `root`.
pub fn look(root: &Path) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let mut findings = kernel(read("proc/sys/kernel/osrelease").trim());
    findings.push(calls(is_supported));
    findings.extend(cgroups(root));
    let systemd = match cgroup::systemd_runs(root) {
        true => "runs",
        false => "does not run",
    };
    findings.push(Finding::good("systemd", systemd));
    let number = |path: &str| read(path).trim().parse().ok();
    findings.push(pipes(
        number("proc/sys/fs/pipe-user-pages-soft"),
        number("proc/sys/fs/pipe-user-pages-hard"),
    ));
    findings.push(inotify(number("proc/sys/fs/inotify/max_user_instances")));
    findings.push(socket_dir(root));
    findings
}

fn kernel(release: &str) -> Vec<Finding> {
    let finding = Finding::good("kernel", format!("Linux {release}"));
    let Some(version) = numbers(release) else {
        return vec![finding.note("its version cannot be read; it must be 4.18 or newer")];
    };
    if version < OLDEST_LINUX {
        return vec![finding.mend("Linux 4.18 or newer is needed")];
    }
    let missing = FEATURES.iter().filter(|(a, b, _, _)| version < (*a, *b));
    let missing = missing.map(|(a, b, name, without)| {
        let found = format!("since Linux {a}.{b}");
        Finding::good(*name, found).note(*without)
    });
    [finding].into_iter().chain(missing).collect()
}

/// All calls in one finding: what is missing has older means.
fn calls(is_supported: impl Fn(Call) -> bool) -> Finding {
    let missing: Vec<_> = CALLS
        .iter()
        .filter(|(call, _, _)| !is_supported(*call))
        .collect();
    let text = |of: fn(&(Call, &'static str, &'static str)) -> &'static str, between| {
        let mut words: Vec<&str> = missing.iter().map(|entry| of(entry)).collect();
        words.dedup();
        words.join(between)
    };
    let finding = |found: String| Finding::good("system calls", found);
    match missing.is_empty() {
        true => finding("all that are used".into()),
        false => {
            finding(format!("no {}", text(|entry| entry.1, ", "))).note(text(|entry| entry.2, "; "))
        }
    }
}

fn cgroups(root: &Path) -> Vec<Finding> {
    let (mut unified, mut has_v2, mut v1) = (false, false, Vec::new());
    let file = root.join("proc/self/mountinfo");
    let read = each_mount(&file, |mount| {
        if mount.is("cgroup2") {
            has_v2 = true;
            unified |= mount.point() == Path::new("/sys/fs/cgroup");
        } else if mount.is("cgroup") {
            let names = CONTROLLERS.iter().map(|(name, _)| v1_name(name));
            v1.extend(
                names
                    .chain(["devices"])
                    .filter(|name| mount.has_option(name)),
            );
        }
    });
    if let Err(error) = read {
        let finding = Finding::good("cgroups", format!("read {}: {error}", file.display()));
        return vec![finding.mend("mount /proc")];
    }
    let (mode, present): (&str, Vec<String>) = match (unified, v1.is_empty()) {
        (true, _) => {
            let file = root.join("sys/fs/cgroup/cgroup.controllers");
            let text = fs::read_to_string(file).unwrap_or_default();
            ("v2", text.split_whitespace().map(str::to_owned).collect())
        }
        (false, true) => {
            let finding = Finding::good("cgroups", "not mounted");
            return vec![finding.mend("mount cgroup v2 (or v1) at /sys/fs/cgroup")];
        }
        (false, false) => {
            let mode = if has_v2 { "hybrid" } else { "v1" };
            (mode, v1.into_iter().map(str::to_owned).collect())
        }
    };
    let found = format!("{mode}: {}", present.join(" "));
    [Finding::good("cgroups", found)]
        .into_iter()
        .chain(missing_controllers(mode == "v2", &present))
        .collect()
}

fn v1_name(controller: &str) -> &str {
    match controller {
        IO => "blkio",
        name => name,
    }
}

fn missing_controllers(is_v2: bool, present: &[String]) -> Vec<Finding> {
    let lacks = |name: &str| present.iter().all(|present| present != name);
    let mut findings = Vec::new();
    for (name, without) in CONTROLLERS {
        // crun needs hugetlb with v1 only, and v2 has freezers everywhere.
        if is_v2 && ["freezer", "hugetlb"].contains(&name) {
            continue;
        }
        let name = if is_v2 { name } else { v1_name(name) };
        if lacks(name) {
            let finding = Finding::good(format!("cgroup controller {name}"), "missing");
            findings.push(finding.note(without));
        }
    }
    if !is_v2 && lacks("devices") {
        let finding = Finding::good("cgroup controller devices", "missing");
        findings.push(finding.mend("runc refuses to create containers: mount it"));
    }
    findings
}

fn pipes(soft: Option<u64>, hard: Option<u64>) -> Finding {
    let (Some(soft), Some(hard)) = (soft, hard) else {
        return Finding::good("pipe quota", "unknown").note("/proc/sys/fs cannot be read");
    };
    let found = format!("soft {soft} pages, hard {hard} (0: none)");
    let finding = Finding::good("pipe quota", found);
    match (soft, hard) {
        (1..USUAL_PIPE_PAGES, _) => finding.note(
            "beyond it new pipes of unprivileged processes are small: raise fs.pipe-user-pages-soft",
        ),
        (_, 1..) => {
            finding.note("beyond the hard one unprivileged processes of a user get no pipes")
        }
        _ => finding,
    }
}

fn inotify(instances: Option<u64>) -> Finding {
    match instances {
        // The kernel's default.
        Some(count @ 128..) => Finding::good("inotify instances", format!("{count} a user")),
        Some(count) => Finding::good("inotify instances", format!("{count} a user")).note(
            "this shim uses none, but containerd, kubelet and Go's shims do: \
             raise fs.inotify.max_user_instances",
        ),
        None => Finding::good("inotify instances", "unknown").note("/proc/sys/fs cannot be read"),
    }
}

/// Whether servers' sockets can be made.
fn socket_dir(root: &Path) -> Finding {
    let dir = root.join(socket::DEFAULT_DIR.trim_start_matches('/'));
    let finding = |found: &str| Finding::good(socket::DEFAULT_DIR, found);
    let existing = dir
        .ancestors()
        .find(|path| fs::symlink_metadata(path).is_ok());
    let existing = existing.unwrap_or(root);
    let shown = || Path::new("/").join(existing.strip_prefix(root).unwrap_or(existing));
    if !existing.is_dir() {
        let text = format!("{} is not a directory: remove it", shown().display());
        return finding("unusable").mend(text);
    }
    if let Err(error) = access(existing, AccessFlags::W_OK | AccessFlags::X_OK) {
        let text = format!("{} cannot be written: {error}", shown().display());
        return match geteuid().is_root() {
            true => finding("unusable").mend(text),
            false => finding("unknown").note(text + ": run this command as root"),
        };
    }
    finding(if existing == dir {
        "usable"
    } else {
        "made when needed"
    })
}

/// The limits of process `pid`, a containerd, which its shims inherit; without it those of this
/// process.
pub fn limits(root: &Path, pid: Option<i32>) -> Vec<Finding> {
    let dir = root
        .join("proc")
        .join(pid.map_or("self".into(), |pid| pid.to_string()));
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let is_this_user = pid.is_none() && !geteuid().is_root();
    let mut findings = vec![
        descriptors(&read("limits")),
        processes(root, &read("cgroup")),
    ];
    findings.push(match is_this_user {
        true => Finding::good("privileges", "unknown").note("run this command as root"),
        false => privileges(&read("status"), &read("uid_map")),
    });
    findings
}

fn descriptors(limits: &str) -> Finding {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let mut words = line.unwrap_or_default().split_whitespace();
    let number = |word: &str| match word {
        "unlimited" => Some(u64::MAX),
        word => word.parse().ok(),
    };
    let (Some(soft), Some(hard)) = (words.next(), words.next()) else {
        return Finding::good("descriptors", "unknown").note("/proc/PID/limits cannot be read");
    };
    let finding = Finding::good("descriptors", format!("soft {soft}, hard {hard}"));
    let advice = "servers refuse containers and execs: raise LimitNOFILE of containerd's service";
    match number(hard) {
        Some(..TOO_FEW_DESCRIPTORS) => finding.mend(advice),
        Some(..FEW_DESCRIPTORS) => finding.note(format!("with many of them, {advice}")),
        _ => finding,
    }
}

/// `cgroups` is the process's `/proc/PID/cgroup`.
fn processes(root: &Path, cgroups: &str) -> Finding {
    let top = root.join("sys/fs/cgroup");
    let mut tightest: Option<(u64, u64, PathBuf)> = None;
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let dir = match controllers {
            "" => top.clone(),
            "pids" => top.join("pids"),
            _ => continue,
        };
        let dir = dir.join(path.trim_start_matches('/'));
        let places = dir.ancestors().take_while(|place| place.starts_with(&top));
        for place in places {
            let number = |name| {
                fs::read_to_string(place.join(name))
                    .ok()?
                    .trim()
                    .parse::<u64>()
                    .ok()
            };
            // `max` is no number.
            let (Some(max), Some(current)) = (number("pids.max"), number("pids.current")) else {
                continue;
            };
            let left = max.saturating_sub(current);
            if tightest
                .as_ref()
                .is_none_or(|(max, current, _)| left < max.saturating_sub(*current))
            {
                tightest = Some((max, current, place.to_owned()));
            }
        }
    }
    let Some((max, current, place)) = tightest else {
        return Finding::good("processes", "no limit");
    };
    let place = place
        .strip_prefix(&top)
        .unwrap_or(&place)
        .display()
        .to_string();
    let finding = Finding::good(
        "processes",
        format!("{current} of {max} in cgroup /{place}"),
    );
    match max.saturating_sub(current) {
        ..FEW_PROCESSES => finding.note(
            "shims and OCI runtimes count, too: raise TasksMax of containerd's service, or pids.max",
        ),
        _ => finding,
    }
}

/// By the process's `status` and `uid_map`.
fn privileges(status: &str, uid_map: &str) -> Finding {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let Some(effective) = effective else {
        return Finding::good("privileges", "unknown").note("/proc/PID/status cannot be read");
    };
    let map: Vec<&str> = uid_map.split_whitespace().collect();
    let is_rootless = !matches!(map[..], [] | ["0", "0", "4294967295"]);
    let place = if is_rootless {
        ", in a user namespace"
    } else {
        ""
    };
    let finding = Finding::good("privileges", format!("CapEff {effective:x}{place}"));
    if effective & CAP_SYS_ADMIN == 0 {
        finding.mend("containers need CAP_SYS_ADMIN: run containerd as root or with rootlesskit")
    } else if is_rootless || effective & CAP_SYS_RESOURCE == 0 {
        finding.note(
            "containers with a lower oom_score_adj than containerd's fail without CAP_SYS_RESOURCE \
             on the host: CRI: restrict_oom_score_adj = true",
        )
    } else {
        finding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(findings: &[Finding]) -> Vec<(&str, &str, &str)> {
        let parts = |finding| -> (&str, &str, &str) {
            let Finding { what, found, .. }: &Finding = finding;
            (what, found, finding.verdict().0)
        };
        findings.iter().map(parts).collect()
    }

    /// A root with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn kernels() {
        assert_eq!(
            verdicts(&kernel("6.12.0-18-amd64")),
            [("kernel", "Linux 6.12.0-18-amd64", "ok")]
        );
        let old = kernel("5.10.0");
        let expected = [
            ("kernel", "Linux 5.10.0", "ok"),
            ("id-mapped mounts", "since Linux 5.12", "note"),
            ("cgroup.kill, core scheduling", "since Linux 5.14", "note"),
            ("memory.peak, id-mapped overlay", "since Linux 5.19", "note"),
            ("memory.swap.peak", "since Linux 6.5", "note"),
        ];
        assert_eq!(verdicts(&old), expected);
        assert_eq!(kernel("4.18.0-513.el8").len(), 1 + FEATURES.len());
        assert_eq!(
            verdicts(&kernel("4.17.1")),
            [("kernel", "Linux 4.17.1", "mend")]
        );
        assert_eq!(verdicts(&kernel("x")), [("kernel", "Linux x", "note")]);
    }

    #[test]
    fn calls_that_are_missing_are_named_with_what_replaces_them() {
        assert_eq!(calls(|_| true).verdict(), ("ok", ""));
        let finding = calls(|call| call == Call::CloseRange || call == Call::MemfdCreate);
        assert_eq!(finding.found, "no openat2, pidfd_open, pidfd_send_signal");
        let expected = "mount targets are followed step by step; \
            processes that are no children are killed by their number";
        assert_eq!(finding.verdict(), ("note", expected));
    }

    #[test]
    fn cgroup_modes_and_their_controllers() {
        const UNIFIED: &str = "30 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let v2 = root(&[
            ("proc/self/mountinfo", UNIFIED),
            ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n"),
        ]);
        let expected = [
            ("cgroups", "v2: cpuset cpu io pids", "ok"),
            ("cgroup controller memory", "missing", "note"),
        ];
        assert_eq!(verdicts(&cgroups(v2.path())), expected);
        let hybrid = "31 30 0:2 / /sys/fs/cgroup/a rw - cgroup c rw,cpu,cpuset,memory,pids,freezer\n\
            32 30 0:3 / /sys/fs/cgroup/b rw - cgroup c rw,blkio\n\
            33 30 0:4 / /sys/fs/cgroup/unified rw - cgroup2 c rw\n";
        let hybrid = root(&[("proc/self/mountinfo", hybrid)]);
        let expected = [
            (
                "cgroups",
                "hybrid: memory pids cpu cpuset freezer blkio",
                "ok",
            ),
            ("cgroup controller hugetlb", "missing", "note"),
            ("cgroup controller devices", "missing", "mend"),
        ];
        assert_eq!(verdicts(&cgroups(hybrid.path())), expected);
        let none = root(&[("proc/self/mountinfo", "31 30 0:2 / /a rw - tmpfs t rw\n")]);
        assert_eq!(
            verdicts(&cgroups(none.path())),
            [("cgroups", "not mounted", "mend")]
        );
        let no_proc = cgroups(Path::new("/no/such/root"));
        assert_eq!((no_proc.len(), no_proc[0].verdict().0), (1, "mend"));
    }

    #[test]
    fn quotas() {
        for (soft, hard, verdict) in [
            (Some(16384), Some(0), "ok"),
            (Some(0), Some(0), "ok"),
            (Some(1024), Some(0), "note"),
            (Some(16384), Some(1), "note"),
            (None, None, "note"),
        ] {
            assert_eq!(pipes(soft, hard).verdict().0, verdict, "{soft:?} {hard:?}");
        }
        assert_eq!(inotify(Some(128)).verdict().0, "ok");
        assert_eq!(inotify(Some(127)).verdict().0, "note");
        assert_eq!(inotify(None).verdict().0, "note");
    }

    #[test]
    fn descriptor_limits() {
        let limits = |soft: &str, hard: &str| {
            let head =
                "Limit      Soft Limit  Hard Limit  Units\nMax cpu time unlimited unlimited s\n";
            descriptors(&format!("{head}Max open files  {soft}  {hard}  files\n"))
        };
        assert_eq!(
            limits("1024", "524288"),
            Finding::good("descriptors", "soft 1024, hard 524288")
        );
        assert_eq!(limits("1024", "unlimited").verdict().0, "ok");
        assert_eq!(limits("64", "1023").verdict().0, "note");
        assert_eq!(limits("64", "127").verdict().0, "mend");
        assert_eq!(descriptors("").verdict().0, "note");
        assert_eq!(descriptors("Max open files").verdict().0, "note");
    }

    #[test]
    fn tightest_limit_of_processes_counts() {
        let v2 = root(&[
            ("sys/fs/cgroup/system.slice/pids.max", "1000\n"),
            ("sys/fs/cgroup/system.slice/pids.current", "900\n"),
            ("sys/fs/cgroup/system.slice/c.service/pids.max", "500\n"),
            ("sys/fs/cgroup/system.slice/c.service/pids.current", "20\n"),
        ]);
        let found = processes(v2.path(), "0::/system.slice/c.service\n");
        let expected = [("processes", "900 of 1000 in cgroup /system.slice", "note")];
        assert_eq!(verdicts(&[found]), expected);
        let v1 = root(&[
            ("sys/fs/cgroup/pids/c/pids.max", "max\n"),
            ("sys/fs/cgroup/pids/c/pids.current", "20\n"),
        ]);
        let lines = "9:name=systemd:/\n8:pids:/c\n";
        assert_eq!(
            processes(v1.path(), lines),
            Finding::good("processes", "no limit")
        );
        fs::write(v1.path().join("sys/fs/cgroup/pids/c/pids.max"), "500").unwrap();
        let expected = Finding::good("processes", "20 of 500 in cgroup /pids/c");
        assert_eq!(processes(v1.path(), lines), expected);
        assert_eq!(
            processes(v1.path(), "broken\n1\n"),
            Finding::good("processes", "no limit")
        );
    }

    #[test]
    fn privileges_of_root_of_a_container_and_of_a_user() {
        let host = "         0          0 4294967295\n";
        let of = |capabilities: &str, map| privileges(&format!("CapEff:\t{capabilities}\n"), map);
        assert_eq!(of("000001ffffffffff", host).verdict().0, "ok");
        assert_eq!(of("000001fffeffffff", host).verdict().0, "note");
        assert_eq!(of("000001ffffffffff", "0 100000 65536").verdict().0, "note");
        assert_eq!(of("00000000a80425fb", host).verdict().0, "mend");
        assert_eq!(of("x", host).verdict().0, "note");
        assert_eq!(privileges("", "").verdict().0, "note");
    }

    #[test]
    fn socket_directory_that_cannot_be_used() {
        let empty = root(&[]);
        assert_eq!(socket_dir(empty.path()).found, "made when needed");
        fs::create_dir_all(empty.path().join("run/containerd/s")).unwrap();
        assert_eq!(socket_dir(empty.path()).found, "usable");
        for (file, at) in [
            ("run/containerd/s", "/run/containerd/s"),
            ("run/containerd", "/run/containerd"),
        ] {
            let finding = socket_dir(root(&[(file, "")]).path());
            let expected = format!("{at} is not a directory: remove it");
            assert_eq!(finding.verdict(), ("mend", &*expected));
        }
    }
}
