//! The shim under real Dockers: 20 with containerd 1.6, 28 with containerd 2, driven with `docker`.
//!
//! The table is Docker × the way it is told of the shim × case. Each cell is a test with a world of
//! its own (`hack/docker`). When a case is through, nothing may be left in its world.
//! `SHIM_UNDER_TEST` names another shim, such as containerd's own; the cases of `doors` and
//! `document` are about ours only.
#![allow(
    clippy::disallowed_methods,
    reason = "these tests are a client: they spawn `docker`, and wait for what a daemon does"
)]

mod checkpoints;
mod docker;
mod document;
mod doors;
mod lifecycle;
#[allow(dead_code, reason = "a part of it is for the check of all documents")]
#[path = "../documents/markdown.rs"]
mod markdown;
mod restarts;
mod run;
mod world;

use docker::Door;

macro_rules! cases {
    ($version:literal, $door:expr, $module:ident; $($case:ident)*) => {$(
        #[test]
        fn $case() {
            let name = concat!(module_path!(), "::", stringify!($case));
            crate::world::enter($version, name, || {
                crate::$module::$case(&crate::docker::Docker::new($door));
            });
        }
    )*};
}

/// All cases that hold for each Docker and each door.
macro_rules! all {
    ($version:literal, $door:expr) => {
        cases! { $version, $door, run;
            exit_code_and_output
            exit_codes_125_126_and_127
            input_until_its_end
            terminal
            exec
            exec_with_a_terminal
            attach_and_detach
            logs
            device
            read_only
            init
            pid_namespace_of_the_host
            pid_namespace_of_another_container
            memory_limit
            ten_at_once
        }
        cases! { $version, $door, lifecycle;
            stop_with_and_without_grace
            kill
            pause_and_unpause
            remove_a_paused_container
            stop_a_container_frozen_by_hand
            stats_and_top
            update
            restart_policies
            health_checks
        }
        cases! { $version, $door, restarts;
            live_restore
            exits_while_dockerd_is_away
            exits_while_containerd_is_away
            exits_while_both_are_away
            containerd_killed_during_delete
            dockerd_killed_during_delete
            dockerd_stops_its_containers
            shim_killed
        }
    };
}

/// What is tried at the doors that differ from another one of the same Docker in the name only.
macro_rules! some {
    ($version:literal, $door:expr) => {
        cases! { $version, $door, run;
            exit_code_and_output
            terminal
            exec
        }
        cases! { $version, $door, restarts;
            live_restore
            exits_while_containerd_is_away
        }
    };
}

mod docker_20 {
    mod drop_in {
        all! { "20", crate::Door::DropIn }
    }
    mod checkpoints {
        cases! { "20", crate::Door::DropIn, checkpoints; checkpoint_and_restore }
    }
    mod doors {
        cases! { "20", crate::Door::DropIn, doors;
            name_is_refused
            runtime_type_is_ignored
            oci_runtime_of_daemon_json
            link_removed_and_made_again
        }
    }
}
mod docker_28 {
    mod name {
        all! { "28", crate::Door::Name }
    }
    mod daemon_json {
        some! { "28", crate::Door::DaemonJson }
    }
    mod drop_in {
        some! { "28", crate::Door::DropIn }
    }
    mod doors {
        cases! { "28", crate::Door::DropIn, doors;
            oci_runtime_of_daemon_json
            link_removed_and_made_again
            options_of_daemon_json
        }
    }
}
mod commands {
    cases! { "20", crate::Door::DropIn, document; commands_for_docker_20 }
    cases! { "28", crate::Door::DropIn, document; commands_for_docker_28 }
}
