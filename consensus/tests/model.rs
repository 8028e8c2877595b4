//! A tiny configuration, explored completely: the real replica wrapped as a model.
//!
//! Three replicas, a network that delivers in any order, a bounded number of election timeouts, proposals and crashes,
//! and disks whose commits complete one by one. States are visited breadth first: with one crash and one leader all of
//! them, with two competing leaders as many as the bound allows (`MODEL_STATES` raises it).
#![allow(clippy::unwrap_used, reason = "test code")]

use bytes::Bytes;
use stateright::{Checker, Model, Property};
use std::collections::{BTreeMap, BTreeSet};
use tetrachord_consensus::paxos::{Effect, Message, Replica};
use tetrachord_consensus::{
    Engine, Epoch, Event, GroupConfig, LogBase, Mutation, Options, PersistToken, Proposal, Quorums,
    ReplicaId, Slot, Ticks, Timestamp, codec,
};

const N: usize = 3;

/// One replica with its disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Machine {
    replica: Replica,
    disk: Vec<Bytes>,
    pending: Vec<(Vec<Bytes>, PersistToken)>,
    held: Vec<(ReplicaId, Bytes, PersistToken)>,
    durable: PersistToken,
    timeouts: u64,
}

/// The whole world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    machines: Vec<Machine>,
    network: BTreeSet<(ReplicaId, ReplicaId, Bytes)>,
    /// What each replica has applied.
    applied: Vec<BTreeMap<Slot, LogBase>>,
    decided: BTreeMap<Slot, LogBase>,
    disagreement: bool,
    timeouts: u8,
    proposals: u8,
    crashes: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Deliver(ReplicaId, ReplicaId, Bytes),
    Persist(usize),
    Timeout(usize),
    Propose(usize),
    Crash(usize),
}

struct Bounds {
    timeouts: u8,
    proposals: u8,
    crashes: u8,
    mutation: Mutation,
}

impl Bounds {
    fn machine(&self, index: usize, disk: Vec<Bytes>, timeouts: u64) -> Machine {
        let config = GroupConfig { epoch: Epoch(1), quorums: Quorums::majority(N).unwrap() };
        // One heartbeat and one election timeout are far apart, so that time moves only when the model says so.
        let options = Options {
            heartbeat_ticks: 1_000_000,
            election_ticks: 2_000_000,
            mutation: self.mutation,
            ..Options::default()
        };
        let replica =
            Replica::recover(ReplicaId(index as u8), config, options, &disk, LogBase::default()).unwrap();
        Machine { replica, disk, pending: Vec::new(), held: Vec::new(), durable: PersistToken(0), timeouts }
    }
}

impl World {
    /// Everybody grants a pre-vote at once: it is the worst that they can do, and it changes nothing in them.
    fn grant_pre_vote(&mut self, index: usize) {
        let asked = self.machines[index].replica.take_effects().into_iter().find_map(|effect| match effect {
            Effect::Send { message, .. } => match codec::decode::<Message>(&message) {
                Ok(Message::PreVote { ballot }) => Some(ballot),
                _ => None,
            },
            _ => None,
        });
        let Some(ballot) = asked else { return };
        let promised = self.machines.iter().map(|machine| machine.replica.promised()).max().unwrap();
        for other in (0..N).filter(|other| *other != index) {
            let message = codec::encode(&Message::PreVoteReply { ballot, granted: true, promised });
            self.machines[index].replica.step(Event::Receive { from: ReplicaId(other as u8), message });
        }
    }

    fn collect(&mut self, index: usize) {
        let me = ReplicaId(index as u8);
        for effect in self.machines[index].replica.take_effects() {
            match effect {
                Effect::Persist { records, token, .. } => self.machines[index].pending.push((records, token)),
                Effect::Send { to, message, after } => {
                    match after.filter(|token| *token > self.machines[index].durable) {
                        Some(token) => self.machines[index].held.push((to, message, token)),
                        None => self.send(me, to, message),
                    }
                }
                Effect::Apply(decided) => {
                    let base = decided.base;
                    self.disagreement |= *self.decided.entry(base.slot).or_insert(base) != base;
                    self.applied[index].insert(base.slot, base);
                }
                Effect::Fatal { .. } => self.disagreement = true,
                _ => {}
            }
        }
    }

    /// Leaves out what carries only liveness (heartbeats, refusals) and what changes nothing (pre-votes): the same
    /// protocol with far fewer states.
    fn send(&mut self, from: ReplicaId, to: ReplicaId, message: Bytes) {
        match codec::decode::<Message>(&message) {
            Ok(
                Message::Heartbeat { .. }
                | Message::HeartbeatReply { .. }
                | Message::PreVote { .. }
                | Message::PreVoteReply { .. }
                | Message::Reject { .. },
            ) => {}
            _ => drop(self.network.insert((from, to, message))),
        }
    }
}

