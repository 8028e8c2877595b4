//! The normal case: PRE-PREPARE, PREPARE, COMMIT, and execution in order.
//!
//! Castro and Liskov, OSDI 1999, sections 4.2 and 4.3. Slots are agreed on in any order inside the window and executed in
//! order. Nothing is sent before its record is durable; this replica's own COMMIT counts, here too, only when the
//! certificate behind it is durable: else a crash could take one certificate from a quorum that was counted on.

use crate::mutation::mutated;
use crate::pbft::batch::{Batch, may_be_ordered};
use crate::pbft::catch_up::HELP_WINDOWS;
use crate::pbft::custody::Taken;
use crate::pbft::evidence::{Evidence, VoteKind};
use crate::pbft::face::{Own, SubmitRefusal};
use crate::pbft::message::{CommitCertificate, Message, PreparedCertificate, Vote};
use crate::pbft::record::Record;
use crate::pbft::replica::Replica;
use crate::pbft::request::Bundle;
use crate::pbft::sign::Statement;
use crate::pbft::slot::SlotState;
use crate::pbft::verify::Origin;
use crate::types::{Digest, PersistToken, Slot, Ticks, Timestamp, View};
use bytes::Bytes;
use std::sync::Arc;

impl Replica {
    /// A client's requests, or some that another replica passes on.
    pub(super) fn on_requests(&mut self, origin: Origin, bundle: Arc<Bundle>) {
        let is_passed_on = !matches!(origin, Origin::Client(_));
        let limit = Timestamp(self.wall.0.saturating_add(NOT_AFTER_MICROS_MAX));
        if self.executed.sealed {
            return self.refuse_behind_stop_sign(origin);
        }
        let is_too_far = bundle.requests().any(|request| request.not_after > limit);
        let is_too_large = !may_be_ordered(&bundle);
        let taken = if is_too_far || is_too_large {
            Taken::Full
        } else {
            self.custody.take(Arc::clone(&bundle), is_passed_on, &self.options)
        };
        if let Some(id) = origin.submission() {
            let result = match taken {
                Taken::New | Taken::Known => Ok(()),
                Taken::Full if is_too_far => Err(SubmitRefusal::Invalid(
                    "it would be valid for too long: the client's clock is ahead, or this one is behind",
                )),
                Taken::Full if is_too_large => Err(SubmitRefusal::Invalid("too large for one batch")),
                Taken::Full => Err(SubmitRefusal::Full),
            };
            self.ask(Own::Submitted { id, result });
            if taken == Taken::New && !self.is_active {
                // Whoever is in a view may order it meanwhile.
                self.broadcast(&Message::Requests(bundle.bytes().clone()), None);
            } else if taken == Taken::New && !self.is_primary() {
                self.send(self.primary(), &Message::Requests(bundle.bytes().clone()));
                self.custody.told(None);
            }
        }
    }

    /// Everything that arrived together was told: the primary proposes what has gathered.
    pub(super) fn on_turn_ended(&mut self, may_propose: bool) {
        if !may_propose {
            self.suspicion.pace.excuse(self.now);
        }
        while may_propose && self.may_propose() && self.custody.has_queued() {
            let bundles = self.custody.next_bundles(&self.options);
            let time = self.wall.max(self.executed.time);
            self.propose_batch(Batch::new(time, bundles));
        }
    }

    fn may_propose(&self) -> bool {
        let is_in_window = self.config.is_in_window(self.stable_slot(), self.next);
        let under_way = self.next.0.saturating_sub(1).saturating_sub(self.executed.slot.0);
        self.is_primary() && !self.executed.sealed && is_in_window && under_way < self.options.pipeline as u64
    }

    fn propose_batch(&mut self, batch: Batch) {
        assert!(self.is_primary(), "only the primary proposes");
        let (view, slot, digest) = (self.view, self.next, batch.digest());
        let signature = self.sign(Statement::PrePrepare(view, slot, digest));
        let vote = Vote { signer: self.me, view, slot, digest, signature };
        let state = self.slots.entry(slot).or_default();
        assert!(state.accepted_in(view).is_none(), "a slot is assigned once in a view");
        state.batches.insert(Arc::new(batch));
        self.next = slot.next();
        self.accept(vote);
    }

