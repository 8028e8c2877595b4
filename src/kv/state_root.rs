//! The root of a group's state: one digest over everything that replicas must agree on.
//!
//! It covers every row of user data, every session with its remembered outcomes, and the position: slot, chain, time, clock
//! and the digest of all answers. Rows are hashed in *parts* by ring position ([`Lattice`]), and the root is over the hashes
//! of all parts: so a state is checked from the top down, part by part, and two states are compared by their parts. What
//! is kept for speed alone is left out.
//!
//! Beside the hash of a part stands how many rows it has and how many bytes they take, under the root as well: whoever is given
//! a part can tell at each row whether there may be another, and need not store what never ends.
//!
//! The hash of each part is stored beside the state, in the same batch.

use super::lattice::{LATTICE_BYTES, Lattice};
use super::reached::Reached;
use super::record::{seal, unseal};
use crate::error::StorageError;
use crate::ring::{GroupId, Position, RingInterval};
use crate::storage::{StateWrite, Storage, keys};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Parts of user data, by the highest bits of their position; one more holds the sessions.
const DATA_PARTS: u8 = 64;
const PARTS: u8 = DATA_PARTS + 1;

/// Some of the parts of a state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartSet(u128);

impl PartSet {
    /// All parts.
    pub const ALL: Self = Self((1 << PARTS) - 1);

    /// The parts for which this holds.
    pub fn of(holds: impl FnMut(&u8) -> bool) -> Self {
        Self((0..PARTS).filter(holds).fold(0, |set, part| set | 1 << part))
    }

    /// Whether the part is among them.
    #[must_use]
    pub fn contains(self, part: u8) -> bool {
        part < PARTS && self.0 & (1 << part) != 0
    }

    /// Adds a part.
    pub fn insert(&mut self, part: u8) {
        assert!(part < PARTS, "there is no such part");
        self.0 |= 1 << part;
    }

    /// The parts, ascending. What is no part of a state is left out.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..PARTS).filter(move |part| self.contains(*part))
    }

    /// The bytes that are stored.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// From the bytes that are stored; none if they name what is no part.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        let set = u128::from_be_bytes(bytes);
        (set & !Self::ALL.0 == 0).then_some(Self(set))
    }
}

/// The part that comes behind this one.
#[must_use]
pub fn part_after(part: u8) -> u8 {
    if part + 1 < PARTS { part + 1 } else { 0 }
}

/// The ranges `[from, to)` of raw keys whose rows make up a part of a group's state, in order.
#[must_use]
pub fn part_bounds(part: u8, group: GroupId, range: RingInterval) -> Vec<(Bytes, Bytes)> {
    assert!(part < PARTS, "there is no such part");
    if part == DATA_PARTS {
        return vec![keys::session_bounds(group)];
    }
    let width = u64::MAX / u64::from(DATA_PARTS) + 1;
    let (first, last) = (u64::from(part) * width, u64::from(part) * width + (width - 1));
    let cut = |(from, to): (Position, Position)| (from.0.max(first), to.0.min(last));
    let within = range.linear().into_iter().map(cut).filter(|(from, to)| from <= to);
    let mut bounds: Vec<(Bytes, Bytes)> =
        within.flat_map(|(from, to)| keys::data_bounds(Position(from), Position(to))).collect();
    bounds.sort_unstable();
    bounds
}

#[cfg(test)]
thread_local! {
    /// The broken variant whose root does not cover what was answered: a test must notice.
    pub(crate) static LEAVES_OUT_SESSIONS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// What a part comes to. Numbers wrap around, as the lanes of a hash do: a stored one may be wrong, and others refute it then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sum {
    hash: Lattice,
    rows: u64,
    bytes: u64,
}

impl Sum {
    fn add(&mut self, raw: &[u8], record: &[u8]) {
        self.hash.add(raw, record);
        self.rows = self.rows.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add((raw.len() + record.len()) as u64);
    }

