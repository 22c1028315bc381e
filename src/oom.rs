//! OOM kills in a container's cgroup.
//!
//! Promises: what is reported is an increase of the kernel's counter of OOM kills, so
//! neither an ancestor's shortage nor the end of the cgroup is taken for one. The
//! counter's file is opened at the start and kept: [`OomWatch::finish`] reads it once
//! more, before the caller goes on to tell of the exit. The kernel counts a kill
//! before it sends the signal, so once the victim is reaped the counter is right.
//!
//! A kept file does not outlive its cgroup: after the `rmdir`, reads say ENODEV.
//! systemd may remove a scope as soon as its last process is dead, so `finish` wants
//! to be called as soon as that is reaped. If that is too late all the same, a v1
//! notification that no kill followed yet is taken for one. On v2 the slice above has
//! counted the kill too, and stays: more kills there than when the scope was last read
//! are taken for its own, if it had met its limit, or if nobody else is known to have
//! killed its init.
//!
//! Lacks on purpose: a thread, and paths: nothing is looked up again by name, but
//! cgroups that the container made itself.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use crate::cgroup::{self, Cgroup, MemoryDir};
use crate::error::{Context, Error, Result};
use crate::local;
use crate::sys::fd::{eventfd, watch};

/// A watch for OOM kills in a container's cgroup. Dropping it ends it.
pub struct OomWatch {
    counter: Rc<Counter>,
    task: JoinHandle<()>,
}

/// The kernel's count of OOM kills, and how many of them have been told.
struct Counter {
    file: File,
    /// The line of `file` that counts.
    key: &'static str,
    /// v1: where cgroups below are; their counts are their own.
    below: Option<PathBuf>,
    /// v2, in a scope of systemd's: what is above.
    slice: Option<Slice>,
    told: Cell<u64>,
    /// The kernel notified of a shortage and has counted no kill since.
    suspected: Cell<bool>,
    on_oom: Box<dyn Fn()>,
}

/// The slice that a scope is in.
struct Slice {
    /// Its `memory.events`.
    file: File,
    /// The kills that it counted before the scope was read.
    kills: Cell<u64>,
    /// The scope had met its limit by then.
    limit_met: Cell<bool>,
}

impl OomWatch {
    /// Opens the watch and calls `on_oom` for each increase of the number of OOM kills
    /// that is seen (from a local task): once for kills that come together. Kills from
    /// before, of a cgroup that is as old as the container, count too.
    ///
    /// Needs an event loop with local tasks. An error without a memory controller.
    pub fn start(cgroup: &Cgroup, on_oom: impl Fn() + 'static) -> Result<OomWatch> {
        let dir = cgroup
            .memory()
            .ok_or_else(|| Error::unknown("watch OOM kills: no memory controller"))?;
        Self::watch(dir, Box::new(on_oom))
    }

    fn watch(memory: MemoryDir<'_>, on_oom: Box<dyn Fn()>) -> Result<OomWatch> {
        match memory {
            MemoryDir::V1(dir) => Self::watch_v1(dir, on_oom),
            MemoryDir::V2(dir) => {
                let events = dir.join("memory.events");
                Self::watch_v2(&events, "oom_kill", Slice::of(dir), on_oom)
            }
        }
    }

    fn watch_v1(dir: &Path, on_oom: Box<dyn Fn()>) -> Result<OomWatch> {
        let file = dir.join("memory.oom_control");
        let counter = Counter::open(&file, "oom_kill", Some(dir.to_owned()), None, on_oom)?;
        let notified = eventfd()
            .and_then(|event| {
                let (event_fd, file_fd) = (event.as_raw_fd(), counter.file.as_raw_fd());
                let control = dir.join("cgroup.event_control");
                let control = File::options().write(true).open(control)?;
                control.write_all_at(format!("{event_fd} {file_fd}").as_bytes(), 0)?;
                watched(event, Interest::READABLE)
            })
            .context(|| format!("watch {}", file.display()))?;
        let task = local::spawn(counter.clone().follow_v1(notified));
        Ok(OomWatch { counter, task })
    }

    fn watch_v2(
        file: &Path,
        key: &'static str,
        slice: Option<Slice>,
        on_oom: Box<dyn Fn()>,
    ) -> Result<OomWatch> {
        let counter = Counter::open(file, key, None, slice, on_oom)?;
        let changes = counter.file.try_clone();
        let changes = changes
            .and_then(|file| watched(file.into(), Interest::PRIORITY))
            .context(|| format!("watch {}", file.display()))?;
        let task = local::spawn(counter.clone().follow_v2(changes));
        Ok(OomWatch { counter, task })
    }

