//! Byzantine mode: from whom a whole state is taken, and for how long.
//!
//! A replica that no log reaches asks one replica after the other. Each offers the sums of the parts of its state, which a
//! stable checkpoint proves; the parts that differ, or cannot be read here, are gathered aside, and each is held against its sum. Whoever gives
//! what is not in the offer, or gives too slowly, is left for another, who goes on with the parts that held.
//!
//! Invariants:
//! * nothing but a part that holds counts as progress: not an offer, not a piece, not a row;
//! * whoever gives a state has some seconds, and time in proportion to what of it held and the part that is under way;
//! * what is stored of a part, and what is in memory of pieces, stays within what the offer proves and a window of pieces.

use crate::error::StorageError;
use crate::group::message::{GroupMessage, Offer, encode};
use crate::group::state::install::{Here, Install};
use crate::group::{Group, Output};
use crate::kv::{PartSet, StateRoot};
use crate::limits::{SOURCE_BYTES_PER_SECOND, SOURCE_PATIENCE_MILLIS};
use crate::ring::NodeId;
use crate::storage::Storage;
use std::collections::BTreeSet;
use std::sync::Arc;
use tetrachord_consensus::pbft::Verified;
use tetrachord_consensus::{Digest, Mutation, ReplicaId, Slot, Ticks};

/// Replicas that may give a whole state.
#[derive(Debug, Default)]
pub(in crate::group) struct Sources {
    /// A deliberate defect; only tests can set one.
    mutation: Mutation,
    /// Those that were asked, and did not fail since.
    asked: BTreeSet<NodeId>,
    /// When the state began that is being taken.
    begun_at: Ticks,
    /// Those that failed since a state was last put in place: others are asked first.
    failed: BTreeSet<NodeId>,
    /// How often since somebody was asked the engine named one that had failed.
    passed_over: usize,
    /// How often in a row one was too slow.
    late: u32,
    /// Those that gave a state which its proof did not prove, in this life.
    liars: BTreeSet<NodeId>,
}

/// Patience doubles each time that all of them were too slow, up to so many times: then it may be this replica, or its links.
const DOUBLINGS_MAX: u32 = 10;

impl Sources {
    pub(in crate::group) fn new(mutation: Mutation) -> Self {
        Self { mutation, ..Self::default() }
    }

    /// Whoever was asked, says something. The broken variant takes that for progress.
    pub(in crate::group) fn hear(&mut self, now: Ticks) {
        if self.mutation.counts_any_sign_of_life() {
            self.begun_at = now;
        }
    }

    /// Whether this one is to be asked now. One that failed waits until the others, `others` in all, had their turn; unless the
    /// engine names nobody else.
    fn ask(&mut self, node: NodeId, others: usize) -> bool {
        if self.failed.len() >= others {
            self.failed.clear();
        }
        if self.failed.contains(&node) && self.passed_over < self.failed.len() {
            self.passed_over += 1;
            return false;
        }
        self.passed_over = 0;
        self.asked.insert(node);
        true
    }

    fn has_asked(&self, node: NodeId) -> bool {
        self.asked.contains(&node)
    }

    fn fail(&mut self, node: NodeId) {
        self.asked.remove(&node);
        self.failed.insert(node);
    }

    /// Whether whoever gives a state since `begun_at` takes too long for the bytes that were due by now.
    fn is_late(&self, now: Ticks, due_bytes: u64, others: usize) -> bool {
        let for_bytes = due_bytes.saturating_mul(1_000) / SOURCE_BYTES_PER_SECOND;
        let rounds = self.late / u32::try_from(others.max(1)).expect("few replicas");
        let patience =
            SOURCE_PATIENCE_MILLIS.saturating_add(for_bytes).saturating_mul(1 << rounds.min(DOUBLINGS_MAX));
        now.since(self.begun_at) >= patience
    }

    /// Nobody is asked for anything any more, or it is asked for anew.
    pub(in crate::group) fn reset(&mut self) {
        *self = Self { liars: std::mem::take(&mut self.liars), ..Self::new(self.mutation) };
    }

    /// Those that gave a state which its proof did not prove.
    pub(in crate::group) fn liars(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.liars.iter().copied()
    }
}

