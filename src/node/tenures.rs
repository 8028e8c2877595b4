//! Which groups have a replica here when a node starts, and in which tenure.
//!
//! The tree says which state a node has, the log in which epoch it votes. The genesis record founds the first tenures, once, when tree and
//! log know of no group; from then on the tree's rows are what counts. A log that knows of none promises nothing, so it does no harm that a tree
//! may have been lost beside it.
//!
//! | tree | log | |
//! |---|---|---|
//! | nothing | nothing of any group | the node is founded: its first tenures are written, and nothing is logged before they are there |
//! | a tenure | nothing, or records of it | the replica goes on in it |
//! | no tenure | records of it | the tree has lost it. In crash mode the node must stop: what it applied is gone. In Byzantine mode the row is written again, and the group finds out what of its state holds |
//! | a tenure | records of another epoch | this build ends no epoch: the node must stop |
//!
//! Invariant: rows of different groups never overlap.

use super::face::NodeSettings;
use super::roster::{NOTE, OWN};
use crate::error::StorageError;
use crate::kv;
use crate::ring::{NodeId, Tenure, TenureId};
use crate::storage::{LogRecord, StateWrite, Storage};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The kind of an engine's records in the write-ahead log.
pub(super) const ENGINE: u8 = 1;

/// The records of each epoch of each group, in order. What a later build has written may be a promise.
pub(super) fn records(log: Vec<LogRecord>) -> Result<BTreeMap<TenureId, Vec<Bytes>>, StorageError> {
    let mut records: BTreeMap<TenureId, Vec<Bytes>> = BTreeMap::new();
    for LogRecord { tenure, kind, body } in log {
        let expected = if tenure == OWN { NOTE } else { ENGINE };
        if kind != expected {
            let what = format!("a record of {tenure} in the write-ahead log");
            let reason = format!("it is of kind {kind}, which this build does not know");
            return Err(StorageError::corrupt(what, reason));
        }
        records.entry(tenure).or_default().push(body);
    }
    Ok(records)
}

/// What a node starts with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opened {
    /// The tenures in which it has replicas.
    pub(super) tenures: Vec<Arc<Tenure>>,
    /// What must be in the tree before anything is logged.
    pub(super) to_write: Vec<StateWrite>,
}

/// Opens what the tree and the log hold. In Byzantine mode a tree that cannot be read is one that holds nothing: what it should hold is proved
/// by others.
pub(super) fn open(
    settings: &NodeSettings,
    storage: &dyn Storage,
    log: &BTreeMap<TenureId, Vec<Bytes>>,
) -> Result<Opened, StorageError> {
    let is_repairable = settings.group.byzantine.is_some();
    let rows = match kv::read_tenures(storage) {
        Err(StorageError::Corrupt { .. }) if is_repairable => Vec::new(),
        rows => rows?,
    };
    judge(rows, log, (&settings.founding, settings.node), is_repairable)
}

/// Holds what the tree says, `rows`, and what the log names against what the genesis record founds.
fn judge<T>(
    rows: Vec<Tenure>,
    log: &BTreeMap<TenureId, T>,
    (founding, node): (&[Tenure], NodeId),
    is_repairable: bool,
) -> Result<Opened, StorageError> {
    let mut held: BTreeMap<_, _> =
        rows.into_iter().map(|tenure| (tenure.group(), Arc::new(tenure))).collect();
    refuse_overlaps(&held.values().map(|tenure| &**tenure).collect::<Vec<_>>())?;
    let is_new = held.is_empty() && log.is_empty();
    let mut to_write = Vec::new();
    for tenure in founding.iter().filter(|tenure| tenure.index_of(node).is_some()) {
        match held.get(&tenure.group()) {
            Some(row) if **row == *tenure => {}
            Some(row) => {
                return Err(StorageError::Foreign(format!(
                    "{} of this data directory is not as the genesis record founds it: the record was changed, and what changes it \
                     makes another cluster. Put the one back that the cluster was made with",
                    row.id
                )));
            }
            None if is_new || is_repairable => {
                to_write.push(kv::tenure_row(tenure));
                held.insert(tenure.group(), Arc::new(tenure.clone()));
            }
            None => {
                return Err(StorageError::StateLost(format!(
                    "the tree holds no tenure of {}, although the write-ahead log says that this node has taken part in groups: what it \
                     had applied is lost. It must not vote under its old identity; add it as a new node",
                    tenure.id
                )));
            }
        }
    }
    let is_here = |id: &TenureId| held.get(&id.group).is_some_and(|tenure| tenure.id == *id);
    if let Some(id) = log.keys().find(|id| !is_here(id)) {
        return Err(StorageError::StateLost(format!(
            "the write-ahead log names {id}, of which there is no replica here"
        )));
    }
    let stranger = held.values().find(|tenure| tenure.index_of(node).is_none() || !tenure.is_founding());
    if let Some(tenure) = stranger {
        return Err(StorageError::Foreign(format!(
            "the tree holds {}, which no genesis record founds here",
            tenure.id
        )));
    }
    Ok(Opened { tenures: held.into_values().collect(), to_write })
}

