//! Stats, limits, OOM; and what an idle server itself costs.

use std::fs;

use containerd_shim_rs_v2::proto::{Message, cgroups_v1, cgroups_v2};
use serde_json::json;

use crate::harness::container::Container;
use crate::harness::machine::cgroup_dirs;
use crate::harness::*;

/// What both versions of the metrics have: CPU time in ns, memory in bytes, processes.
#[track_caller]
pub fn stats(c: &Container) -> (u64, u64, u64) {
    let any = c.stats().expect("Stats").stats.unwrap();
    match any.type_url.as_str() {
        "io.containerd.cgroups.v1.Metrics" => {
            let m = cgroups_v1::Metrics::parse_from_bytes(&any.value).unwrap();
            (m.cpu.usage.total, m.memory.usage.usage, m.pids.current)
        }
        "io.containerd.cgroups.v2.Metrics" => {
            let m = cgroups_v2::Metrics::parse_from_bytes(&any.value).unwrap();
            (m.cpu.usage_usec * 1000, m.memory.usage, m.pids.current)
        }
        other => panic!("metrics of type {other}"),
    }
}

/// The content of the first of `files` that one of the container's cgroups has.
#[track_caller]
fn cgroup_file(c: &Container, files: &[&str]) -> String {
    let dirs = cgroup_dirs(c.cgroup());
    let mut paths = dirs
        .iter()
        .flat_map(|dir| files.iter().map(|file| dir.join(file)));
    let found = paths.find_map(|path| fs::read_to_string(path).ok());
    found
        .unwrap_or_else(|| panic!("none of {files:?} in {dirs:?}"))
        .trim()
        .into()
}

/// The container's limit of `memory`, of `pids`, or of `cpu` (its quota in µs).
#[track_caller]
pub fn limit_of(c: &Container, resource: &str) -> String {
    let files = match resource {
        "memory" => ["memory.limit_in_bytes", "memory.max"],
        "cpu" => ["cpu.cfs_quota_us", "cpu.max"],
        _ => ["pids.max", "pids.max"],
    };
    let limit = cgroup_file(c, &files);
    limit.split(' ').next().unwrap().into()
}

cases! {
    fn stats_are_told(d) {
        let fifos = d.fifos("c");
        let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; exec sleep inf";
        let c = d.shell("c", script).stdio(fifos.stdio.clone()).run();
        fifos.stdout.wait_for("done");
        let (cpu, memory, pids) = stats(&c);
        assert!(cpu > 0 && memory > 0, "cpu {cpu} ns, memory {memory} bytes");
        assert_eq!(pids, 1);
    }

    fn stats_of_a_created_container(d) {
        let c = d.container("c", &["sleep", "inf"]).created();
        stats(&c);
    }

    fn stats_of_a_stopped_container(d) {
        let c = d.container("c", &["true"]).run();
        c.exit_status();
        let (_, _, pids) = stats(&c);
        assert_eq!(pids, 0);
        c.finish();
    }

    fn update_reaches_the_cgroup(d) {
        let c = d.running("c");
        c.update(Some(r#"{"memory": {"limit": 50331648}, "pids": {"limit": 77}}"#)).unwrap();
        assert_eq!(limit_of(&c, "memory"), "50331648");
        assert_eq!(limit_of(&c, "pids"), "77");
    }

    fn oom_comes_before_the_exit(d) {
        let limit = json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}});
        let c = d.container("c", &["tail", "/tmp/zero"]).resources(limit).spec(|spec| {
            let device = json!({"destination": "/tmp/zero", "type": "bind", "source": "/dev/zero", "options": ["bind"]});
            spec["mounts"].as_array_mut().unwrap().push(device);
        });
        let c = c.run();
        assert_eq!(c.exit_status(), 137);
        let mut events = d.events.until("c", "exit");
        events.dedup();
        assert_eq!(events, ["create", "start", "oom", "exit"]);
        c.finish();
    }

    fn server_is_as_small_after_many_execs_as_before(d) {
        let c = d.running("c");
        let round = |n: u32| {
            let id = format!("e{n}");
            let (fifos, terminal) = (d.fifos(&format!("f{n}")), d.terminal(&format!("t{n}")));
            for (id, stdio) in [(id.clone(), &fifos.stdio), (id + "t", &terminal.stdio)] {
                let e = c.exec_with(&id, &["echo", "out"], stdio).unwrap();
                e.start().unwrap();
                e.exit_status();
                e.delete().unwrap();
            }
            fifos.stdout.end();
            terminal.stdout.end();
        };
        round(0);
        let (descriptors, threads) = c.footprint();
        (1..15).for_each(round);
        d.eventually("as many descriptors and threads as before", || {
            let (now, threads_now) = c.footprint();
            now.len() <= descriptors.len() && threads_now <= threads
        });
        c.end();
        c.finish();
    }

    fn server_has_no_child_but_the_container(d) {
        let c = d.running("c");
        c.exec("e", &["true"]).unwrap().start().unwrap();
        c.process("e").exit_status();
        let children = || {
            let tasks = fs::read_dir(format!("/proc/{}/task", c.shim_pid)).unwrap().flatten();
            let lists = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
            lists.collect::<String>().split_whitespace().map(String::from).collect::<Vec<_>>()
        };
        let init = c.state().unwrap().pid.to_string();
        d.eventually("no child but init", || children() == [init.clone()]);
    }
}
