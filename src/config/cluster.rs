//! The cluster file: what a client needs to know.

use super::ConfigError;
use super::addresses::check_addresses;
use super::founding::{check_founders, founding};
use super::reading::{check_version, load_identity, load_toml};
use super::sizes::{Mode, check_sizes};
use crate::ring::{Address, GroupId, NodeId, QuorumRule, Tenure};
use crate::transport::{Identity, PublicKey};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A key that a founder votes with in the first epoch of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochKey {
    /// The group.
    pub group: GroupId,
    /// The key.
    pub key: PublicKey,
}

/// A node in the genesis record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenesisNode {
    /// Its number, counted from 1.
    pub id: NodeId,
    /// What people call it.
    pub name: String,
    /// Where the other nodes and clients reach it.
    pub address: Address,
    /// Its key.
    pub key: PublicKey,
    /// In Byzantine mode, the key that it signs with as a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<PublicKey>,
    /// How much it can take, compared with the others.
    #[serde(default = "one")]
    pub capacity: u32,
    /// Where it is and what it is like, for people and for those who place replicas.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// In Byzantine mode, the keys that it votes with in the first epoch of each of its groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub epoch_keys: Vec<EpochKey>,
}

fn one() -> u32 {
    1
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterFile {
    pub(super) version: u32,
    pub(super) protocol: String,
    pub(super) client_key_file: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) client_signing_key_file: Option<PathBuf>,
    /// In Byzantine mode clients believe no node about the ring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) groups: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) replicas: Option<usize>,
    pub(super) nodes: Vec<GenesisNode>,
}

/// Version of a cluster file.
pub(super) const CLUSTER_VERSION: u32 = 2;

/// TLS allows 255 bytes for a protocol's name, of which this is a part.
const PROTOCOL_BYTES_MAX: usize = 200;

/// Everything that a client needs to reach a cluster.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Part of the protocol's name.
    pub protocol: String,
    /// The client's key.
    pub identity: Identity,
    /// In Byzantine mode, the key that the client signs requests with.
    pub signing: Option<Identity>,
    /// In Byzantine mode, the tenures that the cluster began with; else nodes are believed.
    pub founding: Option<Vec<Tenure>>,
    /// The nodes.
    pub nodes: Vec<GenesisNode>,
}

impl ClusterConfig {
    /// Reads a cluster file and the client key that it names. Paths are relative to the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        check_version(path, CLUSTER_VERSION, "cluster file")?;
        let file: ClusterFile = load_toml(path)?;
        if file.nodes.is_empty() {
            let reason = "it names no node".to_string();
            return Err(ConfigError::Value { path: path.to_path_buf(), reason });
        }
        let wrong = |reason: String| ConfigError::Value { path: path.to_path_buf(), reason };
        if file.protocol.is_empty() || file.protocol.len() > PROTOCOL_BYTES_MAX {
            return Err(wrong("protocol must be the one that `init` wrote".to_string()));
        }
        check_addresses(&file.nodes).map_err(wrong)?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let identity = load_identity(&dir.join(&file.client_key_file))?;
        let signing = file.client_signing_key_file.map(|path| load_identity(&dir.join(path))).transpose()?;
        let founding = match (file.groups, file.replicas, &signing) {
            (Some(groups), Some(replicas), Some(_)) => {
                check_sizes(Mode::Byzantine, groups, replicas, file.nodes.len()).map_err(wrong)?;
                check_founders((groups, replicas), &file.nodes).map_err(wrong)?;
                Some(founding((groups, replicas), QuorumRule::Byzantine, &file.nodes))
            }
            (None, None, None) => None,
            _ => {
                let reason = "groups, replicas and client_signing_key_file belong together: all of them in Byzantine \
                              mode, none in crash mode";
                return Err(wrong(reason.to_string()));
            }
        };
        Ok(Self { protocol: file.protocol, identity, signing, founding, nodes: file.nodes })
    }
}

/// The digest that stands for a cluster in everything that is signed.
#[must_use]
pub fn cluster_digest(protocol_name: &str) -> [u8; 32] {
    blake3::derive_key("tetrachord v2 cluster", protocol_name.as_bytes())
}
