//! Memory: what an idle server gives back.

use crate::harness::container::Container;

/// A field of `/proc/PID/status` of the server, in kB.
fn kilobytes(c: &Container, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", c.shim_pid)).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

cases! {
    fn idle_server_releases_memory(d) {
        let c = d.running("c");
        // A server that rested between Create and Start rests again 30 s later at the earliest.
        d.eventually_within(4 * d.hang_timeout, "a quarter less resident than at most", || {
            kilobytes(&c, "VmRSS:") < kilobytes(&c, "VmHWM:") / 4 * 3
        });
        // What was given back is there when it is needed.
        let exec = c.exec("e", &["true"]).unwrap();
        exec.start().unwrap();
        assert_eq!(exec.exit_status(), 0);
        c.end();
        c.delete().unwrap();
    }
}
