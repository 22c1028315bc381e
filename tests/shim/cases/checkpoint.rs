//! Checkpoint and restore, which are CRIU's work. Where it cannot work, a case says so
//! and is over; with `NO_SKIP` set that is a failure.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use containerd_shim_rs_v2::proto::types::Status;
use containerd_shim_rs_v2::proto::{Message, Mount, events, runc};
use serde_json::{Value, json};

use super::resources::{HOG, limit_of, short_of_memory, stats};
use crate::harness::container::{Builder, Container, Fifos};
use crate::harness::*;

/// Counts on its stdout until it is told to end.
const COUNT: &str = "trap 'exit 7' TERM; n=0; while :; do n=$((n + 1)); echo $n; sleep 0.1; done";

/// CRIU for one case at a time, if it works here and the runtime can use it: sockets of
/// its own, in the network of whoever it restores, have the same names every time.
fn criu(d: &Daemon) -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    static OBSTACLE: OnceLock<Option<String>> = OnceLock::new();
    let obstacle = OBSTACLE.get_or_init(|| {
        let shell = |command: &str| {
            process::run(
                Command::new("sh").args(["-c", command]),
                &[],
                d.hang_timeout,
            )
        };
        let check = shell("criu check");
        if check.status != 0 {
            return Some(format!("criu check: {}", check.stderr_text().trim()));
        }
        let version = shell(&format!("{} --version", runtime())).stdout_text();
        let able = version.starts_with("runc") || version.contains("+CRIU");
        (!able).then(|| format!("{} was built without CRIU", runtime()))
    });
    if let Some(obstacle) = obstacle {
        assert!(std::env::var_os("NO_SKIP").is_none(), "{obstacle}");
        eprintln!("SKIPPED: {obstacle}");
        return None;
    }
    // A case that failed has spoilt nothing.
    Some(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

fn options(change: impl FnOnce(&mut runc::CheckpointOptions)) -> runc::CheckpointOptions {
    let mut options = runc::CheckpointOptions::new();
    change(&mut options);
    options
}

/// The numbers that came so far, without the one that may still be coming.
fn numbers(text: &str) -> Vec<u32> {
    let (complete, _) = text.rsplit_once('\n').unwrap_or_default();
    complete
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect()
}

/// Waits until something beyond `number` came.
#[track_caller]
fn counts_past(d: &Daemon, fifos: &Fifos, number: u32) {
    d.eventually(&format!("to count past {number}"), || {
        numbers(&fifos.stdout.text())
            .last()
            .is_some_and(|&last| last > number)
    });
}

/// The container `c`, which has begun to count to `fifos`.
#[track_caller]
fn counting<'d>(d: &'d Daemon, fifos: &Fifos) -> Container<'d> {
    let c = d.shell("c", COUNT).stdio(fifos.stdio.clone()).run();
    counts_past(d, fifos, 3);
    c
}

/// The container `r`, to go on to `fifos` from the `image` that was made of `c`.
fn continuing<'d>(d: &'d Daemon, fifos: &Fifos, image: &Path, c: &Container) -> Builder<'d> {
    let r = d.shell("r", COUNT).stdio(fifos.stdio.clone());
    r.restored_from(image, c.cgroup())
}

/// Makes a checkpoint of `c`, which counts to `fifos`, and ends it. Answers the last
/// number that came.
#[track_caller]
fn checkpoint_and_end(
    c: &Container,
    fifos: &Fifos,
    image: &Path,
    mut options: runc::CheckpointOptions,
) -> u32 {
    options.exit = true;
    c.checkpoint_with(image.to_str().unwrap(), &options)
        .unwrap();
    assert_eq!(c.exit_status(), 137);
    let counted = numbers(&fifos.stdout.end());
    c.finish();
    *counted.last().expect("a number")
}

