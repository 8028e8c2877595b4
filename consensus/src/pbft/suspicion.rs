//! When a primary is given up, and how long that takes.
//!
//! One timer runs, for the request that has waited longest. It starts anew only when that one is done with, not with any
//! progress: else a primary could leave out one client for ever. Half way the request is shown to all replicas.
//!
//! A replica that is behind blames nobody: what waits here may be ordered in a slot that it has not executed yet. Its timer stands
//! still, and begins anew afterwards, once for each request. But a primary can keep its backups short of the next batch, each of
//! them in turn and as often as it likes: for that the timer stands still no longer than for one more patience.
//!
//! What was proposed while this replica was away comes with an old time, whatever the primary's clock says. So nothing is made of
//! it if one honest replica had executed the slot before it was prepared here: whoever helps says first how far it is. Nobody
//! executes before so many honest ones have prepared that those who lie are not enough to excuse the primary. One that was itself
//! stopped for long says nothing of times for a while.
//!
//! Further reasons: a request that slots overtook for a quarter of a patience after it was shown to all (what is on its way then was proposed
//! before the primary could see it, and of a full pipeline that is more than any number of slots that one could name); fresh batches that come with a time far in the past; requests that wait
//! much longer for the primary than agreement takes ([`super::pace`]). Patience doubles with each view that fails, and halves as
//! slots are executed or as a patience goes by in which a view is of use. The timer for a NEW-VIEW starts only when a quorum has
//! asked for the view: nobody is blamed for what nobody could do.

use crate::mutation::mutated;
use crate::pbft::catch_up::Peer;
use crate::pbft::custody::Arrival;
use crate::pbft::message::Message;
use crate::pbft::pace::Pace;
use crate::pbft::replica::Replica;
use crate::types::{Slot, Ticks, Timestamp, View};

/// Whether it is for the primary that requests wait here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It is.
    UpToDate,
    /// The next slot is decided and not executed, because its batch is not here. A primary can bring that about.
    Short,
    /// A checkpoint of the group is ahead, or the state is being repaired.
    FarBehind,
}

/// The request whose wait is timed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    arrival: Arrival,
    /// Milliseconds that it waited for the primary.
    waited: u64,
    /// Milliseconds for which this replica was short meanwhile.
    short: u64,
    stands_still: bool,
    /// Whether it turned out that this replica had missed something.
    missed: bool,
    has_begun_anew: bool,
    /// When it was shown to all: how long it had waited, and how many fresh slots had been executed.
    shown_at: Option<(u64, u64)>,
}

impl Waiting {
    fn begin(arrival: Arrival) -> Self {
        let (stands_still, missed, has_begun_anew) = (false, false, false);
        Self { arrival, waited: 0, short: 0, stands_still, missed, has_begun_anew, shown_at: None }
    }

    /// Time passes, for the primary unless this replica is behind.
    fn pass(&mut self, millis: u64, standing: Standing, patience: u64) {
        self.missed |= self.stands_still;
        self.short += if standing == Standing::Short { millis } else { 0 };
        self.stands_still = match standing {
            Standing::UpToDate => false,
            Standing::Short => self.short <= patience,
            Standing::FarBehind => true,
        };
        if self.stands_still {
            return;
        }
        if self.missed && !self.has_begun_anew {
            // That it was shown may have been lost with what this replica missed.
            (self.waited, self.shown_at, self.has_begun_anew) = (0, None, true);
        }
        self.waited += millis;
    }
}

/// Whether the primary of this view does its work, as far as one can tell from here.
#[derive(Clone, Debug, Default)]
pub(super) struct Suspicion {
    /// Until when the next view should have begun.
    pub(super) new_view_deadline: Option<Ticks>,
    /// Views that failed lately; patience doubles with each.
    failures: u32,
    /// Slots executed since patience was last halved.
    calm_slots: u64,
    /// Since when nothing waits in a view that has begun.
    calm_since: Ticks,
    pub(super) waiting: Option<Waiting>,
    /// Slots executed in this life that were proposed to this replica in their view.
    fresh_slots: u64,
    pub(super) pace: Pace,
    /// Before, old times are not held against a primary: this replica was stopped for long.
    pub(super) judges_time_from: Ticks,
    /// When a slot was last executed.
    pub(super) progress_at: Ticks,
}

impl Replica {
    pub(super) fn on_tick(&mut self, now: Ticks, wall: Timestamp) {
        assert!(now >= self.now, "ticks never go back");
        if self.now == Ticks(0) && now > Ticks(0) {
            // The first tick of the process: timers were set against an origin that meant nothing.
            (self.catch_up.status_at, self.suspicion.progress_at, self.catch_up.fetch_at) =
                (Ticks(0), now, now);
        }
        let elapsed = now.since(self.now);
        self.now = now;
        if elapsed.saturating_mul(2_000) > self.options.lag_micros {
            // It was stopped, and what came meanwhile comes now.
            self.suspicion.judges_time_from = now.plus(self.options.request_ticks);
        }
        self.custody.now = now;
        self.wall = wall;
        self.release_held();
        self.calm_down();
        if self.is_active && !self.executed.sealed {
            self.watch_primary(elapsed);
        } else if !self.is_active && self.suspicion.new_view_deadline.is_some_and(|deadline| now >= deadline)
        {
            self.give_up();
        }
        self.tick_catch_up();
    }

