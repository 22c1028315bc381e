//! Events while containerd is away: none is lost, and their order is kept.

use crate::harness::container::Container;
use crate::harness::events::Behaviour;
use crate::harness::*;

/// Runs exec `id` to its end: three events.
#[track_caller]
fn run_exec(c: &Container, id: &str) {
    let e = c.exec(id, &["true"]).unwrap();
    e.start().unwrap();
    assert_eq!(e.exit_status(), 0);
    e.delete().unwrap();
}

/// The events of execs `e0`, `e1`, … in their one possible order.
fn of_execs(count: usize) -> Vec<String> {
    let three = |n| {
        [
            format!("exec-added e{n}"),
            format!("exec-started e{n}"),
            format!("exit e{n}"),
        ]
    };
    (0..count).flat_map(three).collect()
}

#[track_caller]
fn assert_complete(d: &Daemon, execs: usize) {
    let mut expected = vec!["create".to_string(), "start".into()];
    expected.extend(of_execs(execs));
    expected.extend(["exit".into(), "delete".into()]);
    // In order, so that the last is there when all are.
    d.events.wait_for("delete", |events| {
        events.iter().find(|e| e.kind == "delete").cloned()
    });
    let mut events: Vec<String> = d.events.of("c").iter().map(events::Event::short).collect();
    // An event is sent again when the connection ended before its answer.
    events.dedup();
    assert_eq!(events, expected);
}

cases! {
    fn containerd_restarts(d) {
        let c = d.running("c");
        d.events.get("c", "start");
        d.events.stop();
        run_exec(&c, "e0");
        d.events.restart();
        run_exec(&c, "e1");
        c.end();
        c.delete().unwrap();
        assert_complete(d, 2);
        c.shut_down();
    }

    fn containerd_restarts_while_the_shim_is_idle(d) {
        let c = d.running("c");
        d.events.get("c", "start");
        d.events.stop();
        d.events.restart();
        run_exec(&c, "e0");
        c.end();
        c.delete().unwrap();
        assert_complete(d, 1);
        c.shut_down();
    }

    fn containerd_is_down_for_long(d) {
        let c = d.running("c");
        d.events.get("c", "start");
        d.events.stop();
        // More than any buffer of a few dozen holds.
        for n in 0..60 {
            run_exec(&c, &format!("e{n}"));
        }
        c.end();
        c.delete().unwrap();
        d.events.restart();
        assert_complete(d, 60);
        c.shut_down();
    }

    fn containerd_hangs_and_restarts(d) {
        let c = d.running("c");
        d.events.get("c", "start");
        d.events.set_behaviour(Behaviour::Hang);
        run_exec(&c, "e0");
        d.events.wait_attempts(3);
        assert_eq!(c.pids().unwrap().len(), 1);
        d.events.stop();
        d.events.set_behaviour(Behaviour::Take);
        d.events.restart();
        c.end();
        c.delete().unwrap();
        assert_complete(d, 1);
        c.shut_down();
    }

    fn containerd_refuses_for_a_while(d) {
        let c = d.running("c");
        d.events.get("c", "start");
        d.events.set_behaviour(Behaviour::Refuse);
        run_exec(&c, "e0");
        d.events.wait_attempts(3);
        d.events.set_behaviour(Behaviour::Take);
        c.end();
        c.delete().unwrap();
        assert_complete(d, 1);
        c.shut_down();
    }

    fn containerd_is_down_when_the_shim_starts(d) {
        let bundle = d.container("c", &["true"]).bundle();
        d.events.stop();
        let output = d.start(Dialect::Legacy, "c", &bundle, None);
        let started = d.answer(Dialect::Legacy, &output);
        d.events.restart();
        let connection = rpc::Connection::open(&started.address, d.hang_timeout).unwrap();
        let api = d.api;
        let init = task::Process { connection, api, container: "c".into(), exec: String::new() };
        init.connect().unwrap();
    }
}
