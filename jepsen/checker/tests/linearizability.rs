//! The judge is judged: histories known to be good and known to be bad, a brute-force judge on thousands of small random
//! ones, and sizes at which it must still answer.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::time::Instant;
use tetrachord_checker::{Action, History, Limits, Operation, Value, Verdict, check, counterexample, report};

fn operation(process: u64, action: Action, call: u64, end: Option<u64>) -> Operation {
    Operation { process, key: "x".to_string(), action, call, end, line: 0 }
}

fn put(value: &str) -> Action {
    Action::Put(value.into())
}

fn get(value: Option<&str>) -> Action {
    Action::Get(value.map(Value::from))
}

fn cas(expect: Option<&str>, value: Option<&str>, swapped: bool) -> Action {
    Action::Cas(expect.map(Value::from), value.map(Value::from), swapped)
}

fn history(operations: Vec<Operation>) -> History {
    History::new(operations, 0).unwrap()
}

fn is_linearizable(operations: Vec<Operation>) -> bool {
    match check(&history(operations), Limits::default()).verdict {
        Verdict::Linearizable => true,
        Verdict::Violation { .. } => false,
        Verdict::Undecided { .. } => panic!("undecided"),
    }
}

#[test]
fn histories_known_to_be_good() {
    assert!(is_linearizable(vec![]));
    // A read that overlaps a write may see it or not.
    for seen in [None, Some("1")] {
        assert!(is_linearizable(vec![
            operation(1, put("1"), 0, Some(10)),
            operation(2, get(seen), 5, Some(6))
        ]));
    }
    // Two overlapping writes may come in either order, but all readers agree on one.
    let two = |a, b| {
        vec![
            operation(1, put("1"), 0, Some(10)),
            operation(2, put("2"), 0, Some(10)),
            operation(3, get(Some(a)), 11, Some(12)),
            operation(4, get(Some(b)), 13, Some(14)),
        ]
    };
    assert!(is_linearizable(two("1", "1")) && is_linearizable(two("2", "2")));
    // An unknown write may take effect long after its call, or never.
    for seen in [None, Some("1")] {
        let late = operation(2, get(seen), 1000, Some(1001));
        assert!(is_linearizable(vec![
            operation(1, put("1"), 0, None),
            operation(3, get(None), 500, Some(501)),
            late
        ]));
    }
    assert!(is_linearizable(vec![
        operation(1, Action::Incr(2, 2), 0, Some(5)),
        operation(2, Action::Incr(3, 5), 0, Some(5)),
        operation(3, Action::Append("0".to_string()), 6, Some(7)),
        operation(3, get(Some("50")), 8, Some(9)),
        operation(3, cas(Some("50"), None, true), 10, Some(11)),
        operation(3, get(None), 12, Some(13)),
    ]));
}

