//! Packing: all rows are copied, many to a record, into a new directory of sled, which then takes the place of the old one.
//!
//! sled's file is several times as large as what it holds, keeps some memory for every record, and gives neither back. A copy
//! in which no record is ever written twice has nothing void in it.
//!
//! The copy is made in small steps, in the order of the keys, while jobs go on: a write behind the *cursor* goes to the copy
//! too, as a recent row; one before it will be copied when the cursor comes there. Nobody reads the copy until it is whole
//! ([`crate::storage::generation`]), so a crash before just leaves something to clear away.
//!
//! # Why records are announced
//!
//! sled rewrites a page of up to sixteen records whenever ten changes have gathered, and when it splits. Written in order,
//! every record would be written three times, and half of the file be void. So some records are inserted without content
//! first: pages split while they are small, and the content then comes as few changes that stay where they are.

use super::block::{Builder, Row};
use super::opening::failed;
use super::{Barrier, MARK_KEY, StateWrite, StoreId, Tree};
use crate::error::StorageError;
use bytes::Bytes;
use std::path::Path;

/// Bytes of rows that are copied in one step.
const STEP_BYTES: usize = 256 << 10;

/// Records that are announced together.
const ANNOUNCED: usize = 256;

/// A copy in the making.
#[derive(Debug)]
pub(in crate::storage) struct Packing {
    next: Tree,
    barrier: Barrier,
    /// Rows below it are in the copy, or wait to be written to it.
    cursor: Vec<u8>,
    builder: Builder,
    blocks: Vec<Row>,
    step_bytes: usize,
}

impl Packing {
    /// Begins a copy in an empty directory.
    pub(in crate::storage) fn begin(dir: &Path, cache_bytes: u64) -> Result<Self, StorageError> {
        // What is removed behind the cursor is packed, or will be: its removal must be noted.
        let next = Tree { has_packed: true, ..Tree::open(dir, cache_bytes)? };
        let barrier = Barrier::open(dir)?;
        Ok(Self {
            next,
            barrier,
            cursor: Vec::new(),
            builder: Builder::default(),
            blocks: Vec::new(),
            step_bytes: STEP_BYTES,
        })
    }

    /// The same in very small steps.
    #[cfg(test)]
    pub(super) fn begin_small(dir: &Path, cache_bytes: u64) -> Self {
        Self { step_bytes: 1_000, ..Self::begin(dir, cache_bytes).expect("the directory is empty") }
    }

    /// Copies a little more; false when everything was.
    pub(in crate::storage) fn step(&mut self, tree: &Tree) -> Result<bool, StorageError> {
        let rows = tree.scan(&self.cursor, MARK_KEY, self.step_bytes)?;
        let Some((last, _)) = rows.last() else {
            self.blocks.extend(self.builder.finish());
            self.write_blocks()?;
            return Ok(false);
        };
        assert!(**last >= *self.cursor, "the cursor never goes back");
        self.cursor = [last.as_ref(), &[0]].concat();
        self.blocks.extend(rows.into_iter().filter_map(|row| self.builder.push(row)));
        if self.blocks.len() >= ANNOUNCED {
            self.write_blocks()?;
        }
        Ok(true)
    }

    /// Follows a job that the tree has carried out.
    pub(in crate::storage) fn follow(&self, writes: &[StateWrite]) -> Result<(), StorageError> {
        let is_behind = |write: &&StateWrite| *write.0 < *self.cursor;
        writes.iter().filter(is_behind).try_for_each(|write| self.next.write(write))
    }

    /// Makes the copy durable: all rows, as of the job.
    pub(in crate::storage) fn finish(
        self,
        store: StoreId,
        job: u64,
    ) -> Result<(Tree, Barrier), StorageError> {
        assert!(self.blocks.is_empty(), "a copy is finished after its last step");
        self.next.write_mark(store, job, true)?;
        self.barrier.sync(&self.next)?;
        Ok((self.next, self.barrier))
    }

    fn write_blocks(&mut self) -> Result<(), StorageError> {
        let insert = |first: &Bytes, block: &[u8]| {
            self.next.packed.insert(first, block).map_err(|error| failed("write a block", &error))
        };
        for (first, _) in &self.blocks {
            insert(first, &[])?;
        }
        for (first, block) in &self.blocks {
            insert(first, block)?;
        }
        self.blocks.clear();
        Ok(())
    }
}
