//! Durable storage of one node: a write-ahead log shared by all its groups, and their applied state.
//!
//! # What is atomic, what is durable when
//!
//! * The log records of a [`Commit`] survive a crash together or not at all. So does each of its batches of state
//!   writes. Log and state are not atomic with one another.
//! * Log records become durable in the order in which they were submitted, and so do state writes. One barrier serves
//!   many commits.
//! * State writes follow the log records of their own commit, later: they are reported by themselves.
//! * What was submitted and not reported may survive or not, but never without what was submitted before it.
//! * A commit with `replaces_log` stands for everything logged before it: once it is durable, older records go.
//!
//! # Files of a data directory
//!
//! | file | what | by |
//! |---|---|---|
//! | `log/N.seg` | the write-ahead log: frames, chained and checksummed | [`log`] |
//! | `log/spare-N` | void segments, to be used again | [`log`] |
//! | `redo` | state writes that are being carried out | [`redo`], [`state`] |
//! | `witness` | what was durable, in a place of its own | [`witness`] |
//! | `format` | whose directory this is, and how its store is named | [`format`](mod@format) |
//! | `lock` | held by the one process that uses the directory | [`disk`] |
//! | `tree-N/whole` | that this is the tree, if no higher one has it | [`generation`] |
//! | `tree-N/db`, `conf`, `blobs`, `snap.*` | sled's: applied state | [`tree`] |
//!
//! # Keys of the tree
//!
//! | tree | key | value |
//! |---|---|---|
//! | `kv` | `d` position (u64) key | checksum, kind, version, when the key ends, length, the value's first bytes |
//! | `kv` | `c` position key-length (u16) key piece (u16) | checksum, further bytes of the value |
//! | `kv` | `g` group (u128) | checksum, the group's tenure: its epoch, range, members |
//! | `kv` | `m` group (u128) `a` | what was applied: slot, chain, time, clock, digest |
//! | `kv` | `m` group `s` session (16 bytes) | a session: whose it is, when it was active, what its client has |
//! | `kv` | `m` group `r` session (16 bytes) number (u64) | what that request came to |
//! | `kv` | `m` group `h` part (u8) | in Byzantine mode, the hash of a part of the state |
//! | `kv` | `m` group `i` | a state that is being put in place: how far, which parts, where it stands |
//! | `kv` | `m` group `x` | in Byzantine mode, that the state is damaged and must be repaired |
//! | `kv` | `p` group then a key of the above | a row of a snapshot that has not been installed yet |
//! | `kv` | `~mark` | how far the last state writes have come |
//! | `packed` | a key of the above | that row and those behind it |
//!
//! All numbers in keys are big-endian. User data is keyed by position and key, not by group. No row is empty, and none
//! exceeds [`crate::limits::RECORD_BYTES_MAX`].

pub mod disk;
mod format;
mod generation;
pub mod keys;
mod log;
pub mod memory;
mod redo;
mod state;
mod sweep;
mod tree;
mod witness;

pub use format::Owner;
pub use state::free_bytes;

#[cfg(test)]
mod conformance;

use crate::error::StorageError;
use crate::ring::{StoreId, TenureId};
use bytes::Bytes;

/// Names a commit. Ids grow by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommitId(pub u64);

/// One write to the applied state: a raw key with its new value, or none to delete it. A removal under [`keys::sweep`] removes all
/// further pieces of that key which are not among the writes directly behind it.
pub type StateWrite = (Bytes, Option<Bytes>);

/// A record of the write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Whose it is. What the node writes for itself stands under a name that no group has.
    pub tenure: TenureId,
    /// What it is: opaque here.
    pub kind: u8,
    /// What it says: opaque here.
    pub body: Bytes,
}

/// What becomes durable together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// Its name, one more than the last.
    pub id: CommitId,
    /// Records for the write-ahead log, in order.
    pub log: Vec<LogRecord>,
    /// Writes to the applied state; each batch is atomic.
    pub state: Vec<Vec<StateWrite>>,
    /// A promise to other nodes rests on these log records: the witness must know of them before they are reported.
    pub promises: bool,
    /// The log records stand for everything logged before; the rest may be deleted when they are durable.
    pub replaces_log: bool,
    /// The state writes are all that the tree holds from now on: what it held cannot be read, or not be believed.
    pub replaces_tree: bool,
}

/// What a store held when it was opened.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// Every record of the write-ahead log, in order.
    pub log: Vec<LogRecord>,
    /// The store's name.
    pub store: StoreId,
    /// How often this store has been opened, this time included.
    pub incarnation: u64,
}

/// The store of one node. Completions arrive at the owner of the implementation, in order, by [`CommitId`].
pub trait Storage {
    /// Queues a commit. Its log records are durable when its id is reported as durable, its state writes when it is
    /// reported as written; not before.
    fn submit(&mut self, commit: Commit);

    /// Reads applied state as last written. Writes that are submitted but not reported may be missing.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// Reads rows with keys in `[from, to)` in order, at least one if there is one, until about `bytes_max`.
    fn scan(&self, from: &[u8], to: &[u8], bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, StorageError>;

    /// How many commits of log records have become durable in the life of this store, or more than that, by a count that grows with
    /// them and never goes back from one opening to the next: a store that says less than it once did is an older copy.
    fn log_end(&self) -> u64;

    /// Bytes of the write-ahead log that a new `replaces_log` commit would make void, about.
    fn log_bytes(&self) -> u64;
}
