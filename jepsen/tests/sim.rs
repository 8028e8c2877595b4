//! The simulator: seeds that must hold, seeds that replay, and defects that it must find.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::sync::atomic::{AtomicU64, Ordering};
use tetrachord_consensus::Mutation;
use tetrachord_consensus::pbft::Lie;
use tetrachord_jepsen::nemesis::Nemesis;
use tetrachord_jepsen::plan::{Defect, Mode, Plan};
use tetrachord_jepsen::sweep::{self, Seeds, Swept, replay_command};
use tetrachord_jepsen::world::sim::run;

/// Runs these seeds on all processors.
fn sweep(from: u64, count: u64) -> (Seeds, Swept) {
    let seeds = Seeds { from, count, mode: None };
    let swept = sweep::run(&seeds, &|plan| run(plan, false), &|| {});
    if let Some((plan, violation)) = &swept.failed {
        panic!("{}\n{plan}\n{violation}", replay_command(plan));
    }
    (seeds, swept)
}

#[test]
fn a_fixed_set_of_seeds_holds_and_is_not_too_tame() {
    let (seeds, swept) = sweep(1, 1_000);
    println!("{:?} and {} seeds more", swept.totals, swept.extra);
    let missing: Vec<String> = swept.missing(&seeds).iter().map(ToString::to_string).collect();
    assert_eq!(missing, Vec::<String>::new());
}

/// Eight nodes, eight groups of four, and a liar in each: n2 and n6, who share what they know.
#[test]
fn liars_of_other_groups_change_nothing() {
    let mut told = 0;
    for seed in 1..=12 {
        let mut plan = Plan::draw_in(seed, Some(Mode::Byzantine));
        (plan.nodes, plan.groups, plan.replicas) = (8, 8, 4);
        plan.nemeses.insert(Nemesis::Lies);
        assert_eq!(plan.faulty(), [1, 5], "every four nodes in a row have one of them");
        let outcome = run(&plan, false);
        assert_eq!(outcome.violation, None, "seed {seed}: {plan}");
        told +=
            outcome.reached.get("a liar told what a group answered that it has no replica of").unwrap_or(&0);
    }
    assert!(told > 500, "{told}");
}

/// What it finds may have been there before the change that is tested: the seed is printed, and replays it.
#[test]
fn a_fresh_set_of_seeds_holds() {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let from = clock * 1_000_000;
    let count = std::env::var("SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000);
    println!("{count} seeds from {from}");
    sweep(from, count);
}

#[test]
fn a_seed_replays_every_event() {
    for seed in 1..=200 {
        let plan = Plan::draw(seed);
        let (one, other) = (run(&plan, false), run(&plan, true));
        assert_eq!((one.trace_hash, one.events), (other.trace_hash, other.events), "seed {seed}");
        assert!(!other.trace.is_empty() && one.trace.is_empty());
    }
}

/// Something that is wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Rule(Mutation),
    Around(Defect),
}

/// How many seeds it takes to notice what is wrong.
fn found_after(wrong: Wrong, mode: Mode, seeds: u64) -> Option<(u64, String)> {
    (1..=seeds).find_map(|seed| {
        let mut plan = Plan::draw_in(seed, Some(mode));
        // What only a greedy client shows needs one; what has other reasons is looked for without.
        if wrong == Wrong::Rule(Mutation::IgnoreShares) {
            plan.nemeses.insert(Nemesis::GreedyClient);
        } else {
            plan.nemeses.remove(&Nemesis::GreedyClient);
        }
        let plan = match wrong {
            // Only a liar that makes use of it shows it.
            Wrong::Rule(mutation @ Mutation::AnySignOfLife) => {
                let nemeses = plan.nemeses.iter().copied().chain([Nemesis::Lies, Nemesis::Kill]).collect();
                Plan { mutation, nemeses, lie: Some(Lie::EndlessState), ..plan }
            }
            Wrong::Rule(mutation) => Plan { mutation, ..plan },
            Wrong::Around(defect) => Plan { defect, ..plan },
        };
        let outcome = std::panic::catch_unwind(|| run(&plan, false).violation);
        let what = outcome.unwrap_or_else(|_| Some("an invariant inside a replica".to_string()))?;
        Some((seed, what.lines().next().unwrap_or_default().chars().take(120).collect()))
    })
}

/// Hunts for all of these on all processors; says after how many seeds each was found, and returns those that were not.
fn hunt(all: &[(Wrong, Mode)]) -> Vec<Wrong> {
    let only = std::env::var("HUNT").unwrap_or_default();
    let asked = std::env::var("HUNT_SEEDS").ok().and_then(|text| text.parse().ok());
    let is_wanted = |(wrong, _): &&(Wrong, Mode)| {
        only.is_empty() || only.split(',').any(|name| format!("{wrong:?}").contains(name))
    };
    let wanted: Vec<(Wrong, Mode)> = all.iter().filter(is_wanted).copied().collect();
    let (next, missed) = (AtomicU64::new(0), std::sync::Mutex::new(Vec::new()));
    let work = || {
        while let Some((wrong, mode)) = wanted.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let seeds = asked.unwrap_or(seeds_for(*wrong));
            match found_after(*wrong, *mode, seeds) {
                Some((seed, what)) => println!("{wrong:?}: seed {seed}: {what}"),
                None => {
                    println!("{wrong:?}: not found in {seeds} seeds");
                    missed.lock().unwrap().push(*wrong);
                }
            }
        }
    };
    std::panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let _ = std::panic::take_hook();
    missed.into_inner().unwrap()
}

/// No client here ends an epoch; the schedules of the cores do (`consensus/tests/mutants.rs`, `pbft_mutants.rs`).
const OF_CORES_ALONE: [Mutation; 2] = [Mutation::AppendAfterStopSign, Mutation::ExecuteBehindStopSign];

/// Seeds in which each must be found. `HUNT=CountMessages HUNT_SEEDS=1000` looks longer for one.
fn seeds_for(wrong: Wrong) -> u64 {
    match wrong {
        // The acknowledgement must come late, and find that its receiver leads again.
        Wrong::Rule(Mutation::CountOlderBallot) => 3_000,
        // The logs of most runs are small: few are moved in more than one piece.
        Wrong::Rule(Mutation::LeadHalfFetched | Mutation::AdoptHalfSync) => 3_000,
        _ => 150,
    }
}

#[test]
fn whatever_is_wrong_on_purpose_is_found() {
    let paxos = Mutation::PAXOS.into_iter().map(|rule| (Wrong::Rule(rule), Mode::Crash));
    let pbft = Mutation::PBFT.into_iter().chain(Mutation::BYZANTINE_NODES);
    let pbft = pbft.map(|rule| (Wrong::Rule(rule), Mode::Byzantine));
    let nodes = Mutation::NODE.into_iter().map(|rule| (Wrong::Rule(rule), Mode::Crash));
    let mode_of = |defect| match defect {
        Defect::OneReply | Defect::Strangers => Mode::Byzantine,
        _ => Mode::Crash,
    };
    let around = Defect::ALL.into_iter().map(|defect| (Wrong::Around(defect), mode_of(defect)));
    let is_wanted =
        |(wrong, _): &(Wrong, Mode)| !matches!(wrong, Wrong::Rule(rule) if OF_CORES_ALONE.contains(rule));
    let all: Vec<(Wrong, Mode)> = paxos.chain(pbft).chain(nodes).chain(around).filter(is_wanted).collect();
    let missed = hunt(&all);
    assert!(missed.is_empty(), "{missed:?}");
}
