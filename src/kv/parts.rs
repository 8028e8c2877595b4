//! How a group's state is cut into parts, which are hashed and compared one by one.
//!
//! ```text
//!  part    0       1     ..    c-1      c           c+1
//!          cells of the range, clockwise  sessions    marks
//! ```
//!
//! A cell is what lies under one value of the highest bits of a position ([`Tenure::grid`]). The cells of a range are numbered clockwise from that of its
//! first position, each once: where the range begins and ends in one cell, that has both ends. A cell is cut alike whoever holds it, so what
//! two groups have of it can be added up when they become one.
//!
//! Sessions are a part because a copied table of sessions must have the same sum: their rows are hashed without the group that they
//! stand under, and without their checksum, which covers it. Whoever takes such rows from others looks at the checksum.
//!
//! Marks are what a group must remember beside its data and sessions. There are none yet; the part is empty.

use super::record::CHECKSUM_BYTES;
use crate::ring::{GroupId, Position, RingInterval, Tenure};
use crate::storage::keys::{self, SessionRow};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Parts besides the cells.
const OTHERS: u8 = 2;

/// Parts that any state may have.
const PARTS_MAX: u8 = Tenure::CELLS_MAX + OTHERS;

/// Some of the parts of a state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartSet(u128);

impl PartSet {
    /// The parts for which this holds.
    pub fn of(holds: impl FnMut(&u8) -> bool) -> Self {
        Self((0..PARTS_MAX).filter(holds).fold(0, |set, part| set | 1 << part))
    }

    /// Whether the part is among them.
    #[must_use]
    pub fn contains(self, part: u8) -> bool {
        part < PARTS_MAX && self.0 & (1 << part) != 0
    }

    /// Adds a part.
    pub fn insert(&mut self, part: u8) {
        assert!(part < PARTS_MAX, "there is no such part");
        self.0 |= 1 << part;
    }

    /// The parts, ascending. What is no part of any state is left out.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..PARTS_MAX).filter(move |part| self.contains(*part))
    }

    /// The bytes that are stored.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

/// The parts of one group's state. See the module's essay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    group: GroupId,
    range: RingInterval,
    grid: u8,
    cells: u8,
    leaves_out_sessions: bool,
}

impl From<&Tenure> for Parts {
    fn from(tenure: &Tenure) -> Self {
        let (range, grid, cells) = (tenure.range, tenure.grid, tenure.cells());
        Self { group: tenure.group(), range, grid, cells, leaves_out_sessions: false }
    }
}

impl Parts {
    /// The same parts, whose hashes do not cover sessions: a broken variant, if that is true.
    pub(super) fn without_sessions(self, leaves_out_sessions: bool) -> Self {
        Self { leaves_out_sessions, ..self }
    }

