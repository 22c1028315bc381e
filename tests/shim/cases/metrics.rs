//! The metrics beside those of containerd's own shim, field by field, for one container
//! at rest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_rs_v2::proto::{Any, Message, cgroups_v1, cgroups_v2};
use protobuf::text_format::print_to_string_pretty;

use crate::harness::container::Container;
use crate::harness::*;

/// `binary`, in a place where all hierarchies of v1 are mounted: Go loads no cgroup if
/// one is not, such as this, which others on the machine may have made.
fn with_all_hierarchies(binary: &str, script: &Path) {
    let mount = concat!(env!("CARGO_MANIFEST_DIR"), "/hack/hugetlb");
    let text = format!("exec unshare --mount sh -c '{mount}; exec \"$0\" \"$@\"' {binary} \"$@\"");
    write_program(script, &text);
}

/// A runtime whose containers are all the process `pid`.
fn runtime_of(pid: u32, path: &Path) {
    let script =
        format!("while [ $# -gt 0 ]; do\n[ $1 != --pid-file ] || printf {pid} >$2\nshift\ndone");
    write_program(path, &script);
}

/// Every field that is not zero, by its path; the type's name first.
fn fields(c: &Container) -> Result<BTreeMap<String, String>, rpc::Failure> {
    let any: Any = c.stats()?.stats.unwrap();
    // Sizes of huge pages come in no order.
    let text = if any.type_url == "io.containerd.cgroups.v1.Metrics" {
        let mut metrics = cgroups_v1::Metrics::parse_from_bytes(&any.value).unwrap();
        metrics.hugetlb.sort_by(|a, b| a.pagesize.cmp(&b.pagesize));
        print_to_string_pretty(&metrics)
    } else {
        let mut metrics = cgroups_v2::Metrics::parse_from_bytes(&any.value).unwrap();
        metrics.hugetlb.sort_by(|a, b| a.pagesize.cmp(&b.pagesize));
        print_to_string_pretty(&metrics)
    };
    let mut fields = BTreeMap::from([("type".into(), any.type_url)]);
    let mut path = Vec::new();
    let mut seen = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        match line.split_once(": ") {
            _ if line == "}" => drop(path.pop()),
            Some((name, value)) => {
                let field = [&path[..], &[name.to_string()]].concat().join(".");
                // The values of a repeated one go together.
                let values: &mut String = fields.entry(field).or_default();
                values.push_str(&format!(" {value}"));
            }
            None => {
                let name = line.trim_end_matches([' ', '{', ':']);
                let count = seen
                    .entry([&path[..], &[name.to_string()]].concat())
                    .or_insert(0);
                path.push(format!("{name}{count}"));
                *count += 1;
            }
        }
    }
    Ok(fields)
}

/// A container, and another shim that takes it for its own.
fn with_two_shims(d: &Daemon, test: impl FnOnce(&Container, &Container)) {
    let (here, script) = (d.path("shim"), d.path("runtime"));
    with_all_hierarchies(shim_binary(), &here);
    let ours = Daemon::with_shim(here.to_str().unwrap(), d.api, d.hang_timeout);
    let c = ours.running("c");

    let there = d.path("peer");
    with_all_hierarchies(go_shim(d.api), &there);
    let others = Daemon::with_shim(there.to_str().unwrap(), d.api, d.hang_timeout);
    runtime_of(c.state().unwrap().pid, &script);
    let other = others.container("c", &["true"]);
    let other = other.options(|o| o.binary_name = script.to_str().unwrap().into());
    test(&c, &other.created());
    c.end();
    c.finish();
}

/// The processor time of a shim's threads, in ns.
fn processor_time(c: &Container) -> u64 {
    let threads = fs::read_dir(format!("/proc/{}/task", c.shim_pid))
        .unwrap()
        .flatten();
    let time = |path: PathBuf| {
        let text = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        text.split(' ')
            .next()
            .and_then(|time| time.parse::<u64>().ok())
            .unwrap_or_default()
    };
    threads.map(|thread| time(thread.path())).sum()
}

cases! {
    /// Run it by name, on a machine that does nothing else, with `--ignored --nocapture`.
    #[ignore = "a measurement: what Stats costs beside Go's"]
    fn processor_time_of_stats(d) {
        with_two_shims(d, |c, other| {
            let cost = |shim: &Container| {
                shim.stats().unwrap();
                let before = processor_time(shim);
                (0..1000).for_each(|_| drop(shim.stats().unwrap()));
                (processor_time(shim) - before) / 1_000_000
            };
            for _ in 0..3 {
                eprintln!("µs of the processor for one Stats: {} ours, {} of {}", cost(c), cost(other), go_shim(d.api));
            }
        });
    }

    fn metrics_are_those_of_containerds_shim(d) {
        with_two_shims(d, |c, other| {
            let before = fields(c).unwrap();
            let theirs = fields(other).unwrap();
            let after = fields(c).unwrap();
            let none = String::new();
            let value = |of: &BTreeMap<String, String>, field: &String| of.get(field).unwrap_or(&none).clone();
            let mut names: Vec<&String> = before.keys().chain(theirs.keys()).collect();
            names.sort();
            names.dedup();
            let mut differences = Vec::new();
            for name in names {
                let (ours, at_rest) = (value(&before, name), value(&before, name) == value(&after, name));
                if at_rest && ours != value(&theirs, name) {
                    differences.push(format!("{name}: ours {ours}, theirs {}", value(&theirs, name)));
                }
            }
            eprintln!("{} fields of {}", theirs.len(), go_shim(d.api));
            assert!(differences.is_empty(), "{differences:#?}");
        });
    }
}
