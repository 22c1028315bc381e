//! `ctr`, each call bounded in time, with one naming of the runtime.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::world::{self, limit};

/// The image that `hack/daemon` imports.
pub const IMAGE: &str = "localhost/busybox:latest";

/// How the daemon is told which shim to use.
#[derive(Clone, Copy, PartialEq)]
pub enum Naming {
    /// `--runtime /path/of/the/shim`.
    Path,
    /// `io.containerd.rs.v2`, looked up on containerd's PATH.
    Name,
    /// `io.containerd.runc.v2`: ours, found before containerd's own.
    DropIn,
}

/// Runs `ctr` with one naming of the runtime.
pub struct Ctr {
    /// The naming in use.
    pub naming: Naming,
}

/// What a finished `ctr` left.
#[derive(Debug)]
pub struct Done {
    /// Its exit status.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

/// A `ctr` that still runs.
pub struct Running {
    line: String,
    stdin: Option<ChildStdin>,
    stdout: Output,
    done: Receiver<Done>,
}

/// What has been printed so far.
type Output = Arc<Mutex<Vec<u8>>>;

/// Whether an unprivileged user can have cgroups here: there is v2 alone.
pub fn users_have_cgroups() -> bool {
    fs::exists("/sys/fs/cgroup/cgroup.controllers").expect("look for cgroup v2")
}

/// For `ctr run` where there are no cgroups: make none, and set no limit.
fn without_cgroups() -> &'static [&'static str] {
    let is_rootless = std::env::var_os("ROOTLESS").is_some();
    if is_rootless && !users_have_cgroups() {
        &["--cgroup=", "--cpu-shares=0"]
    } else {
        &[]
    }
}

impl Ctr {
    /// A `ctr` which names the runtime so.
    pub fn new(naming: Naming) -> Self {
        Self { naming }
    }

    /// The runtime's name for `ctr run --runtime`.
    pub fn runtime(&self) -> &'static str {
        match self.naming {
            Naming::Path => "/run/containerd/shims/containerd-shim-rs-v2",
            Naming::Name => "io.containerd.rs.v2",
            Naming::DropIn => "io.containerd.runc.v2",
        }
    }

    /// A `ctr` with these words as arguments.
    pub fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new("ctr");
        command.args(args).stdin(Stdio::null());
        command
    }

    /// The command `ctr run --runtime … OPTIONS IMAGE ID ARGS`.
    pub fn run_command(&self, options: &[&str], id: &str, args: &[&str]) -> Command {
        let words = [
            &["run", "--runtime", self.runtime()],
            without_cgroups(),
            options,
            &[IMAGE, id],
            args,
        ]
        .concat();
        self.command(words)
    }

    /// Runs `ctr WORDS`, whatever its end; `words` are split at blanks.
    pub fn call(&self, words: &str) -> Done {
        Running::start(self.command(words.split_whitespace())).wait()
    }

    /// Runs `ctr WORDS`, which must succeed; returns its output.
    pub fn ok(&self, words: &str) -> String {
        let done = self.call(words);
        assert!(done.status.success(), "ctr {words}: {done:?}");
        done.stdout
    }

    /// Runs a container, whatever its end.
    pub fn run(&self, options: &[&str], id: &str, args: &[&str]) -> Done {
        Running::start(self.run_command(options, id, args)).wait()
    }

    /// Starts a container that stays, running `script`.
    pub fn detached(&self, id: &str, script: &str) {
        let done = self.run(&["-d"], id, &["sh", "-c", script]);
        assert!(done.status.success(), "run -d {id}: {done:?}");
    }

    /// Executes `script` in a container, whatever its end.
    pub fn exec(&self, id: &str, exec: &str, script: &str) -> Done {
        let words = ["task", "exec", "--exec-id", exec, id, "sh", "-c", script];
        Running::start(self.command(words)).wait()
    }

    /// The status that `ctr task ls` shows, and the pid; none without a task.
    pub fn task(&self, id: &str) -> Option<(i32, String)> {
        let list = self.ok("task ls");
        let mut rows = list
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|row| row[0] == id)?;
        Some((row[1].parse().expect("a pid"), row[2].to_owned()))
    }

    /// Waits until `ctr task ls` shows this status.
    pub fn until_status(&self, id: &str, status: &str) {
        let wanted = format!("task {id} to be {status}");
        world::until(&wanted, || {
            self.task(id).is_some_and(|(_, now)| now == status)
        });
    }

    /// Deletes a task that has ended; its exit code, not 0, must be `code`.
    pub fn delete_task(&self, id: &str, code: i32) {
        let done = self.call(&format!("task delete {id}"));
        let warning = format!("task {id} exit with non-zero exit code {code}\"");
        assert!(done.stderr.contains(&warning), "wanted {code}: {done:?}");
    }

    /// Kills and deletes a container that runs.
    pub fn remove(&self, id: &str) {
        self.ok(&format!("task kill --signal SIGKILL {id}"));
        self.until_status(id, "STOPPED");
        self.delete_task(id, 137);
        self.ok(&format!("container delete {id}"));
    }
}

