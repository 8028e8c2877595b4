//! The world around the nodes: virtual time, a bag of frames, disks that are flushed when chance wills it, clients that
//! retry, and watchers.

use crate::group::{Group, Settings, engine_message};
use crate::kv::{self, Envelope, Reply, RequestId, SessionId, Write};
use crate::limits::Limits;
use crate::node::core::{NodeCore, NodeEffect, NodeEvent, NodeSettings, Room};
use crate::node::roster::OWN;
use crate::ring::{Atlas, GroupId, NodeId, Position, Tenure, TenureId, found_without_keys};
use crate::shares::ClientId;
use crate::storage::memory::MemoryDisk;
use crate::ticket::ConnectionId;
use crate::wire::{self, Answer, AnswerFrame, Consistency, PeerMessage, ProcessStats, Request, RequestFrame};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use tetrachord_checker::{Action, History, Limits as JudgeLimits, Operation, Verdict, check};
use tetrachord_consensus::paxos::{Message, Recovered};
use tetrachord_consensus::{Mutation, Options, Ticks, Timestamp, codec};

/// A rule that is switched off on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Defect {
    None,
    ForgetSessions,
    Engine(Mutation),
}

/// What a run is made of.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) nodes: usize,
    pub(super) groups: usize,
    pub(super) drop_percent: u64,
    pub(super) duplicate_percent: u64,
    pub(super) crash_per_mille: u64,
    pub(super) cut_per_mille: u64,
    pub(super) pause_per_mille: u64,
    pub(super) slow_disk_percent: u64,
    pub(super) log_bytes_max: u64,
    pub(super) overlay_bytes_max: usize,
    pub(super) defect: Option<Defect>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            nodes: 3,
            groups: 1,
            drop_percent: 0,
            duplicate_percent: 0,
            crash_per_mille: 0,
            cut_per_mille: 0,
            pause_per_mille: 0,
            slow_disk_percent: 10,
            log_bytes_max: 1 << 20,
            overlay_bytes_max: 1 << 20,
            defect: None,
        }
    }
}

impl Plan {
    pub(super) fn draw(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(77) + 5);
        let mut maybe = |max: u64| if random.below(2) == 0 { random.below(max) } else { 0 };
        Self {
            drop_percent: maybe(15),
            duplicate_percent: maybe(15),
            crash_per_mille: maybe(6),
            cut_per_mille: maybe(6),
            pause_per_mille: maybe(6),
            slow_disk_percent: maybe(80),
            log_bytes_max: if maybe(2) == 0 { 15_000 } else { 200_000 },
            groups: 1 + maybe(3) as usize,
            nodes: 3 + maybe(3) as usize,
            overlay_bytes_max: if maybe(2) == 0 { 1 << 20 } else { 600 },
            defect: None,
        }
    }
}

pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

struct Node {
    disk: MemoryDisk,
    core: Option<NodeCore>,
    was_installing: bool,
    last_log_bytes: u64,
    flushes_left: Option<u64>,
    durable: Durable,
    /// Until then the process does not run; what arrives waits for it.
    paused_until: u64,
    stalled: Vec<Parcel>,
}

/// What a node's disk durably holds of each group's engine, followed record by record.
#[derive(Default)]
struct Durable {
    read: usize,
    replacements: u64,
    groups: BTreeMap<GroupId, Recovered>,
}

impl Durable {
    fn follow(&mut self, disk: &MemoryDisk) {
        let (mut records, replacements) = disk.durable_log_from(self.read);
        if replacements != self.replacements {
            *self = Self { replacements, ..Self::default() };
            records = disk.durable_log_from(0).0;
        }
        for record in records {
            if record.tenure == OWN {
                self.read += 1;
                continue;
            }
            let state = self.groups.entry(record.tenure.group).or_default();
            state.replay_one(self.read, &record.body).expect("what is durable can be read");
            self.read += 1;
        }
    }
}

