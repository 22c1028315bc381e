//! What `docker run`, `exec`, `attach` and `logs` do.

use std::path::Path;

use crate::docker::{Docker, STAY};
use crate::world;

pub fn exit_code_and_output(d: &Docker) {
    let done = d.run("", "echo out; echo err >&2; exit 7");
    done.expect(7, "out\n");
    assert_eq!(done.stderr, "err\n");
    let much = d.run("", "yes 0123456789abcde | head -c 4000000");
    assert_eq!((much.code, much.stdout.len()), (0, 4_000_000));
    d.start("box", "", STAY);
    assert!(d.server("box").is_some(), "the shim of a running container");
    d.remove("box");
}

pub fn exit_codes_125_126_and_127(d: &Docker) {
    let missing = "--mount type=bind,source=/no/such/directory,target=/mnt";
    d.run(missing, "true")
        .expect_error(125, "/no/such/directory");
    let run = |command: &str| d.call(&format!("{} {command}", d.run_words("--rm")));
    run("/etc").expect_error(126, "permission denied");
    run("no-such-command").expect_error(127, "no-such-command");
    run("/no/such/command").expect_error(127, "no such file or directory");
    // A failed container that is not removed by itself has the code, too.
    let words = d.run_words("--name failed");
    d.call(&format!("{words} no-such-command"))
        .expect_error(127, "not found");
    assert_eq!(d.inspect("failed", "{{.State.ExitCode}}"), "127");
    assert_eq!(d.status("failed"), "created");
    d.remove("failed");
}

pub fn input_until_its_end(d: &Docker) {
    let data = "twelve bytes".repeat(20_000);
    let mut cat = d.session(&d.run_words("--rm -i"), "cat; echo; echo end; exit 3");
    cat.write(data.as_bytes());
    cat.close_input();
    let (code, output) = cat.wait();
    assert_eq!(code, 3);
    assert!(
        output == format!("{data}\nend\n"),
        "{} bytes came back",
        output.len()
    );
}

/// Waits for the terminal's size, which comes with a resize after the start.
const TERMINAL: &str =
    "until [ \"$(stty size)\" = '33 121' ]; do :; done; tty; read word; echo \"<$word>\"; exit 5";

pub fn terminal(d: &Docker) {
    let mut session = d.session_on_terminal(&d.run_words("--rm -it"), Some(TERMINAL));
    session.until_output("/dev/pts/0");
    session.write(b"hello\r");
    let (code, output) = session.wait();
    assert!(output.contains("<hello>"), "{output:?}");
    assert_eq!(code, 5);
}

pub fn exec(d: &Docker) {
    d.start("box", "", STAY);
    let exec = |options: &str, script: &str| d.script(&format!("exec {options} box"), script);
    exec("", "echo out; exit 3").expect(3, "out\n");
    exec("-w /tmp -e WORD=hello -u 65534", "pwd; echo $WORD; id -u")
        .expect(0, "/tmp\nhello\n65534\n");
    exec("", "kill -9 $$").expect(137, "");
    let mut cat = d.session_words("exec -i box cat");
    cat.write(b"in and out\n");
    cat.close_input();
    assert_eq!(cat.wait(), (0, "in and out\n".to_owned()));
    let missing = d.call("exec box no-such-command");
    // Before Docker 23 it is 126.
    assert!([126, 127].contains(&missing.code), "{missing:?}");
    assert!((missing.stdout + &missing.stderr).contains("no-such-command"));
    // In the background, and seen by `docker top`.
    d.ok("exec -d box sleep 2000");
    world::until("the exec in the background", || {
        d.ok("top box").contains("sleep 2000")
    });
    // The container's end is the end of its execs.
    let running = d.session("exec box", "echo ready; exec sleep 3000");
    running.until_output("ready");
    d.ok("kill box");
    assert_eq!(running.wait().0, 137);
    assert_eq!(d.wait("box"), 137);
    d.remove("box");
}

pub fn exec_with_a_terminal(d: &Docker) {
    d.start("box", "", STAY);
    let mut session = d.session_on_terminal("exec -it box", Some(TERMINAL));
    session.until_output("/dev/pts/0");
    session.write(b"hello\r");
    let (code, output) = session.wait();
    assert!(output.contains("<hello>"), "{output:?}");
    assert_eq!(code, 5);
    d.remove("box");
}

pub fn attach_and_detach(d: &Docker) {
    d.start(
        "box",
        "-it",
        "while read word; do echo \"<$word>\"; [ $word != end ] || exit 4; done",
    );
    // Ctrl-p Ctrl-q is Docker's word for "detach".
    for word in ["one", "two"] {
        let mut attached = d.session_on_terminal("attach box", None);
        attached.write(format!("{word}\r").as_bytes());
        attached.until_output(&format!("<{word}>"));
        attached.write(b"\x10\x11");
        attached.wait();
        assert_eq!(d.status("box"), "running");
    }
    let mut attached = d.session_on_terminal("attach box", None);
    attached.write(b"end\r");
    let (code, output) = attached.wait();
    assert!(output.contains("<end>"), "{output:?}");
    assert_eq!(code, 4);
    d.remove("box");

    // Several clients see the same; one that is killed disturbs nobody.
    let ticks = "until [ -e /tmp/go ]; do echo tick; sleep 0.1; done; echo bye; exit 6";
    d.start("box", "", ticks);
    let [one, two, mut killed] = [(); 3].map(|()| {
        let attached = d.session_words("attach box");
        attached.until_output("tick");
        attached
    });
    killed.kill();
    d.ok("exec box touch /tmp/go");
    for (code, output) in [one.wait(), two.wait()] {
        assert!(code == 6 && output.ends_with("bye\n"), "{code} {output:?}");
    }
    d.remove("box");
}

