//! Pods without a pause container: the Sandbox service, and containers in a sandbox.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_rs_v2::proto::Message;
use containerd_shim_rs_v2::proto::cgroups_v1::Metrics as MetricsV1;
use containerd_shim_rs_v2::proto::cgroups_v2::Metrics as MetricsV2;
use containerd_shim_rs_v2::proto::podsandbox::{DNSConfig, PodSandboxConfig};
use containerd_shim_rs_v2::proto::types::Status;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::harness::container::Container;
use crate::harness::daemon::Form;
use crate::harness::sandbox::{CONTAINER, NODE, POD, Sandbox, config, config_of, namespace};
use crate::harness::*;

const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// The namespaces of the test, which are the node's.
fn nodes(kind: &str) -> Option<PathBuf> {
    namespace(std::process::id(), kind)
}

/// The threads of the sandbox's server that hold namespaces.
fn threads(pod: &Sandbox) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", pod.shim_pid));
    let names = tasks.expect("the server's threads").flatten();
    let names = names.map(|task| fs::read_to_string(task.path().join("comm")).unwrap_or_default());
    names.filter(|name| name == "sandbox\n").count()
}

/// Deletes a container that was killed.
#[track_caller]
fn end(c: &Container) {
    c.end();
    c.delete().expect("Delete");
    c.shutdown().expect("Shutdown");
}

fn with_sysctl(mut config: PodSandboxConfig, name: &str, value: &str) -> PodSandboxConfig {
    let linux = config.linux.as_mut().unwrap();
    linux.sysctls.insert(name.into(), value.into());
    config
}

/// What a container of the pod prints.
#[track_caller]
fn output_in(pod: &Sandbox, id: &str, script: &str) -> String {
    let fifos = pod.daemon.fifos(id);
    let c = pod
        .container(id, script)
        .stdio(fifos.stdio.clone())
        .in_sandbox(pod);
    c.create().expect("Create");
    c.start().expect("Start");
    assert_eq!(c.exit_status(), 0, "{}", fifos.stdout.text());
    c.delete().expect("Delete");
    fifos.stdout.end()
}

/// The server is killed; `delete` of the sandbox leaves nothing, of its containers either.
#[track_caller]
fn kill_and_delete(pod: &Sandbox, containers: &[&Container]) {
    process::signal(pod.shim_pid, Signal::SIGKILL);
    assert_eq!(pod.shim_exit(), 128 + 9);
    pod.delete();
    pod.assert_gone();
    containers.iter().for_each(|c| c.assert_gone());
}

