//! Phase 1: ask whether an attempt makes sense, gather promises, take over the best log.
//!
//! ```text
//! candidate                 acceptors
//!    | PreVote ------------>|   changes nothing; refused while a quorate leader is heard
//!    |<------- PreVoteReply |   a quorum grants:
//!    | (promise to itself, durable)
//!    | Prepare ------------>|   promise, durable
//!    |<------------ Promise |   with (accepted, last), the rank of its log
//!    | FetchLog ----------->|   only to the best one, only if it is not the candidate's own
//!    |<----------- LogChunk |   (fetch.rs)
//! ```

use super::fetch::Fetch;
use super::message::{LogView, Message, Reason};
use super::replica::{Replica, Role};
use crate::mutation::mutated;
use crate::paxos::ballot::Ballot;
use crate::paxos::time::Clock;
use crate::types::{ReplicaId, ReplicaSet, Ticks, Timestamp};
use std::collections::BTreeMap;

/// A replica that asks whether it may try to lead.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PreCandidate {
    ballot: Ballot,
    granted: ReplicaSet,
}

/// What a promise said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Promised {
    pub view: LogView,
    pub clock: Clock,
}

/// A replica that gathers promises for its ballot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    pub(super) ballot: Ballot,
    promises: BTreeMap<ReplicaId, Promised>,
    messages: usize,
    pub(super) fetch: Option<Box<Fetch>>,
    asked_at: Ticks,
}

impl Candidate {
    /// The ballot in which the log had been accepted that is adopted: the fetched one, or the candidate's own. A promise that comes
    /// while it is fetched may speak of a later one, which need not be adopted any more.
    pub(super) fn adopted_from(&self, own: Ballot) -> Ballot {
        let accepted = self.fetch.as_ref().map_or(own, |fetch| fetch.accepted());
        assert!(accepted < self.ballot, "nothing was accepted yet in a ballot that nobody leads");
        accepted
    }

    /// What the other replicas of the quorum reported.
    pub(super) fn promises_of_others(&self, me: ReplicaId) -> Vec<(ReplicaId, Promised)> {
        self.promises
            .iter()
            .filter(|(replica, _)| **replica != me)
            .map(|(replica, promise)| (*replica, *promise))
            .collect()
    }
}

impl Replica {
    /// The election timer has run out: find out whether others miss a leader too.
    pub(super) fn start_pre_vote(&mut self) {
        assert!(!self.is_leader(), "a leader does not campaign against itself");
        let ballot = self.election.seen.successor(self.config.epoch, self.me);
        self.set_leader(None);
        self.role = Role::PreCandidate(PreCandidate { ballot, granted: ReplicaSet::of(self.me) });
        self.election.restart_attempt(self.now);
        self.broadcast(&Message::PreVote { ballot });
        self.campaign_if_granted();
    }

    /// Answers whether this replica would help. Says yes unless it hears a working leader, or is one; how far the
    /// candidate's log reaches does not matter, a leader adopts the best one. Nothing is promised.
    pub(super) fn on_pre_vote(&mut self, from: ReplicaId, ballot: Ballot) {
        let granted = !self.election.hears_leader(self.now) && !self.is_quorate_leader();
        self.send(from, &Message::PreVoteReply { ballot, granted, promised: self.promised() });
    }

    pub(super) fn on_pre_vote_reply(
        &mut self,
        from: ReplicaId,
        ballot: Ballot,
        granted: bool,
        promised: Ballot,
    ) {
        self.election.see(promised);
        if let Role::PreCandidate(candidate) = &mut self.role
            && candidate.ballot == ballot
            && granted
        {
            candidate.granted.insert(from);
            self.campaign_if_granted();
        }
    }

    fn campaign_if_granted(&mut self) {
        if let Role::PreCandidate(candidate) = &self.role
            && candidate.granted.len() >= self.config.quorums.phase1()
        {
            self.campaign();
        }
    }

    /// Begins phase 1 with a ballot above everything seen. The promise to oneself is durable before anybody hears of
    /// the ballot, so that no two incarnations of this replica ever use the same one.
    pub(super) fn campaign(&mut self) {
        self.become_follower();
        self.election.see(self.promised());
        let ballot = self.election.seen.successor(self.config.epoch, self.me);
        assert!(ballot > self.promised(), "an attempt outranks what this replica promised");
        self.acceptor.promise(ballot);
        self.election.see(ballot);
        self.election.begin_attempt(self.now);
        self.set_leader(None);
        let own = self.view();
        let clock = Clock { said: self.wall, heard: self.now };
        let promises = BTreeMap::from([(self.me, Promised { view: own, clock })]);
        self.role =
            Role::Candidate(Candidate { ballot, promises, messages: 1, fetch: None, asked_at: self.now });
        self.broadcast(&Message::Prepare { ballot });
        self.choose_if_promised();
    }

