//! Which of the directories of sled is the tree: `tree-1`, and after each packing the next.
//!
//! A directory counts from the moment that the file `whole` is in it, which is written when everything else in it is
//! durable. The highest that counts is the tree; all others are cleared away at the next start.

use super::log::sync_directory;
use crate::error::StorageError;
use std::path::{Path, PathBuf};

const PREFIX: &str = "tree-";
const WHOLE: &str = "whole";

/// The directory of one tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Generation {
    data_dir: PathBuf,
    number: u64,
    /// Bytes of sled's file when the tree had just been packed; 0 for one that never was.
    pub(super) packed_bytes: u64,
}

impl Generation {
    /// Whether the data directory holds any.
    pub(super) fn exist(data_dir: &Path) -> Result<bool, StorageError> {
        Ok(!numbers(data_dir)?.is_empty())
    }

    /// Makes the first one's directory, in a data directory where nothing rests on what is there.
    pub(super) fn create_first(data_dir: &Path) -> Result<Self, StorageError> {
        for number in numbers(data_dir)? {
            Self::at(data_dir, number).clear()?;
        }
        Self::at(data_dir, 0).create_next()
    }

    /// Finds the tree, and clears away the others.
    pub(super) fn open(data_dir: &Path) -> Result<Self, StorageError> {
        let mut found = numbers(data_dir)?;
        found.sort_unstable();
        let is_whole = |number: &u64| Self::at(data_dir, *number).path().join(WHOLE).exists();
        let Some(number) = found.iter().rev().copied().find(is_whole) else {
            return Err(StorageError::corrupt(
                format!("the applied state in {}", data_dir.display()),
                "no directory of it is whole",
            ));
        };
        let mut tree = Self::at(data_dir, number);
        // A process that was killed may have left a name that is not durable yet; the others are all there is until it is.
        tree.sync_names()?;
        for other in found.into_iter().filter(|other| *other != number) {
            Self::at(data_dir, other).clear()?;
        }
        // If it cannot be read the tree is packed once too often.
        let said = std::fs::read_to_string(tree.path().join(WHOLE)).unwrap_or_default();
        tree.packed_bytes = said.trim().parse().unwrap_or(0);
        Ok(tree)
    }

    /// A place behind all that there are, for one that replaces them.
    pub(super) fn behind_all(data_dir: &Path) -> Result<Self, StorageError> {
        Ok(Self::at(data_dir, numbers(data_dir)?.into_iter().max().unwrap_or(0)))
    }

    fn at(data_dir: &Path, number: u64) -> Self {
        Self { data_dir: data_dir.to_path_buf(), number, packed_bytes: 0 }
    }

    /// Its directory.
    pub(super) fn path(&self) -> PathBuf {
        self.data_dir.join(format!("{PREFIX}{}", self.number))
    }

    /// Makes an empty directory for the one after this.
    pub(super) fn create_next(&self) -> Result<Self, StorageError> {
        let next = Self::at(&self.data_dir, self.number + 1);
        next.clear()?;
        std::fs::create_dir(next.path()).map_err(|error| StorageError::io("make a directory", error))?;
        Ok(next)
    }

    /// From now on this one counts. Everything that was written to its files must be durable.
    pub(super) fn make_whole(&mut self, packed_bytes: u64) -> Result<(), StorageError> {
        self.sync_names()?;
        let io = |error: std::io::Error| StorageError::io("write which tree counts", error);
        // Only its name must be durable.
        std::fs::write(self.path().join(WHOLE), format!("{packed_bytes}\n")).map_err(io)?;
        self.packed_bytes = packed_bytes;
        sync_directory(&self.path())
    }

    /// Makes durable what there is by name: sled's files, the directory, and its own name.
    fn sync_names(&self) -> Result<(), StorageError> {
        let path = self.path();
        for name in ["conf", "db", "blobs"].map(|name| path.join(name)) {
            if name.exists() {
                sync_directory(&name)?;
            }
        }
        sync_directory(&path)?;
        sync_directory(&self.data_dir)
    }

    /// Removes it: first the file that makes it count.
    pub(super) fn clear(&self) -> Result<(), StorageError> {
        let io = |error: std::io::Error| StorageError::io("clear away an old tree", error);
        let path = self.path();
        if !path.exists() {
            return Ok(());
        }
        if path.join(WHOLE).exists() {
            std::fs::remove_file(path.join(WHOLE)).map_err(io)?;
            sync_directory(&path)?;
        }
        for folder in [path.join("blobs"), path] {
            remove_folder(&folder).map_err(io)?;
        }
        sync_directory(&self.data_dir)
    }
}

/// Removes a directory of files, if it is there.
fn remove_folder(path: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        std::fs::remove_file(entry?.path())?;
    }
    std::fs::remove_dir(path)
}

fn numbers(data_dir: &Path) -> Result<Vec<u64>, StorageError> {
    let entries = std::fs::read_dir(data_dir).map_err(|error| StorageError::io("list a directory", error))?;
    let number_of = |name: &str| name.strip_prefix(PREFIX)?.parse().ok();
    Ok(entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str().and_then(number_of))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What sled would have made.
    fn fill(generation: &Generation) {
        std::fs::create_dir(generation.path().join("blobs")).unwrap();
        for name in ["conf", "db"] {
            std::fs::write(generation.path().join(name), name).unwrap();
        }
    }

    #[test]
    fn the_highest_whole_one_is_the_tree_and_the_others_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Generation::create_first(dir.path()).unwrap();
        fill(&first);
        assert!(Generation::open(dir.path()).is_err(), "none is whole");
        first.make_whole(0).unwrap();
        let unfinished = first.create_next().unwrap();
        fill(&unfinished);
        assert_eq!(Generation::open(dir.path()).unwrap(), first);
        assert!(!unfinished.path().exists());

        let mut second = first.create_next().unwrap();
        fill(&second);
        second.make_whole(77).unwrap();
        assert_eq!(Generation::open(dir.path()).unwrap(), second);
        assert_eq!(Generation::open(dir.path()).unwrap().packed_bytes, 77);
        assert!(!first.path().exists());
    }
}
