//! Statistics of a v2 cgroup, and its controllers.

use std::io;
use std::path::Path;

use super::files::{self, Reader, device, keyed, nested, number, rdma_devices};
use crate::error::{Context, Result};
use crate::proto::MessageField;
use crate::proto::cgroups_v2::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats,
    PidsStat, RdmaEntry, RdmaStat,
};

/// What the files in `dir` tell; those that are missing tell zeros. `huge_pages` are the
/// sizes there are.
pub fn metrics(dir: &Path, huge_pages: &[String], reader: &mut Reader) -> io::Result<Metrics> {
    let mut metrics = Metrics {
        // The most important first: the cgroup may be removed while its files are read.
        memory_events: memory_events(reader.text(dir, "memory.events")?),
        cpu: MessageField::some(cpu(dir, reader)?),
        memory: MessageField::some(memory(dir, reader)?),
        pids: MessageField::some(PidsStat {
            current: reader.number(dir, "pids.current")?,
            limit: reader.number(dir, "pids.max")?,
            ..PidsStat::default()
        }),
        io: MessageField::some(IOStat {
            usage: io_usage(reader.text(dir, "io.stat")?),
            psi: pressure(reader.text(dir, "io.pressure")?),
            ..IOStat::default()
        }),
        rdma: MessageField::some(RdmaStat {
            current: rdma(reader.text(dir, "rdma.current")?),
            limit: rdma(reader.text(dir, "rdma.max")?),
            ..RdmaStat::default()
        }),
        ..Metrics::default()
    };
    for size in huge_pages {
        metrics.hugetlb.push(hugetlb(dir, size, reader)?);
    }
    Ok(metrics)
}

fn cpu(dir: &Path, reader: &mut Reader) -> io::Result<CPUStat> {
    let mut stat = CPUStat::default();
    for (key, value) in keyed(reader.text(dir, "cpu.stat")?) {
        match key {
            "usage_usec" => stat.usage_usec = value,
            "user_usec" => stat.user_usec = value,
            "system_usec" => stat.system_usec = value,
            "nr_periods" => stat.nr_periods = value,
            "nr_throttled" => stat.nr_throttled = value,
            "throttled_usec" => stat.throttled_usec = value,
            "nr_bursts" => stat.nr_bursts = value,
            "burst_usec" => stat.burst_usec = value,
            _ => {}
        }
    }
    stat.psi = pressure(reader.text(dir, "cpu.pressure")?);
    Ok(stat)
}

fn memory(dir: &Path, reader: &mut Reader) -> io::Result<MemoryStat> {
    let mut stat = memory_stat(reader.text(dir, "memory.stat")?);
    stat.usage = reader.number(dir, "memory.current")?;
    stat.usage_limit = reader.number(dir, "memory.max")?;
    stat.max_usage = reader.number(dir, "memory.peak")?;
    stat.swap_usage = reader.number(dir, "memory.swap.current")?;
    stat.swap_limit = reader.number(dir, "memory.swap.max")?;
    stat.swap_max_usage = reader.number(dir, "memory.swap.peak")?;
    stat.psi = pressure(reader.text(dir, "memory.pressure")?);
    Ok(stat)
}

fn memory_stat(text: &str) -> MemoryStat {
    let mut stat = MemoryStat::default();
    for (key, value) in keyed(text) {
        let field = match key {
            "anon" => &mut stat.anon,
            "file" => &mut stat.file,
            "kernel_stack" => &mut stat.kernel_stack,
            "slab" => &mut stat.slab,
            "sock" => &mut stat.sock,
            "shmem" => &mut stat.shmem,
            "file_mapped" => &mut stat.file_mapped,
            "file_dirty" => &mut stat.file_dirty,
            "file_writeback" => &mut stat.file_writeback,
            "anon_thp" => &mut stat.anon_thp,
            "inactive_anon" => &mut stat.inactive_anon,
            "active_anon" => &mut stat.active_anon,
            "inactive_file" => &mut stat.inactive_file,
            "active_file" => &mut stat.active_file,
            "unevictable" => &mut stat.unevictable,
            "slab_reclaimable" => &mut stat.slab_reclaimable,
            "slab_unreclaimable" => &mut stat.slab_unreclaimable,
            "pgfault" => &mut stat.pgfault,
            "pgmajfault" => &mut stat.pgmajfault,
            "workingset_refault" => &mut stat.workingset_refault,
            "workingset_activate" => &mut stat.workingset_activate,
            "workingset_nodereclaim" => &mut stat.workingset_nodereclaim,
            "pgrefill" => &mut stat.pgrefill,
            "pgscan" => &mut stat.pgscan,
            "pgsteal" => &mut stat.pgsteal,
            "pgactivate" => &mut stat.pgactivate,
            "pgdeactivate" => &mut stat.pgdeactivate,
            "pglazyfree" => &mut stat.pglazyfree,
            "pglazyfreed" => &mut stat.pglazyfreed,
            "thp_fault_alloc" => &mut stat.thp_fault_alloc,
            "thp_collapse_alloc" => &mut stat.thp_collapse_alloc,
            _ => continue,
        };
        *field = value;
    }
    stat
}

