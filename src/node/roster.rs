//! Which store stands behind the name of each node.
//!
//! A node's promises are in its store. If another store comes under its name, an empty one or an older copy, promises are
//! forgotten, and with them acknowledged writes. A node cannot notice that by itself: the folder that `tetrachord init` wrote may
//! be copied to a new disk as often as one likes. The others can, so they keep a note of each other.
//!
//! ```text
//!  n3, never started          n1, n2
//!     │── Introduce(life) ──────>│  note it, unless another store has this name here
//!     │                          │  ... durable
//!     │<───── Noted(life) ───────│
//!     │ from a majority of the others: note that, durable: from now on n3 votes
//!     │
//!     │── Introduce(life) ──────>│  whoever starts later says which life this is, and which were before it,
//!     │<── Mistaken(life, note) ─│  and is told if more was known of it: it stops
//! ```
//!
//! Invariants:
//! * R1: a new store votes only when a majority of the *other* nodes has durably noted it. Two stores of one name would need
//!   two majorities, and whoever is in both refuses the second. No smaller number can tell a first start from a second; so the
//!   first start of a cluster of three wants all three, once;
//! * R2: in a note the store never changes, and how far it was only grows; but the note of a store that was never admitted gives way to
//!   a store that was. Of one name no two are: their majorities would have a node in common that noted both before either was admitted
//!   (unless that node lost its own disk in between, before it was admitted itself);
//! * R3: what a node says in its groups is heard only when, on this link, it has told a life that fits the note, and the note of that
//!   life is durable: whoever has acknowledged anything together with a life knows of it for ever. A link has one process at its other
//!   end, and what is left of an old link is not heard ([`super::core`]);
//! * R4: a node that is told that it is not the one that was known stops. Where nodes may lie, more of a group must say so than may lie;
//! * R5: a life is told when its opening is in the node's own log. So a store that is the right one can name, among its openings, every
//!   life that was ever noted of it, and had not been opened again before all that was noted then was in its log. A copy can not,
//!   whatever it has written since, and however often it was started ([`lineage`]). Whoever refuses one remembers its opening: a copy that
//!   is started until nobody can tell any more where it came from names that.
//!
//! Not here: that a copy is put back while those who knew more are away cannot be noticed before they return. The manual says so.
//!
//! The idea that replicas must not vote after they have lost state is old (Chandra et al., "Paxos Made Live", 2007, section 5.1).

mod lineage;

use super::face::NodeSettings;
use crate::error::StorageError;
use crate::limits::OPENINGS_MAX;
use crate::ring::{GroupId, NodeId, StoreId, Tenure, TenureId};
use crate::storage::{CommitId, Recovery, Storage};
use crate::wire::{Introduction, Life, Opening};
use bytes::Bytes;
use lineage::{Misfit, is_same, is_sound, misfit, renewed};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tetrachord_consensus::quorum::liars;
use tetrachord_consensus::{Mutation, Ticks, codec};

/// The node's own records stand in the write-ahead log under this name, which no group has.
pub const OWN: TenureId = TenureId { group: GroupId(0), epoch: 0 };

/// The kind of these records.
pub const NOTE: u8 = 0;

/// What an error calls one of them.
const OWN_RECORD: &str = "the node's own record in the write-ahead log";

/// How often a node says how far it has come, and how often what others say is noted.
const INTERVAL_MILLIS: u64 = 1_000;

/// Every so many times everybody is told, whether they need it or not: what was lost or came too late is made good.
const INTERVALS_TO_REPEAT: u64 = 5;

/// How often a node that must not vote yet says for whom it waits.
const REMINDER_MILLIS: u64 = 10_000;

/// A durable note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// This is known of another node.
    Known {
        /// The node.
        node: NodeId,
        /// Its latest life, and how far that had come.
        life: Life,
    },
    /// A majority of the others has noted this store.
    Admitted {
        /// The store.
        store: StoreId,
    },
    /// A store of this node's name was refused at this opening, the last time that one was.
    Refused {
        /// The node.
        node: NodeId,
        /// How the one that was refused had been opened.
        opening: Opening,
    },
    /// The store was opened. The last ones are kept, [`OPENINGS_MAX`] before the present one.
    Opened(Opening),
}

