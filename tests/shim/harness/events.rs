//! containerd's end of the events: a ttrpc endpoint that records what is forwarded
//! to it, and that can be stopped, be started again, refuse or hang.

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use containerd_shim_rs_v2::proto::{Any, Envelope, Message, Timestamp, events, forward};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::shutdown;
use ttrpc::proto::{Code, Request, Response, Status};

use super::rpc::{Frame, RESPONSE};

/// An event, flattened: what its kind lacks is zero.
#[derive(Debug, Clone, Default)]
pub struct Event {
    /// `create`, `start`, `exec-added`, `exec-started`, `exit`, `delete`, `oom`, `paused`, `resumed`, …
    pub kind: String,
    pub container: String,
    /// The exec's id; empty for init.
    pub exec: String,
    pub pid: u32,
    pub status: u32,
    pub exited_at: Option<Timestamp>,
    pub namespace: String,
    pub type_url: String,
    pub published_at: Timestamp,
    /// The payload, for what is not flattened.
    pub value: Vec<u8>,
}

impl Event {
    /// `KIND` or `KIND EXEC`.
    pub fn short(&self) -> String {
        format!("{} {}", self.kind, self.exec).trim_end().into()
    }

    fn of(envelope: &Envelope) -> Event {
        let any: Any = envelope.event.clone().unwrap_or_default();
        let kind = envelope
            .topic
            .strip_prefix("/tasks/")
            .unwrap_or(&envelope.topic)
            .to_string();
        let mut event = Event {
            namespace: envelope.namespace.clone(),
            type_url: any.type_url.clone(),
            published_at: envelope.timestamp.clone().unwrap_or_default(),
            value: any.value.clone(),
            kind,
            ..Default::default()
        };
        event.flatten(&any);
        event
    }

    fn flatten(&mut self, any: &Any) {
        let name = any.type_url.rsplit(['.', '/']).next().unwrap_or_default();
        macro_rules! payload {
            ($type:ident) => {
                events::$type::parse_from_bytes(&any.value).expect("decode an event")
            };
        }
        match name {
            "TaskCreate" => {
                let e = payload!(TaskCreate);
                (self.container, self.pid) = (e.container_id, e.pid);
            }
            "TaskStart" => {
                let e = payload!(TaskStart);
                (self.container, self.pid) = (e.container_id, e.pid);
            }
            "TaskExecAdded" => {
                let e = payload!(TaskExecAdded);
                (self.container, self.exec) = (e.container_id, e.exec_id);
            }
            "TaskExecStarted" => {
                let e = payload!(TaskExecStarted);
                (self.container, self.exec, self.pid) = (e.container_id, e.exec_id, e.pid);
            }
            "TaskExit" => {
                let e = payload!(TaskExit);
                self.exec = if e.id == e.container_id {
                    String::new()
                } else {
                    e.id
                };
                (self.container, self.pid, self.status) = (e.container_id, e.pid, e.exit_status);
                self.exited_at = e.exited_at.into_option();
            }
            "TaskDelete" => {
                let e = payload!(TaskDelete);
                (self.container, self.pid, self.status) = (e.container_id, e.pid, e.exit_status);
                self.exited_at = e.exited_at.into_option();
            }
            "TaskOOM" => self.container = payload!(TaskOOM).container_id,
            "TaskPaused" => self.container = payload!(TaskPaused).container_id,
            "TaskResumed" => self.container = payload!(TaskResumed).container_id,
            "TaskCheckpointed" => self.container = payload!(TaskCheckpointed).container_id,
            other => panic!("an event of unknown type {other}"),
        }
    }
}

/// What the endpoint does with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Records it and says so.
    Take,
    /// Answers with an error.
    Refuse,
    /// Answers with an error to events of this kind, as to something it will never take.
    RefuseKind(&'static str),
    /// Never answers.
    Hang,
    /// Reads nothing until it does something else, as a process that is stopped (SIGSTOP): then
    /// it reads all that has come, of connections that were closed meanwhile, too.
    #[allow(dead_code, reason = "for `tests/faults`")]
    Stopped,
    /// Ends the connection in the middle of the answer.
    Break,
}

struct Shared {
    state: Mutex<State>,
    news: Condvar,
}

struct State {
    events: Vec<Event>,
    behaviour: Behaviour,
    attempts: usize,
    listener: Option<UnixListener>,
    connections: Vec<UnixStream>,
    /// How often the endpoint was stopped: what is read later on an older connection does not count.
    stops: usize,
}

/// The endpoint.
pub struct Events {
    path: PathBuf,
    shared: Arc<Shared>,
    hang_timeout: Duration,
}

impl Events {
    /// Listens on `path`.
    pub fn listen(path: &Path, hang_timeout: Duration) -> Events {
        let state = State {
            events: Vec::new(),
            behaviour: Behaviour::Take,
            attempts: 0,
            listener: None,
            connections: Vec::new(),
            stops: 0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            news: Condvar::new(),
        });
        let events = Events {
            path: path.into(),
            shared,
            hang_timeout,
        };
        events.restart();
        events
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As when containerd dies: nobody listens, connections are closed.
    pub fn stop(&self) {
        let _ = std::fs::remove_file(&self.path);
        let mut state = self.shared.state.lock().unwrap();
        state.stops += 1;
        if let Some(listener) = state.listener.take() {
            let _ = shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        }
        for connection in state.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        self.shared.news.notify_all();
    }

