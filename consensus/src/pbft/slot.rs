//! What a replica knows about one slot.

use crate::pbft::batch::Batch;
use crate::pbft::bodies::Bodies;
use crate::pbft::message::{CommitCertificate, PreparedCertificate, Signatures, Vote};
use crate::pbft::pace::Times;
use crate::pbft::sign::Signature;
use crate::types::{Digest, LogBase, ReplicaId, Ticks, View};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// The slot itself: the leaves of the map that holds slots are little more than half full.
const SLOT_BYTES: usize = 2 * size_of::<SlotState>();

/// Batches of earlier views that are kept for one slot.
const EARLIER_MAX: usize = 8;

/// One slot. Votes are those of the current view alone, one for each replica; certificates outlive their view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotState {
    /// The PRE-PREPARE accepted in the highest view in which there was one.
    pub(super) accepted: Option<Vote>,
    /// Batches that this replica voted for in earlier views, the oldest first. A certificate of such a view may turn up in a
    /// later one, and those who voted are the ones who must have the batch.
    pub(super) earlier: VecDeque<Digest>,
    /// One that follows from a NEW-VIEW, but its batch is not here yet.
    pub(super) awaited: Option<Vote>,
    /// One whose time is too far ahead of the clock.
    pub(super) held: Option<(Vote, Arc<Batch>)>,
    /// When it was proposed to this replica in this view, and what came of it when.
    pub(super) times: Times,
    /// Whether it was proposed to this replica in this view and life, so that its time says something of its primary.
    pub(super) is_fresh: bool,
    /// That says that its clock is slow, or that it came here late.
    pub(super) is_stale: bool,
    /// Batches that something here refers to.
    pub(super) batches: Bodies,
    /// PREPAREs of this view.
    pub(super) prepares: BTreeMap<ReplicaId, Vote>,
    /// COMMITs of this view.
    pub(super) commits: BTreeMap<ReplicaId, Vote>,
    /// Whose PREPAREs and COMMITs of this view were given to the pool to be checked, and for which batch.
    pub(super) prepares_in_check: BTreeMap<ReplicaId, Digest>,
    pub(super) commits_in_check: BTreeMap<ReplicaId, Digest>,
    /// This replica's COMMIT of this view, durable or not.
    pub(super) own_commit: Option<Vote>,
    /// The certificate of the highest view that was ever here.
    pub(super) prepared: Option<PreparedCertificate>,
    /// What is decided here, once this replica has seen proof of it, in this life or an earlier one.
    pub(super) decided: Option<Digest>,
    /// The proof, of whichever view came first; the vote log keeps it with what was executed.
    pub(super) committed: Option<CommitCertificate>,
    /// The log up to here, once it is executed.
    pub(super) end: Option<LogBase>,
}

impl SlotState {
    /// The batch with this digest; the null batch is always here.
    pub(super) fn batch(&self, digest: Digest) -> Option<Arc<Batch>> {
        if digest == Digest::ZERO {
            return Some(Arc::new(Batch::null()));
        }
        self.batches.get(digest).cloned()
    }

    /// The PRE-PREPARE accepted in this view.
    pub(super) fn accepted_in(&self, view: View) -> Option<Vote> {
        self.accepted.filter(|vote| vote.view == view)
    }

    /// Accepts a PRE-PREPARE of a higher view than the one before.
    pub(super) fn accept(&mut self, vote: Vote) {
        let before = self.accepted.replace(vote).map(|before| before.digest);
        if let Some(digest) = before.filter(|digest| *digest != vote.digest && *digest != Digest::ZERO) {
            self.keep_earlier(digest);
        }
    }

    /// A batch was voted for in an earlier view.
    pub(super) fn keep_earlier(&mut self, digest: Digest) {
        self.earlier.retain(|known| *known != digest);
        self.earlier.push_back(digest);
        while self.earlier.len() > EARLIER_MAX
            && let Some(oldest) = self.earlier.pop_front()
        {
            self.drop_batch(oldest);
        }
    }

    /// A batch that nothing refers to any more.
    fn drop_batch(&mut self, digest: Digest) {
        if !self.used().contains(&Some(digest)) {
            self.batches.retain(|kept| kept != digest);
        }
    }

    /// Nothing else will ever be decided here, whatever certificates of earlier views turn up: what was voted for in those is
    /// needed no more.
    pub(super) fn settle(&mut self) {
        self.earlier.clear();
        self.drop_unused();
    }

    fn used(&self) -> [Option<Digest>; 4] {
        [
            self.accepted.map(|vote| vote.digest),
            self.awaited.map(|vote| vote.digest),
            self.prepared.as_ref().map(|certificate| certificate.digest),
            self.decided,
        ]
    }

    /// Whether the slot was prepared in this view.
    pub(super) fn is_prepared_in(&self, view: View) -> bool {
        self.prepared.as_ref().is_some_and(|certificate| certificate.view == view)
    }

