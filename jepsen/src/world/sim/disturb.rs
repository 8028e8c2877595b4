//! The nemesis at work: every now and then something breaks, or is mended.

use super::network::index_of;
use super::{Event, World};
use crate::nemesis::{Nemesis, partition};
use crate::plan::Mode;
use tetrachord::group::as_engine;
use tetrachord::node::core::{NodeCore, NodeEvent};
use tetrachord::storage::memory::MemoryDisk;
use tetrachord::wire::{self, PeerMessage};
use tetrachord_consensus::paxos::Message;
use tetrachord_consensus::{Digest, LogBase, Slot, codec};

/// Kinds of faults that strike at a moment; the others are at work all the time.
const STRIKES: [Nemesis; 13] = [
    Nemesis::Kill,
    Nemesis::PowerCut,
    Nemesis::Pause,
    Nemesis::Halves,
    Nemesis::Isolate,
    Nemesis::MajoritiesRing,
    Nemesis::Bridge,
    Nemesis::OneWay,
    Nemesis::ClockJump,
    Nemesis::Rot,
    Nemesis::DiskFull,
    Nemesis::WipedDisk,
    Nemesis::Halt,
];

impl World {
    pub(super) fn strike(&mut self) {
        if self.is_calm {
            return;
        }
        let micros = self.random.between(1, 2 * self.plan.fault_every * 1_000);
        self.after(micros, Event::Strike);
        self.mend();
        for index in 0..self.nodes.len() {
            if self.nodes[index].lies && self.nodes[index].core.is_some() && self.random.coin() {
                self.lie_anew(index);
            }
        }
        let possible: Vec<Nemesis> = STRIKES.into_iter().filter(|nemesis| self.plan.has(*nemesis)).collect();
        if !possible.is_empty() && self.random.per_mille(700) {
            let nemesis = possible[self.random.index(possible.len())];
            self.break_something(nemesis);
        }
    }

    /// What is down may come back, what is cut may heal.
    fn mend(&mut self) {
        for index in 0..self.nodes.len() {
            if self.nodes[index].core.is_none() && self.random.per_mille(600) {
                self.start(index);
            }
        }
        for index in 0..self.nodes.len() {
            if self.nodes[index].is_short && self.random.per_mille(300) {
                self.empty_disk(index);
            }
        }
        if !self.network.cut.is_empty() && self.random.per_mille(500) {
            self.trace.note(|| "links heal".to_string());
            self.heal();
        }
    }

    fn break_something(&mut self, nemesis: Nemesis) {
        let count = self.nodes.len();
        let victim = self.random.index(count);
        self.trace.note(|| format!("nemesis: {}", nemesis.name()));
        match nemesis {
            Nemesis::Kill => self.kill(victim),
            Nemesis::PowerCut => {
                self.count(nemesis, 1, 1);
                for index in 0..count {
                    let kept = self.random.index(3);
                    self.crash(index, kept);
                }
            }
            Nemesis::Pause => self.pause(victim),
            Nemesis::ClockJump => {
                let micros =
                    i64::try_from(self.random.below(7_200_000_000)).expect("two hours") - 3_600_000_000;
                // In Byzantine mode a wrong clock is a fault like any other: no more than f nodes ever have one. If more had,
                // ordered time could come to lie an hour ahead, and every request would be void until then.
                let victim = match self.plan.mode {
                    Mode::Byzantine => self.plan.unlucky(0),
                    Mode::Crash => victim,
                };
                self.nodes[victim].wall_offset = micros;
                self.count(nemesis, 1, 1);
            }
            Nemesis::Rot => self.rot(),
            Nemesis::DiskFull => {
                self.count(nemesis, 1, 0);
                self.nodes[victim].is_short = true;
                self.tell_room(victim);
            }
            Nemesis::WipedDisk => self.wipe(),
            Nemesis::Halt => self.halt(victim, None),
            partition => self.cut(partition),
        }
    }

    fn kill(&mut self, victim: usize) {
        let was_up = self.nodes[victim].core.is_some();
        let kept = self.random.index(3);
        self.crash(victim, kept);
        self.count(Nemesis::Kill, 1, u64::from(was_up));
    }

