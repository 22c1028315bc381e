//! Behaviour, with real FIFOs, pipes, ptys and programs. Threads play the container
//! and containerd; where descriptors are counted or children reaped, a test runs in a
//! process of its own ([`alone`]).

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::pin::pin;
use std::thread;

use nix::fcntl::open as open_fd;
use nix::pty::{posix_openpt, unlockpt};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getegid, geteuid, mkfifo};
use tokio::sync::oneshot;
use tokio::task::{LocalSet, yield_now};

use super::*;
use crate::sys;

/// Runs `work` as the server would: on one thread, in a `LocalSet`, children reaped
/// only where the process is the test's own.
fn serve<T>(work: impl AsyncFnOnce(Reaper) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let reaper = Reaper::new();
        if is_alone() {
            reaper.start().unwrap();
        }
        work(reaper).await
    })
}

const ALONE: &str = "STDIO_TEST_ALONE";

fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// Runs `body` in a process of its own, as the only test there.
#[expect(
    clippy::zombie_processes,
    reason = "only the reaper waits; this process ends soon"
)]
fn alone(name: &str, body: impl AsyncFnOnce(Reaper)) {
    if is_alone() {
        return serve(body);
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([&format!("stdio::tests::{name}"), "--exact", "--nocapture"])
        .env(ALONE, "1")
        .stdout(process::Stdio::piped())
        .spawn()
        .unwrap();
    // Its exit may be reaped by a test of the reaper; its words are not.
    let mut said = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(said.contains("test result: ok. 1 passed"), "{said}");
}

fn owner(reaper: &Reaper) -> Owner<'_> {
    Owner {
        namespace: "ns",
        container_id: "id",
        exec_id: "",
        bundle: Path::new("/tmp"),
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        reaper,
    }
}

/// Runs `work`, which blocks, on a thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = oneshot::channel();
    thread::spawn(move || done.send(work()));
    result.await.unwrap()
}

/// A directory with FIFOs `in`, `out` and `err`.
struct Client(tempfile::TempDir);

impl Client {
    fn new() -> Self {
        let client = Self(tempfile::tempdir().unwrap());
        for name in ["in", "out", "err"] {
            mkfifo(&client.path(name), Mode::S_IRWXU).unwrap();
        }
        client
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().into()
    }

    /// A non-blocking open of a FIFO's read end, which needs no writer.
    fn reader(&self, name: &str) -> File {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = open_fd(&self.path(name), flags, Mode::empty()).unwrap();
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        fd.into()
    }

    fn stdio(&self, stdin: &str, stdout: &str, stderr: &str) -> Stdio {
        let path = |name: &str| {
            if name.is_empty() {
                String::new()
            } else {
                self.text(name)
            }
        };
        Stdio {
            terminal: false,
            stdin: path(stdin),
            stdout: path(stdout),
            stderr: path(stderr),
        }
    }
}

/// `len` bytes of a stream that repeats only after 251 * 256 bytes, from `start`.
fn pattern(start: usize, len: usize) -> Vec<u8> {
    (start..start + len)
        .map(|i| ((i % 251) ^ (i / 251)) as u8)
        .collect()
}

fn take(opened: &mut Opened, which: usize) -> File {
    opened.passed[which].take().unwrap().into()
}

#[test]
fn output_is_kept_without_readers() {
    const AWAY: usize = 16 << 10;
    const TOTAL: usize = 24 << 20;
    serve(async |reaper| {
        let client = Client::new();
        let mut first = client.reader("out");
        let mut opened = open(&client.stdio("", "out", ""), &owner(&reaper))
            .await
            .unwrap();
        let mut container = take(&mut opened, 1);
        let streams = opened.start().await.unwrap();

        let (sent, mut container) = blocking(move || {
            container.write_all(&pattern(0, 1000)).unwrap();
            let mut got = vec![0; 1000];
            first.read_exact(&mut got).unwrap();
            (got, container)
        })
        .await;
        assert_eq!(sent, pattern(0, 1000));
        // The reader is gone now. What is written meanwhile waits for the next.
        let mut container = blocking(move || {
            container.write_all(&pattern(1000, AWAY)).unwrap();
            container
        })
        .await;
        let path = client.path("out");
        let writer = thread::spawn(move || {
            container.write_all(&pattern(1000 + AWAY, TOTAL)).unwrap();
        });
        let got = blocking(move || {
            let mut got = Vec::new();
            File::open(path).unwrap().read_to_end(&mut got).unwrap();
            got
        })
        .await;
        assert!(
            got == pattern(1000, AWAY + TOTAL),
            "{} bytes differ",
            got.len()
        );
        writer.join().unwrap();
        streams.process_exited();
        streams.drained().await;
    });
}

