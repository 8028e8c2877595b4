//! Every message on the wire: who sends it and what it means.

use crate::kv::{self, Reply, RequestId};
use crate::limits::{
    FRAME_BODIES_MAX, GROUPS_MAX, Limits, MOVED_PLACES_MAX, NODES_MAX, OPENINGS_MAX, SLOT_REQUESTS_MAX, few,
};
use crate::proof::OutcomeProof;
use crate::ring::{GroupId, NodeId, Place, StoreId, TenureId};
use crate::shares::ClientId;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The first frame from a node to a client: which cluster this is, and its map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster.
    pub cluster: String,
    /// The node that speaks.
    pub node: NodeId,
    /// Who holds what, as far as the node knows. At most [`GROUPS_MAX`].
    #[serde(deserialize_with = "few::<_, _, GROUPS_MAX>")]
    pub places: Vec<Place>,
    /// Sizes of keys and values.
    pub limits: Limits,
    /// Whether only signed requests are taken.
    pub is_byzantine: bool,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// Sees every write that was acknowledged before the read began.
    Linearizable,
    /// Sees everything up to this slot of the group: what the session has seen or written before.
    Session {
        /// The slot.
        at_least: u64,
    },
    /// Whatever the asked replica has applied, also where nobody leads. May be old, and may go backwards between replicas and over a
    /// restart of one.
    Eventual,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Order a command in a group.
    Command {
        /// The group that the client believes to own the key; for the opening of a session, the group to open it in.
        group: GroupId,
        /// The encoded [`kv::Envelope`].
        envelope: Bytes,
    },
    /// Read a key.
    Get {
        /// The group that the client believes to own the key.
        group: GroupId,
        /// The key.
        key: Bytes,
        /// How fresh.
        consistency: Consistency,
    },
    /// What this node knows of itself.
    Status,
    /// Byzantine mode: order signed requests in a group. What they came to is told by [`Answer::Outcomes`].
    Submit {
        /// The group.
        group: GroupId,
        /// The encoded bundle.
        bundle: Bytes,
    },
    /// Byzantine mode: tell this connection what the requests of a client came to, from now on.
    Watch {
        /// The client.
        client: kv::Client,
    },
}

/// A request with the number by which the client will know the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFrame {
    /// Unique on its connection.
    pub id: u64,
    /// The request.
    pub request: Request,
}

/// Where and how a read was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// The group.
    pub group: GroupId,
    /// The slot whose state was read.
    pub slot: u64,
    /// What the answer promises.
    pub consistency: Consistency,
}

/// Why a node did not do what was asked, although somebody could.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RetryReason {
    /// The asked replica does not lead.
    NotLeader,
    /// No leader is known at the moment.
    NoLeader,
    /// Too much is waiting.
    Busy,
    /// The replica lost its leadership after it had proposed the command.
    LeadershipLost,
    /// The replica has not seen enough yet.
    Behind,
}

impl fmt::Display for RetryReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotLeader => "does not lead",
            Self::NoLeader => "knows no leader at the moment",
            Self::Busy => "has too much to do",
            Self::LeadershipLost => "lost its leadership meanwhile",
            Self::Behind => "has not seen enough yet",
        })
    }
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The command was applied, or surely not; see the reply.
    Reply {
        /// What the state machine said.
        reply: Reply,
        /// The slot in which it was applied first, or a later one for a retry.
        slot: u64,
        /// Who leads, as the replica that served it believes.
        leader: Option<NodeId>,
    },
    /// The key's value, if it has one.
    Value {
        /// Version and value.
        found: Option<(u64, Bytes)>,
        /// Where it was read.
        served: Served,
        /// Who leads, as the replica that served it believes.
        leader: Option<NodeId>,
    },
    /// Ask again, perhaps elsewhere.
    Retry {
        /// Why.
        reason: RetryReason,
        /// Who may know better.
        leader: Option<NodeId>,
        /// Whether the command may still be applied by this attempt.
        maybe_applied: bool,
    },
    /// The request is wrong; asking again changes nothing.
    Refused {
        /// What is wrong with it.
        error: String,
    },
    /// What the node knows of itself.
    Status(Box<NodeStatus>),
    /// The node could not do it now, and asking elsewhere will not help. It surely did nothing.
    Unavailable {
        /// Why, and what to do.
        reason: String,
    },
    /// Byzantine mode: signed requests are kept until they are ordered.
    Kept {
        /// The group.
        group: GroupId,
        /// Who is primary, as this node believes.
        leader: Option<NodeId>,
    },
    /// Byzantine mode: the connection is told what the client's requests came to.
    Watching,
    /// Byzantine mode: what this replica says that requests in one slot came to. One replica may lie; the same from `f + 1`
    /// of them is true. Comes by itself, with number 0.
    Outcomes {
        /// The group.
        group: GroupId,
        /// The slot.
        slot: u64,
        /// Each request with its reply, and a proof if the client had asked for one. At most [`SLOT_REQUESTS_MAX`].
        #[serde(deserialize_with = "few::<_, _, SLOT_REQUESTS_MAX>")]
        replies: Vec<(RequestId, Reply, Option<OutcomeProof>)>,
    },
    /// Another group than the one that was asked owns the key, or will soon be known to. Nothing was done. Of places that overlap those of
    /// higher generation count, so whoever knows later ones asks another node. At most [`MOVED_PLACES_MAX`].
    Moved {
        /// Where to ask.
        #[serde(deserialize_with = "few::<_, _, MOVED_PLACES_MAX>")]
        places: Vec<Place>,
    },
}

