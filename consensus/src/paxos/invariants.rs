//! What must hold of one replica after every event. Each check has a name and its reason.
//!
//! What must hold *between* replicas cannot be seen from here; the tests and the simulator watch it from outside:
//! equal positions have equal prefixes, one leader per ballot, nothing acknowledged is lost.

use super::replica::{Replica, Role};

/// Runs every check.
///
/// # Panics
/// If one fails: the replica must not go on, because the next message could break a promise.
pub(super) fn check(replica: &Replica) {
    accepted_was_promised(replica);
    pointers_are_ordered(replica);
    a_leader_leads_in_its_own_promised_ballot(replica);
    what_is_gathered_claims_nothing(replica);
}

/// An acceptor accepts only in a ballot that it has promised ("Paxos Made Simple", P1a).
fn accepted_was_promised(replica: &Replica) {
    let acceptor = &replica.acceptor;
    assert!(acceptor.accepted() <= acceptor.promised(), "accepted {} above the promise", acceptor.accepted());
}

/// base <= decided <= last, and durable <= last.
fn pointers_are_ordered(replica: &Replica) {
    let log = replica.acceptor.log();
    assert!(log.base().slot <= replica.decided, "undecided slots are never dropped");
    assert!(replica.decided <= log.last().slot, "a decided slot is in the log or below its base");
    assert!(replica.acceptor.durable() <= Some(log.last().slot), "only what the log holds is durable");
}

/// The leader of a ballot has promised it, accepted its log in it, and is named by it.
fn a_leader_leads_in_its_own_promised_ballot(replica: &Replica) {
    if let Role::Leader(leader) = &replica.role {
        assert_eq!(
            leader.ballot,
            replica.acceptor.promised(),
            "a leader that promised another ballot steps down"
        );
        assert_eq!(leader.ballot, replica.acceptor.accepted(), "a leader has accepted its own log");
        assert_eq!(leader.ballot.replica, replica.me, "nobody leads in another's ballot");
        assert!(leader.adopted <= replica.acceptor.log().last().slot, "the adopted log is never cut");
    }
}

/// What is gathered is for a ballot that was promised, and a leader has adopted its log as a whole.
fn what_is_gathered_claims_nothing(replica: &Replica) {
    if let Some(gathering) = &replica.gathering {
        assert!(!replica.is_leader(), "a leader has adopted its log");
        assert!(gathering.ballot <= replica.acceptor.promised(), "gathered for {}", gathering.ballot);
    }
}
