//! Exactly-once: what each session asked for and what it was told. Part of the replicated state.
//!
//! A session keeps a *set* of outcomes by request number, not only the highest, because a client may have many
//! requests open and they may arrive in any order. The client says which outcomes it has (`ack_below`); those are
//! forgotten. A session that was silent for long is forgotten as a whole, by *session time*, which is log time without its leaps and
//! never passes faster, so that every replica forgets it in the same slot.
//!
//! A session belongs to the client that opened it: in Byzantine mode the one that signed, in crash mode the key of the connection, as
//! the node says that admitted it. What a client may hold is bounded ([`super::shares`]). One that holds all it may loses its own
//! session that was silent longest when it opens another, if that was for long; nobody else's.
//!
//! In Byzantine mode the name of a session follows from what its client has signed, and whoever has the signed requests may play them
//! again. So a session that its client closes stays, without its outcomes, until nothing that was applied for it is good any more: else it could
//! be opened a second time, and its writes be applied a second time. The others outlive their requests by far.
//!
//! Invariants:
//! * no session is forgotten while a request that was applied for it is still good;
//! * indices and shares follow from the sessions: [`Sessions::load`] makes them anew.

mod rows;

use super::machine::Rules;
use super::operation::{Client, SessionId};
use super::reply::{Failure, Reply};
use super::shares::{Exceeded, Held, Shares};
use crate::limits::{
    OUTCOME_BYTES, SESSION_GRAIN_MICROS, SESSION_IDLE_MICROS, SESSION_RETENTION_MICROS, SESSION_WINDOW,
};
use rows::Unstored;
use std::collections::{BTreeMap, BTreeSet};

/// What a request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    /// Of what was asked.
    digest: u64,
    reply: Reply,
    /// Whether a checkpoint has written it.
    is_stored: bool,
}

/// One client's outcomes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Session {
    owner: Client,
    active: u64,
    ack_below: u64,
    outcomes: BTreeMap<u64, Outcome>,
    /// Byzantine mode: when session time is later, nothing is good any more of what was applied for this session; 0 in crash mode.
    good_until: u64,
    is_closed: bool,
}

impl Exceeded {
    fn refusal(self) -> Reply {
        Reply::Failed(Failure::TooManySessions { held: self.held, max: self.max })
    }
}

impl Session {
    /// The session is forgotten when session time is later.
    fn ends_after(&self) -> u64 {
        if self.is_closed { self.good_until } else { self.active.saturating_add(SESSION_RETENTION_MICROS) }
    }

    /// What is told to a request.
    fn answer(&self, asked: &Asked) -> Lookup {
        let Asked { number, after, .. } = *asked;
        if let Some(outcome) = self.outcomes.get(&number) {
            // Whatever was asked under a number that was cancelled is told so.
            let is_cancelled = outcome.reply == Reply::Failed(Failure::Cancelled);
            let is_the_same = asked.digest.is_none_or(|digest| digest == outcome.digest);
            return match is_the_same || is_cancelled {
                true => Lookup::Known(outcome.reply.clone()),
                false => Lookup::Refused(Failure::NumberReused { number }),
            };
        }
        if number < self.ack_below {
            return Lookup::Refused(Failure::Stale { number, ack_below: self.ack_below });
        }
        if number - self.ack_below >= SESSION_WINDOW {
            return Lookup::Refused(Failure::WindowFull { number, window: SESSION_WINDOW });
        }
        match after.filter(|after| *after >= self.ack_below && !self.outcomes.contains_key(after)) {
            Some(after) => Lookup::Refused(Failure::OutOfOrder { after }),
            None => Lookup::Fresh,
        }
    }

    fn holds(&self) -> Held {
        Held { sessions: 1, bytes: bytes_of(self.outcomes.len()) }
    }
}

/// What so many remembered outcomes count.
fn bytes_of(outcomes: usize) -> u64 {
    outcomes as u64 * OUTCOME_BYTES
}

/// Sessions by when they end, and those that are not closed by their client, the most silent one first.
#[derive(Debug, Default, PartialEq, Eq)]
struct Index {
    by_end: BTreeSet<(u64, SessionId)>,
    by_owner: BTreeSet<(Client, u64, SessionId)>,
}

