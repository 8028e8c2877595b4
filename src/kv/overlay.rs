//! Written state that has not reached the tree yet, and a bounded cache of what has.
//!
//! The state of a group is the tree plus what was written since. A checkpoint *freezes* the writes so far and hands
//! them to the storage; until they are durable they stay here and mask the tree, while new writes gather beside them.

use super::record::Record;
use crate::error::StorageError;
use crate::ring::Position;
use crate::storage::{Commit, StateWrite, Storage};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// A key with its place on the ring.
pub(super) type PlacedKey = (Position, Bytes);

/// What is known of a key: its value, or that there is none.
pub(super) type Known = Option<Record>;

const ENTRY_OVERHEAD_BYTES: usize = 128;

/// Writes by key.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    entries: BTreeMap<PlacedKey, Known>,
    bytes: usize,
}

impl Overlay {
    pub(super) fn get(&self, key: &PlacedKey) -> Option<&Known> {
        self.entries.get(key)
    }

    pub(super) fn put(&mut self, key: PlacedKey, known: Known) {
        let added = bytes_of(&key, &known);
        self.bytes += added;
        match self.entries.entry(key) {
            Entry::Vacant(vacant) => drop(vacant.insert(known)),
            Entry::Occupied(mut occupied) => {
                self.bytes -= bytes_of(occupied.key(), occupied.get());
                occupied.insert(known);
            }
        }
        assert!(self.bytes >= added, "the count covers every entry");
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&PlacedKey, &Known)> {
        self.entries.iter()
    }

    /// Takes up later writes.
    pub(super) fn absorb(&mut self, later: Self) {
        later.into_entries().for_each(|(key, known)| self.put(key, known));
    }

    fn into_entries(self) -> impl Iterator<Item = (PlacedKey, Known)> {
        self.entries.into_iter()
    }
}

fn bytes_of(key: &PlacedKey, known: &Known) -> usize {
    ENTRY_OVERHEAD_BYTES + key.1.len() + known.as_ref().map_or(0, |record| record.value.len())
}

/// A cache in two generations: what is used moves to the young one; when that is full it becomes the old one, and the
/// old one is dropped.
#[derive(Debug)]
pub(super) struct Cache {
    young: Overlay,
    old: Overlay,
    generation_bytes_max: usize,
}

impl Cache {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { young: Overlay::default(), old: Overlay::default(), generation_bytes_max: bytes_max / 2 }
    }

    pub(super) fn get(&mut self, key: &PlacedKey) -> Option<Known> {
        if let Some(known) = self.young.get(key) {
            return Some(known.clone());
        }
        let known = self.old.get(key)?.clone();
        self.put(key.clone(), known.clone());
        Some(known)
    }

    pub(super) fn put(&mut self, key: PlacedKey, known: Known) {
        self.young.put(key, known);
        if self.young.bytes() > self.generation_bytes_max {
            self.old = std::mem::take(&mut self.young);
        }
        assert!(self.young.bytes() <= self.generation_bytes_max, "a generation is bounded");
    }

    pub(super) fn absorb(&mut self, written: Overlay) {
        for (key, known) in written.into_entries() {
            self.put(key, known);
        }
    }
}

/// Rows of checkpoints that are being written: what the tree will hold.
#[derive(Debug, Default)]
pub(super) struct Pending {
    rows: BTreeMap<Bytes, (u64, Option<Bytes>)>,
    last: u64,
    written: u64,
}

impl Pending {
    /// The checkpoint after this one, counted from 1 behind those that are written, becomes part of it.
    pub(super) fn join(&mut self, nth: u64) {
        let first = self.written + nth;
        assert!(first < self.last, "there is one behind it");
        let behind = self.rows.values_mut().filter(|(checkpoint, _)| *checkpoint > first);
        behind.for_each(|(checkpoint, _)| *checkpoint -= 1);
        self.last -= 1;
    }

    /// A checkpoint begins to be written.
    pub(super) fn add(&mut self, writes: &[StateWrite]) {
        self.last += 1;
        self.rows.extend(writes.iter().map(|(raw, record)| (raw.clone(), (self.last, record.clone()))));
    }

    /// The oldest checkpoint is in the tree.
    pub(super) fn written(&mut self) {
        self.written += 1;
        assert!(self.written <= self.last, "only what was begun is written");
        let written = self.written;
        self.rows.retain(|_, (checkpoint, _)| *checkpoint > written);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The tree as it will be.
    pub(super) fn over<'a>(&'a self, storage: &'a dyn Storage) -> AsWritten<'a> {
        AsWritten { pending: self, storage }
    }
}

/// A store whose rows are those that are being written to it. For single rows only.
pub(super) struct AsWritten<'a> {
    pending: &'a Pending,
    storage: &'a dyn Storage,
}

impl Storage for AsWritten<'_> {
    fn submit(&mut self, _: Commit) {
        unreachable!("it is only read")
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        match self.pending.rows.get(key) {
            Some((_, record)) => Ok(record.clone()),
            None => self.storage.get(key),
        }
    }

    fn scan(&self, _: &[u8], _: &[u8], _: usize) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        unreachable!("single rows are read")
    }

    fn log_end(&self) -> u64 {
        self.storage.log_end()
    }

    fn log_bytes(&self) -> u64 {
        self.storage.log_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> PlacedKey {
        (Position(1), Bytes::copy_from_slice(name.as_bytes()))
    }

    fn known(length: usize) -> Known {
        Some(Record {
            version: 1,
            kind: super::super::operation::Kind::Plain,
            expiry: 0,
            value: vec![0; length].into(),
        })
    }

    #[test]
    fn overwriting_a_key_does_not_count_it_twice() {
        let mut overlay = Overlay::default();
        overlay.put(key("a"), known(100));
        let once = overlay.bytes();
        overlay.put(key("a"), known(100));
        assert_eq!(overlay.bytes(), once);
        overlay.put(key("a"), None);
        assert_eq!(overlay.bytes(), once - 100);
    }

    #[test]
    fn the_cache_stays_bounded_and_keeps_what_is_used() {
        let mut cache = Cache::new(10_000);
        cache.put(key("hot"), known(10));
        for index in 0..1000 {
            cache.put(key(&format!("cold{index}")), known(10));
            assert_eq!(cache.get(&key("hot")), Some(known(10)));
            assert!(cache.young.bytes() + cache.old.bytes() <= 11_000);
        }
        assert_eq!(cache.get(&key("cold0")), None);
    }
}
