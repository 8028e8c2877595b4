//! How a value is stored: one record, or several if it is large.
//!
//! ```text
//! first    CRC32 | version u64 | total length u32 | the value's first bytes
//! further  CRC32 | bytes
//! ```
//! Each checksum covers the raw key too, so a record that turns up under another key is noticed.

use crate::error::StorageError;
use crate::limits::{RECORD_BYTES_MAX, VALUE_BYTES_CAP};
use crate::ring::Position;
use crate::storage::{StateWrite, Storage, keys};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A value with its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// Grows with every change of any key of the group.
    pub version: u64,
    /// The value.
    pub value: Bytes,
}

const FIRST_HEADER: usize = 4 + 8 + 4;
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

/// Puts the checksum of key and body in front of the body.
pub(crate) fn seal(raw_key: &[u8], body: &[u8]) -> Bytes {
    let mut record = BytesMut::with_capacity(4 + body.len());
    record.put_u32(checksum(raw_key, body));
    record.put_slice(body);
    record.freeze()
}

/// Takes the checksum off again, if it is right.
pub(crate) fn unseal(raw_key: &[u8], mut record: Bytes) -> Result<Bytes, StorageError> {
    let damaged =
        || StorageError::corrupt(format!("record {}", raw_key.escape_ascii()), "its checksum is wrong");
    let crc = record.try_get_u32().map_err(|_| damaged())?;
    if crc == checksum(raw_key, &record) { Ok(record) } else { Err(damaged()) }
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
    known: Option<&Versioned>,
    earlier: Earlier<'_>,
    out: &mut Vec<StateWrite>,
) -> Result<u16, StorageError> {
    let kept = known.map_or(0, |versioned| pieces(key, versioned.value.len()));
    let raw = keys::data(position, key);
    if let Earlier::Read(storage) = earlier {
        remove_stale(storage, position, key, kept, out)?;
    }
    let first = known.map_or(0, |versioned| versioned.value.len().min(first_room(key)));
    out.push((raw.clone(), known.map(|versioned| first_record(&raw, versioned, first))));
    if let Earlier::Swept = earlier {
        out.push((keys::sweep(position, key), None));
    }
    let rest = known.map_or(&[][..], |versioned| &versioned.value[first..]);
    for (number, part) in (1..).zip(rest.chunks(piece_room(key))) {
        let raw = keys::data_piece(position, key, number);
        out.push((raw.clone(), Some(seal(&raw, part))));
    }
    Ok(kept)
}

fn first_record(raw: &[u8], versioned: &Versioned, first: usize) -> Bytes {
    let mut body = BytesMut::with_capacity(12 + first);
    body.put_u64(versioned.version);
    body.put_u32(u32::try_from(versioned.value.len()).expect("values are at most 1 MiB"));
    body.put_slice(&versioned.value[..first]);
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
    let (_, total, _) = decode_first(&raw, record)?;
    out.extend((kept + 1..=pieces(key, total)).map(|piece| (keys::data_piece(position, key, piece), None)));
    Ok(())
}

/// What the first record of a key tells: the version, the value's length, and the value if it is not longer than that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) version: u64,
    pub(super) length: usize,
    pub(super) value: Option<Bytes>,
}

impl Head {
    pub(super) fn of(versioned: &Versioned) -> Self {
        let Versioned { version, value } = versioned.clone();
        Self { version, length: value.len(), value: Some(value) }
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
    let (version, length, first) = decode_first(&raw, record)?;
    let value = (first.len() == length).then_some(first);
    Ok(Some(Head { version, length, value }))
}

/// Reads a value.
pub(super) fn read(
    storage: &dyn Storage,
    position: Position,
    key: &[u8],
) -> Result<Option<Versioned>, StorageError> {
    let raw = keys::data(position, key);
    let Some(record) = storage.get(&raw)? else {
        return Ok(None);
    };
    let (version, total, first) = decode_first(&raw, record)?;
    if first.len() == total {
        return Ok(Some(Versioned { version, value: first }));
    }
    let mut value = BytesMut::with_capacity(total);
    value.put_slice(&first);
    for piece in 1..=pieces(key, total) {
        let raw = keys::data_piece(position, key, piece);
        let record = storage.get(&raw)?.ok_or_else(|| {
            StorageError::corrupt(
                format!("value {}", key.escape_ascii()),
                format!("piece {piece} is missing"),
            )
        })?;
        value.put_slice(&unseal(&raw, record)?);
    }
    if value.len() != total {
        return Err(StorageError::corrupt(format!("value {}", key.escape_ascii()), "its length is wrong"));
    }
    Ok(Some(Versioned { version, value: value.freeze() }))
}

fn decode_first(raw: &[u8], record: Bytes) -> Result<(u64, usize, Bytes), StorageError> {
    let mut body = unseal(raw, record)?;
    if body.len() < 12 {
        return Err(StorageError::corrupt(format!("record {}", raw.escape_ascii()), "it is too short"));
    }
    let (version, total) = (body.get_u64(), body.get_u32() as usize);
    if total > VALUE_BYTES_CAP || body.len() > total {
        return Err(StorageError::corrupt(format!("record {}", raw.escape_ascii()), "its length is wrong"));
    }
    Ok((version, total, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryDisk;
    use crate::storage::{Commit, CommitId};

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
                let versioned = Versioned { version: 5, value: Bytes::from(vec![id as u8; length]) };
                let mut out = Vec::new();
                write(position, key, Some(&versioned), Earlier::NoPieces, &mut out).unwrap();
                assert!(out.iter().all(|(key, value)| {
                    let staged = keys::staged(crate::ring::GroupId(1), key).len();
                    staged + value.as_ref().map_or(0, Bytes::len) <= RECORD_BYTES_MAX
                }));
                let disk = MemoryDisk::default();
                let storage = store(&disk, 1, out);
                assert_eq!(read(&storage, position, key).unwrap(), Some(versioned));
            }
        }
    }

    #[test]
    fn a_shorter_value_or_a_deletion_leaves_nothing_behind() {
        let (position, key) = (Position(3), b"k");
        for is_swept in [false, true] {
            let disk = MemoryDisk::default();
            let put = |id: u64, length: Option<usize>| {
                let value =
                    length.map(|length| Versioned { version: 1, value: Bytes::from(vec![1; length]) });
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
        let versioned = Versioned { version: 1, value: Bytes::from_static(b"value") };
        write(position, key, Some(&versioned), Earlier::NoPieces, &mut out).unwrap();
        let (raw, record) = (out[0].0.clone(), out[0].1.clone().unwrap());
        let storage = store(&disk, 1, out);
        for bit in 0..record.len() * 8 {
            let mut damaged = record.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            disk.tamper(&raw, Some(damaged.into()));
            assert!(read(&storage, position, key).is_err(), "bit {bit}");
        }
    }
}
