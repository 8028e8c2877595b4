//! Phase 1, its second half: move the best log of the quorum here, if it is not this replica's own.
//!
//! The candidate asks for piece after piece and names how much it wants: more and more, as long as a piece comes quickly, because it
//! cannot know how fast the link is, and everything else between the two nodes waits behind what it has asked for. Each piece that
//! comes gives it more time. What has come stays if the attempt fails all the same ([`super::gathering`]).
//!
//! Who is asked for more than one piece could lead without moving anything. It asks the others whether they would have it
//! (a pre-vote, which changes nothing), and gives the pieces besides: perhaps nobody but the candidate hears a quorum.

use super::candidate::Candidate;
use super::gathering::{Gathering, Misfit};
use super::message::{LogView, Message};
use super::replica::{Replica, Role};
use crate::config::Options;
use crate::mutation::mutated;
use crate::paxos::ballot::Ballot;
use crate::paxos::entry::Entry;
use crate::types::{LogBase, ReplicaId, Slot, Ticks};

/// The best log, on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fetch {
    source: ReplicaId,
    best: LogView,
    /// How much is asked for at once.
    bytes: usize,
    asked_at: Ticks,
    /// The shortest time, in milliseconds, from a question to its answer.
    fastest: u64,
    is_restarted: bool,
}

impl Fetch {
    fn new(source: ReplicaId, best: LogView, options: &Options, now: Ticks) -> Self {
        let bytes = bytes_min(options);
        Self { source, best, bytes, asked_at: now, fastest: u64::MAX, is_restarted: false }
    }

    /// The ballot in which it was accepted.
    pub(super) fn accepted(&self) -> Ballot {
        self.best.accepted
    }

    /// A piece has come. What it took longer than the fastest one it waited behind others, or was under way because it is large.
    fn measure(&mut self, options: &Options, now: Ticks) {
        let took = now.since(self.asked_at);
        self.fastest = self.fastest.min(took);
        let waited = took - self.fastest;
        if waited > options.election_ticks / 4 {
            self.bytes = (self.bytes / 2).max(bytes_min(options));
        } else if waited <= options.election_ticks / 8 {
            self.bytes = (self.bytes * 2).min(bytes_max(options));
        }
    }
}

/// Entry bytes that are asked for at first.
fn bytes_min(options: &Options) -> usize {
    options.message_bytes / 4
}

/// Entry bytes that are asked for, and given, at most.
fn bytes_max(options: &Options) -> usize {
    options.message_bytes * 4
}

impl Replica {
    /// Asks the replica with the best log for what is missing; if its log no longer reaches back that far, it should
    /// lead instead.
    pub(super) fn fetch(&mut self, source: ReplicaId, own: LogView, best: LogView) {
        let log = self.acceptor.log();
        let agreed = (own.accepted == best.accepted).then(|| log.position(own.last.slot.min(best.last.slot)));
        let start = agreed.flatten().unwrap_or(self.decided_position());
        let ballot = self.promised();
        let kept = self.gathering.take().and_then(|kept| kept.renewed(log, self.decided));
        let kept = kept.filter(|kept| kept.begins_by(best.last.slot) && kept.end().slot > start.slot);
        let mut gathering = kept.unwrap_or_else(|| Gathering::new(ballot, start));
        gathering.ballot = ballot;
        gathering.cut(best.last.slot);
        if gathering.end().slot < best.base {
            self.become_follower();
            return self.send(source, &Message::TransferLeader { ballot });
        }
        self.gathering = Some(gathering);
        let fetch = Fetch::new(source, best, &self.options, self.now);
        self.candidate_mut().fetch = Some(Box::new(fetch));
        self.go_on_fetching();
    }

    fn candidate_mut(&mut self) -> &mut Candidate {
        let Role::Candidate(candidate) = &mut self.role else { unreachable!("only a candidate fetches") };
        candidate
    }

    /// Leads with what was gathered, if it ends where the best log ends; else asks for what goes on behind it.
    fn go_on_fetching(&mut self) {
        let Role::Candidate(Candidate { fetch: Some(fetch), .. }) = &self.role else { return };
        let gathering = self.gathering.as_ref().expect("a candidate that fetches gathers");
        let (best, end) = (fetch.best.last, gathering.end());
        let is_half = mutated!(self.options, LeadHalfFetched) && !gathering.is_empty();
        if end == best || is_half {
            return self.lead_with_gathered();
        }
        if end.slot >= best.slot {
            return self.fetch_from_decided();
        }
        self.ask_for_piece();
    }

