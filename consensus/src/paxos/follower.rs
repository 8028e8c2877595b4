//! The acceptor's side of phase 2: take over the leader's log once, then append to it.

use super::message::{Message, Reason};
use super::replica::{Replica, Role};
use crate::mutation::mutated;
use crate::paxos::ballot::Ballot;
use crate::paxos::entry::Entry;
use crate::types::{LogBase, ReplicaId, Slot, Timestamp};

/// An entry may be stamped this much later than the one before it, besides the time that passed between them, in
/// microseconds. Twice what a leader allows itself, so that two clocks need not agree on how much time passed.
const TIME_AHEAD_MAX_MICROS: u64 = 2 * 3600 * 1_000_000;

/// The pieces of an AcceptSync that have arrived so far. They take effect as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Staging {
    ballot: Ballot,
    sync: LogBase,
    adopted: Slot,
    entries: Vec<Entry>,
}

impl Staging {
    fn at(&self) -> LogBase {
        self.entries.last().map_or(self.sync, Entry::base)
    }
}

impl Replica {
    /// Whether leader traffic may be acted on:
    /// * its ballot is not below the promise, else the sender learns the promise;
    /// * its ballot is the promised one, else the sender must prepare this replica first.
    ///
    /// A quorate leader whose ballot is not below the promise keeps this replica loyal, whatever comes of the message.
    pub(super) fn admit_leader(&mut self, from: ReplicaId, ballot: Ballot, quorate: bool) -> bool {
        self.election.see(ballot);
        if ballot < self.promised() {
            self.send(from, &Message::Reject { ballot, reason: Reason::Promised(self.promised()) });
            return false;
        }
        if quorate {
            self.election.hear_leader(self.now);
            self.set_leader(Some(from));
            if matches!(self.role, Role::PreCandidate(_)) {
                self.become_follower();
            }
        }
        if ballot > self.promised() {
            self.send(from, &Message::Reject { ballot, reason: Reason::NeedPrepare });
            return false;
        }
        assert!(!self.is_leader(), "nobody else sends in this replica's ballot");
        true
    }

    /// Appends entries, if
    /// * the leader's log was adopted before;
    /// * they follow this log or repeat a part of it;
    /// * their time does not run away.
    pub(super) fn on_accept(
        &mut self,
        from: ReplicaId,
        ballot: Ballot,
        previous: LogBase,
        entries: Vec<Entry>,
        decided: Slot,
    ) {
        if self.acceptor.accepted() != ballot {
            return self.need_sync(from, ballot);
        }
        let log = self.acceptor.log();
        if previous.slot > log.last().slot {
            let reason = Reason::GapAt(log.last().slot);
            return self.send(from, &Message::Reject { ballot, reason });
        }
        let fresh = match self.fresh_entries(previous, entries) {
            Ok(fresh) => fresh,
            Err(Mismatch::Malformed) => return,
            Err(Mismatch::Contradiction(slot)) => {
                return self.fail(format!("two entries accepted in ballot {ballot} differ at slot {slot}"));
            }
        };
        if !self.is_time_plausible(&fresh) {
            return self.send(from, &Message::Reject { ballot, reason: Reason::TimeAhead });
        }
        let repeated = fresh.is_empty();
        if !repeated {
            self.acceptor.append(fresh, &self.options);
            self.appended_at = self.now;
        }
        self.learn_decided(decided);
        if repeated || mutated!(self.options, AckBeforeBarrier) {
            self.acknowledge();
        }
    }

    /// The entries that the log does not hold yet.
    fn fresh_entries(&self, previous: LogBase, entries: Vec<Entry>) -> Result<Vec<Entry>, Mismatch> {
        let log = self.acceptor.log();
        if log.position(previous.slot).is_some_and(|at| at != previous) {
            return Err(Mismatch::Contradiction(previous.slot));
        }
        let mut at = previous;
        let mut fresh = Vec::new();
        for entry in entries {
            if !entry.follows(at) || at.sealed {
                return Err(Mismatch::Malformed);
            }
            at = entry.base();
            if entry.slot > log.last().slot {
                fresh.push(entry);
            } else if log.position(entry.slot).is_some_and(|held| held != at) {
                return Err(Mismatch::Contradiction(entry.slot));
            }
        }
        if let Some(first) = fresh.first()
            && (!first.follows(log.last()) || log.is_sealed())
        {
            return Err(Mismatch::Malformed);
        }
        Ok(fresh)
    }

    fn is_time_plausible(&self, fresh: &[Entry]) -> bool {
        let elapsed_micros = self.now.since(self.appended_at).saturating_mul(1000);
        let slack = elapsed_micros.saturating_add(TIME_AHEAD_MAX_MICROS);
        let mut last = self.acceptor.log().last_entry().map_or(Timestamp(0), |entry| entry.time);
        fresh.iter().all(|entry| {
            let plausible = last.0 == 0 || entry.time.0 <= last.0.saturating_add(slack);
            last = last.max(entry.time);
            plausible
        })
    }

