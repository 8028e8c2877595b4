//! One call: what is asked, how far it is, and how it ends.

use super::sessions::Number;
use super::timers::Timer;
use super::{Ask, CallId, Core, Done, Effect};
use crate::client::outcome::{Outcome, Refusal};
use crate::kv::{Operation, RequestId, Write, check_key};
use crate::limits::Limits;
use crate::ring::{GroupId, NodeId, Position};
use bytes::Bytes;
use std::time::Duration;

/// Why a call was not even sent: the oldest of the session's open requests is not answered, and the group remembers no more.
const NO_ROOM: &str = "too many requests of this client wait behind one that is not answered";

/// Why a client that was closed asks nothing.
pub(super) const ENDED: &str = "this client was closed";

/// What a call is for.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// A program asks.
    Ask(Ask),
    /// A session is opened, for all that wait for one, under this name.
    Open(u128),
    /// A session is closed.
    End(RequestId),
}

/// What a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing: it is on its way.
    Moving,
    /// To know who owns what.
    Ring,
    /// A number in the group's session.
    Number,
    /// A connection.
    Link(NodeId),
    /// The answer to the request with this number.
    Answer(NodeId, u64),
    /// Some time.
    Pause,
    /// Byzantine mode: what enough members tell.
    Agreement,
    /// The end of all sessions.
    Closing,
}

/// An open call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) what: What,
    pub(super) group: Option<GroupId>,
    pub(super) asked_at: Duration,
    pub(super) deadline: Duration,
    pub(super) stage: Stage,
    pub(super) number: Option<Number>,
    /// Something was sent that may have been carried out, or may yet be.
    pub(super) maybe_applied: bool,
    pub(super) tried: u32,
    /// How often it was told of another place for its key.
    pub(super) moved: u32,
    /// Since when the node is asked, or waited for, that is now.
    pub(super) asked_since: Duration,
    /// A write that was cancelled, and to whom it was sent before: an answer to it is as good.
    pub(super) cancelled: Option<(NodeId, u64)>,
    /// How often its session had expired.
    pub(super) renewed: u32,
    pub(super) asked_before: Option<NodeId>,
    /// Who was named by the last one that was asked.
    pub(super) target: Option<NodeId>,
    /// What the last attempt came to.
    pub(super) last: String,
}

impl Call {
    pub(super) fn write(&self) -> Option<&Write> {
        match &self.what {
            What::Ask(Ask::Write(write)) => Some(write),
            _ => None,
        }
    }

    /// The key that it is about, if it is about one.
    pub(super) fn key(&self) -> Option<&Bytes> {
        match &self.what {
            What::Ask(Ask::Write(write)) => Some(write.key()),
            What::Ask(Ask::Read { key, .. } | Ask::Prove { key } | Ask::Seen { key }) => Some(key),
            What::Ask(Ask::Status(_) | Ask::Close) | What::Open(_) | What::End(_) => None,
        }
    }

    pub(super) fn group(&self) -> GroupId {
        self.group.expect("whoever asks a group knows it")
    }
}

impl Core {
    /// Whose request has this number, if it is waited for.
    pub(super) fn who_asked(&mut self, node: NodeId, id: u64) -> Option<CallId> {
        let asked = self.links.answered(node, id);
        let takes_any = id != 0 && self.setup.mutation.takes_earlier_answers();
        asked.or_else(|| takes_any.then(|| self.links.answered_any(node)).flatten())
    }

    /// A call is open.
    pub(super) fn begin(&mut self, what: What, group: Option<GroupId>, deadline: Duration) -> CallId {
        self.last_call += 1;
        let id = CallId(self.last_call);
        let call = Call {
            what,
            group,
            asked_at: self.now.at,
            deadline,
            stage: Stage::Moving,
            number: None,
            maybe_applied: false,
            tried: 0,
            moved: 0,
            asked_since: self.now.at,
            cancelled: None,
            renewed: 0,
            asked_before: None,
            target: None,
            last: "nothing was tried".to_string(),
        };
        self.calls.insert(id, call);
        self.timers.set(Timer::Call(id), deadline);
        id
    }

