//! A state that is not to be believed, and another in its place. Byzantine mode only: there others can prove theirs.
//!
//! Damage is found by a scrub, by a record that cannot be read, by the roots that other replicas signed, or at the start.
//! The engine is told, or tells; from then on the group executes and answers nothing and gives its state to nobody
//! (consensus, `pbft::repair`). What the tree holds is walked, so that only the parts that differ from the proven state, or
//! cannot be read here, are fetched ([`crate::group::state::install`]). If the log reaches back to slot 0, the empty state takes its place and nothing is fetched.
//!
//! A mark in the tree keeps the damage known over a crash. If the tree itself cannot be walked, the node is asked for a new
//! one; every group of the node then repairs its state.

use super::scrub::Walk;
use crate::error::StorageError;
use crate::group::state::install::{Here, Install};
use crate::group::{Group, Output};
use crate::kv::{self, Machine, Reached};
use crate::storage::{CommitId, StateWrite, Storage, keys};
use bytes::Bytes;
use std::sync::Arc;
use tetrachord_consensus::Slot;

/// A repair under way.
#[derive(Debug)]
pub(in crate::group) struct Repair {
    /// What was found, in words.
    pub(in crate::group) reason: String,
    /// The state must be of this slot or a later one.
    base: Slot,
    walk: Option<Walk>,
    is_walked: bool,
}

impl Repair {
    /// Whether the tree was walked.
    pub(in crate::group) fn has_walked(&self) -> bool {
        self.is_walked && self.walk.is_some()
    }

    /// What the tree holds, once it was walked.
    pub(in crate::group) fn found(&self) -> Option<Here> {
        let walk = self.walk.as_ref().filter(|_| self.is_walked)?;
        let (root, has_pieces, unreadable) = (walk.found.clone(), walk.has_pieces, walk.unreadable);
        Some(Here { root, has_pieces, unreadable })
    }
}

impl Group {
    /// Whether the state was found damaged and no other is in its place yet, and what was found.
    #[must_use]
    pub fn damage(&self) -> Option<&str> {
        self.signed.as_ref().and_then(|signed| signed.repair.as_ref()).map(|repair| repair.reason.as_str())
    }

    /// How often the state was repaired in this life.
    #[must_use]
    pub fn repairs(&self) -> u64 {
        self.signed.as_ref().map_or(0, |signed| signed.repairs)
    }

    /// How often all of the state was scrubbed in this life.
    #[must_use]
    pub fn scrubs(&self) -> u64 {
        self.signed.as_ref().map_or(0, |signed| signed.scrub.passes)
    }

    /// What was walked is not what is there any more: it is walked anew before another state is held to it.
    pub(in crate::group) fn walk_anew(&mut self) {
        if let Some(repair) = self.signed.as_mut().and_then(|signed| signed.repair.as_mut()) {
            (repair.walk, repair.is_walked) = (None, false);
        }
    }

    pub(in crate::group) fn is_repairing(&self) -> bool {
        self.signed.as_ref().is_some_and(|signed| signed.repair.is_some())
    }

    /// A record of the state cannot be read. In crash mode nobody can prove another: the node must stop.
    pub(in crate::group) fn on_damage(
        &mut self,
        storage: &dyn Storage,
        error: StorageError,
    ) -> Result<(), StorageError> {
        match error {
            StorageError::Corrupt { what, reason } if self.can_be_repaired() => {
                self.state_damaged(storage, format!("{what} is damaged: {reason}"))
            }
            error => Err(error),
        }
    }

    /// The state must not be believed: the engine is told, and says what follows.
    pub fn state_damaged(&mut self, storage: &dyn Storage, reason: String) -> Result<(), StorageError> {
        if self.is_installing() {
            // What is being put in place cannot be read back: nothing in the tree can be trusted to be.
            self.outputs.push(Output::RebuildTree { reason });
            return Ok(());
        }
        if let Some(pbft) = self.seat.pbft() {
            pbft.state_damaged(reason);
        }
        self.carry_out(storage)
    }

