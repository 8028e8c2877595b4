//! The nemesis at work: every now and then something breaks, or is mended.

use super::network::index_of;
use super::node::{Stranger, store_name};
use super::{Event, World};
use crate::nemesis::{Nemesis, partition};
use tetrachord::group::as_engine;
use tetrachord::node::core::{NodeCore, NodeEvent};
use tetrachord::storage::memory::MemoryDisk;
use tetrachord::wire::{self, PeerMessage};
use tetrachord_consensus::paxos::Message;
use tetrachord_consensus::{Digest, LogBase, Slot, codec};

/// Kinds of faults that strike at a moment; the others are at work all the time.
const STRIKES: [Nemesis; 16] = [
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
    Nemesis::HungDisk,
    Nemesis::WipedDisk,
    Nemesis::OldCopy,
    Nemesis::Halt,
    Nemesis::Flood,
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
            if self.nodes[index].is_apart && self.random.coin() {
                self.start_copy_again(index);
            }
            if self.nodes[index].stranger.is_some() && self.random.per_mille(300) {
                self.put_own_disk_back(index, false);
            }
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
            Nemesis::ClockJump => self.jump_clock(),
            Nemesis::Rot => self.rot(),
            Nemesis::DiskFull => {
                self.count(nemesis, 1, 0);
                self.nodes[victim].is_short = true;
                self.tell_room(victim);
            }
            Nemesis::WipedDisk => self.wipe(victim),
            Nemesis::OldCopy => self.put_back_old_copy(victim),
            Nemesis::Halt => self.halt(victim, None),
            Nemesis::HungDisk => {
                self.count(nemesis, 1, 0);
                self.nodes[victim].is_hang_felt = false;
                self.nodes[victim].hung_until = self.now + self.random.between(1_000_000, 20_000_000);
            }
            Nemesis::Flood => self.begin_flood(victim),
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
                let tenure = group.tenure();
                let ballot = self.durable.accepted_in(victim, tenure.group())?;
                let from = tenure.members[usize::from(ballot.replica.0)].node;
                let previous =
                    LogBase { slot: group.engine().last, chain: Digest([9; 32]), ..LogBase::default() };
                let accept =
                    Message::Accept { ballot, previous, entries: vec![], decided: Slot(0), quorate: true };
                let body = as_engine(codec::encode(&accept));
                let frame = wire::encode(&PeerMessage::of(tenure.id, body));
                let link = self.nodes[index_of(from)].life;
                (index_of(from) != victim).then(|| NodeEvent::Peer { from, link, body: frame.slice(4..) })
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

    fn one_of_the_faulty(&mut self) -> usize {
        let faulty = self.plan.faulty();
        faulty[self.random.index(faulty.len())]
    }

    /// A node ends, and finds an empty disk when it comes back, with the file that lets it start as if it never had.
    fn wipe(&mut self, victim: usize) {
        // Before it was admitted nobody could tell the one store from the other, and neither has promised anything.
        if self.has_stranger() || !self.durable.is_admitted(victim) {
            return;
        }
        self.last_store += 1;
        self.exchange_disk(victim, Stranger::Empty, MemoryDisk::named(store_name(self.last_store)));
    }

    /// A copy of a node's disk is made, or one that was made before is put in the place of its disk. That is noticed only by those
    /// who know more; where they are too few, or were put back as well, nobody can notice. So all others must know more, and one disk
    /// is exchanged at a time.
    fn put_back_old_copy(&mut self, victim: usize) {
        let Some(copy) = self.nodes[victim].copy.take().filter(|_| !self.random.per_mille(300)) else {
            self.nodes[victim].copy = Some(self.nodes[victim].disk.copy());
            return;
        };
        let age = copy.age();
        let mut others = (0..self.nodes.len()).filter(|other| *other != victim);
        if self.has_stranger() || !others.all(|other| self.durable.knows_more(other, victim, age)) {
            self.nodes[victim].copy = Some(copy);
            return;
        }
        self.nodes[victim].is_apart = self.random.coin();
        self.exchange_disk(victim, Stranger::Copy, copy);
    }

    /// A copy that nobody has heard yet is started once more: how far it has come and how often it was started tells nothing then.
    fn start_copy_again(&mut self, index: usize) {
        self.crash(index, 1);
        self.nodes[index].is_apart = self.random.coin();
        self.start(index);
    }

    fn has_stranger(&self) -> bool {
        self.nodes.iter().any(|node| node.stranger.is_some())
    }

    fn exchange_disk(&mut self, victim: usize, stranger: Stranger, disk: MemoryDisk) {
        self.crash(victim, 0);
        let own = std::mem::replace(&mut self.nodes[victim].disk, disk);
        self.nodes[victim].stranger = Some((stranger, own));
        self.trace.note(|| format!("the disk of n{} is exchanged: {stranger:?}", victim + 1));
        self.count(nemesis_of(stranger), 1, 0);
        self.start(victim);
    }

    /// A node that has another disk gets its own back.
    pub(super) fn put_own_disk_back(&mut self, index: usize, has_refused: bool) {
        let Some((stranger, own)) = self.nodes[index].stranger.take() else { return };
        self.nodes[index].stranger = Some((stranger, MemoryDisk::default()));
        self.crash(index, 0);
        (self.nodes[index].stranger, self.nodes[index].is_apart) = (None, false);
        self.nodes[index].disk = own;
        self.count(nemesis_of(stranger), 0, u64::from(has_refused));
    }

    /// Changes a row of a node's state. The same nodes suffer it in the whole run, `f` of a group: damage that is not found yet counts as
    /// well, and so do the roots that a node signed before its repair.
    fn rot(&mut self) {
        if self.plan.has(Nemesis::Lies) {
            return;
        }
        let victim = self.one_of_the_faulty();
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

fn nemesis_of(stranger: Stranger) -> Nemesis {
    match stranger {
        Stranger::Empty => Nemesis::WipedDisk,
        Stranger::Copy => Nemesis::OldCopy,
    }
}