/// Frames between two ends of the network.
enum Parcel {
    Peer { from: NodeId, to: NodeId, frame: Bytes },
    Request { to: NodeId, connection: ConnectionId, frame: Bytes },
    Answer { client: usize, frame: Bytes },
}

/// A client: one operation at a time, the same number again and again until it is answered.
struct Client {
    process: u64,
    sessions: BTreeMap<GroupId, SessionId>,
    last_number: BTreeMap<GroupId, u64>,
    open: Option<Open>,
    node: usize,
    last_id: u64,
}

struct Open {
    request: Request,
    group: GroupId,
    key: String,
    action: Option<Action>,
    call: u64,
    sent_at: u64,
    ids: BTreeSet<u64>,
}

pub(super) struct Sim {
    plan: Plan,
    random: Random,
    founding: Vec<Tenure>,
    nodes: Vec<Node>,
    parcels: Vec<Parcel>,
    cut: BTreeSet<(u128, u128)>,
    clients: Vec<Client>,
    keys: u64,
    now: u64,
    history: Vec<Operation>,
    last_stamp: u64,
    next_process: u64,
    is_calm: bool,
    pub(super) crashes: usize,
    pub(super) installed: usize,
    pub(super) compactions: usize,
    pub(super) promises_checked: usize,
    pub(super) acknowledgements_checked: usize,
    /// Who clients were told leads, by those that answered them.
    pub(super) named: BTreeSet<NodeId>,
}

impl Sim {
    pub(super) fn new(plan: Plan, seed: u64) -> Self {
        let founding = found_without_keys(plan.groups, plan.nodes, 3.min(plan.nodes));
        let node = |_| Node {
            disk: MemoryDisk::default(),
            core: None,
            was_installing: false,
            last_log_bytes: 0,
            flushes_left: None,
            durable: Durable::default(),
            paused_until: 0,
            stalled: Vec::new(),
        };
        let mut sim = Self {
            random: Random(seed),
            founding,
            nodes: (0..plan.nodes).map(node).collect(),
            parcels: Vec::new(),
            cut: BTreeSet::new(),
            clients: Vec::new(),
            keys: 4,
            now: 1,
            history: Vec::new(),
            last_stamp: 0,
            next_process: 0,
            is_calm: false,
            crashes: 0,
            installed: 0,
            compactions: 0,
            promises_checked: 0,
            acknowledgements_checked: 0,
            named: BTreeSet::new(),
            plan,
        };
        for index in 0..sim.nodes.len() {
            sim.start(index);
        }
        sim
    }

    pub(super) fn start_node(&mut self, node: NodeId) {
        let index = node.0 as usize - 1;
        if self.nodes[index].core.is_none() {
            self.start(index);
        }
    }

    pub(super) fn stop_node(&mut self, node: NodeId) {
        self.crash(node.0 as usize - 1, 0);
    }

    /// The node that leads the first group.
    pub(super) fn leader(&self) -> Option<NodeId> {
        let leads = |core: &NodeCore| core.groups().next().is_some_and(Group::is_leading);
        let index = self.nodes.iter().position(|node| node.core.as_ref().is_some_and(leads))?;
        Some(NodeId::founder(index))
    }

    /// The node is told that its disk is almost full.
    pub(super) fn fill_disk(&mut self, node: NodeId) {
        let room = Room::Short { reserve_bytes: 1 << 20 };
        self.step(node.0 as usize - 1, NodeEvent::Process(ProcessStats::default(), room));
    }

    /// Bytes of the longest log that a node holds in memory.
    pub(super) fn log_bytes(&self) -> usize {
        let groups = self.nodes.iter().filter_map(|node| node.core.as_ref()).flat_map(NodeCore::groups);
        groups.map(|group| group.engine().log_bytes).max().unwrap_or(0)
    }