    /// Whether a part's rows count in its hash; all do, but in a broken variant.
    pub(super) fn is_hashed(&self, part: u8) -> bool {
        !(self.leaves_out_sessions && part == self.sessions())
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u8 {
        self.cells + OTHERS
    }

    /// The part of the sessions.
    #[must_use]
    pub fn sessions(&self) -> u8 {
        self.cells
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> PartSet {
        PartSet::of(|part| *part < self.count())
    }

    /// The part that comes behind this one, in turn.
    #[must_use]
    pub fn after(&self, part: u8) -> u8 {
        if part + 1 < self.count() { part + 1 } else { 0 }
    }

    /// From the bytes that are stored; none if they name what is no part of this state.
    #[must_use]
    pub fn set(&self, bytes: [u8; 16]) -> Option<PartSet> {
        let set = PartSet(u128::from_be_bytes(bytes));
        (set.0 & !self.all().0 == 0).then_some(set)
    }

    fn cell_of(&self, position: Position) -> u64 {
        position.0 >> (64 - self.grid)
    }

    fn first_cell(&self) -> u64 {
        self.cell_of(Position(self.range.start.0.wrapping_add(1)))
    }

    /// Which part a row belongs to; none if it is none of this state, or not covered by its root.
    #[must_use]
    pub fn part_of(&self, raw: &[u8]) -> Option<u8> {
        if let Some(position) = keys::position_of(raw) {
            let cells = 1u64 << self.grid;
            let cell = self.cell_of(position).wrapping_sub(self.first_cell()) & (cells - 1);
            let is_ours = self.range.contains(position);
            return is_ours.then(|| u8::try_from(cell).expect("a range has few cells"));
        }
        let (group, _) = keys::session_row(raw)?;
        (group == self.group).then_some(self.sessions())
    }

    /// The ranges `[from, to)` of raw keys whose rows make up a part, in order.
    #[must_use]
    pub fn bounds(&self, part: u8) -> Vec<(Bytes, Bytes)> {
        assert!(part < self.count(), "there is no such part");
        if part == self.sessions() {
            return vec![keys::session_bounds(self.group)];
        }
        if part > self.sessions() {
            return Vec::new();
        }
        let cell = self.first_cell().wrapping_add(part.into()) & ((1 << self.grid) - 1);
        let first = cell << (64 - self.grid);
        let last = first | (u64::MAX >> self.grid);
        let cut = |(from, to): (Position, Position)| (from.0.max(first), to.0.min(last));
        let within = self.range.linear().into_iter().map(cut).filter(|(from, to)| from <= to);
        let mut bounds: Vec<(Bytes, Bytes)> =
            within.flat_map(|(from, to)| keys::data_bounds(Position(from), Position(to))).collect();
        bounds.sort_unstable();
        bounds
    }

    /// The ranges of all of these parts. What is no part of this state is left out.
    #[must_use]
    pub fn bounds_of(&self, parts: PartSet) -> Vec<(Bytes, Bytes)> {
        parts.iter().filter(|part| *part < self.count()).flat_map(|part| self.bounds(part)).collect()
    }
}

/// What is hashed of a row: of a session's, what does not depend on the group that it stands under.
pub(super) fn hashed<'a>(raw: &'a [u8], record: &'a [u8]) -> (Cow<'a, [u8]>, &'a [u8]) {
    match keys::session_row(raw) {
        None => (Cow::Borrowed(raw), record),
        Some((_, row)) => {
            let name = match row {
                SessionRow::Head(session) => [&b"s"[..], &session.to_be_bytes()].concat(),
                SessionRow::Outcome(session, number) => {
                    [&b"r"[..], &session.to_be_bytes(), &number.to_be_bytes()].concat()
                }
            };
            (Cow::Owned(name), record.get(CHECKSUM_BYTES..).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::found_without_keys;

    fn parts(start: u64, end: u64, grid: u8) -> Parts {
        let range = RingInterval { start: Position(start), end: Position(end) };
        Parts::from(&Tenure { range, grid, ..found_without_keys(1, 3, 3).remove(0) })
    }

    fn rows(position: u64) -> [Bytes; 2] {
        [keys::data(Position(position), b"k"), keys::data_piece(Position(position), b"k", 3)]
    }

    #[test]
    fn every_row_lies_in_the_bounds_of_its_part_and_of_no_other() {
        let width = 1u64 << 58;
        let probes = [0, 1, 10, 11, 20, 21, width - 1, width, 5 * width + 3, u64::MAX - width, u64::MAX];
        for parts in [
            parts(u64::MAX, u64::MAX, 6),
            parts(7, 7, 6),
            parts(20, 10, 6),
            parts(5 * width, 9 * width, 6),
            parts(62 * width + 9, 3 * width, 6),
            parts(5, 9, 6),
            parts(width - 1, 2 * width - 1, 12),
        ] {
            let bounds: Vec<_> = (0..parts.count()).map(|part| parts.bounds(part)).collect();
            assert!(bounds.iter().all(|bounds| bounds.is_sorted()));
            let within = |raw: &Bytes| {
                let holds =
                    |part: &u8| bounds[usize::from(*part)].iter().any(|(from, to)| from <= raw && raw < to);
                (0..parts.count()).filter(holds).collect::<Vec<u8>>()
            };
            for raw in probes.iter().flat_map(|position| rows(*position)) {
                let expected: Vec<u8> = parts.part_of(&raw).into_iter().collect();
                assert_eq!(within(&raw), expected, "{parts:?} {raw:?}");
            }
            for row in [keys::session(GroupId(1), 7), keys::outcome(GroupId(1), u128::MAX, 9)] {
                assert_eq!(parts.part_of(&row), Some(parts.sessions()));
                assert_eq!(within(&row), [parts.sessions()]);
            }
            assert_eq!(parts.part_of(&keys::session(GroupId(2), 7)), None, "another group's");
            let uncovered = [keys::applied(GroupId(1)), keys::part_hash(GroupId(1), 1)];
            assert!(uncovered.iter().all(|raw| parts.part_of(raw).is_none()));
            assert_eq!(parts.set(parts.all().to_bytes()), Some(parts.all()));
            assert_eq!(parts.set([255; 16]), None);
        }
    }

    #[test]
    fn cells_are_numbered_clockwise_each_once() {
        let width = 1u64 << 58;
        let of = |parts: &Parts, position| parts.part_of(&rows(position)[0]);
        let whole = parts(7, 7, 6);
        assert_eq!(
            (whole.cells, of(&whole, 8), of(&whole, 7), of(&whole, width)),
            (64, Some(0), Some(0), Some(1))
        );
        let wrapped = parts(62 * width + 9, 3 * width, 6);
        assert_eq!(wrapped.cells, 6);
        let told = [62 * width + 10, 63 * width, 0, 3 * width].map(|position| of(&wrapped, position));
        assert_eq!(told, [Some(0), Some(1), Some(2), Some(5)]);
        assert_eq!((of(&wrapped, 62 * width + 9), of(&wrapped, 3 * width + 1)), (None, None));
        assert_eq!(parts(5, 9, 6).cells, 1);
        for groups in (1..200).chain([511, 512, 513, 1_023, 1_024]) {
            let founded = found_without_keys(groups, 3, 3);
            assert!(founded.iter().all(|tenure| (32..=65).contains(&tenure.cells())), "{groups} groups");
        }
    }

    #[test]
    fn a_copied_table_of_sessions_has_the_same_sum() {
        let of = |group| {
            let raw = keys::outcome(GroupId(group), 7, 9);
            let record = super::super::record::seal(&raw, b"what it was told");
            let (name, body) = hashed(&raw, &record);
            (record.clone(), (name.into_owned(), body.to_vec()))
        };
        let ((record, hash), (copied, same)) = (of(1), of(2));
        assert_ne!(record, copied, "the checksum covers the key");
        assert_eq!(hash, same);
        let other = keys::session(GroupId(1), 7);
        assert_ne!(hashed(&other, &record).0, hash.0.as_slice());
    }
}