#[test]
fn stdin_ends_after_close_io_and_the_clients_close() {
    const SIZE: usize = 5 << 20;
    serve(async |reaper| {
        let client = Client::new();
        let mut opened = open(&client.stdio("in", "", ""), &owner(&reaper))
            .await
            .unwrap();
        let mut container = take(&mut opened, 0);
        let streams = opened.start().await.unwrap();
        let path = client.path("in");
        // One client goes, without CloseIO; another comes.
        let (mut container, second) = blocking(move || {
            let mut first = OpenOptions::new().write(true).open(&path).unwrap();
            let feeding = thread::spawn(move || first.write_all(&pattern(0, SIZE)).unwrap());
            let mut got = vec![0; SIZE];
            container.read_exact(&mut got).unwrap();
            assert!(got == pattern(0, SIZE));
            feeding.join().unwrap();
            let mut second = OpenOptions::new().write(true).open(&path).unwrap();
            second.write_all(b"more").unwrap();
            (container, second)
        })
        .await;
        streams.close_stdin();
        streams.close_stdin();
        // CloseIO came first: what the client still writes arrives.
        let rest = blocking(move || {
            let mut second = second;
            second.write_all(b" of it").unwrap();
            drop(second);
            let mut rest = String::new();
            container.read_to_string(&mut rest).unwrap();
            rest
        })
        .await;
        assert_eq!(rest, "more of it");
    });
}

#[test]
fn client_gets_epipe_when_stdin_is_closed() {
    serve(async |reaper| {
        let client = Client::new();
        let mut opened = open(&client.stdio("in", "", ""), &owner(&reaper))
            .await
            .unwrap();
        drop(opened.passed[0].take());
        let _streams = opened.start().await.unwrap();
        let path = client.path("in");
        let error = blocking(move || {
            let mut client = OpenOptions::new().write(true).open(&path).unwrap();
            loop {
                if let Err(e) = client.write_all(&[0; 1000]) {
                    return e.kind();
                }
            }
        })
        .await;
        assert_eq!(error, io::ErrorKind::BrokenPipe);
    });
}

#[test]
fn missing_stdio_is_dev_null() {
    serve(async |reaper| {
        let client = Client::new();
        for (stdio, given) in [
            (client.stdio("", "", ""), [false, false, false]),
            (client.stdio("", "out", ""), [false, true, false]),
            (client.stdio("", "", "err"), [false, false, true]),
            (client.stdio("in", "", ""), [true, false, false]),
        ] {
            let _readers = [client.reader("out"), client.reader("err")];
            let mut opened = open(&stdio, &owner(&reaper)).await.unwrap();
            assert_eq!(opened.passed.each_ref().map(Option::is_some), given);
            assert!(opened.give_to(&mut Command::new("true")).unwrap());
            let streams = opened.start().await.unwrap();
            streams.resize(1, 1).unwrap();
            streams.process_exited();
            streams.drained().await;
        }
    });
}

#[test]
fn early_copy_lets_the_runtime_write_more_than_a_pipe_holds() {
    const MUCH: usize = 120 << 10;
    serve(async |reaper| {
        let client = Client::new();
        let (_out, mut err) = (client.reader("out"), client.reader("err"));
        let mut opened = open(&client.stdio("", "out", "err"), &owner(&reaper))
            .await
            .unwrap();
        opened.copy_early().unwrap();
        let mut runtime = take(&mut opened, 2);
        let writer = thread::spawn(move || runtime.write_all(&pattern(0, MUCH)).unwrap());
        let (got, err) = blocking(move || {
            let mut got = vec![0; MUCH];
            err.read_exact(&mut got).unwrap();
            (got, err)
        })
        .await;
        assert!(got == pattern(0, MUCH));
        writer.join().unwrap();
        let streams = opened.start().await.unwrap();
        streams.process_exited();
        streams.drained().await;
        drop(err);
    });
}

#[test]
fn early_copy_keeps_a_short_text_of_a_runtime_that_fails() {
    serve(async |reaper| {
        let client = Client::new();
        let (_out, mut err) = (client.reader("out"), client.reader("err"));
        let mut opened = open(&client.stdio("", "out", "err"), &owner(&reaper))
            .await
            .unwrap();
        opened.copy_early().unwrap();
        let mut runtime = take(&mut opened, 2);
        runtime.write_all(b"it failed").unwrap();
        // The text has been looked at, and is kept.
        tokio::time::pause();
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(opened);
        let text = blocking(move || io::read_to_string(&mut err).unwrap()).await;
        assert_eq!(text, "");
        assert!(runtime.write_all(b"?").is_err());
    });
}

