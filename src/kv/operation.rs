//! What clients ask, and its bytes.
//!
//! An operation travels as the bytes that the client encoded: they are checked where they enter, ordered as they are, and decoded again
//! when they are applied. In Byzantine mode they are what the client signed.
//!
//! Bytes: format u8, now 1 | the operation as postcard writes it. Enums only grow at their ends.

use crate::limits::Limits;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// A client's public key: its name.
pub type Client = [u8; 32];

/// A session of one client in one group. Never reused.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u128);

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{:08x}", self.0 >> 96)
    }
}

/// Names a request: retries carry the same one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// The session; for the opening of a session, the client's own choice of 128 bits.
    pub session: SessionId,
    /// Counts the requests of the session from 1; 0 is the opening.
    pub number: u64,
}

/// What a request asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Opens a session.
    Open,
    /// Changes one key, once for its number.
    Write(Write),
    /// Reads one key, in order with all changes. Needs no session. In Byzantine mode alone: in crash mode reads are not ordered.
    Get {
        /// The key.
        key: Bytes,
    },
    /// Closes the session that the request names.
    Close,
    /// Sent under the number of an earlier request: tells what that came to, whatever it asked. If it was not carried out, it never will
    /// be.
    Cancel {
        /// The key of that request: its owner judges.
        key: Bytes,
    },
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Write {
    /// Sets the value.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
        /// What the value is.
        kind: Kind,
        /// When the key ends.
        expiry: Expiry,
        /// What must hold before.
        when: When,
    },
    /// Removes the key.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Sets or removes the value if it is as expected.
    Cas {
        /// The key.
        key: Bytes,
        /// What must hold before.
        expect: Expect,
        /// The new value; none removes the key.
        value: Option<Bytes>,
        /// What the new value is.
        kind: Kind,
        /// When the key ends.
        expiry: Expiry,
    },
    /// Adds to a decimal number; a missing key counts as 0. The key ends when it did.
    Incr {
        /// The key.
        key: Bytes,
        /// What is added; may be negative.
        by: i64,
    },
    /// Adds bytes behind the value; a missing key counts as empty. The key ends when it did.
    Append {
        /// The key.
        key: Bytes,
        /// What is added.
        value: Bytes,
    },
}

/// What a value is. Packed kinds come behind this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Bytes.
    #[default]
    Plain,
}

impl Kind {
    /// As it is stored.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Plain => 0,
        }
    }

    /// The kind that is stored as this; none if this build knows none.
    #[must_use]
    pub fn of(number: u8) -> Option<Self> {
        (number == 0).then_some(Self::Plain)
    }
}

/// When a key ends. It has its place in requests and records; nothing ends yet, so what would have to is refused ([`Operation::check`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expiry {
    /// Never.
    #[default]
    Never,
    /// When it did before.
    Keep,
    /// At this log time, in microseconds since 1970.
    At(u64),
    /// So many microseconds behind the log time of the slot in which this is applied.
    In(u64),
}

/// What must hold before a key is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    /// Nothing.
    #[default]
    Always,
    /// There is no such key.
    Absent,
    /// There is one.
    Present,
}

/// What a compare-and-set compares with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// This value, or no such key.
    Value(Option<Bytes>),
    /// This version, or 0 for no such key.
    Version(u64),
}

impl Expect {
    /// No such key.
    pub const ABSENT: Self = Self::Value(None);

    /// This value.
    pub fn value(value: impl Into<Bytes>) -> Self {
        Self::Value(Some(value.into()))
    }
}

