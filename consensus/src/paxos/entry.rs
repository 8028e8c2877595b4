//! One entry of the log, and the hash that chains it to everything before it.

use crate::engine::{Decided, Proposal};
use crate::paxos::ballot::Ballot;
use crate::types::{Digest, LogBase, Slot, Timestamp};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What an entry orders.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Body {
    /// Nothing; a new leader's first entry.
    Noop,
    /// Commands, opaque here.
    Batch(Bytes),
    /// The end of the epoch; describes the next one.
    StopSign(Bytes),
}

/// An entry as it travels and as it is stored.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// Its position.
    pub slot: Slot,
    /// The ballot in which it was first proposed; kept when a later leader adopts it.
    pub ballot: Ballot,
    /// Fixed by the leader; never below that of the entry before.
    pub time: Timestamp,
    /// What it orders.
    pub body: Body,
    /// Hash over the chain before it and every field above.
    pub chain: Digest,
}

impl Entry {
    /// The entry that follows `previous`.
    #[must_use]
    pub fn after(previous: LogBase, ballot: Ballot, time: Timestamp, body: Body) -> Self {
        assert!(time >= previous.time, "log time never goes back");
        let slot = previous.slot.next();
        let chain = chain(previous.chain, slot, ballot, time, &body);
        Self { slot, ballot, time, body, chain }
    }

    /// Whether the entry directly follows `previous`, is not earlier, and its hash is right.
    #[must_use]
    pub fn follows(&self, previous: LogBase) -> bool {
        previous.slot.0.checked_add(1) == Some(self.slot.0)
            && self.time >= previous.time
            && self.chain == chain(previous.chain, self.slot, self.ballot, self.time, &self.body)
    }

    /// Position and hash of the log that ends with this entry.
    #[must_use]
    pub fn base(&self) -> LogBase {
        LogBase { slot: self.slot, chain: self.chain, time: self.time, sealed: self.is_stop_sign() }
    }

    /// Whether the entry ends its epoch.
    #[must_use]
    pub fn is_stop_sign(&self) -> bool {
        matches!(self.body, Body::StopSign(_))
    }

    /// Approximate size in memory and on the wire, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const HEADER_BYTES: usize = 64;
        HEADER_BYTES
            + match &self.body {
                Body::Noop => 0,
                Body::Batch(bytes) | Body::StopSign(bytes) => bytes.len(),
            }
    }

    /// The entry as the state machine sees it once it is decided.
    #[must_use]
    pub fn decided(&self) -> Decided {
        let proposal = match &self.body {
            Body::Noop => None,
            Body::Batch(bytes) => Some(Proposal::Batch(bytes.clone())),
            Body::StopSign(next) => Some(Proposal::StopSign(next.clone())),
        };
        Decided { base: self.base(), proposal }
    }
}

/// Hash of everything that apply will read: a log with equal chains leads to equal states.
fn chain(previous: Digest, slot: Slot, ballot: Ballot, time: Timestamp, body: &Body) -> Digest {
    let (kind, bytes): (u8, &[u8]) = match body {
        Body::Noop => (0, &[]),
        Body::Batch(bytes) => (1, bytes),
        Body::StopSign(next) => (2, next),
    };
    let mut header = [0u8; 66];
    header[..32].copy_from_slice(&previous.0);
    header[32..40].copy_from_slice(&slot.0.to_be_bytes());
    header[40..48].copy_from_slice(&ballot.epoch.0.to_be_bytes());
    header[48..56].copy_from_slice(&ballot.round.to_be_bytes());
    header[56] = ballot.replica.0;
    header[57..65].copy_from_slice(&time.0.to_be_bytes());
    header[65] = kind;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header).update(bytes);
    Digest(*hasher.finalize().as_bytes())
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Noop => write!(f, "noop"),
            Self::Batch(bytes) => write!(f, "{}", bytes.escape_ascii()),
            Self::StopSign(next) => write!(f, "stop({})", next.escape_ascii()),
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{:?}", self.slot, self.ballot, self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, ReplicaId};

    fn ballot(round: u64) -> Ballot {
        Ballot { epoch: Epoch(1), round, replica: ReplicaId(0) }
    }

    #[test]
    fn the_chain_covers_every_field_that_apply_reads() {
        let base = LogBase::default();
        let entry = |round, time, body| Entry::after(base, ballot(round), Timestamp(time), body).chain;
        let batch = |text: &'static str| Body::Batch(Bytes::from_static(text.as_bytes()));
        let reference = entry(1, 1, batch("a"));
        assert_ne!(reference, entry(2, 1, batch("a")));
        assert_ne!(reference, entry(1, 2, batch("a")));
        assert_ne!(reference, entry(1, 1, batch("b")));
        assert_ne!(reference, entry(1, 1, Body::StopSign(Bytes::from_static(b"a"))));
        assert_ne!(entry(1, 1, Body::Noop), entry(1, 1, batch("")));
    }

    #[test]
    fn an_entry_follows_only_what_it_was_made_for() {
        let first = Entry::after(LogBase::default(), ballot(1), Timestamp(1), Body::Noop);
        let second = Entry::after(first.base(), ballot(1), Timestamp(1), Body::Noop);
        assert!(first.follows(LogBase::default()) && second.follows(first.base()));
        assert!(!second.follows(LogBase::default()));
        let forged = Entry { time: Timestamp(9), ..second };
        assert!(!forged.follows(first.base()));
    }
}
