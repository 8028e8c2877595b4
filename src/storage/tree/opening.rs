//! Opening sled, with what is known of how it fails.
//!
//! Leftover `snap.*.generating` files make sled refuse a healthy store; they are removed first. Other `snap.*` files are a
//! cache; if sled calls the store corrupt they are removed and it is opened once more.

use crate::error::StorageError;
use crate::storage::log::forget_cached_pages;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Opens sled in a directory that nobody else uses.
pub(super) fn open(dir: &Path, cache_bytes: u64) -> Result<sled::Db, StorageError> {
    remove_named(dir, |name| name.starts_with("snap.") && name.ends_with(".generating"))?;
    forget_cached_pages(&dir.join("db"));
    let db = match try_open(dir, cache_bytes) {
        Err(OpenFailure::Corrupt(_)) => {
            remove_named(dir, |name| name.starts_with("snap."))?;
            try_open(dir, cache_bytes)
        }
        result => result,
    };
    db.map_err(|failure| failure.into_error(dir))
}

/// sled panics over some damage. That must not look like a fault of the node.
pub(super) fn unless_it_panics<T>(read: impl FnOnce() -> T) -> Result<T, StorageError> {
    catch_unwind(AssertUnwindSafe(read))
        .map_err(|_| StorageError::corrupt("the tree", "sled panicked while it read it"))
}

/// An error of sled as one of ours.
pub(super) fn failed(what: &'static str, error: &sled::Error) -> StorageError {
    match error {
        sled::Error::Io(io) if !is_about_content(io.kind()) => {
            StorageError::io(what, std::io::Error::new(io.kind(), io.to_string()))
        }
        error => StorageError::corrupt("the tree", format!("sled could not {what}: {error}")),
    }
}

/// Whether an error tells of what is in a file, not of the disk under it.
fn is_about_content(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    matches!(kind, InvalidData | InvalidInput | UnexpectedEof)
}

/// sled never syncs the files that it keeps large records in. There must be none.
pub(super) fn refuse_blobs(dir: &Path) -> Result<(), StorageError> {
    match files_named(&dir.join("blobs"), |_| true)?.first() {
        None => Ok(()),
        Some(path) => {
            Err(StorageError::corrupt(path.display().to_string(), "no record is large enough to need it"))
        }
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

fn try_open(dir: &Path, cache_bytes: u64) -> Result<sled::Db, OpenFailure> {
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
        Ok(Err(sled::Error::Io(error))) if !is_about_content(error.kind()) => {
            Err(OpenFailure::Other(error.into()))
        }
        Ok(Err(error)) => Err(OpenFailure::Corrupt(format!("sled does not open it: {error}"))),
        Err(_) => Err(OpenFailure::Corrupt("sled panicked while it read it".to_string())),
    }
}

fn remove_named(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<(), StorageError> {
    for path in files_named(dir, wanted)? {
        std::fs::remove_file(path)
            .map_err(|error| StorageError::io("remove what sled can do without", error))?;
    }
    Ok(())
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
