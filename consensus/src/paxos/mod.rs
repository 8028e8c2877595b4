//! Multi-Paxos with a contiguous log, for groups whose replicas crash but do not lie.
//!
//! # The idea
//!
//! One replica leads under a *ballot*. Phase 1 runs once per ballot: the candidate gathers promises from a quorum and
//! takes over the best log among them, which contains everything that may have been decided. Phase 2 runs per batch:
//! the leader appends an entry, sends it, and an entry that a quorum holds durably *in this ballot* is decided.
//! Two quorums always share a replica, so the next leader sees what was decided.
//!
//! The log is contiguous: a replica's progress is one number per ballot, truncation and snapshots are simple, and a
//! leader change hands over one log instead of one value per slot. What stays of Paxos, and differs from Raft, is
//! *who may lead*: anybody whom a quorum hears, however short its own log; it adopts the best one.
//!
//! # The messages
//!
//! ```text
//! candidate / leader        every other replica                     file
//!    | PreVote ------------->|  would you promise?                  candidate.rs
//!    |<-------- PreVoteReply |
//!    | Prepare ------------->|  promise durable, then               candidate.rs
//!    |<------------- Promise |
//!    | FetchLog ------------>|  (only the best one)                 fetch.rs
//!    |<------------ LogChunk |
//!    |=== leads ============ |
//!    | AcceptSync ---------->|  adopt my log, once per ballot       replicate.rs, follower.rs
//!    | Accept -------------->|  append
//!    |<------------ Accepted |  durable up to here
//!    | Heartbeat ----------->|  I lead; decided up to here
//!    |<------ HeartbeatReply |  you do; my log stands here          reads.rs
//!    |<-------------- Reject |  why not
//! ```
//!
//! # Rules that carry the safety
//!
//! * A promise and an acceptance are durable before anybody hears of them ([`acceptor`]).
//! * `accepted = b` claims the *whole* log that the leader of `b` adopted. AcceptSync comes in pieces but takes
//!   effect as one commit, once per ballot. Snapshots never change `accepted`.
//! * Only acknowledgements given in the current ballot decide. A new leader's no-op makes them happen.
//! * A restarted leader never resumes its ballot.
//! * Whether the epoch has ended is read from the log, never kept as a flag.
//!
//! # Rules that carry the liveness
//!
//! * Pre-vote, sticky followers and check-quorum together ([`election`]): a replica that only some can hear cannot
//!   depose a leader, and a leader that hears no quorum stops all its traffic.
//! * Every message may be lost: heartbeats reveal what is missing, and each refusal says what to send instead.
//!
//! # Departures
//!
//! * A promise reports the rank of a log, not the log. The candidate fetches what it lacks from the best replica
//!   alone, in bounded pieces; the source answers only while the candidate's ballot is its promise, so its log is
//!   still the one it reported. One round trip more, only if the candidate's own log is not the best.
//! * `AcceptSync` pieces are ordered by slot, not numbered, and the receiver says how far it got.
//!
//! # What is not here
//!
//! Leases; the start of the next epoch (this core ends one and refuses anything after it); what a snapshot contains.
//!
//! # Sources
//!
//! Lamport, "Paxos Made Simple" (2001) for the two phases; Liskov and Cowling, "Viewstamped Replication Revisited"
//! (2012) for log transfer; Ongaro's dissertation (2014) for pre-vote, check-quorum and ReadIndex; Howard, Malkhi and
//! Spiegelman, "Flexible Paxos" (2016) for quorums; Ng, Haridi and Carbone, "Omni-Paxos" (2023) for leader election
//! by connectivity and for stop-signs.

pub mod acceptor;
mod ballot;
mod candidate;
mod election;
mod entry;
mod face;
mod fetch;
mod flow;
mod follower;
mod gathering;
mod hand_over;
mod heartbeat;
mod invariants;
mod leader;
mod log;
pub mod message;
mod reads;
pub mod record;
mod replica;
mod replicate;
mod sync;
mod time;

pub use ballot::Ballot;
pub use entry::{Body, Entry};
pub use face::{Effect, Own, ProposeError};
pub use log::Log;
pub use message::{LogView, Message, Reason};
pub use record::{Record, RecoverError, Recovered};
pub use replica::{Replica, Role};
