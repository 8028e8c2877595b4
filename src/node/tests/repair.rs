//! States that somebody changed behind a node's back: found by a scrub, by a record that cannot be read, by the roots of the
//! others or at the start; repaired from the others while one of them lies about it.

use super::liars::{GROUP, World};
use crate::kv;
use crate::ring::Position;
use crate::storage::keys;
use bytes::Bytes;
use tetrachord_consensus::pbft::Lie;

/// The node that is damaged; node 2 is the liar, if there is one.
const DAMAGED: usize = 2;

/// A world with a liar that gives wrong states, and so much behind it that no log reaches back to the beginning.
fn world(seed: u64, scrub_millis: u64) -> World {
    let mut world = World::new(4, 1, 4, seed);
    (world.lie, world.scrub_millis) = (Lie::FalseState, scrub_millis);
    (0..4).for_each(|index| {
        world.crash(index, 0);
        world.start(index);
    });
    for _ in 0..60 {
        world.run(100);
        // The first rewrite may keep all of it, because the tree holds nothing yet.
        if world.nodes[DAMAGED].disk.durable_log_from(0).1 > 1 && status(&world).base > 0 {
            return world;
        }
    }
    panic!("no log was shortened: {}", world.describe());
}

fn status(world: &World) -> crate::wire::GroupStatus {
    world.nodes[DAMAGED].core.as_ref().expect("it runs").status().groups.remove(0)
}

fn repairs(world: &World) -> u64 {
    status(world).repairs
}

/// Changes the value of the first row that begins so, with a right checksum.
fn change(world: &World, prefix: &[u8]) -> Bytes {
    let disk = &world.nodes[DAMAGED].disk;
    let (raw, record) = disk.rows(prefix).into_iter().next().expect("there is such a row");
    let mut body = kv::unseal(&raw, record).expect("the row is right").to_vec();
    *body.last_mut().expect("a record is not empty") ^= 1;
    disk.tamper(&raw, Some(kv::seal(&raw, &body)));
    raw
}

/// Lets the world run until the damaged node has repaired its state.
fn wait_for_repair(world: &mut World) {
    for _ in 0..60 {
        if repairs(world) > 0 && status(world).damage.is_none() {
            return;
        }
        world.run(500);
    }
    panic!("it is not repaired: {}", world.describe());
}

/// Lets the world run until the damaged node has an undamaged state and follows the others again.
fn wait_for_recovery(world: &mut World) {
    for _ in 0..600 {
        world.run(100);
        let found = status(world);
        let is_well = found.damage.is_none() && !found.is_installing && found.applied > 0;
        if is_well && found.applied + 4 >= found.decided && found.scrubs + found.repairs > 0 {
            return;
        }
    }
    panic!("it does not come back: {}", world.describe());
}

#[test]
fn a_changed_value_is_found_by_a_scrub_and_only_its_part_is_fetched() {
    let mut world = world(11, 2_000);
    // Nobody asks for anything more: what differs from the others is what was changed.
    world.retire_clients();
    world.run(2_000);
    let before = status(&world);
    assert!(before.scrubs > 0, "it scrubs");
    change(&world, b"d");
    wait_for_repair(&mut world);
    let after = status(&world);
    assert_eq!((after.repairs, &after.digest), (1, &before.digest));
    let taken = world.nodes[DAMAGED].parts_taken;
    assert!((1..=8).contains(&taken), "{taken} parts were asked for, from one replica after the other");
    world.calm_and_judge();
}

#[test]
fn a_changed_value_is_repaired_under_load() {
    for seed in 20..24 {
        let mut world = world(seed, 1_000);
        // What is just being written may undo the change before anybody reads it.
        for _ in 0..20 {
            change(&world, b"d");
            world.run(500);
            if repairs(&world) > 0 {
                break;
            }
        }
        wait_for_repair(&mut world);
        world.run(2_000);
        world.calm_and_judge();
    }
}

#[test]
fn a_record_that_cannot_be_read_is_repaired_when_it_is_needed() {
    let mut world = world(12, 0);
    world.crash(DAMAGED, 0);
    for (raw, record) in world.nodes[DAMAGED].disk.rows(b"d") {
        let mut damaged = record.to_vec();
        *damaged.last_mut().expect("a record is not empty") ^= 1;
        world.nodes[DAMAGED].disk.tamper(&raw, Some(Bytes::from(damaged)));
    }
    world.start(DAMAGED);
    wait_for_repair(&mut world);
    world.calm_and_judge();
}

/// Seed 97002923 of the simulator: the sums of a part say nothing of a row that cannot be read and should not be there at all, so
/// it stayed, and was found again and again.
#[test]
fn what_should_not_be_there_and_cannot_be_read_is_gone_after_one_repair() {
    let mut world = world(18, 2_000);
    world.retire_clients();
    world.run(2_000);
    let raw = keys::data(Position::of_key(b"of long ago"), b"of long ago");
    world.nodes[DAMAGED].disk.tamper(&raw, Some(Bytes::from_static(b"rotten since")));
    wait_for_repair(&mut world);
    assert_eq!(world.nodes[DAMAGED].disk.rows(&raw), []);
    world.run(5_000);
    assert_eq!(repairs(&world), 1, "once");
    world.calm_and_judge();
}

