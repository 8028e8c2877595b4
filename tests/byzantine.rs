//! Real processes in Byzantine mode: the same commands, liars, proofs, refusals.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use bytes::Bytes;
use common::{Cluster, program, wait_for};
use std::time::{Duration, Instant};
use tetrachord::config::{ClusterConfig, NodeConfig};
use tetrachord::storage::disk::{DiskOptions, DiskStorage, PackingRule, Report};
use tetrachord::storage::{Commit, CommitId, Owner, Storage};

fn refusal(args: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let output = program().args(["init", "--dir"]).arg(dir.path().join("c")).args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).to_string()
}

#[test]
fn every_command_works_in_byzantine_mode_and_one_node_down_is_survived() {
    let mut cluster = Cluster::start_byzantine(4);
    assert_eq!(cluster.ok(&["put", "k", "v"]), "ok");
    assert_eq!(cluster.ok(&["get", "k"]), "v");
    assert_eq!(cluster.code(&["get", "nothing"]), 3);
    assert_eq!(cluster.code(&["cas", "k", "--expect", "other", "new"]), 4);
    assert_eq!(cluster.ok(&["cas", "k", "--expect", "v", "new"]), "ok");
    assert_eq!(cluster.ok(&["incr", "n"]), "1");
    assert_eq!(cluster.code(&["incr", "k"]), 4, "\"new\" is no number");
    assert_eq!(cluster.ok(&["del", "k"]), "ok");
    let large = "x".repeat(100_000);
    cluster.ok(&["put", "large", &large]);
    assert_eq!(cluster.ok(&["get", "large"]), large);
    for asked in ["session", "eventual"] {
        let read = cluster.ok(&["get", "n", "--json", "--consistency", asked]);
        assert!(
            read.contains(r#""consistency":"linearizable""#),
            "at least as fresh, and it says so: {read}"
        );
    }
    // The first primary is the second node: its view ends, everything goes on.
    cluster.kill_node(1);
    assert_eq!(cluster.ok(&["incr", "n"]), "2");
    cluster.kill_node(2);
    let code = cluster.code(&["--deadline-ms", "1500", "incr", "n"]);
    assert_eq!(code, 5, "two of four open no session, so nothing was asked");
    cluster.start_node(1);
    cluster.start_node(2);
    wait_for("a write", || {
        (cluster.code(&["--deadline-ms", "3000", "put", "again", "v"]) == 0).then_some(())
    });
    assert_eq!(cluster.ok(&["get", "n"]), "2");
}

#[test]
fn what_replicas_signed_can_be_shown_and_is_judged_without_a_cluster() {
    let cluster = Cluster::start_byzantine(4);
    cluster.ok(&["put", "k", "v"]);
    let file = cluster.path().join("k.json");
    let file = file.to_str().unwrap();
    let genesis = cluster.path().join("genesis.toml");
    let genesis = genesis.to_str().unwrap();
    assert_eq!(cluster.ok(&["get", "k", "--verify", "--proof", file]), "v");
    assert_eq!(cluster.ok(&["proof", "check", file, "--genesis", genesis]), "v");
    let proof = std::fs::read_to_string(file).unwrap();
    let mut time = String::new();
    for (told, changed) in [
        (r#""text": "k""#, r#""text": "other""#),
        (r#""text": "v""#, r#""text": "w""#),
        (r#""time_us": "1"#, r#""time_us": "2"#),
    ] {
        assert_eq!(proof.matches(told).count(), 1, "{proof}");
        std::fs::write(file, proof.replace(told, changed)).unwrap();
        let check = cluster.run(&["proof", "check", file, "--genesis", genesis]);
        assert_eq!(check.status.code(), Some(9), "nobody signed {changed}");
        time = String::from_utf8_lossy(&check.stderr).to_string();
    }
    assert!(!time.contains("so it was"), "{time}");
    // A client has all that it takes to judge a proof, and it is told how old it is.
    std::fs::write(file, proof).unwrap();
    let host = cluster.dir.path().join("client");
    std::fs::create_dir(&host).unwrap();
    for name in ["cluster.toml", "client.key", "client-signing.key"] {
        std::fs::copy(cluster.path().join(name), host.join(name)).unwrap();
    }
    let there = |args: &[&str]| {
        program().env("TETRACHORD_CLUSTER", host.join("cluster.toml")).args(args).output().unwrap()
    };
    let check = there(&["proof", "check", file]);
    let said = String::from_utf8_lossy(&check.stderr).to_string();
    assert!(
        check.status.success() && said.contains(" UTC ") && said.contains("may have changed since"),
        "{said}"
    );
    let check: serde_json::Value =
        serde_json::from_slice(&there(&["proof", "check", file, "--json"]).stdout).unwrap();
    assert!(check["holds"] == true && check["age_us"].as_i64().unwrap() < 600_000_000, "{check}");
    let read = there(&["get", "nothing", "--verify"]);
    let said = String::from_utf8_lossy(&read.stderr).to_string();
    assert!(read.status.code() == Some(3) && said.contains("signed no such key"), "{said}");
    let (code, said) = (program().args(["proof", "check", file]).output().unwrap(), "--genesis FILE");
    assert!(code.status.code() == Some(2) && String::from_utf8_lossy(&code.stderr).contains(said));
}

#[test]
fn a_demo_with_liars_ends_linearizable_and_loses_nothing() {
    let output =
        program().args(["demo", "--mode", "byzantine", "--seconds", "10", "--json"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).to_string();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((json["verdict"].as_str(), json["mode"].as_str()), (Some("linearizable"), Some("byzantine")));
    assert_eq!(json["lost"].as_u64(), Some(0));
    let told =
        json["lies"].as_object().unwrap().values().filter(|lie| lie["told"].as_u64() > Some(0)).count();
    assert!(told >= 6, "{told} of the lies were told: {text}");
}

#[test]
fn sizes_modes_and_lies_that_cannot_be_are_refused_with_the_way_out() {
    for (nodes, sizes) in [("3", "use 4"), ("5", "use 4 or 7"), ("6", "use 4 or 7")] {
        let text = refusal(&["--mode", "byzantine", "--nodes", nodes]);
        assert!(text.contains("3f + 1") && text.contains(sizes), "{text}");
    }
    let cluster = Cluster::init(3, 1);
    let file = cluster.node_file(0);
    let lies = "\n[chaos]\nallow = true\nlies = [\"silent\"]\nevery_millis = 1000\n";
    std::fs::write(&file, std::fs::read_to_string(&file).unwrap() + lies).unwrap();
    let output = program().args(["serve", "--config"]).arg(&file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(!output.status.success() && text.contains("crash mode survives no liar"), "{text}");
    // The mode is part of the genesis record, and that is part of the protocol's name: modes cannot be mixed.
    let genesis = cluster.path().join("genesis.toml");
    let changed = std::fs::read_to_string(&genesis).unwrap().replace("\"crash\"", "\"byzantine\"");
    std::fs::write(&genesis, changed).unwrap();
    let output = program().args(["serve", "--config"]).arg(cluster.node_file(1)).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("3f + 1"));
}

/// Reads are small to ask and large to answer: what one slot answers is cut into frames and bounded.
#[test]
fn many_large_values_are_read_at_once() {
    let cluster = Cluster::start_byzantine(4);
    let file = cluster.path().join("cluster.toml");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = tetrachord::Client::new(ClusterConfig::load(&file).unwrap()).unwrap();
        let large = "x".repeat(1 << 20);
        client.put("large", &large).await.done().unwrap();
        let mut reads = tokio::task::JoinSet::new();
        for _ in 0..48 {
            let client = client.clone();
            reads.spawn(async move {
                client.get("large").await.done().map(|found| found.map(|value| value.len()))
            });
        }
        for read in reads.join_all().await {
            assert_eq!(read.unwrap(), Some(1 << 20));
        }
    });
}

/// What a node says is not believed, but it is shown: else nobody would know why nothing happens.
#[test]
fn why_nodes_do_not_take_a_request_is_told() {
    let mut cluster = Cluster::init_in("byzantine", 4, 1);
    for index in 0..4 {
        let file = cluster.node_file(index);
        let text = std::fs::read_to_string(&file).unwrap();
        let changed = text.replace("reserve_bytes = 67108864", "reserve_bytes = 1000000000000000");
        assert_ne!(text, changed);
        std::fs::write(&file, changed).unwrap();
        cluster.start_node(index);
    }
    wait_for("all nodes", || {
        let status = cluster.status();
        let are_up = status["nodes"].as_array()?.iter().all(|node| node["up"] == true);
        are_up.then_some(())
    });
    let output = cluster.run(&["--deadline-ms", "1500", "put", "k", "v"]);
    let text = String::from_utf8_lossy(&output.stderr).to_string();
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.contains("n1 says: the disk of n1 is almost full"), "{text}");
}

fn data_of(cluster: &Cluster, index: usize) -> std::path::PathBuf {
    cluster.node_file(index).with_file_name("data")
}

fn owner_of(cluster: &Cluster, index: usize) -> Owner {
    let config = NodeConfig::load(&cluster.node_file(index)).unwrap();
    Owner { cluster: config.genesis.cluster, node: config.node }
}

/// Opens the store of a node that is stopped, and changes one value as somebody would who knows how: with a right checksum.
fn change_a_value_by_hand(cluster: &Cluster, index: usize) {
    let packing = PackingRule { above_bytes: u64::MAX, idle: Duration::MAX };
    let options = DiskOptions { cache_bytes: 4 << 20, segment_bytes: 4 << 20, packing, is_repairable: false };
    let (sender, reports) = std::sync::mpsc::channel();
    let report = move |report| drop(sender.send(report));
    let (mut storage, _) =
        DiskStorage::open(&data_of(cluster, index), &owner_of(cluster, index), options, report).unwrap();
    let (raw, record) = storage.scan(b"d", b"e", 1).unwrap().remove(0);
    let mut body = record[4..].to_vec();
    *body.last_mut().unwrap() ^= 1;
    let checksum = crc32fast::hash(&[raw.as_ref(), &body].concat()).to_be_bytes();
    let record = Bytes::from([checksum.as_slice(), &body].concat());
    let state = vec![vec![(raw, Some(record))]];
    storage.submit(Commit { id: CommitId(1), state, ..Commit::default() });
    while reports.recv().unwrap() != Report::Written(CommitId(1)) {}
    drop(storage);
    while reports.recv().is_ok() {}
}

/// Overwrites pages in the middle of sled's file, as a dying disk might.
fn damage_the_file(cluster: &Cluster, index: usize) {
    let trees = std::fs::read_dir(data_of(cluster, index)).unwrap().filter_map(Result::ok);
    let file = trees.map(|entry| entry.path().join("db")).find(|path| path.exists()).unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let (from, to) = (bytes.len() / 8, bytes.len() * 7 / 8);
    bytes[from..to].iter_mut().step_by(11).for_each(|byte| *byte ^= 0x5a);
    std::fs::write(&file, bytes).unwrap();
}

/// Whatever was changed on its disk but the log, a node notices, fences itself, repairs the bad part from the others and
/// returns, while another node lies to it.
#[test]
fn a_node_whose_data_was_changed_by_hand_repairs_it_from_the_others() {
    let mut cluster = Cluster::init_in("byzantine", 4, 1);
    let edit = |index: usize, more: &str| {
        let file = cluster.node_file(index);
        let text = std::fs::read_to_string(&file).unwrap();
        let settings = [
            ("scrub_seconds = 3600", "scrub_seconds = 5"),
            ("log_max_bytes = 67108864", "log_max_bytes = 2000000"),
            ("log_retain_bytes = 8388608", "log_retain_bytes = 200000"),
            ("log_pinned_bytes = 67108864", "log_pinned_bytes = 200000"),
        ];
        let text = settings.into_iter().fold(text, |text, (from, to)| {
            assert!(text.contains(from), "{text}");
            text.replace(from, to)
        });
        std::fs::write(&file, text + more).unwrap();
    };
    (0..4).for_each(|index| match index {
        2 => edit(index, "\n[chaos]\nallow = true\nlies = [\"false-state\"]\nevery_millis = 1000\n"),
        _ => edit(index, ""),
    });
    (0..4).for_each(|index| cluster.start_node(index));
    wait_for("a write", || (cluster.code(&["put", "k", "v"]) == 0).then_some(()));
    let load = ["bench", "--workload", "put", "--clients", "16", "--seconds", "2", "--value-bytes", "4000"];
    for damage in [change_a_value_by_hand, damage_the_file] {
        let base = || cluster.status()["nodes"][3]["groups"][0]["base"].as_u64().filter(|base| *base > 0);
        wait_for("a log that does not reach back to the beginning", || {
            cluster.ok(&load);
            base()
        });
        cluster.kill_node(3);
        damage(&cluster, 3);
        cluster.start_node(3);
        let repaired = wait_for("the repair", || {
            assert_eq!(cluster.exit_code(3), None, "{}", cluster.log(3));
            cluster.code(&["put", "k", "again"]);
            let group = cluster.status()["nodes"][3]["groups"][0].clone();
            (group["repairs"].as_u64() > Some(0) && group["damage"].is_null()).then_some(group)
        });
        println!("{repaired}");
        let digests = wait_for("equal states", || {
            let status = cluster.status();
            let of = |index: usize, name: &str| status["nodes"][index]["groups"][0][name].clone();
            (of(0, "applied") == of(3, "applied")).then(|| (of(0, "digest"), of(3, "digest")))
        });
        assert_eq!(digests.0, digests.1);
    }
    assert_eq!(cluster.ok(&["get", "k"]), "again");
}

#[test]
fn a_request_that_was_made_before_the_nodes_run_is_answered_when_they_do() {
    let mut cluster = Cluster::init_in("byzantine", 4, 1);
    let file = cluster.path().join("cluster.toml");
    let nodes = ClusterConfig::load(&file).unwrap().nodes;
    let socket = std::net::UdpSocket::bind(nodes[0].address.to_bind()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut put = program();
    put.arg("--cluster").arg(&file).args(["--deadline-ms", "60000", "put", "k", "v"]);
    let mut put = put.spawn().unwrap();
    // Its first dial ends after 600 ms without an answer; it must dial again.
    let mut datagram = [0; 2_000];
    let mut heard = || socket.recv(&mut datagram).expect("the client dials");
    heard();
    let first = Instant::now();
    while first.elapsed() < Duration::from_millis(900) {
        heard();
    }
    drop(socket);
    (0..4).for_each(|index| cluster.start_node(index));
    assert!(put.wait().unwrap().success());
    assert_eq!(cluster.ok(&["get", "k"]), "v");
}
