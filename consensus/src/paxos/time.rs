//! Log time: what a leader stamps its entries with.
//!
//! Sessions and keys end by log time, so one wrong clock must not move it. Every promise and every answer to a heartbeat tells what the
//! clock of its sender says. A leader stamps with **the latest time that a majority of all clocks has reached**, as far as it knows: a
//! minority of clocks that are ahead, its own among them, moves nothing, and neither does a minority that lags, as long as the others
//! answer. A clock that was not heard of in this leadership counts as not set at all.
//!
//! Time never goes back: not between the entries of a log, not when the log was compacted (its base has a time), not with a new leader.
//! Where a majority of clocks was ahead once and has been put right, log time waits for them, but it does not stand still: it goes on at
//! half the pace of the time that passes here, so that what should end does end, and the clocks catch up.
//!
//! Because the leader knows before it stamps what others would say to it, nobody needs to refuse an entry for its time: an entry that is
//! in a log may have to be adopted by the next leader whatever it says.
//!
//! *Not noticed*: a majority of clocks that are wrong together.

use super::leader::{Leader, Peer};
use crate::types::{Ticks, Timestamp};

/// What another replica's clock said, and when that was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Clock {
    /// What it said.
    pub said: Timestamp,
    /// When it was heard, by the own ticks.
    pub heard: Ticks,
}

impl Clock {
    /// What it says now, if both run alike. A little less: the answer was on its way.
    fn now(self, now: Ticks) -> Timestamp {
        Timestamp(self.said.0.saturating_add(micros(now.since(self.heard))))
    }
}

impl Leader {
    /// The stamp for an entry that follows one of `last`, which came to be here at `appended`.
    #[must_use]
    pub fn stamp(&self, wall: Timestamp, last: Timestamp, appended: Ticks, now: Ticks) -> Timestamp {
        let least = Timestamp(last.0.saturating_add(micros(now.since(appended)) / 2));
        self.majority_time(wall, now).max(least)
    }

    /// The latest time that a majority of all clocks has reached.
    fn majority_time(&self, wall: Timestamp, now: Ticks) -> Timestamp {
        let of_peer = |peer: &Peer| peer.clock.map_or(Timestamp(0), |clock| clock.now(now));
        let mut clocks: Vec<Timestamp> = self.peers.values().map(of_peer).chain([wall]).collect();
        clocks.sort_unstable_by(|a, b| b.cmp(a));
        let majority = clocks.len() / 2 + 1;
        assert!(majority <= clocks.len(), "a majority is part of the group");
        clocks[majority - 1]
    }
}

fn micros(ticks: u64) -> u64 {
    ticks.saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paxos::ballot::Ballot;
    use crate::types::{Epoch, ReplicaId};

    const YEAR: u64 = 365 * 24 * 3600 * 1_000_000;

    /// A leader of `clocks.len() + 1` replicas that has heard these.
    fn leader(clocks: &[Option<u64>]) -> Leader {
        let ballot = Ballot { epoch: Epoch(1), round: 1, replica: ReplicaId(0) };
        let others: Vec<ReplicaId> = (1..=clocks.len()).map(|id| ReplicaId(id as u8)).collect();
        let mut leader = Leader::new(ballot, Ballot::ZERO, crate::types::Slot::ZERO, others, Ticks(100));
        for (peer, said) in leader.peers.values_mut().zip(clocks) {
            peer.clock = said.map(|said| Clock { said: Timestamp(said), heard: Ticks(100) });
        }
        leader
    }

    fn stamp(clocks: &[Option<u64>], wall: u64) -> u64 {
        leader(clocks).stamp(Timestamp(wall), Timestamp(0), Ticks(100), Ticks(100)).0
    }

    #[test]
    fn a_minority_of_clocks_moves_nothing() {
        let now = 50 * YEAR;
        assert_eq!(stamp(&[Some(now), Some(now)], now + YEAR), now, "the leader is ahead");
        assert_eq!(stamp(&[Some(now), Some(now)], now - YEAR), now, "the leader lags");
        assert_eq!(stamp(&[Some(now + YEAR), Some(now)], now), now);
        assert_eq!(stamp(&[Some(now + YEAR), Some(now - YEAR)], now), now);
        assert_eq!(stamp(&[Some(now + YEAR), Some(now), Some(now), Some(now)], now + YEAR), now);
        assert_eq!(stamp(&[], now), now, "alone there is nobody else to ask");
    }

    #[test]
    fn a_clock_that_was_not_heard_of_does_not_count() {
        let now = 50 * YEAR;
        assert_eq!(stamp(&[Some(now), None], now + YEAR), now);
        assert_eq!(stamp(&[Some(now + YEAR), Some(now), None, None], now + YEAR), now);
        assert_eq!(stamp(&[None, None], now), 0, "one of three is no majority");
    }

    #[test]
    fn what_a_clock_said_ages_with_the_own_ticks() {
        let leader = leader(&[Some(1_000_000), None]);
        assert_eq!(leader.stamp(Timestamp(YEAR), Timestamp(0), Ticks(2_100), Ticks(2_100)).0, 3_000_000);
    }

    #[test]
    fn ahead_of_all_clocks_time_goes_on_at_half_its_pace() {
        let leader = leader(&[Some(YEAR), Some(YEAR)]);
        let stamp = leader.stamp(Timestamp(YEAR), Timestamp(2 * YEAR), Ticks(100), Ticks(3_100));
        assert_eq!(stamp.0, 2 * YEAR + 1_500_000);
    }

    #[test]
    fn no_clock_can_overflow() {
        let leader = leader(&[Some(u64::MAX), Some(u64::MAX)]);
        let end = Timestamp(u64::MAX);
        assert_eq!(leader.stamp(end, end, Ticks(0), Ticks(u64::MAX)), end);
    }
}
