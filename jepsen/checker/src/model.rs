//! What one key may do: a value or none, and how each operation changes and sees it.

use crate::history::{Action, Operation};
use crate::value::Value;
use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};

/// A state of the key, by number. States are made as they are met.
pub(crate) type StateId = u32;

/// The states met so far, and where appending and adding led from them: a search comes to the same ones over and over, and values may
/// be long.
#[derive(Debug)]
pub(crate) struct States {
    sums: Sums,
    values: Vec<Option<Value>>,
    ids: HashMap<Option<Value>, StateId>,
    appended: BTreeMap<(StateId, StateId), Option<StateId>>,
    added: BTreeMap<(StateId, i64), Sum>,
    /// Where a key is only appended to: the longest value that was ever seen of it.
    longest: Option<String>,
}

/// What adding to a state comes to: the number and the state that it is, or nothing if the value is no number.
type Sum = Option<(i64, StateId)>;

/// How the store keeps sums. Redis keeps texts of digits, others keep numbers; a history tells which by what its operations name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sums {
    Texts,
    Numbers,
    /// A sum is of the kind of what was added to, and a text where there was nothing.
    Mixed,
}

impl Sums {
    /// How the store keeps the sums of the key on which these operations are all.
    pub(crate) fn of<O: Borrow<Operation>>(operations: &[O]) -> Self {
        let actions = || operations.iter().map(|operation| &operation.borrow().action);
        let names = |is_it: fn(&Value) -> bool| {
            actions().any(|action| match action {
                Action::Get(seen) => seen.as_ref().is_some_and(is_it),
                Action::Put(value) => is_it(value),
                Action::Cas(expect, value, _) => [expect, value].into_iter().flatten().any(is_it),
                Action::Delete | Action::Append(_) | Action::Incr(..) => false,
            })
        };
        let has_texts = names(|value| matches!(value, Value::Text(_)));
        let has_numbers = names(|value| matches!(value, Value::Number(_)));
        match (has_texts, has_numbers) {
            (true, true) => Self::Mixed,
            (false, true) => Self::Numbers,
            (_, false) => Self::Texts,
        }
    }

    /// What a sum is kept as where there was nothing.
    fn keep(self, sum: i64) -> Value {
        match self {
            Self::Texts | Self::Mixed => Value::Text(sum.to_string()),
            Self::Numbers => Value::from(sum),
        }
    }

    /// All that a sum may be kept as.
    pub(crate) fn kinds(self, sum: i64) -> impl Iterator<Item = Value> {
        let other = (self == Self::Mixed).then(|| Self::Numbers.keep(sum));
        [self.keep(sum)].into_iter().chain(other)
    }
}

/// The state in which there is no such key.
pub(crate) const ABSENT: StateId = 0;

impl States {
    pub(crate) fn new(sums: Sums) -> Self {
        let ids = HashMap::from([(None, ABSENT)]);
        Self {
            sums,
            values: vec![None],
            ids,
            appended: BTreeMap::new(),
            added: BTreeMap::new(),
            longest: None,
        }
    }

    pub(crate) fn id(&mut self, value: &Option<Value>) -> StateId {
        if let Some(id) = self.ids.get(value) {
            return *id;
        }
        let id = StateId::try_from(self.values.len()).expect("fewer than 2^32 values");
        self.values.push(value.clone());
        self.ids.insert(value.clone(), id);
        id
    }

    fn value(&self, id: StateId) -> &Option<Value> {
        &self.values[id as usize]
    }

    /// The state after the operation, or `None` if it cannot have been answered like that in this state. An operation
    /// whose outcome is unknown may see anything.
    pub(crate) fn apply(&mut self, state: StateId, operation: &Prepared, is_known: bool) -> Option<StateId> {
        match operation {
            Prepared::Get(seen) => (!is_known || *seen == state).then_some(state),
            Prepared::Put(value) => Some(*value),
            Prepared::Cas(expect, value, swapped) => {
                let equal = *expect == state;
                if is_known && equal != *swapped {
                    return None;
                }
                Some(if equal { *value } else { state })
            }
            Prepared::Append(tail) => match self.value(state) {
                // Nothing can be put behind a number: that is answered with an error.
                Some(Value::Number(_)) => (!is_known).then_some(state),
                _ => self.append(state, *tail),
            },
            Prepared::Incr(by, sum) => match self.add(state, *by) {
                Some((after, _)) if is_known && after != *sum => None,
                Some((_, id)) => Some(id),
                // A number that cannot be incremented is answered with an error, not with a sum.
                None => (!is_known).then_some(state),
            },
        }
    }

    /// If nothing but appending is done to the key, a value only grows: whatever was seen last began with every value before it. What
    /// does not begin so leads nowhere, and need not be looked at.
    pub(crate) fn expect_growth(&mut self, actions: &[&Action]) {
        let only_grows = actions.iter().all(|action| matches!(action, Action::Get(_) | Action::Append(_)));
        let seen = actions.iter().filter_map(|action| match action {
            Action::Get(Some(Value::Text(seen))) => Some(seen),
            _ => None,
        });
        self.longest = seen.max_by_key(|text| text.len()).filter(|_| only_grows).cloned();
    }

    fn append(&mut self, state: StateId, tail: StateId) -> Option<StateId> {
        if let Some(known) = self.appended.get(&(state, tail)) {
            return *known;
        }
        let letters = |id: StateId| self.value(id).as_ref().map(Value::letters).unwrap_or_default();
        let text = [letters(state), letters(tail)].concat();
        let leads_nowhere = |longest: &String| text.len() <= longest.len() && !longest.starts_with(&text);
        let id = match &self.longest {
            Some(longest) if leads_nowhere(longest) => None,
            _ => Some(self.id(&Some(Value::Text(text)))),
        };
        self.appended.insert((state, tail), id);
        id
    }

    fn add(&mut self, state: StateId, by: i64) -> Sum {
        if let Some(known) = self.added.get(&(state, by)) {
            return *known;
        }
        let (before, sums) = match self.value(state) {
            None => (Some(0), self.sums),
            Some(value @ Value::Text(_)) => (value.whole(), Sums::Texts),
            Some(value @ Value::Number(_)) => (value.whole(), Sums::Numbers),
        };
        let after = before.and_then(|before| before.checked_add(by));
        let sum = after.map(|after| (after, self.id(&Some(sums.keep(after)))));
        self.added.insert((state, by), sum);
        sum
    }

    /// The operation with its values as states.
    pub(crate) fn prepare(&mut self, action: &Action) -> Prepared {
        match action {
            Action::Get(seen) => Prepared::Get(self.id(seen)),
            Action::Put(value) => Prepared::Put(self.id(&Some(value.clone()))),
            Action::Delete => Prepared::Put(ABSENT),
            Action::Cas(expect, value, swapped) => Prepared::Cas(self.id(expect), self.id(value), *swapped),
            Action::Append(tail) => Prepared::Append(self.id(&Some(Value::Text(tail.clone())))),
            Action::Incr(by, sum) => Prepared::Incr(*by, *sum),
        }
    }
}

/// An operation whose values are states already.
#[derive(Clone, Debug)]
pub(crate) enum Prepared {
    Get(StateId),
    Put(StateId),
    Cas(StateId, StateId, bool),
    /// The tail, as the state that it would be alone.
    Append(StateId),
    Incr(i64, i64),
}
