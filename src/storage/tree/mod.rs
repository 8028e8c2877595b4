//! The tree that holds applied state: sled 0.34.7, and a barrier that really reaches the disk.
//!
//! # Recent and packed
//!
//! sled costs about 10 us and some hundred bytes of memory and disk for a record, whatever is in it. So rows lie in two
//! trees of sled: *recent* ones as a record each, as they were written; *packed* ones many to a record ([`block`]). A recent
//! row counts before a packed one of the same key, and an empty recent row says that there is none. [`pack`] turns all rows
//! into packed ones now and then, in a new directory of sled.
//!
//! # The barrier
//!
//! sled's `flush` writes its buffers with `sync_file_range`, which neither empties the drive's cache nor commits the
//! file's length. So every barrier is `flush`, then `fdatasync` of sled's one file through a second descriptor.
//!
//! # What is asked of sled
//!
//! Little: that single writes which a barrier covers are there afterwards. That many of them count together is the work
//! of [`super::redo`]; the *mark*, the first and the last write of every job, says how far a job has come.

mod block;
mod opening;
pub(super) mod pack;

use super::StateWrite;
use super::redo::Job;
use crate::error::StorageError;
use crate::limits::RECORD_BYTES_MAX;
use crate::ring::StoreId;
use block::Row;
use bytes::{Buf, BufMut, Bytes};
use opening::{failed, unless_it_panics};
use std::fs::File;
use std::path::Path;

/// Sorts behind every key of a group's state, so that it is part of no range of them.
const MARK_KEY: &[u8] = b"~mark";
const MARK_BYTES: usize = 16 + 8 + 1 + 4;

/// What a recent row holds when there is no row.
const NO_ROW: &[u8] = b"";

/// How far the writing of a job has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// No job was ever begun.
    Fresh,
    /// Some of the job's writes may be there.
    Begun(u64),
    /// All of them are.
    Complete(u64),
}

/// The open tree. Clones share it.
#[derive(Clone)]
pub(super) struct Tree {
    db: sled::Db,
    recent: sled::Tree,
    packed: sled::Tree,
    /// Whether a row that is not recent may be packed.
    has_packed: bool,
}

impl Tree {
    /// Opens the tree in a directory that exists and that nobody else uses.
    pub(super) fn open(dir: &Path, cache_bytes: u64) -> Result<Self, StorageError> {
        let db = opening::open(dir, cache_bytes)?;
        let tree =
            |name| unless_it_panics(|| db.open_tree(name))?.map_err(|error| failed("open a tree", &error));
        let (recent, packed) = (tree("kv")?, tree("packed")?);
        opening::refuse_blobs(dir)?;
        let has_packed = !unless_it_panics(|| packed.is_empty())?;
        Ok(Self { db, recent, packed, has_packed })
    }