    /// Stops a node right after so many flushes of its disk.
    pub(super) fn stop_after_flushes(&mut self, node: NodeId, flushes: u64) {
        self.nodes[node.0 as usize - 1].flushes_left = Some(flushes);
    }

    fn start(&mut self, index: usize) {
        let (storage, recovery) = self.nodes[index].disk.open();
        let mutation = match self.plan.defect {
            Some(Defect::Engine(mutation)) => mutation,
            _ => Mutation::None,
        };
        let options = Options {
            seed: self.random.below(1 << 40),
            mutation,
            message_bytes: 4_000,
            ..Options::default()
        };
        let settings = NodeSettings {
            node: NodeId::founder(index),
            founding: self.founding.clone(),
            group: Settings {
                limits: Limits::default(),
                options,
                overlay_bytes_max: self.plan.overlay_bytes_max,
                retain_bytes: 4_000 / self.plan.groups,
                pinned_bytes: 4_000 / self.plan.groups,

                byzantine: None,
            },
            log_bytes_max: self.plan.log_bytes_max,
            nodes: (0..self.nodes.len()).map(NodeId::founder).collect(),
            opening: recovery.incarnation,
        };
        let is_restart = recovery.incarnation > 1;
        let mut core =
            NodeCore::open(settings, Box::new(storage), recovery).expect("the disk holds a healthy store");
        for peer in (0..self.nodes.len()).map(NodeId::founder).filter(|peer| peer.0 as usize != index + 1) {
            core.step(NodeEvent::PeerLink { node: peer, link: 1, is_up: true });
        }
        if is_restart && self.plan.defect == Some(Defect::ForgetSessions) {
            core.groups_mut().for_each(Group::forget_sessions);
        }
        self.nodes[index].core = Some(core);
        self.nodes[index].last_log_bytes = 0;
    }

    fn crash(&mut self, index: usize, kept: usize) {
        if self.nodes[index].core.take().is_some() {
            self.nodes[index].disk.crash(kept);
            self.nodes[index].paused_until = 0;
            self.nodes[index].stalled.clear();
            self.nodes[index].was_installing = false;
            self.crashes += 1;
        }
    }

    /// Adds clients that work on so many keys.
    pub(super) fn work(&mut self, clients: usize, keys: u64) {
        self.keys = keys;
        for _ in 0..clients {
            self.next_process += 1;
            let node = self.random.below(self.nodes.len() as u64) as usize;
            self.clients.push(Client {
                process: self.next_process,
                sessions: BTreeMap::new(),
                last_number: BTreeMap::new(),
                open: None,
                node,
                last_id: 0,
            });
        }
    }

    /// Lets virtual milliseconds pass.
    pub(super) fn run(&mut self, millis: u64) {
        let end = self.now + millis;
        while self.now < end {
            self.now += 5;
            self.disturb();
            self.resume();
            self.tick();
            for _ in 0..6 {
                self.move_parcels();
                self.flush_disks();
            }
            for client in 0..self.clients.len() {
                self.drive_client(client);
            }
        }
    }

    /// Faults stop, everybody runs; the clients' open operations are given up as unknown.
    pub(super) fn calm(&mut self) {
        self.is_calm = true;
        self.cut.clear();
        for index in 0..self.nodes.len() {
            self.nodes[index].flushes_left = None;
            self.nodes[index].paused_until = 0;
            if self.nodes[index].core.is_none() {
                self.start(index);
            }
        }
        self.run(6_000);
        for client in 0..self.clients.len() {
            self.give_up(client);
        }
        self.clients.clear();
        self.work(1, self.keys);
        let before = self.history.len();
        self.run(6_000);
        assert!(self.history.len() > before + 10, "the cluster does not come back");
    }

