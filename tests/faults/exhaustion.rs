//! What is used up: descriptors, processes, space, inodes, inotify instances, memory of the
//! shim's cgroup. What ends containers works all the same, or once there is some again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::harness::container::{Builder, Container};
use crate::harness::machine::cgroup_dirs;
use crate::harness::seccomp::Denied;
use crate::harness::{Daemon, process};
use crate::scene::{assert_events, remove};

/// A small file system, until it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mounted(point: &Path, size: &str) -> SmallDisk {
        fs::create_dir_all(point).expect("make a mount point");
        let kind = Some("tmpfs");
        mount(kind, point, kind, MsFlags::empty(), Some(size)).expect("mount a tmpfs");
        SmallDisk(point.into())
    }

    /// Uses up all space, or all inodes.
    fn fill(&self, content: &[u8]) {
        let dir = self.0.join("fill");
        let _ = fs::create_dir(&dir);
        let full = (0..).find(|number| fs::write(dir.join(number.to_string()), content).is_err());
        assert!(full.is_some());
    }

    fn empty(&self) {
        fs::remove_dir_all(self.0.join("fill")).expect("empty the disk");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// What uses up the disk: blocks or inodes.
const BLOCKS: &[u8] = &[0; 4096];
const INODES: &[u8] = &[];

/// The bundles' disk is full when the container is created, and is emptied later.
fn create_on_a_full_disk(d: &Daemon, content: &[u8]) {
    let disk = SmallDisk::mounted(&d.bundles_dir(), "size=512k,nr_inodes=100");
    let c = d.container("c", &["sleep", "inf"]).shim();
    disk.fill(content);
    // Whatever it answers.
    let _ = c.create().and_then(|_| c.start());
    disk.empty();
    finish(d, &c);
    fs::remove_dir_all(&c.bundle).expect("remove the bundle");
}

/// The bundles' disk becomes full while the container runs, and stays so.
fn full_disk_at_the_end(d: &Daemon, content: &[u8]) {
    let disk = SmallDisk::mounted(&d.bundles_dir(), "size=512k,nr_inodes=100");
    let c = d.running("c");
    disk.fill(content);
    finish(d, &c);
    fs::remove_dir_all(&c.bundle).expect("remove the bundle");
}

#[track_caller]
fn finish(d: &Daemon, c: &Container) {
    assert_eq!(remove(c), 0, "the server's end");
    assert_events(d, "c");
}

/// Limits the open files of process `pid`.
fn limit_descriptors(pid: i32, limit: u32) {
    let mut command = Command::new("prlimit");
    command.args([
        "--pid",
        &pid.to_string(),
        &format!("--nofile={limit}:{limit}"),
    ]);
    let output = process::run(&mut command, &[], std::time::Duration::from_secs(30));
    assert_eq!(output.stderr_text(), "");
}

/// Execs until one is refused, 100 at most.
fn exec_until_refused(c: &Container) {
    for number in 0..100 {
        let id = format!("e{number}");
        let fifos = c.daemon.fifos(&id);
        let exec = c.exec_with(&id, &["sleep", "inf"], &fifos.stdio);
        if exec.and_then(|e| e.start()).is_err() {
            return;
        }
    }
}

/// A container whose server is in a cgroup of its own.
fn with_own_cgroup<'d>(d: &'d Daemon, cgroup: &str) -> Builder<'d> {
    d.container("c", &["sleep", "inf"]).options(|o| {
        o.shim_cgroup = cgroup.into();
        o.systemd_cgroup = false;
    })
}

/// Writes `value` to the first of these files of the cgroup.
fn set_limit(cgroup: &str, names: [&str; 2], value: &str) {
    let dirs = cgroup_dirs(cgroup).into_iter();
    let mut files = dirs.flat_map(|dir| names.map(|name| dir.join(name)));
    let file = files.find(|file| file.exists()).expect("the controller");
    fs::write(&file, value).unwrap_or_else(|e| panic!("write {value} to {file:?}: {e}"));
}

const PIDS: [&str; 2] = ["pids.max", "pids.max"];
const MEMORY: [&str; 2] = ["memory.max", "memory.limit_in_bytes"];

faults! { "exhaustion";
    fn descriptors_of_the_server(d) {
        let c = d.container("c", &["sleep", "inf"]).host_pids().run();
        limit_descriptors(c.shim_pid, 100);
        exec_until_refused(&c);
        c.kill_all(9).expect("Kill");
        assert_eq!(c.exit_status(), 137);
        finish(d, &c);
    }

    fn processes_of_the_servers_cgroup(d) {
        let cgroup = d.make_cgroup("server");
        let c = with_own_cgroup(d, &cgroup).run();
        set_limit(&cgroup, PIDS, "1");
        for id in ["a", "b"] {
            let started = c.exec(id, &["true"]).and_then(|e| e.start());
            assert!(started.is_err(), "an exec was started");
        }
        c.kill(9).expect("Kill");
        assert_eq!(c.exit_status(), 137);
        let _ = c.delete();
        set_limit(&cgroup, PIDS, "max");
        finish(d, &c);
    }

    fn processes_of_the_container(d) {
        let c = d.running("c");
        set_limit(c.cgroup(), PIDS, "1");
        for id in ["a", "b"] {
            // The runtime's process in the container has to be one of its own.
            let _ = c.exec(id, &["true"]).and_then(|e| e.start());
        }
        finish(d, &c);
    }

    fn space_when_a_container_is_created(d) {
        create_on_a_full_disk(d, BLOCKS);
    }

    fn inodes_when_a_container_is_created(d) {
        create_on_a_full_disk(d, INODES);
    }

    fn space_when_a_container_ends(d) {
        full_disk_at_the_end(d, BLOCKS);
    }

    fn inodes_when_a_container_ends(d) {
        full_disk_at_the_end(d, INODES);
    }

    fn space_for_the_runtimes_state(d) {
        let disk = SmallDisk::mounted(&d.runtime_root(), "size=64k,nr_inodes=30");
        let c = d.container("c", &["sleep", "inf"]).shim();
        disk.fill(BLOCKS);
        assert!(c.create().is_err(), "Create was done");
        disk.empty();
        c.create().expect("Create");
        c.start().expect("Start");
        finish(d, &c);
    }

    fn space_when_the_server_was_killed(d) {
        let disk = SmallDisk::mounted(&d.bundles_dir(), "size=512k,nr_inodes=100");
        let c = d.running("c");
        disk.fill(BLOCKS);
        disk.fill(INODES);
        c.kill_shim();
        assert_eq!(remove(&c), 137);
        fs::remove_dir_all(&c.bundle).expect("remove the bundle");
    }

    fn inotify_instances(d) {
        d.deny(&[Denied::call(libc::SYS_inotify_init1, libc::EMFILE)]);
        let fifos = d.fifos("c");
        let c = d.shell("c", "echo up; exec sleep inf").stdio(fifos.stdio.clone()).run();
        fifos.stdout.wait_for("up");
        finish(d, &c);
        fifos.stdout.end();
    }

    fn memory_of_the_servers_cgroup(d) {
        let cgroup = d.make_cgroup("server");
        let c = with_own_cgroup(d, &cgroup).run();
        set_limit(&cgroup, MEMORY, "16M");
        let text = "x".repeat(1 << 20);
        // Refused, or the server is killed: containerd calls the action `delete` then.
        for number in 0..64 {
            let id = format!("e{number}");
            if c.exec(&id, &["true", &text]).is_err() {
                break;
            }
        }
        let status = remove(&c);
        assert!([0, 137].contains(&status), "the server's end: {status}");
        if status == 0 {
            assert_events(d, "c");
        }
    }
}
