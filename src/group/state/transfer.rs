//! Sending a snapshot: the state at one slot, in pieces, while the group goes on.
//!
//! In Byzantine mode the receiver is first told what the parts of the state come to, and then takes those that it needs.
//!
//! sled cannot show a tree as it was. So a checkpoint brings the tree to one slot, and until the transfer has ended no
//! further checkpoint of this group is begun: the tree stands still, new writes gather in memory. If they grow beyond
//! their bound, or the receiver makes no progress, the transfer is given up and may be asked for again.

use crate::error::StorageError;
use crate::group::message::{GroupMessage, Piece, RowHasher, encode};
use crate::kv::{self, PartSet, Parts, Reached};
use crate::limits::{
    OVERLAY_BYTES_STREAMING_MAX, SNAPSHOT_CHUNK_BYTES, SNAPSHOT_PATIENCE_MILLIS, SNAPSHOT_WINDOW,
    SOURCE_BYTES_PER_SECOND, SOURCE_PATIENCE_MILLIS,
};
use crate::storage::Storage;
use bytes::Bytes;
use std::collections::VecDeque;
use tetrachord_consensus::{ReplicaId, Slot, Ticks};

/// A transfer to one replica.
#[derive(Debug)]
pub(in crate::group) struct Transfer {
    pub(in crate::group) to: ReplicaId,
    id: u64,
    ranges: VecDeque<(Bytes, Bytes)>,
    hasher: RowHasher,
    applied: Reached,
    next_index: u64,
    is_read: bool,
    unstored: VecDeque<Piece>,
    /// The message that offers the state, until the receiver has said what it takes.
    offer: Option<Bytes>,
    begun_at: Ticks,
    /// Bytes of rows that the receiver has stored.
    stored_bytes: u64,
    progress_at: Ticks,
    sent_at: Ticks,
}

/// How a transfer stands.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::group) enum Progress {
    /// It goes on.
    UnderWay,
    /// Everything is stored at the receiver.
    Done,
    /// It was given up.
    GivenUp,
}

/// Pieces that are not answered are sent again after this time.
const RESEND_MILLIS: u64 = 1_000;

impl Transfer {
    /// A transfer of the state that the tree holds now: all of it at once, or what the receiver takes of an offer.
    pub(in crate::group) fn new(
        to: ReplicaId,
        id: u64,
        applied: Reached,
        parts: Parts,
        offer: Option<Bytes>,
        now: Ticks,
    ) -> Self {
        let given = if offer.is_some() { PartSet::default() } else { parts.all() };
        Self {
            to,
            id,
            ranges: parts.bounds_of(given).into(),
            hasher: RowHasher::default(),
            applied,
            next_index: 0,
            is_read: false,
            unstored: VecDeque::new(),
            offer,
            begun_at: now,
            stored_bytes: 0,
            progress_at: now,
            sent_at: now,
        }
    }

    /// The offer, to be sent for the first time.
    pub(in crate::group) fn offer(&self) -> Option<Bytes> {
        self.offer.clone()
    }

    /// The receiver takes these parts.
    pub(in crate::group) fn take(&mut self, taken: PartSet, parts: Parts, now: Ticks) {
        if self.offer.take().is_some() {
            self.ranges = parts.bounds_of(taken).into();
            self.progress_at = now;
        }
    }

    /// To whom the state after which slot is given, how many bytes of it are stored there, and when it last came further.
    pub(in crate::group) fn given(&self) -> (ReplicaId, Slot, u64, Ticks) {
        (self.to, Slot(self.applied.slot), self.stored_bytes, self.progress_at)
    }

    /// Gives it up no sooner than if its receiver had just stored something.
    pub(in crate::group) fn hold_on(&mut self, now: Ticks) {
        self.progress_at = self.progress_at.max(Ticks(now.0.saturating_sub(RESEND_MILLIS)));
    }

    /// Whether it is this transfer.
    pub(in crate::group) fn is(&self, to: ReplicaId, transfer: u64) -> bool {
        self.to == to && self.id == transfer
    }

    /// The next pieces that may be sent.
    pub(in crate::group) fn next_pieces(
        &mut self,
        storage: &dyn Storage,
        now: Ticks,
    ) -> Result<Vec<Bytes>, StorageError> {
        let mut messages = Vec::new();
        while !self.is_read && self.offer.is_none() && (self.unstored.len() as u64) < SNAPSHOT_WINDOW {
            let rows = self.read_rows(storage)?;
            self.hasher.add(&rows);
            let end = self.is_read.then(|| (self.applied.clone(), self.hasher.finish()));
            let first = self.unstored.front().map_or(self.next_index, |piece| piece.index);
            let piece = Piece { transfer: self.id, index: self.next_index, first, rows, end };
            messages.push(encode(&GroupMessage::Piece(piece.clone())));
            self.unstored.push_back(piece);
            self.next_index += 1;
            self.sent_at = now;
        }
        assert!(self.unstored.len() as u64 <= SNAPSHOT_WINDOW, "the window is bounded");
        Ok(messages)
    }

