//! A cluster of child processes on this machine, for `demo` and `dev`.

use super::usage;
use crate::client::{Client, ClientOptions};
use crate::config::{self, ChaosConfig, ClusterConfig, Genesis, InitPlan, Mode, StorageConfig, Timing};
use crate::ring::{GroupId, NodeId};
use anyhow::Context;
use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How big a cluster should be.
#[derive(Clone, Debug, Args)]
pub(crate) struct Size {
    /// Faults to survive [default: crash]
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Nodes [default: 3 in crash mode, 4 in Byzantine mode]
    #[arg(long)]
    nodes: Option<usize>,
    /// Groups [default: 1]
    #[arg(long)]
    groups: Option<usize>,
}

impl Size {
    /// Which faults it survives.
    pub(crate) fn mode(&self) -> Mode {
        self.mode.unwrap_or_default()
    }

    /// How many nodes.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.unwrap_or(config::default_nodes(self.mode()))
    }

    /// How many groups.
    pub(crate) fn groups(&self) -> usize {
        self.groups.unwrap_or(1)
    }

    /// Whether a cluster that is there already is what was asked for, where something was.
    fn check(&self, genesis: &Genesis, dir: &Path) -> anyhow::Result<()> {
        let (nodes, groups, mode) = (genesis.nodes.len(), genesis.groups, genesis.mode);
        let is_it = self.nodes.is_none_or(|asked| asked == nodes)
            && self.groups.is_none_or(|asked| asked == groups)
            && self.mode.is_none_or(|asked| asked == mode);
        if is_it {
            return Ok(());
        }
        let mode = if mode == Mode::Crash { "crash" } else { "byzantine" };
        Err(usage(format!(
            "{} holds a cluster already, and its size is fixed: --nodes {nodes} --groups {groups} --mode {mode}. Leave these out, or \
             name another directory",
            dir.display()
        )))
    }
}

/// The processes of a cluster. Dropping it kills them; if this process is killed, they end because their standard input does.
#[derive(Debug)]
pub(crate) struct LocalCluster {
    pub(crate) cluster_file: PathBuf,
    node_files: Vec<PathBuf>,
    children: Vec<Option<Child>>,
}

impl LocalCluster {
    /// Makes a new cluster in `dir`, or takes the one that is there, and starts its nodes.
    pub(crate) fn start(dir: &Path, size: &Size) -> anyhow::Result<Self> {
        Self::start_with(dir, size, StorageConfig::default(), &[])
    }

    /// The same, with other settings of the store, and with nodes that lie.
    pub(crate) fn start_with(
        dir: &Path,
        size: &Size,
        storage: StorageConfig,
        liars: &[(usize, ChaosConfig)],
    ) -> anyhow::Result<Self> {
        let (cluster_file, node_files) = if dir.join("genesis.toml").exists() {
            let genesis = Genesis::load(&dir.join("genesis.toml"))?;
            size.check(&genesis, dir)?;
            let files =
                genesis.nodes.iter().map(|node| dir.join(node.id.to_string()).join("node.toml")).collect();
            (dir.join("cluster.toml"), files)
        } else {
            let plan = InitPlan {
                dir: dir.to_path_buf(),
                addresses: config::free_addresses(size.nodes())
                    .context("no free port")?
                    .into_iter()
                    .map(Into::into)
                    .collect(),
                groups: size.groups(),
                replicas: config::default_replicas(size.mode(), size.nodes()),
                clients: 1,
                quorums: None,
                mode: size.mode(),
                storage,
                timing: Timing::default(),
            };
            config::init(&plan)?
        };
        for (index, chaos) in liars {
            config::let_lie(&node_files[*index], chaos)?;
        }
        let children = node_files.iter().map(|_| None).collect();
        let mut cluster = Self { cluster_file, node_files, children };
        for index in 0..cluster.len() {
            cluster.start_node(index)?;
        }
        Ok(cluster)
    }

    pub(crate) fn len(&self) -> usize {
        self.node_files.len()
    }

    /// The node with this index.
    pub(crate) fn node(&self, index: usize) -> NodeId {
        NodeId::founder(index)
    }

