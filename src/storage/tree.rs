//! The tree that holds applied state: sled 0.34.7, and a barrier that really reaches the disk.
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
//!
//! # Opening
//!
//! Leftover `snap.*.generating` files make sled refuse a healthy store; they are removed first. Other `snap.*` files are a
//! cache; if sled calls the store corrupt they are removed and it is opened once more.

use super::log::forget_cached_pages;
use super::log::frame::StoreId;
use super::redo::Job;
use crate::error::StorageError;
use crate::limits::RECORD_BYTES_MAX;
use bytes::{Buf, BufMut, Bytes};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Sorts behind every key of a group's state, so that it is part of no range of them.
const MARK_KEY: &[u8] = b"~mark";
const MARK_BYTES: usize = 16 + 8 + 1 + 4;

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
    kv: sled::Tree,
}

impl Tree {
    /// Removes whatever sled has in the directory: a first start was interrupted, and nothing rests on it.
    pub(super) fn clear(dir: &Path) -> Result<(), StorageError> {
        let io = |error: std::io::Error| StorageError::io("clear away an interrupted first start", error);
        let is_sleds = |name: &str| ["db", "conf"].contains(&name) || name.starts_with("snap.");
        for path in files_named(dir, is_sleds)? {
            std::fs::remove_file(path).map_err(io)?;
        }
        Ok(())
    }

    /// Opens the tree in a directory that exists and is locked.
    pub(super) fn open(dir: &Path, cache_bytes: u64) -> Result<Self, StorageError> {
        let io = |error: std::io::Error| StorageError::io("prepare sled's directory", error);
        for path in files_named(dir, |name| name.starts_with("snap.") && name.ends_with(".generating"))? {
            std::fs::remove_file(path).map_err(io)?;
        }
        forget_cached_pages(&dir.join("db"));
        let db = open_sled(dir, cache_bytes)?;
        let kv = unless_it_panics(|| db.open_tree("kv"))?.map_err(|error| failed("open a tree", &error))?;
        refuse_blobs(dir)?;
        Ok(Self { db, kv })
    }

