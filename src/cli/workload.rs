//! Clients that use a cluster and write down what they see.
//!
//! Keys are of two kinds: registers (put, get, cas, delete) and counters (incr, get). Every value written is unique, so
//! that a read tells which write it saw. After an unknown outcome a client goes on under a new process number: the old
//! operation may take effect at any later time.
//!
//! A history begins with keys that are not there. So each run uses keys that nobody has used before: their names end in a name that is
//! drawn for the run. A cluster that holds values of an earlier run would be accused of having them from nowhere.

use crate::client::{Client, Outcome};
use crate::kv::Expect;
use anyhow::Context;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;
use tetrachord_checker::{Action, Operation, Value};
use tokio::task::JoinSet;

/// What many clients see.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    name: String,
    seen: Mutex<Seen>,
    failed: AtomicU64,
    last_process: AtomicU64,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct Seen {
    /// Answered or given up, and not taken yet.
    operations: Vec<Operation>,
    /// How many there have been.
    count: usize,
    /// What a process waits for, as if it never came.
    open: BTreeMap<u64, Operation>,
}

impl Recorder {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let mut name = [0; 8];
        getrandom::fill(&mut name).context("no randomness")?;
        Ok(Self {
            shared: Arc::new(Shared {
                started: Instant::now(),
                name: format!("{:016x}", u64::from_le_bytes(name)),
                seen: Mutex::default(),
                failed: AtomicU64::new(0),
                last_process: AtomicU64::new(0),
                stop: AtomicBool::new(false),
            }),
        })
    }

    /// The name of the run, with which its keys end.
    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    /// Asks all clients to end after their current operation.
    pub(crate) fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    /// How many operations were answered or given up.
    pub(crate) fn len(&self) -> usize {
        self.seen().count
    }

    /// How many operations surely did not happen.
    pub(crate) fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// What was answered or given up since the last time, and what is open at this moment.
    pub(crate) fn news(&self) -> (Vec<Operation>, Vec<Operation>) {
        let mut seen = self.seen();
        (std::mem::take(&mut seen.operations), seen.open.values().cloned().collect())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.shared.seen.lock().expect("never held while panicking")
    }

    fn now(&self) -> u64 {
        u64::try_from(self.shared.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn new_process(&self) -> u64 {
        self.shared.last_process.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The keys of a run: every other one is a counter.
    fn key(&self, index: usize) -> String {
        let kind = if is_counter(index) { "counter" } else { "register" };
        format!("{kind}-{index}@{}", self.shared.name)
    }

    /// A process calls.
    fn begin(&self, process: u64, key: &str, action: Action) {
        let (key, call) = (key.to_string(), self.now());
        self.seen().open.insert(process, Operation { process, key, action, call, end: None, line: 0 });
    }

    /// What a process waits for is answered with this, or given up.
    fn end(&self, process: u64, answer: Option<Action>) {
        let end = self.now();
        let mut seen = self.seen();
        let Some(mut operation) = seen.open.remove(&process) else { return };
        if let Some(action) = answer {
            (operation.action, operation.end) = (action, Some(end));
        }
        seen.operations.push(operation);
        seen.count += 1;
    }

    /// What a process waits for surely did not happen.
    fn fail(&self, process: u64) {
        self.seen().open.remove(&process);
        self.shared.failed.fetch_add(1, Ordering::Relaxed);
    }
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
    super::close(&user.client).await;
}

/// How many read at once at the end: where nobody answers, each read takes as long as it may.
const READERS: usize = 64;

/// Reads every key once, so that the history says what the end state was. None of a key that could not be read.
pub(crate) async fn read_all(
    client: &Client,
    recorder: &Recorder,
    keys: usize,
) -> Vec<(String, Option<Option<String>>)> {
    let mut tasks = JoinSet::new();
    for reader in 0..READERS.min(keys) {
        let mut user = User {
            process: recorder.new_process(),
            client: client.clone(),
            recorder: recorder.clone(),
            random: 1,
            written: 0,
            seen: BTreeMap::new(),
        };
        tasks.spawn(async move {
            let mut values = Vec::new();
            for index in (reader..keys).step_by(READERS) {
                let key = user.recorder.key(index);
                let value = user.get(key.clone()).await;
                values.push((key, value));
            }
            values
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
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
        let key = self.recorder.key(index);
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
        self.recorder.begin(self.process, &key, Action::Get(None));
        let outcome = self.client.get(&key).await;
        let text = |value: Bytes| String::from_utf8_lossy(&value).into_owned();
        let value =
            self.note(outcome, |value| Action::Get(value.clone().map(text).map(Value::from)))?.map(text);
        self.seen.insert(key, value.clone());
        Some(value)
    }

    async fn put(&mut self, key: String) {
        let value = self.new_value();
        let action = Action::Put(value.clone().into());
        self.recorder.begin(self.process, &key, action.clone());
        let outcome = self.client.put(&key, &value).await;
        self.note(outcome, |_| action);
    }

    async fn delete(&mut self, key: String) {
        self.recorder.begin(self.process, &key, Action::Delete);
        let outcome = self.client.delete(&key).await;
        self.note(outcome, |_| Action::Delete);
    }

    async fn cas(&mut self, key: String) {
        let expect = self.seen.get(&key).cloned().flatten();
        let value = self.new_value();
        let text = |text: &String| Value::from(text.as_str());
        let action = |swapped: bool| Action::Cas(expect.as_ref().map(text), Some(text(&value)), swapped);
        self.recorder.begin(self.process, &key, action(false));
        let bytes = |text: &String| Bytes::copy_from_slice(text.as_bytes());
        let expected = Expect::Value(expect.as_ref().map(bytes));
        let outcome = self.client.cas(&key, expected, Some(bytes(&value))).await;
        if let Some((true, _)) = self.note(outcome, |(swapped, _)| action(*swapped)) {
            self.seen.insert(key, Some(value));
        }
    }

    async fn incr(&mut self, key: String) {
        self.recorder.begin(self.process, &key, Action::Incr(1, 0));
        let outcome = self.client.incr(&key, 1).await;
        self.note(outcome, |sum| Action::Incr(1, *sum));
    }

    /// Writes what was begun down as what it is: done, surely not done, or unknown. The answer, if it was done.
    fn note<T>(&mut self, outcome: Outcome<T>, answered: impl FnOnce(&T) -> Action) -> Option<T> {
        match outcome {
            Outcome::Done(value) => {
                self.recorder.end(self.process, Some(answered(&value)));
                return Some(value);
            }
            Outcome::Refused(_) => self.recorder.fail(self.process),
            Outcome::Unknown(_) => {
                self.recorder.end(self.process, None);
                self.process = self.recorder.new_process();
            }
        }
        None
    }
}
