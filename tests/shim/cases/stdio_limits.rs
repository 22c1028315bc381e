//! What a container's streams take of what others share: quotas of pipes and inotify,
//! memory of the container, processor time of the shim, the time that an exit may be
//! held back.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use containerd_shim_rs_v2::proto::types::Status;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::mount::{MntFlags, umount2};
use serde_json::json;

use super::stdio::{both, logger};
use super::stdio_faults::{assert_answers, is_repetition, size, tapped};
use crate::harness::container::Container;
use crate::harness::machine::Silent;
use crate::harness::runtime::At;
use crate::harness::stdio::{Reader, Tap};
use crate::harness::*;

/// By how many bytes the pipes of one server may have grown.
const PIPE_BUDGET: usize = 2 << 20;

/// What programs write and readers read at once: whole pages, so that a full pipe holds
/// as many bytes as its size says.
const PIECE: usize = 64 << 10;

/// The size and the content, in bytes, of each pipe and FIFO that the shim has open.
fn pipes(c: &Container) -> BTreeMap<String, (usize, usize)> {
    let dir = format!("/proc/{}/fd", c.shim_pid);
    let entries = fs::read_dir(dir).expect("look at the shim").flatten();
    let of = |path: &Path| {
        let name = fs::read_link(path).ok()?.display().to_string();
        // The shim's log is a FIFO, too.
        if name.ends_with("/log") {
            return None;
        }
        let mut options = OpenOptions::new();
        let options = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let pipe = options.open(path).ok()?;
        let size = fcntl(&pipe, FcntlArg::F_GETPIPE_SZ).ok()?;
        Some((name, (size as usize, stdio::unread(pipe.as_fd()))))
    };
    entries.filter_map(|entry| of(&entry.path())).collect()
}

/// How many of them are full.
fn full_pipes(c: &Container) -> usize {
    let pipes = pipes(c);
    pipes
        .values()
        .filter(|(size, unread)| size == unread)
        .count()
}

/// The sizes of all of them.
fn pipe_bytes(c: &Container) -> usize {
    pipes(c).values().map(|(size, _)| size).sum()
}

/// The processor time that the shim has taken.
fn cpu_time(c: &Container) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{}/task", c.shim_pid)).expect("look at the shim");
    let of = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks.flatten().filter_map(of).sum())
}

/// Reads all that comes, as fast as it can, until `done`; keeps nothing.
fn drain(mut tap: Tap, done: &Arc<AtomicBool>) -> thread::JoinHandle<Tap> {
    let done = done.clone();
    thread::spawn(move || {
        while !done.load(Ordering::Relaxed) && !tap.read(1 << 20).is_empty() {}
        tap
    })
}

/// A disk that can be frozen; thawed and gone when this is.
struct Disk {
    point: PathBuf,
    hang_timeout: Duration,
}

impl Disk {
    fn new(d: &Daemon) -> Disk {
        let (image, point) = (d.path("image"), d.path("disk"));
        let file = fs::File::create(&image).expect("make an image");
        file.set_len(16 << 20).expect("make an image");
        fs::create_dir(&point).expect("make a mount point");
        let disk = Disk {
            point,
            hang_timeout: d.hang_timeout,
        };
        disk.run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        disk.run(
            Command::new("mount")
                .args(["-o", "loop"])
                .arg(&image)
                .arg(&disk.point),
        );
        disk
    }

    /// Whoever writes to it waits from now on.
    fn freeze(&self) {
        self.run(Command::new("fsfreeze").arg("--freeze").arg(&self.point));
    }

    fn thaw(&self) {
        self.run(Command::new("fsfreeze").arg("--unfreeze").arg(&self.point));
    }

    #[track_caller]
    fn run(&self, command: &mut Command) {
        let output = process::run(command, &[], self.hang_timeout);
        assert_eq!(output.status, 0, "{command:?}: {}", output.stderr_text());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = process::run(
            Command::new("fsfreeze").arg("-u").arg(&self.point),
            &[],
            self.hang_timeout,
        );
        let _ = umount2(&self.point, MntFlags::MNT_DETACH);
    }
}

/// What shims, of this case or of others, have in the usual directory for it.
fn console_directories() -> BTreeSet<PathBuf> {
    let entries = fs::read_dir("/tmp").expect("read /tmp").flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.join("pty.sock").exists())
        .collect()
}

