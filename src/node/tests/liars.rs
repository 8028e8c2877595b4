//! Whole nodes in Byzantine mode, some of which lie: virtual time, a bag of frames, disks that forget, a pool that is slow,
//! clients that sign and believe `f + 1`. Honest nodes never stop, their roots agree, and what clients saw is linearizable.

use super::sim::Random;
use crate::group::{Byzantine, Settings};
use crate::kv::{Operation, Reply, RequestId, SessionId, Write};
use crate::limits::Limits;
use crate::node::core::{NodeCore, NodeEffect, NodeEvent, NodeSettings};
use crate::ring::{GroupId, Member, NodeId, QuorumRule, TenureId, found};
use crate::shares::ClientId;
use crate::storage::memory::MemoryDisk;
use crate::ticket::ConnectionId;
use crate::wire::{self, Answer, AnswerFrame, Request, RequestFrame};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tetrachord_checker::{Action, History, Limits as JudgeLimits, Operation as Seen, Verdict, check};
use tetrachord_consensus::pbft::message::body_digest;
use tetrachord_consensus::pbft::{
    Bundle, ClientKey, ClientSigner, Domain, Lie, Message, RequestName, SignedRequest, Unverified, Verifier,
    Window,
};
use tetrachord_consensus::{Digest, Epoch, Options, Ticks, Timestamp, codec};

pub(super) const GROUP: GroupId = GroupId(1);
const TENURE: TenureId = TenureId { group: GROUP, epoch: 1 };
const CLUSTER: [u8; 32] = [5; 32];

pub(super) struct Node {
    pub(super) disk: MemoryDisk,
    pub(super) core: Option<NodeCore>,
    verifier: Option<Verifier>,
    checks: VecDeque<Box<Unverified>>,
    lies: bool,
    was_installing: bool,
    /// What is left of this many flushes and writes of its disk, before the node ends.
    pub(super) steps_left: Option<u64>,
    /// Parts of its state that it asked others for.
    pub(super) parts_taken: usize,
}

enum Parcel {
    Peer { from: NodeId, to: NodeId, frame: Bytes },
    Request { to: NodeId, client: usize, frame: Bytes },
    Answer { from: NodeId, client: usize, frame: Bytes },
}

/// A client: one request at a time, shown to all nodes until `f + 1` of them tell the same.
struct Client {
    signer: ClientSigner,
    process: u64,
    session: Option<SessionId>,
    number: u64,
    open: Option<Open>,
}

struct Open {
    request: RequestId,
    bundle: Bundle,
    action: Option<(String, Action)>,
    call: u64,
    sent_at: u64,
    told: Vec<(u64, Reply, BTreeSet<NodeId>)>,
}

pub(super) struct World {
    random: Random,
    pub(super) nodes: Vec<Node>,
    parcels: Vec<Parcel>,
    clients: Vec<Client>,
    now: u64,
    pub(super) history: Vec<Seen>,
    last_stamp: u64,
    pub(super) crash_per_mille: u64,
    pub(super) drop_percent: u64,
    pub(super) installed: usize,
    pub(super) lie: Lie,
    pub(super) scrub_millis: u64,
    /// Written state that may wait for the tree, in bytes.
    overlay_bytes: usize,
    /// A node whose tree takes nothing any more, though its log does.
    hung: Option<usize>,
    /// The pool of this node checks nothing.
    idle: Option<usize>,
    /// Whether clients have nothing more to ask.
    is_quiet: bool,
    /// What was answered last.
    last_bundle: Option<Bytes>,
    /// Every statement of an honest node, by its place: it is made once, over all lives.
    said: BTreeMap<(NodeId, u8, u64, u64), Digest>,
}

fn secret(index: usize) -> [u8; 32] {
    [index as u8 + 1; 32]
}

fn public(secret: &[u8; 32]) -> [u8; 32] {
    ClientSigner::new(secret).name().0
}

