//! Waits for children and signals them; nothing else does.
//!
//! Promises: every child of this process is reaped (it is a subreaper, so orphans
//! of containers are children too); an exit is timed when it is reaped; an exit
//! of a pid that nobody has registered yet is kept while somebody is about to register one
//! ([`Reaper::keep_unclaimed_exits`]); a signal goes to a child that has not been reaped, or
//! to nobody: until then no other process can get its pid, and reaping and signalling are
//! done by one thread. That needs no pidfd, which Linux before 5.3 and
//! some sandboxes lack, and no descriptor, of which there may be none left.
//!
//! Lacks on purpose: channels that could fill, and subscribers that could lag. The ledger is
//! a map that one thread owns.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::pin::{Pin, pin};
use std::process::Command;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use tokio::runtime::LocalOptions;
use tokio::sync::oneshot;

use crate::local;
use crate::sys::process;
use crate::sys::signals::Signals;

/// In which `/proc/PID/stat` counts, on every architecture that Rust's standard library runs on.
pub const TICK: Duration = Duration::from_millis(10);

/// How many descriptors' events the event loop takes from the kernel at a time: it holds memory
/// for so many, 12 bytes each. The others come next.
const EVENTS_PER_TURN: usize = 64;

/// The number of `SIGKILL`, as signals are sent here.
pub const SIGKILL: i32 = nix::sys::signal::Signal::SIGKILL as i32;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + the number of the signal that killed it.
    pub status: u32,
    /// When it was reaped.
    pub at: SystemTime,
}

impl Exit {
    /// The signal's name that a status above 128 stands for; empty for another status. A
    /// shell exits with the same status when its child was killed.
    pub fn signal(&self) -> &'static str {
        let number = self.status.saturating_sub(128);
        let signal = nix::sys::signal::Signal::try_from(number as i32);
        signal.map_or("", |signal| signal.as_str())
    }
}

/// The ledger of children; clones share it.
#[derive(Clone, Default)]
pub struct Reaper(Rc<Ledger>);

#[derive(Default)]
struct Ledger {
    /// Who waits, by pid.
    waiting: RefCell<HashMap<i32, Waiter>>,
    /// Exits of pids that nobody waited for, kept while `keepers > 0`.
    unclaimed: RefCell<HashMap<i32, Exit>>,
    keepers: Cell<usize>,
    /// A test plays the kernel.
    #[cfg(any(test, fuzzing))]
    fake: Option<Rc<fake::Kernel>>,
}

/// Who waits for a child.
struct Waiter {
    exit: oneshot::Sender<Exit>,
    /// Shared with the [`Child`]: once it is set, another process may have the pid.
    reaped: Rc<Cell<bool>>,
}

/// A child of this process: its identity, and the means to signal it.
#[derive(Debug)]
pub struct Child {
    /// Its pid. Once it is reaped, another process may have it.
    pub pid: i32,
    reaped: Rc<Cell<bool>>,
    #[cfg(any(test, fuzzing))]
    fake: Option<Rc<fake::Kernel>>,
}

/// A child that was spawned, and is not known to run its program or to have exited. Dropping
/// it kills the child, with its process group if it leads one.
#[derive(Debug)]
pub struct Spawned {
    /// `None` once it is handed over, or the child has exited.
    child: Option<Child>,
    leads_group: bool,
    exited: Exited,
    /// `None` in tests that play the kernel.
    executed: Option<process::ExecResult>,
}

impl Spawned {
    /// Waits until the child runs its program. An error when it cannot.
    pub async fn started(mut self) -> io::Result<(Child, Exited)> {
        if let Some(executed) = self.executed.take() {
            executed.wait().await?;
        }
        self.into_parts()
    }

    /// As [`Spawned::started`], for callers without an event loop.
    pub fn started_blocking(mut self) -> io::Result<(Child, Exited)> {
        if let Some(executed) = self.executed.take() {
            executed.wait_blocking()?;
        }
        self.into_parts()
    }

