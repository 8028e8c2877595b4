//! The command line: what people and scripts say to Tetrachord, and what it says back.
//!
//! Data goes to standard output, everything else to standard error. `--json` prints one object for programs. The exit
//! code says what happened; see [`Exit`].

/// Prints a line of the answer; the standard library's would panic if nobody takes it.
macro_rules! println {
    ($($text:tt)*) => { $crate::cli::output::print(format_args!($($text)*)) };
}

/// Says something beside the answer; the standard library's would panic if nobody takes it.
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::cli::output::remark(format_args!($($text)*)) };
}

mod bench;
mod bytes;
mod check;
mod cluster;
mod demo;
mod demo_report;
mod dev;
mod flags;
mod health;
mod history_file;
mod init;
mod kv;
mod liars;
mod log;
mod output;
mod picture;
mod proof;
mod proof_file;
mod record;
mod serve;
mod status;
mod when;
mod workload;

use clap::{Args, Parser, Subcommand};
use log::Log;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const AFTER_HELP: &str = "\
Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 refused or conflict, 5 unavailable (surely not applied),
6 outcome unknown, 7 consistency violation found, 8 denied, 9 a proof does not hold; of a history: 10 malformed,
11 too thin to mean anything, 12 undecided.

Examples:
  tetrachord demo                                  a cluster under fire, judged: the whole thing in one go
  tetrachord init --dir c --nodes 3                keys and files for three nodes
  tetrachord serve --config c/n1/node.toml         run one of them
  tetrachord --cluster c/cluster.toml put k v      talk to them";

/// A request that has no answer by then is given up, if nobody says otherwise.
const DEADLINE: Duration = Duration::from_secs(10);

/// A strongly consistent, replicated key-value store with its own history checker.
#[derive(Debug, Parser)]
#[command(name = "tetrachord", version, about, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// The cluster file that `init` or `dev` wrote
    #[arg(long, global = true, env = "TETRACHORD_CLUSTER", value_name = "FILE")]
    cluster: Option<PathBuf>,
    /// Print one JSON object instead of text for people
    #[arg(long, global = true)]
    json: bool,
    /// Give a request up after this many milliseconds [default: 10000; of `record`: 3000]
    #[arg(long, global = true, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    deadline_ms: Option<u64>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a real cluster, load it, kill its leaders, judge what the clients saw
    Demo(demo::DemoArgs),
    /// Run a cluster on this machine until Ctrl-C
    Dev(dev::DevArgs),
    /// Write keys, the genesis record and one file per node
    Init(init::InitArgs),
    /// Run one node
    Serve(serve::ServeArgs),
    /// Read a key
    Get(kv::GetArgs),
    /// Say whether a key exists
    Exists(kv::ExistsArgs),
    /// Set a key
    Put(kv::PutArgs),
    /// Add bytes behind a value
    Append(kv::AppendArgs),
    /// Remove a key
    Del(kv::DelArgs),
    /// Set a key if it is as expected
    Cas(kv::CasArgs),
    /// Add to a number
    Incr(kv::IncrArgs),
    /// Show nodes and groups, and whether each group serves
    #[command(
        after_help = "Exits 5 if a group has no quorum or no leader, 8 if no node lets this client in. What the words mean: docs/operating.md."
    )]
    Status,
    /// Load a cluster and measure it
    Bench(bench::BenchArgs),
    /// Record what clients see of a cluster
    Record(record::RecordArgs),
    /// Judge a recorded history
    Check(check::CheckArgs),
    /// Judge what replicas have signed
    Proof(proof::ProofArgs),
}

/// What happened, as scripts see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok = 0,
    Error = 1,
    Usage = 2,
    NotFound = 3,
    Refused = 4,
    Unavailable = 5,
    Unknown = 6,
    Violation = 7,
    Denied = 8,
    ProofFailed = 9,
    Malformed = 10,
    Thin = 11,
    Undecided = 12,
}

/// A command line that cannot be meant.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Says what is wrong with the command line.
fn usage(text: impl Into<String>) -> anyhow::Error {
    Usage(text.into()).into()
}

/// A value that no cluster takes.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

/// Says why nobody needs to be asked.
fn refused(text: impl Into<String>) -> anyhow::Error {
    Refused(text.into()).into()
}

