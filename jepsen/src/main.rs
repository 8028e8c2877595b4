//! `tetrachord-jepsen`: the judge's command line.

mod command;

use clap::{Parser, Subcommand};
use command::{list, sim, test};
use std::process::ExitCode;

const AFTER_HELP: &str = "\
It tests Tetrachord and nothing else: its clients speak to Tetrachord, its simulator is made of Tetrachord's nodes. To judge another
store, let your own clients write a history (docs/testing.md has the format) and give it to `tetrachord check`.

Exit codes: 0 everything held, 1 error or a run that shows nothing, 2 usage, 7 a promise was broken.";

/// Attacks what Tetrachord promises, and judges what clients saw.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Names every workload and nemesis, with a line each.
    List,
    /// Runs whole clusters in a simulated world: virtual time, faulty network, disks and clocks, nodes that lie.
    ///
    /// Each seed draws its own cluster, load and faults, and replays byte for byte on any machine.
    #[command(
        after_help = "Examples:\n  tetrachord-jepsen sim --seeds 1000\n  tetrachord-jepsen sim --seed 17 --trace"
    )]
    Sim(sim::SimArgs),
    /// Breaks a cluster of real processes while clients use it, judges what they saw, and writes a report.
    ///
    /// As root on Linux every node has a network namespace and a disk of its own; elsewhere nodes share loopback, and what cannot
    /// be broken there is said.
    #[command(after_help = test::EXAMPLES)]
    Test(test::TestArgs),
}

fn main() -> ExitCode {
    // The nodes of a trial are this program too, unless another one is to be tested.
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return tetrachord::cli::main();
    }
    let done = match Cli::parse().command {
        Command::List => {
            list::run();
            Ok(ExitCode::SUCCESS)
        }
        Command::Sim(args) => sim::run(&args),
        Command::Test(args) => test::run(&args),
    };
    done.unwrap_or_else(|error| {
        command::remark(&format!("error: {error:#}"));
        ExitCode::from(command::FAILURE)
    })
}
