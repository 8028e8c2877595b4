//! Whole nodes in one thread: the very core of production over a network that loses and disks that forget.

mod liars;
mod repair;
mod sim;

use super::core::{NodeCore, NodeEffect, NodeEvent, NodeSettings};
use crate::group::Settings;
use crate::kv::{Envelope, Operation, RequestId, SessionId};
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
use sim::{Defect, Plan, Sim};

#[test]
fn three_nodes_elect_a_leader_and_answer() {
    let mut sim = Sim::new(Plan { nodes: 3, groups: 2, ..Plan::default() }, 1);
    sim.run(2_000);
    sim.work(3, 4);
    sim.run(3_000);
    sim.judge();
    assert!(sim.answered() > 50, "{} answers", sim.answered());
}

#[test]
fn no_message_leaves_before_the_record_it_rests_on_is_durable() {
    // Disks are slow and lose what was not flushed; the watcher in `sim` reads every promise and acknowledgement that
    // leaves a node and looks it up in what that node's disk durably holds.
    for seed in 0..10 {
        let mut sim =
            Sim::new(Plan { nodes: 3, slow_disk_percent: 70, crash_per_mille: 4, ..Plan::default() }, seed);
        sim.run(2_000);
        sim.work(4, 4);
        sim.run(4_000);
        assert!(
            sim.promises_checked > 0 && sim.acknowledgements_checked > 10,
            "seed {seed}: nothing was watched"
        );
        sim.calm();
        sim.judge();
    }
}

#[test]
fn random_faults_leave_every_history_linearizable() {
    let mut totals = (0, 0, 0, 0);
    let seeds = std::env::var("NODE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    for seed in 0..seeds {
        let plan = Plan::draw(seed);
        println!("seed {seed}: {plan:?}");
        let mut sim = Sim::new(plan, seed);
        sim.run(1_500);
        sim.work(4, 4);
        sim.run(8_000);
        sim.calm();
        sim.judge();
        totals.0 += sim.answered();
        totals.1 += sim.crashes;
        totals.2 += sim.installed;
        totals.3 += sim.compactions;
    }
    println!(
        "{} answers, {} crashes, {} snapshots installed, {} logs rewritten",
        totals.0, totals.1, totals.2, totals.3
    );
    assert!(
        totals.0 > 5_000 && totals.1 > 40 && totals.2 > 2 && totals.3 > 20,
        "too little was reached: {totals:?}"
    );
}

#[test]
fn a_leader_whose_disk_is_almost_full_gives_the_leadership_away() {
    let mut sim = Sim::new(Plan { nodes: 3, ..Plan::default() }, 1);
    sim.run(2_000);
    let leader = sim.leader().unwrap();
    sim.fill_disk(leader);
    sim.run(1_000);
    assert!(sim.leader().is_some_and(|new| new != leader), "{:?}", sim.leader());
    sim.work(3, 4);
    sim.run(3_000);
    sim.judge();
    assert!(sim.answered() > 50, "{} answers", sim.answered());
}

#[test]
fn where_all_disks_are_almost_full_leadership_does_not_go_in_circles() {
    let mut sim = Sim::new(Plan { nodes: 3, ..Plan::default() }, 1);
    sim.run(2_000);
    let mut leaders = Vec::new();
    for _ in 0..50 {
        (1..=3).for_each(|node| sim.fill_disk(NodeId(node)));
        sim.run(100);
        leaders.extend(sim.leader());
    }
    leaders.dedup();
    assert!((2..=4).contains(&leaders.len()), "{leaders:?}");
}

/// What is overwritten takes no room in the state that waits for the tree; the log behind it does.
#[test]
fn the_log_of_one_key_that_is_written_over_and_over_stays_small_in_memory() {
    let overlay_bytes_max = 20_000;
    let mut sim = Sim::new(Plan { nodes: 3, overlay_bytes_max, ..Plan::default() }, 1);
    sim.run(2_000);
    sim.work(8, 1);
    let mut most = 0;
    for _ in 0..400 {
        sim.run(10);
        most = most.max(sim.log_bytes());
    }
    assert!(sim.answered() > 500, "{} answers", sim.answered());
    // What is kept for others, four times the limit, and what comes while the tree is brought up to date.
    assert!(most > 80_000 && most < 200_000, "{most} bytes");
}

