//! The blocks of docs/proxy-plugins.md.

use std::fs;

/// What is between two fences.
pub struct Block {
    language: String,
    text: String,
}

impl Block {
    /// The text, if these are commands.
    pub fn shell(&self) -> Option<&str> {
        (self.language == "sh").then_some(self.text.as_str())
    }

    /// The text, if this is configuration.
    pub fn toml(&self) -> Option<&str> {
        (self.language == "toml").then_some(self.text.as_str())
    }
}

/// All of them.
pub fn blocks() -> Vec<Block> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/proxy-plugins.md");
    let document = fs::read_to_string(path).expect("read the document");
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for line in document.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                let language = language.to_owned();
                let text = String::new();
                open = Some(Block { language, text });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{path}: a block has no end");
    blocks
}

/// The first block is how the plugins are built; `hack/setup examples` does the same.
#[test]
fn plugins_are_built_as_the_document_says() {
    let blocks = blocks();
    let command = blocks[0].shell().expect("a command").trim();
    let setup = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/hack/setup"));
    let setup = setup.expect("read hack/setup");
    assert!(setup.contains(command), "hack/setup does not run {command}");
}
