//! Stdio whose other side fails: readers that leave or stop, full disks, loggers that
//! die or hang. The container goes on, the shim answers, and nothing is lost that
//! could be kept.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use containerd_shim_rs_v2::proto::task::CreateTaskResponse;
use containerd_shim_rs_v2::proto::types::Status;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::stdio::{both, logger};
use crate::harness::container::Container;
use crate::harness::rpc::Connection;
use crate::harness::stdio::{Reader, Tap};
use crate::harness::*;

/// For cases that wait for long, and know no Task API: one run of them is enough.
pub(super) fn is_repetition(d: &Daemon) -> bool {
    apis().last() != Some(&d.api)
}

/// What `seq 1 LAST` writes.
fn numbers(last: u32) -> Vec<u8> {
    let lines: Vec<String> = (1..=last).map(|n| format!("{n}\n")).collect();
    lines.concat().into()
}

/// The exit status of a script that is executed in `c`.
#[track_caller]
pub(super) fn status_of(c: &Container, id: &str, script: &str) -> u32 {
    let e = c.exec(id, &["sh", "-c", script]).expect("Exec");
    e.start().expect("Start");
    let status = e.exit_status();
    e.delete().expect("Delete");
    status
}

/// Asks `c` what does not depend on its output.
#[track_caller]
pub(super) fn assert_answers(c: &Container) {
    assert_eq!(c.status(), Status::RUNNING);
    assert_eq!(status_of(c, "probe", "exit 3"), 3);
    c.kill(18).expect("Kill");
}

/// FIFOs for the output: stdout is read when it is asked for, stderr always.
pub(super) fn tapped(d: &Daemon, name: &str) -> (Stdio, Tap, Reader) {
    let [stdout, stderr] = ["out", "err"].map(|stream| d.fifo(&format!("{name}-{stream}")));
    let (tap, reader) = (d.tap(&stdout), d.read(&stderr));
    let stdio = Stdio {
        stdout,
        stderr,
        ..Default::default()
    };
    (stdio, tap, reader)
}

/// A small disk, gone when this is.
struct Disk(PathBuf);

