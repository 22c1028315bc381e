//! Terminals: the socket over which the runtime hands over a pty's master, and what
//! is done with the master.
//!
//! Promises: the socket is reachable for the shim's user alone, is in the bundle, whatever
//! the length of its path, and is gone when the process runs; a master has one descriptor. A container that closes its terminal and opens it
//! again (as systemd does) still has its output copied.
//!
//! Lacks on purpose: making ptys. They belong to the container's devpts.

use std::cell::RefCell;
use std::env;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkdtemp};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::copy::{DRAIN, Drain, End};
use super::{Owner, Subject, set_nonblocking};
use crate::error::{Context, Result};
use crate::sys;

/// How long the master may take to arrive. The runtime has ended by then, so it
/// lies in the socket already or never comes.
const PATIENCE: Duration = Duration::from_secs(10);

/// The socket's name.
const SOCKET: &str = "pty.sock";

/// A socket that waits for a pty's master; dropping it removes it.
#[derive(Debug)]
pub(super) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Removed last.
    _directory: Directory,
}

/// A directory with at most our socket in it.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    /// A handle of it, through which its socket has a short path: 107 bytes are all that
    /// the kernel takes.
    handle: OwnedFd,
}

impl ConsoleSocket {
    /// Makes one in the bundle, which goes with the container whatever happens to us; or in a
    /// temporary directory, if the bundle takes none.
    pub(super) fn new(owner: &Owner<'_>) -> Result<Self> {
        Self::in_directory(owner.bundle).or_else(|error| {
            let (id, exec) = (owner.container_id, owner.exec_id);
            log::warn!(id, exec; "{error}: trying a temporary directory");
            let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            let runtime = runtime.filter(|path| path.is_absolute() && path.is_dir());
            Self::in_directory(&runtime.unwrap_or_else(env::temp_dir))
        })
    }

    fn in_directory(parent: &Path) -> Result<Self> {
        let directory = Directory::new(parent)
            .context(|| format!("make console directory in {}", parent.display()))?;
        let path = directory.socket();
        let listener = UnixListener::bind(&path)
            .context(|| format!("listen on console socket {}", path.display()))?;
        Ok(Self {
            listener,
            path,
            _directory: directory,
        })
    }

    /// What the runtime's `--console-socket` is to name.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Receives the master, within ten seconds.
    pub(super) async fn receive(self) -> Result<OwnedFd> {
        let master = match timeout(PATIENCE, self.master()).await {
            Ok(received) => received,
            Err(_) => Err(io::Error::other("the OCI runtime sent no terminal")),
        };
        master.context(|| format!("receive from console socket {}", self.path.display()))
    }

    async fn master(&self) -> io::Result<OwnedFd> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            // A connection that brings nothing is not the one we wait for.
            if let Some(fd) = receive(&stream).await? {
                return match sys::tty::is_master(fd.as_fd()) {
                    true => Ok(fd),
                    false => Err(io::Error::other(
                        "the OCI runtime sent a descriptor that is not a terminal",
                    )),
                };
            }
        }
    }
}

async fn receive(stream: &UnixStream) -> io::Result<Option<OwnedFd>> {
    stream
        .async_io(Interest::READABLE, || sys::fd::receive(stream.as_fd()))
        .await
}

impl Directory {
    fn new(parent: &Path) -> io::Result<Self> {
        let path = mkdtemp(&parent.join("ptyXXXXXX"))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match open(&path, flags, Mode::empty()) {
            Ok(handle) => Ok(Self { path, handle }),
            Err(cause) => {
                let _ = fs::remove_dir(path);
                Err(cause.into())
            }
        }
    }

    /// The socket's path: through our descriptor, and so as long as that is open. A process
    /// whose program its user cannot read shows its descriptors to root alone.
    fn socket(&self) -> PathBuf {
        if !geteuid().is_root() && !prctl::get_dumpable().unwrap_or(false) {
            return self.path.join(SOCKET);
        }
        let (pid, fd) = (process::id(), self.handle.as_raw_fd());
        format!("/proc/{pid}/fd/{fd}/{SOCKET}").into()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Nothing to do about a failure, and nothing depends on it.
        let _ = fs::remove_file(self.path.join(SOCKET));
        let _ = fs::remove_dir(&self.path);
    }
}

/// A process's terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    subject: Arc<Subject>,
    /// The one descriptor of the master; the copiers have it too.
    master: RefCell<Option<Rc<End>>>,
    /// The other side, open until the process ends: else the master would be hung up
    /// (which epoll and tokio report for ever) whenever the container has it closed.
    /// Without it, that is taken for the end.
    slave: RefCell<Option<OwnedFd>>,
}

impl Terminal {
    pub(super) fn new(master: OwnedFd, subject: Arc<Subject>) -> Result<Self> {
        let Subject { id, exec } = &*subject;
        let slave = sys::tty::open_slave(master.as_fd())
            .inspect_err(|e| log::warn!(id, exec; "open the terminal's slave: {e}"))
            .ok();
        let both = Interest::READABLE | Interest::WRITABLE;
        let master = set_nonblocking(&master)
            .and_then(|()| End::new(master, both))
            .context(|| "watch the terminal's master")?;
        Ok(Self {
            subject,
            master: RefCell::new(Some(Rc::new(master))),
            slave: RefCell::new(slave),
        })
    }

    /// The master, to copy from and to; `None` when it was hung up.
    pub(super) fn master(&self) -> Option<Rc<End>> {
        self.master.borrow().clone()
    }

    /// Sets the size, in characters.
    pub(super) fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        match &*self.master.borrow() {
            Some(master) => sys::tty::set_size(master.as_fd(), width, height),
            None => Ok(()),
        }
    }

    /// The client's stdin is at its end: hangs up, as closing the master does. That
    /// discards what was not read, so first the copier of the output gets its chance;
    /// when it comes to its end, the master closes.
    pub(super) async fn hang_up(&self, drain: &Drain) {
        let Some(master) = self.master() else { return };
        let Subject { id, exec } = &*self.subject;
        if timeout(DRAIN, drain.idle(&master)).await.is_err() {
            log::debug!(id, exec; "hang up terminal: unread output is lost");
        }
        if let Some(slave) = self.slave.take()
            && let Err(e) = sys::tty::hang_up(slave.as_fd())
        {
            log::warn!(id, exec; "hang up terminal: {e}");
        }
        // Processes that ignore it keep the terminal, but can write to it no more.
        drain.exit();
        self.master.take();
    }

    /// The process ended: whatever is read now is the rest.
    pub(super) fn release(&self) {
        self.slave.take();
    }
}
