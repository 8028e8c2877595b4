//! The leader's heartbeats: they keep followers loyal, confirm reads, show what was lost, and measure how long they take.

use super::leader::{Probe, Stage};
use super::message::{LogView, Message};
use super::replica::{Replica, Role};
use crate::mutation::mutated;
use crate::paxos::ballot::Ballot;
use crate::paxos::time::Clock;
use crate::types::{ReadId, ReplicaId, Slot, Timestamp};

impl Replica {
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
    pub(super) fn begin_read_round(&mut self) {
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
    pub(super) fn heartbeat(&mut self) {
        let (now, decided, quorate) = (self.now, self.decided, self.is_quorate_leader());
        if decided >= self.leader_mut().barrier {
            self.election.forget_attempts();
        }
        let leader = self.leader_mut();
        leader.round += 1;
        leader.heartbeat_at = now;
        let (ballot, round) = (leader.ballot, leader.round);
        for peer in leader.peers.values_mut().filter(|peer| peer.probe.is_none()) {
            peer.probe = Some(Probe { round, at: now, sent: peer.sent() });
        }
        self.broadcast(&Message::Heartbeat { ballot, round, decided, quorate });
    }

    /// Heartbeats at their interval; gives up leading, and all leader traffic, when no quorum answers any more.
    pub(super) fn tick_leader(&mut self) {
        if !self.is_quorate_leader() {
            self.set_leader(None);
            return self.become_follower();
        }
        if self.gives_up_for_its_disk() {
            return;
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
        wall: Timestamp,
    ) {
        let is_possible = self.is_possible(&view);
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        if leader.ballot != ballot || !is_possible {
            return;
        }
        leader.reads.confirm(from, round);
        let Some(peer) = leader.peers.get_mut(&from) else {
            return;
        };
        peer.contact = Some(self.now);
        peer.clock = Some(Clock { said: wall, heard: self.now });
        if view.accepted == ballot {
            peer.flow.arrived(view.last.slot, self.options.window_bytes);
        }
        if let Some(probe) = peer.probe.take_if(|probe| probe.round <= round) {
            peer.flow.measure(self.now.since(probe.at), self.options.election_ticks);
            if self.has_lost(from, &view, probe.sent) {
                self.send_again(from, view);
            }
        }
        self.on_view(from, view);
        if view.accepted == ballot && durable > Slot::ZERO {
            self.on_accepted(from, ballot, durable);
        }
        self.finish_read_round();
    }

    /// It answered a heartbeat that was sent behind these entries, and does not have them: they were lost.
    fn send_again(&mut self, to: ReplicaId, view: LogView) {
        let peer = self.leader_mut().peers.get_mut(&to).expect("the caller knows it");
        peer.flow.shrink();
        if matches!(peer.stage, Stage::Sync { .. }) {
            return self.begin_sync(to, view);
        }
        peer.replicate_from(view.last.slot.next());
        self.replicate_to(to);
    }
}
