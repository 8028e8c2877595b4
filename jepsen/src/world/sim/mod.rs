//! The simulated world: whole nodes over virtual time.
//!
//! Everything that happens is an event with a moment: a message arrives, a barrier ends, a clock ticks, a client loses
//! patience, a nemesis strikes. Events are taken in order of their moments; those of one moment in the order in which they were
//! made. Chance comes from the seed alone, so a seed replays every event, on any machine.
//!
//! After every step of a node the invariants are checked ([`invariant`]); at the end faults stop, and the nodes must answer
//! and become equal again within a bound of virtual time; then the history of the clients is judged.

mod client;
mod clocks;
mod connections;
mod disturb;
mod durable;
mod end;
mod flood;
mod greedy;
mod invariant;
mod network;
mod node;
mod said;
mod stale;
#[cfg(test)]
mod stories;
mod trace;

use crate::nemesis::Nemesis;
use crate::plan::{Mode, Plan};
use crate::random::Random;
use client::Client;
pub use client::{CANCELLED, STRANGER};
use clocks::Clocks;
use connections::{FIRST_CONNECTION, Machine};
use durable::Durable;
use greedy::Greedy;
use invariant::{Invariants, News, REPAIRED};
use network::{Network, Parcel, index_of};
use node::{Node, Stranger};
use said::{Said, Statement};
pub use stale::PASSED_ON;
use stale::Stale;
use std::collections::BTreeMap;
use tetrachord::group::{Overheard, overhear};
use tetrachord::node::checks::Line;
use tetrachord::node::core::{NodeEffect, NodeEvent};
use tetrachord::ring::{GroupId, NodeId, Tenure, TenureId};
use tetrachord::ticket::ConnectionId;
use tetrachord::wire::{self, GroupBody, PeerMessage};
use tetrachord_checker::Operation;
use tetrachord_consensus::codec;
use tetrachord_consensus::pbft::{Lie, Verifier};
use trace::Trace;

/// Clocks tick this often, in microseconds.
const TICK_MICROS: u64 = 10_000;

/// Everything that can happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Tick { node: usize, life: u64 },
    Barrier { node: usize, life: u64 },
    StateWritten { node: usize, life: u64 },
    Checked { node: usize, life: u64 },
    Arrives(Parcel),
    Patience { client: usize },
    Begin { client: usize },
    Wake { machine: usize },
    Dialled { machine: usize, node: NodeId, silence: u64 },
    NotDialled { machine: usize, node: NodeId },
    Lost { connection: ConnectionId },
    Gone { node: usize, life: u64, connection: ConnectionId },
    Greed,
    Restart { node: usize },
    Link { node: usize, peer: usize },
    Strike,
    Resume { node: usize, life: u64 },
    Flood { node: usize, left: u32 },
    ShowAgain,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What did not hold, if anything.
    pub violation: Option<String>,
    /// Virtual microseconds.
    pub micros: u64,
    /// Of these, until all was well again after faults had stopped.
    pub calm_micros: u64,
    /// Operations that were answered, and those of which nobody knows.
    pub operations: usize,
    /// Operations of which nobody knows what became.
    pub unknown: usize,
    /// How often each nemesis struck, and what it changed.
    pub strikes: BTreeMap<Nemesis, (u64, u64)>,
    /// How often each lie was told and changed something.
    pub lies: BTreeMap<Lie, u64>,
    /// Interesting things that happened, by name.
    pub reached: BTreeMap<&'static str, u64>,
    /// Events that were taken.
    pub events: u64,
    /// A hash of all of them.
    pub trace_hash: [u8; 32],
    /// All of them in words, if that was asked for.
    pub trace: Vec<String>,
}

/// A run under way.
pub(crate) struct World {
    plan: Plan,
    random: Random,
    now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    last_event: u64,
    tenures: Vec<Tenure>,
    nodes: Vec<Node>,
    verifiers: BTreeMap<TenureId, Verifier>,
    network: Network,
    clients: Vec<Client>,
    /// What they ask: one each, or one for all.
    machines: Vec<Machine>,
    /// Of these clients to nodes, each to one life.
    connections: BTreeMap<ConnectionId, (usize, NodeId, u64)>,
    last_connection: u64,
    greedy: Greedy,
    stale: Stale,
    history: Vec<Operation>,
    last_store: u64,
    last_process: u64,
    last_stamp: u64,
    /// Requests of the client that means no good.
    flooded: u64,
    is_calm: bool,
    /// Clients show all replicas at once what they ask.
    is_hasty: bool,
    calm_micros: u64,
    invariants: Invariants,
    clocks: Clocks,
    said: Said,
    durable: Durable,
    strikes: BTreeMap<Nemesis, (u64, u64)>,
    lies: BTreeMap<Lie, u64>,
    reached: BTreeMap<&'static str, u64>,
    events: u64,
    trace: Trace,
    violation: Option<String>,
}

