//! Persist before send: the one place that keeps the rule.
//!
//! An engine's messages may name a token: they promise something that a record with that token makes true.
//! [`Driver::send`] lets a message pass only if its token is durable, and holds it otherwise; [`Driver::durable`] is
//! the only way for a token to become durable. Nothing else in the node touches an engine's messages.

use crate::storage::CommitId;
use bytes::Bytes;
use std::collections::VecDeque;
use tetrachord_consensus::{PersistToken, ReplicaId};

/// A message on its way to another replica.
pub(super) type Outgoing = (ReplicaId, Bytes);

/// Records of one engine that should become durable together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// In order.
    pub records: Vec<Bytes>,
    /// Whether a promise is among them.
    pub promises: bool,
    /// Whether they hold everything that the engine must not forget: older ones may go when these are durable.
    pub is_whole: bool,
}

/// Records and messages of one engine.
#[derive(Debug, Default)]
pub(super) struct Driver {
    waiting: Records,
    latest: PersistToken,
    submitted: VecDeque<(CommitId, PersistToken)>,
    durable: PersistToken,
    held: VecDeque<(PersistToken, Outgoing)>,
}

impl Driver {
    /// The engine wants these records to become durable.
    pub(super) fn persist(&mut self, new: Records, token: PersistToken) {
        assert!(token > self.latest, "tokens grow");
        self.waiting.records.extend(new.records);
        self.waiting.promises |= new.promises;
        self.waiting.is_whole |= new.is_whole;
        self.latest = token;
    }

    /// Lets the message pass if what it rests on is durable; holds it until then otherwise.
    pub(super) fn send(
        &mut self,
        to: ReplicaId,
        message: Bytes,
        after: Option<PersistToken>,
    ) -> Option<Outgoing> {
        match after.filter(|token| *token > self.durable) {
            None => Some((to, message)),
            Some(token) => {
                assert!(token <= self.latest, "a message waits only for records that were emitted");
                self.held.push_back((token, (to, message)));
                None
            }
        }
    }

    /// The records that wait to be submitted as one commit.
    pub(super) fn take_records(&mut self) -> Option<Records> {
        let taken = std::mem::take(&mut self.waiting);
        (!taken.records.is_empty()).then_some(taken)
    }

    /// Everything taken so far was submitted under this commit.
    pub(super) fn submitted(&mut self, commit: CommitId) {
        assert!(
            self.submitted.back().is_none_or(|(last, _)| *last < commit),
            "commits are submitted in order"
        );
        self.submitted.push_back((commit, self.latest));
    }

    /// The commit and all before it are durable: returns the token that is durable with it, and the messages that
    /// waited for it, in the order in which they were sent.
    pub(super) fn durable(&mut self, commit: CommitId) -> (Option<PersistToken>, Vec<Outgoing>) {
        let before = self.durable;
        while let Some((_, token)) = self.submitted.front().copied().filter(|(id, _)| *id <= commit) {
            self.submitted.pop_front();
            self.durable = token;
        }
        let (ready, held) =
            std::mem::take(&mut self.held).into_iter().partition(|(token, _)| *token <= self.durable);
        self.held = held;
        let ready: VecDeque<(PersistToken, Outgoing)> = ready;
        (
            (self.durable > before).then_some(self.durable),
            ready.into_iter().map(|(_, message)| message).collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn records(texts: &[&'static str], promises: bool, is_whole: bool) -> Records {
        Records { records: texts.iter().map(|text| message(text)).collect(), promises, is_whole }
    }

    #[test]
    fn records_are_whole_if_any_that_are_taken_together_were() {
        let mut driver = Driver::default();
        driver.persist(records(&["vote"], false, false), PersistToken(1));
        driver.persist(records(&["all"], true, true), PersistToken(2));
        driver.persist(records(&["more"], false, false), PersistToken(3));
        assert_eq!(driver.take_records(), Some(records(&["vote", "all", "more"], true, true)));
        assert_eq!(driver.take_records(), None);
        driver.persist(records(&["vote"], false, false), PersistToken(4));
        assert_eq!(driver.take_records(), Some(records(&["vote"], false, false)));
    }

    #[test]
    fn a_message_leaves_only_when_its_record_is_durable() {
        let mut driver = Driver::default();
        driver.persist(records(&["r1"], true, false), PersistToken(1));
        assert_eq!(driver.send(ReplicaId(1), message("promise"), Some(PersistToken(1))), None);
        assert!(driver.send(ReplicaId(1), message("free"), None).is_some());
        assert_eq!(driver.take_records(), Some(records(&["r1"], true, false)));
        driver.submitted(CommitId(4));
        driver.persist(records(&["r2"], false, false), PersistToken(3));
        assert_eq!(driver.send(ReplicaId(2), message("ack"), Some(PersistToken(3))), None);
        assert_eq!(driver.durable(CommitId(3)), (None, vec![]));
        assert_eq!(driver.durable(CommitId(4)).1, vec![(ReplicaId(1), message("promise"))]);
        driver.take_records();
        driver.submitted(CommitId(9));
        assert_eq!(
            driver.durable(CommitId(9)),
            (Some(PersistToken(3)), vec![(ReplicaId(2), message("ack"))])
        );
        assert!(driver.send(ReplicaId(1), message("late"), Some(PersistToken(2))).is_some());
    }
}
