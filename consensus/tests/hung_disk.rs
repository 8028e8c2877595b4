//! A leader whose disk takes nothing any more.
#![allow(clippy::unwrap_used, reason = "test code")]

mod harness;

use harness::Cluster;
use harness::rules::{led, options, passes_only_with_the_rule};
use tetrachord_consensus::{Engine, Mutation, Options};

/// Proposes wherever somebody leads, every twenty milliseconds; returns how many were taken.
fn write_for(cluster: &mut Cluster, millis: u64) -> usize {
    let mut taken = 0;
    for step in 0..millis / 20 {
        if let Some(leader) = cluster.leader() {
            taken += usize::from(cluster.propose(leader, &format!("v{step}")).is_ok());
        }
        cluster.run(20);
    }
    assert!(cluster.violations.is_empty(), "{:?}", cluster.violations);
    taken
}

#[test]
fn a_leader_whose_disk_hangs_lets_another_lead() {
    fn test(options: Options) {
        let mut cluster = led(3, options);
        cluster.hung.insert(0);
        write_for(&mut cluster, 5_000);
        assert!(cluster.leader().is_some_and(|leader| leader != 0), "a healthy replica leads");
        let before = cluster.acknowledged;
        assert_eq!(write_for(&mut cluster, 1_000), 50);
        assert!(cluster.acknowledged.0 >= before.0 + 49, "and decides");
        cluster.hung.clear();
        cluster.run(3_000);
        let applied = cluster.nodes.iter().map(|node| node.applied.len());
        assert!(
            applied.clone().all(|count| Some(count) == applied.clone().max()),
            "the slow one has caught up"
        );
    }
    passes_only_with_the_rule(Mutation::LeadWithoutDisk, test);
}

#[test]
fn the_next_leader_is_one_that_is_there() {
    let mut cluster = led(5, options(Mutation::None));
    cluster.crash(1, 9);
    cluster.partition(&[2], &[0, 3, 4]);
    cluster.run(1_000);
    cluster.propose(0, "a").unwrap();
    cluster.settle();
    cluster.act(0, |replica| replica.transfer_leadership(None));
    cluster.settle();
    assert!(matches!(cluster.leader(), Some(3 | 4)), "{:?}", cluster.leader());
}

#[test]
fn a_leader_whose_disk_is_needed_leads_on() {
    let mut cluster = led(3, options(Mutation::None));
    cluster.crash(2, 9);
    cluster.run(100);
    cluster.hung.insert(0);
    write_for(&mut cluster, 5_000);
    assert_eq!(cluster.leader(), Some(0), "nobody could do without it");
    cluster.hung.clear();
    write_for(&mut cluster, 100);
    assert_eq!(cluster.acknowledged, cluster.replica(0).status().last);
}
