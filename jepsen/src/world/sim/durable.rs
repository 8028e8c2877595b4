//! What every disk durably holds, held against what nodes say and what they apply. No node is asked: its records are read as it
//! would read them after a crash.
//!
//! | invariant | source |
//! |---|---|
//! | a promise, an acknowledgement or a signed statement leaves when the disk holds what it rests on | persist before send |
//! | a node speaks in its groups when enough others have noted its store | who forgot must not vote |
//! | a node hears another in its groups when its disk knows that one's last start | who acknowledged something with a life knows of it |
//! | what a node notes of another is no life of an older copy; what it refuses is one | the same |
//! | who leads, to whom a quorum has durably promised (crash mode) | Paxos, phase 1 |
//! | a log that is rewritten still speaks of every group, and of promises no lower (crash mode) | promises are kept |
//! | what any replica has applied, a quorum durably holds; what a leader has, accepted in its ballot or later (crash mode) | Paxos, phase 2 |
//!
//! They are stronger than that nothing is lost: they do not wait for the one crash that loses it.

use super::invariant::News;
use super::said::{Kind, Statement};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use tetrachord::node::roster::{self, OWN};
use tetrachord::ring::{GroupId, NodeId, Tenure};
use tetrachord::storage::LogRecord;
use tetrachord::storage::memory::MemoryDisk;
use tetrachord::wire::{Life, Opening};
use tetrachord_consensus::paxos::{Ballot, Message, Recovered};
use tetrachord_consensus::pbft::Record;
use tetrachord_consensus::pbft::message::{NewViewBody, body_digest};
use tetrachord_consensus::{Slot, codec};

/// What one disk holds, record by record.
#[derive(Debug, Default)]
struct Disk {
    read: usize,
    replacements: u64,
    logs: BTreeMap<GroupId, Recovered>,
    /// Whether others have noted its store, and what it has noted of others.
    is_admitted: bool,
    notes: BTreeMap<NodeId, Life>,
    /// The openings at which it has refused another node's store.
    refused: BTreeMap<NodeId, u64>,
    /// What it promised in each group of which there are records; in Byzantine mode only that there are some.
    spoken_of: BTreeMap<GroupId, Ballot>,
    /// In Byzantine mode, all that was ever written down: what is signed once may be said again for ever.
    written: HashSet<(GroupId, Statement)>,
}

/// Follows all disks.
#[derive(Debug)]
pub(super) struct Durable {
    disks: Vec<Disk>,
    is_signed: bool,
    /// The marks of the openings of older copies, of which all others know more.
    copies: BTreeSet<u64>,
}

impl Disk {
    /// One of the node's own records.
    fn note(&mut self, record: &[u8]) {
        match codec::decode(record).expect("what is durable can be read") {
            roster::Record::Known { node, life } => drop(self.notes.insert(node, life)),
            roster::Record::Admitted { .. } => self.is_admitted = true,
            roster::Record::Refused { node, opening } => drop(self.refused.insert(node, opening.mark)),
            roster::Record::Opened(_) => {}
        }
    }
}

impl Durable {
    pub(super) fn new(nodes: usize, is_signed: bool) -> Self {
        Self { disks: (0..nodes).map(|_| Disk::default()).collect(), is_signed, copies: BTreeSet::new() }
    }

    /// An older copy of a disk is opened, with this mark.
    pub(super) fn beware(&mut self, mark: u64) {
        self.copies.insert(mark);
    }

    /// The disk of a node was replaced by an empty one.
    pub(super) fn forget(&mut self, index: usize) {
        self.disks[index] = Disk::default();
    }

    /// A signed statement leaves a node. What is wrong with that, if anything.
    pub(super) fn check_statement(
        &self,
        index: usize,
        group: GroupId,
        statement: &Statement,
    ) -> Option<String> {
        let rests_on = statement.rests_on();
        let holds = self.disks[index].written.contains(&(group, rests_on));
        (!holds).then(|| format!("n{} signs {statement:?} of {group} before its disk holds it", index + 1))
    }

