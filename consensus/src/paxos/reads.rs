//! Linearizable reads without a log entry: ask a quorum whether this replica still leads.
//!
//! A read may be served from any state that contains everything decided when the read arrived. The leader knows that
//! slot only while it is sure that nobody leads above it, and it becomes sure when enough replicas answer a heartbeat
//! **sent after the read arrived** in its own ballot. All reads that wait share the next round; rounds follow one
//! another without a timer.

use crate::types::{ReadId, ReplicaId, ReplicaSet, Slot};

/// A round of heartbeats that some reads wait for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Round {
    number: u64,
    slot: Slot,
    reads: Vec<ReadId>,
    confirmed: ReplicaSet,
    messages: usize,
}

/// Reads of one leader that wait for their confirmation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reads {
    waiting: Vec<ReadId>,
    round: Option<Round>,
}

impl Reads {
    /// A read has arrived; it needs a round that begins later than this.
    pub fn push(&mut self, id: ReadId) {
        self.waiting.push(id);
    }

    /// Whether a new round should begin: something waits and no round is under way.
    #[must_use]
    pub fn wants_round(&self) -> bool {
        self.round.is_none() && !self.waiting.is_empty()
    }

    /// Begins the round `number` for all reads that wait now. `decided` is the leader's decided slot at this moment.
    pub fn begin(&mut self, number: u64, decided: Slot, me: ReplicaId) {
        assert!(self.wants_round(), "one round at a time, and only for somebody");
        let reads = std::mem::take(&mut self.waiting);
        self.round = Some(Round { number, slot: decided, reads, confirmed: ReplicaSet::of(me), messages: 1 });
    }

    /// A replica answered the heartbeat `number` in the leader's ballot.
    pub fn confirm(&mut self, from: ReplicaId, number: u64) {
        if let Some(round) = self.round.as_mut().filter(|round| number >= round.number) {
            round.confirmed.insert(from);
            round.messages += 1;
            assert!(round.confirmed.len() <= round.messages, "distinct replicas are at most the messages");
        }
    }

    /// The reads that are confirmed by `quorum` distinct replicas, with the slot from which they may be served.
    pub fn take_confirmed(&mut self, quorum: usize, count_messages: bool) -> Option<(Vec<ReadId>, Slot)> {
        let round = self.round.as_ref()?;
        let count = if count_messages { round.messages } else { round.confirmed.len() };
        if count < quorum {
            return None;
        }
        self.round.take().map(|round| (round.reads, round.slot))
    }

    /// All reads, because the leadership is lost.
    pub fn take_all(&mut self) -> Vec<ReadId> {
        let mut reads = std::mem::take(&mut self.waiting);
        reads.extend(self.round.take().into_iter().flat_map(|round| round.reads));
        reads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_waits_for_a_round_that_began_after_it() {
        let mut reads = Reads::default();
        reads.push(ReadId(1));
        reads.begin(5, Slot(9), ReplicaId(0));
        reads.push(ReadId(2));
        reads.confirm(ReplicaId(1), 4);
        assert_eq!(reads.take_confirmed(2, false), None);
        reads.confirm(ReplicaId(1), 5);
        assert_eq!(reads.take_confirmed(2, false), Some((vec![ReadId(1)], Slot(9))));
        assert!(reads.wants_round());
    }

    #[test]
    fn the_same_replica_confirms_once() {
        let mut reads = Reads::default();
        reads.push(ReadId(1));
        reads.begin(1, Slot(0), ReplicaId(0));
        reads.confirm(ReplicaId(1), 1);
        reads.confirm(ReplicaId(1), 2);
        assert_eq!(reads.take_confirmed(3, false), None);
        assert_eq!(reads.take_all(), vec![ReadId(1)]);
    }
}
