//! `delete`: what has to be done when a container's server is gone, whether it left
//! in order or was killed.
//!
//! Promises: it answers whatever is missing or broken in the bundle, and within
//! containerd's 5 s whatever the OCI runtime or a file system does; it starts the runtime
//! only if that still knows the container, which after an orderly end it does not; it
//! reports on stderr what it could not do, and fails when the container lives on; it never
//! harms a server that is alive.
//!
//! What is in the container's cgroup is killed before the runtime is asked, which may hang;
//! a cgroup that it made and has no state of, or that it leaves, is removed.
//!
//! Of a sandbox everything goes that its record names: the containers above all, whose bundles
//! containerd may have removed without a call.
//!
//! Lacks on purpose: a search for processes outside of the cgroup. Without the runtime's
//! state there are none.

use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use crate::blocking;
use crate::bundle::Bundle;
use crate::cancel::{self, Cancel, Cause};
use crate::cgroup::{self, Plan, Planned};
use crate::cli::Flags;
use crate::error::{Context, Error, Kind, Result};
use crate::local;
use crate::mount;
use crate::options::Options;
use crate::proto::task::DeleteResponse;
use crate::proto::{Message, Timestamp};
use crate::reaper::Reaper;
use crate::runtime::{DELETE_PAUSE, Runtime};
use crate::sandbox::{Member, Record};
use crate::socket;

/// How long everything may take: after 5 s containerd kills this process.
const LIMIT: Duration = Duration::from_millis(4500);

/// How long it may take of that to kill what is in the cgroup.
const CGROUP_LIMIT: Duration = Duration::from_millis(700);

/// How long the OCI runtime may take.
const RUNTIME_LIMIT: Duration = Duration::from_secs(3);

/// How long it may take to remove the cgroup, and before that what is below.
const REMOVE_LIMIT: Duration = Duration::from_millis(300);

/// How long a killed runtime may take to end before the next step begins.
const KILL_LIMIT: Duration = Duration::from_millis(200);

/// What the OCI runtime leaves of [`LIMIT`] to the steps after it.
const TIME_AFTER_RUNTIME: Duration = Duration::from_millis(1300);

/// What an unmount leaves to the steps after it, and to detaching.
const TIME_AFTER_UNMOUNT: Duration = Duration::from_millis(500);

/// The pause before a process is looked at again: nobody reports the end of one that is
/// no child.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// 128 + `SIGKILL`: what containerd reports of a container that nobody waited for.
const KILLED: u32 = 137;

/// Does what `delete` is to do; the reply goes to `output`. What fails on the way is
/// reported on stderr, which containerd logs as warnings.
///
/// # Errors
/// When the container's init is still alive after all that. containerd then keeps the
/// bundle, and tries again when it starts next.
#[inline(never)] // as `serve::run`
pub fn run(flags: &Flags, output: &mut impl Write) -> Result<()> {
    let bundle = match flags.bundle.as_str() {
        "" => {
            Bundle::at(std::env::current_dir().context(|| "get the working directory, the bundle")?)
        }
        path => Bundle::at(path),
    };
    let pid = clean_up(flags, &bundle, &mut |warning| {
        // Go on without a stderr, too.
        let _ = writeln!(std::io::stderr(), "{}: {warning}", crate::NAME);
    })?;
    let reply = DeleteResponse {
        pid,
        exit_status: KILLED,
        exited_at: Some(Timestamp::now()).into(),
        ..DeleteResponse::default()
    };
    let reply = reply.write_to_bytes().context(|| "encode the reply")?;
    output
        .write_all(&reply)
        .and_then(|()| output.flush())
        .context(|| "write the reply")
}

