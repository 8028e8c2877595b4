//! A new cluster: its keys and all its files.

use super::ConfigError;
use super::clients::{CLIENTS_MAX, NewClient};
use super::cluster::{CLUSTER_VERSION, ClusterFile, GenesisNode};
use super::founders::NewNode;
use super::genesis::{FlexibleQuorums, GENESIS_VERSION, Genesis, Timing};
use super::node::StorageConfig;
use super::ranges::check_families;
use super::sizes::{Mode, check_sizes};
use super::writing::{create_dir, write_secret, write_toml};
use crate::limits::Limits;
use crate::ring::Address;
use crate::transport::Identity;
use std::path::PathBuf;

/// What [`init`] is asked to make.
#[derive(Clone, Debug)]
pub struct InitPlan {
    /// Where.
    pub dir: PathBuf,
    /// Addresses of the nodes, in order.
    pub addresses: Vec<Address>,
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
    let sizes = check_sizes(plan.mode, plan.groups, plan.replicas, plan.addresses.len());
    sizes.map_err(|reason| ConfigError::Value { path: genesis_path.clone(), reason })?;
    let founders = NewNode::draw_all(plan).map_err(randomness)?;
    if plan.clients == 0 || plan.clients > CLIENTS_MAX {
        let reason = format!("{} clients: a cluster is made with 1 to {CLIENTS_MAX}", plan.clients);
        return Err(ConfigError::Value { path: genesis_path, reason });
    }
    let clients = (1..=plan.clients).map(|number| NewClient::draw(number, plan.mode).map_err(randomness));
    let clients: Vec<NewClient> = clients.collect::<Result<_, _>>()?;
    let admin = Identity::generate().map_err(randomness)?;
    let nodes: Vec<GenesisNode> = founders.iter().map(NewNode::record).collect();
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
        admin_key: admin.public(),
        timing: plan.timing,
        nodes: nodes.clone(),
        clients: clients.iter().map(NewClient::record).collect(),
    };
    let families =
        plan.addresses.first().map_or(Ok(()), |first| check_families(first.to_bind(), &genesis.nodes));
    let checked = genesis.check().and(families);
    checked.map_err(|reason| ConfigError::Value { path: genesis_path.clone(), reason })?;
    create_dir(dir)?;
    for client in &clients {
        client.write_keys(dir)?;
    }
    write_secret(&dir.join("admin.key"), &admin.secret_hex())?;
    let node_files: Vec<PathBuf> =
        founders.iter().map(|founder| founder.write(dir, plan.storage)).collect::<Result<_, _>>()?;
    let is_byzantine = plan.mode == Mode::Byzantine;
    for client in &clients {
        let cluster = ClusterFile {
            version: CLUSTER_VERSION,
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

/// A key for signing, where the mode has use for one.
pub(super) fn signing_key(mode: Mode) -> Result<Option<Identity>, getrandom::Error> {
    match mode {
        Mode::Crash => Ok(None),
        Mode::Byzantine => Identity::generate().map(Some),
    }
}
