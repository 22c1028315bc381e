//! One invocation of an OCI runtime: spawned from the main thread, awaited as a
//! child (never by the end of its output, which a container may hold open), and
//! its failure told in the words of this invocation's own log.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::flavor;
use crate::error::{Context, Error, Kind, Result};
use crate::reaper::Reaper;
use crate::sys;

/// Most of a command's output that is read back, in bytes.
const OUTPUT_LIMIT: u64 = 1 << 20;

/// Where the runtime's own stdout and stderr go.
pub enum Output {
    /// Into memory, to be read when the command has ended.
    Captured,
    /// To the container, as already set on the command.
    Given,
}

/// Why a command failed.
pub enum Failure {
    /// It could not be started.
    Spawn(Error),
    /// It ended with another status than 0; the text is the runtime's own.
    Exit(String),
}

/// Runs `command`, which writes its JSON log to `log`, to its end; the log is
/// removed. Answers what it printed when `output` is captured.
pub async fn run(
    reaper: &Reaper,
    mut command: Command,
    log: &Path,
    output: Output,
) -> std::result::Result<Vec<u8>, Failure> {
    let mut captured = match output {
        Output::Captured => Some(capture(&mut command).map_err(Failure::Spawn)?),
        Output::Given => None,
    };
    let spawned = reaper.spawn(&mut command);
    let name = PathBuf::from(command.get_program());
    // The container's ends of its stdio live in the command: they must not
    // outlive the spawn, or nobody would see their end.
    drop(command);
    let (_child, exited) = spawned.map_err(|e| Failure::Spawn(cannot_spawn(&name, &e)))?;
    let exit = exited.await;
    let log = Log(log);
    let printed = match &mut captured {
        Some(file) => read_back(file).unwrap_or_default(),
        None => Vec::new(),
    };
    if exit.status == 0 {
        return Ok(printed);
    }
    let text = log
        .last_error()
        .or_else(|| Some(String::from_utf8_lossy(&printed).trim().to_owned()))
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| format!("{} ended with status {}", name.display(), exit.status));
    Err(Failure::Exit(text))
}

/// Removes the log when it goes.
struct Log<'a>(&'a Path);

impl Log<'_> {
    fn last_error(&self) -> Option<String> {
        flavor::last_error(&fs::read(self.0).ok()?)
    }
}

impl Drop for Log<'_> {
    fn drop(&mut self) {
        // Not every runtime makes its log when it has nothing to say.
        let _ = fs::remove_file(self.0);
    }
}

/// A file in memory, unlike a pipe, neither blocks the writer nor needs a reader.
fn capture(command: &mut Command) -> Result<File> {
    let file = sys::fd::memory_file(c"runtime-output", &std::env::temp_dir())
        .context(|| "create a file for the runtime's output")?;
    let copy = || file.try_clone().context(|| "copy a descriptor");
    command.stdin(Stdio::null());
    command.stdout(copy()?);
    command.stderr(copy()?);
    Ok(file)
}

fn read_back(file: &mut File) -> io::Result<Vec<u8>> {
    let mut printed = Vec::new();
    file.rewind()?;
    file.take(OUTPUT_LIMIT).read_to_end(&mut printed)?;
    Ok(printed)
}

/// Worded as Go's `os/exec` does: clients, Docker among them, match on it.
fn cannot_spawn(name: &Path, cause: &io::Error) -> Error {
    let name = name.display().to_string();
    match cause.kind() {
        io::ErrorKind::NotFound if !name.contains('/') => Error::new(
            Kind::NotFound,
            format!("exec: \"{name}\": executable file not found in $PATH"),
        ),
        io::ErrorKind::NotFound => Error::new(
            Kind::NotFound,
            format!("fork/exec {name}: no such file or directory"),
        ),
        io::ErrorKind::PermissionDenied => {
            Error::unknown(format!("fork/exec {name}: permission denied"))
        }
        _ => Error::unknown(format!("fork/exec {name}: {cause}")),
    }
}
