//! What of a group's state is on its way to the tree, and how far the tree is.
//!
//! Batches wait here for the node's next commit, each atomic; the store reports them in order. The tree is *quiet* while nothing
//! is on its way: only then is it walked, given to others, or put in the place of another.

use crate::ring::NodeId;
use crate::storage::{CommitId, StateWrite};
use std::collections::VecDeque;
use tetrachord_consensus::Ticks;

/// What a batch was for, so that its completion is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::group) enum Purpose {
    /// The state after this slot.
    Checkpoint { slot: u64 },
    /// A piece of a state that another replica gives.
    Gathered { from: NodeId, transfer: u64, index: u64 },
    /// A step of putting a state in place.
    Installing,
    /// The first batch of a new tree.
    Rebuilt,
}

/// See the module's essay.
#[derive(Debug)]
pub(in crate::group) struct Tree {
    waiting: VecDeque<(Vec<StateWrite>, Option<Purpose>)>,
    submitted: VecDeque<(CommitId, Purpose)>,
    /// The slot whose state the tree durably holds.
    pub(in crate::group) durable_slot: u64,
    /// What should be durable in it before the log is rewritten.
    pub(in crate::group) wanted_slot: u64,
    /// When the last checkpoint was begun.
    pub(in crate::group) checkpoint_at: Ticks,
    /// See [`crate::limits::OVERLAY_BYTES_MAX`].
    pub(in crate::group) overlay_bytes_max: usize,
}

impl Tree {
    /// A tree that holds the state after this slot.
    pub(in crate::group) fn holding(durable_slot: u64, overlay_bytes_max: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            submitted: VecDeque::new(),
            durable_slot,
            wanted_slot: 0,
            checkpoint_at: Ticks(0),
            overlay_bytes_max,
        }
    }

    /// Whether nothing is on its way to it.
    pub(in crate::group) fn is_quiet(&self) -> bool {
        self.waiting.is_empty() && self.submitted.is_empty()
    }

    /// A batch of which somebody wants to know when it is durable.
    pub(in crate::group) fn write(&mut self, writes: Vec<StateWrite>, purpose: Purpose) {
        self.waiting.push_back((writes, Some(purpose)));
    }

    /// Batches that only must be there before those that follow.
    pub(in crate::group) fn write_before(&mut self, batches: impl IntoIterator<Item = Vec<StateWrite>>) {
        self.waiting.extend(batches.into_iter().map(|writes| (writes, None)));
    }

    /// The batches that wait: they are part of this commit now.
    pub(in crate::group) fn take(&mut self, commit: CommitId) -> Vec<Vec<StateWrite>> {
        assert!(
            self.submitted.back().is_none_or(|(last, _)| *last <= commit),
            "commits are submitted in order"
        );
        let mut batches = Vec::new();
        for (writes, purpose) in std::mem::take(&mut self.waiting) {
            batches.push(writes);
            self.submitted.extend(purpose.map(|purpose| (commit, purpose)));
        }
        batches
    }

    /// The commit and all before it are durable: what the next of their batches was for.
    pub(in crate::group) fn next_done(&mut self, commit: CommitId) -> Option<Purpose> {
        self.submitted.front().filter(|(id, _)| *id <= commit)?;
        self.submitted.pop_front().map(|(_, purpose)| purpose)
    }

    /// Pieces of a given state that were taken and are not durable yet.
    pub(in crate::group) fn pieces_in_flight(&self) -> u64 {
        self.purposes().filter(|purpose| matches!(purpose, Purpose::Gathered { .. })).count() as u64
    }

    /// Whether a batch for this is on its way.
    pub(in crate::group) fn is_storing(&self, wanted: Purpose) -> bool {
        self.purposes().any(|purpose| purpose == wanted)
    }

    fn purposes(&self) -> impl Iterator<Item = Purpose> + '_ {
        let waiting = self.waiting.iter().filter_map(|(_, purpose)| *purpose);
        waiting.chain(self.submitted.iter().map(|(_, purpose)| *purpose))
    }

    /// Checkpoints that wait are of a state that nobody believes any more.
    pub(in crate::group) fn drop_checkpoints(&mut self) {
        self.waiting.retain(|(_, purpose)| !matches!(purpose, Some(Purpose::Checkpoint { .. })));
    }

    /// It holds nothing that counts.
    pub(in crate::group) fn forget(&mut self) {
        (self.durable_slot, self.wanted_slot) = (0, 0);
    }

    /// This commit brings a new tree in its place: what waits was for the old one.
    pub(in crate::group) fn replace(&mut self, commit: CommitId) {
        self.waiting.clear();
        self.submitted.push_back((commit, Purpose::Rebuilt));
    }
}
