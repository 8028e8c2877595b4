//! A replica that lies: an honest one runs inside, and what it says is twisted on the way out. It has its own key, so every
//! lie is signed; it has no other keys, so it can forge nothing.

use super::schedule::Random;
use bytes::Bytes;
use std::collections::BTreeMap;
use tetrachord_consensus::pbft::message::{
    CheckpointVote, NewView, NewViewBody, PreparedCertificate, ViewChange, ViewChangeBody, Vote, body_digest,
};
use tetrachord_consensus::pbft::sign::Statement;
use tetrachord_consensus::pbft::{Batch, Message, Signature, Signer};
use tetrachord_consensus::{Digest, ReplicaId, Slot, Timestamp, View, codec};

/// Which lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Says nothing.
    Silent,
    /// As primary gives different batches to different replicas, and votes for both.
    Equivocate,
    /// Votes for other batches than it was given.
    WrongDigests,
    /// Signs wrong state roots.
    WrongRoots,
    /// Says old things again.
    Replay,
    /// Puts bad certificates into view changes and wrong proposals into new views, or leaves out good ones.
    BadCertificates,
    /// Says nothing to some.
    Starve,
    /// Asks for far views all the time.
    FutureViews,
    /// Orders requests that no client signed.
    Forge,
    /// Everything above, as chance wills it.
    Anything,
}

impl Lie {
    pub(crate) const ALL: [Self; 10] = [
        Self::Silent,
        Self::Equivocate,
        Self::WrongDigests,
        Self::WrongRoots,
        Self::Replay,
        Self::BadCertificates,
        Self::Starve,
        Self::FutureViews,
        Self::Forge,
        Self::Anything,
    ];
}

pub(crate) struct Liar {
    lie: Lie,
    signer: Signer,
    random: Random,
    said: Vec<Message>,
    /// Batches by slot, to have something else to vote for.
    others: BTreeMap<Slot, Digest>,
}

impl Liar {
    pub(crate) fn new(lie: Lie, signer: Signer, seed: u64) -> Self {
        Self { lie, signer, random: Random(seed), said: Vec::new(), others: BTreeMap::new() }
    }

    /// What is said instead.
    pub(crate) fn twist(&mut self, to: usize, message: Message) -> Vec<Message> {
        if self.said.len() < 500 {
            self.said.push(message.clone());
        }
        let lie = match self.lie {
            Lie::Anything if self.random.chance(40) => return vec![message],
            Lie::Anything => Lie::ALL[self.random.below(Lie::ALL.len() - 1)],
            lie => lie,
        };
        match lie {
            Lie::Silent => Vec::new(),
            Lie::Starve if to.is_multiple_of(2) => Vec::new(),
            Lie::Starve | Lie::Anything => vec![message],
            Lie::Equivocate => self.equivocate(to, message),
            Lie::WrongDigests => self.wrong_digest(message),
            Lie::WrongRoots => vec![self.wrong_root(message)],
            Lie::Replay => {
                let old = self.said[self.random.below(self.said.len())].clone();
                vec![message, old]
            }
            Lie::BadCertificates => vec![self.bad_certificate(message)],
            Lie::FutureViews => {
                let view = View(2 + self.random.next() % 50);
                vec![message, self.view_change(view, ViewChangeBody { stable: None, prepared: Vec::new() })]
            }
            Lie::Forge => vec![self.forge(message)],
        }
    }

    fn vote(&self, statement: Statement, vote: Vote, digest: Digest) -> Vote {
        let signature = self.signer.sign(statement);
        Vote { signer: self.signer.me(), digest, signature, ..vote }
    }

    /// Another valid batch of the same requests.
    fn other_batch(&mut self, vote: &Vote, batch: &Bytes) -> Option<Batch> {
        let batch = Batch::parse(batch.clone()).ok().filter(|batch| !batch.bytes().is_empty())?;
        let time = Timestamp(batch.time()?.0 + 1);
        let other = Batch::new(time, batch.bundles().to_vec());
        self.others.insert(vote.slot, other.digest());
        Some(other)
    }

    fn equivocate(&mut self, to: usize, message: Message) -> Vec<Message> {
        match message {
            Message::PrePrepare { vote, ref batch } if to % 2 == 1 => {
                let Some(other) = self.other_batch(&vote, batch) else { return vec![message] };
                let statement = Statement::PrePrepare(vote.view, vote.slot, other.digest());
                let vote = self.vote(statement, vote, other.digest());
                vec![Message::PrePrepare { vote, batch: other.bytes().clone() }]
            }
            // To those who got the other batch it commits to the other.
            Message::Commit(vote) if to % 2 == 1 => match self.others.get(&vote.slot).copied() {
                Some(other) => {
                    let statement = Statement::Commit(vote.view, vote.slot, other);
                    vec![Message::Commit(self.vote(statement, vote, other))]
                }
                None => vec![message],
            },
            message => vec![message],
        }
    }