#[test]
fn early_copy_continues_after_start() {
    serve(async |reaper| {
        let client = Client::new();
        let (mut out, _err) = (client.reader("out"), client.reader("err"));
        let mut opened = open(&client.stdio("", "out", "err"), &owner(&reaper))
            .await
            .unwrap();
        opened.copy_early().unwrap();
        let mut container = take(&mut opened, 1);
        container.write_all(b"hello").unwrap();
        let streams = opened.start().await.unwrap();
        let got = blocking(move || {
            let mut got = [0; 5];
            out.read_exact(&mut got).unwrap();
            got
        })
        .await;
        assert_eq!(&got, b"hello");
        drop((container, streams));
    });
}

#[test]
fn file_uris_append_both_outputs_to_one_file() {
    serve(async |reaper| {
        let client = Client::new();
        let path = client.path("new/dir/log");
        for round in 1..3 {
            let uri = format!("file://{}", path.display());
            let stdio = Stdio {
                stdout: uri.clone(),
                stderr: uri,
                ..Stdio::default()
            };
            let mut opened = open(&stdio, &owner(&reaper)).await.unwrap();
            let (mut out, mut err) = (take(&mut opened, 1), take(&mut opened, 2));
            let streams = opened.start().await.unwrap();
            blocking(move || {
                out.write_all(&pattern(0, 300_000)).unwrap();
                err.write_all(&pattern(0, 200_000)).unwrap();
            })
            .await;
            streams.process_exited();
            streams.drained().await;
            assert_eq!(fs::metadata(&path).unwrap().len(), 500_000 * round);
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
    });
}

#[test]
fn path_may_be_a_regular_file() {
    serve(async |reaper| {
        let client = Client::new();
        fs::write(client.path("input"), pattern(0, 100_000)).unwrap();
        fs::write(client.path("output"), "before ").unwrap();
        let stdio = client.stdio("input", "output", "");
        let mut opened = open(&stdio, &owner(&reaper)).await.unwrap();
        let (mut stdin, mut stdout) = (take(&mut opened, 0), take(&mut opened, 1));
        let streams = opened.start().await.unwrap();
        blocking(move || io::copy(&mut stdin, &mut stdout).unwrap()).await;
        streams.process_exited();
        streams.drained().await;
        let output = fs::read(client.path("output")).unwrap();
        assert_eq!(output[..7], *b"before ");
        assert!(output[7..] == pattern(0, 100_000));
    });
}

#[test]
fn full_disk_does_not_stop_the_copy() {
    serve(async |reaper| {
        let stdio = Stdio {
            stdout: "/dev/full".into(),
            ..Stdio::default()
        };
        let mut opened = open(&stdio, &owner(&reaper)).await.unwrap();
        let mut container = take(&mut opened, 1);
        let streams = opened.start().await.unwrap();
        blocking(move || container.write_all(&pattern(0, 1 << 20)).unwrap()).await;
        streams.process_exited();
        streams.drained().await;
    });
}

#[test]
fn failed_open_is_explained_and_leaves_nothing() {
    alone(
        "failed_open_is_explained_and_leaves_nothing",
        async |reaper| {
            let client = Client::new();
            let logger = |uri: &str| Stdio {
                stdout: uri.into(),
                stdin: client.text("in"),
                ..Stdio::default()
            };
            let before = descriptors();
            for (stdio, text, kind) in [
                (
                    client.stdio("", "nothing", ""),
                    "open stdout ",
                    Kind::Unknown,
                ),
                (
                    client.stdio("nothing", "", ""),
                    "open stdin ",
                    Kind::Unknown,
                ),
                (
                    client.stdio("in", "out", "err"),
                    ": no reader within 30 s",
                    Kind::DeadlineExceeded,
                ),
                (
                    logger("gopher://x"),
                    "stdout: unknown STDIO scheme gopher",
                    Kind::Unknown,
                ),
                (
                    logger("binary:///no/such"),
                    "start logger /no/such: ",
                    Kind::Unknown,
                ),
                (
                    logger("binary-v2:///bin/true"),
                    "did not call ready",
                    Kind::Unknown,
                ),
                (
                    logger("binary:///bin/cat?/dev/zero"),
                    "logger not ready within 30 s",
                    Kind::DeadlineExceeded,
                ),
            ] {
                let late = kind == Kind::DeadlineExceeded;
                if late {
                    tokio::time::pause();
                }
                let error = open(&stdio, &owner(&reaper)).await.unwrap_err();
                assert!(error.to_string().contains(text), "{text}: {error}");
                assert_eq!(error.kind(), kind, "{error}");
                settled(&before).await;
                if late {
                    tokio::time::resume();
                }
            }
            // A request that is given up is no different.
            let (stdio, owner) = (client.stdio("", "out", ""), owner(&reaper));
            assert!(
                copy::first(pin!(open(&stdio, &owner)), pin!(yield_now()))
                    .await
                    .is_none()
            );
            settled(&before).await;
        },
    );
}

/// What this process has open, by number.
fn descriptors() -> Vec<(i32, PathBuf)> {
    let entries = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let mut all: Vec<_> = entries
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, target))
        })
        .filter(|(_, target)| !target.to_string_lossy().contains("/proc/"))
        .collect();
    all.sort();
    all
}

