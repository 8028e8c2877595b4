//! The thread that brings applied state to the tree, and packs the tree when it has nothing else to do.
//!
//! Everything that waits is one job: written down as a whole ([`super::redo`]), carried out, and made durable by one barrier.
//! After a while without jobs, a tree that has grown is packed ([`super::tree::pack`]), a little at a time; jobs that come
//! meanwhile go first.

use super::disk::{DiskOptions, Report, replacing_tree};
use super::generation::Generation;
use super::redo::{Job, Redo};
use super::sweep;
use super::tree::pack::Packing;
use super::tree::{Barrier, Mark, Tree};
use super::{CommitId, StateWrite};
use crate::error::StorageError;
use crate::limits::STATE_JOB_BYTES_MAX;
use crate::ring::StoreId;
use bytes::Bytes;
use std::fs::File;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// State writes of a commit.
pub(super) struct Task {
    pub(super) commit: CommitId,
    pub(super) writes: Vec<StateWrite>,
    /// Whether they are all that the tree holds from now on.
    pub(super) replaces_tree: bool,
}

/// The tree that counts now. Another takes its place when it is packed; both hold the same then.
#[derive(Clone, Debug)]
pub(super) struct SharedTree(Arc<RwLock<Tree>>);

impl SharedTree {
    pub(super) fn now(&self) -> RwLockReadGuard<'_, Tree> {
        // Nothing panics while it holds the lock for writing: it only moves a value.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the one before, to be dropped when nobody waits for it.
    fn replace(&self, tree: Tree) -> Tree {
        std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), tree)
    }
}

/// What the thread owns.
pub(super) struct StateWriter {
    _lock: Arc<File>,
    tree: SharedTree,
    barrier: Barrier,
    generation: Generation,
    redo: Redo,
    store: StoreId,
    options: DiskOptions,
    last_job: u64,
    packing: Option<(Generation, Packing)>,
    /// Whether there was no reason to pack when it was last looked, and nothing was written since.
    is_settled: bool,
    /// Whether the tree cannot be read: nothing is written to it until it is replaced.
    is_damaged: bool,
}

impl StateWriter {
    pub(super) fn new(
        lock: Arc<File>,
        (generation, tree, barrier): (Generation, Tree, Barrier),
        redo: Redo,
        store: StoreId,
        options: DiskOptions,
    ) -> Self {
        let tree = SharedTree(Arc::new(RwLock::new(tree)));
        Self {
            _lock: lock,
            tree,
            barrier,
            generation,
            redo,
            store,
            options,
            last_job: 0,
            packing: None,
            is_settled: false,
            is_damaged: false,
        }
    }

    /// For readers on other threads.
    pub(super) fn tree(&self) -> SharedTree {
        self.tree.clone()
    }

