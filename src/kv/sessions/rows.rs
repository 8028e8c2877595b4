//! How sessions are stored: a row for each, and one for each of its outcomes, so that a checkpoint writes what has changed and no more.
//!
//! Bodies, sealed as every record: format u8, now 1 | what it is as postcard writes it.

use super::{Outcome, Session, Sessions};
use crate::error::StorageError;
use crate::kv::operation::{Client, SessionId};
use crate::kv::record::{seal_value, unseal_value};
use crate::kv::reply::Reply;
use crate::ring::GroupId;
use crate::storage::{StateWrite, Storage, keys};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What has changed since the last checkpoint.
#[derive(Debug, Default)]
pub(super) struct Unstored {
    heads: BTreeSet<SessionId>,
    /// Sessions with outcomes that are not stored.
    outcomes: BTreeSet<SessionId>,
    /// Outcomes that are stored, and forgotten.
    gone: Vec<(SessionId, u64)>,
}

impl Unstored {
    /// A session was opened, changed or forgotten.
    pub(super) fn head(&mut self, id: SessionId) {
        self.heads.insert(id);
    }

    /// There is an outcome.
    pub(super) fn outcome(&mut self, id: SessionId) {
        self.outcomes.insert(id);
    }

    /// Outcomes are forgotten.
    pub(super) fn gone(&mut self, id: SessionId, outcomes: &BTreeMap<u64, Outcome>) {
        let stored = outcomes.iter().filter(|(_, outcome)| outcome.is_stored);
        self.gone.extend(stored.map(|(number, _)| (id, *number)));
    }
}

const FORMAT: u8 = 1;

#[derive(Serialize, Deserialize)]
struct Head {
    owner: Client,
    active: u64,
    ack_below: u64,
    good_until: u64,
    is_closed: bool,
}

#[derive(Serialize, Deserialize)]
enum Told<R> {
    Reply(u64, R),
}

impl Sessions {
    /// The writes that store what has changed since the last call.
    pub(in crate::kv) fn take_writes(&mut self, group: GroupId, out: &mut Vec<StateWrite>) {
        let Unstored { heads, outcomes, gone } = std::mem::take(&mut self.unstored);
        // Where a session has come back under its name, a row may be written anew: each is written once.
        let is_there = |id: &SessionId, number: &u64| {
            self.by_id.get(id).is_some_and(|session| session.outcomes.contains_key(number))
        };
        let gone = gone.into_iter().filter(|(id, number)| !is_there(id, number));
        out.extend(gone.map(|(id, number)| (keys::outcome(group, id.0, number), None)));
        for id in outcomes {
            let Some(session) = self.by_id.get_mut(&id) else { continue };
            for (number, outcome) in session.outcomes.iter_mut().filter(|(_, outcome)| !outcome.is_stored) {
                outcome.is_stored = true;
                let raw = keys::outcome(group, id.0, *number);
                let record = seal_value(&raw, FORMAT, &Told::Reply(outcome.digest, &outcome.reply));
                out.push((raw, Some(record)));
            }
        }
        for id in heads {
            let raw = keys::session(group, id.0);
            let record = self.by_id.get(&id).map(|session| seal_value(&raw, FORMAT, &session.head()));
            out.push((raw, record));
        }
    }

    /// Reads all sessions of a group back.
    pub(in crate::kv) fn load(storage: &dyn Storage, group: GroupId) -> Result<Self, StorageError> {
        let mut sessions = Self::default();
        let mut outcomes: BTreeMap<u128, BTreeMap<u64, Outcome>> = BTreeMap::new();
        let (mut from, to) = keys::session_bounds(group);
        loop {
            let rows = storage.scan(&from, &to, 1 << 20)?;
            let Some((last, _)) = rows.last() else { break };
            from = Bytes::from([last.as_ref(), &[0]].concat());
            for (raw, record) in rows {
                match keys::session_row(&raw).map(|(_, row)| row) {
                    Some(keys::SessionRow::Outcome(id, number)) => {
                        let Told::Reply(digest, reply): Told<Reply> = unseal_value(&raw, FORMAT, record)?;
                        let outcome = Outcome { digest, reply, is_stored: true };
                        outcomes.entry(id).or_default().insert(number, outcome);
                    }
                    Some(keys::SessionRow::Head(id)) => {
                        let outcomes = outcomes.remove(&id).unwrap_or_default();
                        let head = unseal_value(&raw, FORMAT, record)?;
                        sessions.insert(SessionId(id), Session::of(head, outcomes));
                    }
                    None => return Err(StorageError::corrupt("a session's key", "its size")),
                }
            }
        }
        match outcomes.first_key_value() {
            None => Ok(sessions),
            Some((id, _)) => {
                let what = format!("session {:?}", SessionId(*id));
                Err(StorageError::corrupt(what, "it is missing, although outcomes of it are there"))
            }
        }
    }
}

impl Session {
    fn head(&self) -> Head {
        let Self { owner, active, ack_below, good_until, is_closed, .. } = *self;
        Head { owner, active, ack_below, good_until, is_closed }
    }

    fn of(head: Head, outcomes: BTreeMap<u64, Outcome>) -> Self {
        let Head { owner, active, ack_below, good_until, is_closed } = head;
        Self { owner, active, ack_below, outcomes, good_until, is_closed }
    }
}
