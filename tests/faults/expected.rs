//! The rows whose verdict is not "fine", with the reason. No other row may be anything but fine,
//! and a row that is listed must have its verdict. `docs/faults.md` is generated from this table.

use crate::harness::Shim;

/// The kind of a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Fine,
    Left,
    Hangs,
    Fails,
}

impl Class {
    /// Its name in `docs/faults.md`.
    pub fn name(self) -> &'static str {
        match self {
            Class::Fine => "fine",
            Class::Left => "left",
            Class::Hangs => "hangs",
            Class::Fails => "fails",
        }
    }
}

/// Rows of one reason, for some shims.
pub struct Expected {
    pub shims: &'static [Shim],
    pub class: Class,
    /// Whether a row of it may be anything else as well, on one and the same machine.
    pub flaky: bool,
    pub reason: &'static str,
    pub faults: &'static [&'static str],
}

/// The expectation for `fault`, if it is not "fine".
pub fn find(fault: &str, shim: Shim) -> Option<&'static Expected> {
    TABLE
        .iter()
        .find(|row| row.shims.contains(&shim) && row.faults.contains(&fault))
}

/// Whether a verdict is as expected.
pub fn agrees(expected: Option<&Expected>, class: Class) -> bool {
    match expected {
        None => class == Class::Fine,
        Some(row) => row.flaky || row.class == class,
    }
}

pub const TABLE: &[Expected] = &[];
