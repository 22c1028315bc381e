//! containerd run by an unprivileged user (`ROOTLESS=1 hack/daemon`), and `docs/rootless.md`,
//! whose commands are run as that user.
//!
//! On cgroup v2 the user has a cgroup. On v1 nobody but root can have one: the cases that need
//! cgroups are skipped, and the others run containers without.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::ctr::{Ctr, Events, Naming, users_have_cgroups};
use crate::world;

/// A container that stays until it is killed.
const STAY: &str = "exec sleep 1000";

/// The cases, for one daemon; in the second brackets, those that need cgroups.
macro_rules! cases {
    ($version:literal, [$($module:ident: $($case:ident)*;)*], [$($module_of:ident::$limited:ident)*]) => {
        $($(#[test]
        fn $case() {
            let name = concat!(module_path!(), "::", stringify!($case));
            super::enter($version, name, crate::$module::$case);
        })*)*
        $(#[test]
        fn $limited() {
            let name = concat!(module_path!(), "::", stringify!($limited));
            if super::users_have_cgroups() {
                super::enter($version, name, crate::$module_of::$limited);
            } else {
                println!("SKIPPED: without cgroup v2 a user has no cgroups");
            }
        })*
    };
    ($version:literal) => {
        cases! { $version, [
            cases:
                exit_codes_and_output
                exit_by_signal
                stdin_is_read_to_its_end
                terminal
                exec
                exec_with_a_terminal
                attach
                containerd_restarted
                exit_while_containerd_is_down
                shim_killed
                command_not_found
                id_in_use;
            rootless:
                forced_removal_harms_nobody_else
                without_a_cgroup;
        ], [
            cases::lifecycle
            cases::events_in_order
            rootless::out_of_memory
        ] }

        #[test]
        fn document() {
            let name = concat!(module_path!(), "::document");
            let session = [("ROOTLESS", "session")];
            crate::world::enter_with($version, &session, name, super::document);
        }
    };
}

mod containerd_1_6 {
    cases! { "1.6" }
}
mod containerd_1_7 {
    cases! { "1.7" }
}
mod containerd_2 {
    cases! { "2" }
}

fn enter(version: &str, test: &str, case: fn(&Ctr)) {
    world::enter_with(version, &[("ROOTLESS", "1")], test, || {
        case(&Ctr::new(Naming::Name));
    });
}

pub fn forced_removal_harms_nobody_else(ctr: &Ctr) {
    // It is where containerd is, and its containers without cgroups are.
    let mut bystander = Command::new("sleep")
        .arg("1000")
        .stdout(Stdio::null())
        .spawn()
        .expect("spawn sleep");
    ctr.detached("other", STAY);
    ctr.detached("box", "sleep 1000 & wait");
    ctr.ok("task rm -f box");
    ctr.ok("container delete box");
    ctr.exec("other", "one", "echo fine").expect(0, "fine\n");
    ctr.remove("other");
    let exited = bystander.try_wait().expect("look at sleep");
    assert_eq!(exited, None, "the bystander was killed");
    bystander.kill().expect("kill sleep");
    bystander.wait().expect("reap sleep");
}

pub fn without_a_cgroup(ctr: &Ctr) {
    if users_have_cgroups() {
        println!("SKIPPED: containers have cgroups here");
        return;
    }
    ctr.detached("box", "sleep 1000 & wait");
    let pid = ctr.task("box").expect("a task").0;
    let listed = ctr.ok("task ps box");
    let lines: Vec<&str> = listed.lines().skip(1).collect();
    let [line] = lines[..] else {
        panic!("the init alone was wanted: {listed}");
    };
    assert!(line.starts_with(&pid.to_string()), "{pid} in {line}");
    ctr.call("task metrics box")
        .expect_error("no metrics received");
    ctr.call("task pause box").expect_error("pause");
    assert_eq!(ctr.task("box"), Some((pid, "RUNNING".into())));
    ctr.remove("box");

    // A limit that cannot be set: crun ignores it.
    let limit = ["--rm", "--memory-limit", "33554432"];
    let done = ctr.run(&limit, "box", &["echo", "unlimited"]);
    let is_crun = std::env::var("OCI_RUNTIME").is_ok_and(|runtime| runtime.ends_with("crun"));
    if is_crun {
        done.expect(0, "unlimited\n");
    } else {
        done.expect_error("OCI runtime create failed");
    }
}

pub fn out_of_memory(ctr: &Ctr) {
    let events = Events::subscribe(ctr);
    let script = "head -c 200m /dev/zero | tail -c 200m >/dev/null; exec sleep 1000";
    let limit = ["-d", "--memory-limit", "33554432"];
    let done = ctr.run(&limit, "box", &["sh", "-c", script]);
    assert_eq!(done.code(), 0, "{done:?}");
    assert_eq!(events.tasks_until("oom").join(" "), "create start oom");
    let metrics = ctr.ok("task metrics box");
    let limit = metrics
        .lines()
        .find(|line| line.contains("memory.usage_limit"));
    assert!(
        limit.is_some_and(|line| line.contains("33554432")),
        "{metrics}"
    );
    ctr.remove("box");
}

/// Runs the blocks of the document in one shell, as the user in a session of their own.
fn document() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rootless.md"));
    let text = text.expect("read the document");
    let mut blocks = text.split("```");
    let mut script = "set -eu\n".to_owned();
    let mut expected = Vec::new();
    while let (Some(_), Some(block)) = (blocks.next(), blocks.next()) {
        let (language, lines) = block.split_once('\n').expect("a language");
        match language {
            "sh" => script += lines,
            "text" => expected.extend(lines.lines()),
            other => panic!("a block of language {other:?}"),
        }
    }
    assert!(expected.len() > 1, "the document shows no output");
    let shell = Command::new("bash")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .output()
        .expect("run bash");
    let printed = String::from_utf8_lossy(&shell.stdout);
    assert!(shell.status.success(), "{shell:?}");
    let mut printed_lines = printed.lines();
    for line in expected {
        // Numbers and names of this run differ.
        let is_it = |printed: &str| same_words(line, printed);
        assert!(
            printed_lines.any(is_it),
            "no {line:?}, or too early:\n{printed}"
        );
    }
    // In the user's cgroup, where `world` does not look.
    let namespace = world::namespace();
    let cgroups = format!("/sys/fs/cgroup/{namespace}-user/{namespace}");
    let mut left = world::names(&cgroups);
    left.retain(|name| Path::new(&cgroups).join(name).is_dir());
    assert!(left.is_empty(), "cgroups of containers: {left:?}");
}

/// Whether `printed` has the words of `shown`, of which `…` stands for any.
fn same_words(shown: &str, printed: &str) -> bool {
    let shown: Vec<&str> = shown.split_whitespace().collect();
    let printed: Vec<&str> = printed.split_whitespace().collect();
    shown.len() == printed.len()
        && shown
            .iter()
            .zip(&printed)
            .all(|(shown, word)| *shown == "…" || shown == word)
}
