//! Many seeds: what they came to together, and a failing one made smaller.

use crate::nemesis::Nemesis;
use crate::plan::{Mode, Plan};
use crate::world::Kind;
use crate::world::sim::{self, Outcome};
use std::collections::BTreeMap;

/// What many runs came to.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Runs.
    pub seeds: u64,
    /// Runs in Byzantine mode.
    pub byzantine: u64,
    /// Virtual microseconds.
    pub micros: u64,
    /// Operations whose history was judged.
    pub operations: usize,
    /// Those of which nobody knows what became.
    pub unknown: usize,
    /// Events.
    pub events: u64,
    /// How often each nemesis struck, and what it changed.
    pub strikes: BTreeMap<Nemesis, (u64, u64)>,
    /// Interesting things that happened.
    pub reached: BTreeMap<&'static str, u64>,
}

/// What must have happened somewhere in many runs; else they were too tame.
pub const INTERESTING: [&str; 10] = [
    "a leader was elected",
    "a leader went on with several entries that may have been decided",
    "a log was cut back",
    "a new view carried over what was prepared",
    "a view had to be skipped",
    "a damaged state was noticed",
    "a whole state was put in place",
    "a damaged state was repaired",
    "a view was entered behind the first",
    "a crash lost what was not synced",
];

impl Totals {
    /// Adds a run.
    pub fn add(&mut self, plan: &Plan, outcome: &Outcome) {
        self.merge(&Self {
            seeds: 1,
            byzantine: u64::from(plan.mode == Mode::Byzantine),
            micros: outcome.micros,
            operations: outcome.operations,
            unknown: outcome.unknown,
            events: outcome.events,
            strikes: outcome.strikes.clone(),
            reached: outcome.reached.clone(),
        });
    }

    /// Adds what other runs came to.
    pub fn merge(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.byzantine += other.byzantine;
        self.micros += other.micros;
        self.operations += other.operations;
        self.unknown += other.unknown;
        self.events += other.events;
        for (nemesis, (strikes, effects)) in &other.strikes {
            let counted = self.strikes.entry(*nemesis).or_default();
            *counted = (counted.0 + strikes, counted.1 + effects);
        }
        for (what, count) in &other.reached {
            *self.reached.entry(what).or_default() += count;
        }
    }

    /// Nemeses that changed nothing in all of the runs, and interesting things that never happened. Of few runs nothing can be
    /// said.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let idle = |nemesis: &Nemesis| self.strikes.get(nemesis).is_none_or(|(_, effects)| *effects == 0);
        let idle = Nemesis::of(Kind::Sim).filter(idle).map(|nemesis| {
            format!("{} had no effect ({})", nemesis.name(), nemesis.effect(Kind::Sim).unwrap_or_default())
        });
        let never = INTERESTING.into_iter().filter(|what| !self.reached.contains_key(what));
        idle.chain(never.map(|what| format!("it never happened that {what}"))).collect()
    }
}

/// Makes a failing plan smaller: fewer nemeses, clients and groups, less time, as long as it fails. It may fail in another way.
#[must_use]
pub fn shrink(plan: &Plan) -> Plan {
    let fails = |plan: &Plan| sim::run(plan, false).violation.is_some();
    let mut best = plan.clone();
    for nemesis in plan.nemeses.clone() {
        let mut smaller = best.clone();
        smaller.nemeses.remove(&nemesis);
        if fails(&smaller) {
            best = smaller;
        }
    }
    while best.clients > 1 {
        let smaller = Plan { clients: best.clients - 1, ..best.clone() };
        if !fails(&smaller) {
            break;
        }
        best = smaller;
    }
    while best.millis > 500 {
        let smaller = Plan { millis: best.millis * 2 / 3, ..best.clone() };
        if !fails(&smaller) {
            break;
        }
        best = smaller;
    }
    best
}

/// The command that replays a plan, shrunk or not.
#[must_use]
pub fn replay_command(plan: &Plan) -> String {
    let mut command = format!("tetrachord-jepsen sim --seed {} --trace", plan.seed);
    let mut drawn = Plan::draw(plan.seed);
    if drawn.mode != plan.mode {
        drawn = Plan::draw_in(plan.seed, Some(plan.mode));
        command += &format!(" --mode {}", if plan.mode == Mode::Crash { "crash" } else { "byzantine" });
    }
    let without: Vec<&str> = drawn.nemeses.difference(&plan.nemeses).map(|nemesis| nemesis.name()).collect();
    if !without.is_empty() {
        command += &format!(" --without {}", without.join(","));
    }
    if plan.clients != drawn.clients {
        command += &format!(" --clients {}", plan.clients);
    }
    if plan.millis != drawn.millis {
        command += &format!(" --millis {}", plan.millis);
    }
    command
}
