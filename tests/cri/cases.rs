//! What Kubernetes does and sees. Each case starts in a fresh world; its pods are removed after
//! it, and nothing of them may be left.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::grpc;
use crate::messages::*;
use crate::pods::{Container, Cri, at_once, log_lines, security};
use crate::spdy;
use crate::websocket::Session;
use crate::world;

/// A container that stays until it is killed.
pub const STAY: &str = "exec sleep 100000";

/// A container that says `ready`, and exits with 7 at a SIGTERM.
const EXIT_7_AT_SIGTERM: &str =
    "trap 'exit 7' TERM; echo ready; while :; do sleep 100000 & wait; done";

pub fn several_containers_are_in_one_server(cri: &Cri) {
    let pod = cri.run_pod("web");
    let server = pod.run("echo hello | nc -l -p 7000; exec sleep 100000");
    let others = [pod.run(STAY), pod.run(STAY)];
    assert_one_server(cri);
    if cri.handler == "rs" {
        // The option `Root`, which the configuration has as TOML, has reached the shim.
        let states = world::names("/run/containerd/runc-of-rs/k8s.io");
        assert_eq!(states.len(), 4, "{states:?}");
    }

    // One network for the pod's containers, another for other pods.
    let network = "readlink /proc/self/ns/net";
    assert_eq!(server.exec(network), others[0].exec(network));
    let other = cri.run_pod("client");
    let client = other.run(STAY);
    assert_ne!(server.exec(network), client.exec(network));
    world::until("a server a pod", || world::shims().len() == 2);
    let ip = pod.status().network.expect("a network").ip;
    let ask = format!("until nc {ip} 7000; do sleep 0.1; done");
    assert_eq!(client.exec(&ask), "hello\n");

    // The end of one container is not the end of the others.
    server.stop(0);
    server.remove();
    assert_eq!(others[1].exec("hostname"), "web\n");
}

/// Fails unless there is one server, of the binary that the handler names.
fn assert_one_server(cri: &Cri) {
    let mut shims = Vec::new();
    world::until("one server for all containers of a pod", || {
        shims = world::shims();
        shims.len() == 1
    });
    let exe = fs::read_link(format!("/proc/{}/exe", shims[0])).expect("the server's binary");
    let ours = Path::new("/run/containerd/shims/containerd-shim-rs-v2");
    assert_eq!(exe == ours, cri.is_ours(), "{}", exe.display());
}

pub fn init_container_then_app_that_restarts(cri: &Cri) {
    let volume = "/run/containerd/volume";
    fs::create_dir(volume).expect("make the volume");
    let mounts = vec![Mount {
        container_path: "/volume".to_owned(),
        host_path: volume.to_owned(),
    }];
    let pod = cri.run_pod("app");
    let init = pod.run_with("echo from init >/volume/file", |config| {
        config.mounts.clone_from(&mounts);
    });
    assert_eq!(init.wait(), (0, "Completed".to_owned()));

    for attempt in 0..3 {
        let app = pod.run_with("cat /volume/file; exit 3", |config| {
            config.mounts.clone_from(&mounts);
            config.metadata = Some(ContainerMetadata {
                name: "app".to_owned(),
                attempt,
            });
            config.log_path = format!("app.{attempt}");
        });
        assert_eq!(app.wait(), (3, "Error".to_owned()));
        app.until_log("stdout from init");
        // The kubelet keeps the last instance for a while.
        if attempt > 0 {
            app.remove();
        }
    }
    assert_eq!(pod.status().state(), PodSandboxState::Ready);
}

pub fn exec_sync_output_and_exit_code(cri: &Cri) {
    let pod = cri.run_pod("web");
    let container = pod.run(STAY);
    let done = container.try_exec("echo out; echo err >&2; exit 3", 0);
    let done = done.expect("a command that fails is no error");
    assert_eq!(
        (done.stdout, done.stderr, done.exit_code),
        (b"out\n".to_vec(), b"err\n".to_vec(), 3)
    );
    let done = container.try_exec("kill -KILL $$", 10).expect("an answer");
    assert_eq!(done.exit_code, 137);
    let much = container.exec("yes 0123456789abcde | head -c 1000000");
    assert_eq!(much.len(), 1_000_000);
    let many = at_once(0..8, |number| container.exec(&format!("echo {number}")));
    let wanted: Vec<_> = (0..8).map(|number| format!("{number}\n")).collect();
    assert_eq!(many, wanted);
}

