//! The simulator: seeds that must hold, seeds that replay, and defects that it must find.
//!
//! | variable | says |
//! |---|---|
//! | `SIM_SEEDS` | how many fresh seeds are run |
//! | `STRANGER_SEEDS`, `STRANGER_FROM` | how many seeds liars with groups of their own are given, and the first of them |
//! | `HUNT`, `HUNT_SEEDS` | which broken variants are looked for, and in how many seeds |
#![allow(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use tetrachord_consensus::Mutation;
use tetrachord_consensus::pbft::{Lie, Window};
use tetrachord_jepsen::nemesis::Nemesis;
use tetrachord_jepsen::plan::{Defect, Mode, Plan};
use tetrachord_jepsen::sweep::{self, Seeds, Swept, replay_command};
use tetrachord_jepsen::world::sim::{STRANGER, run};

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
    let (seeds, swept) = sweep(1, 500);
    println!("{:?} and {} seeds more", swept.totals, swept.extra);
    let missing: Vec<String> = swept.missing(&seeds).iter().map(ToString::to_string).collect();
    assert_eq!(missing, Vec::<String>::new());
}

fn asked_for(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Eight nodes, eight groups of four, and a liar in each: n2 and n6, who share what they know. Whatever the lie of a run, all of them
/// tell clients false outcomes of every group.
fn beside_strangers(seed: u64) -> Plan {
    let mut plan = Plan::draw_in(seed, Some(Mode::Byzantine));
    (plan.nodes, plan.groups, plan.replicas) = (8, 8, 4);
    (plan.keeps_view, plan.ends_silent) = (false, false);
    plan.nemeses.insert(Nemesis::Lies);
    plan.lie = Some(Lie::ALL[usize::try_from(seed).unwrap() % Lie::ALL.len()]);
    plan.let_liars_lead();
    assert_eq!(plan.faulty(), [1, 5], "every four nodes in a row have one of them");
    plan
}

#[test]
fn liars_of_other_groups_change_nothing() {
    let (from, count) = (asked_for("STRANGER_FROM", 1), asked_for("STRANGER_SEEDS", 12));
    let (mut told, mut operations) = (0, 0);
    let mut lies: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for seed in from..from + count {
        let plan = beside_strangers(seed);
        let outcome = run(&plan, false);
        assert_eq!(outcome.violation, None, "seed {seed}: {plan}, lie {:?}", plan.lie);
        let of_others = outcome.reached.get(STRANGER).unwrap_or(&0);
        told += of_others;
        operations += outcome.operations;
        for (lie, count) in outcome.lies {
            let (runs, all) = lies.entry(lie.name()).or_default();
            (*runs, *all) = (*runs + 1, *all + count);
        }
    }
    println!("{count} seeds from {from}: {operations} operations, told {told} times of other groups");
    lies.iter().for_each(|(lie, (runs, told))| println!("  {lie}: told {told} times in {runs} runs"));
    assert!(told > 40 * count, "{told}");
}

/// What it finds may have been there before the change that is tested: the seed is printed, and replays it. `SIM_SEEDS=5000` for more.
#[test]
fn a_fresh_set_of_seeds_holds() {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let from = clock * 1_000_000;
    let count = asked_for("SIM_SEEDS", 500);
    println!("{count} seeds from {from}");
    sweep(from, count);
}

#[test]
fn a_seed_replays_every_event() {
    for seed in 1..=60 {
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

/// Runs in which what is wrong can show: only a liar or a client that makes use of it shows some of it.
fn occasion(wrong: Wrong, mode: Mode, seed: u64) -> Plan {
    let mut plan = Plan::draw_in(seed, Some(mode));
    // What only a greedy client shows needs one; what has other reasons is looked for without.
    plan.nemeses.remove(&Nemesis::GreedyClient);
    let Wrong::Rule(rule) = wrong else { return plan };
    match rule {
        Mutation::IgnoreShares => {
            plan.nemeses.insert(Nemesis::GreedyClient);
            // A state with all its sessions would take longer to be put in place than a run waits.
            plan.row_micros = 0;
        }
        // An acknowledgement must come late, and find that its receiver leads again, over another log.
        Mutation::CountOlderBallot => {
            alone(&mut plan, Nemesis::OneWay);
            plan.nemeses.extend([Nemesis::Halves, Nemesis::Isolate, Nemesis::Delay, Nemesis::Pause]);
            (plan.nodes, plan.replicas, plan.groups) = (3, 3, 1);
            (plan.millis, plan.fault_every, plan.think_micros) = (12_000, 500, 0);
        }
        // What nobody signed must be ordered.
        Mutation::RequestsUnchecked => {
            plan.nemeses.insert(Nemesis::Lies);
            (plan.lie, plan.keeps_view, plan.ends_silent) = (Some(Lie::Forge), false, false);
        }
        // What was sent must still be on its way when it is cancelled.
        Mutation::ForgetCancels => plan.deadline_millis = 400,
        Mutation::AnySignOfLife => {
            plan.nemeses.extend([Nemesis::Lies, Nemesis::Kill]);
            (plan.lie, plan.keeps_view, plan.ends_silent) = (Some(Lie::EndlessState), false, false);
        }
        Mutation::RestartWait => {
            alone(&mut plan, Nemesis::Lies);
            (plan.lie, plan.clients, plan.think_micros) = (Some(Lie::LeaveOut), 4, 0);
            // Whoever asks for a batch must wait longer for it than from one tick to the next.
            (plan.window, plan.delay_micros, plan.request_millis) = (Window::default(), 6_000, 1_000);
        }
        // Two clients that think make few batches.
        Mutation::PaceOfManyAlone => {
            alone(&mut plan, Nemesis::Lies);
            (plan.lie, plan.clients, plan.think_micros) = (Some(Lie::OrderSlowly), 2, 300_000);
            (plan.shows_all, plan.request_millis) = (true, 1_000);
        }
        Mutation::IgnorePassedOn => {
            alone(&mut plan, Nemesis::StaleRequests);
            (plan.keeps_view, plan.think_micros) = (true, 50_000);
        }
        // The copy must run on its own for a while, be started again, and be heard then.
        Mutation::ForgetOpenings => {
            alone(&mut plan, Nemesis::OldCopy);
            (plan.millis, plan.fault_every, plan.think_micros) = (8_000, 100, 300_000);
        }
        Mutation::OneLine => {
            alone(&mut plan, Nemesis::Flood);
            (plan.keeps_view, plan.think_micros) = (true, 5_000);
            (plan.flood_requests, plan.fault_every) = (250, 150);
        }
        // Views that failed, and nobody that lies.
        Mutation::PatienceOnlyGrows => {
            alone(&mut plan, Nemesis::Halves);
            plan.nemeses.extend([Nemesis::MajoritiesRing, Nemesis::OneWay]);
            (plan.nodes, plan.replicas, plan.groups, plan.ends_silent) = (4, 4, 1, true);
            (plan.millis, plan.fault_every) = (8_000, 200);
            (plan.window, plan.think_micros, plan.request_millis) = (Window::default(), 50_000, 1_000);
        }
        _ => {}
    }
    plan
}

/// Nothing else goes wrong.
fn alone(plan: &mut Plan, nemesis: Nemesis) {
    plan.nemeses = [nemesis].into();
    (plan.row_micros, plan.keeps_view, plan.ends_silent) = (0, false, false);
    plan.millis = 1_500;
}

/// How many seeds it takes to notice what is wrong. The same run holds with nothing wrong.
fn found_after(wrong: Wrong, mode: Mode, seeds: u64) -> Option<(u64, String)> {
    (1..=seeds).find_map(|seed| {
        let plan = occasion(wrong, mode, seed);
        let broken = match wrong {
            Wrong::Rule(mutation) => Plan { mutation, ..plan.clone() },
            Wrong::Around(defect) => Plan { defect, ..plan.clone() },
        };
        let outcome = std::panic::catch_unwind(|| run(&broken, false).violation);
        let what = outcome.unwrap_or_else(|_| Some("an invariant inside a replica".to_string()))?;
        let control = std::panic::catch_unwind(|| run(&plan, false).violation);
        assert_eq!(control.ok(), Some(None), "seed {seed} fails without {wrong:?}: {plan}");
        Some((seed, what.lines().next().unwrap_or_default().chars().take(120).collect()))
    })
}

/// Hunts for all of these on all processors; says after how many seeds each was found, and returns those that were not.
fn hunt(all: &[(Wrong, Mode)]) -> Vec<Wrong> {
    let only = std::env::var("HUNT").unwrap_or_default();
    let is_wanted = |(wrong, _): &&(Wrong, Mode)| {
        only.is_empty() || only.split(',').any(|name| format!("{wrong:?}").contains(name))
    };
    let wanted: Vec<(Wrong, Mode)> = all.iter().filter(is_wanted).copied().collect();
    let (next, missed) = (AtomicU64::new(0), std::sync::Mutex::new(Vec::new()));
    let work = || {
        while let Some((wrong, mode)) = wanted.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let seeds = asked_for("HUNT_SEEDS", seeds_for(*wrong));
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

/// What a liar or a client needs to stop a group for good, or to take views from honest primaries. The others of
/// [`Mutation::PBFT_LIVENESS`] are about memory, room and chances that are rare, which the cores alone show
/// (`consensus/tests/pbft_liveness.rs`).
const LIVENESS: [Mutation; 4] =
    [Mutation::RestartWait, Mutation::PaceOfManyAlone, Mutation::IgnorePassedOn, Mutation::PatienceOnlyGrows];

/// Seeds in which each must be found. `HUNT=CountMessages HUNT_SEEDS=1000` looks longer for one.
fn seeds_for(wrong: Wrong) -> u64 {
    match wrong {
        // The acknowledgement must come late, and find that its receiver leads again.
        Wrong::Rule(Mutation::CountOlderBallot) => 3_000,
        // The logs of most runs are small: few are moved in more than one piece.
        Wrong::Rule(Mutation::LeadHalfFetched | Mutation::AdoptHalfSync) => 3_000,
        // Views must fail again and again before the rest, which is seldom.
        Wrong::Rule(Mutation::PatienceOnlyGrows) => 3_000,
        _ => 150,
    }
}

#[test]
fn whatever_is_wrong_on_purpose_is_found() {
    let paxos = Mutation::PAXOS.into_iter().map(|rule| (Wrong::Rule(rule), Mode::Crash));
    let pbft = Mutation::PBFT.into_iter().chain(Mutation::BYZANTINE_NODES).chain(LIVENESS);
    let pbft = pbft.chain(Mutation::BYZANTINE_CLIENT);
    let pbft = pbft.map(|rule| (Wrong::Rule(rule), Mode::Byzantine));
    let nodes =
        Mutation::NODE.into_iter().chain(Mutation::CLIENT).map(|rule| (Wrong::Rule(rule), Mode::Crash));
    let around = Defect::ALL.into_iter().map(|defect| (Wrong::Around(defect), Mode::Crash));
    let is_wanted =
        |(wrong, _): &(Wrong, Mode)| !matches!(wrong, Wrong::Rule(rule) if OF_CORES_ALONE.contains(rule));
    let all: Vec<(Wrong, Mode)> = paxos.chain(pbft).chain(nodes).chain(around).filter(is_wanted).collect();
    let missed = hunt(&all);
    assert!(missed.is_empty(), "{missed:?}");
}
