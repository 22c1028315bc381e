//! Events to containerd: domain [`Event`] → envelope → the ordered, lossless queue.
//!
//! Promises: events arrive in the order of their `publish`, whatever becomes of the
//! connection. None is dropped while this process lives, but one that containerd answers
//! and goes on to refuse, so that it does not hold up all others, and an OOM that directly follows
//! another one of its container which still waits. An event may arrive twice: when its
//! answer was lost.
//!
//! Lacks on purpose: a bound. What waits is a hundred bytes or so per event, and
//! losing an exit is worse.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use log::{debug, error, info, warn};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::error::{Context as _, Error, Kind, Result};
use crate::mount::Mount;
use crate::proto::events as messages;
use crate::proto::forward::ForwardRequest;
use crate::proto::{self, Any, Envelope, Message, MessageField};
use crate::stdio::Stdio;
use crate::ttrpc::client::{Client, Failure};

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";

/// For one call that containerd has read. Connecting to a unix socket does not wait.
const ATTEMPT: Duration = Duration::from_secs(5);

/// For one call in all, while containerd reads nothing, as it is stopped: it reads it when it goes
/// on, so that one that is sent again comes twice.
const UNREAD_ATTEMPT: Duration = Duration::from_secs(300);

/// Between attempts, doubling. Nothing tells when containerd is back.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// From the first connection to a containerd that was away until the first event is sent to it:
/// its clients subscribe to events again only when they have noticed that it is back, and what it
/// is told before then is lost for them. dockerd tries to connect every 3.6 s at most.
const RESUBSCRIPTION: Duration = Duration::from_secs(10);

/// How long an event is sent again that containerd answers with an error; then it is
/// dropped. One that it calls invalid is dropped at once.
const REFUSED: Duration = Duration::from_secs(10);

/// As [`REFUSED`], for errors of a containerd that is still starting. Once an event was
/// dropped after that time, those that follow have the shorter one, until one is taken.
const STARTING: Duration = Duration::from_secs(300);

/// The topic of [`Event::Oom`].
const OOM: &str = "/tasks/oom";

/// What happened; each variant is one of containerd's topics.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are those of `containerd.events`
pub enum Event {
    /// The container was made; its init waits to be started.
    Create {
        container_id: String,
        bundle: String,
        rootfs: Vec<Mount>,
        io: Stdio,
        checkpoint: String,
        pid: u32,
    },
    /// Init runs.
    Start { container_id: String, pid: u32 },
    /// An exec was announced.
    ExecAdded {
        container_id: String,
        exec_id: String,
    },
    /// An exec runs.
    ExecStarted {
        container_id: String,
        exec_id: String,
        pid: u32,
    },
    /// A process ended. `id` is the container's for init, else the exec's.
    Exit {
        container_id: String,
        id: String,
        pid: u32,
        exit_status: u32,
        exited_at: SystemTime,
    },
    /// The container is gone.
    Delete {
        container_id: String,
        pid: u32,
        exit_status: u32,
        /// `None` when init never ran.
        exited_at: Option<SystemTime>,
    },
    /// The kernel's OOM killer killed a process of the container.
    Oom { container_id: String },
    /// All processes are frozen.
    Paused { container_id: String },
    /// They run again.
    Resumed { container_id: String },
    /// The processes' state was written to `checkpoint`, a path.
    Checkpointed {
        container_id: String,
        checkpoint: String,
    },
}

impl Event {
    /// The id of the container that it is about.
    fn container(&self) -> &str {
        match self {
            Event::Create { container_id, .. }
            | Event::Start { container_id, .. }
            | Event::ExecAdded { container_id, .. }
            | Event::ExecStarted { container_id, .. }
            | Event::Exit { container_id, .. }
            | Event::Delete { container_id, .. }
            | Event::Oom { container_id }
            | Event::Paused { container_id }
            | Event::Resumed { container_id }
            | Event::Checkpointed { container_id, .. } => container_id,
        }
    }
}

/// The ordered, lossless queue of events to containerd; clones share it.
#[derive(Clone)]
pub struct Events(Rc<Queue>);

struct Queue {
    address: String,
    namespace: String,
    /// The first one stays until containerd has taken it.
    waiting: RefCell<VecDeque<Entry>>,
    /// Something was queued.
    queued: Notify,
    /// Nothing waits any more.
    emptied: Notify,
    /// There is little time left to deliver.
    hurry: Notify,
    /// Whether `hurry` was notified.
    is_in_hurry: Cell<bool>,
    /// Nobody listened at `address` when it was tried last.
    absent: Cell<bool>,
    /// containerd has been starting for longer than a start takes.
    never_starts: Cell<bool>,
    /// All that was ever published.
    #[cfg(test)]
    published: RefCell<Vec<Event>>,
}

