//! One suite for every store: what [`super::Storage`] promises, asked of each implementation.

use super::memory::MemoryDisk;
use super::sled::{BOOTSTRAP_FILE, Report, SledStorage};
use super::*;
use std::sync::mpsc::{Receiver, channel};

/// A disk that can be opened again and again, and how to wait for its barriers.
trait Bench {
    fn open(&mut self) -> (Box<dyn Storage>, Recovery);
    fn wait_for(&mut self, id: CommitId);
}

struct Memory(MemoryDisk);

impl Bench for Memory {
    fn open(&mut self) -> (Box<dyn Storage>, Recovery) {
        let (storage, recovery) = self.0.open();
        (Box::new(storage), recovery)
    }

    fn wait_for(&mut self, id: CommitId) {
        while self.0.flush_one().is_some_and(|done| done < id) {}
    }
}

struct Sled {
    dir: tempfile::TempDir,
    reports: Option<Receiver<Report>>,
}

impl Sled {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(BOOTSTRAP_FILE), b"").unwrap();
        Self { dir, reports: None }
    }
}

impl Bench for Sled {
    fn open(&mut self) -> (Box<dyn Storage>, Recovery) {
        let (sender, receiver) = channel();
        self.reports = Some(receiver);
        let open = || {
            SledStorage::open(self.dir.path(), 16 << 20, {
                let sender = sender.clone();
                move |report| drop(sender.send(report))
            })
        };
        // The thread of the store before lets go of the directory when it notices that its store was dropped.
        let opened =
            std::iter::repeat_with(open).find(|result| !matches!(result, Err(StorageError::InUse(_))));
        let (storage, recovery) = opened.unwrap().unwrap();
        (Box::new(storage), recovery)
    }

    fn wait_for(&mut self, id: CommitId) {
        let reports = self.reports.as_ref().unwrap();
        loop {
            match reports.recv().unwrap() {
                Report::Durable(done) if done >= id => return,
                Report::Durable(_) => {}
                Report::Failed(error) => panic!("{error}"),
            }
        }
    }
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn log_commit(id: u64, group: u32, record: &str) -> Commit {
    Commit { id: CommitId(id), log: vec![(GroupId(group), text(record))], ..Commit::default() }
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
    bench.wait_for(CommitId(3));
    drop(storage);
    let (_, recovery) = bench.open();
    let expected = vec![(GroupId(1), text("a")), (GroupId(2), text(&large)), (GroupId(1), text("c"))];
    assert_eq!((recovery.log, recovery.incarnation), (expected, 2));
}

fn a_replacing_commit_stands_for_everything_before(bench: &mut dyn Bench) {
    let (mut storage, _) = bench.open();
    for id in 1..=300 {
        storage.submit(log_commit(id, 1, &"old".repeat(2000)));
    }
    storage.submit(Commit { replaces_log: true, ..log_commit(301, 1, "whole state") });
    storage.submit(log_commit(302, 1, "after"));
    bench.wait_for(CommitId(302));
    assert!(storage.log_bytes() < 10_000, "the old log no longer counts");
    // The deletion goes on behind commits; more commits give it room.
    for id in 303..=320 {
        storage.submit(log_commit(id, 1, "more"));
        bench.wait_for(CommitId(id));
    }
    drop(storage);
    let (_, recovery) = bench.open();
    // A store may still hold old records if it was stopped in the middle, but never without the new ones.
    let position = recovery.log.iter().position(|(_, record)| *record == text("whole state")).unwrap();
    assert_eq!(recovery.log.len() - position, 20);
    assert!(position == 0 || recovery.log[..position].iter().all(|(_, record)| record.len() == 6000));
}

fn state_is_read_back_and_ranges_are_ordered(bench: &mut dyn Bench) {
    let (mut storage, _) = bench.open();
    storage
        .submit(state_commit(1, &[("b", Some("2")), ("a", Some("1")), ("c", Some("3")), ("d", Some("4"))]));
    storage.submit(state_commit(2, &[("b", Some("two")), ("c", None)]));
    bench.wait_for(CommitId(2));
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

macro_rules! conformance {
    ($($test:ident),*) => {
        mod memory_conforms {
            $(#[test] fn $test() { super::$test(&mut super::Memory(super::MemoryDisk::default())); })*
        }
        mod sled_conforms {
            $(#[test] fn $test() { super::$test(&mut super::Sled::new()); })*
        }
    };
}

conformance!(
    log_survives_in_order,
    a_replacing_commit_stands_for_everything_before,
    state_is_read_back_and_ranges_are_ordered
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
    assert_eq!(disk.open().1.log, vec![(GroupId(1), text("1")), (GroupId(1), text("2"))]);
}

fn open_error(dir: &std::path::Path) -> String {
    SledStorage::open(dir, 16 << 20, |_| {}).unwrap_err().to_string()
}

#[test]
fn a_wiped_disk_and_a_lost_witness_are_refused() {
    let empty = tempfile::tempdir().unwrap();
    assert!(open_error(empty.path()).contains("must not come back under its old identity"));

    let mut bench = Sled::new();
    let (mut storage, _) = bench.open();
    assert!(open_error(bench.dir.path()).contains("in use by another process"));
    storage.submit(log_commit(1, 1, "a"));
    bench.wait_for(CommitId(1));
    drop(storage);
    drop(bench.open());
    std::fs::remove_file(bench.dir.path().join("witness")).unwrap();
    let refused =
        std::iter::repeat_with(|| open_error(bench.dir.path())).find(|text| !text.contains("in use"));
    assert!(refused.unwrap().contains("witness file is missing"));
}