impl Done {
    /// The exit code; none becomes -1.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Fails unless the exit code and the output are these.
    pub fn expect(&self, code: i32, stdout: &str) {
        assert_eq!(
            (self.code(), self.stdout.as_str()),
            (code, stdout),
            "{self:?}"
        );
    }

    /// Fails unless this call failed with a message that contains `text`.
    pub fn expect_error(&self, text: &str) {
        assert!(
            !self.status.success() && self.stderr.contains(text),
            "wanted {text:?}: {self:?}"
        );
    }
}

impl Running {
    /// Starts `command`; its output is collected.
    pub fn start(mut command: Command) -> Self {
        let line = format!("{command:?}");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("spawn {line}: {error}"));
        let stdin = child.stdin.take();
        let stdout = Output::default();
        let done = collect(child, stdout.clone());
        Self {
            line,
            stdin,
            stdout,
            done,
        }
    }

    /// Starts `command` with a standard input to [`Running::write`] to.
    pub fn with_stdin(mut command: Command) -> Self {
        command.stdin(Stdio::piped());
        Self::start(command)
    }

    /// Writes to its standard input.
    pub fn write(&mut self, data: &[u8]) {
        self.stdin
            .as_mut()
            .expect("a piped stdin")
            .write_all(data)
            .expect("write to ctr");
    }

    /// Waits until `wanted` is part of its standard output.
    pub fn until_output(&self, wanted: &str) {
        let what = format!("{wanted:?} from {}", self.line);
        world::until(&what, || text(&self.stdout).contains(wanted));
    }

    /// Closes its standard input, and waits for its end.
    pub fn wait(mut self) -> Done {
        self.stdin = None;
        self.wait_with_open_stdin()
    }

    /// Waits for its end; its standard input stays open until then.
    pub fn wait_with_open_stdin(self) -> Done {
        let done = self.done.recv_timeout(limit());
        done.unwrap_or_else(|_| panic!("waited {:?} for the end of {}", limit(), self.line))
    }
}

/// Reads all of a child's output and waits for its end, on threads.
fn collect(mut child: Child, stdout: Output) -> Receiver<Done> {
    let (send, receive) = channel();
    let out = child.stdout.take().expect("piped");
    let err = child.stderr.take().expect("piped");
    std::thread::spawn(move || {
        let stderr = Output::default();
        let to = stderr.clone();
        let reader = std::thread::spawn(move || read_all(err, &to));
        read_all(out, &stdout);
        reader.join().expect("the reader of stderr");
        let _ = send.send(Done {
            status: child.wait().expect("wait for ctr"),
            stdout: text(&stdout),
            stderr: text(&stderr),
        });
    });
    receive
}

fn read_all(mut from: impl Read, to: &Output) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut to = to.lock().expect("no panic while locked");
        to.extend_from_slice(&buffer[..count]);
    }
}

fn text(output: &Output) -> String {
    let bytes = output.lock().expect("no panic while locked");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The daemon's events as `ctr events` prints them, from the moment of `Events::subscribe`.
pub struct Events {
    child: Child,
    lines: Receiver<String>,
}

impl Events {
    /// Returns when the subscription is known to work.
    pub fn subscribe(ctr: &Ctr) -> Self {
        let mut child = ctr
            .command(["events"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("spawn ctr");
        let out = child.stdout.take().expect("piped");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in std::io::BufRead::lines(std::io::BufReader::new(out)).map_while(Result::ok)
            {
                let _ = send.send(line);
            }
        });
        let events = Self { child, lines };
        // Nothing says when the subscription begins: make events until one arrives.
        let mut round = 0;
        world::until("ctr events to show an event", || {
            round += 1;
            ctr.ok(&format!("namespace create probe-{round}"));
            events.lines.recv_timeout(Duration::from_millis(50)).is_ok()
        });
        events
    }

    /// The topics of the `/tasks/` events, up to and with `last`.
    pub fn tasks_until(&self, last: &str) -> Vec<String> {
        let mut topics = Vec::new();
        loop {
            let line = self
                .lines
                .recv_timeout(limit())
                .unwrap_or_else(|_| panic!("waited {:?} for {last} after {topics:?}", limit()));
            let Some(topic) = line
                .split_whitespace()
                .find_map(|word| word.strip_prefix("/tasks/"))
            else {
                continue;
            };
            topics.push(topic.to_owned());
            if topic == last {
                return topics;
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
