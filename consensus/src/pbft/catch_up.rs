//! What was missed is asked for and sent again.
//!
//! Every replica that misses something says how far it is ([`Status`]); whoever is further sends what would help: the
//! NEW-VIEW of a view that has begun, a certificate of a stable checkpoint, certified batches, its own votes. None of it is
//! believed without its proof. A replica that no log reaches any more fetches a whole state, from one replica after the
//! other until one gives what the certificate promises.
//!
//! Answers are bounded: a few for each peer in each interval, and so many bytes.

use crate::pbft::batch::Batch;
use crate::pbft::evidence::VoteKind;
use crate::pbft::face::{Effect, Own};
use crate::pbft::message::{CommitCertificate, Message, Status, Vote};
use crate::pbft::replica::Replica;
use crate::pbft::slot::SlotState;
use crate::pbft::suspicion::EXPIRY_SLACK_MICROS;
use crate::pbft::verify::Help;
use crate::types::{Digest, ReplicaId, Slot, Ticks, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is known of another replica.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    pub(super) status: Option<Status>,
    /// When its status was last answered.
    pub(super) answered_at: Ticks,
    /// The certified slots that it was sent.
    pub(super) sent: Sent,
    /// Bytes of its messages that are being checked.
    pub(super) bytes_in_check: usize,
    /// What it sent to help this replica on, and is being checked.
    pub(super) help_in_check: BTreeSet<Help>,
    /// Batches that it was sent because it asked: since when, and how many bytes.
    fetched: (Ticks, usize),
}

/// A batch that is needed and not here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Missing {
    digest: Digest,
    asked_at: Option<Ticks>,
    turn: u64,
}

/// What this replica has missed, and whom it asks for it.
#[derive(Clone, Debug)]
pub(super) struct CatchUp {
    pub(super) missing: BTreeMap<Slot, Missing>,
    /// When others were last told how far this replica is.
    pub(super) status_at: Ticks,
    /// When a whole state was last asked for, and who is asked next.
    pub(super) fetch_at: Ticks,
    fetch_turn: u64,
}

impl CatchUp {
    /// Nothing is missing. Of a state it would ask whose turn this is.
    pub(super) fn from_turn(fetch_turn: u64) -> Self {
        Self { missing: BTreeMap::new(), status_at: Ticks(0), fetch_at: Ticks(0), fetch_turn }
    }
}

/// Bytes of one peer's messages that are checked at a time, unless a single one is larger; more are dropped, they will come
/// again.
const IN_CHECK_BYTES_MAX: usize = 8 << 20;

/// Messages of one peer that did not hold, before it is distrusted.
const REJECTED_MAX: u64 = 100;

/// No group orders so many slots; whoever says so, lies.
const SLOT_PLAUSIBLE_MAX: u64 = u64::MAX / 4;

/// Bytes of batches in one answer.
const ANSWER_BYTES: usize = 1 << 20;

/// Bytes of batches that one peer may fetch in an interval: more than a window of them takes a few.
const FETCHED_BYTES_MAX: usize = 16 << 20;

/// Windows of slots that a replica takes in ahead of what it has executed, and so as many as it is sent at a time.
pub(super) const HELP_WINDOWS: u64 = 2;

/// What a certificate counts as in an answer, besides its batch.
const CERTIFICATE_BYTES: usize = 512;

/// What was sent counts as lost if so many statuses later nothing of it was taken in.
const RESEND_STATUSES: u64 = 5;

/// Slots in one answer. Certified ones are more, as many as whoever lags takes in: it asks some ten times a second, and a group
/// that orders faster than that would leave it behind for ever.
const ANSWER_SLOTS: usize = 64;

/// How far a peer will be that takes in what it was sent, and how far it was when it last came further.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    last: Slot,
    seen: Slot,
    at: Ticks,
}

