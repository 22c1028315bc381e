//! What `delete` has to know of a sandbox when its server is gone: the pod's init, the files,
//! and the containers, whose bundles containerd may have removed by then. It is a file in the
//! sandbox's bundle, replaced as a whole before each of these is made.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::files::Dirs;
use crate::bundle::Bundle;
use crate::error::{Context, Result};
use crate::options::Options;
use crate::reaper;

/// The file's name, in the sandbox's bundle.
const FILE: &str = "sandbox.json";

/// What a sandbox consists of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The pod's init, if its containers share their pids.
    pub init: Option<Init>,
    /// Where its files are.
    pub dirs: Dirs,
    /// The containers that exist, or are about to be created, by ID.
    pub members: BTreeMap<String, Member>,
}

/// A container of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Member {
    /// Its bundle.
    pub bundle: PathBuf,
    /// `linux.cgroupsPath` of its `config.json`.
    pub cgroups_path: String,
    /// The OCI runtime's options.
    pub options: Options,
}

/// A process, not to be mistaken for another one that gets its pid later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// Its pid.
    pub pid: i32,
    /// When it was forked, in milliseconds since boot.
    pub started: u64,
}

impl Init {
    /// The process that now has `pid`; `None` when it has gone.
    pub fn of(pid: i32) -> Option<Init> {
        let started = milliseconds(reaper::started(pid)?);
        Some(Init { pid, started })
    }

    /// Whether it is there still, alive or not reaped.
    pub fn exists(&self) -> bool {
        Init::of(self.pid).as_ref() == Some(self)
    }

    /// Kills it (SIGKILL), if it is there still.
    pub fn kill(&self) -> Result<()> {
        let killed = reaper::signal_if(self.pid, reaper::SIGKILL, || self.exists());
        killed
            .map(drop)
            .context(|| format!("kill the pod's init (process {})", self.pid))
    }
}

fn milliseconds(time: Duration) -> u64 {
    time.as_millis() as u64
}

impl Record {
    /// What the bundle has; `None` when it has none.
    pub fn read(bundle: &Bundle) -> Result<Option<Record>> {
        let Some(text) = bundle.read(FILE)? else {
            return Ok(None);
        };
        let path = bundle.path().join(FILE);
        let record = serde_json::from_str(&text);
        record.context(|| format!("parse {}", path.display()))
    }

    /// Puts it in place of an older one. May block.
    pub fn write(&self, bundle: &Bundle) -> Result<()> {
        let json = serde_json::to_vec(self).context(|| format!("encode {FILE}"))?;
        bundle.write(FILE, &json, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(dir.path());
        assert_eq!(Record::read(&bundle), Ok(None));
        let options = Options {
            binary_name: "crun".into(),
            root: "/r".into(),
            systemd_cgroup: true,
            ..Options::default()
        };
        let member = Member {
            bundle: "/b/c1".into(),
            cgroups_path: "/k/c1".into(),
            options,
        };
        let record = Record {
            init: Some(Init { pid: 7, started: 8 }),
            members: [("c1".to_owned(), member)].into(),
            ..Record::default()
        };
        record.write(&bundle).unwrap();
        assert_eq!(Record::read(&bundle), Ok(Some(record)));
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let error = Record::read(&bundle).unwrap_err().to_string();
        assert!(error.contains("/sandbox.json: EOF"), "{error}");
    }

    #[test]
    fn process_with_another_start_time_is_another_process() {
        let own = Init::of(std::process::id() as i32).unwrap();
        assert!(own.exists());
        let other = Init {
            started: own.started + 10,
            ..own
        };
        assert!(!other.exists());
        assert_eq!(other.kill(), Ok(()));
    }
}
