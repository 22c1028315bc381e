//! `docker`, each call bounded in time, with one way of naming the shim.

use std::fs::{self, File};
use std::io::Write;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::world::{self, SHIMS, limit};

/// The image that `hack/docker` imports.
pub const IMAGE: &str = "busybox";

/// A script of a container that stays until it is killed.
pub const STAY: &str = "exec sleep 1000";

/// The part of `daemon.json` for [`Door::DaemonJson`].
const RUNTIMES: &str = r#""runtimes": {"rs": {"runtimeType": "io.containerd.rs.v2"}}"#;

/// How Docker is told which shim to use.
#[derive(Clone, Copy, PartialEq)]
pub enum Door {
    /// `--runtime io.containerd.rs.v2`.
    Name,
    /// A name of `daemon.json`, with a `runtimeType`.
    DaemonJson,
    /// None: ours is found before containerd's own.
    DropIn,
}

/// Runs `docker` with one way of naming the shim.
pub struct Docker {
    door: Door,
}

/// What a finished `docker` left.
#[derive(Debug)]
pub struct Done {
    /// Its exit code; -1 after a signal.
    pub code: i32,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

/// A `docker` that still runs, with standard input to write to.
pub struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    output: String,
}

impl Docker {
    /// A `docker` which names the shim so.
    pub fn new(door: Door) -> Self {
        let docker = Self { door };
        if door == Door::DaemonJson {
            docker.configure(&format!("{{{RUNTIMES}}}"));
            docker.reload("rs");
        }
        docker
    }

    /// Has containers live on while dockerd is away.
    pub fn live_restore(&self) {
        let runtimes = match self.door {
            Door::DaemonJson => format!(", {RUNTIMES}"),
            Door::Name | Door::DropIn => String::new(),
        };
        self.configure(&format!("{{\"live-restore\": true{runtimes}}}"));
        self.reload("runc");
        world::until("dockerd to restore live", || {
            self.ok("info --format {{.LiveRestoreEnabled}}") == "true"
        });
    }

    /// Writes `daemon.json`.
    pub fn configure(&self, text: &str) {
        fs::write("/etc/docker/daemon.json", text).expect("write daemon.json");
    }

    /// Has dockerd read `daemon.json` again, and waits until it knows the runtime `name`.
    pub fn reload(&self, name: &str) {
        let status = Command::new("systemctl")
            .args(["reload", "docker"])
            .status();
        assert!(status.expect("run systemctl").success());
        world::until(&format!("dockerd to know the runtime {name}"), || {
            let info = self.call_words(&["info", "--format", "{{json .Runtimes}}"]);
            info.stdout.contains(&format!("\"{name}\":{{"))
        });
    }

    /// Runs `docker` with these words, whatever its end.
    pub fn call_words(&self, words: &[&str]) -> Done {
        let mut command = bounded(words);
        Done::from(
            command
                .stdin(Stdio::null())
                .output()
                .expect("run timeout(1)"),
        )
    }