    /// Gathers the leader's adopted log, and adopts it when it is complete:
    /// * once per ballot; a late copy must not truncate what was acknowledged since;
    /// * only if the position where it begins is in this log, with the same hash;
    /// * never against what is decided.
    pub(super) fn on_accept_sync(
        &mut self,
        from: ReplicaId,
        ballot: Ballot,
        sync: LogBase,
        entries: Vec<Entry>,
        adopted: Slot,
    ) {
        if self.acceptor.accepted() == ballot && !mutated!(self.options, SyncTwice) {
            return self.acknowledge();
        }
        let is_new =
            self.staging.as_ref().is_none_or(|staging| staging.ballot != ballot || staging.sync != sync);
        if is_new && entries.first().is_none_or(|entry| Some(entry.slot.0) == sync.slot.0.checked_add(1)) {
            self.staging = Some(Staging { ballot, sync, adopted, entries: Vec::new() });
        }
        let Some(staging) = self.staging.as_mut().filter(|staging| staging.ballot == ballot) else {
            return self.need_sync(from, ballot);
        };
        let gathered = staging.at().slot;
        for entry in entries.into_iter().filter(|entry| entry.slot > gathered) {
            if !entry.follows(staging.at()) || entry.slot > staging.adopted {
                break;
            }
            staging.entries.push(entry);
        }
        if staging.at().slot < staging.adopted {
            return self.need_sync(from, ballot);
        }
        self.adopt_staged(from, ballot);
    }

    fn adopt_staged(&mut self, from: ReplicaId, ballot: Ballot) {
        let staging = self.staging.take().expect("the caller has gathered it");
        let log = self.acceptor.log();
        // Skip what both logs share: what is shared need not be written again, and what a snapshot replaced is gone.
        let mut keep = match log.position(staging.sync.slot) {
            Some(at) if at == staging.sync => at,
            None if staging.sync.slot < log.base().slot => log.base(),
            _ => return self.need_sync(from, ballot),
        };
        let mut entries = Vec::new();
        let first = keep.slot;
        for entry in staging.entries.into_iter().filter(|entry| entry.slot >= first) {
            match log.position(entry.slot) {
                Some(at) if at == entry.base() && entries.is_empty() => keep = at,
                _ if entry.slot == keep.slot && entries.is_empty() => {
                    return self
                        .fail(format!("ballot {ballot} contradicts the snapshot at slot {}", entry.slot));
                }
                _ => entries.push(entry),
            }
        }
        if keep.slot < self.decided {
            return self.fail(format!("ballot {ballot} would drop decided slots behind {}", keep.slot));
        }
        self.acceptor.replace(ballot, keep.slot, entries, &self.options);
        self.appended_at = self.now;
        assert_eq!(self.acceptor.accepted(), ballot, "the leader's log is now this replica's");
        if mutated!(self.options, AckBeforeBarrier) {
            self.acknowledge();
        }
    }

    /// Answers a heartbeat; the leader reads from the answer what this replica still needs.
    pub(super) fn on_heartbeat(&mut self, from: ReplicaId, ballot: Ballot, round: u64, decided: Slot) {
        let adopted = self.acceptor.accepted() == ballot;
        if adopted || mutated!(self.options, DecideAnyBallot) {
            self.learn_decided(decided);
        }
        let view = self.acceptor.view(self.decided, &self.options);
        let durable = self.acceptor.durable().filter(|_| adopted).unwrap_or(Slot::ZERO);
        assert!(
            durable <= view.last || !adopted || cfg!(feature = "mutants"),
            "durable is a part of the log"
        );
        self.send(from, &Message::HeartbeatReply { ballot, round, view, durable });
        if !adopted {
            self.need_sync(from, ballot);
        }
    }

    /// Tells the leader how much is durable. The record that makes it so is durable already; the driver checks.
    pub(super) fn acknowledge(&mut self) {
        let ballot = self.acceptor.accepted();
        if ballot != self.promised() || ballot.replica == self.me {
            return;
        }
        let Some(durable) = self.acceptor.durable() else { return };
        self.send_after(
            ballot.replica,
            &Message::Accepted { ballot, durable },
            self.acceptor.promise_token(),
        );
    }

    fn need_sync(&mut self, from: ReplicaId, ballot: Ballot) {
        let view = self.acceptor.view(self.decided, &self.options);
        let staged = self.staging.as_ref().filter(|staging| staging.ballot == ballot);
        let staged = staged.map_or(Slot::ZERO, |staging| staging.at().slot);
        assert!(self.acceptor.accepted() < ballot || cfg!(feature = "mutants"), "a log is adopted once");
        self.send(from, &Message::Reject { ballot, reason: Reason::NeedSync { view, staged } });
    }
}

/// Why entries do not fit.
enum Mismatch {
    /// The sender made a mistake; nothing is known to be wrong here.
    Malformed,
    /// Two different entries claim the same slot and ballot: one of the two logs is corrupt.
    Contradiction(Slot),
}
