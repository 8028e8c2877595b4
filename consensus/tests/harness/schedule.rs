//! One random schedule: a seed draws its own faults; after them the cluster must come back.
#![allow(dead_code, clippy::unwrap_used, reason = "test code, of which each file uses a part")]

use super::{Cluster, Random, Violation, YEAR_MICROS};
use bytes::Bytes;
use tetrachord_consensus::paxos::Message;
use tetrachord_consensus::{Engine, Mutation, Options, Proposal, Quorums, codec};

/// What one seed turns on, and how much.
struct Weather {
    n: usize,
    drop_percent: u64,
    duplicate_percent: u64,
    crash_percent: u64,
    cut_percent: u64,
    checkpoint_percent: u64,
    tick_percent: u64,
    slow_disk_percent: u64,
    /// Whether somebody ends the epoch, late in the run.
    ends: bool,
    /// Whether what is sent over links that are cut comes when they heal, as from a transport that sends again.
    keeps: bool,
    /// One replica whose clock jumps by up to a year.
    wrong_clock: Option<usize>,
    /// How many acknowledgements come again much later, when somebody else may have led meanwhile.
    late_percent: u64,
}

impl Weather {
    fn draw(random: &mut Random) -> Self {
        let mut maybe = |max: u64| if random.chance(50) { random.next() % max } else { 0 };
        let (drop, duplicate, crash, cut, checkpoint) = (maybe(20), maybe(20), maybe(4), maybe(3), maybe(4));
        let wrong_clock = random.chance(50).then(|| random.below(3));
        Self {
            wrong_clock,
            n: [3, 3, 5][random.below(3)],
            drop_percent: drop,
            duplicate_percent: duplicate,
            crash_percent: crash,
            cut_percent: cut,
            checkpoint_percent: checkpoint,
            tick_percent: 4 + random.next() % 12,
            slow_disk_percent: random.next() % 90,
            ends: random.chance(25),
            keeps: random.chance(50),
            late_percent: if random.chance(50) { random.next() % 40 } else { 0 },
        }
    }
}

/// What a schedule reached; a run that reaches nothing proves nothing.
#[derive(Default)]
pub(crate) struct Reached {
    pub(crate) decided: u64,
    pub(crate) leaders: usize,
    pub(crate) reads: usize,
    pub(crate) snapshots: usize,
    pub(crate) crashes: usize,
    pub(crate) ended: usize,
}

/// Runs one seed and returns what was violated, with what was reached.
pub(crate) fn run(seed: u64, mutation: Mutation, steps: usize) -> (Vec<Violation>, Reached) {
    let mut random = Random(seed);
    let weather = Weather::draw(&mut random);
    let message_bytes = [1, 200, 100_000][random.below(3)];
    let options = Options { mutation, seed, message_bytes, window_entries: 16, ..Options::default() };
    let quorums = match (weather.n, random.below(4)) {
        (5, 0) => Quorums::flexible(5, 4, 2, 1).unwrap(),
        (5, 1) => Quorums::flexible(5, 2, 4, 1).unwrap(),
        (n, _) => Quorums::majority(n).unwrap(),
    };
    let mut cluster = Cluster::with_quorums(quorums, options);
    cluster.is_slow = random.chance(50);
    let mut crashes = 0;
    for step in 0..steps {
        disturb(&mut cluster, &weather, &mut random, step, &mut crashes);
        if weather.ends && step > steps / 2 && random.chance(1) {
            end_epoch(&mut cluster);
        }
        if !cluster.violations.is_empty() {
            break;
        }
    }
    if cluster.violations.is_empty() && mutation == Mutation::None {
        calm(&mut cluster);
    }
    let decided = cluster.base_of.keys().last().map_or(0, |slot| slot.0);
    let reached = Reached {
        decided,
        leaders: cluster.leaders.len(),
        reads: cluster.reads_served,
        snapshots: cluster.snapshots,
        crashes,
        ended: usize::from(cluster.base_of.values().any(|base| base.sealed)),
    };
    (cluster.violations, reached)
}