/// Answers the pid of the container's init, 0 when unknown.
fn clean_up(flags: &Flags, bundle: &Bundle, warn: &mut impl FnMut(Error)) -> Result<u32> {
    let end = Instant::now() + LIMIT;
    let pid = bundle.init_pid().unwrap_or_else(|error| {
        warn(error);
        None
    });
    let cgroups_path = bundle.spec().ok().map(|spec| spec.linux.cgroups_path);
    let init = pid.map(|pid| Init::new(&flags.id, pid, cgroups_path.as_deref()));
    let reaper = Reaper::new();
    let steps = async {
        let (options, broken) = options(bundle);
        broken.unwrap_or_else(&mut *warn);
        let container = Container {
            id: &flags.id,
            namespace: &flags.namespace,
            bundle,
            options,
            cgroups_path,
        };
        let deleted = container.delete(&reaper, init.as_ref(), end).await;
        deleted.unwrap_or_else(&mut *warn);
        match Record::read(bundle) {
            Ok(None) => {}
            Ok(Some(record)) => {
                let failures = delete_sandbox(record, flags, bundle, &reaper, end).await;
                failures.into_iter().for_each(&mut *warn);
            }
            Err(error) => warn(error),
        }
        let limit = end.saturating_duration_since(Instant::now() + TIME_AFTER_UNMOUNT);
        let unmounted = mount::unmount_or_detach(&bundle.rootfs(), limit).await;
        unmounted.unwrap_or_else(&mut *warn);
        remove_socket(bundle).unwrap_or_else(&mut *warn);
        match &init {
            Some(init) => init.ended(end).await,
            None => Ok(()),
        }
    };
    reaper
        .block_on(steps)
        .context(|| "start the event loop")??;
    Ok(pid.unwrap_or_default() as u32)
}

/// The options in `bundle`, or if they are broken those by which the container is most likely
/// to be found, and the error.
fn options(bundle: &Bundle) -> (Options, Result<()>) {
    match bundle.options() {
        Ok(options) => (options, Ok(())),
        Err(error) => {
            let mut options = Options::default();
            let path = bundle.spec().unwrap_or_default().linux.cgroups_path;
            options.systemd_cgroup = cgroup::is_systemds(&options, &path);
            (options, Err(error))
        }
    }
}

/// A container that a server has left.
struct Container<'a> {
    id: &'a str,
    namespace: &'a str,
    bundle: &'a Bundle,
    options: Options,
    /// As `config.json` has it; `None` when that is gone or broken.
    cgroups_path: Option<String>,
}

impl Container<'_> {
    /// Kills it, has the runtime forget it, if that knows it, and removes its cgroup.
    async fn delete(&self, reaper: &Reaper, init: Option<&Init>, end: Instant) -> Result<()> {
        // The runtime needs a directory even if the bundle is gone.
        let place = match (self.bundle.path().is_dir(), self.bundle.path().parent()) {
            (false, Some(parent)) => parent,
            _ => self.bundle.path(),
        };
        let runtime = Runtime::new(reaper.clone(), &self.options, self.namespace, place);
        let is_known = runtime.state_dir(self.id).exists();
        let cgroup = self.planned_cgroup();
        if !is_known && cgroup.as_ref().is_none_or(|cgroup| !cgroup.exists()) {
            return Ok(());
        }
        let killed = match &cgroup {
            Some(cgroup) => cgroup.kill(CGROUP_LIMIT).await,
            None => Ok(()),
        };
        if let Some(cgroup) = &cgroup {
            cgroup.remove_below(REMOVE_LIMIT).await;
        }
        let deleted = match is_known {
            true => delete_by_runtime(&runtime, self.id, init, end).await,
            false => Ok(()),
        };
        // What the runtime has made meanwhile, too.
        let removed = match self.planned_cgroup() {
            Some(cgroup) => cgroup.remove(REMOVE_LIMIT).await,
            None => Ok(()),
        };
        deleted
            .and(killed)
            .and(removed)
            .map_err(|e| e.within(format!("delete container {}", self.id)))
    }

    /// The cgroup that `config.json` asks for.
    fn planned_cgroup(&self) -> Option<Planned> {
        let plan = Plan::new(self.id, self.cgroups_path.as_deref()?, &self.options);
        Planned::find(plan)
            .inspect_err(|e| log::warn!(id = self.id; "find the container's cgroup: {e}"))
            .ok()
    }
}

