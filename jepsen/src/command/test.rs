//! `tetrachord-jepsen test`: trials in the real world.

use super::{FAILURE, VIOLATION, remark, say};
use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};
use tetrachord::config::{self, ClusterConfig, Mode};
use tetrachord_jepsen::nemesis::Nemesis;
use tetrachord_jepsen::plan;
use tetrachord_jepsen::trial::{self, Options, Outcome};
use tetrachord_jepsen::workload::Workload;
use tetrachord_jepsen::world::Kind;
use tetrachord_jepsen::world::real::{Machine, Setup};

pub(crate) const EXAMPLES: &str = "\
Examples:
  tetrachord-jepsen test --workload register --nemesis kill,partition --seconds 60
  tetrachord-jepsen test --mode byzantine --nemesis lies,network
  tetrachord-jepsen test --all --seconds 10          every nemesis once, ten seconds each
  tetrachord-jepsen test --cluster c/cluster.toml --nemesis pause    your own deployment
  tetrachord-jepsen list                             what there is";

/// Whether a nemesis goes by such a name too.
type IsMember = fn(Nemesis) -> bool;

/// Names for several nemeses: the name, its members in words, and which they are.
pub(crate) const ALIASES: [(&str, &str, IsMember); 4] = [
    ("partition", "halves, isolate, majorities-ring, bridge, one-way", Nemesis::is_partition),
    ("network", "loss, delay, duplication, reordering", |nemesis| {
        nemesis.is_of_network() && !nemesis.is_partition()
    }),
    ("disk", "power-cut, slow-disk, disk-full, wiped-disk, bit-flip", |nemesis| {
        matches!(
            nemesis,
            Nemesis::PowerCut | Nemesis::SlowDisk | Nemesis::DiskFull | Nemesis::WipedDisk | Nemesis::BitFlip
        )
    }),
    ("all", "every one that the mode survives and this machine permits", |_| true),
];

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// What clients do
    #[arg(long, default_value = "register", value_parser = parse_workload)]
    workload: Workload,
    /// What goes wrong, by name; `list` names them
    #[arg(long, value_delimiter = ',', value_name = "NAMES", default_value = "kill", conflicts_with = "all")]
    nemesis: Vec<String>,
    /// One trial for each nemesis, in the mode that survives it
    #[arg(long)]
    all: bool,
    /// How long things go wrong
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Faults that the cluster is to survive
    #[arg(long, value_enum, default_value_t = plan::Mode::Crash)]
    mode: plan::Mode,
    /// Nodes [default: 3 in crash mode, 4 in Byzantine mode]
    #[arg(long)]
    nodes: Option<usize>,
    /// Groups
    #[arg(long, default_value_t = 1)]
    groups: usize,
    /// Concurrent clients
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Keys that are in use at a time
    #[arg(long, default_value_t = 5)]
    keys: u64,
    /// Operations that all clients together begin in a second at most
    #[arg(long, default_value_t = 800)]
    rate: u64,
    /// Decides load and faults; drawn from the clock if it is left out
    #[arg(long)]
    seed: Option<u64>,
    /// Where reports and histories go
    #[arg(long, value_name = "DIR", default_value = "trials")]
    output: PathBuf,
    /// Tests a deployment that is there already; nodes that run on this machine can be paused, nothing else is done to it
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["all", "mode", "nodes", "groups", "program", "keep"]
    )]
    cluster: Option<PathBuf>,
    /// Another build to test: a `tetrachord` program
    #[arg(long, value_name = "PROGRAM")]
    program: Option<PathBuf>,
    /// Keeps the nodes' files, for a look at their logs
    #[arg(long)]
    keep: bool,
}

fn parse_workload(name: &str) -> Result<Workload, String> {
    let names: Vec<&str> = Workload::ALL.iter().map(|workload| workload.name()).collect();
    Workload::from_name(name).ok_or_else(|| format!("there are {}", names.join(", ")))
}

pub(crate) fn run(args: &TestArgs) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(args.clients > 0 && args.keys > 0, "at least one client and one key are needed");
    anyhow::ensure!(args.seconds > 0 && args.rate > 0, "seconds and rate must be positive");
    let scratch = Scratch::new(args.keep)?;
    let machine = Machine::look(&scratch.0);
    let is_ours = args.cluster.is_none();
    for (what, lack) in [("hosts", machine.hosts.as_ref().err()), ("disks", machine.disks.as_ref().err())] {
        if let Some(lack) = lack.filter(|_| is_ours) {
            remark(&format!("nodes have no {what} of their own here: {lack}"));
        }
    }
    if args.all { every_nemesis(args, &machine, &scratch.0) } else { one(args, &machine, &scratch.0) }
}

