//! The genesis record: what every node of a cluster agrees on from the start.

use super::ConfigError;
use super::addresses::check_addresses;
use super::cluster::GenesisNode;
use super::founding::{check_founders, check_order, founding};
use super::ranges::{check_description, check_name, check_names, check_timing};
use super::reading::{check_version, load_toml};
use super::sizes::{Mode, check_sizes};
use crate::limits::{KEY_BYTES_CAP, Limits, VALUE_BYTES_CAP};
use crate::ring::{Address, NodeId, QuorumRule, Tenure};
use crate::transport::PublicKey;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
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
    /// The key of whoever decides who belongs to the cluster. No node has it.
    pub admin_key: PublicKey,
    /// Timers.
    #[serde(default)]
    pub timing: Timing,
    /// The nodes.
    pub nodes: Vec<GenesisNode>,
    /// Clients that may connect.
    pub clients: Vec<GenesisClient>,
}

pub(super) const GENESIS_VERSION: u32 = 2;

impl Genesis {
    /// Reads and checks a genesis record.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        check_version(path, GENESIS_VERSION, "genesis")?;
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
        check_sizes(self.mode, self.groups, self.replicas, self.nodes.len())?;
        if self.mode == Mode::Byzantine && self.quorums.is_some() {
            return Err("quorums: Byzantine mode has one quorum, which follows from n".to_string());
        }
        if let Some(quorums) = self.quorums {
            let FlexibleQuorums { phase1, phase2, survive } = quorums;
            Quorums::flexible(self.replicas, phase1, phase2, survive)
                .map_err(|error: QuorumError| error.to_string())?;
        }
        check_order(&self.nodes)?;
        self.nodes.iter().try_for_each(check_description)?;
        check_names(&self.nodes)?;
        self.check_keys()?;
        check_addresses(&self.nodes)?;
        self.check_limits()
    }

    /// Every key is named once: who has a key is one, and does one thing with it.
    fn check_keys(&self) -> Result<(), String> {
        let of_nodes = self.nodes.iter().flat_map(|node| {
            let epochs = node.epoch_keys.iter().map(|epoch| epoch.key);
            [node.key].into_iter().chain(node.signing_key).chain(epochs)
        });
        let of_clients =
            self.clients.iter().flat_map(|client| [client.key].into_iter().chain(client.signing_key));
        let mut seen = BTreeSet::from([self.admin_key]);
        if let Some(key) = of_nodes.chain(of_clients).find(|key| !seen.insert(*key)) {
            return Err(format!(
                "the key {key} is named twice; the administrator, every node and every client need keys of their own, one for each use"
            ));
        }
        match self.mode {
            Mode::Crash => self.check_unsigned(),
            Mode::Byzantine => {
                check_founders((self.groups, self.replicas), &self.nodes)?;
                match self.clients.iter().find(|client| client.signing_key.is_none()) {
                    Some(GenesisClient { name, .. }) => {
                        Err(format!("{name} has no signing_key: in Byzantine mode everybody signs"))
                    }
                    None => Ok(()),
                }
            }
        }
    }

    fn check_unsigned(&self) -> Result<(), String> {
        let signs = |node: &&GenesisNode| node.signing_key.is_some() || !node.epoch_keys.is_empty();
        let node = self.nodes.iter().find(signs).map(|node| node.id.to_string());
        let client = self.clients.iter().find(|client| client.signing_key.is_some());
        match node.or(client.map(|client| client.name.clone())) {
            Some(name) => {
                Err(format!("{name} has a signing_key or epoch_keys, which only Byzantine mode uses"))
            }
            None => Ok(()),
        }
    }

    fn check_limits(&self) -> Result<(), String> {
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

    /// The tenures that the cluster begins with.
    #[must_use]
    pub fn founding(&self) -> Vec<Tenure> {
        let quorums = match (self.mode, self.quorums) {
            (Mode::Byzantine, _) => QuorumRule::Byzantine,
            (Mode::Crash, None) => QuorumRule::majority(self.replicas),
            (Mode::Crash, Some(FlexibleQuorums { phase1, phase2, .. })) => {
                let few = |size: usize| u8::try_from(size).expect("no more than there are replicas");
                QuorumRule::Crash { phase1: few(phase1), phase2: few(phase2) }
            }
        };
        founding((self.groups, self.replicas), quorums, &self.nodes)
    }

    /// The cluster's name with a digest of everything above but addresses: two nodes talk only if they agree on all of it.
    #[must_use]
    pub fn protocol_name(&self) -> String {
        let mut record = self.clone();
        let nowhere = Address::from(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
        record.nodes.iter_mut().for_each(|node| node.address = nowhere.clone());
        let bytes = serde_json::to_vec(&record).expect("a record has nothing that cannot be written");
        let digest = blake3::hash(&bytes);
        format!("{}-{}", self.cluster, &digest.to_hex()[..32])
    }

    /// The node with this number.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&GenesisNode> {
        self.nodes.iter().find(|node| node.id == id)
    }
}
