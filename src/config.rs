//! Files that people write, turned into values that need no further check.
//!
//! * The **genesis record** is the same on every node: who belongs to the cluster, how the ring is cut, what the limits
//!   are. Its digest is part of the protocol's name, so nodes that disagree about it never talk. Only addresses are no part of
//!   it: where somebody is found says nothing about who that is, and may change.
//! * A **node file** says which node this is and where its key and data are.
//! * The **cluster file** is for clients: where the nodes are, which keys they have, and the client's own.
//!
//! Unknown fields are errors: a misspelt setting must not be silently without effect.

mod clients;
mod ranges;

pub use clients::CLIENTS_MAX;
use clients::NewClient;

use crate::limits::{GROUPS_MAX, KEY_BYTES_CAP, Limits, NODES_MAX, PINNED_BYTES, VALUE_BYTES_CAP};
use crate::ring::{NodeId, RingMap};
use crate::transport::{Identity, PublicKey};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use tetrachord_consensus::pbft::Lie;
use tetrachord_consensus::{ByzantineQuorum, QuorumError, Quorums};
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

/// Which faults the cluster survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Replicas may crash: Multi-Paxos, n = 2f + 1.
    #[default]
    Crash,
    /// Replicas may lie in any way: PBFT with signed messages, n = 3f + 1.
    Byzantine,
}

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

const GENESIS_VERSION: u32 = 1;

