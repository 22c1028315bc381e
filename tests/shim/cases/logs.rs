//! What the server writes to its log FIFO: which container a line is about, and with which
//! path.

use super::stdio::both;
use crate::harness::*;

/// The line of the log of server `server` that has all of `parts`.
fn line_with(d: &Daemon, server: &str, parts: &[&str]) -> String {
    let found = || {
        let log = d.log_of(server);
        let has_all = |line: &&str| parts.iter().all(|part| line.contains(part));
        log.lines().find(has_all).map(str::to_owned)
    };
    d.eventually(&format!("a line with {parts:?}"), || found().is_some());
    found().unwrap()
}

fn ends_with_ids(d: &Daemon, line: &str, id: &str) {
    let ids = format!(" id={id} namespace={}", d.namespace);
    assert!(line.ends_with(&ids), "{line}");
}

cases! {
    fn log_has_the_exit_of_each_container_of_a_pod(d) {
        let a = d.container("a", &["sleep", "inf"]).group("a").run();
        let b = d.container("b", &["sh", "-c", "exit 3"]).group("a").run();
        assert_eq!(b.exit_status(), 3);
        let line = line_with(d, "a", &["container exited", " exit_status=3 ", " after="]);
        ends_with_ids(d, &line, "b");
        assert!(!line.contains("signal="), "{line}");
        b.delete().unwrap();
        a.end();
        let line = line_with(d, "a", &["container exited", " exit_status=137 signal=SIGKILL "]);
        ends_with_ids(d, &line, "a");
        a.finish();
        for (id, what) in [("a", "created"), ("b", "created"), ("a", "started"), ("b", "started"), ("a", "deleted"), ("b", "deleted")] {
            let line = line_with(d, "a", &[&format!("\"container {what}\""), &format!(" id={id} ")]);
            ends_with_ids(d, &line, id);
        }
    }

    fn dropped_output_is_logged_with_container_and_path(d) {
        let a = d.container("a", &["sleep", "inf"]).group("a").run();
        let b = d.container("b", &["echo", "text"]).group("a").stdio(both("file:///dev/full")).run();
        assert_eq!(b.exit_status(), 0);
        for what in ["No space left on device", "5 bytes were dropped"] {
            let line = line_with(d, "a", &["level=warning", "write stdout /dev/full: ", what]);
            ends_with_ids(d, &line, "b");
        }
        b.delete().unwrap();
        a.end();
        a.finish();
    }
}
