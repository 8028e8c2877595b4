//! What a replica knows of its group, and its own settings.

use crate::mutation::Mutation;
use crate::pbft::batch::{BATCH_BYTES_MAX, BATCH_REQUESTS_MAX};
use crate::quorum::{ByzantineQuorum, byzantine_quorum};
use crate::types::{Epoch, ReplicaId, Slot, View};
use serde::{Deserialize, Serialize};

/// How far agreement runs ahead of what is known to be stable. All replicas must agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Window {
    /// A checkpoint is made at every multiple of this many slots.
    pub interval: u64,
    /// Slots above the stable checkpoint that may be agreed on; a multiple of the interval, at least twice.
    pub length: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self { interval: 128, length: 256 }
    }
}

/// The membership of one epoch, as the core needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Config {
    /// The epoch during which it holds.
    pub epoch: Epoch,
    /// How many replicas there are, and how many are enough.
    pub quorum: ByzantineQuorum,
    /// How far agreement runs ahead.
    pub window: Window,
}

impl Config {
    /// The replicas of the group.
    pub fn replicas(&self) -> impl Iterator<Item = ReplicaId> + use<> {
        let n = u8::try_from(self.quorum.n()).expect("a checked group has at most 13 replicas");
        (0..n).map(ReplicaId)
    }

    /// Whether the replica belongs to the group.
    #[must_use]
    pub fn contains(&self, replica: ReplicaId) -> bool {
        usize::from(replica.0) < self.quorum.n()
    }

    /// Who proposes in a view. The epoch is part of it, so that no replica is first in every epoch.
    #[must_use]
    pub fn primary(&self, view: View) -> ReplicaId {
        let index = self.epoch.0.wrapping_add(view.0) % self.quorum.n() as u64;
        ReplicaId(u8::try_from(index).expect("smaller than the group"))
    }

    /// Whether agreement on this slot may run while `stable` is the last stable checkpoint.
    #[must_use]
    pub fn is_in_window(&self, stable: Slot, slot: Slot) -> bool {
        slot > stable && slot.0 <= stable.0 + self.window.length
    }

    /// Whether a checkpoint is made after this slot.
    #[must_use]
    pub fn is_checkpoint(&self, slot: Slot) -> bool {
        slot.0 > 0 && slot.0.is_multiple_of(self.window.interval)
    }

    /// Replicas that must agree before anything is decided. The broken variant takes one too few.
    pub(super) fn quorum_size(&self, mutation: Mutation) -> usize {
        let n = self.quorum.n();
        let size = byzantine_quorum(n);
        #[cfg(feature = "mutants")]
        if mutation == Mutation::QuorumTooSmall {
            return size - 1;
        }
        let _ = mutation;
        size
    }
}

/// Settings of one replica that need not agree between replicas.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// A request that waits for this long, in milliseconds, costs the primary its view; at half of it the request is
    /// shown to all. Doubled with every view that fails, up to [`Self::request_ticks_max`].
    pub request_ticks: u64,
    /// The longest that doubling leads to.
    pub request_ticks_max: u64,
    /// A replica that misses something says how far it is this often, in milliseconds.
    pub status_ticks: u64,
    /// A primary's pace is judged this often, in milliseconds.
    pub pace_ticks: u64,
    /// Batches that a primary has under way at a time; what arrives meanwhile gathers into the next.
    pub pipeline: usize,
    /// Requests in one batch, no more than all agree on.
    pub batch_requests: usize,
    /// Bytes of one batch, no more than all agree on; a batch always takes at least one bundle.
    pub batch_bytes: usize,
    /// Bytes of batches of one view that are accepted and not decided, besides the next one; over all views four times as much. A
    /// primary that does its work has no more under way.
    pub open_bytes: usize,
    /// A fresh batch whose time is further ahead than this, in microseconds, waits until the clock is there.
    pub clock_micros: u64,
    /// A primary whose batches are stamped further behind than this, in microseconds, is suspected.
    pub lag_micros: u64,
    /// Bytes of requests that are kept for one client.
    pub client_bytes: usize,
    /// Bytes of requests that are kept for all.
    pub custody_bytes: usize,
    /// Whom this replica asks first for a state follows from it: it should be another in each life.
    pub seed: u64,
    /// A deliberate defect; only tests can set one.
    pub mutation: Mutation,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            request_ticks: 2_000,
            request_ticks_max: 60_000,
            status_ticks: 100,
            pace_ticks: 1_000,
            pipeline: 8,
            batch_requests: BATCH_REQUESTS_MAX,
            batch_bytes: BATCH_BYTES_MAX,
            open_bytes: 32 << 20,
            clock_micros: 500_000,
            lag_micros: 5_000_000,
            client_bytes: 8 << 20,
            custody_bytes: 64 << 20,
            seed: 0,
            mutation: Mutation::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primaries_take_turns_and_differ_between_epochs() {
        let quorum = ByzantineQuorum::new(4).unwrap();
        let config = |epoch| Config { epoch: Epoch(epoch), quorum, window: Window::default() };
        let turns: Vec<u8> = (0..5).map(|view| config(1).primary(View(view)).0).collect();
        assert_eq!(turns, [1, 2, 3, 0, 1]);
        assert_eq!(config(2).primary(View(0)), ReplicaId(2));
        assert!(
            config(1).is_in_window(Slot(128), Slot(384)) && !config(1).is_in_window(Slot(128), Slot(385))
        );
        assert!(config(1).is_checkpoint(Slot(256)) && !config(1).is_checkpoint(Slot(0)));
    }
}
