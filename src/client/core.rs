//! The client as a pure machine: what is asked, answered, lost, and how late it is go in; what to send, whom to dial, and what became of
//! each call come out. It never touches a clock, a socket, a task or a source of chance: the shell ([`super::run`]) brings them in
//! production, a simulator in its place runs this very code.
//!
//! A call goes through these stages, each with a time at which it goes on without what it waits for:
//!
//! ```text
//!            ┌─ ring ──┐  ┌─ session, number ─┐       ┌── link ──> answer ──┐ crash: one node after another, until one answers
//!  ask ──> known?      └─>│ (writes)          └─> ask ┤     ^─── pause <──┘ ├──> done
//!                                                     └── agreement ────────┘ Byzantine: until f + 1 members tell the same
//! ```
//!
//! Invariants:
//! * a call comes to one end, by its deadline at the latest. A write that may have been applied is never refused: it is Unknown;
//! * a write keeps its session and its number however often it is sent; no number is used twice ([`sessions`]);
//! * in Byzantine mode only what `f + 1` members of the group told is believed ([`collect`]); in crash mode the node that was asked;
//! * whatever one call waits for, others go on: nothing here blocks;
//! * every call that is open has a timer.
//!
//! Not here: signatures are made by the shell, because they take long ([`Core::take_bundles`]); so are encoding and all waiting.

mod calls;
mod closing;
mod collect;
mod crash;
mod greeting;
mod hints;
mod links;
mod members;
mod opening;
mod sessions;
mod signed;
mod timers;
mod usual;

#[cfg(test)]
mod tests;

use super::ClientOptions;
use super::outcome::{NotClosed, Outcome, Proven, Read, Refusal};
use crate::config::{ClusterConfig, cluster_digest};
use crate::kv::{self, Envelope, Operation, Reply, RequestId, Write};
use crate::limits::Limits;
use crate::ring::{Address, Atlas, GroupId, NodeId, Tenure};
use crate::wire::{Answer, AnswerFrame, Consistency, Hello, NodeStatus, Request, RetryReason};
use bytes::Bytes;
use calls::{Call, Stage, What};
use closing::Closing;
use greeting::Greeting;
use links::{Links, Verdict};
use members::Members;
use sessions::Sessions;
use signed::Signed;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tetrachord_consensus::pbft::{ClientSigner, Domain, SignedRequest};
use tetrachord_consensus::{Digest, Mutation};
use timers::{Timer, Timers};

/// A node that had too much to do to note who wants to be told is asked again after this time.
const WATCH_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Names a call of this client. Later ones have larger numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// Names a connection, among all that this client has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// The present, as the shell knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Since the client began. Never goes back.
    pub at: Duration,
    /// Microseconds since 1970, for how long a signed request is good.
    pub wall_micros: u64,
}

/// What a client knows of its cluster before it has asked anybody.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The nodes of the cluster file.
    pub nodes: BTreeMap<NodeId, Address>,
    /// In Byzantine mode, the tenures that the cluster began with: no node is believed about them.
    pub founding: Option<Vec<Tenure>>,
    /// In Byzantine mode, who signs.
    pub signing: Option<Signing>,
    /// How patient it is.
    pub options: ClientOptions,
    /// For names that must not repeat, and rests that differ; from a source that nobody can guess.
    pub seed: [u8; 32],
    /// A defect, in tests of the tests.
    pub mutation: Mutation,
}

/// Who signs for what, in Byzantine mode.
#[derive(Clone, Debug)]
pub struct Signing {
    /// The client's public key.
    pub client: kv::Client,
    /// The digest of the cluster.
    pub cluster: Digest,
}

impl Setup {
    /// What a cluster file says. An error if it is of a Byzantine cluster and does not tell the ring.
    pub fn of(cluster: &ClusterConfig, options: ClientOptions, seed: [u8; 32]) -> Result<Self, &'static str> {
        if cluster.signing.is_some() && cluster.founding.is_none() {
            return Err("a client of a Byzantine cluster believes no node about the ring: it must be told");
        }
        let signing = cluster.signing.as_ref().map(|signing| Signing {
            client: ClientSigner::new(&signing.seed()).name().0,
            cluster: Digest(cluster_digest(&cluster.protocol)),
        });
        let nodes = cluster.nodes.iter().map(|node| (node.id, node.address.clone())).collect();
        let (founding, mutation) = (cluster.founding.clone(), Mutation::None);
        Ok(Self { nodes, founding, signing, options, seed, mutation })
    }
}

