//! Whatever bytes arrive, from a client, a peer or a file: an answer or a refusal, never a panic, and never more memory
//! than twice the largest frame.
//!
//! Hundreds of real messages are recorded from a small cluster in memory; every flipped bit, every cut and every huge
//! number in each of them goes through every decoder, and a part of them through whole nodes.
#![allow(clippy::unwrap_used, reason = "test code")]

use bytes::Bytes;
use peak_alloc::PeakAlloc;
use std::collections::{BTreeMap, BTreeSet};
use tetrachord::config::{ClusterConfig, Genesis, NodeConfig};
use tetrachord::group::Settings;
use tetrachord::kv::{Batch, Envelope, Expect, Operation, Reply, RequestId, SessionId, Write};
use tetrachord::limits::{Limits, PEER_FRAME_BYTES_MAX};
use tetrachord::node::core::{NodeCore, NodeEffect, NodeEvent, NodeSettings};
use tetrachord::ring::{GroupId, NodeId, found_without_keys};
use tetrachord::shares::ClientId;
use tetrachord::storage::memory::MemoryDisk;
use tetrachord::ticket::ConnectionId;
use tetrachord::wire::{
    self, Answer, AnswerFrame, Consistency, Hello, PeerMessage, ProcessStats, Request, RequestFrame,
};
use tetrachord_consensus::paxos::{Message, Recovered};
use tetrachord_consensus::{Options, Ticks, Timestamp, codec};

#[global_allocator]
static PEAK: PeakAlloc = PeakAlloc;

/// What one decoding may take at most, in MiB.
const MEMORY_MIB_MAX: f32 = 2.0 * (PEER_FRAME_BYTES_MAX >> 20) as f32;

const NODES: u128 = 3;

/// A cluster in memory that loses nothing; every frame is kept.
struct World {
    disks: Vec<MemoryDisk>,
    cores: Vec<NodeCore>,
    frames: BTreeSet<(Kind, Bytes)>,
    session: Option<SessionId>,
    now: u64,
    last_id: u64,
}

/// Who reads the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    FromPeer,
    FromClient,
    ToClient,
    Record,
}

fn core(node: u128, disk: &MemoryDisk) -> NodeCore {
    let (storage, recovery) = disk.open();
    let options = Options { seed: node as u64, message_bytes: 2_000, ..Options::default() };
    let settings = NodeSettings {
        node: NodeId(node),
        founding: found_without_keys(2, NODES as usize, NODES as usize),
        group: Settings {
            limits: Limits::default(),
            options,
            overlay_bytes_max: 5_000,
            retain_bytes: 500,
            pinned_bytes: 500,

            byzantine: None,
        },
        log_bytes_max: 4_000,
        nodes: (1..=NODES).map(NodeId).collect(),
        opening: recovery.incarnation,
    };
    let mut core = NodeCore::open(settings, Box::new(storage), recovery).unwrap();
    for peer in (1..=NODES).filter(|peer| *peer != node).map(NodeId) {
        core.step(NodeEvent::PeerLink { node: peer, link: 1, is_up: true });
    }
    core
}

impl World {
    fn new() -> Self {
        let disks: Vec<MemoryDisk> = (0..NODES).map(|_| MemoryDisk::default()).collect();
        let cores = (1..).zip(&disks).map(|(node, disk)| core(node, disk)).collect();
        Self { disks, cores, frames: BTreeSet::new(), session: None, now: 1, last_id: 0 }
    }

    /// Lets time pass; node `absent` hears and says nothing.
    fn run(&mut self, millis: u64, absent: Option<usize>) {
        for _ in 0..millis / 5 {
            self.now += 5;
            let event = NodeEvent::Tick { now: Ticks(self.now), wall: Timestamp(self.now * 1000) };
            for index in (0..self.cores.len()).filter(|index| Some(*index) != absent) {
                self.step(index, event.clone(), absent);
            }
            for index in (0..self.cores.len()).filter(|index| Some(*index) != absent) {
                while let Some(id) = self.disks[index].flush_one() {
                    self.step(index, NodeEvent::Durable(id), absent);
                }
                while let Some(id) = self.disks[index].write_one() {
                    self.step(index, NodeEvent::Written(id), absent);
                }
            }
        }
    }

