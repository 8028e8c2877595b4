//! What a group does in Byzantine mode only: signed requests in, outcomes for clients out ([`outcomes`]), roots for
//! checkpoints, and whole states that are taken only with proof.
//!
//! * Decided slots are applied in order; a checkpoint's root is taken at exactly its slot, so what follows waits if the
//!   tree cannot keep up.
//! * The tree is brought up to date at checkpoints alone: a state can be given to others only where its root is signed.
//! * A whole state is taken from one replica at a time, with proof and in bounded time ([`source`]).

pub(in crate::group) mod chaos;
pub(in crate::group) mod outcomes;
mod repair;
mod scrub;
mod source;

use crate::error::StorageError;
use crate::group::state::Purpose;
use crate::group::{Group, OpenError, Outcome, Output};
use crate::kv::{self, Client, Input};
use crate::limits::SIGNED_BATCH_BYTES_MAX;
use crate::proof::{domain_of, keyring_of};
use crate::ring::{Tenure, TenureId};
use crate::storage::{StateWrite, Storage};
use crate::ticket::Ticket;
use bytes::Bytes;
use chaos::Chaos;
use repair::Repair;
use scrub::Scrub;
use source::Sources;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use tetrachord_consensus::pbft::{
    Batch, Config, Keyring, Lie, Own, Rejected, Replica, Signer, SubmitId, SubmitRefusal, Verified, Verifier,
    Window,
};
use tetrachord_consensus::{
    ByzantineQuorum, Decided, Digest, Epoch, LogBase, Options, Proposal, ReplicaId, Slot, Ticks, pbft,
};

/// What a node needs to take part in groups of which some replicas may lie.
#[derive(Clone)]
pub struct Byzantine {
    /// A digest that names the cluster.
    pub cluster: [u8; 32],
    /// The secrets that this node's replicas vote with, each in one tenure.
    pub secrets: BTreeMap<TenureId, [u8; 32]>,
    /// Clients that may ask.
    pub clients: Vec<Client>,
    /// How long a request may wait before its primary is suspected, in milliseconds.
    pub request_millis: u64,
    /// How far agreement runs ahead of checkpoints.
    pub window: Window,
    /// All of the state is read and held against its hashes within so many milliseconds; 0 is never.
    pub scrub_millis: u64,
    /// Whether this node may be told to lie, and where its chances begin.
    pub chaos: Option<u64>,
}

impl fmt::Debug for Byzantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Byzantine").field("clients", &self.clients.len()).finish_non_exhaustive()
    }
}

/// A tree that is written to all the time gets so long to come to rest when a state is wanted, and that not more often than
/// this.
const REST_MILLIS: u64 = 1_000;
const REST_PAUSE_MILLIS: u64 = 5_000;

/// What waits to be applied.
#[derive(Clone, Debug)]
pub(in crate::group) enum Held {
    Apply(Decided),
    Root(Slot),
}

/// The Byzantine half of a group.
#[derive(Debug)]
pub(in crate::group) struct Signed {
    pub(in crate::group) signer: Signer,
    pub(in crate::group) verifier: Verifier,
    pub(in crate::group) held: VecDeque<Held>,
    /// Checkpoints that are not stable yet, the oldest first. The tree holds none of them: whoever needs a state gets one
    /// that is proved, and if the tree were ahead of the last such, nobody could give one.
    pub(in crate::group) unsettled: VecDeque<(Vec<StateWrite>, u64)>,
    /// What waits for the tree while that must stand still, and up to which slot.
    pub(in crate::group) waiting: Option<(Vec<StateWrite>, u64)>,
    /// Until then the tree is given the time to come to rest, so that a state can be given; and when it may be again.
    rest_until: Ticks,
    rest_again: Ticks,
    pub(in crate::group) sources: Sources,
    /// The least slot that each asking replica has use for.
    wanted: BTreeMap<ReplicaId, u64>,
    pub(in crate::group) scrub: Scrub,
    /// While the state is not to be believed.
    pub(in crate::group) repair: Option<Repair>,
    pub(in crate::group) repairs: u64,
    /// Where it is allowed, what this replica says instead of the truth.
    pub(in crate::group) chaos: Option<Chaos>,
}

impl Byzantine {
    /// The keys of a group's replicas and of all clients.
    fn keyring(&self, tenure: &Tenure) -> Result<Keyring, OpenError> {
        let clients = self.clients.iter().map(|client| pbft::ClientKey(*client));
        keyring_of(Digest(self.cluster), tenure, clients)
            .map_err(|source| OpenError::Key { group: tenure.group(), source })
    }

