//! A group alone, over a store that a crash left in the middle of something.

use super::message::Piece;
use super::*;
use crate::kv::Applied;
use crate::ring::{Position, RingInterval};
use crate::storage::memory::{MemoryDisk, MemoryStorage};
use crate::storage::{Commit, keys};

const GROUP: GroupId = GroupId(1);
const RANGE: RingInterval = RingInterval { start: Position(u64::MAX), end: Position(u64::MAX) };

fn place() -> GroupPlace {
    GroupPlace { id: GROUP, range: RANGE, nodes: vec![NodeId(1), NodeId(2), NodeId(3)] }
}

fn settings() -> Settings {
    Settings {
        limits: Limits::default(),
        quorums: None,
        options: Options::default(),
        overlay_bytes_max: 1 << 20,
        retain_bytes: 1 << 20,

        byzantine: None,
    }
}

fn submit(disk: &MemoryDisk, storage: &mut MemoryStorage, id: u64, state: Vec<Vec<StateWrite>>) -> CommitId {
    storage.submit(Commit { id: CommitId(id), state, ..Commit::default() });
    disk.settle().expect("one commit is pending")
}

#[test]
fn a_crash_between_clearing_and_copying_is_finished_at_the_next_start() {
    let disk = MemoryDisk::default();
    let (mut storage, _) = disk.open();
    let applied = Applied { slot: 7, chain: [3; 32], ..Applied::default() };
    let mark = Bytes::from([&[1], kv::encode_applied(&keys::installing(GROUP), &applied).as_ref()].concat());
    let old_value = keys::data(Position::of_key(b"old"), b"old");
    // One piece of an old session is gone already, the other is not: read together they make no sense.
    let state = vec![
        (keys::installing(GROUP), Some(mark)),
        (keys::session(GROUP, 9, 1), Some(Bytes::from_static(b"the second half of something"))),
        (old_value.clone(), Some(Bytes::from_static(b"of the old state"))),
    ];
    let mut last = submit(&disk, &mut storage, 1, vec![state]);
    let mut group = Group::open(&storage, place(), NodeId(1), &settings(), &[]).expect("the snapshot counts");
    assert!(group.is_installing());
    for round in 2..20 {
        let writes = group.take_writes(CommitId(round));
        if writes.is_empty() {
            break;
        }
        last = submit(&disk, &mut storage, round, writes);
        group.written(&storage, last).unwrap();
    }
    assert!(last > CommitId(3), "clearing, copying and finishing are steps of their own");
    assert!(!group.is_installing());
    assert_eq!(group.machine().applied(), &applied);
    assert_eq!(storage.get(&old_value).unwrap(), None);
    assert_eq!(group.engine().decided, Slot(7));
    drop(group);
    assert!(Group::open(&storage, place(), NodeId(1), &settings(), &[]).is_ok());
}

#[test]
fn a_last_piece_with_a_foreign_row_makes_no_snapshot() {
    let (storage, _) = MemoryDisk::default().open();
    let begin = || Install::begin(&storage, GROUP, RANGE, NodeId(2), 1).unwrap().0;
    let piece = |key: Bytes| {
        let rows = vec![(key, Bytes::from_static(b"record"))];
        let mut hasher = message::RowHasher::default();
        hasher.add(&rows);
        let applied = Applied { slot: 7, ..Applied::default() };
        Piece { transfer: 1, index: 0, rows, end: Some((applied, hasher.finish())), proof: None }
    };
    let mut good = begin();
    assert!(good.gather(piece(keys::data(Position(1), b"k"))).is_some());
    assert!(good.applied().is_some() && good.has_taken(0));
    let mut bad = begin();
    assert!(bad.gather(piece(keys::applied(GroupId(9)))).is_none());
    assert!(bad.applied().is_none(), "part of it was refused, so it must never count as whole");
}
