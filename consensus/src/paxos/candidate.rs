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
//!    |<----------- LogChunk |
//! ```

use super::message::{LogView, Message, Reason};
use super::replica::{Replica, Role};
use crate::mutation::mutated;
use crate::paxos::ballot::Ballot;
use crate::paxos::entry::Entry;
use crate::types::{LogBase, ReplicaId, ReplicaSet, Slot, Ticks};
use std::collections::BTreeMap;

/// A replica that asks whether it may try to lead.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PreCandidate {
    ballot: Ballot,
    granted: ReplicaSet,
}

/// A replica that gathers promises for its ballot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    pub(super) ballot: Ballot,
    promises: BTreeMap<ReplicaId, LogView>,
    messages: usize,
    fetch: Option<Fetch>,
    asked_at: Ticks,
}

/// The best log, as far as it has arrived.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Fetch {
    source: ReplicaId,
    best: LogView,
    keep: LogBase,
    entries: Vec<Entry>,
}

impl Fetch {
    fn at(&self) -> LogBase {
        self.entries.last().map_or(self.keep, Entry::base)
    }
}

impl Candidate {
    /// The ballot in which the adopted log had been accepted: that of the fetched one, or the candidate's own.
    pub(super) fn best_accepted(&self) -> Ballot {
        let accepted = self.promises.values().map(|view| view.accepted).max().unwrap_or(Ballot::ZERO);
        assert!(accepted < self.ballot, "nothing was accepted yet in a ballot that nobody leads");
        accepted
    }

    /// What the other replicas of the quorum reported.
    pub(super) fn promises_of_others(&self, me: ReplicaId) -> Vec<(ReplicaId, LogView)> {
        self.promises
            .iter()
            .filter(|(replica, _)| **replica != me)
            .map(|(replica, view)| (*replica, *view))
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
        self.election.campaigned = Some(self.now);
        self.election.restart(self.now);
        self.set_leader(None);
        let own = self.acceptor.view(self.decided, &self.options);
        let promises = BTreeMap::from([(self.me, own)]);
        self.role =
            Role::Candidate(Candidate { ballot, promises, messages: 1, fetch: None, asked_at: self.now });
        self.broadcast(&Message::Prepare { ballot });
        self.choose_if_promised();
    }