pub fn exec_sync_is_killed_at_its_timeout(cri: &Cri) {
    let pod = cri.run_pod("web");
    let container = pod.run(STAY);
    let error = container.try_exec("exec sleep 4321", 1);
    let error = error.expect_err("the command takes longer than its timeout");
    assert_eq!(error.code, grpc::DEADLINE_EXCEEDED, "{error:?}");
    world::until("the command to be gone", || !is_running("sleep 4321"));
    assert_eq!(container.exec("echo fine"), "fine\n");
}

pub fn exec_sync_with_a_child_that_stays(cri: &Cri) {
    let pod = cri.run_pod("web");
    let container = pod.run(STAY);
    let start = "sleep 4321 >/dev/null 2>&1 & echo started";
    assert_eq!(container.exec(start), "started\n");
    assert!(is_running("sleep 4321"));
    // A child that holds the output: our server ends the output some seconds after the
    // command's exit. With containerd's shim the call waits for the child.
    if cri.is_ours() {
        assert_eq!(container.exec("sleep 4322 & echo started"), "started\n");
        assert!(is_running("sleep 4322"));
    }
}

fn is_running(command: &str) -> bool {
    let processes = world::processes();
    processes.iter().any(|(_, line)| line.trim() == command)
}

/// Opens an exec of `script`.
fn open_exec(cri: &Cri, container: &Container, tty: bool, script: &str) -> Session {
    Session::open(&exec_url(cri, container, tty, script))
}

fn exec_url(cri: &Cri, container: &Container, tty: bool, script: &str) -> String {
    let request = ExecRequest {
        container_id: container.id.clone(),
        cmd: ["sh", "-c", script].map(str::to_owned).into(),
        tty,
        stdin: true,
        stdout: true,
        // A terminal has one output.
        stderr: !tty,
    };
    let answer: StreamingUrl = cri.ok("Exec", &request);
    answer.url
}

fn open_attach(cri: &Cri, container: &Container, tty: bool) -> Session {
    let request = AttachRequest {
        container_id: container.id.clone(),
        stdin: true,
        tty,
        stdout: true,
        stderr: !tty,
    };
    let answer: StreamingUrl = cri.ok("Attach", &request);
    Session::open(&answer.url)
}

pub fn exec_with_a_terminal(cri: &Cri) {
    let pod = cri.run_pod("web");
    let container = pod.run(STAY);
    let script = "until [ \"$(stty size)\" = '33 121' ]; do :; done; tty; read word; echo \"<$word>\"; exit 5";
    let mut session = open_exec(cri, &container, true, script);
    session.resize(121, 33);
    session.until_output("/dev/pts/");
    session.write("hello\r");
    assert_eq!(session.wait(), 5);
    assert!(session.stdout.contains("<hello>"), "{:?}", session.stdout);
}

pub fn exec_without_a_terminal(cri: &Cri) {
    let pod = cri.run_pod("web");
    let container = pod.run(STAY);
    let script = "read word; echo out $word; echo err $word >&2; exit 6";
    let mut session = open_exec(cri, &container, false, script);
    session.write("hello\n");
    assert_eq!(session.wait(), 6);
    assert_eq!(
        (session.stdout.as_str(), session.stderr.as_str()),
        ("out hello\n", "err hello\n")
    );
    let mut session = open_exec(cri, &container, false, "exit 0");
    assert_eq!(session.wait(), 0);
}

pub fn exec_by_spdy_reads_its_input_to_the_end(cri: &Cri) {
    let pod = cri.run_pod("web");
    let container = pod.run(STAY);
    let mut exec = spdy::Command::open(&exec_url(
        cri,
        &container,
        false,
        "cat; echo end >&2; exit 7",
    ));
    let input = "0123456789abcde\n".repeat(10_000);
    exec.write_all(&input);
    let (code, stdout, stderr) = exec.wait();
    assert_eq!((code, stderr.as_str()), (7, "end\n"));
    assert!(stdout == input, "{} bytes of {}", stdout.len(), input.len());
}

