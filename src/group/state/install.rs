//! Receiving a state: gather it aside, verify it, switch by one atomic record, then move it into place.
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
//! goes on where it stopped. From the mark on, the replica's state *is* the new one; until it is in place the replica
//! answers nothing.
//!
//! In crash mode the leader is believed and everything is replaced. In Byzantine mode nobody is: an [`Offer`] names the
//! hashes of all parts, which a stable checkpoint proves; only the parts that differ from what is here, or cannot be read, are taken, and each is
//! held against its hash as soon as its last row is there. Rows come in strictly ascending order: a row that came twice would
//! count twice in the hash and once in the state. Parts that held stay when another replica must go on.

use crate::error::StorageError;
use crate::group::message::{Offer, Piece, RowHasher};
use crate::kv::{self, PartSet, Parts, Reached, StateRoot};
use crate::limits::{RECORD_BYTES_MAX, SNAPSHOT_CHUNK_BYTES};
use crate::ring::NodeId;
use crate::storage::{StateWrite, Storage, keys};
use bytes::Bytes;
use std::collections::VecDeque;

/// Bytes of rows that are moved in one batch.
const PAGE_BYTES: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Gathering,
    Clearing,
    Copying,
    Done,
}

/// A state on its way in.
#[derive(Debug)]
pub(in crate::group) struct Install {
    of: Parts,
    source: Option<(NodeId, u64)>,
    next_index: u64,
    hasher: RowHasher,
    applied: Option<Reached>,
    phase: Phase,
    proven: Option<Proven>,
    /// What is replaced.
    parts: PartSet,
    /// Where clearing or copying goes on.
    rest: Option<VecDeque<(Bytes, Bytes)>>,
}

/// Byzantine mode: the state that is here, to which an offered one is held.
#[derive(Clone, Debug)]
pub(in crate::group) struct Here {
    pub(in crate::group) root: StateRoot,
    /// Whether values of several records may be in it.
    pub(in crate::group) has_pieces: bool,
    /// Parts with rows that cannot be read: they are taken whatever their sums are.
    pub(in crate::group) unreadable: PartSet,
}

/// Byzantine mode: what the gathered state must come to, and what it has come to so far.
#[derive(Debug)]
struct Proven {
    applied: Reached,
    root: StateRoot,
    gathered: StateRoot,
    /// Parts that were gathered whole and hold, and those of them that earlier sources gave.
    held: PartSet,
    earlier: PartSet,
    /// The part of the last row, and its key.
    at: Option<(u8, Bytes)>,
    has_pieces: bool,
}

impl Proven {
    /// Takes rows of parts that are asked for and not held yet; false if they cannot be what was proved.
    fn take(&mut self, asked: PartSet, rows: &[(Bytes, Bytes)]) -> bool {
        for (raw, record) in rows {
            let is_asked = |part: &u8| asked.contains(*part) && !self.held.contains(*part);
            let Some(part) = self.root.parts().part_of(raw).filter(is_asked) else { return false };
            // The sum of a part says nothing of what is left out of it.
            if !kv::is_sealed(raw, record) {
                return false;
            }
            let is_next = match &self.at {
                Some((at, last)) if *at == part => last < raw,
                Some((at, _)) if *at > part => false,
                _ => self.close(asked, part),
            };
            if !is_next {
                return false;
            }
            self.at = Some((part, raw.clone()));
            self.gathered.change(raw, None, Some(record));
            if !self.gathered.is_within(&self.root, part) {
                return false;
            }
            self.has_pieces |= raw.first() == Some(&b'c');
        }
        true
    }

    /// No row of a part below this one will follow: what was asked for there must hold.
    fn close(&mut self, asked: PartSet, below: u8) -> bool {
        for part in
            asked.iter().filter(|part| *part < below && !self.held.contains(*part)).collect::<Vec<_>>()
        {
            if !self.gathered.agrees(&self.root, part) {
                return false;
            }
            self.held.insert(part);
        }
        true
    }
}

impl Install {
    fn new(of: Parts, parts: PartSet) -> Self {
        Self {
            of,
            source: None,
            next_index: 0,
            hasher: RowHasher::default(),
            applied: None,
            phase: Phase::Gathering,
            proven: None,
            parts,
            rest: None,
        }
    }

