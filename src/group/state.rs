//! Bringing the tree up to date, and whole states: given to a replica that lags, taken when this one does.

use super::chaos::Chaos;
use super::install::Install;
use super::message::{GroupMessage, Offer, Piece};
use super::snapshot::{Progress, Transfer};
use super::{Group, Output, Purpose, base_of, encode};
use crate::error::StorageError;
use crate::kv::{self, Machine, StateRoot};
use crate::limits::SNAPSHOT_WINDOW;
use crate::ring::NodeId;
use crate::storage::Storage;
use bytes::Bytes;
use std::sync::Arc;
use tetrachord_consensus::{Event, ReplicaId};

impl Group {
    pub(super) fn checkpoint(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        let slot = self.machine.reached().slot;
        let writes = self.machine.begin_checkpoint(storage)?;
        self.checkpoint_at = self.now;
        self.writes.push_back((writes, Some(Purpose::Checkpoint { slot })));
        Ok(())
    }

    pub(super) fn on_written(&mut self, storage: &dyn Storage, purpose: Purpose) -> Result<(), StorageError> {
        match purpose {
            // It was of a state that is not believed any more.
            Purpose::Checkpoint { .. } if self.is_repairing() => Ok(()),
            Purpose::Checkpoint { slot } => {
                self.machine.end_checkpoint();
                self.durable_slot = slot;
                self.trim();
                self.start_transfer(storage)?;
                self.apply_held(storage)
            }
            Purpose::Gathered { from, transfer, index } => {
                let body = encode(&GroupMessage::PieceStored { transfer, index });
                self.outputs.push(Output::Send { to: from, is_bulk: true, body });
                Ok(())
            }
            Purpose::Installing => self.continue_install(storage),
            Purpose::Rebuilt => Ok(()),
        }
    }

