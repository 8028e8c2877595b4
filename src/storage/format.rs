//! The file `format`: whose data directory this is. It says which version of the files is in it, of which cluster and node they
//! are, and how the store is named, and it never changes.
//!
//! A directory of another node or another cluster holds other promises: whoever voted with them would break its own. Peers know
//! a node by the name of its store, which is drawn when the directory is first opened ([`crate::node::roster`]).
//!
//! It is written before anything else of a new store, and counts only if its last line is the checksum of the others: a first
//! start that did not end writes it anew.

use super::log::sync_directory;
use crate::error::StorageError;
use crate::ring::{NodeId, StoreId};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

const NAME: &str = "format";

/// Version of everything in a data directory.
const VERSION: u32 = 5;

/// Whose store it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The cluster, by the name in its genesis record.
    pub cluster: String,
    /// The node.
    pub node: NodeId,
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Format {
    version: u32,
    owner: Owner,
    store: StoreId,
}

impl Format {
    fn text(&self) -> String {
        let Self { version, owner: Owner { cluster, node }, store } = self;
        let body = format!("version {version}\ncluster {cluster}\nnode {}\nstore {store}\n", node.0);
        format!("{body}check {:08x}\n", crc32fast::hash(body.as_bytes()))
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.map(str::to_string)
        };
        let owner = Owner { cluster: field("cluster")?, node: NodeId(field("node")?.parse().ok()?) };
        let format = Self {
            version: field("version")?.parse().ok()?,
            owner,
            store: StoreId::from_hex(&field("store")?)?,
        };
        (format.text() == text).then_some(format)
    }
}

/// Reads whose directory this is and holds it against who opens it. Returns how the store is named; nothing if the file is missing,
/// or was never written to its end.
pub(super) fn check(dir: &Path, opener: &Owner) -> Result<Option<StoreId>, StorageError> {
    let text = match std::fs::read_to_string(path(dir)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == ErrorKind::InvalidData => return Ok(None),
        Err(error) => return Err(StorageError::io("read the format file", error)),
        Ok(text) => text,
    };
    let Some(format) = Format::parse(&text) else { return Ok(None) };
    let refused = |whose: String| {
        Err(StorageError::Foreign(format!(
            "{} holds {whose}. {} of cluster {} must not use it: correct data_dir in the node's file, or put its own data back",
            dir.display(),
            opener.node,
            opener.cluster
        )))
    };
    if format.version != VERSION {
        return refused(format!("data of version {}, this build reads {VERSION}", format.version));
    }
    if format.owner != *opener {
        return refused(format!("the data of {} of cluster {}", format.owner.node, format.owner.cluster));
    }
    Ok(Some(format.store))
}

/// Writes whose directory this is from now on.
pub(super) fn write(dir: &Path, owner: &Owner, store: StoreId) -> Result<(), StorageError> {
    let io = |error: std::io::Error| StorageError::io("write the format file", error);
    let format = Format { version: VERSION, owner: owner.clone(), store };
    let mut file = File::create(path(dir)).map_err(io)?;
    file.write_all(format.text().as_bytes()).map_err(io)?;
    file.sync_all().map_err(io)?;
    sync_directory(dir)
}

fn path(dir: &Path) -> PathBuf {
    dir.join(NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(cluster: &str, node: u128) -> Owner {
        Owner { cluster: cluster.to_string(), node: NodeId(node) }
    }

    #[test]
    fn a_directory_knows_its_cluster_and_its_node() {
        let dir = tempfile::tempdir().unwrap();
        let mine = owner("c1", 3);
        assert_eq!(check(dir.path(), &mine).unwrap(), None);
        write(dir.path(), &mine, StoreId([7; 16])).unwrap();
        assert_eq!(check(dir.path(), &mine).unwrap(), Some(StoreId([7; 16])));
        let error = |opener: &Owner| check(dir.path(), opener).unwrap_err().to_string();
        assert!(
            error(&owner("c1", 2)).contains("holds the data of n3 of cluster c1. n2 of cluster c1 must not")
        );
        assert!(error(&owner("c2", 3)).contains("holds the data of n3 of cluster c1"));
        let text = std::fs::read_to_string(path(dir.path())).unwrap();
        let newer = Format { version: 9, ..Format::parse(&text).unwrap() };
        std::fs::write(path(dir.path()), newer.text()).unwrap();
        assert!(error(&mine).contains("data of version 9"));
    }

    #[test]
    fn a_file_that_was_not_written_to_its_end_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mine = owner("c1", 3);
        write(dir.path(), &mine, StoreId([7; 16])).unwrap();
        let text = std::fs::read(path(dir.path())).unwrap();
        for end in 0..text.len() {
            std::fs::write(path(dir.path()), &text[..end]).unwrap();
            assert_eq!(check(dir.path(), &mine).unwrap(), None, "{end} bytes");
        }
        std::fs::write(path(dir.path()), [0xff, 0xfe]).unwrap();
        assert_eq!(check(dir.path(), &mine).unwrap(), None);
    }
}
