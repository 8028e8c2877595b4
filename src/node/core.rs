//! The node as one pure machine: gateway, router and groups, over a store.
//!
//! Events in, effects out; no socket, no clock, no thread. The shell ([`super::run`]) drives it in production, a
//! simulator drives the same code with a virtual network and a store that forgets.
//!
//! Use: any number of [`NodeCore::step`], then [`NodeCore::flush`], again at once while [`NodeCore::has_waiting`]. Everything that
//! arrived together is ordered in one batch per group and logged in one commit for the whole node.
//!
//! Invariants:
//! * a commit holds the records of all groups that had any, in order; one barrier serves them all;
//! * the log is replaced only by a commit that holds the whole state of every group's engine;
//! * every request that was let in is answered, or its connection is gone;
//! * replicas take part in their groups only once others know which store they have, and hear only nodes whose store they
//!   know ([`super::roster`]).

mod answers;
mod compaction;
mod requests;
mod verdicts;

use super::askers::Askers;
pub use super::face::{Class, NodeEffect, NodeEvent, NodeSettings, Room};
use super::forwards::{Forward, Forwards};
use super::frames::Frames;
use super::roster::{self, NOTE, OWN, Roster};
use super::{status, tenures};
use crate::error::StorageError;
use crate::gateway::{Gateway, Origin, Watchers};
use crate::group::{Group, OpenError, Output};
use crate::ring::{Atlas, GroupId, NodeId, TenureId};
use crate::shares::Account;
use crate::storage::{Commit, CommitId, LogRecord, Recovery, Storage};
use crate::wire::{self, Answer, GroupBody, NodeStatus, Opening, PeerMessage, ProcessStats, RetryReason};
use compaction::Compaction;
use requests::Waiting;
use std::collections::BTreeMap;
use tetrachord_consensus::pbft::Verifier;
use tetrachord_consensus::{Ticks, Timestamp};

/// The commit of a node's first tenures.
const FOUNDING: CommitId = CommitId(1);

/// A forwarded request is given up after this many milliseconds without an answer.
const FORWARD_PATIENCE_MILLIS: u64 = 3_000;

/// The node. See the module's essay.
pub struct NodeCore {
    settings: NodeSettings,
    atlas: Atlas,
    storage: Box<dyn Storage + Send>,
    roster: Roster,
    groups: BTreeMap<GroupId, Group>,
    gateway: Gateway,
    watchers: Watchers,
    askers: Askers,
    waiting: Waiting,
    forwards: Forwards,
    leaders: BTreeMap<GroupId, Option<NodeId>>,
    last_commit: CommitId,
    /// The commit that brings the first tenures to the tree, until it is there: nothing is logged before.
    founding: Option<CommitId>,
    /// The links that are up.
    linked: BTreeMap<NodeId, u64>,
    compaction: Compaction,
    compact_above: u64,
    /// Bytes of the log, and since when they have been the same.
    log_grown: (u64, Ticks),
    now: Ticks,
    /// For status requests alone.
    wall: Timestamp,
    started: Option<Ticks>,
    incarnation: u64,
    process: ProcessStats,
    room: Room,
    /// When leadership was last given away for want of room.
    yielded_at: Option<Ticks>,
    effects: Vec<NodeEffect>,
}

/// A node whose disk is almost full gives leadership away at most this often.
const YIELD_TICKS: u64 = 10_000;

impl std::fmt::Debug for NodeCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeCore").field("node", &self.settings.node).field("groups", &self.groups).finish()
    }
}