impl World {
    pub(super) fn new(nodes: usize, liars: usize, clients: usize, seed: u64) -> Self {
        let node = |index| Node {
            disk: MemoryDisk::default(),
            core: None,
            verifier: None,
            checks: VecDeque::new(),
            // The first primary is among those that lie.
            lies: (1..=liars).contains(&index),
            was_installing: false,
            steps_left: None,
            parts_taken: 0,
        };
        let client = |index: usize| Client {
            signer: ClientSigner::new(&secret(100 + index)),
            process: index as u64 + 1,
            session: None,
            number: 0,
            open: None,
        };
        let mut world = Self {
            random: Random(seed),
            nodes: (0..nodes).map(node).collect(),
            parcels: Vec::new(),
            clients: (0..clients).map(client).collect(),
            now: 1,
            history: Vec::new(),
            last_stamp: 0,
            crash_per_mille: 0,
            drop_percent: 0,
            installed: 0,
            lie: Lie::Anything,
            scrub_millis: 0,
            overlay_bytes: 1 << 20,
            hung: None,
            idle: None,
            is_quiet: false,
            last_bundle: None,
            said: BTreeMap::new(),
        };
        (0..nodes).for_each(|index| world.start(index));
        world
    }

    fn status(&self, index: usize) -> wire::GroupStatus {
        self.nodes[index].core.as_ref().expect("it runs").status().groups.remove(0)
    }

    fn faults(&self) -> usize {
        (self.nodes.len() - 1) / 3
    }

    pub(super) fn start(&mut self, index: usize) {
        let (storage, recovery) = self.nodes[index].disk.open();
        let key = |node: NodeId| public(&secret(node.0 as usize - 1));
        let member =
            |node, _| Member { node, key: key(node), signing: Some(key(node)), epoch_key: Some(key(node)) };
        let n = self.nodes.len();
        let lies = self.nodes[index].lies;
        let byzantine = Byzantine {
            cluster: CLUSTER,
            secrets: [(TENURE, secret(index))].into(),
            clients: (0..self.clients.len().max(4)).map(|at| public(&secret(100 + at))).collect(),
            request_millis: 400,
            window: Window { interval: 8, length: 32 },
            scrub_millis: self.scrub_millis,
            chaos: lies.then_some(index as u64),
        };
        let settings = NodeSettings {
            node: NodeId::founder(index),
            founding: found((1, n, n), QuorumRule::Byzantine, member),
            group: Settings {
                limits: Limits::default(),
                options: Options::default(),
                overlay_bytes_max: self.overlay_bytes,
                retain_bytes: 120_000,
                pinned_bytes: 120_000,
                byzantine: Some(byzantine),
            },
            log_bytes_max: 60_000,
            nodes: (0..self.nodes.len()).map(NodeId::founder).collect(),
            opening: recovery.incarnation,
        };
        let mut core = NodeCore::open(settings, Box::new(storage), recovery).expect("a healthy store");
        for peer in (0..self.nodes.len()).map(NodeId::founder).filter(|peer| peer.0 as usize != index + 1) {
            core.step(NodeEvent::PeerLink { node: peer, link: 1, is_up: true });
        }
        if lies {
            core.step(NodeEvent::Lie(Some(self.lie)));
        }
        let node = &mut self.nodes[index];
        node.verifier = core.verifiers().remove(&TENURE);
        node.core = Some(core);
        for client in 0..self.clients.len() {
            let client_key = self.clients[client].signer.name().0;
            self.ask(index, client, Request::Watch { client: client_key });
        }
    }

    /// Those that may lie, tell this from now on.
    pub(super) fn tell(&mut self, lie: Option<Lie>) {
        for index in (0..self.nodes.len()).filter(|index| self.nodes[*index].lies).collect::<Vec<_>>() {
            self.step(index, NodeEvent::Lie(lie));
        }
    }

    pub(super) fn crash(&mut self, index: usize, kept: usize) {
        if self.nodes[index].core.take().is_some() {
            self.nodes[index].disk.crash(kept);
            self.nodes[index].checks.clear();
        }
    }

    fn ask(&mut self, node: usize, client: usize, request: Request) {
        let frame = wire::encode(&RequestFrame { id: 1, request });
        self.parcels.push(Parcel::Request { to: NodeId::founder(node), client, frame });
    }

    pub(super) fn run(&mut self, millis: u64) {
        let end = self.now + millis;
        while self.now < end {
            self.now += 5;
            self.disturb();
            let (now, wall) = (Ticks(self.now), Timestamp(1_700_000_000_000_000 + self.now * 1000));
            (0..self.nodes.len()).for_each(|index| self.step(index, NodeEvent::Tick { now, wall }));
            for _ in 0..6 {
                self.move_parcels();
                self.work();
            }
            (0..self.clients.len()).for_each(|client| self.drive(client));
        }
    }

