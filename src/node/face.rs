//! The face of a node: what happens to it, and what it wants done.

use super::checks::Line;
use crate::error::StorageError;
use crate::group::Settings;
use crate::ring::{NodeId, Tenure, TenureId};
use crate::shares::ClientId;
use crate::storage::CommitId;
use crate::ticket::ConnectionId;
use crate::wire::ProcessStats;
use bytes::Bytes;
use std::collections::BTreeSet;
use tetrachord_consensus::pbft::{Lie, Rejected, Unverified, Verified};
use tetrachord_consensus::{Ticks, Timestamp};

/// Something that happened to the node.
#[derive(Clone, Debug)]
pub enum NodeEvent {
    /// Time passed.
    Tick {
        /// Monotonic.
        now: Ticks,
        /// Wall clock; only ever used to stamp entries.
        wall: Timestamp,
    },
    /// A message from another node, whose identity the transport vouches for.
    Peer {
        /// The sender.
        from: NodeId,
        /// The link that it came over. Unless that one is up, it is what was left of an old one, and ignored.
        link: u64,
        /// The message.
        body: Bytes,
    },
    /// A link to another node came up or went down. It has one process at its other end.
    PeerLink {
        /// The node.
        node: NodeId,
        /// Which link to it: no two that one process has have the same number.
        link: u64,
        /// Whether it is up.
        is_up: bool,
    },
    /// A request from a client.
    Client {
        /// Its connection.
        connection: ConnectionId,
        /// Who it is: the transport vouches for the key.
        client: ClientId,
        /// The request frame.
        body: Bytes,
    },
    /// A client is gone.
    ClientGone {
        /// Its connection.
        connection: ConnectionId,
    },
    /// The log records of the commit and of all before it are durable.
    Durable(CommitId),
    /// The state writes of the commit and of all before it are durable.
    Written(CommitId),
    /// What is written to the tree fails, because what it holds cannot be read.
    TreeDamaged {
        /// What was found.
        error: StorageError,
    },
    /// What the process uses, for status requests, and whether there is room on its disk for more writes.
    Process(ProcessStats, Room),
    /// The node is about to be stopped: give leaderships away.
    HandOver,
    /// Where its configuration allows it, the node tells this lie from now on, or none.
    Lie(Option<Lie>),
    /// A check that was asked for by [`NodeEffect::Verify`] is done.
    Verified {
        /// The group, in its epoch.
        tenure: TenureId,
        /// Whether it held.
        result: Box<Result<Verified, Rejected>>,
    },
}

/// Whether the disk has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Enough.
    Enough,
    /// Less than this many bytes are free: clients' writes are refused before the disk is full, so that what the node
    /// must still write, promises and what was accepted, finds room.
    Short {
        /// The bytes that should be free.
        reserve_bytes: u64,
    },
}

/// What a message is part of; decides its stream and priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Ordering; first.
    Consensus,
    /// Clients' requests.
    Request,
    /// Snapshots; last.
    Bulk,
}

/// What the shell must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeEffect {
    /// Send a message to another node. It may be lost.
    Send {
        /// The node.
        to: NodeId,
        /// What it is part of.
        class: Class,
        /// The frame.
        frame: Bytes,
    },
    /// Send an answer to a client.
    Answer {
        /// Its connection.
        connection: ConnectionId,
        /// The frame.
        frame: Bytes,
    },
    /// Close a client's connection: it does not speak the protocol.
    Disconnect {
        /// Its connection.
        connection: ConnectionId,
        /// What was wrong.
        reason: String,
    },
    /// Read slowly what this client sends next: it is refused without a look, and to read it costs more than it is worth.
    Slow {
        /// The client.
        client: ClientId,
    },
    /// Check this with the group's verifier ([`super::core::NodeCore::verifiers`]), not on this thread.
    Verify {
        /// The group, in its epoch.
        tenure: TenureId,
        /// Where it waits for its turn.
        line: Line,
        /// What to check.
        job: Box<Unverified>,
    },
    /// Stop the process.
    Stop {
        /// Why.
        reason: String,
    },
}

/// How a node runs.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// This node.
    pub node: NodeId,
    /// The tenures that the cluster began with.
    pub founding: Vec<Tenure>,
    /// Its groups.
    pub group: Settings,
    /// The write-ahead log is rewritten when it has grown to this many bytes.
    pub log_bytes_max: u64,
    /// All nodes of the cluster.
    pub nodes: BTreeSet<NodeId>,
    /// Drawn anew for every start.
    pub opening: u64,
}
