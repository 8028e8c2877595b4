//! A hash of a set of rows that follows changes: rows are added and taken away in any order.
//!
//! LtHash (Bellare and Micciancio, "A New Paradigm for Collision-Free Hashing", 1997; Lewi, Kim, Maykov and Weis, "Securing
//! Update Propagation with Homomorphic Hashing", 2019): each row is expanded to 1024 numbers of 16 bits, and the hash of a
//! set is their sum, lane by lane. Finding two sets with one hash is a lattice problem of more than 200 bits.
//!
//! Why not a Merkle tree: it would have to read and write a leaf of neighbours for every changed row, at random places of
//! a tree that need not fit into memory. This reads the row's old value and nothing else (docs/decisions/0008).

const LANES: usize = 1024;

/// Bytes of a hash.
pub(super) const LATTICE_BYTES: usize = 2 * LANES;

/// The hash of a set.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Lattice(Box<[u16; LANES]>);

impl std::fmt::Debug for Lattice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lattice({:04x}..)", self.0[0])
    }
}

impl Default for Lattice {
    fn default() -> Self {
        Self(Box::new([0; LANES]))
    }
}

impl Lattice {
    /// Adds a row that is not in the set.
    pub(super) fn add(&mut self, key: &[u8], record: &[u8]) {
        self.0.iter_mut().zip(expand(key, record)).for_each(|(lane, part)| *lane = lane.wrapping_add(part));
    }

    /// Takes away a row that is in the set.
    pub(super) fn remove(&mut self, key: &[u8], record: &[u8]) {
        self.0.iter_mut().zip(expand(key, record)).for_each(|(lane, part)| *lane = lane.wrapping_sub(part));
    }

    /// The bytes of the hash.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|lane| lane.to_le_bytes()).collect()
    }

    /// A hash from its bytes; none if there are not so many as a hash has.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != LATTICE_BYTES {
            return None;
        }
        let mut lanes = Box::new([0; LANES]);
        for (lane, pair) in lanes.iter_mut().zip(bytes.chunks_exact(2)) {
            *lane = u16::from_le_bytes([pair[0], pair[1]]);
        }
        Some(Self(lanes))
    }
}

/// A row as numbers. The key's length stands in front, so that no two rows have the same bytes.
fn expand(key: &[u8], record: &[u8]) -> impl Iterator<Item = u16> {
    let mut hasher = blake3::Hasher::new_derive_key("tetrachord v2 row of a state");
    hasher.update(&(key.len() as u64).to_be_bytes()).update(key).update(record);
    let mut bytes = [0; LATTICE_BYTES];
    hasher.finalize_xof().fill(&mut bytes);
    (0..LANES).map(move |lane| u16::from_le_bytes([bytes[2 * lane], bytes[2 * lane + 1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_changes_does_not_matter_and_the_set_does() {
        let (mut one, mut other) = (Lattice::default(), Lattice::default());
        one.add(b"a", b"1");
        one.add(b"b", b"2");
        one.remove(b"a", b"1");
        one.add(b"a", b"3");
        other.add(b"a", b"3");
        other.add(b"b", b"2");
        assert_eq!(one, other);
        other.add(b"c", b"");
        assert_ne!(one, other);
        assert_eq!(Lattice::from_bytes(&one.to_bytes()), Some(one));
        assert_eq!(Lattice::from_bytes(&[0; 3]), None);
    }

    #[test]
    fn key_and_record_cannot_be_cut_in_two_ways() {
        let hash = |key: &[u8], record: &[u8]| {
            let mut lattice = Lattice::default();
            lattice.add(key, record);
            lattice
        };
        assert_ne!(hash(b"ab", b"c"), hash(b"a", b"bc"));
    }
}
