//! A walk over a cgroup and all that are below it.
//!
//! Promises: it looks at no more directories than its caller allows, however many a
//! container has made; it goes by descriptors, of which it holds two, so that neither the
//! length of a path nor the depth matters, and no name leads out of the tree; a directory
//! that goes away meanwhile is left out.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Links of a directory without directories in it: its name and its own `.`. So it is in
/// cgroups; file systems that count otherwise have 1 for every directory.
const LINKS_OF_A_LEAF: u8 = 2;

/// Where a [`Walk`] is.
pub enum Step {
    /// In a directory that it has not been in.
    In,
    /// Back in the parent of this one, where it has been everywhere.
    Out(Box<OsStr>),
}

/// Goes through a directory and those below.
pub struct Walk {
    at: OwnedFd,
    /// Of each directory from the first down to where it is: the children that it has not
    /// been in, and the one that it is in.
    path: Vec<Level>,
    begun: bool,
    /// How many more directories it may enter.
    left: usize,
    is_cut: bool,
}

#[derive(Default)]
struct Level {
    children: Vec<Box<OsStr>>,
    inside: Option<Box<OsStr>>,
}

impl Walk {
    /// A walk that begins with `dir` and enters `most` directories at most.
    pub fn new(dir: &Path, most: usize) -> io::Result<Walk> {
        Ok(Walk {
            at: openat(AT_FDCWD, dir, DIRECTORY, Mode::empty())?,
            path: Vec::new(),
            begun: false,
            left: most,
            is_cut: false,
        })
    }

    /// The next step; `None` at the end, after which it is not to be asked again.
    pub fn next(&mut self) -> Option<Step> {
        if !std::mem::replace(&mut self.begun, true) {
            self.left = self.left.saturating_sub(1);
            return Some(Step::In);
        }
        if self.path.last().is_none_or(|level| level.inside.is_some()) {
            // It has just come in here.
            let children = self.children().unwrap_or_default();
            let inside = None;
            self.path.push(Level { children, inside });
        }
        let level = self.path.last_mut()?;
        while let Some(name) = level.children.pop() {
            if let Ok(child) = openat(&self.at, &*name, DIRECTORY, Mode::empty()) {
                self.at = child;
                level.inside = Some(name);
                return Some(Step::In);
            }
        }
        self.path.pop();
        let left = self.path.last_mut()?.inside.take()?;
        self.at = openat(&self.at, "..", DIRECTORY, Mode::empty()).ok()?;
        Some(Step::Out(left))
    }

    /// Goes to the next directory that it has not been in. False at the end.
    pub fn enter(&mut self) -> bool {
        loop {
            match self.next() {
                Some(Step::In) => return true,
                Some(Step::Out(_)) => {}
                None => return false,
            }
        }
    }

    /// Whether directories were left out, as there are more than it may enter.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// The directories right below, as many as it may still enter.
    fn children(&mut self) -> io::Result<Vec<Box<OsStr>>> {
        if u8::try_from(fstat(&self.at)?.st_nlink) == Ok(LINKS_OF_A_LEAF) {
            // As almost always; to list the files costs several calls.
            return Ok(Vec::new());
        }
        let here = openat(&self.at, ".", DIRECTORY, Mode::empty())?;
        let mut children = Vec::new();
        for entry in Dir::from_fd(here)?.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if entry.file_type() != Some(Type::Directory) || matches!(name, b"." | b"..") {
                continue;
            }
            if self.left == 0 {
                self.is_cut = true;
                break;
            }
            self.left -= 1;
            children.push(OsStr::from_bytes(name).into());
        }
        Ok(children)
    }

    /// Appends what file `name` of this directory holds to `text`, `most` bytes at most.
    pub fn read(&self, name: &str, most: u64, text: &mut Vec<u8>) -> io::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.at, name, flags, Mode::empty())?);
        file.take(most).read_to_end(text).map(drop)
    }

    /// Writes `text` to file `name` of this directory; never creates one.
    pub fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.at, name, flags, Mode::empty())?);
        file.write_all(text.as_bytes())
    }

    /// Removes the empty directory `name` of this directory. One that is gone is no error.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        match unlinkat(&self.at, name, UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            outcome => Ok(outcome?),
        }
    }
}

/// Whether there are directories in cgroup `dir`.
pub fn has_directories(dir: &Path) -> bool {
    std::fs::metadata(dir).is_ok_and(|found| found.nlink() > LINKS_OF_A_LEAF.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The names of the files `name` that a walk reads, and whether it was cut.
    fn read_all(dir: &Path, most: usize) -> (Vec<String>, bool) {
        let mut walk = Walk::new(dir, most).unwrap();
        let mut texts = Vec::new();
        while walk.enter() {
            let mut text = Vec::new();
            walk.read("name", 100, &mut text).unwrap();
            texts.push(String::from_utf8(text).unwrap());
        }
        texts.sort();
        (texts, walk.is_cut())
    }

    fn tree(names: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in names {
            fs::create_dir_all(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("name"), name).unwrap();
        }
        root
    }

    #[test]
    fn every_directory_is_entered_once() {
        let names = ["", "a", "a/b", "a/b/c", "a/d", "e", "e/f"];
        let root = tree(&names);
        assert_eq!(
            read_all(root.path(), 7),
            (names.map(String::from).to_vec(), false)
        );
        let (texts, is_cut) = read_all(root.path(), 4);
        assert_eq!((texts.len(), is_cut), (4, true));
        assert!(Walk::new(&root.path().join("none"), 1).is_err());
    }

    #[test]
    fn links_are_not_followed() {
        let (root, other) = (tree(&["", "a"]), tree(&["", "b"]));
        std::os::unix::fs::symlink(other.path(), root.path().join("link")).unwrap();
        assert_eq!(read_all(root.path(), 9).0, ["", "a"]);
    }

    #[test]
    fn deep_trees_need_neither_descriptors_nor_long_paths() {
        const DEPTH: usize = 3000;
        let root = tempfile::tempdir().unwrap();
        let top = openat(AT_FDCWD, root.path(), DIRECTORY, Mode::empty()).unwrap();
        let mut at = top;
        let name = "a-name-of-some-length";
        for _ in 0..DEPTH {
            nix::sys::stat::mkdirat(&at, name, Mode::from_bits_truncate(0o700)).unwrap();
            at = openat(&at, name, DIRECTORY, Mode::empty()).unwrap();
        }
        let mut walk = Walk::new(root.path(), DEPTH + 1).unwrap();
        let (mut entered, mut removed) = (0, 0);
        while let Some(step) = walk.next() {
            match step {
                Step::In => entered += 1,
                Step::Out(name) => {
                    walk.remove(&name).unwrap();
                    removed += 1;
                }
            }
        }
        assert_eq!((entered, removed), (DEPTH + 1, DEPTH));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn directories_removed_meanwhile_are_left_out() {
        let root = tree(&["", "a", "b"]);
        let mut walk = Walk::new(root.path(), 9).unwrap();
        assert!(walk.enter());
        assert!(walk.enter());
        for name in ["a", "b"] {
            fs::remove_dir_all(root.path().join(name)).unwrap();
        }
        assert!(!walk.enter());
    }
}
