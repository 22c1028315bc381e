//! The shim servers that run on this machine: found in `/proc`, and asked through their
//! sockets. Other shims' are found, too, and known as far as `/proc` tells.
//!
//! Promises: an answer in [`LIMIT`] and a moment, however many servers hang. A server in another
//! mount namespace, as that of a rootless containerd, is asked, too.
//!
//! Lacks on purpose: servers of users whose processes the caller may not look at.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::runtime::LocalOptions;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cli::{self, Action};
use crate::error::{Context, Error, Kind, Result};
use crate::reaper;
use crate::report::{METHOD, Report, SERVICE};
use crate::sys;
use crate::ttrpc::client::{Client, Failure};

/// How long a server may take to answer.
pub const LIMIT: Duration = Duration::from_secs(2);

/// What the file names of shims begin with.
const SHIM: &str = "containerd-shim-";

/// In `/proc/net/unix`: a socket that accepts connections.
const ACCEPTS: u32 = 1 << 16;

/// One server.
#[derive(Debug, Clone, Serialize)]
pub struct Server {
    /// Its pid.
    pub pid: i32,
    /// containerd's namespace.
    pub namespace: String,
    /// The ID that it was started for: the container's, or that of a pod's first container.
    pub id: String,
    /// Its program's file; ` (deleted)` follows if it was removed or replaced.
    pub binary: PathBuf,
    /// containerd's socket.
    pub containerd: String,
    /// Its own socket.
    pub socket: Option<PathBuf>,
    /// Seconds since it was started.
    pub uptime: u64,
    /// Resident memory in kB.
    pub rss: u64,
    /// Its report, if it is a server of this shim.
    pub report: Option<Report>,
    /// Why there is no report.
    pub error: Option<String>,
}

/// All servers, by pid, with their reports.
pub fn ask_all() -> Result<Vec<Server>> {
    let found = find(Path::new("/proc"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context(|| "start the event loop")?;
    let mut servers = runtime.block_on(async {
        let mut asked = JoinSet::new();
        for server in found {
            asked.spawn_local(server.asked());
        }
        asked.join_all().await
    });
    servers.sort_by_key(|server| server.pid);
    Ok(servers)
}

/// The servers among the processes of `proc`.
fn find(proc: &Path) -> Result<Vec<Server>> {
    let entries = fs::read_dir(proc).context(|| format!("read {}", proc.display()))?;
    let pids = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        name.to_str()?.parse::<i32>().ok()
    });
    let mut listeners = Listeners::default();
    let servers = pids.filter_map(|pid| Server::of(proc, pid, &mut listeners));
    Ok(servers.collect())
}

impl Server {
    /// Process `pid`, if it is a server. What cannot be read has ended, or is of no concern.
    fn of(proc: &Path, pid: i32, listeners: &mut Listeners) -> Option<Server> {
        let dir = proc.join(pid.to_string());
        let binary = fs::read_link(dir.join("exe")).ok()?;
        let line = fs::read(dir.join("cmdline")).ok()?;
        let mut args = line
            .split(|byte| *byte == 0)
            .map(|arg| OsString::from_vec(arg.to_vec()));
        let program = PathBuf::from(args.next()?);
        let is_shim = |path: &Path| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().starts_with(SHIM)
        };
        if !is_shim(&binary) && !is_shim(&program) {
            return None;
        }
        // The line ends with a 0 byte, after which there is no argument.
        let args: Vec<OsString> = args.filter(|arg| !arg.is_empty()).collect();
        let Ok(Action::Serve(flags)) = cli::parse(&args, |_| None) else {
            return None;
        };
        let started = reaper::started(pid)?;
        Some(Server {
            pid,
            namespace: flags.namespace,
            id: flags.id,
            binary,
            containerd: flags.address,
            socket: listeners.of(&dir).into_iter().next(),
            uptime: sys::process::since_boot()
                .as_secs()
                .saturating_sub(started.as_secs()),
            rss: rss(&dir).unwrap_or_default(),
            report: None,
            error: None,
        })
    }

    async fn asked(mut self) -> Server {
        let answer = match &self.socket {
            None => Err(Error::new(Kind::NotFound, "no listening socket")),
            Some(path) => timeout(LIMIT, ask(self.pid, path))
                .await
                .unwrap_or_else(|_| {
                    let text = format!("no answer within {} s", LIMIT.as_secs());
                    Err(Error::new(Kind::Unavailable, text))
                }),
        };
        match answer {
            Ok(report) => self.report = Some(report),
            Err(error) if error.kind() == Kind::Unimplemented => {
                self.error = Some("another shim, or an older release".into());
            }
            Err(error) => self.error = Some(error.to_string()),
        }
        self
    }
}

