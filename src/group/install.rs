//! Receiving a snapshot: gather it aside, verify it, switch by one atomic record, then move it into place.
//!
//! ```text
//! Gathering   rows are stored under a prefix of their own; the old state is untouched
//!    | all rows durable, hash right: the mark is written         <- the switch
//! Clearing    rows of the old state are deleted
//!    | none left: the mark says Copying
//! Copying     gathered rows move to their places
//!    | none left: position written, mark removed, one batch
//! done
//! ```
//!
//! A crash before the mark leaves the old state and some rows that the next transfer clears away. A crash after it
//! goes on where it stopped. From the mark on, the replica's state *is* the snapshot; until it is in place the replica
//! answers nothing.

use super::message::{Piece, RowHasher};
use super::snapshot::state_bounds;
use crate::error::StorageError;
use crate::kv::{self, Applied, StateRoot};
use crate::limits::RECORD_BYTES_MAX;
use crate::ring::{GroupId, NodeId, RingInterval};
use crate::storage::{StateWrite, Storage, keys};
use bytes::Bytes;

impl Proven {
    fn take(&mut self, rows: &[(Bytes, Bytes)]) {
        for (raw, record) in rows {
            self.gathered.change(raw, None, Some(record));
            self.has_pieces |= raw.first() == Some(&b'c');
        }
    }
}

/// Bytes of rows that are moved in one batch.
const PAGE_BYTES: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Gathering,
    Clearing,
    Copying,
    Done,
}

/// A snapshot on its way in.
#[derive(Debug)]
pub(super) struct Install {
    group: GroupId,
    range: RingInterval,
    source: Option<(NodeId, u64)>,
    next_index: u64,
    hasher: RowHasher,
    applied: Option<Applied>,
    phase: Phase,
    proven: Option<Proven>,
}

/// Byzantine mode: what the gathered state must come to, and what it has come to so far.
#[derive(Debug)]
struct Proven {
    slot: u64,
    root: [u8; 32],
    gathered: StateRoot,
    has_pieces: bool,
}

impl Install {
    /// Whoever sends is not believed: the state must have this root at this slot.
    pub(super) fn must_prove(&mut self, slot: u64, root: [u8; 32]) {
        self.proven = Some(Proven { slot, root, gathered: StateRoot::default(), has_pieces: false });
    }

    /// Whether the sender gave what cannot be: the transfer is over.
    pub(super) fn is_refused(&self) -> bool {
        self.source.is_none() && self.phase == Phase::Gathering
    }

    /// Begins to gather a snapshot. Returns also the writes that clear what an earlier attempt left.
    pub(super) fn begin(
        storage: &dyn Storage,
        group: GroupId,
        range: RingInterval,
        from: NodeId,
        transfer: u64,
    ) -> Result<(Self, Vec<Vec<StateWrite>>), StorageError> {
        let (mut cursor, to) = keys::staged_bounds(group);
        let mut writes = Vec::new();
        loop {
            let rows = storage.scan(&cursor, &to, PAGE_BYTES)?;
            let Some((last, _)) = rows.last() else { break };
            cursor = Bytes::from([last.as_ref(), &[0]].concat());
            writes.push(rows.into_iter().map(|(key, _)| (key, None)).collect());
        }
        let install = Self {
            group,
            range,
            source: Some((from, transfer)),
            next_index: 0,
            hasher: RowHasher::default(),
            applied: None,
            phase: Phase::Gathering,
            proven: None,
        };
        Ok((install, writes))
    }

    /// Goes on with an installation that a crash interrupted, if there is one.
    pub(super) fn resume(
        storage: &dyn Storage,
        group: GroupId,
        range: RingInterval,
    ) -> Result<Option<Self>, StorageError> {
        let raw = keys::installing(group);
        let Some(record) = storage.get(&raw)? else {
            return Ok(None);
        };
        let Some((&phase, record)) = record.split_first() else {
            return Err(StorageError::corrupt("the mark of a snapshot", "it is empty"));
        };
        let applied = kv::decode_applied(&raw, Bytes::copy_from_slice(record))?;
        let phase = match phase {
            1 => Phase::Clearing,
            2 => Phase::Copying,
            _ => {
                return Err(StorageError::corrupt("the mark of a snapshot", "its phase is unknown"));
            }
        };
        let hasher = RowHasher::default();
        Ok(Some(Self {
            group,
            range,
            source: None,
            next_index: 0,
            hasher,
            applied: Some(applied),
            phase,
            proven: None,
        }))
    }

