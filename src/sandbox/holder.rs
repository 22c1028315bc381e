//! What keeps a sandbox's namespaces alive while no container is in them: a parked thread of
//! the server, or, when the pod shares its pids, a process that is their init.
//!
//! Promises: only that thread enters the namespaces; the server's main thread and what it
//! starts stay in the node's. When a holder has ended, it keeps no namespace alive. Of one that
//! could not be made nothing is left.
//!
//! Lacks on purpose: user namespaces. A thread cannot enter one alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{gettid, sethostname};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::config::Config;
use crate::blocking;
use crate::error::{Context, Error, Result};
use crate::pod_init;
use crate::reaper::{Child, Exited, Reaper, SIGKILL};

/// Stack of the parked thread, in bytes: enough for a few system calls and their errors. Only
/// what is touched counts.
const STACK_SIZE: usize = 64 << 10;

/// How long the thread may take to leave its namespaces.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What holds a sandbox's namespaces.
pub enum Holder {
    /// All namespaces are the node's: nothing.
    Nothing,
    /// A parked thread.
    Thread(Parked),
    /// The init of the pod's pid namespace.
    Init(Child),
}

impl Holder {
    /// Makes the namespaces of `config`. Also answers the exit of the init, if there is one.
    /// `directory` is an empty directory, on which an init has its root.
    pub async fn new(
        config: &Config,
        directory: &Path,
        reaper: &Reaper,
    ) -> Result<(Holder, Option<Exited>)> {
        let plan = Plan::of(config);
        if plan.is_empty() && !config.shares_pids() {
            return Ok((Holder::Nothing, None));
        }
        let thread = Parked::new(plan).await?;
        if !config.shares_pids() {
            return Ok((Holder::Thread(thread), None));
        }
        let started = start_init(&thread, directory, reaper).await;
        // The init is in them now, or nobody is to be.
        thread.end().await;
        let (init, exited) = started.map_err(|e| e.within("start the pod's init"))?;
        Ok((Holder::Init(init), Some(exited)))
    }

    /// A number whose `/proc/NUMBER/ns` has the namespaces.
    pub fn pid(&self) -> u32 {
        match self {
            Holder::Nothing => std::process::id(),
            Holder::Thread(thread) => thread.tid as u32,
            Holder::Init(init) => init.pid as u32,
        }
    }

    /// The pid of the init, if there is one.
    pub fn init_pid(&self) -> Option<i32> {
        match self {
            Holder::Init(init) => Some(init.pid),
            Holder::Nothing | Holder::Thread(_) => None,
        }
    }

    /// Ends it. An init is killed, and with it all in its pid namespace; its exit is reported
    /// as any.
    pub async fn end(self) {
        match self {
            Holder::Nothing => {}
            Holder::Thread(thread) => thread.end().await,
            // ESRCH: it has exited.
            Holder::Init(init) => _ = init.signal(SIGKILL),
        }
    }
}

/// The namespaces of a sandbox but for that of pids, and what is set in them.
struct Plan {
    /// The network namespace to join; `None`: the node's.
    netns: Option<PathBuf>,
    /// Those to be made.
    new: CloneFlags,
    /// Empty: as the node's.
    hostname: String,
    sysctls: BTreeMap<String, String>,
}

impl Plan {
    fn of(config: &Config) -> Plan {
        let mut new = CloneFlags::empty();
        new.set(CloneFlags::CLONE_NEWIPC, !config.has_node_ipc());
        new.set(CloneFlags::CLONE_NEWUTS, !config.has_node_network());
        let has_own_name = new.contains(CloneFlags::CLONE_NEWUTS);
        let netns = (!config.has_node_network()).then(|| config.netns_path.clone().into());
        Plan {
            netns,
            new,
            hostname: match has_own_name {
                true => config.hostname.clone(),
                false => String::new(),
            },
            sysctls: config.all_sysctls(),
        }
    }

    /// Whether all namespaces are the node's.
    fn is_empty(&self) -> bool {
        self.netns.is_none() && self.new.is_empty()
    }

    /// Has the calling thread enter the namespaces, and sets what is to be set in them.
    fn enter(&self) -> Result<()> {
        if let Some(path) = &self.netns {
            let joined = || format!("join network namespace {}", path.display());
            let netns = File::open(path).context(joined)?;
            setns(netns, CloneFlags::CLONE_NEWNET).context(joined)?;
        }
        unshare(self.new).context(|| "make namespaces")?;
        if !self.hostname.is_empty() {
            let name = &self.hostname;
            sethostname(name).context(|| format!("set hostname {name:?}"))?;
        }
        self.sysctls.iter().try_for_each(|(name, value)| {
            let path = sysctl_path(name);
            fs::write(&path, value).context(|| format!("write {value:?} to {}", path.display()))
        })
    }
}

