//! Tetrachord as it is built: nodes on loopback with its defaults, three in crash mode and four in Byzantine mode, and its
//! own client library.

use crate::processes::Processes;
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tetrachord::Client;
use tetrachord::client::ClientOptions;
use tetrachord::config::ClusterConfig;
use tetrachord::ring::NodeId;

/// A running cluster: the fewest nodes that survive a fault.
pub(crate) struct OurCluster {
    pub(crate) processes: Processes,
    nodes: usize,
    dir: PathBuf,
    program: PathBuf,
}

impl OurCluster {
    pub(crate) fn start(dir: &Path, groups: usize, is_byzantine: bool) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("tetrachord");
        anyhow::ensure!(
            program.exists(),
            "{} is missing: build it first, with `cargo build --release`",
            program.display()
        );
        let (name, mode, port, nodes) = match is_byzantine {
            false => ("cluster", "crash", "7101", 3),
            true => ("byzantine", "byzantine", "7201", 4),
        };
        let dir = dir.join(name);
        let init = Command::new(&program)
            .args(["init", "--mode", mode, "--port", port, "--groups", &groups.to_string(), "--dir"])
            .arg(&dir)
            .output()?;
        anyhow::ensure!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
        let mut cluster = Self { processes: Processes::new(nodes), nodes, dir, program };
        for index in 0..nodes {
            cluster.start_node(index)?;
        }
        Ok(cluster)
    }

    pub(crate) fn start_node(&mut self, index: usize) -> anyhow::Result<()> {
        let mut command = Command::new(&self.program);
        command.args(["serve", "--config"]).arg(self.dir.join(format!("n{}/node.toml", index + 1)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.processes.start(index, &mut command).context("cannot start a node")
    }

    /// So many clients, each with connections of its own.
    pub(crate) fn clients(&self, count: usize) -> anyhow::Result<Vec<Client>> {
        let client = || {
            let options = ClientOptions { deadline: Duration::from_secs(60), ..ClientOptions::default() };
            Ok(Client::with_options(ClusterConfig::load(&self.dir.join("cluster.toml"))?, options)?)
        };
        (0..count).map(|_| client()).collect()
    }

    /// Waits until every group is led; returns the node that leads the first one.
    pub(crate) async fn leader(&self, client: &Client) -> anyhow::Result<usize> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(60) {
            let mut groups = std::collections::BTreeMap::new();
            for node in 0..self.nodes {
                let status = client.status(NodeId::founder(node)).await;
                for group in status.into_iter().flat_map(|status| status.groups) {
                    let led = groups.entry(group.group).or_insert(None);
                    *led = led.or(group.is_leader.then_some(node));
                }
            }
            if let Some(Some(first)) = groups.values().next()
                && groups.values().all(Option::is_some)
            {
                return Ok(*first);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::bail!("a group has no leader after a minute")
    }
}
