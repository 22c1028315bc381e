//! What a user of `ctr` does and sees. Each case starts in a fresh world, deletes
//! what it made, and is followed by the check that nothing is left.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::pty::{OpenptyResult, Winsize, openpty};

use crate::ctr::{Ctr, Events, Naming, Running};
use crate::world;

/// A container that stays until it is killed.
const STAY: &str = "exec sleep 1000";

pub fn exit_codes_and_output(ctr: &Ctr) {
    ctr.run(&["--rm"], "zero", &["true"]).expect(0, "");
    let done = ctr.run(
        &["--rm"],
        "seven",
        &["sh", "-c", "echo out; echo err >&2; exit 7"],
    );
    done.expect(7, "out\n");
    assert!(done.stderr.starts_with("err\n"), "{done:?}");
    let done = ctr.run(
        &["--rm"],
        "much",
        &["sh", "-c", "yes 0123456789abcde | head -c 4000000"],
    );
    assert_eq!((done.code(), done.stdout.len()), (0, 4_000_000));
}

pub fn exit_by_signal(ctr: &Ctr) {
    let running = Running::start(ctr.run_command(&["--rm"], "kill", &["sleep", "1000"]));
    ctr.until_status("kill", "RUNNING");
    ctr.ok("task kill --signal SIGKILL kill");
    assert_eq!(running.wait().code(), 137);

    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let running = Running::start(ctr.run_command(&["--rm"], "trap", &["sh", "-c", script]));
    ctr.until_status("trap", "RUNNING");
    // The trap may not be set yet, and an init without one ignores the signal.
    world::until("the signal to end the container", || {
        ctr.call("task kill --signal SIGTERM trap");
        ctr.task("trap")
            .is_none_or(|(_, status)| status == "STOPPED")
    });
    running.wait().expect(3, "ready\n");
}

pub fn stdin_is_read_to_its_end(ctr: &Ctr) {
    let script = "echo ready; exec cat";
    let command = ctr.run_command(&["--rm"], "cat", &["sh", "-c", script]);
    let mut running = Running::with_stdin(command);
    // `ctr run` passes an end on only once it has the answer to its Create.
    running.until_output("ready\n");
    let data = "twelve bytes".repeat(20_000);
    running.write(data.as_bytes());
    running.wait().expect(0, &format!("ready\n{data}"));
}

pub fn terminal(ctr: &Ctr) {
    // The size comes with a resize after the start: wait for it inside.
    let script = "until [ \"$(stty size)\" = '33 121' ]; do :; done; tty; read word; echo \"<$word>\"; exit 5";
    let (output, code) = on_terminal(
        ctr.run_command(&["--rm", "-t"], "tty", &["sh", "-c", script]),
        "hello\r",
    );
    assert!(
        output.contains("/dev/pts/0") && output.contains("<hello>"),
        "{output:?}"
    );
    assert_eq!(code, 5);
}

pub fn exec(ctr: &Ctr) {
    ctr.detached("box", STAY);
    ctr.exec("box", "one", "echo out; exit 3")
        .expect(3, "out\n");
    let mut cat =
        Running::with_stdin(ctr.command(["task", "exec", "--exec-id", "two", "box", "cat"]));
    cat.write(b"in and out\n");
    cat.wait().expect(0, "in and out\n");
    ctr.exec("box", "bad", "exec no-such-command")
        .expect(127, "");
    let missing = ctr.call("task exec --exec-id three box no-such-command");
    missing.expect_error("no-such-command");
    missing.expect_error("not found in $PATH");
    // None of it has hurt the container, and the name is free again.
    ctr.exec("box", "one", "kill -9 $$").expect(137, "");
    ctr.exec("box", "three", "echo fine").expect(0, "fine\n");
    ctr.remove("box");
}

