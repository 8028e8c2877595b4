//! From the vote log back to a replica, and the log kept short.
//!
//! A replica goes on where its log ends: in the same view, with the same votes. It sends again what it had said; nothing
//! is said anew from another state. Slots that are stable, executed and durable elsewhere are dropped, never others.

use crate::codec;
use crate::engine::Retain;
use crate::pbft::message::{ViewChange, Vote};
use crate::pbft::record::{Record, Recovered};
use crate::pbft::replica::Replica;
use crate::pbft::slot::SlotState;
use crate::pbft::view_change::reopen;
use crate::types::{LogBase, Slot};
use bytes::Bytes;
use std::collections::BTreeMap;

impl Replica {
    /// Takes up what the vote log tells. Votes that are in it count: they are durable.
    pub(super) fn restore(&mut self, found: Recovered) {
        self.base = found.base;
        self.view = found.view;
        self.is_active = found.left.is_none();
        self.new_view = found.entered;
        self.slots = found.slots;
        self.checkpoints.own_votes = found.checkpoints;
        self.checkpoints.stable = found.stable;
        self.evidence = found.evidence;
        if let Some(message) = found.left {
            self.restore_view_change(message);
        }
        let slots: Vec<Slot> = self.slots.keys().copied().collect();
        for slot in slots {
            if self.rests(slot) {
                self.slots.entry(slot).or_default().rest();
            } else {
                self.restore_slot(slot);
            }
        }
        self.restore_ends();
        self.restore_view();
        self.execute();
        let stable = self.stable_slot();
        self.checkpoints.own_votes = self.checkpoints.own_votes.split_off(&stable);
    }

    /// Where the log may be cut: behind every slot that was executed, as far as the log tells all of them.
    fn restore_ends(&mut self) {
        let (executed, mut end) = (self.executed, self.base);
        let mut ends = Vec::new();
        for (slot, state) in self.slots.range(self.base.slot.next()..) {
            if *slot > executed.slot {
                break;
            }
            let Some(batch) = state.decided.and_then(|digest| state.batch(digest)) else { break };
            if *slot != end.slot.next() {
                break;
            }
            end = batch.ends(end);
            ends.push(end);
        }
        // What was decided last may not have come to the log before the state had it.
        ends.push(executed);
        for end in ends {
            if let Some(state) = self.slots.get_mut(&end.slot) {
                state.end = Some(end);
            }
        }
    }

    /// A view that had begun goes on: what it began with and was not voted for yet, and where its primary was.
    fn restore_view(&mut self) {
        let (first_fresh, proposals) = self.new_view.as_ref().map_or((Slot(1), Vec::new()), reopen);
        self.first_fresh = first_fresh;
        let (view, signer) = (self.view, self.primary());
        for (slot, digest, signature) in proposals {
            let is_accepted = self.slots.get(&slot).is_some_and(|state| state.accepted_in(view).is_some());
            if !is_accepted && slot > self.base.slot {
                self.propose_again(Vote { signer, view, slot, digest, signature });
            }
        }
        let assigned = self.slots.iter().rev().find(|(_, state)| state.accepted_in(view).is_some());
        let last = assigned.map_or(Slot::ZERO, |(slot, _)| *slot).max(self.first_fresh.previous());
        self.next = last.max(self.stable_slot()).max(self.executed.slot).next();
    }

    fn restore_view_change(&mut self, message: ViewChange) {
        #[cfg(feature = "mutants")]
        if self.options.mutation == crate::mutation::Mutation::RemakeViewChange {
            let (message, body) = self.make_view_change(message.view);
            self.view_changes.insert(self.me, (message, body));
            return;
        }
        let body = codec::decode(&message.body).expect("this replica made it and the log is checksummed");
        self.view_changes.insert(self.me, (message, body));
    }

    fn restore_slot(&mut self, slot: Slot) {
        let (me, view, is_active) = (self.me, self.view, self.is_active);
        let state = self.slots.get_mut(&slot).expect("the caller names a slot that is here");
        state.drop_unused();
        if !is_active {
            return;
        }
        let accepted = state.accepted_in(view);
        if let Some(vote) = accepted.filter(|vote| vote.signer != me) {
            let own = self.sign_prepare(&vote);
            self.slots.entry(slot).or_default().prepares.insert(me, own);
        }
        if self.slots[&slot].is_prepared_in(view) {
            let digest = self.slots[&slot].prepared.as_ref().expect("it was prepared").digest;
            let own = self.sign_commit(view, slot, digest);
            let state = self.slots.entry(slot).or_default();
            state.own_commit = Some(own);
            state.commits.insert(me, own);
        }
    }

