//! stub
use crate::error::Result;
use crate::options::Options;
use crate::reaper::Reaper;
use std::path::{Path, PathBuf};

/// The OCI runtime's command line, one method a verb. Needs a running [`Reaper`].
pub struct Runtime(());

impl Runtime {
    /// The runtime that `options` name (default `runc`, root `/run/containerd/runc`), for containers
    /// of `namespace`, run with the working directory `cwd`; logs of its invocations go to `bundle`.
    pub fn new(_reaper: Reaper, _options: &Options, _namespace: &str, _bundle: &Path) -> Runtime {
        todo!()
    }
    /// Where the runtime keeps its state of container `id`: ROOT/NAMESPACE/ID.
    pub fn state_dir(&self, _id: &str) -> PathBuf {
        todo!()
    }
    /// `delete [--force] ID`. A container that does not exist is no error.
    pub async fn delete(&self, _id: &str, _force: bool) -> Result<()> {
        todo!()
    }
    /// `features`: the JSON the runtime prints. Err of Kind::NotFound when the binary is not there,
    /// Kind::Unimplemented when it has no such command or fails.
    pub async fn features(&self) -> Result<Vec<u8>> {
        todo!()
    }
    /// `--version`: the first line, for `-info`.
    pub async fn version(&self) -> Result<String> {
        todo!()
    }
}