/// What the node must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Say this to another node.
    Send(NodeId, Introduction),
    /// Stop: others know this node by another life.
    Stop(String),
}

/// What a roster must know.
#[derive(Clone, Debug)]
pub(super) struct RosterSettings {
    /// This node.
    pub(super) me: NodeId,
    /// All others.
    pub(super) others: BTreeSet<NodeId>,
    /// For each group here the other members, and how many of them may lie.
    pub(super) juries: Vec<(BTreeSet<NodeId>, usize)>,
    /// A rule that is switched off, in tests of the tests.
    pub(super) mutation: Mutation,
}

/// What becomes true when a commit is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Note(NodeId, Life),
    Admission,
    Opening,
    /// Nobody waits for it.
    Refusal,
}

/// Who the others are, and whether they know who this node is. See the module's essay.
#[derive(Debug)]
pub(super) struct Roster {
    settings: RosterSettings,
    life: Life,
    /// The openings before this life's, oldest first.
    earlier: Vec<Opening>,
    /// R5: whether the opening of this life is durable.
    is_written: bool,
    known: BTreeMap<NodeId, Life>,
    /// Those whose notes are not written down yet.
    changed: BTreeSet<NodeId>,
    /// The last openings that were refused, and those that are not written down yet.
    refused_at: BTreeMap<NodeId, Opening>,
    to_refuse: BTreeSet<NodeId>,
    /// The lives that are durably noted.
    written: BTreeMap<NodeId, Life>,
    /// Those who have told, on this link, a life that fits their note, which is not durable yet, and those of whom it is.
    introduced: BTreeSet<NodeId>,
    /// When another life of a node was last written down at once.
    noted_at: BTreeMap<NodeId, Ticks>,
    recognized: BTreeSet<NodeId>,
    /// Those who have durably noted this life.
    noted_by: BTreeSet<NodeId>,
    /// Those of them who have said so on this link, and need not hear it again soon.
    confirmed: BTreeSet<NodeId>,
    /// Those who know this node by another life.
    accusers: BTreeMap<NodeId, Life>,
    /// Those who are not who they say, and when that was last logged.
    refused: BTreeMap<NodeId, Ticks>,
    records: Vec<(Record, Awaited)>,
    submitted: VecDeque<(CommitId, Awaited)>,
    /// Whether groups have logged anything since this was last told.
    has_news: bool,
    now: Ticks,
    spoke_at: Option<Ticks>,
    spoken: u64,
    reminded_at: Option<Ticks>,
    outputs: Vec<Output>,
}

impl Roster {
    /// The roster of a node with this life, from its own records.
    pub(super) fn open(
        settings: RosterSettings,
        mut life: Life,
        records: &[Bytes],
    ) -> Result<Self, StorageError> {
        let mut known = BTreeMap::new();
        // They may stand there again, before a rewrite of the log that was none in the end.
        let mut earlier = BTreeMap::new();
        let mut refused_at = BTreeMap::new();
        life.is_admitted = settings.others.is_empty() || settings.mutation.votes_unknown();
        for record in records {
            let record = codec::decode(record).map_err(|error| StorageError::corrupt(OWN_RECORD, error))?;
            match record {
                Record::Known { node, life } => drop(known.insert(node, life)),
                Record::Admitted { store } => life.is_admitted |= store == life.store,
                Record::Refused { node, opening } => drop(refused_at.insert(node, opening)),
                Record::Opened(opening) => drop(earlier.insert(opening.incarnation, opening)),
            }
        }
        let too_many = earlier.len().saturating_sub(OPENINGS_MAX);
        let earlier: Vec<Opening> = earlier.into_values().skip(too_many).collect();
        if !is_sound(&life, &earlier) {
            return Err(StorageError::corrupt(OWN_RECORD, "openings are out of order"));
        }
        Ok(Self {
            settings,
            life,
            earlier,
            is_written: false,
            written: known.clone(),
            introduced: BTreeSet::new(),
            noted_at: BTreeMap::new(),
            known,
            changed: BTreeSet::new(),
            refused_at,
            to_refuse: BTreeSet::new(),
            recognized: BTreeSet::new(),
            noted_by: BTreeSet::new(),
            confirmed: BTreeSet::new(),
            accusers: BTreeMap::new(),
            refused: BTreeMap::new(),
            records: vec![(Record::Opened(life.opening), Awaited::Opening)],
            submitted: VecDeque::new(),
            has_news: false,
            now: Ticks(0),
            spoke_at: None,
            spoken: 0,
            reminded_at: None,
            outputs: Vec::new(),
        })
    }

