//! The one place that builds raw keys. The table is in [`super`].

use crate::ring::{GroupId, Position};
use bytes::{BufMut, Bytes, BytesMut};

/// A user's key: its first record.
#[must_use]
pub fn data(position: Position, key: &[u8]) -> Bytes {
    let mut raw = BytesMut::with_capacity(9 + key.len());
    raw.put_u8(b'd');
    raw.put_u64(position.0);
    raw.put_slice(key);
    raw.freeze()
}

/// A further piece of a large value, counted from 1.
#[must_use]
pub fn data_piece(position: Position, key: &[u8], piece: u16) -> Bytes {
    let mut raw = BytesMut::with_capacity(13 + key.len());
    raw.put_u8(b'c');
    raw.put_u64(position.0);
    raw.put_u16(u16::try_from(key.len()).expect("keys are at most 4 KiB"));
    raw.put_slice(key);
    raw.put_u16(piece);
    raw.freeze()
}

/// Stands for all further pieces of a key: see [`super::sweep`].
#[must_use]
pub fn sweep(position: Position, key: &[u8]) -> Bytes {
    data_piece(position, key, 0)
}

/// Whether a raw key is that of a further piece.
pub(super) fn is_piece(raw: &[u8]) -> bool {
    raw.first() == Some(&b'c')
}

/// Whether a raw key stands for all further pieces.
pub(super) fn is_sweep(raw: &[u8]) -> bool {
    is_piece(raw) && raw.ends_with(&[0, 0])
}

/// The bounds `[from, to)` of the pieces that a sweep stands for.
pub(super) fn pieces_bounds(sweep: &Bytes) -> [Bytes; 2] {
    assert!(is_sweep(sweep), "the key of a sweep");
    let mut last = BytesMut::from(sweep.as_ref());
    let number = last.len() - 2;
    last[number..].fill(0xff);
    [sweep.clone(), last.freeze()]
}

/// Sorts behind all pieces.
pub(super) fn pieces_end() -> Bytes {
    Bytes::from_static(b"d")
}

/// The bounds `[from, to)` of all first records, and of all further pieces, in an inclusive range of positions.
#[must_use]
pub fn data_bounds(first: Position, last: Position) -> [(Bytes, Bytes); 2] {
    [b'd', b'c'].map(|kind| {
        let bound = |position: Option<u64>| {
            let mut raw = BytesMut::with_capacity(9);
            match position {
                Some(position) => {
                    raw.put_u8(kind);
                    raw.put_u64(position);
                }
                None => raw.put_u8(kind + 1),
            }
            raw.freeze()
        };
        (bound(Some(first.0)), bound(last.0.checked_add(1)))
    })
}

/// Where the row lies on the ring; none if it is no user's data.
#[must_use]
pub fn position_of(raw: &[u8]) -> Option<Position> {
    let (kind, rest) = raw.split_first()?;
    let position = rest.first_chunk()?;
    matches!(kind, b'd' | b'c').then(|| Position(u64::from_be_bytes(*position)))
}

/// The tenure of a group that has a replica here.
#[must_use]
pub fn tenure(group: GroupId) -> Bytes {
    let mut raw = BytesMut::with_capacity(17);
    raw.put_u8(b'g');
    raw.put_u128(group.0);
    raw.freeze()
}

/// The bounds `[from, to)` of the tenures of all groups.
#[must_use]
pub fn tenure_bounds() -> (Bytes, Bytes) {
    (Bytes::from_static(b"g"), Bytes::from_static(b"h"))
}

/// What the keys of a group's own rows begin with: `m`, the group, what the row is.
const META_BYTES: usize = 1 + 16 + 1;

fn meta(group: GroupId, kind: u8, rest: &[u8]) -> Bytes {
    let mut raw = BytesMut::with_capacity(META_BYTES + rest.len());
    raw.put_u8(b'm');
    raw.put_u128(group.0);
    raw.put_u8(kind);
    raw.put_slice(rest);
    raw.freeze()
}

/// What a group has applied.
#[must_use]
pub fn applied(group: GroupId) -> Bytes {
    meta(group, b'a', &[])
}

/// The mark of a snapshot that is being installed.
#[must_use]
pub fn installing(group: GroupId) -> Bytes {
    meta(group, b'i', &[])
}

/// The hash of a part of the state.
#[must_use]
pub fn part_hash(group: GroupId, part: u8) -> Bytes {
    meta(group, b'h', &[part])
}

/// The mark of a state that is not to be believed.
#[must_use]
pub fn damaged(group: GroupId) -> Bytes {
    meta(group, b'x', &[])
}

