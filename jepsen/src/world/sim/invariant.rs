//! What must hold after every step, seen from outside.
//!
//! | invariant | source |
//! |---|---|
//! | replicas that applied the same slots have the same digest of everything answered | state machine safety |
//! | what a replica has applied only grows, but for a state that is repaired or put in place | prefix |
//! | a ballot is led by one node; in Byzantine mode a view's primary follows from its number | election safety |
//! | nobody stops, but who lies | availability |
//! | where nothing is wrong but clients, no primary loses its view (Byzantine mode) | liveness |
//! | no client holds more than its share of a group's sessions and remembered outcomes | fairness |
//! | state that waits for the tree, and the log in memory, stay within their limits and a little | bounded memory |
//!
//! What disks hold is looked at in [`super::durable`], what is signed in [`super::said`].
//!
//! That nothing acknowledged is lost, that requests apply once and that reads are fresh is for the checker of the history.

use crate::nemesis::Nemesis;
use crate::plan::{Mode, Plan};
use std::collections::BTreeMap;
use tetrachord::group::Group;
use tetrachord::limits::{CLIENT_SHARE, OUTCOMES_BYTES_MAX, OVERLAY_BYTES_STREAMING_MAX, SESSIONS_MAX};
use tetrachord::node::core::NodeCore;
use tetrachord::ring::GroupId;

/// What is told when a replica's damaged state has become right again.
pub(super) const REPAIRED: &str = "a damaged state was repaired";

/// What a check found.
#[derive(Default)]
pub(super) struct Told {
    pub(super) violation: Option<String>,
    pub(super) reached: Vec<&'static str>,
    /// What must rest on what disks hold.
    pub(super) news: Vec<(GroupId, News)>,
}

/// What a replica is the first to say.
pub(super) enum News {
    /// It leads.
    Leads { ballot: String },
    /// It has applied a slot that nobody had applied before; the chain hash is that of the log there.
    Applied { slot: u64, chain: [u8; 32], time: u64, leads_in: Option<String> },
}

/// What is remembered of one replica's life.
#[derive(Clone, Debug, Default)]
struct Seen {
    applied: u64,
    last: u64,
    leads: bool,
    is_installing: bool,
    is_damaged: bool,
    view: u64,
    looks_since_giving: u64,
    looks_since_pinning: u64,
    /// Looks that are left to be up to date after a repair of the state.
    looks_to_repair: u64,
}