    /// Reads once more, calls `on_oom` if there was one not yet told, and ends the watch.
    /// Synchronous: what it reports is queued before the caller's next event. `killed`:
    /// SIGKILL ended the init, and it is not known who sent it.
    pub fn finish(self, killed: bool) {
        let counter = &self.counter;
        if counter.tell(false).is_err() && counter.suspects(killed) {
            (counter.on_oom)();
        }
    }
}

impl Drop for OomWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Counter {
    fn open(
        file: &Path,
        key: &'static str,
        below: Option<PathBuf>,
        slice: Option<Slice>,
        on_oom: Box<dyn Fn()>,
    ) -> Result<Rc<Counter>> {
        let opened = File::open(file).context(|| format!("open {}", file.display()))?;
        Ok(Rc::new(Counter {
            file: opened,
            key,
            below,
            slice,
            told: Cell::new(0),
            suspected: Cell::new(false),
            on_oom,
        }))
    }

    /// Calls `on_oom` if there are more kills than were told, or if the kernel notified
    /// of a shortage that no kill will end. Whether it did; an error when the cgroup
    /// is gone.
    fn tell(&self, notified: bool) -> io::Result<bool> {
        // Before the own count: a kill after it is in neither.
        let above = self.slice.as_ref().map(Slice::count).transpose()?;
        let mut buffer = [0; LONGEST];
        let text = read(&self.file, &mut buffer)?;
        if let (Some(slice), Some(kills)) = (&self.slice, above) {
            slice.kills.set(kills);
            slice.limit_met.set(cgroup::value(text, "max") > 0);
        }
        let below = self.below.as_deref();
        let kills = cgroup::value(text, self.key) + below.map_or(0, cgroup::oom_kills_below);
        // Fewer than before: a cgroup below is gone, and its kills with it.
        let more = kills > self.told.replace(kills);
        // With the OOM killer disabled, a process that needs memory hangs. That is reported, too.
        let stuck = notified && is_stuck(text);
        if more || stuck {
            self.suspected.set(false);
            if let Some(slice) = &self.slice
                && let Ok(kills) = slice.count()
            {
                slice.kills.set(kills);
            }
            (self.on_oom)();
        }
        Ok(more || stuck)
    }

    /// Whether there seems to have been a kill that could not be read of any more.
    fn suspects(&self, killed: bool) -> bool {
        let of_slice = |slice: &Slice| slice.has_more() && (killed || slice.limit_met.get());
        self.suspected.get() || self.slice.as_ref().is_some_and(of_slice)
    }

    /// v1: a notification is of a shortage here or in an ancestor, and comes before
    /// the kill, or else of the end of the cgroup.
    async fn follow_v1(self: Rc<Self>, notified: AsyncFd<OwnedFd>) {
        while let Ok(mut guard) = notified.readable().await {
            // The count is of no interest; an error says that it is 0 again.
            let _ = nix::unistd::read(notified.get_ref(), &mut [0; 8]);
            guard.clear_ready();
            if self.settle().await.is_err() {
                return;
            }
        }
    }

    /// v2: the kernel raises POLLPRI on the file whenever it changed since it was read,
    /// through whichever descriptor.
    async fn follow_v2(self: Rc<Self>, changes: AsyncFd<OwnedFd>) {
        while self.tell(false).is_ok() {
            match changes.ready(Interest::PRIORITY).await {
                Ok(mut guard) => guard.clear_ready(),
                Err(_) => return,
            }
        }
    }

    /// Waits for the kill that a notification announced, if there is to be one. The
    /// kernel tells nobody of the kill itself, so this looks a few times.
    async fn settle(&self) -> io::Result<()> {
        for pause in [1, 10, 100, 1000] {
            if self.tell(true)? {
                return Ok(());
            }
            // Only now: the notification was not that of the cgroup's end.
            self.suspected.set(true);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.tell(true)?;
        self.suspected.set(false);
        Ok(())
    }
}

impl Slice {
    /// That of the cgroup `dir`, if it is, or is in, a scope; the root counts nothing.
    fn of(dir: &Path) -> Option<Slice> {
        let is_scope = |dir: &&Path| dir.extension().is_some_and(|kind| kind == "scope");
        let scope = dir.ancestors().filter(is_scope).last()?;
        Some(Slice {
            file: File::open(scope.parent()?.join("memory.events")).ok()?,
            kills: Cell::new(0),
            limit_met: Cell::new(false),
        })
    }

    /// The kills that it counts now.
    fn count(&self) -> io::Result<u64> {
        let mut buffer = [0; LONGEST];
        Ok(cgroup::value(read(&self.file, &mut buffer)?, "oom_kill"))
    }