fn refuse_overlaps(tenures: &[&Tenure]) -> Result<(), StorageError> {
    let mut intervals: Vec<_> = tenures
        .iter()
        .flat_map(|tenure| tenure.range.linear().into_iter().map(|(first, last)| (first, last, tenure.id)))
        .collect();
    intervals.sort_unstable();
    match intervals.windows(2).find(|two| two[1].0 <= two[0].1) {
        None => Ok(()),
        Some(two) => {
            let reason = format!("{} and {} hold the same positions", two[0].2, two[1].2);
            Err(StorageError::corrupt("the tenures in the tree", reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{GroupId, found_without_keys};

    const ME: NodeId = NodeId(1);

    /// Four groups of three on four nodes: the first node has replicas of three.
    fn founding() -> Vec<Tenure> {
        found_without_keys(4, 4, 3)
    }

    fn mine() -> Vec<Tenure> {
        founding().into_iter().filter(|tenure| tenure.index_of(ME).is_some()).collect()
    }

    fn log(groups: &[u128]) -> BTreeMap<TenureId, ()> {
        groups.iter().map(|group| (TenureId { group: GroupId(*group), epoch: 1 }, ())).collect()
    }

    fn start(rows: Vec<Tenure>, named: &[u128]) -> Result<Opened, String> {
        judge(rows, &log(named), (&founding(), ME), false).map_err(|error| error.to_string())
    }

    /// A kind that is not known here may be a promise of a build that is.
    #[test]
    fn records_of_another_kind_are_refused() {
        let record = |tenure, kind| LogRecord { tenure, kind, body: Bytes::from_static(b"r") };
        let tenure = mine()[0].id;
        let known = vec![record(OWN, NOTE), record(tenure, ENGINE), record(tenure, ENGINE)];
        let counts: Vec<usize> = records(known).unwrap().values().map(Vec::len).collect();
        assert_eq!(counts, [1, 2]);
        for (tenure, kind) in [(tenure, 2), (tenure, NOTE), (OWN, ENGINE)] {
            assert!(records(vec![record(tenure, kind)]).unwrap_err().to_string().contains("does not know"));
        }
    }

    #[test]
    fn a_node_is_founded_once() {
        let opened = start(vec![], &[]).unwrap();
        assert_eq!(opened.tenures.iter().map(|tenure| (**tenure).clone()).collect::<Vec<_>>(), mine());
        assert_eq!(opened.to_write, mine().iter().map(kv::tenure_row).collect::<Vec<_>>());
        for named in [vec![], vec![1, 3]] {
            let opened = start(mine(), &named).unwrap();
            assert_eq!((opened.tenures.len(), opened.to_write), (3, vec![]), "{named:?}");
        }
        assert!(start(vec![], &[1]).unwrap_err().contains("the tree holds no tenure of g1 e1"));
        assert!(start(mine()[1..].to_vec(), &[3]).unwrap_err().contains("the tree holds no tenure of g1 e1"));
    }

    #[test]
    fn where_states_can_be_proved_a_lost_row_is_written_again() {
        let opened = judge(mine()[1..].to_vec(), &log(&[1, 3]), (&founding(), ME), true).unwrap();
        assert_eq!((opened.tenures.len(), opened.to_write), (3, vec![kv::tenure_row(&mine()[0])]));
    }

    #[test]
    fn what_was_founded_otherwise_is_refused() {
        let mut other = mine();
        other[0].members.swap(0, 1);
        assert!(start(other, &[]).unwrap_err().contains("g1 e1 of this data directory is not as"));
        assert!(start(mine(), &[2]).unwrap_err().contains("names g2 e1, of which there is no replica here"));
        let stranger = Tenure { id: TenureId { group: GroupId(77), epoch: 1 }, ..founding().remove(1) };
        let rows = mine().into_iter().chain([stranger.clone()]).collect();
        assert!(start(rows, &[]).unwrap_err().contains("g77 e1, which no genesis record founds here"));
        let twice = Tenure { range: mine()[0].range, ..stranger };
        let rows = mine().into_iter().chain([twice]).collect();
        assert!(start(rows, &[]).unwrap_err().contains("hold the same positions"));
    }
}
