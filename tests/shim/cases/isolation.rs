//! A container's cgroup and what is not in it: who shares a cgroup with a container is
//! left alone, a frozen one can be killed, and nothing is left of a cgroup.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use containerd_shim_rs_v2::proto::types::Status;
use nix::sys::signal::Signal;

use crate::harness::container::{Builder, Container};
use crate::harness::machine::{CGROUPS, DeepCgroups, cgroup_dirs, is_unified, listed_cgroup_dir};
use crate::harness::runtime::At;
use crate::harness::*;

/// A process that has nothing to do with any container, in `cgroup`; killed in the end.
struct Bystander(Child, Vec<PathBuf>);

impl Bystander {
    fn in_cgroup(cgroup: &str) -> Bystander {
        let mut command = Command::new("sleep");
        command
            .arg("inf")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let bystander = Bystander(process::spawn(&mut command), cgroup_dirs(cgroup));
        for dir in &bystander.1 {
            move_into(dir, bystander.pid());
        }
        bystander
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn lives(&self) -> bool {
        // It is reaped when it ends.
        process::alive(self.pid() as i32)
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        // A runtime may have frozen it.
        for dir in &self.1 {
            let _ = fs::write(dir.join("freezer.state"), "THAWED");
        }
        process::signal(self.pid() as i32, Signal::SIGKILL);
        if !std::thread::panicking() {
            // Its cgroup can be removed.
            process::wait(self.pid() as i32, "the bystander", Duration::from_secs(60));
        }
    }
}

#[track_caller]
fn move_into(dir: &Path, pid: u32) {
    let moved = fs::write(dir.join("cgroup.procs"), pid.to_string());
    moved.unwrap_or_else(|e| panic!("move {pid} into {dir:?}: {e}"));
}

/// Where to put a process that leaves the cgroup `dir` of a container's.
fn outside(dir: &Path) -> &Path {
    match is_unified() {
        true => Path::new(CGROUPS),
        false => dir.parent().unwrap(),
    }
}

fn pids(c: &Container) -> Vec<u32> {
    let pids = c.pids().expect("Pids");
    pids.iter().map(|process| process.pid).collect()
}

/// Where the processes of `cgroup` are frozen: the directory, the file to write to and to
/// read, and its texts for frozen and thawed.
fn freezer(cgroup: &str) -> (PathBuf, &'static str, [&'static str; 2]) {
    let dirs = cgroup_dirs(cgroup).into_iter();
    let file = |dir: PathBuf| match is_unified() {
        true => Some((dir, "cgroup.freeze", ["1", "0"])),
        false => dir.join("freezer.state").exists().then_some((
            dir,
            "freezer.state",
            ["FROZEN", "THAWED"],
        )),
    };
    dirs.filter_map(file).next().expect("a freezer")
}

/// Attempts to freeze before a thaw.
const FREEZE_ATTEMPTS: u32 = 20;

/// Freezes `dir` as an administrator does.
fn freeze(d: &Daemon, (dir, file, [frozen, thawed]): &(PathBuf, &str, [&str; 2])) {
    let mut attempts = 0;
    d.eventually("all are frozen", || {
        attempts += 1;
        // Version 1 may miss a process that is just starting, and then stays FREEZING: only a
        // thaw makes the kernel look at all processes again. Runtimes do the same.
        if attempts % FREEZE_ATTEMPTS == 0 {
            fs::write(dir.join(file), thawed).expect("thaw");
        }
        fs::write(dir.join(file), frozen).expect("freeze");
        let state = fs::read_to_string(dir.join(file)).unwrap();
        let events = fs::read_to_string(dir.join("cgroup.events")).unwrap_or("frozen 1".into());
        state.trim() == *frozen && events.contains("frozen 1")
    });
}

/// A container whose config.json asks for `cgroup`, whoever has it; without systemd.
fn in_cgroup<'d>(builder: Builder<'d>, cgroup: &str) -> Builder<'d> {
    let cgroup = cgroup.to_owned();
    let builder = builder.spec(|spec| spec["linux"]["cgroupsPath"] = cgroup.into());
    builder.options(|o| o.systemd_cgroup = false)
}

