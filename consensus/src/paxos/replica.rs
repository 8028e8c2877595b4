//! One replica: its role, the dispatch of events, and what all roles share.
//!
//! The rules live beside this file, one concern each: [`super::candidate`] (phase 1), [`super::follower`] (the
//! acceptor's side of phase 2), [`super::replicate`] (the leader's side). After every event the named checks of
//! [`super::invariants`] run.

use crate::codec;
use crate::config::{GroupConfig, Options};
use crate::engine::{Engine, EngineStatus, Event, Reached, Retain};
use crate::mutation::mutated;
use crate::paxos::acceptor::Acceptor;
use crate::paxos::ballot::Ballot;
use crate::paxos::candidate::{Candidate, PreCandidate};
use crate::paxos::election::Election;
use crate::paxos::entry::{Body, Entry};
use crate::paxos::face::{Effect, Own};
use crate::paxos::gathering::Gathering;
use crate::paxos::invariants;
use crate::paxos::leader::Leader;
use crate::paxos::message::{LogView, Message, Reason};
use crate::paxos::record::{RecoverError, Recovered};
use crate::types::{LogBase, PersistToken, ReadId, ReplicaId, Slot, Ticks, Timestamp};
use bytes::Bytes;

/// What a replica is doing about leadership. Every replica is an acceptor besides.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Helps whoever leads.
    Follower,
    /// Asks whether it may try.
    PreCandidate(PreCandidate),
    /// Gathers promises, then the best log.
    Candidate(Candidate),
    /// Orders entries.
    Leader(Box<Leader>),
}

/// A Multi-Paxos replica of one group. Drive it through [`Engine`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    pub(super) me: ReplicaId,
    pub(super) config: GroupConfig,
    pub(super) options: Options,
    pub(super) now: Ticks,
    pub(super) wall: Timestamp,
    pub(super) acceptor: Acceptor,
    pub(super) election: Election,
    pub(super) role: Role,
    pub(super) decided: Slot,
    pub(super) gathering: Option<Gathering>,
    /// The latest ballot of whose candidate this replica's log is so far ahead that it offered to lead itself.
    pub(super) offered: Ballot,
    /// When it did.
    pub(super) offered_at: Option<Ticks>,
    /// When the last entry of the log came to be here, at the earliest.
    pub(super) appended_at: Ticks,
    leader: Option<ReplicaId>,
    is_halted: bool,
    effects: Vec<Note>,
}

/// An effect in the making: messages are encoded when they leave.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Note {
    Send { to: ReplicaId, message: Bytes, after: Option<PersistToken> },
    Apply(Entry),
    ReadReady { id: ReadId, slot: Slot },
    ReadRefused { id: ReadId },
    SendSnapshot { to: ReplicaId },
    LeaderChanged { leader: Option<ReplicaId> },
    EpochEnded { slot: Slot, next: Bytes },
    Fatal { reason: String },
}

impl Replica {
    /// Builds a replica from what its disk holds: the write-ahead records of its group in order, and where the
    /// durable state of its state machine ends. For a first start both are empty.
    ///
    /// A replica that led before the crash does not resume: its followers may hold more than it does.
    pub fn recover<R: AsRef<[u8]>>(
        me: ReplicaId,
        config: GroupConfig,
        options: Options,
        records: impl IntoIterator<Item = R>,
        applied: LogBase,
    ) -> Result<Self, RecoverError> {
        assert!(config.contains(me), "a replica belongs to its group");
        let acceptor = Acceptor::recover(Recovered::replay(records)?, applied)?;
        let mut election = Election::new(me, config.epoch, &options, acceptor.promised());
        election.restart(Ticks(0));
        let replica = Self {
            me,
            config,
            options,
            now: Ticks(0),
            wall: Timestamp(0),
            acceptor,
            election,
            role: Role::Follower,
            decided: applied.slot,
            gathering: None,
            offered: Ballot::ZERO,
            offered_at: None,
            appended_at: Ticks(0),
            leader: None,
            is_halted: false,
            effects: Vec::new(),
        };
        invariants::check(&replica);
        Ok(replica)
    }

