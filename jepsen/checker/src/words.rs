//! A counterexample in words: which answer is impossible, what else it could have been, and who wrote what was seen.

use crate::counterexample::{Counterexample, SHRINK_ONE_BY_ONE_MAX};
use crate::history::{Action, Operation};
use crate::value::Value;

/// A value, or that there is none.
pub(crate) fn show(value: &Option<Value>) -> String {
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
        Action::Append(value) => format!("append {}", Value::from(value.as_str())),
        Action::Incr(by, sum) if known => format!("incr {by} = {sum}"),
        Action::Incr(by, _) => format!("incr {by}"),
    }
}

/// Explains what was found in the operations of the key up to the culprit's answer.
pub(crate) fn explain(example: &mut Counterexample, all: &[Operation]) {
    let culprit = &example.operations[example.culprit];
    let count = example.operations.len();
    let mut text = format!(
        "Key {}: process {} was answered `{}`{}. {}, {}.",
        Value::from(example.key.as_str()),
        culprit.process,
        describe(culprit),
        line(culprit),
        match example.from_any_state {
            true => "Whatever the key held before",
            false => "From the beginning of the history, when there was no such key",
        },
        match count {
            1 => "nothing explains this answer".to_string(),
            _ => format!("no order of these {count} operations explains all answers"),
        }
    );
    if count > SHRINK_ONE_BY_ONE_MAX {
        text.push_str(" Fewer of them may be enough; to look for those would take too long.");
    }
    text.push_str(&possible(&example.possible));
    let origin = Origin::of(culprit, all);
    text.push_str(&origin.words(culprit, all));
    example.origin = origin.writer;
    example.explanation = text;
}

/// Answers that are listed at most.
const POSSIBLE_SHOWN: usize = 5;

fn possible(possible: &[String]) -> String {
    let shown = possible.iter().take(POSSIBLE_SHOWN).map(String::as_str).collect::<Vec<_>>().join(" or ");
    match possible.len() {
        0 => String::new(),
        1..=POSSIBLE_SHOWN => format!(" It could have been {shown}."),
        count => format!(" It could have been {shown}, or one of {} others.", count - POSSIBLE_SHOWN),
    }
}

fn line(operation: &Operation) -> String {
    if operation.line > 0 { format!(" (line {})", operation.line) } else { String::new() }
}

fn whose(operation: &Operation) -> String {
    format!("`{}` of process {}{}", describe(operation), operation.process, line(operation))
}

/// Where what the culprit saw came from.
struct Origin {
    /// Whoever wrote it last, by time of call, among those that were called before the culprit was answered.
    writer: Option<Operation>,
    /// Whether somebody may have written it in a way that nobody can name.
    may_be_hidden: bool,
}

impl Origin {
    fn of(culprit: &Operation, all: &[Operation]) -> Self {
        let Some(seen) = seen(culprit) else { return Self { writer: None, may_be_hidden: true } };
        let others = || all.iter().filter(|operation| *operation != culprit);
        let is_hidden = |operation: &Operation| match operation.action {
            Action::Append(_) => true,
            Action::Incr(..) => operation.end.is_none(),
            _ => false,
        };
        let writer =
            others().filter(|operation| writes(operation, seen)).max_by_key(|operation| operation.call);
        Self { writer: writer.cloned(), may_be_hidden: others().any(is_hidden) }
    }

    fn words(&self, culprit: &Operation, all: &[Operation]) -> String {
        let last =
            all.iter().filter(|other| has_changed(other) && other.end.is_some_and(|end| end < culprit.call));
        let last = last.max_by_key(|other| other.end);
        let mut text = match (&self.writer, seen(culprit)) {
            (Some(writer), _) => {
                let doubt = if writer.end.is_none() { ", whose outcome is unknown," } else { "" };
                let after = last.filter(|last| writer.end.is_some_and(|end| end < last.call));
                let since =
                    after.map_or(String::new(), |after| format!("; {} came after that", whose(after)));
                format!(" What it saw was written last by {}{doubt}{since}.", whose(writer))
            }
            (None, Some(Some(_))) if !self.may_be_hidden => " Nobody wrote what it saw.".to_string(),
            (None, Some(None)) => " Nobody removed the key.".to_string(),
            _ => String::new(),
        };
        if let Some(last) = last.filter(|last| !text.contains(&whose(last))) {
            text.push_str(&format!(" The last change answered before it was called is {}.", whose(last)));
        }
        text
    }
}

/// What the operation was shown of the key, if it says all of it.
fn seen(operation: &Operation) -> Option<&Option<Value>> {
    match &operation.action {
        Action::Get(seen) => Some(seen),
        Action::Cas(expect, _, true) => Some(expect),
        _ => None,
    }
}

/// Whether the operation leaves this, or may.
fn writes(operation: &Operation, seen: &Option<Value>) -> bool {
    let known = operation.end.is_some();
    match (&operation.action, seen) {
        (Action::Put(value), Some(seen)) => value == seen,
        (Action::Delete, None) => true,
        (Action::Cas(_, value, swapped), seen) => (*swapped || !known) && value == seen,
        (Action::Incr(_, sum), Some(seen)) => known && seen.whole() == Some(*sum),
        _ => false,
    }
}

/// Whether the operation surely changed the key.
fn has_changed(operation: &Operation) -> bool {
    match &operation.action {
        Action::Get(_) => false,
        Action::Cas(_, _, swapped) => *swapped,
        _ => true,
    }
}