    pub(in crate::group) fn open(
        &self,
        tenure: &Tenure,
        me: ReplicaId,
        records: &[Bytes],
        applied: Option<LogBase>,
        options: &Options,
    ) -> Result<(Replica, Signed), OpenError> {
        let group = tenure.group();
        if !tenure.is_byzantine() {
            return Err(OpenError::Mode(group));
        }
        let quorum = ByzantineQuorum::new(tenure.members.len());
        let quorum = quorum.map_err(|source| OpenError::Quorum { group, source })?;
        let config = Config { epoch: Epoch(tenure.id.epoch), quorum, window: self.window };
        let (seed, mutation) = (options.seed, options.mutation);
        let options = pbft::Options {
            request_ticks: self.request_millis,
            batch_bytes: SIGNED_BATCH_BYTES_MAX,
            seed,
            mutation,
            ..pbft::Options::default()
        };
        let secret = self.secrets.get(&tenure.id).ok_or(OpenError::NoKey(tenure.id))?;
        let signer = Signer::new(me, domain_of(Digest(self.cluster), tenure), secret);
        let verifier = Verifier::new(Arc::new(self.keyring(tenure)?), config, mutation);
        let replica = Replica::recover(config, options, signer.clone(), records, applied)
            .map_err(|source| OpenError::RecoverVotes { group, source })?;
        let (patience, replicas) = (self.request_millis, tenure.members.len());
        let new_chaos = |seed| Chaos::new(signer.clone(), seed ^ group.mixed(), patience, replicas);
        let chaos = self.chaos.map(new_chaos);
        let signed = Signed {
            chaos,
            signer,
            verifier,
            held: VecDeque::new(),
            unsettled: VecDeque::new(),
            waiting: None,
            rest_until: Ticks(0),
            rest_again: Ticks(0),
            sources: Sources::new(mutation),
            wanted: BTreeMap::new(),
            scrub: Scrub::new(self.scrub_millis),
            repair: None,
            repairs: 0,
        };
        Ok((replica, signed))
    }
}

impl Group {
    /// In Byzantine mode, what checks this group's messages.
    #[must_use]
    pub fn verifier(&self) -> Option<Verifier> {
        self.signed.as_ref().map(|signed| signed.verifier.clone())
    }

    /// Takes a client's signed requests to be ordered; it brought them here, or another node passes them on.
    pub fn submit(
        &mut self,
        storage: &dyn Storage,
        ticket: Ticket,
        bundle: Bytes,
        is_passed_on: bool,
    ) -> Result<(), StorageError> {
        if self.leaves_out(&bundle) {
            self.answer(ticket, Outcome::Kept);
            return Ok(());
        }
        if let Some(pbft) = self.seat.pbft() {
            pbft.submit(SubmitId(ticket.0), bundle, is_passed_on);
        }
        self.carry_out(storage)
    }

    /// A check that was asked for by [`super::Output::Verify`] is done.
    pub fn verified(
        &mut self,
        storage: &dyn Storage,
        result: Box<Result<Verified, Rejected>>,
    ) -> Result<(), StorageError> {
        // Also while a state is being put in place: the engine counts what is being checked, and what it decides meanwhile
        // waits to be applied.
        if let Some(pbft) = self.seat.pbft() {
            pbft.verified(*result);
        }
        self.carry_out(storage)?;
        self.release_checkpoints();
        Ok(())
    }

    pub(in crate::group) fn end_turn(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        if self.signed.is_none() || self.is_installing() {
            return Ok(());
        }
        // What waits here waits for room to be frozen, and that for the tree. What is decided behind it stays with the engine,
        // which takes in no more than a window of it.
        let may_execute = self.signed.as_ref().is_some_and(|signed| signed.held.is_empty());
        if let Some(pbft) = self.seat.pbft() {
            pbft.turn_ended(may_execute, may_execute);
        }
        self.carry_out(storage)
    }

    /// What the order of Byzantine mode asks for.
    pub(in crate::group) fn carry_out_signed(&mut self, own: Own) {
        match own {
            Own::Verify(job) => self.outputs.push(Output::Verify(job)),
            Own::Submitted { id, result } => self.on_submitted(id, result),
            Own::Checkpoint { slot } => self.hold_root(slot),
            Own::StateLost { reason, base } => self.on_state_lost(reason, base),
            Own::FetchState { from, at_least } => self.fetch_state(from, at_least),
        }
    }