    /// Whether it has counted more since the scope was read.
    fn has_more(&self) -> bool {
        self.count().is_ok_and(|kills| kills > self.kills.get())
    }
}

/// The longest that a file of these may be: a few lines with a number each.
const LONGEST: usize = 512;

fn read<'a>(file: &File, buffer: &'a mut [u8; LONGEST]) -> io::Result<&'a str> {
    let length = file.read_at(buffer, 0)?;
    Ok(str::from_utf8(&buffer[..length]).unwrap_or_default())
}

/// Registers `fd` for `interest`.
fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    watch(fd, interest).map_err(|(_closed, error)| error)
}

fn is_stuck(oom_control: &str) -> bool {
    ["oom_kill_disable", "under_oom"]
        .iter()
        .all(|key| cgroup::value(oom_control, key) == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::{Child, Command, Stdio};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;
    use tokio::task::LocalSet;

    /// A cgroup of the test's own in a real hierarchy, removed at the end.
    struct Own(PathBuf);

    impl Own {
        /// `None`, with a message, where the hierarchy cannot be used.
        fn in_hierarchy(hierarchy: &str) -> Option<Own> {
            static NUMBER: AtomicUsize = AtomicUsize::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("oom-test-{}-{number}", std::process::id());
            let dir = Path::new(hierarchy).join(name);
            match fs::create_dir(&dir) {
                Ok(()) if dir.join("cgroup.procs").exists() => Some(Own(dir)),
                outcome => {
                    eprintln!("SKIPPED: no cgroups in {hierarchy}: {outcome:?}");
                    let _ = fs::remove_dir(&dir);
                    None
                }
            }
        }

        fn with_limit() -> Option<Own> {
            let own = Own::in_hierarchy("/sys/fs/cgroup/memory")?;
            fs::write(own.0.join("memory.limit_in_bytes"), "16M").unwrap();
            Some(own)
        }

        fn child(&self, program: &str) -> Child {
            let enter = format!(
                "echo 0 > {}/cgroup.procs && exec {program}",
                self.0.display()
            );
            let mut shell = Command::new("sh");
            shell.args(["-c", &enter]).stdin(Stdio::piped());
            shell.stdout(Stdio::piped()).spawn().unwrap()
        }

        /// A process that takes more than the limit, until it is dead.
        fn hog(&self) -> Child {
            self.child("tail /dev/zero")
        }
    }

    impl Drop for Own {
        fn drop(&mut self) {
            if let Err(error) = fs::remove_dir(&self.0) {
                let gone = error.kind() == io::ErrorKind::NotFound;
                assert!(gone || std::thread::panicking(), "{error}");
            }
        }
    }

    /// Waits until `child` has ended, whoever reaps it.
    fn ended(mut child: Child) {
        drop(child.stdin.take());
        let mut output = child.stdout.take().unwrap();
        io::copy(&mut output, &mut io::sink()).unwrap();
        #[allow(clippy::disallowed_methods)]
        let _ = child.wait();
    }

    /// A callback that counts, and what it counted.
    #[derive(Clone, Default)]
    struct Told(Rc<(Cell<usize>, Notify)>);

    impl Told {
        fn callback(&self) -> Box<dyn Fn()> {
            let told = self.clone();
            Box::new(move || {
                told.0.0.set(told.0.0.get() + 1);
                told.0.1.notify_one();
            })
        }

        fn times(&self) -> usize {
            self.0.0.get()
        }

        async fn once(&self) {
            let limit = Duration::from_secs(60);
            let told = tokio::time::timeout(limit, self.0.1.notified()).await;
            told.expect("nothing was told");
        }
    }

    async fn locally(test: impl Future<Output = ()>) {
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn oom_kill_is_reported_once() {
        let Some(own) = Own::with_limit() else { return };
        locally(async {
            let told = Told::default();
            let watch = OomWatch::watch(MemoryDir::V1(&own.0), told.callback()).unwrap();
            for kills in [1, 2] {
                let hog = own.hog();
                told.once().await;
                ended(hog);
                assert_eq!(told.times(), kills);
            }
            watch.finish(false);
            assert_eq!(told.times(), 2);
        })
        .await;
    }

    #[tokio::test]
    async fn finish_reports_pending_oom_kills() {
        let Some(own) = Own::with_limit() else { return };
        locally(async {
            let told = Told::default();
            let watch = OomWatch::watch(MemoryDir::V1(&own.0), told.callback()).unwrap();
            ended(own.hog());
            assert_eq!(told.times(), 0);
            watch.finish(false);
            assert_eq!(told.times(), 1);
        })
        .await;
    }

    #[tokio::test]
    async fn oom_kill_in_a_child_cgroup_counts() {
        let Some(own) = Own::with_limit() else { return };
        let nested = Own(own.0.join("nested"));
        fs::create_dir(&nested.0).unwrap();
        locally(async {
            let told = Told::default();
            let watch = OomWatch::watch(MemoryDir::V1(&own.0), told.callback()).unwrap();
            ended(nested.hog());
            watch.finish(false);
            assert_eq!(told.times(), 1);
        })
        .await;
        drop(nested);
    }

    #[tokio::test]
    async fn removal_of_a_cgroup_is_not_an_oom_kill() {
        let Some(own) = Own::with_limit() else { return };
        locally(async {
            let told = Told::default();
            let mut watch = OomWatch::watch(MemoryDir::V1(&own.0), told.callback()).unwrap();
            fs::remove_dir(&own.0).unwrap();
            let error = watch.counter.tell(false).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
            // The kernel notifies of it, and so the task ends by itself.
            let limit = Duration::from_secs(60);
            let ended = tokio::time::timeout(limit, &mut watch.task).await;
            ended.expect("not notified").unwrap();
            watch.finish(false);
            assert_eq!(told.times(), 0);
        })
        .await;
    }

    #[tokio::test]
    async fn removal_right_after_a_notification_is_an_oom_kill() {
        let Some(own) = Own::with_limit() else { return };
        locally(async {
            let told = Told::default();
            let watch = OomWatch::watch(MemoryDir::V1(&own.0), told.callback()).unwrap();
            watch.counter.suspected.set(true);
            fs::remove_dir(&own.0).unwrap();
            watch.finish(false);
            assert_eq!(told.times(), 1);
        })
        .await;
    }

    /// `memory.events` works as `cgroup.events` does, which is there without a
    /// memory controller.
    #[tokio::test]
    async fn change_of_the_v2_file_is_seen() {
        let mounts = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let Some(own) = mounts.iter().find_map(|mount| Own::in_hierarchy(mount)) else {
            return;
        };
        locally(async {
            let told = Told::default();
            let events = own.0.join("cgroup.events");
            let watch = OomWatch::watch_v2(&events, "populated", None, told.callback()).unwrap();
            let child = own.child("cat");
            told.once().await;
            ended(child);
            watch.finish(false);
            assert_eq!(told.times(), 1);
        })
        .await;
    }

    #[test]
    fn oom_kill_of_a_removed_scope_is_read_from_its_slice() {
        let dir = tempfile::tempdir().unwrap();
        let scope = dir.path().join("x.slice/c.scope");
        fs::create_dir_all(&scope).unwrap();
        let (events, above) = (
            scope.join("memory.events"),
            dir.path().join("x.slice/memory.events"),
        );
        fs::write(&above, "oom_kill 5\n").unwrap();
        // Some in a cgroup of crun's.
        let slice = || Slice::of(&scope.join("container"));
        for (own, kills_above, killed, suspects) in [
            ("max 3\noom_kill 0\n", 6, false, true),
            ("max 3\noom_kill 0\n", 5, true, false),
            ("max 0\noom_kill 0\n", 6, false, false),
            ("max 0\noom_kill 0\n", 6, true, true),
        ] {
            fs::write(&events, own).unwrap();
            fs::write(&above, "oom_kill 5\n").unwrap();
            let counter = Counter::open(&events, "oom_kill", None, slice(), Box::new(|| ()));
            let counter = counter.unwrap();
            assert!(!counter.tell(false).unwrap());
            fs::write(&above, format!("oom_kill {kills_above}\n")).unwrap();
            assert_eq!(counter.suspects(killed), suspects, "{own} {kills_above}");
        }
        // What was told is not suspected.
        fs::write(&events, "max 3\noom_kill 1\n").unwrap();
        let counter = Counter::open(&events, "oom_kill", None, slice(), Box::new(|| ())).unwrap();
        assert!(counter.tell(false).unwrap() && !counter.suspects(true));
        assert!(Slice::of(&dir.path().join("x.slice")).is_none());
    }

    #[tokio::test]
    async fn missing_files_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for memory in [MemoryDir::V1(dir.path()), MemoryDir::V2(dir.path())] {
            let error = OomWatch::watch(memory, Box::new(|| ())).err().unwrap();
            assert!(error.to_string().starts_with("open /"), "{error}");
        }
    }

    #[test]
    fn under_oom_without_a_kill_is_stuck() {
        assert!(is_stuck("oom_kill_disable 1\nunder_oom 1\noom_kill 0\n"));
        assert!(!is_stuck("oom_kill_disable 0\nunder_oom 1\noom_kill 0\n"));
        assert!(!is_stuck("oom_kill_disable 1\nunder_oom 0\noom_kill 0\n"));
    }
}
