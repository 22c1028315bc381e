//! What containers write and read, in bulk and while things fail: not a byte is lost,
//! added or out of place. With `HEAVY=1` in the environment as much as users move in
//! earnest (gigabytes, a hundred terminals), which takes minutes.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::cases::on_terminal;
use crate::ctr::Ctr;
use crate::world;

/// What the containers here share with their test.
const SHARE: &str = "/run/containerd/share";
const MOUNT: &str = "type=bind,src=/run/containerd/share,dst=/share,options=rbind:rw";

/// Counts aloud until it is told to stop, says what it came to, and stays until it is
/// told to go.
const COUNT: &str = "n=10000000; while [ ! -e /share/stop ]; do n=$((n+1)); echo $n; done; \
                     echo $n >/share/last.new; mv /share/last.new /share/last; read x </share/go";
/// Its first line, and the length of each.
const FIRST: usize = 10_000_001;
const LINE: usize = 9;
/// What `ctr` holds, which dies with it.
const HELD_BY_CTR: usize = 32 << 10;

/// A number that depends on `HEAVY`.
fn scaled(light: usize, heavy: usize) -> usize {
    match world::is_heavy() {
        true => heavy,
        false => light,
    }
}

/// Puts 16 MiB and a bit that do not repeat into the share: `/share/block`.
fn block() -> Vec<u8> {
    let mut state = 1_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let block: Vec<u8> = words.take((2 << 20) + 11).flatten().collect();
    fs::create_dir(SHARE).expect("make the share");
    fs::write(format!("{SHARE}/block"), &block).expect("write the block");
    block
}

/// Reads `from` to its end: `block`, so many times.
fn assert_repeats(mut from: impl Read, block: &[u8], times: usize) {
    let (mut buffer, mut at) = (vec![0; 1 << 20], 0);
    loop {
        let mut rest = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => panic!("read: {error}"),
        };
        while !rest.is_empty() {
            let wanted = &block[at % block.len()..];
            let count = rest.len().min(wanted.len());
            assert!(rest[..count] == wanted[..count], "wrong after byte {at}");
            (rest, at) = (&rest[count..], at + count);
        }
    }
    assert_eq!(at, block.len() * times, "bytes in all");
}

fn spawn(mut command: Command) -> Child {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    child.expect("spawn ctr")
}

fn assert_success(mut child: Child) {
    assert!(child.wait().expect("wait for ctr").success());
}

/// Runs `script`, which writes the block so many times.
fn assert_writes(ctr: &Ctr, script: &str, times: usize) {
    let block = block();
    let args = [
        "sh",
        "-c",
        &format!("for i in $(seq {times}); do {script}; done"),
    ];
    let mut child = spawn(ctr.run_command(&["--rm", "--mount", MOUNT], "box", &args));
    assert_repeats(child.stdout.take().expect("piped"), &block, times);
    assert_success(child);
}

pub fn large_output(ctr: &Ctr) {
    assert_writes(ctr, "cat /share/block", scaled(16, 256));
}

pub fn output_in_small_writes(ctr: &Ctr) {
    assert_writes(ctr, "dd if=/share/block bs=61 2>/dev/null", scaled(1, 64));
}

/// `echo LINE | ctr run`: it sends CloseIO only once it has the answer to its Create.
pub fn short_input_ends(ctr: &Ctr) {
    let mut child = spawn(ctr.run_command(&["--rm"], "box", &["cat"]));
    let mut input = child.stdin.take().expect("piped");
    input.write_all(b"line\n").expect("write to ctr");
    drop(input);
    assert_repeats(child.stdout.take().expect("piped"), b"line\n", 1);
    assert_success(child);
}

pub fn large_input_is_echoed(ctr: &Ctr) {
    let (block, times) = (block(), scaled(4, 64));
    let mut child = spawn(ctr.run_command(&["--rm"], "box", &["cat"]));
    let mut input = child.stdin.take().expect("piped");
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..times {
                input.write_all(&block).expect("write to ctr");
            }
            drop(input);
        });
        assert_repeats(child.stdout.take().expect("piped"), &block, times);
    });
    assert_success(child);
}

pub fn large_output_of_terminals(ctr: &Ctr) {
    const LAST: usize = 500_000;
    // One carriage return is the container's terminal's, the other that of `ctr`.
    let lines: Vec<String> = (1..=LAST).map(|n| format!("{n}\r\r\n")).collect();
    let wanted = lines.concat();
    ctr.detached("box", "exec sleep 1000");
    for round in 0..scaled(2, 100) {
        let (exec, last) = (format!("tty-{round}"), LAST.to_string());
        let words = [
            "task",
            "exec",
            "-t",
            "--exec-id",
            &exec,
            "box",
            "seq",
            &last,
        ];
        let (output, code) = on_terminal(ctr.command(words), "");
        assert_eq!((output.len(), code), (wanted.len(), 0), "round {round}");
        assert!(output == wanted, "round {round}: not in order");
    }
    ctr.remove("box");
}

/// Starts the container that counts, in the background.
fn start_counting(ctr: &Ctr, options: &[&str]) {
    fs::create_dir(SHARE).expect("make the share");
    let made = Command::new("mkfifo")
        .args([format!("{SHARE}/begin"), format!("{SHARE}/go")])
        .status();
    assert!(made.expect("run mkfifo").success());
    let script = format!("read x </share/begin; {COUNT}");
    let done = ctr.run(
        &[&["-d", "--mount", MOUNT], options].concat(),
        "box",
        &["sh", "-c", &script],
    );
    assert!(done.status.success(), "{done:?}");
    // Now that the `ctr` which would read the output has ended.
    tell("begin");
}

