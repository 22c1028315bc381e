//! The documents are true for those who use `ctr`: their commands are run, and the errors that
//! docs/troubleshooting.md quotes from others are produced.

use std::fs;
use std::process::Command;

use crate::ctr::Ctr;
use crate::{cases, machine, markdown, world};

const README: &str = "README.md";

pub fn containers_of_the_readme(ctr: &Ctr) {
    machine::prepare();
    ctr.ok("image tag localhost/busybox:latest docker.io/library/busybox:latest");
    let printed = machine::run(&markdown::block(README, "ctr run --rm --runtime io.").text);
    assert_eq!(printed, "hello\nhello\n");
}

pub fn servers_of_the_readme(ctr: &Ctr) {
    machine::prepare();
    ctr.detached("box", "exec sleep 1000");
    let pid = world::shims()[0];
    for line in markdown::block(README, "containerd-shim-rs-v2 ps")
        .text
        .lines()
    {
        let printed = machine::run(&line.replace("ID", "box"));
        let words: Vec<_> = line.split_whitespace().skip(1).collect();
        match words[..] {
            ["ps", "--json", ..] | ["inspect", "ID", ..] => {
                let answer: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
                assert_eq!(answer[0]["pid"], pid);
                assert_eq!(answer[0]["report"]["containers"][0]["id"], "box");
            }
            ["ps", ..] => {
                let row = format!("{pid} ");
                let is_there = printed.lines().any(|line| line.starts_with(&row));
                assert!(is_there, "{printed}");
            }
            _ => panic!("what is to be seen of {line:?}?"),
        }
    }
    ctr.remove("box");
}

/// Its exit status is that of the machine, which may lack something.
pub fn machine_is_checked_as_the_documents_say(_: &Ctr) {
    machine::prepare();
    for document in [README, "docs/install.md"] {
        let block = markdown::block(document, "containerd-shim-rs-v2 check");
        let done = machine::try_run(&block.text);
        let printed = String::from_utf8_lossy(&done.stdout);
        let ours = format!("{}, this shim", machine::OURS);
        assert!(printed.contains(&ours), "{document}: {done:?}");
        let is_bad = printed.contains("mend:");
        assert_eq!(done.status.code(), Some(i32::from(is_bad)), "{done:?}");
    }
}

/// What containerd, `ctr` and runc say if they are told something wrong.
pub fn errors_of_others(ctr: &Ctr) {
    let run = |options: &[&str]| {
        let done = ctr.run(&[&["--rm"], options].concat(), "box", &["true"]);
        ctr.call("container delete box");
        done
    };
    // The last --runtime counts.
    run(&["--runtime", "io.containerd.none.v2"]).expect_error(
        "runtime \"io.containerd.none.v2\" binary not installed \"containerd-shim-none-v2\"",
    );
    run(&["--runtime", "/none/containerd-shim-rs-v2"])
        .expect_error("invalid custom binary path: stat /none/containerd-shim-rs-v2");
    run(&["--runc-binary", "crun"]).expect_error(
        "specifying runc-binary and runc-systemd-cgroup is only supported for \"io.containerd.runc.v2\" runtime",
    );
    let options = "/run/containerd/options.toml";
    fs::write(options, "SystemdCgroup = true\n").expect("write the options");
    run(&["--runtime-config-path", options]).expect_error(
        "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups",
    );
}

/// A shell in a world of its own, as a person sees it.
#[test]
fn world_of_the_readme() {
    let block = markdown::block(README, "hack/daemon 1.7").text;
    let (enter, inside) = block.split_once('\n').expect("two commands");
    let mut shell = Command::new("bash");
    shell
        .args(["-c", enter])
        .env("SHELL", "/bin/sh")
        .env("PS1", "world: ");
    shell.current_dir(env!("CARGO_MANIFEST_DIR"));
    let steps = [
        ("# ", inside),
        // The prompt of the container's shell.
        ("/ # ", "echo in $((40 + 2)); exit 7\n"),
        ("in 42", ""),
        ("# ", "exit $?\n"),
    ];
    let (printed, code) = cases::typed(shell, &steps);
    assert_eq!(code, 7, "{printed}");
}
