//! Pods without a pause container: `sandboxer = "shim"`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cases::STAY;
use crate::messages::*;
use crate::pods::{Cri, Pod, at_once, security};
use crate::world;

/// Prints all that the containers of a pod share.
const SHARED: &str = "for kind in net ipc uts; do readlink /proc/self/ns/$kind; done";

/// Namespaces as Kubernetes' pods have them, but for `change`.
fn namespaces(change: impl FnOnce(&mut NamespaceOption)) -> LinuxSandboxSecurityContext {
    let mut namespaces = NamespaceOption {
        pid: NamespaceMode::Container as i32,
        ..NamespaceOption::default()
    };
    change(&mut namespaces);
    security(namespaces)
}

/// The node's namespace of a kind.
fn nodes(kind: &str) -> String {
    let link = fs::read_link(format!("/proc/self/ns/{kind}")).expect("read a namespace");
    format!("{}\n", link.display())
}

/// Restarts containerd, as a crash would, and waits until CRI answers.
fn restart_containerd(cri: &Cri) {
    world::stop_containerd();
    world::start_containerd();
    world::until("CRI to answer", || {
        cri.call::<ListPodSandboxResponse>("ListPodSandbox", &Empty {})
            .is_ok()
    });
}

/// The server of the only pod.
fn server() -> i32 {
    let servers = world::shims();
    assert_eq!(servers.len(), 1, "{servers:?}");
    servers[0]
}

/// Whether a pod is ready, by the list: while a server's death is seen to, it has no status.
fn is_ready(cri: &Cri, pod: &Pod) -> bool {
    let mut pods = cri.pods().into_iter();
    let found = pods.find(|found| found.id == pod.id);
    found.is_some_and(|found| found.state() == PodSandboxState::Ready)
}

/// All containers of containerd.
fn containers() -> String {
    let list = Command::new("ctr")
        .args(["--namespace", "k8s.io", "container", "ls", "--quiet"])
        .output();
    String::from_utf8(list.expect("run ctr").stdout).expect("UTF-8")
}

pub fn pods_without_a_pause_image(cri: &Cri) {
    let removed = Command::new("ctr")
        .args([
            "--namespace",
            "k8s.io",
            "image",
            "rm",
            "--sync",
            "localhost/pause:latest",
        ])
        .status();
    assert!(removed.expect("run ctr").success());
    let alone = cri.run_pod("alone");
    let of_alone = alone.run(STAY);
    let pod = cri.run_pod("three");
    let three = [pod.run(STAY), pod.run(STAY), pod.run(STAY)];
    assert_eq!(containers().lines().count(), 4, "no container but these");
    world::until("a server a pod", || world::shims().len() == 2);
    // No process but containers and servers.
    let others: Vec<_> = world::processes()
        .into_iter()
        .filter(|(_, line)| line.contains(" pod-init ") || line.contains("sleep 3600"))
        .collect();
    assert_eq!(others, []);

    let shared = three[0].exec(SHARED);
    assert_eq!(shared.lines().count(), 3);
    for container in &three {
        assert_eq!(container.exec(SHARED), shared);
    }
    assert_ne!(of_alone.exec(SHARED), shared);
    for kind in ["net", "ipc", "uts"] {
        assert!(!shared.contains(nodes(kind).trim()), "{kind}");
    }
    let own = "readlink /proc/self/ns/pid";
    assert_ne!(three[0].exec(own), three[1].exec(own));
    three[0].exec("echo shared >/dev/shm/x");
    assert_eq!(
        three[2].exec("cat /dev/shm/x; hostname; cat /etc/hostname"),
        "shared\nthree\nthree\n"
    );
    let file = |name: &str| fs::read_to_string(name).expect("a file of the node");
    assert_eq!(three[1].exec("cat /etc/hosts"), file("/etc/hosts"));
    assert_eq!(
        three[1].exec("cat /etc/resolv.conf"),
        file("/etc/resolv.conf")
    );

    // Twice, as the kubelet does.
    pod.stop();
    pod.stop();
    assert!(!is_ready(cri, &pod));
    pod.remove();
    world::until("its server to end", || world::shims().len() == 1);
    assert_eq!(of_alone.exec("echo fine"), "fine\n");
}

