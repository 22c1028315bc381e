//! The cgroup that an OCI runtime makes for a container, by what `config.json` asks for:
//! it is found without the runtime, which may have been killed before it kept any state.
//!
//! Promises: it is touched only where it is the container's alone, so far as that can be
//! told: this process and its parent, containerd, are not in it or below, and it is no
//! slice. Processes in it are killed only if it is named after the container. A directory
//! is removed only when it is empty.
//!
//! Lacks on purpose: scopes of a user's own systemd, which removes them itself.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use tokio::time::{Instant, sleep};

use super::kill::{self, DIRECTORIES_PER_PASS, Turn};
use super::locate::{Others, Place, places_named};
use super::tree::{Step, Walk};
use crate::error::{Context, Error, Kind, Result};
use crate::options::Options;
use crate::reaper::{TICK, started};

/// Between two tries to remove a directory whose processes are dying.
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

/// What asks for a container's cgroup.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plan<'a> {
    /// `linux.cgroupsPath`: a path, or `SLICE:PREFIX:NAME` with systemd, or empty.
    pub cgroups_path: &'a str,
    /// The container's id.
    pub id: &'a str,
    /// systemd makes the cgroup.
    pub systemd: bool,
    /// The option ShimCgroup, where the shim's server and the runtime are; empty: none.
    pub shim_cgroup: &'a str,
}

impl<'a> Plan<'a> {
    /// Of container `id`: `cgroups_path` is what `config.json` says.
    pub fn new(id: &'a str, cgroups_path: &'a str, options: &'a Options) -> Self {
        Plan {
            cgroups_path,
            id,
            systemd: options.systemd_cgroup,
            shim_cgroup: &options.shim_cgroup,
        }
    }
}

/// Whether systemd is to make the cgroup that `config.json` calls `cgroups_path`: the options
/// say so; or that is of systemd's form, systemd runs, and no option refuses it. Without
/// systemd such a path is a name as any other. May block.
pub fn is_systemds(options: &Options, cgroups_path: &str) -> bool {
    is_systemds_in(Path::new("/"), options, cgroups_path)
}

fn is_systemds_in(root: &Path, options: &Options, cgroups_path: &str) -> bool {
    let is_meant = has_systemds_form(cgroups_path) && !options.is_systemd_refused;
    options.systemd_cgroup || (is_meant && systemd_runs(root))
}

/// Whether systemd is the init of the system whose root is `root`, by the sign that
/// sd_booted(3) looks for.
pub fn systemd_runs(root: &Path) -> bool {
    root.join("run/systemd/system").is_dir()
}

/// Whether `path` is `SLICE:PREFIX:NAME`.
fn has_systemds_form(path: &str) -> bool {
    match path.split(':').collect::<Vec<_>>()[..] {
        [slice, _prefix, name] => {
            slice.ends_with(".slice") && !name.is_empty() && !path.contains('/')
        }
        _ => false,
    }
}

/// Where a container's cgroup is, or was to be.
pub struct Planned {
    /// Those that exist and are the container's alone.
    places: Vec<Place>,
    /// Plain directories that crun makes where a hierarchy of v1 could be mounted.
    plain: Vec<PathBuf>,
    /// It is named after the container.
    is_named: bool,
}

impl Planned {
    /// Looks for the cgroup of `plan`.
    pub fn find(plan: Plan<'_>) -> Result<Planned> {
        Self::find_in(Path::new("/"), plan)
    }

    fn find_in(root: &Path, plan: Plan<'_>) -> Result<Planned> {
        let others = Others::of(root).context(|| "read this process's cgroups")?;
        let names = names(plan);
        let (mut places, plain) = places_named(root, &names, plan.shim_cgroup)?;
        places.retain(|place| !others.are_in(place));
        Ok(Planned {
            places,
            plain,
            is_named: is_named(plan),
        })
    }

    /// An error if this process or its parent is in the cgroup that `plan` names, or below:
    /// the OCI runtime would kill them with the container, at Delete at the latest.
    pub fn check_alone(plan: Plan<'_>) -> Result<()> {
        Self::check_alone_in(Path::new("/"), plan)
    }

