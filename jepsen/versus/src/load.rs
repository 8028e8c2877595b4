//! A closed loop: each client waits for its answer before it asks again. The same code loads both stores.

use crate::etcd::EtcdClient;
use crate::processes::{Processes, Usage};
use hdrhistogram::Histogram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tetrachord::client::Outcome;

/// Keys in use, all of them written before anything is measured.
pub(crate) const KEYS: u64 = 10_000;

/// Latencies above one minute count as one minute.
const LATENCY_MICROS_MAX: u64 = 60_000_000;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    /// Linearizable reads among a hundred operations; the rest are puts.
    pub(crate) read_percent: u64,
    pub(crate) clients: usize,
    pub(crate) value_bytes: usize,
}

impl Cell {
    pub(crate) fn workload(&self) -> &'static str {
        match self.read_percent {
            0 => "put",
            100 => "get",
            50 => "50/50",
            95 => "95/5",
            _ => "mixed",
        }
    }
}

/// A store under load.
#[derive(Clone)]
pub(crate) enum Target {
    Etcd(EtcdClient),
    Ours(Vec<tetrachord::Client>),
}

impl Target {
    async fn put(&self, client: usize, key: &str, value: &[u8]) -> bool {
        match self {
            Self::Etcd(etcd) => etcd.put(client, key, value).await.is_ok(),
            Self::Ours(clients) => {
                matches!(clients[client % clients.len()].put(key, value).await, Outcome::Done(_))
            }
        }
    }

    async fn get(&self, client: usize, key: &str) -> bool {
        match self {
            Self::Etcd(etcd) => etcd.get(client, key).await.is_ok(),
            Self::Ours(clients) => {
                matches!(clients[client % clients.len()].get(key).await, Outcome::Done(Some(_)))
            }
        }
    }

    /// Signatures that the servers have made and checked so far.
    async fn signatures(&self) -> u64 {
        let Self::Ours(clients) = self else { return 0 };
        let mut sum = 0;
        for node in clients[0].nodes() {
            let groups = clients[0].status(node).await.map(|status| status.groups).unwrap_or_default();
            sum += groups.iter().map(|group| group.signatures_made + group.signatures_checked).sum::<u64>();
        }
        sum
    }

    /// Writes every key once.
    pub(crate) async fn fill(&self, value_bytes: usize) -> anyhow::Result<()> {
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..64 {
            let (target, next, value) = (self.clone(), Arc::clone(&next), vec![b'v'; value_bytes]);
            tasks.spawn(async move {
                loop {
                    let key = next.fetch_add(1, Ordering::Relaxed);
                    if key >= KEYS {
                        return true;
                    }
                    if !target.put(client, &name(key), &value).await {
                        return false;
                    }
                }
            });
        }
        let filled = tasks.join_all().await;
        anyhow::ensure!(filled.iter().all(|is_done| *is_done), "a key could not be written");
        Ok(())
    }
}

fn name(key: u64) -> String {
    format!("versus:{key:08}")
}

/// What one cell came to.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) ops_per_s: f64,
    pub(crate) p50_micros: u64,
    pub(crate) p99_micros: u64,
    pub(crate) errors: u64,
    pub(crate) operations: u64,
    pub(crate) usage: Usage,
    /// Signatures that the servers made and checked; none if they sign nothing.
    pub(crate) signatures: u64,
}

/// Loads a store for one second unmeasured, then for `seconds`.
pub(crate) async fn measure(
    target: &Target,
    processes: &Processes,
    cell: Cell,
    seconds: u64,
) -> anyhow::Result<Measured> {
    let shared = Arc::new(Shared::default());
    let tasks: Vec<_> = (0..cell.clients)
        .map(|client| tokio::spawn(work(target.clone(), client, cell, Arc::clone(&shared))))
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, signed_before) = (processes.usage(), target.signatures().await);
    shared.measuring.store(true, Ordering::Relaxed);
    let started = Instant::now();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    shared.measuring.store(false, Ordering::Relaxed);
    let elapsed = started.elapsed();
    let usage = processes.usage().since(&before);
    let signatures = target.signatures().await.saturating_sub(signed_before);
    shared.stop.store(true, Ordering::Relaxed);
    let mut total = Histogram::<u64>::new_with_max(LATENCY_MICROS_MAX, 3)?;
    for task in tasks {
        total.add(task.await??)?;
    }
    let answered = shared.answered.load(Ordering::Relaxed);
    Ok(Measured {
        ops_per_s: answered as f64 / elapsed.as_secs_f64(),
        p50_micros: total.value_at_quantile(0.5),
        p99_micros: total.value_at_quantile(0.99),
        errors: shared.errors.load(Ordering::Relaxed),
        operations: answered,
        usage,
        signatures,
    })
}

#[derive(Default)]
struct Shared {
    measuring: AtomicBool,
    stop: AtomicBool,
    /// Done within the measured time, whenever they began.
    answered: AtomicU64,
    /// Begun within the measured time and not done, whenever they ended.
    errors: AtomicU64,
}

async fn work(
    target: Target,
    client: usize,
    cell: Cell,
    shared: Arc<Shared>,
) -> anyhow::Result<Histogram<u64>> {
    let mut histogram = Histogram::<u64>::new_with_max(LATENCY_MICROS_MAX, 3)?;
    let value = vec![b'w'; cell.value_bytes];
    let mut random = client as u64 * 2 + 1;
    while !shared.stop.load(Ordering::Relaxed) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let key = name((random >> 33) % KEYS);
        let is_read = (random >> 20) % 100 < cell.read_percent;
        // What begins within the measured time counts, however late and however it ends: an outage must not make figures better.
        let (counts, started) = (shared.measuring.load(Ordering::Relaxed), Instant::now());
        let is_done =
            if is_read { target.get(client, &key).await } else { target.put(client, &key, &value).await };
        if counts {
            histogram.saturating_record(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX));
            shared.errors.fetch_add(u64::from(!is_done), Ordering::Relaxed);
        }
        let is_answered = is_done && shared.measuring.load(Ordering::Relaxed);
        shared.answered.fetch_add(u64::from(is_answered), Ordering::Relaxed);
        if !is_done {
            // A store that refuses at once must not become a busy loop.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    Ok(histogram)
}
