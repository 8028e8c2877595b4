//! Asking one node after another, until one answers: how a group is asked in crash mode, and a node for its status in both.
//!
//! The node that is believed to lead is asked first, then the group's replicas in turn, those of promise first ([`super::links`]).
//! Whoever says who leads sends the call there at once; where nobody knows, it rests a moment, longer after more attempts, so that a
//! cluster that elects is not hammered.
//!
//! A write that was sent and has no answer is asked for again under its number, until little of its time is left. Then it is cancelled,
//! under the same number: if it was carried out, that is told; else it never will be, which is told too. Only where nobody answers that
//! either, it is unknown.

use super::calls::{Call, Stage, What};
use super::timers::Timer;
use super::{Ask, CallId, Core, Done, Effect, Outgoing, Unreachable};
use crate::client::outcome::{Outcome, Read, Refusal, unexpected};
use crate::client::{ClientOptions, status};
use crate::kv::{Failure, Operation, Reply, RequestId, SessionId};
use crate::ring::{GroupId, NodeId, Place};
use crate::wire::{Answer, Consistency, Request, RetryReason};
use std::sync::Arc;
use std::time::Duration;

/// A call waits so long for a connection; a node that is down does not refuse, it is silent. The dial goes on.
pub(super) const CONNECT_PATIENCE: Duration = Duration::from_millis(600);

/// The first rest, and how often it doubles.
const REST: Duration = Duration::from_millis(10);
const REST_DOUBLINGS: u32 = 2;

/// A node that knew no leader of a group is asked for it after the others for this long.
const CLUELESS_FOR: Duration = Duration::from_millis(1_000);

/// So many attempts are made without a rest where each one names another node to ask, or ends with its connection.
const NAMED_MAX: u32 = 4;

/// So much of a call's time is left for a write that may have been carried out to be cancelled: one part in so many of it, and no more
/// than an attempt may take.
const CANCEL_PART: u32 = 4;

/// How often a call goes on to another group because it was told that its key is there.
const MOVES_MAX: u32 = 16;

impl Core {
    /// Asks a node of the call's group, the one of most promise.
    pub(super) fn attempt(&mut self, id: CallId) {
        if self.now.at >= self.calls[&id].deadline {
            return self.give_up(id);
        }
        let node = self.target(&self.calls[&id]);
        let call = self.calls.get_mut(&id).expect("an open call");
        if let Some(number) = call.number.filter(|_| call.tried > 0 && self.setup.mutation.numbers_anew()) {
            call.number = self.sessions.begin(number.group, id).or(call.number);
        }
        call.tried += 1;
        self.reach(id, node);
    }

    /// The node to ask: the one that was named, the last known leader, or the group's replicas in turn.
    fn target(&self, call: &Call) -> NodeId {
        let group = call.group();
        let leader = || self.leaders.get(&group).copied().filter(|node| self.may_lead(*node));
        if let Some(node) = call.target.or_else(leader) {
            return node;
        }
        let (atlas, _) = self.known.as_ref().expect("whoever asks a group knows the ring");
        let replicas = atlas.group(group).map_or(&[][..], |place| &place.nodes);
        assert!(!replicas.is_empty(), "every group has replicas");
        let turn = usize::try_from(call.tried).unwrap_or(0) % replicas.len();
        let in_turn = [&replicas[turn..], &replicas[..turn]].concat();
        let is_avoided = |node| self.is_avoided(group, node);
        self.links.by_promise(&in_turn, call.asked_before, is_avoided)[0]
    }

    /// Whether it is worth while to go where one says that the leader is: a node that could not be reached just now is not waited for.
    fn may_lead(&self, node: NodeId) -> bool {
        self.links.is_open(node) || !self.links.failed_lately(node, self.now.at)
    }

    /// Whether the node is asked after the others for this group.
    fn is_avoided(&self, group: GroupId, node: NodeId) -> bool {
        let now = self.now.at;
        self.links.failed_lately(node, now)
            || self.clueless.get(&(group, node)).is_some_and(|until| now < *until)
    }

