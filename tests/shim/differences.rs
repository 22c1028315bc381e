//! Where other shims fail this suite, and why that is meant; and what an OCI runtime
//! cannot do, whatever the shim. Exactly these cases have to fail.

use Shim::{Go2, Go16, Go17, Ours};

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
    /// Its name in the table in `ARCHITECTURE.md`.
    fn name(self) -> &'static str {
        match self {
            Ours => "this one",
            Go16 => "1.6",
            Go17 => "1.7",
            Go2 => "2.1",
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
            _ if version.starts_with("1.6.") => Go16,
            _ if version.starts_with("1.7.") => Go17,
            _ => Go2,
        }
    }
}

/// One case that shims fail.
pub struct Difference {
    case: &'static str,
    shims: &'static [Shim],
    /// With this OCI runtime; empty: with any.
    runtime: &'static str,
    /// It depends on the weather or on the machine: passing is no surprise.
    pub sometimes: bool,
    pub reason: &'static str,
}

/// The row for `case`, if there is one.
pub fn find(case: &str, shim: Shim, runtime: &str) -> Option<&'static Difference> {
    TABLE
        .iter()
        .find(|row| row.case == case && row.shims.contains(&shim) && runtime.ends_with(row.runtime))
}

/// These shims fail `case`.
const fn fails(shims: &'static [Shim], case: &'static str, reason: &'static str) -> Difference {
    Difference {
        case,
        shims,
        runtime: "",
        sometimes: false,
        reason,
    }
}

/// These shims fail `case` now and then.
const fn may_fail(shims: &'static [Shim], case: &'static str, reason: &'static str) -> Difference {
    Difference {
        sometimes: true,
        ..fails(shims, case, reason)
    }
}

/// These shims fail `case` with `runtime`.
const fn fails_with(
    runtime: &'static str,
    shims: &'static [Shim],
    case: &'static str,
    reason: &'static str,
) -> Difference {
    Difference {
        runtime,
        ..fails(shims, case, reason)
    }
}

const GO: &[Shim] = &[Go16, Go17, Go2];
const ALL: &[Shim] = &[Ours, Go16, Go17, Go2];
const GO1: &[Shim] = &[Go16, Go17];

const KILLED: &str = "Go has youki send signals, which takes the container for stopped then";
const DEV_NULL: &str = "youki reopens /dev/null, but not for writing";
const CAPABILITY: &str = "youki refuses capabilities that it does not know";
const CRUN: &str = "Go does not take crun's words for a container that does not exist";
const CGROUP: &str = "Go's cgroup library loads no cgroup on a machine with both versions mounted";
const CRIU: &str = "Go tells that CRIU failed, but not why";
const LOCK: &str = "Go holds a lock that State needs while the runtime runs";
const GC: &str = "Go leaves descriptors to its garbage collector";
const ORDER: &str = "Go sends later events before it tries an earlier one again, and gives up";
const TWICE: &str =
    "an exec that failed to start and is started again takes the shim down when it ends";
const EMPTY: &str =
    "the runtime's list is empty, which to containerd means that the container is lost";
const REFUSED: &str = "each start that was refused may tell an exit of its own";
const BELOW: &str = "youki removes no cgroup that the container made in its own";
const DEAD: &str = "Go asks the file system itself before it unmounts it";
const CONSOLE: &str = "Go makes the console socket in a temporary directory";
const GROUP: &str = "2.x removes the socket that is named after the id, not after the group";

