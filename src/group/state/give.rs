//! Giving a whole state to a replica that lags: one at a time, from the tree as it is.

use super::transfer::{Progress, Transfer};
use crate::error::StorageError;
use crate::group::byzantine::chaos::Chaos;
use crate::group::message::{GroupMessage, Offer, encode};
use crate::group::{Group, Output};
use crate::kv::{self, PartSet, StateRoot};
use crate::storage::Storage;
use bytes::Bytes;
use std::collections::VecDeque;
use tetrachord_consensus::ReplicaId;

/// To whom a state is given, and who waits for one.
#[derive(Debug, Default)]
pub(in crate::group) struct Giving {
    pub(in crate::group) transfer: Option<Transfer>,
    pub(in crate::group) wanted: VecDeque<ReplicaId>,
    /// Transfers of this life: each has a name of its own.
    count: u64,
}

impl Giving {
    /// A transfer that waits or runs already will do; its end is reported once.
    pub(in crate::group) fn want(&mut self, to: ReplicaId) {
        let is_running = self.to() == Some(to);
        if !is_running && !self.wanted.contains(&to) {
            self.wanted.push_back(to);
        }
    }

    /// Who is given a state now.
    pub(in crate::group) fn to(&self) -> Option<ReplicaId> {
        self.transfer.as_ref().map(|transfer| transfer.to)
    }

    /// The name of the next transfer, of the state after this slot: names grow, over restarts too.
    fn next_id(&mut self, slot: u64) -> u64 {
        self.count += 1;
        (slot << 16) | (self.count & 0xffff)
    }

    /// Nobody is given anything, or waits for it.
    pub(in crate::group) fn give_up(&mut self) {
        self.transfer = None;
        self.wanted.clear();
    }
}

impl Group {
    pub(in crate::group) fn tick_transfer(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        // The log cannot be dropped behind what the tree holds, and may grow where the state does not.
        let log_bytes = if self.waits_for_its_tree() { self.log_bytes_since_cut() } else { 0 };
        let must_hurry = self.hurries_receivers() && !self.giving.wanted.is_empty();
        let Some(transfer) = self.giving.transfer.as_mut() else {
            return self.start_transfer(storage);
        };
        let chaos = self.signed.as_ref().and_then(|signed| signed.chaos.as_ref());
        if chaos.is_some_and(Chaos::gives_nothing) {
            transfer.hold_on(self.now);
        }
        let waiting_bytes = self.machine.unwritten_bytes().max(log_bytes);
        let (mut progress, mut messages) = transfer.check(self.now, waiting_bytes);
        let to = transfer.to;
        if must_hurry && transfer.is_slow(self.now) {
            progress = Progress::GivenUp;
        }
        if progress == Progress::UnderWay {
            match transfer.next_pieces(storage, self.now) {
                Ok(pieces) => messages.extend(pieces),
                Err(error) => return self.on_damage(storage, error),
            }
        } else {
            self.end_transfer(storage, to)?;
        }
        let to = self.node_of(to);
        for body in messages {
            let body = self.piece_as_told(body);
            self.outputs.push(Output::Send { to, is_bulk: true, body });
        }
        Ok(())
    }

    /// Well or not: the receiver's next answer tells what it needs now.
    pub(in crate::group) fn end_transfer(
        &mut self,
        storage: &dyn Storage,
        to: ReplicaId,
    ) -> Result<(), StorageError> {
        self.note_transfer();
        self.giving.transfer = None;
        self.release_checkpoints();
        if let Some(paxos) = self.seat.paxos() {
            paxos.snapshot_ended(to);
        }
        self.carry_out(storage)
    }

    /// Starts the next transfer that was asked for, from the tree as it is, as soon as nothing is being written to it.
    /// What was applied since is in the log.
    pub(in crate::group) fn start_transfer(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        if self.giving.transfer.is_some() || self.giving.wanted.is_empty() || self.is_installing() {
            return Ok(());
        }
        if self.tree.durable_slot == 0 || !self.tree.is_quiet() {
            return Ok(());
        }
        let Some((index, proof)) = self.first_to_serve() else { return Ok(()) };
        let to = self.giving.wanted.remove(index).expect("it was just found");
        let id = self.giving.next_id(self.tree.durable_slot);
        match self.open_transfer(storage, to, id, proof) {
            Ok(transfer) => self.giving.transfer = Some(transfer),
            Err(error) => return self.on_damage(storage, error),
        }
        self.note_transfer();
        let (group, node, slot) = (self.tenure().group(), self.node_of(to), self.tree.durable_slot);
        tracing::info!(%group, to = %node, slot, "a whole state is given");
        let offer = self.giving.transfer.as_ref().and_then(Transfer::offer);
        if let Some(body) = offer.map(|offer| self.piece_as_told(offer)) {
            let to = self.node_of(to);
            self.outputs.push(Output::Send { to, is_bulk: true, body });
        }
        self.tick_transfer(storage)
    }

    fn open_transfer(
        &self,
        storage: &dyn Storage,
        to: ReplicaId,
        id: u64,
        proof: Option<Bytes>,
    ) -> Result<Transfer, StorageError> {
        let (tenure, parts) = (self.tenure(), self.machine.parts());
        let applied = kv::Reached::load(storage, tenure)?;
        assert_eq!(applied.slot, self.tree.durable_slot, "the tree holds the last checkpoint");
        let offer = match proof {
            Some(proof) => {
                let hashes = StateRoot::load(storage, parts)?.hashes();
                let offer = Offer { transfer: id, applied: applied.clone(), hashes, proof };
                Some(encode(&GroupMessage::Offer(offer)))
            }
            None => None,
        };
        Ok(Transfer::new(to, id, applied, parts, offer, self.now))
    }

    /// The receiver takes these parts of what it was offered.
    pub(in crate::group) fn on_take(
        &mut self,
        storage: &dyn Storage,
        (from, transfer): (ReplicaId, u64),
        parts: PartSet,
    ) -> Result<(), StorageError> {
        let (parts_of, now) = (self.machine.parts(), self.now);
        match self.giving.transfer.as_mut().filter(|running| running.is(from, transfer)) {
            Some(running) => running.take(parts, parts_of, now),
            None => return Ok(()),
        }
        self.tick_transfer(storage)
    }

    /// The receiver has stored a piece, and all before it.
    pub(in crate::group) fn on_stored(
        &mut self,
        storage: &dyn Storage,
        (from, transfer): (ReplicaId, u64),
        index: u64,
    ) -> Result<(), StorageError> {
        match self.giving.transfer.as_mut().filter(|running| running.to == from) {
            Some(running) => running.stored(transfer, index, self.now),
            None => return Ok(()),
        }
        self.tick_transfer(storage)
    }

    /// The receiver knows nothing of a transfer, or wants no more of it.
    pub(in crate::group) fn on_unknown(
        &mut self,
        storage: &dyn Storage,
        (from, transfer): (ReplicaId, u64),
    ) -> Result<(), StorageError> {
        let is_running = self.giving.transfer.as_ref().is_some_and(|running| running.is(from, transfer));
        if is_running { self.end_transfer(storage, from) } else { Ok(()) }
    }
}
