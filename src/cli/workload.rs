//! Clients that use a cluster and write down what they see.
//!
//! Keys are of two kinds: registers (put, get, cas, delete) and counters (incr, get). Every value written is unique, so
//! that a read tells which write it saw. After an unknown outcome a client goes on under a new process number: the old
//! operation may take effect at any later time.

use crate::client::{Client, Outcome};
use crate::kv::Expect;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tetrachord_checker::{Action, Operation, Value};

/// What many clients see.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    started: Instant,
    operations: Arc<Mutex<Vec<Operation>>>,
    failed: Arc<AtomicU64>,
    last_process: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            operations: Arc::default(),
            failed: Arc::default(),
            last_process: Arc::default(),
            stop: Arc::default(),
        }
    }

    /// Asks all clients to end after their current operation.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// How many operations have an entry.
    pub(crate) fn len(&self) -> usize {
        self.operations.lock().expect("never held while panicking").len()
    }

    /// Everything recorded, and how many operations surely did not happen.
    pub(crate) fn take(&self) -> (Vec<Operation>, u64) {
        let operations = std::mem::take(&mut *self.operations.lock().expect("never held while panicking"));
        (operations, self.failed.load(Ordering::Relaxed))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn new_process(&self) -> u64 {
        self.last_process.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn add(&self, operation: Operation) {
        self.operations.lock().expect("never held while panicking").push(operation);
    }
}

/// The keys of a workload: every other one is a counter.
pub(crate) fn key_name(index: usize) -> String {
    if index.is_multiple_of(2) { format!("register-{index}") } else { format!("counter-{index}") }
}

fn is_counter(index: usize) -> bool {
    !index.is_multiple_of(2)
}

/// One client that does one thing after another until it is told to stop.
pub(crate) async fn run_client(client: Client, recorder: Recorder, keys: usize, seed: u64) {
    let mut user = User {
        process: recorder.new_process(),
        client,
        recorder,
        random: seed | 1,
        written: 0,
        seen: BTreeMap::new(),
    };
    while !user.recorder.is_stopped() {
        let key = usize::try_from(user.below(keys as u64)).unwrap_or(0);
        user.act(key).await;
    }
}

/// Reads every key once, so that the history says what the end state was.
pub(crate) async fn read_all(
    client: &Client,
    recorder: &Recorder,
    keys: usize,
) -> Vec<(String, Option<String>)> {
    let mut user = User {
        process: recorder.new_process(),
        client: client.clone(),
        recorder: recorder.clone(),
        random: 1,
        written: 0,
        seen: BTreeMap::new(),
    };
    let mut values = Vec::new();
    for index in 0..keys {
        let value = user.get(key_name(index)).await;
        values.push((key_name(index), value.flatten()));
    }
    values
}

struct User {
    client: Client,
    recorder: Recorder,
    process: u64,
    random: u64,
    written: u64,
    seen: BTreeMap<String, Option<String>>,
}

impl User {
    fn below(&mut self, n: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % n
    }

    async fn act(&mut self, index: usize) {
        let key = key_name(index);
        let choice = self.below(100);
        match (is_counter(index), choice) {
            (true, 0..40) | (false, 0..35) => drop(self.get(key).await),
            (true, _) => self.incr(key).await,
            (false, 35..65) => self.put(key).await,
            (false, 65..95) => self.cas(key).await,
            (false, _) => self.delete(key).await,
        }
    }

    fn new_value(&mut self) -> String {
        self.written += 1;
        format!("{}-{}", self.process, self.written)
    }

    async fn get(&mut self, key: String) -> Option<Option<String>> {
        let call = self.recorder.now();
        let outcome = self.client.get(&key).await;
        let value = match &outcome {
            Outcome::Done(value) => value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned()),
            _ => None,
        };
        self.seen.insert(key.clone(), value.clone());
        let done =
            self.note(key, call, outcome, |_| Action::Get(value.clone().map(Value::from)), Action::Get(None));
        done.then_some(value)
    }

    async fn put(&mut self, key: String) {
        let (call, value) = (self.recorder.now(), self.new_value());
        let outcome = self.client.put(&key, &value).await;
        self.note(
            key,
            call,
            outcome,
            |_| Action::Put(value.clone().into()),
            Action::Put(value.clone().into()),
        );
    }

    async fn delete(&mut self, key: String) {
        let call = self.recorder.now();
        let outcome = self.client.delete(&key).await;
        self.note(key, call, outcome, |_| Action::Delete, Action::Delete);
    }

    async fn cas(&mut self, key: String) {
        let expect = self.seen.get(&key).cloned().flatten();
        let (call, value) = (self.recorder.now(), self.new_value());
        let bytes = |text: &String| Bytes::copy_from_slice(text.as_bytes());
        let outcome =
            self.client.cas(&key, Expect::Value(expect.as_ref().map(bytes)), Some(bytes(&value))).await;
        if matches!(outcome, Outcome::Done((true, _))) {
            self.seen.insert(key.clone(), Some(value.clone()));
        }
        let action =
            |swapped: bool| Action::Cas(expect.clone().map(Value::from), Some(value.clone().into()), swapped);
        self.note(key, call, outcome, |(swapped, _)| action(*swapped), action(false));
    }

    async fn incr(&mut self, key: String) {
        let call = self.recorder.now();
        let outcome = self.client.incr(&key, 1).await;
        self.note(key, call, outcome, |sum| Action::Incr(1, *sum), Action::Incr(1, 0));
    }

    /// Writes an operation down as what it is: done, surely not done, or unknown. True if it was done.
    fn note<T>(
        &mut self,
        key: String,
        call: u64,
        outcome: Outcome<T>,
        answered: impl FnOnce(&T) -> Action,
        unanswered: Action,
    ) -> bool {
        let process = self.process;
        match outcome {
            Outcome::Done(value) => {
                let end = Some(self.recorder.now());
                self.recorder.add(Operation { process, key, action: answered(&value), call, end, line: 0 });
                true
            }
            Outcome::Refused(_) => {
                self.recorder.failed.fetch_add(1, Ordering::Relaxed);
                false
            }
            Outcome::Unknown(_) => {
                self.recorder.add(Operation { process, key, action: unanswered, call, end: None, line: 0 });
                self.process = self.recorder.new_process();
                false
            }
        }
    }
}
