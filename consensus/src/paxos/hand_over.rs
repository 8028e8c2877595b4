//! Handing the leadership over: because somebody asked for it, or because the own disk takes nothing any more.
//!
//! A leader whose disk hangs still sends heartbeats, and a quorum of others still decides what it sends; so nobody else would ever lead,
//! while everything that it must keep until its disk has it gathers in memory. So a leader that sees the others decide what its own disk
//! has not taken for long lets the best of them lead, and gives up the lead if nobody takes it.

use super::leader::Leader;
use super::message::Message;
use super::replica::{Replica, Role};
use crate::mutation::mutated;
use crate::types::{ReplicaId, Slot, Ticks};

/// The own disk is given up after so many election timeouts in which others went on and it did not.
const HELD_UP_TIMEOUTS: u64 = 4;

/// How far the own disk has come, since when it is there, and behind what others have decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnDisk {
    durable: Slot,
    since: Ticks,
}

impl OwnDisk {
    /// Nothing is held against it yet.
    #[must_use]
    pub fn new(now: Ticks) -> Self {
        Self { durable: Slot::ZERO, since: now }
    }

    /// For how long it has taken nothing although others have decided more.
    fn look(&mut self, durable: Slot, decided: Slot, now: Ticks) -> u64 {
        if durable != self.durable || decided <= durable {
            *self = Self { durable, since: now };
        }
        now.since(self.since)
    }
}

impl Replica {
    /// Stops taking proposals until another replica leads, or the election timeout has passed. Without a name it is the one that is
    /// there and has most of the log.
    pub(super) fn on_transfer(&mut self, to: Option<ReplicaId>) {
        let (now, within) = (self.now, self.options.election_ticks);
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(to) = to.or_else(|| leader.best_successor(within, now)) else {
            return;
        };
        if leader.peers.contains_key(&to) && leader.transfer.is_none() {
            leader.transfer = Some((to, now));
            self.hand_over_if_ready();
        }
    }

    pub(super) fn hand_over_if_ready(&mut self) {
        let last = self.acceptor.log().last().slot;
        let Role::Leader(leader) = &self.role else { return };
        let Some((to, _)) = leader.transfer else { return };
        if leader.peers.get(&to).is_some_and(|peer| peer.durable == last) {
            let ballot = leader.ballot;
            self.send(to, &Message::TransferLeader { ballot });
        }
    }

    /// Whether the leader has given up the lead, because its own disk takes nothing any more and nobody took it over.
    pub(super) fn gives_up_for_its_disk(&mut self) -> bool {
        if mutated!(self.options, LeadWithoutDisk) {
            return false;
        }
        let own = self.acceptor.durable().unwrap_or(Slot::ZERO);
        let (now, decided, timeout) = (self.now, self.decided, self.options.election_ticks);
        let leader = self.leader_mut();
        let held_up = leader.own_disk.look(own, decided, now);
        let is_handing_over = leader.transfer.is_some();
        if held_up >= (HELD_UP_TIMEOUTS + 2) * timeout {
            self.set_leader(None);
            self.become_follower();
            return true;
        }
        if held_up >= HELD_UP_TIMEOUTS * timeout && !is_handing_over {
            self.on_transfer(None);
        }
        false
    }
}

impl Leader {
    /// Who should lead next: of the replicas that were heard lately the one that has most of the log.
    fn best_successor(&self, within: u64, now: Ticks) -> Option<ReplicaId> {
        let is_there = |contact: Option<Ticks>| contact.is_some_and(|contact| now.since(contact) <= within);
        let there = self.peers.iter().filter(|(_, peer)| is_there(peer.contact));
        there.max_by_key(|(_, peer)| peer.durable).map(|(replica, _)| *replica)
    }
}
