//! Many seeds: what they came to together, and a failing one made smaller.

mod missing;
mod totals;

pub use missing::{INTERESTING, Interesting, Missing};
pub use totals::Totals;

use crate::plan::{Mode, Plan};
use crate::world::sim::{self, Outcome};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Below so many seeds nothing is asked of what must have happened in them.
pub const SEEDS_THAT_TELL: u64 = 200;

/// For one thing that never happened so many seeds more are run at most: chance alone leaves out what happens in one of seven of the runs that
/// can have it in less than one of a billion sweeps.
const ROUNDS_MAX: usize = 150;

/// Seeds, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Seeds {
    /// The first.
    pub from: u64,
    /// How many.
    pub count: u64,
    /// All in this mode; if there is none, each draws its own.
    pub mode: Option<Mode>,
}

impl Seeds {
    fn plan(&self, index: u64) -> Plan {
        Plan::draw_in(self.from.wrapping_add(index), self.mode)
    }
}

/// What a sweep came to.
#[derive(Default)]
pub struct Swept {
    /// All runs together.
    pub totals: Totals,
    /// A run in which something did not hold, and what.
    pub failed: Option<(Plan, String)>,
    /// How many seeds were run behind the others, for what had not happened in those.
    pub extra: u64,
}

impl Swept {
    /// What never happened, if there were enough seeds to ask.
    #[must_use]
    pub fn missing(&self, seeds: &Seeds) -> Vec<Missing> {
        if seeds.count >= SEEDS_THAT_TELL { self.totals.missing() } else { Vec::new() }
    }
}

/// Carries out a plan.
pub type Runner<'a> = &'a (dyn Fn(&Plan) -> Outcome + Sync);

/// Runs seeds on all processors; `done` is called after each.
///
/// Which nemeses a seed has, and whether they meet, is chance. What a sweep of [`SEEDS_THAT_TELL`] or more asks for is not left to it: for
/// everything that did not happen the next seeds are run whose plans can have it, one for each, until nothing is missing. What
/// is missing after that is missing for a reason. The same seeds come to the same totals, on however many processors.
#[must_use]
pub fn run(seeds: &Seeds, runner: Runner, done: &(dyn Fn() + Sync)) -> Swept {
    let mut swept = Swept::default();
    run_all(&mut swept, seeds.count, &|index| seeds.plan(index), runner, done);
    let mut used = BTreeSet::new();
    for _ in 0..ROUNDS_MAX {
        let missing = swept.missing(seeds);
        if swept.failed.is_some() || missing.is_empty() {
            break;
        }
        let more: BTreeSet<u64> = missing.into_iter().filter_map(|it| next_for(it, seeds, &used)).collect();
        let plans: Vec<Plan> = more.iter().map(|index| seeds.plan(*index)).collect();
        used.extend(&more);
        swept.extra += more.len() as u64;
        let plan = |index: u64| plans[usize::try_from(index).expect("an index into them")].clone();
        run_all(&mut swept, plans.len() as u64, &plan, runner, done);
    }
    swept
}

/// The next seed behind the others that can have what is missing, by its place among all.
fn next_for(missing: Missing, seeds: &Seeds, used: &BTreeSet<u64>) -> Option<u64> {
    const LOOK_MAX: u64 = 100_000;
    (seeds.count..seeds.count + LOOK_MAX)
        .find(|index| !used.contains(index) && missing.suits(&seeds.plan(*index)))
}

/// Runs plans on all processors, until one fails.
fn run_all(
    swept: &mut Swept,
    count: u64,
    plan: &(dyn Fn(u64) -> Plan + Sync),
    runner: Runner,
    done: &(dyn Fn() + Sync),
) {
    let (next, shared) = (AtomicU64::new(0), Mutex::new(std::mem::take(swept)));
    let work = || {
        let mut own = Totals::default();
        while lock(&shared).failed.is_none() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            let plan = plan(index);
            let outcome = runner(&plan);
            own.add(&plan, &outcome);
            done();
            if let Some(violation) = outcome.violation {
                lock(&shared).failed.get_or_insert((plan, violation));
            }
        }
        lock(&shared).totals.merge(&own);
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    *swept = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