    /// Where a node has said something and its disk is not done with all that it was given, a kill tells whether that was too early.
    /// Chance alone would seldom meet such a moment.
    pub(super) fn kill_at_a_bad_moment(&mut self, index: usize) {
        let pending = self.nodes[index].disk.pending();
        let is_possible = !self.is_calm && pending > 0 && self.plan.has(Nemesis::Kill);
        if !is_possible || !self.random.per_mille(self.plan.bad_moments_per_mille) {
            return;
        }
        let kept = self.random.index(pending + 1);
        let was_up = self.nodes[index].core.is_some();
        self.crash(index, kept);
        self.count(Nemesis::Kill, 1, u64::from(was_up));
        if self.random.coin() {
            // Whoever is back at once hears what was meant for its earlier life.
            let micros = self.random.between(100, 50_000);
            self.after(micros, Event::Restart { node: index });
        }
    }

    pub(super) fn restart(&mut self, index: usize) {
        if self.nodes[index].core.is_none() {
            self.start(index);
        }
    }

    fn pause(&mut self, victim: usize) {
        if self.nodes[victim].core.is_none() || self.nodes[victim].is_paused {
            return;
        }
        self.nodes[victim].is_paused = true;
        self.count(Nemesis::Pause, 1, 0);
        let (micros, life) = (self.random.between(50_000, 3_000_000), self.nodes[victim].life);
        self.after(micros, Event::Resume { node: victim, life });
    }

    fn cut(&mut self, nemesis: Nemesis) {
        self.count(nemesis, 1, 0);
        self.heal();
        self.network.keeps = self.random.coin();
        let cut = partition::draw(nemesis, self.nodes.len(), &mut self.random);
        self.network.cut = cut.into_iter().map(|pair| (pair, nemesis)).collect();
    }

    /// One of the victim's replicas is told what its leader cannot mean, together with something else that happens: it stops, while the
    /// node's other replicas go on until the end of the turn.
    pub(super) fn halt(&mut self, victim: usize, with: Option<NodeEvent>) {
        let nonsense = self.nonsense_for(victim);
        self.count(Nemesis::Halt, u64::from(nonsense.is_some()), 0);
        self.nodes[victim].is_told_nonsense = true;
        self.turn(victim, with.into_iter().chain(nonsense));
        self.nodes[victim].is_told_nonsense = false;
    }

    /// An Accept whose entries would follow another log than the one that the replica accepted in the same ballot.
    fn nonsense_for(&self, victim: usize) -> Option<NodeEvent> {
        let groups = self.nodes[victim].core.iter().flat_map(|core| core.groups());
        groups
            .filter_map(|group| {
                let place = group.place();
                let ballot = self.durable.accepted_in(victim, place.id)?;
                let from = place.nodes[usize::from(ballot.replica.0)];
                let previous = LogBase { slot: group.engine().last, chain: Digest([9; 32]), sealed: false };
                let accept =
                    Message::Accept { ballot, previous, entries: vec![], decided: Slot(0), quorate: true };
                let body = as_engine(codec::encode(&accept));
                let frame = wire::encode(&PeerMessage::Group { group: place.id, body });
                (index_of(from) != victim).then(|| NodeEvent::Peer { from, body: frame.slice(4..) })
            })
            .next()
    }

    /// A disk has room again.
    pub(super) fn empty_disk(&mut self, index: usize) {
        if std::mem::take(&mut self.nodes[index].is_short) {
            self.trace.note(|| format!("the disk of n{} has room again", index + 1));
            self.tell_room(index);
        }
    }

    /// One of the faulty nodes ends, and finds an empty disk when it comes back.
    fn wipe(&mut self) {
        let victim = self.plan.faulty(self.random.index(self.plan.liars()));
        self.crash(victim, 0);
        self.nodes[victim].disk = MemoryDisk::default();
        self.nodes[victim].is_forgetful = true;
        self.durable.forget(victim);
        self.count(Nemesis::WipedDisk, 1, 1);
    }

    /// Changes a row of a node's state. The same `f` nodes suffer it in the whole run: damage that is not found yet counts as
    /// well, and so do the roots that a node signed before its repair.
    fn rot(&mut self) {
        if self.plan.has(Nemesis::Lies) {
            return;
        }
        let victim = self.plan.faulty(self.random.index(self.plan.liars()));
        let node = &self.nodes[victim];
        let is_told = |core: &NodeCore| core.groups().any(|group| group.damage().is_some());
        let rows = node.disk.rows(b"d");
        if node.core.as_ref().is_some_and(is_told) || rows.is_empty() {
            return;
        }
        let (raw, record) = &rows[self.random.index(rows.len())];
        let mut changed = record.to_vec();
        if let Some(last) = changed.last_mut() {
            *last ^= 1;
        }
        self.trace.note(|| format!("a row of n{} is changed", victim + 1));
        self.nodes[victim].disk.tamper(raw, Some(changed.into()));
        self.nodes[victim].is_rotten = true;
        self.count(Nemesis::Rot, 1, 1);
    }
}
