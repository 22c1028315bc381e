//! Times: that of an exit is when it was reaped, that of an event when it was made,
//! however long either is held back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_shim_rs_v2::proto::Timestamp;
use nix::sys::signal::Signal;

use crate::harness::runtime::At;
use crate::harness::*;

fn time(timestamp: &Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::new(timestamp.seconds as u64, timestamp.nanos as u32)
}

cases! {
    fn delayed_exit_has_the_time_of_its_reaping(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        let init = c.state().unwrap().pid as i32;
        let e = c.exec("e", &["true"]).unwrap();
        let mut held = runtime.hold("exec", At::Before);
        let start = e.start_pending();
        held.reached();
        let wait = c.wait_pending();
        let before = SystemTime::now();
        process::signal(init, Signal::SIGKILL);
        d.eventually("init reaped", || !process::alive(init));
        let reaped = SystemTime::now();
        assert!(!wait.answered());
        held.release();
        assert!(start.wait().is_err());
        let exited_at = time(&wait.wait().unwrap().exited_at);
        assert!(before <= exited_at && exited_at <= reaped, "{exited_at:?}, reaped {reaped:?}");
        let event = d.events.get("c", "exit");
        assert_eq!(time(&event.exited_at.unwrap()), exited_at);
        assert!(time(&event.published_at) >= reaped, "the event is made when it may be told");
        c.finish();
    }

    fn delayed_event_has_the_time_of_its_creation(d) {
        let c = d.running("c");
        d.events.get("c", "start");
        d.events.stop();
        let e = c.exec("e", &["true"]).unwrap();
        e.start().unwrap();
        e.exit_status();
        let made = SystemTime::now();
        d.events.restart();
        for event in ["exec-added e", "exec-started e", "exit e"] {
            let event = d.events.get("c", event);
            assert!(time(&event.published_at) <= made, "{} at {:?}", event.kind, event.published_at);
        }
        let exit = d.events.get("c", "exit e");
        assert!(time(exit.exited_at.as_ref().unwrap()) <= time(&exit.published_at));
    }
}
