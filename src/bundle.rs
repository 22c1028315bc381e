//! stub
use crate::error::Result;
use crate::options::Options;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A container's bundle directory: each file in it that the shim reads or writes.
#[derive(Debug, Clone)]
pub struct Bundle(PathBuf);

/// What the shim reads of `config.json`, and no more: anything else may be new.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    pub annotations: HashMap<String, String>,
    pub linux: Linux,
}
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Linux {
    pub namespaces: Vec<Namespace>,
}
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: String,
}

impl Spec {
    /// Whether the container has a pid namespace of its own (an entry without a path).
    pub fn has_private_pid_namespace(&self) -> bool {
        todo!()
    }
}

impl Bundle {
    pub fn at(path: impl Into<PathBuf>) -> Bundle {
        Bundle(path.into())
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
    pub fn rootfs(&self) -> PathBuf {
        self.0.join("rootfs")
    }
    pub fn init_pid_file(&self) -> PathBuf {
        self.0.join("init.pid")
    }
    pub fn exec_pid_file(&self, exec_id: &str) -> PathBuf {
        self.0.join(format!("{exec_id}.pid"))
    }
    /// The shim's log FIFO.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }
    /// `config.json`; missing, unreadable or broken is an error that says which.
    pub fn spec(&self) -> Result<Spec> {
        todo!()
    }
    /// Writes `options.json` (0600) and `runtime` (0600, `binary_name` or empty).
    pub fn write_options(&self, _options: &Options) -> Result<()> {
        todo!()
    }
    /// Reads them back, also as Go wrote them; missing: the defaults. `runtime` fills binary_name.
    pub fn options(&self) -> Result<Options> {
        todo!()
    }
    /// The init's pid from `init.pid`; None when missing.
    pub fn init_pid(&self) -> Result<Option<i32>> {
        todo!()
    }
    /// Writes `address`, atomically.
    pub fn write_address(&self, _address: &str) -> Result<()> {
        todo!()
    }
    /// The server's address, from `bootstrap.json` or `address` (plain or JSON); None when neither is there.
    pub fn address(&self) -> Result<Option<String>> {
        todo!()
    }
}
impl Bundle {
    /// Makes `rootfs` (0711); it may be there.
    pub fn make_rootfs(&self) -> Result<()> {
        todo!()
    }
}

impl Bundle {
    /// Where CRIU works unless told otherwise.
    pub fn work(&self) -> PathBuf {
        self.0.join("work")
    }
}
