//! The genesis record: what every node of a cluster agrees on from the start.

use super::ConfigError;
use super::addresses::check_addresses;
use super::cluster::GenesisNode;
use super::ranges::{check_name, check_timing};
use super::reading::load_toml;
use super::sizes::{Mode, check_replicas};
use crate::limits::{GROUPS_MAX, KEY_BYTES_CAP, Limits, NODES_MAX, VALUE_BYTES_CAP};
use crate::ring::{NodeId, RingMap};
use crate::transport::PublicKey;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use tetrachord_consensus::{QuorumError, Quorums};

/// A client in the genesis record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenesisClient {
    /// For people.
    pub name: String,
    /// Its key.
    pub key: PublicKey,
    /// In Byzantine mode, the key that it signs requests with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<PublicKey>,
}

/// How long things take. The same for all nodes, so that their timeouts fit one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// A leader says that it is alive this often.
    pub heartbeat_millis: u64,
    /// A replica that hears no leader for this long tries to lead.
    pub election_millis: u64,
    /// Byzantine mode: a request that waits for this long costs the primary its view.
    #[serde(default = "default_request_millis")]
    pub request_millis: u64,
}

fn default_request_millis() -> u64 {
    1_000
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat_millis: 50, election_millis: 300, request_millis: default_request_millis() }
    }
}

/// Quorums other than majorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlexibleQuorums {
    /// Promises that a leader needs.
    pub phase1: usize,
    /// Durable copies that decide.
    pub phase2: usize,
    /// Crashed replicas that must be survived.
    pub survive: usize,
}

/// What every node of a cluster agrees on from the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// Version of this form.
    pub version: u32,
    /// The cluster's name: 128 random bits in hexadecimal.
    pub cluster: String,
    /// Which faults are survived.
    pub mode: Mode,
    /// Groups that the ring is cut into.
    pub groups: usize,
    /// Replicas of each group.
    pub replicas: usize,
    /// Quorums other than majorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorums: Option<FlexibleQuorums>,
    /// Sizes of keys and values.
    #[serde(default)]
    pub limits: Limits,
    /// Timers.
    #[serde(default)]
    pub timing: Timing,
    /// The nodes.
    pub nodes: Vec<GenesisNode>,
    /// Clients that may connect.
    pub clients: Vec<GenesisClient>,
}

pub(super) const GENESIS_VERSION: u32 = 1;

/// In the place of every address where a record is compared.
pub(super) const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

impl Genesis {
    /// Reads and checks a genesis record.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let genesis: Self = load_toml(path)?;
        genesis.check().map_err(|reason| ConfigError::Value { path: path.to_path_buf(), reason })?;
        Ok(genesis)
    }

    /// Says what is wrong, what is allowed and what to do.
    pub fn check(&self) -> Result<(), String> {
        if self.version != GENESIS_VERSION {
            return Err(format!(
                "genesis version {} is not supported, this build reads {GENESIS_VERSION}",
                self.version
            ));
        }
        check_name(&self.cluster)?;
        let n = self.nodes.len();
        if n == 0 || n > NODES_MAX {
            return Err(format!("{n} nodes: a cluster has 1 to {NODES_MAX}"));
        }
        if self.groups == 0 || self.groups > GROUPS_MAX {
            return Err(format!("groups = {}: a cluster has 1 to {GROUPS_MAX}", self.groups));
        }
        check_replicas(self.mode, self.replicas, n)?;
        if self.mode == Mode::Byzantine && self.quorums.is_some() {
            return Err("quorums: Byzantine mode has one quorum, which follows from n".to_string());
        }
        if let Some(quorums) = self.quorums {
            let FlexibleQuorums { phase1, phase2, survive } = quorums;
            Quorums::flexible(self.replicas, phase1, phase2, survive)
                .map_err(|error: QuorumError| error.to_string())?;
        }
        let ids: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        if ids != (0..n).map(NodeId::founder).collect::<Vec<_>>() {
            let ids: Vec<u128> = ids.iter().map(|id| id.0).collect();
            return Err(format!("node ids are {ids:?}; they must be 1 to {n} in order"));
        }
        let keys = self.nodes.iter().map(|node| node.key).chain(self.clients.iter().map(|client| client.key));
        let mut seen = BTreeSet::new();
        if let Some(key) = keys.into_iter().find(|key| !seen.insert(*key)) {
            return Err(format!(
                "the key {key} is named twice; every node and client needs a key of its own"
            ));
        }
        self.check_signing_keys()?;
        check_addresses(&self.nodes)?;
        self.check_sizes()
    }

    fn check_signing_keys(&self) -> Result<(), String> {
        let of_nodes = self.nodes.iter().map(|node| (node.id.to_string(), node.key, node.signing_key));
        let of_clients =
            self.clients.iter().map(|client| (client.name.clone(), client.key, client.signing_key));
        let mut seen = BTreeSet::new();
        for (name, key, signing_key) in of_nodes.chain(of_clients) {
            seen.insert(key);
            match (self.mode, signing_key) {
                (Mode::Crash, None) => {}
                (Mode::Crash, Some(_)) => {
                    return Err(format!("{name} has a signing_key, which only Byzantine mode uses"));
                }
                (Mode::Byzantine, None) => {
                    return Err(format!("{name} has no signing_key: in Byzantine mode everybody signs"));
                }
                (Mode::Byzantine, Some(key)) if !seen.insert(key) => {
                    return Err(format!(
                        "the key {key} is named twice; every node and client needs keys of its own, one for links and one \
                         for signing"
                    ));
                }
                (Mode::Byzantine, Some(_)) => {}
            }
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), String> {
        let Limits { key_bytes_max, value_bytes_max } = self.limits;
        if key_bytes_max == 0 || key_bytes_max > KEY_BYTES_CAP {
            return Err(format!("limits.key_bytes_max = {key_bytes_max}: 1 to {KEY_BYTES_CAP} are allowed"));
        }
        if value_bytes_max == 0 || value_bytes_max > VALUE_BYTES_CAP {
            return Err(format!(
                "limits.value_bytes_max = {value_bytes_max}: 1 to {VALUE_BYTES_CAP} are allowed"
            ));
        }
        check_timing(&self.timing)
    }

    /// Who owns what.
    #[must_use]
    pub fn ring(&self) -> RingMap {
        RingMap::even(self.groups, self.nodes.len(), self.replicas)
    }

    /// The cluster's name with a digest of everything above but addresses: two nodes talk only if they agree on all of it.
    #[must_use]
    pub fn protocol_name(&self) -> String {
        let mut record = self.clone();
        record.nodes.iter_mut().for_each(|node| node.address = NOWHERE);
        let bytes =
            postcard::to_stdvec(&record).expect("writing to memory cannot fail and every length is known");
        let digest = blake3::hash(&bytes);
        format!("{}-{}", self.cluster, &digest.to_hex()[..16])
    }

    /// The node with this number.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&GenesisNode> {
        self.nodes.iter().find(|node| node.id == id)
    }
}
