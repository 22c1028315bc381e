//! Clients that misbehave on the wire: their own connection may suffer, nobody else's.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use containerd_shim_rs_v2::proto::types::Status;
use containerd_shim_rs_v2::proto::{Empty, Message, task};
use nix::poll::{PollFd, PollFlags, poll};
use ttrpc::proto::Response;

use crate::harness::container::Container;
use crate::harness::rpc::{Frame, MESSAGE_MAX, REQUEST, RESPONSE, dial, header, request};
use crate::harness::*;

fn raw(c: &Container) -> UnixStream {
    let stream = dial(&c.started.address).unwrap();
    stream
        .set_read_timeout(Some(c.daemon.hang_timeout))
        .unwrap();
    stream
}

/// A well-formed State request.
fn state_request(c: &Container, stream: u32) -> Frame {
    let state = task::StateRequest {
        id: c.container.clone(),
        ..Default::default()
    };
    let payload = state.write_to_bytes().unwrap();
    request(stream, c.api.service(), "State", payload, Duration::ZERO)
}

/// The next answer; `None` when the server closed the connection.
#[track_caller]
fn answer(stream: &mut UnixStream) -> Option<(u32, Response)> {
    match Frame::read(stream) {
        Ok(Some(frame)) => {
            assert_eq!(frame.kind, RESPONSE);
            Some((
                frame.stream,
                Response::parse_from_bytes(&frame.payload).unwrap(),
            ))
        }
        Ok(None) => None,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
        Err(error) => panic!("no answer and no end: {error}"),
    }
}

/// Sends `bytes` on a connection of their own and leaves; the server must not mind.
#[track_caller]
fn survives(c: &Container, bytes: &[u8]) {
    let mut stream = raw(c);
    // It may have been closed on us.
    let _ = stream.write_all(bytes);
    drop(stream);
    assert_eq!(c.status(), Status::RUNNING);
}

/// The server's resident memory, in kB.
fn resident(c: &Container) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", c.shim_pid)).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Connects to a socket; prints how many bytes of an answer came before the end.
const STRANGER: &str = "
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
try:
    s.sendall(bytes.fromhex(sys.argv[2]))
    print(len(s.recv(1)))
except (BrokenPipeError, ConnectionResetError):
    print(0)
";

/// How many bytes user `uid` gets of the answer to a State, if file modes let everybody connect.
fn answer_to(c: &Container, uid: u32) -> String {
    let path = c.started.address.trim_start_matches("unix://");
    let everybody =
        |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    everybody(Path::new(path));
    let dir = tempfile::tempdir_in("/run").unwrap();
    everybody(dir.path());
    let link = dir.path().join("s");
    fs::hard_link(path, &link).unwrap();
    let bytes: String = state_request(c, 1)
        .bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut python = Command::new("/usr/bin/python3");
    python
        .args(["-c", STRANGER])
        .arg(link)
        .arg(bytes)
        .uid(uid)
        .gid(uid);
    let output = process::run(&mut python, &[], c.daemon.hang_timeout);
    assert_eq!(output.status, 0, "{output:?}");
    output.stdout_text().trim().into()
}