pub fn port_is_forwarded(cri: &Cri) {
    let pod = cri.run_pod("web");
    let server = pod.run("echo listening; nc -l -p 7000 -e cat; exec sleep 100000");
    let request = PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: vec![7000],
    };
    // The program listens some time after it has said so.
    server.exec("until grep -q :1B58 /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done");
    let answer: StreamingUrl = cri.ok("PortForward", &request);
    let mut connection = spdy::Connection::open(&answer.url, "portforward.k8s.io");
    let [error, data] = ["error", "data"].map(|kind| {
        connection.stream(&[("streamtype", kind), ("port", "7000"), ("requestid", "0")])
    });
    connection.close(error);
    connection.write(data, "there and back\n");
    connection.close(data);
    connection.until_end(data);
    assert_eq!(connection.received(data), "there and back\n");
    assert_eq!(connection.received(error), "");
}

pub fn attach_with_a_terminal(cri: &Cri) {
    let pod = cri.run_pod("web");
    let script = "while read word; do stty size; echo \"<$word>\"; done";
    let container = pod.run_with(script, |config| (config.stdin, config.tty) = (true, true));
    let mut first = open_attach(cri, &container, true);
    first.write("one\r");
    first.until_output("<one>");
    // A client that leaves is not the end of the input.
    drop(first);
    let mut second = open_attach(cri, &container, true);
    second.resize(121, 33);
    let mut words = 0;
    while !second.stdout.contains("33 121") {
        words += 1;
        second.write(&format!("word{words}\r"));
        second.until_output(&format!("<word{words}>"));
    }
    // Ctrl-D is the end.
    second.write("\u{4}");
    assert_eq!(container.wait(), (0, "Completed".to_owned()));
}

pub fn attach_without_a_terminal(cri: &Cri) {
    let pod = cri.run_pod("web");
    let script = "read word; echo out $word; echo err $word >&2; read word; exit 4";
    let container = pod.run_with(script, |config| config.stdin = true);
    let mut session = open_attach(cri, &container, false);
    session.write("hello\n");
    session.until_output("out hello\n");
    session.write("again\n");
    assert_eq!(container.wait(), (4, "Error".to_owned()));
    session.wait();
    assert_eq!(session.stderr, "err hello\n");
    container.until_log("stderr err hello");
}

pub fn log_is_rotated_without_a_loss(cri: &Cri) {
    let pod = cri.run_pod("web");
    let script =
        "trap 'echo last; exit 0' TERM; i=0; while :; do echo $i; i=$((i + 1)); sleep 0.01; done";
    let container = pod.run(script);
    container.until_log("stdout 20");
    let old = format!("{}.1", container.log);
    fs::rename(&container.log, &old).expect("rename the log");
    let _: Empty = cri.ok("ReopenContainerLog", &container.by_id());
    world::until("lines in the new log", || container.log_lines().len() > 20);
    container.stop(60);
    assert_eq!(container.wait().0, 0);
    container.until_log("stdout last");

    let lines = [log_lines(&old), container.log_lines()].concat();
    let count = lines.len() - 1;
    let mut wanted: Vec<_> = (0..count)
        .map(|number| format!("stdout {number}"))
        .collect();
    wanted.push("stdout last".to_owned());
    assert_eq!(lines, wanted);
}

pub fn stats(cri: &Cri) {
    let pod = cri.run_pod("web");
    let container =
        pod.run("i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; exec sleep 100000");
    world::until("the container's CPU and memory", || {
        let answer: ContainerStatsResponse = cri.ok("ContainerStats", &container.by_id());
        let stats = answer.stats.expect("stats");
        let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds);
        let memory = stats.memory.and_then(|memory| memory.working_set_bytes);
        // The loop takes more than a millisecond, and a shell more than a page.
        cpu.is_some_and(|time| time.value > 1_000_000)
            && memory.is_some_and(|bytes| bytes.value > 4096)
    });
    let answer: PodSandboxStatsResponse = cri.ok("PodSandboxStats", &pod.by_id());
    let stats = answer.stats.and_then(|stats| stats.linux);
    let stats = stats.expect("the pod's stats");
    assert_eq!(stats.containers.len(), 1, "{stats:?}");
}

pub fn container_events(cri: &Cri) {
    let events = grpc::subscribe::<ContainerEventResponse>(
        "runtime.v1.RuntimeService/GetContainerEvents",
        Empty {},
    );
    // Nothing says when the subscription begins: make events until one arrives.
    let mut round = 0;
    world::until("an event", || {
        round += 1;
        cri.run_pod(&format!("probe-{round}"));
        events.recv_timeout(Duration::from_millis(500)).is_ok()
    });
    let pod = cri.run_pod("web");
    let container = pod.run("exit 3");
    assert_eq!(container.wait().0, 3);
    container.remove();

    let mut kinds = Vec::new();
    while kinds.last() != Some(&ContainerEventType::Deleted) {
        let event = events.recv_timeout(world::limit());
        let event = event.unwrap_or_else(|_| panic!("no more events after {kinds:?}"));
        if event.container_id == container.id {
            kinds.push(event.container_event_type());
        }
    }
    use ContainerEventType::{Created, Deleted, Started, Stopped};
    assert_eq!(kinds, [Created, Started, Stopped, Deleted]);
}

