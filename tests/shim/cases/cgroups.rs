//! What the shim does with cgroups besides reading metrics: those above a container's,
//! and those below.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_rs_v2::proto::types::Status;

use crate::harness::container::Container;
use crate::harness::machine::{CGROUPS, cgroup_dirs, is_unified};

/// The names in a file of names.
fn words(file: PathBuf) -> Vec<String> {
    let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("read {file:?}: {e}"));
    text.split_whitespace().map(String::from).collect()
}

/// Puts a new exec into a new cgroup below the container's; its pid.
fn exec_in_child_cgroup(c: &Container) -> u32 {
    let exec = c.exec("below", &["sleep", "inf"]).unwrap();
    let pid = exec.start().unwrap();
    for dir in cgroup_dirs(c.cgroup()) {
        let below = dir.join("below");
        fs::create_dir(&below).unwrap();
        // One of v1's takes nobody before it has been given processors.
        let moved = fs::write(below.join("cgroup.procs"), pid.to_string());
        assert!(
            moved.is_ok() || dir.join("cpuset.cpus").exists(),
            "{moved:?}"
        );
    }
    pid
}

cases! {
    fn every_controller_reaches_the_container(d) {
        if !is_unified() {
            return eprintln!("SKIPPED: no pure cgroup v2");
        }
        let c = d.running("c");
        let dir = cgroup_dirs(c.cgroup()).pop().unwrap();
        let mut all = words(Path::new(CGROUPS).join("cgroup.controllers"));
        all.sort();
        for above in dir.ancestors().skip(1).take_while(|above| above.starts_with(CGROUPS)) {
            let mut enabled = words(above.join("cgroup.subtree_control"));
            enabled.sort();
            assert_eq!(enabled, all, "in {above:?}");
        }
        c.end();
        c.finish();
    }

    fn pids_include_child_cgroups(d) {
        let c = d.running("c");
        let below = exec_in_child_cgroup(&c);
        let mut pids: Vec<u32> = c.pids().unwrap().iter().map(|process| process.pid).collect();
        pids.sort_unstable();
        let mut expected = [c.state().unwrap().pid, below];
        expected.sort_unstable();
        assert_eq!(pids, expected);
        c.end();
        c.finish();
    }

    fn child_cgroups_are_killed(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).host_pids().options(|o| o.binary_name = runtime.path()).run();
        exec_in_child_cgroup(&c);
        c.kill_all(9).unwrap();
        assert_eq!(c.process("below").exit_status(), 137);
        assert_eq!(c.exit_status(), 137);
        assert!(!runtime.calls().contains(&"kill".to_string()), "{:?}", runtime.calls());
        c.finish();
    }

    fn frozen_child_cgroups_are_killed(d) {
        let c = d.container("c", &["sleep", "inf"]).host_pids().run();
        exec_in_child_cgroup(&c);
        c.pause().unwrap();
        assert_eq!(c.status(), Status::PAUSED);
        c.kill_all(9).unwrap();
        assert_eq!(c.process("below").exit_status(), 137);
        assert_eq!(c.exit_status(), 137);
        c.finish();
    }
}