/// Asks server `pid`, which listens at `socket` as it sees the file system.
async fn ask(pid: i32, socket: &Path) -> Result<Report> {
    let mut client = connect(pid, socket).await?;
    let answer = client
        .call(SERVICE, METHOD, &[], Vec::new(), 2 * LIMIT)
        .await;
    let answer = answer.map_err(|failure| match failure {
        Failure::Refused(error) | Failure::Transport(error) => error,
    })?;
    serde_json::from_slice(&answer)
        .map_err(|e| Error::unknown(format!("decode the report of {}: {e}", socket.display())))
}

async fn connect(pid: i32, socket: &Path) -> Result<Client> {
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(Error::invalid(format!("socket {}", socket.display())));
    };
    let of_server = format!("/proc/{pid}/root{}", dir.display());
    let dir = File::open(&of_server).context(|| format!("open {of_server}"))?;
    // The whole path may be longer than an address can be.
    let address = Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name);
    let address = address.to_string_lossy();
    let connected = Client::connect(&address).await;
    connected.map_err(|e| {
        let text = e.to_string().replace(&*address, &socket.to_string_lossy());
        Error::new(e.kind(), text)
    })
}

/// The sockets that accept connections, by network namespace. Each namespace's table is read
/// once for all its processes: with a thousand servers it has thousands of lines.
#[derive(Default)]
pub struct Listeners(HashMap<PathBuf, Table>);

/// By a socket's inode: its path, if it accepts connections.
type Table = HashMap<String, Option<PathBuf>>;

impl Listeners {
    /// The paths of those of the process of directory `dir`, in `/proc`.
    pub fn of(&mut self, dir: &Path) -> Vec<PathBuf> {
        let inodes = socket_inodes(dir);
        let Ok(namespace) = fs::read_link(dir.join("ns/net")) else {
            return Vec::new();
        };
        let table = self.0.entry(namespace).or_default();
        // Some may be younger than the table.
        if inodes.iter().any(|inode| !table.contains_key(inode)) {
            let text = fs::read_to_string(dir.join("net/unix")).unwrap_or_default();
            *table = text.lines().skip(1).filter_map(socket).collect();
        }
        let paths = inodes.iter().filter_map(|inode| table.get(inode)?.clone());
        paths.collect()
    }
}

/// The inodes of the sockets that the process of directory `dir`, in `/proc`, has open.
fn socket_inodes(dir: &Path) -> Vec<String> {
    let descriptors = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
    let inodes = descriptors.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?;
        Some(inode.strip_suffix(']')?.to_owned())
    });
    inodes.collect()
}

/// The socket in a line of `/proc/net/unix`: its inode, and its path if it has one and accepts
/// connections.
fn socket(line: &str) -> Option<(String, Option<PathBuf>)> {
    // Num RefCount Protocol Flags Type St Inode Path
    let mut words = line.split_ascii_whitespace();
    let flags = u32::from_str_radix(words.nth(3)?, 16).ok()?;
    let inode = words.nth(2)?;
    let path = words.next().filter(|_| flags & ACCEPTS != 0);
    Some((inode.to_owned(), path.map(PathBuf::from)))
}

/// Resident memory in kB.
fn rss(dir: &Path) -> Option<u64> {
    let status = fs::read_to_string(dir.join("status")).ok()?;
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_of_a_socket_counts_if_it_accepts_connections() {
        for (line, expected) in [
            (
                "0: 00000002 00000000 00010000 0001 01 9 /run/s/a",
                Some(Some("/run/s/a")),
            ),
            (
                "0: 00000003 00000000 00000000 0001 03 9 /run/s/a",
                Some(None),
            ),
            ("0: 00000002 00000000 00010000 0001 01 9", Some(None)),
            ("", None),
        ] {
            let expected = expected.map(|path| ("9".to_owned(), path.map(PathBuf::from)));
            assert_eq!(socket(line), expected, "{line}");
        }
    }

    #[test]
    fn socket_is_found_that_listens_only_since_the_table_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let own = Path::new("/proc/self");
        let mut listeners = Listeners::default();
        let sockets = [dir.path().join("a"), dir.path().join("b")];
        for socket in &sockets {
            let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
            assert!(listeners.of(own).contains(socket), "{socket:?}");
            drop(listener);
        }
    }

    #[test]
    fn processes_that_are_no_servers_are_not_listed() {
        let own = std::process::id() as i32;
        for pid in [own, -1] {
            assert!(Server::of(Path::new("/proc"), pid, &mut Listeners::default()).is_none());
        }
    }

    #[tokio::test]
    async fn server_that_does_not_answer_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let server = Server {
            pid: std::process::id() as i32,
            namespace: "n".into(),
            id: "c".into(),
            binary: "/b".into(),
            containerd: String::new(),
            socket: Some(socket),
            uptime: 0,
            rss: 0,
            report: None,
            error: None,
        };
        let error = server.asked().await.error.unwrap();
        assert!(error.contains("within 2"), "{error}");
    }
}
