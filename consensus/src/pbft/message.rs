//! Every message between replicas: who sends it and what it means.
//!
//! | message | from | says |
//! |---|---|---|
//! | `PrePrepare` | primary | this batch for this slot in this view |
//! | `Prepare` | backup | I hold that batch and no other for this slot in this view |
//! | `Commit` | replica | I durably hold the proof that it was prepared |
//! | `Checkpoint` | replica | after this slot my state has this root |
//! | `ViewChange` | replica | I have left the view below; this is what was prepared here |
//! | `NewView` | new primary | these view changes begin the view, and this follows from them |
//! | `Status` | replica | how far I am (a hint, not signed) |
//! | `Certified` | replica | this batch is committed for this slot, and here is the proof |
//! | `Stable` | replica | this checkpoint is stable, and here is the proof |
//! | `Fetch`, `Body` | replica | a batch is asked for by its digest, and given |
//! | `Requests` | replica | a client's requests, passed on |

use crate::pbft::sign::{Signature, Statement};
use crate::types::{Digest, ReplicaId, Slot, View};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A signed statement about a batch for a slot in a view; which kind, says the message that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Vote {
    /// The signer.
    pub signer: ReplicaId,
    /// The view.
    pub view: View,
    /// The slot.
    pub slot: Slot,
    /// The batch.
    pub digest: Digest,
    /// Over all of it.
    pub signature: Signature,
}

/// A signed statement about the state after a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CheckpointVote {
    /// The signer.
    pub signer: ReplicaId,
    /// The slot.
    pub slot: Slot,
    /// The root of the state.
    pub root: Digest,
    /// Over all of it.
    pub signature: Signature,
}

/// Signatures of distinct replicas, in ascending order.
pub type Signatures = Vec<(ReplicaId, Signature)>;

/// Proof that a batch was prepared: its primary's PRE-PREPARE and PREPAREs of a quorum less one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PreparedCertificate {
    /// The view.
    pub view: View,
    /// The slot.
    pub slot: Slot,
    /// The batch.
    pub digest: Digest,
    /// The primary's.
    pub proposal: Signature,
    /// The backups'.
    pub prepares: Signatures,
}

/// Proof that a batch is committed: COMMITs of a quorum.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CommitCertificate {
    /// The view.
    pub view: View,
    /// The slot.
    pub slot: Slot,
    /// The batch.
    pub digest: Digest,
    /// The replicas'.
    pub commits: Signatures,
}

/// Proof that a state is right: CHECKPOINTs of a quorum.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StableCertificate {
    /// The slot.
    pub slot: Slot,
    /// The root of the state after it.
    pub root: Digest,
    /// The replicas'.
    pub votes: Signatures,
}

/// A signed VIEW-CHANGE: the exact bytes of a [`ViewChangeBody`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ViewChange {
    /// The signer.
    pub signer: ReplicaId,
    /// The view that is asked for; also in the signed statement.
    pub view: View,
    /// What is signed.
    pub body: Bytes,
    /// Over the digest of the body.
    pub signature: Signature,
}

/// What a replica brings into a new view.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ViewChangeBody {
    /// Its last stable checkpoint; none at the start of the epoch.
    pub stable: Option<StableCertificate>,
    /// For each slot above, ascending, the certificate of the highest view that it ever held.
    pub prepared: Vec<PreparedCertificate>,
}

/// A signed NEW-VIEW: the exact bytes of a [`NewViewBody`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NewView {
    /// The view that begins; its primary signed.
    pub view: View,
    /// What is signed.
    pub body: Bytes,
    /// Over the digest of the body.
    pub signature: Signature,
}

/// What begins a view.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NewViewBody {
    /// A quorum of view changes for this view, of distinct replicas, ascending.
    pub view_changes: Vec<ViewChange>,
    /// For every slot that follows from them, ascending without a gap: the batch, and the new primary's PRE-PREPARE.
    pub proposals: Vec<(Slot, Digest, Signature)>,
}

/// How far a replica is. Nothing is believed because of it; it only says what to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Status {
    /// Its view.
    pub view: View,
    /// Whether the view has begun there.
    pub is_active: bool,
    /// Its last stable checkpoint.
    pub stable: Slot,
    /// The last slot that it executed.
    pub executed: Slot,
    /// The slot below which it has dropped its log.
    pub base: Slot,
}

/// A message between replicas of one group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Message {
    /// See the table.
    PrePrepare {
        /// The primary's statement.
        vote: Vote,
        /// The exact bytes of the batch.
        batch: Bytes,
    },
    /// See the table.
    Prepare(Vote),
    /// See the table.
    Commit(Vote),
    /// See the table.
    Checkpoint(CheckpointVote),
    /// See the table.
    ViewChange(ViewChange),
    /// See the table.
    NewView(NewView),
    /// See the table.
    Status(Status),
    /// See the table.
    Certified {
        /// The proof.
        certificate: CommitCertificate,
        /// The exact bytes of the batch.
        batch: Bytes,
    },
    /// See the table.
    Stable(StableCertificate),
    /// See the table.
    Fetch {
        /// The slot that it was proposed for.
        slot: Slot,
        /// The batch.
        digest: Digest,
    },
    /// See the table.
    Body {
        /// The slot that it was asked for.
        slot: Slot,
        /// The exact bytes of the batch.
        batch: Bytes,
    },
    /// See the table.
    Requests(Bytes),
}

impl Vote {
    /// The statement, as a PRE-PREPARE.
    #[must_use]
    pub fn as_pre_prepare(&self) -> Statement {
        Statement::PrePrepare(self.view, self.slot, self.digest)
    }

    /// The statement, as a PREPARE.
    #[must_use]
    pub fn as_prepare(&self) -> Statement {
        Statement::Prepare(self.view, self.slot, self.digest)
    }

    /// The statement, as a COMMIT.
    #[must_use]
    pub fn as_commit(&self) -> Statement {
        Statement::Commit(self.view, self.slot, self.digest)
    }
}

/// The digest of the bytes of a body, as it is signed.
#[must_use]
pub fn body_digest(body: &[u8]) -> Digest {
    Digest(*blake3::hash(body).as_bytes())
}