/// Deletes what a sandbox consists of: its containers, whose bundles may be gone, the pod's
/// init, and the files. Answers what failed.
async fn delete_sandbox(
    record: Record,
    flags: &Flags,
    bundle: &Bundle,
    reaper: &Reaper,
    end: Instant,
) -> Vec<Error> {
    let killed = record.init.as_ref().map_or(Ok(()), |init| init.kill());
    let delete = |(id, member): (String, Member)| {
        let (reaper, namespace) = (reaper.clone(), flags.namespace.clone());
        local::spawn(async move { delete_member(&id, &namespace, member, &reaper, end).await })
    };
    let members: Vec<_> = record.members.into_iter().map(delete).collect();
    let mut failures = Vec::from_iter(killed.err());
    for member in members {
        let deleted = member.await.context(|| "delete a container of the sandbox");
        failures.extend(deleted.unwrap_or_else(|error| vec![error]));
    }
    let dirs = record.dirs;
    let removing = blocking::run_always(move || dirs.remove());
    let limit = end.saturating_duration_since(Instant::now());
    let removed = cancel::within(limit, removing).await;
    let removed = removed.and_then(|removed| removed);
    failures.extend(removed.err().map(|e| {
        let path = bundle.path().display();
        e.within(format_args!("remove the files of the sandbox in {path}"))
    }));
    failures
}

/// Deletes a container of a sandbox. Answers what failed.
async fn delete_member(
    id: &str,
    namespace: &str,
    member: Member,
    reaper: &Reaper,
    end: Instant,
) -> Vec<Error> {
    let bundle = Bundle::at(member.bundle);
    let container = Container {
        id,
        namespace,
        bundle: &bundle,
        options: member.options,
        cgroups_path: Some(member.cgroups_path),
    };
    let pid = bundle.init_pid().ok().flatten();
    let init = pid.map(|pid| Init::new(id, pid, container.cgroups_path.as_deref()));
    let deleted = container.delete(reaper, init.as_ref(), end).await;
    let limit = end.saturating_duration_since(Instant::now() + TIME_AFTER_UNMOUNT);
    let unmounted = mount::unmount_or_detach(&bundle.rootfs(), limit).await;
    deleted.err().into_iter().chain(unmounted.err()).collect()
}

/// Has the runtime kill and forget container `id`. State that it cannot read is removed.
async fn delete_by_runtime(
    runtime: &Runtime,
    id: &str,
    init: Option<&Init>,
    end: Instant,
) -> Result<()> {
    let left = end.saturating_duration_since(Instant::now() + TIME_AFTER_RUNTIME);
    let limit = RUNTIME_LIMIT.min(left);
    let cancel = Cancel::after(limit);
    let is_dead = || init.is_none_or(|init| !init.is_alive());
    // Of the last try that was not cut short: an answer of the runtime says more than that it
    // was killed in the end.
    let failure = Cell::new(None);
    let last_failure = || {
        let last = failure.take();
        last.unwrap_or_else(|| Error::from(Cause::TimedOut(limit)))
    };
    let delete = async {
        loop {
            // To force it takes more: crun wants a pidfd, even of a process that has ended.
            if init.is_some() && is_dead() && runtime.delete(id, &cancel).await.is_ok() {
                return Ok(());
            }
            let Err(error) = runtime.force_delete(id, &cancel).await else {
                return Ok(());
            };
            failure.set(match failure.take() {
                Some(last) if cancel.is_expired() => Some(last),
                _ => Some(error),
            });
            if cancel.unless(sleep(DELETE_PAUSE)).await.is_err() {
                return Err(last_failure());
            }
        }
    };
    // Dropped, it is killed as well.
    let deleted = timeout(limit + KILL_LIMIT, delete).await;
    match deleted.unwrap_or_else(|_| Err(last_failure())) {
        Err(error) if is_dead() => runtime.forget_unreadable(id, error).await,
        deleted => deleted,
    }
}

/// The container's first process, as the bundle describes it.
struct Init {
    pid: i32,
    /// Its directory in `/proc`.
    proc: PathBuf,
    id: String,
    /// As `config.json` has it; empty when unknown.
    cgroups_path: String,
}

