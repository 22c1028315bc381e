//! The cases of this suite that other shims fail, each with the reason, and those that
//! fail with an OCI runtime, whatever the shim. No other case may fail, and a row that
//! says "always" must not pass. `docs/differences.md` is generated from this table.

use crate::harness::Shim::{self, Go2, Go16, Go17, Ours};

/// How a case of the table ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It fails.
    Fails,
    /// It passes or fails, on one and the same machine.
    Flaky,
    /// It passes or fails with the environment: kernel, cgroup version, CRIU, or what the
    /// shim inherits.
    Depends,
}

impl Outcome {
    /// Its name in `docs/differences.md`.
    fn name(self) -> &'static str {
        match self {
            Outcome::Fails => "always",
            Outcome::Flaky => "flaky",
            Outcome::Depends => "depends on the environment",
        }
    }
}

/// One case that shims fail.
pub struct Difference {
    case: &'static str,
    shims: &'static [Shim],
    /// With this OCI runtime; empty: with any.
    runtime: &'static str,
    outcome: Outcome,
    pub reason: &'static str,
}

impl Difference {
    /// Whether the case may pass all the same.
    pub fn may_pass(&self) -> bool {
        self.outcome != Outcome::Fails
    }
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
        outcome: Outcome::Fails,
        reason,
    }
}

/// These shims fail `case` in some runs and pass it in others.
const fn flaky(shims: &'static [Shim], case: &'static str, reason: &'static str) -> Difference {
    Difference {
        outcome: Outcome::Flaky,
        ..fails(shims, case, reason)
    }
}