    fn disturb(&mut self) {
        let index = self.random.below(self.nodes.len() as u64) as usize;
        if self.random.below(1000) < self.crash_per_mille {
            if self.nodes[index].core.is_some() {
                let kept = self.random.below(3) as usize;
                self.crash(index, kept);
            } else {
                self.start(index);
            }
        }
    }

    /// Disks and pools do some of what waits.
    fn work(&mut self) {
        for index in 0..self.nodes.len() {
            if self.random.below(3) > 0
                && let Some(commit) = self.nodes[index].disk.flush_one()
            {
                self.step(index, NodeEvent::Durable(commit));
                self.end_if_due(index);
            }
            if self.random.below(3) == 0
                && self.hung != Some(index)
                && let Some(commit) = self.nodes[index].disk.write_one()
            {
                self.step(index, NodeEvent::Written(commit));
                self.end_if_due(index);
            }
            for _ in 0..if self.idle == Some(index) { 0 } else { 4 } {
                let node = &mut self.nodes[index];
                let (Some(job), Some(verifier)) = (node.checks.pop_front(), &mut node.verifier) else {
                    break;
                };
                let result = Box::new(verifier.verify(*job));
                self.step(index, NodeEvent::Verified { tenure: TENURE, result });
            }
        }
    }

    fn end_if_due(&mut self, index: usize) {
        let left = self.nodes[index].steps_left.map(|left| left.saturating_sub(1));
        self.nodes[index].steps_left = left;
        if left == Some(0) {
            self.nodes[index].steps_left = None;
            self.crash(index, 0);
            self.start(index);
        }
    }

    /// An honest node signs one thing in one place, whatever it lived through.
    fn watch(&mut self, from: NodeId, frame: &Bytes) {
        let Ok(wire::PeerMessage::Groups(said)) = wire::decode(&frame[4..]) else { return };
        said.iter().for_each(|said| self.watch_one(from, &said.body));
    }

    fn watch_one(&mut self, from: NodeId, body: &Bytes) {
        let index = from.0 as usize - 1;
        self.nodes[index].parts_taken += crate::group::parts_taken(body);
        let Some(message) = crate::group::engine_message(body).filter(|_| !self.nodes[index].lies) else {
            return;
        };
        let (kind, first, second, digest) = match codec::decode(&message).expect("honest nodes send messages")
        {
            Message::PrePrepare { vote, .. } => (0, vote.view.0, vote.slot.0, vote.digest),
            Message::Prepare(vote) => (1, vote.view.0, vote.slot.0, vote.digest),
            Message::Commit(vote) => (2, vote.view.0, vote.slot.0, vote.digest),
            Message::Checkpoint(vote) => (3, 0, vote.slot.0, vote.root),
            Message::ViewChange(message) => (4, message.view.0, 0, body_digest(&message.body)),
            _ => return,
        };
        let before = *self.said.entry((from, kind, first, second)).or_insert(digest);
        assert_eq!(before, digest, "{from} says two things: kind {kind} in view {first}, slot {second}");
    }

    fn step(&mut self, index: usize, event: NodeEvent) {
        let Some(core) = self.nodes[index].core.as_mut() else { return };
        core.step(event);
        let effects = core.flush();
        assert!(!core.has_waiting(), "one request at a time");
        let is_installing = core.status().groups[0].is_installing;
        self.installed += usize::from(self.nodes[index].was_installing && !is_installing);
        self.nodes[index].was_installing = is_installing;
        let from = NodeId::founder(index);
        for effect in effects {
            match effect {
                NodeEffect::Send { to, frame, .. } => {
                    self.watch(from, &frame);
                    self.parcels.push(Parcel::Peer { from, to, frame });
                }
                NodeEffect::Answer { connection, frame } => {
                    self.parcels.push(Parcel::Answer { from, client: connection.0 as usize, frame });
                }
                NodeEffect::Disconnect { .. } | NodeEffect::Slow { .. } => {}
                NodeEffect::Verify { job, .. } => self.nodes[index].checks.push_back(job),
                NodeEffect::Stop { reason } if self.nodes[index].lies => {
                    // A liar may trip over its own lies.
                    println!("{from}, which lies, stops: {reason}");
                    self.crash(index, 0);
                }
                NodeEffect::Stop { reason } => panic!("{from} stops: {reason}"),
            }
        }
    }

