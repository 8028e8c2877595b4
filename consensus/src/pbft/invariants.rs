//! What must hold of one replica after every event. Each check has a name and its reason.
//!
//! What must hold *between* replicas cannot be seen from here; the tests watch it from outside: one batch for a slot, one
//! statement of an honest replica for a place, nothing acknowledged is lost.

use super::replica::Replica;
use crate::types::Slot;

/// Runs every check.
///
/// # Panics
/// If one fails: the replica must not go on, because the next message could break a promise.
pub(super) fn check(replica: &Replica) {
    pointers_are_ordered(replica);
    votes_are_of_this_view(replica);
    a_primary_assigns_above_what_the_view_began_with(replica);
    what_is_kept_is_bounded(replica);
    a_state_that_is_repaired_is_not_built_on(replica);
    nothing_waits_behind_a_stop_sign(replica);
}

/// base <= executed; what is dropped is stable.
fn pointers_are_ordered(replica: &Replica) {
    assert!(replica.base.slot <= replica.executed.slot, "what is not executed is never dropped");
    assert!(replica.base.slot <= replica.stable_slot(), "what is not stable is never dropped");
    assert!(
        replica.slots.keys().next().is_none_or(|slot| *slot > replica.base.slot),
        "what is dropped is gone"
    );
}

/// Votes of other views count for nothing (OSDI 1999, section 4.4); the newest slots are looked at.
fn votes_are_of_this_view(replica: &Replica) {
    for (_, state) in replica.slots.iter().rev().take(4) {
        let votes = state.prepares.values().chain(state.commits.values());
        assert!(votes.into_iter().all(|vote| vote.view == replica.view), "votes of another view were kept");
    }
}

/// A NEW-VIEW fixes the slots up to its last; the primary fills those behind.
fn a_primary_assigns_above_what_the_view_began_with(replica: &Replica) {
    if replica.is_primary() {
        assert!(replica.next >= replica.first_fresh, "what a view began with is not assigned again");
        assert!(replica.next > replica.stable_slot(), "a stable slot is not assigned again");
    }
}

/// Nothing is executed, and no root is believed, until a state with proof is in place.
fn a_state_that_is_repaired_is_not_built_on(replica: &Replica) {
    if replica.is_repairing {
        assert!(replica.executed.slot == replica.base.slot, "something was executed on a damaged state");
        assert!(replica.checkpoints.own_roots.is_empty(), "a root of a damaged state is believed");
    }
}

/// The epoch has ended: whatever is asked belongs to the next one.
fn nothing_waits_behind_a_stop_sign(replica: &Replica) {
    assert!(
        !replica.executed.sealed || replica.custody.len() == 0,
        "a request waits in an epoch that has ended"
    );
}

/// Slots above the stable checkpoint are bounded by the window, whatever others send.
fn what_is_kept_is_bounded(replica: &Replica) {
    let reach = replica.stable_slot().max(replica.executed.slot).0 + 2 * replica.config.window.length;
    let last = replica.slots.last_key_value().map_or(Slot::ZERO, |(slot, _)| *slot);
    assert!(last.0 <= reach, "a slot beyond all bounds is kept");
    assert!(replica.view_changes.len() <= replica.config.quorum.n(), "one view change for each replica");
    assert!(replica.checkpoints.votes.len() <= 4 * 4, "few checkpoints wait for their quorum");
}