    /// Reads one row.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        unless_it_panics(|| {
            let recent = self.recent.get(key).map_err(|error| failed("read a record", &error))?;
            match recent {
                Some(value) => Ok((*value != *NO_ROW).then(|| Bytes::copy_from_slice(&value))),
                None if self.has_packed => self.get_packed(key),
                None => Ok(None),
            }
        })?
    }

    fn get_packed(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let Some(found) = self.packed.range(..=key).next_back() else { return Ok(None) };
        let (first, block) = found.map_err(|error| failed("read a block", &error))?;
        block::find(&first, &block, key)
    }

    /// Reads rows with keys in `[from, to)` in order, at least one if there is one, until about `bytes_max`.
    pub(super) fn scan(&self, from: &[u8], to: &[u8], bytes_max: usize) -> Result<Vec<Row>, StorageError> {
        unless_it_panics(|| self.scan_rows(from, to, bytes_max))?
    }

    fn scan_rows(&self, from: &[u8], to: &[u8], bytes_max: usize) -> Result<Vec<Row>, StorageError> {
        let mut recent = self.recent.range(from..to).map(|row| {
            let (key, value) = row.map_err(|error| failed("read a range of records", &error))?;
            Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
        });
        let mut packed = self.packed_rows(from, to)?;
        let mut next_recent = recent.next().transpose()?;
        let mut next_packed = packed.next().transpose()?;
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while bytes < bytes_max {
            let is_recent = match (&next_recent, &next_packed) {
                (Some((recent, _)), Some((packed, _))) => recent <= packed,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => break,
            };
            let row = if is_recent { next_recent.take() } else { next_packed.take() };
            let row = row.expect("the smaller of the two is there");
            if is_recent {
                next_recent = recent.next().transpose()?;
            }
            let is_hidden = next_packed.as_ref().is_some_and(|(packed, _)| *packed == row.0);
            if !is_recent || is_hidden {
                next_packed = packed.next().transpose()?;
            }
            if !is_recent || row.1 != NO_ROW {
                bytes += row.0.len() + row.1.len();
                rows.push(row);
            }
        }
        Ok(rows)
    }

    /// The packed rows with keys in `[from, to)`, in order.
    fn packed_rows<'a>(
        &self,
        from: &'a [u8],
        to: &'a [u8],
    ) -> Result<impl Iterator<Item = Result<Row, StorageError>> + 'a, StorageError> {
        let reading = |error| failed("read a range of blocks", &error);
        // The block before may reach into the range.
        let before = self.packed.range(..=from).next_back().transpose().map_err(reading)?;
        let start = before.map_or_else(|| from.to_vec(), |(first, _)| first.to_vec());
        let blocks = self.packed.range(start.as_slice()..to);
        let rows = blocks.flat_map(move |found| {
            let rows = found.map_err(reading).and_then(|(first, block)| {
                block::rows(&Bytes::copy_from_slice(&first), &Bytes::copy_from_slice(&block))
            });
            match rows {
                Ok(rows) => rows.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            }
        });
        let is_within = move |row: &Result<Row, _>| row.as_ref().is_ok_and(|(key, _)| **key >= *from);
        let is_before_end = move |row: &Result<Row, _>| row.as_ref().is_ok_and(|(key, _)| **key < *to);
        Ok(rows
            .skip_while(move |row| row.is_ok() && !is_within(row))
            .take_while(move |row| row.is_err() || is_before_end(row)))
    }

    /// How far the last job has come.
    pub(super) fn mark(&self, store: StoreId) -> Result<Mark, StorageError> {
        let Some(bytes) = self.get(MARK_KEY)? else { return Ok(Mark::Fresh) };
        let damaged = |reason: &str| StorageError::corrupt("the mark of the tree", reason);
        let body = bytes.get(..MARK_BYTES - 4).ok_or_else(|| damaged("it is too short"))?;
        if bytes[MARK_BYTES - 4..] != crc32fast::hash(body).to_be_bytes() {
            return Err(damaged("its checksum is wrong"));
        }
        let mut rest = body.strip_prefix(&store.0).ok_or_else(|| damaged("another store wrote it"))?;
        let number = rest.get_u64();
        Ok(if rest == [1] { Mark::Complete(number) } else { Mark::Begun(number) })
    }

    fn write_mark(&self, store: StoreId, number: u64, is_complete: bool) -> Result<(), StorageError> {
        let mut bytes = Vec::with_capacity(MARK_BYTES);
        bytes.put_slice(&store.0);
        bytes.put_u64(number);
        bytes.put_u8(u8::from(is_complete));
        bytes.put_u32(crc32fast::hash(&bytes));
        self.insert(MARK_KEY, &bytes)
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        assert!(key.len() + value.len() <= RECORD_BYTES_MAX, "larger records are cut by the writer");
        assert!(!value.is_empty(), "an empty record would say that there is none");
        self.recent.insert(key, value).map(drop).map_err(|error| failed("write applied state", &error))
    }

    fn remove(&self, key: &[u8]) -> Result<(), StorageError> {
        let removed = if self.has_packed { self.recent.insert(key, NO_ROW) } else { self.recent.remove(key) };
        removed.map(drop).map_err(|error| failed("remove applied state", &error))
    }

    fn write(&self, (key, value): &StateWrite) -> Result<(), StorageError> {
        assert!(**key < *MARK_KEY, "what lies behind the mark is not packed");
        match value {
            Some(value) => self.insert(key, value),
            None => self.remove(key),
        }
    }

    /// Carries out a job that was written down: each write by itself, so that no reader waits.
    pub(super) fn carry_out(&self, store: StoreId, job: &Job) -> Result<(), StorageError> {
        self.write_mark(store, job.number, false)?;
        job.writes.iter().try_for_each(|write| self.write(write))?;
        self.write_mark(store, job.number, true)
    }

    /// Writes what sled holds in memory to its file; only [`Barrier::sync`] makes it durable.
    pub(super) fn flush(&self) -> Result<(), StorageError> {
        self.db.flush().map(drop).map_err(|error| failed("flush sled", &error))
    }
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").finish_non_exhaustive()
    }
}

/// sled's one file, by a descriptor of our own.
#[derive(Debug)]
pub(super) struct Barrier(File);

impl Barrier {
    pub(super) fn open(dir: &Path) -> Result<Self, StorageError> {
        let file = File::open(dir.join("db"));
        file.map(Self).map_err(|error| StorageError::io("open sled's file", error))
    }

    /// Everything that was written to the tree before is on disk when this returns.
    pub(super) fn sync(&self, tree: &Tree) -> Result<(), StorageError> {
        tree.flush()?;
        self.0.sync_data().map_err(|error| StorageError::io("sync sled's file", error))
    }

    /// Bytes of sled's file.
    pub(super) fn file_bytes(&self) -> Result<u64, StorageError> {
        let metadata = self.0.metadata();
        metadata.map(|found| found.len()).map_err(|error| StorageError::io("look at sled's file", error))
    }
}

#[cfg(test)]
mod tests;
