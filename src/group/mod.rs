//! One replica of one group on this node: an engine that orders, a state machine that applies, and what ties them.
//!
//! A group is told what happened and answers with [`Output`]s; what must become durable it hands to the node, which
//! gathers it from all its groups into one commit. It reads applied state from the store directly.
//!
//! Invariants:
//! * an engine's message leaves only when the record it rests on is durable ([`driver`]);
//! * a command is answered only after it was applied here, a linearizable read only after its read index was;
//! * the log is dropped only below what the tree durably holds;
//! * replicas whose digests differ at one slot stop.
//!
//! What it does not know: connections, clients, other groups, which keys other groups own.

mod byzantine;
mod chaos;
mod digests;
mod driver;
mod install;
mod message;
mod outcomes;
mod pressure;
mod repair;
mod requests;
mod retain;
mod scrub;
mod snapshot;
mod source;
mod state;

pub use byzantine::Byzantine;
pub use driver::Records;
pub use outcomes::Outcomes;
pub use requests::Ticket;

use crate::error::StorageError;
use crate::kv::{self, Batch, Command, Found, Machine, Operation, Parts, Record, Reply};
use crate::limits::{BATCHES_IN_FLIGHT_MAX, CHECKPOINT_MILLIS, Limits, PEER_FRAME_BYTES_MAX};
use crate::ring::{GroupId, NodeId, QuorumRule, Tenure, TenureId};
use crate::shares::Account;
use crate::storage::{CommitId, StateWrite, Storage, keys};
use bytes::Bytes;
use driver::Driver;
use install::Install;
use message::GroupMessage;
use requests::Requests;
use retain::Pins;
use snapshot::Transfer;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tetrachord_consensus::paxos::{RecoverError, Replica};
use tetrachord_consensus::pbft::{self, Unverified};
use tetrachord_consensus::{
    Decided, Digest, Effect, Engine, EngineStatus, Epoch, Event, GroupConfig, LogBase, Options, Proposal,
    QuorumError, Quorums, ReplicaId, Slot, Ticks, Timestamp,
};
use thiserror::Error;

/// What the node must do for a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a message to a replica of this group.
    Send {
        /// Its node.
        to: NodeId,
        /// Whether it is part of a bulk transfer, which must not hold up anything else.
        is_bulk: bool,
        /// The message.
        body: Bytes,
    },
    /// Answer a request.
    Answer {
        /// The request.
        ticket: Ticket,
        /// Its outcome.
        outcome: Outcome,
    },
    /// Check this away from the event loop, and give the result to [`Group::verified`].
    Verify(Box<Unverified>),
    /// Byzantine mode: tell a client what its requests in one slot came to.
    Outcomes(Outcomes),
    /// Byzantine mode: the tree of the node cannot be read; it needs a new one ([`Group::tree_lost`]).
    RebuildTree {
        /// What was found.
        reason: String,
    },
    /// Stop the node: going on could break a promise.
    Fatal {
        /// What was found.
        reason: String,
    },
}

/// What became of a request in this group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command was applied, or refused by the state machine.
    Applied {
        /// What it answered.
        reply: Reply,
        /// In which slot.
        slot: u64,
    },
    /// The key's value.
    Value {
        /// Value and version, if the key exists.
        found: Option<Record>,
        /// The slot whose state was read.
        slot: u64,
        /// What the answer promises.
        freshness: Freshness,
    },
    /// The key belongs to another group.
    WrongGroup,
    /// This replica does not lead; it did nothing.
    NotLeader,
    /// Too much waits; it did nothing.
    Busy,
    /// The command was proposed, then the leadership was lost. It may be applied or not.
    LeadershipLost,
    /// This replica has not applied enough for what was asked.
    Behind,
    /// Byzantine mode: signed requests are kept until they are ordered; the outcome comes by itself.
    Kept,
    /// Byzantine mode: signed requests cannot be ordered, now or later.
    Invalid(&'static str),
}

/// What a read's answer promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It saw everything acknowledged before the read began.
    Linearizable,
    /// It saw everything up to the slot that was asked for.
    AtLeast(u64),
}

