//! Handing the leadership over.

use super::message::Message;
use super::replica::{Replica, Role};
use crate::types::ReplicaId;

impl Replica {
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

    pub(super) fn hand_over_if_ready(&mut self) {
        let last = self.acceptor.log().last().slot;
        let Role::Leader(leader) = &self.role else { return };
        let Some((to, _)) = leader.transfer else { return };
        if leader.peers.get(&to).is_some_and(|peer| peer.durable == last) {
            let ballot = leader.ballot;
            self.send(to, &Message::TransferLeader { ballot });
        }
    }
}
