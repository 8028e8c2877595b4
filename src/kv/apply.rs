//! The one path of a request through the state.
//!
//! In Byzantine mode clients may lie, and whoever proposed the batch too: nothing was checked before but the signature. Each request is
//! judged here, by the state and ordered time alone, so every replica comes to the same verdict. In this order:
//!
//! 1. it is void after the time that its client set, and before a time that is too far ahead: a signed request is good for
//!    minutes, its session is remembered for longer, so a request that is played again never applies again. In crash mode none is set;
//! 2. what was told before is told again, and what is out of its window or its order is refused ([`super::sessions`]). A session belongs
//!    to the client that opened it, and what was asked for one that is closed is void;
//! 3. the group owns the key. The session comes first: a retry is answered even if the key has moved since;
//! 4. sizes are within the limits;
//! 5. the write is judged ([`super::evaluate`]), and its outcome remembered.

use super::envelope::{Envelope, Input};
use super::evaluate::{self, At, Verdict, evaluate};
use super::machine::Machine;
use super::operation::{Operation, RequestId, SessionId, Write};
use super::overlay::PlacedKey;
use super::read::SlotReads;
use super::record::{Head, Record};
use super::reply::{Failure, Reply};
use super::sessions::{Asked, Lookup};
use crate::error::StorageError;
use crate::limits::{REQUEST_VALID_MICROS_MAX, SESSION_STEP_MICROS_MAX};
use crate::ring::Position;
use crate::storage::Storage;
use bytes::Bytes;

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
    /// What is applied, in order.
    pub inputs: Vec<Input>,
}

/// What a slot came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// What each request is told, in order.
    pub replies: Vec<(RequestId, Reply)>,
}

/// What a slot has come to so far.
struct Turn {
    hasher: blake3::Hasher,
    bytes: Vec<u8>,
    reads: SlotReads,
}

impl Turn {
    /// All replicas tell the same.
    fn note(&mut self, reply: &Reply) {
        self.bytes.clear();
        let bytes = postcard::to_extend(reply, std::mem::take(&mut self.bytes));
        self.bytes = bytes.expect("writing to memory cannot fail");
        self.hasher.update(&self.bytes);
    }
}

impl Machine {
    /// Applies the next slot and returns what it came to.
    ///
    /// An error means that a stored record could not be read; the replica must stop, its state is behind the log now.
    pub fn apply(&mut self, storage: &dyn Storage, slot: &Slot) -> Result<Applied, StorageError> {
        let mut turn = self.begin_slot(slot);
        let mut applied = Applied { replies: Vec::with_capacity(slot.inputs.len()) };
        for (index, input) in slot.inputs.iter().enumerate() {
            let Input::Request(envelope) = input;
            let reply = self.apply_request(storage, envelope, index, &mut turn.reads)?;
            turn.note(&reply);
            applied.replies.push((envelope.request, reply));
        }
        self.reached.digest = *turn.hasher.finalize().as_bytes();
        Ok(applied)
    }