    /// A message of Multi-Paxos leaves a node. What is wrong with that, if anything.
    pub(super) fn check_message(&self, index: usize, group: GroupId, message: &Message) -> Option<String> {
        if !matches!(message, Message::Promise { .. } | Message::Accepted { .. }) {
            return None;
        }
        let nothing = Recovered::default();
        let held = self.disks[index].logs.get(&group).unwrap_or(&nothing);
        let (is_held, what) = match message {
            Message::Promise { ballot, view, .. } => {
                (held.promised >= *ballot && held.accepted >= view.accepted, format!("promises {ballot}"))
            }
            Message::Accepted { ballot, durable } => {
                // In a later ballot its log may have become shorter, but not shorter than what was decided.
                let is_there = held.accepted > *ballot || held.log.last().slot >= *durable;
                (held.accepted >= *ballot && is_there, format!("acknowledges slot {durable} in {ballot}"))
            }
            _ => return None,
        };
        (!is_held).then(|| format!("n{} {what} of {group} before its disk holds it", index + 1))
    }

    /// A replica of this group says something new. What is wrong with that, if anything.
    pub(super) fn check_news(&self, index: usize, tenure: &Tenure, news: &News) -> Option<String> {
        if self.is_signed {
            return None;
        }
        let held_by = |node: &NodeId| self.disks[super::network::index_of(*node)].logs.get(&tenure.group());
        let ballot_of = |text: &String| {
            let promised = self.disks[index].logs.get(&tenure.group())?.promised;
            (promised.to_string() == *text).then_some(promised)
        };
        let quorum = |holds: &dyn Fn(&Recovered) -> bool| {
            let holders: Vec<NodeId> =
                tenure.nodes().filter(|node| held_by(node).is_some_and(holds)).collect();
            (holders.len() <= tenure.members.len() / 2)
                .then(|| format!("durable at {holders:?} of {:?} alone", tenure.nodes().collect::<Vec<_>>()))
        };
        match news {
            News::Leads { ballot } => {
                let Some(promised) = ballot_of(ballot) else {
                    return Some(format!(
                        "n{} leads {} in {ballot}, which its disk does not hold",
                        index + 1,
                        tenure.group()
                    ));
                };
                let missing = quorum(&|held| held.promised >= promised)?;
                Some(format!("n{} leads {} in {ballot}, promises {missing}", index + 1, tenure.group()))
            }
            News::Applied { slot: 0, .. } => None,
            News::Applied { slot, chain, leads_in, .. } => {
                let ballot = leads_in.as_ref().and_then(ballot_of).unwrap_or(Ballot::ZERO);
                let missing = quorum(&|held| {
                    let is_behind_base = held.log.base().slot.0 >= *slot;
                    let at = held.log.position(Slot(*slot));
                    held.accepted >= ballot && (is_behind_base || at.is_some_and(|at| at.chain.0 == *chain))
                })?;
                Some(format!("slot {slot} of {} is applied at n{}, {missing}", tenure.group(), index + 1))
            }
        }
    }

    /// Whether the store of this node was noted by enough others.
    pub(super) fn is_admitted(&self, index: usize) -> bool {
        self.disks[index].is_admitted
    }

    /// Whom a node hears, its disk must know by that opening.
    pub(super) fn check_heard(
        &self,
        index: usize,
        heard: impl Iterator<Item = (NodeId, Opening)>,
    ) -> Option<String> {
        let notes = &self.disks[index].notes;
        let mut unknown =
            heard.filter(|(node, opening)| notes.get(node).is_none_or(|life| life.opening != *opening));
        let (node, opening) = unknown.next()?;
        Some(format!(
            "n{} hears {node}, of whose start {} its disk knows nothing",
            index + 1,
            opening.incarnation
        ))
    }