impl NodeCore {
    /// Opens a node from what its store holds.
    pub fn open(
        settings: NodeSettings,
        mut storage: Box<dyn Storage + Send>,
        mut recovery: Recovery,
    ) -> Result<Self, OpenError> {
        let mut records = tenures::records(std::mem::take(&mut recovery.log))?;
        let own = records.remove(&OWN).unwrap_or_default();
        let roster = roster::open(&settings, storage.as_ref(), &recovery, &own)?;
        let mut groups = BTreeMap::new();
        let opened = tenures::open(&settings, storage.as_ref(), &records)?;
        for tenure in opened.tenures {
            let (id, records) = (tenure.id, records.remove(&tenure.id).unwrap_or_default());
            let seed = settings.group.options.seed ^ (id.group.mixed() << 32) ^ recovery.incarnation;
            let mut group_settings = settings.group.clone();
            group_settings.options.seed = seed;
            let group = Group::open(storage.as_ref(), tenure, settings.node, &group_settings, &records)?;
            groups.insert(id.group, group);
        }
        let compact_above = settings.log_bytes_max;
        let askers = Askers::new(settings.group.options.mutation.checks_in_one_line());
        let founding = (!opened.to_write.is_empty()).then_some(FOUNDING);
        if founding.is_some() {
            let state = vec![opened.to_write];
            storage.submit(Commit { id: FOUNDING, state, ..Commit::default() });
        }
        Ok(Self {
            atlas: Atlas::founded(&settings.founding),
            settings,
            storage,
            roster,
            groups,
            gateway: Gateway::default(),
            watchers: Watchers::default(),
            askers,
            waiting: Waiting::default(),
            forwards: Forwards::of_life(recovery.incarnation),
            leaders: BTreeMap::new(),
            last_commit: founding.unwrap_or_default(),
            founding,
            linked: BTreeMap::new(),
            compaction: Compaction::Idle,
            compact_above,
            log_grown: (0, Ticks(0)),
            now: Ticks(0),
            wall: Timestamp(0),
            started: None,
            incarnation: recovery.incarnation,
            process: ProcessStats::default(),
            room: Room::Enough,
            yielded_at: None,
            effects: Vec::new(),
        })
    }

    /// The nodes whose messages to groups are heard, and by which opening of its store each is known.
    pub fn heard(&self) -> impl Iterator<Item = (NodeId, Opening)> {
        self.roster.heard()
    }

    /// Tells the node what happened.
    pub fn step(&mut self, event: NodeEvent) {
        if let Err(error) = self.try_step(event) {
            self.effects.push(NodeEffect::Stop { reason: error.to_string() });
        }
    }

    fn try_step(&mut self, event: NodeEvent) -> Result<(), StorageError> {
        match event {
            NodeEvent::Tick { now, wall } => self.on_tick(now, wall)?,
            NodeEvent::Peer { from, link, body } => {
                if self.linked.get(&from) == Some(&link) {
                    self.on_peer(from, &body)?;
                }
            }
            // Two tasks may tell of two connections, the older one last.
            NodeEvent::PeerLink { node, link, is_up: true }
                if self.linked.get(&node).is_some_and(|current| *current > link) => {}
            NodeEvent::PeerLink { node, link, is_up: true } => {
                if self.linked.insert(node, link).is_some_and(|before| before != link) {
                    self.give_up_forwards(|forward| forward.to == node);
                }
                self.roster.on_link(node, true);
            }
            NodeEvent::PeerLink { node, link, is_up: false } => {
                if self.linked.get(&node).is_none_or(|current| *current == link) {
                    self.linked.remove(&node);
                    self.roster.on_link(node, false);
                    self.give_up_forwards(|forward| forward.to == node);
                }
            }
            NodeEvent::Client { connection, client, body } => self.on_client(connection, client, &body),
            NodeEvent::ClientGone { connection } => {
                self.gateway.close(connection);
                self.watchers.close(connection);
            }
            NodeEvent::Lie(lie) => self.groups.values_mut().for_each(|group| group.tell(lie)),
            NodeEvent::Verified { tenure, result } => {
                self.note_verdict(&result);
                let group = self.groups.get_mut(&tenure.group);
                // What was right in one epoch of a group says nothing in another.
                if let Some(group) = group.filter(|group| group.tenure().id == tenure) {
                    group.verified(self.storage.as_ref(), result)?;
                }
            }
            NodeEvent::Durable(commit) => self.on_durable(commit)?,
            NodeEvent::Written(commit) => {
                self.founding = self.founding.filter(|founding| *founding > commit);
                for group in self.groups.values_mut() {
                    group.written(self.storage.as_ref(), commit)?;
                }
            }
            NodeEvent::TreeDamaged { error } => self.on_tree_damaged(error)?,
            NodeEvent::Process(process, room) => {
                (self.process, self.room) = (process, room);
                self.yield_to_those_with_room()?;
            }
            NodeEvent::HandOver => self.hand_over()?,
        }
        Ok(())
    }

