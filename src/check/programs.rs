//! Programs: found on a `PATH` as containerd finds them, run for a limited time, and what they
//! say of their version.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{AccessFlags, access};
use tokio::time::timeout;

use super::LIMIT;
use crate::error::{Context, Error, Result};
use crate::reaper::Reaper;
use crate::sys;

/// How much of a program's output is read, in bytes.
const MAX_OUTPUT: u64 = 256 << 10;

/// The first program called `name` in the directories of `path`, of which one may hang.
pub fn find(path: &OsStr, name: &str) -> Option<PathBuf> {
    let mut files = std::env::split_paths(path).map(|dir| dir.join(name));
    files.find(|file| is_program(file))
}

/// Whether `file` can be executed.
pub fn is_program(file: &Path) -> bool {
    file.is_file() && access(file, AccessFlags::X_OK).is_ok()
}

/// What `program` prints on its standard output. An error says that it cannot be executed, fails
/// or does not end; then it is killed with its process group.
pub async fn printed(reaper: &Reaper, program: &Path, args: &[&str]) -> Result<String> {
    let (mut stdout, mut stderr) = (Captured::new(c"stdout")?, Captured::new(c"stderr")?);
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    command.stdout(stdout.writer()?).stderr(stderr.writer()?);
    let mut spawned = reaper.spawn(command).context(|| "execute it")?;
    // Dropped when it takes too long, it is killed.
    let ended = timeout(LIMIT, spawned.ended()).await;
    let Ok(ended) = ended else {
        let text = format!("does not end within {} s", LIMIT.as_secs());
        return Err(Error::unknown(text));
    };
    match ended.context(|| "execute it")?.status {
        0 => Ok(stdout.text()),
        status => {
            let text = stderr.text();
            let line = text.lines().find(|line| !line.trim().is_empty());
            let line = line.unwrap_or("no error text").trim();
            Err(Error::unknown(format!(
                "exits with status {status}: {line}"
            )))
        }
    }
}

/// As [`printed`]; `None` without a program.
pub async fn printed_if_found(
    reaper: &Reaper,
    program: Option<&Path>,
    args: &[&str],
) -> Option<Result<String>> {
    Some(printed(reaper, program?, args).await)
}

/// A file that a program writes its output to: unlike a pipe it blocks neither side.
struct Captured(File);

impl Captured {
    fn new(name: &CStr) -> Result<Captured> {
        sys::fd::memory_file(name, &std::env::temp_dir())
            .map(Captured)
            .context(|| "create a file for the output")
    }

    fn writer(&self) -> Result<File> {
        self.0.try_clone().context(|| "copy a descriptor")
    }

    fn text(&mut self) -> String {
        let mut bytes = Vec::new();
        // On failure there is less to report.
        let _ = self.0.rewind();
        let _ = (&self.0).take(MAX_OUTPUT).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The first word of `text` that is a version, such as `1.6.20~ds1` or `v2.1.9`; without the
/// `v`.
pub fn version(text: &str) -> Option<&str> {
    let mut words = text.split_whitespace();
    words.find_map(|word| {
        let word = word.strip_prefix('v').unwrap_or(word);
        numbers(word).map(|_| word)
    })
}

/// The first two numbers of a version: `(1, 6)` of `1.6.20~ds1`.
pub fn numbers(version: &str) -> Option<(u32, u32)> {
    let (major, rest) = version.split_once('.')?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    Some((major.parse().ok()?, rest[..end].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn versions_in_what_programs_print() {
        for (text, expected, two) in [
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3",
                "1.6.20~ds1",
                (1, 6),
            ),
            (
                "containerd github.com/containerd/containerd/v2 v2.1.9+unknown ",
                "2.1.9+unknown",
                (2, 1),
            ),
            (
                "runc version 1.1.5+ds1\ncommit: 1.1.5\n",
                "1.1.5+ds1",
                (1, 1),
            ),
            ("crun version 1.8.1\ncommit: f8a0\n", "1.8.1", (1, 8)),
            ("Version: 3.17.1\n", "3.17.1", (3, 17)),
            ("6.18.44-fc-v657\n", "6.18.44-fc-v657", (6, 18)),
            ("4.18", "4.18", (4, 18)),
        ] {
            assert_eq!(version(text), Some(expected), "{text}");
            assert_eq!(numbers(expected), Some(two), "{text}");
        }
        for text in ["", "no version", "1", "v.", "1.x", "99999999999.1", ".5"] {
            assert_eq!(version(text), None, "{text:?}");
        }
    }

    #[test]
    fn program_is_found_in_the_first_directory_that_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second, third] = ["1", "2", "3"].map(|name| dir.path().join(name));
        for place in [&first, &second, &third] {
            fs::create_dir(place).unwrap();
        }
        fs::create_dir(first.join("runc")).unwrap();
        fs::write(second.join("runc"), "").unwrap();
        fs::write(third.join("runc"), "").unwrap();
        fs::set_permissions(third.join("runc"), fs::Permissions::from_mode(0o755)).unwrap();
        let path = std::env::join_paths([&first, &second, &third]).unwrap();
        assert_eq!(find(&path, "runc"), Some(third.join("runc")));
        assert_eq!(find(&path, "crun"), None);
        assert_eq!(find(OsStr::new(""), "runc"), None);
    }

    /// What a shell prints that runs `script`.
    fn shell(script: &str) -> Result<String> {
        let reaper = Reaper::new();
        let args = ["-c", script];
        let printed = printed(&reaper, Path::new("/bin/sh"), &args);
        reaper.block_on(printed).unwrap()
    }

    #[test]
    fn output_and_failures_of_a_program() {
        assert_eq!(shell("echo out; echo err >&2").unwrap(), "out\n");
        let error = shell("echo; echo no such thing >&2; echo more >&2; exit 3").unwrap_err();
        assert_eq!(error.to_string(), "exits with status 3: no such thing");
        let error = shell("exit 1").unwrap_err();
        assert_eq!(error.to_string(), "exits with status 1: no error text");
    }

    #[test]
    fn program_that_cannot_be_executed_is_an_error() {
        let reaper = Reaper::new();
        let printed = printed(&reaper, Path::new("/no/such/program"), &[]);
        let error = reaper.block_on(printed).unwrap().unwrap_err().to_string();
        assert!(error.starts_with("execute it: No such file"), "{error}");
    }

    #[test]
    fn program_that_does_not_end_is_given_up() {
        let start = std::time::Instant::now();
        let error = shell("while :; do sleep 1000; done").unwrap_err();
        assert_eq!(error.to_string(), "does not end within 10 s");
        assert!(start.elapsed() >= LIMIT);
    }
}
