//! Byzantine mode: nodes that lie, and what honest ones make of it.

use super::{answered, end, replica, run, runs_until, status};
use crate::nemesis::Nemesis;
use crate::plan::{Mode, Plan};
use crate::world::sim::{Event, PASSED_ON, World};
use tetrachord::group::Group;
use tetrachord::node::core::NodeEvent;
use tetrachord_consensus::pbft::Lie;

/// Four nodes, of which the first primary tells this lie, if any. Nothing else goes wrong.
fn with_a_liar(seed: u64, lie: Option<Lie>) -> Plan {
    let mut plan = Plan {
        think_micros: 10_000,
        log_bytes_max: 20_000,
        pinned_bytes: 24_000,
        fault_every: 1_000_000,
        lie,
        ..Plan::quiet(Mode::Byzantine, seed)
    };
    if lie.is_some() {
        plan.nemeses.insert(Nemesis::Lies);
    }
    plan
}

/// Those that may lie, tell this from now on.
fn tell(world: &mut World, lie: Option<Lie>) {
    let liars: Vec<usize> = (0..world.nodes.len()).filter(|index| world.nodes[*index].lies).collect();
    liars.into_iter().for_each(|index| world.step(index, NodeEvent::Lie(lie)));
}

#[test]
fn every_lie_of_the_first_primary_leaves_histories_linearizable() {
    for (seed, lie) in (1..).zip(Lie::ALL) {
        let mut world = World::new(&with_a_liar(seed, Some(lie)), false);
        run(&mut world, 3_000);
        end(&mut world);
        println!("{}: {} answers", lie.name(), answered(&world));
        assert!(answered(&world) > 30, "{}: {} answers", lie.name(), answered(&world));
    }
}

#[test]
fn two_liars_among_seven_change_nothing() {
    let plan = Plan { nodes: 7, replicas: 7, ..with_a_liar(7, Some(Lie::Anything)) };
    let mut world = World::new(&plan, false);
    assert_eq!(world.nodes.iter().filter(|node| node.lies).count(), 2);
    run(&mut world, 3_000);
    end(&mut world);
    assert!(answered(&world) > 20, "{} answers", answered(&world));
}

/// What is written between two checkpoints is many times what may wait for the tree. Nobody lies and nothing fails, so nobody has
/// reason to leave a view.
#[test]
fn large_writes_stop_no_checkpoint_and_cost_no_view() {
    let plan = Plan { overlay_bytes_max: 2_000, think_micros: 2_000, ..with_a_liar(9, None) };
    let mut world = World::new(&plan, false);
    run(&mut world, 5_000);
    let views: Vec<u64> = (0..4).map(|index| status(&world, index).view).collect();
    println!("{} answers, views {views:?}", answered(&world));
    assert_eq!(views, [0; 4]);
    assert!(answered(&world) > 1_000, "{} answers", answered(&world));
    end(&mut world);
}

/// A node is away until no log reaches it any more.
fn be_away(world: &mut World, index: usize) {
    world.crash(index, 0);
    let others: Vec<usize> = (0..4).filter(|other| *other != index && !world.nodes[*other].lies).collect();
    let last = status(world, others[0]).last;
    runs_until(world, 30_000, |world| others.iter().all(|other| status(world, *other).base > last + 64));
}

/// How often a state was put in place.
fn states(world: &World) -> u64 {
    world.reached.get("a whole state was put in place").copied().unwrap_or(0)
}

#[test]
fn a_node_that_was_away_takes_a_whole_state_although_another_lies_about_it() {
    let mut world = World::new(&with_a_liar(5, Some(Lie::FalseState)), false);
    run(&mut world, 2_000);
    be_away(&mut world, 3);
    world.start(3);
    run(&mut world, 6_000);
    end(&mut world);
    assert!(states(&world) > 0, "no state was transferred");
}

/// A liar that everybody needs offers its state to a node that was away, and gives none of it; of all else it says nothing. Whichever
/// node is away, and whomever it asks first: the group comes back.
#[test]
fn whoever_offers_a_state_for_ever_is_left_for_another() {
    for away in [0, 3] {
        let mut world = World::new(&with_a_liar(5, Some(Lie::EndlessState)), false);
        tell(&mut world, None);
        run(&mut world, 2_000);
        be_away(&mut world, away);
        tell(&mut world, Some(Lie::EndlessState));
        world.start(away);
        run(&mut world, 10_000);
        println!("n{} was away: {} states were put in place", away + 1, states(&world));
        end(&mut world);
        assert!(states(&world) > 0, "no state was transferred");
    }
}

/// A state comes with proof of its checkpoint. Whatever else is being checked, the replica knows of that before the state is in place.
#[test]
fn a_state_is_put_in_place_however_much_waits_to_be_checked() {
    let mut world = World::new(&with_a_liar(5, None), false);
    run(&mut world, 2_000);
    be_away(&mut world, 3);
    world.start(3);
    runs_until(&mut world, 5_000, |world| status(world, 3).stable > status(world, 3).applied);
    // Its pool checks nothing any more.
    world.queue.retain(|_, event| !matches!(event, Event::Checked { node: 3, .. }));
    world.nodes[3].is_checking = true;
    runs_until(&mut world, 10_000, |world| states(world) > 0);
    let life = world.nodes[3].life;
    world.after(1, Event::Checked { node: 3, life });
    end(&mut world);
}

/// The one that may lie tells no lies. It passes on what honest clients asked and was executed, as if a client had brought it, to all
/// but the primary.
#[test]
fn a_node_that_passes_executed_requests_on_takes_no_view() {
    let mut plan = with_a_liar(21, Some(Lie::FalseState));
    plan.nemeses.insert(Nemesis::StaleRequests);
    let mut world = World::new(&plan, false);
    tell(&mut world, None);
    run(&mut world, 2_000);
    let view = |world: &World| replica(world, 0).map(Group::view);
    let before = view(&world);
    world.show_again();
    run(&mut world, 10_000);
    let passed_on = world.reached.get(PASSED_ON).copied().unwrap_or(0);
    assert!(passed_on > 100 && answered(&world) > 100, "{passed_on} were passed on");
    assert_eq!(view(&world), before, "an honest primary lost its view");
    end(&mut world);
}