    /// R1: whether this node's replicas may take part in their groups.
    pub(super) fn may_vote(&self) -> bool {
        self.life.is_admitted
    }

    /// R3: whether what this node says in its groups is to be heard.
    pub(super) fn hears(&self, node: NodeId) -> bool {
        self.recognized.contains(&node)
    }

    /// Those who are heard, and by which opening each is known.
    pub(super) fn heard(&self) -> impl Iterator<Item = (NodeId, Opening)> {
        self.recognized.iter().map(|node| (*node, self.known[node].opening))
    }

    /// Those of whom a note is missing, as long as it is waited for.
    pub(super) fn awaited(&self) -> Vec<NodeId> {
        let missing = self.settings.others.difference(&self.noted_by);
        if self.life.is_admitted { Vec::new() } else { missing.copied().collect() }
    }

    /// A link came up or went down: whoever is at its other end must say again who it is.
    pub(super) fn on_link(&mut self, node: NodeId, is_up: bool) {
        self.forget_face(node);
        self.confirmed.remove(&node);
        if is_up {
            self.introduce(node);
        }
    }

    fn forget_face(&mut self, node: NodeId) {
        self.recognized.remove(&node);
        self.introduced.remove(&node);
    }

    /// R3: a node has told a life that fits. It is heard when that is durably noted, which takes no time if it was before.
    fn recognize(&mut self, node: NodeId) {
        let life = self.known[&node];
        let is_written = self.written.get(&node).is_some_and(|written| is_same(written, &life));
        self.forget_face(node);
        if is_written || self.settings.mutation.hears_at_once() {
            self.recognized.insert(node);
        } else {
            self.introduced.insert(node);
        }
        let is_it = |awaited: &Awaited| matches!(awaited, Awaited::Note(of, noted) if *of == node && is_same(noted, &life));
        let is_under_way = self.records.iter().any(|(_, awaited)| is_it(awaited))
            || self.submitted.iter().any(|(_, awaited)| is_it(awaited));
        // One that starts without end must not fill the log: its next lives wait for the next second.
        let is_rare = self.noted_at.get(&node).is_none_or(|at| self.now.since(*at) >= INTERVAL_MILLIS);
        if !is_written && !is_under_way && is_rare {
            self.noted_at.insert(node, self.now);
            self.changed.remove(&node);
            self.write_down(node);
            // Whoever has just started does not know either who this is.
            self.introduce(node);
        } else if !is_written && !is_under_way {
            self.changed.insert(node);
        }
    }

    /// Says to another node who this one is, unless it must be written down first.
    fn introduce(&mut self, node: NodeId) {
        if self.is_written {
            let earlier = self.earlier.clone();
            self.outputs.push(Output::Send(node, Introduction::Introduce { life: self.life, earlier }));
        }
    }

    /// Groups have handed something to the log.
    pub(super) fn on_logged(&mut self) {
        self.has_news = true;
    }