    /// Every history is linearizable, and replicas of a group that applied the same have the same digest.
    pub(super) fn judge(&mut self) {
        for client in 0..self.clients.len() {
            self.give_up(client);
        }
        self.clients.clear();
        let history = History::new(self.history.clone(), 0).unwrap();
        let judgement = check(&history, JudgeLimits::default());
        if let Verdict::Violation { key } = &judgement.verdict {
            let example = tetrachord_checker::counterexample::find(&history, key);
            panic!("not linearizable: {}", example.map(|example| example.explanation).unwrap_or_default());
        }
        assert_eq!(judgement.verdict, Verdict::Linearizable);
        let mut digests: BTreeMap<(GroupId, u64), String> = BTreeMap::new();
        for core in self.nodes.iter().filter_map(|node| node.core.as_ref()) {
            for group in core.status().groups.into_iter().filter(|group| !group.is_installing) {
                let known = digests.entry((group.group, group.applied)).or_insert(group.digest.clone());
                assert_eq!(*known, group.digest, "{} diverged at {}", group.group, group.applied);
            }
        }
    }

    pub(super) fn answered(&self) -> usize {
        self.history.iter().filter(|operation| operation.end.is_some()).count()
    }

    /// Sends damaged and random frames to every node, as peers and as clients.
    pub(super) fn bombard(&mut self, golden: &Bytes, count: usize) {
        let golden = [
            wire::encode(&RequestFrame {
                id: 1,
                request: Request::Command { group: GroupId(1), envelope: golden.clone() },
            }),
            wire::encode(&PeerMessage::of(TenureId { group: GroupId(1), epoch: 1 }, golden.clone())),
            wire::encode(&PeerMessage::Forward {
                id: 1,
                client: ClientId([1; 32]),
                request: Request::Status,
            }),
        ];
        for round in 0..count {
            let mut body = golden[round % golden.len()][4..].to_vec();
            for _ in 0..=self.random.below(3) {
                let at = self.random.below(body.len() as u64) as usize;
                body[at] = self.random.below(256) as u8;
            }
            body.truncate(1 + self.random.below(body.len() as u64) as usize);
            let index = self.random.below(self.nodes.len() as u64) as usize;
            let body = Bytes::from(body);
            let event = if self.random.chance(50) {
                NodeEvent::Peer {
                    from: NodeId(1 + u128::from(self.random.below(self.plan.nodes as u64))),
                    link: 1,
                    body,
                }
            } else {
                NodeEvent::Client { connection: ConnectionId(99), client: ClientId([99; 32]), body }
            };
            self.step(index, event);
        }
    }

    fn disturb(&mut self) {
        if self.is_calm {
            return;
        }
        let index = self.random.below(self.nodes.len() as u64) as usize;
        if self.random.below(1000) < self.plan.crash_per_mille {
            if self.nodes[index].core.is_some() {
                let kept = self.random.below(3) as usize;
                self.crash(index, kept);
            } else {
                self.start(index);
            }
        } else if self.plan.crash_per_mille > 0 && self.nodes[index].core.is_none() && self.random.chance(2) {
            self.start(index);
        }
        if self.random.below(1000) < self.plan.pause_per_mille {
            self.nodes[index].paused_until = self.now + 200 + self.random.below(2_000);
        }
        if self.random.below(1000) < self.plan.cut_per_mille {
            if self.cut.is_empty() {
                for _ in 0..1 + self.random.below(4) {
                    let pair = (self.random.below(6).into(), self.random.below(6).into());
                    self.cut.insert(pair);
                }
            } else {
                self.cut.clear();
            }
        }
    }

    fn is_paused(&self, index: usize) -> bool {
        self.nodes[index].paused_until > self.now
    }

    /// A process that runs again takes in what waits for it, clients first, before it learns how late it is.
    fn resume(&mut self) {
        for index in 0..self.nodes.len() {
            if !self.is_paused(index) && !self.nodes[index].stalled.is_empty() {
                let mut stalled = std::mem::take(&mut self.nodes[index].stalled);
                stalled.sort_by_key(|parcel| !matches!(parcel, Parcel::Request { .. }));
                for parcel in stalled {
                    self.deliver(parcel);
                }
            }
        }
    }

