//! One core alone, told by a test what clients and other nodes would tell it. Whole clusters are simulated by `tetrachord-jepsen`.

use super::core::{NodeCore, NodeEffect, NodeEvent, NodeSettings};
use crate::group::Settings;
use crate::limits::Limits;
use crate::ring::{Atlas, GroupId, NodeId, Position, Tenure, found_without_keys};
use crate::shares::ClientId;
use crate::storage::CommitId;
use crate::storage::memory::MemoryDisk;
use crate::ticket::ConnectionId;
use crate::wire::{
    self, Answer, AnswerFrame, Consistency, Introduction, Life, Opening, PeerMessage, Request, RequestFrame,
    RetryReason,
};
use bytes::Bytes;

/// A node whose peers say nothing by themselves.
struct Alone {
    core: NodeCore,
    atlas: Atlas,
}

impl Alone {
    fn start(node: NodeId, founding: Vec<Tenure>, disk: &MemoryDisk) -> Self {
        let (storage, recovery) = disk.open();
        let atlas = Atlas::founded(&founding);
        let settings = NodeSettings {
            node,
            founding,
            group: Settings {
                limits: Limits::default(),
                options: tetrachord_consensus::Options::default(),
                overlay_bytes_max: 1 << 20,
                retain_bytes: 1 << 20,
                pinned_bytes: 1 << 20,
                byzantine: None,
            },
            log_bytes_max: 1 << 20,
            nodes: (1..=4).map(NodeId).collect(),
            opening: recovery.incarnation,
        };
        let mut core = NodeCore::open(settings, Box::new(storage), recovery).unwrap();
        // At its first start it writes its tenures.
        disk.settle().into_iter().for_each(|founding| core.step(NodeEvent::Written(founding)));
        for peer in (1..=4).map(NodeId).filter(|peer| *peer != node) {
            core.step(NodeEvent::PeerLink { node: peer, link: 1, is_up: true });
        }
        Self { core, atlas }
    }

    /// The others say that they have noted this node's store.
    fn be_admitted(&mut self, disk: &MemoryDisk) {
        let opening = Opening { incarnation: 1, mark: 1, log_end: 0 };
        let life = Life { opening, ..Life::default() };
        for from in (2..=4).map(NodeId) {
            let body = wire::encode(&PeerMessage::Introduction(Introduction::Noted(life))).slice(4..);
            self.core.step(NodeEvent::Peer { from, link: 1, body });
        }
        self.core.flush();
        let commits: Vec<CommitId> = std::iter::from_fn(|| disk.flush_one()).collect();
        assert!(!commits.is_empty(), "that it is admitted is written down");
        commits.into_iter().for_each(|commit| self.core.step(NodeEvent::Durable(commit)));
    }

    fn ask(&mut self, request: Request) -> Vec<NodeEffect> {
        let body = wire::encode(&RequestFrame { id: 1, request }).slice(4..);
        self.core.step(NodeEvent::Client { connection: ConnectionId(1), client: ClientId([1; 32]), body });
        self.core.flush()
    }

    /// Asks for a key of a group that has no replica here. The number under which that is passed on, and to whom.
    fn pass_on(&mut self) -> (NodeId, u64) {
        let node = self.core.status().node;
        let key = (0..)
            .map(|number| Bytes::from(format!("k{number}")))
            .find(|key| !self.atlas.owner(Position::of_key(key)).nodes.contains(&node))
            .expect("some group has no replica here");
        let group = self.atlas.owner(Position::of_key(&key)).group();
        let effects = self.ask(Request::Get { group, key, consistency: Consistency::Linearizable });
        let frames = effects.into_iter().filter_map(|effect| match effect {
            NodeEffect::Send { to, frame, .. } => Some((to, wire::decode::<PeerMessage>(&frame[4..]).ok()?)),
            _ => None,
        });
        let forwarded =
            |(to, message)| if let PeerMessage::Forward { id, .. } = message { Some((to, id)) } else { None };
        frames.filter_map(forwarded).next().expect("it is passed on")
    }

    /// What the client is told when a node answers what was passed on.
    fn answered(&mut self, from: NodeId, id: u64, answer: Answer) -> Option<Answer> {
        let body = wire::encode(&PeerMessage::Forwarded { id, answer }).slice(4..);
        self.core.step(NodeEvent::Peer { from, link: 1, body });
        answer_in(self.core.flush())
    }
}

fn answer_in(effects: Vec<NodeEffect>) -> Option<Answer> {
    effects.into_iter().find_map(|effect| match effect {
        NodeEffect::Answer { frame, .. } => Some(wire::decode::<AnswerFrame>(&frame[4..]).unwrap().answer),
        _ => None,
    })
}

/// Four nodes, groups of three: one group is not on node 4.
fn one_of_four(disk: &MemoryDisk) -> Alone {
    Alone::start(NodeId(4), found_without_keys(4, 4, 3), disk)
}

const BUSY: Answer = Answer::Retry { reason: RetryReason::Busy, leader: None, maybe_applied: false };

#[test]
fn an_answer_meant_for_an_earlier_life_is_nobodys() {
    let disk = MemoryDisk::default();
    let (_, old) = one_of_four(&disk).pass_on();
    let mut node = one_of_four(&disk);
    let (to, new) = node.pass_on();
    assert_eq!(node.answered(to, old, BUSY), None, "the number of an earlier life was given again");
    assert_eq!(node.answered(to, new, BUSY), Some(BUSY));
}

