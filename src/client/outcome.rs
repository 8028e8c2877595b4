//! What became of a request, and what was read: outcomes are never dressed up.

use crate::kv::{Failure, Reply, When, Write};
use crate::proof::Proof;
use crate::ring::GroupId;
use crate::wire::{Consistency, Served};
use bytes::Bytes;
use thiserror::Error;

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "an outcome may be Refused or Unknown"]
pub enum Outcome<T> {
    /// It happened.
    Done(T),
    /// It surely did not happen.
    Refused(Refusal),
    /// Nobody knows.
    Unknown(String),
}

/// Why something surely did not happen.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The state machine refused it.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// No node could take it in time.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// It was sent, was not answered in time, and was cancelled before it was carried out.
    #[error("cancelled before it was carried out: {0}")]
    Cancelled(String),
    /// The cluster does not know this client.
    #[error("denied: {0}")]
    Denied(String),
}

impl Refusal {
    /// The same in words, for an outcome that is none.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Unavailable(reason) => reason.clone(),
            other => other.to_string(),
        }
    }
}

/// An outcome that is not Done, as an error.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotDone {
    /// It surely did not happen.
    #[error(transparent)]
    Refused(Refusal),
    /// Nobody knows.
    #[error("outcome unknown: {0}. It may have been applied, or may be applied later")]
    Unknown(String),
}

impl<T> Outcome<T> {
    /// The answer, or why there is none.
    pub fn done(self) -> Result<T, NotDone> {
        match self {
            Self::Done(value) => Ok(value),
            Self::Refused(refusal) => Err(NotDone::Refused(refusal)),
            Self::Unknown(reason) => Err(NotDone::Unknown(reason)),
        }
    }

    pub(super) fn map<U>(self, f: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Self::Done(value) => Outcome::Done(f(value)),
            Self::Refused(refusal) => Outcome::Refused(refusal),
            Self::Unknown(reason) => Outcome::Unknown(reason),
        }
    }
}

impl Outcome<Reply> {
    /// What the reply says, if it is one that the request can have. If it is not, something was done, and nobody knows what.
    pub(super) fn pick<T>(self, wanted: impl FnOnce(&Reply) -> Option<T>) -> Outcome<T> {
        match self {
            Self::Done(reply) => match wanted(&reply) {
                Some(value) => Outcome::Done(value),
                None => Outcome::Unknown(unexpected(&reply)),
            },
            other => other.map(|_| unreachable!("it is not done")),
        }
    }

    /// The same outcome, if its reply is one that this write can have.
    pub(super) fn of(self, write: &Write) -> Self {
        self.pick(|reply| answers(write, reply).then(|| reply.clone()))
    }
}

/// Whether a write can have this reply.
fn answers(write: &Write, reply: &Reply) -> bool {
    match write {
        Write::Put { when: When::Always, .. } => matches!(reply, Reply::Put { .. }),
        Write::Put { .. } => matches!(reply, Reply::Put { .. } | Reply::Unmet { .. }),
        Write::Delete { .. } => matches!(reply, Reply::Deleted { .. }),
        Write::Cas { .. } => matches!(reply, Reply::Cas { .. }),
        Write::Incr { .. } => matches!(reply, Reply::Incr { .. }),
        Write::Append { .. } => matches!(reply, Reply::Append { .. }),
    }
}

/// What is said of an answer that does not fit. It may be long, and is for who looks for the fault: it goes to the log.
pub(super) fn unexpected(answer: &impl std::fmt::Debug) -> String {
    tracing::debug!(?answer, "an answer does not fit its request");
    "a node gave an answer that does not fit the request".to_string()
}

/// A value that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Version and value, if the key exists.
    pub found: Option<(u64, Bytes)>,
    /// Where it was read, and what that promises.
    pub served: Served,
}

/// A value that was read, and what replicas signed about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// The value.
    pub read: Read,
    /// Anyone can check it.
    pub proof: Proof,
}

/// Why sessions of a client stay open at some groups.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("sessions stay open in {groups:?}, where they are forgotten after an hour of silence: {reason}")]
pub struct NotClosed {
    /// The groups.
    pub groups: Vec<GroupId>,
    /// What one of them came to.
    pub reason: String,
}

impl Served {
    /// Whether an answer that was served like this is one to a read of the group with this consistency.
    pub(super) fn answers(&self, group: GroupId, asked: Consistency) -> bool {
        let is_fresh = match asked {
            Consistency::Linearizable => self.consistency == Consistency::Linearizable,
            Consistency::Session { at_least } => self.slot >= at_least,
            Consistency::Eventual => true,
        };
        self.group == group && is_fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_that_the_request_cannot_have_is_no_success() {
        let key = Bytes::from_static(b"k");
        let put = Write::put(key.clone(), key.clone());
        let (version, reply) = (7, Reply::Put { version: 7 });
        assert_eq!(Outcome::Done(reply.clone()).of(&put), Outcome::Done(reply.clone()));
        for wrong in [
            Reply::Deleted { existed: true },
            Reply::Incr { value: 1, version },
            Reply::Value { found: Some((1, Bytes::from(vec![7; 100_000]))), time: 1 },
            Reply::Opened { session: crate::kv::SessionId(1) },
        ] {
            let Outcome::Unknown(reason) = Outcome::Done(wrong.clone()).of(&put) else {
                panic!("{wrong:?} is no answer to a put");
            };
            assert!(reason.len() < 200, "{} letters", reason.len());
        }
        let write = Write::Delete { key };
        assert!(matches!(Outcome::Done(reply.clone()).of(&write), Outcome::Unknown(_)));
        let picked =
            Outcome::Done(reply).pick(|reply| matches!(reply, Reply::Deleted { .. }).then_some(false));
        assert!(matches!(picked, Outcome::Unknown(_)), "not false, which would say that nothing was there");
    }

    #[test]
    fn a_read_is_answered_by_its_group_and_as_fresh_as_it_was_asked_for() {
        let at = |slot, consistency| Served { group: GroupId(1), slot, consistency };
        let linearizable = at(5, Consistency::Linearizable);
        for asked in [Consistency::Linearizable, Consistency::Session { at_least: 5 }, Consistency::Eventual]
        {
            assert!(linearizable.answers(GroupId(1), asked));
            assert!(!linearizable.answers(GroupId(2), asked));
        }
        let eventual = at(5, Consistency::Eventual);
        assert!(!eventual.answers(GroupId(1), Consistency::Linearizable));
        assert!(!eventual.answers(GroupId(1), Consistency::Session { at_least: 6 }));
    }
}
