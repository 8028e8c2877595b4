//! What `init` writes, and what is wrong with files.

use super::genesis::*;
use super::*;
use crate::ring::{GroupId, NodeId, Tenure};
use crate::transport::Identity;
use std::net::SocketAddr;
use std::path::Path;

fn plan(dir: &Path, nodes: u16, replicas: usize) -> InitPlan {
    InitPlan {
        dir: dir.to_path_buf(),
        addresses: (0..nodes).map(|index| SocketAddr::from(([127, 0, 0, 1], 7101 + index)).into()).collect(),
        groups: 2,
        replicas,
        clients: 1,
        quorums: None,
        mode: Mode::Crash,
        storage: StorageConfig::default(),
        timing: Timing::default(),
    }
}

#[test]
fn what_init_writes_can_be_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, nodes) = init(&plan(dir.path(), 3, 3)).unwrap();
    let cluster = ClusterConfig::load(&cluster).unwrap();
    let node = NodeConfig::load(&nodes[1]).unwrap();
    assert_eq!(node.node, NodeId(2));
    assert_eq!(node.genesis.protocol_name(), cluster.protocol);
    assert_eq!(node.listen, node.genesis.nodes[1].address.to_bind());
    assert!(init(&plan(dir.path(), 3, 3)).unwrap_err().to_string().contains("already made here"));
}

#[test]
fn each_client_has_keys_and_a_cluster_file_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let plan = InitPlan { clients: 3, mode: Mode::Byzantine, ..plan(dir.path(), 4, 4) };
    let (first, nodes) = init(&plan).unwrap();
    assert_eq!(first, dir.path().join("cluster.toml"));
    let genesis = NodeConfig::load(&nodes[0]).unwrap().genesis;
    let names: Vec<&str> = genesis.clients.iter().map(|client| client.name.as_str()).collect();
    assert_eq!(names, ["client", "client-2", "client-3"]);
    for (file, client) in ["cluster.toml", "cluster-2.toml", "cluster-3.toml"].iter().zip(&genesis.clients) {
        let cluster = ClusterConfig::load(&dir.path().join(file)).unwrap();
        assert_eq!(cluster.identity.public(), client.key);
        assert_eq!(cluster.signing.map(|signing| signing.public()), client.signing_key);
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let none = InitPlan { clients: 0, dir: elsewhere.path().to_path_buf(), ..plan };
    assert!(init(&none).unwrap_err().to_string().contains("1 to 1000"));
}

/// In Byzantine mode each replica votes with a key of its own, which its node alone has.
#[test]
fn founders_have_a_key_for_each_of_their_groups() {
    let dir = tempfile::tempdir().unwrap();
    let plan = InitPlan { groups: 3, mode: Mode::Byzantine, ..plan(dir.path(), 5, 4) };
    let (cluster, nodes) = init(&plan).unwrap();
    let genesis = Genesis::load(&dir.path().join("genesis.toml")).unwrap();
    let founding = genesis.founding();
    assert_eq!(ClusterConfig::load(&cluster).unwrap().founding, Some(founding.clone()));
    for (index, file) in nodes.iter().enumerate() {
        let node = NodeConfig::load(file).unwrap();
        let hosts = |tenure: &&Tenure| tenure.index_of(NodeId::founder(index)).is_some();
        for tenure in founding.iter().filter(hosts) {
            let member = &tenure.members[tenure.index_of(node.node).unwrap()];
            assert_eq!(member.epoch_key, Some(node.epoch_keys[&tenure.id].public().0));
            assert_ne!(member.epoch_key, member.signing);
        }
        assert_eq!(node.epoch_keys.len(), founding.iter().filter(hosts).count());
    }
    let wrong = |change: &dyn Fn(&mut Genesis)| {
        let mut genesis = genesis.clone();
        change(&mut genesis);
        genesis.check().unwrap_err()
    };
    let of_n1 = "n1: epoch_keys must name a key for each of g1, g3, once";
    assert_eq!(wrong(&|genesis| _ = genesis.nodes[0].epoch_keys.pop()), of_n1);
    assert_eq!(wrong(&|genesis| genesis.nodes[0].epoch_keys[0].group = GroupId(9)), of_n1);
    let of_n2 = genesis.nodes[1].epoch_keys[0].key;
    assert!(wrong(&|genesis| genesis.nodes[0].epoch_keys[0].key = of_n2).contains("named twice"));
    let keys = nodes[0].with_file_name("keys");
    std::fs::copy(keys.join("g1-1.key"), keys.join("g3-1.key")).unwrap();
    let error = NodeConfig::load(&nodes[0]).unwrap_err().to_string();
    assert!(error.contains("g3-1.key") && error.contains("epoch_keys of n1 for g3"), "{error}");
}