/// What a program asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Carry out a write, once.
    Write(Write),
    /// Read a key.
    Read {
        /// The key.
        key: Bytes,
        /// How fresh, in crash mode.
        consistency: Consistency,
    },
    /// Read a key, with proof of what replicas signed.
    Prove {
        /// The key.
        key: Bytes,
    },
    /// The slot of the key's group that this client has seen.
    Seen {
        /// The key.
        key: Bytes,
    },
    /// What a node knows of itself.
    Status(NodeId),
    /// End: refuse what is asked from now on, wait for what is open, close all sessions.
    Close,
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Of a write.
    Write(Outcome<Reply>),
    /// Of a read.
    Read(Outcome<Read>),
    /// Of a read with proof.
    Prove(Box<Outcome<Proven>>),
    /// Of a question for what was seen.
    Seen(u64),
    /// Of a question for a node's status.
    Status(Result<Box<NodeStatus>, Refusal>),
    /// Of the end.
    Closed(Result<(), NotClosed>),
}

/// What is sent to a node. The shell encodes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// A command for a group.
    Command {
        /// The group.
        group: GroupId,
        /// Which request this is.
        request: RequestId,
        /// The client has the outcomes of all requests below this number.
        ack_below: u64,
        /// What is asked.
        operation: Operation,
    },
    /// Anything else.
    Request(Request),
}

impl Outgoing {
    /// The request as it goes over the wire.
    #[must_use]
    pub fn encode(self) -> Request {
        match self {
            Self::Command { group, request, ack_below, operation } => {
                let envelope = Envelope::bytes_of(request, ack_below, &operation);
                Request::Command { group, envelope }
            }
            Self::Request(request) => request,
        }
    }
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Open a connection, after a rest; answered by [`Core::greeted`] or [`Core::unreachable`].
    Dial {
        /// The node.
        node: NodeId,
        /// How long to wait before.
        rest: Duration,
        /// How long the node may say nothing at all.
        silence: Duration,
    },
    /// Send a request; [`Core::not_sent`] if the connection does not take it.
    Send {
        /// The node.
        node: NodeId,
        /// The connection: over another one it is not sent any more.
        link: LinkId,
        /// The request's number, which no other of this client to the node has.
        id: u64,
        /// The request.
        outgoing: Outgoing,
    },
    /// Say at once what has come from a node, by [`Core::heard`].
    Look(NodeId),
    /// Give this connection up, and no other.
    Close(NodeId, LinkId),
    /// Tell the caller.
    Done(CallId, Done),
}

/// What has come from a node so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Packets, those that only acknowledge among them.
    pub packets: u64,
    /// How long one and its acknowledgement take.
    pub round_trip: Duration,
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// Whoever answers there does not want this client, or is not who it should be. Waiting will not help.
    Denied(String),
    /// Nobody answers.
    Silent(String),
}

/// Byzantine mode: requests to be signed together, and where to bring them ([`Request::Submit`]), over which connections and under which
/// numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToSign {
    /// The group.
    pub group: GroupId,
    /// Where it is signed.
    pub domain: Domain,
    /// The requests.
    pub requests: Vec<SignedRequest>,
    /// The nodes.
    pub to: Vec<(NodeId, LinkId, u64)>,
}

/// A client. See the module's essay.
#[derive(Debug)]
pub struct Core {
    setup: Setup,
    /// The ring and the limits, once they are known.
    known: Option<(Arc<Atlas>, Limits)>,
    greeting: Greeting,
    calls: BTreeMap<CallId, Call>,
    last_call: u64,
    links: Links,
    timers: Timers,
    sessions: Sessions,
    leaders: BTreeMap<GroupId, NodeId>,
    /// Nodes that knew no leader of a group, and until when they are asked last for it.
    clueless: BTreeMap<(GroupId, NodeId), Duration>,
    signed: Option<Signed>,
    is_ended: bool,
    closing: Option<Closing>,
    drawn: u64,
    now: Now,
    effects: Vec<Effect>,
}

