//! Would the schedules notice? One rule of PBFT is switched off at a time, and the same random schedules must fail.

mod pbft;

use pbft::schedule::run;
use tetrachord_consensus::Mutation;

/// How many seeds it takes until the schedules notice that a rule is off.
fn caught_after(mutation: Mutation, seeds: u64) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| {
        let outcome = std::panic::catch_unwind(|| run(seed, mutation, 2_000).0);
        match outcome {
            Ok(violations) => violations.first().map(|violation| (seed, violation.0.clone())),
            Err(_) => Some((seed, "an invariant of the replica itself".to_string())),
        }
    })
}

/// What is wrong here keeps a group from going on, and no more. Whole clusters notice: `jepsen/tests/sim.rs`.
const LIVENESS_ONLY: Mutation = Mutation::StableTooSoon;

#[test]
fn every_rule_that_is_switched_off_is_noticed() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for mutation in Mutation::PBFT.into_iter().filter(|mutation| *mutation != LIVENESS_ONLY) {
        match caught_after(mutation, 2_000) {
            Some((seed, what)) => println!("{mutation:?}: caught by seed {seed}: {what}"),
            None => missed.push(mutation),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "nobody noticed {missed:?}");
}
