//! `docs/docker.md` does what it says: its blocks are run in order, on both Dockers.
//!
//! `console` blocks are commands, after `$ `, and lines of their output, in order. A `json` block is
//! `/etc/docker/daemon.json`; a `toml` block begins with the path of its file. A section whose
//! heading names versions of Docker is for these only.

use std::fs;
use std::process::Command;

use crate::docker::Docker;
use crate::world::{SHIMS, limit};

/// A fenced block: its language, and its lines.
struct Block<'a> {
    language: &'a str,
    lines: Vec<&'a str>,
}

pub fn commands_for_docker_20(d: &Docker) {
    run(d, "23 and newer");
}

pub fn commands_for_docker_28(d: &Docker) {
    run(d, "before 23");
}

/// Runs all blocks but those below a heading that contains `others`.
fn run(d: &Docker, others: &str) {
    install();
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/docker.md"));
    let text = text.expect("read the document");
    let blocks = blocks(&text, others);
    assert!(
        blocks.len() >= 4,
        "the document has only {} blocks",
        blocks.len()
    );
    for block in blocks {
        match block.language {
            "console" => console(&block.lines),
            "json" => d.configure(&block.lines.join("\n")),
            "toml" => {
                let path = block.lines[0]
                    .strip_prefix("# ")
                    .expect("the path of the file");
                fs::write(path, block.lines.join("\n")).expect("write a file");
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

fn blocks<'a>(text: &'a str, others: &str) -> Vec<Block<'a>> {
    let mut blocks = Vec::new();
    let mut is_ours = true;
    let mut open: Option<Block> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) if is_ours => blocks.push(block),
            (Some(_), Some(_)) => {}
            (Some(language), None) => {
                let lines = Vec::new();
                open = Some(Block { language, lines });
            }
            (None, Some(mut block)) => {
                block.lines.push(line);
                open = Some(block);
            }
            (None, None) if line.starts_with('#') => is_ours = !line.contains(others),
            (None, None) => {}
        }
    }
    blocks
}

/// Runs the commands as one script; each must succeed, and the output must have the other lines.
fn console(lines: &[&str]) {
    let (commands, wanted): (Vec<&str>, Vec<&str>) =
        lines.iter().partition(|line| line.starts_with("$ "));
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
