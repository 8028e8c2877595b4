//! Answers, from what a group says to the frame that leaves: to a client of this node, or to the node that passed its request on.

use super::NodeCore;
use crate::gateway::{Origin, native};
use crate::group::{Freshness, Group, Outcome, Outcomes};
use crate::node::face::{Class, NodeEffect};
use crate::ring::GroupId;
use crate::ticket::Ticket;
use crate::wire::{self, Answer, Consistency, PeerMessage, RetryReason, Served};

impl NodeCore {
    /// What a group says of a request, as it is told to whoever asked.
    pub(super) fn answer_of(&self, group: GroupId, outcome: Outcome) -> Answer {
        let leader = self.groups.get(group).and_then(Group::leader);
        let retry = |reason, maybe_applied| Answer::Retry { reason, leader, maybe_applied };
        match outcome {
            Outcome::Applied { reply, slot } => Answer::Reply { reply, slot, leader },
            Outcome::Value { found, slot, freshness } => {
                let consistency = match freshness {
                    Freshness::Linearizable => Consistency::Linearizable,
                    Freshness::AtLeast(0) => Consistency::Eventual,
                    Freshness::AtLeast(at_least) => Consistency::Session { at_least },
                };
                let found = found.map(|found| (found.version, found.value));
                Answer::Value { found, served: Served { group, slot, consistency }, leader }
            }
            Outcome::WrongGroup => Answer::Refused { error: format!("group {group} does not own the key") },
            Outcome::NotLeader if leader.is_none() => retry(RetryReason::NoLeader, false),
            Outcome::NotLeader => retry(RetryReason::NotLeader, false),
            Outcome::Busy => retry(RetryReason::Busy, false),
            Outcome::LeadershipLost => retry(RetryReason::LeadershipLost, true),
            Outcome::Behind => retry(RetryReason::Behind, false),
            Outcome::Kept => Answer::Kept { group, leader },
            Outcome::Invalid(reason) => Answer::Refused { error: reason.to_string() },
        }
    }

    /// A request has its answer, which finds its way back if anybody still waits.
    pub(super) fn finish(&mut self, ticket: Ticket, answer: Answer) {
        if let Some(origin) = self.door.gateway.finish(ticket) {
            self.send_answer(origin, answer);
        }
    }

    pub(super) fn send_answer(&mut self, origin: Origin, answer: Answer) {
        match origin {
            Origin::Client { connection, id } => {
                let frame = native::answer(id, answer);
                self.effects.push(NodeEffect::Answer { connection, frame });
            }
            Origin::Peer { node, id } => {
                let frame = wire::encode(&PeerMessage::Forwarded { id, answer });
                self.effects.push(NodeEffect::Send { to: node, class: Class::Request, frame });
            }
        }
    }

    /// Byzantine mode: what requests of a client came to, for every connection that wants to know.
    pub(super) fn tell_watchers(&mut self, group: GroupId, outcomes: Outcomes) {
        let Outcomes { client, slot, replies } = outcomes;
        let mut watching = self.door.watchers.of(&client).peekable();
        if watching.peek().is_some() {
            let answer = Answer::Outcomes { group, slot, replies };
            let frame = native::news(answer);
            let answers = watching.map(|connection| NodeEffect::Answer { connection, frame: frame.clone() });
            self.effects.extend(answers);
        }
    }
}