    fn check_alone_in(root: &Path, plan: Plan<'_>) -> Result<()> {
        let others = Others::of(root).context(|| "read this process's cgroups")?;
        let mut names = names(plan);
        names.retain(|name| {
            let leaf = name.path.file_name().unwrap_or_default();
            !name.is_relative && others.are_below(leaf)
        });
        if names.is_empty() {
            // As almost always: the mounts need not be looked at.
            return Ok(());
        }
        let (places, _) = places_named(root, &names, plan.shim_cgroup)?;
        match places.iter().find(|place| others.are_in(place)) {
            None => Ok(()),
            Some(place) => Err(Error::new(
                Kind::FailedPrecondition,
                format!(
                    "cgroup {}: the shim or its parent is in it and would be killed with the container",
                    place.path.display()
                ),
            )),
        }
    }

    /// Whether there is any of it.
    pub fn exists(&self) -> bool {
        !(self.places.is_empty() && self.plain.is_empty())
    }

    /// Whether a process in it or below was started earlier than `since`, a time since boot:
    /// if the container was made later, that is another's.
    pub fn has_process_from_before(&self, since: Duration) -> bool {
        let pids = |place: &Place| super::collect_pids(&place.dir).unwrap_or_default();
        let mut pids = self.places.iter().flat_map(pids);
        pids.any(|pid| started(pid).is_some_and(|at| at + TICK <= since))
    }

    /// Kills all in it and below, frozen or not, if it is named after the container. An
    /// error when somebody may be left, at the latest after `limit`.
    pub async fn kill(&self, limit: Duration) -> Result<()> {
        if !self.is_named {
            return Ok(());
        }
        let deadline = Instant::now() + limit;
        for place in &self.places {
            // One by one: half-made, it may have other processes in each hierarchy.
            kill::kill(&[place], deadline - Instant::now()).await?;
        }
        let places: Vec<&Place> = self.places.iter().collect();
        kill::thaw(&places, deadline - Instant::now())
            .await
            .map(drop)
    }

    /// Removes what is below it, as far as nobody is in there: youki deletes no container that
    /// has made cgroups, and runc leaves those that are too deep for a path. What stays after
    /// `limit` is the runtime's to report.
    pub async fn remove_below(&self, limit: Duration) {
        let (deadline, mut turn) = (Instant::now() + limit, Turn::default());
        for place in &self.places {
            let removed = remove_below(&place.dir, &mut turn, deadline).await;
            removed.unwrap_or_else(|e| {
                log::warn!("remove cgroups below {}: {e}", place.dir.display())
            });
        }
    }

    /// Removes it and what is below, as far as it is empty, once what was killed is dead.
    /// An error when something is left, at the latest after `limit`.
    pub async fn remove(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let dirs = self.places.iter().map(|place| &place.dir);
        let mut outcome = Ok(());
        for dir in dirs.chain(&self.plain) {
            let removed = remove_tree(dir, deadline).await;
            outcome = outcome.and(removed.context(|| format!("remove cgroup {}", dir.display())));
        }
        outcome
    }
}

/// Removes all below `dir` that is empty, deepest first.
async fn remove_below(dir: &Path, turn: &mut Turn, deadline: Instant) -> io::Result<()> {
    let Ok(mut walk) = Walk::new(dir, DIRECTORIES_PER_PASS) else {
        return Ok(());
    };
    while let Some(step) = walk.next() {
        if let Step::Out(name) = step {
            // If it is not empty, neither is what it is in.
            let _ = walk.remove(&name);
        }
        turn.step(deadline).await?;
    }
    Ok(())
}

