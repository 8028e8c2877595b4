//! Makes a set of writes to the tree atomic: they are written down as a whole first, then carried out one by one.
//!
//! sled can write a batch atomically, but all readers of the process wait for it, and large batches have been seen to come
//! back in halves. Here the writes go to a file of their own and are synced; then each goes to the tree by itself. A
//! crash in between is finished at the next start from the file. Writes are final values, so writing them again changes
//! nothing.
//!
//! ```text
//! redo   magic "TRED" | version u8 | store [16] | number u64 | body bytes u64 | hash [32] | body
//! body   { key bytes u16 | value bytes u32, or 0xffffffff to delete | key | value } *
//! hash = BLAKE3(everything before it, body)
//! ```
//!
//! One file, overwritten in place: the writes before must be durable in the tree by then.

use super::StateWrite;
use super::log::forget_cached_pages;
use crate::error::StorageError;
use crate::ring::StoreId;
use bytes::{Buf, BufMut, Bytes};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: &[u8; 4] = b"TRED";
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 4 + 1 + 16 + 8 + 8;
const HASH_BYTES: usize = 32;
const DELETE: u32 = u32::MAX;

/// The open file.
#[derive(Debug)]
pub(super) struct Redo {
    file: File,
    store: StoreId,
}

/// Writes that were written down as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// One more than that of the writes before.
    pub(super) number: u64,
    /// What to write, in order.
    pub(super) writes: Vec<StateWrite>,
}

impl Redo {
    /// Opens the file, or creates it, and reads what it says; `None` if it holds nothing whole of this store.
    pub(super) fn open(path: &Path, store: StoreId) -> Result<(Self, Option<Job>), StorageError> {
        let io = |error: std::io::Error| StorageError::io("open the redo file", error);
        forget_cached_pages(path);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        let bytes = std::fs::read(path).map_err(io)?;
        let job = decode(&Bytes::from(bytes), store);
        Ok((Self { file, store }, job))
    }

    /// What was read may be only in a cache, left there by a process that was killed: from now on it is durable.
    pub(super) fn sync(&self) -> Result<(), StorageError> {
        self.file.sync_data().map_err(|error| StorageError::io("sync the redo file", error))
    }

    /// Writes a job down; it is durable when this returns.
    pub(super) fn write(&self, job: &Job) -> Result<(), StorageError> {
        let io = |error: std::io::Error| StorageError::io("write the redo file", error);
        self.file.write_all_at(&encode(job, self.store), 0).map_err(io)?;
        self.file.sync_data().map_err(io)
    }
}

fn encode(job: &Job, store: StoreId) -> Vec<u8> {
    let size = |(key, value): &StateWrite| 6 + key.len() + value.as_ref().map_or(0, Bytes::len);
    let body_bytes: usize = job.writes.iter().map(size).sum();
    let mut bytes = Vec::with_capacity(HEAD_BYTES + HASH_BYTES + body_bytes);
    bytes.put_slice(MAGIC);
    bytes.put_u8(VERSION);
    bytes.put_slice(&store.0);
    bytes.put_u64(job.number);
    bytes.put_u64(body_bytes as u64);
    bytes.put_slice(&[0; HASH_BYTES]);
    for (key, value) in &job.writes {
        bytes.put_u16(u16::try_from(key.len()).expect("stored keys are a few KiB at most"));
        bytes.put_u32(value.as_ref().map_or(DELETE, |value| {
            u32::try_from(value.len()).expect("stored records are a few KiB at most")
        }));
        bytes.put_slice(key);
        bytes.put_slice(value.as_deref().unwrap_or_default());
    }
    assert_eq!(bytes.len(), HEAD_BYTES + HASH_BYTES + body_bytes, "the body has the size that was announced");
    let hash = hash_of(&bytes[..HEAD_BYTES], &bytes[HEAD_BYTES + HASH_BYTES..]);
    bytes[HEAD_BYTES..HEAD_BYTES + HASH_BYTES].copy_from_slice(&hash);
    bytes
}

fn hash_of(head: &[u8], body: &[u8]) -> [u8; HASH_BYTES] {
    *blake3::Hasher::new().update(head).update(body).finalize().as_bytes()
}

fn decode(bytes: &Bytes, store: StoreId) -> Option<Job> {
    let head = bytes.get(..HEAD_BYTES)?;
    let mut rest = head.strip_prefix(MAGIC)?.strip_prefix(&[VERSION])?.strip_prefix(&store.0)?;
    let (number, body_bytes) = (rest.get_u64(), usize::try_from(rest.get_u64()).ok()?);
    let body_start = HEAD_BYTES + HASH_BYTES;
    let body = bytes.get(body_start..body_start.checked_add(body_bytes)?)?;
    if bytes.get(HEAD_BYTES..body_start)? != hash_of(head, body) {
        return None;
    }
    let mut body = bytes.slice(body_start..body_start + body_bytes);
    let mut writes = Vec::new();
    while !body.is_empty() {
        let (key_bytes, value_bytes) = (body.try_get_u16().ok()? as usize, body.try_get_u32().ok()?);
        let is_delete = value_bytes == DELETE;
        let value_bytes = if is_delete { 0 } else { value_bytes as usize };
        if body.len() < key_bytes + value_bytes {
            return None;
        }
        let key = body.split_to(key_bytes);
        let value = body.split_to(value_bytes);
        writes.push((key, (!is_delete).then_some(value)));
    }
    Some(Job { number, writes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: u64) -> Job {
        let text = |text: &'static str| Bytes::from_static(text.as_bytes());
        let writes =
            vec![(text("key"), Some(text("value"))), (text("gone"), None), (text("empty"), Some(text("")))];
        Job { number, writes }
    }

    #[test]
    fn the_last_whole_job_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("redo");
        let (redo, found) = Redo::open(&path, StoreId([1; 16])).unwrap();
        assert_eq!(found, None);
        redo.write(&Job { writes: vec![(Bytes::from(vec![1; 50]), None); 50], ..job(1) }).unwrap();
        redo.write(&job(2)).unwrap();
        assert_eq!(Redo::open(&path, StoreId([1; 16])).unwrap().1, Some(job(2)));
        assert_eq!(Redo::open(&path, StoreId([2; 16])).unwrap().1, None, "another store wrote it");
    }

    #[test]
    fn no_flipped_bit_and_no_cut_passes() {
        let bytes = encode(&job(7), StoreId([1; 16]));
        assert_eq!(decode(&bytes.clone().into(), StoreId([1; 16])), Some(job(7)));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&damaged.into(), StoreId([1; 16])), None, "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(decode(&Bytes::copy_from_slice(&bytes[..length]), StoreId([1; 16])), None);
        }
    }
}