#[test]
fn a_replica_that_missed_a_truncated_log_comes_back_by_snapshot() {
    let mut sim = Sim::new(Plan { nodes: 3, log_bytes_max: 20_000, ..Plan::default() }, 5);
    sim.run(2_000);
    sim.work(4, 4);
    sim.stop_node(NodeId(3));
    sim.run(6_000);
    assert!(sim.compactions > 0, "the log was never rewritten");
    sim.start_node(NodeId(3));
    sim.run(3_000);
    assert!(sim.installed > 0, "no snapshot was installed");
    sim.calm();
    sim.judge();
}

#[test]
fn a_crash_at_every_flush_of_an_installation_is_survived() {
    // The receiver of a snapshot is stopped after each of its first flushes in turn.
    for flushes in 1..25 {
        let mut sim = Sim::new(Plan { nodes: 3, log_bytes_max: 20_000, ..Plan::default() }, 5);
        sim.run(2_000);
        sim.work(4, 4);
        sim.stop_node(NodeId(3));
        sim.run(5_000);
        sim.start_node(NodeId(3));
        sim.stop_after_flushes(NodeId(3), flushes);
        sim.run(2_000);
        sim.start_node(NodeId(3));
        sim.calm();
        sim.judge();
    }
}

/// The first of so many seeds that notices a defect in such weather.
fn noticed_by(plan: &Plan, defect: Defect, seeds: u64) -> Option<u64> {
    std::panic::set_hook(Box::new(|_| {}));
    let noticed = (0..seeds).find(|seed| {
        let plan = Plan { defect: Some(defect), ..plan.clone() };
        let run = std::panic::catch_unwind(|| {
            let mut sim = Sim::new(plan, *seed);
            sim.run(1_500);
            sim.work(6, 2);
            sim.run(8_000);
            sim.calm();
            sim.judge();
        });
        run.is_err()
    });
    let _ = std::panic::take_hook();
    println!("{defect:?}: noticed by seed {noticed:?}");
    noticed
}

#[test]
fn sessions_that_are_forgotten_at_a_restart_are_noticed() {
    let plan = Plan { crash_per_mille: 8, drop_percent: 10, ..Plan::default() };
    assert!(noticed_by(&plan, Defect::ForgetSessions, 60).is_some());
    assert!(noticed_by(&plan, Defect::None, 3).is_none(), "the weather alone is survived");
}

#[test]
fn reads_without_a_read_index_are_noticed() {
    // A leader whose process stands still for a while is deposed without noticing.
    let plan = Plan { pause_per_mille: 8, ..Plan::default() };
    let defect = Defect::Engine(tetrachord_consensus::Mutation::ReadWithoutIndex);
    assert!(noticed_by(&plan, defect, 60).is_some());
    assert!(noticed_by(&plan, Defect::None, 3).is_none(), "the weather alone is survived");
}

#[test]
fn acknowledgements_before_the_barrier_are_noticed() {
    let defect = Defect::Engine(tetrachord_consensus::Mutation::AckBeforeBarrier);
    assert!(noticed_by(&Plan { slow_disk_percent: 50, ..Plan::default() }, defect, 10).is_some());
}

#[test]
fn hostile_frames_are_answered_or_ignored_and_never_stop_a_node() {
    let mut sim = Sim::new(Plan { nodes: 3, ..Plan::default() }, 9);
    sim.run(2_000);
    let request = RequestId { session: SessionId(7), number: 0 };
    let golden = Envelope::new(request, 0, &Operation::Open).of(CLIENT).encode();
    sim.bombard(&golden, 3_000);
    sim.work(2, 2);
    sim.run(2_000);
    sim.judge();
    assert!(sim.answered() > 20);
}

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

const CLIENT: crate::kv::Client = [7; 32];

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

#[test]
fn whoever_passed_a_request_on_says_who_leads() {
    let mut sim = Sim::new(Plan { nodes: 3, ..Plan::default() }, 1);
    sim.run(2_000);
    // One client at each node.
    sim.work(3, 4);
    sim.run(3_000);
    assert!(sim.answered() > 50, "{} answers", sim.answered());
    assert_eq!(sim.named.iter().copied().collect::<Vec<_>>(), [sim.leader().unwrap()]);
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