    /// Reads one record.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let value = unless_it_panics(|| self.kv.get(key))?;
        let value = value.map_err(|error| failed("read a record", &error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// Reads rows with keys in `[from, to)`, at least one if there is one, until about `bytes_max`.
    pub(super) fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        bytes_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        unless_it_panics(|| self.scan_rows(from, to, bytes_max))?
    }

    fn scan_rows(
        &self,
        from: &[u8],
        to: &[u8],
        bytes_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        let mut rows = Vec::new();
        let mut bytes = 0;
        for row in self.kv.range(from..to) {
            let (key, value) = row.map_err(|error| failed("read a range of records", &error))?;
            bytes += key.len() + value.len();
            rows.push((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)));
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(rows)
    }

    /// How far the last job has come.
    pub(super) fn mark(&self, store: StoreId) -> Result<Mark, StorageError> {
        let Some(bytes) = self.get(MARK_KEY)? else { return Ok(Mark::Fresh) };
        let damaged = |reason: &str| StorageError::corrupt("the mark of the tree", reason);
        let body = bytes.get(..MARK_BYTES - 4).ok_or_else(|| damaged("it is too short"))?;
        if bytes[MARK_BYTES - 4..] != crc32fast::hash(body).to_be_bytes() {
            return Err(damaged("its checksum is wrong"));
        }
        let mut rest = body.strip_prefix(&store).ok_or_else(|| damaged("another store wrote it"))?;
        let number = rest.get_u64();
        Ok(if rest == [1] { Mark::Complete(number) } else { Mark::Begun(number) })
    }

    fn write_mark(&self, store: StoreId, number: u64, is_complete: bool) -> Result<(), StorageError> {
        let mut bytes = Vec::with_capacity(MARK_BYTES);
        bytes.put_slice(&store);
        bytes.put_u64(number);
        bytes.put_u8(u8::from(is_complete));
        bytes.put_u32(crc32fast::hash(&bytes));
        self.insert(MARK_KEY, &bytes)
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        assert!(key.len() + value.len() <= RECORD_BYTES_MAX, "larger records are cut by the writer");
        self.kv.insert(key, value).map(drop).map_err(|error| failed("write applied state", &error))
    }

    /// Carries out a job that was written down: each write by itself, so that no reader waits.
    pub(super) fn carry_out(&self, store: StoreId, job: &Job) -> Result<(), StorageError> {
        self.write_mark(store, job.number, false)?;
        for (key, value) in &job.writes {
            match value {
                Some(value) => self.insert(key, value)?,
                None => {
                    self.kv.remove(key).map_err(|error| failed("remove applied state", &error))?;
                }
            }
        }
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
}

/// sled panics over some damage. That must not look like a fault of the node.
fn unless_it_panics<T>(read: impl FnOnce() -> T) -> Result<T, StorageError> {
    catch_unwind(AssertUnwindSafe(read))
        .map_err(|_| StorageError::corrupt("the tree", "sled panicked while it read it"))
}

fn failed(what: &'static str, error: &sled::Error) -> StorageError {
    match error {
        sled::Error::Io(io) => StorageError::io(what, std::io::Error::new(io.kind(), io.to_string())),
        sled::Error::Corruption { .. } => StorageError::corrupt("the tree", format!("sled could not {what}")),
        error => StorageError::other(what, error),
    }
}

fn open_sled(dir: &Path, cache_bytes: u64) -> Result<sled::Db, StorageError> {
    match try_open_sled(dir, cache_bytes) {
        Err(OpenFailure::Corrupt(_)) => {
            for path in files_named(dir, |name| name.starts_with("snap."))? {
                std::fs::remove_file(path)
                    .map_err(|error| StorageError::io("remove a damaged snapshot", error))?;
            }
            try_open_sled(dir, cache_bytes).map_err(|failure| failure.into_error(dir))
        }
        result => result.map_err(|failure| failure.into_error(dir)),
    }
}

enum OpenFailure {
    Corrupt(String),
    InUse,
    Other(sled::Error),
}

impl OpenFailure {
    fn into_error(self, dir: &Path) -> StorageError {
        match self {
            Self::Corrupt(reason) => StorageError::corrupt(format!("the store in {}", dir.display()), reason),
            Self::InUse => StorageError::InUse(dir.display().to_string()),
            Self::Other(error) => failed("open sled", &error),
        }
    }
}

fn try_open_sled(dir: &Path, cache_bytes: u64) -> Result<sled::Db, OpenFailure> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(cache_bytes)
        .flush_every_ms(None)
        .mode(sled::Mode::LowSpace)
        .use_compression(false);
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(sled::Error::Io(error))) if error.to_string().contains("acquire lock") => {
            Err(OpenFailure::InUse)
        }
        Ok(Err(sled::Error::Corruption { .. })) => {
            Err(OpenFailure::Corrupt("sled finds it corrupt".to_string()))
        }
        Ok(Err(error)) => Err(OpenFailure::Other(error)),
        Err(_) => Err(OpenFailure::Corrupt("sled panicked while it read it".to_string())),
    }
}

/// sled never syncs the files that it keeps large records in. There must be none.
fn refuse_blobs(dir: &Path) -> Result<(), StorageError> {
    match files_named(&dir.join("blobs"), |_| true)?.first() {
        None => Ok(()),
        Some(path) => {
            Err(StorageError::corrupt(path.display().to_string(), "no record is large enough to need it"))
        }
    }
}

fn files_named(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, StorageError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StorageError::io("list a directory", error)),
    };
    let names =
        entries.filter_map(Result::ok).filter(|entry| entry.file_name().to_str().is_some_and(&wanted));
    Ok(names.map(|entry| entry.path()).collect())
}
