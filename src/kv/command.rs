//! Commands, their replies, and their bytes.
//!
//! A command travels as the bytes that the client encoded: they are checked where they enter, ordered as they are,
//! and decoded again when they are applied.

use super::signed::Client;
use crate::limits::Limits;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// A session of one client in one group. Assigned by the log, never reused.
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

/// What is ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Opens a session.
    Open {
        /// The client's choice, to find the answer by. Asking twice opens two sessions; the unused one expires.
        nonce: u128,
        /// Whose session it is to be: the node that has admitted the client's connection says so, whatever the client says.
        client: Client,
    },
    /// Changes one key.
    Write {
        /// Which request this is.
        request: RequestId,
        /// The client has the outcomes of all requests below this number and will not ask for them again.
        ack_below: u64,
        /// The change.
        write: Write,
    },
    /// Closes a session.
    Close {
        /// The session, and a number of it that was not used.
        request: RequestId,
        /// Who asks; the same node says so.
        client: Client,
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
    },
    /// Adds to a decimal number; a missing key counts as 0.
    Incr {
        /// The key.
        key: Bytes,
        /// What is added; may be negative.
        by: i64,
    },
    /// Adds bytes behind the value; a missing key counts as empty.
    Append {
        /// The key.
        key: Bytes,
        /// What is added.
        value: Bytes,
    },
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

/// What a command answered. Small on purpose: replies are remembered for retries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The session is open.
    Opened {
        /// Its name.
        session: SessionId,
    },
    /// The value was set.
    Put {
        /// The key's new version.
        version: u64,
    },
    /// The key is gone.
    Deleted {
        /// Whether it was there.
        existed: bool,
    },
    /// A compare-and-set was decided.
    Cas {
        /// Whether the value was as expected, and is now the new one.
        swapped: bool,
        /// The key's version afterwards; 0 if there is no such key.
        version: u64,
    },
    /// The number was changed.
    Incr {
        /// Its new value.
        value: i64,
        /// The key's new version.
        version: u64,
    },
    /// The value was extended.
    Append {
        /// Its new length in bytes.
        length: u64,
        /// The key's new version.
        version: u64,
    },
    /// Nothing was changed.
    Failed(Failure),
    /// Byzantine mode: a key was read, in order with all changes.
    Value {
        /// Version and value, if the key exists.
        found: Option<(u64, Bytes)>,
        /// The ordered time at which it was read, in microseconds since 1970.
        time: u64,
    },
    /// The session is closed: nothing is applied for it any more.
    Closed,
}

