//! What a group's state is, in a few bytes of fixed width: the header, which stable checkpoints prove.
//!
//! The *root* of a state is a hash over a list of headers: of one, or, where a group ends in several, of each that it becomes. What is
//! kept for speed alone is left out. In crash mode nobody asks for roots, and none is taken.
//!
//! Fields that nothing fills yet stand there as zeros, so that what is signed keeps its form: whether the group is
//! pledged to another, a merge under way, decrees, marks.

use super::reached::Reached;
use crate::ring::Tenure;

/// Version of the form.
const FORMAT: u8 = 2;

/// A place in the form that nothing fills yet.
const NOTHING: [u8; 32] = [0; 32];

/// The header of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header<'a> {
    tenure: &'a Tenure,
    reached: &'a Reached,
    parts: [u8; 32],
}

impl<'a> Header<'a> {
    /// `parts` is the hash over the sums of all parts.
    pub(super) fn new(tenure: &'a Tenure, reached: &'a Reached, parts: [u8; 32]) -> Self {
        Self { tenure, reached, parts }
    }

    /// Feeds the fields, each with its width.
    fn hash_into(&self, hasher: &mut blake3::Hasher) {
        let Reached { epoch, slot, chain, time, session_time, clock, digest, has_pieces: _ } = self.reached;
        hasher.update(&[FORMAT]).update(&self.tenure.group().0.to_be_bytes());
        hasher.update(&epoch.to_be_bytes()).update(&slot.to_be_bytes()).update(chain);
        for number in [time, session_time, clock] {
            hasher.update(&number.to_be_bytes());
        }
        let (floor_min, closed, decree) = (0u64, 0u64, 0u64);
        hasher.update(&floor_min.to_be_bytes()).update(&closed.to_be_bytes());
        hasher.update(digest).update(&self.tenure.digest());
        let (pledge, merge) = (NOTHING, NOTHING);
        hasher.update(&pledge).update(&merge).update(&decree.to_be_bytes()).update(&NOTHING);
        hasher.update(&[self.tenure.grid]).update(&self.parts);
    }

    /// The root of a list of headers.
    pub(super) fn root(headers: &[Self]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("tetrachord v2 root of a state");
        hasher.update(&[u8::try_from(headers.len()).expect("a group ends in few")]);
        headers.iter().for_each(|header| header.hash_into(&mut hasher));
        *hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::found_without_keys;

    #[test]
    fn everything_that_replicas_agree_on_is_in_the_root() {
        let tenure = found_without_keys(2, 3, 3).remove(1);
        let reached = Reached { epoch: 1, slot: 3, ..Reached::default() };
        let of =
            |tenure: &Tenure, reached: &Reached, parts| Header::root(&[Header::new(tenure, reached, parts)]);
        let root = of(&tenure, &reached, [0; 32]);
        let others = [
            Reached { epoch: 2, ..reached.clone() },
            Reached { slot: 4, ..reached.clone() },
            Reached { chain: [1; 32], ..reached.clone() },
            Reached { time: 1, ..reached.clone() },
            Reached { session_time: 1, ..reached.clone() },
            Reached { clock: 1, ..reached.clone() },
            Reached { digest: [1; 32], ..reached.clone() },
        ];
        assert!(others.iter().all(|other| of(&tenure, other, [0; 32]) != root));
        assert_ne!(of(&tenure, &reached, [1; 32]), root);
        let elsewhere = found_without_keys(2, 3, 3).remove(0);
        assert_ne!(of(&elsewhere, &reached, [0; 32]), root);
        assert_ne!(of(&Tenure { generation: 1, ..tenure.clone() }, &reached, [0; 32]), root);
        let header = Header::new(&tenure, &reached, [0; 32]);
        assert_ne!(Header::root(&[header.clone(), header]), root);
        let has_pieces = Reached { has_pieces: true, ..reached };
        assert_eq!(of(&tenure, &has_pieces, [0; 32]), root, "what is kept for speed alone");
    }
}
