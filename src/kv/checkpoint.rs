//! Checkpoints: what was applied reaches the tree, the state at one slot in one atomic batch.

use super::machine::Machine;
use super::overlay::Overlay;
use super::record::{self, Earlier, is_sealed};
use crate::error::StorageError;
use crate::limits::OVERLAY_BYTES_STREAMING_MAX;
use crate::storage::{StateWrite, Storage};

/// Checkpoints that may be on their way to the tree at a time.
const CHECKPOINTS_MAX: usize = 16;

impl Machine {
    /// Whether another checkpoint may begin although earlier ones are being written.
    #[must_use]
    pub fn has_room_to_freeze(&self) -> bool {
        self.frozen.len() < CHECKPOINTS_MAX && self.frozen_bytes() < OVERLAY_BYTES_STREAMING_MAX
    }

    /// Whether something was applied that the tree does not hold, and nothing is being written just now.
    #[must_use]
    pub fn wants_checkpoint(&self) -> bool {
        self.is_dirty && self.frozen.is_empty()
    }

    /// Bytes written since the last checkpoint.
    #[must_use]
    pub fn unwritten_bytes(&self) -> usize {
        self.fresh.bytes()
    }

    /// Freezes what was written and returns it as one atomic batch that brings the tree to the applied slot.
    pub fn begin_checkpoint(&mut self, storage: &dyn Storage) -> Result<Vec<StateWrite>, StorageError> {
        assert!(self.frozen.len() < CHECKPOINTS_MAX, "few checkpoints at a time");
        let pending = std::mem::take(&mut self.pending);
        let storage = &pending.over(storage);
        let frozen = std::mem::take(&mut self.fresh);
        let mut writes = Vec::new();
        let group = self.tenure.group();
        for ((position, key), known) in frozen.iter() {
            let earlier = match (self.reached.has_pieces, &self.root) {
                (false, _) => Earlier::NoPieces,
                (true, None) => Earlier::Swept,
                // The sum of a part needs to know every row that goes.
                (true, Some(_)) => Earlier::Read(storage),
            };
            let pieces = record::write(*position, key, known.as_ref(), earlier, &mut writes)?;
            self.reached.has_pieces |= pieces > 0;
        }
        self.sessions.take_writes(group, &mut writes);
        if let Some(root) = &mut self.root {
            // The tree holds what the last checkpoint wrote: nothing else is between it and these rows.
            for (raw, record) in &writes {
                // What cannot be read is in no sum: a walk leaves it out, and whoever writes over it unread takes nothing away.
                let old = storage.get(raw)?.filter(|old| is_sealed(raw, old));
                root.change(raw, old.as_ref(), record.as_ref());
            }
            root.take_writes(&mut writes);
        }
        writes.push(self.reached.write(group));
        assert!(frozen.is_empty() || writes.len() > 1, "what was written is in the batch");
        self.frozen.push_back(frozen);
        self.pending = pending;
        if self.root.is_some() {
            self.pending.add(&writes);
        }
        self.is_dirty = false;
        Ok(writes)
    }

    /// Bytes of checkpoints that the tree does not hold yet.
    #[must_use]
    pub fn frozen_bytes(&self) -> usize {
        self.frozen.iter().map(Overlay::bytes).sum()
    }

    /// Checkpoints that the tree does not hold yet.
    #[must_use]
    pub fn checkpoints(&self) -> usize {
        self.frozen.len()
    }

    /// The two oldest checkpoints that were not handed to the tree yet become one; those before them are on their way.
    pub fn join_checkpoints(&mut self, on_their_way: usize) {
        let later = self.frozen.remove(on_their_way + 1).expect("there are two");
        self.frozen[on_their_way].absorb(later);
        self.pending.join(on_their_way as u64 + 1);
    }

    /// The batch is durable: the tree holds it now.
    pub fn end_checkpoint(&mut self) {
        let written = self.frozen.pop_front().expect("a checkpoint was begun");
        self.cache.absorb(written);
        if self.root.is_some() {
            self.pending.written();
        }
        assert!(!self.frozen.is_empty() || self.pending.is_empty(), "the tree holds what was frozen");
    }
}
