//! A node of the simulated world: the core of production, a disk that forgets what was not synced, clocks, a pool.

use super::{Event, TICK_MICROS, World};
use crate::nemesis::Nemesis;
use crate::plan::{Defect, Mode, Plan};
use std::collections::BTreeSet;
use tetrachord::group::{Byzantine, Settings};
use tetrachord::limits::Limits;
use tetrachord::node::checks::Checks;
use tetrachord::node::core::{NodeCore, NodeEvent, NodeSettings, Room};
use tetrachord::ring::{Member, NodeId, QuorumRule, StoreId, Tenure, TenureId, found};
use tetrachord::storage::CommitId;
use tetrachord::storage::memory::MemoryDisk;
use tetrachord::wire::ProcessStats;
use tetrachord_consensus::pbft::{ClientSigner, Lie, Unverified};
use tetrachord_consensus::{Options, Ticks, Timestamp};

use super::network::Parcel;

/// When virtual time begins, in microseconds since the Unix epoch.
pub(super) const EPOCH_MICROS: u64 = 1_700_000_000_000_000;

pub(super) const CLUSTER: [u8; 32] = [5; 32];

pub(super) struct Node {
    pub(super) disk: MemoryDisk,
    pub(super) core: Option<NodeCore>,
    /// Counts starts: what was under way for an earlier life counts for nothing.
    pub(super) life: u64,
    pub(super) checks: Checks<(TenureId, Box<Unverified>)>,
    pub(super) is_checking: bool,
    is_syncing: bool,
    pub(super) is_writing: bool,
    /// The commit whose rows of a whole state are counted already in the time that its tree takes.
    counted: Option<CommitId>,
    pub(super) is_paused: bool,
    pub(super) stalled: Vec<Parcel>,
    /// Nodes with which it has a new link since it was paused.
    pub(super) missed_links: BTreeSet<usize>,
    pub(super) lies: bool,
    /// Whether a row was changed and the state was not repaired since.
    pub(super) is_rotten: bool,
    pub(super) lie_turn: u64,
    /// Whether what it uses is not its own disk, which is kept for it here.
    pub(super) stranger: Option<(Stranger, MemoryDisk)>,
    /// An older copy of its disk.
    pub(super) copy: Option<MemoryDisk>,
    /// Whether it is that copy and runs where no other node hears it, nor is heard by it.
    pub(super) is_apart: bool,
    /// Whether it was just told what cannot be, so that it may stop.
    pub(super) is_told_nonsense: bool,
    /// Parts of its groups' states that it asked others for, while it was honest.
    pub(super) parts_taken: usize,
    /// Whether its disk is almost full.
    pub(super) is_short: bool,
    /// Its disk takes nothing until then.
    pub(super) hung_until: u64,
    /// Whether something has waited for it since.
    pub(super) is_hang_felt: bool,
    /// When this life began, and how many thousandths of real time its clock runs.
    started: u64,
    pub(super) rate_per_mille: u64,
    /// Of the wall clock, in microseconds.
    pub(super) wall_offset: i64,
}

/// What a node may find in the place of its own disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stranger {
    /// An empty one, as if it had never run.
    Empty,
    /// An older copy of its own.
    Copy,
}

/// Names of stores: those of nodes first, then those of empty disks.
pub(super) fn store_name(number: u64) -> StoreId {
    StoreId(u128::from(number + 1).to_be_bytes())
}

/// The signing secret of a node, or of a client.
pub(super) fn secret(index: usize) -> [u8; 32] {
    [u8::try_from(index + 1).expect("few nodes and clients"); 32]
}

fn public(index: usize) -> [u8; 32] {
    ClientSigner::new(&secret(index)).name().0
}

/// Commits that a defective disk has not written when it says so.
const EARLY_COMMITS: usize = 2;

/// Clients' secrets lie behind those of nodes.
pub(super) const CLIENT_SECRETS: usize = 100;

impl Node {
    pub(super) fn new(index: usize, plan: &Plan) -> Self {
        Self {
            disk: MemoryDisk::named(store_name(index as u64)),
            core: None,
            life: 0,
            checks: Checks::default(),
            is_checking: false,
            is_syncing: false,
            is_writing: false,
            counted: None,
            is_paused: false,
            stalled: Vec::new(),
            missed_links: BTreeSet::new(),
            is_rotten: false,
            lies: plan.has(Nemesis::Lies) && plan.faulty().contains(&index),
            lie_turn: 0,
            stranger: None,
            copy: None,
            is_apart: false,
            is_told_nonsense: false,
            parts_taken: 0,
            is_short: false,
            hung_until: 0,
            is_hang_felt: false,
            started: 0,
            rate_per_mille: 1_000,
            wall_offset: 0,
        }
    }

