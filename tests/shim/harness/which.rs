//! Which shim a binary is: this crate's, or containerd's own of a release.

/// The shim under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shim {
    /// This crate's.
    Ours,
    /// That of containerd 1.6; known here: 1.6.20.
    Go16,
    /// That of containerd 1.7; known here: 1.7.24.
    Go17,
    /// That of containerd 2.0 to 2.2; known here: 2.1.9.
    Go2,
}

impl Shim {
    /// Its name in generated documents.
    pub fn name(self) -> &'static str {
        match self {
            Shim::Ours => "this one",
            Shim::Go16 => "1.6",
            Shim::Go17 => "1.7",
            Shim::Go2 => "2.1",
        }
    }

    /// By what `-v` says: only Go's name the version of Go.
    pub fn of_version(text: &str) -> Shim {
        let version = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Version:"));
        let version = version.unwrap_or_default().trim().trim_start_matches('v');
        match version {
            _ if !text.contains("Go version") => Shim::Ours,
            _ if version.starts_with("1.6.") => Shim::Go16,
            _ if version.starts_with("1.7.") => Shim::Go17,
            _ => Shim::Go2,
        }
    }
}