/// Removes `dir` and all below, deepest first; tries again while processes are dying.
async fn remove_tree(dir: &Path, deadline: Instant) -> io::Result<()> {
    let mut turn = Turn::default();
    loop {
        remove_below(dir, &mut turn, deadline).await?;
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.raw_os_error() == Some(Errno::EBUSY as i32)
                    && Instant::now() < deadline =>
            {
                sleep(REMOVE_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// Whether the cgroup of `plan` is named after the container (`ID`, `PREFIX-ID`), and so most
/// likely nobody else's.
fn is_named(plan: Plan<'_>) -> bool {
    let path = plan.cgroups_path;
    let name = match path.split(':').collect::<Vec<_>>()[..] {
        // The runtime chooses the name.
        [""] => plan.id,
        [_slice, _prefix, name] if plan.systemd => name,
        _ => path.rsplit('/').next().unwrap_or_default(),
    };
    let prefix = name.strip_suffix(plan.id);
    !plan.id.is_empty() && prefix.is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('-'))
}

/// A name that a cgroup may have.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Without a leading slash.
    pub path: PathBuf,
    /// It may also be meant to be below the runtime's own cgroup, or beside that.
    pub is_relative: bool,
}

/// The names that runc, crun and youki give to the cgroup of `plan`.
fn names(plan: Plan<'_>) -> Vec<Name> {
    let name = |path: &Path, is_relative| Name {
        path: path.into(),
        is_relative,
    };
    let path = plan.cgroups_path;
    let names = match (plan.systemd, &path.split(':').collect::<Vec<_>>()[..]) {
        (true, [""]) => ["runc", "crun", "youki"]
            .map(|prefix| name(&scope("", prefix, plan.id), false))
            .into(),
        (true, [slice, prefix, unit]) => vec![name(&scope(slice, prefix, unit), false)],
        (_, [""]) => vec![name(Path::new(plan.id), true)],
        _ => match Path::new(path).strip_prefix("/") {
            Ok(path) => vec![name(path, false)],
            Err(_) => vec![name(Path::new(path), true)],
        },
    };
    let is_plain = |name: &Name| {
        let mut parts = name.path.components();
        parts.clone().next().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
    };
    let is_slice = |name: &Name| name.path.extension().is_some_and(|kind| kind == "slice");
    let mut names: BTreeSet<Name> = names.into_iter().collect();
    names.retain(|name| is_plain(name) && !is_slice(name));
    names.into_iter().collect()
}

/// The path of a pod's cgroup, as CRI calls it: a path, or the name of a slice of systemd's.
pub fn parent(name: &str) -> PathBuf {
    match name.ends_with(".slice") && !name.contains('/') {
        true => slice_path(name),
        false => PathBuf::from(name.trim_start_matches('/')),
    }
}

/// The path of systemd's scope `PREFIX-UNIT.scope` in a slice.
fn scope(slice: &str, prefix: &str, unit: &str) -> PathBuf {
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let mut path = slice_path(slice);
    path.push(match prefix {
        "" => format!("{unit}.scope"),
        prefix => format!("{prefix}-{unit}.scope"),
    });
    path
}

/// The path of a slice: `a-b.slice` is in `a.slice`.
fn slice_path(slice: &str) -> PathBuf {
    let name = slice.strip_suffix(".slice").unwrap_or(slice);
    let mut path = PathBuf::new();
    // `-.slice` is the root.
    if name != "-" {
        for (end, _) in name.match_indices('-') {
            path.push(format!("{}.slice", &name[..end]));
        }
        path.push(format!("{name}.slice"));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;

    fn names_of(cgroups_path: &str, id: &str, systemd: bool) -> Vec<(String, bool)> {
        let plan = Plan {
            cgroups_path,
            id,
            systemd,
            ..Plan::default()
        };
        let name = |name: Name| (name.path.display().to_string(), name.is_relative);
        names(plan).into_iter().map(name).collect()
    }

    #[test]
    fn names_are_those_that_runtimes_give() {
        for (path, systemd, name, is_relative) in [
            ("/kubepods/pod1/c1", false, "kubepods/pod1/c1", false),
            ("docker/c1", false, "docker/c1", true),
            ("", false, "c1", true),
            (
                "system.slice:docker:c1",
                true,
                "system.slice/docker-c1.scope",
                false,
            ),
            (":runc:c1", true, "system.slice/runc-c1.scope", false),
            (
                "a-b-c.slice:cri:c1",
                true,
                "a.slice/a-b.slice/a-b-c.slice/cri-c1.scope",
                false,
            ),
            ("-.slice:x:c1", true, "x-c1.scope", false),
        ] {
            assert_eq!(
                names_of(path, "c1", systemd),
                [(name.to_string(), is_relative)],
                "{path}"
            );
        }
        let scopes = names_of("", "c1", true);
        assert_eq!(scopes.len(), 3);
        assert!(
            scopes.contains(&("system.slice/crun-c1.scope".into(), false)),
            "{scopes:?}"
        );
    }

    #[test]
    fn systemd_makes_cgroups_of_its_form_where_it_runs() {
        let none = Options::default();
        let [asked, refused] = [(true, false), (false, true)].map(|(asked, refused)| Options {
            systemd_cgroup: asked,
            is_systemd_refused: refused,
            ..Options::default()
        });
        let (with, without) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(with.path().join("run/systemd/system")).unwrap();
        let is =
            |root: &tempfile::TempDir, options, path| is_systemds_in(root.path(), options, path);
        for path in ["system.slice:docker:c1", "a-b.slice:cri:c1", "-.slice::c1"] {
            assert!(is(&with, &none, path), "{path}");
            assert!(!is(&with, &refused, path), "{path}");
            assert!(!is(&without, &none, path), "{path}");
            assert!(is(&without, &asked, path), "{path}");
        }
        for path in [
            "",
            "/k8s.io/c1",
            "c1",
            "a:b:c",
            ":runc:c1",
            "a.slice:b:",
            "a.slice:b:c:d",
            "/a.slice:b:c",
            "a.slice:b:c/d",
            "a.slice/c1",
            "::",
        ] {
            assert!(!is(&with, &none, path), "{path}");
            assert!(is(&with, &asked, path), "{path}");
        }
    }

    #[test]
    fn names_that_leave_the_root_or_are_slices_are_ignored() {
        for path in ["/", "/a/../b", "../a", "/user.slice", "a/b.slice", "//.."] {
            assert_eq!(names_of(path, "c1", false), [], "{path}");
        }
        assert_eq!(names_of("", "", false), []);
    }

    /// A system with two hierarchies of v1, this process being in `/shim` of both.
    fn system() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let dir = |path: &str| fs::create_dir_all(root.path().join(path)).unwrap();
        for path in [
            "proc/self",
            "sys/fs/cgroup/cpu",
            "sys/fs/cgroup/freezer/shim",
            "sys/fs/cgroup/net_cls",
        ] {
            dir(path);
        }
        let write = |path: &str, text: &str| fs::write(root.path().join(path), text).unwrap();
        write("proc/self/cgroup", "2:cpu:/shim\n1:freezer:/shim\n");
        write(
            "proc/self/mountinfo",
            "30 1 0:1 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
             31 30 0:2 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
             32 30 0:3 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n",
        );
        root
    }

    fn planned(root: &tempfile::TempDir, cgroups_path: &str) -> Planned {
        let plan = Plan {
            cgroups_path,
            id: "c1",
            ..Plan::default()
        };
        Planned::find_in(root.path(), plan).unwrap()
    }

    #[tokio::test]
    async fn empty_cgroups_are_removed_in_every_hierarchy() {
        let limit = Duration::from_secs(60);
        let root = system();
        assert!(!planned(&root, "/k/c1").exists());
        for dir in ["cpu/k/c1/a/b", "cpu/k/c1/c", "freezer/k/c1", "net_cls/k/c1"] {
            fs::create_dir_all(root.path().join("sys/fs/cgroup").join(dir)).unwrap();
        }
        let found = planned(&root, "/k/c1");
        assert!(found.exists() && !found.has_process_from_before(Duration::MAX));
        found.kill(limit).await.unwrap();
        found.remove(limit).await.unwrap();
        for hierarchy in ["cpu", "freezer", "net_cls"] {
            let above = root.path().join("sys/fs/cgroup").join(hierarchy).join("k");
            assert_eq!(fs::read_dir(above).unwrap().count(), 0, "{hierarchy}");
        }
        assert!(!planned(&root, "/k/c1").exists());
        found.remove(limit).await.expect("once more");
    }

    #[tokio::test]
    async fn cgroups_below_are_removed_alone() {
        let root = system();
        let dir = root.path().join("sys/fs/cgroup/cpu/k/c1");
        fs::create_dir_all(dir.join("a/b")).unwrap();
        let limit = Duration::from_secs(60);
        planned(&root, "/k/c1").remove_below(limit).await;
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn populated_cgroups_stay() {
        let limit = Duration::from_secs(60);
        let root = system();
        let dir = root.path().join("sys/fs/cgroup/cpu/k/c1/a");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("file"), "").unwrap();
        let error = planned(&root, "/k/c1").remove(limit).await.unwrap_err();
        assert!(error.to_string().starts_with("remove cgroup /"), "{error}");
        assert!(dir.join("file").exists());
    }

    #[tokio::test]
    async fn relative_names_are_below_or_beside_the_shims_cgroup() {
        let root = system();
        for dir in ["cpu/shim/x/c1", "freezer/x/c1"] {
            let dir = root.path().join("sys/fs/cgroup").join(dir);
            fs::create_dir_all(&dir).unwrap();
            assert!(planned(&root, "x/c1").exists(), "{dir:?}");
            fs::remove_dir(dir).unwrap();
        }
        assert!(!planned(&root, "x/c1").exists());
    }

    #[test]
    fn cgroups_that_the_shim_is_in_are_left_alone() {
        let root = system();
        for path in ["/shim", "shim"] {
            assert!(!planned(&root, path).exists(), "{path}");
        }
        let below = "2:cpu:/shim/below\n1:freezer:/shim/below\n";
        fs::write(root.path().join("proc/self/cgroup"), below).unwrap();
        assert!(!planned(&root, "/shim").exists());
    }

    #[test]
    fn cgroups_that_the_shim_is_in_are_refused() {
        let root = system();
        let check = |cgroups_path| {
            let plan = Plan {
                cgroups_path,
                id: "c1",
                ..Plan::default()
            };
            Planned::check_alone_in(root.path(), plan)
        };
        for path in ["/k/c1", "/other/shim", "/shim/c1", "shim", ""] {
            check(path).unwrap_or_else(|e| panic!("{path}: {e}"));
        }
        let error = check("/shim").unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
        let below = "2:cpu:/\n1:freezer:/shim/below\n";
        fs::write(root.path().join("proc/self/cgroup"), below).unwrap();
        assert!(check("/shim").is_err());
    }

    #[tokio::test]
    async fn kill_does_not_touch_a_cgroup_of_another_name() {
        let root = system();
        let dir = root.path().join("sys/fs/cgroup/cpu/others");
        fs::create_dir(&dir).unwrap();
        // No pid: whoever reads it fails.
        fs::create_dir(dir.join("cgroup.procs")).unwrap();
        let limit = Duration::from_secs(60);
        planned(&root, "/others").kill(limit).await.unwrap();
        fs::rename(&dir, dir.with_file_name("other-c1")).unwrap();
        let named = planned(&root, "/other-c1");
        assert!(named.kill(limit).await.is_err());
        let procs = dir.with_file_name("other-c1").join("cgroup.procs");
        fs::remove_dir(&procs).unwrap();
        fs::write(&procs, "4711\n").unwrap();
    }

    #[test]
    fn processes_from_before_are_told_by_their_start() {
        let root = system();
        let dir = root.path().join("sys/fs/cgroup/cpu/k/c1");
        fs::create_dir_all(&dir).unwrap();
        let procs = format!("{}\n", std::process::id());
        fs::write(dir.join("cgroup.procs"), procs).unwrap();
        let at = started(std::process::id() as i32).unwrap();
        let now = sys::process::since_boot();
        let recently = now.saturating_sub(Duration::from_secs(86400));
        assert!((recently..=now).contains(&at), "{at:?} of {now:?}");
        let planned = planned(&root, "/k/c1");
        assert!(!planned.has_process_from_before(at));
        assert!(planned.has_process_from_before(at + TICK));
    }
}
