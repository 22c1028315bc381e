//! The blocks of docs/proxy-plugins.md.

use crate::markdown::{self, Block};

/// All of them.
pub fn blocks() -> Vec<Block> {
    markdown::blocks("docs/proxy-plugins.md")
}

/// The text, if these are commands.
pub fn shell(block: &Block) -> Option<&str> {
    (block.language == "sh").then_some(block.text.as_str())
}

/// The text, if this is configuration.
pub fn toml(block: &Block) -> Option<&str> {
    (block.language == "toml").then_some(block.text.as_str())
}

/// The first block is how the plugins are built; `hack/setup examples` does the same.
#[test]
fn plugins_are_built_as_the_document_says() {
    let blocks = blocks();
    let command = shell(&blocks[0]).expect("a command").trim();
    let setup = markdown::read("hack/setup");
    assert!(setup.contains(command), "hack/setup does not run {command}");
}
