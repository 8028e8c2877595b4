//! `tetrachord-versus`: the same closed-loop load on Tetrachord and on etcd, in turn, in one run.
//!
//! Both run as they come: three processes on loopback, every write synced, their defaults. etcd's connections all go to
//! its leader, which is its best case. Each cell is measured on both, one directly after the other, in every round; what is
//! reported is the median of the rounds by operations per second. Compare within one run only.

mod etcd;
mod load;
mod ours;
mod processes;

use clap::Parser;
use etcd::EtcdCluster;
use load::{Cell, Measured, Target, measure};
use ours::OurCluster;
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Measure Tetrachord and etcd side by side
#[derive(Debug, Parser)]
#[command(
    after_help = "Examples:\n  tetrachord-versus --clients 1,64 --workloads put,get\n  tetrachord-versus --kills 20      # time without a leader\n  tetrachord-versus --alone --groups 16"
)]
struct Args {
    /// What the clients do: put, get, 50/50, 95/5
    #[arg(long, value_delimiter = ',', default_value = "put,get,50/50,95/5")]
    workloads: Vec<String>,
    /// Concurrent clients
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1024")]
    clients: Vec<usize>,
    /// Bytes of a value
    #[arg(long, value_delimiter = ',', default_value = "100")]
    values: Vec<usize>,
    /// How often everything is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each cell is measured, after one second to warm up
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Connections that the clients share
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Groups of our cluster
    #[arg(long, default_value_t = 1)]
    groups: usize,
    /// Kill leaders so often and measure the time to the next write, instead of load
    #[arg(long)]
    kills: Option<usize>,
    /// Measure our Byzantine mode too: four nodes, signed requests, answers that f + 1 of them agree on
    #[arg(long)]
    byzantine: bool,
    /// Leave etcd out
    #[arg(long)]
    alone: bool,
    /// The etcd program
    #[arg(long, default_value = "etcd")]
    etcd: String,
    /// Where the data of both goes: a directory on the disk to be measured [default: the temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Also write everything that was measured here, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&args))
}

async fn run(args: &Args) -> anyhow::Result<()> {
    match args.kills {
        Some(kills) => compare_failover(args, kills).await,
        None => compare_load(args).await,
    }
}

fn cells(args: &Args) -> anyhow::Result<Vec<Cell>> {
    let mut cells = Vec::new();
    for &value_bytes in &args.values {
        for workload in &args.workloads {
            let read_percent = match workload.as_str() {
                "put" => 0,
                "get" => 100,
                "50/50" => 50,
                "95/5" => 95,
                other => anyhow::bail!("unknown workload {other}: use put, get, 50/50 or 95/5"),
            };
            let clients = args.clients.iter().map(|&clients| Cell { read_percent, clients, value_bytes });
            cells.extend(clients);
        }
    }
    Ok(cells)
}

fn scratch(args: &Args) -> anyhow::Result<tempfile::TempDir> {
    Ok(match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    })
}

/// What both came to in one cell, round by round.
#[derive(Debug, Default)]
struct Results {
    etcd: Vec<Measured>,
    ours: Vec<Measured>,
    byzantine: Vec<Measured>,
}

async fn compare_load(args: &Args) -> anyhow::Result<()> {
    let cells = cells(args)?;
    let mut results: Vec<Results> = cells.iter().map(|_| Results::default()).collect();
    for round in 0..args.rounds {
        let dir = scratch(args)?;
        let ours = OurCluster::start(dir.path(), args.groups, false)?;
        let our_clients = ours.clients(args.connections)?;
        ours.leader(&our_clients[0]).await?;
        let our_target = Target::Ours(our_clients);
        let byzantine = match args.byzantine {
            true => Some(OurCluster::start(dir.path(), args.groups, true)?),
            false => None,
        };
        let byzantine_target = match &byzantine {
            Some(cluster) => {
                let clients = cluster.clients(args.connections)?;
                cluster.leader(&clients[0]).await?;
                Some(Target::Ours(clients))
            }
            None => None,
        };
        let etcd = if args.alone { None } else { Some(EtcdCluster::start(dir.path(), &args.etcd)?) };
        let etcd_target = match &etcd {
            Some(etcd) => Some(Target::Etcd(etcd.client(etcd.leader().await?, args.connections).await?)),
            None => None,
        };
        let mut filled = None;
        for (cell, results) in cells.iter().zip(&mut results) {
            if filled != Some(cell.value_bytes) {
                filled = Some(cell.value_bytes);
                our_target.fill(cell.value_bytes).await?;
                for target in etcd_target.iter().chain(&byzantine_target) {
                    target.fill(cell.value_bytes).await?;
                }
            }
            if let (Some(etcd), Some(target)) = (&etcd, &etcd_target) {
                let measured = measure(target, &etcd.processes, *cell, args.seconds).await?;
                tell(round, "etcd", cell, &measured);
                results.etcd.push(measured);
            }
            let measured = measure(&our_target, &ours.processes, *cell, args.seconds).await?;
            tell(round, "tetrachord", cell, &measured);
            results.ours.push(measured);
            if let (Some(cluster), Some(target)) = (&byzantine, &byzantine_target) {
                let measured = measure(target, &cluster.processes, *cell, args.seconds).await?;
                tell(round, "byzantine", cell, &measured);
                results.byzantine.push(measured);
            }
        }
    }
    report(args, &cells, &results)
}

