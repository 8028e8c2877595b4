//! What the store is asked to do while it is recorded, and what must be true of it after any cut.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use tetrachord::error::StorageError;
use tetrachord::ring::{GroupId, NodeId, TenureId};
use tetrachord::storage::disk::{DiskOptions, DiskStorage, PackingRule, Report};
use tetrachord::storage::{Commit, CommitId, LogRecord, Owner, Recovery, StateWrite, Storage};

pub(crate) const OPTIONS: DiskOptions = DiskOptions {
    is_repairable: false,
    cache_bytes: 4 << 20,
    segment_bytes: 32 << 10,
    packing: PackingRule { above_bytes: 8 << 10, idle: std::time::Duration::ZERO },
};

/// The same, for a store that is only looked at.
const AT_REST: DiskOptions =
    DiskOptions { packing: PackingRule { above_bytes: u64::MAX, idle: std::time::Duration::MAX }, ..OPTIONS };

/// Lives of the store in one recording, and commits in each.
pub(crate) const LIVES: u64 = 3;
pub(crate) const COMMITS: u64 = 110;

const KEYS: u64 = 60;

/// Commit `id` of the script. Its content follows from its number alone.
pub(crate) fn commit(id: u64) -> Commit {
    let replaces_log = id.is_multiple_of(40);
    let kind = if replaces_log { "base" } else { "entry" };
    let filler = usize::try_from(id * 97 % 700).unwrap();
    let record = format!("{kind} {id} {}", "e".repeat(if id.is_multiple_of(33) { 9_000 } else { filler }));
    let tenure = TenureId { group: GroupId((id % 3).into()), epoch: id / 100 };
    let log = vec![LogRecord { tenure, kind: 0, body: Bytes::from(record) }];
    let state = if has_state(id) { vec![state_of(id)] } else { Vec::new() };
    Commit {
        id: CommitId(id),
        log,
        state,
        promises: id.is_multiple_of(7),
        replaces_log,
        replaces_tree: false,
    }
}

fn has_state(id: u64) -> bool {
    id.is_multiple_of(4)
}

/// Many keys at once now and then, so that one job is far larger than a page of sled.
fn state_of(id: u64) -> Vec<StateWrite> {
    let step = if id.is_multiple_of(44) { 1 } else { 7 };
    let mut writes: Vec<StateWrite> = (0..KEYS)
        .step_by(step)
        .map(|key| {
            let is_deleted = (key + id).is_multiple_of(11);
            let value = format!("{id} {}", "s".repeat(usize::try_from(key * 13 % 300).unwrap()));
            (Bytes::from(format!("x{key}")), (!is_deleted).then(|| Bytes::from(value)))
        })
        .collect();
    writes.push((Bytes::from_static(b"applied"), Some(Bytes::from(id.to_string()))));
    writes
}

/// Whose store it is.
fn owner() -> Owner {
    Owner { cluster: "some cluster".to_string(), node: NodeId(1) }
}

/// Opens the store to look at it, waiting for an earlier life's threads to let go of it.
pub(crate) fn open(dir: &Path) -> Result<(DiskStorage, Recovery, Receiver<Report>), StorageError> {
    open_reporting(dir, AT_REST, |_| {})
}

fn open_reporting(
    dir: &Path,
    options: DiskOptions,
    note: impl Fn(&Report) + Clone + Send + 'static,
) -> Result<(DiskStorage, Recovery, Receiver<Report>), StorageError> {
    loop {
        let (sender, receiver) = channel();
        let note = note.clone();
        let opened = DiskStorage::open(dir, &owner(), options, move |report| {
            note(&report);
            drop(sender.send(report));
        });
        match opened {
            Err(StorageError::InUse(_)) => std::thread::yield_now(),
            opened => return opened.map(|(storage, recovery)| (storage, recovery, receiver)),
        }
    }
}

fn wait_for(reports: &Receiver<Report>, is_it: impl Fn(&Report) -> bool) {
    while !is_it(&reports.recv().expect("the store runs")) {}
}

/// Runs the first commits of the script, and ends as a node that is stopped does.
pub(crate) fn run_briefly(dir: &Path, commits: u64) -> Promised {
    let (mut storage, _, reports) = open_reporting(dir, OPTIONS, |_| {}).unwrap();
    for id in 1..=commits {
        storage.submit(commit(id));
        wait_for(&reports, |report| *report == Report::Durable(CommitId(id)));
        if has_state(id) {
            wait_for(&reports, |report| *report == Report::Written(CommitId(id)));
        }
    }
    drop(storage);
    // Ends when both threads have: they hold what reports are sent by.
    while reports.recv().is_ok() {}
    Promised { durable: commits, written: commits / 4 * 4 }
}

