//! One replica: what it holds, and the dispatch of events.
//!
//! The rules live beside this file, one concern each: [`super::agreement`] (three phases and execution),
//! [`super::checkpoint`], [`super::view_change`], [`super::suspicion`] (timers), [`super::catch_up`] (what was missed).
//! After every event the named checks of [`super::invariants`] run.

use crate::codec;
use crate::engine::{Decided, Engine, EngineStatus, Event, Proposal, Reached};
use crate::pbft::catch_up::{CatchUp, Peer};
use crate::pbft::checkpoint::Checkpoints;
use crate::pbft::config::{Config, Options};
use crate::pbft::custody::Custody;
use crate::pbft::evidence::Evidence;
use crate::pbft::face::{Effect, Own};
use crate::pbft::invariants;
use crate::pbft::message::{Message, NewView, StableCertificate, ViewChange, ViewChangeBody, Vote};
use crate::pbft::record::{Record, RecoverError, Recovered, VoteLog};
use crate::pbft::sign::{Signature, Signer, Statement};
use crate::pbft::slot::SlotState;
use crate::pbft::suspicion::Suspicion;
use crate::pbft::verify::{Help, Unverified};
use crate::types::{LogBase, PersistToken, ReplicaId, Slot, Ticks, Timestamp, View};
use bytes::Bytes;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};

/// A PBFT replica of one group. Drive it through [`Engine`].
#[derive(Clone, Debug)]
pub struct Replica {
    pub(super) me: ReplicaId,
    pub(super) config: Config,
    pub(super) options: Options,
    pub(super) signer: Signer,
    pub(super) now: Ticks,
    pub(super) wall: Timestamp,
    /// The highest view that this replica helps, and whether it has begun here.
    pub(super) view: View,
    pub(super) is_active: bool,
    /// What began the view, to be shown to those who missed it.
    pub(super) new_view: Option<NewView>,
    /// The first slot that the primary of this view proposes freely.
    pub(super) first_fresh: Slot,
    /// The slot for the primary's next batch.
    pub(super) next: Slot,
    /// Slots up to here are dropped.
    pub(super) base: LogBase,
    pub(super) slots: BTreeMap<Slot, SlotState>,
    pub(super) executed: LogBase,
    pub(super) checkpoints: Checkpoints,
    /// Whether the state is not to be believed, and another is being put in its place ([`super::repair`]).
    pub(super) is_repairing: bool,
    /// Whether the state machine can take no more for now.
    pub(super) is_stalled: bool,
    /// For each replica its view change of the highest view.
    pub(super) view_changes: BTreeMap<ReplicaId, (ViewChange, ViewChangeBody)>,
    pub(super) suspicion: Suspicion,
    pub(super) custody: Custody,
    pub(super) peers: BTreeMap<ReplicaId, Peer>,
    /// Bytes of clients' bundles that are being checked.
    pub(super) client_bytes_in_check: usize,
    pub(super) catch_up: CatchUp,
    pub(super) log: VoteLog,
    /// Own COMMITs that count as soon as their records are durable.
    pub(super) own_commits: VecDeque<(PersistToken, Vote)>,
    pub(super) evidence: Vec<Evidence>,
    pub(super) rejected: BTreeMap<ReplicaId, u64>,
    /// Signatures that were made and checked in this life.
    signed: Cell<u64>,
    pub(super) checked: u64,
    is_halted: bool,
    /// Whom the caller was told to be primary.
    announced: Option<ReplicaId>,
    effects: Vec<Effect>,
}

impl Replica {
    /// Builds a replica from what its disk holds: its vote log in order, and where the durable state of its state machine
    /// ends. For a first start both are empty. A state that ends before the log begins, or is none at all, was lost: it is
    /// repaired from the other replicas.
    pub fn recover<R: AsRef<[u8]>>(
        config: Config,
        options: Options,
        signer: Signer,
        records: impl IntoIterator<Item = R>,
        applied: Option<LogBase>,
    ) -> Result<Self, RecoverError> {
        let me = signer.me();
        assert!(config.contains(me), "a replica belongs to its group");
        let found = Recovered::replay(records)?;
        let base = found.base;
        let whole = applied.filter(|applied| applied.slot >= base.slot);
        let mut replica = Self::new(config, options, signer, whole.unwrap_or(base));
        replica.is_repairing = whole.is_none();
        replica.restore(found);
        if replica.is_repairing {
            let reason = match applied {
                Some(applied) => {
                    format!("the state ends with slot {}, the log begins behind {}", applied.slot, base.slot)
                }
                None => "the state cannot be read".to_string(),
            };
            replica.ask(Own::StateLost { reason, base: base.slot });
        }
        invariants::check(&replica);
        Ok(replica)
    }