/// An event on its way.
#[derive(Clone)]
struct Entry {
    topic: &'static str,
    container: Rc<str>,
    /// `ForwardRequest`, encoded.
    request: Rc<[u8]>,
}

impl Events {
    /// A queue to containerd's ttrpc socket at `address`, for `namespace`. With an
    /// empty address events are dropped.
    pub fn new(address: String, namespace: String) -> Self {
        Self(Rc::new(Queue {
            address,
            namespace,
            waiting: RefCell::default(),
            queued: Notify::new(),
            emptied: Notify::new(),
            hurry: Notify::new(),
            is_in_hurry: Cell::default(),
            absent: Cell::default(),
            never_starts: Cell::default(),
            #[cfg(test)]
            published: RefCell::default(),
        }))
    }

    /// All that was ever published, in order.
    #[cfg(test)]
    pub fn published(&self) -> Vec<Event> {
        self.0.published.borrow().clone()
    }

    /// Queues `event`, stamped with the time of this call. Never blocks, never fails.
    pub fn publish(&self, event: Event) {
        #[cfg(test)]
        self.0.published.borrow_mut().push(event.clone());
        match encode(event, &self.0.namespace, SystemTime::now()) {
            Ok(entry) if self.0.address.is_empty() => {
                let (topic, id) = (entry.topic, &*entry.container);
                debug!(topic, id; "no TTRPC_ADDRESS: event dropped");
            }
            Ok(entry) if self.repeats_oom(&entry) => {
                let id = &*entry.container;
                debug!(id; "OOM event dropped: an earlier one is still queued");
            }
            Ok(entry) => {
                self.0.waiting.borrow_mut().push_back(entry);
                self.0.queued.notify_one();
            }
            // Only a length beyond protobuf's limit of 2 GiB fails.
            Err(e) => error!("encode event: {e}"),
        }
    }

    /// Whether `entry` is an OOM, and so was the last one of its container that waits: a
    /// container that runs out of memory in a loop must not use up the shim's memory.
    fn repeats_oom(&self, entry: &Entry) -> bool {
        let waiting = self.0.waiting.borrow();
        let mut newest_first = waiting.iter().rev();
        let last = newest_first.find(|other| other.container == entry.container);
        entry.topic == OOM && last.is_some_and(|last| last.topic == OOM)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.0.waiting.borrow().len()
    }

    /// Whether there is no containerd: nobody listened when it was tried last.
    pub fn nobody_listens(&self) -> bool {
        self.0.absent.get()
    }

    /// Delivers, one at a time, in order, for ever: reconnects and sends the head again
    /// until it was taken, or refused for too long.
    pub async fn run(self) {
        let mut client = None;
        loop {
            match self.head() {
                Some(entry) => {
                    self.deliver(&mut client, &entry).await;
                    self.remove_head();
                }
                None => self.0.queued.notified().await,
            }
        }
    }

    /// Waits until the queue is empty, which takes [`Events::run`] and containerd. A pause
    /// between attempts ends.
    pub async fn drained(&self) {
        self.0.is_in_hurry.set(true);
        self.0.hurry.notify_waiters();
        self.taken().await;
    }

    /// Waits until the queue is empty, as long as that takes.
    pub async fn taken(&self) {
        while !self.0.waiting.borrow().is_empty() {
            self.0.emptied.notified().await;
        }
    }

    fn head(&self) -> Option<Entry> {
        self.0.waiting.borrow().front().cloned()
    }

    fn remove_head(&self) {
        let mut waiting = self.0.waiting.borrow_mut();
        waiting.pop_front();
        if waiting.is_empty() {
            // After an outage, nothing is held while idle.
            *waiting = VecDeque::new();
            self.0.emptied.notify_waiters();
        }
    }

