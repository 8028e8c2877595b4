//! The smallest part of a history that fails, and what it says in words.
//!
//! Every step keeps the proof: if what remains cannot be explained, neither can the whole.
//!
//! 1. *Cut the end.* Operations called after the first answer that makes the history impossible do not matter; those
//!    still open then may have any outcome.
//! 2. *Cut the beginning* ([`crate::beginning`]). What was answered before some moment is left out if what remains fails whatever
//!    the key held at that moment.
//! 3. *Leave out what only looked.* A history without one of its reads has fewer constraints.

use crate::beginning::{self, Beginning};
use crate::history::{Action, History, Operation};
use crate::linearizability::{Answer, Limits, search};
use crate::model::Sums;
use crate::value::Value;
use crate::words;

pub use crate::words::describe;

/// Why a history is not linearizable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterexample {
    /// The key.
    pub key: String,
    /// Operations that cannot be explained together, by time of call.
    pub operations: Vec<Operation>,
    /// The one whose answer makes it impossible: index into `operations`.
    pub culprit: usize,
    /// Whether they fail whatever the key held before them; if not, they begin with the history, when there was no such key.
    pub from_any_state: bool,
    /// What the culprit could have answered instead, if that is short to say.
    pub possible: Vec<String>,
    /// Who wrote what the culprit saw, last, as far as that is simple to say.
    pub origin: Option<Operation>,
    /// All of it in words.
    pub explanation: String,
}

/// Searches that shrink may cost at most this much each; a search that is unsure keeps what it would have left out.
const SHRINK_LIMITS: Limits = Limits { configurations: 200_000 };

/// Above this many operations reads are not left out one by one.
pub(crate) const SHRINK_ONE_BY_ONE_MAX: usize = 400;

/// Above this many values nothing is said of what else could have been answered.
const VALUES_MAX: usize = 200;

/// Finds a small failing part of a key that was judged to be a violation.
#[must_use]
pub fn find(history: &History, key: &str) -> Option<Counterexample> {
    let of_key = history.operations().iter().filter(|operation| operation.key == key);
    let mut operations: Vec<Operation> = of_key.cloned().collect();
    operations.sort_by_key(|operation| operation.call);
    let sums = Sums::of(&operations);
    let (part, culprit) = cut_end(&operations, sums)?;
    let whole = || Beginning { part: part.clone(), states: vec![None], any_other: None };
    let cut = beginning::cut(&part, &culprit, sums);
    let from_any_state = cut.is_some();
    let mut rest = cut.unwrap_or_else(whole);
    leave_out_reads(&mut rest, &culprit, sums);
    let place = rest.part.iter().position(|operation| *operation == culprit)?;
    let possible = possible_answers(&rest, place, sums);
    let mut example = Counterexample {
        key: key.to_string(),
        operations: rest.part,
        culprit: place,
        from_any_state,
        possible,
        origin: None,
        explanation: String::new(),
    };
    words::explain(&mut example, &part);
    Some(example)
}

/// What had happened when the clock showed `time`: later calls are not there, open operations may have any outcome.
fn until(operations: &[Operation], time: u64) -> Vec<Operation> {
    let called = operations.iter().filter(|operation| operation.call <= time);
    called
        .map(|operation| Operation { end: operation.end.filter(|end| *end <= time), ..operation.clone() })
        .collect()
}

/// Whether the operations cannot be explained from any of these states.
pub(crate) fn fail_from(operations: &[Operation], sums: Sums, states: &[Option<Value>]) -> bool {
    states.iter().all(|state| search(operations, sums, state, SHRINK_LIMITS).0 == Answer::No)
}

/// The shortest beginning that fails: its last answer is the culprit.
fn cut_end(operations: &[Operation], sums: Sums) -> Option<(Vec<Operation>, Operation)> {
    let mut ends: Vec<u64> = operations.iter().filter_map(|operation| operation.end).collect();
    ends.sort_unstable();
    ends.dedup();
    // A longer beginning fails if a shorter one does, so the first failing one can be found by halving.
    let (mut low, mut high) = (0, ends.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        if search(&until(operations, ends[middle]), sums, &None, Limits::default()).0 == Answer::No {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    let time = *ends.get(low)?;
    let part = until(operations, time);
    let last = part.iter().filter(|operation| operation.end == Some(time));
    let culprit = last.max_by_key(|operation| operation.call)?.clone();
    Some((part, culprit))
}

/// Leaves out operations that did not change anything, while what remains still fails.
fn leave_out_reads(rest: &mut Beginning, culprit: &Operation, sums: Sums) {
    let only_looked = |operation: &Operation| match &operation.action {
        Action::Get(_) => true,
        Action::Cas(_, _, swapped) => operation.end.is_some() && !swapped,
        _ => false,
    };
    rest.part.retain(|operation| operation.end.is_some() || !matches!(operation.action, Action::Get(_)));
    if rest.part.len() > SHRINK_ONE_BY_ONE_MAX {
        return;
    }
    let states = rest.all_states();
    let mut index = 0;
    while index < rest.part.len() {
        let is_spare = only_looked(&rest.part[index]) && rest.part[index] != *culprit;
        if is_spare {
            let removed = rest.part.remove(index);
            if fail_from(&rest.part, sums, &states) {
                continue;
            }
            rest.part.insert(index, removed);
        }
        index += 1;
    }
}

/// Other answers that the culprit could have given.
fn possible_answers(rest: &Beginning, culprit: usize, sums: Sums) -> Vec<String> {
    let states = rest.all_states();
    let explains = |action: Action| {
        let mut changed = rest.part.clone();
        changed[culprit].action = action;
        states.iter().any(|state| search(&changed, sums, state, SHRINK_LIMITS).0 == Answer::Yes)
    };
    match &rest.part[culprit].action {
        Action::Get(_) => {
            let mut values = beginning::named(&rest.part, sums);
            if values.len() * states.len() > VALUES_MAX {
                return Vec::new();
            }
            values.extend(rest.states.iter().cloned());
            values.sort();
            values.dedup();
            let fitting = values.into_iter().filter(|value| explains(Action::Get(value.clone())));
            let mut fitting: Vec<String> = fitting.map(|value| words::show(&value)).collect();
            if rest.any_other.as_ref().is_some_and(|other| explains(Action::Get(Some(other.clone())))) {
                fitting.push("whatever else it held before".to_string());
            }
            fitting
        }
        Action::Cas(expect, value, swapped) => {
            let other = Action::Cas(expect.clone(), value.clone(), !swapped);
            if explains(other) { vec![(!swapped).to_string()] } else { Vec::new() }
        }
        _ => Vec::new(),
    }
}