    /// A replica that left its view alone would be of no use to anybody: those who are behind wait for the others.
    fn standing(&self) -> Standing {
        // Only the next slot counts: behind one that is not decided, others may be, and that is for the primary.
        let next = self.slots.get(&self.executed.slot.next());
        if self.is_repairing || self.executed.slot < self.stable_slot() {
            Standing::FarBehind
        } else if next.is_some_and(|state| state.decided.is_some()) {
            Standing::Short
        } else {
            Standing::UpToDate
        }
    }

    /// How long a request may wait now, in milliseconds.
    pub(super) fn patience(&self) -> u64 {
        let doubled = self.options.request_ticks.saturating_mul(1 << self.suspicion.failures.min(16));
        doubled.min(self.options.request_ticks_max)
    }

    /// What failed long ago says nothing of the primary: a patience that went by with nothing to wait for, or with something executed,
    /// halves it. Else one that orders little, each time just before the end of a patience that had grown, would keep it that long.
    fn calm_down(&mut self) {
        if !self.is_active || mutated!(self.options, PatienceOnlyGrows) {
            self.suspicion.calm_since = self.now;
        }
        let is_calm =
            self.suspicion.waiting.is_none() || self.suspicion.progress_at > self.suspicion.calm_since;
        if is_calm && self.now.since(self.suspicion.calm_since) >= self.patience() {
            self.suspicion.failures = self.suspicion.failures.saturating_sub(1);
            self.suspicion.calm_since = self.now;
        }
    }

    /// The wait for the oldest request begins.
    pub(super) fn start_waiting(&mut self) {
        self.suspicion.waiting = self.custody.oldest().map(Waiting::begin);
    }

    fn watch_primary(&mut self, elapsed: u64) {
        // A process that was held up did not watch meanwhile.
        let mut elapsed = elapsed.min(self.options.request_ticks / 4);
        if self.suspicion.waiting.map(|waiting| waiting.arrival) != self.custody.oldest() {
            self.start_waiting();
            elapsed = 0;
        }
        let (standing, patience) = (self.standing(), self.patience());
        if mutated!(self.options, RestartWait) && standing != Standing::UpToDate {
            return self.suspicion.waiting = None;
        }
        let Some(mut waiting) = self.suspicion.waiting else { return };
        waiting.pass(elapsed, standing, patience);
        self.suspicion.waiting = Some(waiting);
        if waiting.stands_still {
            return;
        }
        let Waiting { arrival, waited, shown_at, .. } = waiting;
        let is_overtaken = shown_at.is_some_and(|(then, slots)| {
            waited >= then + patience / 4 && self.suspicion.fresh_slots > slots + self.config.window.interval
        });
        if waited >= patience || is_overtaken || self.is_primary_slow(patience) {
            return self.give_up();
        }
        if waited >= patience / 2 && shown_at.is_none() {
            self.suspicion.waiting =
                Some(Waiting { shown_at: Some((waited, self.suspicion.fresh_slots)), ..waiting });
            if let Some(bytes) = self.custody.bytes_of(arrival) {
                self.broadcast(&Message::Requests(bytes), None);
                self.custody.told(Some(arrival));
            }
        }
    }

    fn is_primary_slow(&mut self, patience: u64) -> bool {
        // Each view that failed makes slower primaries bearable.
        let shortest = self.options.pace_ticks.saturating_mul(1 << self.suspicion.failures.min(16));
        let shortest = shortest.min(self.options.request_ticks_max.max(self.options.pace_ticks));
        let gathered = if mutated!(self.options, PaceOfManyAlone) { 1 } else { PACE_INTERVALS_MAX };
        let interval = shortest..=shortest.saturating_mul(gathered);
        self.primary() != self.me && self.suspicion.pace.is_slow(self.now, interval, patience)
    }

    /// The primary of this view, or of the one that should begin, is given up.
    pub(super) fn give_up(&mut self) {
        // What grows no more has not to shrink either.
        self.suspicion.failures += u32::from(self.patience() < self.options.request_ticks_max);
        self.leave_for(View(self.view.0 + 1));
    }

    /// The next slot was executed; `is_fresh` if this view's primary proposed it freely, `is_stale` if that came with an old time.
    pub(super) fn note_progress(&mut self, is_fresh: bool, is_stale: bool) {
        assert!(is_fresh || !is_stale, "the time of what was proposed anew says nothing");
        self.suspicion.progress_at = self.now;
        self.suspicion.fresh_slots += u64::from(is_fresh);
        if let Some(waiting) = &mut self.suspicion.waiting {
            waiting.missed |= !is_fresh;
        }
        self.suspicion.calm_slots += 1;
        if self.suspicion.calm_slots >= self.config.window.interval {
            self.suspicion.calm_slots = 0;
            self.suspicion.failures = self.suspicion.failures.saturating_sub(1);
        }
        if is_stale && self.is_active && self.primary() != self.me {
            self.give_up();
        }
    }

    /// Whether one who is honest has executed this slot already, as far as this replica was told.
    pub(super) fn others_were_first(&self, slot: Slot) -> bool {
        let is_ahead = |peer: &&Peer| peer.status.is_some_and(|status| status.executed >= slot);
        let ahead = self.peers.values().filter(is_ahead).count();
        ahead >= self.config.quorum.one_honest() && !mutated!(self.options, BlameWhenLate)
    }
}

/// For want of samples of its pace a primary is watched for so many times as long. What is older says nothing of now.
const PACE_INTERVALS_MAX: u64 = 8;

/// A request is dropped by the wall clock only long after it is void, because ordered time may lag.
pub(super) const EXPIRY_SLACK_MICROS: u64 = 60 * 1_000_000;
