//! Pods: several containers of one server, which come and go in any order and have
//! nothing in common but the server.

use std::fs;
use std::thread;

use containerd_shim_rs_v2::proto::types::Status;

use crate::harness::container::Container;
use crate::harness::*;

/// In the pod of container `a`.
fn in_pod<'d>(d: &'d Daemon, id: &str) -> container::Builder<'d> {
    d.container(id, &["sleep", "inf"]).group("a")
}

/// As the daemon does once a container is deleted.
fn remove_bundle(c: &Container) {
    let work = fs::read_link(c.bundle.join("work")).expect("find the work directory");
    fs::remove_dir_all(work).expect("remove the work directory");
    fs::remove_dir_all(&c.bundle).expect("remove the bundle");
}

#[track_caller]
fn assert_serves(c: &Container) {
    let e = c.exec("e", &["sh", "-c", "exit 4"]).unwrap();
    e.start().unwrap();
    assert_eq!(e.exit_status(), 4);
    e.delete().unwrap();
    assert_eq!(c.status(), Status::RUNNING);
}

cases! {
    fn concurrent_starts_of_a_pods_containers(d) {
        let ids = ["a", "b", "c", "d", "e", "f"];
        let containers: Vec<Container> = thread::scope(|scope| {
            let run = |id: &'static str| scope.spawn(move || in_pod(d, id).run());
            let threads: Vec<_> = ids.into_iter().map(run).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let server = containers[0].shim_pid;
        assert!(containers.iter().all(|c| c.shim_pid == server));
        assert_eq!(d.shims_alive(), [server]);
        thread::scope(|scope| {
            for c in &containers {
                scope.spawn(move || {
                    c.end();
                    c.delete().unwrap();
                    assert_eq!(d.events.until(&c.container, "delete"), ["create", "start", "exit", "delete"]);
                });
            }
        });
        containers[0].shut_down();
    }

    fn each_container_of_a_pod_has_its_own_options(d) {
        let runtime = d.fake_runtime();
        let root = d.path("another-root");
        let a = in_pod(d, "a").run();
        let b = in_pod(d, "b").options(|o| {
            (o.binary_name, o.root) = (runtime.path(), root.to_str().unwrap().into());
        });
        let b = b.run();
        assert!(d.runtime_root().join(&d.namespace).join("a").exists());
        assert!(root.join(&d.namespace).join("b").exists());
        let calls = runtime.calls();
        assert_serves(&a);
        assert_eq!(runtime.calls(), calls);
        assert_serves(&b);
        assert!(runtime.calls().len() > calls.len());
        for c in [&a, &b] {
            c.end();
            c.delete().unwrap();
        }
        a.shut_down();
    }

    fn first_container_of_a_pod_is_deleted_first(d) {
        let a = in_pod(d, "a").run();
        let b = in_pod(d, "b").run();
        a.end();
        a.delete().unwrap();
        // The server's log and its working directory were in there.
        remove_bundle(&a);
        assert_serves(&b);
        let c = in_pod(d, "c").run();
        assert_eq!(c.shim_pid, b.shim_pid);
        assert_serves(&c);
        b.pause().unwrap();
        b.resume().unwrap();
        b.kill_all(9).unwrap();
        assert_eq!(b.exit_status(), 137);
        b.delete().unwrap();
        b.assert_gone();
        remove_bundle(&b);
        c.end();
        c.finish();
    }

    fn container_of_a_pod_is_recreated(d) {
        let a = in_pod(d, "a").run();
        for code in [3, 4] {
            let script = format!("exit {code}");
            let b = d.shell("b", &script).group("a").run();
            assert_eq!(b.exit_status(), code);
            b.delete().unwrap();
            b.shutdown().unwrap();
            b.assert_gone();
            remove_bundle(&b);
        }
        let exits = d.events.of("b").iter().filter(|event| event.kind == "exit").count();
        assert_eq!(exits, 2);
        assert_eq!(a.status(), Status::RUNNING);
        a.end();
        a.finish();
    }

    fn exec_ids_are_unique_per_container_not_per_pod(d) {
        let (a, b) = (in_pod(d, "a").run(), in_pod(d, "b").run());
        let (of_a, of_b) = (a.exec("e", &["sleep", "inf"]).unwrap(), b.exec("e", &["sleep", "inf"]).unwrap());
        of_a.start().unwrap();
        of_b.start().unwrap();
        of_a.kill(9).unwrap();
        assert_eq!(of_a.exit_status(), 137);
        assert_eq!(of_b.status(), Status::RUNNING);
        d.events.get("a", "exit e");
        assert!(!d.events.of("b").iter().any(|event| event.kind == "exit"));
    }
}
