//! Runs that are told step by step: one situation, one bound. Most tell of something that went wrong once.

mod clients;
mod disks;
mod lies;
mod repairs;
mod states;

use super::client::Client;
use super::{Event, World};
use std::ops::Range;
use tetrachord::group::Group;
use tetrachord::wire::GroupStatus;

/// The replica of the first group on a node.
fn replica(world: &World, index: usize) -> Option<&Group> {
    world.nodes[index].core.as_ref()?.groups().next()
}

/// What a node that runs says of its first group.
fn status(world: &World, index: usize) -> GroupStatus {
    world.nodes[index].core.as_ref().expect("it runs").status().groups.remove(0)
}

fn run(world: &mut World, millis: u64) {
    let end = world.now + millis * 1_000;
    world.run_until(end);
    assert_eq!(world.violation, None);
}

/// Goes on until this holds, for no longer than that.
#[track_caller]
fn runs_until(world: &mut World, millis: u64, holds: impl Fn(&World) -> bool) {
    const LOOKS: u64 = 20;
    for _ in 0..millis / LOOKS {
        if holds(world) {
            return;
        }
        run(world, LOOKS);
    }
    panic!("it does not come to that: {}", world.describe());
}

/// The latest slot that any replica has applied.
fn newest(world: &World) -> u64 {
    let groups = (0..world.nodes.len()).filter_map(|index| replica(world, index));
    groups.map(|group| group.machine().reached().slot).max().unwrap_or(0)
}

/// How many operations were answered.
fn answered(world: &World) -> u64 {
    world.clients.iter().map(|client| client.answered).sum()
}

/// Nobody asks for anything any more, and what was asked is answered.
fn rest(world: &mut World) {
    world.clients.iter_mut().for_each(|client| client.is_done = true);
    runs_until(world, 5_000, |world| world.clients.iter().all(Client::is_idle));
}

/// Clients ask again.
fn ask_again(world: &mut World) {
    world.clients.iter_mut().for_each(|client| client.is_done = false);
}

/// The story ends well: everybody answers and becomes equal, and what clients saw is linearizable.
fn end(world: &mut World) {
    ask_again(world);
    world.calm();
    world.judge();
    assert_eq!(world.violation, None);
}

/// Goes on until the disk of a node has done so many things more: ended a barrier, or written something to the tree.
fn to_disk_step(world: &mut World, index: usize, steps: u64) {
    let mut left = steps;
    while left > 0 {
        let is_step = matches!(
            world.queue.first_key_value(),
            Some((_, Event::Barrier { node, .. } | Event::StateWritten { node, .. })) if *node == index
        );
        assert!(world.take_next(u64::MAX), "something always happens");
        assert_eq!(world.violation, None);
        left -= u64::from(is_step);
    }
}

/// The same story again and again; each time the node ends after one more thing that its disk did, and comes back. How many of these
/// crashes were while this held.
fn crash_at_disk_steps(
    index: usize,
    steps: Range<u64>,
    story: impl Fn() -> World,
    is_within: impl Fn(&World) -> bool,
) -> u64 {
    let mut within = 0;
    for steps in steps {
        let mut world = story();
        to_disk_step(&mut world, index, steps);
        within += u64::from(is_within(&world));
        world.crash(index, 0);
        world.start(index);
        end(&mut world);
    }
    within
}