    fn new(config: Config, options: Options, signer: Signer, applied: LogBase) -> Self {
        let me = signer.me();
        let fetch_turn = u64::from(me.0).wrapping_add(options.seed);
        let peers = config.replicas().filter(|peer| *peer != me).map(|peer| (peer, Peer::default()));
        Self {
            me,
            config,
            options,
            signer,
            now: Ticks(0),
            wall: Timestamp(0),
            view: View(0),
            is_active: true,
            new_view: None,
            first_fresh: Slot(1),
            next: Slot(1),
            base: LogBase::default(),
            slots: BTreeMap::new(),
            executed: applied,
            checkpoints: Checkpoints::default(),
            is_repairing: false,
            is_stalled: false,
            view_changes: BTreeMap::new(),
            suspicion: Suspicion::default(),
            custody: Custody::default(),
            peers: peers.collect(),
            client_bytes_in_check: 0,
            catch_up: CatchUp::from_turn(fetch_turn),
            log: VoteLog::default(),
            own_commits: VecDeque::new(),
            evidence: Vec::new(),
            rejected: BTreeMap::new(),
            signed: Cell::new(0),
            checked: 0,
            is_halted: false,
            announced: None,
            effects: Vec::new(),
        }
    }

    /// The last stable checkpoint; slot 0 at the start of the epoch.
    #[must_use]
    pub fn stable_slot(&self) -> Slot {
        self.checkpoints.stable.as_ref().map_or(Slot::ZERO, |stable| stable.slot)
    }

    /// The certificate of this checkpoint, if it is one of the last few stable ones.
    pub(super) fn stable_at(&self, slot: Slot) -> Option<&StableCertificate> {
        self.checkpoints.stable.iter().chain(&self.checkpoints.recent).find(|stable| stable.slot == slot)
    }

    /// The certificate of the last stable checkpoint.
    #[must_use]
    pub fn stable(&self) -> Option<&StableCertificate> {
        self.checkpoints.stable.as_ref()
    }

    /// The view, and whether it has begun here.
    #[must_use]
    pub fn view(&self) -> (View, bool) {
        (self.view, self.is_active)
    }

    /// The last slot that was executed.
    #[must_use]
    pub fn executed(&self) -> Slot {
        self.executed.slot
    }

    /// Proofs of lies that were found.
    #[must_use]
    pub fn evidence(&self) -> &[Evidence] {
        &self.evidence
    }

    /// This replica's index.
    #[must_use]
    pub fn id(&self) -> ReplicaId {
        self.me
    }

    /// Whether this replica proposes.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.is_active && self.config.primary(self.view) == self.me
    }

    pub(super) fn primary(&self) -> ReplicaId {
        self.config.primary(self.view)
    }

    pub(super) fn quorum(&self) -> usize {
        self.config.quorum_size(self.options.mutation)
    }

    pub(super) fn sign(&self, statement: Statement) -> Signature {
        self.signed.set(self.signed.get() + 1);
        self.signer.sign(statement)
    }

    pub(super) fn record(&mut self, record: &Record) -> PersistToken {
        self.log.record(record)
    }

    /// Sends a message that rests on nothing that is not durable.
    pub(super) fn send(&mut self, to: ReplicaId, message: &Message) {
        self.send_encoded(to, codec::encode(message), None);
    }

    /// Sends a message to every other replica when the record with this token is durable.
    pub(super) fn broadcast(&mut self, message: &Message, after: Option<PersistToken>) {
        let bytes = codec::encode(message);
        let others: Vec<ReplicaId> = self.peers.keys().copied().collect();
        for to in others {
            self.send_encoded(to, bytes.clone(), after);
        }
    }

    fn send_encoded(&mut self, to: ReplicaId, message: Bytes, after: Option<PersistToken>) {
        assert!(to != self.me && self.config.contains(to), "messages go to other replicas of the group");
        let after = after.and_then(|token| self.log.gate(token));
        self.effects.push(Effect::Send { to, message, after });
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Asks the caller for something that only this order wants.
    pub(super) fn ask(&mut self, own: Own) {
        self.effects.push(Effect::Own(own));
    }

    /// Does it, and checks what must always hold; a replica that has stopped does nothing.
    pub(super) fn unless_halted(&mut self, act: impl FnOnce(&mut Self)) {
        if !self.is_halted {
            act(self);
            invariants::check(self);
        }
    }

    pub(super) fn signatures_made(&self) -> u64 {
        self.signed.get()
    }

    /// Remembers a lie: so many for each liar, and one that is large.
    pub(super) fn convict(&mut self, evidence: Evidence) {
        const EVIDENCE_MAX: usize = 64;
        let is_large = |evidence: &Evidence| matches!(evidence, Evidence::ViewChanges { .. });
        let of_liar = self.evidence.iter().filter(|known| known.liar() == evidence.liar());
        let (count, large) =
            of_liar.fold((0, false), |(count, large), known| (count + 1, large || is_large(known)));
        let is_enough = count >= EVIDENCE_MAX / 4 || large && is_large(&evidence);
        if self.evidence.len() < EVIDENCE_MAX && !is_enough && !self.evidence.contains(&evidence) {
            self.record(&Record::Evidence(evidence.clone()));
            self.evidence.push(evidence);
        }
    }

    /// Stops for ever: going on could break a promise.
    pub(super) fn fail(&mut self, reason: String) {
        self.is_halted = true;
        self.effects.push(Effect::Fatal { reason });
    }

    fn on_receive(&mut self, from: ReplicaId, bytes: &[u8]) {
        if !self.config.contains(from) || from == self.me {
            return;
        }
        let Ok(message) = codec::decode::<Message>(bytes) else {
            *self.rejected.entry(from).or_default() += 1;
            return;
        };
        match message {
            Message::Status(status) => self.on_status(from, status),
            Message::Fetch { slot, digest } => self.on_fetch(from, slot, digest),
            message if self.is_wanted(from, &message) => {
                let peer = self.peers.get_mut(&from).expect("every other replica is a peer");
                peer.bytes_in_check += bytes.len();
                peer.help_in_check.extend(Help::of(&message));
                self.note_in_check(&message);
                let unverified = Unverified::message(from, self.now, message, bytes.len());
                self.ask(Own::Verify(Box::new(unverified)));
            }
            _ => {}
        }
    }

    fn on_persisted(&mut self, token: PersistToken) {
        self.log.persisted(token);
        while let Some((_, vote)) = self.own_commits.front().copied().filter(|(own, _)| *own <= token) {
            self.own_commits.pop_front();
            self.count_own_commit(vote);
        }
    }

    fn decided_status(&self) -> Slot {
        let decided = self.slots.iter().rev().find(|(_, state)| state.decided.is_some());
        decided.map_or(self.executed.slot, |(slot, _)| (*slot).max(self.executed.slot))
    }
}