    fn tick(&mut self) {
        let (now, wall) = (Ticks(self.now), Timestamp(1_700_000_000_000_000 + self.now * 1000));
        for index in 0..self.nodes.len() {
            if !self.is_paused(index) {
                self.step(index, NodeEvent::Tick { now, wall });
            }
        }
    }

    fn step(&mut self, index: usize, event: NodeEvent) {
        let Some(core) = self.nodes[index].core.as_mut() else { return };
        core.step(event);
        let effects = core.flush();
        assert!(!core.has_waiting(), "one request at a time");
        self.watch(index);
        let from = NodeId::founder(index);
        for effect in effects {
            match effect {
                NodeEffect::Send { to, frame, .. } => {
                    self.check_persisted(index, &frame);
                    self.parcels.push(Parcel::Peer { from, to, frame });
                }
                NodeEffect::Answer { connection, frame } => {
                    self.parcels.push(Parcel::Answer { client: connection.0 as usize, frame });
                }
                NodeEffect::Disconnect { .. } | NodeEffect::Slow { .. } => {}
                NodeEffect::Verify { .. } => unreachable!("only Byzantine mode asks for it"),
                NodeEffect::Stop { reason } => panic!("{from} stops: {reason}"),
            }
        }
    }

    /// Counts what must not only be survived but reached.
    fn watch(&mut self, index: usize) {
        let Some(core) = self.nodes[index].core.as_ref() else { return };
        let status = core.status();
        let is_installing = status.groups.iter().any(|group| group.is_installing);
        self.installed += usize::from(self.nodes[index].was_installing && !is_installing);
        self.compactions += usize::from(status.log_bytes < self.nodes[index].last_log_bytes);
        self.nodes[index].was_installing = is_installing;
        self.nodes[index].last_log_bytes = status.log_bytes;
    }

    /// Holds a promise or an acknowledgement that leaves a node against what its disk durably holds.
    fn check_persisted(&mut self, index: usize, frame: &Bytes) {
        let Ok(PeerMessage::Groups(said)) = wire::decode(&frame[4..]) else { return };
        said.iter().for_each(|said| self.check_one(index, said.tenure.group, &said.body));
    }

    fn check_one(&mut self, index: usize, group: GroupId, body: &Bytes) {
        let Some(message) = engine_message(body) else { return };
        let node = &mut self.nodes[index];
        node.durable.follow(&node.disk);
        let durable = node.durable.groups.entry(group).or_default();
        match codec::decode::<Message>(&message) {
            Ok(Message::Promise { ballot, view, .. }) => {
                assert!(durable.promised >= ballot, "a promise left before it was durable");
                assert!(durable.accepted >= view.accepted, "what it reports was not durable");
                self.promises_checked += 1;
            }
            Ok(Message::Accepted { ballot, durable: last }) => {
                assert!(
                    durable.accepted >= ballot,
                    "n{} {group}: an acknowledgement of {last} in {ballot} left, durable is {durable:?}",
                    index + 1
                );
                let held = durable.log.last().slot.max(durable.log.base().slot);
                assert!(
                    held >= last || durable.accepted > ballot,
                    "an acknowledgement left before its entries were"
                );
                self.acknowledgements_checked += 1;
            }
            _ => {}
        }
    }

    fn move_parcels(&mut self) {
        for _ in 0..self.parcels.len().min(60) {
            let position = if self.random.chance(70) {
                0
            } else {
                self.random.below(self.parcels.len() as u64) as usize
            };
            let parcel = self.parcels.remove(position);
            let is_lossy = !self.is_calm;
            if is_lossy && self.random.chance(self.plan.drop_percent) {
                continue;
            }
            if is_lossy
                && self.random.chance(self.plan.duplicate_percent)
                && let Parcel::Peer { from, to, frame } = &parcel
            {
                self.parcels.push(Parcel::Peer { from: *from, to: *to, frame: frame.clone() });
            }
            self.deliver(parcel);
            if self.parcels.is_empty() {
                return;
            }
        }
    }