    /// Time passed; the log is durable up to `log_end`.
    pub(super) fn tick(&mut self, now: Ticks, log_end: u64) {
        assert!(log_end >= self.life.log_end, "what is durable stays so");
        self.now = now;
        if self.spoke_at.is_some_and(|at| now.since(at) < INTERVAL_MILLIS) {
            return;
        }
        self.spoke_at = Some(now);
        self.life.log_end = log_end;
        self.spoken += 1;
        let is_for_all =
            std::mem::take(&mut self.has_news) || self.spoken.is_multiple_of(INTERVALS_TO_REPEAT);
        let is_waiting = |node: &&NodeId| is_for_all || !self.confirmed.contains(node);
        for node in self.settings.others.iter().filter(is_waiting).copied().collect::<Vec<_>>() {
            self.introduce(node);
        }
        for node in std::mem::take(&mut self.changed) {
            self.write_down(node);
        }
        for node in std::mem::take(&mut self.to_refuse) {
            let opening = self.refused_at[&node];
            self.records.push((Record::Refused { node, opening }, Awaited::Refusal));
        }
        if !self.life.is_admitted && self.reminded_at.is_none_or(|at| now.since(at) >= REMINDER_MILLIS) {
            self.reminded_at = Some(now);
            self.remind();
        }
    }

    fn remind(&self) {
        let names = |nodes: &mut dyn Iterator<Item = &NodeId>| {
            nodes.map(NodeId::to_string).collect::<Vec<_>>().join(" ")
        };
        if let Some((from, known)) = self.accusers.first_key_value() {
            tracing::error!("{}", self.explain(*from, known));
        }
        let missing = names(&mut self.settings.others.difference(&self.noted_by));
        tracing::info!(
            noted_by = names(&mut self.noted_by.iter()),
            needed = self.needed(),
            "first start with this data directory: this node votes when {} of {missing} have noted it",
            self.needed().saturating_sub(self.noted_by.len()),
        );
    }

    /// A majority of the others.
    fn needed(&self) -> usize {
        if self.settings.others.is_empty() { 0 } else { self.settings.others.len() / 2 + 1 }
    }

    /// Another node says something. The transport vouches for its name, not for more.
    pub(super) fn on_said(&mut self, from: NodeId, said: Introduction) {
        if !self.settings.others.contains(&from) {
            return;
        }
        match said {
            Introduction::Introduce { life, earlier } => {
                // No correct node says anything else.
                if is_sound(&life, &earlier) {
                    self.on_introduced(from, life, &earlier);
                }
            }
            Introduction::Noted(life) if is_same(&life, &self.life) => self.on_noted(from),
            Introduction::Mistaken { told, known } if is_same(&told, &self.life) => {
                self.on_mistaken(from, known)
            }
            // It was meant for an earlier life.
            Introduction::Noted(_) | Introduction::Mistaken { .. } => {}
        }
    }

    fn on_introduced(&mut self, from: NodeId, told: Life, earlier: &[Opening]) {
        let known = self.known.get(&from).copied();
        if known.is_none_or(|known| !is_same(&known, &told)) {
            // It has started anew, and does not know any more who this is.
            self.confirmed.remove(&from);
        }
        let nothing = self.settings.mutation.forgets_openings().then(|| vec![told.opening; OPENINGS_MAX]);
        let is_misfit = |known| {
            let refused = self.refused_at.get(&from);
            misfit(known, &told, nothing.as_deref().unwrap_or(earlier), refused).is_some()
        };
        match known {
            Some(known) if is_misfit(&known) && !self.settings.mutation.notes_anew() => {
                // What an earlier life had said may come late, and takes nothing back.
                let is_late =
                    known.store == told.store && told.opening.incarnation < known.opening.incarnation;
                if !is_late {
                    self.forget_face(from);
                    self.note_refused(from, &told, &known);
                }
                self.refuse(from, told, known);
            }
            Some(known) => {
                let now = renewed(&known, &told);
                self.known.insert(from, now);
                self.recognize(from);
                if !is_same(&now, &known) {
                    // It is written down, and answered then.
                } else if now == known && !self.changed.contains(&from) {
                    // A note that is on its way to the disk is answered when it is there.
                    if !self.is_under_way(from) {
                        self.outputs.push(Output::Send(from, Introduction::Noted(now)));
                    }
                } else {
                    self.changed.insert(from);
                }
            }
            None => {
                self.known.insert(from, told);
                self.recognize(from);
            }
        }
    }

