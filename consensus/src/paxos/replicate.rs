//! The leader's side of phase 2: bring every replica to the adopted log, append, decide, confirm reads.

use super::leader::{Leader, Stage};
use super::message::{LogView, Message, Reason};
use super::replica::{Replica, Role};
use crate::codec::PROPOSAL_BYTES_MAX;
use crate::engine::{Proposal, ProposeError};
use crate::mutation::mutated;
use crate::paxos::ballot::Ballot;
use crate::paxos::entry::{Body, Entry};
use crate::types::{ReadId, ReplicaId, Slot, Timestamp};

/// A new leader may stamp entries this much later than the last one, besides the time that passed, in microseconds.
/// One leader whose clock is a year ahead must not expire every session.
const TIME_AHEAD_MICROS: u64 = 3600 * 1_000_000;

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
            Role::Candidate(candidate) => candidate.best_accepted(),
            _ => self.acceptor.accepted(),
        };
        let idle_micros = self.now.since(self.appended_at).saturating_mul(1000);
        self.acceptor.replace(ballot, keep, entries, &self.options);
        let adopted = self.acceptor.log().last().slot;
        let mut leader = Leader::new(ballot, adopted_from, adopted, self.others(), self.now);
        let last_time = self.acceptor.log().last_entry().map(|entry| entry.time);
        leader.time_limit = last_time
            .map(|time| Timestamp(time.0.saturating_add(TIME_AHEAD_MICROS).saturating_add(idle_micros)));
        let late = self.take_promises(&mut leader);
        self.role = Role::Leader(Box::new(leader));
        self.staging = None;
        if !self.acceptor.log().is_sealed() || mutated!(self.options, AppendAfterStopSign) {
            self.append_own(Body::Noop);
        }
        let (barrier, stamped) =
            (self.acceptor.log().last().slot, self.acceptor.log().last_entry().map(|last| last.time));
        let leader = self.leader_mut();
        leader.barrier = barrier;
        // The first entry ever has nothing to be held against; the next ones are held against it.
        leader.time_limit =
            leader.time_limit.or(stamped.map(|time| Timestamp(time.0.saturating_add(TIME_AHEAD_MICROS))));
        self.set_leader(Some(self.me));
        for (replica, view) in late {
            self.on_view(replica, view);
        }
        self.heartbeat();
        self.try_decide();
    }

    /// The promises of the campaign count as contact, and say where each log stands.
    fn take_promises(&mut self, leader: &mut Leader) -> Vec<(ReplicaId, LogView)> {
        let Role::Candidate(candidate) = &self.role else {
            return Vec::new();
        };
        let promises = candidate.promises_of_others(self.me);
        for (replica, _) in &promises {
            if let Some(peer) = leader.peers.get_mut(replica) {
                peer.contact = Some(self.now);
            }
        }
        promises
    }

    fn leader_mut(&mut self) -> &mut Leader {
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
        let log = self.acceptor.log();
        let last_time = log.last_entry().map_or(Timestamp(0), |entry| entry.time);
        let time = leader.stamp(self.wall, last_time, self.now);
        let entry = Entry::after(log.last(), leader.ballot, time, body);
        let slot = entry.slot;
        assert!(time >= last_time, "time never goes back");
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

    fn replicate_to(&mut self, to: ReplicaId) {
        loop {
            let quorate = self.is_quorate_leader();
            let (last, base) = (self.acceptor.log().last().slot, self.acceptor.log().base().slot);
            let (entries_max, bytes_max) = (self.options.window_entries, self.options.window_bytes);
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
                peer.stage = Stage::Snapshot;
                return self.request_snapshot_for(to);
            }
            let ahead = usize::try_from(next.0 - 1 - peer.durable.0.min(next.0 - 1)).unwrap_or(usize::MAX);
            let is_full = ahead >= entries_max || peer.in_flight_bytes() >= bytes_max;
            if next > last || is_full || peer.is_filling() {
                return;
            }
            let log = self.acceptor.log();
            let previous = log.position(next.previous()).expect("the entry before is in the log or its base");
            let entries = log.run(next, entries_max - ahead, self.options.message_bytes);
            let bytes = entries.iter().map(Entry::bytes).sum();
            let sent = entries.last().expect("there is at least one entry to send").slot;
            self.send(to, &Message::Accept { ballot, previous, entries, decided, quorate });
            let peer = self.leader_mut().peers.get_mut(&to).expect("still a member");
            peer.sent(sent, bytes);
            peer.stage = Stage::Replicate { next: sent.next() };
        }
    }

    /// A replica has said where its log stands. It has promised this ballot.
    pub(super) fn on_view(&mut self, from: ReplicaId, view: LogView) {
        let now = self.now;
        // Nobody holds more of this ballot's log than its leader.
        if view.accepted > self.promised()
            || view.accepted == self.promised() && view.last > self.acceptor.log().last().slot
        {
            return;
        }
        let (base, patience) = (self.acceptor.log().base().slot, self.options.election_ticks);
        let leader = self.leader_mut();
        let end = leader.adopted.max(base);
        let sync = (view.accepted < leader.ballot).then(|| leader.sync_point(&view, end));
        let Some(peer) = leader.peers.get_mut(&from) else {
            return;
        };
        peer.contact = Some(now);
        match (&peer.stage, sync) {
            (Stage::Snapshot, _) => {}
            (Stage::Replicate { .. }, None) => {}
            (Stage::Prepare | Stage::Sync { .. }, None) => {
                peer.replicate_from(view.last.next());
                self.replicate_to(from);
            }
            // A sync that was lost is asked for by whoever refuses an entry; where nothing is proposed nobody does.
            (Stage::Sync { at, .. }, Some(_)) if now.since(*at) < patience => {}
            (Stage::Prepare | Stage::Replicate { .. } | Stage::Sync { .. }, Some(sync)) if sync >= base => {
                peer.stage = Stage::Sync { sync, end, sent: sync, at: now };
                self.send_sync(from);
            }
            (Stage::Prepare | Stage::Replicate { .. } | Stage::Sync { .. }, Some(_)) => {
                peer.stage = Stage::Snapshot;
                self.request_snapshot_for(from);
            }
        }
    }

    /// Sends the adopted log from where the peer's sync stands, up to one window.
    fn send_sync(&mut self, to: ReplicaId) {
        let quorate = self.is_quorate_leader();
        let now = self.now;
        let leader = self.leader_mut();
        let ballot = leader.ballot;
        let Some(peer) = leader.peers.get_mut(&to) else {
            return;
        };
        let Stage::Sync { sync, end, sent, .. } = peer.stage else {
            return;
        };
        let Some(position) = self.acceptor.log().position(sync) else {
            self.leader_mut().peers.get_mut(&to).expect("still a member").stage = Stage::Snapshot;
            return self.request_snapshot_for(to);
        };
        let mut at = sent;
        let mut budget = self.options.window_bytes;
        loop {
            let left = usize::try_from(end.0 - at.0).expect("a log in memory has fewer entries");
            let mut entries = Vec::new();
            if left > 0 {
                entries = self.acceptor.log().run(at.next(), left, self.options.message_bytes);
                at = entries.last().expect("the adopted log goes on").slot;
            }
            budget = budget.saturating_sub(entries.iter().map(Entry::bytes).sum());
            self.send(to, &Message::AcceptSync { ballot, sync: position, entries, adopted: end, quorate });
            if at == end || budget == 0 {
                break;
            }
        }
        assert!(at <= end, "a sync stops at its end");
        let peer = self.leader_mut().peers.get_mut(&to).expect("still a member");
        peer.stage = Stage::Sync { sync, end, sent: at, at: now };
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
        peer.acknowledged(durable);
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

    /// Reads wait until a quorum has confirmed, after their arrival, that this replica still leads. Those that arrived
    /// together share a round.
    pub(super) fn on_read(&mut self, ids: Vec<ReadId>) {
        if mutated!(self.options, ReadWithoutIndex) {
            return self.read_ready(ids, self.decided);
        }
        let sealed = self.acceptor.log().is_sealed();
        match &mut self.role {
            Role::Leader(leader) if !sealed => {
                ids.into_iter().for_each(|id| leader.reads.push(id));
                self.begin_read_round();
            }
            _ => ids.into_iter().for_each(|id| self.read_refused(id)),
        }
    }

    /// Begins a round for the reads that wait, unless one is under way, or the leader does not know yet what was
    /// decided before it.
    fn begin_read_round(&mut self) {
        let (me, decided) = (self.me, self.decided);
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        if leader.reads.wants_round() && decided >= leader.barrier {
            let round = leader.round + 1;
            leader.reads.begin(round, decided, me);
            self.heartbeat();
            self.finish_read_round();
        }
    }

    fn finish_read_round(&mut self) {
        let quorum = self.config.quorums.read();
        let count_messages = mutated!(self.options, CountMessages);
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        if let Some((reads, slot)) = leader.reads.take_confirmed(quorum, count_messages) {
            self.read_ready(reads, slot);
            self.begin_read_round();
        }
    }

    /// Says to all that this replica leads.
    fn heartbeat(&mut self) {
        let (now, decided, quorate) = (self.now, self.decided, self.is_quorate_leader());
        let leader = self.leader_mut();
        leader.round += 1;
        leader.heartbeat_at = now;
        let (ballot, round) = (leader.ballot, leader.round);
        for peer in leader.peers.values_mut() {
            if let Stage::Replicate { next } = peer.stage
                && peer.probe.0 == 0
            {
                peer.probe = (round, next);
            }
        }
        self.broadcast(&Message::Heartbeat { ballot, round, decided, quorate });
    }

    /// Heartbeats at their interval; gives up leading, and all leader traffic, when no quorum answers any more.
    pub(super) fn tick_leader(&mut self) {
        if !self.is_quorate_leader() {
            self.set_leader(None);
            return self.become_follower();
        }
        let (now, interval, election) = (self.now, self.options.heartbeat_ticks, self.options.election_ticks);
        let leader = self.leader_mut();
        if leader.transfer.is_some_and(|(_, since)| now.since(since) >= election) {
            leader.transfer = None;
        }
        if now.since(leader.heartbeat_at) < interval {
            return;
        }
        let ballot = leader.ballot;
        let unprepared: Vec<ReplicaId> = leader
            .peers
            .iter()
            .filter(|(_, peer)| peer.stage == Stage::Prepare)
            .map(|(replica, _)| *replica)
            .collect();
        assert!(unprepared.len() < self.config.quorums.n(), "a leader is not its own peer");
        self.heartbeat();
        for replica in unprepared {
            self.send(replica, &Message::Prepare { ballot });
        }
    }

    /// Reads from a heartbeat's answer that the replica is there, what it holds, and whether something was lost.
    pub(super) fn on_heartbeat_reply(
        &mut self,
        from: ReplicaId,
        ballot: Ballot,
        round: u64,
        view: LogView,
        durable: Slot,
    ) {
        let last = self.acceptor.log().last().slot;
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        if leader.ballot != ballot || view.last > last && view.accepted == ballot || !view.is_sound() {
            return;
        }
        leader.reads.confirm(from, round);
        let Some(peer) = leader.peers.get_mut(&from) else {
            return;
        };
        peer.contact = Some(self.now);
        let probe = std::mem::take(&mut peer.probe);
        let is_early = probe.0 == 0 || round < probe.0;
        // It answered a heartbeat that was sent after these entries, and does not have them: they were lost.
        let has_lost = !is_early && view.accepted == ballot && view.last < probe.1.previous();
        if is_early {
            peer.probe = probe;
        } else if has_lost {
            peer.replicate_from(view.last.next());
        }
        self.on_view(from, view);
        if has_lost {
            self.replicate_to(from);
        }
        if view.accepted == ballot && durable > Slot::ZERO {
            self.on_accepted(from, ballot, durable);
        }
        self.finish_read_round();
    }

    /// Acts on a refusal of a message of this ballot.
    pub(super) fn on_reject(&mut self, from: ReplicaId, ballot: Ballot, reason: Reason) {
        if let Reason::Promised(promised) = reason {
            self.election.see(promised);
        }
        if !self.is_leader() || ballot != self.promised() {
            return;
        }
        match reason {
            Reason::Promised(promised) if promised > ballot => self.outrank(),
            Reason::NeedPrepare => {
                let peer = self.leader_mut().peers.get_mut(&from).expect("members were checked");
                if peer.stage != Stage::Snapshot {
                    peer.stage = Stage::Prepare;
                }
                self.send(from, &Message::Prepare { ballot });
            }
            Reason::NeedSync { view, staged } => self.on_need_sync(from, view, staged),
            Reason::GapAt(last) => self.on_gap(from, last),
            Reason::TimeAhead | Reason::Epoch(_) => {
                self.set_leader(None);
                self.become_follower();
            }
            Reason::Promised(_) => {}
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

    fn on_need_sync(&mut self, from: ReplicaId, view: LogView, staged: Slot) {
        let (now, patience) = (self.now, 2 * self.options.heartbeat_ticks);
        let base = self.acceptor.log().base().slot;
        let leader = self.leader_mut();
        if view.accepted >= leader.ballot || !view.is_sound() {
            return;
        }
        let latest_end = leader.adopted.max(base);
        let Some(peer) = leader.peers.get_mut(&from) else {
            return;
        };
        let Stage::Sync { sync, end, sent, at } = peer.stage else {
            return self.on_view(from, view);
        };
        if staged > sync && staged <= end && staged >= sent {
            peer.stage = Stage::Sync { sync, end, sent: staged, at: now };
        } else if staged > sync && sync >= base && now.since(at) >= patience {
            // A piece was lost on the way: go on behind what arrived.
            peer.stage = Stage::Sync { sync, end, sent: staged.min(end), at: now };
        } else if now.since(at) >= patience {
            // Nothing arrived, or the position is not in that log: begin again from what is surely shared.
            let sync = view.decided.min(latest_end);
            if sync < base {
                peer.stage = Stage::Snapshot;
                return self.request_snapshot_for(from);
            }
            peer.stage = Stage::Sync { sync, end: latest_end, sent: sync, at: now };
        } else {
            return;
        }
        self.send_sync(from);
    }

    /// Entries were lost on the way, or overtaken.
    fn on_gap(&mut self, from: ReplicaId, last: Slot) {
        let peer = self.leader_mut().peers.get_mut(&from);
        if peer.is_some_and(|peer| peer.fill_gap(last)) {
            self.replicate_to(from);
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

    /// Stops taking proposals until `to` leads, or the election timeout has passed.
    pub(super) fn on_transfer(&mut self, to: ReplicaId) {
        let now = self.now;
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        if leader.peers.contains_key(&to) && leader.transfer.is_none() {
            leader.transfer = Some((to, now));
            self.hand_over_if_ready();
        }
    }

    fn hand_over_if_ready(&mut self) {
        let last = self.acceptor.log().last().slot;
        let Role::Leader(leader) = &self.role else { return };
        let Some((to, _)) = leader.transfer else { return };
        if leader.peers.get(&to).is_some_and(|peer| peer.durable == last) {
            let ballot = leader.ballot;
            self.send(to, &Message::TransferLeader { ballot });
        }
    }
}