pub fn pods_of_each_mode(cri: &Cri) {
    let run = |name: &str, change: fn(&mut NamespaceOption)| {
        cri.run_pod_with(name, namespaces(change)).run(STAY)
    };
    let pid = "readlink /proc/self/ns/pid";
    let node = run("node-pids", |namespaces| {
        namespaces.pid = NamespaceMode::Node as i32
    });
    assert_eq!(node.exec(pid), nodes("pid"));
    let shared = run("pod-pids", |namespaces| {
        namespaces.pid = NamespaceMode::Pod as i32
    });
    assert_ne!(shared.exec(pid), nodes("pid"));
    let ipc = run("node-ipc", |namespaces| {
        namespaces.ipc = NamespaceMode::Node as i32
    });
    assert_eq!(ipc.exec("readlink /proc/self/ns/ipc"), nodes("ipc"));
    assert_ne!(ipc.exec("readlink /proc/self/ns/uts"), nodes("uts"));

    let sysctls = [("net.core.somaxconn", "77"), ("kernel.shmmni", "88")];
    let pod = cri.try_run_pod_with("sysctls", namespaces(|_| {}), &sysctls);
    let container = pod.expect("RunPodSandbox").run(STAY);
    let read =
        "cd /proc/sys; cat net/core/somaxconn kernel/shmmni net/ipv4/ip_unprivileged_port_start";
    assert_eq!(container.exec(read), "77\n88\n0\n");
}

pub fn new_containers_in_old_pods_after_a_restart(cri: &Cri) {
    let shared = cri.run_pod_with("pids", namespaces(|namespaces| namespaces.pid = 0));
    let first = shared.run(STAY);
    let pod = cri.run_pod("pod");
    let old = pod.run("echo kept >/dev/shm/x; echo ready; exec sleep 100000");
    old.until_log("stdout ready");
    for _ in 0..2 {
        restart_containerd(cri);
        assert!(is_ready(cri, &pod) && is_ready(cri, &shared));
        assert_eq!(old.status().state(), ContainerState::Running);
        let new = pod.run(STAY);
        assert_eq!(new.exec(SHARED), old.exec(SHARED));
        assert_eq!(new.exec("cat /dev/shm/x; hostname"), "kept\npod\n");
        assert_eq!(new.exec("cat /etc/hostname"), "pod\n");
        assert!(!new.exec("cat /etc/hosts").is_empty());
        let second = shared.run(STAY);
        let pid = "readlink /proc/self/ns/pid";
        assert_eq!(second.exec(pid), first.exec(pid));
        new.stop(0);
        assert_eq!(new.wait().0, 137);
    }
}

pub fn server_of_a_pod_is_killed(cri: &Cri) {
    for pid in [NamespaceMode::Container, NamespaceMode::Pod] {
        let pod = cri.run_pod_with(&format!("{pid:?}"), namespaces(|n| n.pid = pid as i32));
        let containers = [pod.run(STAY), pod.run(STAY)];
        let pids = containers.each_ref().map(|container| container.pid());
        kill(Pid::from_raw(server()), Signal::SIGKILL).expect("the server is there");
        world::until("the pod to be not ready", || !is_ready(cri, &pod));
        world::until("its containers to be killed", || {
            pids.iter()
                .all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        });
        // As the kubelet, again and again: containerd takes its time to see the exits.
        world::until("the pod to be removed", || {
            let stopped: Result<Empty, _> = cri.call("StopPodSandbox", &pod.by_id());
            let removed: Result<Empty, _> = cri.call("RemovePodSandbox", &pod.by_id());
            stopped.and(removed).is_ok()
        });
        assert!(world::shims().is_empty());
    }
}

pub fn init_of_a_pod_is_killed(cri: &Cri) {
    let pod = cri.run_pod_with("pids", namespaces(|namespaces| namespaces.pid = 0));
    let container = pod.run(STAY);
    let inits = world::processes();
    let init = inits.iter().find(|(_, line)| line.contains("pod-init"));
    let init = init.expect("the pod's init").0;
    kill(Pid::from_raw(init), Signal::SIGKILL).expect("the init is there");
    world::until("the pod to be not ready", || !is_ready(cri, &pod));
    assert_eq!(container.wait().0, 137);
}

pub fn pod_that_cannot_be_started(cri: &Cri) {
    for pid in [NamespaceMode::Container, NamespaceMode::Pod] {
        for (name, text) in [("net.no.such", "No such file"), ("vm.swappiness", "sysctl")] {
            let security = namespaces(|namespaces| namespaces.pid = pid as i32);
            let refused = cri.try_run_pod_with("refused", security, &[(name, "1")]);
            let status = refused.err().expect("it is refused");
            assert!(status.message.contains(text), "{status:?}");
            world::until("its server to end", || world::shims().is_empty());
        }
    }
}

