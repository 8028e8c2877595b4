//! Whether a primary orders slowly on purpose: as slowly as its backups' timers allow, which is hundreds of times slower than
//! an honest one.
//!
//! Clement et al., "Making Byzantine Fault Tolerant Systems Tolerate Byzantine Faults" (NSDI 2009), section 4, demand a
//! throughput close to the best of earlier views. That takes a group that is never idle and a load that never changes; else
//! honest primaries are replaced. So two times are compared that are taken in the same interval, on the same machines and
//! disks: how long requests *wait for the primary*, and how long *agreement* among the backups takes, which the primary cannot
//! hold up. An honest primary proposes at once, or when agreement on what is under way ends.
//!
//! * Agreement on a slot lasts until COMMITs of a quorum less one, none of them the primary's, are here.
//! * A request waits from when this replica told the primary of it until its slot *and all before it* are decided, less the
//!   time of that agreement. So it does not help a primary to propose at once behind a slot that it keeps back, or to keep
//!   back its own COMMIT from a quorum that needs it.
//! * Where few slots are ordered, samples are gathered for longer: a primary that orders everything in one batch a second is
//!   slow like any other.
//!
//! A primary that has more to do than it can lets requests wait as well. So nothing is said of one while agreement on slots with
//! requests from here rests less than a quarter of the time; nor, if they wait for less than half of a patience, while it rests less than
//! three quarters; nor while this replica's own state machine could not take more. Slots that are agreed on at the same time take that
//! time once: else a primary that hands out many proposals together, and then none for long, would seem to be busy. Requests that
//! clients bring to their primary alone are not seen: they are shown to all when they are not answered soon.
//!
//! Not here: a primary that hands each proposal to one backup sooner than to another, while a third has left the view. Both are needed
//! then, and what the sooner one waits for the other counts as agreement; waits of up to half of a patience can pass for work.

use crate::types::Ticks;
use std::ops::RangeInclusive;

/// Waits so many times as long as agreement takes, and longer than this many milliseconds, are slow.
const SLOW_FACTOR: u64 = 10;
const SLOW_MILLIS: u64 = 100;

/// A primary has much to do if agreement is under way for one in so many parts of an interval, and more than it can if it is for all but
/// one.
const BUSY_PARTS: u64 = 4;

/// Intervals in a row that must be slow, and samples of both times that one must have to say anything.
const SLOW_INTERVALS: u32 = 2;
const SAMPLES_MIN: usize = 3;

/// Samples of an interval that are kept.
const SAMPLES_MAX: usize = 256;

/// When a slot that was proposed to this replica came how far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Times {
    /// The proposal came.
    pub(super) proposed_at: Ticks,
    /// Of its COMMITs, as many were here as a quorum needs besides the primary's.
    pub(super) backed_at: Option<Ticks>,
    /// It was decided.
    pub(super) decided_at: Ticks,
}

/// How the primary of this view has kept up, as seen from here.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    began: Ticks,
    waits: Vec<u64>,
    agreements: Vec<u64>,
    /// Milliseconds in which slots were agreed on with requests that the primary was told of, and up to when that is counted.
    busy: u64,
    busy_until: Ticks,
    slow_intervals: u32,
    /// When everything that is executed was decided.
    all_decided_at: Ticks,
}

impl Pace {
    /// A view begins: what was before says nothing about its primary.
    pub(super) fn restart(&mut self, now: Ticks) {
        let Self { all_decided_at, busy_until, .. } = *self;
        *self = Self { began: now, all_decided_at, busy_until, ..Self::default() };
    }

    /// Slots are executed in order, whenever they were decided.
    pub(super) fn decided(&mut self, at: Ticks) {
        self.all_decided_at = self.all_decided_at.max(at);
    }

    /// A slot was executed that was proposed to this replica, with requests that the primary was told of at these times.
    pub(super) fn executed(&mut self, times: Times, told_at: &[Ticks]) {
        let backed_at = times.backed_at.unwrap_or(times.decided_at);
        let agreement = backed_at.since(times.proposed_at);
        for told_at in told_at {
            self.waited(self.all_decided_at.since(*told_at).saturating_sub(agreement));
        }
        if !told_at.is_empty() {
            self.busy += backed_at.since(times.proposed_at.max(self.busy_until));
            self.busy_until = self.busy_until.max(backed_at);
        }
        if self.agreements.len() < SAMPLES_MAX {
            self.agreements.push(agreement);
        }
    }

    fn waited(&mut self, millis: u64) {
        if self.waits.len() < SAMPLES_MAX {
            self.waits.push(millis);
        }
    }

    /// This replica could not have proposed either: the interval says nothing.
    pub(super) fn excuse(&mut self, now: Ticks) {
        self.begin_interval(now);
    }

    /// Whether the primary is slow. Asked all the time, it judges at the end of each interval, which goes on from the shortest to
    /// the longest for want of samples.
    pub(super) fn is_slow(&mut self, now: Ticks, interval: RangeInclusive<u64>, patience: u64) -> bool {
        let elapsed = now.since(self.began);
        if elapsed < *interval.start() {
            return false;
        }
        if self.waits.len().min(self.agreements.len()) >= SAMPLES_MIN {
            let allowed = (SLOW_FACTOR * median(&mut self.agreements)).max(SLOW_MILLIS);
            let wait = median(&mut self.waits);
            let part = elapsed / BUSY_PARTS;
            let enough = if wait < patience / 2 { part } else { elapsed - part };
            let is_slow = wait > allowed && self.busy < enough;
            self.slow_intervals = if is_slow { self.slow_intervals + 1 } else { 0 };
        } else if elapsed < *interval.end() {
            return false;
        } else {
            self.slow_intervals = 0;
        }
        self.begin_interval(now);
        self.slow_intervals >= SLOW_INTERVALS
    }

