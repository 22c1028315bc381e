//! The blocks of the project's documents: what stands between fences, and what is indented by four
//! columns or more after an empty line.

use std::fs;

/// A block of a document.
#[derive(Debug, Clone)]
pub struct Block {
    /// The number of its first line.
    pub line: usize,
    /// The heading that it stands below.
    pub heading: String,
    /// What is written after the opening fence; nothing for an indented block.
    pub language: String,
    /// Its lines, without their common indentation.
    pub text: String,
}

impl Block {
    /// Its first line.
    pub fn first_line(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }
}

/// The text of a document, by its path in the repository.
pub fn read(document: &str) -> String {
    let path = format!("{}/{document}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All blocks of a document.
pub fn blocks(document: &str) -> Vec<Block> {
    parse(&read(document)).unwrap_or_else(|error| panic!("{document}: {error}"))
}

/// The one block of a document whose first line begins so.
pub fn block(document: &str, start: &str) -> Block {
    let mut found = blocks(document);
    found.retain(|block| block.first_line().starts_with(start));
    let [block] = &found[..] else {
        panic!(
            "{document} has {} blocks that begin with {start:?}",
            found.len()
        );
    };
    block.clone()
}

/// All blocks of a text; an error if one has no end.
pub fn parse(text: &str) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    let mut heading = String::new();
    let mut after_empty_line = true;
    let mut lines = text.lines().enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        let mut of_block = Vec::new();
        let mut language = "";
        if let Some(rest) = content.strip_prefix("```") {
            language = rest.trim();
            loop {
                match lines.next() {
                    Some((_, line)) if line.trim() == "```" => break,
                    Some((_, line)) => of_block.push(line),
                    None => return Err(format!("line {}: a block has no end", index + 1)),
                }
            }
        } else if indent >= 4 && after_empty_line && !content.is_empty() {
            of_block.push(line);
            let is_inside = |line: &str| line.starts_with("    ") || line.trim().is_empty();
            while let Some((_, line)) = lines.next_if(|(_, line)| is_inside(line)) {
                of_block.push(line);
            }
        } else {
            if line.starts_with('#') {
                heading = line.to_owned();
            }
            after_empty_line = content.is_empty();
            continue;
        }
        after_empty_line = true;
        blocks.push(Block {
            line: index + 1,
            heading: heading.clone(),
            language: language.to_owned(),
            text: without_indent(&of_block),
        });
    }
    Ok(blocks)
}

/// The lines without what all of them begin with in blanks, and without empty ones at the end.
fn without_indent(lines: &[&str]) -> String {
    let indents = lines.iter().filter(|line| !line.trim().is_empty());
    let indents = indents.map(|line| line.len() - line.trim_start().len());
    let indent = indents.min().unwrap_or(0);
    let lines = lines.iter().map(|line| line.get(indent..).unwrap_or(""));
    let text = lines.collect::<Vec<_>>().join("\n");
    format!("{}\n", text.trim_end())
}

/// What is between backquotes in a cell of a document's table: of the row that begins so, and of the
/// column with this number.
pub fn spans(document: &str, row: &str, column: usize) -> Vec<String> {
    let text = read(document);
    let start = format!("| {row} |");
    let row = text.lines().find(|line| line.starts_with(&start));
    let row = row.unwrap_or_else(|| panic!("{document} has no row {start:?}"));
    let cell = row.trim_matches('|').split('|').nth(column);
    let cell = cell.unwrap_or_else(|| panic!("{document} has no column {column} in {row}"));
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}
