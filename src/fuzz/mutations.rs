//! Changes the committed inputs at random and gives them to a target. It needs no tool and no
//! other build than the unit tests', which makes it the short run; libFuzzer, which sees what
//! an input reaches, is the long one.
//!
//! Promises: the same seed makes the same inputs. An input that makes a target panic, also where
//! the server catches the panic, or that takes longer than [`INPUT_TIMEOUT`], is returned.
//!
//! Lacks on purpose: coverage. An input that reaches new code is not kept.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, Once};
use std::thread;
use std::time::{Duration, Instant};

use super::FuzzTarget;

/// How long a target may take for one input: generous, as a busy machine may stop it for minutes.
const INPUT_TIMEOUT: Duration = Duration::from_secs(300);

/// Bytes of an input, as in `hack/fuzz`.
const MAX_INPUT_LENGTH: usize = 4096;

/// Changes that are made to one input.
const MAX_CHANGES: usize = 6;

thread_local! {
    /// Whether this thread has panicked, also if the panic was caught.
    static HAS_PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// When a run ends.
#[derive(Clone, Copy)]
pub enum Limit {
    /// After so many inputs.
    Executions(u64),
    /// After this time.
    Time(Duration),
}

/// What a run did.
pub struct Outcome {
    /// Inputs that the target took.
    pub executions: u64,
    /// The input that broke a promise, and how.
    pub finding: Option<(Vec<u8>, &'static str)>,
}

/// Pseudo-random numbers: SplitMix64.
pub struct Random(u64);

impl Random {
    /// For a target of this name: targets do not depend on each other's order.
    pub fn new(seed: u64, name: &str) -> Random {
        Random(name.bytes().fold(seed, |state, byte| {
            state.wrapping_mul(31).wrapping_add(u64::from(byte))
        }))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// The beginning and the end of a part of what has this length.
    fn part(&mut self, length: usize) -> (usize, usize) {
        let (one, other) = (self.below(length + 1), self.below(length + 1));
        (one.min(other), one.max(other))
    }
}

/// What is often at the edge of what a parser takes.
const EDGES: &[&[u8]] = &[
    b"\n",
    b"\0",
    b"/",
    b"\"",
    b"=",
    b":",
    b"-1",
    b"18446744073709551616",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x7f\xff\xff\xff",
    b"\xe2\x80",
];

/// One of `inputs`, changed in some places; parts of others may come in.
fn mutate(random: &mut Random, inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut input = inputs[random.below(inputs.len())].clone();
    for _ in 0..=random.below(MAX_CHANGES) {
        change(random, &mut input, inputs);
    }
    input.truncate(MAX_INPUT_LENGTH);
    input
}

fn change(random: &mut Random, input: &mut Vec<u8>, inputs: &[Vec<u8>]) {
    let (begin, end) = random.part(input.len());
    let new = match random.below(7) {
        0 => Vec::new(),
        1 => vec![random.byte()],
        2 => EDGES[random.below(EDGES.len())].to_vec(),
        // Twice the same.
        3 => input[begin..end].repeat(2),
        4 => {
            let other = &inputs[random.below(inputs.len())];
            let (begin, end) = random.part(other.len());
            other[begin..end].to_vec()
        }
        // One bit, or a number that is one larger or smaller.
        kind => {
            if let Some(byte) = input.get_mut(begin) {
                *byte = match (kind, random.below(2)) {
                    (5, _) => *byte ^ (1 << random.below(8)),
                    (_, 0) => byte.wrapping_add(1),
                    _ => byte.wrapping_sub(1),
                };
            }
            return;
        }
    };
    // In place of a part, or between.
    let end = if random.below(2) == 0 { begin } else { end };
    input.splice(begin..end, new);
}

/// Remembers of each thread that it panicked.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            HAS_PANICKED.set(true);
            print(panic);
        }));
    });
}

/// What the thread that runs a target tells of it.
#[derive(Default)]
struct Progress {
    executions: AtomicU64,
    input: Mutex<Vec<u8>>,
}

impl Progress {
    fn executions(&self) -> u64 {
        self.executions.load(Ordering::SeqCst)
    }

    fn input(&self) -> MutexGuard<'_, Vec<u8>> {
        self.input.lock().expect("the input")
    }

    /// Runs `target` until `limit`. Whether it has panicked.
    fn work(
        &self,
        target: FuzzTarget,
        inputs: &[Vec<u8>],
        mut random: Random,
        limit: Limit,
    ) -> bool {
        let start = Instant::now();
        let goes_on = || match limit {
            Limit::Executions(count) => self.executions() < count,
            Limit::Time(time) => start.elapsed() < time,
        };
        while goes_on() && !HAS_PANICKED.get() {
            let input = mutate(&mut random, inputs);
            self.input().clone_from(&input);
            let _: thread::Result<()> =
                panic::catch_unwind(AssertUnwindSafe(|| (target.1)(&input)));
            self.executions.fetch_add(1, Ordering::SeqCst);
        }
        HAS_PANICKED.get()
    }
}

/// Gives `target` changed `inputs` until `limit`, or until one breaks a promise.
pub fn run(target: FuzzTarget, inputs: Vec<Vec<u8>>, random: Random, limit: Limit) -> Outcome {
    watch_panics();
    let progress = Arc::new(Progress::default());
    let (end, ended) = mpsc::channel();
    let of_thread = progress.clone();
    // Not joined: a target that hangs does not end.
    thread::spawn(move || end.send(of_thread.work(target, &inputs, random, limit)));

    let mut before = None;
    let broken = loop {
        match ended.recv_timeout(INPUT_TIMEOUT) {
            Ok(has_panicked) => break has_panicked.then_some("panics"),
            Err(RecvTimeoutError::Disconnected) => panic!("{}: the thread ended", target.0),
            Err(RecvTimeoutError::Timeout) => {
                let now = Some(progress.executions());
                if now == before {
                    break Some("takes too long");
                }
                before = now;
            }
        }
    };
    Outcome {
        executions: progress.executions(),
        finding: broken.map(|how| (progress.input().clone(), how)),
    }
}
