//! The shell of a node: clock, sockets and disk around [`NodeCore`]. It decides nothing.
//!
//! The *node* thread runs the network and the core in turns, so that what arrives is handled without a hand-over between
//! threads. The threads of the store ([`crate::storage::disk`]) wait for the disk. What arrives while a turn is under way
//! is taken as a whole in the next one.

use super::core::{Class, NodeCore, NodeEffect, NodeEvent, NodeSettings, Room};
use super::pool::{Pool, Verdict};
use crate::config::{ChaosConfig, Mode, NodeConfig, cluster_digest};
use crate::group::{Byzantine, Settings};
use crate::limits::{OVERLAY_BYTES_MAX, WINDOW};
use crate::ring::{Place, TenureId};
use crate::storage::disk::{DiskOptions, DiskStorage, PackingRule, Report};
use crate::storage::{Owner, free_bytes};
use crate::transport::{Inbound, PeerAddress, Transport, TransportSettings};
use crate::wire::{self, Hello, ProcessStats};
use anyhow::Context;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tetrachord_consensus::pbft::{Lie, Verifier};
use tetrachord_consensus::{Options, Ticks, Timestamp};
use tokio::sync::mpsc;

/// The core is told the time this often.
const TICK: Duration = Duration::from_millis(10);

/// Frames that wait between the network and the core.
const INBOX_FRAMES: usize = 4096;

/// Bounds of the size of one segment of the log.
const SEGMENT_BYTES_MIN: u64 = 64 << 10;
const SEGMENT_BYTES_MAX: u64 = 8 << 20;

/// The tree is packed when no state was written for so long.
const PACKING_IDLE: Duration = Duration::from_secs(5);

/// What the process uses is measured every so many ticks.
const PROCESS_TICKS: u64 = 50;

/// Threads that check signatures, at most.
const POOL_THREADS_MAX: usize = 4;

/// After a hand-over of leaderships is asked for, the node stays this long.
const HAND_OVER: Duration = Duration::from_millis(300);

/// Runs one node until it is asked to stop (SIGTERM, SIGINT) or must stop.
pub fn run(config: NodeConfig) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let (shell, inputs) = start(config)?;
        shell.turn(inputs).await
    });
    // A name may still be looked up, which nobody waits for.
    runtime.shutdown_background();
    result
}

/// What a node waits for.
struct Inputs {
    inbox: mpsc::Receiver<Inbound>,
    reported: mpsc::UnboundedReceiver<Report>,
    judged: mpsc::UnboundedReceiver<Option<Vec<Verdict>>>,
}

fn start(config: NodeConfig) -> anyhow::Result<(Shell, Inputs)> {
    let (reports, reported) = mpsc::unbounded_channel();
    let report = move |report| drop(reports.send(report));
    let owner = Owner { cluster: config.genesis.cluster.clone(), node: config.node };
    let (storage, recovery) = DiskStorage::open(&config.data_dir, &owner, disk_options(&config), report)
        .with_context(|| format!("{} cannot use {}", config.node, config.data_dir.display()))?;
    let incarnation = recovery.incarnation;
    let core = NodeCore::open(node_settings(&config)?, Box::new(storage), recovery)?;
    let (verdicts, judged) = mpsc::unbounded_channel();
    let verifiers = core.verifiers();
    let pool =
        Pool::start(pool_threads(&verifiers), &verifiers, move |verdict| drop(verdicts.send(verdict)))?;
    let (inbound, inbox) = mpsc::channel(INBOX_FRAMES);
    let listen = config.listen;
    let transport = Transport::start(transport_settings(&config), inbound)?;
    tracing::info!(node = %config.node, %listen, incarnation, "serving");
    let (data_dir, reserve_bytes) = (config.data_dir, config.storage.reserve_bytes);
    let shell = Shell {
        core,
        transport,
        pool,
        started: Instant::now(),
        ticks: 0,
        data_dir,
        reserve_bytes,
        room: Room::Enough,
        lies: config.chaos.as_ref().map(ChaosConfig::lies).unwrap_or_default(),
        lie_ticks: config.chaos.as_ref().map_or(1, |chaos| (chaos.every_millis / 10).max(1)),
    };
    Ok((shell, Inputs { inbox, reported, judged }))
}

