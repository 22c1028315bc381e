//! `ps` and `inspect`: what an operator sees of the servers of this machine.

use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::process::{self, Output};
use crate::harness::*;

fn typed(d: &Daemon, args: &[&str]) -> Output {
    let mut command = Command::new(shim_binary());
    process::run(command.args(args), &[], d.hang_timeout)
}

/// The servers of this test among those that `args` print as JSON.
#[track_caller]
fn servers(d: &Daemon, args: &[&str]) -> Vec<Value> {
    servers_of(d, &typed(d, args))
}

#[track_caller]
fn servers_of(d: &Daemon, output: &Output) -> Vec<Value> {
    assert_eq!(output.status, 0, "{output:?}");
    let servers: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let is_ours = |server: &Value| server["namespace"] == d.namespace.as_str();
    servers.into_iter().filter(is_ours).collect()
}

cases! {
    fn ps_lists_servers_and_what_they_have(d) {
        let c = d.running("c");
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let exec_pid = e.start().unwrap();
        let waiting = c.wait_pending();
        c.state().unwrap();
        let found = servers(d, &["ps", "--json"]);
        let [server] = &found[..] else { panic!("{found:?}") };
        assert_eq!(server["pid"], c.shim_pid);
        assert_eq!(server["id"], "c");
        assert_eq!(server["containerd"], d.grpc_address());
        assert_eq!(server["error"], Value::Null);
        let report = &server["report"];
        assert_eq!((&report["requests"], &report["waiting"]), (&0.into(), &1.into()), "{server}");
        let container = &report["containers"][0];
        assert_eq!(container["id"], "c");
        assert_eq!(container["state"], "running");
        assert_eq!(container["pid"], c.state().unwrap().pid);
        assert_eq!(container["execs"][0]["pid"], exec_pid);

        let table = typed(d, &["ps"]).stdout_text();
        let line = table.lines().find(|line| line.contains(&d.namespace)).expect("a line");
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[..3], [&c.shim_pid.to_string(), &d.namespace, "c"], "{table}");
        assert_eq!(words[4], "1", "{table}");
        c.end();
        assert_eq!(waiting.wait().unwrap().exit_status, 137);
        c.finish();
    }

    fn ps_asks_a_server_whose_socket_is_in_another_mount_namespace(d) {
        let c = d.running("c");
        // As a rootless containerd's: it has a /run of its own.
        let script = "mount -t tmpfs tmpfs \"$1\" && exec \"$2\" ps --json";
        let dir = c.socket().parent().expect("a directory");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(dir).arg(shim_binary());
        let output = process::run(&mut command, &[], d.hang_timeout);
        let found = servers_of(d, &output);
        assert_eq!(found[0]["pid"], c.shim_pid);
        assert_eq!(found[0]["error"], Value::Null);
        assert_eq!(found[0]["report"]["containers"][0]["id"], "c");
        c.end();
        c.finish();
    }

    fn ps_does_not_wait_for_a_server_that_hangs(d) {
        let c = d.running("c");
        process::signal(c.shim_pid, Signal::SIGSTOP);
        let found = servers(d, &["ps", "--json"]);
        process::signal(c.shim_pid, Signal::SIGCONT);
        assert_eq!(found[0]["pid"], c.shim_pid);
        assert_eq!(found[0]["report"], Value::Null);
        assert_eq!(found[0]["error"], "no answer within 2 s");
        c.end();
        c.finish();
    }

    fn inspect_finds_the_server_of_a_pods_container(d) {
        let a = d.container("a", &["sleep", "inf"]).group("a").run();
        let b = d.container("b-of-inspect", &["sleep", "inf"]).group("a").run();
        let found = servers(d, &["inspect", "b-of-inspect"]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0]["id"], "a");
        assert_eq!(found[0]["report"]["containers"][1]["id"], "b-of-inspect");
        for c in [b, a] {
            c.end();
            c.delete().unwrap();
        }
    }

    fn inspect_of_an_unknown_container_is_an_error(d) {
        let output = typed(d, &["inspect", "no-such-container"]);
        assert_eq!(output.status, 1, "{output:?}");
        assert_eq!(output.stdout_text(), "");
        assert!(output.stderr_text().contains("inspect no-such-container: no running shim has this container"), "{output:?}");
    }
}