#[test]
fn histories_known_to_be_bad() {
    // A stale read.
    assert!(!is_linearizable(vec![
        operation(1, put("1"), 0, Some(1)),
        operation(1, put("2"), 2, Some(3)),
        operation(2, get(Some("1")), 4, Some(5)),
    ]));
    // Two readers that disagree about the order of two writes.
    assert!(!is_linearizable(vec![
        operation(1, put("1"), 0, Some(10)),
        operation(2, put("2"), 0, Some(10)),
        operation(3, get(Some("1")), 11, Some(12)),
        operation(4, get(Some("2")), 13, Some(14)),
    ]));
    // Two compare-and-sets that both won.
    assert!(!is_linearizable(vec![
        operation(1, cas(None, Some("1"), true), 0, Some(10)),
        operation(2, cas(None, Some("2"), true), 0, Some(10)),
    ]));
    // A lost increment, a value from nowhere, an unknown write that takes effect before its call, or twice.
    assert!(!is_linearizable(vec![
        operation(1, Action::Incr(1, 1), 0, Some(10)),
        operation(2, Action::Incr(1, 1), 0, Some(10)),
    ]));
    assert!(!is_linearizable(vec![operation(1, get(Some("7")), 0, Some(1))]));
    assert!(!is_linearizable(vec![
        operation(1, get(Some("1")), 0, Some(1)),
        operation(2, put("1"), 2, None)
    ]));
    assert!(!is_linearizable(vec![
        operation(1, put("1"), 0, None),
        operation(2, get(Some("1")), 1, Some(2)),
        operation(2, put("2"), 3, Some(4)),
        operation(2, get(Some("1")), 5, Some(6)),
    ]));
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn text<'a>(state: &'a Option<Value>, absent: &'a str) -> &'a str {
    state.as_ref().map_or(absent, Value::letters)
}

/// Tries every order of every choice of unknown operations.
fn brute_force(operations: &[Operation], taken: &mut Vec<bool>, state: Option<Value>) -> bool {
    let open = |taken: &[bool]| (0..operations.len()).filter(|index| !taken[*index]).collect::<Vec<_>>();
    let left = open(taken);
    if left.iter().all(|index| operations[*index].end.is_none()) {
        return true;
    }
    let first_answer = left.iter().filter_map(|index| operations[*index].end).min().unwrap();
    for index in left {
        let operation = &operations[index];
        if operation.call > first_answer {
            continue;
        }
        let known = operation.end.is_some();
        let after = match &operation.action {
            Action::Get(seen) => (!known || *seen == state).then(|| state.clone()),
            Action::Put(value) => Some(Some(value.clone())),
            Action::Delete => Some(None),
            Action::Cas(expect, value, swapped) => {
                let equal = *expect == state;
                (!known || equal == *swapped).then(|| if equal { value.clone() } else { state.clone() })
            }
            Action::Append(tail) => Some(Some(Value::Text(format!("{}{tail}", text(&state, ""))))),
            Action::Incr(by, sum) => match text(&state, "0").parse::<i64>() {
                Ok(before) if !known || before + by == *sum => {
                    Some(Some(Value::Text((before + by).to_string())))
                }
                Ok(_) => None,
                Err(_) => (!known).then(|| state.clone()),
            },
        };
        if let Some(after) = after {
            taken[index] = true;
            let found = brute_force(operations, taken, after);
            taken[index] = false;
            if found {
                return true;
            }
        }
    }
    false
}

fn random_history(random: &mut Random) -> Vec<Operation> {
    let count = 2 + random.below(6);
    let value = |random: &mut Random| random.below(3).to_string();
    let maybe = |random: &mut Random| (random.below(3) > 0).then(|| Value::Text(random.below(3).to_string()));
    (0..count)
        .map(|process| {
            let call = random.below(12);
            let end = (random.below(5) > 0).then(|| call + 1 + random.below(8));
            let action = match random.below(8) {
                0 | 1 => Action::Put(value(random).into()),
                2..=4 => Action::Get(maybe(random)),
                5 => Action::Cas(maybe(random), maybe(random), random.below(2) == 0),
                6 => Action::Incr(1, random.below(4) as i64),
                _ => {
                    if random.below(2) == 0 {
                        Action::Delete
                    } else {
                        Action::Append(value(random))
                    }
                }
            };
            operation(process, action, call, end)
        })
        .collect()
}

#[test]
fn the_search_agrees_with_brute_force_on_ten_thousand_small_histories() {
    let mut random = Random(7);
    let mut good = 0;
    for round in 0..10_000 {
        let operations = random_history(&mut random);
        let expected = brute_force(&operations, &mut vec![false; operations.len()], None);
        assert_eq!(is_linearizable(operations.clone()), expected, "round {round}: {operations:#?}");
        good += usize::from(expected);
    }
    assert!((1_000..9_000).contains(&good), "both verdicts occur often: {good} good");
}

/// Nothing but appending, in which case the search looks ahead at what was seen last.
fn random_growth(random: &mut Random) -> Vec<Operation> {
    let text = |random: &mut Random, length: u64| -> String {
        (0..length).map(|_| if random.below(2) == 0 { 'a' } else { 'b' }).collect()
    };
    (0..2 + random.below(6))
        .map(|process| {
            let call = random.below(12);
            let end = (random.below(5) > 0).then(|| call + 1 + random.below(8));
            let length = random.below(4);
            let action = match random.below(2) {
                0 => Action::Get((length > 0).then(|| text(random, length).into())),
                _ => Action::Append(text(random, u64::from(length > 0))),
            };
            operation(process, action, call, end)
        })
        .collect()
}

#[test]
fn the_search_agrees_with_brute_force_on_twenty_thousand_values_that_grow() {
    let mut random = Random(13);
    let mut good = 0;
    for round in 0..20_000 {
        let operations = random_growth(&mut random);
        let expected = brute_force(&operations, &mut vec![false; operations.len()], None);
        assert_eq!(is_linearizable(operations.clone()), expected, "round {round}: {operations:#?}");
        good += usize::from(expected);
    }
    assert!((2_000..18_000).contains(&good), "both verdicts occur often: {good} good");
}

#[test]
fn every_counterexample_is_itself_a_violation_and_names_its_culprit() {
    let mut random = Random(11);
    let mut found = 0;
    while found < 500 {
        let operations = random_history(&mut random);
        let whole = history(operations.clone());
        if !matches!(check(&whole, Limits::default()).verdict, Verdict::Violation { .. }) {
            continue;
        }
        found += 1;
        let example = counterexample::find(&whole, "x").expect("a violation has a counterexample");
        assert!(example.culprit < example.operations.len());
        assert!(example.operations.len() <= operations.len());
        if !example.from_any_state {
            assert!(!is_linearizable(example.operations.clone()), "{example:#?}");
        }
        let page = report::html(&example, "test");
        assert!(page.contains("<svg") && page.contains("culprit") && page.contains("Not linearizable"));
    }
}

#[test]
fn a_stale_read_in_a_long_history_is_cut_down_to_a_few_operations_and_explained() {
    let mut operations = simulate(&mut Random(3), 1, 2_000, 5, 0);
    let last = operations.iter().filter_map(|operation| operation.end).max().unwrap();
    operations.push(operation(90, put("final"), last + 1, Some(last + 2)));
    operations.push(operation(91, get(Some("v3")), last + 3, Some(last + 4)));
    for operation in &mut operations {
        operation.key = "x".to_string();
    }
    let whole = history(operations);
    assert_eq!(check(&whole, Limits::default()).verdict, Verdict::Violation { key: "x".to_string() });
    let example = counterexample::find(&whole, "x").unwrap();
    assert!(example.operations.len() <= 3, "{} operations", example.operations.len());
    assert!(example.explanation.contains("\"final\""), "{}", example.explanation);
    assert!(example.explanation.contains("process 91"));
}

/// Clients of a store that is linearizable by construction: each operation takes effect at a moment of its own.
fn simulate(
    random: &mut Random,
    keys: u64,
    count: u64,
    processes: u64,
    unknown_per_mille: u64,
) -> Vec<Operation> {
    let mut operations = Vec::new();
    let mut free_at = vec![0u64; processes as usize];
    let mut names: Vec<u64> = (0..processes).collect();
    let mut plan = Vec::new();
    for index in 0..count {
        let process = (index % processes) as usize;
        let call = free_at[process] + 1 + random.below(20);
        let moment = call + 1 + random.below(50);
        let end = moment + 1 + random.below(50);
        free_at[process] = end;
        plan.push((moment, call, end, process, random.below(keys), index));
    }
    plan.sort_unstable();
    let mut state: Vec<Option<Value>> = vec![None; keys as usize];
    for (_, call, end, process, key, index) in plan {
        let value = &mut state[key as usize];
        let is_unknown = random.below(1000) < unknown_per_mille;
        let takes_effect = !is_unknown || random.below(2) == 0;
        let action = match random.below(4) {
            0 => Action::Put(format!("v{index}").into()),
            1 => {
                let expect = if random.below(2) == 0 { value.clone() } else { Some("no".into()) };
                let swapped = expect == *value;
                Action::Cas(expect, Some(format!("c{index}").into()), swapped)
            }
            _ => Action::Get(value.clone()),
        };
        if takes_effect {
            match &action {
                Action::Put(new) => *value = Some(new.clone()),
                Action::Cas(_, new, true) => value.clone_from(new),
                _ => {}
            }
        }
        let name = names[process];
        if is_unknown {
            names[process] += processes;
        }
        let end = (!is_unknown).then_some(end);
        operations.push(Operation { process: name, key: format!("k{key}"), action, call, end, line: 0 });
    }
    operations
}

#[test]
fn large_histories_are_judged() {
    for (keys, count, processes, unknown) in [(100, 100_000, 20, 10), (1, 10_000, 10, 0), (1, 10_000, 10, 10)]
    {
        let whole = history(simulate(&mut Random(5), keys, count, processes, unknown));
        let started = Instant::now();
        let judgement = check(&whole, Limits::default());
        println!(
            "{count} operations, {keys} keys, {processes} processes, {} unknown: {:?} after {} ms, {} configurations",
            whole.unknown(),
            judgement.verdict,
            started.elapsed().as_millis(),
            judgement.configurations
        );
        assert_eq!(judgement.verdict, Verdict::Linearizable);
    }
}

#[test]
fn beyond_its_bound_the_judge_says_so() {
    let whole = history(simulate(&mut Random(5), 1, 1_000, 10, 0));
    let judgement = check(&whole, Limits { configurations: 50 });
    assert_eq!(judgement.verdict, Verdict::Undecided { key: "k0".to_string(), configurations: 50 });
}

/// Eight clients write values that are all different, so that a key has tens of thousands of states.
fn busy_key(count: u64, unknown_per_mille: u64) -> (Vec<Operation>, u64) {
    let mut operations = simulate(&mut Random(9), 1, count, 8, unknown_per_mille);
    operations.iter_mut().for_each(|operation| operation.key = "x".to_string());
    let last = operations.iter().filter_map(|operation| operation.end).max().unwrap();
    (operations, last)
}

fn example_of(mut operations: Vec<Operation>) -> counterexample::Counterexample {
    for (index, operation) in operations.iter_mut().enumerate() {
        operation.line = index + 1;
    }
    let whole = history(operations);
    assert_eq!(check(&whole, Limits::default()).verdict, Verdict::Violation { key: "x".to_string() });
    counterexample::find(&whole, "x").unwrap()
}

#[test]
fn one_stale_read_among_many_values_is_cut_down_and_its_writer_is_named() {
    let (mut operations, last) = busy_key(25_000, 0);
    let old = operations.iter().position(|operation| matches!(operation.action, Action::Put(_))).unwrap();
    let (line, Action::Put(value)) = (old + 1, operations[old].action.clone()) else { unreachable!() };
    operations.push(operation(90, put("final"), last + 1, Some(last + 2)));
    operations.push(operation(91, Action::Get(Some(value.clone())), last + 3, Some(last + 4)));
    let example = example_of(operations);
    assert_eq!(example.operations.len(), 2, "{}", example.explanation);
    let words =
        format!("written last by `put {value}` of process {} (line {line})", example.origin.unwrap().process);
    assert!(example.explanation.contains(&words), "{}", example.explanation);
    assert!(example.explanation.contains("`put \"final\"` of process 90 (line 25001) came after that"));
    assert_eq!(example.possible, ["\"final\""]);
}

#[test]
fn a_stale_read_in_the_midst_of_others_is_cut_down_too() {
    let (mut operations, _) = busy_key(25_000, 0);
    let before = operations.iter().position(|operation| matches!(operation.action, Action::Put(_))).unwrap();
    let old = operations[before].clone();
    let later = |operation: &Operation| operation.call > 100_000 && operation.end.is_some();
    let late = operations.iter().position(|it| later(it) && matches!(it.action, Action::Get(_))).unwrap();
    let Action::Put(value) = old.action else { unreachable!() };
    operations[late].action = Action::Get(Some(value));
    let (process, count) = (operations[late].process, operations.len());
    let example = example_of(operations);
    assert_eq!(example.operations[example.culprit].process, process);
    let unknown = example.operations.iter().filter(|operation| operation.end.is_none()).count();
    let rest = example.operations.len() - unknown;
    assert!(
        rest <= 8 && example.operations.len() < count / 50,
        "{rest} and {unknown}: {}",
        example.explanation
    );
}

#[test]
fn a_lost_increment_after_many_is_cut_down() {
    let count = 10_000;
    let incr = |index: u64| {
        let sum = i64::try_from(index + 1).unwrap();
        operation(index % 5, Action::Incr(1, sum), 20 * index, Some(20 * index + 90))
    };
    let mut operations: Vec<Operation> = (0..count).map(incr).collect();
    operations.push(operation(20_000, Action::Incr(1, 0), 50_000, None));
    operations.push(operation(20_001, get(Some("9000")), 1_000_000, Some(1_000_001)));
    let example = example_of(operations);
    assert!(
        example.operations.len() <= 7,
        "{} operations: {}",
        example.operations.len(),
        example.explanation
    );
    assert!(example.explanation.contains("written last by `incr 1 = 9000`"), "{}", example.explanation);
    assert_eq!(example.possible, ["\"10000\""]);
}

#[test]
fn a_value_from_nowhere_is_said_to_be_one() {
    let (mut operations, last) = busy_key(5_000, 0);
    operations.push(operation(91, get(Some("nobody's")), last + 3, Some(last + 4)));
    let example = example_of(operations);
    assert_eq!(example.operations.len(), 1);
    assert!(example.explanation.contains("nothing explains this answer"), "{}", example.explanation);
    assert!(example.explanation.contains("Nobody wrote what it saw."), "{}", example.explanation);
}

/// Where appends are, the beginning is never cut.
#[test]
fn what_could_not_be_made_small_is_said_and_a_picture_of_a_part_says_so() {
    let mut operations: Vec<Operation> = (0..600)
        .map(|index| operation(1, Action::Append("a".to_string()), 10 * index, Some(10 * index + 5)))
        .collect();
    operations.push(operation(2, get(Some("b")), 3, Some(7_000)));
    operations.sort_by_key(|operation| operation.call);
    let example = example_of(operations);
    assert_eq!(example.operations.len(), 601);
    assert!(example.explanation.contains("these 601 operations"), "{}", example.explanation);
    assert!(example.explanation.contains("Fewer of them may be enough"), "{}", example.explanation);
    let page = report::html(&example, "test");
    assert!(page.contains("Only the last 120 of the 601 operations are shown."), "{page}");
    assert_eq!(page.matches("<rect").count(), 120, "the culprit was called early and is there all the same");
    assert_eq!(page.matches(r#"<rect class="culprit""#).count(), 1);
}