impl Replica {
    /// Whether a message could tell this replica anything: only then its signatures are worth checking.
    pub(super) fn is_wanted(&self, from: ReplicaId, message: &Message) -> bool {
        // Whoever has sent much that did not hold gets little attention, but some: it may be honest by now.
        let is_distrusted = self.rejected.get(&from).is_some_and(|count| *count > REJECTED_MAX);
        let room = if is_distrusted { IN_CHECK_BYTES_MAX / 128 } else { IN_CHECK_BYTES_MAX };
        let peer = &self.peers[&from];
        // Help comes again and again while it is missed. A replica that is slow to check it would be buried in it.
        let is_in_check = Help::of(message).is_some_and(|help| peer.help_in_check.contains(&help));
        if peer.bytes_in_check >= room || is_in_check {
            return false;
        }
        match message {
            Message::PrePrepare { vote, batch } => {
                let state = self.slots.get(&vote.slot);
                let known = state.and_then(|state| state.accepted_in(self.view));
                let is_ours = self.is_active && vote.view == self.view && vote.signer == from;
                let is_in_window = self.config.is_in_window(self.stable_slot(), vote.slot);
                let is_news = known.is_none_or(|known| known.digest != vote.digest);
                is_ours && is_in_window && is_news && self.has_room_for(vote.slot, batch.len())
            }
            Message::Prepare(vote) => {
                let state = self.slots.get(&vote.slot);
                let known = state.and_then(|state| state.prepares.get(&from));
                let is_done =
                    self.rests(vote.slot) || state.is_some_and(|state| state.is_prepared_in(self.view));
                let is_enough =
                    state.is_some_and(|state| self.expects_enough(state, VoteKind::Prepare, vote));
                let is_news = known.map_or(!is_done && !is_enough, |known| known.digest != vote.digest);
                self.is_vote_in_reach(vote) && vote.signer == from && is_news
            }
            Message::Commit(vote) => {
                let state = self.slots.get(&vote.slot);
                let known = state.and_then(|state| state.commits.get(&from));
                let is_done =
                    vote.slot <= self.executed.slot || state.is_some_and(|state| state.committed.is_some());
                let is_enough = state.is_some_and(|state| self.expects_enough(state, VoteKind::Commit, vote));
                let is_news = known.map_or(!is_done && !is_enough, |known| known.digest != vote.digest);
                self.is_vote_in_reach(vote) && vote.signer == from && is_news
            }
            Message::Checkpoint(vote) => {
                let known = self.checkpoints.votes.get(&vote.slot).and_then(|votes| votes.get(&from));
                let is_news = known.is_none_or(|known| known.root != vote.root);
                vote.signer == from && self.is_checkpoint_in_reach(vote.slot) && is_news
            }
            Message::ViewChange(message) => {
                let known = self.view_changes.get(&message.signer);
                let is_news = known.is_none_or(|(known, _)| {
                    message.view > known.view || message.view == known.view && message.body != known.body
                });
                let is_open = message.view > self.view || message.view == self.view && !self.is_active;
                is_news && is_open && message.signer == from
            }
            Message::NewView(message) => {
                message.view > self.view || message.view == self.view && !self.is_active
            }
            Message::Certified { certificate, .. } => {
                let is_ahead = certificate.slot > self.executed.slot && self.is_within_help(certificate.slot);
                let known = self.slots.get(&certificate.slot);
                let is_news = match self.is_repairing {
                    true => known.is_none_or(|state| state.decided.is_none()),
                    false => known.is_none_or(|state| state.committed.is_none()),
                };
                is_ahead && is_news
            }
            Message::Stable(certificate) => certificate.slot > self.stable_slot(),
            Message::Body { slot, .. } => self.catch_up.missing.contains_key(slot),
            Message::Requests(bytes) => !self.custody.knows(bytes, &self.options),
            Message::Status(_) | Message::Fetch { .. } => false,
        }
    }

    /// Whether the votes that are here and those that are being checked will be a quorum, if they hold. More need not be
    /// checked: signatures are most of what agreement costs. Whoever once sent what did not hold, or contradicted
    /// itself, is not counted on; what was left out comes again when it is missed.
    fn expects_enough(&self, state: &SlotState, kind: VoteKind, vote: &Vote) -> bool {
        let digest = state.accepted_in(self.view).map_or(vote.digest, |accepted| accepted.digest);
        let (votes, in_check, needed) = match kind {
            VoteKind::Commit => (&state.commits, &state.commits_in_check, self.quorum()),
            _ => (&state.prepares, &state.prepares_in_check, self.quorum() - 1),
        };
        let is_doubtful = |from: &ReplicaId| {
            self.rejected.contains_key(from) || self.evidence.iter().any(|lie| lie.liar() == *from)
        };
        // This replica's own vote comes later: a PREPARE with its acceptance, a COMMIT when its certificate is durable.
        let votes_too = kind == VoteKind::Commit || self.primary() != self.me;
        let own = usize::from(votes_too && !votes.contains_key(&self.me));
        SlotState::expected(votes, in_check, digest, is_doubtful) + own >= needed
    }

