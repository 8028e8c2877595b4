//! What a replica's log takes of memory, held against what is counted of it: bounds of memory are worth what is counted.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "test code")]

mod pbft;

use pbft::Group;
use tetrachord_consensus::pbft::{Options, Window};
use tetrachord_consensus::{Engine, Event, Retain, Slot};

/// What Linux counts memory in, nearly everywhere.
const PAGE_BYTES: usize = 4096;

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * PAGE_BYTES
}

#[test]
fn what_is_kept_of_the_log_takes_about_what_is_counted() {
    for n in [4, 7] {
        let mut group = Group::new(n, Window { interval: 16, length: 32 }, Options::default());
        for number in 1..=640 {
            let bundle =
                group.request(0, number, "an operation of sixty bytes, as so many of them are in tests");
            group.submit(0, &bundle);
            group.settle();
            if number % 16 == 0 {
                // The tree holds all of it, and somebody says that it has executed nothing.
                let retain = Retain { bytes: 1 << 10, pinned: Some(Slot(0)), pinned_bytes: 64 << 20 };
                for index in 0..n {
                    let slot = group.replica(index).stable_slot();
                    group.step(index, Event::Trim { slot, retain });
                }
            }
        }
        let replica = group.nodes[2].replica.take().unwrap();
        let counted = replica.log_bytes();
        // Copies share the bytes of batches, which are a small part here.
        let before = resident();
        let copies: Vec<_> = (0..20).map(|_| replica.clone()).collect();
        let taken = (resident() - before) / copies.len();
        assert!(
            (counted / 2..counted).contains(&taken),
            "n={n}: {taken} bytes, and {counted} are counted, of {} slots",
            replica.executed().0
        );
    }
}

/// A replica that starts again may cut its log as one that went on: else one that is started again and again keeps all of it in memory.
#[test]
fn a_log_is_cut_after_a_restart_as_before() {
    let mut group = Group::new(4, Window { interval: 16, length: 32 }, Options::default());
    for number in 1..=100 {
        let bundle = group.request(0, number, "an operation");
        group.submit(0, &bundle);
        group.settle();
    }
    group.checkpoint(2, usize::MAX, true);
    group.crash(2, 0);
    group.start(2);
    let kept = group.replica(2).log_bytes();
    let slot = group.replica(2).stable_slot();
    assert!(slot.0 >= 96, "{slot}");
    group.step(2, Event::Trim { slot, retain: Retain::last(kept / 4) });
    let cut = group.replica(2).log_bytes();
    assert!(cut <= kept / 4 + kept / 20, "{cut} of {kept} bytes are kept");
}
