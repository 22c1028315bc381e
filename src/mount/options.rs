//! The meaning of a mount's options. Pure.

use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use crate::error::{Error, Result};

/// MountOptions, by what they apply to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// For the mount itself.
    pub flags: MsFlags,
    /// For a second call: whether mounts spread from and to it.
    pub propagation: MsFlags,
    /// For the file system, in their order.
    pub data: Vec<String>,
    /// The source is a file, to be shown as a block device.
    pub is_loop: bool,
    /// How the owners of files are mapped: uid and gid map as `/proc` wants them.
    pub id_maps: Option<(String, String)>,
}

/// MountOptions that set (true) or clear (false) flags.
const FLAGS: &[(&str, bool, MsFlags)] = &[
    ("async", false, MsFlags::MS_SYNCHRONOUS),
    ("atime", false, MsFlags::MS_NOATIME),
    ("bind", true, MsFlags::MS_BIND),
    ("defaults", true, MsFlags::empty()),
    ("dev", false, MsFlags::MS_NODEV),
    ("diratime", false, MsFlags::MS_NODIRATIME),
    ("dirsync", true, MsFlags::MS_DIRSYNC),
    ("exec", false, MsFlags::MS_NOEXEC),
    ("mand", true, MsFlags::MS_MANDLOCK),
    ("noatime", true, MsFlags::MS_NOATIME),
    ("nodev", true, MsFlags::MS_NODEV),
    ("nodiratime", true, MsFlags::MS_NODIRATIME),
    ("noexec", true, MsFlags::MS_NOEXEC),
    ("nomand", false, MsFlags::MS_MANDLOCK),
    ("norelatime", false, MsFlags::MS_RELATIME),
    ("nostrictatime", false, MsFlags::MS_STRICTATIME),
    ("nosuid", true, MsFlags::MS_NOSUID),
    ("rbind", true, MsFlags::MS_BIND.union(MsFlags::MS_REC)),
    ("relatime", true, MsFlags::MS_RELATIME),
    ("remount", true, MsFlags::MS_REMOUNT),
    ("ro", true, MsFlags::MS_RDONLY),
    ("rw", false, MsFlags::MS_RDONLY),
    ("strictatime", true, MsFlags::MS_STRICTATIME),
    ("suid", false, MsFlags::MS_NOSUID),
    ("sync", true, MsFlags::MS_SYNCHRONOUS),
];

/// MountOptions that are about propagation; with an `r` before them, of mounts below too.
const PROPAGATION: &[(&str, MsFlags)] = &[
    ("private", MsFlags::MS_PRIVATE),
    ("shared", MsFlags::MS_SHARED),
    ("slave", MsFlags::MS_SLAVE),
    ("unbindable", MsFlags::MS_UNBINDABLE),
];

impl MountOptions {
    /// Sorts `words`. An error for options meant for containerd's mount manager,
    /// and for id maps that are none.
    pub fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self {
            flags: MsFlags::empty(),
            propagation: MsFlags::empty(),
            data: Vec::new(),
            is_loop: false,
            id_maps: None,
        };
        let (mut uid_map, mut gid_map) = (None, None);
        for word in words {
            if let Some((_, set, flags)) = FLAGS.iter().find(|(name, ..)| name == word) {
                options.flags.set(*flags, *set);
            } else if let Some(flags) = propagation(word) {
                options.propagation |= flags;
            } else if word == "loop" {
                options.is_loop = true;
            } else if let Some(map) = word.strip_prefix("uidmap=") {
                uid_map = Some(id_map(map)?);
            } else if let Some(map) = word.strip_prefix("gidmap=") {
                gid_map = Some(id_map(map)?);
            } else if word.starts_with("X-containerd.") {
                return Err(Error::invalid(format!(
                    "internal mount option {word:?} was not consumed by the mount manager"
                )));
            } else {
                options.data.push(word.clone());
            }
        }
        // As containerd does: one map without the other maps nothing.
        options.id_maps = uid_map.zip(gid_map);
        Ok(options)
    }

    /// Takes the option `name` out of the data: whether it was there.
    pub fn take(&mut self, name: &str) -> bool {
        let before = self.data.len();
        self.data.retain(|option| option != name);
        self.data.len() < before
    }

    /// The directories of overlay's `lowerdir=`, and where that option is.
    pub fn lower_dirs(&self) -> Option<(usize, Vec<&str>)> {
        let is_lower = |option: &&str| option.starts_with("lowerdir=");
        let at = self.data.iter().position(|o| is_lower(&o.as_str()))?;
        let dirs = self.data[at].strip_prefix("lowerdir=")?;
        Some((at, dirs.split(':').collect()))
    }

    /// Shortens `lowerdir=` to paths relative to the directory that is returned.
    /// `None`, and no change, when its directories have none in common but `/`.
    pub fn compact_lower_dirs(&mut self) -> Option<PathBuf> {
        let (at, dirs) = self.lower_dirs()?;
        // A backslash may escape a colon, which the split above knows nothing of.
        if dirs.len() < 2 || dirs.iter().any(|d| !d.starts_with('/') || d.contains('\\')) {
            return None;
        }
        let mut common = Path::new(dirs[0]).parent()?;
        while !dirs.iter().all(|dir| is_below(dir, common)) {
            common = common.parent()?;
        }
        if common == Path::new("/") {
            return None;
        }
        let relative = |dir| Path::new(dir).strip_prefix(common).ok()?.to_str();
        let relative: Option<Vec<_>> = dirs.into_iter().map(relative).collect();
        let (common, option) = (common.to_owned(), relative?.join(":"));
        self.data[at] = format!("lowerdir={option}");
        Some(common)
    }
}

