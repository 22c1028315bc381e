//! A container's cgroup, on v1 and v2: who is in it, and what it used.
//!
//! Promises: where it is, is found out once, while the container's init certainly is
//! in it; later reads cannot meet another cgroup that has taken over the pid. Every
//! call reads or writes a few small kernel files and does not block.
//!
//! Lacks on purpose: limits. The OCI runtime sets them.

pub(crate) mod files;
mod kill;
mod locate;
mod planned;
mod tree;
mod v1;
mod v2;

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::error::{Context, Error, Kind, Result};
use crate::proto::{Any, Message};
use files::Reader;
use locate::{Located, Others, Place};
pub use planned::{Plan, Planned, is_systemds, systemd_runs};
use tree::Walk;

/// Directories that one question looks at: each takes some 20 microseconds.
const DIRECTORIES_PER_QUESTION: usize = 512;

/// Processes that one answer names.
const PIDS_PER_ANSWER: usize = 32 << 10;

/// Bytes of a `cgroup.procs` that are read for one answer.
const PROCS_PER_ANSWER: u64 = 1 << 20;

/// What a cgroup used, as clients get it: `io.containerd.cgroups.v1.Metrics` or
/// `io.containerd.cgroups.v2.Metrics`.
pub type Stats = Any;

/// A container's cgroup, resolved once, at Create, from its init's pid.
pub struct Cgroup {
    /// `/`, but for tests.
    root: PathBuf,
    located: Located,
    /// The sizes that this kernel has; found when first needed.
    huge_pages: OnceCell<Vec<String>>,
    /// With the files of [`Cgroup::keep_open`].
    reader: RefCell<Option<Reader>>,
    /// The statistics of [`Cgroup::keep_stats`].
    kept: RefCell<Option<Stats>>,
}

/// How cgroups are mounted: `v1`, `v2`, or `hybrid`, which is v1 with a v2 hierarchy
/// without controllers beside it.
pub fn mode() -> &'static str {
    let is_v2 =
        |path: &str| statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
    match (is_v2("/sys/fs/cgroup"), is_v2("/sys/fs/cgroup/unified")) {
        (true, _) => "v2",
        (false, true) => "hybrid",
        (false, false) => "v1",
    }
}

