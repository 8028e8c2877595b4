//! No bytes from a peer make a PBFT replica panic, and nothing that is not signed changes it.

mod pbft;

use bytes::Bytes;
use pbft::{Group, Random};
use tetrachord_consensus::pbft::message::{
    CheckpointVote, Status, ViewChange, ViewChangeBody, Vote, body_digest,
};
use tetrachord_consensus::pbft::sign::Statement;
use tetrachord_consensus::pbft::{Message, Options, Signer, Window};
use tetrachord_consensus::{Digest, Event, ReplicaId, Slot, View, codec};

/// A group with some history, and every kind of message that it sent on the way.
fn group_with_messages() -> (Group, Vec<Bytes>) {
    let options = Options { request_ticks: 400, status_ticks: 40, ..Options::default() };
    let mut group = Group::new(4, Window { interval: 4, length: 8 }, options);
    for number in 1..=12 {
        let bundle = group.request(0, number, "op");
        (0..4).for_each(|index| group.submit(index, &bundle));
        if number == 6 {
            group.crash(0, 0);
        }
        if number == 9 {
            group.start(0);
        }
        group.run(1_200);
    }
    let golden = group.recorded.values().flatten().cloned().collect();
    (group, golden)
}

fn give(group: &mut Group, from: u8, message: Bytes) {
    group.step(1, Event::Receive { from: ReplicaId(from), message });
    while group.check(1) {}
    while group.persist(1) {}
    group.network.clear();
}

#[test]
fn changed_messages_are_refused_or_mean_something_else() {
    let (mut group, golden) = group_with_messages();
    let kinds: std::collections::BTreeSet<&str> =
        golden.iter().map(|message| pbft::kind_of(&codec::decode::<Message>(message).unwrap())).collect();
    assert!(kinds.len() >= 9, "{kinds:?}");
    let mut random = Random(3);
    let mut fresh = Group::new(4, Window { interval: 4, length: 8 }, Options::default());
    fresh.issued.clone_from(&group.issued);
    for round in 0..40_000 {
        let mut bytes = golden[round % golden.len()].to_vec();
        match random.below(3) {
            0 => bytes.truncate(random.below(bytes.len())),
            1 => {
                let at = random.below(bytes.len() * 8);
                bytes[at / 8] ^= 1 << (at % 8);
            }
            _ => {
                // A number that claims to be huge.
                let at = random.below(bytes.len());
                let end = (at + 9).min(bytes.len());
                bytes[at..end].fill(0xff);
            }
        }
        let (from, bytes) = (random.below(4) as u8, Bytes::from(bytes));
        // One that has seen all of it, and one to which all of it is new.
        give(&mut group, from, bytes.clone());
        give(&mut fresh, from, bytes);
    }
    assert!(fresh.reached.rejected > 1_000, "{} messages were checked and refused", fresh.reached.rejected);
    group.assert_safe();
    fresh.assert_safe();
}

#[test]
fn well_signed_nonsense_with_the_largest_numbers_is_survived() {
    let (mut group, _) = group_with_messages();
    let signer = Signer::toy(ReplicaId(2), group.domain);
    for number in [0, 1, u64::MAX / 4, u64::MAX / 2, u64::MAX - 1, u64::MAX] {
        let (view, slot, digest) = (View(number), Slot(number), Digest([1; 32]));
        let vote =
            |statement| Vote { signer: ReplicaId(2), view, slot, digest, signature: signer.sign(statement) };
        let body = codec::encode(&ViewChangeBody { stable: None, prepared: Vec::new() });
        let signature = signer.sign(Statement::ViewChange(view, body_digest(&body)));
        let messages = [
            Message::Status(Status { view, is_active: false, stable: slot, executed: slot, base: slot }),
            Message::Prepare(vote(Statement::Prepare(view, slot, digest))),
            Message::Commit(vote(Statement::Commit(view, slot, digest))),
            Message::PrePrepare {
                vote: vote(Statement::PrePrepare(view, slot, digest)),
                batch: Bytes::from_static(b"nonsense"),
            },
            Message::Checkpoint(CheckpointVote {
                signer: ReplicaId(2),
                slot,
                root: digest,
                signature: signer.sign(Statement::Checkpoint(slot, digest)),
            }),
            Message::ViewChange(ViewChange { signer: ReplicaId(2), view, body, signature }),
            Message::Fetch { slot, digest },
            Message::Body { slot, batch: Bytes::from_static(b"nonsense") },
        ];
        for message in messages {
            give(&mut group, 2, codec::encode(&message));
        }
    }
    let bundle = group.request(1, 1, "still alive");
    (0..4).for_each(|index| group.submit(index, &bundle));
    group.run(2_000);
    assert!(group.all_executed(bundle.names().next().unwrap()));
    group.assert_safe();
}
