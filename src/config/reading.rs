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