/// Half of the machine for checking signatures, where there are any to check.
fn pool_threads(verifiers: &BTreeMap<TenureId, Verifier>) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if verifiers.is_empty() { 0 } else { (cores / 2).clamp(1, POOL_THREADS_MAX) }
}

/// A quarter of the log a segment, so that what is void can be used again soon.
fn disk_options(config: &NodeConfig) -> DiskOptions {
    let segment = (config.storage.log_max_bytes / 4).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
    let segment_bytes = usize::try_from(segment).expect("a few MiB");
    let packing = PackingRule { above_bytes: config.storage.pack_above_bytes, idle: PACKING_IDLE };
    let is_repairable = config.genesis.mode == Mode::Byzantine;
    DiskOptions { cache_bytes: config.storage.cache_bytes, segment_bytes, packing, is_repairable }
}

fn node_settings(config: &NodeConfig) -> anyhow::Result<NodeSettings> {
    let genesis = &config.genesis;
    let options = Options {
        heartbeat_ticks: genesis.timing.heartbeat_millis,
        election_ticks: genesis.timing.election_millis,
        // The core makes another of it in each life.
        seed: config.node.mixed() << 48,
        ..Options::default()
    };
    let founding = genesis.founding();
    let hosted = founding.iter().filter(|tenure| tenure.index_of(config.node).is_some()).count();
    let groups = hosted.max(1);
    let mut opening = [0; 8];
    getrandom::fill(&mut opening).context("draw a name for this start")?;
    Ok(NodeSettings {
        node: config.node,
        founding,
        group: Settings {
            limits: genesis.limits,
            options,
            overlay_bytes_max: OVERLAY_BYTES_MAX / groups,
            retain_bytes: usize::try_from(config.storage.log_retain_bytes).unwrap_or(usize::MAX) / groups,
            pinned_bytes: usize::try_from(config.storage.log_pinned_bytes).unwrap_or(usize::MAX),
            byzantine: byzantine(config),
        },
        log_bytes_max: config.storage.log_max_bytes,
        nodes: genesis.nodes.iter().map(|node| node.id).collect(),
        opening: u64::from_be_bytes(opening),
    })
}

fn byzantine(config: &NodeConfig) -> Option<Byzantine> {
    let genesis = &config.genesis;
    (genesis.mode == Mode::Byzantine).then(|| Byzantine {
        cluster: cluster_digest(&genesis.protocol_name()),
        secrets: config.epoch_keys.iter().map(|(tenure, key)| (*tenure, key.seed())).collect(),
        clients: genesis.clients.iter().filter_map(|client| Some(client.signing_key?.0)).collect(),
        request_millis: genesis.timing.request_millis,
        window: WINDOW,
        scrub_millis: config.storage.scrub_seconds.saturating_mul(1_000),
        chaos: config.chaos.as_ref().map(|_| config.node.mixed()),
    })
}

fn transport_settings(config: &NodeConfig) -> TransportSettings {
    let genesis = &config.genesis;
    let cluster = genesis.protocol_name();
    let hello = Hello {
        cluster: cluster.clone(),
        node: config.node,
        places: genesis.founding().iter().map(Place::from).collect(),
        limits: genesis.limits,
        is_byzantine: genesis.mode == Mode::Byzantine,
    };
    let others = genesis.nodes.iter().filter(|node| node.id != config.node);
    TransportSettings {
        node: config.node,
        identity: config.identity.clone(),
        listen: config.listen,
        peers: others
            .map(|node| PeerAddress { node: node.id, address: node.address.clone(), key: node.key })
            .collect(),
        clients: genesis.clients.iter().map(|client| client.key).collect(),
        cluster,
        greeting: wire::encode(&hello),
    }
}

