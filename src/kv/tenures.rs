//! The rows that say which groups have a replica here, and in which tenure: the table of who owns which range on this node.

use super::record::{seal, unseal};
use crate::error::StorageError;
use crate::ring::Tenure;
use crate::storage::{StateWrite, Storage, keys};
use bytes::Bytes;

/// The write of a group's tenure.
#[must_use]
pub fn tenure_row(tenure: &Tenure) -> StateWrite {
    let raw = keys::tenure(tenure.group());
    let record = seal(&raw, &tenure.encode());
    (raw, Some(record))
}

/// The tenures that the tree holds.
pub fn read_tenures(storage: &dyn Storage) -> Result<Vec<Tenure>, StorageError> {
    let (from, to) = keys::tenure_bounds();
    storage.scan(&from, &to, usize::MAX)?.into_iter().map(read).collect()
}

fn read((raw, record): (Bytes, Bytes)) -> Result<Tenure, StorageError> {
    const WHAT: &str = "the tenure of a group";
    let body = unseal(&raw, record)?;
    let tenure = Tenure::decode(&body).map_err(|why| StorageError::corrupt(WHAT, why))?;
    let is_its_own = keys::tenure(tenure.group()) == raw;
    if is_its_own { Ok(tenure) } else { Err(StorageError::corrupt(WHAT, "it is that of another group")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{GroupId, found_without_keys};
    use crate::storage::memory::MemoryDisk;

    #[test]
    fn rows_are_read_as_they_were_written_and_damage_is_noticed() {
        let (disk, tenures) = (MemoryDisk::default(), found_without_keys(4, 4, 3));
        for (raw, record) in tenures.iter().map(tenure_row) {
            disk.tamper(&raw, record);
        }
        assert_eq!(read_tenures(&disk.open().0).unwrap(), tenures);
        let (raw, record) = tenure_row(&tenures[0]);
        let record = record.unwrap();
        for at in 0..record.len() {
            let mut damaged = record.to_vec();
            damaged[at] ^= 1;
            disk.tamper(&raw, Some(damaged.into()));
            assert!(read_tenures(&disk.open().0).is_err(), "byte {at}");
        }
        let misplaced = seal(&keys::tenure(GroupId(8)), &tenures[0].encode());
        disk.tamper(&raw, Some(record));
        disk.tamper(&keys::tenure(GroupId(8)), Some(misplaced));
        assert!(read_tenures(&disk.open().0).unwrap_err().to_string().contains("that of another"));
    }
}
