//! A store in memory that forgets what was not flushed. For tests and simulations of whole nodes.
//!
//! The disk outlives the store: clone the [`MemoryDisk`], drop the store, and open the disk again. Nothing becomes
//! durable by itself; the owner decides when each barrier completes, and what a crash keeps.

use super::{Commit, CommitId, LogRecord, Recovery, StateWrite, Storage, keys, sweep};
use crate::error::StorageError;
use crate::limits::RECORD_BYTES_MAX;
use crate::ring::StoreId;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Debug, Default)]
struct Disk {
    log: Vec<LogRecord>,
    log_bytes: u64,
    state: BTreeMap<Bytes, Bytes>,
    pending: VecDeque<Commit>,
    unwritten: VecDeque<(CommitId, Unwritten)>,
    store: StoreId,
    incarnation: u64,
    flushed: u64,
    replacements: u64,
}

/// The state writes of a commit.
#[derive(Debug, Default)]
struct Unwritten {
    batches: VecDeque<Vec<StateWrite>>,
    replaces_tree: bool,
}

/// What survives a crash, and what would not.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<Disk>>);

impl MemoryDisk {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().expect("no holder of the lock panics while it holds it")
    }

    /// An empty disk whose store has this name; the default one has a name of zeros.
    #[must_use]
    pub fn named(store: StoreId) -> Self {
        Self(Arc::new(Mutex::new(Disk { store, ..Disk::default() })))
    }

    /// A copy of what is durable, as somebody makes who keeps one to put it back.
    #[must_use]
    pub fn copy(&self) -> Self {
        let disk = self.disk();
        Self(Arc::new(Mutex::new(Disk {
            log: disk.log.clone(),
            state: disk.state.clone(),
            pending: VecDeque::new(),
            unwritten: VecDeque::new(),
            ..*disk
        })))
    }

    /// How often the store was opened, and how far its log is durable.
    #[must_use]
    pub fn age(&self) -> (u64, u64) {
        let disk = self.disk();
        (disk.incarnation, disk.flushed)
    }

    /// Opens the store. What was pending is lost: call [`Self::crash`] first to keep a part of it.
    #[must_use]
    pub fn open(&self) -> (MemoryStorage, Recovery) {
        let mut disk = self.disk();
        disk.pending.clear();
        disk.unwritten.clear();
        disk.incarnation += 1;
        let recovery = Recovery { log: disk.log.clone(), store: disk.store, incarnation: disk.incarnation };
        (MemoryStorage { disk: self.clone() }, recovery)
    }

    /// Makes the log records of the oldest pending commit durable.
    pub fn flush_one(&self) -> Option<CommitId> {
        self.disk().flush_one()
    }

    /// Makes the state writes of the oldest commit durable whose log records are.
    pub fn write_one(&self) -> Option<CommitId> {
        let mut disk = self.disk();
        let (id, unwritten) = disk.unwritten.pop_front()?;
        disk.clear_if(unwritten.replaces_tree);
        unwritten.batches.into_iter().for_each(|writes| disk.write(writes));
        Some(id)
    }

    /// How many rows the next call of [`Self::write_one`] writes.
    #[must_use]
    pub fn rows_to_write(&self) -> usize {
        let disk = self.disk();
        disk.unwritten.front().map_or(0, |(_, unwritten)| unwritten.batches.iter().map(Vec::len).sum())
    }

    /// The commit that is written next, and how many rows of it are of a whole state that is taken or put in place.
    #[must_use]
    pub fn state_rows_to_write(&self) -> Option<(CommitId, usize)> {
        let disk = self.disk();
        let (id, unwritten) = disk.unwritten.front()?;
        Some((*id, unwritten.batches.iter().flatten().filter(|(key, _)| keys::is_staged(key)).count()))
    }

    /// Makes everything durable that was submitted; returns the last commit.
    pub fn settle(&self) -> Option<CommitId> {
        let last = std::iter::from_fn(|| self.flush_one()).last();
        std::iter::from_fn(|| self.write_one()).last().max(last)
    }

    /// The newest commit that is pending.
    pub fn newest_pending(&self) -> Option<CommitId> {
        self.disk().pending.back().map(|commit| commit.id)
    }

    /// How many commits are pending.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.disk().pending.len()
    }

    /// A crash: the first `kept` pending commits happen to have reached the disk, and so did the first `kept` batches of
    /// state writes whose log records are durable. The rest is gone.
    pub fn crash(&self, kept: usize) {
        let mut disk = self.disk();
        for _ in 0..kept {
            disk.flush_one();
        }
        let mut left = kept;
        for (_, unwritten) in std::mem::take(&mut disk.unwritten) {
            disk.clear_if(unwritten.replaces_tree && left > 0);
            for writes in unwritten.batches.into_iter().take(left) {
                disk.write(writes);
                left -= 1;
            }
        }
        disk.pending.clear();
    }

    /// The durable write-ahead log from a record on, and how often the log has been replaced so far, for watchers
    /// that follow it.
    #[must_use]
    pub fn durable_log_from(&self, first: usize) -> (Vec<LogRecord>, u64) {
        let disk = self.disk();
        (disk.log.get(first..).unwrap_or_default().to_vec(), disk.replacements)
    }

    /// The rows whose keys begin so.
    #[must_use]
    pub fn rows(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        let disk = self.disk();
        let rows = disk.state.iter().filter(|(key, _)| key.starts_with(prefix));
        rows.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Changes durable state behind the store's back, to play a damaged disk.
    pub fn tamper(&self, key: &[u8], value: Option<Bytes>) {
        let mut disk = self.disk();
        match value {
            Some(value) => disk.state.insert(Bytes::copy_from_slice(key), value),
            None => disk.state.remove(key),
        };
    }
}