fn memory_events(text: &str) -> MessageField<MemoryEvents> {
    if text.is_empty() {
        return MessageField::none();
    }
    let mut events = MemoryEvents::default();
    for (key, value) in keyed(text) {
        match key {
            "low" => events.low = value,
            "high" => events.high = value,
            "max" => events.max = value,
            "oom" => events.oom = value,
            "oom_kill" => events.oom_kill = value,
            "oom_group_kill" => events.oom_group_kill = value,
            _ => {}
        }
    }
    MessageField::some(events)
}

fn pressure(text: &str) -> MessageField<PSIStats> {
    if text.is_empty() {
        return MessageField::none();
    }
    let mut stats = PSIStats::default();
    for (name, pairs) in nested(text) {
        let mut data = PSIData::default();
        for (key, value) in pairs {
            let average = || value.parse().unwrap_or(0.0);
            match key {
                "avg10" => data.avg10 = average(),
                "avg60" => data.avg60 = average(),
                "avg300" => data.avg300 = average(),
                "total" => data.total = number(value),
                _ => {}
            }
        }
        match name {
            "some" => stats.some = MessageField::some(data),
            "full" => stats.full = MessageField::some(data),
            _ => {}
        }
    }
    MessageField::some(stats)
}

fn io_usage(text: &str) -> Vec<IOEntry> {
    let mut usage = Vec::new();
    for (name, pairs) in nested(text) {
        let Some((major, minor)) = device(name) else {
            continue;
        };
        let mut pairs = pairs.peekable();
        // A device that this cgroup never used has a line with its name only.
        if pairs.peek().is_none() {
            continue;
        }
        let mut entry = IOEntry {
            major,
            minor,
            ..IOEntry::default()
        };
        for (key, value) in pairs {
            match key {
                "rbytes" => entry.rbytes = number(value),
                "wbytes" => entry.wbytes = number(value),
                "rios" => entry.rios = number(value),
                "wios" => entry.wios = number(value),
                _ => {}
            }
        }
        usage.push(entry);
    }
    usage
}

fn rdma(text: &str) -> Vec<RdmaEntry> {
    let entry = |(device, hca_handles, hca_objects): (&str, _, _)| RdmaEntry {
        device: device.to_owned(),
        hca_handles,
        hca_objects,
        ..RdmaEntry::default()
    };
    rdma_devices(text).map(entry).collect()
}

fn hugetlb(dir: &Path, size: &str, reader: &mut Reader) -> io::Result<HugeTlbStat> {
    let current = reader.number(dir, &format!("hugetlb.{size}.current"))?;
    let max = reader.number(dir, &format!("hugetlb.{size}.max"))?;
    let events = reader.text(dir, &format!("hugetlb.{size}.events"))?;
    let failcnt = keyed(events).find(|(key, _)| *key == "max");
    Ok(HugeTlbStat {
        current,
        max,
        failcnt: failcnt.map_or(0, |(_, count)| count),
        pagesize: size.into(),
        ..HugeTlbStat::default()
    })
}

/// Turns on every controller that `mount` has in each cgroup above `dir`, so that
/// `dir` and whatever the container makes below it can use them.
pub fn enable_controllers(mount: &Path, dir: &Path) -> Result<()> {
    let mut reader = Reader::default();
    let available = reader
        .must(mount, "cgroup.controllers")
        .context(|| format!("list controllers of {}", mount.display()))?;
    let words: Vec<String> = available
        .split_ascii_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    if words.is_empty() {
        return Ok(());
    }
    let mut outcome = Ok(());
    let mut above: Vec<&Path> = dir.ancestors().skip(1).collect();
    above.retain(|ancestor| ancestor.starts_with(mount));
    for ancestor in above.into_iter().rev() {
        // A failure further up does not matter if the next one has what it needs.
        outcome = enable(&ancestor.join("cgroup.subtree_control"), &words);
    }
    outcome
}

fn enable(file: &Path, words: &[String]) -> Result<()> {
    if files::write(file, &words.join(" ")).is_ok() {
        return Ok(());
    }
    // All or nothing: one that cannot be had must not cost the others.
    let mut outcome = Ok(());
    for word in words {
        let enabled = files::write(file, word);
        outcome = outcome.and(enabled.context(|| format!("write {word} to {}", file.display())));
    }
    outcome
}
