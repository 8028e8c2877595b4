//! The smallest part of a history that fails, and what it says in words.
//!
//! Every step keeps the proof: if what remains cannot be explained, neither can the whole.
//!
//! 1. *Cut the end.* Operations called after the first answer that makes the history impossible do not matter; those
//!    still open then may have any outcome.
//! 2. *Leave out what only looked.* A history without one of its reads has fewer constraints.
//! 3. *Cut the beginning.* Operations answered before some moment are left out if what remains fails from **every**
//!    state that the key could have been in.

use crate::history::{Action, History, Operation};
use crate::linearizability::{Answer, Limits, search, values_named};
use crate::model::Sums;
use crate::value::Value;

/// Why a history is not linearizable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterexample {
    /// The key.
    pub key: String,
    /// Operations that cannot be explained together, by time of call.
    pub operations: Vec<Operation>,
    /// The one whose answer makes it impossible: index into `operations`.
    pub culprit: usize,
    /// The states the key may have been in before them; none if from its beginning.
    pub from_any_state: bool,
    /// What the culprit could have answered instead, if that is short to say.
    pub possible: Vec<String>,
    /// All of it in words.
    pub explanation: String,
}

/// Searches that shrink may cost at most this much each; a search that is unsure keeps what it would have left out.
const SHRINK_LIMITS: Limits = Limits { configurations: 200_000 };

/// Above this many operations reads are not left out one by one.
const SHRINK_ONE_BY_ONE_MAX: usize = 400;

/// Above this many possible states the beginning is not cut.
const STATES_MAX: usize = 2_000;

/// Finds the smallest failing part of a key that was judged to be a violation.
#[must_use]
pub fn find(history: &History, key: &str) -> Option<Counterexample> {
    let of_key = history.operations().iter().filter(|operation| operation.key == key);
    let mut operations: Vec<Operation> = of_key.cloned().collect();
    operations.sort_by_key(|operation| operation.call);
    let all_values = values_named(&operations);
    let (mut part, culprit) = cut_end(operations)?;
    let mut from_any_state = false;
    if let Some(later) = cut_beginning(&part, &culprit, &all_values) {
        part = later;
        from_any_state = true;
    }
    part = leave_out_reads(part, &culprit, from_any_state, &all_values);
    let culprit = part.iter().position(|operation| *operation == culprit)?;
    let possible = possible_answers(&part, culprit, from_any_state, &all_values);
    let explanation = explain(key, &part, culprit, from_any_state, &possible);
    Some(Counterexample {
        key: key.to_string(),
        operations: part,
        culprit,
        from_any_state,
        possible,
        explanation,
    })
}

/// What had happened when the clock showed `time`: later calls are not there, open operations may have any outcome.
fn until(operations: &[Operation], time: u64) -> Vec<Operation> {
    let called = operations.iter().filter(|operation| operation.call <= time);
    called
        .map(|operation| Operation { end: operation.end.filter(|end| *end <= time), ..operation.clone() })
        .collect()
}

fn fails(operations: &[Operation], initial: Option<Value>, limits: Limits) -> bool {
    search(operations, Sums::of(operations), &initial, limits).0 == Answer::No
}

fn fails_from(operations: &[Operation], any: bool, values: &[Option<Value>]) -> bool {
    if any {
        values.iter().all(|value| fails(operations, value.clone(), SHRINK_LIMITS))
    } else {
        fails(operations, None, SHRINK_LIMITS)
    }
}

