//! The rows whose verdict is not "fine", with the reason. No other row may be anything but fine,
//! and a row that is listed must have its verdict. `docs/faults.md` is generated from this table.

use crate::harness::Shim::{self, Go2, Go16, Go17};

/// The kind of a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Fine,
    Left,
    Hangs,
    Fails,
}

impl Class {
    /// Its name in `docs/faults.md`.
    pub fn name(self) -> &'static str {
        match self {
            Class::Fine => "fine",
            Class::Left => "left",
            Class::Hangs => "hangs",
            Class::Fails => "fails",
        }
    }
}

/// Rows of one reason, for some shims.
pub struct Expected {
    pub shims: &'static [Shim],
    pub class: Class,
    /// Whether a row of it may be anything else as well, on one and the same machine.
    pub flaky: bool,
    pub reason: &'static str,
    pub faults: &'static [&'static str],
}

/// The expectation for `fault`, if it is not "fine".
pub fn find(fault: &str, shim: Shim) -> Option<&'static Expected> {
    TABLE
        .iter()
        .find(|row| row.shims.contains(&shim) && row.faults.contains(&fault))
}

/// Whether a verdict is as expected.
pub fn agrees(expected: Option<&Expected>, class: Class) -> bool {
    match expected {
        None => class == Class::Fine,
        Some(row) => row.flaky || row.class == class,
    }
}

/// These shims have this verdict in `faults`.
const fn always(
    shims: &'static [Shim],
    class: Class,
    reason: &'static str,
    faults: &'static [&'static str],
) -> Expected {
    Expected {
        shims,
        class,
        flaky: false,
        reason,
        faults,
    }
}

/// These shims have this verdict in `faults` in some runs.
const fn flaky(
    shims: &'static [Shim],
    class: Class,
    reason: &'static str,
    faults: &'static [&'static str],
) -> Expected {
    Expected {
        flaky: true,
        ..always(shims, class, reason, faults)
    }
}

const GO: &[Shim] = &[Go16, Go17, Go2];
const GO1: &[Shim] = &[Go16, Go17];

const SOCKET: &str = "the socket of a server that was killed stays until its ID is used again";
const HALF: &str = "Go kills the runtime, and does not undo what that has done";
const FIVE_TIMES: &str = "Go sends an event again five times, then drops it";
const ORDER: &str = "Go sends later events before it retries an earlier one, and gives up";

