//! Many rows as one record of sled: what a record costs there, it costs whatever its size.
//!
//! ```text
//! record of sled   key: that of the block's first row | value: the block
//! block            CRC32 of key and body u32 | body
//! body             rows u16 | { key bytes u16 | value bytes u16 } * rows | { key | value } * rows
//! ```
//! The first row's key is left out of the body, for it is the record's. Blocks are written once and never changed.

use crate::error::StorageError;
use crate::limits::RECORD_BYTES_MAX;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A row: raw key and stored value.
pub(in crate::storage) type Row = (Bytes, Bytes);

/// A block has at most this many bytes of rows, unless it is a single row. Smaller ones cost more of sled; larger ones more of
/// a read, which takes a whole page of up to sixteen.
const BLOCK_BYTES: usize = 2 << 10;

const CRC_BYTES: usize = 4;
const COUNT_BYTES: usize = 2;
const LENGTHS_BYTES: usize = 4;

const _: () = assert!(
    16 * (RECORD_BYTES_MAX + CRC_BYTES + COUNT_BYTES + LENGTHS_BYTES) < 131_052,
    "sixteen blocks of one full row each fit into a page of sled"
);

/// Gathers rows in the order of their keys into blocks.
#[derive(Debug, Default)]
pub(super) struct Builder {
    rows: Vec<Row>,
    bytes: usize,
}

impl Builder {
    /// Takes the next row; returns the block before it, if the row has no place in it.
    pub(super) fn push(&mut self, row: Row) -> Option<Row> {
        assert!(self.rows.last().is_none_or(|(key, _)| *key < row.0), "rows come in order");
        let bytes = LENGTHS_BYTES + row.0.len() + row.1.len();
        let full = if self.bytes + bytes > BLOCK_BYTES { self.finish() } else { None };
        self.bytes += bytes;
        self.rows.push(row);
        full
    }

    /// Closes the block that is being gathered, if it has rows.
    pub(super) fn finish(&mut self) -> Option<Row> {
        let rows = std::mem::take(&mut self.rows);
        let room = CRC_BYTES + COUNT_BYTES + std::mem::take(&mut self.bytes);
        let first = rows.first()?.0.clone();
        let length = |bytes: &Bytes| u16::try_from(bytes.len()).expect("rows have at most RECORD_BYTES_MAX");
        let mut block = BytesMut::with_capacity(room);
        block.put_u32(0);
        block.put_u16(u16::try_from(rows.len()).expect("a block has few rows"));
        for (key, value) in &rows {
            block.put_u16(length(key));
            block.put_u16(length(value));
        }
        for (index, (key, value)) in rows.iter().enumerate() {
            if index > 0 {
                block.put_slice(key);
            }
            block.put_slice(value);
        }
        let crc = checksum(&first, &block[CRC_BYTES..]);
        block[..CRC_BYTES].copy_from_slice(&crc.to_be_bytes());
        assert!(first.len() + block.len() <= RECORD_BYTES_MAX + 16, "a block is no larger than its rows");
        Some((first, block.freeze()))
    }
}

/// The rows of a block, in order.
pub(super) fn rows(first: &Bytes, block: &Bytes) -> Result<Vec<Row>, StorageError> {
    let mut found = Vec::new();
    each(first, block, |key, value| {
        let key = key.map_or_else(|| first.clone(), |key| block.slice_ref(key));
        found.push((key, block.slice_ref(value)));
        true
    })?;
    Ok(found)
}

/// The value of one key, if the block has it.
pub(super) fn find(first: &[u8], block: &[u8], wanted: &[u8]) -> Result<Option<Bytes>, StorageError> {
    let mut found = None;
    each(first, block, |key, value| {
        let key = key.unwrap_or(first);
        if key == wanted {
            found = Some(Bytes::copy_from_slice(value));
        }
        key < wanted
    })?;
    Ok(found)
}

