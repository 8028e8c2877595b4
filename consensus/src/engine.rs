//! The face of an ordering protocol: events in, effects out.
//!
//! An [`Engine`] orders batches of commands for one replica of one group. It never acts: it is told what happened
//! ([`Event`]) and answers with what must now be done ([`Effect`]). The caller owns the clock, the disk and the
//! network, so the same engine runs in production, under a simulator and inside a model checker.
//!
//! # The ordering rule: persist before send
//!
//! [`Effect::Send`] may name a [`PersistToken`]. The message promises something that the record with that token
//! makes true, so it **must not leave before that record is durable**. Records become durable in the order in which
//! they were emitted; [`Event::Persisted`] with a token says that this record and all before it are durable. The
//! caller keeps this rule in one place (`group::driver` in the `tetrachord` crate).
//!
//! # Driving an engine
//!
//! 1. Build it from what the disk held ([`crate::paxos::Replica::recover`], [`crate::pbft::Replica::recover`]).
//! 2. Feed it events with [`Engine::step`], proposals with [`Engine::propose`].
//! 3. After each, carry out [`Engine::take_effects`] in order.

use crate::pbft::{Rejected, SubmitId, Unverified, Verified};
use crate::types::{Digest, Epoch, LogBase, PersistToken, ReadId, ReplicaId, Slot, Ticks, Timestamp, View};
use bytes::Bytes;
use thiserror::Error;

/// Something that happened, told to the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time passed. Ticks never go back; the wall clock may jump.
    Tick {
        /// Monotonic time.
        now: Ticks,
        /// Wall-clock time, used only to stamp entries.
        wall: Timestamp,
    },
    /// A message arrived. The transport vouches for the sender; the bytes are not trusted.
    Receive {
        /// The replica that sent it.
        from: ReplicaId,
        /// The encoded message.
        message: Bytes,
    },
    /// The record with this token, and every earlier one, is durable.
    Persisted {
        /// The latest durable token.
        token: PersistToken,
    },
    /// Linearizable reads that arrived together want to know from which slot on they may be served.
    Read {
        /// Each is given back in [`Effect::ReadReady`] or [`Effect::ReadRefused`].
        ids: Vec<ReadId>,
    },
    /// The state machine durably holds the state at `base` (a snapshot from another replica was installed).
    SnapshotInstalled {
        /// Where the log goes on.
        base: LogBase,
    },
    /// A snapshot transfer asked for by [`Effect::SendSnapshot`] has ended, well or not.
    SnapshotEnded {
        /// The receiver.
        to: ReplicaId,
    },
    /// The state up to `slot` is durable outside the log: entries up to there may be dropped, except for those that are kept
    /// for others. The engine persists its whole state in one record.
    Compact {
        /// Durable outside the log up to here.
        slot: Slot,
        /// What is kept of it.
        retain: Retain,
    },
    /// The state up to `slot` is durable outside the log: entries up to there may be dropped from memory, except for those that
    /// are kept for others. The records on disk stay as they are.
    Trim {
        /// Durable outside the log up to here.
        slot: Slot,
        /// What is kept of it.
        retain: Retain,
    },
    /// Hand the leadership to another replica (before a planned stop).
    TransferLeadership {
        /// The replica that should lead; none for the best one.
        to: Option<ReplicaId>,
    },
    /// Byzantine mode: a client's signed requests arrived. They are ordered wherever they are brought.
    Submit {
        /// Given back in [`Effect::Submitted`].
        id: SubmitId,
        /// The encoded bundle; not trusted.
        bundle: Bytes,
        /// Whether another node passes it on. It may say so of a client's old requests as often as it likes.
        is_passed_on: bool,
    },
    /// Byzantine mode: a check that was asked for by [`Effect::Verify`] is done.
    Verified(Box<Result<Verified, Rejected>>),
    /// Byzantine mode: the state after `slot`, asked for by [`Effect::Checkpoint`], can be recovered and has this root.
    StateRoot {
        /// The slot.
        slot: Slot,
        /// The root.
        root: Digest,
    },
    /// Byzantine mode: what is stored of the state is not what was written. Nothing is executed any more until a state with
    /// proof is in place.
    StateDamaged {
        /// What was found, in words.
        reason: String,
    },
    /// Byzantine mode: everything that arrived together was told; what has gathered may be proposed.
    TurnEnded {
        /// Whether more may be proposed.
        may_propose: bool,
        /// Whether the state machine can take more. If not, what is decided waits in the engine, whose window bounds it.
        may_execute: bool,
    },
}

