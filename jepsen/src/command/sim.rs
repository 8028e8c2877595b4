//! `tetrachord-jepsen sim`: seeds of the simulated world.

use super::{FAILURE, VIOLATION};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tetrachord_jepsen::nemesis::Nemesis;
use tetrachord_jepsen::plan::{Mode, Plan};
use tetrachord_jepsen::sweep::{self, Totals};
use tetrachord_jepsen::world::{Kind, sim};

/// Below so many seeds nothing is said about what never happened.
const SEEDS_THAT_TELL: u64 = 200;

#[derive(Debug, Args)]
pub(crate) struct SimArgs {
    /// Runs so many seeds.
    #[arg(long, default_value_t = 100, conflicts_with = "seed")]
    seeds: u64,
    /// The first of them; drawn from the clock if it is left out.
    #[arg(long, conflicts_with = "seed")]
    from: Option<u64>,
    /// All seeds in this mode; if it is left out, each draws its own.
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Runs this seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints everything that happens in it.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Leaves these nemeses out, by name.
    #[arg(long, value_delimiter = ',', requires = "seed")]
    without: Vec<String>,
    /// With so many clients.
    #[arg(long, requires = "seed")]
    clients: Option<usize>,
    /// Faults go on for so many virtual milliseconds.
    #[arg(long, requires = "seed")]
    millis: Option<u64>,
    /// Does not make a failing seed smaller.
    #[arg(long)]
    no_shrink: bool,
}

pub(crate) fn run(args: &SimArgs) -> anyhow::Result<ExitCode> {
    match args.seed {
        Some(seed) => one(seed, args),
        None => many(args),
    }
}

fn one(seed: u64, args: &SimArgs) -> anyhow::Result<ExitCode> {
    let mut plan = Plan::draw_in(seed, args.mode);
    for name in &args.without {
        let Some(nemesis) = Nemesis::from_name(name) else {
            anyhow::bail!("there is no nemesis {name:?}; `tetrachord-jepsen list` names them all");
        };
        plan.nemeses.remove(&nemesis);
    }
    plan.clients = args.clients.unwrap_or(plan.clients).clamp(1, 100);
    plan.millis = args.millis.unwrap_or(plan.millis);
    println!("seed {seed}: {plan}");
    let outcome = sim::run(&plan, args.trace);
    outcome.trace.iter().for_each(|line| println!("{line}"));
    let hash: String = outcome.trace_hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    println!(
        "{} operations ({} unknown), {} events in {:.1} virtual seconds, trace {hash}",
        outcome.operations,
        outcome.unknown,
        outcome.events,
        outcome.micros as f64 / 1e6
    );
    Ok(match outcome.violation {
        None => {
            println!("verdict: everything held");
            ExitCode::SUCCESS
        }
        Some(violation) => {
            println!("verdict: VIOLATION\n{violation}");
            ExitCode::from(VIOLATION)
        }
    })
}

fn many(args: &SimArgs) -> anyhow::Result<ExitCode> {
    let clock = || {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
    };
    let from = args.from.unwrap_or_else(|| clock() * 1_000_000);
    println!("seeds {from} to {}", from + args.seeds.saturating_sub(1));
    let bar = ProgressBar::new(args.seeds);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {elapsed}, {eta} left")?);
    let (next, totals, failed) = (AtomicU64::new(0), Mutex::new(Totals::default()), Mutex::new(None));
    let before = cpu_seconds();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut own = Totals::default();
                while let Some(seed) = take(&next, args.seeds).filter(|_| lock(&failed).is_none()) {
                    let plan = Plan::draw_in(from + seed, args.mode);
                    let outcome = sim::run(&plan, false);
                    own.add(&plan, &outcome);
                    bar.inc(1);
                    if let Some(violation) = outcome.violation {
                        lock(&failed).get_or_insert((plan, violation));
                    }
                }
                lock(&totals).merge(&own);
            });
        }
    });
    bar.finish_and_clear();
    let totals = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    print_totals(&totals, cpu_seconds() - before);
    if let Some((plan, violation)) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Ok(report(&plan, &violation, args.no_shrink));
    }
    let missing = if totals.seeds >= SEEDS_THAT_TELL { totals.missing() } else { Vec::new() };
    if missing.is_empty() {
        println!("verdict: everything held");
        return Ok(ExitCode::SUCCESS);
    }
    println!("verdict: too tame to mean anything:\n  {}", missing.join("\n  "));
    Ok(ExitCode::from(FAILURE))
}

/// What all threads of this process have used.
fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

fn take(next: &AtomicU64, end: u64) -> Option<u64> {
    let seed = next.fetch_add(1, Ordering::Relaxed);
    (seed < end).then_some(seed)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn print_totals(totals: &Totals, cpu_seconds: f64) {
    let hours = totals.micros as f64 / 3.6e9;
    println!(
        "{} seeds ({} in Byzantine mode): {:.1} cluster-hours, {:.0} for each CPU-hour; {} events",
        totals.seeds,
        totals.byzantine,
        hours,
        hours / (cpu_seconds / 3_600.0),
        totals.events
    );
    println!(
        "{} operations judged, {} of them unknown; all traces {:016x}",
        totals.operations, totals.unknown, totals.traces
    );
    println!(
        "slowest return to full service after faults stopped: {:.1} virtual seconds in crash mode, {:.1} in Byzantine mode",
        totals.calm_micros.0 as f64 / 1e6,
        totals.calm_micros.1 as f64 / 1e6
    );
    println!(
        "{} of {} pairs of nemeses worked together in a run",
        totals.pairs.len(),
        totals.possible_pairs().len()
    );
    println!("nemesis            strikes    effect");
    for (nemesis, (strikes, effects)) in &totals.strikes {
        println!(
            "  {:<16} {strikes:>7} {effects:>9} {}",
            nemesis.name(),
            nemesis.effect(Kind::Sim).unwrap_or_default()
        );
    }
    println!("reached");
    for (what, count) in &totals.reached {
        println!("  {count:>9} times {what}");
    }
}

fn report(plan: &Plan, violation: &str, no_shrink: bool) -> ExitCode {
    println!("verdict: VIOLATION with seed {}: {plan}\n{violation}", plan.seed);
    if no_shrink {
        println!("replay it: {}", sweep::replay_command(plan));
    } else {
        println!("making it smaller ...");
        let smaller = sweep::shrink(plan);
        println!("replay it: {}\n  {smaller}", sweep::replay_command(&smaller));
    }
    ExitCode::from(VIOLATION)
}
