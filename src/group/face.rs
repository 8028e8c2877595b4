//! What a group tells its node.

use super::Outcomes;
use crate::kv::{Record, Reply};
use crate::ring::NodeId;
use crate::ticket::Ticket;
use bytes::Bytes;
use tetrachord_consensus::pbft::Unverified;

/// What the node must do for a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a message to a replica of this group.
    Send {
        /// Its node.
        to: NodeId,
        /// Whether it is part of a bulk transfer, which must not hold up anything else.
        is_bulk: bool,
        /// The message.
        body: Bytes,
    },
    /// Answer a request.
    Answer {
        /// The request.
        ticket: Ticket,
        /// Its outcome.
        outcome: Outcome,
    },
    /// Check this away from the event loop, and give the result to [`crate::group::Group::verified`].
    Verify(Box<Unverified>),
    /// Byzantine mode: tell a client what its requests in one slot came to.
    Outcomes(Outcomes),
    /// Byzantine mode: the tree of the node cannot be read; it needs a new one ([`crate::group::Group::tree_lost`]).
    RebuildTree {
        /// What was found.
        reason: String,
    },
    /// Stop the node: going on could break a promise.
    Fatal {
        /// What was found.
        reason: String,
    },
}

/// What became of a request in this group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command was applied, or refused by the state machine.
    Applied {
        /// What it answered.
        reply: Reply,
        /// In which slot.
        slot: u64,
    },
    /// The key's value.
    Value {
        /// Value and version, if the key exists.
        found: Option<Record>,
        /// The slot whose state was read.
        slot: u64,
        /// What the answer promises.
        freshness: Freshness,
    },
    /// The key belongs to another group.
    WrongGroup,
    /// This replica does not lead; it did nothing.
    NotLeader,
    /// Too much waits; it did nothing.
    Busy,
    /// The command was proposed, then the leadership was lost. It may be applied or not.
    LeadershipLost,
    /// This replica has not applied enough for what was asked.
    Behind,
    /// Byzantine mode: signed requests are kept until they are ordered; the outcome comes by itself.
    Kept,
    /// Byzantine mode: signed requests cannot be ordered, now or later.
    Invalid(&'static str),
}

/// What a read's answer promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It saw everything acknowledged before the read began.
    Linearizable,
    /// It saw everything up to the slot that was asked for.
    AtLeast(u64),
}
