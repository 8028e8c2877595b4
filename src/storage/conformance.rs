//! One suite for every store: what [`super::Storage`] promises, asked of each implementation.

use super::disk::{BOOTSTRAP_FILE, DiskOptions, DiskStorage, PackingRule, Report};
use super::memory::MemoryDisk;
use super::*;
use crate::ring::{GroupId, NodeId};
use std::sync::mpsc::{Receiver, channel};

/// A disk that can be opened again and again, and how to wait for what it reports.
trait Bench {
    fn open(&mut self) -> (Box<dyn Storage>, Recovery);
    fn wait_until_durable(&mut self, id: CommitId);
    fn wait_until_written(&mut self, id: CommitId);
}

struct Memory(MemoryDisk);

impl Bench for Memory {
    fn open(&mut self) -> (Box<dyn Storage>, Recovery) {
        let (storage, recovery) = self.0.open();
        (Box::new(storage), recovery)
    }

    fn wait_until_durable(&mut self, id: CommitId) {
        while self.0.flush_one().is_some_and(|done| done < id) {}
    }

    fn wait_until_written(&mut self, id: CommitId) {
        assert_eq!(self.0.settle(), Some(id));
    }
}

pub(super) struct Disk {
    pub(super) dir: tempfile::TempDir,
    reports: Option<Receiver<Report>>,
}

pub(super) const OPTIONS: DiskOptions = DiskOptions {
    is_repairable: false,
    cache_bytes: 16 << 20,
    segment_bytes: 64 << 10,
    packing: PackingRule { above_bytes: 0, idle: std::time::Duration::ZERO },
};

impl Disk {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(BOOTSTRAP_FILE), b"").unwrap();
        Self { dir, reports: None }
    }

    fn wait_for(&mut self, is_it: impl Fn(&Report) -> bool) {
        let reports = self.reports.as_ref().unwrap();
        loop {
            let report = reports.recv().unwrap();
            assert!(!matches!(report, Report::Failed(_)), "{report:?}");
            if is_it(&report) {
                return;
            }
        }
    }
}

/// Whose store it is.
fn owner() -> Owner {
    Owner { cluster: "some cluster".to_string(), node: NodeId(1) }
}

/// The threads of the store before let go of the directory when they notice that their store was dropped.
pub(super) fn open_when_free(
    dir: &std::path::Path,
    report: impl Fn(Report) + Clone + Send + 'static,
) -> Result<(DiskStorage, Recovery), StorageError> {
    let open = || DiskStorage::open(dir, &owner(), OPTIONS, report.clone());
    let mut opened =
        std::iter::repeat_with(open).filter(|result| !matches!(result, Err(StorageError::InUse(_))));
    opened.next().unwrap()
}

impl Bench for Disk {
    fn open(&mut self) -> (Box<dyn Storage>, Recovery) {
        let (sender, receiver) = channel();
        self.reports = Some(receiver);
        let (storage, recovery) =
            open_when_free(self.dir.path(), move |report| drop(sender.send(report))).unwrap();
        (Box::new(storage), recovery)
    }

    fn wait_until_durable(&mut self, id: CommitId) {
        self.wait_for(|report| matches!(report, Report::Durable(done) if *done >= id));
    }

