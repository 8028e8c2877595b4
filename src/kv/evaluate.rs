//! What a write does, judged by what is known of its key: pure, and the same for whoever asks.
//!
//! A write says how much it must know. Most need nothing of the value, however large it is: then it is not read. Whether the value
//! happens to be in memory changes no verdict.

use super::operation::{Expect, Expiry, Kind, When, Write};
use super::record::{Head, Record};
use super::reply::{Failure, Reply};
use crate::limits::{Limits, NUMBER_BYTES_MAX};
use bytes::Bytes;

/// What is known of a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Known<'a> {
    /// Nothing yet.
    Nothing,
    /// Its first record, or that there is no such key. If that tells the value, it is known too.
    Head(Option<&'a Head>),
}

/// When a write is applied.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    /// The version that the key has behind it, if it changes.
    pub(super) version: u64,
    /// Log time, in microseconds.
    pub(super) time: u64,
}

/// What comes of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The first record must be known.
    NeedsHead,
    /// All of the value must be known.
    NeedsValue,
    /// The key becomes this, or is removed.
    Change(Option<Record>, Reply),
    /// The key stays as it is.
    Stays(Reply),
}

/// Judges a write.
pub(super) fn evaluate(write: &Write, known: Known<'_>, at: At, limits: &Limits) -> Verdict {
    match write {
        Write::Put { value, kind, expiry, when: When::Always, .. } if *expiry != Expiry::Keep => {
            let record = Record { kind: *kind, expiry: ends(*expiry, 0, at), ..at.record(value.clone()) };
            Verdict::Change(Some(record), Reply::Put { version: at.version })
        }
        _ => match known {
            Known::Nothing => Verdict::NeedsHead,
            Known::Head(head) => by_head(write, head, at, limits),
        },
    }
}

fn by_head(write: &Write, head: Option<&Head>, at: At, limits: &Limits) -> Verdict {
    let (version, ended) = head.map_or((0, 0), |head| (head.version, head.expiry));
    match write {
        Write::Put { value, kind, expiry, when, .. } => {
            let holds = match when {
                When::Always => true,
                When::Absent => head.is_none(),
                When::Present => head.is_some(),
            };
            if !holds {
                return Verdict::Stays(Reply::Unmet { version });
            }
            let record = Record { kind: *kind, expiry: ends(*expiry, ended, at), ..at.record(value.clone()) };
            Verdict::Change(Some(record), Reply::Put { version: at.version })
        }
        Write::Delete { .. } if head.is_none() => Verdict::Stays(Reply::Deleted { existed: false }),
        Write::Delete { .. } => Verdict::Change(None, Reply::Deleted { existed: true }),
        Write::Cas { expect, value, kind, expiry, .. } => {
            let Some(matches) = matches(head, expect) else { return Verdict::NeedsValue };
            match value {
                _ if !matches => Verdict::Stays(Reply::Cas { swapped: false, version }),
                Some(value) => {
                    let expiry = ends(*expiry, ended, at);
                    let record = Record { kind: *kind, expiry, ..at.record(value.clone()) };
                    Verdict::Change(Some(record), Reply::Cas { swapped: true, version: at.version })
                }
                None if head.is_none() => Verdict::Stays(Reply::Cas { swapped: true, version: 0 }),
                None => Verdict::Change(None, Reply::Cas { swapped: true, version: 0 }),
            }
        }
        Write::Incr { by, .. } => increment(head, *by, at),
        Write::Append { value, .. } => append(head, value, at, limits),
    }
}

/// Whether a key is what a compare-and-set expects; none if that is not known without the value. One of another length is not it, and
/// need not be read.
fn matches(head: Option<&Head>, expect: &Expect) -> Option<bool> {
    match (expect, head) {
        (Expect::Version(expected), head) => Some(*expected == head.map_or(0, |head| head.version)),
        (Expect::Value(expected), None) => Some(expected.is_none()),
        (Expect::Value(None), Some(_)) => Some(false),
        (Expect::Value(Some(expected)), Some(head)) if expected.len() != head.length => Some(false),
        (Expect::Value(Some(expected)), Some(head)) => Some(head.value.as_ref()? == expected),
    }
}

fn increment(head: Option<&Head>, by: i64, at: At) -> Verdict {
    let number = |value: &Bytes| std::str::from_utf8(value).ok()?.parse::<i64>().ok();
    // Whether the value is in memory must not matter: what is longer than a number is none, read or not.
    let before = match head {
        None => Some(0),
        Some(head) => head.value.as_ref().filter(|_| head.length <= NUMBER_BYTES_MAX).and_then(number),
    };
    let Some(before) = before else {
        return Verdict::Stays(Reply::Failed(Failure::NotANumber));
    };
    let Some(value) = before.checked_add(by) else {
        return Verdict::Stays(Reply::Failed(Failure::Overflow));
    };
    let record = at.record(Bytes::from(value.to_string())).like(head);
    Verdict::Change(Some(record), Reply::Incr { value, version: at.version })
}

fn append(head: Option<&Head>, value: &Bytes, at: At, limits: &Limits) -> Verdict {
    let length = head.map_or(0, |head| head.length) + value.len();
    let (bytes, max) = (length as u64, limits.value_bytes_max as u64);
    if bytes > max {
        return Verdict::Stays(Reply::Failed(Failure::ValueTooLarge { bytes, max }));
    }
    let before = match head {
        None => &[][..],
        Some(Head { value: Some(value), .. }) => value,
        Some(_) => return Verdict::NeedsValue,
    };
    let record = at.record(Bytes::from([before, value].concat())).like(head);
    Verdict::Change(Some(record), Reply::Append { length: bytes, version: at.version })
}

