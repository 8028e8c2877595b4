//! How far a group's state has come.

use super::record::{seal_value, unseal_value};
use crate::error::StorageError;
use crate::ring::{GroupId, Start, Tenure};
use crate::storage::{StateWrite, Storage, keys};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// How far a group's state has come. Stored in the same batch as the state itself, and nowhere else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// The epoch that it is in: the state behind an entry that ends one is in the next.
    pub epoch: u64,
    /// The last applied slot.
    pub slot: u64,
    /// The log's chain hash there.
    pub chain: [u8; 32],
    /// Log time, in microseconds since the Unix epoch.
    pub time: u64,
    /// The time by which sessions end, in microseconds: log time, but one step of it counts as ten minutes at most
    /// ([`crate::limits::SESSION_STEP_MICROS_MAX`]).
    pub session_time: u64,
    /// The latest version given out.
    pub clock: u64,
    /// Hash over everything that was answered up to here.
    pub digest: [u8; 32],
    /// Whether a value was ever stored in more than one record.
    pub has_pieces: bool,
}

/// Version of the record.
const FORMAT: u8 = 3;

impl Reached {
    /// Nothing of the tenure's log is applied yet.
    #[must_use]
    pub fn beginning(tenure: &Tenure) -> Self {
        let Start { slot, chain, time } = tenure.start;
        Self { epoch: tenure.id.epoch, slot, chain, time, ..Self::default() }
    }

    /// Reads how far a group's stored state has come.
    pub fn load(storage: &dyn Storage, tenure: &Tenure) -> Result<Self, StorageError> {
        let raw = keys::applied(tenure.group());
        match storage.get(&raw)? {
            None => Ok(Self::beginning(tenure)),
            Some(record) => Self::decode(&raw, record),
        }
    }

    /// Reads the record that [`Self::write`] made, or one under another key with the same form.
    pub fn decode(raw: &[u8], record: Bytes) -> Result<Self, StorageError> {
        unseal_value(raw, FORMAT, record)
    }

    /// The write that says so.
    #[must_use]
    pub fn write(&self, group: GroupId) -> StateWrite {
        let raw = keys::applied(group);
        let record = self.encode(&raw);
        (raw, Some(record))
    }

    /// The record for a raw key that holds a position of the state.
    #[must_use]
    pub fn encode(&self, raw: &[u8]) -> Bytes {
        seal_value(raw, FORMAT, self)
    }
}
