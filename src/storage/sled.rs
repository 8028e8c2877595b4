//! The store on sled 0.34.7: one database, one thread that writes, a barrier that really reaches the disk.
//!
//! # The barrier
//!
//! sled's `flush` writes its buffers with `sync_file_range`, which neither empties the drive's cache nor commits the
//! file's length. So every barrier is `flush`, then `fdatasync` of sled's one file through a second descriptor. Both
//! must succeed before anything is reported. Directories are synced once, when they are created.
//!
//! # Opening
//!
//! * Leftover `snap.*.generating` files make sled refuse a healthy store; they are removed first. Other `snap.*` files
//!   are a cache; if sled calls the store corrupt they are removed and it is opened once more.
//! * Before opening, the kernel is asked to forget its cached pages: after a kill they may hold bytes that never
//!   reached the disk and must not be voted on. After reading, a barrier.
//! * The log is verified piece by piece, and the witness must find the piece it remembers.
//! * An empty directory opens only with the one-time `bootstrap` file that `tetrachord init` left there: a node whose
//!   disk was wiped must not come back under its old name.
//!
//! # Order of deletion
//!
//! Applied state and deletions of log pieces never share one unsynced window: sled has been seen to open such a
//! store without error and without its contents. Old pieces go in slices, each in a window of its own.

use super::wal::{self, Reader, WalEnd};
use super::witness::{Testimony, Witness};
use super::{Commit, CommitId, Recovery, Storage};
use crate::error::StorageError;
use crate::limits::RECORD_BYTES_MAX;
use bytes::Bytes;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Pieces of the log that are deleted in one window.
const SLICE_PIECES: u64 = 64;

/// The witness is at most this much behind what is durable, unless a promise makes it catch up at once.
const WITNESS_INTERVAL: Duration = Duration::from_millis(100);

/// The file that `tetrachord init` leaves in a data directory that was never used.
pub const BOOTSTRAP_FILE: &str = "bootstrap";

const BASE_KEY: &[u8] = b"b";

/// What the storage thread reports to the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// This commit and all before it are durable.
    Durable(CommitId),
    /// The store has failed for good; the node must stop.
    Failed(StorageError),
}

/// The open store. Reads go to sled directly; writes go to the storage thread.
pub struct SledStorage {
    kv: sled::Tree,
    commits: Sender<Commit>,
    log_bytes: Arc<AtomicU64>,
}

impl std::fmt::Debug for SledStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledStorage").field("log_bytes", &self.log_bytes).finish_non_exhaustive()
    }
}

impl SledStorage {
    /// Opens the store in `dir` and starts its thread. `report` is called from that thread.
    pub fn open(
        dir: &Path,
        cache_bytes: u64,
        report: impl Fn(Report) + Send + 'static,
    ) -> Result<(Self, Recovery), StorageError> {
        let (writer, kv, recovery) = Writer::open(dir, cache_bytes)?;
        let (commits, inbox) = channel();
        let log_bytes = Arc::clone(&writer.log_bytes);
        let run = move || writer.run(&inbox, &report);
        let spawned = std::thread::Builder::new().name("storage".to_string()).spawn(run);
        spawned.map_err(|error| StorageError::io("start the storage thread", error))?;
        Ok((Self { kv, commits, log_bytes }, recovery))
    }
}

impl Storage for SledStorage {
    fn submit(&mut self, commit: Commit) {
        // If the thread has ended it has reported why, and the node is about to stop.
        let _ = self.commits.send(commit);
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let value = self.kv.get(key).map_err(|error| StorageError::io("read a record", error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, from: &[u8], to: &[u8], bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        let mut rows = Vec::new();
        let mut bytes = 0;
        for row in self.kv.range(from..to) {
            let (key, value) = row.map_err(|error| StorageError::io("read a range of records", error))?;
            bytes += key.len() + value.len();
            rows.push((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)));
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(rows)
    }

    fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Relaxed)
    }
}

/// Pieces of the log that wait to be deleted: `next..end`.
#[derive(Clone, Copy, Debug)]
struct Cut {
    next: u64,
    end: WalEnd,
}

/// The half of the store that lives on the storage thread.
struct Writer {
    db: sled::Db,
    file: File,
    wal: sled::Tree,
    kv: sled::Tree,
    end: WalEnd,
    first: u64,
    cut: Option<Cut>,
    witness: Witness,
    testified: Testimony,
    testified_at: Instant,
    log_bytes: Arc<AtomicU64>,
}

