//! The nodes of a new cluster: each has keys of its own, and a folder with its files.

use super::cluster::{EpochKey, GenesisNode};
use super::init::{InitPlan, signing_key};
use super::node::{NodeFile, StorageConfig, epoch_key_file};
use super::writing::{create_own_dir, write_file, write_secret, write_toml};
use super::{ConfigError, Mode};
use crate::ring::{Address, NodeId, Tenure, TenureId, found_without_keys};
use crate::transport::Identity;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A node that is being made.
pub(super) struct NewNode {
    id: NodeId,
    address: Address,
    identity: Identity,
    signing: Option<Identity>,
    epoch_keys: BTreeMap<TenureId, Identity>,
}

impl NewNode {
    /// Draws the keys of all nodes. The sizes of the plan are possible.
    pub(super) fn draw_all(plan: &InitPlan) -> Result<Vec<Self>, getrandom::Error> {
        let founding = found_without_keys(plan.groups, plan.addresses.len(), plan.replicas);
        let draw = |(index, address): (usize, &Address)| {
            let id = NodeId::founder(index);
            let votes = |tenure: &&Tenure| plan.mode == Mode::Byzantine && tenure.index_of(id).is_some();
            let epoch_key = |tenure: &Tenure| Ok((tenure.id, Identity::generate()?));
            Ok(Self {
                id,
                address: address.clone(),
                identity: Identity::generate()?,
                signing: signing_key(plan.mode)?,
                epoch_keys: founding.iter().filter(votes).map(epoch_key).collect::<Result<_, _>>()?,
            })
        };
        plan.addresses.iter().enumerate().map(draw).collect()
    }

    /// What everybody knows of it.
    pub(super) fn record(&self) -> GenesisNode {
        let epoch_key =
            |(tenure, key): (&TenureId, &Identity)| EpochKey { group: tenure.group, key: key.public() };
        GenesisNode {
            id: self.id,
            name: self.id.to_string(),
            address: self.address.clone(),
            key: self.identity.public(),
            signing_key: self.signing.as_ref().map(Identity::public),
            capacity: 1,
            tags: BTreeMap::new(),
            epoch_keys: self.epoch_keys.iter().map(epoch_key).collect(),
        }
    }

    /// Writes its folder; returns its node file.
    pub(super) fn write(&self, dir: &Path, storage: StorageConfig) -> Result<PathBuf, ConfigError> {
        let home = dir.join(self.id.to_string());
        let data = home.join("data");
        create_own_dir(&home)?;
        create_own_dir(&data)?;
        write_secret(&home.join("node.key"), &self.identity.secret_hex())?;
        if let Some(signing) = &self.signing {
            write_secret(&home.join("signing.key"), &signing.secret_hex())?;
            create_own_dir(&home.join("keys"))?;
        }
        for (tenure, key) in &self.epoch_keys {
            write_secret(&home.join("keys").join(epoch_key_file(*tenure)), &key.secret_hex())?;
        }
        let bootstrap = data.join(crate::storage::disk::BOOTSTRAP_FILE);
        write_file(&bootstrap, "This node has never run. The file is used up at its first start.\n")?;
        let path = home.join("node.toml");
        let file = NodeFile {
            node: self.id,
            genesis: "../genesis.toml".into(),
            key_file: "node.key".into(),
            signing_key_file: self.signing.as_ref().map(|_| "signing.key".into()),
            keys_dir: self.signing.as_ref().map(|_| "keys".into()),
            data_dir: "data".into(),
            listen: None,
            storage,
            chaos: None,
        };
        write_toml(&path, &file)?;
        Ok(path)
    }
}
