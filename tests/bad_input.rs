//! What users and strangers get wrong: each a clear error that says what to do; nothing is lost and the nodes stay up.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Cluster, program, wait_for};
use std::time::Duration;
use tetrachord::Client;
use tetrachord::client::{NotDone, Outcome, Refusal};
use tetrachord::config::{ClusterConfig, NodeConfig};
use tetrachord::limits::OPENINGS_MAX;
use tetrachord::ring::{GroupId, StoreId, TenureId};
use tetrachord::shares::ClientId;
use tetrachord::transport::{
    ClientEndpoint, ClientLink, Patience, PeerAddress, Transport, TransportSettings,
};
use tetrachord::wire::{self, Consistency, Introduction, Life, Opening, PeerMessage, Request, RequestFrame};

/// Starts a node that must not start; returns what it said.
fn refused(cluster: &Cluster, index: usize) -> String {
    let output = program().args(["serve", "--config"]).arg(cluster.node_file(index)).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).to_string()
}

fn edit(path: &std::path::Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} is not in {}", path.display());
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// Settings that look like numbers and cannot be meant, by file: each is an error of the setting.
const OUT_OF_RANGE: &[(&str, &str, &str)] = &[
    ("node", "cache_bytes = 4194304", "cache_bytes = 100"),
    ("node", "cache_bytes = 4194304", "cache_bytes = 9223372036854775807"),
    ("node", "log_max_bytes = 67108864", "log_max_bytes = 0"),
    ("node", "log_max_bytes = 67108864", "log_max_bytes = 9223372036854775807"),
    ("node", "log_retain_bytes = 8388608", "log_retain_bytes = 67108864"),
    ("node", "pack_above_bytes = 67108864", "pack_above_bytes = 9223372036854775807"),
    ("node", "reserve_bytes = 67108864", "reserve_bytes = 9223372036854775807"),
    ("node", "scrub_seconds = 3600", "scrub_seconds = 9223372036854775807"),
    ("genesis", "heartbeat_millis = 50", "heartbeat_millis = 4611686018427387904"),
    ("genesis", "election_millis = 300", "election_millis = 9223372036854775807"),
    ("genesis", "request_millis = 1000", "request_millis = 0"),
    ("genesis", "replicas = 3", "replicas = 4"),
    ("genesis", "groups = 1", "groups = 4000000000"),
    ("genesis", "cluster = \"", "cluster = \"x"),
];

#[test]
fn files_that_are_wrong_are_refused_with_what_is_wrong() {
    let cluster = Cluster::init(3, 1);
    let node_file = cluster.node_file(0);
    let key_file = node_file.with_file_name("node.key");
    let genesis_file = cluster.path().join("genesis.toml");
    let (node, key, genesis) = (
        std::fs::read_to_string(&node_file).unwrap(),
        std::fs::read_to_string(&key_file).unwrap(),
        std::fs::read_to_string(&genesis_file).unwrap(),
    );
    let restore = || {
        std::fs::write(&node_file, &node).unwrap();
        std::fs::write(&key_file, &key).unwrap();
        std::fs::write(&genesis_file, &genesis).unwrap();
    };
    edit(&node_file, "cache_bytes", "cash_bytes");
    let said = refused(&cluster, 0);
    assert!(said.contains("cash_bytes") && said.contains("cache_bytes"), "{said}");
    restore();
    std::fs::write(&key_file, "not a key").unwrap();
    let said = refused(&cluster, 0);
    assert!(said.contains("node.key"), "{said}");
    restore();
    std::fs::remove_file(&key_file).unwrap();
    let said = refused(&cluster, 0);
    assert!(said.contains("node.key") && said.contains("cannot read"), "{said}");
    restore();
    // Another node's key.
    std::fs::copy(cluster.node_file(1).with_file_name("node.key"), &key_file).unwrap();
    let said = refused(&cluster, 0);
    assert!(said.contains("is not the one that the genesis record names"), "{said}");
    restore();
    std::fs::write(&genesis_file, &genesis[..genesis.len() / 2]).unwrap();
    let said = refused(&cluster, 0);
    assert!(said.contains("genesis.toml"), "{said}");
    restore();
    edit(&genesis_file, "heartbeat_millis = 50", "heartbeat_millis = 200");
    let said = refused(&cluster, 0);
    assert!(said.contains("heartbeat"), "{said}");
    restore();
    for (file, from, to) in OUT_OF_RANGE {
        let file = if *file == "genesis" { &genesis_file } else { &node_file };
        edit(file, from, to);
        let said = refused(&cluster, 0);
        let name = from.split(' ').next().unwrap();
        assert!(
            said.contains(name) && !said.contains("damaged") && !said.contains("panicked"),
            "{to}: {said}"
        );
        assert!(said.lines().count() < 3, "{to}: {said}");
        restore();
    }
    // What is missing is said once, and an editor's byte-order mark is no content.
    std::fs::write(&node_file, format!("\u{feff}{node}")).unwrap();
    std::fs::write(&key_file, format!("\u{feff}{key}")).unwrap();
    std::fs::remove_file(&genesis_file).unwrap();
    let said = refused(&cluster, 0);
    assert!(said.contains("genesis.toml") && said.matches("No such file").count() == 1, "{said}");
    restore();
    // A port that somebody else has.
    let address =
        genesis.lines().find_map(|line| line.trim().strip_prefix("address = ")).unwrap().trim_matches('"');
    let taken = std::net::UdpSocket::bind(address).unwrap();
    let said = refused(&cluster, 0);
    assert!(said.contains("cannot listen on") && said.contains(address), "{said}");
    drop(taken);
}