    /// Asks this node, as soon as there is a connection.
    pub(super) fn reach(&mut self, id: CallId, node: NodeId) {
        if !self.links.knows(node) {
            return self.not_reached(id, &Unreachable::Silent(format!("{node} is not in the cluster file")));
        }
        let (now, attempt) = (self.now.at, self.setup.options.attempt);
        let call = self.calls.get_mut(&id).expect("an open call");
        call.asked_since = now;
        let cancel_at = call.cancel_at(attempt);
        let until = if now < cancel_at { cancel_at } else { call.deadline };
        let until = until.min(now.saturating_add(attempt));
        if let Some((request, is_first)) = self.links.ask(node, id, now) {
            (call.stage, call.asked_before) = (Stage::Answer(node, request), Some(node));
            let outgoing = outgoing(call, now >= cancel_at);
            if is_first {
                self.effects.push(Effect::Look(node));
            }
            let link = self.links.link(node).expect("it takes requests");
            self.effects.push(Effect::Send { node, link, id: request, outgoing });
            self.timers.set(Timer::Call(id), until);
        } else {
            call.stage = Stage::Link(node);
            // What was never sent needs no cancelling.
            let until = if call.maybe_applied { until } else { call.deadline };
            self.timers.set(Timer::Call(id), until.min(now + CONNECT_PATIENCE));
            self.links.wait(node, id);
            self.dial(node);
        }
    }

    /// The call rests before its next attempt, for no longer than it may last.
    pub(super) fn rest(&mut self, id: CallId) {
        let call = self.calls.get_mut(&id).expect("an open call");
        call.stage = Stage::Pause;
        let rest = REST * (1 << call.tried.saturating_sub(1).min(REST_DOUBLINGS));
        self.timers.set(Timer::Call(id), call.deadline.min(self.now.at + rest));
    }

    /// The connection that a call waits for does not come soon. The dial goes on.
    pub(super) fn link_is_late(&mut self, id: CallId, node: NodeId) {
        self.links.leave(node, id);
        let waited = self.now.at.saturating_sub(self.calls[&id].asked_since);
        if waited >= CONNECT_PATIENCE {
            self.links.avoid(node, self.now.at);
        }
        let (address, waited) = (&self.setup.nodes[&node], waited.as_millis());
        let reason = format!("cannot reach {address}: no answer within {waited} ms");
        self.not_reached(id, &Unreachable::Silent(reason));
    }

    /// There is no connection to the node that was to be asked.
    pub(super) fn not_reached(&mut self, id: CallId, why: &Unreachable) {
        match why {
            // Others may be those that the cluster file names.
            Unreachable::Denied(reason) if self.has_others(id) => self.was_not_sent(id, reason.clone()),
            Unreachable::Denied(reason) => {
                self.calls.get_mut(&id).expect("an open call").stage = Stage::Moving;
                self.refuse(id, Refusal::Denied(reason.clone()));
            }
            Unreachable::Silent(reason) => self.was_not_sent(id, reason.clone()),
        }
    }

    /// Whether a replica of the call's group is left that did not say that it does not want this client.
    fn has_others(&self, id: CallId) -> bool {
        let call = &self.calls[&id];
        let place = call.group.zip(self.known.as_ref()).and_then(|(group, (atlas, _))| atlas.group(group));
        place.is_some_and(|place| place.nodes.iter().any(|node| !self.links.is_denied(*node)))
    }

    /// Nothing was sent in this attempt.
    pub(super) fn was_not_sent(&mut self, id: CallId, reason: String) {
        let call = self.calls.get_mut(&id).expect("an open call");
        (call.stage, call.target, call.last) = (Stage::Moving, None, reason);
        let (group, before) = (call.group, call.asked_before);
        if let Some(group) = group.filter(|group| self.leaders.get(group).copied() == before) {
            self.leaders.remove(&group);
        }
        let call = &self.calls[&id];
        if matches!(call.what, What::Ask(Ask::Status(_))) {
            self.give_up(id);
        } else {
            self.rest(id);
        }
    }

