//! OCI runtimes and CRIU: what is on containerd's `PATH`, and what it supports.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Finding;
use super::programs::{find, printed, printed_if_found, version};
use crate::cgroup;
use crate::error::Result;
use crate::reaper::Reaper;

/// The runtimes that the shim is tested with; the first is used unless an option says otherwise.
const RUNTIMES: [&str; 3] = ["runc", "crun", "youki"];

/// What a runtime and its host must agree on.
struct Host {
    /// `v1`, `v2` or `hybrid`.
    cgroup_mode: &'static str,
    has_systemd: bool,
}

/// Where the programs are.
pub struct Found {
    runtimes: [Option<PathBuf>; 3],
    criu: Option<PathBuf>,
}

/// Those on `path`.
pub fn find_all(path: &OsStr) -> Found {
    Found {
        runtimes: RUNTIMES.map(|name| find(path, name)),
        criu: find(path, "criu"),
    }
}

/// The runtimes on `path`, and CRIU.
pub async fn look(reaper: &Reaper, path: &OsStr, found: Found) -> Vec<Finding> {
    let host = Host {
        cgroup_mode: cgroup::mode(),
        has_systemd: cgroup::systemd_runs(Path::new("/")),
    };
    let runtime = async |index: usize| {
        let program = found.runtimes[index].as_deref()?;
        let (version, features) = tokio::join!(
            printed(reaper, program, &["--version"]),
            printed(reaper, program, &["features"])
        );
        Some(judge(RUNTIMES[index], program, version, features, &host))
    };
    let criu = found.criu.as_deref();
    let (first, second, third, printed) = tokio::join!(
        runtime(0),
        runtime(1),
        runtime(2),
        printed_if_found(reaper, criu, &["--version"])
    );
    let mut findings = all(path, [first, second, third]);
    findings.push(checkpoints(criu.zip(printed), Path::new("/")));
    findings
}

/// What is said of all runtimes together.
fn all(path: &OsStr, found: [Option<Finding>; 3]) -> Vec<Finding> {
    let has_default = found[0].is_some();
    let mut findings: Vec<Finding> = found.into_iter().flatten().collect();
    if findings.is_empty() {
        let none = Finding::good("OCI runtime", "none of runc, crun, youki");
        findings.push(none.mend(format!(
            "no OCI runtime is on PATH, {}: install one, or set the option BinaryName",
            path.display()
        )));
    } else if !has_default {
        let none = Finding::good("OCI runtime runc", "not on PATH");
        findings.push(none.note("it is the default: set the option BinaryName"));
    }
    findings
}

/// What is said of runtime `name`, by what its `--version` and `features` print.
fn judge(
    name: &str,
    program: &Path,
    printed: Result<String>,
    features: Result<String>,
    host: &Host,
) -> Finding {
    let finding = |found: String| Finding::good(format!("OCI runtime {name}"), found);
    let program = program.display();
    let printed = match printed {
        Ok(printed) => printed,
        Err(error) => return finding(program.to_string()).mend(format!("--version: {error}")),
    };
    let version = version(&printed).unwrap_or("unknown version");
    // Older runtimes, crun before 1.9 among them, have no such command.
    let features: Option<Value> = features
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok());
    let Some(features) = features else {
        // crun lists what it was built with.
        let built_with = printed.lines().find(|line| line.starts_with('+'));
        let built_with = built_with.unwrap_or("features unknown");
        return finding(format!("{version}, {program}, {built_with}"));
    };
    let finding = finding(format!("{version}, {program}, {}", describe(&features)));
    let lacks = |pointer| is(&features, pointer) == Some(false);
    let cgroup = match host.cgroup_mode {
        "v2" => "/linux/cgroup/v2",
        _ => "/linux/cgroup/v1",
    };
    if lacks(cgroup) {
        finding.mend(format!(
            "it does not support cgroup {}, which this machine has",
            host.cgroup_mode
        ))
    } else if host.has_systemd && lacks("/linux/cgroup/systemd") {
        finding.note("it was built without systemd: the option SystemdCgroup fails")
    } else {
        finding
    }
}

/// A boolean of `features`.
fn is(features: &Value, pointer: &str) -> Option<bool> {
    features.pointer(pointer)?.as_bool()
}

/// The features that matter to containers on this machine.
fn describe(features: &Value) -> String {
    let text = |key: &str| features.get(key).and_then(Value::as_str).unwrap_or("?");
    let mut words = vec![format!(
        "OCI {} to {}",
        text("ociVersionMin"),
        text("ociVersionMax")
    )];
    for (pointer, name) in [
        ("/linux/cgroup/v1", "cgroup v1"),
        ("/linux/cgroup/v2", "cgroup v2"),
        ("/linux/cgroup/systemd", "systemd"),
        ("/linux/seccomp/enabled", "seccomp"),
        ("/linux/apparmor/enabled", "AppArmor"),
        ("/linux/selinux/enabled", "SELinux"),
        ("/linux/mountExtensions/idmap/enabled", "id-mapped mounts"),
    ] {
        if is(features, pointer) == Some(true) {
            words.push(name.to_owned());
        }
    }
    words.join(", ")
}

