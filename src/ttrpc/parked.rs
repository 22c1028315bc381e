//! Requests of one connection that wait for an event, for as long as it takes: a client
//! that gives one up does not tell, so they add up.
//!
//! Promises: one that waits costs four bytes, as equal calls share one run of the handler;
//! their number is bounded, and it is the ones in excess that are given up, never the
//! newest, nor the first of its kind while there are others.
//!
//! Lacks on purpose: sharing between connections, and between calls with deadlines.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::task::{Context, Poll};

use log::error;
use tokio::task::{AbortHandle, JoinSet};

use super::server::{Call, Finished, Work};
use crate::error::{Error, Kind, Result};

/// Different calls that wait on one connection; about 1.5 kB each.
pub const MAX_CALLS: usize = 4096;

/// Requests that wait on one connection, equal ones included; 4 bytes each.
pub const MAX_REQUESTS: usize = 1 << 16;

/// Bytes of the payload of such a call: that of a Wait is two ids.
pub const MAX_PAYLOAD: usize = 4096;

/// Equal calls, without a deadline: number 0. A call with one: the number of its request.
type Key = (Rc<Call>, u32);

/// The requests that wait, and those that waited and are not answered yet.
#[derive(Default)]
pub struct Parked {
    waiting: BTreeMap<Key, Waiting>,
    /// Of all in `waiting`.
    requests: usize,
    /// Dropping it aborts them.
    running: JoinSet<(Key, Finished)>,
    ended: VecDeque<Ended>,
}

/// Equal calls that wait.
struct Waiting {
    /// Stream ids; they grow.
    ids: VecDeque<u32>,
    work: AbortHandle,
}

/// Equal calls that are to be answered.
struct Ended {
    ids: VecDeque<u32>,
    outcome: Result<Vec<u8>>,
    /// `None`: given up.
    _finished: Option<Finished>,
}

impl Parked {
    /// Whether request `id` found an equal one that waits: it will get the same answer.
    pub fn join(&mut self, call: &Rc<Call>, id: u32) -> bool {
        let Some(waiting) = self.waiting.get_mut(&(call.clone(), 0)) else {
            return false;
        };
        waiting.ids.push_back(id);
        self.requests += 1;
        if self.requests > MAX_REQUESTS {
            self.give_up_a_repeated();
        }
        true
    }

    /// Parks request `id`, whose answer `work` makes; `shared`: that of equal ones, too.
    pub fn park(&mut self, call: Rc<Call>, id: u32, work: Work, shared: bool) {
        if self.waiting.len() >= MAX_CALLS {
            self.give_up_a_call();
        }
        if self.requests >= MAX_REQUESTS {
            self.give_up_a_repeated();
        }
        let key = (call, if shared { 0 } else { id });
        let ended = key.clone();
        let work = self.running.spawn_local(async { (ended, work.await) });
        let ids = VecDeque::from([id]);
        self.waiting.insert(key, Waiting { ids, work });
        self.requests += 1;
    }

    /// Whether there is a [`Parked::next_answer`].
    pub fn has_answers(&self) -> bool {
        !self.ended.is_empty()
    }

    /// How many requests wait.
    pub fn len(&self) -> usize {
        self.requests
    }

    /// Notices the calls that ended.
    pub fn collect(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(done)) = self.running.poll_join_next(cx) {
            match done {
                Ok((key, mut finished)) => {
                    // It may have been given up in this very moment.
                    if let Some(waiting) = self.waiting.remove(&key) {
                        let outcome = finished.take();
                        self.end(waiting, outcome, Some(finished));
                    }
                }
                Err(e) if e.is_cancelled() => {}
                Err(e) => error!("ttrpc request: {e}"),
            }
        }
    }

    /// The next answer: the request's id and what to tell it.
    pub fn next_answer(&mut self) -> Option<(u32, Result<Vec<u8>>)> {
        let ended = self.ended.front_mut()?;
        let id = ended.ids.pop_front()?;
        let outcome = ended.outcome.clone();
        if ended.ids.is_empty() {
            self.ended.pop_front();
        }
        if self.ended.is_empty() {
            // After a burst, nothing is held while idle.
            self.ended = VecDeque::new();
        }
        Some((id, outcome))
    }

    fn end(&mut self, waiting: Waiting, outcome: Result<Vec<u8>>, finished: Option<Finished>) {
        self.requests -= waiting.ids.len();
        self.ended.push_back(Ended {
            ids: waiting.ids,
            outcome,
            _finished: finished,
        });
    }

    /// Gives up the oldest call, rather one whose client waits for a limited time only.
    fn give_up_a_call(&mut self) {
        let keys = self.waiting.iter();
        let oldest = keys.min_by_key(|((_, deadline), waiting)| (*deadline == 0, waiting.ids[0]));
        let Some(key) = oldest.map(|(key, _)| key.clone()) else {
            return;
        };
        if let Some(waiting) = self.waiting.remove(&key) {
            waiting.work.abort();
            let text = format!(
                "cancelled: more than {MAX_CALLS} different Wait requests on this connection"
            );
            self.end(
                waiting,
                Err(Error::new(Kind::ResourceExhausted, text)),
                None,
            );
        }
    }

    /// Gives up the second oldest of the call that is repeated most: whoever asked first
    /// is the most likely to be there still.
    fn give_up_a_repeated(&mut self) {
        let most = self.waiting.values_mut().max_by_key(|w| w.ids.len());
        let Some(id) = most.and_then(|waiting| waiting.ids.remove(1)) else {
            return;
        };
        self.requests -= 1;
        let text = format!("cancelled: more than {MAX_REQUESTS} Wait requests on this connection");
        self.ended.push_back(Ended {
            ids: VecDeque::from([id]),
            outcome: Err(Error::new(Kind::ResourceExhausted, text)),
            _finished: None,
        });
    }
}
