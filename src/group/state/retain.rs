//! How much of the log is kept for replicas that lag.
//!
//! Usually a little, in bytes: enough for whoever was away for a moment. More is kept for a replica that is there and lags, or is given a
//! whole state: all that it lacks is *pinned*. For a large state it takes long to come, and to be put in place, in which the
//! group goes on. If the log were dropped behind it meanwhile, the replica would need another state, and so on for as long as anybody
//! writes.
//!
//! Invariants:
//! * all pins together keep so many bytes at most: they are a stretch at the end of the log, not one for each replica;
//! * a pin moves with what its replica has, as it says, and to the slot of a state that it is given;
//! * whoever comes no further for [`PIN_MILLIS`] loses its pin; a state that it was given is worth more time, by its bytes;
//! * what may be kept no more, because a pin has ended or other groups need their share, goes at once, also where nobody writes.
//!
//! In crash mode the leader alone knows how far others are, and pins for them; in Byzantine mode everybody does, as they say, but whoever
//! gives a state pins longest. A replica that is given a state goes on from the log of the one that gave it.
//!
//! Nothing waits for a pin: whoever lags on purpose costs the others memory and disk within the bound, and nobody an answer.

use crate::group::Group;
use crate::limits::SOURCE_BYTES_PER_SECOND;
use std::collections::BTreeMap;
use tetrachord_consensus::{Event, Mutation, Reached, ReplicaId, Retain, Slot, Ticks};

/// A replica that comes no further loses its pin after so long.
const PIN_MILLIS: u64 = 60_000;

/// A replica that was not heard for so long and is again, has come back: that counts as coming further.
const AWAY_MILLIS: u64 = 5_000;

/// Pins are looked at this often.
const LOOK_MILLIS: u64 = 100;

/// What one replica needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pin {
    /// Everything behind this slot.
    slot: Slot,
    heard_at: Ticks,
    /// When it last came further.
    progress_at: Ticks,
    /// For how long it may come no further.
    millis: u64,
    /// Whether it was given a state, which it may still be putting in place: until then it says what it had before.
    is_given: bool,
}

/// What is kept of the log, and what the other replicas need of it.
#[derive(Debug, Default)]
pub(in crate::group) struct Retention {
    /// Entry bytes that are always kept.
    usual_bytes: usize,
    /// What the log was last dropped up to, or where this life began.
    pub(in crate::group) compacted_slot: u64,
    of: BTreeMap<ReplicaId, Pin>,
    looked_at: Ticks,
    /// The lowest slot behind which the log is pinned.
    lowest: Option<Slot>,
    /// Bytes that all of them together may keep.
    bytes_max: usize,
    /// Bytes that were left of the log for others when it was last cut.
    left_bytes: usize,
    /// The same in the write-ahead log, when it was last rewritten.
    rewritten_bytes: usize,
    /// Bytes of the log at the last look, besides what is always kept, if somebody lacks some of it.
    lacked_bytes: usize,
    /// The broken variant keeps nothing.
    is_broken: bool,
}

impl Retention {
    /// Of a log that begins at this slot: so many bytes are always kept, and so many besides for those that are there and lag.
    pub(in crate::group) fn new(
        begins_at: u64,
        usual_bytes: usize,
        pinned_bytes: usize,
        mutation: Mutation,
    ) -> Self {
        let is_broken = mutation.pins_nothing();
        let bytes_max = if is_broken { 0 } else { pinned_bytes };
        Self { usual_bytes, compacted_slot: begins_at, bytes_max, is_broken, ..Self::default() }
    }