impl Index {
    fn insert(&mut self, id: SessionId, session: &Session) {
        self.by_end.insert((session.ends_after(), id));
        if !session.is_closed {
            self.by_owner.insert((session.owner, session.active, id));
        }
    }

    fn remove(&mut self, id: SessionId, session: &Session) {
        self.by_end.remove(&(session.ends_after(), id));
        self.by_owner.remove(&(session.owner, session.active, id));
    }

    /// The session is used. True if that is noted: a busy one is not moved by every request.
    fn touch(&mut self, id: SessionId, session: &mut Session, time: u64) -> bool {
        let is_noted = time.saturating_sub(session.active) >= SESSION_GRAIN_MICROS;
        if is_noted {
            self.remove(id, session);
            session.active = time;
            self.insert(id, session);
        }
        is_noted
    }
}

/// All sessions of a group.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_id: BTreeMap<SessionId, Session>,
    index: Index,
    shares: Shares,
    ignores_shares: bool,
    unstored: Unstored,
}

/// What a request asks of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) number: u64,
    pub(super) ack_below: u64,
    /// Not before this one has an outcome.
    pub(super) after: Option<u64>,
    /// Of what is asked; none for whatever was asked under the number.
    pub(super) digest: Option<u64>,
}

/// What the table says of a request before it is applied.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    /// Apply it.
    Fresh,
    /// It was applied before; this was the outcome.
    Known(Reply),
    /// Do not apply it.
    Refused(Failure),
}

impl Sessions {
    /// Opens a session for a client, or finds the one that was opened with this name before. In Byzantine mode the opening is good
    /// until then; 0 in crash mode.
    pub(super) fn open(&mut self, id: SessionId, owner: Client, good_until: u64, time: u64) -> Reply {
        if let Some(session) = self.by_id.get_mut(&id) {
            if session.is_closed || session.owner != owner {
                return Reply::Failed(Failure::SessionExpired);
            }
            // One that is opened again lives on: it outlives whatever is good for it.
            let is_later = good_until > session.good_until;
            session.good_until = session.good_until.max(good_until);
            if self.index.touch(id, session, time) || is_later {
                self.unstored.head(id);
            }
            return Reply::Opened { session: id };
        }
        if let Err(share) = self.shares.may_open(&owner)
            && !self.ignores_shares
            && !self.make_room(&owner, time)
        {
            return share.refusal();
        }
        let (outcomes, is_closed) = (BTreeMap::new(), false);
        self.insert(id, Session { owner, active: time, ack_below: 1, outcomes, good_until, is_closed });
        self.unstored.head(id);
        Reply::Opened { session: id }
    }

    /// What a client is told that opens one more session at this time, if it is refused. Nothing changes.
    pub(super) fn refusal_to_open(&self, owner: &Client, time: u64) -> Option<Reply> {
        let share = self.shares.may_open(owner).err().filter(|_| !self.ignores_shares)?;
        let is_one_over = self.index.by_end.first().is_some_and(|(end, _)| *end < time);
        let has_room = is_one_over || self.idle_of(owner, time).is_some();
        (!has_room).then(|| share.refusal())
    }

    /// The client's session that was silent longest, if that was for long enough.
    fn idle_of(&self, owner: &Client, time: u64) -> Option<SessionId> {
        let of_owner = self.index.by_owner.range((*owner, 0, SessionId(0))..).next();
        let (.., id) = of_owner
            .filter(|(of, active, _)| of == owner && time.saturating_sub(*active) >= SESSION_IDLE_MICROS)?;
        Some(*id)
    }

    /// Takes the session from the client that was silent longest, if that was for long enough.
    fn make_room(&mut self, owner: &Client, time: u64) -> bool {
        let idle = self.idle_of(owner, time);
        idle.inspect(|id| self.forget(*id, time)).is_some()
    }