    fn ask_for_piece(&mut self) {
        let now = self.now;
        let from = self.gathering.as_ref().expect("a candidate that fetches gathers").end().slot;
        let candidate = self.candidate_mut();
        let ballot = candidate.ballot;
        let fetch = candidate.fetch.as_mut().expect("the caller fetches");
        fetch.asked_at = now;
        let (source, bytes) = (fetch.source, fetch.bytes as u64);
        self.send(source, &Message::FetchLog { ballot, from, bytes });
    }

    /// The question, or its answer, may have been lost: asks again, for little.
    pub(super) fn tick_fetch(&mut self) {
        let (now, patience) = (self.now, self.options.election_ticks / 2);
        let least = bytes_min(&self.options);
        let fetch = self.candidate_mut().fetch.as_mut().expect("the caller fetches");
        if now.since(fetch.asked_at) >= patience {
            fetch.bytes = least;
            self.ask_for_piece();
        }
    }

    fn lead_with_gathered(&mut self) {
        let gathering = self.gathering.take().expect("a candidate that fetches gathers");
        match gathering.split(self.acceptor.log()) {
            Ok((keep, entries)) => self.lead(keep.slot, entries),
            Err(Misfit::Contradiction(slot)) => {
                self.fail(format!("the best log contradicts the snapshot at slot {slot}"));
            }
            Err(Misfit::Foreign) => unreachable!("a candidate's own log does not change"),
        }
    }

    /// Sends a piece of this log to a candidate, if
    /// * its ballot is the promised one, so that the log is still the one that was reported;
    /// * the log reaches back to where the candidate wants to go on.
    pub(super) fn on_fetch_log(&mut self, from: ReplicaId, ballot: Ballot, slot: Slot, bytes: u64) {
        if ballot != self.promised() || self.acceptor.accepted() == ballot {
            return;
        }
        let log = self.acceptor.log();
        let Some(previous) = log.position(slot).filter(|at| at.slot < log.last().slot) else {
            return;
        };
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(bytes_max(&self.options));
        let entries = log.run(slot.next(), usize::MAX, bytes);
        let is_rest = entries.last().is_some_and(|entry| entry.slot == log.last().slot);
        self.send(from, &Message::LogChunk { ballot, previous, entries });
        if !is_rest {
            self.offer_to_lead(ballot);
        }
    }

    /// Asks the others whether they would have this replica lead, once for each ballot that it has promised, and not again within the
    /// time that an election takes. Whoever leads for a moment has the best log: two that fetch from each other and offer each time
    /// would go on for ever.
    fn offer_to_lead(&mut self, ballot: Ballot) {
        let has_just = self.offered_at.is_some_and(|at| self.now.since(at) < self.options.election_ticks);
        if self.offered < ballot && !has_just && self.role == Role::Follower {
            (self.offered, self.offered_at) = (ballot, Some(self.now));
            self.start_pre_vote();
        }
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
        let (Role::Candidate(candidate), Some(gathering)) = (&mut self.role, &mut self.gathering) else {
            return;
        };
        let Some(fetch) = candidate.fetch.as_mut().filter(|fetch| fetch.source == from) else {
            return;
        };
        let end = gathering.end();
        if candidate.ballot != ballot || previous.slot != end.slot {
            return;
        }
        if previous != end {
            return self.fetch_from_decided();
        }
        let last = fetch.best.last.slot;
        gathering.add(entries.into_iter().filter(|entry| entry.slot <= last));
        if gathering.end() == end {
            return;
        }
        fetch.measure(&self.options, self.now);
        self.election.restart(self.now);
        self.go_on_fetching();
    }

    /// What is gathered is of another log than the best one: go back to what is surely shared. Entries that were kept from an earlier
    /// attempt can cause this, and a base moved by a snapshot, where both logs were accepted in the same ballot.
    fn fetch_from_decided(&mut self) {
        let (ballot, decided) = (self.promised(), self.decided_position());
        let gathering = self.gathering.as_ref().expect("a candidate that fetches gathers");
        if gathering.is_empty() && gathering.end() == decided {
            return self.fail(format!("the best log contradicts what was decided at slot {}", decided.slot));
        }
        self.gathering = None;
        let fetch = self.candidate_mut().fetch.as_mut().expect("the caller fetches");
        if std::mem::replace(&mut fetch.is_restarted, true) {
            // Its owner reported another log than it sends.
            return self.become_follower();
        }
        self.gathering = Some(Gathering::new(ballot, decided));
        self.go_on_fetching();
    }

    /// Position and hash of the latest decided slot.
    fn decided_position(&self) -> LogBase {
        self.acceptor.log().position(self.decided).expect("the decided slot is in the log or its base")
    }
}
