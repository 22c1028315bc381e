//! The OCI runtime's command line: one typed method for each verb. The state of containers is
//! the runtime's; here is none. Needs a running [`Reaper`].

mod broken_state;
mod command;
pub(crate) mod flavor;

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use command::{CommandLog, Failure, MemoryFile, Output};

use crate::blocking;
use crate::cancel::Cancel;
use crate::error::{Context, Error, Kind, Result};
use crate::options::Options;
use crate::reaper::Reaper;
use crate::stdio::Opened;

/// The runtime when the options name none.
const DEFAULT_BINARY: &str = "runc";
/// Where runtimes keep state when the options name no root.
const DEFAULT_ROOT: &str = "/run/containerd/runc";

/// How many times [`Runtime::kill_and_delete`] runs the runtime, at most.
const DELETE_ATTEMPTS: u32 = 10;
/// The time between two of these attempts.
pub const DELETE_PAUSE: Duration = Duration::from_millis(200);

/// An OCI runtime, for the containers of one namespace.
pub struct Runtime {
    reaper: Reaper,
    binary: String,
    root: PathBuf,
    systemd_cgroup: bool,
    no_pivot_root: bool,
    no_new_keyring: bool,
    /// The directory that it runs in.
    bundle: PathBuf,
    /// The number of the next invocation, for the names of its files.
    sequence: Cell<u64>,
}

/// A checkpoint to make; the options are CRIU's.
#[derive(Debug, Clone, Default)]
pub struct Checkpoint {
    /// Where the image goes.
    pub image_path: String,
    /// Where CRIU works and logs.
    pub work_path: PathBuf,
    /// An earlier image that this one builds on; empty: none.
    pub parent_path: String,
    /// End the container afterwards.
    pub exit: bool,
    /// Keep established TCP connections.
    pub open_tcp: bool,
    /// Keep sockets to processes outside.
    pub external_unix_sockets: bool,
    /// The container has a terminal.
    pub terminal: bool,
    /// Keep file locks.
    pub file_locks: bool,
    /// Namespaces to restore empty.
    pub empty_namespaces: Vec<String>,
    /// `soft`, `full`, `strict`, `ignore`; empty: CRIU's default.
    pub cgroups_mode: String,
}

/// A checkpoint to restore.
pub struct Restore<'a> {
    /// Where the image is.
    pub image_path: &'a str,
    /// Where CRIU works and logs.
    pub work_path: &'a Path,
    /// Where the pid is to be written.
    pub pid_file: &'a Path,
}

impl Runtime {
    /// The runtime that `options` name, for containers of `namespace`. It runs in `bundle`,
    /// where its invocations' pid files are made and removed again.
    pub fn new(reaper: Reaper, options: &Options, namespace: &str, bundle: &Path) -> Runtime {
        let non_empty = |name: &str, default: &str| match name {
            "" => default.to_owned(),
            name => name.to_owned(),
        };
        Runtime {
            reaper,
            binary: non_empty(&options.binary_name, DEFAULT_BINARY),
            root: Path::new(&non_empty(&options.root, DEFAULT_ROOT)).join(namespace),
            systemd_cgroup: options.systemd_cgroup,
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            bundle: bundle.to_owned(),
            sequence: Cell::new(0),
        }
    }

    /// The runtime's executable, by name or path.
    pub fn binary(&self) -> &str {
        &self.binary
    }

