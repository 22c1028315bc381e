//! The messages in docs/troubleshooting.md: this shim, its installer or its packages have each, or a
//! test sees it from others.

use std::fs;

use crate::{files, markdown, text};

const DOCUMENT: &str = "docs/troubleshooting.md";

/// The quoted messages: what is between backquotes in a table's first column.
fn messages(text: &str) -> Vec<&str> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect()
}

/// A source's text, with `…` for what a program puts into a literal (`{name:format}`), and with
/// each literal in one line.
fn normalized(source: &str) -> String {
    let mut joined = String::new();
    let mut goes_on = false;
    for line in source.lines() {
        joined += if goes_on { line.trim_start() } else { line };
        goes_on = joined.ends_with('\\');
        match goes_on {
            true => drop(joined.pop()),
            false => joined.push('\n'),
        }
    }
    let joined = joined.replace("\\\"", "\"");
    let mut out = String::new();
    let mut parts = joined.split('{');
    out += parts.next().unwrap_or_default();
    for part in parts {
        let is_inside = |c: char| c.is_alphanumeric() || "_:?.()".contains(c);
        match part.split_once('}') {
            Some((inside, rest)) if inside.chars().all(is_inside) => out += &format!("…{rest}"),
            _ => out += &format!("{{{part}"),
        }
    }
    out
}

/// All that a message may come from.
fn sources() -> String {
    let mut all = String::new();
    for path in files("src", ".rs").into_iter().chain(files("tests", ".rs")) {
        if !path
            .components()
            .any(|part| part.as_os_str() == "documents")
        {
            all += &normalized(&fs::read_to_string(path).expect("a source"));
        }
    }
    for path in ["deploy/node", "packaging/servers.sh"] {
        all += &shell(&text(path));
    }
    all
}

/// A script's text, with `…` for its variables.
fn shell(script: &str) -> String {
    let mut out = String::new();
    let mut parts = script.split('$');
    out += parts.next().unwrap_or_default();
    for part in parts {
        let name = part.trim_start_matches('{');
        let end = name.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
        out += &format!("…{}", end.trim_start_matches('}'));
    }
    out
}

/// Whether the sources have a message, or each of its parts: operation, object and cause are put
/// together when the program runs.
fn is_known(message: &str, sources: &str) -> bool {
    let message = message.trim_end_matches('…').trim_end_matches([':', ' ']);
    let is_named = |part: &str| part.chars().any(char::is_alphabetic);
    let has = |part: &str| sources.contains(part);
    has(message) || message.split(": ").filter(|part| is_named(part)).all(has)
}

#[test]
fn each_message_exists() {
    let document = markdown::read(DOCUMENT);
    let messages = messages(&document);
    assert!(messages.len() > 60, "{} messages", messages.len());
    let sources = sources();
    let unknown: Vec<_> = messages.iter().filter(|m| !is_known(m, &sources)).collect();
    assert!(unknown.is_empty(), "no source or test has {unknown:#?}");
}

#[test]
fn messages_are_found_in_literals() {
    let source = normalized(
        "f(\"unmount {}: not done \\\n     within {limit:?}\"); \"no \\\"x\\\" in $PATH\"",
    );
    assert!(is_known("unmount …: not done within …", &source));
    assert!(is_known("no \"x\" in $PATH", &source));
    assert!(is_known("unmount …: no \"x\"", &source));
    assert!(!is_known("mount …: not done at all", &source));
    assert!(!is_known("unmount …: busy", &source));
    assert_eq!(shell("a ${b:-} $c-d"), "a …:-} …-d");
}
