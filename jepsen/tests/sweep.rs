//! What is asked of a sweep: no fair one fails by chance, and one that is tame for a reason fails always.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::sync::atomic::{AtomicU64, Ordering};
use tetrachord_consensus::pbft::Lie;
use tetrachord_jepsen::nemesis::Nemesis;
use tetrachord_jepsen::plan::{Mode, Plan};
use tetrachord_jepsen::random::Random;
use tetrachord_jepsen::sweep::{self, INTERESTING, Missing, SEEDS_THAT_TELL, Seeds, Swept};
use tetrachord_jepsen::world::sim::Outcome;

/// A run in which what may happen happens one time in five, each thing for itself: less often than in the simulator.
fn by_chance(plan: &Plan) -> Outcome {
    let mut random = Random::new(plan.seed);
    let mut outcome = Outcome::default();
    for nemesis in &plan.nemeses {
        let may = Missing::Idle(*nemesis).suits(plan);
        // Two work together in one of five runs that have both.
        let effects = u64::from(may && random.per_mille(450));
        outcome.strikes.insert(*nemesis, (1, effects));
    }
    for lie in Lie::ALL {
        if Missing::Untold(lie).suits(plan) && random.per_mille(200) {
            outcome.lies.insert(lie, 1);
        }
    }
    for it in &INTERESTING {
        if Missing::Never(it).suits(plan) && random.per_mille(200) {
            outcome.reached.insert(it.what(), 1);
        }
    }
    outcome
}

fn swept(from: u64, count: u64, mode: Option<Mode>, runner: sweep::Runner) -> (Vec<String>, Swept) {
    let seeds = Seeds { from, count, mode };
    let ran = AtomicU64::new(0);
    let swept = sweep::run(&seeds, runner, &|| {
        ran.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(swept.totals.seeds, ran.into_inner());
    assert!(swept.totals.seeds == count + swept.extra || swept.failed.is_some());
    (swept.missing(&seeds).iter().map(ToString::to_string).collect(), swept)
}

#[test]
fn no_fair_sweep_is_too_tame() {
    let mut more = 0;
    for from in 0..100 {
        for mode in [None, Some(Mode::Crash), Some(Mode::Byzantine)] {
            let (missing, swept) = swept(from * 1_000_000, SEEDS_THAT_TELL, mode, &by_chance);
            assert!(missing.is_empty(), "seeds from {from}000000, {mode:?}: {missing:?}");
            more += swept.extra;
        }
    }
    assert!(more > 100, "chance alone would have left something out now and then: {more}");
}

#[test]
fn equal_seeds_come_to_equal_totals() {
    let totals = |_| format!("{:?}", swept(77, 300, None, &by_chance).1.totals);
    let all: Vec<String> = (0..3).map(totals).collect();
    assert!(all.iter().all(|other| *other == all[0]));
}

#[test]
fn what_never_works_is_named() {
    let idle = |plan: &Plan| {
        let mut outcome = by_chance(plan);
        outcome.strikes.remove(&Nemesis::Bridge);
        outcome.reached.remove("a log was cut back");
        outcome.lies.remove(&Lie::LeaveOut);
        outcome
    };
    let (missing, _) = swept(1, SEEDS_THAT_TELL, None, &idle);
    let named = |words: &str| missing.iter().any(|it| it.contains(words));
    let wanted = ["bridge had no effect", "a log was cut back", "the lie leave-out had no effect"];
    assert!(wanted.into_iter().all(named), "{missing:?}");
    let is_wanted = |it: &String| ["bridge", "cut back", "leave-out"].iter().any(|words| it.contains(words));
    assert!(missing.iter().all(is_wanted), "{missing:?}");
    // Two that never come together.
    let apart = |plan: &Plan| {
        let mut outcome = by_chance(plan);
        if outcome.strikes.get(&Nemesis::Halves).is_some_and(|(_, effects)| *effects > 0) {
            outcome.strikes.remove(&Nemesis::Rot);
        }
        outcome
    };
    let (missing, _) = swept(1, SEEDS_THAT_TELL, None, &apart);
    assert_eq!(missing, ["halves and rot never worked together"]);
}

#[test]
fn of_few_seeds_nothing_is_asked_and_none_are_added() {
    let (missing, swept) = swept(1, SEEDS_THAT_TELL - 1, None, &|_| Outcome::default());
    assert!(missing.is_empty() && swept.extra == 0);
}

#[test]
fn a_seed_that_fails_ends_the_sweep() {
    let fails = |plan: &Plan| {
        let violation = (plan.seed == 1_050).then(|| "something did not hold".to_string());
        Outcome { violation, ..by_chance(plan) }
    };
    let (_, swept) = swept(1_000, SEEDS_THAT_TELL, None, &fails);
    let (plan, violation) = swept.failed.unwrap();
    assert_eq!((plan.seed, violation.as_str(), swept.extra), (1_050, "something did not hold", 0));
}
