//! The state machine: what commands mean.
//!
//! Every replica of a group applies the same batches in the same slots, so everything here follows from the batch and
//! the state alone: no clock, no randomness, no local setting. Time is the log's.
//!
//! Invariants:
//! * slots are applied without a gap, each once; what is applied is a prefix of what is decided;
//! * versions grow with every change of any key of the group;
//! * a request `(session, number)` is applied at most once, and its outcome is given again to every retry;
//! * no client keeps others from opening a session, or from having outcomes remembered;
//! * what reaches the tree is the state at one slot: data, sessions and the applied position in one atomic batch;
//! * replicas that applied the same slots have the same digest.
//!
//! What is not here: who asks, and whether the answer is still wanted (`group`); transactions.

pub mod command;
mod lattice;
mod overlay;
mod record;
mod sessions;
mod shares;
mod signed;
mod state_root;

pub use command::{
    Batch, Command, CommandError, Expect, Failure, Reply, RequestId, SessionId, Write, check_key,
};
pub use record::Versioned;
pub(crate) use record::{seal, unseal};
pub use shares::Held;
pub use signed::{Client, Operation, SignedRequest};
#[cfg(test)]
pub(crate) use state_root::LEAVES_OUT_SESSIONS;
pub use state_root::{PartSet, StateRoot, part_after, part_bounds, part_of};

use crate::error::StorageError;
use crate::limits::{Limits, NUMBER_BYTES_MAX, OVERLAY_BYTES_STREAMING_MAX, SESSION_STEP_MICROS_MAX};
use crate::ring::{GroupId, Position, RingInterval};
use crate::storage::{StateWrite, Storage, keys};
use bytes::Bytes;
use overlay::{Cache, Known, Overlay, Pending, PlacedKey};
use record::{Earlier, Head};
use serde::{Deserialize, Serialize};
use sessions::{Lookup, Sessions};
use std::collections::VecDeque;

/// How far a group's state has come. Stored in the same batch as the state itself, and nowhere else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The last applied slot.
    pub slot: u64,
    /// The log's chain hash there.
    pub chain: [u8; 32],
    /// Whether the entry there ended the epoch.
    pub sealed: bool,
    /// Log time, in microseconds since the Unix epoch.
    pub time: u64,
    /// The time by which sessions end, in microseconds: log time, but one step of it counts as ten minutes at most
    /// ([`crate::limits::SESSION_STEP_MICROS_MAX`]).
    pub session_time: u64,
    /// The latest version given out.
    pub clock: u64,
    /// Hash over everything that was answered up to here.
    pub digest: [u8; 32],
    /// Whether a value was ever stored in more than one record.
    pub has_pieces: bool,
}

/// One decided slot, as the state machine needs it.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Its number.
    pub slot: u64,
    /// The log's chain hash up to and including it.
    pub chain: [u8; 32],
    /// Whether it ends the epoch.
    pub sealed: bool,
    /// Its time.
    pub time: u64,
    /// The commands, if it has any.
    pub batch: Option<Bytes>,
}

/// What a state machine holds its clients to.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Sizes.
    pub limits: Limits,
    /// The broken variant in which a client may hold all sessions: a test must notice.
    pub ignores_shares: bool,
}

impl From<Limits> for Rules {
    fn from(limits: Limits) -> Self {
        Self { limits, ignores_shares: false }
    }
}

/// The replicated state of one group.
#[derive(Debug)]
pub struct Machine {
    group: GroupId,
    range: RingInterval,
    limits: Limits,
    applied: Applied,
    sessions: Sessions,
    fresh: Overlay,
    /// Checkpoints that are being written, the oldest first.
    frozen: VecDeque<Overlay>,
    /// In Byzantine mode, the rows of all of them: the tree does not hold them yet, and the next root builds on them.
    pending: Pending,
    cache: Cache,
    is_dirty: bool,
    /// In Byzantine mode, what a checkpoint's root is made of.
    root: Option<StateRoot>,
}

/// Checkpoints that may be on their way to the tree at a time.
const CHECKPOINTS_MAX: usize = 16;

/// Clean records that one group keeps in memory, in bytes.
const CACHE_BYTES: usize = 4 << 20;

impl Machine {
    /// Reads a group's state back; a group that was never written starts empty.
    pub fn load(
        storage: &dyn Storage,
        group: GroupId,
        range: RingInterval,
        rules: impl Into<Rules>,
    ) -> Result<Self, StorageError> {
        let (applied, rules) = (load_applied(storage, group)?, rules.into());
        let sessions = Sessions::load(storage, group)?.under(rules);
        Ok(Self { applied, sessions, ..Self::empty(group, range, rules) })
    }

