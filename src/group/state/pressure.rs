//! What gathers in memory until the disk has it, and what a replica does about it in crash mode.
//!
//! Entries stay in memory until the tree holds what they did, and the tree's writes until they are there. Both are bounded: a leader stops
//! proposing, and a follower acknowledging, which stops its leader's window. In Byzantine mode the window of the agreement bounds both.
//!
//! A leader that waits for its tree stops its group, while the others may have healthy disks. So one whose tree has taken nothing for long
//! lets another lead. That its *log* takes nothing is for the engine to notice.

use crate::error::StorageError;
use crate::group::Group;
use crate::limits::LOG_OVERLAYS_MAX;
use crate::storage::{CommitId, Storage};
use tetrachord_consensus::Ticks;

/// A leader's tree may take nothing for so long while the group waits for it.
const STUCK_MILLIS: u64 = 5_000;

/// What waits for the tree, in the one that it must not wait for.
#[derive(Debug, Default)]
pub(in crate::group) struct Pressure {
    /// The latest durable commit that the engine has not been told of, because too much waits for the tree.
    held_back: Option<CommitId>,
    /// Since when the group waits for this leader's tree.
    stuck_since: Option<Ticks>,
}

impl Pressure {
    /// The tree has taken something.
    pub(in crate::group) fn relieve(&mut self) {
        self.stuck_since = None;
    }
}

impl Group {
    /// Whether so many checkpoints' worth of the log wait for the tree. The log of one key that is written over and over grows while its
    /// state does not. It may take more: where much is overwritten, a tree that is written seldom is written less. What is not applied
    /// yet waits for something else: to hold it up would be to wait for ever.
    fn is_log_backed_up(&self, checkpoints: usize) -> bool {
        let waits = self.waits_for_its_tree() && self.tree.durable_slot < self.machine.reached().slot;
        waits && self.log_bytes_since_cut() >= checkpoints * LOG_OVERLAYS_MAX * self.tree.overlay_bytes_max
    }

    /// Whether so many checkpoints' worth of applied state wait for the tree, or as much of the log. A snapshot that streams has a bound
    /// of its own.
    pub(in crate::group) fn is_backed_up(&self, checkpoints: usize) -> bool {
        self.giving.transfer.is_none()
            && (self.machine.unwritten_bytes() >= checkpoints * self.tree.overlay_bytes_max
                || self.is_log_backed_up(checkpoints))
    }

    /// Whether what waits for the tree, or the log that is kept until it is there, takes as much memory as it may.
    pub(in crate::group) fn is_checkpoint_urgent(&self) -> bool {
        self.machine.unwritten_bytes() >= self.tree.overlay_bytes_max || self.is_log_backed_up(1)
    }

    /// A follower whose tree cannot keep up acknowledges nothing more for a while: its leader sends only so much ahead of
    /// acknowledgements. It does not hold back while it may be needed to elect. In Byzantine mode nobody holds back: a CHECKPOINT
    /// is what lets the tree be written, and the window is what bounds memory.
    fn holds_back(&self) -> bool {
        self.waits_for_its_tree() && self.seat.leader.is_some() && !self.is_leading() && self.is_backed_up(4)
    }

    /// Whether the engine is not told yet that this commit is durable.
    pub(in crate::group) fn hold_back(&mut self, commit: CommitId) -> bool {
        assert!(self.pressure.held_back.is_none_or(|held| held <= commit), "commits become durable in order");
        self.pressure.held_back = self.holds_back().then_some(commit);
        self.pressure.held_back.is_some()
    }

    pub(in crate::group) fn release_held_back(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        match self.pressure.held_back.filter(|_| self.may_release()) {
            Some(commit) => self.durable(storage, commit),
            None => Ok(()),
        }
    }

    /// Whether the engine may be told what it was not told because too much waited.
    pub(in crate::group) fn may_release(&self) -> bool {
        self.pressure.held_back.is_some() && !self.holds_back()
    }

    /// Lets another lead if the group waits for this replica's tree alone, as far as one can tell from here.
    pub(in crate::group) fn tick_pressure(&mut self) {
        let is_waiting = self.waits_for_its_tree() && self.is_leading() && self.is_backed_up(2);
        if !is_waiting {
            self.pressure.stuck_since = None;
            return;
        }
        let since: Ticks = *self.pressure.stuck_since.get_or_insert(self.now);
        if self.now.since(since) >= STUCK_MILLIS {
            self.pressure.stuck_since = Some(self.now);
            if let Some(paxos) = self.seat.paxos() {
                paxos.transfer_leadership(None);
            }
        }
    }
}
