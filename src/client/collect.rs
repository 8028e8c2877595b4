//! Byzantine mode: what the members of a group tell about requests, gathered until `f + 1` of them agree.
//!
//! Invariants:
//! * what a node tells of a group counts only if it has a replica of that group: `f` bounds the liars among the members, and
//!   says nothing about the rest of the cluster;
//! * a node counts once for an outcome, and no node makes a client remember more than a few.

use crate::kv::{Reply, RequestId};
use crate::proof::OutcomeProof;
use crate::ring::{GroupId, NodeId, RingMap};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tetrachord_consensus::quorum::liars;
use tokio::sync::oneshot;

/// Different outcomes of one request that are remembered of one node. An honest one tells one for each time that the
/// request was ordered.
const TOLD_MAX: usize = 4;

/// Who has a replica of which group, as the cluster file says. In crash mode it names none: nodes are believed there.
#[derive(Debug, Default)]
pub(super) struct Members(BTreeMap<GroupId, Arc<[NodeId]>>);

impl Members {
    pub(super) fn new(ring: &RingMap) -> Self {
        Self(ring.groups().iter().map(|place| (place.id, Arc::from(place.nodes.as_slice()))).collect())
    }

    /// The nodes that have a replica of the group.
    pub(super) fn of(&self, group: GroupId) -> &[NodeId] {
        self.0.get(&group).map_or(&[], |members| members)
    }

    /// Whether the node has a replica of the group.
    pub(super) fn has(&self, group: GroupId, node: NodeId) -> bool {
        self.of(group).contains(&node)
    }

    fn shared(&self, group: GroupId) -> Arc<[NodeId]> {
        Arc::clone(self.0.get(&group).expect("a request is for a group of the ring"))
    }
}

/// An outcome that enough replicas agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) slot: u64,
    pub(super) reply: Reply,
    pub(super) proofs: Vec<OutcomeProof>,
}

/// What replicas have told about one request.
#[derive(Debug)]
struct Collector {
    members: Arc<[NodeId]>,
    told: Vec<(u64, Reply, BTreeMap<NodeId, Option<OutcomeProof>>)>,
    waiting: Option<oneshot::Sender<Agreed>>,
}

impl Collector {
    fn take(&mut self, node: NodeId, slot: u64, reply: &Reply, proof: Option<OutcomeProof>) {
        if !self.members.contains(&node) {
            return;
        }
        let of_node = self.told.iter().filter(|(_, _, nodes)| nodes.contains_key(&node)).count();
        if of_node >= TOLD_MAX {
            return;
        }
        let index = self.told.iter().position(|(at, known, _)| *at == slot && known == reply);
        let index = index.unwrap_or_else(|| {
            self.told.push((slot, reply.clone(), BTreeMap::new()));
            self.told.len() - 1
        });
        let (_, _, nodes) = &mut self.told[index];
        nodes.insert(node, proof);
        if nodes.len() > liars(self.members.len())
            && let Some(waiting) = self.waiting.take()
        {
            let proofs = nodes.values().flatten().cloned().collect();
            // Nobody waits any more: fine.
            let _ = waiting.send(Agreed { slot, reply: reply.clone(), proofs });
        }
    }
}

/// Everything that is waited for, by request.
#[derive(Debug)]
pub(super) struct Collectors {
    members: Arc<Members>,
    waiting: Mutex<BTreeMap<(GroupId, RequestId), Collector>>,
}

impl Collectors {
    pub(super) fn new(members: Arc<Members>) -> Self {
        Self { members, waiting: Mutex::default() }
    }

    /// Waits for what enough members of the group tell about a request, until the returned value is dropped.
    pub(super) fn expect(
        &self,
        group: GroupId,
        request: RequestId,
    ) -> (Expected<'_>, oneshot::Receiver<Agreed>) {
        let (sender, answer) = oneshot::channel();
        let members = self.members.shared(group);
        let collector = Collector { members, told: Vec::new(), waiting: Some(sender) };
        let key = (group, request);
        self.waiting.lock().expect("never held while panicking").insert(key, collector);
        (Expected { collectors: self, key }, answer)
    }

    /// A node tells what requests came to. What nobody asked for is ignored, and what it cannot know.
    pub(super) fn take(
        &self,
        node: NodeId,
        group: GroupId,
        slot: u64,
        replies: Vec<(RequestId, Reply, Option<OutcomeProof>)>,
    ) {
        let mut waiting = self.waiting.lock().expect("never held while panicking");
        for (request, reply, proof) in replies {
            if let Some(collector) = waiting.get_mut(&(group, request)) {
                collector.take(node, slot, &reply, proof);
            }
        }
    }
}

/// Forgets a request when nobody waits for it any more.
pub(super) struct Expected<'a> {
    collectors: &'a Collectors,
    key: (GroupId, RequestId),
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.collectors.waiting.lock().expect("never held while panicking").remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::SessionId;

    const REQUEST: RequestId = RequestId { session: SessionId(7), number: 1 };

    /// What the client of one request believes when nodes tell these versions of these slots, in a ring where each of eight
    /// groups has four of eight nodes: the first has n1 to n4.
    fn collect(told: &[(u32, u64, u64)]) -> Option<Agreed> {
        let collectors = Collectors::new(Arc::new(Members::new(&RingMap::even(8, 8, 4))));
        let (_expected, mut answer) = collectors.expect(GroupId(1), REQUEST);
        for (node, slot, version) in told {
            let reply = Reply::Put { version: *version };
            collectors.take(NodeId(*node), GroupId(1), *slot, vec![(REQUEST, reply, None)]);
        }
        answer.try_recv().ok()
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
        for place in RingMap::even(8, 8, 4).groups() {
            let count = place.nodes.iter().filter(|node| [NodeId(1), NodeId(5)].contains(node)).count();
            assert_eq!(count, 1, "{}", place.id);
        }
        assert_eq!(collect(&[(1, 5, 9), (5, 5, 9)]), None);
        let agreed = collect(&[(1, 5, 9), (5, 5, 9), (2, 5, 7), (6, 5, 9), (4, 5, 7)]).unwrap();
        assert_eq!(agreed.reply, Reply::Put { version: 7 });
    }

    #[test]
    fn what_is_told_of_another_group_is_not_taken_for_this_one() {
        let collectors = Collectors::new(Arc::new(Members::new(&RingMap::even(2, 4, 4))));
        let (_expected, mut answer) = collectors.expect(GroupId(1), REQUEST);
        for node in 1..=4 {
            let told = vec![(REQUEST, Reply::Put { version: 1 }, None)];
            collectors.take(NodeId(node), GroupId(2), 5, told);
        }
        assert!(answer.try_recv().is_err());
    }

    #[test]
    fn a_node_that_tells_many_stories_costs_little() {
        let collectors = Collectors::new(Arc::new(Members::new(&RingMap::even(1, 4, 4))));
        let (_expected, _answer) = collectors.expect(GroupId(1), REQUEST);
        for story in 0..1_000 {
            let told = vec![(REQUEST, Reply::Put { version: 0 }, None)];
            collectors.take(NodeId(1), GroupId(1), story, told);
        }
        let waiting = collectors.waiting.lock().unwrap();
        assert_eq!(waiting[&(GroupId(1), REQUEST)].told.len(), TOLD_MAX);
    }
}