impl Group {
    /// The engine has no other way to catch up: asks one replica for its whole state. The engine says so again and again.
    pub(in crate::group) fn fetch_state(&mut self, from: ReplicaId, at_least: Slot) {
        if self.taking.is_gathered() || !self.is_source_late() {
            return;
        }
        let (node, others) = (self.node_of(from), self.tenure().members.len() - 1);
        let signed = self.signed.as_mut().expect("only a Byzantine engine asks");
        if signed.sources.ask(node, others) {
            let body = encode(&GroupMessage::WantState { at_least: at_least.0 });
            self.outputs.push(Output::Send { to: node, is_bulk: false, body });
        }
    }

    /// Whether nobody gives a state, or whoever does is given up now.
    fn is_source_late(&mut self) -> bool {
        let (group, others) = (self.tenure().group(), self.tenure().members.len() - 1);
        let signed = self.signed.as_mut().expect("the caller has asked");
        let Some(install) = self.taking.install.as_mut() else { return true };
        let Some(source) = install.source() else { return true };
        let due_bytes = install.due_bytes();
        if !signed.sources.is_late(self.now, due_bytes, others) {
            return false;
        }
        tracing::info!(%group, %source, due_bytes, "a state comes too slowly; another replica is asked");
        signed.sources.late += 1;
        signed.sources.fail(source);
        install.refuse();
        true
    }

    /// Another replica has a state to give: the parts that differ from what is here, or cannot be read, are taken, if it is proved to be right.
    pub(in crate::group) fn on_offer(
        &mut self,
        storage: &dyn Storage,
        from: NodeId,
        offer: &Offer,
    ) -> Result<(), StorageError> {
        let has_asked = self.signed.as_ref().is_some_and(|signed| signed.sources.has_asked(from));
        if self.is_installing() || !has_asked {
            return Ok(());
        }
        self.signed.as_mut().expect("it was just asked for").sources.hear(self.now);
        if let Some(install) =
            self.taking.install.as_ref().filter(|install| install.is_from(from, offer.transfer))
        {
            let parts = install.asked();
            self.take_parts(from, offer.transfer, parts);
            return Ok(());
        }
        // One at a time, and one offer of each: to begin anew costs more than to offer.
        let is_given = self.taking.install.as_ref().is_some_and(|install| install.source().is_some());
        let is_news = self.is_repairing() || offer.applied.slot > self.machine.reached().slot;
        if is_given || self.taking.is_gathered() || !is_news || !self.tree.is_quiet() || !self.is_known() {
            return Ok(());
        }
        let replica = self.replica_of(from).expect("messages come from replicas of this group");
        let (tenure, parts) = (Arc::clone(self.tenure()), self.machine.parts());
        let signed = self.signed.as_mut().expect("it was just asked for");
        let proven = signed.verifier.read_stable(replica, self.now, &offer.proof);
        let root = StateRoot::from_hashes(parts, &offer.hashes);
        let is_right = |(slot, proven, _): &(Slot, Digest, Verified)| {
            let root = root.as_ref().map(|root| root.digest(&tenure, &offer.applied));
            slot.0 == offer.applied.slot && root == Some(proven.0)
        };
        let (Some(root), Some((.., proof))) = (root.clone(), proven.filter(is_right)) else {
            self.on_bad_state(from);
            return Ok(());
        };
        // The engine must know of the checkpoint before the state is in place. As a message it would wait until it is checked, which may
        // take longer than the state, or be left alone, if much of that replica waits already.
        if let Some(pbft) = self.seat.pbft() {
            pbft.verified(Ok(proof));
        }
        self.carry_out(storage)?;
        if self.tree.is_quiet() { self.begin_taking(storage, from, offer, root) } else { Ok(()) }
    }

    /// Whether it is known what is here.
    fn is_known(&self) -> bool {
        match self.signed.as_ref().and_then(|signed| signed.repair.as_ref()) {
            Some(repair) => repair.has_walked(),
            None => self.machine.root_of_tree().is_some(),
        }
    }

    /// The state that is here, to which an offered one is held; none yet if the tree is still being walked for that, or written to. The offer
    /// will come again.
    fn here(&self) -> Option<Here> {
        match self.signed.as_ref().and_then(|signed| signed.repair.as_ref()) {
            Some(repair) => repair.found(),
            None => {
                let root = self.machine.root_of_tree()?.clone();
                Some(Here {
                    root,
                    has_pieces: self.machine.reached().has_pieces,
                    unreadable: PartSet::default(),
                })
            }
        }
    }