    /// Repeats what may have been lost; gives up after the election timeout.
    pub(super) fn tick_candidate(&mut self) {
        if self.now >= self.election.deadline {
            return self.start_pre_vote();
        }
        let Role::Candidate(candidate) = &mut self.role else {
            return;
        };
        if self.now.since(candidate.asked_at) < 2 * self.options.heartbeat_ticks {
            return;
        }
        candidate.asked_at = self.now;
        let ballot = candidate.ballot;
        if let Some(fetch) = &candidate.fetch {
            let (source, slot) = (fetch.source, fetch.at().slot);
            return self.send(source, &Message::FetchLog { ballot, from: slot });
        }
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
            self.staging = None;
            self.set_leader(None);
            self.acceptor.promise(ballot);
        }
        assert_eq!(self.promised(), ballot, "a promise is given only when it holds");
        let view = self.acceptor.view(self.decided, &self.options);
        let unsafe_gate = mutated!(self.options, PromiseBeforeBarrier);
        let gate = (!unsafe_gate).then(|| self.acceptor.last_token());
        self.send_after(from, &Message::Promise { ballot, view }, gate);
    }

    /// Counts a promise. One that comes late, when this replica leads already, says where the other log stands.
    pub(super) fn on_promise(&mut self, from: ReplicaId, ballot: Ballot, view: LogView) {
        if ballot != self.promised() || !view.is_sound() {
            return;
        }
        match &mut self.role {
            // Nothing can have been accepted yet in a ballot that nobody leads.
            Role::Candidate(candidate) if candidate.ballot == ballot && view.accepted < ballot => {
                candidate.promises.insert(from, view);
                candidate.messages += 1;
                self.choose_if_promised();
            }
            Role::Leader(leader) if leader.ballot == ballot => self.on_view(from, view),
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
        let own = candidate.promises[&self.me];
        let (mut source, mut best) = (self.me, own);
        for (replica, view) in &candidate.promises {
            if (view.accepted, view.last) > (best.accepted, best.last) {
                (source, best) = (*replica, *view);
            }
        }
        if source == self.me || mutated!(self.options, KeepOwnLog) {
            let keep = self.acceptor.log().last().slot;
            return self.lead(keep, Vec::new());
        }
        self.fetch(source, own, best);
    }

    /// Asks the replica with the best log for what is missing; if its log no longer reaches back that far, it should
    /// lead instead.
    fn fetch(&mut self, source: ReplicaId, own: LogView, best: LogView) {
        let shared = if own.accepted == best.accepted { own.last.min(best.last) } else { self.decided };
        let Some(keep) = self.acceptor.log().position(shared).filter(|keep| keep.slot >= best.base) else {
            let ballot = self.promised();
            self.become_follower();
            return self.send(source, &Message::TransferLeader { ballot });
        };
        let Role::Candidate(candidate) = &mut self.role else { unreachable!("only a candidate fetches") };
        let ballot = candidate.ballot;
        if keep.slot == best.last {
            return self.lead(keep.slot, Vec::new());
        }
        candidate.fetch = Some(Fetch { source, best, keep, entries: Vec::new() });
        candidate.asked_at = self.now;
        assert!(keep.slot < best.last, "there is something to fetch");
        self.send(source, &Message::FetchLog { ballot, from: keep.slot });
    }

    /// Sends a piece of this log to a candidate, if
    /// * its ballot is the promised one, so that the log is still the one that was reported;
    /// * the log reaches back to where the candidate wants to go on.
    pub(super) fn on_fetch_log(&mut self, from: ReplicaId, ballot: Ballot, slot: Slot) {
        if ballot != self.promised() || self.acceptor.accepted() == ballot {
            return;
        }
        let log = self.acceptor.log();
        let Some(previous) = log.position(slot).filter(|at| at.slot < log.last().slot) else {
            return;
        };
        let entries = log.run(slot.next(), usize::MAX, self.options.message_bytes);
        assert!(!entries.is_empty(), "the log goes on behind the position");
        self.send(from, &Message::LogChunk { ballot, previous, entries });
    }

    /// Takes a piece of the best log, if
    /// * it comes from the replica that was asked, in this ballot;
    /// * it goes on exactly where the last piece ended, and its hashes are right.
    pub(super) fn on_log_chunk(
        &mut self,
        from: ReplicaId,
        ballot: Ballot,
        previous: LogBase,
        entries: Vec<Entry>,
    ) {
        let Role::Candidate(candidate) = &mut self.role else {
            return;
        };
        let Some(fetch) = candidate.fetch.as_mut().filter(|fetch| fetch.source == from) else {
            return;
        };
        if candidate.ballot != ballot || previous.slot != fetch.at().slot {
            return;
        }
        if previous != fetch.at() {
            return self.restart_fetch_from_decided();
        }
        for entry in entries {
            if !entry.follows(fetch.at()) || entry.slot > fetch.best.last {
                return;
            }
            fetch.entries.push(entry);
        }
        let (done, at) = (fetch.at().slot == fetch.best.last, fetch.at().slot);
        if done {
            let (keep, entries) = (fetch.keep.slot, std::mem::take(&mut fetch.entries));
            return self.lead(keep, entries);
        }
        candidate.asked_at = self.now;
        self.send(from, &Message::FetchLog { ballot, from: at });
    }

    /// Both logs were accepted in the same ballot and yet differ where they should agree: go back to what is surely
    /// shared. Only a base moved by a snapshot can cause this.
    fn restart_fetch_from_decided(&mut self) {
        let decided = self.decided;
        let position =
            self.acceptor.log().position(decided).expect("the decided slot is in the log or its base");
        let Role::Candidate(candidate) = &mut self.role else {
            return;
        };
        let ballot = candidate.ballot;
        let Some(fetch) = candidate.fetch.as_mut() else {
            return;
        };
        if fetch.keep == position {
            return self.fail(format!("the best log contradicts what was decided at slot {decided}"));
        }
        fetch.keep = position;
        fetch.entries.clear();
        let source = fetch.source;
        assert!(position.slot <= decided, "a restart goes back");
        self.send(source, &Message::FetchLog { ballot, from: position.slot });
    }

    /// Another replica should lead and says so.
    pub(super) fn on_transfer_leader(&mut self, from: ReplicaId, ballot: Ballot) {
        if ballot == self.promised() && ballot.replica == from && !self.is_leader() {
            self.campaign();
        }
    }
}