    fn on_submitted(&mut self, id: SubmitId, result: Result<(), SubmitRefusal>) {
        let outcome = match result {
            Ok(()) => Outcome::Kept,
            Err(SubmitRefusal::Full) => Outcome::Busy,
            Err(SubmitRefusal::Invalid(reason)) => Outcome::Invalid(reason),
        };
        self.answer(Ticket(id.0), outcome);
    }

    pub(in crate::group) fn hold_apply(&mut self, decided: Decided) {
        let signed = self.signed.as_mut().expect("the caller has asked");
        signed.held.push_back(Held::Apply(decided));
    }

    fn hold_root(&mut self, slot: Slot) {
        let signed = self.signed.as_mut().expect("only a Byzantine engine makes checkpoints");
        signed.held.push_back(Held::Root(slot));
    }

    /// Applies what is decided, as far as checkpoints allow.
    pub(in crate::group) fn apply_held(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        while !self.is_installing() {
            let Some(signed) = self.signed.as_mut() else { return Ok(()) };
            match signed.held.pop_front() {
                None => return Ok(()),
                Some(Held::Apply(decided)) => self.apply_signed(storage, decided)?,
                Some(Held::Root(slot)) if slot.0 != self.machine.reached().slot => {}
                Some(root) if !self.machine.has_room_to_freeze() => {
                    signed.held.push_front(root);
                    if signed.scrub.is_walking() {
                        signed.scrub.give_up();
                        self.release_checkpoints();
                        return Ok(());
                    }
                    if !self.is_giving_for_too_long() {
                        return Ok(());
                    }
                    let to = self.giving.to().expect("one is running");
                    return self.end_transfer(storage, to);
                }
                Some(Held::Root(slot)) => self.take_root(storage, slot)?,
            }
        }
        Ok(())
    }

    /// Freezes the state at a checkpoint, tells the engine its root, and writes it to the tree as soon as no state is
    /// being given to another replica.
    fn take_root(&mut self, storage: &dyn Storage, slot: Slot) -> Result<(), StorageError> {
        let writes = match self.machine.begin_checkpoint(storage) {
            Ok(writes) => writes,
            Err(error) => return self.on_damage(storage, error),
        };
        let root = self.machine.state_root().expect("the state was just frozen");
        self.tree.checkpoint_at = self.now;
        let signed = self.signed.as_mut().expect("the caller has asked");
        signed.unsettled.push_back((writes, slot.0));
        self.release_checkpoints();
        if let Some(pbft) = self.seat.pbft() {
            pbft.state_root(slot, Digest(root));
        }
        self.carry_out(storage)
    }

    /// Lets checkpoints go to the tree as soon as they are stable, unless it must stand still: for a state that is being given,
    /// or for a scrub. Those that become stable meanwhile are made one.
    pub(in crate::group) fn release_checkpoints(&mut self) {
        let Some(signed) = self.signed.as_mut() else { return };
        while let Some((writes, slot)) = signed.unsettled.pop_front() {
            if !self.seat.as_pbft().is_some_and(|pbft| pbft.is_settled(Slot(slot))) {
                signed.unsettled.push_front((writes, slot));
                break;
            }
            signed.waiting = Some(match signed.waiting.take() {
                None => (writes, slot),
                Some((earlier, _)) => {
                    let behind = 2 + signed.unsettled.len();
                    self.machine.join_checkpoints(self.machine.checkpoints() - behind);
                    (latest(earlier, writes), slot)
                }
            });
        }
        let is_wanted = !self.giving.wanted.is_empty();
        let may_change = |signed: &&mut Signed| {
            let rests = is_wanted && self.now < signed.rest_until;
            self.giving.transfer.is_none() && !signed.scrub.is_walking() && !rests
        };
        let waiting = self.signed.as_mut().filter(may_change).and_then(|signed| signed.waiting.take());
        if let Some((writes, slot)) = waiting {
            self.tree.write(writes, Purpose::Checkpoint { slot });
        }
    }