/// The shortest beginning that fails: its last answer is the culprit.
fn cut_end(operations: Vec<Operation>) -> Option<(Vec<Operation>, Operation)> {
    let mut ends: Vec<u64> = operations.iter().filter_map(|operation| operation.end).collect();
    ends.sort_unstable();
    ends.dedup();
    // A longer beginning fails if a shorter one does, so the first failing one can be found by halving.
    let (mut low, mut high) = (0, ends.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        if fails(&until(&operations, ends[middle]), None, Limits::default()) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    let time = *ends.get(low)?;
    let part = until(&operations, time);
    let culprit =
        part.iter().filter(|operation| operation.end == Some(time)).max_by_key(|operation| operation.call)?;
    Some((part.clone(), culprit.clone()))
}

/// The latest moment from which on the part fails whatever the state was.
fn cut_beginning(
    part: &[Operation],
    culprit: &Operation,
    values: &[Option<Value>],
) -> Option<Vec<Operation>> {
    let has_appends = part.iter().any(|operation| matches!(operation.action, Action::Append(_)));
    if has_appends || values.len() > STATES_MAX {
        return None;
    }
    let mut ends: Vec<u64> =
        part.iter().filter_map(|operation| operation.end).filter(|end| *end < culprit.call).collect();
    ends.sort_unstable();
    let after = |time: u64| -> Vec<Operation> {
        part.iter().filter(|operation| operation.end.is_none_or(|end| end > time)).cloned().collect()
    };
    // The later the moment, the less remains and the harder it is to fail: find the last moment that still does.
    let (mut low, mut high) = (0, ends.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        if fails_from(&after(ends[middle]), true, values) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    (low > 0).then(|| after(ends[low - 1]))
}

/// Leaves out operations that did not change anything, while what remains still fails.
fn leave_out_reads(
    mut part: Vec<Operation>,
    culprit: &Operation,
    any: bool,
    values: &[Option<Value>],
) -> Vec<Operation> {
    let only_looked = |operation: &Operation| match &operation.action {
        Action::Get(_) => true,
        Action::Cas(_, _, swapped) => operation.end.is_some() && !swapped,
        _ => false,
    };
    part.retain(|operation| operation.end.is_some() || !matches!(operation.action, Action::Get(_)));
    if part.len() > SHRINK_ONE_BY_ONE_MAX || (any && values.len() > 100) {
        return part;
    }
    let mut index = 0;
    while index < part.len() {
        let is_spare = only_looked(&part[index]) && part[index] != *culprit;
        if is_spare {
            let removed = part.remove(index);
            if fails_from(&part, any, values) {
                continue;
            }
            part.insert(index, removed);
        }
        index += 1;
    }
    part
}

/// Other answers that the culprit could have given.
fn possible_answers(part: &[Operation], culprit: usize, any: bool, values: &[Option<Value>]) -> Vec<String> {
    let with = |action: Action| {
        let mut changed = part.to_vec();
        changed[culprit].action = action;
        changed
    };
    let explains = |operations: &[Operation]| {
        let initials: &[Option<Value>] = if any { values } else { &[None] };
        initials
            .iter()
            .any(|value| search(operations, Sums::of(operations), value, SHRINK_LIMITS).0 == Answer::Yes)
    };
    match &part[culprit].action {
        Action::Get(_) if values.len() <= 200 => {
            let fits = values.iter().filter(|value| explains(&with(Action::Get((*value).clone()))));
            fits.map(show).collect()
        }
        Action::Cas(expect, value, swapped) => {
            let other = Action::Cas(expect.clone(), value.clone(), !swapped);
            if explains(&with(other)) { vec![(!swapped).to_string()] } else { Vec::new() }
        }
        _ => Vec::new(),
    }
}

fn show(value: &Option<Value>) -> String {
    value.as_ref().map_or("nothing".to_string(), ToString::to_string)
}

/// An operation in words, without times.
#[must_use]
pub fn describe(operation: &Operation) -> String {
    let known = operation.end.is_some();
    match &operation.action {
        Action::Get(seen) if known => format!("get = {}", show(seen)),
        Action::Get(_) => "get".to_string(),
        Action::Put(value) => format!("put {value}"),
        Action::Delete => "delete".to_string(),
        Action::Cas(expect, value, swapped) => {
            let outcome = if known { if *swapped { ": swapped" } else { ": differed" } } else { "" };
            format!("cas {} to {}{outcome}", show(expect), show(value))
        }
        Action::Append(value) => format!("append \"{value}\""),
        Action::Incr(by, sum) if known => format!("incr {by} = {sum}"),
        Action::Incr(by, _) => format!("incr {by}"),
    }
}

fn explain(key: &str, part: &[Operation], culprit: usize, any: bool, possible: &[String]) -> String {
    let operation = &part[culprit];
    let begin = if any { "Whatever the value was before, " } else { "From the beginning of the history, " };
    let line = if operation.line > 0 { format!(" (line {})", operation.line) } else { String::new() };
    let mut text = format!(
        "Key \"{key}\": process {} was answered `{}`{line}. {begin}no order of these {} operations explains all answers.",
        operation.process,
        describe(operation),
        part.len()
    );
    if !possible.is_empty() {
        let shown: Vec<&str> = possible.iter().take(5).map(String::as_str).collect();
        text.push_str(&format!(" It could have been {}.", shown.join(" or ")));
    }
    let before = part
        .iter()
        .filter(|other| {
            other.end.is_some_and(|end| end < operation.call) && !matches!(other.action, Action::Get(_))
        })
        .max_by_key(|other| other.end);
    if let Some(before) = before {
        text.push_str(&format!(
            " The last change answered before it was called is `{}` by process {}.",
            describe(before),
            before.process
        ));
    }
    text
}
