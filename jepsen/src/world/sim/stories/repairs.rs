//! States that somebody changed behind a node's back: found by a scrub, by a record that cannot be read, by the roots of the others or at
//! the start; repaired from the others while one of them lies about it.

use super::{ask_again, end, rest, run, runs_until, status};
use crate::nemesis::Nemesis;
use crate::plan::{Mode, Plan};
use crate::world::sim::World;
use bytes::Bytes;
use tetrachord::kv;
use tetrachord::ring::{GroupId, Position};
use tetrachord::storage::keys;
use tetrachord_consensus::pbft::Lie;

const GROUP: GroupId = GroupId(1);

/// The node that is damaged; n2 is the liar.
const DAMAGED: usize = 2;

/// A world with a liar that gives wrong states, and so much behind it that no log reaches back to the beginning.
fn world(seed: u64, scrub_millis: u64) -> World {
    let mut plan = Plan {
        keys: 8,
        think_micros: 10_000,
        log_bytes_max: 20_000,
        pinned_bytes: 24_000,
        fault_every: 1_000_000,
        lie: Some(Lie::FalseState),
        scrub_millis,
        ..Plan::quiet(Mode::Byzantine, seed)
    };
    plan.nemeses.insert(Nemesis::Lies);
    let mut world = World::new(&plan, false);
    // The first rewrite may keep all of it, because the tree holds nothing yet.
    let is_short = |world: &World| world.nodes[DAMAGED].disk.durable_log_from(0).1 > 1;
    runs_until(&mut world, 20_000, |world| is_short(world) && status(world, DAMAGED).base > 0);
    world
}

/// A row of the damaged node is something else, or gone.
fn tamper(world: &mut World, raw: &[u8], record: Option<Bytes>) {
    world.nodes[DAMAGED].is_rotten = true;
    world.nodes[DAMAGED].disk.tamper(raw, record);
}

/// Changes the value of the first row that begins so, with a right checksum.
fn change(world: &mut World, prefix: &[u8]) {
    let rows = world.nodes[DAMAGED].disk.rows(prefix);
    let (raw, record) = rows.into_iter().next().expect("there is such a row");
    let mut body = kv::unseal(&raw, record).expect("the row is right").to_vec();
    *body.last_mut().expect("a record is not empty") ^= 1;
    tamper(world, &raw, Some(kv::seal(&raw, &body)));
}

fn repairs(world: &World) -> u64 {
    status(world, DAMAGED).repairs
}

/// Goes on until the damaged node has repaired its state.
#[track_caller]
fn await_repair(world: &mut World) {
    runs_until(world, 30_000, |world| repairs(world) > 0 && status(world, DAMAGED).damage.is_none());
}

#[test]
fn a_changed_value_is_found_by_a_scrub_and_only_its_part_is_fetched() {
    let mut world = world(11, 2_000);
    // Nobody asks for anything more: what differs from the others is what was changed.
    rest(&mut world);
    run(&mut world, 2_000);
    let before = status(&world, DAMAGED);
    assert!(before.scrubs > 0, "it scrubs");
    change(&mut world, b"d");
    await_repair(&mut world);
    let after = status(&world, DAMAGED);
    assert_eq!((after.repairs, &after.digest), (1, &before.digest));
    let taken = world.nodes[DAMAGED].parts_taken;
    assert!((1..=8).contains(&taken), "{taken} parts were asked for, from one replica after the other");
    end(&mut world);
}

#[test]
fn a_changed_value_is_repaired_under_load() {
    for seed in 20..24 {
        let mut world = world(seed, 1_000);
        // What is just being written may undo the change before anybody reads it.
        for _ in 0..20 {
            change(&mut world, b"d");
            run(&mut world, 500);
            if repairs(&world) > 0 {
                break;
            }
        }
        await_repair(&mut world);
        run(&mut world, 2_000);
        end(&mut world);
    }
}

#[test]
fn a_record_that_cannot_be_read_is_repaired_when_it_is_needed() {
    let mut world = world(12, 0);
    world.crash(DAMAGED, 0);
    for (raw, record) in world.nodes[DAMAGED].disk.rows(b"d") {
        let mut damaged = record.to_vec();
        *damaged.last_mut().expect("a record is not empty") ^= 1;
        tamper(&mut world, &raw, Some(Bytes::from(damaged)));
    }
    world.start(DAMAGED);
    await_repair(&mut world);
    end(&mut world);
}

