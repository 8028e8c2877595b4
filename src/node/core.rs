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
mod commits;
mod groups;
mod life;
mod log_rewrite;
mod peers;
mod requests;
mod verdicts;

pub use super::face::{Class, NodeEffect, NodeEvent, NodeSettings, Room};
use super::frames::Frames;
use super::roster::{self, OWN, Roster};
use super::tenures;
use crate::error::StorageError;
use crate::group::{Group, OpenError, Output};
use crate::ring::{Atlas, GroupId, NodeId, TenureId};
use crate::storage::{Commit, CommitId, Recovery, Storage};
use crate::wire::{self, GroupBody, Opening, PeerMessage};
use groups::Groups;
use life::Life;
use log_rewrite::{LogRewrite, Stage};
use requests::Door;
use std::collections::BTreeMap;
use tetrachord_consensus::pbft::Verifier;
use tetrachord_consensus::{Ticks, Timestamp};

/// The commit of a node's first tenures.
const FOUNDING: CommitId = CommitId(1);

/// The node. See the module's essay.
pub struct NodeCore {
    settings: NodeSettings,
    atlas: Atlas,
    storage: Box<dyn Storage + Send>,
    roster: Roster,
    groups: Groups,
    /// Requests of clients, and who waits for what.
    door: Door,
    leaders: BTreeMap<GroupId, Option<NodeId>>,
    last_commit: CommitId,
    /// The commit that brings the first tenures to the tree, until it is there: nothing is logged before.
    founding: Option<CommitId>,
    /// The links that are up.
    linked: BTreeMap<NodeId, u64>,
    rewrite: LogRewrite,
    now: Ticks,
    life: Life,
    effects: Vec<NodeEffect>,
}

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
        let mut groups = Groups::default();
        let opened = tenures::open(&settings, storage.as_ref(), &records)?;
        for tenure in opened.tenures {
            let (id, records) = (tenure.id, records.remove(&tenure.id).unwrap_or_default());
            let seed = settings.group.options.seed ^ (id.group.mixed() << 32) ^ recovery.incarnation;
            let mut group_settings = settings.group.clone();
            group_settings.options.seed = seed;
            let group = Group::open(storage.as_ref(), tenure, settings.node, &group_settings, &records)?;
            groups.insert(group);
        }
        let (rewrite, mutation) =
            (LogRewrite::above(settings.log_bytes_max), settings.group.options.mutation);
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
            door: Door::new(recovery.incarnation, mutation),
            leaders: BTreeMap::new(),
            last_commit: founding.unwrap_or_default(),
            founding,
            linked: BTreeMap::new(),
            rewrite,
            now: Ticks(0),
            life: Life::new(recovery.incarnation),
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
            NodeEvent::PeerLink { node, link, is_up } => self.on_link(node, link, is_up),
            NodeEvent::Client { connection, client, body } => self.on_client(connection, client, &body),
            NodeEvent::ClientGone { connection } => {
                self.door.gateway.close(connection);
                self.door.watchers.close(connection);
            }
            NodeEvent::Lie(lie) => self.groups.touch_all().for_each(|group| group.tell(lie)),
            NodeEvent::Verified { tenure, result } => {
                self.note_verdict(&result);
                let group = self.groups.touch(tenure.group);
                // What was right in one epoch of a group says nothing in another.
                if let Some(group) = group.filter(|group| group.tenure().id == tenure) {
                    group.verified(self.storage.as_ref(), result)?;
                }
            }
            NodeEvent::Durable(commit) => self.on_durable(commit)?,
            NodeEvent::Written(commit) => {
                self.founding = self.founding.filter(|founding| *founding > commit);
                for name in self.groups.written(commit) {
                    let group = self.groups.touch(name).expect("a group that writes is here");
                    group.written(self.storage.as_ref(), commit)?;
                }
            }
            NodeEvent::TreeDamaged { error } => self.on_tree_damaged(error)?,
            NodeEvent::Process(process, room) => {
                (self.life.process, self.life.room) = (process, room);
                self.yield_to_those_with_room()?;
            }
            NodeEvent::HandOver => self.hand_over()?,
        }
        Ok(())
    }

    fn hand_over(&mut self) -> Result<(), StorageError> {
        self.groups.touch_all().try_for_each(|group| group.hand_over(self.storage.as_ref()))
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
            for at in 0..self.groups.touched() {
                self.groups.nth_touched(at).flush(self.storage.as_ref())?;
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
        if self.founding.is_none() {
            self.groups.settle();
        }
        Ok(())
    }

    fn on_tick(&mut self, now: Ticks, wall: Timestamp) -> Result<(), StorageError> {
        (self.now, self.life.wall, self.door.askers.now) = (now, wall, now);
        self.life.started.get_or_insert(now);
        self.roster.tick(now, self.storage.log_end());
        if self.roster.may_vote() {
            for group in self.groups.touch_all() {
                group.tick(self.storage.as_ref(), now, wall)?;
            }
            self.share_pins();
        }
        self.give_up_old_forwards();
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
        for at in 0..self.groups.touched() {
            let group = self.groups.nth_touched(at);
            let tenure = group.tenure().id;
            let name = tenure.group;
            for output in group.take_outputs() {
                match output {
                    Output::Send { to, is_bulk, body } => {
                        let class = if is_bulk { Class::Bulk } else { Class::Consensus };
                        frames.push(to, class, GroupBody { tenure, body });
                    }
                    Output::Answer { ticket, outcome } => {
                        self.door.askers.release(ticket);
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
        self.groups.iter().filter_map(verifier).collect()
    }

    /// Whether the log is rewritten as soon as the trees hold enough, for watchers.
    #[must_use]
    pub fn is_about_to_rewrite(&self) -> bool {
        matches!(self.rewrite.stage, Stage::Hastened(_))
    }

    /// The node's replicas, for watchers.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter()
    }
}