const TABLE: &[Difference] = &[
    // start, delete
    fails(
        GO,
        "containerd_2_3_starts_it",
        "before 2.3 the bootstrap message is taken for options",
    ),
    fails(
        &[Go2],
        "containerd_1_6_starts_it",
        "2.x answers in JSON, which 1.6 takes for an address",
    ),
    fails(
        &[Go2],
        "address_is_left_in_the_bundle",
        "2.x leaves that to the daemon",
    ),
    fails(&[Go2], "group_goes_before_sandbox", GROUP),
    fails(&[Go2], "pod_has_one_server", GROUP),
    may_fail(
        &[Go2],
        "containers_of_a_pod_started_at_the_same_time",
        GROUP,
    ),
    fails(&[Go2], "client_leaves_while_an_exec_is_started", GROUP),
    fails(&[Go2], "deletes_at_the_same_time", GROUP),
    fails(GO1, "runtime_info_is_told", "1.x has no -info"),
    fails(
        GO,
        "delete_of_an_empty_bundle",
        "1.x wants the file `runtime`, 2.x answers pid 4294967295",
    ),
    fails(
        GO,
        "delete_after_a_delete_needs_no_runtime",
        "Go runs `delete --force` whatever there is",
    ),
    may_fail(
        GO,
        "other_signals_do_not_end_the_shim",
        "SIGHUP ends Go's shim, unless it was ignored before",
    ),
    // options
    fails(
        GO,
        "options_as_toml",
        "Go knows no runtimeoptions.v1: it panics, or fails in start",
    ),
    fails(
        GO,
        "options_of_an_unknown_type",
        "Go panics, or fails in start",
    ),
    fails(
        &[Go16],
        "options_with_a_prefixed_type",
        "1.6 wants the bare type's name",
    ),
    fails(
        GO,
        "options_in_a_toml_file",
        "Go knows no runtimeoptions.v1",
    ),
    fails(GO, "options_that_are_no_message", "Go has no code for it"),
    fails(
        GO,
        "checkpoint_options_of_an_unknown_type",
        "Go has no code for it",
    ),
    // states
    fails(
        GO,
        "other_execs_of_a_paused_container",
        "Go calls all execs paused, so that clients do not delete one that ended",
    ),
    fails(GO, "init_is_pausing_while_the_runtime_pauses_it", LOCK),
    fails_with(
        "runc",
        GO,
        "pids_of_a_stopped_container_are_no_empty_list",
        EMPTY,
    ),
    fails_with(
        "youki",
        GO,
        "pids_of_a_stopped_container_are_no_empty_list",
        EMPTY,
    ),
    fails(GO, "runtime_fails_to_exec_and_is_asked_again", TWICE),
    fails(GO, "runtime_is_taken_away", TWICE),
    may_fail(GO, "one_of_many_starts_is_heeded", REFUSED),
    may_fail(GO, "one_of_many_starts_of_an_exec_is_heeded", REFUSED),
    fails(
        GO,
        "pid_of_an_exec_that_ended_is_anybodys",
        "Go goes by the pids that its execs once had",
    ),
    // signals
    fails(
        GO,
        "kill_all_of_a_stopped_container",
        "the runtime finds nobody to kill, and says so to nobody",
    ),
    may_fail(
        &[Go16],
        "end_of_an_init_in_anothers_pid_namespace",
        "before 1.6.29 the order is the reaper's",
    ),
    fails(&[Go2], "end_of_an_init_in_anothers_pid_namespace", GROUP),
    // times
    fails(
        GO,
        "time_of_an_exit_that_is_held_back_is_the_reaps",
        "Go takes the time when it tells the exit",
    ),
    fails(
        GO,
        "time_of_an_event_that_is_held_back_is_its_makings",
        "Go takes the time when it sends the event",
    ),
    // Shutdown
    may_fail(
        GO,
        "nobody_is_taken_once_shutdown_is_answered",
        "Go answers, and then takes its time to close the socket",
    ),
    may_fail(
        GO,
        "start_right_after_shutdown_finds_a_server_that_stays",
        "it finds the one that ends",
    ),
    may_fail(
        GO,
        "waits_are_answered_before_the_shim_ends",
        "Go may end with answers unsent",
    ),
    fails(
        &[Go2],
        "shutdown_waits_for_a_container_that_another_client_makes",
        GROUP,
    ),
    // mounts
    fails(
        GO,
        "bind_mount_with_mapped_owners",
        "up to 2.1 only overlay maps owners",
    ),
    fails(
        GO1,
        "overlay_with_mapped_owners",
        "before 2.0 no mount maps owners",
    ),
    fails(
        &[Go2],
        "overlay_with_mapped_owners",
        "Go maps what is above the layers, without what is mounted there",
    ),
    fails(GO1, "id_map_that_is_none", "before 2.0 it is no option"),
    fails(
        &[Go16],
        "image_on_a_loop_device_past_the_page_cache",
        "before 1.7 it is no option",
    ),
    fails(
        GO,
        "propagation",
        "Go has no such options, and gives them to the file system",
    ),
    fails(
        GO,
        "option_for_containerds_mount_manager",
        "which came with 2.2",
    ),
    fails(
        &[Go16],
        "targets_stay_in_the_rootfs",
        "before 1.7 mounts have no target",
    ),
    fails(
        GO1,
        "target_that_is_not_there",
        "1.6 knows of no targets, 1.7 does not name it",
    ),
    fails(
        GO,
        "fuse_helper_leaves_a_daemon_with_its_output",
        "Go waits for the end of the output",
    ),
    fails(
        &[Go16],
        "what_others_mounted_in_the_rootfs_goes_too",
        "1.6 unmounts the rootfs only",
    ),
    fails(
        &[Go16],
        "what_others_mounted_goes_with_a_dead_shim",
        "1.6 unmounts the rootfs only",
    ),
    fails(GO, "dead_file_system_in_the_rootfs", DEAD),
    fails(GO, "dead_file_system_on_the_rootfs", DEAD),
    fails(GO, "mount_that_hangs_holds_up_nobody_else", LOCK),
    fails(&[Go2], "busy_rootfs_is_unmounted_when_it_is_free", GROUP),
    // requests
    fails(
        GO,
        "container_id_that_exists",
        "Go leaves it to the runtime to notice",
    ),
    fails(
        GO,
        "runtime_gets_the_execs_spec_whole",
        "Go passes on the fields that it knows",
    ),
    fails(
        GO,
        "both_versions_of_the_service_know_the_container",
        "Go serves one version",
    ),
    fails(
        GO,
        "container_id_that_is_being_made",
        "Go leaves it to the runtime to notice",
    ),
    fails(
        GO,
        "ids_that_lead_elsewhere",
        "Go takes any name, and has files made by it",
    ),
    fails(
        GO,
        "exec_without_a_spec",
        "Go dereferences nil, and the whole shim dies",
    ),
    fails(
        GO,
        "update_without_resources",
        "Go dereferences nil, and the whole shim dies",
    ),
    fails(
        GO,
        "wait_keeps_to_its_deadline",
        "Go's Wait knows no deadline",
    ),
    fails(
        &[Go16],
        "exec_is_not_started_after_inits_exit",
        "before 1.6.36 the runtime is asked to",
    ),
    may_fail(
        &[Go17, Go2],
        "frames_of_the_wrong_kind",
        "a data frame for no stream panics",
    ),
    // the order of exits, and the reaper
    may_fail(
        &[Go16],
        "inits_exit_comes_last_in_a_shared_pid_namespace",
        "before 1.6.29 the order is the reaper's",
    ),
    may_fail(
        GO,
        "container_that_was_never_started_is_deleted",
        "its exit may be told after its deletion",
    ),
    may_fail(
        GO,
        "many_execs_at_once",
        "the reaper waits for subscribers that wait for the reaper",
    ),
    // the runtime
    fails(
        GO,
        "init_is_killed_while_the_runtime_starts_it",
        "Kill waits for the runtime",
    ),
    fails(GO, "runtime_hangs_in_create", LOCK),
    fails(GO, "runtime_hangs_in_start", LOCK),
    fails(GO, "runtime_hangs_in_exec", LOCK),
    fails(GO, "runtime_hangs_in_delete", LOCK),
    fails(
        GO,
        "runtimes_old_words_are_not_passed_on",
        "all calls share a log, read from its beginning",
    ),
    fails_with("crun", GO, "container_is_restored_when_it_is_started", CRUN),
    fails_with("crun", GO, "init_to_be_restored", CRUN),
    fails_with("crun", GO, "criu_work_path", CRUN),
    fails_with("crun", GO, "busy_rootfs_is_told_and_unmounted_later", CRUN),
    fails_with(
        "crun",
        GO,
        "paused_container_can_be_killed",
        "crun before 1.9 thaws no v1 cgroup on kill",
    ),
    fails(
        GO,
        "runtimes_words_are_found_among_garbage",
        "one line that is no JSON hides all others",
    ),
    fails(
        GO,
        "youkis_words_are_found",
        "Go knows no other keys and no capitals",
    ),
    fails(
        GO,
        "questions_and_signals_need_no_runtime",
        "Go runs `ps` for Pids and `kill` for a signal",
    ),
    // what youki cannot do
    fails_with("youki", ALL, "pids_are_those_of_cgroups_below_too", BELOW),
    fails_with("youki", ALL, "cgroups_below_are_killed_too", BELOW),
    fails_with("youki", ALL, "paused_cgroups_below_are_killed_too", BELOW),
    fails_with("youki", GO, "created_init", KILLED),
    fails_with("youki", GO, "paused_init", KILLED),
    fails_with(
        "youki",
        GO,
        "real_time_signal_to_init",
        "youki knows no such signals, and Go has it send them",
    ),
    fails_with(
        "youki",
        ALL,
        "mapped_exec_with_pipes",
        "youki's execs stay outside of the user namespace",
    ),
    fails_with(
        "youki",
        ALL,
        "exec_in_a_created_container",
        "youki execs in what runs only",
    ),
    fails_with(
        "youki",
        ALL,
        "exec_with_a_capability_of_the_future",
        CAPABILITY,
    ),
    fails_with(
        "youki",
        ALL,
        "container_with_a_capability_of_the_future",
        CAPABILITY,
    ),
    fails_with("youki", ALL, "no_stdio_is_dev_null", DEV_NULL),
    fails_with("youki", ALL, "stdout_alone", DEV_NULL),
    fails_with("youki", ALL, "stderr_alone", DEV_NULL),
    // stdio
    fails(
        GO,
        "logger_that_ends_before_it_is_ready",
        "binary-v2 came with 2.3",
    ),
    fails(GO, "fifo_as_a_url", "Go opens the URL as if it were a path"),
    fails(
        GO,
        "stdin_is_open_no_sooner_than_the_container_runs",
        "Go opens it at Create: a client that has nothing to write says so too early",
    ),
    fails(GO, "stdout_alone", "Go opens the empty path"),
    fails(GO, "stderr_alone", "Go opens the empty path"),
    fails(
        GO,
        "fifo_that_is_not_there",
        "Go leaves the created container behind",
    ),
    fails(
        GO,
        "terminal_may_log_to_a_file",
        "Go takes the URL for a FIFO's path",
    ),
    fails(
        GO,
        "full_disk_does_not_stop_the_container",
        "one failed write ends Go's copier, and nobody empties the pipe",
    ),
    fails(
        GO,
        "logger_that_dies",
        "nobody else has the pipe's read end: the container gets SIGPIPE",
    ),
    fails(
        GO,
        "output_that_nobody_takes_fails_create",
        "Go waits for a logger without a limit, while it holds its lock",
    ),
    fails(
        GO,
        "child_that_keeps_the_output_does_not_keep_its_reader",
        "Go's clock starts with Delete",
    ),
    may_fail(
        GO,
        "reader_that_returns_after_the_exit_gets_the_rest",
        "Go closes a FIFO that nobody reads, with what is in it",
    ),
    fails(
        GO,
        "pipes_grow_for_those_who_fill_them",
        "Go leaves all pipes at 64 KiB",
    ),
    may_fail(GO, "fifo_of_an_exec_that_is_not_there", GC),
    may_fail(GO, "fifos_leave_no_descriptor", GC),
    may_fail(GO, "files_leave_no_descriptor", GC),
    may_fail(GO, "loggers_leave_no_descriptor", GC),
    may_fail(GO, "terminals_leave_no_descriptor", GC),
    may_fail(GO, "execs_that_are_never_deleted_leave_no_descriptor", GC),
    may_fail(GO, "terminal", GC),
    may_fail(GO, "terminal_of_an_exec", GC),
    may_fail(GO, "failed_execs_leave_no_descriptor", GC),
    may_fail(GO, "execs_that_nobody_deletes_go_with_the_container", GC),
    may_fail(
        GO,
        "no_descriptor_is_passed_on",
        "Go keeps what it inherits, and passes it on",
    ),
    // events
    may_fail(
        GO,
        "events_are_delivered_before_the_shim_ends",
        "Go's shim may end with its last event in the queue",
    ),
    fails(
        GO,
        "containerd_is_away_for_long",
        "the queue is full, and every request waits for it",
    ),
    may_fail(GO, "containerd_refuses_for_a_while", ORDER),
    may_fail(GO, "containerd_restarts", ORDER),
    may_fail(GO, "containerd_restarts_while_nothing_happens", ORDER),
    may_fail(GO, "containerd_hangs_and_restarts", ORDER),
    // checkpoint and restore, where there is CRIU
    may_fail(
        GO,
        "checkpoint_is_where_its_options_say",
        "Go knows the request's path only",
    ),
    may_fail(
        GO,
        "checkpoint_leaves_it_running",
        "Go tells no TaskCheckpointed",
    ),
    may_fail(GO, "every_cgroups_mode_is_taken", "Go takes none"),
    may_fail(
        GO,
        "image_may_build_on_an_earlier_one",
        "parent_path came with 2.4",
    ),
    may_fail(GO, "criu_says_why_it_cannot_dump", CRIU),
    may_fail(GO, "failed_restore_leaves_nothing", CRIU),
    may_fail(GO, "file_locks_are_kept_on_demand", CRIU),
    may_fail(GO, "open_connections_are_kept_on_demand", CRIU),
    may_fail(GO, "sockets_to_outside_are_kept_on_demand", CRIU),
    // resources
    fails(
        GO,
        "bad_resources_are_a_clear_error",
        "Go decodes them itself, and does not say what for",
    ),
    may_fail(
        GO,
        "cgroups_below_are_killed_too",
        "Go runs `kill` on v2 as well",
    ),
    may_fail(GO, "stats_are_told", CGROUP),
    may_fail(GO, "stats_of_a_created_container", CGROUP),
    may_fail(GO, "stats_of_a_stopped_container", CGROUP),
    may_fail(GO, "oom_comes_before_the_exit", CGROUP),
    may_fail(
        GO,
        "server_is_as_small_after_many_execs_as_before",
        "Go's threads stay",
    ),
    // stdio_limits
    fails(
        GO,
        "outputs_without_a_reader_take_no_inotify_instances",
        "Go closes a FIFO that nobody reads, with what is in it",
    ),
    fails(
        GO,
        "log_on_a_dead_file_system_holds_up_nobody_else",
        "Go opens a log while it holds a lock that every request needs",
    ),
    fails(
        &[Go2],
        "log_on_a_frozen_file_system_holds_up_nobody_else",
        GROUP,
    ),
    fails(GO, "console_socket_is_in_the_bundle", CONSOLE),
    fails(
        GO,
        "console_socket_goes_with_the_bundle_of_a_dead_shim",
        CONSOLE,
    ),
];