/// The sums of a part say nothing of a row that cannot be read and should not be there at all: it stayed once, and was found again and
/// again.
#[test]
fn what_should_not_be_there_and_cannot_be_read_is_gone_after_one_repair() {
    let mut world = world(18, 2_000);
    rest(&mut world);
    run(&mut world, 2_000);
    let raw = keys::data(Position::of_key(b"of long ago"), b"of long ago");
    tamper(&mut world, &raw, Some(Bytes::from_static(b"rotten since")));
    await_repair(&mut world);
    assert_eq!(world.nodes[DAMAGED].disk.rows(&raw), []);
    run(&mut world, 5_000);
    assert_eq!(repairs(&world), 1, "once");
    end(&mut world);
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
        rest(&mut world);
        run(&mut world, 1_000);
        world.crash(DAMAGED, 0);
        tamper(&mut world, &raw, Some(kv::seal(&raw, b"of nobody")));
        // Whoever reads it, finds it; where nothing does, something else begins the repair.
        tamper(&mut world, &keys::applied(GROUP), Some(Bytes::from_static(b"nonsense")));
        world.start(DAMAGED);
        await_repair(&mut world);
        assert_eq!(world.nodes[DAMAGED].disk.rows(&raw), [], "seed {seed}");
        ask_again(&mut world);
        run(&mut world, 2_000);
        assert_eq!(repairs(&world), 1, "seed {seed}: once");
        end(&mut world);
    }
}

#[test]
fn a_changed_session_is_refuted_by_the_roots_of_the_others() {
    let mut world = world(13, 0);
    // It must not be behind: else it takes a whole state and is repaired without knowing of any damage.
    rest(&mut world);
    run(&mut world, 1_000);
    world.crash(DAMAGED, 0);
    // A hash that does not fit the rows, as if both were written by somebody else.
    let raw = keys::part_hash(GROUP, 64);
    let record = world.nodes[DAMAGED].disk.rows(&raw).remove(0).1;
    let mut hash = kv::unseal(&raw, record).expect("the row is right").to_vec();
    hash[7] ^= 1;
    tamper(&mut world, &raw, Some(kv::seal(&raw, &hash)));
    world.start(DAMAGED);
    run(&mut world, 500);
    ask_again(&mut world);
    await_repair(&mut world);
    end(&mut world);
}

#[test]
fn a_lost_tree_is_fetched_as_a_whole() {
    let mut world = world(14, 0);
    world.crash(DAMAGED, 0);
    let rows = world.nodes[DAMAGED].disk.rows(b"");
    rows.iter().for_each(|(raw, _)| tamper(&mut world, raw, None));
    world.start(DAMAGED);
    await_repair(&mut world);
    end(&mut world);
}

#[test]
fn a_state_that_does_not_say_where_it_stands_is_fetched() {
    let mut world = world(15, 0);
    world.crash(DAMAGED, 0);
    tamper(&mut world, &keys::applied(GROUP), Some(Bytes::from_static(b"nonsense")));
    world.start(DAMAGED);
    await_repair(&mut world);
    end(&mut world);
}

#[test]
fn a_young_state_is_executed_again_from_the_log() {
    let plan = Plan {
        clients: 1,
        think_micros: 10_000,
        log_bytes_max: 1 << 20,
        retain_bytes: 1 << 20,
        fault_every: 1_000_000,
        scrub_millis: 500,
        ..Plan::quiet(Mode::Byzantine, 17)
    };
    let mut world = World::new(&plan, false);
    runs_until(&mut world, 5_000, |world| !world.nodes[DAMAGED].disk.rows(b"d").is_empty());
    assert_eq!(status(&world, DAMAGED).base, 0, "the log reaches back to the beginning");
    rest(&mut world);
    run(&mut world, 500);
    change(&mut world, b"d");
    await_repair(&mut world);
    assert_eq!(world.nodes[DAMAGED].parts_taken, 0, "nothing is fetched");
    end(&mut world);
}

/// A scrub has found what was changed: the repair begins.
fn under_repair() -> World {
    let mut world = world(20, 1_000);
    rest(&mut world);
    change(&mut world, b"d");
    let end = world.now + 4_000_000;
    while status(&world, DAMAGED).damage.is_none() {
        assert!(world.take_next(end), "the scrub finds it");
    }
    ask_again(&mut world);
    world
}

/// A repair that ends with its node never makes that say two things, and never keeps it from coming back.
#[test]
fn a_crash_at_every_step_of_a_repair_is_survived() {
    let is_damaged = |world: &World| status(world, DAMAGED).damage.is_some();
    let within = super::crash_at_disk_steps(DAMAGED, 1..40, under_repair, is_damaged);
    println!("{within} crashes within a repair");
    assert!(within > 10, "{within} of the crashes were within a repair");
}
