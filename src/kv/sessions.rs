//! Exactly-once: what each session asked for and what it was told. Part of the replicated state.
//!
//! A session keeps a *set* of outcomes by request number, not only the highest, because a client may have many
//! requests open and they may arrive in any order. The client says which outcomes it has (`ack_below`); those are
//! forgotten. A session that was silent for long is forgotten as a whole, by log time, so that every replica forgets
//! it in the same slot.

use super::command::{Failure, Reply, SessionId};
use super::record::{seal, unseal};
use crate::error::StorageError;
use crate::limits::{RECORD_BYTES_MAX, SESSION_RETENTION_MICROS, SESSION_WINDOW, SESSIONS_MAX};
use crate::ring::GroupId;
use crate::storage::{StateWrite, Storage, keys};
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// One client's outcomes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    active: u64,
    ack_below: u64,
    outcomes: BTreeMap<u64, (u64, Reply)>,
    /// In Byzantine mode, the client whose session it is.
    owner: Option<[u8; 32]>,
}

/// All sessions of a group.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_id: BTreeMap<SessionId, Session>,
    by_activity: BTreeSet<(u64, SessionId)>,
    dirty: BTreeSet<SessionId>,
    stored_pieces: BTreeMap<SessionId, usize>,
}

/// What the table says of a request before it is applied.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    /// Apply it.
    Fresh,
    /// It was applied before; this was the outcome.
    Known(Reply),
    /// Do not apply it.
    Refused(Failure),
}

/// Activity is recorded only this often, so that a busy session is not moved in the index by every command.
const ACTIVITY_GRAIN_MICROS: u64 = SESSION_RETENTION_MICROS / 64;

/// Room for the key, the checksum, and the longer key of a snapshot's row.
const PIECE_BYTES: usize = RECORD_BYTES_MAX - 64;

impl Sessions {
    /// Opens a session, or finds the one that was opened with this name before.
    pub(super) fn open(&mut self, id: SessionId, time: u64) -> Reply {
        self.open_owned(id, None, time)
    }

    /// The same, for one client alone. The name follows from the client, so nobody else's session has it.
    pub(super) fn open_for(&mut self, id: SessionId, owner: [u8; 32], time: u64) -> Reply {
        self.open_owned(id, Some(owner), time)
    }

    /// Whose session it is; none if it is unknown or belongs to nobody.
    pub(super) fn owner(&self, id: SessionId) -> Option<[u8; 32]> {
        self.by_id.get(&id)?.owner
    }

    fn open_owned(&mut self, id: SessionId, owner: Option<[u8; 32]>, time: u64) -> Reply {
        if !self.by_id.contains_key(&id) {
            if self.by_id.len() >= SESSIONS_MAX {
                return Reply::Failed(Failure::TooManySessions { max: SESSIONS_MAX as u64 });
            }
            self.by_id.insert(id, Session { active: time, ack_below: 1, outcomes: BTreeMap::new(), owner });
            self.by_activity.insert((time, id));
            self.dirty.insert(id);
        }
        assert_eq!(self.by_id.len(), self.by_activity.len(), "every session has its place in the index");
        Reply::Opened { session: id }
    }

    /// Looks a request up, notes that the session lives, and forgets what the client has.
    pub(super) fn lookup(
        &mut self,
        id: SessionId,
        number: u64,
        ack_below: u64,
        digest: u64,
        time: u64,
    ) -> Lookup {
        let Some(session) = self.by_id.get_mut(&id) else {
            return Lookup::Refused(Failure::SessionExpired);
        };
        if time.saturating_sub(session.active) >= ACTIVITY_GRAIN_MICROS {
            self.by_activity.remove(&(session.active, id));
            session.active = time;
            self.by_activity.insert((time, id));
            self.dirty.insert(id);
        }
        if ack_below > session.ack_below {
            session.ack_below = ack_below;
            session.outcomes = session.outcomes.split_off(&ack_below);
            self.dirty.insert(id);
        }
        match session.outcomes.get(&number) {
            Some((known, reply)) if *known == digest => Lookup::Known(reply.clone()),
            Some(_) => Lookup::Refused(Failure::NumberReused { number }),
            None if number < session.ack_below => {
                Lookup::Refused(Failure::Stale { number, ack_below: session.ack_below })
            }
            None if number - session.ack_below >= SESSION_WINDOW => {
                Lookup::Refused(Failure::WindowFull { number, window: SESSION_WINDOW })
            }
            None => Lookup::Fresh,
        }
    }

    /// Remembers the outcome of a request that was just looked up.
    pub(super) fn remember(&mut self, id: SessionId, number: u64, digest: u64, reply: Reply) {
        let session = self.by_id.get_mut(&id).expect("it was just looked up");
        let before = session.outcomes.insert(number, (digest, reply));
        assert!(before.is_none(), "a request is applied once");
        self.dirty.insert(id);
    }

    /// Forgets the sessions that were silent for too long at this session time.
    pub(super) fn expire(&mut self, time: u64) {
        while let Some(&(active, id)) = self.by_activity.first() {
            if active.saturating_add(SESSION_RETENTION_MICROS) >= time {
                break;
            }
            self.by_activity.pop_first();
            self.by_id.remove(&id);
            self.dirty.insert(id);
        }
        assert_eq!(self.by_id.len(), self.by_activity.len(), "every session has its place in the index");
    }

