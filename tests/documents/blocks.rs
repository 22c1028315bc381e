//! Who runs which block.

use std::process::Command;

use crate::markdown::{self, Block};
use crate::{documents, text};

/// What runs a block.
enum By {
    /// The test of this name in this file, or what tests share there; it finds the block by how
    /// that begins.
    Test(&'static str, &'static str),
    /// The same; it finds the block by this string.
    Found(&'static str, &'static str, &'static str),
    /// Its lines are `make TARGET`; `hack/test` or the workflow of CI runs each.
    Make,
    /// Nothing: it shows what a program prints.
    Illustration,
}

use By::{Found, Illustration, Make, Test};

const CRI: &str = "tests/cri/documents.rs";
const DEPLOY: &str = "tests/cri/deploy.rs";
const MIGRATIONS: &str = "tests/cri/migrations.rs";
const DAEMON: &str = "tests/daemon/documents.rs";
const PACKAGES: &str = "tests/packages/documents.rs";
const DOCKER: &str = "tests/docker/document.rs";
const PROXY: &str = "tests/proxy/main.rs";

/// Documents of which one test runs all blocks.
const WHOLE: [(&str, By); 3] = [
    (
        "docs/docker.md",
        Found(DOCKER, "commands_for_docker_28", "docs/docker.md"),
    ),
    ("docs/logs.md", Illustration),
    (
        "docs/rootless.md",
        Found("tests/daemon/rootless.rs", "document", "docs/rootless.md"),
    ),
];

/// A table of documents with rows: how the block or the heading above it begins, and what runs it.
macro_rules! table {
    ($($document:literal { $($start:literal => $by:expr;)* })*) => {
        &[$($(($document, $start, $by),)*)*]
    };
}

/// The blocks of the other documents.
const BLOCKS: &[(&str, &str, By)] = table! {
    "README.md" {
        "make build && sudo" => Test(PACKAGES, "shim_is_installed_as_the_documents_say");
        "ctr run --rm --runtime" => Found(DAEMON, "containers_of_the_readme", "ctr run --rm --runtime io.");
        "[plugins." => Found(CRI, "handler_of_the_readme", "**Kubernetes (CRI).**");
        "containerd-shim-rs-v2 check" => Test(DAEMON, "machine_is_checked_as_the_documents_say");
        "containerd-shim-rs-v2 ps" => Test(DAEMON, "servers_of_the_readme");
        "make demo" => Make;
        "hack/daemon 1.7" => Test(DAEMON, "world_of_the_readme");
    }
    "CONTRIBUTING.md" {
        "make setup" => Make;
        "cargo test --lib" => Test(PACKAGES, "parts_of_the_tests_are_run_as_contributing_says");
    }
    "docs/differences.md" {
        "UPDATE_DOCS=1" => Test(PACKAGES, "tables_are_generated_as_their_documents_say");
    }
    "docs/faults.md" {
        "UPDATE_DOCS=1" => Test(PACKAGES, "tables_are_generated_as_their_documents_say");
    }
    "docs/install.md" {
        "containerd-shim-rs-v2 check" => Test(DAEMON, "machine_is_checked_as_the_documents_say");
        "FORCE=1 make uninstall" => Test("tests/packages/installed.rs", "link_to_gos_shim_after_a_forced_removal_keeps_containers");
    }
    "docs/kubernetes.md" {
        "make build && sudo" => Test(PACKAGES, "shim_is_installed_as_the_documents_say");
        "### containerd 1.6 and 1.7" => Test(CRI, "handler_in_containerd_1_7");
        "### containerd 2" => Found(CRI, "handler_in_containerd_2", "### containerd 2\\n");
        "apiVersion: " => Found(CRI, "pod_with_a_runtime_class", "## Let pods use it");
        "### Default of containerd 1.6 and 1.7" => Test(CRI, "default_in_containerd_1_7");
        "### Default of containerd 2" => Test(CRI, "default_in_containerd_2");
        "### Path for containerd 1.7" => Test(CRI, "path_in_containerd_1_7");
        "### Path for containerd 2" => Test(CRI, "path_in_containerd_2");
        "### Options in containerd 1.6" => Test(CRI, "options_in_containerd_1_6");
        "### Options in containerd 1.7" => Test(CRI, "options_in_containerd_1_7");
        "### Options in containerd 2" => Test(CRI, "options_in_containerd_2");
        "for exe in /proc" => Found(CRI, "server_is", "## Which shim runs a pod");
        "make installer" => Test(PACKAGES, "installer_is_made_as_the_document_says");
        "kubectl apply -k deploy" => Test(DEPLOY, "install_and_uninstall");
        "kubectl delete -k deploy" => Test(DEPLOY, "install_and_uninstall");
        "scheduling:" => Test(DEPLOY, "manifests_fit_together");
    }
    "docs/proxy-plugins.md" {
        "cargo build --locked" => Found("tests/proxy/document.rs", "plugins_are_built_as_the_document_says", "docs/proxy-plugins.md");
        "[proxy_plugins.rust-overlay]" => Found(PROXY, "configure", "[proxy_plugins.{}]");
        "build/examples/debug/proxy-snapshotter" => Test(PROXY, "start");
        "ctr plugins ls | grep -E 'io.containerd.snapshotter" => Found(PROXY, "try_it", "ctr plugins ls");
        "[proxy_plugins.soci]" => Found(PROXY, "configure", "[proxy_plugins.{}]");
        "soci-snapshotter-grpc" => Test(PROXY, "start");
        "disabled_plugins" => Found(PROXY, "configure", "[proxy_plugins.{}]");
        "build/examples/debug/proxy-content" => Test(PROXY, "start");
        "ctr plugins ls | grep -E 'io.containerd.content" => Found(PROXY, "try_it", "ctr plugins ls");
    }
    "docs/sandbox.md" {
        "## Switch it on" => Test(CRI, "sandbox_in_containerd_2");
    }
    "docs/upgrade.md" {
        "make build && sudo" => Test(PACKAGES, "shim_is_installed_as_the_documents_say");
        "ln -s /usr/local" => Test(MIGRATIONS, "link_in_containerd_2");
        "ln -sfn /usr/bin" => Test(MIGRATIONS, "link_in_containerd_2");
        "containerd-shim-rs-v2 ps" => Test(MIGRATIONS, "link_removed_in_containerd_2");
    }
};

/// What the tables have for a block: one entry, or what is wrong.
fn find(document: &str, block: &Block) -> Result<(&'static str, &'static By), String> {
    if let Some((_, by)) = WHOLE.iter().find(|(name, _)| *name == document) {
        return Ok(("", by));
    }
    let first = block.first_line();
    let fits = |start: &str| match start.starts_with('#') {
        true => block.heading == start,
        false => first.starts_with(start),
    };
    let mut rows = BLOCKS.iter().filter(|row| row.0 == document && fits(row.1));
    match (rows.next(), rows.next()) {
        (Some((_, start, by)), None) => Ok((start, by)),
        (None, _) => Err("no test runs it; add it to tests/documents/blocks.rs".to_owned()),
        (Some(_), Some(_)) => Err("several rows of the table fit".to_owned()),
    }
}

/// What is wrong with an entry, for this block.
fn check((start, by): (&str, &By), block: &Block) -> Result<(), String> {
    match by {
        Test(file, name) => check_test(file, name, start),
        Found(file, name, string) => check_test(file, name, string),
        Make => block.text.lines().try_for_each(is_made),
        Illustration => Ok(()),
    }
}

/// What is wrong with a test that is said to look for this string.
fn check_test(file: &str, name: &str, string: &str) -> Result<(), String> {
    let source = text(file);
    // Some tests have their names in a table of `main.rs`.
    let (directory, _) = file.rsplit_once('/').expect("a directory");
    let main = text(format!("{directory}/main.rs"));
    if !has_test(&source, name) && !has_test(&main, name) {
        return Err(format!("{file} has no test {name}"));
    }
    match source.contains(string) {
        true => Ok(()),
        false => Err(format!("{file} does not look for {string:?}")),
    }
}

/// Whether a source has a function of this name, or has it in a table of tests.
fn has_test(source: &str, name: &str) -> bool {
    let function = format!("fn {name}(");
    let mut lines = source.lines().map(str::trim);
    source.contains(&function)
        || lines.any(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        })
}

