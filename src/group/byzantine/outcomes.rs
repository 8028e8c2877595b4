//! Byzantine mode: what clients are told of the slots that were executed, with proof where they want to show it to others.

use crate::group::{Group, Output};
use crate::kv::{Client, Envelope, Reply, RequestId, SessionId};
use crate::limits::OUTCOMES_FRAME_BYTES;
use crate::proof::{OutcomeProof, SlotOutcomes, outcome_leaf};
use std::collections::BTreeMap;
use tetrachord_consensus::pbft;

/// What one client's requests in one slot came to, as this replica executed them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcomes {
    /// Whose requests.
    pub client: Client,
    /// The slot.
    pub slot: u64,
    /// Each request with its reply, and with a proof if the client wants to show it.
    pub replies: Vec<(RequestId, Reply, Option<OutcomeProof>)>,
}

/// Bytes that an outcome takes in a frame besides its value and its proof, at most.
const OUTCOME_BYTES: usize = 64;

impl Group {
    pub(in crate::group) fn tell_clients(
        &mut self,
        slot: u64,
        asked: &[pbft::SignedRequest],
        replies: Vec<(RequestId, Reply)>,
    ) {
        assert_eq!(asked.len(), replies.len(), "every request is told something");
        let signed = self.signed.as_mut().expect("only Byzantine mode tells of slots");
        let replies = match &mut signed.chaos {
            Some(chaos) => replies.into_iter().map(|(id, reply)| (id, chaos.twist_reply(reply))).collect(),
            None => replies,
        };
        let leaf = |(request, (id, reply)): (&pbft::SignedRequest, &(RequestId, Reply))| {
            outcome_leaf(&request.name.client.0, *id, &request.operation, reply)
        };
        let is_proof_wanted = asked.iter().any(|request| request.wants_proof);
        let outcomes = is_proof_wanted.then(|| {
            let leaves = asked.iter().zip(&replies).map(leaf).collect();
            SlotOutcomes::sign(slot, leaves, &signed.signer)
        });
        let told = asked.iter().zip(replies).enumerate().map(|(index, (request, (id, reply)))| {
            let proof = outcomes.as_ref().filter(|_| request.wants_proof);
            (request.name.client.0, (id, reply, proof.map(|outcomes| outcomes.prove(index))))
        });
        self.outputs.extend(cut(slot, told).into_iter().map(Output::Outcomes));
    }
}

type Told = (RequestId, Reply, Option<OutcomeProof>);

/// What each client is told, in frames of a bounded size: a single request can ask for much more than it takes itself.
fn cut(slot: u64, told: impl Iterator<Item = (Client, Told)>) -> Vec<Outcomes> {
    let mut full = Vec::new();
    let mut by_client: BTreeMap<Client, (Outcomes, usize)> = BTreeMap::new();
    for (client, (request, reply, proof)) in told {
        let empty = || (Outcomes { client, slot, replies: Vec::new() }, 0);
        let (of_client, bytes) = by_client.entry(client).or_insert_with(empty);
        *bytes += OUTCOME_BYTES + proof.as_ref().map_or(0, OutcomeProof::bytes);
        if let Reply::Value { found: Some((_, value)), .. } = &reply {
            *bytes += value.len();
        }
        of_client.replies.push((request, reply, proof));
        if *bytes >= OUTCOMES_FRAME_BYTES
            && let Some((outcomes, _)) = by_client.remove(&client)
        {
            full.push(outcomes);
        }
    }
    full.extend(by_client.into_values().map(|(outcomes, _)| outcomes));
    full
}

/// A request as the state machine takes it.
pub(in crate::group) fn envelope_of(asked: &pbft::SignedRequest) -> Envelope {
    Envelope {
        client: Some(asked.name.client.0),
        request: RequestId { session: SessionId(asked.name.session), number: asked.name.number },
        ack_below: asked.ack_below,
        after: None,
        not_after: Some(asked.not_after.0),
        operation: asked.operation.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tetrachord_consensus::pbft::Signature;
    use tetrachord_consensus::{Digest, ReplicaId};

    /// As many small requests as a batch may have, each with its proof: no frame is larger than it may be.
    #[test]
    fn frames_are_cut_by_all_that_is_in_them() {
        let proof = || OutcomeProof {
            signer: ReplicaId(1),
            slot: 9,
            index: 0,
            count: 10_000,
            path: vec![Digest([7; 32]); 14],
            signature: Signature([9; 64]),
        };
        let told = |number| {
            let request = RequestId { session: SessionId(u128::MAX), number };
            let reply =
                Reply::Value { found: Some((u64::MAX, bytes::Bytes::from_static(b"value"))), time: u64::MAX };
            ([3; 32], (request, reply, Some(proof())))
        };
        let frames = cut(9, (u64::MAX - 10_000..u64::MAX).map(told));
        assert_eq!(frames.iter().map(|frame| frame.replies.len()).sum::<usize>(), 10_000);
        let bytes = |frame: &Outcomes| postcard::to_stdvec(&frame.replies).unwrap().len();
        let largest = frames.iter().map(bytes).max().unwrap();
        assert!((OUTCOMES_FRAME_BYTES / 2..=OUTCOMES_FRAME_BYTES).contains(&largest), "{largest}");
    }
}
