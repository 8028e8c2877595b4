//! What an acceptor writes to the write-ahead log, and how the log is read back.
//!
//! Records are replayed in the order in which they were written. [`Record::Replace`] sets the length of the log
//! before anything else, so a tail that was dropped stays dropped; [`Record::State`] stands for everything before
//! it, so the caller may forget all earlier records of the group once it is durable.

use crate::codec::{self, CodecError};
use crate::paxos::ballot::Ballot;
use crate::paxos::entry::Entry;
use crate::paxos::log::Log;
use crate::types::{LogBase, Slot};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One durable change of an acceptor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Record {
    /// No ballot below this one will be helped any more.
    Promise {
        /// The promised ballot.
        ballot: Ballot,
    },
    /// Entries were added to the log that was accepted in `accepted`.
    Append {
        /// The ballot in which the log was accepted.
        accepted: Ballot,
        /// The entries, directly behind the log.
        entries: Vec<Entry>,
    },
    /// The log of a new ballot was adopted: everything behind `keep` was dropped, then the entries added.
    Replace {
        /// The ballot in which the log is now accepted.
        accepted: Ballot,
        /// The last slot that stays.
        keep: Slot,
        /// The entries behind it.
        entries: Vec<Entry>,
    },
    /// The whole acceptor; everything written before is void.
    State {
        /// The promised ballot.
        promised: Ballot,
        /// The ballot in which the log was accepted.
        accepted: Ballot,
        /// Where the log begins.
        base: LogBase,
        /// The log.
        entries: Vec<Entry>,
    },
}

/// Why the records on disk do not form a log. The replica must not vote.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecoverError {
    /// A record cannot be read.
    #[error("write-ahead record {index} cannot be read: {source}")]
    Unreadable {
        /// Which record, counted from 0.
        index: usize,
        /// Why.
        source: CodecError,
    },
    /// A record does not fit behind the ones before it.
    #[error("write-ahead record {index} contradicts the records before it: {what}")]
    Contradiction {
        /// Which record, counted from 0.
        index: usize,
        /// What does not fit.
        what: &'static str,
    },
    /// The applied state ends before the log begins.
    #[error("the state machine holds slot {applied}, but the log begins after slot {base}: state was lost")]
    StateBehindLog {
        /// Last applied slot.
        applied: Slot,
        /// Where the log begins.
        base: Slot,
    },
}

/// The durable part of an acceptor, as read back from its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The promised ballot.
    pub promised: Ballot,
    /// The ballot in which the log was accepted.
    pub accepted: Ballot,
    /// The log.
    pub log: Log,
}

impl Recovered {
    /// Replays encoded records in the order in which they were written.
    pub fn replay<R: AsRef<[u8]>>(records: impl IntoIterator<Item = R>) -> Result<Self, RecoverError> {
        let mut state = Self::default();
        for (index, bytes) in records.into_iter().enumerate() {
            state.replay_one(index, bytes.as_ref())?;
        }
        Ok(state)
    }

    /// Replays one more encoded record; `index` only names it in an error.
    pub fn replay_one(&mut self, index: usize, bytes: &[u8]) -> Result<(), RecoverError> {
        let record = codec::decode(bytes).map_err(|source| RecoverError::Unreadable { index, source })?;
        self.apply(record).map_err(|what| RecoverError::Contradiction { index, what })
    }

    fn apply(&mut self, record: Record) -> Result<(), &'static str> {
        match record {
            Record::Promise { ballot } => {
                self.promised = self.promised.max(ballot);
                Ok(())
            }
            Record::Append { accepted, entries } => {
                self.accept_in(accepted)?;
                self.append(entries)
            }
            Record::Replace { accepted, keep, entries } => {
                self.accept_in(accepted)?;
                if keep < self.log.base().slot || keep > self.log.last().slot {
                    return Err("it keeps more, or less, than the log held");
                }
                self.log.truncate(keep);
                self.append(entries)
            }
            Record::State { promised, accepted, base, entries } => {
                *self = Self { promised, accepted, log: Log::starting_at(base) };
                self.append(entries)
            }
        }
    }

    fn accept_in(&mut self, ballot: Ballot) -> Result<(), &'static str> {
        if ballot < self.accepted {
            return Err("it was accepted in an older ballot than the one before it");
        }
        self.accepted = ballot;
        self.promised = self.promised.max(ballot);
        Ok(())
    }

    fn append(&mut self, entries: Vec<Entry>) -> Result<(), &'static str> {
        for entry in entries {
            if !entry.follows(self.log.last()) {
                return Err("an entry does not follow the one before it");
            }
            self.log.push(entry);
        }
        Ok(())
    }
}