    /// Returns when containerd has taken `entry`, or never will.
    async fn deliver(&self, client: &mut Option<Client>, entry: &Entry) {
        let (topic, id) = (entry.topic, &*entry.container);
        let mut pause = FIRST_PAUSE;
        let mut refused_since = None;
        loop {
            let reused = client.is_some();
            let error = match self.attempt(client, entry).await {
                Ok(()) => {
                    self.0.never_starts.set(false);
                    if pause > FIRST_PAUSE {
                        info!(topic, id; "event forwarding recovered");
                    }
                    return;
                }
                // containerd was restarted while we were idle.
                Err(Failure::Transport(e)) if reused => {
                    debug!(topic, id; "event forwarding failed: {e}, reconnecting");
                    continue;
                }
                Err(Failure::Transport(e)) => {
                    refused_since = None;
                    e
                }
                Err(Failure::Refused(e)) => {
                    let since = *refused_since.get_or_insert_with(Instant::now);
                    if self.is_final(&e, since.elapsed()) {
                        return error!(topic, id; "event forwarding failed: {e}, event dropped");
                    }
                    e
                }
            };
            if pause == FIRST_PAUSE {
                warn!(topic, id; "event forwarding failed: {error}, will retry");
            }
            pause = match timeout(pause, self.0.hurry.notified()).await {
                Ok(()) => FIRST_PAUSE,
                Err(_) => (2 * pause).min(LONGEST_PAUSE),
            };
        }
    }

    /// Whether an event that containerd has answered with `refusal` for `time` is to be
    /// dropped.
    fn is_final(&self, refusal: &Error, time: Duration) -> bool {
        let starting = matches!(refusal.kind(), Kind::Unavailable | Kind::Unimplemented);
        let limit = match refusal.kind() {
            Kind::InvalidArgument => Duration::ZERO,
            _ if starting && !self.0.never_starts.get() => STARTING,
            _ => REFUSED,
        };
        let dropped = time >= limit;
        if dropped && starting {
            self.0.never_starts.set(true);
        }
        dropped
    }

    /// Sends `entry` once. Leaves a `client` that is good for another attempt, or none.
    async fn attempt(
        &self,
        client: &mut Option<Client>,
        entry: &Entry,
    ) -> std::result::Result<(), Failure> {
        let mut connected = match client.take() {
            Some(connected) => connected,
            None => {
                let connected = Client::connect(&self.0.address).await;
                let absent = matches!(&connected, Err(e) if e.kind() == Kind::NotFound);
                let was_absent = self.0.absent.replace(absent);
                let connected = connected.map_err(Failure::Transport)?;
                if was_absent && !self.0.is_in_hurry.get() {
                    let _ = timeout(RESUBSCRIPTION, self.0.hurry.notified()).await;
                }
                connected
            }
        };
        let metadata = [("containerd-namespace-ttrpc", self.0.namespace.as_str())];
        let outcome = connected
            .call_while_unread(
                SERVICE,
                "Forward",
                &metadata,
                entry.request.to_vec(),
                (ATTEMPT, UNREAD_ATTEMPT),
            )
            .await;
        if !matches!(outcome, Err(Failure::Transport(_))) {
            *client = Some(connected);
        }
        outcome.map(drop)
    }
}

/// `event` as it goes to containerd.
fn encode(event: Event, namespace: &str, at: SystemTime) -> Result<Entry> {
    let container = event.container().into();
    let (topic, event) = convert(event)?;
    let envelope = Envelope {
        timestamp: MessageField::some(proto::timestamp(Some(at))),
        namespace: namespace.to_owned(),
        topic: topic.to_owned(),
        event: MessageField::some(event),
        ..Default::default()
    };
    let request = ForwardRequest {
        envelope: MessageField::some(envelope),
        ..Default::default()
    };
    let request = request
        .write_to_bytes()
        .context(|| format!("encode {topic}"))?;
    Ok(Entry {
        topic,
        container,
        request: request.into(),
    })
}