struct Shell {
    core: NodeCore,
    transport: Transport,
    pool: Pool,
    started: Instant,
    ticks: u64,
    data_dir: PathBuf,
    reserve_bytes: u64,
    room: Room,
    /// Lies that the node was told to tell, and for how many ticks each.
    lies: Vec<Lie>,
    lie_ticks: u64,
}

impl Shell {
    /// Takes turns: wait for something, take everything that is there, let the core order and log it, act.
    async fn turn(mut self, inputs: Inputs) -> anyhow::Result<()> {
        let Inputs { mut inbox, mut reported, mut judged } = inputs;
        let mut ticker = tokio::time::interval(TICK);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stop = std::pin::pin!(stop_signal());
        let mut failure = std::pin::pin!(self.transport.failure());
        let mut stop_at: Option<tokio::time::Instant> = None;
        let mut arrived = Vec::with_capacity(INBOX_FRAMES);
        self.tick();
        loop {
            tokio::select! {
                biased;
                report = reported.recv() => {
                    let report = report.context("the threads of the store have ended")?;
                    self.on_report(report)?;
                }
                Some(verdicts) = judged.recv() => self.on_verdicts(verdicts)?,
                count = inbox.recv_many(&mut arrived, INBOX_FRAMES) => {
                    anyhow::ensure!(count > 0, "the network has ended");
                }
                what = &mut failure => anyhow::bail!("the node is not whole any more: {what}"),
                _ = ticker.tick() => self.tick(),
                // The network has its turn first.
                () = tokio::task::yield_now(), if self.core.has_waiting() => {}
                () = &mut stop, if stop_at.is_none() => {
                    tracing::info!("asked to stop; leaderships are handed over");
                    stop_at = Some(tokio::time::Instant::now() + HAND_OVER);
                    self.core.step(NodeEvent::HandOver);
                }
            }
            while let Ok(report) = reported.try_recv() {
                self.on_report(report)?;
            }
            while let Ok(verdicts) = judged.try_recv() {
                self.on_verdicts(verdicts)?;
            }
            while let Ok(inbound) = inbox.try_recv() {
                arrived.push(inbound);
            }
            for inbound in arrived.drain(..) {
                self.core.step(event_of(inbound));
            }
            let effects = self.core.flush();
            self.act(effects)?;
            if stop_at.is_some_and(|at| at <= tokio::time::Instant::now()) {
                return Ok(());
            }
        }
    }

    fn on_verdicts(&mut self, verdicts: Option<Vec<Verdict>>) -> anyhow::Result<()> {
        for (tenure, result) in verdicts.context("a thread that checks signatures has ended")? {
            self.core.step(NodeEvent::Verified { tenure, result: Box::new(result) });
        }
        Ok(())
    }

    fn tick(&mut self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = Timestamp(u64::try_from(wall.as_micros()).unwrap_or(u64::MAX));
        if self.ticks.is_multiple_of(PROCESS_TICKS) {
            let process = self.process_stats();
            self.core.step(NodeEvent::Process(process, self.room));
        }
        if !self.lies.is_empty() && self.ticks.is_multiple_of(self.lie_ticks) {
            let turn = usize::try_from(self.ticks / self.lie_ticks).unwrap_or(0) % self.lies.len();
            tracing::warn!(lie = self.lies[turn].name(), "this node was told to lie");
            self.core.step(NodeEvent::Lie(Some(self.lies[turn])));
        }
        self.ticks += 1;
        self.core.step(NodeEvent::Tick { now: Ticks(millis + 1), wall });
    }

    /// What the process uses; notes on the way whether the disk has room. Once short, it has room again only when a
    /// quarter more than the reserve is free.
    fn process_stats(&mut self) -> ProcessStats {
        let stats = ProcessStats { disk_free_bytes: free_bytes(&self.data_dir), ..process_stats() };
        let (is_short, reserve) = (self.room != Room::Enough, self.reserve_bytes);
        let wanted = if is_short { reserve.saturating_add(reserve / 4) } else { reserve };
        let room = match stats.disk_free_bytes < wanted {
            true => Room::Short { reserve_bytes: reserve },
            false => Room::Enough,
        };
        match (is_short, room) {
            (false, Room::Short { .. }) => {
                tracing::warn!(
                    free_bytes = stats.disk_free_bytes,
                    reserve,
                    "almost no room on the disk: writes are refused"
                );
            }
            (true, Room::Enough) => tracing::info!("there is room on the disk again: writes are taken"),
            _ => {}
        }
        self.room = room;
        stats
    }

