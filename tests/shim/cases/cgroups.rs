//! What the shim does with cgroups besides reading metrics: those above a container's,
//! and those below.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_rs_v2::proto::runtimeoptions;
use containerd_shim_rs_v2::proto::types::Status;

use crate::harness::container::Container;
use crate::harness::machine::{CGROUPS, cgroup_dirs, cgroup_path, is_unified};
use crate::harness::*;

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

/// Whether systemd is this machine's init.
fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// A `cgroupsPath` of systemd's form that no other test has.
fn slice_path(d: &Daemon, id: &str) -> String {
    format!("system.slice:shim-test:{}-{id}", d.namespace)
}

/// What systemd says of the scope that `cgroup` names: `active`, or another word.
fn scope_state(d: &Daemon, cgroup: &str) -> String {
    let path = cgroup_path(cgroup);
    let mut command = std::process::Command::new("systemctl");
    command.args(["is-active", path.rsplit('/').next().unwrap()]);
    let output = process::run(&mut command, &[], d.hang_timeout);
    output.stdout_text().trim().to_owned()
}

/// The memory limit of the container in `cgroup`, in bytes.
fn memory_limit(cgroup: &str) -> String {
    let file = if is_unified() {
        "memory.max"
    } else {
        "memory.limit_in_bytes"
    };
    // crun has a cgroup for the container below the scope, and updates that.
    let mut files = cgroup_dirs(cgroup).into_iter().map(|dir| dir.join(file));
    let file = files.find(|file| file.exists()).expect("a memory limit");
    fs::read_to_string(file).unwrap().trim().to_owned()
}

cases! {
    fn slice_path_means_systemd_where_it_runs(d) {
        if !systemd_runs() {
            return eprintln!("SKIPPED: systemd does not run");
        }
        let cgroup = slice_path(d, "c");
        let c = d.container("c", &["sleep", "inf"]).in_cgroup(&cgroup);
        let c = c.options(|o| o.systemd_cgroup = false).run();
        let table = fs::read_to_string(format!("/proc/{}/cgroup", c.state().unwrap().pid)).unwrap();
        assert!(table.contains(&format!(":/{}", cgroup_path(&cgroup))), "{table}");
        assert_eq!(scope_state(d, &cgroup), "active");
        let options = fs::read_to_string(c.bundle.join("options.json")).unwrap();
        assert!(options.contains("\"systemd_cgroup\":true"), "{options}");
        c.pause().unwrap();
        assert_eq!(c.status(), Status::PAUSED);
        c.resume().unwrap();
        c.update(Some(r#"{"memory": {"limit": 100003840}}"#)).unwrap();
        assert_eq!(memory_limit(&cgroup), "100003840");
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let exec = e.start().unwrap();
        let pids: Vec<u32> = c.pids().unwrap().iter().map(|process| process.pid).collect();
        assert!(pids.contains(&exec), "{pids:?}");
        c.stats().unwrap();
        c.end();
        c.finish();
        d.eventually("the end of the scope", || scope_state(d, &cgroup) != "active");
        c.assert_gone();
    }

    fn slice_path_of_a_crashed_shim_is_removed_through_systemd(d) {
        if !systemd_runs() {
            return eprintln!("SKIPPED: systemd does not run");
        }
        for options in ["", "{"] {
            let id = format!("c{}", options.len());
            let cgroup = slice_path(d, &id);
            let c = d.container(&id, &["sleep", "inf"]).in_cgroup(&cgroup);
            let c = c.options(|o| o.systemd_cgroup = false).run();
            let init = c.state().unwrap().pid;
            assert_eq!(scope_state(d, &cgroup), "active");
            c.kill_shim();
            if !options.is_empty() {
                // Its cgroup is found all the same.
                fs::write(c.bundle.join("options.json"), options).unwrap();
            }
            d.delete(&id);
            assert!(!process::alive(init as i32), "init {init} is alive");
            d.eventually("the end of the scope", || scope_state(d, &cgroup) != "active");
        }
    }

    fn slice_path_is_a_plain_name_if_toml_says_so(d) {
        let runtime = d.fake_runtime();
        let body = format!(
            "BinaryName = {:?}\nRoot = {:?}\nSystemdCgroup = false\n",
            runtime.path(),
            d.runtime_root()
        );
        let options = runtimeoptions::Options { config_body: body.into_bytes(), ..Default::default() };
        let c = d.container("c", &["sleep", "inf"]).in_cgroup(&slice_path(d, "c"));
        let c = c.raw_options(Some(any("runtimeoptions.v1.Options", &options))).run();
        let arguments = runtime.arguments("create");
        assert!(!arguments.contains(&"--systemd-cgroup".into()), "{arguments:?}");
        c.end();
        c.finish();
    }

    fn slice_path_is_a_plain_name_without_systemd(d) {
        if systemd_runs() {
            return eprintln!("SKIPPED: systemd runs");
        }
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).in_cgroup(&slice_path(d, "c"));
        let c = c.options(|o| {
            o.binary_name = runtime.path();
            o.systemd_cgroup = false;
        });
        let c = c.run();
        let table = fs::read_to_string(format!("/proc/{}/cgroup", c.state().unwrap().pid)).unwrap();
        assert!(table.contains(&slice_path(d, "c")), "{table}");
        c.end();
        for verb in ["create", "start"] {
            let arguments = runtime.arguments(verb);
            assert!(!arguments.contains(&"--systemd-cgroup".into()), "{arguments:?}");
        }
        c.finish();
    }

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
