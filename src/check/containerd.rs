//! containerd: those that run, and the shims that each finds on its own `PATH`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::Finding;
use super::programs::{find, is_program, numbers, printed_if_found, version};
use crate::error::Result;
use crate::reaper::Reaper;
use crate::servers::Listeners;
use crate::{NAME, REVISION, VERSION};

/// The oldest containerd that this shim serves.
const OLDEST: (u32, u32) = (1, 6);

/// The runtimes whose shims are looked up, and the shims' names.
const RUNTIMES: [(&str, &str); 2] = [
    ("io.containerd.rs.v2", NAME),
    ("io.containerd.runc.v2", "containerd-shim-runc-v2"),
];

/// A containerd.
pub struct Containerd {
    /// `None`: none runs, and this is what would be started.
    pub pid: Option<i32>,
    /// Its program; `None`: not found.
    program: Option<PathBuf>,
    /// The sockets it listens on.
    sockets: Vec<PathBuf>,
    /// Its `PATH`.
    pub path: OsString,
    /// Its files are those that this process sees.
    pub is_seen: bool,
}

/// The containerds among the processes of the system whose root is `root`.
pub fn running(root: &Path) -> Vec<Containerd> {
    let proc = root.join("proc");
    let entries = fs::read_dir(&proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut pids: Vec<i32> = pids.collect();
    pids.sort_unstable();
    let mut listeners = Listeners::default();
    pids.into_iter()
        .filter_map(|pid| Containerd::of(&proc, pid, &mut listeners))
        .collect()
}

impl Containerd {
    /// Process `pid`, if it is a containerd that listens.
    fn of(proc: &Path, pid: i32, listeners: &mut Listeners) -> Option<Containerd> {
        let dir = proc.join(pid.to_string());
        let program = fs::read_link(dir.join("exe")).ok()?;
        let name = program.file_name()?.to_str()?;
        if name.trim_end_matches(" (deleted)") != "containerd" {
            return None;
        }
        let sockets = listeners.of(&dir);
        if sockets.is_empty() {
            return None;
        }
        let environment = fs::read(dir.join("environ")).unwrap_or_default();
        let namespace = |of: &Path| fs::read_link(of.join("ns/mnt")).ok();
        Some(Containerd {
            pid: Some(pid),
            program: Some(program),
            sockets,
            path: variable(&environment, b"PATH=").to_owned(),
            is_seen: namespace(&dir) == namespace(&proc.join("self")),
        })
    }

    /// What `path`, this process's, says of one that does not run.
    pub fn not_running(path: OsString) -> Containerd {
        Containerd {
            pid: None,
            program: find(&path, "containerd"),
            sockets: Vec::new(),
            path,
            is_seen: true,
        }
    }

    /// Where it finds the shims of [`RUNTIMES`]: on its `PATH`, then beside itself.
    pub fn shims(&self) -> [Option<PathBuf>; 2] {
        RUNTIMES.map(|(_, shim)| {
            let beside = || Some(self.program.as_ref()?.parent()?.join(shim));
            find(&self.path, shim).or_else(|| beside().filter(|file| is_program(file)))
        })
    }

    /// What can be executed, even if the file was replaced.
    fn executable(&self) -> Option<PathBuf> {
        match self.pid {
            Some(pid) => Some(format!("/proc/{pid}/exe").into()),
            None => self.program.clone(),
        }
    }
}

/// The value of a variable in the `environ` of a process.
fn variable<'a>(environment: &'a [u8], name: &[u8]) -> &'a OsStr {
    let mut variables = environment.split(|byte| *byte == 0);
    let value = variables.find_map(|variable| variable.strip_prefix(name));
    OsStr::from_bytes(value.unwrap_or_default())
}

/// A containerd whose files are not seen from here.
pub fn hidden(containerd: &Containerd) -> Finding {
    let pid = containerd.pid.unwrap_or_default();
    let found = format!("process {pid}, in another mount namespace");
    Finding::good("containerd", found).note(format!(
        "to check it: nsenter --target {pid} --mount --pid -- {NAME} check"
    ))
}

/// Its version, and its shims.
pub async fn look(
    reaper: &Reaper,
    containerd: &Containerd,
    [ours, runc]: [Option<PathBuf>; 2],
) -> Vec<Finding> {
    let executable = containerd.executable();
    let (version, of_ours, of_runc) = tokio::join!(
        printed_if_found(reaper, executable.as_deref(), &["--version"]),
        printed_if_found(reaper, ours.as_deref(), &["-v"]),
        printed_if_found(reaper, runc.as_deref(), &["-v"]),
    );
    let [first, second] = RUNTIMES;
    vec![
        daemon(containerd, version),
        shim(first, containerd, ours.as_deref().zip(of_ours)),
        shim(second, containerd, runc.as_deref().zip(of_runc)),
    ]
}