    /// The right store never names an opening that was refused.
    fn note_refused(&mut self, from: NodeId, told: &Life, known: &Life) {
        let is_copy = told.store == known.store;
        if is_copy && self.refused_at.insert(from, told.opening) != Some(told.opening) {
            self.to_refuse.insert(from);
        }
    }

    fn refuse(&mut self, from: NodeId, told: Life, known: Life) {
        let is_news = self.refused.get(&from).is_none_or(|at| self.now.since(*at) >= REMINDER_MILLIS);
        if is_news {
            self.refused.insert(from, self.now);
            tracing::error!(
                peer = %from,
                "this node is known as store {} at its start {} and {} log frames; now it comes as store {} at start {} with {} \
                 frames: its disk was replaced, or another copy of it put in its place. It is not listened to",
                known.store,
                known.opening.incarnation,
                known.log_end,
                told.store,
                told.opening.incarnation,
                told.opening.log_end
            );
        }
        // Whoever is new knows nothing of what was before: what it noted first may be what comes late from another stranger.
        if self.life.is_admitted {
            self.outputs.push(Output::Send(from, Introduction::Mistaken { told, known }));
        }
    }

    fn on_noted(&mut self, from: NodeId) {
        self.noted_by.insert(from);
        self.confirmed.insert(from);
        let is_asked = self.records.iter().any(|(record, _)| matches!(record, Record::Admitted { .. }))
            || self.submitted.iter().any(|(_, awaited)| *awaited == Awaited::Admission);
        if !self.life.is_admitted && !is_asked && self.noted_by.len() >= self.needed() {
            self.records.push((Record::Admitted { store: self.life.store }, Awaited::Admission));
        }
    }

    fn on_mistaken(&mut self, from: NodeId, known: Life) {
        self.accusers.insert(from, known);
        let is_believed = |(members, liars): &(BTreeSet<NodeId>, usize)| {
            self.accusers.keys().filter(|node| members.contains(node)).count() > *liars
        };
        if self.settings.juries.iter().any(is_believed) {
            self.outputs.push(Output::Stop(self.explain(from, &known)));
        }
    }

    /// What happened to this node, and what to do.
    fn explain(&self, from: NodeId, known: &Life) -> String {
        let me = self.settings.me;
        let Opening { incarnation, log_end, .. } = self.life.opening;
        match misfit(known, &self.life, &self.earlier, None) {
            Some(Misfit::OtherStore) => format!(
                "{from} knows {me} by another data directory (store {}); this one (store {}) is new. {me} had begun before, and what it \
                 promised then stands in that directory: a fresh one must not take its name. Put the first directory back; if it is \
                 lost, {me} must be added as a new node",
                known.store, self.life.store
            ),
            Some(Misfit::OtherCopy) => format!(
                "two copies of this data directory have run: {from} has heard another one at its start {}, and this one, now at its start \
                 {incarnation}, is not what became of that. What {me} promised there is missing here, so it must not vote. Put the copy \
                 back that {from} has heard; if it is lost, {me} must be added as a new node",
                known.opening.incarnation
            ),
            Some(Misfit::Older(Opening { incarnation, log_end, .. })) => {
                self.explain_older(from, known, incarnation, log_end)
            }
            // It was noted by others since it was judged, or was started oftener than anybody counts.
            None => self.explain_older(from, known, incarnation, log_end),
        }
    }

    fn explain_older(&self, from: NodeId, known: &Life, incarnation: u64, log_end: u64) -> String {
        let me = self.settings.me;
        format!(
            "this data directory is an older copy: {from} has seen {me} at its start {} with {} log frames, here start {incarnation} began \
             with {log_end}. What {me} promised in between is missing here, so it must not vote. Put the newest directory back; if it \
             is lost, {me} must be added as a new node",
            known.opening.incarnation, known.log_end
        )
    }

