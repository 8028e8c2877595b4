//! One session per group: which numbers are open, who waits for one, and how far the client has seen the group's state.
//!
//! A request acknowledges all numbers below the oldest one that is open. A number is closed by its outcome, and also when it is given
//! up: Unknown says that the request may yet be applied, and a request behind it that is ordered first forbids that from then on,
//! because the group applies nothing below what is acknowledged. Nobody can ask for the outcome any more.
//!
//! Invariants:
//! * no number lies a window or more ahead of the oldest that is open. The group remembers the outcomes of a window and refuses what
//!   lies ahead of it, so a request that is slow keeps others waiting here;
//! * whoever waits gets its number in the order in which it came;
//! * a session is closed behind all its numbers: while one is open its request may be sent again, and what the group tells of a session
//!   that it does not know any more would be taken for "never applied".

use super::CallId;
use crate::kv::{RequestId, SessionId};
use crate::limits::SESSION_WINDOW;
use crate::ring::GroupId;
use std::collections::{BTreeMap, BTreeSet};

/// An open session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    last: u64,
    open: BTreeSet<u64>,
    /// Its end was asked for.
    is_ending: bool,
}

/// Where a group's session is.
#[derive(Debug, Default)]
pub(super) enum Place {
    /// There is none.
    #[default]
    Nowhere,
    /// This call opens one.
    Opening(CallId),
    /// There is one.
    Open(Session),
}

/// What is known of a group.
#[derive(Debug, Default)]
pub(super) struct GroupSession {
    pub(super) place: Place,
    /// Those that wait for a session or for a number of it. Calls are numbered as they come.
    waiting: BTreeSet<CallId>,
    seen: u64,
}

/// The sessions of a client.
#[derive(Debug, Default)]
pub(super) struct Sessions(BTreeMap<GroupId, GroupSession>);

/// A number of a session; it is open until it is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) group: GroupId,
    pub(super) request: RequestId,
    pub(super) ack_below: u64,
}

impl Session {
    fn new(id: SessionId) -> Self {
        Self { id, last: 0, open: BTreeSet::new(), is_ending: false }
    }

    /// The oldest number that is open, or the next one.
    fn oldest(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.last + 1)
    }

    /// The next number, and what it acknowledges; none while it would lie a window ahead.
    fn begin(&mut self) -> Option<(u64, u64)> {
        let next = self.last + 1;
        if self.is_ending || next - self.oldest() >= SESSION_WINDOW {
            return None;
        }
        let ack_below = self.oldest();
        self.last = next;
        self.open.insert(next);
        assert!(ack_below <= next, "a request is not acknowledged before it is answered");
        Some((next, ack_below))
    }
}

impl Sessions {
    pub(super) fn of(&mut self, group: GroupId) -> &mut GroupSession {
        self.0.entry(group).or_default()
    }

    /// Where the group's session is, if the group is known.
    pub(super) fn place(&self, group: GroupId) -> Option<&Place> {
        self.0.get(&group).map(|of| &of.place)
    }

    /// Whether the group was asked to close the session.
    pub(super) fn is_ending(&self, group: GroupId) -> bool {
        matches!(self.place(group), Some(Place::Open(session)) if session.is_ending)
    }

    /// The groups in which something is open, or is being opened.
    pub(super) fn groups(&self) -> Vec<GroupId> {
        let has_place = |of: &GroupSession| !matches!(of.place, Place::Nowhere);
        self.0.iter().filter(|(_, of)| has_place(of)).map(|(group, _)| *group).collect()
    }

    /// A number for a call in the group's session. None if there is no session, no room in it, or somebody else is first; then the call
    /// waits.
    pub(super) fn begin(&mut self, group: GroupId, call: CallId) -> Option<Number> {
        let of = self.of(group);
        let is_next = of.waiting.first().is_none_or(|first| *first >= call);
        let begun = match &mut of.place {
            Place::Open(session) if is_next => session.begin().map(|numbers| (session.id, numbers)),
            _ => None,
        };
        let Some((session, (number, ack_below))) = begun else {
            of.waiting.insert(call);
            return None;
        };
        of.waiting.remove(&call);
        Some(Number { group, request: RequestId { session, number }, ack_below })
    }

    /// The call does not wait any more.
    pub(super) fn leave(&mut self, group: GroupId, call: CallId) {
        self.of(group).waiting.remove(&call);
    }

    /// Who is next, if there may be a number for it now.
    pub(super) fn next(&mut self, group: GroupId) -> Option<CallId> {
        let of = self.of(group);
        let has_room = match &of.place {
            Place::Open(session) => {
                !session.is_ending && session.last + 1 - session.oldest() < SESSION_WINDOW
            }
            _ => false,
        };
        of.waiting.first().copied().filter(|_| has_room)
    }

    /// All that wait in the group, who do so no more.
    pub(super) fn take_waiting(&mut self, group: GroupId) -> BTreeSet<CallId> {
        std::mem::take(&mut self.of(group).waiting)
    }