    fn apply_signed(&mut self, storage: &dyn Storage, decided: Decided) -> Result<(), StorageError> {
        let slot = decided.base.slot.0;
        if slot <= self.machine.reached().slot {
            return Ok(());
        }
        let bundles = match &decided.proposal {
            Some(Proposal::Batch(bytes)) => Batch::bundles_of(bytes).expect("the engine has read it"),
            Some(Proposal::StopSign(_)) | None => Vec::new(),
        };
        let asked = bundles.iter().flat_map(pbft::Bundle::requests);
        // What ends the epoch is no operation on the state; that it has ended is part of the position.
        let asked: Vec<pbft::SignedRequest> = asked.filter(|request| !request.ends_epoch).collect();
        let inputs = asked.iter().map(|request| Input::Request(outcomes::envelope_of(request))).collect();
        let (chain, sealed) = (decided.base.chain.0, decided.base.sealed);
        let decided = kv::Slot { slot, chain, sealed, time: decided.base.time.0, inputs };
        let replies = match self.machine.apply(storage, &decided) {
            Ok(applied) => applied.replies,
            Err(error) => return self.on_damage(storage, error),
        };
        self.tell_clients(slot, &asked, replies);
        Ok(())
    }

    /// Another replica asks for a whole state.
    pub(in crate::group) fn on_want_state(&mut self, from: ReplicaId, at_least: u64) {
        if let Some(signed) = self.signed.as_mut() {
            signed.wanted.insert(from, at_least);
            if self.now >= signed.rest_again {
                signed.rest_until = self.now.plus(REST_MILLIS);
                signed.rest_again = self.now.plus(REST_PAUSE_MILLIS);
            }
            self.giving.want(from);
        }
    }

    /// The first that waits for a whole state and can be served with the one that the tree holds now, and in Byzantine mode
    /// the proof of it. One that asks for what does not exist keeps nobody else waiting.
    pub(in crate::group) fn first_to_serve(&self) -> Option<(usize, Option<Bytes>)> {
        let Some(signed) = &self.signed else { return Some((0, None)) };
        let proof = self.seat.as_pbft()?.stable_proof(Slot(self.tree.durable_slot))?;
        let is_served =
            |to: &ReplicaId| signed.wanted.get(to).is_none_or(|at_least| self.tree.durable_slot >= *at_least);
        Some((self.giving.wanted.iter().position(is_served)?, Some(proof)))
    }

    /// Whether the frozen checkpoints are so many that no whole state can be given any longer: whoever takes it, may do so
    /// slowly on purpose, and execution must not wait.
    fn is_giving_for_too_long(&self) -> bool {
        self.giving.transfer.is_some() && !self.machine.has_room_to_freeze()
    }

    /// From now on tells this lie, or none, if its configuration allows that.
    pub fn tell(&mut self, lie: Option<Lie>) {
        if let Some(chaos) = self.signed.as_mut().and_then(|signed| signed.chaos.as_mut()) {
            chaos.tell(lie);
        }
    }

    /// How often each lie was told.
    #[must_use]
    pub fn told(&self) -> Vec<(&'static str, u64)> {
        let chaos = self.signed.as_ref().and_then(|signed| signed.chaos.as_ref());
        chaos.into_iter().flat_map(Chaos::told).map(|(lie, count)| (lie.name(), count)).collect()
    }

    /// A message of the engine as it leaves this replica.
    pub(in crate::group) fn as_told(&mut self, to: ReplicaId, message: Bytes) -> Vec<Bytes> {
        match self.signed.as_mut().and_then(|signed| signed.chaos.as_mut()) {
            Some(chaos) => chaos.twist(to, message),
            None => vec![message],
        }
    }

    /// A piece of a whole state as it leaves this replica.
    pub(in crate::group) fn piece_as_told(&mut self, body: Bytes) -> Bytes {
        match self.signed.as_mut().and_then(|signed| signed.chaos.as_mut()) {
            Some(chaos) => chaos.twist_piece(body),
            None => body,
        }
    }

    /// What is known against other replicas, in words.
    #[must_use]
    pub fn suspects(&self) -> Vec<String> {
        let bad_states = self.signed.iter().flat_map(|signed| signed.sources.liars());
        let told = bad_states.map(|node| format!("{node} sent a state that no checkpoint proves"));
        self.condition().into_iter().flat_map(|condition| condition.suspects).chain(told).collect()
    }
}

/// What two checkpoints write, once for each row.
fn latest(earlier: Vec<StateWrite>, later: Vec<StateWrite>) -> Vec<StateWrite> {
    let rows: BTreeMap<Bytes, Option<Bytes>> = earlier.into_iter().chain(later).collect();
    rows.into_iter().collect()
}
