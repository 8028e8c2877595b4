//! The search for an order that explains a history, key by key.
//!
//! Wing and Gong (1993) search depth-first: the next operation in the order must have been called before the first
//! answer that is not explained yet. Lowe (2017) remembers which pairs of *operations explained so far* and *state*
//! were met, so that no pair is tried twice. Linearizability is local (Herlihy and Wing 1990): each key is judged alone.
//!
//! * An operation whose outcome is unknown has no answer: it may be taken at any time after its call, or never. It is
//!   tried last, and only where it changes the state.
//! * A pair is remembered as a 128-bit fingerprint: the exclusive-or of a number per explained operation and one per
//!   state. Two pairs share one with a chance of about n^2 / 2^129.
//! * Time and memory are bounded by the number of pairs; beyond it the verdict is *undecided*.

use crate::history::{Action, History, Operation};
use crate::model::{ABSENT, Prepared, StateId, States, Sums};
use crate::value::Value;
use std::borrow::Borrow;
use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// How far to search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Pairs of explained operations and state that are tried per key; each takes up to [`BYTES_PER_STEP`] of memory.
    pub configurations: usize,
}

/// What a step of the search takes of memory at most, in bytes: 17 where the table of pairs is full, twice that where it has just grown,
/// and half as much again while it grows.
pub const BYTES_PER_STEP: usize = 60;

impl Default for Limits {
    fn default() -> Self {
        Self { configurations: 20_000_000 }
    }
}

/// What the search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every answer can be explained.
    Linearizable,
    /// No order explains the answers of this key.
    Violation {
        /// The key.
        key: String,
    },
    /// The search was given up.
    Undecided {
        /// The key.
        key: String,
        /// How many pairs were tried.
        configurations: usize,
    },
}

/// A verdict with what it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// Operations judged.
    pub operations: usize,
    /// Keys judged.
    pub keys: usize,
    /// Pairs of explained operations and state that were tried.
    pub configurations: usize,
}

/// Judges a history. A violation of one key is reported even if another key is undecided.
#[must_use]
pub fn check(history: &History, limits: Limits) -> Judgement {
    let keys = by_key(history);
    let mut judgement = Judgement {
        verdict: Verdict::Linearizable,
        operations: history.operations().len(),
        keys: keys.len(),
        configurations: 0,
    };
    for (key, operations) in keys {
        let (answer, tried) = search(&operations, Sums::of(&operations), &None, limits);
        judgement.configurations += tried;
        let key = || key.to_string();
        match answer {
            Answer::Yes => {}
            Answer::No => {
                judgement.verdict = Verdict::Violation { key: key() };
                return judgement;
            }
            Answer::Unsure => judgement.verdict = Verdict::Undecided { key: key(), configurations: tried },
        }
    }
    judgement
}

/// The operations of each key, by time of call.
fn by_key(history: &History) -> BTreeMap<&str, Vec<&Operation>> {
    let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in history.operations() {
        keys.entry(&operation.key).or_default().push(operation);
    }
    for operations in keys.values_mut() {
        operations.sort_by_key(|operation| operation.call);
    }
    keys
}

/// Whether some operations of one key can be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Yes,
    No,
    Unsure,
}

/// Searches an order for operations of one key that begins in `initial` (none: no such key).
pub(crate) fn search<O: Borrow<Operation>>(
    operations: &[O],
    sums: Sums,
    initial: &Option<Value>,
    limits: Limits,
) -> (Answer, usize) {
    let mut search = Search::new(operations, sums);
    let state = search.states.id(initial);
    let answer = search.run(state, limits.configurations);
    (answer, search.seen.len())
}

/// A fingerprint is uniform already.
#[derive(Default)]
struct Fingerprint(u64);

impl Hasher for Fingerprint {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        }
    }
}

/// An event in time: a call, or an answer.
#[derive(Clone, Copy, Debug)]
struct Event {
    operation: usize,
    is_call: bool,
}

const NONE: usize = usize::MAX;

/// Events in order of time as a linked list, so that those of an explained operation can be taken out and put back.
struct Timeline {
    events: Vec<Event>,
    next: Vec<usize>,
    previous: Vec<usize>,
    call_of: Vec<usize>,
    answer_of: Vec<usize>,
}

impl Timeline {
    fn new(operations: &[Prepared], times: &[(u64, Option<u64>)]) -> Self {
        let mut timed: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * operations.len());
        for (operation, (call, end)) in times.iter().enumerate() {
            timed.push((*call, false, operation));
            timed.extend(end.map(|end| (end, true, operation)));
        }
        // At equal times calls come first: operations that only touch count as concurrent.
        timed.sort_unstable();
        let count = timed.len();
        let mut timeline = Self {
            events: vec![Event { operation: NONE, is_call: false }],
            next: (1..=count + 1).map(|index| if index > count { NONE } else { index }).collect(),
            previous: (0..=count).map(|index| index.wrapping_sub(1)).collect(),
            call_of: vec![NONE; operations.len()],
            answer_of: vec![NONE; operations.len()],
        };
        for (index, (_, is_answer, operation)) in timed.into_iter().enumerate() {
            timeline.events.push(Event { operation, is_call: !is_answer });
            let place = if is_answer { &mut timeline.answer_of } else { &mut timeline.call_of };
            place[operation] = index + 1;
        }
        timeline
    }

    fn take(&mut self, operation: usize) {
        for event in [self.call_of[operation], self.answer_of[operation]] {
            if event != NONE {
                let (before, after) = (self.previous[event], self.next[event]);
                self.next[before] = after;
                if after != NONE {
                    self.previous[after] = before;
                }
            }
        }
    }

    fn put_back(&mut self, operation: usize) {
        for event in [self.answer_of[operation], self.call_of[operation]] {
            if event != NONE {
                let (before, after) = (self.previous[event], self.next[event]);
                self.next[before] = event;
                if after != NONE {
                    self.previous[after] = event;
                }
            }
        }
    }
}