impl Writer {
    fn open(dir: &Path, cache_bytes: u64) -> Result<(Self, sled::Tree, Recovery), StorageError> {
        let is_new = prepare_directory(dir)?;
        let db = open_sled(dir, cache_bytes)?;
        let file = File::open(dir.join("db")).map_err(|error| StorageError::io("open sled's file", error))?;
        let tree = |name| db.open_tree(name).map_err(|error| StorageError::io("open a tree", error));
        let (wal, kv) = (tree("wal")?, tree("kv")?);
        if is_new {
            sync_directories(dir)?;
        }
        refuse_blobs(dir)?;
        let (witness, said) = Witness::open(&dir.join("witness"))?;
        let bootstrap = dir.join(BOOTSTRAP_FILE);
        let base = match wal.get(BASE_KEY).map_err(|error| StorageError::io("read the log", error))? {
            Some(bytes) => WalEnd::decode_base(&bytes)?,
            None => WalEnd::default(),
        };
        let log = read_log(&wal, base, said.as_ref(), bootstrap.exists())?;
        let incarnation = said.map_or(1, |testimony| testimony.incarnation + 1);
        let mut writer = Self {
            db,
            file,
            wal,
            kv: kv.clone(),
            end: log.end,
            first: base.number + 1,
            cut: None,
            witness,
            testified: Testimony { incarnation, end: log.end },
            testified_at: Instant::now(),
            log_bytes: Arc::new(AtomicU64::new(
                log.records.iter().map(|(_, record)| record.len() as u64).sum(),
            )),
        };
        writer.settle_after_open(&log, dir, &bootstrap)?;
        Ok((writer, kv, Recovery { log: log.records, incarnation }))
    }

    /// Drops the torn tail and makes sure that everything that was read is on disk before anybody acts on it.
    fn settle_after_open(
        &mut self,
        log: &wal::ReadLog,
        dir: &Path,
        bootstrap: &Path,
    ) -> Result<(), StorageError> {
        for number in log.end.number + 1..=log.last {
            self.wal
                .remove(piece_key(number))
                .map_err(|error| StorageError::io("drop a torn commit", error))?;
        }
        self.barrier()?;
        self.witness.write(self.testified)?;
        if bootstrap.exists() {
            sync_directories(dir)?;
            std::fs::remove_file(bootstrap)
                .map_err(|error| StorageError::io("use up the bootstrap file", error))?;
            sync_directories(dir)?;
        }
        Ok(())
    }