fn tell(round: usize, who: &str, cell: &Cell, measured: &Measured) {
    eprintln!(
        "round {} {:<10} {:>5} x{:<4} {} B: {:>8.0} ops/s, p50 {} us, p99 {} us, {} errors",
        round + 1,
        who,
        cell.workload(),
        cell.clients,
        cell.value_bytes,
        measured.ops_per_s,
        measured.p50_micros,
        measured.p99_micros,
        measured.errors
    );
}

/// The round in the middle, by operations per second.
fn median(rounds: &[Measured]) -> Option<&Measured> {
    let mut sorted: Vec<&Measured> = rounds.iter().collect();
    sorted.sort_by(|one, other| one.ops_per_s.total_cmp(&other.ops_per_s));
    sorted.get(sorted.len() / 2).copied()
}

fn row(who: &str, cell: &Cell, rounds: &[Measured]) -> Option<String> {
    let measured = median(rounds)?;
    let per_op = |count: u64| count as f64 / measured.operations.max(1) as f64;
    let usage = &measured.usage;
    Some(format!(
        "| {} | {} | {} | {who} | {:.0} | {:.2} | {:.2} | {:.1} | {:.3} | {:.2} | {:.0} | {:.2} | {} | {} |",
        cell.workload(),
        cell.value_bytes,
        cell.clients,
        measured.ops_per_s,
        measured.p50_micros as f64 / 1e3,
        measured.p99_micros as f64 / 1e3,
        per_op(usage.cpu_micros),
        per_op(usage.flushes),
        per_op(usage.packets),
        per_op(usage.bytes),
        per_op(usage.switches),
        if measured.signatures > 0 { format!("{:.3}", per_op(measured.signatures)) } else { "-".to_string() },
        usage.resident_bytes >> 20,
    ))
}

fn report(args: &Args, cells: &[Cell], results: &[Results]) -> anyhow::Result<()> {
    println!(
        "| workload | bytes | clients | store | ops/s | p50 ms | p99 ms | CPU us/op | flushes/op | packets/op | bytes/op | switches/op | signatures/op | MiB |"
    );
    println!("|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for (cell, results) in cells.iter().zip(results) {
        let rows = [
            row("etcd", cell, &results.etcd),
            row("tetrachord", cell, &results.ours),
            row("tetrachord, Byzantine mode", cell, &results.byzantine),
        ];
        for row in rows.into_iter().flatten() {
            println!("{row}");
        }
    }
    if !args.alone {
        println!(
            "\n| workload | bytes | clients | ops/s, times etcd's | p50, of etcd's | p99, of etcd's | CPU, of etcd's |"
        );
        println!("|---|--:|--:|--:|--:|--:|--:|");
    }
    for (cell, results) in cells.iter().zip(results) {
        if let (Some(etcd), Some(ours)) = (median(&results.etcd), median(&results.ours)) {
            let cpu =
                |measured: &Measured| measured.usage.cpu_micros as f64 / measured.operations.max(1) as f64;
            println!(
                "| {} | {} | {} | {:.1} | {:.2} | {:.2} | {:.2} |",
                cell.workload(),
                cell.value_bytes,
                cell.clients,
                ours.ops_per_s / etcd.ops_per_s,
                ours.p50_micros as f64 / etcd.p50_micros as f64,
                ours.p99_micros as f64 / etcd.p99_micros as f64,
                cpu(ours) / cpu(etcd)
            );
        }
    }
    print_byzantine_ratios(cells, results);
    let rounds = |rounds: &[Measured]| -> Vec<serde_json::Value> {
        let one = |measured: &Measured| {
            json!({
                "ops_per_s": measured.ops_per_s.round(),
                "p50_us": measured.p50_micros,
                "p99_us": measured.p99_micros,
                "errors": measured.errors,
                "operations": measured.operations,
                "cpu_us": measured.usage.cpu_micros,
                "flushes": measured.usage.flushes,
                "packets": measured.usage.packets,
                "bytes": measured.usage.bytes,
                "signatures": measured.signatures,
                "switches": measured.usage.switches,
                "resident_bytes": measured.usage.resident_bytes,
            })
        };
        rounds.iter().map(one).collect()
    };
    if let Some(path) = &args.json {
        let all: Vec<serde_json::Value> = cells
            .iter()
            .zip(results)
            .map(|(cell, results)| {
                json!({
                    "workload": cell.workload(),
                    "clients": cell.clients,
                    "value_bytes": cell.value_bytes,
                    "etcd": rounds(&results.etcd),
                    "tetrachord": rounds(&results.ours),
                    "byzantine": rounds(&results.byzantine),
                })
            })
            .collect();
        std::fs::write(path, serde_json::to_string_pretty(&all)?)?;
    }
    Ok(())
}

