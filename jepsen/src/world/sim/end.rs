//! How a run ends: faults stop, the nodes must answer and become equal within a bound of virtual time, and the history of the clients
//! is judged.

use super::World;
use super::client::Client;
use super::node::Node;
use crate::plan::Mode;
use std::collections::{BTreeMap, BTreeSet};
use tetrachord_checker::{History, Limits, Operation, Verdict, check};

/// Once faults stop, the nodes must answer and be equal within so many virtual milliseconds. In Byzantine mode replicas that have
/// lost their patience with many primaries in a row wait for up to a minute for the next one.
const CALM_MILLIS: u64 = 10_000;
const BYZANTINE_CALM_MILLIS: u64 = 60_000;

/// How long the judge searches; histories here are short.
const JUDGE: Limits = Limits { configurations: 1_000_000 };

impl World {
    /// Faults stop, lies go on. Everybody answers and is equal again within a bound.
    pub(super) fn calm(&mut self) {
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
        let begin = self.now;
        let answered: Vec<u64> = self.clients.iter().map(|client| client.answered).collect();
        let millis = if self.plan.mode == Mode::Crash { CALM_MILLIS } else { BYZANTINE_CALM_MILLIS };
        let end = begin + millis * 1_000;
        let mut is_well = false;
        while !is_well && self.now < end && self.violation.is_none() {
            let slice = self.now + 200_000;
            self.run_until(slice);
            let mut clients = self.clients.iter().zip(&answered);
            is_well = clients.all(|(client, before)| client.answered >= before + 3);
        }
        if !is_well {
            let states = self.describe();
            self.violate(|| format!("the cluster does not come back after faults stopped\n{states}"));
        }
        self.clients.iter_mut().for_each(|client| client.is_done = true);
        while self.violation.is_none() && self.now < end {
            let slice = self.now + 200_000;
            self.run_until(slice);
            if self.is_even() {
                self.calm_micros = self.now - begin;
                return;
            }
        }
        if self.violation.is_none() {
            let states = self.describe();
            self.violate(|| format!("honest nodes do not become equal after faults stopped\n{states}"));
        }
    }

    /// Whether nobody waits any more, and all honest replicas of each group have applied the same.
    fn is_even(&self) -> bool {
        let mut applied: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        for core in self.nodes.iter().filter(|node| !node.lies).filter_map(|node| node.core.as_ref()) {
            for group in core.groups() {
                applied.entry(group.place().id.0).or_default().insert(group.machine().applied().slot);
            }
        }
        self.clients.iter().all(Client::is_idle) && applied.values().all(|slots| slots.len() == 1)
    }

    fn describe(&self) -> String {
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