    fn begin_taking(
        &mut self,
        storage: &dyn Storage,
        from: NodeId,
        offer: &Offer,
        root: StateRoot,
    ) -> Result<(), StorageError> {
        let parts = self.machine.parts();
        let Some(here) = self.here() else { return Ok(()) };
        let earlier = self.taking.install.take();
        let (install, clearing) = Install::offered(storage, parts, (from, offer), root, &here, earlier)?;
        let parts = install.asked();
        self.taking.install = Some(install);
        self.tree.write_before(clearing);
        self.signed.as_mut().expect("it was just asked for").sources.begun_at = self.now;
        self.take_parts(from, offer.transfer, parts);
        Ok(())
    }

    fn take_parts(&mut self, from: NodeId, transfer: u64, parts: PartSet) {
        let body = encode(&GroupMessage::Take { transfer, parts });
        self.outputs.push(Output::Send { to: from, is_bulk: false, body });
    }

    /// A replica gave a state that its proof does not prove, or more than it offered.
    pub(in crate::group) fn on_bad_state(&mut self, from: NodeId) {
        if let Some(signed) = self.signed.as_mut() {
            signed.sources.fail(from);
            signed.sources.liars.insert(from);
        }
        if let Some(install) = self.taking.install.as_mut().filter(|install| install.source() == Some(from)) {
            install.refuse();
        }
    }

    /// What a source gave is not here any more, or cannot be used: it may be asked again after others.
    pub(in crate::group) fn end_taking(&mut self, from: NodeId) {
        if let Some(signed) = self.signed.as_mut() {
            signed.sources.fail(from);
        }
        if let Some(install) = self.taking.install.as_mut() {
            install.refuse();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);

    #[test]
    fn whoever_failed_is_asked_again_only_when_others_had_their_turn() {
        let mut sources = Sources::default();
        assert!([ONE, OTHER, ONE].map(|node| sources.ask(node, 3)).iter().all(|is_asked| *is_asked));
        sources.fail(ONE);
        assert!(!sources.has_asked(ONE) && sources.has_asked(OTHER));
        assert!(!sources.ask(ONE, 3) && sources.ask(OTHER, 3), "others first");
        assert!(!sources.ask(ONE, 3) && sources.ask(ONE, 3), "the engine names nobody else");
        sources.reset();
        assert!(sources.ask(ONE, 3) && sources.ask(OTHER, 3));
    }

    #[test]
    fn when_all_have_failed_the_next_one_is_asked() {
        let mut sources = Sources::default();
        let all = [ONE, OTHER, NodeId(3)];
        all.iter().for_each(|node| sources.fail(*node));
        assert!(all.iter().all(|node| sources.ask(*node, all.len())));
        // Two of them, and the engine does not name the third: it is not there.
        sources.fail(ONE);
        sources.fail(OTHER);
        let turns: Vec<bool> = [ONE, OTHER, ONE, OTHER].map(|node| sources.ask(node, all.len())).to_vec();
        assert_eq!(turns, [false, false, true, false]);
    }

    #[test]
    fn time_follows_from_what_holds_and_grows_when_all_were_too_slow() {
        let mut sources = Sources { begun_at: Ticks(1_000), ..Sources::default() };
        let others = 3;
        let at = |millis: u64| Ticks(1_000 + millis);
        assert!(!sources.is_late(at(SOURCE_PATIENCE_MILLIS - 1), 0, others));
        assert!(sources.is_late(at(SOURCE_PATIENCE_MILLIS), 0, others));
        let bytes = 5 * SOURCE_BYTES_PER_SECOND;
        assert!(!sources.is_late(at(SOURCE_PATIENCE_MILLIS + 4_999), bytes, others));
        assert!(sources.is_late(at(SOURCE_PATIENCE_MILLIS + 5_000), bytes, others));
        sources.late = 2;
        assert!(sources.is_late(at(SOURCE_PATIENCE_MILLIS), 0, others));
        sources.late = 3;
        assert!(!sources.is_late(at(2 * SOURCE_PATIENCE_MILLIS - 1), 0, others));
        sources.late = u32::MAX;
        assert!(!sources.is_late(at(1_000_000), u64::MAX, others), "nothing overflows");
    }
}
