//! How a group begins: from what the tree holds of its state, and the log of its votes.
//!
//! Invariants:
//! * whoever has applied something has promised something: without a record of that, this replica must not vote;
//! * while another state is being put in place, what is stored is neither the old one nor the new: it is not looked at;
//! * in Byzantine mode a state that cannot be read is repaired, not refused: others can prove theirs.

use super::byzantine::{Byzantine, Signed};
use super::pipeline::Pipeline;
use super::seat::{Order, Seat};
use super::state::{Giving, Install, Pressure, Retention, Taking, Tree};
use super::{Group, replica_in};
use crate::error::StorageError;
use crate::kv::{self, Machine, Parts};
use crate::limits::Limits;
use crate::ring::{GroupId, NodeId, QuorumRule, Tenure, TenureId};
use crate::storage::{Storage, keys};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use tetrachord_consensus::paxos::{RecoverError, Replica};
use tetrachord_consensus::pbft;
use tetrachord_consensus::{
    Digest, Epoch, GroupConfig, LogBase, Options, QuorumError, Quorums, ReplicaId, Slot, Ticks, Timestamp,
};
use thiserror::Error;

/// How a node runs its replica of a group.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Sizes of keys and values.
    pub limits: Limits,
    /// The engine's timers.
    pub options: Options,
    /// See [`crate::limits::OVERLAY_BYTES_MAX`].
    pub overlay_bytes_max: usize,
    /// Entry bytes that are kept for lagging replicas.
    pub retain_bytes: usize,
    /// Entry bytes that are kept besides for those that are there and lag. See [`crate::limits::PINNED_BYTES`].
    pub pinned_bytes: usize,
    /// In Byzantine mode: keys, and how patient replicas are.
    pub byzantine: Option<Byzantine>,
}

impl Settings {
    /// What the state machine holds clients to.
    fn rules(&self) -> kv::Rules {
        let mutation = self.options.mutation;
        kv::Rules {
            limits: self.limits,
            ignores_shares: mutation.ignores_shares(),
            forgets_cancels: mutation.forgets_cancels(),
            forgets_sessions: mutation.forgets_sessions(),
            leaves_out_sessions: mutation.leaves_out_sessions(),
        }
    }
}

/// Why a group cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The store failed or is damaged.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The write-ahead records make no sense.
    #[error("group {group}: {source}. This node must not vote; restore it as a new node")]
    Recover {
        /// The group.
        group: GroupId,
        /// What is wrong.
        source: RecoverError,
    },
    /// The records of the vote log make no sense.
    #[error("group {group}: {source}. This node must not vote; restore it as a new node")]
    RecoverVotes {
        /// The group.
        group: GroupId,
        /// What is wrong.
        source: pbft::RecoverError,
    },
    /// A key is malformed or weak.
    #[error("group {group}: a signing key in the genesis record is {source}")]
    Key {
        /// The group.
        group: GroupId,
        /// What is wrong.
        source: pbft::sign::KeyError,
    },
    /// The group survives liars, and this node was told nothing of signing; or the other way round.
    #[error("group {0}: its members are to survive other faults than those that this node is set up for")]
    Mode(GroupId),
    /// The node has not got the key that its replica votes with.
    #[error(
        "{0}: this node has no key to vote with: put the one that the genesis record names into the folder that keys_dir in its node file names"
    )]
    NoKey(TenureId),
    /// The group's size is impossible.
    #[error("group {group}: {source}")]
    Quorum {
        /// The group.
        group: GroupId,
        /// Why.
        source: QuorumError,
    },
}

