//! What removed pods must not leave, beside what `world` looks at.

use std::fmt::Write;
use std::time::Instant;

use crate::world;

/// Directories that are empty when there is no pod. Each is there in some containerd only.
const PLACES: [&str; 10] = [
    "/run/containerd/io.containerd.grpc.v1.cri/sandboxes",
    "/run/containerd/io.containerd.grpc.v1.cri/containers",
    "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes",
    "/var/lib/containerd/io.containerd.grpc.v1.cri/containers",
    "/run/containerd/io.containerd.sandbox.controller.v1.shim/k8s.io",
    "/var/lib/containerd/io.containerd.sandbox.controller.v1.shim/k8s.io",
    "/run/containerd/netns",
    "/run/containerd/io.containerd.grpc.v1.cri/netns",
    // The state of the OCI runtime under the handler `rs`.
    "/run/containerd/runc-of-rs/k8s.io",
    // What pods are in, by the interfaces on the bridge.
    "/sys/class/net/world0/brif",
];

/// Fails unless all state, networks and addresses of pods are gone.
pub fn assert_nothing_left() {
    let deadline = Instant::now() + world::limit();
    loop {
        let left = left_overs();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind:\n{left}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn left_overs() -> String {
    let mut left = String::new();
    for place in PLACES {
        for name in world::names(place) {
            let _ = writeln!(left, "{place}/{name}");
        }
    }
    // Beside the addresses, host-local keeps a lock and the last address.
    let addresses = world::names("/var/lib/cni/addresses/world");
    for name in addresses.iter().filter(|name| name.starts_with("10.")) {
        let _ = writeln!(left, "address {name}");
    }
    left
}
