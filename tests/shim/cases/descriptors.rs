//! Descriptors: whatever came and went, the server has as many as before.

use super::stdio::{both, logger};
use crate::harness::container::Container;
use crate::harness::*;

/// Stdio of one kind for the process `name`, and what the client has to keep open.
type Kind = fn(&Daemon, &str) -> (Stdio, Option<container::Fifos>);

fn fifos(d: &Daemon, name: &str) -> (Stdio, Option<container::Fifos>) {
    let fifos = d.fifos(name);
    (fifos.stdio.clone(), Some(fifos))
}

fn terminal(d: &Daemon, name: &str) -> (Stdio, Option<container::Fifos>) {
    let fifos = d.terminal(name);
    (fifos.stdio.clone(), Some(fifos))
}

fn file(d: &Daemon, name: &str) -> (Stdio, Option<container::Fifos>) {
    (both(&format!("file://{}", d.path(name).display())), None)
}

fn program(d: &Daemon, name: &str) -> (Stdio, Option<container::Fifos>) {
    let script = "exec 5>&-\nexec /bin/cat <&3 >/dev/null";
    (both(&format!("binary://{}", logger(d, name, script))), None)
}

/// Lets a container and an exec of it run and go, and fail to start.
fn come_and_go(d: &Daemon, kind: Kind, round: u32) {
    let name = |what: &str| format!("{what}{round}");
    let (stdio, _open) = kind(d, &name("c"));
    let c = d
        .shell(&name("c"), "echo up; exec sleep inf")
        .group("pod")
        .stdio(stdio)
        .run();
    for (what, args, starts) in [
        ("e", ["echo", "out"], true),
        ("f", ["no-such-program", ""], false),
    ] {
        let (stdio, _open) = kind(d, &name(what));
        let e = c.exec_with(what, &args, &stdio).unwrap();
        assert_eq!(e.start().is_ok(), starts);
        if starts {
            assert_eq!(e.exit_status(), 0);
        }
        e.delete().unwrap();
    }
    c.end();
    c.delete().unwrap();
    let (stdio, _open) = kind(d, &name("n"));
    let failing = d.container(&name("n"), &["no-such-program"]).group("pod");
    assert!(failing.stdio(stdio).shim().create().is_err());
}

/// After any number of them there is nothing that was not there after the first.
fn assert_none_is_left(d: &Daemon, kind: Kind) {
    let keep = d.container("keep", &["sleep", "inf"]).group("pod").run();
    let before = keep.footprint().0.len();
    for round in 0..3 {
        come_and_go(d, kind, round);
    }
    assert_settled(d, &keep, before);
}

#[track_caller]
fn assert_settled(d: &Daemon, keep: &Container, before: usize) {
    // The containers' clients close their connections, the shim sees to it in time.
    d.eventually("as many descriptors as before", || {
        keep.footprint().0.len() <= before
    });
}

cases! {
    fn fifos_leave_no_descriptor(d) {
        assert_none_is_left(d, fifos);
    }

    fn terminals_leave_no_descriptor(d) {
        assert_none_is_left(d, terminal);
    }

    fn files_leave_no_descriptor(d) {
        assert_none_is_left(d, file);
    }

    fn loggers_leave_no_descriptor(d) {
        assert_none_is_left(d, program);
    }

    fn statistics_leave_no_descriptor(d) {
        let c = d.running("c");
        let before = c.footprint().0.len();
        (0..10).for_each(|_| drop(c.stats().unwrap()));
        assert_settled(d, &c, before);
    }

    fn execs_that_are_never_deleted_leave_no_descriptor(d) {
        let keep = d.container("keep", &["sleep", "inf"]).group("pod").run();
        let before = keep.footprint().0.len();
        let c = d.container("c", &["sleep", "inf"]).group("pod").run();
        let clients = [("gone", "exit 3", fifos as Kind), ("there", "exec sleep inf", fifos), ("tty", "exec sleep inf", terminal), ("new", "", fifos)];
        let _clients = clients.map(|(id, script, kind)| {
            let (stdio, open) = kind(d, id);
            let e = c.exec_with(id, &["sh", "-c", script], &stdio).unwrap();
            if !script.is_empty() {
                e.start().unwrap();
            }
            if id == "gone" {
                assert_eq!(e.exit_status(), 3);
            }
            open
        });
        c.end();
        c.delete().unwrap();
        drop(c);
        assert_settled(d, &keep, before);
    }
}
