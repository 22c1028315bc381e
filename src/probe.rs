//! Which versions of the Task service a live server supports. It may be of another release,
//! or Go's: a shim's binary can be replaced while its containers run.
//!
//! Promises: it returns within [`PROBE_TIMEOUT`]; the server's containers are not affected.
//!
//! Lacks on purpose: a guess. Without an answer the caller decides.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::error::Kind;
use crate::proto::Message;
use crate::proto::task::ConnectRequest;
use crate::ttrpc::client::{Client, Failure};

/// How long the server may take for all requests. A `start` takes that much longer when it
/// joins a server that hangs.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// A version of the Task service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// `containerd.task.v2.Task`.
    V2,
    /// `containerd.task.v3.Task`.
    V3,
}

impl Version {
    fn service(self) -> &'static str {
        match self {
            Version::V2 => "containerd.task.v2.Task",
            Version::V3 => "containerd.task.v3.Task",
        }
    }
}

/// The first of `versions` that the server at `path` supports. None when it does not answer.
pub fn first_supported(
    path: &Path,
    namespace: &str,
    id: &str,
    versions: [Version; 2],
) -> io::Result<Option<Version>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let asked = query(path, namespace, id, versions);
        let answer = tokio::time::timeout(PROBE_TIMEOUT, asked).await;
        Ok(answer.ok().flatten())
    })
}

async fn query(path: &Path, namespace: &str, id: &str, versions: [Version; 2]) -> Option<Version> {
    let mut client = Client::connect(path.to_str()?).await.ok()?;
    let metadata = [("containerd-namespace-ttrpc", namespace)];
    for version in versions {
        // This request changes nothing, and needs no container.
        let request = ConnectRequest {
            id: id.into(),
            ..Default::default()
        };
        let request = request.write_to_bytes().ok()?;
        let answer = client.call(
            version.service(),
            "Connect",
            &metadata,
            request,
            PROBE_TIMEOUT,
        );
        match answer.await {
            Ok(_) => return Some(version),
            Err(Failure::Refused(error)) if error.kind() == Kind::Unimplemented => {}
            // It looked for the container, so it knows the service.
            Err(Failure::Refused(_)) => return Some(version),
            Err(Failure::Transport(_)) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    #[test]
    fn probe_of_a_silent_server_times_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _silent = UnixListener::bind(&path).unwrap();
        let versions = [Version::V3, Version::V2];
        let asked = Instant::now();
        assert_eq!(first_supported(&path, "ns", "c1", versions).unwrap(), None);
        assert!(asked.elapsed() >= PROBE_TIMEOUT);
    }

    #[test]
    fn probe_of_a_missing_server_is_none() {
        let versions = [Version::V3, Version::V2];
        let none = first_supported(Path::new("/no/such/socket"), "ns", "c1", versions);
        assert_eq!(none.unwrap(), None);
    }
}