impl Disk {
    fn new(path: PathBuf, size: &str) -> Disk {
        fs::create_dir(&path).expect("make a mount point");
        let size = format!("size={size}");
        let mounted = mount(
            Some("disk"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(size.as_str()),
        );
        mounted.expect("mount a tmpfs");
        Disk(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

pub(super) fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

cases! {
    fn returning_reader_misses_nothing(d) {
        const PIECE: usize = 150_000;
        let (stdio, mut tap, _err) = tapped(d, "c");
        let c = d.shell("c", "seq 1 300000; exit 4").stdio(stdio.clone()).run();
        let mut wanted = &numbers(300_000)[..];
        while wanted.len() > PIECE {
            assert!(tap.take(PIECE) == wanted[..PIECE], "not in order");
            wanted = &wanted[PIECE..];
            // For a while there is none.
            drop(tap);
            c.state().unwrap();
            tap = d.tap(&stdio.stdout);
        }
        assert!(tap.rest() == wanted, "not in order");
        assert_eq!(c.exit_status(), 4);
        c.finish();
    }

    fn reader_gets_the_rest_after_the_exit(d) {
        let (stdio, tap, _err) = tapped(d, "c");
        let c = d.shell("c", "seq 1 10000").stdio(stdio.clone()).created();
        drop(tap);
        c.start().unwrap();
        assert_eq!(c.exit_status(), 0);
        assert!(d.tap(&stdio.stdout).rest() == numbers(10_000), "not in order");
        c.finish();
    }

    fn stopped_reader_blocks_only_the_writer(d) {
        const MUCH: usize = 4_000_000;
        let (stdio, mut tap, err) = tapped(d, "c");
        let script = format!("yes | head -c {MUCH}; touch /tmp/done; echo done >&2; exec sleep inf");
        let c = d.shell("c", &script).stdio(stdio).run();
        assert_eq!(tap.take(2), b"y\n");
        // Whatever the pipes hold, it is less.
        for _ in 0..3 {
            assert_answers(&c);
            assert_eq!(status_of(&c, "look", "test -e /tmp/done"), 1);
        }
        assert!(tap.take(MUCH - 2) == b"y\n".repeat(MUCH / 2 - 1), "not in order");
        err.wait_for("done");
        c.end();
        c.finish();
    }

    fn container_with_a_stopped_reader_can_be_killed(d) {
        if is_repetition(d) { return }
        let (stdio, mut tap, _err) = tapped(d, "c");
        let c = d.container("c", &["yes"]).stdio(stdio).run();
        assert_eq!(tap.take(2), b"y\n");
        c.end();
        d.events.get("c", "exit");
        assert_eq!(c.status(), Status::STOPPED);
        drop(tap);
        c.delete().unwrap();
        c.shut_down();
    }

    fn full_disk_does_not_block_the_container(d) {
        let disk = Disk::new(d.path("disk"), "256k");
        let log = disk.0.join("c.log");
        let uri = format!("file://{}", log.display());
        let stdin = d.fifo("in");
        let script = "yes | head -c 1000000; touch /tmp/done; read x; echo again; exit 5";
        let stdio = Stdio { stdin: stdin.clone(), ..both(&uri) };
        let c = d.shell("c", script).stdio(stdio).run();
        d.eventually("a full disk", || size(&log) == 256 << 10);
        d.eventually("all to be written", || status_of(&c, "look", "test -e /tmp/done") == 0);
        assert_answers(&c);
        // There is room again, and what comes now is kept.
        File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
        d.write(&stdin).write_all(b"\n").unwrap();
        assert_eq!(c.exit_status(), 5);
        c.finish();
        assert!(fs::read_to_string(&log).unwrap().ends_with("again\n"));
    }

    fn file_that_cannot_be_created(d) {
        fs::write(d.path("file"), "").unwrap();
        let file = d.path("file").display().to_string();
        let c = d.container("c", &["true"]).stdio(both(&format!("file://{file}/log"))).shim();
        let failure = c.create().unwrap_err();
        assert!(failure.message.contains(&file), "{failure:?}");
        c.assert_gone();
        c.shut_down();
    }

    fn logger_that_dies(d) {
        let log = d.path("log");
        let script = format!("exec 5>&-\n/usr/bin/head -c 5 <&3 > {}\nexit 3", log.display());
        let uri = format!("binary://{}", logger(d, "logger", &script));
        let c = d.shell("c", "seq 100000 && seq 100000 >&2 && exit 6").stdio(both(&uri)).run();
        assert_eq!(c.exit_status(), 6);
        d.events.get("c", "exit");
        c.finish();
        assert_eq!(fs::read_to_string(log).unwrap(), "1\n2\n3");
    }

    fn logger_that_hangs(d) {
        if is_repetition(d) { return }
        let (name, log) = (d.path("hanging"), d.path("log"));
        // It reads nothing and ends only when it is told to.
        let script = format!("trap 'echo told > {}; kill $!; exit' TERM\nexec 5>&-\n/bin/sleep 1000 & wait", log.display());
        let uri = format!("binary://{}", logger(d, "hanging", &script));
        let c = d.shell("c", "echo up > /tmp/up; yes").stdio(both(&uri)).run();
        d.eventually("output", || status_of(&c, "look", "test -e /tmp/up") == 0);
        assert_answers(&c);
        c.end();
        d.events.get("c", "exit");
        c.finish();
        d.eventually("the logger's end", || process::running(name.to_str().unwrap()).is_empty());
        assert_eq!(fs::read_to_string(log).unwrap(), "told\n");
    }

    fn create_fails_without_a_fifo_reader(d) {
        if is_repetition(d) { return }
        const BOUND: Duration = Duration::from_secs(60);
        let keep = d.container("keep", &["sleep", "inf"]).group("pod").run();
        let before = keep.footprint().0.len();
        let connection = Connection::open(&keep.started.address, BOUND).unwrap();
        let [fifo, other] = ["out", "other"].map(|name| d.fifo(name));
        let program = logger(d, "silent", "exec /bin/sleep 1000");
        let creates = [
            ("a", both(&fifo), "no reader within 30 s"),
            ("b", both(&format!("binary://{program}")), "logger not ready within 30 s"),
        ];
        let creates = creates.map(|(id, stdio, text)| {
            let c = d.container(id, &["true"]).group("pod").stdio(stdio).shim();
            let create = connection.send(d.api.service(), "Create", &c.create_request(), BOUND);
            (c, create, text)
        });
        let e = keep.exec_with("e", &["true"], &both(&other)).unwrap();
        let start = e.over(&connection).start_pending();
        assert_answers(&keep);
        for (c, create, text) in creates {
            let created: Result<CreateTaskResponse, _> = create.wait();
            created.refused(Code::DEADLINE_EXCEEDED, text);
            c.state().refused(Code::NOT_FOUND, "");
            c.assert_gone();
        }
        start.wait().refused(Code::DEADLINE_EXCEEDED, "no reader within 30 s");
        e.delete().unwrap();
        d.eventually("no logger", || process::running(&program).is_empty());
        d.eventually("as many descriptors as before", || keep.footprint().0.len() <= before + 1);
        assert_answers(&keep);
    }

    fn exec_fifo_that_does_not_exist(d) {
        let c = d.running("c");
        let before = c.footprint().0.len();
        let e = c.exec_with("e", &["true"], &both("/no/such/fifo")).unwrap();
        let failure = e.start().unwrap_err();
        assert!(failure.message.contains("/no/such/fifo"), "{failure:?}");
        e.delete().unwrap();
        assert_answers(&c);
        d.eventually("as many descriptors as before", || c.footprint().0.len() <= before);
    }

    fn child_that_keeps_stdout_open_does_not_block_the_reader(d) {
        if is_repetition(d) { return }
        let c = d.running("c");
        let fifos = d.fifos("e");
        let e = c.exec_with("e", &["sh", "-c", "sleep inf & echo out"], &fifos.stdio).unwrap();
        e.start().unwrap();
        assert_eq!(e.exit_status(), 0);
        // Without Delete, and though the child lives.
        assert_eq!(fifos.stdout.end(), "out\n");
        e.delete().unwrap();
        assert_eq!(c.pids().unwrap().len(), 2);
    }

    fn child_that_keeps_writing_does_not_delay_the_exit(d) {
        const MUCH: usize = 1 << 30;
        let c = d.running("c");
        let (stdio, mut tap, _err) = tapped(d, "e");
        let e = c.exec_with("e", &["sh", "-c", "yes & exit 3"], &stdio).unwrap();
        e.start().unwrap();
        // A client that never stops reading, and keeps nothing.
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        let reading = std::thread::spawn(move || {
            while let read @ 1.. = tap.read(1 << 16).len() {
                counter.fetch_add(read, Ordering::Relaxed);
            }
        });
        assert_eq!(e.exit_status(), 3);
        // The pipes hold 2 MiB at most.
        assert!(count.load(Ordering::Relaxed) < MUCH, "the exit waited for what came after it");
        c.end();
        c.finish();
        reading.join().unwrap();
    }

    fn end_of_stdin_does_not_close_outputs(d) {
        let fifos = d.fifos("c");
        let script = "cat; echo out; echo err >&2; read x <&0 || echo end";
        let c = d.shell("c", script).stdio(fifos.stdio.clone()).run();
        let mut stdin = d.write(&fifos.stdio.stdin);
        stdin.write_all(b"in\n").unwrap();
        fifos.stdout.wait_for("in\n");
        drop(stdin);
        c.close_io().unwrap();
        assert_eq!(c.exit_status(), 0);
        assert_eq!(fifos.stdout.end(), "in\nout\nend\n");
        assert_eq!(fifos.stderr.unwrap().end(), "err\n");
        c.finish();
    }

    fn pipes_grow_for_busy_streams(d) {
        let c = d.running("c");
        let small = d.tap(&d.fifo("new")).size();

        let (stdio, mut tap, _err) = tapped(d, "quiet");
        let e = c.exec_with("quiet", &["sh", "-c", "yes | head -c 1000"], &stdio).unwrap();
        e.start().unwrap();
        assert_eq!(tap.rest().len(), 1000);
        assert_eq!(tap.size(), small);
        assert_eq!(e.exit_status(), 0);
        e.delete().unwrap();

        let (stdio, mut tap, _err) = tapped(d, "loud");
        let e = c.exec_with("loud", &["yes"], &stdio).unwrap();
        e.start().unwrap();
        d.eventually("a larger pipe", || {
            if tap.unread() >= small {
                tap.take(small);
            }
            tap.size() > small
        });
        e.kill(9).unwrap();
    }
}
