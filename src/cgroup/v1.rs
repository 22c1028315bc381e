//! Statistics of a v1 cgroup.
//!
//! They are those that containerd's own shim reports. Differences: files are read
//! whatever else is missing, and block devices under BFQ count too.

use std::io;
use std::path::Path;

use super::files::{Reader, device, keyed, number, rdma_devices};
use super::locate::Hierarchies;
use crate::proto::MessageField;
use crate::proto::cgroups_v1::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
    MemoryStat, Metrics, PidsStat, RdmaEntry, RdmaStat, Throttle,
};

/// What the controllers of `cgroup` tell; those that are missing tell nothing. `huge_pages`
/// are the sizes there are.
pub fn metrics(
    root: &Path,
    cgroup: &Hierarchies,
    huge_pages: &[String],
    reader: &mut Reader,
) -> io::Result<Metrics> {
    let mut metrics = Metrics {
        cpu: MessageField::some(cpu(cgroup, reader)?),
        ..Metrics::default()
    };
    if let Some(dir) = cgroup.live_dir("memory") {
        metrics.memory = MessageField::some(memory(dir, reader)?);
        metrics.memory_oom_control = MessageField::some(oom_control(dir, reader)?);
    }
    if let Some(dir) = cgroup.live_dir("pids") {
        metrics.pids = MessageField::some(pids(dir, reader)?);
    }
    if let Some(dir) = cgroup.live_dir("blkio") {
        metrics.blkio = MessageField::some(blkio(root, dir, reader)?);
    }
    if let Some(dir) = cgroup.live_dir("hugetlb") {
        for size in huge_pages {
            metrics.hugetlb.push(hugetlb(dir, size, reader)?);
        }
    }
    if let Some(dir) = cgroup.live_dir("rdma") {
        metrics.rdma = MessageField::some(RdmaStat {
            current: rdma(reader.text(dir, "rdma.current")?),
            limit: rdma(reader.text(dir, "rdma.max")?),
            ..RdmaStat::default()
        });
    }
    Ok(metrics)
}

fn cpu(cgroup: &Hierarchies, reader: &mut Reader) -> io::Result<CPUStat> {
    /// `cpuacct.stat` counts in USER_HZ, which is 100 wherever containers run.
    const NANOSECONDS_PER_TICK: u64 = 10_000_000;
    let mut usage = CPUUsage::default();
    let mut throttling = Throttle::default();
    if let Some(dir) = cgroup.live_dir("cpuacct") {
        usage.total = reader.number(dir, "cpuacct.usage")?;
        for (key, ticks) in keyed(reader.text(dir, "cpuacct.stat")?) {
            match key {
                "user" => usage.user = ticks.saturating_mul(NANOSECONDS_PER_TICK),
                "system" => usage.kernel = ticks.saturating_mul(NANOSECONDS_PER_TICK),
                _ => {}
            }
        }
        let per_cpu = reader.text(dir, "cpuacct.usage_percpu")?;
        usage.per_cpu = per_cpu.split_ascii_whitespace().map(number).collect();
    }
    if let Some(dir) = cgroup.live_dir("cpu") {
        for (key, value) in keyed(reader.text(dir, "cpu.stat")?) {
            match key {
                "nr_periods" => throttling.periods = value,
                "nr_throttled" => throttling.throttled_periods = value,
                "throttled_time" => throttling.throttled_time = value,
                _ => {}
            }
        }
    }
    Ok(CPUStat {
        usage: MessageField::some(usage),
        throttling: MessageField::some(throttling),
        ..CPUStat::default()
    })
}

fn memory(dir: &Path, reader: &mut Reader) -> io::Result<MemoryStat> {
    let mut stat = memory_stat(reader.text(dir, "memory.stat")?);
    stat.usage = MessageField::some(memory_entry(dir, "memory", reader)?);
    stat.swap = MessageField::some(memory_entry(dir, "memory.memsw", reader)?);
    stat.kernel = MessageField::some(memory_entry(dir, "memory.kmem", reader)?);
    stat.kernel_tcp = MessageField::some(memory_entry(dir, "memory.kmem.tcp", reader)?);
    Ok(stat)
}

fn memory_stat(text: &str) -> MemoryStat {
    let mut stat = MemoryStat::default();
    for (key, value) in keyed(text) {
        let field = match key {
            "cache" => &mut stat.cache,
            "rss" => &mut stat.rss,
            "rss_huge" => &mut stat.rss_huge,
            "mapped_file" => &mut stat.mapped_file,
            "dirty" => &mut stat.dirty,
            "writeback" => &mut stat.writeback,
            "pgpgin" => &mut stat.pg_pg_in,
            "pgpgout" => &mut stat.pg_pg_out,
            "pgfault" => &mut stat.pg_fault,
            "pgmajfault" => &mut stat.pg_maj_fault,
            "inactive_anon" => &mut stat.inactive_anon,
            "active_anon" => &mut stat.active_anon,
            "inactive_file" => &mut stat.inactive_file,
            "active_file" => &mut stat.active_file,
            "unevictable" => &mut stat.unevictable,
            "hierarchical_memory_limit" => &mut stat.hierarchical_memory_limit,
            "hierarchical_memsw_limit" => &mut stat.hierarchical_swap_limit,
            "total_cache" => &mut stat.total_cache,
            "total_rss" => &mut stat.total_rss,
            "total_rss_huge" => &mut stat.total_rss_huge,
            "total_mapped_file" => &mut stat.total_mapped_file,
            "total_dirty" => &mut stat.total_dirty,
            "total_writeback" => &mut stat.total_writeback,
            "total_pgpgin" => &mut stat.total_pg_pg_in,
            "total_pgpgout" => &mut stat.total_pg_pg_out,
            "total_pgfault" => &mut stat.total_pg_fault,
            "total_pgmajfault" => &mut stat.total_pg_maj_fault,
            "total_inactive_anon" => &mut stat.total_inactive_anon,
            "total_active_anon" => &mut stat.total_active_anon,
            "total_inactive_file" => &mut stat.total_inactive_file,
            "total_active_file" => &mut stat.total_active_file,
            "total_unevictable" => &mut stat.total_unevictable,
            _ => continue,
        };
        *field = value;
    }
    stat
}

