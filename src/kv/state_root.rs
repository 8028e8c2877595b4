//! The root of a group's state: one digest over everything that replicas must agree on.
//!
//! It covers every row of user data, every session with its remembered outcomes, and the position: slot, chain, time, clock
//! and the digest of all answers. Rows are hashed in buckets by ring position ([`Lattice`]), so a transferred state can be
//! checked bucket by bucket. What is kept for speed alone is left out.
//!
//! The hash of each bucket is stored beside the state, in the same batch.

use super::Applied;
use super::lattice::Lattice;
use super::record::{seal, unseal};
use crate::error::StorageError;
use crate::ring::GroupId;
use crate::storage::{StateWrite, Storage, keys};
use bytes::Bytes;
use std::collections::BTreeSet;

/// Buckets of user data, by the highest bits of their position; one more holds the sessions.
const DATA_BUCKETS: usize = 64;
const BUCKETS: usize = DATA_BUCKETS + 1;

/// The hashes of all buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateRoot {
    buckets: Vec<Lattice>,
    dirty: BTreeSet<usize>,
}

impl Default for StateRoot {
    fn default() -> Self {
        Self { buckets: vec![Lattice::default(); BUCKETS], dirty: BTreeSet::new() }
    }
}

impl StateRoot {
    /// Reads the hashes of a stored state; one that was never written is empty.
    pub fn load(storage: &dyn Storage, group: GroupId) -> Result<Self, StorageError> {
        let mut root = Self::default();
        for (index, bucket) in root.buckets.iter_mut().enumerate() {
            let raw = keys::bucket(group, u8::try_from(index).expect("few buckets"));
            if let Some(record) = storage.get(&raw)? {
                let bytes = unseal(&raw, record)?;
                *bucket = Lattice::from_bytes(&bytes)
                    .ok_or_else(|| StorageError::corrupt("the hash of a part of the state", "its size"))?;
            }
        }
        Ok(root)
    }

    /// A row changes.
    pub fn change(&mut self, raw: &[u8], old: Option<&Bytes>, new: Option<&Bytes>) {
        let Some(index) = bucket_of(raw).filter(|_| old != new) else { return };
        if let Some(record) = old {
            self.buckets[index].remove(raw, record);
        }
        if let Some(record) = new {
            self.buckets[index].add(raw, record);
        }
        self.dirty.insert(index);
    }

    /// The writes that store what has changed since the last call.
    pub fn take_writes(&mut self, group: GroupId, out: &mut Vec<StateWrite>) {
        for index in std::mem::take(&mut self.dirty) {
            let raw = keys::bucket(group, u8::try_from(index).expect("few buckets"));
            let record = seal(&raw, &self.buckets[index].to_bytes());
            out.push((raw, Some(record)));
        }
    }

    /// The writes that store all of it.
    pub fn write_all(&mut self, group: GroupId, out: &mut Vec<StateWrite>) {
        self.dirty = (0..BUCKETS).collect();
        self.take_writes(group, out);
    }

    /// The root of the state at this position.
    #[must_use]
    pub fn digest(&self, applied: &Applied) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("tetrachord v1 root of a state");
        hasher.update(&applied.slot.to_be_bytes()).update(&applied.chain).update(&[u8::from(applied.sealed)]);
        hasher.update(&applied.time.to_be_bytes()).update(&applied.clock.to_be_bytes());
        hasher.update(&applied.digest);
        for bucket in &self.buckets {
            hasher.update(&bucket.to_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

/// Which bucket a row belongs to; none if the root does not cover it.
fn bucket_of(raw: &[u8]) -> Option<usize> {
    match raw.first()? {
        b'd' | b'c' => Some(usize::from(*raw.get(1)?) / (256 / DATA_BUCKETS)),
        _ => keys::session_of(raw).map(|_| DATA_BUCKETS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Position;

    #[test]
    fn every_row_and_every_part_of_the_position_is_covered() {
        let group = GroupId(1);
        let applied = Applied { slot: 3, ..Applied::default() };
        let empty = StateRoot::default().digest(&applied);
        let rows = [
            keys::data(Position(0), b"k"),
            keys::data_piece(Position(u64::MAX), b"k", 1),
            keys::session(group, 7, 0),
        ];
        for raw in rows {
            let mut root = StateRoot::default();
            root.change(&raw, None, Some(&Bytes::from_static(b"r")));
            assert_ne!(root.digest(&applied), empty, "{raw:?}");
            let mut out = Vec::new();
            root.take_writes(group, &mut out);
            assert_eq!(out.len(), 1);
            root.change(&raw, Some(&Bytes::from_static(b"r")), None);
            assert_eq!(root.digest(&applied), empty);
        }
        let root = StateRoot::default();
        let others = [
            Applied { slot: 4, ..applied.clone() },
            Applied { chain: [1; 32], ..applied.clone() },
            Applied { time: 1, ..applied.clone() },
            Applied { clock: 1, ..applied.clone() },
            Applied { digest: [1; 32], ..applied.clone() },
            Applied { sealed: true, ..applied.clone() },
        ];
        assert!(others.iter().all(|other| root.digest(other) != empty));
        let uncovered = [keys::applied(group), keys::installing(group), keys::bucket(group, 1)];
        assert!(uncovered.iter().all(|raw| bucket_of(raw).is_none()));
    }
}