/// Why a group cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The store failed or is damaged.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The write-ahead records make no sense.
    #[error("group {group}: {source}. This node must not vote; restore it as a new node")]
    Recover {
        /// The group.
        group: GroupId,
        /// What is wrong.
        source: RecoverError,
    },
    /// The records of the vote log make no sense.
    #[error("group {group}: {source}. This node must not vote; restore it as a new node")]
    RecoverVotes {
        /// The group.
        group: GroupId,
        /// What is wrong.
        source: pbft::RecoverError,
    },
    /// A key is malformed or weak.
    #[error("group {group}: a signing key in the genesis record is {source}")]
    Key {
        /// The group.
        group: GroupId,
        /// What is wrong.
        source: pbft::sign::KeyError,
    },
    /// The group survives liars, and this node was told nothing of signing; or the other way round.
    #[error("group {0}: its members are to survive other faults than those that this node is set up for")]
    Mode(GroupId),
    /// The node has not got the key that its replica votes with.
    #[error(
        "{0}: this node has no key to vote with: put the one that the genesis record names into the folder that keys_dir in its node file names"
    )]
    NoKey(TenureId),
    /// The group's size is impossible.
    #[error("group {group}: {source}")]
    Quorum {
        /// The group.
        group: GroupId,
        /// Why.
        source: QuorumError,
    },
}

/// How a node runs its replica of a group.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Sizes of keys and values.
    pub limits: Limits,
    /// The engine's timers.
    pub options: Options,
    /// See [`crate::limits::OVERLAY_BYTES_MAX`].
    pub overlay_bytes_max: usize,
    /// Entry bytes that are kept for lagging replicas.
    pub retain_bytes: usize,
    /// Entry bytes that are kept besides for those that are there and lag. See [`crate::limits::PINNED_BYTES`].
    pub pinned_bytes: usize,
    /// In Byzantine mode: keys, and how patient replicas are.
    pub byzantine: Option<Byzantine>,
}

impl Settings {
    /// What the state machine holds clients to.
    fn rules(&self) -> kv::Rules {
        let mutation = self.options.mutation;
        let (ignores_shares, forgets_cancels) = (mutation.ignores_shares(), mutation.forgets_cancels());
        kv::Rules { limits: self.limits, ignores_shares, forgets_cancels }
    }
}

/// What a write to the tree was for, so that its completion is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Checkpoint { slot: u64 },
    Gathered { from: NodeId, transfer: u64, index: u64 },
    Installing,
    Rebuilt,
}

/// One replica of one group.
pub struct Group {
    rules: kv::Rules,
    overlay_bytes_max: usize,
    retain_bytes: usize,
    /// The latest durable commit that the engine has not been told of, because too much waits for the tree.
    held_back: Option<CommitId>,
    /// Since when the group waits for this leader's tree.
    stuck_since: Option<Ticks>,
    engine: Box<dyn Engine + Send>,
    driver: Driver,
    machine: Machine,
    requests: Requests,
    in_flight: usize,
    proposed: VecDeque<Slot>,
    /// Something that this replica proposed since it leads is applied, and so is all that was decided before.
    is_current: bool,
    leader: Option<ReplicaId>,
    now: Ticks,
    wall: Timestamp,
    checkpoint_at: Ticks,
    durable_slot: u64,
    /// What the log was last dropped up to, or where this life began.
    compacted_slot: u64,
    /// What should be durable in the tree before the log is rewritten.
    wanted_slot: u64,
    writes: VecDeque<(Vec<StateWrite>, Option<Purpose>)>,
    written: VecDeque<(CommitId, Purpose)>,
    transfer: Option<Transfer>,
    snapshots_wanted: VecDeque<ReplicaId>,
    transfers: u64,
    install: Option<Install>,
    /// The latest snapshot that was begun from each node: their names grow, so what is not above it is of the past.
    begun: BTreeMap<NodeId, u64>,
    pins: Pins,
    digests: BTreeMap<u64, [u8; 32]>,
    /// In Byzantine mode, what only that mode needs.
    signed: Option<byzantine::Signed>,
    outputs: Vec<Output>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group")
            .field("tenure", &self.tenure().id)
            .field("engine", &self.engine.status())
            .finish()
    }
}

