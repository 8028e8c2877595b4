//! `tetrachord-jepsen sim`: seeds of the simulated world.

use super::{FAILURE, VIOLATION, say};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::process::ExitCode;
use tetrachord_jepsen::nemesis::Nemesis;
use tetrachord_jepsen::plan::{Mode, Plan};
use tetrachord_jepsen::sweep::{self, SEEDS_THAT_TELL, Seeds, Totals};
use tetrachord_jepsen::world::{Kind, sim};

/// A run of more than that, in virtual milliseconds (a month), would never end.
const MILLIS_MAX: u64 = 30 * 24 * 3_600_000;

#[derive(Debug, Args)]
pub(crate) struct SimArgs {
    /// Runs so many seeds.
    #[arg(long, default_value_t = 100, conflicts_with = "seed", value_parser = clap::value_parser!(u64).range(1..))]
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
    #[arg(long, requires = "seed", value_parser = clap::value_parser!(u64).range(1..=MILLIS_MAX))]
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
    say!("seed {seed}: {plan}");
    let outcome = sim::run(&plan, args.trace);
    outcome.trace.iter().for_each(|line| say!("{line}"));
    let hash: String = outcome.trace_hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    say!(
        "{} operations ({} unknown), {} events in {:.1} virtual seconds, trace {hash}",
        outcome.operations,
        outcome.unknown,
        outcome.events,
        outcome.micros as f64 / 1e6
    );
    Ok(match outcome.violation {
        None => {
            say!("verdict: everything held");
            ExitCode::SUCCESS
        }
        Some(violation) => {
            say!("verdict: VIOLATION\n{violation}");
            ExitCode::from(VIOLATION)
        }
    })
}

fn many(args: &SimArgs) -> anyhow::Result<ExitCode> {
    let clock = || {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
    };
    let from = args.from.unwrap_or_else(|| clock() * 1_000_000);
    let Some(last) = from.checked_add(args.seeds - 1) else {
        anyhow::bail!("there are not so many seeds behind {from}; the last of all is {}", u64::MAX);
    };
    say!("seeds {from} to {last}");
    let bar = ProgressBar::new(args.seeds);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {elapsed}, {eta} left")?);
    let before = cpu_seconds();
    let seeds = Seeds { from, count: args.seeds, mode: args.mode };
    let swept = sweep::run(&seeds, &|plan| sim::run(plan, false), &|| bar.inc(1));
    bar.finish_and_clear();
    print_totals(&swept.totals, cpu_seconds() - before);
    if swept.extra > 0 {
        say!("{} more seeds were run for what had not happened in the first {}", swept.extra, args.seeds);
    }
    let missing = swept.missing(&seeds);
    if let Some((plan, violation)) = swept.failed {
        return Ok(report(&plan, &violation, args.no_shrink));
    }
    if args.seeds < SEEDS_THAT_TELL {
        say!("of fewer than {SEEDS_THAT_TELL} seeds it is not asked what never happened in them");
    }
    if missing.is_empty() {
        say!("verdict: everything held");
        return Ok(ExitCode::SUCCESS);
    }
    let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
    say!("verdict: too tame to mean anything:\n  {}", missing.join("\n  "));
    Ok(ExitCode::from(FAILURE))
}

/// What all threads of this process have used.
fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

fn print_totals(totals: &Totals, cpu_seconds: f64) {
    let hours = totals.micros as f64 / 3.6e9;
    say!(
        "{} seeds ({} in Byzantine mode): {:.1} cluster-hours, {:.0} for each CPU-hour; {} events",
        totals.seeds,
        totals.byzantine,
        hours,
        hours / (cpu_seconds / 3_600.0),
        totals.events
    );
    say!(
        "{} operations judged, {} of them unknown; all traces {:016x}",
        totals.operations,
        totals.unknown,
        totals.traces
    );
    say!(
        "slowest return to full service after faults stopped: {:.1} virtual seconds in crash mode, {:.1} in Byzantine mode",
        totals.calm_micros.0 as f64 / 1e6,
        totals.calm_micros.1 as f64 / 1e6
    );
    say!(
        "{} of {} pairs of nemeses worked together in a run",
        totals.pairs.len(),
        totals.possible_pairs().len()
    );
    say!("nemesis            strikes    effect");
    for (nemesis, (strikes, effects)) in &totals.strikes {
        say!(
            "  {:<16} {strikes:>7} {effects:>9} {}",
            nemesis.name(),
            nemesis.effect(Kind::Sim).unwrap_or_default()
        );
    }
    if !totals.lies.is_empty() {
        say!("lie                   told");
    }
    for (lie, told) in &totals.lies {
        say!("  {:<16} {told:>7} {}", lie.name(), lie.effect());
    }
    say!("reached");
    for (what, count) in &totals.reached {
        say!("  {count:>9} times {what}");
    }
}

fn report(plan: &Plan, violation: &str, no_shrink: bool) -> ExitCode {
    say!("verdict: VIOLATION with seed {}: {plan}\n{violation}", plan.seed);
    if no_shrink {
        say!("replay it: {}", sweep::replay_command(plan));
    } else {
        say!("making it smaller ...");
        let smaller = sweep::shrink(plan);
        say!("replay it: {}\n  {smaller}", sweep::replay_command(&smaller));
    }
    ExitCode::from(VIOLATION)
}