/// Carries out a plan.
#[must_use]
pub fn run(plan: &Plan, wants_trace: bool) -> Outcome {
    let mut world = World::new(plan, wants_trace);
    world.run_until(plan.millis * 1_000);
    world.calm();
    world.judge();
    world.outcome()
}

impl World {
    fn new(plan: &Plan, wants_trace: bool) -> Self {
        let tenures = node::tenures(plan);
        let mut world = Self {
            random: Random::new(plan.seed),
            now: 1,
            queue: BTreeMap::new(),
            last_event: 0,
            nodes: (0..plan.nodes).map(|index| Node::new(index, plan)).collect(),
            verifiers: BTreeMap::new(),
            network: Network::default(),
            clients: Vec::new(),
            machines: Vec::new(),
            connections: BTreeMap::new(),
            last_connection: 0,
            greedy: Greedy::new(plan),
            stale: Stale::default(),
            history: Vec::new(),
            last_store: plan.nodes as u64,
            last_process: 0,
            last_stamp: 0,
            flooded: 0,
            is_calm: false,
            is_hasty: false,
            calm_micros: 0,
            invariants: Invariants::new(plan),
            clocks: Clocks::default(),
            said: Said::default(),
            durable: Durable::new(plan.nodes, plan.mode == Mode::Byzantine),
            strikes: BTreeMap::new(),
            lies: BTreeMap::new(),
            reached: BTreeMap::new(),
            events: 0,
            trace: Trace::new(wants_trace),
            violation: None,
            tenures,
            plan: plan.clone(),
        };
        world.set_clocks();
        world.start_clocks();
        (0..plan.nodes).for_each(|index| world.start(index));
        let machines = if plan.is_shared { 1 } else { plan.clients };
        world.machines = (0..machines).map(|index| Machine::new(index, plan, &world.tenures)).collect();
        for index in 0..plan.clients {
            world.last_process += 1;
            world.clients.push(Client::new(index % machines, world.last_process));
            world.at(1_000 + index as u64, Event::Patience { client: index });
        }
        world.at(plan.fault_every * 1_000, Event::Strike);
        if plan.has(Nemesis::GreedyClient) {
            world.at(plan.fault_every * 1_000, Event::Greed);
        }
        if plan.has(Nemesis::StaleRequests) {
            world.at(plan.fault_every * 1_000, Event::ShowAgain);
        }
        world
    }

    fn at(&mut self, moment: u64, event: Event) {
        assert!(moment >= self.now, "nothing happens in the past");
        self.last_event += 1;
        self.queue.insert((moment, self.last_event), event);
    }

    fn after(&mut self, micros: u64, event: Event) {
        self.at(self.now + micros, event);
    }

    fn reach(&mut self, what: &'static str) {
        *self.reached.entry(what).or_default() += 1;
    }

    /// A nemesis struck, or a strike of it changed something.
    fn count(&mut self, nemesis: Nemesis, strikes: u64, effects: u64) {
        let counted = self.strikes.entry(nemesis).or_default();
        counted.0 += strikes;
        counted.1 += effects;
    }

