//! A state that is not to be believed, and how this replica comes back from it.
//!
//! Castro's thesis, chapter 4 (proactive recovery), without the reboot: a replica whose stored state was changed, by a disk
//! or by a person, is one of the `f` that may be wrong, and need not stay one. What it holds is refuted by a scrub of its
//! own, by a record that cannot be read, or by the roots that others signed. From then on it
//!
//! * executes nothing, answers nothing, signs no root and gives its state to nobody;
//! * goes on to vote: the vote log lies elsewhere, and votes rest on it and on batches alone;
//! * fetches a state that a stable checkpoint proves, and executes what was decided since.
//!
//! A root that it signed from the wrong state stays signed, and is never signed otherwise. If a state with proof leads to a
//! root that others refute once more, the fault is not in what is stored: the replica stops.
//!
//! Damage to the vote log itself is not repaired: what was promised is lost then, and the replica must not vote.

use crate::pbft::face::Own;
use crate::pbft::replica::Replica;
use crate::types::{LogBase, Slot};

impl Replica {
    /// What is stored of the state is wrong. Everything decided that the log holds will be executed again.
    pub(super) fn lose_state(&mut self, reason: String) {
        if self.is_repairing {
            return;
        }
        self.is_repairing = true;
        self.executed = self.base;
        self.checkpoints.own_roots.clear();
        self.suspicion.waiting = None;
        for state in self.slots.values_mut() {
            (state.end, state.is_fresh, state.is_stale) = (None, false, false);
        }
        self.ask(Own::StateLost { reason, base: self.base.slot });
    }

    /// Others have proved that the state after this slot is another.
    pub(super) fn refute(&mut self, slot: Slot, why: &str) {
        let reason = format!("the state after slot {slot} is wrong: {why}");
        if self.checkpoints.refuted == Some(slot) {
            return self.fail(format!(
                "{reason}, and so it was after a repair. This node executes otherwise than the others; it needs the same \
                 build and genesis record"
            ));
        }
        self.checkpoints.refuted = Some(slot);
        self.lose_state(reason);
    }

    /// What is stable and was not executed here waits for a state to be put in place. If that takes long, the oldest is
    /// dropped from memory: a state that is worth fetching covers it, and what it does not cover, others give again.
    pub(super) fn shed(&mut self) {
        let (from, to) = (self.executed.slot, self.stable_slot());
        if from >= to {
            return;
        }
        let waiting = || self.slots.range(from.next()..=to);
        let bytes: usize = waiting().map(|(_, state)| state.bytes()).sum();
        let mut excess = bytes.saturating_sub(WAITING_BYTES_MAX);
        let mut last = None;
        for (slot, state) in waiting() {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(state.bytes());
            last = Some(*slot);
        }
        if let Some(last) = last {
            self.slots.retain(|slot, _| *slot <= from || *slot > last);
            self.catch_up.missing.retain(|slot, _| *slot <= from || *slot > last);
        }
    }

    /// How far a state that is put in place now could be brought from the log.
    pub(super) fn decided_prefix(&self) -> Slot {
        let mut slot = self.executed.slot;
        let is_here = |slot: &Slot| {
            let state = self.slots.get(slot);
            state.is_some_and(|state| state.decided.is_some_and(|digest| state.batch(digest).is_some()))
        };
        while is_here(&slot.next()) {
            slot = slot.next();
        }
        slot
    }

    /// A state with proof is in place, or the empty one that every log begins with.
    pub(super) fn on_repaired(&mut self, base: LogBase) {
        assert!(self.is_repairing, "only a state that was lost is replaced by an older one");
        self.is_repairing = false;
        self.take_over(base);
    }
}

/// Bytes of batches that wait for a state to be put in place.
const WAITING_BYTES_MAX: usize = 64 << 20;
