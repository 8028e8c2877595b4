//! Log time: what a wrong clock may do to it, and what not.
#![allow(clippy::unwrap_used, reason = "test code")]

mod harness;

use harness::rules::{led, options};
use harness::{Cluster, YEAR_MICROS};
use tetrachord_consensus::{Engine, LogBase, Mutation};

const HOUR_MICROS: i64 = 3600 * 1_000_000;

/// Log time of the last entry that was applied anywhere.
fn log_time(cluster: &Cluster) -> u64 {
    cluster.nodes.iter().filter_map(|node| node.applied.last()).map(|last| last.base.time.0).max().unwrap()
}

/// Has something decided, and tells how far log time is from the right time.
fn offset_after_a_write(cluster: &mut Cluster) -> i64 {
    let leader = cluster.leader().expect("somebody leads");
    cluster.propose(leader, "a").unwrap();
    cluster.settle();
    let right = cluster.wall(leader).0.wrapping_add_signed(-cluster.clock_offsets[leader]);
    assert!(cluster.violations.is_empty(), "{:?}", cluster.violations);
    log_time(cluster).cast_signed() - right.cast_signed()
}

fn kill_leader(cluster: &mut Cluster) {
    let leader = cluster.leader().expect("somebody leads");
    cluster.crash(leader, 9);
    cluster.run(4_000);
}

#[test]
fn one_wrong_clock_moves_log_time_nowhere() {
    for offset in [-(YEAR_MICROS as i64), -61 * HOUR_MICROS / 60, 61 * HOUR_MICROS / 60, YEAR_MICROS as i64] {
        for victim in 0..3 {
            let mut cluster = led(3, options(Mutation::None));
            assert_eq!(offset_after_a_write(&mut cluster), 0);
            cluster.clock_offsets[victim] = offset;
            cluster.run(200);
            assert_eq!(offset_after_a_write(&mut cluster), 0, "{offset} at r{victim}");
        }
    }
}

#[test]
fn a_new_leader_an_hour_ahead_moves_log_time_nowhere() {
    let mut cluster = led(3, options(Mutation::None));
    assert_eq!(offset_after_a_write(&mut cluster), 0);
    cluster.clock_offsets[1] = 61 * HOUR_MICROS / 60;
    cluster.run(200);
    kill_leader(&mut cluster);
    let late = offset_after_a_write(&mut cluster);
    assert!((-60_000_000..=0).contains(&late), "off by {late} us");
}

#[test]
fn the_first_entry_of_all_is_held_against_the_clocks_of_the_others() {
    let mut cluster = Cluster::new(3, options(Mutation::None));
    cluster.clock_offsets[0] = YEAR_MICROS as i64;
    cluster.run(1_500);
    assert_eq!(cluster.leader(), Some(0));
    assert_eq!(offset_after_a_write(&mut cluster), 0);
}

#[test]
fn time_goes_on_at_half_its_pace_until_clocks_that_were_put_right_catch_up() {
    let mut cluster = Cluster::new(3, options(Mutation::None));
    cluster.clock_offsets = vec![10 * YEAR_MICROS as i64; 3];
    cluster.run(1_500);
    offset_after_a_write(&mut cluster);
    cluster.clock_offsets = vec![0; 3];
    let before = log_time(&cluster);
    for _ in 0..100 {
        cluster.run(1_000);
        offset_after_a_write(&mut cluster);
    }
    let passed = log_time(&cluster) - before;
    assert!((45_000_000..=51_000_000).contains(&passed), "{passed} us in 100 s");
}

#[test]
fn after_all_were_down_for_a_day_log_time_is_right_at_once() {
    let mut cluster = led(3, options(Mutation::None));
    assert_eq!(offset_after_a_write(&mut cluster), 0);
    (0..3).for_each(|index| cluster.crash(index, 9));
    cluster.now += 24 * 3_600_000;
    (0..3).for_each(|index| cluster.start(index));
    cluster.run(4_000);
    assert_eq!(offset_after_a_write(&mut cluster), 0);
}

#[test]
fn whoever_was_away_for_long_does_not_count_that_time_twice() {
    let mut cluster = led(3, options(Mutation::None));
    offset_after_a_write(&mut cluster);
    cluster.partition(&[2], &[0, 1]);
    let end = cluster.now + 3_600_000;
    while cluster.now < end {
        cluster.advance(45);
        cluster.settle();
    }
    // It has appended nothing for an hour; the others have just now, and it leads with their log.
    assert_eq!(offset_after_a_write(&mut cluster), 0);
    cluster.crash(0, 9);
    cluster.run(4_000);
    cluster.heal();
    cluster.now += 4_000;
    cluster.tick(2);
    cluster.settle();
    assert_eq!(cluster.leader(), Some(2), "nobody else has had a tick");
    let late = offset_after_a_write(&mut cluster);
    assert!((-60_000_000..=0).contains(&late), "off by {late} us");
}

#[test]
fn a_log_that_was_compacted_to_nothing_keeps_its_time() {
    let mut cluster = led(3, options(Mutation::None));
    offset_after_a_write(&mut cluster);
    cluster.run(200);
    let before = log_time(&cluster);
    for index in 0..3 {
        cluster.checkpoint(index, 0);
        while cluster.persist(index) {}
    }
    assert!((0..3).all(|index| cluster.replica(index).status().log_bytes == 0));
    (0..3).for_each(|index| cluster.crash(index, 9));
    cluster.clock_offsets = vec![-(YEAR_MICROS as i64); 3];
    (0..3).for_each(|index| cluster.start(index));
    cluster.run(4_000);
    assert_ne!(cluster.nodes[0].applied.last().unwrap().base, LogBase::default());
    offset_after_a_write(&mut cluster);
    assert!(log_time(&cluster) >= before, "time went back");
}