    fn step(&mut self, index: usize, event: NodeEvent, absent: Option<usize>) {
        let mut events = vec![(index, event)];
        while let Some((index, event)) = events.pop() {
            self.cores[index].step(event);
            for effect in self.cores[index].flush() {
                match effect {
                    NodeEffect::Send { to, frame, .. } => {
                        let body = frame.slice(4..);
                        self.frames.insert((Kind::FromPeer, body.clone()));
                        let to = to.0 as usize - 1;
                        if Some(to) != absent {
                            events
                                .push((to, NodeEvent::Peer { from: NodeId::founder(index), link: 1, body }));
                        }
                    }
                    NodeEffect::Answer { frame, .. } => self.on_answer(frame.slice(4..)),
                    NodeEffect::Verify { .. } => unreachable!("only Byzantine mode asks for it"),
                    NodeEffect::Slow { .. } => {}
                    NodeEffect::Disconnect { reason, .. } | NodeEffect::Stop { reason } => panic!("{reason}"),
                }
            }
        }
    }

    fn on_answer(&mut self, body: Bytes) {
        if let Answer::Reply { reply: Reply::Opened { session }, .. } =
            wire::decode::<AnswerFrame>(&body).unwrap().answer
        {
            self.session = Some(session);
        }
        self.frames.insert((Kind::ToClient, body));
    }

    fn ask(&mut self, request: Request) {
        self.last_id += 1;
        let body = wire::encode(&RequestFrame { id: self.last_id, request }).slice(4..);
        self.frames.insert((Kind::FromClient, body.clone()));
        let index = self.last_id as usize % 2;
        self.step(
            index,
            NodeEvent::Client { connection: ConnectionId(1), client: ClientId([7; 32]), body },
            None,
        );
        self.run(10, Some(2));
    }
}

/// Requests of every kind, writes of every kind, a replica that is left behind and comes back by snapshot.
fn golden() -> Vec<(Kind, Bytes)> {
    let mut world = World::new();
    // The first start of three wants all three, once.
    world.run(3_000, None);
    for group in [GroupId(1), GroupId(2)] {
        world.session = None;
        let mut nonce = 0;
        while world.session.is_none() {
            nonce += 1;
            assert!(nonce < 1_000, "{group} has a leader and answers");
            let request = RequestId { session: SessionId(nonce), number: 0 };
            world.ask(Request::Command {
                group,
                envelope: Envelope::new(request, 0, &Operation::Open).encode(),
            });
        }
        let session = world.session.unwrap();
        for number in 1..40 {
            let key = Bytes::from(format!("key-{}", number % 7));
            let value = Bytes::from("v".repeat(number as usize * 3));
            let write = match number % 6 {
                0 => Write::Delete { key },
                1 => Write::cas(key, Expect::Version(number), Some(value)),
                2 => Write::cas(key, Expect::Value(Some(value)), None),
                3 => Write::Incr { key, by: -(number as i64) },
                4 => Write::Append { key, value },
                _ => Write::put(key, value),
            };
            let request = RequestId { session, number };
            let envelope = Envelope::new(request, number, &Operation::Write(write)).encode();
            world.ask(Request::Command { group, envelope });
        }
    }
    for consistency in
        [Consistency::Linearizable, Consistency::Session { at_least: 3 }, Consistency::Eventual]
    {
        world.ask(Request::Get { group: GroupId(1), key: Bytes::from_static(b"key-1"), consistency });
    }
    world.ask(Request::Status);
    world.run(4_000, Some(2));
    // The third node has missed everything: its groups are told by snapshot.
    world.run(3_000, None);
    for disk in &world.disks {
        let records = disk.durable_log_from(0).0.into_iter().map(|record| (Kind::Record, record.body));
        world.frames.extend(records);
    }
    // Many of each kind are alike but for a number: some of every length are enough.
    let mut by_length: BTreeMap<(Kind, usize), usize> = BTreeMap::new();
    let is_new = |(kind, body): &(Kind, Bytes)| {
        let count = by_length.entry((*kind, body.len())).or_default();
        *count += 1;
        *count <= 3 && body.len() < 1_500
    };
    world.frames.into_iter().filter(is_new).collect()
}

/// The largest numbers that a length or a count may claim; each takes the place of every byte once.
const HUGE: [&[u8]; 3] = [
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0x3f],
];

/// Every change that is tried on one message.
fn changes(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let flips = (0..bytes.len() * 8).map(|bit| {
        let mut changed = bytes.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        changed
    });
    let cuts = (0..bytes.len()).map(|length| bytes[..length].to_vec());
    let claims = (0..bytes.len())
        .flat_map(move |at| HUGE.iter().map(move |huge| [&bytes[..at], huge, &bytes[at + 1..]].concat()));
    let zeros = (0..bytes.len()).map(|at| {
        let mut changed = bytes.to_vec();
        changed[at..].fill(0);
        changed
    });
    flips.chain(cuts).chain(claims).chain(zeros)
}