    /// No answer has come within the time of an attempt.
    pub(super) fn answer_is_late(&mut self, id: CallId, node: NodeId, request: u64) {
        let waited = self.now.at.saturating_sub(self.calls[&id].asked_since);
        if waited < self.setup.options.attempt
            && self.calls[&id].is_to_be_cancelled(self.now.at, &self.setup.options)
        {
            return self.cancel_beside(id, node, request);
        }
        self.links.answered(node, request);
        if waited >= self.setup.options.attempt && self.calls[&id].group.is_some() {
            self.links.avoid(node, self.now.at);
        }
        self.no_answer(id, &format!("{node} did not answer within {} ms", waited.as_millis()));
    }

    /// Little time is left for a write: it is cancelled over the connection over which it was sent, behind it. Whichever of the two is
    /// answered first tells what it came to.
    fn cancel_beside(&mut self, id: CallId, node: NodeId, request: u64) {
        let call = self.calls.get_mut(&id).expect("an open call");
        (call.maybe_applied, call.cancelled) = (true, Some((node, request)));
        self.reach(id, node);
    }

    /// A node answers a write that was cancelled since.
    pub(super) fn on_earlier_answer(&mut self, id: CallId, answer: Answer) {
        let Answer::Reply { reply, slot, leader } = answer else { return };
        if !reply.is_outcome() {
            return;
        }
        match self.calls[&id].stage {
            Stage::Answer(node, request) => _ = self.links.answered(node, request),
            Stage::Link(node) => self.links.leave(node, id),
            _ => {}
        }
        self.calls.get_mut(&id).expect("an open call").stage = Stage::Moving;
        self.note_leader(id, leader);
        self.on_reply(id, slot, reply);
    }

    /// What was sent is not answered; it may have been carried out.
    pub(super) fn no_answer(&mut self, id: CallId, reason: &str) {
        let call = self.calls.get_mut(&id).expect("an open call");
        (call.stage, call.target, call.maybe_applied) = (Stage::Moving, None, true);
        call.last = reason.to_string();
        match call.group {
            Some(group) if !matches!(call.what, What::Ask(Ask::Status(_))) => {
                if self.leaders.get(&group).copied() == call.asked_before {
                    self.leaders.remove(&group);
                }
                // One that lets everybody in and hangs up is not asked without a rest.
                if self.calls[&id].tried >= NAMED_MAX { self.rest(id) } else { self.attempt(id) }
            }
            _ => self.give_up(id),
        }
    }

    /// A node answers a call.
    pub(super) fn on_answer(&mut self, id: CallId, node: NodeId, answer: Answer) {
        let call = self.calls.get_mut(&id).expect("whoever waits for an answer is open");
        call.stage = Stage::Moving;
        match answer {
            Answer::Retry { reason, leader, maybe_applied } => {
                self.ask_again(id, node, reason, leader, maybe_applied);
            }
            Answer::Reply { reply, slot, leader } => {
                self.note_leader(id, leader);
                self.on_reply(id, slot, reply);
            }
            Answer::Value { found, served, leader } => {
                self.note_leader(id, leader);
                self.on_value(id, Read { found, served });
            }
            Answer::Moved { places } => self.on_moved(id, node, places),
            Answer::Refused { error } => self.refuse(id, Refusal::Invalid(error)),
            Answer::Unavailable { reason } => self.refuse(id, Refusal::Unavailable(reason)),
            Answer::Status(said) => match &self.calls[&id].what {
                What::Ask(Ask::Status(_)) => {
                    let atlas = self.known.as_ref().map(|(atlas, _)| atlas.as_ref());
                    let status = status::own(node, atlas, *said);
                    self.finish(id, Done::Status(status.map(Box::new)));
                }
                _ => self.on_unexpected(id, &said),
            },
            other => self.on_unexpected(id, &other),
        }
    }

    fn note_leader(&mut self, id: CallId, leader: Option<NodeId>) {
        if let (Some(group), Some(leader)) = (self.calls[&id].group, leader) {
            self.leaders.insert(group, leader);
        }
    }

