//! Twins (Bano et al., 2020): two processes with one identity, each honest by itself, are together a liar that says two things
//! in one place. All ways to split the processes in a few rounds are tried, the twins apart in most of them, with each of
//! the first primaries as the one that is there twice.

mod pbft;

use pbft::Group;
use tetrachord_consensus::pbft::{Options, Window};
use tetrachord_consensus::{ReplicaId, View};

const N: usize = 4;

/// The second process of the identity that is there twice; the first has the number of the replica.
const SECOND: usize = N;

/// All ways to put the others on the side of the first or of the second twin, as bits; and everybody together.
const SPLITS: usize = (1 << (N - 1)) + 1;

fn split(group: &mut Group, twin: usize, split: usize) {
    group.heal();
    if split + 1 == SPLITS {
        return;
    }
    let others: Vec<usize> = (0..N).filter(|index| *index != twin).collect();
    let is_first =
        |at: &usize| others.iter().position(|other| other == at).is_some_and(|bit| split >> bit & 1 == 0);
    let (first, second): (Vec<usize>, Vec<usize>) = others.iter().partition(|at| is_first(at));
    group.partition(&[first, vec![twin]].concat(), &[second, vec![SECOND]].concat());
}

/// What a run has come to.
#[derive(Default)]
struct Seen {
    runs: usize,
    decided: usize,
    views: usize,
    convicted: usize,
}

fn scenario(twin: usize, splits: &[usize], seen: &mut Seen) {
    let ids: Vec<ReplicaId> = (0..N as u8).chain([twin as u8]).map(ReplicaId).collect();
    let options =
        Options { request_ticks: 200, request_ticks_max: 800, status_ticks: 40, ..Options::default() };
    let mut group = Group::with_ids(N, &ids, Window { interval: 4, length: 8 }, options);
    for at in [twin, SECOND] {
        group.nodes[at].is_twin = true;
    }
    let mut number = 0;
    for pattern in splits {
        split(&mut group, twin, *pattern);
        // Each twin is asked for something else first, so that as a primary the two propose different batches.
        let requests = [0, 1].map(|client| {
            number += 1;
            group.request(client, number, "op")
        });
        for at in 0..=N {
            let first = usize::from(at == SECOND);
            group.submit(at, &requests[first]);
            group.submit(at, &requests[1 - first]);
        }
        group.settle();
        // Long enough for a view to be given up where it does not get on.
        group.run(260);
        assert!(group.violations.is_empty(), "twin r{twin}, splits {splits:?}: {:?}", group.violations);
    }
    group.heal();
    let last = group.request(0, number + 1, "last");
    for _ in 0..40 {
        (0..=N).for_each(|at| group.submit(at, &last));
        group.run(200);
        if group.all_executed(last.names().next().expect("it has one")) {
            break;
        }
    }
    let name = last.names().next().expect("it has one");
    assert!(group.all_executed(name), "twin r{twin}, splits {splits:?}: the group does not come back");
    assert!(group.violations.is_empty(), "twin r{twin}, splits {splits:?}: {:?}", group.violations);
    seen.runs += 1;
    seen.decided += group.decided.len();
    seen.views += group.reached.views.iter().filter(|view| **view > View(0)).count();
    let convicts =
        |index: usize| group.replica(index).evidence().iter().any(|lie| lie.liar() == ReplicaId(twin as u8));
    seen.convicted += usize::from(group.honest().into_iter().any(convicts));
}

fn every_split(twin: usize) {
    let rounds: u32 = std::env::var("TWIN_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut seen = Seen::default();
    for scenario_number in 0..SPLITS.pow(rounds) {
        let splits: Vec<usize> =
            (0..rounds).map(|round| scenario_number / SPLITS.pow(round) % SPLITS).collect();
        scenario(twin, &splits, &mut seen);
    }
    println!(
        "r{twin} twice: {} runs, {} slots decided, {} views entered, {} runs in which it was convicted",
        seen.runs, seen.decided, seen.views, seen.convicted
    );
    assert!(seen.views > 0 && seen.convicted > 0, "something never happened");
}

#[test]
fn the_first_primary_is_there_twice() {
    every_split(0);
}

#[test]
fn the_second_primary_is_there_twice() {
    every_split(1);
}