    fn move_parcels(&mut self) {
        for parcel in std::mem::take(&mut self.parcels) {
            if self.random.below(100) < self.drop_percent {
                continue;
            }
            if self.random.below(100) < 20 {
                self.parcels.push(parcel);
                continue;
            }
            match parcel {
                Parcel::Peer { from, to, frame } => {
                    self.step(to.0 as usize - 1, NodeEvent::Peer { from, link: 1, body: frame.slice(4..) });
                }
                Parcel::Request { to, client, frame } => {
                    let (connection, body) = (ConnectionId(client as u64), frame.slice(4..));
                    let event = NodeEvent::Client { connection, client: ClientId([client as u8; 32]), body };
                    self.step(to.0 as usize - 1, event);
                }
                Parcel::Answer { from, client, frame } => self.on_answer(from, client, &frame),
            }
        }
    }

    fn drive(&mut self, index: usize) {
        match &self.clients[index].open {
            None if self.is_quiet => {}
            None => self.begin(index),
            Some(open) if self.now - open.sent_at > 300 => {
                // A connection may have been lost with its watch.
                let client = self.clients[index].signer.name().0;
                let bundle = open.bundle.bytes().clone();
                for node in 0..self.nodes.len() {
                    self.ask(node, index, Request::Watch { client });
                    self.ask(node, index, Request::Submit { group: GROUP, bundle: bundle.clone() });
                }
                let now = self.now;
                self.clients[index].open.as_mut().expect("it is open").sent_at = now;
            }
            Some(_) => {}
        }
    }

    fn begin(&mut self, index: usize) {
        let (pick, is_counter, is_read) =
            (self.random.below(4), self.random.below(2) == 0, self.random.below(3) == 0);
        let nonce = u128::from(self.random.below(u64::MAX));
        let begins_anew = self.random.below(300) == 0;
        let client = &mut self.clients[index];
        if begins_anew {
            (client.session, client.number) = (None, 0);
        }
        let Some(session) = client.session else {
            let request = RequestId { session: SessionId(nonce), number: 0 };
            return self.send(index, request, &Operation::Open, None);
        };
        client.number += 1;
        let request = RequestId { session, number: client.number };
        let name = format!("{}{pick}", if is_counter { 'c' } else { 'r' });
        let key = Bytes::copy_from_slice(name.as_bytes());
        let (operation, action) = if is_read {
            (Operation::Get { key }, Action::Get(None))
        } else if is_counter {
            (Operation::Write(Write::Incr { key, by: 1 }), Action::Incr(1, 0))
        } else {
            let mut value = format!("{}-{}", client.process, client.number);
            if client.number.is_multiple_of(11) {
                value.push_str(&"x".repeat(9_000));
            }
            (Operation::Write(Write::put(key, value.clone())), Action::Put(value.into()))
        };
        self.send(index, request, &operation, Some((name, action)));
    }

    fn send(
        &mut self,
        index: usize,
        request: RequestId,
        operation: &Operation,
        action: Option<(String, Action)>,
    ) {
        let now = self.now;
        let client = &mut self.clients[index];
        let name = RequestName {
            client: ClientKey(client.signer.name().0),
            session: request.session.0,
            number: request.number,
        };
        let signed = SignedRequest {
            name,
            ack_below: request.number,
            not_after: Timestamp(1_700_000_000_000_000 + (now + 200_000) * 1000),
            wants_proof: false,
            ends_epoch: false,
            operation: operation.encode(),
        };
        let domain = Domain { cluster: Digest(CLUSTER), group: GROUP.0, epoch: Epoch(1) };
        let bundle = Bundle::sign(&domain, &client.signer, &[signed]);
        let bytes = bundle.bytes().clone();
        let call = self.stamp();
        self.clients[index].open =
            Some(Open { request, bundle, action, call, sent_at: now, told: Vec::new() });
        let node = self.random.below(self.nodes.len() as u64) as usize;
        self.ask(node, index, Request::Submit { group: GROUP, bundle: bytes });
    }