    /// Moves to the next slot and its time.
    fn begin_slot(&mut self, slot: &Slot) -> Turn {
        assert_eq!(slot.slot, self.reached.slot + 1, "slots are applied without a gap");
        assert_eq!(self.reached.epoch, self.tenure.id.epoch, "nothing is applied after the end of the epoch");
        self.reached.slot = slot.slot;
        self.reached.chain = slot.chain;
        self.reached.epoch += u64::from(slot.sealed);
        self.reached.session_time = self.session_time_at(slot.time);
        self.reached.time = self.reached.time.max(slot.time);
        self.is_dirty = true;
        self.sessions.expire(self.reached.session_time);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.reached.digest).update(&slot.slot.to_be_bytes());
        Turn { hasher, bytes: Vec::new(), reads: SlotReads::default() }
    }

    /// Session time in a slot that is applied next, with this time.
    pub(super) fn session_time_at(&self, time: u64) -> u64 {
        let step = time.saturating_sub(self.reached.time);
        self.reached.session_time + step.min(SESSION_STEP_MICROS_MAX)
    }

    fn apply_request(
        &mut self,
        storage: &dyn Storage,
        envelope: &Envelope,
        index: usize,
        reads: &mut SlotReads,
    ) -> Result<Reply, StorageError> {
        let (time, now) = (self.reached.time, self.reached.session_time);
        if let Some(failure) = envelope.not_after.and_then(|not_after| void(not_after, time)) {
            return Ok(Reply::Failed(failure));
        }
        let Ok(operation) = Operation::decode(&envelope.operation) else {
            return Ok(Reply::Failed(Failure::Malformed));
        };
        // Sessions count the time that passes without its leaps: for them the request is good for the same time, and perhaps longer.
        let good_until = envelope.not_after.map_or(0, |not_after| now + (not_after - time));
        let client = envelope.client.unwrap_or_default();
        match &operation {
            Operation::Open => {
                let id = self.session_of(envelope, index);
                Ok(self.sessions.open(id, client, good_until, now))
            }
            Operation::Close => Ok(self.sessions.close(envelope.request.session, &client, now)),
            Operation::Get { key } => self.read_in_order(storage, &client, key, reads),
            Operation::Write(write) => {
                let digest = Some(digest64(&envelope.operation));
                self.apply_once(envelope, write.key(), digest, good_until, |machine, placed| {
                    if operation.check(&machine.rules.limits).is_err() {
                        return Ok(Reply::Failed(Failure::Malformed));
                    }
                    machine.apply_write(storage, placed, write)
                })
            }
            // If nothing was carried out under its number yet, nothing ever will be. What was signed under the number may be good for
            // longer than this is.
            Operation::Cancel { key } => {
                let lasting = envelope.not_after.map_or(0, |_| now + REQUEST_VALID_MICROS_MAX);
                self.apply_once(envelope, key, None, lasting, |_, _| Ok(Reply::Failed(Failure::Cancelled)))
            }
        }
    }

    /// Carries a request out, unless its number has an outcome, which is told: whatever was asked under it, if no digest is given.
    /// Remembers what it comes to. Only the owner of the key does so: from another group it would be a promise of which the owner does not
    /// know.
    fn apply_once(
        &mut self,
        envelope: &Envelope,
        key: &Bytes,
        digest: Option<u64>,
        good_until: u64,
        act: impl FnOnce(&mut Self, PlacedKey) -> Result<Reply, StorageError>,
    ) -> Result<Reply, StorageError> {
        match self.look_up(envelope, digest) {
            Lookup::Known(reply) => return Ok(reply),
            Lookup::Refused(failure) => return Ok(Reply::Failed(failure)),
            Lookup::Fresh => {}
        }
        let position = Position::of_key(key);
        if !self.tenure.range.contains(position) {
            return Ok(Reply::Failed(Failure::WrongGroup));
        }
        let reply = act(self, (position, key.clone()))?;
        let is_forgotten = self.rules.forgets_cancels && reply == Reply::Failed(Failure::Cancelled);
        if reply.is_outcome() && !is_forgotten {
            let digest = digest.unwrap_or_else(|| digest64(&envelope.operation));
            let RequestId { session, number } = envelope.request;
            self.sessions.remember(session, number, digest, reply.clone(), good_until);
        }
        Ok(reply)
    }

    fn look_up(&mut self, envelope: &Envelope, digest: Option<u64>) -> Lookup {
        let id = envelope.request.session;
        let is_anothers = envelope.client.is_some() && self.sessions.owner(id) != envelope.client;
        if is_anothers {
            return Lookup::Refused(Failure::SessionExpired);
        }
        let Envelope { request, ack_below, after, .. } = *envelope;
        let asked = Asked { number: request.number, ack_below, after, digest };
        self.sessions.lookup(id, asked, self.reached.session_time)
    }

    fn apply_write(
        &mut self,
        storage: &dyn Storage,
        placed: PlacedKey,
        write: &Write,
    ) -> Result<Reply, StorageError> {
        let at = At { version: self.next_version(), time: self.reached.time };
        let mut head: Option<Option<Head>> = None;
        loop {
            let known =
                head.as_ref().map_or(evaluate::Known::Nothing, |head| evaluate::Known::Head(head.as_ref()));
            match evaluate(write, known, at, &self.rules.limits) {
                Verdict::NeedsHead => {
                    assert!(head.is_none(), "a first record is asked for once");
                    head = Some(self.head(storage, &placed)?);
                }
                Verdict::NeedsValue => {
                    let is_unread = matches!(&head, Some(Some(head)) if head.value.is_none());
                    assert!(is_unread, "a value is asked for once, behind its first record");
                    head = Some(self.find(storage, &placed)?.map(Head::from));
                }
                Verdict::Change(to, reply) => {
                    self.install(placed, at.version, to);
                    return Ok(reply);
                }
                Verdict::Stays(reply) => return Ok(reply),
            }
        }
    }

    /// A key becomes this, or is removed.
    fn install(&mut self, placed: PlacedKey, version: u64, to: Option<Record>) {
        assert!(version > self.reached.clock, "versions grow");
        self.reached.clock = version;
        self.fresh.put(placed, to);
    }

    /// Versions follow log time, but always grow.
    fn next_version(&self) -> u64 {
        (self.reached.clock + 1).max(self.reached.time)
    }

    /// The name of a session that is opened in the slot being applied.
    ///
    /// In Byzantine mode it follows from client and nonce, so asking twice opens one; a signed opening is void before its session can be
    /// forgotten, so the name of a forgotten session never comes back. In crash mode asking twice opens two, and the unused one
    /// expires: no name is given twice, so a request of a forgotten session can never be taken for one of a later session.
    fn session_of(&self, envelope: &Envelope, index: usize) -> SessionId {
        let mut hasher = blake3::Hasher::new_derive_key("tetrachord v2 session of a client");
        hasher.update(&envelope.client.unwrap_or_default());
        hasher.update(&envelope.request.session.0.to_be_bytes()).update(&self.tenure.group().0.to_be_bytes());
        if envelope.not_after.is_none() {
            hasher.update(&self.reached.slot.to_be_bytes()).update(&(index as u64).to_be_bytes());
        }
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        SessionId(u128::from_be_bytes(id))
    }
}

/// Why a request is void at this time, if it is.
fn void(not_after: u64, time: u64) -> Option<Failure> {
    if time > not_after {
        return Some(Failure::TooLate { not_after, time });
    }
    (not_after - time > REQUEST_VALID_MICROS_MAX).then_some(Failure::TooEarly { not_after, time })
}

fn digest64(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    u64::from_be_bytes(hash.as_bytes()[..8].try_into().expect("8 of 32 bytes"))
}