/// What is kept of the log for replicas that lag, though the state needs it no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retain {
    /// The last entries, of about so many bytes.
    pub bytes: usize,
    /// Besides, those behind this slot, if somebody is known to need them.
    pub pinned: Option<Slot>,
    /// The last entries of so many bytes at most, pinned or not.
    pub pinned_bytes: usize,
}

impl Retain {
    /// The last entries of so many bytes, and no others.
    #[must_use]
    pub fn last(bytes: usize) -> Self {
        Self { bytes, pinned: None, pinned_bytes: bytes }
    }

    /// Bytes of the entries that are kept, at most.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        self.bytes.max(self.pinned_bytes)
    }
}

/// How far another replica has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// From here on it can go on from this replica's log. In Byzantine mode it says so itself.
    pub slot: Slot,
    /// When it was last heard.
    pub heard_at: Ticks,
}

/// What a proposal asks to order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proposal {
    /// Commands, opaque to the engine.
    Batch(Bytes),
    /// The end of this epoch; the bytes describe the next one and are opaque to the engine.
    StopSign(Bytes),
}

/// Why a proposal was not taken. It was surely not ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// Another replica leads, or none that is known.
    #[error("this replica does not lead its group")]
    NotLeader {
        /// Who leads, if known.
        leader: Option<ReplicaId>,
    },
    /// Too many entries are undecided; try again when some are decided.
    #[error("too many entries wait to be decided")]
    Full,
    /// A stop-sign has ended the epoch.
    #[error("epoch {epoch} has ended")]
    EpochEnded {
        /// The epoch that has ended.
        epoch: Epoch,
    },
    /// Byzantine mode orders only what clients have signed ([`Event::Submit`]).
    #[error("only signed requests are ordered in Byzantine mode")]
    Unsigned,
    /// The proposal is larger than a message may be.
    #[error("a proposal of {bytes} bytes exceeds the limit of {max}")]
    TooLarge {
        /// Size of the proposal.
        bytes: usize,
        /// Largest size allowed.
        max: usize,
    },
}

/// Why a submission was not taken. Nothing of it was ordered because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SubmitRefusal {
    /// It cannot be ordered, now or later.
    #[error("{0}")]
    Invalid(&'static str),
    /// Too much waits, of this client or of all.
    #[error("too many requests wait to be ordered")]
    Full,
}

/// A decided entry, as the state machine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Its position, the chain hash of the log up to and including it, and log time, which never goes back from one slot to the next.
    pub base: LogBase,
    /// What was ordered; `None` is a no-op.
    pub proposal: Option<Proposal>,
}

/// What the caller must do now, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Append the records to the write-ahead log and report [`Event::Persisted`] when they are durable. They are
    /// one commit: after a crash either all of them are there or none.
    Persist {
        /// Encoded records of the engine, in order.
        records: Vec<Bytes>,
        /// Stands for all of them; greater than every token before.
        token: PersistToken,
        /// Whether a promise is among them: a store that keeps a witness of its durability updates it first.
        promises: bool,
        /// Whether they hold everything that must not be forgotten, so that what was persisted before may go.
        is_whole: bool,
    },
    /// Send a message. It may be lost, delayed, duplicated and reordered.
    Send {
        /// The receiver.
        to: ReplicaId,
        /// The encoded message.
        message: Bytes,
        /// Must be durable before the message leaves.
        after: Option<PersistToken>,
    },
    /// Apply the entry to the state machine. Slots arrive without a gap.
    Apply(Decided),
    /// The read may be served as soon as `slot` has been applied.
    ReadReady {
        /// The name given in [`Event::Read`].
        id: ReadId,
        /// Lowest applied slot that makes the answer linearizable.
        slot: Slot,
    },
    /// This replica cannot serve the read; ask the leader.
    ReadRefused {
        /// The name given in [`Event::Read`].
        id: ReadId,
    },
    /// The other replica needs a state that this log no longer reaches back to: stream it a snapshot and report
    /// [`Event::SnapshotEnded`].
    SendSnapshot {
        /// The replica that lags.
        to: ReplicaId,
    },
    /// Who leads, as far as this replica knows, has changed.
    LeaderChanged {
        /// The leader, if one is known.
        leader: Option<ReplicaId>,
    },
    /// A stop-sign was decided: nothing will be ordered in this epoch any more.
    EpochEnded {
        /// The slot of the stop-sign.
        slot: Slot,
        /// Describes the next epoch.
        next: Bytes,
    },
    /// Byzantine mode: check this away from the event loop ([`crate::pbft::Verifier::verify`]) and report
    /// [`Event::Verified`].
    Verify(Box<Unverified>),
    /// Byzantine mode: a submission was checked, and is kept until it is ordered, or not.
    Submitted {
        /// Which.
        id: SubmitId,
        /// Whether it is kept.
        result: Result<(), SubmitRefusal>,
    },
    /// Byzantine mode: compute the root of the state after this slot, which was just applied, and report
    /// [`Event::StateRoot`].
    Checkpoint {
        /// The slot.
        slot: Slot,
    },
    /// Byzantine mode: the state is not to be believed, as its caller or other replicas have found. Nothing may be answered
    /// from it or written to it; a state with proof must take its place. If the log reaches back to slot 0 it is the empty
    /// one, else [`Self::FetchState`] follows. Report [`Event::SnapshotInstalled`].
    StateLost {
        /// What was found, in words.
        reason: String,
        /// Where the log begins: the state must be of this slot or a later one.
        base: Slot,
    },
    /// Byzantine mode: this replica needs a state that no log leads to. Fetch one that a stable checkpoint at or above
    /// this slot proves, and report [`Event::SnapshotInstalled`].
    FetchState {
        /// Whom to ask this time.
        from: ReplicaId,
        /// The slot.
        at_least: Slot,
    },
    /// This replica must stop: going on could break a promise.
    Fatal {
        /// What was found.
        reason: String,
    },
}

