//! The entries that a replica holds: contiguous, above a base that stands for everything dropped or snapshotted.

use crate::engine::Retain;
use crate::paxos::entry::Entry;
use crate::types::{LogBase, Slot};
use std::collections::VecDeque;

/// A contiguous run of entries above a base.
///
/// Invariants:
/// * entries have the slots `base.slot + 1 ..= last.slot`, without a gap;
/// * each entry's chain hash covers the one before it, the first one's covers the base;
/// * nothing follows a stop-sign.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Log {
    base: LogBase,
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Log {
    /// An empty log whose next entry follows `base`.
    #[must_use]
    pub fn starting_at(base: LogBase) -> Self {
        Self { base, ..Self::default() }
    }

    /// Where the log begins: the entry at this position is not in it, the next one is.
    #[must_use]
    pub fn base(&self) -> LogBase {
        self.base
    }

    /// Where the log ends.
    #[must_use]
    pub fn last(&self) -> LogBase {
        self.entries.back().map_or(self.base, Entry::base)
    }

    /// The last entry, unless the log is empty.
    #[must_use]
    pub fn last_entry(&self) -> Option<&Entry> {
        self.entries.back()
    }

    /// Bytes of all entries.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the epoch has ended with the last entry. Derived from the log, never a flag set by a proposal: an
    /// adopted log without the stop-sign unseals it.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.last().sealed
    }

    /// The entry at `slot`, if the log holds it.
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<&Entry> {
        let index = slot.0.checked_sub(self.base.slot.0 + 1)?;
        self.entries.get(usize::try_from(index).ok()?)
    }

    /// Position and hash at `slot`, if the log knows it (entries, or its base).
    #[must_use]
    pub fn position(&self, slot: Slot) -> Option<LogBase> {
        if slot == self.base.slot { Some(self.base) } else { self.get(slot).map(Entry::base) }
    }

    /// Whether the log knows this position, with this hash.
    #[must_use]
    pub fn holds(&self, at: LogBase) -> bool {
        self.position(at.slot) == Some(at)
    }

    /// Entries from `first` on, at most `entries_max` and about `bytes_max`, but at least one if there is one.
    #[must_use]
    pub fn run(&self, first: Slot, entries_max: usize, bytes_max: usize) -> Vec<Entry> {
        assert!(first > self.base.slot, "entries at and below the base are gone");
        let skip =
            usize::try_from(first.0 - self.base.slot.0 - 1).expect("a log in memory has fewer entries");
        let mut bytes = 0;
        let mut run = Vec::new();
        for entry in self.entries.iter().skip(skip).take(entries_max) {
            bytes += entry.bytes();
            if !run.is_empty() && bytes > bytes_max {
                break;
            }
            run.push(entry.clone());
        }
        run
    }

    /// All entries above `slot`.
    #[must_use]
    pub fn above(&self, slot: Slot) -> Vec<Entry> {
        if slot >= self.last().slot { Vec::new() } else { self.run(slot.next(), usize::MAX, usize::MAX) }
    }

    /// Adds the next entry.
    ///
    /// # Panics
    /// If it does not follow the last one, or follows a stop-sign: the caller has checked both.
    pub fn push(&mut self, entry: Entry) {
        assert_eq!(entry.slot, self.last().slot.next(), "a log has no gaps");
        assert!(!self.is_sealed() || cfg!(feature = "mutants"), "nothing follows a stop-sign");
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
    }

    /// Drops every entry above `keep`.
    pub fn truncate(&mut self, keep: Slot) {
        assert!(keep >= self.base.slot, "the base is decided and never dropped");
        while self.last().slot > keep {
            let entry = self.entries.pop_back().expect("the last slot is above the base");
            self.bytes -= entry.bytes();
        }
    }

    /// Forgets entries up to and including `slot`, which becomes the base.
    pub fn compact(&mut self, slot: Slot) {
        assert!(slot <= self.last().slot, "only what the log holds can be forgotten");
        while self.base.slot < slot {
            let entry = self.entries.pop_front().expect("the slot is above the base");
            self.bytes -= entry.bytes();
            self.base = entry.base();
        }
    }

    /// Where to compact to, not above `limit`, so that what is kept for others stays.
    #[must_use]
    pub fn compaction_point(&self, limit: Slot, retain: Retain) -> Slot {
        let usual = self.point_above(limit, retain.bytes);
        match retain.pinned {
            Some(pinned) if pinned < usual => {
                pinned.max(self.point_above(limit, retain.pinned_bytes)).min(usual)
            }
            _ => usual,
        }
    }

    /// The lowest slot so that entries above it take at most `retain_bytes`, and not above `limit`.
    fn point_above(&self, limit: Slot, retain_bytes: usize) -> Slot {
        let mut above = self.bytes;
        let mut point = self.base.slot;
        for entry in &self.entries {
            if entry.slot > limit || above <= retain_bytes {
                break;
            }
            above -= entry.bytes();
            point = entry.slot;
        }
        assert!(
            point >= self.base.slot && point <= limit.max(self.base.slot),
            "compaction stays within its bound"
        );
        point
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paxos::ballot::Ballot;
    use crate::paxos::entry::Body;
    use crate::types::Timestamp;
    use bytes::Bytes;

    fn log(entries: usize) -> Log {
        let mut log = Log::default();
        for _ in 0..entries {
            let body = Body::Batch(Bytes::from_static(b"0123456789"));
            log.push(Entry::after(log.last(), Ballot::ZERO, Timestamp(0), body));
        }
        log
    }

    #[test]
    fn entries_keep_their_slots_through_compaction_and_truncation() {
        let mut log = log(10);
        let chain = log.position(Slot(4)).unwrap();
        log.compact(Slot(4));
        assert_eq!((log.base(), log.last().slot), (chain, Slot(10)));
        assert_eq!(log.get(Slot(4)), None);
        assert_eq!(log.get(Slot(5)).unwrap().slot, Slot(5));
        log.truncate(Slot(6));
        assert_eq!(log.last().slot, Slot(6));
        assert_eq!(log.above(Slot(4)).len(), 2);
        assert_eq!(log.bytes(), log.above(Slot(4)).iter().map(Entry::bytes).sum::<usize>());
    }

    #[test]
    fn a_run_respects_its_bounds_but_never_stalls() {
        let log = log(10);
        assert_eq!(log.run(Slot(3), 4, usize::MAX).len(), 4);
        assert_eq!(log.run(Slot(3), 100, 1).len(), 1);
        assert_eq!(log.run(Slot(10), 100, 1).len(), 1);
    }

    #[test]
    fn compaction_keeps_what_lagging_replicas_may_want() {
        let log = log(10);
        let entry_bytes = log.bytes() / 10;
        let point = |limit, bytes| log.compaction_point(Slot(limit), Retain::last(bytes));
        assert_eq!(point(9, 3 * entry_bytes), Slot(7));
        assert_eq!(point(5, 0), Slot(5));
        assert_eq!(point(9, usize::MAX), Slot(0));
    }

    #[test]
    fn compaction_keeps_what_somebody_needs_within_its_bound() {
        let log = log(10);
        let entry_bytes = log.bytes() / 10;
        let point = |pinned, entries| {
            let (bytes, pinned) = (2 * entry_bytes, Some(Slot(pinned)));
            log.compaction_point(Slot(9), Retain { bytes, pinned, pinned_bytes: entries * entry_bytes })
        };
        assert_eq!(point(4, 10), Slot(4), "all that it needs");
        assert_eq!(point(4, 5), Slot(5), "no more than the bound");
        assert_eq!(point(9, 10), Slot(8), "no less than is kept for anybody");
        assert_eq!(point(4, 1), Slot(8), "a bound below that changes nothing");
    }

    #[test]
    fn a_log_is_sealed_exactly_while_its_last_entry_is_a_stop_sign() {
        let mut log = log(2);
        assert!(!log.is_sealed());
        log.push(Entry::after(log.last(), Ballot::ZERO, Timestamp(0), Body::StopSign(Bytes::new())));
        assert!(log.is_sealed());
        let mut compacted = log.clone();
        compacted.compact(Slot(3));
        assert!(compacted.is_sealed());
        log.truncate(Slot(2));
        assert!(!log.is_sealed());
    }
}