    fn into_parts(mut self) -> io::Result<(Child, Exited)> {
        let child = self.child.take().ok_or(Errno::ESRCH)?;
        Ok((child, std::mem::replace(&mut self.exited, Exited::never())))
    }

    /// Waits until the child has exited. An error when it could not run its program.
    pub async fn ended(&mut self) -> io::Result<Exit> {
        let exit = (&mut self.exited).await;
        self.child = None;
        if let Some(executed) = self.executed.take() {
            executed.of_ended()?;
        }
        Ok(exit)
    }

    /// Kills the child, with its process group if it leads one.
    pub fn kill(&self) {
        let Some(child) = &self.child else { return };
        // ESRCH: it has exited, and was not polled since.
        let _ = match self.leads_group {
            true => child.kill_group(),
            false => child.signal(SIGKILL),
        };
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A future of a child's exit.
#[derive(Debug)]
pub struct Exited(oneshot::Receiver<Exit>);

/// While it lives, exits of pids that nobody waits for are kept, for [`Reaper::adopt`].
pub struct UnclaimedExits(Rc<Ledger>);

impl Reaper {
    /// An empty ledger. Nothing is reaped before [`Reaper::start`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Does `work` on an event loop that reaps. Orphaned descendants become children of this
    /// process.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> io::Result<T> {
        let mut done = None;
        self.drive(pin!(async { done = Some(work.await) }))?;
        done.ok_or_else(|| io::Error::other("the event loop ended before its work"))
    }

    /// As [`Reaper::block_on`], not generic: an event loop is much code.
    fn drive(&self, work: Pin<&mut dyn Future<Output = ()>>) -> io::Result<()> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_io_events_per_tick(EVENTS_PER_TURN)
            .build_local(LocalOptions::default())?;
        // Not a `LocalSet`, whose tasks wake the loop by a system call each time.
        runtime.block_on(async {
            self.start()?;
            work.await;
            Ok(())
        })
    }

    /// Reaps from now on. Needs an event loop with local tasks.
    pub fn start(&self) -> io::Result<()> {
        let children = Signals::listen(&[nix::sys::signal::Signal::SIGCHLD])?;
        local::spawn(self.clone().run(children));
        Ok(())
    }

    /// Reaps, for ever.
    async fn run(self, mut children: Signals) {
        loop {
            while let Some((pid, status)) = self.reap() {
                let at = SystemTime::now();
                self.record(pid, Exit { status, at });
            }
            if children.recv().await.is_err() {
                return;
            }
        }
    }

    /// Reaps one child, any.
    #[cfg(not(test))]
    fn reap(&self) -> Option<(i32, u32)> {
        process::reap(-1).ok().flatten()
    }

    /// Reaps one child of this ledger: other unit tests of the process have theirs.
    #[cfg(test)]
    fn reap(&self) -> Option<(i32, u32)> {
        let mine: Vec<i32> = self.0.waiting.borrow().keys().copied().collect();
        mine.into_iter()
            .find_map(|pid| process::reap(pid).ok().flatten())
    }

    fn record(&self, pid: i32, exit: Exit) {
        if let Some(waiter) = self.0.waiting.borrow_mut().remove(&pid) {
            waiter.reaped.set(true);
            // The waiter may be gone.
            let _ = waiter.exit.send(exit);
        } else if self.0.keepers.get() > 0 {
            self.0.unclaimed.borrow_mut().insert(pid, exit);
        }
    }

    /// Spawns `command` as the leader of a process group. It is killed (`SIGKILL`) when this
    /// thread ends. All three of its stdio must be set.
    pub fn spawn(&self, mut command: Command) -> io::Result<Spawned> {
        process::die_with_parent(&mut command);
        command.process_group(0);
        let mut spawned = self.spawn_lasting(command)?;
        spawned.leads_group = true;
        Ok(spawned)
    }