/// Asserts that what counts to `fifos` goes on after `counted`, and takes no number
/// twice and leaves none out.
#[track_caller]
fn continues(d: &Daemon, fifos: &Fifos, counted: u32) {
    counts_past(d, fifos, counted + 2);
    let went_on = numbers(&fifos.stdout.text());
    let expected: Vec<u32> = (counted + 1..).take(went_on.len()).collect();
    assert_eq!(went_on, expected);
}

/// Asserts that what counts to `fifos` goes on with a number from `first` to `last`, and
/// takes no number twice and leaves none out.
#[track_caller]
fn continues_within(d: &Daemon, fifos: &Fifos, first: u32, last: u32) {
    d.eventually("some numbers", || numbers(&fifos.stdout.text()).len() > 3);
    let went_on = numbers(&fifos.stdout.text())[0];
    let range = first..=last;
    assert!(
        range.contains(&went_on),
        "went on with {went_on}, not within {range:?}"
    );
    continues(d, fifos, went_on - 1);
}

/// With a network namespace of its own.
fn own_network(spec: &mut Value) {
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "network"}));
}

/// Counts over a TCP connection to itself, in the network of this machine: the runtime
/// restores a container's own one without its devices.
fn over_tcp<'d>(d: &'d Daemon, id: &str, fifos: &Fifos) -> Builder<'d> {
    let script = "sleep inf | nc -l -p 7000 &
        n=0; while :; do n=$((n + 1)); echo $n; sleep 0.1; done | until nc 127.0.0.1 7000; do sleep 0.1; done";
    d.shell(id, script).stdio(fifos.stdio.clone())
}

/// Tells ticks to a socket that a process outside listens on; it has the same path
/// inside, by which CRIU connects to it again.
fn to_outside<'d>(d: &'d Daemon, id: &str, socket: &Path) -> Builder<'d> {
    let mount =
        json!({"destination": socket, "type": "bind", "source": socket, "options": ["bind"]});
    let socket = socket.display();
    let script =
        format!("ln -s {socket} /dev/log; while :; do echo tick; sleep 0.1; done | busybox logger");
    let ticks = d.shell(id, &script);
    ticks.spec(|spec| spec["mounts"].as_array_mut().unwrap().push(mount))
}

/// Holds a lock, in this machine's own root: busybox has no flock.
fn with_lock<'d>(d: &'d Daemon, id: &str, fifos: &Fifos) -> Builder<'d> {
    let root = Mount {
        type_: "bind".into(),
        source: "/".into(),
        options: vec!["bind".into(), "ro".into()],
        ..Default::default()
    };
    let script = format!("exec 9>/tmp/lock; flock 9; {COUNT}");
    d.shell(id, &script)
        .stdio(fifos.stdio.clone())
        .mounts(vec![root])
}