impl Engine for Replica {
    type Own = Own;

    fn step(&mut self, event: Event) {
        self.unless_halted(|replica| match event {
            Event::Tick { now, wall } => replica.on_tick(now, wall),
            Event::Receive { from, message } => replica.on_receive(from, &message),
            Event::Persisted { token } => replica.on_persisted(token),
            Event::SnapshotInstalled { base } => replica.on_installed(base),
            Event::Compact { slot, retain } => replica.on_compact(slot, retain),
            Event::Trim { slot, retain } => replica.on_trim(slot, retain),
        });
    }

    fn take_effects(&mut self) -> Vec<Effect> {
        let mut effects = Vec::with_capacity(self.effects.len() + 2);
        let leader = self.is_active.then(|| self.primary());
        if leader != self.announced {
            self.announced = leader;
            self.effects.push(Effect::LeaderChanged { leader });
        }
        if let Some((records, token, promises, is_whole)) = self.log.take() {
            effects.push(Effect::Persist { records, token, promises, is_whole });
        }
        effects.append(&mut self.effects);
        effects
    }

    fn status(&self) -> EngineStatus {
        let state = if self.is_active { "" } else { " (not begun)" };
        let last = self.slots.last_key_value().map_or(self.executed.slot, |(slot, _)| *slot);
        EngineStatus {
            leader: self.is_active.then(|| self.primary()),
            is_leader: self.is_primary(),
            ballot: format!("{}{state}", self.view),
            decided: self.decided_status(),
            last: last.max(self.executed.slot),
            base: self.base.slot,
            undecided: self.undecided(),
            log_bytes: self.log_bytes(),
        }
    }

    fn is_leader(&self) -> bool {
        self.is_primary()
    }

    /// What it says that it has executed. Whoever lies about that gets more of the log kept for a while, within its bound.
    fn reached(&self, replica: ReplicaId) -> Option<Reached> {
        let peer = self.peers.get(&replica)?;
        Some(Reached { slot: peer.status?.executed, heard_at: peer.answered_at })
    }

    fn log_bytes(&self) -> usize {
        self.slots.values().map(SlotState::bytes).sum()
    }
}

impl Replica {
    /// Turns a decided slot into what the state machine sees.
    pub(super) fn hand_out(&mut self, base: LogBase, batch: &crate::pbft::batch::Batch) {
        let is_null = batch.bytes().is_empty();
        let proposal = (!is_null).then(|| Proposal::Batch(batch.bytes().clone()));
        self.effects.push(Effect::Apply(Decided { base, proposal }));
    }
}
