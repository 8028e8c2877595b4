//! The vote log: what a replica writes down before it says anything, and how it is read back.
//!
//! What was signed once is never signed otherwise for the same view and slot, also after a crash. So every statement has
//! its record, and messages that are made of much state ([`ViewChange`], [`NewView`]) are kept as the exact bytes that were
//! sent: made again from another state they would say something else. [`Record::Begin`] stands for everything before it.

use crate::codec::{self, CodecError};
use crate::pbft::batch::{Batch, digest_of};
use crate::pbft::evidence::Evidence;
use crate::pbft::message::{
    CheckpointVote, CommitCertificate, NewView, PreparedCertificate, StableCertificate, ViewChange, Vote,
};
use crate::pbft::slot::SlotState;
use crate::types::{Digest, LogBase, PersistToken, Slot, View};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;

/// One durable step of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Everything before is void; the records that follow in the same commit are all that is left.
    Begin {
        /// Where the log begins.
        base: LogBase,
    },
    /// A PRE-PREPARE was accepted, or made by the primary itself.
    Accepted {
        /// It.
        vote: Vote,
        /// The batch, unless an earlier record holds it for this slot.
        batch: Option<Bytes>,
    },
    /// A batch was prepared.
    Prepared(PreparedCertificate),
    /// A batch was decided and executed. Nothing waits for this record by itself; but a state root is signed only behind it,
    /// so that a stable state can be made again from the log although every replica crashed before its state was durable.
    Decided {
        /// The slot.
        slot: Slot,
        /// The batch.
        digest: Digest,
        /// Its bytes, unless an earlier record holds them for this slot.
        batch: Option<Bytes>,
        /// The proof, for replicas that missed it: after a restart of all there may be nobody else who can give it, and an idle
        /// group would never become equal. Absent where a slot was executed again from a log that held none.
        certificate: Option<CommitCertificate>,
    },
    /// A batch that was voted for in an earlier view; in a log that was rewritten.
    Earlier {
        /// The slot.
        slot: Slot,
        /// Its bytes.
        batch: Bytes,
    },
    /// The replica has left the views below and sent this.
    Left(ViewChange),
    /// A view has begun.
    Entered(NewView),
    /// A state root was signed.
    Checkpoint(CheckpointVote),
    /// A checkpoint is stable.
    Stable(StableCertificate),
    /// Somebody was caught.
    Evidence(Evidence),
}

/// Why the records on disk are not a vote log. The replica must not vote.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecoverError {
    /// A record cannot be read.
    #[error("vote log record {index} cannot be read: {source}")]
    Unreadable {
        /// Which record, counted from 0.
        index: usize,
        /// Why.
        source: CodecError,
    },
    /// A record does not fit behind the ones before it.
    #[error("vote log record {index} contradicts the records before it: {what}")]
    Contradiction {
        /// Which record, counted from 0.
        index: usize,
        /// What does not fit.
        what: &'static str,
    },
}

/// A replica as its records tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    pub(super) base: LogBase,
    pub(super) view: View,
    /// Sent, and the view has not begun since.
    pub(super) left: Option<ViewChange>,
    pub(super) entered: Option<NewView>,
    pub(super) slots: BTreeMap<Slot, SlotState>,
    pub(super) checkpoints: BTreeMap<Slot, CheckpointVote>,
    pub(super) stable: Option<StableCertificate>,
    pub(super) evidence: Vec<Evidence>,
}

impl Recovered {
    /// Replays encoded records in the order in which they were written.
    pub fn replay<R: AsRef<[u8]>>(records: impl IntoIterator<Item = R>) -> Result<Self, RecoverError> {
        let mut state = Self::default();
        for (index, bytes) in records.into_iter().enumerate() {
            let record =
                codec::decode(bytes.as_ref()).map_err(|source| RecoverError::Unreadable { index, source })?;
            state.apply(record).map_err(|what| RecoverError::Contradiction { index, what })?;
        }
        Ok(state)
    }

