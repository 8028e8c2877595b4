//! What nodes say of themselves. Each is shown, and believed only about itself and the replicas that it has.

use super::Client;
use super::links::CallError;
use super::outcome::{Refusal, unexpected};
use super::signed::wall_micros;
use crate::ring::{GroupId, NodeId, RingMap};
use crate::transport::LinkError;
use crate::wire::{Answer, NodeStatus, Request};
use std::collections::BTreeSet;

impl Client {
    /// What a node knows of itself. Asking changes nothing, so every error is a refusal: denied, or unavailable and why.
    pub async fn status(&self, node: NodeId) -> Result<NodeStatus, Refusal> {
        let links = &self.inner.links;
        match links.call(node, &Request::Status, self.inner.options.attempt).await {
            Ok(Answer::Status(status)) => {
                own(node, links.ring().as_ref().map(|(ring, _)| ring.as_ref()), *status)
            }
            Ok(other) => Err(Refusal::Unavailable(unexpected(&other))),
            Err(CallError::Link(error @ LinkError::Denied(_))) => Err(Refusal::Denied(error.to_string())),
            Err(error) => Err(Refusal::Unavailable(error.to_string())),
        }
    }

    /// The same, and by how much its clock is ahead of this one's, in microseconds: by so much at least, because what it says was on its
    /// way for a while. None if it has not looked at its clock yet.
    pub async fn status_and_clock(&self, node: NodeId) -> Result<(NodeStatus, Option<i64>), Refusal> {
        let status = self.status(node).await?;
        let ahead = i128::from(status.wall_micros) - i128::from(wall_micros());
        let ahead = i64::try_from(ahead).unwrap_or(if ahead > 0 { i64::MAX } else { i64::MIN });
        let has_looked = status.wall_micros > 0;
        Ok((status, has_looked.then_some(ahead)))
    }

    /// The groups of the cluster and the nodes that each lies on, if they are known: from the cluster file in Byzantine mode, else
    /// from the first node that greeted.
    #[must_use]
    pub fn places(&self) -> Vec<(GroupId, Vec<NodeId>)> {
        let known = self.inner.links.ring();
        let groups = known.iter().flat_map(|(ring, _)| ring.groups());
        groups.map(|place| (place.id, place.nodes.clone())).collect()
    }
}

/// What a node may say: its own name, and once of each group that it has a replica of.
fn own(node: NodeId, ring: Option<&RingMap>, mut status: NodeStatus) -> Result<NodeStatus, Refusal> {
    if status.node != node {
        return Err(Refusal::Unavailable(format!("it says that it is {}", status.node)));
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
    use crate::wire::GroupStatus;

    fn status(node: u32, groups: &[u32]) -> NodeStatus {
        let group = |group: &u32| GroupStatus { group: GroupId(*group), ..GroupStatus::default() };
        NodeStatus {
            node: NodeId(node),
            incarnation: 1,
            groups: groups.iter().map(group).collect(),
            ..NodeStatus::default()
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
