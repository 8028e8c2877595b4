//! A replica that lies on purpose, to show that it does not matter.
//!
//! An honest replica runs inside, and what it says is twisted on the way out. It signs every lie with its own key; it has
//! no other keys, so it can forge nothing. Tests use it, and clusters whose nodes are told to lie (`[chaos] allow = true`).

use crate::codec;
use crate::pbft::batch::Batch;
use crate::pbft::config::Options;
use crate::pbft::message::{
    CheckpointVote, Message, NewView, NewViewBody, PreparedCertificate, ViewChange, ViewChangeBody, Vote,
    body_digest,
};
use crate::pbft::sign::{Signature, Signer, Statement};
use crate::types::{Digest, ReplicaId, Slot, Timestamp, View};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Ways to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lie {
    /// Says nothing.
    Silent,
    /// As primary gives different batches to different replicas, and votes for both.
    Equivocate,
    /// Votes for other batches than it was given, sends other batches than it was asked for.
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
    /// As primary proposes as late as it can without being replaced for silence.
    OrderSlowly,
    /// Orders requests that no client signed.
    Forge,
    /// Answers clients with what is not so.
    WrongReplies,
    /// Gives a state that is not the one that was agreed on.
    FalseState,
    /// Offers a state again and again, and gives none of it. Of all else it says only how far it is, so that nobody gets on
    /// without whoever waits for that state.
    EndlessState,
    /// As primary orders nothing of one client, and gives one backup after the other another batch than the rest, so that each is
    /// short of one now and then.
    LeaveOut,
    /// Everything above, as chance wills it.
    Anything,
}

impl Lie {
    /// Every way to lie, the mixture last.
    pub const ALL: [Self; 15] = [
        Self::Silent,
        Self::Equivocate,
        Self::WrongDigests,
        Self::WrongRoots,
        Self::Replay,
        Self::BadCertificates,
        Self::Starve,
        Self::FutureViews,
        Self::OrderSlowly,
        Self::Forge,
        Self::WrongReplies,
        Self::FalseState,
        Self::EndlessState,
        Self::LeaveOut,
        Self::Anything,
    ];

    /// Its name in configuration and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Equivocate => "equivocate",
            Self::WrongDigests => "wrong-digests",
            Self::WrongRoots => "wrong-roots",
            Self::Replay => "replay",
            Self::BadCertificates => "bad-certificates",
            Self::Starve => "starve",
            Self::FutureViews => "future-views",
            Self::OrderSlowly => "order-slowly",
            Self::Forge => "forge",
            Self::WrongReplies => "wrong-replies",
            Self::FalseState => "false-state",
            Self::EndlessState => "endless-state",
            Self::LeaveOut => "leave-out",
            Self::Anything => "anything",
        }
    }

    /// What it is counted in, each time that it was told and changed something.
    #[must_use]
    pub fn effect(self) -> &'static str {
        match self {
            Self::Silent | Self::Starve => "messages withheld",
            Self::Equivocate => "proposals and COMMITs for another batch",
            Self::WrongDigests => "votes for other batches, and other batches",
            Self::WrongRoots => "state roots changed",
            Self::Replay => "messages said again",
            Self::BadCertificates => "view changes and new views changed or made up",
            Self::FutureViews => "far views asked for",
            Self::OrderSlowly => "proposals held back",
            Self::Forge => "requests changed",
            Self::WrongReplies => "answers to clients changed",
            Self::FalseState => "offers and pieces of a state changed",
            Self::EndlessState => "offers made again, instead of pieces of a state",
            Self::LeaveOut => "requests of one client not taken in, as primary",
            Self::Anything => "messages changed",
        }
    }

    /// The lie of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|lie| lie.name() == name)
    }
}

/// Twists what a replica says.
#[derive(Clone, Debug)]
pub struct Liar {
    signer: Signer,
    random: u64,
    said: Vec<Message>,
    /// Other batches by slot, to have something to vote for.
    others: BTreeMap<Slot, Digest>,
    /// How often each proposal was not sent to each replica.
    held: BTreeMap<(View, Slot, ReplicaId), u8>,
    /// How often one is held back.
    holds: u8,
    /// How many replicas the group has.
    replicas: u64,
}

/// Messages that are remembered, to be said again.
const SAID_MAX: usize = 500;

/// So many times a proposal is asked for before it goes out, unless it is known for how long others wait.
const HOLDS: u8 = 3;

/// Slots of which another batch is remembered.
const OTHERS_MAX: usize = 1_000;

impl Liar {
    /// A liar with this replica's key; the same seed tells the same lies.
    #[must_use]
    pub fn new(signer: Signer, seed: u64) -> Self {
        let (said, others, held) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { signer, random: seed, said, others, held, holds: HOLDS, replicas: 4 }
    }

