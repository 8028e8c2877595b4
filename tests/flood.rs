//! One admitted client attacks every node with all that it has: connections, frames that are only half there, requests that cost
//! much, sessions, and in Byzantine mode bad signatures and proofs. Another one goes on as if nothing were.
//!
//! `FLOOD_SECONDS=60 cargo test --release --test flood -- --nocapture --test-threads 1` attacks for longer and says what it came to.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use bytes::Bytes;
use common::{Cluster, wait_for};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tetrachord::Client;
use tetrachord::config::{ClusterConfig, GenesisNode, cluster_digest};
use tetrachord::kv::{Envelope, Operation, RequestId, SessionId};
use tetrachord::ring::GroupId;
use tetrachord::transport::{ClientEndpoint, ClientLink, Patience};
use tetrachord::wire::{self, Answer, AnswerFrame, Consistency, Request, RequestFrame};
use tetrachord_consensus::pbft::{Bundle, ClientSigner, Domain, RequestName, SignedRequest};
use tetrachord_consensus::{Digest, Epoch, Timestamp};
use tokio::sync::mpsc;

/// How long the attack lasts.
fn attack_lasts() -> Duration {
    let asked = std::env::var("FLOOD_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(asked.unwrap_or(6))
}

/// Connections that the attacker keeps half a frame on, to each node.
const HALVES: usize = 60;

/// Whoever attacks, and what it was told.
#[derive(Clone)]
struct Attacker {
    config: Arc<ClusterConfig>,
    endpoint: ClientEndpoint,
    is_over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
}

impl Attacker {
    fn new(config: ClusterConfig) -> Self {
        let endpoint = ClientEndpoint::new(config.nodes.iter().map(|node| &node.address)).unwrap();
        Self {
            config: Arc::new(config),
            endpoint,
            is_over: Arc::default(),
            sent: Arc::default(),
            refused: Arc::default(),
        }
    }

    /// A connection, if the node still gives it one.
    async fn connect(&self, node: &GenesisNode) -> Option<(ClientLink, mpsc::Receiver<Bytes>)> {
        let limit = Duration::from_secs(5);
        let patience = Patience { silence: limit, handshake: limit };
        let (identity, protocol) = (&self.config.identity, &self.config.protocol);
        let connected =
            ClientLink::connect(&self.endpoint, identity, &node.address, node.key, protocol, patience).await;
        connected.ok().map(|(link, _greeting, frames)| (link, frames))
    }

    /// One connection after the other, on which the most part of a large frame never comes.
    async fn send_halves(self, node: GenesisNode) {
        let mut held = VecDeque::new();
        while !self.is_over.load(Ordering::Relaxed) {
            if let Some((link, frames)) = self.connect(&node).await {
                let _ = link.send([&(2u32 << 20).to_le_bytes()[..], &[7; 64 << 10]].concat().into());
                held.push_back((link, frames));
            }
            if held.len() > HALVES {
                held.pop_front();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Requests without end, each as soon as the one before has left.
    async fn send_requests(self, node: GenesisNode, make: impl Fn(u64) -> Request) {
        while !self.is_over.load(Ordering::Relaxed) {
            let Some((link, mut frames)) = self.connect(&node).await else { continue };
            while !self.is_over.load(Ordering::Relaxed) && !link.is_closed() {
                for _ in 0..50 {
                    let id = self.sent.fetch_add(1, Ordering::Relaxed);
                    let _ = link.send(wire::encode(&RequestFrame { id, request: make(id) }));
                }
                while let Ok(frame) = frames.try_recv() {
                    self.note(&frame);
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }

    fn note(&self, frame: &Bytes) {
        if let Ok(AnswerFrame { answer: Answer::Refused { .. } | Answer::Retry { .. }, .. }) =
            wire::decode(frame)
        {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A bundle of so many requests, each of which wants a proof.
    fn bundle(&self, first: u64, count: u64, operation: &Operation) -> Bytes {
        let signer = ClientSigner::new(&self.config.signing.as_ref().unwrap().seed());
        let cluster = Digest(cluster_digest(&self.config.protocol));
        let domain = Domain { cluster, group: 1, epoch: Epoch(1) };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let not_after = Timestamp(now.as_micros() as u64 + 60_000_000);
        // An opening has its nonce in the place of a session, and the number 0.
        let name = |number: u64| match operation {
            Operation::Open => RequestName { client: signer.name(), session: number.into(), number: 0 },
            _ => RequestName { client: signer.name(), session: 7, number },
        };
        let request = |number| SignedRequest {
            name: name(number),
            ack_below: 1,
            not_after,
            wants_proof: true,
            ends_epoch: false,
            operation: operation.encode(),
        };
        let requests: Vec<SignedRequest> = (first..first + count).map(request).collect();
        Bundle::sign(&domain, &signer, &requests).bytes().clone()
    }

    /// On a thread of its own, which gets what the nodes and the client leave of the processors: what is measured is what it does to them
    /// by what it sends.
    fn attack_from_elsewhere(self, other: Option<Self>) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || {
            rustix::process::nice(19).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                self.attack(other.is_some());
                if let Some(other) = other {
                    tokio::spawn(other.ask_for_proofs());
                }
                while !self.is_over.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
        })
    }

    fn attack(&self, is_byzantine: bool) {
        let unsigned = if is_byzantine { self.bundle(1, 1, &get()).to_vec() } else { Vec::new() };
        for node in self.config.nodes.clone() {
            tokio::spawn(self.clone().send_halves(node.clone()));
            if is_byzantine {
                let unsigned = unsigned.clone();
                tokio::spawn(self.clone().send_requests(node, move |id| {
                    let mut wrong = unsigned.clone();
                    wrong[40..48].copy_from_slice(&id.to_be_bytes());
                    Request::Submit { group: GroupId(1), bundle: Bytes::from(wrong) }
                }));
            } else {
                let consistency = Consistency::Linearizable;
                tokio::spawn(self.clone().send_requests(node.clone(), move |_| Request::Get {
                    group: GroupId(1),
                    key: Bytes::from_static(b"mine"),
                    consistency,
                }));
                tokio::spawn(self.clone().send_requests(node, |id| {
                    let request = RequestId { session: SessionId(id.into()), number: 0 };
                    let envelope = Envelope::new(request, 0, &Operation::Open).encode();
                    Request::Command { group: GroupId(1), envelope }
                }));
            }
        }
    }

    /// Reads and openings, well signed, and as much as a batch may hold, over and over, to the primary alone.
    async fn ask_for_proofs(self) {
        let node = self.config.nodes[1].clone();
        let Some((link, mut frames)) = self.connect(&node).await else { return };
        for round in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let operation = if round % 2 == 0 { get() } else { Operation::Open };
            let bundle = self.bundle(1 + round * 1_000, 1_000, &operation);
            let request = Request::Submit { group: GroupId(1), bundle };
            let _ = link.send(wire::encode(&RequestFrame { id: round, request }));
            while frames.try_recv().is_ok() {}
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn get() -> Operation {
    Operation::Get { key: Bytes::from_static(b"mine") }
}

/// The most memory that a process has had so far, in MiB.
fn memory_peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kib| kib >> 10)
}

/// One operation after the other until it is over; all must be answered. How many were, and how long the slowest of a hundred took.
async fn go_on(client: &Client, lasts: Duration) -> (usize, Duration) {
    let began = Instant::now();
    let mut took = Vec::new();
    while began.elapsed() < lasts {
        let (asked, number) = (Instant::now(), took.len());
        if number % 2 == 0 {
            client.put("theirs", number.to_string()).await.done().unwrap();
        } else {
            let read = client.get("theirs").await.done().unwrap().unwrap();
            assert_eq!(read, Bytes::from((number - 1).to_string()));
        }
        took.push(asked.elapsed());
    }
    took.sort();
    (took.len(), took[took.len() * 99 / 100])
}

/// Three clients: the first two attack, the third one goes on.
fn attack(mode: &str, nodes: usize) {
    let is_byzantine = mode == "byzantine";
    let mut cluster = Cluster::init_for(mode, nodes, 1, 3);
    (0..nodes).for_each(|index| cluster.start_node(index));
    wait_for("a write", || (cluster.code(&["put", "mine", "v"]) == 0).then_some(()));
    let pids: Vec<u32> = (0..nodes).map(|index| cluster.pid(index)).collect();
    let config = |file: &str| ClusterConfig::load(&cluster.path().join(file)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::new(config("cluster-3.toml")).unwrap();
        client.put("theirs", "0").await.done().unwrap();
        let lasts = attack_lasts();
        let (usual, p99) = go_on(&client, lasts / 6).await;
        println!("{mode}: {usual} operations, 99 of 100 within {p99:?}, in {:?}", lasts / 6);
        let attacker = Attacker::new(config("cluster.toml"));
        let other =
            is_byzantine.then(|| Attacker { config: Arc::new(config("cluster-2.toml")), ..attacker.clone() });
        let attacking = attacker.clone().attack_from_elsewhere(other);
        let (answered, p99) = go_on(&client, lasts).await;
        attacker.is_over.store(true, Ordering::Relaxed);
        attacking.join().unwrap();
        let (sent, refused) = (&attacker.sent, &attacker.refused);
        let (sent, refused) = (sent.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
        println!(
            "{answered} in {lasts:?} while {sent} requests attacked; 99 of 100 within {p99:?}; {refused} were refused; at most {} MiB \
             of memory in a node",
            pids.iter().map(|pid| memory_peak(*pid)).max().unwrap_or_default()
        );
        assert!(sent > 1_000 && answered > 0, "nobody attacked, or nothing was asked");
        assert!(refused > 0 || !is_byzantine, "bad signatures cost nothing");
    });
}

#[test]
fn a_client_is_answered_while_others_attack_a_byzantine_cluster() {
    attack("byzantine", 4);
}

#[test]
fn a_client_is_answered_while_another_attacks_a_cluster_in_crash_mode() {
    attack("crash", 3);
}
