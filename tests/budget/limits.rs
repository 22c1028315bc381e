//! What `budget.toml` says, and how a figure is held against it.

use std::collections::BTreeMap;

/// The most that `figure` may be.
#[track_caller]
pub fn of(figure: &str) -> u64 {
    let budget: BTreeMap<String, u64> =
        toml::from_str(include_str!("budget.toml")).expect("parse budget.toml");
    let limit = budget.get(figure);
    *limit.unwrap_or_else(|| panic!("budget.toml has no {figure}"))
}

/// Prints the figure, and fails if it is above its budget.
#[track_caller]
pub fn check(figure: &str, measured: u64) {
    let budget = of(figure);
    println!("budget: {figure} {measured} of {budget}");
    assert!(
        measured <= budget,
        "{figure} is {measured}, and its budget is {budget} (tests/budget/budget.toml)"
    );
}

/// The middle one of some figures.
pub fn median(mut figures: Vec<u64>) -> u64 {
    figures.sort_unstable();
    figures[figures.len() / 2]
}