/// When a key ends that is written now; 0 is never.
fn ends(expiry: Expiry, before: u64, at: At) -> u64 {
    match expiry {
        Expiry::Never => 0,
        Expiry::Keep => before,
        Expiry::At(time) => time.max(1),
        Expiry::In(micros) => at.time.saturating_add(micros).max(1),
    }
}

impl At {
    fn record(self, value: Bytes) -> Record {
        Record { version: self.version, kind: Kind::Plain, expiry: 0, value }
    }
}

impl Record {
    /// The same, of the kind that the key had, and ending when it did.
    fn like(self, head: Option<&Head>) -> Self {
        match head {
            Some(head) => Self { kind: head.kind, expiry: head.expiry, ..self },
            None => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: At = At { version: 9, time: 1_000 };

    fn key() -> Bytes {
        Bytes::from_static(b"k")
    }

    fn judge(write: &Write, head: Option<&Head>) -> Verdict {
        evaluate(write, Known::Head(head), AT, &Limits::default())
    }

    fn there(value: &str, expiry: u64) -> Head {
        let value = Bytes::copy_from_slice(value.as_bytes());
        Head { version: 4, kind: Kind::Plain, expiry, length: value.len(), value: Some(value) }
    }

    fn becomes(verdict: Verdict) -> (Record, Reply) {
        match verdict {
            Verdict::Change(Some(record), reply) => (record, reply),
            other => panic!("{other:?}"),
        }
    }

    fn put(expiry: Expiry, when: When) -> Write {
        Write::Put { key: key(), value: Bytes::from_static(b"new"), kind: Kind::Plain, expiry, when }
    }

    #[test]
    fn a_plain_put_needs_to_know_nothing() {
        let plain = evaluate(&Write::put("k", "new"), Known::Nothing, AT, &Limits::default());
        let (record, reply) = becomes(plain);
        assert_eq!((record.version, record.expiry, reply), (9, 0, Reply::Put { version: 9 }));
        for write in [put(Expiry::Keep, When::Always), put(Expiry::Never, When::Absent)] {
            assert_eq!(evaluate(&write, Known::Nothing, AT, &Limits::default()), Verdict::NeedsHead);
        }
    }

    #[test]
    fn keys_end_when_the_write_says() {
        let before = there("old", 77);
        for (expiry, ends) in [
            (Expiry::Never, 0),
            (Expiry::Keep, 77),
            (Expiry::At(5), 5),
            (Expiry::In(20), 1_020),
            (Expiry::At(0), 1),
            (Expiry::In(u64::MAX), u64::MAX),
        ] {
            let (record, _) = becomes(judge(&put(expiry, When::Present), Some(&before)));
            assert_eq!(record.expiry, ends, "{expiry:?}");
        }
        let (record, _) = becomes(judge(&put(Expiry::Keep, When::Always), None));
        assert_eq!(record.expiry, 0);
        let append = Write::Append { key: key(), value: Bytes::from_static(b"er") };
        let (record, reply) = becomes(judge(&append, Some(&before)));
        assert_eq!((record.expiry, reply), (77, Reply::Append { length: 5, version: 9 }));
        let (record, _) = becomes(judge(&Write::Incr { key: key(), by: 2 }, Some(&there("40", 77))));
        assert_eq!((record.expiry, record.value), (77, Bytes::from_static(b"42")));
        let cas = Write::cas("k", Expect::Version(4), Some(Bytes::from_static(b"new")));
        assert_eq!(becomes(judge(&cas, Some(&before))).0.expiry, 77);
    }

    #[test]
    fn a_put_whose_condition_does_not_hold_changes_nothing() {
        let before = there("old", 0);
        let absent = judge(&put(Expiry::Never, When::Absent), Some(&before));
        assert_eq!(absent, Verdict::Stays(Reply::Unmet { version: 4 }));
        let present = judge(&put(Expiry::Never, When::Present), None);
        assert_eq!(present, Verdict::Stays(Reply::Unmet { version: 0 }));
        assert!(matches!(judge(&put(Expiry::Never, When::Absent), None), Verdict::Change(..)));
    }

    /// To read a value costs as much as it is large.
    #[test]
    fn a_value_is_asked_for_only_where_the_verdict_rests_on_it() {
        let long = Head { length: 20_000, value: None, ..there("", 0) };
        let cas = |expect| judge(&Write::cas("k", expect, None), Some(&long));
        assert_eq!(cas(Expect::value(vec![0; 20_000])), Verdict::NeedsValue);
        for verdict in [cas(Expect::value("short")), cas(Expect::ABSENT), cas(Expect::Version(3))] {
            assert_eq!(verdict, Verdict::Stays(Reply::Cas { swapped: false, version: 4 }));
        }
        assert!(matches!(cas(Expect::Version(4)), Verdict::Change(None, _)));
        let incr = judge(&Write::Incr { key: key(), by: 1 }, Some(&long));
        assert_eq!(incr, Verdict::Stays(Reply::Failed(Failure::NotANumber)));
        let append = |bytes: usize| Write::Append { key: key(), value: vec![0; bytes].into() };
        assert_eq!(judge(&append(1), Some(&long)), Verdict::NeedsValue);
        let too_large = judge(&append(1 << 20), Some(&long));
        assert!(matches!(too_large, Verdict::Stays(Reply::Failed(Failure::ValueTooLarge { .. }))));
    }
}
