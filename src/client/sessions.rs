//! One session per group: which numbers are open, and how far the client has seen the group's state.
//!
//! A request acknowledges all numbers below the oldest one that is open. A number is closed by its outcome, and also when it is given
//! up: Unknown says that the request may yet be applied, and a request behind it that is ordered first forbids that from then on,
//! because the group applies nothing below what is acknowledged. Nobody can ask for the outcome any more.
//!
//! Invariants:
//! * no number lies a window or more ahead of the oldest that is open. The group remembers the outcomes of a window and refuses what
//!   lies ahead of it, so a request that is slow keeps others waiting here;
//! * a session is closed behind all its numbers: while one is open its request may be sent again, and what the group tells of a session
//!   that it does not know any more would be taken for "never applied".

use crate::kv::{RequestId, SessionId};
use crate::limits::SESSION_WINDOW;
use crate::ring::GroupId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{OwnedMutexGuard, Semaphore};
use tokio::time::{Instant, timeout_at};

#[derive(Debug, Default)]
struct Numbers {
    last: u64,
    open: BTreeSet<u64>,
}

impl Numbers {
    /// The oldest number that is open, or the next one.
    fn oldest(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.last + 1)
    }
}

/// An open session.
#[derive(Debug)]
pub(super) struct Session {
    id: SessionId,
    numbers: Mutex<Numbers>,
    /// As many as there are numbers between the last and the end of the window.
    room: Semaphore,
}

/// Where a group's session is, if there is one.
pub(super) type Slot = Arc<tokio::sync::Mutex<Option<Arc<Session>>>>;

/// What is known of a group.
#[derive(Debug, Default)]
struct GroupSession {
    session: Slot,
    seen: u64,
}

/// The sessions of a client.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_group: Mutex<BTreeMap<GroupId, GroupSession>>,
    is_ended: AtomicBool,
}

/// A number of a session; it is open until this value is dropped.
#[derive(Debug)]
pub(super) struct Number {
    session: Arc<Session>,
    number: u64,
    ack_below: u64,
}

impl Sessions {
    fn with<T>(&self, group: GroupId, f: impl FnOnce(&mut GroupSession) -> T) -> T {
        let mut by_group = self.by_group.lock().expect("never held while panicking");
        f(by_group.entry(group).or_default())
    }

    /// No session is opened any more; where they are.
    pub(super) fn end(&self) -> Vec<(GroupId, Slot)> {
        self.is_ended.store(true, Ordering::SeqCst);
        let by_group = self.by_group.lock().expect("never held while panicking");
        by_group.iter().map(|(group, entry)| (*group, Arc::clone(&entry.session))).collect()
    }

    /// Whether the client was closed. Whoever wants to open a session asks while it holds the lock.
    pub(super) fn is_ended(&self) -> bool {
        self.is_ended.load(Ordering::SeqCst)
    }

    /// The group's session. Whoever finds none opens one while it holds the lock.
    pub(super) async fn slot(&self, group: GroupId) -> OwnedMutexGuard<Option<Arc<Session>>> {
        let session = self.with(group, |entry| Arc::clone(&entry.session));
        session.lock_owned().await
    }

