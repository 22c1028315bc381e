//! Random schedules over the real containers, with a fake kernel, and a runtime that ends when
//! the schedule says so: events keep their order in all of them. A failure prints its schedule;
//! `proptest` keeps its seed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::rc::Rc;

use proptest::prelude::*;
use tokio::task::{JoinHandle, LocalSet, spawn_local, yield_now};
use tokio::time::{Duration, sleep};

use super::*;
use crate::bundle::Bundle;
use crate::events::Event;
use crate::options::Options;
use crate::reaper::fake::Kernel;
use crate::stdio::Stdio;

/// What a schedule may do next; numbers choose among what there is, modulo.
#[derive(Debug, Clone, Copy)]
enum Step {
    Start,
    Add,
    StartExec(usize),
    DeleteExec(usize),
    Delete,
    Pause,
    Resume,
    /// SIGKILL to the init, or to all.
    Kill(bool),
    /// The n-th runtime command in flight ends well, or not.
    Answer(usize, bool),
    /// The n-th process of the container ends.
    End(usize),
    /// The client of the n-th call leaves.
    Leave(usize),
    /// Time passes, enough to cut short whatever is to be.
    Pass,
    /// Let whatever can go on go on.
    Settle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => Just(Step::Start),
        2 => Just(Step::Add),
        3 => (0..4usize).prop_map(Step::StartExec),
        2 => (0..4usize).prop_map(Step::DeleteExec),
        1 => Just(Step::Delete),
        1 => Just(Step::Pause),
        1 => Just(Step::Resume),
        1 => any::<bool>().prop_map(Step::Kill),
        6 => (0..4usize, prop::bool::weighted(0.8)).prop_map(|(n, ok)| Step::Answer(n, ok)),
        3 => (0..4usize).prop_map(Step::End),
        1 => (0..8usize).prop_map(Step::Leave),
        1 => Just(Step::Pass),
        6 => Just(Step::Settle),
    ];
    prop::collection::vec(step, 0..50)
}

/// A container in a world that a schedule drives.
struct World {
    kernel: Rc<Kernel>,
    reaper: Reaper,
    tasks: Rc<Tasks>,
    bundle: tempfile::TempDir,
    calls: RefCell<Vec<(Cancel, JoinHandle<()>)>>,
    execs: RefCell<usize>,
}

const ID: &str = "c";

impl World {
    fn new() -> World {
        let kernel = Rc::new(Kernel::default());
        let reaper = Reaper::over(kernel.clone());
        let bundle = tempfile::tempdir().expect("a bundle");
        let spec = r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#;
        fs::write(bundle.path().join("config.json"), spec).expect("a spec");
        let tasks = Rc::new(Tasks::new(Shared {
            reaper: reaper.clone(),
            events: Events::new("unix:///nowhere".into(), "ns".into()),
            namespace: "ns".into(),
            stats_budget: StatsBudget::default(),
        }));
        World {
            kernel,
            reaper,
            tasks,
            bundle,
            calls: RefCell::default(),
            execs: RefCell::default(),
        }
    }

    fn call<F: Future<Output = ()> + 'static>(&self, call: impl FnOnce(Cancel) -> F) {
        let cancel = Cancel::new();
        let call = spawn_local(call(cancel.clone()));
        self.calls.borrow_mut().push((cancel, call));
    }

    fn create(&self) {
        let tasks = self.tasks.clone();
        let create = Create {
            id: ID.into(),
            bundle: Bundle::at(self.bundle.path()),
            rootfs: Vec::new(),
            stdio: Stdio::default(),
            options: Options::default(),
            checkpoint: None,
        };
        self.call(|cancel| async move { drop(tasks.create(create, &cancel).await) });
    }

    /// Does something with the container, if there is one.
    fn with<F: Future<Output = ()> + 'static>(
        &self,
        call: impl FnOnce(Rc<Container>, Cancel) -> F,
    ) {
        if let Ok(container) = self.tasks.find(ID) {
            self.call(|cancel| call(container, cancel));
        }
    }

    fn exec(&self, n: usize) -> String {
        let added = (*self.execs.borrow()).max(1);
        format!("e{}", n % added)
    }

    async fn step(&self, step: Step) {
        match step {
            Step::Start => self.with(|c, x| async move { drop(c.start(Target::Init, &x).await) }),
            Step::Add => self.add(),
            Step::StartExec(n) => {
                let id = self.exec(n);
                self.with(|c, x| async move { drop(c.start(Target::Exec(&id), &x).await) });
            }
            Step::DeleteExec(n) => {
                let id = self.exec(n);
                self.with(|c, x| async move { drop(c.delete(Target::Exec(&id), &x).await) });
            }
            Step::Delete => {
                let tasks = self.tasks.clone();
                self.call(
                    |cancel| async move { drop(tasks.delete(ID, Target::Init, &cancel).await) },
                );
            }
            Step::Pause => self.with(|c, x| async move { drop(c.pause(&x).await) }),
            Step::Resume => self.with(|c, x| async move { drop(c.resume(&x).await) }),
            Step::Kill(all) => {
                self.with(|c, x| async move { drop(c.kill(Target::Init, 9, all, &x).await) })
            }
            Step::Answer(n, well) => self.answer(n, well),
            Step::End(n) => self.reaper.end_other(n),
            Step::Leave(n) => {
                let calls = self.calls.borrow();
                calls[n % calls.len()].0.cancel(Cause::RequestEnded);
            }
            Step::Pass => self.pass().await,
            Step::Settle => self.settle().await,
        }
    }

    /// Time passes, in steps, as killed processes end in between: more than a call may take that
    /// is cut short.
    async fn pass(&self) {
        for _ in 0..6 {
            self.settle().await;
            sleep(Duration::from_secs(1)).await;
        }
    }

    fn add(&self) {
        let id = format!("e{}", self.execs.borrow());
        if let Ok(container) = self.tasks.find(ID)
            && container.exec(id, Stdio::default(), b"{}").is_ok()
        {
            *self.execs.borrow_mut() += 1;
        }
    }

    /// The runtime does what it was asked, or fails.
    fn answer(&self, n: usize, well: bool) {
        self.reaper.answer(n, well).expect("a pid file");
    }

    /// What was sent SIGKILL ends, and every task goes as far as it can.
    async fn settle(&self) {
        for _ in 0..20 {
            self.reaper.end_signalled();
            yield_now().await;
        }
    }

    /// Everything that is under way ends, then the container does, and is deleted. With
    /// `hangs` no command of the runtime ends before the container has.
    async fn finish(&self, hangs: bool) {
        for _ in 0..if hangs { 3 } else { 8 } {
            match hangs {
                true => self.pass().await,
                false => self.answer_all().await,
            }
            while !self.kernel.others().is_empty() {
                self.reaper.end_other(0);
            }
        }
        if hangs {
            self.pass().await;
            self.assert_exit_published();
        }
        self.answer_all().await;
        self.step(Step::Delete).await;
        self.answer_all().await;
    }

    /// Whatever hangs: init has ended, so its exit is published, if it was created.
    fn assert_exit_published(&self) {
        let published = self.tasks.shared.events.published();
        let created = published.iter().any(|e| matches!(e, Event::Create { .. }));
        let exited = |e: &Event| matches!(e, Event::Exit { id, .. } if id == ID);
        assert_eq!(created, published.iter().any(exited), "{published:?}");
    }

    async fn answer_all(&self) {
        for _ in 0..4 {
            self.settle().await;
            while !self.kernel.spawned.borrow().is_empty() {
                self.answer(0, true);
            }
        }
        self.settle().await;
    }
}