/// Why a command changed nothing. It surely did not, in this group, under this request number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Failure {
    /// The value is not a decimal 64-bit number.
    #[error("the value is not a whole number between -2^63 and 2^63 - 1, so it cannot be incremented")]
    NotANumber,
    /// The sum does not fit.
    #[error("the sum does not fit into 64 bits; the value was left as it is")]
    Overflow,
    /// The result would exceed the limit.
    #[error("the value would have {bytes} bytes, the limit of this cluster is {max}")]
    ValueTooLarge {
        /// Bytes of the result.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The session is unknown here: it was closed, forgotten after long silence, or never opened.
    #[error("the session has expired: nothing was applied now, but an earlier attempt may have been")]
    SessionExpired,
    /// The client had said that it needs this outcome no more.
    #[error("request {number} lies below the ones that the client still asks for ({ack_below})")]
    Stale {
        /// The number asked for.
        number: u64,
        /// The lowest one that is remembered.
        ack_below: u64,
    },
    /// Too many requests of the session are unacknowledged.
    #[error("request {number} is more than {window} ahead of the oldest open request")]
    WindowFull {
        /// The number asked for.
        number: u64,
        /// The largest distance.
        window: u64,
    },
    /// The same number was used for another command.
    #[error("request number {number} was already used for another command in this session")]
    NumberReused {
        /// The number.
        number: u64,
    },
    /// The key belongs to another group.
    #[error("this group does not own the key")]
    WrongGroup,
    /// The client holds as many sessions of the group as it may at the moment.
    #[error(
        "this client's key holds {held} sessions of the group, and its share is {max} now, a sixteenth of what other keys leave: \
         end programs that are not needed by `Client::close` (dropping a client keeps its session), or ask again later: a session \
         that was silent for 10 minutes makes room for another"
    )]
    TooManySessions {
        /// Its sessions.
        held: u64,
        /// Its share.
        max: u64,
    },
    /// Byzantine mode: the request was ordered after the time that its client had set.
    #[error(
        "the request was void when it was ordered, for {} ms by the cluster's clock: it came late, or this client's clock is behind \
         (good until {not_after}, ordered at {time}, in microseconds since 1970)", .time.saturating_sub(*.not_after) / 1_000
    )]
    TooLate {
        /// Until when it was good.
        not_after: u64,
        /// The log's time.
        time: u64,
    },
    /// Byzantine mode: the request would be good for longer than is allowed, or the clocks differ.
    #[error(
        "the request would be good for another {} s by the cluster's clock, longer than is allowed: this client's clock is ahead, or \
         the cluster's is behind (good until {not_after}, ordered at {time}, in microseconds since 1970)",
        .not_after.saturating_sub(*.time) / 1_000_000
    )]
    TooEarly {
        /// Until when it would be good.
        not_after: u64,
        /// The log's time.
        time: u64,
    },
    /// Byzantine mode: what was signed is not an operation, or exceeds the limits.
    #[error("what was signed is not an operation, or exceeds the limits of this cluster")]
    Malformed,
    /// Byzantine mode: the reads of this slot have answered as much as they may.
    #[error("too many large values are read at once; ask again")]
    ReadTooMuch,
    /// So much is remembered for the client's sessions that no more may be at the moment.
    #[error(
        "the group remembers outcomes of {held} bytes for this client's key, and its share is {max} now, a sixteenth of what other \
         keys leave: a session's are forgotten when its next requests say that the client has them, and when it is closed \
         (`Client::close`)"
    )]
    TooMuchRemembered {
        /// Bytes that are remembered for it.
        held: u64,
        /// Its share.
        max: u64,
    },
}

impl Failure {
    /// Whether the failure is the outcome of the request and remembered as such. The others leave the number unused:
    /// a retry elsewhere or later may still be applied.
    #[must_use]
    pub fn is_outcome(&self) -> bool {
        matches!(self, Self::NotANumber | Self::Overflow | Self::ValueTooLarge { .. })
    }
}

/// Why a command is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CommandError {
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
    /// The bytes are not a command.
    #[error("not a command: {0}")]
    Malformed(String),
}

impl Command {
    /// The command's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Bytes::from(
            postcard::to_stdvec(self).expect("writing to memory cannot fail and every length is known"),
        )
    }

    /// Reads a command; never panics.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        let (command, rest) =
            postcard::take_from_bytes(bytes).map_err(|error| CommandError::Malformed(error.to_string()))?;
        if rest.is_empty() {
            Ok(command)
        } else {
            Err(CommandError::Malformed("bytes follow it".to_string()))
        }
    }

    /// How this request is named.
    #[must_use]
    pub fn request(&self) -> RequestId {
        match self {
            Self::Open { nonce, .. } => RequestId { session: SessionId(*nonce), number: 0 },
            Self::Close { request, .. } | Self::Write { request, .. } => *request,
        }
    }

    /// Whose session is opened or closed, for the node that knows.
    pub fn client_mut(&mut self) -> Option<&mut Client> {
        match self {
            Self::Open { client, .. } | Self::Close { client, .. } => Some(client),
            Self::Write { .. } => None,
        }
    }

    /// The key that decides which group owns the command; the opening of a session has none, nor has its end.
    #[must_use]
    pub fn key(&self) -> Option<&Bytes> {
        match self {
            Self::Open { .. } | Self::Close { .. } => None,
            Self::Write { write, .. } => Some(write.key()),
        }
    }

    /// Checks sizes. Whoever lets commands in calls this.
    pub fn check(&self, limits: &Limits) -> Result<(), CommandError> {
        let Self::Write { write, .. } = self else {
            return Ok(());
        };
        check_key(write.key(), limits)?;
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
        if bytes > max { Err(CommandError::Value { bytes, max }) } else { Ok(()) }
    }
}