/// What a file of the container's cgroup says; the names are those of cgroup v1 and v2.
fn cgroup_value(container: &Container, v1: &str, v2: &str) -> String {
    let (namespace, id) = (world::namespace(), &container.id);
    let controller = v1.split('.').next().expect("a name");
    let v1 = format!("/sys/fs/cgroup/{controller}/{namespace}/{id}/{v1}");
    let v2 = format!("/sys/fs/cgroup/{namespace}/{id}/{v2}");
    let value = fs::read_to_string(&v1).or_else(|_| fs::read_to_string(&v2));
    let value = value.unwrap_or_else(|error| panic!("{v1} or {v2}: {error}"));
    value.trim().to_owned()
}

fn limits(memory: i64, shares: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_shares: shares,
        memory_limit_in_bytes: memory,
    }
}

pub fn update_of_resources(cri: &Cri) {
    let pod = cri.run_pod("web");
    let container = pod.run_with(STAY, |config| {
        let linux = config.linux.as_mut().expect("it is set");
        linux.resources = Some(limits(64 << 20, 512));
    });
    let memory = || cgroup_value(&container, "memory.limit_in_bytes", "memory.max");
    let shares = || cgroup_value(&container, "cpu.shares", "cpu.weight");
    assert_eq!(memory(), (64 << 20).to_string());
    let before = shares();
    let request = UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(limits(32 << 20, 2048)),
    };
    let _: Empty = cri.ok("UpdateContainerResources", &request);
    assert_eq!(memory(), (32 << 20).to_string());
    assert_ne!(shares(), before);
    assert_eq!(container.exec("echo fine"), "fine\n");
}

pub fn host_pid_and_network(cri: &Cri) {
    let node = NamespaceMode::Node as i32;
    let host = NamespaceOption {
        network: node,
        pid: node,
        ..NamespaceOption::default()
    };
    let pod = cri.run_pod_with("host", security(host));
    let container = pod.run("sleep 5001 & sleep 5002 & exec sleep 5003");
    for kind in ["pid", "net"] {
        let ours = fs::read_link(format!("/proc/self/ns/{kind}")).expect("our namespace");
        let its = container.exec(&format!("readlink /proc/self/ns/{kind}"));
        assert_eq!(its.trim(), ours.to_string_lossy());
    }
    world::until("its processes to run", || {
        is_running("sleep 5001") && is_running("sleep 5002") && is_running("sleep 5003")
    });
    // Without pids of its own, the end of its first process is not that of the others.
    container.stop(0);
    world::until("all its processes to be gone", || {
        !is_running("sleep 5001") && !is_running("sleep 5002") && !is_running("sleep 5003")
    });
}

pub fn pids_shared_in_a_pod(cri: &Cri) {
    let shared = NamespaceOption {
        pid: NamespaceMode::Pod as i32,
        ..NamespaceOption::default()
    };
    let pod = cri.run_pod_with("shared", security(shared));
    let first = pod.run("exec sleep 5001");
    let second = pod.run("sleep 5002 & exec sleep 5003");
    let namespace = "readlink /proc/self/ns/pid";
    assert_eq!(first.exec(namespace), second.exec(namespace));
    world::until("the second's processes to run", || {
        let list = first.exec("ps -o args");
        list.contains("sleep 5002") && list.contains("sleep 5003")
    });
    let init = if cri.handler == "sandbox" {
        "pod-init"
    } else {
        "trap"
    };
    assert!(first.exec("cat /proc/1/cmdline").contains(init));
    second.stop(0);
    world::until("the second's processes to be gone", || {
        !is_running("sleep 5002") && !is_running("sleep 5003")
    });
    assert_eq!(second.wait().0, 137);
    assert_eq!(first.exec("echo fine"), "fine\n");
}

