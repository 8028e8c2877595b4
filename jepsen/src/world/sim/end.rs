//! How a run ends: faults stop, the nodes must answer and become equal within a bound of virtual time, and the history of the clients
//! is judged.

use super::World;
use super::client::Client;
use super::node::Node;
use crate::nemesis::Nemesis;
use crate::plan::Mode;
use std::collections::{BTreeMap, BTreeSet};
use tetrachord_checker::{History, Limits, Operation, Verdict, check};

/// Once faults stop, the nodes must answer and be equal within so many virtual milliseconds. In Byzantine mode replicas that have
/// lost their patience with many primaries in a row wait for up to a minute for the next one.
const CALM_MILLIS: u64 = 10_000;
const BYZANTINE_CALM_MILLIS: u64 = 60_000;

/// Where less is pinned for those that lag than clients write while a state is taken, whoever takes one needs a second one when they are
/// done: it gets the time twice.
const PINNED_FOR_A_STATE: usize = 200_000;

/// And where nodes lie, each client has been answered so many times in a row within half of a patience before this long is over. A
/// primary that makes everybody wait as long as it can without being replaced for silence is replaced by then.
const QUICK_MILLIS: u64 = 180_000;
const QUICK_ANSWERS: u64 = 3;

/// How long nothing is asked before a primary falls silent: longer than a dozen views can fail in a run.
const REST_MILLIS: u64 = 240_000;

/// What is asked then waits for the client to show it to all, for two patiences, and for so much longer at most.
const SILENT_MILLIS: u64 = 1_500;

/// Between two looks.
const SLICE_MICROS: u64 = 200_000;

/// How long the judge searches; histories here are short.
const JUDGE: Limits = Limits { configurations: 1_000_000 };

impl World {
    /// Faults stop, lies go on. Everybody answers and is equal again within a bound.
    pub(super) fn calm(&mut self) {
        self.end_faults();
        let begin = self.now;
        let millis = if self.plan.mode == Mode::Crash { CALM_MILLIS } else { BYZANTINE_CALM_MILLIS };
        self.await_answers(millis, 3, "the cluster does not come back after faults stopped");
        let answered_at = self.now;
        if self.plan.has(Nemesis::Lies) && self.plan.row_micros == 0 {
            self.await_quick_answers();
        }
        self.clients.iter_mut().for_each(|client| client.is_done = true);
        // The bound is for both, without the time that was taken to see how quick answers are.
        let states = if self.plan.pinned_bytes < PINNED_FOR_A_STATE { 2 } else { 1 };
        let end = begin + states * (millis * 1_000 + self.rows_take()) + (self.now - answered_at);
        while self.violation.is_none() && self.now < end {
            self.run_until(self.now + SLICE_MICROS);
            if self.is_even() {
                self.calm_micros = self.now - begin;
                return self.rest_and_fall_silent();
            }
        }
        if self.violation.is_none() {
            let states = self.describe();
            self.violate(|| format!("honest nodes do not become equal after faults stopped\n{states}"));
        }
    }

    /// What a slow disk takes in any case for the states of all of a node's groups, in microseconds: each row is staged, put in place, and
    /// no longer staged.
    fn rows_take(&self) -> u64 {
        let rows = self.nodes.iter().map(|node| node.disk.rows(b"d").len()).max().unwrap_or(0);
        3 * rows as u64 * self.plan.row_micros
    }

    fn end_faults(&mut self) {
        self.is_calm = true;
        self.heal();
        self.set_clocks();
        for index in 0..self.nodes.len() {
            self.empty_disk(index);
            self.put_own_disk_back(index, false);
            self.resume(index);
            if self.nodes[index].core.is_none() {
                self.start(index);
            }
        }
    }

    /// Goes on until every client has been answered so often, or says what is wrong.
    fn await_answers(&mut self, millis: u64, answers: u64, wrong: &str) {
        let before: Vec<u64> = self.clients.iter().map(|client| client.answered).collect();
        self.await_clients(millis, wrong, |index, client| client.answered >= before[index] + answers);
    }

    fn await_quick_answers(&mut self) {
        self.is_hasty = true;
        self.clients.iter_mut().for_each(|client| client.quick = 0);
        let wrong = "a primary makes everybody wait, and is not replaced";
        self.await_clients(QUICK_MILLIS, wrong, |_, client| client.quick >= QUICK_ANSWERS);
        self.is_hasty = false;
    }

    fn await_clients(&mut self, millis: u64, wrong: &str, is_content: impl Fn(usize, &Client) -> bool) {
        let end = self.now + millis * 1_000;
        let is_well =
            |world: &Self| world.clients.iter().enumerate().all(|(index, client)| is_content(index, client));
        while self.violation.is_none() && self.now < end && !is_well(self) {
            self.run_until(self.now + SLICE_MICROS);
        }
        if !is_well(self) {
            let states = self.describe();
            self.violate(|| format!("{wrong}\n{states}"));
        }
    }

    /// Whatever made views fail before, after a long rest the next primary that falls silent is replaced soon.
    fn rest_and_fall_silent(&mut self) {
        if !self.plan.ends_silent {
            return;
        }
        self.run_until(self.now + REST_MILLIS * 1_000);
        let place = self.tenures[0].clone();
        let Some(primary) = self.primary_of(&place) else { return };
        self.trace.note(|| format!("n{} falls silent after a long rest", primary + 1));
        self.reach("a primary fell silent after a long rest");
        let kept = self.nodes[primary].disk.pending();
        self.crash(primary, kept);
        self.clients.iter_mut().for_each(|client| client.is_done = false);
        let millis = 2 * self.plan.request_millis + SILENT_MILLIS;
        self.await_answers(millis, 1, "a primary that falls silent after a long rest is not replaced soon");
    }

    /// Whether nobody waits any more, and all honest replicas of each group have applied the same.
    fn is_even(&self) -> bool {
        let mut applied: BTreeMap<u128, BTreeSet<u64>> = BTreeMap::new();
        for core in self.nodes.iter().filter(|node| !node.lies).filter_map(|node| node.core.as_ref()) {
            for group in core.groups() {
                applied.entry(group.tenure().group().0).or_default().insert(group.machine().reached().slot);
            }
        }
        self.clients.iter().all(Client::is_idle) && applied.values().all(|slots| slots.len() == 1)
    }

    pub(super) fn describe(&self) -> String {
        let describe = |node: &Node| match &node.core {
            Some(core) => {
                format!("lies={} {:?}\n", node.lies, core.status().groups)
            }
            None => "down\n".to_string(),
        };
        self.nodes.iter().map(describe).collect()
    }

    /// What clients saw must have an explanation.
    pub(super) fn judge(&mut self) {
        let open: Vec<Operation> = self.clients.iter_mut().filter_map(Client::give_up).collect();
        self.history.extend(open);
        if self.violation.is_some() {
            return;
        }
        let history = match History::new(std::mem::take(&mut self.history), 0) {
            Ok(history) => history,
            Err(error) => {
                return self.violate(|| format!("the clients of this simulator are wrong: {error}"));
            }
        };
        let judgement = check(&history, JUDGE);
        match judgement.verdict {
            Verdict::Violation { key } => {
                let example = tetrachord_checker::counterexample::find(&history, &key);
                let why = example.map(|example| example.explanation).unwrap_or_default();
                self.violate(|| format!("not linearizable: {why}"));
            }
            Verdict::Linearizable => {}
            Verdict::Undecided { .. } => self.reach("a history that was too hard to judge"),
        }
        self.history = history.into_operations();
    }
}
