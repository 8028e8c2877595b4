//! The bytes of the write-ahead log: commits cut into numbered, checksummed, chained pieces.
//!
//! ```text
//! piece   magic "TW" | version u8 | piece k of n (u32, u32) | previous hash [32] | payload | own hash [32]
//! payload of all pieces of a commit, joined:   { group u32 | length u32 | record bytes } *
//! own hash = BLAKE3(number u64 | everything before it)
//! base    magic "TB" | version u8 | number u64 | hash [32] | CRC32 of the former
//! ```
//!
//! A commit whose last pieces are missing is ignored as a whole. A piece that is not the last and does not verify is
//! never taken for a torn tail: the store refuses to open.

use crate::error::StorageError;
use crate::limits::WAL_PIECE_BYTES;
use crate::ring::GroupId;
use bytes::{Buf, BufMut, Bytes};

const PIECE_MAGIC: &[u8; 2] = b"TW";
const BASE_MAGIC: &[u8; 2] = b"TB";
const VERSION: u8 = 1;
const HASH_BYTES: usize = 32;
const HEADER_BYTES: usize = 2 + 1 + 4 + 4 + HASH_BYTES;

/// Where the log continues: the number of its last piece, and that piece's hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WalEnd {
    pub(super) number: u64,
    pub(super) hash: [u8; HASH_BYTES],
}

impl WalEnd {
    /// The stored form of a deleted prefix.
    pub(super) fn encode_base(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(47);
        bytes.put_slice(BASE_MAGIC);
        bytes.put_u8(VERSION);
        bytes.put_u64(self.number);
        bytes.put_slice(&self.hash);
        bytes.put_u32(crc32fast::hash(&bytes));
        bytes
    }

    /// Reads back a deleted prefix.
    pub(super) fn decode_base(bytes: &[u8]) -> Result<Self, StorageError> {
        let damaged = |reason: &str| StorageError::corrupt("the base of the write-ahead log", reason);
        if bytes.len() != 47 || &bytes[..2] != BASE_MAGIC {
            return Err(damaged("it has not the form of a base"));
        }
        if bytes[2] != VERSION {
            return Err(damaged("it was written by another version"));
        }
        let (body, crc) = bytes.split_at(43);
        if crc32fast::hash(body) != u32::from_be_bytes(crc.try_into().expect("4 bytes")) {
            return Err(damaged("its checksum is wrong"));
        }
        let mut hash = [0; HASH_BYTES];
        hash.copy_from_slice(&body[11..]);
        Ok(Self { number: u64::from_be_bytes(body[3..11].try_into().expect("8 bytes")), hash })
    }
}

/// Cuts the records of one commit into pieces that follow `end`, and moves `end` to the last of them.
pub(super) fn encode(end: &mut WalEnd, records: &[(GroupId, Bytes)]) -> Vec<(u64, Vec<u8>)> {
    let mut payload = Vec::with_capacity(records.iter().map(|(_, record)| record.len() + 8).sum());
    for (group, record) in records {
        payload.put_u32(group.0);
        payload.put_u32(u32::try_from(record.len()).expect("records are a few MiB at most"));
        payload.put_slice(record);
    }
    let count = payload.len().div_ceil(WAL_PIECE_BYTES);
    let total = u32::try_from(count).expect("a commit has few pieces");
    let mut pieces = Vec::with_capacity(count);
    for (index, part) in payload.chunks(WAL_PIECE_BYTES).enumerate() {
        let mut piece = Vec::with_capacity(HEADER_BYTES + part.len() + HASH_BYTES);
        piece.put_slice(PIECE_MAGIC);
        piece.put_u8(VERSION);
        piece.put_u32(u32::try_from(index + 1).expect("few pieces"));
        piece.put_u32(total);
        piece.put_slice(&end.hash);
        piece.put_slice(part);
        let number = end.number + 1;
        let hash = piece_hash(number, &piece);
        piece.put_slice(&hash);
        *end = WalEnd { number, hash };
        pieces.push((number, piece));
    }
    assert_eq!(pieces.len(), count, "every byte of the commit is in a piece");
    pieces
}

fn piece_hash(number: u64, body: &[u8]) -> [u8; HASH_BYTES] {
    *blake3::Hasher::new().update(&number.to_be_bytes()).update(body).finalize().as_bytes()
}

/// What reading the log has found so far.
#[derive(Debug, Default)]
pub(super) struct Reader {
    end: WalEnd,
    whole: WalEnd,
    payload: Vec<u8>,
    next_piece: u32,
    records: Vec<(GroupId, Bytes)>,
}

/// A log that was read to its end.
#[derive(Debug)]
pub(super) struct ReadLog {
    /// Records of whole commits.
    pub(super) records: Vec<(GroupId, Bytes)>,
    /// The last piece of the last whole commit; pieces after it are to be deleted.
    pub(super) end: WalEnd,
    /// The last piece found.
    pub(super) last: u64,
}