fn decode_with_everything(bytes: &[u8]) {
    let said = match wire::decode::<PeerMessage>(bytes) {
        Ok(PeerMessage::Groups(said)) => said,
        _ => Vec::new(),
    };
    for body in said.iter().map(|said| &said.body) {
        // The engine's message lies behind one byte that says so, and its length.
        for skip in 0..body.len().min(4) {
            drop(codec::decode::<Message>(&body[skip..]));
        }
    }
    drop(wire::decode::<RequestFrame>(bytes));
    drop(wire::decode::<AnswerFrame>(bytes));
    drop(wire::decode::<Hello>(bytes));
    drop(codec::decode::<Message>(bytes));
    drop(Recovered::replay([bytes]));
    drop(Operation::decode(bytes));
    drop(Envelope::decode(&Bytes::copy_from_slice(bytes)));
    drop(Batch::inputs(Bytes::copy_from_slice(bytes)));
}

#[test]
fn no_bytes_make_a_decoder_or_a_node_panic_or_take_much_memory() {
    let golden = golden();
    let of = |kind| golden.iter().filter(|(found, _)| *found == kind).count();
    println!(
        "{} messages: {} between nodes, {} requests, {} answers, {} records",
        golden.len(),
        of(Kind::FromPeer),
        of(Kind::FromClient),
        of(Kind::ToClient),
        of(Kind::Record)
    );
    assert!(
        golden.len() >= 200
            && [Kind::FromPeer, Kind::FromClient, Kind::ToClient, Kind::Record]
                .map(of)
                .iter()
                .all(|count| *count > 10)
    );
    let (mut tried, mut worst) = (0u64, 0.0f32);
    for (_, message) in &golden {
        for changed in changes(message) {
            let before = PEAK.current_usage_as_mb();
            PEAK.reset_peak_usage();
            decode_with_everything(&changed);
            let taken = PEAK.peak_usage_as_mb() - before;
            worst = worst.max(taken);
            assert!(taken <= MEMORY_MIB_MAX, "{taken} MiB for {} bytes", changed.len());
            tried += 1;
        }
    }
    println!("{tried} changed messages through every decoder, at most {worst:.2} MiB at a time");
    let stopped = feed_nodes(&golden);
    println!("a node that was fed with them stopped itself {stopped} times, and never panicked");
    change_files();
}

/// The same messages, fewer changes of each, into a node that runs. It may stop itself; then another one takes its place.
fn feed_nodes(golden: &[(Kind, Bytes)]) -> usize {
    let (mut world, mut stopped) = (World::new(), 0);
    world.run(1_500, None);
    for (number, (kind, message)) in golden.iter().enumerate() {
        for (turn, changed) in changes(message).enumerate().filter(|(turn, _)| (turn + number) % 7 == 0) {
            let body = Bytes::from(changed);
            let index = turn % NODES as usize;
            let event = match kind {
                Kind::FromPeer => {
                    NodeEvent::Peer { from: NodeId((index as u128 + 1) % NODES + 1), link: 1, body }
                }
                _ => NodeEvent::Client {
                    connection: ConnectionId(turn as u64),
                    client: ClientId([7; 32]),
                    body,
                },
            };
            world.cores[index].step(event);
            let effects = world.cores[index].flush();
            world.disks[index].settle();
            if effects.iter().any(|effect| matches!(effect, NodeEffect::Stop { .. })) {
                stopped += 1;
                world = World::new();
                world.run(1_500, None);
            }
        }
    }
    world.cores[0].step(NodeEvent::Process(ProcessStats::default(), tetrachord::node::core::Room::Enough));
    stopped
}

/// Every bit of every file of a cluster, and every cut: the file is read as it was meant, or refused with a reason.
fn change_files() {
    let dir = tempfile::tempdir().unwrap();
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_tetrachord"))
        .args(["init", "--nodes", "3", "--dir"])
        .arg(dir.path().join("c"))
        .output()
        .unwrap();
    assert!(made.status.success());
    let root = dir.path().join("c");
    let mut tried = 0;
    for name in ["genesis.toml", "n1/node.toml", "n1/node.key", "cluster.toml", "client.key"] {
        let path = root.join(name);
        let whole = std::fs::read(&path).unwrap();
        for changed in changes(&whole).step_by(3) {
            std::fs::write(&path, changed).unwrap();
            let results = [
                Genesis::load(&root.join("genesis.toml")).map(drop),
                NodeConfig::load(&root.join("n1/node.toml")).map(drop),
                ClusterConfig::load(&root.join("cluster.toml")).map(drop),
            ];
            assert!(
                results.iter().flatten().count() + results.iter().filter(|result| result.is_err()).count()
                    == 3
            );
            for error in results.into_iter().filter_map(Result::err) {
                assert!(error.to_string().len() > 10, "an error says what is wrong");
            }
            tried += 1;
        }
        std::fs::write(&path, whole).unwrap();
    }
    println!("{tried} changed files");
}
