//! `check`: what this machine offers to the shim, and what is to be mended, for people.
//!
//! Promises: an answer within some [`LIMIT`]s, whatever a program, a file or a process that is
//! looked at does; nothing is changed; what cannot be parsed is reported as such.
//!
//! Lacks on purpose: containerds in other mount namespaces, whose files are not seen from here
//! (they are named); a test that starts a container.

mod containerd;
mod machine;
mod programs;
mod runtimes;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;

use self::containerd::Containerd;
use crate::blocking;
use crate::error::{Context, Error, Kind, Result};
use crate::reaper::Reaper;

/// How long a program may run, and how long files may take to be read: a busy machine takes
/// seconds to load one. Programs of a kind run at the same time.
const LIMIT: Duration = Duration::from_secs(10);

/// The widest column of the table, in characters: longer texts are not padded to.
const MAX_WIDTH: usize = 60;

/// What is read when programs are looked up.
const ON_PATH: &str = "programs on PATH";

/// How it is with something.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// As it should be.
    Good,
    /// What is not available, or to be known.
    Note(String),
    /// What keeps containers from running, and what to do.
    Mend(String),
}

/// What was found of one thing.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// The thing.
    what: String,
    /// What was found.
    found: String,
    verdict: Verdict,
}

impl Finding {
    fn good(what: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding {
            what: what.into(),
            found: found.into(),
            verdict: Verdict::Good,
        }
    }

    fn note(self, text: impl Into<String>) -> Finding {
        Finding {
            verdict: Verdict::Note(text.into()),
            ..self
        }
    }

    fn mend(self, text: impl Into<String>) -> Finding {
        Finding {
            verdict: Verdict::Mend(text.into()),
            ..self
        }
    }

    /// The verdict's name, and its text.
    fn verdict(&self) -> (&'static str, &str) {
        match &self.verdict {
            Verdict::Good => ("ok", ""),
            Verdict::Note(text) => ("note", text),
            Verdict::Mend(text) => ("mend", text),
        }
    }
}

/// Prints what was found, as a table or as JSON. `path` is this process's `PATH`.
///
/// # Errors
/// [`Kind::FailedPrecondition`] when something must be mended.
#[inline(never)] // as `serve::run`
pub fn run(json: bool, path: OsString, output: &mut impl Write) -> Result<()> {
    let reaper = Reaper::new();
    let findings = reaper
        .block_on(look(&reaper, path))
        .context(|| "start the event loop")?;
    let text = match json {
        true => as_json(&findings)?,
        false => as_table(&findings),
    };
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .context(|| "print what was found")?;
    let is_bad = |finding: &&Finding| matches!(finding.verdict, Verdict::Mend(_));
    match findings.iter().filter(is_bad).count() {
        0 => Ok(()),
        count => Err(Error::new(
            Kind::FailedPrecondition,
            format!(
                "check: {count} of {} findings must be mended",
                findings.len()
            ),
        )),
    }
}

async fn look(reaper: &Reaper, path: OsString) -> Vec<Finding> {
    let root = Path::new("/");
    let mut findings = Vec::new();
    let containerds = containerds(root, path, &mut findings).await;
    for containerd in containerds {
        let pid = containerd.pid;
        let found = move || {
            let (shims, runtimes) = (containerd.shims(), runtimes::find_all(&containerd.path));
            (containerd, shims, runtimes)
        };
        match within_limit(ON_PATH, found).await {
            Ok((containerd, shims, runtimes)) => {
                findings.extend(containerd::look(reaper, &containerd, shims).await);
                findings.extend(runtimes::look(reaper, &containerd.path, runtimes).await);
            }
            Err(finding) => findings.push(finding),
        }
        let limits = within_limit("limits", move || machine::limits(root, pid)).await;
        findings.extend(limits.unwrap_or_else(|finding| vec![finding]));
    }
    let machine = within_limit("machine", move || machine::look(root)).await;
    findings.extend(machine.unwrap_or_else(|finding| vec![finding]));
    without_repetition(findings)
}

/// Those that run and whose files are seen; if there is none, the one that `path` has.
async fn containerds(
    root: &'static Path,
    path: OsString,
    findings: &mut Vec<Finding>,
) -> Vec<Containerd> {
    let running = match within_limit("containerd", move || containerd::running(root)).await {
        Ok(running) => running,
        Err(finding) => {
            findings.push(finding);
            Vec::new()
        }
    };
    let (seen, hidden): (Vec<_>, Vec<_>) = running.into_iter().partition(|it| it.is_seen);
    findings.extend(hidden.iter().map(containerd::hidden));
    if !seen.is_empty() {
        return seen;
    }
    match within_limit(ON_PATH, move || Containerd::not_running(path)).await {
        Ok(containerd) => vec![containerd],
        Err(finding) => {
            findings.push(finding);
            Vec::new()
        }
    }
}

