//! What tests of single rules need.
#![allow(dead_code, clippy::unwrap_used, reason = "test code, of which each file uses a part")]

use super::{Cluster, Envelope, describe};
use tetrachord_consensus::paxos::{Ballot, Message};
use tetrachord_consensus::{Epoch, Mutation, Options, ReplicaId, codec};

pub(crate) fn options(mutation: Mutation) -> Options {
    Options { mutation, ..Options::default() }
}

/// A cluster of `n` that replica 0 leads, with nothing under way.
pub(crate) fn led(n: usize, options: Options) -> Cluster {
    let mut cluster = Cluster::new(n, options);
    cluster.run(1_500);
    assert_eq!(cluster.leader(), Some(0), "the first replica is the first to try");
    cluster
}

pub(crate) fn ballot(round: u64, replica: u8) -> Ballot {
    Ballot { epoch: Epoch(1), round, replica: ReplicaId(replica) }
}

pub(crate) fn inject(cluster: &mut Cluster, from: u8, to: usize, message: &Message) {
    let message = codec::encode(message);
    cluster.network.push(Envelope { from: ReplicaId(from), to: ReplicaId(to as u8), message });
    let last = cluster.network.len() - 1;
    cluster.deliver(last);
}

pub(crate) fn under_way(cluster: &Cluster) -> Vec<String> {
    cluster.network.iter().map(|envelope| describe(&envelope.message)).collect()
}

/// The test passes as the rules stand, and fails when one of them is switched off.
pub(crate) fn passes_only_with_the_rule(mutation: Mutation, test: fn(Options)) {
    test(options(Mutation::None));
    let broken = std::panic::catch_unwind(|| test(options(mutation)));
    assert!(broken.is_err(), "nobody noticed {mutation:?}");
}
