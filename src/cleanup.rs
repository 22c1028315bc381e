//! `delete`: what has to be done when a container's server is gone, whether it left
//! in order or was killed.
//!
//! Promises: it answers whatever is missing or broken in the bundle, and within
//! containerd's 5 s whatever the OCI runtime does; it starts that only if it still
//! knows the container, which after an orderly end it does not; it never harms a
//! server that is alive.
//!
//! What is in the container's cgroup is killed before the runtime is asked, which may hang;
//! a cgroup that it made and has no state of, or that it leaves, is removed.
//!
//! Lacks on purpose: a search for processes outside of the cgroup. Without the runtime's
//! state there are none.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::bundle::Bundle;
use crate::cancel::Cancel;
use crate::cgroup::{Plan, Planned};
use crate::cli::Flags;
use crate::error::{Context, Error, Result};
use crate::mount;
use crate::options::Options;
use crate::proto::task::DeleteResponse;
use crate::proto::{Message, Timestamp};
use crate::reaper::Reaper;
use crate::runtime::Runtime;
use crate::socket;

/// How long it may take to kill what is in the cgroup, for the OCI runtime to do its part,
/// and to remove the cgroup: containerd allows 5 s for everything.
const KILL_LIMIT: Duration = Duration::from_millis(700);
const RUNTIME_LIMIT: Duration = Duration::from_secs(3);
const REMOVE_LIMIT: Duration = Duration::from_millis(500);

/// 128 + `SIGKILL`: what containerd reports of a container that nobody waited for.
const KILLED: u32 = 137;

/// Does what `delete` is to do; the reply goes to `output`. What fails on the way is
/// told on stderr, which containerd logs as warnings.
pub fn run(flags: &Flags, output: &mut impl Write) -> Result<()> {
    let bundle = match flags.bundle.as_str() {
        "" => Bundle::at(std::env::current_dir().context(|| "find the bundle")?),
        path => Bundle::at(path),
    };
    let pid = clean_up(flags, &bundle, &mut |warning| {
        // Go on without a stderr, too.
        let _ = writeln!(std::io::stderr(), "{}: {warning}", crate::NAME);
    });
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
fn clean_up(flags: &Flags, bundle: &Bundle, warn: &mut impl FnMut(Error)) -> u32 {
    let mut check = |result: Result<()>| result.unwrap_or_else(&mut *warn);
    check(delete_container(flags, bundle));
    check(mount::unmount_all_blocking(&bundle.rootfs()));
    check(remove_socket(bundle));
    match bundle.init_pid() {
        Ok(pid) => pid.unwrap_or_default() as u32,
        Err(error) => {
            warn(error);
            0
        }
    }
}

/// Kills the container, has the runtime forget it, if that knows it, and removes its cgroup.
fn delete_container(flags: &Flags, bundle: &Bundle) -> Result<()> {
    // Broken options are told below; the container is most likely where the
    // defaults say.
    let (options, broken) = match bundle.options() {
        Ok(options) => (options, Ok(())),
        Err(error) => (Options::default(), Err(error)),
    };
    let reaper = Reaper::new();
    // The runtime's log needs a place even if the bundle is gone.
    let place = match (bundle.path().is_dir(), bundle.path().parent()) {
        (false, Some(parent)) => parent,
        _ => bundle.path(),
    };
    let runtime = Runtime::new(reaper.clone(), &options, &flags.namespace, place);
    let is_known = runtime.state_dir(&flags.id).exists();
    let cgroup = planned_cgroup(flags, bundle, &options);
    if !is_known && cgroup.as_ref().is_none_or(|cgroup| !cgroup.exists()) {
        return broken;
    }
    let delete = async {
        let killed = match &cgroup {
            Some(cgroup) => cgroup.kill(KILL_LIMIT).await,
            None => Ok(()),
        };
        let deleted = match is_known {
            true => delete_by_runtime(&runtime, &flags.id).await,
            false => Ok(()),
        };
        // What the runtime has made meanwhile, too.
        let removed = match planned_cgroup(flags, bundle, &options) {
            Some(cgroup) => cgroup.remove(REMOVE_LIMIT).await,
            None => Ok(()),
        };
        deleted.and(killed).and(removed)
    };
    reaper
        .block_on(delete)
        .context(|| "start the event loop")?
        .map_err(|e| e.within(format!("delete container {}", flags.id)))
        .and(broken)
}

/// Has the runtime kill and forget container `id`. Left alone when that takes too long, it
/// dies with this process.
async fn delete_by_runtime(runtime: &Runtime, id: &str) -> Result<()> {
    let limit = Cancel::after(RUNTIME_LIMIT);
    runtime.kill_and_delete(id, &limit).await
}

/// The cgroup that `config.json` asks for; `None` when that is gone or broken.
fn planned_cgroup(flags: &Flags, bundle: &Bundle, options: &Options) -> Option<Planned> {
    let spec = bundle.spec().ok()?;
    let plan = Plan {
        cgroups_path: &spec.linux.cgroups_path,
        id: &flags.id,
        systemd: options.systemd_cgroup,
        shim_cgroup: &options.shim_cgroup,
    };
    Planned::find(plan)
        .inspect_err(|e| log::warn!("find the cgroup of {}: {e}", flags.id))
        .ok()
}

/// Removes the server's socket; other containers of a pod may still be served on it.
fn remove_socket(bundle: &Bundle) -> Result<()> {
    let address = bundle.address()?.unwrap_or_default();
    match address.strip_prefix("unix://") {
        Some(path) => socket::remove_dead(Path::new(path)).context(|| format!("remove {path}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
        (pid, warnings)
    }

    #[test]
    fn an_empty_or_missing_bundle_is_clean() {
        let (_dir, bundle) = bundle();
        assert_eq!(clean(&bundle), (0, vec![]));
        assert_eq!(clean(&Bundle::at("/no/such/bundle")), (0, vec![]));
    }

    #[test]
    fn the_reply_names_init_and_its_end() {
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
    fn broken_files_are_warnings() {
        let (_dir, bundle) = bundle();
        for name in ["options.json", "bootstrap.json", "init.pid"] {
            fs::write(bundle.path().join(name), "{").unwrap();
        }
        let (pid, warnings) = clean(&bundle);
        assert_eq!((pid, warnings.len()), (0, 3), "{warnings:?}");
    }

    #[test]
    fn a_dead_servers_socket_goes_and_a_live_ones_stays() {
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

    /// The bundle of a container that the runtime, `binary`, knows.
    fn with_runtime(binary: &str) -> (tempfile::TempDir, Bundle) {
        let (dir, bundle) = bundle();
        let options = Options {
            binary_name: binary.into(),
            root: dir.path().join("root").display().to_string(),
            ..Options::default()
        };
        bundle.write_options(&options).unwrap();
        fs::create_dir_all(dir.path().join("root/no-such-namespace/c1")).unwrap();
        (dir, bundle)
    }

    #[test]
    fn a_container_that_the_runtime_knows_is_deleted_by_it() {
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
}