    fn write_down(&mut self, node: NodeId) {
        let life = self.known[&node];
        self.records.push((Record::Known { node, life }, Awaited::Note(node, life)));
    }

    fn is_under_way(&self, node: NodeId) -> bool {
        let is_it = |awaited: &Awaited| matches!(awaited, Awaited::Note(of, _) if *of == node);
        self.records.iter().any(|(_, awaited)| is_it(awaited))
            || self.submitted.iter().any(|(_, awaited)| is_it(awaited))
    }

    /// The records that should become durable with this commit; all that is known if it may replace the log.
    pub(super) fn take_records(&mut self, commit: CommitId, is_whole: bool) -> Vec<Bytes> {
        let waiting = std::mem::take(&mut self.records);
        self.submitted.extend(waiting.iter().map(|(_, awaited)| (commit, *awaited)));
        if !is_whole {
            return waiting.iter().map(|(record, _)| codec::encode(record)).collect();
        }
        let admitted = Record::Admitted { store: self.life.store };
        let is_admitted =
            self.life.is_admitted || self.submitted.iter().any(|(_, awaited)| *awaited == Awaited::Admission);
        let known = self.known.iter().map(|(node, life)| Record::Known { node: *node, life: *life });
        let opened = self.earlier.iter().chain([&self.life.opening]).copied().map(Record::Opened);
        let refused =
            self.refused_at.iter().map(|(node, opening)| Record::Refused { node: *node, opening: *opening });
        let all = known.chain(is_admitted.then_some(admitted)).chain(refused).chain(opened);
        all.map(|record| codec::encode(&record)).collect()
    }

    /// The records of the commit and of all before it are durable.
    pub(super) fn durable(&mut self, commit: CommitId) {
        while let Some((_, awaited)) = self.submitted.front().copied().filter(|(id, _)| *id <= commit) {
            self.submitted.pop_front();
            match awaited {
                Awaited::Note(node, life) => {
                    self.written.insert(node, life);
                    let is_the_one = is_same(&self.known[&node], &life);
                    if is_the_one && self.introduced.remove(&node) {
                        self.recognized.insert(node);
                    }
                    self.outputs.push(Output::Send(node, Introduction::Noted(life)));
                }
                Awaited::Refusal => {}
                Awaited::Opening => {
                    self.is_written = true;
                    self.settings.others.clone().into_iter().for_each(|node| self.introduce(node));
                }
                Awaited::Admission => {
                    self.life.is_admitted = true;
                    // The others must know: see R2.
                    self.has_news = true;
                    tracing::info!(store = %self.life.store, "enough nodes have noted this data directory: this node votes");
                }
            }
        }
    }

    /// What must be done since the last call.
    pub(super) fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }
}

/// Who the others are, and who of them judges this node: the members of each of its groups.
pub(super) fn open(
    settings: &NodeSettings,
    storage: &dyn Storage,
    recovery: &Recovery,
    records: &[Bytes],
) -> Result<Roster, StorageError> {
    let me = settings.node;
    let tenures = settings.founding.iter().filter(|tenure| tenure.index_of(me).is_some());
    let jury = |tenure: &Tenure| {
        let others = tenure.nodes().filter(|node| *node != me).collect();
        (others, if tenure.is_byzantine() { liars(tenure.members.len()) } else { 0 })
    };
    let life = Life {
        store: recovery.store,
        opening: Opening {
            incarnation: recovery.incarnation,
            mark: settings.opening,
            log_end: storage.log_end(),
        },
        log_end: storage.log_end(),
        is_admitted: false,
    };
    let of_roster = RosterSettings {
        me,
        others: settings.nodes.iter().copied().filter(|node| *node != me).collect(),
        juries: tenures.map(jury).collect(),
        mutation: settings.group.options.mutation,
    };
    Roster::open(of_roster, life, records)
}

#[cfg(test)]
mod tests;
