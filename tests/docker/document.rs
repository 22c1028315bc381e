//! `docs/docker.md` does what it says: its blocks are run in order, on both Dockers.
//!
//! `console` blocks are commands, after `$ `, and lines of their output, in order. A `json` block is
//! `/etc/docker/daemon.json`; a `toml` block begins with the path of its file. A section whose
//! heading names versions of Docker is for these only.

use std::fs;
use std::process::Command;

use crate::docker::Docker;
use crate::markdown;
use crate::world::{SHIMS, limit};

pub fn commands_for_docker_20(d: &Docker) {
    run(d, "23 and newer");
}

pub fn commands_for_docker_28(d: &Docker) {
    run(d, "before 23");
}

/// Runs all blocks but those below a heading that contains `others`.
fn run(d: &Docker, others: &str) {
    install();
    let mut blocks = markdown::blocks("docs/docker.md");
    blocks.retain(|block| !block.heading.contains(others));
    assert!(
        blocks.len() >= 4,
        "the document has only {} blocks",
        blocks.len()
    );
    for block in blocks {
        match block.language.as_str() {
            "console" => console(&block.text),
            "json" => d.configure(&block.text),
            "toml" => {
                let path = block.first_line().strip_prefix("# ");
                let path = path.expect("the path of the file");
                fs::write(path, &block.text).expect("write a file");
            }
            other => panic!("a block of language {other:?}"),
        }
    }
}

/// Makes the world one in which only `make install` was run.
pub fn install() {
    let target = "/usr/local/bin/containerd-shim-rs-v2";
    fs::copy(format!("{SHIMS}/containerd-shim-rs-v2"), target).expect("copy the shim");
    for name in crate::world::names(SHIMS) {
        fs::remove_file(format!("{SHIMS}/{name}")).expect("remove a file");
    }
    let status = Command::new("systemctl")
        .args(["restart", "containerd"])
        .status();
    assert!(status.expect("run systemctl").success());
}

/// Runs the commands as one script; each must succeed, and the output must have the other lines.
fn console(block: &str) {
    let (commands, wanted): (Vec<&str>, Vec<&str>) =
        block.lines().partition(|line| line.starts_with("$ "));
    let commands: Vec<_> = commands.iter().map(|line| &line[2..]).collect();
    let script = commands.join("\n");
    let done = Command::new("timeout")
        .args([
            "--signal=KILL",
            &(2 * limit()).to_string(),
            "bash",
            "-euo",
            "pipefail",
            "-c",
            &script,
        ])
        .output()
        .expect("run timeout(1)");
    let output = String::from_utf8_lossy(&done.stdout);
    let mut printed = output.lines();
    for line in wanted {
        assert!(
            printed.any(|other| other == line),
            "{line:?} is not in the output:\n{script}\n{done:?}"
        );
    }
    assert!(done.status.success(), "{script}\n{done:?}");
}
