//! From bytes to [`Verified`]: the only door into the core.
//!
//! A [`Verifier`] holds the keys and nothing that changes a verdict, so it can run anywhere: the caller keeps one per
//! worker of a small pool, never on its event loop. What comes back carries the message with everything in it checked:
//! each signature, each certificate, each digest, and for a NEW-VIEW the whole computation. The core counts only what is
//! [`Verified`]; it never counts first and checks later.
//!
//! A signature that was found valid is remembered for a while: certificates repeat the votes that they are made of, and proposals
//! the requests that clients have shown before.

use crate::codec;
use crate::mutation::{Mutation, mutated};
use crate::pbft::batch::Batch;
use crate::pbft::config::Config;
use crate::pbft::message::{
    CheckpointVote, CommitCertificate, Message, NewView, NewViewBody, PreparedCertificate, Signatures,
    StableCertificate, ViewChange, ViewChangeBody, Vote, body_digest,
};
use crate::pbft::new_view::{Plan, plan};
use crate::pbft::request::Bundle;
use crate::pbft::sign::{ClientKey, Keyring, Signature, Statement};
use crate::types::{Digest, ReplicaId, Slot, Ticks, View};
use bytes::Bytes;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// Names a submission of requests, so that its end can be told to whoever waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubmitId(pub u64);

/// Where something came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Another replica, as the transport vouches.
    Replica(ReplicaId),
    /// A client.
    Client(SubmitId),
    /// A node that passes on what a client brought to it, as it says.
    Node(SubmitId),
}

impl Origin {
    /// The submission, if it is one, of which somebody waits to hear.
    #[must_use]
    pub fn submission(self) -> Option<SubmitId> {
        match self {
            Self::Client(id) | Self::Node(id) => Some(id),
            Self::Replica(_) => None,
        }
    }
}

/// What a replica sends again for as long as another seems to miss it: which kind, and for which slot or view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Help {
    Proposal(View, Slot),
    Checkpoint(Slot),
    ViewChange(View),
    NewView(View),
    Certified(Slot),
    Stable(Slot),
    Body(Slot),
}

impl Help {
    pub(super) fn of(message: &Message) -> Option<Self> {
        match message {
            Message::PrePrepare { vote, .. } => Some(Self::Proposal(vote.view, vote.slot)),
            Message::Checkpoint(vote) => Some(Self::Checkpoint(vote.slot)),
            Message::ViewChange(message) => Some(Self::ViewChange(message.view)),
            Message::NewView(message) => Some(Self::NewView(message.view)),
            Message::Certified { certificate, .. } => Some(Self::Certified(certificate.slot)),
            Message::Stable(certificate) => Some(Self::Stable(certificate.slot)),
            Message::Body { slot, .. } => Some(Self::Body(*slot)),
            _ => None,
        }
    }
}

/// Something to be checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unverified {
    origin: Origin,
    came_at: Ticks,
    message: Message,
    bytes: usize,
}

impl Unverified {
    /// A message of another replica that took so many bytes.
    pub(super) fn message(from: ReplicaId, came_at: Ticks, message: Message, bytes: usize) -> Self {
        Self { origin: Origin::Replica(from), came_at, message, bytes }
    }

    /// A client's bundle.
    pub(super) fn bundle(origin: Origin, came_at: Ticks, bundle: Bytes) -> Self {
        Self { origin, came_at, bytes: bundle.len(), message: Message::Requests(bundle) }
    }

    /// Where it came from.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The replica that sent it, if one did.
    #[must_use]
    pub fn replica(&self) -> Option<ReplicaId> {
        match self.origin {
            Origin::Replica(replica) => Some(replica),
            Origin::Client(_) | Origin::Node(_) => None,
        }
    }

    /// Whether it is a client's bundle, whoever shows it, and no word of a replica.
    #[must_use]
    pub fn is_bundle(&self) -> bool {
        matches!(self.message, Message::Requests(_))
    }

    /// About how many signatures the check of it costs. What hashing takes is counted, too.
    #[must_use]
    pub fn cost(&self) -> u32 {
        let signatures = match &self.message {
            Message::PrePrepare { batch, .. } => 1 + Batch::count_of(batch),
            Message::Prepare(_) | Message::Commit(_) | Message::Checkpoint(_) => 1,
            Message::Requests(_) => 1,
            Message::Body { .. } | Message::Status(_) | Message::Fetch { .. } => 0,
            Message::Certified { certificate, .. } => certificate.commits.len(),
            Message::ViewChange(_) | Message::NewView(_) | Message::Stable(_) => self.bytes / SIGNATURE_BYTES,
        };
        u32::try_from(signatures + self.bytes / HASHED_BYTES).unwrap_or(u32::MAX)
    }
}

