//! What the nodes' statuses come to: whether each group serves, and what is wrong with a node that is up.

use crate::client::Refusal;
use crate::ring::{GroupId, NodeId};
use crate::wire::{GroupStatus, NodeStatus};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tetrachord_consensus::quorum::liars;

/// What a node says, or why it says nothing.
pub(crate) type Answer = (NodeId, Result<NodeStatus, Refusal>);

/// Whether a group serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// All of its replicas take part.
    Serves,
    /// Not all, but enough.
    Degraded,
    /// Enough, but none leads yet.
    NoLeader,
    /// Too few, or they do not hear one another.
    NoQuorum,
}

impl State {
    /// Whether requests are served.
    pub(crate) fn serves(self) -> bool {
        matches!(self, Self::Serves | Self::Degraded)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Serves => "serves",
            Self::Degraded => "degraded",
            Self::NoLeader => "no leader",
            Self::NoQuorum => "no quorum",
        }
    }
}

/// How a group is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    group: GroupId,
    members: Vec<NodeId>,
    able: Vec<NodeId>,
    needed: usize,
    leader: Option<NodeId>,
    pub(crate) state: State,
}

impl Health {
    /// Judges a group by what its nodes say. In Byzantine mode a primary that is gone is replaced at the next request.
    pub(crate) fn of(group: GroupId, members: &[NodeId], is_byzantine: bool, answers: &[Answer]) -> Self {
        let told: Vec<(&NodeStatus, &GroupStatus)> = answers
            .iter()
            .filter(|(node, _)| members.contains(node))
            .filter_map(|(_, answer)| answer.as_ref().ok())
            .filter_map(|status| Some((status, status.groups.iter().find(|told| told.group == group)?)))
            .filter(|(status, told)| status.awaits.is_empty() && !told.is_installing)
            .collect();
        let able: Vec<NodeId> = told.iter().map(|(status, _)| status.node).collect();
        let said = told.iter().map(|(_, told)| usize::try_from(told.needed).unwrap_or(usize::MAX));
        let needed = match is_byzantine {
            // There is one quorum, and nobody needs to be believed about it.
            true => members.len() - liars(members.len()),
            // Who says nothing of quorums has majorities.
            false => said.max().unwrap_or(members.len() / 2 + 1),
        };
        let hears = |status: &NodeStatus| {
            1 + able.iter().filter(|peer| **peer != status.node && status.connected.contains(peer)).count()
        };
        let is_joined = told.iter().any(|(status, _)| hears(status) >= needed);
        let named = |leader: &NodeId| told.iter().filter(|(_, told)| told.leader == Some(*leader)).count();
        let leads = |(status, told): &&(&NodeStatus, &GroupStatus)| told.is_leader && hears(status) >= needed;
        let here = told.iter().filter(leads).map(|(status, _)| status.node).max_by_key(named);
        // One that others follow may be out of reach from here alone.
        let is_followed = |leader: &NodeId| {
            let hear = told
                .iter()
                .filter(|(status, told)| told.leader == Some(*leader) && status.connected.contains(leader));
            !able.contains(leader) && hear.count() + 1 >= needed
        };
        let leader = here.or_else(|| members.iter().copied().find(is_followed));
        let state = match (is_joined, leader) {
            (false, _) => State::NoQuorum,
            (true, None) if !is_byzantine => State::NoLeader,
            (true, Some(_)) if able.len() == members.len() => State::Serves,
            (true, _) => State::Degraded,
        };
        Self { group, members: members.to_vec(), able, needed, leader, state }
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "group": self.group,
            "state": self.state.word(),
            "leader": self.leader,
            "nodes": self.members,
            "able": self.able,
            "needed": self.needed,
        })
    }

    /// For people.
    pub(crate) fn words(&self) -> String {
        let (group, able, all, needed) = (self.group, self.able.len(), self.members.len(), self.needed);
        let missing = self.members.iter().filter(|node| !self.able.contains(node));
        let missing = missing.map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match self.state {
            State::Serves => format!("{group} serves"),
            State::Degraded if self.leader.is_some_and(|leader| !self.able.contains(&leader)) => {
                let leader = self.leader.unwrap_or_default();
                format!(
                    "{group} is led by {leader}, which does not answer here: see its address in the cluster file"
                )
            }
            State::Degraded if missing.is_empty() => format!("{group} serves; its primary is being replaced"),
            State::Degraded => {
                format!("{group} serves without {missing}; {able} of {all} are there, {needed} are needed")
            }
            State::NoLeader => {
                format!("{group} has NO LEADER: {able} of {all} replicas are there and have elected none yet")
            }
            State::NoQuorum if able >= needed => format!(
                "{group} has NO QUORUM: {able} of {all} replicas answer, but they are not linked to one another"
            ),
            State::NoQuorum => format!(
                "{group} has NO QUORUM: {able} of {all} replicas take part, {needed} are needed; nothing is acknowledged"
            ),
        }
    }
}

