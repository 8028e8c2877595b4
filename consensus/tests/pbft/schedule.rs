//! Random schedules: a seed draws its own faults and lies, runs a group through them, then lets it come to rest.

use super::{CLIENTS, Group, Random, Reached, Violation};
use std::collections::BTreeSet;
use tetrachord_consensus::pbft::sign::TOY_ADMINISTRATOR;
use tetrachord_consensus::pbft::{Bundle, Liar, Lie, Options, RequestName, Signer, Window};
use tetrachord_consensus::{Mutation, ReplicaId};

/// What a run is made of.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    pub(crate) n: usize,
    pub(crate) twins: bool,
    pub(crate) lies: Vec<Lie>,
    tick_percent: u64,
    slow_disk_percent: u64,
    slow_pool_percent: u64,
    drop_percent: u64,
    duplicate_percent: u64,
    crash_percent: u64,
    cut_percent: u64,
    checkpoint_percent: u64,
    request_percent: u64,
    rot_per_mille: u64,
    stop_per_mille: u64,
}

impl Weather {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let n = if random.chance(75) { 4 } else { 7 };
        let f = (n - 1) / 3;
        let liars = random.below(f + 1);
        let mut maybe = |max: u64| if random.chance(50) { random.next() % max } else { 0 };
        let (slow_disk_percent, slow_pool_percent) = (maybe(80), maybe(80));
        let (drop_percent, duplicate_percent) = (maybe(15), maybe(10));
        let (crash_percent, cut_percent, checkpoint_percent) = (maybe(3), maybe(3), maybe(6));
        Self {
            n,
            twins: liars > 0 && random.chance(25),
            lies: (0..liars).map(|_| Lie::ALL[random.below(Lie::ALL.len())]).collect(),
            tick_percent: 10 + random.next() % 40,
            slow_disk_percent,
            slow_pool_percent,
            drop_percent,
            duplicate_percent,
            crash_percent,
            cut_percent,
            checkpoint_percent,
            request_percent: 4 + random.next() % 20,
            rot_per_mille: if random.chance(40) { 1 + random.next() % 4 } else { 0 },
            stop_per_mille: if random.chance(10) { 1 } else { 0 },
        }
    }
}

/// A run under way.
pub(crate) struct Run {
    pub(crate) group: Group,
    weather: Weather,
    random: Random,
    bundles: Vec<Bundle>,
    numbers: [u64; CLIENTS as usize],
    /// Replicas whose state is changed now and then.
    victims: BTreeSet<usize>,
    pub(crate) crashes: usize,
}

impl Run {
    pub(crate) fn new(seed: u64, mutation: Mutation) -> Self {
        let mut random = Random(seed);
        let weather = Weather::draw(&mut random);
        let window = [Window { interval: 4, length: 8 }, Window { interval: 8, length: 32 }][random.below(2)];
        let options = Options {
            mutation,
            request_ticks: 400,
            request_ticks_max: 3_000,
            status_ticks: 40,
            pipeline: 1 + random.below(6),
            batch_requests: 1 + random.below(4),
            ..Options::default()
        };
        let mut ids: Vec<ReplicaId> = (0..weather.n).map(|index| ReplicaId(index as u8)).collect();
        let first_liar = random.below(weather.n);
        if weather.twins {
            ids.push(ReplicaId(first_liar as u8));
        }
        let mut group = Group::with_ids(weather.n, &ids, window, options);
        let domain = group.domain;
        for (turn, lie) in weather.lies.iter().enumerate() {
            let id = ReplicaId(((first_liar + turn) % weather.n) as u8);
            // Twins are each honest by itself; together they are the lie.
            let lie = if weather.twins && turn == 0 { Lie::Starve } else { *lie };
            for node in group.nodes.iter_mut().filter(|node| node.id == id) {
                node.liar = Some((lie, Liar::new(Signer::toy(id, domain), seed ^ 77)));
            }
        }
        if weather.twins {
            // Each twin talks to its own half.
            let (one, two) = (first_liar, weather.n);
            group.partition(&[one], &[two]);
        }
        let (numbers, victims) = ([0; CLIENTS as usize], BTreeSet::new());
        Self { group, weather, random, bundles: Vec::new(), numbers, victims, crashes: 0 }
    }

    /// The run and where each process stands.
    pub(crate) fn describe(&self) -> String {
        let state = |index: usize| {
            let node = &self.group.nodes[index];
            let status = node.replica.as_ref().map(tetrachord_consensus::Engine::status);
            format!(
                "{index} {} honest={} applied={} fatal={:?} {status:?}\n",
                node.id,
                node.is_honest(),
                node.applied.len(),
                node.fatal
            )
        };
        let states: String = (0..self.group.nodes.len()).map(state).collect();
        format!("{:?} {:?}\n{states}", self.weather, self.group.config.window)
    }

    pub(crate) fn disturb(&mut self) {
        let count = self.group.nodes.len();
        if self.random.chance(self.weather.tick_percent) {
            let millis = 5 + self.random.next() % 40;
            self.group.advance(millis);
        }
        if !self.random.chance(self.weather.slow_disk_percent) {
            let at = self.random.below(count);
            self.group.persist(at);
        }
        for _ in 0..3 {
            if !self.random.chance(self.weather.slow_pool_percent) {
                let at = self.random.below(count);
                self.group.check(at);
            }
        }
        self.break_something();
        if self.random.chance(self.weather.request_percent) {
            self.ask();
        }
        for _ in 0..self.random.below(6) {
            self.move_message();
        }
    }

