//! A group alone, over a store that a crash left in the middle of something.

use super::message::{Offer, Piece};
use super::state::install::{Here, Install};
use super::*;
use crate::kv::{PartSet, Parts, Reached, StateRoot};
use crate::limits::Limits;
use crate::ring::{GroupId, Position, found_without_keys};
use crate::storage::memory::{MemoryDisk, MemoryStorage};
use crate::storage::{Commit, StateWrite, keys};
use tetrachord_consensus::codec;
use tetrachord_consensus::paxos::{Ballot, Record};
use tetrachord_consensus::{Epoch, Options, Slot};

const GROUP: GroupId = GroupId(1);

fn tenure() -> Arc<Tenure> {
    Arc::new(found_without_keys(1, 3, 3).remove(0))
}

fn parts() -> Parts {
    Parts::from(&*tenure())
}

/// A row that was written by somebody.
fn row(position: u64, name: &[u8], body: &[u8]) -> Row {
    let raw = keys::data(Position(position), name);
    let record = kv::seal(&raw, body);
    (raw, record)
}

fn settings() -> Settings {
    Settings {
        limits: Limits::default(),
        options: Options::default(),
        overlay_bytes_max: 1 << 20,
        retain_bytes: 1 << 20,
        pinned_bytes: 1 << 20,

        byzantine: None,
    }
}

fn submit(disk: &MemoryDisk, storage: &mut MemoryStorage, id: u64, state: Vec<Vec<StateWrite>>) -> CommitId {
    storage.submit(Commit { id: CommitId(id), state, ..Commit::default() });
    disk.settle().expect("one commit is pending")
}

/// What a replica that was given a state has logged at least.
fn promised() -> Vec<Bytes> {
    let ballot = Ballot { epoch: Epoch(1), round: 1, replica: ReplicaId(1) };
    vec![codec::encode(&Record::Promise { ballot })]
}

/// A replica that has applied something and knows of no promise has forgotten one.
#[test]
fn a_state_without_any_record_of_its_group_is_refused() {
    let disk = MemoryDisk::default();
    let (mut storage, _) = disk.open();
    let applied = Reached { epoch: 1, slot: 7, chain: [3; 32], ..Reached::default() };
    let row = (keys::applied(GROUP), Some(applied.encode(&keys::applied(GROUP))));
    submit(&disk, &mut storage, 1, vec![vec![row]]);
    let open = |records: &[Bytes]| Group::open(&storage, tenure(), NodeId(1), &settings(), records);
    let refused = open(&[]).unwrap_err();
    assert!(
        matches!(&refused, OpenError::Storage(StorageError::StateLost(text)) if text.contains("slot 7")),
        "{refused}"
    );
    assert!(open(&promised()).is_ok());
}

#[test]
fn a_crash_between_clearing_and_copying_is_finished_at_the_next_start() {
    let disk = MemoryDisk::default();
    let (mut storage, _) = disk.open();
    let applied = Reached { epoch: 1, slot: 7, chain: [3; 32], ..Reached::default() };
    let parts = parts().all().to_bytes();
    let mark =
        Bytes::from([&[1], parts.as_slice(), applied.encode(&keys::installing(GROUP)).as_ref()].concat());
    let old_value = keys::data(Position::of_key(b"old"), b"old");
    // An old session is gone already, what it was told is not: without it that makes no sense.
    let state = vec![
        (keys::installing(GROUP), Some(mark)),
        (keys::outcome(GROUP, 9, 1), Some(Bytes::from_static(b"what a session was told"))),
        (old_value.clone(), Some(Bytes::from_static(b"of the old state"))),
    ];
    let mut last = submit(&disk, &mut storage, 1, vec![state]);
    let mut group =
        Group::open(&storage, tenure(), NodeId(1), &settings(), &promised()).expect("the snapshot counts");
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
    assert_eq!(group.machine().reached(), &applied);
    assert_eq!(storage.get(&old_value).unwrap(), None);
    assert_eq!(group.engine().decided, Slot(7));
    drop(group);
    assert!(Group::open(&storage, tenure(), NodeId(1), &settings(), &promised()).is_ok());
}

#[test]
fn a_last_piece_with_a_foreign_row_makes_no_snapshot() {
    let (storage, _) = MemoryDisk::default().open();
    let begin = || Install::begin(&storage, parts(), NodeId(2), 1).unwrap().0;
    let piece = |key: Bytes| {
        let rows = vec![(key, Bytes::from_static(b"record"))];
        let mut hasher = message::RowHasher::default();
        hasher.add(&rows);
        let applied = Reached { epoch: 1, slot: 7, ..Reached::default() };
        Piece { transfer: 1, index: 0, first: 0, rows, end: Some((applied, hasher.finish())) }
    };
    let mut good = begin();
    assert!(good.gather(piece(keys::data(Position(1), b"k"))).is_some());
    assert!(good.applied().is_some() && good.has_taken(0));
    let mut bad = begin();
    assert!(bad.gather(piece(keys::applied(GroupId(9)))).is_none());
    assert!(bad.applied().is_none(), "part of it was refused, so it must never count as whole");
}

