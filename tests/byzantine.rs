//! Real processes in Byzantine mode: the same commands, liars, proofs, refusals.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Cluster, program, wait_for};

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
    assert_eq!(
        cluster.code(&["get", "n", "--consistency", "eventual"]),
        1,
        "one replica alone is not believed"
    );
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
    let (key, changed) = (r#""key": "k""#, r#""key": "other""#);
    std::fs::write(file, proof.replace(key, changed)).unwrap();
    assert_eq!(cluster.code(&["proof", "check", file, "--genesis", genesis]), 9, "it is about another key");
    // "v" is the byte 118.
    std::fs::write(file, proof.replace("118", "119")).unwrap();
    assert_eq!(cluster.code(&["proof", "check", file, "--genesis", genesis]), 9, "nobody signed that");
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
        let client =
            tetrachord::Client::new(tetrachord::config::ClusterConfig::load(&file).unwrap()).unwrap();
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
