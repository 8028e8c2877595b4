//! Checkpoints: proof of what the state is, so that the log before it can go.
//!
//! Castro and Liskov, OSDI 1999, section 4.3. After every so many slots each replica signs the root of its state. Roots
//! of a quorum that agree make the checkpoint *stable*; it moves the window, and its certificate proves a transferred
//! state to anyone. Equal roots of `f + 1` others that differ from this replica's own prove that this one is wrong: it
//! repairs its state ([`super::repair`]).
//!
//! A root that was signed is never signed again otherwise: it is in the vote log, also after a crash.

use crate::mutation::mutated;
use crate::pbft::evidence::Evidence;
use crate::pbft::message::{CheckpointVote, Message, Signatures, StableCertificate};
use crate::pbft::record::Record;
use crate::pbft::replica::Replica;
use crate::pbft::sign::Statement;
use crate::types::{Digest, ReplicaId, Slot};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What is known of the state's roots.
#[derive(Clone, Debug, Default)]
pub(super) struct Checkpoints {
    pub(super) stable: Option<StableCertificate>,
    /// Stable checkpoints before the last one: a state that was written to the tree meanwhile needs its proof.
    pub(super) recent: VecDeque<StableCertificate>,
    /// Roots that were signed, in any life: never signed otherwise.
    pub(super) own_votes: BTreeMap<Slot, CheckpointVote>,
    /// Roots of the state as it is in this life, above the stable checkpoint.
    pub(super) own_roots: BTreeMap<Slot, Digest>,
    /// The last slot whose root others refuted.
    pub(super) refuted: Option<Slot>,
    /// Those of others, above the stable checkpoint.
    pub(super) votes: BTreeMap<Slot, BTreeMap<ReplicaId, CheckpointVote>>,
}

impl Replica {
    /// The state after `slot` has this root, and can be recovered.
    pub(super) fn on_state_root(&mut self, slot: Slot, root: Digest) {
        if self.is_repairing {
            // It was asked for before the state was lost; an end of the epoch was lost with it.
            return;
        }
        assert!(self.is_checkpoint(slot), "roots are taken where checkpoints are");
        assert!(slot <= self.executed.slot, "only what was executed has a root");
        if self.stable_at(slot).is_some_and(|stable| stable.root != root) {
            return self.refute(slot, "a quorum signed another");
        }
        if slot <= self.stable_slot() {
            return;
        }
        self.checkpoints.own_roots.insert(slot, root);
        if let Some(known) = self.checkpoints.own_votes.get(&slot).map(|vote| vote.root) {
            // After a repair it is the signed root that was wrong.
            if known != root && self.checkpoints.refuted.is_none_or(|refuted| refuted < slot) {
                self.refute(slot, "it is not what this replica signed before");
            }
            return;
        }
        let signature = self.sign(Statement::Checkpoint(slot, root));
        let vote = CheckpointVote { signer: self.me, slot, root, signature };
        self.checkpoints.own_votes.insert(slot, vote);
        let token = self.record(&Record::Checkpoint(vote));
        self.broadcast(&Message::Checkpoint(vote), Some(token));
        self.try_stable(slot);
    }

    /// A verified CHECKPOINT.
    pub(super) fn on_checkpoint(&mut self, vote: CheckpointVote) {
        if !self.is_checkpoint_in_reach(vote.slot) {
            return;
        }
        let votes = self.checkpoints.votes.entry(vote.slot).or_default();
        let known = *votes.entry(vote.signer).or_insert(vote);
        if known.root != vote.root {
            self.convict(Evidence::Checkpoints { one: known, other: vote });
        }
        self.try_stable(vote.slot);
    }

    /// Whether a checkpoint is made after this slot: where all make one, and where the epoch ended.
    pub(super) fn is_checkpoint(&self, slot: Slot) -> bool {
        let is_end = self.executed.sealed && slot == self.executed.slot;
        self.config.is_checkpoint(slot) || is_end
    }

    /// Votes are kept for few slots: what is further ahead is proved by its certificate alone.
    pub(super) fn is_checkpoint_in_reach(&self, slot: Slot) -> bool {
        let reach = self.stable_slot().0 + 2 * self.config.window.length;
        self.is_checkpoint(slot) && slot > self.stable_slot() && slot.0 <= reach
    }

    fn try_stable(&mut self, slot: Slot) {
        // This replica may be far ahead of its stable checkpoint while it catches up: its own votes are not kept with the
        // few of others.
        let own_vote = self.checkpoints.own_votes.get(&slot).map(|vote| (self.me, *vote));
        let others = self.checkpoints.votes.get(&slot).into_iter().flatten();
        let votes: BTreeMap<ReplicaId, CheckpointVote> =
            others.map(|(signer, vote)| (*signer, *vote)).chain(own_vote).collect();
        let own = self.checkpoints.own_roots.get(&slot).copied();
        let one_honest = self.config.quorum.one_honest();
        let needed = if mutated!(self.options, StableTooSoon) { one_honest } else { self.quorum() };
        for root in votes.values().map(|vote| vote.root).collect::<BTreeSet<Digest>>() {
            let matching = votes.values().filter(|vote| vote.root == root);
            let found: Signatures = matching.map(|vote| (vote.signer, vote.signature)).collect();
            if own.is_some_and(|own| own != root) && found.len() >= one_honest {
                return self.refute(slot, "an honest replica signed another");
            }
            if found.len() >= needed {
                let votes = found.into_iter().take(needed).collect();
                return self.adopt_stable(StableCertificate { slot, root, votes });
            }
        }
    }

    /// A checkpoint is stable, as its certificate proves.
    pub(super) fn adopt_stable(&mut self, certificate: StableCertificate) {
        let slot = certificate.slot;
        if slot <= self.stable_slot() {
            return;
        }
        let is_refuted = self.checkpoints.own_roots.get(&slot).is_some_and(|own| *own != certificate.root);
        self.record(&Record::Stable(certificate.clone()));
        self.checkpoints.recent.extend(self.checkpoints.stable.replace(certificate));
        while self.checkpoints.recent.len() > RECENT_MAX {
            self.checkpoints.recent.pop_front();
        }
        self.checkpoints.votes = self.checkpoints.votes.split_off(&slot.next());
        self.checkpoints.own_votes = self.checkpoints.own_votes.split_off(&slot);
        self.checkpoints.own_roots = self.checkpoints.own_roots.split_off(&slot.next());
        self.next = self.next.max(slot.next());
        assert!(self.stable_slot() == slot, "the window moves up");
        if is_refuted {
            self.refute(slot, "a quorum signed another");
        }
        self.shed();
        self.rest();
    }

    /// Whether a slot is stable and executed, and its proof here.
    pub(super) fn rests(&self, slot: Slot) -> bool {
        slot <= self.stable_slot().min(self.executed.slot)
            && self.slots.get(&slot).is_some_and(|state| state.committed.is_some())
    }

    /// What is stable and executed needs no votes any more. A slot may be executed after it is stable: the last two windows are looked at.
    pub(super) fn rest(&mut self) {
        let stable = self.stable_slot();
        let to = stable.min(self.executed.slot);
        let from = Slot(stable.0.saturating_sub(2 * self.config.window.length));
        if from < to {
            self.slots.range_mut(from.next()..=to).for_each(|(_, state)| state.rest());
        }
    }
}

/// Stable checkpoints that are remembered besides the last.
const RECENT_MAX: usize = 32;
