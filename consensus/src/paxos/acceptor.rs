//! The durable half of a replica: what it promised, what it accepted, and how much of that survives a crash.
//!
//! Invariants:
//! * `accepted <= promised`; both only grow;
//! * `accepted = b` claims possession of the whole log that the leader of `b` adopted, never of a part of it;
//! * `durable` counts for `accepted` alone: there is none when `accepted` changes, until the record that changed it is
//!   durable (a length is bound to its ballot);
//! * every change is one commit of [`Record`]s, emitted in the order in which it was made. A change that is too
//!   large for one record is cut into several; the caller makes them durable together or not at all.

use crate::codec;
use crate::config::Options;
use crate::mutation::mutated;
use crate::paxos::ballot::Ballot;
use crate::paxos::entry::Entry;
use crate::paxos::log::Log;
use crate::paxos::message::LogView;
use crate::paxos::record::{Record, RecoverError, Recovered};
use crate::types::{LogBase, PersistToken, Slot};
use bytes::Bytes;
use std::collections::VecDeque;

/// What becomes true when a record is durable: this much of the log, as accepted in this ballot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Claim {
    token: PersistToken,
    accepted: Ballot,
    last: Slot,
}

/// Promise, acceptance and log of one replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Acceptor {
    promised: Ballot,
    accepted: Ballot,
    log: Log,
    durable: Option<Slot>,
    promise_token: PersistToken,
    last_token: PersistToken,
    durable_token: PersistToken,
    claims: VecDeque<Claim>,
    records: Vec<Bytes>,
    /// Whether the whole acceptor is among the records that were not handed out yet.
    is_whole: bool,
}

impl Acceptor {
    /// An acceptor with what the disk held. `applied` is where the durable state of the state machine ends.
    ///
    /// The caller has made sure, with a barrier, that what it read is on disk and not only in a cache.
    pub fn recover(recovered: Recovered, applied: LogBase) -> Result<Self, RecoverError> {
        let Recovered { promised, accepted, mut log } = recovered;
        if applied.slot < log.base().slot {
            return Err(RecoverError::StateBehindLog { applied: applied.slot, base: log.base().slot });
        }
        // A snapshot may have become live just before the crash, its State record not written yet. What the state
        // machine holds is decided, so a log that ends earlier or says otherwise gives way.
        let is_moved = log.position(applied.slot) != Some(applied);
        if is_moved {
            log = Log::starting_at(applied);
        }
        let durable = Some(log.last().slot);
        let mut acceptor = Self {
            promised,
            accepted,
            log,
            durable,
            promise_token: PersistToken(0),
            last_token: PersistToken(0),
            durable_token: PersistToken(0),
            claims: VecDeque::new(),
            records: Vec::new(),
            is_whole: false,
        };
        if is_moved {
            // The records on disk lead to another log; what follows must not be read as its continuation.
            acceptor.persist_all();
        }
        Ok(acceptor)
    }

    /// The highest ballot that this replica helps.
    #[must_use]
    pub fn promised(&self) -> Ballot {
        self.promised
    }

    /// The ballot in which the log was accepted.
    #[must_use]
    pub fn accepted(&self) -> Ballot {
        self.accepted
    }

    /// The log, durable or not.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The last slot that is durable as accepted in [`Self::accepted`]; none until the acceptance itself is durable.
    #[must_use]
    pub fn durable(&self) -> Option<Slot> {
        self.durable
    }

    /// The token that must be durable before anything that rests on the current promise may be said.
    #[must_use]
    pub fn promise_token(&self) -> Option<PersistToken> {
        (self.promise_token > self.durable_token).then_some(self.promise_token)
    }

    /// The token of the latest record: once it is durable, everything that this acceptor holds is.
    #[must_use]
    pub fn last_token(&self) -> PersistToken {
        self.last_token
    }

    /// The latest token that is known to be durable.
    #[must_use]
    pub fn durable_token(&self) -> PersistToken {
        self.durable_token
    }

    /// What to tell others of this log.
    #[must_use]
    pub fn view(&self, decided: Slot, gathered: Option<LogBase>, options: &Options) -> LogView {
        let base = self.log.base();
        if mutated!(options, PromiseWithoutAccepted) {
            return LogView {
                accepted: Ballot::ZERO,
                base: base.slot,
                last: base,
                decided: base.slot,
                gathered,
            };
        }
        LogView { accepted: self.accepted, base: base.slot, last: self.log.last(), decided, gathered }
    }

    /// Promises a higher ballot.
    pub fn promise(&mut self, ballot: Ballot) {
        assert!(ballot > self.promised, "a promise only grows");
        self.promised = ballot;
        self.promise_token = self.record(&Record::Promise { ballot });
    }

    /// Adds entries behind the log, in the ballot in which the log was accepted.
    pub fn append(&mut self, entries: Vec<Entry>, options: &Options) {
        assert!(!entries.is_empty(), "an empty append promises nothing");
        assert_eq!(self.accepted, self.promised, "only the log of the promised ballot grows");
        for entry in &entries {
            assert!(entry.slot == self.log.last().slot.next(), "an append has no gap");
            self.log.push(entry.clone());
        }
        self.record_appends(entries);
        self.claim(options);
    }