/// The file of a kernel parameter. As in sysctl(8), the first separator is the one that counts:
/// in `net.ipv4.conf.eth0/1.x` and in `net/ipv4/conf/eth0.1/x` the interface is `eth0.1`.
fn sysctl_path(name: &str) -> PathBuf {
    let first = name.chars().find(|c| matches!(c, '.' | '/'));
    let name = match first {
        Some('/') => name.to_owned(),
        _ => {
            let swap = |c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            };
            name.chars().map(swap).collect()
        }
    };
    Path::new("/proc/sys").join(name)
}

/// A thread that is in a sandbox's namespaces and does nothing else.
pub struct Parked {
    tid: i32,
    /// Dropped, it lets the thread go on, to its end.
    release: mpsc::Sender<()>,
    ended: oneshot::Receiver<()>,
}

impl Parked {
    async fn new(plan: Plan) -> Result<Parked> {
        let (ready, entered) = oneshot::channel();
        let (release, released) = mpsc::channel();
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("sandbox".into())
            .stack_size(STACK_SIZE)
            .spawn(move || {
                let nodes = own_namespaces();
                let tid = gettid().as_raw();
                let result = plan.enter().map(|()| tid);
                drop(plan);
                // Nobody sends: it returns when the other end is dropped.
                if ready.send(result).is_ok() {
                    let _ = released.recv();
                }
                // It would keep them alive for a moment after its end is known.
                nodes.into_iter().for_each(|(file, kind)| {
                    let _ = setns(file, kind);
                });
                drop(end);
            })
            .context(|| "start the thread of a sandbox")?;
        let entered = entered.await;
        let tid = entered.map_err(|_| Error::unknown("thread of a sandbox panicked"))??;
        Ok(Parked {
            tid,
            release,
            ended,
        })
    }

    /// Lets it leave the namespaces.
    async fn end(self) {
        drop(self.release);
        // Always an error, when the thread is at its end.
        if timeout(END_TIMEOUT, self.ended).await.is_err() {
            log::error!("end the thread of a sandbox: not done within {END_TIMEOUT:?}");
        }
    }

    /// The namespaces that it is in.
    fn namespaces(&self) -> Result<Vec<OwnedFd>> {
        let open = |kind: &str| {
            let path = format!("/proc/self/task/{}/ns/{kind}", self.tid);
            let file = File::open(&path).context(|| format!("open {path}"))?;
            Ok(OwnedFd::from(file))
        };
        ["net", "ipc", "uts"].into_iter().map(open).collect()
    }
}

/// The namespaces of the process, which are the node's.
fn own_namespaces() -> Vec<(File, CloneFlags)> {
    let kinds = [
        ("net", CloneFlags::CLONE_NEWNET),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
    ];
    let open = |(name, kind)| Some((File::open(format!("/proc/self/ns/{name}")).ok()?, kind));
    kinds.into_iter().filter_map(open).collect()
}

/// Starts the init of a new pid namespace, in the namespaces of `thread`, and waits until it is
/// ready.
async fn start_init(thread: &Parked, directory: &Path, reaper: &Reaper) -> Result<(Child, Exited)> {
    let (command, ready) = pod_init::command(directory)?;
    let spawned = reaper.spawn_init(command, thread.namespaces()?);
    let spawned = spawned.context(|| "fork")?;
    let (init, exited) = spawned.started().await.context(|| "execute this program")?;
    // If this future is dropped, so is the init.
    let init = KillOnDrop(Some(init));
    let failure = blocking::run(move || ready.read()).await?;
    let failure = failure.context(|| "read its report")?;
    if !failure.is_empty() {
        return Err(Error::unknown(failure));
    }
    Ok((init.keep(), exited))
}

/// A child that is killed if nobody keeps it.
struct KillOnDrop(Option<Child>);

impl KillOnDrop {
    fn keep(mut self) -> Child {
        self.0.take().expect("taken once")
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(child) = &self.0 {
            // ESRCH: it has exited.
            let _ = child.signal(SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_kernel_parameters() {
        for (name, path) in [
            ("net.core.somaxconn", "net/core/somaxconn"),
            ("net/core/somaxconn", "net/core/somaxconn"),
            ("net.ipv4.conf.eth0/1.x", "net/ipv4/conf/eth0.1/x"),
            ("net/ipv4/conf/eth0.1/x", "net/ipv4/conf/eth0.1/x"),
        ] {
            assert_eq!(sysctl_path(name), Path::new("/proc/sys").join(path));
        }
    }
}
