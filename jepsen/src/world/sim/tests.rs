//! Runs that are told step by step: one fault, one bound.

use super::World;
use crate::nemesis::Nemesis;
use crate::plan::{Mode, Plan};
use bytes::Bytes;
use tetrachord::group::Group;
use tetrachord::limits::SESSION_IDLE_MICROS;
use tetrachord::node::core::{Class, NodeEffect, NodeEvent};
use tetrachord::ring::NodeId;
use tetrachord::shares::ClientId;
use tetrachord::ticket::ConnectionId;
use tetrachord::wire::{self, Answer, AnswerFrame, Consistency, Request, RequestFrame, RetryReason};
use tetrachord_consensus::Mutation;
use tetrachord_consensus::pbft::Window;

/// The replica of the first group on a node.
fn replica(world: &World, index: usize) -> Option<&Group> {
    world.nodes[index].core.as_ref()?.groups().next()
}

fn run(world: &mut World, millis: u64) {
    let end = world.now + millis * 1_000;
    world.run_until(end);
    assert_eq!(world.violation, None);
}

/// The latest slot that any replica has applied.
fn newest(world: &World) -> u64 {
    let groups = (0..world.nodes.len()).filter_map(|index| replica(world, index));
    groups.map(|group| group.machine().reached().slot).max().unwrap_or(0)
}

/// What came of a replica that was away while the log went on without it.
#[derive(Debug)]
struct CaughtUp {
    /// Whole states that it has put in place.
    states: u64,
    /// Milliseconds from its start until it was level.
    level_after: Option<u64>,
    /// Operations that were answered meanwhile.
    answered: u64,
}

/// A replica comes back that needs a whole state of some hundred MiB: each row stands for thousands, in the time that it takes.
/// Meanwhile clients write many times what is usually kept for those that lag.
fn large_state(mode: Mode, mutation: Mutation) -> Plan {
    // Slots of Byzantine mode are larger, and take the simulator longer.
    let (think_micros, pinned_bytes) =
        if mode == Mode::Crash { (5_000, 2_000_000) } else { (20_000, 6_000_000) };
    Plan {
        keys: 300,
        think_micros,
        state_row_micros: 8_000,
        retain_bytes: 4_000,
        pinned_bytes,
        overlay_bytes_max: 1 << 20,
        log_bytes_max: 400_000,
        window: Window::default(),
        // Nobody else starts it again.
        fault_every: 1_000_000,
        mutation,
        ..Plan::quiet(mode, 1)
    }
}

/// The last node is away for so long that nobody keeps all that it misses.
fn bring_back_last(world: &mut World) {
    run(world, 4_000);
    let away = world.nodes.len() - 1;
    world.crash(away, 0);
    run(world, 30_000);
    world.start(away);
}

fn beside_a_large_state(mode: Mode, mutation: Mutation) -> CaughtUp {
    let mut world = World::new(&large_state(mode, mutation), false);
    bring_back_last(&mut world);
    let away = world.nodes.len() - 1;
    let answered = |world: &World| world.clients.iter().map(|client| client.answered).sum::<u64>();
    let before = answered(&world);
    let (mut states, mut was_installing, mut level_after) = (0, false, None);
    for moment in 1..=400 {
        run(&mut world, 100);
        let group = replica(&world, away).expect("it runs");
        let is_installing = group.is_installing();
        states += u64::from(is_installing && !was_installing);
        was_installing = is_installing;
        let lag = newest(&world).abs_diff(group.machine().reached().slot);
        if states > 0 && !is_installing && lag < 20 {
            level_after = Some(moment * 100);
            break;
        }
    }
    CaughtUp { states, level_after, answered: answered(&world) - before }
}

/// Putting a large state in place takes long, and meanwhile clients write more than is usually kept for those that lag. If that were
/// dropped, the replica would be given one state after the other.
#[test]
fn a_replica_that_needs_a_large_state_needs_one_while_clients_go_on() {
    for mode in [Mode::Crash, Mode::Byzantine] {
        let caught_up = beside_a_large_state(mode, Mutation::None);
        println!("{mode:?}: {caught_up:?}");
        assert_eq!(caught_up.states, 1, "it was given a state that it could not go on from");
        assert!(caught_up.level_after.is_some_and(|millis| millis <= 15_000), "{caught_up:?}");
        assert!(caught_up.answered > 500, "{caught_up:?}");
        let without = beside_a_large_state(mode, Mutation::PinNothing);
        println!("{mode:?} without pins: {without:?}");
        assert!(without.states > 3 && without.level_after.is_none(), "nobody noticed: {without:?}");
    }
}