    /// As [`Reaper::spawn`], for a child that may outlive this thread, and stays in our
    /// process group unless the command says otherwise.
    pub fn spawn_lasting(&self, mut command: Command) -> io::Result<Spawned> {
        #[cfg(any(test, fuzzing))]
        if let Some(kernel) = &self.0.fake {
            return Ok(self.spawned(kernel.spawn(&command), None));
        }
        process::restore_descriptor_limit(&mut command);
        let (pid, executed) = process::fork_exec(command)?;
        Ok(self.spawned(pid, Some(executed)))
    }

    /// As [`Reaper::spawn_lasting`], for process 1 of a new pid namespace, in `namespaces`.
    pub fn spawn_init(
        &self,
        mut command: Command,
        namespaces: Vec<OwnedFd>,
    ) -> io::Result<Spawned> {
        process::join_namespaces(&mut command, namespaces);
        process::restore_descriptor_limit(&mut command);
        command.process_group(0);
        let (pid, executed) = process::fork_exec_in_new_pids(command)?;
        Ok(self.spawned(pid, Some(executed)))
    }

    fn spawned(&self, pid: i32, executed: Option<process::ExecResult>) -> Spawned {
        let (child, exited) = self.register(pid);
        Spawned {
            child: Some(child),
            leads_group: false,
            exited,
            executed,
        }
    }

    /// Keeps exits of pids that nobody waits for, from now until the result is dropped. Call it
    /// before a spawn if one of its descendants is to be adopted.
    pub fn keep_unclaimed_exits(&self) -> UnclaimedExits {
        self.0.keepers.set(self.0.keepers.get() + 1);
        UnclaimedExits(self.0.clone())
    }

    /// Registers `pid`: a child, for example one that a runtime left to us, alive, or reaped
    /// while unclaimed exits were kept. `ECHILD` when it is neither.
    pub fn adopt(&self, pid: i32) -> io::Result<(Child, Exited)> {
        // A kept exit of the same number is of an older process if a child has it now.
        if self.has_child(pid) {
            return Ok(self.register(pid));
        }
        let kept = self.0.unclaimed.borrow_mut().remove(&pid);
        let exit = kept.ok_or(io::Error::from(Errno::ECHILD))?;
        let (sender, exited) = oneshot::channel();
        let _ = sender.send(exit);
        Ok((self.child(pid, Rc::new(Cell::new(true))), Exited(exited)))
    }

    /// Waits for the exit of `pid`, a child that has not been reaped.
    fn register(&self, pid: i32) -> (Child, Exited) {
        let (exit, exited) = oneshot::channel();
        let child = self.child(pid, Rc::default());
        let reaped = child.reaped.clone();
        let waiter = Waiter { exit, reaped };
        self.0.waiting.borrow_mut().insert(pid, waiter);
        (child, Exited(exited))
    }

    fn child(&self, pid: i32, reaped: Rc<Cell<bool>>) -> Child {
        Child {
            pid,
            reaped,
            #[cfg(any(test, fuzzing))]
            fake: self.0.fake.clone(),
        }
    }

    fn has_child(&self, pid: i32) -> bool {
        #[cfg(any(test, fuzzing))]
        if let Some(kernel) = &self.0.fake {
            return kernel.alive.borrow().contains(&pid);
        }
        process::is_child(pid)
    }
}

impl Child {
    /// Sends `signal`, whatever its number; never to another process.
    /// `ESRCH` when the child has been reaped.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        #[cfg(any(test, fuzzing))]
        if let Some(kernel) = &self.fake {
            return kernel.signal(self.pid, signal);
        }
        if self.reaped.get() {
            return Err(io::Error::from(Errno::ESRCH));
        }
        process::kill(self.pid, signal)
    }

    /// Sends `SIGKILL` to the process group that the child leads, and to those of its
    /// descendants that have left it (setsid). `ESRCH` when the child has been reaped.
    pub fn kill_group(&self) -> io::Result<()> {
        #[cfg(test)]
        if self.fake.is_some() {
            return self.signal(SIGKILL);
        }
        if self.reaped.get() {
            return Err(io::Error::from(Errno::ESRCH));
        }
        // Found before: afterwards they are orphans, as any process of a container may be.
        let descendants = descendants(&[self.pid]);
        let killed = process::kill(-self.pid, SIGKILL);
        for process in descendants {
            process.signal(SIGKILL);
        }
        killed
    }
}

