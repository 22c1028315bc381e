//! stub
use crate::cgroup::Cgroup;
use crate::error::Result;

/// A watch for OOM kills in a container's cgroup.
pub struct OomWatch(());

impl OomWatch {
    /// Opens the watch and calls `on_oom` once for each new OOM kill seen (from a local task).
    pub fn start(_cgroup: &Cgroup, _on_oom: impl Fn() + 'static) -> Result<OomWatch> {
        todo!()
    }
    /// Reads once more, calls `on_oom` if there was one not yet told, and ends the watch.
    /// Synchronous: what it reports is queued before the caller's next event.
    pub fn finish(self) {
        todo!()
    }
}