impl Init {
    fn new(id: &str, pid: i32, cgroups_path: Option<&str>) -> Init {
        Init {
            pid,
            proc: PathBuf::from(format!("/proc/{pid}")),
            id: id.to_owned(),
            cgroups_path: cgroups_path.unwrap_or_default().to_owned(),
        }
    }

    /// Waits for its end.
    async fn ended(&self, deadline: Instant) -> Result<()> {
        while self.is_alive() {
            if Instant::now() >= deadline {
                let text = format!(
                    "delete container {}: its init (process {}) is still alive",
                    self.id, self.pid
                );
                return Err(Error::new(Kind::FailedPrecondition, text));
            }
            sleep(LOOK_PAUSE).await;
        }
        Ok(())
    }

    /// Whether it runs, and not another process that has got its number: that would not
    /// be in the container's cgroup.
    fn is_alive(&self) -> bool {
        let read = |name| fs::read_to_string(self.proc.join(name));
        let (Ok(stat), Ok(cgroups)) = (read("stat"), read("cgroup")) else {
            return false;
        };
        !is_zombie(&stat) && self.is_in_its_cgroup(&cgroups)
    }

    /// Whether one of `cgroups`, of a `/proc/PID/cgroup`, is the one that the container was
    /// to have, or one below; without that, one that is named after the container.
    fn is_in_its_cgroup(&self, cgroups: &str) -> bool {
        let expected = match self.cgroups_path.split(':').collect::<Vec<_>>()[..] {
            [_slice, prefix, name] => format!("{prefix}-{name}.scope"),
            _ => self.cgroups_path.trim_matches('/').to_owned(),
        };
        let expected = match expected.is_empty() {
            true => &self.id,
            false => &expected,
        };
        let mut paths = cgroups
            .lines()
            .filter_map(|line| line.splitn(3, ':').nth(2));
        paths.any(|path| format!("{path}/").contains(&format!("/{expected}/")))
    }
}

/// Whether the process has ended and only has not been reaped, by its `/proc/PID/stat`.
fn is_zombie(stat: &str) -> bool {
    // The name before it is in parentheses, and may hold any character.
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    state.starts_with(['Z', 'X'])
}

