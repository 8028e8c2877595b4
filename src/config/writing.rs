//! Writing files.

use super::ConfigError;
use serde::Serialize;
use std::path::Path;

pub(super) fn create_dir(path: &Path) -> Result<(), ConfigError> {
    std::fs::create_dir_all(path).map_err(|source| ConfigError::File {
        what: "create",
        path: path.to_path_buf(),
        source,
    })
}

/// A directory for its owner's eyes alone.
pub(super) fn create_own_dir(path: &Path) -> Result<(), ConfigError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| ConfigError::File { what: "create", path: path.to_path_buf(), source })
}

pub(super) fn write_file(path: &Path, text: &str) -> Result<(), ConfigError> {
    std::fs::write(path, text).map_err(|source| ConfigError::File {
        what: "write",
        path: path.to_path_buf(),
        source,
    })
}

pub(super) fn write_toml<T: Serialize>(path: &Path, value: &T) -> Result<(), ConfigError> {
    let text = toml::to_string_pretty(value)
        .map_err(|error| ConfigError::Form { path: path.to_path_buf(), reason: error.to_string() })?;
    write_file(path, &text)
}

/// A key file is for its owner's eyes alone.
pub(super) fn write_secret(path: &Path, text: &str) -> Result<(), ConfigError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |source| ConfigError::File { what: "write the key file", path: path.to_path_buf(), source };
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    writeln!(file, "{text}").map_err(failed)
}
