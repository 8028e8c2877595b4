//! Entries on their way: what others have sent of the log that this replica is to adopt, as far as it has come.
//!
//! A log is adopted as a whole or not at all, and moving it may take longer than a leadership lasts. So what has come stays when the
//! attempt that asked for it is over, and the next one goes on from there. That is safe because nothing is ever *claimed* of it:
//!
//! * it is not part of the log: it is not durable, is reported to nobody as held, and decides nothing. `accepted` changes only when a
//!   log is adopted;
//! * where it came from does not matter. Every entry's hash covers everything before it, so a position and its hash stand for one log.
//!   What is adopted ends, by position *and hash*, where the log ends that is to be adopted: a candidate compares with the end that
//!   the best replica reported in its promise, a follower with the end that its leader names in every piece;
//! * a sender goes on behind it only if its own log holds that very position and hash; else it begins again.

use crate::paxos::ballot::Ballot;
use crate::paxos::entry::Entry;
use crate::paxos::log::Log;
use crate::types::{LogBase, Slot};

/// Entries behind a position of this replica's log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Gathering {
    /// For which attempt to lead they were last added to.
    pub ballot: Ballot,
    from: LogBase,
    entries: Vec<Entry>,
}

impl Gathering {
    /// Nothing yet, behind `from`.
    pub(super) fn new(ballot: Ballot, from: LogBase) -> Self {
        Self { ballot, from, entries: Vec::new() }
    }

    /// Where it ends.
    pub(super) fn end(&self) -> LogBase {
        self.entries.last().map_or(self.from, Entry::base)
    }

    /// Whether it begins at this slot or before it.
    pub(super) fn begins_by(&self, slot: Slot) -> bool {
        self.from.slot <= slot
    }

    /// Whether nothing has come yet.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether it leads to this position, with this hash.
    pub(super) fn holds(&self, at: LogBase) -> bool {
        self.position(at.slot) == Some(at)
    }

    fn position(&self, slot: Slot) -> Option<LogBase> {
        match slot.0.checked_sub(self.from.slot.0)? {
            0 => Some(self.from),
            count => self.entries.get(usize::try_from(count).ok()? - 1).map(Entry::base),
        }
    }

    /// Whether the entry follows what is here, at its end or before it.
    pub(super) fn leads_to(&self, entry: &Entry) -> bool {
        let previous = entry.slot.0.checked_sub(1).and_then(|slot| self.position(Slot(slot)));
        previous.is_some_and(|previous| entry.follows(previous))
    }

    /// Adds entries that go on here, as far as they do. One that differs from what is here takes its place, and what was behind it is
    /// of another log.
    pub(super) fn add(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            if self.holds(entry.base()) {
                continue;
            }
            if !self.leads_to(&entry) {
                return;
            }
            self.cut(entry.slot.previous());
            self.entries.push(entry);
        }
    }

    /// Forgets what is behind `slot`.
    pub(super) fn cut(&mut self, slot: Slot) {
        let kept = usize::try_from(slot.0.saturating_sub(self.from.slot.0)).unwrap_or(usize::MAX);
        self.entries.truncate(kept);
    }

    /// Holds it against the log, which may have moved: where both part, and the entries behind. What both share need not be written
    /// again, and what a snapshot replaced is gone.
    pub(super) fn split(self, log: &Log) -> Result<(LogBase, Vec<Entry>), Misfit> {
        let mut keep = match log.position(self.from.slot) {
            Some(at) if at == self.from => at,
            None if self.from.slot < log.base().slot => log.base(),
            _ => return Err(Misfit::Foreign),
        };
        let first = keep.slot;
        let mut rest = Vec::new();
        for entry in self.entries.into_iter().filter(|entry| entry.slot >= first) {
            match log.position(entry.slot) {
                Some(at) if at == entry.base() && rest.is_empty() => keep = at,
                _ if entry.slot == keep.slot && rest.is_empty() => {
                    return Err(Misfit::Contradiction(keep.slot));
                }
                _ => rest.push(entry),
            }
        }
        Ok((keep, rest))
    }

    /// The same entries behind a log that may have moved, if they still go on from it and from what is decided in it.
    pub(super) fn renewed(self, log: &Log, decided: Slot) -> Option<Self> {
        let ballot = self.ballot;
        let (from, entries) = self.split(log).ok()?;
        (from.slot >= decided && !entries.is_empty()).then_some(Self { ballot, from, entries })
    }
}

/// Why entries do not go on from a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// They begin at a position that is not in it.
    Foreign,
    /// They contradict its base, which is decided.
    Contradiction(Slot),
}
