//! Sessions as a cluster counts them: commands leave none behind, and whoever closes a client has none.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Cluster, wait_for};
use std::time::Duration;
use tetrachord::Client;
use tetrachord::client::{ClientOptions, NotDone, Refusal};
use tetrachord::config::ClusterConfig;

/// In Byzantine mode what a client signs is good for so long.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the replicas of the first group say, by node.
fn sessions(cluster: &Cluster) -> Vec<u64> {
    let status = cluster.status();
    let nodes = status["nodes"].as_array().unwrap().iter();
    nodes.filter_map(|node| node["groups"][0]["sessions"].as_u64()).collect()
}

fn client_of(cluster: &Cluster) -> Client {
    let config = ClusterConfig::load(&cluster.path().join("cluster.toml")).unwrap();
    Client::with_options(config, ClientOptions { deadline: PATIENCE, ..ClientOptions::default() }).unwrap()
}

/// In Byzantine mode closed sessions stay while what was signed for them is good: these commands have little patience.
fn use_and_close(cluster: &Cluster, nodes: usize) {
    let patience = PATIENCE.as_millis().to_string();
    let run = |args: &[&str]| cluster.code(&[&["--deadline-ms", &patience], args].concat());
    for (args, code) in [
        (&["put", "k", "1"][..], 0),
        (&["incr", "k"], 0),
        (&["cas", "k", "--expect", "2", "3"], 0),
        (&["cas", "k", "--expect", "2", "4"], 4),
        (&["del", "k"], 0),
        (&["del", "k"], 3),
        (&["get", "k"], 3),
    ] {
        assert_eq!(run(args), code, "{args:?}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = client_of(cluster);
        assert_eq!(client.get("k").await.done(), Ok(None));
        let writes = (0..50).map(|index| {
            let client = client.clone();
            tokio::spawn(async move { client.put(format!("k{index}"), "v").await.done() })
        });
        let writes: Vec<_> = writes.collect();
        for write in writes {
            write.await.unwrap().unwrap();
        }
        let clone = client.clone();
        assert_eq!(client.close().await, Ok(()));
        assert_eq!(clone.close().await, Ok(()), "once is enough");
        let late = [clone.put("k", "late").await.done().map(drop), clone.get("k").await.done().map(drop)];
        for outcome in late {
            let Err(NotDone::Refused(Refusal::Invalid(reason))) = outcome else { panic!("{outcome:?}") };
            assert!(reason.contains("was closed"), "{reason}");
        }
        // A client that has asked nothing has nothing to close, and one that is dropped leaves what it has.
        assert_eq!(client_of(cluster).close().await, Ok(()));
        client_of(cluster).put("k", "v").await.done().unwrap();
    });
    // Reads leave nothing behind; in Byzantine mode they are ordered, and log time goes on with them. What is left is the session of the
    // client that was dropped, and on a slow machine one or two whose opening was asked for twice.
    wait_for("the sessions to end", || {
        assert_eq!(run(&["get", "k"]), 0);
        let sessions = sessions(cluster);
        (sessions.len() == nodes && sessions.iter().all(|sessions| (1..=3).contains(sessions))).then_some(())
    });
}

#[test]
fn commands_and_closed_clients_leave_no_sessions_behind() {
    use_and_close(&Cluster::start(3, 1), 3);
}

#[test]
fn the_same_in_byzantine_mode() {
    use_and_close(&Cluster::start_byzantine(4), 4);
}