    /// Whether a node has noted more of another than a store of this age can say of itself when it is opened.
    pub(super) fn knows_more(&self, index: usize, other: usize, age: (u64, u64)) -> bool {
        let (opened, log_end) = age;
        let note = self.disks[index].notes.get(&NodeId::founder(other));
        note.is_some_and(|life| life.opening.incarnation > opened || life.log_end > log_end)
    }

    /// The ballot in which a replica has accepted its log, if it has promised none since.
    pub(super) fn accepted_in(&self, index: usize, group: GroupId) -> Option<Ballot> {
        let log = self.disks[index].logs.get(&group)?;
        (log.accepted == log.promised && log.accepted > Ballot::ZERO).then_some(log.accepted)
    }

    /// Reads what has come to a disk. To be told of every commit: what is written down may be replaced by the next one. What is
    /// wrong with it, if anything.
    pub(super) fn follow(&mut self, index: usize, disk: &MemoryDisk) -> Option<String> {
        let followed = &mut self.disks[index];
        let before = followed.spoken_of.clone();
        let (mut records, replacements) = disk.durable_log_from(followed.read);
        if replacements != followed.replacements {
            (followed.read, followed.replacements) = (0, replacements);
            followed.logs.clear();
            followed.spoken_of.clear();
            followed.notes.clear();
            followed.refused.clear();
            followed.is_admitted = false;
            records = disk.durable_log_from(0).0;
        }
        for LogRecord { tenure, body: record, .. } in records {
            let group = tenure.group;
            if tenure == OWN {
                followed.note(&record);
            } else if self.is_signed {
                let record = codec::decode(&record).expect("what is durable can be read");
                followed.written.extend(statements(&record).into_iter().map(|statement| (group, statement)));
                followed.spoken_of.entry(group).or_default();
            } else {
                let log = followed.logs.entry(group).or_default();
                log.replay_one(followed.read, &record).expect("what is durable can be read");
                followed.spoken_of.insert(group, log.promised);
            }
            followed.read += 1;
        }
        let is_copy = |life: &&Life| self.copies.contains(&life.opening.mark);
        if let Some(life) = followed.notes.values().find(is_copy) {
            return Some(format!("n{} takes an older copy for what became of a disk: {life:?}", index + 1));
        }
        let is_own = |(_, mark): &(&NodeId, &u64)| !self.copies.contains(mark);
        if let Some((node, _)) = followed.refused.iter().find(is_own) {
            return Some(format!("n{} refuses the disk of {node}, which is the right one", index + 1));
        }
        let forgotten = before
            .iter()
            .find(|(group, promised)| followed.spoken_of.get(group).is_none_or(|now| now < *promised));
        forgotten.map(|(group, promised)| {
            format!("the disk of n{} held a promise of {promised} in {group}, and forgets it", index + 1)
        })
    }
}

/// What may be said when this is durable.
fn statements(record: &Record) -> Vec<Statement> {
    let one = |kind, first, second, said| vec![Statement { kind, first, second, said }];
    match record {
        Record::Accepted { vote, .. } => one(Kind::Prepare, vote.view.0, vote.slot.0, vote.digest.0),
        Record::Prepared(of) => one(Kind::Commit, of.view.0, of.slot.0, of.digest.0),
        Record::Checkpoint(vote) => one(Kind::Checkpoint, vote.slot.0, 0, vote.root.0),
        Record::Left(change) => one(Kind::ViewChange, change.view.0, 0, body_digest(&change.body).0),
        Record::Entered(view) => {
            let body = codec::decode::<NewViewBody>(&view.body).expect("a view that was entered was checked");
            let mut all = one(Kind::NewView, view.view.0, 0, body_digest(&view.body).0);
            let accepted = body.proposals.iter().map(|(slot, digest, _)| (slot.0, digest.0));
            all.extend(accepted.map(|(slot, digest)| Statement {
                kind: Kind::Prepare,
                first: view.view.0,
                second: slot,
                said: digest,
            }));
            all
        }
        _ => Vec::new(),
    }
}