/// Whether `make TARGET` of a line is run by `hack/test`, by itself or by what it calls; or by CI.
fn is_made(line: &str) -> Result<(), String> {
    let mut words = line.split_whitespace();
    let (Some("make"), Some(target)) = (words.next(), words.next()) else {
        return Err(format!("{line:?} is not make TARGET"));
    };
    let run = text("hack/test");
    let mut parts = run.lines().filter(|line| line.starts_with("part "));
    let script = format!("hack/{target}");
    let in_tests = parts.any(|part| {
        let words: Vec<_> = part.split_whitespace().collect();
        words.contains(&script.as_str()) || (words.contains(&"make") && words.contains(&target))
    });
    let workflow = text(".github/workflows/ci.yml");
    let in_workflow = workflow
        .lines()
        .any(|line| line.trim() == format!("- run: make {target}"));
    match in_tests || in_workflow {
        true => Ok(()),
        false => Err(format!("neither hack/test nor CI runs make {target}")),
    }
}

#[test]
fn each_block_is_run_by_a_test() {
    let mut wrong = Vec::new();
    for document in documents() {
        for block in markdown::blocks(&document) {
            let found = find(&document, &block).and_then(|by| check(by, &block));
            if let Err(error) = found {
                wrong.push(format!(
                    "{document}:{}: {:?}: {error}",
                    block.line,
                    block.first_line()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_row_is_a_block() {
    for (document, start, _) in BLOCKS {
        let blocks = markdown::blocks(document);
        let fits =
            |block: &&Block| block.first_line().starts_with(start) || block.heading == *start;
        assert_eq!(blocks.iter().filter(fits).count(), 1, "{document}: {start}");
    }
    for (document, by) in &WHOLE {
        let blocks = markdown::blocks(document);
        assert!(!blocks.is_empty(), "{document} has no block");
        let is_text = |block: &Block| block.language == "text";
        let is_illustration = matches!(by, Illustration);
        assert_eq!(blocks.iter().all(is_text), is_illustration, "{document}");
    }
}

/// `make` alone lists what there is; the documents say no target that it does not have.
#[test]
fn targets_in_the_documents_are_those_of_make() {
    let listed = Command::new("make")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("run make");
    let listed = String::from_utf8(listed.stdout).expect("UTF-8");
    let listed: Vec<_> = listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("make ")?.split(' ').next())
        .collect();
    assert!(listed.contains(&"check"), "{listed:?}");
    for document in documents() {
        for span in markdown::read(&document).split('`').skip(1).step_by(2) {
            let mut words = span.split_whitespace().skip_while(|word| *word != "make");
            let target = words.by_ref().nth(1).filter(|word| word.is_ascii());
            if let Some(target) = target {
                assert!(listed.contains(&target), "{document}: `{span}`");
            }
        }
    }
}

#[test]
fn unknown_blocks_and_targets_are_found() {
    let block = |first: &str| {
        let blocks = markdown::parse(&format!("\n    {first}\n"));
        blocks.expect("a block").remove(0)
    };
    assert!(find("README.md", &block("rm -rf /")).is_err());
    assert!(find("docs/new.md", &block("make check")).is_err());
    assert!(check(("", &Make), &block("make coffee")).is_err());
    assert!(check(("", &Make), &block("rm -rf /")).is_err());
    let start = "## Let pods use it";
    let missing = Test(CRI, "no_such_test");
    assert!(check((start, &missing), &block("x")).is_err());
    let other = Test(CRI, "handler_in_containerd_2");
    assert!(check(("no such string", &other), &block("x")).is_err());
    assert!(check((start, &other), &block("x")).is_ok());
}
