//! The small words of the crate: each a newtype, so that a slot is never mistaken for a token.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

number!(
    /// One member of one group: its index in the group's member list, counted from 0.
    ReplicaId(u8), "r"
);
number!(
    /// One position of a group's log. The first entry has slot 1; slot 0 stands for "nothing yet".
    Slot(u64), ""
);
number!(
    /// A period of fixed membership. A stop-sign ends it.
    Epoch(u64), "e"
);
number!(
    /// Logical time in milliseconds since an arbitrary origin of this process. Never goes back.
    Ticks(u64), ""
);
number!(
    /// Wall-clock time in microseconds since the Unix epoch, as proposed by a leader and fixed by the log.
    Timestamp(u64), ""
);
number!(
    /// Names one [`crate::Effect::Persist`]. Tokens grow by one; what is durable is always a prefix of them.
    PersistToken(u64), "t"
);
number!(
    /// The caller's name for one read that asked for a read index.
    ReadId(u64), ""
);

number!(
    /// One attempt of one primary in Byzantine mode. Views grow; their primaries take turns.
    View(u64), "v"
);

/// A position of the log and the hash of everything up to it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogBase {
    /// The position.
    pub slot: Slot,
    /// Chain hash of the entry there; zero before the first entry.
    pub chain: Digest,
    /// Log time there; zero before the first entry. What follows is never earlier, whatever is kept of the log.
    pub time: Timestamp,
    /// Whether the entry there is a stop-sign, so that nothing may follow in this epoch.
    pub sealed: bool,
}

impl fmt::Debug for LogBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.slot)
    }
}

impl Slot {
    /// "Nothing yet": the slot before the first entry.
    pub const ZERO: Self = Self(0);

    /// The slot after this one.
    #[must_use]
    pub fn next(self) -> Self {
        assert!(self.0 < u64::MAX, "a log never reaches 2^64 slots");
        Self(self.0 + 1)
    }

    /// The slot before this one. Slot 0 has none.
    #[must_use]
    pub fn previous(self) -> Self {
        assert!(self.0 > 0, "slot 0 has no predecessor");
        Self(self.0 - 1)
    }
}

impl Ticks {
    /// Milliseconds from `earlier` to `self`; 0 if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The moment `millis` milliseconds later.
    #[must_use]
    pub fn plus(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }
}

/// A BLAKE3 hash.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest before anything was hashed: 32 zero bytes.
    pub const ZERO: Self = Self([0; 32]);
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A set of replicas of one group. Adding a replica twice changes nothing, so a quorum can only be reached by
/// distinct replicas.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ReplicaSet(u64);

impl ReplicaSet {
    /// The set that holds `replica` alone.
    #[must_use]
    pub fn of(replica: ReplicaId) -> Self {
        let mut set = Self::default();
        set.insert(replica);
        set
    }

    /// Adds a replica; true if it was not there yet.
    pub fn insert(&mut self, replica: ReplicaId) -> bool {
        assert!(replica.0 < 64, "a group has at most 64 replicas");
        let before = self.0;
        self.0 |= 1 << replica.0;
        before != self.0
    }

    /// Whether the replica is in the set.
    #[must_use]
    pub fn contains(self, replica: ReplicaId) -> bool {
        replica.0 < 64 && self.0 & (1 << replica.0) != 0
    }

    /// How many distinct replicas are in the set.
    #[must_use]
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether no replica is in the set.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for ReplicaSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries((0..64).map(ReplicaId).filter(|replica| self.contains(*replica))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_counts_once_however_often_it_is_added() {
        let mut set = ReplicaSet::of(ReplicaId(2));
        assert!(!set.insert(ReplicaId(2)));
        assert!(set.insert(ReplicaId(0)));
        assert_eq!(set.len(), 2);
        assert!(set.contains(ReplicaId(0)) && !set.contains(ReplicaId(1)));
    }

    #[test]
    fn time_never_runs_below_zero() {
        assert_eq!(Ticks(5).since(Ticks(9)), 0);
        assert_eq!(Ticks(9).since(Ticks(5)), 4);
    }
}