/// The topic of `event`, and its message.
fn convert(event: Event) -> Result<(&'static str, Any)> {
    match event {
        Event::Create {
            container_id,
            bundle,
            rootfs,
            io,
            checkpoint,
            pid,
        } => {
            let message = messages::TaskCreate {
                container_id,
                bundle,
                rootfs: rootfs.into_iter().map(mount).collect(),
                io: MessageField::some(task_io(io)),
                checkpoint,
                pid,
                ..Default::default()
            };
            pack("/tasks/create", &message)
        }
        Event::Start { container_id, pid } => {
            let message = messages::TaskStart {
                container_id,
                pid,
                ..Default::default()
            };
            pack("/tasks/start", &message)
        }
        Event::ExecAdded {
            container_id,
            exec_id,
        } => {
            let message = messages::TaskExecAdded {
                container_id,
                exec_id,
                ..Default::default()
            };
            pack("/tasks/exec-added", &message)
        }
        Event::ExecStarted {
            container_id,
            exec_id,
            pid,
        } => {
            let message = messages::TaskExecStarted {
                container_id,
                exec_id,
                pid,
                ..Default::default()
            };
            pack("/tasks/exec-started", &message)
        }
        Event::Exit {
            container_id,
            id,
            pid,
            exit_status,
            exited_at,
        } => {
            let message = messages::TaskExit {
                container_id,
                id,
                pid,
                exit_status,
                exited_at: MessageField::some(proto::timestamp(Some(exited_at))),
                ..Default::default()
            };
            pack("/tasks/exit", &message)
        }
        Event::Delete {
            container_id,
            pid,
            exit_status,
            exited_at,
        } => {
            // `id` stays empty, as Go's does for init.
            let message = messages::TaskDelete {
                container_id,
                pid,
                exit_status,
                exited_at: MessageField::some(proto::timestamp(exited_at)),
                ..Default::default()
            };
            pack("/tasks/delete", &message)
        }
        Event::Oom { container_id } => {
            let message = messages::TaskOOM {
                container_id,
                ..Default::default()
            };
            pack(OOM, &message)
        }
        Event::Paused { container_id } => {
            let message = messages::TaskPaused {
                container_id,
                ..Default::default()
            };
            pack("/tasks/paused", &message)
        }
        Event::Resumed { container_id } => {
            let message = messages::TaskResumed {
                container_id,
                ..Default::default()
            };
            pack("/tasks/resumed", &message)
        }
        Event::Checkpointed {
            container_id,
            checkpoint,
        } => {
            let message = messages::TaskCheckpointed {
                container_id,
                checkpoint,
                ..Default::default()
            };
            pack("/tasks/checkpointed", &message)
        }
    }
}

fn pack<M: Message>(topic: &'static str, message: &M) -> Result<(&'static str, Any)> {
    let any = Any {
        // Bare, without the usual `type.googleapis.com/`.
        type_url: format!("containerd.events.{}", M::NAME),
        value: message
            .write_to_bytes()
            .context(|| format!("encode {topic}"))?,
        ..Default::default()
    };
    Ok((topic, any))
}

fn task_io(io: Stdio) -> messages::TaskIO {
    messages::TaskIO {
        stdin: io.stdin,
        stdout: io.stdout,
        stderr: io.stderr,
        terminal: io.terminal,
        ..Default::default()
    }
}

