//! `tetrachord init`: keys and files for a cluster.

use super::{Common, Exit, output};
use crate::config::{
    self, FlexibleQuorums, InitPlan, Mode, StorageConfig, Timing, default_nodes, default_replicas,
};
use crate::ring::{Address, NodeId, found_without_keys};
use anyhow::Context;
use clap::Args;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use tetrachord_consensus::quorum::liars;

const EXAMPLES: &str = "\
Examples:
  tetrachord init --dir c --nodes 3                 three nodes on 127.0.0.1, ports 7101 to 7103
  tetrachord init --dir c --nodes 5 --groups 4      four groups of five replicas
  tetrachord init --dir c --clients 3               three clients: cluster.toml, cluster-2.toml, cluster-3.toml
  tetrachord init --dir c --address 10.0.0.1:7101 --address 10.0.0.2:7101 --address 10.0.0.3:7101";

/// Write keys, the genesis record and one file per node
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InitArgs {
    /// Where to write; must not hold a cluster yet
    #[arg(long)]
    dir: PathBuf,
    /// How many nodes, on consecutive ports of one host [default: 3 in crash mode, 4 in Byzantine mode]
    #[arg(long, conflicts_with = "address")]
    nodes: Option<u16>,
    /// Faults to survive
    #[arg(long, value_enum, default_value_t = Mode::Crash)]
    mode: Mode,
    /// Groups that the ring is cut into
    #[arg(long, default_value_t = 1)]
    groups: usize,
    /// Replicas of each group: 2f + 1 in crash mode [default: as many as there are nodes, at most 5], 3f + 1 in Byzantine
    /// mode [default: at most 7]
    #[arg(long)]
    replicas: Option<usize>,
    /// Clients, each with keys and a cluster file of its own: cluster.toml, cluster-2.toml and so on. Nodes share what they have out
    /// among keys: one client that asks for too much, or lies, takes nothing from the others
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// The host of all nodes
    #[arg(long, default_value = "127.0.0.1", conflicts_with = "address")]
    host: IpAddr,
    /// The port of the first node; the others follow
    #[arg(long, default_value_t = 7101, conflicts_with = "address")]
    port: u16,
    /// The address of one node, HOST:PORT, by number or by name; once for each node
    #[arg(long)]
    address: Vec<Address>,
    /// Quorums other than majorities: promises that a leader needs, and copies that decide
    #[arg(long, num_args = 2, value_names = ["PHASE1", "PHASE2"])]
    quorums: Option<Vec<usize>>,
    /// With --quorums: crashed replicas that must be survived
    #[arg(long, default_value_t = 1, requires = "quorums")]
    survive: usize,
}

pub(crate) fn run(common: &Common, args: &InitArgs) -> anyhow::Result<Exit> {
    let addresses = addresses(args)?;
    let plan = InitPlan {
        dir: args.dir.clone(),
        groups: args.groups,
        replicas: args.replicas.unwrap_or(default_replicas(args.mode, addresses.len())),
        addresses,
        clients: args.clients,
        quorums: args.quorums.as_ref().map(|sizes| FlexibleQuorums {
            phase1: sizes[0],
            phase2: sizes[1],
            survive: args.survive,
        }),
        mode: args.mode,
        storage: StorageConfig::default(),
        timing: Timing::default(),
    };
    let (cluster, nodes) = config::init(&plan)?;
    let idle = idle_nodes(&plan);
    if common.json {
        output::print_json(&json!({
            "cluster": cluster,
            "nodes": nodes,
            "mode": plan.mode,
            "groups": plan.groups,
            "replicas": plan.replicas,
            "clients": plan.clients,
            "idle": idle,
        }));
        return Ok(Exit::Ok);
    }
    let survives = match (plan.mode, plan.quorums) {
        (Mode::Byzantine, _) => format!("{} that lie", liars(plan.replicas)),
        (Mode::Crash, None) => format!("{} crashed", (plan.replicas - 1) / 2),
        (Mode::Crash, Some(quorums)) => {
            format!("{} crashed", plan.replicas - quorums.phase1.max(quorums.phase2))
        }
    };
    println!(
        "{} nodes, {} group(s) of {} replicas; each group survives {survives}. Start every node:",
        plan.addresses.len(),
        plan.groups,
        plan.replicas
    );
    for node in &nodes {
        println!("  tetrachord serve --config {}", node.display());
    }
    if let [first, ..] = idle[..] {
        let names: Vec<String> = idle.iter().map(ToString::to_string).collect();
        let verb = if idle.len() == 1 { "holds" } else { "hold" };
        println!(
            "Note: {} {verb} no replica of any group: more nodes than {} group(s) of {} have use for. {first} only passes \
             requests on; --groups {} would give every node some.",
            names.join(", "),
            plan.groups,
            plan.replicas,
            plan.addresses.len()
        );
    }
    println!("Then talk to them:\n  tetrachord --cluster {} put greeting hello", cluster.display());
    if plan.clients > 1 {
        println!(
            "The other {} clients have a cluster file each: cluster-2.toml and so on.",
            plan.clients - 1
        );
    }
    Ok(Exit::Ok)
}

/// Nodes on which no group places a replica.
fn idle_nodes(plan: &InitPlan) -> Vec<NodeId> {
    let founding = found_without_keys(plan.groups, plan.addresses.len(), plan.replicas);
    let is_used = |node: &NodeId| founding.iter().any(|tenure| tenure.index_of(*node).is_some());
    (0..plan.addresses.len()).map(NodeId::founder).filter(|node| !is_used(node)).collect()
}

fn addresses(args: &InitArgs) -> anyhow::Result<Vec<Address>> {
    if !args.address.is_empty() {
        return Ok(args.address.clone());
    }
    let port =
        |index: u16| args.port.checked_add(index).context("the ports run past 65535; choose a lower --port");
    let default = u16::try_from(default_nodes(args.mode)).expect("a few nodes");
    let nodes = args.nodes.unwrap_or(default);
    (0..nodes).map(|index| Ok(SocketAddr::new(args.host, port(index)?).into())).collect()
}