    /// The same in a group of so many, who knows for how long others wait for a primary, in milliseconds, before they replace it.
    /// Whoever misses something says so in every status interval or a little later, so that it may take one more.
    #[must_use]
    pub fn who_knows(mut self, patience: u64, replicas: usize) -> Self {
        let holds = (patience * 8 / 10 / Options::default().status_ticks).saturating_sub(1);
        (self.holds, self.replicas) = (u8::try_from(holds).unwrap_or(u8::MAX).max(1), replicas as u64);
        self
    }

    /// A number below `n` (SplitMix64).
    pub fn below(&mut self, n: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// What is said to a replica instead of a message.
    pub fn twist(&mut self, lie: Lie, to: ReplicaId, message: Message) -> Vec<Message> {
        if self.said.len() < SAID_MAX {
            self.said.push(message.clone());
        }
        while self.others.len() > OTHERS_MAX {
            self.others.pop_first();
        }
        let is_odd = !to.0.is_multiple_of(2);
        match lie {
            Lie::Anything if self.chance(40) => vec![message],
            Lie::Anything => {
                let index = usize::try_from(self.below(Lie::ALL.len() as u64 - 1)).expect("a small number");
                self.twist(Lie::ALL[index], to, message)
            }
            Lie::Silent => Vec::new(),
            Lie::EndlessState if !matches!(message, Message::Status(_)) => Vec::new(),
            Lie::Starve if !is_odd => Vec::new(),
            Lie::Starve | Lie::WrongReplies | Lie::FalseState | Lie::EndlessState => vec![message],
            Lie::Equivocate => vec![self.equivocate(is_odd, message)],
            Lie::WrongDigests => self.wrong_digest(message),
            Lie::WrongRoots => vec![self.wrong_root(message)],
            Lie::Replay => {
                let index = usize::try_from(self.below(self.said.len() as u64)).expect("a small number");
                vec![message, self.said[index].clone()]
            }
            Lie::BadCertificates => {
                // It need not wait for a view to end: it asks for the next one with a certificate that it made up.
                let unasked = match &message {
                    Message::Status(status) => Some(self.forged_view_change(View(status.view.0 + 1), None)),
                    _ => None,
                };
                [self.bad_certificate(message)].into_iter().chain(unasked).collect()
            }
            Lie::FutureViews => {
                let view = View(2 + self.below(50));
                vec![message, self.view_change(view, &ViewChangeBody { stable: None, prepared: Vec::new() })]
            }
            Lie::OrderSlowly => self.hold_back(to, message),
            Lie::LeaveOut => vec![self.keep_short(to, message)],
            Lie::Forge => vec![self.forge(message)],
        }
    }

    /// A proposal that is not sent at first is asked for again and again; it goes out just in time.
    fn hold_back(&mut self, to: ReplicaId, message: Message) -> Vec<Message> {
        let Message::PrePrepare { vote, .. } = &message else { return vec![message] };
        while self.held.len() > OTHERS_MAX {
            self.held.pop_first();
        }
        let times = self.held.entry((vote.view, vote.slot, to)).or_default();
        *times = times.saturating_add(1);
        if *times > self.holds { vec![message] } else { Vec::new() }
    }

    /// In every few slots one replica, another each time, gets a batch that the rest, who are enough, do not get, and must ask for
    /// theirs. In every slot would be too much: who lags behind the window is missed by the others.
    fn keep_short(&mut self, to: ReplicaId, message: Message) -> Message {
        const EVERY: u64 = 10;
        let Message::PrePrepare { vote, .. } = &message else { return message };
        let turn = (vote.slot.0 / EVERY) % self.replicas;
        let is_its_turn = vote.slot.0.is_multiple_of(EVERY) && turn == u64::from(to.0);
        if is_its_turn { self.other_proposal(message) } else { message }
    }

    fn vote(&self, statement: Statement, vote: Vote, digest: Digest) -> Vote {
        Vote { signer: self.signer.me(), digest, signature: self.signer.sign(statement), ..vote }
    }

    /// Another valid batch of the same requests.
    fn other_batch(&mut self, vote: &Vote, batch: &Bytes) -> Option<Batch> {
        let batch = Batch::parse(batch.clone()).ok().filter(|batch| !batch.bytes().is_empty())?;
        let other = Batch::new(Timestamp(batch.time()?.0 + 1), batch.bundles().to_vec());
        self.others.insert(vote.slot, other.digest());
        Some(other)
    }

    /// Another batch for the slot of a proposal.
    fn other_proposal(&mut self, message: Message) -> Message {
        let Message::PrePrepare { vote, batch } = &message else { return message };
        let Some(other) = self.other_batch(vote, batch) else { return message };
        let statement = Statement::PrePrepare(vote.view, vote.slot, other.digest());
        let vote = self.vote(statement, *vote, other.digest());
        Message::PrePrepare { vote, batch: other.bytes().clone() }
    }

    fn equivocate(&mut self, is_odd: bool, message: Message) -> Message {
        match message {
            Message::PrePrepare { .. } if is_odd => self.other_proposal(message),
            // To those who got the other batch it commits to the other.
            Message::Commit(vote) if is_odd => match self.others.get(&vote.slot).copied() {
                Some(other) => {
                    let statement = Statement::Commit(vote.view, vote.slot, other);
                    Message::Commit(self.vote(statement, vote, other))
                }
                None => message,
            },
            message => message,
        }
    }

    fn wrong_digest(&mut self, message: Message) -> Vec<Message> {
        let other = |liar: &Self, slot| liar.others.get(&slot).copied().unwrap_or(Digest([0xaa; 32]));
        let lie = match &message {
            Message::Prepare(vote) => {
                let other = other(self, vote.slot);
                Message::Prepare(self.vote(Statement::Prepare(vote.view, vote.slot, other), *vote, other))
            }
            Message::Commit(vote) => {
                let other = other(self, vote.slot);
                Message::Commit(self.vote(Statement::Commit(vote.view, vote.slot, other), *vote, other))
            }
            Message::Certified { certificate, batch } => {
                let mut certificate = certificate.clone();
                certificate.digest = Digest([0xaa; 32]);
                return vec![Message::Certified { certificate, batch: batch.clone() }];
            }
            Message::Body { slot, .. } => return vec![Message::Body { slot: *slot, batch: Bytes::new() }],
            _ => return vec![message],
        };
        // Sometimes it says both.
        if self.chance(50) { vec![lie, message] } else { vec![lie] }
    }

    fn wrong_root(&mut self, message: Message) -> Message {
        let root = Digest([0xdd; 32]);
        match message {
            Message::Checkpoint(vote) => {
                let signature = self.signer.sign(Statement::Checkpoint(vote.slot, root));
                Message::Checkpoint(CheckpointVote { root, signature, ..vote })
            }
            Message::Stable(mut certificate) => {
                certificate.root = root;
                Message::Stable(certificate)
            }
            message => message,
        }
    }

    fn view_change(&self, view: View, body: &ViewChangeBody) -> Message {
        let body = codec::encode(body);
        let signature = self.signer.sign(Statement::ViewChange(view, body_digest(&body)));
        Message::ViewChange(ViewChange { signer: self.signer.me(), view, body, signature })
    }

    /// With a certificate of the highest view that there can be, for a batch that nobody knows.
    fn forged_view_change(&self, view: View, body: Option<ViewChangeBody>) -> Message {
        let mut body = body.unwrap_or(ViewChangeBody { stable: None, prepared: Vec::new() });
        let slot = body.stable.as_ref().map_or(Slot(1), |stable| stable.slot.next());
        let prepares = (0..4).map(|index| (ReplicaId(index), Signature([1; 64]))).collect();
        let (digest, proposal) = (Digest([0xee; 32]), Signature([2; 64]));
        let forged = PreparedCertificate { view: View(view.0 - 1), slot, digest, proposal, prepares };
        body.prepared.retain(|certificate| certificate.slot != slot);
        body.prepared.insert(0, forged);
        self.view_change(view, &body)
    }

    fn bad_certificate(&mut self, message: Message) -> Message {
        match message {
            Message::ViewChange(message) => {
                let mut body: ViewChangeBody = codec::decode(&message.body).expect("it was just made");
                match self.below(3) {
                    0 => body.prepared.clear(),
                    1 => return self.forged_view_change(message.view, Some(body)),
                    _ => body.prepared.truncate(1),
                }
                self.view_change(message.view, &body)
            }
            Message::NewView(message) => {
                let mut body: NewViewBody = codec::decode(&message.body).expect("it was just made");
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
        let change = |bytes: &Bytes| {
            let mut forged = bytes.to_vec();
            if let Some(last) = forged.last_mut() {
                *last ^= 1;
            }
            Bytes::from(forged)
        };
        match message {
            Message::PrePrepare { vote, batch } if !batch.is_empty() => {
                let forged = change(&batch);
                let digest = body_digest(&forged);
                let statement = Statement::PrePrepare(vote.view, vote.slot, digest);
                let vote = self.vote(statement, vote, digest);
                // Sometimes not even the digest is right.
                let batch = if self.chance(50) { forged } else { batch };
                Message::PrePrepare { vote, batch }
            }
            Message::Requests(bytes) => Message::Requests(change(&bytes)),
            message => message,
        }
    }
}