fn mount(mount: Mount) -> proto::Mount {
    proto::Mount {
        type_: mount.kind,
        source: mount.source,
        target: mount.target,
        options: mount.options,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ttrpc::frame::{self, Frame, FrameReader};
    use proptest::prelude::*;
    use std::future::{Future, pending, poll_fn};
    use std::path::PathBuf;
    use std::time::UNIX_EPOCH;
    use tempfile::TempDir;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{UnixListener, UnixStream};
    use tokio::task::{JoinHandle, LocalSet, spawn_local, yield_now};
    use ttrpc::proto::Request;

    const SECOND: Duration = Duration::from_secs(1);

    /// What the fake containerd does with a request.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Reply {
        Take,
        /// Takes it, but nobody hears of it.
        TakeAndCut,
        Cut,
        Unavailable,
        Invalid,
        Unknown,
        Hang,
        /// Cuts all connections and is gone until it is started again.
        Die,
    }

    /// A containerd in a directory of its own: its socket, and what it was sent.
    struct Containerd {
        path: PathBuf,
        script: RefCell<VecDeque<Reply>>,
        sent: RefCell<Vec<(Request, Reply)>>,
        died: Notify,
        _dir: TempDir,
    }

    impl Containerd {
        fn new(script: &[Reply]) -> Rc<Self> {
            let dir = tempfile::tempdir().unwrap();
            Rc::new(Self {
                path: dir.path().join("s.ttrpc"),
                script: RefCell::new(script.iter().copied().collect()),
                sent: RefCell::default(),
                died: Notify::new(),
                _dir: dir,
            })
        }

        fn events(&self) -> Events {
            Events::new(self.path.to_str().unwrap().into(), "k8s.io".into())
        }

        /// Listens and serves until the script says [`Reply::Die`].
        fn start(self: &Rc<Self>) -> JoinHandle<()> {
            let _ = std::fs::remove_file(&self.path);
            let listener = UnixListener::bind(&self.path).unwrap();
            let this = self.clone();
            spawn_local(async move {
                let mut open = tokio::task::JoinSet::new();
                let mut died = Box::pin(this.died.notified());
                poll_fn(|cx| {
                    while let std::task::Poll::Ready(accepted) = listener.poll_accept(cx) {
                        let connection = this.clone().connection(accepted.unwrap().0);
                        open.spawn_local(connection);
                    }
                    died.as_mut().poll(cx)
                })
                .await;
            })
        }

        async fn connection(self: Rc<Self>, mut stream: UnixStream) {
            let mut reader = FrameReader::of_requests();
            while let Ok(Some(Frame::Message { id, body })) =
                poll_fn(|cx| reader.poll_frame(&stream, cx)).await
            {
                let request = Request::parse_from_bytes(&body).unwrap();
                let reply = self.script.borrow_mut().pop_front();
                let reply = reply.unwrap_or(Reply::Take);
                self.sent.borrow_mut().push((request, reply));
                let answer = match reply {
                    Reply::Take => Ok(vec![]),
                    Reply::Unavailable => Err(Error::new(Kind::Unavailable, "not now")),
                    Reply::Invalid => Err(Error::invalid("never")),
                    Reply::Unknown => Err(Error::unknown("not this one")),
                    Reply::Cut | Reply::TakeAndCut => return,
                    Reply::Hang => pending().await,
                    Reply::Die => {
                        self.died.notify_waiters();
                        pending().await
                    }
                };
                let answer = frame::response(id, answer);
                stream.write_all(&answer).await.unwrap();
            }
        }

        /// The pids of the events that were sent, with what became of each.
        fn sent(&self) -> Vec<(u32, Reply)> {
            let sent = self.sent.borrow();
            sent.iter().map(|(r, reply)| (pid(r), *reply)).collect()
        }

        /// The pids of the events that containerd took.
        fn taken(&self) -> Vec<u32> {
            let took = |&(pid, reply): &(u32, Reply)| {
                matches!(reply, Reply::Take | Reply::TakeAndCut).then_some(pid)
            };
            self.sent().iter().filter_map(took).collect()
        }
    }

    fn envelope(request: &Request) -> Envelope {
        let forward = ForwardRequest::parse_from_bytes(&request.payload).unwrap();
        forward.envelope.unwrap()
    }

    fn pid(request: &Request) -> u32 {
        let event = envelope(request).event.unwrap();
        messages::TaskStart::parse_from_bytes(&event.value)
            .unwrap()
            .pid
    }

    fn start(pid: u32) -> Event {
        Event::Start {
            container_id: "c".into(),
            pid,
        }
    }

    /// Runs `test` in stopped time.
    fn in_stopped_time<F: Future<Output = ()>>(test: F) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    /// Lets everybody run, in stopped time, until `condition`. Sockets are never
    /// waited for, so that the runtime has no reason to move the clock.
    async fn until(condition: impl Fn() -> bool) {
        let mut turns = 0;
        while !condition() {
            turns += 1;
            assert!(turns < 1_000_000, "hangs");
            yield_now().await;
        }
    }

    /// As [`until`], but time goes on, and a containerd that died is started again.
    async fn eventually(containerd: &Rc<Containerd>, condition: impl Fn() -> bool) {
        in_steps_of(Duration::from_millis(100), containerd, condition).await;
    }

    /// As [`eventually`], in larger steps.
    async fn in_steps_of(
        step: Duration,
        containerd: &Rc<Containerd>,
        condition: impl Fn() -> bool,
    ) {
        let mut running = containerd.start();
        for _ in 0..2000 {
            for _ in 0..200 {
                if condition() {
                    return;
                }
                yield_now().await;
            }
            if running.is_finished() {
                running = containerd.start();
            }
            tokio::time::advance(step).await;
        }
        panic!("never");
    }

    #[test]
    fn each_event_has_its_topic_and_type() {
        let at = UNIX_EPOCH + Duration::new(7, 8);
        let container_id = String::from("c");
        let exec_id = String::from("e");
        let create = Event::Create {
            container_id: container_id.clone(),
            bundle: "/b".into(),
            rootfs: vec![],
            io: Stdio::default(),
            checkpoint: String::new(),
            pid: 1,
        };
        let exit = Event::Exit {
            container_id: container_id.clone(),
            id: exec_id.clone(),
            pid: 1,
            exit_status: 2,
            exited_at: at,
        };
        let delete = Event::Delete {
            container_id: container_id.clone(),
            pid: 1,
            exit_status: 2,
            exited_at: None,
        };
        let exec_added = Event::ExecAdded {
            container_id: container_id.clone(),
            exec_id: exec_id.clone(),
        };
        let exec_started = Event::ExecStarted {
            container_id: container_id.clone(),
            exec_id,
            pid: 1,
        };
        let checkpointed = Event::Checkpointed {
            container_id: container_id.clone(),
            checkpoint: "/k".into(),
        };
        let oom = Event::Oom {
            container_id: container_id.clone(),
        };
        let paused = Event::Paused {
            container_id: container_id.clone(),
        };
        let resumed = Event::Resumed { container_id };
        for (event, topic, name) in [
            (create, "/tasks/create", "TaskCreate"),
            (start(1), "/tasks/start", "TaskStart"),
            (exec_added, "/tasks/exec-added", "TaskExecAdded"),
            (exec_started, "/tasks/exec-started", "TaskExecStarted"),
            (exit, "/tasks/exit", "TaskExit"),
            (delete, "/tasks/delete", "TaskDelete"),
            (oom, "/tasks/oom", "TaskOOM"),
            (paused, "/tasks/paused", "TaskPaused"),
            (resumed, "/tasks/resumed", "TaskResumed"),
            (checkpointed, "/tasks/checkpointed", "TaskCheckpointed"),
        ] {
            let entry = encode(event, "ns", at).unwrap();
            assert_eq!(entry.topic, topic);
            let forward = ForwardRequest::parse_from_bytes(&entry.request).unwrap();
            let envelope = forward.envelope.unwrap();
            assert_eq!(envelope.topic, topic);
            assert_eq!(envelope.namespace, "ns");
            assert_eq!(
                (envelope.timestamp.seconds, envelope.timestamp.nanos),
                (7, 8)
            );
            assert_eq!(envelope.event.type_url, format!("containerd.events.{name}"));
        }
    }

    #[test]
    fn events_have_all_fields() {
        let (_, packed) = convert(Event::Create {
            container_id: "c".into(),
            bundle: "/b".into(),
            rootfs: vec![Mount {
                kind: "bind".into(),
                source: "/s".into(),
                target: "t".into(),
                options: vec!["ro".into()],
            }],
            io: Stdio {
                terminal: true,
                stdin: "0".into(),
                stdout: "1".into(),
                stderr: "2".into(),
            },
            checkpoint: "/k".into(),
            pid: 3,
        })
        .unwrap();
        let create = messages::TaskCreate::parse_from_bytes(&packed.value).unwrap();
        assert_eq!(create.container_id, "c");
        assert_eq!(create.bundle, "/b");
        let mount = &create.rootfs[0];
        assert_eq!(
            (mount.type_.as_str(), mount.source.as_str()),
            ("bind", "/s")
        );
        assert_eq!(
            (mount.target.as_str(), &mount.options[..]),
            ("t", &["ro".into()][..])
        );
        let io = &create.io;
        assert_eq!([&*io.stdin, &*io.stdout, &*io.stderr], ["0", "1", "2"]);
        assert!(io.terminal);
        assert_eq!((create.checkpoint.as_str(), create.pid), ("/k", 3));

        let (_, packed) = convert(Event::Delete {
            container_id: "c".into(),
            pid: 4,
            exit_status: 137,
            exited_at: None,
        })
        .unwrap();
        let delete = messages::TaskDelete::parse_from_bytes(&packed.value).unwrap();
        assert_eq!((delete.pid, delete.exit_status), (4, 137));
        assert_eq!(
            (delete.container_id.as_str(), delete.id.as_str()),
            ("c", "")
        );
        assert_eq!(delete.exited_at.seconds, -62_135_596_800);
    }

    #[test]
    fn forward_call_is_as_containerds() {
        in_stopped_time(async {
            let containerd = Containerd::new(&[]);
            let events = containerd.events();
            spawn_local(events.clone().run());
            events.publish(start(1));
            eventually(&containerd, || !containerd.taken().is_empty()).await;
            let (request, _) = &containerd.sent.borrow()[0];
            assert_eq!(
                request.service,
                "containerd.services.events.ttrpc.v1.Events"
            );
            assert_eq!(request.method, "Forward");
            assert_eq!(request.timeout_nano, 5_000_000_000);
            let [pair] = &request.metadata[..] else {
                panic!("{:?}", request.metadata);
            };
            assert_eq!(pair.key, "containerd-namespace-ttrpc");
            assert_eq!(pair.value, "k8s.io");
            assert_eq!(envelope(request).namespace, "k8s.io");
        });
    }

    #[test]
    fn restart_of_containerd_keeps_all_events_in_order() {
        in_stopped_time(async {
            let containerd = Containerd::new(&[Reply::Take, Reply::Take, Reply::Die]);
            let events = containerd.events();
            spawn_local(events.clone().run());
            for pid in 0..5 {
                events.publish(start(pid));
            }
            // It dies with event 2 in flight.
            let running = containerd.start();
            until(|| running.is_finished()).await;
            for pid in 5..10 {
                events.publish(start(pid));
            }
            tokio::time::advance(Duration::from_secs(60)).await;
            eventually(&containerd, || containerd.taken().len() == 10).await;
            assert_eq!(containerd.taken(), (0..10).collect::<Vec<_>>());
            assert_eq!(containerd.sent()[2..4], [(2, Reply::Die), (2, Reply::Take)]);
        });
    }

    #[test]
    fn events_are_kept_until_containerd_listens() {
        in_stopped_time(async {
            let containerd = Containerd::new(&[]);
            let events = containerd.events();
            spawn_local(events.clone().run());
            for pid in 0..3 {
                events.publish(start(pid));
            }
            for _ in 0..100 {
                yield_now().await;
                tokio::time::advance(Duration::from_secs(10)).await;
            }
            eventually(&containerd, || containerd.taken().len() == 3).await;
            assert_eq!(containerd.taken(), [0, 1, 2]);
        });
    }

    #[test]
    fn refused_events_are_retried_unless_invalid() {
        in_stopped_time(async {
            use Reply::{Invalid, Take, Unavailable};
            let containerd = Containerd::new(&[Unavailable, Unavailable, Take, Invalid]);
            let events = containerd.events();
            spawn_local(events.clone().run());
            for pid in 0..3 {
                events.publish(start(pid));
            }
            eventually(&containerd, || containerd.taken().len() == 2).await;
            let expected = [
                (0, Unavailable),
                (0, Unavailable),
                (0, Take),
                (1, Invalid),
                (2, Take),
            ];
            assert_eq!(containerd.sent(), expected);
        });
    }

    #[test]
    fn permanently_refused_event_is_dropped_after_a_while() {
        in_stopped_time(async {
            for (reply, time) in [(Reply::Unknown, REFUSED), (Reply::Unavailable, STARTING)] {
                let tries = 1 + time.as_secs() as usize;
                let containerd = Containerd::new(&vec![reply; tries]);
                let events = containerd.events();
                spawn_local(events.clone().run());
                events.publish(start(1));
                let begun = Instant::now();
                let dropped = || events.waiting() == 0;
                in_steps_of(SECOND, &containerd, dropped).await;
                let took = begun.elapsed();
                assert!(took >= time, "{reply:?}: {took:?}");
                assert!(took < time + 4 * LONGEST_PAUSE, "{reply:?}: {took:?}");
                // The next one is taken, once the script has no refusal left.
                containerd.script.borrow_mut().clear();
                events.publish(start(2));
                eventually(&containerd, dropped).await;
                assert_eq!(containerd.taken(), [2]);
            }
        });
    }

    #[test]
    fn start_of_containerd_is_awaited_once() {
        in_stopped_time(async {
            let containerd = Containerd::new(&[Reply::Unavailable; 1000]);
            let events = containerd.events();
            spawn_local(events.clone().run());
            events.publish(start(1));
            let dropped = || events.waiting() == 0;
            in_steps_of(SECOND, &containerd, dropped).await;
            let begun = Instant::now();
            events.publish(start(2));
            in_steps_of(SECOND, &containerd, dropped).await;
            assert!(begun.elapsed() < REFUSED + 4 * LONGEST_PAUSE);
        });
    }

    #[test]
    fn repeated_oom_of_a_container_is_not_published() {
        in_stopped_time(async {
            let containerd = Containerd::new(&[]);
            let events = containerd.events();
            let oom = |id: &str| Event::Oom {
                container_id: id.into(),
            };
            for _ in 0..10_000 {
                events.publish(oom("c"));
                events.publish(oom("d"));
            }
            assert_eq!(events.waiting(), 2);
            for _ in 0..10 {
                events.publish(start(1));
                events.publish(oom("c"));
                events.publish(oom("d"));
            }
            assert_eq!(events.waiting(), 2 + 2 * 10);
            // Once it is published, the next one is new.
            spawn_local(events.clone().run());
            eventually(&containerd, || events.waiting() == 0).await;
            events.publish(oom("c"));
            assert_eq!(events.waiting(), 1);
        });
    }

    #[test]
    fn nobody_listens_and_shutdown_shortens_the_pause() {
        in_stopped_time(async {
            let containerd = Containerd::new(&[]);
            let events = containerd.events();
            spawn_local(events.clone().run());
            assert!(!events.nobody_listens());
            events.publish(start(1));
            until(|| events.nobody_listens()).await;
            for _ in 0..100 {
                tokio::time::advance(LONGEST_PAUSE).await;
                for _ in 0..10 {
                    yield_now().await;
                }
            }
            containerd.start();
            // The clock stands still.
            let drained = spawn_local({
                let events = events.clone();
                async move { events.drained().await }
            });
            until(|| drained.is_finished()).await;
            assert!(!events.nobody_listens());
        });
    }

    #[test]
    fn containerd_that_is_back_gets_events_when_its_clients_have_subscribed() {
        in_stopped_time(async {
            let containerd = Containerd::new(&[]);
            let events = containerd.events();
            spawn_local(events.clone().run());
            events.publish(start(1));
            events.publish(start(2));
            until(|| events.nobody_listens()).await;
            containerd.start();
            tokio::time::advance(FIRST_PAUSE + Duration::from_millis(1)).await;
            until(|| !events.nobody_listens()).await;
            tokio::time::advance(RESUBSCRIPTION - Duration::from_millis(10)).await;
            for _ in 0..1000 {
                yield_now().await;
            }
            assert_eq!(containerd.sent(), []);
            // Once is enough for all that wait.
            tokio::time::advance(Duration::from_millis(20)).await;
            until(|| containerd.taken().len() == 2).await;
            assert_eq!(containerd.taken(), [1, 2]);
        });
    }

    #[test]
    fn attempt_to_a_hanging_containerd_ends_after_five_seconds() {
        in_stopped_time(async {
            let containerd = Containerd::new(&[Reply::Hang]);
            let events = containerd.events();
            spawn_local(events.clone().run());
            containerd.start();
            events.publish(start(1));
            events.publish(start(2));
            until(|| containerd.sent().len() == 1).await;
            tokio::time::advance(ATTEMPT - Duration::from_millis(1)).await;
            for _ in 0..1000 {
                yield_now().await;
            }
            assert_eq!(containerd.sent().len(), 1);
            tokio::time::advance(Duration::from_millis(2)).await;
            // The timeout is noticed before time goes on to the next attempt.
            for _ in 0..1000 {
                yield_now().await;
            }
            tokio::time::advance(FIRST_PAUSE).await;
            until(|| containerd.taken().len() == 2).await;
            assert_eq!(containerd.taken(), [1, 2]);
        });
    }

    #[test]
    fn reconnect_after_an_idle_disconnect_is_immediate() {
        in_stopped_time(async {
            let containerd = Containerd::new(&[]);
            let events = containerd.events();
            spawn_local(events.clone().run());
            let running = containerd.start();
            events.publish(start(1));
            until(|| containerd.taken().len() == 1).await;
            containerd.died.notify_waiters();
            until(|| running.is_finished()).await;
            containerd.start();
            events.publish(start(2));
            until(|| containerd.taken().len() == 2).await;
        });
    }

    #[test]
    fn drained_waits_for_the_last_answer() {
        in_stopped_time(async {
            let containerd = Containerd::new(&[Reply::Take, Reply::Unavailable]);
            let events = containerd.events();
            events.drained().await;
            spawn_local(events.clone().run());
            events.publish(start(1));
            events.publish(start(2));
            let drained = {
                let (events, containerd) = (events.clone(), containerd.clone());
                spawn_local(async move {
                    events.drained().await;
                    containerd.taken()
                })
            };
            eventually(&containerd, || drained.is_finished()).await;
            assert_eq!(drained.await.unwrap(), [1, 2]);
            assert_eq!(events.0.waiting.borrow().capacity(), 0);
        });
    }

    #[test]
    fn events_without_an_address_are_dropped() {
        in_stopped_time(async {
            let events = Events::new(String::new(), "ns".into());
            events.publish(start(1));
            events.drained().await;
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        #[test]
        fn events_arrive_in_order_with_any_behaviour_of_containerd(
            script in proptest::collection::vec(
                prop_oneof![
                    4 => Just(Reply::Take),
                    1 => Just(Reply::TakeAndCut),
                    1 => Just(Reply::Cut),
                    1 => Just(Reply::Unavailable),
                    1 => Just(Reply::Hang),
                    1 => Just(Reply::Die),
                ],
                0..20,
            ),
        ) {
            in_stopped_time(async {
                let containerd = Containerd::new(&script);
                let events = containerd.events();
                spawn_local(events.clone().run());
                let done = {
                    let events = events.clone();
                    spawn_local(async move {
                        for pid in 0..20 {
                            events.publish(start(pid));
                            if pid % 3 == 0 {
                                events.drained().await;
                            }
                        }
                        events.drained().await;
                    })
                };
                eventually(&containerd, || done.is_finished()).await;
                // Only an event whose answer was lost comes twice, and at once.
                let mut taken = containerd.taken();
                taken.dedup();
                assert_eq!(taken, (0..20).collect::<Vec<_>>());
            });
        }
    }
}
