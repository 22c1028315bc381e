//! What a client, a signal or a limit of the machine can do to a server: others are served,
//! memory is bounded, and what ends a container works.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use containerd_shim_rs_v2::proto::types::Status;
use containerd_shim_rs_v2::proto::{Empty, Message, Mount, task};
use nix::poll::{PollFd, PollFlags, poll};
use ttrpc::proto::{Request, Response};

use crate::harness::container::Container;
use crate::harness::events::Behaviour;
use crate::harness::rpc::{Frame, MESSAGE_MAX, Pending, REQUEST, dial, request};
use crate::harness::runtime::At;
use crate::harness::*;

/// Sends a request without waiting, and without a deadline.
fn send_without_deadline<M: Message>(
    c: &Container,
    method: &str,
    message: &impl Message,
) -> Pending<M> {
    c.connection
        .send(c.api.service(), method, message, Duration::ZERO)
}

/// `count` Waits for the init, which nobody will take the answers of.
fn send_waits(c: &Container, count: usize) {
    let wait = task::WaitRequest {
        id: c.container.clone(),
        ..Default::default()
    };
    for _ in 0..count {
        let _waiting: Pending<task::WaitResponse> = send_without_deadline(c, "Wait", &wait);
    }
    // Once this is answered, all before it were read.
    c.state().unwrap();
}

/// The answer to one frame on a connection of its own.
#[track_caller]
fn answer_to(c: &Container, frame: &Frame) -> Response {
    let mut stream = dial(&c.started.address).unwrap();
    stream
        .set_read_timeout(Some(c.daemon.hang_timeout))
        .unwrap();
    stream.write_all(&frame.bytes()).unwrap();
    let answer = Frame::read(&mut stream).unwrap().expect("an answer");
    Response::parse_from_bytes(&answer.payload).unwrap()
}

/// A State request whose rest, up to the largest size, is empty metadata.
fn request_of_empty_metadata(c: &Container) -> Frame {
    let state = task::StateRequest {
        id: c.container.clone(),
        ..Default::default()
    };
    let state = state.write_to_bytes().unwrap();
    let mut frame = request(1, c.api.service(), "State", state, Duration::ZERO);
    // Field 5, of length 0.
    let room = MESSAGE_MAX - frame.payload.len();
    frame.payload.extend([0x2a, 0].repeat(room / 2));
    frame
}

/// Sends `bytes` until the server takes no more for a while.
fn send_until_blocked(mut stream: &UnixStream, mut bytes: &[u8]) {
    stream.set_nonblocking(true).unwrap();
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(_)
                if poll(
                    &mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)],
                    20_u16,
                ) == Ok(0) =>
            {
                return;
            }
            Err(_) => {}
        }
    }
}

/// A daemon whose shim runs with these limits of descriptors.
fn with_descriptor_limits(d: &Daemon, soft: u32, hard: u32) -> Daemon {
    let wrapper = d.path("limited-shim");
    let script = format!(
        "ulimit -Sn {soft} && ulimit -Hn {hard} && exec {} \"$@\"",
        shim_binary()
    );
    write_program(&wrapper, &script);
    Daemon::with_shim(wrapper.to_str().unwrap(), d.api, d.hang_timeout)
}

