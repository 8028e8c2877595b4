//! A node file: which node this is, and how it runs.

use super::ConfigError;
use super::genesis::Genesis;
use super::ranges::{check_families, check_storage};
use super::reading::{load_identity, load_toml};
use super::sizes::Mode;
use super::writing::write_toml;
use crate::limits::PINNED_BYTES;
use crate::ring::{NodeId, TenureId};
use crate::transport::Identity;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tetrachord_consensus::pbft::Lie;

/// Settings of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// Memory that sled may use for its pages, as they are on disk; in memory they take about three times as much.
    pub cache_bytes: u64,
    /// The write-ahead log is rewritten when it reaches this size.
    pub log_max_bytes: u64,
    /// Entries that are kept for lagging replicas, in memory and when the log is rewritten; a replica that lags further gets
    /// a snapshot.
    pub log_retain_bytes: u64,
    /// Entries that are kept besides, in memory and on disk, for replicas that are there and lag, or are given a snapshot.
    pub log_pinned_bytes: u64,
    /// When nothing was written for a while, applied state is packed if its file has grown by half since the last time, and
    /// by this much.
    pub pack_above_bytes: u64,
    /// Writes are refused while less than this is free on the file system of the data; reads go on.
    pub reserve_bytes: u64,
    /// In Byzantine mode all of the state is read and held against its hashes within so many seconds; 0 is never.
    pub scrub_seconds: u64,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            cache_bytes: 4 << 20,
            log_max_bytes: 64 << 20,
            log_retain_bytes: 8 << 20,
            log_pinned_bytes: PINNED_BYTES,
            pack_above_bytes: 64 << 20,
            reserve_bytes: 64 << 20,
            scrub_seconds: 3_600,
        }
    }
}

/// A node that is told to lie, to see that it does not matter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChaosConfig {
    /// Must be true: nobody lies by accident.
    pub allow: bool,
    /// Which lies, one after the other, over and over.
    pub lies: Vec<String>,
    /// How long each is told.
    pub every_millis: u64,
}

impl ChaosConfig {
    fn check(&self, mode: Mode) -> Result<(), String> {
        if !self.allow {
            return Err(
                "chaos.allow must be true for the node to lie; remove [chaos] if it should not".to_string()
            );
        }
        if mode != Mode::Byzantine {
            return Err(
                "[chaos]: crash mode survives no liar; only a Byzantine cluster may have one".to_string()
            );
        }
        if let Some(unknown) = self.lies.iter().find(|name| Lie::from_name(name).is_none()) {
            let names: Vec<&str> = Lie::ALL.iter().map(|lie| lie.name()).collect();
            return Err(format!("chaos.lies: there is no lie {unknown:?}; there are {}", names.join(", ")));
        }
        if self.lies.is_empty() || !(100..=3_600_000).contains(&self.every_millis) {
            return Err("chaos.lies must name a lie, and chaos.every_millis be 100 to 3600000".to_string());
        }
        Ok(())
    }

    /// The lies, in order.
    #[must_use]
    pub fn lies(&self) -> Vec<Lie> {
        self.lies.iter().filter_map(|name| Lie::from_name(name)).collect()
    }
}

/// Adds `[chaos]` to a node file that has none.
pub fn let_lie(node_file: &Path, chaos: &ChaosConfig) -> Result<(), ConfigError> {
    let mut file: NodeFile = load_toml(node_file)?;
    file.chaos = Some(chaos.clone());
    write_toml(node_file, &file)
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeFile {
    pub(super) node: NodeId,
    pub(super) genesis: PathBuf,
    pub(super) key_file: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) signing_key_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) keys_dir: Option<PathBuf>,
    pub(super) data_dir: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) listen: Option<SocketAddr>,
    #[serde(default)]
    pub(super) storage: StorageConfig,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) chaos: Option<ChaosConfig>,
}

/// Everything that one node needs to run.
#[derive(Debug)]
pub struct NodeConfig {
    /// Which node.
    pub node: NodeId,
    /// Its cluster.
    pub genesis: Genesis,
    /// Its key.
    pub identity: Identity,
    /// In Byzantine mode, the key that it signs with as a node.
    pub signing: Option<Identity>,
    /// In Byzantine mode, the keys that its replicas vote with.
    pub epoch_keys: BTreeMap<TenureId, Identity>,
    /// Where it keeps its data.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its store.
    pub storage: StorageConfig,
    /// Whether it lies.
    pub chaos: Option<ChaosConfig>,
}

impl NodeConfig {
    /// Reads a node file and everything it names. Paths are relative to the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file: NodeFile = load_toml(path)?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let genesis = Genesis::load(&dir.join(&file.genesis))?;
        let identity = load_identity(&dir.join(&file.key_file))?;
        let wrong = |reason: String| ConfigError::Value { path: path.to_path_buf(), reason };
        let Some(node) = genesis.node(file.node) else {
            return Err(wrong(format!(
                "{} is not in the genesis record, which has {} nodes",
                file.node,
                genesis.nodes.len()
            )));
        };
        if node.key != identity.public() {
            return Err(wrong(format!(
                "the key in {} is not the one that the genesis record names for {}",
                file.key_file.display(),
                file.node
            )));
        }
        let signing = file.signing_key_file.map(|path| load_identity(&dir.join(path))).transpose()?;
        if node.signing_key != signing.as_ref().map(Identity::public) {
            return Err(wrong(format!(
                "the key in signing_key_file is not the signing_key that the genesis record names for {}",
                file.node
            )));
        }
        let epoch_keys = match &file.keys_dir {
            Some(keys) => load_epoch_keys(&dir.join(keys), &genesis, file.node)?,
            None => BTreeMap::new(),
        };
        check_storage(&file.storage).map_err(wrong)?;
        let listen = file.listen.unwrap_or_else(|| node.address.to_bind());
        check_families(listen, &genesis.nodes).map_err(wrong)?;
        let data_dir = dir.join(&file.data_dir);
        if let Some(chaos) = &file.chaos {
            chaos.check(genesis.mode).map_err(wrong)?;
        }
        let (storage, chaos) = (file.storage, file.chaos);
        Ok(Self { node: file.node, genesis, identity, signing, epoch_keys, data_dir, listen, storage, chaos })
    }
}

/// The file with the key that a replica votes with in one tenure.
pub(super) fn epoch_key_file(TenureId { group, epoch }: TenureId) -> String {
    format!("{group}-{epoch}.key")
}

/// The keys of a founder's replicas, as far as they are there: one that has had its time was erased.
fn load_epoch_keys(
    dir: &Path,
    genesis: &Genesis,
    node: NodeId,
) -> Result<BTreeMap<TenureId, Identity>, ConfigError> {
    let mut keys = BTreeMap::new();
    for tenure in genesis.founding() {
        let path = dir.join(epoch_key_file(tenure.id));
        let Some(index) = tenure.index_of(node) else { continue };
        let is_there = path.try_exists().map_err(|source| ConfigError::File {
            what: "look for the key file",
            path: path.clone(),
            source,
        });
        if !is_there? {
            continue;
        }
        let key = load_identity(&path)?;
        if tenure.members[index].epoch_key != Some(key.public().0) {
            let reason = format!(
                "it is not the key that the genesis record names among the epoch_keys of {node} for {}",
                tenure.group()
            );
            return Err(ConfigError::Value { path, reason });
        }
        keys.insert(tenure.id, key);
    }
    Ok(keys)
}