    /// The acceptor, for checks from outside.
    #[must_use]
    pub fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// The role, for checks from outside.
    #[must_use]
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// The latest slot known to be decided.
    #[must_use]
    pub fn decided(&self) -> Slot {
        self.decided
    }

    /// This replica's index.
    #[must_use]
    pub fn id(&self) -> ReplicaId {
        self.me
    }

    fn on_tick(&mut self, now: Ticks, wall: Timestamp) {
        assert!(now >= self.now, "ticks never go back");
        if self.now == Ticks(0) && now > Ticks(0) {
            // The first tick of the process: timers were set against an origin that meant nothing.
            self.election.restart(now);
            self.appended_at = now;
        }
        self.now = now;
        self.wall = wall;
        match self.role {
            Role::Leader(_) => self.tick_leader(),
            Role::Candidate(_) => self.tick_candidate(),
            Role::Follower | Role::PreCandidate(_) if now >= self.election.deadline => self.start_pre_vote(),
            Role::Follower | Role::PreCandidate(_) => {}
        }
    }

    /// Checks what no honest sender gets wrong, then hands the message to its handler.
    fn on_receive(&mut self, from: ReplicaId, bytes: &[u8]) {
        if !self.config.contains(from) || from == self.me {
            return;
        }
        let Ok(message) = codec::decode::<Message>(bytes) else {
            return;
        };
        let ballot = message.ballot();
        if message.only_sender().is_some_and(|sender| sender != from) {
            return;
        }
        if ballot.epoch != self.config.epoch {
            if message.only_sender().is_some() {
                self.send(from, &Message::Reject { ballot, reason: Reason::Epoch(self.config.epoch) });
            }
            return;
        }
        if self.election.is_plausible(ballot) {
            self.dispatch(from, message);
        }
    }

    fn dispatch(&mut self, from: ReplicaId, message: Message) {
        match message {
            Message::PreVote { ballot } => self.on_pre_vote(from, ballot),
            Message::PreVoteReply { ballot, granted, promised } => {
                self.on_pre_vote_reply(from, ballot, granted, promised);
            }
            Message::Prepare { ballot } => self.on_prepare(from, ballot),
            Message::Promise { ballot, view, wall } => self.on_promise(from, ballot, view, wall),
            Message::FetchLog { ballot, from: slot, bytes } => self.on_fetch_log(from, ballot, slot, bytes),
            Message::LogChunk { ballot, previous, entries } => {
                self.on_log_chunk(from, ballot, previous, entries)
            }
            Message::AcceptSync { ballot, sync, entries, adopted, quorate } => {
                if self.admit_leader(from, ballot, quorate) {
                    self.on_accept_sync(from, ballot, sync, entries, adopted);
                }
            }
            Message::Accept { ballot, previous, entries, decided, quorate } => {
                if self.admit_leader(from, ballot, quorate) {
                    self.on_accept(from, ballot, previous, entries, decided);
                }
            }
            Message::Heartbeat { ballot, round, decided, quorate } => {
                if self.admit_leader(from, ballot, quorate) {
                    self.on_heartbeat(from, ballot, round, decided);
                }
            }
            Message::Accepted { ballot, durable } => self.on_accepted(from, ballot, durable),
            Message::HeartbeatReply { ballot, round, view, durable, wall } => {
                self.on_heartbeat_reply(from, ballot, round, view, durable, wall);
            }
            Message::Reject { ballot, reason } => self.on_reject(from, ballot, reason),
            Message::TransferLeader { ballot } => self.on_transfer_leader(from, ballot),
        }
    }

    /// Sends a message. While the latest promise is not durable, nothing that rests on it may leave.
    pub(super) fn send(&mut self, to: ReplicaId, message: &Message) {
        let gate =
            if mutated!(self.options, PromiseBeforeBarrier) { None } else { self.acceptor.promise_token() };
        self.send_after(to, message, gate);
    }

    /// Sends a message that must wait for the record with this token.
    pub(super) fn send_after(&mut self, to: ReplicaId, message: &Message, after: Option<PersistToken>) {
        self.send_encoded(to, codec::encode(message), after);
    }