    fn read_rows(&mut self, storage: &dyn Storage) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        while let Some((from, to)) = self.ranges.front_mut() {
            let rows = storage.scan(from, to, SNAPSHOT_CHUNK_BYTES)?;
            if let Some((raw, _)) = rows.iter().find(|(raw, record)| !kv::is_sealed(raw, record)) {
                let what = format!("record {}", raw.escape_ascii());
                return Err(StorageError::corrupt(what, "its checksum is wrong"));
            }
            if let Some((last, _)) = rows.last() {
                *from = Bytes::from([last.as_ref(), &[0]].concat());
                return Ok(rows);
            }
            self.ranges.pop_front();
        }
        self.is_read = true;
        Ok(Vec::new())
    }

    /// A piece is stored at the receiver.
    pub(in crate::group) fn stored(&mut self, transfer: u64, index: u64, now: Ticks) {
        let is_stored = |piece: &Piece| transfer == self.id && piece.index <= index;
        while self.unstored.front().is_some_and(is_stored) {
            let piece = self.unstored.pop_front().expect("it was just looked at");
            let bytes: usize = piece.rows.iter().map(|(key, record)| key.len() + record.len()).sum();
            self.stored_bytes += bytes as u64;
            self.progress_at = now;
        }
    }

    /// Whether the receiver is slower than one may be for whom others wait: in Byzantine mode it may be so on purpose, so that
    /// they get nothing.
    pub(in crate::group) fn is_slow(&self, now: Ticks) -> bool {
        let for_bytes = self.stored_bytes.saturating_mul(1_000) / SOURCE_BYTES_PER_SECOND;
        now.since(self.begun_at) >= SOURCE_PATIENCE_MILLIS + for_bytes
    }

    /// How the transfer stands, and what must be sent again. `waiting_bytes` is what gathers in memory meanwhile.
    pub(in crate::group) fn check(&mut self, now: Ticks, waiting_bytes: usize) -> (Progress, Vec<Bytes>) {
        if self.is_read && self.unstored.is_empty() {
            return (Progress::Done, Vec::new());
        }
        let is_stuck = now.since(self.progress_at) >= SNAPSHOT_PATIENCE_MILLIS;
        if is_stuck || waiting_bytes > OVERLAY_BYTES_STREAMING_MAX {
            return (Progress::GivenUp, Vec::new());
        }
        if now.since(self.sent_at) < RESEND_MILLIS || now.since(self.progress_at) < RESEND_MILLIS {
            return (Progress::UnderWay, Vec::new());
        }
        self.sent_at = now;
        let first = self.unstored.front().map_or(self.next_index, |piece| piece.index);
        let again = |piece: &Piece| encode(&GroupMessage::Piece(Piece { first, ..piece.clone() }));
        let unstored = self.unstored.iter().map(again);
        (Progress::UnderWay, self.offer.iter().cloned().chain(unstored).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{Position, found_without_keys};
    use crate::storage::keys;
    use crate::storage::memory::MemoryDisk;

    /// Who takes a state slowly may do so, but not for long while others wait for theirs.
    #[test]
    fn a_receiver_has_time_in_proportion_to_what_it_has_stored() {
        let disk = MemoryDisk::default();
        for index in 0..1_000 {
            let raw = keys::data(Position(index), b"k");
            disk.tamper(&raw, Some(kv::seal(&raw, &[0; 5_000])));
        }
        let (storage, _) = disk.open();
        let parts = Parts::from(&found_without_keys(1, 3, 3)[0]);
        let mut transfer = Transfer::new(ReplicaId(1), 7, Reached::default(), parts, None, Ticks(1));
        assert_eq!(transfer.next_pieces(&storage, Ticks(1)).unwrap().len() as u64, SNAPSHOT_WINDOW);
        let patience = Ticks(1 + SOURCE_PATIENCE_MILLIS);
        assert!(!transfer.is_slow(Ticks(SOURCE_PATIENCE_MILLIS)) && transfer.is_slow(patience));
        transfer.stored(7, SNAPSHOT_WINDOW - 2, Ticks(5));
        let bytes = (SNAPSHOT_WINDOW - 1) * SNAPSHOT_CHUNK_BYTES as u64;
        let millis = bytes * 1_000 / SOURCE_BYTES_PER_SECOND;
        assert!(
            !transfer.is_slow(patience.plus(millis - 1)) && transfer.is_slow(patience.plus(millis + 100))
        );
        assert_eq!(transfer.check(patience, 0).0, Progress::UnderWay, "nobody else waits");
    }
}