/// How far each group of a node is, in words.
pub(super) fn applied(core: &NodeCore) -> Vec<String> {
    let of_group = |group: &Group| {
        let applied = group.machine().reached();
        let hex = |bytes: &[u8]| bytes[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (digest, chain) = (hex(&applied.digest), hex(&applied.chain));
        format!(
            "slot {} of {}: time {}, chain {chain}, digest {digest}",
            applied.slot,
            group.tenure().group(),
            applied.time
        )
    };
    core.groups().map(of_group).collect()
}

/// Bytes beside the limits of a plan that what is kept in memory may take: what arrives while a limit is reached, or what a log held
/// when its node was started.
const SLACK_BYTES: usize = 512 << 10;

/// While a snapshot is given the tree stands still, and what is applied gathers; so many looks later it has been brought up to date.
const LOOKS_TO_CATCH_UP: u64 = 300;

/// Byzantine mode: what waits for a repaired state to be put in place has a bound of its own, far above what a run here comes to.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// Byzantine mode: bytes that a slot of the window takes, with the votes of seven replicas.
const SLOT_BYTES: usize = 32 << 10;

/// A slot that is not decided holds what was proposed in this view, and in eight views that failed before.
const BATCHES_OF_A_SLOT: usize = 9;

/// A batch of nothing but openings of sessions, as a greedy client asks for them, takes less.
const GREEDY_BATCH_BYTES: usize = 64 << 10;

/// Watches all nodes.
#[derive(Debug)]
pub(super) struct Invariants {
    unwritten_bytes_max: usize,
    log_bytes_max: usize,
    pinned_bytes_max: usize,
    keeps_view: bool,
    /// The digest after each slot of each group, by whoever came there first.
    digests: BTreeMap<(u128, u64), ([u8; 32], usize)>,
    leaders: BTreeMap<(u128, String), usize>,
    seen: BTreeMap<(usize, u128), Seen>,
}

/// Slots behind the newest whose digests are remembered.
const DIGESTS_MAX: usize = 20_000;

impl Invariants {
    pub(super) fn new(plan: &Plan) -> Self {
        let window = usize::try_from(plan.window.length).expect("a small window");
        let is_greedy = plan.nemeses.contains(&Nemesis::GreedyClient);
        let slot_bytes = if is_greedy { BATCHES_OF_A_SLOT * GREEDY_BATCH_BYTES } else { SLOT_BYTES };
        let window_bytes = if plan.mode == Mode::Byzantine { window * slot_bytes } else { 0 };
        Self {
            pinned_bytes_max: plan.pinned_bytes,
            keeps_view: plan.keeps_view,
            // Above four times the limit a follower acknowledges nothing more.
            unwritten_bytes_max: 4 * plan.overlay_bytes_max + SLACK_BYTES,
            // At four times the limit above what is kept for others the tree is brought up to date.
            log_bytes_max: plan.retain_bytes + 4 * plan.overlay_bytes_max + window_bytes + SLACK_BYTES,
            digests: BTreeMap::new(),
            leaders: BTreeMap::new(),
            seen: BTreeMap::new(),
        }
    }

    /// Looks at memory and logs now and then: that one has become shorter says that a leader has replaced what another had begun.
    pub(super) fn look_around(&mut self, index: usize, core: &NodeCore) -> Told {
        let mut told = Told::default();
        for group in core.groups() {
            let status = group.engine();
            let (name, last) = (group.tenure().group().0, status.last.0);
            if self.keeps_view && group.view() > 0 {
                told.violation = Some(format!(
                    "n{} leaves the first view of g{name}, and nothing is wrong but clients",
                    index + 1
                ));
            }
            let seen = self.seen.entry((index, name)).or_default();
            seen.looks_since_giving = if group.is_giving() { 0 } else { seen.looks_since_giving + 1 };
            // What was pinned goes with the next checkpoint.
            seen.looks_since_pinning = if group.is_pinned() { 0 } else { seen.looks_since_pinning + 1 };
            let is_damaged = group.damage().is_some();
            seen.looks_to_repair =
                if is_damaged { LOOKS_TO_CATCH_UP } else { seen.looks_to_repair.saturating_sub(1) };
            let within = |looks: u64, bytes: usize| if looks < LOOKS_TO_CATCH_UP { bytes } else { 0 };
            let more = within(seen.looks_since_giving, OVERLAY_BYTES_STREAMING_MAX);
            let waiting = if seen.looks_to_repair > 0 { WAITING_BYTES_MAX } else { 0 };
            let pinned = within(seen.looks_since_pinning, self.pinned_bytes_max);
            for (what, bytes, max) in [
                (
                    "of state wait for its tree",
                    group.machine().unwritten_bytes(),
                    self.unwritten_bytes_max + more,
                ),
                ("of its log are in memory", status.log_bytes, self.log_bytes_max + more + pinned + waiting),
            ] {
                if bytes > max {
                    told.violation =
                        Some(format!("n{} g{name}: {bytes} bytes {what}, more than {max}", index + 1));
                }
            }
            if last < seen.last && !group.is_installing() && group.damage().is_none() {
                told.reached.push("a log was cut back");
            }
            seen.last = last;
        }
        told
    }

    /// A node starts anew: it may have lost what it had applied.
    pub(super) fn begin_life(&mut self, index: usize) {
        self.seen.retain(|(node, _), _| *node != index);
    }

    /// Checks a node after a step.
    pub(super) fn check(&mut self, index: usize, is_wrong: bool, core: &NodeCore) -> Told {
        let mut told = Told::default();
        for group in core.groups() {
            let name = group.tenure().group().0;
            let applied = group.machine().reached();
            let seen = self.seen.entry((index, name)).or_default();
            let before = seen.clone();
            seen.is_installing = group.is_installing();
            seen.is_damaged = group.damage().is_some();
            if before.is_installing && !seen.is_installing {
                told.reached.push("a whole state was put in place");
            }
            if before.is_damaged && !seen.is_damaged {
                told.reached.push(REPAIRED);
            }
            if !before.is_damaged && seen.is_damaged {
                told.reached.push("a damaged state was noticed");
            }
            let is_replaced =
                seen.is_installing || seen.is_damaged || before.is_installing || before.is_damaged;
            if applied.slot == before.applied && !is_replaced && group.is_leading() == before.leads {
                continue;
            }
            if applied.slot < before.applied && !is_replaced {
                let what = format!(
                    "n{} g{name} went back from slot {} to {}",
                    index + 1,
                    before.applied,
                    applied.slot
                );
                told.violation = Some(what);
            }
            seen.applied = applied.slot;
            if is_wrong || is_replaced {
                continue;
            }
            let known = *self.digests.entry((name, applied.slot)).or_insert_with(|| {
                let leads_in = group.is_leading().then(|| group.engine().ballot);
                let (slot, chain, time) = (applied.slot, applied.chain, applied.time);
                told.news.push((group.tenure().group(), News::Applied { slot, chain, time, leads_in }));
                (applied.digest, index)
            });
            if known.0 != applied.digest {
                let what = format!(
                    "n{} and n{} differ after slot {} of g{name}",
                    known.1 + 1,
                    index + 1,
                    applied.slot
                );
                told.violation = Some(what);
            }
            // However little the others hold.
            let mut held = group.machine().held();
            let greedy = held.find(|(_, held)| {
                held.sessions > SESSIONS_MAX / CLIENT_SHARE || held.bytes > OUTCOMES_BYTES_MAX / CLIENT_SHARE
            });
            if let Some((client, held)) = greedy {
                let what = format!(
                    "n{} lets client {:02x}{:02x} hold more than its share of g{name}: {held:?}",
                    index + 1,
                    client[0],
                    client[1]
                );
                told.violation = Some(what);
            }
            if group.is_leading() != before.leads {
                self.check_leadership(index, group, &mut told);
            }
        }
        while self.digests.len() > DIGESTS_MAX {
            self.digests.pop_first();
        }
        told
    }

    /// A replica begins to lead, or ends.
    fn check_leadership(&mut self, index: usize, group: &Group, told: &mut Told) {
        let name = group.tenure().group().0;
        let seen = self.seen.entry((index, name)).or_default();
        seen.leads = group.is_leading();
        let status = group.engine();
        if group.view() > seen.view {
            told.reached.push("a view was entered behind the first");
            if group.view() > seen.view + 1 {
                told.reached.push("a view had to be skipped");
            }
            seen.view = group.view();
        }
        if !seen.leads {
            return;
        }
        told.reached.push("a leader was elected");
        if status.undecided > 2 {
            told.reached.push("a leader went on with several entries that may have been decided");
        }
        let ballot = status.ballot;
        told.news.push((group.tenure().group(), News::Leads { ballot: ballot.clone() }));
        let leader = *self.leaders.entry((name, ballot.clone())).or_insert(index);
        if leader != index {
            let what = format!("n{} and n{} both lead g{name} in {ballot}", leader + 1, index + 1);
            told.violation = Some(what);
        }
    }
}
