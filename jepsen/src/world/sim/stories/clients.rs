//! Clients: what they are refused, where they are sent, and those that ask too much or nonsense.

use super::{answered, end, newest, replica, run};
use crate::nemesis::Nemesis;
use crate::plan::{Mode, Plan};
use crate::random::Random;
use crate::world::sim::network::Parcel;
use crate::world::sim::{Event, World};
use bytes::Bytes;
use std::collections::BTreeSet;
use tetrachord::group::Group;
use tetrachord::kv::{Envelope, Operation, RequestId, SessionId};
use tetrachord::limits::SESSION_IDLE_MICROS;
use tetrachord::node::core::{Class, NodeEffect, NodeEvent};
use tetrachord::ring::{GroupId, NodeId, TenureId};
use tetrachord::shares::ClientId;
use tetrachord::ticket::ConnectionId;
use tetrachord::wire::{
    self, Answer, AnswerFrame, Consistency, PeerMessage, Request, RequestFrame, RetryReason,
};
use tetrachord_consensus::Mutation;

/// A client that has all the sessions it may have is told so by the leader: what it asks fills no log. When its sessions have been
/// silent for long, it gets others in their place.
#[test]
fn sessions_that_would_be_refused_are_not_ordered() {
    let mut plan = Plan::quiet(Mode::Crash, 1);
    plan.nemeses.insert(Nemesis::GreedyClient);
    let mut world = World::new(&plan, false);
    run(&mut world, 5_000);
    world.clients.iter_mut().for_each(|client| client.is_done = true);
    run(&mut world, 2_000);
    let refused = |world: &World| world.strikes[&Nemesis::GreedyClient].1;
    let before = (newest(&world), refused(&world));
    run(&mut world, 60_000);
    assert_eq!(newest(&world), before.0, "nothing was ordered");
    assert!(refused(&world) > before.1 + 1_000, "{} were refused", refused(&world) - before.1);
    run(&mut world, SESSION_IDLE_MICROS / 1_000);
    assert!(newest(&world) > before.0, "its own silent sessions make room");
}

/// Whoever asks a follower much at a time has little of it passed on, and is told for the rest where to go. Others do not notice.
#[test]
fn a_follower_passes_few_requests_of_a_client_on_and_names_the_leader_for_the_rest() {
    let mut world = World::new(&Plan::quiet(Mode::Crash, 1), false);
    run(&mut world, 3_000);
    let leads = |index: &usize| replica(&world, *index).is_some_and(Group::is_leading);
    let leader = (0..world.nodes.len()).find(leads).expect("one leads");
    let follower = &mut world.nodes[(leader + 1) % 3];
    let core = follower.core.as_mut().expect("it runs");
    core.flush();
    let mut ask = |client: u8, count: u64| {
        let connection = ConnectionId(1_000 + u64::from(client));
        for id in 0..count {
            let (key, consistency) = (Bytes::from_static(b"key"), Consistency::Linearizable);
            let body = wire::encode(&RequestFrame {
                id,
                request: Request::Get { group: GroupId(1), key, consistency },
            })
            .slice(4..);
            core.step(NodeEvent::Client { connection, client: ClientId([client; 32]), body });
        }
        let (mut passed_on, mut told) = (0, Vec::new());
        for effect in core.flush() {
            match effect {
                NodeEffect::Answer { frame, .. } => {
                    told.push(wire::decode::<AnswerFrame>(&frame[4..]).unwrap().answer)
                }
                NodeEffect::Send { class: Class::Request, .. } => passed_on += 1,
                _ => {}
            }
        }
        (passed_on, told)
    };
    let (passed_on, told) = ask(1, 40);
    let leader = Some(NodeId::founder(leader));
    let elsewhere = Answer::Retry { reason: RetryReason::NotLeader, leader, maybe_applied: false };
    assert_eq!((passed_on, told), (16, vec![elsewhere; 24]));
    assert_eq!(ask(2, 3), (3, vec![]));
}

