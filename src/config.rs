//! Files that people write, turned into values that need no further check.
//!
//! * The **genesis record** ([`Genesis`]) is the same on every node: who belongs to the cluster, how the ring is cut, what the limits
//!   are. Its digest is part of the protocol's name, so nodes that disagree about it never talk. Only addresses are no part of
//!   it: where somebody is found says nothing about who that is, and may change.
//! * A **node file** ([`NodeConfig`]) says which node this is and where its key and data are.
//! * The **cluster file** ([`ClusterConfig`]) is for clients: where the nodes are, which keys they have, and the client's own. It is all that a
//!   program needs which only asks.
//!
//! Unknown fields are errors: a misspelt setting must not be silently without effect.

mod addresses;
#[cfg(feature = "server")]
mod clients;
mod cluster;
#[cfg(feature = "server")]
mod founders;
mod founding;
#[cfg(feature = "server")]
mod free;
#[cfg(feature = "server")]
mod genesis;
#[cfg(feature = "server")]
mod init;
#[cfg(feature = "server")]
mod node;
#[cfg(feature = "server")]
mod ranges;
mod reading;
mod sizes;
#[cfg(test)]
mod tests;
#[cfg(feature = "server")]
mod writing;

#[cfg(feature = "server")]
pub use clients::CLIENTS_MAX;
pub use cluster::{ClusterConfig, EpochKey, GenesisNode, cluster_digest};
#[cfg(feature = "server")]
pub use free::free_addresses;
#[cfg(feature = "server")]
pub use genesis::{FlexibleQuorums, Genesis, GenesisClient, Timing};
#[cfg(feature = "server")]
pub use init::{InitPlan, init};
#[cfg(feature = "server")]
pub use node::{ChaosConfig, NodeConfig, StorageConfig, let_lie};
pub use sizes::{Mode, check_replicas, default_nodes, default_replicas};

use std::path::PathBuf;
use thiserror::Error;

/// What is wrong with a file.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is not the TOML that is expected.
    #[error("{}: {reason}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A value cannot be.
    #[error("{}: {reason}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// What is wrong, what is allowed.
        reason: String,
    },
}