    /// Whether the piece belongs to this transfer.
    pub(super) fn is_from(&self, from: NodeId, transfer: u64) -> bool {
        self.source == Some((from, transfer))
    }

    /// Whether the piece was taken before.
    pub(super) fn has_taken(&self, index: u64) -> bool {
        index < self.next_index
    }

    /// Whether the state is the snapshot already, though not in place.
    pub(super) fn has_switched(&self) -> bool {
        self.phase != Phase::Gathering
    }

    /// What is being installed, once all of it is known.
    pub(super) fn applied(&self) -> Option<&Applied> {
        self.applied.as_ref()
    }

    /// Takes the next piece and returns the writes that store it; `None` if it is not the next one. A snapshot that
    /// does not verify is an error of the sender: it is dropped, the old state stands.
    pub(super) fn gather(&mut self, piece: Piece) -> Option<Vec<StateWrite>> {
        if piece.index != self.next_index || self.phase != Phase::Gathering {
            return None;
        }
        let bounds = state_bounds(self.group, self.range);
        let is_ours = |key: &Bytes| bounds.iter().any(|(from, to)| from <= key && key < to);
        let fits = |key: &Bytes, record: &Bytes| {
            keys::STAGED_PREFIX_BYTES + key.len() + record.len() <= RECORD_BYTES_MAX
        };
        if !piece.rows.iter().all(|(key, record)| is_ours(key) && fits(key, record)) {
            self.source = None;
            return None;
        }
        self.hasher.add(&piece.rows);
        self.next_index += 1;
        if let Some(proven) = &mut self.proven {
            proven.take(&piece.rows);
        }
        if let Some((applied, hash)) = piece.end {
            let Some(applied) = self.judge(applied).filter(|_| hash == self.hasher.finish()) else {
                self.source = None;
                return None;
            };
            self.applied = Some(applied);
        }
        Some(
            piece
                .rows
                .into_iter()
                .map(|(key, record)| (keys::staged(self.group, &key), Some(record)))
                .collect(),
        )
    }

    /// Everything written so far is durable: the next batch, or `None` when the snapshot is in place.
    pub(super) fn next_batch(
        &mut self,
        storage: &dyn Storage,
    ) -> Result<Option<Vec<StateWrite>>, StorageError> {
        match self.phase {
            Phase::Gathering => {
                self.phase = Phase::Clearing;
                let mut writes = vec![self.mark(1)];
                if let Some(proven) = &mut self.proven {
                    // From the mark on the state is the snapshot, and so are the hashes of its parts.
                    proven.gathered.write_all(self.group, &mut writes);
                }
                Ok(Some(writes))
            }
            Phase::Clearing => {
                for (from, to) in state_bounds(self.group, self.range) {
                    let rows = storage.scan(&from, &to, PAGE_BYTES)?;
                    if !rows.is_empty() {
                        return Ok(Some(rows.into_iter().map(|(key, _)| (key, None)).collect()));
                    }
                }
                self.phase = Phase::Copying;
                Ok(Some(vec![self.mark(2)]))
            }
            Phase::Copying => {
                let (from, to) = keys::staged_bounds(self.group);
                let rows = storage.scan(&from, &to, PAGE_BYTES)?;
                if rows.is_empty() {
                    self.phase = Phase::Done;
                    let applied = self.applied.as_ref().expect("only a whole snapshot is copied");
                    let position = kv::applied_write(self.group, applied);
                    return Ok(Some(vec![position, (keys::installing(self.group), None)]));
                }
                let moves =
                    |(key, record): (Bytes, Bytes)| [(keys::unstaged(&key), Some(record)), (key, None)];
                Ok(Some(rows.into_iter().flat_map(moves).collect()))
            }
            Phase::Done => Ok(None),
        }
    }

    /// The position of the snapshot, if all that was gathered is what was proved. What is not covered by the root is not
    /// believed either.
    fn judge(&self, applied: Applied) -> Option<Applied> {
        let Some(proven) = &self.proven else { return Some(applied) };
        let is_proven = applied.slot == proven.slot && proven.gathered.digest(&applied) == proven.root;
        is_proven.then_some(Applied { has_pieces: proven.has_pieces, ..applied })
    }

    fn mark(&self, phase: u8) -> StateWrite {
        let raw = keys::installing(self.group);
        let applied = self.applied.as_ref().expect("only a whole snapshot is marked");
        let record = kv::encode_applied(&raw, applied);
        (raw, Some(Bytes::from([&[phase], record.as_ref()].concat())))
    }
}
