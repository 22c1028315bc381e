//! Kill: whom a signal reaches, above all where the pid namespace is shared; and what
//! is answered when it reaches nobody.

use containerd_shim_rs_v2::proto::types::Status;
use serde_json::json;

use crate::harness::container::{Builder, Container};
use crate::harness::task::Process;
use crate::harness::*;

/// Leaves its session and its parent: an orphan that only the cgroup still ties to the container.
const WITH_ORPHAN: &str = "setsid sleep inf & echo up; exec sleep inf";

/// Runs `builder`'s container until it says that it is up.
#[track_caller]
fn up<'d>(d: &'d Daemon, builder: Builder<'d>, id: &str) -> Container<'d> {
    let fifos = d.fifos(id);
    let c = builder.stdio(fifos.stdio).run();
    fifos.stdout.wait_for("up");
    c
}

#[track_caller]
fn sleeping_exec(c: &Container, id: &str) -> Process {
    let e = c.exec(id, &["sleep", "inf"]).unwrap();
    e.start().unwrap();
    e
}

cases! {
    fn kill_all_of_a_private_pid_namespace(d) {
        let c = up(d, d.shell("c", WITH_ORPHAN), "c");
        let e = sleeping_exec(&c, "e");
        c.kill_all(9).unwrap();
        assert_eq!((e.exit_status(), c.exit_status()), (137, 137));
        let events = d.events.until("c", "exit");
        assert_eq!(events[events.len() - 2..], ["exit e", "exit"]);
        c.finish();
    }

    fn kill_all_of_a_shared_pid_namespace(d) {
        let c = up(d, d.shell("c", WITH_ORPHAN).host_pids(), "c");
        let e = sleeping_exec(&c, "e");
        let pids: Vec<u32> = c.pids().unwrap().iter().map(|info| info.pid).collect();
        assert_eq!(pids.len(), 3);
        c.kill_all(9).unwrap();
        assert_eq!((e.exit_status(), c.exit_status()), (137, 137));
        for pid in pids {
            d.eventually("every process gone", || !process::alive(pid as i32));
        }
        c.finish();
    }

    fn kill_all_of_a_created_container(d) {
        let c = d.container("c", &["sleep", "inf"]).created();
        c.kill_all(9).unwrap();
        assert_eq!(c.exit_status(), 137);
        assert_eq!(c.status(), Status::STOPPED);
        assert_eq!(d.events.until("c", "exit"), ["create", "exit"]);
        c.finish();
    }

    fn kill_all_of_a_stopped_container(d) {
        let c = d.container("c", &["true"]).run();
        c.exit_status();
        c.kill_all(9).refused(Code::NOT_FOUND, "process already finished: not found");
        c.finish();
    }

    fn kill_of_a_created_container(d) {
        let c = d.container("c", &["sleep", "inf"]).created();
        c.kill(9).unwrap();
        assert_eq!(c.exit_status(), 137);
        c.start().refused(Code::UNKNOWN, "cannot start a stopped process");
        assert_eq!(d.events.until("c", "exit"), ["create", "exit"]);
        c.finish();
    }

    fn exit_of_an_init_in_a_shared_pid_namespace(d) {
        let a = d.container("a", &["sleep", "inf"]).group("pod").run();
        let path = format!("/proc/{}/ns/pid", a.state().unwrap().pid);
        let b = d.shell("b", WITH_ORPHAN).group("pod").spec(|spec| {
            spec["linux"]["namespaces"] = json!([{"type": "pid", "path": path}, {"type": "mount"}]);
        });
        let b = up(d, b, "b");
        let e = sleeping_exec(&b, "e");
        assert_eq!(b.pids().unwrap().len(), 3);
        b.kill(9).unwrap();
        // Its exec and its orphan go with it, and nobody else.
        assert_eq!((b.exit_status(), e.exit_status()), (137, 137));
        assert_eq!(d.events.until("b", "exit").last().unwrap(), "exit");
        b.delete().unwrap();
        b.assert_gone();
        assert_eq!(a.status(), Status::RUNNING);
        assert_eq!(a.pids().unwrap().len(), 1);
        a.end();
        a.finish();
    }

    fn signal_that_a_process_handles(d) {
        let fifos = d.fifos("c");
        let c = d.shell("c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done").stdio(fifos.stdio).run();
        fifos.stdout.wait_for("up");
        c.kill(15).unwrap();
        assert_eq!(c.exit_status(), 5);
        c.finish();
    }

    fn kill_of_a_container_that_the_runtime_lost(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        for (words, code, text) in [
            ("container not running", Code::NOT_FOUND, "process already finished: not found"),
            ("container c does not exist", Code::NOT_FOUND, "no such container: not found"),
            ("the moon is full", Code::UNKNOWN, "unknown error after kill: "),
        ] {
            runtime.fail("kill", words);
            c.kill_all(15).refused(code, text);
        }
        runtime.stop_failing("kill");
        assert_eq!(c.status(), Status::RUNNING);
        c.end();
        c.finish();
    }

    fn exit_is_published_if_other_processes_cannot_be_killed(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).host_pids().options(|o| o.binary_name = runtime.path()).run();
        runtime.fail("kill", "the moon is full");
        process::signal(c.state().unwrap().pid as i32, nix::sys::signal::Signal::SIGKILL);
        assert_eq!(c.exit_status(), 137);
        d.events.get("c", "exit");
        runtime.stop_failing("kill");
        c.finish();
    }
}