fn memory_entry(dir: &Path, prefix: &str, reader: &mut Reader) -> io::Result<MemoryEntry> {
    let mut read = |name| reader.number(dir, &format!("{prefix}.{name}"));
    Ok(MemoryEntry {
        usage: read("usage_in_bytes")?,
        max: read("max_usage_in_bytes")?,
        failcnt: read("failcnt")?,
        limit: read("limit_in_bytes")?,
        ..MemoryEntry::default()
    })
}

fn oom_control(dir: &Path, reader: &mut Reader) -> io::Result<MemoryOomControl> {
    let mut control = MemoryOomControl::default();
    for (key, value) in keyed(reader.text(dir, "memory.oom_control")?) {
        match key {
            "oom_kill_disable" => control.oom_kill_disable = value,
            "under_oom" => control.under_oom = value,
            "oom_kill" => control.oom_kill = value,
            _ => {}
        }
    }
    Ok(control)
}

fn pids(dir: &Path, reader: &mut Reader) -> io::Result<PidsStat> {
    let current = reader.number(dir, "pids.current")?;
    // On v1, containerd's word for "no limit" is 0.
    let limit = match reader.text(dir, "pids.max")?.trim() {
        "max" => 0,
        limit => number(limit),
    };
    Ok(PidsStat {
        current,
        limit,
        ..PidsStat::default()
    })
}

/// The files of the I/O scheduler that counts; without one, those of throttling.
fn blkio(root: &Path, dir: &Path, reader: &mut Reader) -> io::Result<BlkIOStat> {
    let mut stat = BlkIOStat::default();
    let mut found = false;
    for (serviced, bytes) in [
        ("io_serviced_recursive", "io_service_bytes_recursive"),
        (
            "bfq.io_serviced_recursive",
            "bfq.io_service_bytes_recursive",
        ),
        ("throttle.io_serviced", "throttle.io_service_bytes"),
    ] {
        stat.io_serviced_recursive = blkio_entries(dir, serviced, reader)?;
        stat.io_service_bytes_recursive = blkio_entries(dir, bytes, reader)?;
        found =
            !(stat.io_serviced_recursive.is_empty() && stat.io_service_bytes_recursive.is_empty());
        if found {
            break;
        }
    }
    stat.sectors_recursive = blkio_entries(dir, "sectors_recursive", reader)?;
    stat.io_queued_recursive = blkio_entries(dir, "io_queued_recursive", reader)?;
    stat.io_service_time_recursive = blkio_entries(dir, "io_service_time_recursive", reader)?;
    stat.io_wait_time_recursive = blkio_entries(dir, "io_wait_time_recursive", reader)?;
    stat.io_merged_recursive = blkio_entries(dir, "io_merged_recursive", reader)?;
    stat.io_time_recursive = blkio_entries(dir, "time_recursive", reader)?;
    if found {
        name_devices(&mut stat, reader.text(&root.join("proc"), "partitions")?);
    }
    Ok(stat)
}

fn blkio_entries(dir: &Path, name: &str, reader: &mut Reader) -> io::Result<Vec<BlkIOEntry>> {
    let text = reader.text(dir, &format!("blkio.{name}"))?;
    let entry = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        // The last line is the sum of all devices.
        let (major, minor) = device(words.first()?)?;
        let (op, value) = match words[1..] {
            [value] => ("", value),
            [op, value] => (op, value),
            _ => return None,
        };
        Some(BlkIOEntry {
            op: op.to_owned(),
            major,
            minor,
            value: value.parse().ok()?,
            ..BlkIOEntry::default()
        })
    };
    Ok(text.lines().filter_map(entry).collect())
}

/// Fills in the paths of devices from `/proc/partitions`.
fn name_devices(stat: &mut BlkIOStat, partitions: &str) {
    let named: Vec<(u64, u64, &str)> = partitions
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (major, minor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            Some((major, minor, words.nth(1)?))
        })
        .collect();
    let lists = [
        &mut stat.sectors_recursive,
        &mut stat.io_serviced_recursive,
        &mut stat.io_service_bytes_recursive,
        &mut stat.io_queued_recursive,
        &mut stat.io_service_time_recursive,
        &mut stat.io_wait_time_recursive,
        &mut stat.io_merged_recursive,
        &mut stat.io_time_recursive,
    ];
    for entry in lists.into_iter().flatten() {
        let same = |(major, minor, _): &&(_, _, _)| (*major, *minor) == (entry.major, entry.minor);
        if let Some((.., name)) = named.iter().find(same) {
            entry.device = format!("/dev/{name}");
        }
    }
}

fn hugetlb(dir: &Path, size: &str, reader: &mut Reader) -> io::Result<HugetlbStat> {
    let mut read = |name| reader.number(dir, &format!("hugetlb.{size}.{name}"));
    Ok(HugetlbStat {
        usage: read("usage_in_bytes")?,
        max: read("max_usage_in_bytes")?,
        failcnt: read("failcnt")?,
        pagesize: size.into(),
        ..HugetlbStat::default()
    })
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
