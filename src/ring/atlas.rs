//! Who is said to hold which part of the ring: where to try first.
//!
//! Hints: whether a group owns a key is decided by its tenure when a command is applied. Of two places that overlap the one of the
//! higher generation is the later ([`super::tenure`]), so an atlas needs no other order in which it hears of them.
//!
//! A group that holds nothing any more, as far as is known here, is remembered where it was last: it may be elsewhere by now, which those
//! who were its members know, or have become part of another.
//!
//! Invariants:
//! * every position has exactly one place, the latest of those that hold it and were told;
//! * it never has more parts or groups than [`PARTS_MAX`].

use super::id::{Position, RingInterval};
use super::names::{GroupId, NodeId, TenureId};
use super::tenure::Tenure;
use crate::limits::few;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Parts that an atlas may have: far more than a cluster has groups.
const PARTS_MAX: usize = 16_384;

/// Parts that a single place may add: one that wraps begins and ends twice.
const PARTS_OF_A_PLACE: usize = 4;

/// Where a group is: what it holds, and the nodes that have its replicas, who should lead first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The group, in the epoch in which it is there.
    pub tenure: TenureId,
    /// Of two places that overlap, the one with the higher generation is the later.
    pub generation: u64,
    /// What it holds.
    pub range: RingInterval,
    /// Hosts of its replicas; the index is the replica's number. At most [`Tenure::MEMBERS_MAX`].
    #[serde(deserialize_with = "few::<_, _, { Tenure::MEMBERS_MAX }>")]
    pub nodes: Vec<NodeId>,
}

impl Place {
    /// The group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.tenure.group
    }

    /// The later of two that overlap has the higher rank. No two of one generation overlap, unless somebody lies.
    fn rank(&self) -> (u64, TenureId) {
        (self.generation, self.tenure)
    }
}

impl From<&Tenure> for Place {
    fn from(tenure: &Tenure) -> Self {
        let nodes = tenure.nodes().collect();
        Self { tenure: tenure.id, generation: tenure.generation, range: tenure.range, nodes }
    }
}

/// A part of the ring, up to here from where the one before ends.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    last: Position,
    /// None as long as nobody was told to hold it.
    place: Option<Arc<Place>>,
}

/// The whole ring. See the module's essay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Atlas {
    parts: Vec<Part>,
    groups: BTreeMap<GroupId, Arc<Place>>,
}

impl Atlas {
    /// From places that cover the ring; none if they do not. What comes from elsewhere need not.
    #[must_use]
    pub fn of(places: impl IntoIterator<Item = Place>) -> Option<Self> {
        let parts = vec![Part { last: Position(u64::MAX), place: None }];
        let mut atlas = Self { parts, groups: BTreeMap::new() };
        for place in places {
            if place.nodes.is_empty() || !atlas.has_room(place.group()) {
                return None;
            }
            atlas.put(place);
        }
        atlas.parts.iter().all(|part| part.place.is_some()).then_some(atlas)
    }

    /// The ring of a cluster that has just been founded.
    #[must_use]
    pub fn founded(tenures: &[Tenure]) -> Self {
        Self::of(tenures.iter().map(Place::from)).expect("a cluster is founded on the whole ring")
    }

    /// Takes note of a place. Whether anything is new by it: it may be known, or of the past.
    pub fn note(&mut self, place: Place) -> bool {
        !place.nodes.is_empty() && self.has_room(place.group()) && self.put(place)
    }

    fn has_room(&self, group: GroupId) -> bool {
        let is_known = self.groups.contains_key(&group);
        self.parts.len() + PARTS_OF_A_PLACE <= PARTS_MAX && (is_known || self.groups.len() < PARTS_MAX)
    }

    /// All places, each once.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        let mut seen = BTreeSet::new();
        self.parts.iter().map(Part::place).filter(move |place| seen.insert(place.tenure))
    }

    /// Who holds the position.
    #[must_use]
    pub fn owner(&self, position: Position) -> &Place {
        self.parts[self.parts.partition_point(|part| part.last < position)].place()
    }

    /// Where the group is, by the latest that was told of it.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<&Place> {
        self.groups.get(&id).map(|place| &**place)
    }

    /// Puts a place over all that is earlier; whether anything is new by it.
    fn put(&mut self, place: Place) -> bool {
        let place = Arc::new(place);
        let known = self.groups.get(&place.group());
        let mut is_new = known.is_none_or(|known| known.rank() < place.rank());
        if is_new {
            self.groups.insert(place.group(), Arc::clone(&place));
        }
        for (first, last) in place.range.linear() {
            if let Some(before) = first.0.checked_sub(1) {
                self.cut_behind(Position(before));
            }
            self.cut_behind(last);
            let within = self.parts.partition_point(|part| part.last < first)
                ..=self.parts.partition_point(|part| part.last < last);
            for part in &mut self.parts[within] {
                if part.place.as_ref().is_none_or(|old| old.rank() < place.rank()) {
                    part.place = Some(Arc::clone(&place));
                    is_new = true;
                }
            }
        }
        self.parts.dedup_by(|later, earlier| {
            let is_same = later.place == earlier.place;
            if is_same {
                earlier.last = later.last;
            }
            is_same
        });
        assert!(self.parts.windows(2).all(|two| two[0].last < two[1].last), "parts are in order");
        is_new
    }

    /// Makes the position the last of a part.
    fn cut_behind(&mut self, last: Position) {
        let index = self.parts.partition_point(|part| part.last < last);
        if self.parts[index].last != last {
            let place = self.parts[index].place.clone();
            self.parts.insert(index, Part { last, place });
        }
    }
}