    /// Starts a node's process; its log goes to a file beside its configuration.
    pub(crate) fn start_node(&mut self, index: usize) -> anyhow::Result<()> {
        anyhow::ensure!(self.children[index].is_none(), "node {} runs already", index + 1);
        let path = &self.node_files[index];
        let log_path = path.with_file_name("node.log");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_path);
        let log = log.with_context(|| format!("cannot write {}", log_path.display()))?;
        let program = std::env::current_exe().context("cannot find this program to start it again")?;
        let child = Command::new(program)
            .args(["serve", "--until-stdin-ends", "--config"])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start node {}", index + 1))?;
        self.children[index] = Some(child);
        Ok(())
    }

    /// Ends a node's process with SIGKILL and waits until it is gone.
    pub(crate) fn kill_node(&mut self, index: usize) -> anyhow::Result<()> {
        let mut child = self.children[index].take().context("the node does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// The node that has ended by itself, if one has, and the end of its log.
    pub(crate) fn crashed(&mut self) -> Option<String> {
        for (index, child) in self.children.iter_mut().enumerate() {
            if let Some(status) = child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                let log = std::fs::read_to_string(self.node_files[index].with_file_name("node.log"));
                let tail: Vec<String> =
                    log.unwrap_or_default().lines().rev().take(5).map(ToString::to_string).collect();
                let tail: Vec<&str> = tail.iter().rev().map(String::as_str).collect();
                return Some(format!("node {} ended by itself ({status}):\n{}", index + 1, tail.join("\n")));
            }
        }
        None
    }

    /// A client of this cluster.
    pub(crate) fn client(&self, deadline: Duration) -> anyhow::Result<Client> {
        let options = ClientOptions { deadline, attempt: Duration::from_millis(700) };
        Ok(Client::with_options(ClusterConfig::load(&self.cluster_file)?, options)?)
    }

    /// Waits until every group has a leader that serves; says which node leads each.
    pub(crate) async fn wait_for_leaders(
        &mut self,
        client: &Client,
        patience: Duration,
    ) -> anyhow::Result<Vec<(GroupId, NodeId)>> {
        let started = Instant::now();
        loop {
            let leaders = leaders(client).await;
            if let Some(leaders) = leaders {
                return Ok(leaders);
            }
            if let Some(crash) = self.crashed() {
                anyhow::bail!(crash);
            }
            anyhow::ensure!(
                started.elapsed() < patience,
                "no leader in every group after {} s; the nodes' logs are beside {}",
                patience.as_secs(),
                self.cluster_file.display()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Who leads each group, if more than half of the nodes that answer name the same leader.
pub(crate) async fn leaders(client: &Client) -> Option<Vec<(GroupId, NodeId)>> {
    let mut named: BTreeMap<GroupId, Vec<Option<NodeId>>> = BTreeMap::new();
    for (_, answer) in super::status::ask_all(client).await {
        for group in answer.ok().into_iter().flat_map(|status| status.groups) {
            named.entry(group.group).or_default().push(group.leader);
        }
    }
    let agreed = named.into_iter().map(|(group, names)| {
        let count = |leader: &NodeId| names.iter().filter(|name| **name == Some(*leader)).count();
        let leader = names.iter().flatten().max_by_key(|leader| count(leader))?;
        (2 * count(leader) > names.len()).then_some((group, *leader))
    });
    agreed.collect::<Option<Vec<_>>>().filter(|leaders| !leaders.is_empty())
}

/// Whether whoever started this process wants it to go on when the terminal hangs up, as `nohup` does. Where it cannot be read, nobody
/// does.
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // A bit for each signal, the first of which is SIGHUP.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// The signals that ask this process to end. Made before anything that is to end with it: what is started earlier is left behind by a
/// signal that comes in between.
#[derive(Debug)]
pub(crate) struct Ending {
    hang_up: Option<Signal>,
    terminate: Signal,
    interrupt: Signal,
}

impl Ending {
    /// From here on these signals end nothing by themselves.
    pub(crate) fn watch() -> anyhow::Result<Self> {
        let of = |kind| signal(kind).context("cannot wait for signals");
        // To wait for a signal is to ignore it no more.
        let hang_up = if ignores_hang_up() { None } else { Some(of(SignalKind::hangup())?) };
        Ok(Self { hang_up, terminate: of(SignalKind::terminate())?, interrupt: of(SignalKind::interrupt())? })
    }

    /// Waits until this process is asked to end, and says how.
    pub(crate) async fn asked(mut self) -> &'static str {
        let hung_up = async {
            match &mut self.hang_up {
                Some(hang_up) => _ = hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            () = hung_up => "SIGHUP",
            _ = self.interrupt.recv() => "Ctrl-C",
        }
    }
}