impl Group {
    /// Opens this node's replica of a group from what the store holds. `records` are the group's write-ahead records,
    /// in order.
    pub fn open(
        storage: &dyn Storage,
        tenure: Arc<Tenure>,
        node: NodeId,
        settings: &Settings,
        records: &[Bytes],
    ) -> Result<Self, OpenError> {
        let me = replica_in(&tenure, node).expect("the node hosts a replica of the group");
        let group = tenure.group();
        let (found, damage) = match load(storage, &tenure, settings) {
            Err(StorageError::Corrupt { what, reason }) if settings.byzantine.is_some() => {
                (None, Some(format!("{what} is damaged: {reason}")))
            }
            found => (found?, None),
        };
        let is_found = found.is_some();
        let (install, machine) =
            found.unwrap_or_else(|| (None, Machine::empty(Arc::clone(&tenure), settings.rules())));
        let applied = install.as_ref().and_then(Install::applied).unwrap_or(machine.reached());
        let base = base_of(&tenure, applied);
        let durable_slot = applied.slot;
        refuse_lost_records(group, durable_slot, records)?;
        let (engine, signed): (Box<dyn Engine + Send>, _) = match &settings.byzantine {
            Some(byzantine) => {
                let base = is_found.then_some(base);
                let (replica, signed) = byzantine.open(&tenure, me, records, base, &settings.options)?;
                (Box::new(replica), Some(signed))
            }
            None => (Box::new(open_paxos(&tenure, me, settings, records, base)?), None),
        };
        if let Some(damage) = damage {
            tracing::warn!(%group, %damage, "the state cannot be read");
        }
        let mut opened = Self {
            rules: settings.rules(),
            overlay_bytes_max: settings.overlay_bytes_max,
            retain_bytes: settings.retain_bytes,
            held_back: None,
            stuck_since: None,
            engine,
            driver: Driver::default(),
            machine,
            requests: Requests::default(),
            in_flight: 0,
            proposed: VecDeque::new(),
            is_current: false,
            leader: None,
            now: Ticks(0),
            wall: Timestamp(0),
            checkpoint_at: Ticks(0),
            durable_slot,
            compacted_slot: durable_slot,
            wanted_slot: 0,
            writes: VecDeque::new(),
            written: VecDeque::new(),
            transfer: None,
            snapshots_wanted: VecDeque::new(),
            transfers: 0,
            install,
            begun: BTreeMap::new(),
            pins: Pins::new(settings.pinned_bytes, settings.options.mutation),
            digests: BTreeMap::new(),
            signed,
            outputs: Vec::new(),
        };
        opened.trim();
        opened.continue_install(storage)?;
        opened.carry_out(storage)?;
        Ok(opened)
    }

    /// Which group it is, in which epoch, and who else has a replica.
    #[must_use]
    pub fn tenure(&self) -> &Arc<Tenure> {
        self.machine.tenure()
    }

