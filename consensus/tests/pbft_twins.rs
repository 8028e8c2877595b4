//! Twins (Bano et al., 2020): two processes with one identity, each honest by itself, are together a liar that says two things
//! in one place. All ways to split the processes in a few rounds are tried, the twins apart in most of them, with each of
//! the first primaries as the one that is there twice.

mod pbft;

use pbft::Group;
use tetrachord_consensus::pbft::{Options, Window};
use tetrachord_consensus::{ReplicaId, View};

/// A group in which one identity is there twice: the first process has the number of the replica, the second comes behind all.
#[derive(Clone, Copy)]
struct Twins {
    n: usize,
    twin: usize,
}

impl Twins {
    fn second(self) -> usize {
        self.n
    }

    /// All ways to put the others on the side of the first or of the second twin, as bits; and everybody together.
    fn splits(self) -> usize {
        (1 << (self.n - 1)) + 1
    }
}

fn split(group: &mut Group, twins: Twins, split: usize) {
    group.heal();
    if split + 1 == twins.splits() {
        return;
    }
    let Twins { n, twin } = twins;
    let others: Vec<usize> = (0..n).filter(|index| *index != twin).collect();
    let is_first =
        |at: &usize| others.iter().position(|other| other == at).is_some_and(|bit| split >> bit & 1 == 0);
    let (first, second): (Vec<usize>, Vec<usize>) = others.iter().partition(|at| is_first(at));
    group.partition(&[first, vec![twin]].concat(), &[second, vec![twins.second()]].concat());
}

/// What a run has come to.
#[derive(Default)]
struct Seen {
    runs: usize,
    decided: usize,
    views: usize,
    convicted: usize,
}

fn scenario(twins: Twins, splits: &[usize], seen: &mut Seen) {
    let Twins { n, twin } = twins;
    let ids: Vec<ReplicaId> = (0..n as u8).chain([twin as u8]).map(ReplicaId).collect();
    let options =
        Options { request_ticks: 200, request_ticks_max: 800, status_ticks: 40, ..Options::default() };
    let mut group = Group::with_ids(n, &ids, Window { interval: 4, length: 8 }, options);
    for at in [twin, twins.second()] {
        group.nodes[at].is_twin = true;
    }
    let mut number = 0;
    for pattern in splits {
        split(&mut group, twins, *pattern);
        // Each twin is asked for something else first, so that as a primary the two propose different batches.
        let requests = [0, 1].map(|client| {
            number += 1;
            group.request(client, number, "op")
        });
        for at in 0..=n {
            let first = usize::from(at == twins.second());
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
        (0..=n).for_each(|at| group.submit(at, &last));
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

fn every_split(twins: Twins, rounds: u32) {
    let more: u32 = std::env::var("MORE_TWIN_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let (rounds, splits) = (rounds + more, twins.splits());
    let mut seen = Seen::default();
    for number in 0..splits.pow(rounds) {
        let splits: Vec<usize> = (0..rounds).map(|round| number / splits.pow(round) % splits).collect();
        scenario(twins, &splits, &mut seen);
    }
    println!(
        "r{} of {} twice: {} runs of {rounds} rounds, {} slots decided, {} views entered, {} runs in which it was convicted",
        twins.twin, twins.n, seen.runs, seen.decided, seen.views, seen.convicted
    );
    assert!(seen.views > 0 && seen.convicted > 0, "something never happened");
}

#[test]
fn the_first_primary_of_four_is_there_twice() {
    every_split(Twins { n: 4, twin: 0 }, 4);
}

#[test]
fn the_second_primary_of_four_is_there_twice() {
    every_split(Twins { n: 4, twin: 1 }, 4);
}

/// In epoch 4 the first primary of seven is replica 4.
#[test]
fn the_first_primary_of_seven_is_there_twice() {
    every_split(Twins { n: 7, twin: 4 }, 2);
}
