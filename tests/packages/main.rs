//! What is installed: by `make install` and as packages. Each is built, installed, used by a
//! real containerd and removed, in a private world (`hack/daemon`) with throw-away layers
//! over the directories that an installation writes to. Needs root, and what `hack/setup`
//! installs.
#![allow(
    clippy::disallowed_methods,
    reason = "these tests run make, package managers and ctr"
)]

mod build;
mod documents;
mod installed;
#[allow(dead_code, reason = "a part of it is for the check of all documents")]
#[path = "../documents/markdown.rs"]
mod markdown;

// A part of them is used here.
#[allow(dead_code)]
#[path = "../daemon/ctr.rs"]
mod ctr;
#[allow(dead_code)]
#[path = "../daemon/world.rs"]
mod world;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The name of the program.
const NAME: &str = "containerd-shim-rs-v2";

/// The repository.
fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The release binary for a machine: `x86_64`, `aarch64`.
fn binary(machine: &str) -> PathBuf {
    repository().join(format!(
        "target/{machine}-unknown-linux-musl/release/{NAME}"
    ))
}

/// The file in build/packages whose name has this end.
fn package(end: &str) -> PathBuf {
    package_in(&repository().join("build/packages"), end)
}

/// The file in a directory whose name has this end.
fn package_in(directory: &Path, end: &str) -> PathBuf {
    let name = world::names(directory)
        .into_iter()
        .find(|name| name.ends_with(end));
    directory.join(name.unwrap_or_else(|| panic!("no *{end} in {}", directory.display())))
}

/// What `command` printed, if it succeeded.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("spawn {command:?}: {error}"));
    let Output { stdout, stderr, .. } = &output;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(stdout))
    } else {
        let printed = text(stdout) + &text(stderr);
        Err(format!("{command:?}: {}\n{printed}", output.status))
    }
}

/// What `sh -c SCRIPT` printed in the repository; it must succeed.
fn sh(script: &str) -> String {
    try_sh(script).unwrap_or_else(|error| panic!("{error}"))
}

/// As [`sh`], for scripts that may fail.
fn try_sh(script: &str) -> Result<String, String> {
    run(Command::new("sh")
        .args(["-euc", script])
        .current_dir(repository()))
}