    /// The node that leads, as far as this replica knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.leader.map(|replica| self.node_of(replica))
    }

    /// Entry bytes that this group keeps for lagging replicas now, at most.
    #[must_use]
    pub fn retain_bytes(&self) -> usize {
        self.retain().bytes_max()
    }

    /// The engine's view of itself.
    #[must_use]
    pub fn engine(&self) -> EngineStatus {
        self.engine.status()
    }

    /// The state machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Whether a snapshot is being put in place, so that this replica answers nothing.
    #[must_use]
    pub fn is_installing(&self) -> bool {
        self.install.as_ref().is_some_and(Install::has_switched)
    }

    /// Whether a snapshot is being given, so that the tree stands still and what is applied gathers in memory.
    #[must_use]
    pub fn is_giving(&self) -> bool {
        self.transfer.is_some()
    }

    /// Time passed.
    pub fn tick(&mut self, storage: &dyn Storage, now: Ticks, wall: Timestamp) -> Result<(), StorageError> {
        assert!(now >= self.now, "ticks never go back");
        (self.now, self.wall) = (now, wall);
        if self.is_installing() {
            return Ok(());
        }
        self.engine.step(Event::Tick { now, wall });
        self.tick_pressure();
        self.carry_out(storage)?;
        self.release_held_back(storage)?;
        self.tick_transfer(storage)?;
        self.tick_pins();
        self.tick_repair(storage)?;
        self.tick_scrub(storage)?;
        self.release_checkpoints();
        let is_due = now.since(self.checkpoint_at) >= CHECKPOINT_MILLIS && self.wants_checkpoint();
        if is_due {
            self.checkpoint(storage)?;
        }
        Ok(())
    }

    /// A message from another replica of this group arrived. The transport vouches for the sender's identity.
    pub fn receive(&mut self, storage: &dyn Storage, from: NodeId, body: &[u8]) -> Result<(), StorageError> {
        let Some(replica) = self.replica_of(from) else {
            return Ok(());
        };
        let Some(message) = decode(body) else {
            return Ok(());
        };
        match message {
            GroupMessage::Engine(message) if !self.is_installing() && !self.leaves_out_message(&message) => {
                self.engine.step(Event::Receive { from: replica, message });
                self.carry_out(storage)
            }
            GroupMessage::Engine(_) => Ok(()),
            GroupMessage::WantState { at_least } => {
                self.on_want_state(replica, at_least);
                self.start_transfer(storage)
            }
            GroupMessage::Digest { slot, digest } => {
                self.compare_digest(slot, digest);
                Ok(())
            }
            GroupMessage::Offer(offer) => self.on_offer(storage, from, &offer),
            GroupMessage::Take { transfer, parts } => {
                let (parts_of, now) = (self.machine.parts(), self.now);
                match self.transfer.as_mut().filter(|running| running.is(replica, transfer)) {
                    Some(running) => running.take(parts, parts_of, now),
                    None => return Ok(()),
                }
                self.tick_transfer(storage)
            }
            GroupMessage::Piece(piece) => self.on_piece(storage, from, piece),
            GroupMessage::PieceStored { transfer, index } => {
                if let Some(running) = self.transfer.as_mut().filter(|running| running.to == replica) {
                    running.stored(transfer, index, self.now);
                    self.tick_transfer(storage)?;
                }
                Ok(())
            }
            GroupMessage::PieceUnknown { transfer } => {
                if self.transfer.as_ref().is_some_and(|running| running.is(replica, transfer)) {
                    self.end_transfer(storage, replica)?;
                }
                Ok(())
            }
        }
    }

    /// Takes a request to be ordered, with what it asks and its bytes.
    pub fn write(&mut self, account: Account, ticket: Ticket, command: &Command, bytes: Bytes) {
        if !self.is_leading() {
            self.answer(ticket, Outcome::NotLeader);
        } else if let Some(reply) = self.refusal_to_open(command) {
            let slot = self.machine.reached().slot;
            self.answer(ticket, Outcome::Applied { reply, slot });
        } else if !self.requests.push(account, ticket, command.envelope.request, bytes) {
            self.answer(ticket, Outcome::Busy);
        }
    }

    /// What an opening is told that would be refused if it were ordered: whoever asks for sessions without end fills no log. Only a
    /// leader knows that has applied all that was decided before: what it has not seen might have made room.
    fn refusal_to_open(&self, command: &Command) -> Option<Reply> {
        if command.operation != Operation::Open || !self.is_current {
            return None;
        }
        self.machine.refusal_to_open(&command.envelope.client.unwrap_or_default(), self.wall.0)
    }

    /// Takes a linearizable read. Those that arrive together are confirmed together, by [`Self::flush`].
    pub fn read(&mut self, ticket: Ticket, key: Bytes) {
        if self.is_leading() {
            self.requests.push_read(ticket, key);
        } else {
            self.answer(ticket, Outcome::NotLeader);
        }
    }

    /// Serves a read from whatever is applied here, if that reaches `at_least`. Nobody need lead for that.
    pub fn read_applied(
        &mut self,
        storage: &dyn Storage,
        ticket: Ticket,
        key: &Bytes,
        at_least: u64,
    ) -> Result<(), StorageError> {
        let is_fit = self.machine.reached().slot >= at_least && !self.is_installing() && !self.is_repairing();
        if !is_fit {
            self.answer(ticket, Outcome::Behind);
            return Ok(());
        }
        self.serve(storage, ticket, key, Freshness::AtLeast(at_least))
    }

    /// Proposes and confirms what has gathered. Called when everything that arrived together has been taken in.
    pub fn flush(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        let reads = self.requests.take_arrived_reads();
        if !reads.is_empty() {
            self.engine.step(Event::Read { ids: reads });
            self.carry_out(storage)?;
        }
        while self.in_flight < BATCHES_IN_FLIGHT_MAX && self.requests.has_queued() && self.is_leading() {
            if self.engine.undecided() >= BATCHES_IN_FLIGHT_MAX || self.is_backed_up(2) {
                break;
            }
            let Some(batch) = self.requests.next_batch() else {
                break;
            };
            match self.engine.propose(Proposal::Batch(batch)) {
                Ok(slot) => {
                    self.in_flight += 1;
                    self.proposed.push_back(slot);
                }
                // Nothing was ordered, but these commands count as proposed now; the client asks again.
                Err(_) => self.abandon_requests(),
            }
            self.carry_out(storage)?;
        }
        self.end_turn(storage)?;
        if self.is_checkpoint_urgent() && self.wants_checkpoint() {
            self.checkpoint(storage)?;
        }
        Ok(())
    }

    /// The records that should become durable.
    pub fn take_records(&mut self) -> Option<Records> {
        self.driver.take_records()
    }

    /// The state writes that should become durable, each an atomic batch.
    pub fn take_writes(&mut self, commit: CommitId) -> Vec<Vec<StateWrite>> {
        let mut batches = Vec::new();
        for (writes, purpose) in std::mem::take(&mut self.writes) {
            batches.push(writes);
            self.written.extend(purpose.map(|purpose| (commit, purpose)));
        }
        batches
    }

    /// The records taken last were submitted under this commit.
    pub fn submitted(&mut self, commit: CommitId) {
        self.driver.submitted(commit);
    }

    /// The log records of the commit and of all before it are durable.
    pub fn durable(&mut self, storage: &dyn Storage, commit: CommitId) -> Result<(), StorageError> {
        if self.hold_back(commit) {
            return Ok(());
        }
        let (token, messages) = self.driver.durable(commit);
        for (to, message) in messages {
            self.send_engine(to, message);
        }
        if let Some(token) = token {
            self.engine.step(Event::Persisted { token });
            self.carry_out(storage)?;
        }
        Ok(())
    }

    /// The state writes of the commit and of all before it are durable.
    pub fn written(&mut self, storage: &dyn Storage, commit: CommitId) -> Result<(), StorageError> {
        while let Some((_, purpose)) = self.written.front().copied().filter(|(id, _)| *id <= commit) {
            self.written.pop_front();
            self.stuck_since = None;
            self.on_written(storage, purpose)?;
        }
        self.release_held_back(storage)?;
        self.switch_if_gathered(storage)
    }

    /// The state that the tree durably holds allows the log to be dropped: writes the whole engine as new records, so
    /// that every older record of this group is void.
    pub fn compact(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        let retain = self.retain();
        self.compacted_slot = self.durable_slot;
        self.engine.step(Event::Compact { slot: Slot(self.durable_slot), retain });
        self.note_cut(retain);
        self.note_rewritten();
        self.carry_out(storage)
    }

    /// Whether the tree durably holds what was applied when a checkpoint was last hastened, or cannot come closer now.
    #[must_use]
    pub fn is_checkpointed(&self) -> bool {
        self.durable_slot >= self.wanted_slot || self.transfer.is_some() || self.is_installing()
    }

    /// Whether the tree durably holds more than when the log was last rewritten, or less of it may be kept for others, so that rewriting
    /// it drops something.
    #[must_use]
    pub fn has_gained(&self) -> bool {
        self.durable_slot > self.compacted_slot || self.keeps_too_much()
    }

    /// Begins a checkpoint now, if there is something to write and nothing forbids it.
    pub fn hasten_checkpoint(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        self.wanted_slot = self.machine.reached().slot;
        if self.wants_checkpoint() && !self.is_installing() {
            self.checkpoint(storage)?;
        }
        Ok(())
    }

    /// Byzantine mode: slots that are decided and wait for room to be executed, for watchers.
    #[cfg(test)]
    pub(crate) fn decided_and_waiting(&self) -> usize {
        self.signed.as_ref().map_or(0, |signed| signed.held.len())
    }

    /// Gives the leadership away, if this replica has it, before a planned stop.
    pub fn hand_over(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        self.engine.step(Event::TransferLeadership { to: None });
        self.carry_out(storage)
    }

    /// What must be done, in order.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Whether nothing is on its way to the tree.
    fn is_quiet(&self) -> bool {
        self.writes.is_empty() && self.written.is_empty()
    }

    /// Whether this replica leads and serves.
    #[must_use]
    pub fn is_leading(&self) -> bool {
        !self.is_installing() && self.engine.is_leader()
    }

    fn node_of(&self, replica: ReplicaId) -> NodeId {
        self.tenure().members[usize::from(replica.0)].node
    }

    fn replica_of(&self, node: NodeId) -> Option<ReplicaId> {
        replica_in(self.tenure(), node)
    }

    fn answer(&mut self, ticket: Ticket, outcome: Outcome) {
        self.outputs.push(Output::Answer { ticket, outcome });
    }

    fn send_engine(&mut self, to: ReplicaId, message: Bytes) {
        for message in self.as_told(to, message) {
            let body = encode(&GroupMessage::Engine(message));
            self.outputs.push(Output::Send { to: self.node_of(to), is_bulk: false, body });
        }
    }

    /// Carries out the engine's effects, in order.
    fn carry_out(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        for effect in self.engine.take_effects() {
            match effect {
                Effect::Persist { records, token, promises, is_whole } => {
                    self.driver.persist(Records { records, promises, is_whole }, token);
                }
                Effect::Send { to, message, after } => {
                    if let Some((to, message)) = self.driver.send(to, message, after) {
                        self.send_engine(to, message);
                    }
                }
                Effect::Apply(decided) if self.signed.is_some() => self.hold_apply(decided),
                Effect::Apply(decided) => self.apply(storage, decided)?,
                Effect::ReadReady { id, slot } => {
                    assert!(
                        self.machine.reached().slot >= slot.0,
                        "effects come in order: it was applied before"
                    );
                    if let Some((ticket, key)) = self.requests.finish_read(id) {
                        self.serve(storage, ticket, &key, Freshness::Linearizable)?;
                    }
                }
                Effect::ReadRefused { id } => {
                    if let Some((ticket, _)) = self.requests.finish_read(id) {
                        self.answer(ticket, Outcome::NotLeader);
                    }
                }
                Effect::SendSnapshot { to } => self.want_snapshot(to),
                Effect::LeaderChanged { leader } => self.on_leader_changed(leader),
                Effect::EpochEnded { .. } => {}
                Effect::Verify(job) => self.outputs.push(Output::Verify(job)),
                Effect::Submitted { id, result } => self.on_submitted(id, result),
                Effect::Checkpoint { slot } => self.hold_root(slot),
                Effect::StateLost { reason, base } => self.on_state_lost(reason, base),
                Effect::FetchState { from, at_least } => self.fetch_state(from, at_least),
                Effect::Fatal { reason } => self.outputs.push(Output::Fatal { reason }),
            }
        }
        self.apply_held(storage)
    }

    fn apply(&mut self, storage: &dyn Storage, decided: Decided) -> Result<(), StorageError> {
        let slot = decided.base.slot;
        if slot.0 <= self.machine.reached().slot {
            return Ok(());
        }
        let inputs = match decided.proposal {
            Some(Proposal::Batch(batch)) => Batch::inputs(batch),
            Some(Proposal::StopSign(_)) | None => Vec::new(),
        };
        let (chain, sealed) = (decided.base.chain.0, decided.base.sealed);
        let decided = kv::Slot { slot: slot.0, chain, sealed, time: decided.base.time.0, inputs };
        for (request, reply) in self.machine.apply(storage, &decided)?.replies {
            for ticket in self.requests.finish(&request) {
                self.answer(ticket, Outcome::Applied { reply: reply.clone(), slot: slot.0 });
            }
        }
        while self.proposed.front().is_some_and(|proposed| *proposed <= slot) {
            self.proposed.pop_front();
            self.in_flight -= 1;
            self.is_current = true;
        }
        self.share_digest(slot.0);
        Ok(())
    }

    /// Whether the tree should be brought up to date as soon as there is time. In Byzantine mode checkpoints decide when.
    fn wants_checkpoint(&self) -> bool {
        self.signed.is_none() && self.machine.wants_checkpoint() && self.transfer.is_none()
    }

    fn serve(
        &mut self,
        storage: &dyn Storage,
        ticket: Ticket,
        key: &Bytes,
        freshness: Freshness,
    ) -> Result<(), StorageError> {
        let slot = self.machine.reached().slot;
        match self.machine.get(storage, key) {
            Ok(Found::Record(found)) => self.answer(ticket, Outcome::Value { found, slot, freshness }),
            Ok(Found::NotOurs) => self.answer(ticket, Outcome::WrongGroup),
            Err(error) => {
                self.answer(ticket, Outcome::Behind);
                return self.on_damage(storage, error);
            }
        }
        Ok(())
    }

    fn on_leader_changed(&mut self, leader: Option<ReplicaId>) {
        self.leader = leader;
        if !self.engine.is_leader() {
            self.abandon_requests();
        }
    }

    fn abandon_requests(&mut self) {
        let (queued, proposed) = self.requests.abandon();
        self.proposed.clear();
        self.in_flight = 0;
        self.is_current = false;
        for ticket in queued {
            self.answer(ticket, Outcome::NotLeader);
        }
        for ticket in proposed {
            self.answer(ticket, Outcome::LeadershipLost);
        }
    }

    /// The broken variant that keeps sessions in memory only.
    #[cfg(test)]
    pub(crate) fn forget_sessions(&mut self) {
        self.machine.forget_sessions();
    }
}