    /// Where the runtime keeps its state of container `id`.
    pub fn state_dir(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// Makes container `id` from the bundle: its init waits for [`Runtime::start`],
    /// its pid, which this answers, is in `pid_file`.
    pub async fn create(
        &self,
        id: &str,
        pid_file: &Path,
        io: &mut Opened,
        cancel: &Cancel,
    ) -> Result<i32> {
        let mut call = self.call("create", id)?;
        call.arg("--bundle").arg(&self.bundle);
        call.arg("--pid-file").arg(pid_file);
        call.console(io);
        if self.no_pivot_root {
            call.arg("--no-pivot");
        }
        if self.no_new_keyring {
            call.arg("--no-new-keyring");
        }
        call.arg(id);
        call.run_with(io, cancel)
            .await
            .map_err(failed("OCI runtime create failed"))?;
        read_pid(pid_file)
    }

    /// Starts the init of a created container.
    pub async fn start(&self, id: &str, cancel: &Cancel) -> Result<()> {
        self.run_verb("start", id, cancel)
            .await
            .map_err(failed("OCI runtime start failed"))
    }

    /// Restores container `id` from a checkpoint's image. Answers its init's pid.
    pub async fn restore(
        &self,
        id: &str,
        restore: &Restore<'_>,
        io: &mut Opened,
        cancel: &Cancel,
    ) -> Result<i32> {
        let mut call = self.call("restore", id)?;
        call.arg("--image-path").arg(restore.image_path);
        call.arg("--work-path").arg(restore.work_path);
        // What the checkpoint may hold. Without these options CRIU refuses connections and
        // sockets, and drops file locks.
        for flag in ["--tcp-established", "--ext-unix-sk", "--file-locks"] {
            call.arg(flag);
        }
        call.arg("--detach").arg("--pid-file").arg(restore.pid_file);
        call.console(io);
        if self.no_pivot_root {
            call.arg("--no-pivot");
        }
        call.arg("--no-subreaper")
            .arg("--bundle")
            .arg(&self.bundle)
            .arg(id);
        if let Err(failure) = call.run_with(io, cancel).await {
            let log = restore.work_path.join("restore.log");
            let failure = self.with_criu_log(failure, &log).await;
            return Err(failed("OCI runtime restore failed")(failure));
        }
        read_pid(restore.pid_file)
    }

    /// Writes the state of container `id` to an image.
    pub async fn checkpoint(
        &self,
        id: &str,
        checkpoint: &Checkpoint,
        cancel: &Cancel,
    ) -> Result<()> {
        let mut call = self.call("checkpoint", id)?;
        call.arg("--image-path").arg(&checkpoint.image_path);
        call.arg("--work-path").arg(&checkpoint.work_path);
        if !checkpoint.parent_path.is_empty() {
            call.arg("--parent-path").arg(&checkpoint.parent_path);
        }
        for (set, flag) in [
            (checkpoint.open_tcp, "--tcp-established"),
            (checkpoint.external_unix_sockets, "--ext-unix-sk"),
            (checkpoint.terminal, "--shell-job"),
            (checkpoint.file_locks, "--file-locks"),
            (!checkpoint.exit, "--leave-running"),
        ] {
            if set {
                call.arg(flag);
            }
        }
        for namespace in &checkpoint.empty_namespaces {
            call.arg("--empty-ns").arg(namespace);
        }
        if !checkpoint.cgroups_mode.is_empty() {
            call.arg("--manage-cgroups-mode")
                .arg(&checkpoint.cgroups_mode);
        }
        call.arg(id);
        if let Err(failure) = call.run(cancel).await {
            let log = checkpoint.work_path.join("dump.log");
            let failure = self.with_criu_log(failure, &log).await;
            return Err(failed("OCI runtime checkpoint failed")(failure));
        }
        Ok(())
    }

    /// Copies CRIU's log to the bundle, and adds its path and CRIU's error to the failure: the
    /// runtime reports only that CRIU failed.
    async fn with_criu_log(&self, failure: Failure, log: &Path) -> Failure {
        let Failure::Exit(text) = failure else {
            return failure;
        };
        let name = log.file_name().unwrap_or_default().to_string_lossy();
        let kept = self.bundle.join(format!("criu-{name}"));
        let (from, to) = (log.to_owned(), kept.clone());
        let copied = blocking::run(move || fs::copy(from, &to).and_then(|_| fs::read(to))).await;
        // It failed before there was a log.
        let Ok(Ok(log)) = copied else {
            return Failure::Exit(text);
        };
        let (log, kept) = (String::from_utf8_lossy(&log), kept.display());
        let text = text.lines().next().unwrap_or_default();
        Failure::Exit(match flavor::criu_error(&log) {
            Some(cause) => format!("{text}: {cause} path= {kept}"),
            None => format!("{text} path= {kept}"),
        })
    }

    /// Starts a process in container `id` from `spec`, an OCI process as JSON. Answers its pid.
    /// On failure, a process that was started all the same is killed.
    pub async fn exec(
        &self,
        id: &str,
        spec: &[u8],
        io: &mut Opened,
        cancel: &Cancel,
    ) -> Result<i32> {
        let mut call = self.call("exec", id)?;
        let spec_file = MemoryFile::holding(spec, &self.bundle)?;
        let pid_file = call.file("pid");
        call.arg("--process").arg(spec_file.path());
        call.console(io);
        call.arg("--detach").arg("--pid-file").arg(&pid_file.0);
        call.arg(id);
        match call.run_with(io, cancel).await {
            Ok(()) => read_pid(&pid_file.0),
            Err(failure) => {
                // The runtime may have been killed after it had started the process.
                if let Ok(pid) = read_pid(&pid_file.0) {
                    self.kill_child(pid, id, io.exec_id());
                }
                Err(failed("OCI runtime exec failed")(failure))
            }
        }
    }

    /// Kills a process that a runtime started before it was killed itself: the process is a
    /// child of this one now, as its parent is gone.
    fn kill_child(&self, pid: i32, id: &str, exec: &str) {
        let adopted = self.reaper.adopt(pid);
        let killed = adopted.and_then(|(child, _)| child.signal(Signal::SIGKILL as i32));
        if let Err(error) = killed {
            log::debug!(id, exec; "kill process {pid} that the OCI runtime started: {error}");
        }
    }

    /// Sends `signal` to all processes of container `id`.
    pub async fn kill_all(&self, id: &str, signal: u32, cancel: &Cancel) -> Result<()> {
        let mut call = self.call("kill", id)?;
        call.arg("--all").arg(id).arg(signal.to_string());
        match call.run(cancel).await {
            Ok(_) => Ok(()),
            Err(Failure::Exit(text)) if flavor::says_process_finished(&text) => {
                Err(Error::not_found("process already finished"))
            }
            Err(Failure::Exit(text)) if flavor::says_no_such_container(&text) => {
                Err(Error::not_found("no such container"))
            }
            Err(failure) => Err(failed("unknown error after kill")(failure)),
        }
    }

    /// Freezes all processes of container `id`.
    pub async fn pause(&self, id: &str, cancel: &Cancel) -> Result<()> {
        self.run_verb("pause", id, cancel)
            .await
            .map_err(failed("OCI runtime pause failed"))
    }

    /// Thaws them.
    pub async fn resume(&self, id: &str, cancel: &Cancel) -> Result<()> {
        self.run_verb("resume", id, cancel)
            .await
            .map_err(failed("OCI runtime resume failed"))
    }

    /// Applies `resources`, OCI `LinuxResources` as JSON, to container `id`.
    pub async fn update(&self, id: &str, resources: &[u8], cancel: &Cancel) -> Result<()> {
        let mut call = self.call("update", id)?;
        let file = MemoryFile::holding(resources, &self.bundle)?;
        call.arg("--resources").arg(file.path()).arg(id);
        call.run(cancel)
            .await
            .map(drop)
            .map_err(failed("OCI runtime update failed"))
    }

    /// Deletes container `id`, whose processes have exited. It is no error if the runtime does
    /// not know the container. State that the runtime cannot read is removed; the answer is
    /// false then, since the container's cgroup is left.
    pub async fn delete(&self, id: &str, cancel: &Cancel) -> Result<bool> {
        match self.delete_with(&[], id, cancel).await {
            Err(error) => self.forget_unreadable(id, error).await.map(|()| false),
            Ok(()) => Ok(true),
        }
    }

    /// Removes the runtime's state of container `id` if the runtime cannot read it, and
    /// therefore has failed with `error`; else answers that error. Call it when no process of
    /// the container is left.
    pub async fn forget_unreadable(&self, id: &str, error: Error) -> Result<()> {
        if !self.state_dir(id).exists() {
            return Err(error);
        }
        let (root, name) = (self.root.clone(), id.to_owned());
        let removed = blocking::run_always(move || broken_state::remove_unreadable(&root, &name));
        let removed = removed.await?;
        let state = self.state_dir(id);
        let state = state.display();
        match removed.context(|| format!("remove the OCI runtime's state {state}"))? {
            true => log::warn!(id; "{error}: removed unreadable OCI runtime state {state}"),
            false => return Err(error),
        }
        Ok(())
    }

    /// Kills container `id` and deletes it, in several attempts: youki fails while what it has
    /// killed is still dying.
    pub async fn kill_and_delete(&self, id: &str, cancel: &Cancel) -> Result<()> {
        for _ in 1..DELETE_ATTEMPTS {
            if self.force_delete(id, cancel).await.is_ok() {
                return Ok(());
            }
            cancel.unless(tokio::time::sleep(DELETE_PAUSE)).await?;
        }
        self.force_delete(id, cancel).await
    }

    /// As [`Runtime::kill_and_delete`], once.
    pub async fn force_delete(&self, id: &str, cancel: &Cancel) -> Result<()> {
        self.delete_with(&["--force"], id, cancel).await
    }

    async fn delete_with(&self, options: &[&str], id: &str, cancel: &Cancel) -> Result<()> {
        let mut call = self.call("delete", id)?;
        for option in options {
            call.arg(option);
        }
        call.arg(id);
        match call.run(cancel).await {
            Ok(_) => Ok(()),
            Err(Failure::Exit(text)) if flavor::says_no_such_container(&text) => Ok(()),
            Err(failure) => Err(failed("failed to delete task")(failure)),
        }
    }

    /// The runtime's features, as the JSON that it prints. [`Kind::NotFound`]: there is no such
    /// runtime; [`Kind::Unimplemented`]: it does not print them.
    pub async fn features(&self, cancel: &Cancel) -> Result<Vec<u8>> {
        let call = self.call("features", "")?;
        match call.run(cancel).await {
            Ok(json) => Ok(json),
            Err(Failure::Spawn(error)) => Err(error),
            Err(Failure::Exit(text)) => Err(Error::new(Kind::Unimplemented, text)),
            Err(Failure::Killed(cause)) => Err(Error::new(Kind::Unimplemented, cause.to_string())),
        }
    }

    async fn run_verb(
        &self,
        verb: &str,
        id: &str,
        cancel: &Cancel,
    ) -> std::result::Result<(), Failure> {
        let mut call = self.call(verb, id).map_err(Failure::Spawn)?;
        call.arg(id);
        call.run(cancel).await.map(drop)
    }

    fn call<'a>(&'a self, verb: &'a str, id: &'a str) -> Result<Call<'a>> {
        let number = self.sequence.get();
        self.sequence.set(number + 1);
        let stem = self
            .bundle
            .join(format!("{verb}.{}.{number}", std::process::id()));
        let log = MemoryFile::new(&self.bundle)?;
        let mut command = Command::new(&self.binary);
        // systemd's socket for containerd: the runtime must not report on it.
        command.env_remove("NOTIFY_SOCKET");
        if self.bundle.is_dir() {
            // The server's own directory may be gone: it is the bundle of the pod's first
            // container.
            command.current_dir(&self.bundle);
        }
        command.arg("--root").arg(&self.root);
        command
            .arg("--log")
            .arg(log.path())
            .args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.arg(verb);
        Ok(Call {
            reaper: &self.reaper,
            verb,
            id,
            command,
            log,
            stem,
        })
    }
}

