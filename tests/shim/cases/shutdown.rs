//! Shutdown: nothing while there is a container, or one in the making; else nobody
//! new is taken any more, and all that was under way is seen to.

use containerd_shim_rs_v2::proto::types::Status;
use containerd_shim_rs_v2::proto::{Empty, task::ShutdownRequest};

use crate::harness::runtime::At;
use crate::harness::*;

cases! {
    fn shutdown_is_not_urged(d) {
        let c = d.running("c");
        for id in ["c", "", "unknown"] {
            let request = ShutdownRequest { id: id.into(), now: true, ..Default::default() };
            c.call::<Empty>("Shutdown", &request).unwrap();
        }
        assert_eq!(c.status(), Status::RUNNING);
        c.end();
        c.finish();
    }

    fn nobody_is_taken_once_shutdown_is_answered(d) {
        for round in 0..20 {
            let c = d.container(&format!("c{round}"), &["true"]).shim();
            c.shutdown().unwrap();
            assert!(wire::dial(&c.started.address).is_err(), "round {round}: a server that ends took a client");
            assert_eq!(c.shim_exit(), 0);
        }
    }

    fn start_right_after_shutdown_finds_a_server_that_stays(d) {
        let c = d.container("c", &["sleep", "inf"]).shim();
        for _ in 0..10 {
            let last = d.answer(Dialect::Legacy, &d.start(Dialect::Legacy, "c", &c.bundle, None));
            let connection = wire::Connection::open(&last.address, d.patience).unwrap();
            c.over(&connection).shutdown().unwrap();
            let next = d.answer(Dialect::Legacy, &d.start(Dialect::Legacy, "c", &c.bundle, None));
            assert_eq!(next.address, last.address);
            let next = c.over(&wire::Connection::open(&next.address, d.patience).unwrap());
            next.connect().unwrap();
        }
    }

    fn shutdown_waits_for_a_container_that_another_client_makes(d) {
        let runtime = d.fake_runtime();
        let a = d.container("a", &["true"]).group("pod").run();
        let b = d.container("b", &["sleep", "inf"]).group("pod").options(|o| o.binary_name = runtime.path()).shim();
        a.exit_status();
        a.delete().unwrap();
        let mut held = runtime.hold("create", At::Before);
        let create = b.create_pending();
        held.reached();
        let shutdown: wire::Pending<Empty> = a.send("Shutdown", &ShutdownRequest { id: "a".into(), ..Default::default() });
        held.release();
        create.wait().unwrap();
        shutdown.wait().unwrap();
        b.start().unwrap();
        assert_eq!(b.status(), Status::RUNNING);
        b.end();
        b.finish();
    }

    fn shutdown_by_the_client_that_gave_up_on_its_container(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["true"]).options(|o| o.binary_name = runtime.path()).shim();
        let mut held = runtime.hold("create", At::Before);
        let other = c.reconnect();
        let _create: wire::Pending<Empty> = c.over(&other).send("Create", &c.create_request());
        held.reached();
        other.close();
        c.shutdown().unwrap();
        // The server need not outlive the runtime, but ends.
        held.release();
        assert_eq!(c.shim_exit(), 0);
        d.delete("c");
        c.assert_gone();
    }

    fn waits_are_answered_before_the_shim_ends(d) {
        let c = d.container("c", &["true"]).run();
        let other = c.reconnect();
        let waits: Vec<_> = (0..50).map(|_| c.over(&other).wait_pending()).collect();
        c.exit_status();
        c.delete().unwrap();
        c.shutdown().unwrap();
        for wait in waits {
            assert_eq!(wait.wait().unwrap().exit_status, 0);
        }
        assert_eq!(c.shim_exit(), 0);
    }
}
