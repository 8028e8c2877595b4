//! Ordering protocols of Tetrachord as pure state machines.
//!
//! A group of replicas agrees on one sequence of commands. This crate holds the protocols that do it and nothing
//! else: no clock, no disk, no network, no threads, no randomness of its own. [`engine`] is the face that
//! both share: events in, effects out. [`paxos`] is Multi-Paxos for crash faults, [`pbft`] is PBFT with signed messages for replicas that lie;
//! each adds what clients ask of it.
//!
//! Read in this order: [`types`], [`quorum`], [`config`], [`engine`], then the essays of [`paxos`] and [`pbft`].
//!
//! What it does not do: it does not know what a command means, who a client is, where a replica lives, or how to
//! install a snapshot; it says when one is needed.
#![deny(missing_docs)]

pub mod codec;
pub mod config;
pub mod engine;
pub mod mutation;
pub mod paxos;
pub mod pbft;
pub mod quorum;
pub mod types;

pub use config::{GroupConfig, Options};
pub use engine::{Decided, Effect, Engine, EngineStatus, Event, Proposal, Reached, Retain};
pub use mutation::Mutation;
pub use quorum::{ByzantineQuorum, QuorumError, Quorums};
pub use types::{
    Digest, Epoch, LogBase, PersistToken, ReadId, ReplicaId, ReplicaSet, Slot, Ticks, Timestamp, View,
};
