//! What follows from a quorum of view changes. Every replica computes it anew; nobody believes the new primary.
//!
//! Castro and Liskov, OSDI 1999, section 4.4. The rule, for view changes V of a quorum:
//!
//! * the view begins after the highest stable checkpoint that any of them proves;
//! * every slot from there to the highest prepared one is proposed again: with the batch of its certificate of the
//!   highest view, found in *any* message of V, or with the null batch if there is none.
//!
//! Why a committed batch survives: it was prepared, durably, at a quorum; V is a quorum; so one honest replica is in both
//! and its certificate is in V. A certificate of a higher view for another batch cannot exist, by induction: the view in
//! which it was made began by the same rule. (Not before all of V is searched: the checkpoint may be another's.)

use crate::pbft::message::{PreparedCertificate, StableCertificate, ViewChangeBody};
use crate::types::{Digest, Slot};
use std::collections::BTreeMap;

/// What a new view begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The checkpoint that it builds on; none is the start of the epoch.
    pub stable: Option<StableCertificate>,
    /// What is proposed again, ascending without a gap behind the checkpoint.
    pub proposals: Vec<(Slot, Digest)>,
}

/// Two certificates of one view for one slot that name different batches: more replicas lie than the group survives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// One of them.
    pub one: PreparedCertificate,
    /// The other.
    pub other: PreparedCertificate,
}

/// Computes the plan from view changes whose validity was checked.
pub fn plan(view_changes: &[ViewChangeBody]) -> Result<Plan, Box<Contradiction>> {
    let stables = view_changes.iter().filter_map(|body| body.stable.as_ref());
    let stable = stables.max_by_key(|stable| stable.slot).cloned();
    let from = stable.as_ref().map_or(Slot::ZERO, |stable| stable.slot);
    let mut best: BTreeMap<Slot, &PreparedCertificate> = BTreeMap::new();
    for certificate in view_changes.iter().flat_map(|body| &body.prepared).filter(|found| found.slot > from) {
        let known = best.entry(certificate.slot).or_insert(certificate);
        if known.view == certificate.view && known.digest != certificate.digest {
            let (one, other) = ((*known).clone(), certificate.clone());
            return Err(Box::new(Contradiction { one, other }));
        }
        if certificate.view > known.view {
            *known = certificate;
        }
    }
    let last = best.last_key_value().map_or(from, |(slot, _)| *slot);
    let digest_at = |slot: Slot| best.get(&slot).map_or(Digest::ZERO, |certificate| certificate.digest);
    let proposals = (from.0 + 1..=last.0).map(|slot| (Slot(slot), digest_at(Slot(slot)))).collect();
    Ok(Plan { stable, proposals })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pbft::sign::Signature;
    use crate::types::View;

    fn certificate(view: u64, slot: u64, batch: u8) -> PreparedCertificate {
        let (proposal, prepares) = (Signature([0; 64]), Vec::new());
        PreparedCertificate {
            view: View(view),
            slot: Slot(slot),
            digest: Digest([batch; 32]),
            proposal,
            prepares,
        }
    }

    fn brings(stable: u64, prepared: &[PreparedCertificate]) -> ViewChangeBody {
        let certificate = StableCertificate { slot: Slot(stable), root: Digest::ZERO, votes: Vec::new() };
        ViewChangeBody { stable: (stable > 0).then_some(certificate), prepared: prepared.to_vec() }
    }

    fn digests(view_changes: &[ViewChangeBody]) -> Vec<(u64, u8)> {
        let plan = plan(view_changes).unwrap();
        plan.proposals.iter().map(|(slot, digest)| (slot.0, digest.0[0])).collect()
    }

    #[test]
    fn the_certificate_of_the_highest_view_wins_whoever_brings_it() {
        let old = brings(0, &[certificate(1, 1, 10), certificate(3, 2, 20)]);
        let new = brings(0, &[certificate(2, 1, 11), certificate(1, 2, 21)]);
        assert_eq!(digests(&[old.clone(), new.clone(), brings(0, &[])]), [(1, 11), (2, 20)]);
        assert_eq!(digests(&[new, brings(0, &[]), old]), [(1, 11), (2, 20)], "in any order");
    }

    #[test]
    fn gaps_become_null_batches_and_a_certified_null_batch_counts_like_any() {
        assert_eq!(digests(&[brings(0, &[certificate(1, 3, 9)])]), [(1, 0), (2, 0), (3, 9)]);
        let null = brings(0, &[certificate(5, 3, 0)]);
        assert_eq!(digests(&[brings(0, &[certificate(1, 3, 9)]), null]), [(1, 0), (2, 0), (3, 0)]);
    }

    #[test]
    fn the_highest_checkpoint_is_the_start_and_certificates_of_others_count_above_it() {
        let behind = brings(0, &[certificate(1, 3, 3), certificate(1, 6, 6)]);
        assert_eq!(digests(&[behind, brings(4, &[]), brings(0, &[])]), [(5, 0), (6, 6)]);
        assert_eq!(digests(&[brings(0, &[]), brings(0, &[])]), []);
    }

    #[test]
    fn two_batches_prepared_in_one_view_are_an_alarm() {
        let found = plan(&[brings(0, &[certificate(1, 1, 1)]), brings(0, &[certificate(1, 1, 2)])]);
        assert!(found.is_err());
    }
}
