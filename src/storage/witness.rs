//! A small file beside the store that remembers how far the write-ahead log had become durable.
//!
//! A log whose end is damaged, or whose files are gone, looks like one that never held more. A replica that then votes
//! has forgotten promises. The witness holds `{store, incarnation, number, hash}` of a frame that was durable when it was
//! written, so a store that came back without it is noticed.
//!
//! Two slots are written in turn, so a crash while one is written leaves the other.

use super::log::frame::LogEnd;
use crate::error::StorageError;
use crate::ring::StoreId;
use bytes::{Buf, BufMut};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: &[u8; 4] = b"TWI2";
const SLOT_BYTES: usize = 4 + 8 + 16 + 8 + 8 + 32 + 4;
/// Slots lie in different disk sectors.
const SLOT_STRIDE: u64 = 4096;

/// What the witness testifies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Testimony {
    /// The store's name, drawn when it was made.
    pub(super) store: StoreId,
    /// How often the store was opened.
    pub(super) incarnation: u64,
    /// A frame of the log that was durable.
    pub(super) end: LogEnd,
}

/// The open witness file.
#[derive(Debug)]
pub(super) struct Witness {
    file: File,
    counter: u64,
}

impl Witness {
    /// Opens the file, or creates it, and reads what it says. `None` if it says nothing.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<Testimony>), StorageError> {
        let io = |error: std::io::Error| StorageError::io("open the witness file", error);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        let slots = [0, 1].map(|slot| read_slot(&file, slot));
        let latest = slots.into_iter().flatten().max_by_key(|(counter, _)| *counter);
        let counter = latest.map_or(0, |(counter, _)| counter);
        Ok((Self { file, counter }, latest.map(|(_, testimony)| testimony)))
    }

    /// Writes and syncs what is now durable.
    pub(super) fn write(&mut self, testimony: Testimony) -> Result<(), StorageError> {
        self.counter += 1;
        let mut slot = Vec::with_capacity(SLOT_BYTES);
        slot.put_slice(MAGIC);
        slot.put_u64(self.counter);
        slot.put_slice(&testimony.store.0);
        slot.put_u64(testimony.incarnation);
        slot.put_u64(testimony.end.number);
        slot.put_slice(&testimony.end.hash);
        slot.put_u32(crc32fast::hash(&slot));
        let io = |error: std::io::Error| StorageError::io("write the witness file", error);
        self.file.write_all_at(&slot, (self.counter % 2) * SLOT_STRIDE).map_err(io)?;
        self.file.sync_data().map_err(io)
    }
}

fn read_slot(file: &File, slot: u64) -> Option<(u64, Testimony)> {
    let mut bytes = [0u8; SLOT_BYTES];
    file.read_exact_at(&mut bytes, slot * SLOT_STRIDE).ok()?;
    let (body, crc) = bytes.split_at(SLOT_BYTES - 4);
    if &body[..4] != MAGIC || crc32fast::hash(body) != u32::from_be_bytes(crc.try_into().ok()?) {
        return None;
    }
    let mut rest = &body[4..];
    let counter = rest.get_u64();
    let mut store = StoreId::default();
    rest.copy_to_slice(&mut store.0);
    let (incarnation, number) = (rest.get_u64(), rest.get_u64());
    let hash = rest.try_into().ok()?;
    Some((counter, Testimony { store, incarnation, end: LogEnd { number, hash } }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_intact_slot_speaks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("witness");
        let (mut witness, said) = Witness::open(&path).unwrap();
        assert_eq!(said, None);
        let testimony = |number| Testimony {
            store: StoreId([9; 16]),
            incarnation: 1,
            end: LogEnd { number, hash: [number as u8; 32] },
        };
        witness.write(testimony(1)).unwrap();
        witness.write(testimony(2)).unwrap();
        assert_eq!(Witness::open(&path).unwrap().1, Some(testimony(2)));
        // The second write went to slot 0; damage it.
        witness.file.write_all_at(b"x", 20).unwrap();
        assert_eq!(Witness::open(&path).unwrap().1, Some(testimony(1)));
    }
}
