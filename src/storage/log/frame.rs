//! The bytes of the write-ahead log: segments that hold frames, each checksummed and chained to the one before.
//!
//! ```text
//! segment  magic "TSEG" | version u8 | store [16] | sequence u64 | is_base u8 | number u64 | hash [32] | CRC32
//!          then zeros up to 4,096 bytes, then frames
//! frame    magic "TF" | version u8 | 0 u8 | payload bytes u32 | number u64 | CRC32 | payload | hash [32] | zeros to 8
//! payload  { group u128 | epoch u64 | kind u8 | length u32 | record } *
//! ```
//!
//! * All numbers are big-endian.
//! * `number` and `hash` of a segment are those of the last frame before it; it is where the chain goes on.
//! * The CRC of a frame's head also covers the store's name and the segment's sequence, so that what an earlier use of
//!   the file left behind is never taken for a frame of this one.
//! * `hash` is BLAKE3 over the previous frame's hash, the head and the payload: a frame that verifies is whole, and is
//!   where it belongs.

use crate::ring::{GroupId, StoreId, TenureId};
use crate::storage::LogRecord;
use bytes::{Buf, BufMut, Bytes};

const SEGMENT_MAGIC: &[u8; 4] = b"TSEG";
const FRAME_MAGIC: &[u8; 2] = b"TF";
const VERSION: u8 = 1;
const HASH_BYTES: usize = 32;
const HEAD_BYTES: usize = 2 + 1 + 1 + 4 + 8 + 4;
const RECORD_HEAD_BYTES: usize = 16 + 8 + 1 + 4;
const SEGMENT_HEADER_BYTES: usize = 4 + 1 + 16 + 8 + 1 + 8 + HASH_BYTES + 4;

/// Frames begin at multiples of this, from the beginning of the file.
const ALIGNMENT: usize = 8;

/// Where the first frame of a segment begins: in a page of its own.
pub(in crate::storage) const FRAMES_START: usize = 4096;

/// Where the log continues: the number of its last frame, and that frame's hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::storage) struct LogEnd {
    pub(in crate::storage) number: u64,
    pub(in crate::storage) hash: [u8; HASH_BYTES],
}

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) store: StoreId,
    pub(super) sequence: u64,
    /// The first frame stands for everything before it.
    pub(super) is_base: bool,
    /// The last frame before this segment.
    pub(super) before: LogEnd,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        bytes.put_slice(SEGMENT_MAGIC);
        bytes.put_u8(VERSION);
        bytes.put_slice(&self.store.0);
        bytes.put_u64(self.sequence);
        bytes.put_u8(u8::from(self.is_base));
        bytes.put_u64(self.before.number);
        bytes.put_slice(&self.before.hash);
        bytes.put_u32(crc32fast::hash(&bytes));
        assert_eq!(bytes.len(), SEGMENT_HEADER_BYTES, "the header has a fixed size");
        bytes
    }

    /// `None`: these bytes are no header of this version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.get(..SEGMENT_HEADER_BYTES)?.split_at(SEGMENT_HEADER_BYTES - 4);
        let is_whole = crc32fast::hash(body) == u32::from_be_bytes(crc.try_into().ok()?);
        let mut rest = body.strip_prefix(SEGMENT_MAGIC)?.strip_prefix(&[VERSION]).filter(|_| is_whole)?;
        let mut store = StoreId::default();
        rest.copy_to_slice(&mut store.0);
        let (sequence, is_base, number) = (rest.get_u64(), rest.get_u8() == 1, rest.get_u64());
        let hash = rest.try_into().ok()?;
        Some(Self { store, sequence, is_base, before: LogEnd { number, hash } })
    }
}

/// What makes a frame part of one segment and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) store: StoreId,
    pub(super) sequence: u64,
}

impl Place {
    fn head_crc(&self, head: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.store.0);
        hasher.update(&self.sequence.to_be_bytes());
        hasher.update(head);
        hasher.finalize()
    }
}

/// The payload of one frame.
#[derive(Debug)]
pub(in crate::storage) struct Payload(Vec<u8>);

