//! What a node tells of its replicas.

use crate::group::Group;
use crate::ring::{GroupId, NodeId, QuorumRule, Tenure};
use crate::wire::GroupStatus;
use tetrachord_consensus::pbft::Condition;
use tetrachord_consensus::quorum::liars;

/// What a replica knows of itself.
pub(super) fn group_status(name: GroupId, group: &Group) -> GroupStatus {
    let engine = group.engine();
    let condition = group.condition();
    let of_pbft = |number: fn(&Condition) -> u64| condition.as_ref().map_or(0, number);
    let applied = group.machine().reached();
    let nodes: Vec<NodeId> = group.tenure().nodes().collect();
    GroupStatus {
        group: name,
        leader: group.leader(),
        is_leader: engine.is_leader,
        needed: needed(group.tenure()) as u64,
        ballot: engine.ballot,
        base: engine.base.0,
        applied: applied.slot,
        decided: engine.decided.0,
        last: engine.last.0,
        sessions: group.machine().sessions() as u64,
        digest: applied.digest[..8].iter().map(|byte| format!("{byte:02x}")).collect(),
        is_installing: group.is_installing(),
        stable: of_pbft(|condition| condition.stable.0),
        suspects: group.suspects().into_iter().map(|text| named(&text, &nodes)).collect(),
        damage: group.damage().map(str::to_string),
        repairs: group.repairs(),
        scrubs: group.scrubs(),
        signatures_made: of_pbft(|condition| condition.signatures_made),
        signatures_checked: of_pbft(|condition| condition.signatures_checked),
        rejected: of_pbft(|condition| condition.rejected),
        view: of_pbft(|condition| condition.view.0),
        told: group.told().into_iter().map(|(lie, count)| (lie.to_string(), count)).collect(),
    }
}

/// Replicas without which the group does not serve: for writes, and to replace who leads.
fn needed(tenure: &Tenure) -> usize {
    let n = tenure.members.len();
    match tenure.quorums {
        QuorumRule::Byzantine => n - liars(n),
        QuorumRule::Crash { phase1, phase2 } => phase1.max(phase2).into(),
    }
}

/// An engine knows replicas by their places in the group, people know nodes.
fn named(text: &str, nodes: &[NodeId]) -> String {
    let named = text.split_once(' ').and_then(|(first, rest)| {
        let place: usize = first.strip_prefix('r')?.parse().ok()?;
        Some(format!("{} {rest}", nodes.get(place)?))
    });
    named.unwrap_or_else(|| text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_suspected_is_named_as_people_know_it() {
        let nodes = [NodeId(3), NodeId(4), NodeId(1)];
        let signed = "r1 signed two COMMIT votes for slot 7 in v0";
        assert_eq!(named(signed, &nodes), "n4 signed two COMMIT votes for slot 7 in v0");
        assert_eq!(
            named("n2 sent a state that no checkpoint proves", &nodes),
            "n2 sent a state that no checkpoint proves"
        );
        assert_eq!(named("r9 signed", &nodes), "r9 signed");
    }
}