/// The same where nobody scrubs, in the other kinds of rows, and one whose key is none.
#[test]
fn what_belongs_nowhere_is_gone_after_a_repair_whatever_kind_of_row_it_is() {
    let session = keys::session_bounds(GROUP).0;
    let stray = |end: &[u8]| Bytes::from([&session[..], end].concat());
    for (seed, raw) in [
        (30, keys::data(Position(0x7000_0000_0000_0000), b"stray")),
        (31, stray(&[9; 24])),
        (32, stray(&[9; 7])),
    ] {
        let mut world = world(seed, 0);
        world.retire_clients();
        world.run(1_000);
        world.crash(DAMAGED, 0);
        world.nodes[DAMAGED].disk.tamper(&raw, Some(kv::seal(&raw, b"of nobody")));
        // Whoever reads it, finds it; where nothing does, something else begins the repair.
        world.nodes[DAMAGED].disk.tamper(&keys::applied(GROUP), Some(Bytes::from_static(b"nonsense")));
        world.start(DAMAGED);
        wait_for_repair(&mut world);
        assert_eq!(world.nodes[DAMAGED].disk.rows(&raw), [], "seed {seed}");
        world.resume_clients();
        world.run(2_000);
        assert_eq!(repairs(&world), 1, "seed {seed}: once");
        world.calm_and_judge();
    }
}

#[test]
fn a_changed_session_is_refuted_by_the_roots_of_the_others() {
    let mut world = world(13, 0);
    // It must not be behind: else it takes a whole state and is repaired without knowing of any damage.
    world.retire_clients();
    world.run(1_000);
    world.crash(DAMAGED, 0);
    // A hash that does not fit the rows, as if both were written by somebody else.
    let raw = keys::part_hash(GROUP, 64);
    let record = world.nodes[DAMAGED].disk.rows(&raw).remove(0).1;
    let mut hash = kv::unseal(&raw, record).expect("the row is right").to_vec();
    hash[7] ^= 1;
    world.nodes[DAMAGED].disk.tamper(&raw, Some(kv::seal(&raw, &hash)));
    world.start(DAMAGED);
    world.run(500);
    world.resume_clients();
    wait_for_repair(&mut world);
    world.calm_and_judge();
}

#[test]
fn a_lost_tree_is_fetched_as_a_whole_and_a_damaged_position_too() {
    for seed in 14..16 {
        let mut world = world(seed, 0);
        world.crash(DAMAGED, 0);
        let disk = &world.nodes[DAMAGED].disk;
        if seed == 14 {
            disk.rows(b"").iter().for_each(|(raw, _)| disk.tamper(raw, None));
        } else {
            disk.tamper(&keys::applied(GROUP), Some(Bytes::from_static(b"nonsense")));
        }
        world.start(DAMAGED);
        wait_for_repair(&mut world);
        world.calm_and_judge();
    }
}

#[test]
fn a_young_state_is_executed_again_from_the_log() {
    let mut world = World::new(4, 0, 1, 17);
    world.scrub_millis = 500;
    world.crash(DAMAGED, 0);
    world.start(DAMAGED);
    let mut waited = 0;
    while world.nodes[DAMAGED].disk.rows(b"d").is_empty() {
        world.run(20);
        waited += 1;
        assert!(waited < 500, "nothing was written");
    }
    assert_eq!(status(&world).base, 0, "the log reaches back to the beginning");
    world.retire_clients();
    world.run(500);
    change(&world, b"d");
    wait_for_repair(&mut world);
    assert_eq!(world.nodes[DAMAGED].parts_taken, 0, "nothing is fetched");
    world.calm_and_judge();
}

/// A crash at this barrier, and every second one behind it, while a state is repaired or transferred: it never makes a node say
/// two things, and never keeps it from coming back.
fn crash_at_every_second_step(first: u64) {
    let mut survived = 0;
    for steps in (first..60).step_by(2) {
        // With other seeds a client may write over the changed row before anybody has read it.
        let mut world = world(20, 1_000);
        change(&world, b"d");
        // A repair may be over within a tenth of a second.
        for _ in 0..800 {
            if status(&world).damage.is_some() {
                break;
            }
            world.run(5);
        }
        assert!(status(&world).damage.is_some(), "the scrub finds it");
        world.nodes[DAMAGED].steps_left = Some(steps);
        wait_for_recovery(&mut world);
        survived += usize::from(world.nodes[DAMAGED].steps_left.is_none());
    }
    assert!(survived > 15, "{survived} crashes");
}

#[test]
fn a_crash_at_every_odd_step_of_a_repair_is_survived() {
    crash_at_every_second_step(1);
}

#[test]
fn a_crash_at_every_even_step_of_a_repair_is_survived() {
    crash_at_every_second_step(2);
}
