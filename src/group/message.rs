//! What replicas of one group say to one another besides the engine's own messages.

use crate::kv::{PartSet, Reached};
use crate::limits::{PEER_FRAME_BYTES_MAX, SNAPSHOT_CHUNK_BYTES, few};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Rows of one piece: none is smaller than 16 bytes.
const ROWS_MAX: usize = SNAPSHOT_CHUNK_BYTES / 16;

/// Hashes of one offer; a state has fewer parts.
const HASHES_MAX: usize = 128;

/// A message between two replicas of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum GroupMessage {
    /// The engine's; opaque here.
    Engine(Bytes),
    /// "After this slot my digest is this": replicas that disagree have diverged.
    Digest {
        /// The slot.
        slot: u64,
        /// The digest there.
        digest: [u8; 32],
    },
    /// Byzantine mode: the sender has a state to give, and says what its parts come to.
    Offer(Offer),
    /// Byzantine mode: the sender wants these parts of the state that it was offered.
    Take {
        /// Which transfer.
        transfer: u64,
        /// The parts in which it differs from what the sender has, or that cannot be read there.
        parts: PartSet,
    },
    /// A piece of a snapshot.
    Piece(Piece),
    /// A piece of a snapshot is durable at the receiver.
    PieceStored {
        /// Which transfer.
        transfer: u64,
        /// Which piece.
        index: u64,
    },
    /// A piece came of a transfer that the receiver does not take: it has restarted, is done with it, or has begun a later one.
    /// The sender begins anew, if it still has to.
    PieceUnknown {
        /// Which transfer.
        transfer: u64,
    },
    /// Byzantine mode: the sender wants a whole state, proved by a checkpoint.
    WantState {
        /// At this slot or later.
        at_least: u64,
    },
}

/// Some rows of a snapshot, in the order of their keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    /// Names the transfer; new for every attempt.
    pub(super) transfer: u64,
    /// Counts the pieces from 0.
    pub(super) index: u64,
    /// All pieces below this one are stored at the receiver, as the sender knows: they will not be given again.
    pub(super) first: u64,
    /// Raw keys and records.
    #[serde(deserialize_with = "few::<_, _, ROWS_MAX>")]
    pub(super) rows: Vec<(Bytes, Bytes)>,
    /// In the last piece: what the snapshot is, and the hash over all its rows.
    pub(super) end: Option<(Reached, [u8; 32])>,
}

/// What a state is made of, from the top: a stable checkpoint proves the root, the root the hashes of the parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offer {
    /// Names the transfer; new for every attempt.
    pub(super) transfer: u64,
    /// Where the state stands.
    pub(super) applied: Reached,
    /// The sums of all parts, in order.
    #[serde(deserialize_with = "few::<_, _, HASHES_MAX>")]
    pub(super) hashes: Vec<Bytes>,
    /// The stable checkpoint's certificate.
    pub(super) proof: Bytes,
}

/// A hash over rows that cannot be cut in two ways.
#[derive(Clone, Debug, Default)]
pub(super) struct RowHasher(blake3::Hasher);

impl RowHasher {
    pub(super) fn add(&mut self, rows: &[(Bytes, Bytes)]) {
        for (key, record) in rows {
            self.0.update(&(key.len() as u64).to_be_bytes()).update(key);
            self.0.update(&(record.len() as u64).to_be_bytes()).update(record);
        }
    }

    pub(super) fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

/// A message as it is sent.
pub(super) fn encode(message: &GroupMessage) -> Bytes {
    let bytes =
        postcard::to_stdvec(message).expect("writing to memory cannot fail and every length is known");
    assert!(bytes.len() < PEER_FRAME_BYTES_MAX, "limits keep every message below a frame");
    Bytes::from(bytes)
}

/// A message as it came, if it is one.
pub(super) fn decode(body: &[u8]) -> Option<GroupMessage> {
    postcard::take_from_bytes(body)
        .ok()
        .filter(|(_, rest): &(_, &[u8])| rest.is_empty())
        .map(|(message, _)| message)
}

/// What watchers make of a message between two replicas of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overheard {
    /// The engine speaks: its message, to be held against the disk, or against earlier ones.
    Engine(Bytes),
    /// So many parts of a state are asked for.
    TakesParts(usize),
    /// Anything else about states, or nonsense.
    Other,
}

/// Listens to a message between two replicas of a group.
#[must_use]
pub fn overhear(body: &[u8]) -> Overheard {
    match decode(body) {
        Some(GroupMessage::Engine(message)) => Overheard::Engine(message),
        Some(GroupMessage::Take { parts, .. }) => Overheard::TakesParts(parts.iter().count()),
        _ => Overheard::Other,
    }
}

/// What a replica's engine would say, as a group message; for those who play one.
#[must_use]
pub fn as_engine(message: Bytes) -> Bytes {
    encode(&GroupMessage::Engine(message))
}