/// Why an operation is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OperationError {
    /// The key is empty or too long.
    #[error("a key of {bytes} bytes: keys have 1 to {max} bytes in this cluster")]
    Key {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The value is too long.
    #[error("a value of {bytes} bytes: values have at most {max} bytes in this cluster")]
    Value {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The key would have to end.
    #[error("the write says when its key ends, and keys do not end in this version: leave the expiry out")]
    Expiry,
    /// The bytes are no request.
    #[error("not a request: {0}")]
    Malformed(String),
}

/// Checks the size of a key.
pub fn check_key(key: &[u8], limits: &Limits) -> Result<(), OperationError> {
    let (bytes, max) = (key.len(), limits.key_bytes_max);
    if bytes == 0 || bytes > max { Err(OperationError::Key { bytes, max }) } else { Ok(()) }
}

const FORMAT: u8 = 1;

impl Operation {
    /// The operation's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Bytes::from(self.append_to(Vec::new()))
    }

    /// The same behind other bytes.
    pub(super) fn append_to(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.push(FORMAT);
        postcard::to_extend(self, bytes).expect("writing to memory cannot fail and every length is known")
    }

    /// Reads an operation; never panics.
    pub fn decode(bytes: &[u8]) -> Result<Self, OperationError> {
        let malformed = |why: &dyn fmt::Display| OperationError::Malformed(why.to_string());
        let (format, body) = bytes.split_first().ok_or_else(|| malformed(&"it asks nothing"))?;
        if *format != FORMAT {
            return Err(malformed(&format!(
                "it asks in format {format}, and this cluster understands {FORMAT}: use a program of the cluster's version"
            )));
        }
        match postcard::take_from_bytes(body) {
            Ok((operation, [])) => Ok(operation),
            Ok(_) => Err(malformed(&"bytes follow it")),
            Err(error) => Err(malformed(&error)),
        }
    }

    /// The key that decides which group owns the operation; the opening of a session has none, nor has its end.
    #[must_use]
    pub fn key(&self) -> Option<&Bytes> {
        match self {
            Self::Open | Self::Close => None,
            Self::Write(write) => Some(write.key()),
            Self::Get { key } | Self::Cancel { key } => Some(key),
        }
    }

    /// Checks sizes, and that nothing is asked that this version does not do.
    pub fn check(&self, limits: &Limits) -> Result<(), OperationError> {
        self.key().map_or(Ok(()), |key| check_key(key, limits))?;
        let Self::Write(write) = self else { return Ok(()) };
        if let Write::Put { expiry, .. } | Write::Cas { expiry, .. } = write
            && matches!(expiry, Expiry::At(_) | Expiry::In(_))
        {
            return Err(OperationError::Expiry);
        }
        let value = match write {
            Write::Put { value, .. }
            | Write::Append { value, .. }
            | Write::Cas { value: Some(value), .. } => value.len(),
            _ => 0,
        };
        let expected = match write {
            Write::Cas { expect: Expect::Value(Some(value)), .. } => value.len(),
            _ => 0,
        };
        let (bytes, max) = (value.max(expected), limits.value_bytes_max);
        if bytes > max { Err(OperationError::Value { bytes, max }) } else { Ok(()) }
    }
}

impl Write {
    /// Sets a key, whatever it was before.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        let (kind, expiry, when) = (Kind::Plain, Expiry::Never, When::Always);
        Self::Put { key: key.into(), value: value.into(), kind, expiry, when }
    }

    /// Sets a key, or removes it, if it is as expected.
    pub fn cas(key: impl Into<Bytes>, expect: Expect, value: Option<Bytes>) -> Self {
        Self::Cas { key: key.into(), expect, value, kind: Kind::Plain, expiry: Expiry::Keep }
    }

    /// The key that is changed.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. }
            | Self::Delete { key }
            | Self::Cas { key, .. }
            | Self::Incr { key, .. }
            | Self::Append { key, .. } => key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: usize) -> Operation {
        Operation::Write(Write::put(key.to_string(), vec![7; value]))
    }

    #[test]
    fn sizes_are_checked_and_errors_name_the_limit() {
        let limits = Limits { key_bytes_max: 4, value_bytes_max: 10 };
        assert_eq!(put("four", 10).check(&limits), Ok(()));
        assert!(put("fives", 1).check(&limits).unwrap_err().to_string().contains("1 to 4 bytes"));
        assert!(put("", 1).check(&limits).is_err());
        assert!(put("k", 11).check(&limits).unwrap_err().to_string().contains("at most 10 bytes"));
        let cancel = Operation::Cancel { key: Bytes::from_static(b"fives") };
        assert!(cancel.check(&limits).is_err());
    }

    #[test]
    fn whatever_is_not_exactly_an_operation_is_refused() {
        let operation = put("key", 20);
        let bytes = operation.encode();
        assert_eq!(Operation::decode(&bytes).unwrap(), operation);
        for length in 0..bytes.len() {
            assert!(Operation::decode(&bytes[..length]).is_err(), "{length}");
        }
        assert!(Operation::decode(&[&bytes[..], &[0]].concat()).is_err());
        let newer = [&[2], &bytes[1..]].concat();
        assert!(Operation::decode(&newer).unwrap_err().to_string().contains("format 2"));
    }

    /// A key that is said to end, and stays, would be a promise that is not kept.
    #[test]
    fn what_would_have_to_end_is_refused() {
        let Write::Put { key, value, kind, when, .. } = Write::put("k", "v") else { panic!() };
        for (expiry, is_fine) in
            [(Expiry::Never, true), (Expiry::Keep, true), (Expiry::At(7), false), (Expiry::In(7), false)]
        {
            let (key, value) = (key.clone(), value.clone());
            let put = Operation::Write(Write::Put { key, value, kind, expiry, when });
            assert_eq!(put.check(&Limits::default()).is_ok(), is_fine, "{expiry:?}");
        }
    }

    #[test]
    fn kinds_are_stored_as_numbers() {
        assert_eq!(Kind::of(Kind::Plain.number()), Some(Kind::Plain));
        assert_eq!(Kind::of(1), None);
    }
}
