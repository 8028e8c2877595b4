//! Who is next, where many wait.
//!
//! Each line has a clock that runs by what was done for it, and the line whose clock is furthest behind is next: whoever brings most
//! waits longest, and delays nobody. The clock of the job that was taken last stands for the time that passes (Golestani, "A
//! Self-Clocked Fair Queueing Scheme for Broadband Applications", INFOCOM 1994, section III). Within a line everything keeps its order.
//!
//! Not here: how much may wait ([`super::Shares`]). Lines stay when they are empty, so keys are those of accounts and nodes, of which a
//! cluster has few.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Lines that take turns.
#[derive(Debug)]
pub struct Turns<K, J> {
    /// The clock of each line, and what waits in it. A line that is empty keeps its clock: else whoever brings one job at a time
    /// would always be next.
    lines: BTreeMap<K, (u64, VecDeque<(u32, J)>)>,
    /// The lines in which something waits, by their clocks.
    waiting: BTreeSet<(u64, K)>,
    /// The clock of the line that was served last: who comes anew is not behind it.
    clock: u64,
}

impl<K: Ord, J> Default for Turns<K, J> {
    fn default() -> Self {
        Self { lines: BTreeMap::new(), waiting: BTreeSet::new(), clock: 0 }
    }
}

impl<K: Copy + Ord, J> Turns<K, J> {
    /// Something waits in this line, and counts as so much; nothing is free.
    pub fn push(&mut self, key: K, cost: u32, job: J) {
        let (at, jobs) = self.lines.entry(key).or_default();
        if jobs.is_empty() {
            *at = (*at).max(self.clock);
            self.waiting.insert((*at, key));
        }
        jobs.push_back((cost.max(1), job));
    }

    /// What is next, and what it counts as.
    pub fn pop(&mut self) -> Option<(u32, J)> {
        let (at, key) = self.waiting.pop_first()?;
        self.clock = at;
        let (clock, jobs) = self.lines.get_mut(&key).expect("a line that waits is there");
        let (cost, job) = jobs.pop_front().expect("something waits in a line that waits");
        *clock = at + u64::from(cost);
        if !jobs.is_empty() {
            self.waiting.insert((*clock, key));
        }
        Some((cost, job))
    }

    /// What [`Self::pop`] would return.
    #[must_use]
    pub fn peek(&self) -> Option<(u32, &J)> {
        let (_, key) = self.waiting.first()?;
        self.lines.get(key)?.1.front().map(|(cost, job)| (*cost, job))
    }

    /// Everything that waits, in the order of its turns.
    pub fn drain(&mut self) -> Vec<J> {
        std::iter::from_fn(|| self.pop()).map(|(_, job)| job).collect()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_late_with_little_does_not_wait_for_those_with_much() {
        let mut turns = Turns::default();
        (0..1_000).for_each(|at| turns.push('a', 1, ('a', at)));
        (0..10).for_each(|_| _ = turns.pop());
        turns.push('b', 1, ('b', 0));
        turns.push('b', 1, ('b', 1));
        assert_eq!(turns.peek(), Some((1, &('b', 0))));
        let next: Vec<(char, i32)> = (0..4).filter_map(|_| turns.pop()).map(|(_, job)| job).collect();
        assert_eq!(next, [('b', 0), ('a', 10), ('b', 1), ('a', 11)]);
        let rest = turns.drain();
        assert!(rest.len() == 988 && rest.is_sorted() && turns.is_empty());
        assert_eq!((turns.pop(), turns.peek()), (None, None));
    }
}