/// In the place of every address where a record is compared.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

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
        ranges::check_name(&self.cluster)?;
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
        let ids: Vec<u32> = self.nodes.iter().map(|node| node.id.0).collect();
        if ids != (1..=u32::try_from(n).expect("few nodes")).collect::<Vec<_>>() {
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
        ranges::check_addresses(&self.nodes)?;
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
        ranges::check_timing(&self.timing)
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

/// Replicas that a group may have. More would only make every write slower.
const REPLICAS_MAX: usize = 9;

/// How many replicas a group may have, with so many nodes.
pub fn check_replicas(mode: Mode, replicas: usize, nodes: usize) -> Result<(), String> {
    if replicas > nodes {
        return Err(format!(
            "{replicas} replicas need as many nodes, there are {nodes}: a node hosts one of a group"
        ));
    }
    if mode == Mode::Byzantine {
        return ByzantineQuorum::new(replicas).map(drop).map_err(|error| error.to_string());
    }
    if replicas == 0 || replicas.is_multiple_of(2) || replicas > REPLICAS_MAX {
        let below = replicas.saturating_sub(1).clamp(1, REPLICAS_MAX);
        let above = (replicas + 1).min(REPLICAS_MAX);
        let nearest = if below == above { below.to_string() } else { format!("{below} or {above}") };
        return Err(format!(
            "a group of {replicas} replicas: crash mode needs n = 2f + 1, 1 to {REPLICAS_MAX}, to survive f crashes; an \
             even number survives no more than the odd one below it. Use {nearest}"
        ));
    }
    Ok(())
}

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
struct NodeFile {
    node: NodeId,
    genesis: PathBuf,
    key_file: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signing_key_file: Option<PathBuf>,
    data_dir: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    listen: Option<SocketAddr>,
    #[serde(default)]
    storage: StorageConfig,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chaos: Option<ChaosConfig>,
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
    /// In Byzantine mode, the key that it signs votes with.
    pub signing: Option<Identity>,
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
        ranges::check_storage(&file.storage).map_err(wrong)?;
        let listen = file.listen.unwrap_or(node.address);
        ranges::check_families(listen, &genesis.nodes).map_err(wrong)?;
        let data_dir = dir.join(&file.data_dir);
        if let Some(chaos) = &file.chaos {
            chaos.check(genesis.mode).map_err(wrong)?;
        }
        let (storage, chaos) = (file.storage, file.chaos);
        Ok(Self { node: file.node, genesis, identity, signing, data_dir, listen, storage, chaos })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    protocol: String,
    client_key_file: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_signing_key_file: Option<PathBuf>,
    /// In Byzantine mode clients believe no node about the ring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    groups: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replicas: Option<usize>,
    nodes: Vec<GenesisNode>,
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
        ranges::check_addresses(&file.nodes).map_err(wrong)?;
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

/// The number of nodes to take if none is asked for: the fewest that survive a fault.
#[must_use]
pub fn default_nodes(mode: Mode) -> usize {
    match mode {
        Mode::Crash => 3,
        Mode::Byzantine => 4,
    }
}

/// The number of replicas to take if none is asked for: the largest valid one that there are nodes for, at most five in
/// crash mode and seven in Byzantine mode. Sizes of a whole cluster that are no valid group, up to there, are taken as they
/// are, and refused with the reason.
#[must_use]
pub fn default_replicas(mode: Mode, nodes: usize) -> usize {
    match (mode, nodes) {
        (Mode::Crash, 0..3) => nodes,
        (Mode::Crash, 3..5) => 3,
        (Mode::Crash, _) => 5,
        (Mode::Byzantine, 0..7) => nodes,
        (Mode::Byzantine, _) => 7,
    }
}

/// What [`init`] is asked to make.
#[derive(Clone, Debug)]
pub struct InitPlan {
    /// Where.
    pub dir: PathBuf,
    /// Addresses of the nodes, in order.
    pub addresses: Vec<SocketAddr>,
    /// Groups.
    pub groups: usize,
    /// Replicas of each.
    pub replicas: usize,
    /// Clients, each with keys of its own.
    pub clients: usize,
    /// Quorums other than majorities.
    pub quorums: Option<FlexibleQuorums>,
    /// Faults survived.
    pub mode: Mode,
    /// Settings of every node's store.
    pub storage: StorageConfig,
    /// Timers.
    pub timing: Timing,
}

/// Makes keys, the genesis record, a file for each node and one for each client. Nothing that exists is overwritten.
/// Returns the first client's cluster file and the node files.
pub fn init(plan: &InitPlan) -> Result<(PathBuf, Vec<PathBuf>), ConfigError> {
    let dir = &plan.dir;
    let genesis_path = dir.join("genesis.toml");
    if genesis_path.exists() {
        let reason = "a cluster was already made here; choose another directory or remove it".to_string();
        return Err(ConfigError::Value { path: genesis_path, reason });
    }
    let randomness =
        |error: getrandom::Error| ConfigError::Form { path: dir.clone(), reason: error.to_string() };
    let identities: Vec<Identity> =
        plan.addresses.iter().map(|_| Identity::generate()).collect::<Result<_, _>>().map_err(randomness)?;
    if plan.clients == 0 || plan.clients > CLIENTS_MAX {
        let reason = format!("{} clients: a cluster is made with 1 to {CLIENTS_MAX}", plan.clients);
        return Err(ConfigError::Value { path: genesis_path, reason });
    }
    let clients = (1..=plan.clients).map(|number| NewClient::draw(number, plan.mode).map_err(randomness));
    let clients: Vec<NewClient> = clients.collect::<Result<_, _>>()?;
    let signing = plan.addresses.iter().map(|_| signing_key(plan.mode).map_err(randomness));
    let signing: Vec<Option<Identity>> = signing.collect::<Result<_, _>>()?;
    let public = |key: &Option<Identity>| key.as_ref().map(Identity::public);
    let nodes: Vec<GenesisNode> = (1u32..)
        .zip(plan.addresses.iter().zip(identities.iter().zip(&signing)))
        .map(|(id, (address, (identity, signing)))| GenesisNode {
            id: NodeId(id),
            address: *address,
            key: identity.public(),
            signing_key: public(signing),
        })
        .collect();
    let mut cluster = [0u8; 16];
    getrandom::fill(&mut cluster).map_err(randomness)?;
    let genesis = Genesis {
        version: GENESIS_VERSION,
        cluster: cluster.iter().map(|byte| format!("{byte:02x}")).collect(),
        mode: plan.mode,
        groups: plan.groups,
        replicas: plan.replicas,
        quorums: plan.quorums,
        limits: Limits::default(),
        timing: plan.timing,
        nodes: nodes.clone(),
        clients: clients.iter().map(NewClient::record).collect(),
    };
    let first = plan.addresses.first().copied().unwrap_or(NOWHERE);
    let checked = genesis.check().and_then(|()| ranges::check_families(first, &genesis.nodes));
    checked.map_err(|reason| ConfigError::Value { path: genesis_path.clone(), reason })?;
    create_dir(dir)?;
    for client in &clients {
        client.write_keys(dir)?;
    }
    let mut node_files = Vec::new();
    for (node, (identity, signing)) in nodes.iter().zip(identities.iter().zip(&signing)) {
        node_files.push(init_node(dir, node, identity, signing.as_ref(), plan.storage)?);
    }
    let is_byzantine = plan.mode == Mode::Byzantine;
    for client in &clients {
        let cluster = ClusterFile {
            protocol: genesis.protocol_name(),
            client_key_file: client.key_file(),
            groups: is_byzantine.then_some(plan.groups),
            replicas: is_byzantine.then_some(plan.replicas),
            client_signing_key_file: client.signing_key_file(),
            nodes: nodes.clone(),
        };
        write_toml(&dir.join(client.cluster_file()), &cluster)?;
    }
    write_toml(&genesis_path, &genesis)?;
    Ok((dir.join(clients[0].cluster_file()), node_files))
}

fn init_node(
    dir: &Path,
    node: &GenesisNode,
    identity: &Identity,
    signing: Option<&Identity>,
    storage: StorageConfig,
) -> Result<PathBuf, ConfigError> {
    let home = dir.join(node.id.to_string());
    let data = home.join("data");
    create_own_dir(&home)?;
    create_own_dir(&data)?;
    write_secret(&home.join("node.key"), &identity.secret_hex())?;
    if let Some(signing) = signing {
        write_secret(&home.join("signing.key"), &signing.secret_hex())?;
    }
    let bootstrap = data.join(crate::storage::disk::BOOTSTRAP_FILE);
    write_file(&bootstrap, "This node has never run. The file is used up at its first start.\n")?;
    let path = home.join("node.toml");
    let file = NodeFile {
        node: node.id,
        genesis: "../genesis.toml".into(),
        key_file: "node.key".into(),
        signing_key_file: signing.map(|_| "signing.key".into()),
        data_dir: "data".into(),
        listen: None,
        storage,
        chaos: None,
    };
    write_toml(&path, &file)?;
    Ok(path)
}

/// A key for signing, where the mode has use for one.
fn signing_key(mode: Mode) -> Result<Option<Identity>, getrandom::Error> {
    match mode {
        Mode::Crash => Ok(None),
        Mode::Byzantine => Identity::generate().map(Some),
    }
}

/// The digest that stands for a cluster in everything that is signed.
#[must_use]
pub fn cluster_digest(protocol_name: &str) -> [u8; 32] {
    blake3::derive_key("tetrachord v1 cluster", protocol_name.as_bytes())
}

fn load_toml<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let read = std::fs::read_to_string(path);
    let text = read.map_err(|source| ConfigError::File { what: "read", path: path.to_path_buf(), source })?;
    toml::from_str(without_mark(&text))
        .map_err(|error| ConfigError::Form { path: path.to_path_buf(), reason: error.to_string() })
}

/// Some editors begin a file with a byte-order mark.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn load_identity(path: &Path) -> Result<Identity, ConfigError> {
    let read = std::fs::read_to_string(path);
    let text = read.map_err(|source| ConfigError::File {
        what: "read the key file",
        path: path.to_path_buf(),
        source,
    })?;
    Identity::from_secret_hex(without_mark(&text))
        .map_err(|error| ConfigError::Value { path: path.to_path_buf(), reason: error.to_string() })
}

