//! stub
use crate::error::Result;
use std::path::Path;

/// One rootfs mount as containerd asks for it (`containerd.types.Mount`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    pub kind: String,
    pub source: String,
    /// Sub-path inside the rootfs, resolved safely against symlinks; empty: the rootfs.
    pub target: String,
    pub options: Vec<String>,
}

/// Mounts all, in order, on `rootfs` (off the main thread). When one fails, those before it are undone.
pub async fn mount_all(_mounts: Vec<Mount>, _rootfs: &Path) -> Result<()> {
    todo!()
}
/// Unmounts everything at and below `rootfs`, deepest first, with retries (off the main thread).
pub async fn unmount_all(_rootfs: &Path) -> Result<()> {
    todo!()
}
/// The same for callers without a tokio runtime (`delete`).
pub fn unmount_all_blocking(_rootfs: &Path) -> Result<()> {
    todo!()
}