/// Bytes of a signature with its signer in a certificate.
const SIGNATURE_BYTES: usize = 64;

/// Bytes that are hashed in the time that a signature takes, about.
const HASHED_BYTES: usize = 32 << 10;

/// What was checked, and is true as far as signatures can tell. Only a [`Verifier`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    origin: Origin,
    came_at: Ticks,
    help: Option<Help>,
    bytes: usize,
    content: Checked,
    checks: u32,
}

impl Verified {
    pub(super) fn into_content(self) -> Checked {
        self.content
    }

    /// When it came, before it was checked.
    pub(super) fn came_at(&self) -> Ticks {
        self.came_at
    }

    pub(super) fn help(&self) -> Option<Help> {
        self.help
    }

    /// Bytes of what was checked; they are off the pool now.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Signatures that were checked for it; those that were checked before are not checked again.
    pub(super) fn checks(&self) -> u32 {
        self.checks
    }

    /// Where it came from.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }
}

/// The content of what was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    PrePrepare { vote: Vote, batch: Arc<Batch> },
    Prepare(Vote),
    Commit(Vote),
    Checkpoint(CheckpointVote),
    ViewChange { message: ViewChange, body: ViewChangeBody },
    NewView { message: NewView, plan: Plan, signatures: Vec<Signature> },
    Certified { certificate: CommitCertificate, batch: Arc<Batch> },
    Stable(StableCertificate),
    Body { slot: Slot, batch: Arc<Batch> },
    Requests(Arc<Bundle>),
}

/// What did not hold, and whose it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Where it came from.
    pub origin: Origin,
    /// What was wrong.
    pub reason: &'static str,
    pub(super) help: Option<Help>,
    pub(super) bytes: usize,
    pub(super) checks: u32,
}

type Checking<T> = Result<T, &'static str>;

/// Checks messages. Cheap to clone; each worker has its own.
#[derive(Clone, Debug)]
pub struct Verifier {
    keyring: Arc<Keyring>,
    config: Config,
    mutation: Mutation,
    known: Known<(ReplicaId, Statement, Signature), KNOWN_MAX>,
    known_bundles: Known<(ClientKey, Digest, Signature), KNOWN_BUNDLES_MAX>,
    /// Signatures that were checked for the message at hand.
    checks: u32,
}

impl Verifier {
    /// A verifier with a group's keys.
    #[must_use]
    pub fn new(keyring: Arc<Keyring>, config: Config, mutation: Mutation) -> Self {
        let (known, known_bundles) = (Known::default(), Known::default());
        Self { keyring, config, mutation, known, known_bundles, checks: 0 }
    }

    /// Checks everything in a message.
    pub fn verify(&mut self, unverified: Unverified) -> Result<Verified, Rejected> {
        let Unverified { origin, came_at, message, bytes } = unverified;
        self.checks = 0;
        let help = Help::of(&message);
        let result = self.check(origin, message);
        let checks = self.checks;
        match result {
            Ok(content) => Ok(Verified { origin, came_at, help, bytes, content, checks }),
            Err(reason) => Err(Rejected { origin, reason, help, bytes, checks }),
        }
    }

    fn check(&mut self, origin: Origin, message: Message) -> Checking<Checked> {
        match message {
            Message::PrePrepare { vote, batch } => self.check_pre_prepare(origin, vote, batch),
            Message::Prepare(vote) => {
                let is_backup = vote.signer != self.config.primary(vote.view);
                ensure(is_backup, "a primary does not prepare what it proposed")?;
                self.check_vote(origin, &vote, vote.as_prepare())?;
                Ok(Checked::Prepare(vote))
            }
            Message::Commit(vote) => {
                self.check_vote(origin, &vote, vote.as_commit())?;
                Ok(Checked::Commit(vote))
            }
            Message::Checkpoint(vote) => {
                ensure(origin == Origin::Replica(vote.signer), "it is another replica's")?;
                let statement = Statement::Checkpoint(vote.slot, vote.root);
                ensure(self.holds(vote.signer, statement, &vote.signature), "a bad signature")?;
                Ok(Checked::Checkpoint(vote))
            }
            Message::ViewChange(message) => {
                let body = self.check_view_change(&message)?;
                Ok(Checked::ViewChange { message, body })
            }
            Message::NewView(message) => self.check_new_view(message),
            Message::Certified { certificate, batch } => {
                self.check_commits(&certificate)?;
                let batch = parse(batch)?;
                ensure(batch.digest() == certificate.digest, "the certificate is for another batch")?;
                Ok(Checked::Certified { certificate, batch })
            }
            Message::Stable(certificate) => {
                self.check_stable(&certificate)?;
                Ok(Checked::Stable(certificate))
            }
            Message::Body { slot, batch } => Ok(Checked::Body { slot, batch: parse(batch)? }),
            Message::Requests(bytes) => {
                let bundle = Bundle::parse(bytes).map_err(|_| "not a bundle of requests")?;
                let is_signed = self.is_signed(&bundle);
                ensure(is_signed, "not signed by a client that is admitted to this cluster")?;
                Ok(Checked::Requests(Arc::new(bundle)))
            }
            Message::Status(_) | Message::Fetch { .. } => Err("nothing in it needs a proof"),
        }
    }