    /// Repeats what may have been lost; gives up when nothing has come of it for long.
    pub(super) fn tick_candidate(&mut self) {
        if self.now >= self.election.deadline {
            return self.start_pre_vote();
        }
        let Role::Candidate(candidate) = &mut self.role else {
            return;
        };
        if candidate.fetch.is_some() {
            return self.tick_fetch();
        }
        if self.now.since(candidate.asked_at) < 2 * self.options.heartbeat_ticks {
            return;
        }
        candidate.asked_at = self.now;
        let ballot = candidate.ballot;
        let promised: Vec<ReplicaId> = candidate.promises.keys().copied().collect();
        for to in self.others().into_iter().filter(|replica| !promised.contains(replica)) {
            self.send(to, &Message::Prepare { ballot });
        }
    }

    /// Promises if
    /// * the ballot is above every promise: then the promise is made durable first;
    /// * or it is the one promised: the answer may have been lost.
    pub(super) fn on_prepare(&mut self, from: ReplicaId, ballot: Ballot) {
        self.election.see(ballot);
        if ballot < self.promised() {
            return self.send(from, &Message::Reject { ballot, reason: Reason::Promised(self.promised()) });
        }
        if ballot > self.promised() {
            self.become_follower();
            self.set_leader(None);
            self.acceptor.promise(ballot);
        }
        assert_eq!(self.promised(), ballot, "a promise is given only when it holds");
        let view = self.view();
        let unsafe_gate = mutated!(self.options, PromiseBeforeBarrier);
        let gate = (!unsafe_gate).then(|| self.acceptor.last_token());
        self.send_after(from, &Message::Promise { ballot, view, wall: self.wall }, gate);
    }

    /// Counts a promise. One that comes late, when this replica leads already, says where the other log stands.
    pub(super) fn on_promise(&mut self, from: ReplicaId, ballot: Ballot, view: LogView, wall: Timestamp) {
        if ballot != self.promised() || !view.is_sound() {
            return;
        }
        let clock = Clock { said: wall, heard: self.now };
        match &mut self.role {
            // Nothing can have been accepted yet in a ballot that nobody leads.
            Role::Candidate(candidate) if candidate.ballot == ballot && view.accepted < ballot => {
                candidate.promises.insert(from, Promised { view, clock });
                candidate.messages += 1;
                self.choose_if_promised();
            }
            Role::Leader(leader) if leader.ballot == ballot => {
                leader.peers.get_mut(&from).expect("members were checked").clock = Some(clock);
                self.on_view(from, view);
            }
            _ => {}
        }
    }

    /// With a quorum of promises, takes the log of the highest `(accepted, last)`: everything that may have been
    /// decided in a lower ballot is in it.
    fn choose_if_promised(&mut self) {
        let Role::Candidate(candidate) = &self.role else {
            return;
        };
        let count =
            if mutated!(self.options, CountMessages) { candidate.messages } else { candidate.promises.len() };
        let needed = self.config.quorums.phase1() - usize::from(mutated!(self.options, LeadTooSoon));
        if candidate.fetch.is_some() || count < needed {
            return;
        }
        let own = candidate.promises[&self.me].view;
        let (mut source, mut best) = (self.me, own);
        for (replica, Promised { view, .. }) in &candidate.promises {
            if view.rank() > best.rank() {
                (source, best) = (*replica, *view);
            }
        }
        if source == self.me || mutated!(self.options, KeepOwnLog) {
            let keep = self.acceptor.log().last().slot;
            return self.lead(keep, Vec::new());
        }
        self.fetch(source, own, best);
    }

    /// Another replica would have this one lead, and says so: the leader, or a candidate that would need more of this replica's log than
    /// is left of it. The latter needs a state, whoever leads; and perhaps nobody but the candidate hears a quorum.
    pub(super) fn on_transfer_leader(&mut self, from: ReplicaId, ballot: Ballot) {
        if ballot != self.promised() || ballot.replica != from || self.is_leader() {
            return;
        }
        if self.acceptor.accepted() != ballot {
            self.request_snapshot_for(from);
        }
        self.campaign();
    }
}