    fn wrong_digest(&mut self, message: Message) -> Vec<Message> {
        let known = |liar: &Self, slot| liar.others.get(&slot).copied().unwrap_or(Digest([0xaa; 32]));
        match message {
            Message::Prepare(vote) => {
                let other = known(self, vote.slot);
                let lie = self.vote(Statement::Prepare(vote.view, vote.slot, other), vote, other);
                if self.random.chance(50) {
                    vec![Message::Prepare(lie), message]
                } else {
                    vec![Message::Prepare(lie)]
                }
            }
            Message::Commit(vote) => {
                let other = known(self, vote.slot);
                let lie = self.vote(Statement::Commit(vote.view, vote.slot, other), vote, other);
                if self.random.chance(50) {
                    vec![Message::Commit(lie), message]
                } else {
                    vec![Message::Commit(lie)]
                }
            }
            Message::Certified { mut certificate, batch } => {
                certificate.digest = Digest([0xaa; 32]);
                vec![Message::Certified { certificate, batch }]
            }
            Message::Body { slot, .. } => vec![Message::Body { slot, batch: Bytes::new() }],
            message => vec![message],
        }
    }

    fn wrong_root(&mut self, message: Message) -> Message {
        match message {
            Message::Checkpoint(vote) => {
                let root = Digest([0xdd; 32]);
                let signature = self.signer.sign(Statement::Checkpoint(vote.slot, root));
                Message::Checkpoint(CheckpointVote { root, signature, ..vote })
            }
            Message::Stable(mut certificate) => {
                certificate.root = Digest([0xdd; 32]);
                Message::Stable(certificate)
            }
            message => message,
        }
    }

    fn view_change(&self, view: View, body: ViewChangeBody) -> Message {
        let body = codec::encode(&body);
        let signature = self.signer.sign(Statement::ViewChange(view, body_digest(&body)));
        Message::ViewChange(ViewChange { signer: self.signer.me(), view, body, signature })
    }

    fn bad_certificate(&mut self, message: Message) -> Message {
        match message {
            Message::ViewChange(message) => {
                let mut body: ViewChangeBody = codec::decode(&message.body).unwrap();
                match self.random.below(3) {
                    0 => body.prepared.clear(),
                    1 => {
                        // Of the highest view there can be, for a batch that nobody knows.
                        let slot = body.stable.as_ref().map_or(Slot(1), |stable| stable.slot.next());
                        let prepares = (0..4).map(|index| (ReplicaId(index), Signature([1; 64]))).collect();
                        let view = View(message.view.0 - 1);
                        let (digest, proposal) = (Digest([0xee; 32]), Signature([2; 64]));
                        let forged = PreparedCertificate { view, slot, digest, proposal, prepares };
                        body.prepared.retain(|certificate| certificate.slot != slot);
                        body.prepared.insert(0, forged);
                    }
                    _ => body.prepared.truncate(1),
                }
                self.view_change(message.view, body)
            }
            Message::NewView(message) => {
                let mut body: NewViewBody = codec::decode(&message.body).unwrap();
                for (slot, digest, signature) in &mut body.proposals {
                    *digest = Digest::ZERO;
                    *signature = self.signer.sign(Statement::PrePrepare(message.view, *slot, *digest));
                }
                if body.proposals.is_empty() {
                    body.view_changes.pop();
                }
                let body = codec::encode(&body);
                let signature = self.signer.sign(Statement::NewView(message.view, body_digest(&body)));
                Message::NewView(NewView { view: message.view, body, signature })
            }
            message => message,
        }
    }

    /// Changes what a client asked for; the client's signature stays.
    fn forge(&mut self, message: Message) -> Message {
        match message {
            Message::PrePrepare { vote, batch } if batch.len() > 1 => {
                let mut forged = batch.to_vec();
                let last = forged.len() - 1;
                forged[last] ^= 1;
                let forged = Bytes::from(forged);
                let digest = body_digest(&forged);
                let statement = Statement::PrePrepare(vote.view, vote.slot, digest);
                let vote = self.vote(statement, vote, digest);
                // Sometimes not even the digest is right.
                let batch = if self.random.chance(50) { forged } else { batch };
                Message::PrePrepare { vote, batch }
            }
            Message::Requests(bytes) => {
                let mut forged = bytes.to_vec();
                let last = forged.len() - 1;
                forged[last] ^= 1;
                Message::Requests(Bytes::from(forged))
            }
            message => message,
        }
    }
}
