//! Disks that hang or are almost full, and what may wait for them in memory.

use super::{answered, end, newest, replica, run, status};
use crate::nemesis::Nemesis;
use crate::plan::{Mode, Plan};
use crate::workload::Workload;
use crate::world::sim::{Event, World};
use tetrachord::group::Group;
use tetrachord_consensus::Mutation;

/// The disk of the replica that orders hangs for a minute; returns how long nobody else did, in milliseconds, and how many operations
/// were answered in each second.
fn beside_a_hung_disk(mode: Mode, keys: u64, mutation: Mutation) -> (Option<u64>, Vec<u64>) {
    let think_micros = if mode == Mode::Byzantine { 50_000 } else { 10_000 };
    // While a state is taken, clients write less than is pinned, as with the defaults.
    let pinned_bytes = 200_000;
    let plan = Plan { keys, mutation, think_micros, pinned_bytes, ..Plan::quiet(mode, 1) };
    let mut world = World::new(&plan, false);
    run(&mut world, 3_000);
    let orders = |world: &World| {
        let leads = |index: &usize| replica(world, *index).is_some_and(Group::is_leading);
        let by_ballot = |index: &usize| replica(world, *index).map(Group::view);
        (0..world.nodes.len()).filter(leads).max_by_key(by_ballot)
    };
    let victim = orders(&world).expect("somebody orders");
    world.nodes[victim].hung_until = world.now + 60_000_000;
    let (mut another_after, mut seconds, mut before) = (None, Vec::new(), answered(&world));
    for moment in 1..=60_000 / 100 {
        run(&mut world, 100);
        let others = (0..world.nodes.len()).filter(|index| *index != victim);
        let is_another = others.clone().any(|index| replica(&world, index).is_some_and(Group::is_leading));
        if is_another && another_after.is_none() {
            another_after = Some(moment * 100);
        }
        if moment % 10 == 0 {
            let now = answered(&world);
            seconds.push(now - before);
            before = now;
        }
    }
    assert!(world.strikes[&Nemesis::HungDisk].1 > 0, "it hung");
    run(&mut world, 20_000);
    let lag = newest(&world).abs_diff(replica(&world, victim).expect("it runs").machine().reached().slot);
    assert!(lag < 200, "it has caught up but for {lag} slots");
    (another_after, seconds)
}

/// What is bounded in memory is looked at all the time, by the invariants.
#[test]
fn a_hung_disk_stops_a_group_for_seconds_and_fills_no_memory() {
    for mode in [Mode::Crash, Mode::Byzantine] {
        for keys in [4, 500] {
            let (another_after, seconds) = beside_a_hung_disk(mode, keys, Mutation::None);
            println!(
                "{mode:?}, {keys} keys: another after {another_after:?} ms, answers by second {seconds:?}"
            );
            assert!(another_after.is_some_and(|millis| millis <= 5_000), "{another_after:?}");
            assert!(seconds[6..].iter().all(|count| *count > 0), "{seconds:?}");
        }
    }
    let (another_after, _) = beside_a_hung_disk(Mode::Crash, 500, Mutation::LeadWithoutDisk);
    assert!(another_after.is_none_or(|millis| millis > 5_000), "with the rule off nobody else leads soon");
}

/// The tree of one backup takes nothing for a long time, and the others go on: what waits for it stays small, it goes on to vote, and
/// comes back.
#[test]
fn a_backup_whose_tree_hangs_keeps_little_in_memory() {
    let plan = Plan { think_micros: 2_000, pinned_bytes: 24_000, ..Plan::quiet(Mode::Byzantine, 10) };
    let mut world = World::new(&plan, false);
    run(&mut world, 1_000);
    // Whatever is written next, the tree never gets to it.
    world.queue.retain(|_, event| !matches!(event, Event::StateWritten { node: 3, .. }));
    world.nodes[3].is_writing = true;
    let (mut waiting, mut log) = (0, 0);
    for _ in 0..100 {
        run(&mut world, 100);
        let group = replica(&world, 3).expect("it runs");
        waiting = waiting.max(group.decided_and_waiting());
        log = log.max(group.engine().log_bytes);
    }
    let (first, last) = (status(&world, 3), status(&world, 0));
    println!(
        "{waiting} slots wait, {log} bytes of log; {} of {} slots are applied",
        first.applied, last.applied
    );
    assert!(last.applied > first.applied + 500, "the others do not wait for it");
    assert!(waiting <= 2 * 32, "{waiting} slots wait to be executed");
    let life = world.nodes[3].life;
    world.after(1, Event::StateWritten { node: 3, life });
    end(&mut world);
}

fn leader(world: &World) -> Option<usize> {
    (0..world.nodes.len()).find(|index| replica(world, *index).is_some_and(Group::is_leading))
}

fn fill_disk(world: &mut World, index: usize) {
    world.nodes[index].is_short = true;
    world.tell_room(index);
}

#[test]
fn a_leader_whose_disk_is_almost_full_gives_the_leadership_away() {
    let mut world = World::new(&Plan::quiet(Mode::Crash, 1), false);
    run(&mut world, 2_000);
    let before = leader(&world).expect("somebody leads");
    fill_disk(&mut world, before);
    run(&mut world, 1_000);
    assert!(leader(&world).is_some_and(|now| now != before), "{:?}", leader(&world));
    let had = answered(&world);
    run(&mut world, 1_000);
    assert!(answered(&world) > had + 50);
    end(&mut world);
}

#[test]
fn where_all_disks_are_almost_full_leadership_does_not_go_in_circles() {
    let mut world = World::new(&Plan { think_micros: 100_000, ..Plan::quiet(Mode::Crash, 1) }, false);
    run(&mut world, 2_000);
    let mut leaders = Vec::new();
    for _ in 0..50 {
        (0..3).for_each(|index| fill_disk(&mut world, index));
        run(&mut world, 100);
        leaders.extend(leader(&world));
    }
    leaders.dedup();
    assert!((2..=4).contains(&leaders.len()), "{leaders:?}");
}

/// What is overwritten takes no room in the state that waits for the tree; the log behind it does.
#[test]
fn the_log_of_one_key_that_is_written_over_and_over_stays_small_in_memory() {
    let plan = Plan { clients: 8, keys: 1, workload: Workload::Counter, ..Plan::quiet(Mode::Crash, 1) };
    let plan = Plan { pinned_bytes: 4_000, log_bytes_max: 1 << 20, ..plan };
    let mut world = World::new(&plan, false);
    run(&mut world, 2_000);
    let (mut most, before) = (0, answered(&world));
    for _ in 0..400 {
        run(&mut world, 10);
        let logs = (0..3).filter_map(|index| replica(&world, index)).map(|group| group.engine().log_bytes);
        most = logs.fold(most, usize::max);
    }
    assert!(answered(&world) > before + 500, "{} answers", answered(&world) - before);
    println!("{most} bytes");
    // What is kept for others, four times the limit, and what comes while the tree is brought up to date.
    assert!(most > 80_000 && most < 200_000, "{most} bytes");
}
