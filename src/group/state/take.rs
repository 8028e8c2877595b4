//! Taking a whole state from another replica: its pieces are stored aside, and when all are there the state takes the place of what is here.

use super::Purpose;
use super::install::Install;
use crate::error::StorageError;
use crate::group::message::{GroupMessage, Piece, encode};
use crate::group::open::base_of;
use crate::group::{Group, Output};
use crate::kv::Machine;
use crate::limits::SNAPSHOT_WINDOW;
use crate::ring::NodeId;
use crate::storage::Storage;
use std::collections::BTreeMap;
use std::sync::Arc;
use tetrachord_consensus::Event;

/// The state that is being taken.
#[derive(Debug, Default)]
pub(in crate::group) struct Taking {
    pub(in crate::group) install: Option<Install>,
    /// The latest transfer that was begun from each node: their names grow, so what is not above it is of the past.
    begun: BTreeMap<NodeId, u64>,
}

impl Taking {
    /// Goes on with what a crash interrupted, if anything.
    pub(in crate::group) fn of(install: Option<Install>) -> Self {
        Self { install, begun: BTreeMap::new() }
    }

    /// Whether a state is being put in place, so that this replica has none to answer from.
    pub(in crate::group) fn has_switched(&self) -> bool {
        self.install.as_ref().is_some_and(Install::has_switched)
    }

    /// Whether a whole state is here, and only waits for its turn to be put in place, or is.
    pub(in crate::group) fn is_gathered(&self) -> bool {
        self.install.as_ref().is_some_and(|install| install.applied().is_some())
    }

    /// Whether this piece belongs to what is being taken.
    fn is_of(&self, from: NodeId, transfer: u64) -> bool {
        self.install.as_ref().is_some_and(|install| install.is_from(from, transfer))
    }

    /// Whether a transfer of this name from this node is over, or going on.
    fn is_past(&self, from: NodeId, transfer: u64) -> bool {
        self.begun.get(&from).is_some_and(|begun| transfer <= *begun)
    }
}

impl Group {
    pub(in crate::group) fn on_piece(
        &mut self,
        storage: &dyn Storage,
        from: NodeId,
        piece: Piece,
    ) -> Result<(), StorageError> {
        if self.is_installing() {
            return Ok(());
        }
        let transfer = piece.transfer;
        if !self.taking.is_of(from, transfer) {
            // Where it is not believed, what is taken was offered first.
            if !self.tree.is_quiet() || !self.believes_states() {
                return Ok(());
            }
            // A first piece that is late, or comes twice, must not begin again what is over, or take the place of what goes on:
            // what was stored once is not given again.
            if piece.index != 0 || self.taking.is_past(from, transfer) {
                self.refuse_piece(from, transfer);
                return Ok(());
            }
            let (install, clearing) = Install::begin(storage, self.machine.parts(), from, transfer)?;
            self.taking.install = Some(install);
            self.taking.begun.insert(from, transfer);
            self.tree.write_before(clearing);
        }
        let index = piece.index;
        let install = self.taking.install.as_mut().expect("it was just begun");
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
        if self.tree.pieces_in_flight() >= SNAPSHOT_WINDOW {
            return Ok(());
        }
        let install = self.taking.install.as_mut().expect("it is known");
        if let Some(writes) = install.gather(piece) {
            self.tree.write(writes, Purpose::Gathered { from, transfer, index });
        } else if install.is_refused() {
            self.on_bad_state(from);
        }
        Ok(())
    }

    /// Nothing will come of this transfer: its sender may begin another.
    fn refuse_piece(&mut self, to: NodeId, transfer: u64) {
        let body = encode(&GroupMessage::PieceUnknown { transfer });
        self.outputs.push(Output::Send { to, is_bulk: true, body });
    }

    /// A piece came again: its acknowledgement was lost, unless it is not durable yet.
    fn acknowledge_again(&mut self, from: NodeId, transfer: u64, index: u64) {
        let this = Purpose::Gathered { from, transfer, index };
        if !self.tree.is_storing(this) {
            let body = encode(&GroupMessage::PieceStored { transfer, index });
            self.outputs.push(Output::Send { to: from, is_bulk: true, body });
        }
    }

    /// Switches to a snapshot when all of it is durable and nothing else is being written. One that is not ahead of
    /// this replica is dropped; so is any if it leads: a leader has adopted everything decided.
    pub(in crate::group) fn switch_if_gathered(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        let Some(install) = self.taking.install.as_ref().filter(|install| !install.has_switched()) else {
            return Ok(());
        };
        let Some(slot) = install.applied().map(|applied| applied.slot) else { return Ok(()) };
        if !self.tree.is_quiet() {
            return Ok(());
        }
        let is_settled = self.knows_all_decided();
        let is_behind = !self.is_repairing() && slot <= self.machine.reached().slot;
        let fits = match self.machine.root_of_tree() {
            // What was executed while the state came may have changed parts that were not taken.
            Some(root) => self.is_repairing() || install.still_fits(root),
            None if !self.believes_states() && !self.is_repairing() => return Ok(()),
            None => true,
        };
        if is_behind || is_settled || !fits {
            self.taking.install = None;
            return Ok(());
        }
        self.abandon_requests();
        // The tree is about to hold something else than what is being given, or scrubbed.
        if let Some(to) = self.giving.to() {
            self.end_transfer(storage, to)?;
        }
        if let Some(signed) = self.signed.as_mut() {
            signed.scrub.give_up();
        }
        if self.tree.is_quiet() { self.continue_install(storage) } else { Ok(()) }
    }

    fn load_installed(&self, storage: &dyn Storage) -> Result<Machine, StorageError> {
        let machine = Machine::load(storage, Arc::clone(self.tenure()), self.rules)?;
        if self.believes_states() { Ok(machine) } else { machine.with_root(storage) }
    }

    pub(in crate::group) fn continue_install(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        let group = self.tenure().group();
        let Some(install) = self.taking.install.as_mut() else {
            return Ok(());
        };
        let parts = install.parts();
        match install.next_batch(storage) {
            Ok(None) => {}
            Ok(Some(writes)) => {
                self.tree.write(writes, Purpose::Installing);
                return Ok(());
            }
            Err(error) => return self.on_damage(storage, error),
        }
        tracing::info!(%group, parts, "another state is in place");
        let applied = install.applied().expect("only a whole snapshot is installed").clone();
        self.taking.install = None;
        self.machine = match self.load_installed(storage) {
            Ok(machine) => machine,
            Err(error) => {
                // What went bad meanwhile may be in a part that was held to be right.
                self.walk_anew();
                return self.on_damage(storage, error);
            }
        };
        assert_eq!(self.machine.reached(), &applied, "the snapshot is in place");
        self.tree.durable_slot = applied.slot;
        self.digests.clear();
        if let Some(signed) = self.signed.as_mut() {
            signed.sources.reset();
        }
        self.end_repair();
        self.seat.step(Event::SnapshotInstalled { base: base_of(self.machine.tenure(), &applied) });
        self.note_cut(self.retain());
        self.carry_out(storage)
    }
}
