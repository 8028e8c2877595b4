//! States: given to those that missed the log, kept logs for those that lag, and logs that nobody needs any more.

use super::{answered, crash_at_disk_steps, end, newest, replica, run, runs_until, status};
use crate::plan::{Mode, Plan};
use crate::world::sim::World;
use tetrachord::group::Group;
use tetrachord_consensus::Mutation;
use tetrachord_consensus::pbft::Window;

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

/// Three nodes with short logs, of which the last is away until no log reaches it any more.
fn away_from_short_logs() -> World {
    let plan = Plan {
        think_micros: 20_000,
        log_bytes_max: 20_000,
        pinned_bytes: 4_000,
        fault_every: 1_000_000,
        ..Plan::quiet(Mode::Crash, 5)
    };
    let mut world = World::new(&plan, false);
    run(&mut world, 3_000);
    world.crash(2, 0);
    let last = newest(&world);
    runs_until(&mut world, 20_000, |world| (0..2).all(|index| status(world, index).base > last));
    world.start(2);
    world
}

#[test]
fn a_replica_that_missed_a_truncated_log_comes_back_by_a_state() {
    let mut world = away_from_short_logs();
    runs_until(&mut world, 5_000, |world| status(world, 2).is_installing);
    runs_until(&mut world, 5_000, |world| !status(world, 2).is_installing);
    end(&mut world);
}

/// Whoever puts a state in place ends after each thing that its disk does for that, in turn.
#[test]
fn a_crash_at_every_step_of_an_installation_is_survived() {
    let during = crash_at_disk_steps(2, 1..25, away_from_short_logs, |world| status(world, 2).is_installing);
    assert!(during >= 3, "{during} of the crashes were within an installation");
}
