//! The formats of a cgroup's files.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// Reads one small file after the other into the same memory.
#[derive(Default)]
pub struct Reader {
    path: PathBuf,
    text: String,
    /// By their paths, those that stay open; `None` for one that is not there.
    open: Option<BTreeMap<OsString, Option<File>>>,
}

impl Reader {
    /// One whose files stay open, to be read again and again: to open one takes the kernel
    /// ten times as long.
    pub fn keeping_open() -> Self {
        Self {
            open: Some(BTreeMap::new()),
            ..Self::default()
        }
    }

    /// The text of file `name` in `dir`.
    pub fn must(&mut self, dir: &Path, name: &str) -> io::Result<&str> {
        self.path.as_mut_os_string().clear();
        self.path.push(dir);
        self.path.push(name);
        self.text.clear();
        let Some(open) = &mut self.open else {
            read(&File::open(&self.path)?, &mut self.text)?;
            return Ok(&self.text);
        };
        if !open.contains_key(self.path.as_os_str()) {
            let file = match File::open(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                file => file.ok(),
            };
            open.insert(self.path.clone().into(), file);
        }
        match &open[self.path.as_os_str()] {
            Some(file) => read(file, &mut self.text)?,
            None => return Err(Errno::ENOENT.into()),
        }
        Ok(&self.text)
    }

    /// As [`Reader::must`]; empty when there is no such file, or it has nothing to
    /// say, as that of pressure when the kernel was told not to measure it.
    pub fn text(&mut self, dir: &Path, name: &str) -> io::Result<&str> {
        const SILENT: [Errno; 3] = [Errno::ENOENT, Errno::ENODEV, Errno::EOPNOTSUPP];
        match self.must(dir, name) {
            Ok(_) => {}
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(errno) if SILENT.contains(&errno) => self.text.clear(),
                _ => {
                    let path = self.path.display();
                    return Err(io::Error::new(error.kind(), format!("{path}: {error}")));
                }
            },
        }
        Ok(&self.text)
    }

    /// The number that file `name` holds; 0 when there is no such file.
    pub fn number(&mut self, dir: &Path, name: &str) -> io::Result<u64> {
        Ok(number(self.text(dir, name)?))
    }
}

/// Appends the whole of `file` to `text`.
fn read(mut file: &File, text: &mut String) -> io::Result<()> {
    file.rewind()?;
    // `take`, because a kernel file has no size to ask for; the bound is far off.
    file.take(64 << 20).read_to_string(text).map(drop)
}

/// Writes `text` to a kernel file in one call; never creates one.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.write_all(text.as_bytes())
}

/// A number, or `max` for the greatest; 0 for what is neither.
pub fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

/// The pairs of a file with a key and a number on each line.
pub fn keyed(text: &str) -> impl Iterator<Item = (&str, u64)> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(key, value)| (key, number(value)))
}

/// The lines of a file that has a name and then `KEY=VALUE` pairs on each.
pub fn nested(text: &str) -> impl Iterator<Item = (&str, impl Iterator<Item = (&str, &str)>)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?;
        Some((name, words.filter_map(|word| word.split_once('='))))
    })
}

/// Two numbers with a colon between, as devices are named.
pub fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The devices of an `rdma.*` file, with their handles and objects; the greatest
/// number means `max`.
pub fn rdma_devices(text: &str) -> impl Iterator<Item = (&str, u32, u32)> {
    nested(text).map(|(device, pairs)| {
        let (mut handles, mut objects) = (0, 0);
        for (key, value) in pairs {
            let value = u32::try_from(number(value)).unwrap_or(u32::MAX);
            match key {
                "hca_handle" => handles = value,
                "hca_object" => objects = value,
                _ => {}
            }
        }
        (device, handles, objects)
    })
}

/// The sizes of huge pages as the names of cgroup files have them, such as `2MB`.
pub fn huge_page_sizes(root: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(root.join("sys/kernel/mm/hugepages")) else {
        return Vec::new();
    };
    let mut kilobytes: Vec<u64> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()
        })
        .collect();
    kilobytes.sort_unstable();
    let name = |kb| match kb {
        0..1024 => format!("{kb}KB"),
        1024..1_048_576 => format!("{}MB", kb >> 10),
        _ => format!("{}GB", kb >> 20),
    };
    kilobytes.into_iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_files_with_other_content_are_zero() {
        assert_eq!(number("42\n"), 42);
        assert_eq!(number("max\n"), u64::MAX);
        for odd in ["", "-1", "x", "18446744073709551616"] {
            assert_eq!(number(odd), 0, "{odd}");
        }
    }

    #[test]
    fn keyed_and_nested_lines() {
        let pairs: Vec<_> = keyed("a 1\nb max\n\nodd\n").collect();
        assert_eq!(pairs, [("a", 1), ("b", u64::MAX)]);
        let lines: Vec<(_, Vec<_>)> = nested("8:0 r=1 odd w=2\n\n8:1\n")
            .map(|(name, pairs)| (name, pairs.collect()))
            .collect();
        let first = ("8:0", vec![("r", "1"), ("w", "2")]);
        assert_eq!(lines, [first, ("8:1", vec![])]);
        assert_eq!(device("254:16"), Some((254, 16)));
        assert_eq!(device("Total"), None);
    }

    #[test]
    fn missing_file_is_empty_and_malformed_file_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = Reader::default();
        assert_eq!(reader.number(dir.path(), "none").unwrap(), 0);
        fs::write(dir.path().join("some"), "7\n").unwrap();
        assert_eq!(reader.number(dir.path(), "some").unwrap(), 7);
        assert_eq!(reader.text(dir.path(), "none").unwrap(), "");
        let error = reader.text(dir.path(), "").unwrap_err().to_string();
        assert!(error.contains("Is a directory"), "{error}");
    }

    #[test]
    fn open_files_are_current_and_opened_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "1").unwrap();
        let mut reader = Reader::keeping_open();
        assert_eq!(reader.number(dir.path(), "file").unwrap(), 1);
        assert_eq!(reader.number(dir.path(), "late").unwrap(), 0);
        fs::write(&file, "22").unwrap();
        assert_eq!(reader.number(dir.path(), "file").unwrap(), 22);
        fs::remove_file(&file).unwrap();
        assert_eq!(reader.number(dir.path(), "file").unwrap(), 22);
        fs::write(dir.path().join("late"), "3").unwrap();
        assert_eq!(reader.number(dir.path(), "late").unwrap(), 0);
    }

    #[test]
    fn huge_pages_are_named_by_their_size() {
        let root = tempfile::tempdir().unwrap();
        assert!(huge_page_sizes(root.path()).is_empty());
        let sizes = [
            "hugepages-1048576kB",
            "hugepages-64kB",
            "hugepages-2048kB",
            "x",
        ];
        for size in sizes {
            fs::create_dir_all(root.path().join("sys/kernel/mm/hugepages").join(size)).unwrap();
        }
        assert_eq!(huge_page_sizes(root.path()), ["64KB", "2MB", "1GB"]);
    }
}