    fn remove(&mut self, raw: &[u8], record: &[u8]) {
        self.hash.remove(raw, record);
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
    parts: Vec<Sum>,
    dirty: PartSet,
}

impl Default for StateRoot {
    fn default() -> Self {
        Self { parts: vec![Sum::default(); usize::from(PARTS)], dirty: PartSet::default() }
    }
}

impl StateRoot {
    /// Reads the hashes of a stored state; one that was never written is empty.
    pub fn load(storage: &dyn Storage, group: GroupId) -> Result<Self, StorageError> {
        let mut root = Self::default();
        for (part, sum) in (0..PARTS).zip(&mut root.parts) {
            let raw = keys::part_hash(group, part);
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
    pub fn from_hashes(hashes: &[Bytes]) -> Option<Self> {
        if hashes.len() != usize::from(PARTS) {
            return None;
        }
        let parts: Vec<Sum> = hashes.iter().map(|hash| Sum::from_bytes(hash)).collect::<Option<_>>()?;
        Some(Self { parts, dirty: PartSet::default() })
    }

    /// The hashes of all parts.
    #[must_use]
    pub fn hashes(&self) -> Vec<Bytes> {
        self.parts.iter().map(|part| Bytes::from(part.to_bytes())).collect()
    }

    /// The parts in which two states differ.
    #[must_use]
    pub fn differing(&self, other: &Self) -> PartSet {
        PartSet::of(|part| !self.agrees(other, *part))
    }

    /// Whether two states are the same in this part.
    #[must_use]
    pub fn agrees(&self, other: &Self, part: u8) -> bool {
        self.parts[usize::from(part)] == other.parts[usize::from(part)]
    }

    /// Bytes of a part's rows.
    #[must_use]
    pub fn bytes(&self, part: u8) -> u64 {
        self.parts[usize::from(part)].bytes
    }

    /// Whether what is here of a part may be the beginning of what is there: no more rows, and no more bytes.
    #[must_use]
    pub fn is_within(&self, other: &Self, part: u8) -> bool {
        let (here, there) = (&self.parts[usize::from(part)], &other.parts[usize::from(part)]);
        here.rows <= there.rows && here.bytes <= there.bytes
    }

    /// A row changes.
    pub fn change(&mut self, raw: &[u8], old: Option<&Bytes>, new: Option<&Bytes>) {
        #[cfg(test)]
        if LEAVES_OUT_SESSIONS.get() && part_of(raw) == Some(DATA_PARTS) {
            return;
        }
        let Some(part) = part_of(raw).filter(|_| old != new) else { return };
        let sum = &mut self.parts[usize::from(part)];
        if let Some(record) = old {
            sum.remove(raw, record);
        }
        if let Some(record) = new {
            sum.add(raw, record);
        }
        self.dirty.insert(part);
    }

    /// The writes that store what has changed since the last call.
    pub fn take_writes(&mut self, group: GroupId, out: &mut Vec<StateWrite>) {
        for part in std::mem::take(&mut self.dirty).iter() {
            let raw = keys::part_hash(group, part);
            let record = seal(&raw, &self.parts[usize::from(part)].to_bytes());
            out.push((raw, Some(record)));
        }
    }

    /// The writes that store all of it.
    pub fn write_all(&mut self, group: GroupId, out: &mut Vec<StateWrite>) {
        self.dirty = PartSet::ALL;
        self.take_writes(group, out);
    }

    /// The root of the state at this position.
    #[must_use]
    pub fn digest(&self, reached: &Reached) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("tetrachord v1 root of a state");
        hasher.update(&reached.slot.to_be_bytes()).update(&reached.chain).update(&[u8::from(reached.sealed)]);
        for number in [reached.time, reached.session_time, reached.clock] {
            hasher.update(&number.to_be_bytes());
        }
        hasher.update(&reached.digest);
        for part in &self.parts {
            hasher.update(&part.to_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

/// Which part a row belongs to; none if the root does not cover it.
#[must_use]
pub fn part_of(raw: &[u8]) -> Option<u8> {
    match raw.first()? {
        b'd' | b'c' => Some(*raw.get(1)? / (255 / DATA_PARTS + 1)),
        _ => keys::session_row(raw).map(|_| DATA_PARTS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Position;

    #[test]
    fn every_row_and_every_part_of_the_position_is_covered() {
        let group = GroupId(1);
        let reached = Reached { slot: 3, ..Reached::default() };
        let empty = StateRoot::default().digest(&reached);
        let rows = [
            keys::data(Position(0), b"k"),
            keys::data_piece(Position(u64::MAX), b"k", 1),
            keys::session(group, 7),
            keys::outcome(group, 7, 9),
        ];
        for raw in rows {
            let mut root = StateRoot::default();
            root.change(&raw, None, Some(&Bytes::from_static(b"r")));
            assert_ne!(root.digest(&reached), empty, "{raw:?}");
            let mut out = Vec::new();
            root.take_writes(group, &mut out);
            assert_eq!(out.len(), 1);
            root.change(&raw, Some(&Bytes::from_static(b"r")), None);
            assert_eq!(root.digest(&reached), empty);
        }
        let root = StateRoot::default();
        let others = [
            Reached { slot: 4, ..reached.clone() },
            Reached { chain: [1; 32], ..reached.clone() },
            Reached { time: 1, ..reached.clone() },
            Reached { session_time: 1, ..reached.clone() },
            Reached { clock: 1, ..reached.clone() },
            Reached { digest: [1; 32], ..reached.clone() },
            Reached { sealed: true, ..reached.clone() },
        ];
        assert!(others.iter().all(|other| root.digest(other) != empty));
        let uncovered = [keys::applied(group), keys::installing(group), keys::part_hash(group, 1)];
        assert!(uncovered.iter().all(|raw| part_of(raw).is_none()));
    }

    #[test]
    fn every_row_lies_in_the_bounds_of_its_part_and_of_no_other() {
        let group = GroupId(1);
        let whole = RingInterval { start: Position(7), end: Position(7) };
        let is_within = |part: u8, range, raw: &Bytes| {
            part_bounds(part, group, range).iter().any(|(from, to)| from <= raw && raw < to)
        };
        let width = 1u64 << 58;
        for position in [0, 1, width - 1, width, 5 * width + 3, u64::MAX - width, u64::MAX] {
            for raw in [keys::data(Position(position), b"k"), keys::data_piece(Position(position), b"k", 3)] {
                let own = part_of(&raw).unwrap();
                assert_eq!(u64::from(own), position / width);
                assert!(PartSet::ALL.iter().all(|part| is_within(part, whole, &raw) == (part == own)));
            }
        }
        let outcome = keys::outcome(group, u128::MAX, 9);
        assert!(PartSet::ALL.iter().all(|part| is_within(part, whole, &outcome) == (part == DATA_PARTS)));
        // A range that wraps within one part.
        let wrapped = RingInterval { start: Position(20), end: Position(10) };
        let bounds = part_bounds(0, group, wrapped);
        assert!(bounds.len() == 4 && bounds.is_sorted());
        let raw = |position| keys::data(Position(position), b"k");
        assert!(is_within(0, wrapped, &raw(10)) && is_within(0, wrapped, &raw(21)));
        assert!(!is_within(0, wrapped, &raw(11)) && !is_within(0, wrapped, &raw(20)));
        assert_eq!(PartSet::from_bytes(PartSet::ALL.to_bytes()), Some(PartSet::ALL));
        assert_eq!(PartSet::from_bytes([255; 16]), None);
    }
}
