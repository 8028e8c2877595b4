//! Random schedules: every seed draws its own faults, and after every step the harness watches what must hold between
//! replicas. After the faults the cluster must come back: one leader, everything acknowledged everywhere.

mod harness;

use harness::schedule::{Reached, run};
use tetrachord_consensus::Mutation;

/// Runs so many seeds. What they reach on average is known (2.1 leaders and 130 slots a seed), so less than `leaders_min` in
/// all means that they were disturbed too much or too little to show anything.
fn seeds(from: u64, count: u64, leaders_min: u64, steps: usize) {
    let mut total = Reached::default();
    for seed in from..from + count {
        let (violations, reached) = run(seed, Mutation::None, steps);
        assert!(violations.is_empty(), "seed {seed}: {}", violations[0].0);
        total.decided += reached.decided;
        total.leaders += reached.leaders;
        total.reads += reached.reads;
        total.snapshots += reached.snapshots;
        total.crashes += reached.crashes;
        total.ended += reached.ended;
    }
    println!(
        "{count} seeds: {} slots decided, {} leaders, {} reads, {} snapshots, {} crashes, {} epochs ended",
        total.decided, total.leaders, total.reads, total.snapshots, total.crashes, total.ended
    );
    assert!(
        total.decided > 20 * count && total.leaders as u64 > leaders_min,
        "the schedules reach too little"
    );
    assert!(
        total.reads as u64 > count
            && total.snapshots > 0
            && total.crashes > 0
            && total.ended as u64 > count / 20,
        "some faults never happened"
    );
}

#[test]
fn a_fixed_set_of_schedules_keeps_every_invariant() {
    seeds(0, 400, 800, 3000);
}

#[test]
fn a_fresh_set_of_schedules_keeps_every_invariant() {
    let from = std::process::id() as u64 * 1_000_003;
    println!("seeds from {from}");
    let count = std::env::var("SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    // A fresh set varies by chance: six standard deviations of 200 seeds below the mean.
    seeds(from, count, count * 3 / 2, 3000);
}