/// What the events say, checked one by one in the order in which they were published.
#[derive(Default)]
struct History {
    created: bool,
    started: bool,
    init_exits: usize,
    deleted: bool,
    /// Of each exec: whether it was started, and how often it exited.
    execs: BTreeMap<String, (bool, usize)>,
}

impl History {
    fn check(&mut self, event: &Event) {
        assert!(!self.deleted, "{event:?} after the deletion");
        match event {
            Event::Create { .. } => {
                assert!(!self.created, "created twice");
                self.created = true;
            }
            Event::Start { .. } => {
                assert!(self.created && !self.started, "started out of order");
                assert_eq!(self.init_exits, 0, "started after its exit");
                self.started = true;
            }
            Event::ExecAdded { exec_id, .. } => {
                assert!(self.created, "exec before the container");
                self.execs.insert(exec_id.clone(), (false, 0));
            }
            Event::ExecStarted { exec_id, .. } => {
                let exec = self.execs.get_mut(exec_id).expect("added before");
                assert_eq!(*exec, (false, 0), "{exec_id} started out of order");
                assert_eq!(self.init_exits, 0, "{exec_id} started after init's exit");
                exec.0 = true;
            }
            Event::Exit { id, .. } if id == ID => {
                assert!(self.created, "exit before create");
                self.init_exits += 1;
                let running = self.execs.values().find(|exec| exec.0 && exec.1 == 0);
                assert_eq!(running, None, "init's exit before an exec's");
            }
            Event::Exit { id, .. } => {
                let exec = self.execs.get_mut(id).expect("added before");
                assert_eq!(*exec, (true, 0), "{id} exited out of order");
                assert_eq!(self.init_exits, 0, "{id} exited after init");
                exec.1 = 1;
            }
            Event::Delete { .. } => self.deleted = true,
            Event::Paused { .. } | Event::Resumed { .. } => {
                assert!(
                    self.started && self.init_exits == 0,
                    "{event:?} while not running"
                );
            }
            Event::Oom { .. } | Event::Checkpointed { .. } => panic!("{event:?} of nothing"),
        }
    }

    /// All events that must come have come.
    fn check_end(&self) {
        if !self.created {
            return assert!(self.execs.is_empty());
        }
        assert_eq!(self.init_exits, 1, "init's exits");
        assert!(self.deleted, "never deleted");
        for (id, (started, exits)) in &self.execs {
            assert_eq!(*exits, usize::from(*started), "exits of {id}");
        }
    }
}

fn play(create_succeeds: bool, hangs: bool, steps: Vec<Step>) {
    let world = World::new();
    let local = LocalSet::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("an event loop");
    local.block_on(&runtime, async {
        world.create();
        while world.kernel.spawned.borrow().is_empty() {
            // A thread looks at the bundle.
            std::thread::yield_now();
            yield_now().await;
        }
        world.answer(0, create_succeeds);
        world.settle().await;
        for step in steps {
            world.step(step).await;
        }
        world.finish(hangs).await;
        let mut history = History::default();
        for event in world.tasks.shared.events.published() {
            history.check(&event);
        }
        history.check_end();
        for (_, call) in world.calls.take() {
            assert!(call.is_finished(), "a call is never answered");
            call.await.expect("no panic");
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn events_keep_their_order_in_any_schedule(
        create_succeeds in prop::bool::weighted(0.95),
        hangs in prop::bool::weighted(0.2),
        steps in steps(),
    ) {
        play(create_succeeds, hangs, steps);
    }
}