/// What its `--version` printed says of it.
fn daemon(containerd: &Containerd, printed: Option<Result<String>>) -> Finding {
    let finding = |found: String| Finding::good("containerd", found);
    let (Some(program), Some(printed)) = (&containerd.program, printed) else {
        return finding("not found".into())
            .mend("none runs, and none is on PATH: install containerd 1.6 or newer");
    };
    let printed = match printed {
        Ok(printed) => printed,
        Err(error) => {
            return finding(program.display().to_string()).mend(format!("--version: {error}"));
        }
    };
    let number = version(&printed);
    let place = match containerd.pid {
        Some(pid) => format!("process {pid}, {}", list(&containerd.sockets)),
        None => format!("{}, not running", program.display()),
    };
    let finding = finding(format!("{}, {place}", number.unwrap_or("unknown version")));
    match number.and_then(numbers) {
        Some(numbers) if numbers < OLDEST => finding.mend("install containerd 1.6 or newer"),
        None => finding.note("its version cannot be read; it must be 1.6 or newer"),
        Some(_) if containerd.pid.is_none() => finding.note(match geteuid().is_root() {
            true => "shims and runtimes are looked up on the PATH of this command",
            false => "only root sees one that runs; the PATH of this command is used",
        }),
        Some(_) => finding,
    }
}

fn list(sockets: &[PathBuf]) -> String {
    let main = |path: &&PathBuf| path.extension().is_none_or(|end| end != "ttrpc");
    let names = sockets.iter().filter(main).map(|path| path.display());
    names
        .map(|name| name.to_string())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Who made a shim.
#[derive(Debug, PartialEq, Eq)]
enum Kind<'a> {
    /// This shim, of some version and revision.
    Ours(&'a str, &'a str),
    /// containerd's own shim, of some version.
    Go(&'a str),
    Other,
}

impl Kind<'_> {
    /// By what `-v` prints.
    fn of(printed: &str) -> Kind<'_> {
        let value = |name: &str| {
            let mut lines = printed.lines();
            lines.find_map(|line| Some(line.trim().strip_prefix(name)?.trim()))
        };
        let version = value("Version:").unwrap_or_default();
        match (value("Compiler:"), value("Go version:")) {
            (Some(compiler), _) if compiler.starts_with("rustc") => {
                Kind::Ours(version, value("Revision:").unwrap_or_default())
            }
            (_, Some(_)) => Kind::Go(version),
            _ => Kind::Other,
        }
    }
}

