//! The cluster file: what a client needs to know.

use super::ConfigError;
use super::addresses::check_addresses;
use super::reading::{load_identity, load_toml};
use super::sizes::{Mode, check_replicas};
use crate::limits::GROUPS_MAX;
use crate::ring::{NodeId, RingMap};
use crate::transport::{Identity, PublicKey};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A node in the genesis record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenesisNode {
    /// Its number, counted from 1.
    pub id: NodeId,
    /// Where the other nodes and clients reach it.
    pub address: SocketAddr,
    /// Its key.
    pub key: PublicKey,
    /// In Byzantine mode, the key that it signs votes with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<PublicKey>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterFile {
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
    /// In Byzantine mode, who owns what; else a node tells it.
    pub ring: Option<RingMap>,
    /// The nodes.
    pub nodes: Vec<GenesisNode>,
}

impl ClusterConfig {
    /// Reads a cluster file and the client key that it names. Paths are relative to the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
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
        let ring = match (file.groups, file.replicas, &signing) {
            (Some(groups), Some(replicas), Some(_)) => {
                check_replicas(Mode::Byzantine, replicas, file.nodes.len()).map_err(wrong)?;
                if groups == 0 || groups > GROUPS_MAX {
                    return Err(wrong(format!("groups = {groups}: a cluster has 1 to {GROUPS_MAX}")));
                }
                Some(RingMap::even(groups, file.nodes.len(), replicas))
            }
            (None, None, None) => None,
            _ => {
                let reason = "groups, replicas and client_signing_key_file belong together: all of them in Byzantine \
                              mode, none in crash mode";
                return Err(wrong(reason.to_string()));
            }
        };
        Ok(Self { protocol: file.protocol, identity, signing, ring, nodes: file.nodes })
    }
}

/// The digest that stands for a cluster in everything that is signed.
#[must_use]
pub fn cluster_digest(protocol_name: &str) -> [u8; 32] {
    blake3::derive_key("tetrachord v1 cluster", protocol_name.as_bytes())
}