fn is_below(dir: &str, common: &Path) -> bool {
    let dir = Path::new(dir);
    dir.starts_with(common) && dir != common
}

fn propagation(word: &str) -> Option<MsFlags> {
    let named = |word| PROPAGATION.iter().find(|(name, _)| *name == word);
    match named(word) {
        Some((_, flags)) => Some(*flags),
        None => named(word.strip_prefix('r')?).map(|(_, flags)| *flags | MsFlags::MS_REC),
    }
}

/// `CONTAINER:HOST:SIZE`, or more of them with commas between, as lines of a map.
fn id_map(text: &str) -> Result<String> {
    let line = |entry: &str| {
        let fields: Vec<u32> = entry
            .split(':')
            .map(|field| field.parse().ok())
            .collect::<Option<_>>()?;
        match fields[..] {
            [container, host, size] => Some(format!("{container} {host} {size}\n")),
            _ => None,
        }
    };
    text.split(',')
        .map(line)
        .collect::<Option<String>>()
        .ok_or_else(|| Error::invalid(format!("id map {text:?}: not CONTAINER:HOST:SIZE")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> MountOptions {
        let words: Vec<String> = words.iter().map(|w| w.to_string()).collect();
        MountOptions::parse(&words).unwrap()
    }

    #[test]
    fn later_options_override_and_unknown_ones_are_data() {
        let options = parse(&["ro", "nosuid", "rw", "defaults", "size=1m", "mode=755"]);
        assert_eq!(options.flags, MsFlags::MS_NOSUID);
        assert_eq!(options.data, ["size=1m", "mode=755"]);
        assert_eq!(options.propagation, MsFlags::empty());
    }

    #[test]
    fn opposite_options_change_the_same_flag() {
        let opposites = [
            ("async", "sync"),
            ("atime", "noatime"),
            ("dev", "nodev"),
            ("diratime", "nodiratime"),
            ("exec", "noexec"),
            ("nomand", "mand"),
            ("norelatime", "relatime"),
            ("nostrictatime", "strictatime"),
            ("rw", "ro"),
            ("suid", "nosuid"),
        ];
        for (clear, set) in opposites {
            assert!(!parse(&[set]).flags.is_empty(), "{set}");
            assert!(parse(&[set, clear]).flags.is_empty(), "{set},{clear}");
        }
        let rbind = MsFlags::MS_BIND | MsFlags::MS_REC;
        assert_eq!(parse(&["rbind"]).flags, rbind);
        assert_eq!(parse(&["bind"]).flags, MsFlags::MS_BIND);
        assert_eq!(parse(&["remount"]).flags, MsFlags::MS_REMOUNT);
        assert_eq!(parse(&["dirsync"]).flags, MsFlags::MS_DIRSYNC);
    }

    #[test]
    fn propagation_is_separate() {
        let options = parse(&["rbind", "rprivate"]);
        assert_eq!(options.flags, MsFlags::MS_BIND | MsFlags::MS_REC);
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        assert_eq!(options.propagation, private);
        assert_eq!(parse(&["shared"]).propagation, MsFlags::MS_SHARED);
        assert_eq!(parse(&["rx"]).data, ["rx"]);
    }

    #[test]
    fn loops_and_id_maps_are_recognised() {
        let mut options = parse(&["loop", "direct-io", "uidmap=0:1:2,5:6:7", "gidmap=0:3:4"]);
        assert!(options.is_loop && options.take("direct-io") && !options.take("direct-io"));
        let maps = ("0 1 2\n5 6 7\n".to_string(), "0 3 4\n".to_string());
        assert_eq!(options.id_maps, Some(maps));
        assert_eq!(parse(&["uidmap=0:1:2"]).id_maps, None);
    }

    #[test]
    fn unsupported_options_are_errors() {
        let error = |word: &str| {
            MountOptions::parse(&[word.to_string()])
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            error("X-containerd.mkfs.fs=ext4"),
            "internal mount option \"X-containerd.mkfs.fs=ext4\" was not consumed by the mount manager"
        );
        for map in ["uidmap=0:1", "uidmap=", "gidmap=0:1:2:3", "gidmap=a:b:c"] {
            assert!(error(map).ends_with("not CONTAINER:HOST:SIZE"), "{map}");
        }
    }

    #[test]
    fn lower_dirs_are_compacted_by_their_common_parent() {
        let mut options = parse(&["index=off", "lowerdir=/s/snapshots/12/fs:/s/snapshots/1/fs"]);
        assert_eq!(options.compact_lower_dirs(), Some("/s/snapshots".into()));
        assert_eq!(options.data, ["index=off", "lowerdir=12/fs:1/fs"]);

        // A directory cannot be relative to itself.
        let mut nested = parse(&["lowerdir=/a/b:/a/b/c"]);
        assert_eq!(nested.compact_lower_dirs(), Some("/a".into()));
        assert_eq!(nested.data, ["lowerdir=b:b/c"]);
    }

    #[test]
    fn lower_dirs_without_a_common_parent_stay() {
        for option in [
            "lowerdir=/a/b:/c/d",
            "lowerdir=/a/b",
            "lowerdir=/a/b:c",
            r"lowerdir=/a/b\:x:/a/c",
            "lowerdir=/a/b::/a/c",
            "upperdir=/a/b",
        ] {
            let mut options = parse(&[option]);
            assert_eq!(options.compact_lower_dirs(), None, "{option}");
            assert_eq!(options.data, [option]);
        }
    }
}