    /// A state that nothing was applied to, whatever is stored.
    #[must_use]
    pub fn empty(group: GroupId, range: RingInterval, rules: impl Into<Rules>) -> Self {
        let rules = rules.into();
        Self {
            group,
            range,
            limits: rules.limits,
            applied: Applied::default(),
            sessions: Sessions::default().under(rules),
            fresh: Overlay::default(),
            frozen: VecDeque::new(),
            pending: Pending::default(),
            cache: Cache::new(CACHE_BYTES),
            is_dirty: false,
            root: None,
        }
    }

    /// The same state, with a root that is kept from now on; in Byzantine mode from the first slot.
    pub fn with_root(self, storage: &dyn Storage) -> Result<Self, StorageError> {
        let root = StateRoot::load(storage, self.group)?;
        Ok(Self { root: Some(root), ..self })
    }

    /// The root of the state that was last frozen for a checkpoint, if nothing was applied since.
    #[must_use]
    pub fn state_root(&self) -> Option<[u8; 32]> {
        self.root.as_ref().filter(|_| !self.is_dirty).map(|root| root.digest(&self.applied))
    }

    /// In Byzantine mode, the hashes of the state that the tree holds, if it holds what was last frozen.
    #[must_use]
    pub fn root_of_tree(&self) -> Option<&StateRoot> {
        self.root.as_ref().filter(|_| self.frozen.is_empty())
    }

    /// How far the state has come.
    #[must_use]
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    /// How many sessions are remembered.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// What each client holds of the group's memory that holds anything.
    pub fn held(&self) -> impl Iterator<Item = (&Client, &Held)> {
        self.sessions.shares().iter()
    }

    /// What the group owns.
    #[must_use]
    pub fn range(&self) -> RingInterval {
        self.range
    }

    /// Applies the next slot and returns what each command answers, in order.
    ///
    /// An error means that a stored record could not be read; the replica must stop, its state is behind the log now.
    pub fn apply(
        &mut self,
        storage: &dyn Storage,
        slot: Slot,
    ) -> Result<Vec<(RequestId, Reply)>, StorageError> {
        let mut hasher = self.begin_slot(&slot);
        // Bytes that are no batch mean the same to every replica: nothing.
        let commands = slot.batch.and_then(Batch::split).unwrap_or_default();
        let mut replies = Vec::with_capacity(commands.len());
        for (index, bytes) in commands.into_iter().enumerate() {
            let Ok(command) = Command::decode(&bytes) else {
                continue;
            };
            let reply = self.apply_command(storage, &command, &bytes, index)?;
            hasher.update(&postcard::to_stdvec(&reply).expect("writing to memory cannot fail"));
            replies.push((command.request(), reply));
        }
        self.end_slot(&hasher);
        Ok(replies)
    }

    /// What a client is told that opens a session now, if it is refused: what an opening would be told that is applied next, with this
    /// time. The state does not change.
    #[must_use]
    pub fn refusal_to_open(&self, client: &Client, time: u64) -> Option<Reply> {
        self.sessions.refusal_to_open(client, self.session_time_at(time))
    }

    /// Session time in a slot that is applied next, with this time.
    fn session_time_at(&self, time: u64) -> u64 {
        let step = time.saturating_sub(self.applied.time);
        self.applied.session_time + step.min(SESSION_STEP_MICROS_MAX)
    }