    /// A session is open.
    pub(super) fn opened(&mut self, group: GroupId, id: SessionId) {
        self.of(group).place = Place::Open(Session::new(id));
    }

    /// The number is given back.
    pub(super) fn close(&mut self, number: &Number) {
        if let Place::Open(session) = &mut self.of(number.group).place
            && session.id == number.request.session
        {
            session.open.remove(&number.request.number);
        }
    }

    /// The group does not know the session any more.
    pub(super) fn expired(&mut self, group: GroupId, id: SessionId) {
        let of = self.of(group);
        if matches!(&of.place, Place::Open(session) if session.id == id) {
            of.place = Place::Nowhere;
        }
    }

    /// The request by which the session is closed, behind all its numbers: none while one is open, or if there is no session. The session
    /// gives no number any more.
    pub(super) fn end(&mut self, group: GroupId) -> Option<RequestId> {
        match &mut self.of(group).place {
            Place::Open(session) if session.open.is_empty() && !session.is_ending => {
                session.last += 1;
                session.is_ending = true;
                Some(RequestId { session: session.id, number: session.last })
            }
            _ => None,
        }
    }

    /// The session was not closed; it may be asked again.
    pub(super) fn not_ended(&mut self, group: GroupId) {
        if let Place::Open(session) = &mut self.of(group).place {
            session.is_ending = false;
        }
    }

    /// The client has seen the group's state at this slot.
    pub(super) fn saw(&mut self, group: GroupId, slot: u64) {
        let of = self.of(group);
        of.seen = of.seen.max(slot);
    }

    /// The latest slot of the group that the client has seen.
    pub(super) fn seen(&self, group: GroupId) -> u64 {
        self.0.get(&group).map_or(0, |of| of.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(1);

    fn sessions() -> Sessions {
        let mut sessions = Sessions::default();
        sessions.opened(GROUP, SessionId(1));
        sessions
    }

    fn begin(sessions: &mut Sessions, call: u64) -> Number {
        sessions.begin(GROUP, CallId(call)).expect("there is room")
    }

    #[test]
    fn a_number_is_acknowledged_when_all_below_it_are_answered() {
        let mut sessions = sessions();
        let (first, second) = (begin(&mut sessions, 1), begin(&mut sessions, 2));
        assert_eq!((first.request.number, second.request.number, second.ack_below), (1, 2, 1));
        sessions.close(&first);
        let third = begin(&mut sessions, 3);
        assert_eq!((third.request.number, third.ack_below), (3, 2));
    }

    #[test]
    fn a_request_that_is_not_answered_keeps_others_waiting_a_window_behind_it() {
        let mut sessions = sessions();
        let stuck = begin(&mut sessions, 1);
        for number in 2..=SESSION_WINDOW {
            assert_eq!(begin(&mut sessions, number).request.number, number);
        }
        assert_eq!(sessions.begin(GROUP, CallId(2_000)), None, "the group would refuse it");
        assert_eq!(sessions.begin(GROUP, CallId(2_001)), None);
        assert_eq!(sessions.next(GROUP), None);
        sessions.close(&stuck);
        assert_eq!(sessions.next(GROUP), Some(CallId(2_000)));
        assert_eq!(sessions.begin(GROUP, CallId(2_001)), None, "whoever comes later does not overtake");
        let next = begin(&mut sessions, 2_000);
        assert_eq!((next.request.number, next.ack_below), (SESSION_WINDOW + 1, 2));
        sessions.leave(GROUP, CallId(2_001));
        assert_eq!(sessions.next(GROUP), None);
    }

    #[test]
    fn a_session_ends_when_no_number_is_open_and_gives_none_then() {
        let mut sessions = sessions();
        let first = begin(&mut sessions, 1);
        assert_eq!(sessions.end(GROUP), None, "one is open, and nothing has changed");
        let second = begin(&mut sessions, 2);
        sessions.close(&first);
        sessions.close(&second);
        assert_eq!(sessions.end(GROUP), Some(RequestId { session: SessionId(1), number: 3 }));
        assert_eq!((sessions.begin(GROUP, CallId(3)), sessions.end(GROUP)), (None, None));
        sessions.not_ended(GROUP);
        assert_eq!(sessions.end(GROUP).map(|request| request.number), Some(4), "asked again");
    }

    #[test]
    fn an_expired_session_is_forgotten_once() {
        let mut sessions = sessions();
        let number = begin(&mut sessions, 1);
        sessions.expired(GROUP, SessionId(1));
        assert!(sessions.groups().is_empty());
        sessions.opened(GROUP, SessionId(2));
        sessions.expired(GROUP, SessionId(1));
        assert_eq!(sessions.groups(), [GROUP], "somebody has opened another one since");
        let other = begin(&mut sessions, 2);
        sessions.close(&number);
        assert_eq!(
            (other.request.number, begin(&mut sessions, 3).ack_below),
            (1, 1),
            "a number of another session"
        );
        sessions.saw(GROUP, 5);
        sessions.saw(GROUP, 3);
        assert_eq!(sessions.seen(GROUP), 5);
    }
}
