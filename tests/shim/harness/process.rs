//! Children of the test process, and its adopted orphans: it is a subreaper, so that
//! a shim's server becomes its child when `start` ends, as it becomes containerd's.
//!
//! One thread reaps everything into a ledger; whoever wants an exit waits on the
//! ledger with a deadline and a name for what it waits for.

// The harness plays containerd: what only the shim's reaper may do, only this file may do here.
#![allow(clippy::disallowed_methods, clippy::zombie_processes)]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

/// How a command ended and what it wrote.
#[derive(Debug)]
pub struct Output {
    /// The exit code, or 128 + signal.
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Output {
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

#[derive(Default)]
struct Ledger {
    exits: Mutex<HashMap<i32, i32>>,
    news: Condvar,
}

fn ledger() -> &'static Ledger {
    static LEDGER: OnceLock<Ledger> = OnceLock::new();
    LEDGER.get_or_init(|| {
        nix::sys::prctl::set_child_subreaper(true).expect("become a subreaper");
        std::thread::spawn(reap);
        Ledger::default()
    })
}

/// Reaps for ever. A child that lives as long as we do keeps `waitid` blocking.
fn reap() {
    let keeper = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn();
    let _keeper = keeper.expect("spawn cat");
    loop {
        // Left waitable until the ledger is locked: its number cannot be used again before.
        waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).expect("wait for children");
        let mut exits = ledger().exits.lock().unwrap();
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            match status {
                WaitStatus::Exited(pid, code) => exits.insert(pid.as_raw(), code),
                WaitStatus::Signaled(pid, signal, _) => {
                    exits.insert(pid.as_raw(), 128 + signal as i32)
                }
                _ => break,
            };
        }
        ledger().news.notify_all();
    }
}

/// Spawns `command`; its exit goes to the ledger.
pub fn spawn(command: &mut Command) -> Child {
    // Under the lock: an exit of an older process with this number is forgotten, a new one cannot come before.
    let mut exits = ledger().exits.lock().unwrap();
    let child = command.spawn();
    if let Ok(child) = &child {
        exits.remove(&(child.id() as i32));
    }
    drop(exits);
    child.unwrap_or_else(|error| panic!("spawn {command:?}: {error}"))
}

/// Makes `path` a program, which does what the shell `script` says.
///
/// Another process writes it: the kernel executes nothing that is open for writing, and
/// a child that another thread is just starting has copies of our descriptors.
#[track_caller]
pub fn write_program(path: &Path, script: &str) {
    let mut writer = Command::new("sh");
    writer
        .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
        .arg(path);
    let text = format!("#!/bin/sh\n{script}\n");
    let output = run(&mut writer, text.as_bytes(), Duration::from_secs(60));
    assert_eq!(output.status, 0, "write {path:?}: {output:?}");
}

/// Makes sure that orphans come to this process from now on.
pub fn adopt_orphans() {
    ledger();
}

/// The processes with `text` in their command line.
pub fn running(text: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("read /proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let command_line = |pid: i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    pids.filter(|&pid| String::from_utf8_lossy(&command_line(pid)).contains(text))
        .collect()
}

/// What `/proc/PID/status` says of `key`.
#[track_caller]
pub fn status_line(pid: i32, key: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("read a status");
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    let line = lines.find(|(name, _)| *name == key);
    line.unwrap_or_else(|| panic!("no {key}")).1.trim().into()
}

/// Whether a process with this number exists.
pub fn alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Waits for the exit of child `pid`: the code, or 128 + signal.
#[track_caller]
pub fn wait(pid: i32, what: &str, hang_timeout: Duration) -> i32 {
    let deadline = Instant::now() + hang_timeout;
    let mut exits = ledger().exits.lock().unwrap();
    loop {
        match exits.get(&pid) {
            Some(&status) if !alive(pid) => return status,
            _ => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            drop(exits);
            panic!("{what} (pid {pid}) did not end within {hang_timeout:?}");
        }
        exits = ledger().news.wait_timeout(exits, left).unwrap().0;
    }
}

/// Runs `command` with `stdin` to its end, and to the end of its output: a process
/// it leaves behind must hold neither pipe.
#[track_caller]
pub fn run(command: &mut Command, stdin: &[u8], hang_timeout: Duration) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let what = format!("{command:?}");
    let mut child = spawn(command);
    let pid = child.id() as i32;
    // It may not read; that is its business.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let stdout = to_end(child.stdout.take().unwrap());
    let stderr = to_end(child.stderr.take().unwrap());
    let end = |stream: Receiver<Vec<u8>>, name| {
        stream.recv_timeout(hang_timeout).unwrap_or_else(|_| {
            signal(pid, Signal::SIGKILL);
            panic!("{name} of {what} not closed within {hang_timeout:?}")
        })
    };
    let (stdout, stderr) = (end(stdout, "stdout"), end(stderr, "stderr"));
    Output {
        status: wait(pid, &what, hang_timeout),
        stdout,
        stderr,
    }
}

fn to_end(mut stream: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// Sends a signal by its number, which may be a real-time one.
#[track_caller]
pub fn signal_number(pid: i32, signal: i32) {
    let mut kill = Command::new("sh");
    kill.args(["-c", &format!("kill -{signal} {pid}")]);
    let output = run(&mut kill, &[], Duration::from_secs(60));
    assert_eq!(output.status, 0, "kill -{signal} {pid}: {output:?}");
}

/// Sends a signal; to a process that is gone: nothing.
pub fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}