/// Waits until the descriptors are as `before`: ended tasks, ended threads and reaped
/// children let go of theirs a moment later. A leak means that this never ends.
async fn settled(before: &[(i32, PathBuf)]) {
    let start = std::time::Instant::now();
    while descriptors() != before {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{:?}",
            descriptors()
        );
        yield_now().await;
    }
}

#[test]
fn drain_is_bounded() {
    serve(async |reaper| {
        tokio::time::pause();
        let client = Client::new();
        let mut reader = client.reader("out");
        let mut opened = open(&client.stdio("", "out", ""), &owner(&reaper))
            .await
            .unwrap();
        let mut daemon = take(&mut opened, 1);
        let streams = opened.start().await.unwrap();
        daemon.write_all(b"last words").unwrap();
        let exit = Instant::now();
        streams.process_exited();
        tokio::time::advance(Duration::from_secs(6)).await;
        streams.process_exited();
        streams.drained().await;
        // Timers have a granularity of a millisecond.
        let took = exit.elapsed();
        assert!(
            (DRAIN..DRAIN + Duration::from_millis(5)).contains(&took),
            "{took:?}"
        );
        // The end comes without Delete, and though the background process lives.
        let words = blocking(move || {
            let mut words = String::new();
            reader.read_to_string(&mut words).unwrap();
            words
        })
        .await;
        assert_eq!(words, "last words");
        drop(daemon);
    });
}

#[test]
fn endless_writer_does_not_extend_the_drain() {
    for terminal in [false, true] {
        serve(async |reaper| {
            tokio::time::pause();
            let client = Client::new();
            let mut reader = client.reader("out");
            let (streams, mut daemon) = if terminal {
                open_terminal(&client, &reaper).await
            } else {
                let mut opened = open(&client.stdio("", "out", ""), &owner(&reaper))
                    .await
                    .unwrap();
                let daemon = take(&mut opened, 1);
                (opened.start().await.unwrap(), daemon)
            };
            let writer = thread::spawn(move || while daemon.write_all(&[b'y'; 5000]).is_ok() {});
            let (flows, flowing) = oneshot::channel();
            let reading = thread::spawn(move || {
                reader.read_exact(&mut [0; 100_000]).unwrap();
                flows.send(()).unwrap();
                io::copy(&mut reader, &mut io::sink()).unwrap()
            });
            flowing.await.unwrap();
            streams.process_exited();
            tokio::time::advance(DRAIN).await;
            streams.drained().await;
            // The end comes without Delete.
            assert!(blocking(move || reading.join().is_ok()).await);
            drop(streams);
            blocking(move || writer.join().unwrap()).await;
        });
    }
}

#[test]
fn reader_that_returns_after_the_drain_misses_nothing() {
    const FULL: usize = 64 << 10;
    serve(async |reaper| {
        tokio::time::pause();
        let client = Client::new();
        let mut reader = client.reader("out");
        let mut opened = open(&client.stdio("", "out", ""), &owner(&reaper))
            .await
            .unwrap();
        let mut daemon = take(&mut opened, 1);
        let streams = opened.start().await.unwrap();
        // One pipe full in the FIFO, one in the pipe.
        daemon.write_all(&pattern(0, FULL)).unwrap();
        while sys::fd::unread(reader.as_fd()).unwrap() < FULL {
            yield_now().await;
        }
        daemon.write_all(&pattern(FULL, FULL)).unwrap();
        streams.process_exited();
        streams.drained().await;
        let got = blocking(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            got
        })
        .await;
        assert!(got == pattern(0, 2 * FULL), "{} bytes", got.len());
        drop(daemon);
    });
}