    /// The time in the history: later than every one before, so that what was called when something was answered comes behind it.
    fn stamp(&mut self) -> u64 {
        self.last_stamp = (self.now * 1_000_000).max(self.last_stamp + 1);
        self.last_stamp
    }

    fn on_answer(&mut self, from: NodeId, index: usize, frame: &Bytes) {
        let answer: AnswerFrame = wire::decode(&frame[4..]).expect("nodes answer well-formed frames");
        let Answer::Outcomes { slot, replies, .. } = answer.answer else { return };
        let needed = self.faults() + 1;
        for (request, reply, _) in replies {
            let client = self.clients.get_mut(index);
            let Some(open) =
                client.and_then(|client| client.open.as_mut()).filter(|open| open.request == request)
            else {
                continue;
            };
            let known = open.told.iter().position(|(at, known, _)| *at == slot && *known == reply);
            let at = known.unwrap_or(open.told.len());
            if known.is_none() {
                open.told.push((slot, reply.clone(), BTreeSet::new()));
            }
            open.told[at].2.insert(from);
            if open.told[at].2.len() >= needed {
                self.finish(index, reply);
            }
        }
    }

    fn finish(&mut self, index: usize, reply: Reply) {
        let now = self.stamp();
        let client = &mut self.clients[index];
        let open = client.open.take().expect("it was just looked at");
        self.last_bundle = Some(open.bundle.bytes().clone());
        let Some((key, action)) = open.action else {
            match reply {
                Reply::Opened { session } => client.session = Some(session),
                other => panic!("a correct client is refused: {other:?}"),
            }
            return;
        };
        let action = match (action, reply) {
            (Action::Incr(by, _), Reply::Incr { value, .. }) => Action::Incr(by, value),
            (Action::Get(_), Reply::Value { found, .. }) => Action::Get(
                found.map(|(_, value)| std::str::from_utf8(&value).expect("only text was written").into()),
            ),
            (action @ Action::Put(_), Reply::Put { .. }) => action,
            (_, reply) => panic!("a correct client is told {reply:?}"),
        };
        let process = client.process;
        self.history.push(Seen { process, key, action, call: open.call, end: Some(now), line: 0 });
    }

    /// Nobody asks for anything any more, once what is open is answered.
    pub(super) fn retire_clients(&mut self) {
        self.is_quiet = true;
        for _ in 0..400 {
            if self.clients.iter().all(|client| client.open.is_none()) {
                return;
            }
            self.run(5);
        }
        panic!("requests stay open: {}", self.describe());
    }

    /// Clients ask again.
    pub(super) fn resume_clients(&mut self) {
        self.is_quiet = false;
    }

    /// Faults stop; lies go on. Everybody comes back, and what clients saw is linearizable.
    pub(super) fn calm_and_judge(&mut self) {
        (self.crash_per_mille, self.drop_percent) = (0, 0);
        for index in 0..self.nodes.len() {
            if self.nodes[index].core.is_none() {
                self.start(index);
            }
        }
        self.run(6_000);
        let before = self.history.len();
        self.run(3_000);
        assert!(
            self.is_quiet || self.history.len() > before + 10,
            "the group does not come back: {}",
            self.describe()
        );
        let mut operations = self.history.clone();
        for client in &mut self.clients {
            if let Some(Open { action: Some((key, action)), call, .. }) = client.open.take() {
                operations.push(Seen { process: client.process, key, action, call, end: None, line: 0 });
            }
        }
        let history = History::new(operations, 0).unwrap();
        let judgement = check(&history, JudgeLimits::default());
        if let Verdict::Violation { key } = &judgement.verdict {
            let example = tetrachord_checker::counterexample::find(&history, key);
            panic!("not linearizable: {}", example.map(|example| example.explanation).unwrap_or_default());
        }
        // The clients are gone: now everybody gets to the end.
        self.clients.clear();
        let mut rounds = 0;
        while !self.is_even() {
            rounds += 1;
            assert!(rounds < 20, "an honest node was left behind: {}", self.describe());
            self.run(500);
        }
        let mut digests: BTreeMap<u64, String> = BTreeMap::new();
        for node in self.nodes.iter().filter(|node| !node.lies) {
            let status = node.core.as_ref().expect("honest nodes run").status().groups.remove(0);
            let known = digests.entry(status.applied).or_insert(status.digest.clone());
            assert_eq!(*known, status.digest, "diverged at {}", status.applied);
        }
    }