    fn wait_until_written(&mut self, id: CommitId) {
        self.wait_for(|report| matches!(report, Report::Written(done) if *done >= id));
    }
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn log_record(group: u128, body: &str) -> LogRecord {
    LogRecord { tenure: TenureId { group: GroupId(group), epoch: 3 }, kind: 1, body: text(body) }
}

fn log_commit(id: u64, group: u128, record: &str) -> Commit {
    Commit { id: CommitId(id), log: vec![log_record(group, record)], ..Commit::default() }
}

fn state_commit(id: u64, writes: &[(&str, Option<&str>)]) -> Commit {
    let batch = writes.iter().map(|(key, value)| (text(key), value.map(text))).collect();
    Commit { id: CommitId(id), state: vec![batch], ..Commit::default() }
}

fn log_survives_in_order(bench: &mut dyn Bench) {
    let (mut storage, recovery) = bench.open();
    assert_eq!((recovery.log.len(), recovery.incarnation), (0, 1));
    let large = "x".repeat(50_000);
    storage.submit(log_commit(1, 1, "a"));
    storage.submit(log_commit(2, 2, &large));
    storage.submit(log_commit(3, 1, "c"));
    bench.wait_until_durable(CommitId(3));
    drop(storage);
    let (_, recovery) = bench.open();
    let expected = vec![log_record(1, "a"), log_record(2, &large), log_record(1, "c")];
    assert_eq!((recovery.log, recovery.incarnation), (expected, 2));
}

fn a_replacing_commit_stands_for_everything_before(bench: &mut dyn Bench) {
    let (mut storage, _) = bench.open();
    for id in 1..=300 {
        storage.submit(log_commit(id, 1, &"old".repeat(2000)));
    }
    storage.submit(Commit { replaces_log: true, ..log_commit(301, 1, "whole state") });
    storage.submit(log_commit(302, 1, "after"));
    bench.wait_until_durable(CommitId(302));
    assert!(storage.log_bytes() < 10_000, "the old log no longer counts");
    // More commits, so that void files are used again.
    for id in 303..=320 {
        storage.submit(log_commit(id, 1, "more"));
        bench.wait_until_durable(CommitId(id));
    }
    drop(storage);
    let (_, recovery) = bench.open();
    let position = recovery.log.iter().position(|record| record.body == "whole state").unwrap();
    assert_eq!(recovery.log.len() - position, 20);
    assert_eq!(position, 0, "what it stands for is not read any more");
}

fn a_sweep_removes_all_pieces_but_those_behind_it(bench: &mut dyn Bench) {
    let (mut storage, _) = bench.open();
    let key = |name: &str, piece| keys::data_piece(crate::ring::Position(7), name.as_bytes(), piece);
    let put = |name, piece| (key(name, piece), Some(text("x")));
    let commit = |id, batch| Commit { id: CommitId(id), state: vec![batch], ..Commit::default() };
    storage.submit(commit(1, vec![put("a", 1), put("a", 2), put("a", 3), put("b", 1), put("c", 1)]));
    storage.submit(commit(
        2,
        vec![(key("a", 0), None), put("a", 1), (key("b", 0), None), (key("none", 0), None)],
    ));
    bench.wait_until_written(CommitId(2));
    let left = |storage: &dyn Storage| -> Vec<Bytes> {
        storage.scan(b"c", b"d", 1 << 20).unwrap().into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(left(storage.as_ref()), [key("a", 1), key("c", 1)]);
    drop(storage);
    assert_eq!(left(bench.open().0.as_ref()), [key("a", 1), key("c", 1)]);
}

fn state_is_read_back_and_ranges_are_ordered(bench: &mut dyn Bench) {
    let (mut storage, _) = bench.open();
    storage
        .submit(state_commit(1, &[("b", Some("2")), ("a", Some("1")), ("c", Some("3")), ("d", Some("4"))]));
    storage.submit(state_commit(2, &[("b", Some("two")), ("c", None)]));
    bench.wait_until_written(CommitId(2));
    let check = |storage: &dyn Storage| {
        assert_eq!(storage.get(b"b").unwrap(), Some(text("two")));
        assert_eq!(storage.get(b"c").unwrap(), None);
        let rows = storage.scan(b"a", b"d", 1 << 20).unwrap();
        assert_eq!(rows, vec![(text("a"), text("1")), (text("b"), text("two"))]);
        assert_eq!(storage.scan(b"a", b"z", 1).unwrap().len(), 1, "a scan always makes progress");
    };
    check(storage.as_ref());
    drop(storage);
    check(bench.open().0.as_ref());
}

fn a_tree_that_is_replaced_holds_what_replaced_it(bench: &mut dyn Bench) {
    let (mut storage, _) = bench.open();
    storage.submit(log_commit(1, 1, "a"));
    storage.submit(state_commit(2, &[("a", Some("1")), ("b", Some("2"))]));
    bench.wait_until_written(CommitId(2));
    storage.submit(Commit { replaces_tree: true, ..state_commit(3, &[("b", Some("new"))]) });
    storage.submit(state_commit(4, &[("c", Some("3"))]));
    bench.wait_until_written(CommitId(4));
    let expected = vec![(text("b"), text("new")), (text("c"), text("3"))];
    assert_eq!(storage.scan(b"a", b"z", 1 << 20).unwrap(), expected);
    drop(storage);
    let (storage, recovery) = bench.open();
    assert_eq!(storage.scan(b"a", b"z", 1 << 20).unwrap(), expected);
    assert_eq!(recovery.log.len(), 1, "the log is another matter");
}

macro_rules! conformance {
    ($($test:ident),*) => {
        mod memory_conforms {
            $(#[test] fn $test() { super::$test(&mut super::Memory(super::MemoryDisk::default())); })*
        }
        mod disk_conforms {
            $(#[test] fn $test() { super::$test(&mut super::Disk::new()); })*
        }
    };
}

conformance!(
    log_survives_in_order,
    a_replacing_commit_stands_for_everything_before,
    a_sweep_removes_all_pieces_but_those_behind_it,
    state_is_read_back_and_ranges_are_ordered,
    a_tree_that_is_replaced_holds_what_replaced_it
);

#[test]
fn memory_loses_exactly_what_was_not_flushed() {
    let disk = MemoryDisk::default();
    let (mut storage, _) = disk.open();
    for id in 1..=4 {
        storage.submit(log_commit(id, 1, &id.to_string()));
    }
    assert_eq!(disk.flush_one(), Some(CommitId(1)));
    disk.crash(1);
    assert_eq!(disk.open().1.log, vec![log_record(1, "1"), log_record(1, "2")]);
}

fn open_error(dir: &std::path::Path) -> String {
    open_when_free(dir, |_| {}).unwrap_err().to_string()
}

#[test]
fn a_wiped_disk_and_a_lost_witness_are_refused() {
    let empty = tempfile::tempdir().unwrap();
    assert!(open_error(empty.path()).contains("must not come back under its old identity"));

    let mut bench = Disk::new();
    let (mut storage, _) = bench.open();
    let second = DiskStorage::open(bench.dir.path(), &owner(), OPTIONS, |_| {}).unwrap_err().to_string();
    assert!(second.contains("in use by another process"));
    storage.submit(log_commit(1, 1, "a"));
    bench.wait_until_durable(CommitId(1));
    drop(storage);
    drop(bench.open());
    std::fs::remove_file(bench.dir.path().join("witness")).unwrap();
    assert!(open_error(bench.dir.path()).contains("witness file is missing"));
    // A bootstrap file put there by hand does not turn it into a first start.
    std::fs::write(bench.dir.path().join(BOOTSTRAP_FILE), b"").unwrap();
    assert!(open_error(bench.dir.path()).contains("this is not a first start"));
}

#[test]
fn a_setting_out_of_range_is_an_error_of_the_setting() {
    let disk = Disk::new();
    let tiny_cache = DiskOptions { cache_bytes: 255, ..OPTIONS };
    let no_segment = DiskOptions { segment_bytes: 0, ..OPTIONS };
    for (options, name) in [(tiny_cache, "cache_bytes = 255"), (no_segment, "segment_bytes = 0")] {
        let opened = DiskStorage::open(disk.dir.path(), &owner(), options, |_| {});
        let Err(StorageError::Setting(said)) = opened.map(drop) else { panic!("{name} is no damage") };
        assert!(said.contains(name) && said.contains("are allowed"), "{said}");
    }
}