/// An invocation that is being prepared.
struct Call<'a> {
    reaper: &'a Reaper,
    verb: &'a str,
    /// The container's id.
    id: &'a str,
    command: Command,
    log: MemoryFile,
    stem: PathBuf,
}

impl Call<'_> {
    fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.command.arg(arg);
        self
    }

    fn console(&mut self, io: &Opened) {
        if let Some(socket) = io.console_socket() {
            self.arg("--console-socket").arg(socket);
        }
    }

    /// A file of this invocation; dropping the result removes it.
    fn file(&self, name: &str) -> TemporaryFile {
        TemporaryFile(self.stem.with_added_extension(name))
    }

    async fn run(self, cancel: &Cancel) -> std::result::Result<Vec<u8>, Failure> {
        let about = CommandLog::new(self.verb, self.id, "", &self.command);
        let Call { command, log, .. } = self;
        let run = command::run(self.reaper, command, log, Output::Captured, cancel, about);
        // Boxed: keeps the future of each request small.
        Box::pin(run).await
    }

    async fn run_with(
        mut self,
        io: &mut Opened,
        cancel: &Cancel,
    ) -> std::result::Result<(), Failure> {
        let given = io.give_to(&mut self.command).map_err(Failure::Spawn)?;
        let output = if given {
            Output::Container
        } else {
            Output::Captured
        };
        let about = CommandLog::new(self.verb, self.id, io.exec_id(), &self.command);
        let run = command::run(self.reaper, self.command, self.log, output, cancel, about);
        Box::pin(run).await.map(drop)
    }
}

struct TemporaryFile(PathBuf);

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Reads a pid that a runtime wrote: digits, no newline.
fn read_pid(file: &Path) -> Result<i32> {
    let text = fs::read_to_string(file).context(|| format!("read {}", file.display()))?;
    text.trim()
        .parse()
        .context(|| format!("read a pid from {}", file.display()))
}

/// Puts the operation before a failure's text.
fn failed(operation: &'static str) -> impl Fn(Failure) -> Error {
    move |failure| match failure {
        // The client sees a failed operation, not a missing object.
        Failure::Spawn(error) => Error::unknown(error.to_string()).within(operation),
        Failure::Exit(text) => Error::unknown(text).within(operation),
        Failure::Killed(cause) => Error::from(cause).within(format_args!("{operation}: killed")),
    }
}