/// What is known of a session besides its outcomes.
#[must_use]
pub fn session(group: GroupId, session: u128) -> Bytes {
    meta(group, b's', &session.to_be_bytes())
}

/// What a request of a session came to.
#[must_use]
pub fn outcome(group: GroupId, session: u128, number: u64) -> Bytes {
    let mut rest = [0u8; 24];
    rest[..16].copy_from_slice(&session.to_be_bytes());
    rest[16..].copy_from_slice(&number.to_be_bytes());
    meta(group, b'r', &rest)
}

/// The bounds of all sessions of a group and of their outcomes, which come first.
#[must_use]
pub fn session_bounds(group: GroupId) -> (Bytes, Bytes) {
    (meta(group, b'r', &[]), meta(group, b's' + 1, &[]))
}

/// A row of the session table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionRow {
    /// Of a session.
    Head(u128),
    /// Of one of its outcomes.
    Outcome(u128, u64),
}

/// Which group's session table the raw key is of, and what it is about; none if it is of none.
#[must_use]
pub fn session_row(raw: &[u8]) -> Option<(GroupId, SessionRow)> {
    let (meta, rest) = raw.split_at_checked(META_BYTES)?;
    let (session, number) = rest.split_first_chunk()?;
    let session = u128::from_be_bytes(*session);
    let group = GroupId(u128::from_be_bytes(meta[1..META_BYTES - 1].try_into().ok()?));
    let row = match (meta[0], meta[META_BYTES - 1]) {
        (b'm', b's') if number.is_empty() => SessionRow::Head(session),
        (b'm', b'r') => SessionRow::Outcome(session, u64::from_be_bytes(number.try_into().ok()?)),
        _ => return None,
    };
    Some((group, row))
}

/// How much longer the key of a waiting row is.
pub const STAGED_PREFIX_BYTES: usize = 1 + 16;

/// Where a snapshot's row waits until the whole snapshot is there.
#[must_use]
pub fn staged(group: GroupId, raw: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(STAGED_PREFIX_BYTES + raw.len());
    key.put_u8(b'p');
    key.put_u128(group.0);
    key.put_slice(raw);
    key.freeze()
}

/// Whether a row waits for the rest of its snapshot.
#[must_use]
pub fn is_staged(raw: &[u8]) -> bool {
    raw.first() == Some(&b'p')
}

/// The bounds of all waiting rows of a group.
#[must_use]
pub fn staged_bounds(group: GroupId) -> (Bytes, Bytes) {
    (staged(group, &[]), staged(group, &[0xff]))
}

/// The key that a waiting row stands for.
#[must_use]
pub fn unstaged(raw: &Bytes) -> Bytes {
    assert!(raw.len() > STAGED_PREFIX_BYTES && is_staged(raw), "only waiting rows are unstaged");
    raw.slice(STAGED_PREFIX_BYTES..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_range_lie_between_its_bounds() {
        let (low, high) = (Position(5), Position(u64::MAX));
        let [data_range, piece_range] = data_bounds(low, high);
        for position in [5, 6, u64::MAX] {
            let key = data(Position(position), b"\xff\xff");
            assert!(data_range.0 <= key && key < data_range.1);
            let piece = data_piece(Position(position), b"\xff", u16::MAX);
            assert!(piece_range.0 <= piece && piece < piece_range.1);
        }
        assert!(data(Position(4), b"\xff") < data_range.0);
        let row = staged(GroupId(7), &data(Position(1), b"k"));
        let (from, to) = staged_bounds(GroupId(7));
        assert!(from <= row && row < to);
        assert_eq!(unstaged(&row), data(Position(1), b"k"));
        assert_eq!(position_of(&data_piece(Position(9), b"k", 2)), Some(Position(9)));
        assert!([&row[..], &applied(GroupId(1)), b"d", b""].iter().all(|raw| position_of(raw).is_none()));
        let (head, outcome) = (session(GroupId(1), 77), outcome(GroupId(1), 77, 9));
        assert_eq!(session_row(&head), Some((GroupId(1), SessionRow::Head(77))));
        assert_eq!(session_row(&outcome), Some((GroupId(1), SessionRow::Outcome(77, 9))));
        let (from, to) = session_bounds(GroupId(1));
        assert!(from <= outcome && outcome < head && head < to);
        for other in
            [&applied(GroupId(1)), &part_hash(GroupId(1), 3), &row, &head.slice(..33), &outcome.slice(..41)]
        {
            assert_eq!(session_row(other), None);
        }
    }
}