impl Payload {
    /// With room for the records, so that nothing is copied while it grows.
    pub(in crate::storage) fn of(records: &[LogRecord]) -> Self {
        let bytes: usize = records.iter().map(|record| RECORD_HEAD_BYTES + record.body.len()).sum();
        let mut payload = Self(Vec::with_capacity(HEAD_BYTES + bytes + HASH_BYTES + ALIGNMENT));
        // The head is filled in last, in front of the records.
        payload.0.resize(HEAD_BYTES, 0);
        for record in records {
            payload.push(record);
        }
        payload
    }

    fn push(&mut self, record: &LogRecord) {
        self.0.put_u128(record.tenure.group.0);
        self.0.put_u64(record.tenure.epoch);
        self.0.put_u8(record.kind);
        self.0.put_u32(u32::try_from(record.body.len()).expect("records are a few MiB at most"));
        self.0.put_slice(&record.body);
    }

    pub(in crate::storage) fn is_empty(&self) -> bool {
        self.0.len() == HEAD_BYTES
    }

    /// Bytes of the frame that this payload will be.
    pub(super) fn frame_bytes(&self) -> usize {
        (self.0.len() + HASH_BYTES).next_multiple_of(ALIGNMENT)
    }

    /// The frame that follows `end`, which moves to it.
    pub(super) fn into_frame(mut self, place: Place, end: &mut LogEnd) -> Vec<u8> {
        let number = end.number + 1;
        let payload_bytes = u32::try_from(self.0.len() - HEAD_BYTES).expect("a frame is below 4 GiB");
        let mut head = Vec::with_capacity(HEAD_BYTES);
        head.put_slice(FRAME_MAGIC);
        head.put_u8(VERSION);
        head.put_u8(0);
        head.put_u32(payload_bytes);
        head.put_u64(number);
        head.put_u32(place.head_crc(&head));
        self.0[..HEAD_BYTES].copy_from_slice(&head);
        *end = LogEnd { number, hash: chain(&end.hash, &self.0) };
        let length = self.frame_bytes();
        self.0.put_slice(&end.hash);
        self.0.resize(length, 0);
        self.0
    }
}

fn chain(previous: &[u8; HASH_BYTES], head_and_payload: &[u8]) -> [u8; HASH_BYTES] {
    *blake3::Hasher::new().update(previous).update(head_and_payload).finalize().as_bytes()
}

/// A frame that verifies.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) end: LogEnd,
    pub(super) records: Vec<LogRecord>,
    /// Where the next frame begins.
    pub(super) next: usize,
}

/// Reads the frame at `at` that follows `end`; `None` if there is no whole one.
pub(super) fn read(segment: &Bytes, at: usize, place: Place, end: &LogEnd) -> Option<Frame> {
    let (number, payload_bytes) = read_head(segment.get(at..)?, place)?;
    let payload_end = at + HEAD_BYTES + payload_bytes;
    let hash: [u8; HASH_BYTES] = segment.get(payload_end..payload_end + HASH_BYTES)?.try_into().ok()?;
    if number != end.number + 1 || hash != chain(&end.hash, &segment[at..payload_end]) {
        return None;
    }
    let records = split(segment.slice(at + HEAD_BYTES..payload_end))?;
    let next = (payload_end + HASH_BYTES).next_multiple_of(ALIGNMENT);
    Some(Frame { end: LogEnd { number, hash }, records, next })
}

fn read_head(bytes: &[u8], place: Place) -> Option<(u64, usize)> {
    let head = bytes.get(..HEAD_BYTES)?;
    let mut rest = head.strip_prefix(FRAME_MAGIC)?.strip_prefix(&[VERSION, 0])?;
    let (payload_bytes, number, crc) = (rest.get_u32(), rest.get_u64(), rest.get_u32());
    (crc == place.head_crc(&head[..HEAD_BYTES - 4])).then_some((number, payload_bytes as usize))
}

fn split(mut payload: Bytes) -> Option<Vec<LogRecord>> {
    let mut records = Vec::new();
    while !payload.is_empty() {
        let group = GroupId(payload.try_get_u128().ok()?);
        let (epoch, kind) = (payload.try_get_u64().ok()?, payload.try_get_u8().ok()?);
        let length = payload.try_get_u32().ok()? as usize;
        if payload.len() < length {
            return None;
        }
        records.push(LogRecord { tenure: TenureId { group, epoch }, kind, body: payload.split_to(length) });
    }
    Some(records)
}

