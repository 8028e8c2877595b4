//! How much of the log is kept for replicas that lag.
//!
//! Usually a little, in bytes. Whoever is given a whole state needs the log from that state on, and cannot take it before the
//! state is in place: for a large one that takes tens of seconds, in which the group goes on. If the log were dropped behind it meanwhile,
//! it would need another state, and so on for as long as anybody writes. So more is kept until the receiver is level with this
//! replica's tree, as far as this replica can tell, at most for a while and up to a bound.

use super::Group;
use tetrachord_consensus::{ReplicaId, Slot, Ticks};

/// After a whole state was given, more of the log is kept for so long, and so much more of it.
const GIVEN_MILLIS: u64 = 60_000;
const GIVEN_RETAIN_BYTES: usize = 32 << 20;

/// To whom a whole state was given last, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Given {
    to: ReplicaId,
    at: Ticks,
}

impl Group {
    /// Bytes of the log that are kept for others now.
    pub(super) fn retain_now(&self) -> usize {
        let is_giving = self.transfer.is_some() && self.signed.is_some();
        if is_giving || self.given.is_some() {
            self.retain_bytes + GIVEN_RETAIN_BYTES
        } else {
            self.retain_bytes
        }
    }

    /// A whole state was given, or not; either way its receiver goes on from the log.
    pub(super) fn note_given(&mut self, to: ReplicaId) {
        self.given = Some(Given { to, at: self.now });
    }

    /// Nothing more need be kept once the receiver is level, or has not become so for too long.
    pub(super) fn tick_given(&mut self) {
        let is_over = |given: &Given| {
            let is_level = self.engine.durable_at(given.to) >= Some(Slot(self.durable_slot));
            is_level || self.now.since(given.at) >= GIVEN_MILLIS
        };
        self.given = self.given.filter(|given| !is_over(given));
    }
}
