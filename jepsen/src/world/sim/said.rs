//! What honest replicas of Byzantine groups have signed: for one place, one thing.
//!
//! A replica that signs two batches for one slot in one view, two states for one checkpoint, or two ways to leave a view, is a liar to all
//! others, whatever made it forget: this holds over restarts, repairs and view changes (PBFT, OSDI 1999, sections 4.2 to 4.4).

use std::collections::HashMap;
use tetrachord::group::engine_message;
use tetrachord::ring::GroupId;
use tetrachord::wire::{self, PeerMessage};
use tetrachord_consensus::pbft::Message;
use tetrachord_consensus::pbft::message::NewViewBody;
use tetrachord_consensus::{Digest, Epoch, ReplicaId, View, codec};

/// A statement's place: who, in which group, of which kind, and two numbers.
type Place = (usize, GroupId, Kind, u64, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    PrePrepare,
    Prepare,
    Commit,
    Checkpoint,
    ViewChange,
    NewView,
}

/// Remembers all of it.
#[derive(Debug, Default)]
pub(super) struct Said {
    statements: HashMap<Place, [u8; 32]>,
    /// New views that began with what was prepared before, counted once each.
    pub(super) carried: u64,
}

impl Said {
    /// A frame leaves an honest node of a cluster of so many. What is wrong with it, if it contradicts an earlier one.
    pub(super) fn check(&mut self, index: usize, nodes: usize, body: &[u8]) -> Option<String> {
        let PeerMessage::Group { group, body } = wire::decode(body).ok()? else { return None };
        let message: Message = codec::decode(&engine_message(&body)?).ok()?;
        let hash = |body: &[u8]| *blake3::hash(body).as_bytes();
        // What others have signed is passed on now and then.
        let is_own = |signer: ReplicaId| usize::from(signer.0) == index;
        let is_primary = |view: View| (EPOCH.0 + view.0) % nodes as u64 == index as u64;
        let (kind, first, second, said) = match &message {
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
                (Kind::ViewChange, change.view.0, 0, hash(&change.body))
            }
            Message::NewView(view) if is_primary(view.view) => {
                (Kind::NewView, view.view.0, 0, hash(&view.body))
            }
            _ => return None,
        };
        let place = (index, group, kind, first, second);
        if let Message::NewView(view) = &message
            && !self.statements.contains_key(&place)
        {
            let body = codec::decode::<NewViewBody>(&view.body).ok()?;
            let carries = body.proposals.iter().any(|(_, digest, _)| *digest != Digest::ZERO);
            self.carried += u64::from(carries);
        }
        let known = *self.statements.entry(place).or_insert(said);
        (known != said)
            .then(|| format!("n{} says two things: {kind:?} {first} {second} of {group}", index + 1))
    }
}

/// The epoch of all groups here.
const EPOCH: Epoch = Epoch(1);
