//! Real processes on loopback: start, write, kill -9, restart, read.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Cluster, program, wait_for};
use std::io::Write;

#[test]
fn every_command_does_what_its_help_says() {
    let cluster = Cluster::start(3, 2);
    assert_eq!(cluster.ok(&["put", "k", "v"]), "ok");
    assert_eq!(cluster.ok(&["get", "k"]), "v");
    assert_eq!(cluster.code(&["get", "nothing"]), 3);
    assert_eq!(cluster.code(&["cas", "k", "--expect", "other", "new"]), 4);
    assert_eq!(cluster.ok(&["cas", "k", "--expect", "v", "new"]), "ok");
    assert_eq!(cluster.ok(&["cas", "fresh", "--absent", "1"]), "ok");
    assert_eq!(cluster.code(&["cas", "fresh", "--absent", "2"]), 4);
    assert_eq!(cluster.ok(&["incr", "n"]), "1");
    assert_eq!(cluster.ok(&["incr", "n", "-3"]), "-2");
    assert_eq!(cluster.code(&["incr", "k"]), 4, "\"new\" is no number");
    assert_eq!(cluster.ok(&["del", "k"]), "ok");
    assert_eq!(cluster.code(&["del", "k"]), 3);
    let json: serde_json::Value = serde_json::from_str(&cluster.ok(&["get", "fresh", "--json"])).unwrap();
    assert_eq!((json["value"].as_str(), json["consistency"].as_str()), (Some("1"), Some("linearizable")));
    let version = json["version"].to_string();
    assert_eq!(cluster.ok(&["cas", "fresh", "--version", &version, "--delete"]), "ok");
    for consistency in ["eventual", "session"] {
        let json = cluster.ok(&["get", "n", "--consistency", consistency, "--json"]);
        assert!(
            json.contains(r#""consistency":"eventual""#) || json.contains(r#""consistency":"session""#),
            "{json}"
        );
    }
    assert!(cluster.ok(&["status"]).contains("leader"));
    let large = "x".repeat(100_000);
    cluster.ok(&["put", "large", &large]);
    assert_eq!(cluster.ok(&["get", "large"]), large);
}

#[test]
fn one_node_down_is_survived_two_are_not_and_nothing_is_lost() {
    let mut cluster = Cluster::start(3, 1);
    for index in 0..20 {
        cluster.ok(&["put", &format!("before-{index}"), "v"]);
    }
    let leader = cluster.leader();
    cluster.kill_node(leader);
    for index in 0..20 {
        cluster.ok(&["put", &format!("one-down-{index}"), "v"]);
    }
    assert_eq!(cluster.ok(&["get", "before-7"]), "v");
    let second = (leader + 1) % 3;
    cluster.kill_node(second);
    let code = cluster.code(&["--deadline-ms", "1500", "put", "two-down", "v"]);
    assert!(code == 5 || code == 6, "a put without a quorum ended with {code}");
    assert_eq!(cluster.code(&["--deadline-ms", "1500", "get", "before-7"]), 5);
    assert_eq!(cluster.ok(&["get", "before-7", "--consistency", "eventual"]), "v");
    cluster.start_node(leader);
    cluster.start_node(second);
    for index in 0..20 {
        assert_eq!(cluster.ok(&["get", &format!("before-{index}")]), "v");
        assert_eq!(cluster.ok(&["get", &format!("one-down-{index}")]), "v");
    }
}

#[test]
fn everything_acknowledged_survives_a_kill_of_all_nodes() {
    let mut cluster = Cluster::start(3, 4);
    for index in 0..40 {
        cluster.ok(&["put", &format!("k{index}"), &index.to_string()]);
    }
    for index in 0..3 {
        cluster.kill_node(index);
    }
    for index in 0..3 {
        cluster.start_node(index);
    }
    for index in 0..40 {
        assert_eq!(cluster.ok(&["get", &format!("k{index}")]), index.to_string());
    }
}

#[test]
fn a_history_recorded_while_the_leader_is_killed_is_linearizable() {
    let mut cluster = Cluster::start(3, 1);
    let leader = cluster.leader();
    let history = cluster.path().join("run.jsonl");
    let mut recording = program()
        .arg("--cluster")
        .arg(cluster.path().join("cluster.toml"))
        .args(["record", "--seconds", "8", "-o"])
        .arg(&history)
        .spawn()
        .unwrap();
    let applied =
        |cluster: &Cluster| cluster.status()["nodes"][(leader + 1) % 3]["groups"][0]["applied"].as_u64();
    wait_for("some writes", || applied(&cluster).filter(|applied| *applied > 200));
    cluster.kill_node(leader);
    let before = applied(&cluster).unwrap();
    wait_for("writes under a new leader", || applied(&cluster).filter(|applied| *applied > before + 200));
    cluster.start_node(leader);
    assert!(recording.wait().unwrap().success());
    let judged = program().arg("check").arg(&history).output().unwrap();
    assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stdout));
    assert!(String::from_utf8_lossy(&judged.stdout).starts_with("linearizable:"));
    // One stale read, long after the value was overwritten and the new one seen: the judge must say no, with a picture.
    let text = std::fs::read_to_string(&history).unwrap();
    let key = text.split('"').find(|word| word.starts_with("register-0@")).unwrap();
    let line =
        |process: u64, rest: &str| format!(r#"{{"process":{process},"key":"{key}","ok":true,{rest}}}"#);
    let stale = [
        line(9001, r#""op":"put","value":"planted","call":9000000000001,"return":9000000000002"#),
        line(9002, r#""op":"get","call":9000000000003,"return":9000000000004,"result":null"#),
    ];
    let mut file = std::fs::OpenOptions::new().append(true).open(&history).unwrap();
    writeln!(file, "{}\n{}", stale[0], stale[1]).unwrap();
    let judged = program().arg("check").arg(&history).output().unwrap();
    let said = String::from_utf8_lossy(&judged.stdout).to_string();
    assert_eq!(judged.status.code(), Some(7), "{said}");
    assert!(said.contains("NOT linearizable") && said.contains("planted"), "{said}");
    let picture = std::fs::read_to_string(history.with_extension("html")).unwrap();
    assert!(picture.contains("<svg") && picture.contains("culprit"));
}

#[test]
fn a_replica_that_missed_a_hundred_thousand_writes_comes_back_by_snapshot() {
    let mut cluster = Cluster::init(3, 1);
    // A small log, so that it is rewritten many times while the third node is away.
    for index in 0..3 {
        let text = std::fs::read_to_string(cluster.node_file(index)).unwrap();
        let text = text.replace("log_max_bytes = 67108864", "log_max_bytes = 2097152");
        let text = text.replace("log_retain_bytes = 8388608", "log_retain_bytes = 524288");
        let text = text.replace("log_pinned_bytes = 67108864", "log_pinned_bytes = 262144");
        std::fs::write(cluster.node_file(index), text).unwrap();
        cluster.start_node(index);
    }
    cluster.ok(&["put", "early", "v"]);
    // Stored in many records, and part of the snapshot.
    let large = "x".repeat(100_000);
    cluster.ok(&["put", "large", &large]);
    cluster.kill_node(2);
    let mut written = 0;
    while written < 100_000 {
        let json = cluster.ok(&["bench", "--clients", "128", "--seconds", "2", "--keys", "5000", "--json"]);
        let report: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(report["errors"], 0);
        written += report["operations"].as_u64().unwrap();
    }
    let base = cluster.status()["nodes"][0]["groups"][0]["base"].as_u64().unwrap();
    assert!(base > 100, "the log was truncated");
    let target = cluster.status()["nodes"][0]["groups"][0]["applied"].as_u64().unwrap();
    cluster.start_node(2);
    wait_for("the third node to catch up", || {
        cluster.status()["nodes"][2]["groups"][0]["applied"].as_u64().filter(|applied| *applied >= target)
    });
    let status = cluster.status();
    assert!(status["nodes"][2]["groups"][0]["base"].as_u64().unwrap() > 100, "it came by snapshot");
    // It serves: with another node down, it is needed for every quorum.
    cluster.kill_node(0);
    assert_eq!(cluster.ok(&["get", "early"]), "v");
    assert_eq!(cluster.ok(&["get", "large"]), large);
    cluster.ok(&["put", "late", "v"]);
    assert_eq!(cluster.ok(&["get", "late"]), "v");
}

#[test]
fn strangers_and_nonsense_are_refused_with_a_reason() {
    let mut cluster = Cluster::start(3, 1);
    cluster.ok(&["put", "k", "v"]);
    // A client whose key the genesis record does not name.
    let other = Cluster::init(3, 1);
    std::fs::copy(other.path().join("client.key"), cluster.path().join("stranger.key")).unwrap();
    let file = std::fs::read_to_string(cluster.path().join("cluster.toml")).unwrap();
    std::fs::write(cluster.path().join("stranger.toml"), file.replace("client.key", "stranger.key")).unwrap();
    let refused = program()
        .arg("--cluster")
        .arg(cluster.path().join("stranger.toml"))
        .args(["get", "k"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(8), "{}", String::from_utf8_lossy(&refused.stderr));
    wait_for("the refusal in a node's log", || {
        (0..3)
            .any(|index| cluster.log(index).contains("refused a key that the genesis record does not name"))
            .then_some(())
    });
    // What is too large is refused where it enters, with the limit.
    let long_key = "k".repeat(5000);
    let refused = cluster.run(&["put", &long_key, "v"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("1 to 4096 bytes"));
    // A second process on the same data, and a wiped disk under an old identity.
    let second = program().args(["serve", "--config"]).arg(cluster.node_file(0)).output().unwrap();
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use by another process"));
    cluster.kill_node(2);
    std::fs::remove_dir_all(cluster.node_file(2).with_file_name("data")).unwrap();
    let wiped = program().args(["serve", "--config"]).arg(cluster.node_file(2)).output().unwrap();
    assert!(String::from_utf8_lossy(&wiped.stderr).contains("must not come back under its old identity"));
    // No cluster named at all.
    let lost = program().env_remove("TETRACHORD_CLUSTER").args(["get", "k"]).output().unwrap();
    assert!(String::from_utf8_lossy(&lost.stderr).contains("which cluster?"));
    assert_eq!(cluster.ok(&["get", "k"]), "v");
}

/// Four nodes and groups of three: one node has nothing to do, and that is said.
#[test]
fn init_says_which_nodes_hold_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let made = |name: &str, args: &[&str]| {
        let output =
            program().arg("init").arg("--dir").arg(dir.path().join(name)).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}");
        String::from_utf8_lossy(&output.stdout).to_string()
    };
    assert!(made("four", &["--nodes", "4"]).contains("n4 holds no replica"));
    assert!(!made("two", &["--nodes", "4", "--groups", "2"]).contains("no replica"));
    let json: serde_json::Value =
        serde_json::from_str(&made("json", &["--nodes", "5", "--replicas", "3", "--json"])).unwrap();
    assert_eq!(
        (&json["groups"], &json["replicas"], &json["idle"]),
        (&1.into(), &3.into(), &serde_json::json!([4, 5]))
    );
}

#[test]
fn init_refuses_what_cannot_keep_its_promise() {
    let dir = tempfile::tempdir().unwrap();
    let init = |args: &[&str]| {
        let output =
            program().arg("init").arg("--dir").arg(dir.path().join("c")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        String::from_utf8_lossy(&output.stderr).to_string()
    };
    assert!(init(&["--nodes", "2"]).contains("Use 1 or 3"));
    assert!(init(&["--nodes", "3", "--replicas", "5"]).contains("there are 3"));
    assert!(init(&["--nodes", "5", "--quorums", "2", "3"]).contains("must be at least 6, it is 5"));
    assert!(init(&["--nodes", "5", "--quorums", "5", "1"]).contains("survive 0 crashed"));
    // Addresses at which nobody can be reached, or not everybody.
    let at =
        |addresses: &[&str]| init(&addresses.iter().flat_map(|at| ["--address", at]).collect::<Vec<_>>());
    assert!(at(&["0.0.0.0:7101", "10.0.0.2:7101", "10.0.0.3:7101"]).contains("listen"));
    assert!(at(&["10.0.0.1:0", "10.0.0.2:7101", "10.0.0.3:7101"]).contains("port"));
    assert!(at(&["10.0.0.1:7101", "10.0.0.2:7101", "10.0.0.1:7101"]).contains("n1 and n3"));
    assert!(at(&["10.0.0.1:7101", "[2001:db8::1]:7101", "10.0.0.3:7101"]).contains("IPv6"));
    assert!(at(&["224.0.0.1:7101", "10.0.0.2:7101", "10.0.0.3:7101"]).contains("224.0.0.1"));
    assert!(init(&["--port", "0"]).contains("port"));
    assert!(init(&["--port", "65535"]).contains("65535"));
    assert!(init(&["--nodes", "0"]).contains("1 to 256"));
}

/// As docs/operating.md says: the address is changed in the genesis record everywhere and in the clients' files, and the nodes
/// are started again one after the other.
#[test]
fn a_node_moves_to_another_address_while_the_cluster_serves() {
    for mode in ["crash", "byzantine"] {
        let nodes = if mode == "crash" { 3 } else { 4 };
        let mut cluster = Cluster::init_in(mode, nodes, 1);
        (0..nodes).for_each(|index| cluster.start_node(index));
        cluster.ok(&["incr", "n"]);
        let genesis = std::fs::read_to_string(cluster.path().join("genesis.toml")).unwrap();
        let addresses: Vec<&str> =
            genesis.lines().filter_map(|line| line.strip_prefix("address = ")).collect();
        let free = tetrachord::config::free_addresses(1).unwrap()[0];
        for file in ["genesis.toml", "cluster.toml"] {
            let path = cluster.path().join(file);
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, text.replace(addresses[nodes - 1], &format!("\"{free}\""))).unwrap();
        }
        for index in (0..nodes).rev() {
            assert_eq!(cluster.terminate_node(index), Some(0));
            cluster.start_node(index);
            let linked = |node: &serde_json::Value| node["connected"].as_array().map_or(0, Vec::len);
            // The last one is where only those look for it that were started since.
            let others = nodes - 1 - index;
            wait_for("links", || (linked(&cluster.status()["nodes"][nodes - 1]) >= others).then_some(()));
            wait_for("an answer", || (cluster.code(&["get", "n"]) == 0).then_some(()));
        }
        assert_eq!(cluster.ok(&["incr", "n"]), "2");
    }
}

/// A cluster file of another cluster with the same keys: what is wrong is said, not that the key is.
#[test]
fn a_cluster_file_that_does_not_fit_is_told_from_a_key_that_is_not_known() {
    let cluster = Cluster::start(3, 1);
    cluster.ok(&["put", "k", "v"]);
    let path = cluster.path().join("cluster.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, protocol) = text.split_once("protocol = \"").unwrap();
    std::fs::write(&path, format!("{before}protocol = \"x{protocol}")).unwrap();
    let denied = cluster.run(&["get", "k"]);
    let said = String::from_utf8_lossy(&denied.stderr).to_string();
    assert_eq!(denied.status.code(), Some(8), "{said}");
    assert!(said.contains("another cluster"), "{said}");
}

#[test]
fn hundreds_of_clients_that_begin_together_are_served() {
    let cluster = Cluster::start(3, 1);
    let history = cluster.path().join("run.jsonl");
    let clients = 500;
    let json = cluster.ok(&[
        "record",
        "--json",
        "--clients",
        &clients.to_string(),
        "--seconds",
        "8",
        "-o",
        history.to_str().unwrap(),
    ]);
    let report: serde_json::Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
    let count = |what: &str| report[what].as_u64().unwrap();
    let (operations, refused) = (count("operations"), count("refused"));
    assert!(operations > 4 * clients && refused < operations / 4, "{report}");
}
