//! What the documents promise about themselves: each block is run by a test, each link leads
//! somewhere, each message that docs/troubleshooting.md quotes exists, and each case of the README's
//! table does what its row says. Quick, without root or a daemon: a part of `make check`.
//!
//! Lacks on purpose: it runs no block but `make`. It checks that the test which is said to run a
//! block exists, and takes it from the document.

#![allow(clippy::disallowed_methods, reason = "one test runs make")]

mod blocks;
mod links;
#[allow(
    dead_code,
    reason = "a part of it is for the tests that run the blocks"
)]
mod markdown;
mod messages;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

/// The project's documents, by their paths in the repository.
fn documents() -> Vec<String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for directory in ["", "docs/"] {
        for entry in fs::read_dir(top.join(directory)).expect("read a directory") {
            let name = entry.expect("an entry").file_name();
            let name = name.to_str().expect("UTF-8");
            if name.ends_with(".md") {
                found.push(format!("{directory}{name}"));
            }
        }
    }
    found.sort();
    found
}

/// The files below a directory of the repository whose names end so.
fn files(directory: &str, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).expect("read a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                left.push(path);
            } else if path.to_string_lossy().ends_with(end) {
                found.push(path);
            }
        }
    }
    found
}

/// The text of a file of the repository.
fn text(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn fenced_and_indented_blocks_are_found() {
    let text = "# One\n\n    first \\\n        second\n\n    third\n\n- item\n  more\n    text\n\n## Two\n\
        ```sh\na\n  b\n```\n\n1. item:\n\n      ```toml\n      c\n      ```\n\n      d\n";
    let blocks = markdown::parse(text).expect("blocks");
    let found: Vec<_> = blocks
        .iter()
        .map(|b| {
            (
                b.line,
                b.heading.as_str(),
                b.language.as_str(),
                b.text.as_str(),
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            (3, "# One", "", "first \\\n    second\n\nthird\n"),
            (13, "## Two", "sh", "a\n  b\n"),
            (20, "## Two", "toml", "c\n"),
            (24, "## Two", "", "d\n"),
        ]
    );
    assert!(markdown::parse("```\nx\n").is_err());
}