/// A group that falls silent while somebody lags has no next checkpoint with which what was pinned could go.
#[test]
fn what_was_pinned_goes_where_nobody_writes_any_more() {
    let plan = Plan { think_micros: 20_000, pinned_bytes: 4_000_000, ..Plan::quiet(Mode::Crash, 1) };
    let mut world = World::new(&plan, false);
    run(&mut world, 3_000);
    let is_leader = |index: &usize| replica(&world, *index).is_some_and(Group::is_leading);
    let leader = (0..3).find(is_leader).expect("somebody leads");
    let lagging = (leader + 1) % 3;
    world.nodes[lagging].hung_until = world.now + 30_000_000;
    run(&mut world, 20_000);
    world.clients.iter_mut().for_each(|client| client.is_done = true);
    run(&mut world, 5_000);
    let kept = |world: &World| replica(world, leader).expect("it runs").engine().log_bytes;
    assert!(kept(&world) > 10 * plan.retain_bytes, "nothing was pinned: {}", kept(&world));
    run(&mut world, 10_000);
    let applied = |index: usize| replica(&world, index).map(|group| group.machine().reached().slot);
    assert_eq!(applied(lagging), applied(leader));
    assert!(kept(&world) <= plan.retain_bytes, "{} are kept for nobody", kept(&world));
}

/// What has to stay of an idle log is rewritten no more, though it is as much as lets an idle log be rewritten: here a window of slots that
/// no checkpoint covers.
#[test]
fn an_idle_log_is_not_rewritten_again_and_again() {
    let window = Window { interval: 2_048, length: 4_096 };
    let plan = Plan { window, retain_bytes: 4_000, pinned_bytes: 4_000, ..Plan::quiet(Mode::Byzantine, 1) };
    let mut world = World::new(&plan, false);
    run(&mut world, 6_000);
    world.clients.iter_mut().for_each(|client| client.is_done = true);
    run(&mut world, 20_000);
    let rewritten =
        |world: &World| world.nodes.iter().map(|node| node.disk.durable_log_from(0).1).collect::<Vec<_>>();
    let before = rewritten(&world);
    run(&mut world, 60_000);
    let bytes = world.nodes[0].core.as_ref().map_or(0, |core| core.status().log_bytes);
    assert!(bytes > (1 << 20) + 2 * plan.retain_bytes as u64, "{bytes} would not be rewritten at all");
    assert_eq!(rewritten(&world), before);
}

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
                request: Request::Get { group: tetrachord::ring::GroupId(1), key, consistency },
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
    let answered = |world: &World| world.clients.iter().map(|client| client.answered).sum::<u64>();
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

/// The disk of the replica that orders hangs for a minute; returns how long nobody else did, in milliseconds, and how many operations
/// were answered in each second.
fn beside_a_hung_disk(mode: Mode, keys: u64, mutation: Mutation) -> (Option<u64>, Vec<u64>) {
    let think_micros = if mode == Mode::Byzantine { 50_000 } else { 10_000 };
    // While a state is taken, clients write less than is pinned, as with the defaults.
    let pinned_bytes = 200_000;
    let plan = Plan { keys, mutation, think_micros, pinned_bytes, ..Plan::quiet(mode, 1) };
    let mut world = World::new(&plan, false);
    run(&mut world, 3_000);
    let orders = |world: &World| {
        let leads = |index: &usize| replica(world, *index).is_some_and(Group::is_leading);
        let by_ballot = |index: &usize| replica(world, *index).map(Group::view);
        (0..world.nodes.len()).filter(leads).max_by_key(by_ballot)
    };
    let victim = orders(&world).expect("somebody orders");
    world.nodes[victim].hung_until = world.now + 60_000_000;
    let answered = |world: &World| world.clients.iter().map(|client| client.answered).sum::<u64>();
    let (mut another_after, mut seconds, mut before) = (None, Vec::new(), answered(&world));
    for moment in 1..=60_000 / 100 {
        run(&mut world, 100);
        let others = (0..world.nodes.len()).filter(|index| *index != victim);
        let is_another = others.clone().any(|index| replica(&world, index).is_some_and(Group::is_leading));
        if is_another && another_after.is_none() {
            another_after = Some(moment * 100);
        }
        if moment % 10 == 0 {
            let now = answered(&world);
            seconds.push(now - before);
            before = now;
        }
    }
    assert!(world.strikes[&Nemesis::HungDisk].1 > 0, "it hung");
    run(&mut world, 20_000);
    let lag = newest(&world).abs_diff(replica(&world, victim).expect("it runs").machine().reached().slot);
    assert!(lag < 200, "it has caught up but for {lag} slots");
    (another_after, seconds)
}

/// What is bounded in memory is looked at all the time, by the invariants.
#[test]
fn a_hung_disk_stops_a_group_for_seconds_and_fills_no_memory() {
    for mode in [Mode::Crash, Mode::Byzantine] {
        for keys in [4, 500] {
            let (another_after, seconds) = beside_a_hung_disk(mode, keys, Mutation::None);
            println!(
                "{mode:?}, {keys} keys: another after {another_after:?} ms, answers by second {seconds:?}"
            );
            assert!(another_after.is_some_and(|millis| millis <= 5_000), "{another_after:?}");
            assert!(seconds[6..].iter().all(|count| *count > 0), "{seconds:?}");
        }
    }
    let (another_after, _) = beside_a_hung_disk(Mode::Crash, 500, Mutation::LeadWithoutDisk);
    assert!(another_after.is_none_or(|millis| millis > 5_000), "with the rule off nobody else leads soon");
}