impl Exited {
    /// Of no child.
    fn never() -> Self {
        Self(oneshot::channel().1)
    }
}

/// Sends `signal` to process `pid`, a child or not, if `is_meant`, called when a pidfd holds
/// the process, says that it is the right one. Answers whether it was sent.
///
/// Without pidfds (Linux before 5.3, some sandboxes) `is_meant` is called just before the
/// signal: the pid would have to be reused within microseconds.
pub fn signal_if(pid: i32, signal: i32, is_meant: impl FnOnce() -> bool) -> io::Result<bool> {
    let refused = |error: &io::Error| {
        let refusals = [Errno::ENOSYS, Errno::EPERM].map(|errno| Some(errno as i32));
        refusals.contains(&error.raw_os_error())
    };
    let send = || {
        let pidfd = process::pidfd_open(pid);
        let pidfd = pidfd.map(Some).or_else(|error| match refused(&error) {
            true => Ok(None),
            false => Err(error),
        })?;
        if !is_meant() {
            return Ok(false);
        }
        let sent = match pidfd {
            Some(pidfd) => process::pidfd_send_signal(&pidfd, signal),
            None => process::kill(pid, signal),
        };
        match sent {
            Err(error) if refused(&error) => process::kill(pid, signal).map(|()| true),
            sent => sent.map(|()| true),
        }
    };
    match send() {
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(false),
        outcome => outcome,
    }
}

/// Reaps all children, for ever, and has no signal do anything: an init's life. Without an event
/// loop, and without descriptors.
pub fn reap_for_ever() -> nix::Result<std::convert::Infallible> {
    use nix::sys::signal::SigSet;
    SigSet::all().thread_block()?;
    let mut child = SigSet::empty();
    child.add(nix::sys::signal::Signal::SIGCHLD);
    loop {
        // An error: there is no child now.
        while let Ok(Some(_)) = process::reap(-1) {}
        child.wait()?;
    }
}

/// How many processes [`descendants`] finds, at most.
const MAX_DESCENDANTS: usize = 4096;

/// A process that another process of a container has forked.
#[derive(Debug, PartialEq, Eq)]
pub struct Descendant {
    pid: i32,
    /// When it was forked, in the kernel's ticks.
    start: u64,
}

/// The children of processes `pids`, their children, and so on; parents come first. Orphans are
/// not found.
pub fn descendants(pids: &[i32]) -> Vec<Descendant> {
    let mut found: Vec<Descendant> = Vec::new();
    let mut parents = pids.to_vec();
    let mut seen: HashSet<i32> = pids.iter().copied().collect();
    while let Some(parent) = parents.pop() {
        for pid in children(parent) {
            if found.len() >= MAX_DESCENDANTS {
                return found;
            }
            if let Some((of, start)) = parent_and_start(pid)
                && of == parent
                && seen.insert(pid)
            {
                found.push(Descendant { pid, start });
                parents.push(pid);
            }
        }
    }
    found
}

/// The children of process `pid`, each of one of its threads.
fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    let listed = threads.map(|thread| fs::read_to_string(thread.path().join("children")));
    let numbers = |text: String| -> Vec<i32> {
        let words = text.split_ascii_whitespace();
        words.filter_map(|word| word.parse().ok()).collect()
    };
    listed.flatten().flat_map(numbers).collect()
}

/// When process `pid` was forked, since boot, rounded down to a tick; `None` when it has gone.
pub fn started(pid: i32) -> Option<Duration> {
    let (_, ticks) = parent_and_start(pid)?;
    Some(Duration::from_millis(ticks * TICK.as_millis() as u64))
}

/// The parent of process `pid`, and when it was forked, in ticks since boot.
fn parent_and_start(pid: i32) -> Option<(i32, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold any character. After it comes the third field.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    Some((parent, fields.nth(17)?.parse().ok()?))
}