fn one(args: &TestArgs, machine: &Machine, scratch: &Path) -> anyhow::Result<ExitCode> {
    let mode = match args.mode {
        plan::Mode::Crash => Mode::Crash,
        plan::Mode::Byzantine => Mode::Byzantine,
    };
    let nemeses = parse_nemeses(&args.nemesis, mode, machine)?;
    let foreign =
        nemeses.iter().find(|nemesis| **nemesis != Nemesis::Pause).filter(|_| args.cluster.is_some());
    if let Some(nemesis) = foreign {
        anyhow::bail!(
            "{} is not done to a deployment that is not ours; --nemesis pause and --nemesis none are possible",
            nemesis.name()
        );
    }
    let names: Vec<&str> = nemeses.iter().map(|nemesis| nemesis.name()).collect();
    let under = if names.is_empty() { "no fault".to_string() } else { names.join(", ") };
    remark(&format!("{} under {under}", args.workload.name()));
    let options = options(args, mode, args.workload, nemeses, machine, scratch)?;
    let mut files = Files::open(args, &options, "trial")?;
    let outcome = carry_out(&options, &mut files)?;
    print(&outcome);
    say!("verdict      {}", outcome.verdict());
    files.report(&options, &outcome);
    Ok(ExitCode::from(code_of(&outcome)))
}

/// A trial for each nemesis that the real world has. Those that this machine does not permit are named.
fn every_nemesis(args: &TestArgs, machine: &Machine, scratch: &Path) -> anyhow::Result<ExitCode> {
    let (mut worst, mut skipped) = (0, Vec::new());
    let (mut trials, mut operations) = (0, 0);
    for (turn, nemesis) in Nemesis::of(Kind::Real).enumerate() {
        if let Some(lack) = machine.lacks(nemesis) {
            skipped.push(format!("{}: {lack}", nemesis.name()));
            continue;
        }
        let mode = if nemesis.is_byzantine() { Mode::Byzantine } else { Mode::Crash };
        let workload = Workload::ALL[turn % Workload::ALL.len()];
        let dir = scratch.join(nemesis.name());
        std::fs::create_dir_all(&dir)?;
        let options = options(args, mode, workload, BTreeSet::from([nemesis]), machine, &dir)?;
        let mut files = Files::open(args, &options, nemesis.name())?;
        let outcome = carry_out(&options, &mut files)?;
        say!("{}", in_a_line(nemesis, &options, &outcome));
        (trials, operations) = (trials + 1, operations + outcome.judgement.operations);
        let code = code_of(&outcome);
        if code != 0 {
            say!("  {}", outcome.verdict());
        }
        files.report(&options, &outcome);
        worst = worst.max(code);
        if outcome.is_interrupted {
            break;
        }
    }
    skipped.iter().for_each(|lack| say!("skipped      {lack}"));
    say!("operations   {operations} in {trials} trials");
    let verdict = match worst {
        0 => "everything held",
        FAILURE => "void: see above",
        _ => "BROKEN: see above",
    };
    say!("verdict      {verdict}");
    Ok(ExitCode::from(worst))
}

fn parse_nemeses(names: &[String], mode: Mode, machine: &Machine) -> anyhow::Result<BTreeSet<Nemesis>> {
    let mut found = BTreeSet::new();
    for name in names.iter().filter(|name| *name != "none") {
        let is_possible = |nemesis: &Nemesis| {
            (mode == Mode::Byzantine || !nemesis.is_byzantine()) && machine.lacks(*nemesis).is_none()
        };
        if let Some((_, _, is_member)) = ALIASES.iter().find(|(alias, ..)| alias == name) {
            let members = Nemesis::of(Kind::Real).filter(|nemesis| is_member(*nemesis)).filter(is_possible);
            let before = found.len();
            found.extend(members);
            anyhow::ensure!(
                found.len() > before || name == "all",
                "this machine permits no nemesis of {name:?}"
            );
            continue;
        }
        let Some(nemesis) = Nemesis::from_name(name) else {
            anyhow::bail!("there is no nemesis {name:?}; `tetrachord-jepsen list` names them all");
        };
        anyhow::ensure!(
            nemesis.effect(Kind::Real).is_some(),
            "{name} is a nemesis of the simulator only: tetrachord-jepsen sim"
        );
        anyhow::ensure!(
            mode == Mode::Byzantine || !nemesis.is_byzantine(),
            "crash mode does not survive {name}; use --mode byzantine"
        );
        if let Some(lack) = machine.lacks(nemesis) {
            anyhow::bail!("{name} cannot be done on this machine: {lack}");
        }
        found.insert(nemesis);
    }
    // Liars and those with damaged states together are more than f.
    let is_too_much = found.contains(&Nemesis::Lies) && found.contains(&Nemesis::Rot);
    if is_too_much && names.iter().any(|name| name == "all") {
        found.remove(&Nemesis::Rot);
    } else {
        anyhow::ensure!(!is_too_much, "rot and lies together are more than f faulty nodes; take one of them");
    }
    Ok(found)
}

