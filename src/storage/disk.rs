//! The store of a node on disk: the log, the tree, and the two threads that write them.
//!
//! ```text
//!   node ── commits ──> log thread ── durable state writes ──> state thread
//!    ^                    | frame, fdatasync, witness             | redo file, tree, barrier
//!    ├──── Durable ───────┘                                       |
//!    └──── Written ───────────────────────────────────────────────┘
//! ```
//!
//! * The log thread takes everything that waits as one frame: group commit without a timer.
//! * A commit's state writes go to the tree only after its log records are durable, so the tree never holds what the log
//!   could still forget.
//! * The state thread takes everything that waits as one job ([`super::state`]). Nobody who is acknowledged waits for it.
//! * An error ends both threads and the node; nothing is retried. A panic inside sled is an error.
//!
//! # Opening
//!
//! 1. An empty directory opens only with the one-time `bootstrap` file that `tetrachord init` left there: a node whose
//!    disk was wiped must not come back under its old name. That such a file was copied once more is for the other nodes to
//!    notice ([`crate::node::roster`]).
//! 2. The directory is locked, and must be the opener's ([`format`]). What a first start left that never ended is cleared away: nothing rests on it.
//! 3. A state job that a crash interrupted is carried out again.
//! 4. The log is read and verified, and the witness must find in it the frame that it remembers.
//! 5. What was read is synced before anybody acts on it.

use super::generation::Generation;
use super::log::frame::{LogEnd, Payload};
use super::log::{Log, ReadLog, sync_directory};
use super::redo::Redo;
use super::state::{SharedTree, StateWriter, Task};
use super::tree::pack::Packing;
use super::tree::{Barrier, Tree};
use super::witness::{Testimony, Witness};
use super::{Commit, CommitId, LogRecord, Owner, Recovery, Storage, format};
use crate::error::StorageError;
use crate::ring::StoreId;
use bytes::Bytes;
use std::fs::{File, TryLockError};
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// The witness is at most this much behind what is durable, unless a promise makes it catch up at once.
const WITNESS_INTERVAL: Duration = Duration::from_millis(100);

/// The file that `tetrachord init` leaves in a data directory that was never used.
pub const BOOTSTRAP_FILE: &str = "bootstrap";

/// What the store's threads report to the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The log records of this commit and of all before it are durable.
    Durable(CommitId),
    /// The state writes of this commit and of all before it are durable.
    Written(CommitId),
    /// The tree cannot be read. Nothing more is written to it until a commit replaces it.
    Damaged(StorageError),
    /// The store has failed for good; the node must stop.
    Failed(StorageError),
}

/// How a store is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Memory for sled's pages, in bytes.
    pub cache_bytes: u64,
    /// Size of one segment of the log, in bytes.
    pub segment_bytes: usize,
    /// When the tree is packed.
    pub packing: PackingRule,
    /// Whether others can prove what the tree held: then one that cannot be read is replaced instead of refused. The log
    /// never is.
    pub is_repairable: bool,
}

/// sled's cache works with less, badly; with very little it panics.
pub(crate) const CACHE_BYTES: RangeInclusive<u64> = 64 << 10..=1 << 40;

/// Sizes of a segment of the log: a file that is made at once and holds some frames.
const SEGMENT_BYTES: RangeInclusive<u64> = 16 << 10..=1 << 30;

impl DiskOptions {
    /// Settings that cannot be meant are no damage of the store.
    fn check(&self) -> Result<(), StorageError> {
        let within = |name: &str, value: u64, range: &RangeInclusive<u64>| match range.contains(&value) {
            true => Ok(()),
            false => {
                let (least, most) = (range.start(), range.end());
                Err(StorageError::Setting(format!("{name} = {value}: {least} to {most} are allowed")))
            }
        };
        within("cache_bytes", self.cache_bytes, &CACHE_BYTES)?;
        within("segment_bytes", self.segment_bytes as u64, &SEGMENT_BYTES)
    }
}

/// When the tree is packed: its file has grown by half since it last was, and by `above_bytes`, and no state was written
/// for `idle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackingRule {
    /// Bytes.
    pub above_bytes: u64,
    /// How long nothing may have been written.
    pub idle: Duration,
}

/// The open store. Reads go to the tree directly; writes go to the threads.
#[derive(Debug)]
pub struct DiskStorage {
    tree: SharedTree,
    commits: Sender<Commit>,
    log_bytes: Arc<AtomicU64>,
    log_end: Arc<AtomicU64>,
}