pub fn exec_with_a_terminal(ctr: &Ctr) {
    ctr.detached("box", STAY);
    let script = "until [ \"$(stty size)\" = '33 121' ]; do :; done; tty; read word; echo \"<$word>\"; exit 6";
    let command = ctr.command([
        "task",
        "exec",
        "-t",
        "--exec-id",
        "tty",
        "box",
        "sh",
        "-c",
        script,
    ]);
    let (output, code) = on_terminal(command, "hello\r");
    assert!(
        output.contains("/dev/pts/0") && output.contains("<hello>"),
        "{output:?}"
    );
    assert_eq!(code, 6);
    ctr.remove("box");
}

pub fn lifecycle(ctr: &Ctr) {
    ctr.detached("box", STAY);
    let (pid, status) = ctr.task("box").expect("a task");
    assert_eq!(status, "RUNNING");
    assert!(pids(ctr).contains(&pid), "{pid} in {:?}", pids(ctr));
    assert!(
        ctr.ok("task metrics box").contains("pids.current"),
        "metrics"
    );

    pause(ctr);
    assert_eq!(ctr.task("box").expect("a task").1, "PAUSED");
    ctr.ok("task resume box");
    assert_eq!(ctr.task("box").expect("a task").1, "RUNNING");
    ctr.call("task delete box")
        .expect_error("must be stopped before deletion");

    ctr.ok("task kill --signal SIGKILL box");
    ctr.until_status("box", "STOPPED");
    ctr.delete_task("box", 137);
    ctr.call("task delete box").expect_error("not found");
    ctr.call("task kill box").expect_error("not found");
    // A container may have another task after its first.
    ctr.ok("task start -d box");
    pause(ctr);
    // Killed while frozen, it must not wait to be thawed.
    ctr.remove("box");
}

pub fn attach(ctr: &Ctr) {
    ctr.detached("box", "read word; echo got $word; read word; exit 4");
    let mut attached = Running::with_stdin(ctr.command(["task", "attach", "box"]));
    attached.write(b"it\n");
    // `ctr attach` does not wait for output once the task has ended.
    attached.until_output("got it\n");
    attached.write(b"end\n");
    attached.wait_with_open_stdin().expect(4, "got it\n");
    ctr.call("task delete box");
    ctr.ok("container delete box");
}

pub fn events_in_order(ctr: &Ctr) {
    let events = Events::subscribe(ctr);
    ctr.detached("box", STAY);
    ctr.exec("box", "one", "exit 1").expect(1, "");
    pause(ctr);
    ctr.ok("task resume box");
    ctr.remove("box");
    let wanted = "create start exec-added exec-started exit paused resumed exit delete";
    assert_eq!(events.tasks_until("delete").join(" "), wanted);
}

pub fn containerd_restarted(ctr: &Ctr) {
    ctr.detached("box", STAY);
    let before = ctr.task("box");
    world::stop_containerd();
    world::start_containerd();
    assert_eq!(ctr.task("box"), before);
    ctr.exec("box", "one", "echo still here; exit 2")
        .expect(2, "still here\n");
    let attached = Running::start(ctr.command(["task", "attach", "box"]));
    let events = Events::subscribe(ctr);
    ctr.ok("task kill --signal SIGKILL box");
    assert_eq!(events.tasks_until("exit"), ["exit"]);
    assert_eq!(attached.wait().code(), 137);
    ctr.call("task delete box");
    ctr.ok("container delete box");
}

pub fn exit_while_containerd_is_down(ctr: &Ctr) {
    ctr.detached("box", "trap 'exit 9' TERM; while :; do sleep 0.1; done");
    let pid = ctr.task("box").expect("a task").0;
    world::stop_containerd();
    world::until("the container's end", || {
        let _ = Command::new("kill")
            .arg(pid.to_string())
            .stderr(Stdio::null())
            .status();
        fs::metadata(format!("/proc/{pid}")).is_err()
    });
    world::start_containerd();
    // Since 1.7 containerd deletes a task that it finds without processes, as it does with
    // Go's shim: the exit code is lost then.
    ctr.until_status("box", "STOPPED");
    ctr.delete_task("box", 9);
    ctr.ok("container delete box");
}