    /// Whether all honest nodes have applied the same.
    pub(super) fn is_even(&self) -> bool {
        let honest = self.nodes.iter().filter(|node| !node.lies);
        let applied: BTreeSet<u64> =
            honest.map(|node| node.core.as_ref().map_or(0, |core| core.status().groups[0].applied)).collect();
        applied.len() == 1
    }

    pub(super) fn describe(&self) -> String {
        let describe = |node: &Node| {
            let status = node.core.as_ref().map(|core| core.status().groups.remove(0));
            format!("lies={} checks={} {status:#?}\n", node.lies, node.checks.len())
        };
        self.nodes.iter().map(describe).collect()
    }
}

#[test]
fn four_honest_nodes_answer_signed_requests() {
    let mut world = World::new(4, 0, 3, 1);
    world.run(4_000);
    world.calm_and_judge();
    assert!(world.history.len() > 100, "{} answers", world.history.len());
}

#[test]
fn every_lie_of_the_first_primary_leaves_histories_linearizable() {
    for (seed, lie) in Lie::ALL.into_iter().enumerate() {
        let mut world = World::new(4, 1, 3, seed as u64);
        world.lie = lie;
        world.crash(1, 0);
        world.start(1);
        world.run(5_000);
        println!("{}", lie.name());
        world.calm_and_judge();
        println!("{}: {} answers", lie.name(), world.history.len());
        assert!(world.history.len() > 30, "{}: {} answers", lie.name(), world.history.len());
    }
}

#[test]
fn two_liars_among_seven_change_nothing() {
    let mut world = World::new(7, 2, 2, 7);
    world.run(3_000);
    world.calm_and_judge();
    assert!(world.history.len() > 20, "{} answers", world.history.len());
}

