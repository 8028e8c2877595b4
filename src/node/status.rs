//! What a node tells of its replicas.

use crate::group::Group;
use crate::ring::GroupId;
use crate::wire::GroupStatus;

/// What a replica knows of itself.
pub(super) fn group_status(name: GroupId, group: &Group) -> GroupStatus {
    let engine = group.engine();
    let applied = group.machine().applied();
    GroupStatus {
        group: name,
        leader: group.leader(),
        is_leader: engine.is_leader,
        ballot: engine.ballot,
        base: engine.base.0,
        applied: applied.slot,
        decided: engine.decided.0,
        last: engine.last.0,
        sessions: group.machine().sessions() as u64,
        digest: applied.digest[..8].iter().map(|byte| format!("{byte:02x}")).collect(),
        is_installing: group.is_installing(),
        stable: engine.stable.0,
        suspects: group.suspects(),
        damage: group.damage().map(str::to_string),
        repairs: group.repairs(),
        scrubs: group.scrubs(),
        signatures_made: engine.signatures_made,
        signatures_checked: engine.signatures_checked,
        rejected: engine.rejected,
        view: engine.view.0,
        told: group.told().into_iter().map(|(lie, count)| (lie.to_string(), count)).collect(),
    }
}
