//! The real world: each node is a process with, where the machine permits it, a host, a disk and a clock of its own. QUIC, sled and
//! the kernel are those of production; faults come from outside, by signals, by the switch between the hosts, and by the file systems.
//!
//! * [`Machine`]: what is permitted here.
//! * [`hosts`] and [`switch`]: network namespaces, and every packet between them.
//! * [`disk`]: small file systems that lose, stall and fill up.
//! * [`process`], [`clock`]: what they are called.
//! * [`existing`]: a deployment that somebody else has started.
//! * [`strike`]: which nemesis does what with them.

mod clock;
mod disk;
mod existing;
mod hosts;
mod machine;
mod process;
mod strike;
mod switch;

pub use machine::Machine;
pub use strike::Strike;

use crate::nemesis::Nemesis;
use crate::random::Random;
use anyhow::Context;
use clock::Clock;
use disk::Disk;
use hosts::Hosts;
use process::Process;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use tetrachord::config::{self, ChaosConfig, ClusterConfig, InitPlan, Mode, StorageConfig, Timing};
use tetrachord::wire::NodeStatus;
use tetrachord_consensus::pbft::Lie;
use tetrachord_consensus::quorum::liars;

/// What the nodes said last about themselves, by index; None while they do not answer.
pub type Statuses = Arc<Mutex<Vec<Option<NodeStatus>>>>;

/// What is to be built.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where everything lies; must exist.
    pub dir: PathBuf,
    /// Runs a node when it is called with `serve --config FILE`.
    pub program: PathBuf,
    /// Which protocol.
    pub mode: Mode,
    /// How many nodes.
    pub nodes: usize,
    /// How many groups.
    pub groups: usize,
    /// What will be at work: it decides what is built.
    pub nemeses: BTreeSet<Nemesis>,
    /// Decides what chance decides.
    pub seed: u64,
    /// What the machine permits.
    pub machine: Machine,
    /// The cluster file of a deployment that is there already: nothing is built.
    pub existing: Option<PathBuf>,
}

struct Node {
    file: PathBuf,
    process: Process,
    clock: Option<Clock>,
    lies: bool,
}

/// A cluster under fire. All of it ends with this value.
pub struct RealWorld {
    // Processes first: disks and hosts can only go when nobody uses them.
    nodes: Vec<Node>,
    disks: Vec<Disk>,
    hosts: Option<Hosts>,
    program: PathBuf,
    cluster_file: PathBuf,
    is_byzantine: bool,
    random: Random,
    effects: BTreeMap<Nemesis, u64>,
    statuses: Statuses,
    /// Lies that liars told before they were started again.
    told_earlier: u64,
}

impl RealWorld {
    /// Builds everything, and starts all nodes.
    pub fn start(setup: &Setup) -> anyhow::Result<Self> {
        if let Some(cluster_file) = &setup.existing {
            return Self::attach(setup, cluster_file);
        }
        let wants = |of: fn(Nemesis) -> bool| setup.nemeses.iter().any(|nemesis| of(*nemesis));
        let hosts = match wants(Nemesis::is_of_network) {
            true => Some(Hosts::new(setup.nodes, setup.seed)?),
            false => None,
        };
        let addresses = match &hosts {
            Some(hosts) => hosts.addresses()?,
            None => config::free_addresses(setup.nodes).context("no free port")?,
        };
        let plan = InitPlan {
            dir: setup.dir.join("cluster"),
            addresses: addresses.into_iter().map(Into::into).collect(),
            groups: setup.groups,
            replicas: config::default_replicas(setup.mode, setup.nodes),
            clients: 1,
            quorums: None,
            mode: setup.mode,
            storage: STORAGE,
            timing: Timing::default(),
        };
        let (cluster_file, files) = config::init(&plan)?;
        let mut nodes = Vec::new();
        for (index, file) in files.into_iter().enumerate() {
            let clock = match (&setup.machine.clocks, setup.nemeses.contains(&Nemesis::ClockJump)) {
                (Ok(library), true) => Some(Clock::new(library, file.with_file_name("clock"))?),
                _ => None,
            };
            let lies = setup.nemeses.contains(&Nemesis::Lies) && is_liar(index, setup.nodes);
            if lies {
                let lies = Lie::ALL.iter().map(|lie| lie.name().to_string()).collect();
                config::let_lie(&file, &ChaosConfig { allow: true, lies, every_millis: LIE_MILLIS })?;
            }
            let process = Process::new(file.with_file_name("node.log"));
            nodes.push(Node { file, process, clock, lies });
        }
        let mut world = Self {
            nodes,
            disks: Vec::new(),
            hosts,
            program: setup.program.clone(),
            cluster_file,
            is_byzantine: setup.mode == Mode::Byzantine,
            random: Random::new(setup.seed),
            effects: BTreeMap::new(),
            statuses: Arc::new(Mutex::new(vec![None; setup.nodes])),
            told_earlier: 0,
        };
        let of_disk = |nemesis| matches!(nemesis, Nemesis::PowerCut | Nemesis::SlowDisk | Nemesis::DiskFull);
        if wants(of_disk) {
            for (index, node) in world.nodes.iter().enumerate() {
                world.disks.push(Disk::new(&setup.dir, index, &data_of(&node.file))?);
            }
        }
        for index in 0..world.nodes.len() {
            world.start_node(index)?;
        }
        Ok(world)
    }

