//! What nodes say of themselves. Each is shown, and believed only about itself and the replicas that it has.

use super::outcome::Refusal;
use crate::ring::{Atlas, GroupId, NodeId};
use crate::wire::NodeStatus;
use std::collections::BTreeSet;

/// What a node may say: its own name, and once of each group that it has a replica of.
pub(super) fn own(
    node: NodeId,
    atlas: Option<&Atlas>,
    mut status: NodeStatus,
) -> Result<NodeStatus, Refusal> {
    if status.node != node {
        return Err(Refusal::Unavailable(format!("it says that it is {}", status.node)));
    }
    let has = |group: GroupId| {
        atlas.is_none_or(|atlas| atlas.group(group).is_some_and(|place| place.nodes.contains(&node)))
    };
    let mut told = BTreeSet::new();
    status.groups.retain(|group| has(group.group) && told.insert(group.group));
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::found_without_keys;
    use crate::wire::GroupStatus;

    fn status(node: u128, groups: &[u128]) -> NodeStatus {
        let group = |group: &u128| GroupStatus { group: GroupId(*group), ..GroupStatus::default() };
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
        let atlas = Atlas::founded(&found_without_keys(8, 8, 4));
        let told = own(NodeId(1), Some(&atlas), status(1, &[1, 2, 3, 8, 8, 99])).unwrap();
        let groups: Vec<u128> = told.groups.iter().map(|group| group.group.0).collect();
        assert_eq!(groups, [1, 8]);
        assert!(own(NodeId(1), Some(&atlas), status(2, &[2])).is_err());
    }
}