/// What is said of CRIU, by what it printed if it was found.
fn checkpoints(found: Option<(&Path, Result<String>)>, root: &Path) -> Finding {
    let finding = |found: String| Finding::good("CRIU", found);
    let (program, printed) = match found {
        None => return finding("not on PATH".into()).note("checkpoint and restore fail"),
        Some((program, Err(error))) => {
            let text = format!("checkpoint and restore fail: --version: {error}");
            return finding(program.display().to_string()).note(text);
        }
        Some((program, Ok(printed))) => (program, printed),
    };
    let version = version(&printed).unwrap_or("unknown version");
    let finding = finding(format!("{version}, {}", program.display()));
    // Only a kernel with CONFIG_CHECKPOINT_RESTORE has this file.
    match root.join("proc/sys/kernel/ns_last_pid").exists() {
        true => finding,
        false => finding.note("checkpoint and restore fail: the kernel does not support them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    const FEATURES: &str = r#"{"ociVersionMin": "1.0.0", "ociVersionMax": "1.0.2-dev", "linux": {
        "cgroup": {"v1": true, "v2": false, "systemd": false}, "seccomp": {"enabled": true},
        "selinux": {}, "namespaces": null}}"#;

    fn judged(
        printed: Result<&str>,
        features: Result<&str>,
        mode: &'static str,
        systemd: bool,
    ) -> Finding {
        let host = Host {
            cgroup_mode: mode,
            has_systemd: systemd,
        };
        let own = |text: Result<&str>| text.map(str::to_owned);
        judge(
            "runc",
            Path::new("/b/runc"),
            own(printed),
            own(features),
            &host,
        )
    }

    fn no_command() -> Result<&'static str> {
        Err(Error::unknown("exits with status 1"))
    }

    #[test]
    fn features_are_held_against_the_host() {
        let version = Ok("runc version 1.1.5+ds1\ncommit: x\n");
        let v1 = judged(version.clone(), Ok(FEATURES), "hybrid", false);
        let found = "1.1.5+ds1, /b/runc, OCI 1.0.0 to 1.0.2-dev, cgroup v1, seccomp";
        assert_eq!(v1, Finding::good("OCI runtime runc", found));
        let systemd = judged(version.clone(), Ok(FEATURES), "v1", true);
        assert_eq!(systemd.verdict().0, "note", "{systemd:?}");
        let v2 = judged(version, Ok(FEATURES), "v2", true);
        let expected = (
            "mend",
            "it does not support cgroup v2, which this machine has",
        );
        assert_eq!(v2.verdict(), expected);
    }

    #[test]
    fn runtime_without_features() {
        let crun = "crun version 1.8.1\ncommit: f8\n+SYSTEMD +CAP\n";
        let crun = judged(Ok(crun), no_command(), "v2", true);
        assert_eq!(
            crun,
            Finding::good("OCI runtime runc", "1.8.1, /b/runc, +SYSTEMD +CAP")
        );
        for features in [
            "",
            "[]",
            "{}",
            "7",
            "{\"linux\": []}",
            "{\"linux\": {\"cgroup\": 1}}",
        ] {
            let other = judged(Ok("\u{fffd}"), Ok(features), "v2", true);
            assert!(
                other.found.starts_with("unknown version, /b/runc, "),
                "{other:?}"
            );
            assert_eq!(other.verdict().0, "ok", "{features}");
        }
    }

    #[test]
    fn runtime_that_fails_is_to_be_mended() {
        let hangs = judged(
            Err(Error::unknown("does not end within 10 s")),
            no_command(),
            "v1",
            false,
        );
        assert_eq!(
            hangs.verdict(),
            ("mend", "--version: does not end within 10 s")
        );
        assert_eq!(hangs.found, "/b/runc");
    }

    #[test]
    fn runtimes_that_are_missing() {
        let none = all(OsStr::new("/a:/b"), [None, None, None]);
        let expected =
            "no OCI runtime is on PATH, /a:/b: install one, or set the option BinaryName";
        assert_eq!((none.len(), none[0].verdict()), (1, ("mend", expected)));
        let crun = || Some(Finding::good("OCI runtime crun", "1.8.1"));
        let crun_alone = all(OsStr::new("/a"), [None, crun(), None]);
        assert_eq!(crun_alone.len(), 2);
        assert_eq!(crun_alone[1].verdict().0, "note");
        assert_eq!(all(OsStr::new("/a"), [crun(), None, None]).len(), 1);
    }

    #[test]
    fn checkpoints_need_criu_and_the_kernel() {
        let root = tempfile::tempdir().unwrap();
        let criu = |printed: Result<&str>| {
            let found = (Path::new("/b/criu"), printed.map(str::to_owned));
            checkpoints(Some(found), root.path())
        };
        assert_eq!(checkpoints(None, root.path()).verdict().0, "note");
        assert_eq!(criu(no_command()).verdict().0, "note");
        assert_eq!(criu(Ok("Version: 3.17.1\n")).verdict().0, "note");
        let sysctls = root.path().join("proc/sys/kernel");
        std::fs::create_dir_all(&sysctls).unwrap();
        std::fs::write(sysctls.join("ns_last_pid"), "1\n").unwrap();
        assert_eq!(
            criu(Ok("Version: 3.17.1\n")),
            Finding::good("CRIU", "3.17.1, /b/criu")
        );
    }
}