    /// A verified PRE-PREPARE, and when it came.
    pub(super) fn on_pre_prepare(&mut self, vote: Vote, batch: Arc<Batch>, came_at: Ticks) {
        let is_current = self.is_active && vote.view == self.view && vote.signer != self.me;
        if !is_current || !self.config.is_in_window(self.stable_slot(), vote.slot) {
            return;
        }
        let (view, wall, lag) = (self.view, self.wall.0, self.options.lag_micros);
        let ahead = wall.saturating_add(self.options.clock_micros);
        let state = self.slots.entry(vote.slot).or_default();
        let known = state.accepted_in(view).or(state.held.as_ref().map(|(vote, _)| *vote)).or(state.awaited);
        if let Some(known) = known {
            if known.digest != vote.digest {
                self.convict(Evidence::Votes { kind: VoteKind::PrePrepare, one: known, other: vote });
            }
            return;
        }
        // Slots that a NEW-VIEW gave are not the primary's to fill.
        if vote.slot < self.first_fresh {
            return;
        }
        if !self.has_room_for(vote.slot, batch.bytes().len()) {
            return;
        }
        let state = self.slots.entry(vote.slot).or_default();
        if batch.time().is_some_and(|time| time.0 > ahead) {
            state.held = Some((vote, batch));
            return;
        }
        let is_old = batch.time().is_some_and(|time| time.0.saturating_add(lag) < wall);
        let is_stale = is_old && self.now >= self.suspicion.judges_time_from;
        (state.is_fresh, state.is_stale) = (true, is_stale);
        state.times.proposed_at = came_at;
        state.batches.insert(batch);
        self.accept(vote);
    }

    /// Whether a proposal of so many bytes may be accepted: a window of large batches, in one view after the other, would be more
    /// than a replica can keep, and it may drop none of them before its slot is decided. The next slot is always filled: what is
    /// decided makes room.
    pub(super) fn has_room_for(&self, slot: Slot, bytes: usize) -> bool {
        let next = self.executed.slot.next();
        if slot == next || mutated!(self.options, KeepEveryProposal) {
            return true;
        }
        if !self.is_near(slot) {
            return false;
        }
        let open = self.slots.range(next..).map(|(_, state)| state.open_bytes(self.view));
        let (of_view, all) = open.fold((0, 0), |sum, more| (sum.0 + more.0, sum.1 + more.1));
        of_view + bytes <= self.options.open_bytes && all + bytes <= 4 * self.options.open_bytes
    }

    /// Proposals whose time has come.
    pub(super) fn release_held(&mut self) {
        let ahead = self.wall.0.saturating_add(self.options.clock_micros);
        let is_due = |state: &SlotState| {
            let time = state.held.as_ref().and_then(|(_, batch)| batch.time());
            time.is_some_and(|time| time.0 <= ahead)
        };
        let due: Vec<Slot> = self
            .slots
            .range(self.executed.slot.next()..)
            .filter(|(_, state)| is_due(state))
            .map(|(slot, _)| *slot)
            .collect();
        for slot in due {
            let held = self.slots.get_mut(&slot).and_then(|state| state.held.take());
            if let Some((vote, batch)) = held {
                self.on_pre_prepare(vote, batch, self.now);
            }
        }
    }

    /// Accepts a batch that is here: writes it down, then says so.
    pub(super) fn accept(&mut self, vote: Vote) {
        let state = self.slots.get_mut(&vote.slot).expect("who accepts has put the batch there");
        assert!(state.accepted.is_none_or(|known| known.view < vote.view), "one batch for a slot in a view");
        let batch = state.batch(vote.digest).expect("a batch is accepted only when it is here");
        let is_again = vote.slot < self.first_fresh;
        state.accept(vote);
        state.awaited = None;
        state.times.backed_at = None;
        let token = self.record_accepted(vote);
        // A slot that was executed before answers nobody any more: whoever asks again needs another.
        if vote.slot > self.executed.slot {
            self.custody.proposed(batch.names());
        }
        if vote.signer == self.me {
            // What a NEW-VIEW proposes again is in that message.
            if !is_again {
                let batch = batch.bytes().clone();
                self.broadcast(&Message::PrePrepare { vote, batch }, Some(token));
            }
        } else {
            let own = self.sign_prepare(&vote);
            self.slots.entry(vote.slot).or_default().prepares.insert(self.me, own);
            let gate = (!mutated!(self.options, PrepareUndurable)).then_some(token);
            self.broadcast(&Message::Prepare(own), gate);
        }
        self.try_prepare(vote.slot);
    }

    /// Writes an acceptance down, with the batch if the log does not hold it yet.
    pub(super) fn record_accepted(&mut self, vote: Vote) -> PersistToken {
        let batch = self.unrecorded(vote.slot, vote.digest);
        self.record(&Record::Accepted { vote, batch })
    }

