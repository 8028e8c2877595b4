//! The tenures that a cluster begins with, as its files say.

use super::cluster::GenesisNode;
use crate::ring::{GroupId, Member, NodeId, QuorumRule, Tenure, found};
use std::collections::BTreeSet;

/// The first tenures of `groups` groups of `replicas` replicas each.
pub(super) fn founding(
    (groups, replicas): (usize, usize),
    quorums: QuorumRule,
    nodes: &[GenesisNode],
) -> Vec<Tenure> {
    found((groups, replicas, nodes.len()), quorums, |id, group| {
        let node = nodes.iter().find(|node| node.id == id).expect("nodes are numbered without gaps");
        let epoch_key = node.epoch_keys.iter().find(|epoch| epoch.group == group).map(|epoch| epoch.key.0);
        let signing = node.signing_key.map(|key| key.0);
        Member { node: id, key: node.key.0, signing, epoch_key }
    })
}

/// Checks that nodes stand in order.
pub(super) fn check_order(nodes: &[GenesisNode]) -> Result<(), String> {
    let is_next = |(index, node): (usize, &GenesisNode)| node.id == NodeId::founder(index);
    if nodes.iter().enumerate().all(is_next) {
        return Ok(());
    }
    let ids: Vec<u128> = nodes.iter().map(|node| node.id.0).collect();
    Err(format!("node ids are {ids:?}; they must be 1 to {} in order", nodes.len()))
}

/// Checks that founders in Byzantine mode have the keys that they need, and no others.
pub(super) fn check_founders(sizes: (usize, usize), nodes: &[GenesisNode]) -> Result<(), String> {
    check_order(nodes)?;
    if let Some(node) = nodes.iter().find(|node| node.signing_key.is_none()) {
        return Err(format!("{} has no signing_key: in Byzantine mode everybody signs", node.id));
    }
    let tenures = founding(sizes, QuorumRule::Byzantine, nodes);
    for node in nodes {
        let hosts = |tenure: &&Tenure| tenure.index_of(node.id).is_some();
        let needed: BTreeSet<GroupId> = tenures.iter().filter(hosts).map(Tenure::group).collect();
        let named: BTreeSet<GroupId> = node.epoch_keys.iter().map(|epoch| epoch.group).collect();
        if named != needed || named.len() != node.epoch_keys.len() {
            let groups = needed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(format!("{}: epoch_keys must name a key for each of {groups}, once", node.id));
        }
    }
    Ok(())
}
