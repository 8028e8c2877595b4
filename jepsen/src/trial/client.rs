//! Clients of a trial: one operation after another, at a bounded pace, and everything written down as what it was: answered,
//! surely not done, or unknown.

use crate::random::Random;
use crate::workload::Workload;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tetrachord::kv::Expect;
use tetrachord::{Client, Outcome};
use tetrachord_checker::{Action, Operation, Value};

/// Keys are left alone after so long: the judge need not carry a long history of each.
const WINDOW: Duration = Duration::from_secs(8);

/// A client that ends takes no longer than that to say so.
const CLOSE_PATIENCE: Duration = Duration::from_millis(500);

/// An operation that surely did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// When the client was told, in nanoseconds since the trial began.
    pub(super) at: u64,
}

/// What all clients see.
#[derive(Debug)]
pub(super) struct Recorder {
    started: Instant,
    seen: Mutex<Seen>,
    last_process: AtomicU64,
    answered: Vec<AtomicU64>,
    is_stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct Seen {
    operations: Vec<Operation>,
    refused: Vec<Refused>,
    /// The first few reasons for which nothing was done, and how often each was told.
    reasons: BTreeMap<String, u64>,
    keys: BTreeSet<String>,
}

/// Different reasons that are kept at most.
const REASONS_MAX: usize = 20;

impl Recorder {
    pub(super) fn new(clients: usize) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            seen: Mutex::default(),
            last_process: AtomicU64::new(0),
            answered: (0..clients).map(|_| AtomicU64::new(0)).collect(),
            is_stopped: AtomicBool::new(false),
        })
    }

    /// Nanoseconds since the trial began.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    /// How many answers each client has got.
    pub(super) fn answered(&self) -> Vec<u64> {
        self.answered.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    pub(super) fn keys(&self) -> BTreeSet<String> {
        self.seen().keys.clone()
    }

    /// Everything: operations that happened or may have, refusals, and why.
    pub(super) fn take(&self) -> (Vec<Operation>, Vec<Refused>, BTreeMap<String, u64>) {
        let seen = std::mem::take(&mut *self.seen());
        (seen.operations, seen.refused, seen.reasons)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_process(&self) -> u64 {
        self.last_process.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// What a client does, and how often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) workload: Workload,
    /// Makes keys that no earlier trial has used.
    pub(super) run: u64,
    pub(super) keys: u64,
    /// From one operation to the next at least.
    pub(super) pause: Duration,
}

/// One client, until it is told to stop.
pub(super) async fn run(index: usize, client: Client, recorder: Arc<Recorder>, work: Work, seed: u64) {
    let process = recorder.new_process();
    let mut user = User {
        index,
        client,
        recorder,
        process,
        random: Random::new(seed),
        number: 0,
        seen: BTreeMap::new(),
    };
    let mut next = tokio::time::Instant::now();
    while !user.recorder.is_stopped.load(Ordering::Relaxed) {
        // What was missed while nobody answered is not made up for.
        next = next.max(tokio::time::Instant::now() - work.pause) + work.pause;
        tokio::time::sleep_until(next).await;
        user.act(work).await;
    }
    // What it has asked is written down; whether the group forgets it at once or later is all the same.
    let _ = tokio::time::timeout(CLOSE_PATIENCE, user.client.close()).await;
}

/// Reads every key that was ever used, so that nothing acknowledged can be lost unseen. How many could not be read.
pub(super) async fn read_all(client: Client, recorder: Arc<Recorder>) -> usize {
    let process = recorder.new_process();
    let keys = recorder.keys();
    let random = Random::new(0);
    let mut user = User { index: 0, client, recorder, process, random, number: 0, seen: BTreeMap::new() };
    let mut unread = 0;
    for key in keys {
        unread += usize::from(!user.perform(key, Action::Get(None)).await);
    }
    unread
}

struct User {
    index: usize,
    client: Client,
    recorder: Arc<Recorder>,
    process: u64,
    random: Random,
    number: u64,
    seen: BTreeMap<String, Option<Value>>,
}

impl User {
    async fn act(&mut self, work: Work) {
        self.number += 1;
        let (key, action) = work.workload.next(&mut self.random, work.keys, self.process, self.number);
        let window = self.recorder.started.elapsed().as_secs() / WINDOW.as_secs();
        let key = format!("{key}@{window}.{}", work.run);
        let action = match action {
            // Mostly it compares with what it saw last: that is right often enough.
            Action::Cas(_, value, _) if self.random.per_mille(800) => {
                Action::Cas(self.seen.get(&key).cloned().flatten(), value, false)
            }
            action => action,
        };
        if self.perform(key, action).await {
            self.recorder.answered[self.index].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Asks, and writes down what came of it. True if it was answered.
    async fn perform(&mut self, key: String, action: Action) -> bool {
        self.recorder.seen().keys.insert(key.clone());
        let call = self.recorder.now();
        let bytes = |value: &Value| Bytes::copy_from_slice(value.letters().as_bytes());
        let client = self.client.clone();
        match action.clone() {
            Action::Get(_) => {
                let outcome = client.get(&key).await;
                self.note(key, call, action, outcome, |found| {
                    Action::Get(found.map(|value| String::from_utf8_lossy(&value).into_owned().into()))
                })
            }
            Action::Put(value) => {
                let outcome = client.put(&key, value.letters()).await;
                self.note(key, call, action, outcome, |_| Action::Put(value))
            }
            Action::Delete => {
                let outcome = client.delete(&key).await;
                self.note(key, call, action, outcome, |_| Action::Delete)
            }
            Action::Append(value) => {
                let outcome = client.append(&key, &value).await;
                self.note(key, call, action, outcome, |_| Action::Append(value))
            }
            Action::Incr(by, _) => {
                let outcome = client.incr(&key, by).await;
                self.note(key, call, action, outcome, |sum| Action::Incr(by, sum))
            }
            Action::Cas(expect, value, _) => {
                let expected = Expect::Value(expect.as_ref().map(bytes));
                let outcome = client.cas(&key, expected, value.as_ref().map(bytes)).await;
                self.note(key, call, action, outcome, |(swapped, _)| Action::Cas(expect, value, swapped))
            }
        }
    }

    fn note<T>(
        &mut self,
        key: String,
        call: u64,
        asked: Action,
        outcome: Outcome<T>,
        answered: impl FnOnce(T) -> Action,
    ) -> bool {
        let (process, at) = (self.process, self.recorder.now());
        let (action, end, reason) = match outcome {
            Outcome::Done(value) => (answered(value), Some(at), None),
            Outcome::Unknown(reason) => (asked, None, Some(reason)),
            Outcome::Refused(refusal) => {
                let mut seen = self.recorder.seen();
                seen.refused.push(Refused { at });
                seen.count_reason(refusal.to_string());
                return false;
            }
        };
        self.learn(&key, &action, end.is_some());
        let mut seen = self.recorder.seen();
        seen.operations.push(Operation { process, key, action, call, end, line: 0 });
        let Some(reason) = reason else { return true };
        seen.count_reason(reason);
        drop(seen);
        // The old operation may take effect at any later time: whoever asked it is never heard of again.
        self.process = self.recorder.new_process();
        false
    }

    fn learn(&mut self, key: &str, action: &Action, is_answered: bool) {
        let value = match action {
            Action::Get(found) => found.clone(),
            Action::Put(value) => Some(value.clone()),
            Action::Delete => None,
            Action::Cas(_, value, true) => value.clone(),
            _ => return,
        };
        if is_answered {
            self.seen.insert(key.to_string(), value);
        }
    }
}

impl Seen {
    fn count_reason(&mut self, reason: String) {
        if self.reasons.len() < REASONS_MAX || self.reasons.contains_key(&reason) {
            *self.reasons.entry(reason).or_default() += 1;
        }
    }
}