    /// Moves to the next slot and its time; returns the hasher that gathers its answers.
    fn begin_slot(&mut self, slot: &Slot) -> blake3::Hasher {
        assert_eq!(slot.slot, self.applied.slot + 1, "slots are applied without a gap");
        assert!(!self.applied.sealed, "nothing is applied after the end of the epoch");
        self.applied.slot = slot.slot;
        self.applied.chain = slot.chain;
        self.applied.sealed = slot.sealed;
        self.applied.session_time = self.session_time_at(slot.time);
        self.applied.time = self.applied.time.max(slot.time);
        self.is_dirty = true;
        self.sessions.expire(self.applied.session_time);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.applied.digest).update(&slot.slot.to_be_bytes());
        hasher
    }

    fn end_slot(&mut self, hasher: &blake3::Hasher) {
        self.applied.digest = *hasher.finalize().as_bytes();
    }

    fn apply_command(
        &mut self,
        storage: &dyn Storage,
        command: &Command,
        bytes: &[u8],
        index: usize,
    ) -> Result<Reply, StorageError> {
        let time = self.applied.session_time;
        let (request, ack_below, write) = match command {
            Command::Open { nonce, client } => {
                return Ok(self.sessions.open(self.session_id(*nonce, index), *client, 0, time));
            }
            Command::Close { request, client } => {
                return Ok(self.sessions.close(request.session, client, time));
            }
            Command::Write { request, ack_below, write } => (*request, *ack_below, write),
        };
        assert!(index < u32::MAX as usize, "a batch has few commands");
        // The session first: a retry is answered even if the key has moved since.
        let digest = digest64(write_bytes(bytes, write));
        match self.sessions.lookup(request.session, request.number, ack_below, digest, time) {
            Lookup::Known(reply) => return Ok(reply),
            Lookup::Refused(failure) => return Ok(Reply::Failed(failure)),
            Lookup::Fresh => {}
        }
        let position = Position::of_key(write.key());
        if !self.range.contains(position) {
            return Ok(Reply::Failed(Failure::WrongGroup));
        }
        let reply = self.apply_write(storage, position, write)?;
        let is_outcome = !matches!(&reply, Reply::Failed(failure) if !failure.is_outcome());
        if is_outcome {
            self.sessions.remember(request.session, request.number, digest, reply.clone(), 0);
        }
        Ok(reply)
    }

    fn apply_write(
        &mut self,
        storage: &dyn Storage,
        position: Position,
        write: &Write,
    ) -> Result<Reply, StorageError> {
        let placed = (position, write.key().clone());
        match write {
            Write::Put { value, .. } => Ok(Reply::Put { version: self.store(placed, value.clone()) }),
            Write::Delete { .. } => {
                let existed = self.head(storage, &placed)?.is_some();
                if existed {
                    self.remove(placed);
                }
                Ok(Reply::Deleted { existed })
            }
            Write::Cas { expect, value, .. } => {
                let head = self.head(storage, &placed)?;
                let version = head.as_ref().map_or(0, |head| head.version);
                let matches = self.matches(storage, &placed, head, expect)?;
                Ok(self.compare_and_set(placed, version, matches, value.as_ref()))
            }
            Write::Incr { by, .. } => {
                let head = self.head(storage, &placed)?;
                Ok(self.increment(placed, head, *by))
            }
            Write::Append { value, .. } => {
                let head = self.head(storage, &placed)?;
                let length = head.as_ref().map_or(0, |head| head.length) + value.len();
                let (bytes, max) = (length as u64, self.limits.value_bytes_max as u64);
                if bytes > max {
                    return Ok(Reply::Failed(Failure::ValueTooLarge { bytes, max }));
                }
                let before = self.value_of(storage, &placed, head)?.unwrap_or_default();
                let whole = Bytes::from([before.as_ref(), value.as_ref()].concat());
                Ok(Reply::Append { length: bytes, version: self.store(placed, whole) })
            }
        }
    }

    /// Whether a key is what a compare-and-set expects. A value of another length is not it, and need not be read.
    fn matches(
        &mut self,
        storage: &dyn Storage,
        placed: &PlacedKey,
        head: Option<Head>,
        expect: &Expect,
    ) -> Result<bool, StorageError> {
        let (length, version) = head.as_ref().map_or((None, 0), |head| (Some(head.length), head.version));
        match expect {
            Expect::Version(expected) => Ok(*expected == version),
            Expect::Value(expected) if expected.as_ref().map(Bytes::len) != length => Ok(false),
            Expect::Value(expected) => Ok(*expected == self.value_of(storage, placed, head)?),
        }
    }

    fn compare_and_set(
        &mut self,
        placed: PlacedKey,
        version: u64,
        matches: bool,
        value: Option<&Bytes>,
    ) -> Reply {
        match value {
            _ if !matches => Reply::Cas { swapped: false, version },
            Some(value) => Reply::Cas { swapped: true, version: self.store(placed, value.clone()) },
            None => {
                if version != 0 {
                    self.remove(placed);
                }
                Reply::Cas { swapped: true, version: 0 }
            }
        }
    }

    fn increment(&mut self, placed: PlacedKey, head: Option<Head>, by: i64) -> Reply {
        let number = |value: Bytes| std::str::from_utf8(&value).ok()?.parse::<i64>().ok();
        // Whether the value is in memory must not matter: what is longer than a number is none, read or not.
        let before = match head {
            None => Some(0),
            Some(head) => head.value.filter(|_| head.length <= NUMBER_BYTES_MAX).and_then(number),
        };
        let Some(before) = before else {
            return Reply::Failed(Failure::NotANumber);
        };
        let Some(value) = before.checked_add(by) else {
            return Reply::Failed(Failure::Overflow);
        };
        let version = self.store(placed, Bytes::from(value.to_string()));
        Reply::Incr { value, version }
    }

    fn store(&mut self, placed: PlacedKey, value: Bytes) -> u64 {
        let version = self.next_version();
        self.fresh.put(placed, Some(Versioned { version, value }));
        version
    }

    fn remove(&mut self, placed: PlacedKey) {
        self.next_version();
        self.fresh.put(placed, None);
    }

    /// Versions follow log time, but always grow.
    fn next_version(&mut self) -> u64 {
        let next = (self.applied.clock + 1).max(self.applied.time);
        assert!(next > self.applied.clock, "versions grow");
        self.applied.clock = next;
        next
    }

    /// What is in memory of a key.
    fn in_memory(&mut self, placed: &PlacedKey) -> Option<Known> {
        let frozen = || self.frozen.iter().rev().find_map(|overlay| overlay.get(placed));
        let written = self.fresh.get(placed).or_else(frozen);
        if let Some(known) = written {
            return Some(known.clone());
        }
        self.cache.get(placed)
    }

    fn find(&mut self, storage: &dyn Storage, placed: &PlacedKey) -> Result<Option<Versioned>, StorageError> {
        if let Some(known) = self.in_memory(placed) {
            return Ok(known);
        }
        let known = record::read(storage, placed.0, &placed.1)?;
        self.cache.put(placed.clone(), known.clone());
        Ok(known)
    }

    /// What can be told of a key from its first record: a write whose outcome follows from that reads no more, however large
    /// the value is.
    fn head(&mut self, storage: &dyn Storage, placed: &PlacedKey) -> Result<Option<Head>, StorageError> {
        if let Some(known) = self.in_memory(placed) {
            return Ok(known.as_ref().map(Head::of));
        }
        let head = record::read_head(storage, placed.0, &placed.1)?;
        let whole = |head: &Head| Some(Versioned { version: head.version, value: head.value.clone()? });
        let known = head.as_ref().map(whole);
        if known != Some(None) {
            self.cache.put(placed.clone(), known.flatten());
        }
        Ok(head)
    }

    /// The value behind a first record.
    fn value_of(
        &mut self,
        storage: &dyn Storage,
        placed: &PlacedKey,
        head: Option<Head>,
    ) -> Result<Option<Bytes>, StorageError> {
        match head {
            Some(Head { value: None, .. }) => Ok(self.find(storage, placed)?.map(|found| found.value)),
            head => Ok(head.and_then(|head| head.value)),
        }
    }

    /// Reads a key from the applied state. `Err(None)`: the key belongs to another group.
    pub fn get(
        &mut self,
        storage: &dyn Storage,
        key: &Bytes,
    ) -> Result<Option<Versioned>, Option<StorageError>> {
        let position = Position::of_key(key);
        if !self.range.contains(position) {
            return Err(None);
        }
        self.find(storage, &(position, key.clone())).map_err(Some)
    }

    /// The name of a session that is opened in the slot being applied. It is never given twice, so a request of a
    /// forgotten session can never be taken for one of a later session.
    fn session_id(&self, nonce: u128, index: usize) -> SessionId {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&nonce.to_be_bytes()).update(&self.group.0.to_be_bytes());
        hasher.update(&self.applied.slot.to_be_bytes()).update(&(index as u64).to_be_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        SessionId(u128::from_be_bytes(id))
    }

    /// Whether another checkpoint may begin although earlier ones are being written.
    #[must_use]
    pub fn has_room_to_freeze(&self) -> bool {
        self.frozen.len() < CHECKPOINTS_MAX && self.frozen_bytes() < OVERLAY_BYTES_STREAMING_MAX
    }

    /// Whether something was applied that the tree does not hold, and nothing is being written just now.
    #[must_use]
    pub fn wants_checkpoint(&self) -> bool {
        self.is_dirty && self.frozen.is_empty()
    }

    /// Bytes written since the last checkpoint.
    #[must_use]
    pub fn unwritten_bytes(&self) -> usize {
        self.fresh.bytes()
    }

    /// Freezes what was written and returns it as one atomic batch that brings the tree to the applied slot.
    pub fn begin_checkpoint(&mut self, storage: &dyn Storage) -> Result<Vec<StateWrite>, StorageError> {
        assert!(self.frozen.len() < CHECKPOINTS_MAX, "few checkpoints at a time");
        let pending = std::mem::take(&mut self.pending);
        let storage = &pending.over(storage);
        let frozen = std::mem::take(&mut self.fresh);
        let mut writes = Vec::new();
        for ((position, key), known) in frozen.iter() {
            let earlier = match (self.applied.has_pieces, &self.root) {
                (false, _) => Earlier::NoPieces,
                (true, None) => Earlier::Swept,
                // The sum of a part needs to know every row that goes.
                (true, Some(_)) => Earlier::Read(storage),
            };
            let pieces = record::write(*position, key, known.as_ref(), earlier, &mut writes)?;
            self.applied.has_pieces |= pieces > 0;
        }
        self.sessions.take_writes(self.group, &mut writes);
        if let Some(root) = &mut self.root {
            // The tree holds what the last checkpoint wrote: nothing else is between it and these rows.
            for (raw, record) in &writes {
                let old = storage.get(raw)?;
                root.change(raw, old.as_ref(), record.as_ref());
            }
            root.take_writes(self.group, &mut writes);
        }
        writes.push(applied_write(self.group, &self.applied));
        assert!(frozen.is_empty() || writes.len() > 1, "what was written is in the batch");
        self.frozen.push_back(frozen);
        self.pending = pending;
        if self.root.is_some() {
            self.pending.add(&writes);
        }
        self.is_dirty = false;
        Ok(writes)
    }

    /// Bytes of checkpoints that the tree does not hold yet.
    #[must_use]
    pub fn frozen_bytes(&self) -> usize {
        self.frozen.iter().map(Overlay::bytes).sum()
    }

    /// Checkpoints that the tree does not hold yet.
    #[must_use]
    pub fn checkpoints(&self) -> usize {
        self.frozen.len()
    }

    /// The two oldest checkpoints that were not handed to the tree yet become one; those before them are on their way.
    pub fn join_checkpoints(&mut self, on_their_way: usize) {
        let later = self.frozen.remove(on_their_way + 1).expect("there are two");
        self.frozen[on_their_way].absorb(later);
        self.pending.join(on_their_way as u64 + 1);
    }

    /// The batch is durable: the tree holds it now.
    pub fn end_checkpoint(&mut self) {
        let written = self.frozen.pop_front().expect("a checkpoint was begun");
        self.cache.absorb(written);
        if self.root.is_some() {
            self.pending.written();
        }
        assert!(!self.frozen.is_empty() || self.pending.is_empty(), "the tree holds what was frozen");
    }

    /// Forgets all sessions: the broken variant that keeps them in memory only.
    #[cfg(test)]
    pub(crate) fn forget_sessions(&mut self) {
        self.sessions.forget_all();
    }
}