cases! {
    fn process_continues_after_a_restore(d) {
        let Some(_criu) = criu(d) else { return };
        let (fifos, image) = (d.fifos("c"), d.path("image"));
        let c = counting(d, &fifos);
        let counted = checkpoint_and_end(&c, &fifos, &image, options(|_| ()));

        let fifos = d.fifos("r");
        let r = continuing(d, &fifos, &image, &c).created();
        assert_eq!((r.status(), r.state().unwrap().pid), (Status::CREATED, 0));
        let pid = r.start().unwrap();
        assert_eq!((r.status(), r.state().unwrap().pid), (Status::RUNNING, pid));
        continues(d, &fifos, counted);
        r.kill(15).unwrap();
        assert_eq!(r.exit_status(), 7);
        r.finish();
        assert_eq!(d.events.until("r", "delete"), ["create", "start", "exit", "delete"]);
        assert_eq!((d.events.get("r", "create").pid, d.events.get("r", "start").pid), (0, pid));
    }

    fn process_with_a_terminal_continues_after_a_restore(d) {
        let Some(_criu) = criu(d) else { return };
        let (fifos, image) = (d.terminal("c"), d.path("image"));
        let c = counting(d, &fifos);
        let counted = checkpoint_and_end(&c, &fifos, &image, options(|o| o.terminal = true));

        let fifos = d.terminal("r");
        let r = continuing(d, &fifos, &image, &c).run();
        continues(d, &fifos, counted);
        r.resize(100, 40).unwrap();
        let out = d.fifos("e");
        let e = r.exec_with("e", &["sh", "-c", "stty size </proc/1/fd/1"], &out.stdio).unwrap();
        e.start().unwrap();
        assert_eq!(out.stdout.end(), "40 100\n");
        r.kill(15).unwrap();
        assert_eq!(r.exit_status(), 7);
        r.finish();
    }

    fn container_keeps_running_after_a_checkpoint(d) {
        let Some(_criu) = criu(d) else { return };
        let (fifos, image) = (d.fifos("c"), d.path("image"));
        let c = counting(d, &fifos);
        c.checkpoint(image.to_str().unwrap()).unwrap();
        assert_eq!(c.status(), Status::RUNNING);
        let counted = *numbers(&fifos.stdout.text()).last().unwrap();
        counts_past(d, &fifos, counted + 2);
        let event = d.events.get("c", "checkpointed");
        let event = events::TaskCheckpointed::parse_from_bytes(&event.value).unwrap();
        assert_eq!(event.checkpoint, image.to_str().unwrap());
        assert!(!c.bundle.join("work/criu-work").exists());

        c.kill(15).unwrap();
        assert_eq!(c.exit_status(), 7);
        let all = numbers(&fifos.stdout.end());
        c.finish();

        let fifos = d.fifos("r");
        let r = continuing(d, &fifos, &image, &c).run();
        continues_within(d, &fifos, 2, *all.last().unwrap());
        r.end();
        r.finish();
    }

    fn paused_container_is_checkpointed(d) {
        let Some(_criu) = criu(d) else { return };
        let (fifos, image) = (d.fifos("c"), d.path("image"));
        let c = counting(d, &fifos);
        c.pause().unwrap();
        let counted = *numbers(&fifos.stdout.text()).last().unwrap();
        c.checkpoint(image.to_str().unwrap()).unwrap();
        assert_eq!(c.status(), Status::PAUSED);
        c.resume().unwrap();
        assert_eq!(c.status(), Status::RUNNING);
        counts_past(d, &fifos, counted + 2);
        c.end();
        let all = numbers(&fifos.stdout.end());
        c.finish();

        let fifos = d.fifos("r");
        let r = continuing(d, &fifos, &image, &c).run();
        assert_eq!(r.status(), Status::RUNNING);
        // What it wrote before the pause may have come after we looked.
        continues_within(d, &fifos, counted + 1, *all.last().unwrap());
        r.end();
        r.finish();
    }

    fn paused_container_exits_after_a_checkpoint_with_exit(d) {
        let Some(_criu) = criu(d) else { return };
        let (fifos, image) = (d.fifos("c"), d.path("image"));
        let c = counting(d, &fifos);
        c.pause().unwrap();
        let counted = checkpoint_and_end(&c, &fifos, &image, options(|_| ()));
        let fifos = d.fifos("r");
        let r = continuing(d, &fifos, &image, &c).run();
        continues(d, &fifos, counted);
        r.end();
        r.finish();
    }

    fn restored_container_supports_all_requests(d) {
        let Some(_criu) = criu(d) else { return };
        let (fifos, image) = (d.fifos("c"), d.path("image"));
        let c = counting(d, &fifos);
        let counted = checkpoint_and_end(&c, &fifos, &image, options(|_| ()));

        let fifos = d.fifos("r");
        let r = continuing(d, &fifos, &image, &c);
        let r = short_of_memory(r).run();
        continues(d, &fifos, counted);
        let (cpu, memory, pids) = stats(&r);
        assert!(cpu > 0 && memory > 0 && pids > 0, "cpu {cpu} ns, memory {memory} bytes, {pids} processes");
        assert_eq!(limit_of(&r, "memory"), (16 << 20).to_string());
        let all = r.pids().unwrap();
        assert!(all.iter().any(|p| p.pid == r.state().unwrap().pid), "{all:?}");

        let e = r.exec("e", &["sh", "-c", "exit 5"]).unwrap();
        e.start().unwrap();
        assert_eq!(e.exit_status(), 5);
        r.pause().unwrap();
        assert_eq!(r.status(), Status::PAUSED);
        r.resume().unwrap();
        r.update(Some(r#"{"pids": {"limit": 66}}"#)).unwrap();
        assert_eq!(limit_of(&r, "pids"), "66");

        let hog = r.exec("hog", HOG).unwrap();
        hog.start().unwrap();
        assert_eq!(hog.exit_status(), 137);
        d.events.get("r", "oom");
        r.end();
        r.finish();
    }

    fn checkpoint_is_written_to_the_paths_of_its_options(d) {
        let Some(_criu) = criu(d) else { return };
        let (image, work) = (d.path("image"), d.path("criu"));
        let c = d.running("c");
        let options = options(|o| {
            o.image_path = image.to_str().unwrap().into();
            o.work_path = work.to_str().unwrap().into();
        });
        c.checkpoint_with("", &options).unwrap();
        assert!(image.join("inventory.img").exists());
        assert!(work.join("dump.log").exists(), "a work path that was asked for is kept");
        let event = d.events.get("c", "checkpointed");
        let event = events::TaskCheckpointed::parse_from_bytes(&event.value).unwrap();
        assert_eq!(event.checkpoint, image.to_str().unwrap());
        c.end();
        c.finish();

        let work = d.path("criu-restore");
        fs::create_dir(&work).unwrap();
        let r = d.container("r", &["sleep", "inf"]).restored_from(&image, c.cgroup());
        let r = r.options(|o| o.criu_work_path = work.to_str().unwrap().into()).run();
        assert!(work.join("restore.log").exists());
        r.end();
        r.finish();
    }

    fn checkpoint_with_a_parent_image(d) {
        let Some(_criu) = criu(d) else { return };
        let (fifos, parent, image) = (d.fifos("c"), d.path("parent"), d.path("image"));
        let c = counting(d, &fifos);
        // The daemon makes such images with the runtime itself.
        let root = d.runtime_root().join(&d.namespace);
        let mut runc = Command::new(runtime());
        runc.arg("--root").arg(root).args(["checkpoint", "--pre-dump", "--image-path"]).arg(&parent).arg("c");
        let made = process::run(&mut runc, &[], d.hang_timeout);
        assert_eq!(made.status, 0, "{made:?}");
        // Field 10, which our definition lacks: relative to the image, as CRIU wants it.
        let on_parent = options(|o| o.mut_unknown_fields().add_length_delimited(10, b"../parent".into()));
        let counted = checkpoint_and_end(&c, &fifos, &image, on_parent);
        assert!(image.join("parent/inventory.img").exists());

        let fifos = d.fifos("r");
        let r = continuing(d, &fifos, &image, &c).shim();
        let mut request = r.create_request();
        request.parent_checkpoint = parent.to_str().unwrap().into();
        r.call::<containerd_shim_rs_v2::proto::task::CreateTaskResponse>("Create", &request).unwrap();
        r.start().unwrap();
        continues(d, &fifos, counted);
        r.end();
        r.finish();
    }

    fn open_connections_are_kept_with_open_tcp(d) {
        let Some(_criu) = criu(d) else { return };
        let (fifos, image) = (d.fifos("c"), d.path("image"));
        let c = over_tcp(d, "c", &fifos).run();
        counts_past(d, &fifos, 3);
        c.checkpoint(image.to_str().unwrap()).refused(Code::UNKNOWN, "Connected TCP socket");
        assert_eq!(c.status(), Status::RUNNING);
        let counted = checkpoint_and_end(&c, &fifos, &d.path("image2"), options(|o| o.open_tcp = true));
        let fifos = d.fifos("r");
        let r = over_tcp(d, "r", &fifos).restored_from(&d.path("image2"), c.cgroup()).run();
        continues(d, &fifos, counted);
        r.end();
        r.finish();
    }

    fn external_sockets_are_kept_with_external_unix_sockets(d) {
        let Some(_criu) = criu(d) else { return };
        let (path, image) = (d.path("log"), d.path("image"));
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(d.hang_timeout)).unwrap();
        let tick = || {
            let mut buffer = [0; 200];
            let length = socket.recv(&mut buffer).expect("a tick");
            assert!(String::from_utf8_lossy(&buffer[..length]).contains("tick"));
        };
        let c = to_outside(d, "c", &path).run();
        tick();
        c.checkpoint(image.to_str().unwrap()).refused(Code::UNKNOWN, "xternal socket");
        let image = d.path("image2");
        let outside = options(|o| (o.exit, o.external_unix_sockets) = (true, true));
        c.checkpoint_with(image.to_str().unwrap(), &outside).unwrap();
        assert_eq!(c.exit_status(), 137);
        c.finish();
        socket.set_nonblocking(true).unwrap();
        while socket.recv(&mut [0; 200]).is_ok() {}
        socket.set_nonblocking(false).unwrap();
        let r = to_outside(d, "r", &path).restored_from(&image, c.cgroup()).run();
        tick();
        r.end();
        r.finish();
    }

    fn file_locks_are_kept_with_file_locks(d) {
        let Some(_criu) = criu(d) else { return };
        let (fifos, image) = (d.fifos("c"), d.path("image"));
        let c = with_lock(d, "c", &fifos).run();
        counts_past(d, &fifos, 3);
        c.checkpoint(image.to_str().unwrap()).refused(Code::UNKNOWN, "file lock");
        let counted = checkpoint_and_end(&c, &fifos, &d.path("image2"), options(|o| o.file_locks = true));
        let fifos = d.fifos("r");
        let r = with_lock(d, "r", &fifos).restored_from(&d.path("image2"), c.cgroup()).run();
        continues(d, &fifos, counted);
        let e = r.exec("e", &["flock", "-n", "/tmp/lock", "true"]).unwrap();
        e.start().unwrap();
        assert_eq!(e.exit_status(), 1, "the lock is held");
        r.end();
        r.finish();
    }

    fn namespaces_are_restored_empty_with_empty_namespaces(d) {
        let Some(_criu) = criu(d) else { return };
        let (fifos, image) = (d.fifos("c"), d.path("image"));
        let counter = |id: &str, fifos: &Fifos| d.shell(id, COUNT).stdio(fifos.stdio.clone()).spec(own_network);
        let c = counter("c", &fifos).run();
        counts_past(d, &fifos, 3);
        let odd = options(|o| o.empty_namespaces = vec!["odd".into()]);
        c.checkpoint_with(image.to_str().unwrap(), &odd).refused(Code::UNKNOWN, "odd");
        let counted = checkpoint_and_end(&c, &fifos, &image, options(|o| o.empty_namespaces = vec!["network".into()]));
        let fifos = d.fifos("r");
        let r = counter("r", &fifos).restored_from(&image, c.cgroup()).run();
        continues(d, &fifos, counted);
        r.end();
        r.finish();
    }

    fn every_cgroups_mode_is_accepted(d) {
        let Some(_criu) = criu(d) else { return };
        for mode in ["soft", "full", "strict"] {
            let (fifos, image) = (d.fifos(mode), d.path(&format!("image-{mode}")));
            let c = d.shell(mode, COUNT).stdio(fifos.stdio.clone()).run();
            counts_past(d, &fifos, 3);
            let counted = checkpoint_and_end(&c, &fifos, &image, options(|o| o.cgroups_mode = mode.into()));
            let fifos = d.fifos(&format!("{mode}-r"));
            let r = d.shell(&format!("{mode}-r"), COUNT).stdio(fifos.stdio.clone());
            let r = r.restored_from(&image, c.cgroup()).run();
            continues(d, &fifos, counted);
            r.end();
            r.finish();
        }
        let c = d.running("c");
        let unknown = options(|o| o.cgroups_mode = "odd".into());
        c.checkpoint_with(d.path("image").to_str().unwrap(), &unknown).refused(Code::UNKNOWN, "cgroups mode");
    }

    fn criu_error_is_reported(d) {
        let Some(_criu) = criu(d) else { return };
        let fifos = d.fifos("c");
        let c = over_tcp(d, "c", &fifos).run();
        counts_past(d, &fifos, 3);
        let failure = c.checkpoint(d.path("image").to_str().unwrap()).unwrap_err();
        assert!(failure.message.contains("OCI runtime checkpoint failed"), "{failure:?}");
        let log = c.bundle.join("criu-dump.log");
        assert!(failure.message.contains(&format!("path= {}", log.display())), "{failure:?}");
        assert!(fs::read_to_string(log).unwrap().contains("Connected TCP socket"));
        assert!(!c.bundle.join("work/criu-work").exists());
        // It goes on as if nothing had been.
        let counted = *numbers(&fifos.stdout.text()).last().unwrap();
        counts_past(d, &fifos, counted + 2);
        assert!(!d.events.of("c").iter().any(|e| e.kind == "checkpointed"));
        c.end();
        c.finish();
    }

    fn failed_restore_leaves_nothing(d) {
        let Some(_criu) = criu(d) else { return };
        let image = d.path("image");
        let c = d.running("c");
        c.checkpoint(image.to_str().unwrap()).unwrap();
        c.end();
        c.finish();
        let core = fs::read_dir(&image).unwrap().flatten().find(|e| e.file_name().to_string_lossy().starts_with("core-"));
        fs::write(core.unwrap().path(), "no image").unwrap();

        let fifos = d.fifos("r");
        let r = d.container("r", &["sleep", "inf"]).stdio(fifos.stdio.clone()).restored_from(&image, c.cgroup()).created();
        let before = r.footprint().0.len();
        let failure = r.start().unwrap_err();
        assert!(failure.message.contains("OCI runtime restore failed"), "{failure:?}");
        assert!(failure.message.contains("core-"), "{failure:?}");
        let log = r.bundle.join("criu-restore.log");
        assert!(failure.message.contains(&format!("path= {}", log.display())), "{failure:?}");
        assert!(log.exists());
        assert_eq!((r.status(), r.state().unwrap().pid), (Status::CREATED, 0));
        assert_eq!(d.events.until("r", "create"), ["create"]);
        let state = d.runtime_root().join(&d.namespace).join("r");
        assert!(!state.exists(), "the runtime's state {}", state.display());
        assert_eq!(machine::cgroup_dirs(r.cgroup()), Vec::<std::path::PathBuf>::new());
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", r.shim_pid)).unwrap();
        assert_eq!(children.trim(), "");
        d.eventually("as many descriptors as before", || r.footprint().0.len() <= before);
        r.finish();
    }

    fn restore_without_an_image(d) {
        let Some(_criu) = criu(d) else { return };
        let r = d.container("r", &["sleep", "inf"]).restored_from(&d.path("nowhere"), &d.new_cgroup("r")).created();
        r.start().refused(Code::UNKNOWN, "OCI runtime restore failed");
        r.finish();
    }

    fn container_is_checkpointed_again_after_a_restore(d) {
        let Some(_criu) = criu(d) else { return };
        let fifos = d.fifos("c");
        let c = counting(d, &fifos);
        let mut counted = checkpoint_and_end(&c, &fifos, &d.path("image0"), options(|_| ()));
        for round in 0..2 {
            let fifos = d.fifos(&format!("f{round}"));
            let r = d.shell(&format!("r{round}"), COUNT).stdio(fifos.stdio.clone());
            let r = r.restored_from(&d.path(&format!("image{round}")), c.cgroup()).run();
            continues(d, &fifos, counted);
            counted = checkpoint_and_end(&r, &fifos, &d.path(&format!("image{}", round + 1)), options(|_| ()));
        }
    }
}
