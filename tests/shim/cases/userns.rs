//! Containers in a user namespace: their root, which is nobody in particular outside,
//! has its files and its stdio.

use std::fs;
use std::io::Write;

use crate::harness::container::Builder;
use crate::harness::*;

/// Who root is outside.
const ROOT: u32 = 100_000;

fn mapped<'d>(d: &'d Daemon, script: &str) -> Builder<'d> {
    d.shell("c", script)
        .user_namespace(ROOT)
        .options(|o| (o.io_uid, o.io_gid) = (ROOT, ROOT))
}

/// Says that it is up and echoes a line, reopening what it writes to.
const ECHO: &str = "echo up; read line; echo out $line > /dev/stdout; echo err $line > /dev/stderr";

#[track_caller]
fn assert_echoes(d: &Daemon, stdio: &Stdio, stdout: &stdio::Reader, newline: &str) {
    stdout.wait_for(&format!("up{newline}"));
    d.write(&stdio.stdin).write_all(b"line\n").unwrap();
    stdout.wait_for(&format!("out line{newline}"));
}

/// Who the process is, outside.
#[track_caller]
fn assert_is_root_inside(pid: u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for who in ["Uid", "Gid"] {
        let line = format!("{who}:\t{ROOT}\t{ROOT}\t{ROOT}\t{ROOT}\n");
        assert!(status.contains(&line), "{status}");
    }
}

cases! {
    fn mapped_init_with_pipes(d) {
        let fifos = d.fifos("c");
        let c = mapped(d, ECHO).stdio(fifos.stdio.clone()).run();
        fifos.stdout.wait_for("up");
        assert_is_root_inside(c.state().unwrap().pid);
        assert_echoes(d, &fifos.stdio, &fifos.stdout, "\n");
        assert_eq!(c.exit_status(), 0);
        assert_eq!(fifos.stderr.unwrap().end(), "err line\n");
        c.finish();
    }

    fn mapped_init_with_a_terminal(d) {
        let fifos = d.terminal("c");
        let script = format!("busybox stat -c %u $(tty); {ECHO}; stty size");
        let c = mapped(d, &script).stdio(fifos.stdio.clone()).created();
        c.resize(90, 40).unwrap();
        c.start().unwrap();
        fifos.stdout.wait_for("0\r\n");
        assert_echoes(d, &fifos.stdio, &fifos.stdout, "\r\n");
        fifos.stdout.wait_for("40 90\r\n");
        assert_eq!(c.exit_status(), 0);
        c.finish();
    }

    fn mapped_exec_with_pipes(d) {
        let c = mapped(d, "exec sleep inf").run();
        let fifos = d.fifos("e");
        let e = c.exec_with("e", &["sh", "-c", ECHO], &fifos.stdio).unwrap();
        let pid = e.start().unwrap();
        fifos.stdout.wait_for("up");
        assert_is_root_inside(pid);
        assert_echoes(d, &fifos.stdio, &fifos.stdout, "\n");
        assert_eq!(e.exit_status(), 0);
        assert_eq!(fifos.stderr.unwrap().end(), "err line\n");
        e.delete().unwrap();
        c.end();
        c.finish();
    }

    fn mapped_exec_with_a_terminal(d) {
        let c = mapped(d, "exec sleep inf").run();
        let fifos = d.terminal("e");
        let e = c.exec_with("e", &["sh", "-c", ECHO], &fifos.stdio).unwrap();
        e.start().unwrap();
        assert_echoes(d, &fifos.stdio, &fifos.stdout, "\r\n");
        assert_eq!(e.exit_status(), 0);
        e.delete().unwrap();
        c.end();
        c.finish();
    }

    fn mapped_container_supports_pause_stats_and_kill(d) {
        let c = mapped(d, "exec sleep inf").run();
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        e.start().unwrap();
        assert_eq!(c.pids().unwrap().len(), 2);
        c.pause().unwrap();
        c.resume().unwrap();
        c.kill_all(9).unwrap();
        assert_eq!((c.exit_status(), e.exit_status()), (137, 137));
        c.finish();
    }

    fn mapped_container_of_a_dead_shim(d) {
        let c = mapped(d, "exec sleep inf").run();
        c.kill_shim();
        assert_eq!(d.delete("c").exit_status, 137);
        c.assert_gone();
    }
}