    pub(super) fn is(&self, life: u64) -> bool {
        self.core.is_some() && self.life == life
    }

    /// Whether it is one of the faulty, so that it may say anything.
    pub(super) fn is_excused(&self) -> bool {
        self.lies || matches!(self.stranger, Some((Stranger::Copy, _)))
    }

    fn ticks(&self, now: u64) -> Ticks {
        Ticks(1 + (now - self.started) * self.rate_per_mille / 1_000_000)
    }

    pub(super) fn wall(&self, now: u64) -> Timestamp {
        Timestamp((EPOCH_MICROS + now).saturating_add_signed(self.wall_offset))
    }
}

/// The tenures that the cluster begins with.
pub(super) fn tenures(plan: &Plan) -> Vec<Tenure> {
    let is_byzantine = plan.mode == Mode::Byzantine;
    let quorums = if is_byzantine { QuorumRule::Byzantine } else { QuorumRule::majority(plan.replicas) };
    let founded = found((plan.groups, plan.replicas, plan.nodes), quorums, |node, _| {
        let key = public(super::network::index_of(node));
        let signing = is_byzantine.then_some(key);
        Member { node, key, signing, epoch_key: signing }
    });
    // There was a time before, which old maps show.
    founded.into_iter().map(|tenure| Tenure { generation: 1, ..tenure }).collect()
}

impl World {
    fn settings(&mut self, index: usize) -> NodeSettings {
        let plan = &self.plan;
        let options = Options {
            seed: self.random.next_number() >> 20,
            mutation: plan.mutation,
            message_bytes: plan.message_bytes,
            window_entries: plan.window_entries,
            ..Options::default()
        };
        let byzantine = (plan.mode == Mode::Byzantine).then(|| Byzantine {
            cluster: CLUSTER,
            secrets: self.tenures.iter().map(|tenure| (tenure.id, secret(index))).collect(),
            // The last two mean no good.
            clients: (0..plan.clients + 2).map(|at| public(CLIENT_SECRETS + at)).collect(),
            request_millis: plan.request_millis,
            window: plan.window,
            scrub_millis: plan.scrub_millis,
            chaos: self.nodes[index].lies.then_some(plan.seed ^ index as u64),
        });
        NodeSettings {
            node: NodeId::founder(index),
            founding: self.tenures.clone(),
            group: Settings {
                limits: Limits::default(),
                options,
                overlay_bytes_max: plan.overlay_bytes_max,
                retain_bytes: plan.retain_bytes,
                pinned_bytes: plan.pinned_bytes,
                byzantine,
            },
            log_bytes_max: plan.log_bytes_max,
            nodes: (0..plan.nodes).map(NodeId::founder).collect(),
            opening: self.random.next_number(),
        }
    }

    pub(super) fn start(&mut self, index: usize) {
        let settings = self.settings(index);
        let node = &mut self.nodes[index];
        if self.plan.defect == Defect::Amnesia && node.life > 0 {
            node.disk = MemoryDisk::named(store_name(index as u64));
            self.durable.forget(index);
        }
        if matches!(node.stranger, Some((Stranger::Copy, _))) {
            self.durable.beware(settings.opening);
        }
        let is_short = node.is_short;
        let (storage, recovery) = node.disk.open();
        node.life += 1;
        node.started = self.now;
        (node.is_checking, node.is_syncing, node.is_writing, node.is_paused) = (false, false, false, false);
        node.counted = None;
        let (life, lies) = (node.life, node.lies);
        let core = match NodeCore::open(settings, Box::new(storage), recovery) {
            Ok(core) => core,
            Err(error) => return self.violate(|| format!("n{} does not start: {error}", index + 1)),
        };
        for (group, verifier) in core.verifiers() {
            // A signature holds for all or for none: what one node has checked, the others need not pay for.
            self.verifiers.entry(group).or_insert(verifier);
        }
        let node = &mut self.nodes[index];
        node.core = Some(core);
        self.invariants.begin_life(index);
        self.trace.note(|| format!("n{} starts", index + 1));
        self.at(self.now, Event::Tick { node: index, life });
        if lies {
            self.lie_anew(index);
        }
        if is_short {
            self.tell_room(index);
        }
        self.end_connections(index);
        for peer in (0..self.nodes.len()).filter(|peer| *peer != index) {
            let micros = self.plan.delay_micros + self.random.below(self.plan.delay_micros + 1);
            self.after(micros, Event::Link { node: index, peer });
            self.after(micros, Event::Link { node: peer, peer: index });
        }
    }

