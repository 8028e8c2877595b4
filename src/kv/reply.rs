//! What a request comes to.

use super::operation::SessionId;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a request came to. Small on purpose: replies are remembered for retries.
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
    /// What should have held before a key was set did not hold: nothing was changed.
    Unmet {
        /// The key's version; 0 if there is no such key.
        version: u64,
    },
}

impl Reply {
    /// Whether it is the outcome of its request, and remembered as such ([`Failure::is_outcome`]).
    #[must_use]
    pub fn is_outcome(&self) -> bool {
        !matches!(self, Self::Failed(failure) if !failure.is_outcome())
    }
}

/// Why a request changed nothing. It surely did not, in this group, under this request number.
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
    /// The same number was used for another request.
    #[error("request number {number} was already used for another request in this session")]
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
    /// The client has cancelled the request before it was carried out: it never will be.
    #[error("the request was cancelled before it was carried out, and never will be")]
    Cancelled,
    /// The request is to come after another one that has no outcome yet.
    #[error("request {after} of the session has no outcome yet, and this one is to come after it")]
    OutOfOrder {
        /// The other one.
        after: u64,
    },
}

impl Failure {
    /// Whether the failure is the outcome of the request and remembered as such. The others leave the number unused:
    /// a retry elsewhere or later may still be applied.
    #[must_use]
    pub fn is_outcome(&self) -> bool {
        matches!(self, Self::NotANumber | Self::Overflow | Self::ValueTooLarge { .. } | Self::Cancelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_wrong_is_named() {
        let late = Failure::TooLate { not_after: 1_000_000, time: 31_000_000 }.to_string();
        assert!(late.contains("30000 ms") && late.contains("this client's clock is behind"), "{late}");
        let early = Failure::TooEarly { not_after: 400_000_000, time: 1_000_000 }.to_string();
        assert!(early.contains("399 s") && early.contains("this client's clock is ahead"), "{early}");
    }
}