/// Whether these shims fail `case` depends on the environment.
const fn depends(shims: &'static [Shim], case: &'static str, reason: &'static str) -> Difference {
    Difference {
        outcome: Outcome::Depends,
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

const KILLED: &str = "Go sends signals through youki, which then takes the container for stopped";
const DEV_NULL: &str = "youki reopens /dev/null for reading only";
const CAPABILITY: &str = "youki refuses capabilities that it does not know";
const CRUN: &str = "Go does not recognize crun's message for a container that does not exist";
const CGROUP: &str = "Go's cgroup library loads no cgroup on a machine with both versions mounted";
const CRIU: &str = "Go reports that CRIU failed, but not why";
const LOCK: &str = "Go holds a lock that State needs while the runtime runs";
const SANDBOX: &str = "Go's shim has no Sandbox API";
const GC: &str = "Go leaves it to its garbage collector to close descriptors";
const ORDER: &str = "Go sends later events before it retries an earlier one, and gives up";
const TWICE: &str =
    "an exec that failed to start and is started again crashes the shim when it exits";
const EMPTY: &str =
    "the runtime's list is empty or an error, and containerd up to 2.2 takes the task for lost";
const REFUSED: &str = "each refused start may publish an exit of its own";
const BELOW: &str = "youki does not remove cgroups that the container made in its own";
const DEAD: &str = "Go accesses the file system before it unmounts it";
const LOG: &str = "Go logs neither what happens to containers nor output that is lost";
const HALF: &str = "Go kills the runtime, and does not undo what that has done";
const CONSOLE: &str = "Go makes the console socket in a temporary directory";
const GROUP: &str = "2.x removes the socket that is named after the id, not after the group";

const JOINED: &str = "Go answers with its own version, not with that of the server it found";
const SHARED: &str = "the runtime kills every process in the cgroup, also those of others";
const BY_CGROUP: &str = "the runtime knows only the processes in its cgroup";
const LEFT_OVER: &str = "Go knows only what the runtime has kept state of";
const UNREADABLE: &str = "Go leaves it to the runtime, which cannot read its own state";
const YOUKI_CALLS: &str = "youki itself needs memfd_create and clone3";

const TABLE: &[Difference] = &[
    // start, delete
    fails(
        GO,
        "start_as_containerd_2_3",
        "before 2.3 the bootstrap message is read as options",
    ),
    fails(
        &[Go2],
        "start_as_containerd_1_6",
        "2.x answers in JSON, which 1.6 takes for an address",
    ),
    fails(
        &[Go2],
        "address_is_written_to_the_bundle",
        "2.x leaves it to containerd to write the file",
    ),
    fails(
        &[Go2],
        "group_annotation_precedes_sandbox_annotation",
        GROUP,
    ),
    fails(&[Go2], "pod_has_one_server", GROUP),
    flaky(&[Go2], "concurrent_starts_of_a_pods_containers", GROUP),
    fails(&[Go2], "client_leaves_while_an_exec_is_started", GROUP),
    fails(&[Go2], "concurrent_deletes", GROUP),
    fails(GO1, "info_is_printed", "1.x has no -info"),
    fails(
        GO,
        "delete_of_an_empty_bundle",
        "1.x needs the file `runtime`; 2.x answers with pid 4294967295",
    ),
    fails(
        GO,
        "second_delete_runs_no_runtime",
        "Go always runs `delete --force`",
    ),
    fails(
        GO,
        "other_signals_do_not_end_the_shim",
        "SIGHUP and SIGQUIT end Go's shim",
    ),
    // options
    fails(
        GO,
        "options_as_toml",
        "Go does not know runtimeoptions.v1: it panics or fails in start",
    ),
    fails(
        GO,
        "options_of_an_unknown_type",
        "Go panics or fails in start",
    ),
    fails(
        &[Go16],
        "options_with_a_prefixed_type",
        "1.6 only accepts the type's name without a prefix",
    ),
    fails(
        GO,
        "options_in_a_toml_file",
        "Go does not know runtimeoptions.v1",
    ),
    fails(GO, "malformed_options", "Go's error has no code of its own"),
    fails(
        GO,
        "checkpoint_options_of_an_unknown_type",
        "Go's error has no code of its own",
    ),
    // states
    fails(
        GO,
        "other_execs_of_a_paused_container",
        "Go reports every exec as paused, so clients do not delete one that exited",
    ),
    fails(GO, "init_is_pausing_while_the_runtime_pauses_it", LOCK),
    fails(GO, "pids_of_a_stopped_container_are_not_empty", EMPTY),
    fails(GO, "exec_start_can_be_repeated_after_it_failed", TWICE),
    fails(GO, "runtime_binary_is_removed", TWICE),
    flaky(GO, "only_one_concurrent_start_succeeds", REFUSED),
    flaky(GO, "only_one_concurrent_start_of_an_exec_succeeds", REFUSED),
    fails(
        GO,
        "signal_after_exec_pid_reuse_is_refused",
        "Go keeps the pids of execs that exited",
    ),
    // signals
    fails(
        GO,
        "kill_all_of_a_stopped_container",
        "the runtime finds no process to kill and reports success",
    ),
    flaky(
        &[Go16],
        "exit_of_an_init_in_a_shared_pid_namespace",
        "before 1.6.29 exits are published in the order in which they are reaped",
    ),
    fails(&[Go2], "exit_of_an_init_in_a_shared_pid_namespace", GROUP),
    // times
    fails(
        GO,
        "delayed_exit_has_the_time_of_its_reaping",
        "Go takes the time at which it publishes the exit",
    ),
    fails(
        GO,
        "delayed_event_has_the_time_of_its_creation",
        "Go takes the time at which it sends the event",
    ),
    // Shutdown
    flaky(
        GO,
        "no_connection_is_accepted_after_shutdown",
        "Go answers before it closes the socket",
    ),
    flaky(
        GO,
        "start_right_after_shutdown_starts_a_new_server",
        "start finds the server that is about to end",
    ),
    flaky(
        GO,
        "waits_are_answered_before_the_shim_exits",
        "Go may end before all answers are sent",
    ),
    fails(
        &[Go2],
        "shutdown_keeps_a_container_that_another_client_creates",
        GROUP,
    ),
    // mounts
    fails(
        GO,
        "bind_mount_with_mapped_owners",
        "up to 2.1 only overlay mounts support id maps",
    ),
    fails(
        GO1,
        "overlay_with_mapped_owners",
        "before 2.0 no mount supports id maps",
    ),
    fails(
        &[Go2],
        "overlay_with_mapped_owners",
        "Go maps the directory above the layers, without the mounts below it",
    ),
    fails(GO1, "invalid_id_map", "before 2.0 the option is unknown"),
    fails(
        &[Go16],
        "image_on_a_loop_device_with_direct_io",
        "before 1.7 the option is unknown",
    ),
    fails(
        GO,
        "propagation",
        "Go does not know these options and passes them to the file system",
    ),
    fails(
        GO,
        "option_for_containerds_mount_manager",
        "containerd's mount manager came with 2.2",
    ),
    fails(
        &[Go16],
        "targets_stay_in_the_rootfs",
        "before 1.7 mounts have no target",
    ),
    fails(
        GO1,
        "target_that_does_not_exist",
        "1.6 ignores the target; 1.7 does not name it in the error",
    ),
    fails(
        GO,
        "fuse_helper_whose_child_keeps_its_output_open",
        "Go waits until the helper's output is closed",
    ),
    fails(
        &[Go16],
        "mounts_of_others_in_the_rootfs_are_unmounted",
        "1.6 unmounts the rootfs only",
    ),
    fails(
        &[Go16],
        "delete_action_unmounts_mounts_of_others",
        "1.6 unmounts the rootfs only",
    ),
    fails(GO, "dead_file_system_in_the_rootfs", DEAD),
    fails(GO, "dead_file_system_on_the_rootfs", DEAD),
    fails(GO, "hanging_mount_does_not_delay_other_requests", LOCK),
    fails(
        &[Go2],
        "busy_rootfs_is_unmounted_when_it_is_not_busy",
        GROUP,
    ),
    // requests
    fails(
        GO,
        "container_id_that_exists",
        "Go leaves this check to the runtime",
    ),
    fails(
        GO,
        "runtime_gets_the_complete_exec_spec",
        "Go decodes the spec and passes on the fields that it knows",
    ),
    fails(
        GO,
        "both_versions_of_the_service_know_the_container",
        "Go serves one version of the Task service",
    ),
    fails(
        GO,
        "container_id_that_is_being_created",
        "Go leaves this check to the runtime",
    ),
    fails(
        GO,
        "ids_that_are_paths",
        "Go accepts any id and makes file paths of it",
    ),
    fails(
        GO,
        "exec_without_a_spec",
        "Go dereferences nil and the shim crashes",
    ),
    fails(
        GO,
        "update_without_resources",
        "Go dereferences nil and the shim crashes",
    ),
    fails(
        GO,
        "wait_ends_at_its_deadline",
        "Go's Wait ignores its deadline",
    ),
    fails(
        &[Go16],
        "exec_is_not_started_after_inits_exit",
        "before 1.6.36 Go runs the runtime all the same",
    ),
    flaky(
        &[Go17, Go2],
        "frames_of_the_wrong_kind",
        "Go panics on a data frame without a stream",
    ),
    // the order of exits, and the reaper
    flaky(
        &[Go16],
        "init_exit_is_last_in_a_shared_pid_namespace",
        "before 1.6.29 exits are published in the order in which they are reaped",
    ),
    flaky(
        GO,
        "unstarted_container_can_be_deleted",
        "its exit may be published after its deletion",
    ),
    flaky(
        GO,
        "many_concurrent_execs",
        "deadlock: the reaper waits for subscribers that wait for the reaper",
    ),
    // the runtime
    fails(
        GO,
        "init_is_killed_while_the_runtime_starts_it",
        "Kill waits for the runtime",
    ),
    fails(
        GO,
        "processes_of_a_runtime_that_left_its_group_are_killed_with_it",
        "Go kills the runtime's first process",
    ),
    fails(
        GO,
        "server_whose_start_was_killed_before_it_answered_ends",
        "Go's server waits for a client for ever",
    ),
    fails(
        GO,
        "start_that_waits_for_a_reader_ends_though_descriptors_are_used_up",
        "Go waits 30 s for a reader, whatever the deadline",
    ),
    fails(GO, "runtime_hangs_in_create", LOCK),
    fails(
        GO,
        "requests_that_hang_keep_none_that_ends_processes_from_being_served",
        LOCK,
    ),
    fails(GO, "runtime_hangs_in_start", LOCK),
    fails(GO, "runtime_hangs_in_exec", LOCK),
    fails(GO, "runtime_hangs_in_delete", LOCK),
    fails(
        GO,
        "earlier_runtime_error_is_not_reported_again",
        "all runtime commands share a log that Go reads from its start",
    ),
    fails_with(
        "crun",
        &[Ours],
        "delete_reports_the_unreadable_state_that_it_removes",
        "crun removes such state itself, and says nothing",
    ),
    fails(
        GO,
        "delete_reports_the_unreadable_state_that_it_removes",
        "Go leaves such state, and says nothing",
    ),
    fails_with("crun", GO, "container_is_restored_when_it_is_started", CRUN),
    fails_with("crun", GO, "init_to_be_restored", CRUN),
    fails_with("crun", GO, "criu_work_path", CRUN),
    fails_with(
        "crun",
        GO,
        "busy_rootfs_is_an_error_and_unmounted_by_a_later_delete",
        CRUN,
    ),
    fails_with(
        "crun",
        GO,
        "paused_container_can_be_killed",
        "crun before 1.9 thaws no v1 cgroup on kill",
    ),
    fails(
        GO,
        "runtime_error_is_found_among_malformed_log_lines",
        "a line that is not JSON hides all others",
    ),
    fails(
        GO,
        "youki_error_is_found",
        "Go only knows runc's keys and levels",
    ),
    fails(
        GO,
        "queries_and_signals_run_no_runtime",
        "Go runs `ps` for Pids and `kill` for a signal",
    ),
    // what youki cannot do
    fails_with("youki", GO, "pids_include_child_cgroups", BELOW),
    fails_with("youki", GO, "child_cgroups_are_killed", BELOW),
    fails_with("youki", GO, "frozen_child_cgroups_are_killed", BELOW),
    fails_with("youki", GO, "created_init", KILLED),
    fails_with("youki", GO, "paused_init", KILLED),
    fails_with(
        "youki",
        GO,
        "real_time_signal_to_init",
        "youki does not know these signals, and Go sends signals through it",
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
        "youki starts execs in running containers only",
    ),
    fails_with("youki", ALL, "exec_with_an_unknown_capability", CAPABILITY),
    fails_with(
        "youki",
        ALL,
        "container_with_an_unknown_capability",
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
        "stdin_is_opened_at_start",
        "Go opens stdin at Create, so a client without input closes it too early",
    ),
    fails(GO, "stdout_alone", "Go opens the empty path"),
    fails(GO, "stderr_alone", "Go opens the empty path"),
    fails(
        GO,
        "fifo_that_does_not_exist",
        "Go leaves the created container behind",
    ),
    fails(
        GO,
        "terminal_may_log_to_a_file",
        "Go opens the URL as the path of a FIFO",
    ),
    fails(
        GO,
        "full_disk_does_not_block_the_container",
        "a failed write ends Go's copier, and the pipe fills up",
    ),
    fails(
        GO,
        "logger_that_dies",
        "only the logger has the pipe's read end, so the container gets SIGPIPE",
    ),
    fails(
        GO,
        "create_fails_without_a_fifo_reader",
        "Go waits for the logger without a limit and holds its lock",
    ),
    fails(
        GO,
        "child_that_keeps_stdout_open_does_not_block_the_reader",
        "Go's time limit starts with Delete",
    ),
    flaky(
        GO,
        "reader_gets_the_rest_after_the_exit",
        "Go closes a FIFO without a reader, and what it holds is lost",
    ),
    fails(
        GO,
        "pipes_grow_for_busy_streams",
        "Go does not enlarge pipes",
    ),
    flaky(GO, "exec_fifo_that_does_not_exist", GC),
    flaky(GO, "fifos_leave_no_descriptor", GC),
    flaky(GO, "files_leave_no_descriptor", GC),
    flaky(GO, "loggers_leave_no_descriptor", GC),
    flaky(GO, "terminals_leave_no_descriptor", GC),
    flaky(GO, "execs_that_are_never_deleted_leave_no_descriptor", GC),
    flaky(GO, "terminal", GC),
    flaky(GO, "terminal_of_an_exec", GC),
    flaky(GO, "failed_execs_leave_no_descriptor", GC),
    flaky(GO, "undeleted_execs_are_removed_with_the_container", GC),
    depends(
        GO,
        "runtime_inherits_no_descriptor",
        "Go passes inherited descriptors on",
    ),
    fails(
        GO,
        "server_inherits_no_descriptor",
        "Go passes inherited descriptors on",
    ),
    // events
    flaky(
        GO,
        "events_are_delivered_before_the_shim_ends",
        "Go may end with the last event still in its queue",
    ),
    fails(
        GO,
        "containerd_is_down_for_long",
        "Go's event queue is full, and every request waits for it",
    ),
    flaky(GO, "containerd_refuses_for_a_while", ORDER),
    flaky(GO, "containerd_restarts", ORDER),
    flaky(GO, "containerd_restarts_while_the_shim_is_idle", ORDER),
    flaky(GO, "containerd_hangs_and_restarts", ORDER),
    // checkpoint and restore, where there is CRIU
    depends(
        GO,
        "checkpoint_is_written_to_the_paths_of_its_options",
        "Go only uses the request's path",
    ),
    depends(
        GO,
        "container_keeps_running_after_a_checkpoint",
        "Go does not publish TaskCheckpointed",
    ),
    depends(
        GO,
        "every_cgroups_mode_is_accepted",
        "Go ignores the cgroups mode",
    ),
    depends(
        GO,
        "checkpoint_with_a_parent_image",
        "parent_path came with 2.4",
    ),
    depends(GO, "criu_error_is_reported", CRIU),
    depends(GO, "failed_restore_leaves_nothing", CRIU),
    depends(GO, "file_locks_are_kept_with_file_locks", CRIU),
    depends(GO, "open_connections_are_kept_with_open_tcp", CRIU),
    depends(
        GO,
        "external_sockets_are_kept_with_external_unix_sockets",
        CRIU,
    ),
    // resources
    fails(
        GO,
        "invalid_resources_are_a_clear_error",
        "Go decodes the resources itself, and its error does not name them",
    ),
    fails(
        GO,
        "child_cgroups_are_killed",
        "Go leaves it to the runtime to kill them",
    ),
    depends(GO, "stats_of_a_running_container", CGROUP),
    depends(GO, "stats_of_a_created_container", CGROUP),
    depends(GO, "stats_of_a_stopped_container", CGROUP),
    depends(GO, "oom_event_precedes_the_exit_event", CGROUP),
    flaky(
        GO,
        "many_execs_do_not_grow_the_server",
        "Go keeps its threads",
    ),
    // server limits
    fails(
        GO,
        "processes_have_the_default_actions_of_signals",
        "Go passes on what its parent ignored",
    ),
    fails(
        GO,
        "state_of_the_server_is_logged_on_sigusr1",
        "Go logs its stacks, or nothing",
    ),
    fails(
        GO,
        "waiting_requests_need_little_memory",
        "Go has a goroutine for each",
    ),
    fails(
        GO,
        "metadata_needs_neither_time_nor_memory",
        "Go decodes all of it, whatever that takes",
    ),
    fails(
        GO,
        "request_with_a_million_mounts_is_refused",
        "Go decodes all of it, whatever that takes",
    ),
    fails(
        GO,
        "clients_that_do_not_read_do_not_delay_others",
        "Go goes on reading and answering",
    ),
    fails(
        GO,
        "negative_timeout_is_exceeded_at_once",
        "Go's handlers do not look at the deadline",
    ),
    fails(
        GO1,
        "server_exits_soon_if_containerd_does_not_listen",
        "1.x calls that a failure, by its exit code",
    ),
    fails(
        GO,
        "kill_and_delete_work_without_free_descriptors",
        "Go keeps no descriptors in reserve",
    ),
    fails(
        &[Go16],
        "soft_limit_of_descriptors_is_raised_for_the_server_only",
        "Go passes the raised limit on, if it was built with a Go before 1.21",
    ),
    fails(
        GO,
        "server_without_client_and_container_exits",
        "Go's stays for ever",
    ),
    fails_with(
        "youki",
        ALL,
        "processes_have_the_default_actions_of_signals",
        "youki has SIGPIPE ignored, and passes that on",
    ),
    // an environment that lacks something
    fails(
        GO1,
        "info_works_without_newer_system_calls",
        "1.x has no -info",
    ),
    fails(GO1, "info_needs_no_writable_directory", "1.x has no -info"),
    fails(
        &[Go17, Go2],
        "image_on_a_loop_device_without_loop_configure",
        "from 1.7 on Go configures loop devices only as Linux 5.8 can",
    ),
    fails(
        &[Go16],
        "targets_stay_in_the_rootfs_while_others_mount",
        "before 1.7 mounts have no target",
    ),
    fails(
        &[Go16],
        "targets_stay_in_the_rootfs_without_openat2",
        "before 1.7 mounts have no target",
    ),
    fails(
        GO,
        "failed_reply_of_start_leaves_no_server",
        "Go leaves the server behind",
    ),
    fails(GO, "start_replies_version_2_for_a_version_2_server", JOINED),
    fails(GO, "start_replies_version_3_for_a_version_3_server", JOINED),
    fails(
        GO,
        "start_for_containerd_1_6_fails_with_a_version_3_server",
        JOINED,
    ),
    fails(&[Go2], "start_joins_a_server_that_hangs", GROUP),
    fails(
        GO,
        "delete_succeeds_with_an_empty_runtime_state",
        UNREADABLE,
    ),
    fails(
        GO,
        "delete_action_succeeds_with_an_empty_runtime_state",
        UNREADABLE,
    ),
    fails(
        GO,
        "delete_action_is_in_time_with_a_hanging_runtime_and_a_busy_rootfs",
        "Go's delete waits for the runtime without a limit",
    ),
    fails(
        GO,
        "delete_action_fails_if_the_container_is_still_alive",
        "Go answers 137 whatever became of the container",
    ),
    fails(
        GO,
        "no_process_or_thread_can_be_started",
        "Go kills by the runtime, which cannot be started",
    ),
    fails(
        GO,
        "fuse_helper_is_killed_with_the_server",
        "Go's helpers outlive it",
    ),
    fails_with("youki", ALL, "works_with_memfd_create_refused", YOUKI_CALLS),
    fails_with("youki", ALL, "works_without_memfd_create", YOUKI_CALLS),
    fails_with(
        "youki",
        ALL,
        "kernel_4_18_without_all_newer_calls",
        YOUKI_CALLS,
    ),
    fails_with("youki", ALL, "sandbox_refuses_all_newer_calls", YOUKI_CALLS),
    fails_with(
        "crun",
        ALL,
        "delete_succeeds_with_an_empty_runtime_state",
        "crun takes it for deleted, and leaves its cgroup",
    ),
    fails_with(
        "crun",
        GO,
        "sandbox_refuses_all_newer_calls",
        "crun kills nobody where pidfd_open fails with EPERM, and Go leaves that to it",
    ),
    // cgroups that are not the container's alone, frozen, or left over
    fails(GO, "container_in_the_shims_cgroup_is_refused", SHARED),
    fails(
        GO,
        "processes_that_were_in_the_cgroup_before_are_not_killed",
        SHARED,
    ),
    fails(
        GO,
        "shim_that_is_moved_into_the_containers_cgroup_survives",
        SHARED,
    ),
    fails(GO, "container_without_cgroups_is_killed_alone", BY_CGROUP),
    fails(GO, "descendants_are_killed_without_cgroups", BY_CGROUP),
    fails(GO, "kill_all_signals_no_process_of_others", BY_CGROUP),
    fails(
        GO,
        "exec_outside_of_the_cgroup_does_not_delay_inits_exit",
        BY_CGROUP,
    ),
    fails(GO, "pids_of_an_init_that_left_its_cgroup", BY_CGROUP),
    fails(
        GO,
        "pids_of_many_and_deep_cgroups_are_answered",
        "the runtime goes by paths, which may be too long",
    ),
    fails(
        GO,
        "frozen_child_cgroup_can_be_killed",
        "the runtime thaws the container's cgroup only",
    ),
    fails(
        GO,
        "container_is_killed_while_the_runtime_pauses_it",
        "Kill waits for the runtime",
    ),
    flaky(
        GO,
        "exec_without_a_fifo_reader_does_not_delay_the_exit",
        "State of an exec waits for its start",
    ),
    flaky(
        GO,
        "signal_right_after_start_is_not_lost",
        "Go signals the runtime's own init, before it executes the program",
    ),
    flaky(
        GO,
        "signal_right_after_the_start_of_an_exec_is_not_lost",
        "Go signals the runtime's own init, before it executes the program",
    ),
    fails(
        GO,
        "delete_cancels_a_creation",
        "Delete waits for the runtime",
    ),
    fails(
        GO,
        "shutdown_cancels_a_creation",
        "Shutdown waits for the runtime",
    ),
    fails(
        GO,
        "exit_is_published_while_an_exec_hangs",
        "Wait for init and its exit event wait for the start of an exec",
    ),
    fails(
        GO,
        "paused_container_is_killed_while_the_runtime_hangs",
        "Kill waits for the runtime",
    ),
    fails(
        GO,
        "delete_kills_a_paused_container_while_the_runtime_hangs",
        "Go waits for the runtime, and kills nobody itself",
    ),
    fails(GO, "cgroup_of_a_cancelled_create_is_removed", LEFT_OVER),
    fails(GO, "empty_cgroup_without_a_container_is_removed", LEFT_OVER),
    // stdio_limits
    fails(
        GO,
        "outputs_without_a_reader_use_no_inotify_instance",
        "Go closes a FIFO that nobody reads, with what is in it",
    ),
    fails(
        GO,
        "file_log_on_a_dead_file_system_does_not_delay_others",
        "Go opens a log while it holds a lock that every request needs",
    ),
    fails(
        &[Go2],
        "file_log_on_a_frozen_file_system_does_not_delay_others",
        GROUP,
    ),
    fails(GO, "console_socket_is_in_the_bundle", CONSOLE),
    fails(
        GO,
        "console_socket_is_removed_with_the_bundle_of_a_dead_shim",
        CONSOLE,
    ),
    // bounds
    fails(GO, "create_can_be_repeated_after_it_hung", HALF),
    fails(GO, "process_of_a_cancelled_exec_is_killed", HALF),
    fails(GO, "cancelled_pause_is_undone", HALF),
    fails(
        GO,
        "start_that_hangs_after_it_started_init_counts_as_a_start",
        HALF,
    ),
    fails(GO, "killed_runtime_create_leaves_nothing", HALF),
    fails(
        GO,
        "killed_runtime_create_without_state_leaves_no_cgroup",
        HALF,
    ),
    fails(
        GO,
        "delete_cancels_a_hanging_start",
        "Delete waits for the runtime, and fails with it",
    ),
    fails(
        GO,
        "repeated_delete_gets_the_same_answer_until_it_is_delivered",
        "Go kills the runtime's delete when the client leaves, and keeps the container",
    ),
    fails(
        GO,
        "exec_with_an_unready_logger_does_not_delay_the_exit",
        "init's exit waits for the start of the exec",
    ),
    fails(
        GO,
        "exit_is_published_while_init_is_paused_resumed_or_updated",
        "Kill waits for the runtime",
    ),
    fails(
        GO,
        "runtime_on_a_dead_file_system_does_not_delay_other_requests",
        "Go waits for execve(2) with a lock that others need",
    ),
    fails(
        &[Go2],
        "blocking_config_json_does_not_delay_other_requests",
        GROUP,
    ),
    // the command line
    fails(
        GO,
        "help_goes_to_standard_output",
        "Go prints its flags to standard error, and neither actions nor use",
    ),
    fails(
        GO,
        "no_arguments_print_the_help",
        "Go says that the namespace is empty, and no more",
    ),
    fails(
        GO,
        "unknown_action_error_lists_the_actions",
        "Go says that the namespace is empty, and no more",
    ),
    fails(
        GO,
        "version_prints_revision_target_and_compiler",
        "Go prints the version of Go, and no target",
    ),
    // memory
    fails(GO, "idle_server_releases_memory", "Go gives no memory back"),
    // logs
    fails(GO, "log_has_the_exit_of_each_container_of_a_pod", LOG),
    fails(GO, "dropped_output_is_logged_with_container_and_path", LOG),
    // faults found by a stranger
    fails_with(
        "youki",
        ALL,
        "delete_does_not_kill_others_in_a_cgroup_of_another_name",
        "youki kills every process in the cgroup when it deletes a container",
    ),
    fails_with(
        "crun",
        ALL,
        "delete_does_not_kill_others_in_a_cgroup_of_another_name",
        "crun kills every process in the cgroup when it deletes a container",
    ),
    fails(
        GO,
        "server_exits_soon_after_its_client_left_during_create",
        "Go's stays for ever",
    ),
    fails(
        GO,
        "server_whose_client_came_back_after_a_create_that_was_undone_ends",
        "Go's stays for ever",
    ),
    fails(
        GO,
        "container_whose_cgroup_is_frozen_after_the_exit_can_be_deleted",
        "the runtime takes it for paused, though nobody is in it",
    ),
    fails(
        GO,
        "second_delete_cancels_a_hanging_delete",
        "Delete waits for the runtime of another call",
    ),
    fails(
        GO,
        "hanging_exec_can_be_deleted",
        "Delete waits for the runtime of another call",
    ),
    fails(GO, "killed_runtime_exec_leaves_no_process", HALF),
    fails(
        GO,
        "slice_path_is_a_plain_name_if_toml_says_so",
        "Go does not know runtimeoptions.v1",
    ),
    depends(
        GO,
        "slice_path_means_systemd_where_it_runs",
        "Go takes such a path for a plain name, where systemd runs, too",
    ),
    depends(
        GO,
        "slice_path_of_a_crashed_shim_is_removed_through_systemd",
        "Go takes such a path for a plain name, where systemd runs, too",
    ),
    // errors of start and delete
    fails(
        GO,
        "errors_of_start_name_operation_object_and_cause",
        "Go's errors end with a newline, or do not name the operation and the object",
    ),
    fails(
        GO,
        "errors_of_start_before_the_bundle_is_read",
        "Go's errors end with a newline, or do not name the operation and the object",
    ),
    fails(
        GO,
        "warnings_of_delete_name_operation_object_and_cause",
        "Go's errors end with a newline, or do not name the operation and the object",
    ),
    // operator
    fails(
        GO,
        "check_tells_what_this_machine_offers",
        "Go has no such action",
    ),
    fails(
        GO,
        "check_without_an_oci_runtime_fails",
        "Go has no such action",
    ),
    fails(
        GO,
        "check_gives_up_an_oci_runtime_that_hangs",
        "Go has no such action",
    ),
    fails(
        GO,
        "check_tells_which_shim_comes_first",
        "Go has no such action",
    ),
    fails(
        GO,
        "ps_lists_servers_and_what_they_have",
        "Go has no such action",
    ),
    fails(
        GO,
        "ps_asks_a_server_whose_socket_is_in_another_mount_namespace",
        "Go has no such action",
    ),
    fails(
        GO,
        "ps_does_not_wait_for_a_server_that_hangs",
        "Go has no such action",
    ),
    fails(
        GO,
        "inspect_finds_the_server_of_a_pods_container",
        "Go has no such action",
    ),
    fails(
        GO,
        "inspect_of_an_unknown_container_is_an_error",
        "Go has no such action",
    ),
    fails(GO, "sandbox_from_create_to_shutdown", SANDBOX),
    fails(GO, "sandbox_for_containerd_2_3", SANDBOX),
    fails(GO, "status_is_verbose_in_cris_form", SANDBOX),
    fails(
        GO,
        "operations_that_the_state_of_a_sandbox_refuses",
        SANDBOX,
    ),
    fails(GO, "sandbox_is_stopped_without_a_start", SANDBOX),
    fails(GO, "sandbox_is_shut_down_in_each_state", SANDBOX),
    fails(
        GO,
        "waits_for_a_sandbox_are_answered_at_its_shutdown",
        SANDBOX,
    ),
    fails(
        GO,
        "client_leaves_after_it_asked_for_the_shutdown_of_a_sandbox",
        SANDBOX,
    ),
    fails(
        GO,
        "containers_share_the_namespaces_of_their_sandbox",
        SANDBOX,
    ),
    fails(GO, "containers_share_the_pids_of_their_sandbox", SANDBOX),
    fails(GO, "init_of_a_sandbox_has_no_privileges", SANDBOX),
    fails(GO, "death_of_the_init_is_the_end_of_the_sandbox", SANDBOX),
    fails(GO, "sandbox_with_the_namespaces_of_the_node", SANDBOX),
    fails(GO, "sysctls_of_a_sandbox", SANDBOX),
    fails(GO, "sandbox_that_cannot_be_started_leaves_nothing", SANDBOX),
    fails(GO, "configurations_of_a_sandbox_that_are_refused", SANDBOX),
    fails(GO, "files_of_a_sandbox", SANDBOX),
    fails(
        GO,
        "files_that_a_restarted_containerd_removed_are_made_again",
        SANDBOX,
    ),
    fails(GO, "server_of_a_sandbox_is_killed", SANDBOX),
    fails(GO, "server_of_a_sandbox_with_an_init_is_killed", SANDBOX),
    fails(
        GO,
        "server_of_a_sandbox_is_killed_without_containers",
        SANDBOX,
    ),
    fails(
        GO,
        "server_of_a_sandbox_is_killed_while_it_creates_a_container",
        SANDBOX,
    ),
    fails(
        GO,
        "container_that_cannot_be_created_is_off_the_record",
        SANDBOX,
    ),
    fails(GO, "metrics_of_a_sandbox_are_never_an_error", SANDBOX),
    fails(GO, "sandbox_stays_without_clients_and_containers", SANDBOX),
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

/// What `docs/differences.md` says above the table.
const HEADER: &str = "\
# Cases that other shims fail

This file is generated from `tests/shim/differences.rs`. Change that, then run

    UPDATE_DOCS=1 cargo test --test shim differences

The conformance suite (`tests/shim`) runs against this shim and against containerd's own, and
with the OCI runtimes runc, crun and youki. This table lists every case that is allowed to fail,
and why. Every other case has to pass.

- **Shims**: 1.6, 1.7 and 2.1 are containerd's own shims of these releases (1.6.20, 1.7.24 and
  2.1.9); \"Go\" is all three of them. \"any\" is these and this one: the OCI runtime is the cause.
- **Runtime**: with this OCI runtime only. Empty: with all of them.
- **Fails**: *always*: the suite reports it when the case passes. *flaky*: the case passes in
  some runs and fails in others. *depends on the environment*: the result differs from machine
  to machine, with the kernel, the cgroup version, CRIU or what the shim inherits.

| Reason | Shims | Runtime | Fails | Cases |
|---|---|---|---|---|
";

/// `docs/differences.md`: a line for each reason.
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
        let outcome = row.outcome.name();
        let start = format!("| {} | {shims} | {} | {outcome} |", row.reason, row.runtime);
        let case = format!("`{}`", row.case);
        match lines.iter_mut().find(|(known, _)| *known == start) {
            Some((_, cases)) => *cases += &format!(" {case}"),
            None => lines.push((start, case)),
        }
    }
    let lines = lines
        .iter()
        .map(|(start, cases)| format!("{start} {cases} |\n"));
    HEADER.to_owned() + &lines.collect::<String>()
}

#[test]
fn docs_differences_is_up_to_date() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/differences.md");
    let wanted = markdown();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(file, &wanted).expect("write docs/differences.md");
    }
    let text = std::fs::read_to_string(file).expect("read docs/differences.md");
    assert!(
        text == wanted,
        "docs/differences.md is not up to date: run \
         UPDATE_DOCS=1 cargo test --test shim differences"
    );
}