/// Lets the container's `read` of that name go on.
fn tell(name: &str) {
    fs::write(format!("{SHARE}/{name}"), "now\n").expect("tell the container");
}

/// Tells the container to stop: how many bytes it has written in all.
fn stop_counting() -> usize {
    tell("stop");
    let last = format!("{SHARE}/last");
    world::until("the last number", || fs::metadata(&last).is_ok());
    let last = fs::read_to_string(last).expect("read the last number");
    (last.trim().parse::<usize>().expect("a number") + 1 - FIRST) * LINE
}

/// Tells the container to go, and removes it.
fn remove_counter(ctr: &Ctr) {
    tell("go");
    ctr.until_status("box", "STOPPED");
    ctr.ok("task delete box");
    ctr.ok("container delete box");
}

/// So many bytes of what is counted, from byte `start` on.
fn counted(start: usize, length: usize) -> Vec<u8> {
    let lines = start / LINE..(start + length) / LINE + 1;
    let text: Vec<String> = lines.map(|line| format!("{}\n", FIRST + line)).collect();
    text.concat().as_bytes()[start % LINE..][..length].to_vec()
}

/// Where in what is counted a part of it begins.
fn place(part: &[u8]) -> usize {
    let cut = part.iter().position(|&byte| byte == b'\n').expect("a line") + 1;
    let number = std::str::from_utf8(&part[cut..][..LINE - 1]).expect("digits");
    let number: usize = number.parse().expect("a number");
    (number - FIRST) * LINE - cut
}

fn assert_counted(part: &[u8], start: usize) {
    assert!(
        part == counted(start, part.len()),
        "wrong after byte {start}"
    );
}

/// The client's end of the container's stdout.
fn stdout_fifo() -> File {
    let directory = "/run/containerd/fifo";
    let [set] = &world::names(directory)[..] else {
        panic!("one set of FIFOs wanted: {:?}", world::names(directory));
    };
    File::open(format!("{directory}/{set}/box-stdout")).expect("open the FIFO")
}

pub fn clients_killed_during_output(ctr: &Ctr) {
    const PART: usize = 1 << 19;
    start_counting(ctr, &[]);
    let mut at = 0;
    for round in 0..scaled(4, 50) {
        let mut client = spawn(ctr.command(["task", "attach", "box"]));
        let mut output = client.stdout.take().expect("piped");
        let mut part = vec![0; PART];
        output.read_exact(&mut part).expect("read from ctr");
        client.kill().expect("kill ctr");
        client.wait().expect("wait for ctr");
        output.read_to_end(&mut part).expect("read from ctr");
        let start = place(&part);
        assert!(
            (at..=at + HELD_BY_CTR).contains(&start),
            "round {round}: {start} after {at}"
        );
        assert_counted(&part, start);
        at = start + part.len();
    }
    // Nobody has taken the rest: it is all there.
    let mut fifo = stdout_fifo();
    let mut rest = vec![0; PART];
    fifo.read_exact(&mut rest).expect("read the FIFO");
    let reading = thread::spawn(move || fifo.read_to_end(&mut rest).map(|_| rest));
    let total = stop_counting();
    remove_counter(ctr);
    let rest = reading.join().expect("the reader").expect("read the FIFO");
    let start = place(&rest);
    assert!(
        (at..=at + HELD_BY_CTR).contains(&start),
        "{start} after {at}"
    );
    assert_counted(&rest, start);
    assert_eq!(start + rest.len(), total, "bytes in all");
}

pub fn containerd_restarted_during_output(ctr: &Ctr) {
    const PART: usize = 1 << 20;
    start_counting(ctr, &[]);
    let mut fifo = stdout_fifo();
    let mut output = vec![0; PART];
    fifo.read_exact(&mut output).expect("read the FIFO");
    for _ in 0..scaled(1, 5) {
        world::stop_containerd();
        let mut part = vec![0; PART];
        fifo.read_exact(&mut part).expect("read the FIFO");
        output.extend(part);
        world::start_containerd();
    }
    let reading = thread::spawn(move || fifo.read_to_end(&mut output).map(|_| output));
    let total = stop_counting();
    remove_counter(ctr);
    let output = reading.join().expect("the reader").expect("read the FIFO");
    assert_eq!(output.len(), total, "bytes in all");
    assert_counted(&output, 0);
}

pub fn containerd_restarted_during_output_to_a_logger(ctr: &Ctr) {
    let (logger, log) = ("/run/containerd/logger", "/run/containerd/log");
    fs::write(logger, "#!/bin/sh\nexec 5>&-\nexec /bin/cat <&3 >$2\n").expect("write the logger");
    fs::set_permissions(logger, fs::Permissions::from_mode(0o755)).expect("make it executable");
    start_counting(ctr, &["--log-uri", &format!("binary://{logger}?log={log}")]);
    let size = || fs::metadata(log).map_or(0, |file| file.len());
    let grows = || {
        let before = size();
        world::until("more output", || size() > before);
    };
    grows();
    for _ in 0..scaled(1, 5) {
        world::stop_containerd();
        grows();
        world::start_containerd();
    }
    grows();
    let total = stop_counting();
    remove_counter(ctr);
    let output = fs::read(log).expect("read the log");
    assert_eq!(output.len(), total, "bytes in all");
    assert_counted(&output, 0);
}
