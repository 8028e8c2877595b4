//! A Byzantine replica that lags comes level over slow links: what it is sent waits in queues that are not endless.
#![allow(clippy::unwrap_used, reason = "test code")]

mod pbft;

use pbft::{Envelope, Group};
use std::collections::VecDeque;
use tetrachord_consensus::pbft::message::Status;
use tetrachord_consensus::pbft::{Message, Options, Window};
use tetrachord_consensus::{Event, ReplicaId, Slot, View, codec};

const LAGGARD: usize = 3;

/// What a link keeps; then the newest is dropped.
const QUEUE_BYTES_MAX: usize = 24 << 20;

/// 16 Mbit/s.
const BYTES_PER_MILLI: usize = 2_000;

/// A group that has ordered so many slots of this size without the last one.
fn without_the_laggard(slots: u64, bytes: usize) -> (Group, u64) {
    let options = Options { request_ticks: 60_000, ..Options::default() };
    let mut group = Group::new(4, Window::default(), options);
    group.partition(&[LAGGARD], &[0, 1, 2]);
    let mut number = 0;
    while group.replica(0).executed().0 < slots {
        number += 1;
        order(&mut group, number, bytes);
        group.settle();
        group.advance(1);
        group.settle();
    }
    group.heal();
    group.network.clear();
    (group, number)
}

fn order(group: &mut Group, number: u64, bytes: usize) {
    let bundle = group.request(0, number, &"x".repeat(bytes));
    (0..4).for_each(|index| group.submit(index, &bundle));
}

/// The links to the replica that lags.
#[derive(Default)]
struct Links {
    queues: [VecDeque<Envelope>; 3],
    budget: [usize; 3],
    sent: usize,
    dropped: usize,
}

impl Links {
    /// Everybody does what can be done at once; what goes to the one that lags is queued.
    fn settle(&mut self, group: &mut Group) {
        loop {
            while let Some(at) = (!group.network.is_empty()).then_some(0) {
                if group.network[at].to == LAGGARD {
                    self.queue(group.network.remove(at));
                } else {
                    group.deliver(at);
                }
            }
            if !(0..4).any(|index| group.check(index) || group.persist(index)) && group.network.is_empty() {
                return;
            }
        }
    }

    fn queue(&mut self, envelope: Envelope) {
        let queue = &mut self.queues[envelope.from];
        let waiting: usize = queue.iter().map(|envelope| envelope.message.len()).sum();
        if waiting + envelope.message.len() > QUEUE_BYTES_MAX {
            self.dropped += 1;
            return;
        }
        self.sent += envelope.message.len();
        queue.push_back(envelope);
    }

    /// Each link carries what it can in so many milliseconds.
    fn carry(&mut self, group: &mut Group, millis: usize) {
        for (queue, budget) in self.queues.iter_mut().zip(&mut self.budget) {
            *budget = (*budget + BYTES_PER_MILLI * millis).min(2 * BYTES_PER_MILLI * millis);
            while queue.front().is_some_and(|envelope| envelope.message.len() <= *budget) {
                let envelope = queue.pop_front().unwrap();
                *budget -= envelope.message.len();
                group.network.push(envelope);
                group.deliver(group.network.len() - 1);
                while group.check(LAGGARD) || group.persist(LAGGARD) {}
            }
        }
    }
}

/// It says how far it is ten times a second, and each of the others answers with up to a megabyte: more often than that gets through.
#[test]
fn a_replica_behind_slow_links_is_not_buried_in_answers() {
    let (slots, bytes) = (1_500, 2_000);
    let (mut group, mut number) = without_the_laggard(slots, bytes);
    let (mut links, begun) = (Links::default(), group.now);
    while group.replica(LAGGARD).executed().0 + 5 < group.replica(0).executed().0 {
        assert!(
            group.now < begun + 10_000,
            "it does not come level: {} slots",
            group.replica(LAGGARD).executed()
        );
        group.advance(10);
        if group.now.is_multiple_of(20) {
            number += 1;
            order(&mut group, number, bytes);
            group.flush(0);
        }
        links.settle(&mut group);
        links.carry(&mut group, 10);
    }
    let missed = slots as usize * bytes;
    println!("level after {} ms, {} KiB sent for {} KiB", group.now - begun, links.sent >> 10, missed >> 10);
    assert_eq!((links.dropped, group.reached.transfers), (0, 0));
    assert!(links.sent < 8 * missed, "{} KiB were sent", links.sent >> 10);
    group.assert_safe();
}

/// A liar says all the time that it has nothing.
#[test]
fn a_liar_that_claims_to_lag_is_not_sent_all_of_it_all_the_time() {
    let (mut group, _) = without_the_laggard(700, 2_000);
    group.crash(LAGGARD, 0);
    let lag = Status { view: View(0), is_active: true, stable: Slot(0), executed: Slot(0), base: Slot(0) };
    let said = codec::encode(&Message::Status(lag));
    let mut certified = 0;
    for _ in 0..100 {
        group.now += 10;
        (0..3).for_each(|index| group.tick(index));
        group.network.clear();
        group.step(0, Event::Receive { from: ReplicaId(LAGGARD as u8), message: said.clone() });
        let is_certified = |envelope: &&Envelope| {
            matches!(codec::decode::<Message>(&envelope.message), Ok(Message::Certified { .. }))
        };
        certified += group.network.iter().filter(is_certified).count();
    }
    assert!((1..2_000).contains(&certified), "{certified} slots in a second");
}