pub const TABLE: &[Expected] = &[
    flaky(
        GO,
        Class::Fails,
        "the event of the exit may follow that of the deletion",
        &[
            "floods::containers_by_8_clients",
            "floods::long::containers_200_by_16_clients",
        ],
    ),
    always(
        GO,
        Class::Hangs,
        "Create waits for a mount without a bound",
        &["hangs::mount_helper", "hangs::mount_of_a_dead_file_system"],
    ),
    flaky(
        &[Go2],
        Class::Left,
        HALF,
        &["hangs::create_without_a_reader"],
    ),
    always(
        GO,
        Class::Left,
        "runc leaves cgroups that are too deep for a path, and reports success",
        &[
            "hostile::tree_of_cgroups_that_is_too_deep_for_a_path",
            "hostile::tree_of_cgroups_that_is_too_deep_for_a_path_and_whose_server_was_killed",
        ],
    ),
    always(
        GO,
        Class::Left,
        SOCKET,
        &[
            "death::action::delete_of_a_created_container_is_killed",
            "death::action::delete_of_a_paused_container_is_killed",
            "death::action::delete_of_a_running_container_is_killed",
            "death::action::delete_of_a_running_container_is_killed_when_the_runtime_has_done_it",
            "death::action::runtime_of_the_delete_of_a_paused_container_is_killed",
            "death::action::runtime_of_the_delete_of_a_running_container_is_killed",
        ],
    ),
    flaky(
        GO,
        Class::Hangs,
        "the exit of init waits for the end of `runc kill`, which waits behind other exits",
        &["floods::children_dying_under_kill_all"],
    ),
    always(
        GO1,
        Class::Fails,
        "1.x needs the file `runtime`, which Create writes",
        &["death::server::create::before"],
    ),
    always(
        GO,
        Class::Left,
        SOCKET,
        &[
            "death::server::create::before",
            "death::server::create::after",
            "death::server::create::begun",
            "death::server::create::done",
            "death::server::delete::after",
            "death::server::delete::before",
            "death::server::delete::begun",
            "death::server::delete::done",
            "death::server::exec::after",
            "death::server::kill::after",
            "death::server::kill::sent",
            "death::server::pause::after",
            "death::server::pause::begun",
            "death::server::pause::done",
            "death::server::resume::after",
            "death::server::resume::begun",
            "death::server::resume::done",
            "death::server::shutdown::sent",
            "death::server::start::after",
            "death::server::start::begun",
            "death::server::start::done",
            "death::server::update::after",
            "death::server::update::begun",
            "death::server::update::done",
            "events::server_is_killed_while_the_listener_is_away",
            "exhaustion::memory_of_the_servers_cgroup",
            "exhaustion::space_when_the_server_was_killed",
            "hostile::deep_tree_of_cgroups_whose_server_was_killed",
            "hostile::fork_bomb_whose_server_was_killed",
            "hostile::output_flood_whose_server_was_killed",
        ],
    ),
    always(
        GO,
        Class::Left,
        "the same, and the file with the process of the exec",
        &["death::server::exec::begun", "death::server::exec::done"],
    ),
    always(
        GO1,
        Class::Left,
        HALF,
        &[
            "death::containerd::create::done",
            "hangs::create_without_a_reader",
        ],
    ),
    always(GO, Class::Left, HALF, &["death::runtime::create::done"]),
    always(
        GO,
        Class::Hangs,
        "State waits for a lock that is held while the runtime runs",
        &[
            "hangs::product::runtime::create::begun",
            "hangs::product::runtime::create::done",
            "hangs::product::runtime::delete::begun",
            "hangs::product::runtime::delete::done",
            "hangs::product::runtime::pause::begun",
            "hangs::product::runtime::pause::done",
            "hangs::product::runtime::resume::begun",
            "hangs::product::runtime::resume::done",
            "hangs::product::runtime::start::begun",
            "hangs::product::runtime::start::done",
            "hangs::product::runtime::update::begun",
            "hangs::product::runtime::update::done",
        ],
    ),
    always(
        GO,
        Class::Hangs,
        "Go opens the log and waits for the logger without a bound",
        &[
            "hangs::create_with_an_unready_logger",
            "hangs::exec_with_an_unready_logger",
            "hangs::log_file_is_a_fifo_that_nobody_reads",
            "hangs::log_file_on_a_dead_file_system",
        ],
    ),
    always(GO, Class::Fails, ORDER, &["events::listener_refuses"]),
    always(
        GO,
        Class::Fails,
        FIVE_TIMES,
        &["events::long::listener_is_away_for_minutes"],
    ),
    always(
        GO,
        Class::Hangs,
        FIVE_TIMES,
        &[
            "events::long::listener_closes_within_its_answers_for_minutes",
            "events::long::listener_refuses_for_minutes",
        ],
    ),
    always(
        GO,
        Class::Fails,
        "Go sends an event again and again to a containerd that is stopped, and that gets all of them",
        &["events::long::listener_is_stopped_for_minutes"],
    ),
    flaky(
        GO,
        Class::Fails,
        ORDER,
        &["events::listener_closes_within_its_answer"],
    ),
    flaky(
        GO,
        Class::Fails,
        ORDER,
        &["events::listener_is_killed_after_each_call"],
    ),
    // It hangs or fails: Go's attempt of 5 s ends after or before the limit.
    flaky(
        GO,
        Class::Hangs,
        "Go waits for the answer to an event, and gives up",
        &[
            "events::listener_is_silent",
            "events::long::listener_is_silent_for_minutes",
        ],
    ),
    always(
        GO1,
        Class::Hangs,
        "the end of the server waits for the answer to an event",
        &["events::server_ends_while_the_listener_is_silent"],
    ),
    always(
        GO,
        Class::Fails,
        "Kill runs the runtime",
        &["exhaustion::processes_of_the_servers_cgroup"],
    ),
    flaky(
        GO,
        Class::Fails,
        "Kill runs the runtime",
        &["exhaustion::descriptors_of_the_server"],
    ),
    always(
        &[Go2],
        Class::Left,
        "2.x removes the socket that is named after the id, not after the group",
        &["floods::pod_of_20", "floods::long::pod_of_100"],
    ),
    flaky(
        &[Go2],
        Class::Fails,
        "Go may end before all events are sent",
        &[
            "death::containerd::create::after",
            "death::containerd::create::before",
            "death::containerd::create::begun",
            "death::containerd::create::done",
            "death::containerd::delete::after",
            "death::containerd::delete::before",
            "death::containerd::delete::begun",
            "death::containerd::delete::done",
            "death::containerd::exec::after",
            "death::containerd::exec::before",
            "death::containerd::exec::begun",
            "death::containerd::exec::done",
            "death::containerd::kill::after",
            "death::containerd::kill::sent",
            "death::containerd::pause::after",
            "death::containerd::pause::before",
            "death::containerd::pause::begun",
            "death::containerd::pause::done",
            "death::containerd::resume::after",
            "death::containerd::resume::begun",
            "death::containerd::resume::done",
            "death::containerd::shutdown::sent",
            "death::containerd::start::after",
            "death::containerd::start::begun",
            "death::containerd::start::done",
            "death::containerd::update::after",
            "death::containerd::update::before",
            "death::containerd::update::begun",
            "death::containerd::update::done",
        ],
    ),
];
