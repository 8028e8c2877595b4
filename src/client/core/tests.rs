//! The client's rules, each as a story: what is asked, what nodes say, and what becomes of it.

mod byzantine;
mod crash;

use super::*;
use crate::kv::{Failure, RequestId, SessionId, When};
use crate::ring::{Place, TenureId, found_without_keys};
use crate::wire::Served;

pub(super) const GROUP: GroupId = GroupId(1);
pub(super) const SESSION: SessionId = SessionId(9);

pub(super) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) fn put() -> Ask {
    Ask::Write(Write::put("k", "v"))
}

pub(super) fn get() -> Ask {
    Ask::Read { key: Bytes::from_static(b"k"), consistency: Consistency::Linearizable }
}

/// A client, the time, and what it has put out.
pub(super) struct Story {
    pub(super) core: Core,
    at: Duration,
    pub(super) sent: Vec<(NodeId, u64, Outgoing)>,
    pub(super) dialled: Vec<NodeId>,
    pub(super) closed: Vec<NodeId>,
    links: u64,
    pub(super) done: BTreeMap<CallId, Done>,
    /// What has come from each node. Nothing more comes from those that are silent.
    packets: BTreeMap<NodeId, u64>,
    pub(super) silent: Vec<NodeId>,
}

impl Story {
    pub(super) fn new(setup: Setup) -> Self {
        Self {
            core: Core::new(setup),
            at: Duration::ZERO,
            sent: Vec::new(),
            dialled: Vec::new(),
            closed: Vec::new(),
            links: 0,
            done: BTreeMap::new(),
            packets: BTreeMap::new(),
            silent: Vec::new(),
        }
    }

    pub(super) fn setup(nodes: u128) -> Setup {
        let address = |node| format!("127.0.0.1:{}", 7_100 + node).parse().unwrap();
        Setup {
            nodes: (1..=nodes).map(|node| (NodeId(node), address(node))).collect(),
            founding: None,
            signing: None,
            options: ClientOptions::default(),
            seed: [7; 32],
            mutation: Mutation::None,
        }
    }

    pub(super) fn now(&self) -> Now {
        Now { at: self.at, wall_micros: 1_000_000_000 + u64::try_from(self.at.as_micros()).unwrap() }
    }

    /// Brings an input, and carries out what the shell would.
    pub(super) fn drive<T>(&mut self, input: impl FnOnce(&mut Core, Now) -> T) -> T {
        let now = self.now();
        let result = input(&mut self.core, now);
        loop {
            let effects = self.core.take_effects();
            if effects.is_empty() {
                return result;
            }
            for effect in effects {
                self.carry_out(effect);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Dial { node, .. } => self.dialled.push(node),
            Effect::Send { node, id, outgoing, .. } => self.sent.push((node, id, outgoing)),
            Effect::Look(node) => {
                let packets = self.packets.entry(node).or_default();
                *packets += u64::from(!self.silent.contains(&node));
                let heard = Heard { packets: *packets, round_trip: millis(1) };
                let now = self.now();
                self.core.heard(now, node, heard);
            }
            Effect::Close(node, _) => self.closed.push(node),
            Effect::Done(call, done) => {
                assert!(self.done.insert(call, done).is_none(), "a call comes to one end");
            }
        }
    }

    pub(super) fn ask(&mut self, ask: Ask) -> CallId {
        self.drive(|core, now| core.ask(now, ask))
    }

    pub(super) fn greet(&mut self, node: u128) {
        let tenures = found_without_keys(1, self.core.setup.nodes.len(), 3);
        let hello = Hello {
            cluster: "c".to_string(),
            node: NodeId(node),
            places: tenures.iter().map(Place::from).collect(),
            limits: Limits::default(),
            is_byzantine: false,
        };
        self.connect(node, Some(hello));
    }

    pub(super) fn connect(&mut self, node: u128, hello: Option<Hello>) {
        self.links += 1;
        let link = LinkId(self.links);
        self.drive(|core, now| core.greeted(now, NodeId(node), link, hello));
    }

    pub(super) fn unreachable(&mut self, node: u128, why: &Unreachable) {
        self.drive(|core, now| core.unreachable(now, NodeId(node), why));
    }

    pub(super) fn lose(&mut self, node: u128) {
        if let Some(link) = self.core.links.link(NodeId(node)) {
            self.drive(|core, now| core.lost(now, NodeId(node), link));
        }
    }

    /// A node answers what was sent to it last, or that long ago.
    pub(super) fn answer_to(&mut self, sent: usize, answer: Answer) {
        let (node, id, _) = self.sent[sent];
        self.drive(|core, now| core.answered(now, node, AnswerFrame { id, answer }));
    }

    pub(super) fn answer(&mut self, answer: Answer) {
        self.answer_to(self.sent.len() - 1, answer);
    }

    /// Time passes, and whatever is due is done.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.at + time;
        while let Some(due) = self.core.next_due().filter(|due| *due <= end) {
            self.at = self.at.max(due);
            self.drive(Core::tick);
        }
        self.at = end;
        self.drive(Core::tick);
    }

    /// Time passes, and nobody looks.
    pub(super) fn leap(&mut self, time: Duration) {
        self.at += time;
    }

    pub(super) fn last_sent(&self) -> (NodeId, &Outgoing) {
        let (node, _, outgoing) = self.sent.last().expect("something was sent");
        (*node, outgoing)
    }

    /// The request that was sent last, if it is a write.
    pub(super) fn last_write(&self) -> (RequestId, u64) {
        match self.last_sent().1 {
            Outgoing::Command { request, ack_below, operation: Operation::Write(_), .. } => {
                (*request, *ack_below)
            }
            other => panic!("{other:?} is no write"),
        }
    }

    /// What a call came to; it has.
    pub(super) fn done(&self, call: CallId) -> &Done {
        self.done.get(&call).expect("the call has ended")
    }

    pub(super) fn written(&self, call: CallId) -> &Outcome<Reply> {
        match self.done(call) {
            Done::Write(outcome) => outcome,
            other => panic!("{other:?} is of no write"),
        }
    }

    pub(super) fn read(&self, call: CallId) -> &Outcome<Read> {
        match self.done(call) {
            Done::Read(outcome) => outcome,
            other => panic!("{other:?} is of no read"),
        }
    }
}

pub(super) fn reply(reply: Reply) -> Answer {
    Answer::Reply { reply, slot: 5, leader: None }
}

pub(super) fn retry(reason: RetryReason, leader: Option<u128>) -> Answer {
    Answer::Retry { reason, leader: leader.map(NodeId), maybe_applied: false }
}

pub(super) fn value(found: Option<(u64, Bytes)>) -> Answer {
    let served = Served { group: GROUP, slot: 5, consistency: Consistency::Linearizable };
    Answer::Value { found, served, leader: None }
}

pub(super) fn failed(failure: Failure) -> Answer {
    reply(Reply::Failed(failure))
}