    /// As when containerd comes back.
    pub fn restart(&self) {
        let listener = UnixListener::bind(&self.path).expect("bind the events socket");
        let shared = self.shared.clone();
        let copy = listener.try_clone().expect("copy the listener");
        let mut state = shared.state.lock().unwrap();
        state.listener = Some(copy);
        let stops = state.stops;
        drop(state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let Ok(copy) = stream.try_clone() else { return };
                shared.state.lock().unwrap().connections.push(copy);
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream, &shared, stops));
            }
        });
    }

    /// Whether it was ever stopped.
    #[allow(dead_code, reason = "for `tests/faults`")]
    pub fn was_stopped(&self) -> bool {
        self.shared.state.lock().unwrap().stops > 0
    }

    pub fn set_behaviour(&self, behaviour: Behaviour) {
        self.shared.state.lock().unwrap().behaviour = behaviour;
        self.shared.news.notify_all();
    }

    /// Waits until `count` events were sent to us, taken or not, since the start.
    #[track_caller]
    pub fn wait_attempts(&self, count: usize) {
        let state = self.shared.state.lock().unwrap();
        let wait = self
            .shared
            .news
            .wait_timeout_while(state, self.hang_timeout, |s| s.attempts < count);
        let (state, timeout) = wait.unwrap();
        assert!(
            !timeout.timed_out(),
            "{} of {count} attempts to publish came",
            state.attempts
        );
    }

    /// Waits until `predicate` finds what it wants among all events so far.
    #[track_caller]
    pub fn wait_for<T>(&self, what: &str, predicate: impl Fn(&[Event]) -> Option<T>) -> T {
        let deadline = Instant::now() + self.hang_timeout;
        let mut state = self.shared.state.lock().unwrap();
        loop {
            let events = &state.events;
            if let Some(found) = predicate(events) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let got: Vec<String> = events
                    .iter()
                    .map(|e| format!("{} {}", e.container, e.short()))
                    .collect();
                drop(state);
                panic!("no {what} within {:?}; got {got:?}", self.hang_timeout);
            }
            state = self.shared.news.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Waits for the first event of `container` that reads `short`.
    #[track_caller]
    pub fn get(&self, container: &str, short: &str) -> Event {
        self.wait_for(&format!("event {short} of {container}"), |events| {
            events
                .iter()
                .find(|e| e.container == container && e.short() == short)
                .cloned()
        })
    }

    /// Waits for the event that reads `short`, and says in short all events of `container` up to now.
    #[track_caller]
    pub fn until(&self, container: &str, short: &str) -> Vec<String> {
        self.get(container, short);
        self.of(container).iter().map(Event::short).collect()
    }

    /// All events of `container` up to now.
    pub fn of(&self, container: &str) -> Vec<Event> {
        let state = self.shared.state.lock().unwrap();
        state
            .events
            .iter()
            .filter(|e| e.container == container)
            .cloned()
            .collect()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Serves a connection until it ends, or the endpoint is stopped once more than `stops` times.
fn serve(mut stream: UnixStream, shared: &Shared, stops: usize) {
    while let Ok(Some(frame)) = read(&mut stream, shared, stops) {
        let request = Request::parse_from_bytes(&frame.payload).expect("a Request");
        assert_eq!(
            request.service,
            "containerd.services.events.ttrpc.v1.Events"
        );
        assert_eq!(request.method, "Forward");
        let Some(behaviour) = receive(&request.payload, shared, stops) else {
            return;
        };
        let mut answer = Response::new();
        match behaviour {
            Behaviour::Take => {}
            Behaviour::Refuse | Behaviour::RefuseKind(_) => {
                let code = match behaviour {
                    Behaviour::Refuse => Code::UNAVAILABLE,
                    _ => Code::INTERNAL,
                };
                let (code, message) = (code.into(), "not now".into());
                answer.status = Some(Status {
                    code,
                    message,
                    ..Default::default()
                })
                .into();
            }
            Behaviour::Hang | Behaviour::Stopped => continue,
            Behaviour::Break => {}
        }
        let payload = answer.write_to_bytes().unwrap();
        let frame = Frame {
            stream: frame.stream,
            kind: RESPONSE,
            payload,
        };
        let bytes = frame.bytes();
        if behaviour == Behaviour::Break {
            let _ = stream.write_all(&bytes[..bytes.len() / 2]);
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
        if stream.write_all(&bytes).is_err() {
            return;
        }
    }
}

/// Reads a frame, once there is something to read and the endpoint is not stopped.
fn read(stream: &mut UnixStream, shared: &Shared, stops: usize) -> std::io::Result<Option<Frame>> {
    let mut readable = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    nix::poll::poll(&mut readable, PollTimeout::NONE)?;
    let state = shared.state.lock().unwrap();
    let is_stopped = |s: &mut State| s.behaviour == Behaviour::Stopped && s.stops == stops;
    drop(shared.news.wait_while(state, is_stopped).unwrap());
    Frame::read(stream)
}

/// Counts an event, and records it if we take it; `None` if the endpoint was stopped.
fn receive(payload: &[u8], shared: &Shared, stops: usize) -> Option<Behaviour> {
    let request = forward::ForwardRequest::parse_from_bytes(payload).expect("a ForwardRequest");
    let event = Event::of(&request.envelope.unwrap_or_default());
    let mut state = shared.state.lock().unwrap();
    if state.stops != stops {
        return None;
    }
    state.attempts += 1;
    let behaviour = match state.behaviour {
        Behaviour::RefuseKind(kind) if kind != event.kind => Behaviour::Take,
        behaviour => behaviour,
    };
    if behaviour == Behaviour::Take {
        state.events.push(event);
    }
    shared.news.notify_all();
    Some(behaviour)
}