    /// A node says that another may know better, or the same one later.
    fn ask_again(
        &mut self,
        id: CallId,
        node: NodeId,
        reason: RetryReason,
        leader: Option<NodeId>,
        maybe_applied: bool,
    ) {
        if let (RetryReason::NoLeader, Some(group)) = (reason, self.calls[&id].group) {
            // It may be cut off from the others, and they may know better.
            self.clueless.insert((group, node), self.now.at + CLUELESS_FOR);
        }
        // One that is busy is asked again, if it leads. One that could not be reached just now is not.
        let named = leader.filter(|leader| *leader != node || reason == RetryReason::Busy);
        if let Some(leader) = named {
            self.dial(leader);
        }
        let named = named.filter(|leader| self.may_lead(*leader));
        let call = self.calls.get_mut(&id).expect("an open call");
        call.maybe_applied |= maybe_applied;
        (call.last, call.target) = (format!("{node} {reason}"), named);
        let Some(group) = call.group else { return self.give_up(id) };
        match named {
            Some(leader) => self.leaders.insert(group, leader),
            None => self.leaders.remove(&group),
        };
        let is_overloaded = matches!(reason, RetryReason::Busy | RetryReason::Behind);
        if named.is_none() || is_overloaded || call.tried >= NAMED_MAX {
            self.rest(id);
        } else {
            self.attempt(id);
        }
    }

    /// A node says that another group owns the key; it did nothing. If that is news it is asked there.
    fn on_moved(&mut self, id: CallId, node: NodeId, places: Vec<Place>) {
        // In Byzantine mode no single node is believed about that, nor is one that was asked for no key.
        let may_move = self.signed.is_none() && self.calls[&id].key().is_some();
        let Some((atlas, _)) = self.known.as_mut().filter(|_| may_move) else {
            return self.on_unexpected(id, &places);
        };
        let atlas = Arc::make_mut(atlas);
        let is_new = places.into_iter().fold(false, |is_new, place| atlas.note(place) | is_new);
        let owner = self.owner_of(id).expect("the call has a key, and the ring is known");
        let call = self.calls.get_mut(&id).expect("an open call");
        (call.target, call.last) = (None, format!("{node} says that {owner} owns the key"));
        call.moved += u32::from(is_new);
        if call.moved > MOVES_MAX {
            return self.refuse(id, Refusal::Unavailable(format!("it was sent on {MOVES_MAX} times")));
        }
        if call.group == Some(owner) {
            // What that node knows is of the past: others know more, or it will.
            return self.rest(id);
        }
        call.group = Some(owner);
        // What the old group answers to an earlier attempt would be taken for what the new one says.
        if let Some((node, request)) = call.cancelled.take() {
            self.links.answered(node, request);
        }
        // Slots are counted by each group for itself.
        if let What::Ask(Ask::Read { consistency: Consistency::Session { at_least }, .. }) = &mut call.what {
            *at_least = self.sessions.seen(owner);
        }
        // What may have been carried out is asked under its own number, wherever its session is now. Else it begins anew.
        if call.maybe_applied {
            return self.attempt(id);
        }
        if let Some(number) = call.number.take() {
            self.give_back(&number);
        }
        self.advance(id);
    }

    /// The group's state machine has answered a command.
    fn on_reply(&mut self, id: CallId, slot: u64, reply: Reply) {
        let call = &self.calls[&id];
        match &call.what {
            What::Open(_) => match reply {
                Reply::Opened { session } => self.opened(id, session),
                Reply::Failed(failure) => self.refuse(id, Refusal::Failure(failure)),
                other => self.on_unexpected(id, &other),
            },
            What::End(_) => self.on_end_reply(id, &reply),
            What::Ask(Ask::Write(_)) => match reply {
                // An attempt that had no answer may have been applied while the session lived.
                Reply::Failed(Failure::SessionExpired) if call.maybe_applied => {
                    let reason = "the session expired while the write was retried".to_string();
                    self.finish(id, Done::Write(Outcome::Unknown(reason)));
                }
                Reply::Failed(Failure::SessionExpired) => self.session_expired(id),
                Reply::Failed(Failure::Cancelled) => {
                    let refusal = Refusal::Cancelled(call.last.clone());
                    self.finish(id, Done::Write(Outcome::Refused(refusal)));
                }
                Reply::Failed(failure) if failure.is_outcome() => {
                    self.finish(id, Done::Write(Outcome::Refused(Refusal::Failure(failure))));
                }
                Reply::Failed(failure) => self.refuse(id, Refusal::Failure(failure)),
                reply => self.written(id, slot, reply),
            },
            What::Ask(_) => self.on_unexpected(id, &reply),
        }
    }