/// Runs the script. Every report is written to `marks` when it arrives, before anything else happens.
pub(crate) fn run(dir: &Path, marks: &Path) {
    let mut id = 0;
    for _ in 0..LIVES {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(marks).unwrap();
        let file = std::sync::Arc::new(file);
        let note = move |report: &Report| {
            let line = match report {
                Report::Durable(id) => format!("durable {}\n", id.0),
                Report::Written(id) => format!("written {}\n", id.0),
                Report::Damaged(error) | Report::Failed(error) => panic!("{error}"),
            };
            (&*file).write_all(line.as_bytes()).unwrap();
        };
        let (mut storage, _, reports) = open_reporting(dir, OPTIONS, note).unwrap();
        for _ in 0..COMMITS {
            id += 1;
            storage.submit(commit(id));
            // Some gather into one frame; what replaces the log comes when the state has reached the tree.
            if !(id % 5).is_multiple_of(4) {
                wait_for(&reports, |report| *report == Report::Durable(CommitId(id)));
            }
            if id.is_multiple_of(20) {
                wait_for(&reports, |report| *report == Report::Written(CommitId(id)));
            }
        }
        let last_state = id / 4 * 4;
        if !id.is_multiple_of(20) {
            wait_for(&reports, |report| *report == Report::Written(CommitId(last_state)));
        }
    }
}

/// What was reported before a cut, and so must be there after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Promised {
    pub(crate) durable: u64,
    pub(crate) written: u64,
}

impl Promised {
    pub(crate) fn note(&mut self, line: &[u8]) {
        for line in String::from_utf8_lossy(line).lines() {
            match line.split_once(' ') {
                Some(("durable", id)) => self.durable = id.parse().unwrap(),
                Some(("written", id)) => self.written = id.parse().unwrap(),
                _ => panic!("an unknown mark: {line}"),
            }
        }
    }
}

/// What is not as it was promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The store says that it cannot answer.
    Refused(String),
    /// It answers, and wrongly.
    Wrong(String),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(reason) | Self::Wrong(reason) => f.write_str(reason),
        }
    }
}

fn wrong(reason: String) -> Result<(), Problem> {
    Err(Problem::Wrong(reason))
}

/// Opens what a cut left and holds it against what was promised.
pub(crate) fn verify(dir: &Path, promised: Promised) -> Result<(), Problem> {
    verify_with(dir, promised, AT_REST)
}

/// The same for a store whose tree others can prove.
pub(crate) fn verify_repairable(dir: &Path, promised: Promised) -> Result<(), Problem> {
    verify_with(dir, promised, DiskOptions { is_repairable: true, ..AT_REST })
}

fn verify_with(dir: &Path, promised: Promised, options: DiskOptions) -> Result<(), Problem> {
    let (storage, recovery, _reports) = open_reporting(dir, options, |_| {})
        .map_err(|error| Problem::Refused(format!("does not open: {error}")))?;
    let ids = ids_of(&recovery)?;
    let last = ids.last().copied().unwrap_or(0);
    if last < promised.durable {
        return wrong(format!("commit {} was reported durable, the log ends with {last}", promised.durable));
    }
    for (position, id) in ids.iter().enumerate() {
        if *id != ids[0] + position as u64 {
            return wrong(format!("commit {id} follows {}", ids[position - 1]));
        }
        let expected = commit(*id).log;
        if recovery.log[position] != expected[0] {
            return wrong(format!("commit {id} came back as something else"));
        }
    }
    if ids.first().is_some_and(|first| *first != 1 && !commit(*first).replaces_log) {
        return wrong(format!("the log begins with {}, which stands for nothing", ids[0]));
    }
    verify_state(&storage, promised, last)
}

fn ids_of(recovery: &Recovery) -> Result<Vec<u64>, Problem> {
    let id_of = |record: &LogRecord| std::str::from_utf8(&record.body).ok()?.split(' ').nth(1)?.parse().ok();
    recovery
        .log
        .iter()
        .map(|record| id_of(record).ok_or(Problem::Wrong("a foreign record".to_string())))
        .collect()
}

fn verify_state(storage: &DiskStorage, promised: Promised, last: u64) -> Result<(), Problem> {
    let read =
        |key: &[u8]| storage.get(key).map_err(|error| Problem::Refused(format!("cannot be read: {error}")));
    let applied: u64 = match read(b"applied")? {
        Some(bytes) => std::str::from_utf8(&bytes).unwrap().parse().unwrap(),
        None => 0,
    };
    if applied < promised.written || applied > last {
        return wrong(format!(
            "state {} was reported written, the tree holds {applied}, the log ends with {last}",
            promised.written
        ));
    }
    let mut expected: BTreeMap<Bytes, Option<Bytes>> = BTreeMap::new();
    for id in (1..=applied).filter(|id| has_state(*id)) {
        expected.extend(state_of(id));
    }
    for (key, value) in expected {
        let found = read(&key)?;
        if found != value {
            return wrong(format!(
                "{} is {:?} instead of {:?} at state {applied}",
                key.escape_ascii(),
                found.map(|bytes| bytes.slice(..bytes.len().min(20))),
                value.map(|bytes| bytes.slice(..bytes.len().min(20)))
            ));
        }
    }
    Ok(())
}