#[test]
fn reader_that_was_absent_at_the_end_gets_the_rest() {
    alone(
        "reader_that_was_absent_at_the_end_gets_the_rest",
        async |reaper| {
            let client = Client::new();
            let reader = client.reader("out");
            let mut opened = open(&client.stdio("", "out", ""), &owner(&reaper))
                .await
                .unwrap();
            let mut container = take(&mut opened, 1);
            drop(reader);
            container.write_all(b"last words").unwrap();
            drop(container);
            let streams = opened.start().await.unwrap();
            streams.process_exited();
            streams.drained().await;
            // One that only looks in is no reader.
            yield_now().await;
            drop(client.reader("out"));
            let path = client.path("out");
            let words = blocking(move || fs::read_to_string(path).unwrap()).await;
            assert_eq!(words, "last words");
        },
    );
}

#[test]
fn drop_closes_every_descriptor() {
    alone("drop_closes_every_descriptor", async |reaper| {
        let client = Client::new();
        let mut readers = [client.reader("out"), client.reader("err")];
        let before = descriptors();
        for _ in 0..5 {
            let stdio = client.stdio("in", "out", "err");
            drop(open(&stdio, &owner(&reaper)).await.unwrap());
            let mut opened = open(&stdio, &owner(&reaper)).await.unwrap();
            opened.give_to(&mut Command::new("true")).unwrap();
            drop(opened.start().await.unwrap());
            settled(&before).await;
            // And the readers see an end.
            for reader in &mut readers {
                assert_eq!(reader.read(&mut [0]).unwrap(), 0);
            }
        }
    });
}

/// A pty with a raw slave: what goes in comes out. `CLOEXEC` from the start: another
/// test may be starting a process.
fn raw_pty() -> (OwnedFd, File) {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags).unwrap();
    unlockpt(&master).unwrap();
    let slave = sys::tty::open_slave(master.as_fd()).unwrap();
    fcntl(&slave, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let mut attributes = tcgetattr(&slave).unwrap();
    cfmakeraw(&mut attributes);
    tcsetattr(&slave, SetArg::TCSANOW, &attributes).unwrap();
    (master.as_fd().try_clone_to_owned().unwrap(), slave.into())
}

/// Does what a runtime does with `--console-socket`.
fn hand_over(socket: &Path, fd: OwnedFd) {
    let stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let text = [IoSlice::new(b"/dev/pts/0")];
    sendmsg::<()>(stream.as_raw_fd(), &text, &rights, MsgFlags::empty(), None).unwrap();
}