/// One step of the search: an operation that was explained, and the state before it.
struct Step {
    operation: usize,
    state: StateId,
}

struct Search {
    states: States,
    operations: Vec<Prepared>,
    is_known: Vec<bool>,
    timeline: Timeline,
    seen: HashSet<u128, BuildHasherDefault<Fingerprint>>,
    unexplained: usize,
}

impl Search {
    fn new<O: Borrow<Operation>>(operations: &[O], sums: Sums) -> Self {
        let mut states = States::new(sums);
        // An unknown get can be left out: it changes nothing and says nothing.
        let kept: Vec<&Operation> = operations
            .iter()
            .map(Borrow::borrow)
            .filter(|operation| operation.end.is_some() || !matches!(operation.action, Action::Get(_)))
            .collect();
        states.expect_growth(&kept.iter().map(|operation| &operation.action).collect::<Vec<_>>());
        let prepared: Vec<Prepared> =
            kept.iter().map(|operation| states.prepare(&operation.action)).collect();
        let times: Vec<(u64, Option<u64>)> =
            kept.iter().map(|operation| (operation.call, operation.end)).collect();
        let timeline = Timeline::new(&prepared, &times);
        let is_known: Vec<bool> = times.iter().map(|(_, end)| end.is_some()).collect();
        let unexplained = is_known.iter().filter(|known| **known).count();
        Self { states, operations: prepared, is_known, timeline, seen: HashSet::default(), unexplained }
    }

    fn run(&mut self, initial: StateId, configurations_max: usize) -> Answer {
        let mut state = initial;
        let mut explained: u128 = 0;
        let mut steps: Vec<Step> = Vec::new();
        let mut from = Cursor::start(&self.timeline);
        while self.unexplained > 0 {
            match self.next_step(&mut from, state, explained) {
                Some((operation, after)) => {
                    if self.seen.len() >= configurations_max {
                        return Answer::Unsure;
                    }
                    self.take(operation);
                    explained ^= mark(operation as u64);
                    steps.push(Step { operation, state });
                    state = after;
                    from = Cursor::start(&self.timeline);
                }
                None => {
                    let Some(step) = steps.pop() else {
                        return Answer::No;
                    };
                    self.put_back(step.operation);
                    explained ^= mark(step.operation as u64);
                    state = step.state;
                    from = Cursor::behind(&self.timeline, step.operation, self.is_known[step.operation]);
                }
            }
        }
        Answer::Yes
    }

    /// The next operation that may come now and leads to a pair that was not met: answered ones first, then those
    /// whose outcome is unknown.
    fn next_step(
        &mut self,
        cursor: &mut Cursor,
        state: StateId,
        explained: u128,
    ) -> Option<(usize, StateId)> {
        loop {
            let event = cursor.event;
            let is_end = event == NONE || !self.timeline.events[event].is_call;
            if is_end {
                if cursor.is_second_pass {
                    return None;
                }
                *cursor = Cursor { event: self.timeline.next[0], is_second_pass: true };
                continue;
            }
            cursor.event = self.timeline.next[event];
            let operation = self.timeline.events[event].operation;
            let is_known = self.is_known[operation];
            if is_known == cursor.is_second_pass {
                continue;
            }
            let Some(after) = self.states.apply(state, &self.operations[operation], is_known) else {
                continue;
            };
            if !is_known && after == state {
                continue;
            }
            let pair = explained ^ mark(operation as u64) ^ mark(STATE_MARK | u64::from(after));
            if self.seen.insert(pair) {
                return Some((operation, after));
            }
        }
    }

    fn take(&mut self, operation: usize) {
        self.timeline.take(operation);
        self.unexplained -= usize::from(self.is_known[operation]);
    }

    fn put_back(&mut self, operation: usize) {
        self.timeline.put_back(operation);
        self.unexplained += usize::from(self.is_known[operation]);
    }
}

/// Where the search goes on among the operations that may come next.
struct Cursor {
    event: usize,
    is_second_pass: bool,
}

impl Cursor {
    fn start(timeline: &Timeline) -> Self {
        Self { event: timeline.next[0], is_second_pass: false }
    }

    fn behind(timeline: &Timeline, operation: usize, is_known: bool) -> Self {
        Self { event: timeline.next[timeline.call_of[operation]], is_second_pass: !is_known }
    }
}

/// Sets the numbers of states apart from those of operations.
const STATE_MARK: u64 = 1 << 63;

/// A number that looks random, always the same for the same input (SplitMix64, twice).
fn mark(input: u64) -> u128 {
    let half = |seed: u64| {
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let low = half(input);
    (u128::from(half(low ^ 0x5851_f42d_4c95_7f2d)) << 64) | u128::from(low)
}

const _: () = assert!(ABSENT == 0, "the first state is the one of no such key");
