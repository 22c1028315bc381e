//! The shim under real daemons: containerd 1.6, 1.7 and 2, driven with `ctr`.
//!
//! The table is daemon × naming of the runtime × case. Each cell is a test with
//! a world of its own (`hack/daemon`): own containerd, pids, mounts. When a case
//! is through, nothing may be left in its world. `SHIM_UNDER_TEST` names another
//! shim, such as containerd's own; `OCI_RUNTIME` another runtime (Debian 12's crun
//! knows too little for the newer containerds: run `containerd_1_6` with it);
//! `HEAVY=1` lets the cases in `stdio` move as much as they can. Modules named `long` are for
//! `make soak`, which sets it, too: `hack/test` skips them.
#![allow(
    clippy::disallowed_methods,
    reason = "these tests are a client: they spawn `ctr`, and wait for what a daemon does"
)]

mod cases;
mod ctr;
mod documents;
#[path = "../shim/harness/footprint.rs"]
mod footprint;
#[path = "../documents/machine.rs"]
mod machine;
#[path = "../documents/markdown.rs"]
#[allow(dead_code, reason = "a part of it is for the check of all documents")]
mod markdown;
mod operator;
mod rootless;
mod soak;
mod stdio;
mod upgrades;
mod world;

use ctr::Naming;

/// The cases, for one daemon and one naming.
macro_rules! cases {
    ($version:literal, $naming:expr) => {
        cases! { $version, $naming, cases;
            exit_codes_and_output
            exit_by_signal
            stdin_is_read_to_its_end
            terminal
            exec
            exec_with_a_terminal
            lifecycle
            attach
            events_in_order
            containerd_restarted
            exit_while_containerd_is_down
            shim_killed
            fifty_concurrent_containers
            checkpoint_and_restore
            command_not_found
            broken_config
            id_in_use
            unknown_runtime_binary
        }
    };
    ($version:literal, $naming:expr, $module:ident; $($case:ident)*) => {$(
        #[test]
        fn $case() {
            let name = concat!(module_path!(), "::", stringify!($case));
            crate::world::enter($version, name, || crate::$module::$case(&crate::ctr::Ctr::new($naming)));
        }
    )*};
}

/// The namings, for one daemon.
macro_rules! namings {
    ($version:literal) => {
        mod path {
            cases! { $version, crate::Naming::Path }
        }
        mod name {
            cases! { $version, crate::Naming::Name }
        }
        mod drop_in {
            cases! { $version, crate::Naming::DropIn }
        }
        mod operator {
            cases! { $version, crate::Naming::Path, operator;
                check_tells_of_the_running_containerd
                start_error_is_quoted_in_one_line
            }
        }
        // How the runtime is named makes no difference to these.
        mod stdio {
            cases! { $version, crate::Naming::Path, stdio;
                large_output
                output_in_small_writes
                short_input_ends
                large_input_is_echoed
                large_output_of_terminals
                clients_killed_during_output
                containerd_restarted_during_output
                containerd_restarted_during_output_to_a_logger
            }
        }
        mod documents {
            cases! { $version, crate::Naming::Name, documents;
                containers_of_the_readme
                servers_of_the_readme
                machine_is_checked_as_the_documents_say
                errors_of_others
            }
        }
    };
}

mod containerd_1_6 {
    namings! { "1.6" }
}
mod containerd_1_7 {
    namings! { "1.7" }
}
mod containerd_2 {
    namings! { "2" }
}
mod upgrades_from_containerd_2 {
    cases! { "2", crate::Naming::Name, upgrades;
        containerd_upgraded_and_rolled_back
        rollback_loses_containers_of_containerds_own_shim
        binary_removed
    }
}

mod soaks {
    mod containerd_1_6 {
        cases! { "1.6", crate::Naming::Name, soak; rounds_3 }
    }
    mod containerd_2 {
        cases! { "2", crate::Naming::Name, soak; rounds_3 }
    }
    mod long {
        mod containerd_1_6 {
            cases! { "1.6", crate::Naming::Name, soak; rounds_40 }
        }
        mod containerd_2 {
            cases! { "2", crate::Naming::Name, soak; rounds_40 }
        }
    }
}