    fn hand_over(&mut self) -> Result<(), StorageError> {
        self.groups.values_mut().try_for_each(|group| group.hand_over(self.storage.as_ref()))
    }

    /// A leader that must refuse writes gives others the chance to take them. If their disks are full too, it may come back here: so
    /// not too often.
    fn yield_to_those_with_room(&mut self) -> Result<(), StorageError> {
        let has_just = self.yielded_at.is_some_and(|at| self.now.since(at) < YIELD_TICKS);
        let leads = self.groups.values().any(Group::is_leading);
        if self.room == Room::Enough || has_just || !leads {
            return Ok(());
        }
        self.yielded_at = Some(self.now);
        self.hand_over()
    }

    /// Orders and logs what has gathered since the last call, and hands out what must be done.
    pub fn flush(&mut self) -> Vec<NodeEffect> {
        if let Err(error) = self.try_flush() {
            self.effects.push(NodeEffect::Stop { reason: error.to_string() });
        }
        std::mem::take(&mut self.effects)
    }

    fn try_flush(&mut self) -> Result<(), StorageError> {
        self.take_turns()?;
        if self.roster.may_vote() {
            for group in self.groups.values_mut() {
                group.flush(self.storage.as_ref())?;
            }
            if self.founding.is_none() {
                self.compact_if_ready()?;
            }
        }
        self.watch_leaders();
        if let Some(reason) = self.collect() {
            self.rebuild_tree(&reason)?;
            self.collect();
        }
        self.submit(false);
        Ok(())
    }

    /// Hands everything that should become durable to the store as one commit. It replaces the log if it should and holds the
    /// whole state of every engine: one that has stopped gives nothing any more, and what it promised stands in the old log
    /// alone.
    fn submit(&mut self, should_replace_log: bool) {
        if self.founding.is_some() {
            return;
        }
        let id = CommitId(self.last_commit.0 + 1);
        let mut commit = Commit { id, ..Commit::default() };
        let mut is_whole = true;
        let own = self.roster.take_records(id, should_replace_log);
        commit.promises = !own.is_empty();
        commit.log.extend(own.into_iter().map(|body| LogRecord { tenure: OWN, kind: NOTE, body }));
        for group in self.groups.values_mut() {
            let taken = group.take_records();
            is_whole &= taken.as_ref().is_some_and(|taken| taken.is_whole);
            if let Some(taken) = taken {
                self.roster.on_logged();
                let tenure = group.tenure().id;
                let record = |body| LogRecord { tenure, kind: tenures::ENGINE, body };
                commit.log.extend(taken.records.into_iter().map(record));
                commit.promises |= taken.promises;
                group.submitted(id);
            }
            commit.state.extend(group.take_writes(id));
        }
        let is_careless = self.settings.group.options.mutation.replaces_without_all();
        commit.replaces_log = should_replace_log && (is_whole || is_careless);
        if commit.log.is_empty() && commit.state.is_empty() {
            return;
        }
        self.last_commit = id;
        assert!(!commit.replaces_log || !commit.log.is_empty(), "a log is replaced by something");
        self.storage.submit(commit);
    }

    fn on_tick(&mut self, now: Ticks, wall: Timestamp) -> Result<(), StorageError> {
        (self.now, self.wall, self.askers.now) = (now, wall, now);
        self.started.get_or_insert(now);
        self.roster.tick(now, self.storage.log_end());
        if self.roster.may_vote() {
            for group in self.groups.values_mut() {
                group.tick(self.storage.as_ref(), now, wall)?;
            }
            self.share_pins();
        }
        self.give_up_forwards(|forward| now.since(forward.since) >= FORWARD_PATIENCE_MILLIS);
        Ok(())
    }

    /// Requests that were passed on and will hardly be answered: who asked may try again elsewhere. They may have been
    /// applied.
    fn give_up_forwards(&mut self, is_hopeless: impl Fn(&Forward) -> bool) {
        for forward in self.forwards.take_hopeless(is_hopeless) {
            let leader = self
                .groups
                .get(&forward.owner)
                .and_then(Group::leader)
                .filter(|leader| *leader != forward.to);
            let reason = if leader.is_some() { RetryReason::NotLeader } else { RetryReason::NoLeader };
            self.finish(forward.ticket, Answer::Retry { reason, leader, maybe_applied: true });
        }
    }