    /// The call goes on, from its beginning or from where it waited for a ring or a number.
    pub(super) fn advance(&mut self, id: CallId) {
        let call = self.calls.get_mut(&id).expect("an open call");
        call.stage = Stage::Moving;
        let What::Ask(ask) = &call.what else { return self.order(id) };
        match ask {
            Ask::Status(node) => {
                let node = *node;
                self.reach(id, node);
            }
            Ask::Close => self.begin_close(id),
            Ask::Prove { .. } if self.signed.is_none() => {
                let reason = "only Byzantine mode signs what it answers; this cluster runs in crash mode";
                self.refuse(id, Refusal::Invalid(reason.to_string()));
            }
            _ => self.place(id),
        }
    }

    /// Finds the call's group; asks it, if nothing more is needed.
    fn place(&mut self, id: CallId) {
        let call = &self.calls[&id];
        let What::Ask(ask) = &call.what else { unreachable!("only what a program asks is placed") };
        let (key, is_seen) = match ask {
            Ask::Write(write) => (write.key(), false),
            Ask::Read { key, .. } | Ask::Prove { key } => (key, false),
            Ask::Seen { key } => (key, true),
            Ask::Status(_) | Ask::Close => unreachable!("they need no group"),
        };
        if self.is_ended && !is_seen {
            return self.refuse(id, Refusal::Invalid(ENDED.to_string()));
        }
        let Some((atlas, limits)) = &self.known else { return self.wait_for_ring(id) };
        let group = atlas.owner(Position::of_key(key)).group();
        let checked = check(ask, limits);
        let before = self.calls.get_mut(&id).expect("it is open").group.replace(group);
        if let Some(before) = before.filter(|before| *before != group) {
            // It may have waited for a number there, and the key has moved since.
            self.sessions.leave(before, id);
        }
        if is_seen {
            let seen = self.sessions.seen(group);
            return self.finish(id, Done::Seen(seen));
        }
        if let Err(reason) = checked {
            return self.refuse(id, Refusal::Invalid(reason));
        }
        if self.calls[&id].write().is_some() && !self.take_number(id, group) {
            return;
        }
        self.order(id);
    }

    /// Gives the call a number in the group's session; false if it waits for one.
    fn take_number(&mut self, id: CallId, group: GroupId) -> bool {
        let number = self.sessions.begin(group, id);
        let call = self.calls.get_mut(&id).expect("it is open");
        call.number = number;
        if number.is_some() {
            return true;
        }
        call.stage = Stage::Number;
        self.timers.set(Timer::Call(id), call.deadline);
        self.open_session(group, id);
        false
    }

    /// Asks the call's group.
    pub(super) fn order(&mut self, id: CallId) {
        if self.signed.is_some() {
            self.submit(id);
        } else {
            self.attempt(id);
        }
    }

    /// What the call waited for has not come in time.
    pub(super) fn on_time(&mut self, id: CallId) {
        let call = &self.calls[&id];
        let is_over = self.now.at >= call.deadline;
        match call.stage {
            Stage::Closing => self.stop_waiting_for_requests(),
            Stage::Link(node) => self.link_is_late(id, node),
            Stage::Answer(node, request) => self.answer_is_late(id, node, request),
            // One that was sent back for another session has no number.
            Stage::Pause if !is_over && call.write().is_some() && call.number.is_none() => self.advance(id),
            Stage::Pause if !is_over => self.order(id),
            Stage::Moving | Stage::Ring | Stage::Number | Stage::Pause | Stage::Agreement => self.give_up(id),
        }
    }