    /// Notes whose vote is being checked.
    pub(super) fn note_in_check(&mut self, message: &Message) {
        let (vote, kind) = match message {
            Message::Prepare(vote) => (vote, VoteKind::Prepare),
            Message::Commit(vote) => (vote, VoteKind::Commit),
            _ => return,
        };
        let state = self.slots.entry(vote.slot).or_default();
        let in_check = match kind {
            VoteKind::Commit => &mut state.commits_in_check,
            _ => &mut state.prepares_in_check,
        };
        // Of two that contradict one another the first counts.
        in_check.entry(vote.signer).or_insert(vote.digest);
    }

    /// Says how far this replica is, asks for what is missing.
    pub(super) fn tick_catch_up(&mut self) {
        let interval = if self.misses_something() { 1 } else { 10 };
        if self.now.since(self.catch_up.status_at) >= interval * self.options.status_ticks {
            self.catch_up.status_at = self.now;
            self.log.hurry();
            let is_over = self.wall.0.saturating_sub(EXPIRY_SLACK_MICROS);
            self.custody.expire(self.executed.time.max(Timestamp(is_over)));
            let status = self.own_status();
            self.broadcast(&Message::Status(status), None);
            if !self.is_active {
                let own = self.view_changes.get(&self.me).map(|(message, _)| message.clone());
                let after = self.log.awaited();
                if let Some(message) = own {
                    self.broadcast(&Message::ViewChange(message), Some(after));
                }
            }
        }
        self.ask_for_batches();
        self.ask_for_state();
    }

    fn misses_something(&self) -> bool {
        let is_behind = |peer: &Peer| peer.status.is_some_and(|status| status.executed > self.executed.slot);
        let has_open = self.slots.range(self.executed.slot.next()..).next().is_some();
        !self.is_active
            || self.is_repairing
            || has_open
            || self.custody.len() > 0
            || self.peers.values().any(is_behind)
    }

    fn own_status(&self) -> Status {
        Status {
            view: self.view,
            is_active: self.is_active,
            stable: self.stable_slot(),
            // While it repairs its state, or cannot take more, what it could execute without help is not asked for.
            executed: if self.is_repairing || self.is_stalled {
                self.decided_prefix()
            } else {
                self.executed.slot
            },
            base: self.base.slot,
        }
    }

    /// Another replica says how far it is: what it misses and is here, is sent.
    pub(super) fn on_status(&mut self, from: ReplicaId, status: Status) {
        let highest = status.stable.max(status.executed).max(status.base);
        if highest.0 > SLOT_PLAUSIBLE_MAX || status.view.0 > SLOT_PLAUSIBLE_MAX {
            return;
        }
        let (now, pause) = (self.now, self.options.status_ticks / 2);
        let peer = self.peers.get_mut(&from).expect("every other replica is a peer");
        peer.status = Some(status);
        if peer.answered_at != Ticks(0) && now.since(peer.answered_at) < pause {
            return;
        }
        peer.answered_at = now;
        if status.executed < self.executed.slot {
            // Before it executes what it is sent: it should know that it is late.
            let own = self.own_status();
            self.send(from, &Message::Status(own));
        }
        let is_view_behind = status.view < self.view || status.view == self.view && !status.is_active;
        if is_view_behind
            && self.is_active
            && let Some(message) = self.new_view.clone()
        {
            self.send_when_durable(from, &Message::NewView(message));
        }
        if status.stable < self.stable_slot()
            && let Some(certificate) = self.checkpoints.stable.clone()
        {
            self.send(from, &Message::Stable(certificate));
        }
        if self.may_send_more(from, status.executed) {
            self.send_certified(from, status);
        }
        self.send_own_votes(from, status);
    }

