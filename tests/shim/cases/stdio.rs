//! Stdio: every kind of it, and readers that come and go.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use sha2::{Digest, Sha256};

use crate::harness::*;

/// An executable logger at `name`: it takes stdout from descriptor 3, stderr from 4, and is ready when it closes 5.
pub(super) fn logger(d: &Daemon, name: &str, script: &str) -> String {
    let path = d.path(name);
    write_program(&path, script);
    path.to_str().unwrap().into()
}

fn stdout_only(stdout: String) -> Stdio {
    Stdio {
        stdout,
        ..Default::default()
    }
}

/// Both outputs to one place.
pub(super) fn both(uri: &str) -> Stdio {
    Stdio {
        stdout: uri.into(),
        stderr: uri.into(),
        ..Default::default()
    }
}

/// How many pty masters the shim holds.
fn masters(c: &container::Container) -> usize {
    c.footprint()
        .0
        .iter()
        .filter(|name| name.contains("ptmx"))
        .count()
}

cases! {
    fn stdout_and_stderr_are_separate(d) {
        let fifos = d.fifos("c");
        let c = d.shell("c", "echo out; echo err >&2").stdio(fifos.stdio).run();
        assert_eq!(c.exit_status(), 0);
        assert_eq!(fifos.stdout.end(), "out\n");
        assert_eq!(fifos.stderr.unwrap().end(), "err\n");
        c.finish();
    }

    fn fifo_as_a_url(d) {
        let path = d.fifo("out");
        let out = d.read(&path);
        let err = d.fifo("err");
        let _err = d.read(&err);
        let stdio = Stdio { stdout: format!("fifo://{path}"), stderr: format!("fifo://{err}"), ..Default::default() };
        let c = d.shell("c", "echo out").stdio(stdio).run();
        c.exit_status();
        assert_eq!(out.end(), "out\n");
    }

    fn no_stdio_is_dev_null(d) {
        let c = d.shell("c", "read x && exit 1; echo out && echo err >&2 && exit 4").run();
        assert_eq!(c.exit_status(), 4);
        c.finish();
    }

    fn stdout_alone(d) {
        let path = d.fifo("out");
        let out = d.read(&path);
        let c = d.shell("c", "echo out; echo err >&2").stdio(stdout_only(path)).run();
        assert_eq!(c.exit_status(), 0);
        assert_eq!(out.end(), "out\n");
        c.finish();
    }

    fn stderr_alone(d) {
        let path = d.fifo("err");
        let err = d.read(&path);
        let stdio = Stdio { stderr: path, ..Default::default() };
        let c = d.shell("c", "echo out; echo err >&2").stdio(stdio).run();
        assert_eq!(c.exit_status(), 0);
        assert_eq!(err.end(), "err\n");
        c.finish();
    }

    fn exec_has_its_own_stdio(d) {
        let c = d.running("c");
        let fifos = d.fifos("e");
        let e = c.exec_with("e", &["sh", "-c", "echo out; echo err >&2"], &fifos.stdio).unwrap();
        e.start().unwrap();
        assert_eq!(e.exit_status(), 0);
        assert_eq!(fifos.stdout.end(), "out\n");
        assert_eq!(fifos.stderr.unwrap().end(), "err\n");
        e.delete().unwrap();
    }

    fn stdin_ends_when_it_is_closed(d) {
        let fifos = d.fifos("c");
        let c = d.container("c", &["cat"]).stdio(fifos.stdio.clone()).run();
        let mut stdin = d.write(&fifos.stdio.stdin);
        stdin.write_all(b"first\n").unwrap();
        fifos.stdout.wait_for("first\n");
        drop(stdin);
        // The shim holds it open, for clients that come back.
        let mut stdin = d.write(&fifos.stdio.stdin);
        stdin.write_all(b"second\n").unwrap();
        fifos.stdout.wait_for("second\n");
        drop(stdin);
        c.close_io().unwrap();
        assert_eq!(c.exit_status(), 0);
        assert_eq!(fifos.stdout.end(), "first\nsecond\n");
        c.close_io().unwrap();
        c.finish();
    }

    fn stdin_is_opened_at_start(d) {
        let fifos = d.fifos("c");
        let c = d.container("c", &["cat"]).stdio(fifos.stdio.clone()).created();
        let writer = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&fifos.stdio.stdin);
        assert_eq!(writer.unwrap_err().raw_os_error(), Some(libc::ENXIO), "nobody reads");
        c.start().unwrap();
        d.write(&fifos.stdio.stdin).write_all(b"line\n").unwrap();
        c.close_io().unwrap();
        assert_eq!(c.exit_status(), 0);
        assert_eq!(fifos.stdout.end(), "line\n");
        c.finish();
    }

    fn stdin_that_is_closed_before_the_start_is_empty(d) {
        let fifos = d.fifos("c");
        let c = d.container("c", &["cat"]).stdio(fifos.stdio.clone()).created();
        c.close_io().unwrap();
        c.start().unwrap();
        assert_eq!(c.exit_status(), 0);
        assert_eq!(fifos.stdout.end(), "");
        c.finish();
    }

    fn stdin_of_an_exec_ends_when_it_is_closed(d) {
        let c = d.running("c");
        let fifos = d.fifos("e");
        let e = c.exec_with("e", &["cat"], &fifos.stdio).unwrap();
        e.start().unwrap();
        let mut stdin = d.write(&fifos.stdio.stdin);
        stdin.write_all(b"line\n").unwrap();
        drop(stdin);
        e.close_io().unwrap();
        assert_eq!(e.exit_status(), 0);
        assert_eq!(fifos.stdout.end(), "line\n");
    }

    fn close_io_without_stdin(d) {
        let c = d.running("c");
        c.close_io().unwrap();
        c.close_io().unwrap();
    }

    fn large_output_is_complete(d) {
        let fifos = d.fifos("c");
        let script = "dd if=/tmp/random bs=1M count=24 2>/dev/null | tee /tmp/x; sha256sum < /tmp/x >&2";
        let c = d.shell("c", script).spec(|spec| spec["process"]["env"] = serde_json::json!(["PATH=/bin"]));
        let c = c.spec(|spec| {
            let devices = serde_json::json!({"destination": "/tmp/random", "type": "bind", "source": "/dev/urandom", "options": ["bind"]});
            spec["mounts"].as_array_mut().unwrap().push(devices);
        });
        let c = c.stdio(fifos.stdio).run();
        assert_eq!(c.exit_status(), 0);
        let bytes = fifos.stdout.end_bytes();
        assert_eq!(bytes.len(), 24 << 20);
        let sum: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(fifos.stderr.unwrap().end(), format!("{sum}  -\n"));
        c.finish();
    }

    fn output_of_a_short_process_is_not_lost(d) {
        let c = d.running("c");
        for round in 0..20 {
            let fifos = d.fifos(&format!("e{round}"));
            let id = format!("e{round}");
            let e = c.exec_with(&id, &["echo", &id], &fifos.stdio).unwrap();
            e.start().unwrap();
            e.exit_status();
            e.delete().unwrap();
            assert_eq!(fifos.stdout.end(), format!("{id}\n"));
        }
    }

    fn reader_disconnects_and_returns(d) {
        let fifos = d.fifos("c");
        let script = "while read line; do echo $line; done; exit 3";
        let c = d.shell("c", script).stdio(fifos.stdio.clone()).run();
        let mut stdin = d.write(&fifos.stdio.stdin);
        stdin.write_all(b"one\n").unwrap();
        fifos.stdout.wait_for("one\n");
        drop(fifos.stdout);
        stdin.write_all(b"two\n").unwrap();
        let again = d.read(&fifos.stdio.stdout);
        stdin.write_all(b"three\n").unwrap();
        again.wait_for("three\n");
        drop(stdin);
        c.close_io().unwrap();
        assert_eq!(c.exit_status(), 3);
        again.end();
    }

    fn output_without_a_reader_does_not_stop_the_shim(d) {
        let fifos = d.fifos("c");
        let c = d.shell("c", "echo up; yes").stdio(fifos.stdio.clone()).run();
        fifos.stdout.wait_for("up");
        drop(fifos);
        c.end();
        c.delete().unwrap();
        c.shut_down();
    }

    fn file_takes_both_streams(d) {
        let path = d.path("logs/deep/c.log");
        let stdio = both(&format!("file://{}", path.display()));
        let c = d.shell("c", "echo out; echo err >&2").stdio(stdio.clone()).run();
        assert_eq!(c.exit_status(), 0);
        let e = d.shell("again", "echo again").stdio(stdio).run();
        assert_eq!(e.exit_status(), 0);
        c.finish();
        e.finish();
        let text = fs::read_to_string(path).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort();
        assert_eq!(lines, ["again", "err", "out"]);
    }

    fn plain_file_is_appended_to(d) {
        let path = d.path("c.log");
        fs::write(&path, "before\n").unwrap();
        let c = d.shell("c", "echo out").stdio(both(path.to_str().unwrap())).run();
        c.exit_status();
        c.finish();
        assert_eq!(fs::read_to_string(path).unwrap(), "before\nout\n");
    }

    fn logger_gets_the_output(d) {
        let (env, log) = (d.path("env"), d.path("log"));
        let script = format!(
            "echo $CONTAINER_ID $CONTAINER_NAMESPACE $* > {}\nexec 5>&-\nexec /bin/cat <&3 > {}",
            env.display(),
            log.display()
        );
        let uri = format!("binary://{}?key=value", logger(d, "logger", &script));
        let c = d.shell("c", "echo out").stdio(both(&uri)).run();
        assert_eq!(c.exit_status(), 0);
        c.finish();
        assert_eq!(fs::read_to_string(env).unwrap(), format!("c {} key value\n", d.namespace));
        assert_eq!(fs::read_to_string(log).unwrap(), "out\n");
    }

    fn logger_that_ends_before_it_is_ready(d) {
        let uri = format!("binary-v2://{}", logger(d, "logger", "exit 1"));
        let c = d.container("c", &["true"]).stdio(both(&uri)).shim();
        c.create().refused(Code::UNKNOWN, "logging binary did not call ready");
        c.assert_gone();
        c.shut_down();
    }

    fn logger_that_does_not_exist(d) {
        let c = d.container("c", &["true"]).stdio(both("binary:///no/such/logger")).shim();
        let failure = c.create().unwrap_err();
        assert!(failure.message.contains("/no/such/logger"), "{failure:?}");
        c.assert_gone();
        c.shut_down();
    }

    fn unknown_scheme(d) {
        let stdio = stdout_only("gopher://hole".into());
        let c = d.container("c", &["true"]).stdio(stdio).shim();
        c.create().refused(Code::UNKNOWN, "unknown STDIO scheme gopher");
        c.assert_gone();
        c.shut_down();
    }

    fn fifo_that_does_not_exist(d) {
        let stdio = stdout_only("/no/such/fifo".into());
        let c = d.container("c", &["true"]).stdio(stdio).shim();
        let failure = c.create().unwrap_err();
        assert!(failure.message.contains("/no/such/fifo"), "{failure:?}");
        c.assert_gone();
        assert!(!c.footprint().0.iter().any(|name| name.starts_with("pipe")), "{:?}", c.footprint().0);
        c.shut_down();
    }

    fn terminal(d) {
        let fifos = d.terminal("c");
        let c = d.shell("c", "tty; read line; echo got $line").stdio(fifos.stdio.clone()).run();
        fifos.stdout.wait_for("/dev/pts/0\r\n");
        assert!(c.state().unwrap().terminal);
        assert_eq!(masters(&c), 1);
        let mut stdin = d.write(&fifos.stdio.stdin);
        stdin.write_all(b"line\n").unwrap();
        assert_eq!(c.exit_status(), 0);
        assert!(fifos.stdout.end().ends_with("got line\r\n"));
        c.delete().unwrap();
        d.eventually("no pty", || masters(&c) == 0);
        c.shut_down();
    }

    fn terminal_is_resized(d) {
        let fifos = d.terminal("c");
        let c = d.shell("c", "stty size; read x; stty size").stdio(fifos.stdio.clone()).created();
        c.resize(100, 30).unwrap();
        c.start().unwrap();
        fifos.stdout.wait_for("30 100\r\n");
        c.resize(70, 20).unwrap();
        d.write(&fifos.stdio.stdin).write_all(b"\n").unwrap();
        fifos.stdout.wait_for("20 70\r\n");
        assert_eq!(c.exit_status(), 0);
        c.finish();
    }

    fn terminal_of_an_exec(d) {
        let c = d.running("c");
        let fifos = d.terminal("e");
        let e = c.exec_with("e", &["sh", "-c", "read x; stty size"], &fifos.stdio).unwrap();
        e.resize(1, 1).unwrap();
        e.start().unwrap();
        e.resize(90, 40).unwrap();
        d.write(&fifos.stdio.stdin).write_all(b"\n").unwrap();
        assert_eq!(e.exit_status(), 0);
        assert!(fifos.stdout.end().ends_with("40 90\r\n"));
        e.delete().unwrap();
        d.eventually("no pty", || masters(&c) == 0);
    }

    fn resize_without_a_terminal(d) {
        let c = d.running("c");
        c.resize(80, 25).unwrap();
    }

    fn large_output_of_a_terminal_is_complete(d) {
        let fifos = d.terminal("c");
        let c = d.container("c", &["seq", "100000"]).stdio(fifos.stdio.clone()).run();
        assert_eq!(c.exit_status(), 0);
        let lines: Vec<String> = (1..=100_000).map(|n| format!("{n}\r\n")).collect();
        assert!(fifos.stdout.end() == lines.concat(), "bytes are missing");
        c.finish();
    }

    fn terminal_may_log_to_a_file(d) {
        let path = d.path("logs/c.log");
        let stdio = Stdio { terminal: true, stdout: format!("file://{}", path.display()), ..Default::default() };
        let c = d.shell("c", "tty; seq 1000").stdio(stdio).run();
        assert_eq!(c.exit_status(), 0);
        c.finish();
        let lines: Vec<String> = (1..=1000).map(|n| format!("{n}\r\n")).collect();
        assert_eq!(fs::read_to_string(path).unwrap(), format!("/dev/pts/0\r\n{}", lines.concat()));
    }

    fn terminal_may_have_a_logger(d) {
        let log = d.path("log");
        let script = format!("exec 5>&-\nexec /bin/cat <&3 > {}", log.display());
        let uri = format!("binary://{}", logger(d, "logger", &script));
        let stdio = Stdio { terminal: true, stdout: uri, ..Default::default() };
        let c = d.shell("c", "tty; exit 3").stdio(stdio).run();
        assert_eq!(c.exit_status(), 3);
        c.finish();
        assert_eq!(fs::read_to_string(log).unwrap(), "/dev/pts/0\r\n");
    }

    fn child_that_keeps_stdout_open_does_not_delay_the_exit(d) {
        let c = d.running("c");
        let fifos = d.fifos("e");
        let e = c.exec_with("e", &["sh", "-c", "sleep inf & echo out"], &fifos.stdio).unwrap();
        e.start().unwrap();
        assert_eq!(e.exit_status(), 0);
        fifos.stdout.wait_for("out\n");
        d.events.get("c", "exit e");
        e.delete().unwrap();
        assert_eq!(c.pids().unwrap().len(), 2);
    }

    fn failed_execs_leave_no_descriptor(d) {
        let c = d.running("c");
        let round = |n: u32| {
            let fifos = d.fifos(&format!("e{n}"));
            let id = format!("e{n}");
            let e = c.exec_with(&id, &["no-such-program"], &fifos.stdio).unwrap();
            assert!(e.start().is_err());
            e.delete().unwrap();
        };
        round(0);
        let (before, _) = c.footprint();
        (1..6).for_each(round);
        d.eventually("as many descriptors as before", || c.footprint().0.len() <= before.len());
    }

    fn stdio_of_a_user_namespace(d) {
        let fifos = d.fifos("c");
        let c = d.shell("c", "id -u; echo again > /dev/stdout").user_namespace(100_000);
        let c = c.options(|o| (o.io_uid, o.io_gid) = (100_000, 100_000)).stdio(fifos.stdio).run();
        assert_eq!(c.exit_status(), 0);
        assert_eq!(fifos.stdout.end(), "0\nagain\n");
        c.finish();
    }

    fn unread_log_does_not_block_the_shim(d) {
        let c = d.running("c");
        // Fill it, as many lines of log would.
        let mut options = OpenOptions::new();
        let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
        let options = std::os::unix::fs::OpenOptionsExt::custom_flags(options.write(true), flags);
        let mut log = options.open(c.bundle.join("log")).unwrap();
        d.stop_reading_logs();
        while log.write(&[b'x'; 4096]).is_ok() {}
        for _ in 0..5 {
            let failing = c.exec("e", &["no-such-program"]).unwrap();
            assert!(failing.start().is_err());
            failing.delete().unwrap();
        }
        c.end();
        c.delete().unwrap();
        c.shut_down();
    }
}
