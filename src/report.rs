//! The state of a server: in its log on SIGUSR1, and as JSON in the response to a call on its
//! socket (by `ps` and `inspect`).
//!
//! Promises: a field keeps its name and meaning; newer and older releases understand each
//! other, as a field that is not known is ignored, and one that is missing is empty.

use serde::{Deserialize, Serialize};

/// The ttrpc service that answers with a [`Report`].
pub const SERVICE: &str = "containerd_shim_rs.v1.Server";

/// Its method. The request is empty, and the response JSON.
pub const METHOD: &str = "Report";

/// The state of a server.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The version of its program.
    pub version: String,
    /// The git revision of that.
    pub revision: String,
    /// Clients that are connected, the one that asks included.
    pub connections: usize,
    /// Requests under way, without those that wait for an exit, and the one that asks.
    pub requests: usize,
    /// Requests that wait for an exit.
    pub waiting: usize,
    /// Events that containerd has not got yet.
    pub unsent_events: usize,
    /// By ID.
    pub containers: Vec<Container>,
}

/// A container of the server.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Its init; the ID is the container's.
    #[serde(flatten)]
    pub init: Process,
    /// Its bundle.
    pub bundle: String,
    /// The OCI runtime, by name or path.
    pub runtime: String,
    /// By ID.
    pub execs: Vec<Process>,
}

/// A process of a container.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// The container's or the exec's.
    pub id: String,
    /// `creating`, `created`, `running`, `paused`, `stopped` or `deleted`.
    pub state: String,
    /// 0 before it has one.
    pub pid: u32,
}

impl Report {
    /// The same in a few lines for the log, each with the ID of its container; without one, it
    /// is about the server.
    pub fn lines(&self) -> Vec<(&str, String)> {
        let mut lines: Vec<(&str, String)> = self
            .containers
            .iter()
            .map(|container| (container.init.id.as_str(), container.line()))
            .collect();
        let server = format!(
            "{} connections, {} requests under way, {} waiting for an exit, {} events are queued",
            self.connections, self.requests, self.waiting, self.unsent_events
        );
        lines.push(("", server));
        lines
    }
}

impl Container {
    fn line(&self) -> String {
        let execs: Vec<String> = self.execs.iter().map(Process::text).collect();
        format!(
            "container {}; execs: {}",
            self.init.text(),
            execs.join("; ")
        )
    }
}

impl Process {
    fn text(&self) -> String {
        format!("{} {} pid {}", self.id, self.state, self.pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_releases_understand_it() {
        let newer = r#"{"version":"9","new":[1],"containers":[{"id":"c","new":{}}]}"#;
        let report: Report = serde_json::from_str(newer).unwrap();
        assert_eq!(report.containers[0].init.id, "c");
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert!(
            text.contains(r#"{"id":"c","state":"","pid":0,"bundle":"#),
            "{text}"
        );
    }
}