/// A clock this far from the others' is worth a word, in microseconds: in Byzantine mode batches from a clock further ahead wait.
pub(crate) const CLOCK_MICROS_OFF: i64 = 500_000;

/// By how much each node's clock is ahead of the one that asks, in microseconds.
pub(crate) type Clocks = BTreeMap<NodeId, i64>;

/// The middle one of the nodes' clocks; of an even number, the one that is nearer to the clock of who asks.
fn middle(clocks: &Clocks) -> Option<i64> {
    let mut sorted: Vec<i64> = clocks.values().copied().collect();
    sorted.sort_unstable();
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(if lower.unsigned_abs() <= upper.unsigned_abs() { lower } else { upper })
}

/// How far a node's clock is from the middle one, if it is further than it should be.
pub(crate) fn clock_off(node: NodeId, clocks: &Clocks) -> Option<i64> {
    let off = clocks.get(&node)?.saturating_sub(middle(clocks)?);
    (off.unsigned_abs() > CLOCK_MICROS_OFF.unsigned_abs()).then_some(off)
}

/// By how much the clock of who asks is behind the nodes', if it is off further than it should be.
pub(crate) fn own_clock_behind(clocks: &Clocks) -> Option<i64> {
    middle(clocks).filter(|off| off.unsigned_abs() > CLOCK_MICROS_OFF.unsigned_abs())
}

/// How far a clock is off, in words.
pub(crate) fn off_in_words(micros: i64) -> String {
    format!("{:.1} s {}", micros.unsigned_abs() as f64 / 1e6, if micros > 0 { "ahead" } else { "behind" })
}