#[test]
fn crashes_losses_and_lies_together_leave_histories_linearizable() {
    let seeds = std::env::var("LIAR_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    let (mut answers, mut installed) = (0, 0);
    for seed in 0..seeds {
        let mut world = World::new(4, seed as usize % 2, 3, 1_000 + seed);
        (world.crash_per_mille, world.drop_percent) = (seed % 4, seed * 3 % 10);
        world.run(6_000);
        world.calm_and_judge();
        println!("seed {seed}: {} answers, {} states installed", world.history.len(), world.installed);
        answers += world.history.len();
        installed += world.installed;
    }
    assert!(answers > 50 * seeds as usize, "{answers} answers");
    println!("{installed} states installed");
}

/// What is written between two checkpoints is many times what may wait for the tree. Nobody lies and nothing fails, so
/// nobody has reason to leave a view.
#[test]
fn large_writes_stop_no_checkpoint_and_cost_no_view() {
    let mut world = World::new(4, 0, 4, 9);
    world.overlay_bytes = 2_000;
    (0..4).for_each(|index| {
        world.crash(index, 0);
        world.start(index);
    });
    world.run(5_000);
    let views: Vec<u64> = (0..4).map(|index| world.status(index).view).collect();
    println!("{} answers, views {views:?}", world.history.len());
    assert_eq!(views, [0; 4]);
    assert!(world.history.len() > 1_000, "{} answers", world.history.len());
    world.calm_and_judge();
}

/// The tree of one backup takes nothing for a long time, and the others go on: what waits for it stays small, it goes on to
/// vote, and comes back.
#[test]
fn a_backup_whose_tree_hangs_keeps_little_in_memory() {
    let mut world = World::new(4, 0, 4, 10);
    world.run(1_000);
    world.hung = Some(3);
    let (mut waiting, mut log) = (0, 0);
    for _ in 0..100 {
        world.run(200);
        let core = world.nodes[3].core.as_ref().expect("it runs");
        let group = core.groups().next().expect("it has one");
        waiting = waiting.max(group.decided_and_waiting());
        log = log.max(group.engine().log_bytes);
    }
    let (first, last) = (world.status(3), world.status(0));
    println!(
        "{waiting} slots wait, {log} bytes of log; {} of {} slots are applied",
        first.applied, last.applied
    );
    assert!(last.applied > first.applied + 500, "the others do not wait for it");
    assert!(waiting <= 2 * 32, "{waiting} slots wait to be executed");
    world.hung = None;
    world.calm_and_judge();
}

/// Node 4 is away until no log reaches it any more, while the first primary lies about states.
fn away(seed: u64) -> World {
    let mut world = World::new(4, 1, 4, seed);
    world.lie = Lie::FalseState;
    world.crash(1, 0);
    world.start(1);
    world.run(2_000);
    world.crash(3, 0);
    world.run(8_000);
    world.start(3);
    world.run(6_000);
    world
}

#[test]
fn a_node_that_was_away_takes_a_whole_state_although_another_lies_about_it() {
    let mut world = away(5);
    world.calm_and_judge();
    assert!(world.installed > 0, "no state was transferred");
}

/// A state comes with proof of its checkpoint. Whatever else is being checked, the replica knows of that before the state is in place.
#[test]
fn a_state_is_put_in_place_however_much_waits_to_be_checked() {
    let mut world = World::new(4, 0, 4, 5);
    world.run(2_000);
    world.crash(3, 0);
    world.run(8_000);
    world.start(3);
    let is_far_behind = |world: &World| world.status(3).stable > world.status(3).applied;
    let waited = (0..400).find(|_| {
        world.run(5);
        is_far_behind(&world)
    });
    assert!(waited.is_some(), "it hears of a checkpoint that no log reaches");
    world.idle = Some(3);
    world.run(10_000);
    assert!(world.installed > 0, "no state was put in place");
    world.idle = None;
    world.calm_and_judge();
}

/// A liar that everybody needs offers its state to a node that was away, and gives none of it; of all else it says nothing.
/// Whichever node is away, and whomever it asks first: the group comes back.
#[test]
fn whoever_offers_a_state_for_ever_is_left_for_another() {
    for away in [0, 3] {
        let mut world = World::new(4, 1, 4, 5);
        world.tell(None);
        world.run(2_000);
        world.crash(away, 0);
        world.run(8_000);
        world.tell(Some(Lie::EndlessState));
        world.start(away);
        world.run(10_000);
        println!("node {} was away: {} states installed", away + 1, world.installed);
        world.calm_and_judge();
        assert!(world.installed > 0, "no state was transferred");
    }
}

/// What was answered belongs to the state: a replica without it answers otherwise than the others.
#[test]
fn a_root_that_leaves_out_what_was_answered_is_noticed() {
    let caught = (5..8).find(|seed| {
        let run = std::panic::catch_unwind(|| {
            crate::kv::LEAVES_OUT_SESSIONS.set(true);
            away(*seed).calm_and_judge();
        });
        crate::kv::LEAVES_OUT_SESSIONS.set(false);
        run.is_err()
    });
    println!("caught by seed {caught:?}");
    assert!(caught.is_some(), "nobody noticed");
}

/// Node 4 has no client's key. It passes on what honest clients asked, when it is executed, as if a client had brought it, to all
/// but the primary.
#[test]
fn a_node_that_passes_executed_requests_on_takes_no_view() {
    let mut world = World::new(4, 0, 3, 21);
    let view = |world: &World| world.nodes[0].core.as_ref().expect("it runs").status().groups.remove(0).view;
    world.run(2_000);
    let before = view(&world);
    let primary = (1 + before as usize) % 4;
    let mut passed_on = 0;
    for _ in 0..200 {
        world.run(50);
        let Some(bundle) = world.last_bundle.clone() else { continue };
        for index in (0..3).filter(|index| *index != primary) {
            let request = Request::Submit { group: GROUP, bundle: bundle.clone() };
            let frame =
                wire::encode(&wire::PeerMessage::Forward { id: 7, client: ClientId([1; 32]), request });
            world.step(index, NodeEvent::Peer { from: NodeId(4), link: 1, body: frame.slice(4..) });
            passed_on += 1;
        }
    }
    assert!(passed_on > 100 && world.history.len() > 100, "{passed_on} were passed on");
    assert_eq!(view(&world), before, "an honest primary lost its view");
}
