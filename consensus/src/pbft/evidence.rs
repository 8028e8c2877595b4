//! Proof that a replica lied: two statements that no honest replica makes both.
//!
//! Both are signed, so anyone who knows the keys can check it. What to do about the liar is for people to decide.

use crate::pbft::message::{CheckpointVote, ViewChange, Vote, body_digest};
use crate::pbft::sign::{Keyring, Statement};
use crate::types::ReplicaId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Kinds of votes, of which each may be cast once for a view and a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum VoteKind {
    /// Proposed by a primary.
    PrePrepare,
    /// By a backup.
    Prepare,
    /// By any replica.
    Commit,
}

impl fmt::Display for VoteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PrePrepare => "PRE-PREPARE",
            Self::Prepare => "PREPARE",
            Self::Commit => "COMMIT",
        })
    }
}

/// Two signed statements of one replica that contradict one another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Evidence {
    /// Two batches for one slot in one view.
    Votes {
        /// What kind of vote.
        kind: VoteKind,
        /// One of them.
        one: Vote,
        /// The other.
        other: Vote,
    },
    /// Two roots for one slot.
    Checkpoints {
        /// One of them.
        one: CheckpointVote,
        /// The other.
        other: CheckpointVote,
    },
    /// Two view changes for one view.
    ViewChanges {
        /// One of them.
        one: ViewChange,
        /// The other.
        other: ViewChange,
    },
}

impl Evidence {
    /// Who lied.
    #[must_use]
    pub fn liar(&self) -> ReplicaId {
        match self {
            Self::Votes { one, .. } => one.signer,
            Self::Checkpoints { one, .. } => one.signer,
            Self::ViewChanges { one, .. } => one.signer,
        }
    }

    /// Whether it proves what it claims, to anyone with the keys.
    #[must_use]
    pub fn holds(&self, keyring: &Keyring) -> bool {
        match self {
            Self::Votes { kind, one, other } => {
                let statement = |vote: &Vote| match kind {
                    VoteKind::PrePrepare => vote.as_pre_prepare(),
                    VoteKind::Prepare => vote.as_prepare(),
                    VoteKind::Commit => vote.as_commit(),
                };
                let is_signed = |vote: &Vote| keyring.verify(vote.signer, statement(vote), &vote.signature);
                let is_same_place =
                    (one.signer, one.view, one.slot) == (other.signer, other.view, other.slot);
                is_same_place && one.digest != other.digest && is_signed(one) && is_signed(other)
            }
            Self::Checkpoints { one, other } => {
                let is_signed = |vote: &CheckpointVote| {
                    let statement = Statement::Checkpoint(vote.slot, vote.root);
                    keyring.verify(vote.signer, statement, &vote.signature)
                };
                let is_same_place = (one.signer, one.slot) == (other.signer, other.slot);
                is_same_place && one.root != other.root && is_signed(one) && is_signed(other)
            }
            Self::ViewChanges { one, other } => {
                let is_signed = |message: &ViewChange| {
                    let statement = Statement::ViewChange(message.view, body_digest(&message.body));
                    keyring.verify(message.signer, statement, &message.signature)
                };
                let is_same_place = (one.signer, one.view) == (other.signer, other.view);
                is_same_place && one.body != other.body && is_signed(one) && is_signed(other)
            }
        }
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let liar = self.liar();
        match self {
            Self::Votes { kind, one, .. } => {
                write!(f, "{liar} signed two {kind} votes for slot {} in {}", one.slot, one.view)
            }
            Self::Checkpoints { one, .. } => write!(f, "{liar} signed two state roots for slot {}", one.slot),
            Self::ViewChanges { one, .. } => write!(f, "{liar} signed two view changes for {}", one.view),
        }
    }
}