    fn deliver(&mut self, parcel: Parcel) {
        if let Parcel::Peer { to, .. } | Parcel::Request { to, .. } = &parcel
            && self.is_paused(to.0 as usize - 1)
        {
            return self.nodes[to.0 as usize - 1].stalled.push(parcel);
        }
        match parcel {
            Parcel::Peer { from, to, frame } => {
                if !self.cut.contains(&(from.0, to.0)) {
                    self.step(to.0 as usize - 1, NodeEvent::Peer { from, link: 1, body: frame.slice(4..) });
                }
            }
            Parcel::Request { to, connection, frame } => {
                let client = ClientId([connection.0 as u8; 32]);
                let body = frame.slice(4..);
                self.step(to.0 as usize - 1, NodeEvent::Client { connection, client, body });
            }
            Parcel::Answer { client, frame } => self.on_answer(client, &frame),
        }
    }

    fn flush_disks(&mut self) {
        for index in 0..self.nodes.len() {
            if self.nodes[index].core.is_none()
                || self.is_paused(index)
                || self.random.chance(self.plan.slow_disk_percent) && !self.is_calm
            {
                continue;
            }
            if let Some(commit) = self.nodes[index].disk.flush_one()
                && !self.stops_now(index)
            {
                self.step(index, NodeEvent::Durable(commit));
            }
            if self.nodes[index].core.is_none()
                || self.random.chance(self.plan.slow_disk_percent) && !self.is_calm
            {
                continue;
            }
            if let Some(commit) = self.nodes[index].disk.write_one()
                && !self.stops_now(index)
            {
                self.step(index, NodeEvent::Written(commit));
            }
        }
    }

    /// Counts a flush of the node's disk; crashes the node if it was to be its last.
    fn stops_now(&mut self, index: usize) -> bool {
        let left = self.nodes[index].flushes_left.map(|left| left - 1);
        self.nodes[index].flushes_left = left.filter(|left| *left > 0);
        if left == Some(0) {
            self.crash(index, 0);
        }
        left == Some(0)
    }

    fn drive_client(&mut self, index: usize) {
        const PATIENCE: u64 = 150;
        const GIVE_UP: u64 = 2_500;
        match &self.clients[index].open {
            None => self.begin(index),
            Some(open) if self.now - open.call / 1_000_000 > GIVE_UP && !self.is_calm => self.give_up(index),
            Some(open) if self.now - open.sent_at > PATIENCE => {
                let next = self.random.below(self.nodes.len() as u64) as usize;
                self.clients[index].node = next;
                self.send(index);
            }
            Some(_) => {}
        }
    }

    fn begin(&mut self, index: usize) {
        let number = self.random.below(self.keys);
        let key = if number.is_multiple_of(2) { format!("r{number}") } else { format!("c{number}") };
        let group = Atlas::founded(&self.founding).owner(Position::of_key(key.as_bytes())).group();
        let raw = Bytes::copy_from_slice(key.as_bytes());
        let is_read = self.random.chance(35);
        let Some(session) = self.clients[index].sessions.get(&group).copied() else {
            let nonce = u128::from(self.random.below(u64::MAX));
            let request = RequestId { session: SessionId(nonce), number: 0 };
            let envelope = Envelope::new(request, 0, &kv::Operation::Open).encode();
            return self.open(index, group, key, None, Request::Command { group, envelope });
        };
        if is_read {
            let request = Request::Get { group, key: raw, consistency: Consistency::Linearizable };
            return self.open(index, group, key, Some(Action::Get(None)), request);
        }
        let process = self.clients[index].process;
        let last = self.clients[index].last_number.entry(group).or_default();
        *last += 1;
        let number = *last;
        let (write, action) = if key.starts_with('c') {
            (Write::Incr { key: raw, by: 1 }, Action::Incr(1, 0))
        } else {
            let mut value = format!("{process}-{number}-{group}");
            if number.is_multiple_of(20) {
                // Larger than one stored record: cut into pieces, and shrunk again by the next write.
                value.push_str(&"x".repeat(7_000 + usize::try_from(number).expect("small") * 37 % 9_000));
            }
            (Write::put(raw, value.clone()), Action::Put(value.into()))
        };
        let request = RequestId { session, number };
        let envelope = Envelope::new(request, number, &kv::Operation::Write(write)).encode();
        self.open(index, group, key, Some(action), Request::Command { group, envelope });
    }

