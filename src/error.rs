//! Errors, sorted by what the reader must do: retry, refuse, or stop the node.

use std::io::ErrorKind;
use thiserror::Error;

/// The disk failed, or holds something that it must not. The node must stop; see each variant for what to do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StorageError {
    /// An operation of the operating system or of sled failed. Nothing is retried: after a failed sync the kernel
    /// may have dropped what was written.
    #[error("storage failed while it tried to {what}: {reason}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        reason: String,
    },
    /// There is no room left on the disk. Nothing that was acknowledged is lost.
    #[error(
        "the disk is full: {0} failed. Nothing that was acknowledged is lost; free space on the file system of the data \
         directory and start the node again"
    )]
    Full(String),
    /// A record is damaged.
    #[error("{what} is damaged: {reason}. This node must not vote with it; restore it as a new node")]
    Corrupt {
        /// Which record.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store is missing something that this node had promised.
    #[error("{0}")]
    StateLost(String),
    /// The store belongs to somebody else.
    #[error("{0}")]
    Foreign(String),
    /// A setting cannot be meant. Nothing was opened, and nothing is wrong with what is there.
    #[error("{0}")]
    Setting(String),
    /// Another process uses the directory.
    #[error("the data directory {0} is in use by another process; stop it first")]
    InUse(String),
}

impl StorageError {
    /// A failed operation of the operating system.
    pub fn io(what: &'static str, error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Self::Full(format!("to {what}"))
            }
            _ => Self::Io { what, reason: error.to_string() },
        }
    }

    /// A failed operation of anything else.
    pub fn other(what: &'static str, reason: impl ToString) -> Self {
        Self::Io { what, reason: reason.to_string() }
    }

    /// A damaged record.
    pub fn corrupt(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Corrupt { what: what.into(), reason: reason.to_string() }
    }
}
