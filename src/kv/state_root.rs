//! The root of a group's state: one digest over everything that replicas must agree on.
//!
//! It covers every row of user data, every session with its remembered outcomes, and what the state's header says. Rows are hashed in parts
//! ([`Parts`], [`Lattice`]), and the header has the hash over the hashes of all parts: so a state is checked from the top down, part by
//! part, and two states are compared by their parts.
//!
//! Beside the hash of a part stands how many rows it has and how many bytes they take, under the root as well: whoever is given
//! a part can tell at each row whether there may be another, and need not store what never ends.
//!
//! The hash of each part is stored beside the state, in the same batch.

use super::header::Header;
use super::lattice::{LATTICE_BYTES, Lattice};
use super::parts::{PartSet, Parts, hashed};
use super::reached::Reached;
use super::record::{seal, unseal};
use crate::error::StorageError;
use crate::ring::Tenure;
use crate::storage::{StateWrite, Storage, keys};
use bytes::Bytes;

/// What a part comes to. Numbers wrap around, as the lanes of a hash do: a stored one may be wrong, and others refute it then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sum {
    hash: Lattice,
    rows: u64,
    bytes: u64,
}

impl Sum {
    fn add(&mut self, raw: &[u8], record: &[u8]) {
        let (name, body) = hashed(raw, record);
        self.hash.add(&name, body);
        self.rows = self.rows.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add((raw.len() + record.len()) as u64);
    }

    fn remove(&mut self, raw: &[u8], record: &[u8]) {
        let (name, body) = hashed(raw, record);
        self.hash.remove(&name, body);
        self.rows = self.rows.wrapping_sub(1);
        self.bytes = self.bytes.wrapping_sub((raw.len() + record.len()) as u64);
    }

    fn to_bytes(&self) -> Vec<u8> {
        [self.hash.to_bytes().as_slice(), &self.rows.to_be_bytes(), &self.bytes.to_be_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (hash, counts) = bytes.split_at_checked(LATTICE_BYTES)?;
        let (rows, bytes) = counts.split_first_chunk()?;
        let (rows, bytes) = (u64::from_be_bytes(*rows), u64::from_be_bytes(bytes.try_into().ok()?));
        Some(Self { hash: Lattice::from_bytes(hash)?, rows, bytes })
    }
}

/// The hashes of all parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateRoot {
    parts: Parts,
    sums: Vec<Sum>,
    dirty: PartSet,
}

impl StateRoot {
    /// Of a state without any row.
    #[must_use]
    pub fn empty(parts: Parts) -> Self {
        let sums = vec![Sum::default(); usize::from(parts.count())];
        Self { parts, sums, dirty: PartSet::default() }
    }

    /// Reads the hashes of a stored state; one that was never written is empty.
    pub fn load(storage: &dyn Storage, parts: Parts) -> Result<Self, StorageError> {
        let mut root = Self::empty(parts);
        for (part, sum) in (0..).zip(&mut root.sums) {
            let raw = keys::part_hash(parts.group(), part);
            if let Some(record) = storage.get(&raw)? {
                let bytes = unseal(&raw, record)?;
                *sum = Sum::from_bytes(&bytes)
                    .ok_or_else(|| StorageError::corrupt("the hash of a part of the state", "its size"))?;
            }
        }
        Ok(root)
    }

    /// The hashes of all parts, as another replica may have sent them; none if they are not what hashes look like.
    #[must_use]
    pub fn from_hashes(parts: Parts, hashes: &[Bytes]) -> Option<Self> {
        if hashes.len() != usize::from(parts.count()) {
            return None;
        }
        let sums: Vec<Sum> = hashes.iter().map(|hash| Sum::from_bytes(hash)).collect::<Option<_>>()?;
        Some(Self { parts, sums, dirty: PartSet::default() })
    }

    /// The parts that there are.
    #[must_use]
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The hashes of all parts.
    #[must_use]
    pub fn hashes(&self) -> Vec<Bytes> {
        self.sums.iter().map(|part| Bytes::from(part.to_bytes())).collect()
    }

    /// The parts in which two states differ.
    #[must_use]
    pub fn differing(&self, other: &Self) -> PartSet {
        PartSet::of(|part| self.parts.all().contains(*part) && !self.agrees(other, *part))
    }

    /// Whether two states are the same in this part.
    #[must_use]
    pub fn agrees(&self, other: &Self, part: u8) -> bool {
        self.sums[usize::from(part)] == other.sums[usize::from(part)]
    }

    /// Bytes of a part's rows.
    #[must_use]
    pub fn bytes(&self, part: u8) -> u64 {
        self.sums[usize::from(part)].bytes
    }

    /// Whether what is here of a part may be the beginning of what is there: no more rows, and no more bytes.
    #[must_use]
    pub fn is_within(&self, other: &Self, part: u8) -> bool {
        let (here, there) = (&self.sums[usize::from(part)], &other.sums[usize::from(part)]);
        here.rows <= there.rows && here.bytes <= there.bytes
    }

    /// A row changes.
    pub fn change(&mut self, raw: &[u8], old: Option<&Bytes>, new: Option<&Bytes>) {
        let is_hashed = |part: &u8| old != new && self.parts.is_hashed(*part);
        let Some(part) = self.parts.part_of(raw).filter(is_hashed) else { return };
        let sum = &mut self.sums[usize::from(part)];
        if let Some(record) = old {
            sum.remove(raw, record);
        }
        if let Some(record) = new {
            sum.add(raw, record);
        }
        self.dirty.insert(part);
    }

    /// The writes that store what has changed since the last call.
    pub fn take_writes(&mut self, out: &mut Vec<StateWrite>) {
        for part in std::mem::take(&mut self.dirty).iter() {
            let raw = keys::part_hash(self.parts.group(), part);
            let record = seal(&raw, &self.sums[usize::from(part)].to_bytes());
            out.push((raw, Some(record)));
        }
    }

    /// The writes that store all of it.
    pub fn write_all(&mut self, out: &mut Vec<StateWrite>) {
        self.dirty = self.parts.all();
        self.take_writes(out);
    }

    /// The root of the state at this position.
    #[must_use]
    pub fn digest(&self, tenure: &Tenure, reached: &Reached) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("tetrachord v2 parts of a state");
        self.sums.iter().for_each(|sum| _ = hasher.update(&sum.to_bytes()));
        Header::root(&[Header::new(tenure, reached, *hasher.finalize().as_bytes())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::record::seal;
    use crate::ring::{Position, found_without_keys};

    #[test]
    fn every_row_is_covered() {
        let tenure = found_without_keys(1, 3, 3).remove(0);
        let (group, parts, reached) = (tenure.group(), Parts::from(&tenure), Reached::default());
        let empty = StateRoot::empty(parts).digest(&tenure, &reached);
        let rows = [
            keys::data(Position(0), b"k"),
            keys::data_piece(Position(u64::MAX), b"k", 1),
            keys::session(group, 7),
            keys::outcome(group, 7, 9),
        ];
        for raw in rows {
            let mut root = StateRoot::empty(parts);
            let record = seal(&raw, b"r");
            root.change(&raw, None, Some(&record));
            assert_ne!(root.digest(&tenure, &reached), empty, "{raw:?}");
            let mut out = Vec::new();
            root.take_writes(&mut out);
            assert_eq!(out.len(), 1);
            root.change(&raw, Some(&record), None);
            assert_eq!(root.digest(&tenure, &reached), empty);
        }
    }
}
