//! The README's table of features: each row names a case of the conformance suite; what it says of
//! containerd's shims is what docs/differences.md says of that case.

use crate::{markdown, text};

/// A row of the table.
#[derive(Debug)]
struct Row {
    here: String,
    go: String,
    case: String,
    file: String,
}

/// The rows of a table whose last column is a link to a case.
fn rows(text: &str) -> Vec<Row> {
    let lines = text
        .lines()
        .filter(|line| line.contains("](tests/shim/cases/"));
    let row = |line: &str| {
        let cells: Vec<_> = line.trim_matches(['|', ' ']).split(" | ").collect();
        let [_, here, go, _, link] = cells[..] else {
            panic!("five columns: {line}");
        };
        let (case, file) = link.split_once("](").expect("a link");
        Row {
            here: here.to_owned(),
            go: go.to_owned(),
            case: case.trim_matches(['[', '`']).to_owned(),
            file: file.trim_end_matches(')').to_owned(),
        }
    };
    lines.map(row).collect()
}

/// How a case ends with containerd's shims and any OCI runtime, by the document: nothing, if it passes.
fn outcomes(document: &str, case: &str) -> Vec<String> {
    let rows = document
        .lines()
        .filter(|line| line.contains(&format!("`{case}`")));
    let cells = rows.map(|line| line.split(" | ").map(str::trim).collect::<Vec<_>>());
    let of_any_runtime = cells.filter(|cells| cells[2].is_empty() && cells[1] != "any");
    of_any_runtime.map(|cells| cells[3].to_owned()).collect()
}

#[test]
fn each_row_is_what_the_suite_says() {
    let rows = rows(&markdown::read("README.md"));
    assert!(rows.len() > 20, "{} rows", rows.len());
    let differences = markdown::read("docs/differences.md");
    for row in rows {
        let case = format!("fn {}(d)", row.case);
        assert!(
            text(&row.file).contains(&case),
            "{} has no case {}",
            row.file,
            row.case
        );
        assert_eq!(row.here, "yes", "{row:?}");
        let outcomes = outcomes(&differences, &row.case);
        match row.go.split(',').next() {
            Some("yes") => assert!(
                !outcomes.iter().any(|o| o == "always"),
                "{row:?}: {outcomes:?}"
            ),
            Some("no") => assert!(
                !outcomes.is_empty(),
                "{row:?}: docs/differences.md has no such case"
            ),
            _ => panic!("yes or no: {row:?}"),
        }
    }
}