    fn apply(&mut self, record: Record) -> Result<(), &'static str> {
        match record {
            Record::Begin { base } => *self = Self { base, ..Self::default() },
            Record::Accepted { vote, batch } => self.accept(vote, batch)?,
            Record::Prepared(certificate) => {
                let state = self.slots.entry(certificate.slot).or_default();
                if state.prepared.as_ref().is_some_and(|known| known.view > certificate.view) {
                    return Err("an older certificate follows a newer one");
                }
                state.prepared = Some(certificate);
            }
            Record::Decided { slot, digest, batch, certificate } => {
                self.keep_batch(slot, digest, batch)?;
                if certificate.as_ref().is_some_and(|proof| (proof.slot, proof.digest) != (slot, digest)) {
                    return Err("a decided batch has the proof of another");
                }
                let state = self.slots.entry(slot).or_default();
                if state.decided.is_some_and(|known| known != digest) {
                    return Err("two batches were decided for one slot");
                }
                state.decided = Some(digest);
                state.committed = certificate;
            }
            Record::Earlier { slot, batch } => {
                let digest = digest_of(&batch);
                self.keep_batch(slot, digest, Some(batch))?;
                self.slots.entry(slot).or_default().keep_earlier(digest);
            }
            Record::Left(message) => {
                if message.view <= self.view {
                    return Err("views only grow");
                }
                (self.view, self.left, self.entered) = (message.view, Some(message), None);
            }
            Record::Entered(message) => {
                if message.view < self.view || self.entered.is_some() && message.view == self.view {
                    return Err("a view begins once");
                }
                (self.view, self.left, self.entered) = (message.view, None, Some(message));
            }
            Record::Checkpoint(vote) => {
                let before = self.checkpoints.insert(vote.slot, vote);
                if before.is_some_and(|before| before.root != vote.root) {
                    return Err("two roots were signed for one slot");
                }
            }
            Record::Stable(certificate) => self.stable = Some(certificate),
            Record::Evidence(evidence) => self.evidence.push(evidence),
        }
        Ok(())
    }

    fn accept(&mut self, vote: Vote, batch: Option<Bytes>) -> Result<(), &'static str> {
        self.keep_batch(vote.slot, vote.digest, batch)?;
        let state = self.slots.entry(vote.slot).or_default();
        let known = state.accepted.filter(|known| known.view >= vote.view);
        if known.is_some_and(|known| known.view > vote.view || known.digest != vote.digest) {
            return Err("two batches were accepted for one slot in one view");
        }
        state.accept(vote);
        Ok(())
    }
}

impl Recovered {
    fn keep_batch(&mut self, slot: Slot, digest: Digest, batch: Option<Bytes>) -> Result<(), &'static str> {
        let Some(bytes) = batch else { return Ok(()) };
        let batch = Batch::parse(bytes).map_err(|_| "a batch cannot be read")?;
        if batch.digest() != digest {
            return Err("a batch is not the one that it is recorded as");
        }
        let state = self.slots.entry(slot).or_default();
        state.batches.insert(Arc::new(batch));
        state.batches.note_recorded(digest);
        Ok(())
    }
}

/// Records on their way to the disk.
#[derive(Clone, Debug, Default)]
pub(super) struct VoteLog {
    records: Vec<Bytes>,
    /// Whether a view was left or entered among them.
    promises: bool,
    /// Whether a whole log begins among them.
    is_whole: bool,
    /// Whether somebody waits for one of them.
    urgent: bool,
    /// The last record that somebody may wait for.
    awaited: PersistToken,
    last: PersistToken,
    durable: PersistToken,
}

impl VoteLog {
    pub(super) fn record(&mut self, record: &Record) -> PersistToken {
        self.last.0 += 1;
        if !matches!(record, Record::Decided { .. }) {
            self.urgent = true;
            self.awaited = self.last;
        }
        self.promises |= matches!(record, Record::Left(_) | Record::Entered(_) | Record::Begin { .. });
        if matches!(record, Record::Begin { .. }) {
            self.is_whole = true;
            // They are void, and would stand in front of a log that begins here.
            self.records.clear();
        }
        self.records.push(codec::encode(record));
        self.last
    }

    /// The records made since the last call, with the token that stands for all of them; whether a store that keeps a
    /// witness must update it at once: a view that was left must not be forgotten, single votes are covered as all records
    /// are, by the witness's own interval; and whether they hold the whole log.
    ///
    /// Records that nobody waits for stay until one comes that somebody does, or until they are [hurried](Self::hurry): a
    /// barrier of their own would cost a third of all barriers.
    pub(super) fn take(&mut self) -> Option<(Vec<Bytes>, PersistToken, bool, bool)> {
        if !std::mem::take(&mut self.urgent) {
            return None;
        }
        let records = std::mem::take(&mut self.records);
        let promises = std::mem::take(&mut self.promises);
        let is_whole = std::mem::take(&mut self.is_whole);
        (!records.is_empty()).then_some((records, self.last, promises, is_whole))
    }

    /// Lets records go that nobody waits for.
    pub(super) fn hurry(&mut self) {
        self.urgent |= !self.records.is_empty();
    }

    pub(super) fn persisted(&mut self, token: PersistToken) {
        assert!(token <= self.last, "only what was emitted can be durable");
        self.durable = self.durable.max(token);
    }

    /// The token, if it is not durable yet.
    pub(super) fn gate(&self, token: PersistToken) -> Option<PersistToken> {
        (token > self.durable).then_some(token)
    }

    /// The last record that a message may rest on.
    pub(super) fn awaited(&self) -> PersistToken {
        self.awaited
    }
}
