//! One replica of one group on this node: an engine that orders, a state machine that applies, and what ties them.
//!
//! A group is told what happened and answers with [`Output`]s; what must become durable it hands to the node, which
//! gathers it from all its groups into one commit. It reads applied state from the store directly.
//!
//! Its parts, each a small machine of its own, that this file passes things between:
//! * the [`seat`]: what votes in this epoch, and the rule that nothing leaves before what it rests on is durable;
//! * the [`pipeline`]: what clients of crash mode wait for ([`requests`]); what is only of Byzantine mode: [`byzantine`];
//! * the [`state`] on disk: brought up to date, given to others, taken from others; how much of the log is kept for that.
//!
//! Invariants:
//! * an engine's message leaves only when the record it rests on is durable ([`driver`]);
//! * a command is answered only after it was applied here, a linearizable read only after its read index was;
//! * the log is dropped only below what the tree durably holds;
//! * replicas whose digests differ at one slot stop.
//!
//! What it does not know: connections, clients, other groups, which keys other groups own.

mod byzantine;
mod digests;
mod driver;
mod face;
mod message;
mod modes;
mod open;
mod pipeline;
mod requests;
mod seat;
mod state;

pub use byzantine::Byzantine;
pub use byzantine::outcomes::Outcomes;
pub use driver::Records;
pub use face::{Freshness, Outcome, Output};
pub use open::{OpenError, Settings};

use crate::error::StorageError;
use crate::kv::{self, Batch, Machine};
use crate::limits::CHECKPOINT_MILLIS;
use crate::ring::{NodeId, Tenure};
use crate::storage::{CommitId, Storage};
use crate::ticket::Ticket;
use bytes::Bytes;
use message::{GroupMessage, decode, encode};
pub use message::{Overheard, as_engine, overhear};
use pipeline::Pipeline;
use seat::{Due, Seat};
use state::{Giving, Pressure, Retention, Taking, Tree};
use std::collections::BTreeMap;
use std::sync::Arc;
use tetrachord_consensus::{Decided, EngineStatus, Event, Proposal, ReplicaId, Ticks, Timestamp, pbft};

/// One replica of one group.
pub struct Group {
    rules: kv::Rules,
    now: Ticks,
    wall: Timestamp,
    machine: Machine,
    /// What votes for it in this epoch.
    seat: Seat,
    /// Crash mode: what clients ask.
    pipeline: Pipeline,
    /// What is on its way to the tree.
    tree: Tree,
    pressure: Pressure,
    /// What is kept of the log.
    retention: Retention,
    /// A whole state for others, and one from others.
    giving: Giving,
    taking: Taking,
    /// Crash mode: what replicas compare.
    digests: BTreeMap<u64, [u8; 32]>,
    /// In Byzantine mode, what only that mode needs.
    signed: Option<byzantine::Signed>,
    outputs: Vec<Output>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group")
            .field("tenure", &self.tenure().id)
            .field("engine", &self.seat.status())
            .finish()
    }
}

impl Group {
    /// Which group it is, in which epoch, and who else has a replica.
    #[must_use]
    pub fn tenure(&self) -> &Arc<Tenure> {
        self.machine.tenure()
    }