    /// Whether the sender gave what cannot be: the transfer is over.
    pub(in crate::group) fn is_refused(&self) -> bool {
        self.source.is_none() && self.phase == Phase::Gathering
    }

    /// Who gives it, unless nothing more is taken from that one.
    pub(in crate::group) fn source(&self) -> Option<NodeId> {
        self.source.map(|(from, _)| from)
    }

    /// Bytes of the parts that this source has given, those that hold alone, and of the one that it is at: so much it has had
    /// reason to take time for.
    pub(in crate::group) fn due_bytes(&self) -> u64 {
        let Some(proven) = &self.proven else { return 0 };
        let mut bytes = 0u64;
        for part in self.parts.iter().filter(|part| !proven.earlier.contains(*part)) {
            bytes = bytes.saturating_add(proven.root.bytes(part));
            if !proven.held.contains(part) {
                break;
            }
        }
        bytes
    }

    /// Nothing more is taken from whoever sent this; what held stays for the next.
    pub(in crate::group) fn refuse(&mut self) {
        self.source = None;
    }

    /// Begins to gather a state from a sender that is believed. Returns also the writes that clear what an earlier attempt
    /// left.
    pub(in crate::group) fn begin(
        storage: &dyn Storage,
        of: Parts,
        from: NodeId,
        transfer: u64,
    ) -> Result<(Self, Vec<Vec<StateWrite>>), StorageError> {
        let writes = removals(storage, [keys::staged_bounds(of.group())])?;
        let install = Self { source: Some((from, transfer)), ..Self::new(of, of.all()) };
        Ok((install, writes))
    }

    /// Begins to gather those parts of an offered state that differ from what is here, or cannot be read here. What an earlier attempt
    /// gathered and is in the offered state too, stays.
    pub(in crate::group) fn offered(
        storage: &dyn Storage,
        of: Parts,
        (from, offer): (NodeId, &Offer),
        root: StateRoot,
        here: &Here,
        earlier: Option<Self>,
    ) -> Result<(Self, Vec<Vec<StateWrite>>), StorageError> {
        let differing = root.differing(&here.root);
        let parts = PartSet::of(|part| differing.contains(*part) || here.unreadable.contains(*part));
        let earlier = earlier.and_then(|install| install.proven);
        let is_kept = |earlier: &Proven, part| {
            parts.contains(part) && earlier.held.contains(part) && earlier.root.agrees(&root, part)
        };
        let held = PartSet::of(|part| earlier.as_ref().is_some_and(|earlier| is_kept(earlier, *part)));
        let stale = of.all().iter().filter(|part| !held.contains(*part));
        let bounds = stale.flat_map(|part| of.bounds(part));
        let staged =
            bounds.map(|(from, to)| (keys::staged(of.group(), &from), keys::staged(of.group(), &to)));
        let writes = removals(storage, staged)?;
        let has_pieces = here.has_pieces || earlier.is_some_and(|earlier| earlier.has_pieces);
        let (applied, gathered) = (offer.applied.clone(), StateRoot::empty(of));
        let proven = Proven { applied, root, gathered, held, earlier: held, at: None, has_pieces };
        let install =
            Self { source: Some((from, offer.transfer)), proven: Some(proven), ..Self::new(of, parts) };
        Ok((install, writes))
    }

    /// The empty state, which every log begins with, in place of whatever is here. Returns also the writes that clear what an
    /// attempt to gather another state left: it must not be copied into this one.
    pub(in crate::group) fn empty(
        storage: &dyn Storage,
        of: Parts,
        beginning: Reached,
    ) -> Result<(Self, Vec<Vec<StateWrite>>), StorageError> {
        let writes = removals(storage, [keys::staged_bounds(of.group())])?;
        let proven = Proven {
            applied: beginning.clone(),
            root: StateRoot::empty(of),
            gathered: StateRoot::empty(of),
            held: of.all(),
            earlier: of.all(),
            at: None,
            has_pieces: false,
        };
        let (applied, proven) = (Some(beginning), Some(proven));
        Ok((Self { applied, proven, ..Self::new(of, of.all()) }, writes))
    }

