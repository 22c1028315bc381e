//! stub
use crate::error::Result;
use crate::proto::Any;
use std::path::Path;

/// A container's cgroup, resolved once, at Create, from its init's pid.
pub struct Cgroup(());

impl Cgroup {
    /// The cgroup of process `pid`: on v2 and hybrid-free systems one directory, on v1 one a controller.
    pub fn of(_pid: i32) -> Result<Cgroup> {
        todo!()
    }
    /// Every process in it and below (`cgroup.procs`, recursively), sorted, each once.
    pub fn pids(&self) -> Result<Vec<i32>> {
        todo!()
    }
    /// `io.containerd.cgroups.v1.Metrics` or `io.containerd.cgroups.v2.Metrics`.
    /// A missing controller or file gives zeros; NotFound when the whole cgroup is gone.
    pub fn stats(&self) -> Result<Any> {
        todo!()
    }
    /// Kills every process in it (`cgroup.kill`). False where the kernel offers none (v1).
    pub fn kill(&self) -> Result<bool> {
        todo!()
    }
    /// v2: enables every controller of the root in `cgroup.subtree_control` of each ancestor.
    pub fn enable_controllers(&self) -> Result<()> {
        todo!()
    }
}

/// ShimCgroup: puts process `pid` into the existing cgroup `path` (v1: of every controller).
pub fn join(_path: &Path, _pid: i32) -> Result<()> {
    todo!()
}