pub fn fifty_pods_at_once(cri: &Cri) {
    let pods = at_once(0..50, |number| {
        let pid = match number % 2 {
            0 => NamespaceMode::Container,
            _ => NamespaceMode::Pod,
        };
        cri.run_pod_with(&format!("pod-{number}"), namespaces(|n| n.pid = pid as i32))
    });
    world::until("a server a pod", || world::shims().len() == 50);
    assert!(pods.iter().all(|pod| is_ready(cri, pod)));
}

/// How often each pod is run and removed to compare them; 30 with `HEAVY=1`.
fn rounds() -> usize {
    if world::is_heavy() { 30 } else { 7 }
}

/// The milliseconds that RunPodSandbox, StopPodSandbox and RemovePodSandbox take.
fn times(cri: &Cri, name: &str) -> [f64; 3] {
    let mut begin = Instant::now();
    let mut lap = || {
        let time = begin.elapsed().as_secs_f64() * 1e3;
        begin = Instant::now();
        time
    };
    let pod = cri.run_pod(name);
    let run = lap();
    pod.stop();
    let stop = lap();
    pod.remove();
    [run, stop, lap()]
}

/// The medians of what several rounds took, and of their sums.
fn medians(mut rounds: Vec<[f64; 3]>) -> [f64; 4] {
    let mut median = |value: fn(&[f64; 3]) -> f64| {
        rounds.sort_by(|a, b| value(a).total_cmp(&value(b)));
        value(&rounds[rounds.len() / 2])
    };
    let sum: fn(&[f64; 3]) -> f64 = |times| times.iter().sum();
    [
        median(|times| times[0]),
        median(|times| times[1]),
        median(|times| times[2]),
        median(sum),
    ]
}

/// The memory that a process has for itself, in kB; not its program, which others have, too.
fn private_memory(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let private = rollup
        .lines()
        .filter(|line| line.starts_with("Private_Dirty:"));
    let sizes = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    sizes.sum()
}

/// The kB of all processes of one pod that is at rest, and how many there are.
fn memory(cri: &Cri, name: &str, pid: NamespaceMode) -> (u64, usize) {
    let before: Vec<i32> = world::processes().iter().map(|(pid, _)| *pid).collect();
    let pod = cri.run_pod_with(name, namespaces(|namespaces| namespaces.pid = pid as i32));
    let added = || {
        let processes = world::processes().into_iter().map(|(pid, _)| pid);
        let added = processes
            .filter(|pid| !before.contains(pid))
            .collect::<Vec<_>>();
        (
            added.iter().map(|pid| private_memory(*pid)).sum(),
            added.len(),
        )
    };
    // It gives memory back a moment after the last request.
    let mut last = (0, 0);
    let mut same = 0;
    world::until("the pod to be at rest", || {
        let now = added();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same == 50
    });
    pod.stop();
    pod.remove();
    last
}

/// Writes the figures to `target/tmp/pods.txt`.
pub fn pods_without_pause_take_less_time(cri: &Cri) {
    let with_pause = Cri::new("2", "rs");
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..=rounds() {
        let times = [
            times(cri, &format!("without-{round}")),
            times(&with_pause, &format!("with-{round}")),
        ];
        // In the first round files are read.
        if round > 0 {
            without.push(times[0]);
            with.push(times[1]);
        }
    }
    let (without, with) = (medians(without), medians(with));
    let mut text = format!(
        "ms: run, stop, remove, all three\nwithout pause {without:.1?}\nwith pause {with:.1?}\nratio {:.2}\n",
        without[3] / with[3]
    );
    for (name, cri, pid) in [
        ("without", cri, NamespaceMode::Container),
        ("without-pids", cri, NamespaceMode::Pod),
        ("with", &with_pause, NamespaceMode::Container),
    ] {
        let (kb, processes) = memory(cri, &format!("memory-{name}"), pid);
        text += &format!("{name}: {kb} kB private, {processes} processes\n");
    }
    fs::write(concat!(env!("CARGO_TARGET_TMPDIR"), "/pods.txt"), &text).expect("write figures");
    assert!(without[3] < with[3], "{text}");
}