impl DiskStorage {
    /// Opens the store in `dir`, which must be its owner's, and starts its threads. `report` is called from them.
    pub fn open(
        dir: &Path,
        owner: &Owner,
        options: DiskOptions,
        report: impl Fn(Report) + Clone + Send + 'static,
    ) -> Result<(Self, Recovery), StorageError> {
        let (mut log_writer, state_writer, tree, recovery) = open_parts(dir, owner, options)?;
        let (commits, inbox) = channel();
        let log_bytes = Arc::clone(&log_writer.log_bytes);
        let log_end = Arc::clone(&log_writer.log_end);
        let (jobs, job_inbox) = channel();
        log_writer.jobs = Some(jobs);
        let log_report = report.clone();
        spawn("log", move || guarded(&log_report.clone(), || log_writer.run(&inbox, &log_report)))?;
        spawn("state", move || guarded(&report.clone(), || state_writer.run(&job_inbox, &report)))?;
        Ok((Self { tree, commits, log_bytes, log_end }, recovery))
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), StorageError> {
    let spawned = std::thread::Builder::new().name(name.to_string()).spawn(run);
    spawned.map(drop).map_err(|error| StorageError::io("start a thread of the store", error))
}

/// A panic of the thread reaches the node as a failure of the store.
fn guarded(report: &dyn Fn(Report), run: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        report(Report::Failed(StorageError::other("write", "a thread of the store panicked")));
    }
}

impl Storage for DiskStorage {
    fn submit(&mut self, commit: Commit) {
        // If the thread has ended it has reported why, and the node is about to stop.
        let _ = self.commits.send(commit);
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.tree.now().get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        self.tree.now().scan(from, to, bytes_max)
    }

    fn log_end(&self) -> u64 {
        self.log_end.load(Ordering::Relaxed)
    }

    fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Relaxed)
    }
}

/// The half of the store that makes commits durable.
struct LogWriter {
    _lock: Arc<File>,
    log: Log,
    witness: Witness,
    testified: Testimony,
    testified_at: Instant,
    log_bytes: Arc<AtomicU64>,
    log_end: Arc<AtomicU64>,
    jobs: Option<Sender<Task>>,
}

impl LogWriter {
    /// Serves commits until the node is gone.
    fn run(mut self, inbox: &Receiver<Commit>, report: &dyn Fn(Report)) {
        loop {
            let served = match self.next_commits(inbox) {
                Ok(commits) => self.serve(commits, report),
                Err(RecvTimeoutError::Timeout) => self.testify(),
                Err(RecvTimeoutError::Disconnected) => return drop(self.testify()),
            };
            if let Err(error) = served.and_then(|()| self.log.prepare()) {
                return report(Report::Failed(error));
            }
        }
    }

    /// Waits for a commit and takes all that are there. While the witness is behind it waits only so long.
    fn next_commits(&self, inbox: &Receiver<Commit>) -> Result<Vec<Commit>, RecvTimeoutError> {
        let first = if self.testified.end == self.log.end() {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)?
        } else {
            inbox.recv_timeout(WITNESS_INTERVAL.saturating_sub(self.testified_at.elapsed()))?
        };
        Ok(std::iter::once(first).chain(inbox.try_iter()).collect())
    }

    fn serve(&mut self, commits: Vec<Commit>, report: &dyn Fn(Report)) -> Result<(), StorageError> {
        let mut waiting = Vec::new();
        for commit in commits {
            if commit.replaces_log {
                self.make_durable(std::mem::take(&mut waiting), report)?;
                self.make_durable(vec![commit], report)?;
            } else {
                waiting.push(commit);
            }
        }
        self.make_durable(waiting, report)
    }

    /// Writes the records of these commits as one frame, and reports them.
    fn make_durable(&mut self, commits: Vec<Commit>, report: &dyn Fn(Report)) -> Result<(), StorageError> {
        let Some(last) = commits.last().map(|commit| commit.id) else { return Ok(()) };
        let promises = commits.iter().any(|commit| commit.promises);
        let is_base = commits.iter().any(|commit| commit.replaces_log);
        assert!(!is_base || commits.len() == 1, "what replaces the log is a frame of its own");
        let records: Vec<LogRecord> = commits.iter().flat_map(|commit| commit.log.iter().cloned()).collect();
        let payload = Payload::of(&records);
        if !payload.is_empty() {
            self.log.append(payload, is_base)?;
            self.log_bytes.store(self.log.bytes(), Ordering::Relaxed);
            self.log_end.store(self.log.end().number, Ordering::Relaxed);
        }
        if promises || is_base || self.testified_at.elapsed() >= WITNESS_INTERVAL {
            self.testify()?;
        }
        report(Report::Durable(last));
        for commit in commits.into_iter().filter(|commit| !commit.state.is_empty()) {
            let writes = commit.state.into_iter().flatten().collect();
            let task = Task { commit: commit.id, writes, replaces_tree: commit.replaces_tree };
            // If the other thread has ended it has reported why.
            let _ = self.jobs.as_ref().expect("set before the thread starts").send(task);
        }
        if is_base { self.log.recycle() } else { Ok(()) }
    }

    fn testify(&mut self) -> Result<(), StorageError> {
        self.testified_at = Instant::now();
        if self.testified.end == self.log.end() {
            return Ok(());
        }
        self.testified.end = self.log.end();
        self.witness.write(self.testified)
    }
}