/// Checks a block, and shows its rows as long as they are wanted; the first one's key is not in the block.
fn each<'a>(
    first: &[u8],
    block: &'a [u8],
    mut wants_more: impl FnMut(Option<&'a [u8]>, &'a [u8]) -> bool,
) -> Result<(), StorageError> {
    let damaged = |what: &str| StorageError::corrupt(format!("the block of {}", first.escape_ascii()), what);
    let (crc, body) = block.split_at_checked(CRC_BYTES).ok_or_else(|| damaged("it is too short"))?;
    if crc != checksum(first, body).to_be_bytes() {
        return Err(damaged("its checksum is wrong"));
    }
    // The checksum holds, so what follows is what was written; it is bounded all the same.
    let short = || damaged("it ends before its rows");
    let (mut count, rest) = body.split_at_checked(COUNT_BYTES).ok_or_else(short)?;
    let count = usize::from(count.get_u16());
    let (mut lengths, mut rest) = rest.split_at_checked(count * LENGTHS_BYTES).ok_or_else(short)?;
    for index in 0..count {
        let (key_bytes, value_bytes) = (usize::from(lengths.get_u16()), usize::from(lengths.get_u16()));
        let stored = if index == 0 { 0 } else { key_bytes };
        let (key, after) = rest.split_at_checked(stored).ok_or_else(short)?;
        let (value, after) = after.split_at_checked(value_bytes).ok_or_else(short)?;
        rest = after;
        if !wants_more((index > 0).then_some(key), value) {
            break;
        }
    }
    Ok(())
}

fn checksum(first: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(first);
    hasher.update(body);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::KEY_BYTES_CAP;

    fn row(key: usize, value_bytes: usize) -> Row {
        (Bytes::from(format!("key {key:06}")), Bytes::from(vec![key as u8; value_bytes]))
    }

    fn packed(rows: &[Row]) -> Vec<Row> {
        let mut builder = Builder::default();
        let mut blocks: Vec<Row> = rows.iter().filter_map(|row| builder.push(row.clone())).collect();
        blocks.extend(builder.finish());
        blocks
    }

    #[test]
    fn rows_come_back_and_are_found() {
        let written: Vec<Row> = (0..500).map(|key| row(key * 2, key * 37 % 900)).collect();
        let blocks = packed(&written);
        assert!(blocks.len() > 50 && blocks.len() < 200);
        let read: Vec<Row> = blocks.iter().flat_map(|(first, block)| rows(first, block).unwrap()).collect();
        assert_eq!(read, written);
        for (index, (first, block)) in blocks.iter().enumerate() {
            for (key, value) in rows(first, block).unwrap() {
                assert_eq!(find(first, block, &key).unwrap(), Some(value), "block {index}");
            }
            assert_eq!(find(first, block, b"key 000001").unwrap(), None);
        }
    }

    #[test]
    fn the_largest_row_is_a_block_of_its_own() {
        let key = Bytes::from(vec![1; KEY_BYTES_CAP]);
        let value = Bytes::from(vec![2; RECORD_BYTES_MAX - KEY_BYTES_CAP]);
        let blocks = packed(&[(key.clone(), value.clone()), (Bytes::from_static(&[2]), Bytes::new())]);
        assert_eq!(blocks.len(), 2);
        assert_eq!(rows(&blocks[0].0, &blocks[0].1).unwrap(), vec![(key, value)]);
        assert_eq!(find(&[2], &blocks[1].1, &[2]).unwrap(), Some(Bytes::new()));
    }

    #[test]
    fn no_flipped_bit_no_cut_and_no_other_place_passes() {
        let (first, block) = packed(&[row(1, 9), row(2, 0), row(3, 30)]).remove(0);
        assert!(rows(&Bytes::from_static(b"key 000002"), &block).is_err(), "a block under another key");
        for bit in 0..block.len() * 8 {
            let mut damaged = block.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(rows(&first, &damaged.into()).is_err(), "bit {bit}");
        }
        for length in 0..block.len() {
            assert!(find(&first, &block[..length], b"key 000002").is_err(), "{length} bytes");
        }
    }
}
