//! What the machine lacks: system calls that an old kernel does not have or a sandbox
//! refuses, directories that cannot be written to, threads, time.

use std::fs::File;
use std::process::{Command, Stdio};

use containerd_shim_rs_v2::proto::runc;

use crate::harness::seccomp::Denied;
use crate::harness::*;

/// The life of a container, with a terminal and without: created, started, exec'd into,
/// paused, killed, deleted; then its server is shut down.
#[track_caller]
fn whole_life(d: &Daemon) {
    let fifos = d.fifos("c");
    let script = "echo begun; sleep inf";
    let c = d.shell("c", script).stdio(fifos.stdio.clone()).run();
    fifos.stdout.wait_for("begun\n");
    exec_says_hello(d, &c, false);
    exec_says_hello(d, &c, true);
    c.pause().unwrap();
    c.resume().unwrap();
    assert!(!c.pids().unwrap().is_empty());
    c.end();
    c.finish();

    let terminal = d.terminal("t");
    let t = d
        .container("t", &["sleep", "inf"])
        .stdio(terminal.stdio.clone())
        .run();
    t.kill_all(9).unwrap();
    assert_eq!(t.exit_status(), 128 + 9);
    t.finish();

    let dead = d.running("dead");
    dead.kill_shim();
    d.delete("dead");
    dead.assert_gone();
}

#[track_caller]
fn exec_says_hello(d: &Daemon, c: &container::Container, terminal: bool) {
    let id = if terminal { "e-terminal" } else { "e" };
    let fifos = if terminal {
        d.terminal(id)
    } else {
        d.fifos(id)
    };
    let e = c.exec_with(id, &["echo", "hello"], &fifos.stdio).unwrap();
    e.start().unwrap();
    assert_eq!(e.exit_status(), 0);
    fifos.stdout.wait_for("hello");
    e.delete().unwrap();
}

/// A container's whole life without these calls.
#[track_caller]
fn lives_without(d: &Daemon, denied: &[Denied]) {
    d.deny(denied);
    says(d, "-v");
    whole_life(d);
}

/// The shim, called with `action` alone, succeeds.
#[track_caller]
fn says(d: &Daemon, action: &str) {
    let mut command = Command::new(shim_binary());
    d.restrict(&mut command);
    let output = process::run(command.arg(action), &[], d.patience);
    let text = output.stderr_text();
    assert_eq!(output.status, 0, "{action}: {text}");
}

/// Neither a server nor its socket.
#[track_caller]
fn assert_no_server(d: &Daemon, id: &str) {
    d.eventually("the server ends", || d.shims_alive().is_empty());
    // The next one has the same socket, and nobody to find there.
    let bundle = d.bundles_dir().join(id);
    let output = d.start(Dialect::Legacy, id, &bundle, None);
    let started = d.answer(Dialect::Legacy, &output);
    let connection = wire::Connection::open(&started.address, d.patience).expect("dial the shim");
    connection.close();
}

cases! {
    fn start_that_cannot_answer_leaves_no_server(d) {
        let bundle = d.container("c", &["true"]).bundle();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = d.command("c", &bundle);
        command.arg("start").stdin(Stdio::null()).stdout(full).stderr(Stdio::null());
        let start = process::spawn(&mut command);
        assert_ne!(process::wait(start.id() as i32, "start", d.patience), 0);
        assert_no_server(d, "c");
    }

    fn start_with_a_missing_cgroup_leaves_no_server(d) {
        let bundle = d.container("c", &["true"]).bundle();
        let options = runc::Options { shim_cgroup: "/no/such/cgroup".into(), ..d.options() };
        let options = any("containerd.runc.v1.Options", &options);
        let output = d.start(Dialect::Legacy, "c", &bundle, Some(options));
        assert_ne!(output.status, 0);
        assert_no_server(d, "c");
    }

    fn information_is_told_without_newer_calls(d) {
        let memory_files = Denied::call(libc::SYS_memfd_create, libc::EACCES);
        d.deny(&[memory_files, Denied::newer_than_4_18(libc::ENOSYS)]);
        says(d, "-info");
    }

    fn kernel_without_close_range(d) {
        lives_without(d, &[Denied::call(libc::SYS_close_range, libc::ENOSYS)]);
    }

    fn kernel_without_pidfds(d) {
        let calls = [libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal];
        lives_without(d, &calls.map(|call| Denied::call(call, libc::ENOSYS)));
    }

    fn kernel_4_18_without_all_newer_calls(d) {
        lives_without(d, &[Denied::newer_than_4_18(libc::ENOSYS)]);
    }

    fn sandbox_refuses_all_newer_calls(d) {
        // glibc, and with it the OCI runtime, starts no thread if `clone3` fails otherwise.
        let clone3 = Denied::call(libc::SYS_clone3, libc::ENOSYS);
        lives_without(d, &[clone3, Denied::newer_than_4_18(libc::EPERM)]);
    }

    fn kernel_without_inotify_and_splice(d) {
        let calls = [libc::SYS_inotify_init1, libc::SYS_splice, libc::SYS_statx];
        lives_without(d, &calls.map(|call| Denied::call(call, libc::ENOSYS)));
    }

    fn sandbox_refuses_inotify_and_splice(d) {
        let calls = [libc::SYS_inotify_init1, libc::SYS_splice, libc::SYS_statx];
        lives_without(d, &calls.map(|call| Denied::call(call, libc::EPERM)));
    }

    fn memory_files_are_refused(d) {
        lives_without(d, &[Denied::call(libc::SYS_memfd_create, libc::EACCES)]);
    }

    fn memory_files_are_unknown(d) {
        lives_without(d, &[Denied::call(libc::SYS_memfd_create, libc::ENOSYS)]);
    }
}
