//! Where a cgroup's directories are, by `/proc/PID/cgroup` and the mounts; and which of
//! them are others', too.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::planned::Name;
use crate::error::{Context, Error, Result};
use crate::sys::mount::{MountInfo, each_mount};

/// The directories of one cgroup.
#[derive(Debug, PartialEq, Eq)]
pub enum Located {
    /// One for each hierarchy that shows it.
    V1(Hierarchies),
    /// One, and the mount point that it is below.
    V2 { mount: PathBuf, place: Place },
}

/// A cgroup of v1: its place in each hierarchy.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hierarchies(Vec<Place>);

/// A cgroup in one hierarchy.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// What the hierarchy controls (`cpu,cpuacct`); empty: v2.
    pub controllers: String,
    /// Its name in `/proc/PID/cgroup`.
    pub path: PathBuf,
    /// Its directory.
    pub dir: PathBuf,
}

impl Place {
    /// Whether its hierarchy controls `controller`.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|name| name == controller)
    }

    /// Whether `text`, a `/proc/PID/cgroup`, is of a process in here or below.
    pub fn holds(&self, text: &str) -> bool {
        text.lines().filter_map(entry).any(|(names, path)| {
            names == self.controllers && Path::new(path).starts_with(&self.path)
        })
    }
}

impl Hierarchies {
    /// The place in the hierarchy of `controller`.
    pub fn place(&self, controller: &str) -> Option<&Place> {
        self.0.iter().find(|place| place.has(controller))
    }

    /// The directory of `controller`.
    pub fn dir(&self, controller: &str) -> Option<&Path> {
        Some(&self.place(controller)?.dir)
    }

    /// All places.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.0.iter()
    }

    /// The place that a runtime would list processes of.
    pub fn for_pids(&self) -> &Place {
        ["devices", "freezer", "pids", "memory"]
            .iter()
            .find_map(|controller| self.place(controller))
            // There is at least one: `of` sees to that.
            .unwrap_or(&self.0[0])
    }

    /// As [`Hierarchies::dir`], if it exists still.
    pub fn live_dir(&self, controller: &str) -> Option<&Path> {
        self.dir(controller).filter(|dir| dir.exists())
    }

    /// The place in the hierarchy that controls exactly `controllers`.
    fn place_of(&self, controllers: &str) -> Option<&Place> {
        self.0.iter().find(|place| place.controllers == controllers)
    }

    /// Whether any directory exists still.
    pub fn is_live(&self) -> bool {
        self.0.iter().any(|place| place.dir.exists())
    }
}

/// Where v2 is mounted on a system that uses it for everything.
const UNIFIED: &str = "/sys/fs/cgroup";

/// The directories of process `pid`'s cgroup, on a system whose root is `root`: those in
/// which neither this process nor its parent, containerd, is in or below. NotFound when
/// there are none.
pub fn of(root: &Path, pid: i32) -> Result<Located> {
    let file = root.join(format!("proc/{pid}/cgroup"));
    let text =
        fs::read_to_string(&file).context(|| format!("read cgroups from {}", file.display()))?;
    let entries: Vec<(&str, &str)> = text.lines().filter_map(entry).collect();

    let mut hierarchies = Hierarchies::default();
    let (mut unified, mut is_unified, mut has_controller) = (None, false, false);
    mounts(root, |mount, point| {
        for (controllers, path) in entries.iter().filter(|(names, _)| shows(&mount, names)) {
            let Some(dir) = below(&mount, point, Path::new(path)) else {
                continue;
            };
            let place = Place {
                controllers: controllers.to_string(),
                path: path.into(),
                dir,
            };
            if mount.is("cgroup2") {
                is_unified |= mount.point() == Path::new(UNIFIED);
                unified.get_or_insert((point.to_owned(), place));
            } else if hierarchies.place_of(controllers).is_none() {
                has_controller |= !is_named(controllers);
                hierarchies.0.push(place);
            }
        }
    })?;

    let others = Others::of(root).context(|| "read this process's cgroups")?;
    hierarchies.0.retain(|place| !others.are_in(place));
    match unified {
        Some((mount, place)) if is_unified || !has_controller => match others.are_in(&place) {
            false => Ok(Located::V2 { mount, place }),
            true => Err(Error::not_found(format!("own cgroup of process {pid}"))),
        },
        _ if hierarchies
            .0
            .iter()
            .any(|place| !is_named(&place.controllers)) =>
        {
            Ok(Located::V1(hierarchies))
        }
        _ => Err(Error::not_found(format!("own cgroup of process {pid}"))),
    }
}

/// Where this process and its parent are, who are in no container of ours.
pub struct Others(Vec<String>);