/// Ends `c`, which has no cgroup of its own, by Kill `all`, and asks what there is to be asked.
#[track_caller]
fn assert_not_killed(c: &Container, bystander: &Bystander) {
    let init = c.state().unwrap().pid;
    let e = c.exec("e", &["sleep", "inf"]).unwrap();
    let exec = e.start().unwrap();
    let mut expected = vec![init, exec];
    expected.sort_unstable();
    assert_eq!(pids(c), expected);
    c.stats().refused(Code::NOT_FOUND, "cgroup does not exist");
    c.kill_all(9).unwrap();
    assert_eq!((c.exit_status(), e.exit_status()), (137, 137));
    assert!(bystander.lives(), "the bystander was killed");
    assert_eq!(pids(c), [init]);
    assert_eq!(c.status(), Status::STOPPED);
}

/// crun told to use no cgroups at all; `None` where there is none.
fn without_cgroups(d: &Daemon) -> Option<String> {
    let there = Command::new("crun")
        .arg("--version")
        .stdout(Stdio::null())
        .spawn();
    if there.is_err() {
        eprintln!("SKIPPED: no crun");
        return None;
    }
    let path = d.path("crun-without-cgroups");
    write_program(&path, "exec crun --cgroup-manager=disabled \"$@\"");
    Some(path.to_str().unwrap().into())
}

/// Set where a case runs as an unprivileged user, in a user namespace of its own.
const ROOTLESS: &str = "TEST_IS_ROOTLESS";

/// Runs `case` once more as an unprivileged user who owns `cgroup`, in that, as a session is
/// that systemd made: in a user namespace, and with a /run of its own.
#[track_caller]
fn run_rootless(d: &Daemon, cgroup: &str, case: &str) {
    const ENTER: &str = "for dir in $1; do echo $$ >$dir/cgroup.procs; done; shift
        exec setpriv --reuid=1000 --regid=1000 --clear-groups unshare --user --map-root-user --mount \
            sh -c 'mount -t tmpfs tmpfs /run && exec \"$@\"' sh \"$@\"";
    let dirs = cgroup_dirs(cgroup);
    for dir in &dirs {
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.kill"] {
            std::os::unix::fs::chown(dir.join(file), Some(1000), Some(1000))
                .expect("give a cgroup away");
        }
    }
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let mut command = Command::new("sh");
    command.args(["-c", ENTER, "sh", &dirs.join(" ")]);
    command
        .arg(std::env::current_exe().unwrap())
        .args([case, "--exact", "--nocapture"]);
    command.env(ROOTLESS, "1").env("TMPDIR", "/tmp");
    let output = process::run(&mut command, &[], 4 * d.hang_timeout);
    let text = output.stdout_text() + &output.stderr_text();
    assert!(output.status == 0 && text.contains("1 passed"), "{text}");
}