    /// Whether the other has taken in what it was sent, or nothing of it for so long that it must be lost. It says how far it is more often
    /// than an answer takes over a slow link: answers without end would only stand in one another's way.
    fn may_send_more(&mut self, to: ReplicaId, executed: Slot) -> bool {
        let (now, lost) = (self.now, RESEND_STATUSES * self.options.status_ticks);
        let sent = &mut self.peers.get_mut(&to).expect("every other replica is a peer").sent;
        if executed != sent.seen {
            (sent.seen, sent.at) = (executed, now);
        }
        executed >= sent.last || now.since(sent.at) >= lost
    }

    fn send_certified(&mut self, to: ReplicaId, status: Status) {
        let decided = |(slot, state): (&Slot, &SlotState)| {
            let certificate = state.committed.clone()?;
            let batch = state.batch(certificate.digest)?;
            (*slot <= self.executed.slot).then_some((certificate, batch))
        };
        let slots = usize::try_from(HELP_WINDOWS * self.config.window.length).expect("a small window");
        let found: Vec<(CommitCertificate, Arc<Batch>)> =
            self.slots.range(status.executed.next()..).map_while(decided).take(slots).collect();
        let (mut bytes, now) = (0, self.now);
        for (certificate, batch) in found {
            bytes += batch.bytes().len() + CERTIFICATE_BYTES;
            let peer = self.peers.get_mut(&to).expect("every other replica is a peer");
            peer.sent = Sent { last: certificate.slot, seen: status.executed, at: now };
            self.send(to, &Message::Certified { certificate, batch: batch.bytes().clone() });
            if bytes >= ANSWER_BYTES {
                break;
            }
        }
    }

    /// This replica's own statements about slots that the other has not executed.
    fn send_own_votes(&mut self, to: ReplicaId, status: Status) {
        let own: Vec<Message> = self
            .checkpoints
            .own_votes
            .range(status.stable.next()..)
            .map(|(_, vote)| Message::Checkpoint(*vote))
            .collect();
        for message in own {
            self.send_when_durable(to, &message);
        }
        if status.view != self.view || !self.is_active {
            return;
        }
        let slots: Vec<Slot> =
            self.slots.range(status.executed.next()..).map(|(slot, _)| *slot).take(ANSWER_SLOTS).collect();
        let mut bytes = 0;
        for slot in slots {
            for message in self.own_votes(slot) {
                if let Message::PrePrepare { batch, .. } = &message {
                    bytes += batch.len();
                }
                self.send_when_durable(to, &message);
            }
            if bytes >= ANSWER_BYTES {
                break;
            }
        }
    }

    fn own_votes(&self, slot: Slot) -> Vec<Message> {
        let state = &self.slots[&slot];
        let mut messages = Vec::new();
        if let Some(vote) = state.accepted_in(self.view) {
            if vote.signer != self.me {
                messages.extend(state.prepares.get(&self.me).map(|own| Message::Prepare(*own)));
            } else if slot >= self.first_fresh {
                let batch = state.batch(vote.digest).map(|batch| batch.bytes().clone());
                messages.extend(batch.map(|batch| Message::PrePrepare { vote, batch }));
            }
        }
        messages.extend(state.own_commit.map(Message::Commit));
        messages
    }

    /// Sends what was said before, if it is durable by now; else when everything is.
    fn send_when_durable(&mut self, to: ReplicaId, message: &Message) {
        let bytes = crate::codec::encode(message);
        let after = self.log.gate(self.log.awaited());
        self.effect(Effect::Send { to, message: bytes, after });
    }

    /// A batch is needed that is not here.
    pub(super) fn want_batch(&mut self, slot: Slot, digest: Digest) {
        let wanted = Missing { digest, asked_at: None, turn: u64::from(self.me.0) };
        let entry = self.catch_up.missing.entry(slot).or_insert(wanted);
        if entry.digest != digest {
            *entry = wanted;
        }
        self.ask_for_batches();
    }

