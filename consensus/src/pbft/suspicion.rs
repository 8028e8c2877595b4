//! When a primary is given up, and how long that takes.
//!
//! One timer runs, for the request that has waited longest. It starts anew only when that one is done with, not with any
//! progress: else a primary could leave out one client for ever. Half way the request is shown to all replicas.
//!
//! Further reasons: a request that a whole window of slots overtook; fresh batches stamped far in the past; requests that wait
//! much longer for the primary than agreement takes ([`super::pace`]). Patience
//! doubles with each view that fails and halves as slots are executed. The timer for a NEW-VIEW starts only when a quorum
//! has asked for the view: nobody is blamed for what nobody could do.

use crate::pbft::custody::Arrival;
use crate::pbft::message::Message;
use crate::pbft::replica::Replica;
use crate::types::{Slot, Ticks, Timestamp, View};

/// The request whose wait is timed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    arrival: Arrival,
    since: Ticks,
    /// What was executed when it was shown to all.
    shown_at: Option<Slot>,
}

impl Replica {
    pub(super) fn on_tick(&mut self, now: Ticks, wall: Timestamp) {
        assert!(now >= self.now, "ticks never go back");
        if self.now == Ticks(0) && now > Ticks(0) {
            // The first tick of the process: timers were set against an origin that meant nothing.
            (self.status_at, self.progress_at, self.fetch_at) = (Ticks(0), now, now);
        }
        self.now = now;
        self.custody.now = now;
        self.wall = wall;
        self.release_held();
        if self.is_active && !self.executed.sealed && !self.is_behind() {
            self.watch_primary();
        } else if self.is_active {
            // The wait begins anew when this replica has caught up.
            self.waiting = None;
        } else if !self.is_active && self.new_view_deadline.is_some_and(|deadline| now >= deadline) {
            self.give_up();
        }
        self.tick_catch_up();
    }

    /// Whether there is proof that the group is ahead of what is executed here, so that it is not for the primary that requests
    /// wait. Those who are not behind watch it; a replica that left its view alone would be of no use to anybody.
    fn is_behind(&self) -> bool {
        // Only the next slot counts: behind one that is not decided, others may be, and that is for the primary.
        let next = self.slots.get(&self.executed.slot.next());
        let is_next_decided = next.is_some_and(|state| state.decided.is_some());
        self.is_repairing || self.executed.slot < self.stable_slot() || is_next_decided
    }

    /// How long a request may wait now, in milliseconds.
    pub(super) fn patience(&self) -> u64 {
        let doubled = self.options.request_ticks.saturating_mul(1 << self.failures.min(16));
        doubled.min(self.options.request_ticks_max)
    }

    /// The wait for the oldest request begins, or begins anew.
    pub(super) fn start_waiting(&mut self) {
        let begin = |arrival| Waiting { arrival, since: self.now, shown_at: None };
        self.waiting = self.custody.oldest().map(begin);
    }

    fn watch_primary(&mut self) {
        let oldest = self.custody.oldest();
        if self.waiting.map(|waiting| waiting.arrival) != oldest {
            self.start_waiting();
        }
        let Some(waiting) = self.waiting else { return };
        let waited = self.now.since(waiting.since);
        let interval = self.config.window.interval;
        let is_overtaken = waiting.shown_at.is_some_and(|at| self.executed.slot.0 > at.0 + interval);
        // Each view that failed makes slower primaries bearable.
        let interval = self.options.pace_ticks << self.failures.min(16);
        let is_slow = self.primary() != self.me && self.pace.is_slow(self.now, interval);
        if waited >= self.patience() || is_overtaken || is_slow {
            return self.give_up();
        }
        if waited >= self.patience() / 2 && waiting.shown_at.is_none() {
            self.waiting = Some(Waiting { shown_at: Some(self.executed.slot), ..waiting });
            if let Some(bytes) = self.custody.bytes_of(waiting.arrival) {
                self.broadcast(&Message::Requests(bytes), None);
            }
        }
    }

    /// The primary of this view, or of the one that should begin, is given up.
    pub(super) fn give_up(&mut self) {
        self.failures += 1;
        self.leave_for(View(self.view.0 + 1));
    }

    /// A slot was executed; `is_fresh` if this view's primary proposed it freely.
    pub(super) fn note_progress(&mut self, is_fresh: bool) {
        self.progress_at = self.now;
        self.calm_slots += 1;
        if self.calm_slots >= self.config.window.interval {
            self.calm_slots = 0;
            self.failures = self.failures.saturating_sub(1);
        }
        let is_behind = self.time.0.saturating_add(self.options.lag_micros) < self.wall.0;
        if is_fresh && is_behind && self.is_active && self.primary() != self.me {
            self.give_up();
        }
    }
}

/// A request is dropped by the wall clock only long after it is void, because ordered time may lag.
pub(super) const EXPIRY_SLACK_MICROS: u64 = 60 * 1_000_000;