/// The directory whose files tell of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryDir<'a> {
    /// It has a `memory.oom_control`.
    V1(&'a Path),
    /// It has a `memory.events`.
    V2(&'a Path),
}

impl Cgroup {
    /// The cgroup of process `pid`: on v2 one directory, on v1 and hybrid systems one
    /// a controller. NotFound when it is in none but the root, as a process is that
    /// has ended: what is in there is not the container's.
    pub fn of(pid: i32) -> Result<Cgroup> {
        Self::of_in(Path::new("/"), pid)
    }

    pub(crate) fn of_in(root: &Path, pid: i32) -> Result<Cgroup> {
        Ok(Self::at(root, locate::of(root, pid)?))
    }

    fn at(root: &Path, located: Located) -> Cgroup {
        Self {
            root: root.to_owned(),
            located,
            huge_pages: OnceCell::new(),
            reader: RefCell::default(),
            kept: RefCell::default(),
        }
    }

    /// Whether anybody but process `pid`, the init, is in it or below, in any hierarchy. When
    /// the container has just been created these are others', who were there before.
    pub fn has_others(&self, pid: i32) -> bool {
        self.places().iter().any(|place| {
            // One that is gone has nobody.
            collect_pids(&place.dir).is_ok_and(|pids| pids.iter().any(|other| *other != pid))
        })
    }

    /// An error if this process or its parent is in it by now.
    pub fn check_alone(&self) -> Result<()> {
        let others = Others::of(&self.root).context(|| "read this process's cgroups")?;
        match self.places().iter().find(|place| others.are_in(place)) {
            None => Ok(()),
            Some(place) => Err(Error::new(
                Kind::FailedPrecondition,
                format!(
                    "cgroup {}: the shim or its parent is in it",
                    place.dir.display()
                ),
            )),
        }
    }

    /// Its place in each hierarchy.
    fn places(&self) -> Vec<&Place> {
        match &self.located {
            Located::V1(hierarchies) => hierarchies.places().collect(),
            Located::V2 { place, .. } => vec![place],
        }
    }

    /// The processes in it and below (`cgroup.procs`, recursively), sorted, each once: up to
    /// 32,768 of the first 512 cgroups.
    /// An error, never an empty list, when they cannot be read; of kind Unknown
    /// also when the cgroup is gone, for containerd takes NotFound for a lost container.
    pub fn pids(&self) -> Result<Vec<i32>> {
        self.check_alone()?;
        let place = match &self.located {
            Located::V1(hierarchies) => hierarchies.for_pids(),
            Located::V2 { place, .. } => place,
        };
        let pids = collect_pids(&place.dir);
        let pids = pids.context(|| format!("list processes of cgroup {}", place.dir.display()))?;
        Ok(pids.into_iter().collect())
    }

    /// Its statistics. A missing controller or file gives zeros. Once the whole cgroup is
    /// gone: what [`Cgroup::keep_stats`] kept, or NotFound.
    pub fn stats(&self) -> Result<Stats> {
        match self.current_stats() {
            Err(error) if error.kind() == Kind::NotFound => self.kept.borrow().clone().ok_or(error),
            outcome => outcome,
        }
    }

    /// Keeps the statistics of now, to be told when the cgroup is gone: systemd removes
    /// one as soon as nobody is in it, but clients still ask how its container ended.
    /// Statistics of a cgroup that is removed while they are read are incomplete, and do not
    /// replace complete ones.
    pub fn keep_stats(&self) {
        if let Ok(stats) = self.current_stats()
            && (self.exists() || self.kept.borrow().is_none())
        {
            self.kept.replace(Some(stats));
        }
    }

    fn exists(&self) -> bool {
        match &self.located {
            Located::V1(hierarchies) => hierarchies.is_live(),
            Located::V2 { place, .. } => place.dir.exists(),
        }
    }

    /// Whether there are cgroups below it.
    pub fn has_below(&self) -> bool {
        self.places()
            .iter()
            .any(|place| tree::has_directories(&place.dir))
    }

    /// From now on the files that [`Cgroup::stats`] reads stay open, and are not looked for
    /// anew. False if they do already.
    pub fn keep_open(&self) -> bool {
        let mut reader = self.reader.borrow_mut();
        let begun = reader.is_none();
        reader.get_or_insert_with(Reader::keeping_open);
        begun
    }

    /// Closes the files that stayed open.
    pub fn close(&self) {
        self.reader.replace(None);
    }

    fn current_stats(&self) -> Result<Stats> {
        match self.exists() {
            true => self.read_stats(),
            false => Err(gone()),
        }
    }

    /// What is not there gives zeros.
    fn read_stats(&self) -> Result<Stats> {
        let (mut kept, mut passing) = (self.reader.borrow_mut(), Reader::default());
        let reader = kept.as_mut().unwrap_or(&mut passing);
        let huge_pages = || files::huge_page_sizes(&self.root);
        let huge_pages = self.huge_pages.get_or_init(huge_pages);
        let failed = || "read cgroup statistics";
        match &self.located {
            Located::V1(hierarchies) => {
                let metrics = v1::metrics(&self.root, hierarchies, huge_pages, reader);
                packed("v1", &metrics.context(failed)?)
            }
            Located::V2 { place, .. } => {
                let metrics = v2::metrics(&place.dir, huge_pages, reader);
                packed("v2", &metrics.context(failed)?)
            }
        }
    }

    /// Kills every process in it and below, by `cgroup.kill` or one by one. An error when
    /// somebody may be left, at the latest after `limit`.
    pub async fn kill(&self, limit: Duration) -> Result<()> {
        self.check_alone()?;
        kill::kill(&self.places(), limit).await
    }

    /// Thaws it and those below: with v1 what is frozen does not die. Whether any was.
    /// An error when some may be frozen still, at the latest after `limit`.
    pub async fn thaw(&self, limit: Duration) -> Result<bool> {
        self.check_alone()?;
        kill::thaw(&self.places(), limit).await
    }

    /// v2: enables every controller of the root in `cgroup.subtree_control` of each
    /// ancestor. An error when the cgroup's parent refused one; the others are on.
    pub fn enable_controllers(&self) -> Result<()> {
        match &self.located {
            Located::V1(_) => Ok(()),
            Located::V2 { mount, place } => v2::enable_controllers(mount, &place.dir),
        }
    }

    /// Where its memory is told of; `None` without that controller on v1.
    pub fn memory(&self) -> Option<MemoryDir<'_>> {
        match &self.located {
            Located::V1(hierarchies) => hierarchies.dir("memory").map(MemoryDir::V1),
            Located::V2 { place, .. } => Some(MemoryDir::V2(&place.dir)),
        }
    }
}

