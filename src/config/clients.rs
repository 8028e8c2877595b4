//! The clients of a new cluster: each has keys of its own, and a cluster file that names them.

use super::init::signing_key;
use super::writing::write_secret;
use super::{ConfigError, GenesisClient, Mode};
use crate::transport::Identity;
use std::path::{Path, PathBuf};

/// Clients that a cluster can be made with.
pub const CLIENTS_MAX: usize = 1_000;

/// The keys of one client.
pub(super) struct NewClient {
    name: String,
    identity: Identity,
    signing: Option<Identity>,
}

impl NewClient {
    /// The first is called `client`, those behind it `client-2` and so on.
    pub(super) fn draw(number: usize, mode: Mode) -> Result<Self, getrandom::Error> {
        let name = if number == 1 { "client".to_string() } else { format!("client-{number}") };
        Ok(Self { name, identity: Identity::generate()?, signing: signing_key(mode)? })
    }

    /// What everybody knows of it.
    pub(super) fn record(&self) -> GenesisClient {
        GenesisClient {
            name: self.name.clone(),
            key: self.identity.public(),
            signing_key: self.signing.as_ref().map(Identity::public),
        }
    }

    /// The file with the key of its connections.
    pub(super) fn key_file(&self) -> PathBuf {
        format!("{}.key", self.name).into()
    }

    /// In Byzantine mode, the file with the key that it signs requests with.
    pub(super) fn signing_key_file(&self) -> Option<PathBuf> {
        self.signing.as_ref().map(|_| format!("{}-signing.key", self.name).into())
    }

    /// Its cluster file: `cluster.toml`, `cluster-2.toml` and so on.
    pub(super) fn cluster_file(&self) -> PathBuf {
        format!("{}.toml", self.name.replacen("client", "cluster", 1)).into()
    }

    /// Writes its keys.
    pub(super) fn write_keys(&self, dir: &Path) -> Result<(), ConfigError> {
        write_secret(&dir.join(self.key_file()), &self.identity.secret_hex())?;
        match (self.signing_key_file(), &self.signing) {
            (Some(file), Some(signing)) => write_secret(&dir.join(file), &signing.secret_hex()),
            _ => Ok(()),
        }
    }
}
