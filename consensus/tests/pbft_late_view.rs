//! A replica learns by certificate what a later view decided, and only then do the view changes of an earlier one reach it.
#![allow(clippy::unwrap_used, reason = "test code")]

mod pbft;

use pbft::{Envelope, Group};
use tetrachord_consensus::pbft::{Message, Options, Window};
use tetrachord_consensus::{View, codec};

/// In epoch 4 the first view belongs to replica 0, the next to replica 1.
const LATE: usize = 1;

fn message(envelope: &Envelope) -> Message {
    codec::decode(&envelope.message).unwrap()
}

/// Delivers what may be delivered and keeps the rest away, until nothing moves.
fn settle(group: &mut Group, mut may_pass: impl FnMut(&Envelope) -> bool) {
    loop {
        group.network.retain(&mut may_pass);
        if !group.network.is_empty() {
            group.deliver(0);
        } else if !(0..4).any(|index| group.check(index) || group.persist(index)) {
            return;
        }
    }
}

#[test]
fn a_view_that_comes_late_may_differ_from_what_was_decided_since() {
    let options = Options { request_ticks: 400, request_ticks_max: 3_000, ..Options::default() };
    let mut group = Group::new(4, Window { interval: 4, length: 8 }, options);
    let bundle = group.request(0, 1, "op");
    (0..4).for_each(|index| group.submit(index, &bundle));
    // Only the late one prepares it in the first view.
    settle(&mut group, |envelope| match message(envelope) {
        Message::PrePrepare { .. } => envelope.to != 3,
        Message::Prepare(_) => envelope.to == LATE,
        _ => false,
    });
    // The others leave for the second view, whose primary does not hear of it, and decide otherwise in the third.
    let mut late = Vec::new();
    while group.now < 10_000
        && !(0..4).all(|index| index == LATE || group.replica(index).view() == (View(2), true))
    {
        group.advance(20);
        settle(&mut group, |envelope| {
            let is_of_view = matches!(message(envelope), Message::ViewChange(_) | Message::NewView(_));
            let is_apart = envelope.to == LATE || envelope.from == LATE;
            if is_of_view
                && envelope.to == LATE
                && matches!(message(envelope), Message::ViewChange(change) if change.view == View(1))
            {
                late.push(envelope.clone());
            }
            !is_apart && is_of_view
        });
    }
    let until = group.now + 1_000;
    while group.now < until {
        group.advance(20);
        settle(&mut group, |envelope| envelope.to != LATE && envelope.from != LATE);
    }
    assert!(group.replica(0).executed().0 > 0 && group.replica(LATE).executed().0 == 0);
    assert!(!group.replica(LATE).view().1, "it waits for the second view");
    // It learns what was decided, and then may begin the view that it waits for.
    while group.now < until + 2_000 && group.replica(LATE).executed().0 == 0 {
        group.advance(20);
        settle(&mut group, |envelope| {
            envelope.to != LATE || matches!(message(envelope), Message::Certified { .. } | Message::Status(_))
        });
    }
    assert!(group.replica(LATE).executed().0 > 0, "it has learnt it");
    assert!(late.len() > 1, "the others have asked for the second view");
    group.network.append(&mut late);
    settle(&mut group, |envelope| envelope.to == LATE);
    assert_eq!(group.replica(LATE).view(), (View(1), true), "the view has begun there");
    group.run(5_000);
    assert!(group.nodes.iter().all(|node| node.fatal.is_none()));
    (0..4).for_each(|index| assert_eq!(group.replica(index).view().0, group.replica(0).view().0, "r{index}"));
    group.assert_safe();
}