    /// Everything that remains, as new records that stand for all before.
    fn rewrite_log(&mut self) {
        self.record(&Record::Begin { base: self.base });
        if let Some(certificate) = self.checkpoints.stable.clone() {
            self.record(&Record::Stable(certificate));
        }
        if let Some(message) = self.new_view.clone() {
            self.record(&Record::Entered(message));
        }
        let own = self.view_changes.get(&self.me).map(|(message, _)| message.clone());
        if let Some(message) = own.filter(|message| !self.is_active && message.view == self.view) {
            self.record(&Record::Left(message));
        }
        for vote in self.checkpoints.own_votes.values().copied().collect::<Vec<_>>() {
            self.record(&Record::Checkpoint(vote));
        }
        for evidence in self.evidence.clone() {
            self.record(&Record::Evidence(evidence));
        }
        let slots: Vec<Slot> = self.slots.keys().copied().collect();
        for slot in slots {
            self.rewrite_slot(slot);
        }
    }

    fn rewrite_slot(&mut self, slot: Slot) {
        let state = self.slots.get_mut(&slot).expect("the caller names a slot that is here");
        state.drop_unused();
        state.batches.forget_recorded();
        let (accepted, prepared) = (state.accepted, state.prepared.clone());
        // A certificate may be for a batch that an older view proposed; its bytes must stay too.
        let older = prepared.as_ref().filter(|found| accepted.is_none_or(|vote| vote.digest != found.digest));
        if let Some(certificate) = older {
            let vote = Vote {
                signer: self.config.primary(certificate.view),
                view: certificate.view,
                slot,
                digest: certificate.digest,
                signature: certificate.proposal,
            };
            self.record_accepted(vote);
        }
        self.record_earlier(slot);
        if let Some(vote) = accepted {
            self.record_accepted(vote);
        }
        if let Some(certificate) = prepared {
            self.record(&Record::Prepared(certificate));
        }
        let executed =
            self.slots.get(&slot).and_then(|state| state.decided).filter(|_| slot <= self.executed.slot);
        if let Some(digest) = executed {
            self.record_decided(slot, digest);
        }
    }

    fn record_earlier(&mut self, slot: Slot) {
        let state = self.slots.get_mut(&slot).expect("the caller names a slot that is here");
        let here = state.earlier.iter().filter_map(|digest| state.batches.get(*digest));
        let earlier: Vec<Bytes> = here.map(|batch| batch.bytes().clone()).collect();
        for digest in &state.earlier {
            state.batches.note_recorded(*digest);
        }
        for batch in earlier {
            self.record(&Record::Earlier { slot, batch });
        }
    }

    pub(super) fn on_compact(&mut self, slot: Slot, retain: Retain) {
        self.on_trim(slot, retain);
        self.rewrite_log();
    }

    /// Drops slots that are stable, executed and durable outside the log, but for what others may ask for.
    pub(super) fn on_trim(&mut self, slot: Slot, retain: Retain) {
        let droppable = slot.min(self.stable_slot()).min(self.executed.slot);
        let is_pinned = |at: Slot| retain.pinned.is_some_and(|pinned| at > pinned);
        let mut kept = 0;
        let mut point = self.base.slot;
        for (at, state) in self.slots.iter().rev() {
            kept += state.bytes();
            let is_kept = kept <= retain.bytes || kept <= retain.pinned_bytes && is_pinned(*at);
            if *at <= droppable && !is_kept {
                point = *at;
                break;
            }
        }
        let Some(end) = self.slots.get(&point).and_then(|state| state.end) else { return };
        self.slots = self.slots.split_off(&point.next());
        self.base = end;
    }

    pub(super) fn on_installed(&mut self, base: LogBase) {
        if self.is_repairing {
            self.on_repaired(base);
        } else if base.slot > self.executed.slot {
            self.take_over(base);
        }
    }

    /// What was decided in these slots is in a state that was taken: nobody waits for it any more.
    fn be_done_with(&mut self, slots: &BTreeMap<Slot, SlotState>) {
        for state in slots.values() {
            if let Some(batch) = state.decided.and_then(|digest| state.batch(digest)) {
                batch.bundles().iter().for_each(|bundle| _ = self.custody.executed(bundle));
            }
        }
    }

    /// Goes on from a state that is in place.
    pub(super) fn take_over(&mut self, base: LogBase) {
        assert!(base.slot <= self.stable_slot(), "a state is installed only with proof");
        self.executed = base;
        self.base = base;
        let later = self.slots.split_off(&base.slot.next());
        let in_state = std::mem::replace(&mut self.slots, later);
        self.be_done_with(&in_state);
        self.catch_up.missing = self.catch_up.missing.split_off(&base.slot.next());
        self.next = self.next.max(base.slot.next());
        self.suspicion.progress_at = self.now;
        self.custody.forget_told();
        if base.sealed {
            self.close_custody();
        }
        self.rewrite_log();
        self.execute();
    }
}
