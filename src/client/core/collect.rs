//! Byzantine mode: what the members of a group tell about requests, gathered until `f + 1` of them agree.
//!
//! Invariants:
//! * what a node tells of a group counts only if it has a replica of that group: `f` bounds the liars among the members, and
//!   says nothing about the rest of the cluster;
//! * a node counts once for an outcome, and no node makes a client remember more than a few;
//! * where proofs are asked for, what a node tells counts only with a proof of its own that holds.

use crate::kv::{self, Reply, RequestId};
use crate::proof::{OutcomeProof, outcome_leaf};
use crate::ring::NodeId;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use tetrachord_consensus::Mutation;
use tetrachord_consensus::pbft::Keyring;
use tetrachord_consensus::quorum::liars;

/// Different outcomes of one request that are remembered of one node. An honest one tells one for each time that the
/// request was ordered.
const TOLD_MAX: usize = 4;

/// An outcome that enough replicas agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) slot: u64,
    pub(super) reply: Reply,
    pub(super) proofs: Vec<OutcomeProof>,
}

/// What proofs of a request's outcome must show, where they are asked for.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) keyring: Arc<Keyring>,
    pub(super) client: kv::Client,
    pub(super) operation: Bytes,
}

/// What replicas have told about one request.
#[derive(Debug)]
pub(super) struct Collector {
    request: RequestId,
    members: Arc<[NodeId]>,
    wanted: Option<Wanted>,
    /// Nodes whose proofs did not hold, and how often: each costs the check of a signature.
    unproved: BTreeMap<NodeId, usize>,
    told: Vec<(u64, Reply, BTreeMap<NodeId, Option<OutcomeProof>>)>,
    mutation: Mutation,
}

impl Collector {
    /// Nothing was told yet to whoever waits for what enough of these members tell about a request, and prove if that is wanted.
    pub(super) fn new(request: RequestId, members: Arc<[NodeId]>, wanted: Option<Wanted>) -> Self {
        let mutation = Mutation::None;
        Self { request, members, wanted, unproved: BTreeMap::new(), told: Vec::new(), mutation }
    }

    /// The same with a defect, in tests of the tests.
    pub(super) fn with(self, mutation: Mutation) -> Self {
        Self { mutation, ..self }
    }

    /// A node tells what the request came to. What enough of them agree on, once they do.
    pub(super) fn take(
        &mut self,
        node: NodeId,
        slot: u64,
        reply: &Reply,
        proof: Option<OutcomeProof>,
    ) -> Option<Agreed> {
        let replica = self.members.iter().position(|member| *member == node);
        let replica = replica.or(self.mutation.believes_anybody().then_some(0))?;
        let needed = if self.mutation.believes_one() { 1 } else { liars(self.members.len()) + 1 };
        let of_node = self.told.iter().filter(|(_, _, nodes)| nodes.contains_key(&node)).count();
        let unproved = self.unproved.get(&node).copied().unwrap_or(0);
        if of_node >= TOLD_MAX || unproved >= TOLD_MAX {
            return None;
        }
        if !self.is_proved(replica, slot, reply, proof.as_ref()) {
            *self.unproved.entry(node).or_default() += 1;
            return None;
        }
        let index = self.told.iter().position(|(at, known, _)| *at == slot && known == reply);
        let index = index.unwrap_or_else(|| {
            self.told.push((slot, reply.clone(), BTreeMap::new()));
            self.told.len() - 1
        });
        let (_, _, nodes) = &mut self.told[index];
        nodes.insert(node, proof);
        (nodes.len() >= needed).then(|| {
            let proofs = nodes.values().flatten().cloned().collect();
            Agreed { slot, reply: reply.clone(), proofs }
        })
    }