pub fn shim_killed(ctr: &Ctr) {
    let events = Events::subscribe(ctr);
    ctr.detached("box", "sleep 1000 & wait");
    let [shim] = world::shims()[..] else {
        panic!("one shim wanted: {:?}", world::processes());
    };
    let killed = Command::new("kill")
        .args(["-KILL", &shim.to_string()])
        .status();
    assert!(killed.expect("run kill").success());
    assert_eq!(
        events.tasks_until("delete").join(" "),
        "create start exit delete"
    );
    assert_eq!(ctr.task("box"), None);
    ctr.ok("container delete box");
    // The name is free, and its socket too.
    ctr.run(&["--rm"], "box", &["echo", "again"])
        .expect(0, "again\n");
}

pub fn fifty_concurrent_containers(ctr: &Ctr) {
    let all: Vec<(i32, Running)> = (1..=50)
        .map(|n| {
            let (id, script) = (
                format!("box-{n}"),
                format!("read word; echo $word; exit {n}"),
            );
            let command = ctr.run_command(&["--rm"], &id, &["sh", "-c", &script]);
            (n, Running::with_stdin(command))
        })
        .collect();
    world::until("50 running containers", || {
        ctr.ok("task ls").matches("RUNNING").count() == 50
    });
    let all: Vec<_> = all
        .into_iter()
        .map(|(n, mut running)| {
            running.write(b"go\n");
            (n, running)
        })
        .collect();
    for (n, running) in all {
        running.wait_with_open_stdin().expect(n, "go\n");
    }
}

pub fn checkpoint_and_restore(ctr: &Ctr) {
    if !world::criu_works() {
        return;
    }
    // `/run` is a tmpfs, and so a part of the checkpoint.
    let script = "cat /proc/uptime >/run/start; n=0; while :; do n=$((n + 1)); echo $n >/run/n; sleep 0.1; done";
    ctr.detached("box", script);
    counts_past(ctr, "box", 3);
    let start = ctr.exec("box", "start", "cat /run/start").stdout;
    let image = "localhost/checkpoint:1";
    let checkpoint = format!("containers checkpoint --image --rw --task box {image}");
    ctr.ok(&checkpoint);
    assert_eq!(ctr.task("box").expect("a task").1, "RUNNING");
    ctr.remove("box");

    ctr.ok(&format!("containers restore --rw --live again {image}"));
    ctr.until_status("again", "RUNNING");
    ctr.exec("again", "start", "cat /run/start")
        .expect(0, &start);
    let mut counted = 0;
    world::until("again to count", || {
        counted = count(ctr, "again").unwrap_or_default();
        counted > 0
    });
    counts_past(ctr, "again", counted);
    assert!(ctr.ok("task metrics again").contains("pids.current"));
    ctr.remove("again");
    ctr.ok(&format!("images rm {image}"));
}

/// What the container `id` counted up to; the file may be just being written.
fn count(ctr: &Ctr, id: &str) -> Option<u32> {
    let file = ctr.exec(id, "count", "cat /run/n").stdout;
    file.trim().parse().ok()
}

fn counts_past(ctr: &Ctr, id: &str, number: u32) {
    world::until(&format!("{id} to count past {number}"), || {
        count(ctr, id).is_some_and(|counted| counted > number)
    });
}

pub fn command_not_found(ctr: &Ctr) {
    // The runtime's own words, which differ, must come through.
    let done = ctr.run(&["--rm"], "box", &["no-such-command"]);
    done.expect_error("no-such-command");
    done.expect_error("not found in $PATH");
    assert_eq!(ctr.task("box"), None);
    still_works(ctr);
}