fn options(
    args: &TestArgs,
    mode: Mode,
    workload: Workload,
    nemeses: BTreeSet<Nemesis>,
    machine: &Machine,
    dir: &Path,
) -> anyhow::Result<Options> {
    let existing = args.cluster.as_ref().map(|file| ClusterConfig::load(file)).transpose()?;
    let (mode, nodes) = match existing {
        Some(found) if found.signing.is_some() => (Mode::Byzantine, found.nodes.len()),
        Some(found) => (Mode::Crash, found.nodes.len()),
        None => (mode, args.nodes.unwrap_or(config::default_nodes(mode))),
    };
    let program = match &args.program {
        Some(program) => {
            program.canonicalize().with_context(|| format!("there is no {}", program.display()))?
        }
        None => std::env::current_exe().context("cannot find this program to start it again")?,
    };
    let run = |seed: u64| -> anyhow::Result<u64> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).context("no randomness")?;
        // A cluster of our own is new each time. One that was there may have been tried with this seed before.
        Ok(if args.cluster.is_some() { u64::from_le_bytes(bytes) } else { seed })
    };
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let seed = args.seed.unwrap_or_else(clock);
    Ok(Options {
        setup: Setup {
            dir: dir.to_path_buf(),
            program,
            mode,
            nodes,
            groups: args.groups,
            nemeses,
            seed,
            machine: machine.clone(),
            existing: args.cluster.clone(),
        },
        workload,
        seconds: args.seconds,
        clients: args.clients,
        keys: args.keys,
        rate: args.rate,
        run: run(seed)?,
    })
}

fn carry_out(options: &Options, files: &mut Files) -> anyhow::Result<Outcome> {
    let bar = ProgressBar::new(options.seconds);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} s  {msg}")?);
    let outcome = trial::run(options, &bar, &mut files.history);
    bar.finish_and_clear();
    outcome
}

/// Where a trial is written down. Both files are there before it begins: nobody waits for an hour to learn that they have no place.
struct Files {
    history: File,
    page: PathBuf,
}

impl Files {
    fn open(args: &TestArgs, options: &Options, name: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&args.output)
            .with_context(|| format!("cannot create {}", args.output.display()))?;
        let stem = args.output.join(format!("{name}-{}", options.setup.seed));
        let create = |ending: &str| {
            let path = PathBuf::from(format!("{}.{ending}", stem.display()));
            let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()));
            file.map(|file| (file, path))
        };
        let ((history, _), (_, page)) = (create("jsonl")?, create("html")?);
        Ok(Self { history, page })
    }

    /// The verdict is told already: what cannot be written now is no reason to lose it.
    fn report(&self, options: &Options, outcome: &Outcome) {
        if let Some(lack) = &outcome.not_written {
            remark(lack);
        }
        match outcome.write(options, &self.page) {
            Ok(()) => say!("report       {}", self.page.display()),
            Err(lack) => remark(&format!("no report: {lack:#}")),
        }
    }
}

fn print(outcome: &Outcome) {
    say!(
        "operations   {} ({} unknown, {} surely not done) on {} keys",
        outcome.judgement.operations,
        outcome.history.unknown(),
        outcome.history.failed(),
        outcome.judgement.keys
    );
    for (nemesis, counted) in &outcome.effects {
        say!(
            "  {:<16} {:>4} strikes  {:>8} {}",
            nemesis.name(),
            counted.strikes,
            counted.effect,
            nemesis.effect(Kind::Real).unwrap_or_default()
        );
    }
    say!("longest gap  {:.2} s without any answer", outcome.longest_gap().as_secs_f64());
    outcome.broken.iter().for_each(|what| say!("broken       {what}"));
    outcome.void.iter().for_each(|what| say!("void         {what}"));
}

fn in_a_line(nemesis: Nemesis, options: &Options, outcome: &Outcome) -> String {
    let counted = outcome.effects.get(&nemesis);
    format!(
        "{:<16} {:<8} {:>6} operations, {:>3} unknown, longest gap {:>5.2} s, {} strikes, {} {}",
        nemesis.name(),
        options.workload.name(),
        outcome.judgement.operations,
        outcome.history.unknown(),
        outcome.longest_gap().as_secs_f64(),
        counted.map_or(0, |counted| counted.strikes),
        counted.map_or(0, |counted| counted.effect),
        nemesis.effect(Kind::Real).unwrap_or_default()
    )
}

/// The exit code: a broken promise weighs more than a trial that shows nothing.
fn code_of(outcome: &Outcome) -> u8 {
    match (outcome.broken.is_empty(), outcome.void.is_empty()) {
        (true, true) => 0,
        (true, false) => FAILURE,
        (false, _) => VIOLATION,
    }
}

/// Where the nodes' files lie while a trial runs.
struct Scratch(PathBuf, bool);

impl Scratch {
    fn new(keep: bool) -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("tetrachord-trial-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        if keep {
            remark(&format!("the nodes' files stay in {}", dir.display()));
        }
        Ok(Self(dir, keep))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.1 {
            // What cannot be removed stays in the system's temporary directory; nothing depends on it.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