impl Model for Bounds {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let machines = (0..N).map(|index| self.machine(index, Vec::new(), 0)).collect();
        let applied = vec![BTreeMap::new(); N];
        let (network, decided) = (BTreeSet::new(), BTreeMap::new());
        vec![World {
            machines,
            network,
            applied,
            decided,
            disagreement: false,
            timeouts: 0,
            proposals: 0,
            crashes: 0,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for (from, to, message) in &world.network {
            actions.push(Action::Deliver(*from, *to, message.clone()));
        }
        for index in 0..N {
            let machine = &world.machines[index];
            if !machine.pending.is_empty() {
                actions.push(Action::Persist(index));
            }
            // Two replicas that compete are enough for every conflict; the third only answers.
            if world.timeouts < self.timeouts && index < 2 && !machine.replica.is_leader() {
                actions.push(Action::Timeout(index));
            }
            if world.proposals < self.proposals && machine.replica.is_leader() {
                actions.push(Action::Propose(index));
            }
            if world.crashes < self.crashes {
                actions.push(Action::Crash(index));
            }
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        let touched = match action {
            Action::Deliver(from, to, message) => {
                // A delivered message is gone: duplicates are explored by the random schedules.
                world.network.remove(&(from, to, message.clone()));
                let index = usize::from(to.0);
                world.machines[index].replica.step(Event::Receive { from, message });
                index
            }
            Action::Persist(index) => {
                let machine = &mut world.machines[index];
                let (records, token) = machine.pending.remove(0);
                machine.disk.extend(records);
                machine.durable = token;
                let (ready, held): (Vec<_>, Vec<_>) =
                    machine.held.drain(..).partition(|(_, _, after)| *after <= token);
                machine.held = held;
                machine.replica.step(Event::Persisted { token });
                for (to, message, _) in ready {
                    world.send(ReplicaId(index as u8), to, message);
                }
                index
            }
            Action::Timeout(index) => {
                world.timeouts += 1;
                let machine = &mut world.machines[index];
                machine.timeouts += 1;
                let now = Ticks(1 + machine.timeouts * 10_000_000);
                machine.replica.step(Event::Tick { now, wall: Timestamp(1) });
                machine.replica.step(Event::Tick { now: now.plus(5_000_000), wall: Timestamp(1) });
                world.grant_pre_vote(index);
                index
            }
            Action::Propose(index) => {
                world.proposals += 1;
                let value = Bytes::from(vec![b'0' + world.proposals]);
                world.machines[index].replica.propose(Proposal::Batch(value)).ok()?;
                index
            }
            Action::Crash(index) => {
                world.crashes += 1;
                let (disk, timeouts) = (world.machines[index].disk.clone(), world.machines[index].timeouts);
                world.machines[index] = self.machine(index, disk, timeouts);
                world.applied[index].clear();
                index
            }
        };
        world.collect(touched);
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("replicas decide the same", |_, world: &World| !world.disagreement),
            Property::always("at most one leader per ballot", |_, world: &World| {
                let leaders = world.machines.iter().filter(|machine| machine.replica.is_leader());
                let ballots: Vec<_> = leaders.map(|machine| machine.replica.promised()).collect();
                ballots.iter().collect::<BTreeSet<_>>().len() == ballots.len()
            }),
            Property::sometimes("a value is decided", |_, world: &World| world.decided.len() >= 2),
            Property::sometimes("two replicas have led", |_, world: &World| {
                world.machines.iter().filter(|machine| machine.replica.promised().round > 1).count() >= 2
            }),
        ]
    }
}

fn explore(bounds: Bounds, states_max: usize) -> impl Checker<Bounds> {
    bounds.checker().threads(2).target_state_count(states_max).spawn_bfs().join()
}

#[test]
fn two_competing_leaders_are_safe() {
    let bounds = Bounds { timeouts: 2, proposals: 1, crashes: 0, mutation: Mutation::None };
    let states = std::env::var("MODEL_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(400_000);
    let checker = explore(bounds, states);
    println!("{} states, {} of them distinct", checker.state_count(), checker.unique_state_count());
    checker.assert_properties();
    assert!(checker.unique_state_count() > 10_000, "too little was explored");
}

#[test]
fn a_crash_anywhere_is_safe() {
    let bounds = Bounds { timeouts: 1, proposals: 1, crashes: 1, mutation: Mutation::None };
    let checker = explore(bounds, 10_000_000);
    println!("{} states, {} of them distinct", checker.state_count(), checker.unique_state_count());
    assert!(checker.is_done(), "all states were visited");
    assert!(checker.discovery("replicas decide the same").is_none());
    assert!(checker.discovery("at most one leader per ballot").is_none());
    assert!(checker.discovery("a value is decided").is_some());
}

#[test]
fn the_model_notices_a_leader_that_keeps_its_own_log() {
    let bounds = Bounds { timeouts: 2, proposals: 1, crashes: 0, mutation: Mutation::KeepOwnLog };
    let checker = explore(bounds, 2_000_000);
    assert!(
        checker.discovery("replicas decide the same").is_some(),
        "{} states",
        checker.unique_state_count()
    );
}
