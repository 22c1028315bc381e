//! An OCI runtime that misbehaves on demand: a script around the real one, which
//! blocks before or after a verb, or fails it, and notes how it was called.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;

use super::process::{self, write_program};
use super::stdio::make_fifo;

/// Where a call blocks.
#[derive(Debug, Clone, Copy)]
pub enum At {
    /// Before the real runtime is run.
    Before,
    /// After it succeeded, before its caller learns it.
    After,
}

/// The script, and the directory that it takes its orders from.
pub struct FakeRuntime {
    dir: PathBuf,
    hang_timeout: Duration,
}

impl FakeRuntime {
    /// A script in the new directory `dir` around `real`.
    pub fn new(dir: &Path, real: &str, hang_timeout: Duration) -> FakeRuntime {
        fs::create_dir(dir).expect("make the fake runtime's directory");
        let script = SCRIPT
            .replace("REAL", real)
            .replace("DIR", dir.to_str().unwrap());
        write_program(&dir.join("runtime"), &script);
        FakeRuntime {
            dir: dir.into(),
            hang_timeout,
        }
    }

    /// The script's path, for `binary_name`.
    pub fn path(&self) -> String {
        self.dir.join("runtime").to_str().unwrap().into()
    }

    /// Kills all its processes, as the kernel does for want of memory.
    pub fn kill(&self) {
        for pid in process::running(&self.path()) {
            process::signal(pid, Signal::SIGKILL);
        }
    }

    /// The verbs it was called with, in order.
    pub fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        calls.lines().map(String::from).collect()
    }

    /// All arguments of the last call of `verb`.
    #[track_caller]
    pub fn arguments(&self, verb: &str) -> Vec<String> {
        self.recorded(verb, "arguments")
    }

    /// The environment of the last call of `verb`, as the shell prints it.
    #[track_caller]
    pub fn environment(&self, verb: &str) -> Vec<String> {
        self.recorded(verb, "environment")
    }

    #[track_caller]
    fn recorded(&self, verb: &str, what: &str) -> Vec<String> {
        let file = self.dir.join(format!("{verb}.{what}"));
        let text = fs::read_to_string(file);
        let text = text.unwrap_or_else(|_| panic!("the runtime was not called with {verb}"));
        text.lines().map(String::from).collect()
    }

    /// From now on `verb` does what it should again.
    pub fn stop_failing(&self, verb: &str) {
        fs::remove_file(self.dir.join(format!("{verb}.fail"))).expect("call a failure off");
    }

    /// From now on `verb` fails with `message`, in the log and on stderr.
    pub fn fail(&self, verb: &str, message: &str) {
        fs::write(self.dir.join(format!("{verb}.fail")), message).expect("order a failure");
    }

    /// From now on `verb` fails with `message` on stderr alone.
    pub fn fail_on_stderr(&self, verb: &str, message: &str) {
        fs::write(self.dir.join(format!("{verb}.fail-on-stderr")), message)
            .expect("order a refusal");
    }

    /// From now on `verb` fails, and appends `text` to the log as it is.
    pub fn fail_with_log(&self, verb: &str, text: &str) {
        self.fail(verb, "");
        fs::write(self.dir.join(format!("{verb}.log")), text).expect("order a log");
    }

    /// The next `verb` blocks, until the result is released or dropped.
    pub fn hold(&self, verb: &str, at: At) -> Held {
        let fifo = self.dir.join(format!("{verb}.{at:?}"));
        make_fifo(&fifo);
        let (sender, reached) = channel();
        let path = fifo.clone();
        std::thread::spawn(move || {
            // Returns when the script opens its end.
            let opened = OpenOptions::new().write(true).open(path);
            let _ = opened.map(|file| sender.send(file));
        });
        Held {
            fifo,
            reached,
            what: format!("{at:?} {verb}"),
            hang_timeout: self.hang_timeout,
            gate: None,
        }
    }
}

/// A verb that blocks.
pub struct Held {
    fifo: PathBuf,
    reached: Receiver<File>,
    what: String,
    hang_timeout: Duration,
    gate: Option<File>,
}

impl Held {
    /// Waits until the runtime blocks there.
    #[track_caller]
    pub fn reached(&mut self) {
        let gate = self.reached.recv_timeout(self.hang_timeout);
        self.gate =
            Some(gate.unwrap_or_else(|_| panic!("the runtime did not come to {}", self.what)));
    }

    /// Lets it go on.
    pub fn release(self) {}
}

impl Drop for Held {
    fn drop(&mut self) {
        // In this order: whoever comes later does not block. The open frees a thread that still waits.
        let orphan = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(&self.fifo);
        let _ = fs::remove_file(&self.fifo);
        drop(self.gate.take());
        drop(orphan);
    }
}

const SCRIPT: &str = r#"dir=DIR
while [ $# -gt 0 ]; do
  case $1 in
    create|start|exec|kill|delete|state|ps|pause|resume|update|checkpoint|restore|features) verb=$1; break;;
    --log) log=$2; seen="$seen $1 $2"; shift 2;;
    *) seen="$seen $1"; shift;;
  esac
done
echo $verb >> $dir/calls
printf '%s\n' $seen "$@" > $dir/$verb.arguments
export -p > $dir/$verb.environment
if [ -p $dir/$verb.Before ]; then read x < $dir/$verb.Before; fi
if [ -e $dir/$verb.log ]; then cat $dir/$verb.log >> $log; fi
if [ -e $dir/$verb.fail-on-stderr ]; then cat $dir/$verb.fail-on-stderr >&2; exit 1; fi
if [ -e $dir/$verb.fail ]; then
  [ -s $dir/$verb.fail ] || exit 1
  cat $dir/$verb.fail >&2
  echo "{\"level\":\"error\",\"msg\":\"$(cat $dir/$verb.fail)\",\"time\":\"2024-01-01T00:00:00Z\"}" >> $log
  exit 1
fi
if [ -p $dir/$verb.After ]; then
  REAL $seen "$@" || exit
  read x < $dir/$verb.After
  exit 0
fi
exec REAL $seen "$@"
"#;