/// What is said of a runtime's shim, with what it printed if it was found.
fn shim(
    (runtime, name): (&str, &str),
    containerd: &Containerd,
    found: Option<(&Path, Result<String>)>,
) -> Finding {
    let is_own_name = name == NAME;
    let finding = |found: String| Finding::good(format!("runtime {runtime}"), found);
    let Some((program, printed)) = found else {
        let missing = finding(format!("no {name} on PATH"));
        let path = containerd.path.display();
        return match is_own_name {
            true => missing.mend(format!("install {NAME} into a directory of PATH, {path}")),
            false => missing.note(format!(
                "clients that ask for {runtime} fail: install containerd's shim, or link {name} to {NAME}"
            )),
        };
    };
    let program = program.display();
    let printed = match printed {
        Ok(printed) => printed,
        Err(error) => return finding(program.to_string()).mend(format!("-v: {error}")),
    };
    match Kind::of(&printed) {
        Kind::Ours(VERSION, REVISION) => finding(format!("{program}, this shim {VERSION}")),
        Kind::Ours(version, revision) => {
            let found = format!("{program}, this shim {version}, revision {revision}");
            finding(found).note(format!(
                "it is of another build than this command ({VERSION}, revision {REVISION})"
            ))
        }
        Kind::Go(version) if !is_own_name => {
            finding(format!("{program}, containerd's own shim {version}"))
        }
        Kind::Other if !is_own_name => finding(format!("{program}, an unknown shim")),
        Kind::Go(_) | Kind::Other => {
            finding(format!("{program}, not this shim")).mend(format!("replace it by {NAME}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::{COMPILER, TARGET};

    const GO: &str = "containerd-shim-runc-v2:\n  Version:  1.6.20~ds1\n  \
        Revision: 1.6.20~ds1-1+deb12u3\n  Go version: go1.19.8\n\n";

    fn ours(version: &str) -> String {
        format!(
            "{NAME}:\n  Version:  {version}\n  Revision: {REVISION}\n  Target:   {TARGET}\n  \
             Compiler: {}\n\n",
            if COMPILER.starts_with("rustc") {
                COMPILER
            } else {
                "rustc 1.93.0"
            },
        )
    }

    fn containerd(pid: Option<i32>) -> Containerd {
        Containerd {
            pid,
            program: Some("/usr/bin/containerd".into()),
            sockets: [
                "/run/containerd/containerd.sock.ttrpc",
                "/run/containerd/containerd.sock",
            ]
            .map(PathBuf::from)
            .into(),
            path: "/usr/sbin:/usr/bin".into(),
            is_seen: true,
        }
    }

    #[track_caller]
    fn assert_said(finding: &Finding, found: &str, verdict: &str, text: &str) {
        let (name, said) = finding.verdict();
        assert_eq!((&*finding.found, name), (found, verdict), "{finding:?}");
        assert!(said.contains(text), "{finding:?}");
    }

    #[test]
    fn versions_of_containerd() {
        let printed = |text: &str| Some(Ok(text.to_owned()));
        let new = "containerd github.com/containerd/containerd 1.6.20~ds1 abc";
        let running = daemon(&containerd(Some(7)), printed(new));
        assert_said(
            &running,
            "1.6.20~ds1, process 7, /run/containerd/containerd.sock",
            "ok",
            "",
        );
        let stopped = daemon(&containerd(None), printed(new));
        let found = "1.6.20~ds1, /usr/bin/containerd, not running";
        assert_said(&stopped, found, "note", "PATH of this command");
        let old = daemon(&containerd(None), printed("containerd x v1.5.9 abc"));
        assert_said(
            &old,
            "1.5.9, /usr/bin/containerd, not running",
            "mend",
            "1.6 or newer",
        );
        let strange = daemon(&containerd(None), printed("\u{fffd}\0"));
        let found = "unknown version, /usr/bin/containerd, not running";
        assert_said(&strange, found, "note", "cannot be read");
        let hangs = daemon(&containerd(None), Some(Err(Error::unknown("does not end"))));
        assert_said(
            &hangs,
            "/usr/bin/containerd",
            "mend",
            "--version: does not end",
        );
        let none = Containerd {
            program: None,
            ..containerd(None)
        };
        assert_said(
            &daemon(&none, None),
            "not found",
            "mend",
            "install containerd",
        );
    }

    #[test]
    fn shims_of_each_kind() {
        let said = |index: usize, printed: Option<&str>| {
            let found = printed.map(|text| (Path::new("/b/s"), Ok(text.to_owned())));
            shim(RUNTIMES[index], &containerd(None), found)
        };
        let (same, other) = (ours(VERSION), ours("0.0.1"));
        let this = format!("/b/s, this shim {VERSION}");
        assert_said(&said(0, Some(&same)), &this, "ok", "");
        assert_said(&said(1, Some(&same)), &this, "ok", "");
        let older = format!("/b/s, this shim 0.0.1, revision {REVISION}");
        assert_said(&said(0, Some(&other)), &older, "note", "another build");
        assert_said(
            &said(0, Some(GO)),
            "/b/s, not this shim",
            "mend",
            "replace it",
        );
        assert_said(
            &said(1, Some(GO)),
            "/b/s, containerd's own shim 1.6.20~ds1",
            "ok",
            "",
        );
        assert_said(
            &said(0, Some("")),
            "/b/s, not this shim",
            "mend",
            "replace it",
        );
        assert_said(&said(1, Some("?")), "/b/s, an unknown shim", "ok", "");
        let missing = format!("no {NAME} on PATH");
        assert_said(&said(0, None), &missing, "mend", "/usr/sbin:/usr/bin");
        assert_said(
            &said(1, None),
            "no containerd-shim-runc-v2 on PATH",
            "note",
            "fail",
        );
    }

    #[test]
    fn path_is_read_from_the_environment_of_a_process() {
        let environment = b"HOME=/root\0PATH=/a:/b\0XPATH=/c\0";
        assert_eq!(variable(environment, b"PATH="), "/a:/b");
        assert_eq!(variable(b"", b"PATH="), "");
        assert_eq!(variable(b"PATH", b"PATH="), "");
    }

    #[test]
    fn process_that_does_not_listen_is_no_daemon() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("proc/42");
        fs::create_dir_all(dir.join("fd")).unwrap();
        fs::create_dir_all(dir.join("net")).unwrap();
        fs::create_dir_all(dir.join("ns")).unwrap();
        std::os::unix::fs::symlink("net:[1]", dir.join("ns/net")).unwrap();
        std::os::unix::fs::symlink("/usr/bin/containerd", dir.join("exe")).unwrap();
        assert!(running(root.path()).is_empty());
        std::os::unix::fs::symlink("socket:[9]", dir.join("fd/3")).unwrap();
        let table = "Num RefCount Protocol Flags Type St Inode Path\n\
            0: 00000002 00000000 00010000 0001 01 9 /run/c.sock\n";
        fs::write(dir.join("net/unix"), table).unwrap();
        fs::write(dir.join("environ"), "PATH=/x\0").unwrap();
        let found = running(root.path());
        assert_eq!((found.len(), found[0].pid), (1, Some(42)));
        assert_eq!(found[0].sockets, [Path::new("/run/c.sock")]);
        assert!(found[0].path == "/x" && found[0].is_seen);
        assert!(running(Path::new("/no/such/root")).is_empty());
    }
}
