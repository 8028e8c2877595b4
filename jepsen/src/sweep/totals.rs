//! What many runs came to together, and what never happened in them.

use super::missing::{INTERESTING, Missing};
use crate::nemesis::Nemesis;
use crate::plan::{Mode, Plan};
use crate::world::Kind;
use crate::world::sim::Outcome;
use std::collections::{BTreeMap, BTreeSet};
use tetrachord_consensus::pbft::Lie;

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
    /// How often each lie was told and changed something.
    pub lies: BTreeMap<Lie, u64>,
    /// Interesting things that happened.
    pub reached: BTreeMap<&'static str, u64>,
}

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
            lies: outcome.lies.clone(),
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
        for (lie, told) in &other.lies {
            *self.lies.entry(*lie).or_default() += told;
        }
        for (what, count) in &other.reached {
            *self.reached.entry(what).or_default() += count;
        }
    }

    /// Nemeses that changed nothing in all of the runs, lies that were never told, and interesting things that never happened. Of few runs nothing can be
    /// said.
    #[must_use]
    pub fn missing(&self) -> Vec<Missing> {
        let is_idle = |nemesis: &Nemesis| self.strikes.get(nemesis).is_none_or(|(_, effects)| *effects == 0);
        let possible = Nemesis::of(Kind::Sim).filter(|nemesis| self.can_strike(*nemesis));
        let idle = possible.filter(is_idle).map(Missing::Idle);
        let apart = self.possible_pairs().into_iter().filter(|pair| !self.pairs.contains(pair));
        let apart = apart.map(|(one, other)| Missing::Apart(one, other));
        let wanted = INTERESTING.iter().filter(|it| it.mode.is_none_or(|mode| self.has(mode)));
        let never = wanted.filter(|it| !self.reached.contains_key(it.what)).map(Missing::Never);
        let is_untold = |lie: &Lie| self.has(Mode::Byzantine) && !self.lies.contains_key(lie);
        let untold = Lie::ALL.into_iter().filter(is_untold).map(Missing::Untold);
        idle.chain(apart).chain(never).chain(untold).collect()
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