    /// A node has a new link to another one.
    pub(super) fn link(&mut self, index: usize, peer: usize) {
        let node = NodeId::founder(peer);
        if self.nodes[index].is_paused {
            // It learns of it before it hears anything over that link.
            self.nodes[index].missed_links.insert(peer);
        } else if self.nodes[peer].core.is_some() {
            let link = self.nodes[peer].life;
            self.turn(index, [NodeEvent::PeerLink { node, link, is_up: true }]);
        }
    }

    /// A node ends. Of the commits under way the first `kept` happen to reach the disk.
    pub(super) fn crash(&mut self, index: usize, kept: usize) {
        self.count_lies(index);
        let node = &mut self.nodes[index];
        if node.core.take().is_none() {
            return;
        }
        let lost = node.disk.pending().saturating_sub(kept);
        node.disk.crash(kept);
        node.checks.clear();
        node.stalled.clear();
        node.missed_links.clear();
        node.is_paused = false;
        self.look_at_disk(index);
        if lost > 0 {
            self.reach("a crash lost what was not synced");
        }
        self.trace.note(|| format!("n{} ends; {lost} commits are lost", index + 1));
        self.end_connections(index);
    }

    pub(super) fn tick(&mut self, index: usize) {
        let node = &self.nodes[index];
        let life = node.life;
        if !node.is_paused {
            let (now, wall) = (node.ticks(self.now), node.wall(self.now));
            self.step(index, NodeEvent::Tick { now, wall });
            self.look_around(index);
        }
        self.after(TICK_MICROS, Event::Tick { node: index, life });
    }

    /// A node learns whether its disk has room.
    pub(super) fn tell_room(&mut self, index: usize) {
        let room =
            if self.nodes[index].is_short { Room::Short { reserve_bytes: 1 << 20 } } else { Room::Enough };
        self.step(index, NodeEvent::Process(ProcessStats::default(), room));
    }

    fn look_around(&mut self, index: usize) {
        let Some(core) = self.nodes[index].core.as_ref() else { return };
        let told = self.invariants.look_around(index, core);
        told.reached.into_iter().for_each(|what| self.reach(what));
        if let Some(violation) = told.violation {
            self.violate(|| violation);
        }
    }

    /// Whatever waits for the disk gets its turn, all at once.
    pub(super) fn schedule_disk(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if node.core.is_none() || node.is_syncing || node.disk.pending() == 0 {
            return;
        }
        node.is_syncing = true;
        let life = node.life;
        let mut micros = self.plan.barrier_micros + self.random.below(self.plan.barrier_micros);
        if !self.is_calm && self.plan.has(Nemesis::SlowDisk) && self.random.per_mille(20) {
            self.count(Nemesis::SlowDisk, 1, 1);
            micros += self.random.below(500_000);
        }
        self.after(micros, Event::Barrier { node: index, life });
    }

    pub(super) fn barrier(&mut self, index: usize) {
        if let Some(until) = self.hangs(index) {
            let life = self.nodes[index].life;
            return self.at(until, Event::Barrier { node: index, life });
        }
        // A barrier of several commits may end after any of them.
        self.kill_at_a_bad_moment(index);
        let node = &mut self.nodes[index];
        if node.core.is_none() {
            return;
        }
        node.is_syncing = false;
        let left = if self.plan.defect == Defect::EarlyBarrier { EARLY_COMMITS } else { 0 };
        let last = node.disk.newest_pending();
        while self.nodes[index].disk.pending() > left {
            self.nodes[index].disk.flush_one();
            self.look_at_disk(index);
        }
        let node = &mut self.nodes[index];
        let writes = !std::mem::replace(&mut node.is_writing, true);
        let life = node.life;
        if writes {
            let micros = self.micros_to_write(index);
            self.after(micros, Event::StateWritten { node: index, life });
        }
        if let Some(commit) = last {
            self.step(index, NodeEvent::Durable(commit));
        }
    }

    /// When to look again, if the disk of a node takes nothing now. Hangs end with the faults.
    fn hangs(&mut self, index: usize) -> Option<u64> {
        const LOOK_AGAIN_MICROS: u64 = 100_000;
        let node = &mut self.nodes[index];
        if self.is_calm || node.hung_until <= self.now {
            return None;
        }
        if !std::mem::replace(&mut node.is_hang_felt, true) {
            self.count(Nemesis::HungDisk, 0, 1);
        }
        Some(self.now + LOOK_AGAIN_MICROS)
    }

    /// How long the tree takes for what it is given next. Large states are counted, not stored: a row may take as long as many.
    fn micros_to_write(&mut self, index: usize) -> u64 {
        let rows = self.nodes[index].disk.rows_to_write() as u64;
        self.random.between(200, 20_000) + rows * self.plan.row_micros
    }

