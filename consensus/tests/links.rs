//! A leader is found, and decides, also where the log that must be moved for it takes longer than an election timeout.
//!
//! The links of these tests have a delay and a bandwidth, and disks take their time ([`harness::links`]). `LINK_SEEDS` says how many seeds
//! the long ones run.
#![allow(clippy::unwrap_used, reason = "test code")]

mod harness;

use bytes::Bytes;
use harness::links::{Links, Speed};
use harness::{Cluster, Node, Random};
use tetrachord_consensus::{Options, Proposal, Quorums};

/// A link of so many megabits a second, over which an answer takes so many milliseconds.
fn speed(megabits: u64, round_trip_millis: u64) -> Speed {
    Speed { delay_micros: round_trip_millis * 500, bytes_per_ms: megabits * 125, barrier_micros: 3_000 }
}

fn options(election_ticks: u64, seed: u64) -> Options {
    Options { election_ticks, seed, ..Options::default() }
}

/// Disks of a group of which some have missed the last `bytes` of the log, and the others hold them.
fn disks(n: usize, lagging: &[usize], bytes: usize) -> Vec<Node> {
    let mut cluster = Cluster::new(n, options(500, 1));
    cluster.run(1_500);
    lagging.iter().for_each(|index| cluster.crash(*index, 9));
    cluster.run(3_000);
    let leader = cluster.leader().unwrap();
    for _ in 0..bytes / (32 << 10) {
        let value = Bytes::from(vec![7; 32 << 10]);
        cluster.propose_raw(leader, Proposal::Batch(value.clone()), value).unwrap();
        cluster.settle();
    }
    cluster.run(200);
    assert!(cluster.violations.is_empty(), "{:?}", cluster.violations);
    for index in (0..n).filter(|index| !lagging.contains(index)) {
        cluster.crash(index, 9);
    }
    cluster.nodes
}

/// A cluster that comes back from these disks: nobody runs yet.
fn stopped(disks: &[Node], speed: Speed, options: Options) -> Links {
    Links::new(Cluster::stopped(disks.to_vec(), Quorums::majority(disks.len()).unwrap(), options), speed)
}

/// What came of a restart.
#[derive(Debug, Default)]
struct Outcome {
    led_ms: Option<u64>,
    decided_ms: Option<u64>,
    ballots_led: usize,
    heartbeat_waited_ms: u64,
}

/// Lets time pass until something new was decided and for some time after that; what is proposed is small. Returns when, in
/// milliseconds, somebody led, and when that was decided.
fn watch(links: &mut Links, millis: u64) -> Outcome {
    let from = links.now();
    let mut outcome = Outcome::default();
    let mut asked = None;
    while links.now() < from + millis && outcome.decided_ms.is_none_or(|at| links.now() < from + at + 2_000) {
        links.run(20);
        let now = links.now() - from;
        let Some(leader) = links.cluster.leader() else { continue };
        outcome.led_ms.get_or_insert(now);
        if asked != Some(leader) && links.propose(leader, Bytes::from_static(b"new")) {
            asked = Some(leader);
        }
        if links.cluster.acknowledged.0 > 0 {
            outcome.decided_ms.get_or_insert(now);
        }
    }
    assert!(links.cluster.violations.is_empty(), "{:?}", links.cluster.violations);
    outcome.ballots_led = links.cluster.leaders.len();
    outcome.heartbeat_waited_ms = links.heartbeat_waited_micros / 1000;
    outcome
}

/// The replica that lags comes back together with one that has everything; the third is gone for good.
fn restart(disks: &[Node], lagging: usize, speed: Speed, options: Options, millis: u64) -> Outcome {
    let mut random = Random(options.seed);
    let best = if lagging == 2 { 1 } else { 2 };
    let mut links = stopped(disks, speed, options);
    let (first, second) = if random.chance(50) { (lagging, best) } else { (best, lagging) };
    links.run(random.next() % 100);
    links.start(first);
    links.run(random.next() % 300);
    links.start(second);
    watch(&mut links, millis)
}

/// `LINK_SEEDS`, or so many.
fn seeds(default: u64) -> u64 {
    std::env::var("LINK_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs so many seeds; each replica lags in a third of them. In every one something new must be decided in time, under the first leader,
/// and no heartbeat may wait in a queue for half an election timeout.
fn restart_often(megabytes: usize, speed: Speed, election_ticks: u64, count: u64, millis: u64) {
    let disks: Vec<Vec<Node>> = (0..3).map(|lagging| disks(3, &[lagging], megabytes << 20)).collect();
    let (mut decided_ms, mut waited_ms) = (0, 0);
    for seed in 0..count {
        let lagging = (seed % 3) as usize;
        let outcome = restart(&disks[lagging], lagging, speed, options(election_ticks, seed), millis);
        let Some(at) = outcome.decided_ms else {
            panic!("seed {seed}: nothing was decided in {millis} ms: {outcome:?}")
        };
        assert!(outcome.ballots_led <= 2, "seed {seed}: leaders take turns: {outcome:?}");
        assert!(outcome.heartbeat_waited_ms <= election_ticks / 2, "seed {seed}: {outcome:?}");
        (decided_ms, waited_ms) = (decided_ms.max(at), waited_ms.max(outcome.heartbeat_waited_ms));
    }
    println!("{count} seeds: decided in {decided_ms} ms, a heartbeat waited {waited_ms} ms at most");
}

#[test]
fn a_log_of_16_mib_behind_100_megabits_is_led_and_decides_within_ten_seconds() {
    restart_often(16, speed(100, 50), 300, seeds(12), 10_000);
}

#[test]
fn a_log_of_8_mib_behind_a_gigabit_and_ten_milliseconds() {
    restart_often(8, speed(1000, 10), 300, seeds(12), 10_000);
}

#[test]
fn a_log_of_16_mib_behind_a_gigabit_and_five_milliseconds() {
    restart_often(16, speed(1000, 5), 300, seeds(12), 10_000);
}

#[test]
fn a_log_of_16_mib_behind_fifty_milliseconds_with_patient_replicas() {
    restart_often(16, speed(1000, 50), 1_000, seeds(12), 15_000);
}

#[test]
fn a_log_of_2_mib_behind_10_megabits() {
    restart_often(2, speed(10, 50), 300, seeds(12), 10_000);
}

#[test]
fn a_log_that_is_not_behind_is_led_at_once() {
    restart_often(0, speed(100, 50), 300, seeds(12), 3_000);
}

/// Of five replicas only the first hears a quorum, and it has missed the log: nobody can lead before it has fetched it.
#[test]
fn the_only_replica_that_hears_a_quorum_leads_though_it_must_fetch_the_log() {
    let disks = disks(5, &[0, 4], 16 << 20);
    for seed in 0..seeds(6) {
        let mut links = stopped(&disks, speed(100, 50), options(300, seed));
        for (from, to) in (1..5).flat_map(|from| (1..5).map(move |to| (from, to))) {
            links.cluster.cut.insert((from, to));
        }
        (0..5).for_each(|index| links.start(index));
        let outcome = watch(&mut links, 10_000);
        assert!(outcome.decided_ms.is_some(), "seed {seed}: {outcome:?}");
        assert_eq!(links.cluster.leader(), Some(0), "seed {seed}");
    }
}