/// The engine's message in a group message, for watchers that hold it against the disk, or against earlier ones; None if it is not
/// the engine that speaks.
#[must_use]
pub fn engine_message(body: &[u8]) -> Option<Bytes> {
    match decode(body)? {
        GroupMessage::Engine(message) => Some(message),
        _ => None,
    }
}

/// What a replica's engine would say, as a group message; for those who play one.
#[must_use]
pub fn as_engine(message: Bytes) -> Bytes {
    encode(&GroupMessage::Engine(message))
}

/// How many parts of a state a message asks for, for watchers.
#[cfg(test)]
pub(crate) fn parts_taken(body: &[u8]) -> usize {
    match decode(body) {
        Some(GroupMessage::Take { parts, .. }) => parts.iter().count(),
        _ => 0,
    }
}

/// What is stored of a group's state, and whether another is being put in its place; nothing if it is marked as damaged.
fn load(
    storage: &dyn Storage,
    tenure: &Arc<Tenure>,
    settings: &Settings,
) -> Result<Option<(Option<Install>, Machine)>, StorageError> {
    let install = Install::resume(storage, Parts::from(&**tenure))?;
    if install.is_some() {
        // What is stored is neither the old state nor the new one.
        return Ok(Some((install, Machine::empty(Arc::clone(tenure), settings.rules()))));
    }
    if storage.get(&keys::damaged(tenure.group()))?.is_some() {
        return Ok(None);
    }
    let machine = Machine::load(storage, Arc::clone(tenure), settings.rules())?;
    Ok(Some((None, if settings.byzantine.is_some() { machine.with_root(storage)? } else { machine })))
}