    pub(super) fn tick_transfer(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        // The log cannot be dropped behind what the tree holds, and may grow where the state does not.
        let log_bytes = if self.signed.is_none() { self.log_bytes_since_cut() } else { 0 };
        let Some(transfer) = self.transfer.as_mut() else {
            return self.start_transfer(storage);
        };
        let chaos = self.signed.as_ref().and_then(|signed| signed.chaos.as_ref());
        if chaos.is_some_and(Chaos::gives_nothing) {
            transfer.hold_on(self.now);
        }
        let waiting_bytes = self.machine.unwritten_bytes().max(log_bytes);
        let (mut progress, mut messages) = transfer.check(self.now, waiting_bytes);
        let to = transfer.to;
        if self.signed.is_some() && !self.snapshots_wanted.is_empty() && transfer.is_slow(self.now) {
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
    pub(super) fn end_transfer(&mut self, storage: &dyn Storage, to: ReplicaId) -> Result<(), StorageError> {
        self.note_transfer();
        self.transfer = None;
        self.release_checkpoints();
        self.engine.step(Event::SnapshotEnded { to });
        self.carry_out(storage)
    }

    /// A transfer that waits or runs already will do; its end is reported once.
    pub(super) fn want_snapshot(&mut self, to: ReplicaId) {
        let is_running = self.transfer.as_ref().is_some_and(|transfer| transfer.to == to);
        if !is_running && !self.snapshots_wanted.contains(&to) {
            self.snapshots_wanted.push_back(to);
        }
    }

    /// Starts the next transfer that was asked for, from the tree as it is, as soon as nothing is being written to it.
    /// What was applied since is in the log.
    pub(super) fn start_transfer(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        if self.transfer.is_some() || self.snapshots_wanted.is_empty() || self.is_installing() {
            return Ok(());
        }
        if self.durable_slot == 0 || !self.is_quiet() {
            return Ok(());
        }
        let Some((index, proof)) = self.first_to_serve() else { return Ok(()) };
        let to = self.snapshots_wanted.remove(index).expect("it was just found");
        self.transfers += 1;
        let id = (self.durable_slot << 16) | (self.transfers & 0xffff);
        match self.open_transfer(storage, to, id, proof) {
            Ok(transfer) => self.transfer = Some(transfer),
            Err(error) => return self.on_damage(storage, error),
        }
        self.note_transfer();
        let (group, node, slot) = (self.tenure().group(), self.node_of(to), self.durable_slot);
        tracing::info!(%group, to = %node, slot, "a whole state is given");
        let offer = self.transfer.as_ref().and_then(Transfer::offer);
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
        assert_eq!(applied.slot, self.durable_slot, "the tree holds the last checkpoint");
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

    pub(super) fn on_piece(
        &mut self,
        storage: &dyn Storage,
        from: NodeId,
        piece: Piece,
    ) -> Result<(), StorageError> {
        if self.is_installing() {
            return Ok(());
        }
        let transfer = piece.transfer;
        let is_known = self.install.as_ref().is_some_and(|install| install.is_from(from, transfer));
        if !is_known {
            // In Byzantine mode what is taken was offered first.
            if !self.is_quiet() || self.signed.is_some() {
                return Ok(());
            }
            // A first piece that is late, or comes twice, must not begin again what is over, or take the place of what goes on:
            // what was stored once is not given again.
            let is_past = self.begun.get(&from).is_some_and(|begun| transfer <= *begun);
            if piece.index != 0 || is_past {
                self.refuse_piece(from, transfer);
                return Ok(());
            }
            let (install, clearing) = Install::begin(storage, self.machine.parts(), from, transfer)?;
            self.install = Some(install);
            self.begun.insert(from, transfer);
            self.writes.extend(clearing.into_iter().map(|writes| (writes, None)));
        }
        let index = piece.index;
        let install = self.install.as_mut().expect("it was just begun");
        if install.misses(piece.first) {
            self.end_taking(from);
            self.refuse_piece(from, transfer);
            return Ok(());
        }
        if install.has_taken(index) {
            self.acknowledge_again(from, transfer, index);
            return Ok(());
        }
        // Nobody has more under way than may be acknowledged: what comes too soon waits nowhere, and the sender will see.
        if self.pieces_in_flight() >= SNAPSHOT_WINDOW {
            return Ok(());
        }
        let install = self.install.as_mut().expect("it is known");
        if let Some(writes) = install.gather(piece) {
            self.writes.push_back((writes, Some(Purpose::Gathered { from, transfer, index })));
        } else if install.is_refused() {
            self.on_bad_state(from);
        }
        Ok(())
    }

    /// Pieces that were taken and are not durable yet.
    fn pieces_in_flight(&self) -> u64 {
        let is_piece = |purpose: &Purpose| matches!(purpose, Purpose::Gathered { .. });
        let waiting = self.writes.iter().filter(|(_, purpose)| purpose.as_ref().is_some_and(is_piece));
        let submitted = self.written.iter().filter(|(_, purpose)| is_piece(purpose));
        waiting.count() as u64 + submitted.count() as u64
    }

    /// Nothing will come of this transfer: its sender may begin another.
    fn refuse_piece(&mut self, to: NodeId, transfer: u64) {
        let body = encode(&GroupMessage::PieceUnknown { transfer });
        self.outputs.push(Output::Send { to, is_bulk: true, body });
    }

    /// A piece came again: its acknowledgement was lost, unless it is not durable yet.
    fn acknowledge_again(&mut self, from: NodeId, transfer: u64, index: u64) {
        let this = Purpose::Gathered { from, transfer, index };
        let is_waiting = self.writes.iter().any(|(_, purpose)| *purpose == Some(this))
            || self.written.iter().any(|(_, purpose)| *purpose == this);
        if !is_waiting {
            let body = encode(&GroupMessage::PieceStored { transfer, index });
            self.outputs.push(Output::Send { to: from, is_bulk: true, body });
        }
    }

    /// Switches to a snapshot when all of it is durable and nothing else is being written. One that is not ahead of
    /// this replica is dropped; so is any if it leads: a leader has adopted everything decided.
    pub(super) fn switch_if_gathered(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        let Some(install) = self.install.as_ref().filter(|install| !install.has_switched()) else {
            return Ok(());
        };
        let Some(slot) = install.applied().map(|applied| applied.slot) else { return Ok(()) };
        if !self.is_quiet() {
            return Ok(());
        }
        let is_settled = self.signed.is_none() && self.engine.is_leader();
        let is_behind = !self.is_repairing() && slot <= self.machine.reached().slot;
        let fits = match self.machine.root_of_tree() {
            // What was executed while the state came may have changed parts that were not taken.
            Some(root) => self.is_repairing() || install.still_fits(root),
            None if self.signed.is_some() && !self.is_repairing() => return Ok(()),
            None => true,
        };
        if is_behind || is_settled || !fits {
            self.install = None;
            return Ok(());
        }
        self.abandon_requests();
        // The tree is about to hold something else than what is being given, or scrubbed.
        if let Some(to) = self.transfer.as_ref().map(|transfer| transfer.to) {
            self.end_transfer(storage, to)?;
        }
        if let Some(signed) = self.signed.as_mut() {
            signed.scrub.give_up();
        }
        if self.is_quiet() { self.continue_install(storage) } else { Ok(()) }
    }

    fn load_installed(&self, storage: &dyn Storage) -> Result<Machine, StorageError> {
        let machine = Machine::load(storage, Arc::clone(self.tenure()), self.rules)?;
        if self.signed.is_some() { machine.with_root(storage) } else { Ok(machine) }
    }

    pub(super) fn continue_install(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        let group = self.tenure().group();
        let Some(install) = self.install.as_mut() else {
            return Ok(());
        };
        let parts = install.parts();
        match install.next_batch(storage) {
            Ok(None) => {}
            Ok(Some(writes)) => {
                self.writes.push_back((writes, Some(Purpose::Installing)));
                return Ok(());
            }
            Err(error) => return self.on_damage(storage, error),
        }
        tracing::info!(%group, parts, "another state is in place");
        let applied = install.applied().expect("only a whole snapshot is installed").clone();
        self.install = None;
        self.machine = match self.load_installed(storage) {
            Ok(machine) => machine,
            Err(error) => return self.on_damage(storage, error),
        };
        assert_eq!(self.machine.reached(), &applied, "the snapshot is in place");
        self.durable_slot = applied.slot;
        self.digests.clear();
        if let Some(signed) = self.signed.as_mut() {
            signed.sources.reset();
        }
        self.end_repair();
        self.engine.step(Event::SnapshotInstalled { base: base_of(self.machine.tenure(), &applied) });
        self.note_cut(self.retain());
        self.carry_out(storage)
    }
}
