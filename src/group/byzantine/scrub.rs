//! Looking for damage before somebody needs what is damaged: rows are read, part by part, and held against the hash that
//! the root of the state is made of. A row that cannot be read, or belongs nowhere, is damage by itself: no sum says anything of it.
//!
//! The tree must stand still meanwhile, as for a snapshot: a part is walked while no checkpoint is being written to it, and
//! those that come wait. If too many do, the walk is given up and begun again later: it is in no hurry.

use crate::error::StorageError;
use crate::group::Group;
use crate::kv::{self, PartSet, Parts, StateRoot};
use crate::storage::Storage;
use bytes::Bytes;
use std::collections::VecDeque;
use tetrachord_consensus::Ticks;

/// Bytes of rows that are read at a time, about: a millisecond of the node's thread.
const STEP_BYTES: usize = 256 << 10;

/// Parts that a state has, about.
const PARTS_ABOUT: u8 = 66;

/// A walk over the rows of some parts, as they lie in the tree.
#[derive(Debug)]
pub(in crate::group) struct Walk {
    /// Ranges of keys, and the part that each is of.
    rest: VecDeque<(u8, Bytes, Bytes)>,
    /// What the parts that were walked come to.
    pub(in crate::group) found: StateRoot,
    /// Whether a value of several records was among them.
    pub(in crate::group) has_pieces: bool,
    /// Parts with a row that cannot be read, or whose key is none. Their sums say nothing of it, and agree with the right ones where it
    /// should not be there.
    pub(in crate::group) unreadable: PartSet,
}

impl Walk {
    pub(in crate::group) fn over(some: PartSet, parts: Parts) -> Self {
        let known = some.iter().filter(|part| *part < parts.count());
        let ranges = |part| parts.bounds(part).into_iter().map(move |(from, to)| (part, from, to));
        let rest = known.flat_map(ranges).collect();
        Self { rest, found: StateRoot::empty(parts), has_pieces: false, unreadable: PartSet::default() }
    }

    /// Reads a little more; whether that was all.
    pub(in crate::group) fn step(&mut self, storage: &dyn Storage) -> Result<bool, StorageError> {
        let mut bytes = 0;
        while bytes < STEP_BYTES
            && let Some((part, from, to)) = self.rest.front_mut()
        {
            let rows = storage.scan(from, to, STEP_BYTES - bytes)?;
            let Some((last, _)) = rows.last() else {
                self.rest.pop_front();
                continue;
            };
            *from = Bytes::from([last.as_ref(), &[0]].concat());
            for (raw, record) in &rows {
                bytes += raw.len() + record.len();
                if kv::is_sealed(raw, record) && self.found.parts().part_of(raw) == Some(*part) {
                    self.has_pieces |= raw.first() == Some(&b'c');
                    self.found.change(raw, None, Some(record));
                } else {
                    self.unreadable.insert(*part);
                }
            }
        }
        Ok(self.rest.is_empty())
    }
}

/// What a replica scrubs, and when.
#[derive(Debug)]
pub(in crate::group) struct Scrub {
    /// Between the beginnings of two parts, in milliseconds; 0 is never.
    pause: u64,
    due_at: Ticks,
    part: u8,
    under_way: Option<(Walk, StateRoot)>,
    /// How often all parts were walked.
    pub(in crate::group) passes: u64,
}

impl Scrub {
    /// All parts within about so many milliseconds; 0 is never.
    pub(in crate::group) fn new(pass_millis: u64) -> Self {
        let parts = u64::from(PARTS_ABOUT);
        let pause = if pass_millis == 0 { 0 } else { (pass_millis / parts).max(1) };
        Self { pause, due_at: Ticks(0), part: 0, under_way: None, passes: 0 }
    }

    /// Whether the tree must stand still for it.
    pub(in crate::group) fn is_walking(&self) -> bool {
        self.under_way.is_some()
    }

    /// What was walked counts for nothing; the same part comes again.
    pub(in crate::group) fn give_up(&mut self) {
        self.under_way = None;
    }
}

impl Group {
    /// Walks a little, if it is time for it.
    pub(in crate::group) fn tick_scrub(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        let is_quiet =
            self.tree.is_quiet() && self.giving.transfer.is_none() && self.taking.install.is_none();
        let (now, parts) = (self.now, self.machine.parts());
        let Some(signed) = self.signed.as_mut() else { return Ok(()) };
        let scrub = &mut signed.scrub;
        if scrub.due_at == Ticks(0) {
            scrub.due_at = now.plus(scrub.pause);
        }
        if scrub.under_way.is_none() {
            let is_due = scrub.pause > 0 && now >= scrub.due_at;
            let Some(root) = self.machine.root_of_tree().filter(|_| is_due && is_quiet) else {
                return Ok(());
            };
            let walk = Walk::over(PartSet::of(|part| *part == scrub.part), parts);
            scrub.under_way = Some((walk, root.clone()));
            scrub.due_at = now.plus(scrub.pause);
        }
        let Some((walk, root)) = &mut scrub.under_way else { return Ok(()) };
        match walk.step(storage) {
            Ok(false) => return Ok(()),
            Ok(true) if walk.found.agrees(root, scrub.part) && !walk.unreadable.contains(scrub.part) => {}
            Ok(true) => {
                let reason = format!("a scrub found that part {} of it is not what was written", scrub.part);
                return self.state_damaged(storage, reason);
            }
            Err(error) => return self.on_damage(storage, error),
        }
        scrub.part = parts.after(scrub.part);
        scrub.passes += u64::from(scrub.part == 0);
        scrub.under_way = None;
        self.release_checkpoints();
        Ok(())
    }
}
