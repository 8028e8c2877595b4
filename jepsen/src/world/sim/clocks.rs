//! Wall clocks: who may have a wrong one, and what log time may come of it.
//!
//! | invariant | source |
//! |---|---|
//! | log time is never later than what a majority of a group's clocks has reached, each of them now or once, with what passed since | bounded clocks |
//!
//! Where at most a minority of a group's clocks is wrong in a run, no session ends for want of use: that is for the clients to see.

use super::World;
use super::network::index_of;
use crate::nemesis::Nemesis;
use crate::plan::Mode;
use std::collections::BTreeMap;
use tetrachord::ring::{GroupId, NodeId};

/// Microseconds by which log time may be ahead all the same: what another clock says is reckoned with the own one, which may be a
/// fifth too fast, for as long as the other is silent; in Byzantine mode, how far ahead of its own clock a replica lets a primary be.
const SLACK_MICROS: u64 = 30_000_000;

const HOUR_MICROS: i64 = 3_600_000_000;
const YEAR_MICROS: i64 = 365 * 24 * HOUR_MICROS;

/// The latest time that each node's clock ever showed or would show by now, and when that was reckoned. A leader may know a clock from
/// before it was put right, another from after it jumped ahead: it counts both.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    latest: BTreeMap<NodeId, (u64, u64)>,
}

impl World {
    /// Whether any number of clocks may be wrong in this run, so that log time may come to lie ahead.
    pub(super) fn may_clocks_all_be_wrong(&self) -> bool {
        self.plan.mode == Mode::Crash && self.plan.has(Nemesis::ClockJump) && self.plan.seed % 4 == 3
    }

    /// Clocks are wrong before anything else has happened.
    pub(super) fn start_clocks(&mut self) {
        if self.plan.has(Nemesis::ClockJump) && self.random.per_mille(500) {
            self.jump_clock();
        }
        self.reckon_clocks();
    }

    /// A clock jumps, by up to an hour or, where no majority can come to be wrong, by up to two years.
    pub(super) fn jump_clock(&mut self) {
        let all = self.may_clocks_all_be_wrong();
        let victim = if all { self.random.index(self.nodes.len()) } else { self.victim() };
        let most = if all || self.random.per_mille(500) { HOUR_MICROS } else { 2 * YEAR_MICROS };
        let span = u64::try_from(2 * most).expect("it is positive");
        self.nodes[victim].wall_offset = self.random.below(span).cast_signed() - most;
        self.reckon_clocks();
        self.count(Nemesis::ClockJump, 1, 1);
    }

    /// One of those that may have a wrong clock: in no group more than a minority, or in Byzantine mode than there may be faulty.
    fn victim(&mut self) -> usize {
        let wrong = match self.plan.mode {
            Mode::Crash => (self.plan.replicas - 1) / 2,
            Mode::Byzantine => return self.plan.unlucky(0),
        };
        let stretches = self.plan.nodes / self.plan.replicas;
        let (stretch, place) = (self.random.index(stretches.max(1)), self.random.index(wrong.max(1)));
        (self.plan.unlucky(0) + stretch * self.plan.replicas + place) % self.plan.nodes
    }

    /// Clocks have changed: what they allow now counts from now on.
    pub(super) fn reckon_clocks(&mut self) {
        let nodes: Vec<NodeId> = self.tenures.iter().flat_map(|tenure| tenure.nodes()).collect();
        nodes.into_iter().for_each(|node| _ = self.latest_of(node));
    }

    fn latest_of(&mut self, node: NodeId) -> u64 {
        let wall = self.nodes[index_of(node)].wall(self.now).0;
        let (before, at) = self.clocks.latest.get(&node).copied().unwrap_or_default();
        let latest = (before + (self.now - at)).max(wall);
        self.clocks.latest.insert(node, (latest, self.now));
        latest
    }

    fn latest_time(&mut self, group: GroupId) -> u64 {
        let nodes: Vec<NodeId> = self.tenure(group).expect("it is in the ring").nodes().collect();
        let mut latest: Vec<u64> = nodes.into_iter().map(|node| self.latest_of(node)).collect();
        latest.sort_unstable_by(|a, b| b.cmp(a));
        latest[latest.len() / 2]
    }

    /// A slot with this time was applied for the first time. What is wrong with that, if anything.
    pub(super) fn check_time(&mut self, group: GroupId, slot: u64, time: u64) -> Option<String> {
        let latest = self.latest_time(group);
        let ahead = time.saturating_sub(latest);
        (ahead > SLACK_MICROS).then(|| {
            format!(
                "log time of {group} is {} s ahead of a majority of its clocks at slot {slot}",
                ahead / 1_000_000
            )
        })
    }
}