type Row = (Bytes, Bytes);

/// Rows of two parts, as a state with proof would name them.
fn proven_rows() -> (Vec<Row>, StateRoot) {
    let row = |position: u64, name: &str| row(position, name.as_bytes(), name.as_bytes());
    let rows = vec![row(1, "a"), row(1, "b"), row(2, "c"), row(u64::MAX, "d")];
    let mut root = StateRoot::empty(parts());
    rows.iter().for_each(|(raw, record)| root.change(raw, None, Some(record)));
    (rows, root)
}

fn taking(root: &StateRoot, earlier: Option<Install>) -> Install {
    let (storage, _) = MemoryDisk::default().open();
    let applied = Reached { epoch: 1, slot: 7, ..Reached::default() };
    let offer = Offer { transfer: 3, applied, hashes: root.hashes(), proof: Bytes::new() };
    let here = Here { root: StateRoot::empty(parts()), has_pieces: false, unreadable: PartSet::default() };
    let from = (NodeId(2), &offer);
    Install::offered(&storage, parts(), from, root.clone(), &here, earlier).unwrap().0
}

fn give(install: &mut Install, index: u64, rows: &[Row], is_last: bool) -> bool {
    let end = is_last.then(|| (Reached::default(), [0; 32]));
    install.gather(Piece { transfer: 3, index, first: 0, rows: rows.to_vec(), end }).is_some()
}

#[test]
fn a_state_is_taken_part_by_part_and_what_held_stays_for_the_next_source() {
    let (rows, root) = proven_rows();
    let mut install = taking(&root, None);
    assert_eq!(install.asked().iter().collect::<Vec<_>>(), [0, 63]);
    assert!(give(&mut install, 0, &rows[..2], false) && give(&mut install, 1, &rows[2..], true));
    assert_eq!(install.applied().map(|applied| applied.slot), Some(7));
    // Another source gives a wrong last part: the first one is not asked for again.
    let mut install = taking(&root, None);
    assert!(give(&mut install, 0, &rows[..3], false));
    let wrong = row(u64::MAX, b"d", b"a lie");
    assert!(!give(&mut install, 1, &[wrong], true));
    assert!(install.is_refused() && install.applied().is_none());
    let mut install = taking(&root, Some(install));
    assert_eq!(install.asked().iter().collect::<Vec<_>>(), [63]);
    assert!(give(&mut install, 0, &rows[3..], true) && install.applied().is_some());
}

/// The hash of a part is a sum: a row that comes 65,536 times adds nothing to it. So rows must ascend.
#[test]
fn a_row_that_comes_twice_or_late_is_refused() {
    let (rows, root) = proven_rows();
    let refused: [Vec<Row>; 4] = [
        vec![rows[0].clone(), rows[0].clone()],
        vec![rows[1].clone(), rows[0].clone()],
        vec![rows[3].clone(), rows[0].clone()],
        vec![rows[0].clone(), row(1 << 59, b"unasked", b"x")],
    ];
    for rows in refused {
        let mut install = taking(&root, None);
        assert!(!give(&mut install, 0, &rows, false), "{rows:?}");
        assert!(install.is_refused());
    }
    let bogus = row(3, b"never written", b"x");
    let many = vec![bogus; 1 << 16];
    let mut install = taking(&root, None);
    let all: Vec<Row> = rows[..3].iter().cloned().chain(many).chain([rows[3].clone()]).collect();
    assert!(!give(&mut install, 0, &all, true) && install.applied().is_none());
}

/// How many rows a part has is proved with it: a source that sends more is refused at the first of them, and none is stored.
#[test]
fn more_rows_or_bytes_than_a_part_has_are_refused_before_its_end() {
    let (rows, root) = proven_rows();
    let beside = |name: &str, bytes: usize| row(2, name.as_bytes(), &vec![0; bytes]);
    let mut install = taking(&root, None);
    assert!(give(&mut install, 0, &rows[..3], false));
    assert!(!give(&mut install, 1, &[beside("d", 0)], false) && install.is_refused());
    let mut install = taking(&root, None);
    assert!(
        !give(&mut install, 0, &[beside("c", 100)], false) && install.is_refused(),
        "fewer rows, more bytes"
    );
    let large: Vec<Row> = (0..100).map(|index| row(3, &[index], &[0; 6_000])).collect();
    let mut root = StateRoot::empty(parts());
    large.iter().for_each(|(raw, record)| root.change(raw, None, Some(record)));
    let mut install = taking(&root, None);
    assert!(!give(&mut install, 0, &large, false) && install.is_refused(), "a piece that is too large");
    let mut install = taking(&root, None);
    assert!(give(&mut install, 0, &large[..40], false) && give(&mut install, 1, &large[40..80], false));
    assert!(give(&mut install, 2, &large[80..], true) && install.applied().is_some());
}