    fn begin_interval(&mut self, now: Ticks) {
        self.began = now;
        self.busy = 0;
        self.waits.clear();
        self.agreements.clear();
    }
}

fn median(samples: &mut [u64]) -> u64 {
    assert!(!samples.is_empty(), "the caller has counted");
    samples.sort_unstable();
    samples[samples.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: RangeInclusive<u64> = 1_000..=8_000;

    /// A request that the primary was told of `wait` before it proposed it; agreement among the backups ended `late` before
    /// everything was decided.
    fn order(pace: &mut Pace, at: u64, wait: u64, agreement: u64, late: u64) {
        let proposed_at = Ticks(at);
        let backed_at = proposed_at.plus(agreement);
        let decided_at = backed_at.plus(late);
        pace.decided(decided_at);
        let told_at = [Ticks(at.saturating_sub(wait))];
        pace.executed(Times { proposed_at, backed_at: Some(backed_at), decided_at }, &told_at);
    }

    fn interval(pace: &mut Pace, second: u64, wait: u64, agreement: u64) -> bool {
        (0..5).for_each(|_| order(pace, 1_000 * second - 500, wait, agreement, 0));
        pace.is_slow(Ticks(1_000 * second), INTERVAL, 2_000)
    }

    #[test]
    fn only_waits_that_agreement_does_not_explain_are_slow() {
        let mut pace = Pace::default();
        assert!(!interval(&mut pace, 1, 90, 1), "short");
        assert!(!interval(&mut pace, 2, 400, 50), "everything is slow here");
        assert!(!interval(&mut pace, 3, 400, 5), "once is no habit");
        assert!(interval(&mut pace, 4, 400, 5));
        pace.restart(Ticks(4_000));
        assert!(!interval(&mut pace, 5, 400, 5), "another primary");
        assert!(!pace.is_slow(Ticks(5_500), INTERVAL, 2_000), "not yet");
    }

    #[test]
    fn what_holds_up_a_slot_that_was_proposed_at_once_is_the_primarys() {
        // A slot before it was kept back, or the COMMIT that its quorum needed.
        let mut pace = Pace::default();
        for second in 1..=2 {
            (0..3).for_each(|turn| order(&mut pace, 1_000 * second + turn, 0, 5, 850));
            assert_eq!(pace.is_slow(Ticks(1_000 * (second + 1)), INTERVAL, 2_000), second == 2);
        }
    }

    /// Proposals that were held back come in one frame: the time of their agreement is no more than that of one.
    #[test]
    fn a_primary_that_hands_out_many_proposals_at_a_time_is_not_busy() {
        let mut pace = Pace::default();
        for second in 1..=2 {
            for tenth in 0..10 {
                (0..4).for_each(|_| order(&mut pace, 1_000 * second + 100 * tenth, 150, 10, 0));
            }
            assert_eq!(pace.is_slow(Ticks(1_000 * (second + 1)), INTERVAL, 400), second == 2);
        }
    }

    #[test]
    fn few_requests_are_gathered_until_they_say_something() {
        let mut pace = Pace::default();
        let slow_at = (1..20u64).find(|second| {
            order(&mut pace, 1_000 * second - 10, 850, 5, 0);
            pace.is_slow(Ticks(1_000 * second), INTERVAL, 2_000)
        });
        assert_eq!(slow_at, Some(6));
        // One that waited long, now and then, is none of the primary's habits.
        let mut pace = Pace::default();
        for second in 1..100u64 {
            if second.is_multiple_of(4) {
                order(&mut pace, 1_000 * second - 10, 850, 5, 0);
            }
            assert!(!pace.is_slow(Ticks(1_000 * second), INTERVAL, 2_000));
        }
    }

    #[test]
    fn a_primary_that_works_as_much_as_can_be_is_not_slow() {
        let mut pace = Pace::default();
        for second in 1..10u64 {
            // Requests queue for seconds, but agreement on them never rests.
            (0..60).for_each(|turn| order(&mut pace, 1_000 * second - 900 + turn * 14, 3_000, 20, 0));
            assert!(!pace.is_slow(Ticks(1_000 * second), INTERVAL, 2_000));
        }
        // It does a quarter of what could be, and they wait for less than half of a patience.
        let is_replaced = |wait: u64| {
            let second = 50;
            let mut pace = Pace { began: Ticks(1_000 * second), ..Pace::default() };
            let is_slow = |turn: u64| {
                let end = 1_000 * (second + turn);
                (0..13).for_each(|at| order(&mut pace, end - 900 + at * 60, wait, 20, 0));
                pace.is_slow(Ticks(end), INTERVAL, 2_000)
            };
            (1..10).any(is_slow)
        };
        assert!(!is_replaced(700) && is_replaced(1_100));
        let mut pace = Pace::default();
        for second in 10..20u64 {
            (0..5).for_each(|_| order(&mut pace, 1_000 * second - 500, 400, 5, 0));
            pace.excuse(Ticks(1_000 * second - 100));
            assert!(!pace.is_slow(Ticks(1_000 * second), INTERVAL, 2_000), "this replica is no better");
        }
    }
}