    /// Writes down what is decided; nobody waits for it but this replica's next CHECKPOINT.
    pub(super) fn record_decided(&mut self, slot: Slot, digest: Digest) {
        let batch = self.unrecorded(slot, digest);
        let certificate = self.slots.get(&slot).and_then(|state| state.committed.clone());
        self.record(&Record::Decided { slot, digest, batch, certificate });
    }

    /// The bytes of a batch that the log does not hold yet and will from now on.
    fn unrecorded(&mut self, slot: Slot, digest: Digest) -> Option<Bytes> {
        let state = self.slots.get_mut(&slot).expect("the caller holds the slot");
        let is_news = state.batches.note_recorded(digest);
        state.batches.get(digest).filter(|_| is_news).map(|batch| batch.bytes().clone())
    }

    pub(super) fn sign_prepare(&self, vote: &Vote) -> Vote {
        let signature = self.sign(vote.as_prepare());
        Vote { signer: self.me, signature, ..*vote }
    }

    pub(super) fn sign_commit(&self, view: View, slot: Slot, digest: Digest) -> Vote {
        let signature = self.sign(Statement::Commit(view, slot, digest));
        Vote { signer: self.me, view, slot, digest, signature }
    }

    /// A verified PREPARE of a backup.
    pub(super) fn on_prepare(&mut self, vote: Vote) {
        if !self.is_vote_in_reach(&vote) || self.rests(vote.slot) {
            return;
        }
        let state = self.slots.entry(vote.slot).or_default();
        let known = *state.prepares.entry(vote.signer).or_insert(vote);
        if known.digest != vote.digest {
            self.convict(Evidence::Votes { kind: VoteKind::Prepare, one: known, other: vote });
        }
        self.try_prepare(vote.slot);
    }

    /// Votes of this view are kept, also before it begins here; votes of others never.
    pub(super) fn is_vote_in_reach(&self, vote: &Vote) -> bool {
        let reach = self.stable_slot().0 + 2 * self.config.window.length;
        let is_near = self.is_near(vote.slot) && vote.slot.0 <= reach;
        vote.view == self.view && vote.slot > self.base.slot && is_near
    }

    /// Whether this replica may come to execute the slot soon enough to keep what is said of it. The others' checkpoints move the window
    /// on; a replica whose disk takes nothing, so that it executes nothing, must not gather all that they do meanwhile. It is helped on
    /// later. One that repairs its state goes back to where its log begins, and votes on all the same.
    pub(super) fn is_near(&self, slot: Slot) -> bool {
        let is_bounded = !self.is_repairing && !mutated!(self.options, KeepEveryProposal);
        !is_bounded || self.is_within_help(slot)
    }

    /// Whether whoever helps this replica on may be asked for this slot: it takes in two windows.
    pub(super) fn is_within_help(&self, slot: Slot) -> bool {
        slot.0 <= self.executed.slot.0 + HELP_WINDOWS * self.config.window.length
    }

    /// PRE-PREPARE and PREPAREs of a quorum less one: the batch is prepared, and that becomes durable before anyone hears.
    fn try_prepare(&mut self, slot: Slot) {
        let (view, needed) = (self.view, self.quorum() - 1);
        let Some(state) = self.slots.get_mut(&slot) else { return };
        let Some(vote) = state.accepted_in(view).filter(|_| self.is_active) else { return };
        if state.is_prepared_in(view) {
            return;
        }
        let Some(prepares) = SlotState::signatures(&state.prepares, vote.digest, needed) else { return };
        let certificate =
            PreparedCertificate { view, slot, digest: vote.digest, proposal: vote.signature, prepares };
        assert!(
            state.prepared.as_ref().is_none_or(|known| known.view < view),
            "certificates are of ever higher views"
        );
        state.prepared = Some(certificate.clone());
        // Nothing is decided before so many honest ones have come as far as this that one more than may lie blame the primary.
        if state.is_stale && self.others_were_first(slot) {
            self.slots.entry(slot).or_default().is_stale = false;
        }
        let token = self.record(&Record::Prepared(certificate));
        let own = self.sign_commit(view, slot, vote.digest);
        self.slots.entry(slot).or_default().own_commit = Some(own);
        if mutated!(self.options, CommitBeforeBarrier) {
            self.broadcast(&Message::Commit(own), None);
            return self.count_own_commit(own);
        }
        self.broadcast(&Message::Commit(own), Some(token));
        self.own_commits.push_back((token, own));
    }