    /// Runs `docker WORDS`, whatever its end; `words` are split at blanks.
    pub fn call(&self, words: &str) -> Done {
        self.call_words(&words.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs `docker WORDS`, which must succeed; returns its output without the last newline.
    pub fn ok(&self, words: &str) -> String {
        let done = self.call(words);
        assert_eq!(done.code, 0, "docker {words}: {done:?}");
        done.stdout.trim_end().to_owned()
    }

    /// Runs `docker WORDS sh -c SCRIPT`, whatever its end.
    pub fn script(&self, words: &str, script: &str) -> Done {
        self.call_words(&with_script(words, script))
    }

    /// `run --runtime … OPTIONS IMAGE`, as the beginning of a command.
    pub fn run_words(&self, options: &str) -> String {
        let runtime = match self.door {
            Door::Name => "--runtime io.containerd.rs.v2",
            Door::DaemonJson => "--runtime rs",
            Door::DropIn => "",
        };
        // Without a network a container starts faster; no case is about it.
        format!("run --network none {runtime} {options} {IMAGE}")
    }

    /// Runs a container with `script` and removes it, whatever its end.
    pub fn run(&self, options: &str, script: &str) -> Done {
        self.script(&self.run_words(&format!("--rm {options}")), script)
    }

    /// Starts a container that runs `script`; ours must serve it.
    pub fn start(&self, name: &str, options: &str, script: &str) {
        let words = self.run_words(&format!("-d --name {name} {options}"));
        let done = self.script(&words, script);
        assert_eq!(done.code, 0, "{done:?}");
        self.assert_served(name);
    }

    /// Fails unless the container's server is the shim under test.
    fn assert_served(&self, name: &str) {
        // A container may have ended by now, and its server, too.
        let wanted = match self.door {
            Door::Name | Door::DaemonJson => "io.containerd.rs.v2",
            Door::DropIn => "io.containerd.runc.v2",
        };
        let config = self.inspect(name, "{{.HostConfig.Runtime}}");
        let named = match config.as_str() {
            "rs" => "io.containerd.rs.v2",
            "runc" => "io.containerd.runc.v2",
            other => other,
        };
        assert_eq!(named, wanted, "the runtime of {name}");
        if let Some(program) = self.server(name) {
            assert_eq!(program, format!("{SHIMS}/containerd-shim-rs-v2"));
        }
    }

    /// The program that serves the container, while it does.
    pub fn server(&self, name: &str) -> Option<String> {
        let pid = self.server_pid(name)?;
        let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        Some(program.to_string_lossy().into_owned())
    }

    /// The pid of the container's shim.
    pub fn server_pid(&self, name: &str) -> Option<i32> {
        let id = self.inspect(name, "{{.Id}}");
        let wanted = format!(" -namespace {} -id {id} ", world::NAMESPACE);
        let all = world::processes();
        let found = all.iter().find(|(_, line)| line.contains(&wanted));
        found.map(|(pid, _)| *pid)
    }

    /// A field of a container, by a Go template.
    pub fn inspect(&self, name: &str, template: &str) -> String {
        let done = self.call_words(&["inspect", "--format", template, name]);
        assert_eq!(done.code, 0, "{done:?}");
        done.stdout.trim_end().to_owned()
    }

    /// The pid of the container's init.
    pub fn pid(&self, name: &str) -> i32 {
        let pid = self.inspect(name, "{{.State.Pid}}").parse();
        pid.expect("a pid")
    }

    /// The container's status, such as `running` or `exited`.
    pub fn status(&self, name: &str) -> String {
        self.inspect(name, "{{.State.Status}}")
    }

    /// Waits until the container's status and exit code are these, such as `exited 9`.
    pub fn until_state(&self, name: &str, wanted: &str) {
        let template = "{{.State.Status}} {{.State.ExitCode}}";
        let mut state = String::new();
        let what = format!("{name} to be {wanted}");
        let is_there = world::try_until(&mut || {
            state = self.inspect(name, template);
            state == wanted
        });
        assert!(is_there, "waited {} s for {what}: it is {state}", limit());
    }

    /// Waits for the container's end; returns its exit code.
    pub fn wait(&self, name: &str) -> i32 {
        let code = self.ok(&format!("wait {name}"));
        code.parse().expect("an exit code")
    }

    /// Waits until the logs of the container contain `text`.
    pub fn until_logged(&self, name: &str, text: &str) {
        world::until(&format!("{text:?} in the logs of {name}"), || {
            self.ok(&format!("logs {name}")).contains(text)
        });
    }

    /// Removes the container, whatever it does.
    pub fn remove(&self, name: &str) {
        self.ok(&format!("rm -f {name}"));
    }

    /// Starts `docker WORDS sh -c SCRIPT`, to be spoken to.
    pub fn session(&self, words: &str, script: &str) -> Session {
        Session::start(bounded(&with_script(words, script)))
    }

    /// Starts `docker WORDS`, to be spoken to.
    pub fn session_words(&self, words: &str) -> Session {
        Session::start(bounded(&words.split_whitespace().collect::<Vec<_>>()))
    }

    /// Starts `docker WORDS`, and `sh -c SCRIPT` if there is one, on a terminal of 33 lines and 121 columns.
    pub fn session_on_terminal(&self, words: &str, script: Option<&str>) -> Session {
        let mut line = "stty rows 33 cols 121; exec docker".to_owned();
        let words = match script {
            Some(script) => with_script(words, script),
            None => words.split_whitespace().collect(),
        };
        for word in words {
            line += &format!(" '{}'", word.replace('\'', r"'\''"));
        }
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", &limit().to_string(), "script", "-qefc"]);
        command.args([&line, "/dev/null"]);
        Session::start(command)
    }
}

/// `docker WORDS`, killed after [`limit`].
fn bounded(words: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", &limit().to_string(), "docker"]);
    command.args(words);
    command
}

fn with_script<'a>(words: &'a str, script: &'a str) -> Vec<&'a str> {
    let words = words.split_whitespace();
    words.chain(["sh", "-c", script]).collect()
}

impl Done {
    /// Fails unless the exit code and the output are these.
    pub fn expect(&self, code: i32, stdout: &str) {
        assert_eq!(
            (self.code, self.stdout.as_str()),
            (code, stdout),
            "{self:?}"
        );
    }

    /// Fails unless the exit code is this, and the standard error contains `text`.
    pub fn expect_error(&self, code: i32, text: &str) {
        assert!(
            self.code == code && self.stderr.contains(text),
            "wanted {code} and {text:?}: {self:?}"
        );
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Session {
    /// Starts `command`; its output goes to a file.
    fn start(mut command: Command) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let output = format!("/run/session-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let file = File::create(&output).expect("create a file for the output");
        let mut child = command
            .stdin(Stdio::piped())
            .stderr(file.try_clone().expect("duplicate a descriptor"))
            .stdout(file)
            .spawn()
            .expect("spawn timeout(1)");
        let stdin = child.stdin.take();
        Self {
            child,
            stdin,
            output,
        }
    }

    /// Writes to its standard input.
    pub fn write(&mut self, data: &[u8]) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        stdin.write_all(data).expect("write to docker");
    }

    /// What it printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).expect("read the output")).into_owned()
    }

    /// Waits until `wanted` is part of its output.
    pub fn until_output(&self, wanted: &str) {
        world::until(&format!("{wanted:?} from docker"), || {
            self.output().contains(wanted)
        });
    }

    /// Kills the `docker` that timeout(1) runs.
    pub fn kill(&mut self) {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.expect("the children of timeout(1)");
        let status = Command::new("kill")
            .arg("-KILL")
            .arg(children.trim())
            .status();
        assert!(status.expect("run kill").success(), "kill docker");
        self.child.wait().expect("wait for timeout(1)");
    }

    /// Closes its standard input.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// Waits for its end (standard input stays open until then); returns its exit code and output.
    pub fn wait(mut self) -> (i32, String) {
        let stdin = self.stdin.take();
        let status = self.child.wait().expect("wait for docker");
        drop(stdin);
        (status.code().unwrap_or(-1), self.output())
    }
}
