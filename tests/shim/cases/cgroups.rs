//! What the shim does with cgroups besides reading metrics: its own, those above a
//! container's, and those below.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_rs_v2::proto::types::Status;

use crate::harness::container::Container;
use crate::harness::machine::cgroup_dirs;
use crate::harness::*;

/// Where v2 is mounted if it is for everything.
const UNIFIED: &str = "/sys/fs/cgroup";

fn is_unified() -> bool {
    Path::new(UNIFIED).join("cgroup.controllers").exists()
}

/// The names in a file of names.
fn words(file: PathBuf) -> Vec<String> {
    let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("read {file:?}: {e}"));
    text.split_whitespace().map(String::from).collect()
}

/// Puts a new exec into a new cgroup below the container's; its pid.
fn exec_in_a_cgroup_below(c: &Container) -> u32 {
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
    fn shim_is_in_the_cgroup_of_its_options(d) {
        let cgroup = format!("/shim-test-{}", d.namespace);
        let hierarchies: &[&str] = if is_unified() { &[""] } else { &["memory", "pids"] };
        let dirs: Vec<PathBuf> = hierarchies.iter().map(|h| Path::new(UNIFIED).join(h).join(&cgroup[1..])).collect();
        for dir in &dirs {
            fs::create_dir(dir).unwrap();
        }
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.shim_cgroup = cgroup.clone()).run();
        for dir in &dirs {
            assert_eq!(words(dir.join("cgroup.procs")), [c.shim_pid.to_string()], "{dir:?}");
        }
        c.end();
        c.finish();
        for dir in &dirs {
            fs::remove_dir(dir).unwrap();
        }
    }

    fn shim_cgroup_that_is_not_there(d) {
        let missing = d.container("c", &["true"]).options(|o| o.shim_cgroup = "/no/such/cgroup".into());
        let bundle = missing.bundle();
        let output = d.start(Dialect::Legacy, "c", &bundle, missing.its_options());
        assert_ne!(output.status, 0);
        assert!(output.stderr_text().contains("/no/such/cgroup"), "{output:?}");
        d.eventually("no shim", || d.shims_alive().is_empty());
    }

    fn every_controller_reaches_the_container(d) {
        if !is_unified() {
            return eprintln!("SKIPPED: no pure cgroup v2");
        }
        let c = d.running("c");
        let dir = cgroup_dirs(c.cgroup()).pop().unwrap();
        let mut all = words(Path::new(UNIFIED).join("cgroup.controllers"));
        all.sort();
        for above in dir.ancestors().skip(1).take_while(|above| above.starts_with(UNIFIED)) {
            let mut enabled = words(above.join("cgroup.subtree_control"));
            enabled.sort();
            assert_eq!(enabled, all, "in {above:?}");
        }
        c.end();
        c.finish();
    }

    fn pids_are_those_of_cgroups_below_too(d) {
        let c = d.running("c");
        let below = exec_in_a_cgroup_below(&c);
        let mut pids: Vec<u32> = c.pids().unwrap().iter().map(|process| process.pid).collect();
        pids.sort_unstable();
        let mut expected = [c.state().unwrap().pid, below];
        expected.sort_unstable();
        assert_eq!(pids, expected);
        c.end();
        c.finish();
    }

    fn cgroups_below_are_killed_too(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).host_pids().options(|o| o.binary_name = runtime.path()).run();
        exec_in_a_cgroup_below(&c);
        c.kill_all(9).unwrap();
        assert_eq!(c.process("below").exit_status(), 137);
        assert_eq!(c.exit_status(), 137);
        // With `cgroup.kill` it is one write.
        assert_eq!(runtime.calls().contains(&"kill".to_string()), !is_unified());
        c.finish();
    }

    fn paused_cgroups_below_are_killed_too(d) {
        let c = d.container("c", &["sleep", "inf"]).host_pids().run();
        exec_in_a_cgroup_below(&c);
        c.pause().unwrap();
        assert_eq!(c.status(), Status::PAUSED);
        c.kill_all(9).unwrap();
        assert_eq!(c.process("below").exit_status(), 137);
        assert_eq!(c.exit_status(), 137);
        c.finish();
    }
}
