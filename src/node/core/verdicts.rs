//! What a node has checked for whom: where a check waits, and what becomes of whoever brought what does not hold.

use super::NodeCore;
use crate::group::Group;
use crate::node::askers::Denied;
use crate::node::checks::Line;
use crate::node::face::NodeEffect;
use crate::ring::GroupId;
use crate::shares::Account;
use crate::ticket::Ticket;
use crate::wire::{Answer, RetryReason};
use tetrachord_consensus::pbft::{Rejected, Unverified, Verified};

impl NodeCore {
    /// A bundle is not even checked.
    pub(super) fn deny(&mut self, ticket: Ticket, denied: Denied) {
        let answer = match denied {
            Denied::Busy => Answer::Retry { reason: RetryReason::Busy, leader: None, maybe_applied: false },
            Denied::LeftOut => {
                if let Some(Account::Client(client)) = self.door.gateway.account(ticket) {
                    self.effects.push(NodeEffect::Slow { client });
                }
                let error = "bundles that this client brought lately were not signed; no more are checked for a while";
                Answer::Refused { error: error.to_string() }
            }
        };
        self.finish(ticket, answer);
    }

    /// A check is done. Whoever brought a bundle that does not hold is left out for a while.
    pub(super) fn note_verdict(&mut self, result: &Result<Verified, Rejected>) {
        let origin = result.as_ref().map_or_else(|rejected| rejected.origin, Verified::origin);
        let Some(ticket) = origin.submission().map(|id| Ticket(id.0)) else { return };
        if result.is_ok() {
            self.door.askers.release(ticket);
        } else if let Some((account, millis)) = self.door.askers.refute(ticket) {
            tracing::warn!(
                ?account,
                millis,
                "brought a bundle that is not signed, and is left out for a while"
            );
        }
    }

    /// Where a check waits for its turn.
    pub(super) fn line_of(&self, group: GroupId, job: &Unverified) -> Line {
        if let Some(id) = job.origin().submission() {
            let account = self.door.askers.account(Ticket(id.0));
            return Line::Bundles(account.unwrap_or(Account::Node(self.settings.node)));
        }
        let tenure = self.groups.get(group).map(Group::tenure).expect("a check is for a group that is here");
        let members = &tenure.members;
        let member = job.replica().and_then(|replica| members.get(usize::from(replica.0)));
        let node = member.expect("a message comes from a replica of the group").node;
        if job.is_bundle() { Line::Bundles(Account::Node(node)) } else { Line::Replica(node) }
    }
}