    /// The certificate behind this replica's own COMMIT is durable: now it counts.
    pub(super) fn count_own_commit(&mut self, vote: Vote) {
        if vote.view == self.view && self.is_active && vote.slot > self.base.slot {
            self.slots.entry(vote.slot).or_default().commits.insert(self.me, vote);
            self.try_commit(vote.slot);
        }
    }

    /// A verified COMMIT.
    pub(super) fn on_commit(&mut self, vote: Vote) {
        if !self.is_vote_in_reach(&vote) || self.rests(vote.slot) {
            return;
        }
        let state = self.slots.entry(vote.slot).or_default();
        let known = *state.commits.entry(vote.signer).or_insert(vote);
        if known.digest != vote.digest {
            self.convict(Evidence::Votes { kind: VoteKind::Commit, one: known, other: vote });
        }
        self.try_commit(vote.slot);
    }

    /// COMMITs of a quorum decide, whether or not this replica was prepared itself.
    fn try_commit(&mut self, slot: Slot) {
        let (view, needed, primary) = (self.view, self.quorum(), self.primary());
        let Some(state) = self.slots.get_mut(&slot).filter(|state| state.committed.is_none()) else { return };
        state.note_backed(primary, needed - 1, self.now);
        let digests: Vec<Digest> = state.commits.values().map(|vote| vote.digest).collect();
        let decided = digests.into_iter().find_map(|digest| {
            SlotState::signatures(&state.commits, digest, needed).map(|commits| (digest, commits))
        });
        if let Some((digest, commits)) = decided {
            state.committed = Some(CommitCertificate { view, slot, digest, commits });
            self.decide(slot, digest);
        }
    }

    /// There is proof that this batch is decided.
    pub(super) fn decide(&mut self, slot: Slot, digest: Digest) {
        let state = self.slots.entry(slot).or_default();
        if state.decided.is_some_and(|known| known != digest) {
            let reason =
                format!("two batches were decided for slot {slot}: more replicas lie than are survived");
            return self.fail(reason);
        }
        if state.decided.replace(digest).is_none() {
            state.times.decided_at = self.now;
            state.settle();
        }
        if self.is_repairing || self.is_stalled {
            self.note_decided(slot, digest);
        }
        self.execute();
    }

    /// While nothing is executed, requests are done with when they are decided, and missing batches are wanted all the same.
    fn note_decided(&mut self, slot: Slot, digest: Digest) {
        match self.slots.get(&slot).and_then(|state| state.batch(digest)) {
            Some(batch) => batch.bundles().iter().for_each(|bundle| _ = self.custody.executed(bundle)),
            None => self.want_batch(slot, digest),
        }
    }

    /// Executes what is decided, in order, as far as the batches are here.
    pub(super) fn execute(&mut self) {
        while !self.is_repairing
            && !self.is_stalled
            && (!self.executed.sealed || mutated!(self.options, ExecuteBehindStopSign))
        {
            let slot = self.executed.slot.next();
            let Some(state) = self.slots.get_mut(&slot) else { return };
            let Some(digest) = state.decided else { return };
            let Some(batch) = state.batch(digest) else { return self.want_batch(slot, digest) };
            let (is_fresh, is_stale) = (state.is_fresh, state.is_stale && state.is_prepared_in(self.view));
            let (decided_at, times) = (state.times.decided_at, state.fresh_times());
            let next_epoch = batch.ends_epoch();
            self.executed = batch.ends(self.executed);
            assert!(self.executed.slot == slot, "slots are executed in order");
            state.end = Some(self.executed);
            self.record_decided(slot, digest);
            self.hand_out(self.executed, &batch);
            let told_at: Vec<Ticks> =
                batch.bundles().iter().filter_map(|bundle| self.custody.executed(bundle)).collect();
            self.suspicion.pace.decided(decided_at);
            if let Some(times) = times {
                self.suspicion.pace.executed(times, &told_at);
            }
            self.catch_up.missing.remove(&slot);
            self.note_progress(is_fresh, is_stale);
            if self.is_checkpoint(slot) {
                self.ask(Own::Checkpoint { slot });
            }
            if let Some(next) = next_epoch {
                self.end_epoch(slot, next);
            }
        }
    }
}

/// A request may be valid for so long at most, in microseconds; less than a session is remembered.
pub const NOT_AFTER_MICROS_MAX: u64 = 300 * 1_000_000;
