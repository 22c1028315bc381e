//! The man page and the completion say what `--help` says; and what the documents say of building,
//! installing and testing is done.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::ctr::{Ctr, Naming};
use crate::installed::{cover, hide_the_copies_of_the_world};
use crate::{NAME, binary, markdown, run, sh, world};

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

/// Runs commands in the repository as a person would type them: there is a `sudo`.
fn type_in(commands: &str) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let sudo = directory.path().join("sudo");
    fs::write(&sudo, "#!/bin/sh\nexec \"$@\"\n").expect("write a script");
    fs::set_permissions(&sudo, fs::Permissions::from_mode(0o755)).expect("chmod");
    sh(&format!(
        "PATH={}:$PATH\n{commands}",
        directory.path().display()
    ))
}

#[test]
fn shim_is_installed_as_the_documents_say() {
    // What takes its time is done before the world, whose time is limited.
    sh("make --no-print-directory build");
    let test = concat!(module_path!(), "::shim_is_installed_as_the_documents_say");
    world::enter("1.7", test, || {
        cover();
        hide_the_copies_of_the_world();
        let ctr = Ctr::new(Naming::Name);
        for document in ["README.md", "docs/kubernetes.md", "docs/upgrade.md"] {
            type_in(&markdown::block(document, "make build && sudo").text);
            ctr.run(&["--rm"], "box", &["echo", document])
                .expect(0, &format!("{document}\n"));
            sh("make --no-print-directory uninstall");
        }
    });
}

#[test]
fn installer_is_made_as_the_document_says() {
    type_in(&markdown::block("docs/kubernetes.md", "make installer").text);
    let test = concat!(module_path!(), "::installer_is_made_as_the_document_says");
    world::enter("1.7", test, || {
        sh("ctr image import build/installer.tar");
        let image = "localhost/containerd-shim-rs-v2-installer:latest";
        let ctr = Ctr::new(Naming::Name);
        let in_it = |words: &str| {
            ctr.call(&format!(
                "run --rm --runtime {} {image} box {words}",
                ctr.runtime()
            ))
        };
        let version = in_it("/opt/containerd-shim-rs-v2 -v");
        assert!(version.stdout.starts_with(NAME), "{version:?}");
        // Without a verb the installer says how it is used.
        let usage = in_it("node");
        assert!(usage.stdout.contains("node install"), "{usage:?}");
        assert_eq!(usage.code(), 2, "{usage:?}");
    });
}

#[test]
fn parts_of_the_tests_are_run_as_contributing_says() {
    let block = markdown::block("CONTRIBUTING.md", "cargo test --lib").text;
    let printed = type_in(&block);
    let passed = printed
        .lines()
        .filter(|line| line.starts_with("test result: ok. "));
    let counts = passed.map(|line| line.split(' ').nth(3).and_then(|n| n.parse().ok()));
    let counts: Vec<Option<usize>> = counts.collect();
    assert_eq!(counts.len(), 2, "{printed}");
    assert!(counts.iter().all(|count| *count > Some(10)), "{printed}");
}

#[test]
fn tables_are_generated_as_their_documents_say() {
    for document in ["docs/differences.md", "docs/faults.md"] {
        let before = markdown::read(document);
        type_in(&markdown::block(document, "UPDATE_DOCS=1").text);
        let after = markdown::read(document);
        assert!(before == after, "{document} was out of date");
    }
}