/// The number of a frame that begins behind `from` and comes after `number`, if the segment holds one. Only its head is
/// looked at: that it was begun is what counts.
pub(super) fn find_later(segment: &[u8], from: usize, place: Place, number: u64) -> Option<u64> {
    let starts = (from.next_multiple_of(ALIGNMENT)..segment.len()).step_by(ALIGNMENT);
    starts
        .filter_map(|at| read_head(&segment[at..], place))
        .map(|(later, _)| later)
        .find(|later| *later > number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { store: StoreId([7; 16]), sequence: 3 };

    fn frame(end: &mut LogEnd, record: &[u8]) -> Vec<u8> {
        let of = |group: u128, epoch: u64, kind: u8, body: &[u8]| {
            let tenure = TenureId { group: GroupId(group), epoch };
            LogRecord { tenure, kind, body: Bytes::copy_from_slice(body) }
        };
        let records = [of(2, 7, 3, record), of(u128::MAX, u64::MAX, 0, &[])];
        let payload = Payload::of(&records);
        let expected = payload.frame_bytes();
        let bytes = payload.into_frame(PLACE, end);
        assert_eq!(bytes.len(), expected);
        bytes
    }

    #[test]
    fn frames_come_back_in_order_and_only_where_they_belong() {
        let mut end = LogEnd::default();
        let first = frame(&mut end, b"one");
        let middle = end;
        let second = frame(&mut end, &[5; 1000]);
        let segment = Bytes::from([first.clone(), second.clone()].concat());
        let read_first = read(&segment, 0, PLACE, &LogEnd::default()).unwrap();
        assert_eq!((read_first.end, read_first.next), (middle, first.len()));
        let tenure = TenureId { group: GroupId(2), epoch: 7 };
        let one = LogRecord { tenure, kind: 3, body: Bytes::from_static(b"one") };
        assert_eq!(read_first.records[0], one);
        assert_eq!(read_first.records[1].tenure, TenureId { group: GroupId(u128::MAX), epoch: u64::MAX });
        let read_second = read(&segment, read_first.next, PLACE, &middle).unwrap();
        assert_eq!((read_second.end, read_second.records[0].body.len()), (end, 1000));
        assert!(read(&segment, first.len(), PLACE, &LogEnd::default()).is_none(), "not its predecessor");
        for place in [Place { sequence: 4, ..PLACE }, Place { store: StoreId([8; 16]), ..PLACE }] {
            assert!(read(&segment, 0, place, &LogEnd::default()).is_none(), "not its place");
        }
    }

    #[test]
    fn no_flipped_bit_and_no_cut_passes() {
        let mut end = LogEnd::default();
        let bytes = frame(&mut end, b"record");
        let covered = HEAD_BYTES + 2 * RECORD_HEAD_BYTES + "record".len() + HASH_BYTES;
        for bit in 0..covered * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged.into(), 0, PLACE, &LogEnd::default()).is_none(), "bit {bit}");
        }
        for length in 0..covered {
            let cut = Bytes::copy_from_slice(&bytes[..length]);
            assert!(read(&cut, 0, PLACE, &LogEnd::default()).is_none(), "cut to {length}");
        }
    }

    #[test]
    fn a_later_frame_is_found_behind_a_damaged_one() {
        let mut end = LogEnd::default();
        let mut segment = frame(&mut end, b"one");
        segment[5] ^= 1;
        assert_eq!(find_later(&segment, 0, PLACE, 0), None);
        segment.extend(frame(&mut end, b"two"));
        assert_eq!(find_later(&segment, 0, PLACE, 0), Some(2));
        assert_eq!(find_later(&segment, 0, PLACE, 2), None);
        assert_eq!(find_later(&segment, 0, Place { sequence: 9, ..PLACE }, 0), None);
    }

    #[test]
    fn a_segment_header_survives_the_round_trip_and_notices_damage() {
        let before = LogEnd { number: 77, hash: [9; 32] };
        let header = SegmentHeader { store: StoreId([1; 16]), sequence: 5, is_base: true, before };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Some(header));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&damaged), None, "bit {bit}");
        }
    }
}
