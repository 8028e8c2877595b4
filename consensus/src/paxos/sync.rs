//! The leader's side of AcceptSync: bring a replica to the log that was adopted.
//!
//! ```text
//! leader                              acceptor
//!    | AcceptSync (a piece) ------------>|   gathered, not adopted
//!    |<-- NeedSync (gathered up to here) |   more may be sent (flow.rs)
//!    | AcceptSync (the last piece) ----->|   adopted as a whole, durable
//!    |<------------------------ Accepted |
//! ```
//!
//! Pieces follow one another as long as [`super::flow`] allows. A piece that was lost is noticed by the heartbeat sent behind it: its answer
//! does not hold what was sent before. Where it does, the answer tells as much as the NeedSync that may have been lost.

use super::leader::Stage;
use super::message::{LogView, Message};
use super::replica::{Replica, Role};
use crate::paxos::entry::Entry;
use crate::types::{LogBase, ReplicaId, Slot};

impl Replica {
    /// A replica has said where its log stands. It has promised this ballot.
    pub(super) fn on_view(&mut self, from: ReplicaId, view: LogView) {
        let now = self.now;
        if !self.is_possible(&view) {
            return;
        }
        let Role::Leader(leader) = &mut self.role else { return };
        let has_adopted = view.accepted == leader.ballot;
        let Some(peer) = leader.peers.get_mut(&from) else {
            return;
        };
        peer.contact = Some(now);
        match peer.stage {
            Stage::Snapshot => {}
            Stage::Replicate { .. } if has_adopted => {}
            Stage::Prepare | Stage::Sync { .. } if has_adopted => {
                peer.replicate_from(view.last.slot.next());
                self.replicate_to(from);
            }
            // What it has gathered, it may have said before in an answer that was lost.
            Stage::Sync { .. } => self.on_need_sync(from, view),
            Stage::Prepare | Stage::Replicate { .. } => self.begin_sync(from, view),
        }
    }

    /// Whether a replica that has promised this ballot can be in this state: nobody holds more of this ballot's log than its leader.
    pub(super) fn is_possible(&self, view: &LogView) -> bool {
        let is_longer = view.accepted == self.promised() && view.last.slot > self.acceptor.log().last().slot;
        view.is_sound() && view.accepted <= self.promised() && !is_longer
    }

    /// Sends the adopted log, from what both logs surely share, or behind what the replica has gathered of this very log.
    pub(super) fn begin_sync(&mut self, to: ReplicaId, view: LogView) {
        let log = self.acceptor.log();
        let base = log.base().slot;
        let Role::Leader(leader) = &self.role else { return };
        let end =
            log.position(leader.adopted.max(base)).expect("the adopted log ends in this log or below it");
        let shared = leader.sync_point(&view, end.slot);
        let gathered = self.gathered_of_this_log(shared, end, &view);
        let from = gathered.or_else(|| log.position(shared));
        let stage = match from {
            Some(from) => Stage::Sync { sync: log.position(shared).unwrap_or(from), end, sent: from.slot },
            None => Stage::Snapshot,
        };
        let is_snapshot = stage == Stage::Snapshot;
        self.leader_mut().peers.get_mut(&to).expect("members were checked").enter(stage);
        if is_snapshot { self.request_snapshot_for(to) } else { self.send_sync(to, true) }
    }

    /// Where the replica's gathered entries end, if this log holds them, between these two positions.
    fn gathered_of_this_log(&self, after: Slot, end: LogBase, view: &LogView) -> Option<LogBase> {
        let is_between = |at: &LogBase| at.slot > after && at.slot <= end.slot;
        view.gathered.filter(is_between).filter(|at| self.acceptor.log().holds(*at))
    }

    /// Sends the adopted log from where the peer's sync stands, as far as its flow allows; at least one piece if nothing was sent yet,
    /// because the last one makes the replica adopt the log, however little it carries.
    fn send_sync(&mut self, to: ReplicaId, is_first: bool) {
        let quorate = self.is_quorate_leader();
        let window = self.options.window_bytes;
        let mut is_due = is_first;
        loop {
            let log = self.acceptor.log();
            let Role::Leader(leader) = &self.role else { return };
            let (ballot, peer) = (leader.ballot, &leader.peers[&to]);
            let Stage::Sync { sync, end, sent } = peer.stage else { return };
            let room = peer.flow.room(window);
            if !is_due && (sent == end.slot || room == 0) {
                return;
            }
            if sent < log.base().slot {
                return self.give_snapshot(to);
            }
            let left = usize::try_from(end.slot.0 - sent.0).expect("a log in memory has fewer entries");
            let bytes_max = room.min(self.options.message_bytes);
            let entries = if left > 0 { log.run(sent.next(), left, bytes_max) } else { Vec::new() };
            let sent = entries.last().map_or(sent, |entry| entry.slot);
            let bytes = entries.iter().map(Entry::bytes).sum();
            assert!(sent <= end.slot, "a sync stops at its end");
            self.send(to, &Message::AcceptSync { ballot, sync, entries, adopted: end, quorate });
            let peer = self.leader_mut().peers.get_mut(&to).expect("still a member");
            peer.stage = Stage::Sync { sync, end, sent };
            peer.flow.sent(sent, bytes);
            is_due = false;
        }
    }

    /// A replica says how much it has gathered: because a piece came, because it cannot append yet what came, or in answer to a heartbeat.
    pub(super) fn on_need_sync(&mut self, from: ReplicaId, view: LogView) {
        let ballot = self.promised();
        if view.accepted >= ballot || !view.is_sound() {
            return;
        }
        let Role::Leader(leader) = &self.role else { return };
        let Stage::Sync { sync, end, sent } = leader.peers[&from].stage else {
            return self.on_view(from, view);
        };
        if let Some(gathered) = self.gathered_of_this_log(sync.slot, end, &view) {
            let window = self.options.window_bytes;
            let peer = self.leader_mut().peers.get_mut(&from).expect("members were checked");
            peer.flow.done(gathered.slot, window);
            peer.stage = Stage::Sync { sync, end, sent: sent.max(gathered.slot) };
            self.send_sync(from, false);
        }
    }

    /// Whether the answer to a heartbeat shows that something was lost that was sent before it, up to this slot.
    pub(super) fn has_lost(&self, from: ReplicaId, view: &LogView, sent: Slot) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        match leader.peers[&from].stage {
            Stage::Replicate { .. } => view.accepted == leader.ballot && view.last.slot < sent,
            Stage::Sync { sync, end, .. } => {
                let gathered =
                    self.gathered_of_this_log(sync.slot, end, view).map_or(Slot::ZERO, |at| at.slot);
                // The last piece makes it adopt the log, however little it carries.
                view.accepted < leader.ballot && (gathered < sent || sent == end.slot)
            }
            Stage::Prepare | Stage::Snapshot => false,
        }
    }
}
