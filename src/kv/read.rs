//! What the state says of a key: in memory, or in the tree.

use super::machine::Machine;
use super::operation::{Client, check_key};
use super::overlay::{Known, PlacedKey};
use super::record::{self, Head, Record};
use super::reply::{Failure, Reply};
use crate::error::StorageError;
use crate::limits::{READ_BYTES_PER_SLOT_MAX, VALUE_BYTES_CAP};
use crate::ring::Position;
use crate::storage::Storage;
use bytes::Bytes;
use std::collections::BTreeMap;

/// What a group knows of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Its record, if there is one.
    Record(Option<Record>),
    /// The key belongs to another group.
    NotOurs,
}

/// What the reads that are ordered in one slot have come to: all of them answer a bounded number of bytes, and those of one client no
/// more than half of what the others leave.
#[derive(Debug, Default)]
pub(super) struct SlotReads {
    all: usize,
    of_clients: BTreeMap<Client, usize>,
}

impl SlotReads {
    /// Whether the client may read another key. Then even the largest value fits: nothing is read that is not answered, because to
    /// read costs as much as to answer.
    fn may_read(&self, client: &Client) -> bool {
        let own = self.of_clients.get(client).copied().unwrap_or_default();
        own + VALUE_BYTES_CAP <= READ_BYTES_PER_SLOT_MAX - self.all
    }

    fn add(&mut self, client: Client, bytes: usize) {
        self.all += bytes;
        *self.of_clients.entry(client).or_default() += bytes;
        assert!(self.all <= READ_BYTES_PER_SLOT_MAX, "no value is larger than the largest");
    }
}

impl Machine {
    /// Reads a key from the applied state.
    pub fn get(&mut self, storage: &dyn Storage, key: &Bytes) -> Result<Found, StorageError> {
        let position = Position::of_key(key);
        if !self.tenure.range.contains(position) {
            return Ok(Found::NotOurs);
        }
        self.find(storage, &(position, key.clone())).map(Found::Record)
    }

    /// Reads a key in order with all changes. Nothing is remembered of it: asked again, it reads again, and the client takes answers of
    /// one slot only. So it needs no session.
    pub(super) fn read_in_order(
        &mut self,
        storage: &dyn Storage,
        client: &Client,
        key: &Bytes,
        reads: &mut SlotReads,
    ) -> Result<Reply, StorageError> {
        if check_key(key, &self.rules.limits).is_err() {
            return Ok(Reply::Failed(Failure::Malformed));
        }
        if !reads.may_read(client) {
            return Ok(Reply::Failed(Failure::ReadTooMuch));
        }
        let found = match self.get(storage, key)? {
            Found::Record(found) => found,
            Found::NotOurs => return Ok(Reply::Failed(Failure::WrongGroup)),
        };
        if let Some(found) = &found {
            reads.add(*client, found.value.len());
        }
        let found = found.map(|found| (found.version, found.value));
        Ok(Reply::Value { found, time: self.reached.time })
    }

    /// What is in memory of a key.
    fn in_memory(&mut self, placed: &PlacedKey) -> Option<Known> {
        let frozen = || self.frozen.iter().rev().find_map(|overlay| overlay.get(placed));
        let written = self.fresh.get(placed).or_else(frozen);
        if let Some(known) = written {
            return Some(known.clone());
        }
        self.cache.get(placed)
    }

    pub(super) fn find(
        &mut self,
        storage: &dyn Storage,
        placed: &PlacedKey,
    ) -> Result<Option<Record>, StorageError> {
        if let Some(known) = self.in_memory(placed) {
            return Ok(known);
        }
        let known = record::read(storage, placed.0, &placed.1)?;
        self.cache.put(placed.clone(), known.clone());
        Ok(known)
    }

    /// What can be told of a key from its first record: a write whose outcome follows from that reads no more, however large
    /// the value is.
    pub(super) fn head(
        &mut self,
        storage: &dyn Storage,
        placed: &PlacedKey,
    ) -> Result<Option<Head>, StorageError> {
        if let Some(known) = self.in_memory(placed) {
            return Ok(known.map(Head::from));
        }
        let head = record::read_head(storage, placed.0, &placed.1)?;
        let known = head.as_ref().map(Head::whole);
        if known != Some(None) {
            self.cache.put(placed.clone(), known.flatten());
        }
        Ok(head)
    }
}
