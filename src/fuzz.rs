//! What is fuzzed: the parsers of all that comes from outside, and the server's socket with the
//! real services behind it. `fuzz/` gives them what libFuzzer finds; the test here gives them
//! the inputs in `fuzz/corpus`.
//!
//! Promises: no target changes anything outside of a directory of its own. The processes of
//! `server` exist only here: see [`crate::reaper::fake`].

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::bundle::{Bundle, Spec};
use crate::cgroup;
use crate::cli::{self, Flags};
use crate::mount::options::MountOptions;
use crate::options::Options;
use crate::proto::{Any, Message};
use crate::runtime::flavor;
use crate::start::Request;
use crate::stdio::target::Target;
use crate::ttrpc::frame::{Frame, FrameReader, Received};

#[cfg(test)]
mod mutations;
mod server;

/// A name, and what takes the bytes. It panics if they make the code break a promise.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[FuzzTarget] = &[
    ("bootstrap", bootstrap),
    ("cgroup_files", cgroup_files),
    ("cli", cli),
    ("config", config),
    ("frames", frames),
    ("mount_options", mount_options),
    ("options", options),
    ("runtime_log", runtime_log),
    ("server", server::requests),
    ("stdio_uri", stdio_uri),
];

/// The lines of `data`, as text.
fn lines(data: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(data);
    text.split('\n').map(str::to_owned).collect()
}

/// Arguments, a line each; the last line is the value of all environment variables.
fn cli(data: &[u8]) {
    let mut args: Vec<OsString> = lines(data).into_iter().map(OsString::from).collect();
    let value = args.pop().filter(|value| !value.is_empty());
    if let Err(error) = cli::parse(&args, |_| value.clone()) {
        assert!(!error.to_string().is_empty());
    }
}

/// What containerd writes to `start`'s stdin.
fn bootstrap(data: &[u8]) {
    let flags = Flags {
        namespace: "ns".into(),
        id: "c".into(),
        ..Flags::default()
    };
    let _ = Request::decode(&flags, data);
}

/// The options of a container, of any type. What was decoded is the same when it is read from the
/// bundle after a restart.
fn options(data: &[u8]) {
    let Ok(any) = Any::parse_from_bytes(data) else {
        return;
    };
    let Ok(mut options) = Options::decode(Some(&any)) else {
        return;
    };
    // Create uses it before it writes the file.
    options.is_systemd_refused = false;
    let dir = tempfile::tempdir().expect("a bundle");
    let bundle = Bundle::at(dir.path());
    bundle.write_options(&options).expect("write options.json");
    assert_eq!(bundle.options().expect("read options.json"), options);
}

/// `config.json`, and `options.json` of the same text.
fn config(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a bundle");
    let bundle = Bundle::at(dir.path());
    for name in ["config.json", "options.json", "init.pid", "address"] {
        fs::write(dir.path().join(name), data).expect(name);
    }
    if let Ok(spec) = bundle.spec() {
        let _: bool = Spec::has_private_pid_namespace(&spec);
    }
    let _ = bundle.options();
    let _ = bundle.address();
    if let Ok(Some(pid)) = bundle.init_pid() {
        assert!(pid > 0, "a process group would be signalled");
    }
}

/// Logs of the OCI runtimes and of CRIU.
fn runtime_log(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let error = flavor::last_error(data).unwrap_or_default();
    flavor::criu_error(&text);
    for text in [&*text, &error] {
        flavor::says_no_such_container(text);
        flavor::says_process_finished(text);
    }
}

/// The first of two lines that are equal separates what the files have; each file gets one part,
/// in turns.
fn cgroup_files(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for _ in cgroup::files::keyed(&text) {}
    for (_, pairs) in cgroup::files::nested(&text) {
        for _ in pairs {}
    }
    for line in text.lines() {
        cgroup::files::device(line);
        cgroup::files::number(line);
        cgroup::value(line, "oom_kill");
    }
    for _ in cgroup::files::rdma_devices(&text) {}

    let root = tempfile::tempdir().expect("a root");
    let parts: Vec<&str> = text.split("\n--\n").collect();
    let part = |n: usize| parts[n % parts.len()];
    let dir = root.path().join("sys/fs/cgroup/c");
    for (n, name) in CGROUP_FILES.iter().enumerate() {
        write(&dir.join(name), part(n + 2));
    }
    for process in ["7", "self"] {
        write(
            &root.path().join("proc").join(process).join("cgroup"),
            part(0),
        );
    }
    write(&root.path().join("proc/self/mountinfo"), part(1));
    if let Ok(found) = cgroup::Cgroup::of_in(root.path(), 7) {
        let _ = found.stats();
        let _ = found.pids();
    }
}

const CGROUP_FILES: &[&str] = &[
    "cpu.stat",
    "memory.stat",
    "memory.current",
    "memory.events",
    "memory.max",
    "memory.usage_in_bytes",
    "memory.oom_control",
    "pids.current",
    "pids.max",
    "io.stat",
    "cpuacct.usage_percpu",
    "blkio.throttle.io_service_bytes_recursive",
    "rdma.current",
    "cgroup.controllers",
    "cgroup.procs",
    "cpu.pressure",
    "memory.pressure",
    "io.pressure",
    "cpuacct.stat",
    "blkio.throttle.io_serviced",
    "hugetlb.2MB.current",
    "hugetlb.2MB.usage_in_bytes",
];

