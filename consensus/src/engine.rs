//! The face of an ordering protocol: events in, effects out.
//!
//! An [`Engine`] orders batches of commands for one replica of one group. It never acts: it is told what happened
//! ([`Event`]) and answers with what must now be done ([`Effect`]). The caller owns the clock, the disk and the
//! network, so the same engine runs in production, under a simulator and inside a model checker.
//!
//! Here is what the orders have in common. What clients ask is not: [`crate::paxos::Replica`] is given proposals and reads by whoever
//! leads, [`crate::pbft::Replica`] what clients have signed, at every replica.
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
//! 2. Feed it events with [`Engine::step`], and what clients ask with its own methods.
//! 3. After each, carry out [`Engine::take_effects`] in order.

use crate::types::{LogBase, PersistToken, ReplicaId, Slot, Ticks, Timestamp};
use bytes::Bytes;

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
    /// The state machine durably holds the state at `base` (a snapshot from another replica was installed).
    SnapshotInstalled {
        /// Where the log goes on.
        base: LogBase,
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
pub enum Effect<Own> {
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
    /// This replica must stop: going on could break a promise.
    Fatal {
        /// What was found.
        reason: String,
    },
    /// What only this protocol asks for: [`crate::paxos::Own`], [`crate::pbft::Own`].
    Own(Own),
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
}

/// What every ordering protocol has in common. What only one of them takes or tells has methods of its own.
pub trait Engine {
    /// What only this protocol asks its caller for.
    type Own;

    /// Tells the engine what happened.
    fn step(&mut self, event: Event);

    /// Hands out what must be done since the last call, in order.
    fn take_effects(&mut self) -> Vec<Effect<Self::Own>>;

    /// What the engine knows of itself.
    fn status(&self) -> EngineStatus;

    /// Whether this replica leads; the same as in [`Self::status`], for those who ask often.
    fn is_leader(&self) -> bool;

    /// Bytes of the entries held in memory; the same as in [`Self::status`], for those who ask often.
    fn log_bytes(&self) -> usize;

    /// How far another replica has come, if it is for this one to bring it further, and it was heard.
    fn reached(&self, replica: ReplicaId) -> Option<Reached>;
}
