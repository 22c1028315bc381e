//! `docs/faults.md`, generated from the tables.

use crate::expected::{self, find};
use crate::harness::Shim::{self, Go2, Go16, Go17, Ours};

/// What `docs/faults.md` says above the table.
const HEADER: &str = "\
# Faults, and what they leave

This file is generated from the tables in `tests/faults`. Change these, then run

    UPDATE_DOCS=1 cargo test --test faults document

Each row is a test (`tests/faults`): something dies, hangs, is used up, floods or is hostile at one
moment of a container's life. Then the container is removed, as containerd does it: over a new
connection, or with the action `delete` if there is no server any more. Then what is left is
counted: processes, mounts, cgroups, sockets, the runtime's state, temporary files, bundles that
cannot be removed. The bundle and the FIFOs themselves are containerd's to remove.

- **fine**: nothing is left, nothing hung, and each container that was created had its exit and its
  deletion published once, in order.
- **left**: something of it is left. **hangs**: an answer, an exit or the server's end did not come
  within its bound. **fails**: an answer, an event or the server's end is wrong. With `?`: in some
  runs only.

1.6, 1.7 and 2.1 are containerd's own shims of these releases (1.6.20, 1.7.24 and 2.1.9). The OCI
runtime is runc. `death::VICTIM::CALL::MOMENT`: the victim gets SIGKILL before the call; when the
runtime has begun and done nothing yet; when the runtime has done its work and nobody was told;
when a call without a runtime was sent; after the answer. `hangs::runtime::CALL::MOMENT`: the runtime
hangs there, and the call's deadline passes. Rows of `long` run in `make chaos` only.

| Fault | this one | 1.6 | 1.7 | 2.1 | Why |
|---|---|---|---|---|---|
";

/// All rows' names, in order.
fn rows() -> impl Iterator<Item = &'static str> {
    let tables = [
        crate::death::TABLE,
        crate::death::action::TABLE,
        crate::hangs::product::TABLE,
        crate::hangs::TABLE,
        crate::exhaustion::TABLE,
        crate::floods::TABLE,
        crate::floods::long::TABLE,
        crate::events::TABLE,
        crate::events::long::TABLE,
        crate::hostile::TABLE,
    ];
    tables.into_iter().flatten().copied()
}

fn cell(fault: &str, shim: Shim) -> String {
    match find(fault, shim) {
        None => "fine".into(),
        Some(row) if row.flaky => format!("{}?", row.class.name()),
        Some(row) => row.class.name().into(),
    }
}

fn line(fault: &str) -> String {
    let shims = [Ours, Go16, Go17, Go2];
    let mut reasons: Vec<&str> = Vec::new();
    for row in shims.iter().filter_map(|&shim| find(fault, shim)) {
        if !reasons.contains(&row.reason) {
            reasons.push(row.reason);
        }
    }
    let cells: Vec<String> = shims.iter().map(|&shim| cell(fault, shim)).collect();
    format!(
        "| `{fault}` | {} | {} |\n",
        cells.join(" | "),
        reasons.join("; ")
    )
}

/// A row for a fault that is gone would never be missed.
#[test]
fn every_expectation_is_of_a_fault() {
    let rows: Vec<&str> = rows().collect();
    for fault in expected::TABLE.iter().flat_map(|row| row.faults) {
        assert!(rows.contains(fault), "no fault {fault}");
    }
}

#[test]
fn docs_faults_is_up_to_date() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/faults.md");
    let wanted = HEADER.to_owned() + &rows().map(line).collect::<String>();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(file, &wanted).expect("write docs/faults.md");
    }
    let text = std::fs::read_to_string(file).expect("read docs/faults.md");
    assert!(
        text == wanted,
        "docs/faults.md is not up to date: run UPDATE_DOCS=1 cargo test --test faults document"
    );
}
