//! Shutdown: nothing while there is a container, or one in the making; else nobody
//! new is taken any more, and all that was under way is seen to.

use containerd_shim_rs_v2::proto::types::Status;
use containerd_shim_rs_v2::proto::{Empty, task::ShutdownRequest};

use crate::harness::runtime::At;
use crate::harness::*;

cases! {
    fn shutdown_without_now_flag(d) {
        let c = d.running("c");
        for id in ["c", "", "unknown"] {
            let request = ShutdownRequest { id: id.into(), now: true, ..Default::default() };
            c.call::<Empty>("Shutdown", &request).unwrap();
        }
        assert_eq!(c.status(), Status::RUNNING);
        c.end();
        c.finish();
    }

    fn no_connection_is_accepted_after_shutdown(d) {
        for round in 0..20 {
            let c = d.container(&format!("c{round}"), &["true"]).shim();
            c.shutdown().unwrap();
            assert!(rpc::dial(&c.started.address).is_err(), "round {round}: a server that ends took a client");
            assert_eq!(c.shim_exit(), 0);
        }
    }

    fn start_right_after_shutdown_starts_a_new_server(d) {
        let c = d.container("c", &["sleep", "inf"]).shim();
        for _ in 0..10 {
            let last = d.answer(Dialect::Legacy, &d.start(Dialect::Legacy, "c", &c.bundle, None));
            let connection = rpc::Connection::open(&last.address, d.hang_timeout).unwrap();
            c.over(&connection).shutdown().unwrap();
            let next = d.answer(Dialect::Legacy, &d.start(Dialect::Legacy, "c", &c.bundle, None));
            assert_eq!(next.address, last.address);
            let next = c.over(&rpc::Connection::open(&next.address, d.hang_timeout).unwrap());
            next.connect().unwrap();
        }
    }

    fn shutdown_keeps_a_container_that_another_client_creates(d) {
        let runtime = d.fake_runtime();
        let a = d.container("a", &["true"]).group("pod").run();
        let b = d.container("b", &["sleep", "inf"]).group("pod").options(|o| o.binary_name = runtime.path()).shim();
        a.exit_status();
        a.delete().unwrap();
        let mut held = runtime.hold("create", At::Before);
        let create = b.create_pending();
        held.reached();
        let shutdown: rpc::Pending<Empty> = a.send("Shutdown", &ShutdownRequest { id: "a".into(), ..Default::default() });
        held.release();
        create.wait().unwrap();
        shutdown.wait().unwrap();
        b.start().unwrap();
        assert_eq!(b.status(), Status::RUNNING);
        b.end();
        b.finish();
    }

    fn shutdown_cancels_the_clients_own_create(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["true"]).options(|o| o.binary_name = runtime.path()).shim();
        let mut held = runtime.hold("create", At::Before);
        let other = c.reconnect();
        let _create: rpc::Pending<Empty> = c.over(&other).send("Create", &c.create_request());
        held.reached();
        other.close();
        c.shutdown().unwrap();
        // The server need not outlive the runtime, but ends.
        held.release();
        assert_eq!(c.shim_exit(), 0);
        d.delete("c");
        c.assert_gone();
    }

    fn waits_are_answered_before_the_shim_exits(d) {
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