/// Whether a thread of the shim waits in the kernel and cannot be interrupted.
fn is_blocked(c: &Container) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", c.shim_pid)).expect("look at the shim");
    let state =
        |task: fs::DirEntry| fs::read_to_string(task.path().join("stat")).unwrap_or_default();
    tasks.flatten().any(|task| state(task).contains(") D "))
}

cases! {
    fn grown_pipes_shrink_when_idle(d) {
        let c = d.running("c");
        let before = pipe_bytes(&c);
        let (stdio, mut tap, _err) = tapped(d, "e");
        let small = tap.size();
        let script = "yes | head -c 100000000; echo >/tmp/done; exec sleep inf";
        let e = c.exec_with("e", &["sh", "-c", script], &stdio).unwrap();
        e.start().unwrap();
        let quiet = pipe_bytes(&c);
        assert_eq!(tap.take(100_000_000).len(), 100_000_000);
        // It lives, and is silent.
        d.eventually("a small FIFO", || tap.size() == small);
        d.eventually("small pipes", || pipe_bytes(&c) <= quiet.max(before + 4 * small));
        assert_eq!(e.status(), Status::RUNNING);
        e.kill(9).unwrap();
        assert_eq!(tap.rest(), b"");
    }

    fn grown_pipes_shrink_when_the_reader_has_stopped(d) {
        let c = d.running("c");
        let (stdio, mut tap, _err) = tapped(d, "e");
        let small = tap.size();
        let e = c.exec_with("e", &["dd", "if=/dev/zero", "bs=64k"], &stdio).unwrap();
        e.start().unwrap();
        tap.take(512 * PIECE);
        // The reader pauses, and then reads what has come, but no faster than that.
        d.eventually("a full FIFO", || tap.unread() == tap.size());
        let tap = RefCell::new(tap);
        d.eventually("small pipes", || {
            let mut tap = tap.borrow_mut();
            let some = tap.unread().clamp(1, PIECE);
            tap.take(some);
            tap.size() == small
        });
        e.kill(9).unwrap();
    }

    fn grown_pipes_stay_within_a_budget(d) {
        if is_repetition(d) { return }
        const STREAMS: usize = 12;
        let c = d.running("c");
        let done = Arc::new(AtomicBool::new(false));
        let mut readers = Vec::new();
        let mut execs = Vec::new();
        let mut errors: Vec<Reader> = Vec::new();
        let mut small = 0;
        for n in 0..STREAMS {
            let id = format!("e{n}");
            let (stdio, tap, err) = tapped(d, &id);
            small = tap.size();
            let e = c.exec_with(&id, &["yes"], &stdio).unwrap();
            e.start().unwrap();
            readers.push(drain(tap, &done));
            execs.push(e);
            errors.push(err);
        }
        let fair = pipes(&c).len() * small + PIPE_BUDGET;
        let end = Instant::now() + Duration::from_secs(3);
        d.eventually("three seconds of looking", || {
            let now = pipe_bytes(&c);
            assert!(now <= fair, "{now} bytes of pipes instead of {fair}");
            Instant::now() > end
        });
        done.store(true, Ordering::Relaxed);
        for e in execs {
            e.kill(9).unwrap();
        }
        c.end();
        for reader in readers {
            drop(reader.join().unwrap());
        }
    }

    fn memory_limited_container_with_a_stopped_reader_is_not_oom_killed(d) {
        if is_repetition(d) { return }
        for n in 0..3 {
            let id = format!("c{n}");
            let (stdio, mut tap, _err) = tapped(d, &id);
            // The limit is 8 MiB, of which 6 and the programs' own are in use.
            let script = "dd if=/dev/zero of=/tmp/used bs=1M count=6 2>/dev/null && exec dd if=/dev/zero bs=64k";
            let c = d.shell(&id, script).stdio(stdio);
            let c = c.resources(json!({"memory": {"limit": 8 << 20, "swap": 8 << 20}})).run();
            tap.take(512 * PIECE);
            // Nobody reads any more: the writer waits once both pipes are full.
            d.eventually("full pipes", || full_pipes(&c) == 2 && tap.unread() == tap.size());
            assert_eq!(c.status(), Status::RUNNING);
            tap.take(PIECE);
            assert_eq!(c.status(), Status::RUNNING);
            c.end();
            tap.rest();
            c.finish();
            assert_eq!(d.events.until(&id, "delete"), ["create", "start", "exit", "delete"]);
        }
    }

    fn outputs_without_a_reader_use_no_inotify_instance(d) {
        if is_repetition(d) { return }
        let c = d.running("c");
        let unread: Vec<(String, Stdio)> = (0..40).map(|n| {
            let id = format!("e{n}");
            let (stdio, mut tap, _err) = tapped(d, &id);
            let e = c.exec_with(&id, &["sh", "-c", r"printf 'read\nunread\n'; exec sleep inf"], &stdio).unwrap();
            e.start().unwrap();
            assert_eq!(tap.take(5), b"read\n");
            drop(tap);
            e.kill(9).unwrap();
            (id, stdio)
        }).collect();
        for (id, _) in &unread {
            assert_eq!(c.process(id).exit_status(), 128 + 9);
        }
        let inotify = || c.footprint().0.iter().filter(|name| name.contains("inotify")).count();
        assert!(inotify() <= 1, "{} inotify instances", inotify());
        // Nothing is lost, and nothing stays.
        for (id, stdio) in &unread {
            assert_eq!(d.tap(&stdio.stdout).rest(), b"unread\n");
            c.process(id).delete().unwrap();
        }
        d.eventually("no FIFO", || pipes(&c).is_empty());
    }

    fn slow_reader_does_not_delay_the_exit(d) {
        if is_repetition(d) { return }
        let c = d.running("c");
        let (stdio, tap, _err) = tapped(d, "e");
        let tap = RefCell::new(tap);
        let e = c.exec_with("e", &["sh", "-c", "yes | head -c 60000"], &stdio).unwrap();
        e.start().unwrap();
        let exited = e.wait_pending();
        let start = Instant::now();
        d.eventually("the exit", || {
            // It always reads soon enough to count as one that reads.
            let mut tap = tap.borrow_mut();
            if tap.unread() > 10_000 {
                tap.take(1);
            }
            exited.answered()
        });
        assert!(start.elapsed() < Duration::from_secs(15), "after {:?}", start.elapsed());
        assert_eq!(exited.wait().unwrap().exit_status, 0);
        tap.into_inner().rest();
        e.delete().unwrap();
    }

    fn fifo_that_its_writer_reads_needs_no_processor_time(d) {
        if is_repetition(d) { return }
        let c = d.running("c");
        let (stdio, mut tap, _err) = tapped(d, "e");
        // Pipes full of output; when the first process has gone, another one of the exec
        // reads what is left in its own.
        let script = "exec 3</proc/self/fd/1; dd if=/dev/zero bs=64k 2>/dev/null & \
            until test -e /tmp/go; do sleep 0.05; done; kill -9 $!; \
            sh -c 'while kill -0 $0 2>/dev/null; do :; done; exec cat <&3 4>&1 >/dev/null' $$ & exit 0";
        let e = c.exec_with("e", &["sh", "-c", script], &stdio).unwrap();
        let pid = e.start().unwrap() as i32;
        d.eventually("full pipes", || full_pipes(&c) == 2 && tap.unread() == tap.size());
        c.exec("go", &["touch", "/tmp/go"]).unwrap().start().unwrap();
        d.eventually("the first process to be gone", || !process::alive(pid));
        d.eventually("the pipe to be read back", || full_pipes(&c) == 1);
        let full = tap.size();
        tap.take(full);
        let before = cpu_time(&c);
        assert_eq!(e.exit_status(), 0);
        let spent = cpu_time(&c) - before;
        assert!(spent < Duration::from_secs(1), "{spent:?} of processor time");
        e.delete().unwrap();
        c.end();
    }

    fn file_log_on_a_frozen_file_system_does_not_delay_others(d) {
        let other = d.container("other", &["sleep", "inf"]).group("pod").run();
        let disk = Disk::new(d);
        let log = disk.point.join("c.log");
        let stdio = both(&format!("file://{}", log.display()));
        let c = d.container("c", &["yes"]).group("pod").stdio(stdio).run();
        d.eventually("a log", || size(&log) > 0);
        disk.freeze();
        d.eventually("a blocked write", || is_blocked(&c));
        for _ in 0..3 {
            assert_answers(&other);
        }
        c.end();
        d.events.get("c", "exit");
        let delete = c.delete_pending();
        assert_answers(&other);
        delete.wait().unwrap();
        assert_answers(&other);
        disk.thaw();
        d.eventually("no blocked thread", || !is_blocked(&other));
        d.eventually("a closed log", || !other.footprint().0.iter().any(|name| name.ends_with("c.log")));
        c.assert_gone();
        other.end();
        other.finish();
    }

    fn file_log_continues_when_its_file_system_is_thawed(d) {
        let disk = Disk::new(d);
        let log = disk.point.join("c.log");
        let stdio = both(&format!("file://{}", log.display()));
        let c = d.shell("c", "echo one; until test -e /tmp/go; do sleep 0.1; done; seq 1 50000").stdio(stdio).run();
        d.eventually("a log", || size(&log) > 0);
        disk.freeze();
        c.exec("go", &["touch", "/tmp/go"]).unwrap().start().unwrap();
        d.eventually("a blocked write", || is_blocked(&c));
        disk.thaw();
        assert_eq!(c.exit_status(), 0);
        c.finish();
        let wanted: String = (1..=50_000).map(|n| format!("{n}\n")).collect();
        assert!(fs::read_to_string(&log).unwrap() == format!("one\n{wanted}"), "not in order");
    }

    fn file_log_on_a_dead_file_system_does_not_delay_others(d) {
        let other = d.container("other", &["sleep", "inf"]).group("pod").run();
        let point = d.path("silent");
        fs::create_dir(&point).unwrap();
        let silent = Silent::mounted(&point);
        let url = format!("file://{}/new/c.log", point.display());
        let path = point.join("fifo").display().to_string();
        let creates = [("a", both(&url)), ("b", both(&path))].map(|(id, stdio)| {
            let c = d.container(id, &["true"]).group("pod").stdio(stdio).shim();
            let create = c.create_pending();
            (c, create)
        });
        for _ in 0..3 {
            assert_answers(&other);
        }
        assert!(creates.iter().all(|(_, create)| !create.answered()));
        drop(silent);
        for (c, create) in creates {
            create.wait().unwrap_err();
            c.assert_gone();
        }
        d.eventually("no blocked thread", || !is_blocked(&other));
        other.end();
        other.finish();
    }

    fn console_socket_is_in_the_bundle(d) {
        let runtime = d.fake_runtime();
        let fifos = d.terminal("c");
        let c = d.shell("c", "tty").options(|o| o.binary_name = runtime.path()).stdio(fifos.stdio.clone()).shim();
        let mut held = runtime.hold("create", At::Before);
        let create = c.create_pending();
        held.reached();
        let sockets = || fs::read_dir(&c.bundle).unwrap().flatten().filter(|entry| entry.path().join("pty.sock").exists()).count();
        assert_eq!(sockets(), 1);
        held.release();
        create.wait().unwrap();
        assert_eq!(sockets(), 0);
        c.start().unwrap();
        assert_eq!(c.exit_status(), 0);
        assert_eq!(fifos.stdout.end(), "/dev/pts/0\r\n");
        c.finish();
    }

    fn console_socket_is_removed_with_the_bundle_of_a_dead_shim(d) {
        let before = console_directories();
        let runtime = d.fake_runtime();
        let fifos = d.terminal("c");
        let c = d.shell("c", "tty").options(|o| o.binary_name = runtime.path()).stdio(fifos.stdio.clone()).shim();
        let mut held = runtime.hold("create", At::Before);
        let _create = c.create_pending();
        held.reached();
        let meanwhile = console_directories();
        c.kill_shim();
        held.release();
        d.delete("c");
        // Other cases have some for a moment; ours would stay.
        let made: BTreeSet<_> = meanwhile.difference(&before).cloned().collect();
        d.eventually("no console socket", || console_directories().is_disjoint(&made));
    }

    fn terminal_of_a_container_with_a_long_id(d) {
        let id = "i".repeat(76);
        let fifos = d.terminal("c");
        let c = d.shell(&id, "tty").stdio(fifos.stdio.clone()).run();
        assert_eq!(c.exit_status(), 0);
        assert_eq!(fifos.stdout.end(), "/dev/pts/0\r\n");
        let fifos = d.terminal("e");
        let c = d.running("other");
        let e = c.exec_with("e", &["tty"], &fifos.stdio).unwrap();
        e.start().unwrap();
        assert_eq!(e.exit_status(), 0);
        assert_eq!(fifos.stdout.end(), "/dev/pts/0\r\n");
        e.delete().unwrap();
    }

    fn logger_that_ignores_sigterm_is_killed_with_the_shim(d) {
        let script = "trap '' TERM\nexec 5>&-\nwhile :; do /bin/sleep 1; done";
        let program = logger(d, "stubborn", script);
        let c = d.container("c", &["true"]).stdio(both(&format!("binary://{program}"))).run();
        assert_eq!(c.exit_status(), 0);
        assert_eq!(process::running(&program).len(), 1);
        c.finish();
        d.eventually("no logger", || process::running(&program).is_empty());
    }
}