impl Reader {
    pub(super) fn behind(base: WalEnd) -> Self {
        Self { end: base, whole: base, ..Self::default() }
    }

    /// Takes the next piece.
    pub(super) fn piece(&mut self, number: u64, bytes: &[u8]) -> Result<(), StorageError> {
        let damaged =
            |reason: &str| StorageError::corrupt(format!("piece {number} of the write-ahead log"), reason);
        if number != self.end.number + 1 {
            return Err(damaged(&format!("it follows piece {}", self.end.number)));
        }
        if bytes.len() <= HEADER_BYTES + HASH_BYTES || &bytes[..2] != PIECE_MAGIC {
            return Err(damaged("it has not the form of a piece"));
        }
        if bytes[2] != VERSION {
            return Err(damaged("it was written by another version"));
        }
        let (body, hash) = bytes.split_at(bytes.len() - HASH_BYTES);
        if piece_hash(number, body) != *hash {
            return Err(damaged("its checksum is wrong"));
        }
        let (header, payload) = body.split_at(HEADER_BYTES);
        let (piece, total) = ((&header[3..7]).get_u32(), (&header[7..11]).get_u32());
        if header[11..] != self.end.hash {
            return Err(damaged("it does not follow the piece before it"));
        }
        if piece != self.next_piece + 1 || piece > total {
            return Err(damaged("its place in its commit is wrong"));
        }
        self.end = WalEnd { number, hash: hash.try_into().expect("32 bytes") };
        self.payload.extend_from_slice(payload);
        self.next_piece = piece;
        if piece == total { self.finish_commit(number) } else { Ok(()) }
    }

    fn finish_commit(&mut self, number: u64) -> Result<(), StorageError> {
        let mut rest = Bytes::from(std::mem::take(&mut self.payload));
        while !rest.is_empty() {
            let damaged =
                || StorageError::corrupt(format!("the commit at piece {number}"), "its records do not fit");
            if rest.len() < 8 {
                return Err(damaged());
            }
            let (group, length) = (rest.get_u32(), rest.get_u32() as usize);
            if rest.len() < length {
                return Err(damaged());
            }
            self.records.push((GroupId(group), rest.split_to(length)));
        }
        self.next_piece = 0;
        self.whole = self.end;
        Ok(())
    }

    pub(super) fn finish(self) -> ReadLog {
        ReadLog { records: self.records, end: self.whole, last: self.end.number }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(seed: u8, bytes: usize) -> Vec<(GroupId, Bytes)> {
        vec![
            (GroupId(u32::from(seed)), Bytes::from(vec![seed; bytes])),
            (GroupId(9), Bytes::from_static(b"tail")),
        ]
    }

    fn read(base: WalEnd, pieces: &[(u64, Vec<u8>)]) -> Result<ReadLog, StorageError> {
        let mut reader = Reader::behind(base);
        for (number, bytes) in pieces {
            reader.piece(*number, bytes)?;
        }
        Ok(reader.finish())
    }

    #[test]
    fn commits_of_any_size_come_back_whole() {
        let mut end = WalEnd::default();
        let mut pieces = encode(&mut end, &commit(1, 10));
        pieces.extend(encode(&mut end, &commit(2, 20_000)));
        let log = read(WalEnd::default(), &pieces).unwrap();
        assert_eq!(log.records.len(), 4);
        assert_eq!(log.records[2], commit(2, 20_000)[0]);
        assert_eq!(log.end, end);
    }

    #[test]
    fn an_incomplete_commit_is_ignored_as_a_whole() {
        let mut end = WalEnd::default();
        let mut pieces = encode(&mut end, &commit(1, 10));
        let whole = end;
        pieces.extend(encode(&mut end, &commit(2, 20_000)));
        pieces.pop();
        let log = read(WalEnd::default(), &pieces).unwrap();
        assert_eq!((log.records.len(), log.end), (2, whole));
        assert!(log.last > whole.number);
    }

    #[test]
    fn every_flipped_bit_of_a_piece_is_noticed() {
        let mut end = WalEnd::default();
        let pieces = encode(&mut end, &commit(1, 10));
        for bit in 0..pieces[0].1.len() * 8 {
            let mut damaged = pieces.clone();
            damaged[0].1[bit / 8] ^= 1 << (bit % 8);
            assert!(read(WalEnd::default(), &damaged).is_err(), "bit {bit}");
        }
        assert!(read(WalEnd::default(), &[(2, pieces[0].1.clone())]).is_err(), "a missing piece");
    }

    #[test]
    fn a_base_survives_the_round_trip_and_notices_damage() {
        let base = WalEnd { number: 7, hash: [3; 32] };
        let bytes = base.encode_base();
        assert_eq!(WalEnd::decode_base(&bytes).unwrap(), base);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(WalEnd::decode_base(&damaged).is_err(), "bit {bit}");
        }
    }
}
