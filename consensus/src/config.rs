//! What a replica knows of its group and of itself; fixed for one epoch.

use crate::mutation::Mutation;
use crate::quorum::Quorums;
use crate::types::{Epoch, ReplicaId};
use serde::{Deserialize, Serialize};

/// The membership of one epoch as the core needs it: who counts, and how many are enough.
///
/// The core knows replicas by index only. Which node hosts a replica, its address and keys are the caller's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GroupConfig {
    /// The epoch during which this configuration holds.
    pub epoch: Epoch,
    /// Quorum sizes, and with them the number of replicas.
    pub quorums: Quorums,
}

impl GroupConfig {
    /// The replicas of the group in ascending order.
    pub fn replicas(&self) -> impl Iterator<Item = ReplicaId> + use<> {
        let n = u8::try_from(self.quorums.n()).expect("a checked group has at most 15 replicas");
        (0..n).map(ReplicaId)
    }

    /// Whether the replica belongs to the group.
    #[must_use]
    pub fn contains(&self, replica: ReplicaId) -> bool {
        usize::from(replica.0) < self.quorums.n()
    }
}

/// Settings of one replica that need not agree between replicas.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// A leader says that it is alive this often, in milliseconds.
    pub heartbeat_ticks: u64,
    /// A replica that has heard no leader for this long, plus a share of it that differs by replica and by
    /// chance, tries to lead. Must be several heartbeats.
    pub election_ticks: u64,
    /// Entries that a leader sends to one replica ahead of its acknowledgements.
    pub window_entries: usize,
    /// Bytes that a leader sends to one replica ahead of its acknowledgements.
    pub window_bytes: usize,
    /// Undecided entries at which a leader refuses proposals until some are decided.
    pub undecided_entries_max: usize,
    /// Entry bytes in one message; a message always carries at least one entry.
    pub message_bytes: usize,
    /// Start of this replica's pseudo-random sequence (election timeouts).
    pub seed: u64,
    /// A deliberate defect; only tests can set one.
    pub mutation: Mutation,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            heartbeat_ticks: 50,
            election_ticks: 500,
            window_entries: 1024,
            window_bytes: 8 << 20,
            undecided_entries_max: 1024,
            message_bytes: 256 << 10,
            seed: 0,
            mutation: Mutation::None,
        }
    }
}
