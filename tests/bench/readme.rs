//! The README's table, from the results of a run.

use serde_json::Value;

use crate::results::{Results, header, row};

/// Part, figure, and what the README calls it.
const ROWS: [(&str, &str, &str); 18] = [
    (
        "calls-noop",
        "whole container",
        "whole container, no-op runtime",
    ),
    (
        "calls-noop",
        "… CPU of all processes",
        "… CPU of all processes",
    ),
    ("calls-noop", "`start` (action)", "`start`"),
    ("calls-noop", "`delete` (action)", "`delete`"),
    ("calls-noop", "exec (4 calls)", "exec (4 calls)"),
    ("calls-noop", "Kill", "Kill"),
    ("calls-noop", "Pids", "Pids"),
    ("calls-noop", "State", "State"),
    ("calls-noop", "Stats", "Stats"),
    ("calls-runc", "whole container", "whole container, runc"),
    ("calls-crun", "whole container", "whole container, crun"),
    ("servers", "PSS, 50 idle", "PSS of a server, 50 idle"),
    ("servers", "private, 50 idle", "… private"),
    ("servers", "RSS, 50 idle", "… RSS"),
    ("servers", "kernel memory, 50 idle", "… kernel memory"),
    (
        "pods",
        "private, each container from 10 to 100",
        "each further container of a pod, private",
    ),
    (
        "stdio",
        "stdout, read 32 KiB at a time, as containerd does",
        "stdout, read as containerd does",
    ),
    (
        "stdio",
        "… the shim's CPU for a GB: stdout, read 32 KiB at a time, as containerd does",
        "… the shim's CPU for a GB",
    ),
];

/// The table; a figure that was not measured has no row.
pub fn table(machine: &Value, results: &Results) -> String {
    let subjects = ["ours", "Go 2.1", "Go 1.7", "Go 1.6", "Rust peer", "raw"];
    let mut text = header(&subjects);
    for (part, figure, name) in ROWS {
        let part = results.parts().iter().find(|found| found.key == part);
        if let Some(figure) = part.and_then(|part| part.figure(figure)) {
            text += &row(&figure.named(name), &subjects, false);
        }
    }
    let word = |key: &str| machine[key].as_str().unwrap_or_default().to_owned();
    let date = date(machine["unix_time"].as_u64().unwrap_or_default());
    text + &format!(
        "\n{date}, {} processors, Linux {}, load average {} at the end.\n",
        machine["processors"],
        word("kernel"),
        word("load_average"),
    )
}

/// The day of a Unix time, as YYYY-MM-DD: by the civil calendar, in eras of 400 years.
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}