    /// Adopts the log of a new ballot: drops what is behind `keep`, adds the entries, claims the ballot.
    pub fn replace(&mut self, ballot: Ballot, keep: Slot, entries: Vec<Entry>, options: &Options) {
        let again = mutated!(options, SyncTwice);
        assert!(ballot > self.accepted || again, "a ballot's log is adopted once");
        assert_eq!(ballot, self.promised, "a log is adopted only in the promised ballot");
        assert!(keep >= self.log.base().slot, "the base is decided");
        self.log.truncate(keep);
        for entry in &entries {
            self.log.push(entry.clone());
        }
        self.accepted = ballot;
        self.durable = None;
        self.record(&Record::Replace { accepted: ballot, keep, entries: Vec::new() });
        self.record_appends(entries);
        self.claim(options);
    }

    /// Takes over a snapshot: the state up to `base` is decided and durable elsewhere. The log behind it stays only
    /// if it follows it; `accepted` does not change.
    pub fn install(&mut self, base: LogBase) {
        assert!(base.slot > self.log.base().slot, "a snapshot only moves the base up");
        if self.log.position(base.slot) == Some(base) {
            self.log.compact(base.slot);
        } else {
            self.log = Log::starting_at(base);
            self.durable = None;
            self.claims.clear();
        }
        self.persist_all();
    }

    /// Forgets the log up to `slot`, which is durable elsewhere, in memory alone. The records on disk begin earlier; read
    /// back, they are the same log with more of its past.
    pub fn trim(&mut self, slot: Slot) {
        assert!(slot <= self.log.last().slot, "only what the log holds can be forgotten");
        self.log.compact(slot);
    }

    /// Forgets the log up to `slot`, which is durable elsewhere, and writes everything that remains as one record.
    pub fn compact(&mut self, slot: Slot) {
        assert!(
            slot >= self.log.base().slot && slot <= self.log.last().slot,
            "compaction stays inside the log"
        );
        self.log.compact(slot);
        self.persist_all();
    }

    /// Learns that `token` and all before it are durable; returns whether more of the log became durable.
    pub fn persisted(&mut self, token: PersistToken) -> bool {
        assert!(token <= self.last_token, "only what was emitted can be durable");
        let before = self.durable;
        self.durable_token = self.durable_token.max(token);
        while let Some(claim) = self.claims.front().copied().filter(|claim| claim.token <= token) {
            self.claims.pop_front();
            if claim.accepted == self.accepted {
                self.durable = self.durable.max(Some(claim.last.min(self.log.last().slot)));
            }
        }
        assert!(self.durable <= Some(self.log.last().slot), "only what the log holds can be durable");
        self.durable > before
    }

    /// Hands out the records made since the last call, with the token that stands for all of them, and whether the whole
    /// acceptor is among them.
    pub fn take_records(&mut self) -> Option<(Vec<Bytes>, PersistToken, bool)> {
        let records = std::mem::take(&mut self.records);
        let is_whole = std::mem::take(&mut self.is_whole);
        assert!(
            records.is_empty() || self.last_token > self.durable_token,
            "a new record is not durable yet"
        );
        (!records.is_empty()).then_some((records, self.last_token, is_whole))
    }

    fn persist_all(&mut self) {
        let (promised, accepted, base) = (self.promised, self.accepted, self.log.base());
        self.record(&Record::State { promised, accepted, base, entries: Vec::new() });
        self.record_appends(self.log.above(base.slot));
        self.is_whole = true;
        self.claims.push_back(Claim { token: self.last_token, accepted, last: self.log.last().slot });
    }

    fn claim(&mut self, options: &Options) {
        let last = self.log.last().slot;
        self.claims.push_back(Claim { token: self.last_token, accepted: self.accepted, last });
        if mutated!(options, AckBeforeBarrier) {
            self.durable = Some(last);
        }
        assert!(self.claims.len() as u64 <= self.last_token.0, "each claim has its record");
    }

    fn record_appends(&mut self, entries: Vec<Entry>) {
        let mut piece = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            if !piece.is_empty() && bytes + entry.bytes() > RECORD_BYTES {
                self.record(&Record::Append { accepted: self.accepted, entries: std::mem::take(&mut piece) });
                bytes = 0;
            }
            bytes += entry.bytes();
            piece.push(entry);
        }
        if !piece.is_empty() {
            self.record(&Record::Append { accepted: self.accepted, entries: piece });
        }
    }

    fn record(&mut self, record: &Record) -> PersistToken {
        self.last_token.0 += 1;
        self.records.push(codec::encode(record));
        assert!(self.accepted <= self.promised, "what was accepted was promised");
        self.last_token
    }
}

/// Entries are cut into records of about this many bytes.
const RECORD_BYTES: usize = 1 << 20;