impl Group {
    /// Opens this node's replica of a group from what the store holds. `records` are the group's write-ahead records,
    /// in order.
    pub fn open(
        storage: &dyn Storage,
        tenure: Arc<Tenure>,
        node: NodeId,
        settings: &Settings,
        records: &[Bytes],
    ) -> Result<Self, OpenError> {
        let me = replica_in(&tenure, node).expect("the node hosts a replica of the group");
        let group = tenure.group();
        let (found, damage) = match load(storage, &tenure, settings) {
            Err(StorageError::Corrupt { what, reason }) if settings.byzantine.is_some() => {
                (None, Some(format!("{what} is damaged: {reason}")))
            }
            found => (found?, None),
        };
        let is_found = found.is_some();
        let (install, machine) =
            found.unwrap_or_else(|| (None, Machine::empty(Arc::clone(&tenure), settings.rules())));
        let applied = install.as_ref().and_then(Install::applied).unwrap_or(machine.reached());
        let (base, slot) = (base_of(&tenure, applied), applied.slot);
        refuse_lost_records(group, slot, records)?;
        let (seat, signed) = take_seat(&tenure, me, settings, records, (base, is_found))?;
        if let Some(damage) = damage {
            tracing::warn!(%group, %damage, "the state cannot be read");
        }
        let mutation = settings.options.mutation;
        let mut opened = Self {
            rules: settings.rules(),
            now: Ticks(0),
            wall: Timestamp(0),
            machine,
            seat,
            pipeline: Pipeline::default(),
            tree: Tree::holding(slot, settings.overlay_bytes_max),
            pressure: Pressure::default(),
            retention: Retention::new(slot, settings.retain_bytes, settings.pinned_bytes, mutation),
            giving: Giving::default(),
            taking: Taking::of(install),
            digests: BTreeMap::new(),
            signed,
            outputs: Vec::new(),
        };
        opened.trim();
        opened.continue_install(storage)?;
        opened.carry_out(storage)?;
        Ok(opened)
    }
}

/// What is stored of a group's state, and whether another is being put in its place; nothing if it is marked as damaged.
fn load(
    storage: &dyn Storage,
    tenure: &Arc<Tenure>,
    settings: &Settings,
) -> Result<Option<(Option<Install>, Machine)>, StorageError> {
    let install = Install::resume(storage, Parts::from(&**tenure))?;
    if install.is_some() {
        // What is stored is neither the old state nor the new one.
        return Ok(Some((install, Machine::empty(Arc::clone(tenure), settings.rules()))));
    }
    if storage.get(&keys::damaged(tenure.group()))?.is_some() {
        return Ok(None);
    }
    let machine = Machine::load(storage, Arc::clone(tenure), settings.rules())?;
    Ok(Some((None, if settings.byzantine.is_some() { machine.with_root(storage)? } else { machine })))
}

/// Who votes here in this epoch, with what the log holds of its votes. A state that was not found is nothing to go on from.
fn take_seat(
    tenure: &Tenure,
    me: ReplicaId,
    settings: &Settings,
    records: &[Bytes],
    (base, is_found): (LogBase, bool),
) -> Result<(Seat, Option<Signed>), OpenError> {
    let (order, signed) = match &settings.byzantine {
        Some(byzantine) => {
            let base = is_found.then_some(base);
            let (replica, signed) = byzantine.open(tenure, me, records, base, &settings.options)?;
            (Order::Pbft(Box::new(replica)), Some(signed))
        }
        None => (Order::Paxos(Box::new(open_paxos(tenure, me, settings, records, base)?)), None),
    };
    Ok((Seat::of(order), signed))
}

fn open_paxos(
    tenure: &Tenure,
    me: ReplicaId,
    settings: &Settings,
    records: &[Bytes],
    base: LogBase,
) -> Result<Replica, OpenError> {
    let (group, n) = (tenure.group(), tenure.members.len());
    let quorums = match tenure.quorums {
        QuorumRule::Crash { phase1, phase2 } => Quorums::flexible(n, phase1.into(), phase2.into(), 0),
        QuorumRule::Byzantine => return Err(OpenError::Mode(group)),
    };
    let quorums = quorums.map_err(|source| OpenError::Quorum { group, source })?;
    let config = GroupConfig { epoch: Epoch(tenure.id.epoch), quorums };
    Replica::recover(me, config, settings.options.clone(), records, base)
        .map_err(|source| OpenError::Recover { group, source })
}

/// Whoever has applied something has promised something before, and written that down.
fn refuse_lost_records(group: GroupId, applied: u64, records: &[Bytes]) -> Result<(), StorageError> {
    if applied == 0 || !records.is_empty() {
        return Ok(());
    }
    Err(StorageError::StateLost(format!(
        "group {group} has applied slot {applied}, but the write-ahead log holds no record of it: what this node had \
         promised is lost. It must not vote under its old identity; add it as a new node"
    )))
}

/// Where the log of this epoch goes on behind a state.
pub(super) fn base_of(tenure: &Tenure, applied: &kv::Reached) -> LogBase {
    let (slot, chain, time) = (Slot(applied.slot), Digest(applied.chain), Timestamp(applied.time));
    LogBase { slot, chain, time, sealed: applied.epoch > tenure.id.epoch }
}