/// What an engine knows of itself; for status pages and for the layers above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineStatus {
    /// The leader, if one is known.
    pub leader: Option<ReplicaId>,
    /// Whether this replica leads and may serve.
    pub is_leader: bool,
    /// The current leadership attempt, in words.
    pub ballot: String,
    /// The latest slot known to be decided.
    pub decided: Slot,
    /// The last slot of the log.
    pub last: Slot,
    /// The slot below which the log was dropped.
    pub base: Slot,
    /// Entries that are proposed but not decided.
    pub undecided: usize,
    /// Bytes of the entries held in memory.
    pub log_bytes: usize,
    /// Byzantine mode: the last stable checkpoint.
    pub stable: Slot,
    /// Byzantine mode: what is known against other replicas, in words.
    pub suspects: Vec<String>,
    /// Byzantine mode: messages of other replicas that did not hold.
    pub rejected: u64,
    /// Byzantine mode: the view that this replica is in, or goes to.
    pub view: View,
    /// Byzantine mode: the state was found damaged, and is being repaired from the other replicas.
    pub is_repairing: bool,
    /// Byzantine mode: signatures that this replica made since it started, as a replica.
    pub signatures_made: u64,
    /// Byzantine mode: signatures that were checked for it.
    pub signatures_checked: u64,
}

/// An ordering protocol behind events and effects.
pub trait Engine {
    /// Tells the engine what happened.
    fn step(&mut self, event: Event);

    /// Offers a proposal for the next slot. A returned slot is a position, not yet a decision: the proposal is
    /// ordered when it comes back in [`Effect::Apply`], and if the leadership is lost it may be ordered later,
    /// elsewhere or never.
    fn propose(&mut self, proposal: Proposal) -> Result<Slot, ProposeError>;

    /// Hands out what must be done since the last call, in order.
    fn take_effects(&mut self) -> Vec<Effect>;

    /// What the engine knows of itself.
    fn status(&self) -> EngineStatus;

    /// Whether this replica leads; the same as in [`Self::status`], for those who ask often.
    fn is_leader(&self) -> bool;

    /// Entries that are proposed but not decided; the same as in [`Self::status`], for those who ask often.
    fn undecided(&self) -> usize;

    /// Bytes of the entries held in memory; the same as in [`Self::status`], for those who ask often.
    fn log_bytes(&self) -> usize;

    /// How far another replica has come, if it is for this one to bring it further, and it was heard.
    fn reached(&self, replica: ReplicaId) -> Option<Reached>;

    /// Whether the state after this slot, which was executed here, is settled: in Byzantine mode, whether a checkpoint there
    /// or later is stable.
    fn is_settled(&self, slot: Slot) -> bool {
        let _ = slot;
        true
    }

    /// Byzantine mode: proof of the state after this slot, as a message that convinces any replica; only for the last few
    /// stable checkpoints.
    fn stable_proof(&self, slot: Slot) -> Option<Bytes> {
        let _ = slot;
        None
    }
}