    /// How many sessions are open.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The writes that store what has changed since the last call.
    pub(super) fn take_writes(&mut self, group: GroupId, out: &mut Vec<StateWrite>) {
        for id in std::mem::take(&mut self.dirty) {
            let body = self.by_id.get(&id).map(|session| {
                postcard::to_stdvec(session).expect("writing to memory cannot fail and every length is known")
            });
            let parts =
                body.as_deref().map_or(Vec::new(), |body| body.chunks(PIECE_BYTES).collect::<Vec<_>>());
            assert!(parts.len() <= PIECES_MAX, "a full window of small replies fits");
            let stored = self.stored_pieces.get(&id).copied().unwrap_or(0);
            for piece in 0..parts.len().max(stored) {
                let raw = keys::session(group, id.0, u8::try_from(piece).expect("few pieces"));
                let record = parts.get(piece).map(|part| seal(&raw, part));
                out.push((raw, record));
            }
            if parts.is_empty() {
                self.stored_pieces.remove(&id);
            } else {
                self.stored_pieces.insert(id, parts.len());
            }
        }
    }

    /// Reads all sessions of a group back.
    pub(super) fn load(storage: &dyn Storage, group: GroupId) -> Result<Self, StorageError> {
        let mut bodies: BTreeMap<u128, (BytesMut, usize)> = BTreeMap::new();
        let (mut from, to) = keys::session_bounds(group);
        loop {
            let rows = storage.scan(&from, &to, 1 << 20)?;
            let Some((last, _)) = rows.last() else { break };
            from = Bytes::from([last.as_ref(), &[0]].concat());
            for (raw, record) in rows {
                let id = keys::session_of(&raw)
                    .ok_or_else(|| StorageError::corrupt("a session's key", "its size"))?;
                let (body, pieces) = bodies.entry(id).or_default();
                body.extend_from_slice(&unseal(&raw, record)?);
                *pieces += 1;
            }
        }
        let mut sessions = Self::default();
        for (id, (body, pieces)) in bodies {
            sessions.stored_pieces.insert(SessionId(id), pieces);
            let session: Session = postcard::from_bytes(&body)
                .map_err(|error| StorageError::corrupt(format!("session {:?}", SessionId(id)), error))?;
            sessions.by_activity.insert((session.active, SessionId(id)));
            sessions.by_id.insert(SessionId(id), session);
        }
        Ok(sessions)
    }

    /// Forgets all sessions, for the broken variant that forgets them at a restart.
    #[cfg(test)]
    pub(super) fn forget_all(&mut self) {
        *self = Self::default();
    }
}

/// Pieces that one session may take: a full window of replies of 40 bytes.
const PIECES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryDisk;
    use crate::storage::{Commit, CommitId};

    const ID: SessionId = SessionId(7);

    fn opened() -> Sessions {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.open(ID, 0), Reply::Opened { session: ID });
        sessions
    }

    #[test]
    fn requests_may_arrive_in_any_order_and_are_applied_once() {
        let mut sessions = opened();
        for number in [3, 1, 2] {
            assert_eq!(sessions.lookup(ID, number, 1, number, 1), Lookup::Fresh);
            sessions.remember(ID, number, number, Reply::Put { version: number });
        }
        assert_eq!(sessions.lookup(ID, 1, 1, 1, 1), Lookup::Known(Reply::Put { version: 1 }));
        assert_eq!(sessions.lookup(ID, 1, 1, 99, 1), Lookup::Refused(Failure::NumberReused { number: 1 }));
        assert_eq!(sessions.lookup(ID, 4, 4, 4, 1), Lookup::Fresh);
        assert_eq!(
            sessions.lookup(ID, 3, 4, 3, 1),
            Lookup::Refused(Failure::Stale { number: 3, ack_below: 4 })
        );
        let far = 4 + SESSION_WINDOW;
        assert!(matches!(sessions.lookup(ID, far, 4, 0, 1), Lookup::Refused(Failure::WindowFull { .. })));
    }

    #[test]
    fn silence_is_measured_in_log_time() {
        let mut sessions = opened();
        sessions.expire(SESSION_RETENTION_MICROS);
        assert_eq!(sessions.len(), 1);
        assert_eq!(sessions.lookup(ID, 1, 1, 0, SESSION_RETENTION_MICROS), Lookup::Fresh);
        sessions.expire(SESSION_RETENTION_MICROS + 1);
        assert_eq!(sessions.len(), 1, "it was active since");
        sessions.expire(2 * SESSION_RETENTION_MICROS + 1);
        assert_eq!(sessions.lookup(ID, 1, 1, 0, 0), Lookup::Refused(Failure::SessionExpired));
    }

    #[test]
    fn sessions_survive_storage_with_a_full_window_and_shrink_again() {
        let disk = MemoryDisk::default();
        let (mut storage, _) = disk.open();
        let mut sessions = opened();
        for number in 1..=SESSION_WINDOW {
            assert_eq!(sessions.lookup(ID, number, 1, number, 1), Lookup::Fresh);
            sessions.remember(ID, number, u64::MAX, Reply::Incr { value: i64::MIN, version: u64::MAX });
        }
        for (id, ack_below) in [(1, 1), (2, SESSION_WINDOW + 1)] {
            sessions.lookup(ID, SESSION_WINDOW + 1, ack_below, 0, 1);
            let mut out = Vec::new();
            sessions.take_writes(GroupId(1), &mut out);
            storage.submit(Commit { id: CommitId(id), state: vec![out], ..Commit::default() });
            disk.settle();
            if id == 1 {
                let loaded = Sessions::load(&storage, GroupId(1)).unwrap();
                assert_eq!(loaded.by_id, sessions.by_id);
            }
            let pieces = storage.scan(b"m", b"n", usize::MAX).unwrap().len();
            assert!(if id == 1 { pieces > 2 } else { pieces == 1 }, "{pieces} pieces");
        }
    }
}