    /// Sends bytes that were encoded before, for messages that go to several replicas.
    pub(super) fn send_encoded(&mut self, to: ReplicaId, message: Bytes, after: Option<PersistToken>) {
        assert!(to != self.me && self.config.contains(to), "messages go to other replicas of the group");
        let after = after.filter(|token| *token > self.acceptor.durable_token());
        self.effects.push(Note::Send { to, message, after });
    }

    /// Sends the same message to every other replica.
    pub(super) fn broadcast(&mut self, message: &Message) {
        let bytes = codec::encode(message);
        let gate =
            if mutated!(self.options, PromiseBeforeBarrier) { None } else { self.acceptor.promise_token() };
        for to in self.others() {
            self.send_encoded(to, bytes.clone(), gate);
        }
    }

    /// Every other replica of the group.
    pub(super) fn others(&self) -> Vec<ReplicaId> {
        self.config.replicas().filter(|replica| *replica != self.me).collect()
    }

    /// Learns that everything up to `slot` is decided, as far as this log reaches, and hands it out to be applied.
    pub(super) fn learn_decided(&mut self, slot: Slot) {
        let slot = slot.min(self.acceptor.log().last().slot);
        while self.decided < slot {
            self.decided = self.decided.next();
            let entry =
                self.acceptor.log().get(self.decided).expect("undecided entries are above the base").clone();
            if let Body::StopSign(next) = &entry.body {
                let (slot, next) = (entry.slot, next.clone());
                self.effects.push(Note::Apply(entry));
                self.effects.push(Note::EpochEnded { slot, next });
            } else {
                self.effects.push(Note::Apply(entry));
            }
        }
        assert!(self.decided >= slot, "decided never goes back");
    }

    /// Gives up whatever role this replica has and follows.
    pub(super) fn become_follower(&mut self) {
        if let Role::Leader(leader) = &mut self.role {
            for id in leader.reads.take_all() {
                self.effects.push(Note::ReadRefused { id });
            }
        }
        self.role = Role::Follower;
        self.election.restart(self.now);
        assert!(!self.is_leader(), "a follower does not lead");
    }

    /// Remembers who leads and tells the caller if that is news.
    pub(super) fn set_leader(&mut self, leader: Option<ReplicaId>) {
        if self.leader != leader {
            self.leader = leader;
            self.effects.push(Note::LeaderChanged { leader });
        }
    }

    /// Does it, and checks what must always hold; a replica that has stopped does nothing.
    pub(super) fn unless_halted(&mut self, act: impl FnOnce(&mut Self)) {
        if !self.is_halted {
            act(self);
            invariants::check(self);
        }
    }

    /// Stops for ever: going on could break a promise.
    pub(super) fn fail(&mut self, reason: String) {
        self.is_halted = true;
        self.effects.push(Note::Fatal { reason });
    }

    pub(super) fn read_ready(&mut self, reads: Vec<ReadId>, slot: Slot) {
        assert!(slot <= self.decided, "a read index is decided");
        self.effects.extend(reads.into_iter().map(|id| Note::ReadReady { id, slot }));
    }

    pub(super) fn read_refused(&mut self, id: ReadId) {
        self.effects.push(Note::ReadRefused { id });
    }

    pub(super) fn request_snapshot_for(&mut self, to: ReplicaId) {
        assert!(to != self.me, "a replica does not lag behind itself");
        self.effects.push(Note::SendSnapshot { to });
    }

    /// Whether this replica leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// What to tell others of this replica's log, and of what it has gathered beyond it.
    pub(super) fn view(&self) -> LogView {
        let gathered = self.gathering.as_ref().filter(|gathering| !gathering.is_empty()).map(Gathering::end);
        self.acceptor.view(self.decided, gathered, &self.options)
    }

    /// The highest ballot promised.
    #[must_use]
    pub fn promised(&self) -> Ballot {
        self.acceptor.promised()
    }