/// Removes the server's socket; other containers of a pod may still be served on it.
fn remove_socket(bundle: &Bundle) -> Result<()> {
    let address = bundle.address()?.unwrap_or_default();
    match address.strip_prefix("unix://") {
        Some(path) => socket::remove_dead(Path::new(path)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Flags {
        Flags {
            namespace: "no-such-namespace".into(),
            id: "c1".into(),
            ..Flags::default()
        }
    }

    fn bundle() -> (tempfile::TempDir, Bundle) {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(dir.path());
        (dir, bundle)
    }

    fn clean(bundle: &Bundle) -> (u32, Vec<String>) {
        let mut warnings = Vec::new();
        let pid = clean_up(&flags(), bundle, &mut |e| warnings.push(e.to_string()));
        (pid.unwrap(), warnings)
    }

    #[test]
    fn empty_or_missing_bundle_needs_no_cleanup() {
        let (_dir, bundle) = bundle();
        assert_eq!(clean(&bundle), (0, vec![]));
        assert_eq!(clean(&Bundle::at("/no/such/bundle")), (0, vec![]));
    }

    #[test]
    fn reply_has_inits_pid_and_exit() {
        let (_dir, bundle) = bundle();
        fs::write(bundle.init_pid_file(), "4711").unwrap();
        let flags = Flags {
            bundle: bundle.path().display().to_string(),
            ..flags()
        };
        let mut reply = Vec::new();
        run(&flags, &mut reply).unwrap();
        assert!(
            reply.starts_with(b"\x08\xe7\x24\x10\x89\x01\x1a"),
            "{reply:?}"
        );
        let reply = DeleteResponse::parse_from_bytes(&reply).unwrap();
        assert!(reply.exited_at.seconds > 0);
    }

    #[test]
    fn malformed_files_are_warnings() {
        let (_dir, bundle) = bundle();
        for name in ["options.json", "bootstrap.json", "init.pid"] {
            fs::write(bundle.path().join(name), "{").unwrap();
        }
        let (pid, warnings) = clean(&bundle);
        assert_eq!((pid, warnings.len()), (0, 3), "{warnings:?}");
    }

    #[test]
    fn only_the_socket_of_a_dead_server_is_removed() {
        let (dir, bundle) = bundle();
        let path = dir.path().join("socket");
        bundle.write_address(&socket::address(&path)).unwrap();
        let listener = socket::claim_free(&path);
        assert_eq!(clean(&bundle), (0, vec![]));
        assert!(path.exists());
        socket::stop(listener);
        assert_eq!(clean(&bundle), (0, vec![]));
        assert!(!path.exists());
    }

    /// Process 42, as the files in `proc` describe it.
    fn init(proc: &Path, cgroups_path: &str) -> Init {
        Init {
            pid: 42,
            proc: proc.into(),
            id: "c1".into(),
            cgroups_path: cgroups_path.into(),
        }
    }

    #[test]
    fn init_is_identified_by_its_cgroup() {
        for (path, cgroups, expected) in [
            ("/k8s.io/c1", "0::/k8s.io/c1\n", true),
            ("/k8s.io/c1", "4:memory:/\n3:pids:/k8s.io/c1/nested\n", true),
            ("/k8s.io/c1", "0::/k8s.io/c11\n", false),
            ("/k8s.io/c1", "0::/user.slice\n", false),
            (
                "pod.slice:cri:c1",
                "0::/a/pod.slice/cri-c1.scope/container\n",
                true,
            ),
            ("pod.slice:cri:c1", "0::/a/pod.slice/cri-c2.scope\n", false),
            ("", "0::/default/c1\n", true),
            ("", "0::/default/c2\n", false),
            ("/", "0::/\n", false),
        ] {
            let init = init(Path::new("/"), path);
            assert_eq!(init.is_in_its_cgroup(cgroups), expected, "{path} {cgroups}");
        }
    }

    #[tokio::test]
    async fn init_that_is_still_alive_is_an_error() {
        let proc = tempfile::tempdir().unwrap();
        let init = init(proc.path(), "/k8s.io/c1");
        let put = |name, text| fs::write(proc.path().join(name), text).unwrap();
        init.ended(Instant::now()).await.expect("no such process");
        put("stat", "42 (a ) Z b) S 1 1");
        put("cgroup", "0::/k8s.io/c1\n");
        let error = init.ended(Instant::now()).await.unwrap_err();
        let expected = "delete container c1: its init (process 42) is still alive";
        assert_eq!(error.to_string(), expected);
        put("cgroup", "0::/others\n");
        init.ended(Instant::now()).await.expect("a reused pid");
        put("cgroup", "0::/k8s.io/c1\n");
        put("stat", "42 (S) Z 1 1");
        init.ended(Instant::now()).await.expect("a zombie");
    }

    /// The bundle of a container that the runtime, `binary`, knows.
    fn with_runtime(binary: &str) -> (tempfile::TempDir, Bundle) {
        let (dir, bundle) = bundle();
        let options = Options {
            binary_name: binary.into(),
            root: dir.path().join("root").display().to_string(),
            ..Options::default()
        };
        bundle.write_options(&options).unwrap();
        let state = dir.path().join("root/no-such-namespace/c1");
        fs::create_dir_all(&state).unwrap();
        fs::write(state.join("state.json"), "{}").unwrap();
        (dir, bundle)
    }

    #[test]
    fn container_with_runtime_state_is_deleted_by_the_runtime() {
        let (_dir, bundle) = with_runtime("true");
        assert_eq!(clean(&bundle), (0, vec![]));
        let (_dir, bundle) = with_runtime("false");
        let (_, warnings) = clean(&bundle);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].starts_with("delete container c1: "),
            "{warnings:?}"
        );
    }

    #[test]
    fn unreadable_runtime_state_is_removed() {
        let (dir, bundle) = with_runtime("false");
        let state = dir.path().join("root/no-such-namespace/c1");
        fs::write(state.join("state.json"), "").unwrap();
        assert_eq!(clean(&bundle), (0, vec![]));
        assert!(!state.exists());
    }
}
