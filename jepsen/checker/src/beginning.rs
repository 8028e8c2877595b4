//! Cutting the beginning off: what happened long before an impossible answer seldom matters, but for what the key held then.
//!
//! Take a moment. Operations that were answered before it are left out. In any order that explains the whole they come before the moment,
//! and leave the key in *some* state that somebody wrote. What was called before the moment and answered after it may have taken effect on
//! either side: it is kept as an operation of which nobody knows whether it happens, and one that only looked is left out. If
//! what remains cannot be explained from any of those states, the whole cannot be explained.
//!
//! There may be many such states. Those that nothing in the rest names are all alike to it, and one stands for them all.

use crate::counterexample::fail_from;
use crate::history::{Action, Operation};
use crate::model::Sums;
use crate::value::Value;
use std::collections::{BTreeSet, HashMap};

/// What remains without its beginning.
pub(crate) struct Beginning {
    pub(crate) part: Vec<Operation>,
    /// What the key may have held before.
    pub(crate) states: Vec<Option<Value>>,
    /// Stands for all that it may have held and that nothing in the part names.
    pub(crate) any_other: Option<Value>,
}

impl Beginning {
    pub(crate) fn all_states(&self) -> Vec<Option<Value>> {
        let other = self.any_other.iter().cloned().map(Some);
        self.states.iter().cloned().chain(other).collect()
    }
}

/// Operations times states that are tried in all.
const WORK_MAX: usize = 4_000_000;

/// Different sums of increments that may have happened or not; above it the beginning is not cut there.
const SUMS_MAX: usize = 200;

/// The latest moment, as far as one is found with little work, from which on the part fails whatever the key held.
pub(crate) fn cut(part: &[Operation], culprit: &Operation, sums: Sums) -> Option<Beginning> {
    if part.iter().any(|operation| matches!(operation.action, Action::Append(_))) {
        // What an append leaves is named nowhere.
        return None;
    }
    let written = Written::of(part, sums);
    let ends = part.iter().filter_map(|operation| operation.end).filter(|end| *end < culprit.call);
    let moments: Vec<u64> = ends.collect::<BTreeSet<_>>().into_iter().collect();
    let mut work = 0;
    let mut attempt = |index: usize| {
        let rest = written.rest(part, moments[index], sums)?;
        let states = rest.all_states();
        work += rest.part.len() * states.len();
        (work <= WORK_MAX && fail_from(&rest.part, sums, &states)).then_some(rest)
    };
    // The later the moment, the less remains: from the last one back in steps that double, then between the last two steps.
    let (mut step, mut too_late) = (1, moments.len());
    let (mut best, mut found) = loop {
        let index = moments.len().checked_sub(step)?;
        match attempt(index) {
            Some(rest) => break (rest, index),
            None => too_late = index,
        }
        step *= 2;
    };
    while found + 1 < too_late {
        let middle = usize::midpoint(found, too_late);
        match attempt(middle) {
            Some(rest) => (best, found) = (rest, middle),
            None => too_late = middle,
        }
    }
    Some(best)
}

/// What was written to a key, and when that began to be possible.
struct Written {
    since: HashMap<Value, u64>,
    /// From when on it may have held a number that nothing names: nobody knows which increments happened.
    any_number_since: Option<u64>,
    /// Texts that are added to as if they were written in another way: `007`.
    odd_numbers: BTreeSet<Option<Value>>,
}

impl Written {
    fn of(part: &[Operation], sums: Sums) -> Self {
        let (since, odd_numbers) = (HashMap::new(), BTreeSet::new());
        let mut written = Self { since, any_number_since: None, odd_numbers };
        // By time of call, so the first that writes a value was called first.
        for operation in part {
            let call = operation.call;
            let is_known = operation.end.is_some();
            match &operation.action {
                Action::Put(value) => written.note(value.clone(), call),
                Action::Cas(_, Some(value), swapped) if *swapped || !is_known => {
                    written.note(value.clone(), call);
                }
                Action::Incr(_, sum) if is_known => {
                    sums.kinds(*sum).for_each(|value| written.note(value, call));
                }
                Action::Incr(..) => {
                    written.any_number_since.get_or_insert(call);
                }
                _ => {}
            }
        }
        written
    }

    fn note(&mut self, value: Value, call: u64) {
        if value.whole().is_some_and(|whole| whole.to_string() != value.letters()) {
            self.odd_numbers.insert(Some(value.clone()));
        }
        self.since.entry(value).or_insert(call);
    }

    /// Whether the key may have held this at the moment.
    fn may_be(&self, state: &Option<Value>, moment: u64) -> bool {
        let Some(value) = state else { return true };
        self.since.get(value).is_some_and(|since| *since <= moment)
            || (self.any_number_since.is_some_and(|since| since <= moment) && value.whole().is_some())
    }

    /// What remains from the moment on, and what the key may have held then. None if that is too much to say.
    fn rest(&self, part: &[Operation], moment: u64, sums: Sums) -> Option<Beginning> {
        let is_later = |operation: &&Operation| operation.end.is_none_or(|end| end > moment);
        let kept = part.iter().filter(is_later).cloned().map(|mut operation| {
            operation.end = operation.end.filter(|_| operation.call > moment);
            operation
        });
        let says_something =
            |operation: &Operation| operation.end.is_some() || !matches!(operation.action, Action::Get(_));
        let part: Vec<Operation> = kept.filter(says_something).collect();
        let mut named = reaching(&part, sums)?;
        if part.iter().any(|operation| matches!(operation.action, Action::Incr(..))) {
            named.extend(self.odd_numbers.iter().cloned());
        }
        let mut letters = "anything else".to_string();
        while named.contains(&Some(Value::Text(letters.clone()))) {
            letters.push('!');
        }
        let is_possible = |state: &Option<Value>| self.may_be(state, moment);
        let states = named.into_iter().filter(is_possible).collect();
        Some(Beginning { part, states, any_other: Some(Value::Text(letters)) })
    }
}

