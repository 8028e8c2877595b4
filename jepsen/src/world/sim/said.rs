//! What honest replicas of Byzantine groups have signed: for one place, one thing.
//!
//! A replica that signs two batches for one slot in one view, two states for one checkpoint, or two ways to leave a view, is a liar to all
//! others, whatever made it forget: this holds over restarts, repairs and view changes (PBFT, OSDI 1999, sections 4.2 to 4.4).

use std::collections::HashMap;
use tetrachord::ring::GroupId;
use tetrachord_consensus::pbft::Message;
use tetrachord_consensus::pbft::message::{NewViewBody, body_digest};
use tetrachord_consensus::{Digest, Epoch, ReplicaId, View, codec};

/// The epoch of all groups here.
const EPOCH: Epoch = Epoch(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    PrePrepare,
    Prepare,
    Commit,
    Checkpoint,
    ViewChange,
    NewView,
}

/// Something that a replica signed: its kind and two numbers are the place, for which only one thing may be said.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Statement {
    pub(super) kind: Kind,
    pub(super) first: u64,
    pub(super) second: u64,
    pub(super) said: [u8; 32],
}

impl std::fmt::Debug for Statement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {} {}", self.kind, self.first, self.second)
    }
}

impl Statement {
    /// What a message of this replica, in a group of so many, states in its own name; what others have signed is passed on now and
    /// then.
    pub(super) fn of(replica: usize, replicas: usize, message: &Message) -> Option<Self> {
        let is_own = |signer: ReplicaId| usize::from(signer.0) == replica;
        let is_primary = |view: View| (EPOCH.0 + view.0) % replicas as u64 == replica as u64;
        let (kind, first, second, said) = match message {
            Message::PrePrepare { vote, .. } if is_own(vote.signer) => {
                (Kind::PrePrepare, vote.view.0, vote.slot.0, vote.digest.0)
            }
            Message::Prepare(vote) if is_own(vote.signer) => {
                (Kind::Prepare, vote.view.0, vote.slot.0, vote.digest.0)
            }
            Message::Commit(vote) if is_own(vote.signer) => {
                (Kind::Commit, vote.view.0, vote.slot.0, vote.digest.0)
            }
            Message::Checkpoint(vote) if is_own(vote.signer) => {
                (Kind::Checkpoint, vote.slot.0, 0, vote.root.0)
            }
            Message::ViewChange(change) if is_own(change.signer) => {
                (Kind::ViewChange, change.view.0, 0, body_digest(&change.body).0)
            }
            Message::NewView(view) if is_primary(view.view) => {
                (Kind::NewView, view.view.0, 0, body_digest(&view.body).0)
            }
            _ => return None,
        };
        Some(Self { kind, first, second, said })
    }

    /// What must be durable before this is said. A proposal is accepted by who makes it.
    pub(super) fn rests_on(mut self) -> Self {
        if self.kind == Kind::PrePrepare {
            self.kind = Kind::Prepare;
        }
        self
    }
}

/// Remembers all of it.
#[derive(Debug, Default)]
pub(super) struct Said {
    statements: HashMap<(usize, GroupId, Kind, u64, u64), [u8; 32]>,
    /// New views that began with what was prepared before, counted once each.
    pub(super) carried: u64,
}

impl Said {
    /// An honest node says something. What is wrong with it, if it contradicts an earlier statement.
    pub(super) fn check(
        &mut self,
        index: usize,
        group: GroupId,
        statement: &Statement,
        message: &Message,
    ) -> Option<String> {
        let place = (index, group, statement.kind, statement.first, statement.second);
        if let Message::NewView(view) = message
            && !self.statements.contains_key(&place)
        {
            let body = codec::decode::<NewViewBody>(&view.body).ok()?;
            let carries = body.proposals.iter().any(|(_, digest, _)| *digest != Digest::ZERO);
            self.carried += u64::from(carries);
        }
        let known = *self.statements.entry(place).or_insert(statement.said);
        (known != statement.said).then(|| format!("n{} says two things: {statement:?} of {group}", index + 1))
    }
}