    /// A replica was heard, or was not since the last time. Whoever has all that is durable here needs nothing.
    fn note(&mut self, replica: ReplicaId, reached: Reached, durable: Slot) {
        let Reached { slot, heard_at } = reached;
        let fresh = Pin { slot, heard_at, progress_at: heard_at, millis: PIN_MILLIS, is_given: false };
        let pin = self.of.entry(replica).or_insert(fresh);
        let is_back = heard_at.0.saturating_sub(pin.heard_at.0) >= AWAY_MILLIS;
        pin.heard_at = pin.heard_at.max(heard_at);
        if slot > pin.slot || slot >= durable {
            *pin = Pin { slot: pin.slot.max(slot), ..fresh };
        } else if is_back {
            pin.progress_at = pin.progress_at.max(heard_at);
        }
        // It has less than it was known to have: another led meanwhile, or its state is being repaired.
        if slot < pin.slot && !pin.is_given {
            pin.slot = slot;
        }
    }

    /// A replica is being given the state after this slot, and has stored so many bytes of it.
    fn note_given(&mut self, replica: ReplicaId, slot: Slot, bytes: u64, progress_at: Ticks) {
        let fresh = Pin { slot, heard_at: progress_at, progress_at, millis: PIN_MILLIS, is_given: true };
        let pin = self.of.entry(replica).or_insert(fresh);
        (pin.slot, pin.is_given) = (pin.slot.max(slot), true);
        pin.progress_at = pin.progress_at.max(progress_at);
        pin.millis = PIN_MILLIS.saturating_add(bytes.saturating_mul(1_000) / SOURCE_BYTES_PER_SECOND);
    }

    fn look(&mut self, now: Ticks) {
        let is_live = |pin: &&Pin| now.since(pin.progress_at) < pin.millis;
        self.lowest = self.of.values().filter(is_live).map(|pin| pin.slot).min();
    }
}

impl Group {
    /// What is kept of the log for others now.
    pub(in crate::group) fn retain(&self) -> Retain {
        let bytes = self.retention.usual_bytes;
        let pinned_bytes = if self.is_pinned() { self.retention.bytes_max } else { 0 };
        Retain { bytes, pinned: self.retention.lowest, pinned_bytes: bytes + pinned_bytes }
    }

    /// What the tree durably holds need not be in memory as entries too, but for what lagging replicas may want.
    pub(in crate::group) fn trim(&mut self) {
        if !self.is_installing() {
            let retain = self.retain();
            self.seat.step(Event::Trim { slot: Slot(self.tree.durable_slot), retain });
            self.note_cut(retain);
        }
    }

    /// The log was cut: what is left of it for others waits for nothing here.
    pub(in crate::group) fn note_cut(&mut self, retain: Retain) {
        self.retention.left_bytes = self.seat.log_bytes().min(retain.bytes_max());
    }

    /// Bytes of the log that have gathered since it was last cut, besides what is always kept. A pin that ends changes nothing before the
    /// next cut: else what it kept would count as waiting at once, and stop a leader.
    pub(in crate::group) fn log_bytes_since_cut(&self) -> usize {
        self.seat.log_bytes().saturating_sub(self.retention.left_bytes.max(self.retention.usual_bytes))
    }

