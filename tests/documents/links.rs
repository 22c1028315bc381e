//! Links between documents.

use std::path::Path;

use crate::{documents, markdown};

/// The targets of a document's links.
fn targets(text: &str) -> Vec<&str> {
    let ends = text.split("](").skip(1);
    ends.filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .collect()
}

/// What a heading is called in a link, as GitHub does it.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    let words = words
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    words.collect::<String>().replace(' ', "-")
}

#[test]
fn each_link_leads_to_a_file_and_a_heading() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    for document in documents() {
        let text = markdown::read(&document);
        let directory = Path::new(&document).parent().expect("a directory");
        for target in targets(&text) {
            if target.contains("://") {
                continue;
            }
            let (file, name) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => document.clone(),
                file => directory.join(file).to_string_lossy().into_owned(),
            };
            let has_heading = || {
                let text = markdown::read(&file);
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                headings.any(|heading| anchor(heading) == name)
            };
            if !top.join(&file).exists() || !(name.is_empty() || has_heading()) {
                wrong.push(format!("{document}: {target}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "links that lead nowhere:\n{}",
        wrong.join("\n")
    );
}

/// A link whose text is a name and whose target is a source: that has a function of this name.
#[test]
fn each_test_that_is_linked_exists() {
    let mut wrong = Vec::new();
    for document in documents() {
        let text = markdown::read(&document);
        let directory = Path::new(&document).parent().expect("a directory");
        for link in text.split("[`").skip(1) {
            let Some((name, rest)) = link.split_once("`](") else {
                continue;
            };
            let target = rest.split(')').next().expect("a target");
            if !target.ends_with(".rs") {
                continue;
            }
            let source = crate::text(directory.join(target));
            if !source.contains(&format!("fn {name}(")) {
                wrong.push(format!("{document}: {target} has no {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn anchors_are_as_on_github() {
    assert_eq!(anchor("### containerd 1.6 and 1.7"), "containerd-16-and-17");
    assert_eq!(
        anchor("## In place of containerd's own shim"),
        "in-place-of-containerds-own-shim"
    );
}
