//! A client that takes all it can: it opens sessions in every group as fast as it may and closes none. The others must not notice.
//!
//! It speaks over a connection of its own behind those of the others. What it sends arrives at once, and what it is told is only counted:
//! a message for each would slow the world down and show nothing.

use super::node::{CLIENT_SECRETS, secret};
use super::{Event, World};
use crate::nemesis::Nemesis;
use crate::plan::{Mode, Plan};
use bytes::Bytes;
use tetrachord::kv::{self, Envelope, Failure, Operation, Reply, RequestId, SessionId};
use tetrachord::limits::{CLIENT_SHARE, SESSIONS_MAX};
use tetrachord::node::core::{NodeCore, NodeEvent};
use tetrachord::ring::GroupId;
use tetrachord::ticket::ConnectionId;
use tetrachord::wire::{self, Answer, AnswerFrame, Request, RequestFrame};
use tetrachord_consensus::pbft::ClientSigner;

/// It asks this often, in microseconds, for so many sessions; for few once it has what it may. In Byzantine mode for fewer: replicas keep
/// a window of what is ordered, and what they keep is held against what the others need.
const EVERY_MICROS: u64 = 50_000;
const AT_ONCE: u64 = 256;
const AT_ONCE_SIGNED: u64 = 64;
const WHEN_FULL: u64 = 4;

/// The client.
pub(super) struct Greedy {
    signer: ClientSigner,
    connection: usize,
    asked: u64,
}

impl Greedy {
    pub(super) fn new(plan: &Plan) -> Self {
        let signer = ClientSigner::new(&secret(CLIENT_SECRETS + plan.clients));
        Self { signer, connection: plan.clients, asked: 0 }
    }

    /// Whether this is its connection.
    pub(super) fn is_at(&self, connection: usize) -> bool {
        connection == self.connection
    }

    fn key(&self) -> kv::Client {
        self.signer.name().0
    }

    /// How many sessions it asks for next, by what it holds as far as this node knows.
    fn wants(&self, core: &NodeCore, group: GroupId, mode: Mode) -> u64 {
        let machine = core.groups().find(|of| of.tenure().group() == group).map(|of| of.machine());
        let mut held = machine.into_iter().flat_map(|machine| machine.held());
        let own = held.find(|(client, _)| **client == self.key()).map_or(0, |(_, held)| held.sessions);
        // The others hold a few, so that its share is a little less.
        match mode {
            _ if own + 16 >= SESSIONS_MAX / CLIENT_SHARE => WHEN_FULL,
            Mode::Crash => AT_ONCE,
            Mode::Byzantine => AT_ONCE_SIGNED,
        }
    }
}

impl World {
    /// Sessions for the greedy client, in some group.
    pub(super) fn be_greedy(&mut self) {
        if self.is_calm {
            return;
        }
        self.after(EVERY_MICROS, Event::Greed);
        let group = self.tenures[self.random.index(self.tenures.len())].group();
        let is_byzantine = self.plan.mode == Mode::Byzantine;
        let hears = |index: &usize| {
            let node = &self.nodes[*index];
            let core = node.core.as_ref().filter(|_| !node.is_paused);
            let mut groups = core.iter().flat_map(|core| core.groups());
            groups.any(|of| of.tenure().group() == group && (is_byzantine || of.is_leading()))
        };
        let hearing: Vec<usize> = (0..self.nodes.len()).filter(hears).collect();
        let Some(core) = hearing.last().and_then(|index| self.nodes[*index].core.as_ref()) else { return };
        let wanted = self.greedy.wants(core, group, self.plan.mode);
        let nonces: Vec<u128> = (0..wanted)
            .map(|more| (u128::from(self.greedy.asked + more) << 64) | u128::from(self.plan.seed))
            .collect();
        self.greedy.asked += wanted;
        self.count(Nemesis::GreedyClient, 1, 0);
        let frames = match self.plan.mode {
            Mode::Crash => nonces.iter().map(|nonce| open(group, *nonce)).collect(),
            Mode::Byzantine => self.signed_openings(group, &nonces),
        };
        for index in hearing {
            let (connection, client) = (ConnectionId(self.greedy.connection as u64), self.greedy.key());
            let frames = frames.clone().into_iter();
            self.turn(
                index,
                frames.map(|body| NodeEvent::Client {
                    connection,
                    client: tetrachord::shares::ClientId(client),
                    body,
                }),
            );
        }
    }

    /// In Byzantine mode all of them under one signature; and it wants to be told.
    fn signed_openings(&self, group: GroupId, nonces: &[u128]) -> Vec<Bytes> {
        let client = self.greedy.key();
        let bundle = super::client::openings(&self.greedy.signer, group, nonces, self.now);
        [Request::Watch { client }, Request::Submit { group, bundle }].into_iter().map(body_of).collect()
    }

    /// What it is told. That it gets no more is what it is there for.
    pub(super) fn on_greedy_answer(&mut self, frame: &Bytes) {
        let Ok(AnswerFrame { answer, .. }) = wire::decode(&frame[4..]) else { return };
        let replies = match answer {
            Answer::Reply { reply, .. } => vec![reply],
            Answer::Outcomes { replies, .. } => replies.into_iter().map(|(_, reply, _)| reply).collect(),
            _ => Vec::new(),
        };
        let is_refused = |reply: &&Reply| matches!(reply, Reply::Failed(Failure::TooManySessions { .. }));
        let refused = replies.iter().filter(is_refused).count();
        self.count(Nemesis::GreedyClient, 0, refused as u64);
    }
}

fn open(group: GroupId, nonce: u128) -> Bytes {
    let request = RequestId { session: SessionId(nonce), number: 0 };
    let envelope = Envelope::new(request, 0, &Operation::Open).encode();
    body_of(Request::Command { group, envelope })
}

fn body_of(request: Request) -> Bytes {
    wire::encode(&RequestFrame { id: 1, request }).slice(4..)
}