    /// The time in the history: later than every one before, so that what was called when something was answered comes behind it.
    fn stamp(&mut self) -> u64 {
        self.last_stamp = (self.now * 1_000_000).max(self.last_stamp + 1);
        self.last_stamp
    }

    fn open(&mut self, index: usize, group: GroupId, key: String, action: Option<Action>, request: Request) {
        let open =
            Open { request, group, key, action, call: self.stamp(), sent_at: self.now, ids: BTreeSet::new() };
        self.clients[index].open = Some(open);
        self.send(index);
    }

    fn send(&mut self, index: usize) {
        let now = self.now;
        let client = &mut self.clients[index];
        let Some(open) = client.open.as_mut() else { return };
        client.last_id += 1;
        open.sent_at = now;
        open.ids.insert(client.last_id);
        let frame = wire::encode(&RequestFrame { id: client.last_id, request: open.request.clone() });
        let (to, connection) = (NodeId::founder(client.node), ConnectionId(index as u64));
        self.parcels.push(Parcel::Request { to, connection, frame });
    }

    fn on_answer(&mut self, index: usize, frame: &Bytes) {
        let answer: AnswerFrame = wire::decode(&frame[4..]).expect("nodes answer well-formed frames");
        let now = self.stamp();
        let Some(client) = self.clients.get_mut(index) else { return };
        let Some(open) = client.open.as_ref().filter(|open| open.ids.contains(&answer.id)) else { return };
        if let Answer::Reply { leader, .. } | Answer::Value { leader, .. } = &answer.answer {
            self.named.extend(leader);
        }
        let action = match (answer.answer, &open.action) {
            (Answer::Reply { reply: Reply::Opened { session }, .. }, None) => {
                client.sessions.insert(open.group, session);
                client.last_number.insert(open.group, 0);
                client.open = None;
                return;
            }
            (Answer::Reply { reply: Reply::Incr { value, .. }, .. }, Some(Action::Incr(by, _))) => {
                Action::Incr(*by, value)
            }
            (Answer::Reply { reply: Reply::Put { .. }, .. }, Some(action)) => action.clone(),
            (Answer::Value { found, .. }, Some(Action::Get(_))) => Action::Get(
                found.map(|(_, value)| std::str::from_utf8(&value).expect("only text was written").into()),
            ),
            (Answer::Reply { reply: Reply::Failed(failure), .. }, _) => {
                panic!("a correct client is refused: {failure}")
            }
            // Not here, not now: the client asks again after a while.
            _ => return,
        };
        let open = client.open.take().expect("it was just looked at");
        self.history.push(Operation {
            process: client.process,
            key: open.key,
            action,
            call: open.call,
            end: Some(now),
            line: 0,
        });
    }

    /// Nobody will know what became of it; the client goes on under a new name.
    fn give_up(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if let Some(open) = client.open.take()
            && let Some(action) = open.action
        {
            let process = client.process;
            self.history.push(Operation {
                process,
                key: open.key,
                action,
                call: open.call,
                end: None,
                line: 0,
            });
        }
        self.next_process += 1;
        client.process = self.next_process;
        client.sessions.clear();
    }
}