    /// Whether what somebody lacks is pinned, of what the tree durably holds.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.retention.lowest.is_some_and(|slot| slot.0 < self.tree.durable_slot)
    }

    /// Bytes of the log that somebody may lack besides what is always kept, about; none if nobody does.
    #[must_use]
    pub fn lacked_bytes(&self) -> usize {
        self.retention.lacked_bytes
    }

    /// Whether so much less may be kept than when the write-ahead log was last rewritten that doing it again drops something.
    pub(in crate::group) fn keeps_too_much(&self) -> bool {
        self.retention.rewritten_bytes > self.retain_bytes()
    }

    /// The write-ahead log was rewritten, after a cut: it holds what was left in memory.
    pub(in crate::group) fn note_rewritten(&mut self) {
        self.retention.rewritten_bytes = self.retention.left_bytes;
    }

    /// Sets how much all pins of this group may keep.
    pub fn set_pinned_bytes_max(&mut self, bytes_max: usize) {
        self.retention.bytes_max = if self.retention.is_broken { 0 } else { bytes_max };
    }

    /// Learns how far the others are.
    pub(in crate::group) fn tick_pins(&mut self) {
        if self.now.since(self.retention.looked_at) < LOOK_MILLIS {
            return;
        }
        self.retention.looked_at = self.now;
        let durable = Slot(self.tree.durable_slot);
        for index in 0..self.tenure().members.len() {
            let replica = ReplicaId(u8::try_from(index).expect("a group has few replicas"));
            if let Some(reached) = self.seat.reached(replica) {
                self.retention.note(replica, reached, durable);
            }
        }
        self.note_transfer();
        self.retention.look(self.now);
        let more = || self.seat.log_bytes().saturating_sub(self.retention.usual_bytes);
        self.retention.lacked_bytes = if self.is_pinned() { more() } else { 0 };
        if self.retention.left_bytes > self.retain_bytes() {
            self.trim();
        }
    }

    /// Whoever is given a state needs what follows it.
    pub(in crate::group) fn note_transfer(&mut self) {
        if let Some(transfer) = &self.giving.transfer {
            let (to, slot, bytes, progress_at) = transfer.given();
            self.retention.note_given(to, slot, bytes, progress_at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ReplicaId = ReplicaId(1);
    const OTHER: ReplicaId = ReplicaId(2);

    fn reached(slot: u64, heard_at: u64) -> Reached {
        Reached { slot: Slot(slot), heard_at: Ticks(heard_at) }
    }

    fn lowest(pins: &mut Retention, now: u64) -> Option<u64> {
        pins.look(Ticks(now));
        pins.lowest.map(|slot| slot.0)
    }

    #[test]
    fn what_the_slowest_lacks_is_pinned() {
        let mut pins = Retention::default();
        pins.note(ONE, reached(1_000, 10), Slot(1_000));
        assert_eq!(lowest(&mut pins, 10), Some(1_000));
        pins.note(OTHER, reached(700, 10), Slot(1_000));
        assert_eq!(lowest(&mut pins, 10), Some(700));
        pins.note(OTHER, reached(800, 20), Slot(1_000));
        assert_eq!(lowest(&mut pins, 20), Some(800));
        let mut at = 20;
        while at < 2 * PIN_MILLIS {
            pins.note(OTHER, reached(1_000, at), Slot(1_000));
            assert_eq!(
                lowest(&mut pins, at),
                Some(1_000),
                "whoever has everything keeps its pin, which costs nothing"
            );
            at += 1_000;
        }
    }

    #[test]
    fn whoever_comes_no_further_loses_its_pin_and_whoever_comes_back_has_it_again() {
        let mut pins = Retention::default();
        let mut at = 10;
        while at < 10 + PIN_MILLIS {
            assert_eq!(lowest(&mut pins, at), (at > 10).then_some(700), "at {at}");
            pins.note(ONE, reached(700, at), Slot(1_000));
            at += 1_000;
        }
        assert_eq!(lowest(&mut pins, at), None, "it says the same for too long");
        pins.note(ONE, reached(701, at), Slot(1_000));
        assert_eq!(lowest(&mut pins, at), Some(701));
        let back = at + PIN_MILLIS + AWAY_MILLIS;
        assert_eq!(lowest(&mut pins, back), None);
        pins.note(ONE, reached(701, back), Slot(1_000));
        assert_eq!(lowest(&mut pins, back), Some(701));
    }

    #[test]
    fn what_follows_a_state_is_pinned_for_as_long_as_the_state_is_large() {
        let mut pins = Retention::default();
        pins.note(ONE, reached(3, 10), Slot(900));
        let (bytes, stored_at) = (200 << 20, 30_000);
        pins.note_given(ONE, Slot(900), bytes, Ticks(stored_at));
        assert_eq!(lowest(&mut pins, stored_at), Some(900));
        let until = stored_at + PIN_MILLIS + 1_000 * bytes / SOURCE_BYTES_PER_SECOND;
        assert_eq!(lowest(&mut pins, until - 1), Some(900));
        assert_eq!(lowest(&mut pins, until), None);
    }
}
