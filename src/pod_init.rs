//! The init of a pod whose containers share their pids: process 1 of the pod's pid namespace,
//! in place of a pause container. It is this program, executed twice: to get a root of its own,
//! and in there to give up its privileges.
//!
//! Promises: it reaps what is orphaned in the pod, and does nothing else; no signal from the pod
//! ends it. It has no capability, no descriptor, and of the node's files only this program,
//! read-only: a container that may trace it, or open its `/proc/1/root` and `/proc/1/exe`, gets
//! nothing of the node's.
//!
//! Lacks on purpose: forwarding of signals.

use std::fs;
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::pivot_root;

use crate::error::{Context, Error, Result};
use crate::reaper;
use crate::sys;

/// The action of its first execution.
pub const ACTION: &str = "pod-init";

/// What its second execution has after [`ACTION`].
pub const IN_ROOT: &str = "in-root";

/// This program in the init's root.
const PROGRAM: &str = "pod-init";

/// What an init that is being started reports: nothing when it is ready, else why it failed.
pub struct Report(PipeReader);

impl Report {
    /// Blocks until it is ready or has failed. Answers its failure, or an empty text.
    pub fn read(mut self) -> io::Result<String> {
        let mut failure = String::new();
        self.0.read_to_string(&mut failure)?;
        Ok(failure)
    }
}

/// The command that is to be process 1 of a new pid namespace, with its root on `directory`.
pub fn command(directory: &Path) -> Result<(Command, Report)> {
    let (reader, writer) = io::pipe().context(|| "make a pipe")?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(crate::NAME)
        .arg(ACTION)
        .env_clear()
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::null());
    Ok((command, Report(reader)))
}

/// The first execution, in the directory that is to be the root: makes that, and executes this
/// program again, in there.
pub fn run() -> Result<()> {
    let failed = prepare();
    report(&failed);
    Err(failed)
}

fn report(failure: &Error) {
    // Without it the server reads an end, and then sees the exit.
    let _ = write!(io::stdout(), "{failure}");
}

/// Returns only if it fails.
fn prepare() -> Error {
    let execute = || -> Result<io::Error> {
        check_process_1()?;
        let root = std::env::current_dir().context(|| "get the working directory")?;
        enter_root(&root)?;
        let mut command = Command::new(Path::new("/").join(PROGRAM));
        command
            .arg0(crate::NAME)
            .args([ACTION, IN_ROOT])
            .env_clear();
        Ok(command.exec())
    };
    match execute() {
        Ok(error) => Error::unknown(format!("execute /{PROGRAM}: {error}")),
        Err(error) => error,
    }
}

/// It is no action for people: outside of a new pid namespace it would do as it is told.
fn check_process_1() -> Result<()> {
    match std::process::id() {
        1 => Ok(()),
        _ => Err(Error::invalid(format!(
            "{ACTION} is only for the shim itself"
        ))),
    }
}

/// Makes `root` the root of a mount namespace that has nothing but this program.
fn enter_root(root: &Path) -> Result<()> {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).context(|| "make a mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).context(|| "make all mounts private")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some(PROGRAM),
        root,
        Some("tmpfs"),
        flags,
        Some("size=4k,nr_inodes=4,mode=555"),
    )
    .context(|| format!("mount tmpfs on {}", root.display()))?;
    bind_program(&root.join(PROGRAM))?;
    let read_only = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(none, root, none, read_only, none).context(|| "make the root read-only")?;
    std::env::set_current_dir(root).context(|| format!("enter {}", root.display()))?;
    // The old root is mounted on the new one, and detached from it.
    pivot_root(".", ".").context(|| format!("make {} the root", root.display()))?;
    umount2(".", MntFlags::MNT_DETACH).context(|| "detach the old root")?;
    std::env::set_current_dir("/").context(|| "enter the root")
}

/// Binds this program's file, read-only: whoever gets hold of `/proc/1/exe` cannot write to it.
fn bind_program(target: &Path) -> Result<()> {
    let program = program()?;
    let none: Option<&str> = None;
    let mut options = fs::OpenOptions::new();
    let made = options
        .write(true)
        .create_new(true)
        .mode(0o555)
        .open(target);
    made.context(|| format!("make {}", target.display()))?;
    let what = || {
        format!(
            "bind {} read-only on {}",
            program.display(),
            target.display()
        )
    };
    mount(Some(&program), target, none, MsFlags::MS_BIND, none).context(what)?;
    let read_only = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV;
    mount(none, target, none, read_only, none).context(what)
}

/// This program's file, by its path: the mount that it was executed from is not in this mount
/// namespace. After an upgrade it is the new one.
fn program() -> Result<PathBuf> {
    const EXECUTABLE: &str = "/proc/self/exe";
    let path = fs::read_link(EXECUTABLE).context(|| format!("read {EXECUTABLE}"))?;
    let text = path.to_string_lossy();
    Ok(match text.strip_suffix(" (deleted)") {
        Some(old) if !path.exists() => old.into(),
        _ => path,
    })
}

/// The second execution: gives up all privileges, reports that it is ready, and reaps.
pub fn run_in_root() -> Result<()> {
    let begun = check_process_1()
        .and_then(|()| sys::process::give_up_privileges().context(|| "give up privileges"));
    if let Err(error) = begun {
        report(&error);
        return Err(error);
    }
    // The end of the report says that it is ready.
    sys::fd::close_all().context(|| "close all descriptors")?;
    let _ = sys::memory::release();
    let Err(error) = reaper::reap_for_ever();
    Err(error).context(|| "wait for children")
}
