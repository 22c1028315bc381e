//! stub
use crate::error::Result;
use crate::reaper::Reaper;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A process's stdio as the request names it: URIs or paths, empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    pub terminal: bool,
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

/// What opening a process's stdio needs to know about the process.
pub struct Owner<'a> {
    pub namespace: &'a str,
    pub container_id: &'a str,
    /// Owner of the container's ends of pipes and ptys.
    pub uid: u32,
    pub gid: u32,
    pub reaper: &'a Reaper,
}

/// Stdio that is open on containerd's side and waits for the process to be made.
pub struct Opened(());

/// A started process's stdio.
pub struct Streams(());

/// Opens what `stdio` names. Fails within 30 s when a FIFO has no reader, with
/// nothing left open.
pub async fn open(_stdio: &Stdio, _owner: &Owner<'_>) -> Result<Opened> {
    todo!()
}

impl Opened {
    /// Sets stdin, stdout and stderr of the runtime's command: the container's ends of
    /// the pipes, or /dev/null (for a terminal: /dev/null in, and the caller captures the rest).
    /// Returns whether stdout and stderr are the container's, so must not be captured.
    pub fn give_to(&mut self, _command: &mut Command) -> Result<bool> {
        todo!()
    }
    /// The path for the runtime's `--console-socket`, for a terminal.
    pub fn console_socket(&self) -> Option<&Path> {
        todo!()
    }
    /// After the runtime's command ended well: receives the pty master where there is one,
    /// drops the container's ends and starts the copiers.
    pub async fn start(self) -> Result<Streams> {
        todo!()
    }
}

impl Streams {
    /// Closes the shim's write end of stdin (CloseIO); idempotent.
    pub fn close_stdin(&self) {
        todo!()
    }
    /// Sets the terminal's size; no terminal: nothing to do.
    pub fn resize(&self, _width: u16, _height: u16) -> Result<()> {
        todo!()
    }
    /// The process ended: starts the clock (10 s) of the drain; does not wait.
    pub fn process_exited(&self) {
        todo!()
    }
    /// Waits until all output was moved, or the drain's clock ran out.
    pub async fn drained(&self) {
        todo!()
    }
    // Drop closes everything and ends the copiers.
}
#[allow(dead_code)]
fn _x(_: OwnedFd, _: PathBuf) {}