async fn open_terminal(client: &Client, reaper: &Reaper) -> (Streams, File) {
    let stdio = Stdio {
        terminal: true,
        stderr: "nonsense://".into(),
        ..client.stdio("in", "out", "")
    };
    // Longer than what the kernel takes for a socket's path.
    let bundle = client.path(&"b".repeat(150));
    fs::create_dir_all(&bundle).unwrap();
    let owner = Owner {
        bundle: &bundle,
        ..owner(reaper)
    };
    let mut opened = open(&stdio, &owner).await.unwrap();
    assert!(!opened.give_to(&mut Command::new("true")).unwrap());
    let socket = opened.console_socket().unwrap().to_owned();
    let parent = fs::canonicalize(socket.parent().unwrap()).unwrap();
    assert_eq!(parent.parent(), Some(&*bundle));
    assert_eq!(
        fs::metadata(&parent).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let (master, slave) = raw_pty();
    hand_over(&socket, master);
    let streams = opened.start().await.unwrap();
    assert!(!parent.exists());
    (streams, slave)
}

#[test]
fn console_socket_falls_back_to_a_temporary_directory() {
    serve(async |reaper| {
        let stdio = Stdio {
            terminal: true,
            ..Stdio::default()
        };
        let owner = Owner {
            bundle: Path::new("/proc/no-such-bundle"),
            ..owner(&reaper)
        };
        let opened = open(&stdio, &owner).await.unwrap();
        let (master, slave) = raw_pty();
        hand_over(opened.console_socket().unwrap(), master);
        drop((opened.start().await.unwrap(), slave));
    });
}

#[test]
fn terminal_has_one_master_and_loses_no_output() {
    const SIZE: usize = 3 << 20;
    alone(
        "terminal_has_one_master_and_loses_no_output",
        async |reaper| {
            let client = Client::new();
            let mut reader = client.reader("out");
            let before = descriptors();
            let (streams, mut slave) = open_terminal(&client, &reaper).await;
            let masters = descriptors()
                .iter()
                .filter(|(_, to)| to.ends_with("ptmx"))
                .count();
            assert_eq!(masters, 1);
            streams.resize(132, 43).unwrap();
            assert_eq!(sys::tty::size(slave.as_fd()).unwrap(), (132, 43));

            // Stdin gets there.
            let path = client.path("in");
            let (mut slave, stdin) = blocking(move || {
                let mut stdin = OpenOptions::new().write(true).open(path).unwrap();
                stdin.write_all(b"typed").unwrap();
                let mut got = [0; 5];
                slave.read_exact(&mut got).unwrap();
                assert_eq!(&got, b"typed");
                (slave, stdin)
            })
            .await;
            // The container closes its terminal and opens it again: no end.
            let name = fs::read_link(format!("/proc/self/fd/{}", slave.as_raw_fd())).unwrap();
            drop(slave);
            let mut options = OpenOptions::new();
            options
                .read(true)
                .write(true)
                .custom_flags(OFlag::O_NOCTTY.bits());
            slave = options.open(name).unwrap();
            let writer = thread::spawn(move || slave.write_all(&pattern(0, SIZE)).unwrap());
            let (got, mut reader) = blocking(move || {
                let mut got = vec![0; SIZE - 1000];
                reader.read_exact(&mut got).unwrap();
                writer.join().unwrap();
                (got, reader)
            })
            .await;
            assert!(got == pattern(0, SIZE - 1000));
            // The process has ended, not all is read.
            streams.process_exited();
            streams.drained().await;
            let rest = blocking(move || {
                let mut rest = Vec::new();
                reader.read_to_end(&mut rest).unwrap();
                (rest, reader)
            })
            .await;
            assert!(
                rest.0 == pattern(SIZE - 1000, 1000),
                "{} bytes",
                rest.0.len()
            );
            drop((streams, stdin));
            // The reader moved between threads, its number did not.
            settled(&before).await;
        },
    );
}

#[test]
fn end_of_stdin_hangs_up_the_terminal() {
    serve(async |reaper| {
        let client = Client::new();
        let reader = client.reader("out");
        let (streams, mut slave) = open_terminal(&client, &reaper).await;
        slave.write_all(b"before").unwrap();
        streams.close_stdin();
        // The end, or an error (EIO) when it was hung up before the read.
        let (read, slave) = blocking(move || (slave.read(&mut [0]), slave)).await;
        assert_eq!(read.unwrap_or(0), 0);
        // The process lives, but nothing comes from it any more.
        let output = blocking(move || io::read_to_string(reader).unwrap()).await;
        assert_eq!(output, "before");
        streams.resize(1, 1).unwrap();
        drop((slave, streams));
    });
}

#[test]
fn terminal_output_to_a_file() {
    serve(async |reaper| {
        let client = Client::new();
        let path = client.path("new/log");
        let stdio = Stdio {
            terminal: true,
            stdout: format!("file://{}", path.display()),
            ..Stdio::default()
        };
        let opened = open(&stdio, &owner(&reaper)).await.unwrap();
        let (master, mut slave) = raw_pty();
        hand_over(opened.console_socket().unwrap(), master);
        let streams = opened.start().await.unwrap();
        slave.write_all(b"hello").unwrap();
        drop(slave);
        streams.process_exited();
        streams.drained().await;
        assert_eq!(fs::read_to_string(path).unwrap(), "hello");
    });
}

#[test]
fn missing_terminal_is_an_error() {
    alone("missing_terminal_is_an_error", async |reaper| {
        tokio::time::pause();
        let stdio = Stdio {
            terminal: true,
            ..Stdio::default()
        };
        let before = descriptors();
        for (sent, text) in [(false, "sent no terminal"), (true, "is not a terminal")] {
            let opened = open(&stdio, &owner(&reaper)).await.unwrap();
            let socket = opened.console_socket().unwrap().to_owned();
            let parent = fs::canonicalize(socket.parent().unwrap()).unwrap();
            if sent {
                hand_over(&socket, null().unwrap());
            }
            let error = opened.start().await.unwrap_err().to_string();
            assert!(
                error.contains("receive from console socket") && error.contains(text),
                "{error}"
            );
            assert!(!parent.exists());
            settled(&before).await;
        }
    });
}

/// A logging program: a shell script that gets the directory as `$1`.
fn script(client: &Client, text: &str, scheme: &str) -> Stdio {
    let path = client.path("logger");
    fs::write(&path, format!("#!/bin/sh\nd=$2\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    let directory = client.0.path().display();
    let uri = format!("{scheme}://{}?dir={directory}&b=x+y&a", path.display());
    Stdio {
        stdout: uri.clone(),
        stderr: uri,
        ..Stdio::default()
    }
}

#[test]
fn logger_protocol() {
    alone("logger_protocol", async |reaper| {
        let client = Client::new();
        let before = descriptors();
        let text = "for a in \"$@\"; do echo \"[$a]\"; done >$d/arguments
            tr '\\0' '\\n' </proc/$$/environ >$d/environment
            echo >&5; exec 5>&-
            cat <&3 >$d/stdout & cat <&4 >$d/stderr; wait";
        let stdio = script(&client, text, "binary-v2");
        let mut opened = open(&stdio, &owner(&reaper)).await.unwrap();
        let (mut out, mut err) = (take(&mut opened, 1), take(&mut opened, 2));
        let streams = opened.start().await.unwrap();
        blocking(move || {
            out.write_all(&pattern(0, 1 << 20)).unwrap();
            err.write_all(b"error").unwrap();
        })
        .await;
        streams.process_exited();
        streams.drained().await;
        // It ended by itself, having read everything.
        assert!(fs::read(client.path("stdout")).unwrap() == pattern(0, 1 << 20));
        let text = |name| fs::read_to_string(client.path(name)).unwrap();
        assert_eq!(text("stderr"), "error");
        let directory = client.0.path().display();
        assert_eq!(
            text("arguments"),
            format!("[dir]\n[{directory}]\n[b]\n[x y]\n[a]\n[]\n")
        );
        assert_eq!(
            text("environment"),
            "CONTAINER_ID=id\nCONTAINER_NAMESPACE=ns\n"
        );
        drop(streams);
        settled(&before).await;
    });
}

#[test]
fn dead_logger_does_not_stop_the_container() {
    alone("dead_logger_does_not_stop_the_container", async |reaper| {
        let client = Client::new();
        let before = descriptors();
        let text = "echo >&5; head -c 10 <&3 >$d/stdout; exit 3";
        let stdio = script(&client, text, "binary");
        let mut opened = open(&stdio, &owner(&reaper)).await.unwrap();
        let (mut out, mut err) = (take(&mut opened, 1), take(&mut opened, 2));
        let streams = opened.start().await.unwrap();
        blocking(move || {
            out.write_all(&pattern(0, 1 << 20)).unwrap();
            err.write_all(&pattern(0, 1 << 20)).unwrap();
        })
        .await;
        streams.process_exited();
        streams.drained().await;
        assert_eq!(fs::read(client.path("stdout")).unwrap(), pattern(0, 10));
        drop(streams);
        settled(&before).await;
    });
}

#[test]
fn logger_that_ignores_sigterm_is_killed() {
    alone("logger_that_ignores_sigterm_is_killed", async |reaper| {
        let client = Client::new();
        let before = descriptors();
        let text = "trap 'echo >$d/asked' TERM; echo $$ >$d/pid; exec 5>&-
            while :; do read x; done <$d/in 3<&- 4<&-";
        // `read` waits: the client holds the FIFO.
        let hold = OpenOptions::new()
            .read(true)
            .write(true)
            .open(client.path("in"))
            .unwrap();
        let stdio = script(&client, text, "binary");
        let opened = open(&stdio, &owner(&reaper)).await.unwrap();
        let pid = fs::read_to_string(client.path("pid")).unwrap();
        let pidfd = sys::process::pidfd_open(pid.trim().parse().unwrap()).unwrap();
        let process = End::source(pidfd).unwrap();
        let streams = opened.start().await.unwrap();
        tokio::time::pause();
        let exit = Instant::now();
        streams.process_exited();
        streams.drained().await;
        assert!(exit.elapsed() < LOGGER_END + Duration::from_millis(5));
        drop(streams);
        process.readable().await.unwrap();
        assert!(exit.elapsed() >= Duration::from_secs(12));
        drop((process, hold));
        settled(&before).await;
    });
}

#[test]
fn terminal_output_to_a_logger() {
    alone("terminal_output_to_a_logger", async |reaper| {
        let client = Client::new();
        let before = descriptors();
        let text = "exec 5>&-; cat <&4; cat <&3 >$d/log";
        let stdio = Stdio {
            terminal: true,
            ..script(&client, text, "binary")
        };
        let opened = open(&stdio, &owner(&reaper)).await.unwrap();
        let (master, mut slave) = raw_pty();
        hand_over(opened.console_socket().unwrap(), master);
        let streams = opened.start().await.unwrap();
        blocking(move || slave.write_all(&pattern(0, 300_000)).unwrap()).await;
        streams.process_exited();
        streams.drained().await;
        assert!(fs::read(client.path("log")).unwrap() == pattern(0, 300_000));
        drop(streams);
        settled(&before).await;
    });
}

fn pipe_size(pipe: &File) -> usize {
    fcntl(pipe, FcntlArg::F_GETPIPE_SZ).unwrap() as usize
}

/// Sends `bytes` through a stream at once, so that it moves them at once.
async fn send(from: &mut File, bytes: &[u8], to: &mut File) {
    from.write_all(bytes).unwrap();
    while sys::fd::unread(to.as_fd()).unwrap() < bytes.len() {
        yield_now().await;
    }
    let mut got = vec![0; bytes.len()];
    to.read_exact(&mut got).unwrap();
    assert!(got == bytes);
}

/// Sends as much at once as `from` holds, until `grown` is larger than `small`.
async fn send_until_grown(from: &mut File, to: &mut File, grown: impl Fn(&File, &File) -> bool) {
    let start = std::time::Instant::now();
    while !grown(from, to) {
        assert!(start.elapsed() < Duration::from_secs(60));
        let full = pattern(0, pipe_size(from).min(pipe_size(to)));
        send(from, &full, to).await;
    }
}

#[test]
fn pipes_grow_only_for_busy_streams() {
    serve(async |reaper| {
        tokio::time::pause();
        let client = Client::new();
        let mut readers = [client.reader("out"), client.reader("err")];
        let mut opened = open(&client.stdio("", "out", "err"), &owner(&reaper))
            .await
            .unwrap();
        let (mut loud, mut quiet) = (take(&mut opened, 1), take(&mut opened, 2));
        let small = pipe_size(&loud);
        let _streams = opened.start().await.unwrap();
        let [out, err] = &mut readers;
        for _ in 0..3 {
            send_until_grown(&mut loud, out, |loud, out| {
                pipe_size(loud) > small && pipe_size(out) > small
            })
            .await;
            for _ in 0..100 {
                send(&mut quiet, &pattern(0, small - 1), err).await;
            }
            assert_eq!([pipe_size(&quiet), pipe_size(err)], [small; 2]);
            // It rests.
            tokio::time::sleep(sizes::QUIET * 2).await;
            assert_eq!([pipe_size(&loud), pipe_size(out)], [small; 2]);
        }
    });
}

#[test]
fn pipes_shrink_when_the_reader_has_stopped_and_reads_again() {
    serve(async |reaper| {
        tokio::time::pause();
        let client = Client::new();
        let mut out = client.reader("out");
        let mut opened = open(&client.stdio("", "out", ""), &owner(&reaper))
            .await
            .unwrap();
        let mut container = take(&mut opened, 1);
        let small = pipe_size(&container);
        let _streams = opened.start().await.unwrap();
        send_until_grown(&mut container, &mut out, |container, out| {
            pipe_size(container) > small && pipe_size(out) > small
        })
        .await;
        // Nobody reads what fills both.
        let full = pattern(0, sizes::LARGEST);
        container.write_all(&full).unwrap();
        while sys::fd::unread(out.as_fd()).unwrap() < full.len() {
            yield_now().await;
        }
        container.write_all(&full).unwrap();
        tokio::time::sleep(sizes::SHRINK_PAUSE).await;
        for _ in 0..2 {
            out.read_exact(&mut vec![0; full.len()]).unwrap();
            tokio::time::sleep(sizes::SHRINK_PAUSE).await;
        }
        assert_eq!([pipe_size(&container), pipe_size(&out)], [small; 2]);
    });
}

#[test]
fn pipe_grows_beside_a_large_one() {
    serve(async |reaper| {
        let client = Client::new();
        let mut opened = open(&client.stdio("in", "", ""), &owner(&reaper))
            .await
            .unwrap();
        let mut container = take(&mut opened, 0);
        let _streams = opened.start().await.unwrap();
        let mut stdin = OpenOptions::new()
            .write(true)
            .open(client.path("in"))
            .unwrap();
        fcntl(&stdin, FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
        send_until_grown(&mut stdin, &mut container, |_, container| {
            pipe_size(container) == sizes::LARGEST
        })
        .await;
        assert_eq!(pipe_size(&stdin), 1 << 20);
    });
}