/// Reads how far a group's stored state has come.
pub fn load_applied(storage: &dyn Storage, group: GroupId) -> Result<Applied, StorageError> {
    let raw = keys::applied(group);
    match storage.get(&raw)? {
        None => Ok(Applied::default()),
        Some(record) => decode_applied(&raw, record),
    }
}

/// Reads the record that [`applied_write`] made, or one under another key with the same form.
pub fn decode_applied(raw: &[u8], record: Bytes) -> Result<Applied, StorageError> {
    let body = unseal(raw, record)?;
    postcard::from_bytes(&body)
        .map_err(|error| StorageError::corrupt(format!("record {}", raw.escape_ascii()), error))
}

/// The write that says how far a group's state has come.
#[must_use]
pub fn applied_write(group: GroupId, applied: &Applied) -> StateWrite {
    let raw = keys::applied(group);
    let record = encode_applied(&raw, applied);
    (raw, Some(record))
}

/// The record for a raw key that holds a position of the state.
#[must_use]
pub fn encode_applied(raw: &[u8], applied: &Applied) -> Bytes {
    seal(raw, &postcard::to_stdvec(applied).expect("writing to memory cannot fail"))
}

/// The part of a command's bytes that a retry repeats unchanged: all but the acknowledgement before it.
fn write_bytes<'a>(bytes: &'a [u8], write: &Write) -> &'a [u8] {
    let length = postcard::experimental::serialized_size(write).unwrap_or(bytes.len()).min(bytes.len());
    &bytes[bytes.len() - length..]
}

fn digest64(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    u64::from_be_bytes(hash.as_bytes()[..8].try_into().expect("8 of 32 bytes"))
}

#[cfg(test)]
mod tests;
