//! What a replica knows about one slot.

use crate::pbft::batch::Batch;
use crate::pbft::message::{CommitCertificate, PreparedCertificate, Signatures, Vote};
use crate::types::{Digest, ReplicaId, View};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One slot. Votes are those of the current view alone, one for each replica; certificates outlive their view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotState {
    /// The PRE-PREPARE accepted in the highest view in which there was one.
    pub(super) accepted: Option<Vote>,
    /// One that follows from a NEW-VIEW, but its batch is not here yet.
    pub(super) awaited: Option<Vote>,
    /// One whose time is too far ahead of the clock.
    pub(super) held: Option<(Vote, Arc<Batch>)>,
    /// Whether it was proposed to this replica in this view and life, so that its time says something of its primary.
    pub(super) is_fresh: bool,
    /// Batches by digest.
    pub(super) batches: BTreeMap<Digest, Arc<Batch>>,
    /// Those of them that the vote log holds.
    pub(super) recorded: BTreeSet<Digest>,
    /// PREPAREs of this view.
    pub(super) prepares: BTreeMap<ReplicaId, Vote>,
    /// COMMITs of this view.
    pub(super) commits: BTreeMap<ReplicaId, Vote>,
    /// This replica's COMMIT of this view, durable or not.
    pub(super) own_commit: Option<Vote>,
    /// The certificate of the highest view that was ever here.
    pub(super) prepared: Option<PreparedCertificate>,
    /// What is decided here, once this replica has seen proof of it, in this life or an earlier one.
    pub(super) decided: Option<Digest>,
    /// The proof, of whichever view came first, if it was seen in this life.
    pub(super) committed: Option<CommitCertificate>,
    /// Chain hash of the log up to here, once it is executed.
    pub(super) chain: Option<Digest>,
}

impl SlotState {
    /// The batch with this digest; the null batch is always here.
    pub(super) fn batch(&self, digest: Digest) -> Option<Arc<Batch>> {
        if digest == Digest::ZERO {
            return Some(Arc::new(Batch::null()));
        }
        self.batches.get(&digest).cloned()
    }

    /// The PRE-PREPARE accepted in this view.
    pub(super) fn accepted_in(&self, view: View) -> Option<Vote> {
        self.accepted.filter(|vote| vote.view == view)
    }

    /// Whether the slot was prepared in this view.
    pub(super) fn is_prepared_in(&self, view: View) -> bool {
        self.prepared.as_ref().is_some_and(|certificate| certificate.view == view)
    }

    /// Signatures for this batch, the first so many in ascending order; none if there are fewer.
    pub(super) fn signatures(
        votes: &BTreeMap<ReplicaId, Vote>,
        digest: Digest,
        count: usize,
    ) -> Option<Signatures> {
        let matching = votes.values().filter(|vote| vote.digest == digest);
        let found: Signatures = matching.map(|vote| (vote.signer, vote.signature)).take(count).collect();
        (found.len() == count).then_some(found)
    }

    /// The view is over: its votes are worth nothing in the next one. Certificates and batches stay.
    pub(super) fn leave_view(&mut self) {
        self.prepares.clear();
        self.commits.clear();
        self.own_commit = None;
        self.held = None;
        self.is_fresh = false;
        self.awaited = None;
        assert!(
            self.recorded.iter().all(|digest| self.batches.contains_key(digest)),
            "recorded batches stay"
        );
    }

    /// Drops batches that nothing refers to any more.
    pub(super) fn drop_unused(&mut self) {
        let used = [
            self.accepted.map(|vote| vote.digest),
            self.awaited.map(|vote| vote.digest),
            self.prepared.as_ref().map(|certificate| certificate.digest),
            self.decided,
        ];
        self.batches.retain(|digest, _| used.contains(&Some(*digest)));
        self.recorded.retain(|digest| used.contains(&Some(*digest)));
    }

    /// Bytes of the batches, about.
    pub(super) fn bytes(&self) -> usize {
        self.batches.values().map(|batch| 256 + batch.bytes().len()).sum()
    }
}
