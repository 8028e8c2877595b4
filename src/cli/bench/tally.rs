//! What became of the requests of a run. Pure: all moments are told to it, in microseconds since the run began.
//!
//! A request counts if it should have begun within the measured time, whenever it ends; each has a deadline, so each ends. Its latency
//! runs from the moment at which it *should* have begun: whoever starts the clock only when a request is sent does not see what
//! those had to wait that could not be sent meanwhile. Requests that fail are in the latencies, with the time until they were given
//! up: an outage must not make them better.

use crate::client::{Outcome, Refusal};
use hdrhistogram::Histogram;
use std::ops::Range;

/// Latencies above ten minutes count as ten minutes.
const LATENCY_MICROS_MAX: u64 = 600_000_000;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    Done,
    /// It surely did not happen, because it may not.
    Refused(String),
    /// It surely did not happen, because nobody took it in time.
    Unavailable(String),
    /// Nobody knows.
    Unknown(String),
}

impl<T> From<Outcome<T>> for End {
    fn from(outcome: Outcome<T>) -> Self {
        match outcome {
            Outcome::Done(_) => Self::Done,
            Outcome::Refused(Refusal::Unavailable(reason) | Refusal::Cancelled(reason)) => {
                Self::Unavailable(reason)
            }
            Outcome::Refused(refusal) => Self::Refused(refusal.to_string()),
            Outcome::Unknown(reason) => Self::Unknown(reason),
        }
    }
}

/// When a request should have begun, when it did, and when it ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moments {
    pub(super) intended: u64,
    pub(super) sent: u64,
    pub(super) ended: u64,
}

/// The requests of a run so far.
#[derive(Debug)]
pub(super) struct Tally {
    /// What is measured.
    window: Range<u64>,
    /// From the intended start, and from the actual one.
    pub(super) latency: Histogram<u64>,
    pub(super) service: Histogram<u64>,
    pub(super) done: u64,
    pub(super) refused: u64,
    pub(super) unavailable: u64,
    pub(super) unknown: u64,
    /// Not even sent when the time was over: all clients waited for others.
    pub(super) not_sent: u64,
    /// Open when the time was over. Each of them is counted above, too, as what it ended as.
    pub(super) open: u64,
    /// Done within the measured time, whenever they began.
    pub(super) answered: u64,
    /// Why the first one failed.
    pub(super) reason: Option<String>,
    /// When something was done last, and the longest time in which nothing was.
    last_done: u64,
    gap: u64,
}

impl Tally {
    /// Of a run of which this time is measured.
    pub(super) fn new(window: Range<u64>) -> anyhow::Result<Self> {
        let histogram = Histogram::<u64>::new_with_max(LATENCY_MICROS_MAX, 3)?;
        Ok(Self {
            last_done: window.start,
            window,
            latency: histogram.clone(),
            service: histogram,
            done: 0,
            refused: 0,
            unavailable: 0,
            unknown: 0,
            not_sent: 0,
            open: 0,
            answered: 0,
            reason: None,
            gap: 0,
        })
    }

    /// A request has ended.
    pub(super) fn note(&mut self, at: Moments, end: End) {
        if end == End::Done && at.ended >= self.window.start {
            self.gap = self.longest_gap(at.ended);
            self.last_done = at.ended;
            self.answered += u64::from(at.ended < self.window.end);
        }
        if !self.window.contains(&at.intended) {
            return;
        }
        self.latency.saturating_record(at.ended.saturating_sub(at.intended));
        self.service.saturating_record(at.ended.saturating_sub(at.sent));
        self.open += u64::from(at.ended >= self.window.end);
        let (count, reason) = match end {
            End::Done => (&mut self.done, None),
            End::Refused(reason) => (&mut self.refused, Some(reason)),
            End::Unavailable(reason) => (&mut self.unavailable, Some(reason)),
            End::Unknown(reason) => (&mut self.unknown, Some(reason)),
        };
        *count += 1;
        self.reason = self.reason.take().or(reason);
    }