    /// A write was carried out.
    pub(super) fn written(&mut self, id: CallId, slot: u64, reply: Reply) {
        let call = &self.calls[&id];
        let outcome = Outcome::Done(reply).of(call.write().expect("it is a write"));
        self.sessions.saw(call.group(), slot);
        self.finish(id, Done::Write(outcome));
    }

    /// What a group says of a session that it was asked to close. One that is unknown there needs no closing.
    pub(super) fn on_end_reply(&mut self, id: CallId, reply: &Reply) {
        self.end_answered(
            id,
            match reply {
                Reply::Closed | Reply::Failed(Failure::SessionExpired) => Ok(()),
                Reply::Failed(failure) => Err(failure.to_string()),
                other => Err(unexpected(other)),
            },
        );
    }

    fn on_value(&mut self, id: CallId, read: Read) {
        let call = &self.calls[&id];
        match &call.what {
            What::Ask(Ask::Read { consistency, .. }) if read.served.answers(call.group(), *consistency) => {
                self.sessions.saw(read.served.group, read.served.slot);
                self.finish(id, Done::Read(Outcome::Done(read)));
            }
            _ => self.on_unexpected(id, &read),
        }
    }

    /// An answer that the request cannot have: of a write nobody knows now what became of it.
    pub(super) fn on_unexpected(&mut self, id: CallId, answer: &impl std::fmt::Debug) {
        self.calls.get_mut(&id).expect("an open call").maybe_applied = true;
        self.refuse(id, Refusal::Unavailable(unexpected(answer)));
    }
}

impl Call {
    /// From when on a write that may have been carried out is cancelled; the deadline for whatever needs no cancelling.
    fn cancel_at(&self, attempt: Duration) -> Duration {
        match self.write() {
            Some(_) => {
                let patience = self.deadline.saturating_sub(self.asked_at);
                self.deadline.saturating_sub(attempt.min(patience / CANCEL_PART))
            }
            None => self.deadline,
        }
    }

    /// Whether a write is late that was sent as it is.
    fn is_to_be_cancelled(&self, now: Duration, options: &ClientOptions) -> bool {
        self.cancelled.is_none() && now < self.deadline && now >= self.cancel_at(options.attempt)
    }
}

/// What a call sends to the node that it asks.
fn outgoing(call: &Call, is_late: bool) -> Outgoing {
    let command = |request: RequestId, ack_below, operation| {
        let group = call.group();
        Outgoing::Command { group, request, ack_below, operation }
    };
    match &call.what {
        What::Open(nonce) => command(RequestId { session: SessionId(*nonce), number: 0 }, 0, Operation::Open),
        What::End(request) => command(*request, request.number, Operation::Close),
        What::Ask(Ask::Write(write)) => {
            let number = call.number.expect("a write has a number before it is sent");
            let operation = match is_late && call.maybe_applied {
                true => Operation::Cancel { key: write.key().clone() },
                false => Operation::Write(write.clone()),
            };
            command(number.request, number.ack_below, operation)
        }
        What::Ask(Ask::Read { key, consistency }) => {
            let (group, key) = (call.group(), key.clone());
            Outgoing::Request(Request::Get { group, key, consistency: *consistency })
        }
        What::Ask(Ask::Status(_)) => Outgoing::Request(Request::Status),
        What::Ask(Ask::Prove { .. } | Ask::Seen { .. } | Ask::Close) => {
            unreachable!("no single node is asked for that")
        }
    }
}