impl Others {
    /// Those of now: they may be moved.
    pub fn of(root: &Path) -> io::Result<Others> {
        let file = |pid: &str| root.join("proc").join(pid).join("cgroup");
        let own = fs::read_to_string(file("self"))?;
        // It may be of a pid namespace that we do not see.
        let parent = fs::read_to_string(file(&nix::unistd::getppid().to_string()));
        Ok(Others([own].into_iter().chain(parent).collect()))
    }

    /// What each hierarchy controls, and where they are in it.
    fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .flat_map(|text| text.lines())
            .filter_map(entry)
    }

    /// Whether one of them is in a cgroup called `name` or below such a one.
    pub fn are_below(&self, name: &OsStr) -> bool {
        self.entries()
            .any(|(_, path)| Path::new(path).iter().any(|part| part == name))
    }

    /// Whether one of them is in `place` or below.
    pub fn are_in(&self, place: &Place) -> bool {
        self.0.iter().any(|text| place.holds(text))
    }
}

/// The existing places of a cgroup with one of `names`, and the plain directories so named
/// beside the hierarchies of v1. A relative name is also one below the cgroup of this process
/// or its parent, or `shim_cgroup`, or beside these.
pub fn places_named(
    root: &Path,
    names: &[Name],
    shim_cgroup: &str,
) -> Result<(Vec<Place>, Vec<PathBuf>)> {
    let others = Others::of(root).context(|| "read this process's cgroups")?;
    let mut places: Vec<Place> = Vec::new();
    let mut points = Vec::new();
    mounts(root, |mount, point| {
        if mount.is("cgroup") {
            points.push(point.to_owned());
        }
        let own: Vec<_> = others
            .entries()
            .filter(|(names, _)| shows(&mount, names))
            .collect();
        let Some((controllers, _)) = own.first() else {
            return;
        };
        let shim_cgroup = Path::new("/").join(shim_cgroup);
        let bases = own.iter().map(|(_, path)| Path::new(*path));
        let bases = bases.chain([shim_cgroup.as_path()]);
        let bases: Vec<&Path> = bases.flat_map(|path| path.ancestors().take(2)).collect();
        for name in names {
            let relative = if name.is_relative { &bases[..] } else { &[] };
            for base in [mount.root().as_path()].iter().chain(relative) {
                let path = base.join(&name.path);
                let dir = below(&mount, point, &path).filter(|dir| dir.is_dir());
                if let Some(dir) = dir
                    && places.iter().all(|place| place.dir != dir)
                {
                    let controllers = controllers.to_string();
                    places.push(Place {
                        controllers,
                        path,
                        dir,
                    });
                }
            }
        }
    })?;
    Ok((places, plain_dirs(root, names, &points)))
}

/// The directories with one of `names` in those beside the hierarchies of v1, mounted at
/// `points`.
fn plain_dirs(root: &Path, names: &[Name], points: &[PathBuf]) -> Vec<PathBuf> {
    let top = root.join(UNIFIED.trim_start_matches('/'));
    if points.iter().all(|point| point.parent() != Some(&top)) {
        return Vec::new();
    }
    let entries = fs::read_dir(&top).into_iter().flatten().flatten();
    let beside = entries.filter(|entry| {
        // What is mounted there was looked at, or is no hierarchy of v1.
        let device = |path: &Path| fs::metadata(path).map(|data| data.dev()).ok();
        entry.file_type().is_ok_and(|kind| kind.is_dir())
            && !points.contains(&entry.path())
            && device(&entry.path()) == device(&top)
    });
    let dirs = beside.flat_map(|entry| names.iter().map(move |name| entry.path().join(&name.path)));
    dirs.filter(|dir| dir.is_dir()).collect()
}

/// The cgroup at `path`, below the root of each hierarchy; one without directories if there is
/// none.
pub fn named(root: &Path, path: PathBuf) -> Result<Located> {
    let mut parts = path.components();
    let is_plain =
        parts.clone().next().is_some() && parts.all(|part| matches!(part, Component::Normal(_)));
    let name = Name {
        path,
        is_relative: false,
    };
    let names: &[Name] = if is_plain { &[name] } else { &[] };
    let (places, _) = places_named(root, names, "")?;
    let (mut v1, mut v2): (Vec<Place>, Vec<Place>) = places
        .into_iter()
        .partition(|place| !place.controllers.is_empty());
    v1.retain(|place| !is_named(&place.controllers));
    let nowhere = || Place {
        controllers: String::new(),
        path: PathBuf::new(),
        dir: NOWHERE.into(),
    };
    Ok(match super::mode() {
        "v2" => Located::V2 {
            mount: UNIFIED.into(),
            place: v2.pop().unwrap_or_else(nowhere),
        },
        _ => Located::V1(Hierarchies(v1)),
    })
}

/// A directory that does not exist.
const NOWHERE: &str = "/proc/nowhere";

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
