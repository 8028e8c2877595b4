//! One commit for all groups: what is handed to the store, and what it says of it.

use super::NodeCore;
use super::log_rewrite::Stage;
use crate::error::StorageError;
use crate::node::roster::{NOTE, OWN};
use crate::node::tenures;
use crate::storage::{Commit, CommitId, LogRecord};

impl NodeCore {
    /// Hands everything that should become durable to the store as one commit. It replaces the log if it should and holds the
    /// whole state of every engine: one that has stopped gives nothing any more, and what it promised stands in the old log
    /// alone.
    pub(super) fn submit(&mut self, should_replace_log: bool) {
        if self.founding.is_some() {
            return;
        }
        let id = CommitId(self.last_commit.0 + 1);
        let mut commit = Commit { id, ..Commit::default() };
        let mut is_whole = true;
        let own = self.roster.take_records(id, should_replace_log);
        commit.promises = !own.is_empty();
        commit.log.extend(own.into_iter().map(|body| LogRecord { tenure: OWN, kind: NOTE, body }));
        if should_replace_log {
            // Whatever is not in it is gone.
            self.groups.touch_all().for_each(drop);
        }
        for at in 0..self.groups.touched() {
            let group = self.groups.nth_touched(at);
            let tenure = group.tenure().id;
            let (taken, writes) = (group.take_records(), group.take_writes(id));
            is_whole &= taken.as_ref().is_some_and(|taken| taken.is_whole);
            let (is_logging, is_writing) = (taken.is_some(), !writes.is_empty());
            if let Some(taken) = taken {
                self.roster.on_logged();
                let record = |body| LogRecord { tenure, kind: tenures::ENGINE, body };
                commit.log.extend(taken.records.into_iter().map(record));
                commit.promises |= taken.promises;
                group.submitted(id);
            }
            commit.state.extend(writes);
            self.groups.note(id, tenure.group, is_logging, is_writing);
        }
        let is_careless = self.settings.group.options.mutation.replaces_without_all();
        commit.replaces_log = should_replace_log && (is_whole || is_careless);
        if commit.log.is_empty() && commit.state.is_empty() {
            return;
        }
        self.last_commit = id;
        assert!(!commit.replaces_log || !commit.log.is_empty(), "a log is replaced by something");
        self.storage.submit(commit);
    }

    pub(super) fn on_durable(&mut self, commit: CommitId) -> Result<(), StorageError> {
        self.roster.durable(commit);
        for name in self.groups.logged(commit) {
            let group = self.groups.touch(name).expect("a group that logs is here");
            group.durable(self.storage.as_ref(), commit)?;
        }
        if matches!(self.rewrite.stage, Stage::Submitted(submitted) if submitted <= commit) {
            self.rewrite.stage = Stage::Idle;
            // If much had to be kept, because trees or replicas lag, rewriting it again at once would only cost more.
            self.rewrite.above_bytes = self.settings.log_bytes_max.max(2 * self.storage.log_bytes());
        }
        Ok(())
    }

    /// The tree cannot be read. In crash mode nobody can prove another state: the node must stop.
    pub(super) fn on_tree_damaged(&mut self, error: StorageError) -> Result<(), StorageError> {
        match self.settings.group.byzantine {
            Some(_) => self.rebuild_tree(&error.to_string()),
            None => Err(error),
        }
    }

    /// All groups give their state up for lost, and repair it from other replicas in a new tree.
    pub(super) fn rebuild_tree(&mut self, reason: &str) -> Result<(), StorageError> {
        tracing::warn!(%reason, "the tree is given up; all groups repair their state in a new one");
        self.submit(false);
        let id = CommitId(self.last_commit.0 + 1);
        let mut marks = Vec::new();
        self.groups.touch_all().for_each(drop);
        for at in 0..self.groups.touched() {
            let group = self.groups.nth_touched(at);
            let name = group.tenure().group();
            marks.extend(group.tree_lost(self.storage.as_ref(), id, reason)?);
            self.groups.note(id, name, false, true);
        }
        self.last_commit = id;
        self.storage.submit(Commit { id, state: vec![marks], replaces_tree: true, ..Commit::default() });
        Ok(())
    }
}
