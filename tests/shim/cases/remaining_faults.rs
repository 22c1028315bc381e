//! Faults of the machine, of clients and of programs that must neither hang the server nor
//! leave anything behind.

use std::process::Command;
use std::time::Duration;

use containerd_shim_rs_v2::proto::task;

use super::stdio::both;
use crate::harness::wire::Pending;
use crate::harness::*;

/// Sets the soft limit of the process's open files.
fn limit_descriptors(pid: i32, soft: &str) {
    let mut command = Command::new("prlimit");
    command.args(["--pid", &pid.to_string(), &format!("--nofile={soft}:")]);
    let output = process::run(&mut command, b"", Duration::from_secs(30));
    assert_eq!(output.stderr_text(), "");
}

cases! {
    fn start_that_waits_for_a_reader_ends_though_descriptors_are_used_up(d) {
        let c = d.running("c");
        let fifo = d.fifo("unread");
        let e = c.exec_with("e", &["true"], &both(&fifo)).unwrap();
        let is_open = || c.footprint().0.contains(&fifo);
        let threads = c.footprint().1;
        let request = task::StartRequest { id: "c".into(), exec_id: "e".into(), ..Default::default() };
        let start: Pending<task::StartResponse> =
            c.connection.send(c.api.service(), "Start", &request, Duration::from_secs(2));
        d.eventually("the FIFO to be looked at", is_open);
        limit_descriptors(c.shim_pid, "3");
        start.wait().unwrap_err();
        d.eventually("the FIFO to be left alone", || !is_open());
        d.eventually("no thread that waits for a reader", || c.footprint().1 <= threads);
        limit_descriptors(c.shim_pid, "1024");
        e.delete().unwrap();
        c.end();
        c.finish();
    }
}
