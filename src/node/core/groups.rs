//! The groups of a node, and those among them that something has happened to.
//!
//! A node may have a thousand groups of which most have nothing to do. Whatever happens to a group, or to all, touches it, and what
//! follows at the end of a turn, to propose, to log, to send, is done for those alone. A commit is reported to those that it has something of.
//! A tick happens to all.

use crate::group::Group;
use crate::ring::GroupId;
use crate::storage::CommitId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// See the module's essay.
#[derive(Debug, Default)]
pub(super) struct Groups {
    all: BTreeMap<GroupId, Held>,
    /// In the order in which they were touched first.
    touched: Vec<GroupId>,
    /// The groups that have records in commits that are under way, and those that have writes to the tree.
    logging: UnderWay,
    writing: UnderWay,
}

#[derive(Debug)]
struct Held {
    group: Group,
    is_touched: bool,
}

/// Commits under way, oldest first, and whose they are.
#[derive(Debug, Default)]
struct UnderWay(VecDeque<(CommitId, Vec<GroupId>)>);

impl UnderWay {
    fn add(&mut self, commit: CommitId, group: GroupId) {
        match self.0.back_mut() {
            Some((last, groups)) if *last == commit => groups.push(group),
            last => {
                assert!(last.is_none_or(|(last, _)| *last < commit), "commits are submitted in order");
                self.0.push_back((commit, vec![group]));
            }
        }
    }

    /// Whose the commit is, and all before it.
    fn take(&mut self, commit: CommitId) -> BTreeSet<GroupId> {
        let mut groups = BTreeSet::new();
        while self.0.front().is_some_and(|(id, _)| *id <= commit) {
            groups.extend(self.0.pop_front().into_iter().flat_map(|(_, of_commit)| of_commit));
        }
        groups
    }
}

impl Groups {
    /// A group that was opened: it may have something to say at once.
    pub(super) fn insert(&mut self, group: Group) {
        let name = group.tenure().group();
        self.touched.push(name);
        let before = self.all.insert(name, Held { group, is_touched: true });
        assert!(before.is_none(), "a node has one replica of a group");
    }

    /// A group, to look at.
    pub(super) fn get(&self, name: GroupId) -> Option<&Group> {
        self.all.get(&name).map(|held| &held.group)
    }

    /// All groups, to look at.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Group> {
        self.all.values().map(|held| &held.group)
    }

    /// Something happens to this group.
    pub(super) fn touch(&mut self, name: GroupId) -> Option<&mut Group> {
        let held = self.all.get_mut(&name)?;
        if !std::mem::replace(&mut held.is_touched, true) {
            self.touched.push(name);
        }
        Some(&mut held.group)
    }

    /// Something happens to all of them.
    pub(super) fn touch_all(&mut self) -> impl Iterator<Item = &mut Group> {
        let touched = &mut self.touched;
        self.all.iter_mut().map(|(name, held)| {
            if !std::mem::replace(&mut held.is_touched, true) {
                touched.push(*name);
            }
            &mut held.group
        })
    }

    /// How many something has happened to since [`Self::settle`].
    pub(super) fn touched(&self) -> usize {
        self.touched.len()
    }

    /// One of these, counted from 0.
    pub(super) fn nth_touched(&mut self, at: usize) -> &mut Group {
        &mut self.all.get_mut(&self.touched[at]).expect("what was touched is here").group
    }

    /// All that follows from what happened was done. What followed from that in turn comes with whatever happens next.
    pub(super) fn settle(&mut self) {
        self.touched.retain(|name| {
            let held = self.all.get_mut(name).expect("what was touched is here");
            held.is_touched = held.group.has_more();
            held.is_touched
        });
    }

    /// A commit has records of this group, or writes to the tree, or both.
    pub(super) fn note(&mut self, commit: CommitId, name: GroupId, is_logging: bool, is_writing: bool) {
        if is_logging {
            self.logging.add(commit, name);
        }
        if is_writing {
            self.writing.add(commit, name);
        }
    }

    /// The records of a commit and of all before it are durable: whose they are.
    pub(super) fn logged(&mut self, commit: CommitId) -> BTreeSet<GroupId> {
        self.logging.take(commit)
    }

    /// The writes of a commit and of all before it are durable: whose they are.
    pub(super) fn written(&mut self, commit: CommitId) -> BTreeSet<GroupId> {
        self.writing.take(commit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_of_those_that_gave_something_and_stands_for_all_before() {
        let mut under_way = UnderWay::default();
        for (commit, group) in [(1, 1), (1, 2), (2, 2), (4, 3)] {
            under_way.add(CommitId(commit), GroupId(group));
        }
        let mut take =
            |commit| under_way.take(CommitId(commit)).into_iter().map(|group| group.0).collect::<Vec<_>>();
        assert_eq!(take(1), [1, 2]);
        assert_eq!(take(1), [], "once");
        assert_eq!(take(3), [2], "those of a commit that was not told of by itself");
        assert_eq!((take(3), take(5)), (vec![], vec![3]));
    }
}
