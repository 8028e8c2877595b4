//! One session per group: which numbers are open, and how far the client has seen the group's state.

use crate::kv::{RequestId, SessionId};
use crate::limits::SESSION_WINDOW;
use crate::ring::GroupId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

/// Requests of one session that are open at a time. Less than what the group remembers, because numbers that were
/// given up stay open there until a later request acknowledges them.
const OPEN_MAX: usize = SESSION_WINDOW as usize / 2;

#[derive(Debug, Default)]
struct Numbers {
    last: u64,
    open: BTreeSet<u64>,
}

#[derive(Debug)]
struct GroupSession {
    session: Arc<tokio::sync::Mutex<Option<SessionId>>>,
    numbers: Arc<Mutex<BTreeMap<SessionId, Numbers>>>,
    room: Arc<Semaphore>,
    seen: u64,
}

/// The sessions of a client.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_group: Mutex<BTreeMap<GroupId, GroupSession>>,
}

/// A number of a session; it is open until this value is dropped.
#[derive(Debug)]
pub(super) struct Number {
    request: RequestId,
    ack_below: u64,
    numbers: Arc<Mutex<BTreeMap<SessionId, Numbers>>>,
    _room: OwnedSemaphorePermit,
}

impl Sessions {
    fn with<T>(&self, group: GroupId, f: impl FnOnce(&mut GroupSession) -> T) -> T {
        let mut by_group = self.by_group.lock().expect("never held while panicking");
        f(by_group.entry(group).or_insert_with(|| GroupSession {
            session: Arc::default(),
            numbers: Arc::default(),
            room: Arc::new(Semaphore::new(OPEN_MAX)),
            seen: 0,
        }))
    }

    /// The group's session. Whoever finds none opens one while it holds the lock.
    pub(super) async fn slot(&self, group: GroupId) -> OwnedMutexGuard<Option<SessionId>> {
        let session = self.with(group, |entry| Arc::clone(&entry.session));
        session.lock_owned().await
    }

    /// The next number of the session; waits while too many are open.
    pub(super) async fn begin(&self, group: GroupId, session: SessionId) -> Number {
        let (numbers, room) = self.with(group, |entry| (Arc::clone(&entry.numbers), Arc::clone(&entry.room)));
        let permit = room.acquire_owned().await.expect("the semaphore is never closed");
        let (number, ack_below) = {
            let mut by_session = numbers.lock().expect("never held while panicking");
            let state = by_session.entry(session).or_default();
            state.last += 1;
            state.open.insert(state.last);
            (state.last, state.open.first().copied().unwrap_or(state.last))
        };
        assert!(ack_below <= number, "a request is not acknowledged before it is answered");
        Number { request: RequestId { session, number }, ack_below, numbers, _room: permit }
    }

    /// The session has expired at the group.
    pub(super) fn forget(&self, group: GroupId, session: SessionId) {
        let slot = self.with(group, |entry| Arc::clone(&entry.session));
        if let Ok(mut slot) = slot.try_lock()
            && *slot == Some(session)
        {
            *slot = None;
        }
    }

    /// The client has seen the group's state at this slot.
    pub(super) fn saw(&self, group: GroupId, slot: u64) {
        self.with(group, |entry| entry.seen = entry.seen.max(slot));
    }

    /// The latest slot of the group that the client has seen.
    pub(super) fn seen(&self, group: GroupId) -> u64 {
        self.with(group, |entry| entry.seen)
    }
}

impl Number {
    pub(super) fn request(&self) -> RequestId {
        self.request
    }

    pub(super) fn ack_below(&self) -> u64 {
        self.ack_below
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        let mut by_session = self.numbers.lock().expect("never held while panicking");
        if let Some(state) = by_session.get_mut(&self.request.session) {
            state.open.remove(&self.request.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_number_is_acknowledged_when_all_below_it_are_answered() {
        let sessions = Sessions::default();
        let (group, session) = (GroupId(1), SessionId(1));
        let first = sessions.begin(group, session).await;
        let second = sessions.begin(group, session).await;
        assert_eq!((first.request().number, second.request().number, second.ack_below()), (1, 2, 1));
        drop(first);
        let third = sessions.begin(group, session).await;
        assert_eq!((third.request().number, third.ack_below()), (3, 2));
        sessions.saw(group, 5);
        sessions.saw(group, 3);
        assert_eq!(sessions.seen(group), 5);
    }
}