fn open_paxos(
    tenure: &Tenure,
    me: ReplicaId,
    settings: &Settings,
    records: &[Bytes],
    base: LogBase,
) -> Result<Replica, OpenError> {
    let (group, n) = (tenure.group(), tenure.members.len());
    let quorums = match tenure.quorums {
        QuorumRule::Crash { phase1, phase2 } => Quorums::flexible(n, phase1.into(), phase2.into(), 0),
        QuorumRule::Byzantine => return Err(OpenError::Mode(group)),
    };
    let quorums = quorums.map_err(|source| OpenError::Quorum { group, source })?;
    let config = GroupConfig { epoch: Epoch(tenure.id.epoch), quorums };
    Replica::recover(me, config, settings.options.clone(), records, base)
        .map_err(|source| OpenError::Recover { group, source })
}

/// The replica that the node hosts, if it is a member.
fn replica_in(tenure: &Tenure, node: NodeId) -> Option<ReplicaId> {
    let index = tenure.index_of(node)?;
    Some(ReplicaId(u8::try_from(index).expect("a group has few replicas")))
}

/// Whoever has applied something has promised something before, and written that down.
fn refuse_lost_records(group: GroupId, applied: u64, records: &[Bytes]) -> Result<(), StorageError> {
    if applied == 0 || !records.is_empty() {
        return Ok(());
    }
    Err(StorageError::StateLost(format!(
        "group {group} has applied slot {applied}, but the write-ahead log holds no record of it: what this node had \
         promised is lost. It must not vote under its old identity; add it as a new node"
    )))
}

fn base_of(tenure: &Tenure, applied: &kv::Reached) -> LogBase {
    let (slot, chain, time) = (Slot(applied.slot), Digest(applied.chain), Timestamp(applied.time));
    LogBase { slot, chain, time, sealed: applied.epoch > tenure.id.epoch }
}

fn encode(message: &GroupMessage) -> Bytes {
    let bytes =
        postcard::to_stdvec(message).expect("writing to memory cannot fail and every length is known");
    assert!(bytes.len() < PEER_FRAME_BYTES_MAX, "limits keep every message below a frame");
    Bytes::from(bytes)
}

fn decode(body: &[u8]) -> Option<GroupMessage> {
    postcard::take_from_bytes(body)
        .ok()
        .filter(|(_, rest): &(_, &[u8])| rest.is_empty())
        .map(|(message, _)| message)
}

#[cfg(test)]
mod tests;
