//! Who has a replica of which group, as the cluster file says.

use crate::ring::{GroupId, NodeId, RingMap};
use std::collections::BTreeMap;
use std::sync::Arc;

/// In Byzantine mode, the members of each group. In crash mode it names none: nodes are believed there.
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

    /// The same as [`Self::of`], to be kept.
    pub(super) fn shared(&self, group: GroupId) -> Arc<[NodeId]> {
        Arc::clone(self.0.get(&group).expect("a request is for a group of the ring"))
    }
}
