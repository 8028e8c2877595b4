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
