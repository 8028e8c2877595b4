//! The log over real files: rolling, recycling, torn tails, rot.

use super::*;
use crate::ring::TenureId;
use std::collections::BTreeMap;

const STORE: StoreId = StoreId([3; 16]);
const SEGMENT: usize = 16 << 10;

fn payload(record: &[u8]) -> Payload {
    let body = Bytes::copy_from_slice(record);
    Payload::of(&[LogRecord { tenure: TenureId::default(), kind: 0, body }])
}

fn append(log: &mut Log, record: &str) {
    log.append(payload(record.as_bytes()), false).unwrap();
}

fn records(read: &ReadLog) -> Vec<String> {
    read.records.iter().map(|record| String::from_utf8(record.body.to_vec()).unwrap()).collect()
}

fn reopen(dir: &Path) -> Result<(Log, ReadLog), StorageError> {
    Log::open(dir, STORE, SEGMENT)
}

type Image = BTreeMap<PathBuf, Vec<u8>>;

fn image(dir: &Path) -> Image {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn restore(dir: &Path, image: &Image) {
    std::fs::remove_dir_all(dir).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    for (path, bytes) in image {
        std::fs::write(path, bytes).unwrap();
    }
}

#[test]
fn frames_survive_rolling_recycling_and_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::create(dir.path(), STORE, SEGMENT).unwrap();
    let mut expected = Vec::new();
    for round in 0..60u32 {
        let record = format!("{round}-{}", "x".repeat(3_000));
        append(&mut log, &record);
        log.prepare().unwrap();
        expected.push(record);
        if round % 20 == 19 {
            log.append(payload(b"everything"), true).unwrap();
            log.recycle().unwrap();
            expected = vec!["everything".to_string()];
        }
        if round % 7 == 0 {
            drop(log);
            let (again, read) = reopen(dir.path()).unwrap();
            assert_eq!(records(&read), expected, "round {round}");
            log = again;
        }
    }
    let files = image(dir.path()).len();
    assert!(files <= 2 + SPARES_MAX, "{files} files: void segments are used again");
    let huge = "y".repeat(5 * SEGMENT);
    append(&mut log, &huge);
    append(&mut log, "after");
    let (_, read) = reopen(dir.path()).unwrap();
    assert_eq!(records(&read)[1..], [huge, "after".to_string()], "a frame larger than a segment");
}

#[test]
fn a_torn_tail_is_cut_and_the_log_goes_on_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::create(dir.path(), STORE, SEGMENT).unwrap();
    append(&mut log, "one");
    let (at, path) = (log.current.at, segment_path(dir.path(), 1));
    append(&mut log, "two, long enough to be torn in many places");
    let whole = image(dir.path());
    for cut in at..log.current.at - 8 {
        restore(dir.path(), &whole);
        let mut bytes = whole[&path].clone();
        bytes[cut..].fill(0);
        std::fs::write(&path, bytes).unwrap();
        let (mut log, read) = reopen(dir.path()).unwrap();
        assert_eq!(records(&read), ["one"], "cut at {cut}");
        append(&mut log, "deux");
        assert_eq!(records(&reopen(dir.path()).unwrap().1), ["one", "deux"]);
    }
}

#[test]
fn rot_before_an_acknowledged_frame_is_never_cut_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::create(dir.path(), STORE, SEGMENT).unwrap();
    for number in 0..12 {
        append(&mut log, &format!("{number}{}", "z".repeat(3_000)));
    }
    assert!(log.current.place.sequence >= 3, "several segments");
    let whole = image(dir.path());
    let good = records(&reopen(dir.path()).unwrap().1);
    let mut noticed = 0;
    for sequence in 1..=log.current.place.sequence {
        let path = segment_path(dir.path(), sequence);
        for at in (0..whole[&path].len()).step_by(37) {
            restore(dir.path(), &whole);
            let mut bytes = whole[&path].clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, bytes).unwrap();
            match reopen(dir.path()) {
                Err(StorageError::Corrupt { .. }) => noticed += 1,
                Err(error) => panic!("{error}"),
                // Only the very last frame may go without a word; the witness knows of it.
                Ok((_, read)) => assert!(read.records.len() >= 11 && good.starts_with(&records(&read))),
            }
        }
        restore(dir.path(), &whole);
        std::fs::remove_file(&path).unwrap();
        if sequence < log.current.place.sequence {
            assert!(reopen(dir.path()).is_err(), "segment {sequence} is missing");
        }
    }
    assert!(noticed > 500, "{noticed} damaged logs were refused");
}

#[test]
fn a_segment_or_base_that_was_never_finished_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::create(dir.path(), STORE, SEGMENT).unwrap();
    append(&mut log, "one");
    append(&mut log, "two");
    let before = image(dir.path());
    for is_base in [false, true] {
        restore(dir.path(), &before);
        let mut log = reopen(dir.path()).unwrap().0;
        log.roll(is_base).unwrap();
        let (mut log, read) = reopen(dir.path()).unwrap();
        assert_eq!(records(&read), ["one", "two"], "base: {is_base}");
        append(&mut log, "three");
        assert_eq!(records(&reopen(dir.path()).unwrap().1), ["one", "two", "three"]);
        // The file under the next name still holds what it was before: nothing of this segment.
        restore(dir.path(), &before);
        let mut log = reopen(dir.path()).unwrap().0;
        let next = segment_path(dir.path(), 2);
        std::fs::copy(segment_path(dir.path(), 1), &next).unwrap();
        assert_eq!(records(&reopen(dir.path()).unwrap().1), ["one", "two"]);
        assert!(!next.exists());
        log.append(payload(b"all"), is_base).unwrap();
        let last = records(&reopen(dir.path()).unwrap().1);
        assert_eq!(last.last().map(String::as_str), Some("all"));
    }
}

#[test]
fn files_of_another_store_are_not_taken_for_ours() {
    let dir = tempfile::tempdir().unwrap();
    append(&mut Log::create(dir.path(), STORE, SEGMENT).unwrap(), "one");
    assert!(Log::open(dir.path(), StoreId([4; 16]), SEGMENT).is_err());
    let other = tempfile::tempdir().unwrap();
    assert!(reopen(other.path()).is_err(), "no segment at all");
}
