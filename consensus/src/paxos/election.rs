//! When to try to lead: timers, stickiness, and what was heard of the leader.
//!
//! * A replica that hears a *quorate* leader does not help anybody else to lead (sticky), so one replica with a bad
//!   link cannot depose a leader that works for the others.
//! * Only traffic of a leader that itself hears a quorum counts as hearing it. A leader cut off from its quorum but
//!   not from this replica must not keep this replica loyal for ever.
//! * Timeouts are staggered by replica and jittered, so that usually one replica tries alone.
//! * An attempt that comes to nothing makes the next one more patient, until a leader is heard. Whoever fails over and over, because it
//!   must fetch much, or its disk is slow, so leaves the others time to try: each Prepare restarts their timers, and a replica that
//!   always asked again before they ran out would keep all of them waiting for ever. And whatever an attempt takes, some attempt is
//!   patient enough for it.

use crate::config::Options;
use crate::paxos::ballot::Ballot;
use crate::types::{Epoch, ReplicaId, Ticks};

/// Rounds that another replica may be ahead: years of failed attempts.
const ROUNDS_AHEAD_MAX: u64 = 1 << 32;

/// The most patient attempt waits this many times the election timeout, as a power of two.
const PATIENCE_DOUBLINGS_MAX: u32 = 3;

/// Timers and hearsay of one replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Election {
    me: ReplicaId,
    epoch: Epoch,
    election_ticks: u64,
    random: u64,
    /// The highest ballot seen anywhere in this epoch; an attempt goes above it.
    pub seen: Ballot,
    /// When to try to lead, unless a leader is heard before.
    pub deadline: Ticks,
    /// When a quorate leader was last heard.
    pub leader_heard: Option<Ticks>,
    /// When this replica last began phase 1.
    pub campaigned: Option<Ticks>,
    /// How often it did since it last heard a quorate leader, or was one.
    attempts: u32,
}

impl Election {
    /// Timers at the start of the process.
    #[must_use]
    pub(super) fn new(me: ReplicaId, epoch: Epoch, options: &Options, seen: Ballot) -> Self {
        assert!(
            options.election_ticks >= 2 * options.heartbeat_ticks,
            "a leader must be able to be heard in time"
        );
        let random = options.seed ^ (u64::from(me.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let election_ticks = options.election_ticks;
        Self {
            me,
            epoch,
            election_ticks,
            random,
            seen,
            deadline: Ticks(0),
            leader_heard: None,
            campaigned: None,
            attempts: 0,
        }
    }

    /// Starts the timer anew: a leader was heard, a candidate was helped, or what was asked for is coming.
    pub(super) fn restart(&mut self, now: Ticks) {
        let doublings = self.attempts.saturating_sub(1).min(PATIENCE_DOUBLINGS_MAX);
        self.deadline = now.plus((self.election_ticks << doublings) + self.stagger());
        assert!(self.deadline > now, "a timer lies in the future");
    }

    /// Phase 1 begins here.
    pub(super) fn begin_attempt(&mut self, now: Ticks) {
        self.attempts = self.attempts.saturating_add(1);
        self.campaigned = Some(now);
        self.restart(now);
    }

    /// There is a leader, who works: the next attempt will be the first.
    pub(super) fn forget_attempts(&mut self) {
        self.attempts = 0;
    }

    /// Starts the shorter timer of an attempt that is under way.
    pub(super) fn restart_attempt(&mut self, now: Ticks) {
        self.deadline = now.plus(self.election_ticks / 2 + self.stagger());
        assert!(self.deadline > now, "a timer lies in the future");
    }

    /// A quorate leader was heard.
    pub(super) fn hear_leader(&mut self, now: Ticks) {
        self.leader_heard = Some(now);
        self.forget_attempts();
        self.restart(now);
    }

    /// Whether a quorate leader was heard within the election timeout.
    #[must_use]
    pub(super) fn hears_leader(&self, now: Ticks) -> bool {
        self.leader_heard.is_some_and(|heard| now.since(heard) < self.election_ticks)
    }

    /// Whether phase 1 was begun within the election timeout.
    #[must_use]
    pub(super) fn campaigned_lately(&self, now: Ticks) -> bool {
        self.campaigned.is_some_and(|then| now.since(then) < self.election_ticks)
    }

    /// Whether an honest replica may be at this ballot. Rounds grow by one with each attempt; one that is far ahead of
    /// everything seen is damage, and following it would use the numbers up.
    pub(super) fn is_plausible(&self, ballot: Ballot) -> bool {
        ballot.epoch <= self.epoch && ballot.round <= self.seen.round.saturating_add(ROUNDS_AHEAD_MAX)
    }

    /// Remembers a ballot, so that the next attempt outranks it.
    pub(super) fn see(&mut self, ballot: Ballot) {
        if self.is_plausible(ballot) {
            self.seen = self.seen.max(ballot);
        }
    }

    /// A share of the timeout by replica (a quarter step each) plus a random one (up to a quarter).
    fn stagger(&mut self) -> u64 {
        let quarter = (self.election_ticks / 4).max(1);
        u64::from(self.me.0 % 4) * quarter / 2 + self.next_random() % quarter
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stickiness_ends_with_the_timeout_and_needs_a_quorate_leader() {
        let mut election = Election::new(ReplicaId(1), Epoch(1), &Options::default(), Ballot::ZERO);
        assert!(!election.hears_leader(Ticks(0)));
        election.hear_leader(Ticks(100));
        assert!(election.hears_leader(Ticks(599)));
        assert!(!election.hears_leader(Ticks(600)));
        assert!(election.deadline >= Ticks(600));
    }

    #[test]
    fn attempts_that_fail_make_patient_and_a_leader_makes_impatient_again() {
        let mut election = Election::new(ReplicaId(0), Epoch(1), &Options::default(), Ballot::ZERO);
        let mut waits = Vec::new();
        for _ in 0..6 {
            election.begin_attempt(Ticks(1_000));
            waits.push(election.deadline.since(Ticks(1_000)) / 500);
        }
        assert_eq!(waits, [1, 2, 4, 8, 8, 8], "in election timeouts");
        election.hear_leader(Ticks(1_000));
        election.begin_attempt(Ticks(1_000));
        assert_eq!(election.deadline.since(Ticks(1_000)) / 500, 1);
    }

    #[test]
    fn one_seed_gives_one_sequence_and_replicas_differ() {
        let sequence = |me| {
            let mut election = Election::new(ReplicaId(me), Epoch(1), &Options::default(), Ballot::ZERO);
            (0..5).map(|_| election.next_random()).collect::<Vec<_>>()
        };
        assert_eq!(sequence(1), sequence(1));
        assert_ne!(sequence(1), sequence(2));
    }
}