    fn ask_for_batches(&mut self) {
        let (now, pause) = (self.now, self.options.status_ticks);
        let peers: Vec<ReplicaId> = self.peers.keys().copied().collect();
        let mut asks = Vec::new();
        for (slot, missing) in self.catch_up.missing.iter_mut().take(ANSWER_SLOTS) {
            if missing.asked_at.is_none_or(|asked| now.since(asked) >= pause) {
                let turn = usize::try_from(missing.turn % peers.len() as u64).expect("few peers");
                asks.push((peers[turn], Message::Fetch { slot: *slot, digest: missing.digest }));
                missing.asked_at = Some(now);
                missing.turn += 1;
            }
        }
        for (to, message) in asks {
            self.send(to, &message);
        }
    }

    /// Another replica needs a batch.
    pub(super) fn on_fetch(&mut self, from: ReplicaId, slot: Slot, digest: Digest) {
        let (now, interval) = (self.now, self.options.status_ticks);
        let batch = self.slots.get(&slot).and_then(|state| state.batches.get(digest)).cloned();
        if let Some(batch) = batch {
            let peer = self.peers.get_mut(&from).expect("every other replica is a peer");
            if now.since(peer.fetched.0) >= interval {
                peer.fetched = (now, 0);
            }
            if peer.fetched.1 >= FETCHED_BYTES_MAX {
                return;
            }
            peer.fetched.1 += batch.bytes().len();
            self.send(from, &Message::Body { slot, batch: batch.bytes().clone() });
        }
    }

    /// A batch that may be the one that is missing; its digest says.
    pub(super) fn on_body(&mut self, slot: Slot, batch: Arc<Batch>) {
        if self.catch_up.missing.get(&slot).is_none_or(|missing| missing.digest != batch.digest()) {
            return;
        }
        self.catch_up.missing.remove(&slot);
        let (view, is_active) = (self.view, self.is_active);
        let state = self.slots.entry(slot).or_default();
        state.batches.insert(batch);
        let awaited = state.awaited.filter(|vote| is_active && vote.view == view);
        if let Some(vote) = awaited.filter(|vote| state.batches.contains(vote.digest)) {
            self.accept(vote);
        }
        self.execute();
    }

    /// A verified proof that a batch is decided.
    pub(super) fn on_certified(&mut self, certificate: CommitCertificate, batch: Arc<Batch>) {
        let slot = certificate.slot;
        if slot <= self.executed.slot {
            return;
        }
        let state = self.slots.entry(slot).or_default();
        let digest = certificate.digest;
        state.batches.insert(batch);
        state.committed.get_or_insert(certificate);
        self.decide(slot, digest);
    }

    /// The stable checkpoint is ahead and no log leads there: a state is fetched, from one replica after the other.
    fn ask_for_state(&mut self) {
        let pause = FETCH_STATUSES * self.options.status_ticks;
        let is_stuck = self.now.since(self.suspicion.progress_at) >= pause
            && self.now.since(self.catch_up.fetch_at) >= pause;
        let is_wanted = match self.is_repairing {
            true => self.base.slot > Slot::ZERO,
            // What it cannot take from the log it cannot take at once either.
            false => self.executed.slot < self.stable_slot() && !self.is_stalled,
        };
        if !is_wanted || !is_stuck {
            return;
        }
        let at_least = if self.is_repairing { self.base.slot } else { self.executed.slot.next() };
        self.catch_up.fetch_at = self.now;
        // Whoever had a stable checkpoint above this replica's state when it was last heard of. What it has by now may be
        // newer; asking only those known to have the newest would find none while the group moves on.
        let has_it = |peer: &Peer| peer.status.is_some_and(|status| status.stable >= at_least);
        let sources: Vec<ReplicaId> =
            self.peers.iter().filter(|(_, peer)| has_it(peer)).map(|(id, _)| *id).collect();
        if sources.is_empty() {
            return;
        }
        let turn = usize::try_from(self.catch_up.fetch_turn % sources.len() as u64).expect("few peers");
        self.catch_up.fetch_turn = self.catch_up.fetch_turn.wrapping_add(1);
        self.ask(Own::FetchState { from: sources[turn], at_least });
    }
}

/// So many status intervals without progress, and a state is fetched, or asked for elsewhere.
const FETCH_STATUSES: u64 = 10;
