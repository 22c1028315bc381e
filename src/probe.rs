//! Which versions of the Task service a server that is alive speaks: it may be of another
//! release, or Go's, since a shim's binary can be replaced while its containers run.
//!
//! Promises: an answer or none within [`LIMIT`]; the server's containers notice nothing.
//!
//! Lacks on purpose: a guess. Whoever gets no answer decides.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::error::Kind;
use crate::proto::Message;
use crate::proto::task::ConnectRequest;
use crate::ttrpc::client::{Client, Failure};

/// How long the server may take for all questions. A `start` takes that much longer when
/// it joins a server that hangs.
pub const LIMIT: Duration = Duration::from_millis(500);

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

/// The first of `versions` that the server at `path` speaks. None when it does not say.
pub fn first_spoken(
    path: &Path,
    namespace: &str,
    id: &str,
    versions: [Version; 2],
) -> io::Result<Option<Version>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let asked = ask(path, namespace, id, versions);
        let answer = tokio::time::timeout(LIMIT, asked).await;
        Ok(answer.ok().flatten())
    })
}

async fn ask(path: &Path, namespace: &str, id: &str, versions: [Version; 2]) -> Option<Version> {
    let mut client = Client::connect(path.to_str()?).await.ok()?;
    let metadata = [("containerd-namespace-ttrpc", namespace)];
    for version in versions {
        // Of all requests the one that changes nothing and needs no container.
        let request = ConnectRequest {
            id: id.into(),
            ..Default::default()
        };
        let request = request.write_to_bytes().ok()?;
        let answer = client.call(version.service(), "Connect", &metadata, request, LIMIT);
        match answer.await {
            Ok(_) => return Some(version),
            Err(Failure::Refused(error)) if error.kind() == Kind::Unimplemented => {}
            // It knows the service, or it would not have looked further.
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
    fn server_that_does_not_answer_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _silent = UnixListener::bind(&path).unwrap();
        let versions = [Version::V3, Version::V2];
        let asked = Instant::now();
        assert_eq!(first_spoken(&path, "ns", "c1", versions).unwrap(), None);
        assert!(asked.elapsed() >= LIMIT);
    }

    #[test]
    fn server_that_is_gone_says_nothing() {
        let versions = [Version::V3, Version::V2];
        let none = first_spoken(Path::new("/no/such/socket"), "ns", "c1", versions);
        assert_eq!(none.unwrap(), None);
    }
}
