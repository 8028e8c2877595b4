//! Positions and intervals: the only place with modular arithmetic.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A point on the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position(pub u64);

impl Position {
    /// Where a key lives: the top 14 bits are its Redis Cluster hash slot, the other 50 come from BLAKE3 of the same
    /// bytes. Keys with one `{tag}` share one position, and with it one group.
    #[must_use]
    pub fn of_key(key: &[u8]) -> Self {
        let tag = tag_of(key);
        let hash = blake3::hash(tag);
        let mut low = [0u8; 8];
        low.copy_from_slice(&hash.as_bytes()[..8]);
        let position = (u64::from(slot_of(key)) << 50) | (u64::from_be_bytes(low) >> 14);
        assert_eq!(position >> 50, u64::from(slot_of(key)), "the slot is the top of the position");
        Self(position)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The part of a key that places it: what stands between the first `{` and the next `}`, if that is not empty, else
/// the whole key.
#[must_use]
pub fn tag_of(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else {
        return key;
    };
    let rest = &key[open + 1..];
    match rest.iter().position(|byte| *byte == b'}') {
        Some(close) if close > 0 => &rest[..close],
        _ => key,
    }
}

/// The Redis Cluster hash slot of a key, 0 to 16383: CRC16 (XMODEM) of its tag, modulo 2^14.
#[must_use]
pub fn slot_of(key: &[u8]) -> u16 {
    let crc = tag_of(key).iter().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 }
        })
    });
    crc % 16_384
}

/// A half-open interval of the ring, from `start` (exclusive) clockwise to `end` (inclusive). Equal ends mean the
/// whole ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RingInterval {
    /// The position before the first one.
    pub start: Position,
    /// The last position.
    pub end: Position,
}

impl RingInterval {
    /// Whether the position lies in the interval.
    #[must_use]
    pub fn contains(&self, position: Position) -> bool {
        let width = self.end.0.wrapping_sub(self.start.0);
        let offset = position.0.wrapping_sub(self.start.0);
        width == 0 || (offset != 0 && offset <= width)
    }

    /// The interval as one or two inclusive ranges that do not wrap, ascending.
    #[must_use]
    pub fn linear(&self) -> Vec<(Position, Position)> {
        let first = Position(self.start.0.wrapping_add(1));
        if self.start == self.end {
            vec![(Position(0), Position(u64::MAX))]
        } else if first <= self.end {
            vec![(first, self.end)]
        } else {
            vec![(Position(0), self.end), (first, Position(u64::MAX))]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_agree_with_redis_cluster() {
        // From the Redis Cluster specification and `CLUSTER KEYSLOT`.
        assert_eq!(slot_of(b"123456789"), 0x31c3);
        assert_eq!(slot_of(b"foo"), 12182);
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"user1000"));
        assert_eq!(slot_of(b""), 0);
    }

    #[test]
    fn only_a_filled_tag_places_a_key() {
        assert_eq!(tag_of(b"{a}b"), b"a");
        assert_eq!(tag_of(b"x{a}{b}"), b"a");
        assert_eq!(tag_of(b"{}b"), b"{}b");
        assert_eq!(tag_of(b"{b"), b"{b");
        assert_eq!(Position::of_key(b"{t}1"), Position::of_key(b"{t}2"));
        assert_ne!(Position::of_key(b"t1"), Position::of_key(b"t2"));
    }

    #[test]
    fn intervals_wrap() {
        let interval = |start, end| RingInterval { start: Position(start), end: Position(end) };
        let plain = interval(10, 20);
        assert!(
            !plain.contains(Position(10)) && plain.contains(Position(11)) && plain.contains(Position(20))
        );
        let wrapped = interval(u64::MAX - 1, 5);
        assert!(
            wrapped.contains(Position(u64::MAX))
                && wrapped.contains(Position(0))
                && !wrapped.contains(Position(6))
        );
        assert!(interval(7, 7).contains(Position(7)) && interval(7, 7).contains(Position(8)));
        for (interval, inside) in [(plain, 15), (wrapped, 3), (interval(7, 7), 0), (interval(u64::MAX, 9), 0)]
        {
            let linear = interval.linear();
            assert!(linear.iter().any(|(first, last)| (*first..=*last).contains(&Position(inside))));
        }
    }
}
