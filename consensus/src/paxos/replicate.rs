//! The leader's side of phase 2: bring every replica to the adopted log, append, decide, confirm reads.

use super::leader::{Leader, Stage};
use super::message::{LogView, Message, Reason};
use super::replica::{Replica, Role};
use crate::codec::PROPOSAL_BYTES_MAX;
use crate::engine::Proposal;
use crate::mutation::mutated;
use crate::paxos::ballot::Ballot;
use crate::paxos::entry::{Body, Entry};
use crate::paxos::face::ProposeError;
use crate::types::{ReplicaId, Slot};

impl Replica {
    /// Begins to lead with the log `(..keep] + entries`. Adopting it claims this ballot for the whole of it; then a
    /// no-op of the own ballot follows, unless the log ends the epoch.
    pub(super) fn lead(&mut self, keep: Slot, entries: Vec<Entry>) {
        let ballot = self.promised();
        assert_eq!(ballot.replica, self.me, "a replica leads in its own ballot");
        if keep < self.decided {
            return self.fail(format!("ballot {ballot} would drop decided slots behind {keep}"));
        }
        let adopted_from = match &self.role {
            Role::Candidate(candidate) => candidate.adopted_from(self.acceptor.accepted()),
            _ => self.acceptor.accepted(),
        };
        let is_own = entries.is_empty() && keep == self.acceptor.log().last().slot;
        self.acceptor.replace(ballot, keep, entries, &self.options);
        if !is_own {
            self.appended_at = self.now;
        }
        let adopted = self.acceptor.log().last().slot;
        let mut leader = Leader::new(ballot, adopted_from, adopted, self.others(), self.now);
        let late = self.take_promises(&mut leader);
        self.role = Role::Leader(Box::new(leader));
        self.gathering = None;
        if !self.acceptor.log().is_sealed() || mutated!(self.options, AppendAfterStopSign) {
            self.append_own(Body::Noop);
        }
        let barrier = self.acceptor.log().last().slot;
        self.leader_mut().barrier = barrier;
        self.set_leader(Some(self.me));
        // First, so that its answer tells how long the way is while it is empty.
        self.heartbeat();
        for (replica, view) in late {
            self.on_view(replica, view);
        }
        self.try_decide();
    }

    /// The promises of the campaign count as contact, and say what each clock says and where each log stands.
    fn take_promises(&mut self, leader: &mut Leader) -> Vec<(ReplicaId, LogView)> {
        let Role::Candidate(candidate) = &self.role else {
            return Vec::new();
        };
        let promises = candidate.promises_of_others(self.me);
        for (replica, promise) in &promises {
            if let Some(peer) = leader.peers.get_mut(replica) {
                peer.contact = Some(self.now);
                peer.clock = Some(promise.clock);
            }
        }
        promises.into_iter().map(|(replica, promise)| (replica, promise.view)).collect()
    }

    pub(super) fn leader_mut(&mut self) -> &mut Leader {
        let Role::Leader(leader) = &mut self.role else {
            unreachable!("the caller knows that this replica leads")
        };
        leader
    }

    /// Whether this replica leads and heard a phase 2 quorum within the election timeout.
    pub(super) fn is_quorate_leader(&self) -> bool {
        let Role::Leader(leader) = &self.role else {
            return false;
        };
        // Just elected counts as just heard: the promises of a phase 1 quorum are as fresh as that.
        self.now.since(leader.since) < self.options.election_ticks
            || leader.heard_within(self.options.election_ticks, self.now) >= self.config.quorums.phase2()
    }

