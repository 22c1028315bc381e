//! The machine's own tables: cgroups and mounts, as tests make and look at them; and a file
//! system that answers nothing.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::process;

/// The machine's mount table, a mount a line.
fn mount_table() -> String {
    fs::read_to_string("/proc/self/mountinfo").expect("read the mount table")
}

/// Where v2 is mounted, or each controller of v1 below.
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// Whether v2 has all controllers.
pub fn is_unified() -> bool {
    Path::new(CGROUPS).join("cgroup.controllers").exists()
}

/// Where below a hierarchy's root `cgroup` is, a path or systemd's `SLICE:PREFIX:NAME`.
pub fn cgroup_path(cgroup: &str) -> String {
    match cgroup.split(':').collect::<Vec<_>>()[..] {
        [slice, prefix, name] => format!("{slice}/{prefix}-{name}.scope"),
        _ => cgroup.trim_start_matches('/').into(),
    }
}

/// The directories that `cgroup` has or could have, in every hierarchy that is mounted. CRIU, in
/// a case that runs at the same time, mounts them elsewhere for a moment.
fn places(cgroup: &str) -> Vec<PathBuf> {
    let table = mount_table();
    let hierarchies = table.lines().filter(|line| line.contains(" - cgroup"));
    let points = hierarchies.filter_map(|line| line.split(' ').nth(4));
    let points = points.filter(|point| point.starts_with(CGROUPS));
    let place = |point| Path::new(point).join(cgroup_path(cgroup));
    points.map(place).collect()
}

/// The directories of `cgroup`, in every hierarchy that is mounted; first the one that
/// crun makes in a scope of systemd's.
pub fn cgroup_dirs(cgroup: &str) -> Vec<PathBuf> {
    let places = places(cgroup).into_iter();
    let dirs = places.flat_map(|dir| [dir.join("container"), dir]);
    dirs.filter(|dir| dir.is_dir()).collect()
}

/// The directory of `cgroup` in which an OCI runtime lists processes.
pub fn listed_cgroup_dir(cgroup: &str) -> Option<PathBuf> {
    let devices = Path::new(CGROUPS).join("devices");
    let mut dirs = cgroup_dirs(cgroup);
    let at = dirs.iter().position(|dir| dir.starts_with(&devices));
    (!dirs.is_empty()).then(|| dirs.swap_remove(at.unwrap_or(0)))
}

/// Cgroups, each in the one before, that are too deep for a path of 4096 bytes; until it is dropped.
pub struct DeepCgroups {
    deepest: OwnedFd,
    /// Of each of them.
    name: String,
}

impl DeepCgroups {
    const DEPTH: usize = 30;

    /// Below the cgroup `dir`.
    pub fn below(dir: &Path) -> DeepCgroups {
        let name = "deep-".repeat(40);
        let mut deepest = open_dir(AT_FDCWD, dir.to_str().expect("a path in UTF-8"));
        for _ in 0..Self::DEPTH {
            let mode = Mode::from_bits_truncate(0o755);
            mkdirat(&deepest, name.as_str(), mode).expect("make a cgroup");
            deepest = open_dir(&deepest, &name);
        }
        DeepCgroups { deepest, name }
    }
}

impl Drop for DeepCgroups {
    /// What is still there of it: no path is long enough.
    fn drop(&mut self) {
        for _ in 0..Self::DEPTH {
            // None is above one that was removed.
            let Ok(above) = openat(&self.deepest, "..", DIRECTORY, Mode::empty()) else {
                return;
            };
            self.deepest = above;
            let name = self.name.as_str();
            let _ = unlinkat(&self.deepest, name, UnlinkatFlags::RemoveDir);
        }
    }
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC);

fn open_dir(at: impl AsFd, name: &str) -> OwnedFd {
    openat(at, name, DIRECTORY, Mode::empty()).expect("open a cgroup")
}

/// Makes `cgroup` in every hierarchy that is mounted, ready to take processes.
pub fn new_cgroup_dirs(cgroup: &str) {
    for dir in places(cgroup) {
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("make cgroup {dir:?}: {e}"));
        // A cgroup of version 1 has neither processors nor memory to begin with.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(parents) = fs::read(dir.with_file_name(file)) {
                fs::write(dir.join(file), parents).expect("set up a cpuset");
            }
        }
    }
}

/// Kills all in `cgroup` and below, frozen or not, and removes it.
pub fn clear_cgroup(cgroup: &str, hang_timeout: Duration) {
    let deadline = Instant::now() + hang_timeout;
    for dir in cgroup_dirs(cgroup) {
        while !clear(&dir) && Instant::now() < deadline {
            // They are dying.
            let _ = nix::poll::poll(&mut [], 5_u16);
        }
    }
}

/// One try; whether the directory is gone.
fn clear(dir: &Path) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for below in entries.filter(|entry| entry.path().is_dir()) {
        clear(&below.path());
    }
    // A frozen process does not die, but on v2, where the whole cgroup can be killed.
    let _ = fs::write(dir.join("freezer.state"), "THAWED");
    let _ = fs::write(dir.join("cgroup.kill"), "1");
    let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines() {
        process::signal(pid.parse().unwrap_or(i32::MAX), Signal::SIGKILL);
    }
    fs::remove_dir(dir).is_ok() || !dir.exists()
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    pub point: PathBuf,
    /// `rw` or `ro`, and what else the mount itself has.
    pub options: Vec<String>,
    /// `shared:N`, `master:N`, `unbindable`; nothing: private.
    pub propagation: Vec<String>,
    pub source: String,
}

impl MountEntry {
    /// Paths with a space are none of ours.
    fn parse(line: &str) -> Option<MountEntry> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut words = mount.split(' ').skip(4).map(String::from);
        Some(MountEntry {
            point: words.next()?.into(),
            options: words.next()?.split(',').map(String::from).collect(),
            propagation: words.collect(),
            source: file_system.split(' ').nth(1)?.into(),
        })
    }
}

/// The mounts at or below `dir`, in mounting order.
pub fn mount_entries_below(dir: &Path) -> Vec<MountEntry> {
    let table = mount_table();
    let entries = table.lines().filter_map(MountEntry::parse);
    entries
        .filter(|entry| entry.point.starts_with(dir))
        .collect()
}

/// The mount points at or below `dir`, in mounting order.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let entries = mount_entries_below(dir);
    entries.into_iter().map(|entry| entry.point).collect()
}

/// A FUSE file system at `point` that answers nothing until it is dropped.
pub struct Silent {
    _device: File,
    point: PathBuf,
}

impl Silent {
    pub fn mounted(point: &Path) -> Silent {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.expect("open /dev/fuse");
        let fd = device.as_raw_fd();
        let data = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
        let (kind, none) = (Some("fuse"), MsFlags::empty());
        mount(Some("silent"), point, kind, none, Some(data.as_str())).expect("mount it");
        Silent {
            _device: device,
            point: point.into(),
        }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = umount2(&self.point, MntFlags::MNT_DETACH);
    }
}
