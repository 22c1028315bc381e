//! Where other shims fail this suite, and why that is meant. Run against one of
//! them, exactly these cases have to fail; against ours, none.

/// The shim under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shim {
    /// This crate's.
    Ours,
    /// containerd 1.x's.
    Go1,
    /// containerd 2.x's.
    Go2,
}

/// One case that a shim fails.
pub struct Difference {
    pub case: &'static str,
    pub shims: &'static [Shim],
    /// It depends on the weather or on the machine: passing is no surprise.
    pub sometimes: bool,
    pub reason: &'static str,
}

/// The row for `case`, if there is one.
pub fn find(case: &str, shim: Shim) -> Option<&'static Difference> {
    TABLE
        .iter()
        .find(|row| row.case == case && row.shims.contains(&shim))
}

/// Go's shims of all versions fail `case`.
const fn go(case: &'static str, reason: &'static str) -> Difference {
    let shims = &[Shim::Go1, Shim::Go2];
    Difference {
        case,
        shims,
        sometimes: false,
        reason,
    }
}

/// Those of containerd 1.x, as 1.6.20, do.
const fn go1(case: &'static str, reason: &'static str) -> Difference {
    let shims = &[Shim::Go1];
    Difference {
        case,
        shims,
        sometimes: false,
        reason,
    }
}

/// As [`go`], now and then.
const fn go_sometimes(case: &'static str, reason: &'static str) -> Difference {
    Difference {
        sometimes: true,
        ..go(case, reason)
    }
}

/// As [`go1`], now and then.
const fn go1_sometimes(case: &'static str, reason: &'static str) -> Difference {
    Difference {
        sometimes: true,
        ..go1(case, reason)
    }
}

const NO_CGROUP: &str =
    "Go's cgroup library loads no cgroup on a machine with both versions mounted";
const ONE_LOCK: &str = "Go holds a lock that State needs while the runtime runs";

const TABLE: &[Difference] = &[
    // start, delete
    go(
        "containerd_2_3_starts_it",
        "before 2.3 the bootstrap message is taken for options",
    ),
    go1("runtime_info_is_told", "1.x has no -info"),
    go(
        "delete_of_an_empty_bundle",
        "1.x wants the file `runtime`, 2.x answers pid 4294967295",
    ),
    go(
        "delete_after_a_delete_needs_no_runtime",
        "Go runs `delete --force` whatever there is",
    ),
    go("other_signals_do_not_end_the_shim", "SIGHUP ends Go's shim"),
    // options
    go(
        "options_as_toml",
        "Go knows no runtimeoptions.v1, and panics or fails in start",
    ),
    go("options_of_an_unknown_type", "Go panics, or fails in start"),
    go1(
        "options_with_a_prefixed_type",
        "1.x wants the bare type's name",
    ),
    // requests
    go(
        "container_id_that_exists",
        "Go leaves it to the runtime to notice",
    ),
    go(
        "exec_without_a_spec",
        "Go dereferences nil, and the whole shim dies",
    ),
    go(
        "update_without_resources",
        "Go dereferences nil, and the whole shim dies",
    ),
    go1(
        "wait_keeps_to_its_deadline",
        "before 2.1 Wait knows no deadline",
    ),
    go1(
        "exec_is_not_started_after_inits_exit",
        "before 1.6.36 the runtime is asked to",
    ),
    // the order of exits, and the reaper
    go1(
        "inits_exit_comes_last_in_a_shared_pid_namespace",
        "before 1.6.29 the order is the reaper's",
    ),
    go(
        "many_execs_at_once",
        "the reaper waits for subscribers that wait for the reaper",
    ),
    // the runtime
    go("runtime_hangs_in_create", ONE_LOCK),
    go("runtime_hangs_in_start", ONE_LOCK),
    go("runtime_hangs_in_exec", ONE_LOCK),
    go("runtime_hangs_in_delete", ONE_LOCK),
    go(
        "runtimes_old_words_are_not_passed_on",
        "the log is shared by all calls and read from its beginning",
    ),
    // stdio
    go("fifo_as_a_url", "Go opens the URL as if it were a path"),
    go("stdout_alone", "Go opens the empty path"),
    go("stderr_alone", "Go opens the empty path"),
    go(
        "fifo_that_is_not_there",
        "Go leaves the created container behind",
    ),
    go1("terminal", "before 1.6.37 the pty's master leaks"),
    go1(
        "terminal_of_an_exec",
        "before 1.6.37 the pty's master leaks",
    ),
    // events
    go(
        "containerd_is_away_for_long",
        "the queue is full, and every request waits for it",
    ),
    go_sometimes(
        "containerd_refuses_for_a_while",
        "Go sends later events before it tries again",
    ),
    go_sometimes(
        "containerd_restarts",
        "Go sends later events before it tries again",
    ),
    go_sometimes(
        "containerd_hangs_and_restarts",
        "Go sends later events before it tries again",
    ),
    // resources
    go_sometimes("stats_are_told", NO_CGROUP),
    go_sometimes("stats_of_a_created_container", NO_CGROUP),
    go_sometimes("stats_of_a_stopped_container", NO_CGROUP),
    go_sometimes("oom_comes_before_the_exit", NO_CGROUP),
    go_sometimes(
        "server_is_as_small_after_many_execs_as_before",
        "Go's threads stay; 1.x leaks a pty per exec",
    ),
];