    /// The node that leads, as far as this replica knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.seat.leader.map(|replica| self.node_of(replica))
    }

    /// Entry bytes that this group keeps for lagging replicas now, at most.
    #[must_use]
    pub fn retain_bytes(&self) -> usize {
        self.retain().bytes_max()
    }

    /// The engine's view of itself.
    #[must_use]
    pub fn engine(&self) -> EngineStatus {
        self.seat.status()
    }

    /// In Byzantine mode, what its engine knows of itself and of liars.
    #[must_use]
    pub fn condition(&self) -> Option<pbft::Condition> {
        self.seat.as_pbft().map(pbft::Replica::condition)
    }

    /// The view that it is in or goes to, in Byzantine mode; for watchers.
    #[must_use]
    pub fn view(&self) -> u64 {
        self.seat.as_pbft().map_or(0, |replica| replica.view().0.0)
    }

    /// The state machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Whether a snapshot is being put in place, so that this replica answers nothing.
    #[must_use]
    pub fn is_installing(&self) -> bool {
        self.taking.has_switched()
    }

    /// Whether a snapshot is being given, so that the tree stands still and what is applied gathers in memory.
    #[must_use]
    pub fn is_giving(&self) -> bool {
        self.giving.transfer.is_some()
    }

    /// Time passed.
    pub fn tick(&mut self, storage: &dyn Storage, now: Ticks, wall: Timestamp) -> Result<(), StorageError> {
        assert!(now >= self.now, "ticks never go back");
        (self.now, self.wall) = (now, wall);
        if self.is_installing() {
            return Ok(());
        }
        self.seat.step(Event::Tick { now, wall });
        self.tick_pressure();
        self.carry_out(storage)?;
        self.release_held_back(storage)?;
        self.tick_transfer(storage)?;
        self.tick_pins();
        self.tick_repair(storage)?;
        self.tick_scrub(storage)?;
        self.release_checkpoints();
        let is_due = now.since(self.tree.checkpoint_at) >= CHECKPOINT_MILLIS && self.wants_checkpoint();
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
                self.seat.step(Event::Receive { from: replica, message });
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
            GroupMessage::Take { transfer, parts } => self.on_take(storage, (replica, transfer), parts),
            GroupMessage::Piece(piece) => self.on_piece(storage, from, piece),
            GroupMessage::PieceStored { transfer, index } => {
                self.on_stored(storage, (replica, transfer), index)
            }
            GroupMessage::PieceUnknown { transfer } => self.on_unknown(storage, (replica, transfer)),
        }
    }

    /// The records that should become durable.
    pub fn take_records(&mut self) -> Option<Records> {
        self.seat.driver.take_records()
    }

    /// The records taken last were submitted under this commit.
    pub fn submitted(&mut self, commit: CommitId) {
        self.seat.driver.submitted(commit);
    }

    /// The log records of the commit and of all before it are durable.
    pub fn durable(&mut self, storage: &dyn Storage, commit: CommitId) -> Result<(), StorageError> {
        if self.hold_back(commit) {
            return Ok(());
        }
        let (token, messages) = self.seat.driver.durable(commit);
        for (to, message) in messages {
            self.send_engine(to, message);
        }
        if let Some(token) = token {
            self.seat.step(Event::Persisted { token });
            self.carry_out(storage)?;
        }
        Ok(())
    }

    /// Byzantine mode: slots that are decided and wait for room to be executed, for watchers.
    #[must_use]
    pub fn decided_and_waiting(&self) -> usize {
        self.signed.as_ref().map_or(0, |signed| signed.held.len())
    }

    /// Gives the leadership away, if this replica has it, before a planned stop.
    pub fn hand_over(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        if let Some(paxos) = self.seat.paxos() {
            paxos.transfer_leadership(None);
        }
        self.carry_out(storage)
    }

    /// What must be done, in order.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Whether this replica leads and serves.
    #[must_use]
    pub fn is_leading(&self) -> bool {
        !self.is_installing() && self.seat.is_leader()
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
        for due in self.seat.take_due() {
            match due {
                Due::Send { to, message } => self.send_engine(to, message),
                Due::Apply(decided) if self.is_byzantine() => self.hold_apply(decided),
                Due::Apply(decided) => self.apply(storage, decided)?,
                Due::LeaderChanged { leader } => self.on_leader_changed(leader),
                Due::Fatal { reason } => self.outputs.push(Output::Fatal { reason }),
                Due::Paxos(own) => self.carry_out_own(storage, own)?,
                Due::Pbft(own) => self.carry_out_signed(own),
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
            for ticket in self.pipeline.finish(&request) {
                self.answer(ticket, Outcome::Applied { reply: reply.clone(), slot: slot.0 });
            }
        }
        self.pipeline.applied(slot);
        self.share_digest(slot.0);
        Ok(())
    }
}

/// The replica that the node hosts, if it is a member.
fn replica_in(tenure: &Tenure, node: NodeId) -> Option<ReplicaId> {
    let index = tenure.index_of(node)?;
    Some(ReplicaId(u8::try_from(index).expect("a group has few replicas")))
}

#[cfg(test)]
mod tests;
