//! How many nodes and replicas there may be, and how many there are if nobody says.

use crate::limits::{GROUPS_MAX, NODES_MAX};
use serde::{Deserialize, Serialize};
use tetrachord_consensus::ByzantineQuorum;

/// Which faults the cluster survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Replicas may crash: Multi-Paxos, n = 2f + 1.
    #[default]
    Crash,
    /// Replicas may lie in any way: PBFT with signed messages, n = 3f + 1.
    Byzantine,
}

/// Replicas that a group may have. More would only make every write slower.
const REPLICAS_MAX: usize = 9;

/// How many nodes and groups a cluster may have, and how many replicas a group.
pub(super) fn check_sizes(mode: Mode, groups: usize, replicas: usize, nodes: usize) -> Result<(), String> {
    if nodes == 0 || nodes > NODES_MAX {
        return Err(format!("{nodes} nodes: a cluster has 1 to {NODES_MAX}"));
    }
    if groups == 0 || groups > GROUPS_MAX {
        return Err(format!("groups = {groups}: a cluster has 1 to {GROUPS_MAX}"));
    }
    check_replicas(mode, replicas, nodes)
}

/// How many replicas a group may have, with so many nodes.
pub fn check_replicas(mode: Mode, replicas: usize, nodes: usize) -> Result<(), String> {
    if replicas > nodes {
        return Err(format!(
            "{replicas} replicas need as many nodes, there are {nodes}: a node hosts one of a group"
        ));
    }
    if mode == Mode::Byzantine {
        return ByzantineQuorum::new(replicas).map(drop).map_err(|error| error.to_string());
    }
    if replicas == 0 || replicas.is_multiple_of(2) || replicas > REPLICAS_MAX {
        let below = replicas.saturating_sub(1).clamp(1, REPLICAS_MAX);
        let above = (replicas + 1).min(REPLICAS_MAX);
        let nearest = if below == above { below.to_string() } else { format!("{below} or {above}") };
        return Err(format!(
            "a group of {replicas} replicas: crash mode needs n = 2f + 1, 1 to {REPLICAS_MAX}, to survive f crashes; an \
             even number survives no more than the odd one below it. Use {nearest}"
        ));
    }
    Ok(())
}

/// The number of nodes to take if none is asked for: the fewest that survive a fault.
#[must_use]
pub fn default_nodes(mode: Mode) -> usize {
    match mode {
        Mode::Crash => 3,
        Mode::Byzantine => 4,
    }
}

/// The number of replicas to take if none is asked for: the largest valid one that there are nodes for, at most five in
/// crash mode and seven in Byzantine mode. Sizes of a whole cluster that are no valid group, up to there, are taken as they
/// are, and refused with the reason.
#[must_use]
pub fn default_replicas(mode: Mode, nodes: usize) -> usize {
    match (mode, nodes) {
        (Mode::Crash, 0..3) => nodes,
        (Mode::Crash, 3..5) => 3,
        (Mode::Crash, _) => 5,
        (Mode::Byzantine, 0..7) => nodes,
        (Mode::Byzantine, _) => 7,
    }
}
