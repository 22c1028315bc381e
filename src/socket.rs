//! The server's listening socket in the file system: its name, and that a name
//! has one server.
//!
//! Promises: the name is the one containerd computes, byte for byte; whoever
//! claims a name at the same time as others gets it or learns that it is served;
//! the socket is never open to anybody but its owner; nothing here waits for a
//! server, however it hangs; an error names the call that failed, and its object.
//!
//! Lacks on purpose: abstract and vsock addresses, which no containerd asks for.
//!
//! A socket is removed, and bound again, under a lock on its directory, because
//! between finding a server dead and removing its socket another may have come.
//! A server that removes its own needs no lock if it does so before it stops
//! listening: nobody can have found it dead.

use std::fmt::Write;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Result};

/// Where sockets are when containerd names no directory.
pub const DEFAULT_DIR: &str = "/run/containerd/s";

/// What [`claim`] found.
#[derive(Debug)]
pub enum Claim {
    /// The name was free, or its server dead: this listens now.
    Ours(UnixListener),
    /// A server listens already.
    Served,
}

/// The path of the socket for `group` of `namespace`, of the containerd at
/// `grpc_address`.
pub fn path(dir: &str, grpc_address: &str, namespace: &str, group: &str) -> PathBuf {
    let name = join(&[grpc_address, namespace, group]);
    let mut path = join(&[dir]);
    path.push('/');
    for byte in Sha256::digest(name) {
        let _ = write!(path, "{byte:02x}"); // A String takes everything.
    }
    PathBuf::from(path)
}

/// The address that containerd dials for `path`.
pub fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// Go's `filepath.Join`: empty elements skipped, the result cleaned by its
/// letters alone.
fn join(elements: &[&str]) -> String {
    let elements: Vec<&str> = elements.iter().filter(|e| !e.is_empty()).copied().collect();
    if elements.is_empty() {
        return String::new();
    }
    let joined = elements.join("/");
    let rooted = joined.starts_with('/');
    let mut clean: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." if clean.last().is_some_and(|last| *last != "..") => _ = clean.pop(),
            ".." if rooted => {}
            part => clean.push(part),
        }
    }
    match (rooted, clean.join("/")) {
        (true, path) => format!("/{path}"),
        (false, path) if path.is_empty() => ".".into(),
        (false, path) => path,
    }
}

/// Listens at `path`, in a directory that is made (0700) if need be, unless a
/// server does already; a dead server's socket is replaced.
pub fn claim(path: &Path) -> Result<Claim> {
    let dir = dir_of(path);
    make_dir(dir)?;
    let _lock = lock(dir)?;
    // Twice only when the dead one was there, since nobody else comes meanwhile.
    loop {
        match listen_at(path) {
            Err((_, Errno::EADDRINUSE)) if is_served(path)? => return Ok(Claim::Served),
            Err((_, Errno::EADDRINUSE)) => remove(path)?,
            Err((operation, errno)) => return Err(failed(operation, path, errno)),
            Ok(listener) => return Ok(Claim::Ours(listener)),
        }
    }
}

/// Removes the socket at `path` unless a server listens there; a missing one is
/// no error.
pub fn remove_dead(path: &Path) -> Result<()> {
    let exists = path.try_exists();
    if !exists.context(|| format!("look for socket {}", path.display()))? {
        return Ok(());
    }
    let _lock = lock(dir_of(path))?;
    match is_served(path)? {
        true => Ok(()),
        false => remove(path),
    }
}

fn dir_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Makes `dir` (0700), and what it is in.
fn make_dir(dir: &Path) -> Result<()> {
    let operation = || format!("create directory {}", dir.display());
    match DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        // Which of them it is, the cause would not tell.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let text = format!("{}: it exists and is not a directory", operation());
            Err(Error::unknown(text))
        }
        made => made.context(operation),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.context(|| format!("remove dead socket {}", path.display())),
    }
}

/// Held while the result lives. Nobody holds it for longer than a few system
/// calls, none of which can block.
fn lock(dir: &Path) -> Result<File> {
    let locked = File::open(dir).and_then(|file| file.lock().map(|()| file));
    locked.context(|| format!("lock directory {}", dir.display()))
}

fn failed(operation: &str, path: &Path, errno: Errno) -> Error {
    let cause = io::Error::from(errno);
    Error::unknown(format!("{operation} socket {}: {cause}", path.display()))
}

/// An error names the operation.
fn listen_at(path: &Path) -> std::result::Result<UnixListener, (&'static str, Errno)> {
    let during = |operation| move |errno| (operation, errno);
    let fd = stream_socket(SockFlag::SOCK_CLOEXEC).map_err(during("create"))?;
    // Linux makes the file with the socket's own mode: it is private from the start.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(during("set the mode of"))?;
    let address = UnixAddr::new(path).map_err(during("bind"))?;
    bind(fd.as_raw_fd(), &address).map_err(during("bind"))?;
    listen(&fd, Backlog::MAXALLOWABLE).map_err(during("listen on"))?;
    Ok(UnixListener::from(fd))
}