    /// Serves jobs until the node is gone.
    pub(super) fn run(mut self, inbox: &Receiver<Task>, report: &dyn Fn(Report)) {
        let mut first = None;
        loop {
            let next = first.take().map_or_else(|| self.wait(inbox), Ok);
            let done = match next {
                Ok(next_task) => {
                    let task;
                    (task, first) = gather(next_task, inbox);
                    self.serve(task, report)
                }
                Err(RecvTimeoutError::Timeout) => self.pack_a_little(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            match done {
                Ok(()) => {}
                Err(error @ StorageError::Corrupt { .. }) if self.options.is_repairable => {
                    (self.is_damaged, self.packing, self.is_settled) = (true, None, true);
                    report(Report::Damaged(error));
                }
                Err(error) => return report(Report::Failed(error)),
            }
        }
    }

    fn serve(&mut self, task: Task, report: &dyn Fn(Report)) -> Result<(), StorageError> {
        if task.replaces_tree {
            self.replace_tree()?;
        } else if self.is_damaged {
            // Whoever waits for it is answered when the tree is replaced.
            return Ok(());
        }
        self.write(task.writes)?;
        report(Report::Written(task.commit));
        Ok(())
    }

    /// An empty tree takes the place of this one.
    fn replace_tree(&mut self) -> Result<(), StorageError> {
        self.packing = None;
        let (next, tree, barrier) =
            replacing_tree(&self.generation, self.store, self.last_job, self.options)?;
        drop(self.tree.replace(tree));
        self.barrier = barrier;
        let before = std::mem::replace(&mut self.generation, next);
        self.is_damaged = false;
        before.clear()
    }

    /// Waits for a task; not for long if there is something else to do, and not at all while the tree is being packed.
    fn wait(&self, inbox: &Receiver<Task>) -> Result<Task, RecvTimeoutError> {
        match self.packing {
            Some(_) => inbox.recv_timeout(std::time::Duration::ZERO),
            None if self.is_settled => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            None => inbox.recv_timeout(self.options.packing.idle),
        }
    }

    fn write(&mut self, writes: Vec<StateWrite>) -> Result<(), StorageError> {
        let tree = self.tree.now().clone();
        let writes = sweep::carry_out(writes, &|from, to, bytes_max| tree.scan(from, to, bytes_max))?;
        let job = Job { number: self.last_job + 1, writes };
        self.redo.write(&job)?;
        tree.carry_out(self.store, &job)?;
        self.barrier.sync(&tree)?;
        self.last_job = job.number;
        self.is_settled = false;
        self.packing.as_ref().map_or(Ok(()), |(_, packing)| packing.follow(&job.writes))
    }

    fn pack_a_little(&mut self) -> Result<(), StorageError> {
        let Some((_, packing)) = &mut self.packing else {
            return if self.wants_packing()? {
                self.begin_packing()
            } else {
                self.is_settled = true;
                Ok(())
            };
        };
        let is_more = packing.step(&self.tree.now())?;
        if is_more { Ok(()) } else { self.end_packing() }
    }

    fn wants_packing(&self) -> Result<bool, StorageError> {
        let (now, packed) = (self.barrier.file_bytes()?, self.generation.packed_bytes);
        let above = self.options.packing.above_bytes;
        let has_grown = now > packed.saturating_add(packed / 2).saturating_add(above);
        // The copy is smaller than what it is made of, but one does not fill a disk for tidiness.
        Ok(has_grown && free_bytes(&self.generation.path()) > now.saturating_add(above))
    }

    fn begin_packing(&mut self) -> Result<(), StorageError> {
        let next = self.generation.create_next()?;
        let packing = Packing::begin(&next.path(), self.options.cache_bytes)?;
        tracing::debug!(bytes = self.barrier.file_bytes()?, "the tree is being packed");
        self.packing = Some((next, packing));
        Ok(())
    }

    fn end_packing(&mut self) -> Result<(), StorageError> {
        let (mut next, packing) = self.packing.take().expect("it was begun");
        let (tree, barrier) = packing.finish(self.store, self.last_job)?;
        next.make_whole(barrier.file_bytes()?)?;
        tracing::debug!(bytes = next.packed_bytes, "the tree was packed");
        drop(self.tree.replace(tree));
        self.barrier = barrier;
        let before = std::mem::replace(&mut self.generation, next);
        before.clear()
    }

    /// Finishes what a crash interrupted.
    pub(super) fn recover(&mut self, found: Option<Job>) -> Result<(), StorageError> {
        let half = |number: u64| {
            let reason = format!(
                "state job {number} was interrupted, and what was written down of it is damaged or missing"
            );
            StorageError::corrupt("the applied state", reason)
        };
        let tree = self.tree.now();
        let (complete, begun) = match tree.mark(self.store)? {
            Mark::Fresh => (0, None),
            Mark::Complete(number) => (number, None),
            Mark::Begun(number) => (number - 1, Some(number)),
        };
        self.last_job = complete;
        match found {
            Some(job) if job.number > complete + 1 => Err(StorageError::StateLost(format!(
                "the applied state ends with job {complete}, but job {} was begun: the disk lost what it had. This node \
                 must not vote under its old identity; add it as a new node",
                job.number
            ))),
            Some(job) if job.number == complete + 1 => {
                self.redo.sync()?;
                tree.carry_out(self.store, &job)?;
                self.last_job = job.number;
                self.barrier.sync(&tree)
            }
            _ => match begun {
                Some(number) => Err(half(number)),
                // What was read may be only in a cache.
                None => self.barrier.sync(&tree),
            },
        }
    }
}

/// Takes what waits behind the first task, as long as it makes one job of bounded size; returns the job, and the task that
/// has no place in it.
fn gather(mut task: Task, inbox: &Receiver<Task>) -> (Task, Option<Task>) {
    let mut bytes: usize = task.writes.iter().map(bytes_of).sum();
    for more in inbox.try_iter() {
        let more_bytes: usize = more.writes.iter().map(bytes_of).sum();
        if bytes + more_bytes > STATE_JOB_BYTES_MAX || more.replaces_tree {
            return (task, Some(more));
        }
        bytes += more_bytes;
        task.commit = more.commit;
        task.writes.extend(more.writes);
    }
    (task, None)
}

fn bytes_of((key, value): &StateWrite) -> usize {
    key.len() + value.as_ref().map_or(0, Bytes::len)
}

/// What is free for this process; if the system does not say, it is not the reason to refuse anything.
#[must_use]
pub fn free_bytes(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(u64::MAX, |found| found.f_bavail.saturating_mul(found.f_frsize))
}
