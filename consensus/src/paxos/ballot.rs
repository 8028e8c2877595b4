//! Ballots: who attempts to lead, in total order.

use crate::types::{Epoch, ReplicaId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One attempt to lead. Ordered by epoch, then round, then replica, so no two replicas ever share one.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// The epoch whose members the attempt addresses.
    pub epoch: Epoch,
    /// Grows with every attempt that a replica makes or sees.
    pub round: u64,
    /// Who attempts.
    pub replica: ReplicaId,
}

impl Ballot {
    /// Below every ballot that anybody uses: rounds start at 1.
    pub const ZERO: Self = Self { epoch: Epoch(0), round: 0, replica: ReplicaId(0) };

    /// The lowest ballot of `replica` in `epoch` that is above this one.
    #[must_use]
    pub fn successor(self, epoch: Epoch, replica: ReplicaId) -> Self {
        let round = if self.epoch == epoch { self.round.saturating_add(1) } else { 1 };
        let next = Self { epoch, round, replica };
        assert!(next > self || self.epoch > epoch, "a new attempt outranks what was seen in its epoch");
        next
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.epoch.0, self.round, self.replica.0)
    }
}

impl fmt::Debug for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_dominate_rounds_and_rounds_dominate_replicas() {
        let ballot =
            |epoch, round, replica| Ballot { epoch: Epoch(epoch), round, replica: ReplicaId(replica) };
        assert!(ballot(2, 1, 0) > ballot(1, 9, 9));
        assert!(ballot(1, 2, 0) > ballot(1, 1, 9));
        assert!(ballot(1, 1, 1) > ballot(1, 1, 0));
        assert_eq!(ballot(1, 4, 2).successor(Epoch(1), ReplicaId(0)), ballot(1, 5, 0));
        assert_eq!(Ballot::ZERO.successor(Epoch(1), ReplicaId(2)), ballot(1, 1, 2));
    }
}