/// What is wrong with a node that is up, in words.
pub(crate) fn troubles(status: &NodeStatus, clocks: &Clocks) -> Vec<String> {
    let mut troubles = Vec::new();
    if status.groups.is_empty() {
        troubles.push("member of no group".to_string());
    }
    if !status.awaits.is_empty() {
        troubles.push("not noted by the others yet".to_string());
    }
    if status.refuses_writes {
        troubles.push("refuses writes: disk almost full".to_string());
    }
    if let Some(off) = clock_off(status.node, clocks) {
        troubles.push(format!("clock {}", off_in_words(off)));
    }
    troubles
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u128, links: &[u128], leader: Option<u128>) -> Answer {
        let group = GroupStatus {
            group: GroupId(1),
            leader: leader.map(NodeId),
            is_leader: leader == Some(id),
            needed: 2,
            ..GroupStatus::default()
        };
        let connected = links.iter().copied().map(NodeId).collect();
        let status = NodeStatus { node: NodeId(id), connected, groups: vec![group], ..NodeStatus::default() };
        (NodeId(id), Ok(status))
    }

    fn down(id: u128) -> Answer {
        (NodeId(id), Err(Refusal::Unavailable("silent".to_string())))
    }

    #[test]
    fn a_leader_that_does_not_answer_here_leads_all_the_same() {
        let others_follow = [down(1), node(2, &[1, 3], Some(1)), node(3, &[1, 2], Some(1))];
        let health = Health::of(GroupId(1), &[1, 2, 3].map(NodeId), false, &others_follow);
        assert!(
            health.state == State::Degraded && health.words().contains("led by n1, which does not answer")
        );
        // Nobody has a connection to it: it is gone.
        let gone = [down(1), node(2, &[3], Some(1)), node(3, &[2], Some(1))];
        assert_eq!(state(&gone), State::NoLeader);
    }

    fn state(answers: &[Answer]) -> State {
        Health::of(GroupId(1), &[1, 2, 3].map(NodeId), false, answers).state
    }

    #[test]
    fn a_group_serves_if_enough_hear_one_another_and_one_leads() {
        let [one, two, three] =
            [(1, [2, 3]), (2, [1, 3]), (3, [1, 2])].map(|(id, links)| node(id, &links, Some(2)));
        assert_eq!(state(&[one.clone(), two.clone(), three]), State::Serves);
        assert_eq!(state(&[one, two.clone(), down(3)]), State::Degraded);
        assert_eq!(state(&[down(1), two.clone(), down(3)]), State::NoQuorum);
        assert_eq!(state(&[down(1), down(2), down(3)]), State::NoQuorum);
        let left = [node(1, &[3], Some(2)), down(2), node(3, &[1], Some(2))];
        assert_eq!(state(&left), State::NoLeader, "who is said to lead is gone");
        let alone = [node(1, &[], Some(1)), node(2, &[], None), node(3, &[], None)];
        assert_eq!(state(&alone), State::NoQuorum, "they answer and do not hear one another");
        let electing = [node(1, &[2], None), node(2, &[1], None), down(3)];
        assert_eq!(state(&electing), State::NoLeader);
        let (members, mut awaiting) = ([1, 2, 3].map(NodeId), node(1, &[2], Some(2)));
        awaiting.1.as_mut().unwrap().awaits = vec![NodeId(3)];
        let health = Health::of(GroupId(1), &members, false, &[awaiting, two, down(3)]);
        assert!(health.words().contains("NO QUORUM: 1 of 3"), "{}", health.words());
    }

    #[test]
    fn what_is_wrong_with_a_node_is_said() {
        let (_, Ok(mut status)) = node(3, &[], None) else { unreachable!("it is up") };
        let clocks = |far: i64| Clocks::from([(NodeId(1), 0), (NodeId(2), -1_000), (NodeId(3), far)]);
        assert_eq!(troubles(&status, &clocks(400_000)), Vec::<String>::new());
        status.refuses_writes = true;
        assert_eq!(
            troubles(&status, &clocks(3_200_000)),
            ["refuses writes: disk almost full", "clock 3.2 s ahead"]
        );
        status.groups.clear();
        assert_eq!(troubles(&status, &clocks(-2_000_000))[0], "member of no group");
        assert_eq!(troubles(&status, &clocks(-2_000_000))[2], "clock 2.0 s behind");
    }

    #[test]
    fn a_clock_is_held_against_the_others_and_then_against_who_asks() {
        let clocks = |clocks: &[i64]| -> Clocks { (1..).map(NodeId).zip(clocks.iter().copied()).collect() };
        let far = 40_000_000;
        // All nodes agree: it is the clock of who asks.
        let agree = clocks(&[far, far + 10, far - 10]);
        assert_eq!((clock_off(NodeId(1), &agree), own_clock_behind(&agree)), (None, Some(far)));
        // Of two, the one that agrees with who asks is right.
        let two = clocks(&[0, -far]);
        assert_eq!((clock_off(NodeId(1), &two), clock_off(NodeId(2), &two)), (None, Some(-far)));
        assert_eq!(own_clock_behind(&two), None);
        assert_eq!(own_clock_behind(&Clocks::new()), None);
    }

    #[test]
    fn a_liar_cannot_make_a_group_look_as_if_it_needed_more() {
        let members = [1, 2, 3, 4].map(NodeId);
        let mut answers: Vec<Answer> = (1..=4)
            .map(|id| node(id, &(1..=4).filter(|peer| *peer != id).collect::<Vec<_>>(), Some(1)))
            .collect();
        answers[3].1.as_mut().unwrap().groups[0].needed = 99;
        assert_eq!(Health::of(GroupId(1), &members, true, &answers).state, State::Serves);
    }
}