/// An empty row takes two bytes in a message and sixty in memory.
#[test]
fn a_message_of_very_many_empty_rows_is_none() {
    let piece =
        |count| Piece { transfer: 1, index: 0, first: 0, rows: vec![Row::default(); count], end: None };
    let read = |count| decode(&encode(&GroupMessage::Piece(piece(count))));
    assert!(read(1_000).is_some());
    assert_eq!(read(1 << 20), None);
    let offer = |count| {
        let hashes = vec![Bytes::new(); count];
        Offer { transfer: 1, applied: Reached::default(), hashes, proof: Bytes::new() }
    };
    let read = |count| decode(&encode(&GroupMessage::Offer(offer(count))));
    assert!(read(65).is_some());
    assert_eq!(read(1 << 20), None);
}

/// A source that does not wait for acknowledgements fills nothing: what is not durable yet is a window of pieces at most.
#[test]
fn pieces_that_are_not_durable_are_few() {
    let disk = MemoryDisk::default();
    let (storage, _) = disk.open();
    let mut group = Group::open(&storage, tenure(), NodeId(1), &settings(), &[]).unwrap();
    for index in 0..100 {
        let rows = vec![(keys::data(Position(index), b"k"), Bytes::from_static(b"record"))];
        let piece = GroupMessage::Piece(Piece { transfer: 7, index, first: 0, rows, end: None });
        group.receive(&storage, NodeId(2), &encode(&piece)).unwrap();
    }
    assert_eq!(group.take_writes(CommitId(1)).len() as u64, crate::limits::SNAPSHOT_WINDOW);
}

/// A state that was being gathered when the node ended, or when its own was found to be damaged, is no part of the empty one.
#[test]
fn what_was_gathered_of_another_state_is_not_copied_into_the_empty_one() {
    let disk = MemoryDisk::default();
    let (mut storage, _) = disk.open();
    let raw = keys::session(GROUP, 9);
    let record = || Some(Bytes::from_static(b"of another state"));
    let state = vec![(keys::staged(GROUP, &raw), record()), (keys::session(GROUP, 8), record())];
    submit(&disk, &mut storage, 1, vec![state]);
    let (mut install, clearing) = Install::empty(&storage, parts(), Reached::default()).unwrap();
    submit(&disk, &mut storage, 2, clearing);
    for id in 3.. {
        let Some(writes) = install.next_batch(&storage).unwrap() else { break };
        submit(&disk, &mut storage, id, vec![writes]);
    }
    let (from, to) = keys::session_bounds(GROUP);
    assert_eq!(storage.scan(&from, &to, 1 << 20).unwrap(), Vec::new());
    let (from, to) = keys::staged_bounds(GROUP);
    assert_eq!(storage.scan(&from, &to, 1 << 20).unwrap(), Vec::new());
}

/// Pieces come over links that lose their order when they are made anew. Once its first piece had been acknowledged, a
/// snapshot that was begun again could not go on: nobody would give that piece again.
#[test]
fn a_first_piece_that_is_late_begins_nothing_again() {
    let disk = MemoryDisk::default();
    let (mut storage, _) = disk.open();
    let mut group = Group::open(&storage, tenure(), NodeId(1), &settings(), &promised()).unwrap();
    let mut last = 0;
    let mut receive = |transfer: u64, index: u64, first: u64| {
        let rows = vec![(keys::data(Position(index), b"k"), Bytes::from_static(b"record"))];
        let piece = GroupMessage::Piece(Piece { transfer, index, first, rows, end: None });
        group.receive(&storage, NodeId(2), &encode(&piece)).unwrap();
        last += 1;
        let writes = group.take_writes(CommitId(last));
        if !writes.is_empty() {
            let commit = submit(&disk, &mut storage, last, writes);
            group.written(&storage, commit).unwrap();
        }
        let answers = group.take_outputs().into_iter().filter_map(|output| match output {
            Output::Send { body, .. } => decode(&body),
            _ => None,
        });
        answers.collect::<Vec<_>>()
    };
    let stored = |transfer, index| vec![GroupMessage::PieceStored { transfer, index }];
    let unknown = |transfer| vec![GroupMessage::PieceUnknown { transfer }];
    assert_eq!(receive(7, 0, 0), stored(7, 0));
    assert_eq!(receive(9, 0, 0), stored(9, 0));
    assert_eq!(receive(7, 0, 0), unknown(7), "it would take the place of what goes on");
    assert_eq!(receive(9, 1, 0), stored(9, 1));
    assert_eq!(receive(9, 0, 0), stored(9, 0), "its acknowledgement was lost");
    assert_eq!(receive(9, 3, 2), [], "the one before it is still to come");
    assert_eq!(receive(9, 2, 2), stored(9, 2));
    assert_eq!(receive(11, 0, 0), stored(11, 0), "the sender begins anew");
    // As after a restart in the middle of it, when the first piece comes once more.
    assert_eq!(receive(11, 3, 2), unknown(11), "the second piece was acknowledged, and is not here");
    assert_eq!(receive(11, 1, 0), unknown(11), "it is over");
    assert_eq!(receive(13, 0, 0), stored(13, 0));
}
