//! `tetrachord bench`: a closed loop of clients, and what it costs.

use super::output::{print_json, table};
use super::{Common, Exit, status};
use crate::client::{Client, Outcome};
use anyhow::Context;
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Load a cluster and measure it
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tetrachord --cluster c/cluster.toml bench --workload put --clients 64 --seconds 10\n  tetrachord --cluster c/cluster.toml bench --workload fill --keys 1000000 --passes 6 --clients 256\n\nEach client waits for its answer before it asks again. CPU is user and system time of all nodes together."
)]
pub(crate) struct BenchArgs {
    /// What the clients do
    #[arg(long, value_enum, default_value_t = Workload::Put)]
    workload: Workload,
    /// Concurrent clients
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// How long to measure, after one second to warm up; `fill` ends when it is done
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,
    /// Keys that are used, at random; `fill` writes them in turn
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
    /// How often `fill` writes each key
    #[arg(long, default_value_t = 1)]
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

/// Latencies above one minute count as one minute.
const LATENCY_MICROS_MAX: u64 = 60_000_000;

/// Connections that the clients share.
const CONNECTIONS_MAX: usize = 16;

struct Shared {
    stop: AtomicBool,
    measuring: AtomicBool,
    errors: AtomicU64,
    /// Writes that `fill` has begun.
    begun: AtomicU64,
}

pub(crate) async fn run(common: &Common, args: &BenchArgs) -> anyhow::Result<Exit> {
    anyhow::ensure!(
        args.clients > 0 && args.seconds > 0 && args.keys > 0 && args.passes > 0,
        "clients, seconds, keys and passes must be positive"
    );
    let clients: Vec<Client> =
        (0..args.clients.min(CONNECTIONS_MAX)).map(|_| common.client()).collect::<Result<_, _>>()?;
    clients[0].put("bench:warm-up", "x").await.done().context("the cluster does not take writes")?;
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        measuring: AtomicBool::new(false),
        errors: AtomicU64::new(0),
        begun: AtomicU64::new(0),
    });
    let total = (args.workload == Workload::Fill).then(|| args.keys.saturating_mul(args.passes));
    let mut tasks = Vec::new();
    for index in 0..args.clients {
        let client = clients[index % clients.len()].clone();
        let (workload, value) = (args.workload, vec![b'v'; args.value_bytes]);
        tasks.push(tokio::spawn(work(
            client,
            Arc::clone(&shared),
            workload,
            value,
            (args.keys, args.passes),
            super::record::seed(index)?,
        )));
    }
    if total.is_none() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let cpu_before = cpu_micros(&clients[0]).await;
    shared.measuring.store(true, Ordering::Relaxed);
    let started = Instant::now();
    watch(&shared, total, args.seconds).await;
    shared.measuring.store(false, Ordering::Relaxed);
    let elapsed = started.elapsed();
    let cpu = cpu_micros(&clients[0]).await.saturating_sub(cpu_before);
    shared.stop.store(true, Ordering::Relaxed);
    let mut total = Histogram::<u64>::new_with_max(LATENCY_MICROS_MAX, 3)?;
    for task in tasks {
        total.add(task.await??)?;
    }
    print(common, args, &total, elapsed, cpu, shared.errors.load(Ordering::Relaxed));
    Ok(Exit::Ok)
}

/// Shows how far it is, until the time is over or everything was begun.
async fn watch(shared: &Shared, total: Option<u64>, seconds: u64) {
    let bar = ProgressBar::new(total.unwrap_or(seconds));
    let is_done = |passed: u64| match total {
        Some(total) => shared.begun.load(Ordering::Relaxed) >= total,
        None => passed >= seconds,
    };
    let mut passed = 0;
    while !is_done(passed) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        passed += 1;
        bar.set_position(total.map_or(passed, |total| shared.begun.load(Ordering::Relaxed).min(total)));
    }
    bar.finish_and_clear();
}

async fn work(
    client: Client,
    shared: Arc<Shared>,
    workload: Workload,
    mut value: Vec<u8>,
    (keys, passes): (u64, u64),
    seed: u64,
) -> anyhow::Result<Histogram<u64>> {
    let mut histogram = Histogram::<u64>::new_with_max(LATENCY_MICROS_MAX, 3)?;
    let mut random = seed | 1;
    while !shared.stop.load(Ordering::Relaxed) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut chosen = (random >> 33) % keys;
        if workload == Workload::Fill {
            let turn = shared.begun.fetch_add(1, Ordering::Relaxed);
            if turn >= keys * passes {
                break;
            }
            chosen = turn % keys;
            // Another value each time, as in life.
            let text = turn.to_string();
            let length = text.len().min(value.len());
            value[..length].copy_from_slice(&text.as_bytes()[..length]);
        }
        let key = format!("bench:{chosen:08}");
        let is_put = workload == Workload::Fill
            || workload == Workload::Put
            || workload == Workload::Mixed && random >> 63 == 0;
        let started = Instant::now();
        let is_done = if is_put {
            matches!(client.put(&key, &value).await, Outcome::Done(_))
        } else {
            matches!(client.get(&key).await, Outcome::Done(_))
        };
        if shared.measuring.load(Ordering::Relaxed) {
            if is_done {
                histogram.saturating_record(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX));
            } else {
                shared.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(histogram)
}

/// CPU time of all nodes that answer, in microseconds.
async fn cpu_micros(client: &Client) -> u64 {
    let answers = status::ask_all(client).await;
    answers.into_iter().filter_map(|(_, answer)| answer.ok()).map(|status| status.process.cpu_micros).sum()
}

fn print(
    common: &Common,
    args: &BenchArgs,
    histogram: &Histogram<u64>,
    elapsed: Duration,
    cpu_micros: u64,
    errors: u64,
) {
    let operations = histogram.len();
    let per_second = operations as f64 / elapsed.as_secs_f64();
    let cpu_per_operation = if operations == 0 { 0.0 } else { cpu_micros as f64 / operations as f64 };
    let (p50, p99, max) =
        (histogram.value_at_quantile(0.5), histogram.value_at_quantile(0.99), histogram.max());
    if common.json {
        print_json(&json!({
            "workload": format!("{:?}", args.workload).to_lowercase(),
            "clients": args.clients,
            "seconds": elapsed.as_secs_f64(),
            "value_bytes": args.value_bytes,
            "operations": operations,
            "ops_per_s": per_second.round(),
            "p50_us": p50,
            "p99_us": p99,
            "max_us": max,
            "errors": errors,
            "cpu_us_per_op": (cpu_per_operation * 10.0).round() / 10.0,
        }));
        return;
    }
    let mut rows = table(&["WORKLOAD", "CLIENTS", "OPS/S", "P50", "P99", "MAX", "ERRORS", "NODE CPU/OP"]);
    rows.add_row(vec![
        format!("{:?}", args.workload).to_lowercase(),
        args.clients.to_string(),
        format!("{per_second:.0}"),
        format!("{:.2} ms", p50 as f64 / 1e3),
        format!("{:.2} ms", p99 as f64 / 1e3),
        format!("{:.2} ms", max as f64 / 1e3),
        errors.to_string(),
        format!("{cpu_per_operation:.1} us"),
    ]);
    println!("{rows}");
}