    /// How much longer the tree takes for rows of whole states that are next, if that was not counted yet.
    fn micros_for_state(&mut self, index: usize) -> Option<u64> {
        let node = &mut self.nodes[index];
        let (next, rows) = node.disk.state_rows_to_write()?;
        let is_news = rows > 0 && self.plan.state_row_micros > 0 && node.counted != Some(next);
        node.counted = Some(next);
        is_news.then_some(rows as u64 * self.plan.state_row_micros)
    }

    fn look_at_disk(&mut self, index: usize) {
        if self.nodes[index].stranger.is_some() {
            return;
        }
        if let Some(wrong) = self.durable.follow(index, &self.nodes[index].disk) {
            self.violate(|| wrong);
        }
    }

    pub(super) fn state_written(&mut self, index: usize) {
        if let Some(until) = self.hangs(index) {
            let life = self.nodes[index].life;
            return self.at(until, Event::StateWritten { node: index, life });
        }
        if let Some(micros) = self.micros_for_state(index) {
            let life = self.nodes[index].life;
            return self.after(micros, Event::StateWritten { node: index, life });
        }
        let node = &mut self.nodes[index];
        node.is_writing = false;
        let life = node.life;
        if let Some(commit) = node.disk.write_one() {
            node.is_writing = true;
            let micros = self.micros_to_write(index);
            self.after(micros, Event::StateWritten { node: index, life });
            // What was written is what a rewrite of the log waits for: an engine that stops just then has nothing to give for it.
            let is_close = self.nodes[index].core.as_ref().is_some_and(NodeCore::is_about_to_rewrite);
            if self.strikes_now(Nemesis::Halt, if is_close { 150 } else { 5 }) {
                return self.halt(index, Some(NodeEvent::Written(commit)));
            }
            self.step(index, NodeEvent::Written(commit));
        }
    }

    /// The pool has done one check.
    pub(super) fn checked(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let Some((_, (tenure, job))) = node.checks.next_job() else { return };
        let verifier = self.verifiers.get_mut(&tenure).expect("each group of a Byzantine node has one");
        let result = Box::new(verifier.verify(*job));
        node.is_checking = !node.checks.is_empty();
        let (life, goes_on) = (node.life, node.is_checking);
        if goes_on {
            let micros = self.random.between(40, 120);
            self.after(micros, Event::Checked { node: index, life });
        }
        self.step(index, NodeEvent::Verified { tenure, result });
    }

    /// A node that stood still takes in what waits for it, clients first, before it learns how late it is.
    pub(super) fn resume(&mut self, index: usize) {
        if !std::mem::take(&mut self.nodes[index].is_paused) {
            return;
        }
        self.trace.note(|| format!("n{} goes on", index + 1));
        for peer in std::mem::take(&mut self.nodes[index].missed_links) {
            self.link(index, peer);
        }
        let mut stalled = std::mem::take(&mut self.nodes[index].stalled);
        stalled.sort_by_key(|parcel| !matches!(parcel, Parcel::Request { .. }));
        stalled.into_iter().for_each(|parcel| self.arrives(parcel));
    }

    /// Clocks as the plan wants them, or right ones once it is calm.
    pub(super) fn set_clocks(&mut self) {
        for index in 0..self.nodes.len() {
            let is_off = self.plan.has(Nemesis::ClockRate) && !self.is_calm;
            let rate = if is_off { self.random.between(800, 1_200) } else { 1_000 };
            let node = &mut self.nodes[index];
            if is_off {
                node.rate_per_mille = rate;
                self.count(Nemesis::ClockRate, 1, u64::from(rate != 1_000));
            }
            // A running clock keeps its rate: ticks never go back.
            if self.is_calm {
                self.nodes[index].wall_offset = 0;
            }
        }
    }

    /// Lies that a node has told in this life.
    pub(super) fn count_lies(&mut self, index: usize) {
        let groups = self.nodes[index].core.iter().flat_map(|core| core.groups());
        for (lie, told) in groups.flat_map(|group| group.told()).collect::<Vec<_>>() {
            self.count(Nemesis::Lies, 0, told);
            *self.lies.entry(Lie::from_name(lie).expect("it has a name")).or_default() += told;
        }
    }

    pub(super) fn lie_anew(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.lie_turn += 1;
        let lie = self.plan.lie.unwrap_or(super::next_lie(node.lie_turn));
        self.trace.note(|| format!("n{} lies now: {}", index + 1, lie.name()));
        self.count(Nemesis::Lies, 1, 0);
        self.step(index, NodeEvent::Lie(Some(lie)));
    }
}
