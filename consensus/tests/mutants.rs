//! Would the schedules notice? One rule is switched off at a time, and the same random schedules must fail.

mod harness;

use harness::schedule::run;
use tetrachord_consensus::Mutation;

/// How many seeds it takes until the schedules notice that a rule is off.
fn caught_after(mutation: Mutation, seeds: u64) -> Option<u64> {
    (0..seeds).find(|seed| {
        let outcome = std::panic::catch_unwind(|| run(*seed, mutation, 3000).0);
        outcome.map_or(true, |violations| !violations.is_empty())
    })
}

#[test]
fn every_rule_that_is_switched_off_is_noticed() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for mutation in Mutation::PAXOS {
        match caught_after(mutation, 10_000) {
            Some(seed) => println!("{mutation:?}: caught by seed {seed}"),
            None => missed.push(mutation),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "nobody noticed {missed:?}");
}
