//! stub
use crate::error::Result;
use crate::proto::Any;
use serde::{Deserialize, Serialize};

/// The options of the runtime, as the bundle's `options.json` keeps them: Go's form,
/// snake_case, what has its default left out; unknown fields tolerated on reading.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    pub no_pivot_root: bool,
    pub no_new_keyring: bool,
    pub shim_cgroup: String,
    pub io_uid: u32,
    pub io_gid: u32,
    pub binary_name: String,
    pub root: String,
    pub systemd_cgroup: bool,
    pub criu_image_path: String,
    pub criu_work_path: String,
    pub task_api_address: String,
    pub task_api_version: u32,
}

impl Options {
    /// From `containerd.runc.v1.Options` or `runtimeoptions.v1.Options` (TOML, by body or path),
    /// with any prefix before the type's name. None or an empty one: the defaults.
    /// Another type is InvalidArgument, naming it.
    pub fn decode(_any: Option<&Any>) -> Result<Options> {
        todo!()
    }
}