fn disturb(cluster: &mut Cluster, weather: &Weather, random: &mut Random, step: usize, crashes: &mut usize) {
    let node = random.below(weather.n);
    if random.chance(weather.tick_percent) {
        cluster.advance(10 + random.next() % 40);
    }
    if let Some(victim) = weather.wrong_clock.filter(|_| random.chance(1)) {
        let year = YEAR_MICROS as i64;
        cluster.clock_offsets[victim] = (random.next() % YEAR_MICROS) as i64 * 2 - year;
    }
    if !random.chance(weather.slow_disk_percent) {
        cluster.persist(random.below(weather.n));
    }
    if random.chance(weather.crash_percent) {
        if cluster.is_up(node) {
            let kept = random.below(3);
            cluster.crash(node, kept);
            *crashes += 1;
        } else {
            cluster.start(node);
        }
    }
    if random.chance(weather.cut_percent) {
        if cluster.cut.is_empty() {
            for _ in 0..1 + random.below(weather.n) {
                let (from, to) = (random.below(weather.n) as u8, random.below(weather.n) as u8);
                cluster.cut.insert((from, to));
            }
        } else {
            cluster.heal();
        }
    }
    if random.chance(weather.checkpoint_percent) {
        let retain_bytes = [0, 200, 2000][random.below(3)];
        if random.chance(50) {
            cluster.checkpoint(node, retain_bytes);
        } else {
            cluster.trim(node, retain_bytes);
        }
    }
    if random.chance(8) {
        let at = cluster.leader().filter(|_| random.chance(80)).unwrap_or(node);
        let _ = cluster.propose(at, &format!("v{step}"));
    }
    if random.chance(5) {
        let at = if random.chance(50) { cluster.leader().unwrap_or(node) } else { node };
        if cluster.is_up(at) {
            cluster.read(at);
        }
    }
    if !cluster.transfers.is_empty() && random.chance(5) {
        let position = random.below(cluster.transfers.len());
        cluster.finish_transfer(position);
    }
    if !cluster.late.is_empty() && random.below(150) == 0 {
        let position = random.below(cluster.late.len());
        let envelope = cluster.late.swap_remove(position);
        cluster.network.push(envelope);
        cluster.deliver(cluster.network.len() - 1);
    }
    for _ in 0..random.below(4) {
        move_message(cluster, weather, random);
    }
}

fn end_epoch(cluster: &mut Cluster) {
    if let Some(leader) = cluster.leader() {
        let next = Bytes::from_static(b"next");
        let _ = cluster.propose_raw(leader, Proposal::StopSign(next.clone()), next);
    }
}

fn move_message(cluster: &mut Cluster, weather: &Weather, random: &mut Random) {
    if cluster.network.is_empty() {
        return;
    }
    let position = random.below(cluster.network.len());
    let envelope = &cluster.network[position];
    if weather.keeps && cluster.cut.contains(&(envelope.from.0, envelope.to.0)) {
        return;
    }
    if random.chance(weather.duplicate_percent) {
        let copy = cluster.network[position].clone();
        cluster.network.push(copy);
    }
    if random.chance(weather.late_percent) && is_acknowledgement(&cluster.network[position].message) {
        cluster.late.push(cluster.network[position].clone());
    }
    if random.chance(weather.drop_percent) {
        cluster.network.swap_remove(position);
    } else {
        cluster.deliver(position);
    }
    // A bag that only grows would starve what is new.
    while cluster.network.len() > 400 {
        let position = random.below(cluster.network.len());
        cluster.network.swap_remove(position);
    }
}

fn is_acknowledgement(message: &[u8]) -> bool {
    message.len() < 64 && matches!(codec::decode(message), Ok(Message::Accepted { .. }))
}

/// Faults stop: the cluster must elect a leader, decide, serve reads and agree.
fn calm(cluster: &mut Cluster) {
    cluster.heal();
    cluster.is_slow = false;
    while !cluster.transfers.is_empty() {
        cluster.finish_transfer(0);
    }
    for index in 0..cluster.nodes.len() {
        if !cluster.is_up(index) {
            cluster.start(index);
        }
    }
    let mut done = false;
    for round in 0..40 {
        cluster.run(250);
        if let Some(leader) = cluster.leader() {
            let _ = cluster.propose(leader, &format!("final{round}"));
            let id = cluster.read(leader);
            cluster.run(150);
            let last = cluster.replica(leader).status().last;
            let agree = cluster.nodes.iter().all(|node| node.applied.len() as u64 == last.0);
            // Behind a stop-sign nothing is read either.
            let is_sealed = cluster.nodes[leader].applied.last().is_some_and(|last| last.base.sealed);
            let is_read = cluster.nodes[leader].ready.iter().any(|(ready, _)| *ready == id);
            if agree && (is_sealed || is_read) {
                done = true;
                break;
            }
        }
    }
    if !done {
        let states: Vec<String> = (0..cluster.nodes.len())
            .map(|index| {
                format!("r{index} {:?} {:?}", cluster.replica(index).status(), cluster.replica(index).role())
            })
            .collect();
        cluster.violations.push(Violation(format!("does not come back: {states:#?}")));
    }
    let acknowledged = cluster.acknowledged.0 as usize;
    for (index, node) in cluster.nodes.iter().enumerate() {
        if node.applied.len() < acknowledged && done {
            cluster.violations.push(Violation(format!("r{index} lost acknowledged slots")));
            break;
        }
    }
}