/// What `work` answers; what is wrong if it takes too long.
async fn within_limit<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::result::Result<T, Finding> {
    let answer = Arc::new(Mutex::new(None));
    let slot = answer.clone();
    let work = move || {
        let done = work();
        if let Ok(mut slot) = slot.lock() {
            *slot = Some(done);
        }
    };
    // Of one type, whatever the work is: a thread is much code.
    let failure = failure_within_limit(Box::new(work)).await;
    let answer = answer.lock().ok().and_then(|mut slot| slot.take());
    answer.ok_or_else(|| {
        let finding = Finding::good(what, failure.unwrap_or_default());
        finding.mend("find out which file or file system hangs")
    })
}

/// Why `work` is not done.
async fn failure_within_limit(work: Box<dyn FnOnce() + Send>) -> Option<String> {
    match timeout(LIMIT, blocking::run(work)).await {
        Ok(done) => done.err().map(|error| error.to_string()),
        Err(_) => Some(format!("not read within {} s", LIMIT.as_secs())),
    }
}

/// Each finding once: two containerds share most of them.
fn without_repetition(findings: Vec<Finding>) -> Vec<Finding> {
    let mut kept: Vec<Finding> = Vec::new();
    for finding in findings {
        if !kept.contains(&finding) {
            kept.push(finding);
        }
    }
    kept
}

fn as_table(findings: &[Finding]) -> String {
    let width = |of: fn(&Finding) -> &str| {
        let widths = findings.iter().map(|finding| of(finding).chars().count());
        let widths = widths.filter(|width| *width <= MAX_WIDTH);
        widths.max().unwrap_or_default()
    };
    let (what, found) = (width(|f| &f.what), width(|f| &f.found));
    let mut table = String::new();
    for finding in findings {
        let verdict = match finding.verdict() {
            (name, "") => name.to_owned(),
            (name, text) => format!("{name}: {text}"),
        };
        let line = format!(
            "{:what$}  {:found$}  {verdict}\n",
            finding.what, finding.found
        );
        table.push_str(&line);
    }
    table
}

/// A finding in JSON.
#[derive(Serialize)]
struct Entry<'a> {
    what: &'a str,
    found: &'a str,
    /// `ok`, `note` or `mend`.
    verdict: &'a str,
    text: &'a str,
}

impl Entry<'_> {
    fn of(finding: &Finding) -> Entry<'_> {
        let (verdict, text) = finding.verdict();
        Entry {
            what: &finding.what,
            found: &finding.found,
            verdict,
            text,
        }
    }
}

fn as_json(findings: &[Finding]) -> Result<String> {
    let entries: Vec<Entry> = findings.iter().map(Entry::of).collect();
    serde_json::to_string_pretty(&entries)
        .map(|text| text + "\n")
        .context(|| "encode what was found")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn three() -> Vec<Finding> {
        vec![
            Finding::good("kernel", "6.1"),
            Finding::good("criu", "not found").note("no checkpoints"),
            Finding::good("OCI runtime", "none").mend("install one"),
        ]
    }

    #[test]
    fn table_has_a_line_for_each_finding() {
        let expected = "kernel       6.1        ok\n\
                        criu         not found  note: no checkpoints\n\
                        OCI runtime  none       mend: install one\n";
        assert_eq!(as_table(&three()), expected);
        assert_eq!(as_table(&[]), "");
    }

    #[test]
    fn json_has_the_same() {
        let json: Value = serde_json::from_str(&as_json(&three()).unwrap()).unwrap();
        let entry = |what, found, verdict, text| json!({"what": what, "found": found, "verdict": verdict, "text": text});
        assert_eq!(
            json,
            json!([
                entry("kernel", "6.1", "ok", ""),
                entry("criu", "not found", "note", "no checkpoints"),
                entry("OCI runtime", "none", "mend", "install one"),
            ])
        );
    }

    #[test]
    fn what_two_containerds_share_is_said_once() {
        let twice = three().into_iter().chain(three()).collect();
        assert_eq!(without_repetition(twice), three());
    }

    #[tokio::test(start_paused = true)]
    async fn file_that_hangs_is_given_up() {
        let (sender, hang) = std::sync::mpsc::channel::<()>();
        let finding = within_limit("limits", move || hang.recv())
            .await
            .unwrap_err();
        assert_eq!(
            (&*finding.what, &*finding.found),
            ("limits", "not read within 10 s")
        );
        assert_eq!(finding.verdict().0, "mend");
        drop(sender);
    }
}