    /// Closes a session of this client. It is forgotten once it cannot come back.
    pub(super) fn close(&mut self, id: SessionId, owner: &Client, time: u64) -> Reply {
        let Some(session) = self.by_id.get(&id).filter(|session| session.owner == *owner) else {
            return Reply::Failed(Failure::SessionExpired);
        };
        if !session.is_closed {
            let mut closed = self.take(id);
            self.unstored.gone(id, &std::mem::take(&mut closed.outcomes));
            closed.is_closed = true;
            let is_over = closed.good_until < time;
            self.insert(id, closed);
            self.unstored.head(id);
            if is_over {
                self.forget(id, time);
            }
        }
        Reply::Closed
    }

    /// Whose session it is; none if it is unknown.
    pub(super) fn owner(&self, id: SessionId) -> Option<Client> {
        Some(self.by_id.get(&id)?.owner)
    }

    fn insert(&mut self, id: SessionId, session: Session) {
        self.index.insert(id, &session);
        self.shares.add(session.owner, session.holds());
        self.by_id.insert(id, session);
        assert_eq!(self.by_id.len(), self.index.by_end.len(), "every session has its place in the index");
    }

    fn take(&mut self, id: SessionId) -> Session {
        let session = self.by_id.remove(&id).expect("the caller has found it");
        self.index.remove(id, &session);
        self.shares.remove(&session.owner, session.holds());
        session
    }

    fn forget(&mut self, id: SessionId, time: u64) {
        let session = self.take(id);
        assert!(session.good_until < time.max(1), "nothing that was applied for it is good any more");
        self.unstored.gone(id, &session.outcomes);
        self.unstored.head(id);
    }

    /// Looks a request up, notes that the session lives, and forgets what the client has.
    pub(super) fn lookup(&mut self, id: SessionId, asked: Asked, time: u64) -> Lookup {
        let Some(session) = self.by_id.get_mut(&id).filter(|session| !session.is_closed) else {
            return Lookup::Refused(Failure::SessionExpired);
        };
        if self.index.touch(id, session, time) {
            self.unstored.head(id);
        }
        if asked.ack_below > session.ack_below {
            session.ack_below = asked.ack_below;
            let open = session.outcomes.split_off(&asked.ack_below);
            let gone = std::mem::replace(&mut session.outcomes, open);
            if !gone.is_empty() {
                self.shares.remove(&session.owner, Held { sessions: 0, bytes: bytes_of(gone.len()) });
                self.unstored.gone(id, &gone);
            }
            self.unstored.head(id);
        }
        match session.answer(&asked) {
            Lookup::Fresh if !self.shares.have_plenty() => match self.shares.may_remember(&session.owner) {
                Ok(()) => Lookup::Fresh,
                Err(share) => {
                    let (held, max) = (share.held, share.max);
                    Lookup::Refused(Failure::TooMuchRemembered { held, max })
                }
            },
            answer => answer,
        }
    }

    /// Remembers the outcome of a request that was just looked up. In Byzantine mode the request is good until then; 0 in crash mode.
    pub(super) fn remember(
        &mut self,
        id: SessionId,
        number: u64,
        digest: u64,
        reply: Reply,
        good_until: u64,
    ) {
        let session = self.by_id.get_mut(&id).expect("it was just looked up");
        let before = session.outcomes.insert(number, Outcome { digest, reply, is_stored: false });
        assert!(before.is_none(), "a request is applied once");
        if good_until > session.good_until {
            session.good_until = good_until;
            self.unstored.head(id);
        }
        self.shares.add(session.owner, Held { sessions: 0, bytes: OUTCOME_BYTES });
        self.unstored.outcome(id);
    }

    /// Forgets the sessions that were silent for too long at this session time, and closed ones that cannot come back.
    pub(super) fn expire(&mut self, time: u64) {
        while let Some(&(end, id)) = self.index.by_end.first() {
            if end >= time {
                break;
            }
            self.forget(id, time);
        }
    }

    /// The same sessions, whose clients are held to these rules.
    pub(super) fn under(mut self, rules: Rules) -> Self {
        self.ignores_shares = rules.ignores_shares;
        self
    }

    /// How many sessions are remembered.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Who holds how much.
    pub(super) fn shares(&self) -> &Shares {
        &self.shares
    }
}

#[cfg(test)]
mod tests;