cases! {
    fn rootless_container_without_a_cgroup_does_not_kill_its_session(d) {
        if std::env::var_os(ROOTLESS).is_some() {
            let c = d.container("c", &["sleep", "inf"]);
            let c = c.spec(|spec| drop(spec["linux"].as_object_mut().unwrap().remove("cgroupsPath")));
            let c = c.options(|o| o.systemd_cgroup = false).run();
            let init = c.state().unwrap().pid;
            assert_eq!(pids(&c), [init]);
            c.kill_all(9).unwrap();
            assert_eq!(c.exit_status(), 137);
            c.finish();
        } else if is_unified() {
            // Makes the rootfs.
            d.running("c").end();
            let session = d.make_cgroup("session");
            let bystander = Bystander::in_cgroup(&session);
            run_rootless(d, &session, "cases::isolation::rootless_container_without_a_cgroup_does_not_kill_its_session");
            assert!(bystander.lives(), "the session was killed");
        } else {
            eprintln!("SKIPPED: no pure cgroup v2");
        }
    }

    fn container_in_the_shims_cgroup_is_refused(d) {
        let cgroup = d.make_cgroup("shims");
        let bystander = Bystander::in_cgroup(&cgroup);
        let c = in_cgroup(d.container("c", &["sleep", "inf"]), &cgroup);
        let c = c.options(|o| {
            o.shim_cgroup = cgroup.clone();
            o.systemd_cgroup = false;
        });
        let c = c.shim();
        // The runtime would kill all in there with the container.
        c.create().refused(Code::FAILED_PRECONDITION, "the shim or its parent is in it");
        c.shut_down();
        assert!(bystander.lives(), "the bystander was killed");
        assert_eq!(d.events.of("c").len(), 0);
    }

    fn processes_that_were_in_the_cgroup_before_are_not_killed(d) {
        let cgroup = d.make_cgroup("others");
        let bystander = Bystander::in_cgroup(&cgroup);
        let c = in_cgroup(d.container("c", &["sleep", "inf"]), &cgroup).host_pids().run();
        assert_not_killed(&c, &bystander);
    }

    fn container_without_cgroups_is_killed_alone(d) {
        let Some(crun) = without_cgroups(d) else { return };
        let cgroup = d.make_cgroup("shims");
        let bystander = Bystander::in_cgroup(&cgroup);
        for host_pids in [false, true] {
            let id = format!("c{host_pids}");
            let c = d.container(&id, &["sleep", "inf"]);
            let c = if host_pids { c.host_pids() } else { c };
            let c = c.options(|o| {
                o.binary_name = crun.clone();
                o.shim_cgroup = cgroup.clone();
                o.systemd_cgroup = false;
            });
            let c = c.run();
            assert_not_killed(&c, &bystander);
            c.finish();
        }
        assert!(bystander.lives());
    }

    fn descendants_are_killed_without_cgroups(d) {
        let Some(crun) = without_cgroups(d) else { return };
        let cgroup = d.make_cgroup("shims");
        let fifos = d.fifos("c");
        let c = d.shell("c", "sh -c 'sleep inf & echo up; wait' & wait").host_pids().stdio(fifos.stdio);
        let c = c.options(|o| {
            o.binary_name = crun;
            o.shim_cgroup = cgroup.clone();
            o.systemd_cgroup = false;
        });
        let c = c.run();
        fifos.stdout.wait_for("up");
        c.kill_all(9).unwrap();
        assert_eq!(c.exit_status(), 137);
        // The end of its output: nobody holds the pipe any more.
        fifos.stdout.end();
        c.finish();
    }

    fn kill_all_signals_no_process_of_others(d) {
        let Some(crun) = without_cgroups(d) else { return };
        let cgroup = d.make_cgroup("shims");
        let bystander = Bystander::in_cgroup(&cgroup);
        let fifos = d.fifos("c");
        let c = d.shell("c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done").stdio(fifos.stdio);
        let c = c.options(|o| {
            o.binary_name = crun;
            o.shim_cgroup = cgroup.clone();
            o.systemd_cgroup = false;
        });
        let c = c.run();
        fifos.stdout.wait_for("up");
        c.kill_all(15).unwrap();
        assert_eq!(c.exit_status(), 5);
        assert!(bystander.lives(), "the bystander was killed");
        c.finish();
    }

    fn shim_that_is_moved_into_the_containers_cgroup_survives(d) {
        let c = d.container("c", &["sleep", "inf"]).host_pids().run();
        let dirs = match is_unified() {
            true => cgroup_dirs(c.cgroup())[..1].to_vec(),
            false => cgroup_dirs(c.cgroup()),
        };
        for dir in &dirs {
            move_into(dir, c.shim_pid as u32);
        }
        assert_eq!(pids(&c), [c.state().unwrap().pid]);
        c.kill_all(9).unwrap();
        assert_eq!(c.exit_status(), 137);
        for dir in &dirs {
            move_into(outside(dir), c.shim_pid as u32);
        }
        c.finish();
    }

    fn container_frozen_by_others_can_be_killed(d) {
        let c = d.running("c");
        freeze(d, &freezer(c.cgroup()));
        c.kill(9).unwrap();
        assert_eq!(c.exit_status(), 137);
        c.finish();
    }

    fn container_frozen_by_others_can_be_killed_with_all(d) {
        let c = d.container("c", &["sleep", "inf"]).host_pids().run();
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        e.start().unwrap();
        freeze(d, &freezer(c.cgroup()));
        c.kill_all(9).unwrap();
        assert_eq!((c.exit_status(), e.exit_status()), (137, 137));
        c.finish();
    }

    fn frozen_child_cgroup_can_be_killed(d) {
        let c = d.container("c", &["sleep", "inf"]).host_pids().run();
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let pid = e.start().unwrap();
        let (dir, file, texts) = freezer(c.cgroup());
        let below = dir.join("below");
        fs::create_dir(&below).unwrap();
        move_into(&below, pid);
        freeze(d, &(below, file, texts));
        c.kill_all(9).unwrap();
        assert_eq!((c.exit_status(), e.exit_status()), (137, 137));
        c.finish();
    }

    fn container_can_be_killed_after_a_partly_failed_pause(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        runtime.fail("pause", "the moon is full");
        c.pause().refused(Code::UNKNOWN, "the moon is full");
        freeze(d, &freezer(c.cgroup()));
        assert_eq!(c.status(), Status::RUNNING);
        c.kill(9).unwrap();
        assert_eq!(c.exit_status(), 137);
        c.finish();
    }

    fn container_is_killed_while_the_runtime_pauses_it(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        let mut held = runtime.hold("pause", At::After);
        let _pause = c.pause_pending();
        held.reached();
        c.kill(9).unwrap();
        assert_eq!(c.exit_status(), 137);
        held.release();
    }

    fn paused_container_is_killed_while_the_runtime_hangs(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).host_pids().options(|o| o.binary_name = runtime.path()).run();
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        e.start().unwrap();
        c.pause().unwrap();
        let held = [runtime.hold("resume", At::Before), runtime.hold("kill", At::Before)];
        c.kill_all(9).unwrap();
        assert_eq!((c.exit_status(), e.exit_status()), (137, 137));
        drop(held);
        c.finish();
    }

    fn processes_that_fork_continuously_are_killed(d) {
        // Each generation has other pids than the one before.
        const SCRIPT: &str = "export S='sh -c \"$S\" &'; for i in 1 2 3 4; do sh -c \"$S\"; done; echo up; exec sleep inf";
        let fifos = d.fifos("c");
        let c = d.shell("c", SCRIPT).host_pids().stdio(fifos.stdio).run();
        fifos.stdout.wait_for("up");
        c.kill_all(9).unwrap();
        assert_eq!(c.exit_status(), 137);
        // The end of the output: nobody holds the pipe any more.
        fifos.stdout.end();
        c.finish();
    }

    fn pids_of_many_and_deep_cgroups_are_answered(d) {
        let c = d.running("c");
        let dir = listed_cgroup_dir(c.cgroup()).expect("a cgroup");
        for number in 0..1500 {
            fs::create_dir(dir.join(format!("many-{number}"))).unwrap();
        }
        let deep = DeepCgroups::below(&dir);
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let exec = e.start().unwrap();
        let answer = c.pids();
        drop(deep);
        for number in 0..1500 {
            fs::remove_dir(dir.join(format!("many-{number}"))).unwrap();
        }
        let found: Vec<u32> = answer.expect("Pids").iter().map(|process| process.pid).collect();
        for pid in [c.state().unwrap().pid, exec] {
            assert!(found.contains(&pid), "{found:?}");
        }
        c.end();
        c.finish();
    }

    fn pids_of_an_init_that_left_its_cgroup(d) {
        if is_unified() {
            return eprintln!("SKIPPED: no cgroup v1");
        }
        let c = d.running("c");
        let init = c.state().unwrap().pid;
        for dir in cgroup_dirs(c.cgroup()) {
            move_into(outside(&dir), init);
            fs::remove_dir(dir).unwrap();
        }
        assert_eq!(pids(&c), [init]);
        c.end();
        c.delete().unwrap();
    }

    fn exec_outside_of_the_cgroup_does_not_delay_inits_exit(d) {
        let c = d.container("c", &["sleep", "inf"]).host_pids().run();
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let pid = e.start().unwrap();
        for dir in cgroup_dirs(c.cgroup()) {
            move_into(outside(&dir), pid);
        }
        c.kill(9).unwrap();
        assert_eq!((c.exit_status(), e.exit_status()), (137, 137));
        c.finish();
    }

    fn cgroup_of_a_cancelled_create_is_removed(d) {
        let runtime = d.fake_runtime();
        for host_pids in [false, true] {
            let id = format!("c{host_pids}");
            let c = d.container(&id, &["sleep", "inf"]).options(|o| o.binary_name = runtime.path());
            let c = if host_pids { c.host_pids() } else { c }.shim();
            let mut held = runtime.hold("create", At::After);
            let _create = c.create_pending();
            held.reached();
            assert!(!cgroup_dirs(c.cgroup()).is_empty());
            c.kill_shim();
            // As if the runtime had been killed before it kept any.
            fs::remove_dir_all(d.runtime_root().join(&d.namespace).join(&id)).unwrap();
            held.release();
            d.delete(&id);
            c.assert_gone();
        }
    }

    fn failed_create_does_not_touch_another_container_of_its_id(d) {
        let c = d.running("c");
        // As from another daemon, whose runtime keeps its state in the same place.
        let mut other = Daemon::new(d.api, d.hang_timeout);
        other.namespace = d.namespace.clone();
        let root = d.runtime_root().to_str().unwrap().to_owned();
        let cgroup = c.cgroup().to_owned();
        let same = other.container("c", &["sleep", "inf"]).spec(|spec| spec["linux"]["cgroupsPath"] = cgroup.into());
        let same = same.options(|o| o.root = root).shim();
        assert!(same.create().is_err());
        assert_eq!(c.status(), Status::RUNNING);
        assert!(process::alive(c.state().unwrap().pid as i32));
        same.shut_down();
        c.end();
        c.finish();
    }

    fn empty_cgroup_without_a_container_is_removed(d) {
        let c = d.container("c", &["true"]).shim();
        let cgroup = machine::cgroup_path(c.cgroup());
        if systemd() {
            return eprintln!("SKIPPED: systemd makes the cgroups");
        }
        machine::new_cgroup_dirs(&format!("/{cgroup}"));
        for dir in cgroup_dirs(c.cgroup()) {
            fs::create_dir_all(dir.join("a/b")).unwrap();
        }
        c.kill_shim();
        d.delete("c");
        c.assert_gone();
    }

    fn delete_kills_a_paused_container_while_the_runtime_hangs(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).host_pids().options(|o| o.binary_name = runtime.path()).run();
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let pids = [c.state().unwrap().pid, e.start().unwrap()];
        c.pause().unwrap();
        c.kill_shim();
        let held = runtime.hold("delete", At::Before);
        d.delete("c");
        for pid in pids {
            d.eventually("every process gone", || !process::alive(pid as i32));
        }
        assert_eq!(cgroup_dirs(c.cgroup()), Vec::<PathBuf>::new());
        drop(held);
        // The runtime's state, too, unless it is slow.
        d.eventually("nothing left", || {
            d.delete("c");
            d.leftovers("c").is_empty()
        });
    }

    fn container_whose_cgroup_is_frozen_after_the_exit_can_be_deleted(d) {
        let c = d.running("c");
        let freezer = freezer(c.cgroup());
        c.end();
        // As a pause does that comes too late.
        freeze(d, &freezer);
        c.finish();
    }

    fn delete_does_not_kill_others_in_a_cgroup_of_another_name(d) {
        let cgroup = d.make_cgroup("batch");
        let neighbour = in_cgroup(d.container("neighbour", &["sleep", "inf"]), &cgroup).run();
        // Its name is a part of the cgroup's.
        let c = in_cgroup(d.container("a", &["sleep", "inf"]), &cgroup).run();
        c.kill_shim();
        // It may fail, as the runtime cannot remove the cgroup.
        d.delete_output("a");
        assert_eq!(neighbour.status(), Status::RUNNING);
        neighbour.end();
    }
}