/// An answer with the number of its request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerFrame {
    /// The request's number.
    pub id: u64,
    /// The answer.
    pub answer: Answer,
}

/// What the process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStats {
    /// User and system time so far, in microseconds.
    pub cpu_micros: u64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// Free on the file system of its data, in bytes.
    pub disk_free_bytes: u64,
}

/// What a node knows of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// How often its store was opened.
    pub incarnation: u64,
    /// Milliseconds since its start.
    pub uptime_millis: u64,
    /// Peers that are connected. At most [`NODES_MAX`].
    #[serde(deserialize_with = "few::<_, _, NODES_MAX>")]
    pub connected: Vec<NodeId>,
    /// Those who have not noted yet which data directory this node has, as long as it must not vote before they did. At most [`NODES_MAX`].
    #[serde(deserialize_with = "few::<_, _, NODES_MAX>")]
    pub awaits: Vec<NodeId>,
    /// Whether it refuses writes, because its disk is almost full.
    pub refuses_writes: bool,
    /// Its clock, in microseconds since 1970.
    pub wall_micros: u64,
    /// Open requests.
    pub open_requests: u64,
    /// Bytes of its write-ahead log, about.
    pub log_bytes: u64,
    /// Its process.
    pub process: ProcessStats,
    /// Its groups. At most [`GROUPS_MAX`].
    #[serde(deserialize_with = "few::<_, _, GROUPS_MAX>")]
    pub groups: Vec<GroupStatus>,
}

/// What a node knows of one of its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// Who leads, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Whether this node leads.
    pub is_leader: bool,
    /// Replicas that must take part for the group to serve.
    pub needed: u64,
    /// The current leadership attempt.
    pub ballot: String,
    /// Slot below which the log was dropped.
    pub base: u64,
    /// Last slot applied here.
    pub applied: u64,
    /// Latest slot known to be decided.
    pub decided: u64,
    /// Last slot in the log.
    pub last: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Digest of everything answered, for comparison at equal `applied`.
    pub digest: String,
    /// Whether a snapshot is being installed.
    pub is_installing: bool,
    /// Byzantine mode: the last stable checkpoint.
    pub stable: u64,
    /// Byzantine mode: what is known against other replicas, in words.
    pub suspects: Vec<String>,
    /// Byzantine mode: messages of other replicas that did not hold.
    pub rejected: u64,
    /// Byzantine mode: the view that this replica is in, or goes to.
    pub view: u64,
    /// Byzantine mode: what was found wrong with the state, while it is being repaired from the other replicas.
    pub damage: Option<String>,
    /// Byzantine mode: how often the state was repaired since the node started.
    pub repairs: u64,
    /// Byzantine mode: signatures that this replica made since the node started.
    pub signatures_made: u64,
    /// Byzantine mode: signatures that were checked for it.
    pub signatures_checked: u64,
    /// Byzantine mode: how often all of the state was scrubbed since the node started.
    pub scrubs: u64,
    /// Where this node was told to lie: how often it told each lie.
    pub told: Vec<(String, u64)>,
}

/// One opening of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// How often the store was opened, with this time.
    pub incarnation: u64,
    /// Drawn at random: two copies of one store may have been opened equally often.
    pub mark: u64,
    /// How far its log was durable then; see [`crate::storage::Storage::log_end`]. A copy that has fallen behind may write as much
    /// again, but not before that.
    pub log_end: u64,
}

/// One life of a node: from one opening of its store to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// Its store.
    pub store: StoreId,
    /// How it began.
    pub opening: Opening,
    /// How far its log is durable; see [`crate::storage::Storage::log_end`].
    pub log_end: u64,
    /// Whether a majority of the other nodes has noted this store, so that it may vote.
    pub is_admitted: bool,
}

/// What nodes say to one another about who they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Introduction {
    /// Who the sender is. Said on every new link, until it is noted, and when more has become durable.
    Introduce {
        /// Its life.
        life: Life,
        /// The openings of its store before that one, oldest first. At most [`OPENINGS_MAX`].
        #[serde(deserialize_with = "few::<_, _, OPENINGS_MAX>")]
        earlier: Vec<Opening>,
    },
    /// The receiver's life, as it introduced itself, is durably noted.
    Noted(Life),
    /// The receiver introduced itself with the first life, but more was known of it.
    Mistaken {
        /// What it said.
        told: Life,
        /// What is noted.
        known: Life,
    },
}

/// What one replica says to another of its group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupBody {
    /// The group, in the epoch in which it is said: in another it means nothing.
    pub tenure: TenureId,
    /// Opaque here.
    pub body: Bytes,
}

/// What one node says to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// From replicas to those of the same groups, in order. At most [`FRAME_BODIES_MAX`].
    Groups(#[serde(deserialize_with = "few::<_, _, FRAME_BODIES_MAX>")] Vec<GroupBody>),
    /// A client's request, passed on to the node that leads.
    Forward {
        /// Unique on the sending node.
        id: u64,
        /// Whose it is, as the sending node says.
        client: ClientId,
        /// The request.
        request: Request,
    },
    /// Who a node is.
    Introduction(Introduction),
    /// The answer to a forwarded request.
    Forwarded {
        /// The sending node's number.
        id: u64,
        /// The answer.
        answer: Answer,
    },
}

impl PeerMessage {
    /// One message of one group, in a frame of its own.
    #[must_use]
    pub fn of(tenure: TenureId, body: Bytes) -> Self {
        Self::Groups(vec![GroupBody { tenure, body }])
    }
}