/// What an error means for the exit code.
fn exit_of(error: &anyhow::Error) -> Exit {
    match error {
        error if error.is::<Usage>() => Exit::Usage,
        error if error.is::<Refused>() => Exit::Refused,
        _ => Exit::Error,
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Runs the program and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = flags::parse();
    let is_node = matches!(&cli, Ok(Cli { command: Command::Serve(_), .. }));
    if is_node {
        serve::be_thrifty();
    }
    let log = start_logging(is_node);
    let exit = cli.and_then(|cli| run(cli, &log)).unwrap_or_else(|error| {
        log.line(format!("error: {}\n", in_full(&error)).into_bytes());
        exit_of(&error)
    });
    let exit = output::finish(exit, &log);
    log.finish();
    exit.into()
}

/// An error with its causes. Some errors tell their cause themselves: nothing is said twice.
fn in_full(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain().map(ToString::to_string) {
        match said.contains(&cause) {
            _ if said.is_empty() => said = cause,
            true => {}
            false => said = format!("{said}: {cause}"),
        }
    }
    said
}

/// Logs go to standard error; `RUST_LOG` chooses what. A node says more by itself than a client.
fn start_logging(is_node: bool) -> Log {
    let default = if is_node { "info" } else { "error" };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let log = Log::to_standard_error();
    // The subscriber's own way to tell of an event that cannot be written panics where that cannot be told either.
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(log.clone());
    lines.log_internal_errors(false).init();
    log
}

fn run(cli: Cli, log: &Log) -> anyhow::Result<Exit> {
    let common = &cli.common;
    match cli.command {
        Command::Serve(args) => serve::run(&args, log),
        Command::Init(args) => init::run(common, &args),
        Command::Check(args) => check::run(common, &args),
        Command::Proof(args) => proof::run(common, &args),
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let result = runtime.block_on(run_async(common, command));
            // A name may still be looked up, which nobody waits for.
            runtime.shutdown_background();
            result
        }
    }
}

async fn run_async(common: &Common, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Demo(args) => demo::run(common, &args).await,
        Command::Dev(args) => dev::run(common, &args).await,
        Command::Get(args) => kv::get(common, &args).await,
        Command::Exists(args) => kv::exists(common, &args).await,
        Command::Put(args) => kv::put(common, &args).await,
        Command::Append(args) => kv::append(common, &args).await,
        Command::Del(args) => kv::del(common, &args).await,
        Command::Cas(args) => kv::cas(common, &args).await,
        Command::Incr(args) => kv::incr(common, &args).await,
        Command::Status => status::run(common).await,
        Command::Bench(args) => bench::run(common, &args).await,
        Command::Record(args) => record::run(common, &args).await,
        Command::Serve(_) | Command::Init(_) | Command::Check(_) | Command::Proof(_) => {
            unreachable!("these need no runtime")
        }
    }
}

/// A command that was answered leaves no sessions behind, if that can be had soon. It was done whatever becomes of them: those that stay are
/// forgotten by and by.
pub(crate) async fn close(client: &crate::client::Client) {
    const PATIENCE: Duration = Duration::from_millis(500);
    let _ = tokio::time::timeout(PATIENCE, client.close()).await;
}

impl Common {
    /// The cluster that the caller means.
    fn cluster_config(&self) -> anyhow::Result<crate::config::ClusterConfig> {
        Ok(crate::config::ClusterConfig::load(self.cluster_file()?)?)
    }

    /// Where its file is.
    fn cluster_file(&self) -> anyhow::Result<&Path> {
        let Some(path) = &self.cluster else {
            anyhow::bail!(
                "which cluster? Name its cluster file with --cluster FILE or in TETRACHORD_CLUSTER. `tetrachord dev` \
                 prints the one that it wrote, `tetrachord init --dir D` writes D/cluster.toml"
            );
        };
        Ok(path)
    }

    /// How long a request may take, if nobody says, or as they say.
    fn deadline(&self, usual: Duration) -> Duration {
        self.deadline_ms.map_or(usual, Duration::from_millis)
    }

    /// A client of that cluster.
    fn client(&self) -> anyhow::Result<crate::client::Client> {
        let deadline = self.deadline(DEADLINE);
        let options = crate::client::ClientOptions { deadline, ..crate::client::ClientOptions::default() };
        Ok(crate::client::Client::with_options(self.cluster_config()?, options)?)
    }
}