fn create_dir(path: &Path) -> Result<(), ConfigError> {
    std::fs::create_dir_all(path).map_err(|source| ConfigError::File {
        what: "create",
        path: path.to_path_buf(),
        source,
    })
}

/// A directory for its owner's eyes alone.
fn create_own_dir(path: &Path) -> Result<(), ConfigError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| ConfigError::File { what: "create", path: path.to_path_buf(), source })
}

fn write_file(path: &Path, text: &str) -> Result<(), ConfigError> {
    std::fs::write(path, text).map_err(|source| ConfigError::File {
        what: "write",
        path: path.to_path_buf(),
        source,
    })
}

fn write_toml<T: Serialize>(path: &Path, value: &T) -> Result<(), ConfigError> {
    let text = toml::to_string_pretty(value)
        .map_err(|error| ConfigError::Form { path: path.to_path_buf(), reason: error.to_string() })?;
    write_file(path, &text)
}

/// A key file is for its owner's eyes alone.
fn write_secret(path: &Path, text: &str) -> Result<(), ConfigError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |source| ConfigError::File { what: "write the key file", path: path.to_path_buf(), source };
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    writeln!(file, "{text}").map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(dir: &Path, nodes: u16, replicas: usize) -> InitPlan {
        InitPlan {
            dir: dir.to_path_buf(),
            addresses: (0..nodes).map(|index| SocketAddr::from(([127, 0, 0, 1], 7101 + index))).collect(),
            groups: 2,
            replicas,
            clients: 1,
            quorums: None,
            mode: Mode::Crash,
            storage: StorageConfig::default(),
            timing: Timing::default(),
        }
    }

    #[test]
    fn what_init_writes_can_be_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let (cluster, nodes) = init(&plan(dir.path(), 3, 3)).unwrap();
        let cluster = ClusterConfig::load(&cluster).unwrap();
        let node = NodeConfig::load(&nodes[1]).unwrap();
        assert_eq!(node.node, NodeId(2));
        assert_eq!(node.genesis.protocol_name(), cluster.protocol);
        assert_eq!(node.listen, node.genesis.nodes[1].address);
        assert!(init(&plan(dir.path(), 3, 3)).unwrap_err().to_string().contains("already made here"));
    }

    #[test]
    fn each_client_has_keys_and_a_cluster_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let plan = InitPlan { clients: 3, mode: Mode::Byzantine, ..plan(dir.path(), 4, 4) };
        let (first, nodes) = init(&plan).unwrap();
        assert_eq!(first, dir.path().join("cluster.toml"));
        let genesis = NodeConfig::load(&nodes[0]).unwrap().genesis;
        let names: Vec<&str> = genesis.clients.iter().map(|client| client.name.as_str()).collect();
        assert_eq!(names, ["client", "client-2", "client-3"]);
        for (file, client) in
            ["cluster.toml", "cluster-2.toml", "cluster-3.toml"].iter().zip(&genesis.clients)
        {
            let cluster = ClusterConfig::load(&dir.path().join(file)).unwrap();
            assert_eq!(cluster.identity.public(), client.key);
            assert_eq!(cluster.signing.map(|signing| signing.public()), client.signing_key);
        }
        let elsewhere = tempfile::tempdir().unwrap();
        let none = InitPlan { clients: 0, dir: elsewhere.path().to_path_buf(), ..plan };
        assert!(init(&none).unwrap_err().to_string().contains("1 to 1000"));
    }

    #[test]
    fn impossible_sizes_are_refused_with_the_bound_and_the_nearest_ones() {
        let text = |replicas, nodes| check_replicas(Mode::Crash, replicas, nodes).unwrap_err();
        assert!(text(2, 4).contains("Use 1 or 3"));
        assert!(text(4, 4).contains("Use 3 or 5"));
        assert!(text(5, 3).contains("there are 3"));
        assert_eq!(check_replicas(Mode::Crash, 3, 4), Ok(()));
        let text = |replicas| check_replicas(Mode::Byzantine, replicas, 9).unwrap_err();
        assert!(text(3).contains("use 4") && text(5).contains("use 4 or 7"));
        assert_eq!(check_replicas(Mode::Byzantine, 4, 4), Ok(()));
    }

    #[test]
    fn a_misspelt_setting_and_a_foreign_key_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let (_, nodes) = init(&plan(dir.path(), 3, 3)).unwrap();
        let text = std::fs::read_to_string(&nodes[0]).unwrap();
        std::fs::write(&nodes[0], text.replace("cache_bytes", "cach_bytes")).unwrap();
        let error = NodeConfig::load(&nodes[0]).unwrap_err().to_string();
        assert!(error.contains("cach_bytes") && error.contains("cache_bytes"), "{error}");
        std::fs::write(&nodes[0], text.replace("node = 1", "node = 2")).unwrap();
        assert!(NodeConfig::load(&nodes[0]).unwrap_err().to_string().contains("is not the one"));
    }

    #[test]
    fn genesis_values_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        init(&plan(dir.path(), 3, 3)).unwrap();
        let path = dir.path().join("genesis.toml");
        let good = Genesis::load(&path).unwrap();
        let wrong = |change: &dyn Fn(&mut Genesis)| {
            let mut genesis = good.clone();
            change(&mut genesis);
            genesis.check().unwrap_err()
        };
        assert!(wrong(&|genesis| genesis.groups = 0).contains("1 to"));
        assert!(wrong(&|genesis| genesis.nodes[1].key = genesis.nodes[0].key).contains("named twice"));
        assert!(wrong(&|genesis| genesis.nodes[1].id = NodeId(7)).contains("in order"));
        assert!(wrong(&|genesis| genesis.limits.value_bytes_max = 2 << 20).contains("are allowed"));
        let quorums = FlexibleQuorums { phase1: 1, phase2: 2, survive: 1 };
        assert!(wrong(&|genesis| genesis.quorums = Some(quorums)).contains("must be at least 4"));
        assert!(wrong(&|genesis| genesis.timing.election_millis = 60).contains("four heartbeats"));
        assert!(wrong(&|genesis| genesis.timing.heartbeat_millis = 1 << 62).contains("are allowed"));
        assert!(wrong(&|genesis| genesis.cluster = "a".repeat(300)).contains("32 hexadecimal digits"));
        assert!(wrong(&|genesis| genesis.version = 9).contains("version 9"));
        let name = |change: &dyn Fn(&mut Genesis)| {
            let mut genesis = good.clone();
            change(&mut genesis);
            genesis.protocol_name()
        };
        let moved = "[2001:db8::1]:9000".parse().unwrap();
        assert_eq!(name(&|genesis| genesis.nodes[0].address = moved), good.protocol_name());
        assert_ne!(name(&|genesis| genesis.timing.election_millis += 1), good.protocol_name());
        assert_ne!(name(&|genesis| genesis.nodes.swap(0, 1)), good.protocol_name());
    }
}