    fn check_pre_prepare(&mut self, origin: Origin, vote: Vote, batch: Bytes) -> Checking<Checked> {
        ensure(vote.signer == self.config.primary(vote.view), "only the primary of a view proposes in it")?;
        self.check_vote(origin, &vote, vote.as_pre_prepare())?;
        let batch = parse(batch)?;
        let is_unchecked = mutated!(self, BodyUnchecked);
        ensure(is_unchecked || batch.digest() == vote.digest, "the batch is not the one that is signed")?;
        let are_signed = batch.bundles().iter().all(|bundle| self.is_signed(bundle));
        ensure(are_signed, "a request in it is not signed by an admitted client")?;
        Ok(Checked::PrePrepare { vote, batch })
    }

    fn check_vote(&mut self, origin: Origin, vote: &Vote, statement: Statement) -> Checking<()> {
        ensure(origin == Origin::Replica(vote.signer), "it is another replica's")?;
        ensure(self.holds(vote.signer, statement, &vote.signature), "a bad signature")
    }

    /// Distinct signers in ascending order, at least so many, each with a valid signature.
    fn check_signatures(
        &mut self,
        signatures: &Signatures,
        at_least: usize,
        statement: Statement,
    ) -> Checking<()> {
        ensure(signatures.len() >= at_least, "too few signatures")?;
        ensure(signatures.len() <= self.config.quorum.n(), "more signatures than replicas")?;
        ensure(signatures.is_sorted_by(|a, b| a.0 < b.0), "signers are not distinct and ascending")?;
        let are_valid =
            signatures.iter().all(|(signer, signature)| self.holds(*signer, statement, signature));
        ensure(are_valid, "a bad signature in a certificate")
    }

    fn quorum(&self) -> usize {
        self.config.quorum_size(self.mutation)
    }

    fn check_commits(&mut self, certificate: &CommitCertificate) -> Checking<()> {
        let CommitCertificate { view, slot, digest, .. } = *certificate;
        self.check_signatures(&certificate.commits, self.quorum(), Statement::Commit(view, slot, digest))
    }

    /// The slot and root that an encoded [`Message::Stable`] of this replica proves, and what the engine is told of it: for a caller
    /// that rests something on it, and cannot wait until it is its turn to be checked.
    #[must_use]
    pub fn read_stable(
        &mut self,
        from: ReplicaId,
        came_at: Ticks,
        message: &[u8],
    ) -> Option<(Slot, Digest, Verified)> {
        let Ok(message @ Message::Stable(_)) = codec::decode(message) else { return None };
        let verified = self.verify(Unverified::message(from, came_at, message, 0)).ok()?;
        let Checked::Stable(certificate) = &verified.content else { return None };
        let (slot, root) = (certificate.slot, certificate.root);
        Some((slot, root, verified))
    }

    fn check_stable(&mut self, certificate: &StableCertificate) -> Checking<()> {
        let statement = Statement::Checkpoint(certificate.slot, certificate.root);
        self.check_signatures(&certificate.votes, self.quorum(), statement)
    }

    fn check_prepared(&mut self, certificate: &PreparedCertificate) -> Checking<()> {
        let PreparedCertificate { view, slot, digest, .. } = *certificate;
        let primary = self.config.primary(view);
        let is_proposed =
            self.holds(primary, Statement::PrePrepare(view, slot, digest), &certificate.proposal);
        ensure(is_proposed, "the primary did not propose it")?;
        let is_backed = certificate.prepares.iter().all(|(signer, _)| *signer != primary);
        ensure(is_backed, "the primary's PREPARE does not count")?;
        let at_least = self.quorum() - 1;
        self.check_signatures(&certificate.prepares, at_least, Statement::Prepare(view, slot, digest))
    }

