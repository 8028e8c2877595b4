//! Reading files.

use super::ConfigError;
use crate::transport::Identity;
use serde::de::DeserializeOwned;
use std::path::Path;

pub(super) fn load_toml<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let read = std::fs::read_to_string(path);
    let text = read.map_err(|source| ConfigError::File { what: "read", path: path.to_path_buf(), source })?;
    toml::from_str(without_mark(&text))
        .map_err(|error| ConfigError::Form { path: path.to_path_buf(), reason: error.to_string() })
}

/// A file of another version has other fields: what is wrong with it is its version.
pub(super) fn check_version(path: &Path, version: u32, what: &str) -> Result<(), ConfigError> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        #[serde(default)]
        version: u32,
    }
    let Versioned { version: found } = load_toml(path)?;
    if found == version {
        return Ok(());
    }
    let found = if found == 0 { "without a version".to_string() } else { format!("version {found}") };
    let reason = format!(
        "{what} {found} is not supported, this build reads version {version}. Use the build that made it, or make a new cluster with `init`"
    );
    Err(ConfigError::Value { path: path.to_path_buf(), reason })
}

/// Some editors begin a file with a byte-order mark.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

pub(super) fn load_identity(path: &Path) -> Result<Identity, ConfigError> {
    let read = std::fs::read_to_string(path);
    let text = read.map_err(|source| ConfigError::File {
        what: "read the key file",
        path: path.to_path_buf(),
        source,
    })?;
    Identity::from_secret_hex(without_mark(&text))
        .map_err(|error| ConfigError::Value { path: path.to_path_buf(), reason: error.to_string() })
}