/// A row for a case that is gone would never be missed.
#[test]
fn every_row_is_of_a_case() {
    let cases = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim/cases");
    let files = std::fs::read_dir(cases).expect("list the cases").flatten();
    let text: String = files
        .map(|file| std::fs::read_to_string(file.path()).unwrap())
        .collect();
    for row in TABLE {
        assert!(
            text.contains(&format!("fn {}(d)", row.case)),
            "no case {}",
            row.case
        );
    }
}

/// The table as `ARCHITECTURE.md` has it: a line for each reason.
fn markdown() -> String {
    let mut lines: Vec<(String, String)> = Vec::new();
    for row in TABLE {
        let shims = match row.shims {
            ALL => "any".to_owned(),
            GO => "Go".to_owned(),
            shims => shims
                .iter()
                .map(|shim| shim.name())
                .collect::<Vec<_>>()
                .join(", "),
        };
        let runtime = match row.runtime {
            "" => String::new(),
            runtime => format!(" with {runtime}"),
        };
        let sometimes = if row.sometimes { ", now and then" } else { "" };
        let reason = format!("| {} | {shims}{runtime}{sometimes} |", row.reason);
        let case = format!("`{}`", row.case);
        match lines.iter_mut().find(|(start, _)| *start == reason) {
            Some((_, cases)) => *cases += &format!(" {case}"),
            None => lines.push((reason, case)),
        }
    }
    lines
        .iter()
        .map(|(start, cases)| format!("{start} {cases} |\n"))
        .collect()
}

#[test]
fn the_table_stands_in_the_architecture() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md"));
    let wanted = markdown();
    if !text.expect("read ARCHITECTURE.md").contains(&wanted) {
        let place = concat!(env!("CARGO_TARGET_TMPDIR"), "/differences.md");
        std::fs::write(place, wanted).expect("write the table");
        panic!("ARCHITECTURE.md has another table of differences; it should have {place}");
    }
}
