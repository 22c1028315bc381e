//! A server with the real services, and clients that send it whatever the bytes say: requests
//! that are well-formed, damaged or cut off, in any order, on several connections, while
//! commands of the OCI runtime and processes end when the bytes say so.
//!
//! Promises: no request leaves the bundle: only a Create and an Exec that are made here name
//! paths, and damage is done to the other requests.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::timeout;
use ttrpc::proto::{Request, Response};

use crate::events::Events;
use crate::proto::task::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, CreateTaskRequest, DeleteRequest,
    ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StateRequest, StatsRequest, UpdateTaskRequest, WaitRequest,
};
use crate::proto::{Any, Message};
use crate::reaper::Reaper;
use crate::reaper::fake::Kernel;
use crate::service::Services;
use crate::task::{Shared, StatsBudget, Tasks};
use crate::ttrpc::frame::{self, FrameReader};

const IDS: [&str; 3] = ["a", "b", ""];
const EXECS: [&str; 3] = ["", "e", "f"];
const CONNECTIONS: usize = 3;

/// How long the server may take to answer at the end.
const HANG_TIMEOUT: Duration = Duration::from_secs(20);

/// Decides by the bytes, which are used up one after the other; then it is 0.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn of(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count
    }

    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }
}

struct World {
    reaper: Reaper,
    dir: tempfile::TempDir,
    clients: Vec<Option<UnixStream>>,
    next_stream: Cell<u32>,
}

