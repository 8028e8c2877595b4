//! What is due when: one time for each thing that waits.

use super::CallId;
use crate::ring::{GroupId, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Something that waits for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A call's next step, or its deadline.
    Call(CallId),
    /// Whether a node has been heard.
    Probe(NodeId),
    /// Requests of a group that are to be shown to all of its members.
    Show(GroupId),
    /// A node is asked again to tell what becomes of requests.
    Watch(NodeId),
    /// The next node is dialled by whoever knows no ring yet.
    Greet,
}

/// Times, the next first.
#[derive(Debug, Default)]
pub(super) struct Timers {
    by_due: BTreeSet<(Duration, Timer)>,
    due: BTreeMap<Timer, Duration>,
}

impl Timers {
    /// The timer is due then, and at no other time.
    pub(super) fn set(&mut self, timer: Timer, due: Duration) {
        self.clear(timer);
        self.due.insert(timer, due);
        self.by_due.insert((due, timer));
    }

    /// The timer is not due any more.
    pub(super) fn clear(&mut self, timer: Timer) {
        if let Some(due) = self.due.remove(&timer) {
            self.by_due.remove(&(due, timer));
        }
    }

    /// Whether the timer is due some time.
    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.due.contains_key(&timer)
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Duration> {
        self.by_due.first().map(|(due, _)| *due)
    }

    /// The next one that is due now, and when it was.
    pub(super) fn pop(&mut self, now: Duration) -> Option<(Duration, Timer)> {
        let (due, timer) = self.by_due.first().copied().filter(|(due, _)| *due <= now)?;
        self.clear(timer);
        Some((due, timer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_due_once_at_the_time_that_was_set_last() {
        let millis = Duration::from_millis;
        let mut timers = Timers::default();
        timers.set(Timer::Greet, millis(5));
        timers.set(Timer::Call(CallId(1)), millis(7));
        timers.set(Timer::Greet, millis(9));
        assert_eq!((timers.next(), timers.pop(millis(6))), (Some(millis(7)), None));
        assert_eq!(timers.pop(millis(20)), Some((millis(7), Timer::Call(CallId(1)))));
        timers.clear(Timer::Greet);
        assert_eq!((timers.pop(millis(20)), timers.is_set(Timer::Greet)), (None, false));
    }
}
