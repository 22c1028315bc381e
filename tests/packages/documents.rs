//! The man page and the completion say what `--help` says.

use std::process::Command;

use crate::{NAME, binary, run, sh};

/// What `--help` of the built program prints.
fn help() -> String {
    let machine = std::env::consts::ARCH;
    run(Command::new(binary(machine)).arg("--help")).expect("run the built program: make build")
}

/// The first words of the entries below the headings which begin so.
fn entries<'a>(help: &'a str, headings: &[&str]) -> Vec<&'a str> {
    let mut listed = false;
    let mut entries = Vec::new();
    for line in help.lines() {
        if line.starts_with(char::is_alphabetic) {
            listed = headings.iter().any(|heading| line.starts_with(heading));
        } else if listed && line.starts_with("  ") && !line.starts_with("   ") {
            entries.extend(line.split_whitespace().next());
        }
    }
    entries
}

#[test]
fn man_page_is_well_formed() {
    sh(
        "mandoc -Tlint -Wwarning packaging/containerd-shim-rs-v2.8 2>&1 || \
        { mandoc -Tlint -Wwarning packaging/containerd-shim-rs-v2.8; false; }",
    );
}

#[test]
fn man_page_names_all_actions_flags_and_variables() {
    let help = help();
    let page = sh("mandoc -Tascii packaging/containerd-shim-rs-v2.8 | col -b");
    let entries = entries(&help, &["Actions:", "Flags", "Environment:"]);
    assert!(entries.len() > 12, "{entries:?}");
    for entry in entries {
        let named = page
            .split(|c: char| c.is_whitespace() || c == '|')
            .any(|word| word == entry);
        assert!(named, "the man page lacks {entry}:\n{page}");
    }
}

/// What bash offers for the last word of a line.
fn completions(line: &[&str]) -> Vec<String> {
    let bin = binary(std::env::consts::ARCH);
    let (program, words) = (bin.display().to_string(), line.join(" "));
    let (last, count) = (line.last().expect("a word"), line.len());
    let script = format!(
        "bash -euc '. packaging/{NAME}.bash
         complete -p {NAME} >/dev/null
         COMP_WORDS=({program} {words} \"\") COMP_CWORD={count}
         _containerd_shim_rs_v2 {program} \"{last}\" x || true
         printf \"%s\\n\" ${{COMPREPLY[@]}}'"
    );
    let mut words: Vec<_> = sh(&script).lines().map(str::to_owned).collect();
    words.sort();
    words
}

#[test]
fn completion_offers_what_the_help_lists() {
    let help = help();
    let all = entries(&help, &["Actions:", "Flags"]);
    let mut wanted: Vec<_> = all.iter().filter(|word| !word.starts_with('(')).collect();
    wanted.sort();
    assert_eq!(
        completions(&["\"\""]),
        wanted.iter().map(|w| w.to_string()).collect::<Vec<_>>()
    );
    assert_eq!(completions(&["st"]), ["start"]);
    assert_eq!(completions(&["-i"]), ["-id", "-info"]);
    // A value is no action.
    assert_eq!(completions(&["-id", "st"]), [""]);
    assert_eq!(
        completions(&["-bundle", "/etc/host"])
            .first()
            .map(String::as_str),
        Some("/etc/host.conf")
    );
}