    fn on_report(&mut self, report: Report) -> anyhow::Result<()> {
        match report {
            Report::Durable(commit) => {
                self.core.step(NodeEvent::Durable(commit));
                Ok(())
            }
            Report::Written(commit) => {
                self.core.step(NodeEvent::Written(commit));
                Ok(())
            }
            Report::Damaged(error) => {
                self.core.step(NodeEvent::TreeDamaged { error });
                Ok(())
            }
            Report::Failed(error) => Err(error.into()),
        }
    }

    fn act(&mut self, effects: Vec<NodeEffect>) -> anyhow::Result<()> {
        let mut jobs = Vec::new();
        for effect in effects {
            match effect {
                NodeEffect::Verify { tenure, line, job } => jobs.push((line, (tenure, job))),
                NodeEffect::Send { to, class, frame } => {
                    let class = match class {
                        Class::Consensus => 0,
                        Class::Request => 1,
                        Class::Bulk => 2,
                    };
                    // A frame that cannot be queued is lost, as on any network.
                    let _ = self.transport.send(to, class, frame);
                }
                NodeEffect::Answer { connection, frame } => self.transport.answer(connection, frame),
                NodeEffect::Disconnect { connection, reason } => {
                    self.transport.disconnect(connection, &reason)
                }
                NodeEffect::Slow { client } => self.transport.slow(client),
                NodeEffect::Stop { reason } => anyhow::bail!(reason),
            }
        }
        if !jobs.is_empty() {
            self.pool.push(jobs);
        }
        Ok(())
    }
}

fn event_of(inbound: Inbound) -> NodeEvent {
    match inbound {
        Inbound::PeerUp { node, link } => NodeEvent::PeerLink { node, link, is_up: true },
        Inbound::PeerDown { node, link } => NodeEvent::PeerLink { node, link, is_up: false },
        Inbound::PeerFrame { from, link, frame } => NodeEvent::Peer { from, link, body: frame.body },
        Inbound::ClientFrame { connection, client, frame } => {
            NodeEvent::Client { connection, client, body: frame.body }
        }
        Inbound::ClientGone { connection } => NodeEvent::ClientGone { connection },
    }
}

async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Reads what the kernel counts for this process; zeros where it does not say.
fn process_stats() -> ProcessStats {
    const MICROS_PER_CLOCK_TICK: u64 = 10_000;
    const PAGE_BYTES: u64 = 4_096;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field, the program's name in parentheses, may hold spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    ProcessStats {
        cpu_micros: (field(11) + field(12)) * MICROS_PER_CLOCK_TICK,
        resident_bytes: field(21) * PAGE_BYTES,
        disk_free_bytes: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{InitPlan, StorageConfig, Timing, free_addresses, init};

    /// A node that went on without its socket would look alive to itself and hear nobody.
    #[test]
    fn a_node_that_has_lost_a_task_ends_and_says_which() {
        let dir = tempfile::tempdir().unwrap();
        let plan = InitPlan {
            dir: dir.path().to_path_buf(),
            addresses: vec![free_addresses(1).unwrap()[0].into()],
            groups: 1,
            replicas: 1,
            clients: 1,
            quorums: None,
            mode: Mode::Crash,
            storage: StorageConfig::default(),
            timing: Timing::default(),
        };
        let (_, nodes) = init(&plan).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ended = runtime.block_on(async {
            let (shell, inputs) = start(NodeConfig::load(&nodes[0]).unwrap()).unwrap();
            shell.transport.lose_socket();
            shell.turn(inputs).await
        });
        let said = ended.unwrap_err().to_string();
        assert!(said.contains("accept connections has ended"), "{said}");
    }
}