fn open_parts(
    dir: &Path,
    owner: &Owner,
    options: DiskOptions,
) -> Result<(LogWriter, StateWriter, SharedTree, Recovery), StorageError> {
    options.check()?;
    let bootstrap = dir.join(BOOTSTRAP_FILE);
    refuse_blank_directory(dir)?;
    let lock = Arc::new(lock_directory(dir)?);
    let named = format::check(dir, owner)?;
    let (witness, said) = Witness::open(&dir.join("witness"))?;
    let is_first = said.is_none() && bootstrap.exists();
    if said.is_none() && !is_first {
        return Err(StorageError::StateLost(
            "the witness file is missing or damaged beside an existing store, so nobody knows what this node had \
             promised. It must not vote under its old identity; add it as a new node"
                .to_string(),
        ));
    }
    if is_first && Log::was_used(&dir.join("log"))? {
        return Err(StorageError::StateLost(format!(
            "{} holds a bootstrap file beside a log that was used, and the witness file is missing or damaged: this is not \
             a first start. The node must not vote under its old identity; add it as a new node",
            dir.display()
        )));
    }
    let store = match said {
        Some(testimony) => testimony.store,
        None => draw_store_id()?,
    };
    match (said, named) {
        (None, _) => format::write(dir, owner, store)?,
        (Some(_), Some(named)) if named == store => {}
        (Some(_), _) => return Err(unnamed(dir)),
    }
    let state = open_state(dir, &lock, store, options, is_first)?;
    let tree = state.tree();
    let log_dir = dir.join("log");
    let (log, read) = if is_first {
        (Log::create(&log_dir, store, options.segment_bytes)?, ReadLog::default())
    } else {
        Log::open(&log_dir, store, options.segment_bytes)?
    };
    if let Some(testimony) = &said {
        hold_against_witness(&read, testimony)?;
    }
    let incarnation = said.map_or(1, |testimony| testimony.incarnation + 1);
    let testified = Testimony { store, incarnation, end: log.end() };
    let log_bytes = Arc::new(AtomicU64::new(log.bytes()));
    let log_end = Arc::new(AtomicU64::new(log.end().number));
    let mut writer = LogWriter {
        _lock: lock,
        log,
        witness,
        testified,
        testified_at: Instant::now(),
        log_bytes,
        log_end,
        jobs: None,
    };
    sync_all_names(dir)?;
    writer.witness.write(writer.testified)?;
    if bootstrap.exists() {
        sync_all_names(dir)?;
        std::fs::remove_file(&bootstrap)
            .map_err(|error| StorageError::io("use up the bootstrap file", error))?;
        sync_all_names(dir)?;
    }
    Ok((writer, state, tree, Recovery { log: read.records, store, incarnation }))
}

/// Opens the tree and finishes what a crash interrupted. One that cannot be read is replaced, if that may be.
fn open_state(
    dir: &Path,
    lock: &Arc<File>,
    store: StoreId,
    options: DiskOptions,
    is_first: bool,
) -> Result<StateWriter, StorageError> {
    let open = || {
        let (redo, found) = Redo::open(&dir.join("redo"), store)?;
        let parts = if is_first { first_tree(dir, options)? } else { open_tree(dir, options)? };
        let mut state = StateWriter::new(Arc::clone(lock), parts, redo, store, options);
        state.recover(found)?;
        Ok(state)
    };
    match open() {
        Err(error @ (StorageError::Corrupt { .. } | StorageError::StateLost(_)))
            if options.is_repairable && !is_first =>
        {
            tracing::warn!(%error, "the applied state cannot be read; the node repairs it from the others");
            let (redo, found) = Redo::open(&dir.join("redo"), store)?;
            // What is written down already belongs to the tree before.
            let last_job = found.map_or(0, |job| job.number);
            let parts = replacing_tree(&Generation::behind_all(dir)?, store, last_job, options)?;
            let mut state = StateWriter::new(Arc::clone(lock), parts, redo, store, options);
            state.recover(None)?;
            Ok(state)
        }
        result => result,
    }
}

