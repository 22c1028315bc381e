//! The shim under CRI, as Kubernetes uses it: containerd 1.6, 1.7 and 2 with a network, a small
//! client in place of the kubelet, and pods.
//!
//! The table is containerd × runtime handler × case; `hack/cri-config` has the handlers. Each
//! cell is a test with a world of its own (`hack/daemon`). When a case is through, all pods are
//! removed, and nothing may be left in its world. `documents` and `deploy` test what is printed
//! and shipped for Kubernetes.
//!
//! `CRI_HANDLER=runc` runs the cases with containerd's own shim instead. `OCI_RUNTIME` names
//! another runtime than runc: youki 0.7 cannot run `pids_shared_in_a_pod`, and Debian 12's crun is
//! for `containerd_1_6` only.
//!
//! Port forwarding is no matter of the shim: one case sees that it works beside it.
#![allow(
    clippy::disallowed_methods,
    reason = "these tests are a client, and wait for what a daemon does"
)]

mod api;
mod cases;
mod deploy;
mod documents;
mod grpc;
mod left;
#[path = "../documents/machine.rs"]
mod machine;
#[path = "../documents/markdown.rs"]
#[allow(dead_code, reason = "a part of it is for the check of all documents")]
mod markdown;
mod messages;
mod migrations;
mod pods;
mod sandbox;
mod spdy;
mod upgraded;
mod websocket;
#[path = "../daemon/world.rs"]
#[allow(dead_code, reason = "a part of it is for the cases with ctr")]
mod world;

use pods::Cri;

/// Runs a case in its world, with the handler that the environment or the table names.
fn run(version: &'static str, handler: &str, test: &str, case: fn(&Cri)) {
    world::enter_with(version, &[("CRI", "-")], test, || {
        let handler = std::env::var("CRI_HANDLER").unwrap_or(handler.to_owned());
        let cri = Cri::new(version, &handler);
        case(&cri);
        cri.remove_pods();
        left::assert_nothing_left();
    });
}

/// The cases, for one daemon and one handler.
macro_rules! cases {
    ($version:literal, $handler:literal; $($case:ident)*) => {$(
        #[test]
        fn $case() {
            let name = concat!(module_path!(), "::", stringify!($case));
            crate::run($version, $handler, name, crate::cases::$case);
        }
    )*};
}

/// The cases for pods without a pause container.
macro_rules! sandbox_cases {
    ($($case:ident)*) => {$(
        #[test]
        fn $case() {
            let name = concat!(module_path!(), "::", stringify!($case));
            crate::run("2", "sandbox", name, crate::sandbox::$case);
        }
    )*};
}

/// The cases for all daemons.
macro_rules! handlers {
    ($version:literal) => {
        mod rs {
            cases! { $version, "rs";
                several_containers_are_in_one_server
                init_container_then_app_that_restarts
                exec_sync_output_and_exit_code
                exec_sync_is_killed_at_its_timeout
                exec_sync_with_a_child_that_stays
                exec_with_a_terminal
                exec_without_a_terminal
                exec_by_spdy_reads_its_input_to_the_end
                port_is_forwarded
                attach_with_a_terminal
                attach_without_a_terminal
                log_is_rotated_without_a_loss
                stats
                update_of_resources
                host_pid_and_network
                pids_shared_in_a_pod
                stop_with_a_grace_period
                thirty_pods_while_containerd_is_killed
                memory_limit_is_exceeded
                command_not_found
                unknown_handler
            }
        }
    };
}

/// The cases with the binary's path in the configuration, which containerd 1.6 ignores.
macro_rules! path {
    ($version:literal) => {
        mod path {
            cases! { $version, "path";
                several_containers_are_in_one_server
                init_container_then_app_that_restarts
                thirty_pods_while_containerd_is_killed
            }
        }
        mod events {
            cases! { $version, "rs"; container_events }
        }
    };
}

mod containerd_1_6 {
    handlers! { "1.6" }
}
mod containerd_1_7 {
    handlers! { "1.7" }
    path! { "1.7" }
}
mod containerd_2 {
    handlers! { "2" }
    path! { "2" }
    /// Pods without a pause container. Without pods with the node's network: these end
    /// containerd 2.1.
    mod sandbox {
        cases! { "2", "sandbox";
            several_containers_are_in_one_server
            init_container_then_app_that_restarts
            exec_sync_output_and_exit_code
            exec_with_a_terminal
            attach_without_a_terminal
            port_is_forwarded
            stats
            update_of_resources
            pids_shared_in_a_pod
            stop_with_a_grace_period
            thirty_pods_while_containerd_is_killed
            memory_limit_is_exceeded
            command_not_found
            container_events
        }
        sandbox_cases! {
            pods_without_a_pause_image
            pods_of_each_mode
            new_containers_in_old_pods_after_a_restart
            server_of_a_pod_is_killed
            init_of_a_pod_is_killed
            pod_that_cannot_be_started
            fifty_pods_at_once
            pods_without_pause_take_less_time
        }
    }
}
