//! `ps` and `inspect`: what runs on this machine, for people.

use std::io::Write;

use serde::Serialize;

use crate::error::{Context, Error, Kind, Result};
use crate::servers::{self, Server};

const HEADER: [&str; 9] = [
    "PID",
    "NAMESPACE",
    "ID",
    "VERSION",
    "CONTAINERS",
    "UPTIME",
    "RSS",
    "REQUESTS",
    "EVENTS",
];

/// Prints a line for each running server, or all that is known of them as JSON.
#[inline(never)] // as `serve::run`
pub fn list(json: bool, output: &mut impl Write) -> Result<()> {
    let servers = servers::ask_all()?;
    if json {
        return print_json(&servers, output);
    }
    let mut rows = vec![HEADER.map(str::to_owned)];
    rows.extend(servers.iter().map(row));
    print_table(&rows, output)
}

/// Prints all that is known of the servers that have container `id`, as JSON.
/// [`Kind::NotFound`] when there is none.
#[inline(never)]
pub fn inspect(id: &str, output: &mut impl Write) -> Result<()> {
    let mut servers = servers::ask_all()?;
    servers.retain(|server| has_container(server, id));
    if servers.is_empty() {
        let text = format!("inspect {id}: no running shim has this container; see ps");
        return Err(Error::new(Kind::NotFound, text));
    }
    print_json(&servers, output)
}

fn has_container(server: &Server, id: &str) -> bool {
    match &server.report {
        Some(report) => {
            let mut containers = report.containers.iter();
            server.id == id || containers.any(|container| container.init.id == id)
        }
        None => server.id == id,
    }
}

fn row(server: &Server) -> [String; 9] {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let report = server.report.as_ref();
    let version = match (report, &server.error) {
        (Some(report), _) => report.version.clone(),
        (None, error) => format!("({})", error.as_deref().unwrap_or_default()),
    };
    [
        server.pid.to_string(),
        server.namespace.clone(),
        server.id.clone(),
        version,
        or_dash(report.map(|report| report.containers.len().to_string())),
        uptime(server.uptime),
        format!("{} kB", server.rss),
        or_dash(report.map(|report| report.requests.to_string())),
        or_dash(report.map(|report| report.unsent_events.to_string())),
    ]
}

/// Days and hours, or hours and minutes, or minutes and seconds.
fn uptime(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours) {
        (0, 0) => format!("{minutes}m{}s", seconds % 60),
        (0, _) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

fn print_table(rows: &[[String; 9]], output: &mut impl Write) -> Result<()> {
    let mut widths = [0; 9];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<String>>().join("  ");
        writeln!(output, "{}", line.trim_end()).context(|| "print the servers")?;
    }
    Ok(())
}

fn print_json(servers: &impl Serialize, output: &mut impl Write) -> Result<()> {
    let text = serde_json::to_string_pretty(servers)
        .map_err(|e| Error::unknown(format!("encode the servers: {e}")))?;
    writeln!(output, "{text}").context(|| "print the servers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_has_two_units() {
        for (seconds, expected) in [(0, "0m0s"), (61, "1m1s"), (3700, "1h1m"), (90_000, "1d1h")] {
            assert_eq!(uptime(seconds), expected);
        }
    }
}
