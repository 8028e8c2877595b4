//! Damaged messages: whatever arrives, a replica answers, ignores it or declares itself unfit; it never panics.
//!
//! Replicas are trusted not to lie in crash mode, but a bug in one of them, or damage, must not take the others down.
#![allow(clippy::unwrap_used, reason = "test code")]

mod harness;

use bytes::Bytes;
use harness::{Cluster, Envelope, Random};
use tetrachord_consensus::{Options, ReplicaId};

fn damage(message: &Bytes, random: &mut Random) -> Bytes {
    let mut bytes = message.to_vec();
    for _ in 0..1 + random.below(3) {
        let at = 1 + random.below(bytes.len().max(2) - 1);
        match random.below(4) {
            0 if at < bytes.len() => bytes[at] = random.next() as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            // The largest number that fits into a varint, in place of whatever is here.
            2 => drop(
                bytes
                    .splice(at.min(bytes.len())..(at + 1).min(bytes.len()), [0xff; 9].into_iter().chain([1])),
            ),
            _ => bytes.truncate(at),
        }
        if bytes.is_empty() {
            break;
        }
    }
    Bytes::from(bytes)
}

/// The message with every byte in turn replaced by the largest number: finds sums that overflow.
fn with_huge_numbers(message: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    (1..message.len()).map(|at| {
        let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        Bytes::from([&message[..at], &huge, &message[at + 1..]].concat())
    })
}

#[test]
fn damaged_messages_never_make_a_replica_panic() {
    for seed in 0..400 {
        let mut random = Random(seed);
        let mut cluster = Cluster::new(3, Options { seed, ..Options::default() });
        let mut delivered = 0;
        for step in 0..1_500 {
            if random.chance(15) {
                cluster.advance(10 + random.next() % 60);
            }
            cluster.persist(random.below(3));
            if random.chance(8) {
                let at = cluster.leader().unwrap_or(0);
                let _ = cluster.propose(at, &format!("v{step}"));
            }
            if random.chance(3) && cluster.is_up(0) {
                cluster.read(random.below(3));
            }
            if cluster.network.is_empty() {
                continue;
            }
            let position = random.below(cluster.network.len());
            let original = cluster.network[position].clone();
            if random.chance(10) {
                inject(&mut cluster, &original, damage(&original.message, &mut random));
                delivered += 1;
            }
            if step % 40 == 0 {
                for message in with_huge_numbers(&original.message) {
                    inject(&mut cluster, &original, message);
                    delivered += 1;
                }
            }
            if !cluster.network.is_empty() {
                let position = random.below(cluster.network.len());
                cluster.deliver(position);
            }
            cluster.network.truncate(300);
        }
        assert!(delivered > 30, "seed {seed}: only {delivered} damaged messages arrived");
    }
}

/// Delivers a copy of a message with other bytes. A replica that declared itself unfit is replaced by a fresh start from
/// its disk, as a supervisor would do.
fn inject(cluster: &mut Cluster, original: &Envelope, message: Bytes) {
    let from = ReplicaId(original.from.0);
    cluster.network.push(Envelope { from, to: original.to, message });
    let last = cluster.network.len() - 1;
    cluster.deliver(last);
    let to = usize::from(original.to.0);
    if cluster.nodes[to].fatal.take().is_some() {
        cluster.crash(to, 0);
        cluster.start(to);
    }
}
