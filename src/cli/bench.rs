//! `tetrachord bench`: load, and what became of it.

mod load;
mod report;
mod tally;

use super::output::{not_done, print_json};
use super::{Common, Exit, status};
use crate::client::Client;
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use load::{Load, Pace};
use report::Report;
use std::collections::BTreeMap;
use std::sync::Arc;
use tally::Tally;

const EXAMPLES: &str = "\
Examples:
  tetrachord --cluster c/cluster.toml bench --workload put --clients 64 --seconds 10
  tetrachord --cluster c/cluster.toml bench --rate 5000 --clients 256
  tetrachord --cluster c/cluster.toml bench --workload fill --keys 1000000 --passes 6 --clients 256

Without --rate each client asks again when its request before has ended. With it, requests should begin evenly at that rate, whatever
becomes of those before, and latencies run from the moment at which a request should have begun (good to a millisecond). Every
request that should have begun within the measured time counts, however late it ends; those that are not done are in the latencies
with the time until they were given up, and are errors: unknown, unavailable, refused, or not sent because all clients waited.
OPS/S counts what was answered within the time. CPU is user and system time of all nodes together.

Exits 0 if anything was answered, errors or not; else 6 if the outcome of a request is unknown, 5 if none was taken, 4 if all were
refused.";

/// Load a cluster and measure it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    /// What the clients do
    #[arg(long, value_enum, default_value_t = Workload::Put)]
    workload: Workload,
    /// Concurrent clients; with --rate, the most requests that are open at a time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    clients: u64,
    /// How long to measure, after one second to warm up; `fill` ends when it is done
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    seconds: u64,
    /// Requests a second of all clients together [default: as many as they can]
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: Option<u64>,
    /// Bytes of a value
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,
    /// Keys that are used, at random; `fill` writes them in turn
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// How often `fill` writes each key
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    passes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Writes
    Put,
    /// Linearizable reads
    Get,
    /// Half of each
    Mixed,
    /// Writes of every key, as often as `--passes` says
    Fill,
}

/// Connections that the clients share.
const CONNECTIONS_MAX: u64 = 16;

/// Before anything is measured.
const WARM_UP_MICROS: u64 = 1_000_000;

impl BenchArgs {
    /// When requests begin, and from when until when it is measured.
    fn plan(&self) -> anyhow::Result<(Pace, std::ops::Range<u64>)> {
        match (self.workload, self.rate) {
            (Workload::Fill, None) => Ok((Pace::Total(self.keys.saturating_mul(self.passes)), 0..u64::MAX)),
            (Workload::Fill, Some(_)) => {
                Err(super::usage("--rate means nothing to `fill`, which writes as fast as it can"))
            }
            (_, rate) => {
                let pace = rate.map_or(Pace::Closed, |per_second| Pace::Open { per_second });
                Ok((pace, WARM_UP_MICROS..WARM_UP_MICROS + self.seconds * 1_000_000))
            }
        }
    }
}

pub(crate) async fn run(common: &Common, args: &BenchArgs) -> anyhow::Result<Exit> {
    let (pace, window) = args.plan()?;
    let clients: Vec<Client> =
        (0..args.clients.min(CONNECTIONS_MAX)).map(|_| common.client()).collect::<Result<_, _>>()?;
    if let Err(error) = clients[0].put("bench:warm-up", vec![b'v'; args.value_bytes]).await.done() {
        return Ok(not_done(&error, common.json));
    }
    let tally = Tally::new(window.clone())?;
    let load = Arc::new(Load::new((args.workload, pace), (args.keys, args.value_bytes), window.end, tally));
    let mut tasks = Vec::new();
    for (index, client) in (0..args.clients).zip(clients.iter().cycle()) {
        let (load, client, seed) =
            (Arc::clone(&load), client.clone(), super::record::seed(usize::try_from(index)?)?);
        tasks.push(tokio::spawn(async move { load.work(client, seed).await }));
    }
    load.sleep_until(window.start).await;
    let cpu_before = cpu_micros(&clients[0]).await;
    let bar = ProgressBar::new(0);
    let progress = tokio::spawn(show_progress(Arc::clone(&load), window.end, bar.clone()));
    // When all is written, `fill` is over.
    let cpu_after = match pace {
        Pace::Total(_) => None,
        _ => {
            load.sleep_until(window.end).await;
            Some(cpu_micros(&clients[0]).await)
        }
    };
    // Each request has its deadline.
    for task in tasks {
        task.await?;
    }
    let ended = load.now().min(window.end);
    progress.abort();
    bar.finish_and_clear();
    let cpu_after = match cpu_after {
        Some(cpu) => cpu,
        None => cpu_micros(&clients[0]).await,
    };
    let exit = {
        let tally = load.tally();
        let report = Report {
            args,
            tally: &tally,
            micros: ended - window.start,
            gap: tally.longest_gap(ended),
            cpu_micros: cpu_between(&cpu_before, &cpu_after),
        };
        if common.json {
            print_json(&report.json());
        } else {
            println!("{}", report.words());
        }
        report.exit()
    };
    let closing = clients.into_iter().map(|client| async move { super::close(&client).await });
    closing.collect::<tokio::task::JoinSet<_>>().join_all().await;
    Ok(exit)
}

/// Shows how far it is, until it is not asked any more.
async fn show_progress(load: Arc<Load>, until: u64, bar: ProgressBar) {
    loop {
        let (position, length) = match load.pace {
            Pace::Total(total) => (load.begun(), total),
            _ => (load.now() / 1_000_000, until / 1_000_000),
        };
        bar.set_length(length);
        bar.set_position(position.min(length));
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

/// CPU time of each node that answers, in microseconds, and which life of it this is.
type Cpu = BTreeMap<crate::ring::NodeId, Option<(u64, u64)>>;

async fn cpu_micros(client: &Client) -> Cpu {
    let answers = status::ask_all(client).await.into_iter();
    let told = |answer: Result<crate::wire::NodeStatus, crate::client::Refusal>| {
        answer.ok().map(|status| (status.incarnation, status.process.cpu_micros))
    };
    answers.map(|(node, answer)| (node, told(answer))).collect()
}

/// What all nodes used between; none if one did not tell, or is not the process that it was.
fn cpu_between(before: &Cpu, after: &Cpu) -> Option<u64> {
    let used = before.iter().map(|(node, before)| {
        let ((life, from), (life_then, until)) = ((*before)?, after.get(node).copied().flatten()?);
        (life == life_then).then(|| until.saturating_sub(from))
    });
    used.sum()
}