    /// The session has expired at the group.
    pub(super) fn forget(&self, group: GroupId, session: &Session) {
        let slot = self.with(group, |entry| Arc::clone(&entry.session));
        if let Ok(mut slot) = slot.try_lock()
            && slot.as_ref().is_some_and(|current| current.id == session.id)
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

impl Session {
    pub(super) fn new(id: SessionId) -> Arc<Self> {
        let room = Semaphore::new(usize::try_from(SESSION_WINDOW).expect("a small window"));
        Arc::new(Self { id, numbers: Mutex::default(), room })
    }

    /// The next number; waits while it would lie a window ahead of the oldest that is open. None if that lasts too long, or the
    /// session was ended.
    pub(super) async fn begin(self: &Arc<Self>, deadline: Instant) -> Option<Number> {
        let permit = match self.room.try_acquire() {
            Ok(permit) => permit,
            Err(_) => timeout_at(deadline, self.room.acquire()).await.ok()?.ok()?,
        };
        // It comes back when the oldest number is closed.
        permit.forget();
        let (number, ack_below) = {
            let mut numbers = self.numbers.lock().expect("never held while panicking");
            numbers.last += 1;
            let last = numbers.last;
            numbers.open.insert(last);
            (last, numbers.oldest())
        };
        assert!(ack_below <= number, "a request is not acknowledged before it is answered");
        assert!(number - ack_below < SESSION_WINDOW, "the group takes no number a window ahead");
        Some(Number { session: Arc::clone(self), number, ack_below })
    }

    /// Waits until no number is open, and gives none any more but this one, by which the session is closed. None if that lasts too
    /// long.
    pub(super) async fn end(&self, deadline: Instant) -> Option<RequestId> {
        let whole = u32::try_from(SESSION_WINDOW).expect("a small window");
        // All of the room is there when no number is open. An earlier call that was given up may have taken it for good.
        if let Ok(permits) = timeout_at(deadline, self.room.acquire_many(whole)).await.ok()? {
            permits.forget();
            self.room.close();
        }
        let mut numbers = self.numbers.lock().expect("never held while panicking");
        assert!(numbers.open.is_empty(), "the session is closed behind all its requests");
        numbers.last += 1;
        Some(RequestId { session: self.id, number: numbers.last })
    }
}

impl Number {
    pub(super) fn request(&self) -> RequestId {
        RequestId { session: self.session.id, number: self.number }
    }

    pub(super) fn ack_below(&self) -> u64 {
        self.ack_below
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        let mut numbers = self.session.numbers.lock().expect("never held while panicking");
        let before = numbers.oldest();
        numbers.open.remove(&self.number);
        let closed = numbers.oldest() - before;
        drop(numbers);
        self.session.room.add_permits(usize::try_from(closed).expect("at most a window"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const GROUP: GroupId = GroupId(1);

    async fn begin(session: &Arc<Session>) -> Number {
        session.begin(Instant::now()).await.expect("there is room")
    }

    #[tokio::test]
    async fn a_number_is_acknowledged_when_all_below_it_are_answered() {
        let session = Session::new(SessionId(1));
        let first = begin(&session).await;
        let second = begin(&session).await;
        assert_eq!((first.request().number, second.request().number, second.ack_below()), (1, 2, 1));
        drop(first);
        let third = begin(&session).await;
        assert_eq!((third.request().number, third.ack_below()), (3, 2));
    }

    #[tokio::test]
    async fn a_request_that_is_not_answered_keeps_others_waiting_a_window_behind_it() {
        let session = Session::new(SessionId(1));
        let stuck = begin(&session).await;
        for number in 2..=SESSION_WINDOW {
            assert_eq!(begin(&session).await.request().number, number);
        }
        assert!(session.begin(Instant::now()).await.is_none(), "the group would refuse it");
        let next = tokio::spawn({
            let session = Arc::clone(&session);
            async move { session.begin(Instant::now() + Duration::from_secs(600)).await }
        });
        tokio::task::yield_now().await;
        drop(stuck);
        let next = next.await.unwrap().expect("there is room again");
        assert_eq!((next.request().number, next.ack_below()), (SESSION_WINDOW + 1, SESSION_WINDOW + 1));
        let more = u64::try_from(session.room.available_permits()).unwrap();
        assert_eq!(more, SESSION_WINDOW - 1, "all of the window but the one that is open");
    }

    #[tokio::test]
    async fn a_session_ends_when_no_number_is_open_and_gives_none_then() {
        let session = Session::new(SessionId(1));
        let (first, second) = (begin(&session).await, begin(&session).await);
        drop(second);
        assert_eq!(session.end(Instant::now()).await, None, "one is open, and nothing has changed");
        let third = begin(&session).await;
        let ended = tokio::spawn({
            let session = Arc::clone(&session);
            async move { session.end(Instant::now() + Duration::from_secs(600)).await }
        });
        tokio::task::yield_now().await;
        drop(first);
        assert!(session.begin(Instant::now()).await.is_none(), "whoever comes later does not overtake");
        drop(third);
        assert_eq!(ended.await.unwrap(), Some(RequestId { session: SessionId(1), number: 4 }));
        assert!(session.begin(Instant::now() + Duration::from_secs(600)).await.is_none());
        let again = session.end(Instant::now() + Duration::from_secs(600)).await;
        assert_eq!(again.map(|request| request.number), Some(5), "asked again");
    }

    #[tokio::test]
    async fn an_expired_session_is_forgotten_once() {
        let sessions = Sessions::default();
        let (old, new) = (Session::new(SessionId(1)), Session::new(SessionId(2)));
        *sessions.slot(GROUP).await = Some(Arc::clone(&old));
        sessions.forget(GROUP, &old);
        assert!(sessions.slot(GROUP).await.is_none());
        *sessions.slot(GROUP).await = Some(new);
        sessions.forget(GROUP, &old);
        assert!(sessions.slot(GROUP).await.is_some(), "somebody has opened another one since");
        sessions.saw(GROUP, 5);
        sessions.saw(GROUP, 3);
        assert_eq!(sessions.seen(GROUP), 5);
    }
}