    fn on_persisted(&mut self, token: PersistToken) {
        let grew = self.acceptor.persisted(token);
        if grew && self.is_leader() {
            self.try_decide();
        } else if grew {
            self.acknowledge();
        }
    }

    fn on_snapshot_installed(&mut self, base: LogBase) {
        if base.slot <= self.acceptor.log().base().slot {
            return;
        }
        if self.is_leader() {
            return self.fail("a leader was given a snapshot of its own group".to_string());
        }
        self.acceptor.install(base);
        self.appended_at = self.now;
        self.decided = self.decided.max(base.slot);
        let (log, decided) = (self.acceptor.log(), self.decided);
        self.gathering = self.gathering.take().and_then(|kept| kept.renewed(log, decided));
        assert!(self.decided >= base.slot, "a snapshot holds only decided slots");
        if matches!(self.role, Role::Candidate(_)) {
            // What it said of its own log when it began, and what it fetches behind it, is of a log that is gone.
            self.campaign();
        }
    }

    fn on_compact(&mut self, slot: Slot, retain: Retain) {
        assert!(slot <= self.decided, "only decided slots can be durable outside the log");
        let point = self.acceptor.log().compaction_point(slot, retain);
        self.acceptor.compact(point);
    }

    fn on_trim(&mut self, slot: Slot, retain: Retain) {
        assert!(slot <= self.decided, "only decided slots can be durable outside the log");
        let point = self.acceptor.log().compaction_point(slot, retain);
        self.acceptor.trim(point);
    }
}

impl Engine for Replica {
    type Own = Own;

    fn step(&mut self, event: Event) {
        self.unless_halted(|replica| match event {
            Event::Tick { now, wall } => replica.on_tick(now, wall),
            Event::Receive { from, message } => replica.on_receive(from, &message),
            Event::Persisted { token } => replica.on_persisted(token),
            Event::SnapshotInstalled { base } => replica.on_snapshot_installed(base),
            Event::Compact { slot, retain } => replica.on_compact(slot, retain),
            Event::Trim { slot, retain } => replica.on_trim(slot, retain),
        });
    }

    fn take_effects(&mut self) -> Vec<Effect> {
        let mut effects = Vec::with_capacity(self.effects.len() + 1);
        let promises = self.acceptor.promise_token().is_some();
        if let Some((records, token, is_whole)) = self.acceptor.take_records() {
            effects.push(Effect::Persist { records, token, promises, is_whole });
        }
        effects.extend(self.effects.drain(..).map(|note| match note {
            Note::Send { to, message, after } => Effect::Send { to, message, after },
            Note::Apply(entry) => Effect::Apply(entry.decided()),
            Note::ReadReady { id, slot } => Effect::Own(Own::ReadReady { id, slot }),
            Note::ReadRefused { id } => Effect::Own(Own::ReadRefused { id }),
            Note::SendSnapshot { to } => Effect::Own(Own::SendSnapshot { to }),
            Note::LeaderChanged { leader } => Effect::LeaderChanged { leader },
            Note::EpochEnded { slot, next } => Effect::EpochEnded { slot, next },
            Note::Fatal { reason } => Effect::Fatal { reason },
        }));
        effects
    }

    fn status(&self) -> EngineStatus {
        let log = self.acceptor.log();
        EngineStatus {
            leader: self.leader,
            is_leader: Self::is_leader(self),
            ballot: self.acceptor.promised().to_string(),
            decided: self.decided,
            last: log.last().slot,
            base: log.base().slot,
            undecided: self.undecided(),
            log_bytes: self.log_bytes(),
        }
    }

    fn is_leader(&self) -> bool {
        Self::is_leader(self)
    }

    /// What is durable there as accepted in this ballot: if it restarts, it goes on from there.
    fn reached(&self, replica: ReplicaId) -> Option<Reached> {
        let Role::Leader(leader) = &self.role else { return None };
        let peer = leader.peers.get(&replica)?;
        Some(Reached { slot: peer.durable, heard_at: peer.contact? })
    }

    fn log_bytes(&self) -> usize {
        self.acceptor.log().bytes()
    }
}