/// States from which one that the part names is reached by increments of which nobody knows whether they happened, those that it
/// names among them. None if there are too many.
fn reaching(part: &[Operation], sums: Sums) -> Option<BTreeSet<Option<Value>>> {
    let mut reached = BTreeSet::from([0_i64]);
    for operation in part.iter().filter(|operation| operation.end.is_none()) {
        if let Action::Incr(by, _) = operation.action {
            let more: Vec<i64> = reached.iter().filter_map(|sum| sum.checked_add(by)).collect();
            reached.extend(more);
            if reached.len() > SUMS_MAX {
                return None;
            }
        }
    }
    let mut states: BTreeSet<Option<Value>> = named(part, sums).into_iter().collect();
    if reached.len() > 1 {
        let wholes: BTreeSet<i64> = states.iter().flatten().filter_map(Value::whole).collect();
        for whole in wholes {
            let before = reached.iter().filter_map(|sum| whole.checked_sub(*sum));
            states.extend(before.flat_map(|whole| sums.kinds(whole)).map(Some));
        }
    }
    Some(states)
}

/// What the operations name: no such key, and every value that they see, write, compare with or add to.
pub(crate) fn named(part: &[Operation], sums: Sums) -> Vec<Option<Value>> {
    let mut values = vec![None];
    for operation in part {
        match &operation.action {
            Action::Get(seen) => values.push(seen.clone()),
            Action::Put(value) => values.push(Some(value.clone())),
            Action::Delete | Action::Append(_) => {}
            Action::Cas(expect, value, _) => values.extend([expect.clone(), value.clone()]),
            Action::Incr(by, sum) if operation.end.is_some() => {
                let before = sum.checked_sub(*by);
                let both = [Some(*sum), before].into_iter().flatten();
                values.extend(both.flat_map(|whole| sums.kinds(whole)).map(Some));
            }
            Action::Incr(..) => {}
        }
    }
    values.sort();
    values.dedup();
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Random(u64);

    impl Random {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % n
        }
    }

    fn add(state: Option<&Value>, by: i64) -> Option<(i64, Value)> {
        let sum = state.map_or(Some(0), Value::whole)? + by;
        Some((
            sum,
            if matches!(state, Some(Value::Number(_))) { Value::from(sum) } else { sum.to_string().into() },
        ))
    }

    /// What a store that is right shows a few clients that work at once.
    fn seen_of_a_good_store(random: &mut Random) -> Vec<Operation> {
        let mut moments: Vec<(u64, u64, Option<u64>)> = Vec::new();
        for _ in 0..4 + random.below(8) {
            let call = random.below(40);
            let moment = call + random.below(12);
            moments.push((moment, call, (random.below(4) > 0).then(|| moment + random.below(12))));
        }
        moments.sort_unstable();
        let mut state: Option<Value> = None;
        let mut operations = Vec::new();
        for (process, (_, call, end)) in moments.into_iter().enumerate() {
            let value = |random: &mut Random| match random.below(4) {
                0 => Value::from(i64::try_from(random.below(3)).unwrap()),
                1 => Value::from(format!("0{}", random.below(3))),
                _ => Value::from(random.below(3).to_string()),
            };
            let happens = end.is_some() || random.below(2) == 0;
            let before = state.clone();
            let (action, after) = match random.below(7) {
                0 | 1 => (Action::Get(before.clone()), before),
                2 => {
                    let value = value(random);
                    (Action::Put(value.clone()), Some(value))
                }
                3 => (Action::Delete, None),
                4 => {
                    let expect = if random.below(3) > 0 { before.clone() } else { Some(value(random)) };
                    let (new, swapped) = ((random.below(4) > 0).then(|| value(random)), expect == before);
                    (Action::Cas(expect, new.clone(), swapped), if swapped { new } else { before })
                }
                _ => {
                    let by = i64::try_from(random.below(3)).unwrap() - 1;
                    match add(before.as_ref(), by) {
                        Some((sum, after)) => (Action::Incr(by, sum), Some(after)),
                        None => (Action::Get(before.clone()), before),
                    }
                }
            };
            if happens {
                state = after;
            }
            let (key, process) = ("x".to_string(), process as u64);
            operations.push(Operation { process, key, action, call, end, line: 0 });
        }
        operations.sort_by_key(|operation| operation.call);
        operations
    }

    /// What can be explained must not fail once its beginning is left out, wherever that is, and whoever is taken for the culprit.
    #[test]
    fn no_beginning_is_missed_that_explains_what_follows() {
        let mut random = Random(17);
        let mut asked = 0;
        for round in 0..20_000 {
            let part = seen_of_a_good_store(&mut random);
            let sums = Sums::of(&part);
            if sums == Sums::Numbers {
                // This store keeps texts.
                continue;
            }
            for culprit in part.iter().filter(|operation| operation.end.is_some()) {
                let (written, moment) =
                    (Written::of(&part, sums), culprit.call.saturating_sub(random.below(20) + 1));
                if let Some(rest) = written.rest(&part, moment, sums) {
                    asked += 1;
                    let fails = fail_from(&rest.part, sums, &rest.all_states());
                    assert!(!fails, "round {round}, from {moment} on: {part:#?}\n{:#?}", rest.part);
                }
            }
        }
        assert!(asked > 50_000, "{asked}");
    }
}
