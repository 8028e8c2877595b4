//! What one key may do: a value or none, and how each operation changes and sees it.

use crate::history::Action;
use std::collections::HashMap;

/// A state of the key, by number. States are made as they are met.
pub(crate) type StateId = u32;

/// The states met so far.
#[derive(Debug)]
pub(crate) struct States {
    values: Vec<Option<String>>,
    ids: HashMap<Option<String>, StateId>,
}

/// The state in which there is no such key.
pub(crate) const ABSENT: StateId = 0;

impl States {
    pub(crate) fn new() -> Self {
        Self { values: vec![None], ids: HashMap::from([(None, ABSENT)]) }
    }

    pub(crate) fn id(&mut self, value: &Option<String>) -> StateId {
        if let Some(id) = self.ids.get(value) {
            return *id;
        }
        let id = StateId::try_from(self.values.len()).expect("fewer than 2^32 values");
        self.values.push(value.clone());
        self.ids.insert(value.clone(), id);
        id
    }

    pub(crate) fn value(&self, id: StateId) -> &Option<String> {
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
            Prepared::Append(tail) => {
                let value = format!("{}{tail}", self.value(state).as_deref().unwrap_or_default());
                Some(self.id(&Some(value)))
            }
            Prepared::Incr(by, sum) => {
                let before = match self.value(state) {
                    None => Some(0),
                    Some(text) => text.parse::<i64>().ok(),
                };
                // A number that cannot be incremented is answered with an error, not with a sum.
                let Some(after) = before.and_then(|before| before.checked_add(*by)) else {
                    return (!is_known).then_some(state);
                };
                if is_known && after != *sum {
                    return None;
                }
                Some(self.id(&Some(after.to_string())))
            }
        }
    }

    /// The operation with its values as states.
    pub(crate) fn prepare(&mut self, action: &Action) -> Prepared {
        match action {
            Action::Get(seen) => Prepared::Get(self.id(seen)),
            Action::Put(value) => Prepared::Put(self.id(&Some(value.clone()))),
            Action::Delete => Prepared::Put(ABSENT),
            Action::Cas(expect, value, swapped) => Prepared::Cas(self.id(expect), self.id(value), *swapped),
            Action::Append(tail) => Prepared::Append(tail.clone()),
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
    Append(String),
    Incr(i64, i64),
}
