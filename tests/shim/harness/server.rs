//! What a shim's server holds: descriptors and threads.

use std::fs;
use std::path::PathBuf;

use nix::fcntl::OFlag;

use super::container::Container;
use super::footprint::entries;
use super::process;

impl Container<'_> {
    /// The shim's descriptors that a program it runs would get, but for those of stdio.
    pub fn inheritable(&self) -> Vec<String> {
        let dir = format!("/proc/{}/fd", self.shim_pid);
        let numbers = fs::read_dir(dir).expect("look at the shim").flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let kept = |number: &i32| {
            let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", self.shim_pid)).ok();
            let flags = info.as_deref().and_then(|info| {
                info.split_whitespace()
                    .skip_while(|word| *word != "flags:")
                    .nth(1)
            });
            let flags = flags.map(|flags| i32::from_str_radix(flags, 8).expect("flags in octal"));
            flags.is_some_and(|flags| flags & OFlag::O_CLOEXEC.bits() == 0)
        };
        let link = |number| {
            fs::read_link(format!("/proc/{}/fd/{number}", self.shim_pid)).unwrap_or_default()
        };
        let kept = numbers.filter(|number| *number > 2).filter(kept);
        kept.map(|number| format!("{number} -> {}", link(number).display()))
            .collect()
    }

    /// The server's memory in kB, `VmRSS` now or `VmHWM` at most.
    pub fn memory(&self, which: &str) -> u64 {
        let line = process::status_line(self.shim_pid, which);
        line.trim_end_matches(" kB").parse().expect("a number")
    }

    /// Descriptors and threads of the shim's server.
    pub fn footprint(&self) -> (Vec<String>, usize) {
        let link = |path: &PathBuf| {
            fs::read_link(path)
                .unwrap_or_default()
                .display()
                .to_string()
        };
        let mut descriptors: Vec<String> = entries(self.shim_pid, "fd").iter().map(link).collect();
        descriptors.sort();
        (descriptors, entries(self.shim_pid, "task").len())
    }
}
