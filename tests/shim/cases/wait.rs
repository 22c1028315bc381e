//! Wait: by many, early and late, with a deadline, and by clients that leave.

use std::time::Duration;

use containerd_shim_rs_v2::proto::task;
use containerd_shim_rs_v2::proto::types::Status;

use crate::harness::*;

cases! {
    fn wait_answers_before_and_after_the_exit(d) {
        let c = d.running("c");
        let connections: Vec<_> = (0..5).map(|_| c.reconnect()).collect();
        let early: Vec<_> = connections.iter().map(|other| c.over(other).wait_pending()).collect();
        let gone = c.over(&c.reconnect()).wait_pending();
        drop(gone);
        c.end();
        for wait in early {
            assert_eq!(wait.wait().unwrap().exit_status, 137);
        }
        for other in &connections {
            assert_eq!(c.over(other).exit_status(), 137);
        }
        c.finish();
    }

    fn wait_is_answered_with_an_immediate_delete(d) {
        let c = d.running("c");
        let other = c.reconnect();
        let waits: Vec<_> = (0..20).map(|_| c.over(&other).wait_pending()).collect();
        c.kill(9).unwrap();
        d.events.get("c", "exit");
        c.delete().unwrap();
        for wait in waits {
            assert_eq!(wait.wait().unwrap().exit_status, 137);
        }
        c.shut_down();
    }

    fn wait_ends_at_its_deadline(d) {
        let c = d.running("c");
        let wait = c.wait_within(Duration::from_millis(100));
        wait.wait().refused(Code::DEADLINE_EXCEEDED, "");
        let wait = c.wait_pending();
        c.end();
        assert_eq!(wait.wait().unwrap().exit_status, 137);
    }

    fn wait_for_a_client_that_left(d) {
        let c = d.running("c");
        for _ in 0..20 {
            let other = c.reconnect();
            let _waiting: rpc::Pending<task::WaitResponse> = c.over(&other).wait_pending();
            other.close();
        }
        assert_eq!(c.status(), Status::RUNNING);
        c.end();
        c.finish();
    }

    fn requests_do_not_queue_behind_each_other(d) {
        let c = d.running("c");
        let waits: Vec<_> = (0..10).map(|_| c.wait_pending()).collect();
        assert_eq!(c.status(), Status::RUNNING);
        assert!(waits.iter().all(|wait| !wait.answered()));
        c.end();
        for wait in waits {
            wait.wait().unwrap();
        }
    }

    fn wait_for_an_exec(d) {
        let c = d.running("c");
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let other = c.reconnect();
        let early: Vec<_> = (0..5).map(|_| e.over(&other).wait_pending()).collect();
        e.start().unwrap();
        let gone = c.reconnect();
        let _gone = e.over(&gone).wait_pending();
        gone.close();
        let late = e.wait_pending();
        assert!(!late.answered());
        e.kill(9).unwrap();
        let first = late.wait().unwrap();
        assert_eq!(first.exit_status, 137);
        for wait in early {
            assert_eq!(wait.wait().unwrap(), first);
        }
        assert_eq!(e.wait().unwrap(), first);
    }

    fn wait_for_an_exec_that_is_deleted(d) {
        let c = d.running("c");
        let e = c.exec("e", &["true"]).unwrap();
        let other = c.reconnect();
        let waits: Vec<_> = (0..20).map(|_| e.over(&other).wait_pending()).collect();
        e.start().unwrap();
        d.events.get("c", "exit e");
        e.delete().unwrap();
        for wait in waits {
            assert_eq!(wait.wait().unwrap().exit_status, 0);
        }
    }
}
