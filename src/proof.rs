//! Byzantine mode: what an answer rests on, in a form that anyone can check.
//!
//! Each replica signs once for everything that one slot answered: the Merkle root over all outcomes. An outcome is the
//! client, which request, a digest of what was asked and a digest of what was answered. `f + 1` replicas that signed roots
//! under which the same outcome lies include an honest one; a quorum makes two contradicting proofs evidence against
//! `f + 1` liars.

use crate::kv::{Client, Operation, Reply, RequestId};
use crate::limits::{PROOF_PATH_MAX, few};
use crate::ring::{GroupId, Tenure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use tetrachord_consensus::pbft::request::{Tree, leaf_of, root_from_path};
use tetrachord_consensus::pbft::sign::{KeyError, Statement};
use tetrachord_consensus::pbft::{ClientKey, Domain, Keyring, Signature, Signer};
use tetrachord_consensus::{Digest, Epoch, ReplicaId, Slot};

/// Where the members of a group state what they do in one of its epochs.
#[must_use]
pub fn domain_of(cluster: Digest, tenure: &Tenure) -> Domain {
    Domain { cluster, group: tenure.group().0, epoch: Epoch(tenure.id.epoch) }
}

/// The keys of a tenure's members, and those of clients. An error if one of them is none.
pub fn keyring_of(
    cluster: Digest,
    tenure: &Tenure,
    clients: impl IntoIterator<Item = ClientKey>,
) -> Result<Keyring, KeyError> {
    let keys: Vec<[u8; 32]> =
        tenure.members.iter().map(|member| member.epoch_key.unwrap_or_default()).collect();
    Keyring::new(domain_of(cluster, tenure), &keys, clients)
}

/// What one replica says of one outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeProof {
    /// Who signed.
    pub signer: ReplicaId,
    /// The slot.
    pub slot: u64,
    /// Which of the slot's outcomes, counted from 0.
    pub index: u32,
    /// How many outcomes the slot has.
    pub count: u32,
    /// From the outcome to the root. At most [`PROOF_PATH_MAX`] steps.
    #[serde(deserialize_with = "few::<_, _, PROOF_PATH_MAX>")]
    pub path: Vec<Digest>,
    /// Over the root.
    pub signature: Signature,
}

/// The hash of one outcome. Every field has a fixed width.
#[must_use]
pub fn outcome_leaf(client: &Client, request: RequestId, operation: &[u8], reply: &Reply) -> Digest {
    let reply = postcard::to_stdvec(reply).expect("writing to memory cannot fail");
    let (operation, reply) = (blake3::hash(operation), blake3::hash(&reply));
    let (session, number) = (request.session.0.to_be_bytes(), request.number.to_be_bytes());
    leaf_of(&[client, &session, &number, operation.as_bytes(), reply.as_bytes()])
}

/// Everything that shows an outcome to someone who was not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The group that answered.
    pub group: GroupId,
    /// Who asked.
    pub client: Client,
    /// Which request.
    pub request: RequestId,
    /// What was asked.
    pub operation: Operation,
    /// What was answered.
    pub reply: Reply,
    /// What replicas signed.
    pub proofs: Vec<OutcomeProof>,
}

impl Proof {
    /// The replicas whose signatures hold, for the slot that most of them name. `f + 1` of them include an honest one.
    #[must_use]
    pub fn signers(&self, keyring: &Keyring) -> (u64, BTreeSet<ReplicaId>) {
        let leaf = outcome_leaf(&self.client, self.request, &self.operation.encode(), &self.reply);
        let mut by_slot: BTreeMap<u64, BTreeSet<ReplicaId>> = BTreeMap::new();
        for proof in self.proofs.iter().filter(|proof| proof.holds(leaf, keyring)) {
            by_slot.entry(proof.slot).or_default().insert(proof.signer);
        }
        by_slot.into_iter().max_by_key(|(_, signers)| signers.len()).unwrap_or_default()
    }
}

/// All outcomes of a slot, signed once. The tree over them is built once too: a slot may have very many outcomes, and all of
/// them may be asked to be shown.
#[derive(Debug)]
pub struct SlotOutcomes {
    slot: u64,
    signer: ReplicaId,
    tree: Tree,
    signature: Signature,
}

impl SlotOutcomes {
    /// Signs for the outcomes of a slot, in order; there is at least one.
    #[must_use]
    pub fn sign(slot: u64, leaves: Vec<Digest>, signer: &Signer) -> Self {
        let tree = Tree::over(leaves);
        let signature = signer.sign(Statement::Outcomes(Slot(slot), tree.root()));
        Self { slot, signer: signer.me(), tree, signature }
    }

    /// What this replica says of one of them.
    #[must_use]
    pub fn prove(&self, index: usize) -> OutcomeProof {
        let narrow = |size: usize| u32::try_from(size).expect("a slot has few outcomes");
        OutcomeProof {
            signer: self.signer,
            slot: self.slot,
            index: narrow(index),
            count: narrow(self.tree.count()),
            path: self.tree.path(index),
            signature: self.signature,
        }
    }
}

impl OutcomeProof {
    /// Bytes that it takes in a message, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(self.path.as_slice())
    }

    /// Whether the signer says that its slot had this outcome.
    #[must_use]
    pub fn holds(&self, leaf: Digest, keyring: &Keyring) -> bool {
        let root = root_from_path(leaf, self.index as usize, self.count as usize, &self.path);
        root.is_some_and(|root| {
            keyring.verify(self.signer, Statement::Outcomes(Slot(self.slot), root), &self.signature)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::SessionId;
    use tetrachord_consensus::pbft::Domain;

    #[test]
    fn a_proof_holds_for_its_outcome_alone() {
        let domain = Domain { cluster: Digest([1; 32]), group: 1, epoch: Epoch(1) };
        let signer = Signer::new(ReplicaId(0), domain, &[3; 32]);
        let key = ed25519_dalek::SigningKey::from_bytes(&[3; 32]).verifying_key().to_bytes();
        let keyring = Keyring::new(domain, &[key], []).unwrap();
        let leaf = |number, version| {
            let request = RequestId { session: SessionId(1), number };
            outcome_leaf(&[7; 32], request, b"put", &Reply::Put { version })
        };
        let leaves: Vec<Digest> = (0..5).map(|number| leaf(number, number)).collect();
        let outcomes = SlotOutcomes::sign(9, leaves.clone(), &signer);
        let proof = outcomes.prove(2);
        assert!(proof.holds(leaves[2], &keyring));
        assert!(!proof.holds(leaves[3], &keyring) && !proof.holds(leaf(2, 99), &keyring));
        assert!(!OutcomeProof { slot: 8, ..proof.clone() }.holds(leaves[2], &keyring));
        assert!(!OutcomeProof { index: 3, ..proof }.holds(leaves[2], &keyring));
    }
}
