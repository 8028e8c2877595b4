//! Written state that has not reached the tree yet, and a bounded cache of what has.
//!
//! The state of a group is the tree plus what was written since. A checkpoint *freezes* the writes so far and hands
//! them to the storage; until they are durable they stay here and mask the tree, while new writes gather beside them.

use super::record::Versioned;
use crate::ring::Position;
use bytes::Bytes;
use std::collections::BTreeMap;

/// A key with its place on the ring.
pub(super) type PlacedKey = (Position, Bytes);

/// What is known of a key: its value, or that there is none.
pub(super) type Known = Option<Versioned>;

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
        if let Some(before) = self.entries.get(&key) {
            self.bytes -= bytes_of(&key, before);
        }
        self.bytes += added;
        self.entries.insert(key, known);
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

    fn into_entries(self) -> impl Iterator<Item = (PlacedKey, Known)> {
        self.entries.into_iter()
    }
}

fn bytes_of(key: &PlacedKey, known: &Known) -> usize {
    ENTRY_OVERHEAD_BYTES + key.1.len() + known.as_ref().map_or(0, |versioned| versioned.value.len())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> PlacedKey {
        (Position(1), Bytes::copy_from_slice(name.as_bytes()))
    }

    fn known(length: usize) -> Known {
        Some(Versioned { version: 1, value: Bytes::from(vec![0; length]) })
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
