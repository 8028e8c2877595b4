//! What nodes say of themselves. Each is shown, and believed only about itself and the replicas that it has.

use super::Client;
use super::outcome::unexpected;
use crate::ring::{GroupId, NodeId, RingMap};
use crate::wire::{Answer, NodeStatus, Request};
use std::collections::BTreeSet;

impl Client {
    /// What a node knows of itself.
    pub async fn status(&self, node: NodeId) -> Result<NodeStatus, String> {
        let links = &self.inner.links;
        match links.call(node, &Request::Status, self.inner.options.attempt).await {
            Ok(Answer::Status(status)) => {
                own(node, links.ring().as_ref().map(|(ring, _)| ring.as_ref()), *status)
            }
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What a node may say: its own name, and once of each group that it has a replica of.
fn own(node: NodeId, ring: Option<&RingMap>, mut status: NodeStatus) -> Result<NodeStatus, String> {
    if status.node != node {
        return Err(format!("it says that it is {}", status.node));
    }
    let has = |group: GroupId| {
        ring.is_none_or(|ring| ring.group(group).is_some_and(|place| place.nodes.contains(&node)))
    };
    let mut told = BTreeSet::new();
    status.groups.retain(|group| has(group.group) && told.insert(group.group));
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{GroupStatus, ProcessStats};

    fn status(node: u32, groups: &[u32]) -> NodeStatus {
        let group = |group: &u32| GroupStatus { group: GroupId(*group), ..GroupStatus::default() };
        NodeStatus {
            node: NodeId(node),
            incarnation: 1,
            uptime_millis: 0,
            connected: Vec::new(),
            awaits: Vec::new(),
            open_requests: 0,
            log_bytes: 0,
            process: ProcessStats::default(),
            groups: groups.iter().map(group).collect(),
        }
    }

    #[test]
    fn a_node_speaks_for_itself_and_its_own_replicas() {
        // Eight groups of four on eight nodes: n1 has replicas of g1, g6, g7 and g8.
        let ring = RingMap::even(8, 8, 4);
        let told = own(NodeId(1), Some(&ring), status(1, &[1, 2, 3, 8, 8, 99])).unwrap();
        let groups: Vec<u32> = told.groups.iter().map(|group| group.group.0).collect();
        assert_eq!(groups, [1, 8]);
        assert!(own(NodeId(1), Some(&ring), status(2, &[2])).is_err());
    }
}