    /// A group has another leader, or none: what was passed on to the old one may never be answered.
    fn watch_leaders(&mut self) {
        let now: BTreeMap<GroupId, Option<NodeId>> =
            self.groups.iter().map(|(name, group)| (*name, group.leader())).collect();
        if now != self.leaders {
            self.tell_leaders(&now);
            self.give_up_forwards(|forward| {
                now.get(&forward.owner).is_some_and(|leader| *leader != Some(forward.to))
            });
            self.leaders = now;
        }
    }

    /// Elections and view changes are what an operator looks for first.
    fn tell_leaders(&self, now: &BTreeMap<GroupId, Option<NodeId>>) {
        let node = self.settings.node;
        for (group, leader) in now {
            let before = self.leaders.get(group).copied().flatten();
            if before == *leader {
                continue;
            }
            let attempt = self.groups.get(group).map(|group| group.engine().ballot).unwrap_or_default();
            match (before, leader) {
                (_, Some(leader)) if *leader == node => {
                    tracing::info!(%group, %attempt, "this node leads");
                }
                (_, Some(leader)) => tracing::info!(%group, %leader, %attempt, "a leader was found"),
                (Some(before), None) => tracing::info!(%group, %before, %attempt, "the leader was lost"),
                (None, None) => {}
            }
        }
    }

    fn on_peer(&mut self, from: NodeId, body: &[u8]) -> Result<(), StorageError> {
        match wire::decode::<PeerMessage>(body) {
            Ok(PeerMessage::Groups(said)) if self.roster.may_vote() && self.roster.hears(from) => {
                said.iter().try_for_each(|said| self.on_said(from, said))
            }
            Ok(PeerMessage::Groups(_)) => Ok(()),
            Ok(PeerMessage::Introduction(said)) => {
                self.roster.on_said(from, said);
                Ok(())
            }
            Ok(PeerMessage::Forward { id, client, request }) => {
                // Where nodes may lie, one answers itself for what it passes on.
                let is_trusted = self.settings.group.byzantine.is_none();
                let account = if is_trusted { Account::Client(client) } else { Account::Node(from) };
                self.take_request(Origin::Peer { node: from, id }, (account, None), request);
                Ok(())
            }
            Ok(PeerMessage::Forwarded { id, answer }) => {
                self.on_forwarded(from, id, answer);
                Ok(())
            }
            // A peer of the same cluster and version sends nothing else; what it may mean is not for us to guess.
            Err(_) => Ok(()),
        }
    }

    /// A replica speaks to one of the same group. What was said in another epoch of it means nothing here.
    fn on_said(&mut self, from: NodeId, said: &GroupBody) -> Result<(), StorageError> {
        let group = self.groups.get_mut(&said.tenure.group);
        match group.filter(|group| group.tenure().id == said.tenure) {
            Some(group) => group.receive(self.storage.as_ref(), from, &said.body),
            None => Ok(()),
        }
    }

    /// The answer to a request that was passed on. It goes to the client in this node's name, so it counts only from the node that
    /// was asked, and only if it is an answer: what replicas tell of outcomes, and nodes of themselves, each says itself.
    fn on_forwarded(&mut self, from: NodeId, id: u64, answer: Answer) {
        let is_answer = match &answer {
            Answer::Reply { .. } | Answer::Value { .. } | Answer::Retry { .. } | Answer::Moved { .. } => true,
            Answer::Refused { .. } | Answer::Unavailable { .. } | Answer::Kept { .. } => true,
            Answer::Status(_) | Answer::Watching | Answer::Outcomes { .. } => false,
        };
        if is_answer && let Some(forward) = self.forwards.answered(id, from) {
            self.finish(forward.ticket, answer);
        }
    }

    fn on_durable(&mut self, commit: CommitId) -> Result<(), StorageError> {
        self.roster.durable(commit);
        for group in self.groups.values_mut() {
            group.durable(self.storage.as_ref(), commit)?;
        }
        if matches!(self.compaction, Compaction::Submitted(submitted) if submitted <= commit) {
            self.compaction = Compaction::Idle;
            // If much had to be kept, because trees or replicas lag, rewriting it again at once would only cost more.
            self.compact_above = self.settings.log_bytes_max.max(2 * self.storage.log_bytes());
        }
        Ok(())
    }