impl Core {
    /// A client that has asked nothing yet.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let founding = setup.founding.as_deref();
        let members = Arc::new(founding.map(Members::new).unwrap_or_default());
        let known = founding.map(|tenures| (Arc::new(Atlas::founded(tenures)), Limits::default()));
        let mut core = Self {
            known,
            greeting: Greeting::default(),
            calls: BTreeMap::new(),
            last_call: 0,
            links: Links::new(setup.nodes.keys().copied()),
            timers: Timers::default(),
            sessions: Sessions::default(),
            leaders: BTreeMap::new(),
            clueless: BTreeMap::new(),
            signed: None,
            is_ended: false,
            closing: None,
            drawn: 0,
            now: Now::default(),
            effects: Vec::new(),
            setup,
        };
        let reads = core.draw();
        core.signed = core.setup.signing.clone().map(|signing| Signed::new(signing, members, reads));
        core
    }

    /// A program asks something. What it comes to is told by [`Effect::Done`].
    pub fn ask(&mut self, now: Now, ask: Ask) -> CallId {
        self.now = now;
        let patience = match &ask {
            Ask::Status(_) => self.setup.options.attempt,
            _ => self.setup.options.deadline,
        };
        let id = self.begin(What::Ask(ask), None, now.at.saturating_add(patience));
        self.advance(id);
        id
    }

    /// Nobody waits for the call any more. What it has sent may be carried out.
    pub fn forget(&mut self, now: Now, call: CallId) {
        self.now = now;
        if self.calls.contains_key(&call) {
            self.remove(call);
        }
    }

    /// A connection is open; what the node said first.
    pub fn greeted(&mut self, now: Now, node: NodeId, link: LinkId, hello: Option<Hello>) {
        self.now = now;
        let waiting = self.links.opened(node, link);
        if let Some(signed) = &mut self.signed {
            // There may be connections enough now.
            signed.has_gathered = true;
            self.watch(node);
        }
        if let Some(hello) = hello.filter(|_| self.known.is_none())
            && let Some(atlas) = Atlas::of(hello.places)
        {
            self.known = Some((Arc::new(atlas), hello.limits));
            self.end_greeting();
        }
        for call in waiting {
            self.reach(call, node);
        }
    }

    /// A dial has failed.
    pub fn unreachable(&mut self, now: Now, node: NodeId, why: &Unreachable) {
        self.now = now;
        let is_denied = matches!(why, Unreachable::Denied(_));
        let waiting = self.links.unreachable(node, is_denied, now.at);
        self.greeting_failed(node, why);
        for call in waiting {
            self.not_reached(call, why);
        }
    }

    /// A connection is gone, also one that was given up by [`Effect::Close`].
    pub fn lost(&mut self, now: Now, node: NodeId, link: LinkId) {
        self.now = now;
        if self.links.link(node) != Some(link) {
            return;
        }
        self.lose(node, &format!("the connection to {node} was lost before it answered"));
    }

    /// A request was not taken by its connection: it was not sent.
    pub fn not_sent(&mut self, now: Now, node: NodeId, id: u64) {
        self.now = now;
        if let Some(call) = self.links.answered(node, id) {
            self.was_not_sent(call, format!("{node} does not take requests fast enough"));
        }
    }

    /// A node answers, or tells something by itself.
    pub fn answered(&mut self, now: Now, node: NodeId, frame: AnswerFrame) {
        self.now = now;
        let AnswerFrame { id, answer } = frame;
        self.links.spoke(node);
        match answer {
            // What comes as the answer to a request may have been passed on, and be another node's words.
            Answer::Outcomes { group, slot, replies } if id == 0 => {
                self.take_outcomes(node, group, slot, replies);
            }
            Answer::Outcomes { .. } => {}
            answer => match self.who_asked(node, id) {
                Some(call) if self.calls[&call].cancelled == Some((node, id)) => {
                    self.on_earlier_answer(call, answer);
                }
                Some(call) => self.on_answer(call, node, answer),
                None => self.note_hint(node, id, answer),
            },
        }
    }

    /// What has come from a node, when it was to be looked at.
    pub fn heard(&mut self, now: Now, node: NodeId, heard: Heard) {
        self.now = now;
        match self.links.judge(node, heard, now.at) {
            Verdict::Lives(Some(due)) => self.timers.set(Timer::Probe(node), due),
            Verdict::Lives(None) => self.timers.clear(Timer::Probe(node)),
            Verdict::Dead => {
                let link = self.links.link(node).expect("only a node that is connected is given up");
                self.effects.push(Effect::Close(node, link));
                self.lose(node, &format!("{node} is silent"));
            }
        }
    }

    /// It is later.
    pub fn tick(&mut self, now: Now) {
        self.now = now;
        while let Some((_, timer)) = self.timers.pop(now.at) {
            match timer {
                Timer::Call(call) => self.on_time(call),
                Timer::Probe(node) if self.links.is_waited_for(node) => {
                    self.effects.push(Effect::Look(node));
                }
                Timer::Probe(node) => self.links.rest(node),
                Timer::Show(group) => self.show(group),
                Timer::Greet => self.greet(),
                Timer::Watch(node) => self.watch(node),
            }
        }
    }

    /// When [`Self::tick`] is wanted next.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.timers.next()
    }

    /// What is to be done, in this order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The ring, if it is known.
    #[must_use]
    pub fn atlas(&self) -> Option<&Arc<Atlas>> {
        self.known.as_ref().map(|(atlas, _)| atlas)
    }

    /// How many calls are open, those that the client makes by itself among them.
    #[must_use]
    pub fn open_calls(&self) -> usize {
        self.calls.len()
    }

    fn lose(&mut self, node: NodeId, why: &str) {
        self.timers.clear(Timer::Probe(node));
        for (request, call) in self.links.lost(node, self.now.at) {
            // What was cancelled is not waited for as its cancelling is, perhaps at another node.
            if self.calls.get(&call).is_some_and(|call| call.stage == Stage::Answer(node, request)) {
                self.no_answer(call, why);
            }
        }
    }

    /// What a node says of a request that nobody waits for.
    fn note_hint(&mut self, node: NodeId, id: u64, answer: Answer) {
        let at = self.now.at;
        let Some(signed) = &mut self.signed else { return };
        if matches!(answer, Answer::Retry { .. }) && signed.watches.get(&node) == Some(&id) {
            // Without it the node would tell nothing for as long as the connection lasts.
            self.timers.set(Timer::Watch(node), at + WATCH_AGAIN_AFTER);
        }
        match answer {
            Answer::Kept { group, leader } => signed.hints.note(node, group, leader),
            Answer::Refused { error: reason } | Answer::Unavailable { reason } => {
                signed.hints.note_refusal(node, &reason, at);
            }
            Answer::Retry { reason: RetryReason::Busy, .. } => {
                signed.hints.note_refusal(node, "too much waits here", at);
            }
            _ => {}
        }
    }

    /// Byzantine mode: a node is asked to tell what becomes of this client's requests, if there is a connection.
    fn watch(&mut self, node: NodeId) {
        let Some(signed) = &mut self.signed else { return };
        let (Some(id), Some(link)) = (self.links.cast(node), self.links.link(node)) else { return };
        signed.watches.insert(node, id);
        let outgoing = Outgoing::Request(Request::Watch { client: signed.client() });
        self.effects.push(Effect::Send { node, link, id, outgoing });
    }

    /// Begins to open a connection, unless it is open or somebody does.
    fn dial(&mut self, node: NodeId) {
        let chance = u32::try_from(self.draw() >> 96).expect("32 bits");
        if let Some(links::Dial { rest, silence }) = self.links.dial(node, chance) {
            self.effects.push(Effect::Dial { node, rest, silence });
        }
    }

    /// A number of 128 bits that nobody can guess and that does not repeat.
    fn draw(&mut self) -> u128 {
        self.drawn += 1;
        let hash = blake3::keyed_hash(&self.setup.seed, &self.drawn.to_be_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.as_bytes()[..16]);
        u128::from_be_bytes(bytes)
    }
}
