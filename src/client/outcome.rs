//! What became of a request, and what was read: outcomes are never dressed up.

use crate::kv::Failure;
use crate::wire::Served;
use bytes::Bytes;
use thiserror::Error;

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "an outcome may be Refused or Unknown"]
pub enum Outcome<T> {
    /// It happened.
    Done(T),
    /// It surely did not happen.
    Refused(Refusal),
    /// Nobody knows.
    Unknown(String),
}

/// Why something surely did not happen.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The state machine refused it.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// No node could take it in time.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The cluster does not know this client.
    #[error("denied: {0}")]
    Denied(String),
}

/// An outcome that is not Done, as an error.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotDone {
    /// It surely did not happen.
    #[error(transparent)]
    Refused(Refusal),
    /// Nobody knows.
    #[error("outcome unknown: {0}. It may have been applied, or may be applied later")]
    Unknown(String),
}

impl<T> Outcome<T> {
    /// The answer, or why there is none.
    pub fn done(self) -> Result<T, NotDone> {
        match self {
            Self::Done(value) => Ok(value),
            Self::Refused(refusal) => Err(NotDone::Refused(refusal)),
            Self::Unknown(reason) => Err(NotDone::Unknown(reason)),
        }
    }

    pub(super) fn map<U>(self, f: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Self::Done(value) => Outcome::Done(f(value)),
            Self::Refused(refusal) => Outcome::Refused(refusal),
            Self::Unknown(reason) => Outcome::Unknown(reason),
        }
    }
}

/// A value that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Version and value, if the key exists.
    pub found: Option<(u64, Bytes)>,
    /// Where it was read, and what that promises.
    pub served: Served,
}
