//! The end of an epoch: a stop-sign in the log, as in Lamport, Malkhi and Zhou, "Reconfiguring a State Machine" (2010).
//!
//! The administrator signs it like any request, so no replica, and no primary, can end an epoch by itself. The slot that orders
//! it is the last that is executed: what was agreed on for later slots is void, because every replica stops at the same one.
//! A checkpoint is made there whatever the slot, so that the state can be proved to whoever the next epoch has.
//!
//! Behind the end a replica goes on to answer those that lag: with batches and their certificates up to the end, and with the
//! checkpoint. It suspects nobody any more, and takes no requests.
//!
//! What is not here: how the next epoch begins.

use crate::pbft::custody::Custody;
use crate::pbft::face::{Effect, Own, SubmitRefusal};
use crate::pbft::replica::Replica;
use crate::pbft::verify::Origin;
use crate::types::Slot;
use bytes::Bytes;

impl Replica {
    /// The stop-sign was executed.
    pub(super) fn end_epoch(&mut self, slot: Slot, next: Bytes) {
        assert!(self.executed.sealed && self.executed.slot == slot, "the last slot was just executed");
        self.close_custody();
        self.effect(Effect::EpochEnded { slot, next });
    }

    /// Nothing that waits will be ordered in this epoch.
    pub(super) fn close_custody(&mut self) {
        self.suspicion.waiting = None;
        self.custody = Custody::default();
        self.custody.now = self.now;
    }

    pub(super) fn refuse_behind_stop_sign(&mut self, origin: Origin) {
        if let Some(id) = origin.submission() {
            let result = Err(SubmitRefusal::Invalid("this epoch of the group has ended"));
            self.ask(Own::Submitted { id, result });
        }
    }
}
