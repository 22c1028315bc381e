//! What the machine lacks: system calls that an old kernel does not have or a sandbox
//! refuses, directories that cannot be written to, threads, time.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use containerd_shim_rs_v2::proto::introspection::RuntimeInfo;
use containerd_shim_rs_v2::proto::types::Status;
use containerd_shim_rs_v2::proto::{Message, runc};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use crate::harness::machine::{cgroup_dirs, mounts_below};
use crate::harness::seccomp::Denied;
use crate::harness::*;

/// The life of a container, with a terminal and without: created, started, exec'd into,
/// paused, killed, deleted; then its server is shut down.
#[track_caller]
fn run_whole_lifecycle(d: &Daemon) {
    let fifos = d.fifos("c");
    let script = "echo begun; sleep inf";
    let c = d.shell("c", script).stdio(fifos.stdio.clone()).run();
    fifos.stdout.wait_for("begun\n");
    exec_prints_hello(d, &c, false);
    exec_prints_hello(d, &c, true);
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
fn exec_prints_hello(d: &Daemon, c: &container::Container, terminal: bool) {
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
fn works_without(d: &Daemon, denied: &[Denied]) {
    d.deny(denied);
    says(d, "-v");
    run_whole_lifecycle(d);
}

/// The shim, called with `action` alone, succeeds.
#[track_caller]
fn says(d: &Daemon, action: &str) {
    let mut command = Command::new(shim_binary());
    d.restrict(&mut command);
    let output = process::run(command.arg(action), &[], d.hang_timeout);
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
    let connection =
        rpc::Connection::open(&started.address, d.hang_timeout).expect("dial the shim");
    connection.close();
}

/// A container's bundle in the pod, and what `start` for it answers.
#[track_caller]
fn join(d: &Daemon, dialect: Dialect, id: &str) -> process::Output {
    let bundle = d.container(id, &["true"]).group("pod").bundle();
    d.start(dialect, id, &bundle, None)
}

/// A pod whose server is Go's, which speaks `api` alone; then this shim is installed.
#[track_caller]
fn pod_of_gos_server(d: &Daemon, api: Api) -> daemon::Started {
    // The daemon from 2.3 on names another directory for sockets.
    symlink("/run/containerd/s", d.path("s")).unwrap();
    d.replace_shim(go_shim(api));
    let server = d.answer(Dialect::Legacy, &join(d, Dialect::Legacy, "first"));
    d.replace_shim(shim_binary());
    server
}

/// `start` finds the server, and the daemon is told to speak `version` with it.
#[track_caller]
fn assert_joined(d: &Daemon, dialect: Dialect, server: &daemon::Started, version: i32) {
    let id = format!("{dialect:?}").to_lowercase();
    let joined = d.answer(dialect, &join(d, dialect, &id));
    assert_eq!(joined.version, version, "{joined:?}");
    assert!(
        joined
            .address
            .ends_with(server.address.rsplit('/').next().unwrap())
    );
    assert_eq!(d.shims_alive().len(), 1);
}

/// `-info` in a mount namespace that the shell script `arrange` has arranged.
#[track_caller]
fn assert_info(d: &Daemon, arrange: &str) {
    let mut command = Command::new("unshare");
    d.restrict(&mut command);
    let script = format!("set -e; {arrange}; exec \"$0\" -info");
    command.args(["--mount", "sh", "-c", &script, shim_binary()]);
    let output = process::run(&mut command, &[], d.hang_timeout);
    assert_eq!(output.status, 0, "{}", output.stderr_text());
    let info = RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
    assert!(info.features.is_some(), "{info:?}");
}

/// The bundles' directory, as a file system of its own, until the result is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn for_bundles(d: &Daemon) -> SmallDisk {
        let point = d.bundles_dir().parent().unwrap().to_owned();
        let (kind, none) = (Some("tmpfs"), MsFlags::empty());
        mount(kind, &point, kind, none, Some("size=256k,nr_inodes=100")).expect("mount a tmpfs");
        fs::create_dir_all(d.bundles_dir()).unwrap();
        SmallDisk(point)
    }

    /// Leaves neither a block nor an inode.
    fn fill(&self) {
        let content = [0; 4096];
        let mut number = 0;
        let mut put = |content: &[u8]| {
            number += 1;
            fs::write(self.0.join(format!("fill-{number}")), content)
        };
        while put(&content).is_ok() {}
        while put(&[]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// As a crash or a full disk leaves it: the runtime's state of the container is empty.
#[track_caller]
fn truncate_runtime_state(d: &Daemon, c: &container::Container) -> PathBuf {
    let dir = d.runtime_root().join(&d.namespace).join(&c.container);
    let files = ["state.json", "status"].map(|name| dir.join(name));
    let state = files.iter().find(|file| file.exists());
    fs::write(state.expect("the runtime's state"), "").unwrap();
    dir
}

/// A process whose working directory is the container's rootfs, until it is dropped.
struct User(i32);

impl User {
    fn of(rootfs: &Path) -> User {
        let mut command = Command::new("sleep");
        User(process::spawn(command.arg("inf").current_dir(rootfs)).id() as i32)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        process::signal(self.0, Signal::SIGKILL);
    }
}

/// `delete` succeeded and the container has ended, or it failed and says that it has not.
#[track_caller]
fn assert_delete_reports_whether_it_is_alive(d: &Daemon, output: &process::Output, init: u32) {
    let text = output.stderr_text();
    if output.status == 0 {
        d.eventually("init, which is reported as killed, ends", || {
            !process::alive(init as i32)
        });
    } else {
        assert!(
            text.contains(&format!("init (process {init}) is still alive")),
            "{text}"
        );
        assert!(
            !text.ends_with('\n'),
            "containerd goes on in the line: {text:?}"
        );
        assert!(process::alive(init as i32), "{text}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

/// Where a limit on processes and threads of `cgroup` is set.
#[track_caller]
fn pids_limit(cgroup: &str) -> PathBuf {
    let mut files = cgroup_dirs(cgroup)
        .into_iter()
        .map(|dir| dir.join("pids.max"));
    files
        .find(|file| file.exists())
        .expect("the controller of pids")
}

/// Lets the server of `c`, which is in `cgroup`, have no more threads and children than it
/// has.
#[track_caller]
fn stop_forks(c: &container::Container, cgroup: &str) -> PathBuf {
    let limit = pids_limit(cgroup);
    // What ran for the last request is about to end.
    let current = limit.with_file_name("pids.current");
    let count = || fs::read_to_string(&current).unwrap();
    c.daemon.eventually("only the server is left", || {
        count().trim() == c.footprint().1.to_string()
    });
    fs::write(&limit, count()).unwrap();
    limit
}

cases! {
    fn no_process_or_thread_can_be_started(d) {
        let cgroup = d.make_cgroup("server");
        let in_cgroup = |id: &str| {
            d.container(id, &["sleep", "inf"]).group("pod").options(|o| o.shim_cgroup = cgroup.clone())
        };
        let fifos = d.fifos("c");
        let c = in_cgroup("c").stdio(fifos.stdio.clone()).run();
        let stopped = in_cgroup("stopped").run();
        let other_fifos = d.fifos("other");
        let other = in_cgroup("other").stdio(other_fifos.stdio.clone()).shim();
        let exec_fifos = d.fifos("e");
        let e = c.exec_with("e", &["true"], &exec_fifos.stdio).unwrap();
        let terminal = d.terminal("t");
        let t = c.exec_with("t", &["true"], &terminal.stdio).unwrap();

        let limit = stop_forks(&c, &cgroup);
        for outcome in [other.create().map(drop), e.start().map(drop), t.start().map(drop), c.pause().map(drop), c.update(Some("{}")).map(drop)] {
            let failure = outcome.unwrap_err();
            assert!(failure.message.contains("Resource temporarily unavailable"), "{failure:?}");
        }
        assert_eq!((c.status(), e.status()), (Status::RUNNING, Status::CREATED));
        c.pids().unwrap();
        c.stats().unwrap();
        let wait = c.wait_pending();
        c.kill(9).unwrap();
        assert_eq!(wait.wait().unwrap().exit_status, 128 + 9);
        stopped.kill_all(9).unwrap();
        assert_eq!(stopped.exit_status(), 128 + 9);
        let failure = c.delete().unwrap_err();
        assert!(failure.message.contains("Resource temporarily unavailable"), "{failure:?}");
        assert_eq!(c.status(), Status::STOPPED);

        fs::write(limit, "max").unwrap();
        c.delete().unwrap();
        other.create().unwrap();
        other.start().unwrap();
        other.end();
        other.delete().unwrap();
        stopped.finish();
        c.assert_gone();
    }

    fn delete_succeeds_with_an_empty_runtime_state(d) {
        let c = d.running("c");
        let state = truncate_runtime_state(d, &c);
        c.end();
        assert_eq!(c.delete().unwrap().exit_status, 128 + 9);
        assert!(!state.exists(), "{state:?} is left");
        c.shut_down();
    }

    fn delete_action_succeeds_with_an_empty_runtime_state(d) {
        let c = d.running("c");
        let state = truncate_runtime_state(d, &c);
        c.end();
        c.kill_shim();
        assert_eq!(d.delete("c").exit_status, 128 + 9);
        assert!(!state.exists(), "{state:?} is left");
        c.assert_gone();
    }

    fn delete_reports_the_unreadable_state_that_it_removes(d) {
        let c = d.running("c");
        c.kill_shim();
        let dir = truncate_runtime_state(d, &c);
        let output = d.delete_output("c");
        let text = output.stderr_text();
        assert_eq!(output.status, 0, "{text}");
        assert!(text.contains("removed unreadable OCI runtime state"), "{text}");
        assert!(!dir.exists());
        c.assert_gone();
    }

    fn delete_action_is_in_time_with_a_hanging_runtime_and_a_busy_rootfs(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        let init = c.state().unwrap().pid;
        let _user = User::of(&c.bundle.join("rootfs/tmp"));
        let held = runtime.hold("delete", runtime::At::Before);
        c.kill_shim();
        let called = Instant::now();
        let output = d.delete_output("c");
        // containerd kills it after 5 s.
        assert!(called.elapsed() < d.hang_timeout / 4, "{:?}", called.elapsed());
        let text = output.stderr_text();
        assert!(text.contains("delete container c: ") && text.contains("not done within"), "{text}");
        assert!(text.contains("rootfs: ") && text.contains("detached"), "{text}");
        assert_eq!(mounts_below(&c.bundle), Vec::<PathBuf>::new());
        assert_delete_reports_whether_it_is_alive(d, &output, init);
        held.release();
    }

    fn delete_action_fails_if_the_container_is_still_alive(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        let init = c.state().unwrap().pid;
        runtime.fail("delete", "not today");
        c.kill_shim();
        let output = d.delete_output("c");
        assert!(output.stderr_text().contains("not today"), "{}", output.stderr_text());
        assert_delete_reports_whether_it_is_alive(d, &output, init);
    }

    fn info_needs_no_writable_directory(d) {
        let read_only = "mount --bind /tmp /tmp; mount -o remount,bind,ro /tmp; mount -o remount,bind,ro /";
        assert_info(d, read_only);
        assert_info(d, &format!("{read_only}; export TMPDIR=/no/such/directory"));
        d.deny(&[Denied::call(libc::SYS_memfd_create, libc::EPERM)]);
        assert_info(d, read_only);
    }

    fn delete_succeeds_with_a_full_bundle_disk(d) {
        let disk = SmallDisk::for_bundles(d);
        let c = d.running("c");
        disk.fill();
        c.kill_all(9).unwrap();
        assert_eq!(c.exit_status(), 128 + 9);
        c.finish();
    }

    fn delete_action_succeeds_with_a_full_bundle_disk(d) {
        let disk = SmallDisk::for_bundles(d);
        let c = d.running("c");
        disk.fill();
        c.kill_shim();
        d.delete("c");
        c.assert_gone();
    }

    fn start_replies_version_3_for_a_version_3_server(d) {
        let server = pod_of_gos_server(d, Api::V3);
        assert_joined(d, Dialect::Legacy, &server, 3);
        assert_joined(d, Dialect::Bootstrap, &server, 3);
    }

    fn start_replies_version_2_for_a_version_2_server(d) {
        let server = pod_of_gos_server(d, Api::V2);
        assert_joined(d, Dialect::V1_6, &server, 2);
        assert_joined(d, Dialect::Legacy, &server, 2);
        assert_joined(d, Dialect::Bootstrap, &server, 2);
    }

    fn start_for_containerd_1_6_fails_with_a_version_3_server(d) {
        pod_of_gos_server(d, Api::V3);
        let output = join(d, Dialect::V1_6, "second");
        assert_eq!(output.status, 1, "{}", output.stdout_text());
        assert!(output.stderr_text().contains("version 3"), "{}", output.stderr_text());
    }

    fn start_joins_a_server_that_hangs(d) {
        let c = d.container("first", &["true"]).group("pod").shim();
        process::signal(c.shim_pid, Signal::SIGSTOP);
        let joined = d.answer(Dialect::Legacy, &join(d, Dialect::Legacy, "second"));
        assert_eq!(joined.address, c.started.address);
        process::signal(c.shim_pid, Signal::SIGCONT);
        c.shut_down();
    }

    fn failed_reply_of_start_leaves_no_server(d) {
        let bundle = d.container("c", &["true"]).bundle();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = d.command("c", &bundle);
        command.arg("start").stdin(Stdio::null()).stdout(full).stderr(Stdio::null());
        let pid = process::spawn(&mut command).id() as i32;
        assert_ne!(process::wait(pid, "start", d.hang_timeout), 0);
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

    fn info_works_without_newer_system_calls(d) {
        let memory_files = Denied::call(libc::SYS_memfd_create, libc::EACCES);
        d.deny(&[memory_files, Denied::newer_than_4_18(libc::ENOSYS)]);
        says(d, "-info");
    }

    fn kernel_without_close_range(d) {
        works_without(d, &[Denied::call(libc::SYS_close_range, libc::ENOSYS)]);
    }

    fn kernel_without_pidfds(d) {
        let calls = [libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal];
        works_without(d, &calls.map(|call| Denied::call(call, libc::ENOSYS)));
    }

    fn kernel_4_18_without_all_newer_calls(d) {
        works_without(d, &[Denied::newer_than_4_18(libc::ENOSYS)]);
    }

    fn sandbox_refuses_all_newer_calls(d) {
        // glibc, and with it the OCI runtime, starts no thread if `clone3` fails otherwise.
        let clone3 = Denied::call(libc::SYS_clone3, libc::ENOSYS);
        works_without(d, &[clone3, Denied::newer_than_4_18(libc::EPERM)]);
    }

    fn kernel_without_inotify_splice_and_statx(d) {
        let calls = [libc::SYS_inotify_init1, libc::SYS_splice, libc::SYS_statx];
        works_without(d, &calls.map(|call| Denied::call(call, libc::ENOSYS)));
    }

    fn sandbox_refuses_inotify_and_splice(d) {
        let calls = [libc::SYS_inotify_init1, libc::SYS_splice];
        works_without(d, &calls.map(|call| Denied::call(call, libc::EPERM)));
    }

    fn works_with_memfd_create_refused(d) {
        works_without(d, &[Denied::call(libc::SYS_memfd_create, libc::EACCES)]);
    }

    fn works_without_memfd_create(d) {
        works_without(d, &[Denied::call(libc::SYS_memfd_create, libc::ENOSYS)]);
    }
}
