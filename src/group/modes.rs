//! What differs between the two modes in a group that runs, besides what only one of them has: each difference by a name, with its reason.
//!
//! In crash mode replicas stop, but do not lie: what the leader says is so. In Byzantine mode some lie, so nothing counts that is not
//! proved, and nobody is waited for who may be slow on purpose.

use super::Group;

impl Group {
    /// Whether replicas may lie.
    pub(super) fn is_byzantine(&self) -> bool {
        self.signed.is_some()
    }

    /// Replicas that do not lie tell one another what they have come to, and stop if they differ. Where some may lie, they sign roots.
    pub(super) fn compares_digests(&self) -> bool {
        !self.is_byzantine()
    }

    /// In crash mode the tree is brought up to date when there is time for it, or reason. In Byzantine mode at the checkpoints of the
    /// order: only there is a root signed, so that the state can be given to others.
    pub(super) fn chooses_checkpoints(&self) -> bool {
        !self.is_byzantine()
    }

    /// In crash mode what waits for the tree is bounded by waiting: a leader proposes no more, a follower acknowledges no more. In
    /// Byzantine mode the window of the agreement bounds it, and to hold back a CHECKPOINT would hold up what lets the tree be written.
    pub(super) fn waits_for_its_tree(&self) -> bool {
        !self.is_byzantine()
    }

    /// In crash mode a leader gives its state unasked, and it is believed. In Byzantine mode it is offered with proof, and taken part by
    /// part, each held against its hash: the state here must be known by its hashes, too.
    pub(super) fn believes_states(&self) -> bool {
        !self.is_byzantine()
    }

    /// In crash mode nobody can prove another state: damage ends the node. In Byzantine mode it is repaired.
    pub(super) fn can_be_repaired(&self) -> bool {
        self.is_byzantine()
    }

    /// In Byzantine mode whoever takes a state may do so slowly on purpose, so that others get none.
    pub(super) fn hurries_receivers(&self) -> bool {
        self.is_byzantine()
    }

    /// In crash mode a leader has adopted everything decided, so that no state of others is ahead of its own.
    pub(super) fn knows_all_decided(&self) -> bool {
        !self.is_byzantine() && self.seat.is_leader()
    }
}
