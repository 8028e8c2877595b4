//! What only this order takes from its caller and asks of it, besides [`Engine`](crate::Engine): proposals and reads, by whoever
//! leads, and states for replicas that lag.

use crate::engine::{self, Proposal};
use crate::paxos::invariants;
use crate::paxos::replica::Replica;
use crate::types::{Epoch, ReadId, ReplicaId, Slot};
use thiserror::Error;

/// What a replica asks its caller for.
pub type Effect = engine::Effect<Own>;

/// What only this order asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    /// The read may be served as soon as `slot` has been applied.
    ReadReady {
        /// The name given to [`Replica::read`].
        id: ReadId,
        /// Lowest applied slot that makes the answer linearizable.
        slot: Slot,
    },
    /// This replica cannot serve the read; ask the leader.
    ReadRefused {
        /// The name given to [`Replica::read`].
        id: ReadId,
    },
    /// The other replica needs a state that this log no longer reaches back to: stream it a snapshot and report
    /// [`Replica::snapshot_ended`].
    SendSnapshot {
        /// The replica that lags.
        to: ReplicaId,
    },
}

/// Why a proposal was not taken. It was surely not ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// Another replica leads, or none that is known.
    #[error("this replica does not lead its group")]
    NotLeader {
        /// Who leads, if known.
        leader: Option<ReplicaId>,
    },
    /// Too many entries are undecided; try again when some are decided.
    #[error("too many entries wait to be decided")]
    Full,
    /// A stop-sign has ended the epoch.
    #[error("epoch {epoch} has ended")]
    EpochEnded {
        /// The epoch that has ended.
        epoch: Epoch,
    },
    /// The proposal is larger than a message may be.
    #[error("a proposal of {bytes} bytes exceeds the limit of {max}")]
    TooLarge {
        /// Size of the proposal.
        bytes: usize,
        /// Largest size allowed.
        max: usize,
    },
}

impl Replica {
    /// Offers a proposal for the next slot. A returned slot is a position, not yet a decision: the proposal is
    /// ordered when it comes back in [`Effect::Apply`], and if the leadership is lost it may be ordered later,
    /// elsewhere or never.
    ///
    /// # Errors
    /// If it was surely not ordered.
    pub fn propose(&mut self, proposal: Proposal) -> Result<Slot, ProposeError> {
        let slot = self.try_propose(proposal)?;
        invariants::check(self);
        Ok(slot)
    }

    /// Linearizable reads that arrived together want to know from which slot on they may be served. Each is given back in
    /// [`Own::ReadReady`] or [`Own::ReadRefused`].
    pub fn read(&mut self, ids: Vec<ReadId>) {
        self.unless_halted(|replica| replica.on_read(ids));
    }

    /// A snapshot transfer asked for by [`Own::SendSnapshot`] has ended, well or not.
    pub fn snapshot_ended(&mut self, to: ReplicaId) {
        self.unless_halted(|replica| replica.on_snapshot_ended(to));
    }

    /// Hands the leadership to another replica, before a planned stop: to this one, or the best if none is named.
    pub fn transfer_leadership(&mut self, to: Option<ReplicaId>) {
        self.unless_halted(|replica| replica.on_transfer(to));
    }

    /// Entries that are proposed but not decided; the same as in [`engine::EngineStatus`], for those who ask often.
    #[must_use]
    pub fn undecided(&self) -> usize {
        let undecided = self.acceptor.log().last().slot.0 - self.decided.0;
        usize::try_from(undecided).expect("a log in memory has fewer entries")
    }
}
