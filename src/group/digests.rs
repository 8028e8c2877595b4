//! Replicas that applied the same slots have answered the same: at certain slots they compare a digest of it.
//!
//! The leader tells its digest; each follower holds it against its own, now or when it reaches the slot. Whoever differs
//! stops: one of the two states is wrong, and nobody knows which.

use super::message::{GroupMessage, encode};
use super::{Group, Output};
use crate::limits::DIGEST_INTERVAL_SLOTS;

impl Group {
    /// At certain slots every replica notes its digest and the leader tells its own.
    pub(super) fn share_digest(&mut self, slot: u64) {
        if !slot.is_multiple_of(DIGEST_INTERVAL_SLOTS) || !self.compares_digests() {
            return;
        }
        let digest = self.machine.reached().digest;
        if self.digests.insert(slot, digest).is_some_and(|other| other != digest) {
            return self.diverged(slot);
        }
        while self.digests.len() > 8 {
            self.digests.pop_first();
        }
        if self.seat.is_leader() {
            let body = encode(&GroupMessage::Digest { slot, digest });
            let leader = self.leader();
            for node in
                self.tenure().nodes().collect::<Vec<_>>().into_iter().filter(|node| Some(*node) != leader)
            {
                self.outputs.push(Output::Send { to: node, is_bulk: false, body: body.clone() });
            }
        }
    }

    /// Holds another replica's digest against this one's, now or when the slot is reached.
    pub(super) fn compare_digest(&mut self, slot: u64, digest: [u8; 32]) {
        if slot.saturating_add(8 * DIGEST_INTERVAL_SLOTS) < self.machine.reached().slot
            || self.digests.len() > 16
            || !self.compares_digests()
        {
            return;
        }
        let is_reached = slot <= self.machine.reached().slot;
        match self.digests.get(&slot) {
            Some(own) if *own != digest => self.diverged(slot),
            None if !is_reached => {
                self.digests.insert(slot, digest);
            }
            _ => {}
        }
    }

    fn diverged(&mut self, slot: u64) {
        let reason = format!(
            "group {} diverged: after slot {slot} this replica answered differently from its leader. Its state is not \
             to be trusted; stop it, keep its data directory for analysis, and add the node anew",
            self.tenure().group()
        );
        self.outputs.push(Output::Fatal { reason });
    }
}