    /// Goes on with an installation that a crash interrupted, if there is one.
    pub(in crate::group) fn resume(storage: &dyn Storage, of: Parts) -> Result<Option<Self>, StorageError> {
        let raw = keys::installing(of.group());
        let Some(record) = storage.get(&raw)? else {
            return Ok(None);
        };
        let damaged = |reason| StorageError::corrupt("the mark of a snapshot", reason);
        let (&phase, record) = record.split_first().ok_or_else(|| damaged("it is empty"))?;
        let (parts, record) = record.split_first_chunk().ok_or_else(|| damaged("it is too short"))?;
        let parts = of.set(*parts).ok_or_else(|| damaged("its parts are unknown"))?;
        let applied = Reached::decode(&raw, Bytes::copy_from_slice(record))?;
        let phase = match phase {
            1 => Phase::Clearing,
            2 => Phase::Copying,
            _ => return Err(damaged("its phase is unknown")),
        };
        Ok(Some(Self { applied: Some(applied), phase, ..Self::new(of, parts) }))
    }

    /// Whether the piece belongs to this transfer.
    pub(in crate::group) fn is_from(&self, from: NodeId, transfer: u64) -> bool {
        self.source == Some((from, transfer))
    }

    /// Whether the piece was taken before.
    pub(in crate::group) fn has_taken(&self, index: u64) -> bool {
        index < self.next_index
    }

    /// Whether a piece is missing that the sender will not give again: it was taken, and forgotten since.
    pub(in crate::group) fn misses(&self, first: u64) -> bool {
        self.next_index < first && self.phase == Phase::Gathering
    }

    /// Whether the state is the new one already, though not in place.
    pub(in crate::group) fn has_switched(&self) -> bool {
        self.phase != Phase::Gathering
    }

    /// What is being installed, once all of it is there.
    pub(in crate::group) fn applied(&self) -> Option<&Reached> {
        self.applied.as_ref()
    }

    /// The parts that the sender must give.
    pub(in crate::group) fn asked(&self) -> PartSet {
        let held = |part: &u8| self.proven.as_ref().is_some_and(|proven| proven.held.contains(*part));
        PartSet::of(|part| self.parts.contains(*part) && !held(part))
    }

    /// How many parts are replaced.
    pub(in crate::group) fn parts(&self) -> usize {
        self.parts.iter().count()
    }

    /// Whether the parts that stay are still those that the new state was held against: `now` is what is here.
    pub(in crate::group) fn still_fits(&self, now: &StateRoot) -> bool {
        let Some(proven) = &self.proven else { return true };
        let changed = proven.root.differing(now);
        changed.iter().all(|part| self.parts.contains(part))
    }

    /// Takes the next piece and returns the writes that store it; `None` if it is not the next one. A state that
    /// does not verify is an error of the sender: it is dropped, the old state stands.
    pub(in crate::group) fn gather(&mut self, piece: Piece) -> Option<Vec<StateWrite>> {
        if piece.index != self.next_index || self.phase != Phase::Gathering {
            return None;
        }
        let bounds = self.of.bounds_of(self.parts);
        let is_ours = |key: &Bytes| bounds.iter().any(|(from, to)| from <= key && key < to);
        let fits = |key: &Bytes, record: &Bytes| {
            keys::STAGED_PREFIX_BYTES + key.len() + record.len() <= RECORD_BYTES_MAX
        };
        // Whoever gives pieces fills each until it is full, and no further.
        let bytes: usize = piece.rows.iter().map(|(key, record)| key.len() + record.len()).sum();
        let is_fit = bytes < SNAPSHOT_CHUNK_BYTES + RECORD_BYTES_MAX
            && piece.rows.iter().all(|(key, record)| is_ours(key) && fits(key, record));
        if !is_fit || !self.take(&piece) {
            self.source = None;
            return None;
        }
        self.next_index += 1;
        let stored = |(key, record): (Bytes, Bytes)| (keys::staged(self.of.group(), &key), Some(record));
        Some(piece.rows.into_iter().map(stored).collect())
    }