pub fn stop_with_a_grace_period(cri: &Cri) {
    let pod = cri.run_pod("web");
    let polite = pod.run(EXIT_7_AT_SIGTERM);
    let deaf = pod.run("trap '' TERM; echo ready; while :; do sleep 100000; done");
    polite.until_log("stdout ready");
    deaf.until_log("stdout ready");
    polite.stop(60);
    assert_eq!(polite.wait(), (7, "Error".to_owned()));
    let start = Instant::now();
    deaf.stop(1);
    assert!(start.elapsed() >= Duration::from_secs(1), "no grace");
    assert_eq!(deaf.wait(), (137, "Error".to_owned()));
    // A stop of what has stopped, and of a pod with a container that runs.
    deaf.stop(1);
    let last = pod.run(STAY);
    pod.stop();
    pod.stop();
    assert_eq!(last.wait().0, 137);
    assert_eq!(pod.status().state(), PodSandboxState::NotReady);
    pod.remove();
    assert!(cri.pods().is_empty());
}

pub fn thirty_pods_while_containerd_is_killed(cri: &Cri) {
    let pods = at_once(0..30, |number| {
        let pod = cri.run_pod(&format!("pod-{number}"));
        let container = pod.run(EXIT_7_AT_SIGTERM);
        container.until_log("stdout ready");
        (pod, container)
    });
    world::until("a server a pod", || world::shims().len() == 30);
    let (leaving, staying) = pods.split_at(3);
    let pids: Vec<_> = leaving.iter().map(|(_, leaver)| leaver.pid()).collect();

    world::stop_containerd();
    for pid in &pids {
        kill(Pid::from_raw(*pid), Signal::SIGTERM).expect("the process is there");
    }
    world::until("the processes to be reaped", || {
        let is_gone = |pid| !Path::new(&format!("/proc/{pid}")).exists();
        pids.iter().all(is_gone)
    });
    world::start_containerd();
    world::until("CRI to answer", || {
        cri.call::<ListPodSandboxResponse>("ListPodSandbox", &Empty {})
            .is_ok()
    });

    let found = cri.pods();
    assert_eq!(found.len(), 30, "{found:?}");
    for pod in found {
        assert_eq!(pod.state(), PodSandboxState::Ready, "{pod:?}");
    }
    // Newer containerds take a stopped container of their own shim for lost: it has no pids.
    let wanted = if cri.is_ours() || cri.version == "1.6" {
        (7, "Error".to_owned())
    } else {
        (255, "Unknown".to_owned())
    };
    for (_, container) in leaving {
        assert_eq!(container.wait(), wanted);
    }
    at_once(staying, |(_, container)| {
        assert_eq!(container.status().state(), ContainerState::Running);
        assert_eq!(container.exec("echo fine"), "fine\n");
    });
    // An exit after the restart arrives, too, and a container can be added.
    staying[0].1.stop(60);
    assert_eq!(staying[0].1.wait().0, 7);
    assert_eq!(staying[0].0.run("exit 9").wait().0, 9);
}

pub fn memory_limit_is_exceeded(cri: &Cri) {
    let pod = cri.run_pod("web");
    let container = pod.run_with("exec tail /dev/zero", |config| {
        let linux = config.linux.as_mut().expect("it is set");
        linux.resources = Some(limits(16 << 20, 1024));
    });
    assert_eq!(container.wait(), (137, "OOMKilled".to_owned()));
    assert_eq!(pod.status().state(), PodSandboxState::Ready);
}

pub fn command_not_found(cri: &Cri) {
    let pod = cri.run_pod("web");
    let container = pod.create("", |config| {
        config.command = vec!["/no/such/command".to_owned()];
    });
    let error = container.start().expect_err("there is no such command");
    assert!(error.message.contains("/no/such/command"), "{error:?}");
    // The words are the OCI runtime's: runc's, then crun's and youki's.
    let words = ["no such file", "not found"];
    let is_known = words.iter().any(|words| error.message.contains(words));
    assert!(is_known, "{error:?}");
    assert_eq!(container.wait(), (128, "StartError".to_owned()));
    let error = container.start().expect_err("it has exited");
    assert!(error.message.contains("EXITED"), "{error:?}");
    assert_eq!(pod.run("exit 3").wait().0, 3);
}

pub fn unknown_handler(cri: &Cri) {
    let other = Cri::new(cri.version, "no-such-handler");
    let error = other.try_run_pod("web", security(NamespaceOption::default()));
    let error = error.err().expect("there is no such handler");
    assert!(error.message.contains("no-such-handler"), "{error:?}");
}