    /// Whether this replica itself has signed what is told in its name, if that was asked for.
    fn is_proved(&self, replica: usize, slot: u64, reply: &Reply, proof: Option<&OutcomeProof>) -> bool {
        let Some(wanted) = &self.wanted else { return true };
        let leaf = outcome_leaf(&wanted.client, self.request, &wanted.operation, reply);
        proof.is_some_and(|proof| {
            usize::from(proof.signer.0) == replica && proof.slot == slot && proof.holds(leaf, &wanted.keyring)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::members::Members;
    use super::*;
    use crate::kv::SessionId;
    use crate::ring::{GroupId, Tenure, found_without_keys};

    const REQUEST: RequestId = RequestId { session: SessionId(7), number: 1 };

    fn tenures() -> Vec<Tenure> {
        found_without_keys(8, 8, 4)
    }

    /// In a ring where each of eight groups has four of eight nodes: the first has n1 to n4.
    fn collector(wanted: Option<Wanted>) -> Collector {
        Collector::new(REQUEST, Members::new(&tenures()).shared(GroupId(1)), wanted)
    }

    /// What the client of one request believes when nodes tell these versions of these slots.
    fn collect(told: &[(u128, u64, u64)]) -> Option<Agreed> {
        let mut collector = collector(None);
        let mut take = |(node, slot, version): &(u128, u64, u64)| {
            collector.take(NodeId(*node), *slot, &Reply::Put { version: *version }, None)
        };
        told.iter().find_map(&mut take)
    }

    #[test]
    fn an_answer_is_what_enough_different_members_say_of_one_slot() {
        assert_eq!(collect(&[(1, 5, 7)]), None);
        assert_eq!(collect(&[(1, 5, 7), (1, 5, 7)]), None, "one node counts once");
        assert_eq!(collect(&[(1, 5, 7), (2, 5, 8)]), None, "different replies");
        assert_eq!(collect(&[(1, 5, 7), (2, 6, 7)]), None, "different slots");
        let agreed = collect(&[(1, 5, 9), (2, 5, 7), (3, 5, 7)]).unwrap();
        assert_eq!((agreed.slot, agreed.reply), (5, Reply::Put { version: 7 }));
    }

    /// n1 and n5 lie. No group has both, so each group has as many liars as it survives; n1 tells n5 what was asked.
    #[test]
    fn a_node_that_has_no_replica_of_the_group_is_not_counted() {
        for tenure in tenures() {
            let count = tenure.nodes().filter(|node| [NodeId(1), NodeId(5)].contains(node)).count();
            assert_eq!(count, 1, "{}", tenure.id);
        }
        assert_eq!(collect(&[(1, 5, 9), (5, 5, 9)]), None);
        let agreed = collect(&[(1, 5, 9), (5, 5, 9), (2, 5, 7), (6, 5, 9), (4, 5, 7)]).unwrap();
        assert_eq!(agreed.reply, Reply::Put { version: 7 });
    }

    #[test]
    fn a_node_that_tells_many_stories_costs_little() {
        let mut collector = collector(None);
        for story in 0..1_000 {
            assert_eq!(collector.take(NodeId(1), story, &Reply::Put { version: 0 }, None), None);
        }
        assert_eq!(collector.told.len(), TOLD_MAX);
    }

    /// A replica that answers rightly and does not prove it, or with the words of another, does not stand in the way of those that
    /// do.
    #[test]
    fn where_proofs_are_wanted_only_those_count_whose_own_proof_holds() {
        use crate::proof::SlotOutcomes;
        use tetrachord_consensus::pbft::{Domain, Signer};
        use tetrachord_consensus::{Digest, Epoch, ReplicaId};
        let domain = Domain { cluster: Digest([1; 32]), group: 1, epoch: Epoch(1) };
        let (client, operation) = ([9; 32], Bytes::from_static(b"get"));
        let reply = Reply::Value { found: None, time: 1 };
        let leaf = outcome_leaf(&client, REQUEST, &operation, &reply);
        let prove = |replica| {
            let signer = Signer::toy(ReplicaId(replica), domain);
            SlotOutcomes::sign(5, vec![leaf], &signer).prove(0)
        };
        let wanted =
            || Wanted { keyring: Arc::new(Keyring::toy(domain, 4, 0)), client, operation: operation.clone() };
        let told = |told: &[(u128, Option<OutcomeProof>)]| {
            let mut collector = collector(Some(wanted()));
            let mut take = |(node, proof): &(u128, Option<OutcomeProof>)| {
                collector.take(NodeId(*node), 5, &reply, proof.clone())
            };
            told.iter().find_map(&mut take)
        };
        let forged = OutcomeProof { signature: prove(3).signature, ..prove(0) };
        let of_other_slot = OutcomeProof { slot: 6, ..prove(0) };
        for bad in [None, Some(prove(1)), Some(forged), Some(of_other_slot)] {
            assert_eq!(told(&[(1, bad.clone()), (2, Some(prove(1)))]), None, "{bad:?}");
            let agreed = told(&[(1, bad), (2, Some(prove(1))), (3, Some(prove(2)))]).unwrap();
            assert_eq!(agreed.proofs, [prove(1), prove(2)]);
        }
        assert!(
            told(&[(1, None), (1, Some(prove(0))), (2, Some(prove(1)))]).is_some(),
            "it may prove it later"
        );
    }
}
