//! How a value is stored: one record, or several if it is large.
//!
//! ```text
//! first    CRC32 | format u8, now 2 | kind u8 | header length u8 | header | the value's first bytes
//! header   version u64 | when the key ends u64, 0 for never | total length u32 | what later builds add
//! further  CRC32 | bytes
//! ```
//! Each checksum covers the raw key too, so a record that turns up under another key is noticed. What a header holds behind what this
//! build knows is skipped; a kind that it does not know is an error. All numbers are big-endian.

use super::operation::Kind;
use crate::error::StorageError;
use crate::limits::{RECORD_BYTES_MAX, VALUE_BYTES_CAP};
use crate::ring::Position;
use crate::storage::{StateWrite, Storage, keys};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What is stored of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Grows with every change of any key of the group.
    pub version: u64,
    /// What the value is.
    pub kind: Kind,
    /// When the key ends, in log time, in microseconds since 1970; 0 is never. Nothing ends yet.
    pub expiry: u64,
    /// The value.
    pub value: Bytes,
}

const FORMAT: u8 = 2;
const HEADER: usize = 8 + 8 + 4;
const FIRST_HEADER: usize = 4 + 3 + HEADER;
const PIECE_HEADER: usize = 4;

/// A row of a snapshot is stored under a longer key until the whole snapshot is there; it must fit then too.
const ROOM: usize = RECORD_BYTES_MAX - keys::STAGED_PREFIX_BYTES;

fn first_room(key: &[u8]) -> usize {
    ROOM - keys::data(Position(0), key).len() - FIRST_HEADER
}

fn piece_room(key: &[u8]) -> usize {
    ROOM - keys::data_piece(Position(0), key, 0).len() - PIECE_HEADER
}

/// How many further pieces a value of this length has.
fn pieces(key: &[u8], length: usize) -> u16 {
    let rest = length.saturating_sub(first_room(key));
    u16::try_from(rest.div_ceil(piece_room(key))).expect("values are at most 1 MiB")
}

/// Bytes of a checksum.
pub(super) const CHECKSUM_BYTES: usize = 4;

/// Puts the checksum of key and body in front of the body.
#[must_use]
pub fn seal(raw_key: &[u8], body: &[u8]) -> Bytes {
    let mut record = BytesMut::with_capacity(CHECKSUM_BYTES + body.len());
    record.put_u32(checksum(raw_key, body));
    record.put_slice(body);
    record.freeze()
}

/// Takes the checksum off again. An error says that the record is damaged: its checksum is wrong, or missing.
pub fn unseal(raw_key: &[u8], mut record: Bytes) -> Result<Bytes, StorageError> {
    let damaged =
        || StorageError::corrupt(format!("record {}", raw_key.escape_ascii()), "its checksum is wrong");
    let crc = record.try_get_u32().map_err(|_| damaged())?;
    if crc == checksum(raw_key, &record) { Ok(record) } else { Err(damaged()) }
}

/// Whether the record has the checksum that belongs to it under this key.
#[must_use]
pub fn is_sealed(raw_key: &[u8], record: &[u8]) -> bool {
    let parts = record.split_first_chunk();
    parts.is_some_and(|(crc, body)| u32::from_be_bytes(*crc) == checksum(raw_key, body))
}

/// The record of a small row: what it holds as postcard writes it, behind a byte for its format.
pub(super) fn seal_value<T: Serialize>(raw_key: &[u8], format: u8, value: &T) -> Bytes {
    let body = postcard::to_extend(value, vec![format]);
    seal(raw_key, &body.expect("writing to memory cannot fail and every length is known"))
}

/// Reads what [`seal_value`] made.
pub(super) fn unseal_value<T: DeserializeOwned>(
    raw_key: &[u8],
    format: u8,
    record: Bytes,
) -> Result<T, StorageError> {
    let body = unseal(raw_key, record)?;
    let corrupt = |why: String| StorageError::corrupt(format!("record {}", raw_key.escape_ascii()), why);
    match body.split_first() {
        Some((found, body)) if *found == format => {
            postcard::from_bytes(body).map_err(|error| corrupt(error.to_string()))
        }
        Some((found, _)) => Err(corrupt(format!("it has format {found}, and this build reads {format}"))),
        None => Err(corrupt("it is empty".to_string())),
    }
}

fn checksum(raw_key: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(raw_key);
    hasher.update(body);
    hasher.finalize()
}

/// What may be left of the value before, beyond its first record.
pub(super) enum Earlier<'a> {
    /// No value of this store ever had more.
    NoPieces,
    /// Whoever writes the tree removes it.
    Swept,
    /// It is read here, so that every row that goes is named.
    Read(&'a dyn Storage),
}