    /// The engine executes nothing any more, until another state is in place.
    pub(in crate::group) fn on_state_lost(&mut self, reason: String, base: Slot) {
        tracing::warn!(group = %self.tenure().group(), %reason, "the state is repaired from the other replicas");
        self.giving.give_up();
        self.tree.drop_checkpoints();
        let tenure = Arc::clone(self.tenure());
        let signed = self.signed.as_mut().expect("only a Byzantine engine loses its state");
        signed.held.clear();
        signed.unsettled.clear();
        signed.waiting = None;
        signed.scrub.give_up();
        signed.sources.reset();
        signed.repair = Some(Repair { reason, base, walk: None, is_walked: false });
        if self.is_installing() {
            // What is being put in place is another state already.
            return;
        }
        self.taking.install = None;
        self.machine = Machine::empty(tenure, self.rules);
        self.tree.forget();
        self.retention.compacted_slot = 0;
        let mark = damage_mark(self.tenure().group());
        self.tree.write_before([vec![mark]]);
    }

    /// Walks what the tree holds, or puts the empty state in place, as soon as nothing is being written to the tree.
    pub(in crate::group) fn tick_repair(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        let is_quiet = self.tree.is_quiet();
        let (tenure, parts) = (Arc::clone(self.tenure()), self.machine.parts());
        let Some(repair) = self.signed.as_mut().and_then(|signed| signed.repair.as_mut()) else {
            return Ok(());
        };
        if repair.is_walked || !is_quiet || self.taking.install.is_some() {
            return Ok(());
        }
        if repair.base == Slot::ZERO {
            return match Install::empty(storage, parts, Reached::beginning(&tenure)) {
                Ok((install, clearing)) => {
                    self.taking.install = Some(install);
                    self.tree.write_before(clearing);
                    self.continue_install(storage)
                }
                Err(error) => self.on_unreadable_tree(error),
            };
        }
        let walk = repair.walk.get_or_insert_with(|| Walk::over(parts.all(), parts));
        match walk.step(storage) {
            Ok(is_done) => repair.is_walked = is_done,
            Err(error) => {
                repair.walk = None;
                return self.on_unreadable_tree(error);
            }
        }
        Ok(())
    }

    /// The tree cannot even be read to repair it: the node gets another.
    fn on_unreadable_tree(&mut self, error: StorageError) -> Result<(), StorageError> {
        let StorageError::Corrupt { what, reason } = error else { return Err(error) };
        self.outputs.push(Output::RebuildTree { reason: format!("{what} is damaged: {reason}") });
        Ok(())
    }

    /// The node is getting a new tree by this commit, which holds the marks that this returns and nothing else.
    pub fn tree_lost(
        &mut self,
        storage: &dyn Storage,
        commit: CommitId,
        reason: &str,
    ) -> Result<Vec<StateWrite>, StorageError> {
        if let Some(install) = self.taking.install.take()
            && install.has_switched()
        {
            tracing::warn!(group = %self.tenure().group(), parts = install.parts(), "a state that was being put in place is lost");
        }
        if let Some(pbft) = self.seat.pbft() {
            pbft.state_damaged(reason.to_string());
        }
        self.carry_out(storage)?;
        self.tree.replace(commit);
        assert!(self.is_repairing(), "the state was just lost");
        self.walk_anew();
        Ok(vec![damage_mark(self.tenure().group()), kv::tenure_row(self.tenure())])
    }

    /// Another state is in place of the damaged one.
    pub(in crate::group) fn end_repair(&mut self) {
        let Some(signed) = self.signed.as_mut() else { return };
        if let Some(repair) = signed.repair.take() {
            signed.repairs += 1;
            tracing::info!(group = %self.tenure().group(), reason = %repair.reason, "the state was repaired");
        }
    }
}

fn damage_mark(group: crate::ring::GroupId) -> StateWrite {
    (keys::damaged(group), Some(Bytes::from_static(b"damaged")))
}
