//! What one seed makes of everything: sizes, speeds, and which nemeses are at work. Each is off in half of the seeds (swarm
//! testing: Groce et al., "Swarm Testing", 2012), because faults that are always on hide one another.

use crate::nemesis::Nemesis;
use crate::random::Random;
use crate::workload::Workload;
use crate::world::Kind;
use clap::ValueEnum;
use std::collections::BTreeSet;
use std::fmt;
use tetrachord_consensus::Mutation;
use tetrachord_consensus::pbft::{Lie, Window};

/// Crash or Byzantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Multi-Paxos.
    Crash,
    /// PBFT.
    Byzantine,
}

/// A defect of what is around the nodes: a disk that breaks its part of the bargain. In tests of the tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Defect {
    /// Everything does what it should.
    #[default]
    None,
    /// Disks say that a commit is durable before it is.
    EarlyBarrier,
    /// A node that restarts begins anew, as if it had never promised anything.
    Amnesia,
}

impl Defect {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::EarlyBarrier, Self::Amnesia];
}

/// Without an answer for so long a client gives a request up, in milliseconds.
const DEADLINE_MILLIS: u64 = 6_000;

/// So are those that have little patience: much of what they ask is under way when they cancel it.
const HASTY_MILLIS: u64 = 2_500;

/// States are read through this often, in milliseconds.
const SCRUB_MILLIS: u64 = 3_000;

/// A run, as its seed draws it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Decides everything else.
    pub seed: u64,
    /// Which protocol.
    pub mode: Mode,
    /// How many nodes.
    pub nodes: usize,
    /// How many of them have a replica of each group.
    pub replicas: usize,
    /// How many groups.
    pub groups: usize,
    /// How many clients.
    pub clients: usize,
    /// How many keys.
    pub keys: u64,
    /// How long a client thinks between two operations, about, in microseconds.
    pub think_micros: u64,
    /// What clients do.
    pub workload: Workload,
    /// What goes wrong.
    pub nemeses: BTreeSet<Nemesis>,
    /// How long things go wrong, in virtual milliseconds.
    pub millis: u64,
    /// How often, of a thousand times, a node is killed when it has just said something and its disk is behind.
    pub bad_moments_per_mille: u64,
    /// Between two faults, about, in virtual milliseconds.
    pub fault_every: u64,
    /// One way through the network at least, in microseconds.
    pub delay_micros: u64,
    /// One barrier at least, in microseconds.
    pub barrier_micros: u64,
    /// What the tree takes for a row, in microseconds: where it is much, few rows stand for a large state.
    pub row_micros: u64,
    /// Whether all programs ask one client.
    pub is_shared: bool,
    /// Whether nodes may greet with an atlas of long ago, in which other groups own everything.
    pub has_old_maps: bool,
    /// How long a client waits for what becomes of a request, in milliseconds.
    pub deadline_millis: u64,
    /// What it takes besides for a row of a whole state, so that few of them stand for many.
    pub state_row_micros: u64,
    /// Bytes at which the log is rewritten.
    pub log_bytes_max: u64,
    /// Bytes of entries that are kept for those that lag.
    pub retain_bytes: usize,
    /// Bytes of entries that are kept besides for those that are there and lag.
    pub pinned_bytes: usize,
    /// Bytes of written state that are kept in memory.
    pub overlay_bytes_max: usize,
    /// Bytes of entries in one message.
    pub message_bytes: usize,
    /// Entries that a leader sends to a replica ahead of its acknowledgements.
    pub window_entries: usize,
    /// Byzantine mode: how often there are checkpoints, and how far agreement runs ahead.
    pub window: Window,
    /// Byzantine mode: what waits for so long costs a primary its view, in milliseconds.
    pub request_millis: u64,
    /// Byzantine mode: between two scrubs of a state, in milliseconds; 0 for none.
    pub scrub_millis: u64,
    /// Requests in one burst of a client that means no good.
    pub flood_requests: u32,
    /// Byzantine mode: the only lie that liars tell, if they do not tell one after the other.
    pub lie: Option<Lie>,
    /// Byzantine mode: clients show all replicas at once what they ask, and not only when they are not answered.
    pub shows_all: bool,
    /// Byzantine mode: nothing is wrong but clients, so that no primary may lose its view.
    pub keeps_view: bool,
    /// Byzantine mode: in the end, after a long rest, a primary falls silent.
    pub ends_silent: bool,
    /// A deliberate defect, in tests of the tests.
    pub mutation: Mutation,
    /// The same, of what is around the nodes.
    pub defect: Defect,
}