/// The statistics of a pod's cgroup, by the name that CRI gives: a path, or a slice of systemd's.
/// Zeros when there is none, or none is named.
pub fn stats_of_parent(name: &str) -> Result<Stats> {
    let path = planned::parent(name);
    let located = locate::named(Path::new("/"), path)?;
    Cgroup::at(Path::new("/"), located).read_stats()
}

/// ShimCgroup: puts process `pid` into the existing cgroup `path` (v1: of every controller).
pub fn join(path: &Path, pid: i32) -> Result<()> {
    join_in(Path::new("/"), path, pid)
}

fn join_in(root: &Path, path: &Path, pid: i32) -> Result<()> {
    let dirs = locate::existing(root, path)?;
    if dirs.is_empty() {
        return Err(Error::not_found(format!("cgroup {}", path.display())));
    }
    dirs.iter().try_for_each(|dir| {
        files::write(&dir.join("cgroup.procs"), &pid.to_string())
            .context(|| format!("move process {pid} to cgroup {}", dir.display()))
    })
}

/// The OOM kills counted in `text`, of a `memory.events` or `memory.oom_control`.
fn oom_kills(text: &str) -> u64 {
    value(text, "oom_kill")
}

/// The number that `text`, a file of keys and numbers, has for `key`; else 0.
pub fn value(text: &str, key: &str) -> u64 {
    files::keyed(text)
        .find(|(name, _)| *name == key)
        .map_or(0, |(_, value)| value)
}

/// The OOM kills counted in the first 512 v1 cgroups below `dir`, which its own counter
/// leaves out.
pub fn oom_kills_below(dir: &Path) -> u64 {
    let Ok(mut walk) = Walk::new(dir, DIRECTORIES_PER_QUESTION) else {
        return 0;
    };
    let (mut kills, mut text) = (0, Vec::new());
    // Not those of `dir` itself.
    walk.enter();
    while walk.enter() {
        text.clear();
        if walk.read("memory.oom_control", 512, &mut text).is_ok() {
            kills += str::from_utf8(&text).map_or(0, oom_kills);
        }
    }
    kills
}

fn gone() -> Error {
    Error::not_found("cgroup does not exist")
}

fn packed(version: &str, metrics: &impl Message) -> Result<Stats> {
    let value = metrics.write_to_bytes();
    Ok(Any {
        type_url: format!("io.containerd.cgroups.{version}.Metrics"),
        value: value.context(|| "encode cgroup statistics")?,
        ..Any::default()
    })
}

/// A cgroup may go away between any two calls; an open file of it then says ENODEV.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32)
}

fn collect_pids(dir: &Path) -> io::Result<BTreeSet<i32>> {
    let mut walk = Walk::new(dir, DIRECTORIES_PER_QUESTION)?;
    let (mut pids, mut text, mut is_top) = (BTreeSet::new(), Vec::new(), true);
    while walk.enter() {
        text.clear();
        match walk.read("cgroup.procs", PROCS_PER_ANSWER, &mut text) {
            Ok(()) => pids.extend(parse_pids(&text)),
            // A threaded cgroup; its processes are listed further up.
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {}
            Err(error) if is_gone(&error) && !is_top => {}
            Err(error) => return Err(error),
        }
        is_top = false;
        if pids.len() > PIDS_PER_ANSWER {
            break;
        }
    }
    Ok(pids.into_iter().take(PIDS_PER_ANSWER).collect())
}

