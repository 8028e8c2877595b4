//! Many seeds: what they came to together, and a failing one made smaller.

use crate::nemesis::Nemesis;
use crate::plan::{Mode, Plan};
use crate::world::Kind;
use crate::world::sim::{self, Outcome};
use std::collections::{BTreeMap, BTreeSet};

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
    /// The hashes of all traces in one, whatever their order: equal seeds come to equal ones, on any machine and in any build.
    pub traces: u64,
    /// The longest, in crash and in Byzantine mode, until all was well again after faults had stopped, in virtual microseconds.
    pub calm_micros: (u64, u64),
    /// Pairs of nemeses that both changed something in one run.
    pub pairs: BTreeSet<(Nemesis, Nemesis)>,
    /// How often each nemesis struck, and what it changed.
    pub strikes: BTreeMap<Nemesis, (u64, u64)>,
    /// Interesting things that happened.
    pub reached: BTreeMap<&'static str, u64>,
}

/// What must have happened somewhere in many runs, of this mode or of any; else they were too tame.
pub const INTERESTING: [(Option<Mode>, &str); 11] = [
    (None, "a crash lost what was not synced"),
    (None, "a whole state was put in place"),
    (None, "links that healed delivered what they had kept"),
    (Some(Mode::Crash), "a leader was elected"),
    (Some(Mode::Crash), "a leader went on with several entries that may have been decided"),
    (Some(Mode::Crash), "a log was cut back"),
    (Some(Mode::Byzantine), "a new view carried over what was prepared"),
    (Some(Mode::Byzantine), "a view had to be skipped"),
    (Some(Mode::Byzantine), "a view was entered behind the first"),
    (Some(Mode::Byzantine), "a damaged state was noticed"),
    (Some(Mode::Byzantine), "a damaged state was repaired"),
];

impl Totals {
    /// Adds a run.
    pub fn add(&mut self, plan: &Plan, outcome: &Outcome) {
        let struck =
            || outcome.strikes.iter().filter(|(_, (_, effects))| *effects > 0).map(|(nemesis, _)| *nemesis);
        let is_byzantine = plan.mode == Mode::Byzantine;
        let calm = outcome.calm_micros;
        self.merge(&Self {
            calm_micros: if is_byzantine { (0, calm) } else { (calm, 0) },
            pairs: struck()
                .flat_map(|one| struck().map(move |other| (one, other)))
                .filter(|(one, other)| one < other)
                .collect(),
            seeds: 1,
            byzantine: u64::from(is_byzantine),
            micros: outcome.micros,
            operations: outcome.operations,
            unknown: outcome.unknown,
            events: outcome.events,
            traces: u64::from_be_bytes(outcome.trace_hash[..8].try_into().expect("eight of 32 bytes")),
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
        self.traces ^= other.traces;
        self.calm_micros.0 = self.calm_micros.0.max(other.calm_micros.0);
        self.calm_micros.1 = self.calm_micros.1.max(other.calm_micros.1);
        self.pairs.extend(&other.pairs);
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
        let possible = Nemesis::of(Kind::Sim).filter(|nemesis| self.can_strike(*nemesis));
        let idle = possible.filter(idle).map(|nemesis| {
            format!("{} had no effect ({})", nemesis.name(), nemesis.effect(Kind::Sim).unwrap_or_default())
        });
        let apart = self.possible_pairs().into_iter().filter(|pair| !self.pairs.contains(pair));
        let apart =
            apart.map(|(one, other)| format!("{} and {} never worked together", one.name(), other.name()));
        let wanted = INTERESTING.into_iter().filter(|(mode, _)| mode.is_none_or(|mode| self.has(mode)));
        let never = wanted.filter(|(_, what)| !self.reached.contains_key(what));
        idle.chain(apart).chain(never.map(|(_, what)| format!("it never happened that {what}"))).collect()
    }

    fn has(&self, mode: Mode) -> bool {
        match mode {
            Mode::Crash => self.byzantine < self.seeds,
            Mode::Byzantine => self.byzantine > 0,
        }
    }

    fn can_strike(&self, nemesis: Nemesis) -> bool {
        match (nemesis.is_byzantine(), nemesis.needs_crash()) {
            (true, _) => self.has(Mode::Byzantine),
            (false, true) => self.has(Mode::Crash),
            (false, false) => true,
        }
    }

    /// Pairs of nemeses that one of these runs can have. Rot is a fault of honest nodes, so it comes without lies.
    #[must_use]
    pub fn possible_pairs(&self) -> Vec<(Nemesis, Nemesis)> {
        let all = || Nemesis::of(Kind::Sim).filter(|nemesis| self.can_strike(*nemesis));
        let pairs = all().flat_map(|one| all().map(move |other| (one, other)));
        let is_possible = |(one, other): &(Nemesis, Nemesis)| {
            let is_of_both_modes =
                (one.is_byzantine() && other.needs_crash()) || (one.needs_crash() && other.is_byzantine());
            one < other && !is_of_both_modes && (*one, *other) != (Nemesis::Rot, Nemesis::Lies)
        };
        pairs.filter(is_possible).collect()
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
