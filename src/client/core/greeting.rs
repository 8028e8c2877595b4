//! Who owns what, from the first node that greets, in crash mode.
//!
//! Nodes are dialled one after the other: one that is down is silent, and waiting for it alone would cost its whole patience; all at
//! once, and many clients that begin together would be too much for all of them.

use super::calls::Stage;
use super::timers::Timer;
use super::{Ask, CallId, Core, Unreachable, What};
use crate::client::Refusal;
use crate::ring::NodeId;
use std::collections::BTreeSet;
use std::time::Duration;

/// The next node is dialled when the last one has not greeted within this time; the first one again, when all were, within that.
const NEXT_AFTER: Duration = Duration::from_millis(100);
const AGAIN_AFTER: Duration = Duration::from_millis(600);

/// Who waits for the ring, and who is dialled next.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    waiting: BTreeSet<CallId>,
    /// In the order in which they are dialled; drawn when somebody waits first.
    nodes: Vec<NodeId>,
    next: usize,
    /// Those that could not be reached in this round, and what one said that does not want this client.
    failed: BTreeSet<NodeId>,
    denied: Option<String>,
}

impl Core {
    /// The call waits until the ring is known.
    pub(super) fn wait_for_ring(&mut self, id: CallId) {
        let call = self.calls.get_mut(&id).expect("an open call");
        call.stage = Stage::Ring;
        self.timers.set(Timer::Call(id), call.deadline);
        if self.greeting.waiting.is_empty() {
            (self.greeting.failed, self.greeting.denied) = (BTreeSet::new(), None);
        }
        self.greeting.waiting.insert(id);
        if !self.timers.is_set(Timer::Greet) {
            self.greet();
        }
    }

    pub(super) fn leave_greeting(&mut self, id: CallId) {
        self.greeting.waiting.remove(&id);
    }

    /// Dials the next node, while somebody waits.
    pub(super) fn greet(&mut self) {
        if self.greeting.waiting.is_empty() {
            return;
        }
        if self.greeting.nodes.is_empty() {
            self.greeting.nodes = self.setup.nodes.keys().copied().collect();
            let turn = self.draw() % self.greeting.nodes.len().max(1) as u128;
            self.greeting.nodes.rotate_left(usize::try_from(turn).expect("a small remainder"));
        }
        let count = self.greeting.nodes.len();
        if let Some(node) = self.greeting.nodes.get(self.greeting.next).copied() {
            self.dial(node);
        }
        self.greeting.next = (self.greeting.next + 1) % count.max(1);
        let after = if self.greeting.next == 0 { AGAIN_AFTER } else { NEXT_AFTER };
        self.timers.set(Timer::Greet, self.now.at + after);
    }

    /// A node could not be reached: the next one is asked at once. When all were, that one does not know this client is worth more to know
    /// than that others are silent.
    pub(super) fn greeting_failed(&mut self, node: NodeId, why: &Unreachable) {
        let greeting = &mut self.greeting;
        if greeting.waiting.is_empty() {
            return;
        }
        greeting.failed.insert(node);
        match why {
            Unreachable::Denied(reason) => greeting.denied = Some(reason.clone()),
            Unreachable::Silent(reason) => {
                for id in &greeting.waiting {
                    self.calls.get_mut(id).expect("whoever waits is open").last.clone_from(reason);
                }
            }
        }
        if greeting.failed.len() == self.setup.nodes.len() {
            greeting.failed.clear();
            if let Some(reason) = greeting.denied.take() {
                for id in std::mem::take(&mut greeting.waiting) {
                    self.refuse(id, Refusal::Denied(reason.clone()));
                }
            }
        }
        self.timers.set(Timer::Greet, self.now.at);
    }

    /// The ring is known.
    pub(super) fn end_greeting(&mut self) {
        self.timers.clear(Timer::Greet);
        for id in std::mem::take(&mut self.greeting.waiting) {
            self.advance(id);
        }
    }

    /// This client ends: of those that wait, only whoever asks for nothing but what is known goes on.
    pub(super) fn refuse_greeting(&mut self, refusal: &Refusal) {
        let waiting = self.greeting.waiting.clone();
        let needs_more =
            |core: &Self, id: &CallId| !matches!(core.calls[id].what, What::Ask(Ask::Seen { .. }));
        for id in waiting {
            if needs_more(self, &id) {
                self.refuse(id, refusal.clone());
            }
        }
    }
}