#[test]
fn a_node_of_another_cluster_is_kept_out() {
    let mut cluster = Cluster::start(3, 1);
    cluster.ok(&["put", "k", "v"]);
    cluster.kill_node(2);
    // The same nodes and keys under another genesis record: another cluster.
    let genesis_file = cluster.path().join("genesis.toml");
    let genesis = std::fs::read_to_string(&genesis_file).unwrap();
    edit(&genesis_file, "election_millis = 300", "election_millis = 301");
    let before = cluster.log(2).len();
    cluster.start_node(2);
    wait_for("a refusal", || {
        let log = cluster.log(2)[before..].to_string();
        let is_refused = log.contains("cannot connect") || log.contains("refused");
        is_refused.then_some(())
    });
    assert_eq!(cluster.ok(&["get", "k"]), "v");
    cluster.kill_node(2);
    std::fs::write(&genesis_file, genesis).unwrap();
    cluster.start_node(2);
    wait_for("the third node", || {
        let status = cluster.status();
        status["nodes"][2]["connected"].as_array().filter(|peers| peers.len() == 2).map(|_| ())
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn values_above_the_limit_are_refused_where_they_enter() {
    let cluster = Cluster::start(3, 1);
    let config = ClusterConfig::load(&cluster.path().join("cluster.toml")).unwrap();
    runtime().block_on(async {
        let client = Client::new(config).unwrap();
        client.put("k", "v").await.done().unwrap();
        match client.put("k", vec![1; 2 << 20]).await.done() {
            Err(NotDone::Refused(Refusal::Invalid(reason))) => {
                assert!(reason.contains("1048576"), "{reason}")
            }
            other => panic!("{other:?}"),
        }
        let large = vec![7; 1 << 20];
        assert!(matches!(client.put("large", &large).await, Outcome::Done(_)));
        assert_eq!(client.get("large").await.done().unwrap().as_deref(), Some(large.as_slice()));
        assert_eq!(client.get("k").await.done().unwrap().as_deref(), Some(&b"v"[..]));
    });
}

/// Sends as fast as it can and reads nothing, on several connections: requests for a large value, and nonsense.
#[test]
fn a_client_that_floods_and_never_reads_costs_bounded_memory_and_nobody_else() {
    let cluster = Cluster::start(3, 1);
    let config = ClusterConfig::load(&cluster.path().join("cluster.toml")).unwrap();
    let resident = |cluster: &Cluster| {
        let status = cluster.status();
        let of = |node: usize| status["nodes"][node]["resident_bytes"].as_u64().unwrap_or(0);
        (0..3).map(of).max().unwrap()
    };
    runtime().block_on(async {
        let client = Client::new(config.clone()).unwrap();
        client.put("large", vec![7; 200_000]).await.done().unwrap();
        let before = resident(&cluster);
        let endpoint = ClientEndpoint::new(config.nodes.iter().map(|node| &node.address)).unwrap();
        let request =
            Request::Get { group: GroupId(1), key: "large".into(), consistency: Consistency::Linearizable };
        let mut worst = before;
        for round in 0..6u64 {
            let node = &config.nodes[round as usize % 3];
            let limit = Duration::from_secs(5);
            let patience = Patience { silence: limit, handshake: limit };
            let connected = ClientLink::connect(
                &endpoint,
                &config.identity,
                &node.address,
                node.key,
                &config.protocol,
                patience,
            );
            // The frames to come are dropped with their receiver never asked.
            let (link, _greeting, _frames) = connected.await.unwrap();
            for id in 0..20_000 {
                let frame = wire::encode(&RequestFrame { id, request: request.clone() });
                if !link.send(frame) {
                    break;
                }
                if id % 500 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            assert_eq!(client.get("large").await.done().unwrap().map(|value| value.len()), Some(200_000));
            client.put("others", format!("{round}")).await.done().unwrap();
            worst = worst.max(resident(&cluster));
            let _ = link.send(bytes::Bytes::from_static(&[4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]));
            tokio::task::yield_now().await;
        }
        println!("{} MiB before, {} MiB at the worst", before >> 20, worst >> 20);
        assert!(worst < before + (400 << 20), "{} MiB", worst >> 20);
        assert_eq!(client.get("others").await.done().unwrap().as_deref(), Some(&b"5"[..]));
    });
    for index in 0..3 {
        assert!(cluster.log(index).lines().all(|line| !line.contains("panicked")), "{}", cluster.log(index));
    }
}

/// A member gone mad: it has its key, and sends requests and damaged messages of its group as fast as it can.
#[test]
fn a_peer_that_floods_costs_bounded_memory_and_the_others_go_on() {
    let mut cluster = Cluster::init(3, 1);
    (0..3).for_each(|index| cluster.start_node(index));
    cluster.ok(&["put", "k", "v"]);
    cluster.kill_node(2);
    let config = NodeConfig::load(&cluster.node_file(2)).unwrap();
    let resident = |cluster: &Cluster| {
        let status = cluster.status();
        (0..2).map(|node| status["nodes"][node]["resident_bytes"].as_u64().unwrap()).max().unwrap()
    };
    let before = resident(&cluster);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flood = {
        let stop = std::sync::Arc::clone(&stop);
        std::thread::spawn(move || runtime().block_on(flood(config, stop)))
    };
    let mut worst = before;
    for round in 0..20 {
        cluster.ok(&["put", "k", &format!("v{round}")]);
        assert_eq!(cluster.ok(&["get", "k"]), format!("v{round}"));
        worst = worst.max(resident(&cluster));
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let (sent, taken) = flood.join().unwrap();
    println!(
        "{sent} frames, {taken} of them taken; {} MiB before, {} MiB at the worst",
        before >> 20,
        worst >> 20
    );
    assert!(taken > 1_000, "it was no flood");
    assert!(worst < before + (250 << 20), "{} MiB", worst >> 20);
    for index in 0..2 {
        assert_eq!(cluster.exit_code(index), None, "{}", cluster.log(index));
    }
}

async fn flood(config: NodeConfig, stop: std::sync::Arc<std::sync::atomic::AtomicBool>) -> (usize, usize) {
    let (inbound, mut inbox) = tokio::sync::mpsc::channel(4096);
    let peers = config.genesis.nodes.iter().filter(|node| node.id != config.node);
    let peers: Vec<PeerAddress> = peers
        .map(|node| PeerAddress { node: node.id, address: node.address.clone(), key: node.key })
        .collect();
    let targets: Vec<_> = peers.iter().map(|peer| peer.node).collect();
    // Without its store nobody would listen to it; and of its starts it must name more than anybody remembers.
    let format = std::fs::read_to_string(config.data_dir.join("format")).unwrap();
    let store = format.lines().find_map(|line| StoreId::from_hex(line.strip_prefix("store ")?)).unwrap();
    let opening = |incarnation| Opening { incarnation, mark: 1, log_end: u64::MAX };
    let starts = 1_000 + OPENINGS_MAX as u64;
    let life = Life { store, opening: opening(starts), log_end: u64::MAX, is_admitted: true };
    let introduce = Introduction::Introduce { life, earlier: (1_000..starts).map(opening).collect() };
    let introduction = wire::encode(&PeerMessage::Introduction(introduce));
    let settings = TransportSettings {
        node: config.node,
        identity: config.identity,
        listen: config.listen,
        peers,
        clients: std::collections::BTreeSet::new(),
        cluster: config.genesis.protocol_name(),
        greeting: bytes::Bytes::new(),
    };
    let transport = Transport::start(settings, inbound).unwrap();
    let forward = |id| {
        let request =
            Request::Get { group: GroupId(1), key: "k".into(), consistency: Consistency::Linearizable };
        wire::encode(&PeerMessage::Forward { id, client: ClientId([1; 32]), request })
    };
    let tenure = |group| TenureId { group: GroupId(group), epoch: 1 };
    let (mut sent, mut taken) = (0, 0);
    while !stop.load(std::sync::atomic::Ordering::SeqCst) {
        for turn in 0..200 {
            let frame = match turn % 3 {
                _ if turn == 0 => introduction.clone(),
                0 => forward(sent as u64),
                1 => wire::encode(&PeerMessage::of(tenure(1), vec![turn; 60_000].into())),
                _ => wire::encode(&PeerMessage::of(tenure(9), vec![turn; 9].into())),
            };
            sent += targets.len();
            for (class, target) in targets.iter().enumerate() {
                taken += usize::from(transport.send(*target, class, frame.clone()));
            }
        }
        // What the others say is thrown away.
        while inbox.try_recv().is_ok() {}
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (sent, taken)
}