cases! {
    fn sandbox_from_create_to_shutdown(d) {
        let pod = d.sandbox("pod");
        assert_eq!((pod.started.form, pod.started.version), (Form::Json, 3));
        pod.create(&config()).unwrap();
        assert_eq!((pod.state().as_str(), pod.pid()), (NOT_READY, 0));
        pod.ping().unwrap();
        let platform = pod.platform().unwrap().platform.unwrap();
        assert_eq!((platform.os.as_str(), platform.architecture.as_str()), ("linux", "amd64"));
        let waits = [pod.wait_pending(), pod.wait_pending()];
        assert_eq!(threads(&pod), 0);
        let started = pod.start().unwrap();
        let status = pod.status().unwrap();
        assert_eq!((status.state.as_str(), status.pid), (READY, started.pid));
        assert_eq!(status.created_at, started.created_at);
        let pid = started.pid;
        for kind in ["ipc", "uts"] {
            assert_ne!(namespace(pid, kind), nodes(kind), "{kind}");
        }
        assert_eq!(namespace(pid, "net"), fs::read_link(pod.netns()).ok());
        assert_eq!(namespace(pid, "pid"), nodes("pid"));
        assert_eq!(namespace(pod.shim_pid as u32, "net"), nodes("net"));
        assert_eq!(threads(&pod), 1, "a parked thread");
        assert!(waits.iter().all(|wait| !wait.answered()));
        pod.stop().unwrap();
        assert_eq!(pod.state(), NOT_READY);
        assert_eq!(namespace(pid, "net"), None, "the holder is gone");
        for wait in waits {
            let answer = wait.wait().unwrap();
            assert_eq!(answer.exit_status, 0);
            assert!(answer.exited_at.seconds > 1_600_000_000);
        }
        assert_eq!(pod.wait_pending().wait().unwrap().exit_status, 0);
        pod.finish();
    }

    fn sandbox_for_containerd_2_3(d) {
        let pod = d.sandbox_in("pod", Dialect::Bootstrap);
        assert_eq!((pod.started.form, pod.started.version), (Form::Protobuf, 3));
        pod.create(&config()).unwrap();
        let spec = pod.start().unwrap().spec.unwrap();
        let spec: serde_json::Value = serde_json::from_slice(&spec.value).unwrap();
        assert_eq!(spec["annotations"]["io.kubernetes.cri.sandbox-id"], "pod");
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
        assert_eq!(namespaces.len(), 3);
        for namespace in namespaces {
            assert!(Path::new(namespace["path"].as_str().unwrap()).exists(), "{namespace}");
        }
        pod.finish();
    }

    fn status_is_verbose_in_cris_form(d) {
        let mut of_pod = with_sysctl(config(), "net.core.somaxconn", "77");
        of_pod.labels.insert("app".into(), "web".into());
        let pod = d.pod("pod", &of_pod);
        let info = &pod.status().unwrap().info["info"];
        let info: serde_json::Value = serde_json::from_str(info).unwrap();
        assert_eq!(info["pid"], pod.pid());
        assert_eq!(info["processStatus"], "running");
        assert_eq!(info["config"]["labels"]["app"], "web");
        assert_eq!(info["config"]["linux"]["sysctls"]["net.core.somaxconn"], "77");
        assert_eq!(info["runtimeSpec"]["linux"]["sysctl"]["net.core.somaxconn"], "77");
        pod.finish();
    }

    fn operations_that_the_state_of_a_sandbox_refuses(d) {
        let pod = d.sandbox("pod");
        pod.start().refused(Code::NOT_FOUND, "pod");
        pod.stop().refused(Code::NOT_FOUND, "pod");
        pod.status().refused(Code::NOT_FOUND, "pod");
        pod.wait_pending().wait().refused(Code::NOT_FOUND, "pod");
        pod.create(&config()).unwrap();
        pod.create(&config()).refused(Code::ALREADY_EXISTS, "already exists");
        let c = d.shell("c", "true").in_sandbox(&pod);
        c.create().refused(Code::FAILED_PRECONDITION, "the sandbox is not started");
        pod.start().unwrap();
        pod.start().refused(Code::FAILED_PRECONDITION, "ready");
        pod.create(&config()).refused(Code::ALREADY_EXISTS, "already exists");
        pod.stop().unwrap();
        pod.stop().unwrap();
        pod.start().refused(Code::FAILED_PRECONDITION, "stopped");
        c.create().refused(Code::FAILED_PRECONDITION, "the sandbox is stopped");
        let unknown: Result<containerd_shim_rs_v2::proto::Empty, _> = pod.pending("UpdateSandbox").wait();
        unknown.refused(Code::UNIMPLEMENTED, "UpdateSandbox");
        pod.finish();
    }

    fn sandbox_is_stopped_without_a_start(d) {
        let pod = d.sandbox("pod");
        pod.create(&config()).unwrap();
        let wait = pod.wait_pending();
        pod.stop().unwrap();
        assert_eq!(wait.wait().unwrap().exit_status, 0);
        pod.finish();
    }

    fn sandbox_is_shut_down_in_each_state(d) {
        let end = |pod: &Sandbox| {
            pod.shut_down().unwrap();
            assert_eq!(pod.shim_exit(), 0);
            pod.delete();
            pod.assert_gone();
        };
        end(&d.sandbox("absent"));
        let created = d.sandbox("created");
        created.create(&config()).unwrap();
        end(&created);
        end(&d.pod("ready", &config()));
        end(&d.pod("with-init", &config_of(POD, POD, POD)));
        let stopped = d.pod("stopped", &config());
        stopped.stop().unwrap();
        end(&stopped);
    }

    fn waits_for_a_sandbox_are_answered_at_its_shutdown(d) {
        let pod = d.pod("pod", &config());
        let waits: Vec<_> = (0..20).map(|_| pod.wait_pending()).collect();
        pod.shut_down().unwrap();
        for wait in waits {
            assert_eq!(wait.wait().unwrap().exit_status, 0);
        }
        assert_eq!(pod.shim_exit(), 0);
    }

    fn client_leaves_after_it_asked_for_the_shutdown_of_a_sandbox(d) {
        let pod = d.pod("pod", &config());
        let other = rpc::Connection::open(&pod.started.address, d.hang_timeout).unwrap();
        let _shutdown: rpc::Pending<containerd_shim_rs_v2::proto::Empty> = pod.pending("ShutdownSandbox");
        pod.connection.close();
        d.eventually("the server ends", || pod.task().over(&other).connect().is_err());
        assert_eq!(pod.shim_exit(), 0);
        pod.delete();
        pod.assert_gone();
    }

    fn containers_share_the_namespaces_of_their_sandbox(d) {
        let pod = d.pod("pod", &config());
        let [a, b] = ["a", "b"].map(|id| pod.container(id, "sleep inf").in_sandbox(&pod));
        let pids = [&a, &b].map(|c| {
            c.create().unwrap();
            c.start().unwrap()
        });
        for kind in ["net", "ipc", "uts"] {
            let of_pod = namespace(pod.pid(), kind);
            assert!(of_pod.is_some());
            assert_eq!(pids.map(|pid| namespace(pid, kind)), [of_pod.clone(), of_pod], "{kind}");
        }
        assert_ne!(namespace(pids[0], "pid"), namespace(pids[1], "pid"));
        // The options of the runtime handler, which only the sandbox's `start` got.
        assert!(d.runtime_root().join(&d.namespace).join("a").exists());
        let e = a.exec("e", &["sh", "-c", "echo shared >/dev/shm/x"]).unwrap();
        e.start().unwrap();
        assert_eq!(e.exit_status(), 0);
        assert_eq!(output_in(&pod, "c", "hostname; cat /dev/shm/x"), "pod-name\nshared\n");
        // containerd sends Shutdown after each Delete.
        end(&a);
        assert_eq!(b.status(), Status::RUNNING);
        end(&b);
        assert_eq!(pod.state(), READY);
        pod.finish();
        [a, b].iter().for_each(|c| c.assert_gone());
    }

    fn containers_share_the_pids_of_their_sandbox(d) {
        let pod = d.pod("pod", &config_of(POD, POD, POD));
        let init = pod.pid();
        assert_eq!(pod.init(), Some(init as i32));
        for kind in ["ipc", "uts", "pid"] {
            assert_ne!(namespace(init, kind), nodes(kind), "{kind}");
        }
        assert_eq!(namespace(init, "net"), fs::read_link(pod.netns()).ok());
        let c = pod.container("c", "sleep inf").in_sandbox(&pod);
        c.create().unwrap();
        let pid = c.start().unwrap();
        assert_eq!(namespace(pid, "pid"), namespace(init, "pid"));
        // Signals from the pod do nothing to the init, and it reaps orphans.
        let script = "kill -9 1; kill -15 1; kill -17 1; (sh -c 'exit 3' & echo $! >/tmp/pid; exec true); \
            until ! [ -e /proc/$(cat /tmp/pid) ]; do :; done; sh -c 'sleep 0.01 &'; ps -o pid,args";
        let output = output_in(&pod, "d", script);
        let first = output.lines().nth(1).unwrap_or_default().trim().to_owned();
        assert!(first.starts_with("1 ") && first.contains("pod-init"), "{output}");
        d.eventually("no zombie is left in the pod", || {
            let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children"));
            children.unwrap().trim().is_empty()
        });
        assert_eq!(pod.state(), READY);
        end(&c);
        pod.finish();
    }

    fn init_of_a_sandbox_has_no_privileges(d) {
        let pod = d.pod("pod", &config_of(POD, POD, POD));
        let init = pod.pid() as i32;
        for set in ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"] {
            assert_eq!(process::status_line(init, set), "0000000000000000", "{set}");
        }
        assert_eq!(process::status_line(init, "NoNewPrivs"), "1");
        let names = |dir: &str| -> Vec<String> {
            let entries = fs::read_dir(format!("/proc/{init}/{dir}")).unwrap().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names("fd"), Vec::<String>::new(), "descriptors");
        assert_eq!(names("root"), ["pod-init"], "its root");
        // Whoever holds its program's file cannot write to it once it has ended.
        let mounts = fs::read_to_string(format!("/proc/{init}/mountinfo")).unwrap();
        let options: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(5)).collect();
        assert_eq!(options.len(), 2, "{mounts}");
        assert!(options.iter().all(|options| options.starts_with("ro,nosuid,nodev")), "{mounts}");
        let program = fs::read_link(format!("/proc/{init}/exe")).unwrap();
        assert_eq!(program, Path::new("/pod-init"));
        assert_eq!(names("task").len(), 1);
        pod.finish();
    }

    fn death_of_the_init_is_the_end_of_the_sandbox(d) {
        let pod = d.pod("pod", &config_of(POD, POD, POD));
        let c = pod.container("c", "sleep inf").in_sandbox(&pod);
        c.create().unwrap();
        c.start().unwrap();
        let wait = pod.wait_pending();
        process::signal(pod.pid() as i32, Signal::SIGKILL);
        assert_eq!(wait.wait().unwrap().exit_status, 137);
        assert_eq!((pod.state().as_str(), pod.pid()), (NOT_READY, 0));
        assert_eq!(c.exit_status(), 137);
        c.delete().unwrap();
        pod.finish();
        c.assert_gone();
    }

    fn sandbox_with_the_namespaces_of_the_node(d) {
        let pod = d.pod("pod", &config_of(NODE, NODE, NODE));
        assert_eq!(pod.pid(), pod.shim_pid as u32);
        assert!(!pod.cri_state().join("shm").exists());
        let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(fs::read_to_string(pod.cri_root().join("hostname")).unwrap(), hostname);
        pod.finish();

        let pod = d.pod("own-ipc", &config_of(NODE, NODE, POD));
        assert_ne!(namespace(pod.pid(), "ipc"), nodes("ipc"));
        for kind in ["net", "uts"] {
            assert_eq!(namespace(pod.pid(), kind), nodes(kind), "{kind}");
        }
        pod.finish();

        let pod = d.pod("pids", &config_of(NODE, POD, NODE));
        assert_ne!(namespace(pod.pid(), "pid"), nodes("pid"));
        for kind in ["net", "uts", "ipc"] {
            assert_eq!(namespace(pod.pid(), kind), nodes(kind), "{kind}");
        }
        pod.finish();
    }

    fn sysctls_of_a_sandbox(d) {
        let of_pod = with_sysctl(config_of(POD, POD, POD), "net.ipv4.ip_local_port_range", "5000 6000");
        let pod = d.pod("pod", &with_sysctl(of_pod, "kernel.shmmni", "77"));
        let script = "cd /proc/sys; cat net/ipv4/ip_local_port_range kernel/shmmni \
            net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range | tr '\\t' ' '";
        assert_eq!(output_in(&pod, "c", script), "5000 6000\n77\n0\n0 2147483647\n");
        pod.finish();
    }

    fn sandbox_that_cannot_be_started_leaves_nothing(d) {
        for (n, pid) in [CONTAINER, POD].into_iter().enumerate() {
            let pod = d.sandbox(&format!("sysctl{n}"));
            pod.create(&with_sysctl(config_of(POD, pid, POD), "net.no.such", "1")).unwrap();
            let start = pod.start();
            start.refused(Code::UNKNOWN, "write \"1\" to /proc/sys/net/no/such: No such file");
            d.eventually("the thread is gone", || threads(&pod) == 0);
            pod.assert_gone();
            pod.shut_down().unwrap();
            assert_eq!(pod.shim_exit(), 0);
            pod.delete();
        }
        let pod = d.sandbox("init");
        fs::remove_dir(pod.bundle.join("rootfs")).unwrap();
        pod.create(&config_of(POD, POD, POD)).unwrap();
        pod.start().refused(Code::UNKNOWN, "start the pod's init: ");
        d.eventually("the thread is gone", || threads(&pod) == 0);
        pod.assert_gone();
        // It can be tried again.
        fs::create_dir(pod.bundle.join("rootfs")).unwrap();
        pod.start().unwrap();
        pod.finish();
    }

    fn configurations_of_a_sandbox_that_are_refused(d) {
        let pod = d.sandbox("pod");
        for (name, text) in [
            ("vm.swappiness", "not one of a namespace"),
            ("net.../../x", "not the name of a kernel parameter"),
        ] {
            pod.create(&with_sysctl(config(), name, "1")).refused(Code::INVALID_ARGUMENT, text);
        }
        let nodes = with_sysctl(config_of(NODE, CONTAINER, POD), "net.core.somaxconn", "1");
        pod.create(&nodes).refused(Code::INVALID_ARGUMENT, "of the node");
        pod.create(&config_of(POD, 3, POD)).refused(Code::INVALID_ARGUMENT, "pid namespace");
        pod.create(&config_of(POD, 7, POD)).refused(Code::INVALID_ARGUMENT, "namespace mode 7");
        let mut with_users = config();
        let linux = with_users.linux.as_mut().unwrap();
        let namespaces = linux.security_context.as_mut().unwrap().namespace_options.as_mut().unwrap();
        namespaces.userns_options = Some(Default::default()).into();
        pod.create(&with_users).refused(Code::UNIMPLEMENTED, "user namespaces");
        pod.create(&config()).unwrap();
        pod.shut_down().unwrap();
        assert_eq!(pod.shim_exit(), 0);
    }

    fn files_of_a_sandbox(d) {
        let mut of_pod = config();
        let dns = DNSConfig {
            servers: vec!["10.0.0.1".into()],
            searches: vec!["a.b".into(), "b".into()],
            options: vec!["ndots:5".into()],
            ..Default::default()
        };
        of_pod.dns_config = Some(dns).into();
        let pod = d.pod("pod", &of_pod);
        let read = |name: &str| fs::read_to_string(pod.cri_root().join(name)).unwrap();
        assert_eq!(read("hostname"), "pod-name\n");
        assert_eq!(read("hosts"), fs::read_to_string("/etc/hosts").unwrap());
        assert_eq!(read("resolv.conf"), "search a.b b\nnameserver 10.0.0.1\noptions ndots:5\n");
        let shm = pod.cri_state().join("shm");
        let entry = machine::mount_entries_below(&shm).pop().expect("a mount for /dev/shm");
        for option in ["nosuid", "nodev", "noexec"] {
            assert!(entry.options.iter().any(|o| o == option), "{entry:?}");
        }
        pod.finish();
    }

    fn files_that_a_restarted_containerd_removed_are_made_again(d) {
        let pod = d.pod("pod", &config());
        let shm = pod.cri_state().join("shm");
        fs::write(shm.join("x"), "kept").unwrap();
        umount2(&shm, MntFlags::MNT_DETACH).unwrap();
        fs::remove_dir_all(pod.cri_state()).unwrap();
        fs::remove_dir_all(pod.cri_root()).unwrap();
        // containerd asks before it looks for them.
        assert_eq!(pod.state(), READY);
        assert_eq!(fs::read_to_string(pod.cri_root().join("hostname")).unwrap(), "pod-name\n");
        assert_eq!(output_in(&pod, "c", "cat /dev/shm/x"), "kept");
        pod.finish();
    }

    fn server_of_a_sandbox_is_killed(d) {
        let pod = d.pod("pod", &config());
        let [a, b] = ["a", "b"].map(|id| pod.container(id, "sleep inf").in_sandbox(&pod));
        for c in [&a, &b] {
            c.create().unwrap();
            c.start().unwrap();
        }
        // containerd removes bundles without a call of `delete`.
        machine::mounts_below(&a.bundle).iter().for_each(|mount| umount2(mount, MntFlags::MNT_DETACH).unwrap());
        fs::remove_dir_all(&a.bundle).unwrap();
        kill_and_delete(&pod, &[&a, &b]);
        pod.delete();
    }

    fn server_of_a_sandbox_with_an_init_is_killed(d) {
        let pod = d.pod("pod", &config_of(POD, POD, POD));
        let c = pod.container("c", "sleep inf").in_sandbox(&pod);
        c.create().unwrap();
        kill_and_delete(&pod, &[&c]);
    }

    fn server_of_a_sandbox_is_killed_without_containers(d) {
        let created = d.sandbox("created");
        created.create(&config()).unwrap();
        kill_and_delete(&created, &[]);
        kill_and_delete(&d.pod("ready", &config()), &[]);
        let stopped = d.pod("stopped", &config());
        stopped.stop().unwrap();
        kill_and_delete(&stopped, &[]);
    }

    fn server_of_a_sandbox_is_killed_while_it_creates_a_container(d) {
        let pod = d.pod("pod", &config());
        let runtime = d.fake_runtime();
        let c = pod.container("c", "sleep inf").options(|o| o.binary_name = runtime.path()).in_sandbox(&pod);
        let mut held = runtime.hold("create", runtime::At::After);
        let _create = c.create_pending();
        held.reached();
        kill_and_delete(&pod, &[&c]);
        held.release();
    }

    fn container_that_cannot_be_created_is_off_the_record(d) {
        let pod = d.pod("pod", &config());
        let c = pod.container("c", "true").spec(|spec| spec["process"]["args"] = serde_json::json!(["/no/such"]));
        let c = c.in_sandbox(&pod);
        assert!(c.create().is_err() || c.start().is_err());
        let _ = c.delete();
        let record = fs::read_to_string(pod.bundle.join("sandbox.json")).unwrap();
        assert!(!record.contains("/c\""), "{record}");
        pod.finish();
        c.assert_gone();
    }

    fn metrics_of_a_sandbox_are_never_an_error(d) {
        let parent = d.make_cgroup("parent");
        for cgroup_parent in [parent.as_str(), "", "/no/such", "no-such.slice", "../x"] {
            let mut of_pod = config();
            of_pod.linux.as_mut().unwrap().cgroup_parent = cgroup_parent.into();
            let id = format!("pod{}", cgroup_parent.len());
            let pod = d.pod(&id, &of_pod);
            let metric = pod.metrics().unwrap().metrics.unwrap();
            assert_eq!(metric.id, id);
            let data = metric.data.unwrap();
            match data.type_url.as_str() {
                "io.containerd.cgroups.v1.Metrics" => {
                    let metrics = MetricsV1::parse_from_bytes(&data.value).unwrap();
                    let has_memory = metrics.memory.usage.usage > 0;
                    assert!(!has_memory || cgroup_parent == parent, "{metrics:?}");
                    assert_eq!(metrics.pids.is_some(), cgroup_parent == parent);
                }
                "io.containerd.cgroups.v2.Metrics" => {
                    MetricsV2::parse_from_bytes(&data.value).unwrap();
                }
                other => panic!("{other}"),
            }
            pod.finish();
        }
    }

    fn sandbox_stays_without_clients_and_containers(d) {
        let pod = d.pod("pod", &config());
        let c = pod.container("c", "sleep inf").in_sandbox(&pod);
        c.create().unwrap();
        c.start().unwrap();
        end(&c);
        let other = rpc::Connection::open(&pod.started.address, d.hang_timeout).unwrap();
        // As after a restart of containerd.
        let task = pod.task().over(&other);
        task.connect().unwrap();
        task.pids().refused(Code::NOT_FOUND, "");
        task.shutdown().unwrap();
        assert_eq!(pod.state(), READY);
        pod.finish();
    }
}