impl Part {
    fn place(&self) -> &Place {
        self.place.as_ref().expect("an atlas has no gaps")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::found_without_keys;

    fn place(group: u128, generation: u64, start: u64, end: u64) -> Place {
        let range = RingInterval { start: Position(start), end: Position(end) };
        let tenure = TenureId { group: GroupId(group), epoch: 1 };
        Place { tenure, generation, range, nodes: vec![NodeId(group)] }
    }

    #[test]
    fn every_position_of_a_young_ring_has_exactly_one_owner() {
        for groups in [1, 2, 3, 4, 7, 64] {
            let tenures = found_without_keys(groups, 5, 3);
            let atlas = Atlas::founded(&tenures);
            assert_eq!(atlas.places().count(), groups);
            for probe in [0, 1, 1 << 20, u64::MAX / 3, u64::MAX / 2, u64::MAX / 2 + 1, u64::MAX - 1, u64::MAX]
            {
                let position = Position(probe);
                let owners: Vec<_> =
                    tenures.iter().filter(|tenure| tenure.range.contains(position)).collect();
                assert_eq!(owners.len(), 1, "{groups} groups, position {probe}");
                assert_eq!(atlas.owner(position), &Place::from(owners[0]));
                assert_eq!(atlas.group(owners[0].group()), Some(atlas.owner(position)));
            }
        }
    }

    /// Whoever has asked it something must be able to ask it again.
    #[test]
    fn a_group_that_holds_nothing_is_remembered_where_it_was() {
        let mut atlas = Atlas::of([place(1, 0, 5, 5)]).unwrap();
        assert!(atlas.note(place(2, 1, 5, 5)));
        assert_eq!(atlas.places().collect::<Vec<_>>(), [&place(2, 1, 5, 5)]);
        assert_eq!(atlas.group(GroupId(1)), Some(&place(1, 0, 5, 5)));
        assert!(atlas.note(Place { nodes: vec![NodeId(9)], ..place(1, 3, 7, 9) }));
        assert_eq!(atlas.group(GroupId(1)).map(|place| &place.nodes[..]), Some(&[NodeId(9)][..]));
        assert!(!atlas.note(place(1, 0, 5, 5)) && !atlas.note(place(2, 1, 5, 5)), "of the past");
    }

    #[test]
    fn what_has_gaps_or_nobody_is_no_ring() {
        let half = 1 << 63;
        let whole = [place(1, 0, u64::MAX, half), place(2, 0, half, u64::MAX)];
        assert!(Atlas::of(whole.clone()).is_some());
        assert!(Atlas::of([]).is_none() && Atlas::of(whole[..1].to_vec()).is_none());
        assert!(Atlas::of([place(1, 0, u64::MAX, half - 1), whole[1].clone()]).is_none());
        assert!(Atlas::of([Place { nodes: vec![], ..whole[0].clone() }, whole[1].clone()]).is_none());
        let slivers = (0..PARTS_MAX as u64).map(|at| place(3, at, 3 * at, 3 * at + 1));
        assert!(Atlas::of(whole.iter().cloned().chain(slivers.clone())).is_none());
        let mut atlas = Atlas::of(whole).unwrap();
        let taken = slivers.filter(|sliver| atlas.note(sliver.clone())).count();
        assert!(taken > 1_000 && atlas.parts.len() <= PARTS_MAX);
    }

    /// In whatever order they are told.
    #[test]
    fn the_latest_of_what_was_told_owns_each_position() {
        let mut seed = 7u64;
        let mut draw = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        // A ring of sixteen stops, between which nothing begins or ends.
        let stop = |index: u64| (index << 60).wrapping_sub(1);
        for _ in 0..300 {
            let mut told = vec![place(1, 0, 5, 5)];
            let mut atlas = Atlas::of(told.clone()).unwrap();
            for group in 2..12 {
                let next = place(group, draw(6), stop(draw(16)), stop(draw(16)));
                let before = atlas.clone();
                assert_eq!(atlas.note(next.clone()), atlas != before);
                told.push(next);
                for index in 0..16 {
                    let position = Position((index << 60) + (1 << 59));
                    let holds = told.iter().filter(|place| place.range.contains(position));
                    assert_eq!(Some(atlas.owner(position)), holds.max_by_key(|place| place.rank()));
                }
            }
            let again = Atlas::of(atlas.places().cloned().collect::<Vec<_>>()).unwrap();
            assert_eq!(again.parts, atlas.parts, "the places of an atlas make the same atlas");
        }
    }
}