    pub(super) fn try_propose(&mut self, proposal: Proposal) -> Result<Slot, ProposeError> {
        let leader_now = self.engine_leader();
        let Role::Leader(leader) = &self.role else {
            return Err(ProposeError::NotLeader { leader: leader_now });
        };
        if self.acceptor.log().is_sealed() {
            return Err(ProposeError::EpochEnded { epoch: self.config.epoch });
        }
        if leader.transfer.is_some() {
            return Err(ProposeError::NotLeader { leader: None });
        }
        let undecided = self.acceptor.log().last().slot.0 - self.decided.0;
        if undecided >= self.options.undecided_entries_max as u64 {
            return Err(ProposeError::Full);
        }
        let (bytes, body) = match proposal {
            Proposal::Batch(batch) => (batch.len(), Body::Batch(batch)),
            Proposal::StopSign(next) => (next.len(), Body::StopSign(next)),
        };
        if bytes > PROPOSAL_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes, max: PROPOSAL_BYTES_MAX });
        }
        let slot = self.append_own(body);
        self.replicate_all();
        self.try_decide();
        Ok(slot)
    }

    fn engine_leader(&self) -> Option<ReplicaId> {
        crate::engine::Engine::status(self).leader
    }

    fn append_own(&mut self, body: Body) -> Slot {
        let Role::Leader(leader) = &self.role else { unreachable!("only a leader appends its own entries") };
        let last = self.acceptor.log().last();
        let own_clock = mutated!(self.options, StampOwnClock);
        let time = match own_clock {
            false => leader.stamp(self.wall, last.time, self.appended_at, self.now),
            true => self.wall.max(last.time),
        };
        let entry = Entry::after(last, leader.ballot, time, body);
        let slot = entry.slot;
        self.acceptor.append(vec![entry], &self.options);
        self.appended_at = self.now;
        slot
    }

    /// Sends every replica what it lacks and may have.
    fn replicate_all(&mut self) {
        for replica in self.others() {
            self.replicate_to(replica);
        }
    }

    pub(super) fn replicate_to(&mut self, to: ReplicaId) {
        loop {
            let quorate = self.is_quorate_leader();
            let (last, base) = (self.acceptor.log().last().slot, self.acceptor.log().base().slot);
            let (entries_max, window) = (self.options.window_entries, self.options.window_bytes);
            let decided = self.decided;
            let leader = self.leader_mut();
            let ballot = leader.ballot;
            let Some(peer) = leader.peers.get_mut(&to) else {
                return;
            };
            let Stage::Replicate { next } = peer.stage else {
                return;
            };
            if next <= base {
                return self.give_snapshot(to);
            }
            let room = peer.flow.room(window);
            let ahead = usize::try_from(next.0 - 1 - peer.durable.0.min(next.0 - 1)).unwrap_or(usize::MAX);
            if next > last || ahead >= entries_max || room == 0 || peer.is_filling() {
                return;
            }
            let log = self.acceptor.log();
            let previous = log.position(next.previous()).expect("the entry before is in the log or its base");
            let entries = log.run(next, entries_max - ahead, room.min(self.options.message_bytes));
            let bytes = entries.iter().map(Entry::bytes).sum();
            let sent = entries.last().expect("there is at least one entry to send").slot;
            self.send(to, &Message::Accept { ballot, previous, entries, decided, quorate });
            let peer = self.leader_mut().peers.get_mut(&to).expect("still a member");
            peer.flow.sent(sent, bytes);
            peer.stage = Stage::Replicate { next: sent.next() };
        }
    }

    /// Counts an acknowledgement, if it was given in this ballot. One from an older ballot says nothing about the log
    /// that this leader adopted.
    pub(super) fn on_accepted(&mut self, from: ReplicaId, ballot: Ballot, durable: Slot) {
        let now = self.now;
        let last = self.acceptor.log().last().slot;
        let any_ballot = mutated!(self.options, CountOlderBallot);
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        if !any_ballot && (ballot != leader.ballot || durable > last) {
            return;
        }
        let Some(peer) = leader.peers.get_mut(&from) else {
            return;
        };
        peer.contact = Some(now);
        peer.acknowledged(durable, self.options.window_bytes);
        let behind = match peer.stage {
            Stage::Replicate { next } => next <= durable,
            Stage::Prepare | Stage::Sync { .. } => ballot == leader.ballot,
            Stage::Snapshot => false,
        };
        if behind {
            peer.replicate_from(durable.next());
        }
        self.try_decide();
        self.replicate_to(from);
        self.hand_over_if_ready();
    }

    /// Decides what a phase 2 quorum holds durably, acknowledged in this ballot. The leader's own copy counts only
    /// once it is durable too.
    pub(super) fn try_decide(&mut self) {
        let own = self.acceptor.durable().unwrap_or(Slot::ZERO);
        let quorum = self.config.quorums.phase2() - usize::from(mutated!(self.options, DecideTooSoon));
        let Role::Leader(leader) = &self.role else { return };
        assert_eq!(
            leader.ballot,
            self.acceptor.promised(),
            "a leader that promised another ballot steps down"
        );
        let decided = leader.quorum_durable(own, quorum);
        if decided > self.decided {
            self.learn_decided(decided);
            self.begin_read_round();
        }
    }

    /// Acts on a refusal of a message of this ballot.
    pub(super) fn on_reject(&mut self, from: ReplicaId, ballot: Ballot, reason: Reason) {
        if let Reason::Promised(promised) = reason {
            self.election.see(promised);
        }
        if !self.is_leader() || ballot != self.promised() {
            return;
        }
        let now = self.now;
        let peer = self.leader_mut().peers.get_mut(&from).expect("members were checked");
        if !matches!(reason, Reason::Promised(_) | Reason::Epoch(_)) {
            // It hears this leader, and helps no other.
            peer.contact = Some(now);
        }
        match reason {
            Reason::Promised(promised) if promised > ballot => self.outrank(),
            Reason::NeedPrepare => {
                if peer.stage != Stage::Snapshot {
                    peer.enter(Stage::Prepare);
                }
                self.send(from, &Message::Prepare { ballot });
            }
            Reason::NeedSync { view } => self.on_need_sync(from, view),
            Reason::GapAt(last) => self.on_gap(from, last),
            Reason::Epoch(epoch) if epoch > self.config.epoch => {
                self.set_leader(None);
                self.become_follower();
            }
            // It is behind, and says nothing of this epoch.
            Reason::Epoch(_) | Reason::Promised(_) => {}
        }
    }

    /// A replica has promised a higher ballot. While a quorum still answers, win that replica back with a ballot
    /// above it; otherwise somebody else leads, or will.
    fn outrank(&mut self) {
        if self.is_quorate_leader() && !self.election.campaigned_lately(self.now) {
            self.campaign();
        } else if !self.is_quorate_leader() {
            self.set_leader(None);
            self.become_follower();
        }
    }

    /// Entries were lost on the way, or overtaken.
    fn on_gap(&mut self, from: ReplicaId, last: Slot) {
        let peer = self.leader_mut().peers.get_mut(&from);
        if peer.is_some_and(|peer| peer.fill_gap(last)) {
            self.replicate_to(from);
        }
    }

    /// The log does not lead to what this replica lacks. Only one that is there is given a state: the tree stands still for that.
    pub(super) fn give_snapshot(&mut self, to: ReplicaId) {
        let (now, patience) = (self.now, self.options.election_ticks);
        let peer = self.leader_mut().peers.get_mut(&to).expect("members were checked");
        let is_there = peer.contact.is_some_and(|contact| now.since(contact) <= patience);
        peer.enter(if is_there { Stage::Snapshot } else { Stage::Prepare });
        if is_there {
            self.request_snapshot_for(to);
        }
    }

    /// The transfer has ended; the replica's next answer tells what it needs now.
    pub(super) fn on_snapshot_ended(&mut self, to: ReplicaId) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(peer) = leader.peers.get_mut(&to) else {
            return;
        };
        if peer.stage == Stage::Snapshot {
            peer.stage = Stage::Prepare;
            let ballot = leader.ballot;
            self.send(to, &Message::Prepare { ballot });
        }
    }
}