/// What became of others while one client did, or did not, flood all nodes for a while: the last view, and how many operations were
/// answered.
fn beside_a_flood(mutation: Mutation, is_flooded: bool) -> (u64, u64) {
    let plan = Plan {
        mutation,
        flood_requests: if is_flooded { 250 } else { 0 },
        think_micros: 5_000,
        ..Plan::quiet(Mode::Byzantine, 1)
    };
    let mut world = World::new(&plan, false);
    run(&mut world, 1_000);
    let before = answered(&world);
    for _ in 0..8 {
        (0..world.nodes.len()).for_each(|node| world.begin_flood(node));
        run(&mut world, 200);
    }
    let refused = world.strikes[&Nemesis::Flood].1;
    assert!(refused > 10_000 || !is_flooded || mutation != Mutation::None, "{refused} were refused");
    let groups = (0..world.nodes.len()).filter_map(|index| replica(&world, index));
    let view = groups.map(|group| group.view()).max().unwrap_or(0);
    (view, answered(&world) - before)
}

/// Checking signatures takes a node more time than it has, if it checks all that it is sent. Votes must not wait for that: else backups
/// lose their patience with a primary that does its work.
#[test]
fn a_client_that_floods_nodes_with_bad_signatures_costs_no_view_and_nobody_an_answer() {
    let (view, usual) = beside_a_flood(Mutation::None, false);
    assert!(view == 0 && usual > 100, "{view}, {usual}");
    let (view, answered) = beside_a_flood(Mutation::None, true);
    println!("{usual} answers without, {answered} beside the flood");
    assert!(view == 0 && answered > usual / 2, "{answered} instead of {usual} answers, view {view}");
    let (view, answered) = beside_a_flood(Mutation::OneLine, true);
    println!("{answered} with one line for all, view {view}");
    assert!(
        view > 0 && answered < usual / 2,
        "with one line for all nobody notices: {answered}, view {view}"
    );
}

/// Everybody who is answered learns who leads, also by whoever passed the request on.
#[test]
fn answers_say_who_leads() {
    let mut world = World::new(&Plan::quiet(Mode::Crash, 1), false);
    run(&mut world, 3_000);
    let leader = (0..3).find(|index| replica(&world, *index).is_some_and(Group::is_leading));
    let (mut named, end) = (BTreeSet::new(), world.now + 1_000_000);
    loop {
        if let Some((_, Event::Arrives(Parcel::Answer { frame, .. }))) = world.queue.first_key_value()
            && let Answer::Reply { leader, .. } | Answer::Value { leader, .. } =
                wire::decode::<AnswerFrame>(&frame[4..]).expect("nodes send answers").answer
        {
            named.insert(leader);
        }
        if !world.take_next(end) {
            break;
        }
    }
    assert_eq!(named, [leader.map(NodeId::founder)].into());
}

/// Frames that were right once, with some bytes changed and the end cut off, as clients and as peers.
#[test]
fn damaged_frames_are_answered_or_ignored_and_never_stop_a_node() {
    let mut world = World::new(&Plan::quiet(Mode::Crash, 9), false);
    run(&mut world, 2_000);
    // Who it is, is told whatever it is told.
    let (group, client, nobody) = (GroupId(1), ClientId([99; 32]), world.place_of_flooder());
    let request = RequestId { session: SessionId(7), number: 0 };
    let envelope = Envelope::new(request, 0, &Operation::Open).of([7; 32]).encode();
    let command = Request::Command { group, envelope: envelope.clone() };
    let right = [
        wire::encode(&RequestFrame { id: 1, request: command }),
        wire::encode(&PeerMessage::of(TenureId { group, epoch: 1 }, envelope)),
        wire::encode(&PeerMessage::Forward { id: 1, client, request: Request::Status }),
    ];
    let mut random = Random::new(9);
    for round in 0..3_000 {
        let mut body = right[round % right.len()][4..].to_vec();
        for _ in 0..=random.below(3) {
            let at = random.index(body.len());
            body[at] = random.below(256) as u8;
        }
        body.truncate(1 + random.index(body.len()));
        let (to, from, body) = (random.index(3), random.index(3), Bytes::from(body));
        let link = world.nodes[from].life;
        let event = if random.coin() {
            NodeEvent::Peer { from: NodeId::founder(from), link, body }
        } else {
            NodeEvent::Client { connection: ConnectionId(nobody as u64), client, body }
        };
        world.step(to, event);
        assert_eq!(world.violation, None, "round {round}");
    }
    let before = answered(&world);
    run(&mut world, 1_000);
    assert!(answered(&world) > before + 20);
    end(&mut world);
}