#[test]
fn impossible_sizes_are_refused_with_the_bound_and_the_nearest_ones() {
    let text = |replicas, nodes| check_replicas(Mode::Crash, replicas, nodes).unwrap_err();
    assert!(text(2, 4).contains("Use 1 or 3"));
    assert!(text(4, 4).contains("Use 3 or 5"));
    assert!(text(5, 3).contains("there are 3"));
    assert_eq!(check_replicas(Mode::Crash, 3, 4), Ok(()));
    let text = |replicas| check_replicas(Mode::Byzantine, replicas, 9).unwrap_err();
    assert!(text(3).contains("use 4") && text(5).contains("use 4 or 7"));
    assert_eq!(check_replicas(Mode::Byzantine, 4, 4), Ok(()));
}

#[test]
fn a_misspelt_setting_and_a_foreign_key_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let (_, nodes) = init(&plan(dir.path(), 3, 3)).unwrap();
    let text = std::fs::read_to_string(&nodes[0]).unwrap();
    std::fs::write(&nodes[0], text.replace("cache_bytes", "cach_bytes")).unwrap();
    let error = NodeConfig::load(&nodes[0]).unwrap_err().to_string();
    assert!(error.contains("cach_bytes") && error.contains("cache_bytes"), "{error}");
    std::fs::write(&nodes[0], text.replace("node = 1", "node = 2")).unwrap();
    assert!(NodeConfig::load(&nodes[0]).unwrap_err().to_string().contains("is not the one"));
}

#[test]
fn genesis_values_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    init(&plan(dir.path(), 3, 3)).unwrap();
    let path = dir.path().join("genesis.toml");
    let good = Genesis::load(&path).unwrap();
    let wrong = |change: &dyn Fn(&mut Genesis)| {
        let mut genesis = good.clone();
        change(&mut genesis);
        genesis.check().unwrap_err()
    };
    assert!(wrong(&|genesis| genesis.groups = 0).contains("1 to"));
    assert!(wrong(&|genesis| genesis.nodes[1].key = genesis.nodes[0].key).contains("named twice"));
    assert!(wrong(&|genesis| genesis.nodes[1].id = NodeId(7)).contains("in order"));
    assert!(wrong(&|genesis| genesis.limits.value_bytes_max = 2 << 20).contains("are allowed"));
    let quorums = FlexibleQuorums { phase1: 1, phase2: 2, survive: 1 };
    assert!(wrong(&|genesis| genesis.quorums = Some(quorums)).contains("must be at least 4"));
    assert!(wrong(&|genesis| genesis.timing.election_millis = 60).contains("four heartbeats"));
    assert!(wrong(&|genesis| genesis.timing.heartbeat_millis = 1 << 62).contains("are allowed"));
    assert!(wrong(&|genesis| genesis.cluster = "a".repeat(300)).contains("32 hexadecimal digits"));
    assert!(wrong(&|genesis| genesis.version = 9).contains("version 9"));
    let old = dir.path().join("old.toml");
    std::fs::write(&old, "version = 1\ncluster = \"of another form\"\n").unwrap();
    let error = Genesis::load(&old).unwrap_err().to_string();
    assert!(error.contains("genesis version 1 is not supported, this build reads version 2"), "{error}");
    std::fs::write(&old, "protocol = \"of another form\"\n").unwrap();
    let error = ClusterConfig::load(&old).unwrap_err().to_string();
    assert!(error.contains("cluster file without a version"), "{error}");
    assert!(wrong(&|genesis| genesis.admin_key = genesis.nodes[0].key).contains("named twice"));
    assert!(wrong(&|genesis| genesis.nodes[1].name = "n1".into()).contains("\"n1\""));
    for name in ["", "3", "N1", "a b", "ä", &"a".repeat(64)] {
        assert!(wrong(&|genesis| genesis.nodes[0].name = name.into()).contains("small letter"), "{name}");
    }
    assert!(wrong(&|genesis| genesis.nodes[0].capacity = 0).contains("1 to 1000"));
    let tag = |tag: &str, value: &str| {
        wrong(&|genesis| drop(genesis.nodes[0].tags.insert(tag.to_string(), value.to_string())))
    };
    assert!(tag("", "a").contains("tags of n1") && tag("zone", "a b").contains("tags of n1"));
    let signing = Some(good.clients[0].key);
    assert!(wrong(&|genesis| genesis.nodes[0].signing_key = signing).contains("named twice"));
    let drawn = Some(Identity::generate().unwrap().public());
    assert!(wrong(&|genesis| genesis.nodes[0].signing_key = drawn).contains("only Byzantine mode"));
    let name = |change: &dyn Fn(&mut Genesis)| {
        let mut genesis = good.clone();
        change(&mut genesis);
        genesis.protocol_name()
    };
    for moved in ["[2001:db8::1]:9000", "n1.example.com:9000"] {
        assert_eq!(name(&|genesis| genesis.nodes[0].address = moved.parse().unwrap()), good.protocol_name());
    }
    assert_ne!(name(&|genesis| genesis.timing.election_millis += 1), good.protocol_name());
    assert_ne!(name(&|genesis| genesis.nodes.swap(0, 1)), good.protocol_name());
}