pub fn logs(d: &Docker) {
    let script = "echo begin; echo warning >&2; seq 1 20000; until [ -e /tmp/go ]; do sleep 0.1; done; echo end; exit 2";
    d.start("box", "", script);
    let follow = d.session_words("logs --follow box");
    follow.until_output("\n20000\n");
    d.ok("exec box touch /tmp/go");
    assert_eq!(d.wait("box"), 2);
    let (code, output) = follow.wait();
    assert!(
        code == 0 && output.ends_with("\nend\n"),
        "logs --follow: {code}"
    );
    let logs = d.call("logs box");
    let lines: Vec<_> = logs.stdout.lines().collect();
    assert_eq!(
        (lines.len(), lines[0], lines[20_000], lines[20_001]),
        (20_002, "begin", "20000", "end")
    );
    assert_eq!(logs.stderr, "warning\n");
    d.call("logs --tail 1 box").expect(0, "end\n");
    d.remove("box");
}

pub fn device(d: &Docker) {
    d.run("", "test -e /dev/other").expect(1, "");
    let done = d.run("--device /dev/full:/dev/other", "echo x >/dev/other");
    done.expect_error(1, "No space left on device");
    // The cgroup's own list of devices refuses what was not asked for.
    let done = d.run(
        "--cap-add MKNOD",
        "mknod /tmp/full c 1 11 && echo x >/tmp/full",
    );
    done.expect_error(1, "Operation not permitted");
}

pub fn read_only(d: &Docker) {
    let script = "echo x >/file; echo $?; echo x >/tmp/file; echo $?";
    let done = d.run("--read-only --tmpfs /tmp", script);
    done.expect(0, "1\n0\n");
    assert!(done.stderr.contains("Read-only file system"), "{done:?}");
}

pub fn init(d: &Docker) {
    // An orphan that has ended is reaped by the init of the container.
    let script = "cat /proc/1/comm; (true & echo $! >/tmp/pid) & wait; \
        while [ -e /proc/$(cat /tmp/pid) ]; do :; done; exit 6";
    let done = d.run("--init", script);
    assert_eq!(done.code, 6, "{done:?}");
    assert!(
        ["docker-init\n", "tini\n"].contains(&done.stdout.as_str()),
        "{done:?}"
    );
    // It passes signals on.
    d.start(
        "box",
        "--init",
        "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done",
    );
    d.until_logged("box", "ready");
    d.ok("stop box");
    assert_eq!(d.wait("box"), 9);
    d.remove("box");
}

pub fn pid_namespace_of_the_host(d: &Docker) {
    d.start(
        "box",
        "--pid host",
        "sleep 2000 & echo ready; exec sleep 1000",
    );
    d.until_logged("box", "ready");
    let sleeps = || {
        let all = world::processes();
        all.iter()
            .filter(|(_, line)| line.starts_with("sleep "))
            .count()
    };
    assert_eq!(sleeps(), 2);
    d.script("exec box", "cat /proc/1/comm").expect(0, "bash\n");
    // A process that loses its parent goes to the shim, which reaps it.
    let orphan = d.script("exec box", "(sleep 0.1 & echo $!)").stdout;
    let process = format!("/proc/{}", orphan.trim());
    world::until("the orphan to be reaped", || !Path::new(&process).exists());
    assert_eq!(d.status("box"), "running");
    d.ok("kill box");
    assert_eq!(d.wait("box"), 137);
    world::until("the container's other process to end", || sleeps() == 0);
    d.remove("box");
}

pub fn pid_namespace_of_another_container(d: &Docker) {
    d.start("first", "", "sleep 2000 & exec sleep 1000");
    d.start(
        "second",
        "--pid container:first",
        "sleep 3000 & exec sleep 4000",
    );
    let seen = d.script("exec second", "cat /proc/1/cmdline | tr '\\0' ' '");
    seen.expect(0, "sleep 1000 ");
    d.ok("kill second");
    assert_eq!(d.wait("second"), 137);
    let left = d.script("exec first", "ps");
    assert!(
        left.code == 0 && !left.stdout.contains("sleep 4000"),
        "{left:?}"
    );
    d.ok("start second");
    // The end of the namespace's init is everybody's end.
    d.ok("kill first");
    assert_eq!((d.wait("first"), d.wait("second")), (137, 137));
    d.remove("first");
    d.remove("second");
}

pub fn memory_limit(d: &Docker) {
    d.start("box", "-m 16m --memory-swap 16m", "exec tail /dev/zero");
    assert_eq!(d.wait("box"), 137);
    assert_eq!(d.inspect("box", "{{.State.OOMKilled}}"), "true");
    d.remove("box");
    d.start("box", "-m 16m --memory-swap 16m", STAY);
    d.ok("kill box");
    assert_eq!(d.wait("box"), 137);
    assert_eq!(d.inspect("box", "{{.State.OOMKilled}}"), "false");
    d.remove("box");
}

pub fn ten_at_once(d: &Docker) {
    let all: Vec<_> = (1..=10)
        .map(|number| {
            d.session(
                &d.run_words("--rm -i"),
                &format!("read word; echo $word; exit {number}"),
            )
        })
        .collect();
    world::until("10 running containers", || {
        d.ok("ps -q").lines().count() == 10
    });
    let shims = world::processes();
    assert_eq!(
        shims
            .iter()
            .filter(|(_, line)| line.contains(" -namespace moby "))
            .count(),
        10
    );
    for (number, mut session) in (1..).zip(all) {
        session.write(b"go\n");
        session.close_input();
        assert_eq!(session.wait(), (number, "go\n".to_owned()));
    }
}