/// The pids in `text`, of a `cgroup.procs` that may be cut off, but for 0: a process that
/// our pid namespace does not show.
fn parse_pids(text: &[u8]) -> impl Iterator<Item = i32> {
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let pid = |line: &[u8]| str::from_utf8(line.strip_suffix(b"\n")?).ok()?.parse().ok();
    lines.filter_map(pid).filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{cgroups_v1, cgroups_v2};
    use std::fs;
    use tempfile::TempDir;

    /// A file system with these files: `== PATH` and then the content of each.
    fn recorded(files: &str) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files.split("== ").skip(1) {
            let (path, content) = file.split_once('\n').unwrap();
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    fn v1() -> (TempDir, Cgroup) {
        let root = recorded(include_str!("testdata/v1"));
        let cgroup = Cgroup::of_in(root.path(), 7).unwrap();
        (root, cgroup)
    }

    fn v2() -> (TempDir, Cgroup) {
        let root = recorded(include_str!("testdata/v2"));
        let cgroup = Cgroup::of_in(root.path(), 7).unwrap();
        (root, cgroup)
    }

    fn v1_stats(cgroup: &Cgroup) -> cgroups_v1::Metrics {
        let any = cgroup.stats().unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        Message::parse_from_bytes(&any.value).unwrap()
    }

    fn v2_stats(cgroup: &Cgroup) -> cgroups_v2::Metrics {
        let any = cgroup.stats().unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        Message::parse_from_bytes(&any.value).unwrap()
    }

    #[test]
    fn a_v1_cgroup_is_found_in_each_hierarchy() {
        let (root, cgroup) = v1();
        let memory = root.path().join("sys/fs/cgroup/memory/kt");
        assert_eq!(cgroup.memory(), Some(MemoryDir::V1(&memory)));
        let Located::V1(hierarchies) = &cgroup.located else {
            panic!("not v1");
        };
        let at = |name: &str| Some(root.path().join("sys/fs/cgroup").join(name));
        let dir = |name| hierarchies.dir(name).map(Path::to_owned);
        assert_eq!(dir("cpu"), at("cpu,cpuacct/kt"));
        assert_eq!(dir("cpuacct"), at("cpu,cpuacct/kt"));
        assert_eq!(dir("cpuset"), None, "the root is not the container's");
        assert_eq!(dir("pids"), at("pids/kt"), "the mount shows a part only");
    }

    #[test]
    fn v1_statistics_have_every_field() {
        let (_root, cgroup) = v1();
        let stats = v1_stats(&cgroup);
        let usage = &stats.cpu.usage;
        assert_eq!(usage.total, 230_248_399);
        assert_eq!((usage.user, usage.kernel), (220_000_000, 10_000_000));
        assert_eq!(usage.per_cpu, [8_066_830, 225_610_210]);
        let throttling = &stats.cpu.throttling;
        let counts = (throttling.periods, throttling.throttled_periods);
        assert_eq!((counts, throttling.throttled_time), ((14, 11), 732_238_711));

        let memory = &stats.memory;
        assert_eq!((memory.cache, memory.total_active_file), (278_528, 151_552));
        assert_eq!((memory.pg_pg_in, memory.total_pg_maj_fault), (834, 3));
        assert_eq!(memory.hierarchical_swap_limit, 9_223_372_036_854_771_712);
        let entry = &memory.usage;
        assert_eq!((entry.usage, entry.max), (1_523_712, 1_728_512));
        assert_eq!((entry.limit, entry.failcnt), (104_857_600, 5));
        assert_eq!(
            (memory.swap.usage, memory.kernel.usage),
            (1_204_224, 774_144)
        );
        assert_eq!(memory.kernel_tcp.limit, 9_223_372_036_854_771_712);
        let oom = &stats.memory_oom_control;
        assert_eq!(
            (oom.oom_kill_disable, oom.under_oom, oom.oom_kill),
            (1, 0, 2)
        );
        assert_eq!((stats.pids.current, stats.pids.limit), (2, 0));

        let entries: Vec<_> = stats.blkio.io_service_bytes_recursive.iter().collect();
        assert_eq!(entries.len(), 2);
        assert_eq!(
            (entries[1].op.as_str(), entries[1].value),
            ("Write", 5_242_880)
        );
        assert_eq!((entries[1].major, entries[1].minor), (254, 0));
        assert_eq!(entries[1].device, "/dev/vda");
        let huge = &stats.hugetlb[0];
        assert_eq!((huge.pagesize.as_str(), huge.usage), ("2MB", 2_097_152));
        let rdma = &stats.rdma.limit[0];
        assert_eq!((rdma.device.as_str(), rdma.hca_handles), ("mlx4_0", 2));
        assert_eq!(rdma.hca_objects, u32::MAX);
    }

    #[test]
    fn v1_statistics_need_at_least_one_controller() {
        let (root, cgroup) = v1();
        let hierarchies = root.path().join("sys/fs/cgroup");
        fs::remove_dir_all(hierarchies.join("memory/kt")).unwrap();
        let stats = v1_stats(&cgroup);
        assert!(stats.memory.is_none() && stats.pids.is_some());
        fs::remove_dir_all(&hierarchies).unwrap();
        let error = cgroup.stats().unwrap_err();
        assert_eq!(error.to_string(), "cgroup does not exist: not found");
        assert_eq!(error.kind(), Kind::NotFound);
    }

    #[test]
    fn hybrid_without_controllers_on_v2_is_v1() {
        let (root, _) = v1();
        let cgroup = root.path().join("proc/7/cgroup");
        let hybrid = fs::read_to_string(&cgroup)
            .unwrap()
            .replace("0::/\n", "0::/kt\n");
        fs::write(&cgroup, hybrid).unwrap();
        let cgroup = Cgroup::of_in(root.path(), 7).unwrap();
        assert!(matches!(cgroup.located, Located::V1(_)));
    }

    #[test]
    fn a_process_that_is_in_the_root_only_has_no_cgroup() {
        let (root, _) = v1();
        fs::write(root.path().join("proc/7/cgroup"), "4:memory:/\n0::/\n").unwrap();
        let error = Cgroup::of_in(root.path(), 7).err().unwrap();
        assert_eq!(error.to_string(), "own cgroup of process 7: not found");
        let error = Cgroup::of_in(root.path(), 8).err().unwrap();
        assert!(error.to_string().contains("/proc/8/cgroup: "), "{error}");
    }

    #[test]
    fn a_v2_cgroup_is_one_directory_even_beside_a_v1_hierarchy() {
        let (root, cgroup) = v2();
        let mount = root.path().join("sys/fs/cgroup");
        let dir = mount.join("system.slice/c.scope");
        assert_eq!(cgroup.memory(), Some(MemoryDir::V2(&dir)));
        let place = Place {
            controllers: String::new(),
            path: "/system.slice/c.scope".into(),
            dir,
        };
        assert_eq!(cgroup.located, Located::V2 { mount, place });
    }

    #[test]
    fn v2_statistics_have_every_field() {
        let (_root, cgroup) = v2();
        let stats = v2_stats(&cgroup);
        assert_eq!((stats.pids.current, stats.pids.limit), (3, u64::MAX));
        let cpu = &stats.cpu;
        assert_eq!(
            (cpu.usage_usec, cpu.user_usec, cpu.system_usec),
            (30, 20, 10)
        );
        assert_eq!(
            (cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec),
            (4, 5, 6)
        );
        assert_eq!((cpu.nr_bursts, cpu.burst_usec), (7, 8));
        let some = &cpu.psi.some;
        assert_eq!(
            (some.avg10, some.avg60, some.avg300, some.total),
            (1.5, 0.25, 0.0, 99)
        );
        assert_eq!(cpu.psi.full.total, 12);

        let memory = &stats.memory;
        assert_eq!((memory.anon, memory.thp_collapse_alloc), (4096, 1));
        assert_eq!((memory.usage, memory.usage_limit), (8192, u64::MAX));
        assert_eq!((memory.max_usage, memory.swap_max_usage), (16384, 5));
        assert_eq!((memory.swap_usage, memory.swap_limit), (3, 4096));
        assert!(memory.psi.is_none(), "the file is missing");
        let events = &stats.memory_events;
        assert_eq!((events.low, events.high, events.max), (1, 2, 3));
        assert_eq!(
            (events.oom, events.oom_kill, events.oom_group_kill),
            (4, 5, 6)
        );

        let io = &stats.io.usage;
        assert_eq!(io.len(), 1);
        assert_eq!((io[0].major, io[0].minor), (254, 0));
        assert_eq!(
            (io[0].rbytes, io[0].wbytes, io[0].rios, io[0].wios),
            (1, 2, 3, 4)
        );
        assert_eq!(stats.io.psi.some.total, 5);
        assert_eq!(stats.rdma.current[0].hca_handles, 2);
        assert_eq!(stats.rdma.limit[0].hca_objects, u32::MAX);
        let [large, huge] = &stats.hugetlb[..] else {
            panic!("{:?}", stats.hugetlb);
        };
        assert_eq!(
            (large.pagesize.as_str(), large.current, large.max),
            ("2MB", 9, u64::MAX)
        );
        assert_eq!(
            (large.failcnt, huge.pagesize.as_str(), huge.current),
            (7, "1GB", 0)
        );
    }

    #[test]
    fn v2_cgroup_without_files_has_zeros_and_a_removed_one_an_error() {
        let (root, cgroup) = v2();
        let dir = root.path().join("sys/fs/cgroup/system.slice/c.scope");
        fs::remove_dir_all(&dir).unwrap();
        let error = cgroup.stats().unwrap_err();
        assert_eq!(error.to_string(), "cgroup does not exist: not found");
        fs::create_dir(&dir).unwrap();
        let stats = v2_stats(&cgroup);
        assert!(stats.memory_events.is_none() && stats.cpu.psi.is_none());
        assert_eq!((stats.memory.usage_limit, stats.pids.limit), (0, 0));
    }

    #[test]
    fn kept_statistics_are_returned_after_the_cgroup_is_removed() {
        let (root, cgroup) = v2();
        let dir = root.path().join("sys/fs/cgroup/system.slice/c.scope");
        cgroup.keep_stats();
        fs::write(dir.join("pids.current"), "4\n").unwrap();
        assert_eq!(v2_stats(&cgroup).pids.current, 4, "what is there counts");
        fs::remove_dir_all(dir).unwrap();
        assert_eq!(v2_stats(&cgroup).pids.current, 3);
    }

    #[test]
    fn pids_are_those_of_all_levels_or_an_error() {
        for (_root, cgroup) in [v1(), v2()] {
            assert_eq!(cgroup.pids().unwrap(), [3, 7, 20]);
        }
        let (root, cgroup) = v1();
        fs::remove_dir_all(root.path().join("sys/fs/cgroup/devices/kt")).unwrap();
        let error = cgroup.pids().unwrap_err();
        assert_eq!(error.kind(), Kind::Unknown);
        assert!(
            error.to_string().contains("/devices/kt: No such file"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn v2_is_killed_by_its_file() {
        let limit = Duration::from_secs(60);
        let (root, cgroup) = v2();
        let file = root
            .path()
            .join("sys/fs/cgroup/system.slice/c.scope/cgroup.kill");
        fs::write(&file, "").unwrap();
        cgroup.kill(limit).await.unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "1");
        fs::remove_dir_all(file.parent().unwrap()).unwrap();
        cgroup.kill(limit).await.expect("nobody is left");
    }

    #[tokio::test]
    async fn all_levels_are_thawed() {
        let limit = Duration::from_secs(60);
        let (root, cgroup) = v2();
        let dir = root.path().join("sys/fs/cgroup/system.slice/c.scope");
        assert!(!cgroup.thaw(limit).await.unwrap());
        let files = ["", "nested", "nested/deep"].map(|name| dir.join(name).join("cgroup.freeze"));
        for (file, text) in files.iter().zip(["0\n", "0\n", "1\n"]) {
            fs::write(file, text).unwrap();
        }
        let above = dir.with_file_name("cgroup.freeze");
        fs::write(&above, "1\n").unwrap();
        assert!(cgroup.thaw(limit).await.unwrap());
        let texts = files.map(|file| fs::read_to_string(file).unwrap());
        assert_eq!(texts, ["0\n", "0\n", "0\n"]);
        assert_eq!(
            fs::read_to_string(above).unwrap(),
            "1\n",
            "not the container's"
        );
    }

    /// Where the shim is in the cgroup or below: when the container is made, or later.
    #[tokio::test]
    async fn a_cgroup_with_the_shim_in_it_is_left_alone() {
        let limit = Duration::from_secs(60);
        for own in ["/system.slice/c.scope", "/system.slice/c.scope/nested/deep"] {
            let (root, cgroup) = v2();
            cgroup.pids().unwrap();
            let entry = format!("1:net_cls:/other\n0::{own}\n");
            fs::write(root.path().join("proc/self/cgroup"), entry).unwrap();
            for outcome in [
                cgroup.check_alone(),
                cgroup.pids().map(drop),
                cgroup.kill(limit).await,
                cgroup.thaw(limit).await.map(drop),
            ] {
                let error = outcome.unwrap_err();
                assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
            }
            let error = Cgroup::of_in(root.path(), 7).err().unwrap();
            assert_eq!(error.kind(), Kind::NotFound, "{error}");
        }
    }

    #[test]
    fn a_cgroup_with_the_daemon_in_it_is_left_alone() {
        let (root, cgroup) = v2();
        let parent = root.path().join(format!("proc/{}", nix::unistd::getppid()));
        fs::create_dir(&parent).unwrap();
        fs::write(parent.join("cgroup"), "0::/system.slice/c.scope\n").unwrap();
        assert!(cgroup.check_alone().is_err());
    }

    #[test]
    fn hierarchies_that_the_shim_is_in_are_left_out() {
        let (root, cgroup) = v1();
        assert!(cgroup.memory().is_some());
        let own = root.path().join("proc/self/cgroup");
        fs::write(
            &own,
            "7:pids:/\n5:devices:/kt\n4:memory:/kt/below\n3:blkio:/k\n",
        )
        .unwrap();
        assert!(cgroup.check_alone().is_err());
        let cgroup = Cgroup::of_in(root.path(), 7).unwrap();
        assert_eq!(cgroup.memory(), None);
        let Located::V1(hierarchies) = &cgroup.located else {
            panic!("not v1");
        };
        assert_eq!(hierarchies.dir("devices"), None);
        assert!(hierarchies.dir("blkio").is_some());
        fs::copy(root.path().join("proc/7/cgroup"), own).unwrap();
        let error = Cgroup::of_in(root.path(), 7).err().unwrap();
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
    }

    #[test]
    fn nothing_is_exclusive_if_the_shims_cgroup_is_unknown() {
        let (root, cgroup) = v2();
        fs::remove_file(root.path().join("proc/self/cgroup")).unwrap();
        assert!(cgroup.check_alone().is_err());
        assert!(Cgroup::of_in(root.path(), 7).is_err());
    }

    #[test]
    fn work_for_pids_is_bounded() {
        let (root, cgroup) = v2();
        let dir = root.path().join("sys/fs/cgroup/system.slice/c.scope");
        let many: String = (100..100 + 2 * PIDS_PER_ANSWER)
            .map(|pid| format!("{pid}\n"))
            .collect();
        fs::write(dir.join("cgroup.procs"), many).unwrap();
        assert_eq!(cgroup.pids().unwrap().len(), PIDS_PER_ANSWER);
        fs::write(dir.join("cgroup.procs"), "1\n").unwrap();
        for number in 0..2 * DIRECTORIES_PER_QUESTION {
            let below = dir.join(number.to_string());
            fs::create_dir(&below).unwrap();
            fs::write(below.join("cgroup.procs"), format!("{}\n", 100 + number)).unwrap();
            fs::write(below.join("memory.oom_control"), "oom_kill 1\n").unwrap();
        }
        let pids = cgroup.pids().unwrap();
        assert!(
            pids.contains(&1) && pids.len() > DIRECTORIES_PER_QUESTION / 2,
            "{}",
            pids.len()
        );
        assert!(pids.len() <= DIRECTORIES_PER_QUESTION);
        let kills = oom_kills_below(&dir) as usize;
        assert!(
            (DIRECTORIES_PER_QUESTION / 2..DIRECTORIES_PER_QUESTION).contains(&kills),
            "{kills}"
        );
    }

    #[test]
    fn truncated_and_invisible_pids_are_left_out() {
        assert_eq!(parse_pids(b"12\n0\nx\n34\n5").collect::<Vec<_>>(), [12, 34]);
    }

    #[test]
    fn controllers_are_enabled_in_every_ancestor() {
        let (root, cgroup) = v2();
        let mount = root.path().join("sys/fs/cgroup");
        let control = |dir: &str| mount.join(dir).join("cgroup.subtree_control");
        fs::write(control("system.slice/c.scope"), "").unwrap();
        // Not written: a failure that does not matter, as the next one succeeds.
        fs::remove_file(control("")).unwrap();
        cgroup.enable_controllers().unwrap();
        let enabled = |dir| fs::read_to_string(control(dir)).unwrap();
        assert_eq!(enabled("system.slice"), "+cpu +memory +pids");
        assert_eq!(enabled("system.slice/c.scope"), "");

        fs::remove_file(control("system.slice")).unwrap();
        let error = cgroup.enable_controllers().unwrap_err().to_string();
        assert!(error.starts_with("write +cpu to /"), "{error}");
        v1().1.enable_controllers().unwrap();
    }

    #[test]
    fn join_writes_to_existing_hierarchies() {
        let (root, _) = v1();
        let procs = |dir| {
            root.path()
                .join(format!("sys/fs/cgroup/{dir}/shim/cgroup.procs"))
        };
        for dir in ["memory", "devices", "unified"] {
            fs::create_dir_all(procs(dir).parent().unwrap()).unwrap();
            fs::write(procs(dir), "").unwrap();
        }
        join_in(root.path(), Path::new("/shim"), 42).unwrap();
        for (dir, content) in [("memory", "42"), ("devices", "42"), ("unified", "")] {
            assert_eq!(fs::read_to_string(procs(dir)).unwrap(), content, "{dir}");
        }

        let (root, _) = v2();
        join_in(root.path(), Path::new("system.slice"), 42).unwrap();
        let procs = root.path().join("sys/fs/cgroup/system.slice/cgroup.procs");
        assert_eq!(fs::read_to_string(procs).unwrap(), "42");
    }

    #[test]
    fn join_of_a_missing_or_relative_path_is_an_error() {
        let (root, _) = v2();
        let join = |path: &str| join_in(root.path(), Path::new(path), 42).unwrap_err();
        assert_eq!(join("/none").to_string(), "cgroup /none: not found");
        for path in ["/a/../..", "", "/"] {
            assert_eq!(join(path).kind(), Kind::InvalidArgument, "{path:?}");
        }
    }

    /// A cgroup of the test's own in every hierarchy of this machine.
    struct Real(Vec<PathBuf>);

    impl Real {
        fn new(name: &str) -> Real {
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let hierarchies = table.lines().filter(|line| line.contains(" - cgroup"));
            let points = hierarchies.filter_map(|line| line.split(' ').nth(4));
            let name = format!("{name}-{}", std::process::id());
            let dirs = points.map(|point| Path::new(point).join(&name));
            // Those that take nobody before they have been given processors are left out.
            Real(
                dirs.filter(|dir| {
                    !dir.to_str().unwrap().contains("cpuset") && fs::create_dir(dir).is_ok()
                })
                .collect(),
            )
        }

        /// A process that forks in it and in cgroups below it, until it is killed.
        fn child(&self, script: &str) -> std::process::Child {
            let dirs = self
                .0
                .iter()
                .map(|dir| dir.display().to_string() + "/cgroup.procs");
            let enter = format!("for f; do echo 0 > $f; done; {script}");
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", &enter, "sh"]).args(dirs);
            shell
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::piped());
            shell.spawn().unwrap()
        }
    }

    impl Drop for Real {
        fn drop(&mut self) {
            self.0.iter().for_each(|dir| drop(fs::remove_dir(dir)));
        }
    }

    /// Whatever this machine has: the cgroup of real processes, which fork, frozen or not.
    #[tokio::test]
    async fn files_of_this_kernel_are_parsed() {
        use std::io::{BufRead, BufReader, Read};
        let real = Real::new("cgroup-test");
        if real.0.is_empty() {
            eprintln!("SKIPPED: no cgroup can be made");
            return;
        }
        for frozen in [false, true] {
            let mut child =
                real.child("f() { sleep inf & }; f; f; f; echo up; while :; do (:); done");
            let mut output = BufReader::new(child.stdout.take().unwrap());
            output.read_line(&mut String::new()).unwrap();
            let cgroup = Cgroup::of(child.id() as i32).unwrap();
            assert!(!cgroup.stats().unwrap().value.is_empty());
            assert!(cgroup.pids().unwrap().len() >= 4);
            assert!(cgroup.has_others(child.id() as i32));
            if frozen {
                let state = ["freezer.state", "cgroup.freeze"]
                    .iter()
                    .zip(["FROZEN", "1"]);
                let files = state
                    .flat_map(|(file, text)| real.0.iter().map(move |dir| (dir.join(file), text)));
                let written = files.filter(|(file, text)| files::write(file, text).is_ok());
                assert!(written.count() > 0);
            }
            let limit = Duration::from_secs(60);
            cgroup.kill(limit).await.unwrap();
            cgroup.thaw(limit).await.unwrap();
            // None is left that holds the pipe.
            assert_eq!(output.read_to_end(&mut Vec::new()).unwrap(), 0);
            #[allow(clippy::disallowed_methods)]
            child.wait().unwrap();
        }
    }
}