    /// Counts the rows in, and holds all of them against what they must come to if these were the last.
    fn take(&mut self, piece: &Piece) -> bool {
        // What held before this transfer is not asked for; what holds since is not sent again, because rows ascend.
        let asked = self.parts;
        self.hasher.add(&piece.rows);
        match (&mut self.proven, &piece.end) {
            (Some(proven), end) => {
                let is_right = proven.take(asked, &piece.rows);
                if end.is_some() && is_right {
                    let is_whole = proven.close(asked, u8::MAX);
                    let applied = Reached { has_pieces: proven.has_pieces, ..proven.applied.clone() };
                    self.applied = is_whole.then_some(applied);
                    return is_whole;
                }
                is_right
            }
            (None, Some((applied, hash))) => {
                self.applied = (*hash == self.hasher.finish()).then(|| applied.clone());
                self.applied.is_some()
            }
            (None, None) => true,
        }
    }

    /// Everything written so far is durable: the next batch, or `None` when the state is in place.
    pub(in crate::group) fn next_batch(
        &mut self,
        storage: &dyn Storage,
    ) -> Result<Option<Vec<StateWrite>>, StorageError> {
        match self.phase {
            Phase::Gathering => {
                self.phase = Phase::Clearing;
                let mut writes = vec![self.mark(1)];
                if let Some(proven) = &mut self.proven {
                    // From the mark on the state is the new one, and so are the hashes of its parts.
                    proven.root.write_all(&mut writes);
                }
                Ok(Some(writes))
            }
            Phase::Clearing => {
                let bounds = || self.of.bounds_of(self.parts).into();
                let rest = self.rest.get_or_insert_with(bounds);
                if let Some(rows) = next_page(storage, rest)? {
                    return Ok(Some(rows.into_iter().map(|(key, _)| (key, None)).collect()));
                }
                (self.phase, self.rest) = (Phase::Copying, None);
                Ok(Some(vec![self.mark(2)]))
            }
            Phase::Copying => {
                let rest = self.rest.get_or_insert_with(|| [keys::staged_bounds(self.of.group())].into());
                let Some(rows) = next_page(storage, rest)? else {
                    self.phase = Phase::Done;
                    return Ok(Some(self.last_batch()));
                };
                let moves =
                    |(key, record): (Bytes, Bytes)| [(keys::unstaged(&key), Some(record)), (key, None)];
                Ok(Some(rows.into_iter().flat_map(moves).collect()))
            }
            Phase::Done => Ok(None),
        }
    }

    /// The position, and no mark any more: neither that the state is under way, nor that it is damaged.
    fn last_batch(&self) -> Vec<StateWrite> {
        let applied = self.applied.as_ref().expect("only a whole state is copied");
        let position = applied.write(self.of.group());
        vec![position, (keys::installing(self.of.group()), None), (keys::damaged(self.of.group()), None)]
    }

    fn mark(&self, phase: u8) -> StateWrite {
        let raw = keys::installing(self.of.group());
        let applied = self.applied.as_ref().expect("only a whole state is marked");
        let record = applied.encode(&raw);
        (raw, Some(Bytes::from([&[phase], self.parts.to_bytes().as_slice(), record.as_ref()].concat())))
    }
}

/// The next rows of these ranges, which go on behind them; none when there is none left.
fn next_page(
    storage: &dyn Storage,
    rest: &mut VecDeque<(Bytes, Bytes)>,
) -> Result<Option<Vec<(Bytes, Bytes)>>, StorageError> {
    while let Some((from, to)) = rest.front_mut() {
        let rows = storage.scan(from, to, PAGE_BYTES)?;
        if let Some((last, _)) = rows.last() {
            *from = Bytes::from([last.as_ref(), &[0]].concat());
            return Ok(Some(rows));
        }
        rest.pop_front();
    }
    Ok(None)
}

/// The writes that remove every row of these ranges, in pages.
fn removals(
    storage: &dyn Storage,
    bounds: impl IntoIterator<Item = (Bytes, Bytes)>,
) -> Result<Vec<Vec<StateWrite>>, StorageError> {
    let mut rest = bounds.into_iter().collect();
    let mut writes = Vec::new();
    while let Some(rows) = next_page(storage, &mut rest)? {
        writes.push(rows.into_iter().map(|(key, _)| (key, None)).collect());
    }
    Ok(writes)
}
