//! Who has a replica of which group, as the cluster file says.

use crate::ring::{GroupId, NodeId, Tenure};
use std::collections::BTreeMap;
use std::sync::Arc;

/// In Byzantine mode, the tenure of each group, and its members. In crash mode it names none: nodes are believed there.
#[derive(Debug, Default)]
pub(super) struct Members(BTreeMap<GroupId, (Tenure, Arc<[NodeId]>)>);

impl Members {
    pub(super) fn new(tenures: &[Tenure]) -> Self {
        Self(
            tenures
                .iter()
                .map(|tenure| (tenure.group(), (tenure.clone(), tenure.nodes().collect())))
                .collect(),
        )
    }

    /// The group, in the epoch in which it is known.
    pub(super) fn tenure(&self, group: GroupId) -> &Tenure {
        &self.0.get(&group).expect("a request is for a group of the ring").0
    }

    /// The nodes that have a replica of the group.
    pub(super) fn of(&self, group: GroupId) -> &[NodeId] {
        self.0.get(&group).map_or(&[], |(_, members)| members)
    }

    /// Whether the node has a replica of the group.
    pub(super) fn has(&self, group: GroupId, node: NodeId) -> bool {
        self.of(group).contains(&node)
    }

    /// The same as [`Self::of`], to be kept.
    pub(super) fn shared(&self, group: GroupId) -> Arc<[NodeId]> {
        Arc::clone(&self.0.get(&group).expect("a request is for a group of the ring").1)
    }
}