    /// The call's deadline has passed.
    pub(super) fn give_up(&mut self, id: CallId) {
        let call = &self.calls[&id];
        let reason = match call.stage {
            Stage::Number => self.why_no_number(call.group()),
            Stage::Agreement => self.why_no_agreement(id),
            _ => call.last.clone(),
        };
        self.refuse(id, Refusal::Unavailable(reason));
    }

    fn why_no_number(&self, group: GroupId) -> String {
        match self.opening_call(group).and_then(|opening| self.calls.get(&opening)) {
            Some(opening) if opening.stage == Stage::Agreement => {
                format!("no session was opened in time: {}", self.why_no_agreement_of(opening))
            }
            Some(opening) => opening.last.clone(),
            None => NO_ROOM.to_string(),
        }
    }

    /// The call comes to nothing more. A write that may have been applied is Unknown, whatever was said since.
    pub(super) fn refuse(&mut self, id: CallId, refusal: Refusal) {
        let call = &self.calls[&id];
        let done = match &call.what {
            What::Open(_) => return self.not_opened(id, &refusal),
            What::End(_) => return self.end_answered(id, Err(refusal.reason())),
            What::Ask(Ask::Write(_)) if call.maybe_applied => Done::Write(Outcome::Unknown(refusal.reason())),
            What::Ask(Ask::Write(_)) => Done::Write(Outcome::Refused(refusal)),
            What::Ask(Ask::Read { .. }) => Done::Read(Outcome::Refused(refusal)),
            What::Ask(Ask::Prove { .. }) => Done::Prove(Box::new(Outcome::Refused(refusal))),
            What::Ask(Ask::Status(_)) => Done::Status(Err(refusal)),
            What::Ask(Ask::Seen { .. }) => Done::Seen(0),
            What::Ask(Ask::Close) => unreachable!("it ends with the sessions"),
        };
        self.finish(id, done);
    }

    /// The call has come to its end.
    pub(super) fn finish(&mut self, id: CallId, done: Done) {
        self.effects.push(Effect::Done(id, done));
        self.remove(id);
    }

    /// The call is forgotten, wherever it waits, and gives its number back.
    pub(super) fn remove(&mut self, id: CallId) -> Call {
        let call = self.calls.remove(&id).expect("an open call");
        self.timers.clear(Timer::Call(id));
        match call.stage {
            Stage::Ring => self.leave_greeting(id),
            Stage::Number => self.sessions.leave(call.group(), id),
            Stage::Link(node) => self.links.leave(node, id),
            Stage::Answer(node, request) => _ = self.links.answered(node, request),
            Stage::Agreement => self.leave_agreement(id),
            Stage::Closing => self.leave_closing(id),
            Stage::Moving | Stage::Pause => {}
        }
        if let Some((node, request)) = call.cancelled {
            self.links.answered(node, request);
        }
        if let Some(number) = call.number {
            self.give_back(&number);
        }
        call
    }

    /// A number is closed: others may have waited for that.
    pub(super) fn give_back(&mut self, number: &Number) {
        self.sessions.close(number);
        self.hand_out_numbers(number.group);
        self.progress_closing(number.group);
    }

    /// Whoever waits gets a number, while there are any. Those whose time is over are told so, one after the other: each that was let go on
    /// only to end would give its number to the next, deep down.
    pub(super) fn hand_out_numbers(&mut self, group: GroupId) {
        while let Some(next) = self.sessions.next(group) {
            if self.now.at >= self.calls[&next].deadline { self.give_up(next) } else { self.advance(next) }
        }
    }
}

/// Whether what is asked is within the limits.
fn check(ask: &Ask, limits: &Limits) -> Result<(), String> {
    match ask {
        Ask::Write(write) => Operation::Write(write.clone()).check(limits).map_err(|error| error.to_string()),
        Ask::Read { key, .. } | Ask::Prove { key } => {
            check_key(key, limits).map_err(|error| error.to_string())
        }
        Ask::Seen { .. } | Ask::Status(_) | Ask::Close => Ok(()),
    }
}
