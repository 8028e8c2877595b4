//! The bytes of messages and records: a version byte, then postcard.
//!
//! Postcard is not self-describing and does not refuse overlong numbers or trailing bytes. Hence the version byte in
//! front, append-only enums, and a decoder that insists on an empty rest. What must be hashed is hashed field by field
//! ([`crate::paxos::Entry`]), never as re-encoded postcard.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Version of every encoded message and record. A change of any type behind it is a new version.
pub const VERSION: u8 = 1;

/// The largest encoded message or record that is decoded, in bytes.
pub const ENCODED_BYTES_MAX: usize = 4 << 20;

/// The largest proposal that may be ordered, in bytes. Leaves room for the headers around it.
pub const PROPOSAL_BYTES_MAX: usize = 3 << 20;

const _: () =
    assert!(PROPOSAL_BYTES_MAX + (64 << 10) < ENCODED_BYTES_MAX, "one entry must fit into one message");

/// Why bytes were not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CodecError {
    /// Nothing to decode.
    #[error("empty message")]
    Empty,
    /// Written by another version.
    #[error("encoding version {found} is not supported, this build speaks {VERSION}")]
    Version {
        /// The version byte found.
        found: u8,
    },
    /// Larger than allowed.
    #[error("{bytes} bytes exceed the limit of {ENCODED_BYTES_MAX}")]
    TooLarge {
        /// Size found.
        bytes: usize,
    },
    /// Not a valid encoding.
    #[error("malformed: {0}")]
    Malformed(String),
}

/// Encodes a value behind the version byte.
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    let start = vec![VERSION];
    let bytes =
        postcard::to_extend(value, start).expect("writing to memory cannot fail and every length is known");
    assert!(bytes.len() <= ENCODED_BYTES_MAX, "limits keep every value below the largest encoding");
    Bytes::from(bytes)
}

/// Decodes a value; never panics and never allocates more than the input can hold.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > ENCODED_BYTES_MAX {
        return Err(CodecError::TooLarge { bytes: bytes.len() });
    }
    let (&version, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if version != VERSION {
        return Err(CodecError::Version { found: version });
    }
    let (value, rest) =
        postcard::take_from_bytes(body).map_err(|error| CodecError::Malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(CodecError::Malformed(format!("{} bytes follow the value", rest.len())));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_survives_the_round_trip() {
        let bytes = encode(&(7u64, "seven".to_string()));
        assert_eq!(decode::<(u64, String)>(&bytes).unwrap(), (7, "seven".to_string()));
    }

    #[test]
    fn foreign_versions_trailing_bytes_and_nonsense_are_refused() {
        assert_eq!(decode::<u8>(&[]), Err(CodecError::Empty));
        assert_eq!(decode::<u8>(&[9, 1]), Err(CodecError::Version { found: 9 }));
        assert!(matches!(decode::<u8>(&[VERSION, 1, 2]), Err(CodecError::Malformed(_))));
        assert!(matches!(decode::<String>(&[VERSION, 200, 200, 200, 200, 1]), Err(CodecError::Malformed(_))));
        assert!(matches!(decode::<u8>(&vec![1; ENCODED_BYTES_MAX + 1]), Err(CodecError::TooLarge { .. })));
    }
}
