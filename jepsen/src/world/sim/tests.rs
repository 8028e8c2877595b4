//! Runs that are told step by step: one fault, one bound.

use super::World;
use crate::plan::{Mode, Plan};
use tetrachord::group::Group;

/// The replica of the first group on a node.
fn replica(world: &World, index: usize) -> Option<&Group> {
    world.nodes[index].core.as_ref()?.groups().next()
}

fn run(world: &mut World, millis: u64) {
    let end = world.now + millis * 1_000;
    world.run_until(end);
    assert_eq!(world.violation, None);
}

/// The latest slot that any replica has applied.
fn newest(world: &World) -> u64 {
    let groups = (0..world.nodes.len()).filter_map(|index| replica(world, index));
    groups.map(|group| group.machine().applied().slot).max().unwrap_or(0)
}

/// Putting a large state in place takes long, and meanwhile clients write more than is usually kept for those that lag. If that were
/// dropped, the replica would be given one state after the other.
#[test]
fn a_replica_that_needs_a_large_state_needs_one_while_clients_go_on() {
    // 150 rows stand for some hundred MiB: each takes as long as thousands.
    let plan = Plan { keys: 150, row_micros: 8_000, retain_bytes: 1_000, ..Plan::quiet(Mode::Crash, 1) };
    let mut world = World::new(&plan, false);
    run(&mut world, 4_000);
    world.crash(2, 0);
    run(&mut world, 8_000);
    world.start(2);
    let (mut states, mut was_installing, mut level_after) = (0, false, None);
    for moment in 1..=600 {
        if level_after.is_some() {
            break;
        }
        run(&mut world, 100);
        let group = replica(&world, 2).expect("it runs");
        let is_installing = group.is_installing();
        states += usize::from(is_installing && !was_installing);
        was_installing = is_installing;
        let lag = newest(&world).abs_diff(group.machine().applied().slot);
        if level_after.is_none() && states > 0 && !is_installing && lag < 20 {
            level_after = Some(moment * 100);
        }
    }
    println!("{states} states, level after {level_after:?} ms");
    assert!(level_after.is_some());
    assert_eq!(states, 1, "it was given a state that it could not go on from");
}
