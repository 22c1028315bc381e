//! One invocation of an OCI runtime. It is spawned from the main thread and awaited as a
//! child, not by the end of its output: a container may keep that open. A failure is reported
//! with the text of this invocation's own log. An invocation that is cut short is killed with
//! its process group.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use log::Level;

use super::flavor;
use crate::cancel::{Cancel, Cause};
use crate::error::{Context, Error, Kind, Result};
use crate::reaper::{Reaper, Spawned};
use crate::sys;

/// How much of a command's output or log is read back, in bytes.
const MAX_OUTPUT: u64 = 1 << 20;

/// How long to wait for the exit of a command that was killed. One that the kernel does not
/// let die, for example in a call to a dead file system, is left behind.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the runtime's own stdout and stderr go.
pub enum Output {
    /// Into memory, to be read when the command has ended.
    Captured,
    /// To the container's stdio, which is set on the command.
    Container,
}

/// Why a command failed.
pub enum Failure {
    /// It could not be started.
    Spawn(Error),
    /// It exited with another status than 0; the text is the runtime's own.
    Exit(String),
    /// It was killed, since its request was cut short.
    Killed(Cause),
}

/// The fields of a command's log lines. Its environment and its files are not logged: they may
/// hold secrets.
pub struct CommandLog<'a> {
    verb: &'a str,
    id: &'a str,
    exec: &'a str,
    /// Empty unless they are to be logged.
    arguments: String,
    started_at: Instant,
}

impl<'a> CommandLog<'a> {
    /// Of `command`, which is complete and about to run for container `id`.
    pub fn new(verb: &'a str, id: &'a str, exec: &'a str, command: &Command) -> Self {
        let mut arguments = String::new();
        if log::log_enabled!(Level::Debug) {
            for argument in command.get_args() {
                arguments.push(' ');
                arguments.push_str(&argument.to_string_lossy());
            }
        }
        Self {
            verb,
            id,
            exec,
            arguments,
            started_at: Instant::now(),
        }
    }

    fn log_exit(&self, name: &Path, status: u32) {
        log::debug!(
            exit_status = status,
            duration:? = self.started_at.elapsed(),
            id = self.id,
            exec = self.exec;
            "OCI runtime: {}{}",
            name.display(),
            self.arguments
        );
    }

    fn log_killed(&self, name: &Path, cause: Cause) {
        log::warn!(
            duration:? = self.started_at.elapsed(),
            id = self.id,
            exec = self.exec;
            "OCI runtime {} {}: killed: {cause}",
            name.display(),
            self.verb
        );
    }
}

/// A file in memory that a runtime opens by its path: it needs no disk and leaves nothing.
pub struct MemoryFile(File);

impl MemoryFile {
    /// An empty one. Where the kernel refuses such files: an unnamed file in `fallback`.
    pub fn new(fallback: &Path) -> Result<Self> {
        sys::fd::memory_file(c"runtime", fallback)
            .map(Self)
            .context(|| "create a file in memory for the OCI runtime")
    }

    /// One that holds `content`.
    pub fn holding(content: &[u8], fallback: &Path) -> Result<Self> {
        let file = Self::new(fallback)?;
        io::Write::write_all(&mut &file.0, content)
            .context(|| "write a file in memory for the OCI runtime")?;
        Ok(file)
    }

    /// Its path for other processes, while it is open.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.0.as_raw_fd()
        ))
    }

    /// What was written to it, up to 1 MiB.
    fn content(&mut self) -> Vec<u8> {
        let mut content = Vec::new();
        // On failure there is less to report.
        let _ = self.0.rewind();
        let _ = (&self.0).take(MAX_OUTPUT).read_to_end(&mut content);
        content
    }
}

/// Runs `command`, which writes its JSON log to `log`, until it exits or `cancel` cuts it
/// short. Answers what it printed if `output` is captured.
pub async fn run(
    reaper: &Reaper,
    mut command: Command,
    mut log: MemoryFile,
    output: Output,
    cancel: &Cancel,
    about: CommandLog<'_>,
) -> std::result::Result<Vec<u8>, Failure> {
    let mut captured = match output {
        Output::Captured => Some(capture(&mut command).map_err(Failure::Spawn)?),
        Output::Container => None,
    };
    let name = PathBuf::from(command.get_program());
    // `spawn` drops the command, and with it this process's copies of the container's ends of
    // its stdio: otherwise their other ends would never see an end of file.
    let spawned = reaper.spawn(command);
    let failed = |e| Failure::Spawn(cannot_spawn(&name, &e));
    let mut spawned = spawned.map_err(failed)?;
    let exit = match cancel.unless(spawned.ended()).await {
        Ok(ended) => ended.map_err(failed)?,
        Err(cause) => {
            about.log_killed(&name, cause);
            kill(&name, spawned, &about).await;
            return Err(Failure::Killed(cause));
        }
    };
    about.log_exit(&name, exit.status);
    let printed = captured.as_mut().map_or(Vec::new(), MemoryFile::content);
    if exit.status == 0 {
        return Ok(printed);
    }
    let text = flavor::last_error(&log.content())
        .or_else(|| Some(String::from_utf8_lossy(&printed).trim().to_owned()))
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| format!("{} exited with status {}", name.display(), exit.status));
    Err(Failure::Exit(text))
}

/// Kills a command with its process group.
async fn kill(name: &Path, mut spawned: Spawned, about: &CommandLog<'_>) {
    spawned.kill();
    let ended = tokio::time::timeout(KILL_TIMEOUT, spawned.ended()).await;
    if ended.is_err() {
        let CommandLog { verb, id, exec, .. } = about;
        let name = name.display();
        log::warn!(
            id, exec;
            "kill OCI runtime {name} {verb}: still running {KILL_TIMEOUT:?} after SIGKILL"
        );
    }
}

/// Sends the command's output to a file in memory: unlike a pipe it never blocks the writer.
fn capture(command: &mut Command) -> Result<MemoryFile> {
    let file = MemoryFile::new(&std::env::temp_dir())?;
    let copy = || file.0.try_clone().context(|| "copy a descriptor");
    command.stdin(Stdio::null());
    command.stdout(copy()?);
    command.stderr(copy()?);
    Ok(file)
}

/// The text is that of Go's `os/exec`: clients, Docker among them, match on it.
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
