//! Sweeps: "whatever further pieces that key has".
//!
//! A value that takes the place of a longer one leaves pieces behind, which must go. Whether there are any stands in the tree, and the
//! thread that answers and sends heartbeats must not read a row for every key that it writes. So it asks for a *sweep*, a removal under
//! the key of piece 0, which no value has, and the sweep becomes removals of rows here, on the thread that writes the tree, before the
//! job is written down.
//!
//! Large values are few in most stores. Jobs come in the order of the keys; so one look at the tree tells for all keys up to the next one
//! that has pieces.

use super::{StateWrite, keys};
use crate::error::StorageError;
use crate::limits::VALUE_BYTES_CAP;
use bytes::Bytes;
use std::collections::BTreeSet;

/// Rows with keys in `[from, to)`, at least one if there is one, until about so many bytes.
type Scan<'a> = dyn Fn(&[u8], &[u8], usize) -> Result<Vec<(Bytes, Bytes)>, StorageError> + 'a;

/// A stretch of keys of pieces that the tree holds none of, from the first to before the second.
struct Gap {
    from: Bytes,
    to: Bytes,
}

/// Turns sweeps into removals. Pieces that are written directly behind a sweep, and those that were never there, need none.
pub(super) fn carry_out(writes: Vec<StateWrite>, scan: &Scan<'_>) -> Result<Vec<StateWrite>, StorageError> {
    if !writes.iter().any(is_sweep) {
        return Ok(writes);
    }
    let mut done: Vec<StateWrite> = Vec::with_capacity(writes.len());
    // What earlier writes of the same job have put there.
    let mut written = BTreeSet::new();
    let mut gap = Gap { from: Bytes::new(), to: Bytes::new() };
    let mut rest = writes.into_iter().peekable();
    while let Some(write) = rest.next() {
        if !is_sweep(&write) {
            if keys::is_piece(&write.0) {
                written.insert(write.0.clone());
            }
            done.push(write);
            continue;
        }
        let mut stale = gap.pieces(&write.0, scan)?;
        let [from, to] = keys::pieces_bounds(&write.0);
        stale.extend(written.range(from..to.clone()).cloned());
        while let Some(piece) = rest.next_if(|next| next.1.is_some() && next.0 > write.0 && next.0 < to) {
            stale.remove(&piece.0);
            written.insert(piece.0.clone());
            done.push(piece);
        }
        done.extend(stale.into_iter().map(|piece| (piece, None)));
    }
    assert!(!done.iter().any(is_sweep), "a sweep is no row");
    Ok(done)
}

fn is_sweep((key, value): &StateWrite) -> bool {
    value.is_none() && keys::is_sweep(key)
}

impl Gap {
    /// The pieces that the tree holds of the key of this sweep.
    fn pieces(&mut self, sweep: &Bytes, scan: &Scan<'_>) -> Result<BTreeSet<Bytes>, StorageError> {
        let [from, to] = keys::pieces_bounds(sweep);
        if self.from <= from && to <= self.to {
            return Ok(BTreeSet::new());
        }
        let end = keys::pieces_end();
        let first = scan(&from, &end, 1)?.into_iter().next().map_or(end, |(key, _)| key);
        if to <= first {
            *self = Self { from, to: first };
            return Ok(BTreeSet::new());
        }
        let rows = scan(&from, &to, 2 * VALUE_BYTES_CAP)?;
        Ok(rows.into_iter().map(|(key, _)| key).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Position;
    use std::cell::Cell;
    use std::collections::BTreeMap;

    fn piece(position: u64, piece: u16) -> Bytes {
        keys::data_piece(Position(position), b"key", piece)
    }

    fn row(position: u64, number: u16) -> StateWrite {
        (piece(position, number), Some(Bytes::from_static(b"x")))
    }

    fn sweep(position: u64) -> StateWrite {
        (piece(position, 0), None)
    }

    /// What becomes of the writes in a tree that holds these rows, and how often it was looked at.
    fn sweep_over(tree: &[StateWrite], writes: Vec<StateWrite>) -> (Vec<StateWrite>, usize) {
        let rows: BTreeMap<Bytes, Bytes> =
            tree.iter().map(|(key, value)| (key.clone(), value.clone().unwrap())).collect();
        let looks = Cell::new(0);
        let scan = |from: &[u8], to: &[u8], bytes_max: usize| {
            looks.set(looks.get() + 1);
            let (from, to) = (Bytes::copy_from_slice(from), Bytes::copy_from_slice(to));
            let found = rows.range(from..to).map(|(key, value)| (key.clone(), value.clone()));
            Ok(found.take(if bytes_max == 1 { 1 } else { usize::MAX }).collect())
        };
        let done = carry_out(writes, &scan).unwrap();
        (done, looks.get())
    }

    fn gone(position: u64, number: u16) -> StateWrite {
        (piece(position, number), None)
    }

    #[test]
    fn one_look_tells_for_all_keys_up_to_the_next_large_value() {
        let tree = [row(5_000, 1), row(5_000, 2)];
        let (done, looks) = sweep_over(&tree, (0..10_000).map(sweep).collect());
        assert_eq!(done, [gone(5_000, 1), gone(5_000, 2)]);
        assert!(looks <= 4, "{looks}");
        let (done, looks) = sweep_over(&[], (0..10_000).map(sweep).collect());
        assert_eq!((done.len(), looks), (0, 1));
    }

    #[test]
    fn what_is_written_behind_a_sweep_stays() {
        let tree = [row(1, 1), row(1, 2), row(1, 3), row(2, 1)];
        let (done, _) = sweep_over(&tree, vec![sweep(1), row(1, 1), row(2, 1)]);
        assert_eq!(done, [row(1, 1), gone(1, 2), gone(1, 3), row(2, 1)]);
    }

    #[test]
    fn pieces_of_the_same_job_are_swept_too() {
        let writes = vec![sweep(1), row(1, 1), row(1, 2), sweep(1), row(1, 1)];
        let (done, _) = sweep_over(&[], writes);
        assert_eq!(done, [row(1, 1), row(1, 2), row(1, 1), gone(1, 2)]);
    }

    #[test]
    fn keys_that_begin_alike_are_not_confused() {
        let long = keys::data_piece(Position(1), b"key and more", 1);
        let tree = [(long.clone(), Some(Bytes::from_static(b"x"))), row(1, 1)];
        let (done, _) = sweep_over(&tree, vec![sweep(1)]);
        assert_eq!(done, [gone(1, 1)]);
    }

    #[test]
    fn nothing_else_is_touched() {
        let writes = vec![row(1, 1), gone(1, 2), (Bytes::from_static(b"d12345678k"), None)];
        assert_eq!(sweep_over(&[row(1, 3)], writes.clone()), (writes, 0));
    }
}