/// What surviving liars costs, against surviving crashes.
fn print_byzantine_ratios(cells: &[Cell], results: &[Results]) {
    let measured = || cells.iter().zip(results).filter(|(_, results)| !results.byzantine.is_empty());
    if measured().next().is_none() {
        return;
    }
    println!(
        "\n| workload | bytes | clients | Byzantine ops/s, times crash mode's | times etcd's | CPU, of crash mode's |"
    );
    println!("|---|--:|--:|--:|--:|--:|");
    for (cell, results) in measured() {
        let (Some(crash), Some(byzantine)) = (median(&results.ours), median(&results.byzantine)) else {
            continue;
        };
        let cpu = |measured: &Measured| measured.usage.cpu_micros as f64 / measured.operations.max(1) as f64;
        let of_etcd = median(&results.etcd)
            .map_or("-".to_string(), |etcd| format!("{:.1}", byzantine.ops_per_s / etcd.ops_per_s));
        println!(
            "| {} | {} | {} | {:.2} | {of_etcd} | {:.1} |",
            cell.workload(),
            cell.value_bytes,
            cell.clients,
            byzantine.ops_per_s / crash.ops_per_s,
            cpu(byzantine) / cpu(crash)
        );
    }
}

/// Kills the leader again and again; the time from the kill to the end of the first write that began after it.
async fn compare_failover(args: &Args, kills: usize) -> anyhow::Result<()> {
    let dir = scratch(args)?;
    let (mut etcd_times, mut our_times) = (Vec::new(), Vec::new());
    let mut ours = OurCluster::start(dir.path(), args.groups, false)?;
    let our_client = ours.clients(1)?.remove(0);
    let mut etcd = if args.alone { None } else { Some(EtcdCluster::start(dir.path(), &args.etcd)?) };
    for kill in 0..kills {
        if let Some(etcd) = &mut etcd {
            let leader = etcd.leader().await?;
            let client = etcd.client(leader, 1).await?;
            client.put_anywhere("before", b"v").await?;
            etcd.processes.kill(leader)?;
            let killed = Instant::now();
            client.put_anywhere("after", b"v").await?;
            etcd_times.push(killed.elapsed());
            etcd.start_member(leader)?;
            // The member must be back before the next one goes.
            while etcd.client(leader, 1).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let leader = ours.leader(&our_client).await?;
        our_client.put("before", "v").await.done()?;
        ours.processes.kill(leader)?;
        let killed = Instant::now();
        our_client.put("after", "v").await.done()?;
        our_times.push(killed.elapsed());
        ours.start_node(leader)?;
        ours.leader(&our_client).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let told = |times: &[Duration]| times.last().map_or(0, Duration::as_millis);
        eprintln!("kill {}: etcd {} ms, tetrachord {} ms", kill + 1, told(&etcd_times), told(&our_times));
    }
    println!("| store | kills | median ms | worst ms | all |\n|---|--:|--:|--:|---|");
    for (who, times) in [("etcd", &mut etcd_times), ("tetrachord", &mut our_times)] {
        times.sort();
        let millis: Vec<String> = times.iter().map(|time| time.as_millis().to_string()).collect();
        if let (Some(middle), Some(worst)) = (millis.get(millis.len() / 2), millis.last()) {
            println!("| {who} | {} | {middle} | {worst} | {} |", millis.len(), millis.join(" "));
        }
    }
    Ok(())
}