    fn break_something(&mut self) {
        let count = self.group.nodes.len();
        let node = self.random.below(count);
        if self.random.chance(self.weather.crash_percent) {
            if self.group.is_up(node) {
                let kept = self.random.below(3);
                self.group.crash(node, kept);
                self.crashes += 1;
            } else {
                self.group.start(node);
            }
        }
        if self.random.chance(self.weather.cut_percent) {
            if self.group.cut.is_empty() {
                for _ in 0..1 + self.random.below(count) {
                    let (from, to) = (self.random.below(count), self.random.below(count));
                    self.group.cut.insert((from, to));
                }
            } else {
                self.group.heal();
            }
        }
        if self.random.next() % 1000 < self.weather.stop_per_mille {
            let stop_sign = self.group.stop_sign(TOY_ADMINISTRATOR);
            (0..count).for_each(|index| self.group.submit(index, &stop_sign));
        }
        if self.random.next() % 1000 < self.weather.rot_per_mille {
            self.rot(node);
        }
        if self.random.chance(self.weather.checkpoint_percent) {
            let retain_bytes = [0, 500, 5_000][self.random.below(3)];
            let on_disk = self.random.chance(50);
            self.group.checkpoint(node, retain_bytes, on_disk);
        }
    }

    /// Somebody changes the state of a replica behind its back, and a scrub may find it before a root does. The same replicas
    /// suffer it in the whole run, with the liars no more than may be wrong: roots that one signed before its repair stay
    /// signed, and are as good as lies.
    fn rot(&mut self, index: usize) {
        let may_be_wrong = (self.weather.n - 1) / 3 - self.weather.lies.len();
        let is_chosen = self.victims.contains(&index) || self.victims.len() < may_be_wrong;
        let node = &self.group.nodes[index];
        if !is_chosen || !node.is_honest() || node.is_rotten || node.is_lost {
            return;
        }
        self.victims.insert(index);
        self.group.nodes[index].is_rotten = true;
        if self.random.chance(50) {
            self.group.act(index, |replica| replica.state_damaged("a scrub found it".to_string()));
        }
    }

    /// A client asks somebody, or everybody; sometimes again, sometimes something else under the same name.
    fn ask(&mut self) {
        let client = self.random.below(usize::from(CLIENTS));
        let is_again = self.random.chance(20) && !self.bundles.is_empty();
        let bundle = if is_again {
            self.bundles[self.random.below(self.bundles.len())].clone()
        } else {
            if !self.random.chance(10) || self.numbers[client] == 0 {
                self.numbers[client] += 1;
            }
            let text = format!("op {}", self.random.next() % 1000);
            let bundle = self.group.request(client as u8, self.numbers[client], &text);
            self.bundles.push(bundle.clone());
            bundle
        };
        let count = self.group.nodes.len();
        if self.random.chance(40) {
            (0..count).for_each(|index| self.group.submit(index, &bundle));
        } else {
            let at = if self.random.chance(60) { self.group.primary() } else { self.random.below(count) };
            self.group.submit(at, &bundle);
        }
    }

    fn move_message(&mut self) {
        if self.group.network.is_empty() {
            return;
        }
        let position = self.random.below(self.group.network.len());
        if self.random.chance(self.weather.duplicate_percent) {
            let copy = self.group.network[position].clone();
            self.group.network.push(copy);
        }
        if self.random.chance(self.weather.drop_percent) {
            self.group.network.swap_remove(position);
        } else {
            self.group.deliver(position);
        }
        while self.group.network.len() > 600 {
            let position = self.random.below(self.group.network.len());
            self.group.network.swap_remove(position);
        }
    }

    /// Faults stop, lies go on: what clients ask is executed everywhere, and all agree.
    pub(crate) fn calm(&mut self) {
        self.group.heal();
        for index in 0..self.group.nodes.len() {
            if !self.group.is_up(index) {
                self.group.start(index);
            }
        }
        let number = self.numbers[0] + 1;
        let bundle = self.group.request(0, number, "last");
        let name: RequestName = bundle.names().next().unwrap();
        for round in 0..400 {
            if round % 20 == 0 {
                (0..self.group.nodes.len()).for_each(|index| self.group.submit(index, &bundle));
            }
            self.group.run(100);
            if !self.group.violations.is_empty() || self.has_come_to_rest(name) {
                return;
            }
        }
        let states: Vec<String> = (0..self.group.nodes.len())
            .map(|index| format!("r{index} {:?}", self.group.nodes[index].replica.as_ref().map(|r| r.view())))
            .collect();
        self.group.violations.push(Violation(format!("does not come back: {states:?}")));
    }

    fn has_come_to_rest(&self, name: RequestName) -> bool {
        let ends: Vec<usize> =
            self.group.honest().iter().map(|index| self.group.nodes[*index].applied.len()).collect();
        ends.iter().all(|end| *end == ends[0])
            && self.group.honest().into_iter().all(|index| {
                let replica = self.group.replica(index);
                let is_at_the_end =
                    self.group.nodes[index].applied.last().is_some_and(|last| last.base.sealed)
                        && replica.stable_slot() == replica.executed();
                // A replica that got a whole state instead of its log has executed it all the same.
                is_at_the_end || self.group.has_executed(index, name)
            })
    }
}

/// Runs one seed.
pub(crate) fn run(seed: u64, mutation: Mutation, steps: usize) -> (Vec<Violation>, Reached, usize) {
    let mut run = Run::new(seed, mutation);
    for _ in 0..steps {
        run.disturb();
        if !run.group.violations.is_empty() {
            break;
        }
    }
    if run.group.violations.is_empty() && mutation == Mutation::None {
        run.calm();
    }
    let slots = run.group.decided.len();
    (run.group.violations, run.group.reached, slots)
}
