//! Opening a group's session: one call for all that wait, which ends when the last of them would.
//!
//! Opening changes no key, so whatever becomes of its attempts, a write that waits for it was not sent.

use super::calls::{Stage, What};
use super::sessions::Place;
use super::timers::Timer;
use super::{CallId, Core};
use crate::client::Refusal;
use crate::kv::SessionId;
use crate::ring::{GroupId, Position};

impl Core {
    /// The call that opens the group's session.
    pub(super) fn opening_call(&self, group: GroupId) -> Option<CallId> {
        match self.sessions.place(group)? {
            Place::Opening(call) => Some(*call),
            Place::Nowhere | Place::Open(_) => None,
        }
    }

    /// Somebody waits for a session: one is opened if there is none, with the patience of whoever waits longest.
    pub(super) fn open_session(&mut self, group: GroupId, waiting: CallId) {
        let deadline = self.calls[&waiting].deadline;
        match self.sessions.of(group).place {
            Place::Open(_) => {}
            Place::Opening(opening) => {
                let opening_call = self.calls.get_mut(&opening).expect("whoever opens is open");
                opening_call.deadline = opening_call.deadline.max(deadline);
                if opening_call.stage == Stage::Agreement {
                    self.timers.set(Timer::Call(opening), opening_call.deadline);
                }
            }
            Place::Nowhere => {
                let name = self.draw();
                let opening = self.begin(What::Open(name), Some(group), deadline);
                self.sessions.of(group).place = Place::Opening(opening);
                self.order(opening);
            }
        }
    }

    pub(super) fn is_opening(&self, id: CallId) -> bool {
        matches!(self.calls[&id].what, What::Open(_))
    }

    /// The session is opened under another name.
    pub(super) fn open_again(&mut self, opening: CallId) {
        let name = self.draw();
        self.calls.get_mut(&opening).expect("whoever opens is open").what = What::Open(name);
        self.order(opening);
    }

    /// A session is open: those that wait get their numbers.
    pub(super) fn opened(&mut self, opening: CallId, session: SessionId) {
        let group = self.remove(opening).group();
        self.sessions.opened(group, session);
        self.hand_out_numbers(group);
        self.progress_closing(group);
    }

    /// There is no session, and those that wait are told why.
    pub(super) fn not_opened(&mut self, opening: CallId, refusal: &Refusal) {
        let group = self.remove(opening).group();
        self.sessions.of(group).place = Place::Nowhere;
        for waiting in self.sessions.take_waiting(group) {
            // The key of one that waits may have moved meanwhile.
            if self.owner_of(waiting) == Some(group) {
                self.refuse(waiting, refusal.clone());
            } else {
                self.advance(waiting);
            }
        }
        self.progress_closing(group);
    }

    /// The group that is known to own the call's key.
    pub(super) fn owner_of(&self, id: CallId) -> Option<GroupId> {
        let (key, (atlas, _)) = (self.calls[&id].key()?, self.known.as_ref()?);
        Some(atlas.owner(Position::of_key(key)).group())
    }

    /// The group does not know the call's session, and the call surely did nothing: it goes on in another one.
    pub(super) fn session_expired(&mut self, id: CallId) {
        let call = self.calls.get_mut(&id).expect("an open call");
        let number = call.number.take().expect("what is asked in a session has a number");
        (call.maybe_applied, call.asked_before) = (false, None);
        call.renewed += 1;
        // Once is what happens; more often and somebody plays with it.
        let is_played_with = call.renewed > 1;
        self.sessions.expired(number.group, number.request.session);
        if is_played_with {
            self.rest(id);
        } else {
            self.advance(id);
        }
        self.progress_closing(number.group);
    }
}