pub fn broken_config(ctr: &Ctr) {
    let config = "/run/containerd/broken.json";
    let broken = [
        // Valid JSON, and no container: no process, no root.
        r#"{"ociVersion": "1.0.2"}"#,
        r#"{"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": {"args": [], "cwd": "/"}}"#,
        r#"{"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": {"args": ["true"], "cwd": "not/absolute"}}"#,
    ];
    for text in broken {
        fs::write(config, text).expect("write config");
        let words = [
            "run",
            "--rm",
            "--runtime",
            ctr.runtime(),
            "--config",
            config,
            "box",
        ];
        Running::start(ctr.command(words))
            .wait()
            .expect_error("OCI runtime create failed");
        assert_eq!(ctr.task("box"), None);
        ctr.call("container delete box");
    }
    still_works(ctr);
}

pub fn id_in_use(ctr: &Ctr) {
    ctr.detached("box", STAY);
    let done = ctr.run(&["-d"], "box", &["true"]);
    done.expect_error("already exists");
    ctr.call("task start -d box").expect_error("already exists");
    assert_eq!(ctr.task("box").expect("a task").1, "RUNNING");
    ctr.remove("box");
}

pub fn unknown_runtime_binary(ctr: &Ctr) {
    // `ctr` passes the runtime's options on for containerd's own name only.
    if ctr.naming == Naming::DropIn {
        let done = ctr.run(&["--rm", "--runc-binary", "no-runc"], "box", &["true"]);
        done.expect_error("exec: \"no-runc\": executable file not found in $PATH");
        assert_eq!(ctr.task("box"), None);
    }
    still_works(ctr);
}

/// Pauses the container `box`. runc on cgroup v1 gives up ("unable to freeze") on one
/// that is busy starting, whoever asks.
fn pause(ctr: &Ctr) {
    world::until("the container to freeze", || {
        let done = ctr.call("task pause box");
        let busy = done.stderr.contains("unable to freeze");
        assert!(done.status.success() || busy, "{done:?}");
        !busy
    });
}

/// After an error, the next container is fine.
fn still_works(ctr: &Ctr) {
    ctr.call("container delete box");
    ctr.run(&["--rm"], "box", &["echo", "fine"])
        .expect(0, "fine\n");
}

/// The pids that `ctr task ps` shows for the container `box`.
fn pids(ctr: &Ctr) -> Vec<i32> {
    let list = ctr.ok("task ps box");
    list.lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect()
}

/// Runs `command` on a terminal of 33 rows and 121 columns, types `input`, and
/// returns all it printed and its exit code.
pub fn on_terminal(command: Command, input: &str) -> (String, i32) {
    typed(command, &[("", input)])
}

/// As [`on_terminal`], in steps: what must be printed after the last step, and what is then typed.
pub fn typed(mut command: Command, steps: &[(&str, &str)]) -> (String, i32) {
    let size = Winsize {
        ws_row: 33,
        ws_col: 121,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let OpenptyResult { master, slave } = openpty(&size, None).expect("open a terminal");
    let end = || Stdio::from(slave.try_clone().expect("dup"));
    let mut child = command
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .expect("spawn a program");
    drop((command, slave));
    let mut master = File::from(master);
    let printed = Arc::new(Mutex::new(Vec::new()));
    let text = || String::from_utf8_lossy(&printed.lock().expect("no panic")).into_owned();
    let (send, receive) = std::sync::mpsc::channel();
    let (mut from, to) = (master.try_clone().expect("dup"), printed.clone());
    std::thread::spawn(move || {
        // The end of a terminal is an error, EIO.
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            to.lock()
                .expect("no panic")
                .extend_from_slice(&buffer[..count]);
        }
        let status = child.wait().expect("wait for a program");
        let _ = send.send(status.code().unwrap_or(-1));
    });
    let mut seen = 0;
    for (wanted, input) in steps {
        let what = format!("{wanted:?} on a terminal");
        world::until(&what, || {
            let text = text();
            let found = text[seen..].find(wanted);
            seen += found.map_or(0, |start| start + wanted.len());
            found.is_some()
        });
        master.write_all(input.as_bytes()).expect("type");
    }
    match receive.recv_timeout(world::limit()) {
        Ok(code) => (text(), code),
        Err(_) => panic!("waited {:?} for the end of {:?}", world::limit(), text()),
    }
}