/// The writes that make this the value of a key, or remove it, and leave nothing behind of the one before. Returns how many pieces the
/// value has beyond its first record.
pub(super) fn write(
    position: Position,
    key: &[u8],
    known: Option<&Record>,
    earlier: Earlier<'_>,
    out: &mut Vec<StateWrite>,
) -> Result<u16, StorageError> {
    let kept = known.map_or(0, |record| pieces(key, record.value.len()));
    let raw = keys::data(position, key);
    if let Earlier::Read(storage) = earlier {
        remove_stale(storage, position, key, kept, out)?;
    }
    let first = known.map_or(0, |record| record.value.len().min(first_room(key)));
    out.push((raw.clone(), known.map(|record| first_record(&raw, record, first))));
    if let Earlier::Swept = earlier {
        out.push((keys::sweep(position, key), None));
    }
    let rest = known.map_or(&[][..], |record| &record.value[first..]);
    for (number, part) in (1..).zip(rest.chunks(piece_room(key))) {
        let raw = keys::data_piece(position, key, number);
        out.push((raw.clone(), Some(seal(&raw, part))));
    }
    Ok(kept)
}

fn first_record(raw: &[u8], record: &Record, first: usize) -> Bytes {
    let mut body = BytesMut::with_capacity(FIRST_HEADER + first);
    body.put_slice(&[FORMAT, record.kind.number(), u8::try_from(HEADER).expect("a short header")]);
    body.put_u64(record.version);
    body.put_u64(record.expiry);
    body.put_u32(u32::try_from(record.value.len()).expect("values are at most 1 MiB"));
    body.put_slice(&record.value[..first]);
    seal(raw, &body)
}

/// The removals of the pieces that are stored for a key and that a value with so many does not overwrite.
fn remove_stale(
    storage: &dyn Storage,
    position: Position,
    key: &[u8],
    kept: u16,
    out: &mut Vec<StateWrite>,
) -> Result<(), StorageError> {
    let raw = keys::data(position, key);
    let Some(record) = storage.get(&raw)? else {
        return Ok(());
    };
    let stored = decode_first(&raw, record)?;
    out.extend(
        (kept + 1..=pieces(key, stored.length)).map(|piece| (keys::data_piece(position, key, piece), None)),
    );
    Ok(())
}

/// What the first record of a key tells: the value too, if it is not longer than that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) version: u64,
    pub(super) kind: Kind,
    pub(super) expiry: u64,
    pub(super) length: usize,
    pub(super) value: Option<Bytes>,
}

impl From<Record> for Head {
    fn from(record: Record) -> Self {
        let Record { version, kind, expiry, value } = record;
        Self { version, kind, expiry, length: value.len(), value: Some(value) }
    }
}

impl Head {
    /// All of the record, if this tells it.
    pub(super) fn whole(&self) -> Option<Record> {
        let Self { version, kind, expiry, .. } = *self;
        Some(Record { version, kind, expiry, value: self.value.clone()? })
    }
}

/// Reads the first record of a key, and no further one.
pub(super) fn read_head(
    storage: &dyn Storage,
    position: Position,
    key: &[u8],
) -> Result<Option<Head>, StorageError> {
    let raw = keys::data(position, key);
    let Some(record) = storage.get(&raw)? else {
        return Ok(None);
    };
    let first = decode_first(&raw, record)?;
    let is_whole = first.value.as_ref().is_some_and(|value| value.len() == first.length);
    Ok(Some(if is_whole { first } else { Head { value: None, ..first } }))
}

/// Reads what is stored of a key.
pub(super) fn read(
    storage: &dyn Storage,
    position: Position,
    key: &[u8],
) -> Result<Option<Record>, StorageError> {
    let raw = keys::data(position, key);
    let Some(record) = storage.get(&raw)? else {
        return Ok(None);
    };
    let Head { version, kind, expiry, length, value } = decode_first(&raw, record)?;
    let first = value.unwrap_or_default();
    if first.len() == length {
        return Ok(Some(Record { version, kind, expiry, value: first }));
    }
    let mut value = BytesMut::with_capacity(length);
    value.put_slice(&first);
    for piece in 1..=pieces(key, length) {
        let raw = keys::data_piece(position, key, piece);
        let record = storage.get(&raw)?.ok_or_else(|| {
            StorageError::corrupt(
                format!("value {}", key.escape_ascii()),
                format!("piece {piece} is missing"),
            )
        })?;
        value.put_slice(&unseal(&raw, record)?);
    }
    if value.len() != length {
        return Err(StorageError::corrupt(format!("value {}", key.escape_ascii()), "its length is wrong"));
    }
    Ok(Some(Record { version, kind, expiry, value: value.freeze() }))
}

