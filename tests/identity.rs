//! What stands behind a node's name: the same data directory for ever, and nobody else's. Real processes, and what an operator might
//! do to their folders.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Cluster, wait_for};
use std::path::{Path, PathBuf};

fn copy_folder(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

fn data_of(cluster: &Cluster, index: usize) -> PathBuf {
    cluster.node_file(index).with_file_name("data")
}

/// A copy of a node's data directory as it is now, in a folder of its own.
fn keep_data(cluster: &Cluster, index: usize) -> PathBuf {
    let kept = cluster.dir.path().join(format!("kept-{index}"));
    copy_folder(&data_of(cluster, index), &kept);
    kept
}

/// Waits until a node has ended by itself, meanwhile asks for a key that was acknowledged: it may be out of reach, never absent.
fn wait_for_end(cluster: &mut Cluster, index: usize, key: &str) -> String {
    let code = wait_for("the node to end", || {
        let code = cluster.code(&["--deadline-ms", "300", "get", key]);
        assert!(code == 0 || code == 5, "the get of an acknowledged key ended with {code}");
        cluster.exit_code(index)
    });
    assert_eq!(code, 1);
    cluster.kill_node(index);
    cluster.log(index)
}

#[test]
fn a_folder_that_is_copied_again_does_not_bring_a_node_back() {
    let mut cluster = Cluster::init(3, 1);
    let original = keep_data(&cluster, 2);
    (0..3).for_each(|index| cluster.start_node(index));
    cluster.ok(&["put", "before", "v"]);
    cluster.kill_node(1);
    cluster.ok(&["put", "important", "acknowledged"]);
    cluster.kill_node(2);
    copy_folder(&original, &data_of(&cluster, 2));
    cluster.kill_node(0);
    cluster.start_node(1);
    cluster.start_node(2);
    let log = wait_for_end(&mut cluster, 2, "important");
    assert!(log.contains("n2 knows n3 by another data directory"), "{log}");
    assert!(log.contains("Put the first directory back") && log.contains("added as a new node"), "{log}");
    // With n2 alone nothing is answered; with n1, which is what it was, everything.
    assert_eq!(cluster.code(&["--deadline-ms", "300", "get", "important"]), 5);
    cluster.start_node(0);
    assert_eq!(cluster.ok(&["get", "important"]), "acknowledged");
}

#[test]
fn a_first_start_waits_for_all_three_once_and_says_so() {
    let mut cluster = Cluster::init(3, 1);
    cluster.start_node(0);
    cluster.start_node(2);
    wait_for("n3 to be noted by n1", || cluster.log(2).contains("n1 n2 have noted it").then_some(()));
    assert_eq!(cluster.code(&["--deadline-ms", "1000", "put", "k", "too early"]), 5);
    let awaits = |cluster: &Cluster| cluster.status()["nodes"][2]["awaits"].clone();
    wait_for("n3 to wait for n2 alone", || (awaits(&cluster) == serde_json::json!([2])).then_some(()));
    cluster.start_node(1);
    cluster.ok(&["put", "k", "v"]);
    wait_for("n3 to vote", || (awaits(&cluster) == serde_json::json!([])).then_some(()));
    // Never again: any two of them will do from now on.
    for index in 0..3 {
        cluster.kill_node(index);
    }
    cluster.start_node(0);
    cluster.start_node(2);
    assert_eq!(cluster.ok(&["get", "k"]), "v");
}

/// n2 is up; n1 is down and has a directory from before its last start, in which it acknowledged a write with n2 alone.
fn with_an_older_copy() -> Cluster {
    let mut cluster = Cluster::start(3, 1);
    cluster.ok(&["put", "k", "old"]);
    cluster.kill_node(0);
    let copy = keep_data(&cluster, 0);
    cluster.start_node(0);
    cluster.kill_node(2);
    // Acknowledged by n1 and n2, so n2 knows of this life of n1.
    cluster.ok(&["put", "k", "new"]);
    cluster.kill_node(0);
    copy_folder(&copy, &data_of(&cluster, 0));
    cluster
}

#[test]
fn an_older_copy_of_a_data_directory_ends_its_node() {
    let mut cluster = with_an_older_copy();
    cluster.start_node(2);
    cluster.start_node(0);
    let log = wait_for_end(&mut cluster, 0, "k");
    // Both were started once since; n2 may not have noted yet how far the other had come.
    let is_noticed = log.contains("is an older copy: n2 has seen n1")
        || log.contains("two copies of this data directory have run: n2 has heard another one");
    assert!(is_noticed, "{log}");
    assert_eq!(cluster.ok(&["get", "k"]), "new");
}

/// Whoever hears the copy knows a start of the right one that it was not through, however often it was started while nobody heard it.
#[test]
fn an_older_copy_that_was_started_again_ends_its_node() {
    let mut cluster = with_an_older_copy();
    cluster.kill_node(1);
    for _ in 0..3 {
        cluster.start_node(0);
        wait_for("n1 to answer", || cluster.status()["nodes"][0]["connected"].is_array().then_some(()));
        assert_eq!(cluster.terminate_node(0), Some(0));
    }
    cluster.start_node(1);
    cluster.start_node(0);
    let log = wait_for_end(&mut cluster, 0, "k");
    assert!(
        log.contains("two copies of this data directory have run: n2 has heard another one at its start"),
        "{log}"
    );
    cluster.start_node(2);
    assert_eq!(cluster.ok(&["get", "k"]), "new");
}

#[test]
fn the_data_of_another_node_or_cluster_is_refused() {
    let mut cluster = Cluster::start(3, 1);
    cluster.ok(&["put", "k", "v"]);
    cluster.kill_node(1);
    cluster.kill_node(2);
    let own = keep_data(&cluster, 2);
    copy_folder(&data_of(&cluster, 1), &data_of(&cluster, 2));
    cluster.start_node(2);
    let refusal = |cluster: &mut Cluster| {
        let code = wait_for("n3 to end", || cluster.exit_code(2));
        assert_eq!(code, 1);
        cluster.kill_node(2);
        cluster.log(2)
    };
    let log = refusal(&mut cluster);
    assert!(log.contains("holds the data of n2 of cluster") && log.contains("correct data_dir"), "{log}");

    let mut foreign = Cluster::start(3, 1);
    foreign.ok(&["put", "k", "of another cluster"]);
    foreign.kill_node(2);
    copy_folder(&data_of(&foreign, 2), &data_of(&cluster, 2));
    cluster.start_node(2);
    let log = refusal(&mut cluster);
    assert!(log.matches("holds the data of n3 of cluster").count() == 1, "{log}");

    copy_folder(&own, &data_of(&cluster, 2));
    cluster.start_node(2);
    assert_eq!(cluster.ok(&["get", "k"]), "v");
}

#[test]
fn in_byzantine_mode_a_second_store_of_one_name_ends_as_well() {
    let mut cluster = Cluster::init_in("byzantine", 4, 1);
    let original = keep_data(&cluster, 3);
    (0..4).for_each(|index| cluster.start_node(index));
    cluster.ok(&["put", "k", "v"]);
    // Three of four do without it: it may have been noted by nobody yet.
    wait_for("the votes of n4", || {
        cluster.log(3).contains("enough nodes have noted this data directory").then_some(())
    });
    cluster.kill_node(3);
    copy_folder(&original, &data_of(&cluster, 3));
    cluster.start_node(3);
    let log = wait_for_end(&mut cluster, 3, "k");
    assert!(log.contains("knows n4 by another data directory"), "{log}");
    assert_eq!(cluster.ok(&["get", "k"]), "v");
}