fn write(file: &Path, text: &str) {
    fs::create_dir_all(file.parent().expect("a directory")).expect("make the directory");
    fs::write(file, text).expect("write the file");
}

/// Options of a mount, a line each. Shortened lower directories name the same directories.
fn mount_options(data: &[u8]) {
    let Ok(mut options) = MountOptions::parse(&lines(data)) else {
        return;
    };
    let paths = |options: &MountOptions, base: &Path| -> Vec<PathBuf> {
        let (_, dirs) = options.lower_dirs().unwrap_or_default();
        dirs.into_iter().map(|dir| base.join(dir)).collect()
    };
    let before = paths(&options, Path::new("/"));
    let base = options.compact_lower_dirs().unwrap_or_else(|| "/".into());
    assert_eq!(paths(&options, &base), before);
}

/// The URI of a stream.
fn stdio_uri(data: &[u8]) {
    let _ = Target::parse(&String::from_utf8_lossy(data));
}

/// Frames of a client. They are the same in pieces of each size.
fn frames(data: &[u8]) {
    let whole = read_frames(data, usize::MAX);
    for piece in [1, 3, 4096] {
        assert_eq!(read_frames(data, piece), whole, "in pieces of {piece}");
    }
    for body in whole.into_iter().flatten() {
        // What the shim takes for a request is one for others as well.
        if let Ok(received) = Received::decode(body.clone())
            && let Ok(request) = ttrpc::proto::Request::parse_from_bytes(&body)
        {
            assert_eq!(received.service, request.service);
            assert_eq!(received.method, request.method);
            assert_eq!(received.payload, request.payload);
            assert_eq!(received.timeout_nano, request.timeout_nano);
        }
    }
}

/// The bodies, `None` for one that is too large, until the end or an error.
fn read_frames(mut data: &[u8], piece: usize) -> Vec<Option<Vec<u8>>> {
    let mut reader = FrameReader::of_requests();
    let mut read = |room: &mut [u8]| -> io::Result<usize> {
        let length = room.len().min(data.len()).min(piece);
        room[..length].copy_from_slice(&data[..length]);
        data = &data[length..];
        Ok(length)
    };
    let mut frames = Vec::new();
    while let Ok(Some(frame)) = reader.pull(&mut read) {
        frames.push(match frame {
            Frame::Message { body, .. } => Some(body),
            Frame::Oversize { .. } => None,
        });
    }
    frames
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::time::Duration;

    use super::mutations::{self, Limit, Random};
    use super::*;

    /// Mutated inputs of each target, without FUZZ_SECONDS.
    const DEFAULT_EXECUTIONS: u64 = 50;

    /// Where `corpus` and `findings` are.
    fn fuzz_dir() -> PathBuf {
        let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        env::var_os("FUZZ_DIR").map_or_else(default, PathBuf::from)
    }

    /// The committed inputs, in one order.
    fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let dir = fuzz_dir().join("corpus").join(name);
        let files = fs::read_dir(dir).expect(name);
        let mut inputs: Vec<_> = files
            .map(|file| file.expect(name).path())
            .map(|file| (file.clone(), fs::read(&file).expect(name)))
            .collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{name} has no input");
        inputs
    }

    fn number(variable: &str) -> Option<u64> {
        let value = env::var(variable).ok()?;
        Some(value.parse().expect(variable))
    }

    #[test]
    fn committed_inputs_break_no_promise() {
        for (name, target) in TARGETS {
            for (file, input) in corpus(name) {
                println!("{}", file.display());
                target(&input);
            }
        }
    }

    /// `hack/fuzz --short` runs it for FUZZ_SECONDS a target, with a FUZZ_SEED of its own.
    #[test]
    fn mutated_inputs_break_no_promise() {
        let seed = number("FUZZ_SEED").unwrap_or(0);
        let limit = match number("FUZZ_SECONDS") {
            Some(seconds) => Limit::Time(Duration::from_secs(seconds)),
            None => Limit::Executions(DEFAULT_EXECUTIONS),
        };
        println!("FUZZ_SEED={seed}");
        let mut findings = 0;
        for target in TARGETS {
            let name = target.0;
            let inputs = corpus(name).into_iter().map(|(_, input)| input).collect();
            let outcome = mutations::run(*target, inputs, Random::new(seed, name), limit);
            println!("{name:<14} {:>9} executions", outcome.executions);
            if let Some((input, how)) = outcome.finding {
                let file = fuzz_dir().join("findings");
                fs::create_dir_all(&file).expect("a directory for findings");
                let file = file.join(format!("{name}-{seed}-{}", outcome.executions));
                fs::write(&file, input).expect("write the finding");
                println!("{name} {how} with {}", file.display());
                findings += 1;
            }
        }
        assert_eq!(findings, 0, "inputs that break a promise");
    }

    #[test]
    fn mutations_find_an_input_that_breaks_a_promise() {
        let target: FuzzTarget = ("magic", |data| assert_ne!(data.first(), Some(&b'M')));
        let run = |seed| {
            let random = Random::new(seed, target.0);
            mutations::run(
                target,
                vec![b"Large".to_vec()],
                random,
                Limit::Executions(100_000),
            )
        };
        let (input, how) = run(7).finding.expect("a finding");
        assert_eq!((input[0], how), (b'M', "panics"));
        assert_eq!(run(7).finding.expect("the same finding").0, input);
    }
}