    /// Serves commits until the node is gone.
    fn run(mut self, inbox: &Receiver<Commit>, report: &dyn Fn(Report)) {
        loop {
            let commits = match self.next_commits(inbox) {
                Ok(commits) => commits,
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let last = commits.last().map(|commit| commit.id);
            if let Err(error) = self.serve(commits) {
                return report(Report::Failed(error));
            }
            if let Some(id) = last {
                report(Report::Durable(id));
            }
            if let Err(error) = self.delete_slice() {
                return report(Report::Failed(error));
            }
        }
    }

    /// Waits for a commit and takes all that are there. With old pieces to delete it does not wait.
    fn next_commits(&self, inbox: &Receiver<Commit>) -> Result<Vec<Commit>, RecvTimeoutError> {
        let patience = if self.cut.is_some() { Duration::ZERO } else { Duration::from_secs(3600) };
        let first = inbox.recv_timeout(patience)?;
        Ok(std::iter::once(first).chain(inbox.try_iter()).collect())
    }

    fn serve(&mut self, commits: Vec<Commit>) -> Result<(), StorageError> {
        if commits.is_empty() {
            return Ok(());
        }
        let promises = commits.iter().any(|commit| commit.promises);
        let mut cut = None;
        let mut pieces = Vec::new();
        let mut states = Vec::new();
        for commit in commits {
            if commit.replaces_log {
                cut = Some(Cut { next: self.first, end: self.end });
                self.log_bytes.store(0, Ordering::Relaxed);
            }
            let encoded = wal::encode(&mut self.end, &commit.log);
            let bytes: usize = encoded.iter().map(|(_, piece)| piece.len()).sum();
            self.log_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            pieces.extend(encoded);
            states.extend(commit.state);
        }
        self.write_pieces(pieces)?;
        for writes in states {
            self.write_state(writes)?;
        }
        self.barrier()?;
        if let Some(cut) = cut {
            self.cut = Some(Cut { next: self.cut.map_or(cut.next, |earlier| earlier.next), end: cut.end });
        }
        if promises || self.testified_at.elapsed() >= WITNESS_INTERVAL {
            self.testify()?;
        }
        Ok(())
    }

    /// A single piece is one insert: atomic, one write, and it does not take sled's process-wide lock.
    fn write_pieces(&self, pieces: Vec<(u64, Vec<u8>)>) -> Result<(), StorageError> {
        let io = |error| StorageError::io("append to the write-ahead log", error);
        if pieces.is_empty() {
            return Ok(());
        }
        if let [(number, piece)] = pieces.as_slice() {
            return self.wal.insert(piece_key(*number), piece.as_slice()).map(drop).map_err(io);
        }
        let mut batch = sled::Batch::default();
        for (number, piece) in pieces {
            assert!(
                piece.len() <= RECORD_BYTES_MAX,
                "a larger record would become a file that sled never syncs"
            );
            batch.insert(&piece_key(number)[..], piece);
        }
        self.wal.apply_batch(batch).map_err(io)
    }

    fn write_state(&self, writes: Vec<super::StateWrite>) -> Result<(), StorageError> {
        let mut batch = sled::Batch::default();
        for (key, value) in writes {
            match value {
                Some(value) => {
                    assert!(
                        key.len() + value.len() <= RECORD_BYTES_MAX,
                        "larger records are cut by the writer"
                    );
                    batch.insert(&key[..], &value[..]);
                }
                None => batch.remove(&key[..]),
            }
        }
        self.kv.apply_batch(batch).map_err(|error| StorageError::io("write applied state", error))
    }

    /// Everything written so far is on disk when this returns.
    fn barrier(&self) -> Result<(), StorageError> {
        self.db.flush().map_err(|error| StorageError::io("flush sled", error))?;
        self.file.sync_data().map_err(|error| StorageError::io("sync sled's file", error))
    }

    fn testify(&mut self) -> Result<(), StorageError> {
        self.testified.end = self.end;
        self.testified_at = Instant::now();
        self.witness.write(self.testified)
    }

    /// Deletes some of the pieces that a later commit stands for, in a window of their own.
    fn delete_slice(&mut self) -> Result<(), StorageError> {
        let Some(cut) = self.cut else { return Ok(()) };
        // The witness must not remember a piece that is about to go.
        if self.testified.end.number <= cut.end.number {
            self.testify()?;
        }
        let last = cut.end.number.min(cut.next + SLICE_PIECES - 1);
        let mut batch = sled::Batch::default();
        for number in cut.next..=last {
            batch.remove(&piece_key(number)[..]);
        }
        let base =
            if last == cut.end.number { cut.end } else { WalEnd { number: last, hash: self.hash_of(last)? } };
        batch.insert(BASE_KEY, base.encode_base());
        self.wal.apply_batch(batch).map_err(|error| StorageError::io("delete old log pieces", error))?;
        self.barrier()?;
        self.first = last + 1;
        self.cut = (last < cut.end.number).then_some(Cut { next: last + 1, end: cut.end });
        Ok(())
    }

    fn hash_of(&self, number: u64) -> Result<[u8; 32], StorageError> {
        let piece =
            self.wal.get(piece_key(number)).map_err(|error| StorageError::io("read a log piece", error))?;
        let piece =
            piece.ok_or_else(|| StorageError::corrupt(format!("log piece {number}"), "it is missing"))?;
        let hash = piece.len().checked_sub(32).and_then(|at| <[u8; 32]>::try_from(&piece[at..]).ok());
        hash.ok_or_else(|| StorageError::corrupt(format!("log piece {number}"), "it is too short"))
    }
}

fn piece_key(number: u64) -> [u8; 9] {
    let mut key = [b'r'; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Reads and verifies the log, and holds it against the witness.
fn read_log(
    wal: &sled::Tree,
    base: WalEnd,
    said: Option<&Testimony>,
    is_first_boot: bool,
) -> Result<wal::ReadLog, StorageError> {
    let mut reader = Reader::behind(base);
    let mut is_confirmed = said.is_some_and(|testimony| base.number >= testimony.end.number);
    for row in wal.range(&b"r"[..]..&b"s"[..]) {
        let (key, piece) = row.map_err(|error| StorageError::io("read the write-ahead log", error))?;
        let number = <[u8; 8]>::try_from(&key[1..]).map(u64::from_be_bytes);
        let number = number
            .map_err(|_| StorageError::corrupt("a key of the write-ahead log", "it has a wrong size"))?;
        reader.piece(number, &piece)?;
        let is_testified = |end: &WalEnd| end.number == number && piece.ends_with(&end.hash);
        is_confirmed |= said.is_some_and(|testimony| is_testified(&testimony.end));
    }
    match said {
        None if !is_first_boot => Err(StorageError::StateLost(
            "the witness file is missing beside an existing store, so nobody knows what this node had promised. \
             It must not vote under its old identity; add it as a new node"
                .to_string(),
        )),
        Some(testimony) if !is_confirmed => Err(StorageError::StateLost(format!(
            "the write-ahead log ends before piece {}, which was durable: the disk lost acknowledged writes. This \
             node must not vote under its old identity; add it as a new node",
            testimony.end.number
        ))),
        _ => Ok(reader.finish()),
    }
}

/// Creates the directory if needed and clears what keeps sled from opening; true if there was no store yet.
fn prepare_directory(dir: &Path) -> Result<bool, StorageError> {
    let io = |error: std::io::Error| StorageError::io("prepare the data directory", error);
    std::fs::create_dir_all(dir).map_err(io)?;
    let is_new = !dir.join("db").exists();
    if is_new && !dir.join(BOOTSTRAP_FILE).exists() {
        return Err(StorageError::StateLost(format!(
            "{} holds no store and no bootstrap file: either this is not the data directory, or the disk was wiped. \
             A node that lost its disk must not come back under its old identity; add it as a new node",
            dir.display()
        )));
    }
    for path in files_named(dir, |name| name.starts_with("snap.") && name.ends_with(".generating"))? {
        std::fs::remove_file(path).map_err(io)?;
    }
    if !is_new {
        // The advice is about speed to the kernel and about honesty to us; a kernel that ignores it loses nothing.
        let file = File::open(dir.join("db")).map_err(io)?;
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
    Ok(is_new)
}

fn open_sled(dir: &Path, cache_bytes: u64) -> Result<sled::Db, StorageError> {
    match try_open_sled(dir, cache_bytes) {
        Err(OpenFailure::Corrupt(_)) => {
            for path in files_named(dir, |name| name.starts_with("snap."))? {
                std::fs::remove_file(path)
                    .map_err(|error| StorageError::io("remove a damaged snapshot", error))?;
            }
            try_open_sled(dir, cache_bytes).map_err(|failure| failure.into_error(dir))
        }
        result => result.map_err(|failure| failure.into_error(dir)),
    }
}

enum OpenFailure {
    Corrupt(String),
    InUse,
    Other(String),
}

impl OpenFailure {
    fn into_error(self, dir: &Path) -> StorageError {
        match self {
            Self::Corrupt(reason) => StorageError::corrupt(format!("the store in {}", dir.display()), reason),
            Self::InUse => StorageError::InUse(dir.display().to_string()),
            Self::Other(reason) => StorageError::io("open sled", reason),
        }
    }
}

fn try_open_sled(dir: &Path, cache_bytes: u64) -> Result<sled::Db, OpenFailure> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(cache_bytes)
        .flush_every_ms(None)
        .mode(sled::Mode::LowSpace)
        .use_compression(false);
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(sled::Error::Io(error))) if error.to_string().contains("acquire lock") => {
            Err(OpenFailure::InUse)
        }
        Ok(Err(sled::Error::Corruption { .. })) => {
            Err(OpenFailure::Corrupt("sled finds it corrupt".to_string()))
        }
        Ok(Err(error)) => Err(OpenFailure::Other(error.to_string())),
        Err(_) => Err(OpenFailure::Corrupt("sled panicked while it read it".to_string())),
    }
}

/// sled never syncs the files that it keeps large records in. There must be none.
fn refuse_blobs(dir: &Path) -> Result<(), StorageError> {
    match files_named(&dir.join("blobs"), |_| true)?.first() {
        None => Ok(()),
        Some(path) => {
            Err(StorageError::corrupt(path.display().to_string(), "no record is large enough to need it"))
        }
    }
}

fn files_named(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, StorageError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StorageError::io("list a directory", error)),
    };
    let names =
        entries.filter_map(Result::ok).filter(|entry| entry.file_name().to_str().is_some_and(&wanted));
    Ok(names.map(|entry| entry.path()).collect())
}

/// Makes names durable: the store's files, its directory, and the directory's own name.
fn sync_directories(dir: &Path) -> Result<(), StorageError> {
    let absolute = dir.canonicalize().map_err(|error| StorageError::io("find the data directory", error))?;
    let mut paths: Vec<PathBuf> =
        ["conf", "db", "blobs", "."].iter().map(|name| absolute.join(name)).collect();
    paths.extend(absolute.parent().map(Path::to_path_buf));
    for path in paths.iter().filter(|path| path.exists()) {
        let synced = File::open(path).and_then(|file| file.sync_all());
        synced.map_err(|error| StorageError::io("sync a directory", error))?;
    }
    Ok(())
}