/// Reads a first record; the value is as much of it as stands there.
fn decode_first(raw: &[u8], record: Bytes) -> Result<Head, StorageError> {
    let mut body = unseal(raw, record)?;
    let corrupt = |why: String| StorageError::corrupt(format!("record {}", raw.escape_ascii()), why);
    if body.len() < 3 + HEADER {
        return Err(corrupt("it is too short".to_string()));
    }
    let (format, kind, header) = (body.get_u8(), body.get_u8(), usize::from(body.get_u8()));
    if format != FORMAT {
        return Err(corrupt(format!("it has format {format}, and this build reads {FORMAT}")));
    }
    let kind = Kind::of(kind).ok_or_else(|| corrupt(format!("this build knows no value of kind {kind}")))?;
    if !(HEADER..=body.len()).contains(&header) {
        return Err(corrupt("its header is too short".to_string()));
    }
    let mut header = body.split_to(header);
    let (version, expiry, length) = (header.get_u64(), header.get_u64(), header.get_u32() as usize);
    if length > VALUE_BYTES_CAP || body.len() > length {
        return Err(corrupt("its length is wrong".to_string()));
    }
    Ok(Head { version, kind, expiry, length, value: Some(body) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryDisk;
    use crate::storage::{Commit, CommitId};

    fn stored(version: u64, value: Vec<u8>) -> Record {
        Record { version, kind: Kind::Plain, expiry: 77, value: value.into() }
    }

    fn store(disk: &MemoryDisk, id: u64, state: Vec<StateWrite>) -> impl Storage + use<> {
        let (mut storage, _) = disk.open();
        storage.submit(Commit { id: CommitId(id), state: vec![state], ..Commit::default() });
        disk.settle();
        storage
    }

    #[test]
    fn values_of_every_size_come_back_and_no_record_is_too_large() {
        let position = Position(3);
        for (id, length) in [0, 1, 6_900, 7_000, 7_100, 20_000, 1 << 20].into_iter().enumerate() {
            for key in [&b"k"[..], &[9; 4096]] {
                let stored = stored(5, vec![id as u8; length]);
                let mut out = Vec::new();
                write(position, key, Some(&stored), Earlier::NoPieces, &mut out).unwrap();
                assert!(out.iter().all(|(key, value)| {
                    let staged = keys::staged(crate::ring::GroupId(1), key).len();
                    staged + value.as_ref().map_or(0, Bytes::len) <= RECORD_BYTES_MAX
                }));
                let disk = MemoryDisk::default();
                let storage = store(&disk, 1, out);
                assert_eq!(read(&storage, position, key).unwrap(), Some(stored));
            }
        }
    }

    #[test]
    fn a_shorter_value_or_a_deletion_leaves_nothing_behind() {
        let (position, key) = (Position(3), b"k");
        for is_swept in [false, true] {
            let disk = MemoryDisk::default();
            let put = |id: u64, length: Option<usize>| {
                let value = length.map(|length| stored(1, vec![1; length]));
                let (before, mut out) = (disk.open().0, Vec::new());
                let earlier = if is_swept { Earlier::Swept } else { Earlier::Read(&before) };
                write(position, key, value.as_ref(), earlier, &mut out).unwrap();
                store(&disk, id, out)
            };
            put(1, Some(30_000));
            let storage = put(2, Some(8_000));
            assert_eq!(storage.scan(b"c", b"d", usize::MAX).unwrap().len(), 1);
            assert_eq!(read(&storage, position, key).unwrap().unwrap().value.len(), 8_000);
            let storage = put(3, None);
            assert_eq!(storage.scan(b"", b"z", usize::MAX).unwrap(), Vec::new());
        }
    }

    #[test]
    fn damage_is_an_error_and_never_a_value() {
        let (position, key) = (Position(3), b"k");
        let disk = MemoryDisk::default();
        let mut out = Vec::new();
        write(position, key, Some(&stored(1, b"value".to_vec())), Earlier::NoPieces, &mut out).unwrap();
        let (raw, record) = (out[0].0.clone(), out[0].1.clone().unwrap());
        let storage = store(&disk, 1, out);
        for bit in 0..record.len() * 8 {
            let mut damaged = record.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            disk.tamper(&raw, Some(damaged.into()));
            assert!(read(&storage, position, key).is_err(), "bit {bit}");
        }
    }

    /// What a later build adds to a header says nothing to this one; what it cannot know is no value.
    #[test]
    fn headers_may_grow_and_kinds_may_not() {
        let (position, key) = (Position(3), b"k");
        let raw = keys::data(position, key);
        let body = |format: u8, kind: u8, more: &[u8]| {
            let header = u8::try_from(HEADER + more.len()).unwrap();
            let numbers = [&9u64.to_be_bytes()[..], &7u64.to_be_bytes(), &5u32.to_be_bytes()].concat();
            [&[format, kind, header][..], &numbers, more, b"value"].concat()
        };
        let read = |body: &[u8]| {
            let disk = MemoryDisk::default();
            read(&store(&disk, 1, vec![(raw.clone(), Some(seal(&raw, body)))]), position, key)
        };
        let record = Record { version: 9, kind: Kind::Plain, expiry: 7, value: Bytes::from_static(b"value") };
        for more in [&[][..], &[1, 2, 3]] {
            assert_eq!(read(&body(FORMAT, 0, more)).unwrap(), Some(record.clone()));
        }
        assert!(read(&body(FORMAT, 5, &[])).unwrap_err().to_string().contains("kind 5"));
        assert!(read(&body(1, 0, &[])).unwrap_err().to_string().contains("format 1"));
    }
}