    /// A request that should have begun by then was not sent before the time was over: it has waited for so long at least.
    pub(super) fn note_not_sent(&mut self, intended: u64) {
        if self.window.contains(&intended) {
            self.latency.saturating_record(self.window.end - intended);
            self.not_sent += 1;
        }
    }

    /// Requests that did not do what was asked.
    pub(super) fn errors(&self) -> u64 {
        self.refused + self.unavailable + self.unknown + self.not_sent
    }

    /// The longest part of the measured time, up to this moment, in which nothing was done.
    pub(super) fn longest_gap(&self, now: u64) -> u64 {
        let now = now.min(self.window.end);
        self.gap.max(now.saturating_sub(self.last_done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally() -> Tally {
        Tally::new(1_000_000..3_000_000).unwrap()
    }

    fn at(intended: u64, sent: u64, ended: u64) -> Moments {
        Moments { intended, sent, ended }
    }

    fn unknown() -> End {
        End::Unknown("nobody answered".to_string())
    }

    #[test]
    fn what_did_not_come_back_is_counted_and_in_the_latencies() {
        let mut tally = tally();
        (0..98).for_each(|_| tally.note(at(1_100_000, 1_100_000, 1_101_000), End::Done));
        assert!(tally.latency.max() < 2_000);
        tally.note(at(1_200_000, 1_200_000, 2_700_000), unknown());
        tally.note(at(1_200_000, 1_200_000, 2_900_000), End::Unavailable("no leader".to_string()));
        assert_eq!((tally.done, tally.unknown, tally.unavailable, tally.errors()), (98, 1, 1, 2));
        assert_eq!(tally.latency.len(), 100);
        assert!(
            tally.latency.value_at_quantile(0.99) >= 1_500_000,
            "{}",
            tally.latency.value_at_quantile(0.99)
        );
        assert_eq!(tally.reason.as_deref(), Some("nobody answered"));
    }

    #[test]
    fn what_ends_after_the_time_counts_as_what_it_ended_as_and_as_open() {
        let mut tally = tally();
        tally.note(at(2_900_000, 2_900_000, 13_000_000), unknown());
        tally.note(at(2_900_000, 2_900_000, 3_000_500), End::Done);
        assert_eq!((tally.unknown, tally.done, tally.open, tally.answered), (1, 1, 2, 0));
        assert!(tally.latency.max() >= 10_000_000);
        // What began before is none of it, and only its answer came in the measured time.
        tally.note(at(900_000, 900_000, 1_200_000), End::Done);
        tally.note(at(900_000, 900_000, 1_300_000), unknown());
        tally.note(at(3_000_000, 3_000_000, 3_000_100), unknown());
        assert_eq!((tally.unknown, tally.done, tally.open, tally.answered), (1, 1, 2, 1));
    }

    #[test]
    fn latency_runs_from_the_moment_at_which_a_request_should_have_begun() {
        let mut tally = tally();
        tally.note(at(1_000_000, 1_800_000, 1_801_000), End::Done);
        assert!(tally.service.max() < 2_000 && tally.latency.max() >= 801_000);
        tally.note_not_sent(1_500_000);
        tally.note_not_sent(500_000);
        assert_eq!((tally.not_sent, tally.errors(), tally.latency.len()), (1, 1, 2));
        assert!(tally.latency.max() >= 1_500_000);
    }

    #[test]
    fn a_time_in_which_nothing_was_done_is_seen() {
        let mut tally = tally();
        tally.note(at(900_000, 900_000, 1_100_000), End::Done);
        tally.note(at(1_200_000, 1_200_000, 1_300_000), End::Done);
        tally.note(at(1_300_000, 1_300_000, 2_000_000), unknown());
        assert_eq!(tally.longest_gap(1_400_000), 200_000);
        assert_eq!(tally.longest_gap(9_000_000), 1_700_000, "to the end of what is measured");
        tally.note(at(1_300_000, 1_300_000, 2_300_000), End::Done);
        assert_eq!(tally.longest_gap(2_400_000), 1_000_000);
    }
}
