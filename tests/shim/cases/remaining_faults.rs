//! Faults of the machine, of clients and of programs that must neither hang the server nor
//! leave anything behind.

use std::fs::{File, read_to_string};
use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio as CommandStdio};
use std::time::Duration;

use containerd_shim_rs_v2::proto::{Empty, task};
use containerd_shim_rs_v2::socket;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getsid, pipe2};

use super::stdio::{both, logger};
use super::stdio_faults::{is_repetition, status_of};
use crate::harness::rpc::Pending;
use crate::harness::*;

/// Sets the soft limit of the process's open files.
fn limit_descriptors(pid: i32, soft: &str) {
    let mut command = Command::new("prlimit");
    command.args(["--pid", &pid.to_string(), &format!("--nofile={soft}:")]);
    let output = process::run(&mut command, b"", Duration::from_secs(30));
    assert_eq!(output.stderr_text(), "");
}

/// A pipe that is full: the read end, and the write end, which blocks.
fn full_pipe() -> (File, File) {
    let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
    let mut write = File::from(write);
    let full = loop {
        if let Err(error) = write.write(&[0; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    fcntl(&write, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (File::from(read), write)
}

cases! {
    fn server_whose_start_was_killed_before_it_answered_ends(d) {
        if is_repetition(d) { return }
        let bundle = d.container("c", &["true"]).bundle();
        let (_read, full) = full_pipe();
        let mut start = d.command("c", &bundle);
        start.arg("start").stdin(CommandStdio::null()).stderr(CommandStdio::null()).stdout(full);
        let start = process::spawn(&mut start).id() as i32;
        d.eventually("start and a server", || d.shims_alive().len() == 2);
        let server = d.shims_alive().into_iter().find(|pid| *pid != start).unwrap();
        // It makes the file before it answers, which blocks.
        d.eventually("start to know its server", || bundle.join("address").exists());
        process::signal(start, Signal::SIGKILL);
        assert_eq!(process::wait(start, "start", d.hang_timeout), 128 + 9);
        let path = socket::path(socket::DEFAULT_DIR, &d.grpc_address(), &d.namespace, "c");
        assert!(path.exists(), "no socket at {path:?}");
        assert_eq!(process::wait(server, "the server that nobody calls", 3 * d.hang_timeout), 0);
        assert!(!path.exists(), "{path:?} is left");
    }

    fn logger_of_a_killed_server_reads_to_the_end_and_ends(d) {
        let (log, go) = (d.path("log"), d.path("go"));
        // A program of its own shares its input.
        let script = format!(
            "exec 5>&-\nuntil [ -e {} ]; do /bin/sleep 0.05; done\n/bin/cat <&4 >/dev/null &\n/bin/cat <&3 >{}\nwait",
            go.display(),
            log.display()
        );
        let program = logger(d, "slow", &script);
        let c = d.shell("c", "seq 5000; echo up >/tmp/up; exec sleep inf").stdio(both(&format!("binary://{program}"))).run();
        d.eventually("output", || status_of(&c, "look", "test -e /tmp/up") == 0);
        c.kill_shim();
        d.delete("c");
        c.assert_gone();
        // What the container wrote is still in the pipe, and is not lost.
        assert!(!process::running(&program).is_empty());
        File::create(&go).unwrap();
        d.eventually("the logger to end", || process::running(&program).is_empty());
        let expected: String = (1..=5000).map(|n| format!("{n}\n")).collect();
        assert_eq!(read_to_string(log).unwrap(), expected);
    }

    fn start_that_waits_for_a_reader_ends_though_descriptors_are_used_up(d) {
        let c = d.running("c");
        let fifo = d.fifo("unread");
        let e = c.exec_with("e", &["true"], &both(&fifo)).unwrap();
        let is_open = || c.footprint().0.contains(&fifo);
        let threads = c.footprint().1;
        let request = task::StartRequest { id: "c".into(), exec_id: "e".into(), ..Default::default() };
        let start: Pending<task::StartResponse> =
            c.connection.send(c.api.service(), "Start", &request, Duration::from_secs(2));
        d.eventually("the FIFO to be looked at", is_open);
        limit_descriptors(c.shim_pid, "3");
        start.wait().unwrap_err();
        d.eventually("the FIFO to be left alone", || !is_open());
        d.eventually("no thread that waits for a reader", || c.footprint().1 <= threads);
        limit_descriptors(c.shim_pid, "1024");
        e.delete().unwrap();
        c.end();
        c.finish();
    }

    fn processes_of_a_runtime_that_left_its_group_are_killed_with_it(d) {
        let (escaped, program) = (d.path("escaped"), d.path("runtime"));
        write_program(&escaped, "while :; do sleep 1; done");
        let script = format!(
            "case \" $* \" in *' pause '*) setsid {} & wait;; esac\nexec {} \"$@\"",
            escaped.display(),
            runtime()
        );
        write_program(&program, &script);
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = program.to_str().unwrap().into()).run();
        let request = task::PauseRequest { id: "c".into(), ..Default::default() };
        let pause: Pending<Empty> =
            c.connection.send(c.api.service(), "Pause", &request, Duration::from_secs(2));
        let processes = || process::running(escaped.to_str().unwrap());
        d.eventually("a process in another group", || {
            processes().iter().any(|pid| getsid(Some(Pid::from_raw(*pid))) == Ok(Pid::from_raw(*pid)))
        });
        pause.wait().refused(Code::DEADLINE_EXCEEDED, "");
        d.eventually("none to be left", || processes().is_empty());
        c.end();
        c.finish();
    }
}
