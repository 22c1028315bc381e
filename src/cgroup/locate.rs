//! Where a cgroup's directories are, by `/proc/PID/cgroup` and the mounts.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::sys::mount::{MountInfo, each_mount};

/// The directories of one cgroup.
#[derive(Debug, PartialEq, Eq)]
pub enum Located {
    /// One for each hierarchy that shows it.
    V1(Hierarchies),
    /// One, and the mount point that it is below.
    V2 { mount: PathBuf, dir: PathBuf },
}

/// A cgroup of v1: what each hierarchy controls (`cpu,cpuacct`), and the directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hierarchies(Vec<(String, PathBuf)>);

impl Hierarchies {
    /// The directory of `controller`.
    pub fn dir(&self, controller: &str) -> Option<&Path> {
        self.0
            .iter()
            .find(|(names, _)| names.split(',').any(|name| name == controller))
            .map(|(_, dir)| dir.as_path())
    }

    /// The directory that a runtime would list processes of.
    pub fn for_pids(&self) -> &Path {
        ["devices", "freezer", "pids", "memory"]
            .iter()
            .find_map(|controller| self.dir(controller))
            // There is at least one: `of` sees to that.
            .unwrap_or(&self.0[0].1)
    }

    /// As [`Hierarchies::dir`], if it exists still.
    pub fn live_dir(&self, controller: &str) -> Option<&Path> {
        self.dir(controller).filter(|dir| dir.exists())
    }

    /// Whether any directory exists still.
    pub fn is_live(&self) -> bool {
        self.0.iter().any(|(_, dir)| dir.exists())
    }
}

/// Where v2 is mounted on a system that uses it for everything.
const UNIFIED: &str = "/sys/fs/cgroup";

/// The directories of process `pid`'s cgroup, on a system whose root is `root`.
pub fn of(root: &Path, pid: i32) -> Result<Located> {
    let file = root.join(format!("proc/{pid}/cgroup"));
    let text =
        fs::read_to_string(&file).context(|| format!("read cgroups from {}", file.display()))?;
    let entries: Vec<(&str, &str)> = text.lines().filter_map(entry).collect();

    let mut hierarchies = Hierarchies::default();
    let (mut unified, mut is_unified) = (None, false);
    mounts(root, |mount, point| {
        for (controllers, path) in entries.iter().filter(|(names, _)| shows(&mount, names)) {
            let Some(dir) = below(&mount, point, Path::new(path)) else {
                continue;
            };
            if mount.is("cgroup2") {
                is_unified |= mount.point() == Path::new(UNIFIED);
                unified.get_or_insert((point.to_owned(), dir));
            } else if hierarchies.0.iter().all(|(names, _)| names != controllers) {
                hierarchies.0.push((controllers.to_string(), dir));
            }
        }
    })?;

    let has_controller = hierarchies.0.iter().any(|(names, _)| !is_named(names));
    match unified {
        Some((mount, dir)) if is_unified || !has_controller => Ok(Located::V2 { mount, dir }),
        _ if has_controller => Ok(Located::V1(hierarchies)),
        _ => Err(Error::not_found(format!("cgroup of process {pid}"))),
    }
}

/// The existing directories of the cgroup named `path`: v2's, or those of every v1
/// hierarchy that has it.
pub fn existing(root: &Path, path: &Path) -> Result<Vec<PathBuf>> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let is_name = |part| matches!(part, Component::Normal(_));
    if relative == Path::new("") || !relative.components().all(is_name) {
        let path = path.display();
        return Err(Error::invalid(format!("cgroup {path:?}: not a plain path")));
    }
    let (mut v1, mut v2, mut is_unified) = (Vec::new(), None, false);
    mounts(root, |mount, point| {
        if mount.is("cgroup2") {
            is_unified |= mount.point() == Path::new(UNIFIED);
            v2.get_or_insert(point.join(relative));
        } else {
            v1.push(point.join(relative));
        }
    })?;
    let mut dirs = v1;
    if is_unified || dirs.is_empty() {
        dirs = v2.into_iter().collect();
    }
    dirs.retain(|dir| dir.is_dir());
    Ok(dirs)
}

/// `N:CONTROLLERS:PATH`.
fn entry(line: &str) -> Option<(&str, &str)> {
    line.split_once(':')?.1.split_once(':')
}

fn is_named(controllers: &str) -> bool {
    controllers.starts_with("name=")
}

/// Calls `each` with every mount of cgroups and its mount point under `root`.
fn mounts(root: &Path, mut each: impl FnMut(MountInfo<'_>, &Path)) -> Result<()> {
    let file = root.join("proc/self/mountinfo");
    each_mount(&file, |mount| {
        if mount.is("cgroup") || mount.is("cgroup2") {
            let point = mount.point();
            let point = root.join(point.strip_prefix("/").unwrap_or(&point));
            each(mount, &point);
        }
    })
    .context(|| format!("read {}", file.display()))
}

/// Whether `mount` is of the hierarchy of `controllers`.
fn shows(mount: &MountInfo<'_>, controllers: &str) -> bool {
    if controllers.is_empty() {
        return mount.is("cgroup2");
    }
    mount.is("cgroup") && controllers.split(',').all(|name| mount.has_option(name))
}

/// The directory of cgroup `path` in a mount that may show a part of the hierarchy
/// only. `None` when it does not show it, and for the root of what it shows.
fn below(mount: &MountInfo<'_>, point: &Path, path: &Path) -> Option<PathBuf> {
    let root = mount.root();
    let relative = path.strip_prefix(root).ok()?;
    (relative != Path::new("")).then(|| point.join(relative))
}