cases! {
    fn other_users_are_not_served(d) {
        let c = d.running("c");
        assert_eq!(answer_to(&c, 0), "1");
        assert_eq!(answer_to(&c, 65534), "0");
        assert_eq!(c.status(), Status::RUNNING);
    }

    fn unknown_service(d) {
        let c = d.running("c");
        let call = |service: &str| {
            c.connection.call::<Empty>(service, "State", &Empty::new())
        };
        call("containerd.task.v9.Task").refused(Code::UNIMPLEMENTED, "containerd.task.v9.Task");
        call("").refused(Code::UNIMPLEMENTED, "");
    }

    fn unknown_method(d) {
        let c = d.running("c");
        c.call::<Empty>("NoSuchMethod", &Empty::new()).refused(Code::UNIMPLEMENTED, "NoSuchMethod");
        c.call::<Empty>("", &Empty::new()).refused(Code::UNIMPLEMENTED, "");
    }

    fn malformed_frames(d) {
        let c = d.running("c");
        survives(&c, b"GET / HTTP/1.1\r\nHost: example\r\n\r\n");
        survives(&c, &[0xff; 1000]);
        survives(&c, &[0; 1000]);
    }

    fn malformed_request(d) {
        let c = d.running("c");
        survives(&c, &Frame { stream: 1, kind: REQUEST, payload: vec![0xff; 100] }.bytes());
        survives(&c, &Frame { stream: 1, kind: REQUEST, payload: Vec::new() }.bytes());
        let broken = request(1, c.api.service(), "State", vec![0xff; 50], Duration::ZERO);
        let mut stream = raw(&c);
        stream.write_all(&broken.bytes()).unwrap();
        if let Some((_, response)) = answer(&mut stream) {
            assert_ne!(response.status.code(), Code::OK);
        }
        assert_eq!(c.status(), Status::RUNNING);
    }

    fn truncated_frames(d) {
        let c = d.running("c");
        let whole = state_request(&c, 1).bytes();
        for length in [1, 9, 10, 11, whole.len() - 1] {
            survives(&c, &whole[..length]);
        }
    }

    fn frame_in_pieces(d) {
        let c = d.running("c");
        let mut stream = raw(&c);
        for byte in state_request(&c, 1).bytes() {
            stream.write_all(&[byte]).unwrap();
        }
        let (id, response) = answer(&mut stream).expect("an answer");
        assert_eq!((id, response.status.code()), (1, Code::OK));
    }

    fn frames_in_one_piece(d) {
        let c = d.running("c");
        let frames: Vec<u8> = (0..50).flat_map(|n| state_request(&c, 2 * n + 1).bytes()).collect();
        let mut stream = raw(&c);
        stream.write_all(&frames).unwrap();
        let mut ids: Vec<u32> = (0..50).map(|_| answer(&mut stream).expect("an answer").0).collect();
        ids.sort();
        assert_eq!(ids, (0..50).map(|n| 2 * n + 1).collect::<Vec<_>>());
    }

    fn frame_that_is_too_large(d) {
        let c = d.running("c");
        let length = MESSAGE_MAX + 1;
        let mut stream = raw(&c);
        let mut bytes = header(length as u32, 1, REQUEST);
        bytes.resize(10 + length, 0);
        // Refused with an answer, or by closing.
        if stream.write_all(&bytes).is_ok() && let Some((id, response)) = answer(&mut stream) {
            assert_eq!((id, response.status.code()), (1, Code::RESOURCE_EXHAUSTED));
        }
        assert_eq!(c.status(), Status::RUNNING);
    }

    fn frame_with_a_too_large_length(d) {
        let c = d.running("c");
        let before = resident(&c);
        for _ in 0..50 {
            survives(&c, &header(u32::MAX, 1, REQUEST));
            survives(&c, &header(MESSAGE_MAX as u32, 1, REQUEST));
        }
        let grown = resident(&c).saturating_sub(before);
        assert!(grown < 32 << 10, "{grown} kB for nothing");
    }

    fn frames_of_the_wrong_kind(d) {
        let c = d.running("c");
        for kind in [0, RESPONSE, 3, 99] {
            survives(&c, &Frame { kind, ..state_request(&c, 1) }.bytes());
        }
        for stream in [0, 2, u32::MAX] {
            survives(&c, &state_request(&c, stream).bytes());
        }
    }

    fn stream_that_is_used_twice(d) {
        let c = d.running("c");
        let twice: Vec<u8> = [5, 5, 3].iter().flat_map(|&n| state_request(&c, n).bytes()).collect();
        survives(&c, &twice);
    }

    fn client_that_closes_its_writing_end(d) {
        let c = d.running("c");
        let mut stream = raw(&c);
        stream.write_all(&state_request(&c, 1).bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // Answered or not: the server closes, too.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert_eq!(c.status(), Status::RUNNING);
    }

    fn client_that_does_not_read(d) {
        let c = d.running("c");
        let stream = raw(&c);
        stream.set_nonblocking(true).unwrap();
        let requests: Vec<u8> = (0..200).flat_map(|n| state_request(&c, 2 * n + 1).bytes()).collect();
        let mut sent = 0;
        // Until the server takes no more, or has had enough to be exhausted.
        while sent < 32 << 20 {
            let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut fds, 500_u16).unwrap() == 0 {
                break;
            }
            match (&stream).write(&requests[sent % requests.len()..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        let size = resident(&c);
        assert!(size < 48 << 10, "{size} kB after {sent} bytes of requests");
        assert_eq!(c.status(), Status::RUNNING);
    }

    fn clients_come_and_go(d) {
        let c = d.running("c");
        let (before, _) = c.footprint();
        for _ in 0..200 {
            let other = c.over(&c.reconnect());
            assert_eq!(other.status(), Status::RUNNING);
        }
        d.eventually("as many descriptors as before", || c.footprint().0.len() <= before.len());
    }

    fn unknown_request_fields_are_accepted(d) {
        let c = d.running("c");
        let state = task::StateRequest { id: "c".into(), ..Default::default() };
        let mut payload = state.write_to_bytes().unwrap();
        // Field 200, the number 1.
        payload.extend([0xc0, 0x0c, 0x01]);
        let mut stream = raw(&c);
        stream.write_all(&request(1, c.api.service(), "State", payload, Duration::ZERO).bytes()).unwrap();
        let (_, response) = answer(&mut stream).expect("an answer");
        assert_eq!(response.status.code(), Code::OK);
        let state = task::StateResponse::parse_from_bytes(&response.payload).unwrap();
        assert_eq!(state.id, "c");
    }
}