impl Disk {
    fn flush_one(&mut self) -> Option<CommitId> {
        let commit = self.pending.pop_front()?;
        if commit.replaces_log {
            self.log.clear();
            self.log_bytes = 0;
            self.replacements += 1;
        }
        self.flushed += u64::from(!commit.log.is_empty());
        self.log_bytes += commit.log.iter().map(|record| record.body.len() as u64).sum::<u64>();
        self.log.extend(commit.log);
        if !commit.state.is_empty() {
            let unwritten = Unwritten { batches: commit.state.into(), replaces_tree: commit.replaces_tree };
            self.unwritten.push_back((commit.id, unwritten));
        }
        Some(commit.id)
    }

    fn clear_if(&mut self, is_replaced: bool) {
        if is_replaced {
            self.state.clear();
        }
    }

    fn write(&mut self, writes: Vec<StateWrite>) {
        let scan = |from: &[u8], to: &[u8], bytes_max| Ok(rows(&self.state, from, to, bytes_max));
        let writes = sweep::carry_out(writes, &scan).expect("memory can be read");
        for (key, value) in writes {
            match value {
                Some(value) => self.state.insert(key, value),
                None => self.state.remove(&key),
            };
        }
    }
}

fn rows(state: &BTreeMap<Bytes, Bytes>, from: &[u8], to: &[u8], bytes_max: usize) -> Vec<(Bytes, Bytes)> {
    let mut bytes = 0;
    let range = (std::ops::Bound::Included(from), std::ops::Bound::Excluded(to));
    let rows = state.range::<[u8], _>(range).take_while(|(key, value)| {
        let fits = bytes < bytes_max;
        bytes += key.len() + value.len();
        fits
    });
    rows.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The open store.
#[derive(Debug)]
pub struct MemoryStorage {
    disk: MemoryDisk,
}

impl Storage for MemoryStorage {
    fn submit(&mut self, commit: Commit) {
        let mut disk = self.disk.disk();
        assert!(disk.pending.back().is_none_or(|last| last.id < commit.id), "commit ids grow");
        let fits =
            |(key, value): &StateWrite| key.len() + value.as_ref().map_or(0, Bytes::len) <= RECORD_BYTES_MAX;
        assert!(commit.state.iter().flatten().all(fits), "larger records are cut by the writer");
        disk.pending.push_back(commit);
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.disk.disk().state.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        Ok(rows(&self.disk.disk().state, from, to, bytes_max))
    }

    fn log_end(&self) -> u64 {
        self.disk.disk().flushed
    }

    fn log_bytes(&self) -> u64 {
        self.disk.disk().log_bytes
    }
}