impl Plan {
    /// What the seed draws.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        Self::draw_in(seed, None)
    }

    /// The same, in this mode whatever the seed says.
    #[must_use]
    pub fn draw_in(seed: u64, mode: Option<Mode>) -> Self {
        let mut random = Random::new(seed ^ 0x6a65_7073_656e);
        let drawn = if random.below(5) == 0 { Mode::Byzantine } else { Mode::Crash };
        let mode = mode.unwrap_or(drawn);
        let is_possible = |nemesis: &Nemesis| match mode {
            Mode::Byzantine => !nemesis.needs_crash(),
            Mode::Crash => !nemesis.is_byzantine(),
        };
        let drawn = Nemesis::of(Kind::Sim).filter(is_possible).filter(|nemesis| !nemesis.is_of_client());
        let nemeses = drawn.filter(|_| random.coin()).collect();
        let (nodes, replicas) = match mode {
            Mode::Byzantine => [(4, 4), (4, 4), (4, 4), (7, 7)][random.index(4)],
            Mode::Crash => [(3, 3), (3, 3), (5, 3), (5, 5)][random.index(4)],
        };
        // Nodes and groups on a ring that is longer than a group.
        let wide = [(8, 8), (8, 8), (5, 3), (6, 2)];
        // With all that a slot of Byzantine mode keeps, a small batch takes more than an entry.
        let slots_kept = if mode == Mode::Crash { 1 } else { 6 };
        let (think_micros, longer) = [(0, 1), (5_000, 1), (50_000, 2), (300_000, 4)][random.index(4)];
        let mut plan = Self {
            seed,
            mode,
            think_micros,
            nodes,
            replicas,
            groups: if mode == Mode::Crash { random.index(3) + 1 } else { 1 },
            clients: random.index(4) + 2,
            keys: random.between(1, 4),
            workload: Workload::ALL[random.index(Workload::ALL.len())],
            nemeses,
            millis: random.between(4_000, 12_000) * longer,
            bad_moments_per_mille: [0, 1, 1, 10][random.index(4)],
            fault_every: random.between(150, 1_500),
            delay_micros: random.between(50, 2_000),
            barrier_micros: random.between(100, 4_000),
            row_micros: 0,
            is_shared: false,
            has_old_maps: false,
            deadline_millis: DEADLINE_MILLIS,
            state_row_micros: 0,
            log_bytes_max: [15_000, 60_000, 400_000][random.index(3)],
            retain_bytes: slots_kept * [1_000, 4_000, 40_000][random.index(3)],
            // Drawn apart, as for greedy clients: those that lag must need whole states often enough.
            pinned_bytes: slots_kept * [0, 10_000, 200_000][Random::new(seed ^ 0x7069_6e73).index(3)],
            overlay_bytes_max: [600, 20_000, 1 << 20][random.index(3)],
            message_bytes: [300, 4_000, 256 << 10][random.index(3)],
            window_entries: [3, 32, 1024][random.index(3)],
            window: [
                Window { interval: 8, length: 32 },
                Window { interval: 4, length: 8 },
                Window::default(),
            ][random.index(3)],
            request_millis: [400, 400, 1_000][random.index(3)],
            scrub_millis: SCRUB_MILLIS,
            flood_requests: 20,
            lie: (random.below(4) == 0).then(|| Lie::ALL[random.index(Lie::ALL.len())]),
            shows_all: false,
            keeps_view: false,
            ends_silent: false,
            mutation: Mutation::None,
            defect: Defect::None,
        };
        if mode == Mode::Byzantine && random.below(3) == 0 {
            (plan.nodes, plan.groups) = wide[random.index(wide.len())];
            plan.replicas = 4;
        }
        plan.row_micros = [0, 0, 0, 20_000][random.index(4)];
        // Its messages are many: they must not hide in every other run what few do.
        if random.below(4) == 0 {
            plan.nemeses.insert(Nemesis::Flood);
        }
        // Drawn apart, so that the other faults of a seed are what they were before there were greedy clients. Thousands of sessions are no
        // small state that stands for a large one.
        let is_greedy = Random::new(seed ^ 0x6772_6565_6479).below(4) == 0;
        if is_greedy && plan.row_micros == 0 {
            plan.nemeses.insert(Nemesis::GreedyClient);
        }
        plan.is_shared = Random::new(seed ^ 0x7368_6172_6564).below(3) == 0;
        // In Byzantine mode clients believe nobody about the ring.
        plan.has_old_maps = mode == Mode::Crash && Random::new(seed ^ 0x6f6c_646d_6170).below(3) == 0;
        // In Byzantine mode nothing is cancelled.
        if mode == Mode::Crash && Random::new(seed ^ 0x6861_7374_6520).below(4) == 0 {
            plan.deadline_millis = HASTY_MILLIS;
        }
        if mode == Mode::Byzantine {
            plan.draw_clients_and_rest(&mut Random::new(seed ^ 0x0073_7461_6c65));
        }
        plan
    }

    /// Drawn apart as well.
    fn draw_clients_and_rest(&mut self, random: &mut Random) {
        if random.below(4) == 0 {
            self.nemeses.insert(Nemesis::StaleRequests);
        }
        self.shows_all = random.below(4) == 0;
        let may_fall_silent = random.below(8) == 0;
        if random.below(8) == 0 {
            self.nemeses.retain(|nemesis| nemesis.is_of_client());
            (self.row_micros, self.keeps_view) = (0, true);
        }
        // No more than `f` are faulty, the one that falls silent among them.
        let is_nobody_faulty = !self.has(Nemesis::Lies) && !self.has(Nemesis::Rot);
        self.ends_silent = may_fall_silent && is_nobody_faulty && !self.keeps_view && self.groups == 1;
        if self.has(Nemesis::Lies) && random.below(5) == 0 {
            self.lie = Some([Lie::FalseState, Lie::EndlessState][random.index(2)]);
        }
        if self.has(Nemesis::Lies) && matches!(self.lie, Some(Lie::FalseState | Lie::EndlessState)) {
            self.need_states();
        }
        self.let_liars_lead();
    }

    /// A liar that leads orders something for ever. Where nothing of that is kept for whoever lacks a state, and one disk takes those of
    /// several groups in turn, a slow disk would never be level (2,000 runs of eight groups had one such, seed 1579).
    pub fn let_liars_lead(&mut self) {
        if self.has(Nemesis::Lies) && self.groups > 1 && self.pinned_bytes == 0 {
            self.row_micros = 0;
        }
    }

    /// Whoever was away for a moment lacks a whole state.
    fn need_states(&mut self) {
        (self.retain_bytes, self.pinned_bytes) = (0, 0);
        self.nemeses.extend([Nemesis::Kill, Nemesis::Isolate]);
    }

    /// A run of three nodes, or four in Byzantine mode, in which nothing goes wrong by itself: for those that are told step by step.
    #[must_use]
    pub fn quiet(mode: Mode, seed: u64) -> Self {
        let nodes = if mode == Mode::Crash { 3 } else { 4 };
        Self {
            nodes,
            replicas: nodes,
            groups: 1,
            clients: 4,
            keys: 4,
            think_micros: 0,
            workload: Workload::ALL[0],
            nemeses: BTreeSet::new(),
            bad_moments_per_mille: 0,
            delay_micros: 200,
            barrier_micros: 200,
            row_micros: 0,
            is_shared: false,
            has_old_maps: false,
            deadline_millis: DEADLINE_MILLIS,
            shows_all: false,
            keeps_view: false,
            ends_silent: false,
            log_bytes_max: 60_000,
            retain_bytes: if mode == Mode::Crash { 4_000 } else { 24_000 },
            overlay_bytes_max: 20_000,
            message_bytes: 4_000,
            window_entries: 32,
            window: Window { interval: 8, length: 32 },
            request_millis: 400,
            ..Self::draw_in(seed, Some(mode))
        }
    }

    /// Whether this goes wrong in the run.
    #[must_use]
    pub fn has(&self, nemesis: Nemesis) -> bool {
        self.nemeses.contains(&nemesis)
    }

    /// The place of a node that seeds choose evenly.
    #[must_use]
    pub fn unlucky(&self, number: usize) -> usize {
        usize::try_from(self.seed.wrapping_add(number as u64) % self.nodes as u64).expect("few nodes")
    }

    /// The places of the nodes that may lie, forget, or be wrong about their state: the same ones in the whole run. A group has its
    /// replicas on nodes that follow one another, so no group has more of these than it survives.
    #[must_use]
    pub fn faulty(&self) -> Vec<usize> {
        // The first primary is among those that lie.
        let first = if self.has(Nemesis::Lies) { 1 } else { self.unlucky(0) };
        let stretches = (0..self.nodes / self.replicas).map(|stretch| first + stretch * self.replicas);
        stretches.flat_map(|from| (from..from + self.liars()).map(|place| place % self.nodes)).collect()
    }

    /// How many replicas of a group may lie, or be wrong about their state, at a time.
    #[must_use]
    pub fn liars(&self) -> usize {
        if self.mode == Mode::Byzantine { (self.replicas - 1) / 3 } else { 0 }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nemeses: Vec<&str> = self.nemeses.iter().map(|nemesis| nemesis.name()).collect();
        write!(
            f,
            "{:?} mode, {} nodes, {} groups of {} replicas, {} clients on {} keys ({}){}, thinking {} ms, {} ms of: {}",
            self.mode,
            self.nodes,
            self.groups,
            self.replicas,
            self.clients,
            self.keys,
            self.workload.name(),
            if self.has_old_maps { " with old maps" } else { "" },
            self.think_micros / 1_000,
            self.millis,
            if nemeses.is_empty() { "nothing".to_string() } else { nemeses.join(", ") }
        )
    }
}
