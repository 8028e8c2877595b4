//! What a node knows of its own process, and tells whoever asks for its status.

use super::NodeCore;
use crate::error::StorageError;
use crate::group::Group;
use crate::node::face::Room;
use crate::node::status;
use crate::wire::{NodeStatus, ProcessStats};
use tetrachord_consensus::{Ticks, Timestamp};

/// A node whose disk is almost full gives leadership away at most this often.
const YIELD_TICKS: u64 = 10_000;

/// This life of the node, from its start.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) incarnation: u64,
    pub(super) started: Option<Ticks>,
    /// For status requests alone.
    pub(super) wall: Timestamp,
    pub(super) process: ProcessStats,
    pub(super) room: Room,
    /// When leadership was last given away for want of room.
    yielded_at: Option<Ticks>,
}

impl Life {
    pub(super) fn new(incarnation: u64) -> Self {
        Self {
            incarnation,
            started: None,
            wall: Timestamp(0),
            process: ProcessStats::default(),
            room: Room::Enough,
            yielded_at: None,
        }
    }
}

impl NodeCore {
    /// A leader that must refuse writes gives others the chance to take them. If their disks are full too, it may come back here: so
    /// not too often.
    pub(super) fn yield_to_those_with_room(&mut self) -> Result<(), StorageError> {
        let has_just = self.life.yielded_at.is_some_and(|at| self.now.since(at) < YIELD_TICKS);
        let leads = self.groups.iter().any(Group::is_leading);
        if self.life.room == Room::Enough || has_just || !leads {
            return Ok(());
        }
        self.life.yielded_at = Some(self.now);
        self.hand_over()
    }

    /// What the node knows of itself.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let told = |group: &Group| status::group_status(group.tenure().group(), group);
        NodeStatus {
            node: self.settings.node,
            incarnation: self.life.incarnation,
            uptime_millis: self.life.started.map_or(0, |started| self.now.since(started)),
            connected: self.linked.keys().copied().collect(),
            awaits: self.roster.awaited(),
            refuses_writes: self.life.room != Room::Enough,
            wall_micros: self.life.wall.0,
            open_requests: self.door.gateway.open_requests() as u64,
            log_bytes: self.storage.log_bytes(),
            process: self.life.process,
            groups: self.groups.iter().map(told).collect(),
        }
    }
}
