//! Stats, limits, OOM; and what an idle server itself costs.

use std::fs;

use containerd_shim_rs_v2::proto::types::Status;
use containerd_shim_rs_v2::proto::{Message, cgroups_v1, cgroups_v2};
use serde_json::json;

use crate::harness::container::{Builder, Container};
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

/// The OOM kills that the metrics count.
#[track_caller]
fn oom_kills(c: &Container) -> u64 {
    let any = c.stats().expect("Stats").stats.unwrap();
    if any.type_url == "io.containerd.cgroups.v1.Metrics" {
        let m = cgroups_v1::Metrics::parse_from_bytes(&any.value).unwrap();
        return m.memory_oom_control.oom_kill;
    }
    let m = cgroups_v2::Metrics::parse_from_bytes(&any.value).unwrap();
    m.memory_events.oom_kill
}

/// With little memory.
pub fn short_of_memory(builder: Builder<'_>) -> Builder<'_> {
    builder.resources(json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}}))
}

/// Takes all memory there is.
pub const HOG: &[&str] = &["tail", "/dev/zero"];

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
    fn stats_of_a_running_container(d) {
        let fifos = d.fifos("c");
        let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; exec sleep inf";
        let c = d.shell("c", script).stdio(fifos.stdio.clone()).run();
        fifos.stdout.wait_for("done");
        let (cpu, memory, pids) = stats(&c);
        assert!(cpu > 0 && memory > 0, "cpu {cpu} ns, memory {memory} bytes");
        assert_eq!(pids, 1);
    }

    fn repeated_stats_are_current(d) {
        let c = d.running("c");
        for processes in 1..5 {
            // Threads of the runtime count until it executes the process.
            d.eventually("as many processes as were started", || stats(&c).2 == processes);
            c.exec(&format!("e{processes}"), &["sleep", "inf"]).unwrap().start().unwrap();
        }
    }

    fn stats_of_a_created_container(d) {
        let c = d.container("c", &["sleep", "inf"]).created();
        stats(&c);
    }

    fn stats_of_a_paused_container(d) {
        let c = d.running("c");
        c.pause().unwrap();
        let (_, _, pids) = stats(&c);
        assert_eq!(pids, 1);
        c.end();
        c.finish();
    }

    fn stats_of_a_stopped_container(d) {
        let c = d.container("c", &["true"]).run();
        c.exit_status();
        // systemd takes the cgroup away, perhaps before anybody can look.
        if !systemd() {
            let (_, _, pids) = stats(&c);
            assert_eq!(pids, 0);
        }
        c.finish();
    }

    fn update_reaches_the_cgroup(d) {
        let c = d.running("c");
        c.update(Some(r#"{"memory": {"limit": 50331648}, "pids": {"limit": 77}}"#)).unwrap();
        assert_eq!(limit_of(&c, "memory"), "50331648");
        assert_eq!(limit_of(&c, "pids"), "77");
    }

    fn limits_are_updated_in_every_state(d) {
        let c = d.container("c", &["sleep", "inf"]).created();
        let update = |state: Status, memory: u32, quota: u32, pids: u32| {
            let resources = json!({
                "memory": {"limit": memory << 20},
                "cpu": {"quota": quota, "period": 100_000},
                "pids": {"limit": pids},
            });
            c.update(Some(&resources.to_string())).unwrap_or_else(|e| panic!("{state:?}: {e:?}"));
            let limits = ["memory", "cpu", "pids"].map(|resource| limit_of(&c, resource));
            assert_eq!(limits, [(memory << 20).to_string(), quota.to_string(), pids.to_string()]);
            assert_eq!(c.status(), state);
        };
        update(Status::CREATED, 60, 50_000, 61);
        c.start().unwrap();
        update(Status::RUNNING, 70, 60_000, 71);
        c.pause().unwrap();
        update(Status::PAUSED, 80, 70_000, 81);
        c.resume().unwrap();
        update(Status::RUNNING, 90, 80_000, 91);
        c.end();
        c.finish();
    }

    fn invalid_resources_are_a_clear_error(d) {
        let c = d.running("c");
        let before = limit_of(&c, "pids");
        // No JSON, and what the kernel refuses.
        for resources in [r#"{"memory": "#, r#"{"cpu": {"quota": 1, "period": 100000}}"#] {
            let Err(failure) = c.update(Some(resources)) else { panic!("{resources} was taken") };
            assert_eq!(failure.code, Code::UNKNOWN, "{failure:?}");
            let reason = failure.message.strip_prefix("OCI runtime update failed: ");
            let reason = reason.unwrap_or_else(|| panic!("{failure:?}"));
            assert!(!reason.contains("ended with status"), "no reason: {failure:?}");
        }
        assert_eq!((c.status(), limit_of(&c, "pids")), (Status::RUNNING, before));
        c.end();
        c.finish();
    }

    fn oom_event_precedes_the_exit_event(d) {
        let rounds = std::env::var("OOM_ROUNDS").map_or(3, |rounds| rounds.parse().unwrap());
        let mut missed = 0;
        for round in 0..rounds {
            let id = format!("c{round}");
            let c = short_of_memory(d.container(&id, HOG)).run();
            assert_eq!(c.exit_status(), 137);
            let events = d.events.until(&id, "exit");
            let (ooms, others): (Vec<_>, Vec<_>) = events.into_iter().partition(|e| e == "oom");
            assert_eq!(others, ["create", "start", "exit"], "in round {round}");
            assert!(!ooms.is_empty(), "no oom before the exit in round {round}");
            // By this the CRI tells an OOM kill from others. Of systemd's cgroups the shim
            // has it only if it was faster than systemd.
            let counted = c.stats().is_ok() && oom_kills(&c) > 0;
            assert!(counted || systemd(), "in round {round}");
            missed += u32::from(!counted);
            c.finish();
        }
        eprintln!("the metrics lack the kill in {missed} of {rounds} rounds");
    }

    fn oom_of_an_exec_is_published(d) {
        let c = short_of_memory(d.container("c", &["sleep", "inf"])).run();
        let hog = c.exec("hog", HOG).unwrap();
        hog.start().unwrap();
        assert_eq!(hog.exit_status(), 137);
        d.events.get("c", "oom");
        assert_eq!(c.status(), Status::RUNNING);
        c.end();
        c.finish();
        let ooms = d.events.of("c").iter().filter(|e| e.kind == "oom").count();
        assert_eq!(ooms, 1, "the end of the cgroup is none");
    }

    fn many_execs_do_not_grow_the_server(d) {
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