fn first_tree(dir: &Path, options: DiskOptions) -> Result<(Generation, Tree, Barrier), StorageError> {
    let mut generation = Generation::create_first(dir)?;
    let tree = Tree::open(&generation.path(), options.cache_bytes)?;
    let barrier = Barrier::open(&generation.path())?;
    barrier.sync(&tree)?;
    generation.make_whole(0)?;
    Ok((generation, tree, barrier))
}

fn open_tree(dir: &Path, options: DiskOptions) -> Result<(Generation, Tree, Barrier), StorageError> {
    let generation = Generation::open(dir)?;
    let tree = Tree::open(&generation.path(), options.cache_bytes)?;
    let barrier = Barrier::open(&generation.path())?;
    Ok((generation, tree, barrier))
}

/// An empty tree in the place of the one before, which is cleared away at the next start.
pub(super) fn replacing_tree(
    before: &Generation,
    store: StoreId,
    last_job: u64,
    options: DiskOptions,
) -> Result<(Generation, Tree, Barrier), StorageError> {
    let mut next = before.create_next()?;
    let packing = Packing::begin(&next.path(), options.cache_bytes)?;
    let (tree, barrier) = packing.finish(store, last_job)?;
    next.make_whole(barrier.file_bytes()?)?;
    Ok((next, tree, barrier))
}

fn unnamed(dir: &Path) -> StorageError {
    StorageError::StateLost(format!(
        "the format file in {} is missing, damaged or of another store than what lies beside it: an earlier build made this store, or \
         files of two directories were mixed. The node must not vote with it; put its own data back, whole",
        dir.display()
    ))
}

fn refuse_blank_directory(dir: &Path) -> Result<(), StorageError> {
    std::fs::create_dir_all(dir).map_err(|error| StorageError::io("make the data directory", error))?;
    if Generation::exist(dir)? || dir.join("witness").exists() || dir.join(BOOTSTRAP_FILE).exists() {
        return Ok(());
    }
    Err(StorageError::StateLost(format!(
        "{} holds no store and no bootstrap file: either this is not the data directory, or the disk was wiped. A node \
         that lost its disk must not come back under its old identity; add it as a new node",
        dir.display()
    )))
}

/// One process uses a directory. The lock goes with the process, or with the store's last thread.
fn lock_directory(dir: &Path) -> Result<File, StorageError> {
    let file =
        File::create(dir.join("lock")).map_err(|error| StorageError::io("open the lock file", error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StorageError::InUse(dir.display().to_string())),
        Err(TryLockError::Error(error)) => Err(StorageError::io("lock the data directory", error)),
    }
}

/// The log must hold what the witness saw, or begin behind it.
fn hold_against_witness(read: &ReadLog, testimony: &Testimony) -> Result<(), StorageError> {
    let LogEnd { number, .. } = testimony.end;
    let is_void = read.base.number >= number;
    if is_void || read.frames.contains(&testimony.end) {
        return Ok(());
    }
    Err(StorageError::StateLost(format!(
        "the write-ahead log does not hold frame {number}, which was durable: the disk lost acknowledged writes. This \
         node must not vote under its old identity; add it as a new node"
    )))
}

fn draw_store_id() -> Result<StoreId, StorageError> {
    let mut id = StoreId::default();
    getrandom::fill(&mut id.0).map_err(|error| StorageError::other("draw a name for the store", error))?;
    Ok(id)
}

/// Makes names durable: the store's files other than the tree's, its directory, and the directory's own name.
fn sync_all_names(dir: &Path) -> Result<(), StorageError> {
    let absolute = dir.canonicalize().map_err(|error| StorageError::io("find the data directory", error))?;
    for name in ["log", "redo"].map(|name| absolute.join(name)) {
        if name.exists() {
            sync_directory(&name)?;
        }
    }
    sync_directory(&absolute)?;
    absolute.parent().map_or(Ok(()), sync_directory)
}