    fn violate(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let what = what();
            self.trace.note(|| format!("VIOLATION {what}"));
            self.violation = Some(what);
        }
    }

    fn run_until(&mut self, end: u64) {
        while self.violation.is_none() && self.take_next(end) {}
        self.now = self.now.max(end);
    }

    /// Takes the next event, if there is one that is not later than that.
    fn take_next(&mut self, end: u64) -> bool {
        let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) else { return false };
        let ((moment, _), event) = entry.remove_entry();
        self.now = moment;
        self.events += 1;
        self.trace.event(moment, &event);
        self.take(event);
        true
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Tick { node, life } if self.nodes[node].is(life) => self.tick(node),
            Event::Barrier { node, life } if self.nodes[node].is(life) => self.barrier(node),
            Event::StateWritten { node, life } if self.nodes[node].is(life) => self.state_written(node),
            Event::Checked { node, life } if self.nodes[node].is(life) => self.checked(node),
            Event::Resume { node, life } if self.nodes[node].is(life) => self.resume(node),
            Event::Arrives(parcel) => self.arrives(parcel),
            Event::Patience { client } => self.patience(client),
            Event::Begin { client } => self.begin(client),
            Event::Wake { machine } => self.wake(machine),
            Event::Dialled { machine, node, silence } => self.dialled(machine, node, silence),
            Event::NotDialled { machine, node } => self.not_dialled(machine, node),
            Event::Lost { connection } => self.lost(connection),
            Event::Gone { node, life, connection } => self.gone(node, life, connection),
            Event::Greed => self.be_greedy(),
            Event::Restart { node } => self.restart(node),
            Event::Link { node, peer } => self.link(node, peer),
            Event::Strike => self.strike(),
            Event::Flood { node, left } => self.flood(node, left),
            Event::ShowAgain => self.show_again(),
            _ => {}
        }
    }

    /// A node is told something, and what it wants done is done.
    fn step(&mut self, index: usize, event: NodeEvent) {
        self.turn(index, [event]);
    }

    /// A node is told several things that came together.
    fn turn(&mut self, index: usize, events: impl IntoIterator<Item = NodeEvent>) {
        let node = &mut self.nodes[index];
        let is_wrong = node.is_excused() || node.is_rotten;
        let Some(core) = node.core.as_mut() else { return };
        let before = self.trace.wants_lines().then(|| invariant::applied(core));
        events.into_iter().for_each(|event| core.step(event));
        let mut effects = core.flush();
        while core.has_waiting() {
            effects.extend(core.flush());
        }
        if let Some(before) = before {
            let news = invariant::applied(core).into_iter().filter(|now| !before.contains(now));
            news.for_each(|now| self.trace.note(|| format!("n{} has applied {now}", index + 1)));
        }
        let told = self.invariants.check(index, is_wrong, core);
        for what in told.reached {
            node.is_rotten &= what != REPAIRED;
            self.trace.note(|| format!("n{}: {what}", index + 1));
            *self.reached.entry(what).or_default() += 1;
        }
        let news = told.news.iter().filter_map(|(group, news)| Some((self.tenure(*group)?, news)));
        let undurable = news.filter_map(|(place, news)| self.durable.check_news(index, place, news)).next();
        if let Some(violation) = told.violation.or(undurable) {
            self.violate(|| violation);
        }
        for (group, news) in told.news {
            if let News::Applied { slot, time, .. } = news
                && let Some(violation) = self.check_time(group, slot, time)
            {
                self.violate(|| violation);
            }
        }
        // The disk of a stranger is not followed.
        let node = &self.nodes[index];
        let own = node.core.as_ref().filter(|_| node.stranger.is_none());
        let unknown = own.and_then(|core| self.durable.check_heard(index, core.heard()));
        if let Some(violation) = unknown {
            self.violate(|| violation);
        }
        let speaks = effects
            .iter()
            .any(|effect| matches!(effect, NodeEffect::Send { .. } | NodeEffect::Answer { .. }));
        for effect in effects {
            let is_end = matches!(effect, NodeEffect::Stop { .. });
            self.carry_out(index, effect);
            if is_end {
                break;
            }
        }
        self.schedule_disk(index);
        if speaks {
            self.kill_at_a_bad_moment(index);
        }
    }

    fn carry_out(&mut self, index: usize, effect: NodeEffect) {
        let from = NodeId::founder(index);
        match effect {
            NodeEffect::Send { to, class, frame } => {
                if !self.nodes[index].is_excused()
                    && let Some(wrong) = self.listen(index, &frame[4..])
                {
                    self.violate(|| wrong);
                }
                let is_stranger = self.nodes[index].stranger.is_some();
                let only_life = is_stranger.then_some(self.nodes[index_of(to)].life);
                let link = self.nodes[index].life;
                self.send(Parcel::Peer { from, to, class, frame, link, only_life });
            }
            NodeEffect::Answer { connection, frame } if connection.0 >= FIRST_CONNECTION => {
                if let Some((client, ..)) = self.connections.get(&connection).copied() {
                    self.repeat_lies(index, client, &frame);
                    self.send(Parcel::Answer { from, client, connection, frame });
                }
            }
            NodeEffect::Answer { connection, frame } => {
                let client = usize::try_from(connection.0).expect("few clients");
                if self.greedy.is_at(client) {
                    return self.on_greedy_answer(&frame);
                }
                self.send(Parcel::Answer { from, client, connection, frame });
            }
            NodeEffect::Disconnect { connection: ConnectionId(client), .. }
                if self.is_flooder(usize::try_from(client).expect("few clients")) =>
            {
                self.count(Nemesis::Flood, 0, 1);
            }
            NodeEffect::Disconnect { reason, .. } => {
                self.violate(|| format!("{from} closes the connection of a correct client: {reason}"));
            }
            // How fast a node reads is not simulated.
            NodeEffect::Slow { .. } => {}
            NodeEffect::Verify { tenure, line, job } => {
                let is_one_line = self.plan.mutation.checks_in_one_line();
                let node = &mut self.nodes[index];
                let line = if is_one_line { Line::Replica(NodeId(0)) } else { line };
                node.checks.push(line, job.cost(), (tenure, job));
                if !node.is_checking {
                    node.is_checking = true;
                    let life = node.life;
                    let micros = self.random.between(40, 120);
                    self.after(micros, Event::Checked { node: index, life });
                }
            }
            NodeEffect::Stop { reason } if self.nodes[index].stranger.is_some() => {
                self.trace.note(|| format!("{from} stops: {reason}"));
                self.put_own_disk_back(index, true);
            }
            NodeEffect::Stop { reason } if self.nodes[index].is_excused() => {
                // A liar may trip over its own lies.
                self.trace.note(|| format!("{from}, which is one of the faulty, stops: {reason}"));
                self.crash(index, 0);
            }
            NodeEffect::Stop { reason } if self.nodes[index].is_told_nonsense => {
                self.trace.note(|| format!("{from} stops: {reason}"));
                self.count(Nemesis::Halt, 0, 1);
                // What it had handed to its disk before may get there all the same.
                let kept = self.random.index(self.nodes[index].disk.pending() + 1);
                self.crash(index, kept);
            }
            NodeEffect::Stop { reason } => self.violate(|| format!("{from} stops: {reason}")),
        }
    }

    /// The tenure of a group of the ring.
    fn tenure(&self, group: GroupId) -> Option<&Tenure> {
        self.tenures.iter().find(|tenure| tenure.group() == group)
    }

    /// An honest node speaks to another. What is wrong with that, if anything.
    fn listen(&mut self, index: usize, body: &[u8]) -> Option<String> {
        let PeerMessage::Groups(said) = wire::decode(body).ok()? else { return None };
        said.iter().find_map(|said| self.listen_to(index, said))
    }

    fn listen_to(&mut self, index: usize, GroupBody { tenure, body }: &GroupBody) -> Option<String> {
        let group = tenure.group;
        let is_empty = matches!(self.nodes[index].stranger, Some((Stranger::Empty, _)));
        if is_empty || !self.durable.is_admitted(index) {
            return Some(format!("n{} speaks in {group} with a store that nobody knows", index + 1));
        }
        let message = match overhear(body) {
            Overheard::Engine(message) => message,
            Overheard::TakesParts(parts) => {
                self.nodes[index].parts_taken += parts;
                return None;
            }
            Overheard::Other => return None,
        };
        if self.plan.mode == Mode::Crash {
            let message = codec::decode(&message).ok()?;
            return self.durable.check_message(index, group, &message);
        }
        let message = codec::decode(&message).ok()?;
        let tenure = self.tenure(group)?;
        let replica = tenure.index_of(NodeId::founder(index))?;
        let statement = Statement::of(replica, tenure.members.len(), &message)?;
        let contradiction = self.said.check(index, group, &statement, &message);
        contradiction.or_else(|| self.durable.check_statement(index, group, &statement))
    }

    fn outcome(mut self) -> Outcome {
        (0..self.nodes.len()).for_each(|index| self.count_lies(index));
        if self.said.carried > 0 {
            *self.reached.entry("a new view carried over what was prepared").or_default() +=
                self.said.carried;
        }
        Outcome {
            violation: self.violation,
            micros: self.now,
            calm_micros: self.calm_micros,
            operations: self.history.len(),
            unknown: self.history.iter().filter(|operation| operation.end.is_none()).count(),
            strikes: self.strikes,
            lies: self.lies,
            reached: self.reached,
            events: self.events,
            trace_hash: self.trace.hash(),
            trace: self.trace.into_lines(),
        }
    }
}

/// Every lie in turn.
fn next_lie(turn: u64) -> Lie {
    Lie::ALL[usize::try_from(turn % Lie::ALL.len() as u64).expect("a small remainder")]
}
