//! Whether a primary orders slowly on purpose: as slowly as its backups' timers allow, which is hundreds of times slower than
//! an honest one.
//!
//! Clement et al., "Making Byzantine Fault Tolerant Systems Tolerate Byzantine Faults" (NSDI 2009), section 4, demand a
//! throughput close to the best of earlier views. That takes a group that is never idle and a load that never changes; else
//! honest primaries are replaced. So two times are compared that are taken in the same interval, on the same machines and
//! disks: how long requests that are here *wait for the primary* to propose them, and how long *agreement* on a proposal takes,
//! which the primary cannot hold up. An honest primary proposes at once, or when agreement on what is under way ends.
//!
//! Requests that clients bring to their primary alone are not seen: they are shown to all when they are not answered soon.

use crate::types::Ticks;

/// Waits so many times as long as agreement takes, and longer than this many milliseconds, are slow.
const SLOW_FACTOR: u64 = 10;
const SLOW_MILLIS: u64 = 100;

/// Intervals in a row that must be slow, and samples of both times that one must have to say anything.
const SLOW_INTERVALS: u32 = 2;
const SAMPLES_MIN: usize = 3;

/// Samples of an interval that are kept.
const SAMPLES_MAX: usize = 256;

/// How the primary of this view has kept up, as seen from here.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    began: Ticks,
    waits: Vec<u64>,
    agreements: Vec<u64>,
    slow_intervals: u32,
}

impl Pace {
    /// A view begins: what was before says nothing about its primary.
    pub(super) fn restart(&mut self, now: Ticks) {
        *self = Self { began: now, ..Self::default() };
    }

    /// A request was proposed that had been here for so long.
    pub(super) fn waited(&mut self, millis: u64) {
        if self.waits.len() < SAMPLES_MAX {
            self.waits.push(millis);
        }
    }

    /// A batch was executed so long after its proposal came.
    pub(super) fn agreed(&mut self, millis: u64) {
        if self.agreements.len() < SAMPLES_MAX {
            self.agreements.push(millis);
        }
    }

    /// Whether the primary is slow. Asked all the time, it judges at the end of each interval.
    pub(super) fn is_slow(&mut self, now: Ticks, interval: u64) -> bool {
        if now.since(self.began) < interval {
            return false;
        }
        self.began = now;
        let has_samples = self.waits.len().min(self.agreements.len()) >= SAMPLES_MIN;
        if has_samples {
            let allowed = (SLOW_FACTOR * median(&mut self.agreements)).max(SLOW_MILLIS);
            let is_slow = median(&mut self.waits) > allowed;
            self.slow_intervals = if is_slow { self.slow_intervals + 1 } else { 0 };
        }
        self.waits.clear();
        self.agreements.clear();
        self.slow_intervals >= SLOW_INTERVALS
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

    fn interval(pace: &mut Pace, at: u64, wait: u64, agreement: u64) -> bool {
        for _ in 0..5 {
            pace.waited(wait);
            pace.agreed(agreement);
        }
        pace.is_slow(Ticks(at), 1_000)
    }

    #[test]
    fn only_waits_that_agreement_does_not_explain_are_slow() {
        let mut pace = Pace::default();
        assert!(!interval(&mut pace, 1_000, 90, 1), "short");
        assert!(!interval(&mut pace, 2_000, 400, 50), "everything is slow here");
        assert!(!interval(&mut pace, 3_000, 400, 5), "once is no habit");
        assert!(interval(&mut pace, 4_000, 400, 5));
        pace.restart(Ticks(4_000));
        assert!(!interval(&mut pace, 5_000, 400, 5), "another primary");
        assert!(!interval(&mut pace, 5_500, 400, 5), "not yet");
    }

    #[test]
    fn a_few_requests_that_waited_long_say_nothing() {
        let mut pace = Pace::default();
        for at in 1..10 {
            (0..2).for_each(|_| pace.waited(900));
            (0..20).for_each(|_| pace.agreed(2));
            assert!(!pace.is_slow(Ticks(at * 1_000), 1_000));
        }
    }
}
