//! Which group owns which interval, and which nodes host it.

use super::id::{Position, RingInterval};
use super::names::{GroupId, NodeId, TenureId};
use serde::{Deserialize, Serialize};

/// A group's place: its interval, and the nodes that host its replicas, the preferred leader first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPlace {
    /// The group.
    pub id: GroupId,
    /// Its epoch.
    pub epoch: u64,
    /// What it owns.
    pub range: RingInterval,
    /// Hosts of its replicas; the index is the replica's number.
    pub nodes: Vec<NodeId>,
}

/// The whole ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingMap {
    groups: Vec<GroupPlace>,
}

impl GroupPlace {
    /// The group in its epoch.
    #[must_use]
    pub fn tenure(&self) -> TenureId {
        TenureId { group: self.id, epoch: self.epoch }
    }
}

impl RingMap {
    /// Cuts the ring evenly into `groups` intervals and places the replicas of each on `replicas` distinct nodes, the
    /// ones that follow clockwise from its end. The preferred leaders are spread over the nodes.
    #[must_use]
    pub fn even(groups: usize, nodes: usize, replicas: usize) -> Self {
        assert!(groups > 0 && replicas > 0 && replicas <= nodes, "the caller has checked the sizes");
        let end_of = |index: usize| {
            let wide = ((index as u128 + 1) << 64) / groups as u128 - 1;
            Position(u64::try_from(wide).expect("the last interval ends with the ring"))
        };
        let place = |index: usize| GroupPlace {
            id: GroupId::founder(index),
            epoch: 1,
            range: RingInterval { start: end_of((index + groups - 1) % groups), end: end_of(index) },
            nodes: (0..replicas).map(|step| NodeId::founder((index + step) % nodes)).collect(),
        };
        Self { groups: (0..groups).map(place).collect() }
    }

    /// Whether it is a ring: every position has an owner, and every owner a name of its own and replicas. What comes from elsewhere is
    /// asked before it is used.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let Some(last) = self.groups.last() else { return false };
        let mut before = last.range.end;
        let mut names = std::collections::BTreeSet::new();
        let is_next = |place: &GroupPlace| {
            let follows = place.range.start == std::mem::replace(&mut before, place.range.end);
            follows && !place.nodes.is_empty() && names.insert(place.id)
        };
        let is_ascending = self.groups.windows(2).all(|two| two[0].range.end < two[1].range.end);
        self.groups.iter().all(is_next) && is_ascending
    }

    /// All groups, by ascending interval end.
    #[must_use]
    pub fn groups(&self) -> &[GroupPlace] {
        &self.groups
    }

    /// The group that owns the position.
    #[must_use]
    pub fn owner(&self, position: Position) -> &GroupPlace {
        let index = self.groups.partition_point(|group| group.range.end < position);
        let owner = &self.groups[index % self.groups.len()];
        assert!(owner.range.contains(position), "intervals cover the ring");
        owner
    }

    /// The group with this number.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<&GroupPlace> {
        self.groups.iter().find(|group| group.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_with_gaps_or_nobody_is_no_ring() {
        for groups in [1, 2, 7, 64] {
            let whole = RingMap::even(groups, 5, 3);
            assert!(whole.is_whole());
            let broken = |spoil: &dyn Fn(&mut Vec<GroupPlace>)| {
                let mut map = whole.clone();
                spoil(&mut map.groups);
                !map.is_whole()
            };
            assert!(broken(&|places| places.clear()));
            assert!(broken(&|places| places[0].nodes.clear()));
            assert!(broken(&|places| places.push(places[0].clone())));
            assert!(broken(&|places| places[0].range.start.0 ^= 1));
            assert!(groups == 1 || broken(&|places| _ = places.pop()));
            assert!(groups == 1 || broken(&|places| places.reverse()));
        }
    }

    #[test]
    fn every_position_has_exactly_one_owner() {
        for groups in [1, 2, 3, 4, 7, 64] {
            let map = RingMap::even(groups, 5, 3);
            for probe in [0, 1, 1 << 20, u64::MAX / 3, u64::MAX / 2, u64::MAX / 2 + 1, u64::MAX - 1, u64::MAX]
            {
                let owners =
                    map.groups().iter().filter(|group| group.range.contains(Position(probe))).count();
                assert_eq!(owners, 1, "{groups} groups, position {probe}");
                assert!(map.owner(Position(probe)).range.contains(Position(probe)));
            }
        }
    }

    #[test]
    fn replicas_live_on_distinct_nodes_and_leaders_are_spread() {
        let map = RingMap::even(4, 4, 3);
        let leaders: std::collections::BTreeSet<_> =
            map.groups().iter().map(|group| group.nodes[0]).collect();
        assert_eq!(leaders.len(), 4);
        for group in map.groups() {
            let distinct: std::collections::BTreeSet<_> = group.nodes.iter().collect();
            assert_eq!(distinct.len(), 3);
        }
    }
}