fn stream_socket(flags: SockFlag) -> std::result::Result<std::os::fd::OwnedFd, Errno> {
    socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

/// Whether a server listens at `path`, now: the kernel answers for it, at once.
fn is_served(path: &Path) -> Result<bool> {
    let connected = || {
        let fd = stream_socket(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)
    };
    match connected() {
        // EAGAIN: more clients wait than it has room for.
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(failed("connect to", path, errno)),
    }
}

/// Claims what nobody serves.
#[cfg(test)]
pub fn claim_free(path: &Path) -> UnixListener {
    match claim(path).unwrap() {
        Claim::Ours(listener) => listener,
        Claim::Served => panic!("somebody serves {path:?}"),
    }
}

/// Ends a server. To drop its listener is not enough where other tests run: a child that
/// one of them is just starting has a copy until it executes its program.
#[cfg(test)]
pub fn stop(listener: UnixListener) {
    use nix::sys::socket::{Shutdown, shutdown};
    shutdown(listener.as_raw_fd(), Shutdown::Both).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::sync::Barrier;

    #[test]
    fn socket_dir_is_joined_as_go_does() {
        for (elements, expected) in [
            (&["/run/c.sock", "ns", "id"][..], "/run/c.sock/ns/id"),
            (&["/run//x/../c.sock/", "ns", "id"], "/run/c.sock/ns/id"),
            (&["", "ns", "id"], "ns/id"),
            (&["/a", "", "id"], "/a/id"),
            (&["/a", "ns", ""], "/a/ns"),
            (&["./a", "./ns/.", "id"], "a/ns/id"),
            (&["/../a", "..", "id"], "/id"),
            (&["../a", "../..", "id"], "../../id"),
            (&["/", "..", ".."], "/"),
            (&["a", ".."], "."),
            (&["", ""], ""),
        ] {
            assert_eq!(join(elements), expected, "{elements:?}");
        }
    }

    #[test]
    fn socket_name_is_as_containerds() {
        let expected =
            "/run/containerd/s/0ddfbd72d02b3551e75f3a0ed90b9965b533401be618f43a568bc522764e0ad0";
        for (dir, grpc) in [
            (DEFAULT_DIR, "/run/containerd/containerd.sock"),
            (
                "/run//containerd/x/../s/",
                "/run/./containerd//containerd.sock/",
            ),
        ] {
            let path = path(dir, grpc, "default", "123");
            assert_eq!(path, Path::new(expected));
            assert_eq!(address(&path), format!("unix://{expected}"));
        }
    }

    #[test]
    fn socket_name_is_as_measured_with_containerd() {
        let path = path(DEFAULT_DIR, "/run/rsrch/c.sock", "default", "t1");
        let name = "52486d244e1bfe1b19a2c4a0af782f04e7183d7b4d9912769b6535c959f818c6";
        assert_eq!(path, Path::new(DEFAULT_DIR).join(name));
    }

    #[test]
    fn claimed_socket_is_private_and_served() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("new/dir/socket");
        let listener = claim_free(&path);
        let meta = fs::metadata(&path).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        let dir_mode = fs::metadata(dir_of(&path)).unwrap().permissions().mode();
        assert_eq!(dir_mode & 0o777, 0o700);
        assert!(matches!(claim(&path).unwrap(), Claim::Served));
        remove_dead(&path).unwrap();
        assert!(path.exists(), "a live server's socket stays");
        assert_eq!(
            listener.local_addr().unwrap().as_pathname(),
            Some(path.as_path())
        );
    }

    #[test]
    fn socket_of_a_dead_server_is_replaced_or_removed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("socket");
        stop(claim_free(&path));
        assert!(path.exists());
        stop(claim_free(&path));
        remove_dead(&path).unwrap();
        assert!(!path.exists());
        remove_dead(&path).unwrap();
        remove_dead(&root.path().join("no/such/dir")).unwrap();
    }

    #[test]
    fn server_with_a_full_backlog_is_alive() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("socket");
        let fd = stream_socket(SockFlag::SOCK_CLOEXEC).unwrap();
        bind(fd.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&fd, Backlog::new(0).unwrap()).unwrap();
        let mut waiting = Vec::new();
        loop {
            let client = stream_socket(SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC).unwrap();
            let result = connect(client.as_raw_fd(), &UnixAddr::new(&path).unwrap());
            waiting.push(client);
            if result == Err(Errno::EAGAIN) {
                break;
            }
        }
        assert!(matches!(claim(&path).unwrap(), Claim::Served));
    }

    #[test]
    fn one_of_many_concurrent_claims_wins() {
        const CLAIMS: usize = 8;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("socket");
        for _ in 0..50 {
            // A dead server's socket is there from the round before.
            let barrier = Barrier::new(CLAIMS);
            let won: Vec<Claim> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..CLAIMS)
                    .map(|_| {
                        scope.spawn(|| {
                            barrier.wait();
                            claim(&path).unwrap()
                        })
                    })
                    .collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            let mut ours = won.into_iter().filter_map(|claim| match claim {
                Claim::Ours(listener) => Some(listener),
                Claim::Served => None,
            });
            stop(ours.next().expect("a winner"));
            assert!(ours.next().is_none(), "two winners");
        }
    }

    #[test]
    fn errors_name_operation_object_and_cause() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name).display().to_string();
        fs::write(at("file"), "").unwrap();
        fs::create_dir_all(at("d/directory")).unwrap();
        let long = format!("d/{}", "x".repeat(108));
        for (path, expected) in [
            (
                "file/s",
                format!(
                    "create directory {}: it exists and is not a directory",
                    at("file")
                ),
            ),
            (
                "file/d/s",
                format!("create directory {}: Not a directory", at("file/d")),
            ),
            (
                "d/directory",
                format!("remove dead socket {}: Is a directory", at("d/directory")),
            ),
            (
                &long,
                format!("bind socket {}: File name too long", at(&long)),
            ),
        ] {
            let error = claim(Path::new(&at(path))).unwrap_err().to_string();
            assert!(error.starts_with(&expected), "{error}");
        }
        let error = remove_dead(Path::new(&at("file/s")))
            .unwrap_err()
            .to_string();
        let expected = format!("look for socket {}: Not a directory", at("file/s"));
        assert!(error.starts_with(&expected), "{error}");
    }
}
