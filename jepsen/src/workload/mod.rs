//! What clients do. A workload draws the next operation; the checker judges the history of them all, key by key.

use crate::random::Random;
use tetrachord_checker::Action;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Workload {
    /// Reads, writes, and writes that compare first.
    Register,
    /// Sums that many add to.
    Counter,
    /// Elements that are added behind one another, each once.
    Set,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Register, Self::Counter, Self::Set];

    /// Its name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Counter => "counter",
            Self::Set => "set",
        }
    }

    /// The workload with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|workload| workload.name() == name)
    }

    /// What it does and what it refutes, in a line.
    #[must_use]
    pub fn about(self) -> &'static str {
        match self {
            Self::Register => {
                "get, put and cas on few keys: stale reads, lost writes, two winners of one comparison"
            }
            Self::Counter => "incr and get: increments that were lost or applied twice",
            Self::Set => {
                "append of elements that are each unique, and get: elements lost, doubled or out of order"
            }
        }
    }

    /// The next operation of a process: its key, and what it does. `number` is new for every operation of the process.
    pub fn next(self, random: &mut Random, keys: u64, process: u64, number: u64) -> (String, Action) {
        let mut key = format!("{}{}", &self.name()[..1], random.below(keys));
        if self == Self::Set {
            // Sets grow, and every read holds all of one: each is left alone after a while.
            key += &format!(".{}", number / 40);
        }
        let value = || format!("{process}.{number}");
        let action = match (self, random.below(10)) {
            (_, 0..=3) => Action::Get(None),
            (Self::Register, 4..=6) => Action::Put(large_sometimes(value(), number).into()),
            (Self::Register, 7) => Action::Delete,
            // Mostly it compares with what is not there; now and then that is right.
            (Self::Register, _) => Action::Cas(None, Some(value().into()), false),
            (Self::Counter, _) => Action::Incr(1 + i64::try_from(number % 3).expect("small"), 0),
            (Self::Set, _) => Action::Append(format!("{};", value())),
        };
        (key, action)
    }
}

/// Larger than one stored record now and then: cut into pieces, and shrunk again by the next write.
fn large_sometimes(mut value: String, number: u64) -> String {
    if number.is_multiple_of(23) {
        value.push_str(&"x".repeat(usize::try_from(7_000 + number % 9_000).expect("small")));
    }
    value
}
