//! Byzantine mode: who members of a group say is its primary, and why they did not take what they were brought.
//!
//! Hints: whoever is asked in vain, others are asked too. A node says nothing of groups that it has no replica of, and a hint names
//! members alone, so there are never more hints than replicas in the cluster.

use super::members::Members;
use crate::ring::{GroupId, NodeId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Letters of a node's reason that are remembered and shown.
const REASON_LETTERS_MAX: usize = 300;

/// What nodes have said.
#[derive(Debug)]
pub(super) struct Hints {
    members: Arc<Members>,
    primaries: BTreeMap<GroupId, BTreeMap<NodeId, NodeId>>,
    refusals: BTreeMap<NodeId, (Duration, String)>,
}

impl Hints {
    pub(super) fn new(members: Arc<Members>) -> Self {
        Self { members, primaries: BTreeMap::new(), refusals: BTreeMap::new() }
    }

    /// A node did not take signed requests.
    pub(super) fn note_refusal(&mut self, node: NodeId, reason: &str, now: Duration) {
        let reason = reason.chars().filter(|letter| !letter.is_control()).take(REASON_LETTERS_MAX).collect();
        self.refusals.insert(node, (now, reason));
    }

    /// What members of the group have given as reasons since then.
    pub(super) fn refusals_since(&self, group: GroupId, since: Duration) -> Vec<String> {
        let recent =
            self.refusals.iter().filter(|(node, (at, _))| *at >= since && self.members.has(group, **node));
        recent.map(|(node, (_, reason))| format!("{node} says: {reason}")).collect()
    }

    /// A node says who is primary of a group.
    pub(super) fn note(&mut self, node: NodeId, group: GroupId, leader: Option<NodeId>) {
        if !self.members.has(group, node) {
            return;
        }
        let leader = leader.filter(|leader| self.members.has(group, *leader));
        let of_group = self.primaries.entry(group).or_default();
        match leader {
            Some(leader) => of_group.insert(node, leader),
            None => of_group.remove(&node),
        };
    }

    /// The one that most members name.
    pub(super) fn primary(&self, group: GroupId) -> Option<NodeId> {
        let named = self.primaries.get(&group)?;
        let count = |leader: &NodeId| named.values().filter(|other| *other == leader).count();
        named.values().max_by_key(|leader| (count(leader), std::cmp::Reverse(**leader))).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::found_without_keys;

    /// Eight nodes, eight groups of four; the first has n1 to n4.
    fn hints() -> Hints {
        Hints::new(Arc::new(Members::new(&found_without_keys(8, 8, 4))))
    }

    #[test]
    fn only_members_are_believed_about_their_primary_and_only_a_member_is_one() {
        let mut hints = hints();
        for stranger in 5..=8 {
            hints.note(NodeId(stranger), GroupId(1), Some(NodeId(4)));
        }
        assert_eq!(hints.primary(GroupId(1)), None);
        hints.note(NodeId(1), GroupId(1), Some(NodeId(6)));
        assert_eq!(hints.primary(GroupId(1)), None);
        hints.note(NodeId(2), GroupId(1), Some(NodeId(3)));
        assert_eq!(hints.primary(GroupId(1)), Some(NodeId(3)));
        hints.note(NodeId(2), GroupId(1), None);
        assert_eq!(hints.primary(GroupId(1)), None);
    }

    #[test]
    fn groups_that_do_not_exist_take_no_memory() {
        let mut hints = hints();
        (100..10_000).for_each(|group| hints.note(NodeId(1), GroupId(group), Some(NodeId(1))));
        assert!(hints.primaries.is_empty());
    }

    #[test]
    fn reasons_are_those_of_members_short_and_plain() {
        let (mut hints, at) = (hints(), Duration::from_secs(1));
        hints.note_refusal(NodeId(5), "full", at);
        assert_eq!(hints.refusals_since(GroupId(1), at), Vec::<String>::new());
        hints.note_refusal(NodeId(1), &format!("\u{1b}[2Jfull{}", "x".repeat(10_000)), at);
        let shown = hints.refusals_since(GroupId(1), at);
        assert!(shown.len() == 1 && shown[0].starts_with("n1 says: [2Jfull"), "{shown:?}");
        assert!(shown[0].chars().count() < 400 && !shown[0].chars().any(char::is_control));
        assert_eq!(hints.refusals_since(GroupId(1), at + at), Vec::<String>::new(), "long ago");
    }
}