    /// One bad certificate makes the whole message void, and nothing else.
    fn check_view_change(&mut self, message: &ViewChange) -> Checking<ViewChangeBody> {
        let statement = Statement::ViewChange(message.view, body_digest(&message.body));
        ensure(self.holds(message.signer, statement, &message.signature), "a bad signature")?;
        let body: ViewChangeBody = codec::decode(&message.body).map_err(|_| "not a view change")?;
        ensure(message.view > View(0), "no view change leads to the first view")?;
        let stable = body.stable.as_ref().map_or(Slot::ZERO, |stable| stable.slot);
        if let Some(certificate) = &body.stable {
            self.check_stable(certificate)?;
        }
        ensure(body.prepared.is_sorted_by(|a, b| a.slot < b.slot), "certificates are not in order")?;
        let are_unchecked = mutated!(self, CertificatesUnchecked);
        for certificate in &body.prepared {
            ensure(self.config.is_in_window(stable, certificate.slot), "a certificate outside the window")?;
            ensure(certificate.view < message.view, "a certificate of a later view")?;
            if !are_unchecked {
                self.check_prepared(certificate)?;
            }
        }
        Ok(body)
    }

    fn check_new_view(&mut self, message: NewView) -> Checking<Checked> {
        let primary = self.config.primary(message.view);
        let statement = Statement::NewView(message.view, body_digest(&message.body));
        ensure(self.holds(primary, statement, &message.signature), "a bad signature")?;
        let body: NewViewBody = codec::decode(&message.body).map_err(|_| "not a new view")?;
        let view_changes = &body.view_changes;
        ensure(view_changes.len() == self.quorum(), "not a quorum of view changes")?;
        ensure(view_changes.is_sorted_by(|a, b| a.signer < b.signer), "signers are not distinct")?;
        ensure(view_changes.iter().all(|other| other.view == message.view), "for another view")?;
        let bodies: Vec<ViewChangeBody> =
            view_changes.iter().map(|other| self.check_view_change(other)).collect::<Result<_, _>>()?;
        let plan = plan(&bodies).map_err(|_| "its view changes contradict one another")?;
        let proposed = body.proposals.iter().map(|(slot, digest, _)| (*slot, *digest));
        ensure(proposed.eq(plan.proposals.iter().copied()), "its proposals do not follow from it")?;
        for (slot, digest, signature) in &body.proposals {
            let statement = Statement::PrePrepare(message.view, *slot, *digest);
            ensure(self.holds(primary, statement, signature), "a proposal is not signed")?;
        }
        let signatures = body.proposals.into_iter().map(|(_, _, signature)| signature).collect();
        Ok(Checked::NewView { message, plan, signatures })
    }

    /// Whether an admitted client signed this, and may ask for it.
    fn is_signed(&mut self, bundle: &Bundle) -> bool {
        let root = bundle.root();
        let key = (bundle.client(), root, bundle.signature());
        if mutated!(self, RequestsUnchecked) || self.known_bundles.contains(&key) {
            return true;
        }
        self.checks += 1;
        let is_signed = bundle.verify_root(&self.keyring, root).is_ok();
        if is_signed {
            self.known_bundles.insert(key);
        }
        is_signed
    }

    fn holds(&mut self, signer: ReplicaId, statement: Statement, signature: &Signature) -> bool {
        let key = (signer, statement, *signature);
        if self.known.contains(&key) {
            return true;
        }
        self.checks += 1;
        let is_valid = self.keyring.verify(signer, statement, signature);
        if is_valid {
            self.known.insert(key);
        }
        is_valid
    }
}

fn ensure(condition: bool, reason: &'static str) -> Checking<()> {
    if condition { Ok(()) } else { Err(reason) }
}

fn parse(bytes: Bytes) -> Checking<Arc<Batch>> {
    Batch::parse(bytes).map(Arc::new).map_err(|_| "not a batch")
}

/// Signatures of replicas that are remembered.
const KNOWN_MAX: usize = 16 << 10;

/// Signatures of clients that are remembered.
const KNOWN_BUNDLES_MAX: usize = 1 << 10;

/// What was found valid lately, and how much of it is remembered.
#[derive(Clone, Debug)]
struct Known<K, const MAX: usize> {
    set: BTreeSet<K>,
    order: VecDeque<K>,
}

impl<K, const MAX: usize> Default for Known<K, MAX> {
    fn default() -> Self {
        Self { set: BTreeSet::new(), order: VecDeque::new() }
    }
}

impl<K: Copy + Ord, const MAX: usize> Known<K, MAX> {
    fn contains(&self, key: &K) -> bool {
        self.set.contains(key)
    }

    fn insert(&mut self, key: K) {
        if self.set.insert(key) {
            self.order.push_back(key);
        }
        if self.order.len() > MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
        assert_eq!(self.set.len(), self.order.len(), "each is kept once");
    }
}
