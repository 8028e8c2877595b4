//! The acceptor's side of phase 2: take over the leader's log once, then append to it.

use super::gathering::{Gathering, Misfit};
use super::message::{Message, Reason};
use super::replica::{Replica, Role};
use crate::mutation::mutated;
use crate::paxos::ballot::Ballot;
use crate::paxos::entry::Entry;
use crate::types::{LogBase, ReplicaId, Slot};

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
    /// * they follow this log or repeat a part of it.
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

    /// Gathers the leader's adopted log, and adopts it when it is complete:
    /// * once per ballot; a late copy must not truncate what was acknowledged since;
    /// * only if it ends where the leader's adopted log ends, with the same hash;
    /// * only if the position where it begins is in this log, with the same hash;
    /// * never against what is decided.
    pub(super) fn on_accept_sync(
        &mut self,
        from: ReplicaId,
        ballot: Ballot,
        sync: LogBase,
        entries: Vec<Entry>,
        adopted: LogBase,
    ) {
        if self.acceptor.accepted() == ballot && !mutated!(self.options, SyncTwice) {
            return self.acknowledge();
        }
        if !self.goes_on(ballot, sync, entries.first(), adopted)
            && !self.begin_gathering(ballot, sync, &entries)
        {
            return self.need_sync(from, ballot);
        }
        let gathering = self.gathering.as_mut().expect("it was there, or was just begun");
        gathering.ballot = ballot;
        gathering.add(entries.into_iter().filter(|entry| entry.slot <= adopted.slot));
        if !gathering.holds(adopted) && !mutated!(self.options, AdoptHalfSync) {
            return self.need_sync(from, ballot);
        }
        gathering.cut(adopted.slot);
        self.adopt_gathered(from, ballot);
    }

    /// Whether a piece goes on behind what is gathered. What was gathered for another ballot counts only if the leader, who was told
    /// where it ends, goes on there: one that begins again has another log.
    fn goes_on(&self, ballot: Ballot, sync: LogBase, first: Option<&Entry>, adopted: LogBase) -> bool {
        let Some(gathering) = &self.gathering else { return false };
        let is_same = gathering.ballot == ballot;
        match first {
            Some(first) => gathering.leads_to(first) && (is_same || first.slot.previous() > sync.slot),
            None => gathering.holds(adopted),
        }
    }

    /// Begins to gather at the position that the leader's log and this one should share; false if they do not, or if the piece is not
    /// the first.
    fn begin_gathering(&mut self, ballot: Ballot, sync: LogBase, entries: &[Entry]) -> bool {
        let log = self.acceptor.log();
        let is_first = entries.first().is_none_or(|first| first.follows(sync));
        let is_shared = log.holds(sync) || sync.slot < log.base().slot;
        if is_first {
            self.gathering = is_shared.then(|| Gathering::new(ballot, sync));
        }
        is_first && is_shared
    }

    fn adopt_gathered(&mut self, from: ReplicaId, ballot: Ballot) {
        let gathering = self.gathering.take().expect("the caller has gathered it");
        let (keep, entries) = match gathering.split(self.acceptor.log()) {
            Ok(parts) => parts,
            Err(Misfit::Foreign) => return self.need_sync(from, ballot),
            Err(Misfit::Contradiction(slot)) => {
                return self.fail(format!("ballot {ballot} contradicts the snapshot at slot {slot}"));
            }
        };
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
        let view = self.view();
        let durable = self.acceptor.durable().filter(|_| adopted).unwrap_or(Slot::ZERO);
        assert!(
            durable <= view.last.slot || !adopted || cfg!(feature = "mutants"),
            "durable is a part of the log"
        );
        self.send(from, &Message::HeartbeatReply { ballot, round, view, durable, wall: self.wall });
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
        assert!(self.acceptor.accepted() < ballot || cfg!(feature = "mutants"), "a log is adopted once");
        let view = self.view();
        self.send(from, &Message::Reject { ballot, reason: Reason::NeedSync { view } });
    }
}

/// Why entries do not fit.
enum Mismatch {
    /// The sender made a mistake; nothing is known to be wrong here.
    Malformed,
    /// Two different entries claim the same slot and ballot: one of the two logs is corrupt.
    Contradiction(Slot),
}