impl Descendant {
    /// Sends `signal` to it, even if its parent is gone, and to no other process.
    pub fn signal(&self, signal: i32) {
        let is_meant = || parent_and_start(self.pid).is_some_and(|(_, start)| start == self.start);
        if let Err(error) = signal_if(self.pid, signal, is_meant) {
            log::debug!(pid = self.pid; "send signal {signal} to process: {error}");
        }
    }
}

impl Future for Exited {
    type Output = Exit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Exit> {
        // The ledger keeps each sender until it has sent: an error does not happen.
        match Pin::new(&mut self.0).poll(cx) {
            Poll::Ready(Ok(exit)) => Poll::Ready(exit),
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for UnclaimedExits {
    fn drop(&mut self) {
        let left = self.0.keepers.get() - 1;
        self.0.keepers.set(left);
        if left == 0 {
            self.0.unclaimed.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read};
    use std::process::Stdio;

    #[test]
    fn signal_after_reaping_is_refused() {
        let reaper = Reaper::new();
        let mut command = Command::new("sleep");
        command
            .arg("inf")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let ended = reaper.block_on(async {
            let (child, exited) = reaper.spawn(command).unwrap().started().await.unwrap();
            child.signal(0).unwrap();
            child.signal(SIGKILL).unwrap();
            assert_eq!(exited.await.status, 128 + 9);
            child
        });
        // This process stands for another one that got the number.
        let child = Child {
            pid: std::process::id() as i32,
            ..ended.unwrap()
        };
        let error = child.signal(0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ESRCH as i32));
    }

    #[test]
    fn process_adopted_after_its_exit_cannot_be_signalled() {
        let reaper = Reaper::new();
        let _unclaimed_exits = reaper.keep_unclaimed_exits();
        let pid = std::process::id() as i32;
        let exit = Exit {
            status: 3,
            at: SystemTime::now(),
        };
        reaper.record(pid, exit);
        let (child, _exited) = reaper.adopt(pid).unwrap();
        let error = child.signal(0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ESRCH as i32));
        assert!(reaper.adopt(pid).is_err());
    }

    /// A shell whose child has a child, which writes a byte and then waits for its end.
    fn family() -> std::process::Child {
        let mut command = Command::new("sh");
        command.args(["-c", "sh -c 'sleep inf & echo up; wait' & wait"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.spawn().unwrap()
    }

    #[allow(clippy::disallowed_methods)]
    fn reap(mut child: std::process::Child) {
        let _ = child.wait();
    }

    #[test]
    fn descendants_of_all_levels_are_signalled() {
        let mut shell = family();
        let mut output = BufReader::new(shell.stdout.take().unwrap());
        output.read_line(&mut String::new()).unwrap();
        let pid = shell.id() as i32;
        let found = descendants(&[pid]);
        assert_eq!(found.len(), 2, "{found:?}");
        // Orphans now, and still known.
        shell.kill().unwrap();
        for process in &found {
            process.signal(9);
        }
        // All have gone, as nobody has the pipe any more.
        assert_eq!(output.read_to_end(&mut Vec::new()).unwrap(), 0);
        reap(shell);
    }

    #[test]
    fn signal_after_pid_reuse_is_refused() {
        let mut shell = family();
        let pid = shell.id() as i32;
        let start = parent_and_start(pid).unwrap().1;
        Descendant {
            pid,
            start: start + 1,
        }
        .signal(9);
        assert!(!signal_if(pid, 9, || false).unwrap());
        let mut output = BufReader::new(shell.stdout.take().unwrap());
        // It lives: its family comes up.
        assert_eq!(output.read_line(&mut String::new()).unwrap(), 3);
        let family = descendants(&[pid]);
        Descendant { pid, start }.signal(9);
        for process in family {
            process.signal(9);
        }
        assert_eq!(output.read_to_end(&mut Vec::new()).unwrap(), 0);
        reap(shell);
    }
}

/// Processes that exist only in a test, which decides about their order.
#[cfg(any(test, fuzzing))]
pub mod fake {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeSet;
    use std::fs;
    use std::io;
    use std::process::Command;
    use std::rc::Rc;
    use std::time::SystemTime;

    use nix::errno::Errno;

    use super::{Exit, Ledger, Reaper};

    /// The processes that are not reaped.
    #[derive(Debug, Default)]
    pub struct Kernel {
        last: Cell<i32>,
        /// Their pids.
        pub alive: RefCell<BTreeSet<i32>>,
        /// Those among them that were sent a signal.
        pub signalled: RefCell<Vec<i32>>,
        /// What was spawned and has not been answered: pid and arguments.
        pub spawned: RefCell<Vec<(i32, Vec<String>)>>,
    }

    impl Kernel {
        /// A new process, with a pid that no real one has.
        pub fn fork(&self) -> i32 {
            const PID_MAX_LIMIT: i32 = 1 << 22;
            self.last.set(self.last.get() + 1);
            let pid = PID_MAX_LIMIT + self.last.get();
            self.alive.borrow_mut().insert(pid);
            pid
        }

        pub(super) fn spawn(&self, command: &Command) -> i32 {
            let pid = self.fork();
            let args = command
                .get_args()
                .map(|arg| arg.to_string_lossy().into_owned());
            self.spawned.borrow_mut().push((pid, args.collect()));
            pid
        }

        /// The processes that are no commands of ours, the oldest first.
        pub fn others(&self) -> Vec<i32> {
            let spawned = self.spawned.borrow();
            let is_other = |pid: &i32| spawned.iter().all(|(command, _)| command != pid);
            self.alive
                .borrow()
                .iter()
                .copied()
                .filter(is_other)
                .collect()
        }

        pub(super) fn signal(&self, pid: i32, signal: i32) -> io::Result<()> {
            if !self.alive.borrow().contains(&pid) {
                return Err(Errno::ESRCH.into());
            }
            if signal != 0 {
                self.signalled.borrow_mut().push(pid);
            }
            Ok(())
        }
    }

    impl Reaper {
        /// A ledger over `kernel`.
        pub fn over(kernel: Rc<Kernel>) -> Reaper {
            Reaper(Rc::new(Ledger {
                fake: Some(kernel),
                ..Ledger::default()
            }))
        }

        fn kernel(&self) -> &Kernel {
            self.0.fake.as_ref().expect("a fake kernel")
        }

        /// The `n`-th of the spawned commands ends, modulo their number: as it should, with a
        /// new process in its `--pid-file`, or with an error. An error if that cannot be
        /// written.
        pub fn answer(&self, n: usize, well: bool) -> io::Result<()> {
            let mut spawned = self.kernel().spawned.borrow_mut();
            if spawned.is_empty() {
                return Ok(());
            }
            let n = n % spawned.len();
            let (pid, args) = spawned.remove(n);
            drop(spawned);
            let at = args.iter().position(|arg| arg == "--pid-file");
            let written = match at.filter(|_| well) {
                Some(at) => fs::write(&args[at + 1], self.kernel().fork().to_string()),
                None => Ok(()),
            };
            self.end(pid, u32::from(!well));
            written
        }

        /// The `n`-th of the processes that are no commands ends by SIGKILL, modulo their
        /// number.
        pub fn end_other(&self, n: usize) {
            let others = self.kernel().others();
            if !others.is_empty() {
                self.end(others[n % others.len()], 137);
            }
        }

        /// What was sent a signal ends by SIGKILL.
        pub fn end_signalled(&self) {
            let kernel = self.kernel();
            for pid in kernel.signalled.take() {
                kernel
                    .spawned
                    .borrow_mut()
                    .retain(|(command, _)| *command != pid);
                let is_alive = kernel.alive.borrow().contains(&pid);
                if is_alive {
                    self.end(pid, 137);
                }
            }
        }

        /// Process `pid` ends and is reaped.
        pub fn end(&self, pid: i32, status: u32) {
            let kernel = self.kernel();
            assert!(kernel.alive.borrow_mut().remove(&pid), "{pid} ends twice");
            self.record(
                pid,
                Exit {
                    status,
                    at: SystemTime::now(),
                },
            );
        }
    }
}