/// See the module.
pub fn requests(data: &[u8]) {
    let world = World::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("an event loop");
    LocalSet::new().block_on(&runtime, world.run(Choices(data)));
    // What still reads a file of the bundle does not hold back the end.
    runtime.shutdown_background();
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().expect("a directory");
        for id in IDS {
            let bundle = dir.path().join("bundles").join(id);
            fs::create_dir_all(&bundle).expect("a bundle");
            fs::write(bundle.join("config.json"), "{}").expect("a spec");
        }
        World {
            reaper: Reaper::over(Rc::new(Kernel::default())),
            dir,
            clients: (0..CONNECTIONS).map(|_| None).collect(),
            next_stream: Cell::new(1),
        }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("s")
    }

    async fn run(mut self, mut choices: Choices<'_>) {
        let listener = UnixListener::bind(self.socket()).expect("listen");
        let tasks = Tasks::new(Shared {
            reaper: self.reaper.clone(),
            events: Events::new("unix:///nowhere".into(), "ns".into()),
            namespace: "ns".into(),
            stats_budget: StatsBudget::default(),
        });
        let services = Services::new(tasks, None);
        let server = services.endpoint(listener).expect("an endpoint");
        let serving = spawn_local(server.clone().run());
        while !choices.0.is_empty() {
            self.step(&mut choices).await;
        }
        self.clients.clear();
        tokio::select! {
            biased;
            // A Shutdown that found no container.
            () = services.shut_down() => {}
            () = self.assert_it_answers() => assert!(!serving.is_finished(), "the server ended"),
        }
        server.close();
    }

    async fn step(&mut self, choices: &mut Choices<'_>) {
        match choices.of(8) {
            0 => {
                let n = choices.of(CONNECTIONS);
                self.clients[n] = None;
            }
            // The bundle of its PID file may be gone.
            1 => drop(self.reaper.answer(choices.of(4), choices.of(4) > 0)),
            2 => self.reaper.end_other(choices.of(4)),
            3 => self.settle().await,
            4 => {
                let n = choices.of(CONNECTIONS);
                if let Some(client) = &self.clients[n] {
                    let _ = client.try_read(&mut [0; 4096]);
                }
            }
            _ => {
                let n = choices.of(CONNECTIONS);
                let bytes = self.request(choices);
                self.send(n, &bytes).await;
            }
        }
    }

    /// Sends as much as the socket takes.
    async fn send(&mut self, n: usize, bytes: &[u8]) {
        if self.clients[n].is_none() {
            self.clients[n] = UnixStream::connect(self.socket()).await.ok();
        }
        let sent = match &self.clients[n] {
            Some(client) => client.try_write(bytes).is_ok_and(|n| n == bytes.len()),
            // It has ended.
            None => return,
        };
        if !sent {
            // The rest would be a frame's beginning for the server.
            self.clients[n] = None;
        }
    }

    /// A frame: a request, perhaps with other bytes in place of its message, or damaged.
    fn request(&self, choices: &mut Choices<'_>) -> Vec<u8> {
        let (method, message) = self.message(choices);
        let names_paths = ["Create", "Exec", "Checkpoint"].contains(&method);
        let request = Request {
            service: match choices.of(8) {
                0 => "containerd.task.v2.Task".into(),
                1 => crate::report::SERVICE.into(),
                2 if !names_paths => String::from_utf8_lossy(choices.bytes()).into_owned(),
                _ => "containerd.task.v3.Task".into(),
            },
            method: method.into(),
            payload: match choices.of(8) {
                0 if !names_paths => choices.bytes().into(),
                _ => message,
            },
            timeout_nano: match choices.of(4) {
                0 => i64::from(choices.byte()) * 1_000_000,
                1 => -1,
                _ => 0,
            },
            ..Request::default()
        };
        let stream = self.next_stream.get();
        self.next_stream.set(stream + 2);
        let mut bytes = frame::request(stream, &request).expect("a frame");
        if choices.of(8) == 0 && !names_paths {
            let at = (choices.of(256) * 256 + choices.of(256)) % bytes.len();
            match choices.of(3) {
                0 => bytes[at] = choices.byte(),
                1 => bytes.truncate(at),
                _ => bytes.extend(choices.bytes()),
            }
        }
        bytes
    }

    fn message(&self, choices: &mut Choices<'_>) -> (&'static str, Vec<u8>) {
        let id: String = IDS[choices.of(IDS.len())].into();
        let exec_id: String = EXECS[choices.of(EXECS.len())].into();
        let number = u32::from(choices.byte());
        let any = |value: &[u8]| Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: value.into(),
            ..Any::default()
        };
        /// A request of this kind with these fields, encoded.
        macro_rules! encode {
            ($kind:ident { $($field:ident $(: $value:expr)?),* }) => {
                $kind { $($field $(: $value)?,)* ..$kind::default() }.write_to_bytes()
            };
        }
        let (method, message) = match choices.of(18) {
            0 | 1 => {
                let bundle = self.dir.path().join("bundles").join(&id);
                let bundle = bundle.display().to_string();
                ("Create", encode!(CreateTaskRequest { id, bundle }))
            }
            2 => ("Start", encode!(StartRequest { id, exec_id })),
            3 => {
                let spec = protobuf::MessageField::some(any(choices.bytes()));
                ("Exec", encode!(ExecProcessRequest { id, exec_id, spec }))
            }
            4 => ("State", encode!(StateRequest { id, exec_id })),
            5 => ("Wait", encode!(WaitRequest { id, exec_id })),
            6 => {
                let (signal, all) = (number % 70, choices.of(2) == 0);
                (
                    "Kill",
                    encode!(KillRequest {
                        id,
                        exec_id,
                        signal,
                        all
                    }),
                )
            }
            7 => ("Delete", encode!(DeleteRequest { id, exec_id })),
            8 => ("Pids", encode!(PidsRequest { id })),
            9 => ("Pause", encode!(PauseRequest { id })),
            10 => ("Resume", encode!(ResumeRequest { id })),
            11 => ("Stats", encode!(StatsRequest { id })),
            12 => ("Connect", encode!(ConnectRequest { id })),
            13 => (
                "CloseIO",
                encode!(CloseIORequest {
                    id,
                    exec_id,
                    stdin: number % 2 == 0
                }),
            ),
            14 => {
                let (width, height) = (number * number, number);
                (
                    "ResizePty",
                    encode!(ResizePtyRequest {
                        id,
                        exec_id,
                        width,
                        height
                    }),
                )
            }
            15 => {
                let resources = protobuf::MessageField::some(any(choices.bytes()));
                ("Update", encode!(UpdateTaskRequest { id, resources }))
            }
            16 => {
                let path = self.dir.path().join("image").display().to_string();
                ("Checkpoint", encode!(CheckpointTaskRequest { id, path }))
            }
            _ => (
                "Shutdown",
                encode!(ShutdownRequest {
                    id,
                    now: number % 2 == 0
                }),
            ),
        };
        (method, message.expect("a message"))
    }

    /// What was sent a signal ends, and every task goes as far as it can without time passing.
    async fn settle(&self) {
        for _ in 0..20 {
            self.reaper.end_signalled();
            yield_now().await;
        }
    }

    /// Whatever came before: a new client is served.
    async fn assert_it_answers(&self) {
        let request = Request {
            service: "containerd.task.v3.Task".into(),
            method: "State".into(),
            payload: StateRequest::default().write_to_bytes().expect("a message"),
            ..Request::default()
        };
        let bytes = frame::request(1, &request).expect("a frame");
        let answer = async {
            let client = UnixStream::connect(self.socket()).await.expect("connect");
            client.writable().await.expect("a connection");
            assert_eq!(client.try_write(&bytes).expect("send"), bytes.len());
            let mut reader = FrameReader::of_responses();
            std::future::poll_fn(|cx| reader.poll_frame(&client, cx)).await
        };
        let answer: io::Result<_> = timeout(HANG_TIMEOUT, answer)
            .await
            .expect("an answer in time");
        let Ok(Some(frame::Frame::Message { body, .. })) = answer else {
            panic!("no answer: {answer:?}");
        };
        Response::parse_from_bytes(&body).expect("a response");
    }
}