cases! {
    fn processes_have_the_default_actions_of_signals(d) {
        let c = d.running("c");
        let e = c.exec("e", &["sleep", "inf"]).unwrap();
        let pids = [c.state().unwrap().pid, e.start().unwrap()];
        // Until it has executed the program, an exec's process is the runtime's.
        for pid in pids {
            for (what, signals) in [("SigBlk", "blocked"), ("SigIgn", "ignored"), ("SigCgt", "caught")] {
                d.eventually(&format!("no {signals} signals in {pid}"), || {
                    process::status_line(pid as i32, what) == "0000000000000000"
                });
            }
        }
        c.end();
        c.finish();
    }

    fn state_of_the_server_is_logged_on_sigusr1(d) {
        let c = d.running("c");
        let e = c.exec("exec-of-c", &["sleep", "inf"]).unwrap();
        let pid = e.start().unwrap();
        let waiting = c.wait_pending();
        c.state().unwrap();
        process::signal(c.shim_pid, nix::sys::signal::Signal::SIGUSR1);
        for what in ["container c running pid ", &format!("exec-of-c running pid {pid}"), "1 waiting for an exit", " events are queued"] {
            d.eventually(what, || d.log_of("c").contains(what));
        }
        c.end();
        assert_eq!(waiting.wait().unwrap().exit_status, 137);
        c.finish();
    }

    fn waiting_requests_do_not_block_other_calls(d) {
        let c = d.running("c");
        send_waits(&c, 5000);
        assert_eq!(c.status(), Status::RUNNING);
        let e = c.exec("e", &["true"]).unwrap();
        e.start().unwrap();
        assert_eq!(e.exit_status(), 0);
        c.end();
        c.finish();
    }

    fn requests_that_hang_keep_none_that_ends_processes_from_being_served(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = runtime.path()).run();
        let mut held = runtime.hold("update", At::Before);
        let update = task::UpdateTaskRequest {
            id: "c".into(),
            resources: Some(any("resources", &Empty::new())).into(),
            ..Default::default()
        };
        let updates: Vec<Pending<Empty>> =
            (0..1500).map(|_| send_without_deadline(&c, "Update", &update)).collect();
        held.reached();
        assert_eq!(c.status(), Status::RUNNING);
        c.pids().unwrap();
        c.connect().unwrap();
        c.stats().unwrap();
        let exited = c.wait_pending();
        c.kill(0).unwrap();
        c.kill(9).unwrap();
        assert_eq!(exited.wait().unwrap().exit_status, 137);
        c.finish();
        for update in updates {
            update.wait().unwrap_err();
        }
    }

    fn waiting_requests_need_little_memory(d) {
        let c = d.running("c");
        let connection = c.reconnect();
        c.over(&connection).state().unwrap();
        let before = c.memory("VmRSS");
        send_waits(&c, 5000);
        let parked = c.memory("VmRSS").saturating_sub(before);
        assert!(parked < 2 << 10, "{parked} kB for 5000 Waits");
        c.connection.close();
        let init = c.over(&connection);
        init.kill(9).unwrap();
        assert_eq!(init.exit_status(), 137);
        let after = c.memory("VmRSS").saturating_sub(before);
        assert!(after < 1 << 10, "{after} kB are left of 5000 Waits");
        init.delete().unwrap();
        let _ = init.shutdown();
        assert_eq!(c.shim_exit(), 0);
    }

    fn metadata_needs_neither_time_nor_memory(d) {
        let c = d.running("c");
        let before = c.memory("VmHWM");
        let metadata = request_of_empty_metadata(&c).bytes();
        let streams: Vec<_> = (0..10).map(|_| dial(&c.started.address).unwrap()).collect();
        for mut stream in &streams {
            // It may be refused before it is read.
            let _ = stream.write_all(&metadata);
        }
        let begun = Instant::now();
        c.state().unwrap();
        let took = begun.elapsed();
        assert!(took < d.hang_timeout / 5, "{took:?} for a State");
        let grown = c.memory("VmHWM").saturating_sub(before);
        assert!(grown < 64 << 10, "{grown} kB for metadata");
        c.end();
        c.finish();
    }

    fn request_with_a_million_mounts_is_refused(d) {
        let c = d.running("c");
        let before = c.memory("VmHWM");
        let create = task::CreateTaskRequest {
            id: "other".into(),
            bundle: c.bundle.to_str().unwrap().into(),
            rootfs: vec![Mount::default(); 1_000_000],
            ..Default::default()
        };
        let payload = create.write_to_bytes().unwrap();
        let frame = request(1, c.api.service(), "Create", payload, Duration::ZERO);
        let answer = answer_to(&c, &frame);
        assert_eq!(answer.status.code(), Code::INVALID_ARGUMENT, "{}", answer.status.message);
        let grown = c.memory("VmHWM").saturating_sub(before);
        assert!(grown < 32 << 10, "{grown} kB for mounts");
        c.end();
        c.finish();
    }

    fn negative_timeout_is_exceeded_at_once(d) {
        let c = d.running("c");
        let state = task::StateRequest { id: "c".into(), ..Default::default() };
        let request = Request {
            service: c.api.service().into(),
            method: "State".into(),
            payload: state.write_to_bytes().unwrap(),
            timeout_nano: -1,
            ..Default::default()
        };
        let frame = Frame { stream: 1, kind: REQUEST, payload: request.write_to_bytes().unwrap() };
        assert_eq!(answer_to(&c, &frame).status.code(), Code::DEADLINE_EXCEEDED);
        c.end();
        c.finish();
    }

    fn clients_that_do_not_read_do_not_delay_others(d) {
        let c = d.running("c");
        c.stats().unwrap();
        let before = c.memory("VmRSS");
        let stats = task::StatsRequest { id: "c".into(), ..Default::default() }.write_to_bytes().unwrap();
        let requests: Vec<u8> = (0..2000)
            .flat_map(|n| request(2 * n + 1, c.api.service(), "Stats", stats.clone(), Duration::ZERO).bytes())
            .collect();
        let streams: Vec<_> = (0..100).map(|_| dial(&c.started.address).unwrap()).collect();
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| streams.iter().for_each(|stream| send_until_blocked(stream, &requests)));
            let mut slowest = Duration::ZERO;
            let mut asked = 0;
            while asked < 20 || !flood.is_finished() {
                let begun = Instant::now();
                c.state().unwrap();
                slowest = slowest.max(begun.elapsed());
                asked += 1;
            }
            assert!(slowest < d.hang_timeout / 5, "{slowest:?} for a State, one of {asked}");
        });
        let grown = c.memory("VmRSS").saturating_sub(before);
        assert!(grown < 16 << 10, "{grown} kB for clients that do not read");
        drop(streams);
        c.end();
        c.finish();
    }

    fn permanently_refused_event_does_not_block_others(d) {
        let c = d.running("c");
        d.events.get("c", "start");
        d.events.set_behaviour(Behaviour::RefuseKind("exec-added"));
        let e = c.exec("e", &["true"]).unwrap();
        e.start().unwrap();
        assert_eq!(e.exit_status(), 0);
        c.end();
        d.events.get("c", "exit");
        let events: Vec<String> = d.events.of("c").iter().map(events::Event::short).collect();
        assert_eq!(events, ["create", "start", "exec-started e", "exit e", "exit"]);
        c.finish();
    }

    fn server_exits_soon_if_containerd_does_not_listen(d) {
        let c = d.running("c");
        d.events.get("c", "start");
        d.events.stop();
        c.end();
        c.delete().unwrap();
        let begun = Instant::now();
        let _ = c.shutdown();
        assert_eq!(c.shim_exit(), 0);
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(4), "{took:?} to end");
        c.assert_gone();
    }

    fn kill_and_delete_work_without_free_descriptors(d) {
        let d = &with_descriptor_limits(d, 128, 128);
        let c = d.running("c");
        let mut started = Vec::new();
        let refused = loop {
            let id = format!("e{}", started.len());
            let fifos = d.fifos(&id);
            let e = c.exec_with(&id, &["sleep", "inf"], &fifos.stdio).unwrap();
            match e.start() {
                Ok(_) => started.push((e, fifos)),
                Err(failure) => break failure,
            }
            assert!(started.len() < 128);
        };
        assert!(!started.is_empty());
        assert_eq!(refused.code, Code::RESOURCE_EXHAUSTED, "{}", refused.message);
        assert!(refused.message.contains("RLIMIT_NOFILE"), "{}", refused.message);
        let others: Vec<_> = (0..10).map(|_| c.over(&c.reconnect())).collect();
        let waits: Vec<_> = others.iter().map(|other| other.wait_pending()).collect();
        c.stats().unwrap();
        c.kill_all(9).unwrap();
        for (e, _fifos) in &started {
            assert_eq!(e.exit_status(), 137);
        }
        for wait in waits {
            assert_eq!(wait.wait().unwrap().exit_status, 137);
        }
        for (e, _fifos) in &started {
            e.delete().unwrap();
        }
        drop(others);
        c.finish();
    }

    fn soft_limit_of_descriptors_is_raised_for_the_server_only(d) {
        let d = &with_descriptor_limits(d, 64, 1024);
        // Some runtimes raise their own, and the container's with it: it is the runtime's that counts.
        let (program, limits) = (d.path("runtime"), d.path("limits"));
        let script = format!("{{ ulimit -Sn; ulimit -Hn; }} >{}\nexec {} \"$@\"", limits.display(), runtime());
        write_program(&program, &script);
        let c = d.container("c", &["sleep", "inf"]).options(|o| o.binary_name = program.to_str().unwrap().into()).run();
        // More than 64 descriptors.
        let execs: Vec<_> = (0..20).map(|n| {
            let fifos = d.fifos(&format!("e{n}"));
            let e = c.exec_with(&format!("e{n}"), &["sleep", "inf"], &fifos.stdio).unwrap();
            e.start().unwrap();
            (e, fifos)
        }).collect();
        assert_eq!(std::fs::read_to_string(&limits).unwrap(), "64\n1024\n");
        c.kill_all(9).unwrap();
        for (e, _fifos) in &execs {
            assert_eq!(e.exit_status(), 137);
        }
        assert_eq!(c.exit_status(), 137);
        c.finish();
    }

    fn server_without_client_and_container_exits(d) {
        let kept = d.running("kept");
        kept.connection.close();
        let c = d.container("c", &["true"]).shim();
        c.connection.close();
        let exit = process::wait(c.shim_pid, "the shim that nobody calls", 3 * d.hang_timeout);
        assert_eq!(exit, 0);
        assert!(!c.socket().exists());
        // Nobody calls that, either, and for longer: it has a container.
        let kept_again = kept.over(&kept.reconnect());
        kept_again.kill(9).unwrap();
        assert_eq!(kept_again.exit_status(), 137);
        kept_again.delete().unwrap();
        let _ = kept_again.shutdown();
        assert_eq!(kept.shim_exit(), 0);
    }

    fn server_exits_soon_after_its_client_left_during_create(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["true"]).options(|o| o.binary_name = runtime.path()).shim();
        let mut held = runtime.hold("create", At::Before);
        let _create = c.create_pending();
        held.reached();
        // As when containerd is killed.
        c.connection.close();
        assert_eq!(c.shim_exit(), 0);
        assert!(!c.socket().exists());
        c.assert_gone();
    }

    fn server_whose_client_came_back_after_a_create_that_was_undone_ends(d) {
        let runtime = d.fake_runtime();
        let c = d.container("c", &["true"]).options(|o| o.binary_name = runtime.path()).shim();
        let mut held = runtime.hold("create", At::Before);
        let _create = c.create_pending();
        held.reached();
        // As when containerd 1.6 is killed and started again: it only asks who is there, and
        // keeps the id for taken while it is connected.
        let back = c.over(&c.reconnect());
        c.connection.close();
        assert_eq!(back.connect().unwrap().task_pid, 0);
        back.state().refused(Code::NOT_FOUND, "");
        assert_eq!(c.shim_exit(), 0);
        assert!(!c.socket().exists());
        c.assert_gone();
    }
}