    /// Votes for this batch that are here, or will be if those hold that are being checked; those of doubtful senders need not.
    pub(super) fn expected(
        votes: &BTreeMap<ReplicaId, Vote>,
        in_check: &BTreeMap<ReplicaId, Digest>,
        digest: Digest,
        is_doubtful: impl Fn(&ReplicaId) -> bool,
    ) -> usize {
        let here = votes.values().filter(|vote| vote.digest == digest).count();
        let is_expected = |(from, other): &(&ReplicaId, &Digest)| {
            **other == digest && !votes.contains_key(from) && !is_doubtful(from)
        };
        here + in_check.iter().filter(is_expected).count()
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

    /// A COMMIT was counted: whether those of backups, for what was accepted, are as many as a quorum needs of them.
    pub(super) fn note_backed(&mut self, primary: ReplicaId, needed: usize, now: Ticks) {
        let Some(accepted) = self.accepted.filter(|_| self.times.backed_at.is_none()) else { return };
        let is_backing = |vote: &&Vote| vote.digest == accepted.digest && vote.signer != primary;
        if self.commits.values().filter(is_backing).count() >= needed {
            self.times.backed_at = Some(now);
        }
    }

    /// The times of what was proposed to this replica in this view, if it is what was decided.
    pub(super) fn fresh_times(&self) -> Option<Times> {
        let is_it = self.accepted.map(|vote| vote.digest) == self.decided;
        (self.is_fresh && is_it).then_some(self.times)
    }

    /// The view is over: its votes are worth nothing in the next one. Certificates and batches stay.
    pub(super) fn leave_view(&mut self) {
        self.prepares.clear();
        self.commits.clear();
        self.prepares_in_check.clear();
        self.commits_in_check.clear();
        self.own_commit = None;
        self.held = None;
        (self.is_fresh, self.is_stale) = (false, false);
        self.awaited = None;
    }

    /// A stable checkpoint covers it and it is executed here: no view begins below that, and whoever lags is helped by the proof of what
    /// was decided. The votes and the certificate that led there take many times what they were about.
    pub(super) fn rest(&mut self) {
        if self.committed.is_none() {
            return;
        }
        assert!(self.decided.is_some(), "what has a proof is decided");
        self.prepares = BTreeMap::new();
        self.commits = BTreeMap::new();
        self.prepares_in_check = BTreeMap::new();
        self.commits_in_check = BTreeMap::new();
        (self.own_commit, self.prepared, self.held, self.awaited) = (None, None, None, None);
        self.settle();
    }

    /// Drops batches that nothing refers to any more.
    pub(super) fn drop_unused(&mut self) {
        let used = self.used();
        let earlier = &self.earlier;
        self.batches.retain(|digest| used.contains(&Some(digest)) || earlier.contains(&digest));
    }

    /// Bytes that the slot takes in memory, about.
    pub(super) fn bytes(&self) -> usize {
        // A leaf of a map has room for eleven.
        let votes = self.prepares.len().next_multiple_of(11) + self.commits.len().next_multiple_of(11);
        let signatures = self.prepared.as_ref().map_or(0, |certificate| certificate.prepares.len())
            + self.committed.as_ref().map_or(0, |certificate| certificate.commits.len());
        let lists = votes * size_of::<Vote>() + signatures * size_of::<(ReplicaId, Signature)>();
        SLOT_BYTES + lists + self.batches.iter().map(|batch| batch.memory()).sum::<usize>()
    }

    /// Bytes of batches while none is decided: what this view's primary proposed, and all.
    pub(super) fn open_bytes(&self, view: View) -> (usize, usize) {
        if self.decided.is_some() {
            return (0, 0);
        }
        let held = self.held.as_ref().map_or(0, |(_, batch)| bytes_of(batch));
        let accepted = self.accepted_in(view).and_then(|vote| self.batches.get(vote.digest));
        (
            held + accepted.map_or(0, |batch| bytes_of(batch)),
            held + self.batches.iter().map(|batch| bytes_of(batch)).sum::<usize>(),
        )
    }
}

fn bytes_of(batch: &Batch) -> usize {
    256 + batch.bytes().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pbft::sign::Signature;
    use crate::types::{Slot, Timestamp};

    /// Seed 17013055218 of the random schedules: everybody who had voted for a batch dropped it at a restart, because a later
    /// view had proposed another; then a certificate of the earlier view turned up.
    #[test]
    fn what_was_voted_for_in_an_earlier_view_is_kept() {
        let mut state = SlotState::default();
        for view in 0..12u8 {
            let batch = Arc::new(Batch::parse(one_request(view)).unwrap());
            let (digest, signature) = (batch.digest(), Signature([0; 64]));
            let vote =
                Vote { signer: ReplicaId(0), view: View(u64::from(view)), slot: Slot(1), digest, signature };
            state.batches.insert(batch);
            state.accept(vote);
            assert!(state.batches.iter().count() <= 1 + EARLIER_MAX, "not only when the log is rewritten");
        }
        state.drop_unused();
        assert_eq!(state.batches.iter().count(), 1 + EARLIER_MAX, "the last and so many before it");
        let (last, all) = state.open_bytes(View(11));
        assert_eq!((all, state.open_bytes(View(12)).0), ((1 + EARLIER_MAX) * last, 0));
        state.decided = state.accepted.map(|vote| vote.digest);
        state.settle();
        assert_eq!((state.batches.iter().count(), state.open_bytes(View(11))), (1, (0, 0)));
    }

    fn one_request(time: u8) -> bytes::Bytes {
        use crate::pbft::request::{Bundle, RequestName, SignedRequest};
        use crate::pbft::sign::{ClientSigner, Domain};
        let domain = Domain { cluster: Digest::ZERO, group: 1, epoch: crate::types::Epoch(1) };
        let signer = ClientSigner::toy(1);
        let request = SignedRequest {
            name: RequestName { client: signer.name(), session: 1, number: 1 },
            ack_below: 1,
            not_after: Timestamp(9),
            wants_proof: false,
            ends_epoch: false,
            operation: bytes::Bytes::new(),
        };
        let bundle = Bundle::sign(&domain, &signer, &[request]);
        Batch::new(Timestamp(u64::from(time)), vec![bundle]).bytes().clone()
    }
}