#[test]
fn a_request_that_was_passed_on_is_answered_by_who_was_asked_and_by_an_answer() {
    let mut node = one_of_four(&MemoryDisk::default());
    let (to, id) = node.pass_on();
    let stranger = (1..=3).map(NodeId).find(|other| *other != to).unwrap();
    assert_eq!(node.answered(stranger, id, BUSY), None, "{stranger} was not asked");
    let group = GroupId(1);
    let outcomes = Answer::Outcomes { group, slot: 1, replies: Vec::new() };
    assert_eq!(node.answered(to, id, outcomes), None, "words put into this node's mouth");
    assert_eq!(node.answered(to, id, BUSY), Some(BUSY));
}

/// Seed 42002936 of the simulator: what the right store of n2 had said came after an older copy of it was refused, and the copy was heard.
#[test]
fn what_is_left_of_an_old_link_is_not_heard() {
    let disk = MemoryDisk::default();
    let mut node = Alone::start(NodeId(1), found_without_keys(1, 3, 3), &disk);
    node.be_admitted(&disk);
    let from = NodeId(2);
    let life = Life { opening: Opening { incarnation: 1, mark: 7, log_end: 0 }, ..Life::default() };
    let introduce = Introduction::Introduce { life, earlier: Vec::new() };
    let body = wire::encode(&PeerMessage::Introduction(introduce)).slice(4..);
    let mut tell = |event| {
        node.core.step(event);
        node.core.flush();
        (disk.flush_one().is_some(), node.core.status().connected.contains(&from))
    };
    let hear = |link| NodeEvent::Peer { from, link, body: body.clone() };
    let link = |link, is_up| NodeEvent::PeerLink { node: from, link, is_up };
    assert_eq!(tell(link(2, true)), (false, true));
    assert_eq!(tell(hear(1)), (false, true), "nothing is noted");
    assert_eq!(tell(link(1, false)), (false, true), "the end of the old one says nothing of the new one");
    assert_eq!(tell(link(1, true)), (false, true), "nor does its beginning, told late");
    assert_eq!(tell(link(2, false)), (false, false));
    assert_eq!(tell(hear(2)), (false, false), "nor is anything heard when none is up");
    assert_eq!(tell(link(3, true)), (false, true));
    assert_eq!(tell(hear(3)), (true, true), "it is noted");
}

#[test]
fn an_eventual_read_needs_no_leader() {
    let disk = MemoryDisk::default();
    let mut node = Alone::start(NodeId(1), found_without_keys(1, 3, 3), &disk);
    let key = Bytes::from_static(b"k");
    let read = |consistency| Request::Get { group: GroupId(1), key: key.clone(), consistency };
    let answer = answer_in(node.ask(read(Consistency::Eventual)));
    let is_refused = matches!(answer, Some(Answer::Retry { reason: RetryReason::NoLeader, .. }));
    assert!(is_refused, "with a store that nobody has noted it knows nothing: {answer:?}");
    node.be_admitted(&disk);
    let answer = answer_in(node.ask(read(Consistency::Eventual)));
    assert!(matches!(answer, Some(Answer::Value { found: None, .. })), "{answer:?}");
    let answer = answer_in(node.ask(read(Consistency::Session { at_least: 1 })));
    assert!(matches!(answer, Some(Answer::Retry { reason: RetryReason::Behind, .. })), "{answer:?}");
    let answer = answer_in(node.ask(read(Consistency::Linearizable)));
    assert!(matches!(answer, Some(Answer::Retry { reason: RetryReason::NoLeader, .. })), "{answer:?}");
}

/// One client asks without end; another's request, and what replicas say, waits for little of it.
#[test]
fn clients_are_served_in_turn_and_not_too_many_at_a_time() {
    let disk = MemoryDisk::default();
    let mut node = one_of_four(&disk);
    node.core.flush();
    let ask = |node: &mut Alone, client: u8, id| {
        let body = wire::encode(&RequestFrame { id, request: Request::Status }).slice(4..);
        let connection = ConnectionId(client.into());
        node.core.step(NodeEvent::Client { connection, client: ClientId([client; 32]), body });
    };
    let answered = |effects: Vec<NodeEffect>| {
        let client = |effect: &NodeEffect| match effect {
            NodeEffect::Answer { connection, .. } => connection.0,
            _ => panic!("{effect:?}"),
        };
        effects.iter().map(client).collect::<Vec<u64>>()
    };
    (0..1_000).for_each(|id| ask(&mut node, 1, id));
    ask(&mut node, 2, 0);
    let first = answered(node.core.flush());
    assert!(first.len() == 256 && first[..2].contains(&2), "{first:?}");
    ask(&mut node, 3, 0);
    assert!(answered(node.core.flush())[..2].contains(&3));
    // Whoever is gone is not waited for.
    assert!(node.core.has_waiting());
    node.core.step(NodeEvent::ClientGone { connection: ConnectionId(1) });
    let mut left = Vec::new();
    while node.core.has_waiting() {
        left.extend(answered(node.core.flush()));
    }
    assert_eq!(left, [] as [u64; 0]);
}
