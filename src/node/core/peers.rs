//! The other nodes: links that come and go, what comes over them, and what was passed on to whom.

use super::NodeCore;
use crate::error::StorageError;
use crate::gateway::Origin;
use crate::group::Group;
use crate::node::forwards::Forward;
use crate::ring::{GroupId, NodeId};
use crate::shares::Account;
use crate::wire::{self, Answer, GroupBody, PeerMessage, RetryReason};
use std::collections::BTreeMap;

/// A forwarded request is given up after this many milliseconds without an answer.
const FORWARD_PATIENCE_MILLIS: u64 = 3_000;

impl NodeCore {
    /// A link came up or went down.
    pub(super) fn on_link(&mut self, node: NodeId, link: u64, is_up: bool) {
        let current = self.linked.get(&node).copied();
        if is_up {
            // Two tasks may tell of two connections, the older one last.
            if current.is_some_and(|current| current > link) {
                return;
            }
            self.linked.insert(node, link);
        } else {
            if current.is_some_and(|current| current != link) {
                return;
            }
            self.linked.remove(&node);
        }
        self.roster.on_link(node, is_up);
        if !is_up || current.is_some_and(|before| before != link) {
            self.give_up_forwards(|forward| forward.to == node);
        }
    }

    pub(super) fn on_peer(&mut self, from: NodeId, body: &[u8]) -> Result<(), StorageError> {
        match wire::decode::<PeerMessage>(body) {
            Ok(PeerMessage::Groups(said)) if self.roster.may_vote() && self.roster.hears(from) => {
                said.iter().try_for_each(|said| self.on_said(from, said))
            }
            Ok(PeerMessage::Groups(_)) => Ok(()),
            Ok(PeerMessage::Introduction(said)) => {
                self.roster.on_said(from, said);
                Ok(())
            }
            Ok(PeerMessage::Forward { id, client, request }) => {
                // Where nodes may lie, one answers itself for what it passes on.
                let is_trusted = self.settings.group.byzantine.is_none();
                let account = if is_trusted { Account::Client(client) } else { Account::Node(from) };
                self.take_request(Origin::Peer { node: from, id }, (account, None), request);
                Ok(())
            }
            Ok(PeerMessage::Forwarded { id, answer }) => {
                self.on_forwarded(from, id, answer);
                Ok(())
            }
            // A peer of the same cluster and version sends nothing else; what it may mean is not for us to guess.
            Err(_) => Ok(()),
        }
    }

    /// A replica speaks to one of the same group. What was said in another epoch of it means nothing here.
    fn on_said(&mut self, from: NodeId, said: &GroupBody) -> Result<(), StorageError> {
        let group = self.groups.touch(said.tenure.group);
        match group.filter(|group| group.tenure().id == said.tenure) {
            Some(group) => group.receive(self.storage.as_ref(), from, &said.body),
            None => Ok(()),
        }
    }

    /// The answer to a request that was passed on. It goes to the client in this node's name, so it counts only from the node that
    /// was asked, and only if it is an answer: what replicas tell of outcomes, and nodes of themselves, each says itself.
    fn on_forwarded(&mut self, from: NodeId, id: u64, answer: Answer) {
        let is_answer = match &answer {
            Answer::Reply { .. } | Answer::Value { .. } | Answer::Retry { .. } | Answer::Moved { .. } => true,
            Answer::Refused { .. } | Answer::Unavailable { .. } | Answer::Kept { .. } => true,
            Answer::Status(_) | Answer::Watching | Answer::Outcomes { .. } => false,
        };
        if is_answer && let Some(forward) = self.door.forwards.answered(id, from) {
            self.finish(forward.ticket, answer);
        }
    }

    /// What was passed on so long ago that it will hardly be answered.
    pub(super) fn give_up_old_forwards(&mut self) {
        let now = self.now;
        self.give_up_forwards(|forward| now.since(forward.since) >= FORWARD_PATIENCE_MILLIS);
    }

    /// Requests that were passed on and will hardly be answered: who asked may try again elsewhere. They may have been
    /// applied.
    fn give_up_forwards(&mut self, is_hopeless: impl Fn(&Forward) -> bool) {
        for forward in self.door.forwards.take_hopeless(is_hopeless) {
            let leader =
                self.groups.get(forward.owner).and_then(Group::leader).filter(|leader| *leader != forward.to);
            let reason = if leader.is_some() { RetryReason::NotLeader } else { RetryReason::NoLeader };
            self.finish(forward.ticket, Answer::Retry { reason, leader, maybe_applied: true });
        }
    }

    /// A group has another leader, or none: what was passed on to the old one may never be answered.
    pub(super) fn watch_leaders(&mut self) {
        let mut changed = BTreeMap::new();
        for at in 0..self.groups.touched() {
            let group = self.groups.nth_touched(at);
            let (name, leader) = (group.tenure().group(), group.leader());
            let before = self.leaders.insert(name, leader).flatten();
            if before != leader {
                self.tell_leader(name, before, leader);
                changed.insert(name, leader);
            }
        }
        if !changed.is_empty() {
            self.give_up_forwards(|forward| {
                changed.get(&forward.owner).is_some_and(|leader| *leader != Some(forward.to))
            });
        }
    }

    /// Elections and view changes are what an operator looks for first.
    fn tell_leader(&self, group: GroupId, before: Option<NodeId>, leader: Option<NodeId>) {
        let node = self.settings.node;
        let attempt = self.groups.get(group).map(|group| group.engine().ballot).unwrap_or_default();
        match (before, leader) {
            (_, Some(leader)) if leader == node => tracing::info!(%group, %attempt, "this node leads"),
            (_, Some(leader)) => tracing::info!(%group, %leader, %attempt, "a leader was found"),
            (Some(before), None) => tracing::info!(%group, %before, %attempt, "the leader was lost"),
            (None, None) => {}
        }
    }
}
