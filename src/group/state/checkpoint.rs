//! Bringing the tree up to date, and the log behind it down.
//!
//! A checkpoint writes to the tree what was applied since the last. When it is durable, the entries that it holds are needed no more, but
//! for others; the write-ahead log on disk is rewritten when the node says so, for all of its groups at once.
//!
//! In crash mode a checkpoint is due from time to time, or when much waits. In Byzantine mode the protocol's own checkpoints are those
//! of the tree ([`crate::group::byzantine`]).

use super::Purpose;
use crate::error::StorageError;
use crate::group::message::{GroupMessage, encode};
use crate::group::{Group, Output};
use crate::storage::{CommitId, StateWrite, Storage};
use tetrachord_consensus::{Event, Slot};

impl Group {
    /// The state writes that should become durable, each an atomic batch.
    pub fn take_writes(&mut self, commit: CommitId) -> Vec<Vec<StateWrite>> {
        self.tree.take(commit)
    }

    /// The state writes of the commit and of all before it are durable.
    pub fn written(&mut self, storage: &dyn Storage, commit: CommitId) -> Result<(), StorageError> {
        while let Some(purpose) = self.tree.next_done(commit) {
            self.pressure.relieve();
            self.on_written(storage, purpose)?;
        }
        self.release_held_back(storage)?;
        self.switch_if_gathered(storage)
    }

    /// Begins to write what was applied since the last checkpoint.
    pub(in crate::group) fn checkpoint(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        let slot = self.machine.reached().slot;
        let writes = self.machine.begin_checkpoint(storage)?;
        self.tree.checkpoint_at = self.now;
        self.tree.write(writes, Purpose::Checkpoint { slot });
        Ok(())
    }

    fn on_written(&mut self, storage: &dyn Storage, purpose: Purpose) -> Result<(), StorageError> {
        match purpose {
            // It was of a state that is not believed any more.
            Purpose::Checkpoint { .. } if self.is_repairing() => Ok(()),
            Purpose::Checkpoint { slot } => {
                self.machine.end_checkpoint();
                self.tree.durable_slot = slot;
                self.trim();
                self.start_transfer(storage)?;
                self.apply_held(storage)
            }
            Purpose::Gathered { from, transfer, index } => {
                let body = encode(&GroupMessage::PieceStored { transfer, index });
                self.outputs.push(Output::Send { to: from, is_bulk: true, body });
                Ok(())
            }
            Purpose::Installing => self.continue_install(storage),
            Purpose::Rebuilt => Ok(()),
        }
    }

    /// Begins a checkpoint now, if there is something to write and nothing forbids it.
    pub fn hasten_checkpoint(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        self.tree.wanted_slot = self.machine.reached().slot;
        if self.wants_checkpoint() && !self.is_installing() {
            self.checkpoint(storage)?;
        }
        Ok(())
    }

    /// Whether the tree durably holds what was applied when a checkpoint was last hastened, or cannot come closer now.
    #[must_use]
    pub fn is_checkpointed(&self) -> bool {
        self.tree.durable_slot >= self.tree.wanted_slot
            || self.giving.transfer.is_some()
            || self.is_installing()
    }

    /// The state that the tree durably holds allows the log to be dropped: writes the whole engine as new records, so
    /// that every older record of this group is void.
    pub fn compact(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        let retain = self.retain();
        self.retention.compacted_slot = self.tree.durable_slot;
        self.seat.step(Event::Compact { slot: Slot(self.tree.durable_slot), retain });
        self.note_cut(retain);
        self.note_rewritten();
        self.carry_out(storage)
    }

    /// Whether the tree durably holds more than when the log was last rewritten, or less of it may be kept for others, so that rewriting
    /// it drops something.
    #[must_use]
    pub fn has_gained(&self) -> bool {
        self.tree.durable_slot > self.retention.compacted_slot || self.keeps_too_much()
    }

    /// Whether the tree should be brought up to date as soon as there is time. In Byzantine mode checkpoints decide when.
    pub(in crate::group) fn wants_checkpoint(&self) -> bool {
        self.chooses_checkpoints() && self.machine.wants_checkpoint() && self.giving.transfer.is_none()
    }
}
