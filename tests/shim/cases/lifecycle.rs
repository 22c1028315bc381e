//! The life of a container, from `start` to nothing left.

use crate::harness::*;

cases! {
    fn exit_code_is_reported(d) {
        let c = d.shell("c", "exit 7").run();
        assert_eq!(c.exit_status(), 7);
        assert_eq!(d.events.until("c", "exit"), ["create", "start", "exit"]);
        c.finish();
        assert_eq!(d.events.until("c", "delete"), ["create", "start", "exit", "delete"]);
    }
}
