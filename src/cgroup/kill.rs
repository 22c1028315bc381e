//! Killing and thawing all that is in a cgroup and below, without the OCI runtime.
//!
//! Promises: nobody outside is signalled, as a process is known to be inside once its
//! number cannot be another's any more; neither the number of processes nor of cgroups
//! holds up the thread, as this yields every few steps; it ends by a deadline. A process
//! that is sent SIGKILL forks no more, so that all are killed when a whole pass finds
//! nobody new; a cgroup that forks faster than passes are made is frozen meanwhile.
//!
//! Lacks on purpose: waiting for the dead, which is the reaper's.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::locate::Place;
use super::tree::Walk;
use super::{is_gone, parse_pids};
use crate::error::{Context, Result};
use crate::reaper::signal_if;

/// Directories that are looked at, or processes that are signalled, before other work has
/// its turn. Each takes some 20 microseconds.
const STEPS_PER_TURN: usize = 64;

/// Directories that a pass looks at.
pub const DIRECTORIES_PER_PASS: usize = 100_000;

/// Bytes of a `cgroup.procs` that are read: more than all pids that the kernel can have.
const PROCS_PER_PASS: u64 = 64 << 20;

/// Passes that find somebody new before the cgroup is frozen.
const PASSES_UNFROZEN: usize = 3;

/// Between two passes.
const PASS_PAUSE: Duration = Duration::from_millis(1);

/// Kills all in `places`, those of one cgroup in each hierarchy, and below. An error when
/// somebody may be left, at the latest after `limit`.
pub async fn kill(places: &[&Place], limit: Duration) -> Result<()> {
    if let [place] = places
        && place.controllers.is_empty()
        && kill_at_once(&place.dir)?
    {
        return Ok(());
    }
    let deadline = Instant::now() + limit;
    let mut turn = Turn::default();
    let mut killed = BTreeSet::new();
    let mut frozen = None;
    for pass in 0.. {
        let before = killed.len();
        for place in places {
            kill_in(place, &mut killed, &mut turn, deadline)
                .await
                .context(|| format!("kill cgroup {}", place.dir.display()))?;
        }
        if killed.len() == before {
            break;
        }
        if pass == PASSES_UNFROZEN {
            frozen = places.iter().find_map(|place| Frozen::freeze(place));
        }
        sleep(PASS_PAUSE).await;
    }
    drop(frozen);
    Ok(())
}

/// By `cgroup.kill`. False where that is not to be had.
fn kill_at_once(dir: &Path) -> Result<bool> {
    const REFUSED: [Errno; 3] = [Errno::EOPNOTSUPP, Errno::EACCES, Errno::EPERM];
    let killed = super::files::write(&dir.join("cgroup.kill"), "1");
    match killed {
        Ok(()) => Ok(true),
        // Where there is no cgroup there is nobody to kill.
        Err(error) if is_gone(&error) => Ok(!dir.exists()),
        Err(error) if REFUSED.iter().any(|errno| is(&error, *errno)) => Ok(false),
        Err(error) => Err(error).context(|| format!("kill cgroup {}", dir.display())),
    }
}

/// One pass through one hierarchy.
async fn kill_in(
    place: &Place,
    killed: &mut BTreeSet<i32>,
    turn: &mut Turn,
    deadline: Instant,
) -> io::Result<()> {
    let mut walk = match Walk::new(&place.dir, DIRECTORIES_PER_PASS) {
        Err(error) if is_gone(&error) => return Ok(()),
        walk => walk?,
    };
    let mut text = Vec::new();
    while walk.enter() {
        turn.step(deadline).await?;
        text.clear();
        match walk.read("cgroup.procs", PROCS_PER_PASS, &mut text) {
            // It went away, or lists its processes further up.
            Err(error) if is_gone(&error) || is(&error, Errno::EOPNOTSUPP) => continue,
            read => read?,
        }
        for pid in parse_pids(&text) {
            if signal_if(pid, Signal::SIGKILL as i32, || is_in(place, pid))? {
                killed.insert(pid);
            }
            turn.step(deadline).await?;
        }
    }
    if walk.is_cut() {
        let message = format!("more than {DIRECTORIES_PER_PASS} child cgroups");
        return Err(io::Error::other(message));
    }
    Ok(())
}

fn is_in(place: &Place, pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| place.holds(&text))
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// What is done before others have their turn.
#[derive(Default)]
pub struct Turn(usize);

impl Turn {
    /// One step more; now and then others have their turn. An error after `deadline`.
    pub async fn step(&mut self, deadline: Instant) -> io::Result<()> {
        self.0 += 1;
        if self.0.is_multiple_of(STEPS_PER_TURN) {
            yield_now().await;
            if Instant::now() >= deadline {
                return Err(io::Error::other("timed out"));
            }
        }
        Ok(())
    }
}

/// A cgroup that is frozen while this lives.
struct Frozen<'a>(&'a Place);

impl<'a> Frozen<'a> {
    fn freeze(place: &'a Place) -> Option<Frozen<'a>> {
        let (file, frozen, _) = freezer(place)?;
        super::files::write(&place.dir.join(file), frozen).ok()?;
        Some(Frozen(place))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Some((file, _, thawed)) = freezer(self.0)
            && let Err(error) = super::files::write(&self.0.dir.join(file), thawed)
            && !is_gone(&error)
        {
            log::error!(cgroup:% = self.0.dir.display(); "thaw cgroup: {error}");
        }
    }
}

/// The file to freeze a cgroup by, and what to write to it for frozen and for thawed.
fn freezer(place: &Place) -> Option<(&'static str, &'static str, &'static str)> {
    if place.controllers.is_empty() {
        return Some(("cgroup.freeze", "1", "0"));
    }
    place
        .has("freezer")
        .then_some(("freezer.state", "FROZEN", "THAWED"))
}

/// Thaws the cgroup whose places these are and those below. Whether any was frozen.
pub async fn thaw(places: &[&Place], limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    let mut thawed = false;
    for place in places {
        if let Some((file, _, word)) = freezer(place) {
            thawed |= thaw_in(place, file, word, deadline)
                .await
                .context(|| format!("thaw cgroup {}", place.dir.display()))?;
        }
    }
    Ok(thawed)
}

async fn thaw_in(place: &Place, file: &str, word: &str, deadline: Instant) -> io::Result<bool> {
    let mut walk = match Walk::new(&place.dir, DIRECTORIES_PER_PASS) {
        Err(error) if is_gone(&error) => return Ok(false),
        walk => walk?,
    };
    let says = |walk: &Walk, file: &str, text: &mut Vec<u8>| {
        text.clear();
        walk.read(file, 64, text).is_ok() && text.trim_ascii() == b"1"
    };
    let asked = match file {
        "freezer.state" => "freezer.self_freezing",
        file => file,
    };
    let (mut thawed, mut turn, mut text) = (false, Turn::default(), Vec::new());
    while walk.enter() {
        turn.step(deadline).await?;
        if says(&walk, asked, &mut text) {
            match walk.write(file, word) {
                Err(error) if !is_gone(&error) => return Err(error),
                _ => thawed = true,
            }
        }
    }
    if let Ok(top) = Walk::new(&place.dir, 1)
        && says(&top, "freezer.parent_freezing", &mut text)
    {
        log::warn!(
            cgroup:% = place.dir.display();
            "cgroup remains frozen: its parent is frozen"
        );
    }
    Ok(thawed)
}