    /// Takes a deployment as it is.
    fn attach(setup: &Setup, cluster_file: &Path) -> anyhow::Result<Self> {
        let config = ClusterConfig::load(cluster_file)?;
        let found = existing::find(&config.protocol);
        let wants_some = setup.nemeses.contains(&Nemesis::Pause);
        anyhow::ensure!(
            !wants_some || !found.is_empty(),
            "no node of {} runs on this machine, or its files cannot be read: nothing can be stopped",
            cluster_file.display()
        );
        let nodes: Vec<Node> = config
            .nodes
            .iter()
            .map(|node| {
                let process = Process::found(found.get(&node.id).copied());
                Node { file: PathBuf::new(), process, clock: None, lies: false }
            })
            .collect();
        Ok(Self {
            statuses: Arc::new(Mutex::new(vec![None; nodes.len()])),
            nodes,
            disks: Vec::new(),
            hosts: None,
            program: PathBuf::new(),
            cluster_file: cluster_file.to_path_buf(),
            is_byzantine: config.signing.is_some(),
            random: Random::new(setup.seed),
            effects: BTreeMap::new(),
            told_earlier: 0,
        })
    }

    /// The file that names the cluster to clients.
    #[must_use]
    pub fn cluster_file(&self) -> &Path {
        &self.cluster_file
    }

    /// Nodes that lie.
    #[must_use]
    pub fn liars(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].lies).collect()
    }

    /// What observers fill in and strikes look at.
    #[must_use]
    pub fn statuses(&self) -> Statuses {
        Arc::clone(&self.statuses)
    }

    /// How much a nemesis has changed so far.
    #[must_use]
    pub fn effect(&self, nemesis: Nemesis) -> u64 {
        match nemesis {
            Nemesis::Rot => {
                let noticed = |node: &Node| NOTICED.iter().map(|words| node.process.said(words)).sum::<u64>();
                self.nodes.iter().map(noticed).sum()
            }
            Nemesis::Lies => self.lies_told(),
            nemesis if nemesis.is_of_network() => {
                self.hosts.as_ref().map_or(0, |hosts| hosts.rules().effect(nemesis))
            }
            nemesis => self.effects.get(&nemesis).copied().unwrap_or(0),
        }
    }

    /// A node that has ended by itself though nothing forbade it to run, with its last words.
    pub fn crashed(&mut self) -> Option<(usize, String)> {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if let Some(status) = node.process.ended() {
                let words = node.process.last_words();
                return Some((index, format!("n{} ended by itself ({status}):\n{words}", index + 1)));
            }
        }
        None
    }

    fn start_node(&mut self, index: usize) -> anyhow::Result<()> {
        let node = &mut self.nodes[index];
        if node.process.is_up() {
            return Ok(());
        }
        let mut command = match &self.hosts {
            Some(hosts) => hosts.command(index, &self.program),
            None => Command::new(&self.program),
        };
        command.args(["serve", "--config"]).arg(&node.file);
        if let Some(clock) = &node.clock {
            clock.apply(&mut command);
        }
        node.process.start(&mut command)
    }

    fn kill_node(&mut self, index: usize) -> anyhow::Result<bool> {
        self.remember_lies(index);
        self.nodes[index].process.kill()
    }

    /// A node that starts again begins to count anew.
    fn remember_lies(&mut self, index: usize) {
        let status = self.statuses.lock().unwrap_or_else(PoisonError::into_inner)[index].take();
        self.told_earlier += status.as_ref().map_or(0, told);
    }

    fn lies_told(&self) -> u64 {
        let statuses = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        let now: u64 = statuses.iter().flatten().map(told).sum();
        now + self.told_earlier
    }

    fn status(&self, index: usize) -> Option<NodeStatus> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner)[index].clone()
    }
}

impl Drop for RealWorld {
    /// Nobody can be killed who waits for a disk that stands still.
    fn drop(&mut self) {
        for disk in &mut self.disks {
            // Whatever cannot be thawed now is tried once more when the disk goes.
            let _ = disk.thaw();
        }
    }
}

fn told(status: &NodeStatus) -> u64 {
    status.groups.iter().flat_map(|group| &group.told).map(|(_, count)| count).sum()
}

/// What a node says when it notices that its state is damaged.
const NOTICED: [&str; 2] =
    ["the applied state cannot be read", "the state is repaired from the other replicas"];

/// Short logs, so that whoever was away needs a whole state; small disks; and a scrub that finds damage soon.
const STORAGE: StorageConfig = StorageConfig {
    cache_bytes: 4 << 20,
    log_max_bytes: 4 << 20,
    log_retain_bytes: 64 << 10,
    log_pinned_bytes: 64 << 10,
    pack_above_bytes: 4 << 20,
    reserve_bytes: 4 << 20,
    scrub_seconds: 3,
};

/// How long a liar tells one lie.
const LIE_MILLIS: u64 = 700;

/// The first primary of a group in Byzantine mode is its second replica: it lies first.
fn is_liar(index: usize, nodes: usize) -> bool {
    (1..=liars(nodes)).contains(&index)
}

fn data_of(node_file: &Path) -> PathBuf {
    node_file.with_file_name("data")
}