    /// The tree cannot be read. In crash mode nobody can prove another state: the node must stop.
    fn on_tree_damaged(&mut self, error: StorageError) -> Result<(), StorageError> {
        match self.settings.group.byzantine {
            Some(_) => self.rebuild_tree(&error.to_string()),
            None => Err(error),
        }
    }

    /// All groups give their state up for lost, and repair it from other replicas in a new tree.
    fn rebuild_tree(&mut self, reason: &str) -> Result<(), StorageError> {
        tracing::warn!(%reason, "the tree is given up; all groups repair their state in a new one");
        self.submit(false);
        let id = CommitId(self.last_commit.0 + 1);
        let mut marks = Vec::new();
        for group in self.groups.values_mut() {
            marks.extend(group.tree_lost(self.storage.as_ref(), id, reason)?);
        }
        self.last_commit = id;
        self.storage.submit(Commit { id, state: vec![marks], replaces_tree: true, ..Commit::default() });
        Ok(())
    }

    /// Turns what the groups put out into the node's effects; returns why a new tree is needed, if one is.
    fn collect(&mut self) -> Option<String> {
        let mut rebuild = None;
        for output in self.roster.take_outputs() {
            self.effects.push(match output {
                roster::Output::Send(to, said) => {
                    let frame = wire::encode(&PeerMessage::Introduction(said));
                    NodeEffect::Send { to, class: Class::Consensus, frame }
                }
                roster::Output::Stop(reason) => NodeEffect::Stop { reason },
            });
        }
        let mut frames = Frames::default();
        let names: Vec<TenureId> = self.groups.values().map(|group| group.tenure().id).collect();
        for tenure in names {
            let name = tenure.group;
            let outputs = self.groups.get_mut(&name).map(Group::take_outputs).unwrap_or_default();
            for output in outputs {
                match output {
                    Output::Send { to, is_bulk, body } => {
                        let class = if is_bulk { Class::Bulk } else { Class::Consensus };
                        frames.push(to, class, GroupBody { tenure, body });
                    }
                    Output::Answer { ticket, outcome } => {
                        self.askers.release(ticket);
                        let answer = self.answer_of(name, outcome);
                        self.finish(ticket, answer);
                    }
                    Output::Verify(job) => {
                        let line = self.line_of(name, &job);
                        self.effects.push(NodeEffect::Verify { tenure, line, job });
                    }
                    Output::Outcomes(outcomes) => self.tell_watchers(name, outcomes),
                    Output::RebuildTree { reason } => rebuild = Some(reason),
                    Output::Fatal { reason } => self.effects.push(NodeEffect::Stop { reason }),
                }
            }
        }
        self.effects.extend(frames.take());
        rebuild
    }

    /// What checks the messages of each group, in Byzantine mode.
    #[must_use]
    pub fn verifiers(&self) -> BTreeMap<TenureId, Verifier> {
        let verifier = |group: &Group| Some((group.tenure().id, group.verifier()?));
        self.groups.values().filter_map(verifier).collect()
    }

    /// What the node knows of itself.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let told = |(name, group): (&GroupId, &Group)| status::group_status(*name, group);
        NodeStatus {
            node: self.settings.node,
            incarnation: self.incarnation,
            uptime_millis: self.started.map_or(0, |started| self.now.since(started)),
            connected: self.linked.keys().copied().collect(),
            awaits: self.roster.awaited(),
            refuses_writes: self.room != Room::Enough,
            wall_micros: self.wall.0,
            open_requests: self.gateway.open_requests() as u64,
            log_bytes: self.storage.log_bytes(),
            process: self.process,
            groups: self.groups.iter().map(told).collect(),
        }
    }

    /// Whether the log is rewritten as soon as the trees hold enough, for watchers.
    #[must_use]
    pub fn is_about_to_rewrite(&self) -> bool {
        matches!(self.compaction, Compaction::Hastened(_))
    }

    /// The node's replicas, for watchers.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    /// The node's groups, for watchers.
    #[cfg(test)]
    pub(crate) fn groups_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.groups.values_mut()
    }
}