/// Checks the size of a key.
pub fn check_key(key: &[u8], limits: &Limits) -> Result<(), CommandError> {
    let (bytes, max) = (key.len(), limits.key_bytes_max);
    if bytes == 0 || bytes > max { Err(CommandError::Key { bytes, max }) } else { Ok(()) }
}

impl Write {
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

/// Several encoded commands as one proposal.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: BytesMut,
    commands: usize,
}

impl Batch {
    /// Adds an encoded command.
    pub fn push(&mut self, command: &[u8]) {
        self.bytes.put_u32(u32::try_from(command.len()).expect("a command fits into a frame"));
        self.bytes.put_slice(command);
        self.commands += 1;
    }

    /// How many commands it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.commands
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.commands == 0
    }

    /// The bytes of the batch so far.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The proposal.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        self.bytes.freeze()
    }

    /// The commands of a proposal; `None` if the bytes are no batch.
    #[must_use]
    pub fn split(mut proposal: Bytes) -> Option<Vec<Bytes>> {
        let mut commands = Vec::new();
        while proposal.has_remaining() {
            let length = proposal.try_get_u32().ok()? as usize;
            if length > proposal.len() {
                return None;
            }
            commands.push(proposal.split_to(length));
        }
        Some(commands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: usize) -> Command {
        let write =
            Write::Put { key: Bytes::copy_from_slice(key.as_bytes()), value: Bytes::from(vec![7; value]) };
        Command::Write { request: RequestId { session: SessionId(1), number: 2 }, ack_below: 1, write }
    }

    #[test]
    fn commands_and_batches_survive_the_round_trip() {
        let command = put("k", 3);
        assert_eq!(Command::decode(&command.encode()).unwrap(), command);
        let mut batch = Batch::default();
        batch.push(&command.encode());
        batch.push(&[]);
        assert_eq!((batch.len(), batch.is_empty()), (2, false));
        assert_eq!(Batch::split(batch.freeze()).unwrap(), vec![command.encode(), Bytes::new()]);
        assert_eq!(Batch::split(Bytes::from_static(&[0, 0, 0, 9, 1])), None);
        assert_eq!(Batch::split(Bytes::from_static(&[0, 0])), None);
    }

    #[test]
    fn sizes_are_checked_and_errors_name_the_limit() {
        let limits = Limits { key_bytes_max: 4, value_bytes_max: 10 };
        assert_eq!(put("four", 10).check(&limits), Ok(()));
        assert!(put("fives", 1).check(&limits).unwrap_err().to_string().contains("1 to 4 bytes"));
        assert!(put("", 1).check(&limits).is_err());
        assert!(put("k", 11).check(&limits).unwrap_err().to_string().contains("at most 10 bytes"));
    }

    #[test]
    fn a_clock_that_is_wrong_is_named() {
        let late = Failure::TooLate { not_after: 1_000_000, time: 31_000_000 }.to_string();
        assert!(late.contains("30000 ms") && late.contains("this client's clock is behind"), "{late}");
        let early = Failure::TooEarly { not_after: 400_000_000, time: 1_000_000 }.to_string();
        assert!(early.contains("399 s") && early.contains("this client's clock is ahead"), "{early}");
    }

    #[test]
    fn every_truncation_of_a_command_is_refused() {
        let bytes = put("key", 20).encode();
        for length in 0..bytes.len() {
            assert!(Command::decode(&bytes[..length]).is_err(), "{length}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(Command::decode(&longer).is_err());
    }
}
